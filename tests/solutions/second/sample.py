# ==== wrong: top-p works on the probabilities of all tokens, they are not renormalized after top-k
# says: top_p is held against probabilities of the whole vocabulary.
import torch


def sample(logits, temperature, top_k, top_p, u):
    probs = (logits / temperature).softmax(-1)
    p, order = probs.sort(dim=-1, descending=True)
    rank = torch.arange(p.shape[-1])
    keep = (rank < top_k) & (p.cumsum(-1) - p < top_p)
    p = p * keep
    p = p / p.sum(-1, keepdim=True)
    out = torch.zeros_like(probs).scatter(-1, order, p)
    hit = (out.cumsum(-1) > u[:, None]) & (out > 0)
    last = out.shape[-1] - 1 - (out > 0).flip(-1).long().argmax(-1)
    token = torch.where(hit.any(-1), hit.long().argmax(-1), last)
    return out, token

# ==== wrong: the token with which the sum reaches top_p is cut off too (the first always kept)
# says:
import torch


def sample(logits, temperature, top_k, top_p, u):
    x = logits / temperature
    k = min(top_k, x.size(-1))
    kth = x.topk(k).values[:, -1:]
    x = x.masked_fill(x < kth, float("-inf"))
    probs = torch.softmax(x, dim=-1)
    sp, si = torch.sort(probs, descending=True)
    remove = sp.cumsum(dim=-1) > top_p
    remove[:, 0] = False
    sp = sp.masked_fill(remove, 0.0)
    sp = sp / sp.sum(dim=-1, keepdim=True)
    probs = torch.zeros_like(probs).scatter_(1, si, sp)
    tokens = []
    for row, r in zip(probs, u):
        c = 0.0
        chosen = 0
        for i in range(len(row)):
            if row[i] > 0:
                chosen = i
                c = c + row[i]
                if c > r:
                    break
        tokens.append(chosen)
    return probs, torch.tensor(tokens)

# ==== wrong: the token is drawn in the order of likelihood instead of the order of ids
# says: The draw goes through the sorted row, the likeliest
import torch


def sample(logits, temperature, top_k, top_p, u):
    z, order = torch.sort(logits / temperature, dim=-1, descending=True)
    z[:, top_k:] = -torch.inf
    p = z.softmax(-1)
    before = p.cumsum(-1) - p
    p = torch.where(before < top_p, p, torch.zeros_like(p))
    p = p / p.sum(-1, keepdim=True)
    place = (p.cumsum(-1) <= u.unsqueeze(-1)).sum(-1)
    place = torch.minimum(place, (p > 0).sum(-1) - 1)
    token = order.gather(-1, place[:, None]).squeeze(-1)
    return torch.zeros_like(p).scatter(-1, order, p), token

# ==== wrong: two: multiplied by the temperature instead of divided, and not divided by the sum after top-p
# says: The logits are multiplied by the temperature. Divided by
import torch


def sample(logits, temperature, top_k, top_p, u):
    logits = logits * temperature
    values, ids = logits.topk(min(top_k, logits.shape[1]), dim=1)
    p = torch.softmax(values, dim=1)
    earlier = torch.cat([torch.zeros_like(p[:, :1]), p.cumsum(1)[:, :-1]], dim=1)
    p[earlier >= top_p] = 0
    full = torch.zeros_like(logits)
    full.scatter_(1, ids, p)
    tok = []
    for b in range(len(u)):
        cs = full[b].cumsum(0)
        found = torch.nonzero((cs > u[b]) & (full[b] > 0))
        tok.append(int(found[0]) if len(found) else int(full[b].nonzero()[-1]))
    return full, torch.tensor(tok)

# ==== wrong: two: u is ignored, the likeliest token is taken, and the mask of top-p stays in sorted order instead of going back to the ids
# says:
import torch


def sample(logits, temperature, top_k, top_p, u):
    scaled = logits / temperature
    if top_k < scaled.shape[-1]:
        limit = torch.topk(scaled, top_k)[0][..., -1, None]
        scaled = torch.where(scaled < limit, torch.tensor(float("-inf"), dtype=scaled.dtype), scaled)
    probs = scaled.softmax(dim=-1)
    sorted_probs, _ = probs.sort(dim=-1, descending=True)
    cut = (sorted_probs.cumsum(-1) - sorted_probs) >= top_p
    probs = probs.masked_fill(cut, 0.0)
    probs = probs / probs.sum(-1, keepdim=True).clamp(min=1e-9)
    return probs, probs.argmax(dim=-1)

# ==== wrong: the first sum that is at or above u is taken, so u = 0 draws id 0 even if its probability is 0
# says: With u = 0 a token of probability 0
import torch


def sample(logits, temperature, top_k, top_p, u):
    n = logits.shape[-1]
    z = logits / temperature
    rank = (z[:, None, :] > z[:, :, None]).sum(-1)
    z = z.masked_fill(rank >= top_k, -torch.inf)
    p = z.softmax(-1)
    likelier = (z[:, None, :] > z[:, :, None])
    mass = (likelier * p[:, None, :]).sum(-1)
    p = p * (mass < top_p)
    p = p / p.sum(-1, keepdim=True)
    tokens = torch.searchsorted(p.cumsum(-1), u.to(p.dtype)[:, None]).squeeze(-1)
    return p, tokens.clamp(max=n - 1)

# ==== right: sort, cut and scatter back
import torch


def sample(logits, temperature, top_k, top_p, u):
    z, order = (logits / temperature).sort(dim=-1, descending=True)
    z = z[:, :top_k]
    p = z.softmax(-1)
    p = p * (p.cumsum(-1) - p < top_p)
    p[:, 0] = p[:, 0].clamp(min=torch.finfo(p.dtype).tiny)
    p = p / p.sum(-1, keepdim=True)
    probs = torch.zeros_like(logits).scatter(1, order[:, : z.shape[1]], p)
    positive = probs > 0
    ok = positive & (probs.cumsum(-1) > u[:, None])
    last = torch.where(positive, torch.arange(probs.shape[1]), -1).max(-1).values
    return probs, torch.where(ok.any(-1), ok.int().argmax(-1), last)

# ==== right: row by row with lists
import math
import torch


def sample(logits, temperature, top_k, top_p, u):
    all_probs, tokens = [], []
    for row, r in zip(logits.tolist(), u.tolist()):
        row = [x / temperature for x in row]
        order = sorted(range(len(row)), key=lambda i: -row[i])[:top_k]
        e = {i: math.exp(row[i] - row[order[0]]) for i in order}
        total = sum(e.values())
        kept, before = {}, 0.0
        for i in order:
            if before >= top_p:
                break
            kept[i] = e[i] / total
            before += kept[i]
        norm = sum(kept.values())
        probs = [kept.get(i, 0.0) / norm for i in range(len(row))]
        acc, token = 0.0, None
        for i, p in enumerate(probs):
            if p == 0:
                continue
            acc += p
            token = i
            if acc > r:
                break
        all_probs.append(probs)
        tokens.append(token)
    return torch.tensor(all_probs, dtype=logits.dtype), torch.tensor(tokens, dtype=torch.int64)
