"""Decoding, exactly: what is written, by models small enough to compute it by hand.

Most are a table of what follows each token; two have one layer, so that what was read before
matters. `test_generation.py` has models of every style.
"""

from dataclasses import replace
from itertools import product
from math import inf, log

import numpy as np
import pytest
import torch
from conftest import large_init
from definitions import (
    as_lists,
    batch_of,
    chain,
    counting_model,
    cut,
    greedy,
    known,
    search,
)
from pretended import pretended_gpu
from torch import nn

from minitransformer import Config, DecoderOnly, EncoderDecoder, EncoderOnly, generate
from minitransformer.inference import generation
from minitransformer.inference.generation import (
    ENDED,
    _as_ids,
    _as_rows,
    _EndedTexts,
    _last_real,
    _likeliest,
    _score_dtype,
    _sorted,
    _Text,
    choose,
    stream_tokens,
)

VOCAB, STEPS, BOS = 7, 5, 4
PROMPTS = [[6, 3], [4, 0, 2, 1, 5], [6], [1, 0, 2]]


@pytest.fixture(params=[DecoderOnly, EncoderDecoder])
def model(request):
    torch.manual_seed(5)  # weights with which no model writes one text whatever the prompt
    numbers = {"num_layers": 1, "num_heads": 2, "max_length": 10, "bos_id": BOS}
    return large_init(request.param(Config(VOCAB, 8, style="gpt2", **numbers)).double())


def calls_of(module: nn.Module) -> list:
    """A list that grows by the first argument of each call of the module."""
    calls = []
    module.register_forward_pre_hook(lambda _, inputs: calls.append(inputs[0]))
    return calls


# ---- greedy ------------------------------------------------------------------------------------


def test_each_row_of_a_ragged_batch_gives_what_it_gives_alone(model):
    whole = [greedy(model, prompt, STEPS) for prompt in PROMPTS]
    assert len({tuple(row) for row in whole}) > 1
    for side, use_cache in product(["left", "right"], [True, False]):
        written = generate(model, *batch_of(PROMPTS, side), STEPS, use_cache=use_cache)
        assert as_lists(written) == whole


@pytest.mark.parametrize("side", ["left", "right"])
def test_each_row_stops_at_its_own_end_of_sequence(model, side):
    whole = [greedy(model, prompt, STEPS) for prompt in PROMPTS]
    for eos_id in {token for row in whole for token in row}:
        written = generate(model, *batch_of(PROMPTS, side), STEPS, eos_id=eos_id)
        assert as_lists(written) == [cut(row, eos_id) for row in whole]


def test_a_prompt_with_holes_gives_what_it_gives_without(model):
    ids = torch.tensor([[0, 5, 0, 0, 3, 0], [0, 0, 0, 6, 0, 0]])
    written = as_lists(generate(model, ids, (ids != 0).long(), STEPS))
    assert written == [greedy(model, [5, 3], STEPS), greedy(model, [6], STEPS)]


def test_the_first_target_token_is_read_after_bos():
    model = EncoderDecoder(Config(VOCAB, 8, num_heads=2, bos_id=BOS))
    sources, targets = calls_of(model.source_embedding), calls_of(model.embedding)
    generate(model, *batch_of([[5, 3]]), 1)
    assert [[x.tolist() for x in one] for one in (sources, targets)] == [[[[5, 3]]], [[[BOS]]]]


@pytest.mark.parametrize("kind", ["int", "list", "tuple"])
def test_rows_end_one_after_the_other_with_any_of_the_ends_and_the_work_with_the_last(kind):
    model = counting_model()
    steps = calls_of(model.head)
    ends = {"int": 8, "list": [1, 8], "tuple": (8, 1)}[kind]
    written = generate(model, *batch_of([[3], [1, 6], [9, 9, 7]]), 9, eos_id=ends)
    assert as_lists(written) == [[4, 5, 6, 7, 8], [7, 8], [8]]
    assert len(steps) == 5


def test_without_an_end_of_sequence_every_row_is_full_length():
    written = generate(counting_model(), *batch_of([[3], [1, 5]], "right"), 9)
    assert as_lists(written) == [[4, 5, 6, 7, 8, 9, 10, 11, 0], [6, 7, 8, 9, 10, 11, 0, 1, 2]]


@pytest.mark.parametrize("options", [{}, {"num_beams": 2}])
def test_bool_masks_and_int32_ids_give_the_same(model, options):
    ids, mask = batch_of(PROMPTS)
    for steps in (0, 2):
        expected = as_lists(generate(model, ids, mask, steps, **options))
        assert [len(row) for row in expected] == [steps] * 4
        assert as_lists(generate(model, ids.int(), mask.bool(), steps, **options)) == expected


def test_inputs_are_left_as_they_are(model):
    ids, mask = batch_of(PROMPTS)
    before = ids.clone(), mask.clone()
    generate(model, ids, mask, STEPS, eos_id=3, temperature=1.0, top_k=5, top_p=0.9)
    assert torch.equal(ids, before[0])
    assert torch.equal(mask, before[1])


def test_nothing_is_kept_for_a_backward_pass(model):
    needs = []
    model.head.register_forward_hook(lambda _, x, logits: needs.append(logits.requires_grad))
    generate(model, *batch_of(PROMPTS), 2)
    list(stream_tokens(model, *batch_of(PROMPTS), 2))
    assert needs == [False] * 4


# ---- how much is computed ------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, {"use_cache": False}, {"num_beams": 2}])
def test_with_a_cache_only_the_new_token_is_read(model, options):
    calls = calls_of(model.embedding)
    generate(model, *batch_of([[1, 2, 3, 4, 5]]), 4, **options)
    first = 1 if isinstance(model, EncoderDecoder) else 5
    without = [first, first + 1, first + 2, first + 3]
    read = [ids.shape[1] for ids in calls]
    assert read == (without if options == {"use_cache": False} else [first, 1, 1, 1])


def test_a_stream_has_a_cache_unless_it_is_told_otherwise(model):
    calls = calls_of(model.embedding)
    list(stream_tokens(model, *batch_of([[1, 2]]), 3))
    list(stream_tokens(model, *batch_of([[1, 2]]), 3, use_cache=False))
    first = 1 if isinstance(model, EncoderDecoder) else 2
    assert [x.shape[1] for x in calls] == [first, 1, 1, first, first + 1, first + 2]


def test_the_source_is_encoded_once():
    model = EncoderDecoder(Config(VOCAB, 8, num_heads=2))
    calls = calls_of(model.encoder)
    generate(model, *batch_of([[5, 3]]), STEPS)
    assert len(calls) == 1


def test_no_padding_of_a_prompt_is_computed_and_the_last_layer_only_where_tokens_follow():
    model = DecoderOnly(Config(VOCAB, 8, num_layers=2, num_heads=2))
    rows = [calls_of(layer.feed_forward) for layer in model.decoder.layers]
    generate(model, *batch_of([[1, 2, 3, 4, 5], [6, 2], [3, 4, 1], [2, 3, 4]]), 2)
    # 13 tokens in three rows of five; then one for each text
    assert [[x[..., 0].numel() for x in calls] for calls in rows] == [[15, 4], [4, 4]]


@pytest.mark.parametrize("length", [1, 2, 3])
def test_a_prompt_without_padding_is_read_as_it_is(model, length, monkeypatch):
    monkeypatch.setattr(generation, "pack", None)
    prompts = [PROMPTS[1][:length], PROMPTS[1][-length:]]
    written = as_lists(generate(model, *batch_of(prompts), 2))
    assert written == [greedy(model, prompt, 2) for prompt in prompts]


def test_the_cache_has_room_for_all_that_will_be_written():
    model = DecoderOnly(Config(VOCAB, 8, num_layers=1, num_heads=2))
    text = _Text(model.eval(), *batch_of([[1, 2, 3]]), 80, use_cache=True)
    places = set()
    for _ in range(80):
        with torch.no_grad():
            token = text.next_logits().argmax(-1)
        text.append(token, torch.ones_like(token, dtype=torch.bool))
        places.add(tuple(buffer.data_ptr() for buffer in text.cache.buffers.values()))
    assert len(places) == 1


def test_beams_read_each_prompt_once(model):
    calls = calls_of(model.embedding)
    generate(model, *batch_of([[1, 2], [3, 4]]), 3, num_beams=3)
    assert [len(ids) for ids in calls] == [2, 6, 6]


# ---- what the config forbids, and what it begins with --------------------------------------------


@pytest.mark.parametrize("options", [{}, {"num_beams": 3}, {"temperature": 1.5}])
def test_a_forbidden_token_is_never_written(model, options):
    batch = batch_of(PROMPTS)
    forbidden = {row[0] for row in as_lists(generate(model, *batch, STEPS))}
    assert 0 < len(forbidden) < VOCAB
    model.config = replace(model.config, forbidden_ids=tuple(forbidden))
    written = as_lists(generate(model, *batch, STEPS, **options))
    assert [len(row) for row in written] == [STEPS] * len(PROMPTS)
    assert forbidden.isdisjoint(token for row in written for token in row)


@pytest.mark.parametrize("options", [{}, {"num_beams": 3}, {"temperature": 1.5}])
def test_every_text_begins_with_the_token_that_the_config_names(model, options):
    model.config = replace(model.config, first_id=2, forbidden_ids=(3,))
    written = as_lists(generate(model, *batch_of(PROMPTS), STEPS, **options))
    assert {row[0] for row in written} == {2}
    assert {token for row in written for token in row[1:]} != {2}
    assert as_lists(generate(model, *batch_of(PROMPTS), STEPS, eos_id=2, **options)) == [[2]] * 4


def test_what_is_not_written_here_has_no_chance():
    model = counting_model(first_id=4, forbidden_ids=(2, 3))
    text = _Text(model, *batch_of([[3]]), 2, use_cache=False)
    scores = torch.arange(12.0)[None]
    assert text.allowed(scores).tolist() == [[0.0 if i == 4 else -inf for i in range(12)]]
    text.append(torch.tensor([4]), torch.tensor([True]))
    later = [-inf if i in (2, 3) else float(i) for i in range(12)]
    assert text.allowed(scores).tolist() == [later]
    assert scores.tolist() == [list(range(12))]


# ---- the stream --------------------------------------------------------------------------------


def test_the_stream_is_what_generate_returns(model):
    whole = as_lists(generate(model, *batch_of(PROMPTS), STEPS, eos_id=[2, 6]))
    assert len({len(row) for row in whole}) > 1
    rows = [[] for _ in PROMPTS]
    for tokens in stream_tokens(model, *batch_of(PROMPTS), STEPS, eos_id=[2, 6]):
        assert tokens.shape == (4,)
        for row, token in zip(rows, tokens.tolist(), strict=True):
            row += [token] * (token != ENDED)
    assert rows == whole


def test_tokens_are_streamed_as_they_are_written_and_a_row_that_has_ended_gives_ended():
    model = counting_model()
    steps = calls_of(model.head)
    stream = stream_tokens(model, *batch_of([[3], [5]]), 9, eos_id=6)
    assert [next(stream).tolist(), len(steps)] == [[4, 6], 1]
    assert [next(stream).tolist(), len(steps)] == [[5, ENDED], 2]
    assert [one.tolist() for one in stream] == [[6, ENDED]]
    assert len(steps) == 3


# ---- beams -------------------------------------------------------------------------------------


def random_chain(seed: int, tokens: int, **numbers) -> DecoderOnly:
    draw = torch.Generator().manual_seed(seed)
    table = torch.rand(tokens, tokens, generator=draw, dtype=torch.float64) ** 3
    return chain(table / table.sum(dim=1, keepdim=True), **numbers)


def best_of_all(model, prompt, steps, penalty, end, may=lambda text: True) -> list[int]:
    """Of all texts that end with `end`, or with the last step, the one of the highest score."""

    def score(text):
        parts = (known(model, (prompt,), text[:i])[text[i]] for i in range(len(text)))
        return sum(parts) / len(text) ** penalty

    texts = {
        tuple(cut([*text], end)) for text in product(range(model.config.vocab_size), repeat=steps)
    }
    return [*max(filter(may, texts), key=score)]


@pytest.mark.parametrize("penalty", [0.0, 1.0, 2.5])
def test_enough_beams_find_the_best_of_all_texts(penalty):
    lengths = set()
    for seed in range(5):
        model = random_chain(seed, 3)
        options = {"eos_id": 2, "num_beams": 27, "length_penalty": penalty}
        written = as_lists(generate(model, *batch_of([[0], [1, 1], [2]]), 3, **options))
        assert written == [best_of_all(model, last, 3, penalty, 2) for last in range(3)]
        lengths |= {len(row) for row in written}
    assert len(lengths) > 1


def test_the_best_of_the_texts_that_are_allowed_is_found():
    for seed in range(5):
        options = {"eos_id": 2, "num_beams": 27}
        model = random_chain(seed, 3, forbidden_ids=(1,))
        expected = best_of_all(model, 0, 3, 1.0, 2, lambda text: 1 not in text)
        assert as_lists(generate(model, *batch_of([[0]]), 3, **options)) == [expected]


@pytest.mark.parametrize("beams", [2, 3])
@pytest.mark.parametrize("ends", [(), (0,), (0, 4)])
def test_few_beams_find_what_the_definition_finds(beams, ends):
    for seed in range(2):
        model, prompts = random_chain(seed, 6), [[1], [2, 3], [5]]
        for penalty in (0.0, 1.0, 2.5):
            options = {"eos_id": ends, "num_beams": beams, "length_penalty": penalty}
            written = as_lists(generate(model, *batch_of(prompts), STEPS, **options))
            assert written == [search(model, p, beams, STEPS, penalty, ends) for p in prompts]


@pytest.mark.parametrize("ends", [(), (2, 5)])
def test_each_row_of_a_beam_search_is_what_the_definition_finds_alone(model, ends):
    alone = [search(model, prompt, 2, 4, 1.0, ends) for prompt in PROMPTS]
    assert not ends or len({len(row) for row in alone}) > 1  # some end early, some late
    for side, use_cache in product(["left", "right"], [True, False]):
        options = {"num_beams": 2, "eos_id": ends, "use_cache": use_cache}
        assert as_lists(generate(model, *batch_of(PROMPTS, side), 4, **options)) == alone


def test_beams_find_a_likelier_text_than_the_greedy_one():
    """The first token 1 (0.6) leads to 0.5 at best, the first token 2 (0.4) to 1."""
    model = chain([[0.0, 0.6, 0.4, 0.0], [0.25, 0.25, 0.0, 0.5], [0, 0, 0, 1.0], [0.25] * 4])
    assert as_lists(generate(model, *batch_of([[0]]), 2)) == [[1, 3]]  # 0.30
    assert as_lists(generate(model, *batch_of([[0]]), 2, num_beams=2)) == [[2, 3]]  # 0.40


def test_a_length_penalty_of_one_is_the_mean_log_probability():
    """Ending at once has log 0.5; three tokens have log 0.25, whose third is higher."""
    model = chain([[0.0, 0.5, 0.5], [0.0, 0.5, 0.5], [1.0, 0.0, 0.0]])  # ends with 1
    written = {
        penalty: as_lists(
            generate(model, *batch_of([[0]]), 3, eos_id=1, num_beams=4, length_penalty=penalty)
        )[0]
        for penalty in (0.0, 1.0)
    }
    assert log(0.25) < log(0.5) < log(0.25) / 3
    assert written == {0.0: [1], 1.0: [2, 0, 1]}
    assert as_lists(generate(model, *batch_of([[0]]), 3, eos_id=1, num_beams=4)) == [[2, 0, 1]]


@pytest.mark.parametrize(("logits", "best"), [((0.0, -9, 2e-4), 2), ((2e-4, -9, 0.0), 0)])
def test_half_precision_is_scored_as_precisely_as_all(logits, best):
    """In bfloat16, the log-probabilities of the two likeliest would be equal."""
    model = chain(torch.eye(3)).bfloat16()
    model.head.logits = nn.Parameter(torch.tensor(logits).expand(3, 3).bfloat16())
    assert as_lists(generate(model, *batch_of([[0]]), 1, num_beams=2)) == [[best]]


def test_beams_of_no_tokens_are_no_tokens_even_if_the_first_would_be_the_end():
    assert as_lists(generate(counting_model(), *batch_of([[3]]), 0, eos_id=4, num_beams=2)) == [[]]


def test_more_beams_than_tokens_are_fine():
    torch.manual_seed(3)
    model = large_init(DecoderOnly(Config(3, 8, num_heads=2, style="gpt2")).double())
    written = as_lists(generate(model, *batch_of([[1], [2, 1]]), 4, num_beams=5, eos_id=0))
    assert written == [search(model, prompt, 5, 4, 1.0, (0,)) for prompt in ([1], [2, 1])]


@pytest.mark.parametrize("length", [1, 20])
def test_scores_in_float32_are_off_by_no_more_than_the_bound(length):
    """Over a larger vocabulary and longer texts than in the other tests; see `_score_dtype`."""
    exact, rounded = torch.zeros(64, 1, dtype=torch.float64), torch.zeros(64, 1)
    for step in range(1, length + 1):
        logits = 5 * torch.randn(64, 5000)
        exact, _, tokens = _likeliest(exact, logits.double().log_softmax(dim=-1), 1)
        rounded, _, same = _likeliest(rounded, logits.log_softmax(dim=-1), 1)
        assert torch.equal(tokens, same)
        bound = step * 2**-22 * (logits.abs().max() + exact.abs())
        assert ((rounded - exact).abs() <= bound).all()
    assert (rounded != exact).any()


# ---- another device ------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, {"num_beams": 2}])
def test_all_that_is_made_is_on_the_device_of_the_prompts(options):
    """A pretended GPU, which takes no tensor of another device."""
    model = counting_model(first_id=7, forbidden_ids=(3, 8)).float()
    model.head = nn.Linear(24, 12)
    with pretended_gpu("mps"):
        ids, mask = (x.to("mps") for x in batch_of([[3], [1, 5]]))
        written = generate(model.to("mps"), ids, mask, 3, eos_id=12, **options)
        assert {row.device.type for row in written} == {"mps"}
        rows = as_lists(written)
    assert [len(row) for row in rows] == [3, 3]
    assert [row[0] for row in rows] == [7, 7]


# ---- sampling ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [{"temperature": 1e-6}, {"temperature": 2.0, "top_k": 1}, {"temperature": 2.0, "top_p": 1e-6}],
    ids=lambda options: "-".join(options),
)
def test_the_limits_of_sampling_are_greedy(model, options):
    expected = [greedy(model, prompt, STEPS) for prompt in PROMPTS]
    assert as_lists(generate(model, *batch_of(PROMPTS), STEPS, **options)) == expected
    stream = stream_tokens(model, *batch_of(PROMPTS), STEPS, **options)
    assert torch.stack([*stream], dim=1).tolist() == expected


def test_a_seed_makes_draws_reproducible(model):
    def draw(seed):
        generator = torch.Generator().manual_seed(seed)
        options = {"temperature": 2.0, "generator": generator}
        return as_lists(generate(model, *batch_of(PROMPTS), STEPS, **options))

    def stream(seed):
        generator = torch.Generator().manual_seed(seed)
        options = {"temperature": 2.0, "generator": generator}
        return torch.stack([*stream_tokens(model, *batch_of(PROMPTS), STEPS, **options)], dim=1)

    assert draw(3) == draw(3) == stream(3).tolist()
    assert draw(3) != draw(4)


PROBABILITIES = torch.tensor([0.15, 0.5, 0.05, 0.3])  # in no order


def frequencies(count=40_000, **options) -> torch.Tensor:
    logits = PROBABILITIES.log().expand(count, -1)
    drawn = choose(logits, generator=torch.Generator().manual_seed(0), **options)
    assert drawn.shape == (count,)
    return drawn.bincount(minlength=4) / count


def assert_drawn_from(expected: torch.Tensor, count=40_000, **options):
    """Every class within four standard deviations, and one of probability 0 never."""
    found = frequencies(count, **options)
    deviation = (expected * (1 - expected) / count).sqrt()
    assert ((found - expected).abs() <= 4 * deviation).all()


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
def test_draws_follow_the_softmax_at_their_temperature(temperature):
    expected = PROBABILITIES ** (1 / temperature)
    assert_drawn_from(expected / expected.sum(), temperature=temperature)


@pytest.mark.parametrize(
    ("options", "kept"),
    [
        ({"top_k": 1}, [1]),
        ({"top_k": 2}, [1, 3]),
        ({"top_k": 3}, [1, 3, 0]),
        ({"top_k": 4}, [0, 1, 2, 3]),
        ({"top_k": 99}, [0, 1, 2, 3]),
        ({"top_p": 0.01}, [1]),
        ({"top_p": 0.49}, [1]),
        ({"top_p": 0.51}, [1, 3]),  # the smallest set that reaches it
        ({"top_p": 0.79}, [1, 3]),
        ({"top_p": 0.81}, [1, 3, 0]),
        ({"top_p": 0.96}, [0, 1, 2, 3]),
        ({"top_p": 1.0}, [0, 1, 2, 3]),
        ({"top_k": 2, "top_p": 0.6}, [1]),  # of the two likeliest, the first has 0.625
        ({"top_k": 3, "top_p": 0.6}, [1, 3]),
    ],
    ids=str,
)
def test_only_the_likeliest_are_drawn_in_their_proportions(options, kept):
    expected = torch.zeros(4)
    expected[kept] = PROBABILITIES[kept]
    assert_drawn_from(expected / expected.sum(), temperature=1.0, **options)


def test_a_token_exactly_at_top_p_is_the_last():
    logits = torch.tensor([[0.5, 0.25, 0.25]]).log().expand(1000, -1)
    assert choose(logits, 1.0, top_p=0.5).max() == 0
    assert set(choose(logits, 1.0, top_p=0.75).tolist()) == {0, 1}


def test_ties_go_to_the_first_token():
    logits = torch.zeros(3, 5)
    assert choose(logits).tolist() == choose(logits, 1.0, top_k=1).tolist() == [0, 0, 0]
    many = torch.arange(99.0)[None] % 3  # of so many, an unstable sort mixes equal ones
    assert choose(many, 1.0, top_k=1).tolist() == [2]


def test_equal_logits_are_drawn_at_the_smallest_temperature_and_not_below():
    logits, smallest = torch.zeros(99, 2), torch.finfo(torch.float32).tiny
    assert set(choose(logits, smallest).tolist()) == {0, 1}
    assert set(choose(logits, smallest / 2).tolist()) == {0}


def test_logits_at_the_end_of_float32_do_not_overflow():
    logits = torch.tensor([[-3e38, 3e38, 2.9e38]])
    assert choose(logits, temperature=0.1).tolist() == [1]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_logits_are_divided_in_float32(dtype):
    logits = torch.tensor([[1.0, 7.0, 2.0]], dtype=dtype)
    assert choose(logits, temperature=1e-5).tolist() == [1]  # 7e5 is beyond float16


def test_rows_are_drawn_independently():
    logits = torch.tensor([[0.0, -1e9], [-1e9, 0.0]]).repeat(50, 1)
    assert choose(logits, temperature=1.0).tolist() == [0, 1] * 50


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_choose_takes_every_dtype_and_changes_no_logit(dtype, device):
    logits = torch.randn(4, VOCAB).to(device, dtype)
    before = logits.clone()
    for options in ({}, {"temperature": 1.0, "top_k": 3, "top_p": 0.5}):
        chosen = choose(logits, **options)
        assert chosen.shape == (4,)
        assert chosen.dtype == torch.int64
    assert torch.equal(logits, before)


# ---- the parts ---------------------------------------------------------------------------------


def test_the_last_real_token_is_an_index_into_the_batch():
    mask = torch.tensor([[0, 1, 1, 0], [1, 0, 0, 0], [1, 0, 0, 1], [0, 0, 0, 0]])
    assert _last_real(mask).tolist() == [2, 4, 11, 12]


def test_ends_of_sequence_are_none_one_or_several():
    for eos_id, ids in ((None, []), (5, [5]), ((5, 6), [5, 6]), ([7], [7])):
        assert _as_ids(eos_id, torch.device("cpu")).tolist() == ids
    assert _as_ids(None, torch.device("cpu")).dtype == torch.int64


def test_rows_end_where_nothing_was_written():
    written = torch.tensor([[3, 4, ENDED], [ENDED] * 3, [1, 2, 0]])
    assert [row.tolist() for row in _as_rows(written)] == [[3, 4], [], [1, 2, 0]]


def test_equal_scores_stay_in_order():
    scores, order = _sorted(torch.tensor([[1.0, 3.0, 1.0, 3.0], [0.0, 0.0, 0.0, 5.0]]), 3)
    assert scores.tolist() == [[3, 3, 1], [5, 0, 0]]
    assert order.tolist() == [[1, 3, 0], [3, 0, 1]]
    assert _sorted(torch.zeros(1, 99), 99)[1].tolist() == [[*range(99)]]
    many = torch.arange(99)[None] % 3  # of so many, an unstable sort mixes equal ones
    assert _sorted(many, 33)[1].tolist() == [[*range(2, 99, 3)]]


def test_the_likeliest_are_of_all_beams_of_a_row():
    scores = torch.tensor([[0.0, -1.0], [-5.0, 0.0]])
    more = torch.tensor([[-3.0, -1.0], [-2.5, -0.5], [-1.0, -2.0], [-4.0, -3.0]])
    best, beams, tokens = _likeliest(scores, more, 3)
    assert best.tolist() == [[-1.0, -1.5, -3.0], [-3.0, -4.0, -6.0]]
    assert [beams.tolist(), tokens.tolist()] == [[[0, 1, 0], [1, 1, 0]], [[1, 1, 0], [1, 0, 0]]]
    assert _likeliest(scores, more, 9)[0].shape == (2, 4)


def test_the_best_texts_that_ended_are_kept_with_what_follows_them():
    ended = _EndedTexts(torch.zeros(1, 2))
    assert (ended.scores.tolist(), ended.texts.shape) == ([[-torch.inf] * 2], (1, 2, 0))
    ended.add(torch.tensor([[-torch.inf, -4.0]]), torch.tensor([[[7], [8]]]))
    assert ended.scores.tolist() == [[-4.0, -torch.inf]]
    assert ended.texts[0, 0].tolist() == [8]
    ended.add(torch.tensor([[-5.0, -3.0]]), torch.tensor([[[1, 2], [3, 4]]]))
    assert ended.scores.tolist() == [[-3.0, -4.0]]
    assert ended.texts.tolist() == [[[3, 4], [8, ENDED]]]


def test_scores_are_of_float64_but_where_there_is_none():
    assert _score_dtype(torch.device("cpu")) == torch.float64
    assert _score_dtype(torch.device("mps")) == torch.float32


# ---- refusals ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_new_tokens": -1}, "max_new_tokens must be an integer >= 0, got -1"),
        ({"temperature": -0.1}, "temperature must be 0 .* or more, got -0.1"),
        ({"max_new_tokens": 2.5}, "max_new_tokens must be an integer >= 0, got 2.5"),
        ({"max_new_tokens": None}, "max_new_tokens must be an integer >= 0, got None"),
        ({"temperature": float("nan")}, "temperature must be 0 .* or more, got nan"),
        ({"top_k": 2.0}, "top_k must be an integer >= 1, got 2.0"),
        ({"top_k": 0}, "top_k must be an integer >= 1, got 0"),
        ({"top_p": 0.0}, r"top_p must be in \(0, 1\], got 0.0"),
        ({"top_p": 1.1}, r"top_p must be in \(0, 1\], got 1.1"),
        (
            {"temperature": float("inf")},
            r"must be 0 \(the likeliest token\) or more, got inf",
        ),
    ],
)
def test_impossible_options_are_refused(options, message):
    batch = batch_of([[3], [4]])
    with pytest.raises(ValueError, match=message):
        generate(counting_model(), *batch, **{"max_new_tokens": 2} | options)


@pytest.mark.parametrize("num_beams", [0, -1, 2.0, "two"])
def test_numbers_of_beams_that_are_none_are_refused(num_beams):
    with pytest.raises(ValueError, match=f"num_beams must be an integer >= 1, got {num_beams!r}"):
        generate(counting_model(), *batch_of([[3]]), 2, num_beams=num_beams)


@pytest.mark.parametrize("options", [{"temperature": 1.0}, {"top_k": 2}, {"top_p": 0.5}])
def test_beams_that_are_drawn_are_refused(options):
    message = "^beams are searched, not drawn: leave temperature, top_k and top_p out$"
    with pytest.raises(ValueError, match=message):
        generate(counting_model(), *batch_of([[3]]), 2, num_beams=2, **options)


def test_a_top_p_of_1_leaves_out_nothing():
    batch = batch_of([[3]])
    assert len(generate(counting_model(), *batch, 2, temperature=1.0, top_p=1.0)[0]) == 2


def test_an_empty_prompt_is_refused_by_its_number():
    with pytest.raises(ValueError, match=r"^prompt 1 is empty: give it at least one token$"):
        generate(counting_model(), *batch_of([[3], [], []]), 2)


@pytest.mark.parametrize("kind", [DecoderOnly, EncoderDecoder])
def test_packed_prompts_are_refused(kind):
    ids, mask = torch.tensor([[3, 4], [5, 6]]), torch.tensor([[1, 1], [1, 2]])
    with pytest.raises(
        ValueError, match=r"^generate takes one prompt a row: attention_mask must be 0 or 1$"
    ):
        generate(kind(Config(VOCAB, 16)), ids, mask, 2)


@pytest.mark.parametrize("side", ["left", "right"])
def test_texts_up_to_max_length_are_written_and_longer_ones_refused(side):
    model = counting_model(max_length=8)
    batch = batch_of([[3], [1, 2, 3, 4, 5]], side)
    assert as_lists(generate(model, *batch, 3)) == [[4, 5, 6], [6, 7, 8]]
    message = (
        "^the longest prompt has 5 tokens; with max_new_tokens = 4 "
        "that is more than max_length = 8$"
    )
    with pytest.raises(ValueError, match=message):
        generate(model, *batch, 4)


def test_targets_up_to_max_length_are_written_and_longer_ones_refused():
    model, source = EncoderDecoder(Config(VOCAB, 16, max_length=4)), batch_of([[3]])
    assert len(generate(model, *source, 4)[0]) == 4
    model.encoder.register_forward_hook(lambda *_: 1 / 0)  # refused before any work is done
    with pytest.raises(ValueError, match=r"^max_new_tokens = 5 is more than max_length = 4$"):
        generate(model, *source, 5)


@pytest.mark.parametrize("kind", [DecoderOnly, EncoderDecoder])
def test_float_masks_are_refused(kind):
    with pytest.raises(TypeError, match="attention_mask must be int or bool"):
        generate(kind(Config(VOCAB, 16)), torch.tensor([[3]]), torch.tensor([[1.0]]), 2)


@pytest.mark.parametrize("kind", [DecoderOnly, EncoderDecoder])
@pytest.mark.parametrize("num_beams", [1, 2])
def test_float_ids_are_refused(kind, num_beams):
    ids, mask = torch.tensor([[3.0]]), torch.tensor([[1]])
    with pytest.raises(TypeError, match=r"token ids must be int64 or int32, got torch\.float32"):
        generate(kind(Config(VOCAB, 16)), ids, mask, 2, num_beams=num_beams)


@pytest.mark.parametrize("wrong", [EncoderOnly(Config(VOCAB, 16)), nn.Linear(2, 2)])
def test_a_model_that_cannot_write_is_refused(wrong):
    name = type(wrong).__name__
    with pytest.raises(
        TypeError, match=f"^generate needs a DecoderOnly or EncoderDecoder, got {name}$"
    ):
        generate(wrong, *batch_of([[3]]), 2)


def test_a_stream_refuses_at_the_call_what_cannot_be_used():
    model, batch = counting_model(), batch_of([[3]])
    with pytest.raises(ValueError, match="max_new_tokens must be an integer"):
        stream_tokens(model, *batch, -1)
    with pytest.raises(TypeError, match="integer"):
        stream_tokens(model, *batch, 2, eos_id=2.5)


@pytest.mark.parametrize("end", [np.int64(6), [np.int64(6), 7], torch.tensor([6, 7])])
def test_an_end_may_be_an_integer_of_another_library(end):
    model, batch = counting_model(), batch_of([[3]])
    assert as_lists(generate(model, *batch, 9, eos_id=end)) == [[4, 5, 6]]
