"""What a transformer is stacked from: embeddings with positions, layers, and the stack itself.

    ids → Embedding → layer → layer → ... → (final norm) → hidden states
    EncoderLayer:  attention to itself → feed-forward
    DecoderLayer:  attention to itself → attention to the source → feed-forward

A style (see `config.py`) names its parts by the keys of NORMS, RESIDUALS, FEED_FORWARDS and
POSITIONS, so nothing below branches on an architecture. `rotation` is what rotary positions hand to
every layer; the other positions hand on None.
"""

from collections.abc import Callable
from functools import partial

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from minitransformer.attention import MultiHeadAttention, Rotation
from minitransformer.cache import Cache
from minitransformer.config import Config
from minitransformer.contract import check_ids, may_read
from minitransformer.kernels import Kernel, attention_kernel
from minitransformer.masks import PreparedMask, token_positions, zero_padding

Mask = Tensor | PreparedMask  # (batch or 1, heads or 1, queries, keys) bool, or prepared


class FeedForward(nn.Module):
    """Position-wise feed-forward network (Vaswani et al. 2017, eq. 2): widen, activate, narrow."""

    def __init__(self, config: Config, activation: Callable[[Tensor], Tensor]):
        super().__init__()
        self.activation = activation
        self.widen = nn.Linear(config.d_model, config.d_ff, bias=config.parts.bias)
        self.narrow = nn.Linear(config.d_ff, config.d_model, bias=config.parts.bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.narrow(self.activation(self.widen(x)))


class GatedFeedForward(FeedForward):
    """SwiGLU: the activated projection gates the linear one (Shazeer 2020, 2002.05202, eq. 6)."""

    def __init__(self, config: Config, activation: Callable[[Tensor], Tensor]):
        super().__init__(config, activation)
        self.gate = nn.Linear(config.d_model, config.d_ff, bias=config.parts.bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.narrow(self.activation(self.gate(x)) * self.widen(x))


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


class SinusoidalPositions(nn.Module):
    """Sinusoidal position encoding: adds sines and cosines of geometric wavelengths.

    They alternate (Vaswani et al. 2017, section 3.5), or come in two halves, as in Marian.
    """

    def __init__(self, config: Config, halves: bool = False):
        super().__init__()
        steps = torch.arange(config.max_length, device="cpu")  # real numbers, even on "meta"
        angles = position_angles(steps, config.d_model, 10_000.0)
        waves = torch.stack((angles.sin(), angles.cos()), dim=1 if halves else -1)
        table = waves.flatten(1)[:, : config.d_model].to(torch.get_default_dtype())
        self.register_buffer("table", table, persistent=False)

    def forward(self, x: Tensor, positions: Tensor) -> tuple[Tensor, None]:
        return x + self.table[positions], None


class LearnedPositions(nn.Module):
    """Learned position embeddings: a vector for each position (Gehring et al. 2017, 1705.03122)."""

    def __init__(self, config: Config):
        super().__init__()
        self.table = nn.Embedding(config.max_length, config.d_model)

    def forward(self, x: Tensor, positions: Tensor) -> tuple[Tensor, None]:
        return x + self.table(positions), None


class RotaryPositions(nn.Module):
    """Rotary position embeddings (RoPE): each layer rotates its queries and keys; nothing is added.

    The score of a query and a key then depends on their distance alone (Su et al. 2021,
    arXiv:2104.09864).
    """

    def __init__(self, config: Config):
        super().__init__()
        self.width, self.theta = config.d_model // config.num_heads, config.rope_theta

    def forward(self, x: Tensor, positions: Tensor) -> tuple[Tensor, Rotation]:
        angles = position_angles(rearrange(positions, "b t -> b 1 t"), self.width, self.theta)
        dtype = torch.promote_types(x.dtype, torch.float32)
        return x, (angles.cos().to(dtype), angles.sin().to(dtype))


def position_angles(positions: Tensor, width: int, theta: float) -> Tensor:
    """positions · theta^(-2i/width): (...) int64 -> (..., ⌈width/2⌉) in float64.

    In float32 on Apple's GPU (MPS), which has no float64: off by at most 2^-23 of an angle.
    """
    frequencies = theta ** (-torch.arange(0, width, 2, dtype=torch.float64, device="cpu") / width)
    if positions.device.type == "mps":
        frequencies = frequencies.float()
    return positions.unsqueeze(-1) * frequencies.to(positions.device, non_blocking=True)


NORMS = {"layer": nn.LayerNorm, "rms": nn.RMSNorm}  # torch's: fused, and no mask concerns them
RESIDUALS = {"post": PostNorm, "pre": PreNorm}
ACTIVATIONS = {
    "relu": F.relu,
    "gelu": F.gelu,
    "gelu_tanh": partial(F.gelu, approximate="tanh"),
    "silu": F.silu,
}
FEED_FORWARDS = {
    **{name: partial(FeedForward, activation=bend) for name, bend in ACTIVATIONS.items()},
    "swiglu": partial(GatedFeedForward, activation=F.silu),
}
POSITIONS = {
    "sinusoidal": SinusoidalPositions,
    "sinusoidal_halves": partial(SinusoidalPositions, halves=True),
    "learned": LearnedPositions,
    "rotary": RotaryPositions,
}


def make_norm(config: Config) -> nn.Module:
    return NORMS[config.parts.norm](config.d_model, eps=config.norm_eps)


class Embedding(nn.Module):
    """Token ids to vectors that know their positions; padding to exact zeros.

    What stands at padding never matters: not its id, even one outside the vocabulary, and not
    its embedding, even NaN. `tokens` shares the table of another Embedding.
    """

    def __init__(self, config: Config, tokens: nn.Embedding | None = None):
        super().__init__()
        self.vocab_size, self.max_length = config.vocab_size, config.max_length
        self.tokens = tokens or nn.Embedding(config.vocab_size, config.d_model)
        self.scale = config.d_model**0.5 if config.parts.scale_embedding else 1.0
        segments = config.num_segments
        self.segments = nn.Embedding(segments, config.d_model) if segments else None
        self.positions = POSITIONS[config.parts.positions](config)
        self.norm = make_norm(config) if config.parts.norm_embedding else nn.Identity()
        self.dropout = nn.Dropout(config.dropout)

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        segment_ids: Tensor | None = None,
        start: int = 0,
    ) -> tuple[Tensor, Rotation | None]:
        """(B,T) ids and (B,T) attention_mask -> (B,T,d_model), and the rotation for every layer.

        `segment_ids` (B,T) say which segment a token is of (None = 0). With a `start` the ids are
        those of the columns from there on; attention_mask (B,start+T) and positions cover them all.
        Raises TypeError or ValueError for wrong types, unequal shapes, ids outside the vocabulary
        and sequences longer than max_length.
        """
        positions = token_positions(attention_mask)[:, start:]
        attention_mask = attention_mask[:, start:]
        check_ids("token ids", input_ids, attention_mask, self.vocab_size)
        self._check_length(positions)
        padding = attention_mask == 0
        x = self.tokens(input_ids.masked_fill(padding, 0)) * self.scale
        if self.segments is not None:
            if segment_ids is None:
                segment_ids = torch.zeros_like(input_ids)
            check_ids("segment_ids", segment_ids, attention_mask, self.segments.num_embeddings)
            x = x + self.segments(segment_ids.masked_fill(padding, 0))
        elif segment_ids is not None:
            raise ValueError("segment_ids need a model with segments: Config(num_segments=2, ...)")
        x, rotation = self.positions(x, positions)
        x = zero_padding(x, attention_mask)  # before the norm: it would spread NaN to its gain
        return self.dropout(self.norm(x)), rotation

    def _check_length(self, positions: Tensor) -> None:
        if may_read(positions) and positions.numel() and positions.max() >= self.max_length:
            raise ValueError(
                f"a sequence has {positions.max() + 1} tokens, more than max_length = "
                f"{self.max_length}: truncate it, or build the model with a larger max_length"
            )


class LMHead(nn.Module):
    """Language model head: hidden states (..., d_model) to logits (..., vocab_size).

    In BERT one more layer and norm come first (Devlin et al. 2018's code).
    """

    def __init__(self, config: Config):
        super().__init__()
        self.transform = HeadTransform(config) if config.parts.head_transform else nn.Identity()
        self.projection = nn.Linear(config.d_model, config.vocab_size, bias=config.parts.head_bias)

    def forward(self, hidden: Tensor) -> Tensor:
        return self.projection(self.transform(hidden))


class HeadTransform(nn.Module):
    """norm(activation(W x))."""

    def __init__(self, config: Config):
        super().__init__()
        self.activation = ACTIVATIONS[config.parts.feed_forward]
        self.linear = nn.Linear(config.d_model, config.d_model)
        self.norm = make_norm(config)

    def forward(self, hidden: Tensor) -> Tensor:
        return self.norm(self.activation(self.linear(hidden)))


class EncoderLayer(nn.Module):
    """Self-attention, then a feed-forward network, each with a residual connection."""

    def __init__(self, config: Config, kernel: Kernel | None = None):
        super().__init__()
        residual = RESIDUALS[config.parts.residual]
        self.attention = make_attention(config, kernel)
        self.attention_residual = residual(config)
        self.feed_forward = FEED_FORWARDS[config.parts.feed_forward](config)
        self.feed_forward_residual = residual(config)

    def forward(
        self, x: Tensor, mask: Mask, rotation: Rotation | None, cache: Cache | None = None
    ) -> Tensor:
        x = self.attention_residual(x, lambda h: self.attention(h, h, mask, rotation, cache))
        return self.feed_forward_residual(x, self.feed_forward)


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
    ) -> Tensor:
        x = self.attention_residual(x, lambda h: self.attention(h, h, mask, rotation, cache))
        x = self.cross_attention_residual(
            x, lambda h: self.cross_attention(h, memory, memory_mask, cache=cache)
        )
        return self.feed_forward_residual(x, self.feed_forward)


class Stack(nn.Module):
    """Layers that share their masks, then the final norm of the styles that have one.

    The masks are prepared here, once for all layers, for the kernel that computes the attention.
    With `recompute` there is activation checkpointing: only each layer's input is stored; the rest
    is recomputed in the backward pass (Chen et al. 2016, arXiv:1604.06174).
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
    ) -> Tensor:
        """x (B,T,d_model) -> (B,T,d_model); a decoder's layers also attend to `memory`."""
        source = () if memory is None else (memory, self.prepare(memory_mask, x))
        context = (self.prepare(mask, x), rotation, *source, cache)
        for layer in self.layers:
            if self.recompute and torch.is_grad_enabled():
                x = checkpoint(layer, x, *context, use_reentrant=False)
            else:
                x = layer(x, *context)
        return self.norm(x)

    def prepare(self, mask: Tensor, x: Tensor) -> Mask:
        """What the layers' kernel reads off the mask, for as many rows as `x` has."""
        if self.kernel is None:
            return mask
        dtype, device = x.dtype, x.device.type
        if torch.is_autocast_enabled(device):
            dtype = torch.get_autocast_dtype(device)
        return self.kernel.prepare(mask, len(x), self.num_heads, dtype)


def make_attention(config: Config, kernel: Kernel | None) -> MultiHeadAttention:
    return MultiHeadAttention(
        config.d_model,
        config.num_heads,
        config.num_kv_heads,
        bias=config.parts.bias,
        kernel=kernel,
    )
