"""Chapter 3: many heads."""

import torch
from einops import rearrange
from torch import Tensor

from minitransformer.exercises.chapters.attention import OF_THE_SCORES
from minitransformer.exercises.exercise import Draw, Inputs, exercise


@exercise(
    "Splitting into heads",
    chapter=3,
    about="""A head gets its own slice of every token's vector. The classic mistake has the right
        shape and mixes tokens.""",
    hints=[
        "First cut the last axis into heads and width, then move the axis of the heads.",
        "view(batch, heads, length, -1) has the right shape and is wrong: it cuts across tokens.",
        "x.view(batch, length, num_heads, -1).transpose(1, 2), or einops: b t (h d) -> b h t d.",
    ],
    inputs=lambda draw: {
        "one sequence of two tokens": (draw.normal(1, 2, 12), 4),
        "three sequences": (draw.normal(3, 5, 8), 4),
        "more heads than tokens": (draw.normal(2, 3, 20), 5),
    },
    edges=lambda draw: {
        "one head": (draw.normal(2, 3, 4), 1),
        "heads of width 1": (draw.normal(2, 3, 4), 4),
    },
)
def split_heads(x: Tensor, num_heads: int) -> Tensor:
    """Head h gets the h-th slice of every token's vector: numbers h * width to (h + 1) * width - 1.

    x: (batch, length, num_heads * width) float; width is what each head gets
    returns: (batch, num_heads, length, width)
    """
    ### BEGIN SOLUTION
    batch, length, d_model = x.shape
    return x.reshape(batch, length, num_heads, d_model // num_heads).transpose(1, 2)
    ### END SOLUTION


CUT = "reshape(batch, length, num_heads, d_model // num_heads)"
SPLIT = f"x.{CUT}.transpose(1, 2)"
SLICES = "x.chunk(num_heads, dim=-1)"
split_heads.mistake(
    """The numbers are cut straight into the final shape, as they lie in memory: the shape is right,
    but a head gets numbers of several tokens mixed. Cut the last axis alone, and move the axis of
    the heads then.""",
    {SPLIT: "x.reshape(batch, num_heads, length, d_model // num_heads)"},
    {SPLIT: "x.reshape(num_heads, batch, length, d_model // num_heads).transpose(0, 1)"},
)
split_heads.mistake(
    """Tokens and numbers are exchanged first, and then cut: the shape is right, but a head gets
    numbers of several tokens mixed. Cut the last axis first, and move the axis of the heads
    then.""",
    {SPLIT: "x.transpose(1, 2).reshape(batch, num_heads, length, d_model // num_heads)"},
    {
        SPLIT: "x.transpose(1, 2).reshape(batch, num_heads, d_model // num_heads, length)"
        ".reshape(batch, num_heads, length, d_model // num_heads)"
    },
)
split_heads.mistake(
    """The slices of neighboring heads overlap: head h begins at number h. It begins at h times the
    width of a head.""",
    {SPLIT: "torch.stack([x[..., h : h + d_model // num_heads] for h in range(num_heads)], dim=1)"},
)
split_heads.mistake(
    """The numbers are scaled, by the root of the width or otherwise. They are only put in another
    order here; attention divides its scores.""",
    {"return x": "return (d_model // num_heads) ** -0.5 * x"},
    {"return x": "return (d_model // num_heads) ** 0.5 * x"},
    {"return x": "return num_heads ** -0.5 * x"},
    {"return x": "return 1 / num_heads * x"},
    {"return x": "return d_model ** -0.5 * x"},
)
split_heads.mistake(
    "Only the first sequence is split: the others of the batch are lost.",
    {"batch, length, d_model = x.shape": "x = x[:1]\n    batch, length, d_model = x.shape"},
    {SPLIT: f"x[:1].expand_as(x).{CUT}.transpose(1, 2)"},
    {SPLIT: f"{SPLIT}[0]"},
)
split_heads.mistake(
    """The slices come in the right order, but the numbers within each do not: they are
    reversed.""",
    {".transpose(1, 2)": ".transpose(1, 2).flip(-1)"},
)
split_heads.mistake(
    """The axis of the heads still stands behind the tokens: (batch, length, num_heads, width). Move
    it in front of them.""",
    {".transpose(1, 2)": ""},
    {SPLIT: f"torch.stack({SLICES}, dim=2)"},
)
split_heads.mistake(
    """A head gets every num_heads-th number of a token, not a slice: the last axis is cut into
    width and heads, where it should be heads and width.""",
    {"num_heads, d_model // num_heads)": "d_model // num_heads, num_heads).transpose(2, 3)"},
)
split_heads.mistake(
    """num_heads is taken for the width of a head: there are as many heads as each should have
    numbers.""",
    {SPLIT: "x.unflatten(-1, (-1, num_heads)).permute(0, 2, 1, 3)"},
    {SPLIT: "torch.stack(x.split(num_heads, dim=-1), dim=1)"},
)
split_heads.mistake(
    """The last axis is cut as it should be, but other axes are exchanged than those of tokens and
    heads, 1 and 2.""",
    {".transpose(1, 2)": ".transpose(2, 3)"},
    {".transpose(1, 2)": ".transpose(1, 3)"},
    {".transpose(1, 2)": ".transpose(0, 2)"},
    {".transpose(1, 2)": ".transpose(0, 1)"},
)
split_heads.mistake(
    """One axis too many is exchanged: tokens and width have changed places, as keys do for the
    scores. Leave that to attention.""",
    {".transpose(1, 2)": ".transpose(1, 2).transpose(2, 3)"},
)
split_heads.mistake(
    """Batch and heads share one axis, as in torch's MultiheadAttention. Here each has its own:
    (batch, num_heads, length, width).""",
    {".transpose(1, 2)": ".transpose(1, 2).flatten(0, 1)"},
)
split_heads.mistake(
    "The heads stand in front of the batch: stack them along axis 1.",
    {".transpose(1, 2)": ".permute(2, 0, 1, 3)"},
    {SPLIT: f"torch.stack({SLICES})"},
)
split_heads.mistake(
    "The heads lie in a tuple or a list: one tensor is wanted, with them along axis 1.",
    {SPLIT: SLICES},
    {SPLIT: f"list({SLICES})"},
)
split_heads.mistake(
    "The slices are joined along the tokens or the batch, so that there is no axis for the heads.",
    {SPLIT: f"torch.cat({SLICES}, dim=1)"},
    {SPLIT: f"torch.cat({SLICES}, dim=0)"},
)
split_heads.mistake(
    "Every head gets the whole vector of a token. Each should have a slice of it.",
    {SPLIT: "x[:, None].expand(-1, num_heads, -1, -1)"},
)
split_heads.mistake(
    "Every head gets the first slice. Head h should have the h-th.",
    {SPLIT: "x[:, None, :, : d_model // num_heads].expand(-1, num_heads, -1, -1)"},
)
split_heads.mistake(
    "The heads come in the reverse order.",
    {".transpose(1, 2)": ".transpose(1, 2).flip(1)"},
)


@exercise(
    "Sharing key heads",
    chapter=3,
    about="""In grouped-query attention (Ainslie et al. 2023, arXiv:2305.13245) several
        neighboring query heads read one key head: fewer keys to keep in the cache.""",
    hints=[
        "Each key head is needed num_heads // num_kv_heads times in a row.",
        "torch has two ways to repeat: 0 0 1 1 and 0 1 0 1. Neighbors share a head.",
        "x.repeat_interleave(num_heads // x.shape[1], dim=1)",
    ],
    inputs=lambda draw: {
        "two key heads for four query heads": (draw.normal(1, 2, 3, 5), 4),
        "three key heads for six query heads": (draw.normal(2, 3, 4, 5), 6),
        "two key heads for six query heads": (draw.normal(3, 2, 4, 5), 6),
    },
    edges=lambda draw: {
        "a single key head": (draw.normal(2, 1, 3, 4), 5),
        "as many key heads as query heads": (draw.normal(1, 3, 2, 4), 3),
    },
)
def share_heads(x: Tensor, num_heads: int) -> Tensor:
    """A key head for every query head: each is repeated for a group of neighboring query heads.

    Two key heads serve four query heads in the order 0 0 1 1.

    x: (batch, num_kv_heads, length, width) float; the keys, or the values
    num_heads: of the queries; num_kv_heads or a multiple of it
    returns: (batch, num_heads, length, width)
    """
    ### BEGIN SOLUTION
    return x.repeat_interleave(num_heads // x.shape[1], dim=1)
    ### END SOLUTION


GROUP = "num_heads // x.shape[1]"
SHARED = f"x.repeat_interleave({GROUP}, dim=1)"
share_heads.mistake(
    """The key heads are repeated as a whole: 0 1 0 1, where 0 0 1 1 is wanted. The shape is right,
    but weights that were trained one way are nonsense the other way.""",
    {SHARED: f"x.repeat(1, {GROUP}, 1, 1)"},
    {SHARED: f"torch.cat([x] * ({GROUP}), dim=1)"},
    {SHARED: f"torch.stack([x] * ({GROUP}), dim=1).flatten(1, 2)"},
    {SHARED: f"x[:, None].expand(-1, {GROUP}, -1, -1, -1).flatten(1, 2)"},
    {SHARED: "x[:, torch.arange(num_heads) % x.shape[1]]"},
)
share_heads.mistake(
    "Every query head reads the first key head, and the others are lost.",
    {SHARED: "x[:, :1].expand(-1, num_heads, -1, -1)"},
)
share_heads.mistake(
    """Every key head is repeated as often as there are query heads, or as there are key heads. A
    group has num_heads // num_kv_heads query heads.""",
    {GROUP: "num_heads"},
    {GROUP: "x.shape[1]"},
)
share_heads.mistake(
    "It is not the heads that are repeated, axis 1, but another axis, or the numbers one by one.",
    {"dim=1": "dim=0"},
    {"dim=1": "dim=2"},
    {"dim=1": "dim=-1"},
    {", dim=1": ""},
)
share_heads.mistake(
    """The copies stand along an axis of their own: bring the two axes together to
    (batch, num_heads, length, width).""",
    {SHARED: f"x[:, :, None].expand(-1, -1, {GROUP}, -1, -1)"},
    {SHARED: f"x[:, None].expand(-1, {GROUP}, -1, -1, -1)"},
)
share_heads.mistake(
    """Positions are repeated, or single numbers, and the result is cut into heads: the shape is
    right, but a head has some of its numbers several times and others not at all.""",
    {SHARED: f"x.repeat_interleave({GROUP}).reshape(x.shape[0], num_heads, *x.shape[2:])"},
    {SHARED: f"x.repeat_interleave({GROUP}, -1).reshape(x.shape[0], num_heads, *x.shape[2:])"},
    {SHARED: f"x.repeat_interleave({GROUP}, dim=2).reshape(x.shape[0], num_heads, *x.shape[2:])"},
)
share_heads.mistake(
    """The batch is repeated, and the result is cut into heads: query heads read the keys of other
    sequences.""",
    {SHARED: f"x.repeat({GROUP}, 1, 1, 1).reshape(x.shape[0], num_heads, *x.shape[2:])"},
)
share_heads.mistake(
    "The key heads are averaged. Each group of query heads reads a head of its own, as it is.",
    {SHARED: "x.mean(dim=1, keepdim=True).expand(-1, num_heads, -1, -1)"},
)
share_heads.mistake(
    "Nothing is repeated: there are as many heads as before.",
    {SHARED: "x"},
)
share_heads.mistake(
    """The number of a query head is divided by how many key heads there are. Divide it by the size
    of a group, num_heads // num_kv_heads.""",
    {SHARED: "x[:, torch.arange(num_heads) // x.shape[1]]"},
)
share_heads.mistake(
    "Key heads are counted from the end: the last ones serve the first query heads.",
    {SHARED: SHARED + ".flip(1)"},
)
share_heads.mistake(
    """Query heads beyond the number of key heads get nothing of their own: the last key head again,
    or zeros. Every key head should serve equally many.""",
    {SHARED: "x[:, torch.arange(num_heads).clamp(max=x.shape[1] - 1)]"},
    {SHARED: "torch.cat((x, x.new_zeros(x.shape[0], num_heads - x.shape[1], *x.shape[2:])), 1)"},
)
share_heads.mistake(
    """Only one query head of each group gets the key head, and the others get zeros. All of a group
    read it.""",
    """
    shared = x.new_zeros(x.shape[0], num_heads, *x.shape[2:])
    shared[:, :: num_heads // x.shape[1]] = x
    return shared
    """,
    """
    group = num_heads // x.shape[1]
    shared = x.new_zeros(x.shape[0], num_heads, *x.shape[2:])
    shared[:, group - 1 :: group] = x
    return shared
    """,
)
share_heads.mistake(
    """The key heads are scaled, divided by the size of a group or the like. Each copy is the head
    as it is: nothing is shared out.""",
    {"return x": f"return 1 / ({GROUP}) * x"},
    {"return x": f"return ({GROUP}) ** -0.5 * x"},
    {"return x": f"return ({GROUP}) * x"},
    {"return x": "return 1 / num_heads * x"},
    {"return x": "return 1 / x.shape[1] * x"},
)
share_heads.mistake(
    """The groups begin one query head too early or too late. Query head h reads key head h //
    group, counted from 0.""",
    {SHARED: f"x[:, ((torch.arange(num_heads) + 1) // ({GROUP})).clamp(max=x.shape[1] - 1)]"},
    {SHARED: f"x[:, (torch.arange(num_heads) + 1) // ({GROUP}) % x.shape[1]]"},
    {SHARED: f"x[:, ((torch.arange(num_heads) - 1) // ({GROUP})).clamp(min=0)]"},
    {SHARED: f"x[:, (torch.arange(num_heads) - 1) // ({GROUP})]"},
    {SHARED: f"{SHARED}.roll(1, 1)"},
    {SHARED: f"{SHARED}.roll(-1, 1)"},
)
share_heads.mistake(
    """The number of a group is counted one too many or too few: query head h reads the key head
    before or after its own.""",
    {SHARED: f"x.roll(1, 1).repeat_interleave({GROUP}, dim=1)"},
    {SHARED: f"x.roll(-1, 1).repeat_interleave({GROUP}, dim=1)"},
    {SHARED: f"x[:, (torch.arange(num_heads) // ({GROUP}) + 1).clamp(max=x.shape[1] - 1)]"},
)
share_heads.mistake(
    "There are too many copies, one more for each key head than a group has query heads.",
    {GROUP: f"{GROUP} + 1"},
)
share_heads.mistake(
    "The first sequence of the batch serves all.",
    {SHARED: f"x[:1].repeat_interleave({GROUP}, dim=1).expand(len(x), -1, -1, -1)"},
    {SHARED: f"x[:1].repeat_interleave({GROUP}, dim=1)"},
)
share_heads.mistake(
    "Every query head reads the last key head, and the others are lost.",
    {SHARED: "x[:, -1:].expand(-1, num_heads, -1, -1)"},
)
share_heads.mistake(
    "Length and width have changed places. The copies are as the key heads were.",
    {"return x": "return x.mT"},
)


def _projected(
    draw: Draw, batch: int, num_heads: int, width: int, mask: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, int]:
    """Arguments of multi_head_attention, with heads of this width."""
    d_model = num_heads * width
    x, memory = (draw.normal(batch, length, d_model) for length in mask.shape[-2:])
    weights = (draw.normal(d_model, d_model) / d_model**0.5 for _ in range(4))
    return x, memory, mask, *weights, num_heads


def _with_itself(draw: Draw) -> tuple:
    x, _, *others = _projected(draw, 2, 3, 2, torch.ones(1, 1, 4, 4, dtype=torch.bool))
    return x, x.clone(), *others


def _masked_key_wins(draw: Draw) -> tuple:
    """The masked key has the largest score by far, all others are below -1e9."""
    mask = torch.tensor([True, True, False]).expand(1, 1, 2, 3)
    x, memory, mask, *weights, num_heads = _projected(draw, 1, 2, 2, mask)
    large = 1e5 * torch.eye(4)
    memory = memory.abs() * torch.tensor([-1.0, -1.0, 1.0]).view(1, 3, 1)
    return x.abs(), memory, mask, large, large, *weights[2:], num_heads


@exercise(
    "Multi-head attention",
    chapter=3,
    about="""Everything of this chapter in one function (Vaswani et al. 2017, section 3.2.2):
        project, split into heads, attend under the mask, merge the heads, project again. Self- and
        cross-attention are the same function: `memory` is `x` itself, or another text.""",
    hints=[
        "Queries come from x, keys and values from memory. A weight is stored (out, in), as "
        "torch.nn.Linear stores it: the projection is x @ weight.T.",
        "Split as in split_heads; score, mask and softmax as in the attention of chapter 2, with "
        "the root of the width of a HEAD. Then undo the split: the transpose first.",
        "heads.transpose(1, 2).reshape(batch, queries, d_model) @ w_output.T, where heads is "
        "softmax(query @ key.transpose(-2, -1) / width**0.5, -inf where ~mask) @ value.",
    ],
    inputs=lambda draw: {
        "one head and nothing masked": _projected(
            draw, 1, 1, 3, torch.ones(1, 1, 2, 2, dtype=torch.bool)
        ),
        "two heads and nothing masked": _projected(
            draw, 1, 2, 3, torch.ones(1, 1, 4, 5, dtype=torch.bool)
        ),
        "memory that is x itself": _with_itself(draw),
        "one mask for two sequences": _projected(draw, 2, 3, 4, draw.mask(1, 5, 7)),
        "a mask for each sequence": _projected(draw, 3, 2, 5, draw.mask(3, 6, 4)),
        "a mask for each head": _projected(draw, 2, 3, 4, draw.mask(2, 5, 7, heads=3)),
        "as many queries as keys": _projected(draw, 3, 2, 4, draw.mask(3, 5, 5, heads=2)),
    },
    edges=lambda draw: {
        "heads of width 1": _projected(draw, 2, 4, 1, draw.mask(2, 3, 5)),
        "a masked key of the largest score": _masked_key_wins(draw),
    },
    points=4,
)
def multi_head_attention(
    x: Tensor,
    memory: Tensor,
    mask: Tensor,
    w_query: Tensor,
    w_key: Tensor,
    w_value: Tensor,
    w_output: Tensor,
    num_heads: int,
) -> Tensor:
    """Every position of x collects from the positions of memory that the mask allows.

    Each head attends for itself, with scores divided by the root of its width, and head h works on
    the h-th slice of every projected vector. The heads are put side by side and projected.

    x: (batch, queries, d_model); memory: (batch, keys, d_model), the source of keys and values
    mask: (batch or 1, num_heads or 1, queries, keys) bool, True = may attend; every query may
    attend to a key, and a masked key has a weight of exactly 0
    w_query, w_key, w_value, w_output: (d_model, d_model), stored as (out, in); there are no biases
    num_heads: divides d_model
    returns: (batch, queries, d_model)
    """
    ### BEGIN SOLUTION
    query = rearrange(x @ w_query.T, "b n (h w) -> b h n w", h=num_heads)
    key = rearrange(memory @ w_key.T, "b n (h w) -> b h n w", h=num_heads)
    value = rearrange(memory @ w_value.T, "b n (h w) -> b h n w", h=num_heads)
    scores = query @ key.transpose(-2, -1) / query.shape[-1] ** 0.5
    weights = scores.masked_fill(~mask, float("-inf")).softmax(dim=-1)
    heads = weights @ value
    return rearrange(heads, "b h n w -> b n (h w)") @ w_output.T
    ### END SOLUTION


SPLIT, MERGE = '"b n (h w) -> b h n w", h=num_heads)', 'rearrange(heads, "b h n w -> b n (h w)")'
CUT = {  # each projection, viewed into the final shape
    f"rearrange({source} @ {weight}.T, {SPLIT}": f"({source} @ {weight}.T).reshape("
    f"len(x), num_heads, {source}.shape[1], -1)"
    for source, weight in (("x", "w_query"), ("memory", "w_key"), ("memory", "w_value"))
}
FLAT = "heads.reshape(len(x), x.shape[1], -1)"
HIDDEN = 'scores.masked_fill(~mask, float("-inf"))'
multi_head_attention.mistake(
    """The heads are cut across tokens: a view into (batch, heads, length, width) has the right
    shape, and a head then holds pieces of several tokens. Split the last axis, then transpose.""",
    CUT,
    {**CUT, MERGE: FLAT},
)
multi_head_attention.mistake(
    """The heads are merged without a transpose: the axis of the heads must stand beside their width
    before the two become one, or a vector is put together of several tokens.""",
    {MERGE: FLAT},
)
multi_head_attention.mistake(
    """The scores are divided by the root of d_model. It is the root of the width of a head,
    d_model / num_heads.""",
    {"query.shape[-1] ** 0.5": "x.shape[-1] ** 0.5"},
)
multi_head_attention.mistake(
    """The root is taken of another size, the number of keys, of queries or of heads. It is that of
    the width of a head, d_model / num_heads.""",
    {"query.shape[-1] ** 0.5": "key.shape[-2] ** 0.5"},
    {"query.shape[-1] ** 0.5": "query.shape[-2] ** 0.5"},
    {"query.shape[-1] ** 0.5": "num_heads ** 0.5"},
)
for says, edits in OF_THE_SCORES.items():
    multi_head_attention.mistake(says, *edits)
multi_head_attention.mistake(
    """The last projection is missing: w_output mixes what the heads have found.""",
    {" @ w_output.T": ""},
)
multi_head_attention.mistake(
    """A weight is used as it is stored. Its rows are the outputs, (out, in), so a projection is
    x @ weight.T, as in torch.nn.Linear. Look at all four.""",
    {".T": ""},
    {"w_output.T": "w_output"},
    {"w_query.T": "w_query", "w_key.T": "w_key", "w_value.T": "w_value"},
)
multi_head_attention.mistake(
    """Keys, values or both are made of x. They belong to memory: x is the one that asks.""",
    {"memory @": "x @"},
    {"memory @ w_key": "x @ w_key"},
    {"memory @ w_value": "x @ w_value"},
)
multi_head_attention.mistake(
    """x and memory have changed places: queries come from x, keys and values from memory.""",
    {"x @ w_query": "memory @ w_query", "memory @ w_key": "x @ w_key", "memory @ w_v": "x @ w_v"},
    {"x @ w_query": "memory @ w_query"},
)
multi_head_attention.mistake(
    """A weight does the work of another: w_query makes the queries, w_key the keys, w_value the
    values.""",
    {"memory @ w_value.T": "memory @ w_key.T"},
    {"memory @ w_key.T": "memory @ w_value.T", "memory @ w_value.T": "memory @ w_key.T"},
    {"memory @ w_key.T": "memory @ w_value.T"},
    {"memory @ w_key.T": "memory @ w_query.T"},
    {"x @ w_query.T": "x @ w_key.T", "memory @ w_key.T": "memory @ w_query.T"},
)
multi_head_attention.mistake(
    """The mask is used upside down: what it allows is hidden. masked_fill fills where its mask is
    True, and in this mask True means "may attend".""",
    {"~mask": "mask"},
    {HIDDEN: "scores.masked_fill(mask, -1e9)"},
)
multi_head_attention.mistake(
    """The mask comes after the softmax: masked keys have had their part in its sum, and what is
    left does not sum to 1. Hide the scores, before the softmax.""",
    {HIDDEN: "scores", ".softmax(dim=-1)": ".softmax(dim=-1) * mask"},
)
multi_head_attention.mistake(
    "The mask is never used: every position sees every other.",
    {HIDDEN: "scores"},
)
multi_head_attention.mistake(
    """-inf is put in after the softmax, where it is a weight, and the largest of all. It belongs to
    the scores, before the softmax.""",
    {HIDDEN: "scores", ".softmax(dim=-1)": '.softmax(dim=-1).masked_fill(~mask, float("-inf"))'},
)
multi_head_attention.mistake(
    """The mask of True and False is added to the scores, as 1 and 0: nothing is hidden. What is
    added must be 0 and -inf.""",
    {HIDDEN: "(scores + mask)"},
)
multi_head_attention.mistake(
    """The weights are masked after the softmax and divided by their sum again. On paper that is
    right; but where a masked key has by far the largest score, no weight is left to divide by.""",
    {
        f"{HIDDEN}.softmax(dim=-1)": "(lambda w: w / w.sum(dim=-1, keepdim=True))"
        "(scores.softmax(dim=-1) * mask)"
    },
    {
        f"{HIDDEN}.softmax(dim=-1)": "(lambda w: w / w.sum(dim=-1, keepdim=True).clamp(min=1e-9))"
        "(scores.softmax(dim=-1) * mask)"
    },
)
multi_head_attention.mistake(
    "There is no softmax: the scores themselves weigh the values.",
    {f"{HIDDEN}.softmax(dim=-1)": "scores.masked_fill(~mask, 0.0)"},
)
multi_head_attention.mistake(
    """The heads are added up or averaged. They are put side by side, each in its own slice.""",
    {MERGE: "heads.mean(dim=1).repeat(1, 1, num_heads)"},
    {MERGE: "heads.sum(dim=1).repeat(1, 1, num_heads)"},
)
multi_head_attention.mistake(
    """x is added to what comes out. The residual connection belongs to the layer around it.""",
    {" @ w_output.T": " @ w_output.T + x"},
)
multi_head_attention.mistake(
    "Every sequence has the mask of the first one.",
    {"~mask": "~mask[:1]"},
    {"~mask": "~mask[0, 0]"},
)
multi_head_attention.mistake(
    "Every head attends as the first one does.",
    {"weights @ value": "weights[:, :1] @ value"},
)
multi_head_attention.mistake(
    "Every head has the mask of the first head.",
    {"~mask": "~mask[:, :1]"},
)
multi_head_attention.mistake(
    """There is one head as wide as d_model: num_heads is not used.""",
    {"h=num_heads": "h=1"},
)
multi_head_attention.mistake(
    """The heads take every num_heads-th number of a vector in place of a slice: the last axis is
    cut into (heads, width), in this order, and merged in this order.""",
    {"(h w) -> b h n w": "(w h) -> b h n w"},
    {"-> b n (h w)": "-> b n (w h)"},
    {"(h w)": "(w h)"},
)
multi_head_attention.mistake(
    """Masked scores become a number that a score can fall below: a masked key still gets weight.
    Only -inf gives a weight of exactly 0.""",
    {'float("-inf")': "-1e9"},
    {'float("-inf")': "-1e4"},
    {'float("-inf")': "0.0"},
    {HIDDEN: "(scores * mask)"},
)


def _weights_and_mask(draw: Draw, heads: int, queries: int, keys: int) -> tuple[Tensor, Tensor]:
    """Of an attention that is right: masked keys have weights of 0, and rows sum to 1."""
    mask = draw.mask(1, queries, keys)[0]
    mask[0, 0, -1] = False
    mask[0, 0, 0] = True
    scores = draw.normal(heads, queries, keys).masked_fill(~mask, float("-inf"))
    return scores.softmax(dim=-1), mask


def _leaks(draw: Draw) -> Inputs:
    rows = [[1.0, 1.0, 0.0, 0.0], [1.0, 1.0, 1.0, 0.0], [1.0, 1.0, 0.0, 0.0]]
    mask = torch.tensor(rows).bool()[None]
    leaking = torch.tensor([[0.5, 0.25, 0.25, 0.0], [0.5, 0.3, 0.2, 1e-9], [0.75, 0.25, 0.0, 0.0]])
    tight = torch.tensor([[0.5, 0.5, 0.0, 0.0], [0.5, 0.3, 0.2, 0.0], [0.25, 0.75, 0.0, 0.0]])
    unwanted = torch.tensor([[1.0, 0.0, 0.0, 0.0], [0.5, 0.0, 0.5, 0.0], [0.0, 1.0, 0.0, 0.0]])
    return {
        "masked keys that have a weight, 0.25 and 1e-9": (torch.stack((leaking, tight)), mask),
        "an allowed key of weight 0": (torch.stack((tight, unwanted)), mask),
    }


@exercise(
    "An attention map that tells the truth",
    chapter=3,
    about="""Pictures of attention lie easily: a masked key looks like one that nobody wanted, heads
        are averaged away, and rows are stretched until everything is dark. Make the numbers that a
        picture should show, cell by cell.""",
    hints=[
        "A masked key is not a weight of 0, it is no weight at all: matplotlib leaves NaN blank.",
        "But a weight that leaks through the mask is the most important cell of all: keep it.",
        "weights.masked_fill(~mask & (weights == 0), float('nan')); no averaging, no rescaling.",
    ],
    inputs=lambda draw: {
        "one head": _weights_and_mask(draw, 1, 3, 3),
        "two heads": _weights_and_mask(draw, 2, 3, 5),
        "five heads": _weights_and_mask(draw, 5, 4, 3),
    },
    edges=_leaks,
)
def attention_map(weights: Tensor, mask: Tensor) -> Tensor:
    """What to draw in each cell: the weight as it is, or NaN, which is left blank.

    NaN belongs where the mask forbids the key and its weight is exactly 0. A masked key with any
    other weight, however small, is a leak: it is shown with its weight. So is every key that may be
    seen, if its weight is 0, too.

    weights: (heads, queries, keys) float
    mask: (1, queries, keys) bool, True = may attend
    returns: (heads, queries, keys) float
    """
    ### BEGIN SOLUTION
    return weights.masked_fill(~mask & (weights == 0.0), float("nan"))
    ### END SOLUTION


BLANK = "~mask & (weights == 0.0)"
MAP = f'weights.masked_fill({BLANK}, float("nan"))'
MAP_OF_MEAN = MAP.replace("weights", "weights.mean(dim=0, keepdim=True)")
attention_map.mistake(
    """Every masked cell is blank, and with it every leak: a masked key that has a weight is the bug
    that people draw maps to find. Blank it only where the weight is exactly 0.""",
    {BLANK: "~mask"},
)
attention_map.mistake(
    """Every weight of 0 is blank, that of an allowed key, too. Such a key was there to be chosen:
    draw it as 0.""",
    {BLANK: "weights == 0.0"},
)
attention_map.mistake(
    """Masked cells hold a number, and matplotlib gives every number a color: a masked key then
    looks like one that nobody wanted. Only NaN is left blank.""",
    {'float("nan")': "0.0"},
    {'float("nan")': "-1.0"},
    {MAP: "weights * mask"},
)
attention_map.mistake(
    """The heads are averaged: what one of them does is lost among the others. Each has a map of its
    own.""",
    {"weights.masked_fill": "weights.mean(dim=0, keepdim=True).masked_fill"},
    {"weights.masked_fill": "weights.mean(dim=0, keepdim=True).expand_as(weights).masked_fill"},
    {MAP: f"{MAP}.mean(dim=0)"},
    {MAP: f"{MAP}.mean(dim=0, keepdim=True)"},
    {MAP: MAP_OF_MEAN},
    {MAP: f"{MAP_OF_MEAN}[0]"},
    {MAP: f"{MAP_OF_MEAN}.expand_as(weights)"},
)
attention_map.mistake(
    """The weights are stretched, so that the largest becomes 1: half a weight looks like a whole
    one, and rows or heads cannot be compared. Draw them as they are.""",
    {"weights.masked_fill": "(weights / weights.amax(dim=-1, keepdim=True)).masked_fill"},
    {"weights.masked_fill": "(weights / weights.amax(dim=(1, 2), keepdim=True)).masked_fill"},
    {"weights.masked_fill": "(weights / weights.max()).masked_fill"},
)
attention_map.mistake(
    """The mask is used upside down: True means "may attend", and these are the cells that must be
    drawn.""",
    {"~mask": "mask"},
    {BLANK: "mask"},
)
attention_map.mistake(
    """A cell is blank as soon as one of two things holds: it is masked, or its weight is 0. Both
    must.""",
    {"~mask &": "~mask |"},
)
attention_map.mistake(
    "A small leak is rounded away: only a weight of exactly 0 is none.",
    {"weights == 0.0": "weights < 1e-6"},
    {"weights == 0.0": "weights < 1e-3"},
    {"weights == 0.0": "torch.isclose(weights, torch.zeros_like(weights))"},
)
attention_map.mistake(
    """Whether something leaks is asked of a row, of a head, of all heads at once or of the whole
    map, not of each cell: masked cells without a weight are drawn because of another one.""",
    {"weights == 0.0": "weights.sum(dim=0, keepdim=True) == 0.0"},
    {"weights == 0.0": "weights.sum(dim=1, keepdim=True) == 0.0"},
    {BLANK: "~mask & ~(~mask & (weights != 0)).any(dim=1, keepdim=True)"},
    {BLANK: "~mask & ~(~mask & (weights != 0)).any(dim=-1, keepdim=True)"},
    {BLANK: "~mask & ~(~mask & (weights != 0)).any(dim=(1, 2), keepdim=True).expand_as(weights)"},
    {BLANK: "~mask & ~(~mask & (weights != 0)).any()"},
)
attention_map.mistake(
    """The weights are rounded for the picture, and a small leak becomes 0. Leave rounding to
    whoever draws.""",
    {MAP: MAP.replace("weights.masked_fill", "weights.round(decimals=2).masked_fill")},
    {MAP: f"{MAP}.round(decimals=2)"},
    {MAP: f"{MAP}.round(decimals=3)"},
)
attention_map.mistake(
    """The rows are divided by their sum, without what masked keys have of it: the picture shows an
    attention that is not there. Draw the weights as they are.""",
    *(
        {
            MAP: "(lambda w: w / w.sum(dim=-1, keepdim=True))(weights * mask)"
            f".masked_fill({blank}, float('nan'))"
        }
        for blank in (BLANK, "~mask")
    ),
)
attention_map.mistake(
    """A cell that should be blank holds inf or -inf. That is for scores, before a softmax; in a map
    of weights NaN says that there is none.""",
    {'float("nan")': 'float("-inf")'},
    {'float("nan")': 'float("inf")'},
)
attention_map.mistake(
    """Leaks are blank, and masked keys without a weight are drawn: it is the other way round.""",
    {"weights == 0.0": "weights != 0.0"},
    {"weights == 0.0": "weights > 0.0"},
)
attention_map.mistake(
    """A leak is drawn with a number of its own, as an alarm, not with its weight: 1e-9 and 0.25
    then look alike.""",
    *(
        {MAP: f"{MAP}.masked_fill(~mask & (weights != 0.0), {number})"}
        for number in ("1.0", "-1.0", "2.0", "float('inf')")
    ),
    {MAP: f"torch.where(~mask & (weights != 0.0), -weights, {MAP})"},
    {MAP: f"torch.where(~mask & (weights != 0.0), 1 + weights, {MAP})"},
)
attention_map.mistake(
    """The mask is transposed, so that queries and keys have changed places in it. Where both are
    equally many no error says so.""",
    {"~mask": "~mask.mT"},
)
attention_map.mistake(
    """The map is transposed. Queries go down and keys across, as in the weights.""",
    {MAP: f"{MAP}.mT"},
)
attention_map.mistake(
    """A softmax, a logarithm or a root is taken of the weights. They are shares already: draw them
    as they are.""",
    {"return weights": "return weights.softmax(dim=-1)"},
    {"return weights": "return weights.log()"},
    {"return weights": "return weights.sqrt()"},
)
attention_map.mistake(
    "This is the map of the first head alone. Each has its own.",
    {MAP: f"{MAP}[0]"},
    {MAP: f"{MAP}[:1]"},
)
attention_map.mistake(
    """This says which cells are masked, or may be seen, not how much weight they have.""",
    {MAP: BLANK},
    {MAP: f"({BLANK}).float()"},
    {MAP: "mask.expand_as(weights)"},
    {MAP: "mask.expand_as(weights).float()"},
)
