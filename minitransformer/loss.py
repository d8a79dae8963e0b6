"""Cross-entropy that does not see what it is told to ignore."""

import torch
from torch import Tensor

IGNORE_INDEX = -100  # the label that says: predict nothing here


def cross_entropy(
    logits: Tensor,
    labels: Tensor,
    ignore_index: int = IGNORE_INDEX,
    num_labels: int | Tensor | None = None,
) -> Tensor:
    """-log softmax(logits)[label], summed over the labels that count and divided by their number.

    Logits at ignored labels are left out before anything is computed, so not even NaN there
    reaches the loss or a gradient. With nothing to predict the loss is 0 and so is its gradient.

    `num_labels` is the number to divide by instead: for accumulation over micro-batches or over
    processes, the number of labels in all of them together. (The mean of their means would be
    something else: it counts a token of a short batch more than one of a long batch.)

    Shapes: logits (..., classes), labels (...) int64 -> a scalar in float32, or float64 for
    float64 logits. Raises TypeError or ValueError for wrong types, shapes and labels.
    """
    _check_labels(logits, labels)
    counts = labels != ignore_index
    logits, labels = logits[counts], labels[counts]
    check_range(labels, logits.shape[-1], ignore_index)
    logits = precise(logits)
    log_normalizer = logits.logsumexp(dim=-1)
    chosen = logits.gather(-1, labels.unsqueeze(-1)).squeeze(-1)
    return mean_over((log_normalizer - chosen).sum(), labels, num_labels)


def mean_over(total: Tensor, labels: Tensor, num_labels: int | Tensor | None) -> Tensor:
    """The total over `num_labels`, or over the number of labels; over none it is 0."""
    number = torch.as_tensor(len(labels) if num_labels is None else num_labels)
    return total / torch.where(number == 0, 1, number).to(total.device, non_blocking=True)


def precise(x: Tensor) -> Tensor:
    """In float32 at least."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def check_range(labels: Tensor, classes: int, ignore_index: int) -> None:
    """Refuse labels that are no class."""
    if labels.device.type != "cpu":  # reading back would stall a GPU, whose lookup checks them
        return
    outside = (labels < 0) | (labels >= classes)
    if outside.any():
        raise ValueError(
            f"labels must be {ignore_index} (ignore) or in [0, {classes}), got {labels[outside][0]}"
        )


def _check_labels(logits: Tensor, labels: Tensor) -> None:
    for name, tensor in {"logits": logits, "labels": labels}.items():
        if not isinstance(tensor, Tensor):
            raise TypeError(f"{name} must be a tensor, got {type(tensor).__name__}")
    if not logits.is_floating_point():
        raise TypeError(f"logits must be floating point, got {logits.dtype}")
    if labels.dtype != torch.int64:
        raise TypeError(f"labels must be int64, got {labels.dtype}")
    if logits.shape[:-1] != labels.shape:
        raise ValueError(
            "logits must be (..., classes) and labels (...), "
            f"got {tuple(logits.shape)} and {tuple(labels.shape)}"
        )
