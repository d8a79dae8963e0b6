# ==== wrong: the variance is divided by n - 1 (var is unbiased unless told otherwise)
# says: The variance is divided by n - 1, as
import torch


def layer_norm(x, gain, bias, eps):
    mean = x.mean(dim=-1, keepdim=True)
    var = x.var(dim=-1, keepdim=True)
    return (x - mean) / torch.sqrt(var + eps) * gain + bias

# ==== wrong: eps is added outside the root
# says: eps is added behind the root. It stands under
import torch


def layer_norm(x, gain, bias, eps):
    mu = torch.mean(x, -1, keepdim=True)
    sigma = torch.std(x, -1, keepdim=True, unbiased=False)
    return gain * (x - mu) / (sigma + eps) + bias

# ==== wrong: the variance as mean of squares minus squared mean, which cancels out when the mean is large
# says: The variance is taken as mean(x²) - mean(x)². On
def layer_norm(x, gain, bias, eps):
    m1 = x.mean(-1, keepdim=True)
    m2 = x.square().mean(-1, keepdim=True)
    variance = (m2 - m1 * m1).clamp(min=0)
    return (x - m1) * (variance + eps).rsqrt() * gain + bias

# ==== wrong: the bias is added before the gain is multiplied, so it is stretched too
# says: The bias is multiplied with the gain as well.
def layer_norm(x, gain, bias, eps):
    centered = x - x.mean(dim=-1, keepdim=True)
    scale = (centered.pow(2).mean(dim=-1, keepdim=True) + eps).sqrt()
    normed = centered / scale
    return (normed + bias) * gain

# ==== wrong: two mistakes: the standard deviation is divided by n - 1, and eps is added outside the root
# says: The variance is divided by n - 1, as
def layer_norm(x, gain, bias, eps):
    mean = x.mean(-1, keepdim=True)
    std = x.std(-1, keepdim=True)
    return gain * (x - mean) / (std + eps) + bias

# ==== wrong: two mistakes: mean and variance of the whole tensor instead of each vector, and the bias is forgotten
# says: The bias is missing: it is added at the
import torch


def layer_norm(x, gain, bias, eps):
    mu = x.mean()
    v = ((x - mu) ** 2).mean()
    out = (x - mu) / torch.sqrt(v + eps)
    return out * gain

# ==== right: as in the formula
def layer_norm(x, gain, bias, eps):
    c = x - x.mean(-1, keepdim=True)
    return c / (c.square().mean(-1, keepdim=True) + eps).sqrt() * gain + bias

# ==== right: in float64, with var_mean
import torch


def layer_norm(x, gain, bias, eps):
    wide = x.double()
    var, mean = torch.var_mean(wide, dim=-1, correction=0, keepdim=True)
    y = (wide - mean) * torch.rsqrt(var + eps)
    return torch.addcmul(bias.double(), y, gain.double()).to(x.dtype)
