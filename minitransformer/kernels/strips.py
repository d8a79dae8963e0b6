"""Attention strip by strip, after the plan of its mask: what the mask forbids costs nothing.

Three formulas for one strip, from the plainest to the fastest; what is around them is the same.
"""

from collections.abc import Callable, Iterator
from functools import partial
from math import inf
from typing import Any

import torch
from einops import rearrange, repeat
from torch import Tensor

from minitransformer.contract import at_least_float32, may_read
from minitransformer.kernels.kernel import Kernel
from minitransformer.kernels.plan import SHORT, Group, Plan, Strip, joined, make_plan
from minitransformer.kernels.sdpa import SdpaMask, compute_sdpa, fused_kernel, sdpa_mask

# (query, key, value, strip) -> output, with the part of each tensor that is in the strip
Formula = Callable[[Tensor, Tensor, Tensor, Strip], Tensor]

BLOCK = 512  # keys that the online softmax looks at together
MOST_KEPT = 2**26  # scores that `tiled` keeps for the backward pass


def _plain(query: Tensor, key: Tensor, value: Tensor, strip: Strip) -> Tensor:
    """softmax(Q Kᵀ / √d) V, in the lines of `scaled_dot_product_attention`."""
    query, key = at_least_float32(query) / query.shape[-1] ** 0.5, at_least_float32(key)
    scores = query @ key.contiguous().mT  # to copy a transposed one is slow
    if strip.bias is not None:
        scores = scores + strip.bias
    return scores.softmax(dim=-1).to(value.dtype) @ value


def _fused(query: Tensor, key: Tensor, value: Tensor, strip: Strip) -> Tensor:
    """torch's own fused kernel, which never holds its scores; on a CPU it is slow where few are."""
    if key.shape[2] <= SHORT and key.is_cpu:
        return _plain(query, key, value, strip)
    if strip.causal or strip.bias is None:
        return fused_kernel(query, key, value, is_causal=strip.causal)
    return fused_kernel(query, key, value, attn_mask=strip.bias.to(query.dtype))


def _online(query: Tensor, key: Tensor, value: Tensor, strip: Strip) -> Tensor:
    """Online softmax: the plain formula, without ever seeing a whole row of scores.

    Holds one block of scores at a time forward, one strip backward: memory linear in the length
    (Milakov and Gimelshein 2018, arXiv:1805.02867; Dao et al. 2022, arXiv:2205.14135, algorithm 1).
    `highest` is the largest score so far, `total` the sum of exp(score - highest) and `output`
    that of exp(score - highest) · value. When a higher score comes, both sums are scaled down.
    """
    query = at_least_float32(query) / query.shape[-1] ** 0.5
    highest = query.new_full((*query.shape[:-1], 1), -inf)
    total = output = 0.0
    for start in range(0, key.shape[2], BLOCK):
        keys = slice(start, start + BLOCK)
        scores = query @ at_least_float32(key[:, :, keys]).mT
        if strip.bias is not None:
            scores = scores + strip.bias[..., keys]
        before, highest = highest, torch.maximum(highest, scores.detach().amax(-1, keepdim=True))
        level = highest.masked_fill(highest == -inf, 0.0)  # nothing to see so far
        powers, shrink = (scores - level).exp(), (before - level).exp()
        total = total * shrink + powers.sum(dim=-1, keepdim=True)
        output = output * shrink + powers @ at_least_float32(value[:, :, keys])
    return (output / total).to(value.dtype)


class _ByStrips(torch.autograd.Function):
    """The strips of a group put together; backward, each is a small graph of its own.

    One graph of slices would do, but the gradient of each slice would be as large as the whole.
    """

    @staticmethod
    def forward(ctx, query, key, value, strips: list[Strip], formula: Formula, keep: bool):
        ctx.save_for_backward(query, key, value)
        ctx.strips, ctx.formula, ctx.graphs = strips, formula, {}
        size = (len(query), query.shape[2], query.shape[1], value.shape[3])
        output = value.new_empty(size).transpose(1, 2)  # as the output projection will read it
        keep = keep and any(ctx.needs_input_grad)
        for number, strip in enumerate(strips):
            inputs, result = _strip_of(strip, formula, query, key, value, keep)
            output[strip.documents, :, strip.queries] = result.detach()
            if keep:
                ctx.graphs[number] = inputs, result
        return output

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, gradient: Tensor):
        whole = ctx.saved_tensors
        d_query, d_key, d_value = gradients = [torch.zeros_like(x) for x in whole]
        for number, strip in enumerate(ctx.strips):
            graph = ctx.graphs.pop(number, None)  # used up: the next time it is computed again
            inputs, result = graph or _strip_of(strip, ctx.formula, *whole, graph=True)
            towards = gradient[strip.documents, :, strip.queries]
            parts = torch.autograd.grad(result, inputs, towards)
            d_query[strip.documents, :, strip.queries] = parts[0]
            for total, part in zip((d_key, d_value), parts[1:], strict=True):
                place = 0
                for run in strip.keys:
                    length = run.stop - run.start
                    total[strip.documents, :, run] += part.narrow(2, place, length)
                    place += length
        return (*gradients, None, None, None)


def _strip_of(
    strip: Strip, formula: Formula, query: Tensor, key: Tensor, value: Tensor, graph: bool
) -> tuple[list[Tensor], Tensor]:
    """A strip's inputs and its output, with the graph from one to the other where wanted."""
    parts = (
        query[strip.documents, :, strip.queries],
        joined(key[strip.documents], strip.keys, dim=2),
        joined(value[strip.documents], strip.keys, dim=2),
    )
    with torch.set_grad_enabled(graph):
        inputs = [part.detach().requires_grad_(graph) for part in parts]
        return inputs, formula(*inputs, strip)


# ---- the kernels -----------------------------------------------------------------------------


def compute(
    formula: Formula,
    most_kept: float,  # scores whose graphs are kept; above, the backward pass recomputes them
    query: Tensor,
    key: Tensor,
    value: Tensor,
    plan: Plan | SdpaMask,
    finite: bool,
) -> Tensor:
    """The formula for every group. Gradients of gradients are the reference's business."""
    if isinstance(plan, SdpaMask):
        return compute_sdpa(query, key, value, plan, finite)
    heads = query.shape[1]
    keep = heads * plan.scores <= most_kept
    if plan.per_head:
        key, value = (_for_heads(x, heads) for x in (key, value))
        query, key, value = (rearrange(x, "b h t d -> (b h) 1 t d") for x in (query, key, value))
    if plan.back is None:
        output = _attend(plan.groups[0], formula, keep, query, key, value)
    else:
        shapes = [group.queries.shape for group in plan.groups]
        key_shapes = [group.keys.shape for group in plan.groups]
        parts = zip(
            plan.groups,
            _take(query, plan.queries, shapes),
            _take(key, plan.keys, key_shapes),
            _take(value, plan.keys, key_shapes),
            strict=True,
        )
        outputs = [_attend(group, formula, keep, *inputs) for group, *inputs in parts]
        output = _put_back(outputs, plan.back, query, value)
    return rearrange(output, "(b h) 1 t d -> b h t d", h=heads) if plan.per_head else output


def _take(x: Tensor, tokens: Tensor, shapes: list[torch.Size]) -> Iterator[Tensor]:
    """Of x (B,H,T,D) some tokens -> for each group (documents, H, longest, D)."""
    rows = rearrange(x, "b h t d -> (b t) (h d)").index_select(0, tokens)
    for part, shape in zip(rows.split([shape.numel() for shape in shapes]), shapes, strict=True):
        yield part.view(*shape, x.shape[1], x.shape[3]).transpose(1, 2)


def _put_back(outputs: list[Tensor], back: Tensor, query: Tensor, value: Tensor) -> Tensor:
    """The outputs of the groups, each at its token; zeros where a query sees nothing."""
    rows = [rearrange(output, "n h q d -> (n q) (h d)") for output in outputs]
    nothing = value.new_zeros(1, query.shape[1] * value.shape[3])
    rows = torch.cat([*rows, nothing]).index_select(0, back)
    return rearrange(rows, "(b q) (h d) -> b h q d", b=len(query), h=query.shape[1])


def _attend(group: Group, formula: Formula, keep: bool, *inputs: Tensor) -> Tensor:
    query, key, value = inputs
    key, value = _for_heads(key, query.shape[1]), _for_heads(value, query.shape[1])
    if keep and len(group.strips) == 1:
        return formula(query, key, value, group.strips[0])
    return _ByStrips.apply(query, key, value, group.strips, formula, keep)


def _for_heads(x: Tensor, heads: int) -> Tensor:
    """(b, kv heads, k, d) -> (b, heads, k, d): each serves its neighboring query heads."""
    group = heads // max(x.shape[1], 1)
    return repeat(x, "b h k d -> b (h g) k d", g=group) if group > 1 else x


compute_tiled = partial(compute, _plain, MOST_KEPT)
compute_fused = partial(compute, _fused, inf)  # it holds the scores of short documents only
compute_online = partial(compute, _online, -1)


def compute_auto(query: Tensor, key: Tensor, value: Tensor, plan: Any, finite: bool) -> Tensor:
    """As `compute_fused`; on a CPU half precision trains in float32, where torch's is slow."""
    if query.dtype.itemsize >= 4 or not torch.is_grad_enabled() or isinstance(plan, SdpaMask):
        return compute_fused(query, key, value, plan, finite)
    output = compute_fused(query.float(), key.float(), value.float(), plan, finite)
    return output.to(value.dtype)


def plan_strips(
    mask: Tensor, batch: int, heads: int, dtype: torch.dtype, whole: bool = False
) -> Plan | SdpaMask:
    """The plan of a mask; a single query, as in each step of generation, is not worth one."""
    plan = None if mask.shape[2] == 1 else make_plan(mask, batch, heads, whole)
    return plan if plan and plan.groups else sdpa_mask(mask, batch, heads, dtype)


def plan_auto(mask: Tensor, *rest: Any) -> Plan | SdpaMask:
    """What is fastest on a CPU, and on a GPU what never waits (Triton has to be asked for)."""
    if not may_read(mask):
        return sdpa_mask(mask, *rest)
    return plan_strips(mask, *rest, whole=True)


tiled_attention = Kernel("tiled", plan_strips, compute_tiled)
fused_attention = Kernel("fused", partial(plan_strips, whole=True), compute_fused)
online_attention = Kernel("online", plan_strips, compute_online)
auto_attention = Kernel("auto", plan_auto, compute_auto)
