# ==== wrong: documents are ignored: positions count on through the whole row
# says: The positions run on from one document to the
import torch


def token_positions(attention_mask):
    real = (attention_mask != 0).long()
    return (real.cumsum(dim=1) - 1).clamp(min=0) * real

# ==== wrong: position is the column minus the first column of the document, so what stands between counts
# says: This is the distance to the column in which
import torch


def token_positions(attention_mask):
    batch, length = attention_mask.shape
    out = torch.zeros_like(attention_mask)
    for b in range(batch):
        first = {}
        for i in range(length):
            n = int(attention_mask[b, i])
            if n == 0:
                continue
            if n not in first:
                first[n] = i
            out[b, i] = i - first[n]
    return out

# ==== wrong: the token counts itself, so positions begin at 1
# says: Every token counts itself, so positions begin with 1.
import torch


def token_positions(attention_mask):
    same = attention_mask.unsqueeze(2) == attention_mask.unsqueeze(1)
    earlier = torch.ones(attention_mask.shape[1], attention_mask.shape[1]).tril().bool()
    counts = (same & earlier).sum(-1)
    return counts.masked_fill(attention_mask == 0, 0)

# ==== wrong: two: the count starts anew at every change of the number, and padding is counted as well
# says:
import torch


def token_positions(attention_mask):
    result = []
    for row in attention_mask.tolist():
        pos, prev, line = 0, None, []
        for n in row:
            pos = pos + 1 if n == prev else 0
            prev = n
            line.append(pos)
        result.append(line)
    return torch.tensor(result, dtype=torch.int64)

# ==== wrong: two: documents are ignored, and padding on the left gets -1
# says: The positions run on from one document to the
import torch


def token_positions(attention_mask):
    return torch.cumsum(attention_mask.gt(0), dim=-1) - 1

# ==== wrong: the numbers are taken to be 1 to their count, so that a document whose number is above that gets zeros
# says:
import torch


def token_positions(attention_mask):
    pos = torch.zeros_like(attention_mask)
    found = attention_mask.unique()
    n_docs = int((found > 0).sum())
    for d in range(1, n_docs + 1):
        member = attention_mask == d
        pos = torch.where(member, member.long().cumsum(1) - 1, pos)
    return pos

# ==== right: pairs of equal numbers below the diagonal
import torch


def token_positions(attention_mask):
    m = attention_mask
    equal = m[:, :, None] == m[:, None, :]
    before = equal.long().tril(diagonal=-1).sum(dim=2)
    return before * (m != 0)

# ==== right: a counter for each row
import torch
from collections import Counter


def token_positions(attention_mask):
    rows = []
    for row in attention_mask.tolist():
        seen = Counter()
        line = []
        for n in row:
            line.append(seen[n] if n else 0)
            seen[n] += 1
        rows.append(line)
    return torch.tensor(rows, dtype=torch.int64).reshape(attention_mask.shape).to(attention_mask.device)
