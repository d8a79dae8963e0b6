# ==== wrong: the scores are not divided by the square root of the width
# says: The scores are not divided by √d: the softmax
import torch
from torch import Tensor


def attention(query: Tensor, key: Tensor, value: Tensor, mask: Tensor) -> Tensor:
    scores = query @ key.transpose(-2, -1)
    scores = scores.masked_fill(~mask, float("-inf"))
    return torch.softmax(scores, dim=-1) @ value

# ==== wrong: the mask's polarity is inverted, the allowed keys are struck out
# says: The mask is used upside down: what it allows
import math
import torch

def attention(query, key, value, mask):
    d_k = query.size(-1)
    scores = torch.matmul(query, key.transpose(-2, -1)) / math.sqrt(d_k)
    scores = scores.masked_fill(mask, -1e9)
    p_attn = scores.softmax(dim=-1)
    return torch.matmul(p_attn, value)

# ==== wrong: softmax along the queries instead of along the keys
# says: The softmax runs over the queries: every key hands
import torch

def attention(query, key, value, mask):
    s = torch.einsum("bhqd,bhkd->bhqk", query, key) * query.shape[-1] ** -0.5
    s = torch.where(mask, s, torch.tensor(-1e30))
    w = torch.softmax(s, dim=-2)
    return torch.einsum("bhqk,bhkd->bhqd", w, value)

# ==== wrong: divides by the width instead of its square root
# says: The scores are divided by d, not by its
import torch
import torch.nn.functional as F

def attention(query, key, value, mask):
    logits = query.matmul(key.mT) / query.size(-1)
    logits[~mask.expand_as(logits)] = float("-inf")
    return F.softmax(logits, -1).matmul(value)

# ==== wrong: the mask is multiplied in after the softmax, so the rows no longer sum to 1
# says: Mask after the softmax. The mask is multiplied in
import torch

def attention(query, key, value, mask):
    scale = 1 / query.shape[-1] ** 0.5
    weights = torch.softmax(query @ key.transpose(2, 3) * scale, dim=-1)
    weights = weights * mask
    return weights @ value

# ==== wrong: two mistakes: no scaling, and the mask is inverted
# says: The scores are not divided by √d: the softmax
import torch

def attention(query, key, value, mask):
    bias = torch.zeros(mask.shape).masked_fill(mask, -1e9)
    probs = torch.softmax(torch.einsum("bhqd,bhkd->bhqk", query, key) + bias, dim=-1)
    return probs @ value

# ==== wrong: forbidden scores are set to 0 instead of -inf
# says: Masked scores become 0, or a number so small
import torch

def attention(query, key, value, mask):
    scores = (query @ key.transpose(-1, -2)) / (query.shape[-1] ** 0.5)
    scores = scores * mask.to(scores.dtype)
    attn = scores.softmax(-1)
    return attn @ value

# ==== wrong: the mask is not used at all
# says: No mask at all. The mask is accepted and
import math
from torch import Tensor


def attention(query: Tensor, key: Tensor, value: Tensor, mask: Tensor) -> Tensor:
    weights = (query @ key.transpose(-2, -1) / math.sqrt(query.shape[-1])).softmax(dim=-1)
    return weights @ value

# ==== wrong: two mistakes: softmax along the heads, and divided by the width without a root
# says: The scores are divided by d, not by its
import torch

def attention(query, key, value, mask):
    x = torch.matmul(query, key.permute(0, 1, 3, 2)) / query.shape[3]
    x = x.masked_fill(~mask, -1e9)
    x = torch.nn.Softmax(dim=1)(x)
    return torch.matmul(x, value)

# ==== wrong: the boolean mask is added as 0 and 1 as if it were an additive mask
# says: The mask of True and False is added to
import math
import torch

def attention(query, key, value, mask):
    d = query.size(-1)
    scores = torch.matmul(query, key.transpose(-2, -1)) / math.sqrt(d)
    scores = scores + mask
    return torch.matmul(torch.softmax(scores, dim=-1), value)

# ==== wrong: the fill value is 1e-9 instead of -1e9
# says: Masked scores become 0, or a number so small
import math
import torch

def attention(query, key, value, mask):
    att = query @ key.transpose(-2, -1)
    att = att / math.sqrt(key.size(-1))
    att = att.masked_fill(mask == 0, 1e-9)
    att = torch.softmax(att, dim=-1)
    return att @ value

# ==== wrong: two mistakes: the mask comes after the softmax without new normalizing, and the scale multiplies by the root instead of dividing
# says: The scores are multiplied by the root of d.
import math
import torch

def attention(query, key, value, mask):
    scores = torch.matmul(query, key.transpose(-2, -1)) * math.sqrt(query.size(-1))
    w = torch.softmax(scores, dim=-1).masked_fill(~mask, 0.0)
    return torch.matmul(w, value)

# ==== wrong: scales by the square root of the number of keys instead of the width
# says: The root is taken of another size, of the
import torch

def attention(query, key, value, mask):
    n = key.shape[-2]
    dots = torch.einsum("bhid,bhjd->bhij", query, key) / n ** 0.5
    dots = dots.masked_fill(mask.logical_not(), -torch.finfo(dots.dtype).max)
    return torch.einsum("bhij,bhjd->bhid", dots.softmax(-1), value)

# ==== wrong: the keys are collected instead of the values
# says: Keys and values have changed places, or one of
import torch

def attention(query, key, value, mask):
    root = torch.tensor(float(query.shape[-1])).sqrt()
    s = (query @ key.transpose(-2, -1)) / root
    s = torch.where(mask, s, float("-inf"))
    return torch.softmax(s, -1) @ key

# ==== wrong: the query is scaled in place, so the argument is changed
# says: it was changed in place
import torch

def attention(query, key, value, mask):
    query /= query.shape[-1] ** 0.5
    scores = query @ key.transpose(-2, -1)
    scores = scores.masked_fill(~mask, float("-inf"))
    return scores.softmax(dim=-1) @ value

# ==== wrong: only the mask of the first row and head is used for all
# says: Every sequence, and every head, has the mask of
import torch

def attention(query, key, value, mask):
    B, H, Q, D = query.shape
    allowed = mask[0, 0]
    out = torch.zeros(B, H, Q, value.shape[-1], dtype=value.dtype)
    for b in range(B):
        for h in range(H):
            s = query[b, h] @ key[b, h].T / D ** 0.5
            s = s.masked_fill(~allowed, float("-inf"))
            out[b, h] = s.softmax(-1) @ value[b, h]
    return out

# ==== wrong: normalized over all keys first, then masked and normalized again: 0 / 0 where a forbidden score is far larger
# says: The weights are masked after the softmax and divided
import torch

def attention(query, key, value, mask):
    p = torch.softmax(query @ key.mT / query.shape[-1] ** 0.5, dim=-1)
    p = p * mask
    p = p / p.sum(dim=-1, keepdim=True)
    return p @ value

# ==== wrong: the exponentials are taken by hand without subtracting the maximum, large scores overflow
# says: exp is taken of the scores as they are:
import torch

def attention(query, key, value, mask):
    e = torch.exp(query @ key.transpose(-2, -1) / query.size(-1) ** 0.5)
    e = e.masked_fill(~mask, 0)
    return (e / e.sum(-1, keepdim=True)) @ value

# ==== wrong: dropout is left on
# says: Dropout is left on: weights are set to 0
import math
import torch
import torch.nn.functional as F

def attention(query, key, value, mask):
    scores = torch.matmul(query, key.transpose(-2, -1)) / math.sqrt(query.size(-1))
    scores = scores.masked_fill(mask == 0, float("-inf"))
    weights = F.dropout(F.softmax(scores, dim=-1), p=0.1)
    return weights @ value

# ==== wrong: raises an error when queries and keys differ in number: the weights are transposed before the values are collected
# says: The weights are transposed before they meet the values:
import torch

def attention(query, key, value, mask):
    scores = query @ key.transpose(-1, -2) / query.shape[-1] ** 0.5
    weights = scores.masked_fill(~mask, -1e9).softmax(-1)
    return weights.transpose(-1, -2) @ value

# ==== right: matmul and masked_fill
import math
import torch
from torch import Tensor


def attention(query: Tensor, key: Tensor, value: Tensor, mask: Tensor) -> Tensor:
    scores = query @ key.transpose(-2, -1) / math.sqrt(query.shape[-1])
    scores = scores.masked_fill(~mask, float("-inf"))
    return scores.softmax(dim=-1) @ value

# ==== right: einsum and an additive mask made by torch.where
import torch

def attention(query, key, value, mask):
    q = query * query.shape[-1] ** -0.5
    bias = torch.where(mask, 0.0, float("-inf")).to(q.dtype)
    w = torch.softmax(torch.einsum("bhqd,bhkd->bhqk", q, key) + bias, dim=-1)
    return torch.einsum("bhqk,bhkd->bhqd", w, value)

# ==== right: loops, every query picks out the keys that it may see
import torch

def attention(query, key, value, mask):
    B, H, Q, D = query.shape
    K = key.shape[2]
    m = mask.expand(B, H, Q, K)
    rows = []
    for b in range(B):
        for h in range(H):
            for i in range(Q):
                seen = m[b, h, i]
                s = key[b, h][seen] @ query[b, h, i] / D ** 0.5
                rows.append(torch.softmax(s, dim=0) @ value[b, h][seen])
    return torch.stack(rows).reshape(B, H, Q, value.shape[-1])

# ==== right: float64 inside, softmax by hand
import torch

def attention(query, key, value, mask):
    s = (query.double() @ key.double().mT) / query.shape[-1] ** 0.5
    s = torch.where(mask, s, torch.full_like(s, float("-inf")))
    e = torch.exp(s - s.amax(-1, keepdim=True))
    return ((e / e.sum(-1, keepdim=True)) @ value.double()).to(query.dtype)
