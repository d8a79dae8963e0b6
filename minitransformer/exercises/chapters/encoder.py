"""Chapter 4: the encoder, and the mask in every layer."""

import torch
from torch import Tensor

from minitransformer.checks import expect
from minitransformer.exercises.exercise import Draw, exercise


def _feed_forward_inputs(draw: Draw):
    yield draw.normal(2, 3, 4), draw.normal(6, 4), draw.normal(6), draw.normal(4, 6), draw.normal(4)


@exercise(
    "Feed-forward",
    chapter=4,
    about="""Each position by itself: widen, cut off what is negative, narrow (Vaswani et al. 2017,
        equation 2).""",
    hints=[
        "Two linear layers with a relu between them.",
        "Weights are stored as torch stores them, (out, in): x @ weight.T + bias.",
        "(x @ widen.T + widen_bias).relu() @ narrow.T + narrow_bias",
    ],
    inputs=_feed_forward_inputs,
    points=2,
)
def feed_forward(
    x: Tensor, widen: Tensor, widen_bias: Tensor, narrow: Tensor, narrow_bias: Tensor
) -> Tensor:
    """relu(x W1ᵀ + b1) W2ᵀ + b2, at every position by itself.

    x: (batch, length, d_model); widen: (d_ff, d_model); widen_bias: (d_ff,)
    narrow: (d_model, d_ff); narrow_bias: (d_model,)
    returns: (batch, length, d_model)
    """
    ### BEGIN SOLUTION
    return (x @ widen.T + widen_bias).relu() @ narrow.T + narrow_bias
    ### END SOLUTION


@feed_forward.check(points=1)
def what_is_negative_is_cut_off_in_the_middle(fn, draw: Draw):
    """The relu stands between the layers, not behind them."""
    one, zero = torch.ones(1, 1), torch.zeros(1)
    x = torch.tensor([[[-2.0], [3.0]]])
    found = fn(x, one, zero, -one, zero).flatten().tolist()
    expect(
        found == [0.0, -3.0],
        f"For -2 and 3, with weights 1 and then -1, it gives {found}; [0, -3] is wanted: cut off "
        "what is negative between the two layers.",
    )


@feed_forward.check(points=1)
def positions_do_not_meet(fn, draw: Draw):
    """What happens at one position changes no other."""
    x, *weights = next(iter(_feed_forward_inputs(draw)))
    before = fn(x.clone(), *weights)
    x[:, 0] += 5.0
    expect(
        torch.allclose(fn(x, *weights)[:, 1:], before[:, 1:]),
        "The first position was changed, and others changed with it.",
    )


@exercise(
    "Layer norm",
    chapter=4,
    about="""Every vector by itself to mean 0 and variance 1, then stretched and shifted (Ba et al.
        2016, arXiv:1607.06450).""",
    hints=[
        "Mean and variance along the last axis, with keepdim=True.",
        "torch's var divides by n - 1 unless you say correction=0.",
        "(x - mean) / (variance + eps).sqrt() * gain + bias",
    ],
    inputs=lambda draw: [
        (draw.normal(2, 3, 5), draw.normal(5), draw.normal(5), 1e-5),
        (draw.normal(4, 6) * 3 + 1, draw.normal(6), draw.normal(6), 1e-5),
    ],
    forbidden=("layer_norm", "batch_norm", "group_norm"),
)
def layer_norm(x: Tensor, gain: Tensor, bias: Tensor, eps: float) -> Tensor:
    """(x - mean) / sqrt(variance + eps) * gain + bias along the last axis.

    The variance is that of the vector itself: it is divided by n, not by n - 1.

    x: (..., width); gain and bias: (width,)
    returns: (..., width)
    """
    ### BEGIN SOLUTION
    centred = x - x.mean(dim=-1, keepdim=True)
    variance = centred.square().mean(dim=-1, keepdim=True)
    return centred / (variance + eps).sqrt() * gain + bias
    ### END SOLUTION


@layer_norm.check(points=1)
def the_variance_is_divided_by_n(fn, draw: Draw):
    """Of [1, -1] the norm is [1, -1] itself."""
    found = fn(torch.tensor([[1.0, -1.0]]), torch.ones(2), torch.zeros(2), 0.0)
    expect(
        torch.allclose(found, torch.tensor([[1.0, -1.0]])),
        f"The norm of [1, -1] is {[round(x, 4) for x in found[0].tolist()]}; [1, -1] is wanted. "
        "Divide the squares by n, not by n - 1 (torch: correction=0).",
    )


@layer_norm.check(points=1)
def a_constant_vector_is_no_division_by_zero(fn, draw: Draw):
    """eps stands under the root, so a vector of equal numbers gives the bias."""
    bias = draw.normal(3)
    found = fn(torch.full((1, 3), 7.0), torch.ones(3), bias, 1e-5)
    expect(
        torch.allclose(found, bias, atol=1e-3),
        "Of a vector of equal numbers the norm should be the bias.",
    )
    small = fn(torch.tensor([[1e-3, -1e-3]]), torch.ones(2), torch.zeros(2), 1e-5)[0, 0]
    expect(
        abs(float(small) - 1e-3 / (1e-6 + 1e-5) ** 0.5) < 1e-4,
        "For small vectors it matters where eps stands: under the root, sqrt(variance + eps).",
    )


@exercise(
    "RMS norm",
    chapter=4,
    about="""The same without the mean, as in Llama (Zhang and Sennrich 2019, arXiv:1910.07467).""",
    hints=[
        "Divide by the root of the mean of the squares.",
        "No mean is subtracted, and there is no bias; eps stands under the root.",
        "x / (x.square().mean(dim=-1, keepdim=True) + eps).sqrt() * gain",
    ],
    inputs=lambda draw: [
        (draw.normal(2, 3, 5) + 1, draw.normal(5), 1e-5),
        (draw.normal(4, 6) * 3, draw.normal(6), 1e-6),
    ],
    forbidden=("rms_norm", "layer_norm"),
)
def rms_norm(x: Tensor, gain: Tensor, eps: float) -> Tensor:
    """x / sqrt(mean(x²) + eps) * gain along the last axis.

    x: (..., width); gain: (width,)
    returns: (..., width)
    """
    ### BEGIN SOLUTION
    return x / (x.square().mean(dim=-1, keepdim=True) + eps).sqrt() * gain
    ### END SOLUTION


@rms_norm.check(points=1)
def no_mean_is_subtracted(fn, draw: Draw):
    """A vector of equal numbers becomes ones."""
    found = fn(torch.full((1, 4), 3.0), torch.ones(4), 0.0)
    expect(
        torch.allclose(found, torch.ones(1, 4)),
        f"Four 3s become {found[0].tolist()}; ones are wanted. This norm keeps the mean.",
    )


@rms_norm.check(points=1)
def eps_stands_under_the_root(fn, draw: Draw):
    """For tiny vectors eps decides, and it is added before the root."""
    found = float(fn(torch.full((1, 2), 1e-3), torch.ones(2), 1e-4)[0, 0])
    expect(
        abs(found - 1e-3 / (1e-6 + 1e-4) ** 0.5) < 1e-4,
        "For small vectors it matters where eps stands: under the root.",
    )


class Layer:
    """Stands for attention or another part of a model, and remembers what it was called with."""

    def __init__(self, draw: Draw, width: int = 4):
        self.weight = draw.normal(width, width) / width
        self.calls: list[tuple] = []

    def __call__(self, x: Tensor, *others) -> Tensor:
        self.calls.append((x, *others))
        tensors = [other for other in others if isinstance(other, Tensor)]
        x = x @ self.weight
        for number, other in enumerate(tensors, 2):
            x = x + number * other.double().mean().to(x.dtype)
        return x.tanh()


def _norm(gain: float):
    return lambda x: torch.nn.functional.normalize(x, dim=-1) * gain


def _encoder_layer_inputs(draw: Draw):
    for _ in range(2):
        parts = Layer(draw), Layer(draw), _norm(1.5), _norm(0.5)
        yield draw.normal(2, 3, 4), draw.mask(2, 3, 3), *parts


@exercise(
    "An encoder layer",
    chapter=4,
    about="""Collect from the others, then think it over; each with what was there added, and a
        norm behind the sum, as in 2017. The parts are given: put them together.""",
    hints=[
        "Two sublayers: attention, then feed_forward. Each is added to what went into it.",
        "Self-attention gets x twice: as what asks and as what is asked. And the mask.",
        "x = norm1(x + attention(x, x, mask)), then the same with feed_forward and norm2.",
    ],
    inputs=_encoder_layer_inputs,
)
def encoder_layer(x: Tensor, mask: Tensor, attention, feed_forward, norm1, norm2) -> Tensor:
    """norm(x + sublayer(x)), for attention and then for feed_forward.

    x: (batch, length, d_model)
    mask: (batch, 1, length, length) bool
    attention(x, memory, mask), feed_forward(x), norm1(x) and norm2(x) are functions
    returns: (batch, length, d_model)
    """
    ### BEGIN SOLUTION
    x = norm1(x + attention(x, x, mask))
    return norm2(x + feed_forward(x))
    ### END SOLUTION


@encoder_layer.check(points=1)
def attention_gets_the_mask(fn, draw: Draw):
    """Attention is called once, with x, x and the mask."""
    x, mask, attention, *others = next(iter(_encoder_layer_inputs(draw)))
    fn(x, mask, attention, *others)
    calls = attention.calls
    expect(len(calls) == 1, f"attention was called {len(calls)} times; once is wanted.")
    expect(len(calls[0]) == 3, "attention takes x, memory and mask; hand on all three.")
    expect(
        torch.equal(calls[0][2], mask),
        "attention did not get the mask as it was given to the layer.",
    )
    expect(
        torch.equal(calls[0][0], x) and torch.equal(calls[0][1], x),
        "attention should get x itself, twice: here queries and keys are the same positions, and "
        "the norm stands behind the sum.",
    )


@encoder_layer.check(points=1)
def what_was_there_is_added(fn, draw: Draw):
    """With sublayers that give zeros, x goes through."""
    x, mask = draw.normal(1, 2, 4), draw.mask(1, 2, 2)

    def nothing(x, *others):
        return torch.zeros_like(x)

    def same(x):
        return x

    expect(
        torch.equal(fn(x.clone(), mask, nothing, nothing, same, same), x),
        "With sublayers that give zeros and norms that do nothing, x should come out as it went "
        "in: add each sublayer's output to its input.",
    )


def _encoder_stack_inputs(draw: Draw):
    for count in (1, 3):
        yield draw.normal(2, 3, 4), draw.mask(2, 3, 3), [Layer(draw) for _ in range(count)]


@exercise(
    "The mask, threaded through a stack",
    chapter=4,
    about="""The layers one after the other, each with the mask. Forgetting it anywhere lets padding
        in: its positions hold something after the first layer.""",
    hints=[
        "A loop: what comes out of one layer goes into the next.",
        "Every layer takes the same mask. There is no layer that needs none.",
        "for layer in layers: x = layer(x, mask)",
    ],
    inputs=_encoder_stack_inputs,
    points=1,
)
def encoder_stack(x: Tensor, mask: Tensor, layers) -> Tensor:
    """Each layer reads what the one before it wrote, and gets the mask.

    x: (batch, length, d_model); mask: (batch, 1, length, length) bool
    layers: a list of functions layer(x, mask) -> (batch, length, d_model)
    returns: (batch, length, d_model)
    """
    ### BEGIN SOLUTION
    for layer in layers:
        x = layer(x, mask)
    return x
    ### END SOLUTION


@encoder_stack.check(points=2)
def every_layer_gets_the_mask(fn, draw: Draw):
    """The mask that the stack was given reaches each layer, unchanged."""
    x, mask, layers = draw.normal(1, 3, 4), draw.mask(1, 3, 3), [Layer(draw) for _ in range(4)]
    fn(x, mask, layers)
    for number, layer in enumerate(layers):
        expect(layer.calls, f"Layer {number} was never called.")
        expect(
            all(len(c) == 2 and isinstance(c[1], Tensor) for c in layer.calls),
            f"Layer {number} got no mask. After layer 0 the padded positions hold vectors like any "
            "other: without the mask every layer reads them.",
        )
        expect(
            all(torch.equal(c[1], mask) for c in layer.calls),
            f"Layer {number} got another mask than the stack did.",
        )


@encoder_stack.check(points=1)
def layers_are_called_once_each_in_order(fn, draw: Draw):
    """Layer i reads what layer i - 1 wrote."""
    x, mask, layers = draw.normal(1, 3, 4), draw.mask(1, 3, 3), [Layer(draw) for _ in range(3)]
    fn(x, mask, layers)
    counts = [len(layer.calls) for layer in layers]
    expect(counts == [1, 1, 1], f"The layers were called {counts} times; once each is wanted.")
    for number in (1, 2):
        wrote = layers[number - 1].calls[0]
        wanted = Layer.__call__(layers[number - 1], *wrote)
        expect(
            torch.allclose(layers[number].calls[0][0], wanted),
            f"Layer {number} did not read what layer {number - 1} wrote.",
        )
