"""What is refused, in words that say what was expected, what came and what to do."""

import torch
from torch import Tensor


def is_traced(*tensors: Tensor) -> bool:
    """Have the tensors no values yet: while torch compiles or exports, within `torch.func`?"""
    return torch.compiler.is_compiling() or any(map(_is_wrapped, tensors))


_is_wrapped = torch._C._functorch.is_functorch_wrapped_tensor  # by vmap, grad and their like


def may_read(x: Tensor) -> bool:
    """Can the values of `x` be looked at here? On a GPU that would mean to wait for it."""
    return not is_traced(x) and x.device.type == "cpu"


def at_least_float32(x: Tensor) -> Tensor:
    """Half precision as float32; float32 and float64 as they are."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def check_heads(d_model: int, num_heads: int, num_kv_heads: int) -> None:
    """Refuse heads that do not divide the width, or groups that do not divide the heads."""
    if num_heads < 1 or d_model % num_heads:
        raise ValueError(f"d_model must be a multiple of num_heads, got {d_model} and {num_heads}")
    if num_kv_heads < 1 or num_heads % num_kv_heads:
        raise ValueError(
            f"num_heads must be a multiple of num_kv_heads, got {num_heads} and {num_kv_heads}"
        )


def check_tensor(name: str, x: Tensor) -> None:
    if not isinstance(x, Tensor):
        raise TypeError(f"{name} must be a tensor, got {type(x).__name__}")


def check_attention_inputs(query: Tensor, key: Tensor, value: Tensor, mask: Tensor) -> None:
    """Refuse what would broadcast or cast silently in an attention function."""
    for name, x in {"query": query, "key": key, "value": value}.items():
        check_tensor(name, x)
        if x.ndim != 4:
            raise ValueError(f"{name} must be (batch, heads, length, width), got shape {_shape(x)}")
    check_mask(mask)
    if not query.is_floating_point() or not query.dtype == key.dtype == value.dtype:
        raise TypeError(
            "query, key and value must share one floating dtype, "
            f"got {query.dtype}, {key.dtype} and {value.dtype}"
        )
    batch, heads, queries, width = query.shape
    kv_heads, keys = key.shape[1:3]
    groups = kv_heads > 0 and heads % kv_heads == 0
    same = key.shape[0] == batch and key.shape[3] == width and value.shape[:3] == key.shape[:3]
    if not groups or not same:
        raise ValueError(
            "expected query (B,H,Q,D), key (B,G,K,D) and value (B,G,K,Dv), where H is a multiple "
            f"of G, got {_shape(query)}, {_shape(key)} and {_shape(value)}"
        )
    check_mask(mask, (batch, heads, queries, keys))


def check_mask(mask: Tensor, sizes: tuple[int, int, int, int] | None = None) -> None:
    """Refuse what is not (batch or 1, heads or 1, queries, keys) of bool, here of these sizes."""
    check_tensor("mask", mask)
    if mask.ndim != 4:
        raise ValueError(
            f"mask must be (batch, heads, queries, keys), got shape {_shape(mask)}; "
            "for a (batch, length) mask call padding_mask()"
        )
    if mask.dtype != torch.bool:
        raise TypeError(
            f"mask must be bool (True = may attend), got {mask.dtype}; "
            "for a 0/1 attention_mask call padding_mask()"
        )
    if sizes is None:
        return
    batch, heads, queries, keys = sizes
    allowed = (1, batch), (1, heads), (queries,), (keys,)
    if not all(size in fits for size, fits in zip(mask.shape, allowed, strict=True)):
        raise ValueError(
            f"mask must be ({batch} or 1, {heads} or 1, {queries} queries, {keys} keys), "
            f"got {_shape(mask)}"
        )


def check_attention_mask(attention_mask: Tensor, name: str = "attention_mask") -> None:
    """Refuse what is not (batch, length) of int or bool, 0 or more."""
    check_tensor(name, attention_mask)
    if attention_mask.is_floating_point() or attention_mask.is_complex():
        raise TypeError(
            f"{name} must be int or bool (0 = padding, 1 = real token), "
            f"got {attention_mask.dtype}; an additive mask becomes one by `mask == 0`"
        )
    if attention_mask.ndim != 2:
        raise ValueError(f"{name} must be (batch, length), got {_shape(attention_mask)}")
    if may_read(attention_mask) and attention_mask.numel() and attention_mask.min() < 0:
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
            f"got {_shape(ids)} and {_shape(attention_mask)}"
        )
    if not may_read(ids):  # a GPU's own lookup checks them
        return
    outside = (attention_mask != 0) & ((ids < 0) | (ids >= count))
    if outside.any():
        row, column = outside.nonzero()[0].tolist()
        raise ValueError(
            f"{name} must be in [0, {count}), got {ids[row, column]} "
            f"at row {row}, position {column}"
        )


def _shape(x: Tensor) -> tuple[int, ...]:
    return tuple(x.shape)
