"""Flash-attention of documents by their lengths: torch's, for half precision on CUDA.

Where a mask shows documents, each seen as a whole or causally, the tokens of one document after the
other and the documents' lengths are all that is needed (Dao 2023, "FlashAttention-2",
arXiv:2307.08691): no mask is given to the kernel, and memory grows with the tokens. Padding and
fully masked queries are left out, so what they hold reaches nothing. The mask is read on the CPU,
once for all layers; there a GPU is waited for, which `auto` never does.
"""

from collections.abc import Callable
from functools import cache
from inspect import signature
from typing import NamedTuple

import torch
from einops import rearrange, repeat
from torch import Tensor
from torch.nn import functional as F

from minitransformer.kernels.kernel import Kernel
from minitransformer.kernels.plan import CAUSAL, OTHER, Side, read_documents
from minitransformer.kernels.sdpa import SdpaMask, compute_sdpa, sdpa_mask


@cache
def torchs_kernel() -> Callable[..., Tensor] | None:
    """`varlen_attn`, if this torch has one with a window, as from 2.11 on; it imports much."""
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError:
        return None
    return varlen_attn if "window_size" in signature(varlen_attn).parameters else None


class Lengths(NamedTuple):
    """Documents one after the other; which token stands where, and where each document ends."""

    queries: Tensor  # (n,) indices into (batch · Q)
    keys: Tensor  # (m,) indices into (batch · K)
    query_ends: Tensor  # (documents + 1,) int32, from 0 on
    key_ends: Tensor
    longest: tuple[int, int]  # the most queries and the most keys of a document
    causal: bool
    back: Tensor  # (batch · Q,) indices into the n outputs; n = it is zero


def takes(mask: Tensor, dtype: torch.dtype) -> bool:
    """Can torch's kernel compute it here? NVIDIA's GPUs can from compute capability 8.0 on."""
    half = dtype in (torch.float16, torch.bfloat16)
    if not half or not mask.is_cuda or torch.version.hip or torchs_kernel() is None:
        return False
    return torch.cuda.get_device_capability(mask.device) >= (8, 0)


def plan_varlen(mask: Tensor, batch: int, heads: int, dtype: torch.dtype) -> Lengths | SdpaMask:
    """The lengths of the mask's documents; for all else what a single call of SDPA is given."""
    lengths = None
    if mask.shape[1] == 1 and mask.shape[2] > 1 and mask.numel() > 0 and takes(mask, dtype):
        lengths = _lengths(mask, batch)
    return lengths or sdpa_mask(mask, batch, heads, dtype)


def _lengths(mask: Tensor, batch: int) -> Lengths | None:
    """Of (batch or 1, 1, Q, K); None where a document is seen in another way than the others."""
    queries, keys, kinds = read_documents(mask, batch)
    causal = CAUSAL in kinds
    wholes = [n for n, kind in enumerate(kinds) if kind != CAUSAL]
    # To a single query a document seen as a whole and one seen causally are the same.
    if not kinds or OTHER in kinds or (causal and (queries.lengths[wholes] > 1).any()):
        return None
    back = torch.full((batch * mask.shape[2],), len(queries.tokens))
    back[queries.tokens] = torch.arange(len(queries.tokens))
    tensors = queries.tokens, keys.tokens, _ends(queries), _ends(keys)
    there = [x.to(mask.device, non_blocking=True) for x in (*tensors, back)]
    longest = int(queries.lengths.max()), int(keys.lengths.max())
    return Lengths(*there[:4], longest, causal, there[4])


def _ends(side: Side) -> Tensor:
    return F.pad(side.lengths.cumsum(0), (1, 0)).int()


def compute_varlen(
    query: Tensor, key: Tensor, value: Tensor, plan: Lengths | SdpaMask, finite: bool
) -> Tensor:
    if isinstance(plan, SdpaMask):
        return compute_sdpa(query, key, value, plan, finite)
    width, room = query.shape[3], max(query.shape[3], value.shape[3])
    room += -room % 8  # the kernel takes one width for all, a multiple of 8: zeros change nothing
    group = query.shape[1] // key.shape[1]
    key, value = (repeat(x, "b h k d -> b (h g) k d", g=group) for x in (key, value))
    sides = (query, plan.queries), (key, plan.keys), (value, plan.keys)
    inputs = [F.pad(_tokens(x).index_select(0, at), (0, room - x.shape[3])) for x, at in sides]
    output = torchs_kernel()(
        *inputs,
        plan.query_ends,
        plan.key_ends,
        *plan.longest,
        scale=width**-0.5,
        window_size=(-1, 0 if plan.causal else -1),  # the keys behind and ahead; -1: all
    )
    output = F.pad(output[..., : value.shape[3]], (0, 0, 0, 0, 0, 1))  # one more: of zeros
    return rearrange(output.index_select(0, plan.back), "(b q) h d -> b h q d", b=len(query))


def _tokens(x: Tensor) -> Tensor:
    return rearrange(x, "b h t d -> (b t) h d")


varlen_attention = Kernel("varlen", plan_varlen, compute_varlen)
