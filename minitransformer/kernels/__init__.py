"""The same functions, faster: each gives what the plain one gives, up to rounding."""

from collections.abc import Callable

import torch
from torch import Tensor

from minitransformer.config import ATTENTIONS
from minitransformer.kernels.sdpa import sdpa_attention
from minitransformer.kernels.strips import fused_attention, online_attention, tiled_attention

Kernel = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]  # (query, key, value, mask) -> output


def attention_kernel(name: str) -> Kernel | None:
    """The attention of that name, as `Config.attention` says it; None is the plain formula.

    A kernel takes (query, key, value, mask) as `scaled_dot_product_attention` does, and key/value
    heads that several query heads share, and returns the output alone.

    Raises ValueError for a name that there is not, ImportError where "triton" is not installed.
    """
    if name == "triton":
        from minitransformer.kernels.triton_attention import triton_attention

        return triton_attention
    if name not in ATTENTIONS:
        raise ValueError(f"attention must be one of {', '.join(ATTENTIONS)}, got {name!r}")
    return {
        "auto": auto_attention,
        "tiled": tiled_attention,
        "fused": fused_attention,
        "online": online_attention,
        "sdpa": sdpa_attention,
    }.get(name)


def auto_attention(query: Tensor, key: Tensor, value: Tensor, mask: Tensor) -> Tensor:
    """What is fastest on a CPU, and on a GPU what never waits (Triton has to be asked for)."""
    if query.device.type != "cpu":
        return sdpa_attention(query, key, value, mask)
    if query.dtype.itemsize < 4 and torch.is_grad_enabled():  # on its way back torch's is slow then
        output = fused_attention(query.float(), key.float(), value.float(), mask)
        return output.to(value.dtype)
    return fused_attention(query, key, value, mask)
