"""What must hold of a loss that is told by its labels what to ignore.

Rows are of different lengths, some labels in the middle are ignored too, and one of the classes
is 0, which is so often the id of padding.
"""

from collections.abc import Iterator
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F

from minitransformer.checks.engine.between_calls import Answers, asked_inside_inference_mode
from minitransformer.checks.engine.check import at_most, check, expect, max_abs, needs
from minitransformer.checks.losses.subject import CLASSES, LossSubject

core = partial(check, "loss", "core")
robust = partial(check, "loss", "robust")
strict = partial(check, "loss", "strict")

TORCH = "https://github.com/pytorch/pytorch/"
HF = "https://github.com/huggingface/transformers/"
TOLERANCE = {
    torch.float64: 1e-11,
    torch.float32: 1e-4,
    torch.bfloat16: 2e-1,
    torch.float16: 3e-2,
}


def make_batch(
    subject: LossSubject, dtype: torch.dtype | None = None, extra: int = 0
) -> tuple[Tensor, Tensor]:
    """Random logits (3,T,5), and labels that end early in two rows and have a gap in one."""
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(3, 6, CLASSES, generator=generator, dtype=torch.float64) * 2.0
    if extra:
        noise = torch.randn(3, extra, CLASSES, generator=generator, dtype=torch.float64)
        logits = torch.cat([logits, noise], dim=1)
    labels = torch.full((3, 6 + extra), -100)
    labels[0, :2] = torch.tensor([3, 0])
    labels[1, :6] = torch.tensor([1, 4, -100, 0, 2, 2])
    labels[2, :3] = torch.tensor([2, 3, 1])
    return logits.to(subject.device, dtype or subject.dtype), labels.to(subject.device)


def definition(subject: LossSubject, logits: Tensor, labels: Tensor) -> Tensor:
    """-q · log softmax(logits), the mean over the labels that count.

    q is one-hot; with label smoothing 1 - ε is left at the label, and ε spread over the classes.
    """
    counts = labels != -100
    one_hot = F.one_hot(labels[counts], CLASSES).double()
    spread = torch.ones_like(one_hot) if subject.smoothing_over == "all" else 1.0 - one_hot
    spread = spread / spread.sum(dim=-1, keepdim=True)
    target = torch.lerp(one_hot, spread, subject.label_smoothing)
    return -(target * logits[counts].double().log_softmax(-1)).sum() / len(target)


def loss_of(subject: LossSubject, logits: Tensor, labels: Tensor, **flags: int) -> float:
    return float(subject(logits, labels, **flags).detach())


def gradient_of(subject: LossSubject, logits: Tensor, labels: Tensor) -> Tensor:
    logits = logits.detach().requires_grad_()
    loss = subject(logits, labels)
    expect(
        loss.requires_grad,
        "No gradient flows through it: is the loss cut off from the logits, as by detach(), "
        ".item() or torch.no_grad()?",
    )
    (gradient,) = torch.autograd.grad(loss, logits, materialize_grads=True)
    return gradient


def ignored(labels: Tensor) -> Tensor:
    return (labels == -100).unsqueeze(-1)


# ---- core ----------------------------------------------------------------------------------------


@core(measures="difference from the definition")
def it_is_the_mean_over_the_labels_that_count(subject: LossSubject) -> Iterator[float]:
    """The loss is -log softmax(logits)[label], summed over real labels, divided by their number."""
    logits, labels = make_batch(subject)
    found, wanted = loss_of(subject, logits, labels), float(definition(subject, logits, labels))
    yield at_most(
        TOLERANCE[subject.dtype],
        abs(found - wanted),
        f"The loss is {found:.7g} where {wanted:.7g} was expected. Of {labels.numel()} positions "
        f"{int((labels != -100).sum())} have a label: is it divided by that number, and is each "
        "label paired with its own logits?",
        labels=labels,
    )


@core(measures="difference from the definition", mirrors=TORCH + "issues/63004")
def class_zero_counts_as_any_other(subject: LossSubject) -> Iterator[float]:
    """A label 0 is a class to predict, though padding may have the same id."""
    logits, labels = make_batch(subject)
    labels = torch.where(labels == -100, -100, 0)
    yield at_most(
        TOLERANCE[subject.dtype],
        abs(loss_of(subject, logits, labels) - float(definition(subject, logits, labels))),
        "Where all labels are 0 the loss is off by {measured}: is 0 taken for padding?",
        labels=labels,
    )


@core(measures="change of the loss", mirrors=HF + "issues/32832")
def what_is_predicted_at_ignored_labels_is_irrelevant(subject: LossSubject) -> Iterator[float]:
    """Other logits where the label is -100 change no bit of the loss."""
    logits, labels = make_batch(subject)
    others = logits.where(~ignored(labels), 7.0 - 3.0 * logits)
    yield at_most(
        0.0,
        abs(loss_of(subject, others, labels) - loss_of(subject, logits, labels)),
        "Other logits at ignored labels move the loss by {measured}.",
        labels=labels,
    )


@core(measures="change of the loss")
def how_much_is_ignored_is_irrelevant(subject: LossSubject) -> Iterator[float]:
    """1, 3 or 9 more ignored positions change nothing."""
    before = loss_of(subject, *make_batch(subject))
    for extra in (1, 3, 9):
        after = loss_of(subject, *make_batch(subject, extra=extra))
        yield at_most(
            TOLERANCE[subject.dtype],
            abs(after - before),
            f"{extra} more columns of padding turn a loss of {before:.7g} into {after:.7g}: is "
            "padding counted in the number that the sum is divided by?",
        )


@core(measures="difference from the definition", mirrors=HF + "pull/34191")
def a_row_without_labels_changes_nothing(subject: LossSubject) -> Iterator[float]:
    """A row in which every label is ignored leaves the loss of the others as it is."""
    logits, labels = make_batch(subject)
    labels[1] = -100
    found, wanted = loss_of(subject, logits, labels), float(definition(subject, logits, labels))
    yield at_most(
        TOLERANCE[subject.dtype],
        abs(found - wanted),
        f"With one row that has no label, as a prompt that was cut before its answer, the loss is "
        f"{found:.7g} where {wanted:.7g} was expected.",
        labels=labels,
    )


@core(measures="largest gradient at an ignored label")
def no_gradient_reaches_ignored_positions(subject: LossSubject) -> Iterator[float]:
    """The gradient of logits at ignored labels is exactly 0."""
    logits, labels = make_batch(subject)
    yield at_most(
        0.0,
        gradient_of(subject, logits, labels) * ignored(labels),
        "Logits at ignored labels get a gradient of {measured} instead of 0.",
        labels=labels,
    )


@core(measures="largest difference from the true gradient")
def gradients_of_the_loss_are_right(subject: LossSubject) -> Iterator[float]:
    """The gradient at a real label is (softmax(logits) - one-hot(label)) / number of labels."""
    logits, labels = make_batch(subject)
    exact = logits.double().requires_grad_()
    (wanted,) = torch.autograd.grad(definition(subject, exact, labels), exact)
    yield at_most(
        TOLERANCE[subject.dtype],
        gradient_of(subject, logits, labels).double() - wanted,
        "The gradient is off by {measured}, at a largest true gradient of "
        f"{max_abs(wanted):.3g}.",
    )


@core(
    measures="difference of the sum from the whole",
    mirrors=(HF + "pull/34191", "https://github.com/pytorch/torchtune/pull/1875"),
)
def micro_batches_add_up(subject: LossSubject) -> Iterator[float]:
    """Losses of micro-batches, each divided by the labels of all, sum to the loss of the batch."""
    flag = subject.num_labels_flag
    needs(flag, "it declares no num_labels_flag")
    logits, labels = make_batch(subject)
    number = int((labels != -100).sum())
    whole = loss_of(subject, logits, labels)
    rows = zip(logits.split(1), labels.split(1), strict=True)
    parts = sum(loss_of(subject, *row, **{flag: number}) for row in rows)
    yield at_most(
        TOLERANCE[subject.dtype],
        abs(parts - whole),
        f"The losses of three micro-batches with {flag}={number} sum to {parts:.7g}, the loss of "
        f"the batch is {whole:.7g}. Is each divided by {number}?",
        labels=labels,
    )


@core()
def logits_and_labels_are_left_alone(subject: LossSubject) -> None:
    """Logits and labels are the same after the call as before."""
    logits, labels = make_batch(subject)
    labels = labels.masked_fill(labels == -100, subject.ignore_index)
    if subject.flat:
        logits, labels = logits.flatten(0, 1), labels.flatten()
    given = logits.clone(), labels.clone()
    subject.call(*given)
    for name, before, after in zip(subject.arguments, (logits, labels), given, strict=True):
        expect(torch.equal(before, after), f"It changes its {name} in place.")


@core(measures="difference between two calls")
def the_same_batch_gives_the_same_loss(subject: LossSubject) -> Iterator[float]:
    """Called again it returns the same bits."""
    batch = make_batch(subject)
    yield at_most(
        0.0,
        abs(loss_of(subject, *batch) - loss_of(subject, *batch)),
        "Two equal calls differ by {measured}: is something random, or remembered?",
    )


# ---- robust --------------------------------------------------------------------------------------


@robust(
    measures="loss where there is nothing to predict",
    mirrors=(TORCH + "issues/70348", TORCH + "issues/116349"),
)
def nothing_to_predict_is_no_nan(subject: LossSubject) -> Iterator[float]:
    """Where every label is ignored the loss is 0 (or finite, if so declared), and no gradient."""
    logits, labels = make_batch(subject)
    labels = torch.full_like(labels, -100)
    zero = subject.nothing == "zero"
    yield at_most(
        0.0 if zero else torch.finfo(torch.float64).max,
        subject(logits, labels),
        "Where every label is ignored the loss is {measured}, not "
        f"{'0' if zero else 'a finite number'}: is it divided by 0 labels?",
    )
    yield at_most(
        0.0,
        gradient_of(subject, logits, labels),
        "Where every label is ignored the gradient is {measured} instead of 0.",
    )


@robust(measures="relative error of the loss")
def large_logits_are_no_overflow(subject: LossSubject) -> Iterator[float]:
    """Logits of 10,000 give the loss that they have, and finite gradients."""
    logits, labels = make_batch(subject)
    logits = logits * 5e3
    when = f"With logits of up to {max_abs(logits):.3g}"
    found, wanted = loss_of(subject, logits, labels), float(definition(subject, logits, labels))
    yield at_most(
        1e-2,
        abs(found - wanted) / wanted,
        f"{when} the loss is {found:.3g} where {wanted:.3g} was expected. Is the largest logit "
        "subtracted before exp?",
    )
    gradient = gradient_of(subject, logits, labels)
    number = int((~gradient.isfinite()).sum())
    expect(not number, f"{when} {number} gradients are not finite.")


@robust(measures="largest difference from the definition")
def half_precision_logits_are_summed_in_more(subject: LossSubject) -> Iterator[float]:
    """Logits in bfloat16 or float16 lose nothing in the loss: it is computed in float32."""
    halves = [d for d in (torch.bfloat16, torch.float16) if d in subject.dtypes]
    needs(halves, "it promises neither bfloat16 nor float16")
    for dtype in halves:
        logits, labels = make_batch(subject, dtype)
        logits, labels = logits.repeat(1, 60, 1), labels.repeat(1, 60)
        yield at_most(
            1e-4,
            abs(loss_of(subject, logits, labels) - float(definition(subject, logits, labels))),
            f"With logits in {str(dtype).removeprefix('torch.')} and 600 labels the loss is off by "
            "{measured}: is it computed in that dtype, too?",
        )


# ---- strict --------------------------------------------------------------------------------------


@strict(measures="change of the loss", mirrors=TORCH + "issues/11551")
def nan_at_ignored_labels_reaches_no_loss(subject: LossSubject) -> Iterator[float]:
    """NaN or Inf in the logits at ignored labels changes no bit of the loss."""
    logits, labels = make_batch(subject)
    before = loss_of(subject, logits, labels)
    for poison in (float("nan"), float("inf"), float("-inf")):
        after = loss_of(subject, logits.masked_fill(ignored(labels), poison), labels)
        yield at_most(
            0.0,
            abs(after - before),
            f"{poison} at ignored labels turns the loss from {before:.3g} into {after:.3g}.",
        )


@strict(measures="gradients changed", mirrors=TORCH + "issues/11551")
def nan_at_ignored_labels_reaches_no_gradient(subject: LossSubject) -> Iterator[float]:
    """With NaN at ignored labels real gradients stay as they were, and those there are 0."""
    logits, labels = make_batch(subject)
    before = gradient_of(subject, logits, labels)
    for poison in (float("nan"), float("inf")):
        after = gradient_of(subject, logits.masked_fill(ignored(labels), poison), labels)
        yield at_most(
            0.0,
            float((after != before).sum()),
            f"With {poison} at ignored labels {{measured}} gradients change, though the loss may "
            "look right.",
        )


def _answers(subject: LossSubject) -> Answers:
    logits, labels = make_batch(subject)
    return {"labels that end early": subject(logits.requires_grad_(), labels)}


asked_inside_inference_mode("loss", _answers)
