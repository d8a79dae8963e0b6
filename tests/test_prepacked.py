"""Views of a model: nothing of the model changes, and prepacked layers give the same numbers."""

import copy

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from minitransformer import Config, DecoderOnly, generate, pad, record_attention
from minitransformer.inference import prepacked
from minitransformer.inference.generation import stream_tokens
from minitransformer.inference.prepacked import (
    MOST_ROWS,
    PrepackedLinear,
    PrepackedTogether,
    evaluation_view,
    prepack,
)
from minitransformer.linear import together

needs_onednn = pytest.mark.skipif(
    not (
        torch.backends.mkldnn.is_available()
        and hasattr(torch.ops.mkldnn, "_reorder_linear_weight")
        and hasattr(torch.ops.mkldnn, "_linear_pointwise")
    ),
    reason="needs a torch with oneDNN's operators for linear layers",
)


@pytest.fixture
def large():
    return nn.Sequential(nn.Linear(512, 640), nn.Dropout(0.5), nn.Linear(640, 512, bias=False))


@pytest.fixture
def model():
    return DecoderOnly(Config(vocab_size=1000, d_model=512, d_ff=512, num_layers=2, style="gpt2"))


def prepacked_layers(model: nn.Module) -> list[PrepackedLinear]:
    return [module for module in model.modules() if isinstance(module, PrepackedLinear)]


# ---- the view ------------------------------------------------------------------------------------


@pytest.mark.parametrize("view_of", [evaluation_view, prepack])
def test_a_view_evaluates_and_the_model_stays_as_it_is(model, view_of):
    model.train()
    before = {name: vars(module).copy() for name, module in model.named_modules()}
    children = {name: dict(module.named_children()) for name, module in model.named_modules()}
    view = view_of(model)
    assert type(view) is DecoderOnly
    assert not any(module.training for module in view.modules())
    assert {name: vars(module) for name, module in model.named_modules()} == before
    for name, module in model.named_modules():
        assert dict(module.named_children()) == children[name]
    assert view.state_dict().keys() == model.state_dict().keys()
    for mine, theirs in zip(view.parameters(), model.parameters(), strict=True):
        assert mine is theirs  # tied ones too


def test_a_view_sees_what_happens_to_the_model(large):
    view, x = evaluation_view(large), torch.randn(3, 512)
    with torch.no_grad():
        large[0].weight.neg_()
    large[2].weight = nn.Parameter(torch.randn(512, 640))
    assert torch.equal(view(x), large.eval()(x))
    large[2].register_forward_hook(lambda *_: torch.zeros(1))
    assert view(x).tolist() == [0]


def test_a_module_in_two_places_stays_one_and_one_that_is_missing_stays_so():
    shared = nn.Linear(512, 512)
    model = nn.Sequential(shared, nn.ModuleList(), shared)
    model.register_module("missing", None)
    for view in (evaluation_view(model), prepack(model)):
        assert view[0] is view[2] is not shared
        assert view.missing is None


def test_a_view_of_a_compiled_model_runs_the_view(large):
    large.train().compile(backend=lambda *_: 1 / 0)
    assert evaluation_view(large)(torch.ones(1, 512)).shape == (1, 512)


# ---- prepacked layers ----------------------------------------------------------------------------


@needs_onednn
@pytest.mark.parametrize("shape", [(1, 512), (16, 1, 512), (MOST_ROWS, 512), (2, 3, 4, 512)])
def test_prepacked_layers_give_the_same_rows(large, shape):
    x, fast = torch.randn(shape), prepack(large)
    assert len(prepacked_layers(fast)) == 2
    with torch.no_grad():
        found = fast(x)
        assert_close(found, large.eval()(x), rtol=0, atol=1e-5)
        assert torch.equal(fast(x), found)


@needs_onednn
def test_the_prepacked_weights_are_a_snapshot_for_few_rows_only(large):
    fast = prepack(large)
    with torch.no_grad():
        for parameter in large.parameters():
            parameter.zero_()
        assert (fast(torch.ones(MOST_ROWS, 512)) != 0).any()
        assert (fast(torch.ones(MOST_ROWS + 1, 512)) == 0).all()  # these gain nothing
        assert fast(torch.ones(0, 512)).shape == (0, 512)
        assert (prepack(large)(torch.ones(4, 512)) == 0).all()
    assert (fast(torch.ones(4, 512)) == 0).all()  # with gradients
    fast(torch.ones(4, 512)).sum().backward()
    assert all(parameter.grad is not None for parameter in large.parameters())


@needs_onednn
def test_a_prepacked_layer_shares_the_hooks_of_the_model(large):
    fast, seen = prepack(large), []
    large[0].register_forward_hook(lambda *_: seen.append(1))
    with torch.no_grad():
        fast(torch.ones(1, 512))
    assert seen == [1]


def test_what_cannot_be_prepacked_stays_as_it_is(large, monkeypatch):
    class Other(nn.Linear):
        """Whose forward may be anything."""

    for layer in (nn.Linear(64, 64), nn.Linear(512, 640).double(), Other(512, 640)):
        assert not prepacked_layers(prepack(nn.Sequential(layer)))
    monkeypatch.setattr(prepacked, "MOST_BYTES", 2 * 512 * 640 * 4 - 1)
    assert not prepacked_layers(prepack(large))


@pytest.mark.parametrize("operator", ["_reorder_linear_weight", "_linear_pointwise"])
def test_a_torch_without_these_operators_computes_as_ever(large, monkeypatch, operator):
    class Without:
        def __getattr__(self, name):
            if name == operator:
                raise AttributeError(name)

    monkeypatch.setattr(torch.ops, "mkldnn", Without())
    assert not prepacked_layers(prepack(large))


@needs_onednn
def test_a_view_of_a_view_packs_nothing_twice(large):
    fast = prepack(large)
    again = prepack(fast)
    for first, second in zip(prepacked_layers(fast), prepacked_layers(again), strict=True):
        assert second.prepacked is first.prepacked


@needs_onednn
@pytest.mark.parametrize("style", ["gpt2", "llama"])
def test_layers_that_read_the_same_are_one(style):
    model = DecoderOnly(Config(9, 512, num_layers=1, style=style, num_kv_heads=2)).eval()
    view = prepack(model)
    layer, plain = view.decoder.layers[0], model.decoder.layers[0]
    joint = [m for m in (layer.attention, layer.feed_forward) if hasattr(m, "together")]
    assert len(joint) == (2 if style == "llama" else 1)
    assert all(isinstance(module.together, PrepackedTogether) for module in joint)
    assert plain.attention.together is together  # the model itself is as it was
    ours, theirs = layer.attention, plain.attention
    layers = ours.query, ours.key, ours.value
    x = torch.randn(4, 1, 512)
    with torch.no_grad():
        found = ours.together(x, layers)
        wanted = torch.cat([f(x) for f in (theirs.query, theirs.key, theirs.value)], dim=-1)
        assert_close(found, wanted, rtol=0, atol=1e-5)
        assert_close(ours.together(x, layers[1:]), wanted[..., 512:], rtol=0, atol=1e-5)
        for parameter in model.parameters():
            parameter.zero_()
        assert torch.equal(ours.together(x, layers), found)  # a snapshot
        assert (ours.together(torch.randn(MOST_ROWS + 1, 512), layers) == 0).all()
    ours.together(x, layers).sum().backward()
    assert theirs.key.weight.grad is not None
    theirs.key.register_forward_hook(lambda _, inputs, keys: keys + 1)
    with torch.no_grad():
        assert (ours.together(x, layers)[..., 512:768] == 1).all()
    assert prepack(model).decoder.layers[0].attention.together is together


# ---- generation with them ------------------------------------------------------------------------


def test_generation_writes_the_same_with_prepacked_weights(model, monkeypatch):
    batch = pad([[1, 2, 3], [4], [5, 6]])
    inputs = batch.input_ids, batch.attention_mask
    written = torch.stack(generate(model, *inputs, 12))
    assert torch.equal(torch.stack([*stream_tokens(prepack(model), *inputs, 12)], dim=1), written)
    monkeypatch.setattr(prepacked, "MOST_BYTES", 0)
    assert torch.equal(torch.stack(generate(model, *inputs, 12)), written)


@needs_onednn
def test_generate_prepacks_and_a_plain_stream_does_not(model, monkeypatch):
    calls = []
    layer = PrepackedLinear.forward
    monkeypatch.setattr(PrepackedLinear, "forward", lambda *args: calls.append(1) or layer(*args))
    batch = pad([[1, 2, 3]])
    generate(model, batch.input_ids, batch.attention_mask, 2)
    assert calls
    calls.clear()
    assert len([*stream_tokens(model, batch.input_ids, batch.attention_mask, 2)]) == 2
    assert not calls


def test_attention_is_recorded_in_a_view_that_was_made_before(model):
    fast = prepack(model)
    with record_attention(model) as maps, torch.no_grad():
        fast(torch.tensor([[1, 2, 3]]), torch.ones(1, 3).long())
    assert [weights.shape for weights in maps.values()] == [(1, 4, 3, 3)] * 2


def test_a_view_is_copied_as_a_model_is(large):
    with torch.no_grad():
        x = torch.randn(3, 512)
        assert_close(copy.deepcopy(evaluation_view(large))(x), large.eval()(x))
