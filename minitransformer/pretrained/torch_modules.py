"""torch's own nn.Transformer, nn.TransformerEncoder and nn.TransformerDecoder as our stacks."""

from copy import deepcopy
from dataclasses import replace

from torch import nn

from minitransformer.config import STYLES, Config
from minitransformer.layers import DecoderLayer, EncoderLayer, Stack
from minitransformer.pretrained.names import Part, convert

NORMS = (nn.LayerNorm, nn.RMSNorm)
PARTS = {  # of torch's layers, by name: what may stand there
    "self_attn": (nn.MultiheadAttention,),
    "multihead_attn": (nn.MultiheadAttention,),
    "linear1": (nn.Linear,),
    "linear2": (nn.Linear,),
    "norm1": NORMS,
    "norm2": NORMS,
    "norm3": NORMS,
}


def from_torch(
    module: nn.Transformer | nn.TransformerEncoder | nn.TransformerDecoder,
) -> Stack | tuple[Stack, Stack]:
    """torch's module as a Stack with the same weights; nn.Transformer as (encoder, decoder).

    A Stack is called with our masks, True = may attend, and batch first whatever the module was:
    encoder(x, padding_mask(source_mask), None) and
    decoder(y, mask, None, memory, padding_mask(target_mask, source_mask)).

    Each layer keeps its own heads, width, activation and norms, and the norm after the last layer
    may be any module. In training torch also applies dropout to attention weights and inside the
    feed-forward network; ours does not.

    Raises TypeError for other modules, and ValueError for what our layers cannot compute, by its
    name.
    """
    if isinstance(module, nn.Transformer):
        return from_torch(module.encoder), from_torch(module.decoder)  # type: ignore[return-value]
    if type(module) not in (nn.TransformerEncoder, nn.TransformerDecoder):
        raise TypeError(
            "expected nn.Transformer, nn.TransformerEncoder or nn.TransformerDecoder, "
            f"got {type(module).__name__}"
        )
    if len(module.layers) == 0:
        raise ValueError("the module has no layers")
    decodes = isinstance(module, nn.TransformerDecoder)
    for number, layer in enumerate(module.layers):
        _check(layer, f"layers[{number}]", decodes)
        if layer.self_attn.batch_first != module.layers[0].self_attn.batch_first:
            raise ValueError(f"layers[{number}].self_attn.batch_first differs from layers[0]'s")
    kind = DecoderLayer if decodes else EncoderLayer
    configs = [_config(layer) for layer in module.layers]
    stack = Stack(configs[0], kind, 0)
    stack.layers = nn.ModuleList(kind(config, stack.kernel) for config in configs)
    for ours, theirs in zip(stack.layers, module.layers, strict=True):
        for name, number in _residuals(decodes).items():
            residual = getattr(ours, name)
            residual.norm = deepcopy(getattr(theirs, f"norm{number}"))
            residual.dropout.p = getattr(theirs, f"dropout{number}").p
    weight = module.layers[0].linear1.weight
    stack.to(weight.device, weight.dtype)
    tensors = {key: t for key, t in module.state_dict().items() if key.startswith("layers.")}
    stack.load_state_dict(convert(stack, tensors, _names(decodes), (), "the module"))
    for ours, theirs in zip(stack.layers, module.layers, strict=True):
        del ours.feed_forward.activation  # a module; theirs may be a function
        ours.feed_forward.activation = theirs.activation
    stack.norm = nn.Identity() if module.norm is None else deepcopy(module.norm)
    return stack.train(module.training)


def _check(layer: nn.Module, where: str, decodes: bool) -> None:
    """Raise ValueError for a layer that holds anything but torch's own parts."""
    expected = nn.TransformerDecoderLayer if decodes else nn.TransformerEncoderLayer
    if type(layer) is not expected:
        raise ValueError(f"{where} is a {type(layer).__name__}; only {expected.__name__} is known")
    for name, kinds in PARTS.items():
        part = getattr(layer, name, None)
        if part is not None and type(part) not in kinds:
            known = " or ".join(kind.__name__ for kind in kinds)
            raise ValueError(f"{where}.{name} is a {type(part).__name__}; only {known} is known")
        if isinstance(part, nn.MultiheadAttention) and (
            part.add_zero_attn or part.bias_k is not None
        ):
            option = "add_zero_attn" if part.add_zero_attn else "add_bias_kv"
            raise ValueError(f"{where}.{name} has {option}, keys that belong to no token")
        if isinstance(part, nn.MultiheadAttention) and part.num_heads != layer.self_attn.num_heads:
            raise ValueError(f"{where}.{name} has other num_heads than {where}.self_attn")


def _config(layer: nn.TransformerEncoderLayer | nn.TransformerDecoderLayer) -> Config:
    style = replace(
        STYLES["vanilla"],
        residual="pre" if layer.norm_first else "post",
        bias=layer.linear1.bias is not None,
    )
    return Config(
        vocab_size=1,
        d_model=layer.linear1.in_features,
        num_heads=layer.self_attn.num_heads,
        d_ff=layer.linear1.out_features,
        style=style,
    )


def _residuals(decodes: bool) -> dict[str, int]:
    """Our residual connections -> the number of torch's norm and dropout there."""
    middle = {"cross_attention_residual": 2} if decodes else {}
    return {"attention_residual": 1, **middle, "feed_forward_residual": 2 + decodes}


def _names(decodes: bool) -> dict[str, str | Part]:
    ours = theirs = "layers.{i}"
    names: dict[str, str | Part] = {
        f"{ours}.feed_forward.widen": f"{theirs}.linear1",
        f"{ours}.feed_forward.narrow": f"{theirs}.linear2",
    }
    for name, number in _residuals(decodes).items():
        names[f"{ours}.{name}.norm"] = f"{theirs}.norm{number}"
    for our_kind, their_kind in (("attention", "self_attn"), ("cross_attention", "multihead_attn")):
        for index, part in enumerate(("query", "key", "value")):
            fused = Part(f"{theirs}.{their_kind}.in_proj_", index, of=3)
            names[f"{ours}.{our_kind}.{part}"] = fused
        names[f"{ours}.{our_kind}.output"] = f"{theirs}.{their_kind}.out_proj"
    return names
