# ==== wrong: no causal mask among the new tokens, they see their future
# says: Nothing is masked: a new token sees the new
import torch
from torch import Tensor


def kv_cache(query: Tensor, key: Tensor, value: Tensor, cache):
    if cache is not None:
        key = torch.cat([cache[0], key], dim=2)
        value = torch.cat([cache[1], value], dim=2)
    scores = query @ key.transpose(-2, -1) / query.shape[-1] ** 0.5
    return scores.softmax(-1) @ value, (key, value)

# ==== wrong: the causal mask is not moved by the past, a new token sees only the first keys
# says: The triangle begins at the first key, so a
import torch


def kv_cache(query, key, value, cache):
    if cache is not None:
        past_k, past_v = cache
        key = torch.cat((past_k, key), dim=-2)
        value = torch.cat((past_v, value), dim=-2)
    n, m = query.size(-2), key.size(-2)
    mask = torch.tril(torch.ones(n, m)).bool()
    s = torch.einsum("bhqd,bhkd->bhqk", query, key) / query.size(-1) ** 0.5
    s = s.masked_fill(~mask, float("-inf"))
    out = torch.einsum("bhqk,bhkd->bhqd", s.softmax(-1), value)
    return out, (key, value)

# ==== wrong: the returned cache holds only the new keys and values, the past is lost after two calls
# says: The cache that comes back holds the new tokens
import math
import torch


def kv_cache(query, key, value, cache):
    keys, values, past = key, value, 0
    if cache is not None:
        past = cache[0].shape[2]
        keys = torch.cat([cache[0], keys], 2)
        values = torch.cat([cache[1], values], 2)
    new = query.shape[2]
    allowed = torch.ones(new, past + new, dtype=torch.bool).tril(past)
    scores = torch.matmul(query, keys.mT) / math.sqrt(query.shape[3])
    weights = torch.softmax(torch.where(allowed, scores, -torch.inf), dim=3)
    return weights @ values, (key, value)

# ==== wrong: the new keys are put before the past ones
# says: The new keys, the new values or both are
import torch


def kv_cache(query, key, value, cache):
    if cache:
        key = torch.cat([key, cache[0]], dim=2)
        value = torch.cat([value, cache[1]], dim=2)
    total, new = key.shape[2], query.shape[2]
    i = torch.arange(total - new, total)[:, None]
    j = torch.arange(total)[None, :]
    scores = query @ key.transpose(2, 3) * query.shape[-1] ** -0.5
    scores = scores.masked_fill(j > i, -torch.inf)
    return scores.softmax(dim=-1) @ value, (key, value)

# ==== wrong: the scores are not divided by the root of the width
# says: The scores are not divided by the root of
import torch
from torch import Tensor


def kv_cache(query: Tensor, key: Tensor, value: Tensor, cache):
    past = 0
    if cache is not None:
        past = cache[0].shape[-2]
        key = torch.cat([cache[0], key], dim=-2)
        value = torch.cat([cache[1], value], dim=-2)
    future = torch.ones(query.shape[-2], key.shape[-2]).triu(past + 1).bool()
    scores = (query @ key.transpose(-1, -2)).masked_fill(future, float("-inf"))
    return scores.softmax(-1) @ value, (key, value)

# ==== wrong: the past is never looked at, the new tokens attend only to each other
# says: The past is forgotten: the new tokens see each
import torch


def kv_cache(query, key, value, cache):
    n = query.shape[2]
    causal = torch.tril(torch.ones(n, n, dtype=torch.bool))
    logits = query @ key.transpose(2, 3) / query.shape[3] ** 0.5
    probs = logits.masked_fill(~causal, float("-inf")).softmax(-1)
    out = probs @ value
    if cache is None:
        return out, (key, value)
    return out, (torch.cat([cache[0], key], 2), torch.cat([cache[1], value], 2))

# ==== wrong: off by one, each new token sees one key of its future
# says: The triangle is one diagonal off: a new token
import torch


def kv_cache(query, key, value, cache):
    keys = key if cache is None else torch.cat([cache[0], key], dim=2)
    values = value if cache is None else torch.cat([cache[1], value], dim=2)
    past = keys.shape[2] - key.shape[2]
    mask = torch.ones(query.shape[2], keys.shape[2]).tril(diagonal=past + 1)
    scores = query @ keys.transpose(-2, -1) / key.shape[-1] ** 0.5
    scores[..., mask == 0] = float("-inf")
    return torch.softmax(scores, -1) @ values, (keys, values)

# ==== wrong: only the first call (cache None) has a causal mask, with a cache several new tokens see each other's future
# says: The mask is left out as soon as there
import torch


def kv_cache(query, key, value, cache):
    d = query.shape[-1]
    if cache is None:
        n = query.shape[2]
        bias = torch.full((n, n), float("-inf")).triu(1)
        w = (query @ key.transpose(2, 3) / d**0.5 + bias).softmax(-1)
        return w @ value, (key, value)
    k = torch.cat([cache[0], key], 2)
    v = torch.cat([cache[1], value], 2)
    w = (query @ k.transpose(2, 3) / d**0.5).softmax(-1)
    return w @ v, (k, v)

# ==== wrong: the cache comes back as (values, keys)
# says: Keys and values have changed places in the cache,
import torch


def kv_cache(query, key, value, cache):
    if cache is None:
        K, V = key, value
    else:
        K, V = (torch.cat([old, new], dim=2) for old, new in zip(cache, (key, value)))
    offset = K.shape[2] - query.shape[2]
    q_pos = torch.arange(query.shape[2]) + offset
    k_pos = torch.arange(K.shape[2])
    visible = k_pos.unsqueeze(0) <= q_pos.unsqueeze(1)
    A = torch.einsum("...qd,...kd->...qk", query, K) / K.shape[-1] ** 0.5
    A = torch.where(visible, A, torch.tensor(float("-inf")))
    return A.softmax(-1) @ V, (V, K)

# ==== wrong: softmax over the queries instead of over the keys
# says: The softmax runs over the queries. It runs over
import torch


def kv_cache(query, key, value, cache):
    if cache is not None:
        key = torch.cat([cache[0], key], 2)
        value = torch.cat([cache[1], value], 2)
    p = key.shape[2] - query.shape[2]
    m = torch.ones(query.shape[2], key.shape[2], dtype=torch.bool).tril(p)
    scores = query @ key.mT / key.shape[3] ** 0.5
    scores = scores.masked_fill(~m, -1e9)
    weights = torch.softmax(scores, dim=-2)
    return weights @ value, (key, value)

# ==== wrong: scaled keys are kept in the cache, so the past is scaled again in every call
# says: The cache holds scaled keys. It is to hold
import torch


def kv_cache(query, key, value, cache):
    if cache is not None:
        key = torch.cat([cache[0], key], dim=2)
        value = torch.cat([cache[1], value], dim=2)
    key = key / key.shape[-1] ** 0.5
    n, t = query.shape[2], key.shape[2]
    causal = torch.arange(t) <= torch.arange(t - n, t)[:, None]
    scores = (query @ key.transpose(2, 3)).masked_fill(~causal, float("-inf"))
    return scores.softmax(-1) @ value, (key, value)

# ==== wrong: the argument query is changed by a division in place
# says: it was changed in place
import torch


def kv_cache(query, key, value, cache):
    past = cache[0].size(2) if cache is not None else 0
    if past:
        key = torch.cat((cache[0], key), 2)
        value = torch.cat((cache[1], value), 2)
    query /= query.size(-1) ** 0.5
    scores = query.matmul(key.transpose(-1, -2))
    hidden = torch.ones_like(scores, dtype=torch.bool).triu(past + 1)
    return scores.masked_fill(hidden, -torch.inf).softmax(-1).matmul(value), (key, value)

# ==== wrong: two mistakes: no scaling, and no causal mask among the new tokens
# says: Nothing is masked: a new token sees the new
import torch


def kv_cache(query, key, value, cache):
    if cache is not None:
        k, v = cache
        key, value = torch.cat([k, key], 2), torch.cat([v, value], 2)
    w = torch.einsum("bhqd,bhkd->bhqk", query, key).softmax(3)
    return torch.einsum("bhqk,bhkd->bhqd", w, value), (key, value)

# ==== wrong: two mistakes: the new keys stand before the past, and the causal mask is not moved by the past
# says: The triangle begins at the first key, so a
import torch


def kv_cache(query, key, value, cache):
    if cache is not None:
        key = torch.cat((key, cache[0]), dim=2)
        value = torch.cat((value, cache[1]), dim=2)
    mask = torch.ones(query.shape[2], key.shape[2]).tril() == 1
    scores = query @ key.transpose(-2, -1) / query.shape[-1] ** 0.5
    scores = scores.masked_fill(mask == False, float("-inf"))
    return scores.softmax(dim=-1) @ value, (key, value)

# ==== wrong: two mistakes: divided by the number of keys instead of the width, and a token does not see itself unless it is the first
# says: The scores are not divided by the root of
import torch


def kv_cache(query, key, value, cache):
    past = 0 if cache is None else cache[0].shape[2]
    if cache is not None:
        key = torch.cat([cache[0], key], dim=2)
        value = torch.cat([cache[1], value], dim=2)
    mask = torch.ones(query.shape[2], key.shape[2], dtype=torch.bool).tril(past - 1)
    mask[:, 0] = True
    scores = query @ key.transpose(-2, -1) / key.shape[-2] ** 0.5
    scores = scores.masked_fill(~mask, -torch.inf)
    return scores.softmax(-1) @ value, (key, value)

# ==== wrong: the past is kept in the function and the argument cache is ignored
# says:
import torch


def kv_cache(query, key, value, cache):
    if cache is None:
        kv_cache.k, kv_cache.v = key, value
    else:
        kv_cache.k = torch.cat([kv_cache.k, key], 2)
        kv_cache.v = torch.cat([kv_cache.v, value], 2)
    k, v = kv_cache.k, kv_cache.v
    past = k.shape[2] - query.shape[2]
    scores = query @ k.transpose(2, 3) / query.shape[-1] ** 0.5
    keep = torch.ones(query.shape[2], k.shape[2], dtype=torch.bool).tril(past)
    scores = scores.masked_fill(~keep, float("-inf"))
    return scores.softmax(-1) @ v, (k, v)


kv_cache.k = kv_cache.v = torch.zeros(1, 1, 0, 1)

# ==== wrong: only the keys are joined with the past, the values are only the new ones (raises an error with a cache)
# says:
import torch


def kv_cache(query, key, value, cache):
    if cache is not None:
        key = torch.cat([cache[0], key], dim=2)
    p = key.shape[2] - query.shape[2]
    mask = torch.ones(query.shape[2], key.shape[2], dtype=torch.bool).tril(p)
    scores = query @ key.transpose(2, 3) / key.shape[-1] ** 0.5
    return scores.masked_fill(~mask, float("-inf")).softmax(-1) @ value, (key, value)

# ==== wrong: forbidden scores are set to 0 before softmax instead of -inf
# says: The scores of future tokens become 0, a score
import torch


def kv_cache(query, key, value, cache):
    if cache is not None:
        key = torch.cat([cache[0], key], dim=2)
        value = torch.cat([cache[1], value], dim=2)
    p = key.shape[2] - query.shape[2]
    scores = query @ key.transpose(2, 3) / key.shape[-1] ** 0.5
    scores = scores.tril(diagonal=p)
    return scores.softmax(-1) @ value, (key, value)

# ==== wrong: the mask is set after softmax, the weights do not add up to 1
# says: The mask comes after the softmax: weights are taken
import torch


def kv_cache(query, key, value, cache):
    if cache is not None:
        key = torch.cat([cache[0], key], dim=2)
        value = torch.cat([cache[1], value], dim=2)
    past = key.shape[2] - query.shape[2]
    weights = (query @ key.transpose(2, 3) / query.shape[-1] ** 0.5).softmax(dim=-1)
    return weights.tril(past) @ value, (key, value)

# ==== wrong: only the output of the last new token is returned
# says: Only the last new token has an output. Each
import torch


def kv_cache(query, key, value, cache):
    if cache is not None:
        key = torch.cat([cache[0], key], dim=2)
        value = torch.cat([cache[1], value], dim=2)
    last = query[:, :, -1:]
    scores = last @ key.transpose(2, 3) / last.shape[-1] ** 0.5
    return scores.softmax(-1) @ value, (key, value)

# ==== wrong: the cache is kept in half precision, the past loses digits
# says: The cache is kept in another dtype than that
import torch


def kv_cache(query, key, value, cache):
    if cache is not None:
        key = torch.cat([cache[0].to(key.dtype), key], dim=2)
        value = torch.cat([cache[1].to(value.dtype), value], dim=2)
    past = key.shape[2] - query.shape[2]
    scores = query @ key.transpose(2, 3) / query.shape[-1] ** 0.5
    mask = torch.ones(scores.shape[-2:], dtype=torch.bool).tril(past)
    out = scores.masked_fill(~mask, float("-inf")).softmax(-1) @ value
    return out, (key.to(torch.bfloat16), value.to(torch.bfloat16))

# ==== right: tril with the past as diagonal
import torch
from torch import Tensor


def kv_cache(query: Tensor, key: Tensor, value: Tensor, cache):
    past = 0
    if cache is not None:
        past = cache[0].shape[2]
        key = torch.cat([cache[0], key], dim=2)
        value = torch.cat([cache[1], value], dim=2)
    new, total = query.shape[2], key.shape[2]
    mask = torch.ones(new, total, dtype=torch.bool, device=query.device).tril(past)
    scores = query @ key.transpose(-2, -1) / query.shape[-1] ** 0.5
    weights = scores.masked_fill(~mask, float("-inf")).softmax(dim=-1)
    return weights @ value, (key, value)

# ==== right: a loop over the new tokens, each looks at all up to itself
import torch


def kv_cache(query, key, value, cache):
    keys, values = (key[:, :, :0], value[:, :, :0]) if cache is None else cache
    outputs = []
    for t in range(query.shape[2]):
        keys = torch.cat([keys, key[:, :, t : t + 1]], dim=2)
        values = torch.cat([values, value[:, :, t : t + 1]], dim=2)
        q = query[:, :, t]
        w = torch.einsum("bhd,bhkd->bhk", q, keys).div(q.shape[-1] ** 0.5).softmax(-1)
        outputs.append(torch.einsum("bhk,bhkd->bhd", w, values))
    return torch.stack(outputs, dim=2), (keys, values)

# ==== right: in float64, with positions and torch.where
import torch


def kv_cache(query, key, value, cache):
    if cache is None:
        K, V = key, value
    else:
        K, V = map(lambda pair: torch.cat(pair, dim=-2), zip(cache, (key, value)))
    k_pos = torch.arange(K.shape[-2], device=K.device)
    q_pos = k_pos[K.shape[-2] - query.shape[-2] :]
    s = torch.einsum("bhqd,bhkd->bhqk", query.double(), K.double()) * query.shape[-1] ** -0.5
    s = torch.where(k_pos <= q_pos[:, None], s, -torch.inf)
    e = (s - s.amax(-1, keepdim=True)).exp()
    out = torch.einsum("bhqk,bhkd->bhqd", e / e.sum(-1, keepdim=True), V.double())
    return out.to(query.dtype), (K, V)
