"""From examples to batches, for torch's DataLoader and everything that looks like it.

    DataLoader(examples, batch_size=16, collate_fn=partial(collate_lm, pad_id=0))

An example is a list of token ids, or a mapping with `input_ids` and perhaps `labels`, as the rows
of Hugging Face datasets are. The batch's attention_mask comes from lengths; where an example has an
`attention_mask` of its own, its zeros are padding, which is cut off first. `token_type_ids` become
the batch's `segment_ids`. Other entries are not read. Labels that are given stand at the token that
is to be predicted, -100 where none is, as in that library; `collate_lm` moves them to where our
models predict it.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import compress
from typing import Any

import torch

from minitransformer.data.batches import (
    Batch,
    PairBatch,
    mask_tokens,
    next_token_labels,
    pack,
    pad,
    pad_pairs,
)
from minitransformer.loss import IGNORE_INDEX

Example = Sequence[int] | torch.Tensor | Mapping[str, Any]


def collate(
    examples: Sequence[Example],
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


def collate_lm(examples: Sequence[Example], **options: Any) -> Batch:
    """For a decoder: each token predicts the next. Options as `collate`'s.

    Labels that are given choose the tokens that are learned; by default all are. The end of
    sequence is learned even where padding has the same id.
    """
    return _predict_next(collate(examples, **options))


def collate_mlm(
    examples: Sequence[Example],
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
    examples: Sequence[Mapping[str, Any]],
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
    sources, targets = [], []
    for i, example in enumerate(examples):
        source = _unpadded(example, i, "input_ids", "attention_mask", "token_type_ids")
        if any(source.get("token_type_ids", [])):
            raise ValueError(f"examples[{i}] has token_type_ids other than 0; a source has none")
        target = _unpadded(example, i, "labels", "decoder_attention_mask")["labels"]
        sources.append(source["input_ids"])
        targets.append(_target(target, i, eos_id, pad_id))
    return pad_pairs(sources, targets, bos_id, eos_id, pad_id, side)


def collate_packed(examples: Sequence[Example], length: int, pad_id: int = 0) -> Batch:
    """For a decoder: several examples a row, each of which sees, and predicts, itself only.

    attention_mask numbers them (see `pack`). Labels that are given count as in `collate_lm`.
    """
    return _predict_next(pack(length=length, pad_id=pad_id, **_columns(examples)))


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


def _columns(examples: Sequence[Example], max_length: int | None = None) -> dict[str, Any]:
    """The rows, labels and segment_ids of the examples, as `pad` and `pack` take them."""
    parts = ("input_ids", "attention_mask", "labels", "token_type_ids")
    read = [_unpadded(example, i, *parts) for i, example in enumerate(examples)]
    rows = [columns["input_ids"] for columns in read]
    labels = [columns.get("labels") for columns in read]
    if any(row is not None for row in labels) and None in labels:
        raise ValueError(f"examples[{labels.index(None)}] has no labels, but others have")
    segments = [columns.get("token_type_ids", [0] * len(columns["input_ids"])) for columns in read]
    given: dict[str, Any] = {"rows": rows}
    if any(row is not None for row in labels):
        given["labels"] = labels
    if any(map(any, segments)):  # a model without segments takes a batch in which all are 0
        given["segment_ids"] = segments
    return {name: [row[:max_length] for row in column] for name, column in given.items()}


def _unpadded(
    example: Example, number: int, ids: str, mask: str, *others: str
) -> dict[str, list[int]]:
    """The example's `ids`, and the `others` that it has, where its `mask` (if any) is not 0."""
    if not isinstance(example, Mapping):
        if ids != "input_ids":
            raise ValueError(f"examples[{number}] must be a mapping with input_ids and {ids}")
        example = {ids: example}
    if example.get(ids) is None:
        raise ValueError(f"examples[{number}] has no {ids}; it has {', '.join(example)}")
    columns = {n: _as_list(example[n]) for n in (ids, mask, *others) if example.get(n) is not None}
    for name, column in columns.items():
        if not isinstance(column, list) or len(column) != len(columns[ids]):
            got = len(column) if isinstance(column, list) else repr(column)
            raise ValueError(
                f"examples[{number}]: {name} must have an entry for each of the "
                f"{len(columns[ids])} {ids}, got {got}"
            )
    real = columns.pop(mask, [1] * len(columns[ids]))
    if not set(real) <= {0, 1}:
        raise ValueError(f"examples[{number}]: {mask} must be 0 (padding) and 1 only")
    return {name: list(compress(column, real)) for name, column in columns.items()}


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


def _as_list(values: Any) -> Any:
    values = values.tolist() if hasattr(values, "tolist") else values  # of torch, or of NumPy
    return list(values) if isinstance(values, Sequence) else values
