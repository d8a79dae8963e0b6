# ==== wrong: the maximum is not subtracted, so large scores overflow to inf / inf = NaN
# says: exp of a large score overflows: exp(1000) is inf,
import torch


def softmax(scores):
    e = torch.exp(scores)
    return e / e.sum(dim=-1, keepdim=True)

# ==== wrong: along the first axis instead of the last
# says: The sum runs along another axis than the last.
import torch


def softmax(scores):
    top = scores.max(dim=0, keepdim=True).values
    top = torch.where(torch.isinf(top), torch.zeros_like(top), top)
    e = (scores - top).exp()
    return e / e.sum(dim=0, keepdim=True)

# ==== wrong: the maximum of the whole tensor is subtracted, so a row far below it underflows to 0 / 0
# says: The largest score of the whole tensor is subtracted
import torch


def softmax(scores):
    shifted = scores - scores.max()
    numer = torch.exp(shifted)
    return numer / numer.sum(-1, keepdim=True)

# ==== wrong: the argument scores is changed in place
# says: it was changed in place
import torch


def softmax(scores):
    scores -= scores.amax(dim=-1, keepdim=True)
    out = torch.exp(scores)
    out /= out.sum(dim=-1, keepdim=True)
    return out

# ==== wrong: two mistakes: the sum runs over the whole tensor instead of each row, and large scores overflow
# says: exp of a large score overflows: exp(1000) is inf,
from torch import Tensor


def softmax(scores: Tensor) -> Tensor:
    exps = scores.exp()
    total = exps.sum()
    return exps / total

# ==== wrong: two mistakes: scores are clamped to -50..50 instead of shifted, so large ones become ties, and -inf gets a share above 0
# says: Large scores are cut off, before exp or what
import torch


def softmax(scores):
    safe = scores.clamp(-50.0, 50.0)
    powers = torch.e ** safe
    return torch.div(powers, powers.sum(dim=-1).unsqueeze(-1))

# ==== right: shifted by the maximum of each row
import torch


def softmax(scores):
    e = torch.exp(scores - scores.amax(dim=-1, keepdim=True))
    return e / e.sum(dim=-1, keepdim=True)

# ==== right: row by row in float64
import torch


def softmax(scores):
    n = scores.shape[-1]
    flat = scores.reshape(-1, n)
    rows = []
    for row in flat:
        r = row.double()
        p = (r - r.max()).exp()
        rows.append(p / p.sum())
    return torch.stack(rows).reshape(scores.shape).to(scores.dtype)
