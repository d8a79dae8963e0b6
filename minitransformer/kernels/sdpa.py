"""Attention in a single call of torch's own SDPA: for where a plan would cost more than it saves.

That is on a GPU, which reading the mask would make wait, for the one query of a generation step,
and while torch compiles. What the mask hides is computed and thrown away.
"""

from contextlib import nullcontext
from typing import Any, NamedTuple

import torch
from einops import rearrange, repeat
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from minitransformer.contract import may_read
from minitransformer.kernels.kernel import Kernel
from minitransformer.kernels.plan import as_bias

BUT_CUDNN = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]


class SdpaMask(NamedTuple):
    """What torch's kernel is given, and what is cleaned around it; None = there is nothing to do.

    On a GPU, which reading the mask would make wait, there is always something to do.
    """

    bias: Tensor | None  # the mask as 0 and -inf; fully masked queries may look anywhere
    dead: Tensor | None  # (batch or 1, heads or 1, Q, 1) bool: fully masked queries
    unused: Tensor | None  # (batch or 1, heads or 1, K, 1) bool: keys that no query sees


def sdpa_mask(mask: Tensor, batch: int, heads: int, dtype: torch.dtype) -> SdpaMask:
    dead, unused = ~mask.any(dim=3, keepdim=True), ~mask.any(dim=2).unsqueeze(-1)
    bias = as_bias(mask | dead, dtype)
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
    if group > 1 and query.shape[2] > 1 and query.device.type != "cpu":
        # As queries of it they would need a mask of their own, a large copy in each layer.
        key, value = (repeat(x, "b h k d -> b (h g) k d", g=group) for x in (key, value))
        group = 1
    if group > 1:  # query heads that share a key are so many more queries of it
        query, bias, dead = (_as_queries(x, group) for x in (query, bias, dead))
        if unused is not None and unused.shape[1] > 1:
            unused = rearrange(unused, "b (h g) k 1 -> b h g k 1", g=group).all(dim=2)
    unused = None if finite else unused
    if unused is None or not _stay_finite(query, key, value):  # 0 · NaN is NaN
        if unused is not None:
            key, value = key.masked_fill(unused, 0.0), value.masked_fill(unused, 0.0)
        if dead is not None:
            query = query.masked_fill(dead, 0.0)
    bias = None if bias is None else bias.to(query.dtype)
    output = fused_kernel(query, key, value, attn_mask=bias)
    if dead is not None:
        output = _zeroed(output, dead)
    return rearrange(output, "b h (g q) d -> b (h g) q d", g=group) if group > 1 else output


def fused_kernel(query: Tensor, key: Tensor, value: Tensor, **options: Any) -> Tensor:
    """torch's scaled_dot_product_attention, by the fastest of its kernels that is right.

    cuDNN's, which torch prefers on new GPUs, gives NaN gradients under a mask of low scores
    (pytorch issue 196678) and plans anew for each length, so in generation for each token.
    """
    usable = sdpa_kernel(BUT_CUDNN) if query.device.type == "cuda" else nullcontext()
    with usable:
        return F.scaled_dot_product_attention(query, key, value, **options)


def _stay_finite(query: Tensor, key: Tensor, value: Tensor) -> bool:
    """Can no score and no value be NaN or Inf? Three reads on a CPU, which three copies are not.

    |q · k| ≤ |q| |k| (Cauchy and Schwarz), and a norm is finite only where all numbers are.
    """
    if not all(may_read(x) for x in (query, key, value)):
        return False
    norms = [torch.linalg.vector_norm(x.detach()).float() for x in (query, key, value)]
    return bool((norms[0] * norms[1] + norms[2]).isfinite())


def _zeroed(x: Tensor, where: Tensor) -> Tensor:
    """(b, h, t, d) with zeros where (b or 1, h or 1, t, 1) says: a copy where x may be needed."""
    if not may_read(where):
        return x.masked_fill(where, 0.0)
    places = where.expand(*x.shape[:3], 1).squeeze(-1).nonzero(as_tuple=True)
    x = x.clone() if x.requires_grad else x
    x[places] = 0.0  # for few tokens ten times as fast as to fill on a CPU
    return x


def _as_queries(x: Tensor | None, group: int) -> Tensor | None:
    """(b, heads or 1, q, n) -> (b, heads / group or 1, group · q, n)."""
    if x is None or (x.shape[1] == 1 and x.shape[2] == 1):  # which are alike for all
        return x
    if x.shape[1] == 1:
        return repeat(x, "b 1 q n -> b 1 (g q) n", g=group)
    return rearrange(x, "b (h g) q n -> b h (g q) n", g=group)


sdpa_attention = Kernel("sdpa", sdpa_mask, compute_sdpa)
