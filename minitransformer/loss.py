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
    if not labels.is_cuda and ((labels < 0) | (labels >= logits.shape[-1])).any():
        wrong = labels[(labels < 0) | (labels >= logits.shape[-1])][0]
        raise ValueError(
            f"labels must be {ignore_index} (ignore) or in [0, {logits.shape[-1]}), got {wrong}"
        )
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    log_normalizer = logits.logsumexp(dim=-1)
    chosen = logits.gather(-1, labels.unsqueeze(-1)).squeeze(-1)
    total = (log_normalizer - chosen).sum()
    number = torch.as_tensor(len(labels) if num_labels is None else num_labels)
    return total / torch.where(number == 0, 1, number).to(total.device)


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
