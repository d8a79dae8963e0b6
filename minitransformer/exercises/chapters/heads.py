"""Chapter 3: many heads."""

import torch
from torch import Tensor

from minitransformer.checks import expect
from minitransformer.exercises.exercise import Draw, exercise


@exercise(
    "Splitting into heads",
    chapter=3,
    about="""A head gets its own slice of every token's vector. The classic mistake has the right
        shape and mixes tokens.""",
    hints=[
        "First cut the last axis into heads and width, then move the axis of the heads.",
        "view(batch, heads, length, -1) has the right shape and is wrong: it cuts across tokens.",
        "x.view(batch, length, num_heads, -1).transpose(1, 2), or einops: b t (h d) -> b h t d.",
    ],
    inputs=lambda draw: [(draw.normal(2, 3, 12), 4), (draw.normal(1, 5, 6), 2)],
)
def split_heads(x: Tensor, num_heads: int) -> Tensor:
    """Head h gets the h-th slice of every token's vector.

    x: (batch, length, num_heads * width)
    returns: (batch, num_heads, length, width)
    """
    ### BEGIN SOLUTION
    batch, length, d_model = x.shape
    return x.reshape(batch, length, num_heads, d_model // num_heads).transpose(1, 2)
    ### END SOLUTION


@split_heads.check(points=1)
def a_token_stays_a_token(fn, draw: Draw):
    """Changing one token changes that token in every head, and no other."""
    x = draw.normal(1, 4, 6)
    before = fn(x.clone(), 3)
    x[0, 1] += 1.0
    changed = (fn(x, 3) != before).any(dim=-1)[0]  # (heads, length)
    wanted = torch.tensor([[False, True, False, False]]).expand(3, 4)
    expect(
        torch.equal(changed, wanted),
        "Token 1 was changed, and in the heads other places changed: the tensor is cut across "
        "tokens. Split the last axis, then transpose; do not view into the final shape.",
        changed_wanted=wanted.int(),
        changed_found=changed.int(),
    )


@split_heads.check(points=1)
def any_number_of_heads_works(fn, draw: Draw):
    """One head, and heads of width 1."""
    x = draw.normal(2, 3, 4)
    expect(torch.equal(fn(x, 1)[:, 0], x), "With one head, that head must be x itself.")
    expect(
        torch.equal(fn(x, 4)[:, 2, :, 0], x[:, :, 2]),
        "With heads of width 1, head 2 must be column 2 of x.",
    )


@exercise(
    "Sharing key heads",
    chapter=3,
    about="""In grouped-query attention (Ainslie et al. 2023, arXiv:2305.13245) several
        neighbouring query heads read one key head: fewer keys to keep in the cache.""",
    hints=[
        "Each key head is needed several times in a row.",
        "torch has two ways to repeat: 0 0 1 1 and 0 1 0 1. Neighbours share a head.",
        "x.repeat_interleave(num_heads // x.shape[1], dim=1)",
    ],
    inputs=lambda draw: [(draw.normal(2, 2, 3, 4), 6), (draw.normal(1, 3, 2, 2), 3)],
)
def share_heads(x: Tensor, num_heads: int) -> Tensor:
    """As many heads as there are queries': each repeated for a group of neighbours.

    x: (batch, num_kv_heads, length, width); num_heads is a multiple of num_kv_heads
    returns: (batch, num_heads, length, width)
    """
    ### BEGIN SOLUTION
    return x.repeat_interleave(num_heads // x.shape[1], dim=1)
    ### END SOLUTION


@share_heads.check(points=1)
def neighbours_share_a_head(fn, draw: Draw):
    """Query heads 0 and 1 read key head 0, heads 2 and 3 read key head 1."""
    x = torch.arange(2.0).view(1, 2, 1, 1)
    found = fn(x, 4).flatten().tolist()
    expect(
        found == [0.0, 0.0, 1.0, 1.0],
        f"Four query heads read the key heads {[int(i) for i in found]}; [0, 0, 1, 1] is wanted. "
        "Weights that were trained one way are nonsense the other way.",
    )


@share_heads.check(points=1)
def one_key_head_serves_all(fn, draw: Draw):
    """With a single key head every query head reads it."""
    x = draw.normal(1, 1, 3, 2)
    expect(torch.equal(fn(x, 5), x.expand(1, 5, 3, 2)), "One key head must serve all 5 heads.")


@exercise(
    "An attention map that tells the truth",
    chapter=3,
    about="""Pictures of attention lie easily: a forbidden key looks like one that nobody wanted,
        heads are averaged away, and rows are stretched until everything is dark. Make the numbers
        that a picture should show.""",
    hints=[
        "What may not be looked at is not 0, it is nothing at all: matplotlib leaves NaN blank.",
        "But a weight that leaks through the mask is the most important cell of all: keep it.",
        "weights.masked_fill(~mask & (weights == 0), float('nan')); no averaging, no rescaling.",
    ],
    inputs=lambda draw: [
        (torch.softmax(draw.normal(2, 3, 5).masked_fill(~m, float("-inf")), -1), m)
        for m in (draw.mask(1, 3, 5)[0], draw.mask(1, 3, 5)[0])
    ],
)
def attention_map(weights: Tensor, mask: Tensor) -> Tensor:
    """What to draw: each head's weights as they are, NaN where the mask forbids and nothing leaks.

    weights: (heads, queries, keys) float
    mask: (1, queries, keys) bool, True = may attend
    returns: (heads, queries, keys) float
    """
    ### BEGIN SOLUTION
    return weights.masked_fill(~mask & (weights == 0.0), float("nan"))
    ### END SOLUTION


@attention_map.check(points=1)
def a_leak_is_shown(fn, draw: Draw):
    """A forbidden key with a weight is drawn with that weight."""
    weights = torch.tensor([[[0.75, 0.25], [0.5, 0.5]]])
    found = fn(weights, torch.tensor([[[True, False], [True, True]]]))
    expect(
        float(found[0, 0, 1]) == 0.25,
        "A forbidden key has the weight 0.25, and the map hides it. That is the bug that people "
        "draw maps to find.",
        weights=weights[0],
        found=found[0],
    )


@attention_map.check(points=1)
def an_allowed_weight_of_zero_is_zero(fn, draw: Draw):
    """A key that may be seen, and is not, is drawn as 0."""
    weights = torch.tensor([[[1.0, 0.0]]])
    found = fn(weights, torch.ones(1, 1, 2, dtype=torch.bool))
    expect(
        float(found[0, 0, 1]) == 0.0,
        "A key that may be seen and gets weight 0 must be drawn as 0: it was there to be chosen.",
    )
