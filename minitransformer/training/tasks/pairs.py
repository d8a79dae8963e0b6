"""One text to another: pairs from files, and dates that are made."""

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from minitransformer.data import PairBatch, dates, pack_pairs, pad_pairs
from minitransformer.data.files import InputError
from minitransformer.data.held_out import normal_form, place
from minitransformer.data.reading import Record
from minitransformer.data.source import (
    DataOptions,
    fingerprint_of,
    make_vocabulary,
    needing,
    note_unknown,
    split_records,
)
from minitransformer.data.tokenization import AnyVocabulary
from minitransformer.data.vocabulary import Vocabulary
from minitransformer.inference.answering import ROWS, AnyModel, answer, source_rows, target_rows
from minitransformer.models import EncoderDecoder
from minitransformer.training.tasks.task import (
    QUICK,
    Evaluation,
    Watch,
    chunks,
    exp,
    looked_at,
    measure,
    one_line,
    shuffled,
    worst,
)


class Pair(NamedTuple):
    source: str
    targets: tuple[str, ...]  # each of them is right; the first is what is learned
    group: str = ""  # what results are broken down by: a date's language

    @property
    def target(self) -> str:
        return self.targets[0]


class PairsTask:
    """An encoder-decoder that turns one text into another, from lines of source TAB target.

    Every 20th source is held out, by its hash. Of these the model writes so many targets, a token
    at a time, that no evaluation takes minutes.
    """

    name = "pairs"
    model_class = EncoderDecoder
    quick, reported = 100, 500  # held-out pairs looked at while training goes on, and after it

    def __init__(
        self,
        options: DataOptions,
        max_length: int,
        vocabulary: AnyVocabulary | None = None,
        model: AnyModel | None = None,
    ):
        self.notes: list[str] = []
        records, held_out = split_records(
            *options.read(("source", "target"), self.notes), _source, self.notes
        )
        self.vocabulary = vocabulary or make_vocabulary(
            options, (text for one in records for text in one.values), ("bos", "eos"), self.notes
        )
        needing(self.vocabulary, ("eos",))
        note_unknown(self.vocabulary, _characters(records), self.notes)
        self.bos_id = self.vocabulary.bos_id if model is None else model.config.bos_id
        self.max_length = max_length
        self.advice = _advice(max_length, model)
        self.defaults = {"max_length": max_length, "bos_id": self.bos_id}
        records, held_out = self._fitting(records, held_out, options.skip_long)
        records = self._without_targets_of(records, held_out)
        self.training = [Pair(one.values[0], one.values[1:]) for one in records]
        self.held_out = _by_source(held_out) or self.training
        self.fingerprint = fingerprint_of(self.training, self.held_out)

    def _fitting(
        self, records: list[Record], held_out: list[Record], skip_long: bool
    ) -> list[list[Record]]:
        """Without the pairs that are too long; refuse them unless the user has said so."""
        kept, said = [], []
        for side in (records, held_out):
            faults = self._too_long(side)
            kept.append([one for one, fault in zip(side, faults, strict=True) if not fault])
            said += filter(None, faults)
        if not said:
            return kept
        count = f"{len(said):,} of {len(records) + len(held_out):,} pairs are too long"
        if not skip_long:
            raise InputError(f"{said[0]} ({count}): {self.advice}")
        used = kept[0] if records else kept[1]
        if not used:
            raise InputError(f"{said[0]}: every pair is too long")
        self.notes.append(f"{count} and left out, the first: {said[0]}")
        return kept

    def _too_long(self, records: list[Record]) -> list[str]:
        """What is to be said against each of them, if anything is."""
        unit = "characters" if isinstance(self.vocabulary, Vocabulary) else "tokens"
        sources = source_rows(self.vocabulary, [one.values[0] for one in records])
        targets = self._targets([one.values[1] for one in records])
        faults = []
        for record, source, target in zip(records, sources, targets, strict=True):
            side, ids, room = "source", source, self.max_length
            if len(source) <= room:
                side, ids, room = "target", target, self.max_length - 1
            told = f"the {side} has {len(ids)} {unit}, more than the {room} that fit"
            faults.append(f"{record.file}:{record.line}: {told}" if len(ids) > room else "")
        return faults

    def _without_targets_of(self, records: list[Record], held_out: list[Record]) -> list[Record]:
        """Set aside what has a target that is held out, too, unless targets are few and repeat."""
        unseen = {normal_form(one.values[1]) for one in held_out}
        kept = [one for one in records if normal_form(one.values[1]) not in unseen]
        aside = len(records) - len(kept)
        if 10 * aside > len(records):
            self.notes.append(
                f"{aside:,} of {len(records):,} pairs to train on have a target that a held-out "
                "pair has, too: so many stay, only sources are kept apart"
            )
            return records
        if aside:
            self.notes.append(f"{aside:,} pairs are set aside: their targets are held out")
        return kept

    def _targets(self, texts: Sequence[str]) -> list[list[int]]:
        return target_rows(self.vocabulary, texts, self.bos_id)

    def examples(self, seed: int, step: int, size: int) -> list[Pair]:
        return shuffled(self.training, seed, step, size)

    def batch(self, seed: int, step: int, size: int, packed: bool) -> PairBatch:
        return self.collate(self.examples(seed, step, size), packed)

    def collate(self, pairs: Sequence[Pair], packed: bool = False) -> PairBatch:
        sources = source_rows(self.vocabulary, [pair.source for pair in pairs])
        targets = self._targets([pair.target for pair in pairs])
        ids = {"bos_id": self.bos_id, "eos_id": self.vocabulary.eos_id}
        ids["pad_id"] = self.vocabulary.pad_id or 0
        if not packed:
            return pad_pairs(sources, targets, **ids)
        return pack_pairs(sources, targets, None, **ids)

    def held_out_batches(self) -> list[PairBatch]:
        return [self.collate(chunk) for chunk in chunks(self.held_out[: self.reported], ROWS)]

    def evaluate(
        self, model: AnyModel, quick: bool = False, watch: Watch = iter
    ) -> dict[str, float]:
        pairs = self.held_out[: self.quick if quick else self.reported]
        answers = self.answers(model, pairs, watch)
        right = sum(answer in pair.targets for answer, pair in zip(answers, pairs, strict=True))
        return {"exact_match": right / len(pairs)}

    def answers(self, model: AnyModel, pairs: Sequence[Pair], watch: Watch = iter) -> list[str]:
        longest = max(map(len, self._targets([pair.target for pair in pairs])))
        limit = min(longest + 2, model.config.max_length)
        written = []
        for chunk in watch(chunks([pair.source for pair in pairs], ROWS)):
            written += answer(model, self.vocabulary, chunk, limit)
        return written

    def report(self, model: AnyModel, watch: Watch = iter) -> list[str]:
        pairs = self.held_out[: self.reported]
        answers = self.answers(model, pairs, watch)
        right = [a in pair.targets for a, pair in zip(answers, pairs, strict=True)]
        return [
            f"exact match on {looked_at(self)}: {sum(right) / len(right):.2%}",
            *_by_group(pairs, right),
            "",
            "examples:",
            *_shown(pairs, answers, right),
        ]

    def examine(self, model: AnyModel, watch: Watch = iter) -> Evaluation:
        pairs = self.held_out[: self.reported]
        answers = self.answers(model, pairs, watch)
        right = [a in pair.targets for a, pair in zip(answers, pairs, strict=True)]
        batches = watch(self.held_out_batches())
        measured = [one for batch in batches for one in measure(model, batch)]
        nats, guessed, labels = map(sum, zip(*measured, strict=True))
        results: dict[str, float] = {"sources": len(pairs), "tokens_guessed": labels}
        results["loss"], results["perplexity"] = nats / labels, exp(nats / labels)
        results["accuracy"] = guessed / labels
        results["exact_match"], results["exact_matches"] = sum(right) / len(pairs), sum(right)
        results |= _chrf(answers, pairs)
        lines = []
        for i in worst(measured, right)[: right.count(False)]:  # wrong ones come first
            wanted = " or ".join(pairs[i].targets[:3])
            lines += [
                f"  {one_line(pairs[i].source)}",
                f"    → {one_line(answers[i])}",
                f"      {one_line(wanted)} was wanted",
            ]
        return Evaluation(results, lines)


class DatesTask(PairsTask):
    """Dates as people write them, in many languages, to ISO 8601; see `dates.py`."""

    name = "dates"
    quick, reported = QUICK, 2_000

    def __init__(self, max_length: int = 64, vocabulary: AnyVocabulary | None = None):
        longest = dates.longest_text()
        if max_length < longest:
            raise InputError(f"--max-length must be {longest} or more for the dates")
        self.max_length = max_length
        self.defaults = {"d_model": 96, "num_layers": 1, "max_length": max_length}
        self.defaults |= {"optimizer": "muon", "learning_rate": 6e-3, "steps": 500}
        self.vocabulary, self.notes = Vocabulary(dates.alphabet()), []
        if vocabulary and getattr(vocabulary, "tokens", None) != self.vocabulary.tokens:
            raise InputError("--task dates: the model has another vocabulary than the dates")
        self.bos_id = self.vocabulary.bos_id
        self.held_out = [_pair(*example) for example in dates.held_out_examples()]
        self.training = []  # made as needed
        self.fingerprint = fingerprint_of(self.vocabulary.tokens, self.held_out)

    def examples(self, seed: int, step: int, size: int) -> list[Pair]:
        return [_pair(*example) for example in dates.training_examples(seed, step, size)]


def _chrf(answers: list[str], pairs: Sequence[Pair]) -> dict[str, float]:
    """Agreement of character n-grams, from 0 to 100 (Popović 2015), by sacrebleu if it is there."""
    try:
        import sacrebleu
    except ImportError:
        return {}
    most = max(len(pair.targets) for pair in pairs)
    padded = [[*pair.targets, *[None] * (most - len(pair.targets))] for pair in pairs]
    references = [list(column) for column in zip(*padded, strict=True)]
    return {"chrf": sacrebleu.corpus_chrf(answers, references).score}


def _pair(source: str, target: str, group: str) -> Pair:
    return Pair(source, (target,), group)


def _source(record: Record) -> str:
    return record.values[0]


def _advice(max_length: int, model: AnyModel | None) -> str:
    """What to do about pairs that are too long."""
    may_be_longer = model is None or max_length < model.config.max_length
    more = ", a larger --max-length takes it in" if may_be_longer else ""
    return f"--skip-long leaves out what is too long{more}"


def _characters(records: Sequence[Record]) -> str:
    return "".join(set().union(*(text for one in records for text in one.values)))


def _by_source(records: Sequence[Record]) -> list[Pair]:
    """A pair for each source, with all of its targets."""
    targets: dict[str, list[str]] = {}
    for record in sorted(records, key=lambda one: place(one.values[0])):
        targets.setdefault(record.values[0], []).append(record.values[1])
    return [Pair(source, tuple(dict.fromkeys(found))) for source, found in targets.items()]


def _shown(pairs: Sequence[Pair], answers: list[str], right: list[bool]) -> Iterator[str]:
    """Up to five wrong answers, then right ones: two, or as many as are missing to five."""
    order = sorted(range(len(pairs)), key=lambda i: right[i])
    mistakes = right.count(False)
    shown = order[: min(5, mistakes)] + order[mistakes:][: max(5 - mistakes, 2)]
    width = max(len(pairs[i].source) for i in shown)
    for i in shown:
        wanted = " or ".join(pairs[i].targets[:3])
        verdict = "" if right[i] else f"   wrong: {wanted} was wanted"
        yield f"  {pairs[i].source:{width}} → {answers[i]}{verdict}"


def _by_group(pairs: Sequence[Pair], right: Sequence[bool]) -> list[str]:
    """Exact match of each group, six to a line."""
    total = Counter(pair.group for pair in pairs)
    if len(total) == 1:
        return []
    good = Counter(pair.group for pair, ok in zip(pairs, right, strict=True) if ok)
    cells = [f"{group:>3} {good[group] / total[group]:7.2%}" for group in sorted(total)]
    return ["  " + "   ".join(row) for row in chunks(cells, 7)]
