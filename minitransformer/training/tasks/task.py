"""What a task is: a source of batches, a vocabulary, and a measure of success.

A task is anything with the attributes of `Task`. Its batches are a function of (seed, step), so a
run can be repeated, or resumed in the middle.
"""

import functools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch

from minitransformer.data import Batch, PairBatch
from minitransformer.data.tokenization import AnyVocabulary
from minitransformer.inference.answering import AnyModel
from minitransformer.inference.record import record_attention
from minitransformer.kernels.linear_cross_entropy import head_loss
from minitransformer.loss import IGNORE_INDEX

Watch = Callable[[Sequence], Iterable]  # sees the batches of an evaluation go by: a progress bar
QUICK = 500  # held-out examples looked at while training goes on


class Evaluation(NamedTuple):
    """What came out on all examples, and lines on those where it went worst."""

    results: dict[str, float]
    worst: list[str]


class Task(Protocol):
    name: str
    model_class: type[AnyModel]
    vocabulary: AnyVocabulary
    max_length: int  # tokens of an example, at most
    defaults: dict[str, Any]  # what differs from the defaults of Config and Settings
    training: Sequence[Any]
    held_out: Sequence[Any]  # examples that training never sees
    reported: int  # of these are looked at when training has ended, at most
    notes: list[str]  # what is to be said about the data
    fingerprint: str  # of the data: who goes on with a training must have the same

    def batch(self, seed: int, step: int, size: int, packed: bool) -> Batch | PairBatch:
        """`size` examples, several in a row where `packed`."""
        ...

    def held_out_batches(self) -> list[Batch] | list[PairBatch]:
        """The held-out examples, padded."""
        ...

    def evaluate(
        self, model: AnyModel, quick: bool = False, watch: Watch = iter
    ) -> dict[str, float]:
        """Named results on held-out examples, the one to watch first."""
        ...

    def report(self, model: AnyModel, watch: Watch = iter) -> list[str]:
        """Lines to print when training has ended."""
        ...

    def examine(self, model: AnyModel, watch: Watch = iter) -> Evaluation:
        """All that can be said of the held-out examples."""
        ...


class Measured(NamedTuple):
    """What a model makes of one example: -log p of its labels, in nats, and how many it guesses."""

    nats: float
    right: int
    labels: int


@torch.no_grad()
def measure(model: AnyModel, batch: Batch | PairBatch) -> Iterator[Measured]:
    """Of each row. The head is run row by row: the logits of a batch can be gigabytes."""
    batch = batch.to(next(model.parameters()).device)
    if isinstance(batch, PairBatch):
        memory = model.encode(batch.source_ids, batch.source_mask)
        hidden = model.decode(batch.target_ids, batch.target_mask, memory, batch.source_mask)
    else:
        hidden = model.encode(batch.input_ids, batch.attention_mask, batch.segment_ids)
    for row, labels in zip(hidden, batch.labels, strict=True):
        counts = labels != IGNORE_INDEX
        nats = head_loss(model.head, row, labels, 1).item()
        right = model.head(row[counts]).argmax(-1) == labels[counts]
        yield Measured(nats, int(right.sum()), int(counts.sum()))


def worst(measured: Sequence[Measured], right: Sequence[bool] | None = None) -> list[int]:
    """The indices of the ten examples with the largest loss a label, wrong ones first."""
    if right is None:
        right = [False] * len(measured)
    loss = [one.nats / max(one.labels, 1) for one in measured]
    return sorted(range(len(loss)), key=lambda i: (right[i], -loss[i]))[:10]


def one_line(text: str, length: int = 80) -> str:
    text = " ".join(text.split())
    return text if len(text) <= length else text[: length - 1] + "…"


def exp(x: float) -> float:
    return math.exp(x) if x < 700 else math.inf


def looked_at(task: Task) -> str:
    """On which examples a report is, in words."""
    count, looked = len(task.held_out), min(len(task.held_out), task.reported)
    of = f"{looked:,} of {count:,}" if looked < count else f"{count:,}"
    what = "training" if task.held_out is task.training else "held-out"
    return f"{of} {what} examples"


@torch.no_grad()
def largest_padding_weight(model: AnyModel, batches: Iterable[Batch] | Iterable[PairBatch]):
    """The largest attention weight on a padded key, over all layers, heads, queries and batches.

    Returns the weight, and how many weights on padded keys were looked at.
    """
    largest, count = 0.0, 0
    for batch in batches:
        batch = batch.to(next(model.parameters()).device)
        with record_attention(model) as maps:
            model.loss(**batch)
        for name, weights in maps.items():
            if isinstance(batch, Batch):
                key_mask = batch.attention_mask
            else:
                reads_source = name.startswith("encoder") or name.endswith("cross_attention")
                key_mask = batch.source_mask if reads_source else batch.target_mask
            on_padding = weights.transpose(1, 3)[key_mask == 0]  # (padded keys, Q, H)
            count += on_padding.numel()
            if on_padding.numel():
                largest = torch.maximum(torch.tensor(largest), on_padding.max().cpu()).item()
    return largest, count


def shuffled(items: Sequence, seed: int, step: int, size: int) -> list:
    """The items of one step: epoch after epoch, each in an order of its own."""
    chosen = []
    for i in range(step * size, (step + 1) * size):
        epoch, place = divmod(i, len(items))
        chosen.append(items[int(_order(len(items), seed, epoch)[place])])
    return chosen


@functools.lru_cache(maxsize=2)
def _order(count: int, seed: int, epoch: int) -> np.ndarray:
    return np.random.default_rng([seed, epoch]).permutation(count)


def chunks(items: Sequence, size: int) -> list[Sequence]:
    return [items[start : start + size] for start in range(0, len(items), size)]
