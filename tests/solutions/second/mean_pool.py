# ==== wrong: padding is multiplied by 0, and NaN * 0 stays NaN
# says: NaN at a padded place reaches the mean: NaN
import torch


def mean_pool(hidden, attention_mask):
    weights = attention_mask.unsqueeze(-1).to(hidden.dtype)
    total = (hidden * weights).sum(dim=1)
    return total / weights.sum(dim=1).clamp(min=1)

# ==== wrong: a row without real tokens is 0 / 0 = NaN instead of zeros
# says: A row without a real token gives NaN: 0
import torch


def mean_pool(hidden, attention_mask):
    keep = attention_mask.bool()[..., None]
    clean = hidden.masked_fill(~keep, 0.0)
    return clean.sum(1) / keep.sum(1)

# ==== wrong: divided by the padded length instead of the number of real tokens
# says: The sum leaves padding out, but what it is
import torch


def mean_pool(hidden, attention_mask):
    is_real = (attention_mask == 1).unsqueeze(2)
    return torch.where(is_real, hidden, torch.zeros_like(hidden)).mean(dim=1)

# ==== wrong: the argument hidden is changed in place (padding is overwritten with 0)
# says: it was changed in place
import torch


def mean_pool(hidden, attention_mask):
    hidden[attention_mask == 0] = 0
    n = attention_mask.sum(dim=1, keepdim=True)
    n[n == 0] = 1
    return hidden.sum(dim=1) / n

# ==== wrong: two mistakes: NaN in padding survives the multiplication by 0, and an empty row is 0 / 0
# says: NaN at a padded place reaches the mean: NaN
import torch


def mean_pool(hidden, attention_mask):
    s = torch.einsum("bld,bl->bd", hidden, attention_mask.to(hidden.dtype))
    counts = attention_mask.sum(-1)
    return s / counts[:, None]

# ==== wrong: two mistakes: the real tokens are taken to stand in front (wrong with padding on the left), and an empty row gives NaN
# says: A row without a real token gives NaN: 0
import torch


def mean_pool(hidden, attention_mask):
    pooled = []
    for vectors, m in zip(hidden, attention_mask):
        n = int(m.sum())
        pooled.append(vectors[:n].mean(dim=0))
    return torch.stack(pooled)

# ==== right: torch.where and a clamped count
import torch


def mean_pool(hidden, attention_mask):
    real = attention_mask.bool().unsqueeze(-1)
    total = torch.where(real, hidden, 0.0).sum(dim=1)
    return total / real.sum(dim=1).clamp(min=1)

# ==== right: a loop over the rows with boolean indexing
import torch


def mean_pool(hidden, attention_mask):
    rows = []
    for i in range(hidden.shape[0]):
        chosen = hidden[i][attention_mask[i] == 1]
        if len(chosen) > 0:
            rows.append(chosen.mean(0))
        else:
            rows.append(hidden.new_zeros(hidden.shape[-1]))
    return torch.stack(rows)
