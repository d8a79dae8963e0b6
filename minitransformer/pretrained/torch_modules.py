"""torch's own nn.Transformer, nn.TransformerEncoder and nn.TransformerDecoder as our stacks."""

import re
from dataclasses import replace

import torch
from torch import nn
from torch.nn import functional as F

from minitransformer.config import STYLES, Config
from minitransformer.layers import DecoderLayer, EncoderLayer, Stack
from minitransformer.pretrained.names import Part, convert

ACTIVATIONS = {F.relu: "relu", F.gelu: "gelu"}


def from_torch(
    module: nn.Transformer | nn.TransformerEncoder | nn.TransformerDecoder,
) -> Stack | tuple[Stack, Stack]:
    """torch's module as a Stack with the same weights; nn.Transformer as (encoder, decoder).

    A Stack is called with our masks, True = may attend, and batch first whatever the module was:
    encoder(x, padding_mask(source_mask), None) and
    decoder(y, mask, None, memory, padding_mask(target_mask, source_mask)).

    Raises TypeError for other modules and ValueError for activations that are not relu or gelu.
    """
    if isinstance(module, nn.Transformer):
        return from_torch(module.encoder), from_torch(module.decoder)  # type: ignore[return-value]
    if not isinstance(module, nn.TransformerEncoder | nn.TransformerDecoder):
        raise TypeError(
            "expected nn.Transformer, nn.TransformerEncoder or nn.TransformerDecoder, "
            f"got {type(module).__name__}"
        )
    decodes = isinstance(module, nn.TransformerDecoder)
    first = module.layers[0]
    activation = first.activation if callable(first.activation) else None
    name = "gelu" if isinstance(activation, nn.GELU) else ACTIVATIONS.get(activation)
    name = "relu" if isinstance(activation, nn.ReLU) else name
    if name is None or getattr(activation, "approximate", "none") != "none":
        raise ValueError(f"activation must be relu or gelu, got {activation!r}")
    style = replace(
        STYLES["vanilla"],
        residual="pre" if first.norm_first else "post",
        feed_forward=name,
        bias=first.linear1.bias is not None,
        final_norm=module.norm is not None,
    )
    width = first.linear1.in_features
    config = Config(
        vocab_size=1,
        d_model=width,
        num_layers=len(module.layers),
        num_heads=first.self_attn.num_heads,
        d_ff=first.linear1.out_features,
        dropout=first.dropout1.p,
        norm_eps=first.norm1.eps,
        style=style,
    )
    stack = Stack(config, DecoderLayer if decodes else EncoderLayer, len(module.layers))
    weight = first.linear1.weight
    stack.to(weight.device, weight.dtype).train(module.training)
    tensors = module.state_dict()
    for name, gain in list(tensors.items()):  # without bias torch's norms have none either: zeros
        if re.search(r"norm\d?\.weight$", name):
            bias = name.removesuffix("weight") + "bias"
            tensors.setdefault(bias, torch.zeros_like(gain))
    stack.load_state_dict(convert(stack, tensors, _names(decodes), (), "the module"))
    return stack


def _names(decodes: bool) -> dict[str, str | Part]:
    ours = theirs = "layers.{i}"
    names: dict[str, str | Part] = {
        f"{ours}.attention_residual.norm": f"{theirs}.norm1",
        f"{ours}.cross_attention_residual.norm": f"{theirs}.norm2",
        f"{ours}.feed_forward_residual.norm": f"{theirs}.norm{3 if decodes else 2}",
        f"{ours}.feed_forward.widen": f"{theirs}.linear1",
        f"{ours}.feed_forward.narrow": f"{theirs}.linear2",
        "norm": "norm",
    }
    for our_kind, their_kind in (("attention", "self_attn"), ("cross_attention", "multihead_attn")):
        for index, part in enumerate(("query", "key", "value")):
            fused = Part(f"{theirs}.{their_kind}.in_proj_", index, of=3)
            names[f"{ours}.{our_kind}.{part}"] = fused
        names[f"{ours}.{our_kind}.output"] = f"{theirs}.{their_kind}.out_proj"
    return names
