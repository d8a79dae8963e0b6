# ==== wrong: relu is forgotten
# says: There is no relu: two linear layers in a
def feed_forward(x, widen, widen_bias, narrow, narrow_bias):
    hidden = x @ widen.T + widen_bias
    return hidden @ narrow.T + narrow_bias

# ==== wrong: gelu instead of relu
# says: Something else than a relu stands between the layers.
import torch.nn.functional as F


def feed_forward(x, widen, widen_bias, narrow, narrow_bias):
    return F.linear(F.gelu(F.linear(x, widen, widen_bias)), narrow, narrow_bias)

# ==== wrong: the first bias is added after relu instead of before
# says: widen_bias is added behind the relu. It is part
import torch


def feed_forward(x, widen, widen_bias, narrow, narrow_bias):
    h = torch.relu(torch.einsum("bld,fd->blf", x, widen)) + widen_bias
    return torch.einsum("blf,df->bld", h, narrow) + narrow_bias

# ==== wrong: relu once more on the result
# says: There is a relu behind the second layer as
import torch


def feed_forward(x, widen, widen_bias, narrow, narrow_bias):
    for w, b in [(widen, widen_bias), (narrow, narrow_bias)]:
        x = torch.clamp(x @ w.t() + b, min=0)
    return x

# ==== wrong: two mistakes: a residual connection is added, and the second bias is forgotten
# says: The bias of the second layer, narrow_bias, is not
from torch import nn


def feed_forward(x, widen, widen_bias, narrow, narrow_bias):
    inner = nn.functional.relu(nn.functional.linear(x, widen, widen_bias))
    return x + nn.functional.linear(inner, narrow)

# ==== wrong: two mistakes: the first bias is forgotten, and relu comes after the second projection instead of between
# says: The relu stands behind the second layer. It belongs
import torch


def feed_forward(x, widen, widen_bias, narrow, narrow_bias):
    up = torch.matmul(x, widen.transpose(0, 1))
    down = torch.matmul(up, narrow.transpose(0, 1)).add(narrow_bias)
    return torch.maximum(down, torch.zeros_like(down))

# ==== right: matrix products and relu
import torch


def feed_forward(x, widen, widen_bias, narrow, narrow_bias):
    return torch.relu(x @ widen.T + widen_bias) @ narrow.T + narrow_bias

# ==== right: position by position, with torch.where
import torch


def feed_forward(x, widen, widen_bias, narrow, narrow_bias):
    out = []
    for vec in x.reshape(-1, x.shape[-1]):
        h = widen.mv(vec) + widen_bias
        h = torch.where(h > 0, h, torch.zeros_like(h))
        out.append(narrow.mv(h) + narrow_bias)
    return torch.stack(out).reshape(x.shape)
