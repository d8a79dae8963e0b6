"""An attention function as a subject, and how its weights are read from outside.

`attention_weights_of` needs no access to what is inside: output = weights · value, so a value of
c · identity makes the output c · weights.
"""

from collections.abc import Callable, Iterator
from copy import deepcopy
from dataclasses import dataclass, replace
from functools import partial
from math import isfinite, prod
from typing import Any, ClassVar

import torch
from einops import rearrange
from torch import Tensor, nn

from minitransformer.checks.engine.check import expect, needs
from minitransformer.checks.engine.subject import Subject, one_of, other_conventions

ANY_MASK = "b h q k"
DTYPES = ("float32", "float64", "bfloat16", "float16")
AXES = {"b", "h", "t", "d"}
HEADS = 2  # it is asked with
GROUP = 3  # query heads for each key head, where it declares kv_heads

Reference = Callable[[Tensor, Tensor, Tensor], Tensor]  # (query, key, mask) -> weights


@dataclass(frozen=True)
class AttentionSubject(Subject):
    """An attention function `fn(query, key, value, mask) -> output` or `(output, weights)`.

    An nn.Module is never touched: a copy of it in evaluation mode is checked. What it may declare,
    with the defaults that fit torch's `scaled_dot_product_attention`:

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
    softcap       c of a soft cap c · tanh(scores / c), taken before the mask (Gemma 2); 0: none
    sums_to_one   False: a query's weights may sum to less, by a factor of its own (attention sinks,
                  a softmax with 1 in the denominator); compared with the formula up to that factor
    reference     another formula than softmax(QKᵀ/√d): fn(query, key, mask) -> weights, of float64
                  (B,H,Q,D), (B,H,K,D) and bool (B,H,Q,K), of any sizes, with gradients if it can
    kv_heads      grouped-query attention: it is given so many heads of keys and values, each for
                  3 neighboring heads of queries; 0: as many as heads of queries
    arrays        "torch", or "numpy": it takes and returns arrays of NumPy, without gradients
    causal_flag, dropout_flag   the names of such arguments: "is_causal", "dropout_p"
    refuses_misuse  it raises an error for a mask of a shape that it does not take

    Functions of packed sequences (cu_seqlens) or of a mask_mod get their masks by `adapters`.
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
    softcap: float = 0.0
    sums_to_one: bool = True
    reference: Reference | None = None
    kv_heads: int = 0
    arrays: str = "torch"
    full_masks: bool | None = None  # whether queries may differ; None: as mask_layout says

    def __post_init__(self):
        super().__post_init__()
        if isinstance(self.fn, nn.Module):
            object.__setattr__(self, "fn", deepcopy(self.fn).eval())
        axes = self.layout.split()
        if not {"t", "d"} <= set(axes) <= AXES or len(set(axes)) < len(axes):
            raise ValueError(f"layout must name t and d, and b and h if any: got {self.layout!r}")
        mask_axes = self.mask_layout.split()
        if "k" not in mask_axes or not set(mask_axes) <= {"b", "h", "q", "k", "1"}:
            raise ValueError(f"mask_layout must be of b h q k and 1s: got {self.mask_layout!r}")
        one_of("mask_means", self.mask_means, ("attend", "ignore"))
        one_of("mask_values", self.mask_values, ("bool", "int", "additive"))
        one_of("dead_rows", self.dead_rows, ("zeros", "any"))
        one_of("arrays", self.arrays, ("torch", "numpy"))
        if not (isfinite(self.softcap) and self.softcap >= 0.0):
            raise ValueError(f"softcap must be a positive number, or 0, got {self.softcap!r}")
        if self.reference is not None and not callable(self.reference):
            raise TypeError(f"reference must be a function, got {type(self.reference).__name__}")
        if self.reference is not None and self.softcap:
            raise ValueError("give a reference or a softcap: the reference is the whole formula")
        if self.kv_heads < 0 or (self.kv_heads and "h" not in axes):
            raise ValueError(f"kv_heads must be 0 or more, in a layout with h: got {self.kv_heads}")
        if self.arrays == "numpy":
            of_numpy = tuple(dtype for dtype in self.dtypes if dtype != torch.bfloat16)
            if not of_numpy:
                raise ValueError("NumPy has no bfloat16: declare another of dtypes")
            object.__setattr__(self, "dtypes", of_numpy)
            object.__setattr__(self, "differentiable", False)
        if self.full_masks is None:
            object.__setattr__(self, "full_masks", "q" in mask_axes)

    @property
    def heads(self) -> tuple[int, int]:
        """How many heads of queries, and of keys and values, it is asked with."""
        return (GROUP * self.kv_heads, self.kv_heads) if self.kv_heads else (HEADS, HEADS)

    @property
    def up_to_a_factor(self) -> bool:
        """Its weights are known up to a factor for each query: some go to no key at all."""
        return not self.sums_to_one and self.reference is None

    @property
    def formula(self) -> str:
        """What its output is compared with, in words."""
        if self.reference is not None:
            return "the reference's weights · V"
        cap = self.softcap
        scores = f"{cap:g}·tanh(QKᵀ/√d / {cap:g})" if cap else "QKᵀ/√d"
        return f"softmax({scores}) V" + (", scaled to its sum," if self.up_to_a_factor else "")

    def expected_weights(self, query: Tensor, key: Tensor, mask: Tensor) -> Tensor:
        """The formula's weights in float64, (B,H,Q,K); zeros at fully masked queries."""
        query, key = query.double(), per_query_head(key.double(), query)
        mask = mask.expand(*query.shape[:3], key.shape[2])
        if self.reference is None:
            return expected_weights(query, key, mask, self.softcap)
        weights = self.reference(query, key, mask)
        if not isinstance(weights, Tensor) or weights.shape != mask.shape:
            raise ValueError(
                f"reference must return weights of shape {tuple(mask.shape)}, got "
                + (f"{tuple(weights.shape)}" if isinstance(weights, Tensor) else f"{weights!r}")
            )
        return weights.double().masked_fill(~mask.any(dim=-1, keepdim=True), 0.0)

    def stand_in(self, other: Any) -> "AttentionSubject | None":
        """Written for the standard layout, but asked only what this subject is asked.

        None where it is of another formula, or needs what this subject does not declare: it would
        fail by that.
        """
        if self.reference is not None or bool(self.softcap) != bool(other.softcap):
            return None
        if other.mask_values not in ("bool", self.mask_values):
            return None
        if other.kv_heads and not self.kv_heads:
            return None
        fn = partial(other.fn, softcap=self.softcap) if self.softcap else other.fn
        return replace(
            self,
            fn=_with_keys_repeated(fn) if self.kv_heads and not other.kv_heads else fn,
            name=other.name,
            layout="b h t d",
            mask_layout=self.mask_layout if self.mask_layout == "b h q k" else "b 1 q k",
            mask_means="attend",
            mask_values=other.mask_values,
            arrays="torch",
        )

    def otherwise(self) -> Iterator[dict[str, Any]]:
        """The other values and polarities of a mask; heads behind tokens, or none; masks of keys
        alone; arrays of NumPy."""
        yield from other_conventions(self)
        yield {"layout": "b h t d" if self.layout == "b t h d" else "b t h d"}
        if not self.kv_heads:
            yield {"layout": "b t d", "mask_layout": "b q k"}
        for layout in ("b k", "b 1 1 k"):
            for means in ("attend", "ignore"):
                yield {"mask_layout": layout, "mask_means": means, "full_masks": None}
        if self.arrays == "torch":
            yield {"arrays": "numpy"}

    def call(self, *given: Tensor, **flags: Any) -> Any:
        """What it returns for these tensors, in tensors."""
        if self.arrays == "torch":
            return super().call(*given, **flags)
        returned = super().call(*(x.detach().cpu().numpy() for x in given), **flags)
        if isinstance(returned, tuple | list):
            return [_as_tensor(x) for x in returned]
        return _as_tensor(returned)

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


def per_query_head(x: Tensor, query: Tensor) -> Tensor:
    """Keys or values (B,G,K,D) for each of the H heads of queries: neighbors share one."""
    return x.repeat_interleave(query.shape[1] // x.shape[1], dim=1)


def _with_keys_repeated(fn: Callable) -> Callable:
    """A function of as many heads of keys as of queries, for grouped heads."""

    def grouped(query: Tensor, key: Tensor, value: Tensor, mask: Tensor, **flags: Any) -> Any:
        return fn(query, per_query_head(key, query), per_query_head(value, query), mask, **flags)

    return grouped


def _as_tensor(x: Any) -> Any:
    """An array of NumPy as a tensor that shares its memory where it can; anything else as it is."""
    import numpy as np  # which only such subjects need

    if not isinstance(x, np.ndarray | np.generic):
        return x
    array = np.asarray(x)
    return torch.from_numpy(array.copy() if min(array.strides, default=0) < 0 else array)


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
    c, group = scale_of(value.dtype), query.shape[1] // value.shape[1]
    weights = torch.empty(*output.shape[:3], key.shape[2], dtype=torch.float64, device=key.device)
    for i in range(query.shape[2]):
        for first in range(group):  # one head of each group: the others share its values
            heads = slice(first, None, group)
            chosen = torch.zeros_like(output)
            chosen[:, heads, i, 0] = c
            (gradient,) = torch.autograd.grad(output, value, chosen, retain_graph=True)
            weights[:, heads, i] = gradient[..., 0].double() / c
    return weights


def scale_of(dtype: torch.dtype) -> float:
    return 2.0**15 if dtype == torch.float16 else 2.0**100


def expected_weights(query: Tensor, key: Tensor, mask: Tensor, softcap: float = 0.0) -> Tensor:
    """softmax(Q Kᵀ / √d) over the allowed keys, in float64; zeros in a row that may see nothing.

    Vaswani et al. 2017, eq. 1: written without any care for what padding holds. `softcap` caps the
    scores before the mask (Gemma 2, Riviere et al. 2024, section 2).
    """
    query, key = query.double(), key.double()
    scores = query @ key.transpose(-1, -2) / query.shape[-1] ** 0.5
    if softcap:
        scores = softcap * (scores / softcap).tanh()
    scores = scores.masked_fill(~mask, float("-inf"))
    return scores.softmax(dim=-1).masked_fill(~mask, 0.0)
