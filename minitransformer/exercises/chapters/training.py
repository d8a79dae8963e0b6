"""Chapter 8: training."""

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from minitransformer.exercises.exercise import Draw, Inputs, exercise


def _schedules(draw: Draw) -> Inputs:
    """Step, peak, warm-up and total."""
    peak, warmup = draw.integer(11, 30) / 10, draw.integer(5, 9)
    total = warmup + 2 * draw.integer(8, 15)
    half = (warmup + total) // 2
    return {
        "the first step": (0, 3.0, 4, 10),
        "the second step": (1, peak, warmup, total),
        "the last step of the warm-up": (warmup - 1, peak, warmup, total),
        "the first step after the warm-up": (warmup, peak, warmup, total),
        "the second step after the warm-up": (warmup + 1, peak, warmup, total),
        "the step half-way down": (half, peak, warmup, total),
        "the last step": (total - 1, peak, warmup, total),
        "a step somewhere on the way down": (draw.integer(21, 98), peak, 20, 100),
    }


@exercise(
    "A learning rate that warms up and cools down",
    chapter=8,
    about="""Up in a straight line, so that the first, wild gradients do little; then down in the
        shape of a cosine, from its top to its bottom, which is moved up to 0.""",
    hints=[
        "Two cases: step < warmup, and the rest.",
        "In the warm-up step 0 already learns: its rate is peak / warmup, and that of step "
        "warmup - 1 is the peak.",
        "After it: peak * (1 + cos(pi * t)) / 2 with t = (step - warmup) / (total - warmup).",
    ],
    inputs=_schedules,
    edges=lambda draw: {
        "no warm-up": (0, 0.5, 0, 10),
        "no warm-up, half-way down": (6, 0.5, 0, 12),
        "a warm-up up to the step before the last": (8, 2.0, 8, 9),
    },
)
def learning_rate(step: int, peak: float, warmup: int, total: int) -> float:
    """The learning rate of one step: a straight line up, then half a period of a cosine down.

    In the warm-up, while step < warmup, it is peak * (step + 1) / warmup: at the last step of the
    warm-up it is at the peak. At step == warmup it is at the peak again, and from there it falls
    as the cosine does from cos(0) = 1 to cos(pi) = -1, moved and scaled to go from peak to 0. It
    would be 0 at step == total, one step after the last.

    step: 0, ..., total - 1; 0 <= warmup < total, so without warm-up it begins at the peak
    """
    ### BEGIN SOLUTION
    if step < warmup:
        return peak * (step + 1) / warmup
    done = (step - warmup) / (total - warmup)
    return peak * (1 + math.cos(math.pi * done)) / 2
    ### END SOLUTION


COSINE = "(1 + math.cos(math.pi * done)) / 2"
DONE = "(step - warmup) / (total - warmup)"
WARM_UP = "    if step < warmup:\n        return peak * (step + 1) / warmup\n"
learning_rate.mistake(
    """Step 0 has a rate of 0: the first batch is computed and thrown away, and the peak comes a
    step late. Steps are counted from 0, so it is (step + 1) / warmup.""",
    {"return peak * (step + 1) / warmup": "return peak * step / warmup"},
)
learning_rate.mistake(
    """The warm-up does not reach the peak: its last step is step warmup - 1, and
    (step + 1) / warmup is 1 there.""",
    {"return peak * (step + 1) / warmup": "return peak * (step + 1) / (warmup + 1)"},
    {"return peak * (step + 1) / warmup": "return peak * (step + 1) / total"},
    {"return peak * (step + 1) / warmup": "return peak * step / total"},
)
learning_rate.mistake(
    """The warm-up is a step too long, and that step is above the peak: it holds while
    step < warmup.""",
    {"if step < warmup:": "if step <= warmup:"},
)
learning_rate.mistake(
    """There is no warm-up: the first steps are at the peak, or on the curve that comes after
    it.""",
    {"return peak * (step + 1) / warmup": "return peak"},
    {WARM_UP: ""},
    {WARM_UP: "", DONE: "step / total"},
    {WARM_UP: "", DONE: "max(step - warmup, 0) / (total - warmup)"},
)
learning_rate.mistake(
    """After the warm-up it falls in a straight line, or as a power does. A cosine stays near the
    peak for a while, and comes to 0 gently.""",
    {COSINE: "(1 - done)"},
    {COSINE: "(1 - done) ** 2"},
    {COSINE: "(1 - done) ** 0.5"},
    {COSINE: "(1 - done**2)"},
)
learning_rate.mistake(
    """It does not fall towards 0: it comes down to a part of the peak, as some schedules have
    it.""",
    {COSINE: "(0.1 + 0.9 * (1 + math.cos(math.pi * done)) / 2)"},
    {COSINE: "max(0.1, (1 + math.cos(math.pi * done)) / 2)"},
)
learning_rate.mistake(
    "After the warm-up it stays at the peak: it has to fall.",
    {COSINE: "1"},
)
learning_rate.mistake(
    """This is the first quarter of a cosine, from 1 to 0: it is steepest at the end. Half a period
    is wanted, from 1 to -1, moved up and halved.""",
    {COSINE: "math.cos(math.pi * done / 2)"},
)
learning_rate.mistake(
    """The fall is counted from step 0, not from the end of the warm-up: after the warm-up the rate
    is not at the peak.""",
    {DONE: "step / total"},
    {DONE: "step / (total - warmup)"},
)
learning_rate.mistake(
    """The fall is divided by all steps, the warm-up too, so it does not come down to 0: it takes
    total - warmup steps.""",
    {DONE: "(step - warmup) / total"},
)
learning_rate.mistake(
    """The fall is over a step early: the last step has the rate 0 and learns nothing. It would be 0
    at step == total, which is not reached.""",
    {DONE: "(step - warmup) / (total - warmup - 1)"},
    {DONE: "(step - warmup) / max(total - warmup - 1, 1)"},
    {DONE: "(step - warmup) / (total - 1 - warmup) if total - 1 > warmup else 0.0"},
)
learning_rate.mistake(
    """The fall begins a step early: at step == warmup the rate is still at the peak.""",
    {DONE: "(step - warmup + 1) / (total - warmup)"},
)
learning_rate.mistake(
    """1 + cos goes from 2 to 0: halve it, or the rate jumps to twice the peak after the
    warm-up.""",
    {COSINE: "(1 + math.cos(math.pi * done))"},
)
learning_rate.mistake(
    """cos goes from 1 to -1, so the rate becomes negative, and the model climbs. Add 1 and
    halve.""",
    {COSINE: "math.cos(math.pi * done)"},
    {COSINE: "math.cos(math.pi * done) / 2"},
)
learning_rate.mistake(
    """After the warm-up it rises, from 0 to the peak: the sign of the cosine is turned.""",
    {COSINE: "(1 - math.cos(math.pi * done)) / 2"},
)
learning_rate.mistake(
    """The angle is wrong: math.cos takes radians, and half a period is math.pi, no more and no
    less.""",
    {"math.pi * done": "done"},
    {"math.pi * done": "180 * done"},
    {"math.pi * done": "2 * math.pi * done"},
    {"math.pi * done": "math.pi / 2 * done"},
)
learning_rate.mistake(
    """This is the sine of the angle. It begins in its middle and rises first; the cosine begins at
    its top.""",
    {"math.cos": "math.sin"},
)
learning_rate.mistake(
    """The peak is missing, during the warm-up, after it or both: these are factors from 0 to 1, as
    a scheduler of torch wants them. Multiply by peak.""",
    {"return peak * (step": "return (step", "return peak * (1": "return (1"},
    {"return peak * (step": "return (step"},
    {"return peak * (1": "return (1"},
)
learning_rate.mistake(
    """The rise and the fall are multiplied: the cosine already falls during the warm-up, or the
    peak is never reached. Each has its own steps.""",
    """
    rise = min(1.0, (step + 1) / max(warmup, 1))
    return peak * rise * (1 + math.cos(math.pi * step / total)) / 2
    """,
    """
    rise = min(1.0, (step + 1) / warmup) if warmup else 1.0
    return peak * rise * (1 + math.cos(math.pi * (step - warmup) / (total - warmup))) / 2
    """,
)
learning_rate.mistake(
    """Whole numbers are divided with //, which drops everything behind the point: the rate is 0 or
    too small until the warm-up ends. Divide with /.""",
    {"peak * (step + 1) / warmup": "peak * ((step + 1) // warmup)"},
    {"peak * (step + 1) / warmup": "peak * (step + 1) // warmup"},
)
learning_rate.mistake(
    "The warm-up is no straight line: it is a power, or a part of a wave.",
    {"peak * (step + 1) / warmup": "peak * ((step + 1) / warmup) ** 2"},
    {"peak * (step + 1) / warmup": "peak * ((step + 1) / warmup) ** 0.5"},
    {
        "peak * (step + 1) / warmup": "peak * (1 - math.cos(math.pi * (step + 1) / warmup)) / 2",
    },
    {"peak * (step + 1) / warmup": "peak * math.sin(math.pi / 2 * (step + 1) / warmup)"},
)
learning_rate.mistake(
    """After the warm-up it falls as the inverse of a root, as the first transformer's did, or of an
    exponential. A cosine is wanted, which ends at 0.""",
    {COSINE: "(max(warmup, 1) / (step + 1)) ** 0.5"},
    {COSINE: "(max(warmup, 1) / max(step, 1)) ** 0.5"},
    {COSINE: "math.exp(-done)"},
)
learning_rate.mistake(
    "The fall begins a step late: the step after step == warmup is below the peak.",
    {DONE: "max(step - warmup - 1, 0) / (total - warmup)"},
    {DONE: "max(step - warmup - 1, 0) / max(total - warmup - 1, 1)"},
)
learning_rate.mistake(
    "The rate is rounded. It is a number as it comes, and late in training a very small one.",
    {f"peak * {COSINE}": f"round(peak * {COSINE}, 2)"},
    {
        f"peak * {COSINE}": f"round(peak * {COSINE}, 2)",
        "peak * (step + 1) / warmup": "round(peak * (step + 1) / warmup, 2)",
    },
    {
        f"peak * {COSINE}": f"round(peak * {COSINE}, 3)",
        "peak * (step + 1) / warmup": "round(peak * (step + 1) / warmup, 3)",
    },
)


def _documents(draw: Draw, *lengths: int) -> list[list[int]]:
    return [draw.ids(n).tolist() for n in lengths]


def _collections(draw: Draw) -> Inputs:
    """Rows of even length for lines of odd length: none fills its line."""
    many = [2 * draw.integer(1, 3) for _ in range(9)]
    return {
        "one row": (_documents(draw, 3), 5),
        "two rows that fit in one line": (_documents(draw, 2, 2), 5),
        "two rows that do not": (_documents(draw, 2, 4), 5),
        "three rows in a line": (_documents(draw, 2, 2, 2), 7),
        "a row that goes back to the first line": (_documents(draw, 2, 4, 2), 5),
        "room in two lines, more of it in the first": (_documents(draw, 4, 6, 2), 9),
        "room in two lines, more of it in the second": (_documents(draw, 6, 4, 2), 9),
        "nine rows": (_documents(draw, *many), 2 * draw.integer(3, 5) + 1),
    }


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
    inputs=_collections,
    edges=lambda draw: {
        "a row that fills its line": (_documents(draw, 3, 2, 3), 3),
        "a row that fills the rest of a line": (_documents(draw, 3, 2, 1), 5),
        "tokens of id 0": ([[4, 0], [0, 0, 6], [7]], 4),
    },
    points=3,
)
def pack_rows(rows: list[list[int]], length: int) -> tuple[Tensor, Tensor]:
    """Put each row into the first line that has room for all of it, or else into a new line.

    Rows are taken in the order given, lines are tried from the first on. A row is never cut, and
    stands right behind what its line holds already.

    rows: at least one, of token ids, each of 1 to `length` tokens; an id of 0 is a token too
    returns: input_ids and attention_mask, (lines, length) int64: attention_mask numbers the
    documents of each line from 1, in order; both are 0 behind the last of them
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


NEXT_NUMBER = "number[-1] + 1 if number else 1"
FITS = "len(line) + len(row) <= length"
FILLED_IDS = "line + [0] * (length - len(line))"
FILLED_NUMBERS = "number + [0] * (length - len(number))"
PACKED = "torch.tensor(ids), torch.tensor(mask)"
CUT_UP = """
    tokens = [token for row in rows for token in row]
    numbers = [n for n, row in enumerate(rows, 1) for _ in row]
    empty = [0] * (-len(tokens) % length)
    ids = torch.tensor(tokens + empty).view(-1, length)
    mask = torch.tensor(numbers + empty).view(-1, length)
"""
pack_rows.mistake(
    """All documents of a line have the number 1: they read each other. Number them 1, 2, 3.""",
    {NEXT_NUMBER: "1"},
)
pack_rows.mistake(
    """The documents are numbered from 0, and 0 stands for an empty place: the first document of
    each line is hidden.""",
    {NEXT_NUMBER: "number[-1] + 1 if number else 0"},
)
pack_rows.mistake(
    """The numbers run on over all lines. Each line begins with 1 again.""",
    {"for row in rows:": "for place, row in enumerate(rows, 1):", NEXT_NUMBER: "place"},
)
pack_rows.mistake(
    """The attention_mask holds positions, or the lengths of documents. What belongs there is a
    document's number, the same for all of its tokens.""",
    {f"[{NEXT_NUMBER}] * len(row)": "list(range(1, len(row) + 1))"},
    {f"[{NEXT_NUMBER}] * len(row)": "list(range(len(row)))"},
    {f"[{NEXT_NUMBER}] * len(row)": "[len(row)] * len(row)"},
)
pack_rows.mistake(
    """A row that would just fill a line is not put there: it fits if it is as long as the room that
    is left, <= and not <.""",
    {FITS: "len(line) + len(row) < length"},
)
pack_rows.mistake(
    """Only the newest line is looked at. A short row may fit into one before it, and the first with
    enough room is to be taken.""",
    {FITS: f"i == len(lines) - 1 and {FITS}"},
)
pack_rows.mistake(
    "The last line with enough room is taken, not the first.",
    {"fitting[0]": "fitting[-1]"},
)
pack_rows.mistake(
    """The line with the least room, or the most, is taken. Lines are tried from the first on, and
    the first with enough room is taken.""",
    {
        "line, number = lines[fitting[0]]": "fitting.sort(key=lambda i: -len(lines[i]))\n"
        "        line, number = lines[fitting[0]]"
    },
    {
        "line, number = lines[fitting[0]]": "fitting.sort(key=lambda i: len(lines[i]))\n"
        "        line, number = lines[fitting[0]]"
    },
)
pack_rows.mistake(
    "Every row has a line of its own: this is padding, not packing.",
    {f"enumerate(lines) if {FITS}": "enumerate(lines) if False"},
)
pack_rows.mistake(
    """The rows are sorted by length first. That may pack better, but they are to be taken in the
    order given.""",
    {"for row in rows:": "for row in sorted(rows, key=len, reverse=True):"},
    {"for row in rows:": "for row in sorted(rows, key=len):"},
)
pack_rows.mistake(
    """All tokens are strung together and cut every `length` places: documents are cut in two. A row
    that does not fit goes to another line as a whole.""",
    CUT_UP + "    return ids, mask",
    CUT_UP + "    return ids, (mask - mask[:, :1] + 1) * (mask != 0)",
    CUT_UP + "    return ids, (mask != 0).long()",
)
pack_rows.mistake(
    """A token whose id is 0 is taken for an empty place. Where tokens are is told by how many there
    are, not by their ids.""",
    {PACKED: "torch.tensor(ids), torch.tensor(mask) * (torch.tensor(ids) != 0)"},
    {
        "len(line) + len(row)": "sum(x != 0 for x in line) + sum(x != 0 for x in row)",
        PACKED: "torch.tensor([x[:length] for x in ids]), torch.tensor([x[:length] for x in mask])",
    },
)
pack_rows.mistake(
    """The rest of a line is not filled with 0 in both, input_ids and attention_mask: what is not 0
    in the mask counts as a document.""",
    {FILLED_IDS: FILLED_IDS.replace("[0]", "[-100]")},
    {FILLED_NUMBERS: FILLED_NUMBERS.replace("[0]", "[number[-1]]")},
    {FILLED_NUMBERS: FILLED_NUMBERS.replace("[0]", "[number[-1] + 1]")},
    {FILLED_NUMBERS: FILLED_NUMBERS.replace("[0]", "[-1]")},
    {
        FILLED_IDS: FILLED_IDS.replace("[0]", "[-100]"),
        "[0] * (length - len(n": "[-1] * (length - len(n",
    },
    {
        FILLED_IDS: FILLED_IDS.replace("[0]", "[-100]"),
        "[0] * (length - len(n": "[-100] * (length - len(n",
    },
    {FILLED_NUMBERS: FILLED_NUMBERS.replace("[0]", "[1]")},
)
pack_rows.mistake(
    "The lines are filled up in front. The empty places belong behind the last document.",
    {
        FILLED_IDS: "[0] * (length - len(line)) + line",
        FILLED_NUMBERS: "[0] * (length - len(number)) + number",
    },
)
pack_rows.mistake(
    """The lines are as long as the longest of them. Each is to have `length` places, so that every
    batch has the same shape.""",
    {
        FILLED_IDS: "line + [0] * (max(map(len, lines)) - len(line))",
        FILLED_NUMBERS: "number + [0] * (max(map(len, lines)) - len(number))",
    },
)
pack_rows.mistake(
    """The last line is missing: it was begun, and never put with the others.""",
    {PACKED: "torch.tensor(ids[:-1]), torch.tensor(mask[:-1])"},
)
pack_rows.mistake(
    "input_ids and attention_mask have changed places.",
    {PACKED: "torch.tensor(mask), torch.tensor(ids)"},
)
pack_rows.mistake(
    """The attention_mask is 0 and 1, as booleans are. It is int64 and holds the number of each
    document.""",
    {PACKED: "torch.tensor(ids), torch.tensor(mask) != 0"},
)
pack_rows.mistake(
    """A place is left empty between two documents. They stand right behind each other; their
    numbers keep them apart.""",
    {
        FITS: "len(line) + 1 + len(row) <= length",
        "line += row": "line += row if not line else [0, *row]",
        "number += [number[-1] + 1 if number else 1] * len(row)": "number += [1] * len(row) if not "
        "number else [0] + [number[-1] + 1] * len(row)",
    },
)
pack_rows.mistake(
    """A row is put into every line that has room for it. Once it has found its line, the search is
    over.""",
    {
        "        line, number = lines[fitting[0]], numbers[fitting[0]]\n": "    "
        "    for i in fitting:\n            line, number = lines[i], numbers[i]\n",
        "        number += [": "            number += [",
        "        line += row": "            line += row",
    },
)
pack_rows.mistake(
    """All lines are one list: [[0] * length] * n holds the same list n times, and what is written
    into one stands in all. Make a new list for each.""",
    {
        f"[{FILLED_IDS} for line in lines]": "[[0] * length] * len(lines)\n    "
        "for i, line in enumerate(lines):\n        ids[i][: len(line)] = line",
        f"[{FILLED_NUMBERS} for number in numbers]": "[[0] * length] * len(lines)\n    "
        "for i, number in enumerate(numbers):\n        mask[i][: len(number)] = number",
    },
    {
        f"[{FILLED_IDS} for line in lines]": "[[0] * length] * len(lines)\n    "
        "for i, line in enumerate(lines):\n        ids[i][: len(line)] = line",
    },
    {
        f"[{FILLED_NUMBERS} for number in numbers]": "[[0] * length] * len(lines)\n    "
        "for i, number in enumerate(numbers):\n        mask[i][: len(number)] = number",
    },
)
pack_rows.mistake(
    "What comes back are no tensors of int64: lists, or numbers of another dtype.",
    {PACKED: "ids, mask"},
    {PACKED: "torch.tensor(ids).float(), torch.tensor(mask).float()"},
    {PACKED: "torch.tensor(ids).int(), torch.tensor(mask).int()"},
    {PACKED: "torch.tensor(ids), torch.tensor(mask).float()"},
)


def _packed(draw: Draw) -> Inputs:
    a, b, c = draw.integer(1, 3), draw.integer(2, 4), draw.integer(2, 3)
    mixed = [
        [1] * a + [2] * b + [3] * c + [0] * 2,
        [0] * a + [1] * c + [2] * b + [0] * 2,
        [0] * 2 + [1] * (a + b) + [2] * c,
    ]
    return {
        "one document without padding": (torch.tensor([[1, 1, 1, 1]]),),
        "one document, padded on the right": (torch.tensor([[1, 1, 1, 0, 0]]),),
        "one document, padded on the left": (torch.tensor([[0, 0, 1, 1]]),),
        "two documents in a row": (torch.tensor([[1, 1, 1, 2, 2, 0]]),),
        "two documents, padded on the left": (torch.tensor([[0, 1, 1, 2, 2, 2]]),),
        "two rows of one document": (torch.tensor([[1, 1, 1, 0], [0, 1, 1, 1]]),),
        "three rows of up to three documents": (torch.tensor(mixed),),
    }


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
    inputs=_packed,
    edges=lambda draw: {
        "padding between tokens": (torch.tensor([[0, 1, 1, 0, 1, 0, 2, 0, 0, 2]]),),
        "documents that alternate": (torch.tensor([[1, 2, 1, 1, 2, 0], [2, 2, 1, 1, 2, 1]]),),
        "numbers in no order": (torch.tensor([[5, 5, 2, 2, 2, 0], [0, 7, 9, 9, 1, 1]]),),
        "a row of padding alone": (torch.tensor([[1, 1, 1], [0, 0, 0]]),),
    },
)
def token_positions(attention_mask: Tensor) -> Tensor:
    """How many tokens with the same number stand before each token in its row; 0 at padding.

    What stands between the tokens of a document, be it padding or other documents, takes no
    position. A number says only which tokens belong together: the numbers of a row may come in any
    order, and some may be left out.

    attention_mask: (batch, length) int64, n = a token of document n of its row, 0 = padding
    returns: (batch, length) int64
    """
    ### BEGIN SOLUTION
    same = attention_mask[:, :, None] == attention_mask[:, None, :]
    return same.tril(-1).sum(dim=-1).masked_fill(attention_mask == 0, 0)
    ### END SOLUTION


SAME = "attention_mask[:, :, None] == attention_mask[:, None, :]"
POSITIONS = "same.tril(-1).sum(dim=-1).masked_fill(attention_mask == 0, 0)"
NO_PADDING = "masked_fill(attention_mask == 0, 0)"
token_positions.mistake(
    """Every token counts itself, so positions begin with 1. The first token of a document has
    none before it: 0.""",
    {".tril(-1)": ".tril()"},
)
token_positions.mistake(
    """The positions run on from one document to the next. Each document begins with 0 again.""",
    {SAME: "(attention_mask[:, :, None] != 0) & (attention_mask[:, None, :] != 0)"},
    {POSITIONS: "((attention_mask != 0).cumsum(dim=1) - 1).clamp(min=0)"},
    {POSITIONS: "(attention_mask != 0).cumsum(dim=1) - 1"},
)
token_positions.mistake(
    """These are the numbers of the columns. Padding on the left and the documents before it move no
    token: count within its own document.""",
    {POSITIONS: "torch.arange(attention_mask.shape[1]).expand_as(attention_mask)"},
    {POSITIONS: f"torch.arange(attention_mask.shape[1]).expand_as(attention_mask).{NO_PADDING}"},
)
token_positions.mistake(
    """Padding is numbered too, as if it were a document. Its position is 0 throughout.""",
    {f".{NO_PADDING}": ""},
)
token_positions.mistake(
    """Padding has a position other than 0.""",
    {NO_PADDING: "masked_fill(attention_mask == 0, 1)"},
    {NO_PADDING: "masked_fill(attention_mask == 0, -1)"},
    {NO_PADDING: "masked_fill(attention_mask == 0, -100)"},
)
token_positions.mistake(
    """The numbers in the mask are added up, which is right for 0 and 1 alone: a token of document 2
    counts twice. Count tokens, not their numbers, and each document by itself.""",
    {POSITIONS: f"(attention_mask.cumsum(dim=1) - 1).{NO_PADDING}"},
    {POSITIONS: "(attention_mask.cumsum(dim=1) - 1).clamp(min=0)"},
    {POSITIONS: "attention_mask.cumsum(dim=1) - 1"},
    {POSITIONS: f"(attention_mask.cumsum(dim=1) - 1).{NO_PADDING.replace('0, 0', '0, 1')}"},
)
token_positions.mistake(
    """This is the distance to the column in which the document begins: what stands between its
    tokens is counted too. Count the tokens of the same document.""",
    f"""
    same = {SAME}
    first = same.long().argmax(dim=-1)
    return (torch.arange(attention_mask.shape[1]) - first).{NO_PADDING}
    """,
)
token_positions.mistake(
    """A new count begins wherever the number changes. A document that is interrupted, by padding or
    by another, goes on afterwards where it was.""",
    """
    positions = torch.zeros_like(attention_mask)
    for t in range(1, attention_mask.shape[1]):
        goes_on = attention_mask[:, t] == attention_mask[:, t - 1]
        positions[:, t] = (positions[:, t - 1] + 1) * goes_on
    return positions.masked_fill(attention_mask == 0, 0)
    """,
    """
    positions = torch.zeros_like(attention_mask)
    for row in range(len(attention_mask)):
        last = count = 0
        for t, number in enumerate(attention_mask[row].tolist()):
            if number != 0 and number != last:
                last, count = number, 0
            if number != 0:
                positions[row, t] = count
                count += 1
    return positions
    """,
)
token_positions.mistake(
    """This is the number of tokens of the document that come after. Count those before.""",
    {".tril(-1)": ".triu(1)"},
    {"sum(dim=-1)": "sum(dim=-2)"},
)
token_positions.mistake(
    """Each token has the length of its document, or one less, for a position: only the tokens
    before it count, a triangle of the pairs.""",
    {".tril(-1)": ""},
    {".tril(-1).sum(dim=-1)": ".sum(dim=-1).sub(1)"},
)
token_positions.mistake(
    """The documents of the first row are taken for those of every row, or the places where they
    begin.""",
    """
    positions = torch.zeros_like(attention_mask)
    first = attention_mask[0]
    for n in range(1, int(attention_mask.max()) + 1):
        counted = (attention_mask != 0).cumsum(dim=1) - 1 - ((first != 0) & (first < n)).sum()
        positions = torch.where(attention_mask == n, counted, positions)
    return positions
    """,
    """
    positions = torch.zeros_like(attention_mask)
    for n in attention_mask[0].unique().tolist():
        counted = torch.arange(attention_mask.shape[1]) - (attention_mask[0] == n).long().argmax()
        positions = torch.where(attention_mask == n, counted, positions)
    return positions.masked_fill(attention_mask == 0, 0)
    """,
    {SAME: "attention_mask[:1, :, None] == attention_mask[:1, None, :]"},
    {SAME: "attention_mask[:, :, None] == attention_mask[:1, None, :]"},
    {"same =": "attention_mask = attention_mask[:1].expand_as(attention_mask)\n    same ="},
)
token_positions.mistake(
    """Some documents are left out, and their tokens all have the position 0. Every number but 0 is
    a document, and the numbers of a row need not be 1, 2, 3.""",
    """
    real = attention_mask == 1
    return (real.cumsum(dim=1) - 1) * real
    """,
    """
    positions = torch.zeros_like(attention_mask)
    for n in range(1, int(attention_mask.max())):
        real = attention_mask == n
        positions += (real.cumsum(dim=1) - 1) * real
    return positions
    """,
    """
    positions = torch.zeros_like(attention_mask)
    for n in (1, 2):
        real = attention_mask == n
        positions += (real.cumsum(dim=1) - 1) * real
    return positions
    """,
    """
    positions = torch.zeros_like(attention_mask)
    for row in range(len(attention_mask)):
        for n in range(1, len(attention_mask[row].unique())):
            real = attention_mask[row] == n
            positions[row] += (real.cumsum(dim=0) - 1) * real
    return positions
    """,
)
token_positions.mistake(
    """The token right before is not counted: a document's first two tokens both have the position
    0.""",
    {".tril(-1)": ".tril(-2)"},
)
token_positions.mistake(
    "It is counted down the batch, not along the row.",
    """
    same = attention_mask[:, None] == attention_mask[None]
    before = torch.ones(len(same), len(same), dtype=torch.bool).tril(-1)[:, :, None]
    return (same & before).sum(dim=1).masked_fill(attention_mask == 0, 0)
    """,
    """
    real = attention_mask != 0
    return (real.cumsum(dim=0) - 1).masked_fill(~real, 0)
    """,
)
token_positions.mistake(
    """The count runs on from row to row. A number means another document in each row, so each row
    begins anew.""",
    """
    numbers = attention_mask.flatten()
    same = (numbers[:, None] == numbers).tril(-1).sum(dim=-1)
    return same.masked_fill(numbers == 0, 0).view_as(attention_mask)
    """,
    """
    real = attention_mask.flatten() != 0
    return (real.cumsum(dim=0) - 1).masked_fill(~real, 0).view_as(attention_mask)
    """,
)
token_positions.mistake(
    """Where documents alternate, tokens of the other are counted too: from the first token of a
    document on, count its own alone.""",
    f"""
    same = {SAME}
    counted = (attention_mask != 0).cumsum(dim=1) - 1
    return (counted - counted.gather(1, same.long().argmax(dim=-1))).{NO_PADDING}
    """,
)
token_positions.mistake(
    "The positions are not int64. They index a table: keep the dtype of attention_mask.",
    {POSITIONS: f"({POSITIONS}).float()"},
    {POSITIONS: f"({POSITIONS}).int()"},
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
