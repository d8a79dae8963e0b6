"""A generator as a subject: what it may declare."""

from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from minitransformer.checks.engine.check import expect
from minitransformer.checks.engine.subject import Subject
from minitransformer.checks.generators.cases import NEW, PAD, Rows, the_model
from minitransformer.data import pad
from minitransformer.models import DecoderOnly


@dataclass(frozen=True)
class GeneratorSubject(Subject):
    """A greedy generator: `fn(model, input_ids, attention_mask, max_new_tokens) -> new tokens`.

    It is given a `minitransformer.DecoderOnly` of the suite's, called as model(input_ids,
    attention_mask) -> logits, and prompts (B,T). It returns a list of B tensors, the new tokens of
    each row, or one tensor (B,N), padded where rows ended early. What it may declare:

    sides            where the prompts' padding may stand: ("right", "left")
    eos_flag         the name of the argument for the id that ends a row, as "eos_id"; it may be 0
    pad_id           what stands behind the end of a row in a tensor (B,N), if not the end again
    includes_prompt  the prompts as given, padding too, stand before the new tokens
    device           where it is checked
    """

    kind: ClassVar[str] = "generator"
    arguments: ClassVar[tuple[str, ...]] = (
        "model",
        "input_ids",
        "attention_mask",
        "max_new_tokens",
    )

    sides: tuple[str, ...] = ("right", "left")
    eos_flag: str = ""
    pad_id: int = PAD
    includes_prompt: bool = False
    device: str | torch.device = "cpu"

    def stand_in(self, other: Subject) -> "GeneratorSubject":
        """Called as it wishes, but asked only what this subject is asked."""
        assert isinstance(other, GeneratorSubject)
        flag = other.eos_flag if self.eos_flag else ""
        return replace(other, sides=self.sides, eos_flag=flag, device=self.device)

    def __call__(
        self,
        prompts: Rows,
        side: str | None = None,
        extra: int = 0,
        new: int = NEW,
        eos: int | None = None,
        model: DecoderOnly | None = None,
    ) -> list[list[int]]:
        """The new tokens of each prompt; the end of a row, where there is one, is the last."""
        ids, mask = self.batch(prompts, side, extra)
        model = the_model(str(self.device)) if model is None else model
        flags = {} if eos is None else {self.eos_flag: eos}
        return self.read(self.call(model, ids.clone(), mask.clone(), new, **flags), ids, eos)

    def batch(self, prompts: Rows, side: str | None = None, extra: int = 0) -> tuple[Tensor, ...]:
        """input_ids and attention_mask (B,T), padded on a side with PAD."""
        longest = max(map(len, prompts)) + extra
        batch = pad(prompts, PAD, side or self.sides[0], longest).to(self.device)
        return batch.input_ids, batch.attention_mask

    def read(self, returned: Any, ids: Tensor, eos: int | None) -> list[list[int]]:
        """The rows of a list of tensors, or of one tensor without what is behind their ends."""
        rows = returned.tolist() if isinstance(returned, Tensor) else returned
        kind = "None" if returned is None else f"a {type(returned).__name__}"
        expect(
            isinstance(rows, list | tuple) and len(rows) == len(ids),
            f"It returned {kind} where {len(ids)} rows of new tokens were expected.",
        )
        rows = [row.tolist() if isinstance(row, Tensor) else row for row in rows]
        expect(
            all(isinstance(row, list) and all(type(token) is int for token in row) for row in rows),
            f"It returned {kind} whose rows are not tokens: each is a tensor of one axis, int64.",
        )
        if self.includes_prompt:
            prompts, rows = (
                [row[: ids.shape[1]] for row in rows],
                [row[ids.shape[1] :] for row in rows],
            )
            expect(prompts == ids.tolist(), "The rows do not begin with the prompts as given.")
        if isinstance(returned, Tensor) and eos is not None:
            rows = [self._without_filler(row, eos) for row in rows]
        return rows

    def _without_filler(self, row: list[int], eos: int) -> list[int]:
        """Up to its end, if only padding or the end itself follows; else all of it."""
        end = row.index(eos) + 1 if eos in row else len(row)
        return row[:end] if set(row[end:]) <= {self.pad_id, eos} else row
