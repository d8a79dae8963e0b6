"""What is refused, in words that say what was expected, what came and what to do."""

from itertools import pairwise

import torch
from torch import Tensor


def is_transforming() -> bool:
    """Is `torch.func` at work, its vmap or grad, whose tensors have no values of their own?"""
    return not torch.compiler.is_compiling() and torch._C._are_functorch_transforms_active()


def may_read(x: Tensor) -> bool:
    """Can values be looked at? Not while torch compiles; and a GPU would have to be waited for."""
    return x.is_cpu and not torch.compiler.is_compiling() and not is_transforming()


def at_least_float32(x: Tensor) -> Tensor:
    """Half precision as float32; float32 and float64 as they are."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def check_heads(d_model: int, num_heads: int, num_kv_heads: int) -> None:
    """Refuse heads that do not divide the width, or groups that do not divide the heads."""
    numbers = {"d_model": d_model, "num_heads": num_heads, "num_kv_heads": num_kv_heads}
    for (name, number), (part, size) in pairwise(numbers.items()):
        if size < 1 or number % size:
            raise ValueError(f"{name} must be a multiple of {part}, got {number} and {size}")


def check_integer(name: str, number: int, least: int) -> None:
    if type(number) is not int or number < least:
        raise ValueError(f"{name} must be an integer >= {least}, got {number!r}")


def check_tensor(name: str, x: Tensor, axes: str = "", hint: str = "") -> None:
    """Refuse what is not a tensor with these axes, which commas separate."""
    if not isinstance(x, Tensor):
        raise TypeError(f"{name} must be a tensor, got {type(x).__name__}")
    if axes and x.ndim != axes.count(",") + 1:
        raise ValueError(f"{name} must be ({axes}), got shape {tuple(x.shape)}{hint}")


def check_attention_inputs(query: Tensor, key: Tensor, value: Tensor, mask: Tensor) -> None:
    """Refuse what would broadcast or cast silently in an attention function."""
    for name, x in {"query": query, "key": key, "value": value}.items():
        check_tensor(name, x, "batch, heads, length, width")
    if not query.is_floating_point() or not query.dtype == key.dtype == value.dtype:
        raise TypeError(
            "query, key and value must share one floating dtype, "
            f"got {query.dtype}, {key.dtype} and {value.dtype}"
        )
    (batch, heads, queries, width), (kv_heads, keys) = query.shape, key.shape[1:3]
    fit = key.shape[::3] == (batch, width) and value.shape[:3] == key.shape[:3]
    if not fit or heads % (kv_heads or heads + 1):
        raise ValueError(
            "expected query (B,H,Q,D), key (B,G,K,D) and value (B,G,K,Dv), where H is a multiple "
            f"of G, got {tuple(query.shape)}, {tuple(key.shape)} and {tuple(value.shape)}"
        )
    check_mask(mask, (batch, heads, queries, keys))


def check_mask(mask: Tensor, sizes: tuple[int, ...] = ()) -> None:
    """Refuse what is not bool of four axes, (batch or 1, heads or 1, queries, keys) of `sizes`."""
    hint = "for a 0/1 attention_mask call padding_mask()"
    check_tensor("mask", mask, "batch, heads, queries, keys", f"; {hint}")
    if mask.dtype != torch.bool:
        raise TypeError(f"mask must be bool (True = may attend), got {mask.dtype}; {hint}")
    for axis, size in enumerate(sizes):
        if mask.shape[axis] != size and (axis > 1 or mask.shape[axis] != 1):
            raise ValueError(
                "mask must be ({} or 1, {} or 1, {} queries, {} keys), ".format(*sizes)
                + f"got {tuple(mask.shape)}"
            )


def check_attention_mask(attention_mask: Tensor, name: str = "attention_mask") -> None:
    """Refuse what is not (batch, length) of int or bool, 0 or more."""
    check_tensor(name, attention_mask, "batch, length")
    if attention_mask.is_floating_point() or attention_mask.is_complex():
        raise TypeError(
            f"{name} must be int or bool (0 = padding, 1 = real token), "
            f"got {attention_mask.dtype}; an additive mask becomes one by `mask == 0`"
        )
    if may_read(attention_mask) and (attention_mask < 0).any():
        raise ValueError(
            f"{name} must be 0 (padding) or the number of a document, got {attention_mask.min()}"
        )


def check_ids(name: str, ids: Tensor, attention_mask: Tensor, count: int) -> None:
    """Refuse ids that are not (batch, length) integers, or at a real token not in [0, count)."""
    if ids.dtype not in (torch.int64, torch.int32):
        raise TypeError(f"{name} must be int64 or int32, got {ids.dtype}")
    if ids.shape != attention_mask.shape:
        raise ValueError(
            f"{name} and attention_mask must both be (batch, length), "
            f"got {tuple(ids.shape)} and {tuple(attention_mask.shape)}"
        )
    check_range(name, ids, attention_mask != 0, count)


def check_range(name: str, x: Tensor, counts: Tensor, limit: int, rule: str = "must be") -> None:
    """Refuse what counts in `x` and is not in [0, limit)."""
    outside = counts & ((x < 0) | (x >= limit))
    if may_read(x) and outside.any():  # a GPU's own lookup refuses them
        where = " at row {}, position {}".format(*outside.nonzero()[0]) if x.ndim == 2 else ""
        raise ValueError(f"{name} {rule} in [0, {limit}), got {x[outside][0]}{where}")
