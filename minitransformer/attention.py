"""Attention: the formula, and the heads around it (Vaswani et al. 2017, arXiv:1706.03762)."""

from collections.abc import Callable
from functools import partial

import torch
from einops import einsum, rearrange, repeat
from torch import Tensor, nn
from torch.nn import functional as F

from minitransformer.cache import Cache
from minitransformer.contract import at_least_float32, check_attention_inputs, check_heads
from minitransformer.linear import together
from minitransformer.masks import PreparedMask
from minitransformer.positions import Rotation, rotate


def scaled_dot_product_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor,
    dropout_p: float = 0.0,
    *,
    finite: bool = False,
) -> tuple[Tensor, Tensor]:
    """softmax(Q Kᵀ / √d) V over the keys that the mask allows (Vaswani et al. 2017, eq. 1).

    The promise: a masked key gets a weight of exactly 0, in every dtype, forward and backward. A
    row of query, key or value that the mask never uses is never multiplied, so NaN or Inf in
    padding reaches nothing. A fully masked query gets weights and output of exactly 0, with finite
    gradients. Every other query's weights sum to 1.

    Shapes: query (B,H,Q,D), key (B,G,K,D), value (B,G,K,Dv), mask (B or 1, H or 1, Q, K) bool
    with True = may attend -> output (B,H,Q,Dv) and weights (B,H,Q,K), in the dtype of value.
    Grouped-query attention: each of G key/value heads serves H/G neighboring query heads. Half
    precision is computed in float32 up to the weights. `dropout_p` drops weights before the output;
    those returned are whole. `finite` promises that masked keys and values are finite, as in a KV
    cache, and need not be zeroed in a copy. Raises TypeError or ValueError for anything that would
    otherwise broadcast or cast silently.
    """
    check_attention_inputs(query, key, value, mask)
    group = query.shape[1] // max(key.shape[1], 1)
    key, value = (repeat(x, "b h k d -> b (h g) k d", g=group) for x in (key, value))
    alive = mask.any(dim=-1, keepdim=True)  # queries that see a key
    query = query.masked_fill(~alive, 0.0)
    if not finite:
        used = rearrange(mask.any(dim=-2), "b h k -> b h k 1")  # keys that a query sees
        key, value = key.masked_fill(~used, 0.0), value.masked_fill(~used, 0.0)
    with torch.autocast(query.device.type, enabled=False):
        # float16 ends at 65504: scores are computed in float32
        query, key = at_least_float32(query) / query.shape[-1] ** 0.5, at_least_float32(key)
        scores = einsum(query, key, "b h q d, b h k d -> b h q k")
        scores = scores.masked_fill(~mask & alive, float("-inf"))  # a row of -inf would be NaN
        weights = scores.softmax(dim=-1).masked_fill(~alive, 0.0).to(value.dtype)
        output = einsum(F.dropout(weights, dropout_p), value, "b h q k, b h k d -> b h q d")
    return output.masked_fill(~alive, 0.0), weights  # a masked row's gradient is not multiplied


class MultiHeadAttention(nn.Module):
    """Multi-head attention (Vaswani et al. 2017, section 3.2.2).

    With fewer key/value heads than query heads it is grouped-query attention (GQA; Ainslie et al.
    2023, arXiv:2305.13245). `kernel` is a faster attention that gives no weights (see `kernels`);
    the reference is used where there is none, or where weights are looked at or dropped.
    """

    together = staticmethod(together)  # `inference.prepacked` has one for weights that stay

    def __init__(
        self,
        d_model: int,
        num_heads: int,
        num_kv_heads: int | None = None,
        dropout: float = 0.0,
        bias: bool = True,
        qkv_bias: bool = False,  # for queries, keys and values, where `bias` is False
        kernel: Callable[..., tuple[Tensor, None]] | None = None,
    ):
        super().__init__()
        self.num_heads = num_heads
        self.num_kv_heads = num_heads if num_kv_heads is None else num_kv_heads
        check_heads(d_model, self.num_heads, self.num_kv_heads)
        if not 0.0 <= dropout <= 1.0:
            raise ValueError(f"dropout must be in [0, 1], got {dropout}")
        self.dropout, self.kernel = dropout, kernel
        self.width = d_model // num_heads
        d_kv = self.width * self.num_kv_heads
        self.query = nn.Linear(d_model, d_model, bias=bias or qkv_bias)
        self.key = nn.Linear(d_model, d_kv, bias=bias or qkv_bias)
        self.value = nn.Linear(d_model, d_kv, bias=bias or qkv_bias)
        self.output = nn.Linear(d_model, d_model, bias=bias)
        self.tap = nn.Identity()  # the weights pass here: see `inference.record`

    def forward(
        self,
        x: Tensor,
        memory: Tensor,
        mask: Tensor | PreparedMask,
        rotation: Rotation | None = None,
        cache: Cache | None = None,
    ) -> Tensor:
        """Every position of `x` attends to the positions of `memory` that the mask allows.

        Shapes: x (B,Q,d_model), memory (B,K,d_model), mask (B or 1, heads or 1, Q, K) bool, bare
        or prepared for the kernel -> (B,Q,d_model). Self-attention is `memory = x`; only there
        `rotation` rotates queries and keys. With a `cache` it also attends to the keys of earlier
        calls, which the mask must cover; cross-attention projects its memory at the first call.
        """
        if memory is x:
            query, key, value = self.project(x, self.query, self.key, self.value)
            query, key = rotate(query, rotation), rotate(key, rotation)
            if cache is not None:
                key, value = cache.append(self, key, value)
        else:
            (query,) = self.project(x, self.query)
            read = partial(self.project, memory, self.key, self.value)
            key, value = read() if cache is None else cache.once(self, read)
        dropout, finite = self.dropout * self.training, cache is not None
        if self.kernel is None or dropout or self.is_recorded:
            mask = mask.mask if isinstance(mask, PreparedMask) else mask
            inputs = query, key, value, mask, dropout
            output, weights = scaled_dot_product_attention(*inputs, finite=finite)
            self.tap(weights)
        else:
            output, _ = self.kernel(query, key, value, mask, finite=finite)
        return self.output(rearrange(output, "b h q d -> b q (h d)"))

    def project(self, x: Tensor, *layers: nn.Module) -> list[Tensor]:
        """(B,T,d_model) -> the heads that each of these layers makes of it, (B,its heads,T,D)."""
        heads = rearrange(self.together(x, layers), "b t (h d) -> b t h d", d=self.width)
        counts = [self.num_heads if layer is self.query else self.num_kv_heads for layer in layers]
        return [x.transpose(1, 2) for x in heads.split(counts, dim=2)]  # backward: one copy

    @property
    def is_recorded(self) -> bool:
        """Does somebody look at the weights, by a hook or a pre-hook on `tap`?"""
        return bool(self.tap._forward_hooks or self.tap._forward_pre_hooks)

    def extra_repr(self) -> str:
        kernel = getattr(self.kernel, "name", self.kernel or "reference")
        return f"heads={self.num_heads}, kv_heads={self.num_kv_heads}, kernel={kernel}"
