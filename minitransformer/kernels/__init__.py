"""The same functions, faster: each gives what the reference gives, up to rounding."""

from minitransformer.config import ATTENTIONS
from minitransformer.kernels.kernel import Kernel
from minitransformer.kernels.sdpa import sdpa_attention
from minitransformer.kernels.strips import (
    auto_attention,
    fused_attention,
    online_attention,
    tiled_attention,
)
from minitransformer.kernels.varlen import varlen_attention

KERNELS = {
    kernel.name: kernel
    for kernel in (
        auto_attention,
        fused_attention,
        online_attention,
        sdpa_attention,
        tiled_attention,
        varlen_attention,
    )
}

__all__ = ["Kernel", "attention_kernel"]


def attention_kernel(name: str) -> Kernel | None:
    """The attention of that name, as `Config.attention` says it; None is the reference.

    Raises ValueError for a name that there is not, ImportError where "triton" is not installed.
    """
    if name == "triton":
        from minitransformer.kernels.triton_attention import triton_attention

        return triton_attention
    if name not in ATTENTIONS:
        raise ValueError(f"attention must be one of {', '.join(ATTENTIONS)}, got {name!r}")
    return KERNELS.get(name)
