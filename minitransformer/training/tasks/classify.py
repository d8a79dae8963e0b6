"""Classification: a label for each text, or for each pair of texts."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import torch
from torch.nn import functional as F

from minitransformer.classifier import Classifier
from minitransformer.data import Batch
from minitransformer.data.collate import collate_classes
from minitransformer.data.files import InputError
from minitransformer.data.reading import Record
from minitransformer.data.source import (
    DataOptions,
    fingerprint_of,
    make_vocabulary,
    note_unknown,
    split_records,
)
from minitransformer.data.tokenization import AnyVocabulary, Tokenizer
from minitransformer.inference.answering import AnyModel, Row, rows_to_classify, with_segments
from minitransformer.training.tasks.task import (
    QUICK,
    Evaluation,
    Measured,
    Watch,
    chunks,
    exp,
    looked_at,
    one_line,
    shuffled,
    worst,
)

ROWS = 50  # texts in one batch of an evaluation


class Text(NamedTuple):
    """One example: what is read, and the label that is right."""

    text: str
    label: str
    second: str | None = None  # of a pair


class ClassifyTask:
    """A classifier that gives each text one of a few labels, from lines of label TAB text.

    A third of `--columns` is the second text of a pair. What is longer than the model is cut off.
    """

    name = "classify"
    model_class = Classifier
    reported = 2_000

    def __init__(
        self,
        options: DataOptions,
        max_length: int,
        vocabulary: AnyVocabulary | None = None,
        model: AnyModel | None = None,
    ):
        self.notes: list[str] = []
        self.max_length, self.model = max_length, model
        pairs = len(options.columns or ()) == 3
        names = ("label", "text", "second text") if pairs else ("label", "text")
        read = [list(map(_stripped, side)) for side in options.read(names, self.notes)]
        records, held_out = split_records(*read, _text, self.notes)
        self.vocabulary = vocabulary or make_vocabulary(
            options, map(_text, records), (), self.notes
        )
        self._check_vocabulary(pairs)
        note_unknown(self.vocabulary, "".join(set().union(*map(_text, records))), self.notes)
        learned = records if options.held_out else [*records, *held_out]
        self.labels = getattr(model, "names", None) or _labels(learned)
        _check_known(self.labels, [*records, *held_out])
        self.defaults = {"max_length": max_length, "batch_size": 32, "steps": 500, "style": "bert"}
        self.defaults["num_segments"] = 2 * pairs
        self.training = list(map(_example, records))
        self.held_out = list(map(_example, held_out)) or self.training
        self.fingerprint = fingerprint_of(self.labels, self.training, self.held_out)
        self._note_what_is_cut()

    def _check_vocabulary(self, pairs: bool) -> None:
        if pairs and not isinstance(self.vocabulary, Tokenizer):
            raise InputError("pairs of texts need a --tokenizer that knows how to join them")
        around = len(self.vocabulary.prefix) + len(self.vocabulary.suffix)
        if self.max_length <= around:
            raise InputError(f"--max-length must be {around + 1} or more")

    def _note_what_is_cut(self) -> None:
        examples = [*self.training, *([] if self.held_out is self.training else self.held_out)]
        rows = [row for chunk in chunks(examples, 1_000) for row in self._rows(chunk, None)]
        if long := sum(len(row.input_ids) > self.max_length for row in rows):
            self.notes.append(
                f"{long:,} of {len(rows):,} texts are longer than the {self.max_length} tokens "
                "that fit: their ends are not read"
            )

    def _rows(self, examples: Sequence[Text], most: int | None) -> list[Row]:
        texts = [(one.text,) if one.second is None else (one.text, one.second) for one in examples]
        rows = rows_to_classify(self.vocabulary, texts, most)
        return rows if self.model is None else with_segments(rows, self.model)

    def collate(self, examples: Sequence[Text]) -> Batch:
        rows = self._rows(examples, self.max_length)
        read = [
            {**row._asdict(), "label": self.labels.index(one.label)}
            for one, row in zip(examples, rows, strict=True)
        ]
        return collate_classes(read, pad_id=self.vocabulary.pad_id or 0)

    def batch(self, seed: int, step: int, size: int, packed: bool) -> Batch:
        """One text in each row: a row has one class."""
        return self.collate(shuffled(self.training, seed, step, size))

    def held_out_batches(self) -> list[Batch]:
        return [self.collate(chunk) for chunk in chunks(self.held_out[: self.reported], ROWS)]

    @torch.no_grad()
    def measured(
        self, model: Classifier, watch: Watch = iter, most: int | None = None, masked: bool = True
    ) -> tuple[list[Measured], list[int]]:
        """What the model makes of each text, and the class that it gives it.

        Without `masked` padding counts as text: what it would do were its mask forgotten.
        """
        found, classes = [], []
        for batch in watch(self.held_out_batches()[: most and -(-most // ROWS)]):
            batch = batch.to(next(model.parameters()).device)
            if not masked:
                batch = replace(batch, attention_mask=torch.ones_like(batch.attention_mask))
            logits = model(batch.input_ids, batch.attention_mask, batch.segment_ids)
            nats = F.cross_entropy(logits.float(), batch.labels, reduction="none")
            guessed = logits.argmax(-1)
            right = (guessed == batch.labels).int()
            found += [Measured(*row, 1) for row in zip(nats.tolist(), right.tolist(), strict=True)]
            classes += guessed.tolist()
        return found, classes

    def evaluate(
        self, model: Classifier, quick: bool = False, watch: Watch = iter
    ) -> dict[str, float]:
        measured, _ = self.measured(model, watch, QUICK if quick else None)
        count = len(measured)
        return {
            "accuracy": sum(one.right for one in measured) / count,
            "held_out_loss": sum(one.nats for one in measured) / count,
        }

    def report(self, model: Classifier, watch: Watch = iter) -> list[str]:
        measured, classes = self.measured(model, watch)
        examples = self.held_out[: self.reported]
        right = sum(one.right for one in measured)
        often, count = Counter(one.label for one in examples).most_common(1)[0]
        unmasked = self.measured(model, watch, masked=False)[1]
        changed = sum(a != b for a, b in zip(classes, unmasked, strict=True))
        lines = [
            f"accuracy on {looked_at(self)}: {right / len(measured):.2%} "
            f"({count / len(measured):.2%} are {often!r})",
            f"if padding counted as text, {changed:,} of {len(measured):,} answers would change",
            "",
            "examples:",
        ]
        for i in worst(measured, [one.right == 1 for one in measured])[:5]:
            said = self.labels[classes[i]]
            verdict = "" if measured[i].right else f"   wrong: {examples[i].label} was wanted"
            lines.append(f"  {one_line(examples[i].text, 60)} → {said}{verdict}")
        return lines

    def examine(self, model: Classifier, watch: Watch = iter) -> Evaluation:
        measured, classes = self.measured(model, watch)
        examples = self.held_out[: self.reported]
        right = [one.right == 1 for one in measured]
        loss = sum(one.nats for one in measured) / len(measured)
        results: dict[str, float] = {"texts": len(measured), "loss": loss, "perplexity": exp(loss)}
        results |= {"accuracy": sum(right) / len(right), "right": sum(right)}
        count = Counter(one.label for one in examples)
        good = Counter(one.label for one, ok in zip(examples, right, strict=True) if ok)
        results |= {f"recall_of_{label}": good[label] / count[label] for label in sorted(count)}
        lines = []
        for i in worst(measured, right)[: len(right) - sum(right)]:  # wrong ones come first
            answer = f"{self.labels[classes[i]]}, {examples[i].label} was wanted"
            text = one_line(examples[i].text, 60)
            lines.append(f"  {measured[i].nats:6.2f} nats   {text} → {answer}")
        return Evaluation(results, lines)


def _text(record: Record) -> str:
    return " ".join(record.values[1:])


def _stripped(record: Record) -> Record:
    return record._replace(values=(record.values[0].strip(), *record.values[1:]))


def _example(record: Record) -> Text:
    label, text, *second = record.values
    return Text(text, label, second[0] if second else None)


def _labels(records: Sequence[Record]) -> list[str]:
    """Refuses what can be no column of labels."""
    labels = sorted({one.values[0] for one in records})
    file = records[0].file
    if len(labels) < 2:
        raise InputError(f"{file}: the only label is {labels[0]!r}; expected two at least")
    if 2 * len(labels) > len(records) > 20:
        raise InputError(
            f"{file}: has {len(labels):,} different labels in {len(records):,} lines; expected "
            "label TAB text, or say where they stand: --columns LABEL,TEXT"
        )
    return labels


def _check_known(labels: Sequence[str], records: Sequence[Record]) -> None:
    known = set(labels)
    for one in records:
        if one.values[0] not in known:
            raise InputError(
                f"{one.file}:{one.line}: the label {one.values[0]!r} is none of those that are "
                f"known: {', '.join(labels[:20])}"
            )
