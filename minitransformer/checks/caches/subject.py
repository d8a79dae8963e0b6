"""A decoder with a KV cache as a subject: what it may declare."""

import inspect
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from torch import Tensor, nn

from minitransformer.checks.caches.cases import COLUMNS
from minitransformer.checks.engine.subject import Subject
from minitransformer.checks.models.subject import DecoderSubject


@dataclass(frozen=True)
class CachedDecoderSubject(DecoderSubject):
    """A decoder with a KV cache: `fn(input_ids, attention_mask, past) -> (logits, past)`.

    `past` is None at the start of a text, and then what the call before returned: anything that
    the decoder likes. input_ids (B,N) are the new tokens, attention_mask (B,T) covers all columns
    so far, and the logits are (B,N,V). A model of transformers (one that takes `use_cache`)
    is called as its `generate` does, positions counted over real tokens. It may declare
    what a DecoderSubject may (holes, documents, window and returns are not asked), and:

    reorder  a function (past, rows) -> past, in which row i goes on from row rows[i] of the past,
             as in beam search; without it the first axis of every tensor in `past` is indexed
    several  it takes several new tokens at a time when there is a past, as for a long prompt that
             is read in parts
    """

    kind: ClassVar[str] = "cached-decoder"
    arguments: ClassVar[tuple[str, ...]] = ("input_ids", "attention_mask", "past")

    reorder: Callable[[Any, Tensor], Any] | None = None
    several: bool = True

    def __post_init__(self):
        super().__post_init__()
        if self.takes != "ids":
            raise ValueError("a cached decoder takes ids: takes='embeddings' is for other models")
        if self.max_length < COLUMNS:
            raise ValueError(f"max_length must be at least {COLUMNS}, got {self.max_length}")
        if isinstance(self.fn, nn.Module) and _takes(self.fn, "use_cache"):
            object.__setattr__(self, "fn", FromTransformers(self.fn))

    def traits(self) -> None:
        """Its bugs are told by the checks that they fail."""

    def stand_in(self, other: Subject) -> Subject:
        """Called as it wishes, but asked only what this subject is asked."""
        placed: Any = super().stand_in(other)
        return replace(placed, several=self.several)


class FromTransformers(nn.Module):
    """A model of transformers, called as `generate` calls it."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model
        self.past = "past_key_values" if _takes(model, "past_key_values") else "cache"

    def forward(self, input_ids: Tensor, attention_mask: Tensor, past: Any) -> tuple[Tensor, Any]:
        counted = (attention_mask.long().cumsum(-1) - 1).clamp(min=0)[:, -input_ids.shape[1] :]
        positions = {"position_ids": counted} if _takes(self.model, "position_ids") else {}
        output = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            use_cache=True,
            **{self.past: past},
            **positions,
        )
        return output.logits, getattr(output, self.past)


def _takes(module: nn.Module, name: str) -> bool:
    return name in inspect.signature(module.forward).parameters
