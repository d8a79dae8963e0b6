"""Attention in a single call of torch's own SDPA: for where a plan would cost more than it saves.

That is on a GPU, which reading the mask would make wait, for the one query of a generation step,
and while torch compiles. What the mask hides is computed and thrown away.
"""

from typing import NamedTuple

import torch
from einops import rearrange, repeat
from torch import Tensor
from torch.nn import functional as F

from minitransformer.contract import may_read
from minitransformer.kernels.kernel import Kernel


class SdpaMask(NamedTuple):
    """What torch's kernel is given, and what is cleaned around it; None = there is nothing to do.

    On a GPU, which reading the mask would make wait, there is always something to do.
    """

    bias: Tensor | None  # the mask as 0 and -inf; fully masked queries may look anywhere
    dead: Tensor | None  # (batch or 1, heads or 1, Q, 1) bool: fully masked queries
    unused: Tensor | None  # (batch or 1, heads or 1, K, 1) bool: keys that no query sees


def sdpa_mask(mask: Tensor, batch: int, heads: int, dtype: torch.dtype) -> SdpaMask:
    dead, unused = ~mask.any(dim=3, keepdim=True), ~mask.any(dim=2).unsqueeze(-1)
    bias = torch.zeros_like(mask, dtype=dtype).masked_fill_(~(mask | dead), float("-inf"))
    if not may_read(mask):
        return SdpaMask(bias, dead, unused)
    return SdpaMask(
        None if mask.all() else bias,
        dead if dead.any() else None,
        unused if unused.any() else None,
    )


def compute_sdpa(query: Tensor, key: Tensor, value: Tensor, plan: SdpaMask, finite: bool) -> Tensor:
    bias, dead, unused = plan
    group = query.shape[1] // max(key.shape[1], 1)
    if group > 1:  # query heads that share a key are so many more queries of it
        query, bias, dead = (_as_queries(x, group) for x in (query, bias, dead))
        if unused is not None and unused.shape[1] > 1:
            unused = rearrange(unused, "b (h g) k 1 -> b h g k 1", g=group).all(dim=2)
    if unused is not None and not finite:  # 0 · NaN is NaN
        key, value = key.masked_fill(unused, 0.0), value.masked_fill(unused, 0.0)
    if dead is not None:
        query = query.masked_fill(dead, 0.0)
    bias = None if bias is None else bias.to(query.dtype)
    output = F.scaled_dot_product_attention(query, key, value, attn_mask=bias)
    if dead is not None:
        output = output.masked_fill(dead, 0.0)
    return rearrange(output, "b h (g q) d -> b (h g) q d", g=group) if group > 1 else output


def _as_queries(x: Tensor | None, group: int) -> Tensor | None:
    """(b, heads or 1, q, n) -> (b, heads / group or 1, group · q, n)."""
    if x is None or (x.shape[1] == 1 and x.shape[2] == 1):  # which are alike for all
        return x
    if x.shape[1] == 1:
        return repeat(x, "b 1 q n -> b 1 (g q) n", g=group)
    return rearrange(x, "b (h g) q n -> b h (g q) n", g=group)


sdpa_attention = Kernel("sdpa", sdpa_mask, compute_sdpa)
