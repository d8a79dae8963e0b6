# ==== wrong: the scores are not divided by the root of the width
# says: The scores are not divided by √d: the softmax
import torch


def attention(query, key, value, mask):
    scores = query @ key.transpose(-2, -1)
    scores = scores.masked_fill(~mask, float("-inf"))
    return torch.softmax(scores, dim=-1) @ value

# ==== wrong: the mask is applied after softmax and the weights are not normalized again
# says: Mask after the softmax. The mask is multiplied in
import math
import torch


def attention(query, key, value, mask):
    d = query.size(-1)
    w = torch.softmax(torch.matmul(query, key.mT) / math.sqrt(d), dim=-1)
    w = w * mask
    return torch.matmul(w, value)

# ==== wrong: masked scores are filled with 1e-9 (about 0) instead of -inf
# says: Masked scores become 0, or a number so small
import torch.nn.functional as F


def attention(query, key, value, mask):
    d_k = query.shape[-1]
    scores = query.matmul(key.transpose(-1, -2)) / d_k ** 0.5
    scores = scores.masked_fill(mask == 0, 1e-9)
    p_attn = F.softmax(scores, dim=-1)
    return p_attn.matmul(value)

# ==== wrong: -10000 is added to masked scores instead of -inf, so a large masked score still wins
# says, in part wrongly: Masked scores become some negative number, and a real
import torch


def attention(query, key, value, mask):
    bias = (1.0 - mask.to(query.dtype)) * -10000.0
    logits = torch.einsum("bhqd,bhkd->bhqk", query, key) * query.shape[-1] ** -0.5 + bias
    return torch.einsum("bhqk,bhkd->bhqd", logits.softmax(-1), value)

# ==== wrong: two mistakes: softmax runs over the queries instead of the keys, and the scores are not scaled
# says: The scores are not divided by √d: the softmax
import torch


def attention(query, key, value, mask):
    sim = torch.einsum("b h i d, b h j d -> b h i j", query, key)
    sim = torch.where(mask, sim, torch.finfo(sim.dtype).min)
    attn = sim.softmax(dim=-2)
    return torch.einsum("b h i j, b h j d -> b h i d", attn, value)

# ==== wrong: two mistakes: the mask is inverted (True is taken as forbidden), and the scores are divided by the width instead of its root
# says: The scores are divided by d, not by its
import torch


def attention(query, key, value, mask):
    width = query.shape[-1]
    s = query @ key.permute(0, 1, 3, 2) / width
    s = s.masked_fill(mask, -1e30)
    return torch.softmax(s, -1) @ value

# ==== right: masked_fill with -inf
import math
import torch


def attention(query, key, value, mask):
    scores = query @ key.transpose(-2, -1) / math.sqrt(query.shape[-1])
    weights = scores.masked_fill(~mask, -math.inf).softmax(dim=-1)
    return weights @ value

# ==== right: one query at a time, over the allowed keys only
import torch


def attention(query, key, value, mask):
    b, h, n, d = query.shape
    mask = mask.expand(b, h, n, key.shape[2])
    out = torch.zeros_like(query)
    for i in range(b):
        for j in range(h):
            for q in range(n):
                ok = mask[i, j, q]
                s = (key[i, j][ok] * query[i, j, q]).sum(-1) / d ** 0.5
                out[i, j, q] = torch.softmax(s, 0) @ value[i, j][ok]
    return out
