# ==== wrong: the triangle starts at the first key, so new tokens see only the start of the past
# says: The triangle begins at the first key, so a
import torch


def kv_cache(query, key, value, cache):
    if cache is not None:
        key = torch.cat([cache[0], key], dim=2)
        value = torch.cat([cache[1], value], dim=2)
    scores = query @ key.transpose(-2, -1) / query.shape[-1] ** 0.5
    allowed = torch.tril(torch.ones(query.shape[2], key.shape[2], dtype=torch.bool))
    scores = scores.masked_fill(~allowed, float("-inf"))
    return scores.softmax(-1) @ value, (key, value)

# ==== wrong: no causal mask among the new tokens
# says: Nothing is masked: a new token sees the new
import math
import torch


def kv_cache(query, key, value, cache):
    if cache is None:
        keys, values = key, value
    else:
        past_k, past_v = cache
        keys = torch.cat((past_k, key), dim=-2)
        values = torch.cat((past_v, value), dim=-2)
    att = torch.einsum("bhqd,bhkd->bhqk", query, keys) / math.sqrt(query.size(-1))
    att = torch.softmax(att, dim=-1)
    return torch.einsum("bhqk,bhkd->bhqd", att, values), (keys, values)

# ==== wrong: the returned cache holds only the new tokens, the past is lost after the next call
# says: The cache that comes back holds the new tokens
import torch


def kv_cache(query, key, value, cache):
    past = 0
    K, V = key, value
    if cache is not None:
        past = cache[0].shape[2]
        K = torch.cat([cache[0], key], 2)
        V = torch.cat([cache[1], value], 2)
    new = query.shape[2]
    q_pos = torch.arange(new)[:, None] + past
    k_pos = torch.arange(past + new)[None, :]
    s = (query @ K.mT) * query.shape[-1] ** -0.5
    s = torch.where(k_pos <= q_pos, s, -torch.inf)
    return torch.softmax(s, -1) @ V, (key, value)

# ==== wrong: two: the new keys are put before the past (without the mask following), and the scores are not scaled
# says: The new keys, the new values or both are
import torch


def kv_cache(query, key, value, cache):
    n = query.shape[-2]
    if cache is None:
        k, v = key, value
    else:
        k = torch.cat([key, cache[0]], dim=-2)
        v = torch.cat([value, cache[1]], dim=-2)
    mask = torch.ones(n, k.shape[-2]).triu(k.shape[-2] - n + 1).bool()
    scores = query.matmul(k.transpose(2, 3))
    scores[:, :, mask] = -float("inf")
    return scores.softmax(dim=-1).matmul(v), (k, v)

# ==== wrong: two: off by one, each new token sees also the one behind it, and the scale is the root of the number of keys
# says: The triangle is one diagonal off: a new token
import torch


def kv_cache(query, key, value, cache):
    if cache:
        key, value = (torch.cat(pair, dim=2) for pair in zip(cache, (key, value)))
    total, new = key.shape[2], query.shape[2]
    past = total - new
    hidden = torch.triu(torch.ones(new, total, dtype=torch.bool), diagonal=past + 2)
    scores = (query @ key.transpose(-1, -2)) / key.shape[2] ** 0.5
    weights = scores.masked_fill(hidden, -torch.inf).softmax(-1)
    return weights @ value, (key, value)

# ==== wrong: the causal mask is applied only in the first call, so several new tokens after a past see each other's future
# says: The mask is left out as soon as there
import torch


def kv_cache(query, key, value, cache):
    d = query.shape[-1]
    if cache is None:
        n = query.shape[2]
        scores = query @ key.transpose(-2, -1) / d ** 0.5
        future = torch.ones(n, n, dtype=torch.bool).triu(1)
        scores = scores.masked_fill(future, float("-inf"))
        return torch.softmax(scores, dim=-1) @ value, (key, value)
    keys = torch.cat([cache[0], key], dim=2)
    values = torch.cat([cache[1], value], dim=2)
    scores = query @ keys.transpose(-2, -1) / d ** 0.5
    return torch.softmax(scores, dim=-1) @ values, (keys, values)

# ==== right: triangle moved by the past
import torch


def kv_cache(query, key, value, cache):
    if cache is not None:
        key = torch.cat([cache[0], key], dim=-2)
        value = torch.cat([cache[1], value], dim=-2)
    past = key.shape[-2] - query.shape[-2]
    scores = query @ key.transpose(-2, -1) / query.shape[-1] ** 0.5
    see = torch.ones_like(scores, dtype=torch.bool).tril(past)
    weights = scores.masked_fill(~see, float("-inf")).softmax(-1)
    return weights @ value, (key, value)

# ==== right: a loop over the new tokens
import torch


def kv_cache(query, key, value, cache):
    past = cache[0].shape[2] if cache is not None else 0
    keys = key.clone() if cache is None else torch.cat([cache[0], key], 2)
    values = value.clone() if cache is None else torch.cat([cache[1], value], 2)
    out = []
    for i in range(query.shape[2]):
        end = past + i + 1
        s = (query[:, :, i:i + 1] * keys[:, :, :end]).sum(-1) / query.shape[-1] ** 0.5
        w = s.softmax(-1).unsqueeze(-1)
        out.append((w * values[:, :, :end]).sum(2))
    return torch.stack(out, 2), (keys, values)
