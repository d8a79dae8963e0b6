"""An attention function as a subject, and how its weights are read from outside.

`attention_weights_of` needs no access to what is inside: output = weights · value, so a value of
c · identity makes the output c · weights.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from math import prod
from typing import Any, ClassVar

import torch
from einops import rearrange
from torch import Tensor

from minitransformer.checks.engine.check import expect, needs
from minitransformer.checks.engine.subject import Subject, as_dtype, one_of

ANY_MASK = "b h q k"
DTYPES = ("float32", "float64", "bfloat16", "float16")
AXES = {"b", "h", "t", "d"}


@dataclass(frozen=True)
class AttentionSubject(Subject):
    """An attention function `fn(query, key, value, mask) -> output` or `(output, weights)`.

    What it may declare, with the defaults that fit torch's `scaled_dot_product_attention`:

    layout        the axes of query, key, value and output, as an einops pattern: "b h t d". Others:
                  "b t h d", "b t d" (no heads), "t d" (one sequence, two matrices)
    mask_layout   the axes of the mask: "b 1 q k". Others: "b h q k", "b q k", "q k"; or, of a
                  function that takes the padding of the keys only, "b k", "b 1 1 k", "k"
    mask_means    "attend": True, 1 or 0.0 may be attended to; "ignore": True or 1 may not
    mask_values   "bool", "int" (1 and 0) or "additive" (0 and -inf, in the dtype of the query)
    dtypes        those it promises to work in
    device        where it is checked
    differentiable  whether gradients flow through it
    same_length   it needs as many queries as keys
    dead_rows     what a query that may see nothing gets: "zeros", or "any" finite value
    causal_flag, dropout_flag   the names of such arguments: "is_causal", "dropout_p"
    refuses_misuse  it raises an error for a mask of a shape that it does not take
    """

    kind: ClassVar[str] = "attention"
    arguments: ClassVar[tuple[str, ...]] = ("query", "key", "value", "mask")

    layout: str = "b h t d"
    mask_layout: str = "b 1 q k"
    mask_means: str = "attend"
    mask_values: str = "bool"
    dtypes: tuple[str | torch.dtype, ...] = DTYPES
    device: str | torch.device = "cpu"
    differentiable: bool = True
    same_length: bool = False
    dead_rows: str = "zeros"
    causal_flag: str = ""
    dropout_flag: str = ""
    refuses_misuse: bool = False
    full_masks: bool | None = None  # whether queries may differ; None: as mask_layout says

    def __post_init__(self):
        super().__post_init__()
        axes = self.layout.split()
        if not {"t", "d"} <= set(axes) <= AXES or len(set(axes)) < len(axes):
            raise ValueError(f"layout must name t and d, and b and h if any: got {self.layout!r}")
        mask_axes = self.mask_layout.split()
        if "k" not in mask_axes or not set(mask_axes) <= {"b", "h", "q", "k", "1"}:
            raise ValueError(f"mask_layout must be of b h q k and 1s: got {self.mask_layout!r}")
        one_of("mask_means", self.mask_means, ("attend", "ignore"))
        one_of("mask_values", self.mask_values, ("bool", "int", "additive"))
        one_of("dead_rows", self.dead_rows, ("zeros", "any"))
        if isinstance(self.dtypes, str) or not self.dtypes:
            raise ValueError(f"dtypes must be a tuple such as ('float32',), got {self.dtypes!r}")
        object.__setattr__(self, "dtypes", tuple(as_dtype(dtype) for dtype in self.dtypes))
        if self.full_masks is None:
            object.__setattr__(self, "full_masks", "q" in mask_axes)

    @property
    def dtype(self) -> torch.dtype:
        """What ordinary users compute in: float32 where it is promised."""
        return torch.float32 if torch.float32 in self.dtypes else as_dtype(self.dtypes[0])

    def stand_in(self, other: "Subject") -> "AttentionSubject":
        """Written for the standard layout, but asked only what this subject is asked."""
        return replace(
            self,
            fn=other.fn,
            name=other.name,
            layout="b h t d",
            mask_layout=self.mask_layout if self.mask_layout == "b h q k" else "b 1 q k",
            mask_means="attend",
            mask_values="bool",
        )

    def otherwise(self) -> Iterator[dict[str, Any]]:
        """The other values and polarities of a mask; masks of keys alone; heads behind tokens."""
        for values in ("bool", "int", "additive"):
            for means in ("attend", "ignore"):
                changes = {"mask_values": values, "mask_means": means}
                if values == "additive":
                    del changes["mask_means"]
                yield {name: x for name, x in changes.items() if x != getattr(self, name)}
        yield {"layout": "b h t d" if self.layout == "b t h d" else "b t h d"}
        for layout in ("b k", "b 1 1 k"):
            for means in ("attend", "ignore"):
                yield {"mask_layout": layout, "mask_means": means, "full_masks": None}

    def __call__(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor, **flags) -> Tensor:
        """The output, (B,H,Q,Dv), of copies of (B,H,Q,D), (B,H,K,D), (B,H,K,Dv), (B,1,Q,K)."""
        return self.run(query, key, value, mask, **flags)[0]

    def run(
        self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor, **flags
    ) -> tuple[Tensor, Tensor | None]:
        """The output (B,H,Q,Dv) and, where it returns them too, the weights (B,H,Q,K)."""
        batch, heads, queries, _ = query.shape
        answers = []
        for inputs in self.calls(query, key, value, mask):
            answers.append(self.answer(self.call(*inputs, **flags)))
        output = self.gather([output for output, _ in answers], batch)
        wanted = (batch, heads, queries, value.shape[-1])
        expect(
            output.shape == wanted,
            f"It returned an output of shape {tuple(output.shape)} in the order b h t d, where "
            f"{wanted} was expected (its layout is declared as {self.layout!r}).",
        )
        weights = [weights for _, weights in answers if weights is not None]
        shape = (batch, heads, queries, key.shape[2])
        if sum(one.numel() for one in weights) != prod(shape):
            return output.to(query.device), None
        return output.to(query.device), torch.stack(weights).detach().reshape(shape)

    def calls(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor) -> list[list[Tensor]]:
        """Copies of the arguments as the subject takes them: one call, or one for each sequence."""
        mask = mask.expand(*query.shape[:3], key.shape[2])
        if "h" in self.layout:
            rows = [(query, key, value, mask)]
        else:  # without heads each head is a sequence of its own
            flat = [rearrange(x, "b h t d -> (b h) 1 t d") for x in (query, key, value, mask)]
            rows = (
                [flat]
                if "b" in self.layout
                else list(zip(*(x.split(1) for x in flat), strict=True))
            )
        pattern = f"{_with_ones(self.layout, 'b h t d')} -> {self.layout}"
        return [
            [*(_copy(rearrange(x, pattern)) for x in inputs), self._present(mask, inputs[0].dtype)]
            for *inputs, mask in rows
        ]

    def _present(self, mask: Tensor, dtype: torch.dtype) -> Tensor:
        """(b, h, q, k) with True = attend, in the subject's layout, polarity and values."""
        for axis, (letter, word) in enumerate(
            {"b": "rows of the batch", "h": "heads", "q": "queries"}.items()
        ):
            if letter not in self.mask_layout or (letter == "q" and not self.full_masks):
                first = mask.narrow(axis, 0, 1)
                needs((mask == first).all(), f"its mask is one for all {word}")
                mask = mask if letter in self.mask_layout else first
        mask = rearrange(mask, f"{_with_ones(self.mask_layout, 'b h q k')} -> {self.mask_layout}")
        if self.mask_values == "additive":
            return torch.zeros_like(mask, dtype=dtype).masked_fill(~mask, float("-inf"))
        mask = mask.clone() if self.mask_means == "attend" else ~mask
        return mask.long() if self.mask_values == "int" else mask

    def answer(self, returned: Any) -> tuple[Tensor, Tensor | None]:
        """(output, weights or None), whichever of the usual ways it returned them."""
        parts = returned if isinstance(returned, tuple | list) else (returned,)
        tensors = [part for part in parts if isinstance(part, Tensor)]
        expect(
            parts and isinstance(parts[0], Tensor),
            f"It returned {_describe(returned)} where a tensor, or a tuple that begins with one, "
            "was expected. Does it end without `return`?",
        )
        rank = len(self.layout.split())
        expect(
            parts[0].ndim == rank,
            f"It returned a tensor of shape {tuple(parts[0].shape)} where {rank} axes, "
            f"{self.layout}, were expected.",
        )
        return parts[0], tensors[1] if len(tensors) > 1 else None

    def gather(self, outputs: list[Tensor], batch: int) -> Tensor:
        pattern = f"{self.layout} -> {_with_ones(self.layout, 'b h t d')}"
        output = torch.cat([rearrange(output, pattern) for output in outputs])
        if "h" in self.layout:
            return output
        return rearrange(output, "(b h) 1 t d -> b h t d", b=batch)


def _with_ones(layout: str, standard: str) -> str:
    return " ".join(axis if axis in layout.split() else "1" for axis in standard.split())


def _copy(x: Tensor) -> Tensor:
    """A tensor of its own, so that no subject can change ours; gradients flow through it."""
    return x.clone(memory_format=torch.contiguous_format)


def _describe(x: Any) -> str:
    return "None" if x is None else f"a {type(x).__name__}"


# ---- reading weights -----------------------------------------------------------------------------


def attention_weights_of(
    fn: Callable, query: Tensor, key: Tensor, value: Tensor, mask: Tensor
) -> Tensor:
    """The weights of any attention function, read from outside: its output for c · identity.

    The identity comes in column blocks as wide as `value` is: with a wider value a library would
    quietly take another kernel, and the weights read would be that one's. c is 2^100 (2^15 in
    float16), a power of two, so that a leak too small for the dtype is read all the same, and
    the weights themselves exactly. What `value` holds does not matter, only its shape and dtype.

    Shapes: query (B,H,Q,D), key (B,H,K,D), value (B,H,K,Dv), mask (B or 1, H or 1, Q, K) bool
    -> (B,H,Q,K), in the dtype of value (float32 for float16, which could not hold the smallest).
    `fn` is called as fn(query, key, value, mask) and returns the output, or a tuple that begins
    with it; an AttentionSubject may declare otherwise.
    """
    subject = fn if isinstance(fn, AttentionSubject) else AttentionSubject(fn, mask_layout=ANY_MASK)
    keys, width = value.shape[2:]
    c = scale_of(value.dtype)
    columns = []
    for start in range(0, keys, width):
        block = torch.zeros_like(value)
        size = min(width, keys - start)
        index = torch.arange(size, device=value.device)
        block[:, :, start + index, index] = c
        output = subject(query, key, block, mask).detach()
        columns.append(output[..., :size])
    read = torch.cat(columns, dim=-1)
    wide = torch.float32 if read.dtype == torch.float16 else read.dtype
    return read.to(wide) / c


def backward_weights_of(
    subject: AttentionSubject, query: Tensor, key: Tensor, value: Tensor, mask: Tensor
) -> Tensor:
    """The weights that the *backward* pass uses: d output[i] / d value[j], (B,H,Q,K).

    A fused kernel recomputes them, so they need not be those of the forward pass.
    """
    value = value.detach().requires_grad_()
    output = subject(query, key, value, mask)
    c = scale_of(value.dtype)
    rows = []
    for i in range(query.shape[2]):
        chosen = torch.zeros_like(output)
        chosen[:, :, i, 0] = c
        (gradient,) = torch.autograd.grad(output, value, chosen, retain_graph=True)
        rows.append(gradient[..., 0].double() / c)
    return torch.stack(rows, dim=2)


def scale_of(dtype: torch.dtype) -> float:
    return 2.0**15 if dtype == torch.float16 else 2.0**100


def expected_weights(query: Tensor, key: Tensor, mask: Tensor) -> Tensor:
    """softmax(Q Kᵀ / √d) over the allowed keys, in float64; zeros in a row that may see nothing.

    Vaswani et al. 2017, eq. 1: written without any care for what padding holds.
    """
    query, key = query.detach().double(), key.detach().double()
    scores = query @ key.transpose(-1, -2) / query.shape[-1] ** 0.5
    scores = scores.masked_fill(~mask, float("-inf"))
    return scores.softmax(dim=-1).masked_fill(~mask, 0.0)
