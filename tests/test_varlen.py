"""Attention by the lengths of documents: packing, zeros and NaN, on a CPU with torch's kernel
written out, and on a GPU with torch's own.

What is written out refuses what torch's kernel cannot do, so that nothing is given to it that a GPU
would refuse.
"""

from inspect import signature
from itertools import pairwise

import pytest
import torch
from conftest import BATCH, HEADS, KEYS, QUERIES, WIDTH, from_lengths, large_init
from kernel_masks import LONG, poisoned, some_masks
from pretended import pretended_gpu
from torch import Tensor

from minitransformer import (
    Config,
    DecoderOnly,
    EncoderOnly,
    causal_mask,
    explain_attention,
    pack,
    pad,
    padding_mask,
    scaled_dot_product_attention,
)
from minitransformer.kernels import varlen
from minitransformer.kernels.sdpa import SdpaMask
from minitransformer.kernels.varlen import Lengths, varlen_attention

PACKED = torch.tensor([[1, 1, 2, 2, 2, 3, 0], [0, 1, 1, 2, 0, 2, 2], [0] * 7, [1] * 7])
PADDED = from_lengths((2, KEYS, 0, 3), KEYS)
MASKS = {  # name -> a mask of documents, and whether they are seen causally
    "everything": (torch.ones(1, 1, QUERIES, KEYS, dtype=torch.bool), False),
    "right": (padding_mask(PADDED), False),
    "left": (padding_mask(PADDED.flip(1)), False),
    "packed": (padding_mask(PACKED), False),
    "causal": (causal_mask(KEYS), True),
    "causal right": (padding_mask(PADDED) & causal_mask(KEYS), True),
    "causal packed": (padding_mask(PACKED) & causal_mask(KEYS), True),
    "cross": (padding_mask(from_lengths((5, 2, 1, 0), QUERIES), PADDED), False),
    "long": (some_masks(**LONG)["packed"], False),
    "keys alone": (some_masks(QUERIES, KEYS)["padding"], False),
}


def written_out(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    cu_seq_q: Tensor,
    cu_seq_k: Tensor,
    max_q: int,
    max_k: int,
    *,
    scale: float,
    window_size: tuple[int, int],
) -> Tensor:
    """torch.nn.attention.varlen.varlen_attn: (tokens, heads, width), a document after the other."""
    assert query.ndim == 3
    assert query.shape[1:] == key.shape[1:]
    assert key.shape == value.shape
    assert query.shape[2] % 8 == 0
    assert query.shape[2] <= 256
    assert query.dtype == key.dtype == value.dtype
    assert cu_seq_q.dtype == cu_seq_k.dtype == torch.int32
    ends, key_ends = cu_seq_q.tolist(), cu_seq_k.tolist()
    assert (ends[0], ends[-1], key_ends[0], key_ends[-1]) == (0, len(query), 0, len(key))
    longest = [max(b - a for a, b in pairwise(at)) for at in (ends, key_ends)]
    assert [max_q, max_k] == longest
    outputs = []
    for n in range(len(ends) - 1):
        q, k, v = (
            x[at[n] : at[n + 1]].transpose(0, 1)
            for x, at in ((query, ends), (key, key_ends), (value, key_ends))
        )
        at = [torch.arange(x.shape[1], device=query.device) for x in (q, k)]
        distance = at[1] - at[0].unsqueeze(1) - (len(at[1]) - len(at[0]))  # aligned at the ends
        left, right = window_size
        hidden = ((distance < -left) & (left >= 0)) | ((distance > right) & (right >= 0))
        scores = (q.double() @ k.double().mT * scale).masked_fill(hidden, float("-inf"))
        outputs.append((scores.softmax(dim=-1) @ v.double()).transpose(0, 1))
    return torch.cat(outputs).to(query.dtype)


@pytest.fixture
def on_a_cpu(monkeypatch):
    """torch's kernel as it is written out above, and taken for what it is."""
    monkeypatch.setattr(varlen, "takes", lambda mask, dtype: True)
    monkeypatch.setattr(varlen, "torchs_kernel", lambda: written_out)


def inputs_for(mask, width=WIDTH, values=WIDTH, heads=HEADS, kv_heads=HEADS, dtype=torch.float64):
    queries, keys = mask.shape[2:]
    shapes = (heads, queries, width), (kv_heads, keys, width), (kv_heads, keys, values)
    return [torch.randn(BATCH, *shape).to(mask.device, dtype) for shape in shapes]


def with_gradients(attention, inputs, mask):
    leaves = [x.detach().requires_grad_() for x in inputs]
    output = attention(*leaves, mask)[0]
    towards = torch.linspace(-1, 1, output.numel()).to(output).view_as(output)
    return output.detach(), *torch.autograd.grad(output, leaves, towards)


@pytest.mark.parametrize(
    "sizes", [{}, {"heads": 4}, {"width": 5, "values": 3}, {"width": 3, "values": 9}], ids=str
)
@pytest.mark.parametrize("name", MASKS)
def test_it_is_the_reference(name, sizes, on_a_cpu):
    mask, causal = MASKS[name]
    plan = varlen_attention.prepare(mask, torch.empty(BATCH, 1), HEADS).plan
    assert isinstance(plan, Lengths)
    assert plan.causal == causal
    inputs = inputs_for(mask, **sizes)
    results = with_gradients(varlen_attention, inputs, mask)
    expected = with_gradients(scaled_dot_product_attention, inputs, mask)
    for found, wanted in zip(results, expected, strict=True):
        torch.testing.assert_close(found, wanted, atol=1e-12, rtol=1e-12)


@pytest.mark.parametrize("name", MASKS)
def test_what_the_mask_never_uses_reaches_nothing(name, on_a_cpu):
    mask, _ = MASKS[name]
    inputs = inputs_for(mask)
    clean = with_gradients(varlen_attention, inputs, mask)
    dirty = with_gradients(varlen_attention, poisoned(inputs, mask), mask)
    whole = mask.expand(BATCH, HEADS, -1, -1)
    dead, unused = ~whole.any(dim=3), ~whole.any(dim=2)
    for got, wanted, gone in zip(dirty, clean, (dead, dead, unused, unused), strict=True):
        assert torch.equal(got, wanted)
        assert (got[gone] == 0).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", MASKS)
def test_half_precision_is_as_good_as_the_references(name, dtype, device, monkeypatch):
    mask = MASKS[name][0].to(device)
    if device.type == "cpu":
        monkeypatch.setattr(varlen, "takes", lambda mask, dtype: True)
        monkeypatch.setattr(varlen, "torchs_kernel", lambda: written_out)
    elif not varlen.takes(mask, dtype):
        pytest.skip("needs torch 2.11 and a GPU of compute capability 8.0")
    inputs = inputs_for(mask, dtype=dtype)
    results = with_gradients(varlen_attention, inputs, mask)
    plain = with_gradients(scaled_dot_product_attention, inputs, mask)
    expected = with_gradients(scaled_dot_product_attention, [x.double() for x in inputs], mask)
    for found, other, wanted in zip(results, plain, expected, strict=True):
        assert found.dtype == dtype
        rounding = torch.finfo(dtype).eps / 2 * wanted.abs().max()  # of the result itself
        assert (found - wanted).abs().max() <= 2 * (other - wanted).abs().max() + rounding


@pytest.mark.parametrize(
    "mask",
    [
        *(some_masks(QUERIES, KEYS)[n] for n in ("half", "nothing", "window", "per head")),
        causal_mask(1, KEYS),
        causal_mask(3, KEYS),  # after a cache
        torch.block_diag(torch.ones(2, 2).tril(), torch.ones(2, 2)).bool()[None, None],
        torch.zeros(BATCH, 1, QUERIES, 0, dtype=torch.bool),
    ],
)
def test_other_masks_are_for_sdpa(mask, on_a_cpu):
    plan = varlen_attention.prepare(mask, torch.empty(BATCH, 1), HEADS).plan
    assert isinstance(plan, SdpaMask)
    inputs = inputs_for(mask)
    expected = scaled_dot_product_attention(*inputs, mask)[0]
    torch.testing.assert_close(varlen_attention(*inputs, mask)[0], expected)


def test_where_it_is_taken(monkeypatch):
    mask = MASKS["right"][0]
    monkeypatch.setattr(varlen, "torchs_kernel", lambda: written_out)
    assert not varlen.takes(mask, torch.bfloat16)  # on a CPU
    with pretended_gpu("cuda"):
        there, taken = mask.to("cuda"), []
        for capability in ((7, 5), (8, 0)):
            monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _, c=capability: c)
            taken.append([varlen.takes(there, d) for d in (torch.bfloat16, torch.float32)])
        assert taken == [[False, False], [True, False]]
        monkeypatch.setattr(varlen, "torchs_kernel", lambda: None)
        assert not varlen.takes(there, torch.bfloat16)


@pytest.mark.parametrize("kind", [EncoderOnly, DecoderOnly])
def test_a_mask_is_read_once_for_all_layers(kind, on_a_cpu, monkeypatch):
    """And models give what they give by the formula."""
    rows = [[5, 6, 7], [8, 9, 10, 11], [12]]
    batch, waited = pack(rows, 5), []
    for layers in (1, 3):
        sizes = {"d_model": 8, "num_heads": 2, "num_layers": layers}
        model = large_init(kind(Config(13, **sizes, attention="varlen")))
        plain = kind(Config(13, **sizes, attention="reference"))
        plain.load_state_dict(model.state_dict())
        expected = plain(batch.input_ids, batch.attention_mask)
        with pretended_gpu("cuda") as waits:
            model.to("cuda")
            there = batch.to("cuda")
            waits.clear()
            logits = model(there.input_ids, there.attention_mask)
            waited.append(len(waits) - 2 * layers)  # what is written out reads the ends
            torch.testing.assert_close(logits.cpu(), expected, rtol=1e-4, atol=1e-4)
    assert waited == [2, 2]


def test_its_reason(on_a_cpu, monkeypatch):
    model = EncoderOnly(Config(13, d_model=8, num_heads=2, num_layers=1, attention="varlen"))
    batch = pad([[5, 6, 7], [8, 9]])
    text = explain_attention(model, batch)
    assert text.endswith(
        "-> varlen: flash-attention of 2 documents, 5 queries, each seen as a whole"
    )
    monkeypatch.undo()
    assert "-> varlen: a single call of torch's SDPA, as lengths are for half precision" in (
        explain_attention(model, batch)
    )


def test_torchs_kernel_takes_what_is_given_to_it():
    kernel = varlen.torchs_kernel()
    if kernel is None:
        pytest.skip("needs torch 2.11")
    ours, theirs = signature(written_out).parameters, signature(kernel).parameters
    assert list(ours)[:7] == list(theirs)[:7]
    assert set(ours) <= set(theirs)
