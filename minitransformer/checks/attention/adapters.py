"""Attention functions of other forms, as fn(query, key, value, mask) that can be checked.

check_attention(from_varlen(my_kernel), mask_layout="b k")
check_attention(from_mask_mod(my_flex_attention), mask_layout="b h q k")
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F


def from_varlen(fn: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """A function of packed sequences, for masks (B,K) of the keys: the others are left out.

    `fn(query, key, value, cu_seqlens_q, cu_seqlens_k, max_q, max_k)` takes and returns (tokens,
    heads, width), where sequence i is the tokens from cu_seqlens[i] up to cu_seqlens[i + 1].
    """

    def attend(query: Tensor, key: Tensor, value: Tensor, mask: Tensor) -> Tensor:
        batch, _, queries, _ = query.shape
        lengths_q = torch.full((batch,), queries, device=mask.device)
        lengths_k = mask.sum(dim=1)
        output = fn(
            query.transpose(1, 2).flatten(0, 1),
            key.transpose(1, 2)[mask],
            value.transpose(1, 2)[mask],
            _boundaries(lengths_q),
            _boundaries(lengths_k),
            queries,
            int(lengths_k.max()),
        )
        return output.unflatten(0, (batch, queries)).transpose(1, 2)

    return attend


def _boundaries(lengths: Tensor) -> Tensor:
    """(B,) -> (B + 1,) int32: where each sequence begins, and where the last one ends."""
    return F.pad(lengths.cumsum(dim=0), (1, 0)).int()


def from_mask_mod(fn: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """A function that asks for each score whether it counts, as FlexAttention does.

    `fn(query, key, value, mask_mod)`, where mask_mod(b, h, q, k) is True for a key to attend to;
    for masks (B,H,Q,K).
    """

    def attend(query: Tensor, key: Tensor, value: Tensor, mask: Tensor) -> Tensor:
        return fn(query, key, value, lambda b, h, q, k: mask[b, h, q, k])

    return attend
