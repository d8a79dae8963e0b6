"""Sequence classifiers in folders of the transformers library: the same numbers, both ways."""

import json

import pytest
import torch

from minitransformer import Config, DecoderOnly, EncoderOnly
from minitransformer.classifier import Classifier
from minitransformer.data.files import InputError
from minitransformer.pretrained import fill_head, load_pretrained, save_pretrained
from minitransformer.pretrained.classes import with_head

tf = pytest.importorskip("transformers")

BERT = {"vocab_size": 40, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
BERT |= {"intermediate_size": 48, "max_position_embeddings": 24, "pad_token_id": 1}
LLAMA = {**BERT, "num_key_value_heads": 2, "tie_word_embeddings": False}
MODELS = {
    "bert": (tf.BertConfig, tf.BertForSequenceClassification, BERT),
    "roberta": (tf.RobertaConfig, tf.RobertaForSequenceClassification, BERT),
    "distilbert": (
        tf.DistilBertConfig,
        tf.DistilBertForSequenceClassification,
        {"vocab_size": 40, "dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 48,
         "max_position_embeddings": 24},
    ),
    "gpt2": (
        tf.GPT2Config,
        tf.GPT2ForSequenceClassification,
        {"vocab_size": 40, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 24,
         "pad_token_id": 1},
    ),
    "llama": (tf.LlamaConfig, tf.LlamaForSequenceClassification, LLAMA),
    "mistral": (tf.MistralConfig, tf.MistralForSequenceClassification, LLAMA),
    "qwen2": (tf.Qwen2Config, tf.Qwen2ForSequenceClassification, LLAMA),
}  # fmt: skip
NAMES = ["good", "bad", "so so"]
IDS = torch.tensor([[5, 6, 7, 8, 9, 10, 11], [5, 12, 13, 1, 1, 1, 1]])
MASK = (IDS != 1).long()


def randomized(model):
    """Also what is 0 or 1 at first: swapped biases and gains would not be seen."""
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model.eval()


@pytest.fixture(params=MODELS)
def theirs(request):
    config, model, numbers = MODELS[request.param]
    labels = {"id2label": dict(enumerate(NAMES)), "label2id": {n: i for i, n in enumerate(NAMES)}}
    return randomized(model(config(**numbers, **labels)))


@torch.no_grad()
def logits_of(theirs):
    return theirs(input_ids=IDS, attention_mask=MASK).logits


@torch.no_grad()
def test_their_classifiers_are_read_and_written_with_the_same_numbers(theirs, tmp_path):
    theirs.save_pretrained(tmp_path / "theirs")
    ours = load_pretrained(tmp_path / "theirs")
    assert isinstance(ours, Classifier)
    assert ours.names == NAMES
    torch.testing.assert_close(ours(IDS, MASK), logits_of(theirs), rtol=0, atol=2e-5)
    save_pretrained(ours, tmp_path / "ours")
    again = type(theirs).from_pretrained(tmp_path / "ours").eval()
    again.config.pad_token_id = 1  # of no importance to us; the library looks for the last token
    assert logits_of(again).equal(logits_of(theirs))
    assert again.config.id2label == dict(enumerate(NAMES))
    said = json.loads((tmp_path / "ours" / "config.json").read_text(encoding="utf-8"))
    assert said["label2id"] == {name: i for i, name in enumerate(NAMES)}
    assert load_pretrained(tmp_path / "ours")(IDS, MASK).equal(ours(IDS, MASK))


def test_the_head_is_trained_as_theirs_is(theirs, tmp_path):
    theirs.save_pretrained(tmp_path)
    ours, labels = load_pretrained(tmp_path), torch.tensor([2, 0])
    theirs(input_ids=IDS, attention_mask=MASK, labels=labels).loss.backward()
    ours.loss(IDS, MASK, labels).backward()
    found = {p.shape: p.grad for p in theirs.parameters()}[ours.head.projection.weight.shape]
    torch.testing.assert_close(ours.head.projection.weight.grad, found, rtol=0, atol=1e-5)


def test_a_new_head_takes_what_the_folder_has_of_one(tmp_path):
    """BERT's pooler, which other heads leave out."""
    settings, _, numbers = MODELS["bert"]
    theirs = randomized(tf.BertForPreTraining(settings(**numbers)))
    theirs.save_pretrained(tmp_path / "with")
    tf.BertForMaskedLM(settings(**numbers)).save_pretrained(tmp_path / "without")
    pooler = theirs.bert.pooler.dense
    for name, new in {
        "with": ["projection"],
        "without": ["transform.linear", "projection"],
    }.items():
        model = with_head(load_pretrained(tmp_path / name), NAMES)
        assert fill_head(model, tmp_path / name) == [
            f"head.{part}.{kind}" for part in new for kind in ("weight", "bias")
        ]
        assert model.head.transform.linear.weight.equal(pooler.weight) == (name == "with")
        assert model.head.transform.linear.bias.equal(pooler.bias) == (name == "with")


def config(style, **numbers):
    sizes = {"d_model": 16, "num_layers": 1, "num_heads": 2, "d_ff": 32, "max_length": 24}
    eps = 1e-12 if style == "bert" else 1e-5
    return Config(40, style=style, norm_eps=eps, **sizes, **numbers)


@pytest.mark.parametrize(
    ("model", "says"),
    [
        (lambda: with_head(EncoderOnly(config("bert", num_segments=2)), "ab", "mean"), "pooling"),
        (lambda: with_head(DecoderOnly(config("gpt2")), "ab", "first"), "pooling 'first' has no"),
        (
            lambda: Classifier(EncoderOnly(config("bert", num_segments=2)), 2, activation="relu"),
            "activation 'relu' has no counterpart among the models of bert, which have 'tanh'",
        ),
        (lambda: with_head(EncoderOnly(config("vanilla")), "ab"), "has no counterpart among"),
    ],
)
def test_heads_that_the_library_has_not_are_refused(model, says, tmp_path):
    with pytest.raises(ValueError, match=says):
        save_pretrained(model(), tmp_path / "new")
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ({"problem_type": "regression"}, "problem_type is 'regression'; only single_label"),
        ({"id2label": {"0": "a", "2": "b"}}, "id2label must name each class by its number, got"),
        ({"id2label": {"0": "a", "1": "b"}}, r"classifier\.weight has shape \(3, 32\)"),
        ({"id2label": 7}, "id2label must name each class by its number, got 7"),
    ],
)
def test_what_cannot_be_followed_is_refused(said, message, tmp_path):
    settings, model, numbers = MODELS["bert"]
    model(settings(**numbers, num_labels=3)).save_pretrained(tmp_path)
    about = json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))
    (tmp_path / "config.json").write_text(json.dumps(about | said), encoding="utf-8")
    with pytest.raises(InputError, match=message):
        load_pretrained(tmp_path)
