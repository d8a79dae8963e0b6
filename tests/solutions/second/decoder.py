# ==== wrong: only padded keys are hidden, the row of a padded query is not all False
# says: Only padded keys are hidden: a padded query still
import torch


def decoder(input_ids, attention_mask, embedding, layers, head):
    n = input_ids.shape[1]
    causal = torch.ones(n, n, dtype=torch.bool).tril()
    mask = causal & attention_mask.bool()[:, None, None, :]
    x = embedding(input_ids, attention_mask)
    for layer in layers:
        x = layer(x, mask)
    return head(x)

# ==== wrong: the padding is taken from the ids that are not 0 instead of from attention_mask
# says: Padding is told by its id, in the mask
import torch


def decoder(input_ids, attention_mask, embedding, layers, head):
    real = input_ids != 0
    pad = real.unsqueeze(1).unsqueeze(2) & real.unsqueeze(1).unsqueeze(3)
    L = input_ids.size(1)
    pos = torch.arange(L)
    mask = pad & (pos[None, :] <= pos[:, None])
    hidden = embedding(input_ids, attention_mask)
    for f in layers:
        hidden = f(hidden, mask)
    return head(hidden)

# ==== wrong: the triangle lies on the wrong side: a query sees itself and what comes after it
# says: Every token sees what comes after it, not what
import torch


def decoder(input_ids, attention_mask, embedding, layers, head):
    real = attention_mask == 1
    both = real[:, None, :, None] & real[:, None, None, :]
    size = attention_mask.shape[-1]
    look = torch.triu(torch.ones(size, size)).bool()
    x = embedding(input_ids, attention_mask)
    for layer in layers:
        x = layer(x, both & look)
    logits = head(x)
    return logits

# ==== wrong: two: padding is not masked at all, and the axis for heads is missing
# says: Padding is not hidden: the mask is causal alone,
import torch


def decoder(input_ids, attention_mask, embedding, layers, head):
    batch, length = input_ids.shape
    mask = torch.tril(torch.ones(batch, length, length, dtype=torch.bool))
    out = embedding(input_ids, attention_mask)
    for layer in layers:
        out = layer(out, mask)
    return head(out)

# ==== wrong: two: True means hidden instead of may attend, and only padded keys are considered
# says: Only padded keys are hidden: a padded query still
import torch


def decoder(input_ids, attention_mask, embedding, layers, head):
    length = input_ids.shape[1]
    future = torch.triu(torch.ones(length, length, dtype=torch.bool), diagonal=1)
    padded = (attention_mask == 0)[:, None, None, :]
    mask = future[None, None] | padded
    h = embedding(input_ids, attention_mask)
    for i in range(len(layers)):
        h = layers[i](h, mask)
    return head(h)

# ==== wrong: every layer gets the embeddings instead of what the layer before returned
# says: Every layer reads the embedding, and what the last
import torch


def decoder(input_ids, attention_mask, embedding, layers, head):
    m = attention_mask.bool()
    n = m.shape[1]
    mask = m[:, None, None] & m[:, None, :, None] & torch.ones(n, n).tril().bool()
    x = embedding(input_ids, attention_mask)
    out = x
    for layer in layers:
        out = layer(x, mask)
    return head(out)

# ==== right: outer product and tril
from functools import reduce
import torch


def decoder(input_ids, attention_mask, embedding, layers, head):
    m = attention_mask
    mask = torch.einsum("bq,bk->bqk", m, m).tril().bool().unsqueeze(1)
    return head(reduce(lambda x, f: f(x, mask), layers, embedding(input_ids, m)))

# ==== right: comparing positions
import torch


def decoder(input_ids, attention_mask, embedding, layers, head):
    real = attention_mask != 0
    place = torch.arange(input_ids.shape[1], device=input_ids.device)
    not_after = place.view(1, 1, 1, -1) <= place.view(1, 1, -1, 1)
    mask = not_after & real[:, None, :, None] & real[:, None, None, :]
    x = embedding(input_ids, attention_mask)
    for layer in layers:
        x = layer(x, mask)
    return head(x)
