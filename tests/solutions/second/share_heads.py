# ==== wrong: repeat tiles the heads: 0 1 0 1 instead of 0 0 1 1
# says: The key heads are repeated as a whole: 0
def share_heads(x, num_heads):
    n_rep = num_heads // x.shape[1]
    return x.repeat(1, n_rep, 1, 1)

# ==== wrong: each head is repeated num_heads times instead of the size of a group
# says: Every key head is repeated as often as there
import torch


def share_heads(x, num_heads):
    return torch.repeat_interleave(x, num_heads, dim=1)

# ==== wrong: the length axis is repeated and then cut into heads, which mixes tokens
# says: Positions are repeated, or single numbers, and the result
def share_heads(x, num_heads):
    b, kv, n, d = x.size()
    group = num_heads // kv
    return x.repeat_interleave(group, dim=2).reshape(b, num_heads, n, d)

# ==== wrong: query head h reads key head h // num_kv_heads instead of h // group size; right only when both are equal
# says:
import torch


def share_heads(x, num_heads):
    num_kv = x.shape[1]
    picks = [min(h // num_kv, num_kv - 1) for h in range(num_heads)]
    return x[:, picks]

# ==== wrong: two mistakes: tiled order 0 1 0 1, and num_heads copies instead of the size of a group
# says, in part wrongly: The key heads are repeated as a whole: 0
import torch


def share_heads(x, num_heads):
    copies = [x for _ in range(num_heads)]
    return torch.cat(copies, dim=1)

# ==== wrong: two mistakes: only the first key head is used for all, and the result always has twice the key heads (group size fixed at 2)
# says:
def share_heads(x, num_heads):
    b, kv, length, width = x.shape
    first = x[:, :1]
    return first.expand(b, kv * 2, length, width)

# ==== right: repeat_interleave by the size of a group
def share_heads(x, num_heads):
    return x.repeat_interleave(num_heads // x.shape[1], dim=1)

# ==== right: indexing with a computed head number
import torch


def share_heads(x, num_heads):
    kv = x.shape[1]
    idx = torch.arange(num_heads, device=x.device) * kv // num_heads
    return x.index_select(1, idx)
