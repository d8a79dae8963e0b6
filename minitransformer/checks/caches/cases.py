"""Texts that decoders with a cache go on with, and the definition of what they must give."""

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from minitransformer.checks.engine.check import expect, needs
from minitransformer.checks.models.cases import seeded, usable
from minitransformer.checks.models.ready import Ready

PROMPTS = (2, 4, 1, 3)  # real tokens of each prompt
NEW = 6  # tokens that each goes on with
COLUMNS = max(PROMPTS) + 1 + NEW  # a column of padding more than the longest prompt needs


@dataclass(frozen=True)
class Text:
    """Prompts (B,T) with their attention_mask, and the tokens (B,N) that they go on with."""

    ids: Tensor
    mask: Tensor
    new: Tensor

    def rows(self) -> list[Tensor]:
        """The real tokens of each row, prompt and new, without padding."""
        real = self.mask != 0
        return [torch.cat([i[m], n]) for i, m, n in zip(self.ids, real, self.new, strict=True)]

    def real(self) -> Tensor:
        """(B,T+N) bool."""
        return torch.cat([self.mask, torch.ones_like(self.new)], 1) != 0

    def with_prompts_of(self, rows: Tensor) -> "Text":
        """The prompt of row rows[i], gone on with as row i."""
        return Text(self.ids[rows], self.mask[rows], self.new)


def text(subject, side: str, seed: int = 3) -> Text:
    """Prompts padded on the "left" or the "right", or "full": all of two tokens, none padded."""
    real, longest = usable(subject), max(PROMPTS)
    drawn = torch.randint(len(real), (len(PROMPTS), longest + NEW), generator=seeded(seed))
    tokens = real[drawn.to(real.device)]
    if side == "full":
        return Text(tokens[:, :2], torch.ones_like(tokens[:, :2]), tokens[:, longest:])
    ids = torch.full_like(tokens[:, : longest + 1], subject.pad_id)
    mask = torch.zeros_like(ids)
    for row, count in enumerate(PROMPTS):
        columns = slice(count) if side == "right" else slice(longest + 1 - count, None)
        ids[row, columns], mask[row, columns] = tokens[row, :count], 1
    return Text(ids, mask, tokens[:, longest:])


class Decoder(Ready):
    """The subject made ready, which reads texts with its cache and without.

    Each text is read by a new copy of a module, or, `remembers`, by one that read others before.
    """

    def __init__(self, subject, remembers: bool = False):
        super().__init__(subject)
        self.new_copy = not remembers and isinstance(self.fn, nn.Module)

    def read(self, ids: Tensor, mask: Tensor, past: Any) -> tuple[Tensor, Any]:
        """One call: the logits (B,N,V) of the new tokens, and the new past."""
        if past is None:
            self.reader = copy.deepcopy(self.fn) if self.new_copy else self.fn
        with torch.no_grad():
            returned = self.reader(ids.clone(), self.subject.present(mask, self.dtype), past)
        expect(
            isinstance(returned, tuple | list) and len(returned) == 2,
            f"It returned a {type(returned).__name__} where a pair (logits, past) was expected.",
        )
        return self.answer(returned, ids.shape), returned[1]

    def __call__(self, *streams, change: Callable | None = None) -> Tensor:
        """The logits of a whole batch, without a past."""
        return self.read(*streams[0], None)[0]

    def decode(
        self,
        given: Text,
        at_a_time: int = 1,
        rows: Tensor | None = None,
        change: Callable[[Any], None] = lambda past: None,
    ) -> Tensor:
        """The logits (M,V) of all real tokens: the prompts in one call, then so many new tokens.

        Behind the prompts `change` writes to the past, and row i goes on from row rows[i] of it.
        """
        logits, past = self.read(given.ids, given.mask, None)
        change(past)
        if rows is not None:
            logits, past = logits[rows], self.reordered(past, rows)
            given = given.with_prompts_of(rows)
        found, mask = [logits], given.mask
        for new in given.new.split(at_a_time, dim=1):
            mask = torch.cat([mask, torch.ones_like(new)], dim=1)
            logits, past = self.read(new, mask, past)
            found.append(logits)
        return torch.cat(found, dim=1)[given.real()]

    def reordered(self, past: Any, rows: Tensor) -> Any:
        """The past in which row i goes on from row rows[i]."""
        if self.subject.reorder is not None:
            return self.subject.reorder(past, rows)
        for x in tensors_of(past, len(rows)):
            x.copy_(x[rows])
        return past

    def alone(self, rows: list[Tensor]) -> Tensor:
        """The logits (M,V) that rows must get: each whole, alone, without padding or a past."""
        return torch.cat([self((row[None], torch.ones_like(row[None])))[0] for row in rows])

    def steps(self) -> list[int]:
        """How many new tokens it takes at a time."""
        return [1, 3] if self.subject.several else [1]


def tensors_of(past: Any, batch: int) -> list[Tensor]:
    """All tensors in a past, whatever holds them; each has the rows of the batch first."""
    found = list(_tensors(past, set()))
    needs(found, "no tensors are found in its past")
    needs(
        all(x.ndim and len(x) == batch for x in found),
        "the first axis of what its past holds is not the batch",
    )
    return found


def _tensors(x: Any, met: set[int]) -> Iterator[Tensor]:
    if id(x) in met or isinstance(x, nn.Module | type):
        return
    met.add(id(x))
    if isinstance(x, Tensor):
        yield x
        return
    parts = x.values() if isinstance(x, dict) else x if isinstance(x, tuple | list) else ()
    for part in (*parts, *getattr(x, "__dict__", {}).values()):
        yield from _tensors(part, met)
