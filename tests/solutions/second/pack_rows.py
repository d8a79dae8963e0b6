# ==== wrong: next fit: only the last line is tried, earlier lines with room are passed over
# says: Only the newest line is looked at. A short
import torch


def pack_rows(rows, length):
    lines = [[]]
    marks = [[]]
    doc = 0
    for row in rows:
        if len(lines[-1]) + len(row) > length:
            lines.append([])
            marks.append([])
            doc = 0
        doc += 1
        lines[-1] += row
        marks[-1] += [doc] * len(row)
    ids = torch.tensor([l + [0] * (length - len(l)) for l in lines])
    mask = torch.tensor([m + [0] * (length - len(m)) for m in marks])
    return ids, mask

# ==== wrong: the attention_mask is only 1 for real and 0 for padding, documents are not numbered
# says: All documents of a line have the number 1:
import torch
from torch.nn.utils.rnn import pad_sequence


def pack_rows(rows, length):
    bins = []
    for r in rows:
        for b in bins:
            if len(b) + len(r) <= length:
                b.extend(r)
                break
        else:
            bins.append(list(r))
    input_ids = torch.zeros(len(bins), length, dtype=torch.int64)
    attention_mask = torch.zeros_like(input_ids)
    for i, b in enumerate(bins):
        input_ids[i, : len(b)] = torch.tensor(b)
        attention_mask[i, : len(b)] = 1
    return input_ids, attention_mask

# ==== wrong: < for <=, so that a row that would fill its line exactly opens a new line
# says: A row that would just fill a line is
import torch


def pack_rows(rows, length):
    lines = []
    for row in rows:
        placed = False
        for line in lines:
            used = sum(len(d) for d in line)
            if used + len(row) < length:
                line.append(row)
                placed = True
                break
        if not placed:
            lines.append([row])
    ids = torch.zeros((len(lines), length), dtype=torch.long)
    mask = torch.zeros((len(lines), length), dtype=torch.long)
    for i, line in enumerate(lines):
        at = 0
        for n, d in enumerate(line, start=1):
            ids[i, at:at + len(d)] = torch.tensor(d)
            mask[i, at:at + len(d)] = n
            at += len(d)
    return ids, mask

# ==== wrong: two: documents are numbered through all lines instead of anew in each, and only the last line is tried
# says: The numbers run on over all lines. Each line
import torch


def pack_rows(rows, length):
    out_ids, out_mask = [], []
    cur_ids, cur_mask = [], []
    for n, row in enumerate(rows, 1):
        if len(cur_ids) + len(row) > length:
            pad = length - len(cur_ids)
            out_ids.append(cur_ids + [0] * pad)
            out_mask.append(cur_mask + [0] * pad)
            cur_ids, cur_mask = [], []
        cur_ids = cur_ids + row
        cur_mask = cur_mask + [n] * len(row)
    pad = length - len(cur_ids)
    out_ids.append(cur_ids + [0] * pad)
    out_mask.append(cur_mask + [0] * pad)
    return torch.tensor(out_ids), torch.tensor(out_mask)

# ==== wrong: two: rows are sorted by length first, and documents are numbered from 0
# says: The documents are numbered from 0, and 0 stands
import torch


def pack_rows(rows, length):
    rows = sorted(rows, key=len, reverse=True)
    free = []
    content = []
    for row in rows:
        k = next((i for i, f in enumerate(free) if f >= len(row)), None)
        if k is None:
            free.append(length)
            content.append([])
            k = len(free) - 1
        content[k].append(row)
        free[k] -= len(row)
    ids = torch.zeros(len(content), length, dtype=torch.int64)
    mask = torch.zeros(len(content), length, dtype=torch.int64)
    for i, docs in enumerate(content):
        pos = 0
        for n, doc in enumerate(docs):
            for tok in doc:
                ids[i, pos] = tok
                mask[i, pos] = n
                pos += 1
    return ids, mask

# ==== wrong: what a line holds is found by its ids that are not 0, so a token of id 0 counts as free room and is overwritten
# says:
import torch


def pack_rows(rows, length):
    ids = torch.zeros(len(rows), length, dtype=torch.int64)
    mask = torch.zeros(len(rows), length, dtype=torch.int64)
    lines = 0
    for row in rows:
        i = 0
        while int((ids[i] != 0).sum()) + len(row) > length:
            i += 1
        start = int((ids[i] != 0).sum())
        ids[i, start:start + len(row)] = torch.tensor(row)
        mask[i, start:start + len(row)] = mask[i].max() + 1
        lines = max(lines, i + 1)
    return ids[:lines], mask[:lines]

# ==== right: lists with for/else
import torch


def pack_rows(rows, length):
    lines = []
    for row in rows:
        for ids, mask in lines:
            if len(ids) + len(row) <= length:
                break
        else:
            ids, mask = [], []
            lines.append((ids, mask))
        number = mask[-1] + 1 if mask else 1
        ids.extend(row)
        mask.extend([number] * len(row))
    full = lambda x: x + [0] * (length - len(x))
    return (torch.tensor([full(i) for i, _ in lines], dtype=torch.int64),
            torch.tensor([full(m) for _, m in lines], dtype=torch.int64))

# ==== right: with tensors of fill levels and counts, one line for each row at first
import torch


def pack_rows(rows, length):
    n = len(rows)
    used = torch.zeros(n, dtype=torch.int64)
    docs = torch.zeros(n, dtype=torch.int64)
    ids = torch.zeros(n, length, dtype=torch.int64)
    mask = torch.zeros(n, length, dtype=torch.int64)
    for row in rows:
        t = torch.tensor(row, dtype=torch.int64)
        line = int((used + len(row) <= length).nonzero()[0])
        a = int(used[line])
        docs[line] += 1
        ids[line, a:a + len(row)] = t
        mask[line, a:a + len(row)] = docs[line]
        used[line] += len(row)
    keep = docs > 0
    return ids[keep], mask[keep]
