"""Chapter 5: looking only back."""

import torch
from torch import Tensor

from minitransformer.checks import LabelsSubject, MaskSubject, expect
from minitransformer.exercises.chapters.padding import SIDES
from minitransformer.exercises.exercise import Draw, exercise


@exercise(
    "A causal mask",
    chapter=5,
    about="""Every token sees itself and what came before. With a cache there are fewer queries than
        keys: the last query is then the last key.""",
    hints=[
        "A lower triangle of True. Where does it start if there are more keys than queries?",
        "Query i of the last few is key i + (num_keys - num_queries).",
        "torch.ones(num_queries, num_keys, dtype=torch.bool).tril(num_keys - num_queries)",
    ],
    inputs=lambda draw: [(n := draw.integer(2, 5), n + extra) for extra in (0, 0, 1)],
    points=1,
)
def causal_mask(num_queries: int, num_keys: int) -> Tensor:
    """True where the key is not in the query's future; the last query is the last key.

    num_queries <= num_keys
    returns: (1, 1, num_queries, num_keys) bool
    """
    ### BEGIN SOLUTION
    ones = torch.ones(1, 1, num_queries, num_keys, dtype=torch.bool)
    return ones.tril(num_keys - num_queries)
    ### END SOLUTION


@causal_mask.check(points=1)
def a_token_sees_itself(fn, draw: Draw):
    """The diagonal is True, and nothing above it."""
    found = fn(4, 4)[0, 0]
    wanted = torch.ones(4, 4, dtype=torch.bool).tril()
    expect(
        bool(found.diagonal().all()),
        "A token does not see itself. The first would see nothing at all.",
        found=found.int(),
    )
    expect(
        not (found & ~wanted).any(),
        "A token sees its future: in training it reads the answer, and nothing is learned.",
        found=found.int(),
    )


@causal_mask.check(points=1)
def the_last_query_sees_everything(fn, draw: Draw):
    """With fewer queries than keys the ends are aligned, not the starts."""
    found = fn(2, 5)[0, 0]
    wanted = torch.tensor([[1, 1, 1, 1, 0], [1, 1, 1, 1, 1]])
    expect(
        torch.equal(found.int(), wanted),
        "With 2 queries and 5 keys the queries are the last two tokens: they see 4 and 5 keys. "
        "tril() without a number starts at the first key.",
        wanted=wanted,
        found=found.int(),
    )


@exercise(
    "A decoder's mask",
    chapter=5,
    about="""Padding and causality in one value: the mask that a language model passes to every
        layer.""",
    hints=[
        "You have both masks already. Which operation says: allowed by this one and by that one?",
        "A padding mask (batch, 1, length, length) and a triangle (1, 1, length, length).",
        "padding & causal: broadcasting makes one mask for every row of the batch.",
    ],
    inputs=lambda draw: [(draw.attention_mask(4, n, side),) for n in (4, 6) for side in SIDES],
    subject=lambda fn: MaskSubject(fn, causal=True, dead_queries="nothing"),
    promises={"each_query_may_see_what_it_should": 2, "any_length_has_its_mask": 1},
)
def combine_masks(attention_mask: Tensor) -> Tensor:
    """True where query and key are both real and the key is not in the query's future.

    attention_mask: (batch, length) int64, 1 = real token, 0 = padding, on either side
    returns: (batch, 1, length, length) bool
    """
    ### BEGIN SOLUTION
    length = attention_mask.shape[1]
    real = attention_mask != 0
    padding = real[:, None, :, None] & real[:, None, None, :]
    return padding & torch.ones(length, length, dtype=torch.bool).tril()
    ### END SOLUTION


def _text(draw: Draw, batch: int, length: int, side: str) -> tuple[Tensor, Tensor]:
    mask = draw.attention_mask(batch, length, side)
    return draw.ids(batch, length) * mask, mask


@exercise(
    "Labels: the next token",
    chapter=5,
    about="""What a language model learns at each position: the token that comes next. And -100
        where there is nothing to learn.""",
    hints=[
        "The label of position t is the id at t + 1. The last position has none.",
        "Nothing is predicted at padding, and padding is nobody's label, whichever side it is on.",
        "labels[:, :-1] = input_ids[:, 1:], then -100 wherever this or the next position is "
        "padding.",
    ],
    inputs=lambda draw: [_text(draw, 3, n, side) for n in (4, 6) for side in SIDES],
    subject=LabelsSubject,
    promises={
        "labels_are_the_next_tokens": 1,
        "padding_predicts_nothing": 1,
        "a_real_end_is_learned_though_padding_looks_the_same": 1,
        "a_single_column_has_no_labels": 1,
    },
)
def next_token_labels(input_ids: Tensor, attention_mask: Tensor) -> Tensor:
    """At each real token the next real one, at the last and at padding -100.

    A real token may have the same id as padding: only attention_mask knows.

    input_ids, attention_mask: (batch, length) int64; padding stands on the right or on the left
    returns: (batch, length) int64
    """
    ### BEGIN SOLUTION
    labels = torch.full_like(input_ids, -100)
    both = (attention_mask[:, :-1] != 0) & (attention_mask[:, 1:] != 0)
    labels[:, :-1] = input_ids[:, 1:].masked_fill(~both, -100)
    return labels
    ### END SOLUTION
