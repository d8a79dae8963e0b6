"""Chapter 5: looking only back."""

import torch
from torch import Tensor

from minitransformer.checks import LabelsSubject, MaskSubject
from minitransformer.exercises.chapters.padding import attention_masks
from minitransformer.exercises.exercise import Draw, Inputs, exercise


@exercise(
    "A causal mask",
    chapter=5,
    about="""Every token sees itself and what came before. With a cache there are fewer queries than
        keys: the queries are then the last tokens, and the last query is the last key.""",
    hints=[
        "A lower triangle of True. Where does it start if there are more keys than queries?",
        "Query i of the last few is key i + (num_keys - num_queries).",
        "torch.ones(1, 1, num_queries, num_keys, dtype=torch.bool).tril(num_keys - num_queries)",
    ],
    inputs=lambda draw: {
        "one query and one key": (1, 1),
        "three queries and three keys": (3, 3),
        "two queries and three keys": (2, 3),
        "one query and four keys": (1, 4),
        "two queries and five keys": (2, 5),
        "more of both": ((queries := draw.integer(4, 6)), queries + draw.integer(2, 4)),
    },
    edges=lambda draw: {"no queries": (0, 3)},
)
def causal_mask(num_queries: int, num_keys: int) -> Tensor:
    """True where the query (down) may see the key (across): itself and every key before it.

    The queries are the last num_queries of num_keys tokens: query i is key
    i + num_keys - num_queries. num_queries is at most num_keys, and may be 0.

    returns: (1, 1, num_queries, num_keys) bool, True = may attend
    """
    ### BEGIN SOLUTION
    ones = torch.ones(1, 1, num_queries, num_keys, dtype=torch.bool)
    return ones.tril(num_keys - num_queries)
    ### END SOLUTION


TRIANGLE = "ones.tril(num_keys - num_queries)"
causal_mask.mistake(
    """The triangle starts at the first key. With fewer queries than keys the queries are the last
    tokens, and the last one sees every key: tril(num_keys - num_queries).""",
    {TRIANGLE: "ones.tril()"},
)
causal_mask.mistake(
    """The mask is upside down: True where it hides, as in torch.nn.Transformer. Here True means
    "may attend".""",
    {TRIANGLE: f"~({TRIANGLE})"},
    {TRIANGLE: "~ones.tril()"},
    {TRIANGLE: "ones.triu(1)"},
)
causal_mask.mistake(
    """Every token sees itself and what comes after it: this is the upper triangle, triu. The lower
    one, tril, looks back.""",
    {".tril": ".triu"},
    {TRIANGLE: "ones.triu()"},
)
causal_mask.mistake(
    """A token does not see itself: the triangle ends before the diagonal. Then the first one sees
    nothing at all.""",
    {"num_queries)\n": "num_queries - 1)\n"},
    {TRIANGLE: "ones.tril(-1)"},
)
causal_mask.mistake(
    """A token sees the one after it: the triangle ends one key too late. In training that is the
    answer.""",
    {"num_queries)\n": "num_queries + 1)\n"},
    {TRIANGLE: "ones.tril(1)"},
)
causal_mask.mistake(
    """The difference is taken the wrong way round: with fewer queries than keys the triangle starts
    later, num_keys - num_queries keys to the right.""",
    {"num_keys - num_queries": "num_queries - num_keys"},
)
causal_mask.mistake(
    """The triangle starts one key to the right, whatever the sizes are or as soon as they differ.
    It starts num_keys - num_queries keys to the right: one for each token before the queries.""",
    {"num_keys - num_queries": "int(num_keys > num_queries)"},
)
causal_mask.mistake(
    """The triangle starts at another key than the first query: that is key
    num_keys - num_queries.""",
    {"(num_keys - num_queries)": "(num_queries)"},
)
causal_mask.mistake(
    """The keys before the queries are visible, but the triangle of the queries themselves is
    missing, or lies on the first keys. It belongs on the last num_queries columns.""",
    {TRIANGLE: "ones.tril() | (torch.arange(num_keys) < num_keys - num_queries)"},
    {TRIANGLE: "ones & (torch.arange(num_keys) < num_keys - num_queries)"},
)
causal_mask.mistake(
    """Nothing is hidden: every query sees every key, its future too.""",
    {TRIANGLE: "ones"},
    {"(num_keys - num_queries)": "(num_keys - 1)"},
    {"(num_keys - num_queries)": "(num_keys)"},
)
causal_mask.mistake(
    "A query sees one key only, itself. It may see those before it too.",
    {TRIANGLE: f"{TRIANGLE}.triu(num_keys - num_queries)"},
    {TRIANGLE: "ones.tril().triu()"},
)
causal_mask.mistake(
    """The two axes of 1 are missing, or one of them: (1, 1, num_queries, num_keys) serves every
    sequence and every head.""",
    {TRIANGLE: f"({TRIANGLE})[0, 0]"},
    {TRIANGLE: f"({TRIANGLE})[0]"},
    {TRIANGLE: "ones.tril()[0, 0]"},
)
causal_mask.mistake(
    """The mask has as many rows as columns. There is a row for each query and a column for each
    key.""",
    {"num_queries, num_keys, dtype": "num_keys, num_keys, dtype", TRIANGLE: "ones.tril()"},
    {"num_queries, num_keys, dtype": "num_queries, num_queries, dtype", TRIANGLE: "ones.tril()"},
)
causal_mask.mistake(
    "Rows and columns have changed places: a row is for a query, a column for a key.",
    {TRIANGLE: f"({TRIANGLE}).transpose(-2, -1)"},
    {"num_queries, num_keys, dtype": "num_keys, num_queries, dtype", TRIANGLE: "ones.tril()"},
)
causal_mask.mistake(
    """These are numbers, not True and False: ~ and masked_fill do something else with them.
    Write dtype=torch.bool, or end with .bool().""",
    {", dtype=torch.bool": ""},
    {TRIANGLE: f"({TRIANGLE}).long()"},
    {TRIANGLE: f"({TRIANGLE}).int()"},
)
causal_mask.mistake(
    """This is what is added to the scores, 0 and a large negative number. A mask of True and False
    is wanted.""",
    {TRIANGLE: f"torch.where({TRIANGLE}, 0.0, float('-inf'))"},
    {TRIANGLE: f"torch.where({TRIANGLE}, 0.0, -1e9)"},
    {TRIANGLE: "torch.where(ones.tril(), 0.0, float('-inf'))"},
)
causal_mask.mistake(
    """With fewer queries than keys nothing is hidden. That is right for one query; of several, each
    sees those behind it.""",
    {TRIANGLE: "ones.tril() if num_queries == num_keys else ones"},
)
causal_mask.mistake(
    """One query is treated right. Of several the triangle starts at the first key, as if no token
    stood before them: tril(num_keys - num_queries).""",
    {TRIANGLE: "ones if num_queries == 1 else ones.tril()"},
)
causal_mask.mistake(
    "This is a window: a query sees only the last few keys up to itself. It may see all of them.",
    {TRIANGLE: f"({TRIANGLE}).triu(num_keys - 2 * num_queries + 1)"},
    {TRIANGLE: f"({TRIANGLE}).triu(num_keys - num_queries - 1)"},
    {TRIANGLE: f"({TRIANGLE}).triu(num_keys - num_queries - 2)"},
)


@exercise(
    "A decoder's mask",
    chapter=5,
    about="""Padding and causality in one value: the mask that a language model passes to every
        layer.""",
    hints=[
        "You have both masks already. Which operation says: allowed by this one and by that one?",
        "A padding mask (batch, 1, length, length), False in the rows and in the columns of "
        "padding, and a triangle (1, 1, length, length).",
        "padding & causal: broadcasting makes one mask for every row of the batch.",
    ],
    inputs=attention_masks,
    edges=lambda draw: {
        "a sequence of padding alone": (torch.tensor([[1, 1, 0], [0, 0, 0]]),),
        "padding on the right and on the left": (torch.tensor([[1, 1, 0, 0], [0, 1, 1, 1]]),),
        "padding between tokens": (torch.tensor([[1, 0, 1, 0], [1, 1, 0, 1]]),),
    },
    subject=lambda fn: MaskSubject(fn, causal=True, dead_queries="nothing"),
)
def combine_masks(attention_mask: Tensor) -> Tensor:
    """True where the query (down) may see the key (across).

    Both must be real, and the key is the query itself or stands before it. So the row of a padded
    query is all False, and so is the column of a padded key.

    attention_mask: (batch, length) int64, 1 = real token, 0 = padding, which may stand anywhere
    returns: (batch, 1, length, length) bool, True = may attend
    """
    ### BEGIN SOLUTION
    length = attention_mask.shape[1]
    real = attention_mask != 0
    padding = real[:, None, :, None] & real[:, None, None, :]
    return padding & torch.ones(length, length, dtype=torch.bool).tril()
    ### END SOLUTION


CAUSAL = "torch.ones(length, length, dtype=torch.bool).tril()"
COMBINED = f"padding & {CAUSAL}"
combine_masks.mistake(
    "The future is not hidden: this is the padding mask alone. Combine it with a triangle.",
    {COMBINED: "padding"},
)
combine_masks.mistake(
    """Padded keys are hidden, and nothing else: tokens see their future, and the rows of padded
    queries are not all False.""",
    {COMBINED: "real[:, None, None, :].expand(-1, 1, length, -1)"},
    {COMBINED: "real[:, None, None, :]"},
)
combine_masks.mistake(
    """A padded query sees itself: the whole diagonal is allowed. Some code does so to leave no row
    empty; here the row of a padded query is all False.""",
    {COMBINED: f"({COMBINED}) | torch.eye(length, dtype=torch.bool)"},
)
combine_masks.mistake(
    """Padding is not hidden: this is the causal mask alone. Real tokens collect what padding on the
    left holds.""",
    {COMBINED: f"{CAUSAL}.expand_as(padding)"},
    {COMBINED: f"{CAUSAL}[None, None]"},
)
combine_masks.mistake(
    """Only padded keys are hidden: the rows of padded queries are not all False. Hide the queries
    too, with real[:, None, :, None].""",
    {"real[:, None, :, None] & ": ""},
)
combine_masks.mistake(
    """Only padded queries are hidden: a real query still sees padded keys before it. Hide the keys
    too, with real[:, None, None, :].""",
    {" & real[:, None, None, :]": ""},
)
combine_masks.mistake(
    """One of the two masks is enough here to allow a pair. Both must allow it: &, not |.""",
    {"padding & torch": "padding | torch"},
    {"padding & torch": "real[:, None, None, :] | torch"},
)
combine_masks.mistake(
    """A pair is allowed as soon as one of the two is real. Both must be.""",
    {"None] & real": "None] | real"},
)
combine_masks.mistake(
    """Every token sees itself and what comes after it: this is the upper triangle, triu. The lower
    one, tril, looks back.""",
    {".tril()": ".triu()"},
)
combine_masks.mistake(
    """A token does not see itself: the triangle ends before the diagonal.""",
    {".tril()": ".tril(-1)"},
)
combine_masks.mistake(
    "A token sees the one after it: the triangle ends one key too late.",
    {".tril()": ".tril(1)"},
)
combine_masks.mistake(
    """The triangle is upside down: what is allowed is the future, without the token itself. triu(1)
    is what a causal mask hides, not what it shows.""",
    {CAUSAL: f"~{CAUSAL}"},
    {".tril()": ".triu(1)"},
)
combine_masks.mistake(
    """The mask is upside down: True where it hides. Here True means "may attend".""",
    {COMBINED: f"~({COMBINED})"},
)
combine_masks.mistake(
    """Padding is taken for real, and real tokens for padding: 1 in attention_mask is a real token.
    """,
    {"attention_mask != 0": "attention_mask == 0"},
)
combine_masks.mistake(
    "Every sequence has the mask of the first one.",
    {"attention_mask != 0": "attention_mask[:1].expand_as(attention_mask) != 0"},
    {"real[:, None, None, :]": "real[:1, None, None, :]"},
    {"real[:, None, :, None]": "real[:1, None, :, None]"},
)
combine_masks.mistake(
    """The axis for the heads is missing, or stands elsewhere: (batch, 1, length, length) is
    wanted.""",
    {COMBINED: f"({COMBINED})[:, 0]"},
    {COMBINED: f"({COMBINED})[:, 0][None]"},
)
combine_masks.mistake(
    """These are numbers, not True and False: ~ and masked_fill do something else with them.
    Combine booleans with &, or end with .bool().""",
    {COMBINED: f"({COMBINED}).long()"},
    {COMBINED: f"({COMBINED}).int()"},
    {COMBINED: f"({COMBINED}).float()"},
)
combine_masks.mistake(
    """This is what is added to the scores, 0 and a large negative number. A mask of True and False
    is wanted.""",
    {COMBINED: f"torch.where({COMBINED}, 0.0, float('-inf'))"},
    {COMBINED: f"torch.where({COMBINED}, 0.0, -1e9)"},
)
combine_masks.mistake(
    """What is compared are the two numbers of a pair, whether they are alike, not whether both are
    1: padding sees padding, or real tokens do.""",
    {"None] & real": "None] == real"},
    {"None] & real": "None] != real"},
)
combine_masks.mistake(
    """Real tokens are counted, and then taken to stand on one side, all on the left or all on the
    right. Padding may stand anywhere: ask attention_mask at each position.""",
    {"attention_mask != 0": "torch.arange(length) < attention_mask.sum(dim=1)[:, None]"},
    {"attention_mask != 0": "torch.arange(length) >= length - attention_mask.sum(dim=1)[:, None]"},
)
combine_masks.mistake(
    """Everything between the first real token and the last is taken for real. Padding may stand
    between them.""",
    {
        "attention_mask != 0": "(attention_mask.cumsum(dim=1) > 0) & "
        "(attention_mask.flip(1).cumsum(dim=1).flip(1) > 0)"
    },
)


def _with_ids(draw: Draw, attention_mask: Tensor) -> tuple[Tensor, Tensor]:
    """Ids for it, 0 at padding."""
    return draw.ids(*attention_mask.shape) * attention_mask, attention_mask


def _labels_edges(draw: Draw) -> Inputs:
    ones = torch.ones(2, 4, dtype=torch.int64)
    return {
        "real tokens of the id of padding": (
            torch.tensor([[0, 3, 0, 0], [5, 0, 4, 0], [0, 0, 0, 7]]),
            torch.tensor([[1, 1, 1, 0], [1, 1, 1, 1], [0, 0, 1, 1]]),
        ),
        "other ids than 0 at padding": (draw.ids(2, 4), torch.tensor([[1, 1, 0, 0], [0, 1, 1, 1]])),
        "one column": (draw.ids(2, 1), ones[:, :1]),
        "one real token in a sequence, or none": _with_ids(
            draw, torch.tensor([[1, 0, 0], [0, 0, 1], [0, 0, 0]])
        ),
    }


@exercise(
    "Labels: the next token",
    chapter=5,
    about="""What a language model learns at each position: the token that comes next. And -100
        where there is nothing to learn.""",
    hints=[
        "The label of position t is the id at t + 1. The last position has none.",
        "Nothing is predicted at padding, and padding is nobody's label, whichever side it is on.",
        "Start with torch.full_like(input_ids, -100). labels[:, :-1] = input_ids[:, 1:], then -100 "
        "wherever this or the next position is padding.",
    ],
    inputs=lambda draw: {
        "one sequence without padding": (torch.tensor([[5, 6, 7]]), torch.tensor([[1, 1, 1]])),
        **{
            name: _with_ids(draw, mask)
            for name, (mask,) in attention_masks(draw).items()
            if name != "one sequence without padding"
        },
    },
    edges=_labels_edges,
    points=3,
    subject=LabelsSubject,
)
def next_token_labels(input_ids: Tensor, attention_mask: Tensor) -> Tensor:
    """The label of a position is the id of the next one, if both are real; else it is -100.

    So the last position, the last real one and padding all have -100. A real token may have the
    same id as padding: only attention_mask knows.

    input_ids: (batch, length) int64
    attention_mask: (batch, length) int64, 1 = real token, 0 = padding; a sequence has its padding
    on the right or on the left, and may be padding alone
    returns: (batch, length) int64
    """
    ### BEGIN SOLUTION
    labels = torch.full_like(input_ids, -100)
    both = (attention_mask[:, :-1] != 0) & (attention_mask[:, 1:] != 0)
    labels[:, :-1] = input_ids[:, 1:].masked_fill(~both, -100)
    return labels
    ### END SOLUTION


NEXT = "input_ids[:, 1:].masked_fill(~both, -100)"
HERE, AFTER = "(attention_mask[:, :-1] != 0)", "(attention_mask[:, 1:] != 0)"
next_token_labels.mistake(
    """Nothing is shifted: the label of a token is the token itself, and there is nothing to
    predict. The label at t is the id at t + 1.""",
    "return input_ids.masked_fill(attention_mask == 0, -100)",
    "return input_ids.clone()",
    "return F.pad(input_ids[:, 1:], (1, 0), value=-100)",
    "return F.pad(input_ids[:, 1:].masked_fill(attention_mask[:, 1:] == 0, -100), (1, 0), "
    "value=-100)",
    "return F.pad(input_ids[:, 1:].masked_fill(~((attention_mask[:, :-1] != 0) & "
    "(attention_mask[:, 1:] != 0)), -100), (1, 0), value=-100)",
    {"labels[:, :-1] = input_ids[:, 1:]": "labels[:, :-1] = input_ids[:, :-1]"},
)
next_token_labels.mistake(
    """It is shifted the wrong way: the label is the token before. What is learned is the one that
    comes next.""",
    {"labels[:, :-1] = input_ids[:, 1:]": "labels[:, 1:] = input_ids[:, :-1]"},
    {"labels[:, :-1] = " + NEXT: "labels[:, 1:] = input_ids[:, :-1]"},
    """
    labels = input_ids.roll(1, dims=1).masked_fill(attention_mask == 0, -100)
    labels[:, 0] = -100
    return labels
    """,
    "return input_ids.roll(1, dims=1)",
    "return input_ids.roll(1, dims=1).masked_fill(attention_mask == 0, -100)",
)
next_token_labels.mistake(
    """The last position learns the first token of its sequence: roll goes round in a circle.
    Nothing comes after the last position, so its label is -100.""",
    """
    next_real = attention_mask.roll(-1, dims=1) != 0
    return input_ids.roll(-1, dims=1).masked_fill((attention_mask == 0) | ~next_real, -100)
    """,
    "return input_ids.roll(-1, dims=1).masked_fill(attention_mask == 0, -100)",
    "return input_ids.roll(-1, dims=1).masked_fill(attention_mask.roll(-1, dims=1) == 0, -100)",
    "return input_ids.roll(-1, dims=1)",
)
next_token_labels.mistake(
    """Padding is not ignored: it learns, and is learned. A label needs two real tokens, this one
    and the next; everything else is -100.""",
    {".masked_fill(~both, -100)": ""},
)
next_token_labels.mistake(
    """Padding predicts: only the next position is asked whether it is real. With padding on the
    left the last padded position then learns the first token.""",
    {f"{HERE} & ": ""},
)
next_token_labels.mistake(
    """Padding is learned: only this position is asked whether it is real, and the label of the last
    real token is padding.""",
    {f" & {AFTER}": ""},
)
next_token_labels.mistake(
    """Padding is told by its id. A real token may have that id too, as the end of a text often has:
    ask attention_mask.""",
    {f"{HERE} & {AFTER}": "(input_ids[:, :-1] != 0) & (input_ids[:, 1:] != 0)"},
    {f"{HERE} & {AFTER}": "input_ids[:, 1:] != 0"},
    {AFTER: "(input_ids[:, 1:] != 0)"},
    {HERE: "(input_ids[:, :-1] != 0)"},
)
next_token_labels.mistake(
    """Something other than -100 stands where nothing is to be learned. That is what a loss ignores;
    0 and the others are tokens to it, or an error.""",
    *({"-100": number} for number in ("0", "-1", "100", "1")),
    *({"input_ids, -100": f"input_ids, {number}"} for number in ("0", "-1", "100", "1")),
    *({"~both, -100": f"~both, {number}"} for number in ("0", "-1", "100", "1")),
    {"masked_fill(~both, -100)": "mul(both)"},
)
next_token_labels.mistake(
    """There is a column too few. Labels have the shape of input_ids: the last position has one, and
    it is -100.""",
    f"""
    both = {HERE} & {AFTER}
    return {NEXT}
    """,
    "return input_ids[:, 1:]",
    "return input_ids[:, 1:].masked_fill(attention_mask[:, 1:] == 0, -100)",
    "return input_ids[:, 1:].masked_fill(attention_mask[:, :-1] == 0, -100)",
)
next_token_labels.mistake(
    """The last real token of a sequence is nobody's label, so the model never learns how a text
    ends. Only the position after it goes unlearned.""",
    """
    labels = torch.full_like(input_ids, -100)
    real = F.pad(attention_mask, (0, 2)) != 0
    length = input_ids.shape[1]
    both = real[:, :length] & real[:, 1 : length + 1] & real[:, 2 : length + 2]
    labels[:, :-1] = input_ids[:, 1:].masked_fill(~both[:, :-1], -100)
    return labels
    """,
)
next_token_labels.mistake(
    """The number of real tokens is taken for the place where they end. That holds with padding on
    the right only: ask attention_mask at each position.""",
    """
    labels = torch.full_like(input_ids, -100)
    for row, count in enumerate(attention_mask.sum(dim=1).tolist()):
        labels[row, : max(count - 1, 0)] = input_ids[row, 1 : max(count, 1)]
    return labels
    """,
    """
    labels = torch.full_like(input_ids, -100)
    for row, count in enumerate(attention_mask.sum(dim=1).tolist()):
        labels[row, : count - 1] = input_ids[row, 1:count]
    return labels
    """,
    """
    labels = torch.full_like(input_ids, -100)
    labels[:, :-1] = input_ids[:, 1:]
    for row, count in enumerate(attention_mask.sum(dim=1).tolist()):
        labels[row, count - 1 :] = -100
    return labels
    """,
    """
    labels = torch.full_like(input_ids, -100)
    labels[:, :-1] = input_ids[:, 1:]
    labels[attention_mask == 0] = -100
    for row, count in enumerate(attention_mask.sum(dim=1).tolist()):
        labels[row, count - 1 :] = -100
    return labels
    """,
    """
    labels = torch.full_like(input_ids, -100)
    labels[:, :-1] = input_ids[:, 1:]
    labels[attention_mask == 0] = -100
    labels[torch.arange(len(labels)), attention_mask.sum(dim=1) - 1] = -100
    return labels
    """,
)
next_token_labels.mistake(
    """The first real token of a sequence predicts nothing. The token after it is its label.""",
    """
    labels = torch.full_like(input_ids, -100)
    real = F.pad(attention_mask, (1, 0)) != 0
    both = real[:, :-2] & real[:, 1:-1] & real[:, 2:]
    labels[:, :-1] = input_ids[:, 1:].masked_fill(~both, -100)
    return labels
    """,
)
next_token_labels.mistake(
    "It is shifted twice: the label is the token after the next. A loss does not shift here.",
    """
    labels = torch.full_like(input_ids, -100)
    both = (attention_mask[:, :-2] != 0) & (attention_mask[:, 2:] != 0)
    labels[:, :-2] = input_ids[:, 2:].masked_fill(~both, -100)
    return labels
    """,
    """
    labels = torch.full_like(input_ids, -100)
    both = (attention_mask[:, :-1] != 0) & (attention_mask[:, 1:] != 0)
    labels[:, :-1] = input_ids[:, 1:].masked_fill(~both, -100)
    labels[:, :-1] = labels[:, 1:].clone()
    labels[:, -1] = -100
    return labels
    """,
)
next_token_labels.mistake(
    """The mask is read upside down: padding is learned, and real tokens are ignored. 1 is a real
    token.""",
    {"~both": "both"},
    {"!= 0": "== 0"},
)
next_token_labels.mistake(
    "Every sequence has the padding of the first one.",
    {HERE: "(attention_mask[:1, :-1] != 0)", AFTER: "(attention_mask[:1, 1:] != 0)"},
)
next_token_labels.mistake(
    "The labels are not int64. A loss takes them as class numbers: keep the dtype of input_ids.",
    {"return labels": "return labels.float()"},
    {"return labels": "return labels.int()"},
)
next_token_labels.mistake(
    """The rows are strung together: the last token of a row learns the first of the next row. Each
    is a text of its own.""",
    """
    real, ids = attention_mask.flatten() != 0, input_ids.flatten()
    labels = ids[1:].masked_fill(~(real[:-1] & real[1:]), -100)
    return F.pad(labels, (0, 1), value=-100).view_as(input_ids)
    """,
    """
    labels = input_ids.flatten()[1:].masked_fill(attention_mask.flatten()[:-1] == 0, -100)
    return F.pad(labels, (0, 1), value=-100).view_as(input_ids)
    """,
    """
    labels = input_ids.flatten()[1:].masked_fill(attention_mask.flatten()[1:] == 0, -100)
    return F.pad(labels, (0, 1), value=-100).view_as(input_ids)
    """,
    "return F.pad(input_ids.flatten()[1:], (0, 1), value=-100).view_as(input_ids)",
)
next_token_labels.mistake(
    """The last position keeps its own token as a label. Nothing comes after it: its label is
    -100.""",
    {"torch.full_like(input_ids, -100)": "input_ids.clone()"},
    {"torch.full_like(input_ids, -100)": "input_ids.masked_fill(attention_mask == 0, -100)"},
)
