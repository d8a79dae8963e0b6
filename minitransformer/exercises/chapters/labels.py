"""Chapter 7: labels and -100."""

import torch
from torch import Tensor

from minitransformer.checks import LossSubject, expect
from minitransformer.exercises.exercise import Draw, Inputs, exercise

NAN, INF = float("nan"), float("inf")


def _predictions(draw: Draw) -> Inputs:
    """Logits and labels, none of which is class 0."""
    rows = [[2, -100, 4, 6, 1], [-100, 3, 5, 1, -100], [4, 2, -100, -100, -100]]
    return {
        "one position": (draw.normal(1, 1, 3), torch.tensor([[2]])),
        "one row in which every label counts": (draw.normal(1, 3, 4), torch.tensor([[1, 3, 2]])),
        "the last label ignored": (draw.normal(1, 4, 3), torch.tensor([[2, 1, 2, -100]])),
        "rows with different numbers of labels": (draw.normal(3, 5, 7), torch.tensor(rows)),
        "a row without labels": (
            draw.normal(2, 3, 5),
            torch.tensor([[-100, -100, -100], [3, 4, -100]]),
        ),
    }


def _unusual_predictions(draw: Draw) -> Inputs:
    labels = torch.tensor([[1, -100, 3], [-100, 2, 1]])
    poisoned = draw.normal(2, 3, 4)
    poisoned[0, 1], poisoned[1, 0, 2] = NAN, INF
    large = torch.tensor([[1e3, -2e3, 4e2, 3e3], [-5e3, 2e3, 1e3, 5e2], [0.0, 9e2, -3e3, 8e2]])
    return {
        "labels of class 0": (draw.normal(2, 3, 5), torch.tensor([[0, 3, -100], [2, 0, 0]])),
        "large logits": (large.double()[None], torch.tensor([[1, 2, 3]])),
        "NaN and Inf at ignored positions": (poisoned, labels),
        "no labels at all": (draw.normal(2, 3, 4), torch.full((2, 3), -100)),
    }


@exercise(
    "Cross-entropy that ignores -100",
    chapter=7,
    about="""The mean of -log softmax(logits)[label] over the labels that count, and over no
        others. Use logsumexp or your own; torch's log_softmax and its losses are locked.""",
    hints=[
        "Pick the positions that count first: logits[labels != -100] has one row for each.",
        "-log softmax(x)[i] is logsumexp(x) - x[i]: no overflow. gather picks x[i].",
        "Divide the sum by max(number of labels that count, 1): with none the loss is 0.",
    ],
    inputs=_predictions,
    edges=_unusual_predictions,
    gradients=True,
    forbidden=("log_softmax", "nll_loss", "cross_entropy"),
    subject=lambda fn: LossSubject(fn, dtypes=("float32", "float64")),
    promises={"gradients_of_the_loss_are_right": 1},
)
def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """The mean of -log softmax(logits)[label] over the labels that are not -100; 0 without any.

    Logits may be in the thousands. Where the label is -100 they may hold anything, NaN and Inf
    too: nothing of it reaches the loss, and the gradient there is 0.

    logits: (batch, length, classes) float
    labels: (batch, length) int64, the class at the same position, from 0 up; -100 = ignore
    returns: () of the dtype of the logits
    """
    ### BEGIN SOLUTION
    counts = labels != -100
    logits, labels = logits[counts], labels[counts]
    losses = logits.logsumexp(dim=-1) - logits.gather(-1, labels[:, None])[:, 0]
    return losses.sum() / max(len(labels), 1)
    ### END SOLUTION


PICKED = "counts = labels != -100\n    logits, labels = logits[counts], labels[counts]"
MEAN = "losses.sum() / max(len(labels), 1)"
LOSSES = "logits.logsumexp(dim=-1) - logits.gather(-1, labels[:, None])[:, 0]"
PROBABILITY = "logits.softmax(dim=-1).gather(-1, labels[:, None])[:, 0]"
EVERYWHERE = """
    counts = labels != -100
    chosen = logits.gather(-1, labels.clamp(min=0)[..., None])[..., 0]
    losses = logits.logsumexp(dim=-1) - chosen
"""
OF_ALL = "/ counts.sum().clamp(min=1)"
cross_entropy.mistake(
    """Losses are computed at ignored positions too, and thrown away: in the backward pass NaN comes
    back from them. Pick the positions that count first.""",
    {
        PICKED: "counts = (labels != -100).flatten()\n    "
        "logits, labels = logits.flatten(0, 1), labels.flatten().clamp(min=0)",
        MEAN: "losses[counts].sum() / max(int(counts.sum()), 1)",
    },
    EVERYWHERE + f"    return losses[counts].sum() {OF_ALL}",
    EVERYWHERE + f"    return losses.masked_fill(~counts, 0.0).sum() {OF_ALL}",
    EVERYWHERE + f"    return torch.where(counts, losses, 0.0).sum() {OF_ALL}",
)
cross_entropy.mistake(
    """The sum is right, but it is divided by the number of positions, ignored ones included: the
    more padding, the smaller the loss. Divide by the number of labels that count.""",
    {"max(len(labels), 1)": "counts.numel()"},
    EVERYWHERE + "    return losses.masked_fill(~counts, 0.0).mean()",
)
cross_entropy.mistake(
    "The losses are summed and not divided: this is not their mean.",
    {MEAN: "losses.sum()"},
)
cross_entropy.mistake(
    """The sum is divided by the number of rows, not by the number of labels that count.""",
    {"max(len(labels), 1)": "counts.shape[0]"},
    {"max(len(labels), 1)": "max(int(counts.any(dim=1).sum()), 1)"},
)
cross_entropy.mistake(
    """Each row is averaged, then the averages are: a label in a row with few of them weighs more.
    Sum over all rows, and divide once.""",
    EVERYWHERE
    + """    means = losses.masked_fill(~counts, 0.0).sum(dim=1) / counts.sum(dim=1).clamp(min=1)
    return means.mean()""",
    EVERYWHERE
    + """    rows = [loss[count].mean() for loss, count in zip(losses, counts) if count.any()]
    return sum(rows) / max(len(rows), 1) + 0.0 * logits.sum()""",
    """
    means = []
    for x, y in zip(logits, labels):
        x, y = x[y != -100], y[y != -100]
        losses = x.logsumexp(dim=-1) - x.gather(-1, y[:, None])[:, 0]
        means.append(losses.sum() / max(len(y), 1))
    return sum(means) / len(means)
    """,
    """
    means = []
    for x, y in zip(logits, labels):
        x, y = x[y != -100], y[y != -100]
        losses = x.logsumexp(dim=-1) - x.gather(-1, y[:, None])[:, 0]
        means.append(losses.mean())
    return sum(means) / len(means)
    """,
)
cross_entropy.mistake(
    """Where no label counts this is 0 / 0, NaN, and one such batch turns every weight into NaN.
    Divide by 1 at least.""",
    {MEAN: "losses.mean()"},
    {"max(len(labels), 1)": "len(labels)"},
)
cross_entropy.mistake(
    """Where no label counts a number of Python comes back. A tensor of shape () is wanted, as for
    every other batch: the training loop calls backward() on it.""",
    {"    logits, labels =": "    if not counts.any():\n        return 0.0\n    logits, labels ="},
    {"    logits, labels =": "    if not counts.any():\n        return 0\n    logits, labels ="},
)
cross_entropy.mistake(
    """A label of 0 is ignored, as if it were padding. Class 0 is a class like any other; only
    -100 says what to ignore.""",
    {"labels != -100": "labels > 0"},
)
cross_entropy.mistake(
    """-100 is clamped to class 0 and counted: ignored positions are taught class 0.""",
    {
        "counts = labels != -100\n    ": "",
        "logits[counts], labels[counts]": "logits.flatten(0, 1), labels.clamp(min=0).flatten()",
    },
)
cross_entropy.mistake(
    """exp is taken of the logits as they are: exp(89) is infinite in float32, exp(710) in float64.
    logsumexp subtracts the largest logit first.""",
    {"logits.logsumexp(dim=-1)": "logits.exp().sum(dim=-1).log()"},
    {LOSSES: "-(logits.exp().gather(-1, labels[:, None])[:, 0] / logits.exp().sum(-1)).log()"},
)
cross_entropy.mistake(
    """The logarithm is taken of a softmax: a small probability is rounded to 0, and log 0 is -inf.
    -log softmax(x)[i] is logsumexp(x) - x[i], without that detour.""",
    {LOSSES: f"-{PROBABILITY}.log()"},
)
cross_entropy.mistake(
    """A small number keeps the logarithm from log 0, and cuts off every large loss: what the model
    gets most wrong has no right loss and no gradient. logsumexp(x) - x[i] needs no such number.
    """,
    *({LOSSES: f"-({PROBABILITY} + {eps}).log()"} for eps in ("1e-8", "1e-9", "1e-10", "1e-12")),
    *({LOSSES: f"-{PROBABILITY}.clamp(min={eps}).log()"} for eps in ("1e-8", "1e-9", "1e-10")),
    {LOSSES: f"-{PROBABILITY}.clamp(min=1e-12).log()"},
)
cross_entropy.mistake(
    """The softmax runs over the positions, not over the classes: the chances of the classes at one
    position sum to 1.""",
    {LOSSES: f"-{PROBABILITY.replace('-1', '0', 1)}.log()"},
    {
        "    logits, labels =": "    logits = logits - logits.logsumexp(dim=1, keepdim=True)\n"
        "    logits, labels =",
        "logits.logsumexp(dim=-1) - logits.gather": "-logits.gather",
    },
)
cross_entropy.mistake(
    "The sign is missing: this is the mean log-probability, which training would push down.",
    {LOSSES: f"({LOSSES}) * -1"},
)
cross_entropy.mistake(
    """The logits are taken for log-probabilities: they have to be normalized first, by subtracting
    logsumexp.""",
    {LOSSES: "-logits.gather(-1, labels[:, None])[:, 0]"},
)
cross_entropy.mistake(
    """There is no logarithm: these are probabilities of the labels, not -log of them.""",
    {LOSSES: f"-{PROBABILITY}"},
    {LOSSES: f"1 - {PROBABILITY}"},
    {LOSSES: PROBABILITY},
)
cross_entropy.mistake(
    """The labels are shifted a second time. Here the label at a position already belongs to the
    logits at the same position.""",
    {"counts = labels": "logits, labels = logits[:, :-1], labels[:, 1:]\n    counts = labels"},
)
cross_entropy.mistake(
    """The losses of ignored positions are multiplied by 0, and NaN * 0 is NaN. Leave those
    positions out before anything is computed: logits[labels != -100].""",
    EVERYWHERE + f"    return (losses * counts).sum() {OF_ALL}",
)
cross_entropy.mistake(
    """No gradient can flow through this loss: it was cut off from the logits, by detach(), item(),
    float() or no_grad(). Return the tensor as it was computed.""",
    {MEAN: f"({MEAN}).detach()"},
    {MEAN: f"float({MEAN})"},
)
cross_entropy.mistake(
    "These are the losses of single labels, not their mean.",
    {MEAN: "losses"},
    EVERYWHERE + "    return losses.masked_fill(~counts, 0.0)",
)
cross_entropy.mistake(
    "The loss is float32, whatever the logits are: float64 logits have a float64 loss.",
    {"logits[counts], ": "logits.float()[counts], "},
    {MEAN: f"({MEAN}).float()"},
)
cross_entropy.mistake(
    """Only one number, the largest of the whole tensor, is subtracted before exp: a position whose
    logits are far below it has a sum of 0, and log 0 is -inf. Each position has its own largest.
    """,
    {
        LOSSES: "(logits - (logits.max() if len(logits) else 0.0)).exp().sum(dim=-1).log() + "
        "(logits.max() if len(logits) else 0.0) - logits.gather(-1, labels[:, None])[:, 0]"
    },
)
cross_entropy.mistake(
    "The loss has an axis of its own, (1,). A single number is wanted, of shape ().",
    {MEAN: f"({MEAN})[None]"},
)
cross_entropy.mistake(
    """The softmax is taken twice: of the logits, and again of the probabilities that come out. Then
    all losses are nearly alike. logsumexp is to be taken of the logits.""",
    {"losses = ": "logits = logits.softmax(dim=-1)\n    losses = "},
    {"counts = labels": "logits = logits.softmax(dim=-1)\n    counts = labels"},
)
cross_entropy.mistake(
    """1 is added to the number of labels, to keep it from 0: that makes every mean too small.
    max(number, 1) changes nothing but 0.""",
    {"max(len(labels), 1)": "(len(labels) + 1)"},
)
cross_entropy.mistake(
    "The logarithm has another base: this is counted in bits, or in digits. It is log to base e.",
    {LOSSES: f"({LOSSES}) / math.log(2)"},
    {LOSSES: f"({LOSSES}) / math.log(10)"},
)
cross_entropy.mistake(
    "This is the perplexity, exp of the mean loss. The mean itself is wanted.",
    {MEAN: f"({MEAN}).exp()"},
)
cross_entropy.mistake(
    "The mean is divided once more, by the number of classes or by its logarithm.",
    {MEAN: f"{MEAN} / logits.shape[-1]"},
    {MEAN: f"{MEAN} / math.log(logits.shape[-1])"},
)
cross_entropy.mistake(
    "The loss is of half precision, whatever the logits are: it has their dtype.",
    {"logits[counts], ": "logits.half()[counts], "},
    {"logits[counts], ": "logits.bfloat16()[counts], "},
    {MEAN: f"({MEAN}).half()"},
    {MEAN: f"({MEAN}).bfloat16()"},
)


MASK_ID = 49


def _corruption(draw: Draw, attention_mask: Tensor, share: float = 0.5) -> tuple:
    """Arguments of mask_tokens, with a share of all positions chosen, padding included."""
    shape = attention_mask.shape
    luck, fate = torch.rand(2, *shape, generator=draw.generator)
    input_ids = draw.ids(*shape, vocabulary=MASK_ID) * attention_mask
    others = draw.ids(*shape, vocabulary=MASK_ID)
    return input_ids, attention_mask, luck < share, fate, others, MASK_ID


def _each_fate(draw: Draw, at_random: float = 0.85) -> tuple:
    """A token for each: not chosen, masked, at random, as it was."""
    fate = torch.tensor([[0.3, 0.75, at_random, 0.95]])
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
        "a fate of exactly 0.8": _each_fate(draw, 0.8),
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


def _conversations(draw: Draw) -> Inputs:
    """Rows of token ids, and how many tokens of each are its prompt."""

    def rows(*lengths: int) -> list[list[int]]:
        return [(torch.randperm(40, generator=draw.generator)[:n] + 1).tolist() for n in lengths]

    return {
        "a prompt and an answer of two tokens each": (rows(4), [2]),
        "a prompt of one token": (rows(4), [1]),
        "a long prompt and a short answer": (rows(6), [4]),
        "rows of different lengths": (rows(5, 3, 6), [2, 1, 4]),
        "rows whose prompts are equally long": (rows(4, 7), [3, 3]),
    }


@exercise(
    "Learning the answer and not the question",
    chapter=7,
    about="""In fine-tuning the prompt is read and not learned: its labels are -100. The last token
        of the prompt predicts the first of the answer, and that one counts.""",
    hints=[
        "First the labels of plain language modelling: the next token at each place, -100 last.",
        "Places 0 to prompt_length - 2 predict tokens of the prompt: they become -100.",
        "[-100] * (n - 1) + row[n:] + [-100], where n is prompt_length, or 1 if that is 0.",
    ],
    inputs=_conversations,
    edges=lambda draw: {
        "no prompt": ([[5, 6, 7, 8]], [0]),
        "a prompt without an answer": ([[5, 6, 7]], [3]),
        "a single token": ([[4], [9], [5, 6]], [1, 0, 1]),
        "tokens that come again": ([[5, 6, 5, 7, 5, 8], [3, 3, 3, 4]], [2, 1]),
    },
)
def prompt_labels(rows: list[list[int]], prompt_lengths: list[int]) -> list[list[int]]:
    """The label at each place: the token that follows it, if that belongs to the answer.

    Where it belongs to the prompt, and at the last place, which nothing follows, it is -100. Each
    row of labels is as long as its row of tokens. Nothing predicts the first token of a row, so a
    prompt of length 0 gives what a prompt of length 1 gives.

    rows: token ids, at least one a row, the prompt before the answer
    prompt_lengths: how many tokens of each row are its prompt, from 0 to all of them
    """
    ### BEGIN SOLUTION
    labels = []
    for row, prompt in zip(rows, prompt_lengths, strict=True):
        following = [*row[1:], -100]
        labels.append([-100 if t + 1 < prompt else following[t] for t in range(len(row))])
    return labels
    ### END SOLUTION


CHOICE = "-100 if t + 1 < prompt else following[t]"
LABELS = f"[{CHOICE} for t in range(len(row))]"
prompt_labels.mistake(
    """The first token of the answer is not learned. The last token of the prompt predicts it: of a
    prompt of n tokens n - 1 places get -100.""",
    {"t + 1 < prompt": "t < prompt"},
)
prompt_labels.mistake(
    """One token of the prompt too many is learned, its last one: -100 belongs at each place whose
    next token is in the prompt.""",
    {"t + 1 < prompt": "t + 2 < prompt"},
)
prompt_labels.mistake(
    "The prompt is learned too: these are the labels of plain language modelling.",
    {CHOICE: "following[t]"},
)
prompt_labels.mistake(
    """Each label is the token at its own place, not the one that follows it. Some libraries shift
    inside the model; here the label at a place is what comes next.""",
    {"[*row[1:], -100]": "row"},
    {"[*row[1:], -100]": "row", "t + 1 < prompt": "t < prompt"},
    {"[*row[1:], -100]": "row", CHOICE: "following[t]"},
    {"[*row[1:], -100]": "row", "t + 1 < prompt": "t <= prompt"},
)
prompt_labels.mistake(
    "Each label is the token before its place. The label is the token that follows.",
    {"[*row[1:], -100]": "[-100, *row[:-1]]"},
    {"[*row[1:], -100]": "[-100, *row[:-1]]", "t + 1 < prompt": "t - 1 < prompt"},
)
prompt_labels.mistake(
    """The last place of a row has a label, though nothing follows it: -100 belongs there.""",
    {"[*row[1:], -100]": "[*row[1:], 0]"},
    {"[*row[1:], -100]": "[*row[1:], row[0]]"},
    {"[*row[1:], -100]": "[*row[1:], row[-1]]"},
)
prompt_labels.mistake(
    "The prompt is learned and the answer is not: it should be the other way round.",
    {CHOICE: "following[t] if t + 1 < prompt else -100"},
    {CHOICE: "following[t] if t < prompt else -100"},
)
prompt_labels.mistake(
    "One prompt length is used for all rows. Each row has its own.",
    {"prompt_lengths, strict": "prompt_lengths[:1] * len(rows), strict"},
    {"prompt_lengths, strict": "[max(prompt_lengths)] * len(rows), strict"},
    {"prompt_lengths, strict": "[min(prompt_lengths)] * len(rows), strict"},
)
prompt_labels.mistake(
    """The labels are one short of the row: the last place needs one too, -100.""",
    {"range(len(row))": "range(len(row) - 1)"},
    {LABELS: "[-100] * (prompt - 1) + row[prompt:]"},
)
prompt_labels.mistake(
    """There is a label too many: of a prompt of n tokens n - 1 places predict a token of it and get
    -100.""",
    {LABELS: "[-100] * prompt + row[prompt:] + [-100]"},
)
prompt_labels.mistake(
    """These are the labels of the answer alone. The prompt is read too, so each of its places needs
    a label, -100.""",
    {LABELS: "row[prompt:]"},
    {LABELS: "row[prompt:] + [-100]"},
    {LABELS: "following[max(prompt - 1, 0) :]"},
    {LABELS: "following[prompt:]"},
    {LABELS: "row[prompt + 1 :] + [-100]"},
)
prompt_labels.mistake(
    """What is not to be learned has another label than -100: such a number is a token, or an
    error in the loss. -100 is what the loss ignores.""",
    {CHOICE: "0 if t + 1 < prompt else following[t]"},
    {"[*row[1:], -100]": "[*row[1:], 0]", CHOICE: "0 if t + 1 < prompt else following[t]"},
    {CHOICE: "-1 if t + 1 < prompt else following[t]"},
    {"[*row[1:], -100]": "[*row[1:], -1]", CHOICE: "-1 if t + 1 < prompt else following[t]"},
)
prompt_labels.mistake(
    """Without a prompt there is a label too many, the first token's. Nothing predicts the first
    token of a row.""",
    {LABELS: "[-100] * (prompt - 1) + row[prompt:] + [-100]"},
)
prompt_labels.mistake(
    """Without a prompt prompt_length - 1 is -1, and a slice up to -1 is everything but the last
    place. Use max(prompt_length - 1, 0).""",
    """
    labels = []
    for row, prompt in zip(rows, prompt_lengths):
        following = [*row[1:], -100]
        following[: prompt - 1] = [-100] * (prompt - 1)
        labels.append(following)
    return labels
    """,
    """
    labels = []
    for row, prompt in zip(rows, prompt_lengths):
        following = torch.tensor([*row[1:], -100])
        following[: prompt - 1] = -100
        labels.append(following.tolist())
    return labels
    """,
)
prompt_labels.mistake(
    "The labels of all rows are in one list. Each row has a list of its own.",
    {"labels.append(": "labels.extend("},
)
prompt_labels.mistake(
    """The rows of labels are padded to one length. Each is as long as its row of tokens; padding
    comes later.""",
    {"return labels": "return [x + [-100] * (max(map(len, rows)) - len(x)) for x in labels]"},
)
prompt_labels.mistake(
    """A token is looked up by what it is, with index(), which finds the first that is alike: where
    a token comes again, its label is wrong. Go by the place.""",
    {CHOICE: CHOICE.replace("[t]", "[row.index(row[t])]")},
    {
        CHOICE: "-100 if row.index(row[t]) + 1 < prompt else following[row.index(row[t])]",
    },
)
prompt_labels.mistake(
    "The labels are tensors. A list of lists of ids is wanted; tensors come later, with padding.",
    {
        "return labels": "return torch.nn.utils.rnn.pad_sequence([torch.tensor(x) for x in labels],"
        " batch_first=True, padding_value=-100)"
    },
    {"return labels": "return [torch.tensor(x) for x in labels]"},
    {
        "return labels": "return torch.nn.utils.rnn.pad_sequence([torch.tensor(x) for x in labels],"
        " batch_first=True)"
    },
)


def _micro_batches(draw: Draw) -> Inputs:
    """The losses of some parts, and labels of which none is class 0."""

    def losses(*shapes: tuple[int, int]) -> list[Tensor]:
        return [3 * draw.normal(*shape).abs() for shape in shapes]

    one = [torch.tensor([[4, -100, 2, 7, -100]])]
    equal = [torch.tensor([[3, -100, 1]]), torch.tensor([[-100, 5, 2]])]
    unequal = [torch.tensor([[2, 6, 3, 1]]), torch.tensor([[-100, -100, 5, -100]])]
    shapes = [
        torch.tensor([[2, 3, -100], [1, -100, 7]]),
        torch.tensor([[5, 1, 4, 2, -100]]),
        torch.tensor([[-100, 8], [6, 2], [-100, 4]]),
    ]
    return {
        "one part": (losses((1, 3)), [torch.tensor([[2, 1, 3]])]),
        "one part in which some labels are ignored": (losses((1, 5)), one),
        "two parts with as many labels each": (losses((1, 3), (1, 3)), equal),
        "two parts, one with few labels": (losses((1, 4), (1, 4)), unequal),
        "three parts of different shapes": (losses((2, 3), (1, 5), (3, 2)), shapes),
    }


def _unusual_parts(draw: Draw) -> Inputs:
    two = [torch.tensor([[2.0, 4.0, 1.0]]), torch.tensor([[7.0, 3.0]])]
    nothing = [torch.full((1, 3), -100), torch.full((1, 2), -100)]
    return {
        "NaN and Inf where the label is ignored": (
            [torch.tensor([[2.0, NAN, 1.0]]), torch.tensor([[INF, 3.0]])],
            [torch.tensor([[1, -100, 2]]), torch.tensor([[-100, 4]])],
        ),
        "a part without labels": (two, [torch.tensor([[3, 1, -100]]), nothing[1]]),
        "no labels at all": (two, nothing),
        "labels of class 0": (two, [torch.tensor([[0, 5, -100]]), torch.tensor([[2, 0]])]),
    }


@exercise(
    "Accumulation that weighs every token alike",
    chapter=7,
    about="""A batch too large for the memory is taken in parts. The mean of the parts' means is
        not the mean of the whole: a token in a part with few labels counts too much. This bug was
        in well-known trainers until 2024.""",
    hints=[
        "Add up all losses that count, over all parts, and divide once.",
        "The number to divide by is the number of labels in all parts together.",
        "The sum of loss[label != -100].sum() over the parts, divided by the sum of "
        "(label != -100).sum(), which must be 1 at least.",
    ],
    inputs=_micro_batches,
    edges=_unusual_parts,
)
def accumulate(token_losses: list[Tensor], labels: list[Tensor]) -> Tensor:
    """The mean loss over the labels that are not -100, of all parts together; 0 if all are -100.

    Where the label is -100 the loss may hold anything, NaN and Inf too: nothing of it reaches the
    mean. Gradients must flow back to the other losses.

    token_losses: at least one part, of which each may have other sizes: the loss at each position,
    (batch, length) float
    labels: for each part the same shape, int64, from 0 up; -100 = this position does not count
    returns: () float
    """
    ### BEGIN SOLUTION
    total = sum(loss[label != -100].sum() for loss, label in zip(token_losses, labels, strict=True))
    count = sum(int((label != -100).sum()) for label in labels)
    return total / max(count, 1)
    ### END SOLUTION


PARTS = "[a[b != -100] for a, b in zip(token_losses, labels)]"
PART = "loss[label != -100].sum()"
COUNT = "sum(int((label != -100).sum()) for label in labels)"
accumulate.mistake(
    """Each part is averaged, then the averages are: a token in a part with few labels counts more
    than one in a part with many. Sum over all parts, and divide once.""",
    f"return torch.stack([part.mean() for part in {PARTS}]).mean()",
    f"return torch.stack([part.sum() / max(len(part), 1) for part in {PARTS}]).mean()",
    f"""
    means = [part.mean() for part in {PARTS} if len(part)]
    return sum(means, torch.tensor(0.0)) / max(len(means), 1)
    """,
    """
    mean = None
    for loss, label in zip(token_losses, labels):
        part = loss[label != -100].sum() / max(int((label != -100).sum()), 1)
        mean = part if mean is None else (mean + part) / 2
    return mean
    """,
)
accumulate.mistake(
    """The means of the parts are added up: with four parts the loss is about four times that of the
    whole. Sum the losses, and divide once by the number of all labels.""",
    f"return torch.stack([part.mean() for part in {PARTS}]).sum()",
    f"return torch.stack([part.sum() / max(len(part), 1) for part in {PARTS}]).sum()",
)
accumulate.mistake(
    """The means of the parts are weighed by their rows, or by all their positions. What a part
    weighs is the number of its labels that count.""",
    f"""
    means = [part.sum() / max(len(part), 1) for part in {PARTS}]
    return sum(x * len(y) for x, y in zip(means, labels)) / sum(len(y) for y in labels)
    """,
    f"""
    means = [part.sum() / max(len(part), 1) for part in {PARTS}]
    return sum(x * y.numel() for x, y in zip(means, labels)) / sum(y.numel() for y in labels)
    """,
)
accumulate.mistake(
    """Every row is averaged by itself, then the averages are: a token in a row with few labels
    counts more.""",
    """
    means = [
        row[label != -100].sum() / max(int((label != -100).sum()), 1)
        for loss, part in zip(token_losses, labels)
        for row, label in zip(loss, part)
    ]
    return sum(means) / len(means)
    """,
    """
    means = [
        row[label != -100].mean()
        for loss, part in zip(token_losses, labels)
        for row, label in zip(loss, part)
        if (label != -100).any()
    ]
    return sum(means, torch.tensor(0.0)) / max(len(means), 1)
    """,
)
accumulate.mistake(
    """The sum is right, but it is divided by the number of positions, ignored ones included. Divide
    by the number of labels that count.""",
    {"max(count, 1)": "sum(label.numel() for label in labels)"},
)
accumulate.mistake(
    "The sum is divided by the number of parts, not by the number of labels.",
    {"max(count, 1)": "len(labels)"},
)
accumulate.mistake(
    "The sum is divided by the number of rows of all parts, not by the number of labels.",
    {"max(count, 1)": "sum(len(label) for label in labels)"},
)
accumulate.mistake(
    "The losses are summed and not divided: this is not their mean.",
    {"return total / max(count, 1)": "return total"},
)
accumulate.mistake(
    """The losses of ignored positions are multiplied by 0, and NaN * 0 is NaN, as Inf * 0 is. Leave
    them out: loss[label != -100].""",
    {PART: "(loss.masked_fill(loss.isnan(), 0.0) * (label != -100)).sum()"},
    {PART: "(loss * (label != -100)).sum()"},
)
accumulate.mistake(
    """The losses of ignored positions are in the sum; only the number to divide by leaves them
    out.""",
    {PART: "loss.sum()"},
)
accumulate.mistake(
    "Ignored positions are counted like all others: this is the mean over every position.",
    {"loss[label != -100]": "loss", "(label != -100).sum()": "label.numel()"},
)
accumulate.mistake(
    "Where no label counts this is 0 / 0, NaN. Divide by 1 at least.",
    {"max(count, 1)": "count"},
    f"return torch.cat({PARTS}).mean()",
)
accumulate.mistake(
    """A label of 0 is ignored, in the sum or in the count, as if it were padding. Class 0 is a
    class like any other.""",
    {"label != -100": "label > 0"},
    {"loss[label != -100]": "loss[label > 0]"},
    {"(label != -100).sum()": "(label > 0).sum()"},
)
accumulate.mistake(
    """In the sum, in the number of labels or in both only one part is left, the first or the last.
    Add up over all parts.""",
    {"for label in labels)": "for label in labels[-1:])"},
    {"for label in labels)": "for label in labels[:1])"},
    {"zip(token_losses, labels, strict=True)": "zip(token_losses[-1:], labels[-1:])"},
    {"zip(token_losses, labels, strict=True)": "zip(token_losses[:1], labels[:1])"},
    {
        "zip(token_losses, labels, strict=True)": "zip(token_losses[-1:], labels[-1:])",
        "for label in labels)": "for label in labels[-1:])",
    },
    {
        "zip(token_losses, labels, strict=True)": "zip(token_losses[:1], labels[:1])",
        "for label in labels)": "for label in labels[:1])",
    },
)
accumulate.mistake(
    "This is the mean over what is to be ignored: -100 marks what does not count.",
    {"label != -100": "label == -100"},
)
accumulate.mistake(
    """A number of Python comes back, which has no gradient. A tensor of shape () is wanted: the
    training loop calls backward() on it.""",
    {"return total / max(count, 1)": "return float(total) / max(count, 1)"},
    {"return total / max(count, 1)": "return (total / max(count, 1)).item()"},
)
accumulate.mistake(
    """Each part is divided by all of its positions, ignored ones included, and the parts are
    averaged. Sum over all parts, and divide once, by the number of labels that count.""",
    f"""
    zipped = zip(token_losses, labels, strict=True)
    means = [{PART} / label.numel() for loss, label in zipped]
    return sum(means) / len(means)
    """,
    """
    means = [(loss * (y != -100)).mean() for loss, y in zip(token_losses, labels)]
    return sum(means) / len(means)
    """,
)
accumulate.mistake(
    """A part without labels has a mean of 0 / 0, NaN, and NaN times its weight of 0 is NaN. Add up
    losses instead of means.""",
    f"""
    count = sum(int((label != -100).sum()) for label in labels)
    return sum(part.mean() * (len(part) / max(count, 1)) for part in {PARTS})
    """,
    f"""
    if all((label == -100).all() for label in labels):
        return torch.tensor(0.0)
    count = sum(int((label != -100).sum()) for label in labels)
    return sum(part.mean() * (len(part) / count) for part in {PARTS})
    """,
    f"""
    if all((label == -100).all() for label in labels):
        return torch.tensor(0.0)
    return torch.stack([part.mean() for part in {PARTS}]).mean()
    """,
)
accumulate.mistake(
    """The number of labels of one part, times the number of parts, is taken for that of all: parts
    have different numbers of labels.""",
    {COUNT: "int((labels[0] != -100).sum()) * len(labels)"},
    {COUNT: "int((labels[-1] != -100).sum()) * len(labels)"},
)
accumulate.mistake(
    "The loss has an axis of its own, (1,). A single number is wanted, of shape ().",
    {"return total / max(count, 1)": "return (total / max(count, 1))[None]"},
)
accumulate.mistake(
    """1 is added to the number of labels, to keep it from 0: that makes every mean too small.
    max(number, 1) changes nothing but 0.""",
    {"max(count, 1)": "(count + 1)"},
)
accumulate.mistake(
    "The mean comes back with another dtype than that of the losses.",
    {"return total / max(count, 1)": "return (total / max(count, 1)).double()"},
    {"return total / max(count, 1)": "return (total / max(count, 1)).half()"},
    {"return total / max(count, 1)": "return (total / max(count, 1)).bfloat16()"},
)


@accumulate.check(points=1, measures="largest difference from the right gradient")
def every_label_has_the_same_gradient(fn, draw: Draw):
    """Each loss that counts has the gradient 1 / number of labels, every other exactly 0."""
    losses = [torch.tensor([[9.0, NAN, 5.0]]), torch.tensor([[1.0, 1.0, 1.0]])]
    labels = [torch.tensor([[1, -100, -100]]), torch.tensor([[1, 1, 1]])]
    losses = [loss.requires_grad_() for loss in losses]
    mean = fn(losses, labels)
    expect(
        isinstance(mean, Tensor) and mean.requires_grad,
        "No gradient flows back to the losses. Was the mean cut off from them, as by float(), "
        "item() or detach()?",
    )
    found = torch.autograd.grad(mean, losses, materialize_grads=True)
    wanted = [0.25 * (label != -100).float() for label in labels]
    largest = max(float((a - b).abs().max()) for a, b in zip(found, wanted, strict=True))
    expect(
        largest <= 1e-6,
        f"One label in a part, three in another: the gradients of the losses are "
        f"{found[0].tolist()} and {found[1].tolist()}; {wanted[0].tolist()} and "
        f"{wanted[1].tolist()} is wanted.",
        largest,
    )
    return largest
