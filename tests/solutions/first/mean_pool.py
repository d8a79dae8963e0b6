# ==== wrong: the padding is counted in, the mask is not used at all
# says: Padding is counted in, as if it were tokens:
from torch import Tensor


def mean_pool(hidden: Tensor, attention_mask: Tensor) -> Tensor:
    return hidden.mean(dim=1)

# ==== wrong: padding is zeroed, but the sum is divided by the full length
# says: The sum leaves padding out, but what it is
def mean_pool(hidden, attention_mask):
    masked = hidden * attention_mask.unsqueeze(-1)
    return masked.mean(dim=1)

# ==== wrong: a row without any real token becomes NaN (0 / 0)
# says: NaN at a padded place reaches the mean: NaN
import torch

def mean_pool(hidden, attention_mask):
    m = attention_mask.unsqueeze(-1).to(hidden.dtype)
    return (hidden * m).sum(1) / m.sum(1)

# ==== wrong: the sum instead of the mean
# says: NaN at a padded place reaches the mean: NaN
import torch
from torch import Tensor


def mean_pool(hidden: Tensor, attention_mask: Tensor) -> Tensor:
    return torch.einsum("blw,bl->bw", hidden, attention_mask.to(hidden.dtype))

# ==== wrong: divides by the number of real tokens of the whole batch instead of each row's own
# says: NaN at a padded place reaches the mean: NaN
def mean_pool(hidden, attention_mask):
    weights = attention_mask[..., None].float()
    total = (hidden * weights).sum(dim=1)
    count = attention_mask.sum().clamp(min=1)
    return total / count

# ==== wrong: two mistakes: the mask is inverted, and a row without padding gives NaN
# says: A row without a real token gives NaN: 0
import torch

def mean_pool(hidden, attention_mask):
    keep = 1 - attention_mask
    w = keep / keep.sum(dim=1, keepdim=True)
    return torch.bmm(w.unsqueeze(1).to(hidden.dtype), hidden).squeeze(1)

# ==== wrong: the mask's polarity is inverted, the mean of the padding
# says: Padding is summed, and the real tokens are left
import torch

def mean_pool(hidden, attention_mask):
    keep = attention_mask == 0
    summed = hidden.masked_fill(~keep.unsqueeze(-1), 0.0).sum(1)
    n = keep.sum(1, keepdim=True).clamp(min=1)
    return summed / n

# ==== wrong: takes the first token's vector (CLS) instead of the mean
# says: This is one token's vector, the first or the
def mean_pool(hidden, attention_mask):
    cls = hidden[:, 0, :]
    has_any = attention_mask.any(dim=1, keepdim=True)
    return cls * has_any

# ==== wrong: two mistakes: hidden is changed in place, and the sum is divided by the full length
# says: The sum leaves padding out, but what it is
def mean_pool(hidden, attention_mask):
    hidden *= attention_mask.unsqueeze(-1)
    total = hidden.sum(1)
    return total / hidden.shape[1]

# ==== wrong: the padding in the argument hidden is overwritten with zeros in place
# says: it was changed in place
def mean_pool(hidden, attention_mask):
    hidden[attention_mask == 0] = 0
    counts = attention_mask.sum(dim=1).clamp(min=1)
    return hidden.sum(dim=1) / counts[:, None]

# ==== wrong: assumes that the real tokens come first, fails for left padding
# says: The real tokens are counted, and as many taken
import torch

def mean_pool(hidden, attention_mask):
    out = []
    for h, m in zip(hidden, attention_mask):
        n = int(m.sum())
        if n == 0:
            out.append(torch.zeros(hidden.size(-1), dtype=hidden.dtype))
        else:
            out.append(h[:n].mean(0))
    return torch.stack(out)

# ==== wrong: two mistakes: the last real token is left out (off by one), and an empty row gives NaN
# says: A row without a real token gives NaN: 0
import torch

def mean_pool(hidden, attention_mask):
    result = torch.zeros(hidden.shape[0], hidden.shape[2], dtype=hidden.dtype)
    for i in range(hidden.shape[0]):
        idx = attention_mask[i].nonzero().flatten()
        result[i] = hidden[i, idx[:-1]].mean(dim=0)
    return result

# ==== wrong: adds 1 to every count to avoid the division by zero, so every mean is too small
# says: NaN at a padded place reaches the mean: NaN
def mean_pool(hidden, attention_mask):
    m = attention_mask.unsqueeze(2)
    s = (hidden * m).sum(dim=1)
    return s / (m.sum(dim=1) + 1)

# ==== wrong: the axis of the length is kept, shape (batch, 1, width)
# says: NaN at a padded place reaches the mean: NaN
import torch

def mean_pool(hidden, attention_mask):
    mask = attention_mask.unsqueeze(-1).expand_as(hidden).to(hidden.dtype)
    num = torch.sum(hidden * mask, dim=1, keepdim=True)
    den = torch.clamp(mask.sum(dim=1, keepdim=True), min=1e-9)
    return num / den

# ==== wrong: the maximum over the tokens instead of the mean
# says: This is the largest number of each column, not
import torch

def mean_pool(hidden, attention_mask):
    pad = (attention_mask == 0).unsqueeze(-1)
    best = hidden.masked_fill(pad, float("-inf")).max(dim=1).values
    return torch.where(torch.isinf(best), torch.zeros_like(best), best)

# ==== wrong: an empty row falls back to the mean of all positions instead of zeros
# says: NaN at a padded place reaches the mean: NaN
import torch

def mean_pool(hidden, attention_mask):
    m = attention_mask.unsqueeze(-1).to(hidden.dtype)
    n = m.sum(1)
    pooled = (hidden * m).sum(1) / n.clamp(min=1)
    return torch.where(n > 0, pooled, hidden.mean(1))

# ==== wrong: counts the entries that are not zero instead of the real tokens, so a zero in a real vector shrinks the count
# says: NaN at a padded place reaches the mean: NaN
import torch

def mean_pool(hidden, attention_mask):
    x = hidden * attention_mask[:, :, None]
    nonzero = (x != 0).sum(dim=1).clamp(min=1)
    return x.sum(dim=1) / nonzero

# ==== wrong: the result is scaled to length 1, as for sentence embeddings
# says: NaN at a padded place reaches the mean: NaN
import torch
import torch.nn.functional as F

def mean_pool(hidden, attention_mask):
    mask = attention_mask.unsqueeze(-1).float()
    emb = (hidden * mask).sum(1) / mask.sum(1).clamp(min=1e-9)
    return F.normalize(emb, p=2, dim=1)

# ==== wrong: raises an error unless length equals width: the mask's axis for the width is forgotten
# says: The mask is laid along the width of the
def mean_pool(hidden, attention_mask):
    kept = hidden * attention_mask
    return kept.sum(1) / attention_mask.sum(1).clamp(min=1)

# ==== wrong: floor division rounds the mean down
# says: The mean is rounded to whole numbers, as //
def mean_pool(hidden, attention_mask):
    pad = attention_mask.eq(0).unsqueeze(-1)
    total = hidden.masked_fill(pad, 0).sum(1)
    number = attention_mask.sum(1, keepdim=True).clamp(min=1)
    return total // number

# ==== right: masked_fill and a clamped count
from torch import Tensor


def mean_pool(hidden: Tensor, attention_mask: Tensor) -> Tensor:
    pad = (attention_mask == 0)[:, :, None]
    total = hidden.masked_fill(pad, 0.0).sum(dim=1)
    return total / attention_mask.sum(dim=1, keepdim=True).clamp(min=1).to(hidden.dtype)

# ==== right: a loop over the rows
import torch

def mean_pool(hidden, attention_mask):
    rows = []
    for vectors, m in zip(hidden, attention_mask):
        real = vectors[m.bool()]
        if len(real) == 0:
            rows.append(torch.zeros_like(vectors[0]))
        else:
            rows.append(real.mean(dim=0))
    return torch.stack(rows)

# ==== right: shares as weights, einsum, torch.where
import torch

def mean_pool(hidden, attention_mask):
    real = attention_mask.bool()
    x = torch.where(real.unsqueeze(-1), hidden, torch.zeros_like(hidden))
    n = real.sum(-1, keepdim=True)
    share = torch.where(n > 0, real / n.clamp(min=1), 0.0).to(hidden.dtype)
    return torch.einsum("bl,blw->bw", share, x)

# ==== right: a float64 sum with index_add over the flat list of real tokens
import torch

def mean_pool(hidden, attention_mask):
    b, _, w = hidden.shape
    where_row, where_pos = torch.nonzero(attention_mask, as_tuple=True)
    total = torch.zeros(b, w, dtype=torch.float64, device=hidden.device)
    total = total.index_add(0, where_row, hidden[where_row, where_pos].double())
    count = torch.bincount(where_row, minlength=b).clamp(min=1)
    return (total / count.unsqueeze(1)).to(hidden.dtype)
