"""Chapter 6: encoder and decoder."""

import math

import torch
from torch import Tensor

from minitransformer.checks import expect
from minitransformer.exercises.chapters.encoder import Layer, _norm
from minitransformer.exercises.exercise import Draw, exercise


@exercise(
    "Sinusoidal positions",
    chapter=6,
    about="""Attention does not know what stands where. The first transformer added waves of many
        lengths (Vaswani et al. 2017, section 3.5).""",
    hints=[
        "Position p and pair i make one angle: p / 10000^(2i/width).",
        "Column 2i is the sine of angle i, column 2i + 1 its cosine.",
        "table[:, 0::2] = angles.sin(); table[:, 1::2] = angles.cos()",
    ],
    inputs=lambda draw: [(draw.integer(3, 9), 8), (draw.integer(20, 30), 6), (1, 2)],
)
def sinusoidal_positions(length: int, width: int) -> Tensor:
    """sin(p / 10000^(2i/width)) at (p, 2i), and the cosine of the same at (p, 2i + 1).

    width is even
    returns: (length, width) float32
    """
    ### BEGIN SOLUTION
    even = torch.arange(0, width, 2, dtype=torch.float64)
    angles = torch.arange(length)[:, None] / 10_000 ** (even / width)
    return torch.stack((angles.sin(), angles.cos()), dim=-1).flatten(1).float()
    ### END SOLUTION


@sinusoidal_positions.check(points=1)
def sines_and_cosines_alternate(fn, draw: Draw):
    """Position 0 is 0, 1, 0, 1, ..."""
    first = fn(3, 6)[0].tolist()
    expect(
        first == [0.0, 1.0, 0.0, 1.0, 0.0, 1.0],
        f"Position 0 is {first}; 0, 1, 0, 1, 0, 1 is wanted: sine and cosine alternate.",
    )


@sinusoidal_positions.check(points=1)
def the_first_wave_is_the_fastest(fn, draw: Draw):
    """At position 1 the first angle is 1, the last nearly 1 / 10000."""
    row = fn(2, 8)[1]
    expect(
        math.isclose(float(row[0]), math.sin(1.0), abs_tol=1e-5),
        f"At position 1 column 0 is {float(row[0]):.4f}; sin(1) = 0.8415 is wanted.",
    )
    expect(
        math.isclose(float(row[6]), 1e-3, abs_tol=1e-5),
        f"At position 1 column 6 of 8 is {float(row[6]):.6f}; sin(10000^(-6/8)) = 0.001 is "
        "wanted: the exponent is 2i/width, where 2i is the column.",
    )


def _decoder_layer_inputs(draw: Draw):
    for _ in range(2):
        parts = [Layer(draw) for _ in range(3)]
        norms = [_norm(1.5), _norm(0.5), _norm(2.0)]
        x, memory = draw.normal(2, 3, 4), draw.normal(2, 5, 4)
        yield x, draw.mask(2, 3, 3), memory, draw.mask(2, 3, 5), *parts, norms


@exercise(
    "A decoder layer",
    chapter=6,
    about="""An encoder layer with a look at the source in between. Two attentions, two masks, and
        they are easily mixed up.""",
    hints=[
        "Three sublayers: attention to itself, attention to the memory, feed-forward.",
        "In the second the queries come from x and the keys from memory, under memory_mask.",
        "x = norms[1](x + cross_attention(x, memory, memory_mask)) stands in the middle.",
    ],
    inputs=_decoder_layer_inputs,
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

    x: (batch, length, d_model); mask: (batch, 1, length, length) bool
    memory: (batch, source, d_model), what the encoder wrote
    memory_mask: (batch, 1, length, source) bool
    self_attention(x, memory, mask) and cross_attention(x, memory, mask), feed_forward(x), and
    norms, a list of three, are functions
    returns: (batch, length, d_model)
    """
    ### BEGIN SOLUTION
    x = norms[0](x + self_attention(x, x, mask))
    x = norms[1](x + cross_attention(x, memory, memory_mask))
    return norms[2](x + feed_forward(x))
    ### END SOLUTION


@decoder_layer.check(points=1)
def self_attention_looks_at_the_target(fn, draw: Draw):
    """It gets x as queries and as keys, under the target's mask."""
    x, mask, memory, memory_mask, own, cross, forward, norms = next(
        iter(_decoder_layer_inputs(draw))
    )
    fn(x, mask, memory, memory_mask, own, cross, forward, norms)
    expect(len(own.calls) == 1, f"self_attention was called {len(own.calls)} times, not once.")
    asked, keys, seen = own.calls[0]
    expect(
        torch.equal(seen, mask) if seen.shape == mask.shape else False,
        "self_attention did not get `mask`, which hides padding and the future.",
    )
    expect(torch.equal(asked, x) and torch.equal(keys, x), "self_attention gets x and x.")


@decoder_layer.check(points=1)
def cross_attention_looks_at_the_source(fn, draw: Draw):
    """It gets the memory as keys, under the source's mask."""
    x, mask, memory, memory_mask, own, cross, forward, norms = next(
        iter(_decoder_layer_inputs(draw))
    )
    fn(x, mask, memory, memory_mask, own, cross, forward, norms)
    expect(len(cross.calls) == 1, f"cross_attention was called {len(cross.calls)} times, not once.")
    asked, keys, seen = cross.calls[0]
    expect(
        keys.shape == memory.shape and torch.equal(keys, memory),
        "cross_attention did not get the memory as its keys: it looks at the target instead.",
    )
    expect(
        seen.shape == memory_mask.shape and torch.equal(seen, memory_mask),
        "cross_attention did not get memory_mask: it reads the padding of the source.",
    )
    expect(
        asked.shape == x.shape and not torch.equal(asked, x),
        "The queries of cross_attention are what self-attention wrote, not the layer's input.",
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
