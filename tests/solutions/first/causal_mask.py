# ==== wrong: tril without the offset, so with fewer queries than keys the first query is aligned with the first key
# says: The triangle starts at the first key. With fewer
import torch


def causal_mask(num_queries, num_keys):
    return torch.tril(torch.ones(num_queries, num_keys, dtype=torch.bool))[None, None]

# ==== wrong: polarity inverted, True where the key is in the future
# says: The mask is upside down: True where it hides,
import torch


def causal_mask(num_queries: int, num_keys: int):
    shift = num_keys - num_queries
    m = torch.triu(torch.ones(num_queries, num_keys), diagonal=shift + 1).bool()
    return m.view(1, 1, num_queries, num_keys)

# ==== wrong: the token itself is not visible (strictly less instead of less or equal)
# says: A token does not see itself: the triangle ends
import torch


def causal_mask(num_queries, num_keys):
    q = torch.arange(num_keys - num_queries, num_keys).unsqueeze(1)
    k = torch.arange(num_keys).unsqueeze(0)
    return (k < q).unsqueeze(0).unsqueeze(0)

# ==== wrong: an additive float mask (0 and -inf) instead of bool
# says: This is what is added to the scores, 0
import torch


def causal_mask(num_queries, num_keys):
    mask = torch.full((num_queries, num_keys), float("-inf"))
    mask = torch.triu(mask, diagonal=num_keys - num_queries + 1)
    return mask.reshape(1, 1, num_queries, num_keys)

# ==== wrong: the two leading axes of size 1 are missing
# says: The two axes of 1 are missing, or one
import torch


def causal_mask(num_queries, num_keys):
    offset = num_keys - num_queries
    out = torch.zeros(num_queries, num_keys, dtype=torch.bool)
    for i in range(num_queries):
        out[i, : i + offset + 1] = True
    return out

# ==== wrong: off by one, each query also sees the next key
# says: A token sees the one after it: the triangle
import torch


def causal_mask(num_queries, num_keys):
    full = torch.ones((1, 1, num_queries, num_keys), dtype=torch.bool)
    return full.tril(diagonal=num_keys - num_queries + 1)

# ==== wrong: the sign of the offset is wrong (num_queries - num_keys)
# says: The difference is taken the wrong way round: with
import torch


def causal_mask(num_queries, num_keys):
    return torch.ones(1, 1, num_queries, num_keys).tril(num_queries - num_keys) == 1

# ==== wrong: ones and zeros in float32 instead of bool
# says: These are numbers, not True and False: ~ and
import torch


def causal_mask(num_queries, num_keys):
    ones = torch.ones(num_queries, num_keys)
    return torch.tril(ones, diagonal=num_keys - num_queries)[None, None, :, :]

# ==== wrong: the square mask (num_keys, num_keys) is returned, not cut to the queries
# says: The mask has as many rows as columns. There
import torch


def causal_mask(num_queries, num_keys):
    t = torch.arange(num_keys)
    return (t.view(-1, 1) >= t.view(1, -1)).expand(1, 1, num_keys, num_keys)

# ==== wrong: queries and keys are exchanged, the shape is (1, 1, num_keys, num_queries)
# says: Rows and columns have changed places: a row is
import torch


def causal_mask(num_queries, num_keys):
    rows = torch.arange(num_keys).reshape(num_keys, 1)
    cols = torch.arange(num_queries).reshape(1, num_queries) + num_keys - num_queries
    return (rows <= cols)[None, None]

# ==== wrong: looks into the future instead of the past (key >= query)
# says: Every token sees itself and what comes after it:
import torch


def causal_mask(num_queries, num_keys):
    query = torch.arange(num_queries) + (num_keys - num_queries)
    key = torch.arange(num_keys)
    return torch.ge(key[None, :], query[:, None])[None, None]

# ==== wrong: with a cache (fewer queries than keys) every query sees every key
# says: With fewer queries than keys nothing is hidden. That
import torch


def causal_mask(num_queries, num_keys):
    if num_queries == num_keys:
        m = torch.tril(torch.ones(num_keys, num_keys, dtype=torch.bool))
    else:
        m = torch.ones(num_queries, num_keys, dtype=torch.bool)
    return m.view(1, 1, num_queries, num_keys)

# ==== wrong: two: no offset, and the token itself is hidden
# says: A token does not see itself: the triangle ends
import torch


def causal_mask(num_queries, num_keys):
    mask = torch.zeros(1, 1, num_queries, num_keys, dtype=torch.bool)
    for q in range(num_queries):
        for k in range(num_keys):
            if k < q:
                mask[0, 0, q, k] = True
    return mask

# ==== wrong: two: polarity inverted, and no offset for the cache
# says: The mask is upside down: True where it hides,
import torch


def causal_mask(num_queries, num_keys):
    visible = torch.ones(num_queries, num_keys, dtype=torch.bool)
    return visible.triu(1).unsqueeze(0).unsqueeze(0)

# ==== wrong: two: int64 instead of bool, and only one leading axis
# says: The two axes of 1 are missing, or one
import torch


def causal_mask(num_queries, num_keys):
    rows = [[1 if k <= q + num_keys - num_queries else 0 for k in range(num_keys)] for q in range(num_queries)]
    return torch.tensor(rows).unsqueeze(0)

# ==== wrong: a sliding window, each query sees only its last num_queries keys and not all that came before
# says: This is a window: a query sees only the
import torch


def causal_mask(num_queries, num_keys):
    i = torch.arange(num_keys - num_queries, num_keys)[:, None]
    j = torch.arange(num_keys)[None]
    ok = (j <= i) & (j > i - num_queries)
    return ok[None, None]

# ==== right: tril with diagonal
import torch
from torch import Tensor


def causal_mask(num_queries: int, num_keys: int) -> Tensor:
    ones = torch.ones(1, 1, num_queries, num_keys, dtype=torch.bool)
    return ones.tril(diagonal=num_keys - num_queries)

# ==== right: comparing positions
import torch


def causal_mask(num_queries, num_keys):
    q = torch.arange(num_keys - num_queries, num_keys)
    k = torch.arange(num_keys)
    return (k.unsqueeze(0) <= q.unsqueeze(1))[None, None]

# ==== right: last rows of the square mask
import torch


def causal_mask(num_queries, num_keys):
    square = ~torch.triu(torch.ones(num_keys, num_keys, dtype=torch.bool), diagonal=1)
    return square[num_keys - num_queries :].reshape(1, 1, num_queries, num_keys)

# ==== right: loops over rows
import torch


def causal_mask(num_queries, num_keys):
    out = torch.zeros((1, 1, num_queries, num_keys), dtype=torch.bool)
    for row in range(num_queries):
        out[0, 0, row, : num_keys - (num_queries - 1 - row)] = True
    return out
