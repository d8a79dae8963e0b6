"""Chapter 7: labels and -100."""

import torch
from torch import Tensor

from minitransformer.checks import LossSubject, expect
from minitransformer.exercises.exercise import Draw, exercise


def _predictions(draw: Draw):
    for _ in range(2):
        labels = torch.tensor([[draw.integer(0, 6) for _ in range(4)] for _ in range(3)])
        ignored = torch.rand(3, 4, generator=draw.generator) < 0.4
        ignored[0, 0] = False
        yield draw.normal(3, 4, 7), labels.masked_fill(ignored, -100)


@exercise(
    "Cross-entropy that ignores -100",
    chapter=7,
    about="""The mean of -log softmax(logits)[label] over the labels that count, and over no
        others.""",
    hints=[
        "Pick the positions that count first: logits[labels != -100] has one row for each.",
        "-log softmax(x)[i] is logsumexp(x) - x[i]: no overflow. gather picks x[i].",
        "Divide the sum by max(number of labels that count, 1): with none the loss is 0.",
    ],
    inputs=_predictions,
    forbidden=("log_softmax", "nll_loss", "cross_entropy"),
    subject=lambda fn: LossSubject(fn, dtypes=("float32", "float64")),
    promises={
        "class_zero_counts_as_any_other": 1,
        "how_much_is_ignored_is_irrelevant": 1,
        "no_gradient_reaches_ignored_positions": 1,
        "nothing_to_predict_is_no_nan": 1,
        "large_logits_are_no_overflow": 1,
    },
)
def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """The mean over the labels that are not -100; 0 where there are none.

    logits: (batch, length, classes) float; labels: (batch, length) int64, -100 = ignore
    returns: () float
    """
    ### BEGIN SOLUTION
    counts = labels != -100
    logits, labels = logits[counts], labels[counts]
    losses = logits.logsumexp(dim=-1) - logits.gather(-1, labels[:, None])[:, 0]
    return losses.sum() / max(len(labels), 1)
    ### END SOLUTION


@exercise(
    "Learning the answer and not the question",
    chapter=7,
    about="""In fine-tuning the prompt is read and not learned: its labels are -100. The last token
        of the prompt predicts the first of the answer, and that one counts.""",
    hints=[
        "First the labels of plain language modelling: the next token at each place, -100 last.",
        "Places 0 to prompt_length - 2 predict tokens of the prompt: they become -100.",
        "[-100] * (n - 1) + row[n:] + [-100] for a prompt of n > 0 tokens.",
    ],
    inputs=lambda draw: [
        (
            [draw.ids(n).tolist() for n in (5, 3, 6)],
            [draw.integer(1, 4), draw.integer(1, 2), draw.integer(2, 5)],
        )
        for _ in range(3)
    ],
)
def prompt_labels(rows: list[list[int]], prompt_lengths: list[int]) -> list[list[int]]:
    """The next token where it belongs to the answer, else -100; each row as long as it was.

    rows: token ids, the prompt first; prompt_lengths: from 0 to the length of the row
    """
    ### BEGIN SOLUTION
    labels = []
    for row, prompt in zip(rows, prompt_lengths, strict=True):
        following = [*row[1:], -100]
        labels.append([-100 if t + 1 < prompt else following[t] for t in range(len(row))])
    return labels
    ### END SOLUTION


@prompt_labels.check(points=1)
def the_first_token_of_the_answer_is_learned(fn, draw: Draw):
    """Of the prompt 5 6 and the answer 7 8 the labels are -100 7 8 -100."""
    found = fn([[5, 6, 7, 8]], [2])
    expect(
        found == [[-100, 7, 8, -100]],
        f"The prompt 5 6 and the answer 7 8 give {found[0] if found else found}; "
        "[-100, 7, 8, -100] is wanted: token 6, the prompt's last, predicts 7.",
    )


@prompt_labels.check(points=1)
def no_prompt_and_no_answer_are_allowed(fn, draw: Draw):
    """Without a prompt everything is learned, without an answer nothing."""
    found = fn([[5, 6, 7], [5, 6, 7], [4]], [0, 3, 1])
    wanted = [[6, 7, -100], [-100, -100, -100], [-100]]
    expect(
        found == wanted,
        f"Rows of which 0, all 3 and the only token are prompt give {found}; {wanted} is wanted.",
    )


def _micro_batches(draw: Draw):
    for _ in range(2):
        batches = [(2, 3), (1, 5), (3, 2)]
        losses = [draw.normal(*shape).abs() for shape in batches]
        labels = [
            draw.ids(*shape).masked_fill(torch.rand(shape, generator=draw.generator) < p, -100)
            for shape, p in zip(batches, (0.1, 0.6, 0.3), strict=True)
        ]
        labels[0][0, 0] = 1
        yield losses, labels


@exercise(
    "Accumulation that weighs every token alike",
    chapter=7,
    about="""A batch too large for the memory is taken in parts. The mean of the parts' means is
        not the mean of the whole: a token in a part with few labels counts too much. This bug was
        in well-known trainers until 2024.""",
    hints=[
        "Add up all losses that count, over all parts, and divide once.",
        "The number to divide by is the number of labels in all parts together.",
        "sum(l[y != -100].sum() for l, y in parts) / sum((y != -100).sum() for y in labels)",
    ],
    inputs=_micro_batches,
)
def accumulate(token_losses: list[Tensor], labels: list[Tensor]) -> Tensor:
    """The mean loss over the labels that count, of all parts together; 0 if none counts.

    token_losses: the loss at each position of each part, (batch, length) float
    labels: the same shapes, int64, -100 = this position does not count
    returns: () float
    """
    ### BEGIN SOLUTION
    total = sum(loss[label != -100].sum() for loss, label in zip(token_losses, labels, strict=True))
    count = sum(int((label != -100).sum()) for label in labels)
    return total / max(count, 1)
    ### END SOLUTION


@accumulate.check(points=1, measures="mean loss")
def it_is_no_mean_of_means(fn, draw: Draw):
    """One label with loss 9 and three with loss 1 have the mean 3."""
    losses = [torch.tensor([[9.0, 5.0, 5.0]]), torch.tensor([[1.0, 1.0, 1.0]])]
    labels = [torch.tensor([[1, -100, -100]]), torch.tensor([[1, 1, 1]])]
    found = float(fn(losses, labels))
    expect(
        abs(found - 3.0) < 1e-5,
        f"One label with the loss 9 in a part, three with the loss 1 in another: it gives "
        f"{found:.4g}, the mean over four labels is 3. "
        + ("That is the mean of the parts' means." if abs(found - 5) < 1e-5 else ""),
        found,
    )
    return found


@accumulate.check(points=1)
def a_part_without_labels_changes_nothing(fn, draw: Draw):
    """A part in which nothing counts adds nothing, and no NaN."""
    losses = [torch.tensor([[2.0, 4.0]]), torch.tensor([[7.0, float("nan")]])]
    labels = [torch.tensor([[1, 1]]), torch.tensor([[-100, -100]])]
    found = float(fn(losses, labels))
    expect(
        found == 3.0,
        f"With a part in which no label counts the result is {found}; 3 is wanted. Its own mean "
        "would be 0 / 0.",
    )
    expect(float(fn(losses[1:], labels[1:])) == 0.0, "Where no label counts at all, 0 is wanted.")
