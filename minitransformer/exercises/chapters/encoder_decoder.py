"""Chapter 6: encoder and decoder."""

import torch
from torch import Tensor

from minitransformer.exercises.chapters.encoder import (
    Attention,
    Counted,
    everything,
    expect_each_called_once,
    norm,
    position_wise,
)
from minitransformer.exercises.exercise import Draw, exercise


@exercise(
    "Sinusoidal positions",
    chapter=6,
    about="""Attention does not know what stands where. The first transformer added waves of many
        lengths (Vaswani et al. 2017, section 3.5).""",
    hints=[
        "Position p and pair i make one angle: p / 10000^(2i/width).",
        "Column 2i is the sine of angle i, column 2i + 1 its cosine. torch.arange(0, width, 2) has "
        "the numbers 2i.",
        "table = torch.empty(length, width); table[:, 0::2] = angles.sin(); table[:, 1::2] = "
        "angles.cos(), with angles = p[:, None] / 10000 ** (even / width).",
    ],
    inputs=lambda draw: {
        "one position": (1, 2),
        "two positions and two columns": (2, 2),
        "two positions and four columns": (2, 4),
        "more columns than positions": (draw.integer(3, 5), 8),
        "more positions than columns": (draw.integer(12, 20), 6),
        "as many positions as columns": (6, 6),
    },
    points=4,
)
def sinusoidal_positions(length: int, width: int) -> Tensor:
    """A vector for each position: sines and cosines of angles that grow with it.

    Position p has the angle p / 10000^(2i/width) for each i = 0, ..., width/2 - 1. Its sine stands
    in column 2i, the cosine of the same angle in column 2i + 1.

    length: how many positions there are, p = 0, ..., length - 1; width is even
    returns: (length, width) float32
    """
    ### BEGIN SOLUTION
    even = torch.arange(0, width, 2, dtype=torch.float64)
    angles = torch.arange(length)[:, None] / 10_000 ** (even / width)
    return torch.stack((angles.sin(), angles.cos()), dim=-1).flatten(1).float()
    ### END SOLUTION


WAVES = "torch.stack((angles.sin(), angles.cos()), dim=-1).flatten(1)"
SPEEDS = "10_000 ** (even / width)"
sinusoidal_positions.mistake(
    """All sines stand before all cosines, as in some libraries. Here they alternate: sine in the
    even columns, cosine in the odd ones.""",
    {WAVES: "torch.cat((angles.sin(), angles.cos()), dim=-1)"},
)
sinusoidal_positions.mistake(
    "All cosines stand before all sines. They alternate here, and the sine comes first.",
    {WAVES: "torch.cat((angles.cos(), angles.sin()), dim=-1)"},
)
sinusoidal_positions.mistake(
    "Sine and cosine have changed places: the sine stands in the even columns.",
    {"(angles.sin(), angles.cos())": "(angles.cos(), angles.sin())"},
)
sinusoidal_positions.mistake(
    """2i is doubled once more: where i runs over 0, 2, 4, ..., it is 2i already. Divide it by width
    as it is.""",
    {"even / width": "2 * even / width"},
    {"even / width": "even / (width / 2)"},
)
sinusoidal_positions.mistake(
    """The exponent is i/width, half of what it should be: i counts pairs, and 2i is the column. The
    exponent is 2i/width.""",
    {"even / width": "even / 2 / width"},
)
sinusoidal_positions.mistake(
    """Every column has an angle of its own. A cosine has the angle of the sine to its left: the
    exponent is that of the even column for both.""",
    """
    columns = torch.arange(width, dtype=torch.float64)
    angles = torch.arange(length)[:, None] / 10_000 ** (columns / width)
    angles[:, 0::2], angles[:, 1::2] = angles[:, 0::2].sin(), angles[:, 1::2].cos()
    return angles.float()
    """,
    """
    columns = torch.arange(width, dtype=torch.float64)
    angles = torch.arange(length)[:, None] / 10_000 ** (2 * columns / width)
    angles[:, 0::2], angles[:, 1::2] = angles[:, 0::2].sin(), angles[:, 1::2].cos()
    return angles.float()
    """,
)
sinusoidal_positions.mistake(
    """The exponent runs up to 1, so that the last wave is 10000 times as slow as the first, as in
    some libraries. Here it is 2i/width, and stops short of 1.""",
    {"even / width": "even / max(width - 2, 1)"},
    {
        WAVES: "torch.cat((angles.sin(), angles.cos()), dim=-1)",
        "even / width": "even / max(width - 2, 1)",
    },
)
sinusoidal_positions.mistake(
    "Positions are counted from 1. The first is 0: its sines are 0, its cosines 1.",
    {"torch.arange(length)": "torch.arange(1, length + 1)"},
)
sinusoidal_positions.mistake(
    "Another number stands where 10000 does.",
    *({"10_000": number} for number in ("1_000", "100_000", "1e6", "math.e", "2", "10")),
)
sinusoidal_positions.mistake(
    """The position is multiplied by the power of 10000, so the waves become faster from column to
    column. Divide by it: they become slower.""",
    {f"[:, None] / {SPEEDS}": f"[:, None] * {SPEEDS}"},
)
sinusoidal_positions.mistake(
    "The power is missing: the position is divided by 10000 times the exponent.",
    {SPEEDS: "(10_000 * even / width)"},
)
sinusoidal_positions.mistake(
    "All columns have the same angle, the position itself: the division is missing.",
    {f" / {SPEEDS}": " + 0 * even"},
)
sinusoidal_positions.mistake(
    "There is only one kind of wave, sines or cosines. Each angle has a column for both.",
    {"angles.cos()": "angles.sin()"},
    {"angles.sin()": "angles.cos()"},
)
sinusoidal_positions.mistake(
    "Sine and cosine are missing: these are the angles.",
    {"(angles.sin(), angles.cos())": "(angles, angles)"},
)
sinusoidal_positions.mistake(
    """The table lies on its side, or has an axis too many: a row for each position is wanted,
    (length, width).""",
    {WAVES: f"{WAVES}.T"},
    {WAVES: f"{WAVES}[None]"},
    {".flatten(1)": ""},
)
sinusoidal_positions.mistake(
    "The numbers are right, but they are float64. A table that is added to vectors is float32.",
    {".float()": ""},
)
sinusoidal_positions.mistake(
    """The angle is counted in degrees or in whole turns, or the position as a part of the length.
    sin and cos take radians: the angle as it is.""",
    {"= torch.arange(length)[:, None]": "= math.pi / 180 * torch.arange(length)[:, None]"},
    {"torch.arange(length)[:, None]": "2 * math.pi * torch.arange(length)[:, None]"},
    {"torch.arange(length)[:, None]": "(torch.arange(length) / length)[:, None]"},
)
sinusoidal_positions.mistake(
    """The numbers are right, and stand in the wrong places: reshape keeps them in the order they
    are in, and moves no axis. Stack sine and cosine along the last axis.""",
    {WAVES: "torch.stack((angles.sin(), angles.cos())).reshape(length, width)"},
    {WAVES: "torch.stack((angles.cos(), angles.sin())).reshape(length, width)"},
    {WAVES: f"{WAVES}.T.reshape(length, width)"},
)
sinusoidal_positions.mistake(
    "The table is of half precision. float32 is wanted.",
    {".float()": ".half()"},
    {".float()": ".bfloat16()"},
)
sinusoidal_positions.mistake(
    "The table is scaled, or its rows are brought to length 1. Leave the waves as they are.",
    {".float()": ".float() / width**0.5"},
    {".float()": ".float() * width**0.5"},
    {WAVES: f"F.normalize({WAVES}, dim=-1)"},
)
sinusoidal_positions.mistake(
    "The angle is rounded down to a whole number: // drops what is behind the point. / divides.",
    {f"[:, None] / {SPEEDS}": f"[:, None] // {SPEEDS}"},
)


def _two_texts(
    draw: Draw, batch: int, targets: int, sources: int, sides: tuple[str, str]
) -> tuple[Tensor, Tensor]:
    """The masks of targets and sources, each padded on its side."""
    return (
        draw.attention_mask(batch, targets, sides[0]),
        draw.attention_mask(batch, sources, sides[1]),
    )


@exercise(
    "A mask for cross-attention",
    chapter=6,
    about="""In cross-attention the queries are the tokens of the target and the keys those of the
        source: two texts, two lengths, two paddings, one mask. It is not causal: the source has
        been read to its end before the target is written.""",
    hints=[
        "It is the padding mask of chapter 1, with two texts: a query may attend to a key if both "
        "are real tokens.",
        "Queries go down and keys across. query_mask[:, None, :, None] has the targets down; what "
        "has the sources across?",
        "(query_mask != 0)[:, None, :, None] & (key_mask != 0)[:, None, None, :]",
    ],
    inputs=lambda draw: {
        "one target and one source without padding": (
            torch.ones(1, 2, dtype=torch.int64),
            torch.ones(1, 3, dtype=torch.int64),
        ),
        "a padded source": (torch.ones(1, 3, dtype=torch.int64), torch.tensor([[1, 1, 1, 0]])),
        "a padded target": (torch.tensor([[1, 1, 0]]), torch.ones(1, 4, dtype=torch.int64)),
        "three pairs, padded on the right": _two_texts(draw, 3, 4, 6, ("right", "right")),
        "four pairs, the target padded on the left": _two_texts(draw, 4, 5, 3, ("left", "right")),
        "four pairs, the source padded on the left": _two_texts(draw, 4, 3, 5, ("right", "left")),
        "as many targets as sources": _two_texts(draw, 3, 5, 5, ("right", "left")),
    },
    edges=lambda draw: {
        "a source of padding alone": (
            torch.tensor([[1, 1, 1], [1, 1, 0]]),
            torch.tensor([[1, 0], [0, 0]]),
        ),
        "a target of padding alone": (
            torch.tensor([[0, 0], [1, 1]]),
            torch.tensor([[1, 1, 0], [1, 1, 1]]),
        ),
        "padding between tokens": (
            torch.tensor([[1, 0, 1], [0, 1, 1]]),
            torch.tensor([[1, 0, 1, 0], [1, 1, 0, 1]]),
        ),
    },
)
def cross_mask(query_mask: Tensor, key_mask: Tensor) -> Tensor:
    """True where the query, a token of the target, and the key, a token of the source, are real.

    The row of a padded query is all False.

    query_mask: (batch, targets) int64, 1 = real token, 0 = padding
    key_mask: (batch, sources) int64, likewise; both of the same batch, the lengths may differ
    returns: (batch, 1, targets, sources) bool; the axis of 1 is for the heads
    """
    ### BEGIN SOLUTION
    queries, keys = query_mask != 0, key_mask != 0
    return queries[:, None, :, None] & keys[:, None, None, :]
    ### END SOLUTION


PAIR = "queries[:, None, :, None] & keys[:, None, None, :]"
cross_mask.mistake(
    """Only padded keys are hidden: a padded query still attends to the source. A padded query's row
    should be all False.""",
    {"queries[:, None, :, None] & ": "torch.ones_like(queries)[:, None, :, None] & "},
    {"queries[:, None, :, None] & ": ""},
)
cross_mask.mistake(
    """Only padded queries are hidden: a real query still collects what padded keys of the source
    hold.""",
    {"& keys[": "& torch.ones_like(keys)["},
    {" & keys[:, None, None, :]": ""},
)
cross_mask.mistake(
    """Queries and keys have changed places: the rows of the mask are queries, tokens of the target,
    and its columns keys, tokens of the source.""",
    {PAIR: "queries[:, None, None, :] & keys[:, None, :, None]"},
)
cross_mask.mistake(
    """The mask is upside down: True where it hides. Here True means "may attend".""",
    {PAIR: f"~({PAIR})"},
)
cross_mask.mistake(
    "Padding is taken for real, and real tokens for padding: 1 is a real token.",
    {"query_mask != 0, key_mask != 0": "query_mask == 0, key_mask == 0"},
)
cross_mask.mistake(
    "A pair is allowed as soon as the query or the key is real. Both must be.",
    {"None] & keys": "None] | keys"},
)
cross_mask.mistake(
    """What is compared are the two numbers of a pair, whether they are alike, not whether both are
    1: padding attends to padding, or real tokens to padding.""",
    {"None] & keys": "None] == keys"},
    {"None] & keys": "None] != keys"},
)
cross_mask.mistake(
    """The mask is causal. Nothing of the source is in the future: it has been read to its end
    before the target is written.""",
    {PAIR: f"({PAIR}).tril()"},
    {PAIR: f"({PAIR}).tril(keys.shape[1] - queries.shape[1])"},
)
cross_mask.mistake(
    """This is the mask of self-attention: one of the two texts is used for queries and keys alike.
    """,
    {"key_mask != 0": "query_mask != 0"},
    {"= query_mask != 0": "= key_mask != 0"},
)
cross_mask.mistake(
    "Every pair of texts has the mask of the first one.",
    {"keys[:, None, None, :]": "keys[:1, None, None, :]"},
    {"queries[:, None, :, None]": "queries[:1, None, :, None]"},
    {PAIR: f"({PAIR})[:1].expand(len(keys), -1, -1, -1)"},
)
cross_mask.mistake(
    """The axis for the heads is missing, or stands elsewhere: (batch, 1, targets, sources) is
    wanted, so that one mask serves every head.""",
    {PAIR: "queries[:, :, None] & keys[:, None, :]"},
    {PAIR: "(queries[:, :, None] & keys[:, None, :])[None]"},
    {PAIR: "(queries[:, :, None] & keys[:, None, :])[:, :, None]"},
)
cross_mask.mistake(
    """These are numbers, not True and False: ~ and masked_fill do something else with them.
    Compare with 0, or end with .bool().""",
    {PAIR: f"({PAIR}).long()"},
    {PAIR: f"({PAIR}).float()"},
    {PAIR: f"({PAIR}).int()"},
)
cross_mask.mistake(
    """This is what is added to the scores, 0 and a large negative number. A mask of True and False
    is wanted.""",
    {PAIR: f"torch.where({PAIR}, 0.0, float('-inf'))"},
    {PAIR: f"torch.where({PAIR}, 0.0, -1e9)"},
)
cross_mask.mistake(
    """Real tokens are counted, and then taken to stand on one side, all on the left or all on the
    right. Padding may stand on either: ask the masks at each position.""",
    {
        "query_mask != 0, key_mask != 0": "(torch.arange(m.shape[1]) < m.sum(dim=1)[:, None] "
        "for m in (query_mask, key_mask))"
    },
    {"key_mask != 0": "torch.arange(key_mask.shape[1]) < key_mask.sum(dim=1)[:, None]"},
    {"= query_mask != 0": "= torch.arange(query_mask.shape[1]) < query_mask.sum(dim=1)[:, None]"},
    {
        "query_mask != 0, key_mask != 0": "(torch.arange(m.shape[1]) >= m.shape[1] - "
        "m.sum(dim=1)[:, None] for m in (query_mask, key_mask))"
    },
)


def _decoder_layer_arguments(draw: Draw, mask: Tensor, memory_mask: Tensor, width: int) -> tuple:
    batch, _, length, source = memory_mask.shape
    x, memory = draw.normal(batch, length, width), draw.normal(batch, source, width)
    attentions = Attention(draw, width), Attention(draw, width)
    norms = [norm(draw, width) for _ in range(3)]
    return x, mask, memory, memory_mask, *attentions, position_wise(draw, width), norms


@exercise(
    "A decoder layer",
    chapter=6,
    about="""An encoder layer with cross-attention to the source in between. Two attentions, two
        masks, and they are easily mixed up.""",
    hints=[
        "Three sublayers: attention to itself, attention to the memory, feed-forward.",
        "In the second the queries come from x and the keys from memory, under memory_mask.",
        "x = norms[0](x + self_attention(x, x, mask)) comes first, "
        "x = norms[1](x + cross_attention(x, memory, memory_mask)) stands in the middle, "
        "norms[2](x + feed_forward(x)) is returned.",
    ],
    inputs=lambda draw: {
        "one token and one of the source": _decoder_layer_arguments(
            draw, everything(1, 1, 1), everything(1, 1, 1), 2
        ),
        "nothing masked, and as many tokens as in the source": _decoder_layer_arguments(
            draw, everything(1, 3, 3), everything(1, 3, 3), 2
        ),
        "masks, and as many tokens as in the source": _decoder_layer_arguments(
            draw, draw.mask(2, 3, 3), draw.mask(2, 3, 3), 4
        ),
        "masks, and more tokens in the source": _decoder_layer_arguments(
            draw, draw.mask(1, 3, 3), draw.mask(1, 3, 5), 4
        ),
        "masks, and fewer tokens in the source": _decoder_layer_arguments(
            draw, draw.mask(2, 5, 5), draw.mask(2, 5, 3), 4
        ),
    },
    points=5,
)
def decoder_layer(
    x: Tensor,
    mask: Tensor,
    memory: Tensor,
    memory_mask: Tensor,
    self_attention,
    cross_attention,
    feed_forward,
    norms,
) -> Tensor:
    """norm(x + sublayer(x)), for self-attention, cross-attention and feed_forward, in this order.

    The three norms belong to the sublayers in the same order. Both attentions are called with where
    the queries come from, where the keys and values come from, and the mask that says which keys
    each query may attend to: self_attention(x, x, mask), for instance.

    x: (batch, length, d_model); mask: (batch, 1, length, length) bool, True = may attend
    memory: (batch, source, d_model), what the encoder wrote
    memory_mask: (batch, 1, length, source) bool, True = may attend
    self_attention, cross_attention and feed_forward, and those of norms, a list of three, are
    functions, each to be called once; feed_forward and the norms take x alone
    returns: (batch, length, d_model)
    """
    ### BEGIN SOLUTION
    x = norms[0](x + self_attention(x, x, mask))
    x = norms[1](x + cross_attention(x, memory, memory_mask))
    return norms[2](x + feed_forward(x))
    ### END SOLUTION


OWN, CROSS, FORWARD = (
    "self_attention(x, x, mask)",
    "cross_attention(x, memory, memory_mask)",
    "feed_forward(x)",
)
STEPS = [f"norms[{i}](x + {part})" for i, part in enumerate((OWN, CROSS, FORWARD))]
decoder_layer.mistake(
    """cross_attention gets the mask of the target. Its keys are the source's, and memory_mask says
    which of them are padding.""",
    {CROSS: "cross_attention(x, memory, mask)"},
)
decoder_layer.mistake(
    "self_attention gets memory_mask. Its keys are those of x: `mask` is theirs.",
    {OWN: "self_attention(x, x, memory_mask)"},
)
decoder_layer.mistake(
    "cross_attention gets no mask: every token reads the padding of the source.",
    {CROSS: "cross_attention(x, memory)"},
)
decoder_layer.mistake(
    "self_attention gets no mask: tokens see padding and their future.",
    {OWN: "self_attention(x, x)"},
)
decoder_layer.mistake(
    """cross_attention never sees the memory: its keys are those of x, a second self-attention. The
    queries come from x, the keys and values from memory.""",
    {CROSS: "cross_attention(x, x, mask)"},
    {CROSS: "cross_attention(x, x, memory_mask)"},
)
decoder_layer.mistake(
    """In cross_attention queries and keys have changed places, or both come from memory. The tokens
    of x ask, the memory is asked: cross_attention(x, memory, memory_mask).""",
    {CROSS: "cross_attention(memory, x, memory_mask)"},
    {CROSS: "cross_attention(memory, x, memory_mask.transpose(-2, -1))"},
    {CROSS: "cross_attention(memory, memory, memory_mask)"},
)
decoder_layer.mistake(
    """self_attention reads the memory. Its queries and its keys are those of x; the memory is for
    cross_attention.""",
    {OWN: "self_attention(x, memory, memory_mask)"},
    {OWN: "self_attention(x, memory, mask)"},
    {OWN: "self_attention(memory, x, mask)"},
)
decoder_layer.mistake(
    "A mask is turned upside down on its way. True means that a query may attend: hand it on.",
    {OWN: "self_attention(x, x, ~mask)"},
    {CROSS: "cross_attention(x, memory, ~memory_mask)"},
    {OWN: "self_attention(x, x, ~mask)", CROSS: "cross_attention(x, memory, ~memory_mask)"},
)
decoder_layer.mistake(
    "The two attentions are mixed up: one is called where the other belongs.",
    {"cross_attention(x": "self_attention(x"},
    {"self_attention(x": "cross_attention(x"},
    """
    x = norms[0](x + cross_attention(x, x, mask))
    x = norms[1](x + self_attention(x, memory, memory_mask))
    return norms[2](x + feed_forward(x))
    """,
)
decoder_layer.mistake(
    "The order is wrong: self-attention, cross-attention, feed-forward.",
    """
    x = norms[0](x + cross_attention(x, memory, memory_mask))
    x = norms[1](x + self_attention(x, x, mask))
    return norms[2](x + feed_forward(x))
    """,
    """
    x = norms[1](x + cross_attention(x, memory, memory_mask))
    x = norms[0](x + self_attention(x, x, mask))
    return norms[2](x + feed_forward(x))
    """,
    """
    x = norms[0](x + self_attention(x, x, mask))
    x = norms[1](x + feed_forward(x))
    return norms[2](x + cross_attention(x, memory, memory_mask))
    """,
    """
    x = norms[0](x + self_attention(x, x, mask))
    x = norms[2](x + feed_forward(x))
    return norms[1](x + cross_attention(x, memory, memory_mask))
    """,
)
decoder_layer.mistake(
    "The residual connection around self-attention is missing: add x to what it gives.",
    {STEPS[0]: f"norms[0]({OWN})"},
)
decoder_layer.mistake(
    "The residual connection around cross-attention is missing: add what went into it.",
    {STEPS[1]: f"norms[1]({CROSS})"},
)
decoder_layer.mistake(
    "The residual connection around the feed-forward network is missing: add what went into it.",
    {STEPS[2]: f"norms[2]({FORWARD})"},
)
decoder_layer.mistake(
    "There are no residual connections: what goes into a sublayer is added to what it gives.",
    {
        STEPS[0]: f"norms[0]({OWN})",
        STEPS[1]: f"norms[1]({CROSS})",
        STEPS[2]: f"norms[2]({FORWARD})",
    },
    {STEPS[0]: OWN, STEPS[1]: CROSS, STEPS[2]: FORWARD},
)
decoder_layer.mistake(
    """A norm stands elsewhere than behind the sum: before its sublayer (pre-norm), or between the
    sublayer and the sum. norm(x + sublayer(x)) is wanted.""",
    {
        STEPS[0]: "x + self_attention(norms[0](x), norms[0](x), mask)",
        STEPS[1]: "x + cross_attention(norms[1](x), memory, memory_mask)",
        STEPS[2]: "x + feed_forward(norms[2](x))",
    },
    {
        STEPS[0]: "x + self_attention(norms[0](x), norms[0](x), mask)",
        STEPS[1]: "x + cross_attention(norms[1](x), norms[1](memory), memory_mask)",
        STEPS[2]: "x + feed_forward(norms[2](x))",
    },
    {
        STEPS[0]: f"x + norms[0]({OWN})",
        STEPS[1]: f"x + norms[1]({CROSS})",
        STEPS[2]: f"x + norms[2]({FORWARD})",
    },
    {STEPS[0]: "x + self_attention(norms[0](x), norms[0](x), mask)"},
    {STEPS[1]: "x + cross_attention(norms[1](x), memory, memory_mask)"},
    {STEPS[2]: "x + feed_forward(norms[2](x))"},
    {STEPS[0]: f"x + norms[0]({OWN})"},
    {STEPS[1]: f"x + norms[1]({CROSS})"},
    {STEPS[2]: f"x + norms[2]({FORWARD})"},
)
decoder_layer.mistake(
    "A norm is missing: there is one behind each of the three sums.",
    {STEPS[0]: f"x + {OWN}"},
    {STEPS[1]: f"x + {CROSS}"},
    {STEPS[2]: f"x + {FORWARD}"},
    {STEPS[0]: f"x + {OWN}", STEPS[1]: f"x + {CROSS}", STEPS[2]: f"x + {FORWARD}"},
    {STEPS[0]: f"x + {OWN}", STEPS[1]: f"x + {CROSS}"},
)
decoder_layer.mistake(
    "The norms are mixed up: norms[0] is for self-attention, [1] for cross-attention, [2] last.",
    {"norms[1]": "norms[0]", "norms[2]": "norms[0]"},
    {"norms[1]": "norms[0]", "norms[2]": "norms[1]"},
    {"norms[0]": "norms[1]"},
    {"norms[1]": "norms[2]"},
    {"norms[2]": "norms[1]"},
    {"norms[0]": "norms[-1]", "norms[2]": "norms[0]"},
)
decoder_layer.mistake(
    """A later sublayer gets the input of the layer, or adds it. Each reads, and adds, what the norm
    before it gave.""",
    {"x = norms[0]": "given, x = x, norms[0]", CROSS: CROSS.replace("(x", "(given")},
    {"x = norms[0]": "given, x = x, norms[0]", "x + cross": "given + cross"},
    {"x = norms[0]": "given, x = x, norms[0]", "x + feed": "given + feed"},
    {"x = norms[0]": "given, x = x, norms[0]", FORWARD: "feed_forward(given)"},
    {
        "x = norms[0]": "given, x = x, norms[0]",
        "x + cross": "given + cross",
        "x + feed": "given + feed",
    },
    {"x = norms[1]": "given, x = x, norms[1]", FORWARD: "feed_forward(given)"},
    {"x = norms[1]": "given, x = x, norms[1]", "x + feed": "given + feed"},
)
decoder_layer.mistake(
    "Cross-attention is missing: nothing of the source reaches the target.",
    {f"    x = {STEPS[1]}\n": ""},
    {STEPS[1]: "norms[1](x)"},
    {f"    x = {STEPS[1]}\n": "", "norms[2]": "norms[1]"},
)
decoder_layer.mistake(
    "Self-attention is missing: no token collects anything from those before it.",
    {f"    x = {STEPS[0]}\n": ""},
    {STEPS[0]: "norms[0](x)"},
    {f"    x = {STEPS[0]}\n": "", "norms[1]": "norms[0]", "norms[2]": "norms[1]"},
)
decoder_layer.mistake(
    "The feed-forward network is missing: it is the last of the three sublayers.",
    {STEPS[2]: "norms[2](x)"},
    {STEPS[2]: "x"},
)
decoder_layer.mistake(
    "Every sequence has the mask of the first one.",
    {OWN: "self_attention(x, x, mask[:1])"},
    {CROSS: "cross_attention(x, memory, memory_mask[:1])"},
)
decoder_layer.mistake(
    """The sum in front of a norm is scaled, or one of its two parts. Both are added as they are.
    """,
    {STEPS[0]: f"norms[0]((x + {OWN}) / 2)", STEPS[1]: f"norms[1]((x + {CROSS}) / 2)"},
    {
        STEPS[0]: f"norms[0]((x + {OWN}) / 2)",
        STEPS[1]: f"norms[1]((x + {CROSS}) / 2)",
        STEPS[2]: f"norms[2]((x + {FORWARD}) / 2)",
    },
    *(
        {STEPS[i]: f"norms[{i}](x + {part} * x.shape[-1] ** -0.5)"}
        for i, part in enumerate((OWN, CROSS))
    ),
    {STEPS[2]: f"norms[2](x + 0.5 * {FORWARD})"},
    {STEPS[0]: f"norms[0](2 * x + {OWN})"},
    {STEPS[1]: f"norms[1](2 * x + {CROSS})"},
    {STEPS[2]: f"norms[2](2 * x + {FORWARD})"},
)


@decoder_layer.check(points=1)
def each_part_is_called_once(fn, draw: Draw):
    """Both attentions, the feed-forward network and the norms are called once each."""
    *arguments, own, cross, feed_forward, norms = _decoder_layer_arguments(
        draw, draw.mask(2, 3, 3), draw.mask(2, 3, 5), 4
    )
    names = "self_attention", "cross_attention", "feed_forward", "norms[0]", "norms[1]", "norms[2]"
    counted = [Counted(part) for part in (own, cross, feed_forward, *norms)]
    fn(*arguments, *counted[:3], counted[3:])
    expect_each_called_once(dict(zip(names, counted, strict=True)))
