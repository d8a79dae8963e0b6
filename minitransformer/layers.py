"""What a transformer is stacked from: layers, the stack itself, and the head on top of it.

    Stack:         layer → layer → ... → (final norm) → hidden states
    EncoderLayer:  self-attention → feed-forward
    DecoderLayer:  self-attention → cross-attention to the source → feed-forward

A style (see `config.py`) names its parts by the keys of NORMS, RESIDUALS and ACTIVATIONS.
"""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from minitransformer.attention import MultiHeadAttention
from minitransformer.cache import Cache
from minitransformer.config import Config
from minitransformer.kernels import Kernel, attention_kernel
from minitransformer.linear import together
from minitransformer.masks import PreparedMask
from minitransformer.positions import Rotation

Mask = Tensor | PreparedMask  # (batch or 1, heads or 1, queries, keys) bool, or prepared


class FeedForward(nn.Module):
    """Position-wise feed-forward network (Vaswani et al. 2017, eq. 2): widen, activate, narrow."""

    def __init__(self, config: Config):
        super().__init__()
        self.activation = ACTIVATIONS[config.parts.feed_forward]()
        self.widen = nn.Linear(config.d_model, config.d_ff, bias=config.parts.bias)
        self.narrow = nn.Linear(config.d_ff, config.d_model, bias=config.parts.bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.narrow(self.activation(self.widen(x)))


class GatedFeedForward(FeedForward):
    """SwiGLU: the activated projection gates the linear one (Shazeer 2020, 2002.05202, eq. 6)."""

    together = staticmethod(together)  # as in `MultiHeadAttention`

    def __init__(self, config: Config):
        super().__init__(config)
        self.gate = nn.Linear(config.d_model, config.d_ff, bias=config.parts.bias)

    def forward(self, x: Tensor) -> Tensor:
        gate, x = self.together(x, (self.gate, self.widen)).chunk(2, dim=-1)
        return self.narrow(self.activation(gate) * x)


class PostNorm(nn.Module):
    """Post-norm residual connection, as in 2017: norm(x + f(x))."""

    def __init__(self, config: Config):
        super().__init__()
        self.norm = make_norm(config)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor, sublayer: Callable[[Tensor], Tensor]) -> Tensor:
        return self.norm(x + self.dropout(sublayer(x)))


class PreNorm(PostNorm):
    """Pre-norm: x + f(norm(x)); the sum is never normalized (Xiong et al. 2020, 2002.04745)."""

    def forward(self, x: Tensor, sublayer: Callable[[Tensor], Tensor]) -> Tensor:
        return x + self.dropout(sublayer(self.norm(x)))


NORMS = {"layer": nn.LayerNorm, "rms": nn.RMSNorm}  # torch's: fused, and no mask concerns them
RESIDUALS = {"post": PostNorm, "pre": PreNorm}
ACTIVATIONS = {
    "relu": nn.ReLU,
    "gelu": nn.GELU,
    "gelu_tanh": partial(nn.GELU, approximate="tanh"),
    "silu": nn.SiLU,
    "swiglu": nn.SiLU,  # of the gate
}


def make_norm(config: Config) -> nn.Module:
    return NORMS[config.parts.norm](config.d_model, eps=config.norm_eps)


def make_attention(config: Config, kernel: Kernel | None) -> MultiHeadAttention:
    sizes, style = (config.d_model, config.num_heads, config.num_kv_heads), config.parts
    return MultiHeadAttention(*sizes, bias=style.bias, qkv_bias=style.qkv_bias, kernel=kernel)


class LMHead(nn.Module):
    """Language model head, (..., d_model) -> logits (..., vocab_size); BERT has a `transform`."""

    def __init__(self, config: Config):
        super().__init__()
        self.projection = nn.Linear(config.d_model, config.vocab_size, bias=config.parts.head_bias)
        self.transform = nn.Sequential()
        if config.parts.head_transform:
            self.transform.linear = nn.Linear(config.d_model, config.d_model)
            self.transform.activation = ACTIVATIONS[config.parts.feed_forward]()
            self.transform.norm = make_norm(config)

    def forward(self, hidden: Tensor) -> Tensor:
        return self.projection(self.transform(hidden))


class EncoderLayer(nn.Module):
    """Self-attention, then a feed-forward network, each with a residual connection."""

    def __init__(self, config: Config, kernel: Kernel | None = None):
        super().__init__()
        residual = RESIDUALS[config.parts.residual]
        self.attention = make_attention(config, kernel)
        self.attention_residual = residual(config)
        gated = config.parts.feed_forward == "swiglu"
        self.feed_forward = (GatedFeedForward if gated else FeedForward)(config)
        self.feed_forward_residual = residual(config)

    def forward(
        self,
        x: Tensor,
        mask: Mask,
        rotation: Rotation | None,
        cache: Cache | None = None,
        at: Tensor | None = None,
    ) -> Tensor:
        x = self.attention_residual(x, lambda h: self.attention(h, h, mask, rotation, cache))
        return self.feed_forward_residual(select(x, at), self.feed_forward)


class DecoderLayer(EncoderLayer):
    """The same with cross-attention to the source in between."""

    def __init__(self, config: Config, kernel: Kernel | None = None):
        super().__init__(config, kernel)
        self.cross_attention = make_attention(config, kernel)
        self.cross_attention_residual = RESIDUALS[config.parts.residual](config)

    def forward(
        self,
        x: Tensor,
        mask: Mask,
        rotation: Rotation | None,
        memory: Tensor,
        memory_mask: Mask,
        cache: Cache | None = None,
        at: Tensor | None = None,
    ) -> Tensor:
        x = self.attention_residual(x, lambda h: self.attention(h, h, mask, rotation, cache))
        x = self.cross_attention_residual(
            x, lambda h: self.cross_attention(h, memory, memory_mask, cache=cache)
        )
        return self.feed_forward_residual(select(x, at), self.feed_forward)


def select(x: Tensor, at: Tensor | None) -> Tensor:
    """(B,T,...) -> (N,...), the tokens at N indices into (B·T); None = all, as they are."""
    return x if at is None else x.flatten(0, 1).index_select(0, at.to(x.device, non_blocking=True))


class Stack(nn.Module):
    """Layers that share their masks, prepared once for all; then the styles' final norm.

    `recompute` turns on activation checkpointing: only each layer's input is stored; the rest is
    recomputed in the backward pass (Chen et al. 2016, arXiv:1604.06174).
    """

    def __init__(self, config: Config, layer: type[EncoderLayer], num_layers: int):
        super().__init__()
        self.kernel = attention_kernel(config.attention)
        self.num_heads = config.num_heads
        self.layers = nn.ModuleList(layer(config, self.kernel) for _ in range(num_layers))
        self.recompute = False
        self.norm = make_norm(config) if config.parts.final_norm else nn.Identity()

    def forward(
        self,
        x: Tensor,
        mask: Tensor,
        rotation: Rotation | None,
        memory: Tensor | None = None,
        memory_mask: Tensor | None = None,
        cache: Cache | None = None,
        at: Tensor | None = None,
    ) -> Tensor:
        """x (B,T,d_model) -> (B,T,d_model); a decoder's layers also attend to `memory`.

        `at` are indices into (B·T): the last layer computes only these -> (N,d_model).
        """
        prepare = self.kernel.prepare if self.kernel else lambda mask, *_: mask
        mask = prepare(mask, x, self.num_heads)
        source = [] if memory is None else [memory, prepare(memory_mask, x, self.num_heads)]
        for number, layer in enumerate(self.layers, start=1):
            if self.recompute and torch.is_grad_enabled():
                layer = partial(checkpoint, layer, use_reentrant=False)
            x = layer(x, mask, rotation, *source, cache, at if number == len(self.layers) else None)
        return self.norm(x if self.layers else select(x, at))
