# ==== wrong: plain attention: dead queries become NaN and NaN in unused values leaks
# says: Bare -inf. Forbidden scores are -inf, as they should
import math
import torch
from torch import Tensor


def nan_safe_attention(query: Tensor, key: Tensor, value: Tensor, mask: Tensor) -> Tensor:
    scores = query @ key.transpose(-2, -1) / math.sqrt(query.shape[-1])
    scores = scores.masked_fill(~mask, float("-inf"))
    return scores.softmax(dim=-1) @ value

# ==== wrong: nan_to_num on the output only: NaN of an unused value wipes out the answer of live queries, and gradients are NaN
# says: NaN is replaced in the output, where it has
import torch

def nan_safe_attention(query, key, value, mask):
    s = query @ key.mT / query.shape[-1] ** 0.5
    s = s.masked_fill(~mask, float("-inf"))
    out = torch.softmax(s, dim=-1) @ value
    return torch.nan_to_num(out, nan=0.0)

# ==== wrong: weights of dead queries are cleaned, but NaN in unused values still survives the weight of 0
# says: Zeros for queries that may see no key are
import torch

def nan_safe_attention(query, key, value, mask):
    d = query.shape[-1]
    dead = ~mask.any(dim=-1, keepdim=True)
    scores = torch.einsum("bhqd,bhkd->bhqk", query, key) / d ** 0.5
    scores = scores.masked_fill(~(mask | dead), float("-inf"))
    w = scores.softmax(-1)
    w = torch.where(mask, w, torch.zeros_like(w))
    return torch.einsum("bhqk,bhkd->bhqd", w, value)

# ==== wrong: unused values are cleaned, but a dead query still gives NaN
# says: A query that may see no key gives NaN:
import torch

def nan_safe_attention(query, key, value, mask):
    used = mask.any(dim=-2).unsqueeze(-1)
    v = torch.where(used, value, torch.zeros_like(value))
    k = torch.where(used, key, torch.zeros_like(key))
    att = query @ k.transpose(-1, -2) / query.size(-1) ** 0.5
    att = att.masked_fill(mask == 0, float("-inf")).softmax(dim=-1)
    return att @ v

# ==== wrong: fill of -1e9 instead of -inf: a dead query gets the mean of all values instead of zeros
# says: Masked scores become a number like -1e9: a query
import math
import torch

def nan_safe_attention(query, key, value, mask):
    seen = mask.any(-2)[..., None]
    key = key.masked_fill(~seen, 0.0)
    value = value.masked_fill(~seen, 0.0)
    query = query.masked_fill(~mask.any(-1)[..., None], 0.0)
    scores = torch.matmul(query, key.transpose(-2, -1)) / math.sqrt(query.size(-1))
    scores = scores.masked_fill(~mask, -1e9)
    return torch.matmul(torch.softmax(scores, dim=-1), value)

# ==== wrong: two mistakes: -1e9 gives a dead query the mean of the values, and NaN in unused values leaks
# says: Fill of -1e9. Forbidden scores are set to -1e9.
import math
import torch

def nan_safe_attention(query, key, value, mask):
    att = torch.matmul(query, key.transpose(-2, -1)) / math.sqrt(query.size(-1))
    att = att.masked_fill(mask == 0, -1e9)
    return torch.matmul(att.softmax(dim=-1), value)

# ==== wrong: forward is right, but the NaN of a dead query is only replaced in the output, so gradients of the values are NaN (NaN weight * 0)
# says: NaN is replaced in the output, where it has
import torch

def nan_safe_attention(query, key, value, mask):
    used = mask.any(dim=-2).unsqueeze(-1)
    alive = mask.any(dim=-1).unsqueeze(-1)
    q = torch.where(alive, query, 0.0)
    k = torch.where(used, key, 0.0)
    v = torch.where(used, value, 0.0)
    s = torch.where(mask, q @ k.mT * query.shape[-1] ** -0.5, float("-inf"))
    w = torch.softmax(s, -1)
    return torch.where(alive, w @ v, 0.0)

# ==== wrong: unused values are multiplied by 0 instead of replaced, and 0 * NaN is NaN
# says: NaN in keys and values that no query may
import torch

def nan_safe_attention(query, key, value, mask):
    used = mask.any(dim=2).to(value.dtype).unsqueeze(-1)
    value = value * used
    key = key * used
    none = ~mask.any(dim=-1, keepdim=True)
    query = query.masked_fill(none, 0.0)
    scores = (query @ key.transpose(-2, -1)) / query.shape[-1] ** 0.5
    scores = scores.masked_fill(~mask, float("-inf")).masked_fill(none, 0.0)
    out = scores.softmax(-1) @ value
    return out.masked_fill(none, 0.0)

# ==== wrong: two mistakes: not scaled by the root of the width, and gradients are NaN when a query is dead (cleaned in the output only)
# says: The scores are not divided by √d: the softmax
import torch

def nan_safe_attention(query, key, value, mask):
    used = mask.any(-2, keepdim=True).transpose(-1, -2)
    alive = mask.any(-1, keepdim=True)
    clean = lambda t, keep: torch.where(keep, t, torch.zeros_like(t))
    logits = clean(query, alive) @ clean(key, used).transpose(-1, -2)
    p = logits.masked_fill(~mask, -torch.inf).softmax(-1)
    return clean(p @ clean(value, used), alive)

# ==== wrong: only values are cleaned, not keys and queries: forward is right, the gradient of the query is NaN (0 * NaN)
# says: Zeros for queries that may see no key are
import torch

def nan_safe_attention(query, key, value, mask):
    dead = ~mask.any(-1, keepdim=True)
    v = value.masked_fill(~mask.any(-2).unsqueeze(-1), 0.0)
    scores = query @ key.transpose(-2, -1) / query.shape[-1] ** 0.5
    scores = torch.where(mask, scores, torch.full_like(scores, float("-inf")))
    scores = torch.where(dead, torch.zeros_like(scores), scores)
    return torch.where(dead, torch.zeros_like(v[..., :1, :]), torch.softmax(scores, -1) @ v)

# ==== wrong: an additive mask is added to the scores, so NaN in an unused key makes the whole row NaN
# says: A number like -1e9 is added to masked scores:
import torch

def nan_safe_attention(query, key, value, mask):
    alive = mask.any(dim=-1, keepdim=True)
    used = mask.any(dim=-2).unsqueeze(-1)
    value = torch.where(used, value, torch.zeros(()))
    penalty = (1.0 - mask.float()) * -1e9
    scores = query @ key.transpose(-2, -1) / query.shape[-1] ** 0.5 + penalty
    weights = scores.softmax(dim=-1) * mask
    return torch.where(alive, weights @ value, torch.zeros(()))

# ==== wrong: two mistakes: the mask is inverted, and dead queries are not treated
# says: NaN in keys and values that no query may
import torch

def nan_safe_attention(query, key, value, mask):
    value = torch.nan_to_num(value, nan=0.0, posinf=0.0, neginf=0.0)
    key = torch.nan_to_num(key, nan=0.0, posinf=0.0, neginf=0.0)
    query = torch.nan_to_num(query, nan=0.0, posinf=0.0, neginf=0.0)
    s = query @ key.mT / query.shape[-1] ** 0.5
    s = s.masked_fill(mask, float("-inf"))
    return torch.softmax(s, dim=-1) @ value

# ==== wrong: only keys that every query sees count as used (all instead of any), the others' keys and values are zeroed
# says: A key counts as unused as soon as one
import torch

def nan_safe_attention(query, key, value, mask):
    dead = ~mask.any(dim=-1, keepdim=True)
    used = mask.all(dim=-2).unsqueeze(-1)
    q = query.masked_fill(dead, 0)
    k = key.masked_fill(~used, 0)
    v = value.masked_fill(~used, 0)
    s = torch.einsum("bhid,bhjd->bhij", q, k) * q.shape[-1] ** -0.5
    s = s.masked_fill(~mask & ~dead, float("-inf"))
    return (s.softmax(-1) @ v).masked_fill(dead, 0)

# ==== wrong: the unused keys and values of the arguments are overwritten in place
# says: it was changed in place
import torch

def nan_safe_attention(query, key, value, mask):
    B, H, Q, D = query.shape
    m = mask.expand(B, H, Q, key.shape[2])
    unused = ~m.any(2)
    dead = ~m.any(3)
    with torch.no_grad():
        key[unused] = 0.0
        value[unused] = 0.0
        query[dead] = 0.0
    scores = query @ key.mT / D ** 0.5
    scores = scores.masked_fill(~m & ~dead.unsqueeze(-1), float("-inf"))
    out = scores.softmax(-1) @ value
    return out.masked_fill(dead.unsqueeze(-1), 0.0)

# ==== wrong: only NaN is cleaned, not Inf: 0 * inf is NaN again
# says: Only NaN is looked for. Inf in a key
import torch

def nan_safe_attention(query, key, value, mask):
    q, k, v = [torch.where(torch.isnan(t), torch.zeros_like(t), t) for t in (query, key, value)]
    blind = mask.sum(-1, keepdim=True) == 0
    scores = q @ k.transpose(-2, -1) / q.size(-1) ** 0.5
    scores = scores.masked_fill(~mask, float("-inf")).masked_fill(blind, 0.0)
    return (scores.softmax(-1) @ v).masked_fill(blind, 0.0)

# ==== wrong: a key counts as used if any row or head of the batch uses it, so NaN of another row's padding leaks
# says: Which keys are unused is asked of all heads
import torch

def nan_safe_attention(query, key, value, mask):
    used = mask.any(dim=0).any(dim=0).any(dim=0)[:, None]
    dead = ~mask.any(dim=-1, keepdim=True)
    q = torch.where(dead, 0.0, query)
    k = torch.where(used, key, 0.0)
    v = torch.where(used, value, 0.0)
    s = q @ k.mT / q.shape[-1] ** 0.5
    s = torch.where(mask | dead, s, float("-inf"))
    return torch.where(dead, 0.0, s.softmax(-1) @ v)

# ==== wrong: only the first query's row of the mask decides which keys are used
# says: A key counts as unused as soon as one
import torch

def nan_safe_attention(query, key, value, mask):
    used = mask[:, :, 0, :, None]
    dead = mask.logical_not().all(dim=-1, keepdim=True)
    key = torch.where(used, key, torch.zeros_like(key))
    value = torch.where(used, value, torch.zeros_like(value))
    query = torch.where(dead, torch.zeros_like(query), query)
    scores = torch.einsum("bhqd,bhkd->bhqk", query, key) / query.shape[-1] ** 0.5
    scores = scores.masked_fill(torch.logical_and(~mask, ~dead), float("-inf"))
    return torch.einsum("bhqk,bhkd->bhqd", scores.softmax(-1), value).masked_fill(dead, 0)

# ==== wrong: the dead query is let see every key and its result is not set to zeros
# says: A query that may see no key gets a
import torch

def nan_safe_attention(query, key, value, mask):
    dead = ~mask.any(dim=-1, keepdim=True)
    used = mask.any(dim=-2).unsqueeze(-1)
    k = key.masked_fill(~used, 0.0)
    v = value.masked_fill(~used, 0.0)
    q = query.masked_fill(dead, 0.0)
    opened = mask | dead
    s = (q @ k.transpose(-2, -1)) / q.shape[-1] ** 0.5
    return s.masked_fill(~opened, float("-inf")).softmax(dim=-1) @ v

# ==== wrong: raises an error when queries and keys differ in number: the used keys are looked for along the wrong axis
# says:
import torch

def nan_safe_attention(query, key, value, mask):
    used = mask.any(dim=-1)[..., None]
    v = torch.where(used, value, torch.zeros_like(value))
    k = torch.where(used, key, torch.zeros_like(key))
    s = query @ k.mT / query.shape[-1] ** 0.5
    dead = ~mask.any(-1, keepdim=True)
    s = s.masked_fill(~mask, float("-inf")).masked_fill(dead, 0.0)
    return (s.softmax(-1) @ v).masked_fill(dead, 0.0)

# ==== right: clean what is unused before, open the dead rows, zero them after
import math
import torch
from torch import Tensor


def nan_safe_attention(query: Tensor, key: Tensor, value: Tensor, mask: Tensor) -> Tensor:
    dead = ~mask.any(dim=-1, keepdim=True)
    unused = ~mask.any(dim=-2).unsqueeze(-1)
    query = query.masked_fill(dead, 0.0)
    key = key.masked_fill(unused, 0.0)
    value = value.masked_fill(unused, 0.0)
    scores = query @ key.transpose(-2, -1) / math.sqrt(query.shape[-1])
    scores = scores.masked_fill(~mask & ~dead, float("-inf"))
    return (scores.softmax(dim=-1) @ value).masked_fill(dead, 0.0)

# ==== right: every pair by itself, so that a key forbidden to one query cannot touch it
import torch

def nan_safe_attention(query, key, value, mask):
    m = mask.unsqueeze(-1)
    zero = torch.zeros((), dtype=query.dtype, device=query.device)
    q = torch.where(m, query.unsqueeze(3), zero)
    k = torch.where(m, key.unsqueeze(2), zero)
    v = torch.where(m, value.unsqueeze(2), zero)
    scores = (q * k).sum(-1) / query.shape[-1] ** 0.5
    scores = torch.where(mask, scores, torch.full_like(scores, -1e30))
    top = scores.amax(-1, keepdim=True).detach()
    e = torch.where(mask, torch.exp(scores - top), zero)
    total = e.sum(-1, keepdim=True)
    w = e / torch.where(total == 0, torch.ones_like(total), total)
    return (w.unsqueeze(-1) * v).sum(3)

# ==== right: loops that only touch the keys that the query may see
import torch

def nan_safe_attention(query, key, value, mask):
    B, H, Q, D = query.shape
    m = mask.expand(B, H, Q, key.shape[2])
    outs = []
    for b in range(B):
        for h in range(H):
            for i in range(Q):
                idx = m[b, h, i].nonzero().squeeze(1)
                if idx.numel() == 0:
                    outs.append(torch.zeros(value.shape[-1], dtype=value.dtype, device=value.device))
                    continue
                s = key[b, h, idx] @ query[b, h, i] / D ** 0.5
                outs.append(s.softmax(0) @ value[b, h, idx])
    return torch.stack(outs).view(B, H, Q, -1)

# ==== right: -inf everywhere first, the weights of dead queries replaced right after the softmax
import torch

def nan_safe_attention(query, key, value, mask):
    used = mask.any(dim=-2).unsqueeze(-1)
    alive = mask.any(dim=-1).unsqueeze(-1)
    q = torch.where(alive, query, 0.0)
    k = torch.where(used, key, 0.0)
    v = torch.where(used, value, 0.0)
    s = torch.where(mask, torch.einsum("bhqd,bhkd->bhqk", q, k) * q.shape[-1] ** -0.5, float("-inf"))
    w = torch.where(alive, torch.softmax(s, -1), 0.0)
    return torch.einsum("bhqk,bhkd->bhqd", w, v)
