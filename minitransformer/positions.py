"""Positions: where a token stands in its document, and how a model is told.

They follow from the attention_mask alone, so left padding, right padding, holes and packed
documents need no second argument. `rotation` is what rotary positions hand to every layer; the
other encodings hand on None.
"""

from functools import partial

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from minitransformer.config import Config
from minitransformer.contract import check_attention_mask

Rotation = tuple[Tensor, Tensor]  # cosines and sines of the angles, (B,1,T,D/2) each


def token_positions(attention_mask: Tensor) -> Tensor:
    """Each token's index among the real tokens of its own document; 0 at padding.

    Left padding, right padding, holes and packed documents then need no second argument.

    Shapes: (batch, length) int or bool -> (batch, length) int64.

    >>> token_positions(torch.tensor([[0, 0, 1, 1, 0, 1], [1, 1, 1, 2, 2, 0]]))
    tensor([[0, 0, 0, 1, 0, 2],
            [0, 1, 2, 0, 1, 0]])
    """
    order, documents = by_document(attention_mask)  # now each document is one run of columns
    index = torch.arange(order.shape[1], device=order.device)
    starts = F.pad(documents[:, 1:] != documents[:, :-1], (1, 0))  # column 0 is 0 anyway
    first = index.masked_fill(~starts, 0).cummax(dim=1).values  # where each token's run starts
    positions = torch.zeros_like(order).scatter(1, order, index - first)
    return positions.masked_fill(attention_mask == 0, 0)


def by_document(attention_mask: Tensor) -> tuple[Tensor, Tensor]:
    """The order that puts the tokens of one document side by side, and the documents so ordered.

    Shapes: (batch, length) int or bool -> two of (batch, length) int64. Padding comes first.
    """
    check_attention_mask(attention_mask)
    documents, order = attention_mask.long().sort(stable=True)
    return order, documents


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
        return x + F.embedding(positions, self.table), None


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


def rotate(x: Tensor, rotation: Rotation | None) -> Tensor:
    """Rotate each pair (x[i], x[i + D/2]) by its position's angle (Su et al. 2021, eq. 34).

    Shapes: x (B,H,T,D); rotation = (cos, sin) of the angles, each (B,1,T,D/2), or None: other kinds
    of positions rotate nothing -> (B,H,T,D).
    """
    if rotation is None:
        return x
    cos, sin = rotation
    a, b = x.chunk(2, dim=-1)
    return torch.cat((a * cos - b * sin, b * cos + a * sin), dim=-1).to(x.dtype)


POSITIONS = {
    "sinusoidal": SinusoidalPositions,
    "sinusoidal_halves": partial(SinusoidalPositions, halves=True),
    "learned": LearnedPositions,
    "rotary": RotaryPositions,
}
