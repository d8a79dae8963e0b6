# ==== wrong: a query that sees nothing gets NaN instead of zeros
# says: A query that may see no key gives 0
import torch
from torch import Tensor


def blockwise_attention(query: Tensor, key: Tensor, value: Tensor, mask: Tensor, block_size: int) -> Tensor:
    b, h, q, d = query.shape
    m = torch.full((b, h, q, 1), -1e30)
    l = torch.zeros(b, h, q, 1)
    o = torch.zeros(b, h, q, d)
    for s in range(0, key.shape[2], block_size):
        k, v = key[:, :, s : s + block_size], value[:, :, s : s + block_size]
        allowed = mask[..., s : s + block_size]
        scores = (query @ k.transpose(-1, -2) / d**0.5).masked_fill(~allowed, float("-inf"))
        new_m = torch.maximum(m, scores.amax(-1, keepdim=True))
        p = torch.exp(scores - new_m)
        c = torch.exp(m - new_m)
        l = l * c + p.sum(-1, keepdim=True)
        o = o * c + p @ v
        m = new_m
    return o / l

# ==== wrong: the output and the sum so far are not rescaled when the largest score grows
# says: 0 / 0 is computed where a query may
import torch


def blockwise_attention(query, key, value, mask, block_size):
    scale = query.shape[-1] ** -0.5
    out = torch.zeros_like(query)
    total = torch.zeros_like(query[..., :1])
    largest = torch.full_like(total, -1e30)
    for start in range(0, key.size(2), block_size):
        stop = start + block_size
        s = torch.einsum("bhqd,bhkd->bhqk", query, key[:, :, start:stop]) * scale
        ok = mask[:, :, :, start:stop]
        s = s.masked_fill(~ok, -1e30)
        largest = torch.maximum(largest, s.max(dim=-1, keepdim=True).values)
        w = torch.exp(s - largest) * ok
        total = total + w.sum(dim=-1, keepdim=True)
        out = out + w @ value[:, :, start:stop]
    return torch.where(total > 0, out / total, torch.zeros_like(out))

# ==== wrong: softmax in each block by itself, and the mean over the blocks
# says: Each block has a softmax of its own, and
import torch


def blockwise_attention(query, key, value, mask, block_size):
    outs = []
    for k, v, m in zip(key.split(block_size, 2), value.split(block_size, 2), mask.split(block_size, 3)):
        scores = query @ k.mT / query.shape[-1] ** 0.5
        scores = scores.masked_fill(~m, float("-inf"))
        outs.append(torch.nan_to_num(scores.softmax(-1)) @ v)
    return torch.stack(outs).mean(dim=0)

# ==== wrong: a last block that is not full is dropped
# says: The last keys are lost where block_size does not
import torch


def blockwise_attention(query, key, value, mask, block_size):
    n_blocks = key.shape[2] // block_size
    num = torch.zeros_like(query)
    den = torch.zeros_like(query[..., :1])
    top = torch.full_like(den, float("-inf"))
    for i in range(n_blocks):
        cols = slice(i * block_size, (i + 1) * block_size)
        sc = query @ key[:, :, cols].transpose(2, 3) / query.shape[-1] ** 0.5
        sc = torch.where(mask[..., cols], sc, -torch.inf)
        new = torch.maximum(top, sc.amax(-1, keepdim=True))
        safe = torch.where(new == -torch.inf, 0.0, new)
        p = (sc - safe).exp()
        r = (top - safe).exp()
        num = num * r + p @ value[:, :, cols]
        den = den * r + p.sum(-1, keepdim=True)
        top = new
    return torch.where(den > 0, num / den.clamp(min=1e-30), 0.0)

# ==== wrong: a block that a query may not see at all makes -inf - -inf = NaN, although it sees keys in others
# says: A query that has seen nothing yet has the
import torch


def blockwise_attention(query, key, value, mask, block_size):
    B, H, Q, D = query.shape
    running_max = query.new_full((B, H, Q), float("-inf"))
    running_sum = query.new_zeros((B, H, Q))
    acc = query.new_zeros((B, H, Q, D))
    for j in range(0, key.shape[2], block_size):
        s = query @ key[:, :, j : j + block_size].transpose(-2, -1) / D**0.5
        s = s.masked_fill(~mask[:, :, :, j : j + block_size], float("-inf"))
        new_max = torch.maximum(running_max, s.max(-1).values)
        p = torch.exp(s - new_max[..., None])
        alpha = torch.exp(running_max - new_max)
        running_sum = alpha * running_sum + p.sum(-1)
        acc = alpha[..., None] * acc + p @ value[:, :, j : j + block_size]
        running_max = new_max
    out = acc / running_sum[..., None]
    dead = ~mask.any(-1, keepdim=True)
    return out.masked_fill(dead, 0.0)

# ==== wrong: no largest score is taken off, exp overflows with large scores
# says: 0 / 0 is computed where a query may
import torch


def blockwise_attention(query, key, value, mask, block_size):
    numerator = torch.zeros_like(query)
    denominator = torch.zeros_like(query[..., :1])
    for start in range(0, key.shape[-2], block_size):
        part = slice(start, start + block_size)
        e = torch.exp(query @ key[..., part, :].transpose(-2, -1) / query.shape[-1] ** 0.5)
        e = e * mask[..., part]
        numerator += e @ value[..., part, :]
        denominator += e.sum(-1, keepdim=True)
    return torch.where(denominator > 0, numerator / denominator, torch.zeros_like(numerator))

# ==== wrong: a query that sees nothing gets the mean of all values (finite fill value)
# says: Masked scores become a large negative number: a query
import torch


def blockwise_attention(query, key, value, mask, block_size):
    d = query.shape[-1]
    m = torch.full(query.shape[:-1], -1e9, dtype=query.dtype)
    l = torch.zeros_like(m)
    o = torch.zeros_like(query)
    for i in range(0, key.shape[2], block_size):
        s = torch.matmul(query, key[:, :, i : i + block_size].transpose(2, 3)) / d**0.5
        s = s.masked_fill(mask[..., i : i + block_size] == 0, -1e9)
        m2 = torch.maximum(m, s.amax(-1))
        e = (s - m2.unsqueeze(-1)).exp()
        f = (m - m2).exp()
        l = l * f + e.sum(-1)
        o = o * f.unsqueeze(-1) + e @ value[:, :, i : i + block_size]
        m = m2
    return o / l.unsqueeze(-1)

# ==== wrong: the output so far is rescaled, the sum so far is not
# says: The sum of the powers is not scaled when
import torch


def blockwise_attention(query, key, value, mask, block_size):
    best = torch.full_like(query[..., :1], -1e30)
    norm = torch.zeros_like(best)
    out = torch.zeros_like(query)
    blocks = range(0, key.shape[2], block_size)
    for a in blocks:
        z = min(a + block_size, key.shape[2])
        keep = mask[..., a:z]
        scores = query @ key[..., a:z, :].mT * query.shape[-1] ** -0.5
        scores = torch.where(keep, scores, torch.full_like(scores, -1e30))
        now = torch.maximum(best, scores.amax(-1, True))
        p = torch.where(keep, (scores - now).exp(), 0.0)
        out = out * (best - now).exp() + p @ value[..., a:z, :]
        norm = norm + p.sum(-1, True)
        best = now
    return out / norm.masked_fill(norm == 0, 1.0)

# ==== wrong: the scores are not divided by the root of the width
# says: The scores are not divided by √d: d is
import torch


def blockwise_attention(query, key, value, mask, block_size):
    m = torch.full_like(query[..., :1], -1e30)
    l = torch.zeros_like(m)
    acc = torch.zeros_like(query)
    pieces = zip(
        torch.split(key, block_size, dim=-2),
        torch.split(value, block_size, dim=-2),
        torch.split(mask, block_size, dim=-1),
    )
    for k, v, ok in pieces:
        s = torch.where(ok, query @ k.transpose(-2, -1), -1e30)
        m_new = torch.max(m, s.amax(dim=-1, keepdim=True))
        p = torch.exp(s - m_new) * ok
        corr = torch.exp(m - m_new)
        l = corr * l + p.sum(dim=-1, keepdim=True)
        acc = corr * acc + p @ v
        m = m_new
    return acc / torch.where(l > 0, l, 1.0)

# ==== wrong: the correction has the wrong sign, exp(new - old)
# says: 0 / 0 is computed where a query may
import torch


def blockwise_attention(query, key, value, mask, block_size):
    neg = -1e4
    big = torch.full_like(query[..., :1], neg)
    started = torch.zeros_like(big, dtype=torch.bool)
    tot = torch.zeros_like(big)
    out = torch.zeros_like(query)
    for i in range(0, key.shape[2], block_size):
        ok = mask[..., i : i + block_size].expand(*query.shape[:3], -1)
        s = query @ key[:, :, i : i + block_size].mT / query.shape[-1] ** 0.5
        s = s.masked_fill(~ok, neg)
        new = torch.maximum(big, s.amax(-1, keepdim=True))
        fix = torch.where(started, torch.exp(new - big), torch.zeros_like(big))
        p = torch.exp(s - new).masked_fill(~ok, 0.0)
        out = out * fix + p @ value[:, :, i : i + block_size]
        tot = tot * fix + p.sum(-1, keepdim=True)
        big = new
        started = started | ok.any(-1, keepdim=True)
    return torch.where(tot > 0, out / tot, torch.zeros_like(out))

# ==== wrong: every block is masked with the first columns of the mask, the mask is not moved on
# says: 0 / 0 is computed where a query may
import torch


def blockwise_attention(query, key, value, mask, block_size):
    d = query.shape[-1]
    m = torch.full_like(query[..., :1], -1e30)
    l, o = torch.zeros_like(m), torch.zeros_like(query)
    for k, v in zip(key.split(block_size, dim=2), value.split(block_size, dim=2)):
        ok = mask[..., : k.shape[2]]
        s = (query @ k.transpose(2, 3) / d**0.5).masked_fill(~ok, -1e30)
        n = torch.maximum(m, s.max(-1, keepdim=True)[0])
        e = torch.exp(s - n) * ok.float()
        c = torch.exp(m - n)
        l, o, m = l * c + e.sum(-1, keepdim=True), o * c + e @ v, n
    return torch.where(l == 0, torch.zeros_like(o), o / l)

# ==== wrong: the largest score starts at 0, very negative scores all underflow and the output becomes 0
# says: 0 / 0 is computed where a query may
import torch


def blockwise_attention(query, key, value, mask, block_size):
    peak = torch.zeros_like(query[..., :1])
    weight = torch.zeros_like(peak)
    out = torch.zeros_like(query)
    for start in range(0, key.shape[2], block_size):
        end = start + block_size
        s = query @ key[:, :, start:end].transpose(2, 3) / query.shape[-1] ** 0.5
        s = s.masked_fill(~mask[:, :, :, start:end], float("-inf"))
        new_peak = torch.maximum(peak, s.amax(-1, keepdim=True))
        p = torch.exp(s - new_peak)
        shrink = torch.exp(peak - new_peak)
        weight = weight * shrink + p.sum(-1, keepdim=True)
        out = out * shrink + p @ value[:, :, start:end]
        peak = new_peak
    return torch.where(weight > 0, out / weight, torch.zeros_like(out))

# ==== wrong: two mistakes: a last block that is not full is dropped, and a query that sees nothing gets NaN
# says:
import torch


def blockwise_attention(query, key, value, mask, block_size):
    m = torch.full_like(query[..., :1], -1e30)
    l = torch.zeros_like(m)
    o = torch.zeros_like(query)
    i = 0
    while i + block_size <= key.shape[2]:
        s = query @ key[:, :, i : i + block_size].mT / query.shape[-1] ** 0.5
        s = s.masked_fill(~mask[..., i : i + block_size], -torch.inf)
        n = torch.maximum(m, s.amax(-1, keepdim=True))
        p = (s - n).exp()
        l = l * (m - n).exp() + p.sum(-1, keepdim=True)
        o = o * (m - n).exp() + p @ value[:, :, i : i + block_size]
        m = n
        i += block_size
    return o / l

# ==== wrong: two mistakes: no scale, and no largest score is taken off (overflow)
# says: The scores are not divided by √d: d is
import torch


def blockwise_attention(query, key, value, mask, block_size):
    top, bottom = 0, 0
    for i in range(0, key.shape[2], block_size):
        w = torch.einsum("bhqd,bhkd->bhqk", query, key[:, :, i : i + block_size]).exp()
        w = w.masked_fill(~mask[..., i : i + block_size], 0)
        top = top + torch.einsum("bhqk,bhkd->bhqd", w, value[:, :, i : i + block_size])
        bottom = bottom + w.sum(dim=-1, keepdim=True)
    return torch.where(bottom == 0, torch.zeros_like(query), top / bottom)

# ==== wrong: two mistakes: softmax in each block by itself, and the blocks are added instead of weighted
# says: Each block has a softmax of its own, and
import torch


def blockwise_attention(query, key, value, mask, block_size):
    out = torch.zeros_like(query)
    for lo in range(0, key.shape[2], block_size):
        hi = lo + block_size
        ok = mask[:, :, :, lo:hi]
        s = query @ key[:, :, lo:hi].transpose(-1, -2) / query.shape[-1] ** 0.5
        w = s.masked_fill(~ok, -1e9).softmax(-1)
        w = w.masked_fill(~ok, 0.0)
        out += w @ value[:, :, lo:hi]
    return out

# ==== wrong: the polarity of the mask, True is taken for forbidden
# says: The mask is used upside down: what it allows
import torch


def blockwise_attention(query, key, value, mask, block_size):
    forbidden = mask
    m = torch.full_like(query[..., :1], -1e30)
    l = torch.zeros_like(m)
    o = torch.zeros_like(query)
    for i in range(0, key.shape[2], block_size):
        part = slice(i, i + block_size)
        bad = forbidden[..., part]
        s = query @ key[:, :, part].mT / query.shape[-1] ** 0.5
        s = s.masked_fill(bad, -1e30)
        n = torch.maximum(m, s.amax(-1, keepdim=True))
        p = torch.exp(s - n).masked_fill(bad, 0.0)
        f = torch.exp(m - n)
        l, o, m = l * f + p.sum(-1, keepdim=True), o * f + p @ value[:, :, part], n
    return o / l.clamp(min=1e-20)

# ==== wrong: forbidden scores are set to 0 instead of -inf
# says: Masked scores become 0. That is a score like
import torch


def blockwise_attention(query, key, value, mask, block_size):
    m = torch.full_like(query[..., :1], -1e30)
    l = torch.zeros_like(m)
    o = torch.zeros_like(query)
    for i in range(0, key.shape[2], block_size):
        part = slice(i, i + block_size)
        s = query @ key[:, :, part].mT / query.shape[-1] ** 0.5 * mask[..., part]
        n = torch.maximum(m, s.amax(-1, keepdim=True))
        p = torch.exp(s - n)
        f = torch.exp(m - n)
        l, o, m = l * f + p.sum(-1, keepdim=True), o * f + p @ value[:, :, part], n
    return (o / l) * mask.any(-1, keepdim=True)

# ==== wrong: one largest score for all queries and heads, queries with much smaller scores underflow to 0
# says:
import torch


def blockwise_attention(query, key, value, mask, block_size):
    m = torch.tensor(-1e30, dtype=query.dtype)
    l = torch.zeros_like(query[..., :1])
    o = torch.zeros_like(query)
    for i in range(0, key.shape[2], block_size):
        ok = mask[..., i : i + block_size]
        s = query @ key[:, :, i : i + block_size].mT / query.shape[-1] ** 0.5
        s = torch.where(ok, s, -1e30)
        n = torch.maximum(m, s.max())
        p = torch.exp(s - n) * ok
        f = torch.exp(m - n)
        l = l * f + p.sum(-1, keepdim=True)
        o = o * f + p @ value[:, :, i : i + block_size]
        m = n
    return torch.where(l > 0, o / l, torch.zeros_like(o))

# ==== wrong: the last block is moved back to be full, so its first keys are counted twice
# says: 0 / 0 is computed where a query may
import torch


def blockwise_attention(query, key, value, mask, block_size):
    n_keys = key.shape[2]
    size = min(block_size, n_keys)
    m = torch.full_like(query[..., :1], -1e30)
    l, o = torch.zeros_like(m), torch.zeros_like(query)
    for i in range(0, n_keys, size):
        i = min(i, n_keys - size)
        k, v, ok = key[:, :, i : i + size], value[:, :, i : i + size], mask[..., i : i + size]
        s = torch.where(ok, query @ k.mT / query.shape[-1] ** 0.5, -1e30)
        new = torch.maximum(m, s.amax(-1, keepdim=True))
        p = torch.exp(s - new) * ok
        f = torch.exp(m - new)
        l, o, m = l * f + p.sum(-1, keepdim=True), o * f + p @ v, new
    return torch.where(l > 0, o / l, torch.zeros_like(o))

# ==== wrong: the output is already divided by the sum in each block and then rescaled as if it were not
# says: The output is divided by the sum of the
import torch


def blockwise_attention(query, key, value, mask, block_size):
    m = torch.full_like(query[..., :1], -1e30)
    l, o = torch.zeros_like(m), torch.zeros_like(query)
    for i in range(0, key.shape[2], block_size):
        ok = mask[..., i : i + block_size]
        s = torch.where(ok, query @ key[:, :, i : i + block_size].mT / query.shape[-1] ** 0.5, -1e30)
        new = torch.maximum(m, s.amax(-1, keepdim=True))
        p = torch.exp(s - new) * ok
        f = torch.exp(m - new)
        l = l * f + p.sum(-1, keepdim=True)
        o = (o * f + p @ value[:, :, i : i + block_size]) / l.clamp(min=1e-20)
        m = new
    return o

# ==== wrong: the mask of the first batch row and the first head is used for all
# says: 0 / 0 is computed where a query may
import torch


def blockwise_attention(query, key, value, mask, block_size):
    allowed = mask[0, 0]
    m = torch.full_like(query[..., :1], -1e30)
    l, o = torch.zeros_like(m), torch.zeros_like(query)
    for i in range(0, key.shape[2], block_size):
        ok = allowed[:, i : i + block_size]
        s = torch.where(ok, query @ key[:, :, i : i + block_size].mT / query.shape[-1] ** 0.5, -1e30)
        new = torch.maximum(m, s.amax(-1, keepdim=True))
        p = torch.exp(s - new) * ok
        f = torch.exp(m - new)
        l, o, m = l * f + p.sum(-1, keepdim=True), o * f + p @ value[:, :, i : i + block_size], new
    return torch.where(l > 0, o / l, torch.zeros_like(o))

# ==== wrong: not block by block, the matrix of all scores is made at once and block_size is ignored
# says: A tensor of 262,144 numbers was made, as many as there are
import torch


def blockwise_attention(query, key, value, mask, block_size):
    scores = query @ key.transpose(-2, -1) / query.shape[-1] ** 0.5
    scores = scores.masked_fill(~mask, float("-inf"))
    weights = scores.softmax(dim=-1).nan_to_num(0.0)
    return weights @ value

# ==== right: running maximum, sum and output
import torch
from torch import Tensor


def blockwise_attention(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor, block_size: int
) -> Tensor:
    largest = torch.full_like(query[..., :1], float("-inf"))
    total = torch.zeros_like(largest)
    output = torch.zeros_like(query)
    for start in range(0, key.shape[2], block_size):
        block = slice(start, start + block_size)
        scores = query @ key[:, :, block].transpose(-2, -1) / query.shape[-1] ** 0.5
        scores = scores.masked_fill(~mask[..., block], float("-inf"))
        new = torch.maximum(largest, scores.amax(dim=-1, keepdim=True))
        safe = new.masked_fill(new == float("-inf"), 0.0)
        powers = torch.exp(scores - safe)
        shrink = torch.exp(largest - safe)
        total = total * shrink + powers.sum(dim=-1, keepdim=True)
        output = output * shrink + powers @ value[:, :, block]
        largest = new
    return output / total.clamp(min=1.0)

# ==== wrong: by the docstring of today; else right: two passes over the blocks, first the largest score, then the sums, in float64
# says: 0 / 0 is computed where a query may
import torch


def blockwise_attention(query, key, value, mask, block_size):
    q = query.double() * query.shape[-1] ** -0.5
    blocks = list(
        zip(
            key.double().split(block_size, dim=2),
            value.double().split(block_size, dim=2),
            mask.split(block_size, dim=3),
        )
    )

    def scores(k, ok):
        return torch.where(ok, torch.einsum("bhqd,bhkd->bhqk", q, k), -torch.inf)

    top = torch.full_like(q[..., :1], -1e300)
    for k, _, ok in blocks:
        top = torch.maximum(top, scores(k, ok).amax(-1, keepdim=True))
    num, den = torch.zeros_like(q), torch.zeros_like(top)
    for k, v, ok in blocks:
        p = (scores(k, ok) - top).exp()
        num, den = num + torch.einsum("bhqk,bhkd->bhqd", p, v), den + p.sum(-1, keepdim=True)
    return torch.where(den > 0, num / den, 0.0).to(query.dtype)

# ==== right: a block gives (logsumexp, output), two of them are merged with a sigmoid
import torch


def one_block(q, k, v, ok):
    s = torch.where(ok, q @ k.mT / q.shape[-1] ** 0.5, -1e30)
    top = s.amax(dim=-1, keepdim=True)
    p = torch.exp(s - top) * ok
    z = p.sum(-1, keepdim=True)
    some = z > 0
    out = torch.where(some, p @ v / torch.where(some, z, 1.0), 0.0)
    return torch.where(some, top + torch.where(some, z, 1.0).log(), -1e30), out


def merge(left, right):
    (a, x), (b, y) = left, right
    t = torch.sigmoid(b - a)
    return torch.logaddexp(a, b), x * (1 - t) + y * t


def blockwise_attention(query, key, value, mask, block_size):
    state = (torch.full_like(query[..., :1], -1e30), torch.zeros_like(query))
    for i in range(0, key.shape[2], block_size):
        j = i + block_size
        state = merge(state, one_block(query, key[:, :, i:j], value[:, :, i:j], mask[..., i:j]))
    return state[1]
