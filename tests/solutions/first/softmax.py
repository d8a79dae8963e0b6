# ==== wrong: the maximum is not subtracted, large scores overflow to inf / inf = NaN
# says: exp of a large score overflows: exp(1000) is inf,
import torch
from torch import Tensor


def softmax(scores: Tensor) -> Tensor:
    e = torch.exp(scores)
    return e / e.sum(dim=-1, keepdim=True)

# ==== wrong: sums along the first axis instead of the last
# says: The sum runs along another axis than the last.
import torch

def softmax(scores):
    shifted = scores - scores.amax(dim=0, keepdim=True)
    ex = shifted.exp()
    return ex / ex.sum(dim=0, keepdim=True)

# ==== wrong: one sum for the whole tensor instead of one per row
# says: The shares of the whole tensor sum to 1.
def softmax(scores):
    z = (scores - scores.max(-1, keepdim=True).values).exp()
    return z / z.sum()

# ==== wrong: the maximum of the whole tensor is subtracted, so a row far below it underflows to 0 / 0
# says: The largest score of the whole tensor is subtracted
import torch

def softmax(scores):
    top = torch.max(scores)
    num = torch.exp(scores - top)
    den = num.sum(-1).unsqueeze(-1)
    return num / den

# ==== wrong: the argument is changed in place
# says: it was changed in place
import torch
from torch import Tensor


def softmax(scores: Tensor) -> Tensor:
    scores -= scores.amax(-1, keepdim=True)
    scores = scores.exp()
    scores = scores / scores.sum(-1, keepdim=True)
    return scores

# ==== wrong: two mistakes: no maximum subtracted, and an epsilon in the denominator that spoils rows of very negative scores
# says: exp of a large score overflows: exp(1000) is inf,
import torch

def softmax(scores):
    top = scores.exp()
    bottom = torch.einsum("...n->...", top)[..., None] + 1e-8
    return top / bottom

# ==== wrong: not divided by the sum
# says: These are the powers. Divide them by their sum,
def softmax(scores):
    biggest, _ = scores.max(dim=-1, keepdim=True)
    return (scores - biggest).exp()

# ==== wrong: -inf is replaced with 0 before the exponential, so the forbidden get a share
# says: Low scores are raised before exp, -inf too, so
import torch

def softmax(scores):
    clean = torch.where(torch.isinf(scores), torch.zeros_like(scores), scores)
    clean = clean - clean.amax(dim=-1, keepdim=True)
    p = clean.exp()
    return p / p.sum(dim=-1, keepdim=True)

# ==== wrong: two mistakes: axis 1 instead of the last, and the argument is changed in place
# says: The sum runs along another axis than the last.
def softmax(scores):
    axis = 1 if scores.dim() > 1 else 0
    scores.sub_(scores.amax(dim=axis, keepdim=True))
    scores.exp_()
    scores.div_(scores.sum(dim=axis, keepdim=True))
    return scores

# ==== wrong: subtracts the minimum instead of the maximum: -inf gives NaN and wide rows overflow
# says: The smallest score of each row is subtracted, or
import torch

def softmax(scores):
    low = scores.min(dim=-1, keepdim=True)[0]
    e = (scores - low).exp()
    return e / e.sum(-1, keepdim=True)

# ==== wrong: large scores are cut off at 50 instead of shifted, so differences above are lost
# says: Large scores are cut off, before exp or what
def softmax(scores):
    capped = scores.clamp(max=50.0)
    weights = capped.exp()
    return weights.div(weights.sum(-1, keepdim=True))

# ==== wrong: two mistakes: powers of 2 instead of e, and one maximum for the whole tensor
# says: The largest score of the whole tensor is subtracted
def softmax(scores):
    s = scores - scores.max()
    p = 2 ** s
    return p / p.sum(dim=-1, keepdim=True)

# ==== wrong: returns the logarithm of the shares
# says: This is the logarithm of the shares, not the
import torch

def softmax(scores):
    shifted = scores - scores.max(dim=-1, keepdim=True).values
    return shifted - shifted.exp().sum(dim=-1, keepdim=True).log()

# ==== wrong: the exponential is forgotten, the scores themselves are divided by their sum
# says: The scores are divided by their own sum, without
def softmax(scores):
    positive = scores - scores.min(-1, keepdim=True).values
    return positive / positive.sum(-1, keepdim=True)

# ==== wrong: a share is never below 1e-6, so -inf does not give exactly 0
# says: A score of -inf gets the share 6.94331e-07, not 0.
import torch

def softmax(scores):
    m = scores.amax(-1, keepdim=True)
    e = torch.exp(scores - m).clamp(min=1e-6)
    return e / e.sum(-1, keepdim=True)

# ==== wrong: divides by the mean of the exponentials instead of their sum
# says: mean is taken where sum belongs.
import torch

def softmax(scores):
    e = torch.exp(scores - scores.amax(dim=-1, keepdim=True))
    return e / e.mean(dim=-1, keepdim=True)

# ==== wrong: the scores are divided by the maximum instead of the maximum subtracted from them
# says: The scores are divided by the largest of them.
def softmax(scores):
    hi = scores.max(dim=-1, keepdim=True).values
    e = (scores / hi).exp()
    return e / e.sum(dim=-1, keepdim=True)

# ==== wrong: scales by the square root of n, left over from attention
# says: The scores are scaled before exp, as attention does
import math
import torch

def softmax(scores):
    n = scores.shape[-1]
    x = scores / math.sqrt(n)
    x = x - x.amax(-1, keepdim=True)
    return x.exp() / x.exp().sum(-1, keepdim=True)

# ==== wrong: keepdim is forgotten, so the maximum is subtracted along the wrong axis or an error is raised
# says: Without keepdim=True the axis is gone that held a
import torch

def softmax(scores):
    e = (scores - scores.max(dim=-1).values).exp()
    return e / e.sum(dim=-1)

# ==== wrong: the mean is subtracted instead of the maximum, so -inf makes the row NaN and a large spread overflows
# says: The smallest score of each row is subtracted, or
import torch

def softmax(scores):
    centred = scores - torch.mean(scores, dim=-1, keepdim=True)
    ex = torch.exp(centred)
    return ex / torch.sum(ex, dim=-1, keepdim=True)

# ==== right: subtract each row's maximum
import torch
from torch import Tensor


def softmax(scores: Tensor) -> Tensor:
    e = (scores - scores.amax(dim=-1, keepdim=True)).exp()
    return e / e.sum(dim=-1, keepdim=True)

# ==== right: float64 inside, rows flattened, a loop over the rows
import torch

def softmax(scores):
    n = scores.shape[-1]
    rows = scores.reshape(-1, n).double()
    done = []
    for row in rows:
        e = torch.exp(row - row.max())
        done.append(e / e.sum())
    return torch.stack(done).reshape(scores.shape).to(scores.dtype)

# ==== right: through the logarithm of the sum
import torch

def softmax(scores):
    top = scores.max(dim=-1, keepdim=True).values
    log_total = top + torch.log(torch.exp(scores - top).sum(-1, keepdim=True))
    p = torch.exp((scores - top) - (log_total - top))
    return p / p.sum(-1, keepdim=True)

# ==== right: the online way, running maximum and running sum
import torch

def softmax(scores):
    best = torch.full_like(scores[..., 0], float("-inf"))
    total = torch.zeros_like(best)
    for x in scores.unbind(-1):
        new = torch.maximum(best, x)
        safe = torch.where(torch.isinf(new), torch.zeros_like(new), new)
        total = total * torch.exp(best - safe) + torch.exp(x - safe)
        best = new
    return torch.exp(scores - best.unsqueeze(-1)) / total.unsqueeze(-1)
