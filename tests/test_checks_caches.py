"""The checks of decoders with a KV cache: what is right passes, however its past is kept.

The broken ones are in the museum.
"""

import pytest
import torch
from torch import nn

from minitransformer.cache import Cache
from minitransformer.checks import CachedDecoderSubject, check_cached_decoder
from minitransformer.checks.caches.bugs import Cached, OnePosition, SeveralSeeTheFuture
from minitransformer.checks.caches.cases import tensors_of
from minitransformer.checks.engine.check import NotApplicable

pytestmark = pytest.mark.usefixtures("bugs_asked_once")
ROWS = "rows_go_on_from_the_rows_that_they_are_given"
LARGE = "large_numbers_cached_at_padding_are_irrelevant"


def test_the_right_decoder_of_the_museum_passes_at_every_tier():
    report = check_cached_decoder(Cached(), tier="strict")
    assert report.passed, report
    assert {result.outcome for result in report} == {"pass"}


@pytest.mark.parametrize(
    ("values", "means", "as_ours"),
    [
        ("bool", "attend", lambda mask: mask.long()),
        ("bool", "ignore", lambda mask: (~mask).long()),
        ("additive", "attend", lambda mask: (mask == 0.0).long()),
    ],
)
def test_masks_come_in_many_conventions(values, means, as_ours):
    model = Cached()
    report = check_cached_decoder(
        lambda ids, mask, past: model(ids, as_ours(mask), past),
        mask_values=values,
        mask_means=means,
    )
    assert report.passed, report


def test_a_past_may_be_anything():
    class Past:
        def __init__(self, pairs):
            self.pairs = {"layers": tuple(pairs)}

    class Wrapped(Cached):
        def before(self, past):
            return super().before(past and past.pairs["layers"])

        def kept(self, cached):
            return Past(cached)

    report = check_cached_decoder(Wrapped(), tier="strict")
    assert {result.outcome for result in report} == {"pass"}, report


class HeadsFirst(Cached):
    """Its past has the batch on the second axis."""

    def before(self, past):
        turned = past and [[x.transpose(0, 1) for x in pair] for pair in past]
        return super().before(turned)

    def kept(self, cached):
        return [tuple(x.transpose(0, 1) for x in pair) for pair in cached]


def test_a_past_with_another_order_of_axes_needs_its_own_reorder():
    report = check_cached_decoder(HeadsFirst())
    assert report.passed
    assert report[ROWS].outcome == "not applicable"

    def reorder(past, rows):
        return [tuple(x[:, rows] for x in pair) for pair in past]

    assert check_cached_decoder(HeadsFirst(), reorder=reorder)[ROWS].outcome == "pass"
    wrong = check_cached_decoder(HeadsFirst(), reorder=lambda past, rows: past)
    assert wrong.failed == [ROWS]


def test_one_token_at_a_time_may_be_all_that_it_takes():
    class OneOnly(SeveralSeeTheFuture):
        pass

    assert not check_cached_decoder(OneOnly()).passed
    assert check_cached_decoder(OneOnly(), several=False).passed


def test_padding_on_one_side_may_be_all_that_it_takes():
    report = check_cached_decoder(Cached(), sides=("left",))
    assert report["prompts_padded_on_the_right_go_on_as_alone"].outcome == "not applicable"
    assert (
        "one position for all rows" in check_cached_decoder(OnePosition(), sides=("left",)).likely
    )


def test_the_tensors_of_a_past_are_found_in_its_attributes():
    cache, layer = Cache(), nn.Linear(2, 2)
    with pytest.raises(NotApplicable, match="no tensors"):
        tensors_of(cache, 3)
    cache.append(layer, torch.zeros(3, 2, 4, 8), torch.zeros(3, 2, 4, 8))
    assert [x is cache.buffers[layer] for x in tensors_of(cache, 3)] == [True]
    with pytest.raises(NotApplicable, match="first axis"):
        tensors_of(cache, 2)


def test_models_of_transformers_are_taken_as_they_are():
    transformers = pytest.importorskip("transformers")
    config = transformers.LlamaConfig(
        vocab_size=11,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=24,
        max_position_embeddings=32,
    )
    report = check_cached_decoder(transformers.LlamaForCausalLM(config), tier="strict")
    assert {result.outcome for result in report} == {"pass"}, report


def test_what_is_no_pair_is_told():
    report = check_cached_decoder(lambda ids, mask, past: torch.zeros(*ids.shape, 11))
    assert "a pair (logits, past) was expected" in report.diagnosis


@pytest.mark.parametrize(
    ("declared", "message"),
    [
        ({"takes": "embeddings"}, "takes ids"),
        ({"max_length": 8}, "max_length must be at least 11"),
    ],
)
def test_declarations_are_validated(declared, message):
    with pytest.raises(ValueError, match=message):
        CachedDecoderSubject(Cached(), **declared)
