"""Classification: a label for each text, or for each pair of texts."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch.nn import functional as F

from minitransformer.classifier import Classifier
from minitransformer.data import Batch
from minitransformer.data.collate import collate_classes
from minitransformer.data.files import InputError
from minitransformer.data.held_out import fingerprint_of
from minitransformer.data.reading import Record
from minitransformer.data.source import DataOptions, make_vocabulary, needing, split_records
from minitransformer.data.tokenization import AnyVocabulary, Tokenizer
from minitransformer.inference.answering import rows_to_classify
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
        bos_id: int | None = None,
        labels: Sequence[str] | None = None,
    ):
        self.notes: list[str] = []
        self.max_length = max_length
        pairs = options.columns is not None and len(options.columns) == 3
        names = ("label", "text", "second text") if pairs else ("label", "text")
        records, held_out = split_records(*options.read(names, self.notes), _text, self.notes)
        self.vocabulary = vocabulary or make_vocabulary(
            options, (text for one in records for text in one.values[1:]), (), self.notes
        )
        needing(self.vocabulary, (), options.tokenizer)
        if pairs and not isinstance(self.vocabulary, Tokenizer):
            raise InputError("pairs of texts need a --tokenizer that knows how to join them")
        self.labels = list(labels or sorted({one.values[0] for one in records}))
        self._check_labels(records, held_out)
        self.defaults = {"max_length": max_length, "batch_size": 32, "steps": 500, "style": "bert"}
        self.training = [_example(one) for one in records]
        self.held_out = [_example(one) for one in held_out] or self.training
        self.fingerprint = fingerprint_of(self.labels, self.training, self.held_out)
        self._note_what_is_cut()

    def _check_labels(self, records: list[Record], held_out: list[Record]) -> None:
        if len(self.labels) < 2:
            raise InputError(f"the only label is {self.labels[0]!r}; expected two at least")
        if 2 * len(self.labels) > len(records) > 20:
            raise InputError(
                f"{records[0].file}: has {len(self.labels):,} different labels in "
                f"{len(records):,} lines; expected label TAB text, or say where they stand: "
                "--columns LABEL,TEXT"
            )
        known = set(self.labels)
        for one in [*records, *held_out]:
            if one.values[0] not in known:
                raise InputError(
                    f"{one.file}:{one.line}: the label {one.values[0]!r} is none of those that "
                    f"are known: {', '.join(self.labels[:20])}"
                )

    def _note_what_is_cut(self) -> None:
        examples = [*self.training, *([] if self.held_out is self.training else self.held_out)]
        rows = [row for chunk in chunks(examples, 1_000) for row, _ in self._rows(chunk, None)]
        if long := sum(len(row) > self.max_length for row in rows):
            self.notes.append(
                f"{long:,} of {len(rows):,} texts are longer than the {self.max_length} tokens "
                "that fit: their ends are not read"
            )

    def _rows(
        self, examples: Sequence[Text], most: int | None
    ) -> list[tuple[list[int], list[int]]]:
        texts = [(one.text, one.second) for one in examples]
        return rows_to_classify(self.vocabulary, texts, most)

    def collate(self, examples: Sequence[Text]) -> Batch:
        index = {label: i for i, label in enumerate(self.labels)}
        rows = self._rows(examples, self.max_length)
        read: list[dict[str, Any]] = [
            {"input_ids": ids, "token_type_ids": segments, "label": index[one.label]}
            for one, (ids, segments) in zip(examples, rows, strict=True)
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
        for label in self.labels:
            of_label = [ok for one, ok in zip(examples, right, strict=True) if one.label == label]
            if of_label:
                results[f"recall_of_{label}"] = sum(of_label) / len(of_label)
        lines = [
            f"  {measured[i].nats:6.2f} nats   {one_line(examples[i].text, 60)} → "
            f"{self.labels[classes[i]]}, {examples[i].label} was wanted"
            for i in worst(measured, right)
            if not right[i]
        ]
        return Evaluation(results, lines)


def _text(record: Record) -> str:
    return " ".join(record.values[1:])


def _example(record: Record) -> Text:
    label, text, *second = record.values
    return Text(text, label, second[0] if second else None)
