"""Correct attentions, written in different ways: none of them may raise a false alarm.

Each is declared with what it takes and with the highest tier that it promises.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
from einops import einsum, rearrange
from torch import nn
from torch.nn import functional as F

from minitransformer import scaled_dot_product_attention
from minitransformer.checks import AttentionSubject

INF = float("inf")

CORRECT: list[tuple[AttentionSubject, str]] = []  # with the highest tier that it passes


def correct(tier: str, **declared: Any) -> Callable:
    """Enter an implementation in the list; a class is built without arguments."""

    def enter(implementation: Any) -> Any:
        fn = implementation() if isinstance(implementation, type) else implementation
        CORRECT.append((AttentionSubject(fn, implementation.__name__, **declared), tier))
        return implementation

    return enter


# ---- strict: nothing that padding holds can reach anything ---------------------------------------


correct("strict", refuses_misuse=True, dropout_flag="dropout_p")(scaled_dot_product_attention)


@correct("strict", causal_flag="is_causal", dropout_flag="dropout_p", dead_rows="any")
def torchs_with_clean_inputs(query, key, value, mask, is_causal=False, dropout_p=0.0):
    """A fused kernel, given nothing that it could stumble over."""
    if is_causal:
        mask = mask & torch.ones_like(mask).tril(mask.shape[-1] - mask.shape[-2])
    nobody = ~mask.any(dim=-2).unsqueeze(-1)
    alive = mask.any(dim=-1, keepdim=True)
    key, value = key.masked_fill(nobody, 0.0), value.masked_fill(nobody, 0.0)
    query = query.masked_fill(~alive, 0.0)
    output = F.scaled_dot_product_attention(query, key, value, mask | ~alive, dropout_p)
    return output.where(alive, output.new_tensor(0.5))


@correct("strict", dtypes=("float32", "float64"))
def allowed_keys_gathered(query, key, value, mask):
    """Ragged: each query is given only the keys that it may see; there is nothing to mask."""
    batch, heads, queries, width = query.shape
    mask = mask.expand(batch, heads, -1, -1)
    rows = []
    for b, h, i in torch.cartesian_prod(*map(torch.arange, (batch, heads, queries))).tolist():
        (allowed,) = mask[b, h, i].nonzero(as_tuple=True)
        keys, values = key[b, h, allowed], value[b, h, allowed]
        rows.append(F.softmax(keys @ query[b, h, i] / math.sqrt(width), dim=0) @ values)
    return torch.stack(rows).view(batch, heads, queries, -1)


@correct("strict", dtypes=("float32",), differentiable=False, layout="t d", mask_layout="q k")
def loops_in_plain_python(query, key, value, mask):
    """The definition, number by number: one sequence, no heads, no tensors."""
    keys, columns = key.tolist(), value.mT.tolist()
    output = []
    for q, allowed in zip(query.tolist(), mask.tolist(), strict=True):
        seen = [j for j, may in enumerate(allowed) if may]
        found = [dot(q, keys[j]) / math.sqrt(len(q)) for j in seen]
        raised = [math.exp(x - max(found)) for x in found]
        weights = [x / sum(raised) for x in raised]
        output.append([dot(weights, [column[j] for j in seen]) for column in columns])
    return torch.tensor(output, dtype=query.dtype)


def dot(a: list[float], b: list[float]) -> float:
    return sum((x * y for x, y in zip(a, b, strict=True)), start=0.0)


# ---- robust: queries that see nothing, large scores, half precision ------------------------------


@correct("robust")
def softmax_by_hand(query, key, value, mask):
    """exp(x - max) / sum, where max and sum run over the allowed keys only."""
    found = (query.double() @ key.double().mT) / query.shape[-1] ** 0.5
    found = found.masked_fill(~mask, torch.finfo(found.dtype).min)
    raised = (found - found.detach().amax(dim=-1, keepdim=True)).exp() * mask
    total = raised.sum(dim=-1, keepdim=True)
    return (raised / total.masked_fill(total == 0.0, 1.0)).to(value.dtype) @ value


@correct("robust")
def einsum_with_a_guard(query, key, value, mask):
    """-inf, except in rows that may see nothing; these are zeroed at the end."""
    alive = mask.any(dim=-1, keepdim=True)
    query = query / math.sqrt(query.shape[-1])
    found = einsum(query, key, "b h q d, b h k d -> b h q k")
    weights = found.masked_fill(~mask & alive, -INF).softmax(dim=-1)
    return einsum(weights, value, "b h q k, b h k d -> b h q d") * alive, weights * alive


@correct("robust", dtypes=("float32", "float64", "bfloat16"), layout="b t h d", mask_layout="b q k")
def online_softmax(query, key, value, mask, size=3):
    """Block by block of keys, with a running maximum, sum and output; heads after positions."""
    query, key, value = (rearrange(x, "b t h d -> b h t d") for x in (query, key, value))
    mask = mask.unsqueeze(1)
    highest = torch.full_like(query[..., :1], torch.finfo(query.dtype).min)
    total, output = 0.0 * highest.clamp(min=0.0), 0.0
    for start in range(0, key.shape[2], size):
        block = slice(start, start + size)
        found = query @ key[:, :, block].mT / query.shape[-1] ** 0.5
        found = found.masked_fill(~mask[..., block], -INF)
        higher = torch.maximum(highest, found.detach().amax(dim=-1, keepdim=True))
        weights, grown = (found - higher).exp(), (highest - higher).exp()
        total = total * grown + weights.sum(dim=-1, keepdim=True)
        output = output * grown + weights @ value[:, :, block]
        highest = higher
    return rearrange(output / total.masked_fill(total == 0.0, 1.0), "b h t d -> b t h d")


@correct("robust", mask_layout="b k", mask_values="int")
def padding_of_the_keys(query, key, value, attention_mask):
    """Takes the tokenizer's attention_mask as it is: 1 and 0 for each key."""
    mask = attention_mask.bool()[:, None, None, :]
    alive = mask.any(dim=-1, keepdim=True)
    found = query / query.shape[-1] ** 0.5 @ key.mT
    return (found.masked_fill(~mask & alive, -INF).softmax(dim=-1) * alive) @ value


@correct("robust", mask_values="additive", dead_rows="any", dtypes=("float32", "float64"))
def additive_mask(query, key, value, bias):
    """0 and -inf, added; a row of nothing but -inf counts as one of zeros."""
    dead = (bias == -INF).all(dim=-1, keepdim=True)
    return (query @ key.mT / query.shape[-1] ** 0.5 + bias.masked_fill(dead, 0.0)).softmax(
        -1
    ) @ value


@correct("robust", dtypes=("float64",), layout="b t d", mask_layout="b q k", mask_means="ignore")
def float64_without_heads(query, key, value, hidden):
    """One head, double precision only, and a mask that says what to hide."""
    dead = hidden.all(dim=-1, keepdim=True)
    found = torch.bmm(query, key.mT) / math.sqrt(query.shape[-1])
    weights = found.masked_fill(hidden & ~dead, -INF).softmax(dim=-1)
    return torch.bmm(weights.masked_fill(dead, 0.0), value)


# ---- core: right for ordinary users --------------------------------------------------------------


@correct("core")
def the_textbook(query, key, value, mask):
    """Bare -inf: NaN for queries that may see nothing, right for all others."""
    found = query @ key.mT / query.shape[-1] ** 0.5
    return found.masked_fill(~mask, -INF).softmax(dim=-1) @ value


@correct("core")
def a_large_negative_number(query, key, value, mask):
    """-1e9: right in float32 as long as scores are of ordinary size."""
    found = query @ key.mT / query.shape[-1] ** 0.5
    return found.masked_fill(~mask, -1e9).softmax(dim=-1) @ value


@correct("core", layout="b t d", mask_layout="b k", mask_means="ignore")
class AsAModule(nn.Module):
    """A module that keeps its dropout off in evaluation, with torch's key_padding_mask."""

    def __init__(self):
        super().__init__()
        self.dropout = nn.Dropout(0.5)
        self.eval()

    def forward(self, query, key, value, key_padding_mask):
        found = query @ key.transpose(1, 2) / math.sqrt(query.shape[-1])
        weights = found.masked_fill(key_padding_mask.unsqueeze(1), -INF).softmax(dim=-1)
        return self.dropout(weights) @ value, weights


@correct(
    "core", dtypes=("float32",), mask_means="ignore", mask_layout="b h q k", causal_flag="causal"
)
def torchs_multi_head_attention(query, key, value, hidden, causal=False):
    """torch's, one head at a time, with identities for its projections; True means hide."""
    if causal:
        raise ValueError("give a mask or the causal flag, not both")
    batch, width = len(query), query.shape[-1]
    query, key, value = (rearrange(x, "b h t d -> t (b h) d") for x in (query, key, value))
    same = torch.eye(width)
    output, _ = F.multi_head_attention_forward(
        query,
        key,
        value,
        embed_dim_to_check=width,
        num_heads=1,
        in_proj_weight=same.repeat(3, 1),
        in_proj_bias=None,
        bias_k=None,
        bias_v=None,
        add_zero_attn=False,
        dropout_p=0.0,
        out_proj_weight=same,
        out_proj_bias=None,
        attn_mask=rearrange(hidden, "b h q k -> (b h) q k"),
    )
    return rearrange(output, "t (b h) d -> b h t d", b=batch)
