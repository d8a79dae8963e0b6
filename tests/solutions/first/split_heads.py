# ==== wrong: reshaped straight to (batch, heads, length, width): right shape, but tokens are mixed
# says: The numbers are cut straight into the final shape,
import torch
from torch import Tensor


def split_heads(x: Tensor, num_heads: int) -> Tensor:
    batch, length, d = x.shape
    return x.reshape(batch, num_heads, length, d // num_heads)

# ==== wrong: the axes of heads and length are not swapped, the result is (batch, length, heads, width)
# says: The axis of the heads still stands behind the
def split_heads(x, num_heads):
    b, n, d = x.size()
    return x.view(b, n, num_heads, d // num_heads)

# ==== wrong: the vector is split as (width, heads), so head h gets every num_heads-th number instead of a slice
# says: A head gets every num_heads-th number of a token,
from einops import rearrange

def split_heads(x, num_heads):
    return rearrange(x, "b l (w h) -> b h l w", h=num_heads)

# ==== wrong: transposed first and then reshaped to the end shape, so tokens and features are mixed
# says: Tokens and numbers are exchanged first, and then cut:
def split_heads(x, num_heads):
    B, L, D = x.shape
    y = x.transpose(1, 2)
    return y.reshape(B, num_heads, L, D // num_heads)

# ==== wrong: the axis of heads comes first, before the batch
# says: The heads stand in front of the batch: stack
import torch

def split_heads(x, num_heads):
    pieces = torch.chunk(x, num_heads, dim=-1)
    return torch.stack(pieces, dim=0)

# ==== wrong: two mistakes: every num_heads-th number instead of a slice, and the axes are left as (batch, length, heads, width)
# says: The axis of the heads still stands behind the
import torch

def split_heads(x, num_heads):
    return torch.stack([x[..., h::num_heads] for h in range(num_heads)], dim=2)

# ==== wrong: num_heads is taken for the width of a head (torch.split takes the size of the pieces, not their number)
# says: num_heads is taken for the width of a head:
import torch

def split_heads(x, num_heads):
    parts = x.split(num_heads, dim=-1)
    return torch.stack(parts, dim=1)

# ==== wrong: length and width are swapped at the end, (batch, heads, width, length)
# says: One axis too many is exchanged: tokens and width
def split_heads(x, num_heads):
    b, l, d = x.shape
    x = x.view(b, l, num_heads, d // num_heads)
    return x.permute(0, 2, 3, 1)

# ==== wrong: two mistakes: straight reshape that mixes tokens, and batch and heads in one axis
# says: The numbers are cut straight into the final shape,
def split_heads(x, num_heads):
    n, t, c = x.shape
    return x.reshape(n * num_heads, t, c // num_heads)

# ==== wrong: batch and heads are folded into one axis, (batch * heads, length, width)
# says: Batch and heads share one axis, as in torch's
def split_heads(x, num_heads):
    batch, length, dim = x.shape
    head_dim = dim // num_heads
    x = x.contiguous().view(batch, length, num_heads, head_dim).transpose(1, 2)
    return x.reshape(batch * num_heads, length, head_dim)

# ==== wrong: the slice starts at h instead of h * width, so the heads' slices overlap
# says: The slices of neighboring heads overlap: head h begins
import torch

def split_heads(x, num_heads):
    width = x.shape[-1] // num_heads
    heads = []
    for h in range(num_heads):
        heads.append(x[:, :, h : h + width])
    return torch.stack(heads, dim=1)

# ==== wrong: two mistakes: heads come before the batch, and each head takes interleaved numbers
# says: A head gets every num_heads-th number of a token,
import torch

def split_heads(x, num_heads):
    bs, seq, dim = x.shape
    x = x.view(bs, seq, dim // num_heads, num_heads)
    return torch.einsum("blwh->hblw", x)

# ==== wrong: every head gets the first slice
# says: Every head gets the first slice. Head h should
def split_heads(x, num_heads):
    w = x.size(2) // num_heads
    first = x[..., :w].unsqueeze(1)
    return first.repeat(1, num_heads, 1, 1)

# ==== wrong: every head gets the whole vector instead of its slice
# says: Every head gets the whole vector of a token.
def split_heads(x, num_heads):
    b, l, d = x.shape
    return x[:, None].expand(b, num_heads, l, d)

# ==== wrong: additionally divided by the square root of the width
# says: The numbers are scaled, by the root of the
import math

def split_heads(x, num_heads):
    batch, length, d_model = x.shape
    d_head = d_model // num_heads
    q = x.reshape(batch, length, num_heads, d_head).permute(0, 2, 1, 3)
    return q / math.sqrt(d_head)

# ==== wrong: reshaped with the heads before the batch and then swapped, so rows of the batch are mixed
# says: The numbers are cut straight into the final shape,
def split_heads(x, num_heads):
    B, L, D = x.shape
    return x.reshape(num_heads, B, L, D // num_heads).transpose(0, 1)

# ==== wrong: the heads are in reverse order
# says: The heads come in the reverse order.
import torch

def split_heads(x, num_heads):
    b, l, d = x.shape
    w = d // num_heads
    out = torch.empty(b, num_heads, l, w, dtype=x.dtype)
    for h in range(num_heads):
        end = d - h * w
        out[:, h] = x[:, :, end - w : end]
    return out

# ==== wrong: the batch is lost, only the first row is split
# says: Only the first sequence is split: the others of
def split_heads(x, num_heads):
    length, d = x[0].shape
    one = x[0].reshape(length, num_heads, d // num_heads)
    return one.transpose(0, 1).unsqueeze(0)

# ==== wrong: raises an error: true division makes the width a float
# says:
def split_heads(x, num_heads):
    b, l, d = x.shape
    return x.view(b, l, num_heads, d / num_heads).transpose(1, 2)

# ==== right: view and transpose
from torch import Tensor


def split_heads(x: Tensor, num_heads: int) -> Tensor:
    batch, length, total = x.shape
    return x.reshape(batch, length, num_heads, total // num_heads).transpose(1, 2)

# ==== right: chunks stacked on a new axis
import torch

def split_heads(x, num_heads):
    return torch.stack(x.chunk(num_heads, dim=-1), dim=1)

# ==== right: einops
from einops import rearrange

def split_heads(x, num_heads):
    return rearrange(x, "b l (h w) -> b h l w", h=num_heads)

# ==== right: transpose first, then split the features, then turn length and width
def split_heads(x, num_heads):
    b, l, d = x.shape
    return x.mT.reshape(b, num_heads, d // num_heads, l).mT

# ==== right: a window that slides by its own width
def split_heads(x, num_heads):
    w = x.size(-1) // num_heads
    return x.unfold(-1, w, w).permute(0, 2, 1, 3)
