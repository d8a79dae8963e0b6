"""A config: what it fills in, what it refuses, and JSON gives it back."""

import json
from dataclasses import replace

import pytest

from minitransformer import Config
from minitransformer.config import STYLES

VOCAB = 23


def test_config_fills_in_what_was_left_out():
    config = Config(vocab_size=VOCAB)
    assert config.num_kv_heads == config.num_heads == 4
    assert config.d_ff == 4 * config.d_model == 512
    assert (config.num_layers, config.max_length, config.dropout) == (2, 512, 0.0)
    assert (config.style, config.tie_embeddings, config.bos_id) == ("vanilla", False, 1)
    assert (config.norm_eps, config.rope_theta) == (1e-5, 10_000.0)
    config = Config(VOCAB, d_ff=7, num_kv_heads=2)
    assert (config.d_ff, config.num_kv_heads) == (7, 2)
    assert Config(VOCAB, num_heads=8).num_kv_heads == 8
    assert Config(VOCAB, num_layers=3).num_decoder_layers == 3


@pytest.mark.parametrize("style", STYLES)
def test_config_survives_json(style):
    numbers = {"num_layers": 3, "num_heads": 8, "num_kv_heads": 2, "d_ff": 7, "dropout": 0.1}
    config = Config(VOCAB, 32, style=style, num_segments=2, eos_id=4, **numbers)
    assert Config(**json.loads(json.dumps(config.to_dict()))) == config
    assert config.parts is STYLES[style]


def test_a_style_may_be_parts_that_no_name_stands_for():
    parts = replace(STYLES["bert"], feed_forward="relu")
    config = Config(VOCAB, 32, style=parts)
    assert config.parts is parts
    assert Config(**json.loads(json.dumps(config.to_dict()))) == config


def test_styles_are_the_published_ones():
    same = {"roberta": "bert", "distilbert": "bert", "mistral": "llama"}
    assert all(STYLES[name] is STYLES[other] for name, other in same.items())
    own = {name: style for name, style in STYLES.items() if name not in same}
    assert [(n, s.norm, s.residual, s.feed_forward, s.positions) for n, s in own.items()] == [
        ("vanilla", "layer", "post", "relu", "sinusoidal"),
        ("bert", "layer", "post", "gelu", "learned"),
        ("gpt2", "layer", "pre", "gelu_tanh", "learned"),
        ("llama", "rms", "pre", "swiglu", "rotary"),
        ("qwen2", "rms", "pre", "swiglu", "rotary"),
        ("bart", "layer", "post", "gelu", "learned"),
        ("marian", "layer", "post", "silu", "sinusoidal_halves"),
    ]
    assert [n for n, s in own.items() if not s.bias] == ["llama", "qwen2"]
    assert [n for n, s in own.items() if s.qkv_bias] == ["qwen2"]
    assert [n for n, s in own.items() if s.scale_embedding] == ["vanilla", "marian"]
    assert [n for n, s in own.items() if s.norm_embedding] == ["bert", "bart"]
    assert [n for n, s in own.items() if s.final_norm] == ["gpt2", "llama", "qwen2"]
    assert [n for n, s in own.items() if s.head_transform] == ["bert"]
    assert [n for n, s in own.items() if s.head_bias] == ["bert", "bart", "marian"]


@pytest.mark.parametrize("wrong", [-1, 1.0, True, "4"])
@pytest.mark.parametrize(
    "name",
    [
        "vocab_size",
        "d_model",
        "num_layers",
        "num_decoder_layers",
        "num_heads",
        "num_kv_heads",
        "d_ff",
        "max_length",
        "num_segments",
    ],
)
def test_config_refuses_numbers_that_are_no_counts(name, wrong):
    with pytest.raises(ValueError, match=rf"{name} must be an integer >= \d, got {wrong!r}"):
        Config(**{"vocab_size": VOCAB, name: wrong})


@pytest.mark.parametrize(
    ("least", "name"),
    [
        (1, "vocab_size"),
        (1, "d_model"),
        (0, "num_layers"),
        (0, "num_decoder_layers"),
        (0, "num_segments"),
        (1, "num_heads"),
        (1, "num_kv_heads"),
        (1, "d_ff"),
        (1, "max_length"),
        (0, "bos_id"),
    ],
)
def test_config_takes_the_least_and_refuses_one_less(least, name):
    numbers = {"vocab_size": VOCAB, "d_model": 1, "num_heads": 1, "bos_id": 0}
    assert getattr(Config(**numbers | {name: least}), name) == least
    with pytest.raises(ValueError, match=f"{name} must be an integer >= {least}, got {least - 1}"):
        Config(**numbers | {name: least - 1})


@pytest.mark.parametrize(
    ("numbers", "message"),
    [
        (
            {"style": "mamba"},
            "style must be one of vanilla, bert, gpt2, llama, qwen2, bart, .*, got 'mamba'",
        ),
        ({"d_model": 30}, "d_model must be a multiple of num_heads, got 30 and 4"),
        ({"num_kv_heads": 3}, "num_heads must be a multiple of num_kv_heads, got 4 and 3"),
        ({"num_kv_heads": 8}, "num_heads must be a multiple of num_kv_heads, got 4 and 8"),
        ({"style": "llama", "d_model": 12}, "even d_model / num_heads, got 3$"),
        ({"dropout": 1.0}, r"dropout must be in \[0, 1\), got 1.0"),
        ({"dropout": -0.1}, r"dropout must be in \[0, 1\), got -0.1"),
        ({"norm_eps": 0.0}, "norm_eps must be a number above 0, got 0.0"),
        ({"rope_theta": "x"}, "rope_theta must be a number above 0, got 'x'"),
        ({"window": 0}, "window must be an integer >= 1, got 0"),
        ({"window": 2.0}, "window must be an integer >= 1, got 2.0"),
        ({"eos_id": (4, 5.0)}, r"eos_id must be ids of tokens, integers, got \(4, 5.0\)"),
        ({"eos_id": True}, "eos_id must be ids of tokens, integers, got True"),
        ({"eos_id": (2, None)}, r"eos_id must be ids of tokens, integers, got \(2, None\)"),
        ({"first_id": VOCAB}, "first_id must be ids of tokens, integers from 0 to 22, got 23"),
        ({"first_id": -1}, "first_id must be ids of tokens, integers from 0 to 22, got -1"),
        ({"first_id": "a"}, "first_id must be ids of tokens, integers from 0 to 22, got 'a'"),
        ({"forbidden_ids": [1, VOCAB]}, r"forbidden_ids must be .* from 0 to 22, got \(1, 23\)"),
        ({"forbidden_ids": [0, -1]}, r"forbidden_ids must be .* from 0 to 22, got \(0, -1\)"),
    ],
)
def test_config_refuses_what_no_model_can_be(numbers, message):
    with pytest.raises(ValueError, match=message):
        Config(**{"vocab_size": VOCAB} | numbers)


def test_odd_heads_are_fine_where_nothing_is_rotated():
    for style in ("vanilla", "bert", "gpt2"):
        assert Config(VOCAB, 12, num_heads=4, style=style).d_model == 12


def test_a_config_cannot_be_changed():
    with pytest.raises(AttributeError):
        Config(VOCAB).d_model = 7


def test_ids_are_those_of_the_vocabulary_but_what_ends_a_text():
    config = Config(VOCAB, eos_id=[4, 99], first_id=VOCAB - 1, forbidden_ids=[0, VOCAB - 1])
    assert (config.eos_id, config.first_id) == ((4, 99), 22)  # some never end
    assert (Config(VOCAB, eos_id=-1).eos_id, Config(VOCAB, first_id=0).first_id) == (-1, 0)
    assert config.forbidden_ids == (0, 22)
    assert Config(VOCAB, eos_id=99).eos_id == 99


def test_a_window_of_one_key_is_a_window():
    assert Config(VOCAB, window=1).window == 1
