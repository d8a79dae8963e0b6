"""Attention strip by strip, after the plan of its mask: what the mask forbids costs nothing.

Three formulas for one strip, from the plainest to the fastest; what is around them is the same.
"""

from collections.abc import Callable
from functools import partial
from math import inf
from typing import Any

import torch
from einops import repeat
from torch import Tensor
from torch.nn import functional as F

from minitransformer.contract import at_least_float32, may_read
from minitransformer.kernels.kernel import Kernel
from minitransformer.kernels.plan import Plan, Strip, joined, make_plan
from minitransformer.kernels.sdpa import SdpaMask, compute_sdpa, sdpa_mask

# (query, key, value, strip) -> output, with the part of each tensor that is in the strip
Formula = Callable[[Tensor, Tensor, Tensor, Strip], Tensor]

BLOCK = 512  # keys that the online softmax looks at together
MOST_KEPT = 2**26  # scores that `tiled` keeps for the backward pass


def _plain(query: Tensor, key: Tensor, value: Tensor, strip: Strip) -> Tensor:
    """softmax(Q Kᵀ / √d) V, in the lines of `scaled_dot_product_attention`."""
    query, key = at_least_float32(query) / query.shape[-1] ** 0.5, at_least_float32(key)
    scores = query @ key.mT
    if strip.allowed is not None:
        scores = scores.masked_fill(~strip.allowed, float("-inf"))
    return scores.softmax(dim=-1).to(value.dtype) @ value


def _fused(query: Tensor, key: Tensor, value: Tensor, strip: Strip) -> Tensor:
    """torch's own fused kernel, which never holds its scores."""
    if strip.causal:
        return F.scaled_dot_product_attention(query, key, value, is_causal=True)
    return F.scaled_dot_product_attention(query, key, value, attn_mask=strip.allowed)


def _online(query: Tensor, key: Tensor, value: Tensor, strip: Strip) -> Tensor:
    """Online softmax: the plain formula, without ever seeing a whole row of scores.

    Holds one block of scores at a time forward, one strip backward: memory linear in the length
    (Milakov and Gimelshein 2018, arXiv:1805.02867; Dao et al. 2022, arXiv:2205.14135, algorithm 1).
    `highest` is the largest score so far, `total` the sum of exp(score - highest) and `output`
    that of exp(score - highest) · value. When a higher score comes, both sums are scaled down.
    """
    query = at_least_float32(query) / query.shape[-1] ** 0.5
    highest = query.new_full((*query.shape[:-1], 1), float("-inf"))
    total = torch.zeros_like(highest)
    output = query.new_zeros(*query.shape[:-1], value.shape[-1])
    for start in range(0, key.shape[2], BLOCK):
        keys = slice(start, start + BLOCK)
        scores = query @ at_least_float32(key[:, :, keys]).mT
        if strip.allowed is not None:
            scores = scores.masked_fill(~strip.allowed[..., keys], float("-inf"))
        before, highest = highest, torch.maximum(highest, scores.detach().amax(-1, keepdim=True))
        level = highest.masked_fill(highest == float("-inf"), 0.0)  # nothing to see so far
        powers, shrink = (scores - level).exp(), (before - level).exp()
        total = total * shrink + powers.sum(dim=-1, keepdim=True)
        output = output * shrink + powers @ at_least_float32(value[:, :, keys])
    return (output / total).to(value.dtype)


class _ByStrips(torch.autograd.Function):
    """The strips put together; backward, each is a small graph of its own.

    One graph of slices would do, but the gradient of each slice would be as large as the whole.
    """

    @staticmethod
    def forward(ctx, query, key, value, plan: Plan, formula: Formula, keep: bool) -> Tensor:
        ctx.save_for_backward(query, key, value)
        ctx.plan, ctx.formula, ctx.graphs = plan, formula, {}
        size = (len(query), query.shape[2], query.shape[1], value.shape[3])
        output = value.new_zeros(size).transpose(1, 2)  # as the output projection will read it
        keep = keep and any(ctx.needs_input_grad)
        for number, strip in enumerate(plan):
            inputs, result = _strip_of(strip, formula, query, key, value, keep)
            output[strip.rows, :, strip.queries] = result.detach()
            if keep:
                ctx.graphs[number] = inputs, result
        return output

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, gradient: Tensor):
        whole = ctx.saved_tensors
        d_query, d_key, d_value = gradients = [torch.zeros_like(x) for x in whole]
        for number, strip in enumerate(ctx.plan):
            graph = ctx.graphs.pop(number, None)  # used up: the next time it is computed again
            inputs, result = graph or _strip_of(strip, ctx.formula, *whole, graph=True)
            parts = torch.autograd.grad(result, inputs, gradient[strip.rows, :, strip.queries])
            d_query[strip.rows, :, strip.queries] = parts[0]
            for total, part in zip((d_key, d_value), parts[1:], strict=True):
                place = 0
                for run in strip.keys:
                    length = run.stop - run.start
                    total[strip.rows, :, run] += part.narrow(2, place, length)
                    place += length
        return (*gradients, None, None, None)


def _strip_of(
    strip: Strip, formula: Formula, query: Tensor, key: Tensor, value: Tensor, graph: bool
) -> tuple[list[Tensor], Tensor]:
    """A strip's inputs and its output, with the graph from one to the other where wanted."""
    parts = (
        query[strip.rows, :, strip.queries],
        joined(key[strip.rows], strip.keys, dim=2),
        joined(value[strip.rows], strip.keys, dim=2),
    )
    with torch.set_grad_enabled(graph):
        inputs = [part.detach().requires_grad_(graph) for part in parts]
        return inputs, _compute(strip, formula, *inputs)


def _compute(strip: Strip, formula: Formula, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """The output for what is in the strip."""
    shared = query.shape[1] // key.shape[1]
    if shared > 1:
        key, value = (repeat(x, "b h k d -> b (h g) k d", g=shared) for x in (key, value))
    if strip.unused is not None:  # zeros, for 0 · NaN is NaN
        key, value = (x.masked_fill(strip.unused, 0.0) for x in (key, value))
    if strip.dead is not None:
        query = query.masked_fill(strip.dead, 0.0)
    with torch.autocast(query.device.type, enabled=False):
        output = formula(query, key, value, strip)
    return output if strip.dead is None else output.masked_fill(strip.dead, 0.0)


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
    """The formula for every strip. Gradients of gradients are the reference's business."""
    if isinstance(plan, SdpaMask):
        return compute_sdpa(query, key, value, plan, finite)
    keep = query.shape[1] * sum(strip.scores for strip in plan) <= most_kept
    if keep and len(plan) == 1 and plan[0].is_all_of(query, key):
        return _compute(plan[0], formula, query, key, value)
    return _ByStrips.apply(query, key, value, plan, formula, keep)


compute_tiled = partial(compute, _plain, MOST_KEPT)
compute_fused = partial(compute, _fused, inf)  # it holds no scores
compute_online = partial(compute, _online, -1)


def compute_auto(query: Tensor, key: Tensor, value: Tensor, plan: Any, finite: bool) -> Tensor:
    """As `compute_fused`; on a CPU half precision trains in float32, where torch's is slow."""
    if query.dtype.itemsize >= 4 or not torch.is_grad_enabled() or not isinstance(plan, list):
        return compute_fused(query, key, value, plan, finite)
    output = compute_fused(query.float(), key.float(), value.float(), plan, finite)
    return output.to(value.dtype)


def plan_strips(
    mask: Tensor, batch: int, heads: int, dtype: torch.dtype, whole: bool = False
) -> Plan | SdpaMask:
    """The strips of a mask; a single query, as in each step of generation, is not worth any."""
    if mask.shape[2] == 1:
        return sdpa_mask(mask, batch, heads, dtype)
    return make_plan(mask, batch, heads, whole)


def plan_auto(mask: Tensor, *rest: Any) -> Plan | SdpaMask:
    """What is fastest on a CPU, and on a GPU what never waits (Triton has to be asked for)."""
    if not may_read(mask):
        return sdpa_mask(mask, *rest)
    return plan_strips(mask, *rest, whole=True)


tiled_attention = Kernel("tiled", plan_strips, compute_tiled)
fused_attention = Kernel("fused", partial(plan_strips, whole=True), compute_fused)
online_attention = Kernel("online", plan_strips, compute_online)
auto_attention = Kernel("auto", plan_auto, compute_auto)
