"""What can be trained: a source of batches, a vocabulary, and a measure of success.

A task is anything with the attributes of `Task`. Its batches are a function of (seed, step), so a
run can be repeated, or resumed in the middle.
"""

import functools
import hashlib
import json
import random
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple, Protocol

import torch

from minitransformer.data import (
    Batch,
    PairBatch,
    dates,
    mask_tokens,
    next_token_labels,
    pack,
    pack_pairs,
    pad,
    pad_pairs,
)
from minitransformer.data.files import InputError, read_documents, read_pairs, split_documents
from minitransformer.data.vocabulary import BOS, EOS, MASK, PAD, SPECIAL, Vocabulary
from minitransformer.inference.answering import ROWS, AnyModel, answer
from minitransformer.inference.record import record_attention
from minitransformer.kernels.linear_cross_entropy import head_loss
from minitransformer.loss import IGNORE_INDEX
from minitransformer.models import DecoderOnly, EncoderDecoder, EncoderOnly

QUICK = 500  # held-out examples looked at while training goes on

Watch = Callable[[Sequence], Iterable]  # sees the batches of an evaluation go by: a progress bar


class Task(Protocol):
    name: str
    model_class: type[AnyModel]
    vocabulary: Vocabulary
    defaults: dict[str, Any]  # what differs from the defaults of Config and Settings
    training: Sequence[Any]
    held_out: Sequence[Any]  # examples that training never sees
    reported: int  # of these are looked at when training has ended, at most

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


class Pair(NamedTuple):
    source: str
    target: str
    group: str = ""  # what results are broken down by: a date's language


class PairsTask:
    """An encoder-decoder that turns one text into another, from lines of source TAB target.

    Every 20th distinct source is held out. Of these the model writes so many targets, a character
    at a time, that no evaluation takes minutes.
    """

    name = "pairs"
    model_class = EncoderDecoder
    quick, reported = 100, 500  # held-out pairs looked at while training goes on, and after it

    def __init__(self, path: str, max_length: int):
        self.defaults = {"max_length": max_length}
        pairs = [Pair(*pair) for pair in read_pairs(path, max_length, max_length - 1)]
        sources = list(dict.fromkeys(pair.source for pair in pairs))
        held_out = set(sources[19::20])
        self.training = [pair for pair in pairs if pair.source not in held_out]
        self.held_out = [pair for pair in pairs if pair.source in held_out] or self.training
        if held_out:  # the first of them are looked at: in no order, as files are sorted by length
            random.Random(0).shuffle(self.held_out)
        self.vocabulary = Vocabulary("".join(pair.source + pair.target for pair in pairs))

    def examples(self, seed: int, step: int, size: int) -> list[Pair]:
        return _shuffled(self.training, seed, step, size)

    def batch(self, seed: int, step: int, size: int, packed: bool) -> PairBatch:
        return self.collate(self.examples(seed, step, size), packed)

    def collate(self, pairs: Sequence[Pair], packed: bool = False) -> PairBatch:
        sources = [self.vocabulary.encode(pair.source) for pair in pairs]
        targets = [self.vocabulary.encode(pair.target) for pair in pairs]
        if not packed:
            return pad_pairs(sources, targets, BOS, EOS, PAD)
        length = max(64, 2 * max(map(len, sources)))  # longer ones are hardly fuller (measured)
        return pack_pairs(sources, targets, length, BOS, EOS, PAD)

    def held_out_batches(self) -> list[PairBatch]:
        return [self.collate(chunk) for chunk in _chunks(self.held_out[: self.reported], ROWS)]

    def evaluate(
        self, model: AnyModel, quick: bool = False, watch: Watch = iter
    ) -> dict[str, float]:
        pairs = self.held_out[: self.quick if quick else self.reported]
        answers = self.answers(model, pairs, watch)
        right = sum(answer == pair.target for answer, pair in zip(answers, pairs, strict=True))
        return {"exact_match": right / len(pairs)}

    def answers(self, model: AnyModel, pairs: Sequence[Pair], watch: Watch = iter) -> list[str]:
        longest = max(len(pair.target) for pair in pairs)
        limit = min(longest + 2, model.config.max_length)
        written = []
        for chunk in watch(_chunks([pair.source for pair in pairs], ROWS)):
            written += answer(model, self.vocabulary, chunk, limit)
        return written

    def report(self, model: AnyModel, watch: Watch = iter) -> list[str]:
        pairs = self.held_out[: self.reported]
        answers = self.answers(model, pairs, watch)
        right = [a == pair.target for a, pair in zip(answers, pairs, strict=True)]
        mistakes = [i for i, ok in enumerate(right) if not ok]
        known = [i for i, ok in enumerate(right) if ok]
        lines = [f"exact match on {looked_at(self)}: {sum(right) / len(right):.2%}"]
        lines += _by_group(pairs, right)
        lines += ["", "examples:"]
        width = max(len(pairs[i].source) for i in (mistakes[:5] + known[:5]))
        for i in mistakes[:5] + known[: max(5 - len(mistakes), 2)]:
            pair, verdict = pairs[i], "" if right[i] else "   wrong: "
            wanted = "" if right[i] else pair.target + " was wanted"
            lines.append(f"  {pair.source:{width}} → {answers[i]}{verdict}{wanted}")
        return lines


class DatesTask(PairsTask):
    """Dates as people write them, in many languages, to ISO 8601; see `dates.py`."""

    name = "dates"
    quick, reported = QUICK, 2_000

    def __init__(self, max_length: int = 64):
        longest = dates.longest_text()
        if max_length < longest:
            raise InputError(f"--max-length must be {longest} or more for the dates")
        self.defaults = {"d_model": 96, "num_layers": 1, "max_length": max_length, "steps": 1_000}
        self.vocabulary = Vocabulary(dates.alphabet())
        self.held_out = [Pair(*example) for example in dates.held_out_examples()]
        self.training = []  # made as needed

    def examples(self, seed: int, step: int, size: int) -> list[Pair]:
        return [Pair(*example) for example in dates.training_examples(seed, step, size)]


class LanguageModelTask:
    """A decoder that continues prose. Every 20th paragraph is held out."""

    name = "lm"
    model_class: type[AnyModel] = DecoderOnly
    reported = QUICK

    def __init__(self, path: str | None, max_length: int):
        self.defaults = {
            "style": "llama",  # on so little text rotary positions learn several times faster
            "max_length": max_length,
            "batch_size": 24,
            "steps": 600,
        }
        room = max_length - 2  # for <bos> and <eos>
        if room < 1:
            raise InputError(f"--max-length must be 3 or more, got {max_length}")
        texts = python_prose(room) if path is None else read_documents(path, room)
        held_out = texts[19::20]
        self.training = [text for i, text in enumerate(texts) if i % 20 != 19]
        self.held_out = held_out or self.training
        self.vocabulary = Vocabulary("".join(texts))
        self.row_length = min(max_length, max(map(len, texts)) + 2)

    def rows(self, texts: Sequence[str]) -> list[list[int]]:
        return [[BOS, *self.vocabulary.encode(text), EOS] for text in texts]

    def batch(self, seed: int, step: int, size: int, packed: bool) -> Batch:
        rows = self.rows(_shuffled(self.training, seed, step, size))
        batch = pack(rows, self.row_length, PAD) if packed else pad(rows, PAD)
        return self.with_labels(batch, torch.Generator().manual_seed(seed * 1_000_003 + step))

    def with_labels(self, batch: Batch, generator: torch.Generator) -> Batch:
        labels = next_token_labels(batch.input_ids, batch.attention_mask)
        return Batch(batch.input_ids, batch.attention_mask, labels)

    def held_out_batches(self) -> list[Batch]:
        chosen = torch.Generator().manual_seed(0)  # the same tokens are hidden each time
        return [
            self.with_labels(pad(self.rows(chunk), PAD), chosen)
            for chunk in _chunks(self.held_out[: self.reported], 50)
        ]

    @torch.no_grad()
    def evaluate(
        self, model: AnyModel, quick: bool = False, watch: Watch = iter
    ) -> dict[str, float]:
        total = count = right = 0.0
        for batch in watch(self.held_out_batches()):
            batch = batch.to(next(model.parameters()).device)
            hidden = model.encode(batch.input_ids, batch.attention_mask)
            counts = batch.labels != IGNORE_INDEX
            total += head_loss(model.head, hidden, batch.labels, 1).item()
            right += (model.head(hidden[counts]).argmax(-1) == batch.labels[counts]).sum().item()
            count += counts.sum().item()
        return {"held_out_loss": total / max(count, 1), "accuracy": right / max(count, 1)}

    def report(self, model: AnyModel, watch: Watch = iter) -> list[str]:
        result = self.evaluate(model, watch=watch)
        what = "training" if self.held_out is self.training else "held-out"
        return [
            f"{what} loss: {result['held_out_loss']:.3f} nats a character "
            f"({result['held_out_loss'] / 0.6931:.2f} bits); "
            f"{result['accuracy']:.1%} of characters guessed right"
        ]


class MaskedLanguageModelTask(LanguageModelTask):
    """An encoder that finds hidden characters. Every 20th paragraph is held out."""

    name = "mlm"
    model_class = EncoderOnly

    def with_labels(self, batch: Batch, generator: torch.Generator) -> Batch:
        ids, labels = mask_tokens(
            batch.input_ids,
            batch.attention_mask,
            MASK,
            len(self.vocabulary),
            range(len(SPECIAL)),
            generator=generator,
        )
        return Batch(ids, batch.attention_mask, labels)


def make_task(name: str, path: str | None, max_length: int | None) -> Task:
    """Raises InputError for data that cannot be used."""
    if name == "dates":
        if path is not None:
            raise InputError("--data: the dates are made; to train on a file add --task pairs")
        return DatesTask(max_length or 64)
    if name == "pairs":
        if path is None:
            raise InputError("--task pairs needs --data FILE.tsv with lines of source TAB target")
        return PairsTask(path, max_length or 256)
    return {"lm": LanguageModelTask, "mlm": MaskedLanguageModelTask}[name](path, max_length or 256)


def python_prose(max_length: int) -> list[str]:
    """The language reference that CPython carries: some 700 KB of English on every machine."""
    from pydoc_data.topics import topics

    lines = "\n\n".join(topics[name] for name in sorted(topics)).split("\n")
    return split_documents([line for line in lines if len(line) <= max_length], max_length)


def looked_at(task: Task) -> str:
    """On which examples a report is, in words."""
    count, looked = len(task.held_out), min(len(task.held_out), task.reported)
    of = f"{looked:,} of {count:,}" if looked < count else f"{count:,}"
    what = "training" if task.held_out is task.training else "held-out"
    return f"{of} {what} examples"


def fingerprint(task: Task) -> str:
    """The sha256 of the data: who goes on with a training must have the same."""
    examples = [task.vocabulary.characters, list(task.training), list(task.held_out)]
    return hashlib.sha256(json.dumps(examples).encode()).hexdigest()


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


def _shuffled(items: Sequence, seed: int, step: int, size: int) -> list:
    """The items of one step: epoch after epoch, each in an order of its own."""
    chosen = []
    for i in range(step * size, (step + 1) * size):
        epoch, place = divmod(i, len(items))
        chosen.append(items[_order(len(items), seed, epoch)[place]])
    return chosen


@functools.lru_cache(maxsize=2)
def _order(count: int, seed: int, epoch: int) -> list[int]:
    return random.Random(f"{seed} {epoch}").sample(range(count), count)


def _by_group(pairs: Sequence[Pair], right: Sequence[bool]) -> list[str]:
    """Exact match of each group, six to a line."""
    total = Counter(pair.group for pair in pairs)
    if len(total) == 1:
        return []
    good = Counter(pair.group for pair, ok in zip(pairs, right, strict=True) if ok)
    cells = [f"{group:>3} {good[group] / total[group]:7.2%}" for group in sorted(total)]
    return ["  " + "   ".join(row) for row in _chunks(cells, 7)]


def _chunks(items: Sequence, size: int) -> list[Sequence]:
    return [items[start : start + size] for start in range(0, len(items), size)]
