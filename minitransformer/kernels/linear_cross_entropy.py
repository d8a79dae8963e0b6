"""The projection to the vocabulary and its cross-entropy, a few rows at a time."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from minitransformer.contract import at_least_float32, check_range, is_transforming
from minitransformer.loss import IGNORE_INDEX, cross_entropy, mean_over

LOGITS = 2**21  # held at a time: so many stay in a processor's cache, enough for its products


def label_positions(labels: Tensor, shape: torch.Size) -> Tensor | None:
    """Where there is a label, as indices into (B·T); None where values must not be looked at.

    They are on the device of the labels: on the CPU, finding them makes no GPU wait.
    Raises ValueError for labels that are not of this shape.
    """
    if labels.shape != shape:
        raise ValueError(
            f"labels must be {tuple(shape)}, one for each position, got {tuple(labels.shape)}"
        )
    if torch.compiler.is_compiling() or is_transforming():
        return None
    return (labels.flatten() != IGNORE_INDEX).nonzero().squeeze(1)


def head_loss(
    head: nn.Module, hidden: Tensor, labels: Tensor, num_labels: int | Tensor | None = None
) -> Tensor:
    """`cross_entropy(head(hidden), labels)`, with the head computed only where there is a label.

    Shapes: hidden (..., d), labels (...) int64, on the CPU or where hidden is.
    """
    at = label_positions(labels, hidden.shape[:-1])
    if at is None:
        return cross_entropy(head(hidden), labels, num_labels=num_labels)
    labels, hidden = labels.flatten(), hidden.flatten(0, -2)
    if len(at) < len(labels):
        labels, hidden = labels[at], hidden[at.to(hidden.device, non_blocking=True)]
    hidden, last = head.transform(hidden), head.projection
    return linear_cross_entropy(hidden, last.weight, last.bias, labels, num_labels)


def linear_cross_entropy(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    labels: Tensor,
    num_labels: int | Tensor | None = None,
) -> Tensor:
    """`cross_entropy(hidden @ weight.T + bias, labels)` that never holds all the logits.

    They are the largest tensor of a language model. Here some rows at a time are computed, with
    their gradients at once: softmax(logits), minus 1 at the label, times what stands around it.

    Shapes: hidden (N,d), weight (classes,d), bias (classes,), labels (N,) int64, none ignored, on
    the device of the others or on the CPU.
    Raises ValueError for labels that are no class.
    """
    check_range(
        "labels", labels, labels != IGNORE_INDEX, len(weight), f"must be {IGNORE_INDEX} (ignore) or"
    )
    labels = labels.to(hidden.device, non_blocking=True)
    total = _LinearCrossEntropy.apply(hidden, weight, bias, labels)
    return mean_over(total, len(labels) if num_labels is None else num_labels)


class _LinearCrossEntropy(torch.autograd.Function):
    """The sum over the labels; backward only scales what forward has computed."""

    @staticmethod
    def forward(ctx, hidden, weight, bias, labels):
        inputs = (hidden, weight) if bias is None else (hidden, weight, bias)
        learns = any(ctx.needs_input_grad)
        gradients = [torch.zeros_like(x) for x in inputs] if learns else []
        total = at_least_float32(hidden.new_zeros(()))
        rows = max(1, LOGITS // len(weight))
        for start in range(0, len(hidden), rows):
            chunk = slice(start, start + rows)
            states, targets = hidden[chunk], labels[chunk].unsqueeze(1)
            logits = F.linear(states, weight, bias)
            scores = at_least_float32(logits)  # from here on in place: every pass over them counts
            highest, chosen = scores.amax(dim=1, keepdim=True), scores.gather(1, targets)
            powers = scores.sub_(highest).exp_()
            normalizer = powers.sum(dim=1, keepdim=True)
            total += (normalizer.log() + highest - chosen).sum()
            if learns:
                error = powers.div_(normalizer)
                error.scatter_add_(1, targets, error.new_full(targets.shape, -1.0))
                error = error.to(logits.dtype)
                gradients[0][chunk] = error @ weight
                _add_product(gradients[1], error.mT, states)
                if bias is not None:
                    gradients[2] += error.sum(dim=0)
        ctx.save_for_backward(*gradients)
        return total

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, gradient):
        hidden, weight, *bias = (x * gradient.to(x.dtype) for x in ctx.saved_tensors)
        return hidden, weight, bias[0] if bias else None, None


def _add_product(total: Tensor, a: Tensor, b: Tensor) -> None:
    """total += a @ b, in one go where no dtype stands in the way."""
    if total.dtype == a.dtype == b.dtype:
        total.addmm_(a, b)
    else:
        total += a @ b
