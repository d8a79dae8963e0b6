"""Labels and collators as subjects: what they may declare."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from minitransformer.checks.engine.check import expect
from minitransformer.checks.engine.subject import Subject, one_of

END = 2


@dataclass(frozen=True)
class LabelsSubject(Subject):
    """Labels for language modelling: `fn(input_ids, attention_mask) -> labels`, (B,T) int64.

    The label of a token is the next real token of its own document, or -100 where there is none.
    What it may declare:

    aligned     labels stand at their own tokens, and the model or the loss shifts them, as in
                Hugging Face: the token itself, -100 at padding and at the first of a document
    sides       where padding may stand: ("right", "left")
    holes       padding may stand between tokens too
    documents   attention_mask may number packed documents: 1 1 2 2 2 0
    device      where it is checked
    """

    kind: ClassVar[str] = "labels"
    arguments: ClassVar[tuple[str, ...]] = ("input_ids", "attention_mask")

    aligned: bool = False
    sides: tuple[str, ...] = ("right", "left")
    holes: bool = False
    documents: bool = False
    device: str | torch.device = "cpu"

    def otherwise(self) -> Iterator[dict[str, Any]]:
        """The other convention of who shifts."""
        yield {"aligned": not self.aligned}

    def stand_in(self, other: Any) -> "LabelsSubject":
        asked = {name: getattr(self, name) for name in ("sides", "holes", "documents", "device")}
        return replace(other, aligned=other.aligned and self.aligned, **asked)

    def __call__(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Labels in our convention, those of tokens, (B,T)."""
        labels = self.call(input_ids.clone(), attention_mask.clone())
        expect(
            isinstance(labels, Tensor),
            f"It returned a {type(labels).__name__} where a tensor of labels was expected.",
        )
        expect(
            labels.shape == input_ids.shape,
            f"It returned labels of shape {tuple(labels.shape)} for ids of "
            f"{tuple(input_ids.shape)}: each position has one label.",
        )
        return labels


@dataclass(frozen=True)
class CollatorSubject(Subject):
    """A collator: `fn(rows) -> batch` with input_ids, attention_mask and perhaps labels.

    The batch is a mapping or an object; what it may declare:

    rows      "lists" of token ids, or "dicts" with input_ids, as Hugging Face has them
    pad_id    the id that it pads with; it may be that of a real token, too
    side      where it pads: "right" or "left"
    labels    "none"; "next": the next token; "aligned": the token itself, -100 at padding;
              "given": each row comes with labels of its own, as the entry or the argument `labels`
    device    where it puts the batch
    """

    kind: ClassVar[str] = "collator"
    arguments: ClassVar[tuple[str, ...]] = ("rows",)

    rows: str = "lists"
    pad_id: int = 0
    side: str = "right"
    labels: str = "none"

    def __post_init__(self):
        super().__post_init__()
        one_of("rows", self.rows, ("lists", "dicts"))
        one_of("side", self.side, ("right", "left"))
        one_of("labels", self.labels, ("none", "next", "aligned", "given"))

    def otherwise(self) -> Iterator[dict[str, Any]]:
        """The other form of the rows, and the other side."""
        yield {"rows": "dicts" if self.rows == "lists" else "lists"}
        yield {"side": "left" if self.side == "right" else "right"}

    def stand_in(self, other: Any) -> "CollatorSubject":
        """Pieces take lists and pad with 0; they are asked for the labels that both have."""
        return replace(other, labels=other.labels if self.labels != "none" else "none")

    def __call__(
        self, rows: list[list[int]], labels: list[list[int]] | None = None
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """input_ids, attention_mask and labels, (B,T) each, of copies of the rows."""
        return self.collate(self.arguments_of(rows, labels))

    def arguments_of(self, rows: list[list[int]], labels: list[list[int]] | None) -> dict:
        """The rows as the subject takes them, with labels where they are given."""
        given = None
        if self.labels == "given":
            given = [list(row) for row in labels or rows]
        if self.rows == "lists":
            return {"rows": [list(row) for row in rows]} | (
                {} if given is None else {"labels": given}
            )
        items: list[dict[str, list[int]]] = [{"input_ids": list(row)} for row in rows]
        for item, own in zip(items, given or [], strict=False):
            item["labels"] = own
        return {"rows": items}

    def collate(self, given: dict) -> tuple[Tensor, Tensor, Tensor | None]:
        flags = {name: value for name, value in given.items() if name != "rows"}
        batch = self.call(given["rows"], **flags)

        def part(name: str) -> Any:
            return batch.get(name) if isinstance(batch, Mapping) else getattr(batch, name, None)

        ids, mask, labels = (part(name) for name in ("input_ids", "attention_mask", "labels"))
        for name, tensor in {"input_ids": ids, "attention_mask": mask}.items():
            expect(
                isinstance(tensor, Tensor) and tensor.ndim == 2,
                f"It returned {type(batch).__name__} whose {name} is no tensor of two axes, "
                "(batch, length).",
            )
        needs_labels = self.labels != "none"
        expect(
            isinstance(labels, Tensor) or not needs_labels,
            f"It returned {type(batch).__name__} without a tensor `labels`, which it declares.",
        )
        for name, tensor in {"attention_mask": mask, "labels": labels}.items():
            expect(
                tensor is None
                or (name == "labels" and not needs_labels)
                or tensor.shape == ids.shape,
                f"{name} is {tuple(getattr(tensor, 'shape', ()))} and input_ids "
                f"{tuple(ids.shape)}: they must be of one shape.",
            )
        return ids, mask, labels if needs_labels else None
