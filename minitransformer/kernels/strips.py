"""Attention strip by strip, after the plan of its mask: what the mask forbids costs nothing.

Three formulas for one strip, from the plainest to the fastest; what is around them is the same.
"""

from collections.abc import Callable

import torch
from einops import repeat
from torch import Tensor
from torch.nn import functional as F

from minitransformer.contract import check_attention
from minitransformer.kernels.plan import Plan, Strip, joined, plan_of
from minitransformer.loss import precise

# (query, key, value, strip) -> output, with the part of each tensor that is in the strip
Formula = Callable[[Tensor, Tensor, Tensor, Strip], Tensor]

BLOCK = 512  # keys that the online softmax looks at together
MOST_KEPT = 2**26  # scores that `tiled` keeps for the way back; above, it computes them again


def tiled_attention(query: Tensor, key: Tensor, value: Tensor, mask: Tensor) -> Tensor:
    """The output of `scaled_dot_product_attention`, computed only where the mask allows something.

    The plain formula, for each strip. Memory follows the strips, not queries × keys; above 2²⁶
    scores they are computed a second time for the gradients, and memory follows the length.

    Shapes: query (B,H,Q,D), key (B,H or fewer,K,D), value (B,H or fewer,K,Dv), mask (B or 1,
    H or 1, Q, K) bool -> (B,H,Q,Dv). Fewer key/value heads serve neighbouring query heads.
    Raises what `scaled_dot_product_attention` raises. Gradients can be taken, but not gradients of
    gradients: for these there is the formula.
    """
    return _by_strips(_plain, query, key, value, mask)


def fused_attention(query: Tensor, key: Tensor, value: Tensor, mask: Tensor) -> Tensor:
    """The same, each strip by torch's own fused kernel, which never holds its scores.

    Shapes and errors are those of `tiled_attention`.
    """
    return _by_strips(_fused, query, key, value, mask, whole=True)


def online_attention(query: Tensor, key: Tensor, value: Tensor, mask: Tensor) -> Tensor:
    """The same, each strip in blocks of keys, with a softmax that is corrected on the way.

    Holds one block of scores at a time forward, one strip backward: memory linear in the length
    (Milakov and Gimelshein 2018, arXiv:1805.02867; Dao et al. 2022, arXiv:2205.14135, algorithm 1).
    Shapes and errors are those of `tiled_attention`.
    """
    return _by_strips(_online, query, key, value, mask, keep=False)


def _plain(query: Tensor, key: Tensor, value: Tensor, strip: Strip) -> Tensor:
    """softmax(Q Kᵀ / √d) V, in the lines of `scaled_dot_product_attention`."""
    query, key = precise(query) / query.shape[-1] ** 0.5, precise(key)
    scores = query @ key.mT
    if strip.allowed is not None:
        scores = scores.masked_fill(~strip.allowed, float("-inf"))
    return scores.softmax(dim=-1).to(value.dtype) @ value


def _fused(query: Tensor, key: Tensor, value: Tensor, strip: Strip) -> Tensor:
    if strip.causal:
        return F.scaled_dot_product_attention(query, key, value, is_causal=True)
    return F.scaled_dot_product_attention(query, key, value, attn_mask=strip.allowed)


def _online(query: Tensor, key: Tensor, value: Tensor, strip: Strip) -> Tensor:
    """The plain formula, without ever seeing a whole row of scores.

    `highest` is the largest score so far, `total` the sum of exp(score - highest) and `output`
    that of exp(score - highest) · value. When a higher score comes, both sums are scaled down.
    """
    query = precise(query) / query.shape[-1] ** 0.5
    highest = query.new_full((*query.shape[:-1], 1), float("-inf"))
    total = torch.zeros_like(highest)
    output = query.new_zeros(*query.shape[:-1], value.shape[-1])
    for start in range(0, key.shape[2], BLOCK):
        keys = slice(start, start + BLOCK)
        scores = query @ precise(key[:, :, keys]).mT
        if strip.allowed is not None:
            scores = scores.masked_fill(~strip.allowed[..., keys], float("-inf"))
        before, highest = highest, torch.maximum(highest, scores.detach().amax(-1, keepdim=True))
        level = highest.masked_fill(highest == float("-inf"), 0.0)  # nothing to see so far
        powers, shrink = (scores - level).exp(), (before - level).exp()
        total = total * shrink + powers.sum(dim=-1, keepdim=True)
        output = output * shrink + powers @ precise(value[:, :, keys])
    return (output / total).to(value.dtype)


def _by_strips(
    formula: Formula,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor,
    whole: bool = False,
    keep: bool = True,
) -> Tensor:
    """The formula for every strip; `whole`: it holds no scores, `keep`: it may for the way back."""
    check_attention(query, key, value, mask, grouped=True)
    plan = plan_of(mask, *query.shape[:2], whole)
    scores = 0 if whole else query.shape[1] * sum(strip.scores for strip in plan)
    keep = keep and scores <= MOST_KEPT
    if keep and len(plan) == 1 and plan[0].is_all_of(query, key):
        return _compute(plan[0], formula, query, key, value)
    return _ByStrips.apply(query, key, value, plan, formula, keep)


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
