"""What every kernel has in common: what is planned, what is computed, and when neither is."""

import pytest
import torch

from minitransformer import causal_mask, scaled_dot_product_attention
from minitransformer.kernels import Kernel, kernel
from minitransformer.masks import PreparedMask

QUERIES, KEYS = 5, 7
MASK = causal_mask(QUERIES, KEYS)


@pytest.fixture
def calls() -> list:
    return []


@pytest.fixture
def spy(calls) -> Kernel:
    """Says what it was asked to plan, and to compute."""

    def compute(*inputs):
        calls.append((*inputs, torch.is_autocast_enabled("cpu")))
        return "output"

    return Kernel("spy", lambda *asked: asked, compute)


def make_inputs(batch=3, device="cpu"):
    sizes = ((4, QUERIES), (2, KEYS), (2, KEYS))
    return [torch.randn(batch, heads, length, 8, device=device) for heads, length in sizes]


def test_a_plan_is_made_for_the_batch_the_heads_and_the_dtype_that_will_come(spy):
    x = torch.zeros(3, 9, 16)
    prepared = spy.prepare(MASK, x, 4)
    assert prepared.mask is MASK
    assert prepared.plan == (MASK, 3, 4, torch.float32)
    assert spy.prepare(MASK, x.half(), 4).plan[3] == torch.float16
    with torch.autocast("cpu", torch.bfloat16):
        assert spy.prepare(MASK, x, 4).plan[3] == torch.bfloat16
        meta = torch.zeros(3, 9, 16, device="meta")  # which has no autocast
        assert spy.prepare(MASK, meta, 4).plan[3] == torch.float32


def test_a_mask_that_is_none_is_refused(spy):
    for wrong in (MASK.long(), MASK[0]):
        with pytest.raises((TypeError, ValueError), match="mask must be"):
            spy.prepare(wrong, torch.zeros(3, 9), 4)


def test_a_mask_is_planned_for_this_call_or_was_before(spy, calls):
    inputs = make_inputs()
    assert spy(*inputs, MASK) == ("output", None)
    assert spy(*inputs, PreparedMask(MASK, "a plan"), finite=True) == ("output", None)
    planned = (MASK, 3, 4, torch.float32)
    assert calls == [(*inputs, planned, False, False), (*inputs, "a plan", True, False)]


def test_autocast_is_left_where_there_is_one(spy, calls):
    with torch.autocast("cpu", torch.bfloat16):
        spy(*make_inputs(), MASK)
    assert calls[0][-1] is False
    with torch.autocast("cpu", torch.bfloat16):
        spy(*make_inputs(device="meta"), MASK.to("meta"))
    assert calls[1][-1] is True  # there is none on the meta device to be left


def test_inputs_that_do_not_fit_are_refused(spy, calls):
    query, key, value = make_inputs()
    for mask in (MASK, PreparedMask(MASK, None)):
        with pytest.raises(ValueError, match="mask must be"):
            spy(query[:, :, 1:], key, value, mask)
        with pytest.raises(ValueError, match="mask must be"):
            spy(query, key[:, :, 1:], value[:, :, 1:], mask)
        with pytest.raises(ValueError, match="expected query"):
            spy(query, key[:1], value, mask)
        with pytest.raises(TypeError, match="one floating dtype"):
            spy(query, key, value.half(), mask)
    assert not calls


@pytest.mark.parametrize("finite", [False, True])
@pytest.mark.parametrize("over", range(4))
def test_tensors_of_torch_func_are_computed_by_the_formula(over, finite, spy, calls, monkeypatch):
    given = []

    def reference(*inputs, **options):
        given.append(options)
        return scaled_dot_product_attention(*inputs, **options)

    monkeypatch.setattr(kernel, "scaled_dot_product_attention", reference)
    inputs = [*make_inputs(), MASK]
    several = torch.stack([inputs[over]] * 2)
    if over < 3:
        several[1] *= 2
    else:
        several[1, ..., 0] = False

    def attend(x):
        changed = [*inputs[:over], x, *inputs[over + 1 :]]
        output, weights = spy(*changed, finite=finite)
        assert weights is None
        return output

    found = torch.func.vmap(attend)(several)
    assert not calls
    assert given == [{"finite": finite}]
    for output, x in zip(found, several, strict=True):
        changed = [*inputs[:over], x, *inputs[over + 1 :]]
        torch.testing.assert_close(output, scaled_dot_product_attention(*changed)[0])
