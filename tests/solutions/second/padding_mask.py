# ==== wrong: only the keys are masked; the query axis is forgotten, so padded queries still see real keys
# says: Only padded keys are hidden, as in most libraries:
import torch


def padding_mask(attention_mask):
    batch, length = attention_mask.shape
    keys = attention_mask.bool()[:, None, None, :]
    return keys.expand(batch, 1, length, length)

# ==== wrong: the result is int64 instead of bool
# says: These are numbers, not True and False: ~ and
import torch


def padding_mask(attention_mask):
    m = attention_mask.unsqueeze(1)
    return m.unsqueeze(-1) * m.unsqueeze(-2)

# ==== wrong: "or" instead of "and": True as soon as one of query and key is real
# says: One of the two is enough in this mask:
from torch import Tensor


def padding_mask(attention_mask: Tensor) -> Tensor:
    real = attention_mask == 1
    down = real[:, None, :, None]
    across = real[:, None, None, :]
    return down | across

# ==== wrong: query and key are compared for equality, so padding may look at padding
# says: Padding may see padding in this mask: the two
import torch


def padding_mask(attention_mask):
    q = attention_mask[:, :, None]
    k = attention_mask[:, None, :]
    same = torch.eq(q, k)
    return same.unsqueeze(1)

# ==== wrong: two mistakes: the polarity is inverted (True = padding), and only the keys are looked at
# says: What to hide for what to show. The mask
import torch


def padding_mask(attention_mask):
    b, n = attention_mask.size()
    out = torch.zeros(b, 1, n, n, dtype=torch.bool)
    for i in range(b):
        for k in range(n):
            if attention_mask[i, k] == 0:
                out[i, 0, :, k] = True
    return out

# ==== wrong: two mistakes: the axis for the heads is missing, and the result is float instead of bool
# says: The axis for the heads is missing, or stands
import torch


def padding_mask(attention_mask):
    m = attention_mask.float()
    return torch.bmm(m.unsqueeze(2), m.unsqueeze(1))

# ==== right: and of two broadcast views
from torch import Tensor


def padding_mask(attention_mask: Tensor) -> Tensor:
    real = attention_mask.bool()
    return real[:, None, :, None] & real[:, None, None, :]

# ==== right: outer product with einsum
import torch


def padding_mask(attention_mask):
    outer = torch.einsum("bq,bk->bqk", attention_mask, attention_mask)
    return (outer > 0).unsqueeze(1)
