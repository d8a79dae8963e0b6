"""Weights of the transformers library: the same numbers in our parts, or a clear refusal."""

import json
import re
import shutil
from dataclasses import replace

import pytest
import torch
from torch import nn

tf = pytest.importorskip("transformers")

from minitransformer import (  # noqa: E402
    Config,
    CrossDecoder,
    DecoderOnly,
    EncoderDecoder,
    EncoderOnly,
    causal_mask,
    padding_mask,
    record_attention,
)
from minitransformer import pretrained as package  # noqa: E402
from minitransformer.data.files import InputError  # noqa: E402
from minitransformer.positions import RotaryPositions  # noqa: E402
from minitransformer.pretrained import (  # noqa: E402
    FAMILIES,
    from_torch,
    load_pretrained,
    save_pretrained,
)
from minitransformer.pretrained.names import Part, convert  # noqa: E402

VOCAB, WIDTH, HEADS, FF, LENGTH = 41, 32, 4, 48, 24
LENGTHS = (5, 9, 1, 7)

BERT = {
    "vocab_size": VOCAB,
    "hidden_size": WIDTH,
    "num_hidden_layers": 2,
    "num_attention_heads": HEADS,
    "intermediate_size": FF,
    "max_position_embeddings": LENGTH,
}
GPT2 = {
    "vocab_size": VOCAB,
    "n_embd": WIDTH,
    "n_layer": 2,
    "n_head": HEADS,
    "n_positions": LENGTH,
    "bos_token_id": 0,
    "eos_token_id": 0,
}
LLAMA = BERT | {"num_key_value_heads": 2}
WINDOWED = LLAMA | {"sliding_window": 4}  # shorter than most rows
ROBERTA = BERT | {"max_position_embeddings": LENGTH + 2, "type_vocab_size": 1}
DISTILBERT = {
    "vocab_size": VOCAB,
    "dim": WIDTH,
    "n_layers": 2,
    "n_heads": HEADS,
    "hidden_dim": FF,
    "max_position_embeddings": LENGTH,
}
BART = {
    "vocab_size": VOCAB,
    "d_model": WIDTH,
    "encoder_layers": 2,
    "decoder_layers": 3,
    "encoder_attention_heads": HEADS,
    "decoder_attention_heads": HEADS,
    "encoder_ffn_dim": FF,
    "decoder_ffn_dim": FF,
    "max_position_embeddings": LENGTH,
}
MARIAN = BART | {"pad_token_id": 0, "decoder_start_token_id": 0, "eos_token_id": 2}
DECODER = BERT | {"is_decoder": True}

# name -> their config, their model, ours
THEIRS = {
    "bert": (tf.BertConfig(**BERT), tf.BertForMaskedLM, EncoderOnly),
    "bert-untied": (
        tf.BertConfig(**BERT, tie_word_embeddings=False, hidden_act="relu"),
        tf.BertForMaskedLM,
        EncoderOnly,
    ),
    "bert-decoder": (tf.BertConfig(**DECODER), tf.BertLMHeadModel, DecoderOnly),
    "bert-cross": (
        tf.BertConfig(**DECODER, add_cross_attention=True),
        tf.BertLMHeadModel,
        CrossDecoder,
    ),
    "gpt2": (tf.GPT2Config(**GPT2), tf.GPT2LMHeadModel, DecoderOnly),
    "gpt2-erf": (
        tf.GPT2Config(**GPT2, activation_function="gelu", n_inner=FF, tie_word_embeddings=False),
        tf.GPT2LMHeadModel,
        DecoderOnly,
    ),
    "llama": (tf.LlamaConfig(**LLAMA), tf.LlamaForCausalLM, DecoderOnly),
    "llama-tied": (
        tf.LlamaConfig(
            **LLAMA,
            tie_word_embeddings=True,
            rope_parameters={"rope_type": "default", "rope_theta": 500.0},
        ),
        tf.LlamaForCausalLM,
        DecoderOnly,
    ),
    "mistral": (tf.MistralConfig(**WINDOWED), tf.MistralForCausalLM, DecoderOnly),
    "mistral-full": (
        tf.MistralConfig(**LLAMA, sliding_window=None),
        tf.MistralForCausalLM,
        DecoderOnly,
    ),
    "qwen2": (tf.Qwen2Config(**LLAMA), tf.Qwen2ForCausalLM, DecoderOnly),
    "qwen2-tied": (
        tf.Qwen2Config(**LLAMA, tie_word_embeddings=True),
        tf.Qwen2ForCausalLM,
        DecoderOnly,
    ),
    "qwen2-window": (
        tf.Qwen2Config(**WINDOWED, use_sliding_window=True, max_window_layers=0),
        tf.Qwen2ForCausalLM,
        DecoderOnly,
    ),
    "roberta": (tf.RobertaConfig(**ROBERTA), tf.RobertaForMaskedLM, EncoderOnly),
    "roberta-untied": (
        tf.RobertaConfig(**ROBERTA, tie_word_embeddings=False),
        tf.RobertaForMaskedLM,
        EncoderOnly,
    ),
    "roberta-decoder": (
        tf.RobertaConfig(**ROBERTA, is_decoder=True),
        tf.RobertaForCausalLM,
        DecoderOnly,
    ),
    "roberta-cross": (
        tf.RobertaConfig(**ROBERTA, is_decoder=True, add_cross_attention=True),
        tf.RobertaForCausalLM,
        CrossDecoder,
    ),
    "distilbert": (tf.DistilBertConfig(**DISTILBERT), tf.DistilBertForMaskedLM, EncoderOnly),
    "distilbert-untied": (
        tf.DistilBertConfig(**DISTILBERT, tie_word_embeddings=False, activation="relu"),
        tf.DistilBertForMaskedLM,
        EncoderOnly,
    ),
    "bart": (tf.BartConfig(**BART), tf.BartForConditionalGeneration, EncoderDecoder),
    "bart-scaled": (
        tf.BartConfig(**BART, scale_embedding=True, activation_function="relu"),
        tf.BartForConditionalGeneration,
        EncoderDecoder,
    ),
    "marian": (
        tf.MarianConfig(**MARIAN, scale_embedding=True, activation_function="swish"),
        tf.MarianMTModel,
        EncoderDecoder,
    ),
}


def randomised(model: nn.Module) -> nn.Module:
    """Every tensor random, biases and gains too: what is taken for another then shows."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
            computed = isinstance(model, tf.MarianMTModel) and "embed_positions" in name
            if computed or not tensor.is_floating_point() or "inv_freq" in name:
                continue
            tensor.copy_(torch.randn(tensor.shape, generator=generator) * 0.3)
        for part in model.modules():
            if "Norm" in type(part).__name__ and part.weight is not None:
                part.weight += 1.0
    return model.eval()


def theirs_of(name: str) -> nn.Module:
    config, model, _ = THEIRS[name]
    config._attn_implementation = "eager"
    return randomised(model(config))


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """The folder that their save_pretrained writes for each name, made once."""
    made = {}

    def folder(name: str):
        if name not in made:
            made[name] = tmp_path_factory.mktemp(name)
            theirs_of(name).save_pretrained(made[name])
        return made[name]

    return folder


@pytest.fixture(params=THEIRS)
def name(request) -> str:
    return request.param


def batch(side: str, lengths=LENGTHS, extra=2, seed=1, filler=None):
    """Ragged ids and their attention_mask."""
    generator = torch.Generator().manual_seed(seed)
    length = max(lengths) + extra
    ids = torch.full((len(lengths), length), 3 if filler is None else filler)
    mask = torch.zeros_like(ids)
    for row, n in enumerate(lengths):
        where = slice(0, n) if side == "right" else slice(length - n, length)
        # not 0, 1, 2: in the library the embedding of padding gets no gradient
        ids[row, where] = torch.randint(3, VOCAB, (n,), generator=generator)
        mask[row, where] = 1
    return ids, mask


def run_both(name: str, theirs, ours, side: str, filler=None):
    """(their output, our logits, the mask of the logits), on the same ragged batch."""
    ids, mask = batch(side, filler=filler)
    options = {"output_attentions": True, "output_hidden_states": True}
    if name.startswith(ROTARY) and theirs.dtype == torch.float64:
        theirs.set_attn_implementation("sdpa")  # "eager" is NaN where padding sees nothing
        options = {}
    memory = torch.randn(4, 6, WIDTH, generator=torch.Generator().manual_seed(2)).to(theirs.dtype)
    memory_mask = batch(side, (6, 2, 4, 3), extra=0)[1]
    if name.startswith(("bart", "marian")):
        target, target_mask = batch("right", (3, 1, 6, 2), extra=1, seed=3)
        output = theirs(
            input_ids=ids,
            attention_mask=mask,
            decoder_input_ids=target,
            decoder_attention_mask=target_mask,
            **options,
        )
        return output, ours(ids, mask, target, target_mask), target_mask
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    if name.startswith("roberta"):  # told: theirs follow from the ids, and padding's may be any
        positions = positions + 2
    if name.endswith("-cross"):
        options |= {"encoder_hidden_states": memory, "encoder_attention_mask": memory_mask}
    output = theirs(input_ids=ids, attention_mask=mask, position_ids=positions, **options)
    if name.endswith("-cross"):
        return output, ours(ids, mask, memory, memory_mask), mask
    return output, ours(ids, mask), mask


SIDES = ["right", "left"]
ROTARY = ("llama", "mistral", "qwen2")


def sides_of(name: str) -> list[str]:
    """BART and Marian cannot be told positions: padded on the left they compute something else."""
    return ["right"] if name.startswith(("bart", "marian")) else SIDES


ROUNDING = 5e-5  # of float32, through all layers, in numbers of about 2
TOLERANCE = {torch.float32: ROUNDING, torch.float64: 1e-12}


def largest_difference(a: torch.Tensor, b: torch.Tensor) -> float:
    return (a - b).abs().max().item()


# ---- the same numbers --------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", TOLERANCE)
@torch.no_grad()
def test_logits_are_those_of_the_library(name, dtype, folders):
    theirs, ours = theirs_of(name).to(dtype), load_pretrained(folders(name), dtype)
    assert type(ours) is THEIRS[name][2]
    assert ours.head.projection.weight.dtype == dtype
    tolerance = TOLERANCE[dtype]
    if name.startswith(ROTARY) and dtype == torch.float64:
        tolerance = 5e-6  # theirs computes norms, softmax and angles in float32
    for side in sides_of(name):
        output, logits, mask = run_both(name, theirs, ours, side)
        real = mask != 0
        assert largest_difference(output.logits[real], logits[real]) <= tolerance
        assert logits[real].abs().max() > 3.0  # numbers that could differ


@torch.no_grad()
def test_hidden_states_and_attention_of_every_layer_are_those_of_the_library(name, folders):
    theirs, ours = theirs_of(name), load_pretrained(folders(name))
    for side in sides_of(name):
        hidden = {}
        for path, module in ours.named_modules():
            if re.fullmatch(r"\w+\.layers\.\d+", path):
                module.register_forward_hook(
                    lambda _, inputs, output, path=path, hidden=hidden: hidden.update(
                        {path: output}
                    )
                )
        with record_attention(ours) as maps:
            output, _, mask = run_both(name, theirs, ours, side)
        source_mask = batch(side)[1]
        compared = 0
        for stack in ("encoder", "decoder"):
            prefix = f"{stack}_" if hasattr(output, f"{stack}_hidden_states") else ""
            states = getattr(output, f"{prefix}hidden_states", None)
            real = (source_mask if prefix == "encoder_" else mask) != 0
            layers = [h for path, h in hidden.items() if path.startswith(stack)]
            # theirs are the embedding and each layer's; behind pre-norm the last is normalized
            for ours_h, theirs_h in zip(layers, states[1:] if layers else [], strict=True):
                if ours.config.parts.final_norm and ours_h is layers[-1]:
                    ours_h = ours.get_submodule(stack).norm(ours_h)
                assert largest_difference(ours_h[real], theirs_h[real]) <= ROUNDING
                compared += 1
            attentions = getattr(output, f"{prefix}attentions", None)
            if layers:
                for i, weights in enumerate(attentions):
                    ours_w = maps[f"{stack}.layers.{i}.attention"]
                    rows = real[:, None, :, None].expand_as(weights)
                    assert largest_difference(ours_w[rows], weights[rows]) <= 5e-6
                    keys = real[:, None, None, :].expand_as(weights)
                    assert (ours_w[~keys] == 0.0).all()
                    assert (weights[rows & ~keys] == 0.0).all()
                    assert (ours_w[~rows] == 0.0).all()  # where theirs looks at padding evenly
                    compared += 1
        if output.get("cross_attentions") is not None:
            real = mask != 0
            for i, weights in enumerate(output.cross_attentions):
                rows = real[:, None, :, None].expand_as(weights)
                found = maps[f"decoder.layers.{i}.cross_attention"]
                assert largest_difference(found[rows], weights[rows]) <= 5e-6
                compared += 1
        layers = ours.config.num_layers + ours.config.num_decoder_layers * hasattr(ours, "decode")
        assert compared >= 2 * layers - 2 * name.endswith("-cross")


def test_gradients_are_those_of_the_library(name, folders):
    """The gradients go through the map of names, as the weights did."""
    theirs, ours = theirs_of(name), load_pretrained(folders(name))
    family = FAMILIES[theirs.config.model_type]
    output, logits, mask = run_both(name, theirs, ours, "right")
    projection = torch.randn(logits.shape, generator=torch.Generator().manual_seed(5))
    projection = projection * (mask != 0).unsqueeze(-1) / 100
    (output.logits * projection).sum().backward()
    (logits * projection).sum().backward()
    state = theirs.state_dict(keep_vars=True)
    gradients = {
        key: torch.zeros_like(tensor) if tensor.grad is None else tensor.grad
        for key, tensor in state.items()
        if not re.search(family.dropped, key)
    }
    ties = family.ties if ours.config.tie_embeddings else ()
    for unused, _ in () if ties else family.ties[1:]:  # a bias that the untied model has
        gradients.pop(unused)
    expected = convert(ours, gradients, family.names, ties, "gradients")
    compared = 0
    for key, parameter in ours.named_parameters():
        if key == "head.projection.bias" and isinstance(ours, EncoderDecoder):
            continue  # a buffer of theirs, which has no gradient
        assert parameter.grad is not None, key
        torch.testing.assert_close(parameter.grad, expected[key], rtol=1e-3, atol=2e-5, msg=key)
        compared += 1
    assert compared >= len(list(ours.parameters())) - 1


@torch.no_grad()
def test_left_padding_of_bart_and_marian_is_each_row_alone(folders):
    for name in ("bart", "marian"):
        theirs, ours = theirs_of(name), load_pretrained(folders(name))
        ids, mask = batch("left")
        target, target_mask = batch("left", (3, 1, 6, 2), extra=1, seed=3)
        logits = ours(ids, mask, target, target_mask)
        for row in range(len(ids)):
            source, written = ids[row][mask[row] != 0], target[row][target_mask[row] != 0]
            alone = theirs(input_ids=source[None], decoder_input_ids=written[None]).logits[0]
            assert largest_difference(logits[row][target_mask[row] != 0], alone) <= ROUNDING


@torch.no_grad()
def test_what_stands_at_padding_changes_no_bit(name, folders):
    theirs, ours = theirs_of(name), load_pretrained(folders(name))
    for side in sides_of(name):
        _, first, mask = run_both(name, theirs, ours, side, filler=3)
        _, second, _ = run_both(name, theirs, ours, side, filler=17)
        assert torch.equal(first[mask != 0], second[mask != 0])


@torch.no_grad()
def test_positions_of_roberta_are_those_that_the_library_makes_of_its_padding(folders):
    theirs, ours = theirs_of("roberta"), load_pretrained(folders("roberta"))
    assert ours.config.max_length == LENGTH
    for side in SIDES:
        ids, mask = batch(side, filler=theirs.config.pad_token_id)
        expected = theirs(input_ids=ids, attention_mask=mask).logits[mask != 0]
        assert largest_difference(ours(ids, mask)[mask != 0], expected) <= ROUNDING


@torch.no_grad()
@pytest.mark.parametrize("name", ["mistral", "qwen2-window"])
def test_a_window_sees_as_many_keys_as_that_of_the_library(name, folders):
    """Weights that are not 0, by how far back the key is: 4 keys, the query's own among them."""
    theirs, ours = theirs_of(name), load_pretrained(folders(name))
    assert ours.config.window == 4
    ids = torch.randint(VOCAB, (1, 9), generator=torch.Generator().manual_seed(0))
    with record_attention(ours) as maps:
        ours(ids, torch.ones_like(ids))
    expected = theirs(ids, output_attentions=True).attentions
    for i, weights in enumerate(expected):
        found = maps[f"decoder.layers.{i}.attention"]
        assert torch.equal(found != 0, weights != 0)
        assert (found != 0).sum(-1).flatten().tolist() == HEADS * [1, 2, 3, 4, 4, 4, 4, 4, 4]


@torch.no_grad()
def test_segments_are_their_token_types(folders):
    theirs, ours = theirs_of("bert"), load_pretrained(folders("bert"))
    ids, mask = batch("right")
    segments = torch.arange(ids.shape[1]).expand_as(ids) % 2
    expected = theirs(input_ids=ids, attention_mask=mask, token_type_ids=segments).logits
    assert largest_difference(ours(ids, mask, segments)[mask != 0], expected[mask != 0]) <= ROUNDING


@torch.no_grad()
def test_the_bare_encoder_has_the_hidden_states_and_the_embedding_as_head(tmp_path):
    theirs = randomised(tf.BertModel(tf.BertConfig(**BERT)))
    theirs.save_pretrained(tmp_path)
    ours = load_pretrained(tmp_path)
    ids, mask = batch("right")
    expected = theirs(input_ids=ids, attention_mask=mask).last_hidden_state
    assert largest_difference(ours.encode(ids, mask)[mask != 0], expected[mask != 0]) <= ROUNDING
    assert ours.head.projection.weight is ours.embedding.tokens.weight
    save_pretrained(ours, tmp_path / "back")
    back = tf.BertModel.from_pretrained(tmp_path / "back", add_pooling_layer=False)
    again = back(input_ids=ids, attention_mask=mask).last_hidden_state
    assert torch.equal(again[mask != 0], expected[mask != 0])


@torch.no_grad()
def test_a_folder_of_roberta_fills_its_masks_on_the_command_line(tmp_path, capsys):
    pytest.importorskip("tokenizers")
    from minitransformer.cli.main import main
    from minitransformer.data.tokenization import Tokenizer

    config = ROBERTA | {"vocab_size": 300}
    theirs = randomised(tf.RobertaForMaskedLM(tf.RobertaConfig(**config)))
    theirs.save_pretrained(tmp_path)
    Tokenizer.train(["the cat sat on the mat", "a dog"] * 9, 300).save(tmp_path)
    tokenizer = tf.AutoTokenizer.from_pretrained(tmp_path)
    ids = torch.tensor([tokenizer("the<mask> sat")["input_ids"]])
    assert ids[0, -1] == tokenizer.eos_token_id == 2
    positions = torch.arange(2, 2 + ids.shape[1])[None]  # told: this <s> has the id of padding
    logits = (
        theirs(ids, position_ids=positions).logits[0].index_fill(1, torch.arange(5), float("-inf"))
    )
    ids[0, ids[0] == tokenizer.mask_token_id] = logits.argmax(-1)[ids[0] == tokenizer.mask_token_id]
    assert main(["generate", str(tmp_path), "the<mask> sat"]) == 0
    expected = tokenizer.decode(ids[0], skip_special_tokens=True)
    assert capsys.readouterr().out == expected + "\n"


@pytest.mark.parametrize("num_beams", [1, 3])
@pytest.mark.parametrize("name", ["gpt2", "llama", "mistral", "qwen2-window", "bart", "marian"])
def test_generation_writes_what_the_library_writes(name, num_beams, folders):
    """For each prompt alone, as the library pads decoders on the left only."""
    from minitransformer import generate

    theirs, ours = theirs_of(name), load_pretrained(folders(name))
    ids, mask = batch("right", (3, 5, 1), extra=0)
    for eos in (7, 11, 39):
        found = generate(ours, ids, mask, 8, eos_id=eos, num_beams=num_beams)
        for row in range(3):
            alone = ids[row][mask[row] != 0][None]
            config = tf.GenerationConfig(
                max_new_tokens=8, num_beams=num_beams, do_sample=False, eos_token_id=eos,
                pad_token_id=0, bos_token_id=0, length_penalty=1.0, early_stopping=False,
                decoder_start_token_id=ours.config.bos_id, use_cache=True,
            )  # fmt: skip
            theirs.generation_config = config  # nothing forced, nothing forbidden
            written = theirs.generate(
                alone, attention_mask=torch.ones_like(alone), generation_config=config
            )[0]
            start = 1 if hasattr(ours, "decode") else alone.shape[1]
            new = written[start:].tolist()
            if eos in new:
                new = new[: new.index(eos) + 1]
            assert found[row].tolist() == new


# ---- a broken map is noticed -------------------------------------------------------------------


def without(names, key, **changes):
    """The map with one entry changed."""
    part = names[key]
    return {**names, key: replace(Part(part) if isinstance(part, str) else part, **changes)}


def swapped(names, a, b):
    return {**names, a: names[b], b: names[a]}


G, L = "decoder.layers.{i}", "decoder.layers.{i}"
BROKEN_NAMES = {
    "gpt2: an output not transposed": (
        "gpt2",
        lambda n: without(n, f"{G}.attention.output", transposed=False),
    ),
    "gpt2: key and value exchanged": (
        "gpt2",
        lambda n: swapped(n, f"{G}.attention.key", f"{G}.attention.value"),
    ),
    "gpt2: norms exchanged": (
        "gpt2",
        lambda n: swapped(n, f"{G}.attention_residual.norm", f"{G}.feed_forward_residual.norm"),
    ),
    "llama: gate and up exchanged": (
        "llama",
        lambda n: swapped(n, f"{L}.feed_forward.gate", f"{L}.feed_forward.widen"),
    ),
    "llama: norms exchanged": (
        "llama",
        lambda n: swapped(n, f"{L}.attention_residual.norm", f"{L}.feed_forward_residual.norm"),
    ),
    "roberta: norms exchanged": (
        "roberta",
        lambda n: swapped(
            n,
            "encoder.layers.{i}.attention_residual.norm",
            "encoder.layers.{i}.feed_forward_residual.norm",
        ),
    ),
    "distilbert: key and value exchanged": (
        "distilbert",
        lambda n: swapped(
            n, "encoder.layers.{i}.attention.key", "encoder.layers.{i}.attention.value"
        ),
    ),
    "bart: encoder and decoder positions exchanged": (
        "bart",
        lambda n: swapped(n, "embedding.positions.table", "source_embedding.positions.table"),
    ),
    "bart: query and key exchanged": (
        "bart",
        lambda n: swapped(n, f"{L}.cross_attention.query", f"{L}.cross_attention.key"),
    ),
    "bert: query and key exchanged": (
        "bert",
        lambda n: swapped(
            n, "encoder.layers.{i}.attention.query", "encoder.layers.{i}.attention.key"
        ),
    ),
}

BROKEN_STYLES = {  # the family that says so, and the change of style or numbers
    "gpt2: gelu by erf": ("gpt2", {"feed_forward": "gelu"}, {}),
    "gpt2: another eps": ("gpt2", {}, {"norm_eps": 1e-3}),
    "bert: gelu by tanh": ("bert", {"feed_forward": "gelu_tanh"}, {}),
    "bert: eps of the others": ("bert", {}, {"norm_eps": 1e-5}),
    "llama: another theta": ("llama", {}, {"rope_theta": 500_000.0}),
    "llama: another eps": ("llama", {}, {"norm_eps": 1e-4}),
    "mistral: a window of one less": ("mistral", {}, {"window": 3}),
    "mistral: a window of one more": ("mistral", {}, {"window": 5}),
    "mistral: no window": ("mistral", {}, {"window": None}),
    "distilbert: eps of the others": ("distilbert", {}, {"norm_eps": 1e-5}),
    "bart: embedding scaled": ("bart", {"scale_embedding": True}, {}),
    "marian: embedding not scaled": ("marian", {"scale_embedding": False}, {}),
    "marian: sines and cosines alternating": ("marian", {"positions": "sinusoidal"}, {}),
    "marian: relu": ("marian", {"feed_forward": "relu"}, {}),
}


def misses(name: str, theirs, ours) -> bool:
    """Does the parity test notice?"""
    with torch.no_grad():
        output, logits, mask = run_both(name, theirs, ours, "right")
    return largest_difference(output.logits[mask != 0], logits[mask != 0]) > ROUNDING


@pytest.mark.parametrize("case", BROKEN_NAMES)
def test_a_wrong_name_is_noticed(case, folders, monkeypatch):
    name, change = BROKEN_NAMES[case]
    family = FAMILIES[name]
    monkeypatch.setitem(FAMILIES, name, replace(family, names=change(family.names)))
    assert misses(name, theirs_of(name), load_pretrained(folders(name)))


@pytest.mark.parametrize("case", BROKEN_STYLES)
def test_a_wrong_part_is_noticed(case, folders):
    name, style, numbers = BROKEN_STYLES[case]
    right = load_pretrained(folders(name))
    config = replace(right.config, style=replace(right.config.parts, **style), **numbers)
    wrong = type(right)(config).eval()
    wrong.load_state_dict(right.state_dict())
    assert misses(name, theirs_of(name), wrong)


@pytest.mark.parametrize(
    "case",
    ["no head transform", "no head bias", "no final norm", "no embedding norm", "head untied",
     "interleaved rotation", "no rotation", "key heads in another order", "offset forgotten",
     "fused by heads", "no bias of queries", "two rows forgotten"],
)  # fmt: skip
def test_a_part_left_out_is_noticed(case, folders, monkeypatch):
    name = {
        "no head transform": "bert",
        "no head bias": "bart",
        "no final norm": "gpt2",
        "no embedding norm": "bart",
        "head untied": "gpt2",
        "offset forgotten": "bart",
        "fused by heads": "gpt2",
        "no bias of queries": "qwen2",
        "two rows forgotten": "roberta",
    }.get(case, "llama")
    ours = load_pretrained(folders(name))
    assert not misses(name, theirs_of(name), ours)
    with torch.no_grad():
        if case == "no head transform":
            ours.head.transform = nn.Identity()
        elif case == "no head bias":
            ours.head.projection.bias.zero_()
        elif case == "no final norm":
            ours.decoder.norm = nn.Identity()
        elif case == "no embedding norm":
            ours.embedding.norm = nn.Identity()
        elif case == "head untied":
            ours.head.projection.weight = nn.Parameter(
                torch.randn_like(ours.head.projection.weight)
            )
        elif case == "no bias of queries":
            ours.decoder.layers[0].attention.query.bias.zero_()
        elif case in ("offset forgotten", "two rows forgotten"):
            table = ours.embedding.positions.table.weight
            table.copy_(table.roll(2, dims=0))
        elif case == "no rotation":
            monkeypatch.setattr(RotaryPositions, "forward", lambda self, x, positions: (x, None))
        elif case == "interleaved rotation":

            def rotate(x, rotation):
                cos, sin = rotation
                a, b = x[..., 0::2], x[..., 1::2]
                return torch.stack((a * cos - b * sin, b * cos + a * sin), dim=-1).flatten(-2)

            monkeypatch.setattr("minitransformer.attention.rotate", rotate)
        for layer in (
            getattr(ours, "decoder", nn.Module()).layers
            if "order" in case or "by heads" in case
            else ()
        ):
            if case == "key heads in another order":
                for linear in (layer.attention.key, layer.attention.value):
                    linear.weight.copy_(linear.weight.roll(WIDTH // HEADS, dims=0))
            elif case == "fused by heads":
                parts = [layer.attention.query, layer.attention.key, layer.attention.value]
                fused = torch.cat([p.weight for p in parts])
                for part, piece in zip(
                    parts, fused.view(HEADS, 3, -1, WIDTH).unbind(1), strict=True
                ):
                    part.weight.copy_(piece.reshape(WIDTH, WIDTH))
    assert misses(name, theirs_of(name), ours)


# ---- files, old and new ------------------------------------------------------------------------


def tensors_of(folder) -> dict:
    from safetensors.torch import load_file

    return {key: tensor.clone() for key, tensor in load_file(folder / "model.safetensors").items()}


def write(folder, tensors, **config):
    from safetensors.torch import save_file

    save_file(
        {key: t.clone(memory_format=torch.contiguous_format) for key, t in tensors.items()},
        folder / "new",
        metadata={"format": "pt"},
    )
    (folder / "new").rename(folder / "model.safetensors")  # models that were read map the old file
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | config))


@pytest.fixture
def copy(folders, tmp_path):
    def make(name):
        folder = tmp_path / name
        shutil.copytree(folders(name), folder)
        return folder, tensors_of(folder)

    return make


def assert_same_model(a: nn.Module, b: nn.Module):
    for (key, x), (other, y) in zip(a.state_dict().items(), b.state_dict().items(), strict=True):
        assert key == other
        assert torch.equal(x, y), key


def with_gamma_and_beta(name: str) -> str:
    name = re.sub(r"LayerNorm\.weight$", "LayerNorm.gamma", name)
    return re.sub(r"LayerNorm\.bias$", "LayerNorm.beta", name)


OLD_NAMES = {
    "bert": lambda t: {with_gamma_and_beta(k): v for k, v in t.items()}
    | {
        "bert.embeddings.position_ids": torch.arange(LENGTH)[None],
        "bert.pooler.dense.weight": torch.ones(WIDTH, WIDTH),
        "bert.pooler.dense.bias": torch.ones(WIDTH),
        "cls.seq_relationship.weight": torch.ones(2, WIDTH),
        "cls.seq_relationship.bias": torch.ones(2),
    },
    "gpt2": lambda t: {k.removeprefix("transformer."): v for k, v in t.items()}
    | {"h.0.attn.bias": torch.ones(1, 1, 4, 4), "h.1.attn.masked_bias": torch.tensor(-1e4)},
    "llama": lambda t: t | {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4)},
    "mistral": lambda t: t | {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4)},
    "qwen2-tied": lambda t: {k.removeprefix("model."): v for k, v in t.items()},
    "roberta": lambda t: {with_gamma_and_beta(k): v for k, v in t.items()}
    | {
        "roberta.embeddings.position_ids": torch.arange(LENGTH + 2)[None],
        "roberta.pooler.dense.weight": torch.ones(WIDTH, WIDTH),
        "roberta.pooler.dense.bias": torch.ones(WIDTH),
    },
    "distilbert": lambda t: {k.removeprefix("distilbert."): v for k, v in t.items()},
    "bart": lambda t: {k.removeprefix("model."): v for k, v in t.items()},
}  # fmt: skip


@pytest.mark.parametrize("name", OLD_NAMES)
def test_names_of_older_versions_are_read(name, copy):
    folder, tensors = copy(name)
    expected = load_pretrained(folder)
    write(folder, OLD_NAMES[name](tensors))
    assert tensors_of(folder).keys() != tensors.keys()
    assert_same_model(load_pretrained(folder), expected)


@pytest.mark.parametrize(
    "name",
    ["bert", "roberta", "distilbert", "gpt2", "llama-tied", "qwen2-tied", "bart", "marian"],
)
def test_a_tied_tensor_may_stand_under_any_of_its_names(name, copy):
    folder, tensors = copy(name)
    expected = load_pretrained(folder)
    assert expected.head.projection.weight is expected.embedding.tokens.weight
    for group in FAMILIES[
        expected.config.style if isinstance(expected.config.style, str) else name
    ].ties:
        (there,) = [key for key in group if key in tensors]
        for other in group:
            renamed = {other if key == there else key: t for key, t in tensors.items()}
            write(folder, renamed)
            assert_same_model(load_pretrained(folder), expected)
        write(folder, tensors | dict.fromkeys(group, tensors[there]))  # under all of them
        assert_same_model(load_pretrained(folder), expected)
        if len(group) > 1:
            write(folder, tensors | {group[1]: tensors[there] + 1.0, there: tensors[there]})
            if there != group[1]:
                with pytest.raises(InputError, match=r"are one tensor, but they differ"):
                    load_pretrained(folder)


@pytest.mark.parametrize(
    "said",
    [
        {"rope_parameters": {"rope_type": "default", "rope_theta": 300.0}},
        {"rope_theta": 300.0, "rope_scaling": None},
        {"rope_theta": 300, "rope_scaling": {"type": "default"}},
        {"rope_scaling": {"rope_type": "default", "rope_theta": 300.0}},
        {"rope_theta": 5.0, "rope_scaling": {"rope_theta": 300.0}},
        {"rope_theta": 300.0, "rope_parameters": {"rope_type": "default"}},
        {"rope_parameters": {"rope_theta": 5.0}, "rope_scaling": {"rope_theta": 300.0}},
        {"rope_theta": 300.0, "partial_rotary_factor": 1.0},
    ],
)
def test_old_and_new_spellings_of_theta_are_read(said, copy):
    folder, tensors = copy("llama")
    write(folder, tensors, **{"rope_parameters": None} | said)
    assert load_pretrained(folder).config.rope_theta == 300.0
    assert tf.LlamaConfig.from_pretrained(folder).rope_parameters["rope_theta"] == 300.0


def test_without_a_theta_it_is_the_papers(copy):
    folder, tensors = copy("llama")
    write(folder, tensors, rope_parameters=None)
    assert load_pretrained(folder).config.rope_theta == 10_000.0


def test_weights_in_several_files_are_read(name, folders, tmp_path):
    theirs = theirs_of(name)
    theirs.save_pretrained(tmp_path, max_shard_size="20KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 2
    assert_same_model(load_pretrained(tmp_path), load_pretrained(folders(name)))


def test_half_precision_becomes_float32_unless_told_otherwise(copy):
    folder, tensors = copy("llama")
    write(folder, {key: t.half() for key, t in tensors.items()})
    assert load_pretrained(folder).head.projection.weight.dtype == torch.float32
    assert load_pretrained(folder, dtype=None).head.projection.weight.dtype == torch.float16
    assert (
        load_pretrained(folder, dtype=torch.bfloat16).head.projection.weight.dtype == torch.bfloat16
    )


def generation(folder, **said):
    (folder / "generation_config.json").write_text(json.dumps(said))


@pytest.mark.parametrize(
    ("config", "said", "ends"),
    [
        ([2, 5], {}, (2, 5)),  # a file that says nothing about it
        (2, {"eos_token_id": [2, 5]}, (2, 5)),
        ([2, 5], {"eos_token_id": 7}, 7),
        (2, {"eos_token_id": None, "num_beams": 4, "temperature": 0.6, "vocab_size": 3}, 2),
    ],
)
def test_what_ends_a_text_is_said_by_generation_config_before_config(config, said, ends, copy):
    folder, tensors = copy("llama")
    write(folder, tensors, eos_token_id=config)
    generation(folder, **said)
    assert load_pretrained(folder).config.eos_id == ends
    (folder / "generation_config.json").unlink()
    expected = tuple(config) if isinstance(config, list) else config
    assert load_pretrained(folder).config.eos_id == expected


@pytest.mark.parametrize(
    ("said", "forbidden"),
    [
        ({"bad_words_ids": [[40], [0]]}, (40, 0)),
        ({"bad_words_ids": [[40], [2]], "eos_token_id": 2}, (40,)),  # an end is never forbidden
        ({"suppress_tokens": [7, 40], "bad_words_ids": [[40]]}, (40, 7)),
        ({"bad_words_ids": None, "suppress_tokens": []}, ()),
    ],
)
def test_tokens_that_are_never_written(said, forbidden, copy, tmp_path):
    folder, tensors = copy("marian")
    generation(folder, **said)
    model = load_pretrained(folder)
    assert model.config.forbidden_ids == forbidden
    save_pretrained(model, tmp_path / "back")
    assert load_pretrained(tmp_path / "back").config == model.config
    (folder / "generation_config.json").unlink()
    write(folder, tensors, **said)
    assert load_pretrained(folder).config.forbidden_ids == forbidden


@pytest.mark.parametrize("num_beams", [1, 3])
@pytest.mark.parametrize("said", [{}, {"forced_bos_token_id": 11}])
def test_with_forbidden_and_forced_tokens_is_written_what_the_library_writes(
    said, num_beams, copy, tmp_path
):
    """And in a folder where padding, forbidden, would always win."""
    from minitransformer import generate

    folder, tensors = copy("marian")
    tensors["final_logits_bias"][0, 0] = 20.0
    write(folder, tensors)
    said = said | {"bad_words_ids": [[0]], "decoder_start_token_id": 0, "eos_token_id": 2}
    generation(folder, pad_token_id=0, **said)
    ours = load_pretrained(folder)
    save_pretrained(ours, tmp_path / "back")
    ids, mask = batch("right", (3, 5, 1), extra=0)
    for path in (folder, tmp_path / "back"):
        theirs = tf.MarianMTModel.from_pretrained(path)
        found = generate(ours, ids, mask, 8, eos_id=2, num_beams=num_beams)
        assert all(0 not in row for row in found)
        for row in range(3):
            alone = ids[row][mask[row] != 0][None]
            written = theirs.generate(
                alone, attention_mask=torch.ones_like(alone), max_new_tokens=8, pad_token_id=0,
                num_beams=num_beams, do_sample=False, early_stopping=False,
            )[0]  # fmt: skip
            assert found[row].tolist() == written[1 : len(found[row]) + 1].tolist()


def test_an_old_name_of_the_forced_first_token_is_read(copy):
    folder, tensors = copy("bart")
    write(folder, tensors, force_bos_token_to_be_generated=True, bos_token_id=3)
    assert load_pretrained(folder).config.first_id == 3


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ([], r"generation_config.json: must be a JSON object"),
        (
            {"bad_words_ids": [[5, 6]]},
            r"generation_config.json: bad_words_ids holds \[5, 6\]; only",
        ),
        ({"bad_words_ids": [5]}, "bad_words_ids must be a list of lists of token ids"),
        ({"bad_words_ids": [[[5]]]}, "bad_words_ids must be a list of lists of token ids"),
        ({"suppress_tokens": "5"}, "suppress_tokens must be a list of token ids"),
        ({"suppress_tokens": [41]}, r"bad_words_ids must be .* integers from 0 to 40, got \(41,\)"),
        ({"eos_token_id": "</s>"}, "eos_token_id must be ids of tokens, integers, got '</s>'"),
        (
            {"stop_strings": ["."]},
            "generation_config.json: stop_strings cannot be followed: remove",
        ),
        ({"sequence_bias": [[[5], 1.0]]}, "sequence_bias cannot be followed"),
    ],
)
def test_a_generation_config_that_cannot_be_followed_is_refused_by_its_key(said, message, copy):
    folder, _ = copy("marian")
    (folder / "generation_config.json").write_text(json.dumps(said))
    with pytest.raises(InputError, match=message):
        load_pretrained(folder)


# ---- and back ----------------------------------------------------------------------------------


@torch.no_grad()
def test_what_we_save_the_library_loads_and_agrees_with(name, folders, tmp_path):
    _, cls, _ = THEIRS[name]
    ours = load_pretrained(folders(name))
    save_pretrained(ours, tmp_path)
    back, info = cls.from_pretrained(
        tmp_path, output_loading_info=True, attn_implementation="eager"
    )
    assert not any(info.values()), info
    output, logits, mask = run_both(name, back.eval(), ours, "right")
    assert largest_difference(output.logits[mask != 0], logits[mask != 0]) <= ROUNDING
    assert_same_model(load_pretrained(tmp_path), ours)
    assert load_pretrained(tmp_path).config == ours.config


# ---- the checksum ------------------------------------------------------------------------------


@pytest.fixture
def exported(tmp_path):
    """A folder that we wrote, of a model so small that every bit can be flipped."""
    torch.manual_seed(0)
    save_pretrained(DecoderOnly(Config(5, 2, 1, num_heads=1, d_ff=2, style="gpt2")), tmp_path)
    return tmp_path


def test_an_exported_folder_has_three_files_and_a_checksum_that_can_be_computed(exported):
    import hashlib

    from safetensors import safe_open

    names = ["config.json", "generation_config.json", "model.safetensors"]
    assert sorted(path.name for path in exported.iterdir()) == names
    content = (exported / "model.safetensors").read_bytes()
    end = 8 + int.from_bytes(content[:8], "little")
    table = json.loads(content[8:end])
    del table["__metadata__"]
    digest = hashlib.sha256(json.dumps(table, sort_keys=True).encode() + content[end:])
    with safe_open(exported / "model.safetensors", "pt") as file:
        assert file.metadata() == {"format": "pt", "sha256": digest.hexdigest()}


@pytest.mark.parametrize("step", [11, pytest.param(1, marks=pytest.mark.slow)])
def test_any_flipped_bit_of_the_tensors_or_of_their_table_is_refused(exported, step):
    file = exported / "model.safetensors"
    content = file.read_bytes()
    end = 8 + int.from_bytes(content[:8], "little")
    metadata = range(8, 8 + content[8:end].index(b"}") + 1)
    places = [place for place in range(len(content)) if place not in metadata]
    assert len(places) > 2000
    for place in places[::step]:
        bit = 1 << place % 8  # another in each byte
        file.write_bytes(content[:place] + bytes([content[place] ^ bit]) + content[place + 1 :])
        with pytest.raises(InputError, match=r"model.safetensors: is damaged"):
            load_pretrained(exported)
    file.write_bytes(content)
    load_pretrained(exported)


def test_an_exported_folder_may_be_edited(exported):
    """By hand, or with safetensors' own functions; a manifest.json of older versions is ignored."""
    from safetensors.torch import load_file, save_file

    (exported / "manifest.json").write_text('{"format": 1, "files": {"config.json": {}}}')
    config = json.loads((exported / "config.json").read_text())
    (exported / "config.json").write_text(json.dumps(config | {"eos_token_id": 3}))
    tensors = load_file(exported / "model.safetensors")
    tensors["transformer.ln_f.bias"] = torch.tensor([0.5, 0.25])
    save_file(tensors, exported / "model.safetensors", {"format": "pt"})
    model = load_pretrained(exported)
    assert model.config.eos_id == 3
    assert model.decoder.norm.bias.tolist() == [0.5, 0.25]


def test_the_files_of_several_carry_a_checksum_each(exported):
    name = "model-00001-of-00001.safetensors"
    (exported / "model.safetensors").rename(exported / name)
    index = {"weight_map": {"transformer.wte.weight": name}}
    (exported / "model.safetensors.index.json").write_text(json.dumps(index))
    load_pretrained(exported)
    content = bytearray((exported / name).read_bytes())
    content[-1] ^= 1
    (exported / name).write_bytes(content)
    with pytest.raises(InputError, match=rf"{name}: is damaged: its tensors are not those"):
        load_pretrained(exported)


def test_a_model_of_ours_can_be_saved_for_the_library(tmp_path):
    ours = DecoderOnly(Config(VOCAB, WIDTH, num_heads=HEADS, style="llama", num_kv_heads=2)).eval()
    save_pretrained(ours, tmp_path)
    theirs = tf.LlamaForCausalLM.from_pretrained(tmp_path)
    ids = torch.randint(VOCAB, (2, 7))
    assert largest_difference(theirs(ids).logits, ours(ids, torch.ones_like(ids))) <= ROUNDING


@pytest.mark.parametrize(
    ("model", "kept"),
    [  # what is read and written again keeps its name, also where others compute the same
        (DecoderOnly(Config(VOCAB, 16, style="llama", window=3)), "mistral"),
        (DecoderOnly(Config(VOCAB, 16, style="llama")), "llama"),
        (DecoderOnly(Config(VOCAB, 16, style="mistral")), "mistral"),
        (EncoderOnly(Config(VOCAB, 16, style="bert", num_segments=1)), "bert"),
        (EncoderOnly(Config(VOCAB, 16, style="bert", num_segments=0)), "bert"),
        (EncoderOnly(Config(VOCAB, 16, style="roberta", num_segments=1)), "roberta"),
        (EncoderOnly(Config(VOCAB, 16, style="distilbert", norm_eps=1e-12)), "distilbert"),
    ],
)
def test_a_model_is_saved_as_the_family_of_its_style_or_the_first_that_holds_it(
    model, kept, tmp_path
):
    save_pretrained(model, tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["model_type"] == kept
    again = load_pretrained(tmp_path)
    ids = torch.randint(VOCAB, (2, 9))
    mask = torch.ones_like(ids)
    assert torch.equal(again(ids, mask), model.eval()(ids, mask))


@pytest.mark.parametrize(
    "model",
    [
        EncoderDecoder(Config(VOCAB, 16)),
        DecoderOnly(Config(VOCAB, 16, style="marian")),
        DecoderOnly(Config(VOCAB, 16, style="gpt2", window=3)),
        DecoderOnly(Config(VOCAB, 16, style="gpt2", num_segments=2)),
        DecoderOnly(Config(VOCAB, 16, style="gpt2", num_kv_heads=2)),
        EncoderDecoder(Config(VOCAB, 16, style="bart", tie_embeddings=True, norm_eps=1e-3)),
    ],
)
def test_a_model_without_a_counterpart_is_refused(model, tmp_path):
    with pytest.raises(
        ValueError, match=r"has no counterpart among bert, .* with num_segments=.*window="
    ):
        save_pretrained(model, tmp_path / "none")
    assert not (tmp_path / "none").exists()


# ---- refusals ----------------------------------------------------------------------------------


MIXED = ["full_attention", "sliding_attention"]
WINDOW = {"use_sliding_window": True, "sliding_window": 4, "layer_types": None}


@pytest.mark.parametrize(
    ("name", "config", "message"),
    [
        ("gpt2", {"model_type": "mamba"}, "json: model_type is 'mamba'; known are bert, roberta"),
        ("gpt2", {"activation_function": "quick_gelu"}, "_function is 'quick_gelu'; known"),
        ("gpt2", {"scale_attn_weights": False}, "scale_attn_weights is False; only True can be"),
        ("gpt2", {"scale_attn_by_inverse_layer_idx": True}, "by_inverse_layer_idx is True"),
        ("gpt2", {"n_head": 5}, "config.json: n_embd must be a multiple of n_head, got 32 and 5"),
        ("gpt2", {"n_layer": 3}, r"lacks transformer\.h\.2\.attn\.c_attn\.bias, .* and \d+ more"),
        ("gpt2", {"n_layer": 1}, r"no part of the model takes: transformer\.h\.1\.attn"),
        ("gpt2", {"n_positions": 23}, r"transformer\.wpe\.weight has shape \(24, 32\).*\(23, 32\)"),
        ("llama", {"hidden_act": "gelu"}, "hidden_act is 'gelu'; known are silu"),
        ("llama", {"attention_bias": True}, "attention_bias is True; only False"),
        ("llama", {"head_dim": 16}, r"head_dim is 16; only hidden_size / num_attention_heads = 8"),
        ("llama", {"rope_parameters": {"rope_type": "llama3"}}, "of the type 'llama3'"),
        ("llama", {"rope_parameters": None, "rope_scaling": {"type": "yarn"}}, "type 'yarn'"),
        ("llama", {"rope_scaling": {"factor": 2.0}}, "rope_scaling has factor, which the type "),
        ("llama", {"rope_parameters": {"full_attention": {}}}, "parameters has full_attention"),
        ("llama", {"rope_scaling": "linear"}, "rope_scaling is 'linear'; expected an object"),
        ("llama", {"partial_rotary_factor": 0.5}, "partial_rotary_factor is 0.5; only 1.0"),
        ("llama", {"num_attention_heads": 0}, "num_attention_heads must be an integer >= 1, got 0"),
        ("llama", {"rms_norm_eps": None}, "rms_norm_eps must be a number, got None"),
        ("llama", {"is_causal": False}, "is_causal is False; only True can be read"),
        ("llama", {"per_layer_config": {"0": {}}}, "per_layer_config is .*; only None can be read"),
        ("llama", {"quantization_config": {"bits": 4}}, "quantization_config is {'bits': 4}; only"),
        ("bert", {"pruned_heads": {"0": [1]}}, "pruned_heads is .*; only {} can be read"),
        ("llama", {"tie_word_embeddings": True}, "are one tensor, but they differ"),
        ("bert", {"position_embedding_type": "relative_key"}, "position_embedding_type is 'relat"),
        ("bert", {"hidden_act": 7}, "hidden_act is 7; known are relu, gelu"),
        ("bert", {"hidden_act": ["gelu"]}, "hidden_act is .'gelu'.; known are relu, gelu"),
        ("bert", {"tie_word_embeddings": "false"}, "tie_word_embeddings must be true or fal"),
        ("bert", {"model_type": ["bert"]}, r"model_type is \['bert'\]; known are"),
        ("gpt2", {"n_layer": 10**9}, r"holds \d+ tensors for 1000000000 layers"),
        ("bert", {"hidden_size": "32"}, "hidden_size must be an integer >= 1, got '32'"),
        ("bart", {"decoder_ffn_dim": 12}, "encoder_ffn_dim and decoder_ffn_dim differ: 48 and 12"),
        ("bart", {"tie_word_embeddings": False}, "tie_word_embeddings is False; only True"),
        ("marian", {"share_encoder_decoder_embeddings": False}, "share_encoder_decoder_embeddings"),
        ("marian", {"decoder_vocab_size": 9}, "decoder_vocab_size differs from vocab_size"),
        ("mistral", {"head_dim": 16}, "head_dim is 16; only hidden_size / num_attention_heads"),
        ("mistral", {"sliding_window": 0}, "sliding_window must be an integer >= 1, got 0"),
        ("mistral", {"sliding_window": "4"}, "sliding_window must be an integer >= 1, got '4'"),
        ("mistral", {"sliding_window": True}, "sliding_window must be an integer >= 1, got True"),
        ("mistral", {"rope_parameters": {"rope_type": "yarn"}}, "of the type 'yarn'"),
        ("qwen2", {"layer_types": MIXED}, r"layer_types is \['full_attention', .* in some"),
        ("qwen2", {"layer_types": ["full_attention"]}, "layer_types must be 2 of full_attention"),
        ("qwen2", {"layer_types": [[], {}]}, "layer_types must be 2 of full_attention or sliding"),
        ("qwen2", {"layer_types": 2 * ["sliding_attention"]}, "but sliding_window is not used"),
        ("qwen2", WINDOW | {"max_window_layers": 1}, "max_window_layers is 1: a sliding_window in"),
        ("qwen2", WINDOW | {"max_window_layers": "1"}, "max_window_layers must be an integer >= 0"),
        ("qwen2", {"use_sliding_window": "no"}, "use_sliding_window must be true or false, got"),
        ("qwen2", {"num_key_value_heads": 32}, "num_attention_heads must be a multiple of num_key"),
        ("roberta", {"hidden_act": "relu"}, "hidden_act is 'relu'; known are gelu"),
        ("roberta", {"pad_token_id": 0}, "pad_token_id is 0; only 1 can be read"),
        ("roberta", {"max_position_embeddings": 2}, "max_position_embeddings must be above 2, of"),
        ("roberta", {"max_position_embeddings": LENGTH}, r"position_embeddings.weight has shape"),
        ("roberta", {"type_vocab_size": 0}, "no part .*: roberta.embeddings.token_type_embeddings"),
        ("distilbert", {"activation": "tanh"}, "activation is 'tanh'; known are relu, gelu"),
        ("distilbert", {"dim": 30}, "config.json: dim must be a multiple of n_heads, got 30 and 4"),
        ("distilbert", {"n_layers": 3}, r"lacks distilbert\.transformer\.layer\.2\.attention"),
    ],
)  # fmt: skip
def test_what_cannot_be_followed_is_refused_by_its_key(name, config, message, copy):
    folder, tensors = copy(name)
    write(folder, tensors, **config)
    with pytest.raises(InputError, match=message):
        load_pretrained(folder)


HEADS_OF_THEIRS = {
    "bert": "BertForTokenClassification",
    "gpt2": "GPT2DoubleHeadsModel",
    "llama": "LlamaForTokenClassification",
    "mistral": "MistralForTokenClassification",
    "qwen2": "Qwen2ForQuestionAnswering",
    "roberta": "RobertaForMultipleChoice",
    "distilbert": "DistilBertForTokenClassification",
    "bart": "BartForSequenceClassification",
    "marian": "MarianForCausalLM",
}


@pytest.mark.parametrize("name", HEADS_OF_THEIRS)
def test_a_model_with_another_head_is_refused_by_its_name(name, copy):
    folder, tensors = copy(name)
    architecture = HEADS_OF_THEIRS[name]
    write(folder, tensors, architectures=[architecture])
    message = rf"architectures names {architecture}, whose head .* known are .*Model. .*base_model"
    with pytest.raises(InputError, match=message):
        load_pretrained(folder)


@pytest.mark.parametrize("said", [None, [], "LLaMAForCausalLM", ["LlamaForCausalLM", "Other"]])
def test_a_name_may_be_left_out_or_written_otherwise(said, copy):
    folder, tensors = copy("llama")
    expected = load_pretrained(folder)
    write(folder, tensors, architectures=said)
    assert_same_model(load_pretrained(folder), expected)


BARE = {
    "gpt2": tf.GPT2Model,
    "llama": tf.LlamaModel,
    "mistral": tf.MistralModel,
    "qwen2": tf.Qwen2Model,
    "roberta": tf.RobertaModel,
    "distilbert": tf.DistilBertModel,
    "bert": tf.BertModel,
    "bert-decoder": tf.BertModel,
}


@pytest.mark.parametrize("name", BARE)
@torch.no_grad()
def test_a_model_without_a_head_has_the_hidden_states(name, tmp_path):
    theirs = randomised(BARE[name](THEIRS[name][0]))
    theirs.save_pretrained(tmp_path)
    ours = load_pretrained(tmp_path)
    ids, mask = batch("right")
    expected = theirs(input_ids=ids, attention_mask=mask).last_hidden_state
    assert largest_difference(ours.encode(ids, mask)[mask != 0], expected[mask != 0]) <= ROUNDING
    assert ours.head.projection.weight is ours.embedding.tokens.weight
    save_pretrained(ours, tmp_path / "back")
    assert_same_model(load_pretrained(tmp_path / "back"), ours)


def test_pretraining_heads_are_read_as_a_masked_language_model(copy):
    folder, tensors = copy("bert")
    expected = load_pretrained(folder)
    more = {"cls.seq_relationship.weight": torch.ones(2, WIDTH)}
    write(folder, tensors | more, architectures=["BertForPreTraining"])
    assert_same_model(load_pretrained(folder), expected)


UNREAD = {
    "of other heads": "classifier_dropout id2label label2id problem_type qa_dropout "
    "seq_classif_dropout summary_activation summary_first_dropout summary_proj_to_labels "
    "summary_type summary_use_proj",
    "of training from scratch": "init_std initializer_range sinusoidal_pos_embds",
    "dropout that our layers do not have": "activation_dropout attention_dropout attn_pdrop "
    "attention_probs_dropout_prob decoder_layerdrop embd_pdrop encoder_layerdrop",
    "without an effect on numbers": "_name_or_path bos_token_id chunk_size_feed_forward dtype "
    "is_encoder_decoder num_hidden_layers output_attentions output_hidden_states pad_token_id "
    "pretraining_tp reorder_and_upcast_attn return_dict transformers_version use_cache",
    "a text that is cut at the longest has no end": "forced_eos_token_id",
}
BY_HAND = (  # in a family's own functions
    "add_cross_attention architectures decoder_attention_heads decoder_ffn_dim decoder_vocab_size "
    "head_dim is_decoder layer_types max_window_layers model_type rope_parameters scale_embedding "
    "tie_word_embeddings use_sliding_window"
)


@pytest.mark.parametrize("name", FAMILIES)
def test_no_key_of_the_librarys_configs_is_passed_over(name):
    """A key that is new in the library is read, refused, or put on one of the lists."""
    family = FAMILIES[name]
    keys = set(tf.AutoConfig.for_model(name).to_dict())
    known = {key for key, _ in family.numbers.values()} | {family.activation[0]} | set(family.fixed)
    assert keys - known - set(" ".join([*UNREAD.values(), BY_HAND]).split()) == set()


def test_a_head_that_is_not_there_may_be_the_embedding(copy):
    folder, tensors = copy("llama")
    del tensors["lm_head.weight"]
    write(folder, tensors)
    with pytest.raises(
        InputError, match=r'lacks lm_head.weight, the head; .*"tie_word_embeddings"'
    ):
        load_pretrained(folder)


def test_what_is_lacking_and_what_is_too_much_are_both_named(copy):
    folder, tensors = copy("llama")
    tensors["norm"] = tensors.pop("model.norm.weight")
    write(folder, tensors)
    message = "lacks model.norm.weight; and holds what no part of the model takes: norm"
    with pytest.raises(InputError, match=message):
        load_pretrained(folder)


@pytest.mark.parametrize("prefix", ["module.", "base_model.model."])
def test_names_with_a_strange_prefix_are_shown(prefix, copy):
    folder, tensors = copy("llama")
    write(folder, {prefix + key: t for key, t in tensors.items()})
    with pytest.raises(InputError, match=rf"lacks lm_head.*; and holds what .* takes: {prefix}l"):
        load_pretrained(folder)


def test_a_byte_order_mark_before_the_config_is_read(copy):
    folder, _ = copy("llama")
    file = folder / "config.json"
    file.write_text("\ufeff" + file.read_text(), encoding="utf-8")
    assert package.is_pretrained(folder)
    assert load_pretrained(folder).config.vocab_size == VOCAB


def test_weights_that_are_integers_are_refused(copy):
    folder, tensors = copy("llama")
    tensors["model.norm.weight"] = tensors["model.norm.weight"].to(torch.int8)
    write(folder, tensors)
    with pytest.raises(InputError, match=r"model.norm.weight is int8; only floating-point weights"):
        load_pretrained(folder)


def test_a_file_without_tensors_is_refused(copy):
    folder, _ = copy("bart")
    write(folder, {})
    with pytest.raises(InputError, match=r"holds 0 tensors|is damaged or no safetensors"):
        load_pretrained(folder)


def test_a_tensor_that_the_index_does_not_list_is_not_passed_over(tmp_path):
    theirs_of("llama").save_pretrained(tmp_path, max_shard_size="20KB")
    file = sorted(tmp_path.glob("model-*.safetensors"))[0]
    from safetensors.torch import load_file, save_file

    save_file(load_file(file) | {"model.layers.0.extra": torch.ones(1)}, file)
    with pytest.raises(InputError, match=r"no part of the model takes: model.layers.0.extra"):
        load_pretrained(tmp_path)


def test_a_missing_number_is_named(copy):
    folder, _ = copy("gpt2")
    file = folder / "config.json"
    config = json.loads(file.read_text())
    del config["n_embd"]
    file.write_text(json.dumps(config))
    with pytest.raises(InputError, match=r"config.json: lacks n_embd"):
        load_pretrained(folder)


def damaged(folder, how):
    weights, config = folder / "model.safetensors", folder / "config.json"
    if how == "truncated":
        weights.write_bytes(weights.read_bytes()[:-100])
    elif how == "no safetensors":
        weights.write_bytes(b"hello")
    elif how == "no weights":
        weights.unlink()
    elif how == "pickle":
        weights.rename(folder / "pytorch_model.bin")
    elif how == "another name":
        weights.rename(folder / "model.fp16.safetensors")
    elif how == "not downloaded":
        weights.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n")
    elif how == "adapter":
        (folder / "adapter_config.json").write_text("{}")
    elif how == "no config":
        config.unlink()
    elif how == "not JSON":
        config.write_text("{")
    elif how == "a list":
        config.write_text("[]")
    elif how == "shard missing":
        weights.rename(folder / "model-00001-of-00002.safetensors")
        names = {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}
        (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": names}))
    elif how == "index elsewhere":
        weights.unlink()
        (folder / "model.safetensors.index.json").write_text('{"weight_map": {"a": "../x"}}')
    elif how == "index without map":
        weights.unlink()
        (folder / "model.safetensors.index.json").write_text("{}")


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("truncated", "model.safetensors: is damaged"),
        ("no safetensors", "model.safetensors: is damaged"),
        ("no weights", "holds no model.safetensors"),
        ("pickle", "pytorch_model.bin is a pickle, which may run code: save it as safetensors"),
        ("another name", "holds no model.safetensors; is it model.fp16.safetensors. then rename"),
        (
            "not downloaded",
            "model.safetensors: is a pointer of Git LFS, not the file: run `git lfs",
        ),
        ("adapter", r"holds an adapter \(adapter_config.json\); merge it into its model"),
        ("no config", "holds no config.json"),
        ("not JSON", "config.json: is not JSON"),
        ("a list", "config.json: must be a JSON object, got "),
        ("shard missing", "model-00001-of-00002.safetensors: lacks a, which"),
        ("index elsewhere", "'../x' is not the name of a file in this folder"),
        ("index without map", "holds no weight_map"),
    ],
)
def test_a_damaged_folder_is_refused_by_its_file(how, message, copy):
    folder, _ = copy("gpt2")
    damaged(folder, how)
    with pytest.raises(InputError, match=message):
        load_pretrained(folder)


def test_a_folder_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(InputError, match="no such folder"):
        load_pretrained(tmp_path / "nowhere")


def test_a_map_without_an_entry_says_which(copy, monkeypatch):
    names = {key: part for key, part in FAMILIES["gpt2"].names.items() if key != "head.projection"}
    monkeypatch.setitem(FAMILIES, "gpt2", replace(FAMILIES["gpt2"], names=names))
    with pytest.raises(KeyError, match=r"no entry for head.projection.weight"):
        load_pretrained(copy("gpt2")[0])


# ---- torch's own modules -----------------------------------------------------------------------


def torch_transformer(**options) -> nn.Transformer:
    module = nn.Transformer(
        WIDTH, HEADS, 2, 3, FF, dropout=0.0, dtype=torch.float64, **{"batch_first": True} | options
    )
    return randomised(module)


@pytest.mark.filterwarnings("ignore:enable_nested_tensor")
@pytest.mark.parametrize("activation", ["relu", "gelu"])
@pytest.mark.parametrize("norm_first", [True, False])
@pytest.mark.parametrize("bias", [True, False])
@torch.no_grad()
def test_torchs_transformer_has_the_same_numbers_in_our_parts(activation, norm_first, bias):
    module = torch_transformer(activation=activation, norm_first=norm_first, bias=bias)
    encoder, decoder = from_torch(module)
    _, source_mask = batch("right")
    _, target_mask = batch("right", (3, 1, 6, 2), extra=1)
    x = torch.randn(*source_mask.shape, WIDTH, dtype=torch.float64)
    y = torch.randn(*target_mask.shape, WIDTH, dtype=torch.float64)
    length = y.shape[1]
    module.train()  # no fast path, which gives zeros at padding
    expected = module(
        x,
        y,
        tgt_mask=~causal_mask(length)[0, 0],
        src_key_padding_mask=source_mask == 0,
        tgt_key_padding_mask=target_mask == 0,
        memory_key_padding_mask=source_mask == 0,
    )
    memory = encoder(x, padding_mask(source_mask), None)
    mask = padding_mask(target_mask) & causal_mask(length)
    found = decoder(y, mask, None, memory, padding_mask(target_mask, source_mask))
    real = target_mask != 0
    assert largest_difference(found[real], expected[real]) <= 1e-12
    alone = from_torch(module.encoder)
    assert torch.equal(alone(x, padding_mask(source_mask), None), memory)


def changed_layers() -> dict:
    """What a stack can have that its first layer does not show -> the change."""

    def last(module, **parts):
        for name, part in parts.items():
            setattr(module.layers[-1], name, part)

    def final(norm):
        return lambda module: setattr(module, "norm", norm)

    return {
        "no final norm": final(None),
        "final eps": final(nn.LayerNorm(WIDTH, eps=0.1)),
        "final norm without gain": final(nn.LayerNorm(WIDTH, elementwise_affine=False)),
        "final RMSNorm": final(nn.RMSNorm(WIDTH)),
        "any final module": final(nn.Sequential(nn.LayerNorm(WIDTH), nn.Linear(WIDTH, WIDTH))),
        "eps of one norm": lambda m: last(m, norm2=nn.LayerNorm(WIDTH, eps=0.1)),
        "class of one norm": lambda m: last(m, norm1=nn.RMSNorm(WIDTH, eps=0.1)),
        "norm without bias": lambda m: last(m, norm1=nn.LayerNorm(WIDTH, bias=False)),
        "activation": lambda m: last(m, activation=torch.tanh),
        "activation module": lambda m: last(m, activation=nn.GELU("tanh")),
        "norm_first": lambda m: last(m, norm_first=True),
        "heads": lambda m: last(
            m, self_attn=nn.MultiheadAttention(WIDTH, HEADS // 2, batch_first=True)
        ),
        "width": lambda m: last(m, linear1=nn.Linear(WIDTH, 5), linear2=nn.Linear(5, WIDTH)),
        "one layer without bias": lambda m: m.layers.append(
            nn.TransformerEncoderLayer(WIDTH, HEADS, FF, 0.0, bias=False, batch_first=True)
        ),
    }


@pytest.mark.filterwarnings("ignore:enable_nested_tensor")
@pytest.mark.parametrize("change", changed_layers())
@torch.no_grad()
def test_every_layer_of_torchs_stack_is_followed_as_it_is(change):
    module = torch_transformer().encoder
    changed_layers()[change](module)
    randomised(module.double()).train()  # no fast path
    _, mask = batch("right")
    x = torch.randn(*mask.shape, WIDTH, dtype=torch.float64)
    expected = module(x, src_key_padding_mask=mask == 0)
    stack = from_torch(module)
    assert stack.training
    found = stack(x, padding_mask(mask), None)
    assert largest_difference(found[mask != 0], expected[mask != 0]) <= 1e-12
    assert {id(p) for p in stack.parameters()}.isdisjoint({id(p) for p in module.parameters()})


def test_dropout_of_each_residual_is_kept():
    module = torch_transformer().decoder
    module.layers[1].dropout2.p = 0.25
    stack = from_torch(module)
    assert stack.layers[1].cross_attention_residual.dropout.p == 0.25
    assert stack.layers[0].cross_attention_residual.dropout.p == 0.0


class OwnLayer(nn.TransformerEncoderLayer):
    """Somebody's own: what it computes cannot be known."""


def zero_attention(layer, **options):
    layer.self_attn = nn.MultiheadAttention(WIDTH, HEADS, batch_first=True, **options)


@pytest.mark.filterwarnings("ignore:enable_nested_tensor")
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda m: m.layers.append(OwnLayer(WIDTH, HEADS)),
            r"layers\[2\] is a OwnLayer; only Trans",
        ),
        (lambda m: setattr(m, "layers", nn.ModuleList()), "the module has no layers"),
        (
            lambda m: zero_attention(m.layers[1], add_zero_attn=True),
            r"layers\[1\].self_attn has add_zero_attn",
        ),
        (
            lambda m: zero_attention(m.layers[1], add_bias_kv=True),
            r"layers\[1\].self_attn has add_bias_kv",
        ),
        (
            lambda m: setattr(m.layers[1].self_attn, "batch_first", False),
            r"layers\[1\].self_attn.batch_first differs",
        ),
        (
            lambda m: setattr(m.layers[0], "norm2", nn.Identity()),
            r"layers\[0\].norm2 is a Identity; only LayerNorm or RMSNorm is known",
        ),
        (
            lambda m: setattr(m.layers[0], "linear2", nn.Linear(FF, WIDTH, bias=False)),
            "lacks layers.0.linear2.bias",
        ),
        (
            lambda m: setattr(m.layers[1], "activation", nn.PReLU()),
            "what no part of the model takes: layers.1.activation.weight",
        ),
    ],
)
def test_what_our_layers_cannot_compute_is_refused_by_name(change, message):
    module = torch_transformer().encoder
    change(module)
    with pytest.raises(ValueError, match=message):
        from_torch(module)


def test_what_torch_modules_cannot_be_converted_is_said():
    with pytest.raises(TypeError, match=r"expected nn.Transformer, .* got Linear"):
        from_torch(nn.Linear(2, 2))


# ---- a real size -------------------------------------------------------------------------------

TINYLLAMA = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": 32_000,
    "hidden_size": 2048,
    "intermediate_size": 5632,
    "num_hidden_layers": 22,
    "num_attention_heads": 32,
    "num_key_value_heads": 4,
    "max_position_embeddings": 2048,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10_000.0,
    "hidden_act": "silu",
    "tie_word_embeddings": False,
    "eos_token_id": 2,
}

PROGRAM = """
import resource, sys, torch
from minitransformer import generate
from minitransformer.pretrained import load_pretrained
model = load_pretrained(sys.argv[1])
ids = torch.tensor([[1, 15043, 29892], [1, 910, 338]])
rows = generate(model, ids, torch.ones_like(ids), 3)
assert [len(row) for row in rows] == [3, 3]
print(sum(p.numel() for p in model.parameters()))
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)
"""


@pytest.mark.slow
def test_tinyllamas_configuration_runs_in_6_gib(tmp_path):
    import subprocess
    import sys

    from safetensors.torch import save_file

    (tmp_path / "config.json").write_text(json.dumps(TINYLLAMA))
    with torch.device("meta"):
        model = tf.LlamaForCausalLM(tf.LlamaConfig(**TINYLLAMA))
    shapes = {key: tensor.shape for key, tensor in model.state_dict().items()}
    places = {}
    for number, keys in enumerate([list(shapes)[i::8] for i in range(8)]):
        file = f"model-{number}.safetensors"
        save_file({key: torch.randn(shapes[key]) * 0.02 for key in keys}, tmp_path / file)
        places |= dict.fromkeys(keys, file)
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    run = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(tmp_path)], capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr
    parameters, mebibytes = map(int, run.stdout.split())
    assert parameters == 1_100_048_384
    assert mebibytes <= 6 * 1024
    print(f"peak {mebibytes} MiB")


def test_the_package_is_listed():
    assert set(package.__all__) == {"FAMILIES", "from_torch", "load_pretrained", "save_pretrained"}
