"""Text and token ids to batches: padding, packing, labels, collators, tokenizers, files."""

from minitransformer.data.batches import (
    Batch,
    PairBatch,
    completion_labels,
    mask_tokens,
    next_token_labels,
    pack,
    pack_pairs,
    pad,
    pad_pairs,
)

__all__ = [
    "Batch",
    "PairBatch",
    "completion_labels",
    "mask_tokens",
    "next_token_labels",
    "pack",
    "pack_pairs",
    "pad",
    "pad_pairs",
]
