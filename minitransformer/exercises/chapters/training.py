"""Chapter 8: training."""

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from minitransformer.checks import expect
from minitransformer.exercises.exercise import Draw, exercise


@exercise(
    "A learning rate that warms up and cools down",
    chapter=8,
    about="""Up in a straight line, so that the first, wild gradients do little; then down along
        half a cosine to 0.""",
    hints=[
        "Two cases: step < warmup, and the rest.",
        "Step 0 already learns: its rate is peak / warmup. Step warmup - 1 is at the peak.",
        "After it: peak * (1 + cos(pi * t)) / 2 with t = (step - warmup) / (total - warmup).",
    ],
    inputs=lambda draw: [(draw.integer(0, 99), 0.01, 20, 100) for _ in range(6)],
    points=1,
)
def learning_rate(step: int, peak: float, warmup: int, total: int) -> float:
    """peak * (step + 1) / warmup while step < warmup; then half a cosine from peak towards 0.

    step: 0, ..., total - 1; 0 <= warmup < total
    """
    ### BEGIN SOLUTION
    if step < warmup:
        return peak * (step + 1) / warmup
    done = (step - warmup) / (total - warmup)
    return peak * (1 + math.cos(math.pi * done)) / 2
    ### END SOLUTION


@learning_rate.check(points=1)
def the_first_step_learns(fn, draw: Draw):
    """Step 0 has a rate above 0, and the last step of the warm-up the highest."""
    first, last = fn(0, 1.0, 10, 100), fn(9, 1.0, 10, 100)
    expect(
        first > 0,
        f"At step 0 the rate is {first}: the first batch is computed and thrown away. Steps are "
        "counted from 0.",
    )
    expect(
        math.isclose(last, 1.0), f"At the last step of the warm-up it is {last:.3g}, not the peak."
    )


@learning_rate.check(points=1)
def it_starts_at_the_peak_and_ends_near_zero(fn, draw: Draw):
    """Right after the warm-up the rate is the peak, half-way down a half, at the end nearly 0."""
    rates = [fn(step, 2.0, 10, 110) for step in (10, 60, 109)]
    wanted = [2.0, 1.0, 2 * (1 + math.cos(math.pi * 0.99)) / 2]
    expect(
        all(abs(a - b) < 1e-6 for a, b in zip(rates, wanted, strict=True)),
        f"At steps 10, 60 and 109 of 110 (warm-up 10, peak 2) it is "
        f"{[round(r, 4) for r in rates]}; {[round(w, 4) for w in wanted]} is wanted.",
    )


@learning_rate.check(points=1)
def no_warm_up_is_no_division_by_zero(fn, draw: Draw):
    """With warmup = 0 the first step is at the peak."""
    found = fn(0, 0.5, 0, 10)
    expect(math.isclose(found, 0.5), f"Without warm-up the first rate is {found}, not the peak.")


def _rows(draw: Draw) -> list[list[int]]:
    return [draw.ids(draw.integer(1, 5)).tolist() for _ in range(6)]


@exercise(
    "Packing",
    chapter=8,
    about="""Padding is paid for and thrown away. Put several documents in one row instead, and
        number them in the attention_mask, so that a mask can keep them apart.""",
    hints=[
        "Keep a list of lines. For each row look for the first line with enough room.",
        "The number of a document in its line is one more than that of the one before it.",
        "Fill up at the end: ids and numbers with 0 until each line has `length` entries.",
    ],
    inputs=lambda draw: [(_rows(draw), draw.integer(6, 9)) for _ in range(3)],
)
def pack_rows(rows: list[list[int]], length: int) -> tuple[Tensor, Tensor]:
    """Put each row, in order, into the first line with enough room for it, or into a new line.

    rows: token ids, each of 1 to `length` tokens
    returns: input_ids and attention_mask, (lines, length) int64: attention_mask numbers the
    documents of each line from 1, in order; both are 0 where there is none
    """
    ### BEGIN SOLUTION
    lines: list[list[int]] = []
    numbers: list[list[int]] = []
    for row in rows:
        fitting = [i for i, line in enumerate(lines) if len(line) + len(row) <= length]
        if not fitting:
            lines.append([])
            numbers.append([])
            fitting = [len(lines) - 1]
        line, number = lines[fitting[0]], numbers[fitting[0]]
        number += [number[-1] + 1 if number else 1] * len(row)
        line += row
    ids = [line + [0] * (length - len(line)) for line in lines]
    mask = [number + [0] * (length - len(number)) for number in numbers]
    return torch.tensor(ids), torch.tensor(mask)
    ### END SOLUTION


@pack_rows.check(points=1)
def documents_have_numbers_of_their_own(fn, draw: Draw):
    """Two documents in a line are 1 and 2, so that they cannot see each other."""
    _, mask = fn([[5, 6], [7], [8, 9, 4]], 4)
    expect(
        mask.tolist() == [[1, 1, 2, 0], [1, 1, 1, 0]],
        f"Rows of 2, 1 and 3 tokens in lines of 4 give the mask {mask.tolist()}; "
        "[[1, 1, 2, 0], [1, 1, 1, 0]] is wanted. With 1 everywhere the documents of a line read "
        "each other.",
        found=mask,
    )


@pack_rows.check(points=1)
def no_token_is_lost(fn, draw: Draw):
    """Every token is there, a row that fills its line and a token with id 0 too."""
    ids, mask = fn([[1, 2, 3], [0, 0], [4]], 3)
    expect(
        ids.tolist() == [[1, 2, 3], [0, 0, 4]] and mask.tolist() == [[1, 1, 1], [1, 1, 2]],
        f"[1, 2, 3], [0, 0], [4] in lines of 3 give {ids.tolist()} with {mask.tolist()}; "
        "[[1, 2, 3], [0, 0, 4]] with [[1, 1, 1], [1, 1, 2]] is wanted: an id of 0 is a token.",
    )


@exercise(
    "Positions from the mask",
    chapter=8,
    about="""In a packed row every document starts anew, and padding on the left moves nothing: a
        token's position is its index in its own document.""",
    hints=[
        "For each token: how many tokens before it have the same number?",
        "same = (mask[:, :, None] == mask[:, None, :]); then only those before: a lower triangle.",
        "same.tril(-1).sum(dim=-1), and 0 at padding.",
    ],
    inputs=lambda draw: [
        (torch.tensor([[1] * a + [2] * b + [0] * 2, [0] * b + [1] * a + [0] * 2]),)
        for a, b in ((draw.integer(1, 4), draw.integer(1, 4)) for _ in range(3))
    ],
)
def token_positions(attention_mask: Tensor) -> Tensor:
    """Each token's index among the tokens of its own document; 0 at padding.

    attention_mask: (batch, length) int64, n = a token of document n, 0 = padding
    returns: (batch, length) int64
    """
    ### BEGIN SOLUTION
    same = attention_mask[:, :, None] == attention_mask[:, None, :]
    return same.tril(-1).sum(dim=-1).masked_fill(attention_mask == 0, 0)
    ### END SOLUTION


@token_positions.check(points=1)
def each_document_starts_at_zero(fn, draw: Draw):
    """The second document of a row starts at 0 again."""
    found = fn(torch.tensor([[1, 1, 1, 2, 2, 0]]))[0].tolist()
    expect(
        found == [0, 1, 2, 0, 1, 0],
        f"The mask 1 1 1 2 2 0 gives {found}; [0, 1, 2, 0, 1, 0] is wanted.",
    )


@token_positions.check(points=1)
def padding_is_not_counted(fn, draw: Draw):
    """Padding on the left, and holes, move no position."""
    found = fn(torch.tensor([[0, 0, 1, 1, 0, 1]]))[0].tolist()
    expect(
        found == [0, 0, 0, 1, 0, 2],
        f"The mask 0 0 1 1 0 1 gives {found}; [0, 0, 0, 1, 0, 2] is wanted: padding has no "
        "position and takes none.",
    )


def _batches(
    draw: Draw, sizes: list[int], width: int, classes: int, max_norm: float, ignored: float = 0.0
) -> tuple:
    """Arguments of training_loop, a batch of each size; a share of the labels is ignored."""
    labels = []
    for size in sizes:
        one = draw.ids(size, vocabulary=classes + 1) - 1
        hidden = torch.rand(size, generator=draw.generator) < ignored
        hidden[0] = False
        labels.append(one.masked_fill(hidden, -100))
    return (
        draw.normal(classes, width) / 2,
        draw.normal(classes) / 2,
        [draw.normal(size, width) for size in sizes],
        labels,
        draw.integer(2, 6) / 10,
        max_norm,
    )


def _without_labels(draw: Draw) -> tuple:
    arguments = _batches(draw, [3, 2, 4], 3, 4, 0.4)
    arguments[3][1] = torch.full((2,), -100)
    return arguments


@exercise(
    "A training loop",
    chapter=8,
    about="""The one exercise in which something learns, and the loop is that of every model: clear
        the gradients, compute the loss, go backward, clip the gradients, update. The model is the
        smallest there is, a linear classifier, so that nothing else is in the way.""",
    hints=[
        "Work on copies that require a gradient: weight.detach().clone().requires_grad_(). Per "
        "batch: logits = x @ weight.T + bias, the loss, loss.backward().",
        "backward() adds to what .grad holds: set it to None before. There is one norm, of all "
        "gradients together: the root of the sum of their squares. Update under torch.no_grad(), "
        "in place: p -= ...",
        "p -= learning_rate * p.grad * max_norm / norm.clamp(min=max_norm), for both. The loss is "
        "F.cross_entropy(..., reduction='sum') divided by the number of labels that count, at "
        "least 1.",
    ],
    inputs=lambda draw: {
        "one batch and no clipping": _batches(draw, [1], 2, 3, 100.0),
        "two batches and no clipping": _batches(draw, [3, 2], 3, 4, 100.0),
        "one batch and clipping": _batches(draw, [4], 3, 2, 0.1),
        "four batches and clipping": _batches(draw, [3, 2, 5, 4], 4, 3, 0.15),
        "labels of -100": _batches(draw, [6, 5, 7], 3, 4, 0.5, ignored=0.5),
    },
    edges=lambda draw: {
        "a batch without a label that counts": _without_labels(draw),
        "no batches": (*_batches(draw, [2], 3, 4, 1.0)[:2], [], [], 0.1, 1.0),
    },
    points=4,
)
def training_loop(
    weight: Tensor,
    bias: Tensor,
    inputs: list[Tensor],
    labels: list[Tensor],
    learning_rate: float,
    max_norm: float,
) -> tuple[Tensor, Tensor, list[float]]:
    """Train a linear classifier, logits = x @ weight.T + bias, with one step of SGD per batch.

    A step: the loss is the mean cross-entropy over the labels that are not -100 (0 if there are
    none: nothing changes then). Its gradients for weight and bias have one norm, as if they were
    one long vector. If it is above max_norm, both are multiplied by max_norm / norm. Then weight
    and bias move by -learning_rate times their gradients.

    weight: (classes, width) float; bias: (classes,); neither may be changed in place
    inputs and labels: a tensor for each batch, (batch, width) float and (batch,) int64; there may
    be no batches
    max_norm: above 0
    returns: weight and bias after the last step, and the loss of each batch before its step, a
    list of numbers
    """
    ### BEGIN SOLUTION
    weight = weight.detach().clone().requires_grad_()
    bias = bias.detach().clone().requires_grad_()
    losses = []
    for x, y in zip(inputs, labels, strict=True):
        total = F.cross_entropy(x @ weight.T + bias, y, ignore_index=-100, reduction="sum")
        loss = total / (y != -100).sum().clamp(min=1)
        weight.grad = bias.grad = None
        loss.backward()
        norm = (weight.grad.square().sum() + bias.grad.square().sum()).sqrt()
        with torch.no_grad():
            for p in (weight, bias):
                p -= learning_rate * p.grad * max_norm / norm.clamp(min=max_norm)
        losses.append(loss.item())
    return weight.detach(), bias.detach(), losses
    ### END SOLUTION


CLEAR = "        weight.grad = bias.grad = None\n"
CLIPPED = "p.grad * max_norm / norm.clamp(min=max_norm)"
NORM = "(weight.grad.square().sum() + bias.grad.square().sum()).sqrt()"
UPDATE = f"p -= learning_rate * {CLIPPED}\n"
IN_PLACE = (  # as torch.nn.utils.clip_grad_norm_ does
    "p.grad *= max_norm / norm.clamp(min=max_norm)\n                p -= learning_rate * p.grad\n"
)
COUNTED = " / (y != -100).sum().clamp(min=1)"
training_loop.mistake(
    """The gradients are not cleared: backward() adds to .grad, so each step goes along the sum of
    all gradients so far.""",
    {CLEAR: ""},
    {CLEAR: "", UPDATE: IN_PLACE},
)
training_loop.mistake(
    """Nothing is learned: weight and bias come back as they were. Are the gradients cleared before
    they are used? And p = p - ... makes another tensor of this name; p -= ... changes the weight.
    """,
    {"p -= learning_rate": "p = p - learning_rate"},
    {
        CLEAR: "",
        "loss.backward()": "loss.backward()\n        weight.grad *= 0\n        bias.grad *= 0",
    },
)
training_loop.mistake(
    "The step goes up the slope: the loss rises. Subtract the gradient.",
    {"p -= ": "p += "},
)
training_loop.mistake(
    "The gradients are not clipped.",
    {CLIPPED: "p.grad"},
)
training_loop.mistake(
    """Weight and bias are clipped each by its own norm. There is one norm, of both together: one
    factor for both keeps the direction of the step.""",
    {"norm.clamp(": "p.grad.norm().clamp("},
)
training_loop.mistake(
    """Each number of a gradient is clipped by itself, to -max_norm ... max_norm. That turns the
    step into another direction; scale all of them by one factor.""",
    {CLIPPED: "p.grad.clamp(-max_norm, max_norm)"},
)
training_loop.mistake(
    """The gradients are always brought to the norm max_norm, small ones too. Those whose norm is
    below it stay as they are.""",
    {"norm.clamp(min=max_norm)": "norm"},
    {"norm.clamp(min=max_norm)": "(norm + 1e-6)"},
    {"norm.clamp(min=max_norm)": "norm.clamp(min=1e-6)"},
)
training_loop.mistake(
    "The norm is another: the root of the sum of the squares of all gradients is wanted.",
    {".sqrt()": ""},
    {NORM: "weight.grad.norm() + bias.grad.norm()"},
    {NORM: "weight.grad.abs().sum() + bias.grad.abs().sum()"},
    {"weight.grad.square().sum() + bias.grad.square().sum()": "weight.grad.square().sum()"},
    {NORM: "torch.maximum(weight.grad.abs().max(), bias.grad.abs().max())"},
)
training_loop.mistake(
    "What is clipped is the step, not the gradient: multiply by the learning rate after clipping.",
    {"norm = (": "norm = learning_rate * ("},
)
training_loop.mistake(
    "Only one of weight and bias is updated.",
    {"in (weight, bias):": "in (weight,):"},
    {"in (weight, bias):": "in (bias,):"},
)
training_loop.mistake(
    """The loss is divided by the number of all labels, those of -100 too. Divide by the number of
    those that count.""",
    {"(y != -100).sum().clamp(min=1)": "len(y)"},
)
training_loop.mistake(
    "The loss is a sum over the labels, not their mean.",
    {COUNTED: ""},
)
training_loop.mistake(
    """A batch in which no label counts gives 0 / 0, and NaN in a single step makes NaN of all
    weights. Divide by 1 at least.""",
    {".clamp(min=1)": ""},
)
training_loop.mistake(
    "A label of -100 is taken for a class. Such positions have no part in the loss.",
    {"        total": "        y = y.clamp(min=0)\n        total"},
    {"        total": "        y = y % weight.shape[0]\n        total"},
    {"cross_entropy(x @ weight.T + bias, y,": "cross_entropy(x @ weight.T + bias, y.clamp(min=0),"},
)
training_loop.mistake(
    "The losses are those after each step. Before it is wanted: no second forward pass is needed.",
    {"loss.item()": f"float(F.cross_entropy(x @ weight.T + bias, y, reduction='sum'){COUNTED})"},
)
