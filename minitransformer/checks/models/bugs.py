"""Models that let padding, the future or a neighbour in. One small transformer, and what is wrong.

`Tiny` is right. Each bug is a fault, a class that overrides one of its methods, mixed into those
of the three models that can have it.
"""

from collections.abc import Callable
from typing import Any

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from minitransformer.checks.engine.bugs import OURS, bug
from minitransformer.masks import causal_mask, padding_mask, zero_padding
from minitransformer.positions import token_positions

PAIR = "encoder-decoder"
VOCAB, WIDTH, HEADS, LONGEST = 11, 16, 2, 32


# ---- the right one -------------------------------------------------------------------------------


class Attention(nn.Module):
    """Queries from x, keys and values from memory."""

    def __init__(self):
        super().__init__()
        self.query, self.key, self.value = (nn.Linear(WIDTH, WIDTH) for _ in range(3))


class Layer(nn.Module):
    def __init__(self):
        super().__init__()
        self.own, self.cross = Attention(), Attention()
        self.wide, self.narrow = nn.Linear(WIDTH, 24), nn.Linear(24, WIDTH)
        self.norm = nn.LayerNorm(WIDTH)


class Tiny(nn.Module):
    """What the three share: every line that a mask has to do with is a method of its own."""

    causal = False

    def __init__(self):
        super().__init__()
        self.tokens, self.places = nn.Embedding(VOCAB, WIDTH), nn.Embedding(LONGEST, WIDTH)
        self.layers = nn.ModuleList(Layer() for _ in range(2))
        self.head = nn.Linear(WIDTH, VOCAB)

    def read(self, layers: nn.ModuleList, ids: Tensor, attention_mask: Tensor, causal: bool):
        """The hidden states (B,T,d) of one sequence that looks at itself."""
        x = self.embed(ids, attention_mask)
        mask = self.own_mask(attention_mask, causal)
        for i, layer in enumerate(layers):
            x = x + self.attention(layer.own, x, x, self.layer_mask(i, mask))
            x = self.think(layer, x, attention_mask)
        return self.finish(x, attention_mask)

    def embed(self, ids: Tensor, attention_mask: Tensor) -> Tensor:
        x = self.tokens(ids) + self.places(self.positions(attention_mask))
        return zero_padding(x, attention_mask)

    def positions(self, attention_mask: Tensor) -> Tensor:
        return token_positions(attention_mask)

    def own_mask(self, attention_mask: Tensor, causal: bool) -> Tensor:
        """(B,1,T,T) bool, True = may attend."""
        return self.padding(attention_mask) & self.past(attention_mask.shape[1], causal)

    def padding(self, attention_mask: Tensor) -> Tensor:
        return padding_mask(attention_mask)

    def past(self, length: int, causal: bool) -> Tensor:
        mask = causal_mask(length)
        return mask if causal else torch.ones_like(mask)

    def layer_mask(self, i: int, mask: Tensor) -> Tensor:
        """What layer i is given."""
        return mask

    def attention(self, part: Attention, x: Tensor, memory: Tensor, mask: Tensor) -> Tensor:
        query, key, value = (
            self.split(linear(states))
            for linear, states in ((part.query, x), (part.key, memory), (part.value, memory))
        )
        scores = query @ key.mT / key.shape[-1] ** 0.5
        return self.merge(self.weights(scores, mask) @ value)

    def split(self, x: Tensor) -> Tensor:
        return rearrange(x, "b t (h d) -> b h t d", h=HEADS)

    def merge(self, x: Tensor) -> Tensor:
        return rearrange(x, "b h t d -> b t (h d)")

    def weights(self, scores: Tensor, mask: Tensor) -> Tensor:
        lowest = torch.finfo(scores.dtype).min
        return scores.masked_fill(~mask, lowest).softmax(-1).masked_fill(~mask, 0.0)

    def think(self, layer: Layer, x: Tensor, attention_mask: Tensor) -> Tensor:
        return layer.norm(x + layer.narrow(F.gelu(layer.wide(x))))

    def finish(self, x: Tensor, attention_mask: Tensor) -> Tensor:
        return x


class TinyEncoder(Tiny):
    def forward(self, ids: Tensor, attention_mask: Tensor) -> Tensor:
        return self.head(self.read(self.layers, ids, attention_mask, self.causal))


class TinyDecoder(TinyEncoder):
    causal = True


class TinyEncoderDecoder(Tiny):
    def __init__(self):
        super().__init__()
        self.source_layers = nn.ModuleList(Layer() for _ in range(2))

    def forward(
        self, source_ids: Tensor, source_mask: Tensor, target_ids: Tensor, target_mask: Tensor
    ) -> Tensor:
        memory = self.read(self.source_layers, source_ids, source_mask, causal=False)
        x = self.embed(target_ids, target_mask)
        own = self.own_mask(target_mask, causal=True)
        cross = self.cross_mask(target_mask, source_mask)
        for i, layer in enumerate(self.layers):
            x = x + self.attention(layer.own, x, x, self.layer_mask(i, own))
            x = x + self.attention(layer.cross, x, memory, cross)
            x = self.think(layer, x, target_mask)
        return self.head(self.finish(x, target_mask))

    def cross_mask(self, target_mask: Tensor, source_mask: Tensor) -> Tensor:
        return padding_mask(target_mask, source_mask)


TINY = {"encoder": TinyEncoder, "decoder": TinyDecoder, "encoder-decoder": TinyEncoderDecoder}


class PaddingEmbedded:
    """Padding comes in as it is, as in most models: it is left to the attention to keep it out."""

    def embed(self, ids: Tensor, attention_mask: Tensor) -> Tensor:
        return self.tokens(ids) + self.places(self.positions(attention_mask))


def fault(
    name: str,
    *,
    tier: str = "core",
    caught_by: dict[str, list[str]],
    diagnosis: str,
    source: str = OURS,
    **conventions: Any,
) -> Callable[[type], type]:
    """Hang a fault in the museum, mixed into each model that `caught_by` names.

    caught_by: kind of model -> the checks that must fail on it. What core checks catch is mixed
    into a model that embeds padding like any other token, and into one that sets it to zero.
    """

    def hang(mixin: type) -> type:
        for kind, checks in caught_by.items():
            bodies = [(mixin, TINY[kind])]
            if tier == "core" and not issubclass(mixin, PaddingEmbedded):
                bodies.insert(0, (mixin, PaddingEmbedded, TINY[kind]))
            story = {"__doc__": mixin.__doc__, "__module__": mixin.__module__}
            name_of = f"{mixin.__name__}{TINY[kind].__name__}"
            broken, *others = (type(name_of, bases, story) for bases in bodies)
            bug(
                kind,
                name if len(caught_by) == 1 else f"{name} ({kind})",
                tier=tier,
                caught_by=checks,
                diagnosis=diagnosis,
                source=source,
                also=others,
                **conventions,
            )(broken)
        return mixin

    return hang


RIGHT, LEFT = "padding_on_the_right_is_irrelevant", "padding_on_the_left_is_irrelevant"
CONTENT = "what_padding_holds_is_irrelevant"
SOURCE, SOURCE_CONTENT = (
    "padding_of_the_source_is_irrelevant",
    "what_the_padding_of_the_source_holds_is_irrelevant",
)
HIDDEN, LEAKS = "every_token_sees_what_it_may", "no_token_sees_what_it_may_not"
ITSELF = "every_token_attends_to_itself"
FUTURE, PREFIX = "the_future_is_invisible", "a_prefix_gives_what_it_gives_in_the_whole"


# ---- the padding mask ----------------------------------------------------------------------------


@fault(
    "padding mask never used",
    caught_by={
        "encoder": [RIGHT, LEFT, "parameter_gradients_do_not_depend_on_padding"],
        "decoder": [LEFT, "parameter_gradients_do_not_depend_on_padding"],
        "encoder-decoder": [LEFT, "parameter_gradients_do_not_depend_on_padding"],
    },
    diagnosis="""The attention_mask does not reach the attention: real tokens attend to padding. A
    decoder padded on the right does not show it, for its padding is in the future.""",
    source="The commonest omission; an optional attention_mask that nobody passes",
)
class NoPaddingMask:
    """The mask is an argument, and is used for the embeddings; nobody hands it to the layers. The
    loss falls all the same."""

    def padding(self, attention_mask: Tensor) -> Tensor:
        return torch.ones_like(padding_mask(attention_mask))

    def cross_mask(self, target_mask: Tensor, source_mask: Tensor) -> Tensor:
        return torch.ones_like(padding_mask(target_mask, source_mask))


@fault(
    "padding mask in the first layer only",
    caught_by={
        "encoder": [RIGHT, LEFT],
        "decoder": [LEFT],
    },
    diagnosis="""Layers after the first attend to padding: their mask was dropped on the way. Where
    padding is set to zero on entry it leaks as a constant: what it holds does not show it, how
    much of it there is does.""",
    source="UvA DL notebooks, tutorial 6: the collection of attention maps, `x = layer(x)`",
)
class FirstLayerOnly:
    """A second method runs the layers, to collect their attention maps, and forgets the mask.
    The maps of layer 2 and up look reasonable, and are not those of the model."""

    def own_mask(self, attention_mask: Tensor, causal: bool) -> Tensor:
        self.unpadded = self.past(attention_mask.shape[1], causal)
        return super().own_mask(attention_mask, causal)

    def layer_mask(self, i: int, mask: Tensor) -> Tensor:
        return mask if i == 0 else self.unpadded.expand_as(mask)


@fault(
    "padding mask in the last layer only",
    caught_by={"encoder": [RIGHT, LEFT, CONTENT, LEAKS], "decoder": [LEFT, CONTENT]},
    diagnosis="""All layers but the last attend to padding, and there padding still holds its own
    token: its id moves the outputs of real tokens.""",
)
class LastLayerOnly(PaddingEmbedded, FirstLayerOnly):
    """The mask is applied "at the end, where it counts". What came in before stays in."""

    def layer_mask(self, i: int, mask: Tensor) -> Tensor:
        return super().layer_mask(1 - i, mask)


@fault(
    "padding mask the wrong way round",
    caught_by={"encoder": [RIGHT, HIDDEN], "decoder": [LEFT, HIDDEN], PAIR: [LEFT, HIDDEN]},
    diagnosis="""Real tokens are hidden and padding is shown: True was taken for "ignore", where it
    means "attend", or the other way round.""",
    source="torch: key_padding_mask and attn_mask of scaled_dot_product_attention mean opposites",
)
class PaddingInverted:
    """Two functions of one library read True in opposite ways. Shapes fit, and the loss falls,
    for a token still has its residual."""

    def padding(self, attention_mask: Tensor) -> Tensor:
        return rearrange(attention_mask == 0, "b k -> b 1 1 k")


@fault(
    "padding on the query axis",
    caught_by={"encoder": [RIGHT, LEFT], "decoder": [LEFT]},
    diagnosis="""The mask hides padded queries, whose outputs nobody reads, and shows padded keys:
    it stands on the other axis.""",
    source="hyunwoongko/transformer, PR 40; bentrevett/pytorch-seq2seq, issue 96",
)
class QueryAxis:
    """`unsqueeze(1).unsqueeze(3)` where `unsqueeze(1).unsqueeze(2)` was meant. No error
    tells that rows of padding then see nothing."""

    def padding(self, attention_mask: Tensor) -> Tensor:
        return rearrange(attention_mask != 0, "b q -> b 1 q 1")


@fault(
    "a length instead of a mask",
    caught_by={"encoder": [LEFT], "decoder": [LEFT], "encoder-decoder": [LEFT]},
    diagnosis="""The mask is made anew from the number of real tokens, as if they stood at the
    start: right with padding on the right, wrong with any other.""",
    source="Mask builders of the form arange(T) < lengths",
)
class FromLengths:
    """`arange(T) < lengths` is right until a batch is padded on the left, to be generated from."""

    def padding(self, attention_mask: Tensor) -> Tensor:
        lengths = (attention_mask != 0).sum(1, keepdim=True)
        return padding_mask(torch.arange(attention_mask.shape[1]) < lengths)


@fault(
    "holes filled in",
    caught_by={
        "encoder": ["padding_between_tokens_is_irrelevant"],
        "decoder": ["padding_between_tokens_is_irrelevant"],
        "encoder-decoder": ["padding_between_tokens_is_irrelevant"],
    },
    diagnosis="""Everything between the first and the last real token is taken for real: padding
    between tokens takes part.""",
    holes=True,
)
class HolesFilled:
    """Start and end are read off the mask. A removed token, or a padded turn in a dialogue, is
    inside."""

    def padding(self, attention_mask: Tensor) -> Tensor:
        real = (attention_mask != 0).long()
        return padding_mask(real.cummax(1).values & real.flip(1).cummax(1).values.flip(1))


@fault(
    "another sequence's mask",
    caught_by={"encoder": [RIGHT, "a_row_alone_equals_it_in_the_batch"], "decoder": [LEFT]},
    diagnosis="""The mask was repeated for the heads in one order, and batch and heads were merged
    in the other: most sequences get the mask of another.""",
    source="torch.nn.MultiheadAttention's (batch · heads) masks: repeat for repeat_interleave",
)
class MaskRepeated:
    """`mask.repeat(heads, 1, 1)` beside `(b h)`: with a batch of one it is right."""

    def weights(self, scores: Tensor, mask: Tensor) -> Tensor:
        mask = mask.expand(-1, 1, -1, -1).repeat(HEADS, 1, 1, 1)  # (h b), taken for (b h):
        mask = rearrange(mask, "(b h) 1 q k -> b h q k", h=HEADS)
        return super().weights(scores, mask)


@fault(
    "heads split without a transpose",
    caught_by={"encoder": [RIGHT, HIDDEN], "decoder": [PREFIX, HIDDEN]},
    diagnosis="""(batch, length, width) was viewed as (batch, heads, length, width of a head): each
    "head" is made of other tokens, so that the mask hides the wrong ones.""",
    source="`view` for `view(...).transpose(1, 2)`: a regular question in forums",
)
class HeadsViewed:
    """The number of elements fits, so `view` says nothing, and `view` back undoes it."""

    def split(self, x: Tensor) -> Tensor:
        return x.reshape(len(x), HEADS, x.shape[1], -1)

    def merge(self, x: Tensor) -> Tensor:
        return x.reshape(len(x), x.shape[2], -1)


@fault(
    "positions counted over padding",
    caught_by={"encoder": [LEFT], "decoder": [LEFT], "encoder-decoder": [LEFT]},
    diagnosis="""Positions are counted from the first column: padding on the left moves every
    token to a later position. Count them over real tokens.""",
    source="transformers, issue 3021: GPT-2 batched with padding on the left",
)
class PositionsOverPadding:
    """`arange(T)` for every row. Training pads on the right and never notices; generation pads on
    the left, and its texts get worse the shorter the prompt."""

    def positions(self, attention_mask: Tensor) -> Tensor:
        return torch.arange(attention_mask.shape[1]).expand_as(attention_mask)


# ---- what is not attention -----------------------------------------------------------------------


@fault(
    "a mean over padding",
    caught_by={"encoder": [RIGHT, LEFT]},
    diagnosis="""A mean over the length counts padding in: divide the sum over real tokens by their
    number.""",
    source="sentence-transformers and many a pooling layer: x.mean(1)",
)
class MeanOverPadding:
    """A summary of the sentence is added to every token: `x.mean(dim=1)`. The longer the batch,
    the less of it."""

    def finish(self, x: Tensor, attention_mask: Tensor) -> Tensor:
        return x + zero_padding(x, attention_mask).mean(dim=1, keepdim=True)


@fault(
    "a norm over time",
    caught_by={"encoder": [RIGHT, LEFT]},
    diagnosis="""A normalization takes its mean and variance over the length, padding included.""",
    source="wav2vec-like encoders with GroupNorm: torchaudio issue 4205, transformers PR 10117",
)
class NormOverTime:
    """GroupNorm over (batch, channels, time), as after a convolution: each of its statistics is
    one number for the sentence and its padding."""

    def finish(self, x: Tensor, attention_mask: Tensor) -> Tensor:
        return F.group_norm(zero_padding(x, attention_mask).mT, 4).mT


@fault(
    "a batch norm",
    caught_by={"encoder": ["training_without_dropout_equals_evaluation"]},
    diagnosis="""In training a batch norm takes statistics over all rows and their padding; in
    evaluation it uses those that it kept: the two modes are different models.""",
    source="torch.nn.BatchNorm1d over padded sequences; torchaudio issue 2242",
)
class OverTheBatch:
    """BatchNorm1d where LayerNorm belongs. The batches with the most padding set the scale."""

    def __init__(self):
        super().__init__()
        self.batch_norm = nn.BatchNorm1d(WIDTH)

    def finish(self, x: Tensor, attention_mask: Tensor) -> Tensor:
        return self.batch_norm(zero_padding(x, attention_mask).mT).mT


@fault(
    "the batch's mean subtracted",
    caught_by={
        kind: ["a_row_alone_equals_it_in_the_batch", "a_row_of_padding_leaves_the_others_alone"]
        for kind in TINY
    },
    diagnosis="""A statistic is taken over the rows of the batch: what a sentence gives depends on
    which others are beside it.""",
)
class BatchCentred:
    """`x - x.mean(0)`: the axis was meant to be the last."""

    def finish(self, x: Tensor, attention_mask: Tensor) -> Tensor:
        x = zero_padding(x, attention_mask)
        return x - x.mean(dim=0, keepdim=True)


@fault(
    "a convolution across the edge",
    caught_by={"encoder": [RIGHT, LEFT, CONTENT, "no_gradient_reaches_padding"]},
    diagnosis="""A convolution (or a shift) reads the neighbour, and at the edge the neighbour is
    padding: set padding to zero before each of them.""",
    source="Conformer-like encoders: fairseq issue 3227, soundstorm-pytorch issue 26",
)
class AcrossTheEdge:
    """A window of three tokens mixes neighbours before the layers. One token, the last, is
    touched: the metrics hardly move."""

    def embed(self, ids: Tensor, attention_mask: Tensor) -> Tensor:
        x = self.tokens(ids) + self.places(self.positions(attention_mask))
        x = x + 0.5 * F.pad(x, (0, 0, 1, 0))[:, :-1] + 0.25 * F.pad(x, (0, 0, 0, 1))[:, 1:]
        return zero_padding(x, attention_mask)


@fault(
    "tokens shifted from padding",
    caught_by={
        "decoder": [LEFT, CONTENT, LEAKS, "no_gradient_reaches_padding"],
        "encoder-decoder": [LEFT, SOURCE, CONTENT, SOURCE_CONTENT, "no_gradient_reaches_padding"],
    },
    diagnosis="""Half of each token's channels come from the token before it; for the first real
    token that is padding, where padding is on the left.""",
    source="x-transformers 2.31, shift_tokens=1",
)
class TokenShift:
    """A cheap trick that helps small models. The mask knows nothing of it."""

    def embed(self, ids: Tensor, attention_mask: Tensor) -> Tensor:
        x = self.tokens(ids)
        old, own = F.pad(x, (0, 0, 1, 0))[:, :-1].chunk(2, -1)[0], x.chunk(2, -1)[1]
        x = torch.cat([old, own], -1) + self.places(self.positions(attention_mask))
        return zero_padding(x, attention_mask)


# ---- modes and manners ---------------------------------------------------------------------------


@fault(
    "a fast path without the mask",
    caught_by={kind: ["without_gradients_it_is_the_same"] for kind in TINY},
    diagnosis="""Where no gradient is asked for, a faster path is taken, and it leaves the mask out:
    training is right, and what is evaluated is another model.""",
    source="torch.nn.TransformerEncoder's fast path: issues 107084 and 118628, PR 190486",
)
class FastPath:
    """Every test runs with gradients. The validation loss is a little worse than expected."""

    def layer_mask(self, i: int, mask: Tensor) -> Tensor:
        fast = not self.training and not torch.is_grad_enabled()
        return torch.ones_like(mask) if fast else mask


@fault(
    "dropout in evaluation",
    caught_by={kind: ["the_same_call_gives_the_same_twice"] for kind in TINY},
    diagnosis="""F.dropout drops by default, in evaluation too: two calls with the same inputs
    differ. Give it training=self.training.""",
    source="torch issues 99293 and 124464, pytorch-image-models PR 1978",
)
class DropoutInEvaluation:
    """A function does not know of eval(). Nothing looks wrong but a score that is never the same
    twice."""

    def finish(self, x: Tensor, attention_mask: Tensor) -> Tensor:
        return F.dropout(x, 0.1)


@fault(
    "a mask in evaluation only",
    caught_by={
        kind: ["training_without_dropout_equals_evaluation"]
        for kind in ("encoder", "encoder-decoder")
    },
    diagnosis="""The mask is left out in training mode: what is trained is not what is tested.""",
)
class EvaluationOnly:
    """`if not self.training`, left over from a hunt for a slow step."""

    def layer_mask(self, i: int, mask: Tensor) -> Tensor:
        return torch.ones_like(mask) if self.training else mask


@fault(
    "an output cut to the longest sentence",
    caught_by={kind: ["the_output_is_as_long_as_the_input"] for kind in TINY},
    diagnosis="""Columns of padding alone are cut off, and not put back: the output has fewer
    columns than the input, and no longer fits the labels.""",
    source="torch.nn.TransformerEncoder's fast path: issue 97111",
)
class CutShort:
    """Padding is dropped to save time. It is noticed when a batch is padded to a fixed length."""

    def forward(self, *inputs: Tensor) -> Tensor:
        return super().forward(*inputs)[:, inputs[-1].any(0)]


@fault(
    "inputs overwritten",
    caught_by={kind: ["inputs_are_left_alone"] for kind in TINY},
    diagnosis="""The ids at padding are overwritten in the caller's own tensor.""",
    source="d2l's masked_softmax changes the scores that it is given; here it is the tokens",
)
class Overwrites:
    """`masked_fill_` for `masked_fill`: the underscore saves a copy, and the caller's labels,
    which are the same tensor, change with it."""

    def embed(self, ids: Tensor, attention_mask: Tensor) -> Tensor:
        return super().embed(ids.masked_fill_(attention_mask == 0, 0), attention_mask)


# ---- causality -----------------------------------------------------------------------------------

CAUSAL = ("decoder", "encoder-decoder")


@fault(
    "no causal mask",
    caught_by={kind: [FUTURE, PREFIX, LEAKS] for kind in CAUSAL},
    diagnosis="""No causal mask: each token is predicted by a model that sees it. The loss falls
    towards 0, and what is generated is noise.""",
    source="A flag is_causal that was never passed on: transformers PR 41966, keras issue 23038",
)
class NotCausal:
    """The loss was so good that the author was pleased."""

    def past(self, length: int, causal: bool) -> Tensor:
        return super().past(length, causal=False)


@fault(
    "causal in training only",
    caught_by={"decoder": [FUTURE, "training_without_dropout_equals_evaluation"]},
    diagnosis="""The causal mask is made in training mode only: with teacher forcing in eval() the
    model sees what it predicts, and the validation loss is a fiction.""",
    source="d2l, the transformer chapter: `if self.training`",
)
class CausalInTraining:
    """Generation goes token by token, where there is no future, so the mask was "needed in
    training only". Then somebody validates with whole sentences."""

    def past(self, length: int, causal: bool) -> Tensor:
        return super().past(length, causal and self.training)


@fault(
    "one token of the future",
    caught_by={kind: [FUTURE, LEAKS] for kind in CAUSAL},
    diagnosis="""The diagonal is off by one: each token sees the next, which is its label.""",
    source="tril(diagonal=1) for tril()",
)
class OffByOne:
    """`tril(diagonal=1)`. The loss goes to 0 within an epoch."""

    def past(self, length: int, causal: bool) -> Tensor:
        mask = super().past(length, causal)
        return mask.new_ones(mask.shape).tril(1) if causal else mask


@fault(
    "a token that does not see itself",
    caught_by={kind: [ITSELF] for kind in TINY},
    diagnosis="""The diagonal itself is hidden too: no token attends to itself. The residual around
    the attention hides it, for every output depends on its own token all the same.""",
    source="TinyTorch PR 1785 (over-masking), rasbt/LLMs-from-scratch issue 1061",
)
class NotItself:
    """`tril(diagonal=-1)`: "tokens must not look at themselves". The model learns around it."""

    def past(self, length: int, causal: bool) -> Tensor:
        return super().past(length, causal) & ~torch.eye(length, dtype=torch.bool)


@fault(
    "the causal mask the wrong way round",
    caught_by={kind: [FUTURE, HIDDEN] for kind in CAUSAL},
    diagnosis="""The upper triangle was given where True means "attend": each token sees only what
    comes after it.""",
    source="rasbt/LLMs-from-scratch, chapter 3 bonus notebook: issue 1061, fixed in PR 1062",
)
class CausalInverted:
    """`triu(diagonal=1)` is the mask of a function in which True means "ignore"; the other
    function of the same library reads it the other way round. Shapes and loss look fine."""

    def past(self, length: int, causal: bool) -> Tensor:
        mask = super().past(length, causal)
        return ~mask if causal else mask


@fault(
    "an encoder that is causal",
    caught_by={"encoder": [HIDDEN]},
    diagnosis="""Tokens of the encoder see only what is before them: a causal mask is built in, and
    half of every sentence is hidden. No test for leaks can see it.""",
    source="A decoder's layer used as an encoder's, its is_causal=True kept",
)
class CausalEncoder:
    """The layer was taken from a decoder. Scores are a little low, which is put down to its
    size."""

    def past(self, length: int, causal: bool) -> Tensor:
        return super().past(length, causal=True)


# ---- sliding windows -----------------------------------------------------------------------------

BEYOND, WINDOW = "no_token_sees_beyond_its_window", "every_token_sees_its_whole_window"


class Windowed:
    """Two layers with a window of two tokens, as they should be; its faults declare the same."""

    def own_mask(self, attention_mask: Tensor, causal: bool) -> Tensor:
        place = self.places_of(attention_mask)
        apart = (place.unsqueeze(2) - place.unsqueeze(1)).abs().unsqueeze(1)
        return super().own_mask(attention_mask, causal) & self.near(apart)

    def places_of(self, attention_mask: Tensor) -> Tensor:
        """(B,T), or (1,T) where all rows have the same."""
        return token_positions(attention_mask)

    def near(self, apart: Tensor) -> Tensor:
        return apart < 2


@fault(
    "a window that is not there",
    caught_by={kind: [BEYOND] for kind in TINY},
    diagnosis="""The attention has no window: each token sees all that the other masks allow. As
    long as texts are shorter than the window nothing shows it.""",
    source="backends that do not take `sliding_window`, and leave it out",
    window=2,
    layers=2,
)
class NoWindow:
    """The config has a window, and the attention that was chosen does not read it."""


@fault(
    "a window of one token too many",
    caught_by={kind: [BEYOND] for kind in TINY},
    diagnosis="""The window is counted without the token itself: so many tokens before it, and one
    more.""",
    source="FlashAttention's window_size=(n, 0) sees n + 1 keys, transformers' sliding_window n",
    window=2,
    layers=2,
)
class WindowTooLong(Windowed):
    """Two libraries count differently, and the number is handed on as it is."""

    def near(self, apart: Tensor) -> Tensor:
        return apart <= 2


@fault(
    "a window of one token too few",
    caught_by={kind: [WINDOW] for kind in TINY},
    diagnosis="""The window ends a token too early: the last one that it should hold is hidden.""",
    source="The same two ways to count, the other way round",
    window=3,
    layers=2,
)
class WindowTooShort(Windowed):
    """`triu(-window + 2)`. The texts are a little worse, and no test for leaks can see it."""


@fault(
    "a window over columns",
    caught_by={kind: [WINDOW] for kind in TINY},
    diagnosis="""The window counts columns: padding between tokens takes its place in it, and so
    hides tokens that are near in the text.""",
    source="Prompts padded on the right and then gone on with have such holes",
    window=2,
    layers=2,
    holes=True,
)
class WindowOverColumns(Windowed):
    """`arange(T)` for every row: with padding on one side of all tokens it is right."""

    def places_of(self, attention_mask: Tensor) -> Tensor:
        return torch.arange(attention_mask.shape[1]).unsqueeze(0)


# ---- source and target ---------------------------------------------------------------------------


@fault(
    "cross-attention without a mask",
    caught_by={PAIR: [SOURCE]},
    diagnosis="""The decoder attends to the padding of the source: its padding mask is not handed
    to the cross-attention (memory_key_padding_mask, encoder_attention_mask).""",
    source="torch.nn.Transformer without memory_key_padding_mask; transformers PR 47946",
)
class CrossUnmasked:
    """The argument is optional. Leaving it out moves logits by 13, silently."""

    def cross_mask(self, target_mask: Tensor, source_mask: Tensor) -> Tensor:
        return torch.ones_like(super().cross_mask(target_mask, source_mask))


@fault(
    "cross-attention with the target's mask",
    caught_by={PAIR: [SOURCE, PREFIX]},
    diagnosis="""The cross-attention is given the target's padding mask where the source's belongs:
    long sources are cut, short ones leak their padding.""",
    source="Rewrites of The Annotated Transformer: one name, `mask`, for both",
)
class CrossWithTarget:
    """In a batch where source and target are as long it does not even look odd."""

    def cross_mask(self, target_mask: Tensor, source_mask: Tensor) -> Tensor:
        longer = max(0, source_mask.shape[1] - target_mask.shape[1])
        keys = F.pad(target_mask, (0, longer))[:, : source_mask.shape[1]]
        return padding_mask(target_mask, keys)


@fault(
    "a causal mask over the source",
    caught_by={PAIR: [SOURCE, LEFT]},
    diagnosis="""The decoder's causal mask is used for the cross-attention too: target token t sees
    the first t tokens of the source only.""",
    source="One mask for both attentions of a decoder layer",
)
class CrossCausal:
    """A layer that takes one mask and uses it twice. Languages with a similar word order
    hardly suffer."""

    def cross_mask(self, target_mask: Tensor, source_mask: Tensor) -> Tensor:
        mask = super().cross_mask(target_mask, source_mask)
        return mask & torch.ones_like(mask).tril()


@fault(
    "cross-attention the wrong way round",
    caught_by={PAIR: [SOURCE, "every_target_token_sees_the_whole_source"]},
    diagnosis="""The cross-attention shows the padding of the source and hides its tokens: True
    means the opposite there.""",
    source="torch.nn.Transformer's memory_key_padding_mask, in which True means padding",
)
class CrossInverted:
    """The model learns to write without its source: a language model with an idle encoder."""

    def cross_mask(self, target_mask: Tensor, source_mask: Tensor) -> Tensor:
        return ~super().cross_mask(target_mask, source_mask)


@fault(
    "source encoded without its mask",
    caught_by={PAIR: [SOURCE]},
    diagnosis="""The cross-attention has the source's mask, and the encoder has none: padding is
    mixed into the source before the decoder looks at it.""",
    source="fairseq issue 318; a source mask handed to the decoder alone",
)
class SourceUnmasked:
    """The mask of the source is passed once, where it seemed to matter."""

    def read(self, layers: nn.ModuleList, ids: Tensor, attention_mask: Tensor, causal: bool):
        x = self.embed(ids, attention_mask)
        everyone = torch.ones_like(padding_mask(attention_mask))
        for layer in layers:
            x = x + self.attention(layer.own, x, x, everyone)
            x = self.think(layer, x, attention_mask)
        return x


@fault(
    "target read without its padding mask",
    caught_by={PAIR: [LEFT, "parameter_gradients_do_not_depend_on_padding"]},
    diagnosis="""The target has its causal mask and no padding mask (tgt_key_padding_mask): with
    padding on the left its tokens attend to it. Padding on the right is in the future.""",
    source="torch.nn.Transformer without tgt_key_padding_mask",
)
class TargetUnmasked:
    """A target is padded on the right while it is trained on; then a prompt is padded on the
    left."""

    def own_mask(self, attention_mask: Tensor, causal: bool) -> Tensor:
        return super().own_mask(
            torch.ones_like(attention_mask) if causal else attention_mask, causal
        )


@fault(
    "the target given as source",
    caught_by={PAIR: [FUTURE, "every_target_token_sees_the_whole_source"]},
    diagnosis="""The encoder reads the target: it needs no causal mask, so the decoder finds there
    every token that it is to predict; and the source is not read at all.""",
    source="happy-llm, chapter 2: encoder and decoder fed with one sequence",
)
class TargetAsSource:
    """For a demonstration, one sequence went in on both sides. The causal mask was in place."""

    def forward(
        self, source_ids: Tensor, source_mask: Tensor, target_ids: Tensor, target_mask: Tensor
    ) -> Tensor:
        return super().forward(target_ids, target_mask, target_ids, target_mask)


@fault(
    "another row's source",
    caught_by={PAIR: ["the_source_of_another_row_is_irrelevant"]},
    diagnosis="""The encoded source is in another order than the targets: each row is answered with
    the source of another.""",
    source="Beam search: memory.repeat for memory.repeat_interleave (OpenNMT-py issue 137)",
)
class AnotherSource:
    """Sources were sorted by length for a packed encoder, and not sorted back."""

    def read(self, layers: nn.ModuleList, ids: Tensor, attention_mask: Tensor, causal: bool):
        return super().read(layers, ids, attention_mask, causal).flip(0)


# ---- packed documents ----------------------------------------------------------------------------


@fault(
    "packed documents see each other",
    caught_by={
        kind: [
            "packed_documents_do_not_see_each_other",
            "packed_documents_give_what_they_give_alone",
        ]
        for kind in TINY
    },
    diagnosis="""The mask asks whether tokens are real, not whether they are of one document: what
    is packed into one row is read as one text.""",
    source="transformers: packing by position_ids with a cache (PR 39194), trl issue 3067",
    documents=True,
)
class DocumentsMixed:
    """Packing doubled the speed, and the loss stayed about the same: the neighbour is noise that
    a model learns to ignore, at a price."""

    def padding(self, attention_mask: Tensor) -> Tensor:
        return padding_mask(attention_mask != 0)


@fault(
    "positions go on across documents",
    caught_by={kind: ["packed_documents_give_what_they_give_alone"] for kind in TINY},
    diagnosis="""Documents do not see each other, but the second one's positions go on counting
    from the first's: they must begin again at 0.""",
    source="transformers PR 46634, trl PR 3526",
    documents=True,
)
class PositionsGoOn:
    """The mask is block-diagonal, and `position_ids` is still one range for the row."""

    def positions(self, attention_mask: Tensor) -> Tensor:
        return token_positions(attention_mask != 0)


# ---- robust and strict ---------------------------------------------------------------------------


class BareInfinity:
    """The formula as it is in the paper. It holds until the first query that may see nothing."""

    def padding(self, attention_mask: Tensor) -> Tensor:
        return rearrange(attention_mask != 0, "b k -> b 1 1 k")

    def cross_mask(self, target_mask: Tensor, source_mask: Tensor) -> Tensor:
        return self.padding(source_mask)

    def weights(self, scores: Tensor, mask: Tensor) -> Tensor:
        return scores.masked_fill(~mask, float("-inf")).softmax(-1)


@fault(
    "NaN for a row of padding",
    tier="robust",
    caught_by={
        kind: ["a_row_of_padding_gets_no_nan", "a_row_of_padding_gives_no_nan_gradients"]
        for kind in TINY
    },
    diagnosis="""Forbidden scores are -inf, and a softmax over nothing but -inf is 0/0: a sentence
    without tokens becomes NaN, and so does every gradient.""",
    source="torch issue 41508 (open since 2020), labml, gordicaleksa",
    sides=("right",),
)
class EmptyRow(BareInfinity):
    """The formula as it is in the paper. It holds until the first empty sentence."""


@fault(
    "NaN from padding on the left",
    caught_by={kind: [LEFT, PREFIX] for kind in CAUSAL},
    diagnosis="""A padded token on the left sees nothing, neither padding nor the future: its
    softmax is 0/0. In the next layer 0 · NaN is NaN, and real tokens are NaN too.""",
    source="torch.nn.TransformerEncoder, causal with padding on the left: PR 190486",
)
class EmptyQueries(BareInfinity):
    """Causal and padding mask, both right, and together they leave rows with nothing to see.
    With padding on the right there are none, so training never met one."""


@fault(
    "a mask that half precision cannot hold",
    tier="robust",
    caught_by={
        kind: ["half_precision_gets_no_nan", "half_precision_ignores_padding_too"] for kind in TINY
    },
    diagnosis="""Forbidden scores get -100 000, which float16 holds as -inf: a padded query, all of
    whose scores are forbidden, is then NaN, and so is what it meets.""",
    source="fairseq issue 3575, transformers PR 17306: -1e9 and finfo(float32).min in float16",
)
class TooLargeForHalf:
    """A large number "instead of -inf, to avoid NaN". It does, until the model is cast."""

    def weights(self, scores: Tensor, mask: Tensor) -> Tensor:
        return (scores + (~mask).to(scores) * -1e5).softmax(-1)


@fault(
    "a penalty instead of a mask",
    tier="robust",
    caught_by={kind: ["large_numbers_in_padding_are_irrelevant"] for kind in TINY},
    diagnosis="""Forbidden scores are lowered by 10 000, not forbidden: a padded key with a larger
    score than that is attended to after all.""",
    source="Old BERT code and picoGPT add -1e4 or -1e10; flashinfer issue 4267 (-5e4)",
)
class Penalty(PaddingEmbedded):
    """(1 - mask) · -10000, added. Ordinary scores are far smaller, and exp(-10000) is 0."""

    def weights(self, scores: Tensor, mask: Tensor) -> Tensor:
        return (scores - 1e4 * (~mask).to(scores)).softmax(-1)


@fault(
    "a mask added as it is",
    caught_by={
        "encoder": [RIGHT, CONTENT, LEAKS],
        "decoder": [FUTURE, CONTENT, LEAKS],
        "encoder-decoder": [FUTURE, SOURCE, SOURCE_CONTENT],
    },
    diagnosis="""The bool mask is added to the scores as if it were a bias: allowed keys get 1 more,
    forbidden ones 0 more, and none is forbidden.""",
    source="timm's latent pooling and fairseq2's chunked attention (both read, not run)",
)
class AddedAsItIs(PaddingEmbedded):
    """`scores + mask` is what the formula says, of a mask of 0 and -inf. This one was bool."""

    def weights(self, scores: Tensor, mask: Tensor) -> Tensor:
        return (scores + mask.to(scores)).softmax(-1)


@fault(
    "a mask kept by its version",
    tier="robust",
    caught_by={
        kind: [
            "inside_inference_mode_it_is_the_same",
            "a_mask_that_is_written_to_is_read_anew",
        ]
        for kind in TINY
    },
    diagnosis="""The model keeps the mask that it built, under the id and the `_version` of the
    attention_mask. Inside torch.inference_mode a tensor has no version, and a write through .data
    or .numpy() does not change it. Build the mask once a call, and hand it to the layers.""",
    source="our own kernels once; k2 (issue 1210) asks tensors for `_version` too",
)
class MaskByVersion:
    """Training and evaluation under no_grad never met it; the first server did."""

    def padding(self, attention_mask: Tensor) -> Tensor:
        kept = vars(self).setdefault("kept", {})  # the masks too, so that no id is given twice
        version = attention_mask._version
        if id(attention_mask) not in kept or kept[id(attention_mask)][1] != version:
            mask = padding_mask(attention_mask)
            kept[id(attention_mask)] = (attention_mask, version, mask)
        return kept[id(attention_mask)][2]


@fault(
    "positions made by the first evaluation",
    tier="robust",
    caught_by={kind: ["inside_inference_mode_it_is_the_same"] for kind in TINY},
    diagnosis="""A table that embeddings are multiplied with is made at the first call and kept.
    Where that call is an evaluation inside torch.inference_mode, no later one can be trained:
    autograd does not save such tensors. Make the table in __init__, as a buffer.""",
    source="FlashAttention (PR 299): its rotary embedding kept cosines made in inference mode",
)
class TableOfTheFirstCall:
    """A check of the validation loss before the first step, and the first step failed."""

    table = None

    def think(self, layer: Layer, x: Tensor, attention_mask: Tensor) -> Tensor:
        if self.table is None:
            self.table = 1.0 + 0.1 * torch.arange(WIDTH).cos()
        return super().think(layer, x * self.table.to(x), attention_mask)


@fault(
    "NaN times nought",
    tier="strict",
    caught_by={
        kind: ["nan_in_padding_reaches_no_output", "nan_in_padding_reaches_no_gradient"]
        for kind in TINY
    },
    diagnosis="""Padding gets a weight of exactly 0, but is multiplied with it: where it holds NaN,
    0 · NaN is NaN. Set padding to zero where it comes in.""",
    source="torch issues 64525 and 101967; FlashAttention issue 1745 (unused slots of a cache)",
)
class NanTimesNought(PaddingEmbedded):
    """Buffers are allocated without being filled; most of the time they hold finite numbers."""


@fault(
    "values cleaned, keys not",
    tier="strict",
    caught_by={kind: ["nan_in_padding_reaches_no_gradient"] for kind in TINY},
    diagnosis="""Outputs are right, whatever padding holds, but on the way back the gradient of the
    scores, 0, meets the keys of padding, NaN.""",
    source="Values filled with zeros after torch issue 101967, keys forgotten",
)
class ValuesCleaned(PaddingEmbedded):
    """The forward pass was mended and tested. The loss is finite, and the next step ruins all."""

    def attention(self, part: Attention, x: Tensor, memory: Tensor, mask: Tensor) -> Tensor:
        query, key, value = map(self.split, (part.query(x), part.key(memory), part.value(memory)))
        value = value.masked_fill(~mask.any(-2).unsqueeze(-1), 0.0)
        weights = self.weights(query @ key.mT / key.shape[-1] ** 0.5, mask)
        return self.merge(weights @ value)
