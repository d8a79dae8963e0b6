"""Cross-entropy that leaves ignored labels out of the computation."""

import torch
from torch import Tensor

from minitransformer.contract import at_least_float32, check_range, check_tensor

IGNORE_INDEX = -100  # the label that says: predict nothing here


def cross_entropy(
    logits: Tensor,
    labels: Tensor,
    ignore_index: int = IGNORE_INDEX,
    num_labels: int | Tensor | None = None,
) -> Tensor:
    """-log softmax(logits)[label], summed over the labels that count and divided by their number.

    Logits at ignored labels are zeroed before anything is computed, so not even NaN there
    reaches the loss or a gradient. With nothing to predict the loss is 0 and so is its gradient.

    `num_labels` is the number to divide by instead: for gradient accumulation over micro-batches or
    processes, that of all of them together (a token-weighted loss, unlike the mean of their means).

    Shapes: logits (..., classes), labels (...) int64 -> a scalar in float32, or float64 for
    float64 logits. Raises TypeError or ValueError for wrong types, shapes and labels.
    """
    check_tensor("logits", logits)
    check_tensor("labels", labels)
    if not logits.is_floating_point():
        raise TypeError(f"logits must be floating point, got {logits.dtype}")
    if labels.dtype != torch.int64:
        raise TypeError(f"labels must be int64, got {labels.dtype}")
    if logits.shape[:-1] != labels.shape:
        raise ValueError(
            "logits must be (..., classes) and labels (...), "
            f"got {tuple(logits.shape)} and {tuple(labels.shape)}"
        )
    counts = labels != ignore_index
    check_range("labels", labels, counts, logits.shape[-1], f"must be {ignore_index} (ignore) or")
    logits = at_least_float32(logits.masked_fill(~counts.unsqueeze(-1), 0.0))
    labels = labels.masked_fill(~counts, 0)
    chosen = logits.gather(-1, labels.unsqueeze(-1)).squeeze(-1)
    losses = (logits.logsumexp(dim=-1) - chosen).masked_fill(~counts, 0.0)
    return mean_over(losses.sum(), counts.sum() if num_labels is None else num_labels)


def mean_over(total: Tensor, number: int | Tensor) -> Tensor:
    """The total over the number of labels; over none it is 0."""
    number = torch.as_tensor(number)
    return total / torch.where(number == 0, 1, number).to(total.device, non_blocking=True)
