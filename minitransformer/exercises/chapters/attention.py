"""Chapter 2: attention from scratch."""

import torch
from torch import Tensor

from minitransformer.checks import AttentionSubject, expect
from minitransformer.exercises.exercise import Draw, exercise


@exercise(
    "Softmax",
    chapter=2,
    about="""From scores to shares: positive, and 1 in sum. A score of -inf must give a share of
        exactly 0, and a large score no overflow.""",
    hints=[
        "exp(x) / sum of exp(x), along the last axis.",
        "exp(1000) is inf. Softmax does not change if you subtract the same number everywhere.",
        "Subtract the largest score of each row first: scores - scores.amax(dim=-1, keepdim=True).",
    ],
    inputs=lambda draw: [(draw.normal(3, 4),), (draw.normal(2, 3, 5) * 4,)],
    forbidden=("softmax", "logsumexp"),
)
def softmax(scores: Tensor) -> Tensor:
    """exp(x) / sum(exp(x)) along the last axis; every row has a finite score.

    scores: (..., n) float, -inf allowed
    returns: (..., n)
    """
    ### BEGIN SOLUTION
    powers = (scores - scores.amax(dim=-1, keepdim=True)).exp()
    return powers / powers.sum(dim=-1, keepdim=True)
    ### END SOLUTION


@softmax.check(points=1)
def large_scores_do_not_overflow(fn, draw: Draw):
    """Scores of 1000 and -1000 give finite shares."""
    found = fn(torch.tensor([[1000.0, 1000.0, 0.0], [-1000.0, -1000.0, -1001.0]]))
    expect(
        bool(found.isfinite().all()),
        "Scores of 1000 give inf / inf = NaN, or those of -1000 give 0 / 0: subtract the largest "
        "score of each row before exp.",
        found=found,
    )
    expect(
        torch.allclose(found[0], torch.tensor([0.5, 0.5, 0.0])),
        "Two scores of 1000 and one of 0 should share as 0.5, 0.5, 0.",
        found=found,
    )


@softmax.check(points=1)
def minus_infinity_gets_exactly_zero(fn, draw: Draw):
    """A score of -inf gets 0.0, not something small."""
    scores = draw.normal(2, 5)
    scores[:, 2:4] = float("-inf")
    found = fn(scores)
    expect(
        bool((found[:, 2:4] == 0).all()) and bool(found.isfinite().all()),
        "A score of -inf does not get a share of exactly 0.",
        found=found,
    )


@softmax.check(points=1)
def each_row_has_its_own_largest(fn, draw: Draw):
    """Rows that lie far apart each sum to 1."""
    sums = fn(draw.normal(3, 4) + torch.tensor([[0.0], [300.0], [-300.0]])).sum(dim=-1)
    expect(
        torch.allclose(sums, torch.ones(3)),
        f"The rows sum to {[round(x, 3) for x in sums.tolist()]}, not 1. Subtract each row's own "
        "largest score, not that of the whole tensor, and sum along the last axis.",
    )


def _attention_inputs(draw: Draw):
    for queries, keys in ((3, 5), (4, 4)):
        yield (
            draw.normal(2, 2, queries, 8),
            draw.normal(2, 2, keys, 8),
            draw.normal(2, 2, keys, 8),
            draw.mask(2, queries, keys),
        )


@exercise(
    "Scaled dot-product attention",
    chapter=2,
    about="""softmax(QKᵀ/√d) V over the keys that the mask allows (Vaswani et al. 2017, equation 1).
        Here every query may see at least one key; the next exercise takes the others.""",
    hints=[
        "Scores are query @ key transposed, divided by the root of the width of a head.",
        "Forbidden scores become -inf before the softmax: masked_fill wants True where it fills.",
        "scores.masked_fill(~mask, float('-inf')).softmax(dim=-1) @ value",
    ],
    inputs=_attention_inputs,
    subject=lambda fn: AttentionSubject(fn, dead_rows="any"),
    promises={
        "forbidden_keys_get_exactly_zero": 1,
        "weights_sum_to_one": 1,
        "what_padding_holds_is_irrelevant": 1,
        "the_future_is_invisible": 1,
        "gradients_are_right": 1,
    },
)
def attention(query: Tensor, key: Tensor, value: Tensor, mask: Tensor) -> Tensor:
    """Let every query collect the values of the keys that it may see.

    query: (batch, heads, queries, width); key and value: (batch, heads, keys, width)
    mask: (batch or 1, heads or 1, queries, keys) bool, True = may attend
    returns: (batch, heads, queries, width)
    """
    ### BEGIN SOLUTION
    scores = query @ key.transpose(-2, -1) / query.shape[-1] ** 0.5
    return scores.masked_fill(~mask, float("-inf")).softmax(dim=-1) @ value
    ### END SOLUTION


@attention.check(points=1, measures="largest weight on a forbidden key")
def huge_scores_do_not_leak(fn, draw: Draw):
    """A forbidden key gets 0 however large its score is."""
    query, key = torch.ones(1, 1, 2, 4) * 1e5, torch.ones(1, 1, 3, 4) * -1e5
    key[:, :, 2] = 1e5  # the largest score is the forbidden one
    mask = torch.tensor([[True, True, False]]).expand(1, 1, 2, 3)
    value = torch.tensor([0.0, 0.0, 1.0]).view(1, 1, 3, 1).expand(1, 1, 3, 4).clone()
    leak = float(fn(query, key, value, mask).abs().max())
    expect(
        leak == 0.0,
        f"A forbidden key with a huge score gets the weight {leak:g}: -1e9 is a number like any "
        "other, and a score can be larger. Use -inf.",
        leak,
    )
    return leak


@exercise(
    "Attention that bears dead queries and NaN",
    chapter=2,
    about="""A query that may see nothing is dead: softmax of nothing but -inf is 0 / 0. And NaN in
        a padded value survives a weight of 0, because 0 * NaN is NaN. Keep both out, forward and
        backward.""",
    hints=[
        "Find the dead queries first: mask.any(dim=-1). Do not repair NaN afterwards: prevent it.",
        "Give dead queries finite scores, and set their weights to 0 after the softmax. Keys that "
        "no query sees can be set to 0 before any product.",
        "scores.masked_fill(~mask & alive, -inf).softmax(-1).masked_fill(~alive, 0.0); and key, "
        "value = x.masked_fill(~used, 0.0) with used = mask.any(dim=-2) as (..., keys, 1).",
    ],
    inputs=_attention_inputs,
    subject=AttentionSubject,
    promises={
        "a_query_that_sees_nothing_gets_no_nan": 1,
        "a_query_that_sees_nothing_gets_zeros": 1,
        "gradients_are_finite_where_queries_see_nothing": 1,
        "nan_in_padded_values_reaches_nothing": 1,
        "nan_in_padded_keys_reaches_nothing": 1,
        "nan_in_padding_reaches_no_gradient": 1,
    },
)
def nan_safe_attention(query: Tensor, key: Tensor, value: Tensor, mask: Tensor) -> Tensor:
    """Attention in which what the mask never uses reaches nothing, NaN and Inf included.

    A query that may see no key gets zeros, with finite gradients.

    query: (batch, heads, queries, width); key and value: (batch, heads, keys, width)
    mask: (batch or 1, heads or 1, queries, keys) bool, True = may attend
    returns: (batch, heads, queries, width)
    """
    ### BEGIN SOLUTION
    alive = mask.any(dim=-1, keepdim=True)
    unused = ~mask.any(dim=-2).unsqueeze(-1)
    query = query.masked_fill(~alive, 0.0)
    key, value = key.masked_fill(unused, 0.0), value.masked_fill(unused, 0.0)
    scores = query @ key.transpose(-2, -1) / query.shape[-1] ** 0.5
    scores = scores.masked_fill(~mask & alive, float("-inf"))
    return scores.softmax(dim=-1).masked_fill(~alive, 0.0) @ value
    ### END SOLUTION
