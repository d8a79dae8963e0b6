"""What must hold of a function that builds a mask.

Lengths are unsorted, and in one batch there are as many rows as tokens, so that a mask which is
transposed, or taken for that of other axes, is another mask.
"""

from collections.abc import Iterator
from functools import partial

import torch
from torch import Tensor

from minitransformer.checks.engine.between_calls import (
    Answers,
    Call,
    asked_inside_inference_mode,
    masks_are_written_to,
)
from minitransformer.checks.engine.check import at_most, check, expect, needs
from minitransformer.checks.masks.subject import PAD, TOKEN, MaskSubject

core = partial(check, "mask", "core")
robust = partial(check, "mask", "robust")

LENGTHS = (2, 4, 1, 3)
HF = "https://github.com/huggingface/transformers/"
TORCH = "https://github.com/pytorch/pytorch/"


# ---- cases ---------------------------------------------------------------------------------------


def batches(subject: MaskSubject) -> dict[str, Tensor]:
    """attention_masks (4,4) of ordinary kinds: as many rows as tokens, no symmetry."""
    index, lengths = torch.arange(4), torch.tensor(LENGTHS).unsqueeze(1)
    holes = torch.tensor([[1, 0, 1, 1], [1, 1, 1, 1], [1, 0, 0, 1], [0, 1, 1, 0]])
    found = {
        "padding on the right": (index < lengths).long(),
        "padding on the left": (index >= 4 - lengths).long(),
        "holes": holes,
        "no padding": torch.ones(4, 4, dtype=torch.long),
    }
    return {name: mask.to(subject.device) for name, mask in found.items()}


def definition(subject: MaskSubject, attention_mask: Tensor) -> Tensor:
    """(B,1,T,T): may query q of row b attend to key k?"""
    k = torch.arange(attention_mask.shape[1], device=attention_mask.device)
    q = k.unsqueeze(1)
    query, key = attention_mask[:, None, :, None], attention_mask[:, None, None, :]
    together = key == query if subject.documents else key != 0
    distance = q - k
    if subject.window_counts == "tokens":
        position = ((key == query) & (k < q)).sum(dim=-1)  # of each token in its document
        distance = position.unsqueeze(-1) - position.unsqueeze(-2)
    near = (k <= q) | (not subject.causal)
    if subject.window:
        near = near & (distance.abs() < subject.window)
    return near & (together | (subject.takes == "length"))


class Case:
    """A mask as found beside the one wanted, (B,1,T,T), and where they differ at real queries."""

    def __init__(self, subject: MaskSubject, name: str, attention_mask: Tensor):
        self.name, self.attention_mask = name, attention_mask
        self.wanted, self.found = definition(subject, attention_mask), subject(attention_mask)
        asked = (attention_mask != 0)[:, None, :, None] | (subject.takes == "length")
        self.wrong = (self.found != self.wanted) & asked


def compare(subject: MaskSubject, batches: dict[str, Tensor]) -> float:
    """How many entries are wrong in all batches; the first such row is shown."""
    cases = [Case(subject, *batch) for batch in batches.items()]
    first = max(cases, key=lambda case: bool(case.wrong.any()))  # max takes the first
    row = int(first.wrong.flatten(1).any(dim=1).long().argmax())
    return at_most(
        0.0,
        float(sum(case.wrong.sum() for case in cases)),
        f"With {first.name}, {int((first.wrong & first.found).sum())} entries allow a masked key "
        "(padding, the future, another document or beyond the window), and "
        f"{int((first.wrong & first.wanted).sum())} hide a key that may be attended to.",
        attention_mask=first.attention_mask[row],
        mask_wanted=first.wanted[row, 0],
        mask_found=first.found[row, 0],
    )


# ---- core ----------------------------------------------------------------------------------------


@core(
    measures="wrong entries",
    mirrors=(
        "https://github.com/hyunwoongko/transformer/pull/40",
        "https://github.com/harvard-edge/cs249r_book/pull/1785",
    ),
)
def each_query_may_see_what_it_should(subject: MaskSubject) -> Iterator[float]:
    """Real tokens see real keys (of the past, where it is causal), themselves too; nothing else."""
    yield compare(subject, batches(subject))


@core(measures="wrong entries", mirrors="https://github.com/huggingface/trl/issues/3067")
def documents_do_not_see_each_other(subject: MaskSubject) -> Iterator[float]:
    """In a packed row each token sees its own document only, next to others or between them."""
    needs(subject.documents, "it does not declare documents")
    packed = torch.tensor([[1, 1, 2, 2, 2, 0], [1, 2, 2, 3, 3, 3], [1, 2, 1, 2, 0, 2]])
    yield compare(subject, {"packed documents": packed.to(subject.device)})


@core(measures="wrong entries")
def a_row_of_padding_stays_in_its_row(subject: MaskSubject) -> Iterator[float]:
    """A row that is all padding leaves the masks of the others as they are."""
    needs(subject.takes != "length", "it knows nothing of padding")
    attention_mask = batches(subject)["padding on the right"].clone()
    attention_mask[1] = 0
    yield compare(subject, {"a row of padding": attention_mask})


@core()
def a_rows_mask_is_its_own(subject: MaskSubject) -> None:
    """Each row alone has the mask that it has in the batch."""
    needs(subject.takes != "length", "it knows nothing of rows")
    for name, attention_mask in batches(subject).items():
        together = subject(attention_mask)
        for row in range(len(attention_mask)):
            alone = subject(attention_mask[row : row + 1])
            expect(
                torch.equal(alone[0], together[row]),
                f"With {name}, row {row} has another mask alone than in the batch.",
                None,
                alone=alone[0, 0],
                in_the_batch=together[row, 0],
            )


@core(measures="wrong entries", mirrors=TORCH + "issues/108108")
def the_last_query_is_the_last_key(subject: MaskSubject) -> Iterator[float]:
    """With fewer queries than keys the last query sees all keys, the one before it one less.

    So a model decodes with a cache: the queries are the newest tokens.
    """
    needs(subject.takes == "length", "it takes no numbers of queries and keys")
    for queries, keys in ((1, 5), (2, 5), (5, 5), (1, 1)):
        batch = torch.ones(1, keys, dtype=torch.long, device=subject.device)
        found = subject.normal(subject.call(queries, keys), batch, queries)[0, 0]
        wanted = definition(subject, batch)[0, 0, keys - queries :]
        yield at_most(
            0.0,
            float((found != wanted).sum()),
            f"With {queries} queries and {keys} keys {{measured}} entries are wrong: is the last "
            "query the last key?",
            mask_wanted=wanted,
            mask_found=found,
        )


@core(measures="wrong entries")
def any_length_has_its_mask(subject: MaskSubject) -> Iterator[float]:
    """One token, one row, more tokens than rows and fewer: the mask is that of the definition."""
    sizes = {}
    for rows, length in ((1, 1), (1, 6), (5, 2), (2, 9)):
        attention_mask = torch.ones(rows, length, dtype=torch.long, device=subject.device)
        attention_mask[0, length // 2 + 1 :] = 0
        sizes[f"{rows} x {length} tokens"] = attention_mask
    yield compare(subject, sizes)


@core(
    measures="wrong entries",
    mirrors=(
        HF + "issues/39408",
        HF + "pull/40700",
        "https://github.com/unslothai/unsloth/pull/8253",
    ),
)
def a_window_ends_where_it_is_declared(subject: MaskSubject) -> Iterator[float]:
    """With a sliding window of n a token sees itself and n - 1 keys on a side, and none beyond."""
    needs(subject.window, "it declares no window")
    attention_mask = torch.ones(2, subject.window + 4, dtype=torch.long, device=subject.device)
    attention_mask[0, 0] = attention_mask[1, -1] = 0
    yield compare(subject, {"rows longer than the window": attention_mask})


@core()
def the_attention_mask_is_left_alone(subject: MaskSubject) -> None:
    """What it is given is the same after the call, and what it returns is no view of it."""
    needs(subject.takes != "length", "it is given numbers")
    for attention_mask in batches(subject).values():
        (before,), (given,) = subject.given(attention_mask), subject.given(attention_mask)
        mask = subject.call(given)
        expect(torch.equal(before, given), f"It changes its {subject.takes} in place.")
        expect(
            not isinstance(mask, Tensor)
            or mask.untyped_storage().data_ptr() != given.untyped_storage().data_ptr(),
            "It returned a view of what it was given: whoever changes the one changes the other.",
        )


@core(measures="wrong entries")
def long_rows_are_masked_too(subject: MaskSubject) -> Iterator[float]:
    """The mask of 300 tokens is right as that of 9 is."""
    attention_mask = torch.ones(2, 300, dtype=torch.long, device=subject.device)
    attention_mask[0, :131] = 0
    yield compare(subject, {"rows of 300 tokens": attention_mask})


@core(
    measures="real tokens that are hidden",
    mirrors=(
        "https://github.com/huggingface/transformers/issues/23530",
        "https://github.com/huggingface/trl/issues/976",
    ),
)
def a_real_token_may_have_the_id_of_padding(subject: MaskSubject) -> Iterator[float]:
    """A real token that has the id of padding, as an end of sequence may, can be seen."""
    needs(subject.takes == "ids", "it looks at no ids")
    needs(not subject.pad_is_unique, "it declares that no real token has the id of padding")
    attention_mask = batches(subject)["padding on the right"]
    ends = attention_mask.sum(dim=1) - 1
    ids = torch.where(attention_mask == 0, PAD, TOKEN)
    ids[torch.arange(len(ids)), ends] = PAD
    found = subject.normal(subject.call(ids), attention_mask)
    hidden = ~found.any(dim=2)[torch.arange(len(ids)), 0, ends]
    yield at_most(
        0.0,
        float(hidden.sum()),
        f"In {{measured}} of {len(ids)} rows the last real token is hidden: it has the id of "
        "padding, as an end of sequence may. Can the mask be made from lengths, where you pad? "
        "(Or declare pad_is_unique.)",
    )


# ---- robust --------------------------------------------------------------------------------------


@robust(measures="largest value that should be -inf")
def what_is_hidden_is_minus_infinity(subject: MaskSubject) -> Iterator[float]:
    """An additive mask holds 0 and -inf only: any finite number is too small for some score."""
    needs(subject.mask_values == "additive", "its masks are not additive")
    for name, attention_mask in batches(subject).items():
        mask = subject.call(*subject.given(attention_mask))
        yield at_most(
            0.0,
            mask[(mask != 0.0) & (mask != float("-inf"))],
            f"With {name}, hidden entries hold a number of magnitude {{measured}} instead of -inf.",
        )


@robust(mirrors=TORCH + "issues/97605")
def true_and_one_mean_the_same(subject: MaskSubject) -> None:
    """A bool attention_mask gives the mask that an int one gives, or is refused."""
    needs(subject.takes == "attention_mask", "it takes no attention_mask")
    for name, attention_mask in batches(subject).items():
        try:
            returned = subject.call(attention_mask.bool())
        except Exception:  # refused, in whatever words
            return
        found = subject.normal(returned, attention_mask)
        expect(
            torch.equal(found, subject(attention_mask)),
            f"With {name} as True and False instead of 1 and 0 the mask is another, without an "
            "error. Does it compute 1 - mask or ~mask?",
        )


@robust(measures="keys that padded queries see")
def padded_queries_see_nothing(subject: MaskSubject) -> Iterator[float]:
    """Where it is promised, the query of a padded token sees no key at all."""
    needs(subject.dead_queries == "nothing", "it does not promise what padded queries see")
    needs(subject.takes != "length", "it knows nothing of padding")
    a_row_of_padding = torch.tensor([[1, 1, 0], [0, 0, 0]], device=subject.device)
    for name, attention_mask in (batches(subject) | {"a row of padding": a_row_of_padding}).items():
        seen = subject(attention_mask) & (attention_mask == 0)[:, None, :, None]
        yield at_most(0.0, float(seen.sum()), f"With {name}, padded queries see {{measured}} keys.")


def _answers(subject: MaskSubject) -> Answers:
    return {name: subject(attention_mask) for name, attention_mask in batches(subject).items()}


def _masks(subject: MaskSubject) -> tuple[Call, list[Tensor], list[Tensor]]:
    needs(subject.takes != "length", "it is given numbers")
    before, after = (
        list(subject.given(batches(subject)[name])) for name in ("padding on the right", "holes")
    )
    return lambda given: subject.normal(subject.call(*given), given[0]), before, after


asked_inside_inference_mode("mask", _answers)
masks_are_written_to("mask", _masks)
