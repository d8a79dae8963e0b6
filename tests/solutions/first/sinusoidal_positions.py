# ==== wrong: the sines fill the first half and the cosines the second half instead of taking turns
# says: All sines stand before all cosines, as in some
import torch


def sinusoidal_positions(length, width):
    pos = torch.arange(length).float()[:, None]
    freq = 10000 ** (-torch.arange(0, width, 2).float() / width)
    angles = pos * freq
    return torch.cat([angles.sin(), angles.cos()], dim=-1)

# ==== wrong: sine and cosine are exchanged
# says: Sine and cosine have changed places: the sine stands
import torch


def sinusoidal_positions(length, width):
    pe = torch.zeros(length, width)
    position = torch.arange(length).unsqueeze(1)
    div = torch.pow(10000.0, torch.arange(0, width, 2) / width)
    pe[:, 0::2] = torch.cos(position / div)
    pe[:, 1::2] = torch.sin(position / div)
    return pe

# ==== wrong: the exponent is doubled, 2i is applied to an index that already runs in steps of two (4i/width)
# says: 2i is doubled once more: where i runs over
import math
import torch


def sinusoidal_positions(length, width):
    out = torch.zeros(length, width)
    for p in range(length):
        for i in range(0, width, 2):
            angle = p / 10000 ** (2 * i / width)
            out[p, i] = math.sin(angle)
            out[p, i + 1] = math.cos(angle)
    return out

# ==== wrong: the factor 2 is forgotten in the exponent (i/width)
# says: The exponent is i/width, half of what it should
import torch


def sinusoidal_positions(length, width):
    i = torch.arange(width // 2)
    rate = 1.0 / (10000.0 ** (i / width))
    table = torch.outer(torch.arange(length, dtype=torch.float32), rate)
    return torch.stack((torch.sin(table), torch.cos(table)), dim=2).flatten(1)

# ==== wrong: positions start at 1 instead of 0
# says: Positions are counted from 1. The first is 0:
import torch


def sinusoidal_positions(length, width):
    p = torch.arange(1, length + 1, dtype=torch.float32).reshape(-1, 1)
    w = torch.exp(torch.arange(0, width, 2) * (-torch.log(torch.tensor(10000.0)) / width))
    pe = torch.empty(length, width)
    pe[:, ::2] = torch.sin(p * w)
    pe[:, 1::2] = torch.cos(p * w)
    return pe

# ==== wrong: multiplied with 10000^(2i/width) instead of divided
# says: The position is multiplied by the power of 10000,
import torch


def sinusoidal_positions(length, width):
    two_i = torch.arange(0, width, 2, dtype=torch.float64)
    angle = torch.arange(length, dtype=torch.float64)[:, None] * 10000 ** (two_i / width)
    result = torch.zeros(length, width)
    result[:, 0::2] = angle.sin().float()
    result[:, 1::2] = angle.cos().float()
    return result

# ==== wrong: float64 instead of float32
# says: The numbers are right, but they are float64. A
import torch


def sinusoidal_positions(length, width):
    p = torch.arange(length, dtype=torch.double).view(-1, 1)
    e = torch.arange(0, width, 2, dtype=torch.double) / width
    a = p / torch.pow(torch.tensor(10000.0, dtype=torch.double), e)
    return torch.stack([a.sin(), a.cos()], -1).view(length, width)

# ==== wrong: each column has its own wavelength, the cosine uses exponent (2i+1)/width and not that of its sine
# says: Every column has an angle of its own. A
import torch


def sinusoidal_positions(length, width):
    j = torch.arange(width, dtype=torch.float32)
    ang = torch.arange(length, dtype=torch.float32).unsqueeze(-1) / 10000 ** (j / width)
    even = (torch.arange(width) % 2 == 0)
    return torch.where(even, ang.sin(), ang.cos())

# ==== wrong: sine everywhere, the cosine is forgotten
# says: There is only one kind of wave, sines or
import torch


def sinusoidal_positions(length, width):
    idx = torch.arange(width) // 2 * 2
    angles = torch.einsum("p,w->pw", torch.arange(length).float(), 10000.0 ** (-idx / width))
    return torch.sin(angles)

# ==== wrong: base 1000 instead of 10000
# says: Another number stands where 10000 does.
import torch


def sinusoidal_positions(length, width):
    pe = torch.zeros(length, width)
    pos = torch.arange(0, length, dtype=torch.float).unsqueeze(1)
    div_term = 1000 ** (torch.arange(0, width, 2).float() / width)
    pe[:, 0::2] = torch.sin(pos / div_term)
    pe[:, 1::2] = torch.cos(pos / div_term)
    return pe

# ==== wrong: a batch axis of size 1 in front
# says: The table lies on its side, or has an
import math
import torch


def sinusoidal_positions(length, width):
    pe = torch.zeros(length, width)
    position = torch.arange(0, length, dtype=torch.float).unsqueeze(1)
    div_term = torch.exp(torch.arange(0, width, 2).float() * (-math.log(10000.0) / width))
    pe[:, 0::2] = torch.sin(position * div_term)
    pe[:, 1::2] = torch.cos(position * div_term)
    pe = pe.unsqueeze(0)
    return pe

# ==== wrong: the exponent is divided by width - 2, so that the last wave has exactly 10000 (tensor2tensor's convention)
# says: The exponent runs up to 1, so that the
import torch


def sinusoidal_positions(length, width):
    half = width // 2
    steps = torch.arange(half, dtype=torch.float32) / max(half - 1, 1)
    angle = torch.arange(length, dtype=torch.float32)[:, None] * torch.pow(10000.0, -steps)[None]
    out = torch.zeros(length, width)
    out[:, 0::2], out[:, 1::2] = angle.sin(), angle.cos()
    return out

# ==== wrong: integer division in the exponent (2i // width is 0), all waves are equal
# says: All columns have the same angle, the position itself:
import math
import torch


def sinusoidal_positions(length, width):
    rows = []
    for p in range(length):
        row = []
        for i in range(width // 2):
            x = p / 10000 ** (2 * i // width)
            row += [math.sin(x), math.cos(x)]
        rows.append(row)
    return torch.tensor(rows)

# ==== wrong: two: the halves one after the other, and the cosines before the sines
# says: All cosines stand before all sines. They alternate here,
import torch


def sinusoidal_positions(length, width):
    inv = 1 / 10000 ** (torch.arange(0, width, 2) / width)
    phase = torch.arange(length)[:, None] * inv[None, :]
    return torch.hstack([torch.cos(phase), torch.sin(phase)]).float()

# ==== wrong: two: positions start at 1, and the exponent lacks the factor 2
# says: The exponent is i/width, half of what it should
import math
import torch


def sinusoidal_positions(length, width):
    pe = torch.zeros(length, width)
    for pos in range(length):
        for k in range(width // 2):
            theta = (pos + 1) * math.exp(-k * math.log(10000) / width)
            pe[pos][2 * k] = math.sin(theta)
            pe[pos][2 * k + 1] = math.cos(theta)
    return pe

# ==== wrong: two: sine and cosine exchanged, and float64
# says: Sine and cosine have changed places: the sine stands
import torch


def sinusoidal_positions(length, width):
    scale = 10000 ** (torch.arange(0, width, 2, dtype=torch.float64) / width)
    arg = torch.arange(length, dtype=torch.float64).unsqueeze(1) / scale
    return torch.stack([torch.cos(arg), torch.sin(arg)], dim=-1).reshape(length, width)

# ==== wrong: the angle is turned with 2 pi, as if p were full turns
# says: The angle is counted in degrees or in whole
import math
import torch


def sinusoidal_positions(length, width):
    wave = 10000.0 ** (torch.arange(0, width, 2) / width)
    t = 2 * math.pi * torch.arange(length).reshape(length, 1) / wave
    pe = torch.zeros(length, width)
    pe[:, 0::2] = torch.sin(t)
    pe[:, 1::2] = torch.cos(t)
    return pe

# ==== wrong: reshaped from (2, length, half) without moving the axis, so the rows are mixed up
# says: The numbers are right, and stand in the wrong
import torch


def sinusoidal_positions(length, width):
    a = torch.arange(length).float()[:, None] / 10000 ** (torch.arange(0, width, 2).float() / width)
    return torch.stack([a.sin(), a.cos()]).reshape(length, width)

# ==== wrong: transposed, shape (width, length)
# says: The table lies on its side, or has an
import torch


def sinusoidal_positions(length, width):
    pe = torch.zeros(width, length)
    p = torch.arange(length).float()
    for i in range(0, width, 2):
        pe[i] = torch.sin(p / 10000 ** (i / width))
        pe[i + 1] = torch.cos(p / 10000 ** (i / width))
    return pe

# ==== right: slices, float64 inside
import torch
from torch import Tensor


def sinusoidal_positions(length: int, width: int) -> Tensor:
    p = torch.arange(length, dtype=torch.float64)[:, None]
    angle = p / 10000 ** (torch.arange(0, width, 2, dtype=torch.float64) / width)
    out = torch.empty(length, width)
    out[:, 0::2] = angle.sin()
    out[:, 1::2] = angle.cos()
    return out

# ==== right: plain loops with math
import math
import torch


def sinusoidal_positions(length, width):
    table = torch.zeros(length, width)
    for p in range(length):
        for column in range(width):
            angle = p / 10000 ** ((column - column % 2) / width)
            table[p, column] = math.cos(angle) if column % 2 else math.sin(angle)
    return table

# ==== right: imaginary and real part of a complex exponential
import torch


def sinusoidal_positions(length, width):
    i = torch.arange(width // 2, dtype=torch.float64)
    angle = torch.outer(torch.arange(length, dtype=torch.float64), 10000.0 ** (-2 * i / width))
    z = torch.polar(torch.ones_like(angle), angle)
    return torch.stack([z.imag, z.real], dim=-1).reshape(length, width).float()

# ==== right: only sines, a quarter turn added for the odd columns
import math
import torch


def sinusoidal_positions(length, width):
    col = torch.arange(width)
    rate = torch.pow(torch.tensor(10000.0, dtype=torch.float64), -(col - col % 2).double() / width)
    phase = (col % 2) * (math.pi / 2)
    return torch.sin(torch.arange(length).double()[:, None] * rate + phase.double()).float()
