# ==== wrong: the mean of the parts' means
# says: Each part is averaged, then the averages are: a
import torch


def accumulate(token_losses, labels):
    means = []
    for loss, y in zip(token_losses, labels):
        keep = y != -100
        if keep.any():
            means.append(loss[keep].mean())
    if not means:
        return torch.tensor(0.0)
    return torch.stack(means).mean()

# ==== wrong: divided by all positions, not by those that count
# says: The sum is right, but it is divided by
import torch


def accumulate(token_losses, labels):
    total = torch.zeros(())
    n = 0
    for loss, y in zip(token_losses, labels):
        total = total + torch.where(y != -100, loss, torch.zeros_like(loss)).sum()
        n += y.numel()
    return total / max(n, 1)

# ==== wrong: NaN instead of 0 if no label counts
# says: Where no label counts this is 0 / 0,
import torch


def accumulate(token_losses, labels):
    total, count = torch.tensor(0.0), torch.tensor(0)
    for loss, y in zip(token_losses, labels):
        mask = y.ne(-100)
        total = total + loss[mask].sum()
        count = count + mask.sum()
    return total / count

# ==== wrong: the sum is divided by the number of parts
# says: The sum is divided by the number of parts,
import torch


def accumulate(token_losses, labels):
    s = torch.tensor(0.0)
    for l, y in zip(token_losses, labels):
        s = s + l.masked_fill(y == -100, 0.0).sum()
    return s / len(token_losses)

# ==== wrong: labels are not looked at, the mean over all positions
# says: Ignored positions are counted like all others: this is
import torch


def accumulate(token_losses, labels):
    flat = torch.cat([torch.zeros(0)] + [t.reshape(-1) for t in token_losses])
    if flat.numel() == 0:
        return torch.zeros(())
    return flat.mean()

# ==== wrong: multiplied with the mask, so NaN or inf at an ignored position gives NaN
# says: The losses of ignored positions are multiplied by 0,
import torch


def accumulate(token_losses, labels):
    num = sum((l * (y != -100).float()).sum() for l, y in zip(token_losses, labels))
    den = sum((y != -100).sum() for y in labels)
    return num / den if den > 0 else torch.tensor(0.0)

# ==== wrong: label 0 does not count (labels > 0)
# says: A label of 0 is ignored, in the sum
import torch


def accumulate(token_losses, labels):
    kept = [l[y > 0] for l, y in zip(token_losses, labels)]
    kept = torch.cat(kept) if kept else torch.zeros(0)
    return kept.sum() / max(kept.numel(), 1)

# ==== wrong: the sum without division
# says: The losses are summed and not divided: this is
import torch


def accumulate(token_losses, labels):
    out = torch.zeros(())
    for part, lab in zip(token_losses, labels):
        for row, lrow in zip(part, lab):
            for v, y in zip(row, lrow):
                if y.item() != -100:
                    out = out + v
    return out

# ==== wrong: weighted by the number of labels, but a part without labels gives NaN (0 / 0)
# says: A part without labels has a mean of 0
import torch


def accumulate(token_losses, labels):
    counts = [(y != -100).sum() for y in labels]
    everything = sum(counts)
    if everything == 0:
        return torch.tensor(0.0)
    result = torch.tensor(0.0)
    for l, y, c in zip(token_losses, labels, counts):
        result = result + l[y != -100].mean() * (c / everything)
    return result

# ==== wrong: the caller's losses are set to 0 in place
# says: it was changed in place
import torch


def accumulate(token_losses, labels):
    total, n = torch.tensor(0.0), 0
    for loss, y in zip(token_losses, labels):
        loss[y == -100] = 0
        total = total + loss.sum()
        n = n + int((y != -100).sum())
    if n == 0:
        return torch.tensor(0.0)
    return total / n

# ==== wrong: the parts are weighted by their number of rows and not by their labels
# says: The means of the parts are weighed by their
import torch


def accumulate(token_losses, labels):
    acc, rows = torch.tensor(0.0), 0
    for l, y in zip(token_losses, labels):
        m = y != -100
        if m.any():
            acc = acc + l[m].mean() * l.shape[0]
        rows += l.shape[0]
    return acc / max(rows, 1)

# ==== wrong: the sums are reset for each part, only the last part counts
# says: In the sum, in the number of labels or
import torch


def accumulate(token_losses, labels):
    answer = torch.tensor(0.0)
    for loss, y in zip(token_losses, labels):
        total = 0.0
        count = 0
        ok = y != -100
        total += loss[ok].sum()
        count += ok.sum()
        answer = total / count.clamp(min=1)
    return answer

# ==== wrong: the mean of the rows' means
# says: Every row is averaged by itself, then the averages
import torch


def accumulate(token_losses, labels):
    row_means = []
    for part, lab in zip(token_losses, labels):
        for i in range(part.shape[0]):
            sel = part[i][lab[i] != -100]
            if len(sel) > 0:
                row_means.append(sel.mean())
    return torch.stack(row_means).mean() if row_means else torch.tensor(0.0)

# ==== wrong: two: the mean of the parts' means, and each mean is over all positions
# says: Each part is divided by all of its positions,
import torch


def accumulate(token_losses, labels):
    total = torch.tensor(0.0)
    for l, y in zip(token_losses, labels):
        total = total + (torch.where(y == -100, 0.0, l)).mean() / len(token_losses)
    return total

# ==== wrong: two: only the count of the first part is used (times the number of parts), and NaN if nothing counts
# says: Where no label counts this is 0 / 0,
import torch


def accumulate(token_losses, labels):
    if len(labels) == 0:
        return torch.tensor(0.0)
    n = (labels[0] != -100).sum() * len(labels)
    sums = torch.stack([l[y != -100].sum() for l, y in zip(token_losses, labels)])
    return sums.sum() / n

# ==== wrong: two: the mask is inverted (the ignored positions count), and the sum is not divided
# says: The losses are summed and not divided: this is
import torch


def accumulate(token_losses, labels):
    total = torch.tensor(0.0)
    for losses, lab in zip(token_losses, labels):
        ignore = lab == -100
        total = total + torch.sum(losses[ignore])
    return total

# ==== wrong: the parts are joined along the batch, which fails when they differ in length
# says:
import torch


def accumulate(token_losses, labels):
    losses = torch.cat(token_losses, dim=0)
    y = torch.cat(labels, dim=0)
    keep = y != -100
    if keep.sum() == 0:
        return torch.tensor(0.0)
    return losses[keep].mean()

# ==== wrong: shape (1,) instead of ()
# says: The loss has an axis of its own, (1,).
import torch


def accumulate(token_losses, labels):
    total = torch.zeros(1)
    count = torch.zeros(1)
    for l, y in zip(token_losses, labels):
        m = (y != -100)
        total += l[m].sum()
        count += m.sum()
    return total / count.clamp(min=1)

# ==== wrong: 1 is always added to the count, to avoid dividing by 0
# says: 1 is added to the number of labels, to
import torch


def accumulate(token_losses, labels):
    total = sum(torch.where(y != -100, l, 0.0).sum() for l, y in zip(token_losses, labels))
    count = sum(int((y != -100).sum()) for y in labels)
    return total / (count + 1)

# ==== wrong: a Python float instead of a tensor
# says: A number of Python comes back, which has no
def accumulate(token_losses, labels):
    total, count = 0.0, 0
    for losses, lab in zip(token_losses, labels):
        for ls, ys in zip(losses.tolist(), lab.tolist()):
            for loss, y in zip(ls, ys):
                if y != -100:
                    total += loss
                    count += 1
    return total / count if count else 0.0

# ==== right: sums and counts in a loop
import torch
from torch import Tensor


def accumulate(token_losses: list[Tensor], labels: list[Tensor]) -> Tensor:
    total, count = torch.zeros(()), 0
    for loss, y in zip(token_losses, labels):
        keep = y != -100
        total = total + loss[keep].sum()
        count += int(keep.sum())
    return total / max(count, 1)

# ==== right: all counted losses in one flat tensor
import torch


def accumulate(token_losses, labels):
    picked = [torch.masked_select(l, y != -100) for l, y in zip(token_losses, labels)]
    flat = torch.cat(picked) if picked else torch.zeros(0)
    return flat.mean() if flat.numel() else flat.sum()

# ==== right: the count first, then each part's share, with torch.where
import torch


def accumulate(token_losses, labels):
    n = sum((y != -100).sum() for y in labels)
    n = max(int(n), 1)
    out = torch.tensor(0.0)
    for l, y in zip(token_losses, labels):
        out = out + (torch.where(y == -100, torch.zeros_like(l), l) / n).sum()
    return out

# ==== right: float64 inside and nested lists
import torch


def accumulate(token_losses, labels):
    kept = []
    for part, lab in zip(token_losses, labels):
        for row, ys in zip(part, lab):
            kept.extend(v.double() for v, y in zip(row, ys.tolist()) if y != -100)
    if not kept:
        return torch.zeros(())
    return torch.stack(kept).mean().float()
