"""Chapter 11: the museum of mask bugs."""

from torch import Tensor

from minitransformer.checks import AttentionSubject
from minitransformer.exercises.chapters.attention import attention, attention_inputs
from minitransformer.exercises.exercise import exercise


def _broken(query: Tensor, key: Tensor, value: Tensor, mask: Tensor) -> Tensor:
    scores = query @ key.transpose(-2, -1) / key.shape[-2] ** 0.5
    weights = scores.softmax(dim=-1)
    weights = weights.masked_fill(~mask, 0.0)
    return weights @ value


@exercise(
    "Find the bugs",
    chapter=11,
    about="""Somebody's attention. Shapes fit, the loss falls, and the forbidden keys get a weight
        of exactly 0. Yet two things are wrong. Repair it.""",
    hints=[
        "Do the weights of a row sum to 1? And what is d in √d?",
        "What the softmax has divided by cannot be taken back: the mask belongs before it.",
        "Divide by the root of the width, query.shape[-1], and fill forbidden scores with -inf.",
    ],
    inputs=attention_inputs,
    gradients=True,
    subject=lambda fn: AttentionSubject(fn, dead_rows="any"),
    promises={
        "weights_sum_to_one": 2,
        "without_padding_it_is_the_formula": 1,
        "how_much_padding_is_irrelevant": 1,
        "forbidden_keys_get_exactly_zero": 1,
    },
    start=_broken,
)
def find_the_bug(query: Tensor, key: Tensor, value: Tensor, mask: Tensor) -> Tensor:
    """Attention, softmax(QKᵀ/√d) V over the keys that the mask allows; every query sees a key.

    query: (batch, heads, queries, width); key and value: (batch, heads, keys, width)
    mask: (batch or 1, heads or 1, queries, keys) bool, True = may attend
    returns: (batch, heads, queries, width)
    """
    ### BEGIN SOLUTION
    scores = query @ key.transpose(-2, -1) / query.shape[-1] ** 0.5
    return scores.masked_fill(~mask, float("-inf")).softmax(dim=-1) @ value
    ### END SOLUTION


find_the_bug.mistakes += attention.mistakes
