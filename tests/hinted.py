"""What a student writes who has the stub and follows a hint to the letter.

Written from stubs and hints alone. Each function follows the hints of its exercise up to the step
in its decorator: what these give as code stands here as they give it, what they give in words is
written in the plainest way, and what they leave out is taken from the stub. A hint that only asks a
question has nothing here. tests/test_hints.py says what must come of it.
"""

# ruff: noqa: F811 -- a function for each step, all with the name of their exercise

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch.nn import functional as F


class Followed(NamedTuple):
    step: int  # the hints 1 to `step` were read
    function: Callable


FOLLOWED: list[Followed] = []


def hint(step: int) -> Callable[[Callable], Callable]:
    """Register a function as what hint `step` of the exercise of its name leads to."""

    def register(function: Callable) -> Callable:
        FOLLOWED.append(Followed(step, function))
        return function

    return register


# ---- chapter 1 -----------------------------------------------------------------------------------


@hint(2)
def padding_mask(attention_mask):
    return attention_mask[:, None, :, None] & attention_mask[:, None, None, :]


@hint(3)
def padding_mask(attention_mask):
    real = attention_mask != 0
    return real[:, None, :, None] & real[:, None, None, :]


@hint(1)
def mean_pool(hidden, attention_mask):
    return (hidden * attention_mask[:, :, None]).sum(dim=1) / attention_mask.sum(1, keepdim=True)


@hint(2)
def mean_pool(hidden, attention_mask):
    padding = attention_mask[:, :, None] == 0
    return hidden.masked_fill(padding, 0.0).sum(dim=1) / attention_mask.sum(1, keepdim=True)


@hint(3)
def mean_pool(hidden, attention_mask):
    padding = (attention_mask == 0)[:, :, None]
    count = attention_mask.sum(dim=1, keepdim=True)
    return hidden.masked_fill(padding, 0.0).sum(dim=1) / count.clamp(min=1)


@hint(1)
def pad_batch(rows, pad_id, side):
    longest = max(len(row) for row in rows)
    input_ids = torch.full((len(rows), longest), pad_id)
    attention_mask = torch.full((len(rows), longest), 0)
    for i, row in enumerate(rows):
        input_ids[i, : len(row)] = torch.tensor(row)
        attention_mask[i, : len(row)] = 1
    return input_ids, attention_mask


@hint(3)
def pad_batch(rows, pad_id, side):
    longest = max(len(row) for row in rows)
    input_ids = torch.full((len(rows), longest), pad_id)
    attention_mask = torch.full((len(rows), longest), 0)
    for i, row in enumerate(rows):
        start = 0 if side == "right" else longest - len(row)
        input_ids[i, start : start + len(row)] = torch.tensor(row, dtype=torch.int64)
        attention_mask[i, start : start + len(row)] = 1
    return input_ids, attention_mask


# ---- chapter 2 -----------------------------------------------------------------------------------


@hint(1)
def softmax(scores):
    return scores.exp() / scores.exp().sum(dim=-1, keepdim=True)


@hint(2)
def softmax(scores):
    powers = (scores - scores.max()).exp()
    return powers / powers.sum(dim=-1, keepdim=True)


@hint(3)
def softmax(scores):
    powers = (scores - scores.amax(dim=-1, keepdim=True)).exp()
    return powers / powers.sum(dim=-1, keepdim=True)


@hint(1)
def attention(query, key, value, mask):
    scores = query @ key.transpose(-2, -1) / query.shape[-1] ** 0.5
    return scores.softmax(dim=-1) @ value


@hint(2)
def attention(query, key, value, mask):
    scores = query @ key.transpose(-2, -1) / query.shape[-1] ** 0.5
    scores = scores.masked_fill(~mask, -float("inf"))
    return scores.softmax(dim=-1) @ value


@hint(3)
def attention(query, key, value, mask):
    scores = query @ key.transpose(-2, -1) / query.shape[-1] ** 0.5
    return scores.masked_fill(~mask, float("-inf")).softmax(dim=-1) @ value


@hint(1)
def nan_safe_attention(query, key, value, mask):
    alive = mask.any(dim=-1, keepdim=True)
    scores = query @ key.transpose(-2, -1) / query.shape[-1] ** 0.5
    scores = scores.masked_fill(~mask & alive, float("-inf"))
    return scores.softmax(dim=-1).masked_fill(~alive, 0.0) @ value


@hint(2)
def nan_safe_attention(query, key, value, mask):
    alive = mask.any(dim=-1, keepdim=True)
    used = mask.any(dim=-2)[..., None]
    query = query.masked_fill(~alive, 0.0)
    key = key.masked_fill(~used, 0.0)
    value = value.masked_fill(~used, 0.0)
    scores = query @ key.transpose(-2, -1) / query.shape[-1] ** 0.5
    scores = scores.masked_fill(~mask, float("-inf")).masked_fill(~alive, 0.0)
    return scores.softmax(dim=-1).masked_fill(~alive, 0.0) @ value


@hint(3)
def nan_safe_attention(query, key, value, mask):
    alive = mask.any(dim=-1, keepdim=True)
    used = mask.any(dim=-2).unsqueeze(-1)
    query = query.masked_fill(~alive, 0.0)
    key = key.masked_fill(~used, 0.0)
    value = value.masked_fill(~used, 0.0)
    scores = query @ key.transpose(-2, -1) / query.shape[-1] ** 0.5
    inf = float("inf")
    return scores.masked_fill(~mask & alive, -inf).softmax(-1).masked_fill(~alive, 0.0) @ value


# ---- chapter 3 -----------------------------------------------------------------------------------


@hint(1)
def split_heads(x, num_heads):
    batch, length, d_model = x.shape
    return x.reshape(batch, length, num_heads, d_model // num_heads).permute(0, 2, 1, 3)


@hint(3)
def split_heads(x, num_heads):
    batch, length, _ = x.shape
    return x.view(batch, length, num_heads, -1).transpose(1, 2)


@hint(1)
def share_heads(x, num_heads):
    return x.repeat(1, num_heads // x.shape[1], 1, 1)


@hint(3)
def share_heads(x, num_heads):
    return x.repeat_interleave(num_heads // x.shape[1], dim=1)


@hint(1)
def attention_map(weights, mask):
    return weights.masked_fill(~mask, float("nan"))


@hint(2)
def attention_map(weights, mask):
    return torch.where(~mask & (weights == 0), torch.nan, weights)


@hint(3)
def attention_map(weights, mask):
    return weights.masked_fill(~mask & (weights == 0), float("nan"))


@hint(2)
def multi_head_attention(x, memory, mask, w_query, w_key, w_value, w_output, num_heads):
    def split(x):
        return x.view(x.shape[0], x.shape[1], num_heads, -1).transpose(1, 2)

    query, key, value = split(x @ w_query.T), split(memory @ w_key.T), split(memory @ w_value.T)
    scores = query @ key.transpose(-2, -1) / query.shape[-1] ** 0.5
    heads = scores.masked_fill(~mask, float("-inf")).softmax(dim=-1) @ value
    return heads.transpose(1, 2).reshape(x.shape) @ w_output.T


@hint(3)
def multi_head_attention(x, memory, mask, w_query, w_key, w_value, w_output, num_heads):
    batch, queries, d_model = x.shape
    width = d_model // num_heads
    query = (x @ w_query.T).view(batch, queries, num_heads, width).transpose(1, 2)
    key = (memory @ w_key.T).view(batch, -1, num_heads, width).transpose(1, 2)
    value = (memory @ w_value.T).view(batch, -1, num_heads, width).transpose(1, 2)
    scores = query @ key.transpose(-2, -1) / width**0.5
    heads = torch.softmax(scores.masked_fill(~mask, float("-inf")), dim=-1) @ value
    return heads.transpose(1, 2).reshape(batch, queries, d_model) @ w_output.T


# ---- chapter 4 -----------------------------------------------------------------------------------


@hint(2)
def feed_forward(x, widen, widen_bias, narrow, narrow_bias):
    return F.relu(x @ widen.T + widen_bias) @ narrow.T + narrow_bias


@hint(3)
def feed_forward(x, widen, widen_bias, narrow, narrow_bias):
    return (x @ widen.T + widen_bias).relu() @ narrow.T + narrow_bias


@hint(1)
def layer_norm(x, gain, bias, eps):
    mean = x.mean(dim=-1, keepdim=True)
    variance = x.var(dim=-1, keepdim=True)
    return (x - mean) / (variance + eps) ** 0.5 * gain + bias


@hint(2)
def layer_norm(x, gain, bias, eps):
    mean = x.mean(dim=-1, keepdim=True)
    variance = x.var(dim=-1, keepdim=True, correction=0)
    return (x - mean) / torch.sqrt(variance + eps) * gain + bias


@hint(3)
def layer_norm(x, gain, bias, eps):
    mean = x.mean(dim=-1, keepdim=True)
    variance = x.var(dim=-1, correction=0, keepdim=True)
    return (x - mean) / (variance + eps).sqrt() * gain + bias


@hint(1)
def rms_norm(x, gain, eps):
    return x / ((x**2).mean(dim=-1, keepdim=True).sqrt() + eps) * gain


@hint(2)
def rms_norm(x, gain, eps):
    return x / torch.sqrt((x**2).mean(dim=-1, keepdim=True) + eps) * gain


@hint(3)
def rms_norm(x, gain, eps):
    return x / (x.square().mean(dim=-1, keepdim=True) + eps).sqrt() * gain


@hint(1)
def encoder_layer(x, mask, attention, feed_forward, norm1, norm2):
    x = x + norm1(attention(x, x, mask))
    return x + norm2(feed_forward(x))


@hint(3)
def encoder_layer(x, mask, attention, feed_forward, norm1, norm2):
    x = norm1(x + attention(x, x, mask))
    return norm2(x + feed_forward(x))


@hint(3)
def encoder_stack(x, mask, layers):
    for layer in layers:
        x = layer(x, mask)
    return x


# ---- chapter 5 -----------------------------------------------------------------------------------


@hint(1)
def causal_mask(num_queries, num_keys):
    return torch.ones(1, 1, num_queries, num_keys, dtype=torch.bool).tril()


@hint(2)
def causal_mask(num_queries, num_keys):
    query = torch.arange(num_queries)[:, None] + (num_keys - num_queries)
    return (torch.arange(num_keys)[None, :] <= query)[None, None]


@hint(3)
def causal_mask(num_queries, num_keys):
    return torch.ones(1, 1, num_queries, num_keys, dtype=torch.bool).tril(num_keys - num_queries)


@hint(3)
def combine_masks(attention_mask):
    real = attention_mask != 0
    padding = real[:, None, :, None] & real[:, None, None, :]
    length = attention_mask.shape[1]
    causal = torch.ones(1, 1, length, length, dtype=torch.bool).tril()
    return padding & causal


@hint(1)
def next_token_labels(input_ids, attention_mask):
    labels = torch.full(input_ids.shape, -100)
    labels[:, :-1] = input_ids[:, 1:]
    return labels


@hint(2)
def next_token_labels(input_ids, attention_mask):
    labels = torch.full(input_ids.shape, -100)
    labels[:, :-1] = input_ids[:, 1:]
    labels[attention_mask == 0] = -100
    labels[:, :-1][attention_mask[:, 1:] == 0] = -100
    return labels


@hint(3)
def next_token_labels(input_ids, attention_mask):
    labels = torch.full_like(input_ids, -100)
    labels[:, :-1] = input_ids[:, 1:]
    this, following = attention_mask[:, :-1], attention_mask[:, 1:]
    labels[:, :-1][(this == 0) | (following == 0)] = -100
    return labels


# ---- chapter 6 -----------------------------------------------------------------------------------


@hint(2)
def sinusoidal_positions(length, width):
    angles = torch.arange(length)[:, None] / 10000 ** (torch.arange(0, width, 2) / width)
    return torch.stack((angles.sin(), angles.cos()), dim=-1).reshape(length, width)


@hint(3)
def sinusoidal_positions(length, width):
    p, even = torch.arange(length), torch.arange(0, width, 2)
    table = torch.empty(length, width)
    angles = p[:, None] / 10000 ** (even / width)
    table[:, 0::2] = angles.sin()
    table[:, 1::2] = angles.cos()
    return table


@hint(2)
def decoder_layer(
    x, mask, memory, memory_mask, self_attention, cross_attention, feed_forward, norms
):
    first, second, third = norms
    x = first(x + self_attention(x, x, mask))
    x = second(x + cross_attention(x, memory, memory_mask))
    return third(x + feed_forward(x))


@hint(3)
def decoder_layer(
    x, mask, memory, memory_mask, self_attention, cross_attention, feed_forward, norms
):
    x = norms[0](x + self_attention(x, x, mask))
    x = norms[1](x + cross_attention(x, memory, memory_mask))
    return norms[2](x + feed_forward(x))


@hint(2)
def cross_mask(query_mask, key_mask):
    return query_mask[:, None, :, None] & key_mask[:, None, None, :]


@hint(3)
def cross_mask(query_mask, key_mask):
    return (query_mask != 0)[:, None, :, None] & (key_mask != 0)[:, None, None, :]


# ---- chapter 7 -----------------------------------------------------------------------------------


@hint(1)
def cross_entropy(logits, labels):
    counted, classes = logits[labels != -100], labels[labels != -100]
    picked = counted.softmax(dim=-1)[torch.arange(len(classes)), classes]
    return -picked.log().mean()


@hint(2)
def cross_entropy(logits, labels):
    counted, classes = logits[labels != -100], labels[labels != -100]
    picked = counted.gather(-1, classes[:, None])[:, 0]
    return (counted.logsumexp(dim=-1) - picked).mean()


@hint(3)
def cross_entropy(logits, labels):
    counted, classes = logits[labels != -100], labels[labels != -100]
    picked = counted.gather(-1, classes[:, None]).squeeze(-1)
    return (counted.logsumexp(dim=-1) - picked).sum() / max(len(classes), 1)


@hint(1)
def prompt_labels(rows, prompt_lengths):
    return [[*row[1:], -100] for row in rows]


@hint(2)
def prompt_labels(rows, prompt_lengths):
    labels = [[*row[1:], -100] for row in rows]
    for row, prompt_length in zip(labels, prompt_lengths, strict=True):
        for place in range(prompt_length - 1):
            row[place] = -100
    return labels


@hint(3)
def prompt_labels(rows, prompt_lengths):
    labels = []
    for row, n in zip(rows, prompt_lengths, strict=True):
        if n == 0:
            n = 1
        labels.append([-100] * (n - 1) + row[n:] + [-100])
    return labels


@hint(1)
def accumulate(token_losses, labels):
    total, count = 0.0, 0
    for losses, part in zip(token_losses, labels, strict=True):
        total = total + losses[part != -100].sum()
        count += len(losses[part != -100])
    return total / count


@hint(3)
def accumulate(token_losses, labels):
    pairs = list(zip(token_losses, labels, strict=True))
    total = sum(loss[label != -100].sum() for loss, label in pairs)
    count = sum((label != -100).sum() for _, label in pairs)
    return total / max(count, 1)


@hint(2)
def mask_tokens(input_ids, attention_mask, chosen, fate, others, mask_id):
    picked = chosen & (attention_mask == 1)
    labels = torch.where(picked, input_ids, -100)
    inputs = input_ids.clone()
    inputs[picked & (fate < 0.8)] = mask_id
    replaced = picked & (fate >= 0.8) & (fate < 0.9)
    inputs[replaced] = others[replaced]
    return inputs, labels


@hint(3)
def mask_tokens(input_ids, attention_mask, chosen, fate, others, mask_id):
    picked = chosen & attention_mask.bool()
    changed = torch.where(fate < 0.8, mask_id, torch.where(fate < 0.9, others, input_ids))
    return torch.where(picked, changed, input_ids), torch.where(picked, input_ids, -100)


# ---- chapter 8 -----------------------------------------------------------------------------------


@hint(2)
def learning_rate(step, peak, warmup, total):
    if step < warmup:
        return peak * (step + 1) / warmup
    return peak * (math.cos(math.pi * (step - warmup) / (total - warmup)) + 1) / 2


@hint(3)
def learning_rate(step, peak, warmup, total):
    if step < warmup:
        return peak * (step + 1) / warmup
    t = (step - warmup) / (total - warmup)
    return peak * (1 + math.cos(math.pi * t)) / 2


@hint(3)
def pack_rows(rows, length):
    lines, numbers = [], []
    for row in rows:
        for line, number in zip(lines, numbers, strict=True):
            if len(line) + len(row) <= length:
                number.extend([number[-1] + 1] * len(row))
                line.extend(row)
                break
        else:
            lines.append(list(row))
            numbers.append([1] * len(row))
    for entries in lines + numbers:
        while len(entries) < length:
            entries.append(0)
    return torch.tensor(lines), torch.tensor(numbers)


@hint(1)
def token_positions(attention_mask):
    positions = torch.zeros_like(attention_mask)
    for row, numbers in enumerate(attention_mask.tolist()):
        for place, number in enumerate(numbers):
            positions[row, place] = numbers[:place].count(number)
    return positions


@hint(2)
def token_positions(attention_mask):
    same = attention_mask[:, :, None] == attention_mask[:, None, :]
    return same.tril().sum(dim=-1)


@hint(3)
def token_positions(attention_mask):
    same = attention_mask[:, :, None] == attention_mask[:, None, :]
    positions = same.tril(-1).sum(dim=-1)
    positions[attention_mask == 0] = 0
    return positions


@hint(1)
def training_loop(weight, bias, inputs, labels, learning_rate, max_norm):
    weight = weight.detach().clone().requires_grad_()
    bias = bias.detach().clone().requires_grad_()
    losses = []
    for x, y in zip(inputs, labels, strict=True):
        logits = x @ weight.T + bias
        loss = F.cross_entropy(logits, y)
        loss.backward()
        losses.append(loss.item())
        with torch.no_grad():
            weight -= learning_rate * weight.grad
            bias -= learning_rate * bias.grad
    return weight, bias, losses


@hint(2)
def training_loop(weight, bias, inputs, labels, learning_rate, max_norm):
    weight = weight.detach().clone().requires_grad_()
    bias = bias.detach().clone().requires_grad_()
    losses = []
    for x, y in zip(inputs, labels, strict=True):
        weight.grad = bias.grad = None
        logits = x @ weight.T + bias
        loss = F.cross_entropy(logits, y)
        loss.backward()
        losses.append(loss.item())
        norm = (weight.grad.square().sum() + bias.grad.square().sum()).sqrt()
        with torch.no_grad():
            for p in (weight, bias):
                p -= learning_rate * (p.grad * max_norm / norm if norm > max_norm else p.grad)
    return weight, bias, losses


@hint(3)
def training_loop(weight, bias, inputs, labels, learning_rate, max_norm):
    weight = weight.detach().clone().requires_grad_()
    bias = bias.detach().clone().requires_grad_()
    losses = []
    for x, y in zip(inputs, labels, strict=True):
        weight.grad = bias.grad = None
        logits = x @ weight.T + bias
        loss = F.cross_entropy(logits, y, reduction="sum") / max((y != -100).sum(), 1)
        loss.backward()
        losses.append(loss.item())
        norm = (weight.grad.square().sum() + bias.grad.square().sum()).sqrt()
        with torch.no_grad():
            for p in (weight, bias):
                p -= learning_rate * p.grad * max_norm / norm.clamp(min=max_norm)
    return weight, bias, losses


# ---- chapter 9 -----------------------------------------------------------------------------------


@hint(1)
def greedy_decode(model, input_ids, attention_mask, max_new_tokens, eos_id):
    new = [[] for _ in input_ids]
    for _ in range(max_new_tokens):
        logits = model(input_ids, attention_mask)
        column = []
        for i, tokens in enumerate(new):
            last = attention_mask[i].nonzero().max()
            column.append(logits[i, last].argmax())
            if eos_id not in tokens:
                tokens.append(column[-1].item())
        if all(eos_id in tokens for tokens in new):
            break
        input_ids = torch.cat([input_ids, torch.stack(column)[:, None]], dim=1)
        attention_mask = torch.cat([attention_mask, torch.ones_like(input_ids[:, :1])], dim=1)
    return [torch.tensor(tokens) for tokens in new]


@hint(3)
def greedy_decode(model, input_ids, attention_mask, max_new_tokens, eos_id):
    batch = input_ids.shape[0]
    new = [[] for _ in range(batch)]
    ended = [False] * batch
    for _ in range(max_new_tokens):
        if all(ended):
            break
        length = input_ids.shape[1]
        logits = model(input_ids, attention_mask)
        last = (torch.arange(length) * attention_mask).argmax(dim=1)
        tokens = logits[torch.arange(batch), last].argmax(dim=-1)
        for i in range(batch):
            if not ended[i]:
                new[i].append(tokens[i].item())
                ended[i] = tokens[i].item() == eos_id
        input_ids = torch.cat((input_ids, tokens[:, None]), dim=1)
        attention_mask = torch.cat((attention_mask, torch.ones_like(tokens)[:, None]), dim=1)
    return [torch.tensor(tokens, dtype=torch.int64) for tokens in new]


@hint(1)
def kv_cache(query, key, value, cache):
    if cache is not None:
        key = torch.cat((cache[0], key), dim=2)
        value = torch.cat((cache[1], value), dim=2)
    scores = query @ key.transpose(-2, -1) / query.shape[-1] ** 0.5
    return scores.softmax(dim=-1) @ value, (key, value)


@hint(2)
def kv_cache(query, key, value, cache):
    past = 0
    if cache is not None:
        past = cache[0].shape[2]
        key = torch.cat((cache[0], key), dim=2)
        value = torch.cat((cache[1], value), dim=2)
    scores = query @ key.transpose(-2, -1) / query.shape[-1] ** 0.5
    for i in range(query.shape[2]):
        scores[:, :, i, past + i + 1 :] = -torch.inf
    return scores.softmax(dim=-1) @ value, (key, value)


@hint(3)
def kv_cache(query, key, value, cache):
    if cache is not None:
        key = torch.cat((cache[0], key), dim=2)
        value = torch.cat((cache[1], value), dim=2)
    new, keys = query.shape[2], key.shape[2]
    mask = torch.ones(new, keys).tril(keys - new)
    scores = query @ key.transpose(-2, -1) / query.shape[-1] ** 0.5
    scores = scores.masked_fill(mask != 1, float("-inf"))
    return scores.softmax(dim=-1) @ value, (key, value)


@hint(2)
def beam_search(next_log_probs, num_beams, length):
    beams = [([], 0.0)]
    for _ in range(length):
        candidates = []
        for tokens, log_prob in beams:
            for token, more in enumerate(next_log_probs(tokens)):
                candidates.append(([*tokens, token], log_prob + more))
        candidates.sort(key=lambda beam: beam[1], reverse=True)
        beams = candidates[:num_beams]
    return beams[0]


@hint(3)
def beam_search(next_log_probs, num_beams, length):
    beams = [([], 0.0)]
    for _ in range(length):
        candidates = []
        for tokens, log_prob in beams:
            for token, more in enumerate(next_log_probs(tokens).tolist()):
                candidates.append(([*tokens, token], log_prob + more))
        beams = sorted(candidates, key=lambda b: -b[1])[:num_beams]
    return beams[0]


@hint(2)
def sample(logits, temperature, top_k, top_p, u):
    probs, order = (logits / temperature).sort(dim=-1, descending=True)
    probs = probs[:, :top_k].softmax(dim=-1)
    stays = probs.cumsum(dim=-1) - probs < top_p
    probs = probs * stays
    probs = probs / probs.sum(dim=-1, keepdim=True)
    full = torch.zeros_like(logits)
    for row in range(len(logits)):
        for place in range(probs.shape[1]):
            full[row, order[row, place]] = probs[row, place]
    token = (full.cumsum(dim=-1) > u[:, None]).int().argmax(dim=-1)
    return full, token


@hint(3)
def sample(logits, temperature, top_k, top_p, u):
    ordered, order = (logits / temperature).sort(dim=-1, descending=True)
    probs = ordered[:, :top_k].softmax(dim=-1)
    before = probs.cumsum(dim=-1) - probs
    kept = probs.masked_fill(before >= top_p, 0.0)
    kept = kept / kept.sum(dim=-1, keepdim=True)
    probs = torch.zeros_like(logits).scatter(-1, order[:, :top_k], kept)
    token = (probs.cumsum(dim=-1) <= u[:, None]).sum(dim=-1)
    return probs, token


# ---- chapter 10 ----------------------------------------------------------------------------------


@hint(1)
def rotary_positions(x, positions, theta):
    width = x.shape[-1]
    i = torch.arange(width // 2)
    angles = positions[:, None, :, None] * theta ** (-2 * i / width)
    a, b = x[..., 0::2], x[..., 1::2]
    out = torch.empty_like(x)
    out[..., 0::2] = a * angles.cos() - b * angles.sin()
    out[..., 1::2] = b * angles.cos() + a * angles.sin()
    return out


@hint(2)
def rotary_positions(x, positions, theta):
    width = x.shape[-1]
    i = torch.arange(width // 2)
    angles = positions[:, None, :, None] * theta ** (-2 * i / width)
    a, b = x[..., : width // 2], x[..., width // 2 :]
    out = torch.empty_like(x)
    out[..., : width // 2] = a * angles.cos() - b * angles.sin()
    out[..., width // 2 :] = b * angles.cos() + a * angles.sin()
    return out


@hint(3)
def rotary_positions(x, positions, theta):
    width = x.shape[-1]
    a, b = x.chunk(2, dim=-1)
    even = torch.arange(0, width, 2)
    angles = positions[:, None, :, None] * theta ** (-even / width)
    return torch.cat(
        (a * angles.cos() - b * angles.sin(), b * angles.cos() + a * angles.sin()), dim=-1
    ).to(x.dtype)


@hint(2)
def decoder(input_ids, attention_mask, embedding, layers, head):
    real = attention_mask.bool()
    padding = real[:, None, :, None] & real[:, None, None, :]
    length = input_ids.shape[1]
    mask = padding & torch.ones(1, 1, length, length, dtype=torch.bool).tril()
    x = embedding(input_ids, attention_mask)
    for layer in layers:
        x = layer(x, mask)
    return head(x)


@hint(3)
def decoder(input_ids, attention_mask, embedding, layers, head):
    real = attention_mask != 0
    length = attention_mask.shape[1]
    triangle = torch.ones(length, length, dtype=torch.bool).tril()
    mask = real[:, None, :, None] & real[:, None, None, :] & triangle
    x = embedding(input_ids, attention_mask)
    for layer in layers:
        x = layer(x, mask)
    return head(x)


@hint(2)
def load_weights(names, stored, tensors, renames):
    found = {}
    for name, tensor in zip(stored, tensors, strict=True):
        if name.endswith((".attn.bias", ".attn.masked_bias")):
            continue
        if ".c_" in name and name.endswith(".weight"):
            tensor = tensor.T
        new_names, pieces = [name], [tensor]
        if "c_attn" in name:
            new_names = [name.replace("c_attn", word) for word in ("query", "key", "value")]
            pieces = tensor.chunk(3)
        for new_name, piece in zip(new_names, pieces, strict=True):
            for old, new in renames:
                new_name = new_name.replace(old, new)
            found[new_name] = piece
    missing = [name for name in names if name not in found]
    left_over = [name for name in found if name not in names]
    if missing or left_over:
        raise KeyError(missing, left_over)
    return [found[name] for name in names]


@hint(3)
def load_weights(names, stored, tensors, renames):
    found = {}
    for name, tensor in zip(stored, tensors, strict=True):
        if name.endswith((".attn.bias", ".attn.masked_bias")):
            continue
        if ".c_" in name and name.endswith(".weight"):
            tensor = tensor.T
        entries = [(name, tensor)]
        if "c_attn" in name:
            parts = ("query", "key", "value")
            entries = [
                (name.replace("c_attn", part), piece)
                for part, piece in zip(parts, tensor.chunk(3), strict=True)
            ]
        for ours, piece in entries:
            for old, new in renames:
                ours = ours.replace(old, new)
            found[ours] = piece
    wrong = set(found) ^ set(names)
    if wrong:
        raise KeyError(wrong)
    return [found[name] for name in names]


# ---- chapters 11 to 13 ---------------------------------------------------------------------------


@hint(1)
def find_the_bug(query, key, value, mask):
    scores = query @ key.transpose(-2, -1) / key.shape[-1] ** 0.5
    weights = scores.softmax(dim=-1)
    weights = weights.masked_fill(~mask, 0.0)
    weights = weights / weights.sum(dim=-1, keepdim=True)
    return weights @ value


@hint(2)
def find_the_bug(query, key, value, mask):
    scores = query @ key.transpose(-2, -1) / key.shape[-1] ** 0.5
    scores = scores.masked_fill(~mask, float("-inf"))
    weights = scores.softmax(dim=-1)
    return weights @ value


@hint(3)
def find_the_bug(query, key, value, mask):
    scores = query @ key.transpose(-2, -1) / query.shape[-1] ** 0.5
    weights = scores.masked_fill(~mask, float("-inf")).softmax(dim=-1)
    return weights @ value


@hint(1)
def blockwise_attention(query, key, value, mask, block_size):
    largest = torch.full(query.shape[:-1], -float("inf"))
    total = torch.zeros(query.shape[:-1])
    output = torch.zeros(*query.shape[:-1], value.shape[-1])
    for start in range(0, key.shape[2], block_size):
        block = slice(start, start + block_size)
        scores = query @ key[:, :, block].transpose(-2, -1) / query.shape[-1] ** 0.5
        scores = scores.masked_fill(~mask[..., block], -float("inf"))
        top = torch.maximum(largest, scores.amax(dim=-1))
        scale = torch.exp(largest - top)
        powers = torch.exp(scores - top[..., None])
        total = total * scale + powers.sum(-1)
        output = output * scale[..., None] + powers @ value[:, :, block]
        largest = top
    return output / total[..., None]


@hint(3)
def blockwise_attention(query, key, value, mask, block_size):
    largest = torch.full(query.shape[:-1], -float("inf"))
    total = torch.zeros(query.shape[:-1])
    output = torch.zeros(*query.shape[:-1], value.shape[-1])
    for start in range(0, key.shape[2], block_size):
        block = slice(start, start + block_size)
        scores = query @ key[:, :, block].transpose(-2, -1) / query.shape[-1] ** 0.5
        scores = scores.masked_fill(~mask[..., block], -float("inf"))
        top = torch.maximum(largest, scores.amax(dim=-1))
        finite = torch.where(top == -float("inf"), 0, top)
        scale = torch.exp(largest - finite)
        powers = torch.exp(scores - finite[..., None])
        total = total * scale + powers.sum(-1)
        output = output * scale[..., None] + powers @ value[:, :, block]
        largest = top
    return output / torch.where(total == 0, 1, total)[..., None]


@hint(2)
def catch_the_bug(attention):
    torch.manual_seed(0)
    query, key = torch.randn(1, 1, 4, 8), torch.randn(1, 1, 4, 8)
    value = torch.eye(4)[None, None]
    mask = torch.ones(1, 1, 4, 4, dtype=torch.bool).tril()
    weights = attention(query, key, value, mask)
    assert (weights[~mask] == 0).all()
    assert torch.allclose(weights.sum(dim=-1), torch.ones(1, 1, 4))


@hint(3)
def catch_the_bug(attention):
    generator = torch.Generator().manual_seed(0)
    query = torch.randn(2, 2, 3, 8, generator=generator)
    key = torch.randn(2, 2, 5, 8, generator=generator)
    value = torch.randn(2, 2, 5, 4, generator=generator)
    mask = torch.rand(2, 1, 3, 5, generator=generator) < 0.5
    mask[..., 0] = True
    mask[..., -1] = False

    weights = attention(query, key, torch.eye(5).expand(2, 2, 5, 5), mask)
    assert (weights[~mask.expand(2, 2, 3, 5)] == 0).all()
    assert torch.allclose(weights.sum(dim=-1), torch.ones(2, 2, 3), atol=1e-5)

    output = attention(query, key, value, mask)
    other = value.clone()
    other[:, :, -1] = 100.0
    assert torch.allclose(attention(query, key, other, mask), output, atol=1e-5)

    scores = query @ key.transpose(-2, -1) / 8**0.5
    right = scores.masked_fill(~mask, float("-inf")).softmax(dim=-1) @ value
    assert torch.allclose(output, right, atol=1e-5)
