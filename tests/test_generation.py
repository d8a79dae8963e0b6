"""Generation: a ragged batch gives each row what it gives alone; draws follow the probabilities."""

import copy
import pickle
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import cache
from itertools import zip_longest

import pytest
import torch
from conftest import PARTS, large_init
from pretended import pretended_gpu
from torch import nn
from torch.testing import assert_close

from minitransformer import (
    Config,
    DecoderOnly,
    EncoderDecoder,
    EncoderOnly,
    generate,
    pad,
    record_attention,
)
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
    choose,
    stream_tokens,
)

VOCAB, STEPS, BOS = 23, 6, 5
PROMPTS = [[7, 3], [4, 9, 2, 11, 8], [6], [1, 0, 22]]


@pytest.fixture(params=PARTS)
def numbers(request) -> dict:
    return {"style": request.param, "max_length": 11, "bos_id": BOS} | PARTS[request.param]


@pytest.fixture(params=[DecoderOnly, EncoderDecoder])
def model(request, numbers, device):
    torch.manual_seed(2)  # weights with which no model writes one text whatever the prompt
    return large_init(request.param(Config(VOCAB, 16, **numbers)).double().to(device))


def batch_of(rows, side, device):
    batch = pad(rows, side=side).to(device)
    return batch.input_ids, batch.attention_mask


def greedy(model, prompt: list[int], steps: int = STEPS) -> list[int]:
    """The definition: the likeliest token of the whole text so far, again and again, no padding."""
    device = model.head.projection.weight.device

    def arguments(tokens):
        ids = torch.tensor([tokens], device=device)
        return ids, torch.ones_like(ids)

    source = arguments(prompt) if isinstance(model, EncoderDecoder) else ()
    text = [BOS] if isinstance(model, EncoderDecoder) else [*prompt]
    start = len(text)
    for _ in range(steps):
        logits = model(*source, *arguments(text))[0, -1]
        text.append(logits.argmax().item())
    return text[start:]


def cut(tokens: list[int], eos_id: int) -> list[int]:
    """Up to and including the first end of sequence."""
    return tokens[: tokens.index(eos_id) + 1] if eos_id in tokens else tokens


def as_lists(rows: list[torch.Tensor]) -> list[list[int]]:
    for row in rows:
        assert row.ndim == 1
        assert row.dtype == torch.int64
    return [row.tolist() for row in rows]


def counting_model(**numbers) -> DecoderOnly:
    """No layers; the embedding names the token, the head names the next: it writes 3 4 5 6 ..."""
    model = DecoderOnly(Config(12, 12, num_layers=0, num_heads=2, style="llama", **numbers))
    with torch.no_grad():
        model.embedding.tokens.weight.copy_(torch.eye(12))
        model.head.projection.weight.copy_(torch.eye(12).roll(1, dims=0))
    return model


# ---- greedy ------------------------------------------------------------------------------------


@pytest.mark.parametrize("side", ["left", "right"])
def test_each_row_of_a_ragged_batch_gives_what_it_gives_alone(model, side, device):
    written = as_lists(generate(model, *batch_of(PROMPTS, side, device), STEPS))
    assert written == [greedy(model, prompt) for prompt in PROMPTS]


def test_a_prompt_with_holes_gives_what_it_gives_without(model, device):
    ids = torch.tensor([[0, 7, 0, 0, 3, 0], [0, 0, 0, 6, 0, 0]], device=device)
    written = as_lists(generate(model, ids, (ids != 0).long(), STEPS))
    assert written == [greedy(model, [7, 3]), greedy(model, [6])]


@pytest.mark.parametrize("side", ["left", "right"])
def test_each_row_stops_at_its_own_end_of_sequence(model, side, device):
    whole = [greedy(model, prompt) for prompt in PROMPTS]
    assert len({tuple(row) for row in whole}) > 1
    for eos_id in {token for row in whole for token in row}:
        written = generate(model, *batch_of(PROMPTS, side, device), STEPS, eos_id=eos_id)
        assert as_lists(written) == [cut(row, eos_id) for row in whole]


def test_rows_stop_one_after_the_other_and_the_work_with_the_last():
    model, steps = counting_model(), []
    model.head.register_forward_hook(lambda *_: steps.append(1))
    written = generate(model, *batch_of([[3], [1, 5], [9, 9, 6]], "left", "cpu"), 9, eos_id=7)
    assert as_lists(written) == [[4, 5, 6, 7], [6, 7], [7]]
    assert len(steps) == 4


def test_without_an_end_of_sequence_every_row_is_full_length():
    written = generate(counting_model(), *batch_of([[3], [1, 5]], "right", "cpu"), 9)
    assert as_lists(written) == [[4, 5, 6, 7, 8, 9, 10, 11, 0], [6, 7, 8, 9, 10, 11, 0, 1, 2]]


def test_a_source_of_padding_alone_can_be_translated(numbers, device):
    model = large_init(EncoderDecoder(Config(VOCAB, 16, **numbers)).double().to(device))
    written = as_lists(generate(model, *batch_of([[7, 3], []], "right", device), STEPS))
    assert written[0] == greedy(model, [7, 3])
    assert len(written[1]) == STEPS


def test_the_first_target_token_is_read_after_bos():
    model = large_init(EncoderDecoder(Config(VOCAB, 16, bos_id=BOS)).double())
    seen = []
    for embedding in (model.source_embedding, model.embedding):
        embedding.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].tolist()))
    generate(model, torch.tensor([[7, 3]]), torch.ones(1, 2).long(), 1)
    assert seen == [[[7, 3]], [[BOS]]]


def test_the_source_is_encoded_once():
    model, calls = EncoderDecoder(Config(VOCAB, 16)), []
    model.encoder.register_forward_hook(lambda *_: calls.append(1))
    generate(model, torch.tensor([[7, 3]]), torch.ones(1, 2).long(), STEPS)
    assert len(calls) == 1


def test_no_new_tokens_are_no_tokens(model, device):
    assert as_lists(generate(model, *batch_of(PROMPTS, "left", device), 0)) == [[], [], [], []]


def test_bool_masks_and_int32_ids_give_the_same(model, device):
    ids, mask = batch_of(PROMPTS, "left", device)
    expected = as_lists(generate(model, ids, mask, STEPS))
    assert as_lists(generate(model, ids.int(), mask.bool(), STEPS)) == expected
    for options in ({"max_new_tokens": 0}, {"max_new_tokens": 2, "num_beams": 2}):
        expected = as_lists(generate(model, ids, mask, **options))
        assert as_lists(generate(model, ids.int(), mask.bool(), **options)) == expected


def test_inputs_are_left_as_they_are(model, device):
    ids, mask = batch_of(PROMPTS, "left", device)
    before = ids.clone(), mask.clone()
    generate(model, ids, mask, STEPS, eos_id=3, temperature=1.0, top_k=5, top_p=0.9)
    assert torch.equal(ids, before[0])
    assert torch.equal(mask, before[1])


def test_nothing_is_kept_for_a_backward_pass(model, device):
    model.head.register_forward_hook(lambda _, inputs, logits: needs.append(logits.requires_grad))
    needs = []
    generate(model, *batch_of(PROMPTS, "left", device), 2)
    assert needs == [False, False]


# ---- what the config forbids, and what it begins with --------------------------------------------


@pytest.mark.parametrize("options", [{}, {"num_beams": 3}, {"temperature": 1.5}])
@pytest.mark.parametrize("kind", [DecoderOnly, EncoderDecoder])
def test_a_forbidden_token_is_never_written(kind, options):
    model = large_init(kind(Config(VOCAB, 16, style="bart", max_length=11, bos_id=BOS)).double())
    batch = batch_of(PROMPTS, "left", "cpu")
    forbidden = {token for row in as_lists(generate(model, *batch, STEPS)) for token in row}
    model.config = replace(model.config, forbidden_ids=tuple(forbidden))
    written = as_lists(generate(model, *batch, STEPS, **options))
    assert [len(row) for row in written] == [STEPS] * len(PROMPTS)
    assert forbidden.isdisjoint(token for row in written for token in row)


@pytest.mark.parametrize("options", [{}, {"num_beams": 3}, {"temperature": 1.5}])
def test_every_text_begins_with_the_token_that_the_config_names(options):
    model = large_init(EncoderDecoder(Config(VOCAB, 16, first_id=9, forbidden_ids=(3,))).double())
    written = as_lists(generate(model, *batch_of(PROMPTS, "left", "cpu"), STEPS, **options))
    assert {row[0] for row in written} == {9}
    assert {token for row in written for token in row[1:]} != {9}


@pytest.mark.parametrize(
    "ids", [{"forbidden_ids": (VOCAB,)}, {"first_id": "a"}, {"eos_id": (2, None)}, {"eos_id": 1.5}]
)
def test_ids_that_are_none_are_refused(ids):
    with pytest.raises(ValueError, match=f"{next(iter(ids))} must be ids of tokens, below"):
        Config(VOCAB, 16, **ids)


# ---- the cache ---------------------------------------------------------------------------------


@pytest.mark.parametrize("num_beams", [1, 3])
@pytest.mark.parametrize("side", ["left", "right"])
def test_with_and_without_a_cache_the_same_is_written(model, side, num_beams, device):
    batch = batch_of(PROMPTS, side, device)
    for eos_id in (None, 8):
        options = {"eos_id": eos_id, "num_beams": num_beams}
        cached = as_lists(generate(model, *batch, STEPS, **options))
        assert cached == as_lists(generate(model, *batch, STEPS, use_cache=False, **options))


@pytest.mark.parametrize("use_cache", [True, False])
def test_with_a_cache_only_the_new_token_is_read(model, use_cache, device):
    read = []
    model.embedding.register_forward_pre_hook(lambda _, inputs: read.append(inputs[0].shape[1]))
    generate(model, *batch_of(PROMPTS, "left", device), 4, use_cache=use_cache)
    first = 1 if isinstance(model, EncoderDecoder) else 5
    assert read == ([first, 1, 1, 1] if use_cache else [first, first + 1, first + 2, first + 3])


def test_no_padding_of_a_prompt_is_computed_and_the_last_layer_only_where_tokens_follow():
    model = large_init(DecoderOnly(Config(VOCAB, 16)).double())
    ids, mask = batch_of([[1, 2, 3, 4, 5], [6, 7], [8, 9, 1], [2, 3, 4]], "left", "cpu")
    rows = []
    for layer in model.decoder.layers:
        layer.feed_forward.register_forward_pre_hook(lambda _, x: rows.append(x[0][..., 0].numel()))
    generate(model, ids, mask, 2)
    assert rows == [3 * 5, 4, 4, 4]  # 13 tokens in three rows of five; then one for each text


def test_a_prompt_without_padding_is_read_as_it_is(monkeypatch):
    model = large_init(DecoderOnly(Config(VOCAB, 16)).double())
    monkeypatch.setattr(generation, "pack", None)
    ids = torch.tensor([[1, 2], [3, 4]])
    assert len(generate(model, ids, torch.ones_like(ids), 2)) == 2


def test_the_cache_has_room_for_all_that_will_be_written():
    model = large_init(DecoderOnly(Config(VOCAB, 16, max_length=300)).double())
    text = generation._Text(model, *batch_of(PROMPTS, "left", "cpu"), 200, use_cache=True)
    places = set()
    for _ in range(200):
        token = text.next_logits().argmax(-1)
        text.append(token, torch.ones_like(token, dtype=torch.bool))
        places.add(tuple(buffer.data_ptr() for buffer in text.cache.buffers.values()))
    assert len(places) == 1


def test_beams_read_each_prompt_once():
    model = large_init(DecoderOnly(Config(VOCAB, 16)).double())
    rows = []
    model.embedding.register_forward_pre_hook(lambda _, inputs: rows.append(len(inputs[0])))
    ids = torch.tensor([[1, 2], [3, 4]])
    generate(model, ids, torch.ones_like(ids), 3, num_beams=3)
    assert rows == [2, 6, 6]


# ---- the stream --------------------------------------------------------------------------------


def test_the_stream_is_what_generate_returns(model, device):
    whole = as_lists(generate(model, *batch_of(PROMPTS, "left", device), STEPS, eos_id=[3, 8]))
    rows = [[] for _ in PROMPTS]
    for tokens in stream_tokens(model, *batch_of(PROMPTS, "left", device), STEPS, eos_id=[3, 8]):
        assert tokens.shape == (4,)
        for row, token in zip(rows, tokens.tolist(), strict=True):
            row += [token] * (token != ENDED)
    assert rows == whole


def test_tokens_are_streamed_as_they_are_written_and_the_mode_is_restored():
    model, steps = counting_model().train(), []
    model.head.register_forward_hook(lambda *_: steps.append(1))
    stream = stream_tokens(model, *batch_of([[3], [5]], "left", "cpu"), 9)
    assert [next(stream).tolist(), len(steps)] == [[4, 6], 1]
    assert [next(stream).tolist(), len(steps)] == [[5, 7], 2]
    stream.close()  # whoever has read enough
    assert model.training


def test_any_of_several_ends_of_sequence_ends_a_row():
    batch = batch_of([[3], [6], [9]], "left", "cpu")
    for eos_id in ([8, 5], (5, 8)):
        written = as_lists(generate(counting_model(), *batch, 9, eos_id=eos_id))
        assert written == [[4, 5], [7, 8], [10, 11, 0, 1, 2, 3, 4, 5]]


# ---- beams -------------------------------------------------------------------------------------


@cache
def likely(model, prompt: tuple[int, ...], written: tuple[int, ...]) -> list[float]:
    """The log-probability of each token after what is written, computed without padding."""
    device = next(model.parameters()).device

    def arguments(*tokens):
        ids = torch.tensor([tokens], device=device)
        return ids, torch.ones_like(ids)

    if isinstance(model, EncoderDecoder):
        logits = model(*arguments(*prompt), *arguments(BOS, *written))
    else:
        logits = model(*arguments(*prompt, *written))
    return logits[0, -1].log_softmax(-1).tolist()


def search(model, prompt, beams, penalty=1.0, eos_id=None, steps=STEPS) -> list[int]:
    """The definition, for one prompt without padding, text by text."""
    going, ended = [(0.0, [])], []
    for length in range(1, steps + 1):
        longer = [
            (score + more, [*written, token])
            for score, written in going
            for token, more in enumerate(likely(model, tuple(prompt), tuple(written)))
        ]
        longer.sort(key=lambda one: -one[0])
        for score, written in longer[:beams]:
            if written[-1] == eos_id or length == steps:
                ended.append((score / length**penalty, written))
        ended = sorted(ended, key=lambda one: -one[0])[:beams]
        going = [one for one in longer if one[1][-1] != eos_id][:beams]
        if len(ended) == beams and ended[-1][0] >= going[0][0] / length**penalty:
            break
    return ended[0][1]


@pytest.mark.parametrize(
    ("side", "beams"), [("left", 2), pytest.param("right", 4, marks=pytest.mark.slow)]
)
def test_each_row_of_a_beam_search_is_what_the_definition_finds_alone(model, side, beams, device):
    batch = batch_of(PROMPTS, side, device)
    alone = [search(model, prompt, beams) for prompt in PROMPTS]
    assert as_lists(generate(model, *batch, STEPS, num_beams=beams)) == alone
    lengths = set()
    for eos_id in sorted({token for row in alone for token in row})[:3]:
        for penalty in (0.0, 2.5):
            options = {"eos_id": eos_id, "num_beams": beams, "length_penalty": penalty}
            written = as_lists(generate(model, *batch, STEPS, **options))
            assert written == [search(model, p, beams, penalty, eos_id) for p in PROMPTS]
            lengths |= {len(row) for row in written}
    assert len(lengths) > 1  # some rows ended early, some late


def test_beams_find_a_likelier_text_than_the_greedy_one():
    """The first token 1 (0.6) leads to 0.5 at best, the first token 2 (0.4) to 1."""
    model = DecoderOnly(Config(4, 8, num_layers=0, num_heads=2, style="llama"))
    tables = {0: [0.0, 0.6, 0.4, 0.0], 1: [0.25, 0.25, 0.0, 0.5], 2: [0.0, 0.0, 0.0, 1.0]}

    class Table(nn.Module):
        def forward(self, hidden):
            last = hidden[:, :4].argmax(-1).tolist()
            return torch.tensor([tables.get(one, [0.25] * 4) for one in last]).log()

    with torch.no_grad():
        model.embedding.tokens.weight.copy_(torch.eye(4, 8))
    model.head = Table()
    prompt = batch_of([[0]], "left", "cpu")
    assert as_lists(generate(model, *prompt, 2)) == [[1, 3]]  # 0.30
    assert as_lists(generate(model, *prompt, 2, num_beams=2)) == [[2, 3]]  # 0.40


def test_more_beams_than_tokens_are_fine(device):
    model = large_init(DecoderOnly(Config(3, 16, style="gpt2")).double().to(device))
    batch = batch_of([[1], [2, 1]], "left", device)
    written = as_lists(generate(model, *batch, 4, num_beams=5, eos_id=0))
    assert written == [search(model, [1], 5, 1.0, 0, 4), search(model, [2, 1], 5, 1.0, 0, 4)]


@pytest.mark.parametrize("num_beams", [0, -1, 2.0, "two"])
def test_numbers_of_beams_that_are_none_are_refused(num_beams):
    with pytest.raises(ValueError, match=f"num_beams must be an integer >= 1, got {num_beams!r}"):
        generate(counting_model(), *batch_of([[3]], "left", "cpu"), 2, num_beams=num_beams)


@pytest.mark.parametrize("options", [{"temperature": 1.0}, {"top_k": 2}, {"top_p": 0.5}])
def test_beams_that_are_drawn_are_refused(options):
    message = "^beams are searched, not drawn: leave temperature, top_k and top_p out$"
    with pytest.raises(ValueError, match=message):
        generate(counting_model(), *batch_of([[3]], "left", "cpu"), 2, num_beams=2, **options)


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


# ---- sampling ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [{"temperature": 1e-6}, {"temperature": 2.0, "top_k": 1}, {"temperature": 2.0, "top_p": 1e-6}],
    ids=lambda options: "-".join(options),
)
def test_the_limits_of_sampling_are_greedy(model, options, device):
    batch = batch_of(PROMPTS, "right", device)
    written = as_lists(generate(model, *batch, STEPS, **options))
    assert written == as_lists(generate(model, *batch, STEPS))


def test_a_seed_makes_draws_reproducible(model, device):
    def draw(seed):
        generator = torch.Generator(device).manual_seed(seed)
        batch = batch_of(PROMPTS, "left", device)
        return as_lists(generate(model, *batch, STEPS, temperature=2.0, generator=generator))

    assert draw(3) == draw(3)
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


# ---- the model, during and afterwards ----------------------------------------------------------


def large_model(attention="auto") -> DecoderOnly:
    """Its linear layers are large enough to be prepacked."""
    numbers = {"d_ff": 512, "num_layers": 1, "num_heads": 2, "style": "gpt2"}
    config = Config(600, 512, attention=attention, tie_embeddings=False, **numbers)
    return large_init(DecoderOnly(config))


def test_training_between_two_tokens_of_a_stream_is_seen():
    model, batch = large_model().train(), batch_of([[7, 3]], "left", "cpu")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    written = []
    for token in stream_tokens(model, *batch, 4, use_cache=False):
        assert token.item() == greedy(model.eval(), [7, 3, *written], 1)[0]
        written += token.tolist()
        labels = torch.tensor([[(written[-1] + 1) % 600, -100]])
        model.train().loss(*batch, labels).backward()
        optimizer.step()
    assert len(set(written)) > 1
    assert written != greedy(model.eval(), [7, 3], 4)  # training changed what is written


def test_two_streams_in_turns_write_what_each_writes_alone():
    """The model has dropout and is in training mode; the stream that begins first ends first."""
    config = Config(VOCAB, 16, dropout=0.5, bos_id=BOS)
    model = large_init(EncoderDecoder(config)).train()
    batches = [batch_of([prompt], "left", "cpu") for prompt in PROMPTS[:2]]
    alone = [
        generate(model, *batch, steps)[0] for batch, steps in zip(batches, (3, 6), strict=True)
    ]
    streams = [stream_tokens(model, *batch, n) for batch, n in zip(batches, (3, 6), strict=True)]
    turns = list(zip_longest(*streams))
    for stream, expected in zip(zip(*turns, strict=True), alone, strict=True):
        assert torch.equal(torch.cat([token for token in stream if token is not None]), expected)
    assert all(module.training for module in model.modules())


@pytest.mark.parametrize("training", [True, False])
def test_a_stream_never_touches_the_mode_of_the_model(training):
    model = counting_model().train(training)
    model.decoder.train(not training)  # a part that is frozen stays so
    modes = [module.training for module in model.modules()]

    def untouched():
        return [module.training for module in model.modules()] == modes

    stream = stream_tokens(model, *batch_of([[3]], "left", "cpu"), 9)
    next(stream)
    assert untouched()
    stream.close()  # abandoned
    assert untouched()
    whole = stream_tokens(model, *batch_of([[3]], "left", "cpu"), 2)
    assert all(untouched() for _ in whole)
    assert untouched()
    model.head.register_forward_hook(lambda *_: 1 / 0)
    for num_beams in (1, 2):
        with pytest.raises(ZeroDivisionError):
            generate(model, *batch_of([[3]], "left", "cpu"), 2, num_beams=num_beams)
        assert untouched()


def test_attention_weights_are_recorded_while_it_writes(model):
    with record_attention(model) as maps:
        generate(model, *batch_of([[7, 3, 1]], "left", "cpu"), 4)
    written = 4 if isinstance(model, EncoderDecoder) else 3 + 4 - 1
    weights = maps["decoder.layers.0.attention"]
    assert weights.shape[2:] == (1, written)
    assert_close(weights.sum(-1), torch.ones_like(weights[..., 0]))


@pytest.mark.parametrize("attention", ["sdpa", "auto"])
def test_inference_mode_writes_the_same(attention):
    model, batch = large_model(attention), batch_of(PROMPTS, "left", "cpu")
    expected = as_lists(generate(model, *batch, STEPS))
    with torch.inference_mode():
        assert as_lists(generate(model, *batch_of(PROMPTS, "left", "cpu"), STEPS)) == expected


def test_eight_threads_write_with_one_model_what_one_writes():
    model = large_model().train()
    batches = [batch_of([[7, n], [n]], "left", "cpu") for n in range(1, 9)]
    expected = [as_lists(generate(model, *batch, 20)) for batch in batches]
    with ThreadPoolExecutor(8) as threads:
        found = threads.map(lambda batch: as_lists(generate(model, *batch, 20)), batches)
        assert list(found) == expected
    assert all(module.training for module in model.modules())


def test_a_model_that_has_written_can_be_copied_and_pickled():
    model, batch = large_model(), batch_of(PROMPTS, "left", "cpu")
    expected = as_lists(generate(model, *batch, STEPS))
    for copied in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert as_lists(generate(copied, *batch, STEPS)) == expected


def test_under_autocast_the_prompt_and_what_follows_share_a_cache():
    """Many rows at first and few later: all are computed in the dtype of autocast."""
    model, batch = large_model(), batch_of([[5] * 99, [7] * 80], "left", "cpu")
    with torch.autocast("cpu", torch.bfloat16):
        assert [len(row) for row in generate(model, *batch, 3)] == [3, 3]


@pytest.mark.parametrize("training", [True, False])
def test_generation_is_without_dropout_and_leaves_the_mode_as_it_was(model, training, device):
    dropping = type(model)(Config(**model.config.to_dict() | {"dropout": 0.5})).double().to(device)
    dropping.load_state_dict(model.state_dict())
    dropping.train(training)
    batch = batch_of(PROMPTS, "left", device)
    written = as_lists(generate(dropping, *batch, STEPS))
    assert written == as_lists(generate(model, *batch, STEPS))
    assert all(module.training == training for module in dropping.modules())


@pytest.mark.parametrize("training", [True, False])
def test_the_mode_is_restored_after_an_error_too(training):
    model = counting_model().train(training)
    model.head.register_forward_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        generate(model, *batch_of([[3]], "left", "cpu"), 2)
    assert all(module.training == training for module in model.modules())


# ---- a device without float64 -------------------------------------------------------------------


@pytest.mark.parametrize("kind", [DecoderOnly, EncoderDecoder])
@pytest.mark.parametrize("style", ["vanilla", "llama"])
@pytest.mark.parametrize(
    "options",
    [{}, {"temperature": 1.0, "top_k": 5, "top_p": 0.9}, {"num_beams": 3, "length_penalty": 0.5}],
    ids=["greedy", "drawn", "beams"],
)
def test_a_device_without_float64_writes_the_same(kind, style, options):
    model = large_init(kind(Config(VOCAB, 16, style=style, bos_id=BOS)))
    ids, mask = batch_of(PROMPTS, "left", "cpu")
    torch.manual_seed(1)
    expected = as_lists(generate(model, ids, mask, STEPS, eos_id=[3, 8], **options))
    with pretended_gpu("mps"):
        model.to("mps")
        torch.manual_seed(1)
        written = generate(model, ids.to("mps"), mask.to("mps"), STEPS, eos_id=[3, 8], **options)
        assert {row.device.type for row in written} == {"mps"}
        assert as_lists(written) == expected


@pytest.mark.parametrize(
    "options", [{}, {"temperature": 1.0, "top_k": 5, "top_p": 0.9}, {"num_beams": 3}]
)
@pytest.mark.parametrize("kind", [DecoderOnly, EncoderDecoder])
def test_how_often_a_gpu_is_waited_for(kind, options):
    """Every 16 tokens, to see whether all texts have ended."""
    sizes = {"num_layers": 1, "bos_id": BOS, "first_id": 4, "forbidden_ids": (2,)}
    model = large_init(kind(Config(VOCAB, 16, **sizes)))
    with pretended_gpu("cuda") as waits:
        ids, mask = (x.to("cuda") for x in batch_of(PROMPTS, "left", "cpu"))
        model.to("cuda")

        def waited(tokens):
            waits.clear()
            generate(model, ids, mask, tokens, eos_id=VOCAB, **options)  # which none writes
            return len(waits)

        assert waited(17) - waited(1) == 1


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


def test_what_is_not_written_here_has_no_chance():
    model = counting_model(first_id=4, forbidden_ids=(2, 3))
    text = generation._Text(model, *batch_of([[3]], "left", "cpu"), 2, use_cache=False)
    scores = torch.arange(12.0)[None]
    assert text.allowed(scores).tolist() == [[0.0 if i == 4 else -torch.inf for i in range(12)]]
    text.append(torch.tensor([4]), torch.tensor([True]))
    later = [-torch.inf if i in (2, 3) else float(i) for i in range(12)]
    assert text.allowed(scores).tolist() == [later]
    assert scores.tolist() == [list(range(12))]


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
    batch = batch_of([[3], [4]], "left", "cpu")
    with pytest.raises(ValueError, match=message):
        generate(counting_model(), *batch, **{"max_new_tokens": 2} | options)


def test_an_empty_prompt_is_refused_by_its_number():
    with pytest.raises(ValueError, match=r"^prompt 1 is empty: give it at least one token$"):
        generate(counting_model(), *batch_of([[3], [], []], "left", "cpu"), 2)


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
    batch = batch_of([[3], [1, 2, 3, 4, 5]], side, "cpu")
    assert as_lists(generate(model, *batch, 3)) == [[4, 5, 6], [6, 7, 8]]
    message = (
        "^the longest prompt has 5 tokens; with max_new_tokens = 4 "
        "that is more than max_length = 8$"
    )
    with pytest.raises(ValueError, match=message):
        generate(model, *batch, 4)


def test_targets_up_to_max_length_are_written_and_longer_ones_refused():
    model, source = EncoderDecoder(Config(VOCAB, 16, max_length=4)), batch_of([[3]], "left", "cpu")
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
        generate(wrong, *batch_of([[3]], "left", "cpu"), 2)
