"""The embedding: token ids to vectors that know their positions."""

import torch
from torch import Tensor, nn

from minitransformer.config import Config
from minitransformer.contract import check_ids, may_read
from minitransformer.layers import make_norm
from minitransformer.masks import zero_padding
from minitransformer.positions import POSITIONS, Rotation, token_positions


class Embedding(nn.Module):
    """Token ids to vectors that know their positions, padding to exact zeros, whatever its id."""

    def __init__(self, config: Config):
        super().__init__()
        self.max_length = config.max_length
        self.tokens = nn.Embedding(config.vocab_size, config.d_model)
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
        """(B,T) ids and (B,start+T) attention_mask -> (B,T,d_model), the rotation for every layer.

        `segment_ids` (B,T) say which segment a token is of (None = 0). Raises TypeError or
        ValueError for wrong types, shapes, ids outside the vocabulary and too long sequences.
        """
        positions = token_positions(attention_mask)[:, start:]
        attention_mask = attention_mask[:, start:]
        check_ids("token ids", input_ids, attention_mask, self.tokens.num_embeddings)
        if may_read(positions) and (positions >= self.max_length).any():
            raise ValueError(
                f"a sequence has {positions.max() + 1} tokens, more than max_length = "
                f"{self.max_length}: truncate it, or build the model with a larger max_length"
            )
        padding = attention_mask == 0
        x = self.tokens(input_ids.masked_fill(padding, 0)) * self.scale
        if self.segments is not None:
            ids = torch.zeros_like(input_ids) if segment_ids is None else segment_ids
            check_ids("segment_ids", ids, attention_mask, self.segments.num_embeddings)
            x = x + self.segments(ids.masked_fill(padding, 0))
        elif segment_ids is not None:
            raise ValueError("segment_ids need a model with segments: Config(num_segments=2, ...)")
        x, rotation = self.positions(x, positions)
        x = zero_padding(x, attention_mask)  # before the norm: it would spread NaN to its gain
        return self.dropout(self.norm(x)), rotation
