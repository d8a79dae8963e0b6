"""What a task is: a source of batches, a vocabulary, and a measure of success.

A task is anything with the attributes of `Task`. Its batches are a function of (seed, step), so a
run can be repeated, or resumed in the middle.
"""

import functools
import hashlib
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch

from minitransformer.data import Batch, PairBatch
from minitransformer.data.files import InputError
from minitransformer.data.held_out import split, without
from minitransformer.data.reading import Record, read_records
from minitransformer.data.tokenization import AnyVocabulary, Tokenizer
from minitransformer.data.vocabulary import Vocabulary
from minitransformer.inference.answering import AnyModel
from minitransformer.inference.record import record_attention
from minitransformer.kernels.linear_cross_entropy import head_loss
from minitransformer.loss import IGNORE_INDEX

Watch = Callable[[Sequence], Iterable]  # sees the batches of an evaluation go by: a progress bar
QUICK = 500  # held-out examples looked at while training goes on
SAMPLE = 50_000_000  # characters of text that a tokenizer is trained on, at most


class Task(Protocol):
    name: str
    model_class: type[AnyModel]
    vocabulary: AnyVocabulary
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

    def examine(self, model: AnyModel, watch: Watch = iter) -> "Evaluation":
        """All that can be said of the held-out examples."""
        ...


@dataclass(frozen=True)
class DataOptions:
    """Which data, and how it is read: what the command line says and a run remembers."""

    data: tuple[str, ...] = ()  # files and folders; none: the task's own
    columns: tuple[str, ...] | None = None  # of the files, by number or name
    held_out: tuple[str, ...] | None = None  # files; None: every 20th text by its hash
    skip_long: bool = False  # leave out pairs that do not fit?
    tokenizer: str = "characters"  # or bpe, wordpiece, or a tokenizer.json
    vocab_size: int = 4_000  # of a tokenizer that is trained

    def __post_init__(self):
        for name in ("data", "columns", "held_out"):
            value = getattr(self, name)
            if isinstance(value, str | list):
                value = (value,) if isinstance(value, str) else tuple(value)
                object.__setattr__(self, name, value)

    def read(self, names: Sequence[str], notes: list[str]) -> tuple[list[Record], list[Record]]:
        """The records to train on, and those held out."""
        sides = []
        for paths in (self.data, self.held_out or ()):
            reading = read_records(paths, names, self.columns)
            notes += reading.notes
            sides.append(reading.records)
        return sides[0], sides[1]


def split_records(
    records: Sequence[Record],
    held_out: Sequence[Record],
    text: Callable[[Record], str],
    notes: list[str],
) -> tuple[list[Record], list[Record]]:
    """The records to train on and those held out, by hash or as the user has them, with no text on
    both sides."""
    if not held_out:
        return split(records, text)
    unseen = without(records, text, held_out)
    if len(unseen) < len(records):
        notes.append(
            f"{len(records) - len(unseen):,} of {len(records):,} examples are held out, too: they "
            "are set aside"
        )
    if records and not unseen:
        raise InputError("--held-out: holds every example of --data: there is none to train on")
    return unseen, list(held_out)


def make_vocabulary(
    options: DataOptions, texts: Iterable[str], needed: Sequence[str], notes: list[str]
) -> AnyVocabulary:
    """The characters of the texts, a tokenizer trained on them, or one that is there.

    Raises InputError where it lacks a token that is `needed`: bos, eos or mask.
    """
    if options.tokenizer == "characters":
        return Vocabulary(set().union(*texts))
    if options.tokenizer not in ("bpe", "wordpiece"):
        return needing(Tokenizer.load(options.tokenizer), needed, options.tokenizer)
    sample, size = [], 0
    for text in texts:
        if size > SAMPLE:
            notes.append(
                f"the tokenizer is trained on the first {size // 10**6} million characters"
            )
            break
        sample.append(text)
        size += len(text)
    try:
        tokenizer = Tokenizer.train(sample, options.vocab_size, options.tokenizer)
    except ValueError as error:
        raise InputError(str(error).replace("vocab_size", "--vocab-size")) from None
    some = sample[:1000]
    tokens = sum(map(len, tokenizer.encode(some, add_special=False)))
    notes.append(
        f"{options.tokenizer} tokenizer: {len(tokenizer):,} tokens, which stand for "
        f"{sum(map(len, some)) / max(tokens, 1):.1f} characters on average"
    )
    return tokenizer


def needing(vocabulary: AnyVocabulary, needed: Sequence[str], where: str) -> AnyVocabulary:
    for role in needed:
        if getattr(vocabulary, f"{role}_id") is None:
            raise InputError(
                f"{where}: the tokenizer has no token for {role}, which the task needs"
            )
    return vocabulary


class Evaluation(NamedTuple):
    """What came out on all examples, and lines on those where it went worst."""

    results: dict[str, float]
    worst: list[str]


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


def fingerprint_of(*parts: Iterable[Any]) -> str:
    """A sha256 of texts and numbers."""
    digest = hashlib.sha256()
    for part in parts:
        for value in part:
            digest.update(repr(value).encode("utf-8", "surrogatepass") + b"\n")
        digest.update(b"\0")
    return digest.hexdigest()


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
