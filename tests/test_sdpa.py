"""Around torch's own kernel: what it is given, what is cleaned before and after, and for whom."""

import pytest
import torch
from kernel_masks import poisoned
from torch._subclasses.fake_tensor import FakeTensorMode

from minitransformer import causal_mask, scaled_dot_product_attention
from minitransformer.kernels import attention_kernel, sdpa
from minitransformer.kernels.sdpa import SdpaMask, sdpa_attention, sdpa_mask
from minitransformer.masks import PreparedMask

BATCH, KEYS, WIDTH = 3, 7, 8
HEADS = [(4, 4), (4, 2), (2, 1), (3, 1), (0, 0)]  # of queries, of keys and values
EVERYTHING = torch.ones(1, 1, 5, KEYS, dtype=torch.bool)


def some_masks(heads: int, queries: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(queries)
    few = torch.rand(BATCH, max(heads, 1), queries, KEYS, generator=generator) < 0.25
    few[..., 2] = False  # a key that no query sees
    dead = causal_mask(queries, KEYS).expand(BATCH, -1, -1, -1).clone()
    dead[1] = False
    return {
        "everything": torch.ones(1, 1, queries, KEYS, dtype=torch.bool),
        "causal": causal_mask(queries, KEYS),
        "few": few[:, :1],
        "one for all rows": few[:1, :1],
        "per head": few,
        "a dead row": dead,
    }


@pytest.fixture(params=["read", "unread"])
def read(request, monkeypatch) -> bool:
    """Unread as on a GPU, where nothing may wait for a value."""
    if request.param == "unread":
        monkeypatch.setattr(sdpa, "may_read", lambda x: False)
    return request.param == "read"


@pytest.mark.parametrize("poison", [False, True])
@pytest.mark.parametrize("queries", [1, 2, 5])
@pytest.mark.parametrize(("heads", "kv_heads"), HEADS)
def test_it_is_the_formula_and_so_are_its_gradients(heads, kv_heads, queries, poison, read):
    value_width = 6 if queries == 2 else WIDTH  # of another, torch has another kernel
    inputs = (
        torch.randn(BATCH, heads, queries, WIDTH, dtype=torch.float64),
        torch.randn(BATCH, kv_heads, KEYS, WIDTH, dtype=torch.float64),
        torch.randn(BATCH, kv_heads, KEYS, value_width, dtype=torch.float64),
    )
    for what, mask in some_masks(heads, queries).items():
        results = []
        given = poisoned(inputs, mask) if poison else inputs
        for attention in (sdpa_attention, scaled_dot_product_attention):
            leaves = [x.clone().requires_grad_() for x in given]
            output = attention(*leaves, mask)[0]
            with torch.no_grad():
                assert torch.equal(attention(*leaves, mask)[0], output), what
            towards = torch.linspace(-1, 1, output.numel(), dtype=output.dtype).view_as(output)
            results.append([output, *torch.autograd.grad(output, leaves, towards)])
        for found, wanted in zip(*results, strict=True):
            torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-13, msg=what)


def test_what_a_mask_comes_to():
    """None where there is nothing to do; -inf where a query that sees something may not look."""
    assert sdpa_mask(EVERYTHING, 2, 4, torch.float64) == (None, None, None)
    mask = EVERYTHING.clone()
    mask[..., 1, :] = False
    bias, dead, unused = sdpa_mask(mask, 2, 4, torch.float64)
    assert torch.equal(bias, torch.zeros(1, 1, 5, KEYS, dtype=torch.float64))
    assert unused is None
    assert _places(dead) == [(0, slice(None), 1), (1, slice(None), 1)]
    mask = EVERYTHING.clone()
    mask[..., 2] = False
    bias, dead, unused = sdpa_mask(mask, 2, 4, torch.float16)
    assert bias.dtype == torch.float16
    assert (bias[..., 2] == -torch.inf).all()
    assert bias[mask].count_nonzero() == 0
    assert dead is None
    assert _places(unused) == [(0, slice(None), 2), (1, slice(None), 2)]
    mask = torch.ones(2, 4, 5, KEYS, dtype=torch.bool)
    mask[1, 3, 4] = False
    assert _places(sdpa_mask(mask, 2, 4, torch.float64).dead) == [(1, 3, 4)]


def _places(indices: tuple) -> list[tuple]:
    rows, heads, tokens = indices
    return [
        (row, heads if isinstance(heads, slice) else int(heads[i]), token)
        for i, (row, token) in enumerate(zip(rows.tolist(), tokens.tolist(), strict=True))
    ]


def test_a_mask_that_is_not_read_leaves_everything_to_do(monkeypatch):
    monkeypatch.setattr(sdpa, "may_read", lambda x: False)
    bias, dead, unused = sdpa_mask(EVERYTHING, 2, 4, torch.float64)
    assert torch.equal(bias, torch.zeros(1, 1, 5, KEYS, dtype=torch.float64))
    assert not dead.any()
    assert not unused.any()


@pytest.fixture
def calls(monkeypatch) -> list:
    """What torch's kernel is called with, and what it gives."""
    calls, attend = [], sdpa.fused_kernel

    def watch(*inputs, **options):
        calls.append((*inputs, attend(*inputs, **options)))
        return calls[-1][-1]

    monkeypatch.setattr(sdpa, "fused_kernel", watch)
    return calls


@pytest.mark.parametrize(("heads", "kv_heads"), HEADS[:-1])
def test_heads_that_share_a_key_are_so_many_queries_of_it(heads, kv_heads, calls):
    query = torch.randn(BATCH, heads, 5, WIDTH)
    key = torch.randn(BATCH, kv_heads, KEYS, WIDTH)
    one_key = torch.ones(1, 1, 5, 1, dtype=torch.bool)
    one_key[..., 2, :] = False
    some = EVERYTHING.clone()
    some[..., 3, 2] = False
    for mask in (EVERYTHING, some, one_key):
        keys = key[:, :, : mask.shape[3]]
        output, _ = sdpa_attention(query, keys, keys, mask)
        assert calls.pop()[0].shape == (BATCH, kv_heads, heads // kv_heads * 5, WIDTH)
        wanted = scaled_dot_product_attention(query, keys, keys, mask)[0]
        torch.testing.assert_close(output, wanted)


def test_on_a_gpu_heads_that_share_a_key_are_queries_of_it_only_one_at_a_time(calls):
    """Of more, they would need a mask of their own."""
    key = torch.empty(1, 2, KEYS, 1, device="meta")
    for queries, heads in ((1, 2), (2, 4)):
        query = torch.empty(1, 4, queries, 1, device="meta")
        mask = torch.ones(1, 1, queries, KEYS, dtype=torch.bool, device="meta")
        sdpa_attention(query, key, key, mask)
        assert calls.pop()[1].shape == (1, heads, KEYS, 1)


def test_what_is_finite_is_not_copied(calls, monkeypatch):
    """Neither where that was read, nor where it was promised; and zeros are written in place."""
    query, key, value = torch.randn(3, BATCH, 2, 5, WIDTH)
    mask = torch.ones(1, 1, 5, 5, dtype=torch.bool)
    mask[..., 2], mask[..., 3, :] = False, False
    value[:, :, 4] = float("nan")  # who sees it has to live with it
    output, _ = sdpa_attention(query, key, value, mask)
    for given, x in zip(calls.pop(), (query, key, value, output), strict=True):
        assert given.data_ptr() == x.data_ptr()
    key[:, :, 2] = float("nan")
    sdpa_attention(query, key, value, mask)
    assert calls.pop()[1].isfinite().all()
    monkeypatch.setattr(sdpa, "_stay_finite", None)  # nobody asks
    sdpa_attention(query, value, value, mask, finite=True)
    assert calls.pop()[1].data_ptr() == value.data_ptr()


def test_a_prepared_mask_may_be_of_another_dtype_than_the_queries():
    """Under autocast, say; the kernel of torch wants one of the queries'."""
    inputs = torch.randn(3, BATCH, 2, 5, WIDTH)
    mask = causal_mask(5)
    plan = SdpaMask(sdpa.as_bias(mask, torch.bfloat16), None, None)
    found = sdpa.compute_sdpa(*inputs, plan, False)
    torch.testing.assert_close(found, scaled_dot_product_attention(*inputs, mask)[0])


@pytest.mark.parametrize(
    ("numbers", "finite"),
    [
        ((1.0, 1.0, 1.0), True),
        ((1e25, 1.0, 1.0), True),
        ((1.0, 1e25, 1.0), True),
        ((1.0, 1.0, 1e38), True),
        ((1e19, 1e19, 1.0), True),
        ((1e19, 3e19, 1.0), False),  # twice their product is more than float32 holds
        ((float("inf"), 1.0, 1.0), False),
        ((1.0, float("nan"), 1.0), False),
        ((1.0, 1.0, float("-inf")), False),
    ],
)
def test_what_stays_finite(numbers, finite):
    """Of the values those count that are not seen: here the second of two."""
    query, key, value = (torch.full((1, 1, 2, 1), number).double() for number in numbers)
    unused = torch.tensor([0]), slice(None), torch.tensor([1])
    value[:, :, 0] = float("nan")
    assert sdpa._stay_finite(query, key, value, unused) == finite


def test_what_cannot_be_read_is_not_taken_for_finite(monkeypatch):
    x, unused = torch.ones(1, 1, 2, 1), (torch.tensor([0]), slice(None), torch.tensor([1]))
    assert sdpa._stay_finite(x, x, x, unused)
    monkeypatch.setattr(sdpa, "may_read", lambda x: False)
    assert not sdpa._stay_finite(x, x, x, unused)


def test_cudnn_is_never_asked(monkeypatch):
    """On tensors without numbers that say they are on a GPU; there no mask is read."""
    allowed = []

    def watch(*inputs, **options):
        allowed.append(torch.backends.cuda.cudnn_sdp_enabled())
        return attend(*inputs, **options)

    attend = torch.nn.functional.scaled_dot_product_attention
    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", watch)
    with FakeTensorMode():
        inputs = [torch.empty(2, 2, 120, 16, device="cuda", dtype=torch.float16) for _ in range(3)]
        mask = torch.empty(2, 1, 120, 120, device="cuda", dtype=torch.bool)
        for name in ("auto", "fused", "sdpa"):
            prepared = PreparedMask(mask, SdpaMask(None, None, None))
            output, _ = attention_kernel(name)(*inputs, prepared)
            assert (output.device.type, len(allowed)) == ("cuda", 1)
            assert not allowed.pop()
        sdpa.fused_kernel(*inputs, is_causal=True)
    assert allowed == [False]
    assert torch.backends.cuda.cudnn_sdp_enabled()
