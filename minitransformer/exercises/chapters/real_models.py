"""Chapter 10: the real thing."""

import torch
from torch import Tensor

from minitransformer.checks import expect
from minitransformer.exercises.chapters.encoder import Counted, Layer, expect_each_called_once
from minitransformer.exercises.exercise import Draw, exercise


def _rotary_arguments(
    draw: Draw, positions: list[list[int]], heads: int, width: int, theta: float
) -> tuple[Tensor, Tensor, float]:
    batch, length = len(positions), len(positions[0])
    return draw.normal(batch, heads, length, width), torch.tensor(positions), theta


@exercise(
    "Rotary positions",
    chapter=10,
    about="""Rotary position embeddings (RoPE): Llama adds no positions. It turns pairs of numbers
        by an angle that grows with the position, so that a score depends on the distance (Su et al.
        2021, arXiv:2104.09864).""",
    hints=[
        "A pair (a, b) turned by an angle is (a cos - b sin, b cos + a sin).",
        "Here, as in Llama's weights, column i is paired with column i + width/2, not with i + 1.",
        "a, b = x.chunk(2, dim=-1); angles = positions[:, None, :, None] * theta ** (-even / "
        "width) with even = torch.arange(0, width, 2); torch.cat((a * angles.cos() - b * "
        "angles.sin(), b * angles.cos() + a * angles.sin()), dim=-1).to(x.dtype)",
    ],
    inputs=lambda draw: {
        "the pair 1, 0 at position 1": (torch.tensor([[[[1.0, 0]]]]), torch.tensor([[1]]), 100.0),
        "one token at position 0": _rotary_arguments(draw, [[0]], 1, 4, 100.0),
        "one token at position 3": _rotary_arguments(draw, [[3]], 1, 4, 100.0),
        "three tokens": _rotary_arguments(draw, [[0, 1, 2]], 1, 6, 50.0),
        "as many heads as sequences": _rotary_arguments(draw, [[0, 1, 2], [3, 4, 5]], 2, 4, 200.0),
        "padding on the left, at position 0": _rotary_arguments(
            draw, [[0, 0, 0, 1, 2], [0, 1, 2, 3, 4]], 3, 8, 30.0
        ),
        "positions in no order": _rotary_arguments(
            draw,
            [[draw.integer(0, 9) for _ in range(5)] for _ in range(2)],
            *(3, 8, float(draw.integer(5, 20))),
        ),
        "as many heads as tokens": _rotary_arguments(draw, [[0, 1, 2], [4, 5, 6]], 3, 4, 100.0),
    },
    edges=lambda draw: {
        "float64": (draw.normal(1, 2, 3, 4, dtype=torch.float64), torch.tensor([[0, 1, 2]]), 100.0)
    },
    points=5,
)
def rotary_positions(x: Tensor, positions: Tensor, theta: float) -> Tensor:
    """Turn the pair (x[i], x[i + width/2]) by position * theta^(-2i/width), i = 0, 1, ... in turn.

    A pair (a, b) turned by an angle is (a cos - b sin, b cos + a sin): counterclockwise. Each
    number stays in its column.

    x: (batch, heads, length, width) float, width even; i runs up to width/2 - 1
    positions: (batch, length) int64, in any order, the same for every head
    returns: as x, in shape and dtype
    """
    ### BEGIN SOLUTION
    width = x.shape[-1]
    speeds = theta ** (-torch.arange(0, width, 2, dtype=torch.float64) / width)
    angles = positions[:, None, :, None] * speeds
    cos, sin = angles.cos().to(x.dtype), angles.sin().to(x.dtype)
    a, b = x.chunk(2, dim=-1)
    return torch.cat((a * cos - b * sin, b * cos + a * sin), dim=-1)
    ### END SOLUTION


TURNED = "torch.cat((a * cos - b * sin, b * cos + a * sin), dim=-1)"
SPEEDS = "theta ** (-torch.arange(0, width, 2, dtype=torch.float64) / width)"
rotary_positions.mistake(
    """Neighbors are paired, column 2i with 2i + 1, as in GPT-J. Here, as in Llama's weights, column
    i is paired with column i + width/2.""",
    {
        "x.chunk(2, dim=-1)": "x[..., 0::2], x[..., 1::2]",
        TURNED: "torch.stack((a * cos - b * sin, b * cos + a * sin), dim=-1).flatten(-2)",
    },
)
rotary_positions.mistake(
    """The columns end up elsewhere: x is taken apart in one way and put together in another. Take
    the two halves of the columns, and let each number stay in its column.""",
    {"x.chunk(2, dim=-1)": "(x[..., 0::2], x[..., 1::2])"},
    {TURNED: "torch.stack((a * cos - b * sin, b * cos + a * sin), dim=-1).flatten(-2)"},
    {TURNED: "torch.cat((b * cos + a * sin, a * cos - b * sin), dim=-1)"},
)
rotary_positions.mistake(
    """The two numbers of a pair are turned by different angles. Pair i has one angle: the columns
    of the second half have those of the first half again, torch.cat((angles, angles), dim=-1).""",
    {
        "angles = positions[:, None, :, None] * speeds": "angles = (positions[:, None, :, None] * "
        "speeds).repeat_interleave(2, dim=-1)",
        "a, b = x.chunk(2, dim=-1)": "turned = torch.cat((-x.chunk(2, dim=-1)[1], x.chunk(2, "
        "dim=-1)[0]), dim=-1)",
        TURNED: "x * cos + turned * sin",
    },
    {
        "0, width, 2, dtype=torch.float64) / width": "width, dtype=torch.float64) / width",
        "a, b = x.chunk(2, dim=-1)": "turned = torch.cat((-x.chunk(2, dim=-1)[1], x.chunk(2, "
        "dim=-1)[0]), dim=-1)",
        TURNED: "x * cos + turned * sin",
    },
    {
        "0, width, 2, dtype=torch.float64) / width": "width, dtype=torch.float64) * 2 / width",
        "a, b = x.chunk(2, dim=-1)": "turned = torch.cat((-x.chunk(2, dim=-1)[1], x.chunk(2, "
        "dim=-1)[0]), dim=-1)",
        TURNED: "x * cos + turned * sin",
    },
)
rotary_positions.mistake(
    """The second half is computed with the first as it is after turning. Compute both from the
    numbers as they were.""",
    {
        f"return {TURNED}": "a = a * cos - b * sin\n    b = b * cos + a * sin\n    "
        "return torch.cat((a, b), dim=-1)"
    },
    {
        f"return {TURNED}": "b = b * cos + a * sin\n    a = a * cos - b * sin\n    "
        "return torch.cat((a, b), dim=-1)"
    },
)
rotary_positions.mistake(
    """It is turned the other way: (a cos + b sin, b cos - a sin). Scores are the same if queries
    and keys are both turned so, but not with the weights of a model.""",
    {TURNED: "torch.cat((a * cos + b * sin, b * cos - a * sin), dim=-1)"},
    {"angles = positions": "angles = -positions"},
)
rotary_positions.mistake(
    """A sign is wrong, and nothing is turned: lengths change. One of the two has a minus and the
    other a plus: (a cos - b sin, b cos + a sin).""",
    {TURNED: "torch.cat((a * cos - b * sin, b * cos - a * sin), dim=-1)"},
    {TURNED: "torch.cat((a * cos + b * sin, b * cos + a * sin), dim=-1)"},
)
rotary_positions.mistake(
    "Sine and cosine have changed places: at position 0 x must stay as it is.",
    {"cos, sin = angles": "sin, cos = angles"},
    {TURNED: "torch.cat((a * sin - b * cos, b * sin + a * cos), dim=-1)"},
    {TURNED: "torch.cat((a * sin + b * cos, b * sin - a * cos), dim=-1)"},
)
rotary_positions.mistake(
    "In one half or in both, a and b are mixed up: it is (a cos - b sin, b cos + a sin).",
    {TURNED: "torch.cat((a * cos - b * sin, a * cos + b * sin), dim=-1)"},
    {TURNED: "torch.cat((a * cos - b * sin, a * cos - b * sin), dim=-1)"},
    {TURNED: "torch.cat((a * cos - a * sin, b * cos + b * sin), dim=-1)"},
    {TURNED: "torch.cat((b * cos - a * sin, a * cos + b * sin), dim=-1)"},
)
rotary_positions.mistake(
    """The positions that are given are not used: tokens are counted from 0, 1, 2, ... With padding
    on the left, or a cache, that is another number.""",
    {"positions[:, None, :, None]": "torch.arange(x.shape[2])[:, None]"},
)
rotary_positions.mistake(
    "Positions are counted one too high: at position 0 x must stay as it is.",
    {"positions[:, None, :, None]": "(positions[:, None, :, None] + 1)"},
)
rotary_positions.mistake(
    "Every sequence is turned by the positions of the first one.",
    {"positions[:, None, :, None]": "positions[:1, None, :, None]"},
    {"positions[:, None, :, None]": "positions[0][None, None, :, None]"},
)
rotary_positions.mistake(
    """The positions count the heads: they lie along the second axis. Tokens are on the third,
    positions[:, None, :, None].""",
    {"positions[:, None, :, None]": "positions[:, :, None, None]"},
)
rotary_positions.mistake(
    """The exponent is half of what it should be, -i/width. It is -2i/width, where i counts the
    pairs.""",
    {SPEEDS: "theta ** (-torch.arange(0, width // 2, dtype=torch.float64) / width)"},
)
rotary_positions.mistake(
    """2i is doubled once more: the exponent is twice what it should be. torch.arange(0, width, 2)
    has the numbers 2i already.""",
    {"dtype=torch.float64) / width": "dtype=torch.float64) * 2 / width"},
)
rotary_positions.mistake(
    """The exponent has no minus, so later pairs turn faster. They turn more slowly, by
    theta^(-2i/width).""",
    {"(-torch.arange": "(torch.arange"},
)
rotary_positions.mistake(
    "The theta that is given is not used: another number stands in its place.",
    {"theta **": "10_000.0 **"},
    {"theta **": "500_000.0 **"},
)
rotary_positions.mistake(
    "All pairs turn by the same angle, the position. Pair i turns by theta^(-2i/width) of it.",
    {"[:, None, :, None] * speeds": "[:, None, :, None].double()"},
)
rotary_positions.mistake(
    "Only one half of the columns is turned. Of a pair both numbers change.",
    {"b * cos + a * sin": "b"},
    {"a * cos - b * sin": "a"},
)
rotary_positions.mistake(
    """Sines and cosines are added to x, as the first transformer did. Here nothing is added: pairs
    are turned.""",
    {TURNED: "x + torch.cat((sin, cos), dim=-1)"},
    {TURNED: "x + torch.stack((sin, cos), dim=-1).flatten(-2)"},
)
rotary_positions.mistake(
    "What comes out is of another dtype than x.",
    {TURNED: f"{TURNED}.float()"},
    {".to(x.dtype)": ""},
)
rotary_positions.mistake(
    """The axis of the heads is missing in the angles: the positions of sequence i turn head i of
    every sequence, where the numbers fit at all. Write positions[:, None, :, None].""",
    {"positions[:, None, :, None]": "positions[:, :, None]"},
)
rotary_positions.mistake(
    """The angle is counted in degrees or in whole turns. sin and cos take radians: the angle as it
    is.""",
    {"None] * speeds": "None] * speeds * math.pi / 180"},
    {"None] * speeds": "None] * speeds * 2 * math.pi"},
)
rotary_positions.mistake(
    "Pairs are counted from 1. The first is pair 0, and it turns by the position itself.",
    {"torch.arange(0, width, 2,": "torch.arange(2, width + 2, 2,"},
    {"torch.arange(0, width, 2,": "torch.arange(1, width + 1, 2,"},
)
rotary_positions.mistake(
    """The exponent runs down to -1, so that the last pair turns theta times as slowly as the first.
    Here it is -2i/width, and stops short of -1.""",
    {"dtype=torch.float64) / width": "dtype=torch.float64) / max(width - 2, 1)"},
)
rotary_positions.mistake(
    "Positions are divided by the length of the sequence. The angle grows with the position as is.",
    {"None] * speeds": "None] * speeds / x.shape[2]"},
)
rotary_positions.mistake(
    "The angle is doubled, or halved. It is position * theta^(-2i/width).",
    {"None] * speeds": "None] * speeds * 2"},
    {"None] * speeds": "None] * speeds / 2"},
)
rotary_positions.mistake(
    "What is turned is scaled as well. A turn changes no length.",
    {TURNED: f"{TURNED} / width**0.5"},
    {TURNED: f"{TURNED} * width**0.5"},
    {TURNED: f"F.normalize({TURNED}, dim=-1)"},
)
rotary_positions.mistake(
    "Sines and cosines are rounded to half precision.",
    {".cos().to(": ".cos().half().to(", ".sin().to(": ".sin().half().to("},
    {".cos().to(": ".cos().bfloat16().to(", ".sin().to(": ".sin().bfloat16().to("},
)


@rotary_positions.check(points=1, measures="largest difference of a score")
def a_score_depends_on_the_distance(fn, draw: Draw):
    """A query at 7 and a key at 5 score as they do at 102 and 100."""
    query, key = draw.normal(1, 1, 1, 8), draw.normal(1, 1, 1, 8)

    def score(q: int, k: int) -> float:
        turned = fn(query, torch.tensor([[q]]), 100.0), fn(key, torch.tensor([[k]]), 100.0)
        return float((turned[0] * turned[1]).sum())

    near, far, other = score(7, 5), score(102, 100), score(7, 1)
    expect(
        abs(near - far) < 1e-3,
        f"A query at 7 and a key at 5 score {near:.4f}, at 102 and 100 {far:.4f}: the distance is "
        "the same, and so should be the score.",
        abs(near - far),
    )
    expect(
        abs(near - other) > 1e-3,
        f"A query at 7 scores {near:.4f} with a key at 5 and with the same key at 1: the distance "
        "should make a difference.",
    )
    return abs(near - far)


class Embedding:
    """Stands for an embedding of tokens and positions: a padded position holds zeros.

    Positions are counted over the real tokens, so that padding on the left makes no difference.
    """

    def __init__(self, draw: Draw, width: int):
        self.tokens, self.positions = draw.normal(50, width), draw.normal(9, width)

    def __call__(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        if attention_mask is None:
            attention_mask = torch.ones_like(input_ids)
        real = attention_mask != 0
        positions = (real.cumsum(dim=1) - 1).clamp(min=0)
        return (self.tokens[input_ids] + self.positions[positions]) * real[:, :, None]


def _decoder_arguments(draw: Draw, attention_mask: Tensor, count: int, width: int = 4) -> tuple:
    """Ids for this mask, 0 at padding, and the parts of a model of `count` layers."""
    ids = draw.ids(*attention_mask.shape) * attention_mask
    layers, weight = [Layer(draw, width) for _ in range(count)], draw.normal(width, 7)
    return ids, attention_mask, Embedding(draw, width), layers, lambda x: x @ weight


def _real_zeros(draw: Draw) -> tuple:
    """Where a real token has the id that padding has."""
    ids, mask, *parts = _decoder_arguments(draw, torch.tensor([[1, 1, 1, 0], [1, 1, 1, 1]]), 2)
    ids[:, 1] = 0
    return ids, mask, *parts


@exercise(
    "A whole decoder",
    chapter=10,
    about="""Everything together: embed, make the one mask, hand it to every layer, project to the
        vocabulary. That is GPT.""",
    hints=[
        "Make the mask first: padding and causal, as in the exercise of chapter 5.",
        "x = embedding(input_ids, attention_mask); every layer is called as layer(x, mask).",
        "real[:, None, :, None] & real[:, None, None, :] & a triangle (length, length) of True is "
        "the mask, with real = attention_mask != 0. After the layers return head(x).",
    ],
    inputs=lambda draw: {
        "one token and one layer": _decoder_arguments(draw, torch.tensor([[1]]), 1, 2),
        "one sequence and one layer": _decoder_arguments(draw, torch.tensor([[1, 1, 1]]), 1, 2),
        "one sequence and two layers": _decoder_arguments(draw, torch.tensor([[1, 1, 1]]), 2, 2),
        "padding on the right": _decoder_arguments(draw, torch.tensor([[1, 1, 1, 0]]), 2, 2),
        "padding on the left": _decoder_arguments(draw, torch.tensor([[0, 0, 1, 1, 1]]), 2, 2),
        "several sequences, padded on the right": _decoder_arguments(
            draw, draw.attention_mask(3, 5), 2
        ),
        "several sequences, padded on the left": _decoder_arguments(
            draw, draw.attention_mask(4, 6, "left"), 3
        ),
    },
    edges=lambda draw: {
        "a real token of the id of padding": _real_zeros(draw),
        "a sequence of padding alone": _decoder_arguments(draw, torch.tensor([[1, 1], [0, 0]]), 2),
        "no layers": _decoder_arguments(draw, draw.attention_mask(2, 3), 0),
    },
    points=4,
)
def decoder(input_ids: Tensor, attention_mask: Tensor, embedding, layers, head) -> Tensor:
    """A decoder-only model of given parts, each to be called once.

    Every layer gets the same mask: True where query and key are both real, and the key is the query
    itself or stands before it. The row of a padded query is all False, so that logits at padding
    are defined too. A real token may have the same id as padding: only attention_mask knows.

    input_ids: (batch, length) int64
    attention_mask: (batch, length) int64, 1 = real token, 0 = padding; a sequence is padded on the
    right or on the left, and may be padding alone
    embedding(input_ids, attention_mask) -> (batch, length, d_model), with positions added
    layers: a list of functions layer(x, mask) -> (batch, length, d_model); mask is
    (batch, 1, length, length) bool, True = may attend; there may be no layers
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


MASK = "real[:, None, :, None] & real[:, None, None, :] & causal"
decoder.mistake(
    """The future is not hidden: every token reads what comes next. The loss will be wonderful, and
    what the model writes nonsense.""",
    {f"= {MASK}": "= real[:, None, :, None] & real[:, None, None, :]"},
)
decoder.mistake(
    """Padded keys are hidden, and nothing else: tokens see their future, and the rows of padded
    queries are not all False.""",
    {f"= {MASK}": "= real[:, None, None, :]"},
)
decoder.mistake(
    """A padded query sees itself: the whole diagonal is allowed. In the mask that is asked for its
    row is all False.""",
    {f"= {MASK}": f"= ({MASK}) | torch.eye(length, dtype=torch.bool)"},
)
decoder.mistake(
    """Vectors or logits at padding are set to 0. The mask keeps padding out already: what comes out
    there is the head's answer, and nobody reads it.""",
    {"head(x)\n": "head(x) * real[:, :, None]\n"},
    {"layer(x, mask)\n": "layer(x, mask) * real[:, :, None]\n"},
    {"head(x)\n": "head(x * real[:, :, None])\n"},
    {
        "head(x)\n": "head(x) * real[:, :, None]\n",
        "layer(x, mask)\n": "layer(x, mask) * real[:, :, None]\n",
    },
)
decoder.mistake(
    """Padding is not hidden: the mask is causal alone, so with padding on the left tokens read
    it.""",
    {f"= {MASK}": "= causal[None, None]"},
)
decoder.mistake(
    """Only padded keys are hidden: a padded query still sees keys. In the mask that is asked for
    its row is all False.""",
    {f"= {MASK}": "= real[:, None, None, :] & causal"},
)
decoder.mistake(
    """Only padded queries are hidden: real tokens still see padded keys before them.""",
    {f"= {MASK}": "= real[:, None, :, None] & causal"},
)
decoder.mistake(
    "No layer gets the mask: every token reads padding and its future.",
    {"layer(x, mask)": "layer(x)"},
)
decoder.mistake(
    "Some layers get the mask and others do not. Without it a layer reads padding and the future.",
    {"x = layer(x, mask)": "x, mask = layer(x, mask), None"},
    {"x = layer(x, mask)": "x = layer(x, mask if layer is not layers[-1] else None)"},
    {"x = layer(x, mask)": "x = layer(x, mask if layer is layers[-1] else None)"},
    {"x = layer(x, mask)": "x = layer(x, mask if layer is not layers[0] else None)"},
)
decoder.mistake(
    """The mask is upside down: True where it hides. The layers read True as "may attend".""",
    {f"= {MASK}": f"= ~({MASK})"},
    {"layer(x, mask)": "layer(x, ~mask)"},
)
decoder.mistake(
    """A token does not see itself: the triangle ends before the diagonal.""",
    {".tril()": ".tril(-1)"},
)
decoder.mistake(
    "A token sees the one after it: the triangle ends one key too late.",
    {".tril()": ".tril(1)"},
)
decoder.mistake(
    """Every token sees what comes after it, not what came before: this is the upper triangle, triu.
    The lower one, tril, looks back.""",
    {".tril()": ".triu()"},
    {".tril()": ".triu(1)"},
)
decoder.mistake(
    "One mask is enough here to allow a pair, or one real token. All must hold: &, not |.",
    {"& causal": "| causal"},
    {f"= {MASK}": "= real[:, None, None, :] | causal"},
    {"None] & real": "None] | real"},
)
decoder.mistake(
    """Padding is told by its id, in the mask or in the embedding. A real token may have that id:
    ask attention_mask.""",
    {"attention_mask != 0": "input_ids != 0"},
    {"attention_mask != 0": "input_ids != 0", "ids, attention_mask)": "ids, (input_ids != 0))"},
)
decoder.mistake(
    """Padding is taken for real, and real tokens for padding: 1 in attention_mask is a real token.
    """,
    {"attention_mask != 0": "attention_mask == 0"},
)
decoder.mistake(
    "Every sequence has the padding of the first one.",
    {"attention_mask != 0": "attention_mask[:1] != 0"},
)
decoder.mistake(
    """embedding gets no attention_mask: it then counts padding on the left as positions, and padded
    positions hold vectors.""",
    {"embedding(input_ids, attention_mask)": "embedding(input_ids)"},
    {"ids, attention_mask)": "ids, torch.ones_like(attention_mask))"},
)
decoder.mistake(
    """Every layer reads the embedding, and what the last one wrote goes on. A layer reads what the
    one before it wrote.""",
    {
        "x = embedding": "y = x = embedding",
        "x = layer(x, mask)": "y = layer(x, mask)",
        "head(x)": "head(y)",
    },
)
decoder.mistake(
    "What the layers give is not kept, or they are never called. Write x = layer(x, mask).",
    {"x = layer(x, mask)": "layer(x, mask)"},
)
decoder.mistake(
    "A layer at the beginning or at the end of the list is never called.",
    {"in layers": "in layers[:-1]"},
    {"in layers": "in layers[1:]"},
)
decoder.mistake(
    "Only the first layer is called: a return inside the loop ends it. Put it behind the loop.",
    {"x = layer(x, mask)": "return head(layer(x, mask))"},
    {"in layers": "in layers[:1]"},
)
decoder.mistake(
    "The layers are called in the wrong order, the last one first.",
    {"in layers": "in reversed(layers)"},
)
decoder.mistake(
    "The same layer is called again and again. Each has weights of its own.",
    {"x = layer(": "x = layers[0]("},
    {"x = layer(": "x = layers[-1]("},
)
decoder.mistake(
    """x is added to what each layer gives. A layer has its residual connections inside.""",
    {"x = layer(x, mask)": "x = x + layer(x, mask)"},
)
decoder.mistake(
    "head is not called: these are the vectors of the last layer. It makes logits of them.",
    {"head(x)": "x"},
)
decoder.mistake(
    """What comes out are not the logits, but what was made of them: probabilities, their
    logarithms, or the likeliest tokens. A loss and a sampler want the logits.""",
    {"head(x)": "head(x).softmax(dim=-1)"},
    {"head(x)": "head(x).log_softmax(dim=-1)"},
    {"head(x)": "head(x).argmax(dim=-1)"},
)
decoder.mistake(
    "Only the last position has logits. In training every position predicts: give all of them.",
    {"head(x)": "head(x[:, -1])"},
    {"head(x)": "head(x)[:, -1]"},
    {"head(x)": "head(x[:, -1:])"},
)
decoder.mistake(
    """Real tokens are counted, and then taken to stand on one side, all on the left or all on the
    right. Padding may stand on either: ask attention_mask at each position.""",
    {
        "attention_mask != 0": "torch.arange(attention_mask.shape[1]) < "
        "attention_mask.sum(dim=1)[:, None]"
    },
    {
        "attention_mask != 0": "torch.arange(attention_mask.shape[1]) >= "
        "attention_mask.shape[1] - attention_mask.sum(dim=1)[:, None]"
    },
)
decoder.mistake(
    """The vectors or the logits are scaled, or brought to a norm. The parts that are given do all
    that is wanted.""",
    {"    for layer": "    x = x * x.shape[-1] ** 0.5\n    for layer"},
    {"head(x)": "head(x) / x.shape[-1] ** 0.5"},
    {"head(x)": "head(F.layer_norm(x, x.shape[-1:]))"},
)


@decoder.check(points=1)
def each_part_is_called_once(fn, draw: Draw):
    """The embedding, the layers and the head are called once each."""
    ids, mask, embedding, layers, head = _decoder_arguments(draw, draw.attention_mask(2, 4), 3)
    names = "embedding", "head", *(f"layers[{i}]" for i in range(len(layers)))
    counted = [Counted(part) for part in (embedding, head, *layers)]
    fn(ids, mask, counted[0], counted[2:], counted[1])
    expect_each_called_once(dict(zip(names, counted, strict=True)))


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
        "Build a dictionary from our names to tensors, one stored name after the other; then "
        "compare its keys with the names wanted, both ways: what differs stands in the KeyError.",
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
