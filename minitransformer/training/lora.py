"""Fine-tuning a part of a model: its last layers, or low-rank adaptation (LoRA).

    add_lora(model, rank=8)          # only the new A and B learn
    train(Training(model, ...), ...)
    merge_lora(model)                # plain linear layers again, to be saved

Hu et al. 2021, arXiv:2106.09685.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from minitransformer.attention import MultiHeadAttention
from minitransformer.contract import at_least_float32, check_integer
from minitransformer.embedding import Embedding
from minitransformer.layers import Stack

PROJECTIONS = ("query", "key", "value", "output")


class LoRALinear(nn.Linear):
    """A linear layer with a low-rank addition: W x + b + (alpha / rank) · B A x (eq. 3).

    W and b are the parameters of the layer given, and do not learn. A is random as in `peft`
    (Kaiming, uniform), and B is 0: at first nothing changes.
    """

    def __init__(self, linear: nn.Linear, rank: int, alpha: float):
        super().__init__(linear.in_features, linear.out_features, device="meta")
        linear.requires_grad_(False)
        self.weight, self.bias = linear.weight, linear.bias
        self.scale = alpha / rank
        self.A = nn.Parameter(self.weight.new_empty(rank, self.in_features))
        self.B = nn.Parameter(self.weight.new_zeros(self.out_features, rank))
        nn.init.kaiming_uniform_(self.A, a=math.sqrt(5))

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + self.scale * F.linear(F.linear(x, self.A), self.B)

    @torch.no_grad()
    def merged(self) -> nn.Linear:
        """A plain linear layer. Its weight, the same parameter, is now W + (alpha / rank) · B A."""
        addition = self.scale * at_least_float32(self.B) @ at_least_float32(self.A)
        self.weight.copy_(self.weight + addition)
        linear = nn.Linear(self.in_features, self.out_features, device="meta")
        linear.weight, linear.bias = self.weight, self.bias
        return linear

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, rank={len(self.A)}, scale={self.scale:g}"


def add_lora(
    model: nn.Module,
    rank: int,
    alpha: float | None = None,
    names: Sequence[str] = ("query", "value"),
) -> int:
    """Put a LoRALinear in place of these projections of every attention of the model.

    Everything else in the model stops learning; returns how many parameters learn. Of a classifier
    give the `body`, and its head goes on learning. `alpha` defaults to `rank`, a scale of 1.
    Raises ValueError for a rank, an alpha or names that are impossible, for a model without
    attention, and for one that has LoRA already.
    """
    alpha = rank if alpha is None else alpha
    _check_options(rank, alpha, names)
    attentions = _parts(model, MultiHeadAttention)
    if not attentions:
        raise ValueError(f"{type(model).__name__} has no MultiHeadAttention to put LoRA into")
    if _parts(model, LoRALinear):
        raise ValueError("the model has LoRA already: call merge_lora(model) first")
    model.requires_grad_(False)
    for attention in attentions:
        for name in dict.fromkeys(names):  # each once
            setattr(attention, name, LoRALinear(getattr(attention, name), rank, alpha))
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


def lora_of(model: nn.Module) -> dict[str, Any] | None:
    """With what `add_lora` was called for this model, if it was."""
    found = {
        name.rpartition(".")[2]: part
        for name, part in model.named_modules()
        if isinstance(part, LoRALinear)
    }
    if not found:
        return None
    part = next(iter(found.values()))
    rank = len(part.A)
    return {"rank": rank, "alpha": part.scale * rank, "names": list(found)}


def merge_lora(model: nn.Module) -> None:
    """Put plain linear layers with the same outputs, to rounding, in place of every LoRALinear.

    The parameters have the names that they had before `add_lora`, and all of them learn again.
    """
    for module in list(model.modules()):
        for name, child in module.named_children():
            if isinstance(child, LoRALinear):
                setattr(module, name, child.merged())
    model.requires_grad_(True)


def freeze(model: nn.Module, layers: int) -> None:
    """Stop the embeddings and the first `layers` layers of each stack from learning; 0 stops none.

    A head that is tied to the embedding stops with it.
    """
    check_integer("layers", layers, 0)
    stacks = _parts(model, Stack)
    fewest = min((len(stack.layers) for stack in stacks), default=0)
    if layers > fewest:
        raise ValueError(f"layers must be at most {fewest}, as many as there are, got {layers}")
    frozen = _parts(model, Embedding) if layers else []
    frozen += [layer for stack in stacks for layer in stack.layers[:layers]]
    for part in frozen:
        part.requires_grad_(False)


def _parts(model: nn.Module, kind: type[nn.Module]) -> list:
    return [part for part in model.modules() if isinstance(part, kind)]


def _check_options(rank: int, alpha: float, names: Sequence[str]) -> None:
    check_integer("rank", rank, 1)
    if not 0 < alpha < math.inf:
        raise ValueError(f"alpha must be a number above 0, got {alpha}")
    if not names or not set(names) <= set(PROJECTIONS):
        raise ValueError(f"names must be some of {', '.join(PROJECTIONS)}, got {names!r}")
