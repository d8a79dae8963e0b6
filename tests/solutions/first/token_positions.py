# ==== wrong: positions are not restarted in each document of a packed row
# says: The positions run on from one document to the
from torch import Tensor


def token_positions(attention_mask: Tensor) -> Tensor:
    real = (attention_mask != 0).long()
    positions = real.cumsum(dim=-1) - 1
    return positions.masked_fill(attention_mask == 0, 0)

# ==== wrong: the place in the row (arange), padding and documents are ignored
# says: These are the numbers of the columns. Padding on
import torch
from torch import Tensor


def token_positions(attention_mask: Tensor) -> Tensor:
    batch, length = attention_mask.shape
    return torch.arange(length, device=attention_mask.device).expand(batch, length).clone()

# ==== wrong: cumsum of the numbers themselves, as if the mask were only 0 and 1
# says: The numbers in the mask are added up, which
def token_positions(attention_mask):
    p = attention_mask.cumsum(-1) - 1
    p[attention_mask == 0] = 0
    return p

# ==== wrong: counts from 1 instead of 0
# says: Every token counts itself, so positions begin with 1.
import torch


def token_positions(attention_mask):
    out = torch.zeros_like(attention_mask)
    for doc in attention_mask.unique().tolist():
        if doc == 0:
            continue
        mine = (attention_mask == doc).long()
        out += mine.cumsum(dim=1) * mine
    return out

# ==== wrong: padding gets position 1 instead of 0 (as in Hugging Face's generate)
# says: Padding has a position other than 0.
def token_positions(attention_mask):
    same = attention_mask.unsqueeze(2) == attention_mask.unsqueeze(1)
    position_ids = same.tril().sum(-1) - 1
    position_ids.masked_fill_(attention_mask == 0, 1)
    return position_ids

# ==== wrong: padding is counted like one more document, it does not get 0
# says: Padding is numbered too, as if it were a
import torch


def token_positions(attention_mask):
    same = attention_mask[:, :, None] == attention_mask[:, None, :]
    n = attention_mask.shape[1]
    earlier = torch.ones(n, n, dtype=torch.bool, device=attention_mask.device).tril(-1)
    return (same & earlier).sum(dim=2)

# ==== wrong: padding gets -1
# says: Padding has a position other than 0.
import torch
from torch import Tensor


def token_positions(attention_mask: Tensor) -> Tensor:
    result = torch.full_like(attention_mask, -1)
    for b in range(attention_mask.size(0)):
        seen = {}
        for t in range(attention_mask.size(1)):
            d = int(attention_mask[b, t])
            if d > 0:
                result[b, t] = seen.get(d, 0)
                seen[d] = seen.get(d, 0) + 1
    return result

# ==== wrong: distance to the document's first token, so padding inside a document is counted
# says: This is the distance to the column in which
import torch


def token_positions(attention_mask):
    length = attention_mask.shape[1]
    idx = torch.arange(length, device=attention_mask.device)
    same = attention_mask[:, :, None] == attention_mask[:, None, :]
    start = torch.where(same, idx, length).amin(dim=-1)
    return (idx - start) * (attention_mask > 0)

# ==== wrong: counts down the batch (dim 0) instead of along the row
# says: It is counted down the batch, not along the
import torch
import torch.nn.functional as F


def token_positions(attention_mask):
    if attention_mask.numel() == 0:
        return attention_mask.clone()
    one_hot = F.one_hot(attention_mask)
    counts = one_hot.cumsum(dim=0) - 1
    pos = counts.gather(-1, attention_mask.unsqueeze(-1)).squeeze(-1)
    return torch.where(attention_mask == 0, 0, pos)

# ==== wrong: the count restarts after every change of the number, so also after padding inside a document
# says: A new count begins wherever the number changes. A
import torch


def token_positions(attention_mask):
    out = torch.zeros_like(attention_mask)
    for r, row in enumerate(attention_mask.tolist()):
        before, count = None, 0
        for c, doc in enumerate(row):
            if doc != before:
                count = 0
            out[r, c] = count if doc else 0
            count += 1
            before = doc
    return out

# ==== wrong: the starts of the documents are taken from the first row of the batch for all rows
# says: The documents of the first row are taken for
import torch


def token_positions(attention_mask):
    out = torch.zeros_like(attention_mask)
    first = attention_mask[0]
    for doc in range(1, int(attention_mask.max()) + 1):
        is_doc = attention_mask == doc
        offset = ((first != 0) & (first < doc)).sum()
        running = (attention_mask != 0).long().cumsum(1) - 1
        out = torch.where(is_doc, running - offset, out)
    return out

# ==== wrong: the last document is forgotten (range without + 1)
# says: Some documents are left out, and their tokens all
import torch


def token_positions(attention_mask):
    positions = torch.zeros_like(attention_mask)
    highest = int(attention_mask.max()) if attention_mask.numel() else 0
    for n in range(1, highest):
        hit = attention_mask.eq(n)
        positions[hit] = (hit.cumsum(1) - 1)[hit]
    return positions

# ==== wrong: two mistakes: counts from 1, and padding inside a document is counted
# says: Every token counts itself, so positions begin with 1.
import torch


def token_positions(attention_mask):
    out = torch.zeros_like(attention_mask)
    for i in range(attention_mask.shape[0]):
        row = attention_mask[i]
        for d in set(row.tolist()) - {0}:
            where = (row == d).nonzero().flatten()
            out[i, where] = where - where[0] + 1
    return out

# ==== wrong: two mistakes: no restart in a new document, and padding gets 1
# says: The positions run on from one document to the
def token_positions(attention_mask):
    position_ids = attention_mask.bool().long().cumsum(-1) - 1
    position_ids.masked_fill_(attention_mask == 0, 1)
    return position_ids

# ==== wrong: two mistakes: the result is float, and the tokens after are counted instead of those before
# says: This is the number of tokens of the document
import torch


def token_positions(attention_mask):
    same = (attention_mask[:, None, :] == attention_mask[:, :, None]).float()
    later = torch.triu(same, diagonal=1).sum(dim=-1)
    return later * (attention_mask > 0).float()

# ==== wrong: the argument is changed, the numbers in attention_mask are overwritten
# says: it was changed in place
def token_positions(attention_mask):
    real = attention_mask > 0
    same = attention_mask.unsqueeze(-1) == attention_mask.unsqueeze(-2)
    count = same.tril().sum(-1) - 1
    attention_mask.copy_(count * real)
    return attention_mask

# ==== wrong: counts from the document's end, the last token is 0
# says: This is the number of tokens of the document
def token_positions(attention_mask):
    mask = attention_mask
    out = mask * 0
    for d in range(1, mask.max().item() + 1):
        m = (mask == d).long()
        out = out + m * (m.flip(1).cumsum(1).flip(1) - 1)
    return out

# ==== wrong: one counter per document number for the whole batch, it is not reset with each row
# says: The count runs on from row to row. A
from collections import Counter

import torch


def token_positions(attention_mask):
    seen = Counter()
    rows = []
    for row in attention_mask.tolist():
        line = []
        for doc in row:
            if doc == 0:
                line.append(0)
            else:
                line.append(seen[doc])
                seen[doc] += 1
        rows.append(line)
    return torch.tensor(rows, dtype=torch.int64).reshape(attention_mask.shape)

# ==== wrong: only document 1 is a document, the others get 0 like padding
# says: Some documents are left out, and their tokens all
def token_positions(attention_mask):
    keep = (attention_mask == 1).long()
    return (keep.cumsum(1) - 1).clamp(min=0) * keep

# ==== wrong: running count of all tokens minus its value at the document's first token, tokens of another document in between are counted too
# says: Where documents alternate, tokens of the other are counted
import torch


def token_positions(attention_mask):
    real = (attention_mask > 0).long()
    running = real.cumsum(1) - 1
    out = torch.zeros_like(attention_mask)
    for b in range(len(attention_mask)):
        for d in attention_mask[b].unique():
            if d == 0:
                continue
            here = attention_mask[b] == d
            out[b, here] = running[b, here] - running[b, here].min()
    return out

# ==== right: comparison of all pairs
import torch
from torch import Tensor


def token_positions(attention_mask: Tensor) -> Tensor:
    same = attention_mask[:, :, None] == attention_mask[:, None, :]
    before = same.tril(diagonal=-1).sum(dim=-1)
    return torch.where(attention_mask > 0, before, torch.zeros_like(before))

# ==== right: one hot and cumsum
import torch
import torch.nn.functional as F


def token_positions(attention_mask):
    if attention_mask.numel() == 0:
        return torch.zeros_like(attention_mask)
    hot = F.one_hot(attention_mask)
    hot[..., 0] = 0
    return ((hot.cumsum(dim=1) - 1) * hot).sum(dim=-1)

# ==== right: loops and a dictionary
import torch


def token_positions(attention_mask):
    out = torch.zeros_like(attention_mask)
    for i, row in enumerate(attention_mask.tolist()):
        seen = {}
        for j, n in enumerate(row):
            if n:
                out[i, j] = seen.setdefault(n, 0)
                seen[n] += 1
    return out

# ==== right: stable sort by document
import torch


def token_positions(attention_mask):
    number, order = attention_mask.sort(dim=1, stable=True)
    place = torch.arange(attention_mask.shape[1], device=attention_mask.device).expand_as(number).contiguous()
    start = torch.searchsorted(number, number)
    rank = torch.zeros_like(attention_mask).scatter(1, order, place - start)
    return rank * attention_mask.ne(0)
