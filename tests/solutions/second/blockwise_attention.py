# ==== wrong: sums of earlier blocks are not rescaled when the largest score grows
# says: What was summed before is never scaled: when a
import torch


def blockwise_attention(query, key, value, mask, block_size):
    b, h, q, d = query.shape
    m = torch.full((b, h, q, 1), torch.finfo(query.dtype).min, dtype=query.dtype)
    l = torch.zeros(b, h, q, 1, dtype=query.dtype)
    acc = torch.zeros(b, h, q, value.shape[-1], dtype=query.dtype)
    for i in range(0, key.shape[2], block_size):
        k, v, mk = key[:, :, i:i + block_size], value[:, :, i:i + block_size], mask[..., i:i + block_size]
        s = (query @ k.transpose(-2, -1) / d ** 0.5).masked_fill(~mk, torch.finfo(query.dtype).min)
        m = torch.maximum(m, s.amax(-1, keepdim=True))
        p = torch.exp(s - m) * mk
        l = l + p.sum(-1, keepdim=True)
        acc = acc + p @ v
    return acc / torch.where(l == 0, torch.ones_like(l), l)

# ==== wrong: a query without keys gets NaN (-inf minus -inf, 0/0), also when only its first block is masked
# says: A query that has seen nothing yet has the
import torch


def blockwise_attention(query, key, value, mask, block_size):
    scale = query.shape[-1] ** -0.5
    largest = torch.full(query.shape[:-1] + (1,), float("-inf"), dtype=query.dtype)
    total = torch.zeros_like(largest)
    out = torch.zeros(*query.shape[:-1], value.shape[-1], dtype=query.dtype)
    for k, v, m in zip(key.split(block_size, 2), value.split(block_size, 2), mask.split(block_size, -1)):
        scores = (query @ k.mT * scale).masked_fill(~m, float("-inf"))
        new = torch.maximum(largest, scores.max(-1, keepdim=True).values)
        factor = torch.exp(largest - new)
        power = torch.exp(scores - new)
        total = total * factor + power.sum(-1, keepdim=True)
        out = out * factor + power @ v
        largest = new
    return out / total

# ==== wrong: the last keys are left out when their number is not a multiple of block_size
# says: The last keys are lost where block_size does not
import torch


def blockwise_attention(query, key, value, mask, block_size):
    B, H, Q, D = query.shape
    low = -1e30
    top = query.new_full((B, H, Q), low)
    den = query.new_zeros(B, H, Q)
    num = torch.zeros_like(query[..., :1]).expand(B, H, Q, value.shape[-1])
    for j in range(key.shape[2] // block_size):
        sl = slice(j * block_size, (j + 1) * block_size)
        s = torch.einsum("bhqd,bhkd->bhqk", query, key[:, :, sl]) / D ** 0.5
        s = s.masked_fill(~mask[..., sl], low)
        new_top = torch.maximum(top, s.amax(-1)).detach()
        p = torch.exp(s - new_top[..., None]).masked_fill(~mask[..., sl], 0.0)
        c = torch.exp(top - new_top)
        den = den * c + p.sum(-1)
        num = num * c[..., None] + torch.einsum("bhqk,bhkd->bhqd", p, value[:, :, sl])
        top = new_top
    return num / den.clamp(min=1e-30)[..., None]

# ==== wrong: two: each block has its own softmax and the blocks are averaged, and the scores are not scaled
# says:
import torch


def blockwise_attention(query, key, value, mask, block_size):
    results = []
    for start in range(0, key.size(2), block_size):
        end = start + block_size
        s = query @ key[:, :, start:end].transpose(2, 3)
        mk = mask[:, :, :, start:end]
        s = s.masked_fill(~mk, -1e9)
        w = s.softmax(-1).masked_fill(~mk, 0.0)
        results.append(w @ value[:, :, start:end])
    return sum(results) / len(results)

# ==== wrong: two: the sum is rescaled but not the values, and a query without keys gets the mean of all values
# says: The output so far is not scaled when a
import torch


def blockwise_attention(query, key, value, mask, block_size):
    n = key.shape[-2]
    big = None
    for a in range(0, n, block_size):
        z = min(a + block_size, n)
        s = query @ key[..., a:z, :].transpose(-2, -1) / query.shape[-1] ** 0.5
        s = torch.where(mask[..., a:z], s, torch.tensor(-1e9, dtype=s.dtype))
        block_max = s.max(dim=-1, keepdim=True)[0]
        if big is None:
            big = block_max
            e = (s - big).exp()
            norm = e.sum(-1, keepdim=True)
            vals = e @ value[..., a:z, :]
        else:
            nb = torch.max(big, block_max)
            e = (s - nb).exp()
            norm = norm * (big - nb).exp() + e.sum(-1, keepdim=True)
            vals = vals + e @ value[..., a:z, :]
            big = nb
    return vals / norm

# ==== wrong: zeros are put in place of NaN at the end, so the output is right but the gradients are NaN
# says: 0 / 0 is computed where a query may
import torch


def blockwise_attention(query, key, value, mask, block_size):
    d = query.shape[-1]
    best = query.new_full((*query.shape[:3], 1), -torch.inf)
    norm = query.new_zeros((*query.shape[:3], 1))
    acc = query.new_zeros((*query.shape[:3], value.shape[-1]))
    for i in range(0, key.shape[2], block_size):
        s = query @ key[:, :, i:i + block_size].transpose(-1, -2) / d ** 0.5
        s = s.masked_fill(~mask[..., i:i + block_size], -torch.inf)
        new = torch.maximum(best, s.amax(-1, keepdim=True))
        old_factor = torch.nan_to_num(torch.exp(best - new), nan=0.0)
        p = torch.nan_to_num(torch.exp(s - new), nan=0.0)
        norm = norm * old_factor + p.sum(-1, keepdim=True)
        acc = acc * old_factor + p @ value[:, :, i:i + block_size]
        best = new
    return torch.where(norm > 0, acc / norm, torch.zeros_like(acc))

# ==== right: running maximum, kept finite
import torch


def blockwise_attention(query, key, value, mask, block_size):
    scale = query.shape[-1] ** -0.5
    shape = query.shape[:-1]
    low = torch.finfo(query.dtype).min / 4
    top = query.new_full((*shape, 1), low)
    den = query.new_zeros((*shape, 1))
    num = query.new_zeros((*shape, value.shape[-1]))
    for k, v, m in zip(key.split(block_size, 2), value.split(block_size, 2), mask.split(block_size, 3)):
        s = (query @ k.transpose(-2, -1) * scale).masked_fill(~m, low)
        new = torch.maximum(top, s.amax(-1, keepdim=True).detach())
        p = torch.exp(s - new).masked_fill(~m, 0.0)
        c = torch.exp(top - new)
        den, num, top = den * c + p.sum(-1, keepdim=True), num * c + p @ v, new
    return num / den.masked_fill(den == 0, 1.0)

# ==== right: two passes over the blocks, first the largest score, then the sums
import torch


def blockwise_attention(query, key, value, mask, block_size):
    d, n = query.shape[-1], key.shape[2]

    def blocks():
        for i in range(0, n, block_size):
            s = torch.einsum("bhqd,bhkd->bhqk", query / d ** 0.5, key[:, :, i:i + block_size])
            yield s.masked_fill(~mask[..., i:i + block_size], -torch.inf), value[:, :, i:i + block_size]

    with torch.no_grad():
        top = torch.stack([s.amax(-1, keepdim=True) for s, _ in blocks()]).amax(0)
        top = torch.where(top == -torch.inf, torch.zeros_like(top), top)
    total, out = 0, 0
    for s, v in blocks():
        e = torch.exp(s - top)
        total = total + e.sum(-1, keepdim=True)
        out = out + torch.einsum("bhqk,bhkd->bhqd", e, v)
    return out / torch.where(total == 0, torch.ones_like(total), total)
