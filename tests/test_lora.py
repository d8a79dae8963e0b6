"""Fine-tuning a part of a model: LoRA is its formula, and what is frozen stays bit for bit."""

import copy

import pytest
import torch
from conftest import PARTS, from_lengths, large_init
from torch import nn

from minitransformer import Config, DecoderOnly, EncoderDecoder, EncoderOnly, MultiHeadAttention
from minitransformer.data import Batch, next_token_labels
from minitransformer.data.vocabulary import Vocabulary
from minitransformer.pretrained import load_pretrained, save_pretrained
from minitransformer.training.checkpoint import read
from minitransformer.training.loop import Settings, Training, parameter_groups, train
from minitransformer.training.lora import PROJECTIONS, LoRALinear, add_lora, freeze, merge_lora
from minitransformer.training.processes import ALONE
from minitransformer.training.run import Run
from minitransformer.training.saver import Saver, restore

VOCAB, RANK = 11, 3


def build(name="vanilla", model_class=DecoderOnly, **numbers):
    settings = {"style": name, "num_layers": 2} | PARTS[name] | numbers
    return large_init(model_class(Config(VOCAB, 16, max_length=16, **settings)))


def a_batch(seed=0) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(0, VOCAB, (3, 7), generator=generator)
    mask = from_lengths((4, 7, 2), 7)
    return Batch(ids, mask, next_token_labels(ids, mask))


def with_random_b(model):
    """As after some training: B is not 0 any more."""
    for name, parameter in model.named_parameters():
        if name.endswith(".B"):
            nn.init.normal_(parameter, std=0.3)
    return model


def learned(model) -> set[str]:
    return {name for name, p in model.named_parameters() if p.requires_grad}


# ---- the formula -------------------------------------------------------------------------------


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("alpha", [3, 12.0])
def test_a_layer_is_the_formula(bias, alpha):
    linear = nn.Linear(5, 4, bias=bias).double()
    weight, b = linear.weight.detach(), linear.bias.detach() if bias else 0.0
    layer = LoRALinear(linear, RANK, alpha)
    assert (layer.A.shape, layer.B.shape) == ((RANK, 5), (4, RANK))
    assert not layer.B.any()
    assert 0.5 < layer.A.abs().max() * 5**0.5 <= 1.0  # uniform up to 1 / √in, as nn.Linear itself
    nn.init.normal_(layer.B)
    x = torch.randn(2, 7, 5, dtype=torch.float64)
    expected = x @ (weight + alpha / RANK * layer.B @ layer.A).T + b
    torch.testing.assert_close(layer(x), expected, rtol=1e-12, atol=1e-12)
    layer(x).sum().backward()
    assert {n for n, p in layer.named_parameters() if p.grad is not None} == {"A", "B"}


@pytest.mark.parametrize("name", PARTS)
def test_at_first_nothing_changes(name):
    model, batch = build(name), a_batch()
    inputs = batch.input_ids, batch.attention_mask
    expected = model(*inputs)
    before = list(model.state_dict())
    number = add_lora(model, RANK)
    # up to rounding: three products in place of one
    torch.testing.assert_close(model(*inputs), expected, rtol=0, atol=1e-5)
    assert set(before) < set(model.state_dict())
    kv = model.config.num_kv_heads * 4
    assert number == 2 * RANK * ((16 + 16) + (16 + kv))
    assert number == sum(p.numel() for p in model.parameters() if p.requires_grad)


def test_a_b_of_zeros_changes_not_one_bit():
    linear, x = nn.Linear(6, 4), torch.randn(3, 6)
    expected = linear(x)
    assert torch.equal(LoRALinear(linear, RANK, alpha=8)(x), expected)


@pytest.mark.parametrize("model_class", [EncoderOnly, DecoderOnly])
def test_a_and_b_learn_and_nothing_else(model_class):
    model = build(model_class=model_class, tie_embeddings=True)
    add_lora(model, RANK)
    expected = {
        f"{model_class.__name__[:7].lower()}.layers.{i}.attention.{name}.{matrix}"
        for i in (0, 1)
        for name in ("query", "value")
        for matrix in "AB"
    }
    assert learned(model) == expected
    with_random_b(model).loss(**a_batch()).backward()
    for name, parameter in model.named_parameters():
        assert (parameter.grad is not None) == (name in expected), name
        assert name not in expected or parameter.grad.any(), name


def test_every_attention_gets_the_projections_that_are_named():
    model = build(model_class=EncoderDecoder)
    add_lora(model, 1, names=(*PROJECTIONS, "query"))
    attentions = [part for part in model.modules() if isinstance(part, MultiHeadAttention)]
    assert len(attentions) == 6
    assert all(isinstance(getattr(a, n), LoRALinear) for a in attentions for n in PROJECTIONS)
    assert sum(isinstance(part, LoRALinear) for part in model.modules()) == 24
    repr_of = repr(attentions[0].query)
    assert repr_of == "LoRALinear(in_features=16, out_features=16, bias=True, rank=1, scale=1)"


# ---- merging -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PARTS)
@pytest.mark.parametrize("tied", [True, False])
def test_merged_is_unmerged_with_the_names_of_before(name, tied):
    model, batch = build(name, tie_embeddings=tied), a_batch()
    inputs = batch.input_ids, batch.attention_mask
    original = copy.deepcopy(model)
    add_lora(model, RANK, alpha=2 * RANK)
    expected = with_random_b(model)(*inputs)
    assert merge_lora(model) is None
    torch.testing.assert_close(model(*inputs), expected, rtol=1e-5, atol=1e-5)
    assert (expected - original(*inputs)).abs().max() > 0.1
    assert not any(isinstance(part, LoRALinear) for part in model.modules())
    assert list(model.state_dict()) == list(original.state_dict())
    assert learned(model) == learned(original)
    for key, parameter in original.named_parameters():
        changed = "query.weight" in key or "value.weight" in key
        assert torch.equal(parameter, model.get_parameter(key)) != changed, key


def test_what_is_not_merged_is_not_saved_for_the_library(tmp_path):
    model = build("gpt2")
    add_lora(model, RANK)
    with pytest.raises(ValueError, match=r"has LoRA, which no folder holds: call merge_lora"):
        save_pretrained(model, tmp_path)
    expected = with_random_b(model)(a_batch().input_ids, a_batch().attention_mask)
    merge_lora(model)
    save_pretrained(model, tmp_path)
    found = load_pretrained(tmp_path)(a_batch().input_ids, a_batch().attention_mask)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_half_precision_is_merged_with_a_single_rounding():
    linear = nn.Linear(5, 4).bfloat16()
    layer = LoRALinear(linear, RANK, RANK)
    nn.init.normal_(layer.B)
    assert layer.A.dtype == layer.B.dtype == torch.bfloat16
    exact = layer.weight.double() + layer.B.double() @ layer.A.double()
    assert torch.equal(layer.merged().weight.double(), exact.float().bfloat16().double())


def test_a_model_on_another_device_gets_its_matrices_there(device):
    model = build().to(device)
    add_lora(model, RANK)
    assert {p.device.type for p in model.parameters()} == {device.type}
    merge_lora(model)
    assert {p.device.type for p in model.parameters()} == {device.type}


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda model: add_lora(model, 0), "rank must be an integer >= 1, got 0"),
        (lambda model: add_lora(model, 2.0), "rank must be an integer >= 1, got 2.0"),
        (lambda model: add_lora(model, 2, alpha=0), "alpha must be a number above 0, got 0"),
        (lambda model: add_lora(model, 2, names=("q",)), "some of query, key, value, output, got"),
        (lambda model: add_lora(model, 2, names=()), "some of query, key, value, output, got"),
        (lambda model: add_lora(model.head, 2), "LMHead has no MultiHeadAttention"),
        (lambda model: [add_lora(model, 2), add_lora(model, 2)], "has LoRA already: call merge"),
        (lambda model: freeze(model, 3), "layers must be at most 2, as many as there are, got 3"),
        (lambda model: freeze(model, -1), "layers must be an integer >= 0, got -1"),
    ],
)
def test_what_cannot_be_done_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call(build())


# ---- freezing ----------------------------------------------------------------------------------


@pytest.mark.parametrize("layers", [0, 1, 2])
@pytest.mark.parametrize("model_class", [DecoderOnly, EncoderDecoder])
def test_the_embeddings_and_the_first_layers_are_frozen(layers, model_class):
    model = build("bert", model_class)
    freeze(model, layers)
    for name in {name for name, _ in model.named_parameters()} - learned(model):
        stack, _, rest = name.partition(".layers.")
        assert layers, name
        assert "embedding." in name or (stack in ("encoder", "decoder") and int(rest[0]) < layers)
    for name in learned(model):
        _, _, rest = name.partition(".layers.")
        assert not layers or "embedding." not in name
        assert not rest or int(rest[0]) >= layers


# ---- training ----------------------------------------------------------------------------------

SETTINGS = Settings(steps=6, warmup=2, learning_rate=0.05, weight_decay=0.1, clip=0.5)


def test_only_what_learns_is_given_to_the_optimizer():
    model = build()
    freeze(model, 1)
    given = [p for group in parameter_groups(model, 0.1) for p in group["params"]]
    assert {id(p) for p in given} == {id(p) for p in model.parameters() if p.requires_grad}


@pytest.mark.parametrize("prepare", [lambda m: freeze(m, 1), lambda m: add_lora(m, RANK)])
@pytest.mark.parametrize("accumulate", [1, 2])
def test_training_changes_what_learns_and_nothing_else(prepare, accumulate):
    model = build("llama", tie_embeddings=True)
    prepare(model)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    settings = Settings(**vars(SETTINGS) | {"accumulate": accumulate, "recompute": True})
    training = Training(model, settings)
    losses = [training.step(a_batch())[0].item() for _ in range(6)]
    assert losses[-1] < losses[0]
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, before[name]) != parameter.requires_grad, name


def test_the_gradient_that_is_clipped_is_that_of_what_learns():
    model = build()
    model.loss(**a_batch()).backward()
    freeze(model, 1)
    squares = [p.grad.square().sum() for p in model.parameters() if p.requires_grad]
    whole = sum(p.grad.square().sum() for p in model.parameters()) ** 0.5
    norm = Training(model, SETTINGS).step(a_batch())[1]
    assert norm == pytest.approx(sum(squares).item() ** 0.5, rel=1e-6)
    assert norm < 0.99 * whole


class Batches:
    """A task with nothing to evaluate."""

    def batch(self, seed, step, size, packed):
        return a_batch(step)

    def evaluate(self, model, quick, watch):
        return {}


def test_a_frozen_training_that_is_taken_up_again_ends_with_the_same_bits(tmp_path):
    def start(model):
        freeze(model, 1)
        return Training(model, SETTINGS)

    training = start(build("llama"))
    run = Run("lm", training.model, Vocabulary("abcdef"))
    train(training, Batches(), Saver(run, tmp_path, keep=10), quiet=True)
    files = read(tmp_path / "checkpoints" / "000003")
    again = Run.from_files(files, tmp_path)
    resumed = start(again.model)
    resumed.history.extend(again.history)
    restore(resumed, files)
    assert len(resumed.history) == 3
    train(resumed, Batches(), quiet=True)
    for a, b in zip(training.model.parameters(), resumed.model.parameters(), strict=True):
        assert torch.equal(a, b)
    names = {n.rpartition(".")[0] for n in ALONE.optimizer_state(resumed.model, resumed.optimizer)}
    assert names == learned(resumed.model)


# ---- peft --------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_twenty_steps_are_those_of_peft(tmp_path):
    """The losses of a small BERT with the library's LoRA, and of ours with the same initial A."""
    peft, tf = pytest.importorskip("peft"), pytest.importorskip("transformers")
    config = tf.BertConfig(
        vocab_size=VOCAB, hidden_size=16, num_hidden_layers=2, num_attention_heads=4,
        intermediate_size=32, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
        initializer_range=0.3,
    )  # fmt: skip
    theirs = tf.BertForMaskedLM(config).double()
    theirs.save_pretrained(tmp_path)
    ours = load_pretrained(tmp_path, torch.float64)
    add_lora(ours, RANK, alpha=2 * RANK)
    theirs = peft.get_peft_model(
        theirs,
        peft.LoraConfig(r=RANK, lora_alpha=2 * RANK, target_modules=["query", "value"]),
        autocast_adapter_dtype=False,
    )
    for layer, their_layer in zip(
        ours.encoder.layers, theirs.base_model.model.bert.encoder.layer, strict=True
    ):
        for name in ("query", "value"):
            their_a = getattr(their_layer.attention.self, name).lora_A["default"].weight
            getattr(layer.attention, name).A.data = their_a.detach().clone()
    ids, mask = a_batch().input_ids, a_batch().attention_mask
    labels = ids.masked_fill(mask == 0, -100)

    def losses(model, loss) -> list[float]:
        learning = [p for p in model.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(learning, lr=0.03)
        found = []
        for _ in range(20):
            optimizer.zero_grad()
            found.append(loss())
            found[-1].backward()
            optimizer.step()
        return [one.item() for one in found]

    found = losses(ours, lambda: ours.loss(ids, mask, labels))
    expected = losses(
        theirs, lambda: theirs(input_ids=ids, attention_mask=mask, labels=labels).loss
    )
    assert expected[-1] < expected[0] - 0.05
    assert found == pytest.approx(expected, rel=0, abs=1e-9)
