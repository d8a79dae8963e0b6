"""A look inside: the attention weights of every layer, recorded while a model runs."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial

from torch import Tensor, nn

from minitransformer.attention import MultiHeadAttention


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
