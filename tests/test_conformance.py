"""Our own proof: the whole suite, all tiers, on everything of ours, on the CPU and on a GPU.

Some kinds and styles of models are combined in the slow tests alone.
"""

import pytest
import torch
from conftest import COVERING, PARTS
from einops import rearrange
from torch import nn

from minitransformer import (
    Config,
    DecoderOnly,
    EncoderDecoder,
    EncoderOnly,
    MultiHeadAttention,
    causal_mask,
    cross_entropy,
    generate,
    next_token_labels,
    pad,
    padding_mask,
    scaled_dot_product_attention,
)
from minitransformer.cache import Cache
from minitransformer.checks import SUBJECTS, checks_of
from minitransformer.checks.engine.running import run_check
from minitransformer.kernels import attention_kernel
from minitransformer.masks import decoder_mask


class Pick(nn.Module):
    """One of a pair, in the place of a projection."""

    def __init__(self, index):
        super().__init__()
        self.index = index

    def forward(self, pair):
        return pair[self.index]


def heads(query, key, value, mask):
    """MultiHeadAttention without its projections is an attention function."""
    layer = MultiHeadAttention(query.shape[1] * query.shape[3], query.shape[1])
    layer.query, layer.output = nn.Identity(), nn.Identity()
    layer.key, layer.value = Pick(0), Pick(1)
    x, *memory = (rearrange(x, "b h t d -> b t (h d)") for x in (query, key, value))
    return rearrange(layer(x, memory, mask), "b t (h d) -> b h t d", h=query.shape[1])


def model(kind, parts, device):
    torch.manual_seed(0)
    config = Config(vocab_size=11, d_model=16, num_layers=2, max_length=40, **PARTS[parts])
    return kind(config).to(device)


class Cached(nn.Module):
    """A decoder with its KV cache, as fn(input_ids, attention_mask, past) -> (logits, past)."""

    def __init__(self, decoder):
        super().__init__()
        self.decoder = decoder

    def forward(self, ids, attention_mask, past):
        past = Cache() if past is None else past
        return self.decoder.head(self.decoder.encode(ids, attention_mask, cache=past)), past


# what it is -> (kind of subject, how it is made for a device, what it declares)
OURS = {
    "scaled_dot_product_attention": (
        "attention",
        lambda device: scaled_dot_product_attention,
        {"mask_layout": "b h q k", "dropout_flag": "dropout_p", "refuses_misuse": True},
    ),
    "MultiHeadAttention": (
        "attention",
        lambda device: heads,
        {"mask_layout": "b h q k", "refuses_misuse": True},
    ),
    **{
        f"{name}_attention": (
            "attention",
            lambda device, name=name: attention_kernel(name),
            {"mask_layout": "b h q k", "refuses_misuse": True},
        )
        for name in ("tiled", "fused", "online", "sdpa", "auto")
    },
    "padding_mask": ("mask", lambda device: padding_mask, {"documents": True}),
    "decoder_mask": (
        "mask",
        lambda device: decoder_mask,
        {"documents": True, "causal": True}
        | {"window": 3, "window_flag": "window", "window_counts": "tokens"},
    ),
    "padding_mask & causal_mask": (
        "mask",
        lambda device: lambda x: padding_mask(x) & causal_mask(x.shape[1], device=x.device),
        {"documents": True, "causal": True},
    ),
    **{
        f"DecoderOnly with its cache, {parts}": (
            "cached-decoder",
            lambda device, parts=parts: Cached(model(DecoderOnly, parts, device)),
            {},
        )
        for parts in PARTS
    },
    "cross_entropy": ("loss", lambda device: cross_entropy, {"num_labels_flag": "num_labels"}),
    "next_token_labels": ("labels", lambda device: next_token_labels, {"documents": True}),
    "pad": ("collator", lambda device: pad, {}),
    "generate": ("generator", lambda device: generate, {"eos_flag": "eos_id"}),
}
SLOW = set()  # what combines them anew
for _parts in PARTS:
    for _model, _kind in {
        EncoderOnly: "encoder",
        DecoderOnly: "decoder",
        EncoderDecoder: "encoder-decoder",
    }.items():
        OURS[f"{_model.__name__} {_parts}"] = (
            _kind,
            lambda device, kind=_model, parts=_parts: model(kind, parts, device),
            {"holes": True, "documents": True},
        )
        if _parts not in COVERING[_model]:
            SLOW.add(f"{_model.__name__} {_parts}")


def test_every_style_is_checked_without_the_slow_tests():
    assert {parts for covered in COVERING.values() for parts in covered} == {*PARTS}


@pytest.mark.parametrize(
    ("name", "check"),
    [
        pytest.param(
            name,
            one,
            id=f"{name}-{one.name}",
            marks=[pytest.mark.slow] if name in SLOW else [],
        )
        for name, (kind, *_) in OURS.items()
        for one in checks_of(kind)
    ],
)
def test_everything_of_ours_passes_every_check(name, check, device):
    kind, make, declared = OURS[name]
    fields = SUBJECTS[kind].__dataclass_fields__
    place = {"device": str(device)} if "device" in fields else {}
    result = run_check(check, SUBJECTS[kind](make(device), name=name, **declared, **place))
    if result.outcome == "not applicable":
        pytest.skip(result.diagnosis)
    assert result.outcome == "pass", str(result)
