"""Chapter 3: many heads."""

import torch
from einops import rearrange
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


def _projected(
    draw: Draw, batch: int, num_heads: int, width: int, mask: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, int]:
    """Arguments of multi_head_attention, with heads of this width."""
    d_model = num_heads * width
    x, memory = (draw.normal(batch, length, d_model) for length in mask.shape[-2:])
    weights = (draw.normal(d_model, d_model) / d_model**0.5 for _ in range(4))
    return x, memory, mask, *weights, num_heads


def _with_itself(draw: Draw) -> tuple:
    x, _, *others = _projected(draw, 2, 3, 2, torch.ones(1, 1, 4, 4, dtype=torch.bool))
    return x, x.clone(), *others


def _masked_key_wins(draw: Draw) -> tuple:
    """The masked key has the largest score by far, all others are below -1e9."""
    mask = torch.tensor([True, True, False]).expand(1, 1, 2, 3)
    x, memory, mask, *weights, num_heads = _projected(draw, 1, 2, 2, mask)
    large = 1e5 * torch.eye(4)
    memory = memory.abs() * torch.tensor([-1.0, -1.0, 1.0]).view(1, 3, 1)
    return x.abs(), memory, mask, large, large, *weights[2:], num_heads


@exercise(
    "Multi-head attention",
    chapter=3,
    about="""Everything of this chapter in one function (Vaswani et al. 2017, section 3.2.2):
        project, split into heads, attend under the mask, merge the heads, project again. Self- and
        cross-attention are the same function: `memory` is `x` itself, or another text.""",
    hints=[
        "Queries come from x, keys and values from memory. A weight is stored (out, in), as "
        "torch.nn.Linear stores it: the projection is x @ weight.T.",
        "Split as in split_heads; score, mask and softmax as in the attention of chapter 2, with "
        "the root of the width of a HEAD. Then undo the split: the transpose first.",
        "heads.transpose(1, 2).reshape(batch, queries, d_model) @ w_output.T, where heads is "
        "softmax(query @ key.transpose(-2, -1) / width**0.5, -inf where ~mask) @ value.",
    ],
    inputs=lambda draw: {
        "one head and nothing masked": _projected(
            draw, 1, 1, 3, torch.ones(1, 1, 2, 2, dtype=torch.bool)
        ),
        "two heads and nothing masked": _projected(
            draw, 1, 2, 3, torch.ones(1, 1, 4, 5, dtype=torch.bool)
        ),
        "memory that is x itself": _with_itself(draw),
        "one mask for two sequences": _projected(draw, 2, 3, 4, draw.mask(1, 5, 7)),
        "a mask for each sequence": _projected(draw, 3, 2, 5, draw.mask(3, 6, 4)),
        "a mask for each head": _projected(draw, 2, 3, 4, draw.mask(2, 5, 7, heads=3)),
        "as many queries as keys": _projected(draw, 3, 2, 4, draw.mask(3, 5, 5, heads=2)),
    },
    edges=lambda draw: {
        "heads of width 1": _projected(draw, 2, 4, 1, draw.mask(2, 3, 5)),
        "a masked key of the largest score": _masked_key_wins(draw),
    },
    points=4,
)
def multi_head_attention(
    x: Tensor,
    memory: Tensor,
    mask: Tensor,
    w_query: Tensor,
    w_key: Tensor,
    w_value: Tensor,
    w_output: Tensor,
    num_heads: int,
) -> Tensor:
    """Every position of x collects from the positions of memory that the mask allows.

    Each head attends for itself, with scores divided by the root of its width, and head h works on
    the h-th slice of every projected vector. The heads are put side by side and projected.

    x: (batch, queries, d_model); memory: (batch, keys, d_model), the source of keys and values
    mask: (batch or 1, num_heads or 1, queries, keys) bool, True = may attend; every query may
    attend to a key, and a masked key has a weight of exactly 0
    w_query, w_key, w_value, w_output: (d_model, d_model), stored as (out, in); there are no biases
    num_heads: divides d_model
    returns: (batch, queries, d_model)
    """
    ### BEGIN SOLUTION
    query = rearrange(x @ w_query.T, "b n (h w) -> b h n w", h=num_heads)
    key = rearrange(memory @ w_key.T, "b n (h w) -> b h n w", h=num_heads)
    value = rearrange(memory @ w_value.T, "b n (h w) -> b h n w", h=num_heads)
    scores = query @ key.transpose(-2, -1) / query.shape[-1] ** 0.5
    weights = scores.masked_fill(~mask, float("-inf")).softmax(dim=-1)
    heads = weights @ value
    return rearrange(heads, "b h n w -> b n (h w)") @ w_output.T
    ### END SOLUTION


SPLIT, MERGE = '"b n (h w) -> b h n w", h=num_heads)', 'rearrange(heads, "b h n w -> b n (h w)")'
CUT = {  # each projection, viewed into the final shape
    f"rearrange({source} @ {weight}.T, {SPLIT}": f"({source} @ {weight}.T).reshape("
    f"len(x), num_heads, {source}.shape[1], -1)"
    for source, weight in (("x", "w_query"), ("memory", "w_key"), ("memory", "w_value"))
}
FLAT = "heads.reshape(len(x), x.shape[1], -1)"
HIDDEN = 'scores.masked_fill(~mask, float("-inf"))'
multi_head_attention.mistake(
    """The heads are cut across tokens: a view into (batch, heads, length, width) has the right
    shape, and a head then holds pieces of several tokens. Split the last axis, then transpose.""",
    CUT,
    {**CUT, MERGE: FLAT},
)
multi_head_attention.mistake(
    """The heads are merged without a transpose: the axis of the heads must stand beside their width
    before the two become one, or a vector is put together of several tokens.""",
    {MERGE: FLAT},
)
multi_head_attention.mistake(
    """The scores are divided by the root of d_model. It is the root of the width of a head,
    d_model / num_heads.""",
    {"query.shape[-1] ** 0.5": "x.shape[-1] ** 0.5"},
)
multi_head_attention.mistake(
    "The scores are not divided by the root of the width of a head.",
    {" / query.shape[-1] ** 0.5": ""},
    {"query.shape[-1] ** 0.5": "query.shape[-1]"},
    {"/ query.shape[-1] ** 0.5": "* query.shape[-1] ** 0.5"},
)
multi_head_attention.mistake(
    """The last projection is missing: w_output mixes what the heads have found.""",
    {" @ w_output.T": ""},
)
multi_head_attention.mistake(
    """A weight is used as it is stored. Its rows are the outputs, (out, in), so a projection is
    x @ weight.T, as in torch.nn.Linear. Look at all four.""",
    {".T": ""},
    {"w_output.T": "w_output"},
    {"w_query.T": "w_query", "w_key.T": "w_key", "w_value.T": "w_value"},
)
multi_head_attention.mistake(
    """Keys, values or both are made of x. They belong to memory: x is the one that asks.""",
    {"memory @": "x @"},
    {"memory @ w_key": "x @ w_key"},
    {"memory @ w_value": "x @ w_value"},
)
multi_head_attention.mistake(
    """x and memory have changed places: queries come from x, keys and values from memory.""",
    {"x @ w_query": "memory @ w_query", "memory @ w_key": "x @ w_key", "memory @ w_v": "x @ w_v"},
    {"x @ w_query": "memory @ w_query"},
)
multi_head_attention.mistake(
    """A weight does the work of another: w_query makes the queries, w_key the keys, w_value the
    values.""",
    {"memory @ w_value.T": "memory @ w_key.T"},
    {"memory @ w_key.T": "memory @ w_value.T", "memory @ w_value.T": "memory @ w_key.T"},
    {"memory @ w_key.T": "memory @ w_value.T"},
    {"memory @ w_key.T": "memory @ w_query.T"},
    {"x @ w_query.T": "x @ w_key.T", "memory @ w_key.T": "memory @ w_query.T"},
)
multi_head_attention.mistake(
    """The mask is used upside down: what it allows is hidden. masked_fill fills where its mask is
    True, and in this mask True means "may attend".""",
    {"~mask": "mask"},
)
multi_head_attention.mistake(
    """The mask comes after the softmax: masked keys have had their part in its sum, and what is
    left does not sum to 1. Hide the scores, before the softmax.""",
    {f"{HIDDEN}.softmax(dim=-1)": "scores.softmax(dim=-1) * mask"},
)
multi_head_attention.mistake(
    "Every head has the mask of the first head.",
    {"~mask": "~mask[:, :1]"},
)
multi_head_attention.mistake(
    """There is one head as wide as d_model: num_heads is not used.""",
    {"h=num_heads": "h=1"},
)
multi_head_attention.mistake(
    """The heads take every num_heads-th number of a vector in place of a slice: the last axis is
    cut into (heads, width), in this order, and merged in this order.""",
    {"(h w) -> b h n w": "(w h) -> b h n w"},
    {"-> b n (h w)": "-> b n (w h)"},
    {"(h w)": "(w h)"},
)
multi_head_attention.mistake(
    """Masked scores become a number that a score can fall below: a masked key still gets weight.
    Only -inf gives a weight of exactly 0.""",
    {'float("-inf")': "-1e9"},
    {'float("-inf")': "-1e4"},
    {'float("-inf")': "0.0"},
    {HIDDEN: "(scores * mask)"},
)
