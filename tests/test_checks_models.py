"""The checks of whole models: what is right passes, however it is called, and stays as it was.

The broken ones are in the museum.
"""

from dataclasses import dataclass

import pytest
import torch
from conftest import PARTS
from torch import Tensor, nn

from minitransformer import Config, DecoderOnly, EncoderDecoder, EncoderOnly, padding_mask
from minitransformer.checks import (
    check_decoder,
    check_encoder,
    check_encoder_decoder,
    check_layer,
)
from minitransformer.checks.finding import parse_declarations
from minitransformer.checks.models.bugs import (
    VOCAB,
    WIDTH,
    NoPaddingMask,
    TinyDecoder,
    TinyEncoder,
    TinyEncoderDecoder,
    Windowed,
)
from minitransformer.checks.models.cases import batch_of
from minitransformer.checks.models.ready import Ready
from minitransformer.checks.models.subject import EncoderDecoderSubject, EncoderSubject
from minitransformer.checks.models.watching import watched

pytestmark = pytest.mark.usefixtures("bugs_asked_once")

KINDS = {
    "encoder": (EncoderOnly, TinyEncoder, check_encoder),
    "decoder": (DecoderOnly, TinyDecoder, check_decoder),
    "encoder-decoder": (EncoderDecoder, TinyEncoderDecoder, check_encoder_decoder),
}
PROMISES = {"holes": True, "documents": True}


@pytest.fixture(params=KINDS)
def kind(request) -> str:
    return request.param


# ---- what is right passes ------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("parts", ["llama"])  # test_conformance.py has the others
def test_our_models_pass_at_every_tier(kind, parts):
    build, _, check = KINDS[kind]
    model = build(Config(VOCAB, WIDTH, **({"style": parts, "max_length": 16} | PARTS[parts])))
    report = check(model, tier="strict", **PROMISES)
    assert report.passed, report
    left_out = {result.check for result in report if result.outcome != "pass"}
    assert left_out <= {
        "every_token_attends_to_itself",  # their kernels pad the keys
        "no_token_sees_beyond_its_window",
        "every_token_sees_its_whole_window",
    }


def test_the_right_model_of_the_museum_passes_at_every_tier(kind):
    _, tiny, check = KINDS[kind]
    report = check(tiny(), tier="strict", **PROMISES)
    assert report.passed, report


def test_dropout_is_switched_off_to_be_compared():
    model = EncoderOnly(Config(VOCAB, WIDTH, dropout=0.5))
    assert check_encoder(model.train()).passed


class Torch(nn.Module):
    """torch.nn.TransformerEncoder, called as fn(embeddings, mask); dropout 0.1 by default."""

    def __init__(self, **numbers):
        super().__init__()
        layer = nn.TransformerEncoderLayer(WIDTH, 2, 24, batch_first=True, **numbers)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)

    def forward(self, x: Tensor, padding: Tensor) -> Tensor:
        return self.encoder(x, src_key_padding_mask=padding)


@pytest.mark.parametrize("norm_first", [False, True])
def test_the_encoder_of_torch_passes_core(norm_first):
    report = check_encoder(
        Torch(norm_first=norm_first), takes="embeddings", mask_means="ignore", mask_values="bool"
    )
    assert report.passed, report


# ---- adapters ------------------------------------------------------------------------------------


@dataclass
class Output:
    logits: Tensor


@dataclass
class States:
    last_hidden_state: Tensor


@pytest.mark.parametrize(
    "wrapped",
    [
        lambda x: (x, None),
        lambda x: [x],
        Output,
        States,
        lambda x: {"logits": x},
        lambda x: {"last_hidden_state": x},
    ],
)
def test_outputs_come_in_many_wrappings(wrapped):
    model = TinyDecoder().eval()
    assert check_decoder(lambda *inputs: wrapped(model(*inputs))).passed


@pytest.mark.parametrize(
    ("means", "values", "as_ours"),
    [
        ("attend", "int", lambda mask: mask),
        ("attend", "bool", lambda mask: mask.long()),
        ("ignore", "int", lambda mask: 1 - mask),
        ("ignore", "bool", lambda mask: (~mask).long()),
        ("attend", "additive", lambda mask: (mask == 0.0).long()),
    ],
)
def test_masks_come_in_many_conventions(means, values, as_ours):
    model = TinyEncoder().eval()
    report = check_encoder(
        lambda ids, mask: model(ids, as_ours(mask)), mask_means=means, mask_values=values
    )
    assert report.passed, report


def test_a_convention_that_is_not_the_models_fails():
    assert not check_encoder(TinyEncoder().eval(), mask_means="ignore").passed


def test_a_pooled_output_is_checked_too():
    class Pooled(TinyEncoder):
        def forward(self, ids, attention_mask):
            x = super().forward(ids, attention_mask)
            count = attention_mask.sum(1, keepdim=True).clamp(min=1)
            return x.masked_fill(attention_mask.unsqueeze(-1) == 0, 0.0).sum(1) / count

    class MeanOverAll(TinyEncoder):
        def forward(self, ids, attention_mask):
            return super().forward(ids, attention_mask).mean(1)

    assert check_encoder(Pooled(), returns="sequence", tier="robust").passed
    report = check_encoder(MeanOverAll(), returns="sequence")
    assert "padding_on_the_right_is_irrelevant" in report.failed


def test_the_padding_id_is_the_one_declared():
    seen = set()

    def spy(ids, mask):
        seen.update(ids[mask == 0].tolist())
        assert 7 not in ids[mask != 0]
        return nn.functional.one_hot(ids, 20).float()

    subject = EncoderSubject(spy, pad_id=7, vocab_size=20)
    Ready(subject)(*batch_of(subject, "left"))
    assert seen == {7}


def test_what_is_not_a_module_is_checked_by_its_outputs_alone():
    report = check_encoder(TinyEncoder().eval().forward, tier="strict")
    assert report.passed
    assert report["parameter_gradients_do_not_depend_on_padding"].outcome == "not applicable"


def test_another_shape_is_told():
    report = check_encoder(lambda ids, mask: torch.zeros(len(ids), 3))
    assert "(4, 3)" in report.diagnosis
    report = check_encoder(lambda ids, mask: None)
    assert "None" in report.diagnosis


# ---- what is wrong is told -----------------------------------------------------------------------


def test_a_leak_hidden_by_small_weights_is_found():
    class Leaky(NoPaddingMask, TinyEncoder):
        pass

    model = Leaky()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter *= 1e-2
    report = check_encoder(model)
    assert "padding_on_the_right_is_irrelevant" in report.failed
    assert "padding mask never used (encoder)" in report.likely


def test_a_function_with_dropout_is_told_to_stop_it():
    model = EncoderOnly(Config(VOCAB, WIDTH, dropout=0.5)).train()
    report = check_encoder(lambda ids, mask: model(ids, mask))
    assert report.failed[0] == "the_same_call_gives_the_same_twice"
    assert "dropout" in report.diagnosis


# ---- bugs are named in models that are built otherwise ------------------------------------------


class Around(nn.Module):
    """Embeddings and a head around the layers of torch; padding is embedded like any token."""

    def __init__(self, layers: nn.Module, counted: bool = True):
        super().__init__()
        self.tokens, self.places = nn.Embedding(VOCAB, WIDTH), nn.Embedding(32, WIDTH)
        self.layers, self.head, self.counted = layers, nn.Linear(WIDTH, VOCAB), counted

    def embed(self, ids, attention_mask):
        counted = (attention_mask.cumsum(1) - 1).clamp(min=0)
        return self.tokens(ids) + self.places(
            counted if self.counted else torch.arange(ids.shape[1])
        )


class AroundEncoder(Around):
    def __init__(self, masked: str = "", causal: bool = False, counted: bool = True):
        part = nn.TransformerEncoderLayer(WIDTH, 2, 24, 0.0, batch_first=True, norm_first=True)
        super().__init__(nn.TransformerEncoder(part, 2, enable_nested_tensor=False), counted)
        self.masked, self.causal = masked, causal

    def forward(self, ids, attention_mask):
        future = torch.ones(ids.shape[1], ids.shape[1], dtype=torch.bool).triu(1)
        x, padding = self.embed(ids, attention_mask), attention_mask == 0
        for i, layer in enumerate(self.layers.layers):
            x = layer(
                x, future if self.causal else None, padding if str(i) in self.masked else None
            )
        return self.head(x)


class AroundBoth(Around):
    def __init__(self, *unmasked: str):
        super().__init__(nn.Transformer(WIDTH, 2, 2, 2, 24, 0.0, batch_first=True))
        self.unmasked = unmasked

    def forward(self, source_ids, source_mask, target_ids, target_mask):
        masks = {"src": source_mask, "tgt": target_mask, "memory": source_mask}
        return self.head(
            self.layers(
                self.embed(source_ids, source_mask),
                self.embed(target_ids, target_mask),
                tgt_mask=torch.ones(2 * target_ids.shape[1:], dtype=torch.bool).triu(1),
                **{
                    f"{name}_key_padding_mask": mask == 0
                    for name, mask in masks.items()
                    if name not in self.unmasked
                },
            )
        )


ORDINARY = {
    "padding mask never used (encoder)": (check_encoder, lambda: AroundEncoder()),
    "padding mask in the first layer only (encoder)": (check_encoder, lambda: AroundEncoder("0")),
    "positions counted over padding (encoder)": (
        check_encoder,
        lambda: AroundEncoder("01", counted=False),
    ),
    "padding mask never used (decoder)": (
        check_decoder,
        lambda: AroundEncoder(causal=True, counted=False),
    ),
    "padding mask in the last layer only (decoder)": (
        check_decoder,
        lambda: AroundEncoder("1", causal=True),
    ),
    "padding mask never used (encoder-decoder)": (
        check_encoder_decoder,
        lambda: AroundBoth("src", "tgt", "memory"),
    ),
    "source encoded without its mask": (check_encoder_decoder, lambda: AroundBoth("src")),
    "cross-attention without a mask": (check_encoder_decoder, lambda: AroundBoth("memory")),
    "target read without its padding mask": (check_encoder_decoder, lambda: AroundBoth("tgt")),
}


@pytest.fixture
def without_the_fast_path_of_torch():
    torch.backends.mha.set_fastpath_enabled(False)  # it has bugs of its own
    yield
    torch.backends.mha.set_fastpath_enabled(True)


QUICK = {"padding mask never used (decoder)"}


@pytest.mark.usefixtures("without_the_fast_path_of_torch")
@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=[] if n in QUICK else [pytest.mark.slow]) for n in ORDINARY],
)
def test_the_first_name_of_an_ordinary_model_is_the_right_one(name):
    check, build = ORDINARY[name]
    report = check(build())
    assert report.likely[:1] == (name,)
    assert len(report.likely) <= 2


# ---- attention weights are watched ---------------------------------------------------------------


class Weights(nn.Module):
    """A softmax of scores, as people write it."""

    def __init__(self, how: str):
        super().__init__()
        self.how, self.attention = how, nn.MultiheadAttention(WIDTH, 2, batch_first=True)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        scores = (x @ x.mT).masked_fill(~mask, float("-inf"))
        if self.how == "torch.softmax":
            return torch.softmax(scores, dim=2) @ x
        if self.how == "nn.Softmax":
            return nn.Softmax(-1)(scores) @ x
        if self.how == "scaled_dot_product_attention":
            return nn.functional.scaled_dot_product_attention(x, x, x, mask)
        return self.attention(x, x, x, attn_mask=~mask, need_weights=self.how == "weights")[0]


@pytest.mark.parametrize(
    "how", ["torch.softmax", "nn.Softmax", "scaled_dot_product_attention", "weights", "none"]
)
def test_every_usual_way_to_attend_is_watched(how):
    layer, mask = Weights(how), torch.ones(5, 5, dtype=torch.bool).tril()
    (weights,) = watched(lambda: layer(torch.randn(3, 5, WIDTH), mask))
    assert weights.shape[-2:] == (5, 5)
    assert torch.equal(weights.flatten(0, -3).amax(0) > 0, mask)


class StrictlyCausal(AroundEncoder):
    """torch's layers; with a residual, as all have it."""

    def forward(self, ids, attention_mask):
        length = ids.shape[1]
        mask = torch.ones(length, length, dtype=torch.bool).triu(self.diagonal)
        mask[0, 0] = False  # or its softmax is over nothing
        return self.head(self.layers(self.embed(ids, attention_mask), mask))

    diagonal = 0


class Causal(StrictlyCausal):
    diagonal = 1


def test_a_diagonal_that_a_residual_hides_is_found():
    report = check_decoder(StrictlyCausal(), sides=("right",))
    assert report.failed == ["every_token_attends_to_itself"]
    assert report.likely == ("a token that does not see itself (decoder)",)
    assert check_decoder(Causal(), sides=("right",)).passed


def test_weights_are_watched_in_modules_alone():
    report = check_decoder(lambda *given: Causal().eval()(*given), sides=("right",), redraw=False)
    assert report["every_token_attends_to_itself"].outcome == "not applicable"


# ---- windows -------------------------------------------------------------------------------------


@pytest.mark.slow  # see also the windows of every kind below
@pytest.mark.parametrize("window", [1, 2, 3])
def test_a_window_of_ours_passes(window):
    model = DecoderOnly(Config(VOCAB, WIDTH, num_layers=2, window=window))
    report = check_decoder(model, window=window, layers=2, holes=True)
    assert report.passed, report
    assert report["no_token_sees_beyond_its_window"].outcome == "pass"
    other = check_decoder(model, window=window + 1, layers=2)
    assert other.failed == ["every_token_sees_its_whole_window"]
    assert other.likely == ("a window of one token too few (decoder)",)


@pytest.mark.parametrize(
    "kind", [pytest.param(k, marks=[pytest.mark.slow] * (k == "encoder-decoder")) for k in KINDS]
)
def test_a_right_window_passes_in_every_kind_of_model(kind):
    _, tiny, check = KINDS[kind]
    right = type("Right", (Windowed, tiny), {})
    report = check(right(), window=2, layers=2, holes=True)
    assert report.passed, report
    undeclared = check(right())
    assert undeclared.failed == ["every_token_sees_what_it_may"]


# ---- declarations --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("declared", "message"),
    [
        ({"takes": "floats"}, "takes must be one of ids, embeddings"),
        ({"mask_means": "hide"}, "mask_means must be one of"),
        ({"mask_values": "float"}, "mask_values must be one of"),
        ({"sides": "right"}, "sides must be a tuple"),
        ({"sides": ("top",)}, "sides must be one of right, left"),
        ({"dtypes": ()}, "dtypes must be a tuple"),
        ({"dtypes": ("float33",)}, "expected a torch dtype"),
        ({"vocab_size": 2}, "vocab_size must be at least"),
        ({"max_length": 4}, "max_length must be at least"),
        ({"pad_id": 11}, "pad_id must be in"),
        ({"documents": True, "mask_values": "bool"}, "documents are numbers"),
        ({"returns": "all"}, "returns must be one of"),
        ({"window": 2}, "window and layers belong together"),
        ({"window": 0, "layers": 1}, "window and layers must be at least 1"),
    ],
)
def test_declarations_are_validated(declared, message):
    with pytest.raises(ValueError, match=message):
        EncoderSubject(TinyEncoder(), **declared)


def test_a_window_can_be_declared_on_the_command_line():
    declared = parse_declarations(EncoderSubject, {"window": "2", "layers": "3"})
    assert declared == {"window": 2, "layers": 3}


def test_only_an_encoder_pools():
    with pytest.raises(ValueError, match="returns='sequence'"):
        EncoderDecoderSubject(TinyEncoderDecoder(), returns="sequence")


# ---- the model is left as it was -----------------------------------------------------------------


def test_the_model_given_is_left_unchanged(kind):
    _, tiny, check = KINDS[kind]
    training = kind != "decoder"
    model = tiny().train(training)
    before = {name: x.clone() for name, x in model.state_dict().items()}
    check(model, tier="strict")
    assert model.training is training
    for name, x in model.state_dict().items():
        assert torch.equal(x, before[name]), name
        assert x.dtype == torch.float32
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not any(part._forward_hooks for part in model.modules())


class Maskless(EncoderOnly):
    def encode(self, input_ids, attention_mask, segment_ids=None, at=None):
        x, rotation = self.embedding(input_ids, attention_mask, segment_ids)
        everything = torch.ones_like(padding_mask(attention_mask))
        return self.encoder(x, everything, rotation, at=at)


@pytest.mark.parametrize(
    ("attention", "named"),
    [
        pytest.param("auto", (), marks=pytest.mark.slow),
        ("reference", ("padding mask never used (encoder)",)),
    ],
)
def test_bugs_that_cannot_be_told_apart_are_not_listed(attention, named):
    """Five fail the same checks, until the weights inside are seen."""
    config = Config(30, 32, 3, 4, max_length=64, attention=attention)
    report = check_encoder(Maskless(config))
    assert report.failed
    assert report.likely == named


# ---- was it declared as what it is? --------------------------------------------------------------


class Hides(nn.Module):
    """A layer whose mask is True where a key is hidden, as torch's."""

    def __init__(self):
        super().__init__()
        self.attention = nn.MultiheadAttention(16, 2, batch_first=True)

    def forward(self, x, key_padding_mask):
        return self.attention(x, x, x, key_padding_mask=key_padding_mask)[0]


@pytest.mark.slow
def test_a_layer_is_first_asked_whether_its_mask_hides():
    report = check_layer(Hides())
    assert not report.passed
    assert report.would_pass == {"mask_values": "bool", "mask_means": "ignore"}
    assert check_layer(Hides(), **report.would_pass).passed
    assert check_encoder(Maskless(Config(11, 16, 2, 2, max_length=40)), documents=True).failed
