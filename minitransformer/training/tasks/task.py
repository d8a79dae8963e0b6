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
from minitransformer.kernels.linear_cross_entropy import head_loss, label_positions
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
    """Of each row. The head is run row by row: the logits of a batch can be gigabytes.

    The labels stay on the CPU, and numbers are read when a batch is through: each makes a GPU wait.
    """
    there = batch.to(next(model.parameters()).device)
    if isinstance(there, PairBatch):
        memory = model.encode(there.source_ids, there.source_mask)
        hidden = model.decode(there.target_ids, there.target_mask, memory, there.source_mask)
    else:
        hidden = model.encode(there.input_ids, there.attention_mask, there.segment_ids)
    nats, right = [], []
    for row, labels in zip(hidden, batch.labels, strict=True):
        at = label_positions(labels, row.shape[:-1])
        guessed = model.head(row[at.to(row.device, non_blocking=True)]).argmax(-1)
        wanted = labels[at].to(row.device, non_blocking=True)
        nats.append(head_loss(model.head, row, labels, 1))
        right.append((guessed == wanted).sum())
    counts = (batch.labels != IGNORE_INDEX).sum(dim=1)
    numbers = (torch.stack(nats), torch.stack(right), counts)
    yield from map(Measured, *(x.tolist() for x in numbers))


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
    device = next(model.parameters()).device
    largest, count = torch.zeros((), device=device), 0
    for batch in batches:
        there = batch.to(device)
        with record_attention(model) as maps:
            model.loss(**{**there, "labels": batch.labels})
        for name, weights in maps.items():  # (B,H,Q,K)
            if isinstance(batch, Batch):
                mask = "attention_mask"
            else:
                reads_source = name.startswith("encoder") or name.endswith("cross_attention")
                mask = "source_mask" if reads_source else "target_mask"
            padded = (there[mask] == 0)[:, None, None]
            largest = torch.maximum(largest, weights.masked_fill(~padded, 0.0).max())
            count += int((batch[mask] == 0).sum()) * weights[0, :, :, 0].numel()
    return largest.item(), count


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
