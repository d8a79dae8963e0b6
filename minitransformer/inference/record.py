"""A look inside: the attention weights of every layer, recorded while a model runs; its masks."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import NamedTuple

from torch import Tensor, nn

from minitransformer.attention import MultiHeadAttention
from minitransformer.masks import decoder_mask, padding_mask
from minitransformer.models import DecoderOnly, EncoderDecoder, EncoderOnly


@contextmanager
def record_attention(model: nn.Module) -> Iterator[dict[str, Tensor]]:
    """Collect the attention weights of every layer while the block runs.

    Yields {layer name: weights (B,H,Q,K)}, detached, of the last call of each layer.

    >>> with record_attention(model) as maps:
    ...     model(input_ids, attention_mask)
    >>> maps["encoder.layers.0.attention"].shape
    torch.Size([4, 2, 7, 7])
    """
    layers = {n: m for n, m in model.named_modules() if isinstance(m, MultiHeadAttention)}
    if not layers:
        raise ValueError(f"{type(model).__name__} contains no MultiHeadAttention to record")
    maps: dict[str, Tensor] = {}
    with ExitStack() as hooks:
        for name, layer in layers.items():
            hooks.enter_context(layer.tap.register_forward_hook(partial(_keep, maps, name)))
        yield maps


def _keep(maps: dict[str, Tensor], name: str, tap: nn.Module, inputs: tuple, weights: Tensor):
    maps[name] = weights.detach()


class Attended(NamedTuple):
    """Who may attend to whom in one kind of attention, alike in all of its layers."""

    name: str  # of its layers: the stack and the sublayer
    query_ids: Tensor  # (B,Q)
    query_mask: Tensor  # (B,Q), an attention_mask
    key_ids: Tensor  # (B,K)
    key_mask: Tensor  # (B,K), an attention_mask
    mask: Tensor  # (B,1,Q,K) bool

    def layers(self, maps: dict[str, Tensor]) -> list[Tensor]:
        """Of what `record_attention` yields the weights (B,H,Q,K) of this kind, layer by layer."""
        stack, sublayer = self.name.split(".")
        named = (name.split(".") for name in maps)
        return [maps[".".join(n)] for n in named if n[0] == stack and n[-1] == sublayer]


def attended(model: nn.Module, *inputs: Tensor) -> list[Attended]:
    """The masks that a model makes of its `inputs`, made again, to look at weights beside them.

    `inputs` are (B,T) ids and attention_mask, and of an EncoderDecoder those of the target, too;
    what follows them is not read. Raises TypeError for another model.
    """
    if isinstance(model, EncoderDecoder):
        source, target = inputs[:2], inputs[2:4]
        causal = decoder_mask(target[1], window=model.config.window)
        cross = padding_mask(target[1], source[1])
        return [
            Attended("encoder.attention", *source, *source, padding_mask(source[1])),
            Attended("decoder.attention", *target, *target, causal),
            Attended("decoder.cross_attention", *target, *source, cross),
        ]
    own = inputs[:2]
    if isinstance(model, DecoderOnly):
        mask = decoder_mask(own[1], window=model.config.window)
        return [Attended("decoder.attention", *own, *own, mask)]
    if isinstance(model, EncoderOnly):
        return [Attended("encoder.attention", *own, *own, padding_mask(own[1]))]
    raise TypeError(
        "expected an EncoderOnly, a DecoderOnly or an EncoderDecoder, got a "
        f"{type(model).__name__}: its masks are not known"
    )
