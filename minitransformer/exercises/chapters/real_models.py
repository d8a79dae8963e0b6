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


GPT2_NAMES = [("h.", "layers."), ("ln_1", "norm"), ("attn.c_proj", "attn.output")]
GPT2_NAMES += [("mlp.c_fc", "mlp.up"), ("mlp.c_proj", "mlp.down"), ("wte", "embedding")]


def _checkpoint(draw: Draw, shapes: dict[str, tuple[int, ...]]) -> tuple[list[str], list[Tensor]]:
    return [*shapes], [draw.normal(*shape) for shape in shapes.values()]


def _gpt2(draw: Draw, layers: int, width: int = 6) -> tuple:
    """Arguments of load_weights: a small GPT-2 with its buffers."""
    shapes: dict[str, tuple[int, ...]] = {"wte.weight": (11, width)}
    names = ["embedding.weight"]
    for layer in range(layers):
        block = {
            "ln_1.weight": (width,),
            "ln_1.bias": (width,),
            "attn.bias": (1, 1, 4, 4),
            "attn.masked_bias": (),
            "attn.c_attn.weight": (width, 3 * width),
            "attn.c_attn.bias": (3 * width,),
            "attn.c_proj.weight": (width, width),
            "attn.c_proj.bias": (width,),
            "mlp.c_fc.weight": (width, 4 * width),
            "mlp.c_proj.weight": (4 * width, width),
        }
        shapes |= {f"h.{layer}.{name}": shape for name, shape in block.items()}
        parts = ["mlp.down.weight", "mlp.up.weight", "norm.bias", "norm.weight"]
        parts += [f"attn.{x}.{y}" for y in ("weight", "bias") for x in ("key", "value", "query")]
        parts += ["attn.output.weight", "attn.output.bias"]
        names += [f"layers.{layer}.{part}" for part in parts]
    return names, *_checkpoint(draw, shapes), GPT2_NAMES


@exercise(
    "Loading somebody else's weights",
    chapter=10,
    about="""A checkpoint has names and habits of its own. GPT-2 stores the weights of its linear
        layers as (in, out), where torch.nn.Linear has (out, in), keeps query, key and value in one
        matrix, and saves its causal masks as if they were weights. What does not fit must be
        named, not passed over: a model with one random matrix writes fluent nonsense.""",
    hints=[
        "Build a dictionary from our names to tensors, one stored name after the other; then look "
        "whether its keys are the names wanted.",
        "name.endswith((...)) finds the buffers. Of c_attn transpose first, as of the others: then "
        "its outputs are the rows, and tensor.chunk(3) cuts weight and bias alike.",
        "set(found) ^ set(names) is what is missing or left over: raise KeyError with these. Else "
        "return [found[name] for name in names].",
    ],
    inputs=lambda draw: {
        "a linear layer": (
            ["up.weight", "up.bias"],
            *_checkpoint(draw, {"mlp.c_fc.weight": (2, 4), "mlp.c_fc.bias": (4,)}),
            [("mlp.c_fc", "up")],
        ),
        "an embedding and a norm": (
            ["norm.weight", "norm.bias", "embedding.weight"],
            *_checkpoint(draw, {"wte.weight": (5, 3), "ln_1.weight": (3,), "ln_1.bias": (3,)}),
            GPT2_NAMES,
        ),
        "query, key and value in one": (
            [f"attn.{x}.{y}" for x in ("query", "key", "value") for y in ("weight", "bias")],
            *_checkpoint(draw, {"attn.c_attn.weight": (3, 9), "attn.c_attn.bias": (9,)}),
            GPT2_NAMES,
        ),
        "a GPT-2 of one layer": _gpt2(draw, 1),
        "a GPT-2 of two layers": _gpt2(draw, 2, width=9),
    },
    edges=lambda draw: {
        "no renames": (
            ["a.bias", "a.c_x.weight"],
            *_checkpoint(draw, {"a.c_x.weight": (3, 2), "a.bias": (4,)}),
            [],
        ),
        "weights of half precision": (
            ["up.weight"],
            ["mlp.c_fc.weight"],
            [draw.normal(2, 3, dtype=torch.float16)],
            [("mlp.c_fc", "up")],
        ),
    },
    points=4,
)
def load_weights(
    names: list[str], stored: list[str], tensors: list[Tensor], renames: list[tuple[str, str]]
) -> list[Tensor]:
    """The tensors of a checkpoint of GPT-2, for parameters that have other names.

    For each stored name and its tensor, in turn:
    1. A name that ends in ".attn.bias" or ".attn.masked_bias" is a buffer, and is left out.
    2. A name that contains ".c_" and ends in ".weight" is of a linear layer: its tensor, stored as
    (in, out), is transposed to (out, in). No other tensor is transposed.
    3. A name that contains "c_attn" becomes three, with "query", "key" and "value" in place of
    "c_attn". Its outputs are those of the query, then of the key, then of the value, of equal
    number; the bias is cut likewise.
    4. For every pair (old, new) of renames, in order, each `old` in the name is replaced by `new`.
    No pair touches "c_attn".

    names: of our parameters; stored and tensors: of the checkpoint, in the same order
    returns: a tensor for each of `names`, in their order, of the dtype it had
    Raises KeyError whose message contains what is missing (one of `names` that no stored name
    became) and what is left over (what a stored name became that is none of `names`).
    """
    ### BEGIN SOLUTION
    found = {}
    for name, tensor in zip(stored, tensors, strict=True):
        if name.endswith((".attn.bias", ".attn.masked_bias")):
            continue
        if ".c_" in name and name.endswith(".weight"):
            tensor = tensor.T
        for old, new in renames:
            name = name.replace(old, new)
        if "c_attn" in name:
            for part, third in zip(("query", "key", "value"), tensor.chunk(3), strict=True):
                found[name.replace("c_attn", part)] = third
        else:
            found[name] = tensor
    if wrong := sorted(set(found) ^ set(names)):
        raise KeyError(f"missing or left over: {', '.join(wrong)}")
    return [found[name] for name in names]
    ### END SOLUTION


TRANSPOSED = 'if ".c_" in name and name.endswith(".weight"):'
ORDER = '("query", "key", "value")'
load_weights.mistake(
    """The weights of linear layers stay (in, out). Square ones fit all the same, and give nonsense:
    transpose every one.""",
    {"tensor = tensor.T": "pass", "tensor.chunk(3)": "tensor.chunk(3, dim=-1)"},
    {"tensor = tensor.T": "pass"},
)
load_weights.mistake(
    """Embeddings are transposed too. They are stored as torch stores them, (vocabulary, width);
    only linear layers, with a name of c_, are (in, out).""",
    {TRANSPOSED: "if tensor.ndim == 2:"},
)
load_weights.mistake(
    """Not every linear layer is transposed: there are c_attn and c_proj in attention, c_fc and
    another c_proj in the feed-forward network.""",
    {'".c_" in name': '"c_attn" in name'},
    {'".c_" in name': '("c_attn" in name or "c_fc" in name)'},
    {'".c_" in name': '".attn." in name'},
    {'".c_" in name': '"c_fc" in name'},
    {'".c_" in name': '".mlp." in name'},
    {'".c_" in name': '("c_fc" in name or "c_proj" in name)'},
    {TRANSPOSED: f"{TRANSPOSED[:-1]} and tensor.shape[0] != tensor.shape[1]:"},
)
load_weights.mistake(
    """The parts of c_attn are handed out in another order: it is query, key, value. Nothing else
    would notice, for all three have the same shape.""",
    {ORDER: '("key", "query", "value")'},
    {ORDER: '("query", "value", "key")'},
    {ORDER: '("value", "key", "query")'},
    {ORDER: '("key", "value", "query")'},
    {ORDER: '("value", "query", "key")'},
)
load_weights.mistake(
    """The weight of c_attn is cut along its inputs. The three parts stand side by side along its
    outputs: the columns as it is stored, the rows once it is transposed.""",
    {"tensor.chunk(3)": "tensor.chunk(3, dim=-1)"},
)
load_weights.mistake(
    """The parts of c_attn are taken in turns, every third row: the query's rows come first, all of
    them, then the key's, then the value's.""",
    {"tensor.chunk(3)": "[tensor[i::3] for i in range(3)]"},
)
load_weights.mistake(
    """A weight is reshaped to (out, in), which leaves its numbers in the order they were in.
    Transpose it.""",
    {"tensor.T": "tensor.reshape(tensor.shape[::-1])"},
)
load_weights.mistake(
    "Query, key and value are all given the same part of c_attn, or the whole of it.",
    {"tensor.chunk(3)": "[tensor] * 3"},
    {"tensor.chunk(3)": "[tensor.chunk(3)[0]] * 3"},
    {"tensor.chunk(3)": "[tensor.chunk(3)[2]] * 3"},
)
load_weights.mistake(
    "The parts of c_attn are still (in, out): they are linear layers as well.",
    {"= third": "= third.T"},
)
load_weights.mistake(
    "The tensors come in another order than `names`.",
    {"return [found[name] for name in names]": "return list(found.values())"},
    {"for name in names]": "for name in sorted(names)]"},
)
load_weights.mistake(
    "The tensors come back with another dtype than they were stored with.",
    {"return [found[name] for": "return [found[name].float() for"},
    {"return [found[name] for": "return [found[name].double() for"},
)


def _refused(fn, draw: Draw, names: list[str], shapes: dict[str, tuple[int, ...]]) -> str:
    """What the KeyError says; empty where there is none."""
    try:
        fn(names, *_checkpoint(draw, shapes), GPT2_NAMES)
    except KeyError as error:
        return str(error)
    return ""


@load_weights.check(points=1)
def what_is_missing_is_named(fn, draw: Draw):
    """A parameter that the checkpoint does not have is a KeyError with its name."""
    said = _refused(fn, draw, ["embedding.weight", "norm.weight"], {"wte.weight": (3, 2)})
    expect(said != "", "The checkpoint has no norm.weight, and there was no KeyError.")
    expect("norm.weight" in said, f"norm.weight is missing; the KeyError says: {said}")


@load_weights.check(points=1)
def what_is_left_over_is_named(fn, draw: Draw):
    """A tensor of the checkpoint that no parameter takes is a KeyError with its name."""
    shapes = {"wte.weight": (3, 2), "lm_head.weight": (3, 2)}
    said = _refused(fn, draw, ["embedding.weight"], shapes)
    expect(said != "", "Nobody takes lm_head.weight, and there was no KeyError.")
    expect("lm_head.weight" in said, f"lm_head.weight is left over; the KeyError says: {said}")
