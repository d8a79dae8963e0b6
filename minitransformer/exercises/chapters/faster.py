"""Chapter 12: faster."""

import torch
from torch import Tensor

from minitransformer.checks import AttentionSubject, expect
from minitransformer.exercises.chapters.attention import (
    attention_arguments,
    attention_inputs,
    largest_is_masked,
)
from minitransformer.exercises.exercise import Draw, Inputs, exercise


def _in_blocks(draw: Draw) -> Inputs:
    """What attention is tried on, in blocks that fit the keys and in others."""
    sizes = {"one block": 64, "blocks of 1": 1, "blocks of 2": 2, "blocks of 3": 3}
    return {
        f"{name}, in {blocks}": (*arguments, size)
        for name, arguments in attention_inputs(draw).items()
        for blocks, size in sizes.items()
    }


def _far_apart(draw: Draw) -> Inputs:
    """Queries that see nothing, at first or at all, and blocks whose scores lie far apart."""
    late = torch.tensor([[0, 0, 0, 1, 1], [0, 0, 1, 0, 0], [1, 0, 0, 0, 1]]).bool()[None, None]
    dead = torch.tensor([[0, 0, 0, 0, 0], [0, 0, 1, 1, 0], [1, 0, 0, 1, 0]]).bool()[None, None]
    everything = torch.ones(1, 1, 1, 8, dtype=torch.bool)
    scores = torch.tensor([0.0, 80.0, 160.0, 240.0, 200.0, 120.0, 40.0, -40.0]).view(1, 1, 8, 1)
    one, values = torch.ones(1, 1, 1, 1), draw.normal(1, 1, 8, 1)
    return {
        "a query that may see no key": (*attention_arguments(draw, 2, 4, 3, 5, dead), 2),
        "a first block that a query may not see": (
            *attention_arguments(draw, 2, 4, 3, 5, late),
            draw.integer(1, 2),
        ),
        "scores that rise and fall by 80": (one, scores, values, everything, 2),
        "a masked key of the largest score": (*largest_is_masked(draw), 2),
    }


@exercise(
    "Attention block by block",
    chapter=12,
    about="""The matrix of all scores need never exist: go through the keys in blocks, and keep for
        each query the largest score so far, the sum so far of its powers exp(score - largest), and
        the sum so far of powers times values (Rabe and Staats 2021, arXiv:2112.05682).""",
    hints=[
        "When a block has a larger score than all before it, the sums so far are too large by the "
        "factor exp(new - old): multiply them by exp(old - new), then add the block's.",
        "A query that has seen nothing yet has the largest score -inf, and -inf - -inf is NaN: "
        "use a finite stand-in where nothing was seen.",
        "top = max(largest, the block's); finite = top, or 0 where top is -inf; scale = "
        "exp(largest - finite); powers = exp(scores - finite); total = total * scale + "
        "powers.sum(-1); output = output * scale + powers @ value; largest = top; at the end "
        "output / total, or / 1 where total is 0.",
    ],
    inputs=_in_blocks,
    edges=_far_apart,
    gradients=True,
    subject=lambda fn: AttentionSubject(
        lambda q, k, v, m: fn(q, k, v, m, 2), dtypes=("float32", "float64")
    ),
    promises={"gradients_are_right": 1},
    points=3,
)
def blockwise_attention(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor, block_size: int
) -> Tensor:
    """Attention, softmax(QKᵀ/√d) V, that looks at no more than `block_size` keys at a time.

    A query that may see no key gets zeros, and then too every gradient, of query, key and value, is
    finite. (torch.where(total > 0, output / total, 0) gives zeros, but where 0 / 0 was computed its
    gradient is NaN.) The number of keys need not be a multiple of `block_size`, and may be smaller.

    query: (batch, heads, queries, width) float; key and value: (batch, heads, keys, width)
    mask: (batch or 1, heads or 1, queries, keys) bool, True = may attend
    block_size: 1 or more; no tensor of all scores, queries times keys, may be made if it is smaller
    returns: (batch, heads, queries, width)
    """
    ### BEGIN SOLUTION
    query = query / query.shape[-1] ** 0.5
    shape = (*query.shape[:3], 1)
    largest = query.new_full(shape, float("-inf"))
    total, output = query.new_zeros(shape), query.new_zeros(*query.shape[:3], value.shape[-1])
    for start in range(0, key.shape[2], block_size):
        block = slice(start, start + block_size)
        scores = query @ key[:, :, block].transpose(-2, -1)
        scores = scores.masked_fill(~mask[..., block], float("-inf"))
        top = torch.maximum(largest, scores.amax(dim=-1, keepdim=True))
        finite = top.masked_fill(top == float("-inf"), 0.0)
        powers, scale = (scores - finite).exp(), (largest - finite).exp()
        total = total * scale + powers.sum(dim=-1, keepdim=True)
        output = output * scale + powers @ value[:, :, block]
        largest = top
    return output / total.masked_fill(total == 0, 1.0)
    ### END SOLUTION


@blockwise_attention.check(points=2, measures="numbers in the largest tensor")
def the_matrix_of_scores_never_exists(fn, draw: Draw):
    """With blocks of 4,096 of 32,768 keys, no tensor has queries times keys elements."""
    keys = 2**15
    query, mask = draw.normal(1, 1, 8, 1), torch.ones(1, 1, 8, keys, dtype=torch.bool)
    key = draw.normal(1, 1, keys, 1)
    with torch.no_grad():
        fn(query, key, key, mask, 4096)
    expect(
        fn.largest < 8 * keys,
        f"A tensor of {fn.largest:,} numbers was made, as many as there are scores. Compute the "
        "scores of one block, use them, and forget them.",
        float(fn.largest),
    )


SCORES = "scores.amax(dim=-1, keepdim=True)"
TOTAL = "total = total * scale + powers.sum(dim=-1, keepdim=True)"
OUTPUT = "output = output * scale + powers @ value[:, :, block]"
END_OF_ALL = "output / total.masked_fill(total == 0, 1.0)"
MASKING = '.masked_fill(~mask[..., block], float("-inf"))'
RANGE = "range(0, key.shape[2], block_size)"
# First what is right on ordinary input, so that two of these are found in time.
blockwise_attention.mistake(
    """0 / 0 is computed where a query may see no key, and replaced afterwards: its gradient is NaN
    nevertheless. Divide by 1 there.""",
    """
    scores = query @ key.transpose(-2, -1) / query.shape[-1] ** 0.5
    scores = scores.masked_fill(~mask, float("-inf"))
    return (scores.softmax(dim=-1) @ value).nan_to_num()
    """,
    {END_OF_ALL: "torch.where(total > 0, output / total, 0.0)"},
    {END_OF_ALL: "(output / total).nan_to_num()"},
)
blockwise_attention.mistake(
    """The largest score so far begins at 0, or at another number that all scores may lie below:
    then every power is exp of a large negative number, 0. Begin at -inf.""",
    {'query.new_full(shape, float("-inf"))': "query.new_zeros(shape)"},
    {'query.new_full(shape, float("-inf"))': "query.new_full(shape, -1e4)"},
)
blockwise_attention.mistake(
    """One largest score serves all queries, or all heads: a query whose scores lie far below has
    powers of 0 only. Each query has a largest score of its own.""",
    {SCORES: "scores.amax()"},
    {SCORES: "scores.amax(dim=(-1, -2), keepdim=True)"},
    {SCORES: "scores.amax(dim=(0, 1, 2, 3), keepdim=True)"},
)
blockwise_attention.mistake(
    """exp is taken of the scores as they are: large ones overflow. Subtract the largest so far.""",
    {"(scores - finite).exp(), (largest - finite).exp()": "scores.exp(), 1.0"},
    {
        MASKING: "",
        "(scores - finite).exp(), (largest - finite).exp()": "scores.exp() * mask[..., block], 1.0",
    },
    {
        MASKING: "",
        "(scores - finite).exp(), (largest - finite).exp()": "scores.exp()"
        ".masked_fill(~mask[..., block], 0.0), 1.0",
    },
)
blockwise_attention.mistake(
    """The sum of the powers is not scaled when a later block has a larger score: what earlier
    blocks gave is then too large by the factor exp(new - old).""",
    {"total * scale + ": "total + "},
)
blockwise_attention.mistake(
    """The output so far is not scaled when a later block has a larger score. The sum of the powers
    is, and both belong together.""",
    {"output * scale + ": "output + "},
)
blockwise_attention.mistake(
    """What was summed before is never scaled: when a later block has a larger score, the powers of
    earlier blocks, taken against a smaller one, are too large. Multiply both sums by
    exp(old - new).""",
    {"total * scale + ": "total + ", "output * scale + ": "output + "},
)
blockwise_attention.mistake(
    """The scale is upside down: what was summed before must become smaller when a larger score
    comes, exp(old - new), not exp(new - old).""",
    {"(largest - finite).exp()": "(finite - largest).exp()"},
    {"(largest - finite).exp()": "(finite - largest.clamp(min=-1e4)).exp()"},
    {
        "(largest - finite).exp()": "(finite - largest.clamp(min=-1e4)).exp()"
        '.masked_fill(largest == float("-inf"), 0.0)'
    },
)
blockwise_attention.mistake(
    """Only the last block is left: what was summed before is overwritten, or its scale is 0 because
    the largest score so far is not kept.""",
    {"largest = top": "pass"},
    {"total = total * scale + ": "total = ", "output = output * scale + ": "output = "},
)
blockwise_attention.mistake(
    """The largest score is that of the block alone. That of all blocks so far is wanted: where a
    block is masked as a whole, the sums so far are lost, and where scores fall, they overflow.""",
    {f"torch.maximum(largest, {SCORES})": SCORES},
)
blockwise_attention.mistake(
    """Every head, or every sequence, has the mask of the first.""",
    {"mask[..., block]": "mask[:, :1, :, block]"},
    {"mask[..., block]": "mask[:1, :, :, block]"},
    {"mask[..., block]": "mask[:1, :1, :, block]"},
)
blockwise_attention.mistake(
    """Masked scores become 0. That is a score like any other, exp(0) is 1: those keys still get
    weight. Only -inf gives a weight of exactly 0.""",
    {MASKING: " * mask[..., block]"},
    {MASKING: ".masked_fill(~mask[..., block], 0.0)"},
    {
        MASKING: " * mask[..., block]",
        END_OF_ALL: "output / total * mask.any(dim=-1, keepdim=True)",
    },
    {
        MASKING: ".masked_fill(~mask[..., block], 0.0)",
        END_OF_ALL: "output / total * mask.any(dim=-1, keepdim=True)",
    },
)
blockwise_attention.mistake(
    """The scores are masked for the output only, or for the sum only: what is masked must have a
    part in neither.""",
    {
        MASKING: "",
        "powers @ value": "(powers * mask[..., block]) @ value",
    },
    {MASKING: "", "powers.sum": "(powers * mask[..., block]).sum"},
)
blockwise_attention.mistake(
    """The sum of the powers counts each key as 1, or the powers are summed along another axis.""",
    {"powers.sum(dim=-1, keepdim=True)": "mask[..., block].sum(dim=-1, keepdim=True)"},
    {"powers.sum(dim=-1, keepdim=True)": "powers.sum(dim=-2, keepdim=True).mean(-1, keepdim=True)"},
)
blockwise_attention.mistake(
    """Only the first block is looked at: a return inside the loop, or a loop that ends too
    early.""",
    {"        largest = top\n    return": "        largest = top\n        return"},
)
blockwise_attention.mistake(
    """A query that has seen nothing yet has the largest score -inf, and -inf - -inf is NaN:
    subtract something finite there, such as 0.""",
    {'finite = top.masked_fill(top == float("-inf"), 0.0)': "finite = top"},
)
blockwise_attention.mistake(
    """A query that may see no key gives 0 / 0, which is NaN: divide by another number where the sum
    of the powers is 0.""",
    {".masked_fill(total == 0, 1.0)": ""},
)
blockwise_attention.mistake(
    """Masked scores become a large negative number: a query that may see no key then gets the mean
    of all values. Only -inf gives a weight of exactly 0.""",
    {MASKING: ".masked_fill(~mask[..., block], -1e9)"},
    {MASKING: ".masked_fill(~mask[..., block], torch.finfo(scores.dtype).min)"},
)
blockwise_attention.mistake(
    "The mask is never used: every query sees every key.",
    {MASKING: ""},
)
blockwise_attention.mistake(
    """The mask is used upside down: what it allows is hidden. True means "may attend".""",
    {"~mask[..., block]": "mask[..., block]"},
    {"~mask[..., block]": "mask[..., block]", END_OF_ALL: "output / total.clamp(min=1e-20)"},
)
blockwise_attention.mistake(
    """Every block is given the mask of the first. Cut the mask along its last axis as you cut keys
    and values.""",
    {"mask[..., block]": "mask[..., : scores.shape[-1]]"},
)
blockwise_attention.mistake(
    """The last keys are lost where block_size does not divide their number: the last block is
    smaller, and must be counted, too.""",
    {RANGE: "range(0, key.shape[2] - block_size + 1, block_size)"},
    {RANGE: "range(0, key.shape[2] // block_size * block_size, block_size)"},
)
blockwise_attention.mistake(
    "The last key of every block is left out: a slice ends before its end.",
    {"start + block_size)": "start + block_size - 1)"},
)
blockwise_attention.mistake(
    """Blocks overlap: some keys are counted twice. The next block begins where the one before it
    ends.""",
    {"start + block_size)": "start + block_size + 1)"},
    {
        "block = slice(": "start = max(0, min(start, key.shape[2] - block_size))\n"
        "        block = slice("
    },
)
blockwise_attention.mistake(
    """Each block has a softmax of its own, and the blocks are added or averaged: all of them then
    count alike, however large their scores are.""",
    {
        TOTAL: "total = total + 1",
        OUTPUT: "output = output + powers / powers.sum(dim=-1, keepdim=True)"
        '.masked_fill(top == float("-inf"), 1.0) @ value[:, :, block]',
        f"torch.maximum(largest, {SCORES})": SCORES,
    },
    {
        TOTAL: "total = total + 1",
        OUTPUT: "output = output + powers / powers.sum(dim=-1, keepdim=True)"
        '.masked_fill(top == float("-inf"), 1.0) @ value[:, :, block]',
        f"torch.maximum(largest, {SCORES})": SCORES,
        END_OF_ALL: "output",
    },
)
blockwise_attention.mistake(
    """The output is divided by the sum of the powers in every block, so that what came first is
    divided again and again. Divide once, at the end.""",
    {OUTPUT: OUTPUT.replace("output = ", "output = (") + ") / total.masked_fill(total == 0, 1.0)"},
    {
        OUTPUT: OUTPUT.replace("output = ", "output = (")
        + ") / total.masked_fill(total == 0, 1.0)",
        END_OF_ALL: "output",
    },
    {
        OUTPUT: OUTPUT.replace("output = ", "output = (") + ") / total.clamp(min=1e-20)",
        END_OF_ALL: "output",
    },
)
blockwise_attention.mistake(
    "The output is not divided by the sum of the powers: the weights do not sum to 1.",
    {END_OF_ALL: "output"},
)
blockwise_attention.mistake(
    "The scores are not divided by √d: d is the width of a head, query.shape[-1].",
    {"query = query / query.shape[-1] ** 0.5": "pass"},
)
blockwise_attention.mistake(
    """The scores are divided by another number than the root of the width: d is query.shape[-1],
    and √d, not d, goes under them.""",
    {"query / query.shape[-1] ** 0.5": "query / query.shape[-1]"},
    {"query / query.shape[-1]": "query * query.shape[-1]"},
    {"query / query.shape[-1] ** 0.5": "query / query.shape[1] ** 0.5"},
    {"query / query.shape[-1] ** 0.5": "query / query.shape[2] ** 0.5"},
    {"query / query.shape[-1] ** 0.5": "query / key.shape[2] ** 0.5"},
    {"query / query.shape[-1] ** 0.5": "query / block_size ** 0.5"},
)
