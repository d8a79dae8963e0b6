# ==== wrong: NaN wherever the mask forbids, so a leak is hidden
# says: Every masked cell is blank, and with it every
from torch import Tensor


def attention_map(weights: Tensor, mask: Tensor) -> Tensor:
    return weights.masked_fill(~mask, float("nan"))

# ==== wrong: forbidden keys are drawn as 0 instead of NaN
# says: Masked cells hold a number, and matplotlib gives every
import torch

def attention_map(weights, mask):
    return torch.where(mask, weights, torch.zeros_like(weights))

# ==== wrong: the mask's polarity is inverted, NaN where it allows
# says: The mask is used upside down: True means "may
import torch

def attention_map(weights, mask):
    out = weights.clone()
    hide = mask.expand_as(weights) & (weights == 0)
    out[hide] = float("nan")
    return out

# ==== wrong: NaN at every weight of 0, also where the mask allows the key
# says: Every weight of 0 is blank, that of an
import torch

def attention_map(weights, mask):
    nan = torch.tensor(float("nan"))
    return torch.where(weights == 0, nan, weights)

# ==== wrong: the heads are averaged
# says: The heads are averaged: what one of them does
import torch

def attention_map(weights, mask):
    avg = weights.mean(dim=0, keepdim=True)
    blank = ~mask & (avg == 0)
    return avg.masked_fill(blank, float("nan"))

# ==== wrong: two mistakes: weights are multiplied by the mask, so leaks vanish, and then every 0 is NaN, also allowed ones
# says: A cell is blank as soon as one of
def attention_map(weights, mask):
    seen = weights * mask
    return seen.masked_fill(seen == 0, float("nan"))

# ==== wrong: every row is stretched so that its largest weight is 1
# says: The weights are stretched, so that the largest becomes
import torch

def attention_map(weights, mask):
    peak = weights.max(dim=-1, keepdim=True).values.clamp(min=1e-12)
    picture = weights / peak
    return picture.masked_fill(~mask & (weights == 0), float("nan"))

# ==== wrong: the argument weights is changed in place
# says: it was changed in place
def attention_map(weights, mask):
    blank = mask.logical_not() & weights.eq(0)
    weights[blank] = float("nan")
    return weights

# ==== wrong: two mistakes: leaks are hidden, and rows are normalized again to sum to 1
# says: The rows are divided by their sum, without what
import torch

def attention_map(weights, mask):
    kept = weights.masked_fill(~mask, 0.0)
    kept = kept / kept.sum(-1, keepdim=True)
    return kept.masked_fill(~mask, float("nan"))

# ==== wrong: -inf instead of NaN
# says: A cell that should be blank holds inf or
import torch

def attention_map(weights, mask):
    quiet = (~mask) & (weights == 0.0)
    return weights.masked_fill(quiet, -torch.inf)

# ==== wrong: OR instead of AND: NaN where forbidden or where the weight is 0
# says: A cell is blank as soon as one of
import torch
from torch import Tensor


def attention_map(weights: Tensor, mask: Tensor) -> Tensor:
    forbidden = ~mask
    silent = weights == 0
    return torch.where(forbidden | silent, torch.full_like(weights, torch.nan), weights)

# ==== wrong: two mistakes: changes weights in place, and leaks are hidden too
# says: Every masked cell is blank, and with it every
import torch

def attention_map(weights, mask):
    H, Q, K = weights.shape
    for h in range(H):
        for q in range(Q):
            for k in range(K):
                if not mask[0, q, k]:
                    weights[h, q, k] = float("nan")
    return weights

# ==== wrong: leaks are looked for in the whole tensor: one leak anywhere and nothing is NaN
# says: Whether something leaks is asked of a row, of
import torch

def attention_map(weights, mask):
    bad = ~mask.expand(weights.shape)
    if weights[bad].abs().sum() > 0:
        return weights.clone()
    return weights.masked_fill(bad, float("nan"))

# ==== wrong: small leaks (up to 0.001) are treated as none
# says: A small leak is rounded away: only a weight
import torch

def attention_map(weights, mask):
    leak = (~mask) & (weights > 1e-3)
    show = mask | leak
    return torch.where(show, weights, float("nan"))

# ==== wrong: a leak in one head makes the key visible in all heads
# says: Whether something leaks is asked of a row, of
import torch

def attention_map(weights, mask):
    total = weights.sum(dim=0, keepdim=True)
    hide = (~mask) & (total == 0)
    return weights.masked_fill(hide.expand_as(weights), float("nan"))

# ==== wrong: the other way round: NaN where something leaks, and the quiet forbidden keys stay 0
# says: Leaks are blank, and masked keys without a weight
import torch

def attention_map(weights, mask):
    leaking = ~mask & (weights != 0)
    return torch.where(leaking, torch.tensor(float("nan")), weights)

# ==== wrong: leaks are drawn as 1 (an alarm color) instead of with the weight they have
# says: A leak is drawn with a number of its
import torch

def attention_map(weights, mask):
    forbidden = ~mask.expand_as(weights)
    out = weights.clone()
    out[forbidden & (weights == 0)] = torch.nan
    out[forbidden & (weights > 0)] = 1.0
    return out

# ==== wrong: one leak in a row makes the whole row of forbidden keys visible
# says: Whether something leaks is asked of a row, of
import torch

def attention_map(weights, mask):
    leak = (weights * ~mask).sum(dim=-1, keepdim=True)
    return weights.masked_fill(~mask & (leak == 0), float("nan"))

# ==== wrong: rounded to two decimals, so the weights are not as they are
# says: The weights are rounded for the picture, and a
import torch

def attention_map(weights, mask):
    rounded = torch.round(weights * 100) / 100
    return torch.where(mask | (weights != 0), rounded, torch.nan)

# ==== wrong: raises an error unless queries and keys are equal in number: the mask is transposed (keys, queries)
# says: The mask is transposed, so that queries and keys
import torch

def attention_map(weights, mask):
    forbidden = ~mask.transpose(-1, -2)
    return weights.masked_fill(forbidden & (weights == 0), float("nan"))

# ==== right: masked_fill where forbidden and 0
from torch import Tensor


def attention_map(weights: Tensor, mask: Tensor) -> Tensor:
    return weights.masked_fill(~mask & (weights == 0), float("nan"))

# ==== right: torch.where on what may be shown
import torch

def attention_map(weights, mask):
    show = torch.logical_or(mask, weights != 0)
    return torch.where(show, weights, torch.full_like(weights, float("nan")))

# ==== right: loops over a copy
import torch

def attention_map(weights, mask):
    picture = weights.clone()
    heads, queries, keys = weights.shape
    for h in range(heads):
        for q in range(queries):
            for k in range(keys):
                if not mask[0, q, k] and weights[h, q, k].item() == 0:
                    picture[h, q, k] = float("nan")
    return picture

# ==== right: arithmetic, 0 / 0 makes the NaN
import torch

def attention_map(weights, mask):
    blank = mask.logical_not() * (weights == 0)
    hole = (1 - blank.to(weights.dtype))
    return weights + (hole / hole - 1)
