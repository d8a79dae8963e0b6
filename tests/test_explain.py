"""`explain_attention` says which kernel computed, and why; the model is as it was."""

import re

import pytest
import torch
from pretended import pretended_gpu
from torch import nn

from minitransformer import (
    Config,
    DecoderOnly,
    EncoderDecoder,
    EncoderOnly,
    causal_mask,
    explain_attention,
    pack_pairs,
    pad,
)
from minitransformer.cli.main import main

ROWS = [[*range(5, 5 + n)] for n in (300, 20, 90)]
SIZES = {"d_model": 8, "num_heads": 2, "num_layers": 1}


@pytest.mark.parametrize(
    ("attention", "said"),
    [
        ("auto", "-> auto: strips, 3 documents in 2 group.s. of like lengths, which compute"),
        ("tiled", "-> tiled: strips, 3 documents in . group.s. of like lengths, which compute"),
        ("sdpa", "-> sdpa: a single call of torch's SDPA, as it says so by name"),
        ("reference", 'encoder: the reference, as Config.attention="reference". says'),
    ],
)
def test_each_kernel_has_its_reason(attention, said):
    model = EncoderOnly(Config(400, **SIZES, attention=attention))
    batch = pad(ROWS)
    kernel, before = model.encoder.kernel, model(batch.input_ids, batch.attention_mask)
    text = explain_attention(model, batch)
    assert len(text.splitlines()) == 1
    assert re.search(said, text), text
    assert model.encoder.kernel is kernel
    assert torch.equal(model(batch.input_ids, batch.attention_mask), before)


def test_what_is_computed_is_between_what_is_true_and_all():
    text = explain_attention(DecoderOnly(Config(400, **SIZES)), pad(ROWS))
    true, computed = (int(share) for share in re.findall(r"(\d+)%", text))
    assert 0 < true <= computed < 100


class Causal(nn.Module):
    """A stack whose mask is one for all rows of a batch."""

    def __init__(self):
        super().__init__()
        self.stack = DecoderOnly(Config(400, **SIZES)).decoder

    def forward(self, x):
        return self.stack(x, causal_mask(x.shape[1]), None)


def test_a_mask_for_all_rows_is_computed_in_each():
    text = explain_attention(Causal(), {"x": torch.randn(3, 300, 8)})
    _, computed = (int(share) for share in re.findall(r"(\d+)%", text))
    assert 50 <= computed <= 100


def test_every_mask_of_a_model_has_its_line():
    """Of the source, of the target, and between them; a grouped query leaves masks as they are."""
    model = EncoderDecoder(Config(400, **SIZES, num_kv_heads=1))
    lines = explain_attention(model, pack_pairs(ROWS, ROWS, 320, 1, 2)).splitlines()
    assert [line.split(":")[0] for line in lines] == ["encoder", "decoder", "decoder"]


def test_a_single_query_is_not_worth_a_plan():
    text = explain_attention(DecoderOnly(Config(400, **SIZES)), pad([[5], [6]]))
    assert "a single call of torch's SDPA, as a single query is not worth a plan" in text


def test_on_a_gpu_the_mask_is_not_read():
    model = DecoderOnly(Config(400, **SIZES))
    with pretended_gpu("cuda"):
        text = explain_attention(model.to("cuda"), pad([[5, 6], [7]]))
    assert "SDPA, without cuDNN: to read the mask would make the GPU wait" in text


@pytest.mark.parametrize("fails", [False, True])
def test_the_model_is_left_as_it_was(fails):
    model = DecoderOnly(Config(400, **SIZES))
    kernel, batch = model.decoder.kernel, pad([[5, 399 + fails]])
    if fails:
        with pytest.raises(ValueError, match="token ids"):
            explain_attention(model, batch)
    else:
        explain_attention(model, batch)
    assert model.decoder.kernel is kernel


def test_a_model_without_layers_is_refused():
    with pytest.raises(ValueError, match="Linear contains no stack of layers to explain"):
        explain_attention(nn.Linear(2, 2), {})


def test_the_command_line_explains_and_trains_nothing(pairs, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    line = "train --task pairs --explain --d-model 8 --num-heads 2 --num-layers 1 --batch-size 4"
    assert main([*line.split(), "--data", pairs]) == 0
    assert capsys.readouterr().out.count("True -> auto: ") == 3
    assert not list(tmp_path.iterdir())
