"""Models work with torch's own tools: compile, export, func, copies, dtypes, devices."""

import copy
import pickle

import pytest
import torch
from conftest import large_init
from torch import nn
from torch.func import functional_call, grad, vmap

import minitransformer as mt
from minitransformer import Config, DecoderOnly, EncoderDecoder, EncoderOnly

pytestmark = pytest.mark.filterwarnings("ignore:Guards may run slower on Python 3.13.0")

KINDS = [EncoderOnly, DecoderOnly, EncoderDecoder]
STYLES = ["vanilla", "bert", "gpt2", "llama"]
SLOW = pytest.mark.slow
QUICK = [  # each kind, attention and style that differs; the rest is slow
    (EncoderOnly, "reference", "bert"),
    (DecoderOnly, "sdpa", "llama"),
    (EncoderDecoder, "auto", "vanilla"),
]


def make_model(kind=DecoderOnly, **numbers):
    numbers = {"style": "llama", "attention": "reference"} | numbers
    return large_init(kind(Config(vocab_size=11, d_model=16, max_length=12, **numbers)))


def inputs_of(model) -> tuple[torch.Tensor, ...]:
    """Ragged rows, padded on both sides; for an encoder-decoder twice."""
    ids = torch.tensor([[1, 2, 3, 4, 5], [0, 6, 7, 0, 0], [8, 9, 0, 0, 0]])
    inputs = (ids, (ids != 0).long())
    return (*inputs, ids[:, :4] + 0, inputs[1][:, :4]) if has_source(model) else inputs


def has_source(model) -> bool:
    return isinstance(model, EncoderDecoder)


def labels_of(model) -> torch.Tensor:
    *_, ids, mask = inputs_of(model)
    return ids.masked_fill(mask == 0, mt.IGNORE_INDEX)


@pytest.fixture
def compiler():
    """What was compiled before is forgotten: else torch gives up recompiling the same code."""
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


COMPILED = [
    pytest.param(kind, attention, style, marks=[] if (kind, attention, style) in QUICK else SLOW)
    for kind in KINDS
    for attention in ("reference", "sdpa", "auto")
    for style in STYLES
]


@pytest.mark.usefixtures("compiler")
@pytest.mark.parametrize(("kind", "attention", "style"), COMPILED)
def test_a_compiled_model_is_one_graph_that_computes_the_same(kind, attention, style):
    """`backend="eager"` runs what dynamo has traced: with no C++ compiler, and no graph break."""
    model = make_model(kind, attention=attention, style=style)
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    inputs = inputs_of(model)
    torch.testing.assert_close(compiled(*inputs), model(*inputs), rtol=1e-5, atol=1e-5)


@pytest.mark.usefixtures("compiler")
@pytest.mark.parametrize("kind", [DecoderOnly, pytest.param(EncoderDecoder, marks=SLOW)])
def test_the_loss_can_be_compiled(kind):
    model = make_model(kind)
    arguments = (*inputs_of(model), labels_of(model))
    compiled = torch.compile(model.loss, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(*arguments), model.loss(*arguments), rtol=1e-5, atol=1e-5)


@SLOW
@pytest.mark.skipif(" " in torch.__file__, reason="torch links nothing from a path with a space")
@pytest.mark.usefixtures("compiler")
@pytest.mark.parametrize("attention", ["reference", "sdpa"])
def test_a_model_compiled_for_real_computes_the_same(attention):
    """With inductor, which needs a C++ compiler; forward and backward."""
    model = make_model(attention=attention)
    arguments = (*inputs_of(model), labels_of(model))
    compiled = copy.deepcopy(model)
    compiled.compile(fullgraph=True)
    for one in (model, compiled):
        mt.cross_entropy(one(*arguments[:-1]), arguments[-1]).backward()
    for found, wanted in zip(compiled.parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(found.grad, wanted.grad, rtol=1e-4, atol=1e-4)


@pytest.mark.usefixtures("compiler")
@pytest.mark.parametrize(
    ("kind", "attention"),
    [
        (DecoderOnly, "reference"),
        (EncoderDecoder, "sdpa"),
        pytest.param(DecoderOnly, "sdpa", marks=SLOW),
        pytest.param(EncoderDecoder, "reference", marks=SLOW),
    ],
)
def test_a_model_can_be_exported(kind, attention):
    model = make_model(kind, attention=attention).eval()
    inputs = inputs_of(model)
    exported = torch.export.export(model, inputs).module()
    torch.testing.assert_close(exported(*inputs), model(*inputs), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("attention", ["reference", "sdpa", "auto"])
@pytest.mark.parametrize("kind", KINDS)
def test_gradients_for_each_sample_are_those_of_each_sample_alone(kind, attention, style):
    model = make_model(kind, attention=attention, style=style).double()
    parameters = {name: p.detach() for name, p in model.named_parameters()}
    arguments = (*inputs_of(model), labels_of(model))

    def loss(parameters, *sample):
        *inputs, labels = (x.unsqueeze(0) for x in sample)
        return mt.cross_entropy(functional_call(model, parameters, tuple(inputs)), labels)

    found = vmap(grad(loss), in_dims=(None, *[0] * len(arguments)))(parameters, *arguments)
    for row in range(len(arguments[0])):
        model.zero_grad()
        model.loss(*(x[row : row + 1] for x in arguments)).backward()
        for name, parameter in model.named_parameters():
            wanted = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
            torch.testing.assert_close(found[name][row], wanted, rtol=1e-9, atol=1e-11)


def test_the_loss_of_a_model_is_a_function_of_its_parameters():
    model = make_model().double()
    inputs = (*inputs_of(model), labels_of(model))
    parameters = {name: p.detach() for name, p in model.named_parameters()}

    class Loss(nn.Module):
        def __init__(self):
            super().__init__()
            self.model = model

        def forward(self, *arguments):
            return self.model.loss(*arguments)

    def loss(parameters):
        named = {f"model.{name}": value for name, value in parameters.items()}
        return functional_call(Loss(), named, inputs)

    found = grad(loss)(parameters)
    model.loss(*inputs).backward()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(found[name], parameter.grad, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_copies_compute_the_same_bits_and_ties_stay_tied(kind, tied):
    model = make_model(kind, tie_embeddings=tied, attention="auto")
    with torch.device("meta"):
        empty = make_model(kind, tie_embeddings=tied, attention="auto")
    empty.load_state_dict(model.state_dict(), assign=True)
    inputs = inputs_of(model)
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model)), empty):
        assert torch.equal(other(*inputs), model(*inputs))
        assert (other.head.projection.weight is other.embedding.tokens.weight) == tied
        if has_source(other):  # one vocabulary, one table
            assert other.source_embedding.tokens.weight is other.embedding.tokens.weight


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("kind", KINDS)
def test_a_default_dtype_is_the_dtype_of_everything(kind, style, dtype):
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        model = make_model(kind, style=style, attention="auto")
        logits = model(*inputs_of(model))
        loss = model.loss(*inputs_of(model), labels_of(model))
        loss.backward()
    finally:
        torch.set_default_dtype(before)
    assert logits.dtype == dtype
    assert loss.dtype == torch.promote_types(dtype, torch.float32)
    assert {p.grad.dtype for p in model.parameters() if p.grad is not None} == {dtype}


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("kind", KINDS)
def test_a_model_on_the_meta_device_has_shapes_only(kind, style):
    model = kind(Config(vocab_size=11, d_model=16, max_length=12, style=style)).to("meta")
    inputs = [x.to("meta") for x in inputs_of(model)]
    assert model(*inputs).shape == (3, inputs[-1].shape[1], 11)
    assert {p.device.type for p in model.parameters()} == {"meta"}


def test_printing_a_model_shows_its_heads_its_kernel_and_its_window():
    shown = repr(make_model(num_kv_heads=2, window=3))
    assert "window=3" in shown
    assert "heads=4, kv_heads=2, kernel=reference" in shown
