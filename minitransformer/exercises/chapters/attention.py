"""Chapter 2: attention from scratch."""

import torch
from torch import Tensor

from minitransformer.checks import AttentionSubject, expect
from minitransformer.exercises.exercise import Draw, Inputs, exercise


@exercise(
    "Softmax",
    chapter=2,
    about="""From scores to shares: positive, and 1 in sum. A score of -inf must give a share of
        exactly 0, and a large score no overflow.""",
    hints=[
        "exp(x) / sum of exp(x), along the last axis.",
        "exp(1000) is inf. Softmax does not change if you subtract the same number everywhere.",
        "Subtract the largest score of each row first, scores - scores.amax(dim=-1, keepdim=True); "
        "then exp, and divide by the sum along dim=-1 with keepdim=True.",
    ],
    inputs=lambda draw: {
        "one row": (draw.normal(1, 4),),
        "three rows": (draw.normal(3, 3),),
        "one more axis in front": (draw.normal(2, 3, 4) * 4,),
    },
    edges=lambda draw: {
        "scores of -inf": (draw.normal(2, 5).masked_fill(torch.arange(5) > 2, float("-inf")),),
        "scores of 1000 and of -1000": (draw.normal(3, 4) + torch.tensor([[1e3], [0.0], [-1e3]]),),
    },
    forbidden=("softmax", "logsumexp"),
)
def softmax(scores: Tensor) -> Tensor:
    """exp(x) / sum(exp(x)) along the last axis, however large the scores are.

    scores: (..., n) float; some may be -inf, but every row has a finite one
    returns: (..., n); exactly 0 where the score is -inf
    """
    ### BEGIN SOLUTION
    powers = (scores - scores.amax(dim=-1, keepdim=True)).exp()
    return powers / powers.sum(dim=-1, keepdim=True)
    ### END SOLUTION


POWERS = "(scores - scores.amax(dim=-1, keepdim=True)).exp()"
SUMS = "powers.sum(dim=-1, keepdim=True)"
softmax.mistake(
    """exp of a large score overflows: exp(1000) is inf, inf / inf is NaN, and exp(-1000) is 0.
    Softmax does not change where the same number is subtracted from a whole row.""",
    {POWERS: "scores.exp()"},
    *({POWERS: "scores.exp()", SUMS: f"({SUMS} + {eps})"} for eps in ("1e-6", "1e-8", "1e-12")),
    *({POWERS: "scores.exp()", SUMS: f"{SUMS}.clamp(min={eps})"} for eps in ("1e-8", "1e-12")),
)
softmax.mistake(
    """The largest score of the whole tensor is subtracted from every row. A row that lies far below
    it becomes 0 / 0, which is NaN: each row needs its own largest score.""",
    {"scores.amax(dim=-1, keepdim=True)": "scores.max()"},
)
softmax.mistake(
    "The shares of the whole tensor sum to 1. Those of each row should, along the last axis.",
    {SUMS: "powers.sum()"},
    {"scores.amax(dim=-1, keepdim=True)": "scores.max()", SUMS: "powers.sum()"},
)
softmax.mistake(
    """The sum runs along another axis than the last. The rows should sum to 1, however many axes
    stand in front of them.""",
    {"dim=-1": "dim=-2"},
    {SUMS: "powers.sum(dim=-2, keepdim=True)"},
    {SUMS: "powers.sum(dim=0, keepdim=True)"},
    {"dim=-1": "dim=0"},
    {"dim=-1": "dim=1"},
)
softmax.mistake(
    "These are the powers. Divide them by their sum, so that a row sums to 1.",
    {f" / {SUMS}": ""},
)
softmax.mistake(
    """The scores are divided by their own sum, without exp. A share must be positive, also where
    the score is negative.""",
    {POWERS: "scores"},
    {POWERS: "scores - scores.amax(dim=-1, keepdim=True)"},
    {POWERS: "scores.abs()"},
    {POWERS: "scores.relu()"},
)
softmax.mistake(
    "Something is added to what the powers are divided by: the shares no longer sum to 1.",
    {SUMS: f"({SUMS} + 0.1)"},
    {SUMS: f"({SUMS} + 1)"},
    {SUMS: f"({SUMS} + 1e-3)"},
    {SUMS: f"({SUMS} + 1e-2)"},
    {SUMS: f"({SUMS} + scores.shape[-1])"},
    {f" / {SUMS}": f" / (1 + {SUMS})"},
)
softmax.mistake(
    """Low scores are raised before exp, -inf too, so that a share which should be exactly 0 is not.
    """,
    {"(scores - scores": "(scores.clamp(min=-15) - scores"},
    {"(scores - scores": "(scores.clamp(min=-5) - scores"},
    {"(scores - scores": "(scores.nan_to_num(neginf=-5.0) - scores"},
    {"(scores - scores": "(scores.nan_to_num(neginf=0.0) - scores"},
)
softmax.mistake(
    """The smallest score of each row is subtracted, or the mean, where the largest belongs: with
    -inf in the row nothing but NaN is left, and far above it exp overflows.""",
    {"amax": "amin"},
    {"amax": "mean"},
)
softmax.mistake(
    "This is the logarithm of the shares, not the shares.",
    {f"powers / {SUMS}": f"(powers / {SUMS}).log()"},
    {f"powers / {SUMS}": "scores - scores.exp().sum(dim=-1, keepdim=True).log()"},
)
softmax.mistake(
    "Another base than e: exp(x) is math.e ** x, not 2 ** x or 10 ** x.",
    {".exp()": ".exp2()"},
    {POWERS: "10 ** (scores - scores.amax(dim=-1, keepdim=True))"},
)
softmax.mistake(
    "Each score is taken by itself, as in a sigmoid. In a softmax the scores of a row compete.",
    {f"powers / {SUMS}": "scores.sigmoid()"},
    {f"powers / {SUMS}": "powers / (1 + powers)"},
)
softmax.mistake(
    "The sign is turned: exp(-x) gives the largest share to the lowest score.",
    {POWERS: "(scores.amin(dim=-1, keepdim=True) - scores).exp()"},
    {POWERS: "(scores.amax(dim=-1, keepdim=True) - scores).exp()"},
    {POWERS: "(-scores).exp()"},
)
softmax.mistake(
    """Large scores are cut off, before exp or what overflows behind it: all that lie above count
    alike. Subtract the largest of the row, and none is above 0.""",
    *({POWERS: f"scores.clamp(max={top}).exp()"} for top in (20, 50, 80, 88)),
    *({POWERS: f"scores.clamp(-{top}, {top}).exp()"} for top in (20, 50, 80, 88)),
    {POWERS: "scores.exp().nan_to_num()"},
    {POWERS: "scores.exp().clamp(max=1e30)"},
)
softmax.mistake(
    """NaN is replaced in the shares, where it is lost already which score was larger. Keep it from
    arising: subtract the largest score of the row before exp.""",
    {POWERS: "scores.exp()", f"powers / {SUMS}": f"(powers / {SUMS}).nan_to_num()"},
)
softmax.mistake(
    """The scores are divided by the largest of them. Subtract it: a quotient changes how far apart
    they are, a difference does not.""",
    {POWERS: "(scores / scores.amax(dim=-1, keepdim=True)).exp()"},
    {POWERS: "(scores / scores.abs().amax(dim=-1, keepdim=True)).exp()"},
    {POWERS: "(scores / scores.max()).exp()"},
)
softmax.mistake(
    """The scores are scaled before exp, as attention does with √d, or as a temperature does.
    Softmax takes them as they are.""",
    *(
        {"powers = (scores - ": f"scores = scores {scale}\n    powers = (scores - "}
        for scale in ("/ scores.shape[-1] ** 0.5", "/ scores.shape[-1]", "/ 2", "* 2")
    ),
    {
        "powers = (scores - ": "scores = scores - scores.mean(dim=-1, keepdim=True)\n    "
        "scores = scores / scores.std(dim=-1, keepdim=True)\n    powers = (scores - "
    },
)
softmax.mistake(
    """Without keepdim=True the axis is gone that held a number for each row, and the numbers of the
    rows meet the columns. Where both sizes are equal no error says so.""",
    {", keepdim=True": ""},
    {SUMS: "powers.sum(dim=-1)"},
    {"scores.amax(dim=-1, keepdim=True)": "scores.amax(dim=-1)"},
)
softmax.mistake(
    """Something is added to exp, subtracted or done with it: 1 + exp, exp - 1, log. exp(x) alone is
    what is shared out.""",
    {POWERS: f"(1 + {POWERS})"},
    {POWERS: "(scores - scores.amax(dim=-1, keepdim=True)).expm1()"},
    {POWERS: f"{POWERS}.log1p()"},
)
softmax.mistake(
    """The shares are rounded, or their smallest are taken away.""",
    {f"powers / {SUMS}": f"(powers / {SUMS}).round(decimals=2)"},
    {f"powers / {SUMS}": f"(powers / {SUMS}).round(decimals=3)"},
    {f"powers / {SUMS}": f"(powers / {SUMS}).round(decimals=4)"},
)
softmax.mistake(
    "The largest share is 1 and all others 0: this is an argmax. Lower scores get a share, too.",
    {f"powers / {SUMS}": "(powers == 1.0).float()"},
)


@softmax.check(points=1)
def minus_infinity_gets_exactly_zero(fn, draw: Draw):
    """A score of -inf gets a share of 0.0, not a small one."""
    scores = draw.normal(2, 5)
    scores[:, 2:4] = float("-inf")
    found = fn(scores)
    largest = float(found[:, 2:4].abs().max())
    expect(largest == 0, f"A score of -inf gets the share {largest:g}, not 0.", found=found)


def attention_arguments(
    draw: Draw, batch: int, heads: int, queries: int, keys: int, mask: Tensor, width: int = 6
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Query, key, value and mask."""
    query, key, value = (draw.normal(batch, heads, n, width) for n in (queries, keys, keys))
    return query, key, value, mask


def attention_inputs(draw: Draw) -> Inputs:
    """Ordinary ones, of sizes that all differ; every query may see a key."""
    everything = torch.ones(1, 1, 2, 3, dtype=torch.bool)
    return {
        "one head and nothing masked": attention_arguments(draw, 1, 1, 2, 3, everything, 4),
        "one head and a mask": attention_arguments(draw, 1, 1, 4, 5, draw.mask(1, 4, 5)),
        "one mask for two sequences": attention_arguments(draw, 2, 3, 4, 5, draw.mask(1, 4, 5)),
        "a mask for each sequence": attention_arguments(draw, 2, 3, 4, 5, draw.mask(2, 4, 5)),
        "a mask for each head": attention_arguments(draw, 2, 3, 5, 4, draw.mask(2, 5, 4, 3)),
        "as many queries as keys": attention_arguments(draw, 3, 2, 4, 4, draw.mask(3, 4, 4), 5),
    }


def largest_is_masked(draw: Draw) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Scores of the order of 1e16, of which a masked key has the largest by far.

    The values of the others are 0, so that rounding reaches no gradient.
    """
    masked = torch.tensor([False, False, True])
    mask = ~masked.expand(1, 1, 2, 3)
    query, key, value, mask = attention_arguments(draw, 1, 2, 2, 3, mask)
    signs = torch.tensor([-1e8, -1e8, 1e8]).view(1, 1, 3, 1)
    return query.abs() * 1e8, key.abs() * signs, value * masked.view(3, 1), mask


def unusual_scores(draw: Draw) -> Inputs:
    """Such as overflow where exp is taken of them as they are, and such as win though masked.

    They lie so far apart that rounding reaches no gradient.
    """
    first = torch.tensor([1.0, 0.0, 0.0])  # of the three numbers of a head
    query = torch.tensor([1.0, -1.0]).view(1, 1, 2, 1) * first * 3**0.5
    key = torch.tensor([120.0, -150.0, 60.0, 90.0]).view(1, 1, 4, 1) * first
    mask = torch.tensor([[True, True, True, False], [False, True, True, True]])[None, None]
    return {
        "scores of 120 and 150": (query, key, draw.normal(1, 1, 4, 3), mask),
        "a masked key of the largest score": largest_is_masked(draw),
    }


@exercise(
    "Scaled dot-product attention",
    chapter=2,
    about="""softmax(QKᵀ/√d) V over the keys that the mask allows (Vaswani et al. 2017, equation 1),
        where d is the width of a head. Here every query may see at least one key; queries that may
        see none come in chapter 4.""",
    hints=[
        "Scores are query @ key transposed, divided by the root of the width of a head.",
        "Masked scores become -inf before the softmax: masked_fill wants True where it fills.",
        "scores = query @ key.transpose(-2, -1) / query.shape[-1] ** 0.5, then "
        "scores.masked_fill(~mask, float('-inf')).softmax(dim=-1) @ value",
    ],
    inputs=attention_inputs,
    edges=unusual_scores,
    gradients=True,
    subject=lambda fn: AttentionSubject(fn, dead_rows="any"),
    points=3,
    promises={
        "forbidden_keys_get_exactly_zero": 1,
        "weights_sum_to_one": 1,
        "gradients_are_right": 1,
    },
)
def attention(query: Tensor, key: Tensor, value: Tensor, mask: Tensor) -> Tensor:
    """The mean of the values that a query may see, weighted by softmax(QKᵀ/√d), for every query.

    A masked key has a weight of exactly 0, however large its score is. No score is too large.

    query: (batch, heads, queries, width) float; key and value: (batch, heads, keys, width)
    mask: (batch or 1, heads or 1, queries, keys) bool, True = may attend; a True in every row
    returns: (batch, heads, queries, width)
    """
    ### BEGIN SOLUTION
    scores = query @ key.transpose(-2, -1) / query.shape[-1] ** 0.5
    return scores.masked_fill(~mask, float("-inf")).softmax(dim=-1) @ value
    ### END SOLUTION


MASKED = 'scores.masked_fill(~mask, float("-inf"))'
SCALE = "query.shape[-1] ** 0.5"
# Besides those of the museum, whose attention functions are tried too. Each is an edit of its own
# place, so that two of them can be found at once.
OF_THE_SCORES = {
    """The scores are not divided by √d: the softmax is too sharp, nearly one-hot for wide heads,
    and its gradients vanish. d is the width of a head.""": [{f" / {SCALE}": ""}],
    """The scores are divided by d, not by its root: the softmax is too flat, and attention comes
    close to an average.""": [{SCALE: "query.shape[-1]"}],
    "The scores are multiplied by the root of d. They should be divided by it.": [
        {f"/ {SCALE}": f"* {SCALE}"}
    ],
    """The softmax runs over the queries: every key hands out weights that sum to 1. It is a query's
    weights that must, along the keys, the last axis.""": [
        {".softmax(dim=-1)": ".softmax(dim=-2)"},
        {".softmax(dim=-1)": ".softmax(dim=-2)", 'float("-inf")': "-1e9"},
    ],
    """The softmax runs over the heads, over the batch or over several axes at once. A query's
    weights sum to 1 along the keys, the last axis.""": [
        {".softmax(dim=-1)": ".softmax(dim=1)"},
        {".softmax(dim=-1)": ".softmax(dim=1)", 'float("-inf")': "-1e9"},
        {".softmax(dim=-1)": ".softmax(dim=0)"},
        {".softmax(dim=-1)": ".flatten(2).softmax(dim=-1).view_as(scores)"},
    ],
}
for says, edits in OF_THE_SCORES.items():
    attention.mistake(says, *edits)
attention.mistake(
    """The mask is used upside down: what it allows is hidden. In this mask True means "may attend",
    and masked_fill fills where its mask is True.""",
    {"masked_fill(~mask": "masked_fill(mask"},
    {MASKED: "scores.masked_fill(mask, -1e9)"},
    {MASKED: "scores.masked_fill(mask, 0.0)"},
    {MASKED: "(scores + mask * -1e9)"},
)
attention.mistake(
    """Mask after the softmax. The mask is multiplied in after the softmax: masked keys have had
    their part in its sum, and what is left of the weights does not sum to 1. Mask the scores,
    before the softmax, with -inf.""",
    {MASKED: "scores", ".softmax(dim=-1)": ".softmax(dim=-1) * mask"},
)
attention.mistake(
    """No mask at all. The mask is accepted and never used: every query sees every key, padding and
    future. It must reach the scores before the softmax.""",
    {MASKED: "scores"},
)
attention.mistake(
    """The mask of True and False is added to the scores, as 1 and 0: allowed keys are preferred by
    a factor e, and nothing is hidden. What is added must be 0 and -inf.""",
    {MASKED: "(scores + mask)"},
    {MASKED: "(scores - ~mask * 1.0)"},
)
attention.mistake(
    """-inf is put in after the softmax, where it is a weight, and the largest of all. It belongs to
    the scores, before the softmax.""",
    {MASKED: "scores", ".softmax(dim=-1)": '.softmax(dim=-1).masked_fill(~mask, float("-inf"))'},
    {MASKED: "scores", ".softmax(dim=-1)": ".softmax(dim=-1).masked_fill(~mask, -1e9)"},
)
attention.mistake(
    """Every number is NaN: 0 * inf is NaN, and a mask that is multiplied by -inf holds 0 * inf
    where a key may be seen. Use masked_fill.""",
    {MASKED: '(scores + (1.0 - mask.float()) * float("-inf"))'},
)
attention.mistake(
    """The weights are divided by their sum over the queries, or over everything. A query's weights
    sum to 1, along the keys.""",
    *(
        {f"{MASKED}.softmax(dim=-1)": f"(lambda w: w / w.sum({axis}){clamp})({weights})"}
        for axis in ("dim=-2, keepdim=True", "")
        for clamp in ("", ".clamp(min=1e-9)")
        for weights in ("scores.softmax(dim=-1) * mask", f"{MASKED}.softmax(dim=-1)")
    ),
)
attention.mistake(
    """The weights are transposed before they meet the values: row i are those of query i, and a
    column those for a key. Where both are equally many no error says so.""",
    {" @ value": ".mT @ value"},
)
attention.mistake(
    """Dropout is left on: weights are set to 0 at random, and the others enlarged to make up for
    it. The task has none, and in evaluation there is none.""",
    *(
        {f"{MASKED}.softmax(dim=-1)": f"F.dropout({MASKED}.softmax(dim=-1), {p})"}
        for p in (0.1, 0.2, 0.5)
    ),
)
attention.mistake(
    """exp is taken of the scores as they are: from 89 on it is inf, and inf / inf is NaN. Subtract
    the largest score of each row first, or use softmax.""",
    *(
        {
            f"{MASKED}.softmax(dim=-1)": f"(lambda p: p / {total})({powers})",
        }
        for total in ("p.sum(dim=-1, keepdim=True)", "(p.sum(dim=-1, keepdim=True) + 1e-9)")
        for powers in (
            f"{MASKED}.exp()",
            "scores.exp() * mask",
            "scores.exp().masked_fill(~mask, 0)",
        )
    ),
)
attention.mistake(
    """The root is taken of another size, of the number of keys, queries or heads, or of all heads
    together. d is the width of a head, query.shape[-1].""",
    {SCALE: "key.shape[-2] ** 0.5"},
    {SCALE: "query.shape[-2] ** 0.5"},
    {SCALE: "query.shape[1] ** 0.5"},
    {SCALE: "(query.shape[1] * query.shape[-1]) ** 0.5"},
)
attention.mistake(
    """The scores are divided by a fixed number, such as 8 = √64 of the paper. d is the width of the
    heads that come in, query.shape[-1].""",
    {SCALE: "8"},
    {SCALE: "512 ** 0.5"},
)
attention.mistake(
    """The weights are divided by √d, or the output, after the softmax: a query's weights no longer
    sum to 1. It is the scores that are divided.""",
    {f" / {SCALE}": "", ".softmax(dim=-1)": f".softmax(dim=-1) / {SCALE}"},
    {".softmax(dim=-1)": f".softmax(dim=-1) / {SCALE}"},
)
attention.mistake(
    "The softmax is taken twice.",
    {".softmax(dim=-1)": ".softmax(dim=-1).softmax(dim=-1)"},
    {MASKED: 'scores.softmax(dim=-1).masked_fill(~mask, float("-inf"))'},
    {MASKED: "(scores.softmax(dim=-1) * mask)"},
)
attention.mistake(
    "Every head has the mask of the first head.",
    {"~mask": "~mask[:, :1]"},
)
attention.mistake(
    "Every sequence, and every head, has the mask of the first.",
    {"~mask": "~mask[0, 0]"},
)
attention.mistake(
    """Masked scores become 0, or a number so small that it is as good as 0. That is a score like
    any other, exp(0) is 1: those keys still get weight.""",
    {'float("-inf")': "0.0"},
    {'float("-inf")': "1e-9"},
    {'float("-inf")': "-1e-9"},
    {'float("-inf")': "torch.finfo(scores.dtype).tiny"},
    {MASKED: "(scores * mask)"},
)
attention.mistake(
    """Masked scores become some negative number, and a real score can be lower. Only -inf gives a
    weight of exactly 0, whatever the scores are.""",
    {'float("-inf")': "-1e9"},
    {'float("-inf")': "-1e4"},
    {'float("-inf")': "-1e12"},
    {'float("-inf")': "-20.0"},
    {MASKED: "(scores + (1.0 - mask.float()) * -1e9)"},
    {MASKED: "(scores + (~mask) * -1e4)"},
    {MASKED: "(scores - 1e9 * ~mask)"},
)
attention.mistake(
    """Masked scores become a small negative number, so masked keys keep a weight that shows:
    exp(-10) is not 0. Only -inf gives exactly 0.""",
    {'float("-inf")': "-10.0"},
    {'float("-inf")': "-5.0"},
    {'float("-inf")': "-1.0"},
)
attention.mistake(
    """Masked scores become +inf, or a large positive number: masked keys win, or NaN comes of
    inf - inf. What is hidden needs a score of -inf.""",
    {'float("-inf")': 'float("inf")'},
    {'float("-inf")': "1e9"},
    {'float("-inf")': "torch.finfo(scores.dtype).max"},
)
attention.mistake(
    "There is no softmax: the scores themselves weigh the values.",
    {f"{MASKED}.softmax(dim=-1)": "scores.masked_fill(~mask, 0.0)"},
    {f"{MASKED}.softmax(dim=-1)": "scores"},
)
attention.mistake(
    """The scores are divided by their sum, without exp: that is no softmax, and where a score is
    negative, so is its weight.""",
    {
        f"{MASKED}.softmax(dim=-1)": "(lambda s: s / s.sum(dim=-1, keepdim=True))"
        "(scores.masked_fill(~mask, 0.0))"
    },
)
attention.mistake(
    """The weights are masked after the softmax and divided by their sum again. On paper that is
    right; but where a masked key has by far the largest score, no weight is left to divide by. Mask
    the scores.""",
    {
        f"{MASKED}.softmax(dim=-1)": "(lambda w: w / w.sum(dim=-1, keepdim=True))"
        "(scores.softmax(dim=-1) * mask)"
    },
    {
        f"{MASKED}.softmax(dim=-1)": "(lambda w: w / w.sum(dim=-1, keepdim=True).clamp(min=1e-9))"
        "(scores.softmax(dim=-1) * mask)"
    },
)
attention.mistake(
    "Keys and values have changed places, or one of them is used for both.",
    {"@ key": "@ value", "@ value": "@ key"},
    {"softmax(dim=-1) @ value": "softmax(dim=-1) @ key"},
    {"query @ key": "query @ value"},
)
attention.mistake(
    "The weights are not multiplied with the values: these are the weights themselves.",
    {" @ value": ""},
)
attention.mistake(
    """The query is added to what attention gives. The residual connection belongs to the layer
    around it, and comes in a later exercise.""",
    {"softmax(dim=-1) @ value": "softmax(dim=-1) @ value + query"},
)
