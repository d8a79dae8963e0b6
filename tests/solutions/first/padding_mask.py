# ==== wrong: the query axis is forgotten, so a padded query still sees the real keys
# says: Only padded keys are hidden, as in most libraries:
import torch
from torch import Tensor


def padding_mask(attention_mask: Tensor) -> Tensor:
    batch, length = attention_mask.shape
    keys = attention_mask.bool()[:, None, None, :]
    return keys.expand(batch, 1, length, length)

# ==== wrong: only the key mask of shape (batch, 1, 1, length), Hugging Face style; queries are not masked and the shape is not square
# says: Only padded keys are hidden, as in most libraries:
def padding_mask(attention_mask):
    return attention_mask[:, None, None, :] == 1

# ==== wrong: polarity inverted, True where either is padding
# says: The mask is upside down: True where it hides.
import torch

def padding_mask(attention_mask):
    is_pad = attention_mask.eq(0)
    q = is_pad.unsqueeze(1).unsqueeze(-1)
    k = is_pad.unsqueeze(1).unsqueeze(-2)
    return q | k

# ==== wrong: the axis for the heads is missing
# says: The axis for the heads is missing, or stands
import torch

def padding_mask(attention_mask):
    m = attention_mask.to(torch.bool)
    return m.unsqueeze(2) & m.unsqueeze(1)

# ==== wrong: the result is int64 instead of bool
# says: These are numbers, not True and False: ~ and
def padding_mask(attention_mask):
    column = attention_mask.unsqueeze(-1)
    row = attention_mask.unsqueeze(-2)
    return (column * row).unsqueeze(1)

# ==== wrong: two mistakes: changes the argument in place (0 becomes -1), and the product of two paddings counts as real
# says: Padding may see padding in this mask: the two
def padding_mask(attention_mask):
    attention_mask[attention_mask == 0] = -1
    prod = attention_mask.unsqueeze(2) * attention_mask.unsqueeze(1)
    return (prod > 0).unsqueeze(1)

# ==== wrong: OR instead of AND, one real token of the two is enough
# says: One of the two is enough in this mask:
import torch
from torch import Tensor


def padding_mask(attention_mask: Tensor) -> Tensor:
    real = attention_mask > 0
    return torch.logical_or(real[:, None, :, None], real[:, None, None, :])

# ==== wrong: compares the two masks for equality, so padding may look at padding
# says: Padding may see padding in this mask: the two
def padding_mask(attention_mask):
    a = attention_mask[:, :, None]
    b = attention_mask[:, None, :]
    return (a == b)[:, None]

# ==== wrong: two mistakes: padded queries are not masked, and int instead of bool
# says: Only padded keys are hidden, as in most libraries:
import torch
from einops import repeat

def padding_mask(attention_mask):
    L = attention_mask.shape[1]
    return repeat(attention_mask, "b k -> b 1 q k", q=L)

# ==== wrong: the key axis is forgotten, real queries see padded keys
# says: Only padded queries are hidden: a real query still
import torch

def padding_mask(attention_mask):
    n = attention_mask.size(1)
    q = attention_mask.bool().view(-1, 1, n, 1)
    return q.repeat(1, 1, 1, n)

# ==== wrong: assumes that padding is on the right (counts tokens and compares positions), fails for left padding
# says: The real tokens are counted, and as many positions
import torch

def padding_mask(attention_mask):
    B, L = attention_mask.shape
    lengths = attention_mask.sum(dim=1)
    pos = torch.arange(L, device=attention_mask.device)
    ok = pos[None, :] < lengths[:, None]
    return (ok[:, :, None] & ok[:, None, :]).unsqueeze(1)

# ==== wrong: two mistakes: the axis of heads is missing and the polarity is inverted
# says: The mask is upside down: True where it hides.
import torch

def padding_mask(attention_mask):
    rows = []
    for m in attention_mask:
        rows.append(torch.outer(m, m) == 0)
    return torch.stack(rows)

# ==== wrong: an additive float mask (0 and -inf) instead of a bool one
# says: This is what is added to the scores: 0,
import torch

def padding_mask(attention_mask):
    both = torch.einsum("bi,bj->bij", attention_mask, attention_mask)
    out = torch.zeros(both.shape)
    out[both == 0] = float("-inf")
    return out.unsqueeze(1)

# ==== wrong: a causal triangle is put in that nobody asked for
# says: The future is hidden too: this mask is causal.
import torch

def padding_mask(attention_mask):
    L = attention_mask.shape[-1]
    m = attention_mask.bool()
    pad = m[:, None, :, None] & m[:, None, None, :]
    tri = torch.tril(torch.ones(L, L, dtype=torch.bool))
    return pad & tri

# ==== wrong: only the first row of the batch is used, for all rows
# says: Every sequence has the mask of the first one.
import torch

def padding_mask(attention_mask):
    batch = attention_mask.shape[0]
    row = attention_mask[0].bool()
    square = torch.outer(row, row)
    return square.expand(batch, 1, *square.shape)

# ==== wrong: the axis of 1 is the last one instead of the second
# says: The axis for the heads is missing, or stands
def padding_mask(attention_mask):
    real = attention_mask.bool()
    grid = real.unsqueeze(1) & real.unsqueeze(2)
    return grid.unsqueeze(-1)

# ==== wrong: the diagonal is always allowed, so a padded query sees itself
# says: A padded query may see something in this mask,
import torch

def padding_mask(attention_mask):
    length = attention_mask.size(-1)
    m = attention_mask.bool()
    allowed = m[:, :, None] & m[:, None, :]
    allowed = allowed | torch.eye(length, dtype=torch.bool)
    return allowed[:, None, :, :]

# ==== wrong: ~ on integers gives -1 and -2, both count as true, so nothing is allowed anywhere
# says: Nobody may see anything in this mask: it is
import torch

def padding_mask(attention_mask):
    padded = (~attention_mask).bool()
    either = padded[:, None, :, None] | padded[:, None, None, :]
    return ~either

# ==== wrong: raises an error: transposes an axis that does not exist in a matrix
# says:
def padding_mask(attention_mask):
    m = attention_mask.bool()
    return m.unsqueeze(1) & m.transpose(1, 2)

# ==== right: broadcasting with None
from torch import Tensor


def padding_mask(attention_mask: Tensor) -> Tensor:
    real = attention_mask.bool()
    return real[:, None, :, None] & real[:, None, None, :]

# ==== right: outer product with einsum
import torch

def padding_mask(attention_mask):
    return torch.einsum("bq,bk->bqk", attention_mask, attention_mask).unsqueeze(1) == 1

# ==== right: plain loops
import torch

def padding_mask(attention_mask):
    B, L = attention_mask.shape
    out = torch.zeros(B, 1, L, L, dtype=torch.bool, device=attention_mask.device)
    for b in range(B):
        for q in range(L):
            for k in range(L):
                if attention_mask[b, q] == 1 and attention_mask[b, k] == 1:
                    out[b, 0, q, k] = True
    return out

# ==== right: start with everything allowed and strike out rows and columns of padding
import torch

def padding_mask(attention_mask):
    b, n = attention_mask.shape
    pad = attention_mask == 0
    out = torch.ones(b, 1, n, n, dtype=torch.bool, device=attention_mask.device)
    out = out.masked_fill(pad.view(b, 1, 1, n), False)
    out = out.masked_fill(pad.view(b, 1, n, 1), False)
    return out
