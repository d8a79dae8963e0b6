"""What must hold of labels and of collators, which turn rows of token ids into a batch.

Every row ends with the token END, which is also the padding's id in some checks: then ids cannot
tell a real end from padding, and only lengths can.
"""

from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor

from minitransformer.checks.engine.between_calls import (
    Answers,
    asked_inside_inference_mode,
    changed,
)
from minitransformer.checks.engine.check import at_most, check, expect, needs
from minitransformer.checks.labels.subject import END, CollatorSubject, LabelsSubject

core_labels = partial(check, "labels", "core")
core_collator = partial(check, "collator", "core")

ROWS = ((5, 3, END), (7, 4, 6, 9, 3, END), (8, END), (4,))
HF = "https://github.com/huggingface/transformers/"
TRL = "https://github.com/huggingface/trl/"

Batch = tuple[Tensor, Tensor]  # input_ids and attention_mask, (B,T) int64


# ---- labels: inputs and the definition -----------------------------------------------------------


def laid_out(
    subject: LabelsSubject, where: str, pad_id: int = 0, extra: int = 0, rows: Any = ROWS
) -> Batch:
    """The rows as a batch, padded on a side, with holes, or packed two documents to a row."""
    length = max(map(len, rows)) + extra + (where == "holes")
    ids = torch.full((len(rows), length), pad_id)
    mask = torch.zeros_like(ids)
    for i, row in enumerate(rows):
        start = length - len(row) if where == "left" else 0
        columns = [start + j + (where == "holes" and j > 0) for j in range(len(row))]
        ids[i, columns], mask[i, columns] = torch.tensor(row), 1
        if where == "packed" and len(row) > 2:
            mask[i, columns[len(row) // 2 :]] = 2
    return ids.to(subject.device), mask.to(subject.device)


def label_batches(subject: LabelsSubject, **options: Any) -> dict[str, Batch]:
    places = {f"padding on the {side}": side for side in subject.sides}
    places |= {"holes between tokens": "holes"} if subject.holes else {}
    return {name: laid_out(subject, where, **options) for name, where in places.items()}


def true_labels(subject: LabelsSubject, ids: Tensor, mask: Tensor) -> Tensor:
    """By the definition, token by token."""
    labels = torch.full_like(ids, -100)
    for b, numbers in enumerate(mask.tolist()):
        last: dict[int, int] = {}  # of each document the column read last
        for t, number in enumerate(numbers):
            if number and number in last:
                labels[b, t if subject.aligned else last[number]] = ids[b, t]
            if number:
                last[number] = t
    return labels


def compare(subject: LabelsSubject, batch: Batch, name: str, asks: str = "") -> float:
    """The labels against the definition. Aligned ones may keep a first token that no one reads."""
    wanted, found = true_labels(subject, *batch), subject(*batch)
    wrong = found != wanted
    if subject.aligned:  # the first label of a row is dropped by every loss that shifts
        wrong[:, 0] = False
    row = int(wrong.any(dim=1).long().argmax())
    return at_most(
        0.0,
        float(wrong.sum()),
        f"With {name}, {{measured}} of {wrong.numel()} labels are wrong. {asks}".strip(),
        input_ids=batch[0][row],
        attention_mask=batch[1][row],
        labels_wanted=wanted[row],
        labels_found=found[row],
    )


# ---- labels: checks ------------------------------------------------------------------------------


@core_labels(measures="wrong labels", mirrors=HF + "issues/32832")
def labels_are_the_next_tokens(subject: LabelsSubject) -> Iterator[float]:
    """The label of each token is the next real token, and -100 where there is none."""
    for name, batch in label_batches(subject).items():
        yield compare(subject, batch, name, "Is each real token asked for the next one?")


@core_labels(measures="wrong labels", mirrors=(HF + "issues/23530", TRL + "issues/976"))
def a_real_end_is_learned_though_padding_looks_the_same(subject: LabelsSubject) -> Iterator[float]:
    """Where padding has the id of the end of sequence, the real end is still a label."""
    asks = (
        "Real tokens have the id of padding here, as where bos = eos = pad: is it told by its id?"
    )
    for pad_id in (END, 0):
        rows = [(pad_id, *row[1:-1], pad_id) for row in ROWS]
        for name, batch in label_batches(subject, pad_id=pad_id, rows=rows).items():
            yield compare(subject, batch, name, asks)


@core_labels(measures="wrong labels", mirrors="https://github.com/QwenLM/Qwen3-ASR/pull/212")
def padding_predicts_nothing(subject: LabelsSubject) -> Iterator[float]:
    """No label is predicted from padding, and no padding is a label."""
    for name, (ids, mask) in label_batches(subject, extra=2).items():
        labels = subject(ids, mask)
        if subject.aligned:  # the label at t is predicted from t - 1
            previous = torch.cat([torch.ones_like(mask[:, :1]), mask[:, :-1]], dim=1)
            leak = (labels != -100) & ((mask == 0) | (previous == 0))
            leak[:, 0] = False
        else:
            leak = (labels != -100) & (mask == 0)
        row = int(leak.any(dim=1).long().argmax())
        yield at_most(
            0.0,
            float(leak.sum()),
            f"With {name}, {{measured}} labels are predicted from padding, or are padding.",
            attention_mask=mask[row],
            labels_found=labels[row],
        )


@core_labels(measures="wrong labels", mirrors=TRL + "issues/3067")
def no_label_crosses_documents(subject: LabelsSubject) -> Iterator[float]:
    """The last token of a packed document is not asked for the first of the next."""
    needs(subject.documents, "it does not declare documents")
    yield compare(subject, laid_out(subject, "packed"), "two documents in a row")


@core_labels()
def a_row_of_padding_has_no_labels(subject: LabelsSubject) -> None:
    """A row without any token has only -100, and the other rows keep their labels."""
    ids, mask = laid_out(subject, "right")
    mask[2] = 0
    compare(subject, (ids, mask), "a row that is all padding")


@core_labels()
def a_rows_labels_are_its_own(subject: LabelsSubject) -> None:
    """Each row alone has the labels that it has in the batch."""
    for name, (ids, mask) in label_batches(subject).items():
        together = subject(ids, mask)
        for row in range(len(ids)):
            alone = subject(ids[row : row + 1], mask[row : row + 1])[0]
            expect(
                torch.equal(alone, together[row]),
                f"With {name}, row {row} has other labels alone than in the batch.",
                None,
                alone=alone,
                in_the_batch=together[row],
            )


@core_labels()
def ids_and_mask_are_left_alone(subject: LabelsSubject) -> None:
    """Ids and attention_mask are the same after the call, and the labels are no view of them."""
    for batch in label_batches(subject).values():
        given = tuple(x.clone() for x in batch)
        labels = subject.call(*given)
        for name, before, after in zip(subject.arguments, batch, given, strict=True):
            expect(torch.equal(before, after), f"It changes the {name} in place.")
        shared = isinstance(labels, Tensor) and any(
            labels.untyped_storage().data_ptr() == x.untyped_storage().data_ptr() for x in given
        )
        expect(not shared, "The labels are a view of what was given: a write to one is in both.")


@core_labels()
def labels_are_int64(subject: LabelsSubject) -> None:
    """Labels are int64, as every loss wants them."""
    for batch in label_batches(subject).values():
        found = subject(*batch).dtype
        expect(found == torch.int64, f"The labels are {found}, not torch.int64.")


@core_labels(measures="wrong labels")
def a_single_column_has_no_labels(subject: LabelsSubject) -> Iterator[float]:
    """Rows of one token, padded by nothing, are (batch, 1) labels of -100."""
    yield compare(subject, laid_out(subject, "right", rows=((4,), (7,), (5,))), "one token a row")


@check("labels", "robust", measures="wrong labels")
def true_and_one_are_the_same_to_labels(subject: LabelsSubject) -> Iterator[float]:
    """A bool attention_mask gives the labels that an int one gives, or is refused."""
    for name, (ids, mask) in label_batches(subject).items():
        wanted = subject(ids, mask)
        try:
            found = subject.call(ids.clone(), mask.bool())
        except Exception:  # refused, in whatever words
            return
        same = isinstance(found, Tensor) and found.shape == wanted.shape
        yield at_most(
            0.0,
            float((found != wanted).sum()) if same else float("nan"),
            f"With {name}, and True and False instead of 1 and 0, {{measured}} labels are others, "
            "without an error.",
        )


# ---- collators: checks ---------------------------------------------------------------------------


def rows_of(subject: CollatorSubject) -> list[list[int]]:
    """Rows that have a real token of the padding's id inside, as the first and as the last."""
    rows = [list(row) for row in ROWS]
    rows[0][1] = rows[1][0] = rows[2][-1] = subject.pad_id
    return rows


def expected_batch(
    subject: CollatorSubject, rows: list[list[int]], labels: list[list[int]] | None = None
) -> tuple[Tensor, Tensor, Tensor | None]:
    """What the definition gives: ids, mask and labels, (B,T)."""
    length = max(map(len, rows))

    def tensor(lists: list[list[int]], filler: int) -> Tensor:
        filled = []
        for row in lists:
            padding = [filler] * (length - len(row))
            filled.append(row + padding if subject.side == "right" else padding + row)
        return torch.tensor(filled)

    wanted = {
        "none": None,
        "next": [[*row[1:], -100] for row in rows],
        "aligned": rows,
        "given": labels or rows,
    }[subject.labels]
    ids, mask = tensor(rows, subject.pad_id), tensor([[1] * len(row) for row in rows], 0)
    return ids, mask, None if wanted is None else tensor(wanted, -100)


def collated(subject: CollatorSubject) -> tuple[list[list[int]], tuple, tuple]:
    rows = rows_of(subject)
    found = subject(rows)
    wanted = expected_batch(subject, rows)
    expect(
        found[0].shape[0] == len(rows),
        f"It returned {found[0].shape[0]} rows for {len(rows)}.",
    )
    longest, columns = max(map(len, rows)), found[0].shape[1]
    expect(
        columns >= longest,
        f"The longest row has {longest} tokens, the batch only {columns} columns: tokens are lost.",
        float(longest - columns),
    )
    return rows, found, wanted


def wrong(subject: CollatorSubject, found: Tensor, wanted: Tensor, filler: int) -> float:
    """How many entries are not as wanted.

    A collator may pad to a multiple: columns beyond the longest row hold the filler, and count as
    one, however many they are.
    """
    columns = wanted.shape[1]
    inside, beyond = found[:, :columns], found[:, columns:]
    if subject.side == "left":
        inside, beyond = found[:, -columns:], found[:, :-columns]
    return changed(inside, wanted) + float((beyond != filler).any(dim=1).sum())


@core_collator()
def every_token_comes_back_in_its_place(subject: CollatorSubject) -> None:
    """Each row's tokens are in its row, in order, and the rest is padding, on the side declared."""
    _, (ids, *_), (wanted, *_) = collated(subject)
    expect(
        wrong(subject, ids, wanted, subject.pad_id) == 0.0,
        f"The ids are not the rows padded on the {subject.side} with {subject.pad_id}: is a row "
        "reversed, sorted, cut, or padded on the other side?",
        None,
        ids_wanted=wanted,
        ids_found=ids,
    )


@core_collator(measures="wrong positions", mirrors=(HF + "issues/23530", HF + "issues/26357"))
def the_mask_comes_from_lengths(subject: CollatorSubject) -> Iterator[float]:
    """attention_mask is 1 at real tokens, one of the padding's id too, and 0 at padding."""
    _, (_, mask, _), (_, wanted, _) = collated(subject)
    yield at_most(
        0.0,
        wrong(subject, mask.long(), wanted, 0),
        "attention_mask is wrong at {measured} positions. Is it made from lengths? A real token "
        f"has the id of padding, {subject.pad_id}.",
        mask_wanted=wanted,
        mask_found=mask.long(),
    )


@core_collator(measures="wrong labels", mirrors=(TRL + "issues/976", HF + "issues/8146"))
def labels_are_those_of_their_tokens(subject: CollatorSubject) -> Iterator[float]:
    """Labels stand at their tokens, and -100 at padding only: the real end is learned."""
    needs(subject.labels != "none", "it declares no labels")
    _, (*_, labels), (*_, wanted) = collated(subject)
    assert wanted is not None
    yield at_most(
        0.0,
        wrong(subject, labels, wanted, -100),
        "{measured} labels are wrong. Is -100 at padding, and nowhere else? A real token has the "
        f"id of padding, {subject.pad_id}.",
        labels_wanted=wanted,
        labels_found=labels,
    )


@core_collator(measures="labels overwritten", mirrors=(HF + "pull/26438", TRL + "issues/632"))
def given_labels_are_kept(subject: CollatorSubject) -> Iterator[float]:
    """Labels that come with the rows are kept, -100 at prompts too."""
    needs(subject.labels == "given", "it is not given labels")
    rows = rows_of(subject)
    own = [
        [-100] * (len(row) // 2) + [token + 20 for token in row[len(row) // 2 :]] for row in rows
    ]
    *_, labels = subject(rows, own)
    *_, wanted = expected_batch(subject, rows, own)
    assert labels is not None
    assert wanted is not None
    yield at_most(
        0.0,
        wrong(subject, labels, wanted, -100),
        "{measured} labels are not those that were given. Are they made anew, from the ids?",
        labels_given=wanted,
        labels_found=labels,
    )


@core_collator()
def ids_mask_and_labels_are_integers(subject: CollatorSubject) -> None:
    """Ids and labels are int64, as embeddings and losses want them; the mask is int or bool."""
    _, (ids, mask, labels), _ = collated(subject)
    for name, tensor in {"input_ids": ids, "labels": labels}.items():
        expect(
            tensor is None or tensor.dtype == torch.int64,
            f"{name} are {getattr(tensor, 'dtype', None)}, not torch.int64.",
        )
    expect(not mask.is_floating_point(), f"attention_mask is {mask.dtype}, neither int nor bool.")


@core_collator()
def rows_are_left_alone(subject: CollatorSubject) -> None:
    """The rows are the same after the call, so that the next epoch can read them."""
    rows = rows_of(subject)
    given, before = subject.arguments_of(rows, None), subject.arguments_of(rows, None)
    subject.collate(given)
    expect(given == before, "It changes the rows themselves.")


@core_collator()
def a_row_is_the_same_in_any_company(subject: CollatorSubject) -> None:
    """A row of one token, one row alone and rows of equal length: the same, padding apart."""
    for rows in ([[4]], [list(ROWS[1])], [[5, 6, END], [7, 8, END]], [[4], list(ROWS[1])]):
        ids, mask, _ = subject(rows)
        wanted, real, _ = expected_batch(subject, rows)
        expect(
            wrong(subject, ids, wanted, subject.pad_id)
            == wrong(subject, mask.long(), real, 0)
            == 0.0,
            f"The rows {rows} come out as {ids.tolist()} with the mask {mask.long().tolist()}.",
        )


@core_collator(measures="tokens lost", mirrors=HF + "issues/8146")
def a_long_row_keeps_its_end(subject: CollatorSubject) -> Iterator[float]:
    """A row of 40 tokens comes back whole, its end of sequence too."""
    rows = [[3, END], [*(3 + i % 6 for i in range(39)), END]]
    _, mask, _ = subject(rows)
    yield at_most(
        0.0,
        float(max(42 - int((mask != 0).sum()), 0)),
        "Of 42 tokens {measured} are lost. Is a long row cut, though nobody asked for it?",
    )


@check("collator", "robust", measures="real tokens in an empty row")
def an_empty_row_is_padding_or_refused(subject: CollatorSubject) -> Iterator[float]:
    """A row without tokens is a row of padding only; or it raises an error that says so."""
    given = subject.arguments_of([list(ROWS[0]), []], None)
    try:
        _, mask, _ = subject.collate(given)
    except ValueError:
        return
    yield at_most(
        0.0,
        float((mask[1] != 0).sum()),
        "A row without tokens has {measured} real ones in its mask.",
        mask_found=mask.long(),
    )


# ---- both: from one call to the next -------------------------------------------------------------


def _labels(subject: LabelsSubject) -> Answers:
    return {name: subject(*batch) for name, batch in label_batches(subject).items()}


def _batches(subject: CollatorSubject) -> Answers:
    """A longer row than in any other check: a buffer that grows is made here."""
    batch = subject([[4, END], [*(3 + i % 6 for i in range(60)), END]])
    names = ("input_ids", "attention_mask", "labels")
    return {name: x for name, x in zip(names, batch, strict=True) if x is not None}


asked_inside_inference_mode("labels", _labels)
asked_inside_inference_mode("collator", _batches)
