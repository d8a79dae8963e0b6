"""What must hold of a loss that is told by its labels what to ignore: subject and checks.

Rows are of different lengths, some labels in the middle are ignored too, and one of the classes
is 0, which is so often the id of padding.
"""

import torch
from torch import Tensor

from minitransformer.checks.engine.between_calls import Answers, asked_inside_inference_mode
from minitransformer.checks.engine.check import check, exceeds, expect, max_abs, needs
from minitransformer.checks.losses.subject import CLASSES, LossSubject

TORCH = "https://github.com/pytorch/pytorch/"
HF = "https://github.com/huggingface/transformers/"
TOLERANCE = {
    torch.float64: 1e-12,
    torch.float32: 1e-5,
    torch.bfloat16: 2e-2,
    torch.float16: 3e-3,
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


def definition(logits: Tensor, labels: Tensor) -> Tensor:
    """-log softmax(logits)[label], the mean over the labels that count, label by label."""
    logits = logits.double()
    real = (labels != -100).nonzero().tolist()
    losses = [-logits[b, t].log_softmax(0)[labels[b, t]] for b, t in real]
    return torch.stack(losses).sum() / len(losses)


def gradient_of(subject: LossSubject, logits: Tensor, labels: Tensor) -> Tensor:
    logits = logits.detach().requires_grad_()
    loss = subject(logits, labels)
    expect(
        loss.requires_grad,
        "No gradient flows through it: the loss is cut off from the logits. Look for detach(), "
        ".item() or torch.no_grad().",
    )
    (gradient,) = torch.autograd.grad(loss, logits, materialize_grads=True)
    return gradient


def ignored(labels: Tensor) -> Tensor:
    return (labels == -100).unsqueeze(-1)


# ---- core ----------------------------------------------------------------------------------------


@check("loss", "core", measures="difference from the definition")
def it_is_the_mean_over_the_labels_that_count(subject: LossSubject) -> float:
    """The loss is -log softmax(logits)[label], summed over real labels, divided by their number."""
    logits, labels = make_batch(subject)
    found, wanted = float(subject(logits, labels).detach()), float(definition(logits, labels))
    error = abs(found - wanted)
    expect(
        not exceeds(error, 10 * TOLERANCE[subject.dtype]),
        f"The loss is {found:.4g} where {wanted:.4g} was expected: {found / wanted:.3g} times as "
        f"much. Of {labels.numel()} positions {int((labels != -100).sum())} have a label: is it "
        "divided by that number, and is each label paired with its own logits?",
        error,
        labels=labels,
    )
    return error


@check(
    "loss",
    "core",
    measures="difference from the definition",
    mirrors=TORCH + "issues/63004",
)
def class_zero_counts_as_any_other(subject: LossSubject) -> float:
    """A label 0 is a class to predict, though padding may have the same id."""
    logits, labels = make_batch(subject)
    labels = torch.where(labels == -100, -100, 0)
    error = abs(float(subject(logits, labels).detach()) - float(definition(logits, labels)))
    expect(
        not exceeds(error, 10 * TOLERANCE[subject.dtype]),
        f"Where all labels are 0 the loss is off by {error:.3g}: is 0 taken for padding? What is "
        "to be ignored is said by the label -100.",
        error,
        labels=labels,
    )
    return error


@check("loss", "core", measures="change of the loss", mirrors=HF + "issues/32832")
def what_is_predicted_at_ignored_labels_is_irrelevant(subject: LossSubject) -> float:
    """Other logits where the label is -100 change no bit of the loss."""
    logits, labels = make_batch(subject)
    before = subject(logits, labels).detach()
    after = subject(logits.where(~ignored(labels), 7.0 - 3.0 * logits), labels).detach()
    change = float((after.double() - before.double()).abs())
    expect(
        torch.equal(before, after),
        f"Other logits at ignored labels move the loss by {change:.3g}: padding is trained on.",
        change,
        labels=labels,
    )
    return change


@check("loss", "core", measures="change of the loss")
def how_much_is_ignored_is_irrelevant(subject: LossSubject) -> float:
    """1, 3 or 9 more ignored positions change nothing."""
    before = float(subject(*make_batch(subject)).detach())
    largest = 0.0
    for extra in (1, 3, 9):
        logits, labels = make_batch(subject, extra=extra)
        after = float(subject(logits, labels).detach())
        largest = max(largest, abs(after - before))
        expect(
            not exceeds(abs(after - before), 10 * TOLERANCE[subject.dtype]),
            f"{extra} more columns of padding turn a loss of {before:.4g} into {after:.4g}: "
            "padding is counted in the number that the sum is divided by.",
            abs(after - before),
        )
    return largest


@check("loss", "core", measures="difference from the definition", mirrors=HF + "pull/34191")
def a_row_without_labels_changes_nothing(subject: LossSubject) -> float:
    """A row in which every label is ignored leaves the loss of the others as it is."""
    logits, labels = make_batch(subject)
    labels[1] = -100
    found, wanted = float(subject(logits, labels).detach()), float(definition(logits, labels))
    error = abs(found - wanted)
    expect(
        not exceeds(error, 10 * TOLERANCE[subject.dtype]),
        f"With one row that has no label the loss is {found:.4g} where {wanted:.4g} was expected: "
        "such a row, as a prompt that was cut before its answer, counts for nothing.",
        error,
        labels=labels,
    )
    return error


@check("loss", "core", measures="largest gradient at an ignored label")
def no_gradient_reaches_ignored_positions(subject: LossSubject) -> float:
    """The gradient of logits at ignored labels is exactly 0."""
    logits, labels = make_batch(subject)
    leak = max_abs(gradient_of(subject, logits, labels) * ignored(labels))
    expect(
        not exceeds(leak),
        f"Logits at ignored labels get a gradient of {leak:.3g} instead of 0: the model is "
        "trained on its padding.",
        leak,
        labels=labels,
    )
    return leak


@check("loss", "core", measures="largest difference from the true gradient")
def gradients_of_the_loss_are_right(subject: LossSubject) -> float:
    """The gradient at a real label is (softmax(logits) - one-hot(label)) / number of labels."""
    logits, labels = make_batch(subject)
    found = gradient_of(subject, logits, labels).double()
    exact = logits.double().requires_grad_()
    (wanted,) = torch.autograd.grad(definition(exact, labels), exact)
    error = max_abs(found - wanted)
    expect(
        not exceeds(error, 10 * TOLERANCE[subject.dtype]),
        f"The gradient is off by {error:.3g}, at a largest true gradient of {max_abs(wanted):.3g}.",
        error,
    )
    return error


@check(
    "loss",
    "core",
    measures="difference of the sum from the whole",
    mirrors=(HF + "pull/34191", "https://github.com/pytorch/torchtune/pull/1875"),
)
def micro_batches_add_up(subject: LossSubject) -> float:
    """Losses of micro-batches, each divided by the labels of all, sum to the loss of the batch."""
    flag = subject.num_labels_flag
    needs(flag, "it declares no num_labels_flag")
    logits, labels = make_batch(subject)
    number = int((labels != -100).sum())
    whole = float(subject(logits, labels).detach())
    parts = [
        float(subject(logits[row : row + 1], labels[row : row + 1], **{flag: number}).detach())
        for row in range(len(labels))
    ]
    error = abs(sum(parts) - whole)
    expect(
        not exceeds(error, 10 * TOLERANCE[subject.dtype]),
        f"The losses of three micro-batches with {flag}={number} sum to {sum(parts):.4g}, the "
        f"loss of the batch is {whole:.4g}. A mean of means counts a token of a short row more "
        "than one of a long row.",
        error,
        labels=labels,
    )
    return error


@check("loss", "core")
def logits_and_labels_are_left_alone(subject: LossSubject) -> None:
    """Logits and labels are the same after the call as before."""
    logits, labels = make_batch(subject)
    labels = labels.masked_fill(labels == -100, subject.ignore_index)
    if subject.flat:
        logits, labels = logits.flatten(0, 1), labels.flatten()
    given = logits.clone(), labels.clone()
    subject.call(*given)
    for name, before, after in zip(subject.arguments, (logits, labels), given, strict=True):
        expect(
            torch.equal(before, after),
            f"It changes its {name} in place: the caller's are others after the call.",
        )


@check("loss", "core", measures="difference between two calls")
def the_same_batch_gives_the_same_loss(subject: LossSubject) -> float:
    """Called again it returns the same bits."""
    batch = make_batch(subject)
    first, second = (subject(*batch).detach() for _ in range(2))
    change = float((first.double() - second.double()).abs())
    expect(
        torch.equal(first, second),
        f"Two equal calls differ by {change:.3g}: is something random, or remembered?",
        change,
    )
    return change


# ---- robust --------------------------------------------------------------------------------------


@check(
    "loss",
    "robust",
    measures="loss where there is nothing to predict",
    mirrors=(TORCH + "issues/70348", TORCH + "issues/116349"),
)
def nothing_to_predict_is_no_nan(subject: LossSubject) -> float:
    """Where every label is ignored the loss is 0 (or finite, if so declared), and no gradient."""
    logits, labels = make_batch(subject)
    labels = torch.full_like(labels, -100)
    loss = float(subject(logits, labels).detach())
    promised = "0" if subject.nothing == "zero" else "a finite number"
    expect(
        loss == 0.0 or (subject.nothing == "any" and torch.tensor(loss).isfinite()),
        f"Where every label is ignored the loss is {loss:.3g}, not {promised}: 0 labels are "
        "divided by. One such micro-batch spoils the whole step.",
        loss,
    )
    gradient = max_abs(gradient_of(subject, logits, labels))
    expect(
        not exceeds(gradient),
        f"Where every label is ignored the gradient is {gradient:.3g} instead of 0.",
        gradient,
    )
    return loss


@check("loss", "robust", measures="relative error of the loss")
def large_logits_are_no_overflow(subject: LossSubject) -> float:
    """Logits of 10,000 give the loss that they have, and finite gradients."""
    logits, labels = make_batch(subject)
    logits = logits * 5e3
    found, wanted = float(subject(logits, labels).detach()), float(definition(logits, labels))
    error = abs(found - wanted) / wanted
    expect(
        not exceeds(error, 1e-2),
        f"With logits of up to {max_abs(logits):.3g} the loss is {found:.3g} where {wanted:.3g} was "
        "expected: exp overflows. Take logsumexp or log_softmax, which subtract the largest first.",
        error,
    )
    gradient = gradient_of(subject, logits, labels)
    expect(
        gradient.isfinite().all(),
        f"With logits of up to {max_abs(logits):.3g} {int((~gradient.isfinite()).sum())} gradients "
        "are not finite.",
    )
    return error


@check("loss", "robust", measures="largest difference from the definition")
def half_precision_logits_are_summed_in_more(subject: LossSubject) -> float:
    """Logits in bfloat16 or float16 lose nothing in the loss: it is computed in float32."""
    halves = [d for d in (torch.bfloat16, torch.float16) if d in subject.dtypes]
    needs(halves, "it promises neither bfloat16 nor float16")
    largest = 0.0
    for dtype in halves:
        logits, labels = make_batch(subject, dtype)
        logits, labels = logits.repeat(1, 60, 1), labels.repeat(1, 60)
        error = abs(float(subject(logits, labels).detach()) - float(definition(logits, labels)))
        largest = max(largest, error)
        expect(
            not exceeds(error, 1e-4),
            f"With logits in {str(dtype).removeprefix('torch.')} and 600 labels the loss is off by "
            f"{error:.3g}: it is summed in that dtype, too. Begin with logits.float().",
            error,
        )
    return largest


# ---- strict --------------------------------------------------------------------------------------


@check("loss", "strict", measures="change of the loss", mirrors=TORCH + "issues/11551")
def nan_at_ignored_labels_reaches_no_loss(subject: LossSubject) -> float:
    """NaN or Inf in the logits at ignored labels changes no bit of the loss."""
    logits, labels = make_batch(subject)
    before = subject(logits, labels).detach()
    for poison in (float("nan"), float("inf"), float("-inf")):
        after = subject(logits.masked_fill(ignored(labels), poison), labels).detach()
        change = float((after.double() - before.double()).abs())
        expect(
            torch.equal(before, after),
            f"{poison} at ignored labels turns the loss into {float(after):.3g}: 0 · NaN is NaN, "
            "so multiplying by a mask does not help. Leave these positions out before any product.",
            change,
        )
    return 0.0


@check("loss", "strict", measures="gradients changed", mirrors=TORCH + "issues/11551")
def nan_at_ignored_labels_reaches_no_gradient(subject: LossSubject) -> float:
    """With NaN at ignored labels real gradients stay as they were, and those there are 0."""
    logits, labels = make_batch(subject)
    before = gradient_of(subject, logits, labels)
    for poison in (float("nan"), float("inf")):
        after = gradient_of(subject, logits.masked_fill(ignored(labels), poison), labels)
        changed = float((after != before).sum())
        expect(
            torch.equal(before, after),
            f"With {poison} at ignored labels {changed:g} gradients change, though the loss may "
            "look right: the backward pass multiplies it by 0. Leave these positions out first.",
            changed,
        )
    return 0.0


def _answers(subject: LossSubject) -> Answers:
    logits, labels = make_batch(subject)
    return {"labels that end early": subject(logits.requires_grad_(), labels)}


asked_inside_inference_mode("loss", _answers)
