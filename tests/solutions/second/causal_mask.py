# ==== wrong: no offset, query i is taken for key i instead of the last queries of the keys
# says: The triangle starts at the first key. With fewer
import torch
from torch import Tensor


def causal_mask(num_queries: int, num_keys: int) -> Tensor:
    mask = torch.ones(num_queries, num_keys, dtype=torch.bool).tril()
    return mask[None, None]

# ==== wrong: inverted, True = may not attend (the future is True)
# says: The mask is upside down: True where it hides,
import torch


def causal_mask(num_queries, num_keys):
    ones = torch.ones((1, 1, num_queries, num_keys))
    return torch.triu(ones, diagonal=num_keys - num_queries + 1).bool()

# ==== wrong: strictly before, the query does not see itself
# says: A token does not see itself: the triangle ends
import torch


def causal_mask(num_queries, num_keys):
    q = torch.arange(num_queries).view(-1, 1) + (num_keys - num_queries)
    k = torch.arange(num_keys).view(1, -1)
    return (k < q).view(1, 1, num_queries, num_keys)

# ==== wrong: the slice [-num_queries:] takes all the rows when num_queries is 0
# says:
import torch


def causal_mask(num_queries, num_keys):
    full = torch.tril(torch.ones(num_keys, num_keys, dtype=torch.bool))
    return full[-num_queries:].unsqueeze(0).unsqueeze(0)

# ==== wrong: two mistakes: an additive float mask (0 and -inf) instead of bool, and no offset for fewer queries than keys
# says: This is what is added to the scores, 0
import torch


def causal_mask(num_queries, num_keys):
    m = torch.full((num_queries, num_keys), float("-inf"))
    m = torch.triu(m, diagonal=1)
    return m.unsqueeze(0).unsqueeze(0)

# ==== wrong: two mistakes: the two axes of size 1 are missing, and int64 instead of bool
# says: The two axes of 1 are missing, or one
import torch


def causal_mask(num_queries, num_keys):
    out = torch.zeros(num_queries, num_keys, dtype=torch.long)
    shift = num_keys - num_queries
    for i in range(num_queries):
        out[i, : i + shift + 1] = 1
    return out

# ==== right: tril with a diagonal
import torch


def causal_mask(num_queries, num_keys):
    ones = torch.ones(1, 1, num_queries, num_keys, dtype=torch.bool)
    return ones.tril(diagonal=num_keys - num_queries)

# ==== right: loops
import torch


def causal_mask(num_queries, num_keys):
    mask = torch.zeros(1, 1, num_queries, num_keys, dtype=torch.bool)
    for i in range(num_queries):
        for j in range(num_keys):
            mask[0, 0, i, j] = j <= i + num_keys - num_queries
    return mask
