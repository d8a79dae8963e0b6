# ==== wrong: no shift, each token is its own label
# says: Nothing is shifted: the label of a token is
import torch


def next_token_labels(input_ids, attention_mask):
    return input_ids.masked_fill(attention_mask == 0, -100)

# ==== wrong: only the padding's own labels are hidden, the last real token before right padding learns padding
# says: Padding is learned: only this position is asked whether
import torch


def next_token_labels(input_ids, attention_mask):
    labels = torch.full_like(input_ids, -100)
    labels[:, :-1] = input_ids[:, 1:]
    labels[attention_mask == 0] = -100
    return labels

# ==== wrong: only the next token's mask is checked, with left padding the last padding learns the first token
# says: Padding predicts: only the next position is asked whether
import torch


def next_token_labels(input_ids, attention_mask):
    shifted = input_ids[:, 1:]
    keep = attention_mask[:, 1:].bool()
    shifted = torch.where(keep, shifted, -100)
    end = torch.full((input_ids.shape[0], 1), -100, dtype=input_ids.dtype)
    return torch.cat([shifted, end], dim=1)

# ==== wrong: roll wraps around, in a row without padding on the right the last token learns the first one
# says: The last position learns the first token of its
import torch


def next_token_labels(input_ids, attention_mask):
    nxt = torch.roll(input_ids, shifts=-1, dims=1)
    nxt_mask = torch.roll(attention_mask, shifts=-1, dims=1)
    return nxt.masked_fill((attention_mask * nxt_mask) == 0, -100)

# ==== wrong: shifted in the wrong direction, the label is the previous token
# says: It is shifted the wrong way: the label is
import torch


def next_token_labels(input_ids, attention_mask):
    out = torch.full_like(input_ids, -100)
    both = (attention_mask[:, 1:] == 1) & (attention_mask[:, :-1] == 1)
    out[:, 1:] = torch.where(both, input_ids[:, :-1], torch.tensor(-100))
    return out

# ==== wrong: padding is recognized by the id 0 and not by attention_mask
# says: Padding is told by its id. A real token
import torch


def next_token_labels(input_ids, attention_mask):
    pad_id = 0
    batch, length = input_ids.shape
    labels = torch.full((batch, length), -100, dtype=torch.long)
    for b in range(batch):
        for t in range(length - 1):
            if input_ids[b, t] != pad_id and input_ids[b, t + 1] != pad_id:
                labels[b, t] = input_ids[b, t + 1]
    return labels

# ==== wrong: one column too short, the last -100 is missing
# says: There is a column too few. Labels have the
import torch


def next_token_labels(input_ids, attention_mask):
    labels = input_ids[:, 1:].clone()
    labels[(attention_mask[:, 1:] & attention_mask[:, :-1]) == 0] = -100
    return labels

# ==== wrong: 0 instead of -100 where there is nothing to learn
# says: Something other than -100 stands where nothing is to
import torch


def next_token_labels(input_ids, attention_mask):
    labels = torch.zeros_like(input_ids)
    labels[:, :-1] = input_ids[:, 1:] * attention_mask[:, 1:] * attention_mask[:, :-1]
    return labels

# ==== wrong: changes the caller's input_ids in place
# says: it was changed in place
import torch


def next_token_labels(input_ids, attention_mask):
    labels = input_ids
    labels[:, :-1] = input_ids[:, 1:].clone()
    labels[:, -1] = -100
    labels[:, :-1][(attention_mask[:, 1:] * attention_mask[:, :-1]) == 0] = -100
    return labels

# ==== wrong: attention_mask is ignored, only the last column is -100
# says: Padding is not ignored: it learns, and is learned.
import torch.nn.functional as F


def next_token_labels(input_ids, attention_mask):
    return F.pad(input_ids[:, 1:], (0, 1), value=-100)

# ==== wrong: padding is assumed on the right (the row's length counted from the left), left padding is wrong
# says: The number of real tokens is taken for the
import torch


def next_token_labels(input_ids, attention_mask):
    result = torch.full_like(input_ids, -100)
    lengths = attention_mask.sum(1).tolist()
    for row, n in enumerate(lengths):
        if n > 1:
            result[row, : n - 1] = input_ids[row, 1:n]
    return result

# ==== wrong: off by one at the end, the last label of each row (second to last real token) is hidden too
# says: The last real token of a sequence is nobody's
import torch


def next_token_labels(input_ids, attention_mask):
    labels = torch.full_like(input_ids, -100)
    for b in range(len(input_ids)):
        where = attention_mask[b].nonzero().flatten().tolist()
        for t in where[:-2]:
            labels[b, t] = input_ids[b, t + 1]
    return labels

# ==== wrong: shifted by two positions
# says: It is shifted twice: the label is the token
import torch


def next_token_labels(input_ids, attention_mask):
    ids = input_ids.masked_fill(attention_mask == 0, -100)
    tail = ids.new_full((ids.shape[0], 2), -100)
    moved = torch.cat([ids[:, 2:], tail], dim=1)[:, : ids.shape[1]]
    return moved.masked_fill(attention_mask == 0, -100)

# ==== wrong: two: no shift, and padding recognized by id 0
# says: Nothing is shifted: the label of a token is
import torch


def next_token_labels(input_ids, attention_mask):
    labels = input_ids.clone()
    labels[labels == 0] = -100
    return labels

# ==== wrong: two: roll wraps the first token to the end, and the last real token learns padding
# says: The last position learns the first token of its
import torch


def next_token_labels(input_ids, attention_mask):
    rolled = input_ids.roll(-1, 1)
    return torch.where(attention_mask == 1, rolled, torch.full_like(rolled, -100))

# ==== wrong: two: one column too short, and only the next token's mask is checked
# says: There is a column too few. Labels have the
import torch


def next_token_labels(input_ids, attention_mask):
    target, m = input_ids[:, 1:], attention_mask[:, 1:]
    return target * m + (-100) * (1 - m)

# ==== wrong: float result instead of int64
# says: The labels are not int64. A loss takes them
import torch


def next_token_labels(input_ids, attention_mask):
    b, n = input_ids.shape
    out = torch.ones(b, n) * -100
    ok = attention_mask[:, :-1].bool() & attention_mask[:, 1:].bool()
    out[:, :-1][ok] = input_ids[:, 1:][ok].float()
    return out

# ==== wrong: the rows are taken as one long text, the last token of a row learns the first of the next row
# says: The rows are strung together: the last token of
import torch


def next_token_labels(input_ids, attention_mask):
    flat = input_ids.flatten()
    m = attention_mask.flatten()
    labels = torch.full_like(flat, -100)
    for i in range(len(flat) - 1):
        if m[i] == 1 and m[i + 1] == 1:
            labels[i] = flat[i + 1]
    return labels.view_as(input_ids)

# ==== right: full_like and where on the shifted part
import torch
from torch import Tensor


def next_token_labels(input_ids: Tensor, attention_mask: Tensor) -> Tensor:
    labels = torch.full_like(input_ids, -100)
    both = (attention_mask[:, :-1] == 1) & (attention_mask[:, 1:] == 1)
    labels[:, :-1] = torch.where(both, input_ids[:, 1:], labels[:, 1:])
    return labels

# ==== right: lists and loops
import torch


def next_token_labels(input_ids, attention_mask):
    result = []
    for ids, real in zip(input_ids.tolist(), attention_mask.tolist()):
        row = [-100] * len(ids)
        where = [t for t, r in enumerate(real) if r]
        for here, there in zip(where, where[1:]):
            row[here] = ids[there]
        result.append(row)
    return torch.tensor(result, dtype=torch.int64).reshape(input_ids.shape)

# ==== right: padded with F.pad, masked by arithmetic
import torch.nn.functional as F


def next_token_labels(input_ids, attention_mask):
    following = F.pad(input_ids[:, 1:], (0, 1))
    counts = attention_mask * F.pad(attention_mask[:, 1:], (0, 1))
    return following * counts - 100 * (1 - counts)

# ==== right: hide padding first, then shift with roll and close the end
import torch


def next_token_labels(input_ids, attention_mask):
    hidden = input_ids.masked_fill(attention_mask == 0, -100)
    shifted = hidden.roll(-1, dims=1)
    shifted[:, -1:] = -100
    return shifted.masked_fill(attention_mask == 0, -100)
