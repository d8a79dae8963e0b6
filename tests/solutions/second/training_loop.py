# ==== wrong: weight and bias are clipped each by its own norm instead of by one common norm
# says: Weight and bias are clipped each by its own
import torch
from torch.nn import functional as F


def training_loop(weight, bias, inputs, labels, learning_rate, max_norm):
    w = weight.clone().detach().requires_grad_()
    b = bias.clone().detach().requires_grad_()
    losses = []
    for x, y in zip(inputs, labels):
        w.grad = b.grad = None
        loss = F.cross_entropy(x @ w.T + b, y, ignore_index=-100, reduction="sum") / max(1, int((y != -100).sum()))
        loss.backward()
        losses.append(loss.item())
        with torch.no_grad():
            for p in (w, b):
                norm = p.grad.norm()
                if norm > max_norm:
                    p.grad *= max_norm / norm
                p -= learning_rate * p.grad
    return w.detach(), b.detach(), losses

# ==== wrong: gradients are always scaled to max_norm, also when their norm is below it
# says: The gradients are always brought to the norm max_norm,
import torch
from torch.nn import functional as F


def training_loop(weight, bias, inputs, labels, learning_rate, max_norm):
    W, B = weight.detach().clone(), bias.detach().clone()
    history = []
    for x, y in zip(inputs, labels):
        if (y == -100).all():
            history.append(0.0)
            continue
        W.requires_grad_(True)
        B.requires_grad_(True)
        loss = F.cross_entropy(torch.nn.functional.linear(x, W, B), y)
        gW, gB = torch.autograd.grad(loss, (W, B))
        total = torch.cat([gW.flatten(), gB.flatten()]).norm()
        scale = max_norm / (total + 1e-12)
        W = (W - learning_rate * scale * gW).detach()
        B = (B - learning_rate * scale * gB).detach()
        history.append(loss.item())
    return W.detach(), B.detach(), history

# ==== wrong: detach without clone: the weight and bias handed in are changed in place
# says: it was changed in place
import torch
from torch.nn import functional as F


def training_loop(weight, bias, inputs, labels, learning_rate, max_norm):
    params = [weight.detach().requires_grad_(), bias.detach().requires_grad_()]
    opt = torch.optim.SGD(params, lr=learning_rate)
    losses = []
    for x, y in zip(inputs, labels):
        opt.zero_grad()
        logits = x @ params[0].T + params[1]
        if (y != -100).any():
            loss = F.cross_entropy(logits, y)
        else:
            loss = logits.sum() * 0
        loss.backward()
        torch.nn.utils.clip_grad_norm_(params, max_norm)
        opt.step()
        losses.append(loss.item())
    return params[0].detach(), params[1].detach(), losses

# ==== wrong: a batch without labels is skipped and its loss of 0 is missing from the list
# says: With a batch without a label that counts, training_loop(...)[2] gives 2 of
import torch
from torch.nn import functional as F


def training_loop(weight, bias, inputs, labels, learning_rate, max_norm):
    weight = weight.clone().detach()
    bias = bias.clone().detach()
    losses = []
    for x, y in zip(inputs, labels):
        keep = y != -100
        if not keep.any():
            continue
        w = weight.clone().requires_grad_()
        b = bias.clone().requires_grad_()
        loss = F.cross_entropy(x[keep] @ w.T + b, y[keep])
        loss.backward()
        norm = (w.grad.pow(2).sum() + b.grad.pow(2).sum()).sqrt()
        factor = (max_norm / norm).clamp(max=1.0) if norm > 0 else 1.0
        weight = weight - learning_rate * factor * w.grad
        bias = bias - learning_rate * factor * b.grad
        losses.append(loss.item())
    return weight, bias, losses

# ==== wrong: two: the loss is recorded after the step, and a batch without labels gives NaN
# says: The losses are those after each step. Before it
import torch
from torch.nn import functional as F


def training_loop(weight, bias, inputs, labels, learning_rate, max_norm):
    w = torch.nn.Parameter(weight.clone())
    b = torch.nn.Parameter(bias.clone())
    sgd = torch.optim.SGD([w, b], lr=learning_rate)
    out = []
    for i in range(len(inputs)):
        sgd.zero_grad()
        F.cross_entropy(inputs[i] @ w.T + b, labels[i]).backward()
        torch.nn.utils.clip_grad_norm_([w, b], max_norm)
        sgd.step()
        with torch.no_grad():
            out.append(F.cross_entropy(inputs[i] @ w.T + b, labels[i]).item())
    return w.detach(), b.detach(), out

# ==== wrong: two: gradients are never cleared, and each entry is clamped to max_norm instead of the norm
# says:
import torch
from torch.nn import functional as F


def training_loop(weight, bias, inputs, labels, learning_rate, max_norm):
    w, b = weight.detach().clone(), bias.detach().clone()
    w.requires_grad = True
    b.requires_grad = True
    losses = []
    for x, y in zip(inputs, labels):
        n = (y != -100).sum()
        if n == 0:
            losses.append(0.0)
            continue
        loss = F.cross_entropy(x @ w.T + b, y, ignore_index=-100)
        loss.backward()
        torch.nn.utils.clip_grad_value_([w, b], max_norm)
        with torch.no_grad():
            w -= learning_rate * w.grad
            b -= learning_rate * b.grad
        losses.append(float(loss))
    return w.detach(), b.detach(), losses

# ==== right: gradients by hand
import torch


def training_loop(weight, bias, inputs, labels, learning_rate, max_norm):
    with torch.no_grad():
        w, b = weight.clone(), bias.clone()
        losses = []
        for x, y in zip(inputs, labels):
            x, y = x[y != -100], y[y != -100]
            if len(y) == 0:
                losses.append(0.0)
                continue
            logp = (x @ w.T + b).log_softmax(-1)
            rows = torch.arange(len(y))
            losses.append(-logp[rows, y].mean().item())
            d = logp.exp()
            d[rows, y] -= 1
            d = d / len(y)
            gw, gb = d.T @ x, d.sum(0)
            norm = float((gw ** 2).sum() + (gb ** 2).sum()) ** 0.5
            s = max_norm / norm if norm > max_norm else 1.0
            w = w - learning_rate * s * gw
            b = b - learning_rate * s * gb
    return w, b, losses

# ==== right: autograd and one vector of gradients
import torch
from torch.nn import functional as F


def training_loop(weight, bias, inputs, labels, learning_rate, max_norm):
    w = weight.detach().clone().requires_grad_()
    b = bias.detach().clone().requires_grad_()
    losses = []
    for x, y in zip(inputs, labels):
        count = (y != -100).sum().clamp(min=1)
        loss = F.cross_entropy(x @ w.T + b, y, reduction="sum") / count
        losses.append(loss.item())
        grads = torch.autograd.grad(loss, [w, b])
        norm = torch.cat([g.reshape(-1) for g in grads]).norm()
        if norm > max_norm:
            grads = [g * (max_norm / norm) for g in grads]
        w = (w - learning_rate * grads[0]).detach().requires_grad_()
        b = (b - learning_rate * grads[1]).detach().requires_grad_()
    return w.detach(), b.detach(), losses
