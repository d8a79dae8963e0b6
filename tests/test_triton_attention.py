"""The Triton kernels against the formula in float64, forward and backward, under every mask.

Without a GPU the same kernels run in Triton's interpreter, slowly. It must be asked for before
anything imports Triton, as torch does, so the first test runs this file again in a process of its
own: a slow test, in whose place CI runs this file with TRITON_INTERPRET=1. The sizes are pairwise
different, no tile divides them, and there are several tiles of each.
"""

import importlib
import os
import subprocess
import sys

import pytest
import torch
from conftest import from_lengths
from torch.autograd import grad

from minitransformer import causal_mask, kernels, padding_mask, scaled_dot_product_attention

pytest.importorskip("triton", minversion="3.3")

from minitransformer.kernels import triton_attention as module
from minitransformer.kernels.triton_attention import INTERPRETED, tile_map, triton_attention

pytestmark = pytest.mark.filterwarnings(
    "ignore:TRITON_DEFAULT_FP_FUSION",  # a notice of Triton 3.9
    "ignore:Conversion of an array with ndim",  # NumPy's, in the interpreter of Triton 3.3
)

GPU = torch.cuda.is_available()
ON_CPU = pytest.mark.skipif(not INTERPRETED, reason="needs TRITON_INTERPRET=1 on a CPU")
ON_GPU = pytest.mark.skipif(
    INTERPRETED or not GPU, reason="needs a CUDA GPU, and TRITON_INTERPRET not set"
)
DEVICES = [pytest.param("cpu", marks=ON_CPU), pytest.param("cuda", marks=ON_GPU)]
HALF = [
    pytest.param("cpu", torch.float16, marks=ON_CPU),  # bfloat16 is wrong there: triton issue 4972
    pytest.param("cuda", torch.float16, marks=ON_GPU),
    pytest.param("cuda", torch.bfloat16, marks=ON_GPU),
]
BATCH, HEADS, QUERIES, KEYS, WIDTH, VALUES = 3, 2, 40, 75, 24, 20  # tiles of float32 are 32
NAN, INF = float("nan"), float("inf")

INDEX = torch.arange(KEYS)
HOLES = (INDEX % 7 < 4).long().expand(BATCH, -1).clone()
HOLES[1, 20:64] = 0  # a tile of keys nobody sees, in the middle
PACKED = torch.stack([INDEX // 30 + 1, (INDEX // 25 + 1) * (INDEX < 70), 0 * INDEX])
DISTANCE = INDEX - INDEX.unsqueeze(1)
PER_HEAD = torch.rand(BATCH, HEADS, QUERIES, KEYS, generator=torch.manual_seed(1)) < 0.3
PER_HEAD[0, 1, 3] = PER_HEAD[1, :, :, 5] = PER_HEAD[2, 1] = PER_HEAD[:, :, 32:] = False
RIGHT, LEFT = (from_lengths((30, KEYS, 0), KEYS, side) for side in ("right", "left"))
MASKS = {
    "everything": torch.ones(BATCH, 1, QUERIES, KEYS, dtype=torch.bool),
    "right": padding_mask(RIGHT),
    "left": padding_mask(LEFT),
    "holes": padding_mask(HOLES),
    "packed": padding_mask(PACKED),
    "causal": causal_mask(KEYS),
    "causal left": padding_mask(LEFT) & causal_mask(KEYS),
    "causal packed": padding_mask(PACKED) & causal_mask(KEYS),
    "window": padding_mask(RIGHT) & (DISTANCE > -20) & (DISTANCE < 0),
    "cross": padding_mask(from_lengths((40, 9, 1), QUERIES), from_lengths((33, 64, 2), KEYS)),
    "one query": causal_mask(1, KEYS) & (LEFT == 1)[:, None, None],
    "per head": PER_HEAD,
    "per head for all": PER_HEAD[:1],
    "nothing": torch.zeros(BATCH, 1, QUERIES, KEYS, dtype=torch.bool),
    "no keys": torch.zeros(BATCH, 1, QUERIES, 0, dtype=torch.bool),
}


def make_inputs(mask, dtype=torch.float32, heads=HEADS, groups=1, width=WIDTH, values=VALUES):
    """Random query, key, value, and a gradient of the output, where the mask is."""
    queries, keys = mask.shape[2:]
    shapes = (
        (BATCH, heads, queries, width),
        (BATCH, groups, keys, width),
        (BATCH, groups, keys, values),
        (BATCH, heads, queries, values),
    )
    return [torch.randn(shape).to(mask.device, dtype) for shape in shapes]


def run(attention, query, key, value, d_output, mask):
    """The output and the three gradients."""
    leaves = [x.detach().requires_grad_() for x in (query, key, value)]
    output = attention(*leaves, mask)
    output = output[0] if isinstance(output, tuple) else output  # a kernel gives no weights
    assert output.dtype == value.dtype
    return [output.detach(), *grad(output, leaves, d_output)]


def formula(query, key, value, mask):
    return scaled_dot_product_attention(query, key, value, mask)[0]


def exact(*inputs):
    *tensors, mask = inputs
    return run(formula, *(x.double() for x in tensors), mask)


def plain_half(query, key, value, mask):
    """What one would write in plain PyTorch, in half precision all the way."""
    group = query.shape[1] // key.shape[1]
    key, value = (x.repeat_interleave(group, dim=1) for x in (key, value))
    scores = (query @ key.mT) * query.shape[-1] ** -0.5
    alive = mask.any(dim=-1, keepdim=True)
    weights = scores.masked_fill(~mask & alive, -INF).softmax(dim=-1)
    return weights.masked_fill(~alive, 0.0) @ value


def never_used(mask, groups=1):
    """Queries that see nothing, (b h q 1), and keys that no head of their group sees, (b g k 1)."""
    mask = mask.expand(BATCH, HEADS, -1, -1)
    used = mask.any(dim=-2).unflatten(1, (groups, -1)).any(dim=2)
    return ~mask.any(dim=-1).unsqueeze(-1), ~used.unsqueeze(-1)


def assert_close(results, inputs, mask):
    """The formula's in float64, but for rounding: a few times epsilon of what was added up."""
    results = [result.double() for result in results]
    for got, wanted, size in zip(results, exact(*inputs, mask), sizes(*inputs, mask), strict=True):
        assert ((got - wanted).abs() <= ROUNDINGS * torch.finfo(torch.float32).eps * size).all()


ROUNDINGS = 2.0  # measured in the interpreter: 0.6


def sizes(query, key, value, d_output, mask):
    """What the output and the gradients are sums of, in absolute values, however much cancels.

    A weight is as wrong as its score, and a score as wrong as the products that it is a sum of.
    """
    group = query.shape[1] // key.shape[1]
    query, key, value, d_output = (x.double() for x in (query, key, value, d_output))
    key, value = (x.repeat_interleave(group, dim=1) for x in (key, value))
    scale = query.shape[-1] ** -0.5
    weights = (query @ key.mT * scale).masked_fill(~mask, -INF).softmax(dim=-1).nan_to_num()
    scores = 1 + query.abs() @ key.abs().mT * scale
    weights = weights * (scores + (weights * scores).sum(dim=-1, keepdim=True))
    d_weights = (d_output.abs() @ value.abs().mT).masked_fill(~mask, 0.0)
    d_scores = weights * (d_weights + (weights * d_weights).sum(dim=-1, keepdim=True)) * scale
    d_key, d_value = (
        x.unflatten(1, (-1, group)).sum(dim=2)
        for x in (d_scores.mT @ query.abs(), weights.mT @ d_output.abs())
    )
    return weights @ value.abs(), d_scores @ key.abs(), d_key, d_value


def assert_zero_where_unused(results, mask, groups=1):
    dead, unused = never_used(mask, groups)
    for x, where in zip(results, (dead, dead, unused, unused), strict=True):
        assert (x.masked_select(where) == 0.0).all()


@pytest.mark.slow
@pytest.mark.skipif(
    INTERPRETED or GPU,
    reason="the kernels run in this process, by TRITON_INTERPRET=1 or on the GPU",
)
def test_in_the_interpreter():
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", __file__]
    environment = os.environ | {"TRITON_INTERPRET": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert " passed" in done.stdout


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", MASKS)
def test_output_and_gradients_are_those_of_the_formula(name, device):
    mask = MASKS[name].to(device)
    inputs = make_inputs(mask)
    results = run(triton_attention, *inputs, mask)
    assert_close(results, inputs, mask)
    assert_zero_where_unused(results, mask)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(
    ("width", "values", "heads", "groups"),
    [(16, 16, 2, 2), (40, 100, 4, 2), (64, 64, 3, 1), (128, 128, 1, 1), (8, 3, 2, 1)],
)
def test_widths_and_groups(width, values, heads, groups, device):
    mask = MASKS["causal left"][:, :, 35:, :].expand(-1, heads, -1, -1).clone().to(device)
    mask[:, -1, :, :40] = False  # heads of a group need not see the same
    inputs = make_inputs(mask, heads=heads, groups=groups, width=width, values=values)
    assert_close(run(triton_attention, *inputs, mask), inputs, mask)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("length", [1, 31, 32, 33, 64])
def test_lengths_around_a_tile(length, device):
    """With scores of about -250, where exp underflows unless the maximum is taken off."""
    mask = (causal_mask(length) & (torch.arange(length) != 2)).to(device)
    query, key, value, d_output = make_inputs(mask)
    inputs = 7.1 + 0.1 * query, -7.1 + 0.1 * key, value, d_output
    assert_close(run(triton_attention, *inputs, mask), inputs, mask)


@pytest.mark.parametrize("device", DEVICES)
def test_strides_do_not_matter(device):
    mask = PER_HEAD.transpose(2, 3).contiguous().transpose(2, 3).to(device)
    query, key, value, d_output = make_inputs(mask)
    query = query.transpose(1, 2).contiguous().transpose(1, 2)
    key = torch.stack([key, key.flip(0)], dim=-1)[..., 0]
    value = value.mT.contiguous().mT
    d_output = d_output[:, :1, :1, :1].expand_as(d_output)  # as from a sum
    strange = [query, key, value, d_output]
    assert not any(x.is_contiguous() for x in [*strange, mask])
    expected = run(triton_attention, *(x.contiguous() for x in strange), mask.contiguous())
    for got, wanted in zip(run(triton_attention, *strange, mask), expected, strict=True):
        assert torch.equal(got, wanted)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(
    ("name", "poison"),
    [("holes", NAN), ("one query", 3e38), ("causal left", NAN), ("per head", INF)],
)
def test_what_the_mask_never_uses_reaches_nothing(name, poison, device):
    """The same bits forward and backward, whatever stands there, in the gradient too."""
    mask = MASKS[name].to(device)
    query, key, value, d_output = make_inputs(mask)
    expected = run(triton_attention, query, key, value, d_output, mask)
    dead, unused = never_used(mask)
    assert dead.any() or unused.any()
    dirty = [
        x.masked_fill(where, poison)
        for x, where in ((query, dead), (key, unused), (value, unused), (d_output, dead))
    ]
    results = run(triton_attention, *dirty, mask)
    for got, wanted in zip(results, expected, strict=True):
        assert torch.equal(got, wanted)
    assert_zero_where_unused(results, mask)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # numpy, of the NaN that are meant to be
@pytest.mark.parametrize("device", DEVICES)
def test_tiles_that_are_skipped_are_never_loaded(device):
    """Causal tiles: NaN in the last keys, which later queries do use, is met by these alone."""
    mask = causal_mask(96).to(device)
    query, key, value, d_output = make_inputs(mask)
    expected = run(triton_attention, query, key, value, d_output, mask)
    key[:, :, 64:] = value[:, :, 64:] = NAN
    output, d_query, *_ = run(triton_attention, query, key, value, d_output, mask)
    for got, wanted in ((output, expected[0]), (d_query, expected[1])):
        assert torch.equal(got[:, :, :64], wanted[:, :, :64])
        assert got[:, :, 64:].isnan().any()
    query, key, value, d_output = make_inputs(mask)
    expected = run(triton_attention, query, key, value, d_output, mask)
    query[:, :, :32] = d_output[:, :, :32] = NAN  # early queries see the first tile of keys only
    _, _, *gradients = run(triton_attention, query, key, value, d_output, mask)
    for got, wanted in zip(gradients, expected[2:], strict=True):
        assert torch.equal(got[:, :, 32:], wanted[:, :, 32:])
        assert got[:, :, :32].isnan().any()


@pytest.mark.parametrize("device", DEVICES)
def test_hidden_keys_lose_against_any_finite_score(device):
    """Even where the score of the only visible key is the lowest number there is."""
    query = torch.tensor([[[[2.0, 0.0, 0.0, 0.0]]]], device=device)  # / √4 = 1
    key = torch.zeros(1, 1, 2, 4, device=device)
    key[0, 0, 0, 0] = torch.finfo(torch.float32).min
    value = torch.tensor([[[[3.0], [INF]]]], device=device)
    mask = torch.tensor([[[[True, False]]]], device=device)
    assert triton_attention(query, key, value, mask)[0].item() == 3.0


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # numpy, of the overflow that is meant to be
@pytest.mark.parametrize("device", DEVICES)
def test_what_a_hidden_pair_would_overflow_to_reaches_no_gradient(device):
    """Its weight is 0, but the gradient of that weight would be infinite: 0 · ∞ = NaN."""
    mask = causal_mask(3).to(device)
    query, key, value, d_output = make_inputs(mask)
    value[:, :, 2], d_output[:, :, :2], d_output[:, :, 2] = 1e38, 10.0, 0.0
    inputs = query, key, value, d_output
    assert_close(run(triton_attention, *inputs, mask), inputs, mask)


@pytest.mark.parametrize(("device", "dtype"), HALF)
@pytest.mark.parametrize("name", ["holes", "causal packed", "per head"])
def test_half_precision_errs_at_most_twice_as_much_as_plain_torch(name, device, dtype):
    """The rule of FlashAttention's tests, with 192 and 320 keys too: S % 128 == 64."""
    masks = [MASKS[name]]
    if device == "cuda":
        real = from_lengths((100, 320), 320)
        masks += [padding_mask(real[:, :n]) & causal_mask(n) for n in (64, 192, 320)]
    for mask in (mask.to(device) for mask in masks):
        inputs = make_inputs(mask, dtype, width=64, values=64)
        results, expected = run(triton_attention, *inputs, mask), exact(*inputs, mask)
        plain = run(plain_half, *inputs, mask)
        assert_zero_where_unused(results, mask)
        for got, other, wanted in zip(results, plain, expected, strict=True):
            error, allowed = (got - wanted).abs().max(), 2 * (other - wanted).abs().max()
            rounding = torch.finfo(dtype).eps / 2 * wanted.abs().max()  # of the result itself
            assert error <= allowed + rounding


@pytest.mark.parametrize(("device", "dtype"), HALF)
def test_scores_beyond_float16(device, dtype):
    mask = MASKS["causal left"].to(device)
    query, key, value, d_output = make_inputs(mask, dtype)
    inputs = 300 + query, 300 + key, value, d_output
    results = run(triton_attention, *inputs, mask)
    assert all(x.isfinite().all() for x in results)
    output, wanted = results[0].double(), exact(*inputs, mask)[0]
    torch.testing.assert_close(output, wanted, atol=1e-2, rtol=1e-2)


@ON_GPU
def test_the_profiler_sees_our_kernels():
    mask = MASKS["holes"].cuda()
    inputs = make_inputs(mask, torch.bfloat16)
    activities = [torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=activities) as profile:
        run(triton_attention, *inputs, mask)
        torch.cuda.synchronize()
    names = {event.key for event in profile.key_averages()}
    for kernel in ("forward", "backward_query", "backward_key_value"):
        assert any(f"attention_{kernel}" in name for name in names)


def test_the_map_lists_whole_tiles_first_and_then_partial_ones():
    plan = tile_map(causal_mask(6, 7), 2)  # query i sees the keys up to i + 1
    assert (plan.query_tiles, plan.key_tiles) == (3, 4)
    assert plan.tiles.shape == (1, 1, 3, 4, 2, 2)
    assert plan.key_ends.tolist() == [[[[0, 1, 2], [0, 2, 3], [0, 3, 4]]]]
    for tile, keys in enumerate([[0, 1], [0, 1, 2], [0, 1, 2, 3]]):
        assert plan.keys[0, 0, tile, : len(keys)].tolist() == keys
    assert plan.query_ends.tolist() == [[[[0, 3, 3], [0, 2, 3], [0, 1, 2], [0, 0, 1]]]]
    assert plan.queries[0, 0, 1].tolist() == [1, 2, 0]
    assert plan.alive.tolist() == [[[True] * 6]]
    assert plan.used.tolist() == [[[True] * 7 + [False]]]


@ON_CPU
def test_a_map_is_made_once_for_all_layers_and_never_looked_up(monkeypatch):
    made = []
    monkeypatch.setattr(module, "tile_map", lambda *a: made.append(a) or tile_map(*a))
    mask, inputs = causal_mask(5), make_inputs(causal_mask(5))[:3]
    prepared = triton_attention.prepare(mask, inputs[0], inputs[0].shape[1])
    outputs = [triton_attention(*inputs, prepared)[0] for _ in range(3)]
    assert len(made) == 1
    mask.numpy()[..., 0] = False  # which leaves no trace at the mask
    assert torch.equal(outputs[0], outputs[2])
    assert not torch.equal(triton_attention(*inputs, mask)[0], outputs[0])
    assert len(made) == 2


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (
            lambda q, k, v, m: (q.double(), k.double(), v.double(), m),
            TypeError,
            "use attention = tiled",
        ),
        (lambda q, k, v, m: (q, k.half(), v, m), TypeError, "share one floating dtype"),
        (lambda q, k, v, m: (q, k, v, m.int()), TypeError, "mask must be bool"),
        (lambda q, k, v, m: (q, k, v, m.to("meta")), RuntimeError, "on one device"),
        pytest.param(
            lambda q, k, v, m: (q, k, v, m),
            RuntimeError,
            "needs a GPU, .* on cpu; use attention = .* TRITON_INTERPRET=1",
            marks=pytest.mark.skipif(INTERPRETED, reason="the interpreter takes it"),
        ),
        pytest.param(
            lambda q, k, v, m: (q.bfloat16(), k.bfloat16(), v.bfloat16(), m),
            TypeError,
            "interpreter gets bfloat16 wrong",
            marks=pytest.mark.skipif(not INTERPRETED, reason="only the interpreter refuses it"),
        ),
    ],
)
def test_types_and_devices_that_are_refused(change, error, message):
    mask = MASKS["right"][..., :QUERIES, :]
    with pytest.raises(error, match=message):
        triton_attention(*change(*make_inputs(mask)[:3], mask))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda q, k, v, m: (q, k, v, m[0]), "mask must be .batch, heads"),
        (lambda q, k, v, m: (q, k, v, m.mT), "mask must be .3 or 1, 2 or 1"),
        (lambda q, k, v, m: (q, k, v, m[..., :1]), "mask must be .3 or 1, 2 or 1"),
        (lambda q, k, v, m: (q, k, v[:, :, 1:], m), "expected query"),
        (lambda q, k, v, m: (q, k.repeat(1, 3, 1, 1), v.repeat(1, 3, 1, 1), m), "expected query"),
        (lambda q, k, v, m: (q, k[:, :0], v[:, :0], m), "expected query"),
        (
            lambda q, k, v, m: (q.repeat(1, 1, 1, 6), k.repeat(1, 1, 1, 6), v, m),
            "1 to 128, got .144, 20",
        ),
        (lambda q, k, v, m: (q, k, v[..., :0], m), "1 to 128, got .24, 0"),
    ],
)
def test_shapes_that_are_refused(change, message, device):
    mask = MASKS["cross"].to(device)
    with pytest.raises(ValueError, match=message):
        triton_attention(*change(*make_inputs(mask)[:3], mask))


@pytest.mark.parametrize("device", DEVICES)
def test_a_second_derivative_is_refused(device):
    mask = MASKS["one query"].to(device)
    query, key, value, _ = make_inputs(mask)
    output, _ = triton_attention(query.requires_grad_(), key, value, mask)
    (once,) = grad(output.square().sum(), query, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        once.sum().backward()


@pytest.fixture
def import_anew(monkeypatch):
    """Imports the module as if for the first time; the tests' own stays as it is."""
    monkeypatch.delitem(sys.modules, module.__name__)
    monkeypatch.setattr(kernels, "triton_attention", module)  # an import would set another
    return lambda: importlib.import_module(module.__name__)


def test_a_triton_without_named_tuples_is_refused(import_anew, monkeypatch):
    monkeypatch.setattr(module.triton, "__version__", "3.2.0")
    with pytest.raises(ImportError, match=r"Triton 3\.2\.0 is too old: torch 2\.7 or later brings"):
        import_anew()


def test_without_triton_the_message_names_the_extra(import_anew, monkeypatch):
    monkeypatch.setitem(sys.modules, "triton", None)
    with pytest.raises(ImportError, match="Triton is missing: pip install triton"):
        import_anew()
