"""What is refused, in words that say what was expected, what came and what to do."""

import torch
from torch import Tensor


def check_attention(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor, grouped: bool = False
) -> None:
    """Refuse what would broadcast or cast silently in an attention function.

    Where `grouped`, key and value may have fewer heads, each for several of the query's.
    """
    for name, tensor in {"query": query, "key": key, "value": value, "mask": mask}.items():
        if not isinstance(tensor, Tensor):
            raise TypeError(f"{name} must be a tensor, got {type(tensor).__name__}")
        if tensor.ndim != 4:
            axes = "queries, keys" if name == "mask" else "length, width"
            raise ValueError(
                f"{name} must be (batch, heads, {axes}), got shape {tuple(tensor.shape)}"
                + ("; for a (batch, length) mask call padding_mask()" if name == "mask" else "")
            )
    if mask.dtype != torch.bool:
        raise TypeError(
            f"mask must be bool (True = may attend), got {mask.dtype}; "
            "for a 0/1 attention_mask call padding_mask()"
        )
    if not query.is_floating_point() or not query.dtype == key.dtype == value.dtype:
        raise TypeError(
            "query, key and value must share one floating dtype, "
            f"got {query.dtype}, {key.dtype} and {value.dtype}"
        )
    batch, heads, queries, width = query.shape
    kv_heads, keys = key.shape[1:3]
    fits = kv_heads and heads % kv_heads == 0 if grouped else kv_heads == heads
    if not fits or key.shape != (batch, kv_heads, keys, width) or value.shape[:3] != key.shape[:3]:
        raise ValueError(
            "expected query (B,H,Q,D), key (B,H,K,D) and value (B,H,K,Dv), "
            f"got {tuple(query.shape)}, {tuple(key.shape)} and {tuple(value.shape)}"
        )
    if (
        mask.shape[0] not in (1, batch)
        or mask.shape[1] not in (1, heads)
        or mask.shape[2:] != (queries, keys)
    ):
        raise ValueError(
            f"mask must be ({batch} or 1, {heads} or 1, {queries} queries, {keys} keys), "
            f"got {tuple(mask.shape)}"
        )


def check_attention_mask(attention_mask: Tensor, name: str = "attention_mask") -> None:
    """Refuse what is not (batch, length) of int or bool, 0 or more."""
    if not isinstance(attention_mask, Tensor):
        raise TypeError(f"{name} must be a tensor, got {type(attention_mask).__name__}")
    if attention_mask.is_floating_point() or attention_mask.is_complex():
        raise TypeError(
            f"{name} must be int or bool (0 = padding, 1 = real token), "
            f"got {attention_mask.dtype}; an additive mask becomes one by `mask == 0`"
        )
    if attention_mask.ndim != 2:
        raise ValueError(f"{name} must be (batch, length), got {tuple(attention_mask.shape)}")
    # Reading values back would stall a GPU, so they are looked at on the CPU only.
    on_cpu = attention_mask.device.type == "cpu"
    if on_cpu and attention_mask.numel() and attention_mask.min() < 0:
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
    if ids.device.type != "cpu":  # reading back would stall a GPU, whose lookup checks them
        return
    outside = (attention_mask != 0) & ((ids < 0) | (ids >= count))
    if outside.any():
        row, column = outside.nonzero()[0].tolist()
        raise ValueError(
            f"{name} must be in [0, {count}), got {ids[row, column]} "
            f"at row {row}, position {column}"
        )
