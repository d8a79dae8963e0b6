"""Which attention a model uses for a batch, and why: what its kernel makes of each mask."""

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from inspect import signature
from typing import Any

import torch
from torch import Tensor, nn

from minitransformer.kernels import Kernel
from minitransformer.kernels.plan import Plan
from minitransformer.kernels.sdpa import SdpaMask
from minitransformer.kernels.varlen import Lengths
from minitransformer.layers import Stack


@torch.no_grad()
def explain_attention(model: nn.Module, batch: Mapping[str, Any]) -> str:
    """What computes each attention of `model` on `batch`, in a line for each mask.

    The model runs once on the batch, a mapping of its forward's arguments (a `Batch`, a
    `PairBatch`), wherever that lies. The shares are of one head's queries × keys; short documents
    compute more, as they are filled up to 16 keys. On a GPU this
    reads the masks, so it is to look at, and not for each step.

    >>> print(explain_attention(model, pad([[5, 6, 7], [8]])))
    decoder: mask (2, 1, 3, 3), 39% True -> auto: strips, 2 documents in ...

    Raises ValueError for a model without a stack of layers.
    """
    stacks = {name: m for name, m in model.named_modules() if isinstance(m, Stack)}
    if not stacks:
        raise ValueError(f"{type(model).__name__} contains no stack of layers to explain")
    lines: list[str] = []
    kernels = {name: stack.kernel for name, stack in stacks.items()}
    for name, stack in stacks.items():
        if stack.kernel is None:
            lines.append(f'{name}: the reference, as Config(attention="reference") says')
        else:
            stack.kernel = replace(stack.kernel, plan=partial(_watched, stack.kernel, name, lines))
    device = next(model.parameters()).device
    given = {name: batch[name] for name in signature(model.forward).parameters if name in batch}
    try:
        model(**{name: None if x is None else x.to(device) for name, x in given.items()})
    finally:
        for name, stack in stacks.items():
            stack.kernel = kernels[name]
    return "\n".join(lines)


def _watched(
    kernel: Kernel, name: str, lines: list[str], mask: Tensor, batch: int, *rest: Any
) -> Any:
    plan = kernel.plan(mask, batch, *rest)
    share = mask.double().mean().item() if mask.numel() else 0.0
    why = _why(plan, mask, batch, kernel.name)
    lines.append(f"{name}: mask {tuple(mask.shape)}, {share:.0%} True -> {kernel.name}: {why}")
    return plan


def _why(plan: Any, mask: Tensor, batch: int, name: str) -> str:
    if isinstance(plan, SdpaMask):
        return f"a single call of torch's SDPA, {_why_a_single_call(mask, name)}"
    if isinstance(plan, Lengths):
        documents, tokens = len(plan.query_ends) - 1, len(plan.queries)
        seen = "causally" if plan.causal else "as a whole"
        return f"flash-attention of {documents} documents, {tokens} queries, each seen {seen}"
    if isinstance(plan, Plan):
        documents = sum(len(group.queries) for group in plan.groups)
        computed = plan.scores / (batch * mask[0].numel())
        return (
            f"strips, {documents} documents in {len(plan.groups)} group(s) of like lengths, "
            f"which compute {computed:.0%} of queries × keys"
        )
    shown = int((plan.key_ends[..., 2]).sum())  # of Triton's tile map
    every = plan.tiles.shape[:4].numel()
    return f"Triton, which loads {shown} of {every} tiles of the mask"


def _why_a_single_call(mask: Tensor, name: str) -> str:
    if name == "varlen" and mask.shape[2] > 1:
        return (
            "as lengths are for half precision on CUDA, by torch 2.11 or later, and for documents "
            "that are all seen as a whole or all causally"
        )
    if not mask.is_cpu:
        return (
            "without cuDNN: to read the mask would make the GPU wait; where much of it is False, "
            'Config(attention="triton") reads it there'
        )
    if mask.shape[2] == 1:
        return "as a single query is not worth a plan"
    return "as it says so by name, or there is nothing to see, or to gather it would cost more"
