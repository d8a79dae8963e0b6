"""The attention weights inside a module, seen while it runs."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode

from minitransformer.checks.models.cases import laid_out
from minitransformer.checks.models.ready import Ready
from minitransformer.checks.models.subject import EncoderSubject

SOFTMAX = ("aten::_softmax", "aten::_safe_softmax")


class _SoftmaxSeen(TorchDispatchMode):
    """Keeps what each softmax over the last axis gives, whichever function or layer asks for it."""

    def __init__(self):
        super().__init__()
        self.weights: list[Tensor] = []

    def __torch_dispatch__(self, operator, types, given=(), options=None):
        output = operator(*given, **(options or {}))
        if operator._schema.name in SOFTMAX and given[1] in (-1, output.ndim - 1):
            self.weights.append(output.detach())
        return output


def watched(call: Callable[[], Any]) -> list[Tensor]:
    """What each softmax of the call gave, in order.

    scaled_dot_product_attention takes the backend that is written with a softmax.
    """
    with sdpa_kernel(SDPBackend.MATH), _SoftmaxSeen() as seen:
        call()
    return seen.weights


def attention_traits(subject: EncoderSubject) -> tuple[str, ...] | None:
    """How the first and the last layer treat padding and the future, whatever the weights are.

    Of self-attention and cross-attention, where they are seen. None where nothing is.
    """
    if not isinstance(subject.fn, nn.Module):
        return None
    ready = Ready(subject)
    streams = [laid_out(subject, i, subject.sides[-1]) for i in range(subject.streams)]
    weights = watched(lambda: ready(*streams))
    masks = [mask != 0 for _, mask in streams]
    traits = []
    for i, queries in enumerate(masks):
        for keys in masks[: i + 1]:
            shape = (queries.shape[1], keys.shape[1])
            rule = torch.ones(shape, dtype=torch.bool, device=queries.device)
            if subject.causal and keys is masks[-1]:
                rule = rule.tril()
            layers = [w for w in weights if w.shape[-2:] == shape and w.ndim > 2]
            for layer in (layers[0], layers[-1]) if layers else ():
                heads = layer.reshape(len(queries), -1, *shape)
                traits += [
                    _padding_is(heads, queries, keys, rule),
                    _future_is(heads, queries, rule),
                ]
    return tuple(traits) or None


def _padding_is(heads: Tensor, queries: Tensor, keys: Tensor, rule: Tensor) -> str:
    """Of weights (B,H,Q,K). Which queries (B,Q) and keys (B,K) are real; `rule` (Q,K): causal."""
    seen = (heads > 0).any(1)
    if not (seen & queries.unsqueeze(2) & ~keys.unsqueeze(1)).any():
        return "padding hidden"
    equal = (heads.amax(-1) == heads.amin(-1)).any(1)  # a softmax over nothing, filled up
    as_real = ((seen == rule).all(-1) & ~equal)[~queries].all()
    return "padding seen" if as_real else "padding seen by real tokens"


def _future_is(heads: Tensor, queries: Tensor, rule: Tensor) -> str:
    """Of the same: what real queries see beyond the rule."""
    beyond = (heads > 0).any(1)[queries] & ~rule.expand(len(queries), -1, -1)[queries]
    if not beyond.any():
        return "future hidden"
    return "next token seen" if beyond.sum(-1).max() == 1 else "future seen"
