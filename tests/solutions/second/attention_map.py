# ==== wrong: every masked cell is blank, so leaks are hidden
# says: Every masked cell is blank, and with it every
def attention_map(weights, mask):
    return weights.masked_fill(~mask, float("nan"))

# ==== wrong: every weight of 0 is blank, also where the key may be seen
# says: Every weight of 0 is blank, that of an
import torch


def attention_map(weights, mask):
    nan = torch.full_like(weights, float("nan"))
    return torch.where(weights == 0, nan, weights)

# ==== wrong: a tolerance instead of exactly 0, so small leaks are hidden
# says: A small leak is rounded away: only a weight
import torch


def attention_map(weights, mask):
    zero = torch.isclose(weights, torch.zeros_like(weights), atol=1e-6)
    blank = torch.logical_and(torch.logical_not(mask), zero)
    return weights.masked_fill(blank, torch.nan)

# ==== wrong: the argument weights is changed in place
# says: it was changed in place
import math


def attention_map(weights, mask):
    forbidden = (~mask).expand(weights.shape)
    weights[forbidden & (weights == 0)] = math.nan
    return weights

# ==== wrong: two mistakes: the heads are averaged, and every masked cell is blank, so leaks are hidden
# says: Every masked cell is blank, and with it every
import torch


def attention_map(weights, mask):
    avg = weights.mean(dim=0, keepdim=True)
    avg = avg.expand_as(weights)
    return torch.where(mask, avg, torch.tensor(float("nan"), dtype=weights.dtype))

# ==== wrong: two mistakes: each row is stretched to a maximum of 1, and the mask is inverted (blank where the key may be seen)
# says: The weights are stretched, so that the largest becomes
import torch


def attention_map(weights, mask):
    peak = weights.amax(dim=-1, keepdim=True).clamp(min=1e-12)
    out = weights / peak
    heads, queries, keys = out.shape
    for h in range(heads):
        for q in range(queries):
            for k in range(keys):
                if mask[0, q, k] and weights[h, q, k] == 0:
                    out[h, q, k] = float("nan")
    return out

# ==== right: masked_fill where forbidden and exactly 0
def attention_map(weights, mask):
    return weights.masked_fill(~mask & (weights == 0), float("nan"))

# ==== right: cell by cell on a copy
def attention_map(weights, mask):
    picture = weights.clone()
    for h in range(weights.shape[0]):
        for q in range(weights.shape[1]):
            for k in range(weights.shape[2]):
                if not mask[0, q, k].item() and weights[h, q, k].item() == 0.0:
                    picture[h, q, k] = float("nan")
    return picture
