"""A model as a subject: what it may declare."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from minitransformer.checks.engine.subject import Subject, one_of, other_conventions

# How many real tokens each row has. The first is what encoders and decoders read, and the source;
# the second is the target. Unsorted, and no two sizes alike.
LENGTHS = ((2, 7, 5, 1), (4, 1, 6, 3))


@dataclass(frozen=True)
class EncoderSubject(Subject):
    """An encoder `fn(input_ids, attention_mask) -> hidden states or logits (B,T,X)`.

    It may return a tensor, a tuple that begins with it, or an object or mapping with `logits` or
    `last_hidden_state`. An nn.Module is never touched: a copy of it is checked, without dropout,
    and its parameter gradients too; of any other function the outputs alone are. What it may
    declare:

    takes         "ids", or "embeddings": floats (B,T,d_model), as torch.nn.TransformerEncoder
    d_model       the width of these
    vocab_size    ids are below it
    pad_id        the id that stands at padding, and nowhere else
    mask_means    "attend": 1 is a real token; "ignore": True is padding
    mask_values   "int", "bool", or "additive" (0 at real tokens, -inf at padding)
    sides         where padding may stand: ("right", "left")
    holes         padding may stand between tokens too
    documents     attention_mask may number packed documents: 1 1 2 2 2 0
    window        a sliding window: each token attends to itself and to the window - 1 real tokens
                  before it (of an encoder also behind it), in each of its `layers`; build it so
                  small that layers · (window - 1) is below 6, or the sentences end before it does
    layers        how many layers that is
    max_length    the longest sequence that it takes, padding included; at least 8
    returns       "tokens": (B,T,X); "sequence", of an encoder that pools: (B,X)
    dtypes        those it promises to work in; the first but for float32 is the ordinary one
    device        where it is checked
    redraw        parameters are drawn anew, and large: with the small ones that a model begins
                  with, a wrong mask moves its outputs by less than one would notice
    """

    kind: ClassVar[str] = "encoder"
    arguments: ClassVar[tuple[str, ...]] = ("input_ids", "attention_mask")
    comparable: ClassVar[bool] = False
    causal: ClassVar[bool] = False

    takes: str = "ids"
    d_model: int = 16
    vocab_size: int = 11
    pad_id: int = 0
    mask_means: str = "attend"
    mask_values: str = "int"
    sides: tuple[str, ...] = ("right", "left")
    holes: bool = False
    documents: bool = False
    window: int | None = None
    layers: int | None = None
    max_length: int = 16
    returns: str = "tokens"
    dtypes: tuple[str | torch.dtype, ...] = ("float32", "bfloat16", "float16")
    device: str | torch.device = "cpu"
    redraw: bool = True

    def __post_init__(self):
        super().__post_init__()
        one_of("takes", self.takes, ("ids", "embeddings"))
        one_of("mask_means", self.mask_means, ("attend", "ignore"))
        one_of("mask_values", self.mask_values, ("bool", "int", "additive"))
        one_of("returns", self.returns, ("tokens", "sequence"))
        longest = max(map(max, LENGTHS)) + 1
        for name, least in {"vocab_size": 5, "d_model": 1, "max_length": longest}.items():
            if getattr(self, name) < least:
                raise ValueError(f"{name} must be at least {least}, got {getattr(self, name)}")
        if self.takes == "ids" and not 0 <= self.pad_id < self.vocab_size:
            raise ValueError(f"pad_id must be in [0, {self.vocab_size}), got {self.pad_id}")
        if (self.window is None) != (self.layers is None):
            raise ValueError("window and layers belong together: how far is seen takes both")
        if self.window is not None and min(self.window, self.layers) < 1:
            raise ValueError(
                f"window and layers must be at least 1, got {self.window}, {self.layers}"
            )
        if self.documents and (self.mask_means, self.mask_values) != ("attend", "int"):
            raise ValueError("documents are numbers: they need mask_values='int', 'attend'")
        if self.returns == "sequence" and self.kind != "encoder":
            raise ValueError("returns='sequence' is for encoders: others give logits of each token")

    @property
    def streams(self) -> int:
        """How many sequences it reads: one, or a source and a target."""
        return len(self.arguments) // 2

    def otherwise(self) -> Iterator[dict[str, Any]]:
        """Other values and polarities of the mask; numbers of documents have but one."""
        if not self.documents:
            yield from other_conventions(self)

    def stand_in(self, other: Subject) -> Subject:
        """Called as it wishes, but asked only what this subject is asked."""
        promised = ("sides", "holes", "documents", "returns", "dtypes", "device")
        shared = {name: getattr(self, name) for name in promised}
        return replace(other, **shared)

    def traits(self) -> Any:
        """How its attention treats padding, layer by layer."""
        from minitransformer.checks.models.watching import attention_traits  # which imports this

        return attention_traits(self)

    def present(self, mask: Tensor, dtype: torch.dtype) -> Tensor:
        """An attention_mask with its polarity and values, a tensor of its own."""
        if self.mask_values == "additive":
            return torch.zeros_like(mask, dtype=dtype).masked_fill(mask == 0, float("-inf"))
        mask = mask.clone() if self.mask_means == "attend" else (mask == 0).long()
        return mask.bool() if self.mask_values == "bool" else mask


@dataclass(frozen=True)
class DecoderSubject(EncoderSubject):
    """A decoder-only model `fn(input_ids, attention_mask) -> logits (B,T,V)`, causal.

    It may declare what an EncoderSubject may.
    """

    kind: ClassVar[str] = "decoder"
    causal: ClassVar[bool] = True


@dataclass(frozen=True)
class EncoderDecoderSubject(EncoderSubject):
    """A model `fn(source_ids, source_mask, target_ids, target_mask) -> logits (B,T,V)`.

    The target is causal. It may declare what an EncoderSubject may; `documents`: document n of the
    target is the one that belongs to document n of the source.
    """

    kind: ClassVar[str] = "encoder-decoder"
    arguments: ClassVar[tuple[str, ...]] = (
        "source_ids",
        "source_mask",
        "target_ids",
        "target_mask",
    )
    causal: ClassVar[bool] = True
