"""A function that builds a mask as a subject: what it may declare."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from einops import rearrange
from torch import Tensor

from minitransformer.checks.engine.check import expect
from minitransformer.checks.engine.subject import Subject, one_of, other_conventions

LAYOUTS = ("b 1 q k", "b h q k", "b q k", "b 1 1 k", "b 1 k", "b k", "q k", "1 1 q k")
PAD, TOKEN = 0, 5


@dataclass(frozen=True)
class MaskSubject(Subject):
    """A function that says who may attend to whom: `fn(attention_mask) -> mask`.

    attention_mask (B,T) int64: 0 = padding, 1 = a real token. It returns a tensor; or, as
    FlexAttention takes it, a function mask_mod(b, h, q_idx, kv_idx) -> bool or a BlockMask. What it
    may declare:

    takes         "attention_mask"; "ids": token ids, 0 at padding; "length": fn(num_queries,
                  num_keys), of a causal mask alone
    mask_layout   the axes of what it returns, "b 1 q k"; or "b q k", "q k", and of keys only
                  "b 1 1 k", "b 1 k", "b k"
    mask_means    "attend": True or 1 or 0.0 may be attended to; "ignore": True or 1 may not
    mask_values   "bool", "int" (1 and 0) or "additive" (0 and -inf)
    causal        it also hides the future
    window        a sliding window: a query sees itself and the `window` - 1 keys before it, and as
                  many after it where it is not causal. So window=3 is transformers'
                  sliding_window=3; FlashAttention's window_size=(3, 0) sees 4 keys
    window_flag   the name of an argument for the window: fn(attention_mask, window=3)
    window_counts what the window counts: "columns", padding too, or the "tokens" of a document
    documents     attention_mask may number packed documents: 1 1 2 2 2 0
    dead_queries  what padded queries may see: "nothing", or "any" keys
    pad_is_unique no real token has the id of padding, so that ids tell what is padding
    """

    kind: ClassVar[str] = "mask"
    arguments: ClassVar[tuple[str, ...]] = ("attention_mask",)

    takes: str = "attention_mask"
    mask_layout: str = "b 1 q k"
    mask_means: str = "attend"
    mask_values: str = "bool"
    causal: bool = False
    window: int | None = None
    window_flag: str = ""
    window_counts: str = "columns"
    documents: bool = False
    dead_queries: str = "any"
    pad_is_unique: bool = False
    device: str | torch.device = "cpu"

    def __post_init__(self):
        super().__post_init__()
        one_of("takes", self.takes, ("attention_mask", "ids", "length"))
        one_of("mask_layout", self.mask_layout, LAYOUTS)
        one_of("mask_means", self.mask_means, ("attend", "ignore"))
        one_of("mask_values", self.mask_values, ("bool", "int", "additive"))
        one_of("dead_queries", self.dead_queries, ("nothing", "any"))
        one_of("window_counts", self.window_counts, ("columns", "tokens"))
        if self.window is not None and self.window < 1:
            raise ValueError(f"window must be at least 1, the query itself, got {self.window}")
        if (self.causal or self.window) and "q" not in self.mask_layout:
            raise ValueError(
                "a causal mask has queries, and one with a window: mask_layout "
                f"{self.mask_layout!r} has none"
            )
        if self.takes == "length" and not self.causal:
            raise ValueError("takes='length' is for causal masks: declare causal=True")
        if self.takes == "length" and self.window_counts == "tokens":
            raise ValueError("takes='length' knows no tokens: its window counts columns")

    def otherwise(self) -> Iterator[dict[str, Any]]:
        """Other values and polarities, a mask of other axes, one that is causal; a window that
        counts something else, or the keys before the query without itself."""
        yield from other_conventions(self)
        if self.window is None and "q" in self.mask_layout:
            yield {"causal": not self.causal}
        for layout in LAYOUTS:
            if layout != self.mask_layout and ("q" in layout or not self.causal):
                yield {"mask_layout": layout}
        if self.window:
            if self.takes != "length":
                counts = "columns" if self.window_counts == "tokens" else "tokens"
                yield {"window_counts": counts}
            if not self.window_flag:
                yield {"window": self.window + 1}

    def stand_in(self, other: Any) -> "MaskSubject":
        """Called as it wishes, but asked only what this subject is asked."""
        asked: dict[str, Any] = {"device": self.device}
        if self.takes == other.takes:
            names = ("documents", "dead_queries", "pad_is_unique")
            asked |= {name: getattr(self, name) for name in names}
        if self.window and other.window:
            names = ("causal", "window", "window_counts")
            asked |= {name: getattr(self, name) for name in names}
        return replace(other, **asked)

    def __call__(self, attention_mask: Tensor) -> Tensor:
        """(B,1,Q,K) bool, True = may attend, of a copy of an attention_mask (B,T)."""
        return self.normal(self.call(*self.given(attention_mask)), attention_mask)

    def call(self, *given: Any, **flags: Any) -> Any:
        """What it returns as it is; it is given the window where that is an argument."""
        if self.window_flag:
            flags[self.window_flag] = self.window
        return super().call(*given, **flags)

    def given(self, attention_mask: Tensor) -> tuple[Any, ...]:
        """What it is called with for an attention_mask (B,T): a copy, ids, or two lengths."""
        if self.takes == "length":
            return attention_mask.shape[1], attention_mask.shape[1]
        if self.takes == "ids":
            return (torch.where(attention_mask == 0, PAD, TOKEN),)
        return (attention_mask.clone(),)

    def normal(self, mask: Any, attention_mask: Tensor, queries: int | None = None) -> Tensor:
        """What it returned, in our convention."""
        batch, keys = attention_mask.shape
        queries = keys if queries is None else queries
        if callable(mask) or hasattr(mask, "mask_mod"):
            return of_flex_attention(mask, batch, queries, keys, attention_mask.device)
        rank = len(self.mask_layout.split())
        expect(
            isinstance(mask, Tensor),
            f"It returned a {type(mask).__name__} where a tensor was expected.",
        )
        expect(
            mask.ndim == rank,
            f"It returned a mask of shape {tuple(mask.shape)} where {rank} axes, "
            f"{self.mask_layout}, were expected.",
        )
        if self.mask_values == "additive":
            expect(
                mask.is_floating_point(),
                f"Its mask is {mask.dtype}: one that is added to scores is floating point.",
            )
            allowed = mask == 0.0
        else:
            wanted = torch.bool if self.mask_values == "bool" else None
            expect(
                mask.dtype == wanted if wanted else not mask.is_floating_point(),
                f"Its mask is {mask.dtype}, but its values are declared as {self.mask_values!r}.",
            )
            allowed = mask.bool() if self.mask_means == "attend" else ~mask.bool()
        axes = {axis: str(n) for axis, n in zip("bhqk", "1111", strict=True)}
        names = [axis if axis in self.mask_layout.split() else axes[axis] for axis in "bhqk"]
        allowed = rearrange(allowed, f"{self.mask_layout} -> {' '.join(names)}")
        try:
            return allowed.expand(batch, -1, queries, keys)[:, :1]
        except RuntimeError:
            expect(
                False,
                f"It returned a mask of shape {tuple(mask.shape)} for a batch of {batch} rows of "
                f"{queries} queries and {keys} keys (its layout is declared as "
                f"{self.mask_layout!r}).",
            )
            raise


def of_flex_attention(
    mask: Any, batch: int, queries: int, keys: int, device: torch.device
) -> Tensor:
    """(B,1,Q,K) bool of a mask_mod(b, h, q_idx, kv_idx), or of a BlockMask: its listed blocks."""
    from torch.nn.attention.flex_attention import BlockMask, create_mask

    if not isinstance(mask, BlockMask):
        return create_mask(mask, batch, 1, queries, keys, device)
    blocks = mask.to_dense().bool()[:, :1]
    for axis, size in zip((2, 3), mask.BLOCK_SIZE, strict=True):
        blocks = blocks.repeat_interleave(size, axis)
    inside = create_mask(mask.mask_mod, batch, 1, queries, keys, device)
    return inside & blocks[:, :, :queries, :keys]
