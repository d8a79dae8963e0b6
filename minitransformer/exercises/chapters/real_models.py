"""Chapter 10: the real thing."""

import torch
from torch import Tensor

from minitransformer.checks import expect
from minitransformer.exercises.chapters.encoder import Layer
from minitransformer.exercises.chapters.padding import SIDES
from minitransformer.exercises.exercise import Draw, exercise


@exercise(
    "Rotary positions",
    chapter=10,
    about="""Llama adds no positions: it turns pairs of numbers by an angle that grows with the
        position, so that a score depends on the distance (Su et al. 2021, arXiv:2104.09864).""",
    hints=[
        "A pair (a, b) turned by an angle is (a cos - b sin, b cos + a sin).",
        "Here, as in Llama's weights, column i is paired with column i + width/2, not with i + 1.",
        "a, b = x.chunk(2, dim=-1); angles = positions[:, None, :, None] * theta ** (-2i/width)",
    ],
    inputs=lambda draw: [
        (
            draw.normal(2, 2, 3, 8),
            torch.tensor([[draw.integer(0, 9) for _ in range(3)] for _ in range(2)]),
            theta,
        )
        for theta in (10_000.0, 100.0)
    ],
)
def rotary_positions(x: Tensor, positions: Tensor, theta: float) -> Tensor:
    """Turn the pair (x[i], x[i + width/2]) by position * theta^(-2i/width).

    x: (batch, heads, length, width) float, width even
    positions: (batch, length) int64
    returns: (batch, heads, length, width)
    """
    ### BEGIN SOLUTION
    width = x.shape[-1]
    speeds = theta ** (-torch.arange(0, width, 2, dtype=torch.float64) / width)
    angles = positions[:, None, :, None] * speeds
    cos, sin = angles.cos().to(x.dtype), angles.sin().to(x.dtype)
    a, b = x.chunk(2, dim=-1)
    return torch.cat((a * cos - b * sin, b * cos + a * sin), dim=-1)
    ### END SOLUTION


@rotary_positions.check(points=1)
def position_zero_turns_nothing(fn, draw: Draw):
    """At position 0 x stays as it is."""
    x = draw.normal(1, 1, 2, 4)
    expect(
        torch.allclose(fn(x, torch.zeros(1, 2, dtype=torch.int64), 10_000.0), x),
        "At position 0 the angle is 0, and x should stay as it is.",
    )


@rotary_positions.check(points=1, measures="largest difference of a score")
def a_score_depends_on_the_distance(fn, draw: Draw):
    """A query at 7 and a key at 5 score as they do at 102 and 100."""
    query, key = draw.normal(1, 1, 1, 8), draw.normal(1, 1, 1, 8)

    def score(q: int, k: int) -> float:
        turned = fn(query, torch.tensor([[q]]), 100.0), fn(key, torch.tensor([[k]]), 100.0)
        return float((turned[0] * turned[1]).sum())

    difference = abs(score(7, 5) - score(102, 100))
    expect(
        difference < 1e-3 and abs(score(7, 5) - score(7, 1)) > 1e-3,
        "The score of a query and a key should depend on how far apart they are, and on nothing "
        "else.",
        difference,
    )
    return difference


@rotary_positions.check(points=1)
def halves_are_paired(fn, draw: Draw):
    """Column 0 turns with column width/2, as Llama's weights want it."""
    x = torch.tensor([[[[1.0, 0.0, 0.0, 0.0]]]])
    found = fn(x, torch.tensor([[1]]), 10_000.0).flatten()
    expect(
        abs(float(found[2])) > 0.8 and abs(float(found[1])) < 1e-6,
        "Column 0 was turned into column 1. Llama pairs column 0 with column width/2; with its "
        "weights the other pairing gives fluent nonsense.",
        found=found,
    )


def _embedding(draw: Draw, width: int = 4):
    table = draw.normal(50, width)

    def embedding(input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        return table[input_ids] * (attention_mask != 0)[:, :, None]

    return embedding


class Mixing(Layer):
    """A layer in which every position collects what the mask shows it."""

    def __call__(self, x: Tensor, *others) -> Tensor:
        self.calls.append((x, *others))
        shares = others[0][:, 0].to(x.dtype) if others else torch.ones(1, 1, 1)
        return (x + shares @ (x @ self.weight)).tanh()


def _decoder_inputs(draw: Draw):
    for side in SIDES:
        head = draw.normal(4, 9)
        mask = draw.attention_mask(3, 5, side)
        ids = draw.ids(3, 5) * mask
        layers = [Mixing(draw) for _ in range(2)]
        yield ids, mask, _embedding(draw), layers, lambda x, head=head: x @ head


@exercise(
    "A whole decoder",
    chapter=10,
    about="""Everything together: embed, make the one mask, hand it to every layer, project to the
        vocabulary. That is GPT.""",
    hints=[
        "Make the mask first: padding and causal, as in the exercise of chapter 5.",
        "x = embedding(input_ids, attention_mask); every layer is called as layer(x, mask).",
        "Then head(x). The mask is made here, once, and nowhere below.",
    ],
    inputs=_decoder_inputs,
)
def decoder(input_ids: Tensor, attention_mask: Tensor, embedding, layers, head) -> Tensor:
    """A decoder-only model of given parts.

    input_ids, attention_mask: (batch, length) int64, padded on either side
    embedding(input_ids, attention_mask) -> (batch, length, d_model)
    layers: a list of functions layer(x, mask), mask (batch, 1, length, length) bool
    head(x) -> (batch, length, vocabulary)
    returns: logits (batch, length, vocabulary)
    """
    ### BEGIN SOLUTION
    real = attention_mask != 0
    length = input_ids.shape[1]
    causal = torch.ones(length, length, dtype=torch.bool).tril()
    mask = real[:, None, :, None] & real[:, None, None, :] & causal
    x = embedding(input_ids, attention_mask)
    for layer in layers:
        x = layer(x, mask)
    return head(x)
    ### END SOLUTION


def _masks_given(fn, arguments: tuple) -> list[Tensor]:
    fn(*arguments)
    layers = arguments[3]
    for number, layer in enumerate(layers):
        expect(
            layer.calls and len(layer.calls[0]) == 2,
            f"Layer {number} was not called with x and a mask.",
        )
    return [layer.calls[0][1] for layer in layers]


@decoder.check(points=1)
def the_future_is_hidden_in_every_layer(fn, draw: Draw):
    """No layer's mask shows a token what comes after it."""
    for number, mask in enumerate(_masks_given(fn, next(iter(_decoder_inputs(draw))))):
        later = torch.ones(mask.shape[-2:], dtype=torch.bool).triu(1)
        expect(
            not (mask & later).any(),
            f"In layer {number} tokens see their future: the loss will be wonderful, and what it "
            "writes nonsense.",
            found=mask[0, 0].int(),
        )


@decoder.check(points=1)
def padding_is_hidden_in_every_layer(fn, draw: Draw):
    """No layer's mask shows a token padding, and every real token sees itself."""
    arguments = next(iter(_decoder_inputs(draw)))
    real = arguments[1] != 0
    for number, mask in enumerate(_masks_given(fn, arguments)):
        seen = mask.expand(len(real), 1, *mask.shape[-2:])[:, 0]
        expect(
            not (seen & ~real[:, None, :]).any(),
            f"In layer {number} tokens see padding.",
            found=seen[0].int(),
        )
        itself = seen.diagonal(dim1=1, dim2=2)
        expect(bool(itself[real].all()), f"In layer {number} a real token does not see itself.")
