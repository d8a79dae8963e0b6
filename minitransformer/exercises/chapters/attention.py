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
        "three rows": (draw.normal(3, 5),),
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


@exercise(
    "Scaled dot-product attention",
    chapter=2,
    about="""softmax(QKᵀ/√d) V over the keys that the mask allows (Vaswani et al. 2017, equation 1),
        where d is the width of a head. Here every query may see at least one key; queries that may
        see none are the next exercise.""",
    hints=[
        "Scores are query @ key transposed, divided by the root of the width of a head.",
        "Masked scores become -inf before the softmax: masked_fill wants True where it fills.",
        "scores = query @ key.transpose(-2, -1) / query.shape[-1] ** 0.5, then "
        "scores.masked_fill(~mask, float('-inf')).softmax(dim=-1) @ value",
    ],
    inputs=attention_inputs,
    edges=lambda draw: {"a masked key of the largest score": largest_is_masked(draw)},
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

    A masked key has a weight of exactly 0, however large its score is.

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
# Besides those of the museum, whose attention functions are tried too.
attention.mistake(
    """The mask is used upside down: what it allows is hidden. masked_fill fills where its mask is
    True, and in this mask True means "may attend".""",
    {"masked_fill(~mask": "masked_fill(mask"},
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
    "The scores are multiplied by the root of d. They should be divided by it.",
    {f"/ {SCALE}": f"* {SCALE}"},
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
)
attention.mistake(
    "Every head has the mask of the first head.",
    {"~mask": "~mask[:, :1]"},
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


def _nothing_to_see(draw: Draw) -> Inputs:
    """Queries that may see no key, keys that no query may see, and NaN or Inf in both."""
    mask = torch.tensor(
        [
            [
                [[1, 1, 0, 0], [1, 0, 0, 0], [0, 0, 0, 0]],
                [[1, 1, 0, 0], [0, 1, 0, 0], [1, 1, 0, 0]],
            ],
            [
                [[0, 0, 0, 0], [0, 0, 1, 1], [0, 0, 0, 1]],
                [[0, 1, 1, 1], [0, 0, 0, 0], [0, 0, 1, 0]],
            ],
        ]
    ).bool()
    dead = ~mask.any(dim=-1).unsqueeze(-1)
    unused = ~mask.any(dim=-2).unsqueeze(-1)
    query, key, value, _ = attention_arguments(draw, 2, 2, 3, 4, mask)
    nan, inf = float("nan"), float("inf")
    return {
        "a query that may see no key": (query, key, value, mask),
        "NaN in a value that no query may see": (query, key, value.masked_fill(unused, nan), mask),
        "NaN in a key that no query may see": (query, key.masked_fill(unused, nan), value, mask),
        "NaN in a query that may see no key": (query.masked_fill(dead, nan), key, value, mask),
        "Inf in keys and values that no query may see": (
            query,
            key.masked_fill(unused, inf),
            value.masked_fill(unused, inf),
            mask,
        ),
        "large scores": (query * 1e3, key * 1e3, value, mask),
        "a masked key of the largest score": largest_is_masked(draw),
    }


@exercise(
    "Attention that handles fully masked queries and NaN",
    chapter=2,
    about="""A query may have no key to see, as in a row of padding: softmax of nothing but -inf is
        0 / 0. And NaN in a padded value survives a weight of 0, because 0 * NaN is NaN. Keep both
        out, in the forward and in the backward pass.""",
    hints=[
        "Find the queries that may see no key first: mask.any(dim=-1, keepdim=True) is False. "
        "Do not replace NaN in the output: keep it from arising.",
        "Give such queries finite scores, and set their weights to 0 after the softmax. Set them, "
        "and keys and values that no query may see, to 0 before any product.",
        "query.masked_fill(~alive, 0.0) with alive = mask.any(dim=-1, keepdim=True); key and "
        "value.masked_fill(~used, 0.0) with used = mask.any(dim=-2).unsqueeze(-1); then "
        "scores.masked_fill(~mask & alive, -inf).softmax(-1).masked_fill(~alive, 0.0) @ value.",
    ],
    inputs=attention_inputs,
    edges=_nothing_to_see,
    gradients=True,
    subject=AttentionSubject,
)
def nan_safe_attention(query: Tensor, key: Tensor, value: Tensor, mask: Tensor) -> Tensor:
    """Attention that nothing unused can harm, whatever it holds, NaN and Inf included.

    A query that may see no key gets zeros. It is unused; and so is a key, with its value, that no
    query of its head may see. What unused ones hold changes neither the output nor any gradient;
    their own gradients are 0, and all others finite. (A key that one query may see and another may
    not is used: it holds no NaN here.) Scores may be as large as in the exercise before.

    query: (batch, heads, queries, width) float; key and value: (batch, heads, keys, width)
    mask: (batch or 1, heads or 1, queries, keys) bool, True = may attend
    returns: (batch, heads, queries, width)
    """
    ### BEGIN SOLUTION
    alive = mask.any(dim=-1, keepdim=True)
    unused = ~mask.any(dim=-2).unsqueeze(-1)
    query = query.masked_fill(~alive, 0.0)
    key, value = key.masked_fill(unused, 0.0), value.masked_fill(unused, 0.0)
    scores = query @ key.transpose(-2, -1) / query.shape[-1] ** 0.5
    scores = scores.masked_fill(~mask & alive, float("-inf"))
    return scores.softmax(dim=-1).masked_fill(~alive, 0.0) @ value
    ### END SOLUTION


FILLED = 'scores.masked_fill(~mask & alive, float("-inf"))'
QUERY = "    query = query.masked_fill(~alive, 0.0)\n"
KEY_AND_VALUE = "key, value = key.masked_fill(unused, 0.0), value.masked_fill(unused, 0.0)"
WEIGHTS = "scores.softmax(dim=-1).masked_fill(~alive, 0.0)"
POWERS_OF_ALL = "scores.exp().masked_fill(~mask, 0.0)"
nan_safe_attention.mistake(
    """NaN in a value that no query may see reaches the output: its weight is 0, and 0 * NaN is NaN.
    Set such values to 0 before the product.""",
    {", value.masked_fill(unused, 0.0)": ", value"},
    {", value.masked_fill(unused, 0.0)": ", value * ~unused"},
)
nan_safe_attention.mistake(
    """NaN in a key that no query may see comes back in the gradient of the queries: in the backward
    pass the key is multiplied by 0, and 0 * NaN is NaN. Set such keys to 0 before the product.""",
    {"key.masked_fill(unused, 0.0), value": "key, value"},
)
nan_safe_attention.mistake(
    """NaN in keys and values that no query may see reaches the output or a gradient: a factor of 0
    does not help, be it a weight or the mask, since 0 * NaN is NaN. Set both to 0 with masked_fill
    before any product.""",
    {KEY_AND_VALUE: "pass"},
    {KEY_AND_VALUE: "key, value = key * ~unused, value * ~unused"},
)
nan_safe_attention.mistake(
    """nan_to_num is taken of all keys and values. It makes 0 of NaN, but of Inf the largest number
    there is, which overflows in the next product. Set what no query may see to 0, whatever it is.
    """,
    {KEY_AND_VALUE: "key, value = key.nan_to_num(), value.nan_to_num()"},
    {
        KEY_AND_VALUE: "key, value = key.nan_to_num(), value.nan_to_num()",
        QUERY: "    query = query.nan_to_num()\n",
    },
)
nan_safe_attention.mistake(
    """NaN in a query that may see no key comes back in the gradient of the keys: the backward pass
    multiplies by the query, too. Set it to 0 before the product.""",
    {QUERY: ""},
    {QUERY: "    query = query * alive\n"},
)
nan_safe_attention.mistake(
    """A query that may see no key gets a mean of values, not zeros: its scores are finite for the
    softmax, but its weights are not set to 0 after it.""",
    {WEIGHTS: "scores.softmax(dim=-1)"},
    {
        FILLED: FILLED.replace('float("-inf")', "torch.finfo(scores.dtype).min"),
        WEIGHTS: "scores.softmax(dim=-1)",
    },
)
nan_safe_attention.mistake(
    """A query that may see no key gives NaN: softmax of nothing but -inf is 0 / 0.""",
    {" & alive": "", WEIGHTS: "scores.softmax(dim=-1)"},
)
nan_safe_attention.mistake(
    """NaN is replaced in the output, where it has arisen already: in the backward pass it is still
    there, and reaches the gradients. Keep it from arising.""",
    {f"{WEIGHTS} @ value": "(scores.softmax(dim=-1) @ value).nan_to_num()", " & alive": ""},
    {
        f"{WEIGHTS} @ value": "(scores.softmax(dim=-1) @ value).masked_fill(~alive, 0.0)",
        " & alive": "",
    },
    {f"{WEIGHTS} @ value": f"({WEIGHTS} @ value).nan_to_num()", KEY_AND_VALUE: "pass", QUERY: ""},
    {f"{WEIGHTS} @ value": f"({WEIGHTS} @ value).nan_to_num()", KEY_AND_VALUE: "pass"},
    {
        f"{WEIGHTS} @ value": "(scores.softmax(dim=-1) @ value).nan_to_num()",
        " & alive": "",
        KEY_AND_VALUE: "pass",
        QUERY: "",
    },
)
nan_safe_attention.mistake(
    """Zeros for queries that may see no key are there, but NaN in an unused query, key or value
    still reaches the output or a gradient. Set all three to 0 before any product.""",
    {KEY_AND_VALUE: "pass", QUERY: ""},
    {
        WEIGHTS: "scores.softmax(dim=-1).nan_to_num()",
        " & alive": "",
        KEY_AND_VALUE: "pass",
        QUERY: "",
    },
)
nan_safe_attention.mistake(
    """Masked scores become a number like -1e9: a query that may see no key then attends to all of
    them alike, and where a real score is lower still, a masked key gets weight. Fill with -inf, and
    set the weights of such queries to 0.""",
    {FILLED: "scores.masked_fill(~mask, -1e9)", WEIGHTS: "scores.softmax(dim=-1)"},
    {FILLED: "scores.masked_fill(~mask, -1e4)", WEIGHTS: "scores.softmax(dim=-1)"},
)
nan_safe_attention.mistake(
    """Masked scores become a number like -1e9: where a real score is lower still, a masked key
    takes the weight. Only -inf gives exactly 0.""",
    {'float("-inf")': "-1e9"},
    {FILLED: "scores.masked_fill(~mask, -1e9)"},
    {FILLED: "scores.masked_fill(~mask, -1e9)", WEIGHTS: "(scores.softmax(dim=-1) * mask)"},
    {FILLED: "scores.masked_fill(~mask, -1e4)"},
)
nan_safe_attention.mistake(
    """exp is taken of the scores as they are: a large one overflows, and inf / inf is NaN. Subtract
    the largest score of each row first.""",
    {WEIGHTS: f"(lambda p: p / p.sum(-1, keepdim=True))({POWERS_OF_ALL}).masked_fill(~alive, 0.0)"},
    {WEIGHTS: f"(lambda p: p / p.sum(-1, keepdim=True).masked_fill(~alive, 1.0))({POWERS_OF_ALL})"},
    {WEIGHTS: f"(lambda p: p / p.sum(-1, keepdim=True).clamp(min=1e-9))({POWERS_OF_ALL})"},
    {WEIGHTS: f"(lambda p: p / (p.sum(-1, keepdim=True) + 1e-9))({POWERS_OF_ALL})"},
)
nan_safe_attention.mistake(
    """Whether there is a key to see is asked of all queries of a head at once. Some may see one and
    others none: ask each, with mask.any(dim=-1, keepdim=True).""",
    {"alive = mask.any(dim=-1, keepdim=True)": "alive = mask.any(dim=(-1, -2), keepdim=True)"},
    {
        "alive = mask.any(dim=-1, keepdim=True)": "alive = mask.any(dim=-1, keepdim=True)"
        ".all(dim=-2, keepdim=True)"
    },
)
