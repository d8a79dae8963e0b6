# ==== wrong: the variance is divided by n - 1 (torch.var's default)
# says: The variance is divided by n - 1, as
import torch
from torch import Tensor


def layer_norm(x: Tensor, gain: Tensor, bias: Tensor, eps: float) -> Tensor:
    mean = x.mean(dim=-1, keepdim=True)
    var = x.var(dim=-1, keepdim=True)
    return (x - mean) / torch.sqrt(var + eps) * gain + bias

# ==== wrong: eps is added to the standard deviation, outside of the root
# says: eps is added behind the root. It stands under
def layer_norm(x, gain, bias, eps):
    mu = x.mean(-1, keepdim=True)
    sigma = x.std(-1, keepdim=True, unbiased=False)
    return gain * (x - mu) / (sigma + eps) + bias

# ==== wrong: mean and variance along the first axis, as in batch norm
# says: It runs along another axis, or more than one:
import torch

def layer_norm(x, gain, bias, eps):
    m = x.mean(0, keepdim=True)
    v = ((x - m) ** 2).mean(0, keepdim=True)
    return (x - m) * torch.rsqrt(v + eps) * gain + bias

# ==== wrong: eps is not used, a constant vector gives 0 / 0
# says: eps is left out: a vector of equal numbers
import torch

def layer_norm(x, gain, bias, eps):
    centred = x - torch.mean(x, dim=-1, keepdim=True)
    variance = torch.mean(centred.pow(2), dim=-1, keepdim=True)
    return centred / variance.sqrt() * gain + bias

# ==== wrong: the root is forgotten, divided by the variance
# says: It is divided by the variance. Divide by its
def layer_norm(x, gain, bias, eps):
    c = x - x.mean(-1, keepdim=True)
    var = (c * c).mean(-1, keepdim=True)
    return c / (var + eps) * gain + bias

# ==== wrong: two mistakes: divided by n - 1, and eps outside of the root (as in The Annotated Transformer)
# says: The variance is divided by n - 1, as
def layer_norm(x, gain, bias, eps):
    mean = x.mean(-1, keepdim=True)
    std = x.std(-1, keepdim=True)
    return gain * (x - mean) / (std + eps) + bias

# ==== wrong: gain and bias are swapped
# says: Gain and bias have changed places: the gain is
import torch

def layer_norm(x, gain, bias, eps):
    var, mean = torch.var_mean(x, dim=-1, correction=0, keepdim=True)
    normed = (x - mean) * (var + eps).rsqrt()
    return torch.addcmul(gain, normed, bias)

# ==== wrong: one mean and variance for the whole tensor
# says: Mean or variance is that of the whole tensor.
import torch

def layer_norm(x, gain, bias, eps):
    mean = x.mean()
    var = x.var(unbiased=False)
    return (x - mean) / (var + eps).sqrt() * gain + bias

# ==== wrong: two mistakes: mean and variance over all axes but the batch, and divided by n - 1
# says: The variance is divided by n - 1, as
import torch

def layer_norm(x, gain, bias, eps):
    dims = tuple(range(1, x.dim())) or (0,)
    mean = torch.mean(x, dim=dims, keepdim=True)
    var = torch.var(x, dim=dims, keepdim=True)
    y = (x - mean) / torch.sqrt(var + eps)
    return y * gain + bias

# ==== wrong: the bias is forgotten
# says: The bias is missing: it is added at the
import torch

def layer_norm(x, gain, bias, eps):
    n = x.shape[-1]
    mu = x.sum(-1, keepdim=True) / n
    var = (x - mu).square().sum(-1, keepdim=True) / n
    return gain * ((x - mu) / torch.sqrt(var + eps))

# ==== wrong: the argument x is changed in place
# says: it was changed in place
import torch

def layer_norm(x, gain, bias, eps):
    x -= x.mean(dim=-1, keepdim=True)
    x /= torch.sqrt((x ** 2).mean(dim=-1, keepdim=True) + eps)
    return x * gain + bias

# ==== wrong: two mistakes: gain as 1 + gain, and the bias is forgotten
# says: The bias is missing: it is added at the
import torch

def layer_norm(x, gain, bias, eps):
    v, m = torch.var_mean(x, -1, unbiased=False, keepdim=True)
    return (x - m) * torch.rsqrt(v + eps) * (1 + gain)

# ==== wrong: the mean is not subtracted from x
# says: The mean is not subtracted from what is divided:
import torch

def layer_norm(x, gain, bias, eps):
    var = torch.var(x, dim=-1, keepdim=True, unbiased=False)
    return x / torch.sqrt(var + eps) * gain + bias

# ==== wrong: mean(x^2) - mean(x)^2 in the given precision: cancels for a vector with a large mean
# says: The variance is taken as mean(x²) - mean(x)². On
import torch

def layer_norm(x, gain, bias, eps):
    first = x.mean(-1, keepdim=True)
    second = (x * x).mean(-1, keepdim=True)
    var = (second - first * first).clamp(min=0)
    return (x - first) / (var + eps).sqrt() * gain + bias

# ==== wrong: the bias is stretched by the gain too
# says: The bias is multiplied with the gain as well.
def layer_norm(x, gain, bias, eps):
    avg = x.mean(dim=-1, keepdim=True)
    diff = x - avg
    scale = (diff.pow(2).mean(dim=-1, keepdim=True) + eps).pow(-0.5)
    return (diff * scale + bias) * gain

# ==== wrong: the square mean is taken of x instead of x - mean (the rms)
# says: What is under the root is not the variance:
import torch

def layer_norm(x, gain, bias, eps):
    mean = x.mean(-1, keepdim=True)
    power = x.pow(2).mean(-1, keepdim=True)
    return (x - mean) / torch.sqrt(power + eps) * gain + bias

# ==== wrong: a fixed eps of 1e-5 instead of the argument
# says: The eps that is given is not used: another
import torch

def layer_norm(x, gain, bias, eps=1e-5):
    mean = torch.einsum("...d->...", x).unsqueeze(-1) / x.size(-1)
    c = x - mean
    var = torch.einsum("...d,...d->...", c, c).unsqueeze(-1) / x.size(-1)
    return c / torch.sqrt(var + 1e-5) * gain + bias

# ==== wrong: the gain is applied before normalizing, where it is normalized away
# says: The gain comes before the norm, which undoes most
import torch

def layer_norm(x, gain, bias, eps):
    y = x * gain
    y = y - y.mean(-1, keepdim=True)
    y = y / (y.square().mean(-1, keepdim=True) + eps).sqrt()
    return y + bias

# ==== wrong: the mean absolute deviation instead of the standard deviation
# says: It is divided by the mean of |x -
def layer_norm(x, gain, bias, eps):
    c = x - x.mean(-1, keepdim=True)
    spread = c.abs().mean(-1, keepdim=True)
    return c / (spread ** 2 + eps) ** 0.5 * gain + bias

# ==== wrong: raises an error for most shapes: keepdim is forgotten
# says: Without keepdim=True the axis is gone that held a
import torch

def layer_norm(x, gain, bias, eps):
    mean = x.mean(dim=-1)
    var = x.var(dim=-1, unbiased=False)
    return (x - mean) / torch.sqrt(var + eps) * gain + bias

# ==== right: by the formula
import torch
from torch import Tensor


def layer_norm(x: Tensor, gain: Tensor, bias: Tensor, eps: float) -> Tensor:
    mean = x.mean(dim=-1, keepdim=True)
    variance = (x - mean).pow(2).mean(dim=-1, keepdim=True)
    return (x - mean) / torch.sqrt(variance + eps) * gain + bias

# ==== right: var_mean with correction 0 and float64 inside
import torch

def layer_norm(x, gain, bias, eps):
    var, mean = torch.var_mean(x.double(), dim=-1, correction=0, keepdim=True)
    y = (x.double() - mean) * torch.rsqrt(var + eps)
    return (y * gain.double() + bias.double()).to(x.dtype)

# ==== right: a loop over the vectors
import torch

def layer_norm(x, gain, bias, eps):
    n = x.shape[-1]
    out = []
    for vec in x.reshape(-1, n):
        centred = vec - vec.sum() / n
        var = torch.dot(centred, centred) / n
        out.append(centred / (var + eps) ** 0.5 * gain + bias)
    return torch.stack(out).reshape(x.shape)

# ==== right: the mean is taken out by a centring matrix
import torch

def layer_norm(x, gain, bias, eps):
    n = x.shape[-1]
    shift = x - x[..., :1]
    centre = torch.eye(n, dtype=x.dtype, device=x.device) - 1.0 / n
    c = shift @ centre
    c = c - c.mean(-1, keepdim=True)
    v = torch.einsum("...i,...i->...", c, c) / n
    return torch.addcmul(bias, c * (v + eps).rsqrt().unsqueeze(-1), gain)
