# ==== wrong: only the last line is looked at (next fit), an earlier line with room is never filled
# says: Only the newest line is looked at. A short
import torch
from torch import Tensor


def pack_rows(rows: list[list[int]], length: int) -> tuple[Tensor, Tensor]:
    lines, masks = [], []
    for row in rows:
        if not lines or len(lines[-1]) + len(row) > length:
            lines.append([])
            masks.append([])
        number = max(masks[-1], default=0) + 1
        lines[-1].extend(row)
        masks[-1].extend([number] * len(row))
    ids = torch.zeros(len(lines), length, dtype=torch.int64)
    mask = torch.zeros(len(lines), length, dtype=torch.int64)
    for i in range(len(lines)):
        ids[i, : len(lines[i])] = torch.tensor(lines[i])
        mask[i, : len(masks[i])] = torch.tensor(masks[i])
    return ids, mask

# ==== wrong: attention_mask is 1 for every real token, the documents are not numbered
# says: All documents of a line have the number 1:
import torch


def pack_rows(rows, length):
    lines = []
    for row in rows:
        for line in lines:
            if len(line) + len(row) <= length:
                line += row
                break
        else:
            lines.append(list(row))
    input_ids = torch.zeros((len(lines), length), dtype=torch.long)
    attention_mask = torch.zeros_like(input_ids)
    for k, line in enumerate(lines):
        input_ids[k, : len(line)] = torch.tensor(line, dtype=torch.long)
        attention_mask[k, : len(line)] = 1
    return input_ids, attention_mask

# ==== wrong: the numbers run on over all lines instead of beginning with 1 in each line
# says: The numbers run on over all lines. Each line
import torch


def pack_rows(rows, length):
    bins = []
    for doc_number, row in enumerate(rows, start=1):
        target = None
        for b in bins:
            if length - len(b) >= len(row):
                target = b
                break
        if target is None:
            target = []
            bins.append(target)
        target.extend((tok, doc_number) for tok in row)
    ids = torch.zeros(len(bins), length, dtype=torch.int64)
    att = torch.zeros(len(bins), length, dtype=torch.int64)
    for i, b in enumerate(bins):
        for j, (tok, doc) in enumerate(b):
            ids[i, j] = tok
            att[i, j] = doc
    return ids, att

# ==== wrong: < instead of <=, a row that would fill a line exactly is sent to a new line
# says: A row that would just fill a line is
import torch
from torch import Tensor


def pack_rows(rows: list[list[int]], length: int) -> tuple[Tensor, Tensor]:
    used: list[int] = []
    count: list[int] = []
    placed = []
    for row in rows:
        n = len(row)
        where = next((i for i, u in enumerate(used) if u + n < length), None)
        if where is None:
            where = len(used)
            used.append(0)
            count.append(0)
        count[where] += 1
        placed.append((where, used[where], count[where], row))
        used[where] += n
    ids = torch.zeros(len(used), length, dtype=torch.int64)
    mask = ids.clone()
    for where, start, number, row in placed:
        ids[where, start : start + len(row)] = torch.tensor(row)
        mask[where, start : start + len(row)] = number
    return ids, mask

# ==== wrong: documents are numbered from 0, so the first one looks like padding
# says: The documents are numbered from 0, and 0 stands
import torch


def pack_rows(rows, length):
    lines = []
    for row in rows:
        for line in lines:
            if sum(len(d) for d in line) + len(row) <= length:
                line.append(row)
                break
        else:
            lines.append([row])

    ids = []
    mask = []
    for line in lines:
        t = []
        m = []
        for k, d in enumerate(line):
            t = t + d
            m = m + [k] * len(d)
        ids.append(t + [0] * (length - len(t)))
        mask.append(m + [0] * (length - len(m)))
    return (
        torch.tensor(ids, dtype=torch.int64).reshape(-1, length),
        torch.tensor(mask, dtype=torch.int64).reshape(-1, length),
    )

# ==== wrong: every row gets a line of its own (padding as ever, nothing is packed)
# says: Every row has a line of its own: this
import torch
import torch.nn.functional as F


def pack_rows(rows, length):
    ids = [F.pad(torch.tensor(r, dtype=torch.int64), (0, length - len(r))) for r in rows]
    masks = [F.pad(torch.ones(len(r), dtype=torch.int64), (0, length - len(r))) for r in rows]
    if not rows:
        empty = torch.zeros(0, length, dtype=torch.int64)
        return empty, empty.clone()
    return torch.stack(ids), torch.stack(masks)

# ==== wrong: rows are sorted by length first (first fit decreasing), the order is lost
# says: The rows are sorted by length first. That may
import torch


def pack_rows(rows, length):
    rows = sorted(rows, key=len, reverse=True)
    lines = []
    for row in rows:
        for line in lines:
            if len(line["ids"]) + len(row) <= length:
                break
        else:
            line = {"ids": [], "mask": [], "n": 0}
            lines.append(line)
        line["n"] += 1
        line["ids"] += row
        line["mask"] += [line["n"]] * len(row)
    out = torch.zeros(2, len(lines), length, dtype=torch.int64)
    for i, line in enumerate(lines):
        out[0, i, : len(line["ids"])] = torch.tensor(line["ids"])
        out[1, i, : len(line["mask"])] = torch.tensor(line["mask"])
    return out[0], out[1]

# ==== wrong: all rows are joined and cut into pieces of `length`, so documents are split over lines
# says: All tokens are strung together and cut every `length`
import torch


def pack_rows(rows, length):
    stream, doc = [], []
    for n, row in enumerate(rows, 1):
        stream.extend(row)
        doc.extend([n] * len(row))
    while len(stream) % length:
        stream.append(0)
        doc.append(0)
    input_ids = torch.tensor(stream, dtype=torch.int64).view(-1, length)
    docs = torch.tensor(doc, dtype=torch.int64).view(-1, length)
    first = docs[:, :1]
    attention_mask = torch.where(docs > 0, docs - first + 1, torch.zeros_like(docs))
    return input_ids, attention_mask

# ==== wrong: the mask is made with input_ids != 0, so a real token with id 0 is padding
# says: A token whose id is 0 is taken for
import torch


def pack_rows(rows, length):
    lines, numbers = [], []
    for row in rows:
        i = 0
        while i < len(lines) and len(lines[i]) + len(row) > length:
            i += 1
        if i == len(lines):
            lines.append([])
            numbers.append([])
        k = numbers[i][-1] + 1 if numbers[i] else 1
        lines[i] = lines[i] + list(row)
        numbers[i] = numbers[i] + [k] * len(row)
    input_ids = torch.tensor([l + [0] * (length - len(l)) for l in lines], dtype=torch.int64)
    doc = torch.tensor([n + [0] * (length - len(n)) for n in numbers], dtype=torch.int64)
    input_ids, doc = input_ids.reshape(-1, length), doc.reshape(-1, length)
    attention_mask = (input_ids != 0).long() * doc
    return input_ids, attention_mask

# ==== wrong: the caller's rows are changed, because the first row of a line is the line itself
# says: it was changed in place
import torch


def pack_rows(rows, length):
    packed = []
    docs = []
    for row in rows:
        for line, doc in zip(packed, docs):
            if len(line) + len(row) <= length:
                doc.extend([doc[-1] + 1] * len(row))
                line.extend(row)
                break
        else:
            docs.append([1] * len(row))
            packed.append(row)
    ids = torch.zeros(len(packed), length, dtype=torch.int64)
    mask = torch.zeros(len(packed), length, dtype=torch.int64)
    for i, (line, doc) in enumerate(zip(packed, docs)):
        ids[i, : len(line)] = torch.tensor(line)
        mask[i, : len(doc)] = torch.tensor(doc)
    return ids, mask

# ==== wrong: padding is put on the left of the tokens
# says: The lines are filled up in front. The empty
import torch


def pack_rows(rows, length):
    lines = []
    for row in rows:
        spot = [l for l in lines if sum(map(len, l)) + len(row) <= length]
        if spot:
            spot[0].append(row)
        else:
            lines.append([row])
    ids = torch.zeros(len(lines), length, dtype=torch.int64)
    mask = torch.zeros(len(lines), length, dtype=torch.int64)
    for i, line in enumerate(lines):
        tokens = [t for row in line for t in row]
        numbers = [n for n, row in enumerate(line, 1) for _ in row]
        ids[i, length - len(tokens):] = torch.tensor(tokens)
        mask[i, length - len(numbers):] = torch.tensor(numbers)
    return ids, mask

# ==== wrong: each row goes into the fullest line that has room (best fit), not into the first
# says: The line with the least room, or the most,
import torch


def pack_rows(rows, length):
    lines = []
    for row in rows:
        fitting = [line for line in lines if len(line) + len(row) <= length]
        if fitting:
            line = max(fitting, key=len)
        else:
            line = []
            lines.append(line)
        number = line[-1][1] + 1 if line else 1
        line.extend([(t, number) for t in row])
    ids = torch.zeros(len(lines), length, dtype=torch.int64)
    mask = torch.zeros(len(lines), length, dtype=torch.int64)
    for i, line in enumerate(lines):
        for j, (t, n) in enumerate(line):
            ids[i, j], mask[i, j] = t, n
    return ids, mask

# ==== wrong: two mistakes: only the last line is looked at, and the numbers run on over all lines
# says: The numbers run on over all lines. Each line
import torch


def pack_rows(rows, length):
    ids, mask = [[]], [[]]
    for i, r in enumerate(rows):
        if len(ids[-1]) + len(r) > length:
            ids.append([])
            mask.append([])
        ids[-1] = ids[-1] + r
        mask[-1] = mask[-1] + [i + 1] * len(r)

    def pad(seqs):
        return torch.tensor([s + [0] * (length - len(s)) for s in seqs], dtype=torch.int64)

    return pad(ids), pad(mask)

# ==== wrong: two mistakes: attention_mask is only 0 and 1, and a line is never filled up to the last place
# says: All documents of a line have the number 1:
import torch
from torch.nn.utils.rnn import pad_sequence


def pack_rows(rows, length):
    lines = []
    for row in rows:
        for line in lines:
            if len(line) + len(row) < length:
                line.extend(row)
                break
        else:
            lines.append(row[:])
    if not lines:
        z = torch.zeros(0, length, dtype=torch.int64)
        return z, z
    full = pad_sequence([torch.tensor(l) for l in lines] + [torch.zeros(length, dtype=torch.int64)], batch_first=True)[:-1]
    lens = torch.tensor([len(l) for l in lines])
    mask = (torch.arange(length)[None, :] < lens[:, None]).long()
    return full, mask

# ==== wrong: two mistakes: input_ids are padded with -100, and the documents are numbered from 0 with padding -1
# says: The documents are numbered from 0, and 0 stands
import torch


def pack_rows(rows, length):
    lines = []
    for row in rows:
        for line in lines:
            if sum(len(r) for r in line) + len(row) <= length:
                line.append(row)
                break
        else:
            lines.append([row])
    ids = torch.full((len(lines), length), -100, dtype=torch.int64)
    mask = torch.full((len(lines), length), -1, dtype=torch.int64)
    for i, line in enumerate(lines):
        p = 0
        for n, row in enumerate(line):
            for t in row:
                ids[i, p] = t
                mask[i, p] = n
                p += 1
    return ids, mask

# ==== wrong: the lines are only as long as the longest of them, not `length`
# says: The lines are as long as the longest of
import torch
from torch.nn.utils.rnn import pad_sequence


def pack_rows(rows, length):
    lines, docs = [], []
    for row in rows:
        for k in range(len(lines)):
            if len(lines[k]) + len(row) <= length:
                break
        else:
            k = len(lines)
            lines.append([])
            docs.append([0])
        docs[k] += [docs[k][-1] + 1] * len(row)
        lines[k] += row
    if not lines:
        return torch.zeros(0, length, dtype=torch.int64), torch.zeros(0, length, dtype=torch.int64)
    ids = pad_sequence([torch.tensor(l) for l in lines], batch_first=True)
    mask = pad_sequence([torch.tensor(d[1:]) for d in docs], batch_first=True)
    return ids, mask

# ==== wrong: no break, a row is put into every line that has room
# says: A row is put into every line that has
import torch


def pack_rows(rows, length):
    lines = []
    for row in rows:
        found = False
        for line in lines:
            if len(line) + len(row) <= length:
                number = line[-1][1] + 1
                line.extend((t, number) for t in row)
                found = True
        if not found:
            lines.append([(t, 1) for t in row])
    ids = torch.zeros(len(lines), length, dtype=torch.int64)
    mask = torch.zeros(len(lines), length, dtype=torch.int64)
    for i, line in enumerate(lines):
        ids[i, : len(line)] = torch.tensor([t for t, _ in line])
        mask[i, : len(line)] = torch.tensor([n for _, n in line])
    return ids, mask

# ==== wrong: attention_mask holds each token's position in its document instead of the document's number
# says: The attention_mask holds positions, or the lengths of documents.
import torch


def pack_rows(rows, length):
    lines, marks = [], []
    for row in rows:
        for line, mark in zip(lines, marks):
            if len(line) + len(row) <= length:
                line.extend(row)
                mark.extend(range(1, len(row) + 1))
                break
        else:
            lines.append(list(row))
            marks.append(list(range(1, len(row) + 1)))
    ids = torch.tensor([l + [0] * (length - len(l)) for l in lines], dtype=torch.int64)
    mask = torch.tensor([m + [0] * (length - len(m)) for m in marks], dtype=torch.int64)
    return ids.reshape(len(lines), length), mask.reshape(len(lines), length)

# ==== wrong: the two tensors come back in the wrong order, the mask first
# says: input_ids and attention_mask have changed places.
import torch


def pack_rows(rows, length):
    lines = []
    for row in rows:
        for line in lines:
            if len(line) + len(row) <= length:
                break
        else:
            line = []
            lines.append(line)
        n = 1 + (line[-1][0] if line else 0)
        line += [(n, t) for t in row]
    for line in lines:
        line += [(0, 0)] * (length - len(line))
    both = torch.tensor(lines, dtype=torch.int64).reshape(len(lines), length, 2)
    return both[..., 0], both[..., 1]

# ==== right: lists, for and else
import torch
from torch import Tensor


def pack_rows(rows: list[list[int]], length: int) -> tuple[Tensor, Tensor]:
    lines: list[list[list[int]]] = []
    for row in rows:
        for line in lines:
            if sum(len(r) for r in line) + len(row) <= length:
                line.append(row)
                break
        else:
            lines.append([row])
    input_ids = torch.zeros(len(lines), length, dtype=torch.int64)
    attention_mask = torch.zeros(len(lines), length, dtype=torch.int64)
    for i, line in enumerate(lines):
        start = 0
        for n, row in enumerate(line, 1):
            input_ids[i, start : start + len(row)] = torch.tensor(row, dtype=torch.int64)
            attention_mask[i, start : start + len(row)] = n
            start += len(row)
    return input_ids, attention_mask

# ==== right: one tensor as large as could be needed, cut at the end
import torch


def pack_rows(rows, length):
    ids = torch.zeros(len(rows), length, dtype=torch.int64)
    mask = torch.zeros(len(rows), length, dtype=torch.int64)
    for row in rows:
        free = (mask == 0).sum(dim=1)
        line = int((free >= len(row)).int().argmax())
        start = length - int(free[line])
        end = start + len(row)
        number = int(mask[line].max()) + 1
        ids[line, start:end] = torch.tensor(row)
        mask[line, start:end] = number
    keep = mask[:, 0] > 0 if length else torch.zeros(0, dtype=torch.bool)
    return ids[keep], mask[keep]

# ==== right: a small class
import torch


class Line:
    def __init__(self, length):
        self.room, self.count, self.ids, self.docs = length, 0, [], []

    def add(self, row):
        if len(row) > self.room:
            return False
        self.count += 1
        self.room -= len(row)
        self.ids += [*row]
        self.docs += len(row) * [self.count]
        return True

    def padded(self, what):
        return what + [0] * self.room


def pack_rows(rows, length):
    lines = []
    for row in rows:
        if not any(line.add(row) for line in lines):
            lines.append(Line(length))
            lines[-1].add(row)
    shape = (len(lines), length)
    ids = torch.tensor([l.padded(l.ids) for l in lines], dtype=torch.int64).reshape(shape)
    docs = torch.tensor([l.padded(l.docs) for l in lines], dtype=torch.int64).reshape(shape)
    return ids, docs
