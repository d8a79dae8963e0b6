# ==== wrong: the mask is read off the ids, so a real token whose id is pad_id counts as padding
# says: The mask is read off the ids, so a
import torch


def pad_batch(rows, pad_id, side):
    longest = max(len(r) for r in rows)
    padded = []
    for r in rows:
        fill = [pad_id] * (longest - len(r))
        padded.append(r + fill if side == "right" else fill + r)
    input_ids = torch.tensor(padded, dtype=torch.long)
    return input_ids, (input_ids != pad_id).long()

# ==== wrong: the sides are swapped: "left" puts the padding behind the tokens
# says: The sides are mixed up. "right" is where the
import torch


def pad_batch(rows, pad_id, side):
    n = max(map(len, rows))
    ids = torch.full((len(rows), n), pad_id, dtype=torch.int64)
    mask = torch.zeros(len(rows), n, dtype=torch.int64)
    for i, row in enumerate(rows):
        start = 0 if side == "left" else n - len(row)
        ids[i, start:start + len(row)] = torch.tensor(row, dtype=torch.int64)
        mask[i, start:start + len(row)] = 1
    return ids, mask

# ==== wrong: the lists in rows are changed in place
# says: it was changed in place
import torch


def pad_batch(rows, pad_id, side):
    longest = max([len(row) for row in rows])
    masks = []
    for row in rows:
        m = [1] * len(row)
        while len(row) < longest:
            if side == "right":
                row.append(pad_id)
                m.append(0)
            else:
                row.insert(0, pad_id)
                m.insert(0, 0)
        masks.append(m)
    return torch.tensor(rows, dtype=torch.int64), torch.tensor(masks, dtype=torch.int64)

# ==== wrong: with padding on the left an empty row gets a mask of ones, because the slice -0: is the whole row
# says: An empty row becomes real from end to end:
import torch


def pad_batch(rows, pad_id, side):
    width = max(len(r) for r in rows)
    mask = torch.zeros((len(rows), width), dtype=torch.long)
    lines = []
    for i, r in enumerate(rows):
        missing = width - len(r)
        if side == "left":
            lines.append([pad_id] * missing + list(r))
            mask[i, -len(r):] = 1
        else:
            lines.append(list(r) + [pad_id] * missing)
            mask[i, :len(r)] = 1
    return torch.tensor(lines, dtype=torch.long), mask

# ==== wrong: two mistakes: side is ignored (always right), and the mask is read off the ids
# says: The mask is read off the ids, so a
import torch
from torch.nn.utils.rnn import pad_sequence


def pad_batch(rows, pad_id, side):
    tensors = [torch.tensor(r, dtype=torch.int64) for r in rows]
    ids = pad_sequence(tensors, batch_first=True, padding_value=pad_id)
    mask = torch.where(ids == pad_id, 0, 1)
    return ids, mask

# ==== wrong: two mistakes: the mask is filled from the front even where the padding is on the left, and it is float instead of int64
# says: The ids are padded on the one side and
import torch


def pad_batch(rows, pad_id, side):
    lengths = [len(r) for r in rows]
    L = max(lengths)
    input_ids = torch.full((len(rows), L), pad_id)
    attention_mask = torch.zeros(len(rows), L)
    for b, (r, n) in enumerate(zip(rows, lengths)):
        attention_mask[b, :n] = 1
        t = torch.tensor(r, dtype=torch.long)
        if side == "right":
            input_ids[b, :n] = t
        else:
            input_ids[b, L - n:] = t
    return input_ids, attention_mask

# ==== right: lists of ids and of marks, side by side
import torch


def pad_batch(rows, pad_id, side):
    longest = max(len(r) for r in rows)
    ids, mask = [], []
    for r in rows:
        gap = longest - len(r)
        before, after = (gap, 0) if side == "left" else (0, gap)
        ids.append([pad_id] * before + r + [pad_id] * after)
        mask.append([0] * before + [1] * len(r) + [0] * after)
    return torch.tensor(ids, dtype=torch.int64), torch.tensor(mask, dtype=torch.int64)

# ==== right: the mask from the lengths by comparison, the ids scattered into it
import torch


def pad_batch(rows, pad_id, side):
    lengths = torch.tensor([len(r) for r in rows])
    longest = int(lengths.max())
    places = torch.arange(longest)
    real = places < lengths[:, None]
    if side == "left":
        real = real.flip(1)
    ids = torch.full(real.shape, pad_id, dtype=torch.int64)
    ids[real] = torch.tensor([t for r in rows for t in r], dtype=torch.int64)
    return ids, real.long()
