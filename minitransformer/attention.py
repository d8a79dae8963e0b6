"""Attention: the formula, the heads around it, and a window to look inside.

Vaswani et al. 2017, "Attention Is All You Need", arXiv:1706.03762, section 3.2.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from einops import einsum, rearrange, repeat
from torch import Tensor, nn
from torch.nn import functional as F

from minitransformer.cache import Cache
from minitransformer.config import check_heads
from minitransformer.contract import check_attention
from minitransformer.kernels.sdpa import attend_at_once


def scaled_dot_product_attention(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor, dropout_p: float = 0.0
) -> tuple[Tensor, Tensor]:
    """softmax(Q Kᵀ / √d) V over the keys that the mask allows (Vaswani et al. 2017, eq. 1).

    The promise: a key that the mask forbids gets a weight of exactly 0, in every dtype, forward
    and backward. A row of query, key or value that the mask never uses is never multiplied, so
    NaN or Inf in padding reaches nothing. A query that may see no key gets weights and output of
    exactly 0, with finite gradients. Every other query's weights sum to 1.

    Shapes: query (B,H,Q,D), key (B,H,K,D), value (B,H,K,Dv), mask (B or 1, H or 1, Q, K) bool
    with True = may attend -> output (B,H,Q,Dv) and weights (B,H,Q,K), in the dtype of value.
    Half precision is computed in float32 up to the weights. `dropout_p` drops weights on their
    way to the output; the weights returned are those before it.

    Raises TypeError or ValueError for anything that would otherwise broadcast or cast silently.
    """
    check_attention(query, key, value, mask)
    used = rearrange(mask.any(dim=-2), "b h k -> b h k 1")  # keys that a query sees
    key, value = key.masked_fill(~used, 0.0), value.masked_fill(~used, 0.0)
    return attend(query, key, value, mask, dropout_p)


def attend(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor, dropout_p: float
) -> tuple[Tensor, Tensor]:
    """The same, where keys and values that no query sees are known to be finite: they stay."""
    check_attention(query, key, value, mask)
    alive = mask.any(dim=-1, keepdim=True)  # queries that see a key
    query = query.masked_fill(~alive, 0.0)
    with torch.autocast(query.device.type, enabled=False):
        precise = torch.promote_types(query.dtype, torch.float32)  # float16 ends at 65504
        query, key = query.to(precise) / query.shape[-1] ** 0.5, key.to(precise)
        scores = einsum(query, key, "b h q d, b h k d -> b h q k")
        scores = scores.masked_fill(~mask & alive, float("-inf"))  # but not in dead rows: NaN
        weights = scores.softmax(dim=-1).masked_fill(~alive, 0.0).to(value.dtype)
        output = einsum(F.dropout(weights, dropout_p), value, "b h q k, b h k d -> b h q d")
    return output.masked_fill(~alive, 0.0), weights  # no gradient of a dead row is multiplied


class MultiHeadAttention(nn.Module):
    """Several attentions side by side (Vaswani et al. 2017, section 3.2.2).

    With fewer key/value heads than query heads, each serves a group of neighbouring query heads
    (Ainslie et al. 2023, arXiv:2305.13245).

    `kernel` computes the output faster than the formula, without the weights (see `kernels`); the
    formula is used where there is none, and where somebody looks at the weights or drops some.

    Raises ValueError where d_model, num_heads and num_kv_heads do not divide.
    """

    def __init__(
        self,
        d_model: int,
        num_heads: int,
        num_kv_heads: int | None = None,
        dropout: float = 0.0,
        bias: bool = True,
        kernel: Callable[[Tensor, Tensor, Tensor, Tensor], Tensor] | None = None,
    ):
        super().__init__()
        self.num_heads = num_heads
        self.num_kv_heads = num_heads if num_kv_heads is None else num_kv_heads
        check_heads(d_model, self.num_heads, self.num_kv_heads)
        if not 0.0 <= dropout <= 1.0:
            raise ValueError(f"dropout must be in [0, 1], got {dropout}")
        self.dropout = dropout
        self.kernel = kernel
        d_kv = d_model // num_heads * self.num_kv_heads
        self.query = nn.Linear(d_model, d_model, bias=bias)
        self.key = nn.Linear(d_model, d_kv, bias=bias)
        self.value = nn.Linear(d_model, d_kv, bias=bias)
        self.output = nn.Linear(d_model, d_model, bias=bias)
        self.tap = nn.Identity()  # the weights pass here, for `record_attention` to see

    def forward(
        self,
        x: Tensor,
        memory: Tensor,
        mask: Tensor,
        rotation: tuple[Tensor, Tensor] | None = None,
        cache: Cache | None = None,
    ) -> Tensor:
        """Let every position of `x` collect from the positions of `memory` that it may see.

        Shapes: x (B,Q,d_model), memory (B,K,d_model), mask (B or 1, heads or 1, Q, K) bool
        -> (B,Q,d_model). Self-attention is `memory = x`. `rotation`, only there, turns queries
        and keys by their positions (see `layers.RotaryPositions`).

        With a `cache` self-attention also sees the keys of the calls before, which the mask then
        covers too, and must be finite, at padding too; cross-attention reads its memory once only.
        """
        query = rearrange(self.query(x), "b q (h d) -> b h q d", h=self.num_heads)
        if rotation is not None:
            query = rotate(query, rotation)
        known = None if cache is None else cache.get(self)
        if known is not None and memory is not x:
            key, value = known
        else:
            key = rearrange(self.key(memory), "b k (h d) -> b h k d", h=self.num_kv_heads)
            value = rearrange(self.value(memory), "b k (h d) -> b h k d", h=self.num_kv_heads)
            if rotation is not None:
                key = rotate(key, rotation)
            if cache is not None:
                cache.append(self, key, value)
                key, value = cache[self]
        dropout = self.dropout if self.training else 0.0
        watched = len(self.tap._forward_hooks) > 0
        fast = self.kernel is not None and not dropout and not watched
        if fast and known is None:
            output = self.kernel(query, key, value, mask)
            return self.output(rearrange(output, "b h q d -> b q (h d)"))
        group = self.num_heads // self.num_kv_heads
        if group > 1:  # heads that share a key are so many more queries of it
            query = rearrange(query, "b (h g) q d -> b h (g q) d", g=group)
            shared = mask.shape[1] == 1
            heads = "b 1 q k -> b 1 (g q) k" if shared else "b (h g) q k -> b h (g q) k"
            mask = repeat(mask, heads, g=group)
        if fast:
            output = attend_at_once(query, key, value, mask)
        else:
            formula = scaled_dot_product_attention if known is None else attend
            output, weights = formula(query, key, value, mask, dropout)
            self.tap(rearrange(weights, "b h (g q) k -> b (h g) q k", g=group))
        return self.output(rearrange(output, "b h (g q) d -> b q (h g d)", g=group))


def rotate(x: Tensor, rotation: tuple[Tensor, Tensor]) -> Tensor:
    """Turn each pair (x[i], x[i + D/2]) by its position's angle (Su et al. 2021, eq. 34).

    Shapes: x (B,H,T,D); rotation = (cos, sin) of the angles, each (B,1,T,D/2) -> (B,H,T,D).
    """
    cos, sin = rotation
    a, b = x.chunk(2, dim=-1)
    return torch.cat((a * cos - b * sin, b * cos + a * sin), dim=-1).to(x.dtype)


@contextmanager
def record_attention(model: nn.Module) -> Iterator[dict[str, Tensor]]:
    """Collect the attention weights of every layer while the block runs.

    Yields {layer name: weights (B,H,Q,K)}, detached, of the last call of each layer.

    >>> with record_attention(model) as maps:
    ...     model(input_ids, attention_mask)
    >>> maps["encoder.layers.0.attention"].shape
    torch.Size([4, 2, 7, 7])
    """
    layers = {n: m for n, m in model.named_modules() if isinstance(m, MultiHeadAttention)}
    if not layers:
        raise ValueError(f"{type(model).__name__} holds no MultiHeadAttention to record")
    maps: dict[str, Tensor] = {}

    def keep(name):
        return lambda tap, inputs, weights: maps.update({name: weights.detach()})

    hooks = [layer.tap.register_forward_hook(keep(name)) for name, layer in layers.items()]
    try:
        yield maps
    finally:
        for hook in hooks:
            hook.remove()
