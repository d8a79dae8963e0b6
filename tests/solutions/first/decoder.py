# ==== wrong: no causal mask, only padding, every token sees its future
# says: The future is not hidden: every token reads what
import torch
from torch import Tensor


def decoder(input_ids: Tensor, attention_mask: Tensor, embedding, layers, head) -> Tensor:
    real = attention_mask.bool()
    mask = real[:, None, :, None] & real[:, None, None, :]
    x = embedding(input_ids, attention_mask)
    for layer in layers:
        x = layer(x, mask)
    return head(x)

# ==== wrong: only the causal mask, padding is seen by all
# says: Padding is not hidden: the mask is causal alone,
import torch


def decoder(input_ids, attention_mask, embedding, layers, head):
    batch, length = input_ids.shape
    mask = torch.tril(torch.ones(length, length, dtype=torch.bool))
    mask = mask.expand(batch, 1, length, length)
    hidden = embedding(input_ids, attention_mask)
    for block in layers:
        hidden = block(hidden, mask)
    logits = head(hidden)
    return logits

# ==== wrong: padding and causality are joined with or instead of and
# says: One mask is enough here to allow a pair,
import torch


def decoder(input_ids, attention_mask, embedding, layers, head):
    n = input_ids.shape[1]
    i = torch.arange(n)
    causal = (i[None, :] <= i[:, None])[None, None]
    padding = (attention_mask == 1)[:, None, None, :]
    mask = causal | padding
    h = embedding(input_ids, attention_mask)
    for f in layers:
        h = f(h, mask)
    return head(h)

# ==== wrong: the mask has the wrong polarity, True = forbidden
# says: Only padded keys are hidden: a padded query still
import torch


def decoder(input_ids, attention_mask, embedding, layers, head):
    length = input_ids.size(1)
    future = torch.triu(torch.ones(length, length), diagonal=1).bool()
    pad = attention_mask.eq(0)[:, None, None, :]
    mask = future[None, None] | pad
    x = embedding(input_ids, attention_mask)
    for layer in layers:
        x = layer(x, mask)
    return head(x)

# ==== wrong: the causal mask is upside down (triu), tokens see the future and not the past
# says: Every token sees what comes after it, not what
import torch


def decoder(input_ids, attention_mask, embedding, layers, head):
    b, n = attention_mask.shape
    m = attention_mask.to(torch.bool)
    pair = torch.einsum("bi,bj->bij", m.int(), m.int()).bool()
    mask = torch.triu(pair).view(b, 1, n, n)
    out = embedding(input_ids, attention_mask)
    for l in layers:
        out = l(out, mask)
    return head(out)

# ==== wrong: every layer gets the embedding instead of what the layer before wrote
# says: Every layer reads the embedding, and what the last
import torch


def decoder(input_ids, attention_mask, embedding, layers, head):
    x = embedding(input_ids, attention_mask)
    T = x.shape[1]
    keep = attention_mask > 0
    mask = (keep[:, :, None] & keep[:, None, :] & torch.ones(T, T).tril().bool()).unsqueeze(1)
    y = x
    for layer in layers:
        y = layer(x, mask)
    return head(y)

# ==== wrong: only the first layer gets the mask, the others see everything
# says: Some layers get the mask and others do not.
import torch


def decoder(input_ids, attention_mask, embedding, layers, head):
    length = input_ids.shape[1]
    causal = torch.ones(length, length, dtype=torch.bool).tril()
    real = attention_mask.bool()
    mask = causal & real[:, None, None] & real[:, None, :, None]
    x = embedding(input_ids, attention_mask)
    for k, layer in enumerate(layers):
        x = layer(x, mask if k == 0 else torch.ones_like(mask))
    return head(x)

# ==== wrong: padding is guessed from input_ids != 0, attention_mask is ignored
# says: Padding is told by its id, in the mask
import torch


def decoder(input_ids, attention_mask, embedding, layers, head):
    real = input_ids != 0
    n = input_ids.shape[-1]
    mask = real.unsqueeze(1).unsqueeze(2) & real.unsqueeze(1).unsqueeze(3)
    mask = mask & torch.tril(torch.ones((1, 1, n, n), dtype=torch.bool))
    states = embedding(input_ids, attention_mask)
    for layer in layers:
        states = layer(states, mask)
    return head(states)

# ==== wrong: strictly causal, a token does not see itself
# says: A token does not see itself: the triangle ends
import torch


def decoder(input_ids, attention_mask, embedding, layers, head):
    pos = torch.arange(input_ids.shape[1])
    real = attention_mask.bool()
    mask = (pos[:, None] > pos[None, :]) & real[:, None, None, :] & real[:, None, :, None]
    x = embedding(input_ids, attention_mask)
    for layer in layers:
        x = layer(x, mask)
    return head(x)

# ==== wrong: softmax at the end, probabilities instead of logits
# says: What comes out are not the logits, but what
import torch
from functools import reduce


def decoder(input_ids, attention_mask, embedding, layers, head):
    n = input_ids.shape[1]
    real = attention_mask.bool()
    mask = real[:, None, None, :] & real[:, None, :, None] & torch.ones(n, n, dtype=torch.bool).tril()
    x = reduce(lambda h, layer: layer(h, mask), layers, embedding(input_ids, attention_mask))
    return torch.softmax(head(x), dim=-1)

# ==== wrong: the mask is a float mask (0 and -inf) that is added, not bool
# says:
import torch


def decoder(input_ids, attention_mask, embedding, layers, head):
    batch, length = input_ids.shape
    mask = torch.zeros(batch, 1, length, length)
    mask = mask.masked_fill(torch.ones(length, length).triu(1).bool(), float("-inf"))
    mask = mask.masked_fill(attention_mask[:, None, None, :] == 0, float("-inf"))
    x = embedding(input_ids, attention_mask)
    for layer in layers:
        x = layer(x, mask)
    return head(x)

# ==== wrong: a residual is added around each layer, which the layers bring themselves
# says: x is added to what each layer gives. A
import torch


def decoder(input_ids, attention_mask, embedding, layers, head):
    n = input_ids.shape[1]
    idx = torch.arange(n)
    ok = attention_mask == 1
    mask = ok[:, None, :, None] & ok[:, None, None, :] & idx[:, None].ge(idx)
    x = embedding(input_ids, attention_mask)
    for layer in layers:
        x = x + layer(x, mask)
    return head(x)

# ==== wrong: two mistakes: no causal mask, and every layer gets the embedding again
# says: Padded keys are hidden, and nothing else: tokens see
import torch


def decoder(input_ids, attention_mask, embedding, layers, head):
    emb = embedding(input_ids, attention_mask)
    length = emb.shape[1]
    mask = attention_mask.bool()[:, None, None, :].expand(-1, 1, length, -1)
    outputs = [layer(emb, mask) for layer in layers]
    return head(outputs[-1] if outputs else emb)

# ==== wrong: two mistakes: padding is ignored, and the embedding gets a mask of ones
# says: Padding is not hidden: the mask is causal alone,
import torch


def decoder(input_ids, attention_mask, embedding, layers, head):
    B, L = input_ids.shape
    mask = torch.ones(B, 1, L, L, dtype=torch.bool).tril()
    x = embedding(input_ids, torch.ones_like(input_ids))
    for layer in layers:
        x = layer(x, mask)
    return head(x)

# ==== wrong: two mistakes: or instead of and, and softmax over the logits
# says: One mask is enough here to allow a pair,
import torch


def decoder(input_ids, attention_mask, embedding, layers, head):
    n = input_ids.shape[1]
    causal = torch.ones(n, n, dtype=torch.bool).tril()[None, None]
    real = attention_mask.bool()
    both = real[:, None, :, None] & real[:, None, None, :]
    mask = torch.logical_or(causal, both)
    x = embedding(input_ids, attention_mask)
    for layer in layers:
        x = layer(x, mask)
    return head(x).log_softmax(-1)

# ==== wrong: the mask of the batch's first row is used for all rows
# says: Every sequence has the padding of the first one.
import torch


def decoder(input_ids, attention_mask, embedding, layers, head):
    batch, length = input_ids.shape
    real = attention_mask[0].bool()
    mask = torch.zeros(length, length, dtype=torch.bool)
    for q in range(length):
        for k in range(q + 1):
            mask[q, k] = real[q] and real[k]
    mask = mask.expand(batch, 1, length, length)
    x = embedding(input_ids, attention_mask)
    for layer in layers:
        x = layer(x, mask)
    return head(x)

# ==== wrong: the real tokens are taken to be the first sum() ones, wrong with padding on the left
# says: Real tokens are counted, and then taken to stand
import torch


def decoder(input_ids, attention_mask, embedding, layers, head):
    n = input_ids.shape[1]
    lengths = attention_mask.sum(1)
    real = torch.arange(n)[None] < lengths[:, None]
    mask = real[:, None, None, :] & real[:, None, :, None] & torch.ones(n, n, dtype=torch.bool).tril()
    h = embedding(input_ids, attention_mask)
    for layer in layers:
        h = layer(h, mask)
    return head(h)

# ==== wrong: the head is forgotten, hidden states are returned
# says: head is not called: these are the vectors of
import torch


def decoder(input_ids, attention_mask, embedding, layers, head):
    n = input_ids.shape[1]
    r = attention_mask.bool()
    mask = torch.tril(r[:, None, :, None] & r[:, None, None, :])
    x = embedding(input_ids, attention_mask)
    for layer in layers:
        x = layer(x, mask)
    return x

# ==== wrong: only the logits of the last token are returned
# says: Only the last position has logits. In training every
import torch


def decoder(input_ids, attention_mask, embedding, layers, head):
    n = input_ids.shape[1]
    r = attention_mask.bool()
    mask = r[:, None, :, None] & r[:, None, None, :] & torch.ones(n, n, dtype=torch.bool).tril()
    x = embedding(input_ids, attention_mask)
    for layer in layers:
        x = layer(x, mask)
    return head(x[:, -1:])

# ==== wrong: padding is looked up on the query axis only, real queries see padded keys
# says: Only padded queries are hidden: real tokens still see
import torch


def decoder(input_ids, attention_mask, embedding, layers, head):
    n = input_ids.shape[1]
    causal = torch.ones(n, n, dtype=torch.bool).tril()
    mask = causal[None, None] & attention_mask.bool()[:, None, :, None]
    x = embedding(input_ids, attention_mask)
    for layer in layers:
        x = layer(x, mask)
    return head(x)

# ==== wrong: the layers run from the last to the first
# says: The layers are called in the wrong order, the
import torch


def decoder(input_ids, attention_mask, embedding, layers, head):
    n = input_ids.shape[1]
    r = attention_mask.bool()
    mask = r[:, None, :, None] & r[:, None, None, :] & torch.ones(n, n, dtype=torch.bool).tril()
    x = embedding(input_ids, attention_mask)
    for layer in reversed(layers):
        x = layer(x, mask)
    return head(x)

# ==== wrong: the first layer is used again and again instead of each layer once
# says: The same layer is called again and again. Each
import torch


def decoder(input_ids, attention_mask, embedding, layers, head):
    n = input_ids.shape[1]
    r = attention_mask.bool()
    mask = r[:, None, :, None] & r[:, None, None, :] & torch.ones(n, n, dtype=torch.bool).tril()
    x = embedding(input_ids, attention_mask)
    for _ in range(len(layers)):
        x = layers[0](x, mask)
    return head(x)

# ==== right: both masks joined with and
import torch
from torch import Tensor


def decoder(input_ids: Tensor, attention_mask: Tensor, embedding, layers, head) -> Tensor:
    length = input_ids.shape[1]
    real = attention_mask.bool()
    padding = real[:, None, :, None] & real[:, None, None, :]
    causal = torch.ones(length, length, dtype=torch.bool, device=input_ids.device).tril()
    mask = padding & causal
    x = embedding(input_ids, attention_mask)
    for layer in layers:
        x = layer(x, mask)
    return head(x)

# ==== right: einsum for the mask, reduce for the layers
import torch
from functools import reduce


def decoder(input_ids, attention_mask, embedding, layers, head):
    real = (attention_mask != 0).to(torch.int64)
    mask = torch.einsum("bq,bk->bqk", real, real).tril().bool().unsqueeze(1)
    return head(reduce(lambda x, layer: layer(x, mask), layers, embedding(input_ids, attention_mask)))

# ==== right: the mask by loops
import torch


def decoder(input_ids, attention_mask, embedding, layers, head):
    rows = attention_mask.tolist()
    mask = torch.tensor(
        [[[[bool(q and k) and j <= i for j, k in enumerate(row)] for i, q in enumerate(row)]] for row in rows],
        dtype=torch.bool,
        device=input_ids.device,
    )
    state = embedding(input_ids, attention_mask)
    todo = list(layers)
    while todo:
        state = todo.pop(0)(state, mask)
    return head(state)
