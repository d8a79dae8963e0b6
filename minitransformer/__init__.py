"""A transformer written by hand, in which one explicit boolean mask is the whole story.

Read `models.py` first, then `layers.py`, then `attention.py`.
"""

import importlib
import sys
from typing import TYPE_CHECKING, Any

from minitransformer.attention import MultiHeadAttention, scaled_dot_product_attention
from minitransformer.config import Config
from minitransformer.data import (
    collate,
    completion_labels,
    files,
    mask_tokens,
    next_token_labels,
    pack,
    pack_pairs,
    pad,
    pad_pairs,
    tokenization,
)
from minitransformer.inference import generation
from minitransformer.inference.explain import explain_attention
from minitransformer.inference.generation import generate
from minitransformer.inference.record import record_attention
from minitransformer.loss import IGNORE_INDEX, cross_entropy
from minitransformer.masks import causal_mask, padding_mask, window_mask
from minitransformer.models import CrossDecoder, DecoderOnly, EncoderDecoder, EncoderOnly
from minitransformer.positions import token_positions

if TYPE_CHECKING:
    from minitransformer import checks, visualize
    from minitransformer.pretrained import load_pretrained

__version__ = "0.1.0"
__all__ = [
    "IGNORE_INDEX",
    "Config",
    "CrossDecoder",
    "DecoderOnly",
    "EncoderDecoder",
    "EncoderOnly",
    "MultiHeadAttention",
    "__version__",
    "causal_mask",
    "checks",
    "completion_labels",
    "cross_entropy",
    "explain_attention",
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
    "visualize",
    "window_mask",
]

# Also importable by these shorter names: `from minitransformer.collate import collate_lm`.
for _module in (collate, files, generation, tokenization):
    sys.modules[f"{__name__}.{_module.__name__.rpartition('.')[2]}"] = _module


def __getattr__(name: str) -> Any:
    """Imported when asked for, as they need more than torch and einops."""
    if name == "load_pretrained":
        return importlib.import_module("minitransformer.pretrained").load_pretrained
    if name in ("checks", "visualize"):
        return importlib.import_module(f"minitransformer.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return list(__all__)
