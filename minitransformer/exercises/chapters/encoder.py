"""Chapter 4: the encoder, and the mask in every layer."""

from collections.abc import Callable

import torch
from torch import Tensor

from minitransformer.checks import AttentionSubject, expect
from minitransformer.exercises.chapters.attention import (
    OF_THE_SCORES,
    attention_arguments,
    attention_inputs,
    largest_is_masked,
)
from minitransformer.exercises.exercise import Draw, Inputs, exercise


def _feed_forward_arguments(draw: Draw, batch: int, length: int, d_model: int, d_ff: int) -> tuple:
    widen, narrow = draw.normal(d_ff, d_model), draw.normal(d_model, d_ff)
    return (
        draw.normal(batch, length, d_model),
        widen,
        draw.normal(d_ff),
        narrow,
        draw.normal(d_model),
    )


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
    inputs=lambda draw: {
        "two tokens of one number, weights of 1 and -1, and no biases": (
            torch.tensor([[[-2.0], [9.0]]]),
            *(torch.ones(1, 1), torch.zeros(1), -torch.ones(1, 1), torch.zeros(1)),
        ),
        "one token, and two numbers in every layer": _feed_forward_arguments(draw, 1, 1, 2, 2),
        "one token that is widened from 2 to 3": _feed_forward_arguments(draw, 1, 1, 2, 3),
        "two sequences of three tokens": _feed_forward_arguments(draw, 2, 3, 4, 6),
    },
    points=3,
)
def feed_forward(
    x: Tensor, widen: Tensor, widen_bias: Tensor, narrow: Tensor, narrow_bias: Tensor
) -> Tensor:
    """relu(x W1ᵀ + b1) W2ᵀ + b2, at every position by itself.

    W1 and b1 are widen and widen_bias, W2 and b2 are narrow and narrow_bias.

    x: (batch, length, d_model); widen: (d_ff, d_model); widen_bias: (d_ff,)
    narrow: (d_model, d_ff); narrow_bias: (d_model,)
    returns: (batch, length, d_model)
    """
    ### BEGIN SOLUTION
    return (x @ widen.T + widen_bias).relu() @ narrow.T + narrow_bias
    ### END SOLUTION


WIDENED = "(x @ widen.T + widen_bias)"
NARROWED = "(x @ widen.T + widen_bias).relu() @ narrow.T + narrow_bias"
feed_forward.mistake(
    """There is no relu: two linear layers in a row are no more than one linear layer. Put it
    between them.""",
    {".relu()": ""},
)
feed_forward.mistake(
    """The relu stands behind the second layer. It belongs between the two; what comes out may be
    negative.""",
    {NARROWED: f"({WIDENED} @ narrow.T + narrow_bias).relu()"},
)
feed_forward.mistake(
    """There is a relu behind the second layer as well: what comes out may be negative.""",
    {NARROWED: f"({NARROWED}).relu()"},
)
feed_forward.mistake(
    """The relu cuts off x before the first layer. It belongs between the two layers.""",
    {NARROWED: "(x.relu() @ widen.T + widen_bias) @ narrow.T + narrow_bias"},
    {NARROWED: "x.relu() @ widen.T @ narrow.T + narrow_bias + widen_bias @ narrow.T"},
)
feed_forward.mistake(
    "The bias of the first layer, widen_bias, is not added.",
    {" + widen_bias": ""},
)
feed_forward.mistake(
    "The bias of the second layer, narrow_bias, is not added.",
    {" + narrow_bias": ""},
)
feed_forward.mistake(
    "widen_bias is added behind the relu. It is part of the first layer: add it before.",
    {f"{WIDENED}.relu()": "((x @ widen.T).relu() + widen_bias)"},
)
feed_forward.mistake(
    """Something else than a relu stands between the layers. relu makes negative numbers 0 and
    leaves the others as they are: x.relu() or x.clamp(min=0).""",
    *(
        {f"{WIDENED}.relu()": f"F.{name}{WIDENED}"}
        for name in ("gelu", "silu", "leaky_relu", "elu")
    ),
    *({".relu()": f".{name}()"} for name in ("sigmoid", "tanh", "abs", "square", "exp")),
    {f"{WIDENED}.relu()": f"F.gelu({WIDENED}, approximate='tanh')"},
    {".relu()": ".softmax(dim=-1)"},
    {".relu()": ".clamp(0, 1)"},
    {".relu()": ".clamp(0, 6)"},
    {f"{WIDENED}.relu()": f"F.softplus({WIDENED})"},
    {".relu()": ".relu().square()"},
    {".relu()": ".sin()"},
)
feed_forward.mistake(
    """Dropout is left on: numbers are set to 0 at random, and the others enlarged to make up for
    it. The task has none, and in evaluation there is none.""",
    *({f"{WIDENED}.relu()": f"F.dropout({WIDENED}.relu(), {p})"} for p in (0.1, 0.2, 0.5)),
    *({NARROWED: f"F.dropout({NARROWED}, {p})"} for p in (0.1, 0.2, 0.5)),
)
feed_forward.mistake(
    """A weight is reshaped, where it should be transposed. The shape is that of the transposed, but
    the numbers stand in other places: .T exchanges the axes.""",
    {
        "widen.T": "widen.reshape(widen.shape[::-1])",
        "narrow.T": "narrow.reshape(narrow.shape[::-1])",
    },
    {"widen.T": "widen.reshape(widen.shape[::-1])"},
    {"narrow.T": "narrow.reshape(narrow.shape[::-1])"},
)
feed_forward.mistake(
    """The numbers between the layers, or what comes out, are normalized or scaled. That is not this
    network's: norms stand around it.""",
    {f"{WIDENED}.relu()": f"F.layer_norm({WIDENED}, widen_bias.shape).relu()"},
    {NARROWED: f"F.layer_norm({NARROWED}, narrow_bias.shape)"},
    {NARROWED: f"({NARROWED}) / x.shape[-1] ** 0.5"},
    {NARROWED: f"({NARROWED}) * x.shape[-1] ** 0.5"},
)
feed_forward.mistake(
    """One weight does the work of both: its shape fits without being transposed, but each layer has
    a weight of its own.""",
    {"narrow.T": "widen"},
    {"widen.T": "narrow"},
)
feed_forward.mistake(
    "Neither bias is added.",
    {" + widen_bias": "", " + narrow_bias": ""},
)
feed_forward.mistake(
    """What is positive is cut off, and what is negative stays: relu keeps the positive numbers.""",
    {".relu()": ".clamp(max=0)"},
    {f"{WIDENED}.relu()": f"(-{WIDENED}).relu()"},
)
feed_forward.mistake(
    """A weight is not transposed. torch stores weights as (out, in), so a layer is
    x @ weight.T + bias; where both sizes are equal, no error says so.""",
    {"widen.T": "widen", "narrow.T": "narrow"},
    {"widen.T": "widen"},
    {"narrow.T": "narrow"},
)
feed_forward.mistake(
    """x is added to what comes out. That residual connection is the encoder layer's: this is the
    network alone.""",
    {NARROWED: f"x + {NARROWED}"},
    {NARROWED: f"F.layer_norm(x + {NARROWED}, x.shape[-1:])"},
)
feed_forward.mistake(
    """Positions meet: a sum or a mean over the tokens, or over the batch, comes into it. Every
    token goes through the network by itself.""",
    {"(x @ widen.T": "((x + x.mean(dim=1, keepdim=True)) @ widen.T"},
    {NARROWED: f"({NARROWED}).mean(dim=1, keepdim=True).expand_as(x)"},
    {NARROWED: f"({NARROWED}).mean(dim=1)"},
    {NARROWED: f"({NARROWED}).sum(dim=1)"},
    {NARROWED: f"({NARROWED}).mean(dim=0)"},
)
feed_forward.mistake(
    """The second layer is missing: these are the numbers between the layers, d_ff of them for each
    token.""",
    {" @ narrow.T + narrow_bias": ""},
)


def _norm_inputs(draw: Draw, by_hand: tuple[float, float]) -> dict[str, tuple[Tensor, Tensor]]:
    """By name, x and a gain: the simplest can be computed by hand."""
    return {
        f"the vector {by_hand}": (torch.tensor([by_hand]), torch.ones(2)),
        "one vector and a gain": (draw.normal(1, 5), draw.normal(5)),
        "three vectors far from 0": (draw.normal(3, 3) * 3 + 5, draw.normal(3)),
        "another axis in front": (draw.normal(2, 3, 6), draw.normal(6)),
        "a vector without an axis in front": (draw.normal(7), draw.normal(7)),
    }


NUMBERS_OF_OUR_OWN = ("1e-5", "1e-6", "1e-8", "1e-12", "1e-3")


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
    inputs=lambda draw: {
        name: (x, gain, torch.zeros(2) if x.shape[-1] == 2 else draw.normal(len(gain)), eps)
        for eps, (name, (x, gain)) in zip(
            (0.0, 1e-5, 1e-6, 1e-5, 1e-5), _norm_inputs(draw, (2.0, 4.0)).items(), strict=True
        )
    },
    edges=lambda draw: {
        "an eps of 0.3": (draw.normal(2, 3, 4) / 2, draw.normal(4), draw.normal(4), 0.3),
        "equal numbers in a vector": (torch.full((1, 3), 7.0), *draw.normal(2, 3), 1e-5),
        "a mean of 5,000": (
            torch.tensor([[5003.0, 4998.0, 5001.0, 4998.0], [5004.0, 4999.0, 5001.0, 4996.0]]),
            *draw.normal(2, 4),
            1e-5,
        ),
        "float64": (*(draw.normal(*n, dtype=torch.float64) for n in ((2, 3), (3,), (3,))), 1e-5),
    },
    forbidden=("layer_norm", "batch_norm", "group_norm"),
)
def layer_norm(x: Tensor, gain: Tensor, bias: Tensor, eps: float) -> Tensor:
    """(x - mean) / sqrt(variance + eps) * gain + bias along the last axis.

    Each vector has a mean and a variance of its own. The variance is the mean of the squares
    (x - mean)²: their sum is divided by n, the width, not by n - 1. A mean as large as 5,000 costs
    no precision: subtract it before anything is squared.

    x: (..., width); gain and bias: (width,), of the dtype of x
    returns: as x, in shape and dtype
    """
    ### BEGIN SOLUTION
    centred = x - x.mean(dim=-1, keepdim=True)
    variance = centred.square().mean(dim=-1, keepdim=True)
    return centred / (variance + eps).sqrt() * gain + bias
    ### END SOLUTION


CENTRED = "x - x.mean(dim=-1, keepdim=True)"
VARIANCE = "centred.square().mean(dim=-1, keepdim=True)"
ROOT = "(variance + eps).sqrt()"
NORM = f"centred / {ROOT} * gain + bias"
SQUARED_MEAN = "x.mean(dim=-1, keepdim=True).square()"
layer_norm.mistake(
    """The variance is divided by n - 1, as torch's var and std do unless told correction=0. Divide
    by n.""",
    {VARIANCE: "x.var(dim=-1, keepdim=True)"},
)
layer_norm.mistake(
    """eps is added behind the root. It stands under it, sqrt(variance + eps); where the variance is
    small, that is another number.""",
    {ROOT: "(variance.sqrt() + eps)"},
)
layer_norm.mistake(
    "eps is left out: a vector of equal numbers has the variance 0, and 0 / 0 is NaN.",
    {" + eps": ""},
)
layer_norm.mistake(
    "The eps that is given is not used: another number stands in its place.",
    *({"+ eps": f"+ {number}"} for number in NUMBERS_OF_OUR_OWN),
    {"+ eps": "+ eps**2"},
    {ROOT: "variance.clamp(min=eps).sqrt()"},
)
layer_norm.mistake(
    "The gain is missing: each column of the normalized vectors is multiplied by its own number.",
    {" * gain": ""},
)
layer_norm.mistake("The bias is missing: it is added at the end.", {" + bias": ""})
layer_norm.mistake(
    "Gain and bias are missing: the normalized vectors are stretched by one, shifted by the other.",
    {" * gain + bias": ""},
)
layer_norm.mistake(
    "Gain and bias have changed places: the gain is multiplied with, the bias added.",
    {"gain + bias": "bias + gain"},
)
layer_norm.mistake(
    "The bias is multiplied with the gain as well. Multiply first, then add the bias.",
    {NORM: f"(centred / {ROOT} + bias) * gain"},
)
layer_norm.mistake(
    "Gain and bias come before the norm, which undoes most of them. They come after it.",
    {"centred = x": "x = bias + gain * x\n    centred = x", " * gain + bias": ""},
)
layer_norm.mistake(
    """Mean or variance is that of the whole tensor. Each vector has its own, along the last
    axis.""",
    {"x.mean(dim=-1, keepdim=True)": "x.mean()", VARIANCE: "centred.square().mean()"},
    {"x.mean(dim=-1, keepdim=True)": "x.mean()"},
    {VARIANCE: "centred.square().mean()"},
    {VARIANCE: "x.var(correction=0)"},
)
layer_norm.mistake(
    """It runs along another axis, or more than one: over the batch, over the tokens. Each vector is
    normalized by itself, along the last axis.""",
    *({"dim=-1": f"dim={dim}"} for dim in ("0", "1", "-2", "(0, 1)", "(-2, -1)", "(1, 2)")),
    {"dim=-1": "dim=tuple(range(1, x.ndim))"},
    {"dim=-1": "dim=tuple(range(x.ndim - 1))"},
)
layer_norm.mistake(
    """The mean is not subtracted from what is divided: the vectors that come out do not have the
    mean 0 before gain and bias.""",
    {CENTRED: "x"},
    {"return centred": "return x"},
)
layer_norm.mistake(
    """What is under the root is not the variance: of the mean of x² the square of the mean must be
    taken off. Or take the mean of (x - mean)².""",
    {VARIANCE: "x.square().mean(dim=-1, keepdim=True)"},
    {VARIANCE: "(x.square().mean(dim=-1, keepdim=True) - x.mean(dim=-1, keepdim=True))"},
    {VARIANCE: "(x.square().mean(dim=-1, keepdim=True) - x.mean(dim=-1, keepdim=True).abs())"},
)
layer_norm.mistake(
    """It is divided by the mean of |x - mean|. Square first, average, then take the root: that is
    the standard deviation.""",
    {ROOT: "(centred.abs().mean(dim=-1, keepdim=True) + eps)"},
    {ROOT: "centred.abs().mean(dim=-1, keepdim=True)"},
)
layer_norm.mistake(
    "Only the mean is divided: brackets are missing. (x - mean) is divided as a whole.",
    {f"centred / {ROOT}": f"x - x.mean(dim=-1, keepdim=True) / {ROOT}"},
    {NORM: f"x - x.mean(dim=-1, keepdim=True) / {ROOT} + bias"},
)
layer_norm.mistake(
    "Gain and bias are added first: it is norm * gain + bias, without brackets.",
    {"* gain + bias": "* (gain + bias)"},
)
layer_norm.mistake(
    "It is divided by the variance. Divide by its root, the standard deviation.",
    {".sqrt()": ""},
)
layer_norm.mistake(
    "The mean is subtracted, and that is all: divide by the root of the variance too.",
    {f" / {ROOT}": ""},
)
layer_norm.mistake(
    "It is multiplied by the root of the variance. Divide by it.",
    {f"/ {ROOT}": f"* {ROOT}"},
)
layer_norm.mistake(
    """The squares are summed, not averaged: the variance is their sum divided by the width.""",
    {".square().mean(": ".square().sum("},
)
layer_norm.mistake(
    """The gain counts from 1: it is 1 + gain that is multiplied with. Some models store it so; here
    it is the gain itself.""",
    {"* gain": "* (1 + gain)"},
)
layer_norm.mistake(
    "The vectors are scaled by their smallest and largest numbers, not by mean and variance.",
    {
        NORM: "(x - x.amin(-1, keepdim=True)) / (x.amax(-1, keepdim=True) - "
        "x.amin(-1, keepdim=True) + eps) * gain + bias"
    },
    {
        NORM: "(x - x.amin(-1, keepdim=True)) / (x.amax(-1, keepdim=True) - "
        "x.amin(-1, keepdim=True)) * gain + bias"
    },
)
layer_norm.mistake(
    "What comes out is float32 whatever x is. Give back the dtype of x.",
    {NORM: f"({NORM}).float()"},
)
layer_norm.mistake(
    """The variance is taken as mean(x²) - mean(x)². On paper that is the same; but where the mean
    is large, both are, and rounding leaves little of their difference. Subtract the mean first.""",
    *(
        {VARIANCE: f"(x.square().mean(dim=-1, keepdim=True) - {SQUARED_MEAN}){kept}"}
        for kept in ("", ".clamp(min=0)", ".abs()")
    ),
)
layer_norm.mistake(
    "The gain comes before the norm, which undoes most of it. It comes after.",
    {"centred = x": "x = gain * x\n    centred = x", " * gain": ""},
)
layer_norm.mistake(
    """Without keepdim=True the axis is gone that held a number for each vector, and the numbers of
    the vectors meet the columns. Where both sizes are equal no error says so.""",
    {", keepdim=True": ""},
    {VARIANCE: "centred.square().mean(dim=-1)"},
    {CENTRED: "x - x.mean(dim=-1)", VARIANCE: "x.var(dim=-1, correction=0)"},
    {CENTRED: "x - x.mean(dim=-1)", VARIANCE: "x.var(dim=-1)"},
    {CENTRED: "x - x.mean(dim=-1)"},
)
layer_norm.mistake(
    """The squares are divided by something else than how many there are, such as n + 1.""",
    {VARIANCE: "centred.square().sum(dim=-1, keepdim=True) / (x.shape[-1] + 1)"},
)
layer_norm.mistake(
    """The vectors are divided by their length, as for comparing directions, not by the standard
    deviation.""",
    {f"centred / {ROOT}": "F.normalize(x, dim=-1)"},
    {f"centred / {ROOT}": "F.normalize(centred, dim=-1)"},
)
layer_norm.mistake(
    """eps is added to what is divided, or to what comes out, too. It stands under the root
    alone.""",
    {"return centred": "return (centred + eps)"},
    {NORM: f"{NORM} + eps"},
)


@exercise(
    "RMS norm",
    chapter=4,
    about="""Layer norm without the mean and without the bias, as in Llama: every vector is divided
        by its root mean square (Zhang and Sennrich 2019, arXiv:1910.07467).""",
    hints=[
        "Divide by the root of the mean of the squares.",
        "No mean is subtracted, and there is no bias; eps stands under the root.",
        "x / (x.square().mean(dim=-1, keepdim=True) + eps).sqrt() * gain",
    ],
    inputs=lambda draw: {
        name: (x, gain, eps)
        for eps, (name, (x, gain)) in zip(
            (0.0, 1e-5, 1e-6, 1e-5, 1e-5), _norm_inputs(draw, (1.0, 7.0)).items(), strict=True
        )
    },
    edges=lambda draw: {
        "an eps of 0.3": (draw.normal(2, 3, 4) / 2, draw.normal(4), 0.3),
        "a vector of zeros": (torch.zeros(1, 3), draw.normal(3), 1e-5),
        "float64": (*(draw.normal(*n, dtype=torch.float64) for n in ((2, 3), (3,))), 1e-5),
    },
    forbidden=("rms_norm", "layer_norm"),
)
def rms_norm(x: Tensor, gain: Tensor, eps: float) -> Tensor:
    """x / sqrt(mean(x²) + eps) * gain, each vector by itself, along the last axis.

    x: (..., width); gain: (width,), of the dtype of x
    returns: as x, in shape and dtype
    """
    ### BEGIN SOLUTION
    return x / (x.square().mean(dim=-1, keepdim=True) + eps).sqrt() * gain
    ### END SOLUTION


SQUARES = "x.square().mean(dim=-1, keepdim=True)"
RMS = f"({SQUARES} + eps).sqrt()"
rms_norm.mistake(
    """The mean is subtracted, as in layer norm. This norm leaves the mean where it is: divide x
    itself by the root of the mean of x².""",
    {"return x / (x": f"x = {CENTRED}\n    return x / (x"},
    {"return x": f"return ({CENTRED})"},
)
rms_norm.mistake(
    """It is divided by the standard deviation, from which the mean is taken off. What belongs there
    is the root of the mean of x² itself.""",
    {SQUARES: "x.var(dim=-1, keepdim=True)"},
    {SQUARES: "x.var(dim=-1, keepdim=True, correction=0)"},
)
rms_norm.mistake(
    """eps is added behind the root. It stands under it, sqrt(mean(x²) + eps); where x is small,
    that is another number.""",
    {RMS: f"({SQUARES}.sqrt() + eps)"},
)
rms_norm.mistake(
    """eps is added to x before it is squared. It is added to the mean of the squares.""",
    {SQUARES: "(x + eps).square().mean(dim=-1, keepdim=True)", " + eps).sqrt()": ").sqrt()"},
    {SQUARES: "(x.abs() + eps).square().mean(dim=-1, keepdim=True)", " + eps).sqrt()": ").sqrt()"},
    {RMS: f"{SQUARES.replace('x.', '(x + eps).')}.sqrt()"},
)
rms_norm.mistake(
    """Without keepdim=True the axis is gone that held a number for each vector, and the numbers of
    the vectors meet the columns. Where both sizes are equal no error says so.""",
    {", keepdim=True": ""},
)
rms_norm.mistake("eps is left out: a vector of zeros gives 0 / 0, NaN.", {" + eps": ""})
rms_norm.mistake(
    "The eps that is given is not used: another number stands in its place.",
    *({"+ eps": f"+ {number}"} for number in NUMBERS_OF_OUR_OWN),
    {"+ eps": "+ eps**2"},
    {RMS: f"{SQUARES}.clamp(min=eps).sqrt()"},
)
rms_norm.mistake(
    """The squares are summed, not averaged: this divides by the length of the vector. Divide their
    sum by the width first.""",
    {".mean(": ".sum("},
)
rms_norm.mistake("It is divided by the mean of the squares. The root is missing.", {".sqrt()": ""})
rms_norm.mistake("The gain is missing: multiply each column by its own number.", {" * gain": ""})
rms_norm.mistake(
    """The mean is that of the whole tensor. Each vector has its own, along the last axis.""",
    {".mean(dim=-1, keepdim=True)": ".mean()"},
)
rms_norm.mistake(
    """It runs along another axis, or more than one: over the batch, over the tokens. Each vector is
    normalized by itself, along the last axis.""",
    *({"dim=-1": f"dim={dim}"} for dim in ("0", "1", "-2", "(0, 1)", "(-2, -1)", "(1, 2)")),
    {"dim=-1": "dim=tuple(range(1, x.ndim))"},
    {"dim=-1": "dim=tuple(range(x.ndim - 1))"},
)
rms_norm.mistake(
    "It is multiplied by the root. Divide by it.",
    {f"x / {RMS}": f"x * {RMS}"},
)
rms_norm.mistake(
    "It is divided by the mean of |x|. Square first, average, then take the root.",
    {RMS: "(x.abs().mean(dim=-1, keepdim=True) + eps)"},
    {SQUARES: "x.abs().mean(dim=-1, keepdim=True).square()"},
    {RMS: "x.abs().mean(dim=-1, keepdim=True)"},
)
rms_norm.mistake(
    "The mean is squared, in place of the mean of the squares: first square, then average.",
    {"x.square().mean(dim=-1, keepdim=True)": "x.mean(dim=-1, keepdim=True).square()"},
)
rms_norm.mistake(
    "The squares are missing under the root: it is the mean of x, and may be negative.",
    {"x.square().mean": "x.mean"},
)
rms_norm.mistake(
    """The gain counts from 1: it is 1 + gain that is multiplied with, as Gemma stores it. Here it
    is the gain itself.""",
    {"* gain": "* (1 + gain)"},
)
rms_norm.mistake(
    "The gain comes before the norm, which undoes most of it. It comes after.",
    {"return x / (x": "x = gain * x\n    return x / (x", " * gain\n": "\n"},
)
rms_norm.mistake(
    "What comes out is float32 whatever x is. Give back the dtype of x.",
    {f"x / {RMS} * gain": f"(x / {RMS} * gain).float()"},
)
rms_norm.mistake(
    "Something is added at the end, the gain or a 1. This norm has no bias.",
    {" * gain\n": " + gain\n"},
    {" * gain\n": " * gain + gain\n"},
)
rms_norm.mistake(
    "It is divided by the largest number of the vector, not by the root of the mean of x².",
    {RMS: "x.abs().amax(dim=-1, keepdim=True)"},
    {RMS: "(x.abs().amax(dim=-1, keepdim=True) + eps)"},
)


# ---- stand-ins for the parts of a model ----------------------------------------------------------


class Attention:
    """Stands for attention: of memory, every query collects what the mask shows it."""

    def __init__(self, draw: Draw, width: int):
        self.scores, self.values = draw.normal(2, width, width)

    def __call__(self, x: Tensor, memory: Tensor, mask: Tensor | None = None) -> Tensor:
        if not memory.is_floating_point():
            raise TypeError("attention takes x, memory and mask: in place of memory it got a mask")
        weights = (x @ self.scores @ memory.mT).sigmoid()
        if mask is not None:
            shown = mask.broadcast_to(len(x), 1, *weights.shape[1:])[:, 0]
            weights = weights.masked_fill(~shown, 0.0)
        return weights / (1 + weights.sum(dim=-1, keepdim=True)) @ memory @ self.values


class Layer(Attention):
    """Stands for a layer: self-attention, added to what was there, and a bias, padding or not."""

    def __init__(self, draw: Draw, width: int):
        super().__init__(draw, width)
        self.bias = draw.normal(width)

    def __call__(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        return (x + super().__call__(x, x, mask) + self.bias).tanh()


class Counted:
    """A part of a model that counts how often it is called."""

    def __init__(self, part: Callable):
        self.part, self.calls = part, 0

    def __call__(self, *arguments, **flags) -> Tensor:
        self.calls += 1
        return self.part(*arguments, **flags)


def position_wise(draw: Draw, width: int) -> Callable[[Tensor], Tensor]:
    """Stands for a feed-forward network."""
    weight = draw.normal(width, width)
    return lambda x: (x @ weight).tanh()


def norm(draw: Draw, width: int) -> Callable[[Tensor], Tensor]:
    """Stands for a norm: each has a gain and a bias of its own."""
    gain, bias = draw.normal(2, width)
    return lambda x: x * (gain.abs() + 0.5) + bias


def everything(batch: int, queries: int, keys: int) -> Tensor:
    """A mask that hides nothing."""
    return torch.ones(batch, 1, queries, keys, dtype=torch.bool)


def expect_each_called_once(parts: dict[str, Counted]) -> None:
    for name, part in parts.items():
        expect(part.calls == 1, f"{name} is called {part.calls} times where once is wanted.")


def _encoder_layer_arguments(draw: Draw, mask: Tensor, width: int = 4) -> tuple:
    parts = Attention(draw, width), position_wise(draw, width)
    norms = norm(draw, width), norm(draw, width)
    return draw.normal(len(mask), mask.shape[-1], width), mask, *parts, *norms


@exercise(
    "An encoder layer",
    chapter=4,
    about="""Self-attention, then a feed-forward network, each with a residual connection, and a
        norm behind the sum, as in 2017 (post-norm). The parts are given: put them together.""",
    hints=[
        "Two sublayers: attention, then feed_forward. Each is added to what went into it.",
        "In self-attention queries and keys are the same positions: attention(x, x, mask).",
        "x = norm1(x + attention(x, x, mask)), then the same with feed_forward and norm2.",
    ],
    inputs=lambda draw: {
        "one token": _encoder_layer_arguments(draw, everything(1, 1, 1), 2),
        "one sequence and nothing masked": _encoder_layer_arguments(draw, everything(1, 3, 3), 2),
        "one sequence and a mask": _encoder_layer_arguments(draw, draw.mask(1, 3, 3)),
        "a mask for each sequence": _encoder_layer_arguments(draw, draw.mask(2, 5, 5)),
        "as many sequences as tokens": _encoder_layer_arguments(draw, draw.mask(3, 3, 3)),
    },
    points=3,
)
def encoder_layer(x: Tensor, mask: Tensor, attention, feed_forward, norm1, norm2) -> Tensor:
    """norm(x + sublayer(x)), for attention with norm1 and then for feed_forward with norm2.

    x: (batch, length, d_model)
    mask: (batch, 1, length, length) bool, True = may attend
    attention(x, memory, mask), feed_forward(x), norm1(x) and norm2(x) are functions, each to be
    called once; the queries of attention come from x, its keys and values from memory, which in an
    encoder is x too: attention(x, x, mask)
    returns: (batch, length, d_model)
    """
    ### BEGIN SOLUTION
    x = norm1(x + attention(x, x, mask))
    return norm2(x + feed_forward(x))
    ### END SOLUTION


FIRST, SECOND = "norm1(x + attention(x, x, mask))", "norm2(x + feed_forward(x))"
NO_MASK = """The mask does not reach attention: every token collects from padding, or from whatever
    else the mask hides."""
encoder_layer.mistake(NO_MASK, {"attention(x, x, mask)": "attention(x, x)"})
encoder_layer.mistake(
    """The mask is turned upside down before attention gets it. It says True where a query may
    attend, which is what attention wants: hand it on as it is.""",
    {"attention(x, x, mask)": "attention(x, x, ~mask)"},
)
encoder_layer.mistake(
    "Queries and keys have changed places in the mask: it was transposed. Hand it on as it is.",
    {"attention(x, x, mask)": "attention(x, x, mask.transpose(-2, -1))"},
)
encoder_layer.mistake(
    "Every sequence has the mask of the first one.",
    {"attention(x, x, mask)": "attention(x, x, mask[:1])"},
)
encoder_layer.mistake(
    """The residual connection around attention is missing: x is not added to what attention
    gives.""",
    {"norm1(x + attention": "norm1(attention"},
)
encoder_layer.mistake(
    """The residual connection around the feed-forward network is missing: what went into it is not
    added to what it gives.""",
    {"norm2(x + feed_forward": "norm2(feed_forward"},
)
encoder_layer.mistake(
    """A norm stands before its sublayer (pre-norm, as in GPT-2). Here each stands behind the sum,
    norm(x + sublayer(x)), as in 2017 (post-norm).""",
    {
        FIRST: "x + attention(norm1(x), norm1(x), mask)",
        SECOND: "x + feed_forward(norm2(x))",
    },
    {FIRST: "x + attention(norm1(x), norm1(x), mask)"},
    {SECOND: "x + feed_forward(norm2(x))"},
    {FIRST: "x + attention(norm1(x), x, mask)", SECOND: "x + feed_forward(norm2(x))"},
)
encoder_layer.mistake(
    """A norm is taken of x alone, before the sum, and what the sublayer gives is added to it. It
    stands behind the sum: norm(x + sublayer(x)).""",
    {
        FIRST: "norm1(x) + attention(norm1(x), norm1(x), mask)",
        SECOND: "norm2(x) + feed_forward(norm2(x))",
    },
    {FIRST: "norm1(x) + attention(x, x, mask)", SECOND: "norm2(x) + feed_forward(x)"},
    {FIRST: "norm1(x) + attention(x, x, mask)"},
    {SECOND: "norm2(x) + feed_forward(x)"},
)
encoder_layer.mistake(
    """A norm stands in front of its sublayer and behind the sum as well. Here it is behind the sum
    only.""",
    {
        "attention(x, x, mask)": "attention(norm1(x), norm1(x), mask)",
        "feed_forward(x))\n": "feed_forward(norm2(x)))\n",
    },
    {"attention(x, x, mask)": "attention(norm1(x), norm1(x), mask)"},
    {"feed_forward(x))\n": "feed_forward(norm2(x)))\n"},
)
encoder_layer.mistake(
    """The future is hidden: the mask was combined with a triangle. An encoder reads in both
    directions, hand the mask on as it is.""",
    {"attention(x, x, mask)": "attention(x, x, mask.tril())"},
)
encoder_layer.mistake(
    """A norm is taken of what a sublayer gives, before x is added. It stands behind the sum:
    norm(x + sublayer(x)), not x + norm(sublayer(x)).""",
    {FIRST: "x + norm1(attention(x, x, mask))", SECOND: "x + norm2(feed_forward(x))"},
    {FIRST: "x + norm1(attention(x, x, mask))"},
    {SECOND: "x + norm2(feed_forward(x))"},
)
encoder_layer.mistake(
    """A norm is missing: there is one behind each of the two sums.""",
    {FIRST: "x + attention(x, x, mask)"},
    {SECOND: "x + feed_forward(x)"},
    {FIRST: "x + attention(x, x, mask)", SECOND: "x + feed_forward(x)"},
)
encoder_layer.mistake(
    "The norms are mixed up: norm1 belongs to attention, norm2 to the feed-forward network.",
    {"return norm2": "return norm1"},
    {"= norm1": "= norm2"},
    {"= norm1": "= norm2", "return norm2": "return norm1"},
)
encoder_layer.mistake(
    """The second sum adds the input of the layer. Add what went into the feed-forward network,
    which is what the first norm gave.""",
    {"x = norm1": "given, x = x, norm1", "norm2(x + feed": "norm2(given + feed"},
)
encoder_layer.mistake(
    """The feed-forward network gets the input of the layer. It comes second, and reads what the
    first norm gave.""",
    {"x = norm1": "given, x = x, norm1", "feed_forward(x)": "feed_forward(given)"},
    {FIRST: "x + attention(x, x, mask) + feed_forward(x)", SECOND: "norm2(x)"},
    {FIRST: "norm1(x + attention(x, x, mask) + feed_forward(x))", SECOND: "x"},
    {FIRST: "x + attention(x, x, mask) + feed_forward(x)", SECOND: "norm2(norm1(x))"},
)
encoder_layer.mistake(
    "The sublayers are in the wrong order: attention comes first, then the feed-forward network.",
    """
    x = norm2(x + feed_forward(x))
    return norm1(x + attention(x, x, mask))
    """,
    """
    x = norm1(x + feed_forward(x))
    return norm2(x + attention(x, x, mask))
    """,
)
encoder_layer.mistake(
    "The feed-forward network is missing: this is the first of two sublayers.",
    {f"x = {FIRST}": f"return {FIRST}"},
    {SECOND: "norm2(x)"},
)
encoder_layer.mistake(
    "Attention is missing: no token collects anything from another.",
    {f"x = {FIRST}": "pass"},
    {FIRST: "norm1(x)"},
)
encoder_layer.mistake(
    """A residual connection adds too much: x twice, or what the layer was given once more at the
    end.""",
    {"norm1(x + attention": "norm1(x + x + attention"},
    {"norm2(x + feed": "norm2(x + x + feed"},
    {"x = norm1": "given, x = x, norm1", "return norm2": "return given + norm2"},
    {"return norm2": "return x + norm2"},
)
encoder_layer.mistake(
    """What a sublayer gives is scaled or dropped out at random before the sum, or the sum is
    halved. The plain sum is wanted.""",
    {"+ attention(x, x, mask)": "+ F.dropout(attention(x, x, mask), 0.1)"},
    {"+ feed_forward(x)": "+ F.dropout(feed_forward(x), 0.1)"},
    {
        "+ attention(x, x, mask)": "+ F.dropout(attention(x, x, mask), 0.1)",
        "+ feed_forward(x)": "+ F.dropout(feed_forward(x), 0.1)",
    },
    {FIRST: f"{FIRST[:-1]} / 2)".replace("norm1(x", "norm1((x").replace(" / 2", ") / 2")},
)


@encoder_layer.check(points=1)
def each_part_is_called_once(fn, draw: Draw):
    """Attention, the feed-forward network and the norms are called once each."""
    x, mask, *parts = _encoder_layer_arguments(draw, draw.mask(2, 3, 3))
    counted = [Counted(part) for part in parts]
    fn(x, mask, *counted)
    names = "attention", "feed_forward", "norm1", "norm2"
    expect_each_called_once(dict(zip(names, counted, strict=True)))


def _encoder_stack_arguments(draw: Draw, mask: Tensor, count: int, width: int = 4) -> tuple:
    layers = [Layer(draw, width) for _ in range(count)]
    return draw.normal(len(mask), mask.shape[-1], width), mask, layers


@exercise(
    "The mask, threaded through a stack",
    chapter=4,
    about="""The layers one after the other, each with the mask. Forgetting it anywhere lets padding
        in: its positions hold something after the first layer.""",
    hints=[
        "A loop: what comes out of one layer goes into the next.",
        "Every layer takes the same mask. There is no layer that needs none.",
        "for layer in layers: x = layer(x, mask). Then return x.",
    ],
    inputs=lambda draw: {
        "one layer and one token": _encoder_stack_arguments(draw, everything(1, 1, 1), 1, 2),
        "two layers and nothing masked": _encoder_stack_arguments(draw, everything(1, 3, 3), 2, 2),
        "one layer and a mask": _encoder_stack_arguments(draw, draw.mask(1, 3, 3), 1),
        "two layers and a mask": _encoder_stack_arguments(draw, draw.mask(1, 4, 4), 2),
        "three layers, and a mask for each sequence": _encoder_stack_arguments(
            draw, draw.mask(2, 5, 5), 3
        ),
        "four layers, as many sequences as tokens": _encoder_stack_arguments(
            draw, draw.mask(3, 3, 3), 4
        ),
    },
    edges=lambda draw: {"no layers": _encoder_stack_arguments(draw, draw.mask(2, 3, 3), 0)},
    points=1,
)
def encoder_stack(x: Tensor, mask: Tensor, layers) -> Tensor:
    """Each layer reads what the one before it wrote, and gets the mask.

    x: (batch, length, d_model)
    mask: (batch, 1, length, length) bool, True = may attend
    layers: a list of functions layer(x, mask) -> (batch, length, d_model), each to be called once;
    x comes back if there are none
    returns: (batch, length, d_model), what the last layer wrote
    """
    ### BEGIN SOLUTION
    for layer in layers:
        x = layer(x, mask)
    return x
    ### END SOLUTION


encoder_stack.mistake(
    """No layer gets the mask: every one reads padding, or whatever else the mask hides.""",
    {"(x, mask)": "(x)"},
)
encoder_stack.mistake(
    """Some layers get the mask and others do not. After the first layer padding holds vectors like
    any other: without the mask a later layer reads them.""",
    {"(x, mask)": "(x, mask if layer is layers[0] else None)"},
    {"(x, mask)": "(x, mask if layer is not layers[-1] else None)"},
    {"(x, mask)": "(x, mask if layer is layers[-1] else None)"},
    {"(x, mask)": "(x, mask if layer is not layers[0] else None)"},
    {"(x, mask)": "(x, mask if layers.index(layer) % 2 == 0 else None)"},
)
encoder_stack.mistake(
    """The mask is turned upside down on its way to the layers. It says True where a query may
    attend, which is what they want: hand it on as it is.""",
    {"(x, mask)": "(x, ~mask)"},
    {"x = layer(x, mask)": "x, mask = layer(x, mask), ~mask"},
)
encoder_stack.mistake(
    "Queries and keys have changed places in the mask: it was transposed. Hand it on as it is.",
    {"(x, mask)": "(x, mask.transpose(-2, -1))"},
)
encoder_stack.mistake(
    "Every sequence has the mask of the first one.",
    {"(x, mask)": "(x, mask[:1])"},
)
encoder_stack.mistake(
    """Every layer reads the input of the stack, and what the last one wrote comes back. A layer
    reads what the one before it wrote.""",
    """
    y = x
    for layer in layers:
        y = layer(x, mask)
    return y
    """,
    "return layers[-1](x, mask)",
)
encoder_stack.mistake(
    """Every layer reads the input of the stack, and their outputs are added up or averaged. A layer
    reads what the one before it wrote.""",
    "return sum(layer(x, mask) for layer in layers)",
    "return x + sum(layer(x, mask) for layer in layers)",
    "return sum(layer(x, mask) for layer in layers) / max(len(layers), 1)",
    "return sum(layer(x, mask) for layer in layers) / len(layers)",
)
encoder_stack.mistake(
    """x is added to what each layer wrote. A layer has its residual connections inside: what it
    gives goes on as it is.""",
    {"x = layer(": "x = x + layer("},
    {"for layer": "given = x\n    for layer", "x = layer": "x = given + layer"},
)
encoder_stack.mistake(
    """The future is hidden: the mask was combined with a triangle. Each layer gets the mask as it
    is.""",
    {"(x, mask)": "(x, mask.tril())"},
)
encoder_stack.mistake(
    "The layers are called in the wrong order, the last one first.",
    {"in layers": "in reversed(layers)"},
)
encoder_stack.mistake(
    "A layer at the beginning or at the end of the list is never called.",
    {"in layers": "in layers[:-1]"},
    {"in layers": "in layers[1:]"},
    {"in layers": "in layers[1:-1]"},
)
encoder_stack.mistake(
    """Only the first layer is called: a return inside the loop ends it. The return belongs behind
    the loop, in line with for.""",
    {"x = layer": "return layer"},
    """
    for layer in layers:
        return layer(x, mask)
    """,
    "return layers[0](x, mask)",
)
encoder_stack.mistake(
    "Every layer is called twice in a row. Once each is wanted.",
    {"layer(x, mask)": "layer(layer(x, mask), mask)"},
)
encoder_stack.mistake(
    "The same layer is called again and again. Each has weights of its own.",
    {"x = layer(": "x = layers[0]("},
    {"x = layer(": "x = layers[-1]("},
)
encoder_stack.mistake(
    "What the layers give is not kept: x comes back as it went in. Write x = layer(x, mask).",
    {"x = layer(x, mask)": "layer(x, mask)"},
)
encoder_stack.mistake(
    "The outputs of all layers come back. What the last one wrote is wanted.",
    """
    outputs = []
    for layer in layers:
        x = layer(x, mask)
        outputs.append(x)
    return outputs
    """,
    """
    outputs = [x]
    for layer in layers:
        outputs.append(layer(outputs[-1], mask))
    return outputs
    """,
    """
    outputs = []
    for layer in layers:
        x = layer(x, mask)
        outputs.append(x)
    return torch.stack(outputs)
    """,
    """
    outputs = [x]
    for layer in layers:
        outputs.append(layer(outputs[-1], mask))
    return torch.stack(outputs)
    """,
    """
    outputs = []
    for layer in layers:
        x = layer(x, mask)
        outputs.append(x)
    return torch.cat(outputs)
    """,
)
encoder_stack.mistake(
    """Positions are set to 0 that the mask hides. That is not asked for: what padding holds does no
    harm as long as every layer has the mask.""",
    *(
        {"for layer in layers:\n        x = layer(x, mask)\n": step}
        for real in (
            "mask[:, 0].any(dim=-2).unsqueeze(-1)",
            "mask[:, 0, 0].unsqueeze(-1)",
            "mask[:, 0, -1].unsqueeze(-1)",
            "mask[:, 0].diagonal(dim1=-2, dim2=-1).unsqueeze(-1)",
        )
        for step in (
            f"for layer in layers:\n        x = layer(x, mask) * {real}\n",
            f"for layer in layers:\n        x = layer(x * {real}, mask)\n",
            f"for layer in layers:\n        x = layer(x, mask)\n    x = x * {real}\n",
        )
    ),
)
encoder_stack.mistake(
    """What the layers wrote is normalized, squashed or scaled. Each has its norms inside: hand on
    what it gives as it is.""",
    {"return x": "return F.layer_norm(x, x.shape[-1:])"},
    {"x = layer(x, mask)": "x = F.layer_norm(layer(x, mask), x.shape[-1:])"},
    {"x = layer(x, mask)": "x = layer(x, mask).relu()"},
    {"x = layer(x, mask)": "x = F.dropout(layer(x, mask), 0.1)"},
    {"return x": "return x / max(len(layers), 1)"},
    {"return x": "return x.mean(dim=1)"},
)


@encoder_stack.check(points=1)
def each_layer_is_called_once(fn, draw: Draw):
    """The layers are called once each."""
    x, mask, layers = _encoder_stack_arguments(draw, draw.mask(2, 3, 3), 4)
    counted = [Counted(layer) for layer in layers]
    fn(x, mask, counted)
    expect_each_called_once({f"layers[{i}]": layer for i, layer in enumerate(counted)})


def _nothing_to_see(draw: Draw) -> Inputs:
    """Queries that may see no key, keys that no query may see, and NaN or Inf in both."""
    mask = torch.tensor(
        [
            [
                [[1, 1, 0, 0, 0], [1, 0, 0, 0, 0], [0, 0, 0, 0, 0]],
                [[1, 1, 0, 0, 0], [0, 1, 0, 0, 0], [1, 1, 0, 0, 0]],
            ],
            [
                [[0, 0, 0, 0, 0], [0, 0, 1, 1, 0], [0, 0, 0, 1, 0]],
                [[1, 1, 1, 1, 0], [0, 0, 0, 0, 0], [0, 0, 1, 0, 0]],
            ],
            [
                [[0, 0, 0, 0, 0], [0, 0, 0, 0, 0], [0, 0, 0, 0, 0]],
                [[0, 0, 0, 1, 0], [0, 0, 1, 1, 0], [0, 0, 1, 0, 0]],
            ],
        ]
    ).bool()
    dead = ~mask.any(dim=-1).unsqueeze(-1)
    unseen = ~mask.any(dim=-2)[..., None]
    query, key, value, _ = attention_arguments(draw, 3, 2, 3, 5, mask)
    nan, inf = float("nan"), float("inf")
    return {
        "a query that may see no key": (query, key, value, mask),
        "NaN in a value that no query may see": (query, key, value.masked_fill(unseen, nan), mask),
        "NaN in a key that no query may see": (query, key.masked_fill(unseen, nan), value, mask),
        "NaN in a query that may see no key": (query.masked_fill(dead, nan), key, value, mask),
        "Inf in keys and values that no query may see": (
            query,
            key.masked_fill(unseen, inf),
            value.masked_fill(unseen, inf),
            mask,
        ),
        "large scores": (query * 1e3, key * 1e3, value, mask),
        "a masked key of the largest score": largest_is_masked(draw),
    }


@exercise(
    "Attention that handles fully masked queries and NaN",
    chapter=4,
    about="""The attention of chapter 2, made safe for a whole encoder. A fully masked query, as at
        padding, gives the softmax nothing but -inf, which is 0 / 0. And NaN in a padded value
        survives a weight of 0, because 0 * NaN is NaN. Keep both out, in the forward and in the
        backward pass.""",
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
    not is used: it holds no NaN here.) Scores may be as large as in the exercise `attention`.

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
# What else is done, rightly, for queries that may see no key: none of it shows in the output, but
# with a mistake besides some of it does in a gradient.
BY_OUTPUT = {f"{WEIGHTS} @ value": "(scores.softmax(dim=-1) @ value).masked_fill(~alive, 0.0)"}
TO_ZERO = {FILLED: 'scores.masked_fill(~mask, float("-inf")).masked_fill(~alive, 0.0)'}
RIGHT_WAYS = ({}, BY_OUTPUT, TO_ZERO, {**TO_ZERO, **BY_OUTPUT})


def in_every_way(*edits: dict[str, str]) -> list[dict[str, str]]:
    return [{**way, **edit} for edit in edits for way in RIGHT_WAYS]


BY_ISNAN = "key, value = key.masked_fill(key.isnan(), 0.0), value.masked_fill(value.isnan(), 0.0)"
POWERS_OF_ALL = "scores.exp().masked_fill(~mask, 0.0)"
nan_safe_attention.mistake(
    """NaN in a value that no query may see reaches the output: its weight is 0, and 0 * NaN is NaN.
    Set such values to 0 before the product.""",
    *in_every_way(
        {", value.masked_fill(unused, 0.0)": ", value"},
        {", value.masked_fill(unused, 0.0)": ", value * ~unused"},
    ),
)
nan_safe_attention.mistake(
    """NaN in a key that no query may see comes back in the gradient of the queries: in the backward
    pass the key is multiplied by 0, and 0 * NaN is NaN. Set such keys to 0 before the product.""",
    *in_every_way(
        {"key.masked_fill(unused, 0.0), value": "key, value"},
        {"key.masked_fill(unused, 0.0), value": "key * ~unused, value"},
    ),
)
nan_safe_attention.mistake(
    """NaN in keys and values that no query may see reaches the output or a gradient: a factor of 0
    does not help, be it a weight or the mask, since 0 * NaN is NaN. Set both to 0 with masked_fill
    before any product.""",
    *in_every_way(
        {KEY_AND_VALUE: "pass"},
        {KEY_AND_VALUE: "key, value = key * ~unused, value * ~unused"},
    ),
)
nan_safe_attention.mistake(
    """nan_to_num is taken of all keys and values. It makes 0 of NaN, but of Inf the largest number
    there is, which overflows in the next product. Set what no query may see to 0, whatever it is.
    """,
    *in_every_way(
        {KEY_AND_VALUE: "key, value = key.nan_to_num(), value.nan_to_num()"},
        {
            KEY_AND_VALUE: "key, value = key.nan_to_num(), value.nan_to_num()",
            QUERY: "    query = query.nan_to_num()\n",
        },
    ),
)
nan_safe_attention.mistake(
    """Only NaN is looked for. Inf in a key or a value that no query may see does the same harm, for
    0 * Inf is NaN. Set to 0 what no query may see, whatever it is.""",
    *in_every_way(
        {KEY_AND_VALUE: BY_ISNAN},
        {KEY_AND_VALUE: BY_ISNAN, QUERY: "    query = query.masked_fill(query.isnan(), 0.0)\n"},
    ),
)
nan_safe_attention.mistake(
    """Which keys are unused is asked of all heads or of the whole batch at once. A key that a query
    of another head or sequence may see is used there, not here.""",
    *in_every_way(
        {"~mask.any(dim=-2)": "~mask.any(dim=-2).any(dim=1, keepdim=True)"},
        {"~mask.any(dim=-2)": "~mask.any(dim=-2).any(dim=0, keepdim=True)"},
        {"~mask.any(dim=-2)": "~mask.flatten(0, 2).any(dim=0)"},
    ),
)
nan_safe_attention.mistake(
    """A key counts as unused as soon as one query may not see it, or the first may not: what others
    collect is lost. It is unused if no query of its head may see it.""",
    {"~mask.any(dim=-2)": "~mask.all(dim=-2)"},
    {"~mask.any(dim=-2)": "~mask[..., 0, :]"},
    {"~mask.any(dim=-2)": "~mask[..., -1, :]"},
)

nan_safe_attention.mistake(
    """NaN in a query that may see no key comes back in the gradient of the keys: the backward pass
    multiplies by the query, too. Set it to 0 before the product.""",
    *in_every_way({QUERY: ""}, {QUERY: "    query = query * alive\n"}),
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
    {" & alive": "", WEIGHTS: "scores.softmax(dim=-1)", QUERY: ""},
    {" & alive": "", WEIGHTS: "scores.softmax(dim=-1)", KEY_AND_VALUE: "pass"},
    {
        " & alive": "",
        WEIGHTS: "scores.softmax(dim=-1)",
        QUERY: "",
        "key.masked_fill(unused, 0.0), value": "key, value",
    },
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
    """Zeros for queries that may see no key are there, but more than one of unused queries, keys
    and values is not set to 0 before the products: NaN in it reaches the output or a gradient.""",
    *in_every_way(
        {KEY_AND_VALUE: "pass", QUERY: ""},
        {"key.masked_fill(unused, 0.0), value": "key, value", QUERY: ""},
        {", value.masked_fill(unused, 0.0)": ", value", QUERY: ""},
    ),
    {KEY_AND_VALUE: "pass", QUERY: "", WEIGHTS: "scores.softmax(dim=-1).masked_fill(~mask, 0.0)"},
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
nan_safe_attention.mistake(
    """The mask is used upside down: what it allows is hidden. In this mask True means "may attend",
    and masked_fill fills where its mask is True.""",
    {"~mask & alive": "mask & alive"},
    {FILLED: 'scores.masked_fill(mask, float("-inf"))', WEIGHTS: "scores.softmax(dim=-1)"},
    {FILLED: "scores.masked_fill(mask, -1e9)"},
    {FILLED: 'scores.masked_fill(mask, float("-inf"))'},
)
nan_safe_attention.mistake(
    """A number like -1e9 is added to masked scores: what is NaN stays NaN, so that NaN in a key
    that no query may see reaches the softmax; and where a real score is lower still, a masked key
    takes the weight. Put -inf in their place, with masked_fill.""",
    *(
        {**cleaned, QUERY: "", FILLED: f"scores + (1.0 - mask.float()) * {number}", **way}
        for number in ("-1e9", "-1e4")
        for cleaned in (
            {"key.masked_fill(unused, 0.0), value": "key, value"},
            {KEY_AND_VALUE: "pass"},
        )
        for way in (
            {},
            BY_OUTPUT,
            {f"{WEIGHTS} @ value": "(scores.softmax(-1) * mask @ value).masked_fill(~alive, 0.0)"},
        )
    ),
)
for says, edits in OF_THE_SCORES.items():
    nan_safe_attention.mistake(says, *edits)
