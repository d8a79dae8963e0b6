# ==== wrong: the scores are divided by the root of d_model instead of the width of a head
# says: The scores are divided by the root of d_model.
from einops import rearrange


def multi_head_attention(x, memory, mask, w_query, w_key, w_value, w_output, num_heads):
    d_model = x.shape[-1]
    q = rearrange(x @ w_query.T, "b n (h w) -> b h n w", h=num_heads)
    k = rearrange(memory @ w_key.T, "b n (h w) -> b h n w", h=num_heads)
    v = rearrange(memory @ w_value.T, "b n (h w) -> b h n w", h=num_heads)
    scores = q @ k.transpose(-1, -2) / d_model ** 0.5
    weights = scores.masked_fill(~mask, float("-inf")).softmax(-1)
    return rearrange(weights @ v, "b h n w -> b n (h w)") @ w_output.T

# ==== wrong: the heads are merged by reshape without transposing back, which mixes tokens and heads
# says: The heads are merged without a transpose: the axis
import math
import torch
import torch.nn.functional as F


def multi_head_attention(x, memory, mask, w_query, w_key, w_value, w_output, num_heads):
    b, nq, d = x.shape
    nk = memory.shape[1]
    dk = d // num_heads
    Q = F.linear(x, w_query).view(b, nq, num_heads, dk).transpose(1, 2)
    K = F.linear(memory, w_key).view(b, nk, num_heads, dk).transpose(1, 2)
    V = F.linear(memory, w_value).view(b, nk, num_heads, dk).transpose(1, 2)
    A = torch.matmul(Q, K.transpose(-2, -1)) / math.sqrt(dk)
    A = torch.where(mask, A, torch.tensor(-math.inf, dtype=A.dtype))
    context = torch.matmul(torch.softmax(A, dim=-1), V)
    return F.linear(context.reshape(b, nq, d), w_output)

# ==== wrong: the heads are merged in the order (width heads) instead of side by side
# says, in part wrongly: The heads take every num_heads-th number of a vector
from einops import einsum, rearrange


def multi_head_attention(x, memory, mask, w_query, w_key, w_value, w_output, num_heads):
    def project(t, w):
        y = einsum(t, w, "b n i, o i -> b n o")
        return rearrange(y, "b n (heads width) -> b heads n width", heads=num_heads)

    q, k, v = project(x, w_query), project(memory, w_key), project(memory, w_value)
    scores = einsum(q, k, "b h q w, b h k w -> b h q k") * q.shape[-1] ** -0.5
    attn = scores.masked_fill(mask.logical_not(), float("-inf")).softmax(dim=-1)
    out = einsum(attn, v, "b h q k, b h k w -> b h q w")
    out = rearrange(out, "b heads n width -> b n (width heads)")
    return einsum(out, w_output, "b n i, o i -> b n o")

# ==== wrong: the output projection is forgotten
# says: The last projection is missing: w_output mixes what the
import torch


def multi_head_attention(x, memory, mask, w_query, w_key, w_value, w_output, num_heads):
    qs = torch.chunk(x @ w_query.t(), num_heads, dim=-1)
    ks = torch.chunk(memory @ w_key.t(), num_heads, dim=-1)
    vs = torch.chunk(memory @ w_value.t(), num_heads, dim=-1)
    outs = []
    for h in range(num_heads):
        m = mask[:, h] if mask.shape[1] > 1 else mask[:, 0]
        s = torch.baddbmm(torch.zeros(1, 1, 1, dtype=x.dtype), qs[h], ks[h].mT) / qs[h].shape[-1] ** 0.5
        p = s.masked_fill(~m, float("-inf")).softmax(-1)
        outs.append(p @ vs[h])
    return torch.cat(outs, dim=-1)

# ==== wrong: two mistakes: the projection matrices are not transposed (x @ W although stored as out, in), and masked scores are 1e-9 instead of -inf
# says: A weight is used as it is stored. Its
import torch


def heads(t, n):
    return t.unflatten(-1, (n, -1)).transpose(1, 2)


def multi_head_attention(x, memory, mask, w_query, w_key, w_value, w_output, num_heads):
    q = heads(x @ w_query, num_heads)
    k = heads(memory @ w_key, num_heads)
    v = heads(memory @ w_value, num_heads)
    scores = (q @ k.mT) / q.size(-1) ** 0.5
    scores = scores.masked_fill(mask == 0, 1e-9)
    y = torch.softmax(scores, dim=-1) @ v
    return y.transpose(1, 2).flatten(2) @ w_output

# ==== wrong: two mistakes: split by reshape without transpose (mixes tokens), and the scores are not scaled
# says: The heads are cut across tokens: a view into
import torch


def multi_head_attention(x, memory, mask, w_query, w_key, w_value, w_output, num_heads):
    B, T, C = x.shape
    S = memory.shape[1]
    q = (x @ w_query.T).reshape(B, num_heads, T, C // num_heads)
    k = (memory @ w_key.T).reshape(B, num_heads, S, C // num_heads)
    v = (memory @ w_value.T).reshape(B, num_heads, S, C // num_heads)
    att = q @ k.transpose(2, 3)
    att = att.masked_fill(~mask, -float("inf"))
    att = torch.softmax(att, dim=3)
    y = (att @ v).transpose(1, 2).reshape(B, T, C)
    return y @ w_output.T

# ==== right: with rearrange
from einops import rearrange


def multi_head_attention(x, memory, mask, w_query, w_key, w_value, w_output, num_heads):
    q, k, v = (
        rearrange(t @ w.T, "b n (h w) -> b h n w", h=num_heads)
        for t, w in ((x, w_query), (memory, w_key), (memory, w_value))
    )
    scores = q @ k.mT / q.shape[-1] ** 0.5
    weights = scores.masked_fill(~mask, float("-inf")).softmax(-1)
    return rearrange(weights @ v, "b h n w -> b n (h w)") @ w_output.T

# ==== right: head by head, each with its slice of the matrices, summed up
import torch


def multi_head_attention(x, memory, mask, w_query, w_key, w_value, w_output, num_heads):
    width = x.shape[-1] // num_heads
    total = torch.zeros_like(x)
    full = mask.expand(x.shape[0], num_heads, x.shape[1], memory.shape[1])
    for h in range(num_heads):
        part = slice(h * width, (h + 1) * width)
        q = x @ w_query[part].T
        k = memory @ w_key[part].T
        v = memory @ w_value[part].T
        s = torch.einsum("bqw,bkw->bqk", q, k) / width ** 0.5
        s = torch.where(full[:, h], s, -torch.inf)
        total = total + s.softmax(-1) @ v @ w_output[:, part].T
    return total
