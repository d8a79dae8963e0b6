"""Chapter 12: faster."""

import torch
from torch import Tensor

from minitransformer.checks import AttentionSubject, expect
from minitransformer.exercises.chapters.attention import attention_inputs
from minitransformer.exercises.exercise import Draw, exercise


@exercise(
    "Attention block by block",
    chapter=12,
    about="""The matrix of all scores need never exist: go through the keys in blocks, and keep for
        each query the largest score so far, the sum of its powers, and the output so far (Rabe and
        Staats 2021, arXiv:2112.05682).""",
    hints=[
        "When a block has a larger score than all before it, the sums so far are too large by "
        "exp(new - old): scale them down, then add the block's.",
        "A query that has seen nothing yet has the largest score -inf, and -inf - -inf is NaN: "
        "use a finite stand-in where nothing was seen.",
        "top = max(largest, the block's); scale = exp(largest - top); total = total * scale + "
        "powers.sum(-1); output = output * scale + powers @ value; at the end output / total.",
    ],
    inputs=lambda draw: [
        (*arguments, size)
        for arguments in attention_inputs(draw).values()
        for size in (1, 2, 3, 64)
    ],
    subject=lambda fn: AttentionSubject(
        lambda q, k, v, m: fn(q, k, v, m, 2), dtypes=("float32", "float64")
    ),
    promises={
        "forbidden_keys_get_exactly_zero": 1,
        "a_query_that_sees_nothing_gets_zeros": 1,
        "gradients_are_right": 1,
    },
)
def blockwise_attention(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor, block_size: int
) -> Tensor:
    """Attention that looks at `block_size` keys at a time; a query that sees nothing gets zeros.

    query: (batch, heads, queries, width); key and value: (batch, heads, keys, width)
    mask: (batch or 1, heads or 1, queries, keys) bool, True = may attend
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
        top = torch.maximum(largest, scores.detach().amax(dim=-1, keepdim=True))
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


@blockwise_attention.check(points=1)
def scores_that_rise_do_not_overflow(fn, draw: Draw):
    """Where every block has larger scores than the one before it, the result is right."""
    key = torch.arange(8.0).view(1, 1, 8, 1) * 40
    value = torch.arange(8.0).view(1, 1, 8, 1)
    found = fn(torch.ones(1, 1, 1, 1), key, value, torch.ones(1, 1, 1, 8, dtype=torch.bool), 2)
    expect(
        abs(float(found) - 7.0) < 1e-4,
        f"Scores of 0, 40, ..., 280 give {float(found):.4g}; the last key takes all, so 7 is "
        "wanted: scale down what was summed before, whenever a larger score comes.",
    )
