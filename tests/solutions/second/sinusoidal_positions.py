# ==== wrong: all sines in the first half and all cosines in the second, not interleaved
# says: All sines stand before all cosines, as in some
import torch
from torch import Tensor


def sinusoidal_positions(length: int, width: int) -> Tensor:
    p = torch.arange(length, dtype=torch.float32)[:, None]
    freq = 10000 ** (-torch.arange(0, width, 2, dtype=torch.float32) / width)
    return torch.cat([torch.sin(p * freq), torch.cos(p * freq)], dim=1)

# ==== wrong: the exponent is i/width instead of 2i/width
# says: The exponent is i/width, half of what it should
import torch


def sinusoidal_positions(length, width):
    pe = torch.zeros(length, width)
    pos = torch.arange(length).float().unsqueeze(1)
    i = torch.arange(width // 2).float()
    angle = pos / torch.pow(torch.tensor(10000.0), i / width)
    pe[:, 0::2] = angle.sin()
    pe[:, 1::2] = angle.cos()
    return pe

# ==== wrong: the cosine has the angle of its own column, (2i+1)/width, instead of the same angle as the sine
# says: Every column has an angle of its own. A
import math
import torch


def sinusoidal_positions(length, width):
    table = torch.zeros(length, width)
    for p in range(length):
        for c in range(width):
            a = p / 10000 ** (c / width)
            table[p, c] = math.sin(a) if c % 2 == 0 else math.cos(a)
    return table

# ==== wrong: sine and cosine are swapped, the cosines stand in the even columns
# says: Sine and cosine have changed places: the sine stands
import math
import torch


def sinusoidal_positions(length, width):
    div = torch.exp(torch.arange(0, width, 2) * (-math.log(10000.0) / width))
    angles = torch.outer(torch.arange(length).float(), div)
    return torch.stack([angles.cos(), angles.sin()], dim=-1).reshape(length, width)

# ==== wrong: two mistakes: positions begin at 1, and float64 comes back
# says, in part wrongly: Positions are counted from 1. The first is 0:
import torch


def sinusoidal_positions(length, width):
    pos = torch.arange(1, length + 1, dtype=torch.float64)
    scale = 10000.0 ** (torch.arange(0, width, 2, dtype=torch.float64) / width)
    ang = pos[:, None] / scale[None, :]
    return torch.stack((ang.sin(), ang.cos()), -1).flatten(1)

# ==== wrong: two mistakes: sines and cosines in halves, and the exponent is i/(width/2 - 1), the convention of tensor2tensor
# says: The exponent runs up to 1, so that the
import math
import torch


def sinusoidal_positions(length, width):
    half = width // 2
    step = math.log(10000) / max(half - 1, 1)
    inv = torch.exp(-step * torch.arange(half).float())
    t = torch.arange(length).float()[:, None] * inv[None]
    return torch.hstack([t.sin(), t.cos()])

# ==== right: float64 inside, slices
import torch


def sinusoidal_positions(length, width):
    out = torch.empty(length, width, dtype=torch.float32)
    p = torch.arange(length, dtype=torch.float64).unsqueeze(1)
    a = p / 10000 ** (torch.arange(0, width, 2, dtype=torch.float64) / width)
    out[:, 0::2] = torch.sin(a)
    out[:, 1::2] = torch.cos(a)
    return out

# ==== right: plain python lists
import math
import torch


def sinusoidal_positions(length, width):
    rows = []
    for p in range(length):
        row = []
        for i in range(width // 2):
            angle = p / 10000 ** (2 * i / width)
            row += [math.sin(angle), math.cos(angle)]
        rows.append(row)
    return torch.tensor(rows, dtype=torch.float32).reshape(length, width)
