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
