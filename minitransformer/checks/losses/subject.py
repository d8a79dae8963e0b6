"""A loss as a subject: what it may declare."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from minitransformer.checks.engine.check import expect
from minitransformer.checks.engine.subject import Subject, one_of

CLASSES = 5


@dataclass(frozen=True)
class LossSubject(Subject):
    """A loss `fn(logits, labels) -> scalar`: the mean over the labels that are not to be ignored.

    logits (B,T,classes), labels (B,T) int64. What it may declare:

    ignore_index     the label that says: predict nothing here
    flat             it takes (N,classes) and (N,), as torch's cross_entropy
    shifts           it pairs the logits of t with the label of t + 1, as causal losses do
    num_labels_flag  the name of an argument that gives the number to divide by: "num_labels"
    label_smoothing  how much of a label goes to all classes alike (Szegedy et al. 2015), 0.1 say
    smoothing_over   "all" classes, as in torch.nn.functional.cross_entropy, or the "others" than
                     the label, as in fairseq
    smoothing_flag   the name of an argument for it: "label_smoothing"
    nothing          where there is nothing to predict: "zero", or "any" finite number
    dtypes           of the logits that it promises to work with
    device           where it is checked
    """

    kind: ClassVar[str] = "loss"
    arguments: ClassVar[tuple[str, ...]] = ("logits", "labels")

    ignore_index: int = -100
    flat: bool = False
    shifts: bool = False
    num_labels_flag: str = ""
    label_smoothing: float = 0.0
    smoothing_over: str = "all"
    smoothing_flag: str = ""
    nothing: str = "zero"
    dtypes: tuple[str | torch.dtype, ...] = ("float32", "float64", "bfloat16", "float16")
    device: str | torch.device = "cpu"

    def __post_init__(self):
        super().__post_init__()
        one_of("nothing", self.nothing, ("zero", "any"))
        one_of("smoothing_over", self.smoothing_over, ("all", "others"))
        if not 0.0 <= self.label_smoothing < 1.0:
            raise ValueError(f"label_smoothing must be in [0, 1), got {self.label_smoothing}")
        if 0 <= self.ignore_index < CLASSES:
            raise ValueError(
                f"ignore_index = {self.ignore_index} is a class too: the loss could not be told "
                "from one that forgets it"
            )
        if self.flat and self.shifts:
            raise ValueError("a flat loss cannot shift: it does not know where rows end")

    def otherwise(self) -> Iterator[dict[str, Any]]:
        """Who shifts, the loss or the data; (N,classes); the other way to smooth labels."""
        if not self.flat:
            yield {"shifts": not self.shifts}
        if not self.shifts:
            yield {"flat": not self.flat}
        if self.label_smoothing:
            yield {"smoothing_over": "others" if self.smoothing_over == "all" else "all"}

    def stand_in(self, other: Any) -> "LossSubject":
        """Called as it wishes, but asked only what this subject is asked."""
        flag = other.num_labels_flag if self.num_labels_flag else ""
        names = ["nothing", "dtypes", "device"]
        if self.label_smoothing and other.label_smoothing:
            names.append("label_smoothing")
        asked = {name: getattr(self, name) for name in names}
        return replace(other, num_labels_flag=flag, **asked)

    def call(self, *given: Any, **flags: Any) -> Any:
        """What it returns as it is; it is given the label smoothing where that is an argument."""
        if self.smoothing_flag:
            flags[self.smoothing_flag] = self.label_smoothing
        return super().call(*given, **flags)

    def __call__(self, logits: Tensor, labels: Tensor, **flags) -> Tensor:
        """The loss of copies of logits (B,T,C) and labels (B,T), -100 where ignored."""
        labels = labels.masked_fill(labels == -100, self.ignore_index)
        if self.shifts:  # the label of t stands at t + 1; the first, a token, is nobody's
            logits = torch.cat([logits, torch.zeros_like(logits[:, :1])], dim=1)
            first = torch.ones_like(labels[:, :1])
            labels = torch.cat([first, labels], dim=1)
        if self.flat:
            logits, labels = logits.flatten(0, 1), labels.flatten()
        loss = self.call(logits.clone(), labels.clone(), **flags)
        kind = "None" if loss is None else type(loss).__name__
        expect(
            isinstance(loss, Tensor),
            f"It returned {kind} where a tensor with one number was expected.",
        )
        expect(
            loss.numel() == 1 and loss.ndim == 0,
            f"It returned a tensor of shape {tuple(loss.shape)} where one number, of shape (), was "
            "expected: is the mean missing?",
        )
        return loss
