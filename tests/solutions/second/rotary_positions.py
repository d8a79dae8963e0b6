# ==== wrong: neighbours are paired (x[2i], x[2i+1]) instead of the two halves
# says: Neighbors are paired, column 2i with 2i + 1,
import torch


def rotary_positions(x, positions, theta):
    width = x.shape[-1]
    freq = theta ** (-torch.arange(0, width, 2, dtype=torch.float64) / width)
    angle = positions[:, None, :, None] * freq
    cos, sin = angle.cos().to(x.dtype), angle.sin().to(x.dtype)
    a, b = x[..., 0::2], x[..., 1::2]
    return torch.stack([a * cos - b * sin, b * cos + a * sin], dim=-1).flatten(-2)

# ==== wrong: the sign of the sines is swapped, the pairs turn clockwise
# says: It is turned the other way: (a cos +
import torch


def rotary_positions(x, positions, theta):
    half = x.size(-1) // 2
    i = torch.arange(half).to(torch.float64)
    inv = 1.0 / theta ** (2 * i / x.size(-1))
    ang = torch.einsum("bl,i->bli", positions.double(), inv).unsqueeze(1)
    c, s = torch.cos(ang), torch.sin(ang)
    first, second = x.split(half, dim=-1)
    return torch.cat((first * c + second * s, second * c - first * s), -1).to(x.dtype)

# ==== wrong: the positions are ignored, 0, 1, 2, ... is used
# says: The positions that are given are not used: tokens
import torch


def rotary_positions(x, positions, theta):
    b, h, n, d = x.shape
    inv_freq = theta ** (-2 * torch.arange(d // 2).double() / d)
    angles = torch.outer(torch.arange(n).double(), inv_freq)
    emb = torch.cat([angles, angles], dim=-1)
    rotated = torch.cat([-x[..., d // 2:], x[..., : d // 2]], dim=-1)
    return x * emb.cos().to(x.dtype) + rotated * emb.sin().to(x.dtype)

# ==== wrong: two: neighbours are paired, and the exponent is -i/width instead of -2i/width
# says: Neighbors are paired, column 2i with 2i + 1,
import torch


def rotary_positions(x, positions, theta):
    d = x.shape[-1]
    out = torch.empty_like(x)
    for i in range(d // 2):
        a = x[..., 2 * i]
        b = x[..., 2 * i + 1]
        ang = (positions.double() * theta ** (-i / d)).unsqueeze(1)
        c, s = ang.cos().to(x.dtype), ang.sin().to(x.dtype)
        out[..., 2 * i] = a * c - b * s
        out[..., 2 * i + 1] = b * c + a * s
    return out

# ==== wrong: two: the sign of the exponent is lost (theta^(+2i/width)), and the result is float32 whatever x was
# says: The exponent has no minus, so later pairs turn
import torch


def rotary_positions(x, positions, theta):
    width = x.shape[-1]
    i = torch.arange(width // 2, dtype=torch.float32)
    angle = positions.float()[:, None, :, None] * theta ** (2 * i / width)
    cos, sin = torch.cos(angle), torch.sin(angle)
    a, b = x.float().chunk(2, dim=-1)
    return torch.cat([a * cos - b * sin, b * cos + a * sin], dim=-1)

# ==== wrong: the first half is overwritten before the second is computed from it (the views a and b alias the output)
# says: The second half is computed with the first as
import torch


def rotary_positions(x, positions, theta):
    h = x.shape[-1] // 2
    rates = torch.tensor([theta ** (-2 * i / (2 * h)) for i in range(h)], dtype=torch.float64)
    turn = (positions[..., None] * rates)[:, None]
    cos = turn.cos().to(x.dtype)
    sin = turn.sin().to(x.dtype)
    out = x.clone()
    a = out[..., :h]
    b = out[..., h:]
    out[..., :h] = a * cos - b * sin
    out[..., h:] = b * cos + a * sin
    return out

# ==== right: complex numbers
import torch


def rotary_positions(x, positions, theta):
    half = x.shape[-1] // 2
    rate = theta ** (-torch.arange(half, dtype=torch.float64) / half)
    angle = positions.double()[:, None, :, None] * rate
    z = torch.complex(x[..., :half].double(), x[..., half:].double())
    z = z * torch.polar(torch.ones_like(angle), angle)
    return torch.cat([z.real, z.imag], -1).to(x.dtype)

# ==== right: rotate half
import torch


def rotary_positions(x, positions, theta):
    width = x.shape[-1]
    exponent = -torch.arange(0, width, 2, dtype=torch.float64) / width
    angle = positions.double().unsqueeze(-1) * torch.pow(torch.tensor(theta, dtype=torch.float64), exponent)
    angle = torch.cat([angle, angle], dim=-1).unsqueeze(1)
    a, b = x.double().chunk(2, dim=-1)
    turned = x.double() * angle.cos() + torch.cat([-b, a], dim=-1) * angle.sin()
    return turned.to(x.dtype)
