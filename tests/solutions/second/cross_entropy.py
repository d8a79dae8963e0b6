# ==== wrong: divided by the number of all positions instead of the labels that count
# says: The sum is right, but it is divided by
import torch
from torch import Tensor


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    keep = labels != -100
    picked = logits[keep]
    target = labels[keep]
    nll = picked.logsumexp(-1) - picked.gather(-1, target[:, None]).squeeze(-1)
    return nll.sum() / labels.numel()

# ==== wrong: ignored losses are multiplied by 0, so NaN and Inf leak into the loss
# says: The losses of ignored positions are multiplied by 0,
import torch


def cross_entropy(logits, labels):
    mask = (labels != -100).to(logits.dtype)
    safe = labels.clamp(min=0)
    lse = torch.logsumexp(logits, dim=-1)
    score = logits.gather(2, safe.unsqueeze(2)).squeeze(2)
    return ((lse - score) * mask).sum() / mask.sum().clamp(min=1)

# ==== wrong: where comes after the loss is computed, so the gradient at ignored NaN or Inf logits is NaN
# says: Losses are computed at ignored positions too, and thrown
import torch


def cross_entropy(logits, labels):
    valid = labels != -100
    idx = torch.where(valid, labels, torch.zeros_like(labels))
    losses = logits.logsumexp(-1) - torch.take_along_dim(logits, idx[..., None], -1)[..., 0]
    losses = torch.where(valid, losses, torch.zeros_like(losses))
    return losses.sum() / valid.sum().clamp(min=1)

# ==== wrong: NaN instead of 0 when no label counts (mean of nothing)
# says: Where no label counts this is 0 / 0,
import torch


def cross_entropy(logits, labels):
    keep = labels.flatten() != -100
    z = logits.flatten(0, 1)[keep]
    y = labels.flatten()[keep]
    z = z - z.detach().amax(dim=-1, keepdim=True)
    logp = z - z.exp().sum(-1, keepdim=True).log()
    return -logp[torch.arange(len(y)), y].mean()

# ==== wrong: two mistakes: exp without subtracting the maximum (overflow in the thousands), and NaN when no label counts
# says: Where no label counts this is 0 / 0,
import torch


def cross_entropy(logits, labels):
    sel = labels != -100
    e = torch.exp(logits[sel])
    p = e / e.sum(dim=-1, keepdim=True)
    p_label = p.gather(1, labels[sel].unsqueeze(1))
    return -torch.log(p_label).mean()

# ==== wrong: two mistakes: label 0 is ignored too (labels > 0), and the sum instead of the mean
# says: The losses are summed and not divided: this is
import torch


def cross_entropy(logits, labels):
    total = logits[:0].sum()
    for b in range(labels.shape[0]):
        for t in range(labels.shape[1]):
            y = labels[b, t].item()
            if y > 0:
                row = logits[b, t]
                total = total + torch.logsumexp(row, 0) - row[y]
    return total

# ==== right: select first, then logsumexp
import torch


def cross_entropy(logits, labels):
    keep = labels != -100
    z, y = logits[keep], labels[keep]
    nll = torch.logsumexp(z, dim=-1) - z.gather(-1, y.unsqueeze(-1)).squeeze(-1)
    return nll.sum() / max(int(keep.sum()), 1)

# ==== right: where before the computation, one-hot and own logsumexp
import torch


def cross_entropy(logits, labels):
    keep = labels.ne(-100)
    z = torch.where(keep.unsqueeze(-1), logits, torch.zeros_like(logits))
    classes = torch.arange(logits.shape[-1], device=logits.device)
    hot = labels.unsqueeze(-1) == classes
    top = z.detach().max(dim=-1, keepdim=True).values
    lse = (z - top).exp().sum(-1).log() + top.squeeze(-1)
    score = torch.where(hot, z, torch.zeros_like(z)).sum(-1)
    nll = torch.where(keep, lse - score, torch.zeros_like(lse))
    return nll.sum() / keep.sum().clamp(min=1).to(logits.dtype)
