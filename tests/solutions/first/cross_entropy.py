# ==== wrong: log of softmax, which is -inf (loss inf) when a probability underflows to 0
# says: The logarithm is taken of a softmax: a small
import torch


def cross_entropy(logits, labels):
    keep = labels != -100
    if not keep.any():
        return logits.new_zeros(())
    p = torch.softmax(logits[keep], dim=-1)
    chosen = p[torch.arange(p.shape[0]), labels[keep]]
    return -torch.log(chosen).mean()

# ==== wrong: divided by all positions, not by those that count
# says: The sum is right, but it is divided by
import torch


def cross_entropy(logits, labels):
    keep = labels != -100
    logp = logits - logits.logsumexp(-1, keepdim=True)
    picked = logp.gather(-1, labels.clamp(min=0).unsqueeze(-1)).squeeze(-1)
    return -torch.where(keep, picked, torch.zeros_like(picked)).mean()

# ==== wrong: NaN instead of 0 where no label counts
# says: Where no label counts this is 0 / 0,
import torch


def cross_entropy(logits, labels):
    flat_logits = logits.reshape(-1, logits.shape[-1])
    flat_labels = labels.reshape(-1)
    idx = (flat_labels != -100).nonzero().squeeze(1)
    l = flat_logits[idx]
    right = l.gather(1, flat_labels[idx][:, None])[:, 0]
    return (torch.logsumexp(l, 1) - right).mean()

# ==== wrong: the sum instead of the mean
# says: The losses are summed and not divided: this is
import torch


def cross_entropy(logits, labels):
    total = torch.zeros((), dtype=logits.dtype)
    for b in range(labels.shape[0]):
        for t in range(labels.shape[1]):
            y = int(labels[b, t])
            if y != -100:
                total = total + torch.logsumexp(logits[b, t], 0) - logits[b, t, y]
    return total

# ==== wrong: the minus is forgotten
# says: The sign is missing: this is the mean log-probability,
import torch


def cross_entropy(logits, labels):
    real = labels.ne(-100)
    n = real.sum().clamp(min=1)
    shifted = logits - logits.amax(-1, keepdim=True)
    logp = shifted - shifted.exp().sum(-1, keepdim=True).log()
    ll = torch.take_along_dim(logp, labels.masked_fill(~real, 0)[..., None], dim=-1)[..., 0]
    return ll.masked_fill(~real, 0.0).sum() / n

# ==== wrong: exp without subtracting the maximum, large logits overflow
# says: exp is taken of the logits as they are:
import torch


def cross_entropy(logits, labels):
    valid = labels != -100
    if valid.sum() == 0:
        return torch.zeros((), dtype=logits.dtype)
    z, y = logits[valid], labels[valid]
    e = torch.exp(z)
    loss = torch.log(e.sum(dim=1)) - z[range(len(y)), y]
    return loss.mean()

# ==== wrong: -100 is turned into class 0 and counted
# says: -100 is clamped to class 0 and counted: ignored
import torch


def cross_entropy(logits, labels):
    y = labels.clamp(min=0)
    lse = torch.logsumexp(logits, dim=2)
    z = torch.gather(logits, 2, y.unsqueeze(2)).squeeze(2)
    return (lse - z).mean()

# ==== wrong: softmax over the positions (dim=1) and not over the classes
# says: The softmax runs over the positions, not over the
import torch


def cross_entropy(logits, labels):
    counted = labels != -100
    if not bool(counted.any()):
        return torch.tensor(0.0)
    logp = logits - torch.logsumexp(logits, dim=1, keepdim=True)
    safe = torch.where(counted, labels, 0)
    nll = -logp.gather(2, safe[:, :, None])[:, :, 0]
    return nll[counted].mean()

# ==== wrong: the mean of the rows' means, a label in a row with few labels weighs more
# says: Each row is averaged, then the averages are: a
import torch


def cross_entropy(logits, labels):
    per_row = []
    for z, y in zip(logits, labels):
        m = y != -100
        if m.any():
            zz = z[m]
            per_row.append((zz.logsumexp(-1) - zz.gather(-1, y[m][:, None])[:, 0]).mean())
    if len(per_row) == 0:
        return logits.sum() * 0
    return torch.stack(per_row).mean()

# ==== wrong: label 0 is ignored as well (labels > 0)
# says: A label of 0 is ignored, as if it
import torch


def cross_entropy(logits, labels):
    mask = labels > 0
    if mask.sum() == 0:
        return torch.tensor(0.0, dtype=logits.dtype)
    sel, tgt = logits[mask], labels[mask]
    top = sel.max(dim=-1, keepdim=True).values
    logz = (sel - top).exp().sum(-1).log() + top.squeeze(-1)
    return (logz - sel[torch.arange(len(tgt)), tgt]).sum() / len(tgt)

# ==== wrong: the caller's labels are changed in place (-100 becomes 0)
# says: Losses are computed at ignored positions too, and thrown
import torch


def cross_entropy(logits, labels):
    ignore = labels == -100
    labels[ignore] = 0
    nll = torch.logsumexp(logits, -1) - logits.gather(-1, labels.unsqueeze(-1)).squeeze(-1)
    nll = nll.masked_fill(ignore, 0)
    return nll.sum() / max(int((~ignore).sum()), 1)

# ==== wrong: logits and labels are shifted by one again, as other libraries do inside
# says: The labels are shifted a second time. Here the
import torch


def cross_entropy(logits, labels):
    z = logits[:, :-1].reshape(-1, logits.size(-1))
    y = labels[:, 1:].reshape(-1)
    m = y != -100
    if not m.any():
        return logits.new_tensor(0.0)
    z, y = z[m], y[m]
    return (z.logsumexp(1) - z.gather(1, y.view(-1, 1)).view(-1)).mean()

# ==== wrong: a small number is added inside the logarithm, improbable labels cost too little
# says: Losses are computed at ignored positions too, and thrown
import torch


def cross_entropy(logits, labels):
    m = labels != -100
    probs = logits.softmax(dim=-1)
    p = probs.gather(-1, labels.clamp_min(0).unsqueeze(-1)).squeeze(-1)
    losses = -(p + 1e-9).log()
    losses = torch.where(m, losses, 0.0)
    return losses.sum() / m.sum().clamp(min=1)

# ==== wrong: the ignored positions are multiplied with 0, so inf or NaN logits there give NaN
# says: The losses of ignored positions are multiplied by 0,
import torch


def cross_entropy(logits, labels):
    w = (labels != -100).to(logits.dtype)
    index = labels * (labels != -100)
    nll = torch.logsumexp(logits, -1) - torch.gather(logits, -1, index[..., None]).squeeze(-1)
    return (nll * w).sum() / w.sum().clamp(min=1)

# ==== wrong: two: divided by all positions, and log of softmax without protection against 0
# says: The sum is right, but it is divided by
import torch
import torch.nn.functional as F


def cross_entropy(logits, labels):
    prob = F.softmax(logits, dim=-1)
    loss = torch.tensor(0.0)
    for b in range(len(labels)):
        for t in range(len(labels[b])):
            if labels[b, t] != -100:
                loss = loss - torch.log(prob[b, t, labels[b, t]])
    return loss / labels.numel()

# ==== wrong: two: NaN where no label counts, and the logarithm is forgotten (1 - probability of the label)
# says: There is no logarithm: these are probabilities of the
import torch


def cross_entropy(logits, labels):
    keep = labels != -100
    e = (logits - logits.max(-1, keepdim=True)[0]).exp()
    p = e / e.sum(-1, keepdim=True)
    p = p[keep]
    p = p[torch.arange(p.size(0)), labels[keep]]
    return (1 - p).sum() / keep.sum()

# ==== wrong: two: the sum instead of the mean, and exp overflows for large logits
# says: The losses are summed and not divided: this is
import torch


def cross_entropy(logits, labels):
    num_classes = logits.shape[-1]
    onehot = (labels[..., None] == torch.arange(num_classes)).to(logits.dtype)
    logp = logits - logits.exp().sum(-1, keepdim=True).log()
    return -torch.einsum("btc,btc->", onehot, logp)

# ==== wrong: one maximum of the whole tensor is subtracted, positions far below it underflow to log 0
# says: Losses are computed at ignored positions too, and thrown
import torch


def cross_entropy(logits, labels):
    keep = labels != -100
    if not keep.any():
        return torch.zeros([], dtype=logits.dtype)
    s = logits - logits.max()
    nll = s.exp().sum(dim=-1).log() - s.gather(-1, labels.clamp(min=0)[..., None])[..., 0]
    return nll[keep].mean()

# ==== wrong: shape (1,) instead of ()
# says: The loss has an axis of its own, (1,).
import torch


def cross_entropy(logits, labels):
    keep = labels != -100
    count = keep.sum()
    if count == 0:
        return torch.zeros(1)
    z = logits[keep]
    nll = torch.logsumexp(z, dim=-1, keepdim=True) - z.gather(-1, labels[keep].unsqueeze(-1))
    return nll.sum(dim=0) / count

# ==== wrong: softmax is applied twice (on the probabilities as if they were logits)
# says: The softmax is taken twice: of the logits, and
import torch


def cross_entropy(logits, labels):
    m = labels != -100
    if not m.any():
        return logits.new_zeros(())
    q = torch.softmax(logits, -1)[m]
    logq = q - q.logsumexp(-1, keepdim=True)
    return -logq[torch.arange(len(q)), labels[m]].mean()

# ==== right: select first, logsumexp minus the label's logit
import torch
from torch import Tensor


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    keep = labels != -100
    if not keep.any():
        return logits.new_zeros(())
    z, y = logits[keep], labels[keep]
    z = z - z.amax(dim=-1, keepdim=True)
    return (torch.logsumexp(z, dim=-1) - z.gather(-1, y[:, None]).squeeze(-1)).mean()

# ==== right: loops over positions, by hand and shifted by the maximum
import torch


def cross_entropy(logits, labels):
    losses = []
    for b, row in enumerate(labels.tolist()):
        for t, y in enumerate(row):
            if y == -100:
                continue
            z = logits[b, t] - logits[b, t].max()
            losses.append(z.exp().sum().log() - z[y])
    if not losses:
        return torch.zeros((), dtype=logits.dtype, device=logits.device)
    return torch.stack(losses).mean()

# ==== right: float64 inside, torch.where before and after
import torch


def cross_entropy(logits, labels):
    real = labels != -100
    z = torch.where(real[..., None], logits, torch.zeros_like(logits)).double()
    y = torch.where(real, labels, torch.zeros_like(labels))
    nll = z.logsumexp(-1) - z.gather(-1, y.unsqueeze(-1)).squeeze(-1)
    total = torch.where(real, nll, torch.zeros_like(nll)).sum()
    return (total / real.sum().clamp(min=1)).to(logits.dtype)

# ==== right: differences to the label's logit, then logsumexp of them
import torch


def cross_entropy(logits, labels):
    index = torch.nonzero(labels.flatten() != -100).flatten()
    z = logits.flatten(0, 1).index_select(0, index)
    own = z[torch.arange(len(index)), labels.flatten()[index]]
    per_token = torch.logsumexp(z - own.unsqueeze(1), dim=1)
    return per_token.sum() / max(len(index), 1)
