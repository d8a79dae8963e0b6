"""What must hold of a decoder with a KV cache.

The definition is the whole text of each row, alone, without padding and without a cache. What is
read with a cache, the prompt first and then a token or three at a time, must give its logits.
"""

from collections.abc import Iterator
from functools import partial

import torch
from torch import Tensor

from minitransformer.checks.caches.cases import Decoder, Text, tensors_of, text
from minitransformer.checks.caches.subject import CachedDecoderSubject
from minitransformer.checks.engine.check import at_most, check, needs
from minitransformer.checks.models.cases import batch_of, others
from minitransformer.checks.models.ready import difference, tolerance

core = partial(check, "cached-decoder", "core")
robust = partial(check, "cached-decoder", "robust")

DIFFERENCE = "largest difference from the whole"
CHANGE = "largest change of an output"
UNSLOTH = "https://github.com/unslothai/unsloth/"


def _allowed(decoder: Decoder) -> float:
    return tolerance(decoder, batch_of(decoder.subject, "full"))


def _as_alone(subject: CachedDecoderSubject, side: str) -> Iterator[float]:
    """One token at a time, and several where it takes them."""
    needs(side in subject.sides, f"it does not promise padding on the {side}")
    decoder, given = Decoder(subject), text(subject, side)
    wanted, allowed = decoder.alone(given.rows()), _allowed(decoder)
    for count in decoder.steps():
        yield at_most(
            allowed,
            difference(decoder.decode(given, count), wanted),
            f"With padding on the {side}, the prompts in one call and the new tokens {count} at a "
            "time, the logits differ by {measured} from those of each text alone and without a "
            f"cache (rounding explains {allowed:.1g}). Does the mask cover the cached keys, and "
            "are positions counted over the real tokens of each row?",
            attention_mask=given.mask,
        )


# ---- core: the whole -----------------------------------------------------------------------------


@core(DIFFERENCE, "https://github.com/google/flax/issues/5591")
def one_token_at_a_time_gives_what_the_whole_gives(
    subject: CachedDecoderSubject,
) -> Iterator[float]:
    """A text without padding, read with the cache token by token, gives the logits of the whole."""
    decoder, given = Decoder(subject), text(subject, "full")
    yield at_most(
        _allowed(decoder),
        difference(decoder.decode(given), decoder.alone(given.rows())),
        "One token at a time, the logits differ by {measured} from those of the whole text in one "
        "call. Does a new token see all that is cached, and know its position?",
    )


@core(DIFFERENCE)
def several_tokens_at_a_time_give_what_the_whole_gives(
    subject: CachedDecoderSubject,
) -> Iterator[float]:
    """A text without padding, read with the cache in parts, gives the logits of the whole."""
    needs(subject.several, "it takes one new token at a time")
    decoder, given = Decoder(subject), text(subject, "full")
    yield at_most(
        _allowed(decoder),
        difference(decoder.decode(given, at_a_time=3), decoder.alone(given.rows())),
        "Three new tokens at a time, the logits differ by {measured} from those of the whole text "
        "in one call. Are the new tokens causal among each other, behind all that is cached?",
    )


# ---- core: padding -------------------------------------------------------------------------------


@core(DIFFERENCE, (UNSLOTH + "issues/3699", "https://github.com/ml-explore/mlx-lm/issues/1906"))
def prompts_padded_on_the_left_go_on_as_alone(subject: CachedDecoderSubject) -> Iterator[float]:
    """Prompts of different lengths, padded on the left, go on as each does alone."""
    yield from _as_alone(subject, "left")


@core(DIFFERENCE)
def prompts_padded_on_the_right_go_on_as_alone(subject: CachedDecoderSubject) -> Iterator[float]:
    """Prompts of different lengths, padded on the right, go on as each does alone.

    The new tokens stand behind the padding, so that each row has a hole.
    """
    yield from _as_alone(subject, "right")


@core(CHANGE)
def what_padding_holds_is_irrelevant(subject: CachedDecoderSubject) -> Iterator[float]:
    """Other token ids at the padding of the prompts change no bit of any real token's logits."""
    decoder = Decoder(subject)
    for side in subject.sides:
        given = text(subject, side)
        ids = given.ids.where(given.mask != 0, others(subject, given.ids))
        for count in decoder.steps():
            yield at_most(
                0.0,
                difference(
                    decoder.decode(Text(ids, given.mask, given.new), count),
                    decoder.decode(given, count),
                ),
                f"With padding on the {side}, other tokens at the padding of the prompts move the "
                "logits of real tokens by {measured}: the keys of padding are attended to.",
                attention_mask=given.mask,
            )


# ---- core: one text and another ------------------------------------------------------------------


@core(DIFFERENCE, "https://github.com/Lightning-AI/litgpt/pull/1596")
def a_second_text_knows_nothing_of_the_first(subject: CachedDecoderSubject) -> Iterator[float]:
    """A text that begins without a past gives what it gives to a decoder that never read any."""
    longer, given = text(subject, subject.sides[0], seed=4), text(subject, "full")
    new, old = Decoder(subject), Decoder(subject, remembers=True)
    old.decode(longer)
    yield at_most(
        _allowed(new),
        difference(old.decode(given), new.decode(given)),
        "After another text, the logits of this one differ by {measured} from those that it gets "
        "first: what does the decoder keep of a text, besides the `past` that it returns?",
    )


@core(DIFFERENCE)
def rows_go_on_from_the_rows_that_they_are_given(subject: CachedDecoderSubject) -> Iterator[float]:
    """When the rows of the past are put in another order, as in beam search, so are the texts."""
    decoder, given = Decoder(subject), text(subject, subject.sides[0])
    rows = torch.tensor([2, 1, 1, 0], device=given.ids.device)

    wanted = decoder.alone(given.with_prompts_of(rows).rows())
    yield at_most(
        _allowed(decoder),
        difference(decoder.decode(given, rows=rows), wanted),
        f"When row i goes on from row {rows.tolist()}[i], the logits differ by {{measured}} from "
        "those of that text. Is something that belongs to a row kept outside the past?",
    )


# ---- robust --------------------------------------------------------------------------------------


def _along_the_columns(mask: Tensor, x: Tensor) -> Tensor:
    """A mask (B,T), to be broadcast with what is cached, (B,...,T,...)."""
    batch, length = mask.shape
    axes = [axis for axis in range(1, x.ndim) if x.shape[axis] == length]
    needs(len(axes) == 1, "which axis of its past has the columns is not clear")
    return mask.view([batch, *(length if axis in axes else 1 for axis in range(1, x.ndim))])


@robust(CHANGE)
def large_numbers_cached_at_padding_are_irrelevant(
    subject: CachedDecoderSubject,
) -> Iterator[float]:
    """Keys and values of padding that are 10⁵ times larger change no bit of any logits."""
    decoder = Decoder(subject)
    for side in subject.sides:
        given = text(subject, side)

        def enlarge(past, given=given):
            for x in tensors_of(past, len(given.mask)):
                if x.is_floating_point():
                    x.mul_(torch.where(_along_the_columns(given.mask == 0, x), 1e5, 1.0))

        yield at_most(
            0.0,
            difference(decoder.decode(given, change=enlarge), decoder.decode(given)),
            f"With padding on the {side} whose keys and values are large, logits move by "
            "{measured}. Is a finite number added to the scores, instead of -inf?",
        )
