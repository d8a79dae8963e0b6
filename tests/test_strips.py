"""Strips put together are the formula, and each is computed as often as it must be."""

from functools import partial

import pytest
import torch
from conftest import BATCH, HEADS, KEYS, QUERIES, WIDTH, from_lengths
from kernel_masks import poisoned, some_masks

from minitransformer import causal_mask, padding_mask, scaled_dot_product_attention
from minitransformer.kernels import attention_kernel, plan, strips
from minitransformer.kernels.plan import Plan, Strip
from minitransformer.kernels.sdpa import SdpaMask

NAMES = ("tiled", "fused", "online")
SMALL = {"QUERIES": 2, "KEYS": 2, "FEWEST": 2, "LARGEST": 12, "GROUP_COST": 9, "COPY_COST": 0}
SMALL |= {"CUT": range(4, 100)}


@pytest.fixture
def small(monkeypatch):
    """So small that five queries are several strips, and seven keys several blocks."""
    for name, value in SMALL.items():
        monkeypatch.setattr(plan, name, value)
    for module in (plan, strips):
        monkeypatch.setattr(module, "SHORT", 3)
    monkeypatch.setattr(strips, "BLOCK", 3)


def make_inputs(heads=HEADS, kv_heads=HEADS, width=WIDTH, batch=BATCH, dtype=torch.float64):
    return (
        torch.randn(batch, heads, QUERIES, WIDTH, dtype=dtype),
        torch.randn(batch, kv_heads, KEYS, WIDTH, dtype=dtype),
        torch.randn(batch, kv_heads, KEYS, width, dtype=dtype),
    )


def results_of(attention, inputs, mask):
    """The output and the gradients; without them, the output is the same."""
    leaves = [x.clone().requires_grad_() for x in inputs]
    output = attention(*leaves, mask)[0]
    with torch.no_grad():
        assert torch.equal(attention(*leaves, mask)[0], output)
    towards = torch.linspace(-1, 1, output.numel(), dtype=output.dtype).view_as(output)
    return output, *torch.autograd.grad(output, leaves, towards)


@pytest.mark.parametrize("poison", [False, True])
@pytest.mark.parametrize(("heads", "kv_heads"), [(2, 2), (2, 1)])
@pytest.mark.parametrize("name", NAMES)
def test_strips_are_the_formula_and_so_are_their_gradients(name, heads, kv_heads, poison, small):
    inputs = make_inputs(heads, kv_heads, width=WIDTH if kv_heads == 2 else 3)
    for what, mask in some_masks(QUERIES, KEYS).items():
        given = poisoned(inputs, mask) if poison else inputs
        found = results_of(attention_kernel(name), given, mask)
        wanted = results_of(scaled_dot_product_attention, given, mask)
        for a, b in zip(found, wanted, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-12, msg=what)


def count_calls(formula):
    calls = []

    def counted(query, key, value, strip):
        calls.append((query.dtype, torch.is_grad_enabled()))
        return formula(query, key, value, strip)

    return calls, counted


@pytest.mark.parametrize(("strips_of", "keep", "forward", "backward", "again"), [
    (1, True, 1, 0, 0),  # torch's own graph
    (1, False, 1, 1, 1),
    (3, True, 3, 0, 3),
    (3, False, 3, 3, 3),
])  # fmt: skip
def test_how_often_a_strip_is_computed(strips_of, keep, forward, backward, again, monkeypatch):
    """Kept graphs are used up; the next time they are computed again."""
    monkeypatch.setattr(plan, "QUERIES", QUERIES if strips_of == 1 else 2)
    monkeypatch.setattr(plan, "FEWEST", 1)
    calls, formula = count_calls(strips._plain)
    inputs = [x.requires_grad_() for x in make_inputs()]
    mask = some_masks(QUERIES, KEYS)["everything"]
    found = strips.plan_strips(mask, BATCH, HEADS, torch.float64)
    kept = HEADS * found.scores
    assert kept == BATCH * HEADS * QUERIES * KEYS
    output = strips.compute(formula, kept - (not keep), *inputs, found, False)
    assert [len(calls), calls.clear()][0] == forward
    for count in (backward, again):
        torch.autograd.grad(output.sum(), inputs, retain_graph=True)
        assert [len(calls), calls.clear()][0] == count


def test_no_graph_is_made_where_nothing_learns(monkeypatch):
    monkeypatch.setattr(plan, "QUERIES", 2)
    calls, formula = count_calls(strips._plain)
    mask = some_masks(QUERIES, KEYS)["everything"]
    found = strips.plan_strips(mask, BATCH, HEADS, torch.float64)
    strips.compute(formula, 10**9, *make_inputs(), found, False)
    assert calls == [(torch.float64, False)] * 3


def test_an_output_lies_as_its_projection_reads_it(monkeypatch):
    monkeypatch.setattr(plan, "QUERIES", 2)
    output, _ = attention_kernel("tiled")(*make_inputs(), some_masks(QUERIES, KEYS)["everything"])
    assert output.transpose(1, 2).is_contiguous()


def test_what_the_fused_kernel_is_told(small, monkeypatch):
    """Causal where it is, a bias of the queries' dtype where there is one, else nothing."""
    told, attend = [], strips.fused_kernel
    monkeypatch.setattr(
        strips, "fused_kernel", lambda *x, **how: told.append(how) or attend(*x, **how)
    )
    x = torch.randn(3, 1, 1, 4, WIDTH, dtype=torch.bfloat16)
    bias = plan.as_bias(causal_mask(4))
    whole = (slice(0, 1), slice(0, 4), (slice(0, 4),))
    strips._fused(*x, Strip(*whole))
    strips._fused(*x, Strip(*whole, bias, causal=True))
    strips._fused(*x, Strip(*whole, bias))
    assert told[:2] == [{"is_causal": False}, {"is_causal": True}]
    assert told[2].keys() == {"attn_mask"}
    assert told[2]["attn_mask"].dtype == torch.bfloat16
    assert torch.equal(told[2]["attn_mask"], bias.bfloat16())
    strips._fused(*x[:, :, :, :3], Strip(*whole[:2], (slice(0, 3),)))  # of few keys: the formula
    assert len(told) == 3


@pytest.mark.parametrize("name", NAMES)
def test_a_score_that_float16_does_not_hold_is_none_that_attention_cannot(name):
    """70 · 70 · 64 / 8 = 39200, but before the division it would be 313600."""
    query, key = torch.full((2, 1, 1, 2, 64), 70.0, dtype=torch.float16)
    value = torch.randn(1, 1, 2, 64, dtype=torch.float16)
    output, _ = attention_kernel(name)(query, key, value, torch.ones(1, 1, 2, 2).bool())
    assert output.dtype == torch.float16
    wanted = value.float().mean(dim=2, keepdim=True).expand_as(output)
    torch.testing.assert_close(output.float(), wanted, rtol=1e-2, atol=1e-3)


@pytest.mark.parametrize("name", NAMES)
def test_each_row_of_scores_has_a_level_of_its_own(name):
    """Of rows 2000 apart, the exponentials of one would be 0 beside the other's."""
    query = torch.tensor([1_000.0, -1_000.0], dtype=torch.float64).view(1, 1, 2, 1)
    value = torch.randn(1, 1, 3, 4, dtype=torch.float64)
    inputs = query, torch.ones(1, 1, 3, 1, dtype=torch.float64), value
    output, _ = attention_kernel(name)(*inputs, torch.ones(1, 1, 2, 3).bool())
    torch.testing.assert_close(output, value.mean(dim=2, keepdim=True).expand_as(output))


@pytest.mark.parametrize("name", NAMES)
def test_gradients_of_half_precision_are_nearly_those_of_float32(name, small):
    inputs, mask = make_inputs(dtype=torch.bfloat16), some_masks(QUERIES, KEYS)["causal"]
    rough = results_of(attention_kernel(name), inputs, mask)
    exact = results_of(attention_kernel(name), [x.float() for x in inputs], mask)
    for a, b in zip(rough, exact, strict=True):
        assert a.dtype == torch.bfloat16
        assert (a.float() - b).norm() < 0.02 * b.norm()


def test_half_precision_trains_in_float32(monkeypatch):
    calls, formula = count_calls(strips._plain)
    monkeypatch.setattr(strips, "compute_fused", partial(strips.compute, formula, 10**9))
    found = strips.plan_strips(some_masks(QUERIES, KEYS)["half"], BATCH, HEADS, torch.float32)
    for dtype in (torch.bfloat16, torch.float32, torch.float64):
        inputs = [x.requires_grad_() for x in make_inputs(dtype=dtype)]
        assert strips.compute_auto(*inputs, found, False).dtype == dtype
        with torch.no_grad():
            assert strips.compute_auto(*inputs, found, False).dtype == dtype
    dtypes = [dtype for dtype, _ in calls[:: len(calls) // 6]]
    half, single, double = torch.bfloat16, torch.float32, torch.float64
    assert dtypes == [single, half, single, single, double, double]


def test_which_masks_get_a_plan(monkeypatch):
    """One query is not worth one, nor is a mask of nothing; the others are cut, or not at all."""
    length = 2 * plan.QUERIES
    mask = causal_mask(length)
    options = 1, 2, torch.float64
    for read in (strips.plan_strips, strips.plan_auto):
        for none in (mask[:, :, -1:], torch.zeros_like(mask)):
            found = read(none, *options)
            assert isinstance(found, SdpaMask)
            assert found.bias is None or found.bias.dtype == torch.float64
        assert isinstance(read(mask, *options), Plan)
    numbers = {name: len(attention_kernel(name).plan(mask, *options).groups[0].strips)
               for name in (*NAMES, "auto")}  # fmt: skip
    assert numbers == {"tiled": 2, "fused": 1, "online": 2, "auto": 1}
    monkeypatch.setattr(strips, "may_read", lambda x: False)
    found = strips.plan_auto(mask, *options)
    assert isinstance(found, SdpaMask)
    assert found.bias.dtype == torch.float64


def test_what_is_finite_reaches_torchs_kernel_as_a_promise(monkeypatch):
    found = SdpaMask(None, None, None)
    seen = []
    monkeypatch.setattr(strips, "compute_sdpa", lambda *inputs: seen.append(inputs))
    inputs = make_inputs()
    for finite in (False, True):
        strips.compute_auto(*inputs, found, finite)
    assert [one[3:] for one in seen] == [(found, False), (found, True)]


def test_heads_that_are_as_many_are_not_copied():
    x = torch.randn(2, 3, 4, 5)
    assert strips._for_heads(x, 3) is x
    assert torch.equal(strips._for_heads(x, 6), x.repeat_interleave(2, dim=1))
    assert strips._for_heads(x[:, :0], 0).shape == (2, 0, 4, 5)


def test_documents_are_gathered_and_put_back():
    """Two groups, of which one is filled up with copies; zeros where a query sees nothing."""
    lengths = [KEYS, 2, 0, 3]
    mask = padding_mask(from_lengths(lengths, KEYS))
    found = plan.make_plan(mask, BATCH, HEADS)
    x = torch.randn(BATCH, HEADS, KEYS, 3)
    shapes = [group.queries.shape for group in found.groups]
    taken = list(strips._take(x, found.queries, shapes))
    assert [part.shape for part in taken] == [(n, HEADS, t, 3) for n, t in shapes]
    back = strips._put_back(taken, found.back, x, x)
    assert torch.equal(back, x * from_lengths(lengths, KEYS)[:, None, :, None])
