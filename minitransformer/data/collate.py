"""From examples to batches, for torch's DataLoader and everything that looks like it.

    DataLoader(examples, batch_size=16, collate_fn=partial(collate_lm, pad_id=0))

An example is a list of token ids, or a mapping with `input_ids` and perhaps `labels`, as the rows
of Hugging Face datasets are; several are a list of them, or a mapping of columns, as a slice of a
data set and what a tokenizer returns are. Lists may be arrays of torch, NumPy or pyarrow, (T) or
(1, T); None is as good as absent. What is not integers is refused.

The batch's attention_mask comes from lengths; where an example has an `attention_mask` of its own,
its zeros are padding, which is cut off first. `token_type_ids` become the batch's `segment_ids`.
Other entries are not read. Labels that are given stand at the token that is to be predicted, -100
where none is, as in that library; `collate_lm` moves them to where our models predict it.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import compress
from typing import Any

import torch

from minitransformer.data.batches import (
    Batch,
    PairBatch,
    check_integers,
    mask_tokens,
    next_token_labels,
    pack,
    pad,
    pad_pairs,
)
from minitransformer.loss import IGNORE_INDEX

Example = Sequence[int] | torch.Tensor | Mapping[str, Any]
Examples = Iterable[Example] | Mapping[str, Any]
KEYS = (  # of an example, that are read
    "input_ids",
    "attention_mask",
    "token_type_ids",
    "labels",
    "decoder_attention_mask",
    "label",
)


def collate(
    examples: Examples,
    pad_id: int = 0,
    side: str = "right",
    max_length: int | None = None,
    multiple_of: int = 1,
    truncate: bool = False,
) -> Batch:
    """Pad ids, and labels with -100 where they are given; the same labels, position by position.

    The length is that of the longest, rounded up to a multiple of `multiple_of`, or `max_length`
    exactly. Raises ValueError for an example that is longer, by its number, unless `truncate` cuts
    it; and where some examples have labels and some have none.
    """
    if truncate and max_length is None:
        raise ValueError("truncate=True needs a max_length to cut at")
    columns = _columns(examples, max_length if truncate else None)
    return pad(pad_id=pad_id, side=side, max_length=max_length, multiple_of=multiple_of, **columns)


def collate_lm(examples: Examples, **options: Any) -> Batch:
    """For a decoder: each token predicts the next. Options as `collate`'s.

    Labels that are given choose the tokens that are learned; by default all are. The end of
    sequence is learned even where padding has the same id.
    """
    return _predict_next(collate(examples, **options))


def collate_mlm(
    examples: Examples,
    mask_id: int,
    vocab_size: int,
    special_ids: Sequence[int] = (),
    probability: float = 0.15,
    generator: torch.Generator | None = None,
    **options: Any,
) -> Batch:
    """For an encoder: some tokens are hidden, to be found; see `mask_tokens`."""
    batch = collate(examples, **options)
    hidden, labels = mask_tokens(
        batch.input_ids,
        batch.attention_mask,
        mask_id,
        vocab_size,
        special_ids,
        probability,
        generator,
    )
    return replace(batch, input_ids=hidden, labels=labels)


def collate_pairs(
    examples: Examples,
    bos_id: int,
    eos_id: int,
    pad_id: int = 0,
    side: str = "right",
) -> PairBatch:
    """For an encoder-decoder: `input_ids` is the source, `labels` the target, with or without
    `eos_id` at its end.

    Padding that an example brings along is cut off: zeros of its `attention_mask` in the source, of
    its `decoder_attention_mask` in the target, and -100 at either end of the labels. Raises
    ValueError for labels that are padded in another way, and for segments, which no source has.
    """
    examples = list(_split(examples))
    read = _unpadded(examples, "input_ids", "attention_mask", "token_type_ids")
    for i, columns in enumerate(read):
        if any(columns.get("token_type_ids", [])):
            raise ValueError(f"examples[{i}] has token_type_ids other than 0; a source has none")
    written = _unpadded(examples, "labels", "decoder_attention_mask")
    sources = [columns["input_ids"] for columns in read]
    targets = [_target(columns["labels"], i, eos_id, pad_id) for i, columns in enumerate(written)]
    return pad_pairs(sources, targets, bos_id, eos_id, pad_id, side)


def collate_packed(examples: Examples, length: int | None = None, pad_id: int = 0) -> Batch:
    """For a decoder: several examples a row, each of which sees, and predicts, itself only.

    attention_mask numbers them, and without `length` rows are as long as the longest example (see
    `pack`). Labels that are given count as in `collate_lm`.
    """
    return _predict_next(pack(length=length, pad_id=pad_id, **_columns(examples)))


def collate_classes(examples: Examples, **options: Any) -> Batch:
    """For a `Classifier`: the `label` (or `labels`) of each example is one class; labels (B,).

    -100 is an example without a class. Options as `collate`'s.
    """
    named = [_named(one, f"examples[{i}]", "input_ids") for i, one in enumerate(_split(examples))]
    labels = [_class(example, f"examples[{i}]") for i, example in enumerate(named)]
    batch = collate([{**example, "labels": None} for example in named], **options)
    return replace(batch, labels=torch.tensor(labels, dtype=torch.int64))


def chat_example(
    turns: Sequence[Mapping[str, str]],
    encode: Callable[[str], list[int]],
    template: Callable[[str, str], tuple[str, str, str]],
    learned: str = "assistant",
) -> dict[str, list[int]]:
    """A conversation as an example for `collate_lm` that teaches one side of it.

    `turns` are mappings with "role" and "content"; `template(role, content)` gives the text before
    a turn, the turn, and the text after it, its end. What the role `learned` says, and that end,
    are learned; who is to speak, and what the others say, is only read. The parts are encoded one
    by one, so what is learned is known and need not be searched for.

    >>> chat_example(
    ...     [{"role": "user", "content": "?"}, {"role": "assistant", "content": "!"}],
    ...     encode=lambda text: [ord(c) for c in text],
    ...     template=lambda role, content: (role[0], content, "."),
    ... )
    {'input_ids': [117, 63, 46, 97, 33, 46], 'labels': [-100, -100, -100, -100, 33, 46]}
    """
    ids: list[int] = []
    labels: list[int] = []
    for i, turn in enumerate(turns):
        if "role" not in turn or "content" not in turn:
            raise ValueError(f"turns[{i}] must have role and content, got {', '.join(turn)}")
        before, *said = (encode(text) for text in template(turn["role"], turn["content"]))
        words = [token for part in said for token in part]
        ids += [*before, *words]
        learns = turn["role"] == learned
        labels += [IGNORE_INDEX] * len(before)
        labels += words if learns else [IGNORE_INDEX] * len(words)
    return {"input_ids": ids, "labels": labels}


def _predict_next(batch: Batch) -> Batch:
    """With each label moved from its own token to the one before, which predicts it."""
    aligned = batch.input_ids if batch.labels is None else batch.labels
    return replace(batch, labels=next_token_labels(aligned, batch.attention_mask))


def _columns(examples: Examples, max_length: int | None = None) -> dict[str, Any]:
    """The rows, labels and segment_ids of the examples, as `pad` and `pack` take them."""
    read = _unpadded(examples, "input_ids", "attention_mask", "labels", "token_type_ids")
    given: dict[str, Any] = {"rows": [columns["input_ids"] for columns in read]}
    labels = _labels(read)
    if labels is not None:
        given["labels"] = labels
    segments = [columns.get("token_type_ids", [0] * len(columns["input_ids"])) for columns in read]
    if any(map(any, segments)):  # a model without segments takes a batch in which all are 0
        given["segment_ids"] = segments
    return {name: [row[:max_length] for row in column] for name, column in given.items()}


def _labels(read: list[dict[str, list[int]]]) -> list[list[int]] | None:
    """Those of all examples, or None where none has any."""
    without = [i for i, columns in enumerate(read) if "labels" not in columns]
    if len(without) == len(read):
        return None
    if without:
        names = ", ".join(f"examples[{i}]" for i in without)
        raise ValueError(f"{names}: no labels, but others have some; give all labels, or none")
    return [columns["labels"] for columns in read]


def _class(example: Mapping[str, Any], where: str) -> int:
    """The one label of an example, a number or of shape (1,)."""
    given = [name for name in ("label", "labels") if example.get(name) is not None]
    if not given:
        raise ValueError(f"{where} has no label; it has {_names(example)}")
    name = given[0]
    value = _list(example[name])
    row = value if isinstance(value, list) else [value]
    check_integers(f"{where}: {name}", row)
    if len(row) != 1:
        raise ValueError(f"{where}: {name} must be one class, got {len(row)} numbers")
    return row[0]


def _target(labels: list[int], number: int, eos_id: int, pad_id: int) -> list[int]:
    """The target without padding, and without its end, which `pad_pairs` adds."""
    real = [i for i, label in enumerate(labels) if label != IGNORE_INDEX]
    labels = labels[real[0] : real[-1] + 1] if real else []
    if IGNORE_INDEX in labels:
        raise ValueError(
            f"examples[{number}]: labels have {IGNORE_INDEX} between tokens; a target is read as a "
            "whole, so give all of its tokens"
        )
    after_end = labels[labels.index(eos_id) + 1 :] if eos_id in labels else []
    if after_end and set(after_end) == {pad_id}:
        raise ValueError(
            f"examples[{number}]: labels go on with pad_id = {pad_id} after eos_id = {eos_id}; "
            f"give {IGNORE_INDEX} in place of padding, or a decoder_attention_mask"
        )
    return labels[:-1] if labels[-1:] == [eos_id] else labels


# ---- what comes in -----------------------------------------------------------------------------


def _unpadded(examples: Examples, ids: str, mask: str, *others: str) -> list[dict[str, list[int]]]:
    """Of each example its `ids`, and the `others` that it has, where its `mask` (if any) is 1."""
    read = []
    for i, example in enumerate(_split(examples)):
        columns = _rows_of(example, f"examples[{i}]", ids, mask, *others)
        real = columns.pop(mask, ())
        if not all(real):
            columns = {name: list(compress(column, real)) for name, column in columns.items()}
        read.append(columns)
    return read


def _split(examples: Examples) -> Iterable[Example]:
    """The examples one by one, also those of a mapping of columns."""
    examples = _list(examples)
    if not isinstance(examples, Mapping):
        return examples
    examples = _named(examples, "examples", "input_ids")
    given = [name for name in KEYS if examples.get(name) is not None]
    columns = {name: _sequence("examples", name, examples[name]) for name in given}
    lengths = {name: len(column) for name, column in columns.items()}
    if len(set(lengths.values())) > 1:
        raise ValueError(f"examples: the columns must have as many rows each, got {lengths}")
    count = len(columns["input_ids"])
    return [{name: column[i] for name, column in columns.items()} for i in range(count)]


def _named(example: Example, where: str, wanted: str) -> Mapping[str, Any]:
    """The example as a mapping that has what is wanted; a mere row is its `input_ids`."""
    example = _list(example)
    if isinstance(example, list) and len(example) == 1 and isinstance(example[0], Mapping):
        example = example[0]  # of a table with one row
    if isinstance(example, str):
        raise TypeError(f"{where} is text, {example!r:.40}; tokenize it")
    if not isinstance(example, Mapping):
        example = {"input_ids": example}
    if example.get(wanted) is None:
        raise ValueError(f"{where} has no {wanted}; it has {_names(example)}")
    return example


def _names(example: Mapping[str, Any]) -> str:
    """Of what the example has; None is as good as absent."""
    return ", ".join(name for name, value in example.items() if value is not None) or "nothing"


def _rows_of(
    example: Example, where: str, ids: str, mask: str, *others: str
) -> dict[str, list[int]]:
    """What is given of an example, by name: rows of one length."""
    example = _named(example, where, ids)
    given = [name for name in (ids, mask, *others) if example.get(name) is not None]
    rows = {name: _row(where, name, example[name]) for name in given}
    for name, row in rows.items():
        if len(row) != len(rows[ids]):
            raise ValueError(
                f"{where}: {name} must have an entry for each of the {len(rows[ids])} {ids}, "
                f"got {len(row)}"
            )
    if not set(rows.get(mask, ())) <= {0, 1}:
        raise ValueError(f"{where}: {mask} must be 0 (padding) and 1 only")
    return rows


def _row(where: str, name: str, values: Any) -> list[int]:
    """A row of integers. It may be of shape (1, T), as tokenizers return tensors."""
    row = _sequence(where, name, values)
    if row and isinstance(_list(row[0]), list):
        if len(row) > 1:
            raise ValueError(f"{where}: {name} must be one row, (T) or (1, T), got {len(row)} rows")
        row = _list(row[0])
    if not name.endswith("mask"):
        check_integers(f"{where}: {name}", row)
    return row


def _sequence(where: str, name: str, values: Any) -> list:
    """The values as a list; what is none is refused."""
    found = _list(values)
    if isinstance(found, list):
        return found
    hint = "; tokenize it" if isinstance(found, str) else HINTS.get(name, "")
    raise TypeError(f"{where}: {name} must be a list of integers, got {found!r:.40}{hint}")


def _list(values: Any) -> Any:
    """A list of what torch, NumPy, pyarrow and datasets have for one; other things as they are."""
    for convert in ("tolist", "to_pylist", "as_py"):
        if hasattr(values, convert):
            return getattr(values, convert)()
    is_list = isinstance(values, Sequence) and not isinstance(values, str | bytes)
    return list(values) if is_list else values


HINTS = {
    "input_ids": "; a single example goes into a list of examples",
    "labels": "; one class for each example is for collate_classes",
}
