"""Generation with models of every style: a ragged batch gives each row what it gives alone.

And what happens to the model meanwhile. `test_decoding.py` has the rules of decoding.
"""

import copy
import pickle
from concurrent.futures import ThreadPoolExecutor
from itertools import product, zip_longest

import pytest
import torch
from conftest import PARTS, kinds_by_parts, large_init
from definitions import as_lists, batch_of, counting_model, cut, greedy, search
from pretended import pretended_gpu
from torch.testing import assert_close

from minitransformer import Config, DecoderOnly, EncoderDecoder, generate, record_attention
from minitransformer.inference.generation import stream_tokens

VOCAB, STEPS, BOS = 23, 6, 5
PROMPTS = [[7, 3], [4, 9, 2, 11, 8], [6], [1, 0, 22]]


def numbers_of(parts: str) -> dict:
    return {"style": parts, "max_length": 11, "bos_id": BOS} | PARTS[parts]


@pytest.fixture(params=kinds_by_parts(DecoderOnly, EncoderDecoder))
def model(request, device):
    kind, parts = request.param
    torch.manual_seed(2)  # weights with which no model writes one text whatever the prompt
    return large_init(kind(Config(VOCAB, 16, **numbers_of(parts))).double().to(device))


# ---- each row alone ------------------------------------------------------------------------------


def test_each_row_of_a_ragged_batch_gives_what_it_gives_alone(model, device):
    alone = [greedy(model, prompt, STEPS) for prompt in PROMPTS]
    end = alone[1][2]
    for side, use_cache in product(["left", "right"], [True, False]):
        batch = batch_of(PROMPTS, side, device)
        assert as_lists(generate(model, *batch, STEPS, use_cache=use_cache)) == alone
        written = generate(model, *batch, STEPS, eos_id=end, use_cache=use_cache)
        assert as_lists(written) == [cut(row, end) for row in alone]


@pytest.mark.parametrize(
    ("side", "beams"), [("left", 2), pytest.param("right", 4, marks=pytest.mark.slow)]
)
def test_each_row_of_a_beam_search_is_what_the_definition_finds_alone(model, side, beams, device):
    batch = batch_of(PROMPTS, side, device)
    alone = [search(model, prompt, beams, 4) for prompt in PROMPTS]
    assert as_lists(generate(model, *batch, 4, num_beams=beams)) == alone
    end = alone[1][1]
    options = {"eos_id": end, "num_beams": beams, "length_penalty": 0.5}
    written = as_lists(generate(model, *batch, 4, **options))
    assert written == [search(model, p, beams, 4, 0.5, (end,)) for p in PROMPTS]


@pytest.mark.parametrize("parts", PARTS)
def test_a_source_of_padding_alone_can_be_translated(parts, device):
    config = Config(VOCAB, 16, **numbers_of(parts))
    model = large_init(EncoderDecoder(config).double().to(device))
    written = as_lists(generate(model, *batch_of([[7, 3], []], "right", device), STEPS))
    assert written[0] == greedy(model, [7, 3], STEPS)
    assert len(written[1]) == STEPS


@pytest.mark.parametrize("kind", [DecoderOnly, EncoderDecoder])
def test_a_seed_makes_draws_reproducible(kind, device):
    model = large_init(kind(Config(VOCAB, 16, bos_id=BOS)).to(device))

    def draw(seed):
        generator = torch.Generator(device).manual_seed(seed)
        options = {"temperature": 2.0, "top_k": 9, "top_p": 0.9, "generator": generator}
        return as_lists(generate(model, *batch_of(PROMPTS, "left", device), STEPS, **options))

    assert draw(3) == draw(3)
    assert draw(3) != draw(4)


# ---- the model, during and afterwards ----------------------------------------------------------


def large_model(attention="auto") -> DecoderOnly:
    """Its linear layers are large enough to be prepacked."""
    numbers = {"d_ff": 512, "num_layers": 1, "num_heads": 2, "style": "gpt2"}
    config = Config(600, 512, attention=attention, tie_embeddings=False, **numbers)
    return large_init(DecoderOnly(config))


def test_training_between_two_tokens_of_a_stream_is_seen():
    model, batch = large_model().train(), batch_of([[7, 3]])
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
    batches = [batch_of([prompt]) for prompt in PROMPTS[:2]]
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

    stream = stream_tokens(model, *batch_of([[3]]), 9)
    next(stream)
    assert untouched()
    stream.close()  # abandoned
    assert untouched()
    whole = stream_tokens(model, *batch_of([[3]]), 2)
    assert all(untouched() for _ in whole)
    assert untouched()
    model.head.register_forward_hook(lambda *_: 1 / 0)
    for num_beams in (1, 2):
        with pytest.raises(ZeroDivisionError):
            generate(model, *batch_of([[3]]), 2, num_beams=num_beams)
        assert untouched()


@pytest.mark.parametrize("kind", [DecoderOnly, EncoderDecoder])
def test_attention_weights_are_recorded_while_it_writes(kind):
    model = kind(Config(VOCAB, 16, bos_id=BOS))
    with record_attention(model) as maps:
        generate(model, *batch_of([[7, 3, 1]]), 4)
    written = 4 if isinstance(model, EncoderDecoder) else 3 + 4 - 1
    weights = maps["decoder.layers.0.attention"]
    assert weights.shape[2:] == (1, written)
    assert_close(weights.sum(-1), torch.ones_like(weights[..., 0]))


@pytest.mark.parametrize("attention", ["sdpa", "auto"])
def test_inference_mode_writes_the_same(attention):
    model, batch = large_model(attention), batch_of(PROMPTS)
    expected = as_lists(generate(model, *batch, STEPS))
    with torch.inference_mode():
        assert as_lists(generate(model, *batch_of(PROMPTS), STEPS)) == expected


def test_eight_threads_write_with_one_model_what_one_writes():
    model = large_model().train()
    batches = [batch_of([[7, n], [n]]) for n in range(1, 9)]
    expected = [as_lists(generate(model, *batch, 20)) for batch in batches]
    with ThreadPoolExecutor(8) as threads:
        found = threads.map(lambda batch: as_lists(generate(model, *batch, 20)), batches)
        assert list(found) == expected
    assert all(module.training for module in model.modules())


def test_a_model_that_has_written_can_be_copied_and_pickled():
    model, batch = large_model(), batch_of(PROMPTS)
    expected = as_lists(generate(model, *batch, STEPS))
    for copied in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert as_lists(generate(copied, *batch, STEPS)) == expected


def test_under_autocast_the_prompt_and_what_follows_share_a_cache():
    """Many rows at first and few later: all are computed in the dtype of autocast."""
    model, batch = large_model(), batch_of([[5] * 99, [7] * 80])
    with torch.autocast("cpu", torch.bfloat16):
        assert [len(row) for row in generate(model, *batch, 3)] == [3, 3]


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("kind", [DecoderOnly, EncoderDecoder])
def test_generation_is_without_dropout_and_leaves_the_mode_as_it_was(kind, training, device):
    model, dropping = (kind(Config(VOCAB, 16, bos_id=BOS, dropout=p)).to(device) for p in (0, 0.5))
    dropping.load_state_dict(large_init(model).state_dict())
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
        generate(model, *batch_of([[3]]), 2)
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
    ids, mask = batch_of(PROMPTS)
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
        ids, mask = (x.to("cuda") for x in batch_of(PROMPTS))
        model.to("cuda")

        def waited(tokens):
            waits.clear()
            generate(model, ids, mask, tokens, eos_id=VOCAB, **options)  # which none writes
            return len(waits)

        assert waited(17) - waited(1) == 1
