"""Chapter 1: why padding needs a mask."""

import torch
from torch import Tensor

from minitransformer.checks import MaskSubject, expect
from minitransformer.exercises.exercise import Draw, exercise


@exercise(
    "A padding mask",
    chapter=1,
    about="""From 1 = real and 0 = padding to who may look at whom. Every other mask of the course
        is built like this one.""",
    hints=[
        "A query may see a key if both are real. Give queries and keys an axis each.",
        "attention_mask[:, None, :, None] has queries down; what has keys across?",
        "Compare with 0 to get booleans, then combine the two views with &: broadcasting does it.",
    ],
    inputs=lambda draw: [(draw.attention_mask(4, n, side),) for n in (5, 4) for side in SIDES],
    subject=lambda fn: MaskSubject(fn, dead_queries="nothing"),
    promises={"each_query_may_see_what_it_should": 1, "a_rows_mask_is_its_own": 1},
)
def padding_mask(attention_mask: Tensor) -> Tensor:
    """True where the query (down) and the key (across) are both real.

    attention_mask: (batch, length) int64, 1 = real token, 0 = padding
    returns: (batch, 1, length, length) bool; the axis of 1 is for the heads
    """
    ### BEGIN SOLUTION
    real = attention_mask != 0
    return real[:, None, :, None] & real[:, None, None, :]
    ### END SOLUTION


SIDES = ("right", "left")


@padding_mask.check(points=1)
def a_padded_query_sees_nothing(fn, draw: Draw):
    """The rows of padded queries are all False."""
    attention_mask = draw.attention_mask(4, 6)
    seen = fn(attention_mask)[attention_mask[:, None] == 0]
    expect(
        not seen.any(),
        "A padded query may see keys. Nobody reads what it collects, but a mask that hides keys "
        "only cannot tell you which outputs are padding: hide the queries too.",
    )


@padding_mask.check(points=1)
def the_mask_is_bool_with_an_axis_for_heads(fn, draw: Draw):
    """Its shape is (batch, 1, length, length) and its dtype bool."""
    mask = fn(draw.attention_mask(3, 5))
    expect(mask.dtype == torch.bool, f"The mask is {mask.dtype}: True and False are wanted.")
    expect(
        mask.shape == (3, 1, 5, 5),
        f"The mask has the shape {tuple(mask.shape)}; (3, 1, 5, 5) is wanted, for 3 rows of 5.",
    )


@exercise(
    "Mean pooling that is proof against padding",
    chapter=1,
    about="""One vector for a sentence: the mean of its tokens' vectors. The commonest bug in code
        for sentence embeddings is to count the padding in.""",
    hints=[
        "Sum over the real tokens, and divide by how many there are.",
        "Times 0 is not enough: NaN * 0 is NaN. What sets a place to zero whatever it held?",
        "hidden.masked_fill(padding, 0.0).sum(dim=1) / count.clamp(min=1)",
    ],
    inputs=lambda draw: [
        (draw.normal(3, n, 4), draw.attention_mask(3, n, side)) for n in (5, 6) for side in SIDES
    ],
)
def mean_pool(hidden: Tensor, attention_mask: Tensor) -> Tensor:
    """The mean of the vectors of each row's real tokens; zeros for a row without any.

    hidden: (batch, length, width) float
    attention_mask: (batch, length) int64, 1 = real token, 0 = padding
    returns: (batch, width)
    """
    ### BEGIN SOLUTION
    padding = (attention_mask == 0)[:, :, None]
    count = (attention_mask != 0).sum(dim=1, keepdim=True)
    return hidden.masked_fill(padding, 0.0).sum(dim=1) / count.clamp(min=1)
    ### END SOLUTION


@mean_pool.check(points=1, measures="largest change")
def more_padding_changes_nothing(fn, draw: Draw):
    """A sentence has the same vector however much padding stands behind it."""
    hidden, short = draw.normal(2, 4, 3), draw.attention_mask(2, 4)
    longer = torch.cat((hidden, draw.normal(2, 5, 3)), dim=1)
    padded = torch.cat((short, torch.zeros(2, 5, dtype=torch.int64)), dim=1)
    change = float((fn(longer, padded) - fn(hidden, short)).abs().max())
    expect(
        change <= 1e-6,
        "With 5 columns of padding more, the vector of the same sentence changes: padding is "
        "counted, in the sum or in the number that you divide by.",
        change,
    )
    return change


@mean_pool.check(points=1)
def a_row_of_padding_gives_zeros(fn, draw: Draw):
    """A row without a real token gives zeros, not 0 / 0."""
    pooled = fn(draw.normal(2, 3, 4), torch.tensor([[1, 1, 0], [0, 0, 0]]))
    expect(
        bool((pooled[1] == 0).all()),
        "A row of padding alone gives NaN, or what padding holds: its count is 0, so divide by "
        "at least 1.",
    )


@mean_pool.check(points=1)
def nan_in_padding_stays_there(fn, draw: Draw):
    """Whatever padding holds, NaN too, does not reach the mean."""
    hidden, mask = draw.normal(2, 4, 3), torch.tensor([[1, 1, 0, 0], [1, 1, 1, 1]])
    wanted = fn(hidden.clone(), mask)
    hidden[0, 2:] = float("nan")
    found = fn(hidden, mask)
    expect(
        torch.equal(wanted, found),
        "NaN at a padded place reaches the mean: 0 * NaN is NaN. Do not multiply padding by 0, "
        "put a 0 in its place.",
    )
