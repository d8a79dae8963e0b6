"""Classifiers: pooled by hand, blind to padding on either side, and equal to the library's."""

import re
from functools import partial

import pytest
import torch
from conftest import PARTS, from_lengths, large_init
from torch import nn

from minitransformer import Config, DecoderOnly, EncoderDecoder, EncoderOnly
from minitransformer.classifier import POOLINGS, Classifier
from minitransformer.data.collate import collate_classes
from minitransformer.pretrained import load_pretrained
from minitransformer.training.loop import Settings, Training, train
from minitransformer.training.lora import LoRALinear, add_lora, merge_lora

VOCAB, WIDTH, CLASSES = 11, 16, 3
ROWS = [[5, 6, 7, 2], [8, 2], [3, 4, 5, 6, 9, 2], [7]]
LABELS = [2, 0, 1, 2]
EXAMPLES = [{"input_ids": r, "label": c} for r, c in zip(ROWS, LABELS, strict=True)]


def build(name="vanilla", model_class=EncoderOnly, numbers=None, **options) -> Classifier:
    settings = {"style": name, "max_length": 16} | PARTS.get(name, {}) | (numbers or {})
    body = model_class(Config(VOCAB, WIDTH, **settings))
    return large_init(Classifier(body, CLASSES, **options).double())


# ---- numbers by hand ---------------------------------------------------------------------------

HIDDEN = torch.tensor([[[1.0], [2.0], [6.0]], [[0.0], [3.0], [5.0]], [[0.0], [0.0], [0.0]]])
REAL = torch.tensor([[1, 1, 1], [0, 1, 1], [0, 0, 0]])


@pytest.mark.parametrize("dtype", [torch.int64, torch.bool])
@pytest.mark.parametrize(
    ("pooling", "left", "right"),  # padding stands there
    [
        ("first", [1.0, 3.0, 0.0], [6.0, 5.0, 0.0]),
        ("last", [6.0, 5.0, 0.0], [1.0, 3.0, 0.0]),
        ("mean", [3.0, 4.0, 0.0], [3.0, 4.0, 0.0]),
    ],
)
def test_hidden_states_are_pooled(pooling, left, right, dtype):
    pool, real = POOLINGS[pooling], REAL.to(dtype)
    assert pool(HIDDEN, real).squeeze(1).tolist() == left
    assert pool(HIDDEN.flip(1), real.flip(1)).squeeze(1).tolist() == right


def test_a_head_is_what_it_is_made_of():
    head = build(activation="tanh", bias=False).head
    x = torch.randn(2, WIDTH, dtype=torch.float64)
    inner = (x @ head.transform.linear.weight.T + head.transform.linear.bias).tanh()
    torch.testing.assert_close(head(x), inner @ head.projection.weight.T, rtol=1e-12, atol=0.0)
    head = build(activation="relu").head
    inner = (x @ head.transform.linear.weight.T + head.transform.linear.bias).relu()
    expected = inner @ head.projection.weight.T + head.projection.bias
    torch.testing.assert_close(head(x), expected, rtol=1e-12, atol=0.0)
    head = build().head
    expected = x @ head.projection.weight.T + head.projection.bias
    torch.testing.assert_close(head(x), expected, rtol=1e-12, atol=0.0)


def test_the_loss_is_cross_entropy_over_the_rows_that_have_a_class():
    model = build()
    batch = collate_classes([*EXAMPLES, {"input_ids": [5], "label": -100}])
    logits = model(batch.input_ids, batch.attention_mask)
    assert logits.shape == (5, CLASSES)
    losses = nn.functional.cross_entropy(logits[:4], torch.tensor(LABELS), reduction="none")
    torch.testing.assert_close(model.loss(**batch), losses.mean(), rtol=1e-12, atol=0.0)
    torch.testing.assert_close(model.loss(**batch, num_labels=7), losses.sum() / 7)


def test_dropout_is_the_configs_and_stands_before_the_projection():
    model = build(numbers={"dropout": 0.5})
    x = torch.ones(2, WIDTH, dtype=torch.float64)
    seen = []
    model.head.projection.register_forward_pre_hook(lambda module, given: seen.append(given[0]))
    model.train().head(x)
    assert set(seen[0].unique().tolist()) == {0.0, 2.0}
    model.eval().head(x)
    assert torch.equal(seen[1], x)


# ---- padding -----------------------------------------------------------------------------------

BODIES = [(EncoderOnly, "vanilla"), (EncoderOnly, "bert"), (DecoderOnly, "gpt2")]
BODIES += [(DecoderOnly, "llama"), (DecoderOnly, "grouped")]


@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.parametrize(("model_class", "name"), BODIES)
def test_padding_on_either_side_changes_nothing(model_class, name, pooling):
    model = build(name, model_class, pooling=pooling)
    alone = torch.cat([model(*one_row(row)) for row in ROWS])
    assert (alone[0] - alone[1]).abs().max() > 0.01
    for side in ("left", "right"):
        for filler in (0, 2, 10):
            batch = collate_classes(EXAMPLES, pad_id=filler, side=side, multiple_of=8)
            found = model(batch.input_ids, batch.attention_mask)
            torch.testing.assert_close(found, alone, rtol=1e-10, atol=1e-10)


def one_row(row):
    ids = torch.tensor([row])
    return ids, torch.ones_like(ids)


@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.parametrize("side", ["left", "right"])
def test_gradients_at_padding_are_exactly_zero(side, pooling):
    model = build("bert", pooling=pooling)
    kept = []

    def keep(module, given, output):
        output[0].retain_grad()
        kept.append(output[0])

    model.body.embedding.register_forward_hook(keep)
    batch = collate_classes(EXAMPLES, side=side)
    model.loss(**batch).backward()
    gradient = kept[0].grad.abs().amax(dim=-1)
    assert (gradient[batch.attention_mask == 0] == 0).all()
    assert (gradient[batch.attention_mask == 1] > 0).all()


def test_a_mean_over_padding_too_is_another():
    model = build(pooling="mean")
    batch = collate_classes(EXAMPLES)
    hidden = model.body.encode(batch.input_ids, batch.attention_mask)
    found = model.pool(batch.input_ids, batch.attention_mask)
    assert (found - hidden.mean(dim=1)).abs().max() > 0.01


@pytest.mark.parametrize("pooling", POOLINGS)
def test_a_row_without_a_token_is_finite_and_gives_finite_gradients(pooling):
    model = build("bert", pooling=pooling)
    mask = from_lengths((3, 0), 4)
    ids = torch.randint(0, VOCAB, (2, 4))
    assert not model.pool(ids, mask)[1].any()
    model.loss(ids, mask, torch.tensor([0, 1])).backward()
    assert all(p.grad.isfinite().all() for p in model.parameters())


# ---- what it is made of ------------------------------------------------------------------------


def test_the_default_pooling_is_the_bodys():
    assert build(model_class=EncoderOnly).pooling == "first"
    assert build(model_class=DecoderOnly).pooling == "last"
    assert "pooling=mean" in repr(build(pooling="mean"))


@pytest.mark.parametrize("tied", [True, False])
def test_no_parameter_is_unused_and_a_state_dict_is_loaded(tied):
    model = build("bert", numbers={"tie_embeddings": tied, "num_segments": 2}, activation="tanh")
    model.loss(**collate_classes(EXAMPLES)).backward()
    assert [n for n, p in model.named_parameters() if p.grad is None] == []
    other = build("bert", numbers={"tie_embeddings": tied, "num_segments": 2}, activation="tanh")
    other.load_state_dict(model.state_dict(), assign=True)
    batch = collate_classes(EXAMPLES)
    inputs = batch.input_ids, batch.attention_mask
    assert torch.equal(model(*inputs), other(*inputs))


def test_segments_count():
    model = build("bert", numbers={"num_segments": 2})
    examples = [e | {"token_type_ids": [0, *[1] * (len(e["input_ids"]) - 1)]} for e in EXAMPLES]
    batch = collate_classes(examples)
    assert model.loss(**batch) != model.loss(batch.input_ids, batch.attention_mask, batch.labels)


def test_the_head_has_the_dtype_and_device_of_the_body(device):
    body = EncoderOnly(Config(VOCAB, WIDTH)).to(device, torch.bfloat16)
    head = Classifier(body, CLASSES, activation="tanh").head
    assert {p.dtype for p in head.parameters()} == {torch.bfloat16}
    assert {p.device.type for p in head.parameters()} == {device.type}


BODY = partial(EncoderOnly, Config(VOCAB, WIDTH))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: Classifier(EncoderDecoder(Config(VOCAB, WIDTH)), 2), "got EncoderDecoder"),
        (lambda: Classifier(BODY(), 0), "num_classes must be an integer >= 1, got 0"),
        (lambda: Classifier(BODY(), 2, pooling="cls"), "one of first, last, mean, got 'cls'"),
        (lambda: Classifier(BODY(), 2, activation="gelu"), "of None, tanh, relu, got 'gelu'"),
        (
            lambda: Classifier(BODY(), 2)(torch.ones(1, 3).long(), torch.tensor([[1, 1, 2]])),
            "needs one document in a row, but attention_mask goes up to 2: use collate_classes",
        ),
        (
            lambda: Classifier(BODY(), 2).loss(*one_row([5, 6]), torch.tensor([[0, 1]])),
            r"labels must be \(1,\), one for each position, got \(1, 2\)",
        ),
        (
            lambda: Classifier(BODY(), 2).loss(*one_row([5, 6]), torch.tensor([2])),
            r"labels must be -100 \(ignore\) or in \[0, 2\), got 2",
        ),
    ],
)
def test_misuse_is_refused(call, message):
    with pytest.raises((TypeError, ValueError), match=message):
        call()


# ---- training ----------------------------------------------------------------------------------


class FirstToken:
    """A task: the class of a row is the remainder of its first token."""

    def batch(self, seed, step, size, packed):
        draw = torch.Generator().manual_seed(1000 * seed + step)
        rows = [
            torch.randint(3, VOCAB, (int(n),), generator=draw).tolist()
            for n in torch.randint(1, 8, (size,), generator=draw)
        ]
        return collate_classes([{"input_ids": row, "label": row[0] % CLASSES} for row in rows])

    def evaluate(self, model, quick, watch):
        batch = self.batch(1, 0, 64, False)
        found = model(batch.input_ids, batch.attention_mask).argmax(-1)
        return {"accuracy": (found == batch.labels).float().mean().item()}


@pytest.mark.parametrize("model_class", [EncoderOnly, DecoderOnly])
def test_the_training_loop_trains_it_as_it_is(model_class):
    body = model_class(Config(VOCAB, WIDTH, num_layers=1, max_length=8))
    model = Classifier(body, CLASSES, pooling="first" if model_class is EncoderOnly else "mean")
    settings = Settings(steps=150, batch_size=32, warmup=5, learning_rate=0.02)
    training = Training(model, settings)
    assert train(training, FirstToken(), quiet=True) == 0
    assert training.history[-1]["accuracy"] > 0.9
    assert training.history[-1]["loss"] < 0.5 < training.history[0]["loss"]


@pytest.mark.parametrize("parts", [2, 3, 7])
def test_a_batch_in_parts_is_the_same_step(parts):
    losses, weights = [], []
    for accumulate in (1, parts):
        torch.manual_seed(0)
        model = build()
        training = Training(model, Settings(steps=3, warmup=0, accumulate=accumulate))
        losses.append([training.step(FirstToken().batch(0, i, 5, False))[0] for i in range(3)])
        weights.append(torch.cat([p.detach().flatten() for p in model.parameters()]))
    torch.testing.assert_close(losses[0], losses[1], rtol=1e-10, atol=0.0)
    torch.testing.assert_close(weights[0], weights[1], rtol=0.0, atol=1e-8)


def test_lora_in_its_body_leaves_the_head_learning():
    model = build("bert", activation="tanh")
    add_lora(model.body, 2)
    learned = {n for n, p in model.named_parameters() if p.requires_grad}
    assert {n for n in learned if not n.startswith("body.")} == {
        n for n, _ in model.named_parameters() if n.startswith("head.")
    }
    assert all(n.endswith((".A", ".B")) for n in learned if n.startswith("body."))
    merge_lora(model)
    assert not any(isinstance(part, LoRALinear) for part in model.modules())


# ---- the library's ------------------------------------------------------------------------------

SMALL = {"vocab_size": VOCAB, "hidden_size": WIDTH, "num_hidden_layers": 2, "num_labels": CLASSES}
SMALL |= {"num_attention_heads": 4, "intermediate_size": 24, "max_position_embeddings": 18}
DISTIL = {"vocab_size": VOCAB, "dim": WIDTH, "n_layers": 2, "n_heads": 4, "hidden_dim": 24}
GPT = {"vocab_size": VOCAB, "n_embd": WIDTH, "n_layer": 2, "n_head": 4, "n_positions": 18}
GPT |= {"bos_token_id": 2, "eos_token_id": 2}
PADDING = 1  # their classifiers of decoders look for it in the ids, and none of ROWS has it
THEIRS = {
    "Bert": SMALL,
    "Roberta": SMALL | {"pad_token_id": PADDING},
    "DistilBert": DISTIL | {"num_labels": CLASSES, "max_position_embeddings": 18},
    "GPT2": GPT | {"num_labels": CLASSES, "pad_token_id": PADDING},
    "Llama": SMALL | {"pad_token_id": PADDING, "num_key_value_heads": 2},
}
OPTIONS = {"Bert": {"activation": "tanh"}, "DistilBert": {"activation": "relu"}}
OPTIONS |= {"Roberta": OPTIONS["Bert"], "GPT2": {"bias": False}, "Llama": {"bias": False}}
NAMES = (  # theirs, of all encoders, and ours
    (r"^(bert|roberta|distilbert)\.", "body."),
    (r"^(bert|body)\.pooler\.dense|^classifier\.dense|^pre_classifier", "head.transform.linear"),
    (r"^classifier(\.out_proj)?", "head.projection"),
    (r"^score", "head.projection"),
    (r"embeddings\.word_embeddings", "embedding.tokens"),
    (r"embeddings\.token_type_embeddings", "embedding.segments"),
    (r"embeddings\.position_embeddings", "embedding.positions.table"),
    (r"embeddings\.LayerNorm", "embedding.norm"),
    (r"(encoder|transformer)\.layer\.", "encoder.layers."),
    (r"attention\.(self\.query|q_lin)\.", "attention.query."),
    (r"attention\.(self\.key|k_lin)\.", "attention.key."),
    (r"attention\.(self\.value|v_lin)\.", "attention.value."),
    (r"(attention\.output\.LayerNorm|sa_layer_norm)\.", "attention_residual.norm."),
    (r"attention\.(output\.dense|out_lin)\.", "attention.output."),
    (r"(intermediate\.dense|ffn\.lin1)\.", "feed_forward.widen."),
    (r"(\d)\.(output\.LayerNorm|output_layer_norm)\.", r"\1.feed_forward_residual.norm."),
    (r"(\d)\.(output\.dense|ffn\.lin2)\.", r"\1.feed_forward.narrow."),
)
DECODERS = {"transformer.wte.weight": "body.embedding.tokens.weight"}
DECODERS |= {"model.embed_tokens.weight": "body.embedding.tokens.weight"}


def ours_and_theirs(kind, folder):
    tf = pytest.importorskip("transformers")
    config = getattr(tf, f"{kind}Config")(**THEIRS[kind])
    theirs = getattr(tf, f"{kind}ForSequenceClassification")(config)
    theirs = large_init(theirs).double().eval()
    if kind in ("GPT2", "Llama"):
        theirs.base_model.save_pretrained(folder)
        ours = Classifier(load_pretrained(folder, torch.float64), CLASSES, **OPTIONS[kind])
        ours.head.projection.weight.data = theirs.score.weight.detach().clone()
    else:
        numbers = {"num_heads": 4, "d_ff": 24, "max_length": 16, "norm_eps": 1e-12, "style": "bert"}
        segments = {"Bert": 2, "Roberta": 2, "DistilBert": 0}[kind]
        numbers |= {"num_segments": segments, "dropout": 0.1}
        body = EncoderOnly(Config(VOCAB, WIDTH, **numbers))
        ours = Classifier(body, CLASSES, **OPTIONS[kind]).double()
        ours.load_state_dict(named_as_ours(dict(theirs.named_parameters())))
    return ours.eval(), theirs


def named_as_ours(tensors):
    """Their parameters or gradients; a position table without the rows that no token reads."""
    named = {}
    for name, tensor in tensors.items():
        name = DECODERS.get(name, name)
        for pattern, ours in NAMES:
            name = re.sub(pattern, ours, name)
        first = 2 if "roberta" in str(tensors.keys()) else 0
        named[name] = tensor[first : first + 16] if "positions" in name else tensor
    return named


@pytest.mark.parametrize(
    ("kind", "side"),
    [(kind, "right") for kind in THEIRS]
    + [("GPT2", "left"), ("Llama", "left")],  # their encoders read the first column, padding or not
)
def test_logits_and_gradients_are_those_of_the_library(kind, side, tmp_path):
    ours, theirs = ours_and_theirs(kind, tmp_path)
    allowed = 1e-6 if kind == "Llama" else 1e-10  # it rotates in float32
    batch = collate_classes(EXAMPLES, pad_id=PADDING, side=side)
    given = {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask}
    if kind == "GPT2":
        given["position_ids"] = (batch.attention_mask.cumsum(1) - 1).clamp(min=0)
    expected = theirs(**given, labels=batch.labels)
    found = ours(batch.input_ids, batch.attention_mask)
    torch.testing.assert_close(found, expected.logits, rtol=0.0, atol=allowed)
    loss = ours.loss(**batch)
    torch.testing.assert_close(loss, expected.loss, rtol=0.0, atol=allowed)
    loss.backward()
    expected.loss.backward()
    gradients = {name: p.grad for name, p in theirs.named_parameters() if p.grad is not None}
    compared = 0
    for name, gradient in named_as_ours(gradients).items():
        if kind in ("GPT2", "Llama") and not name.startswith(("head.", "body.embedding.tokens")):
            continue  # of other names; that the body is theirs is known
        torch.testing.assert_close(ours.get_parameter(name).grad, gradient, rtol=0.0, atol=allowed)
        compared += 1
    assert compared == (2 if kind in ("GPT2", "Llama") else len(list(ours.parameters())))
