# ==== wrong: nan_to_num on the output only: NaN in an unused value wipes out results that are used, and gradients are NaN
# says: NaN is replaced in the output, where it has
import torch


def nan_safe_attention(query, key, value, mask):
    scores = query @ key.transpose(-2, -1) / query.shape[-1] ** 0.5
    scores = scores.masked_fill(~mask, float("-inf"))
    out = torch.softmax(scores, dim=-1) @ value
    return torch.nan_to_num(out, nan=0.0)

# ==== wrong: empty queries are dealt with, but unused values are not cleaned, so 0 * NaN reaches the output
# says:
import torch


def nan_safe_attention(query, key, value, mask):
    some = mask.any(dim=-1, keepdim=True)
    seen = mask.any(dim=-2).unsqueeze(-1)
    q = torch.where(some, query, 0.0)
    k = torch.where(seen, key, 0.0)
    s = torch.matmul(q, k.mT) * q.size(-1) ** -0.5
    s = s.masked_fill(~mask & some, float("-inf"))
    p = s.softmax(-1).masked_fill(~mask, 0.0)
    return p @ value

# ==== wrong: only the values are cleaned; NaN in unused queries and keys gets into the gradients
# says: Zeros for queries that may see no key are
import torch


def nan_safe_attention(query, key, value, mask):
    used = mask.any(-2)[..., None]
    value = value.masked_fill(~used, 0)
    logits = torch.einsum("bhqd,bhkd->bhqk", query, key) / query.shape[-1] ** 0.5
    logits = logits.masked_fill(~mask, torch.finfo(logits.dtype).min)
    weights = torch.softmax(logits, -1)
    weights = weights.masked_fill(~mask, 0)
    return torch.einsum("bhqk,bhkd->bhqd", weights, value)

# ==== wrong: a query that may see no key gets the plain mean of the values instead of zeros
# says: A query that may see no key gets a
import math
import torch


def clean(t, used):
    return torch.where(used.unsqueeze(-1), t, torch.zeros_like(t))


def nan_safe_attention(query, key, value, mask):
    q = clean(query, mask.any(-1))
    k = clean(key, mask.any(-2))
    v = clean(value, mask.any(-2))
    scores = q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])
    scores = scores.masked_fill(~mask, torch.finfo(scores.dtype).min)
    return scores.softmax(-1) @ v

# ==== wrong: two mistakes: a query without keys is not dealt with (NaN), and unused values are not cleaned (0 * NaN)
# says: Bare -inf. Forbidden scores are -inf, as they should
import torch.nn.functional as F


def nan_safe_attention(query, key, value, mask):
    attn = query.matmul(key.transpose(2, 3)) / (query.shape[3] ** 0.5)
    attn = attn.masked_fill(mask.logical_not(), float("-inf"))
    return F.softmax(attn, dim=3).matmul(value)

# ==== wrong: two mistakes: a key is taken as unused when one query may not see it (all instead of any), and the scores are not scaled
# says:
import torch


def nan_safe_attention(query, key, value, mask):
    row_ok = mask.any(dim=-1, keepdim=True)
    col_ok = mask.all(dim=-2, keepdim=True).transpose(-1, -2)
    q = query.masked_fill(~row_ok, 0.0)
    k = key.masked_fill(~col_ok, 0.0)
    v = value.masked_fill(~col_ok, 0.0)
    s = q @ k.transpose(-1, -2)
    s = torch.where(mask, s, torch.full_like(s, -1e30))
    w = torch.softmax(s, dim=-1)
    return (w * mask) @ v

# ==== right: everything unused is zeroed on the way in
import torch


def nan_safe_attention(query, key, value, mask):
    sees = mask.any(-1, keepdim=True)
    seen = mask.any(-2).unsqueeze(-1)
    q = torch.where(sees, query, 0.0)
    k = torch.where(seen, key, 0.0)
    v = torch.where(seen, value, 0.0)
    scores = q @ k.transpose(-2, -1) / q.shape[-1] ** 0.5
    scores = scores.masked_fill(~mask & sees, float("-inf"))
    weights = scores.softmax(-1).masked_fill(~mask, 0.0)
    return weights @ v

# ==== right: one query at a time, over the allowed keys only
import torch


def nan_safe_attention(query, key, value, mask):
    b, h, n, d = query.shape
    mask = mask.expand(b, h, n, key.shape[2])
    rows = []
    for i in range(b):
        for j in range(h):
            for t in range(n):
                idx = mask[i, j, t].nonzero().flatten()
                s = key[i, j, idx] @ query[i, j, t] / d ** 0.5
                rows.append(s.softmax(0) @ value[i, j, idx])
    return torch.stack(rows).reshape(b, h, n, d)
