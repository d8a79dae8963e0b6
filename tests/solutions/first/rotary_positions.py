# ==== wrong: neighbours are paired (x[2i], x[2i + 1]) instead of x[i] and x[i + width/2]
# says: Neighbors are paired, column 2i with 2i + 1,
import torch
from torch import Tensor


def rotary_positions(x: Tensor, positions: Tensor, theta: float) -> Tensor:
    width = x.shape[-1]
    freq = theta ** (-torch.arange(0, width, 2, dtype=torch.float32) / width)
    angle = positions[:, None, :, None] * freq
    cos, sin = angle.cos(), angle.sin()
    even, odd = x[..., 0::2], x[..., 1::2]
    return torch.stack([even * cos - odd * sin, even * sin + odd * cos], dim=-1).flatten(-2)

# ==== wrong: turned the other way round (sign of the sine)
# says: It is turned the other way: (a cos +
import torch


def rotary_positions(x, positions, theta):
    d = x.shape[-1]
    half = d // 2
    inv_freq = 1.0 / theta ** (torch.arange(half) * 2 / d)
    angles = torch.einsum("bl,i->bli", positions.float(), inv_freq).unsqueeze(1)
    x1, x2 = x[..., :half], x[..., half:]
    return torch.cat(
        [x1 * angles.cos() + x2 * angles.sin(), x2 * angles.cos() - x1 * angles.sin()], dim=-1
    )

# ==== wrong: the positions given are ignored, 0, 1, 2, ... are used instead
# says: The positions that are given are not used: tokens
import torch


def rotate_half(x):
    x1, x2 = x.chunk(2, dim=-1)
    return torch.cat((-x2, x1), dim=-1)


def rotary_positions(x, positions, theta):
    length, dim = x.shape[2], x.shape[3]
    inv_freq = 1.0 / (theta ** (torch.arange(0, dim, 2).float() / dim))
    freqs = torch.outer(torch.arange(length).float(), inv_freq)
    emb = torch.cat((freqs, freqs), dim=-1)
    return x * emb.cos() + rotate_half(x) * emb.sin()

# ==== wrong: the exponent is -i/width, the 2 is forgotten
# says: The exponent is half of what it should be,
import torch


def rotary_positions(x, positions, theta):
    w = x.size(-1)
    i = torch.arange(w // 2)
    a = positions[:, None, :, None] * theta ** (-i / w)
    first, second = x.split(w // 2, dim=-1)
    c, s = torch.cos(a), torch.sin(a)
    return torch.cat([first * c - second * s, first * s + second * c], -1)

# ==== wrong: the 2 is there twice, the exponent is -4i/width
# says: 2i is doubled once more: the exponent is twice
import torch


def rotary_positions(x, positions, theta):
    width = x.shape[-1]
    exponent = -2 * torch.arange(0, width, 2).float() / width
    angle = positions.float().unsqueeze(-1) * torch.pow(torch.tensor(theta), exponent)
    angle = angle.unsqueeze(1)
    a = x[..., : width // 2]
    b = x[..., width // 2 :]
    out = torch.empty_like(x)
    out[..., : width // 2] = a * angle.cos() - b * angle.sin()
    out[..., width // 2 :] = b * angle.cos() + a * angle.sin()
    return out

# ==== wrong: theta is ignored, always 10000
# says: The theta that is given is not used: another
import math
import torch


def rotary_positions(x, positions, theta):
    width = x.shape[-1]
    freqs = torch.exp(torch.arange(0, width, 2) * (-math.log(10000.0) / width))
    angle = positions[:, None, :, None].float() * freqs
    angle = torch.cat([angle, angle], dim=-1)
    x1, x2 = x.chunk(2, -1)
    return x * angle.cos() + torch.cat([-x2, x1], -1) * angle.sin()

# ==== wrong: the exponent has the wrong sign, angles grow with i
# says: The exponent has no minus, so later pairs turn
import torch


def rotary_positions(x, positions, theta):
    width = x.shape[-1]
    out = x.clone()
    half = width // 2
    for i in range(half):
        angle = positions * theta ** (2 * i / width)
        cos = torch.cos(angle.float())[:, None]
        sin = torch.sin(angle.float())[:, None]
        out[..., i] = x[..., i] * cos - x[..., i + half] * sin
        out[..., i + half] = x[..., i] * sin + x[..., i + half] * cos
    return out

# ==== wrong: rotate_half without the minus sign, so it is no rotation
# says: A sign is wrong, and nothing is turned: lengths
import torch


def rotary_positions(x, positions, theta):
    dim = x.shape[-1]
    inv_freq = theta ** -(torch.arange(0, dim, 2, dtype=x.dtype) / dim)
    freqs = positions.to(x.dtype)[:, :, None] * inv_freq
    cos = torch.cat([freqs.cos()] * 2, dim=-1)[:, None]
    sin = torch.cat([freqs.sin()] * 2, dim=-1)[:, None]
    swapped = torch.roll(x, dim // 2, dims=-1)
    return x * cos + swapped * sin

# ==== wrong: the argument x is changed, and the second half is computed with the already turned first half
# says: The second half is computed with the first as
import torch


def rotary_positions(x, positions, theta):
    half = x.shape[-1] // 2
    freq = theta ** (-torch.arange(half) / half)
    angle = positions[:, None, :, None] * freq
    cos, sin = angle.cos(), angle.sin()
    x[..., :half] = x[..., :half] * cos - x[..., half:] * sin
    x[..., half:] = x[..., half:] * cos + x[..., :half] * sin
    return x

# ==== wrong: the turned halves are interleaved again at the end instead of put one after the other
# says: The columns end up elsewhere: x is taken apart
import torch


def rotary_positions(x, positions, theta):
    b, h, l, w = x.shape
    freq = theta ** (-torch.arange(0, w, 2) / w)
    angle = (positions[..., None] * freq)[:, None]
    x1, x2 = x[..., : w // 2], x[..., w // 2 :]
    y1 = x1 * torch.cos(angle) - x2 * torch.sin(angle)
    y2 = x1 * torch.sin(angle) + x2 * torch.cos(angle)
    return torch.stack((y1, y2), dim=-1).reshape(b, h, l, w)

# ==== wrong: the positions of the first row are used for the whole batch
# says: Every sequence is turned by the positions of the
import torch


def rotary_positions(x, positions, theta):
    w = x.shape[-1]
    f = theta ** (-2 * torch.arange(w // 2) / w)
    angle = torch.outer(positions[0].float(), f)
    z = torch.complex(x[..., : w // 2], x[..., w // 2 :])
    z = z * torch.polar(torch.ones_like(angle), angle)
    return torch.cat([z.real, z.imag], dim=-1)

# ==== wrong: positions count from 1 (one is added)
# says: Positions are counted one too high: at position 0
import torch


def rotary_positions(x, positions, theta):
    width = x.shape[-1]
    inv = 1 / theta ** (torch.arange(0, width, 2) / width)
    phase = (positions + 1).view(positions.shape[0], 1, -1, 1) * inv
    re, im = x.tensor_split(2, dim=-1)
    return torch.cat(
        (re * phase.cos() - im * phase.sin(), re * phase.sin() + im * phase.cos()), dim=-1
    )

# ==== wrong: two mistakes: neighbours are paired, and turned the other way round
# says: Neighbors are paired, column 2i with 2i + 1,
import torch


def rotary_positions(x, positions, theta):
    batch, heads, length, width = x.shape
    freq = torch.tensor([theta ** (-2 * i / width) for i in range(width // 2)])
    angle = positions[:, None, :, None] * freq
    pairs = x.reshape(batch, heads, length, width // 2, 2)
    a, b = pairs.unbind(-1)
    c, s = angle.cos(), angle.sin()
    return torch.stack([a * c + b * s, b * c - a * s], dim=-1).reshape(x.shape)

# ==== wrong: two mistakes: theta is always 10000, and the positions are ignored
# says: The positions that are given are not used: tokens
import torch


def rotary_positions(x, positions, theta=10000.0):
    d = x.shape[-1]
    t = torch.arange(x.shape[-2], dtype=torch.float32)
    freqs = torch.outer(t, 10000 ** (-torch.arange(0, d, 2).float() / d))
    lo, hi = x[..., : d // 2], x[..., d // 2 :]
    return torch.cat([lo * freqs.cos() - hi * freqs.sin(), hi * freqs.cos() + lo * freqs.sin()], -1)

# ==== wrong: two mistakes: the 2 in the exponent is forgotten, and the sine has no minus sign
# says: A sign is wrong, and nothing is turned: lengths
import torch


def rotary_positions(x, positions, theta):
    n = x.shape[-1] // 2
    speed = theta ** (-torch.arange(n) / (2 * n))
    angle = torch.einsum("bl,n->bln", positions.float(), speed)[:, None]
    left, right = x[..., :n], x[..., n:]
    return torch.cat(
        [
            left * angle.cos() + right * angle.sin(),
            right * angle.cos() + left * angle.sin(),
        ],
        dim=-1,
    )

# ==== wrong: the axis of the heads is missing in the angles, an error unless batch and heads fit by chance
# says: The axis of the heads is missing in the
import torch


def rotary_positions(x, positions, theta):
    width = x.shape[-1]
    freq = theta ** (-torch.arange(0, width, 2) / width)
    angle = positions[:, :, None] * freq
    cos, sin = angle.cos(), angle.sin()
    x1, x2 = x.chunk(2, dim=-1)
    return torch.cat([x1 * cos - x2 * sin, x1 * sin + x2 * cos], dim=-1)

# ==== wrong: sine and cosine are swapped
# says: Sine and cosine have changed places: at position 0
import torch


def rotary_positions(x, positions, theta):
    half = x.shape[-1] // 2
    angle = positions[:, None, :, None] * theta ** (-torch.arange(half) / half)
    c, s = torch.sin(angle), torch.cos(angle)
    u, v = x[..., :half], x[..., half:]
    return torch.cat([u * c - v * s, u * s + v * c], dim=-1)

# ==== wrong: the angle is taken for degrees
# says: The angle is counted in degrees or in whole
import torch


def rotary_positions(x, positions, theta):
    w = x.shape[-1]
    deg = positions[:, None, :, None] * theta ** (-torch.arange(0, w, 2) / w)
    rad = torch.deg2rad(deg)
    x1, x2 = x.chunk(2, -1)
    return torch.cat((x1 * rad.cos() - x2 * rad.sin(), x1 * rad.sin() + x2 * rad.cos()), -1)

# ==== wrong: sine and cosine are added to x as in the first transformer, nothing is turned
# says: Sines and cosines are added to x, as the
import torch


def rotary_positions(x, positions, theta):
    width = x.shape[-1]
    freq = theta ** (-torch.arange(0, width, 2) / width)
    angle = positions[:, None, :, None] * freq
    return x + torch.cat([angle.sin(), angle.cos()], dim=-1)

# ==== wrong: the frequencies count i from 1 instead of 0
# says: Pairs are counted from 1. The first is pair
import torch


def rotary_positions(x, positions, theta):
    half = x.shape[-1] // 2
    i = torch.arange(1, half + 1)
    angle = positions[:, None, :, None] * theta ** (-2 * i / x.shape[-1])
    cos = angle.cos().repeat(1, 1, 1, 2)
    sin = angle.sin().repeat(1, 1, 1, 2)
    turned = torch.cat([-x[..., half:], x[..., :half]], dim=-1)
    return x * cos + turned * sin

# ==== wrong: whole-number division in the exponent
# says: All pairs turn by the same angle, the position.
import torch


def rotary_positions(x, positions, theta):
    width = x.shape[-1]
    half = width // 2
    freq = torch.tensor([float(theta) ** (-(2 * i // width)) for i in range(half)])
    angle = positions[:, None, :, None] * freq
    a, b = x[..., :half], x[..., half:]
    return torch.cat([a * angle.cos() - b * angle.sin(), a * angle.sin() + b * angle.cos()], -1)

# ==== right: two halves, sine and cosine
import torch
from torch import Tensor


def rotary_positions(x: Tensor, positions: Tensor, theta: float) -> Tensor:
    half = x.shape[-1] // 2
    i = torch.arange(half, dtype=torch.float64, device=x.device)
    angle = positions[:, None, :, None] * float(theta) ** (-2 * i / x.shape[-1])
    cos, sin = angle.cos().to(x.dtype), angle.sin().to(x.dtype)
    first, second = x[..., :half], x[..., half:]
    return torch.cat([first * cos - second * sin, first * sin + second * cos], dim=-1)

# ==== right: complex numbers in double precision
import torch


def rotary_positions(x, positions, theta):
    a, b = x.double().chunk(2, dim=-1)
    n = a.shape[-1]
    freq = torch.tensor(float(theta), dtype=torch.float64) ** (-torch.arange(n).double() / max(n, 1))
    angle = torch.einsum("bl,n->bln", positions.double(), freq).unsqueeze(1)
    z = torch.complex(a, b) * torch.exp(1j * angle)
    return torch.cat([z.real, z.imag], dim=-1).to(x.dtype)

# ==== right: a loop over the pairs with 2 x 2 matrices
import torch


def rotary_positions(x, positions, theta):
    width = x.shape[-1]
    out = torch.zeros_like(x)
    for i in range(width // 2):
        angle = positions.double() * theta ** (-2 * i / width)
        c, s = angle.cos(), angle.sin()
        turn = torch.stack([torch.stack([c, -s], -1), torch.stack([s, c], -1)], -2).to(x.dtype)
        pair = x[..., [i, i + width // 2]]
        out[..., [i, i + width // 2]] = torch.einsum("blij,bhlj->bhli", turn, pair)
    return out
