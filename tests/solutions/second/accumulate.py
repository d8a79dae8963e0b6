# ==== wrong: the mean of the parts' means
# says: Each part is averaged, then the averages are: a
import torch
from torch import Tensor


def accumulate(token_losses: list[Tensor], labels: list[Tensor]) -> Tensor:
    means = []
    for loss, lab in zip(token_losses, labels):
        keep = lab != -100
        means.append(loss[keep].sum() / keep.sum().clamp(min=1))
    return torch.stack(means).mean()

# ==== wrong: ignored losses are multiplied by 0, so NaN and Inf reach the mean
# says: The losses of ignored positions are multiplied by 0,
def accumulate(token_losses, labels):
    total, count = 0.0, 0
    for l, y in zip(token_losses, labels):
        m = (y != -100).float()
        total = total + (l * m).sum()
        count = count + m.sum()
    return total / count.clamp(min=1)

# ==== wrong: divided by all the positions, the ignored ones too
# says: The sum is right, but it is divided by
import torch


def accumulate(token_losses, labels):
    flat = torch.cat([t.reshape(-1) for t in token_losses])
    lab = torch.cat([t.reshape(-1) for t in labels])
    flat = torch.where(lab == -100, torch.zeros_like(flat), flat)
    return flat.mean()

# ==== wrong: weighted means of the parts, but a part that is all -100 gives NaN times 0, so all is NaN
# says: A part without labels has a mean of 0
def accumulate(token_losses, labels):
    counts = [(y != -100).sum() for y in labels]
    n = sum(counts)
    if n == 0:
        return sum(t[y != -100].sum() for t, y in zip(token_losses, labels))
    result = 0
    for t, y, c in zip(token_losses, labels, counts):
        result = result + t[y != -100].mean() * (c / n)
    return result

# ==== wrong: two mistakes: item() cuts the gradient, and the mean of the means of the parts that have labels
# says: Each part is averaged, then the averages are: a
import torch


def accumulate(token_losses, labels):
    s = 0.0
    parts = 0
    for loss, y in zip(token_losses, labels):
        valid = loss[y != -100]
        if valid.numel() > 0:
            s += valid.mean().item()
            parts += 1
    return torch.tensor(s / max(parts, 1))

# ==== wrong: two mistakes: label 0 is ignored too (labels > 0), and NaN when nothing counts
# says: Where no label counts this is 0 / 0,
import torch


def accumulate(token_losses, labels):
    kept = [loss[lab > 0] for loss, lab in zip(token_losses, labels)]
    return torch.cat(kept).mean()

# ==== right: select, concatenate
import torch


def accumulate(token_losses, labels):
    kept = torch.cat([l[y != -100] for l, y in zip(token_losses, labels)])
    return kept.sum() / max(kept.numel(), 1)

# ==== right: running sums with where
import torch


def accumulate(token_losses, labels):
    total = torch.zeros((), dtype=token_losses[0].dtype)
    count = 0
    for loss, lab in zip(token_losses, labels):
        keep = lab.ne(-100)
        total = total + torch.where(keep, loss, torch.zeros_like(loss)).sum()
        count += keep.sum().item()
    return total / count if count else total
