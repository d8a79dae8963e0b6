"""Correct attentions, written in different ways: none of them may raise a false alarm.

Each is declared with what it takes and with the highest tier that it promises.
"""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from einops import einsum, rearrange
from torch import nn
from torch.nn import functional as F

from minitransformer import scaled_dot_product_attention
from minitransformer.checks import AttentionSubject
from minitransformer.checks.attention.adapters import from_varlen

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


# ---- another formula, other heads, other arrays --------------------------------------------------


@correct("robust", softcap=30.0)
def capped_before_the_mask(query, key, value, mask):
    """Gemma 2's: the soft cap on the scores, and the mask after it."""
    alive = mask.any(dim=-1, keepdim=True)
    found = query / math.sqrt(query.shape[-1]) @ key.mT
    found = (30.0 * (found / 30.0).tanh()).masked_fill(~mask & alive, -INF)
    return (found.softmax(dim=-1) * alive) @ value


@correct("robust", sums_to_one=False)
def one_in_the_denominator(query, key, value, mask):
    """Quiet attention: exp(x) / (1 + sum exp(x)), as if there were a key of score and value 0."""
    found = query / math.sqrt(query.shape[-1]) @ key.mT
    found = F.pad(found.masked_fill(~mask, -INF), (1, 0))
    return found.softmax(dim=-1)[..., 1:] @ value


@correct("robust", sums_to_one=False)
def a_sink_for_each_head(query, key, value, mask):
    """gpt-oss': each head has a number that takes part in the softmax, and is then dropped."""
    sinks = torch.linspace(-1.0, 1.0, query.shape[1]).to(query)
    found = query / math.sqrt(query.shape[-1]) @ key.mT
    sinks = sinks.view(-1, 1, 1).expand(*found.shape[:3], 1)
    found = torch.cat([found.masked_fill(~mask, -INF), sinks], dim=-1)
    return found.softmax(dim=-1)[..., :-1] @ value


def alibi(query, key, mask):
    """Scores fall with the distance, by a slope for each head (Press et al. 2022)."""
    heads, queries, keys = mask.shape[1:]
    slopes = 0.5 ** torch.arange(1, heads + 1).to(query).view(-1, 1, 1)
    away = torch.arange(keys - queries, keys)[:, None] - torch.arange(keys)
    scores = query @ key.mT / query.shape[-1] ** 0.5 - slopes * away.abs().to(query)
    return scores.masked_fill(~mask, -INF).softmax(dim=-1)


@correct("core", reference=alibi)
def linear_biases(query, key, value, mask):
    """ALiBi: here the order of the keys is not irrelevant, and neither is padding on the right."""
    mask = mask.expand(*query.shape[:3], -1)
    return alibi(query, key, mask) @ value


def sigmoid(query, key, mask):
    """Each key for itself, with no softmax (Ramapuram et al. 2024): weights sum to anything."""
    return (query @ key.mT / query.shape[-1] ** 0.5 - 2.0).sigmoid() * mask


@correct("robust", reference=sigmoid)
def sigmoid_attention(query, key, value, mask):
    return sigmoid(query, key, mask) @ value


@correct("strict", kv_heads=2)
def grouped_heads(query, key, value, mask):
    """Grouped-query attention: neighboring heads of queries read the same keys."""
    times = query.shape[1] // key.shape[1]
    key, value = (x.repeat_interleave(times, dim=1) for x in (key, value))
    return scaled_dot_product_attention(query, key, value, mask)


@correct("core", kv_heads=1, layout="b t h d", mask_layout="b q k")
def one_head_of_keys(query, key, value, mask):
    """Multi-query attention, by einsum: the keys' only head has no letter."""
    found = einsum(query, key.squeeze(2), "b q h d, b k d -> b h q k") / math.sqrt(query.shape[-1])
    weights = found.masked_fill(~mask[:, None], -INF).softmax(dim=-1)
    return einsum(weights, value.squeeze(2), "b h q k, b k d -> b q h d")


@correct("robust", arrays="numpy")
def in_numpy(query, key, value, mask):
    """Arrays in, arrays out."""
    found = query / np.asarray(math.sqrt(query.shape[-1]), query.dtype) @ key.swapaxes(-1, -2)
    found = np.where(mask, found, np.finfo(found.dtype).min)
    raised = np.exp(found - found.max(axis=-1, keepdims=True)) * mask
    total = raised.sum(axis=-1, keepdims=True)
    return (raised / np.where(total == 0.0, 1.0, total).astype(query.dtype)) @ value


def sequence_by_sequence(query, key, value, cu_seqlens_q, cu_seqlens_k, max_q, max_k):
    """Packed sequences, each cut out by its boundaries: a plain loop for a kernel."""
    first_q = first_k = 0
    rows = []
    for last_q, last_k in zip(cu_seqlens_q[1:].tolist(), cu_seqlens_k[1:].tolist(), strict=True):
        q, k, v = query[first_q:last_q], key[first_k:last_k], value[first_k:last_k]
        found = einsum(q / math.sqrt(q.shape[-1]), k, "q h d, k h d -> h q k")
        rows.append(einsum(found.softmax(dim=-1), v, "h q k, k h d -> q h d"))
        first_q, first_k = last_q, last_k
    return torch.cat(rows)


correct("strict", mask_layout="b k")(from_varlen(sequence_by_sequence))
