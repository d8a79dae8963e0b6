"""Masks: who may look at whom. Every one is made of the functions on this page, of two values:

- `attention_mask`, (batch, length), int or bool, says what each token *is*: 0 = padding,
  1 = a real token; in rows that hold several documents, n = a token of document n.
- `mask`, (batch or 1, heads or 1, queries, keys), bool, says what each query *may do*:
  True = this query may attend to this key. Masks combine with `&`.
"""

from typing import Any, NamedTuple

import torch
from einops import rearrange
from torch import Tensor

from minitransformer.contract import check_attention_mask, check_integer, may_read
from minitransformer.positions import token_positions


def padding_mask(attention_mask: Tensor, key_attention_mask: Tensor | None = None) -> Tensor:
    """True where the query and the key are both real and belong to the same document.

    One line serves padding (documents 0 and 1), packing (documents 0, 1, 2, ...: a block-diagonal
    mask) and, with the source's mask as `key_attention_mask`, cross-attention. (A key padding mask,
    as libraries have it, hides padded keys only; here padded queries see nothing either.)

    Shapes: (batch, queries) and (batch, keys), int or bool -> (batch, 1, queries, keys) bool.

    >>> padding_mask(torch.tensor([[1, 1, 0]])).int()
    tensor([[[[1, 1, 0],
              [1, 1, 0],
              [0, 0, 0]]]], dtype=torch.int32)
    """
    check_attention_mask(attention_mask)
    key_attention_mask = attention_mask if key_attention_mask is None else key_attention_mask
    check_attention_mask(key_attention_mask, "key_attention_mask")
    if len(attention_mask) != len(key_attention_mask):
        raise ValueError(
            "attention_mask and key_attention_mask must have the same batch size, "
            f"got {len(attention_mask)} and {len(key_attention_mask)}"
        )
    queries = rearrange(attention_mask, "b q -> b 1 q 1")
    keys = rearrange(key_attention_mask, "b k -> b 1 1 k")
    return (queries == keys) & (keys != 0)


def causal_mask(
    num_queries: int, num_keys: int | None = None, device: torch.device | str | None = None
) -> Tensor:
    """True where the key is not in the query's future. The last query is the last key's.

    Aligning the *ends* makes one definition serve training (as many queries as keys) and
    decoding with a KV cache (the last few queries against all keys).

    Shape: (1, 1, num_queries, num_keys) bool; `num_keys` defaults to `num_queries`.

    >>> causal_mask(2, 3).int()
    tensor([[[[1, 1, 0],
              [1, 1, 1]]]], dtype=torch.int32)
    """
    num_keys = num_queries if num_keys is None else num_keys
    if num_queries < 0 or num_keys < num_queries:
        raise ValueError(
            f"a causal mask needs 0 <= num_queries <= num_keys, got {num_queries} and {num_keys}: "
            "every query must have a key of its own"
        )
    ones = torch.ones(1, 1, num_queries, num_keys, dtype=torch.bool, device=device)
    return ones.tril(num_keys - num_queries)


def window_mask(
    num_queries: int,
    num_keys: int | None = None,
    *,
    window: int,
    device: torch.device | str | None = None,
) -> Tensor:
    """Sliding window: True for the last `window` keys up to each query, its own included.

    So a window of 3 sees 3 keys, as transformers' `sliding_window=3` does (Beltagy et al. 2020,
    arXiv:2004.05150; Jiang et al. 2023, arXiv:2310.06825); FlashAttention's `window_size=(3, 0)`
    sees 4. Causal, and aligned at the ends like `causal_mask`, whose shape and errors it shares.

    >>> window_mask(2, 4, window=2).int()
    tensor([[[[0, 1, 1, 0],
              [0, 0, 1, 1]]]], dtype=torch.int32)
    """
    check_integer("window", window, 1)
    causal = causal_mask(num_queries, num_keys, device)
    return causal & causal.triu(causal.shape[3] - num_queries - window + 1)


def decoder_mask(attention_mask: Tensor, start: int = 0, window: int | None = None) -> Tensor:
    """Real tokens of the same document, none in the future, and of these the last `window`.

    The window counts tokens, not columns: padding between them takes nothing from it. The queries
    are the columns from `start` on; those before them are in a KV cache.

    Shapes: (batch, keys) int or bool -> (batch, 1, keys - start, keys) bool.
    """
    check_attention_mask(attention_mask)
    keys = attention_mask.shape[1]
    mask = padding_mask(attention_mask[:, start:], attention_mask)
    mask = mask & causal_mask(keys - start, keys, attention_mask.device)
    if window is not None:
        positions = token_positions(attention_mask)[:, None, None]
        mask = mask & (positions[..., start:].mT - positions < window)
    return mask


def zero_padding(x: Tensor, attention_mask: Tensor) -> Tensor:
    """`x`, (batch, length, width), with exact zeros at padding, whatever stood there, NaN too."""
    padding = attention_mask == 0
    if not may_read(padding):
        return x.masked_fill(padding.unsqueeze(-1), 0.0)
    where = padding.nonzero(as_tuple=True)  # their indices are faster than a mask of all tokens
    return x.index_put(where, x.new_zeros(())) if len(where[0]) else x


class PreparedMask(NamedTuple):
    """A mask, for the reference, with what a kernel has read off it, once for all layers."""

    mask: Tensor  # (batch or 1, heads or 1, queries, keys) bool
    plan: Any
