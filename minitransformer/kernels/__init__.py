"""The same functions, faster: each gives what the plain one gives, up to rounding."""

from collections.abc import Callable

from torch import Tensor

from minitransformer.config import ATTENTIONS
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
    }.get(name)


def auto_attention(query: Tensor, key: Tensor, value: Tensor, mask: Tensor) -> Tensor:
    """Whichever kind of strips is fastest here (Triton's kernel has to be asked for by name)."""
    if query.device.type == "cpu" and query.dtype.itemsize < 4:  # there torch's kernel is slower
        return tiled_attention(query, key, value, mask)
    return fused_attention(query, key, value, mask)
