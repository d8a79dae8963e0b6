"""Attention in a single call of torch's own SDPA: for where a plan would cost more than it saves.

That is on a GPU, which reading the mask would make wait, for the one query of a generation step,
and while torch compiles. What the mask hides is computed and thrown away.
"""

from contextlib import nullcontext
from typing import Any, NamedTuple

import torch
from einops import rearrange, repeat
from torch import Tensor
from torch.linalg import vector_norm
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from minitransformer.contract import may_read
from minitransformer.kernels.kernel import Kernel
from minitransformer.kernels.plan import as_bias

BUT_CUDNN = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]


Places = Tensor | tuple  # of tokens: (batch or 1, heads or 1, length, 1) bool, or their indices


class SdpaMask(NamedTuple):
    """What torch's kernel is given, and what is cleaned around it; None = there is nothing to do.

    On a GPU, which reading the mask would make wait, there is always something to do.
    """

    bias: Tensor | None  # the mask as 0 and -inf; fully masked queries may look anywhere
    dead: Places | None  # fully masked queries
    unused: Places | None  # keys that no query sees


def sdpa_mask(mask: Tensor, batch: int, heads: int, dtype: torch.dtype) -> SdpaMask:
    dead, unused = ~mask.any(dim=3, keepdim=True), ~mask.any(dim=2).unsqueeze(-1)
    bias = as_bias(mask | dead, dtype)
    if not may_read(mask):
        return SdpaMask(bias, dead, unused)
    return SdpaMask(None if mask.all() else bias, _indices(dead, batch), _indices(unused, batch))


def _indices(where: Tensor, batch: int) -> tuple | None:
    """Into (batch, heads, length, width): for few tokens ten times as fast as a mask of them."""
    rows, heads, tokens, _ = where.expand(batch, -1, -1, 1).nonzero(as_tuple=True)
    if len(rows) == 0:
        return None
    return rows, heads if where.shape[1] > 1 else slice(None), tokens


def compute_sdpa(query: Tensor, key: Tensor, value: Tensor, plan: SdpaMask, finite: bool) -> Tensor:
    bias, dead, unused = plan
    group = query.shape[1] // max(key.shape[1], 1)
    a_mask_each = bias is not None and bias.shape[1] > 1
    if group > 1 and (a_mask_each or (query.shape[2] > 1 and not query.is_cpu)):
        # As queries of it they would need a mask of their own, a large copy in each layer.
        key, value = (repeat(x, "b h k d -> b (h g) k d", g=group) for x in (key, value))
        group = 1
    unused = None if finite else unused
    if unused is None or not _stay_finite(query, key, value, unused):  # 0 · NaN is NaN
        key, value = _zeroed(key, unused), _zeroed(value, unused)
        query = _zeroed(query, dead)
    if group > 1:  # query heads that share a key are so many more queries of it
        query = rearrange(query, "b (h g) q d -> b h (g q) d", g=group)
        if bias is not None and bias.shape[2] > 1:
            bias = repeat(bias, "b 1 q k -> b 1 (g q) k", g=group)
    bias = None if bias is None else bias.to(query.dtype)
    output = fused_kernel(query, key, value, attn_mask=bias)
    if group > 1:
        output = rearrange(output, "b h (g q) d -> b (h g) q d", g=group)
    return _zeroed(output, dead, in_place=not output.requires_grad)


def fused_kernel(query: Tensor, key: Tensor, value: Tensor, **options: Any) -> Tensor:
    """torch's scaled_dot_product_attention, by the fastest of its kernels that is right.

    cuDNN's, which torch prefers on new GPUs, gives NaN gradients under a mask of low scores
    (pytorch issue 196678) and plans anew for each length, so in generation for each token.
    """
    usable = sdpa_kernel(BUT_CUDNN) if query.is_cuda else nullcontext()
    with usable:
        return F.scaled_dot_product_attention(query, key, value, **options)


def _stay_finite(query: Tensor, key: Tensor, value: Tensor, unused: Places) -> bool:
    """Can no score be NaN or Inf, and no value that is not seen? To read is faster than to copy.

    |q · k| ≤ |q| |k| (Cauchy and Schwarz), and a norm is finite only where all numbers are.
    """
    if isinstance(unused, Tensor) or not may_read(query):
        return False
    q, k, v = (vector_norm(x.detach()).item() for x in (query, key, value[unused]))
    return q * k + v < torch.finfo(torch.float32).max


def _zeroed(x: Tensor, where: Places | None, in_place: bool = False) -> Tensor:
    """(batch, heads, length, width) with zeros there."""
    if where is None:
        return x
    if isinstance(where, Tensor):
        return x.masked_fill(where, 0.0)
    x = x if in_place else x.clone()
    x[where] = 0.0
    return x


sdpa_attention = Kernel("sdpa", sdpa_mask, compute_sdpa)
