"""From examples to batches, for torch's DataLoader and everything that looks like it.

    DataLoader(examples, batch_size=16, collate_fn=partial(collate_lm, pad_id=0))

An example is a list of token ids, or a mapping with `input_ids` and perhaps `labels`, as the rows
of Hugging Face datasets are; its other entries, an attention_mask among them, are not needed: the
mask comes from lengths. Labels that are given stand at the token that is to be predicted, -100
where none is, as in that library; `collate_lm` moves them to where our models predict it.
"""

from collections.abc import Callable, Mapping, Sequence
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
    rows, labels = _ids_and_labels(examples)
    if truncate:
        if max_length is None:
            raise ValueError("truncate=True needs a max_length to cut at")
        rows = [row[:max_length] for row in rows]
        labels = None if labels is None else [row[:max_length] for row in labels]
    return pad(rows, pad_id, side, max_length, labels, multiple_of)


def collate_lm(examples: Sequence[Example], **options: Any) -> Batch:
    """For a decoder: each token predicts the next. Options as `collate`'s.

    Labels that are given choose the tokens that are learned; by default all are. The end of
    sequence is learned even where padding has the same id.
    """
    batch = collate(examples, **options)
    aligned = batch.input_ids if batch.labels is None else batch.labels
    return Batch(
        batch.input_ids, batch.attention_mask, next_token_labels(aligned, batch.attention_mask)
    )


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
    return Batch(hidden, batch.attention_mask, labels)


def collate_pairs(
    examples: Sequence[Mapping[str, Any]],
    bos_id: int,
    eos_id: int,
    pad_id: int = 0,
    side: str = "right",
) -> PairBatch:
    """For an encoder-decoder: `input_ids` is the source, `labels` the target, with or without
    `eos_id` at its end."""
    sources, targets = [], []
    for i, example in enumerate(examples):
        source, target = _entry(example, "input_ids", i), _entry(example, "labels", i)
        sources.append(source)
        targets.append(target[:-1] if target and target[-1] == eos_id else target)
    return pad_pairs(sources, targets, bos_id, eos_id, pad_id, side)


def collate_packed(examples: Sequence[Example], length: int, pad_id: int = 0) -> Batch:
    """For a decoder: several examples a row, each of which sees, and predicts, itself only.

    attention_mask numbers them (see `pack`). Labels that are given count as in `collate_lm`.
    """
    rows, labels = _ids_and_labels(examples)
    batch = pack(rows, length, pad_id, labels)
    aligned = batch.input_ids if batch.labels is None else batch.labels
    return Batch(
        batch.input_ids, batch.attention_mask, next_token_labels(aligned, batch.attention_mask)
    )


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


def _ids_and_labels(
    examples: Sequence[Example],
) -> tuple[list[list[int]], list[list[int]] | None]:
    rows = [_entry(example, "input_ids", i) for i, example in enumerate(examples)]
    labelled = [isinstance(example, Mapping) and "labels" in example for example in examples]
    if not any(labelled):
        return rows, None
    if not all(labelled):
        raise ValueError(f"examples[{labelled.index(False)}] has no labels, but others have")
    return rows, [_entry(example, "labels", i) for i, example in enumerate(examples)]


def _entry(example: Example, name: str, number: int) -> list[int]:
    if isinstance(example, Mapping):
        if name not in example:
            raise ValueError(f"examples[{number}] has no {name}; it has {', '.join(example)}")
        example = example[name]
    elif name != "input_ids":
        raise ValueError(f"examples[{number}] must be a mapping with input_ids and {name}")
    return example.tolist() if isinstance(example, torch.Tensor) else list(example)
