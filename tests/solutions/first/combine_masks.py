# ==== wrong: only the keys are checked for padding, a padded query still sees keys
# says: Only padded keys are hidden: the rows of padded
import torch


def combine_masks(attention_mask):
    b, n = attention_mask.shape
    causal = torch.tril(torch.ones(n, n, dtype=torch.bool, device=attention_mask.device))
    return attention_mask.bool()[:, None, None, :] & causal

# ==== wrong: "or" instead of "and" between padding and causality
# says: One of the two masks is enough here to
import torch


def combine_masks(attention_mask):
    real = attention_mask == 1
    pad = real[:, None, :, None] & real[:, None, None, :]
    n = real.shape[1]
    past = torch.arange(n)[None, :] <= torch.arange(n)[:, None]
    return pad | past

# ==== wrong: triu instead of tril, a query sees the future and not the past
# says: Every token sees itself and what comes after it:
import torch


def combine_masks(attention_mask):
    m = attention_mask.bool()
    both = m.unsqueeze(1).unsqueeze(2) & m.unsqueeze(1).unsqueeze(3)
    size = m.size(1)
    return both & torch.triu(torch.ones(size, size)).bool()

# ==== wrong: the token itself is hidden (strictly before)
# says: A token does not see itself: the triangle ends
import torch


def combine_masks(attention_mask):
    length = attention_mask.size(1)
    pos = torch.arange(length, device=attention_mask.device)
    q_ok = (attention_mask != 0).view(-1, 1, length, 1)
    k_ok = (attention_mask != 0).view(-1, 1, 1, length)
    return q_ok & k_ok & (pos[None, :] < pos[:, None])

# ==== wrong: polarity inverted, True where nothing may be seen
# says: The mask is upside down: True where it hides.
import torch


def combine_masks(attention_mask):
    pad = attention_mask == 0
    n = pad.shape[-1]
    future = torch.ones(n, n, dtype=torch.bool).triu(diagonal=1)
    return pad[:, None, :, None] | pad[:, None, None, :] | future

# ==== wrong: an additive float mask (0 and -inf) instead of bool
# says: This is what is added to the scores, 0
import torch


def combine_masks(attention_mask):
    real = attention_mask.bool()
    n = real.shape[1]
    allowed = real[:, None, None, :] & real[:, None, :, None] & torch.ones(n, n).tril().bool()
    return torch.zeros(allowed.shape).masked_fill(~allowed, float("-inf"))

# ==== wrong: the axis for the heads is missing, shape (batch, length, length)
# says: The axis for the heads is missing, or stands
import torch


def combine_masks(attention_mask):
    outer = torch.einsum("bq,bk->bqk", attention_mask, attention_mask)
    return torch.tril(outer) > 0

# ==== wrong: query and key are compared for equality, so padding sees padding
# says: What is compared are the two numbers of a
import torch


def combine_masks(attention_mask):
    same = attention_mask[:, None, :, None] == attention_mask[:, None, None, :]
    n = attention_mask.shape[1]
    return same & torch.tril(torch.ones(n, n, dtype=torch.bool))

# ==== wrong: padding is assumed on the right, from the number of real tokens; left padding comes out wrong
# says: Real tokens are counted, and then taken to stand
import torch


def combine_masks(attention_mask):
    lengths = attention_mask.sum(dim=1)
    b, n = attention_mask.shape
    out = torch.zeros(b, 1, n, n, dtype=torch.bool)
    for i in range(b):
        L = int(lengths[i])
        out[i, 0, :L, :L] = torch.tril(torch.ones(L, L)).bool()
    return out

# ==== wrong: causality is forgotten, only padding
# says: The future is not hidden: this is the padding
import torch


def combine_masks(attention_mask):
    a = attention_mask.to(torch.float)
    outer = torch.matmul(a.unsqueeze(2), a.unsqueeze(1))
    return (outer > 0.5).unsqueeze(1)

# ==== wrong: int64 zeros and ones instead of bool
# says: These are numbers, not True and False: ~ and
import torch


def combine_masks(attention_mask):
    outer = attention_mask[:, None, :, None] * attention_mask[:, None, None, :]
    return outer.tril()

# ==== wrong: only the queries are checked for padding, padded keys are seen (left padding)
# says: Only padded queries are hidden: a real query still
import torch


def combine_masks(attention_mask):
    batch, length = attention_mask.shape
    causal = torch.ones(length, length, dtype=torch.bool).tril().expand(batch, 1, length, length)
    return causal.masked_fill(attention_mask[:, None, :, None] == 0, False)

# ==== wrong: the diagonal is always True, so padding sees itself
# says: A padded query sees itself: the whole diagonal is
import torch


def combine_masks(attention_mask):
    m = attention_mask > 0
    n = m.shape[1]
    mask = torch.ones(n, n).tril().bool() & m[:, None, None] & m[:, None, :, None]
    return mask | torch.eye(n, dtype=torch.bool)

# ==== wrong: the first row's padding is used for the whole batch
# says: Every sequence has the mask of the first one.
import torch


def combine_masks(attention_mask):
    B, T = attention_mask.shape
    row = attention_mask[0].bool()
    m = torch.outer(row, row) & torch.tril(torch.ones(T, T, dtype=torch.bool))
    return m[None, None].repeat(B, 1, 1, 1)

# ==== wrong: two: the query's padding is forgotten, and the token itself is hidden
# says: Only padded keys are hidden: the rows of padded
import torch


def combine_masks(attention_mask):
    n = attention_mask.shape[1]
    causal = torch.tril(torch.ones(n, n), diagonal=-1)
    return (causal * attention_mask[:, None, None, :]).bool()

# ==== wrong: two: padding and real are confused (0 is taken as real), and causality is triu
# says: Every token sees itself and what comes after it:
import torch


def combine_masks(attention_mask):
    ok = attention_mask == 0
    n = ok.shape[1]
    t = torch.arange(n)
    ahead = t[None, :] >= t[:, None]
    return ok[:, None, :, None] & ok[:, None, None, :] & ahead

# ==== wrong: two: int64 instead of bool, and the axis for the heads is missing
# says: The axis for the heads is missing, or stands
import torch


def combine_masks(attention_mask):
    n = attention_mask.shape[1]
    causal = torch.tril(torch.ones(n, n, dtype=torch.int64))
    return causal[None] * attention_mask.unsqueeze(1) * attention_mask.unsqueeze(2)

# ==== wrong: off by one, each query sees also the next key
# says: A token sees the one after it: the triangle
import torch


def combine_masks(attention_mask):
    b, n = attention_mask.shape
    out = torch.zeros((b, 1, n, n), dtype=torch.bool)
    for r in range(b):
        for q in range(n):
            for k in range(min(q + 2, n)):
                if attention_mask[r, q] == 1 and attention_mask[r, k] == 1:
                    out[r, 0, q, k] = True
    return out

# ==== wrong: the padding is written over the caller's attention_mask (in place, 0 becomes -1)
# says: it was changed in place
import torch


def combine_masks(attention_mask):
    attention_mask[attention_mask == 0] = -1
    real = attention_mask > 0
    n = real.shape[1]
    causal = torch.ones(n, n, dtype=torch.bool).tril()
    return real[:, None, :, None] & real[:, None, None, :] & causal

# ==== right: three conditions and &
import torch
from torch import Tensor


def combine_masks(attention_mask: Tensor) -> Tensor:
    real = attention_mask.bool()
    n = real.shape[1]
    causal = torch.ones(n, n, dtype=torch.bool, device=real.device).tril()
    return real[:, None, :, None] & real[:, None, None, :] & causal

# ==== right: einsum and tril
import torch


def combine_masks(attention_mask):
    outer = torch.einsum("bq,bk->bqk", attention_mask, attention_mask)
    return outer.tril().bool().unsqueeze(1)

# ==== right: loops
import torch


def combine_masks(attention_mask):
    rows = attention_mask.tolist()
    b, n = attention_mask.shape
    out = torch.zeros(b, 1, n, n, dtype=torch.bool)
    for r, row in enumerate(rows):
        for q in range(n):
            for k in range(q + 1):
                out[r, 0, q, k] = row[q] == 1 and row[k] == 1
    return out

# ==== right: torch.where over positions, padding counted as a position that is never allowed
import torch


def combine_masks(attention_mask):
    n = attention_mask.shape[1]
    t = torch.arange(n, device=attention_mask.device)
    key_pos = torch.where(attention_mask == 1, t, n)
    query_pos = torch.where(attention_mask == 1, t, -1)
    return (key_pos[:, None, :] <= query_pos[:, :, None])[:, None]
