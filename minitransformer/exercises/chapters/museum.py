"""Chapter 11: the museum of mask bugs."""

from torch import Tensor

from minitransformer.checks import AttentionSubject
from minitransformer.exercises.chapters.attention import (
    attention,
    attention_inputs,
    unusual_scores,
)
from minitransformer.exercises.exercise import exercise


def _broken(query: Tensor, key: Tensor, value: Tensor, mask: Tensor) -> Tensor:
    scores = query @ key.transpose(-2, -1) / key.shape[-2] ** 0.5
    weights = scores.softmax(dim=-1)
    weights = weights.masked_fill(~mask, 0.0)
    return weights @ value


@exercise(
    "Find the bugs",
    chapter=11,
    about="""Somebody's attention. Its shapes fit, and a model that is trained with it learns. Yet
        two of its lines are wrong. Find and repair both.""",
    hints=[
        "Do the weights of a row sum to 1? And what is d in √d?",
        "What the softmax has divided by cannot be taken back: the mask belongs before it.",
        "Divide by the root of the width, query.shape[-1], and fill masked scores with -inf before "
        "the softmax: scores.masked_fill(~mask, float('-inf')); nothing is masked after it.",
    ],
    inputs=attention_inputs,
    edges=unusual_scores,
    gradients=True,
    subject=lambda fn: AttentionSubject(fn, dead_rows="any"),
    promises={"forbidden_keys_get_exactly_zero": 1, "weights_sum_to_one": 1},
    start=_broken,
)
def find_the_bug(query: Tensor, key: Tensor, value: Tensor, mask: Tensor) -> Tensor:
    """Attention, softmax(QKᵀ/√d) V over the keys that the mask allows, where d is the width.

    A masked key has a weight of exactly 0, however large its score is. No score is too large.

    query: (batch, heads, queries, width) float; key and value: (batch, heads, keys, width)
    mask: (batch or 1, heads or 1, queries, keys) bool, True = may attend; a True in every row
    returns: (batch, heads, queries, width)
    """
    ### BEGIN SOLUTION
    scores = query @ key.transpose(-2, -1) / query.shape[-1] ** 0.5
    return scores.masked_fill(~mask, float("-inf")).softmax(dim=-1) @ value
    ### END SOLUTION


find_the_bug.mistake(
    """These are still the answers of the code that you were given: neither bug is repaired. Look at
    the weights of a small example, and at what they sum to.""",
    """
    scores = query @ key.transpose(-2, -1) / key.shape[-2] ** 0.5
    weights = scores.softmax(dim=-1).masked_fill(~mask, 0.0)
    return weights @ value
    """,
)
# What else is done wrong in attention is done wrong here, too.
find_the_bug.mistakes += attention.mistakes
