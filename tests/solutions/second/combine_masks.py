# ==== wrong: the padded queries are forgotten, their rows still see keys
# says: Only padded keys are hidden: the rows of padded
import torch
from torch import Tensor


def combine_masks(attention_mask: Tensor) -> Tensor:
    n = attention_mask.shape[1]
    causal = torch.tril(torch.ones(n, n, dtype=torch.bool))
    keys = attention_mask[:, None, None, :].bool()
    return keys & causal

# ==== wrong: strictly before, a token does not see itself
# says: A token does not see itself: the triangle ends
import torch


def combine_masks(attention_mask):
    real = attention_mask == 1
    length = real.size(-1)
    idx = torch.arange(length)
    before = idx[None, :] < idx[:, None]
    pairs = real.unsqueeze(2) & real.unsqueeze(1)
    return (pairs & before).unsqueeze(1)

# ==== wrong: padding is taken to stand on the right only, the mask is made from the lengths
# says: Real tokens are counted, and then taken to stand
import torch


def combine_masks(attention_mask):
    lengths = attention_mask.sum(dim=1)
    pos = torch.arange(attention_mask.shape[1])
    inside = pos[None, :] < lengths[:, None]
    both = inside[:, None, :, None] & inside[:, None, None, :]
    return both & (pos[:, None] >= pos[None, :])

# ==== wrong: the triangle is the wrong way round, a query sees itself and the future
# says: Every token sees itself and what comes after it:
import torch


def combine_masks(attention_mask):
    m = attention_mask.float()
    outer = torch.einsum("bi,bj->bij", m, m)
    return torch.triu(outer).bool()[:, None]

# ==== wrong: two mistakes: the axis for the heads is missing, and padded keys are not hidden (only padded queries)
# says: Only padded queries are hidden: a real query still
import torch


def combine_masks(attention_mask):
    b, t = attention_mask.shape
    result = torch.zeros(b, t, t, dtype=torch.bool)
    for s in range(b):
        for i in range(t):
            if attention_mask[s, i] == 1:
                result[s, i, : i + 1] = True
    return result

# ==== wrong: two mistakes: causality is missing, and int64 instead of bool
# says: The future is not hidden: this is the padding
import torch


def combine_masks(attention_mask):
    queries = attention_mask.unsqueeze(1).unsqueeze(-1)
    keys = attention_mask.unsqueeze(1).unsqueeze(2)
    return queries * keys

# ==== right: broadcasting
import torch


def combine_masks(attention_mask):
    real = attention_mask.bool()
    n = real.shape[1]
    causal = torch.ones(n, n, dtype=torch.bool, device=real.device).tril()
    return real[:, None, :, None] & real[:, None, None, :] & causal

# ==== right: einsum and tril of a product
import torch


def combine_masks(attention_mask):
    both = torch.einsum("bq,bk->bqk", attention_mask, attention_mask)
    return both.tril().eq(1).unsqueeze(1)
