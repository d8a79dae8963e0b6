"""What every attention function refuses, in words that say what to do."""

import torch
from torch import Tensor


def check_attention(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor, grouped: bool = False
) -> None:
    """Refuse misuse with what was expected, what came and what to do.

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
