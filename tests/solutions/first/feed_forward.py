# ==== wrong: the relu is forgotten
# says: There is no relu: two linear layers in a
from torch import Tensor


def feed_forward(
    x: Tensor, widen: Tensor, widen_bias: Tensor, narrow: Tensor, narrow_bias: Tensor
) -> Tensor:
    hidden = x @ widen.T + widen_bias
    return hidden @ narrow.T + narrow_bias

# ==== wrong: gelu instead of relu
# says: Something else than a relu stands between the layers.
import torch.nn.functional as F

def feed_forward(x, widen, widen_bias, narrow, narrow_bias):
    h = F.gelu(F.linear(x, widen, widen_bias))
    return F.linear(h, narrow, narrow_bias)

# ==== wrong: the relu is applied to the output too
# says: There is a relu behind the second layer as
import torch

def feed_forward(x, widen, widen_bias, narrow, narrow_bias):
    a = torch.relu(torch.matmul(x, widen.t()) + widen_bias)
    b = torch.relu(torch.matmul(a, narrow.t()) + narrow_bias)
    return b

# ==== wrong: the first bias is forgotten
# says: The bias of the first layer, widen_bias, is not
import torch

def feed_forward(x, widen, widen_bias, narrow, narrow_bias):
    wide = torch.einsum("bld,fd->blf", x, widen)
    wide = wide.clamp(min=0)
    return torch.einsum("blf,df->bld", wide, narrow) + narrow_bias

# ==== wrong: the second bias is forgotten
# says: The bias of the second layer, narrow_bias, is not
import torch.nn.functional as F

def feed_forward(x, widen, widen_bias, narrow, narrow_bias):
    out = F.linear(x, weight=widen, bias=widen_bias)
    out = F.relu(out)
    return F.linear(out, weight=narrow)

# ==== wrong: two mistakes: the bias is added after the relu, and the second bias is forgotten
# says: The bias of the second layer, narrow_bias, is not
import torch

def feed_forward(x, widen, widen_bias, narrow, narrow_bias):
    h = torch.relu(torch.tensordot(x, widen, dims=([2], [1])))
    h = h + widen_bias
    return torch.tensordot(h, narrow, dims=([2], [1]))

# ==== wrong: the relu comes at the end instead of in the middle
# says: The relu stands behind the second layer. It belongs
import torch

def feed_forward(x, widen, widen_bias, narrow, narrow_bias):
    y = (x @ widen.mT + widen_bias) @ narrow.mT + narrow_bias
    return torch.maximum(y, torch.zeros_like(y))

# ==== wrong: the input is added to the output (residual)
# says: x is added to what comes out. That residual
import torch

def feed_forward(x, widen, widen_bias, narrow, narrow_bias):
    inner = torch.relu(x @ widen.T + widen_bias)
    return x + (inner @ narrow.T + narrow_bias)

# ==== wrong: two mistakes: x is cut off in place before the first layer (the argument changes), and the middle has no relu
# says: The relu cuts off x before the first layer.
import torch

def feed_forward(x, widen, widen_bias, narrow, narrow_bias):
    torch.relu_(x)
    h = x @ widen.T + widen_bias
    return h @ narrow.T + narrow_bias

# ==== wrong: the bias is added after the relu
# says: widen_bias is added behind the relu. It is part
import torch

def feed_forward(x, widen, widen_bias, narrow, narrow_bias):
    z = x.matmul(widen.transpose(0, 1))
    z = torch.where(z > 0, z, torch.zeros_like(z)) + widen_bias
    return z.matmul(narrow.transpose(0, 1)) + narrow_bias

# ==== wrong: the weights are reshaped instead of transposed
# says: A weight is reshaped, where it should be transposed.
import torch

def feed_forward(x, widen, widen_bias, narrow, narrow_bias):
    d_ff, d_model = widen.shape
    h = torch.relu(x @ widen.reshape(d_model, d_ff) + widen_bias)
    return h @ narrow.reshape(d_ff, d_model) + narrow_bias

# ==== wrong: two mistakes: gelu instead of relu, and a residual is added
# says: Something else than a relu stands between the layers.
import torch
from torch.nn.functional import gelu, linear

def feed_forward(x, widen, widen_bias, narrow, narrow_bias):
    residual = x
    x = linear(x, widen, widen_bias)
    x = gelu(x)
    x = linear(x, narrow, narrow_bias)
    return x + residual

# ==== wrong: the negative is kept and the positive cut off
# says: What is positive is cut off, and what is
import torch

def feed_forward(x, widen, widen_bias, narrow, narrow_bias):
    h = torch.einsum("...d,fd->...f", x, widen) + widen_bias
    h = h.masked_fill(h > 0, 0.0)
    return torch.einsum("...f,df->...d", h, narrow) + narrow_bias

# ==== wrong: the absolute value instead of the relu
# says: Something else than a relu stands between the layers.
def feed_forward(x, widen, widen_bias, narrow, narrow_bias):
    up = (x @ widen.T + widen_bias).abs()
    return up @ narrow.T + narrow_bias

# ==== wrong: relu6, values above 6 are cut off too
# says: Something else than a relu stands between the layers.
import torch.nn as nn
import torch.nn.functional as F

def feed_forward(x, widen, widen_bias, narrow, narrow_bias):
    act = nn.ReLU6()
    return F.linear(act(F.linear(x, widen, widen_bias)), narrow, narrow_bias)

# ==== wrong: the first weight is used again to narrow, instead of the second
# says: One weight does the work of both: its shape
import torch

def feed_forward(x, widen, widen_bias, narrow, narrow_bias):
    h = torch.clamp(x @ widen.T + widen_bias, min=0.0)
    return h @ widen + narrow_bias

# ==== wrong: leaky relu, a little of the negative comes through
# says: Something else than a relu stands between the layers.
import torch.nn.functional as F

def feed_forward(x, widen, widen_bias, narrow, narrow_bias):
    t = x @ widen.transpose(-1, -2) + widen_bias
    t = F.leaky_relu(t)
    return t @ narrow.transpose(-1, -2) + narrow_bias

# ==== wrong: the positions are not by themselves, the hidden vectors are averaged over the length
# says: Positions meet: a sum or a mean over the
import torch

def feed_forward(x, widen, widen_bias, narrow, narrow_bias):
    h = torch.relu(x @ widen.T + widen_bias)
    h = h.mean(dim=1, keepdim=True).expand_as(h)
    return h @ narrow.T + narrow_bias

# ==== wrong: dropout is left on
# says: Dropout is left on: numbers are set to 0
import torch
import torch.nn.functional as F

def feed_forward(x, widen, widen_bias, narrow, narrow_bias):
    h = F.relu(F.linear(x, widen, widen_bias))
    h = F.dropout(h, 0.1)
    return F.linear(h, narrow, narrow_bias)

# ==== wrong: raises an error: the weights are not transposed
# says: A weight is not transposed. torch stores weights as
import torch

def feed_forward(x, widen, widen_bias, narrow, narrow_bias):
    h = torch.relu(x @ widen + widen_bias)
    return h @ narrow + narrow_bias

# ==== right: matmul
import torch
from torch import Tensor


def feed_forward(
    x: Tensor, widen: Tensor, widen_bias: Tensor, narrow: Tensor, narrow_bias: Tensor
) -> Tensor:
    hidden = torch.relu(x @ widen.T + widen_bias)
    return hidden @ narrow.T + narrow_bias

# ==== right: functional linear
import torch.nn.functional as F

def feed_forward(x, widen, widen_bias, narrow, narrow_bias):
    return F.linear(F.relu(F.linear(x, widen, widen_bias)), narrow, narrow_bias)

# ==== right: einsum and clamp
import torch

def feed_forward(x, widen, widen_bias, narrow, narrow_bias):
    h = (torch.einsum("bld,fd->blf", x, widen) + widen_bias).clamp(min=0)
    return torch.einsum("blf,df->bld", h, narrow) + narrow_bias

# ==== right: one position after the other
import torch

def feed_forward(x, widen, widen_bias, narrow, narrow_bias):
    rows = []
    for sentence in x:
        tokens = []
        for token in sentence:
            h = torch.mv(widen, token) + widen_bias
            h = torch.where(h > 0, h, torch.zeros_like(h))
            tokens.append(torch.mv(narrow, h) + narrow_bias)
        rows.append(torch.stack(tokens))
    return torch.stack(rows)
