"""Decoders that are right without a cache, or without padding, and wrong with both.

`Cached` is right: an ordinary small decoder. Each bug overrides one of its methods.
"""

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from minitransformer.checks.engine import bugs

bug = partial(bugs.bug, "cached-decoder")

VOCAB, WIDTH, HEADS, LONGEST = 11, 16, 2, 32
ONE = "one_token_at_a_time_gives_what_the_whole_gives"
SEVERAL = "several_tokens_at_a_time_give_what_the_whole_gives"
LEFT = "prompts_padded_on_the_left_go_on_as_alone"
RIGHT = "prompts_padded_on_the_right_go_on_as_alone"
CONTENT = "what_padding_holds_is_irrelevant"
SECOND = "a_second_text_knows_nothing_of_the_first"
ROWS = "rows_go_on_from_the_rows_that_they_are_given"
LARGE = "large_numbers_cached_at_padding_are_irrelevant"


# ---- the right one -------------------------------------------------------------------------------


class Layer(nn.Module):
    def __init__(self):
        super().__init__()
        self.query, self.key, self.value, self.output = (nn.Linear(WIDTH, WIDTH) for _ in range(4))
        self.norm, self.second_norm = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.think = nn.Sequential(nn.Linear(WIDTH, 24), nn.GELU(), nn.Linear(24, WIDTH))


class Cached(nn.Module):
    """Pre-norm, learned positions; `past` is a pair of keys and values (B,H,T,D) for each layer."""

    def __init__(self):
        super().__init__()
        self.tokens, self.places = nn.Embedding(VOCAB, WIDTH), nn.Embedding(LONGEST, WIDTH)
        self.layers = nn.ModuleList(Layer() for _ in range(2))
        self.norm, self.head = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, VOCAB)

    def forward(self, ids: Tensor, attention_mask: Tensor, past: Any) -> tuple[Tensor, Any]:
        """(B,N) new ids, (B,T) attention_mask of all columns -> logits (B,N,V) and the new past."""
        past = self.before(past)
        real, new = attention_mask != 0, ids.shape[1]
        x = self.tokens(ids) + self.places(self.positions(real, new))
        mask = self.mask(real, new)
        cached = []
        for layer, pair in zip(self.layers, past, strict=True):
            x, pair = self.attend(layer, x, pair, mask)
            x = x + layer.think(layer.second_norm(x))
            cached.append(pair)
        return self.head(self.norm(x)), self.kept(cached)

    def before(self, past: Any) -> Any:
        """The pairs of all layers so far."""
        return [None] * len(self.layers) if past is None else past

    def kept(self, cached: list) -> Any:
        return cached

    def positions(self, real: Tensor, new: int) -> Tensor:
        """(B,N), or (N,) where all rows have the same: counted over the real tokens of each row."""
        return (real.long().cumsum(1) - 1).clamp(min=0)[:, -new:]

    def mask(self, real: Tensor, new: int) -> Tensor:
        """(B,1,N,T) bool, True = may attend: every real token up to the query's own column."""
        return self.padding(real, new) & self.causal(new, real.shape[1])

    def padding(self, real: Tensor, new: int) -> Tensor:
        return real[:, None, None]

    def causal(self, new: int, length: int) -> Tensor:
        """(N,T): the new tokens are the last N columns."""
        return torch.ones(new, length, dtype=torch.bool).tril(length - new)

    def attend(self, layer: Layer, x: Tensor, pair: Any, mask: Tensor) -> tuple[Tensor, Any]:
        h = layer.norm(x)
        query, key, value = (
            part(h).unflatten(-1, (HEADS, -1)).transpose(1, 2)
            for part in (layer.query, layer.key, layer.value)
        )
        if pair is not None:
            key, value = torch.cat([pair[0], key], 2), torch.cat([pair[1], value], 2)
        weights = self.weights(query @ key.mT / key.shape[-1] ** 0.5, mask)
        return x + layer.output((weights @ value).transpose(1, 2).flatten(2)), (key, value)

    def weights(self, scores: Tensor, mask: Tensor) -> Tensor:
        alive = mask.any(-1, keepdim=True)
        return scores.masked_fill(~mask & alive, float("-inf")).softmax(-1).masked_fill(~alive, 0.0)


# ---- positions -----------------------------------------------------------------------------------


@bug(
    "one position for all rows",
    caught_by=[LEFT, RIGHT],
    diagnosis="""While decoding, the new token of every row gets the same position, the number of
    columns: rows with padding go on at a later place than their text has. Count the real tokens of
    each row.""",
    source="unslothai/unsloth, issue 3699 (PRs 3795, 3803, 3837, 4078)",
)
class OnePosition(Cached):
    """The prompt's positions are counted over real tokens; then `cache_length + 1` is at hand, a
    number for the whole batch. With one prompt, or with prompts of one length, it is right."""

    def positions(self, real: Tensor, new: int) -> Tensor:
        columns = real.shape[1]
        if new == columns:
            return super().positions(real, new)
        return torch.arange(columns - new, columns)


@bug(
    "one position for all rows and new tokens",
    caught_by=[SEVERAL, LEFT, RIGHT],
    diagnosis="""While decoding, every new token of every row gets the position of the last column.
    Count the real tokens of each row, and give each new token its own.""",
    source="decoders that were written for one new token of one prompt",
)
class LastColumn(Cached):
    """`attention_mask.shape[1] - 1`, for one token of one text. Then came a batch, and then a
    prompt that was read in parts."""

    def positions(self, real: Tensor, new: int) -> Tensor:
        columns = real.shape[1]
        if new == columns:
            return super().positions(real, new)
        return torch.full((new,), columns - 1)


@bug(
    "positions begin again at 0",
    caught_by=[ONE, SEVERAL, LEFT, RIGHT],
    diagnosis="""Positions are counted over the tokens of the call, not over those in the cache
    too: every new token stands at the start of the text.""",
    source="nanoGPT-like decoders, `arange(T)`, to which a cache was added",
)
class PositionsBeginAgain(Cached):
    """`torch.arange(ids.shape[1])` was right as long as the ids were the whole text."""

    def positions(self, real: Tensor, new: int) -> Tensor:
        return super().positions(real[:, -new:], new)


# ---- masks ---------------------------------------------------------------------------------------


@bug(
    "padding seen from the second step on",
    caught_by=[LEFT, RIGHT, CONTENT],
    diagnosis="""The prompt is read with its padding mask, and the new tokens without: they attend
    to the cached keys of padding.""",
    source="ml-explore/mlx-lm, issue 1906",
)
class PaddingSeenLater(Cached):
    """ "A single new token may see everything, so it needs no mask": of one prompt that is so."""

    def padding(self, real: Tensor, new: int) -> Tensor:
        prompt = new == real.shape[1]
        return super().padding(real if prompt else torch.ones_like(real), new)


@bug(
    "a causal flag while decoding",
    caught_by=[ONE, SEVERAL, LEFT, RIGHT],
    diagnosis="""The causal mask begins in the upper left corner, also where keys are cached: the
    first of the new tokens sees the first key only, the next one two.""",
    source="google/flax, issue 5591; is_causal=True of torch's SDPA, which is aligned the same way",
)
class CausalFlag(Cached):
    """`is_causal=True` was given once, and stayed. Queries and keys have the same number in every
    test without a cache."""

    def causal(self, new: int, length: int) -> Tensor:
        return torch.ones(new, length, dtype=torch.bool).tril()


@bug(
    "new tokens see each other's future",
    caught_by=[SEVERAL],
    diagnosis="""Behind a cache there is no causal mask: of several new tokens, the first sees the
    last.""",
    source="`mask = None if past is not None`: a long prompt in parts, or speculative decoding",
)
class SeveralSeeTheFuture(Cached):
    """With one new token there is no future. Then a prompt became too long for one call."""

    def causal(self, new: int, length: int) -> Tensor:
        mask = super().causal(new, length)
        return mask if new == length else torch.ones_like(mask)


@bug(
    "a penalty instead of a mask (cached-decoder)",
    tier="robust",
    caught_by=[LARGE],
    diagnosis="""Masked scores are lowered by 10 000, not masked: a cached key of padding with a
    larger score than that is attended to after all.""",
    source="Old BERT code and picoGPT add -1e4 or -1e10",
)
class Penalty(Cached):
    """(1 - mask) · -10000, added. Ordinary scores are far smaller, and exp(-10000) is 0."""

    def weights(self, scores: Tensor, mask: Tensor) -> Tensor:
        return (scores - 1e4 * (~mask).to(scores)).softmax(-1)


# ---- one text and another ------------------------------------------------------------------------


@bug(
    "the cache of the text before",
    caught_by=[SECOND],
    diagnosis="""The decoder keeps its cache from one text to the next, and the second text attends
    to the first. Clear it where there is no past.""",
    source="Lightning-AI/litgpt, PR 1596; deepspeedai/DeepSpeed, PR 2669",
)
class TextBefore(Cached):
    """Buffers are part of the model, to be allocated once. The first answer is always right."""

    cached: list | None = None

    def before(self, past: Any) -> Any:
        return super().before(self.cached)

    def kept(self, cached: list) -> Any:
        self.cached = cached
        return cached

    def attend(self, layer: Layer, x: Tensor, pair: Any, mask: Tensor) -> tuple[Tensor, Any]:
        columns = x.shape[1] + (0 if pair is None else pair[0].shape[2])
        mask = F.pad(mask, (columns - mask.shape[-1], 0), value=True)  # the text before
        return super().attend(layer, x, pair, mask)


@bug(
    "lengths that stay with their rows",
    caught_by=[ROWS],
    diagnosis="""How much padding each row has is noted when the prompts are read, and stays where
    it is when the rows of the cache are reordered: a text that moves to another row gets that
    row's positions.""",
    source="a mutant of our own; offsets such as rope_deltas, kept in the model, are of its kind",
)
class LengthsStay(Cached):
    """Computed once, not at every step. Beam search came later, and reorders what it knows of."""

    padded: Tensor

    def positions(self, real: Tensor, new: int) -> Tensor:
        columns = real.shape[1]
        if new == columns:
            self.padded = (~real).sum(1, keepdim=True)
            return super().positions(real, new)
        return torch.arange(columns - new, columns) - self.padded
