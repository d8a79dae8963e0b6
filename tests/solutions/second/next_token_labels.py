# ==== wrong: only the position itself is checked, so the last real token gets the id of padding
# says: Padding is learned: only this position is asked whether
import torch
from torch import Tensor


def next_token_labels(input_ids: Tensor, attention_mask: Tensor) -> Tensor:
    labels = torch.full_like(input_ids, -100)
    labels[:, :-1] = input_ids[:, 1:]
    labels[attention_mask == 0] = -100
    return labels

# ==== wrong: only the next position is checked, so with padding on the left the last padding gets the first real token
# says: Padding predicts: only the next position is asked whether
import torch


def next_token_labels(input_ids, attention_mask):
    shifted = input_ids[:, 1:].masked_fill(attention_mask[:, 1:] == 0, -100)
    last = torch.full((input_ids.size(0), 1), -100, dtype=torch.long)
    return torch.cat([shifted, last], dim=1)

# ==== wrong: roll wraps around, so the last position gets the first token when both are real
# says: The last position learns the first token of its
import torch


def next_token_labels(input_ids, attention_mask):
    following = torch.roll(input_ids, shifts=-1, dims=1)
    ok = attention_mask.bool() & torch.roll(attention_mask, -1, 1).bool()
    return torch.where(ok, following, torch.tensor(-100))

# ==== wrong: shifted the wrong way, the label is the token before
# says: It is shifted the wrong way: the label is
import torch


def next_token_labels(input_ids, attention_mask):
    out = torch.full_like(input_ids, -100)
    B, L = input_ids.shape
    for b in range(B):
        for t in range(1, L):
            if attention_mask[b, t] == 1 and attention_mask[b, t - 1] == 1:
                out[b, t] = input_ids[b, t - 1]
    return out

# ==== wrong: two mistakes: not shifted (the label is the token itself), and input_ids is changed in place
# says: Nothing is shifted: the label of a token is
import torch


def next_token_labels(input_ids, attention_mask):
    labels = input_ids
    labels[attention_mask == 0] = -100
    return labels

# ==== wrong: two mistakes: padding is told by id 0 instead of attention_mask, and the last position gets 0 instead of -100
# says:
import torch
import torch.nn.functional as F


def next_token_labels(input_ids, attention_mask):
    nxt = F.pad(input_ids[:, 1:], (0, 1), value=0)
    real = input_ids != 0
    nxt_real = F.pad(real[:, 1:], (0, 1), value=True)
    return nxt.masked_fill(~(real & nxt_real), -100)

# ==== right: slices and where
import torch


def next_token_labels(input_ids, attention_mask):
    labels = torch.full_like(input_ids, -100)
    both = (attention_mask[:, :-1] * attention_mask[:, 1:]) == 1
    labels[:, :-1] = torch.where(both, input_ids[:, 1:], labels[:, :-1])
    return labels

# ==== right: python lists
import torch


def next_token_labels(input_ids, attention_mask):
    rows = []
    for ids, real in zip(input_ids.tolist(), attention_mask.tolist()):
        row = [b if r and s else -100 for b, r, s in zip(ids[1:], real, real[1:])]
        rows.append(row + [-100])
    return torch.tensor(rows, dtype=torch.int64).reshape(input_ids.shape)
