# ==== wrong: the mean is subtracted first, as in layer norm
# says: The mean is subtracted, as in layer norm. This
import torch
from torch import Tensor


def rms_norm(x: Tensor, gain: Tensor, eps: float) -> Tensor:
    c = x - x.mean(dim=-1, keepdim=True)
    return c / torch.sqrt(c.pow(2).mean(dim=-1, keepdim=True) + eps) * gain

# ==== wrong: the sum of the squares instead of their mean
# says: The squares are summed, not averaged: this divides by
import torch

def rms_norm(x, gain, eps):
    ss = x.pow(2).sum(-1, keepdim=True)
    return x * torch.rsqrt(ss + eps) * gain

# ==== wrong: eps is added outside of the root
# says: eps is added behind the root. It stands under
def rms_norm(x, gain, eps):
    rms = (x ** 2).mean(-1, keepdim=True).sqrt()
    return x / (rms + eps) * gain

# ==== wrong: the root is forgotten
# says: It is divided by the mean of the squares.
import torch

def rms_norm(x, gain, eps):
    mean_square = torch.mean(x * x, dim=-1, keepdim=True)
    return gain * x / (mean_square + eps)

# ==== wrong: eps is not used, a vector of zeros gives NaN
# says: eps is left out: a vector of zeros gives
import torch

def rms_norm(x, gain, eps):
    n = x.size(-1)
    ms = torch.einsum("...i,...i->...", x, x) / n
    return x / ms.sqrt().unsqueeze(-1) * gain

# ==== wrong: two mistakes: eps outside of the root, and the gain is forgotten
# says: eps is added behind the root. It stands under
def rms_norm(x, gain, eps):
    scale = x.square().mean(dim=-1).sqrt()
    return x / (scale[..., None] + eps)

# ==== wrong: the gain is forgotten
# says: The gain is missing: multiply each column by its
import torch

def rms_norm(x, gain, eps):
    variance = x.square().mean(-1, keepdim=True)
    x_hat = x * torch.rsqrt(variance + eps)
    return x_hat

# ==== wrong: 1 + gain instead of gain, as in Gemma
# says: The gain counts from 1: it is 1 +
import torch

def rms_norm(x, gain, eps):
    normed = x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + eps)
    return normed * (1.0 + gain)

# ==== wrong: two mistakes: the sum instead of the mean, and x is changed in place
# says: The squares are summed, not averaged: this divides by
import torch

def rms_norm(x, gain, eps):
    length = (x * x).sum(dim=-1, keepdim=True).add(eps).sqrt()
    x.div_(length)
    return x.mul(gain)

# ==== wrong: the mean is taken along the first axis
# says: It runs along another axis, or more than one:
def rms_norm(x, gain, eps):
    denom = (x.pow(2).mean(dim=0, keepdim=True) + eps) ** 0.5
    return x / denom * gain

# ==== wrong: one mean for the whole tensor
# says: The mean is that of the whole tensor. Each
import torch

def rms_norm(x, gain, eps):
    rms = torch.sqrt((x ** 2).mean() + eps)
    return (x / rms) * gain

# ==== wrong: two mistakes: the standard deviation about the mean instead of the rms, and that divided by n - 1
# says: It is divided by the standard deviation, from which
import torch

def rms_norm(x, gain, eps):
    var = x.var(dim=-1, keepdim=True)
    return x / torch.sqrt(var + eps) * gain

# ==== wrong: the square of the mean instead of the mean of the squares
# says: The mean is squared, in place of the mean
def rms_norm(x, gain, eps):
    m = x.mean(-1, keepdim=True) ** 2
    return x / (m + eps).sqrt() * gain

# ==== wrong: the argument x is changed in place
# says: it was changed in place
import torch

def rms_norm(x, gain, eps):
    factor = torch.rsqrt(x.square().mean(dim=-1, keepdim=True) + eps)
    x *= factor
    return x * gain

# ==== wrong: multiplied by the root mean square instead of divided
# says: It is multiplied by the root. Divide by it.
import torch

def rms_norm(x, gain, eps):
    r = torch.sqrt(torch.mean(torch.square(x), -1, keepdim=True) + eps)
    return x * r * gain

# ==== wrong: the mean of the absolute values instead of the root mean square
# says: It is divided by the mean of |x|. Square
def rms_norm(x, gain, eps):
    size = x.abs().mean(-1, keepdim=True)
    return x / (size ** 2 + eps) ** 0.5 * gain

# ==== wrong: a fixed eps of 1e-6 instead of the argument
# says: The eps that is given is not used: another
import torch

def rms_norm(x, gain, eps=1e-6):
    epsilon = 1e-6
    ms = x.pow(2).mean(-1, keepdim=True)
    return gain * (x * torch.rsqrt(ms + epsilon))

# ==== wrong: the gain is applied before the mean square is taken, so it is normalized in
# says: The gain comes before the norm, which undoes most
import torch

def rms_norm(x, gain, eps):
    y = x * gain
    return y / torch.sqrt((y * y).mean(-1, keepdim=True) + eps)

# ==== wrong: eps is added to x before squaring instead of to the mean of the squares
# says: eps is added to x before it is squared.
def rms_norm(x, gain, eps):
    mean_sq = ((x + eps) ** 2).mean(-1, keepdim=True)
    return x / mean_sq ** 0.5 * gain

# ==== wrong: raises an error for most shapes: keepdim is forgotten
# says: Without keepdim=True the axis is gone that held a
import torch

def rms_norm(x, gain, eps):
    rms = torch.sqrt(x.pow(2).mean(-1) + eps)
    return x / rms * gain

# ==== right: by the formula
import torch
from torch import Tensor


def rms_norm(x: Tensor, gain: Tensor, eps: float) -> Tensor:
    return x / torch.sqrt(x.pow(2).mean(dim=-1, keepdim=True) + eps) * gain

# ==== right: rsqrt, float64 inside
import torch

def rms_norm(x, gain, eps):
    wide = x.to(torch.float64)
    inv = torch.rsqrt((wide * wide).mean(-1, keepdim=True) + eps)
    return (wide * inv * gain.to(torch.float64)).to(x.dtype)

# ==== right: einsum over the square
import torch

def rms_norm(x, gain, eps):
    ms = torch.einsum("...i,...i->...", x, x) / x.shape[-1]
    return torch.einsum("...i,...,i->...i", x, (ms + eps) ** -0.5, gain)

# ==== right: a loop over the vectors
import torch

def rms_norm(x, gain, eps):
    width = x.shape[-1]
    result = torch.empty_like(x)
    flat_in = x.reshape(-1, width)
    rows = []
    for v in flat_in:
        rms = (torch.dot(v, v) / width + eps).sqrt()
        rows.append(v / rms * gain)
    result = torch.stack(rows).view(x.shape)
    return result
