"""A transformer written by hand, in which one explicit boolean mask is the whole story.

Read `models.py` first, then `layers.py`, then `attention.py`.
"""

from typing import TYPE_CHECKING, Any

from minitransformer.attention import (
    MultiHeadAttention,
    record_attention,
    scaled_dot_product_attention,
)
from minitransformer.config import Config
from minitransformer.data import (
    completion_labels,
    mask_tokens,
    next_token_labels,
    pack,
    pack_pairs,
    pad,
    pad_pairs,
)
from minitransformer.generation import generate
from minitransformer.loss import IGNORE_INDEX, cross_entropy
from minitransformer.masks import causal_mask, padding_mask, token_positions
from minitransformer.models import CrossDecoder, DecoderOnly, EncoderDecoder, EncoderOnly

if TYPE_CHECKING:
    from minitransformer.pretrained import load_pretrained

__all__ = [
    "IGNORE_INDEX",
    "Config",
    "CrossDecoder",
    "DecoderOnly",
    "EncoderDecoder",
    "EncoderOnly",
    "MultiHeadAttention",
    "causal_mask",
    "completion_labels",
    "cross_entropy",
    "generate",
    "load_pretrained",
    "mask_tokens",
    "next_token_labels",
    "pack",
    "pack_pairs",
    "pad",
    "pad_pairs",
    "padding_mask",
    "record_attention",
    "scaled_dot_product_attention",
    "token_positions",
]


def __getattr__(name: str) -> Any:
    """`load_pretrained` is imported when it is asked for: it needs safetensors."""
    if name == "load_pretrained":
        from minitransformer.pretrained import load_pretrained

        return load_pretrained
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
