# ==== wrong: repeat tiles the heads (0 1 0 1) instead of repeating neighbours (0 0 1 1)
# says: The key heads are repeated as a whole: 0
from torch import Tensor


def share_heads(x: Tensor, num_heads: int) -> Tensor:
    groups = num_heads // x.shape[1]
    return x.repeat(1, groups, 1, 1)

# ==== wrong: every head is repeated num_heads times instead of num_heads / num_kv_heads times
# says: Every key head is repeated as often as there
import torch

def share_heads(x, num_heads):
    return torch.repeat_interleave(x, num_heads, dim=1)

# ==== wrong: the tokens are repeated (axis of the length) instead of the heads
# says: It is not the heads that are repeated, axis
import torch

def share_heads(x, num_heads):
    n_rep = num_heads // x.size(1)
    return x.repeat_interleave(n_rep, dim=2)

# ==== wrong: the group stays an axis of its own, the result has five axes
# says: The copies stand along an axis of their own:
def share_heads(x, num_heads):
    b, kv, l, w = x.shape
    g = num_heads // kv
    return x[:, :, None, :, :].expand(b, kv, g, l, w)

# ==== wrong: all query heads get the first key head
# says: Every query head reads the first key head, and
def share_heads(x, num_heads):
    b, kv, n, d = x.shape
    return x[:, :1].expand(b, num_heads, n, d)

# ==== wrong: two mistakes: tiled order (0 1 0 1), and the group axis is not merged
# says: The copies stand along an axis of their own:
from einops import repeat

def share_heads(x, num_heads):
    return repeat(x, "b k l w -> b g k l w", g=num_heads // x.shape[1])

# ==== wrong: repeats by the number of key heads instead of by the size of a group
# says: Every key head is repeated as often as there
import torch

def share_heads(x, num_heads):
    times = x.shape[1]
    return x.repeat_interleave(times, dim=1)

# ==== wrong: the new axis is put behind the length before the reshape, so tokens land in other heads
# says: Positions are repeated, or single numbers, and the result
def share_heads(x, num_heads):
    batch, kv_heads, slen, head_dim = x.shape
    n_rep = num_heads // kv_heads
    x = x[:, :, :, None, :].expand(batch, kv_heads, slen, n_rep, head_dim)
    return x.reshape(batch, kv_heads * n_rep, slen, head_dim)

# ==== wrong: two mistakes: the batch is repeated instead of the heads, and by num_heads
# says: Every key head is repeated as often as there
import torch

def share_heads(x, num_heads):
    expanded = x.repeat_interleave(num_heads, dim=0)
    return expanded

# ==== wrong: the key heads are averaged into one, as if it were multi-query attention
# says: The key heads are averaged. Each group of query
import torch

def share_heads(x, num_heads):
    avg = x.mean(dim=1, keepdim=True)
    return torch.cat([avg] * num_heads, dim=1)

# ==== wrong: only the first head of each group gets the key head, the others are zeros
# says: Only one query head of each group gets the
import torch

def share_heads(x, num_heads):
    B, K, L, W = x.shape
    out = torch.zeros(B, num_heads, L, W, dtype=x.dtype)
    out[:, :: num_heads // K] = x
    return out

# ==== wrong: two mistakes: the order is tiled by the remainder, and the copies are divided by the size of the group
# says: The key heads are repeated as a whole: 0
import torch

def share_heads(x, num_heads):
    kv = x.shape[1]
    picked = []
    for h in range(num_heads):
        picked.append(x[:, h % kv] / (num_heads // kv))
    return torch.stack(picked, 1)

# ==== wrong: repeat_interleave without an axis flattens, so single numbers are repeated
# says: Positions are repeated, or single numbers, and the result
import torch

def share_heads(x, num_heads):
    b, k, l, w = x.shape
    flat = torch.repeat_interleave(x, num_heads // k)
    return flat.view(b, num_heads, l, w)

# ==== wrong: the missing heads are filled up with copies of the last key head
# says: Query heads beyond the number of key heads get
import torch

def share_heads(x, num_heads):
    missing = num_heads - x.shape[1]
    last = x[:, -1:].expand(-1, missing, -1, -1)
    return torch.cat((x, last), dim=1)

# ==== wrong: only the case of one key head is treated, otherwise x comes back as it is
# says: Nothing is repeated: there are as many heads as
def share_heads(x, num_heads):
    if x.shape[1] == 1:
        return x.expand(-1, num_heads, -1, -1)
    return x

# ==== wrong: off by one in the index, the groups begin one head too early
# says: The groups begin one query head too early or
import torch

def share_heads(x, num_heads):
    kv = x.size(1)
    g = num_heads // kv
    index = ((torch.arange(num_heads) + 1) // g).clamp(max=kv - 1)
    return x.index_select(1, index)

# ==== wrong: the groups are in reverse order
# says: Key heads are counted from the end: the last
import torch

def share_heads(x, num_heads):
    group = num_heads // x.shape[1]
    heads = []
    for head in x.unbind(1):
        for _ in range(group):
            heads.insert(0, head)
    return torch.stack(heads, dim=1)

# ==== wrong: the copies are divided by the size of the group
# says: The key heads are scaled, divided by the size
def share_heads(x, num_heads):
    n = num_heads // x.shape[1]
    return x.repeat_interleave(n, dim=1) / n

# ==== wrong: raises an error (or picks wrong heads): divides the head's number by the count of key heads instead of the size of a group
# says: The number of a query head is divided by
import torch

def share_heads(x, num_heads):
    kv = x.shape[1]
    return torch.stack([x[:, h // kv] for h in range(num_heads)], dim=1)

# ==== right: repeat_interleave
from torch import Tensor


def share_heads(x: Tensor, num_heads: int) -> Tensor:
    return x.repeat_interleave(num_heads // x.shape[1], dim=1)

# ==== right: new axis, expand, reshape
def share_heads(x, num_heads):
    b, kv, l, w = x.shape
    g = num_heads // kv
    return x[:, :, None].expand(b, kv, g, l, w).reshape(b, num_heads, l, w)

# ==== right: picked by index
import torch

def share_heads(x, num_heads):
    kv = x.shape[1]
    which = torch.arange(num_heads, device=x.device) * kv // num_heads
    return x[:, which]

# ==== right: a matrix that says which head reads which, with einsum
import torch

def share_heads(x, num_heads):
    kv = x.shape[1]
    g = num_heads // kv
    reads = torch.kron(torch.eye(kv), torch.ones(g, 1)).to(x)
    return torch.einsum("hk,bklw->bhlw", reads, x)

# ==== right: double loop
import torch

def share_heads(x, num_heads):
    group = num_heads // x.size(1)
    out = []
    for k in range(x.size(1)):
        for _ in range(group):
            out.append(x[:, k : k + 1])
    return torch.cat(out, dim=1)
