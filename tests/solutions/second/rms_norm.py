# ==== wrong: eps is added outside the root
# says: eps is added behind the root. It stands under
import torch


def rms_norm(x, gain, eps):
    rms = torch.sqrt(torch.mean(x ** 2, dim=-1, keepdim=True))
    return x / (rms + eps) * gain

# ==== wrong: the sum of the squares instead of their mean
# says: The squares are summed, not averaged: this divides by
def rms_norm(x, gain, eps):
    squares = (x * x).sum(-1, keepdim=True)
    return x * (squares + eps).rsqrt() * gain

# ==== wrong: the mean is subtracted first, as in layer norm
# says: The mean is subtracted, as in layer norm. This
import torch


def rms_norm(x, gain, eps):
    x = x - x.mean(dim=-1, keepdim=True)
    var = x.pow(2).mean(dim=-1, keepdim=True)
    return gain * (x / torch.sqrt(var + eps))

# ==== wrong: the result stays float32 (not the dtype of x, when x is float16, bfloat16 or float64)
# says: What comes out is float32 whatever x is. Give
import torch


def rms_norm(x, gain, eps):
    h = x.to(torch.float32)
    variance = h.pow(2).mean(-1, keepdim=True)
    h = h * torch.rsqrt(variance + eps)
    return gain.float() * h

# ==== wrong: two mistakes: the mean square of the whole tensor instead of each vector, and the gain is forgotten
# says: The gain is missing: multiply each column by its
def rms_norm(x, gain, eps):
    ms = x.square().mean()
    return x / (ms + eps) ** 0.5

# ==== wrong: two mistakes: the root is forgotten (divided by the mean square), and 1 is added to the gain
# says: It is divided by the mean of the squares.
import torch


def rms_norm(x, gain, eps):
    denominator = torch.einsum("...d,...d->...", x, x) / x.size(-1) + eps
    return x / denominator.unsqueeze(-1) * (1 + gain)

# ==== right: as in the formula
def rms_norm(x, gain, eps):
    return x / (x.square().mean(-1, keepdim=True) + eps).sqrt() * gain

# ==== right: in float64, with einsum
import torch


def rms_norm(x, gain, eps):
    d = x.double()
    ms = torch.einsum("...i,...i->...", d, d) / d.shape[-1]
    y = d * torch.rsqrt(ms + eps).unsqueeze(-1)
    return (y * gain.double()).to(x.dtype)
