"""Every kernel is the plain formula: on random masks, in every dtype, and for gradients too."""

from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np
import pytest
import torch
from conftest import BATCH, HEADS, KEYS, QUERIES, WIDTH, from_lengths, large_init
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_masks import LONG, some_masks

from minitransformer import (
    Config,
    DecoderOnly,
    EncoderDecoder,
    EncoderOnly,
    MultiHeadAttention,
    causal_mask,
    next_token_labels,
    pack,
    pad,
    padding_mask,
    record_attention,
    scaled_dot_product_attention,
)
from minitransformer.kernels import Kernel, attention_kernel, plan, strips
from minitransformer.kernels.plan import make_plan

NAMES = ("tiled", "fused", "online", "sdpa")


def random_inputs(batch, heads, queries, keys, kv_heads=None, value_width=WIDTH, **options):
    kv_heads = heads if kv_heads is None else kv_heads
    options = {"dtype": torch.float64, "requires_grad": True, **options}
    return (
        torch.randn(batch, heads, queries, WIDTH, **options),
        torch.randn(batch, kv_heads, keys, WIDTH, **options),
        torch.randn(batch, kv_heads, keys, value_width, **options),
    )


def reference(*inputs):
    return scaled_dot_product_attention(*inputs)[0]


def kernel(name):
    """The output of the kernel of that name, which gives no weights."""

    def attention(*inputs):
        output, weights = attention_kernel(name)(*inputs)
        assert weights is None
        return output

    return attention


def with_gradients(attention, inputs, mask):
    """The output, and the gradients of query, key and value: each output counts differently."""
    output = attention(*inputs, mask)
    towards = torch.linspace(-1, 1, output.numel(), dtype=output.dtype, device=output.device)
    return output, *torch.autograd.grad(output, inputs, towards.view_as(output))


def distance(attention, inputs, mask):
    pairs = zip(
        with_gradients(attention, inputs, mask),
        with_gradients(reference, inputs, mask),
        strict=True,
    )
    return max((found - wanted).abs().max().item() for found, wanted in pairs)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    "sizes", [{"queries": QUERIES, "keys": KEYS}, {"queries": 1, "keys": 40}, LONG]
)
def test_a_kernel_is_the_formula_whatever_the_mask(name, sizes, device):
    inputs = random_inputs(BATCH, HEADS, **sizes, device=device)
    for what, mask in some_masks(**sizes).items():
        assert distance(kernel(name), inputs, mask.to(device)) < 1e-12, what


@pytest.mark.parametrize("name", NAMES)
def test_a_kernel_is_the_formula_for_causal_documents_that_are_worth_strips(name, device):
    least, most = plan.CUT[0], plan.CUT[-1]
    rows = torch.zeros(3, most + 8, dtype=torch.int64)
    for row, lengths in zip(rows, ((least, 150), (most, 3), (least + 60,)), strict=True):
        numbers = torch.arange(len(lengths)) + 1
        row[: sum(lengths)] = numbers.repeat_interleave(torch.tensor(lengths))
    mask = (padding_mask(rows) & causal_mask(rows.shape[1])).to(device)
    inputs = random_inputs(3, 2, *mask.shape[2:], kv_heads=1, device=device)
    assert distance(kernel(name), inputs, mask) < 1e-12


@settings(max_examples=60, deadline=None)
@given(
    name=st.sampled_from(NAMES),
    batch=st.integers(1, 4),
    heads=st.sampled_from([(1, 1), (2, 2), (4, 2), (3, 1)]),
    queries=st.integers(1, 300),
    keys=st.integers(1, 300),
    per_head=st.booleans(),
    shared=st.booleans(),
    share=st.sampled_from([0.0, 0.003, 0.05, 0.5, 1.0]),
    blocks=st.integers(1, 64),
    seed=st.integers(0, 2**16),
)
def test_a_kernel_is_the_formula_on_random_masks(
    name, batch, heads, queries, keys, per_head, shared, share, blocks, seed
):
    torch.manual_seed(seed)
    heads, kv_heads = heads
    coarse = torch.rand(
        1 if shared else batch, heads if per_head else 1, -(-queries // blocks), -(-keys // blocks)
    )
    mask = (coarse < share).repeat_interleave(blocks, 2).repeat_interleave(blocks, 3)
    mask = mask[..., :queries, :keys]
    inputs = random_inputs(batch, heads, queries, keys, kv_heads, value_width=3)
    assert distance(kernel(name), inputs, mask) < 1e-12


@settings(max_examples=60, deadline=None)
@given(
    name=st.sampled_from(NAMES),
    rows=st.lists(
        st.lists(st.tuples(st.integers(0, 3), st.integers(0, 90)), max_size=6),
        min_size=1,
        max_size=3,
    ),
    causal=st.booleans(),
    window=st.none() | st.integers(1, 40),
)
def test_a_kernel_is_the_formula_on_documents_and_holes(name, rows, causal, window):
    """Rows of runs (document, length); document 0 is padding, and one may come back later."""
    filled = [[n for n, length in row for _ in range(length)] or [0] for row in rows]
    attention_mask = torch.zeros(len(rows), max(map(len, filled)), dtype=torch.int64)
    for row, numbers in zip(attention_mask, filled, strict=True):
        row[: len(numbers)] = torch.tensor(numbers)
    mask, length = padding_mask(attention_mask), attention_mask.shape[1]
    if causal:
        mask = mask & causal_mask(length)
    if window is not None:
        mask = mask & ~causal_mask(length).roll(window, dims=2)
    inputs = random_inputs(len(rows), HEADS, length, length)
    assert distance(kernel(name), inputs, mask) < 1e-12


@pytest.mark.parametrize("name", NAMES)
def test_what_the_mask_never_uses_is_never_multiplied(name, device):
    for what, mask in some_masks(**LONG).items():
        mask = mask.to(device)
        clean = [x.detach() for x in random_inputs(BATCH, HEADS, **LONG, device=device)]
        whole = mask.expand(BATCH, HEADS, -1, -1)
        lost = [~whole.any(dim=3), *[~whole.any(dim=2)] * 2]
        poisoned = [
            x.masked_fill(gone.unsqueeze(-1), float("nan"))
            for x, gone in zip(clean, lost, strict=True)
        ]
        results = [
            with_gradients(kernel(name), [x.requires_grad_() for x in inputs], mask)
            for inputs in (clean, poisoned)
        ]
        for found, wanted in zip(*results, strict=True):
            assert torch.equal(found, wanted), what
        output, *gradients = results[0]
        assert (output[lost[0]] == 0).all(), what
        for gradient, gone in zip(gradients, lost, strict=True):
            assert (gradient[gone] == 0).all(), what


@pytest.mark.parametrize("name", NAMES)
def test_half_precision_is_as_good_as_the_formulas(name, device):
    mask = some_masks(**LONG)["half"].to(device)
    exact = random_inputs(BATCH, HEADS, **LONG, device=device)
    wanted = reference(*exact, mask)
    for dtype in (torch.float16, torch.bfloat16):
        half = [x.detach().to(dtype) for x in exact]
        found = kernel(name)(*half, mask)
        plain = reference(*half, mask)
        assert found.dtype == dtype
        rounding = torch.finfo(dtype).eps / 2 * wanted.abs().max()  # of the output itself
        assert (found - wanted).abs().max() <= 2 * (plain - wanted).abs().max() + rounding


@pytest.mark.parametrize("name", NAMES)
def test_autocast_changes_nothing(name, device):
    """What comes in float32 is computed in float32, as by the formula."""
    mask = some_masks(QUERIES, KEYS)["half"].to(device)
    inputs = random_inputs(BATCH, HEADS, QUERIES, KEYS, device=device, dtype=torch.float32)
    outside = kernel(name)(*inputs, mask)
    with torch.autocast(device.type, torch.bfloat16):
        inside = kernel(name)(*inputs, mask)
    assert torch.equal(inside, outside)


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[pytest.mark.slow] * (n in ("online", "fused"))) for n in NAMES]
)
def test_gradients_are_those_of_differences_and_can_be_asked_for_twice(name):
    mask = some_masks(QUERIES, KEYS)["half"][:2]
    inputs = random_inputs(2, HEADS, QUERIES, KEYS)
    assert torch.autograd.gradcheck(lambda *x: kernel(name)(*x, mask), inputs)
    output = kernel(name)(*inputs, mask)
    once, twice = (torch.autograd.grad(output.sum(), inputs, retain_graph=True) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(once, twice, strict=True))


def test_scores_that_are_not_kept_are_computed_again():
    inputs = random_inputs(BATCH, HEADS, **LONG)
    mask = some_masks(**LONG)["half"]
    kept = with_gradients(kernel("tiled"), inputs, mask)
    keeps_nothing = Kernel("tiled", strips.plan_strips, partial(strips.compute, strips._plain, 0))
    again = with_gradients(lambda *x: keeps_nothing(*x)[0], inputs, mask)
    assert all(torch.equal(a, b) for a, b in zip(kept, again, strict=True))


# The plan.


def test_documents_that_fill_their_rows_are_not_the_rows():
    """All tokens, in order, and yet another batch: four documents of 17 in one row of 68."""
    mask = padding_mask(torch.arange(4).repeat_interleave(17)[None] + 1)
    inputs = random_inputs(1, HEADS, 68, 68)
    for name in NAMES:
        assert distance(kernel(name), inputs, mask) < 1e-12


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("what", ["from the end", "a dead query", "chunks"])
def test_what_is_nearly_as_simple_is_not_taken_for_it(name, what, monkeypatch):
    mask = torch.ones(3, 1, 20, 20, dtype=torch.bool)
    if what == "from the end":  # as many keys as in the past of each query, but others
        mask = causal_mask(20).flip(3)
    elif what == "a dead query":  # all keys are there, in order
        mask[:, :, -1] = False
    else:  # unlike documents of one group, some of them at a time
        monkeypatch.setattr(plan, "QUERIES", 8)
        monkeypatch.setattr(plan, "LARGEST", 2 * HEADS * 8 * 20)
        mask = torch.rand(mask.shape, generator=torch.Generator().manual_seed(0)) < 0.7
    assert distance(kernel(name), random_inputs(3, HEADS, 20, 20), mask) < 1e-12


def test_short_documents_go_by_the_formula(monkeypatch):
    """torch's fused kernel pays for each document and head."""
    calls, fused = [], torch.nn.functional.scaled_dot_product_attention
    monkeypatch.setattr(
        torch.nn.functional,
        "scaled_dot_product_attention",
        lambda query, key, value, **options: (
            calls.append(key.shape[2]) or fused(query, key, value, **options)
        ),
    )
    lengths = [plan.SHORT + 80, 9, plan.SHORT, plan.SHORT + 1]
    mask = padding_mask(from_lengths(lengths, max(lengths)))
    kernel("fused")(*random_inputs(4, HEADS, max(lengths), max(lengths)), mask)
    assert sorted(set(calls)) == [plan.SHORT + 1, plan.SHORT + 80]


def test_a_plan_is_made_once_for_all_layers(monkeypatch):
    made = []
    monkeypatch.setattr(strips, "make_plan", lambda *a: made.append(a) or make_plan(*a))
    model = EncoderDecoder(Config(vocab_size=9, d_model=8, num_layers=3, attention="tiled"))
    source, target = torch.tensor([[1, 1, 0], [1, 1, 1]]), torch.tensor([[1, 0], [1, 1]])
    model(source, source, target, target)
    assert len(made) == 3  # the source's, the target's, and that of one looking at the other


@pytest.mark.parametrize(
    "write",
    [
        lambda mask: mask.logical_and_(causal_mask(7)),
        lambda mask: mask.data.logical_and_(causal_mask(7)),
        lambda mask: np.logical_and(mask.numpy(), causal_mask(7).numpy(), out=mask.numpy()),
    ],
    ids=["in place", ".data", ".numpy()"],
)
@pytest.mark.parametrize("name", NAMES)
def test_no_kernel_goes_by_what_a_mask_was(name, write):
    """However it is written to: `.data` and NumPy do not even count as a new version."""
    inputs = random_inputs(2, HEADS, 7, 7)
    mask = torch.ones(2, 1, 7, 7, dtype=torch.bool)
    kernel(name)(*inputs, mask)
    write(mask)
    assert distance(kernel(name), inputs, mask) < 1e-12


@pytest.mark.parametrize("name", NAMES)
def test_a_prepared_mask_gives_what_the_bare_one_gives(name):
    inputs = random_inputs(BATCH, HEADS, QUERIES, KEYS)
    mask = some_masks(QUERIES, KEYS)["padding"]
    attention = attention_kernel(name)
    prepared = attention.prepare(mask, inputs[0], HEADS)
    assert prepared.mask is mask
    assert torch.equal(attention(*inputs, prepared)[0], attention(*inputs, mask)[0])
    with pytest.raises(TypeError, match="mask must be bool"):
        attention.prepare(mask.long(), inputs[0], HEADS)


@pytest.mark.parametrize("name", ["reference", *NAMES])
@pytest.mark.parametrize("options", [{}, {"style": "llama", "num_kv_heads": 2}])
def test_inference_mode_gives_what_no_grad_gives(name, options):
    batch = pack([[1, 2, 3], [4, 5], [6, 7, 8, 9], [1]], length=6)
    for kind in (EncoderOnly, DecoderOnly):
        model = small(kind, name, **options)
        with torch.no_grad():
            expected = model(batch.input_ids, batch.attention_mask)
        with torch.inference_mode():
            found = model(batch.input_ids, batch.attention_mask)
        assert torch.equal(found, expected)


def test_eight_threads_may_call_one_model():
    """Each with a mask of its own: nothing that is made for one call is met by another."""
    model = small(DecoderOnly, "auto")
    batches = [pad([torch.randint(11, (n,)).tolist() for n in (3, 9, 5)]) for _ in range(8)]
    inputs = [(batch.input_ids, batch.attention_mask) for batch in batches]

    def run(one):
        with torch.no_grad():
            return [model(*one) for _ in range(20)]

    expected = [run(one)[0] for one in inputs]
    with ThreadPoolExecutor(8) as pool:
        for found, wanted in zip(pool.map(run, inputs), expected, strict=True):
            assert all(torch.equal(output, wanted) for output in found)


# A plan that is wrong must not go unnoticed by the tests above.


def in_strips(**changes):
    """A plan with other strips: each given as a function of the strip."""

    def broken(found):
        def change(strip):
            return strip._replace(**{name: value(strip) for name, value in changes.items()})

        groups = [g._replace(strips=[change(strip) for strip in g.strips]) for g in found.groups]
        return found._replace(groups=groups)

    return broken


@pytest.mark.parametrize(
    "broken",
    [
        in_strips(bias=lambda strip: None),
        in_strips(keys=lambda strip: (slice(0, strip.keys[-1].stop - 1),)),
        in_strips(queries=lambda strip: slice(0, strip.queries.stop - 1)),
        lambda found: found._replace(back=found.back.flip(0)),
        lambda found: found._replace(back=found.back.clamp(max=len(found.queries) - 1)),
        lambda found: found._replace(keys=found.keys.roll(1)),
        lambda found: found._replace(queries=None, keys=None, back=None),
    ],
    ids=[
        "mask forgotten", "a key short", "a query short", "outputs at others", "no zeros",
        "keys of others", "as if it were the batch",
    ],
)  # fmt: skip
def test_a_broken_plan_is_noticed(broken, monkeypatch):
    monkeypatch.setattr(strips, "make_plan", lambda *a: broken(make_plan(*a)))
    inputs = random_inputs(BATCH, HEADS, **LONG)
    mask = some_masks(**LONG)["padding"]
    mask[:, :, 1] = False
    mask[1, :, 2, 0] = False
    try:
        found = distance(kernel("tiled"), inputs, mask)
    except (RuntimeError, IndexError):  # shapes that do not fit
        return
    assert not found < 1e-3


# In models.


def small(kind, attention, **options):
    torch.manual_seed(0)
    return large_init(
        kind(
            Config(vocab_size=11, d_model=16, num_layers=2, attention=attention, **options)
        ).double()
    )


@pytest.mark.parametrize("attention", NAMES)
@pytest.mark.parametrize("options", [{}, {"style": "llama", "num_kv_heads": 2}])
def test_models_compute_the_same_with_every_kernel(attention, options):
    batch = pack([[1, 2, 3], [4, 5], [6, 7, 8, 9], [1]], length=6)
    labels = next_token_labels(batch.input_ids, batch.attention_mask)
    for kind in (EncoderOnly, DecoderOnly):
        losses = {}
        for name in ("reference", attention):
            model = small(kind, name, **options)
            loss = model.loss(batch.input_ids, batch.attention_mask, labels)
            loss.backward()
            losses[name] = [loss.detach(), *(p.grad for p in model.parameters())]
        for plain, fast in zip(*losses.values(), strict=True):
            torch.testing.assert_close(plain, fast, rtol=1e-10, atol=1e-12)


def test_looking_at_the_weights_or_dropping_them_uses_the_formula():
    def refuse(*inputs, **options):
        raise AssertionError("the kernel was asked")

    layer = MultiHeadAttention(8, 2, dropout=0.5, kernel=refuse)
    x, mask = torch.randn(1, 3, 8), torch.ones(1, 1, 3, 3, dtype=torch.bool)
    with record_attention(layer) as maps:
        layer.eval()(x, x, mask)
    assert maps[""].shape == (1, 2, 3, 3)
    hook = layer.tap.register_forward_pre_hook(lambda tap, inputs: maps.update(pre=inputs[0]))
    layer.eval()(x, x, mask)
    hook.remove()
    assert torch.equal(maps["pre"], maps[""])
    layer.train()(x, x, mask)
    with pytest.raises(AssertionError, match="was asked"):
        layer.eval()(x, x, mask)


def test_training_gives_the_same_curve_with_the_formula_and_with_auto():
    rows = [torch.randint(11, (n,)).tolist() for n in (5, 9, 3, 7)]
    batch = pad(rows)
    labels = next_token_labels(batch.input_ids, batch.attention_mask)
    curves = []
    for attention in ("reference", "auto"):
        torch.manual_seed(0)
        model = DecoderOnly(Config(vocab_size=11, d_model=16, attention=attention)).double()
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
        curve = []
        for _ in range(30):
            optimizer.zero_grad()
            loss = model.loss(batch.input_ids, batch.attention_mask, labels)
            loss.backward()
            optimizer.step()
            curve.append(loss.item())
        curves.append(torch.tensor(curve))
    assert curves[0][-1] < 0.5 * curves[0][0]
    torch.testing.assert_close(*curves, rtol=1e-10, atol=0)


def test_a_kernel_that_is_not_there_is_refused():
    with pytest.raises(ValueError, match="attention must be one of auto, reference, tiled"):
        attention_kernel("flash")
    with pytest.raises(ValueError, match="attention must be one of auto, reference, tiled"):
        Config(vocab_size=9, attention="flash")


@pytest.mark.parametrize("poison", [float("nan"), float("inf"), 1e25])  # 1e25² is Inf
@pytest.mark.parametrize("poisoned", ["query", "key", "value", "query and key"])
def test_rows_nearly_alike_are_read_before_they_are_trusted(poisoned, poison):
    """Taken as they are, uncopied, unless a number could reach a real token, or its gradient."""
    real = from_lengths([128, 127, 125, 128], 128)
    mask = padding_mask(real)
    assert not make_plan(mask, 4, 2, whole=True).groups
    clean = dict(zip(("query", "key", "value"), random_inputs(4, 2, 128, 128), strict=True))
    clean = {name: x.detach().float() for name, x in clean.items()}
    padding = (real == 0)[:, None, :, None]
    dirty = {n: x.masked_fill(padding, poison) if n in poisoned else x for n, x in clean.items()}
    outputs, gradients = [], []
    for inputs in (clean, dirty):
        leaves = [x.clone().requires_grad_() for x in inputs.values()]
        output = kernel("auto")(*leaves, mask)
        outputs.append(output.detach())
        gradients.append(torch.autograd.grad(output.square().sum(), leaves))
        with torch.no_grad():
            assert torch.equal(kernel("auto")(*inputs.values(), mask), output)
    assert torch.equal(*outputs)
    for wanted, found in zip(*gradients, strict=True):
        assert torch.equal(wanted, found)
        assert (found.masked_select(padding) == 0.0).all()
