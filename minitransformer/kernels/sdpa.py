"""Attention in a single call of torch's own SDPA: for where a plan would cost more than it saves.

That is on a GPU, which reading the mask would make wait, for the one query of a generation step,
and while torch compiles. What the mask hides is computed and thrown away.
"""

from typing import NamedTuple

import torch
from einops import rearrange, repeat
from torch import Tensor
from torch.nn import functional as F

from minitransformer.kernels.kernel import Kernel


class SdpaMask(NamedTuple):
    """What torch's kernel is given, and what is cleaned around it: nothing of it is read back."""

    allowed: Tensor  # the mask, but fully masked queries may look anywhere: it is thrown away
    dead: Tensor  # (batch or 1, heads or 1, Q, 1): fully masked queries
    unused: Tensor  # (batch or 1, heads or 1, K, 1): keys that no query sees


def sdpa_mask(mask: Tensor, batch: int, heads: int, dtype: torch.dtype) -> SdpaMask:
    dead = ~mask.any(dim=3, keepdim=True)
    return SdpaMask(mask | dead, dead, ~mask.any(dim=2).unsqueeze(-1))


def compute_sdpa(query: Tensor, key: Tensor, value: Tensor, plan: SdpaMask, finite: bool) -> Tensor:
    allowed, dead, unused = plan
    group = query.shape[1] // max(key.shape[1], 1)
    if group > 1:  # query heads that share a key are so many more queries of it
        query, allowed, dead = (_as_queries(x, group) for x in (query, allowed, dead))
        if unused.shape[1] > 1:
            unused = rearrange(unused, "b (h g) k 1 -> b h g k 1", g=group).all(dim=2)
    if not finite:  # 0 · NaN is NaN
        key, value = key.masked_fill(unused, 0.0), value.masked_fill(unused, 0.0)
    query = query.masked_fill(dead, 0.0)
    output = F.scaled_dot_product_attention(query, key, value, attn_mask=allowed)
    output = output.masked_fill(dead, 0.0)
    return rearrange(output, "b h (g q) d -> b (h g) q d", g=group) if group > 1 else output


def _as_queries(x: Tensor, group: int) -> Tensor:
    """(b, heads or 1, q, n) -> (b, heads / group or 1, group · q, n)."""
    if x.shape[1] == 1:
        return repeat(x, "b 1 q n -> b 1 (g q) n", g=group)
    return rearrange(x, "b (h g) q n -> b h (g q) n", g=group)


sdpa_attention = Kernel("sdpa", sdpa_mask, compute_sdpa)
