"""Chapter 1: why padding needs a mask."""

import torch
from torch import Tensor

from minitransformer.checks import MaskSubject
from minitransformer.exercises.exercise import Draw, Inputs, exercise

SIDES = ("right", "left")


def attention_masks(draw: Draw) -> Inputs:
    """Ordinary ones: rows of different lengths, padded on one side."""
    return {
        "one sequence without padding": (torch.ones(1, 3, dtype=torch.int64),),
        "one sequence, padded on the right": (torch.tensor([[1, 1, 0]]),),
        "one sequence, padded on the left": (torch.tensor([[0, 1, 1, 1]]),),
        "four sequences, padded on the right": (draw.attention_mask(4, 5),),
        "five sequences, padded on the left": (draw.attention_mask(5, 4, "left"),),
    }


@exercise(
    "A padding mask",
    chapter=1,
    about="""From 1 = real and 0 = padding to who may look at whom. Every other mask of the course
        is built like this one.""",
    hints=[
        "A query may see a key if both are real. Give queries and keys an axis each.",
        "attention_mask[:, None, :, None] has queries down; what has keys across?",
        "Compare with 0 to get booleans, then combine the two views with &: broadcasting does it.",
    ],
    inputs=attention_masks,
    edges=lambda draw: {
        "a sequence of padding alone": (torch.tensor([[1, 1, 0], [0, 0, 0]]),),
        "padding between tokens": (torch.tensor([[1, 0, 1, 0], [1, 1, 0, 1]]),),
    },
    subject=lambda fn: MaskSubject(fn, dead_queries="nothing"),
)
def padding_mask(attention_mask: Tensor) -> Tensor:
    """True where the query (down) and the key (across) are both real, False everywhere else.

    attention_mask: (batch, length) int64, 1 = real token, 0 = padding
    returns: (batch, 1, length, length) bool; the axis of 1 is for the heads
    """
    ### BEGIN SOLUTION
    real = attention_mask != 0
    return real[:, None, :, None] & real[:, None, None, :]
    ### END SOLUTION


BOTH = "real[:, None, :, None] & real[:, None, None, :]"
PAIRS = "real[:, :, None] & real[:, None]"
padding_mask.mistake(
    """Only padded keys are hidden, as in most libraries: a padded query still sees keys. Nobody
    reads what it collects, but a mask that hides keys alone cannot say which outputs are padding.
    Hide the queries too.""",
    {"real[:, None, :, None] & ": ""},
    {"real[:, None, :, None] & ": "torch.ones_like(real)[:, None, :, None] & "},
)
padding_mask.mistake(
    """Only padded queries are hidden: a real query still sees padded keys, and collects what they
    hold. What is hidden from attention is a column of the mask, the key.""",
    {" & real[:, None, None, :]": ""},
    {"real[:, None, None, :]": "torch.ones_like(real)[:, None, None, :]"},
)
padding_mask.mistake(
    """The mask is upside down: True where it hides. Here, as in torch's
    scaled_dot_product_attention, True means "may attend".""",
    {BOTH: f"~({BOTH})"},
)
padding_mask.mistake(
    """Padding is taken for real, and real tokens for padding: 1 in attention_mask is a real token.
    """,
    {"attention_mask != 0": "attention_mask == 0"},
)
padding_mask.mistake(
    """One of the two is enough in this mask: a pair is allowed as soon as the query or the key is
    real. Both must be.""",
    {"None] & real": "None] | real"},
)
padding_mask.mistake(
    """Padding may see padding in this mask: the two numbers of a pair are compared, and two 0s are
    equal, too. Ask whether both are 1.""",
    {BOTH: BOTH.replace("&", "==")},
)
padding_mask.mistake(
    """Real tokens see padding alone in this mask, and padding sees real tokens: != asks whether the
    two of a pair differ. Ask whether both are real.""",
    {BOTH: BOTH.replace("&", "!=")},
)
padding_mask.mistake(
    """A padded query may see something in this mask, itself or everything, perhaps to spare the
    softmax a row of nothing. Here its row must be False throughout; attention has to cope with it.
    """,
    {BOTH: f"({BOTH}) | torch.eye(real.shape[1]).bool()"},
    {BOTH: f"({BOTH}) | ~real[:, None, :, None]"},
)
padding_mask.mistake(
    """The real tokens are counted, and as many positions shown from the left: with padding on the
    left, or between tokens, these are others. attention_mask says which are real, not only how
    many.""",
    {
        "attention_mask != 0": "torch.arange(attention_mask.shape[1]) "
        "< attention_mask.sum(dim=1, keepdim=True)"
    },
)
padding_mask.mistake(
    """The future is hidden too: this mask is causal. Padding alone is asked for; an encoder reads
    in both directions.""",
    {
        "real[:, None, None, :]": "real[:, None, None, :] & real.new_ones(real.shape[1], "
        "real.shape[1]).tril()"
    },
)
padding_mask.mistake(
    "Every sequence has the mask of the first one.",
    {"real[:, None, None, :]": "real[:1, None, None, :]"},
    {"real[:, None, :, None]": "real[:1, None, :, None]"},
    {"attention_mask != 0": "attention_mask[:1].expand_as(attention_mask) != 0"},
)
padding_mask.mistake(
    """The axis for the heads is missing, or stands elsewhere: (batch, 1, length, length) is wanted,
    so that one mask serves every head.""",
    {BOTH: PAIRS},
    {BOTH: f"({PAIRS})[None]"},
    {BOTH: f"({PAIRS})[:, :, None]"},
    {BOTH: f"({PAIRS})[..., None]"},
)
padding_mask.mistake(
    """These are numbers, not True and False: ~ and masked_fill do something else with them.
    Compare with 0, or end with .bool().""",
    {BOTH: f"({BOTH}).long()"},
    {BOTH: f"({BOTH}).float()"},
    {BOTH: f"({BOTH}).int()"},
)
padding_mask.mistake(
    """This is what is added to the scores: 0, and -inf or a number like -1e9. A mask of True and
    False is wanted: it can be combined and inverted, and says what it means.""",
    {BOTH: f"torch.where({BOTH}, 0.0, float('-inf'))"},
    {BOTH: f"torch.where({BOTH}, 0.0, -1e9)"},
)
padding_mask.mistake(
    """Nobody may see anything in this mask: it is False throughout. ~ of whole numbers is no "not":
    ~1 is -2 and ~0 is -1, and both count as True. Compare with 0 first.""",
    {"attention_mask != 0": "~(~attention_mask).bool()"},
)
padding_mask.mistake(
    """Everybody may see everything in this mask: padding is nowhere hidden.""",
    {"attention_mask != 0": "attention_mask >= 0"},
)
padding_mask.mistake(
    """Only the diagonal is allowed in this mask: every real token sees itself, and no other.""",
    {BOTH: f"({BOTH}) & torch.eye(real.shape[1]).bool()"},
)
padding_mask.mistake(
    """The mask is written out for several heads, or for as many as there are sequences. One axis of
    1 serves every number of heads.""",
    {BOTH: f"({BOTH}).expand(-1, len(real), -1, -1)"},
    {BOTH: f"({BOTH}).expand(-1, 8, -1, -1)"},
    {BOTH: f"({BOTH}).expand(-1, real.shape[1], -1, -1)"},
)


def _padded_with(number: float, draw: Draw) -> tuple[Tensor, Tensor]:
    attention_mask = torch.tensor([[1, 1, 0, 0], [1, 1, 1, 1]])
    hidden = draw.normal(2, 4, 3)
    return hidden.masked_fill((attention_mask == 0)[:, :, None], number), attention_mask


@exercise(
    "Mean pooling that is proof against padding",
    chapter=1,
    about="""One vector for a sentence: the mean of its tokens' vectors. The commonest bug in code
        for sentence embeddings is to count the padding in.""",
    hints=[
        "Sum over the real tokens, and divide by how many there are.",
        "Times 0 is not enough: NaN * 0 is NaN. What sets a place to zero whatever it held?",
        "hidden.masked_fill(padding, 0.0).sum(dim=1) / count.clamp(min=1), with padding of shape "
        "(batch, length, 1) and True where it is, and count of shape (batch, 1).",
    ],
    inputs=lambda draw: (
        {
            name: (draw.normal(*mask.shape, mask.shape[1] if len(mask) == 1 else 6), mask)
            for name, (mask,) in attention_masks(draw).items()
        }
        | {"numbers that are 0": (draw.normal(3, 5, 4).relu(), draw.attention_mask(3, 5))}
    ),
    edges=lambda draw: {
        "padding between tokens": (
            draw.normal(2, 4, 3),
            torch.tensor([[1, 0, 1, 0], [1, 1, 0, 1]]),
        ),
        "a row of padding alone": (draw.normal(2, 3, 4), torch.tensor([[1, 1, 0], [0, 0, 0]])),
        "NaN in padding": _padded_with(float("nan"), draw),
    },
)
def mean_pool(hidden: Tensor, attention_mask: Tensor) -> Tensor:
    """The mean of the vectors of each row's real tokens; zeros for a row without any.

    Whatever padded positions hold, NaN included, does not reach it.

    hidden: (batch, length, width) float
    attention_mask: (batch, length) int64, 1 = real token, 0 = padding
    returns: (batch, width)
    """
    ### BEGIN SOLUTION
    padding = (attention_mask == 0)[:, :, None]
    count = (attention_mask != 0).sum(dim=1, keepdim=True)
    return hidden.masked_fill(padding, 0.0).sum(dim=1) / count.clamp(min=1)
    ### END SOLUTION


POOLED = "hidden.masked_fill(padding, 0.0).sum(dim=1) / count.clamp(min=1)"
mean_pool.mistake(
    """Padding is counted in, as if it were tokens: this is the mean over every position.""",
    {POOLED: "hidden.mean(dim=1)"},
)
mean_pool.mistake(
    """The sum leaves padding out, but what it is divided by counts it: the length of the row, not
    the number of real tokens.""",
    {"count.clamp(min=1)": "hidden.shape[1]"},
    {POOLED: "hidden.masked_fill(padding, 0.0).mean(dim=1)"},
)
mean_pool.mistake(
    "The sum takes padding in; only what it is divided by leaves it out.",
    {"hidden.masked_fill(padding, 0.0)": "hidden"},
)
mean_pool.mistake(
    """NaN at a padded place reaches the mean: NaN * 0 is NaN. Do not multiply padding by 0, put a 0
    in its place.""",
    {"hidden.masked_fill(padding, 0.0)": "(hidden * ~padding)"},
    {POOLED: "((~padding).float().mT @ hidden).squeeze(1) / count.clamp(min=1)"},
)
mean_pool.mistake(
    """NaN of the padding is replaced in the result, where it has already swallowed what the real
    tokens gave. Put a 0 in its place before the sum.""",
    {POOLED: "((hidden * ~padding).sum(dim=1) / count.clamp(min=1)).nan_to_num()"},
    {POOLED: "((hidden * ~padding).sum(dim=1) / count).nan_to_num()"},
)
mean_pool.mistake(
    """A row without a real token gives NaN: 0 / 0, the mean of nothing. Zeros are wanted there.""",
    {"count.clamp(min=1)": "count"},
    {POOLED: "hidden.masked_fill(padding, float('nan')).nanmean(dim=1)"},
    {POOLED: "torch.stack([h[m != 0].mean(dim=0) for h, m in zip(hidden, attention_mask)])"},
)
mean_pool.mistake(
    """Every row is divided by one more than it has tokens. Only a row without any needs a number
    other than its count.""",
    {"count.clamp(min=1)": "(count + 1)"},
)
mean_pool.mistake(
    """Padding is summed, and the real tokens are left out. masked_fill fills where its mask is
    True; and 1 in attention_mask is a real token.""",
    {"padding = (attention_mask == 0)": "padding = (attention_mask != 0)"},
    {
        "padding = (attention_mask == 0)": "padding = (attention_mask != 0)",
        "count = (attention_mask != 0)": "count = (attention_mask == 0)",
    },
)
mean_pool.mistake(
    "The sum is divided by how many places are padding, not by how many are real tokens.",
    {"count = (attention_mask != 0)": "count = (attention_mask == 0)"},
)
mean_pool.mistake(
    "This is the sum of the vectors, not their mean.",
    {" / count.clamp(min=1)": ""},
)
mean_pool.mistake(
    """This is one token's vector, the first or the last, not the mean.""",
    {POOLED: "hidden[:, 0]"},
    {POOLED: "hidden[:, -1]"},
    {POOLED: "hidden[:, 0] * (count > 0)"},
    {POOLED: "hidden[:, -1] * (count > 0)"},
    {POOLED: "hidden[torch.arange(len(hidden)), count.squeeze(1) - 1]"},
)
mean_pool.mistake(
    "This is the largest number of each column, not the mean.",
    {POOLED: "hidden.masked_fill(padding, float('-inf')).amax(dim=1)"},
    {POOLED: "hidden.masked_fill(padding, 0.0).amax(dim=1)"},
    {POOLED: "hidden.amax(dim=1)"},
)
mean_pool.mistake(
    """The mean runs along another axis: each token's numbers are averaged, or the sequences of the
    batch. Every sequence has a vector of its own, of the width of its tokens.""",
    {"sum(dim=1) / count.clamp(min=1)": "sum(dim=-1) / count.clamp(min=1)"},
    {POOLED: "hidden.masked_fill(padding, 0.0).mean(dim=-1)"},
    {POOLED: "hidden.mean(dim=-1)"},
    {POOLED: "hidden.mean(dim=0)"},
)
mean_pool.mistake(
    """The tokens of all sequences are thrown together: hidden[mask] forgets in which row a token
    stood. Every sequence has a mean of its own.""",
    {POOLED: "hidden[attention_mask != 0].mean(dim=0)"},
    {POOLED: "hidden[attention_mask != 0].mean(dim=0, keepdim=True)"},
    {POOLED: "hidden[attention_mask != 0].mean(dim=0).expand(hidden.shape[0], -1)"},
)
mean_pool.mistake(
    """All rows are divided by one number: how many tokens are real in the whole batch, in the
    longest row or in the first. Each row has a number of its own.""",
    {"count.clamp(min=1)": "count.sum().clamp(min=1)"},
    {"count.clamp(min=1)": "count.amax().clamp(min=1)"},
    {"count.clamp(min=1)": "count[:1].clamp(min=1)"},
)
mean_pool.mistake(
    "An axis of 1 is left over from keepdim: (batch, width) is wanted.",
    {
        POOLED: "hidden.masked_fill(padding, 0.0).sum(dim=1, keepdim=True) "
        "/ count.clamp(min=1)[:, :, None]"
    },
)
mean_pool.mistake(
    """The real tokens are counted, and as many taken from the left: with padding on the left, or
    between tokens, these are others. attention_mask says which are real, not only how many.""",
    {
        "padding = (attention_mask == 0)": "padding = (torch.arange(hidden.shape[1]) "
        ">= (attention_mask != 0).sum(dim=1, keepdim=True))"
    },
)
mean_pool.mistake(
    """A real token is left out of the mean, the first or the last. All of them count, whatever they
    stand for.""",
    *(
        {
            "attention_mask == 0": f"(attention_mask == 0) | ({before} <= 1)",
            "keepdim=True)\n": "keepdim=True)\n    count = (count - 1).clamp(min=0)\n",
        }
        for before in ("attention_mask.cumsum(1)", "attention_mask.flip(1).cumsum(1).flip(1)")
    ),
)
mean_pool.mistake(
    """A row without a real token gets something of its padding. Zeros are wanted there.""",
    {POOLED: f"torch.where(count > 0, {POOLED}, hidden.mean(dim=1))"},
    {POOLED: f"torch.where(count > 0, {POOLED}, hidden.sum(dim=1))"},
    {POOLED: f"torch.where(count > 0, {POOLED}, hidden[:, 0])"},
)
mean_pool.mistake(
    """A row without a real token gets another number than 0.""",
    *({POOLED: f"torch.where(count > 0, {POOLED}, {number})"} for number in ("1.0", "-1.0")),
)
mean_pool.mistake(
    """Something is done with the mean: it is scaled to length 1, as for comparing sentences, or
    normalized. The mean itself is wanted.""",
    {POOLED: f"F.normalize({POOLED}, dim=1)"},
    {POOLED: f"F.normalize({POOLED}, dim=0)"},
    {POOLED: f"F.layer_norm({POOLED}, hidden.shape[-1:])"},
    {POOLED: f"({POOLED}).tanh()"},
    {POOLED: f"({POOLED}).softmax(dim=-1)"},
)
mean_pool.mistake(
    """The mean is rounded to whole numbers, as // does. Divide with /.""",
    {" / count": " // count"},
    {POOLED: f"({POOLED}).round()"},
    {POOLED: f"({POOLED}).trunc()"},
)
mean_pool.mistake(
    """The sum is divided by the root of the number of tokens. Divide by the number itself.""",
    {"count.clamp(min=1)": "count.clamp(min=1).sqrt()"},
)
mean_pool.mistake(
    """What is counted is numbers that are not 0. A real token may hold a 0, too: attention_mask
    says how many tokens there are.""",
    {"count.clamp(min=1)": "(hidden.masked_fill(padding, 0.0) != 0).sum(dim=1).clamp(min=1)"},
)
mean_pool.mistake(
    """The mask is laid along the width of the vectors: it removes numbers of every token, not
    tokens. Where both sizes are equal no error says so. attention_mask[:, :, None] has the tokens
    on axis 1.""",
    {"(attention_mask == 0)[:, :, None]": "(attention_mask == 0)[:, None]"},
    {"(attention_mask == 0)[:, :, None]": "(attention_mask == 0)"},
)
mean_pool.mistake(
    """What comes out is not of the dtype of hidden.""",
    {"return hidden": "return hidden.double()"},
    {POOLED: f"({POOLED}).half()"},
)


def _rows(draw: Draw, *lengths: int) -> list[list[int]]:
    """Token ids, none of them a pad_id of these inputs."""
    return [(draw.ids(length) + 10).tolist() for length in lengths]


@exercise(
    "A batch of rows of different length",
    chapter=1,
    about="""A tensor is a rectangle and texts are not: short rows are filled up with a padding
        token, and a mask says which tokens are real. The ids alone cannot say it, for many models
        pad with a token that they also use (GPT-2 with its end of text).""",
    hints=[
        "How long is the longest row? Make the two rectangles first: one full of pad_id, the other "
        "of 0. Then write each row into its place.",
        "Padded on the right, a row begins in column 0. In which column does it begin if the "
        "padding comes first?",
        "With start = 0 or longest - len(row): input_ids[i, start : start + len(row)] = the row as "
        "a tensor of int64, and 1 at the same place of attention_mask.",
    ],
    inputs=lambda draw: {
        "one row": (_rows(draw, 3), 0, "right"),
        "two rows, padded on the right": (_rows(draw, 2, 3), 0, "right"),
        "two rows, padded on the left": (_rows(draw, 3, 1), 0, "left"),
        "four rows and another pad_id": (_rows(draw, 2, 5, 1, 3), draw.integer(2, 9), "right"),
        "five rows and another pad_id": (_rows(draw, 3, 1, 4, 2, 4), draw.integer(2, 9), "left"),
    },
    edges=lambda draw: {
        "tokens whose id is pad_id": ([[7, 12, 7], [7], [13, 7]], 7, "right"),
        "tokens whose id is pad_id, padded on the left": ([[7, 12, 7], [7], [7, 13]], 7, "left"),
        "an empty row, padded on the right": ([[], *_rows(draw, 3, 2)], 4, "right"),
        "an empty row, padded on the left": ([*_rows(draw, 2, 4), []], 4, "left"),
        "empty rows only": ([[], []], 0, "right"),
    },
)
def pad_batch(rows: list[list[int]], pad_id: int, side: str) -> tuple[Tensor, Tensor]:
    """Fill every row up to the longest with pad_id, in their order, and mark what is real.

    rows: token ids of each text, at least one row. A row may be empty: it becomes padding alone. A
    token whose id is pad_id is as real as any other.
    side: where the padding goes, "right" (behind the tokens) or "left" (before them)
    returns: input_ids and attention_mask, both (batch, longest) int64; attention_mask holds 1 at
    real tokens and 0 at padding
    """
    ### BEGIN SOLUTION
    longest = max(len(row) for row in rows)
    input_ids = torch.full((len(rows), longest), pad_id)
    attention_mask = torch.zeros(len(rows), longest, dtype=torch.int64)
    for i, row in enumerate(rows):
        start = 0 if side == "right" else longest - len(row)
        input_ids[i, start : start + len(row)] = torch.tensor(row, dtype=torch.int64)
        attention_mask[i, start : start + len(row)] = 1
    return input_ids, attention_mask
    ### END SOLUTION


LONGEST = "longest = max(len(row) for row in rows)"
START = '0 if side == "right" else longest - len(row)'
MARK = "attention_mask[i, start : start + len(row)] = 1"
PADDED = "return input_ids, attention_mask"
pad_batch.mistake(
    """The mask is read off the ids, so a real token whose id is pad_id counts as padding. What is
    real is known from the length of a row.""",
    {PADDED: "return input_ids, (input_ids != pad_id).long()"},
)
pad_batch.mistake(
    "`side` is not looked at: every batch is padded on the same side.",
    {START: "0"},
    {START: "longest - len(row)"},
)
pad_batch.mistake(
    """The sides are mixed up. "right" is where the padding goes: then the tokens begin in column 0.
    """,
    {'== "right"': '== "left"'},
)
pad_batch.mistake(
    "The mask is upside down: 1 is a real token, 0 is padding.",
    {PADDED: "return input_ids, 1 - attention_mask"},
)
pad_batch.mistake(
    "Padding is filled with another number than pad_id.",
    {"longest), pad_id)": "longest), 0)"},
    {"longest), pad_id)": "longest), 1)"},
    {"longest), pad_id)": "longest), -1)"},
    {"longest), pad_id)": "longest), -100)"},
)
pad_batch.mistake(
    """The ids are padded on the one side and the mask on the other: it calls padding real and hides
    tokens.""",
    {MARK: "attention_mask[i, : len(row)] = 1"},
    {MARK: "attention_mask[i, longest - len(row) :] = 1"},
)
pad_batch.mistake(
    """An empty row becomes real from end to end: x[-0:] is x[0:], the whole row. Count from the
    front: longest - len(row).""",
    {MARK: "attention_mask[i, slice(len(row)) if side == 'right' else slice(-len(row), None)] = 1"},
)
pad_batch.mistake(
    "An empty row is given a real token. It has none: its mask is 0 throughout.",
    {MARK: "attention_mask[i, start : start + max(len(row), 1)] = 1"},
    {MARK: f"{MARK}\n        if not row: attention_mask[i, 0] = 1"},
    {MARK: f"{MARK}\n        if not row: attention_mask[i, -1:] = 1"},
)
pad_batch.mistake(
    "Empty rows are left out: the batch has fewer rows than texts, and what follows is moved up.",
    {LONGEST: "rows = [row for row in rows if row]\n    longest = max(map(len, rows))"},
)
pad_batch.mistake(
    """The padding is on the left, and so are the last tokens: each row is reversed. Turning a batch
    around that was padded on the right turns its texts around too.""",
    {
        START: "0",
        PADDED: f"{PADDED}\n    ".replace("return ", "if side == 'right': return ")
        + "return input_ids.flip(1), attention_mask.flip(1)",
    },
    {"torch.tensor(row,": "torch.tensor(row if side == 'right' else row[::-1],"},
)
pad_batch.mistake(
    "Rows are cut to the length of the shortest: tokens are lost.",
    {LONGEST: "longest = min(map(len, rows))\n    rows = [row[:longest] for row in rows]"},
)
pad_batch.mistake(
    """The batch is wider than its longest row, so that even this one is padded. The longest row has
    no padding.""",
    {LONGEST: f"{LONGEST} + 1"},
    {LONGEST: f"{LONGEST}\n    longest += -longest % 8"},
)
pad_batch.mistake(
    "The rows come back in another order, sorted by length. Row i belongs to text i.",
    {LONGEST: f"rows = sorted(rows, key=len)\n    {LONGEST}"},
    {LONGEST: f"rows = sorted(rows, key=len, reverse=True)\n    {LONGEST}"},
)
pad_batch.mistake(
    "The mask is not int64: 1 and 0 are wanted as whole numbers, as tokenizers give them.",
    {PADDED: "return input_ids, attention_mask.bool()"},
    {PADDED: "return input_ids, attention_mask.float()"},
    {PADDED: "return input_ids, attention_mask.int()"},
)
pad_batch.mistake(
    """torch.tensor makes float32 of lists that hold no number, which they do where every row is
    empty. Say what you want: dtype=torch.int64.""",
    {PADDED: "return torch.tensor(input_ids.tolist()), torch.tensor(attention_mask.tolist())"},
    {PADDED: "return torch.tensor(input_ids.tolist()), attention_mask"},
    {PADDED: "return input_ids, torch.tensor(attention_mask.tolist())"},
)
pad_batch.mistake(
    "Ids and mask have changed places: input_ids comes first.",
    {PADDED: "return attention_mask, input_ids"},
)
pad_batch.mistake(
    "Only the ids come back. The mask is wanted as well: return input_ids, attention_mask.",
    {PADDED: "return input_ids"},
)
pad_batch.mistake(
    "Lists come back. Two tensors of int64 are wanted.",
    {PADDED: "return input_ids.tolist(), attention_mask.tolist()"},
)
pad_batch.mistake(
    "The mask calls everything real, padding too.",
    {"torch.zeros(len(rows), longest": "torch.ones(len(rows), longest"},
)
pad_batch.mistake(
    """The mask holds something else than 1 at real tokens: ids, places or lengths. It says only
    what is real.""",
    {MARK: MARK[:-1] + "torch.tensor(row, dtype=torch.int64)"},
    {MARK: MARK[:-1] + "torch.arange(len(row)) + 1"},
    {MARK: MARK[:-1] + "torch.arange(len(row))"},
    {MARK: MARK[:-1] + "len(row)"},
)
pad_batch.mistake(
    "A token is lost at the end of every row that is padded, or of every row.",
    {
        "for i, row in enumerate(rows):": "for i, row in enumerate(rows):\n"
        "        row = row[: longest - 1]"
    },
    {"for i, row in enumerate(rows):": "for i, row in enumerate(rows):\n        row = row[:-1]"},
    {
        "for i, row in enumerate(rows):": "for i, row in enumerate(rows):\n"
        "        row = row[:-1] if len(row) < longest else row"
    },
)
pad_batch.mistake(
    """Every row holds the same: rows of [[pad_id] * n] * batch are one and the same list, and what
    is written into one is in all. Make a new row each time.""",
    {PADDED: "return [x[-1:].repeat(len(rows), 1) for x in (input_ids, attention_mask)]"},
)
pad_batch.mistake(
    """Where the padding is on the left, the tokens begin one column too early or too late.""",
    {"longest - len(row)": "max(longest - len(row) - 1, 0)"},
)
