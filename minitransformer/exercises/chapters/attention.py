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
        "Subtract the largest score of each row first: scores - scores.amax(dim=-1, keepdim=True).",
    ],
    inputs=lambda draw: {
        "one row": (draw.normal(1, 4),),
        "three rows": (draw.normal(3, 5),),
        "another axis in front": (draw.normal(2, 3, 4) * 4,),
    },
    edges=lambda draw: {
        "scores of -inf": (draw.normal(2, 5).masked_fill(torch.arange(5) > 2, float("-inf")),),
        "scores of 1000": (draw.normal(2, 3) + 1000,),
        "scores of -1000": (draw.normal(2, 3) - 1000,),
        "rows far apart": (draw.normal(3, 4) + torch.tensor([[0.0], [300.0], [-300.0]]),),
    },
    forbidden=("softmax", "logsumexp"),
)
def softmax(scores: Tensor) -> Tensor:
    """exp(x) / sum(exp(x)) along the last axis; every row has a finite score.

    scores: (..., n) float, -inf allowed
    returns: (..., n)
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
    it becomes 0 / 0: each row needs its own largest score.""",
    {"scores.amax(dim=-1, keepdim=True)": "scores.max()"},
)
softmax.mistake(
    "The shares of the whole tensor sum to 1. Those of each row should, along the last axis.",
    {SUMS: "powers.sum()"},
)
softmax.mistake(
    "It runs along another axis: the columns sum to 1, and the rows should.",
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
    """The scores are divided by their own sum, without exp: a softmax is positive also where a score
    is negative.""",
    {POWERS: "scores"},
    {POWERS: "scores - scores.amax(dim=-1, keepdim=True)"},
    {POWERS: "scores.abs()"},
)
softmax.mistake(
    "Something is added to what the powers are divided by: the shares no longer sum to 1.",
    {SUMS: f"({SUMS} + 0.1)"},
    {SUMS: f"({SUMS} + 1)"},
    {SUMS: f"({SUMS} + 1e-3)"},
    {SUMS: f"({SUMS} + 1e-2)"},
)
softmax.mistake(
    "A score of -inf is raised to a finite one, so its share is not exactly 0.",
    {"(scores - scores": "(scores.clamp(min=-15) - scores"},
    {"(scores - scores": "(scores.nan_to_num(neginf=-10.0) - scores"},
    {"(scores - scores": "(scores.nan_to_num(neginf=0.0) - scores"},
)
softmax.mistake(
    "The smallest score of each row is subtracted, or the mean: large scores still overflow.",
    {"amax": "amin"},
    {"amax": "mean"},
)
softmax.mistake(
    "This is the logarithm of the shares, not the shares.",
    {f"powers / {SUMS}": f"(powers / {SUMS}).log()"},
)
softmax.mistake(
    "Another base than e: exp(x) is math.e ** x, not 2 ** x or 10 ** x.",
    {".exp()": ".exp2()"},
    {POWERS: "10 ** (scores - scores.amax(dim=-1, keepdim=True))"},
)
softmax.mistake(
    "Each score is taken by itself, as in a sigmoid. In a softmax the scores of a row compete.",
    {f"powers / {SUMS}": "scores.sigmoid()"},
)


@softmax.check(points=1)
def large_scores_do_not_overflow(fn, draw: Draw):
    """Scores of 1000 and -1000 give finite shares."""
    found = fn(torch.tensor([[1000.0, 1000.0, 0.0], [-1000.0, -1000.0, -1001.0]]))
    expect(
        bool(found.isfinite().all()),
        "Scores of 1000, or of -1000, give shares that are no numbers.",
        found=found,
    )
    expect(
        torch.allclose(found[0], torch.tensor([0.5, 0.5, 0.0])),
        "Two scores of 1000 and one of 0 should share as 0.5, 0.5, 0.",
        found=found,
    )


@softmax.check(points=1)
def minus_infinity_gets_exactly_zero(fn, draw: Draw):
    """A score of -inf gets 0.0, not something small."""
    scores = draw.normal(2, 5)
    scores[:, 2:4] = float("-inf")
    found = fn(scores)
    expect(
        bool((found[:, 2:4] == 0).all()) and bool(found.isfinite().all()),
        "A score of -inf does not get a share of exactly 0.",
        found=found,
    )


@softmax.check(points=1)
def each_row_has_its_own_largest(fn, draw: Draw):
    """Rows that lie far apart each sum to 1."""
    sums = fn(draw.normal(3, 4) + torch.tensor([[0.0], [300.0], [-300.0]])).sum(dim=-1)
    expect(
        torch.allclose(sums, torch.ones(3)),
        f"The rows sum to {[round(x, 3) for x in sums.tolist()]}, not 1.",
    )


def attention_arguments(
    draw: Draw, batch: int, heads: int, queries: int, keys: int, mask: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Query, key, value and mask, of heads of width 6."""
    query, key, value = (draw.normal(batch, heads, n, 6) for n in (queries, keys, keys))
    return query, key, value, mask


def attention_inputs(draw: Draw) -> Inputs:
    """Ordinary ones, of sizes that all differ; every query may see a key."""
    everything = torch.ones(1, 1, 2, 3, dtype=torch.bool)
    return {
        "one head and nothing masked": attention_arguments(draw, 1, 1, 2, 3, everything),
        "one head and a mask": attention_arguments(draw, 1, 1, 4, 5, draw.mask(1, 4, 5)),
        "one mask for two sequences": attention_arguments(draw, 2, 3, 4, 5, draw.mask(1, 4, 5)),
        "a mask for each sequence": attention_arguments(draw, 2, 3, 4, 5, draw.mask(2, 4, 5)),
        "a mask for each head": attention_arguments(draw, 2, 3, 5, 4, draw.mask(2, 5, 4, 3)),
        "as many queries as keys": attention_arguments(draw, 3, 2, 4, 4, draw.mask(3, 4, 4)),
    }


def _large_scores(draw: Draw) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """A masked key has the largest score by far."""
    mask = torch.tensor([[True, True, False], [True, False, True]]).expand(1, 1, 2, 3)
    query, key, value, mask = attention_arguments(draw, 1, 1, 2, 3, mask)
    signs = torch.tensor([-1.0, -1.0, 1.0]).view(1, 1, 3, 1)
    return query.abs() * 1e5, key.abs() * signs * 1e5, value, mask


@exercise(
    "Scaled dot-product attention",
    chapter=2,
    about="""softmax(QKᵀ/√d) V over the keys that the mask allows (Vaswani et al. 2017, equation 1).
        Here every query may see at least one key; the next exercise takes the others.""",
    hints=[
        "Scores are query @ key transposed, divided by the root of the width of a head.",
        "Forbidden scores become -inf before the softmax: masked_fill wants True where it fills.",
        "scores.masked_fill(~mask, float('-inf')).softmax(dim=-1) @ value",
    ],
    inputs=attention_inputs,
    edges=lambda draw: {"a masked key of the largest score": _large_scores(draw)},
    gradients=True,
    subject=lambda fn: AttentionSubject(fn, dead_rows="any"),
    promises={
        "forbidden_keys_get_exactly_zero": 1,
        "weights_sum_to_one": 1,
        "what_padding_holds_is_irrelevant": 1,
        "the_future_is_invisible": 1,
        "gradients_are_right": 1,
    },
)
def attention(query: Tensor, key: Tensor, value: Tensor, mask: Tensor) -> Tensor:
    """Let every query collect the values of the keys that it may see.

    query: (batch, heads, queries, width); key and value: (batch, heads, keys, width)
    mask: (batch or 1, heads or 1, queries, keys) bool, True = may attend
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
    """The root is taken of another size, of the number of keys, queries or heads. d is the width
    of a head, query.shape[-1].""",
    {SCALE: "key.shape[-2] ** 0.5"},
    {SCALE: "query.shape[-2] ** 0.5"},
    {SCALE: "query.shape[1] ** 0.5"},
    {SCALE: "(query.shape[1] * query.shape[-1]) ** 0.5"},
)
attention.mistake(
    "The scores are multiplied by the root of d. They should be divided by it.",
    {f"/ {SCALE}": f"* {SCALE}"},
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
    "Masked scores become 0, a score like any other: those keys still get weight.",
    {'float("-inf")': "0.0"},
    {MASKED: "(scores * mask)"},
)
attention.mistake(
    """Masked scores become a large negative number, and a score can be lower. Only -inf gives a
    weight of exactly 0 whatever the scores are.""",
    {'float("-inf")': "-1e9"},
    {'float("-inf")': "-1e4"},
    {'float("-inf")': "-1e10"},
    {'float("-inf")': "-1e6"},
    {'float("-inf")': "-1e5"},
    {'float("-inf")': "torch.finfo(scores.dtype).min"},
    {MASKED: "(scores + (1.0 - mask.float()) * -1e9)"},
    {MASKED: "(scores + (1.0 - mask.float()) * -1e4)"},
    {MASKED: "(scores + (1.0 - mask.float()) * torch.finfo(scores.dtype).min)"},
)
attention.mistake(
    """Masked scores become a small negative number, so masked keys keep a weight that shows:
    exp(-10) is not 0.""",
    {'float("-inf")': "-10.0"},
    {'float("-inf")': "-1.0"},
    {'float("-inf")': "-20.0"},
)
attention.mistake(
    """Masked scores become the smallest positive number, or +inf: the masked keys win. What is
    hidden needs a score of -inf.""",
    {'float("-inf")': 'float("inf")'},
    {'float("-inf")': "1e-9"},
    {'float("-inf")': "1e9"},
    {'float("-inf")': "torch.finfo(scores.dtype).max"},
    {'float("-inf")': "torch.finfo(scores.dtype).tiny"},
)
attention.mistake(
    "There is no softmax: the scores themselves weigh the values.",
    {f"{MASKED}.softmax(dim=-1)": "scores.masked_fill(~mask, 0.0)"},
    {f"{MASKED}.softmax(dim=-1)": "scores"},
)
attention.mistake(
    "Keys and values have changed places, or the keys are used for both.",
    {"@ key": "@ value", "@ value": "@ key"},
    {"softmax(dim=-1) @ value": "softmax(dim=-1) @ key"},
    {"query @ key": "query @ value"},
)
attention.mistake(
    "The weights are not multiplied with the values: these are the weights themselves.",
    {" @ value": ""},
)


@attention.check(points=1, measures="largest weight on a forbidden key")
def huge_scores_do_not_leak(fn, draw: Draw):
    """A forbidden key gets 0 however large its score is."""
    query, key = torch.ones(1, 1, 2, 4) * 1e5, torch.ones(1, 1, 3, 4) * -1e5
    key[:, :, 2] = 1e5  # the largest score is the forbidden one
    mask = torch.tensor([[True, True, False]]).expand(1, 1, 2, 3)
    value = torch.tensor([0.0, 0.0, 1.0]).view(1, 1, 3, 1).expand(1, 1, 3, 4).clone()
    leak = float(fn(query, key, value, mask).abs().max())
    expect(
        leak == 0.0,
        f"A forbidden key with a huge score gets the weight {leak:g}.",
        leak,
    )
    return leak


def _not_a_number(draw: Draw) -> Inputs:
    """Queries that see nothing, keys that no query sees, and NaN or Inf in both."""
    mask = torch.tensor([[1, 1, 0, 0], [1, 0, 0, 0], [0, 0, 0, 0]]).bool().expand(2, 1, 3, 4)
    unseen = torch.tensor([False, False, True, True]).view(1, 1, 4, 1)
    blind = torch.tensor([False, False, True]).view(1, 1, 3, 1)
    query, key, value, _ = attention_arguments(draw, 2, 2, 3, 4, mask)
    nan, inf = float("nan"), float("inf")
    return {
        "a query that sees nothing": (query, key, value, mask),
        "NaN in a value that no query sees": (query, key, value.masked_fill(unseen, nan), mask),
        "NaN in a key that no query sees": (query, key.masked_fill(unseen, nan), value, mask),
        "NaN in a query that sees nothing": (query.masked_fill(blind, nan), key, value, mask),
        "Inf in a value that no query sees": (query, key, value.masked_fill(unseen, inf), mask),
        "large scores": (query * 1e3, key * 1e3, value, mask),
        "a masked key of the largest score": _large_scores(draw),
    }


@exercise(
    "Attention that bears dead queries and NaN",
    chapter=2,
    about="""A query that may see nothing is dead: softmax of nothing but -inf is 0 / 0. And NaN in
        a padded value survives a weight of 0, because 0 * NaN is NaN. Keep both out, forward and
        backward.""",
    hints=[
        "Find the dead queries first: mask.any(dim=-1). Do not repair NaN afterwards: prevent it.",
        "Give dead queries finite scores, and set their weights to 0 after the softmax. Keys that "
        "no query sees can be set to 0 before any product.",
        "scores.masked_fill(~mask & alive, -inf).softmax(-1).masked_fill(~alive, 0.0); before it "
        "query.masked_fill(~alive, 0.0), and key and value.masked_fill(~used, 0.0) with used = "
        "mask.any(dim=-2) as (..., keys, 1).",
    ],
    inputs=attention_inputs,
    edges=_not_a_number,
    gradients=True,
    subject=AttentionSubject,
    promises={
        "a_query_that_sees_nothing_gets_no_nan": 1,
        "a_query_that_sees_nothing_gets_zeros": 1,
        "gradients_are_finite_where_queries_see_nothing": 1,
        "nan_in_padded_values_reaches_nothing": 1,
        "nan_in_padded_keys_reaches_nothing": 1,
        "nan_in_padding_reaches_no_gradient": 1,
    },
)
def nan_safe_attention(query: Tensor, key: Tensor, value: Tensor, mask: Tensor) -> Tensor:
    """Attention in which what the mask never uses reaches nothing, NaN and Inf included.

    A query that may see no key gets zeros, with finite gradients.

    query: (batch, heads, queries, width); key and value: (batch, heads, keys, width)
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


DEAD = 'scores.masked_fill(~mask & alive, float("-inf"))'
QUERY = "    query = query.masked_fill(~alive, 0.0)\n"
KEY_AND_VALUE = "key, value = key.masked_fill(unused, 0.0), value.masked_fill(unused, 0.0)"
WEIGHTS = "scores.softmax(dim=-1).masked_fill(~alive, 0.0)"
nan_safe_attention.mistake(
    """NaN in a value that no query sees reaches the output: its weight is 0, and 0 * NaN is NaN. Set
    such values to 0 before the product.""",
    {", value.masked_fill(unused, 0.0)": ", value"},
)
nan_safe_attention.mistake(
    """NaN in a key that no query sees comes back in the gradient of the queries: on the way back its
    gradient of 0 is multiplied with NaN. Set such keys to 0 before the product.""",
    {"key.masked_fill(unused, 0.0), value": "key, value"},
)
nan_safe_attention.mistake(
    """NaN in keys and values that no query sees reaches the output or a gradient: a weight of 0 does
    not help, since 0 * NaN is NaN. Set both to 0 before any product.""",
    {KEY_AND_VALUE: "pass"},
)
nan_safe_attention.mistake(
    """NaN in a query that sees nothing comes back in the gradient of the keys: a padded query is a
    factor too. Set it to 0 before the product.""",
    {QUERY: ""},
)
nan_safe_attention.mistake(
    """A query that sees nothing gets a mean of values, not zeros: its scores are finite for the
    softmax, but its weights are not set to 0 after it.""",
    {WEIGHTS: "scores.softmax(dim=-1)"},
)
nan_safe_attention.mistake(
    """A query that sees nothing gives NaN: softmax of nothing but -inf is 0 / 0.""",
    {" & alive": "", WEIGHTS: "scores.softmax(dim=-1)"},
)
nan_safe_attention.mistake(
    """NaN is replaced in the output, after it has come up: on the way back it is still there, and
    NaN that real tokens hold is hidden. Keep it from coming up.""",
    {f"{WEIGHTS} @ value": "(scores.softmax(dim=-1) @ value).nan_to_num()", " & alive": ""},
    {f"{WEIGHTS} @ value": f"({WEIGHTS} @ value).nan_to_num()", KEY_AND_VALUE: "pass", QUERY: ""},
    {
        f"{WEIGHTS} @ value": "(scores.softmax(dim=-1) @ value).nan_to_num()",
        " & alive": "",
        KEY_AND_VALUE: "pass",
        QUERY: "",
    },
)
nan_safe_attention.mistake(
    """NaN in the weights is replaced after the softmax, and nothing else is done: NaN in keys and
    values that no query sees still reaches the output or a gradient.""",
    {
        WEIGHTS: "scores.softmax(dim=-1).nan_to_num()",
        " & alive": "",
        KEY_AND_VALUE: "pass",
        QUERY: "",
    },
    {WEIGHTS: "scores.softmax(dim=-1).nan_to_num()", " & alive": "", QUERY: ""},
)
nan_safe_attention.mistake(
    """The scores are filled with a large negative number. A query that sees nothing then attends to
    everything alike, and its weights are set to 0 only if you do so.""",
    {DEAD: "scores.masked_fill(~mask, -1e9)", WEIGHTS: "scores.softmax(dim=-1)"},
    {
        DEAD: "scores.masked_fill(~mask, torch.finfo(scores.dtype).min)",
        WEIGHTS: "scores.softmax(dim=-1)",
    },
)
nan_safe_attention.mistake(
    """The scores are filled with a large negative number: where a real score is lower still, a
    masked key gets weight. Only -inf gives exactly 0.""",
    {'float("-inf")': "-1e9"},
    {'float("-inf")': "torch.finfo(scores.dtype).min"},
    {DEAD: "scores.masked_fill(~mask, -1e9)"},
    {DEAD: "scores.masked_fill(~mask, torch.finfo(scores.dtype).min)"},
    {
        DEAD: "scores.masked_fill(~mask, torch.finfo(scores.dtype).min)",
        WEIGHTS: "(scores.softmax(dim=-1) * mask)",
    },
    {DEAD: "scores.masked_fill(~mask, -1e9)", WEIGHTS: "(scores.softmax(dim=-1) * mask)"},
)
nan_safe_attention.mistake(
    """exp is taken of the scores as they are: a large one overflows, and inf / inf is NaN. Subtract
    the largest score of each row first.""",
    {
        WEIGHTS: "(lambda p: p / p.sum(-1, keepdim=True))"
        "(scores.exp().masked_fill(~mask, 0.0)).masked_fill(~alive, 0.0)"
    },
    {
        WEIGHTS: "(lambda p: p / p.sum(-1, keepdim=True).masked_fill(~alive, 1.0))"
        "(scores.exp().masked_fill(~mask, 0.0))"
    },
    {
        WEIGHTS: "(lambda p: p / p.sum(-1, keepdim=True).clamp(min=1e-9))"
        "(scores.exp().masked_fill(~mask, 0.0))"
    },
    {
        WEIGHTS: "(lambda p: p / (p.sum(-1, keepdim=True) + 1e-9))"
        "(scores.exp().masked_fill(~mask, 0.0))"
    },
)


@nan_safe_attention.check(points=1)
def nan_in_a_padded_query_reaches_no_gradient(fn, draw: Draw):
    """NaN in a query that sees nothing leaves the gradients of keys and values alone."""
    query, key, value, mask = _not_a_number(draw)["NaN in a query that sees nothing"]
    key, value = key.requires_grad_(), value.requires_grad_()
    fn(query, key, value, mask).nan_to_num().sum().backward()
    for name, x in (("keys", key), ("values", value)):
        expect(
            x.grad is not None and bool(x.grad.isfinite().all()),
            f"With NaN in a query that sees nothing, the gradient of the {name} is NaN.",
        )
