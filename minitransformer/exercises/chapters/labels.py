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


MASK_ID = 49


def _corruption(draw: Draw, attention_mask: Tensor, share: float = 0.5) -> tuple:
    """Arguments of mask_tokens, with a share of all positions chosen, padding included."""
    shape = attention_mask.shape
    luck, fate = torch.rand(2, *shape, generator=draw.generator)
    input_ids = draw.ids(*shape, vocabulary=MASK_ID) * attention_mask
    others = draw.ids(*shape, vocabulary=MASK_ID)
    return input_ids, attention_mask, luck < share, fate, others, MASK_ID


def _each_fate(draw: Draw) -> tuple:
    """A token for each: not chosen, masked, at random, as it was."""
    fate = torch.tensor([[0.3, 0.75, 0.85, 0.95]])
    return (
        draw.ids(1, 4, vocabulary=40),
        torch.ones(1, 4, dtype=torch.int64),
        torch.tensor([[False, True, True, True]]),
        fate,
        torch.tensor([[41, 42, 43, 44]]),
        MASK_ID,
    )


def _zero_is_a_token(draw: Draw) -> tuple:
    input_ids, attention_mask, _, fate, others, mask_id = _corruption(
        draw, torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]])
    )
    input_ids[:, 1] = 0
    return input_ids, attention_mask, torch.ones(2, 5, dtype=torch.bool), fate, others, mask_id


@exercise(
    "Masked language modeling: 80, 10, 10",
    chapter=7,
    about="""BERT learns by filling gaps (Devlin et al. 2019, arXiv:1810.04805, section 3.1). Of the
        tokens chosen for prediction, 80 % become [MASK], 10 % another token at random, and 10 %
        stay as they are: there is no [MASK] when the model is used, so it must have something to
        say about ordinary tokens too. The random numbers are given, so that there is one answer.
        """,
    hints=[
        "First which tokens are picked: chosen, and real. Both the labels and the inputs follow.",
        "The labels: the original ids where picked, -100 elsewhere. A picked token has a label "
        "whatever its fate.",
        "torch.where(fate < 0.8, mask_id, torch.where(fate < 0.9, others, input_ids)) is what "
        "happens to picked tokens; another torch.where leaves the rest as they were.",
    ],
    inputs=lambda draw: {
        "a token for each fate": _each_fate(draw),
        "one row without padding": _corruption(draw, torch.ones(1, 12, dtype=torch.int64)),
        "three rows, padded on the right": _corruption(draw, draw.attention_mask(3, 14)),
        "four rows, padded on the left": _corruption(draw, draw.attention_mask(4, 13, "left")),
        "everything chosen": _corruption(draw, draw.attention_mask(2, 30), share=1.1),
    },
    edges=lambda draw: {
        "nothing chosen": _corruption(draw, draw.attention_mask(2, 5), share=0.0),
        "real tokens of id 0": _zero_is_a_token(draw),
        "a row of padding alone": _corruption(draw, torch.tensor([[1] * 9, [0] * 9]), share=1.1),
    },
)
def mask_tokens(
    input_ids: Tensor,
    attention_mask: Tensor,
    chosen: Tensor,
    fate: Tensor,
    others: Tensor,
    mask_id: int,
) -> tuple[Tensor, Tensor]:
    """What the model reads, and what it is to predict.

    A token is picked if it is chosen and real. A picked token becomes mask_id if its fate is below
    0.8, the token of `others` at its position if its fate is at least 0.8 and below 0.9, and stays
    as it was otherwise. Nothing else changes. The label of a picked token is its original id,
    whatever its fate; every other label is -100.

    input_ids: (batch, length) int64; ids at padding may be anything, and a real token may have id 0
    attention_mask: (batch, length) int64, 1 = real token, 0 = padding
    chosen: (batch, length) bool, at padding too; fate: (batch, length) float in [0, 1)
    others: (batch, length) int64, a token drawn at random for each position
    returns: input ids and labels, both (batch, length) int64
    """
    ### BEGIN SOLUTION
    picked = chosen & (attention_mask != 0)
    labels = input_ids.masked_fill(~picked, -100)
    changed = torch.where(fate < 0.8, mask_id, torch.where(fate < 0.9, others, input_ids))
    return torch.where(picked, changed, input_ids), labels
    ### END SOLUTION


LABELS = "input_ids.masked_fill(~picked, -100)"
FATES = "torch.where(fate < 0.8, mask_id, torch.where(fate < 0.9, others, input_ids))"
CORRUPTED = "torch.where(picked, changed, input_ids)"
mask_tokens.mistake(
    """Not every picked token has a label: those that stay as they were, or become another token,
    are to be predicted as well. Without them the model learns to copy what is not [MASK].""",
    {"~picked, -100": "~(picked & (fate < 0.8)), -100"},
    {"~picked, -100": "~(picked & (fate < 0.9)), -100"},
    {
        f"    labels = {LABELS}\n": "",
        ", labels": f", input_ids.masked_fill({CORRUPTED} == input_ids, -100)",
    },
)
mask_tokens.mistake(
    """Tokens that were not picked have labels: the model is paid for copying what it sees. Their
    labels are -100.""",
    {LABELS: "input_ids.clone()"},
    {LABELS: "input_ids.masked_fill(attention_mask == 0, -100)"},
)
mask_tokens.mistake(
    """The labels hold what the tokens have become, mask_id and random ones. What is to be predicted
    is what stood there before.""",
    {f"    labels = {LABELS}\n": "", ", labels": ", changed.masked_fill(~picked, -100)"},
)
mask_tokens.mistake(
    "Padding is masked, or has a label. Only real tokens are picked.",
    {" & (attention_mask != 0)": ""},
    {"~picked, -100": "~chosen, -100"},
    {"torch.where(picked, ": "torch.where(chosen, "},
)
mask_tokens.mistake(
    "Tokens that were not chosen are changed too: some 15 of 100 are chosen, the rest is read.",
    {CORRUPTED: "changed"},
    {CORRUPTED: "torch.where(attention_mask != 0, changed, input_ids)"},
    {"chosen & (attention_mask": "(attention_mask"},
)
mask_tokens.mistake(
    "Every picked token becomes mask_id. Only those whose fate is below 0.8 should.",
    {FATES: "torch.full_like(input_ids, mask_id)"},
)
mask_tokens.mistake(
    """No picked token becomes mask_id: those whose fate is below 0.8 become others too. Is
    there a second condition, fate < 0.9, that holds for them as well?""",
    {FATES: "torch.where(fate < 0.9, others, input_ids)"},
)
mask_tokens.mistake(
    "No picked token stays as it was: from a fate of 0.9 up nothing should change.",
    {"torch.where(fate < 0.9, others, input_ids)": "others"},
)
mask_tokens.mistake(
    "No picked token becomes another: from 0.8 to 0.9 it is that of `others`.",
    {"torch.where(fate < 0.9, others, input_ids)": "input_ids"},
)
mask_tokens.mistake(
    "The last two fates have changed places: below 0.9 it is a token of `others`, above as it was.",
    {"others, input_ids))": "input_ids, others))"},
)
mask_tokens.mistake(
    """The shares are right, but not the numbers: mask_id is for a fate below 0.8, others from there
    to 0.9.""",
    {FATES: "torch.where(fate < 0.1, others, torch.where(fate < 0.9, mask_id, input_ids))"},
    {FATES: "torch.where(fate < 0.1, input_ids, torch.where(fate < 0.9, mask_id, others))"},
    {FATES: "torch.where(fate < 0.1, input_ids, torch.where(fate < 0.2, others, mask_id))"},
    {FATES: "torch.where(fate < 0.1, others, torch.where(fate < 0.2, input_ids, mask_id))"},
    {FATES: "torch.where(fate >= 0.2, mask_id, torch.where(fate >= 0.1, others, input_ids))"},
)
mask_tokens.mistake(
    "Labels that do not count hold another number: torch's cross_entropy leaves out -100.",
    {"-100": "0"},
    {"-100": "-1"},
    {"-100": "mask_id"},
)
mask_tokens.mistake(
    "The labels are -100 where a token was picked, and its id elsewhere. Turn that around.",
    {"(~picked, -100": "(picked, -100"},
)
mask_tokens.mistake(
    """The labels are shifted, each is the next token. That is the rule of a decoder; here the token
    at a position is predicted at this position.""",
    {LABELS: "input_ids.roll(-1, 1).masked_fill(~picked, -100)"},
    {LABELS: "F.pad(input_ids[:, 1:], (0, 1), value=-100).masked_fill(~picked, -100)"},
)
mask_tokens.mistake(
    "A real token of id 0 is taken for padding. What is real stands in attention_mask.",
    {"(attention_mask != 0)": "(input_ids != 0)"},
)
