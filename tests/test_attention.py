"""The promise of scaled_dot_product_attention, clause by clause, then the heads around it.

Where the mathematics is exact (a zero, a weight of one, a key that must not matter) the tests ask
for the same bits; only where sums are rounded do they allow a tolerance.

One thing is promised by nobody and tested by nobody: NaN in a *visible* key. With a causal mask
a NaN in the future is some other query's present, so its key is used and is multiplied, and
0 · NaN = NaN reaches the past. Only keys that no query sees can be left out.
"""

import pytest
import torch
from conftest import BATCH, HEADS, KEYS, LENGTHS, QUERIES, WIDTH, from_lengths
from torch import Tensor, nn
from torch.nn import functional as F

from minitransformer import (
    Config,
    MultiHeadAttention,
    causal_mask,
    padding_mask,
    record_attention,
    scaled_dot_product_attention,
)
from minitransformer.cache import Cache
from minitransformer.masks import PreparedMask
from minitransformer.positions import RotaryPositions, rotate

VALUES = 3  # the width of the values
DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
HALF = [torch.bfloat16, torch.float16]
# Of the output and the gradients. The most in 40 seeds on a CPU: 3.4, 2.6, 0.7 and 0.7 epsilon.
ROUNDING = {
    dtype: times * torch.finfo(dtype).eps
    for dtype, times in zip(DTYPES, (32, 16, 3, 3), strict=True)
}
NAN, INF = float("nan"), float("inf")

RIGHT, LEFT = from_lengths(LENGTHS, KEYS), from_lengths(LENGTHS, KEYS, side="left")
HOLES = torch.tensor([[1, 0, 1, 0, 0, 1, 0], [0] * 7, [0, 0, 1, 0, 1, 1, 1], [1] * 7])
PACKED = torch.tensor(
    [[1, 1, 2, 2, 2, 3, 0], [0, 1, 1, 2, 2, 2, 2], [1] * 7, [1, 2, 1, 2, 0, 3, 1]]
)
DISTANCE = torch.arange(KEYS) - torch.arange(KEYS).unsqueeze(1)
PER_HEAD = torch.rand(BATCH, HEADS, QUERIES, KEYS, generator=torch.manual_seed(1)) < 0.5
PER_HEAD[0, 1, 2] = PER_HEAD[1, 0, :, 3] = PER_HEAD[2, 1] = False  # a query, a key, a whole head

MASKS = {
    "everything": torch.ones(BATCH, 1, QUERIES, KEYS, dtype=torch.bool),
    "right": padding_mask(RIGHT),
    "left": padding_mask(LEFT),
    "holes": padding_mask(HOLES),
    "packed": padding_mask(PACKED),
    "causal": causal_mask(KEYS),
    "causal right": padding_mask(RIGHT) & causal_mask(KEYS),
    "causal left": padding_mask(LEFT) & causal_mask(KEYS),
    "causal packed": padding_mask(PACKED) & causal_mask(KEYS),
    "window left": padding_mask(LEFT) & (DISTANCE >= -2) & (DISTANCE < 0),
    "cross": padding_mask(from_lengths((5, 1, 3, 2), QUERIES), RIGHT),
    "cached": causal_mask(QUERIES, KEYS) & (LEFT == 1)[:, None, None],
    "per head": PER_HEAD,
    "per head for all": PER_HEAD[:1],
    "nothing": torch.zeros(BATCH, 1, QUERIES, KEYS, dtype=torch.bool),
    "no keys": torch.zeros(BATCH, 1, QUERIES, 0, dtype=torch.bool),
}


@pytest.fixture(params=MASKS)
def mask(request, device) -> Tensor:
    return MASKS[request.param].to(device)


@pytest.fixture(params=DTYPES, ids=str)
def dtype(request) -> torch.dtype:
    return request.param


def make_inputs(mask: Tensor, dtype=torch.float32) -> tuple[Tensor, Tensor, Tensor]:
    """A query, key and value of random numbers for a mask."""
    queries, keys = mask.shape[2:]
    query, key, value = (
        torch.randn(BATCH, HEADS, length, width, dtype=torch.float64)
        for length, width in ((queries, WIDTH), (keys, WIDTH), (keys, VALUES))
    )
    return tuple(x.to(mask.device, dtype) for x in (query, key, value))


def whole(mask: Tensor) -> Tensor:
    """The mask with an entry for every batch and head."""
    return mask.expand(BATCH, HEADS, -1, -1)


def projected(output: Tensor) -> Tensor:
    """A scalar that every entry of the output enters with a weight of its own."""
    weights = torch.arange(1.0, output.numel() + 1, device=output.device, dtype=torch.float64).cos()
    return (output * weights.reshape(output.shape).to(output.dtype)).sum()


def output_and_gradients(query, key, value, mask, attention=scaled_dot_product_attention):
    """The output, and the gradients of its projection to query, key and value."""
    leaves = [x.detach().clone().requires_grad_() for x in (query, key, value)]
    output, _ = attention(*leaves, mask)
    return output.detach(), *torch.autograd.grad(projected(output), leaves)


def torch_attention(query, key, value, mask):
    """The same by torch, in float64, and zeros for queries that see nothing."""
    alive = mask.any(dim=-1, keepdim=True)
    query, key, value = query.double(), key.double(), value.double()
    output = F.scaled_dot_product_attention(query, key, value, attn_mask=mask | ~alive)
    return output.masked_fill(~alive, 0.0), None


def identity_values(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """Values from which the output reads as the weights."""
    return torch.eye(mask.shape[3], dtype=dtype, device=mask.device).expand(BATCH, HEADS, -1, -1)


def poisoned(x: Tensor, where: Tensor, poison: str) -> Tensor:
    big = torch.finfo(x.dtype).max
    content = {"noise": 1e4 * torch.randn_like(x), "big": big, "inf": INF, "-inf": -INF, "nan": NAN}
    return torch.where(where, content[poison], x).to(x.dtype)


def assert_same(results, expected):
    for got, wanted in zip(results, expected, strict=True):
        assert torch.equal(got, wanted)


def assert_close(results, expected, tolerance: float):
    for got, wanted in zip(results, expected, strict=True):
        torch.testing.assert_close(got, wanted.to(got.dtype), atol=tolerance, rtol=tolerance)


# ---- the formula -------------------------------------------------------------------------------


def test_weights_by_hand(device):
    """One feature, so √d = 1: scores 0 and 1 give weights 1 / (1 + e) and e / (1 + e)."""
    query = torch.tensor([[[[1.0]]]], dtype=torch.float64, device=device)
    key = torch.tensor([[[[0.0], [1.0], [5.0]]]], dtype=torch.float64, device=device)
    value = torch.tensor([[[[10.0], [20.0], [7.0]]]], dtype=torch.float64, device=device)
    mask = torch.tensor([[[[True, True, False]]]], device=device)
    output, weights = scaled_dot_product_attention(query, key, value, mask)
    e = torch.tensor(1.0, dtype=torch.float64).exp().item()
    by_hand = torch.tensor([1, e, 0], dtype=torch.float64, device=device) / (1 + e)
    torch.testing.assert_close(weights[0, 0, 0], by_hand, atol=ROUNDING[torch.float64], rtol=0)
    torch.testing.assert_close(output.item(), (10 + 20 * e) / (1 + e))


def test_scores_are_divided_by_the_root_of_the_width(device):
    """Four ones times four ones is 4, divided by √4 is 2."""
    query, key = torch.ones(1, 1, 1, 4, device=device), torch.ones(1, 1, 2, 4, device=device)
    key[:, :, 1] = 0.0
    mask = torch.ones(1, 1, 1, 2, dtype=torch.bool, device=device)
    _, weights = scaled_dot_product_attention(query, key, key, mask)
    odds = torch.tensor([2.0, 0.0]).exp()
    torch.testing.assert_close(weights[0, 0, 0].cpu(), odds / odds.sum())


def test_output_and_gradients_equal_torch(mask, dtype):
    inputs = make_inputs(mask, dtype)
    expected = output_and_gradients(*inputs, mask, attention=torch_attention)
    assert_close(output_and_gradients(*inputs, mask), expected, ROUNDING[dtype])


def test_a_mask_of_ones_equals_no_mask(device):
    mask = MASKS["everything"].to(device)
    query, key, value = make_inputs(mask)
    output, _ = scaled_dot_product_attention(query, key, value, mask)
    expected = F.scaled_dot_product_attention(query, key, value)
    assert_close([output], [expected], ROUNDING[torch.float32])


@pytest.mark.parametrize("name", ["per head", "causal left", "window left", "nothing"])
def test_gradcheck(device, name):
    """Through the output and through the weights, with queries that see nothing among them."""
    mask = MASKS[name][:, :, :4, :5].to(device)
    inputs = [x.requires_grad_() for x in make_inputs(mask, torch.float64)]
    assert torch.autograd.gradcheck(scaled_dot_product_attention, (*inputs, mask))


def test_results_have_the_type_and_shape_of_the_values(mask, dtype):
    output, weights = scaled_dot_product_attention(*make_inputs(mask, dtype), mask)
    assert output.dtype == weights.dtype == dtype
    assert output.shape == (BATCH, HEADS, mask.shape[2], VALUES)
    assert weights.shape == whole(mask).shape


def test_float64_is_computed_in_float64(mask):
    inputs = make_inputs(mask, torch.float64)
    output, weights = scaled_dot_product_attention(*inputs, mask)
    rounded, _ = scaled_dot_product_attention(*(x.float() for x in inputs), mask)
    assert_close([output], torch_attention(*inputs, mask)[:1], 1e-15 * KEYS)
    if mask.any():
        assert (output - rounded).abs().max() > 1e-10
        assert not torch.equal(weights, weights.float().double())


def test_float16_is_computed_in_float32_up_to_the_weights(mask):
    """The weights are those of float32, rounded once."""
    inputs = make_inputs(mask, torch.float16)
    _, weights = scaled_dot_product_attention(*inputs, mask)
    _, precise = scaled_dot_product_attention(*(x.float() for x in inputs), mask)
    assert torch.equal(weights, precise.half())


def test_inputs_and_mask_are_not_modified(mask, dtype):
    inputs = [*make_inputs(mask, dtype), mask]
    copies = [x.clone() for x in inputs]
    scaled_dot_product_attention(*inputs, dropout_p=0.5)
    assert_same(inputs, copies)


# ---- the weights -------------------------------------------------------------------------------


def test_exactly_the_allowed_keys_have_weight(mask, dtype):
    """Nothing leaks, and nothing that may be seen is hidden."""
    _, weights = scaled_dot_product_attention(*make_inputs(mask, dtype), mask)
    assert torch.equal(weights != 0.0, whole(mask))


def test_weights_sum_to_one_or_to_nothing(mask, dtype):
    _, weights = scaled_dot_product_attention(*make_inputs(mask, dtype), mask)
    sums, ones = weights.double().sum(dim=-1), whole(mask).any(dim=-1).double()
    assert (sums - ones).abs().max() <= KEYS * torch.finfo(dtype).eps


def test_output_is_made_with_the_returned_weights(mask, dtype):
    """Values of c · I, a power of two, let the output read as the weights, exactly."""
    query, key, _ = make_inputs(mask, dtype)
    c = 2.0**15 if dtype == torch.float16 else 2.0**100
    output, weights = scaled_dot_product_attention(
        query, key, c * identity_values(mask, dtype), mask
    )
    assert torch.equal(output, weights * c)


def test_backward_uses_the_returned_weights(mask, dtype):
    """d output[i] / d value[j] is the weight of key j for query i: a one-hot gradient reads it."""
    query, key, value = make_inputs(mask, dtype)
    output, weights = scaled_dot_product_attention(query, key, value.requires_grad_(), mask)
    for i in range(mask.shape[2]):
        one_hot = torch.zeros_like(output)
        one_hot[:, :, i] = 1.0
        (gradient,) = torch.autograd.grad(output, value, one_hot, retain_graph=True)
        assert torch.equal(gradient, weights[:, :, i, :, None].expand_as(gradient))


@pytest.mark.parametrize("size", [2e4, 4e4, 1e10, 1e38])
def test_forbidden_keys_lose_against_any_finite_score(mask, dtype, size):
    """Query i reads entry i of each key: -size where allowed, +size where forbidden."""
    if size > torch.finfo(dtype).max:
        pytest.skip("no such number in float16")
    queries = mask.shape[2]
    query = torch.eye(queries, dtype=dtype, device=mask.device).expand(BATCH, HEADS, -1, -1)
    allowed = whole(mask).mT
    key = torch.where(allowed, -size, size).to(dtype)
    _, weights = scaled_dot_product_attention(query, key, key, mask)
    even = whole(mask).double() / whole(mask).sum(dim=-1, keepdim=True).clamp(min=1)
    assert (weights[~whole(mask)] == 0.0).all()
    torch.testing.assert_close(weights, even.to(dtype), atol=0, rtol=2 * torch.finfo(dtype).eps)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_forbidden_keys_lose_against_the_lowest_finite_score(device, dtype):
    """What no finite stand-in for -inf can do."""
    query = torch.tensor([[[[2.0, 0.0, 0.0, 0.0]]]], dtype=dtype, device=device)  # / √4 = 1
    key = torch.zeros(1, 1, 2, 4, dtype=dtype, device=device)
    key[0, 0, 0, 0] = torch.finfo(dtype).min
    mask = torch.tensor([[[[True, False]]]], device=device)
    _, weights = scaled_dot_product_attention(query, key, key, mask)
    assert weights.flatten().tolist() == [1.0, 0.0]


@pytest.mark.parametrize("dtype", HALF, ids=str)
def test_scores_beyond_float16_are_right(device, dtype):
    mask = MASKS["causal left"].to(device)
    query, key, value = make_inputs(mask, dtype)
    query, key = 300 + query, 300 + key
    assert query[0, 0, 0].float() @ key[0, 0, 0].float() > 65504
    results = output_and_gradients(query, key, value, mask)
    expected = output_and_gradients(query, key, value, mask, attention=torch_attention)
    assert_close(results[:1], expected[:1], 1e-2)
    assert all(x.isfinite().all() for x in results)


def test_one_visible_key_gives_exactly_its_value(device, dtype):
    chosen = torch.randint(0, KEYS, (BATCH, HEADS, QUERIES), device=device)
    mask = F.one_hot(chosen, KEYS).bool()
    query, key, value = make_inputs(mask, dtype)
    output, _ = scaled_dot_product_attention(100 * query, key, value, mask)
    expected = value.gather(2, chosen.unsqueeze(-1).expand(-1, -1, -1, VALUES))
    assert torch.equal(output, expected)


def test_lengths_beyond_any_block(device, dtype):
    length = 300
    real = from_lengths((257, 300, 0, 64), length, device=device)
    for mask in (padding_mask(real), padding_mask(real) & causal_mask(length, device=device)):
        output, weights = scaled_dot_product_attention(*make_inputs(mask, dtype), mask)
        assert output.isfinite().all()
        assert (weights[~whole(mask)] == 0.0).all()


@pytest.mark.parametrize("length", [1, 2, 3, 15, 16, 17, 63, 64, 65, 127, 128, 129, 192])
def test_lengths_around_block_sizes_with_low_scores(device, length):
    """All scores about -250, where exp underflows: softmax must subtract the maximum."""
    for dtype, rounding in ((torch.float32, 1e-3), (torch.float16, 1e-2)):
        real = from_lengths((length, max(length - 1, 1), 0, (length + 1) // 2), length)
        mask = padding_mask(real).to(device)
        query, key, value = make_inputs(mask, dtype)
        query, key = 9.4 + 0.1 * query, -9.4 + 0.1 * key
        results = output_and_gradients(query, key, value, mask)
        expected = output_and_gradients(query, key, value, mask, attention=torch_attention)
        for got, wanted in zip(results, expected, strict=True):
            assert (got - wanted).abs().max() <= rounding * wanted.abs().max() + 1e-5


# ---- queries that see nothing --------------------------------------------------------------------


def test_a_query_that_sees_nothing_gets_exactly_zero(mask, dtype):
    output, weights = scaled_dot_product_attention(*make_inputs(mask, dtype), mask)
    dead = ~whole(mask).any(dim=-1)
    assert (output[dead] == 0.0).all()
    assert (weights[dead] == 0.0).all()


def test_gradients_are_finite_and_zero_for_queries_that_see_nothing(mask, dtype):
    _, *gradients = output_and_gradients(*make_inputs(mask, dtype), mask)
    assert all(gradient.isfinite().all() for gradient in gradients)
    assert (gradients[0][~whole(mask).any(dim=-1)] == 0.0).all()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_a_query_that_sees_nothing_cannot_overflow(device, dtype):
    """It meets the keys that others see, however large; its score must be 0, not infinite."""
    mask = MASKS["causal left"].to(device)
    query, key, value = make_inputs(mask, dtype)
    query, key = 1e-30 * query, torch.full_like(key, torch.finfo(dtype).max / 2)
    results = output_and_gradients(query, key, 0.01 * value, mask)
    assert all(x.isfinite().all() for x in results)


@pytest.mark.parametrize("poison", ["noise", "nan"])
def test_no_nan_inside_the_graph(mask, dtype, poison):
    """With NaN in padding too. Gradients come in through the weights as well."""
    query, key, value = make_inputs(mask, dtype)
    dead, unused = ~mask.any(dim=-1, keepdim=True), ~mask.any(dim=-2).unsqueeze(-1)
    query, key, value = (
        poisoned(x, where, poison).requires_grad_()
        for x, where in ((query, dead), (key, unused), (value, unused))
    )
    with torch.autograd.set_detect_anomaly(True, check_nan=True):
        output, weights = scaled_dot_product_attention(query, key, value, mask)
        (projected(output) + projected(weights)).backward()


# ---- what is hidden ------------------------------------------------------------------------------


@pytest.mark.parametrize("poison", ["noise", "big", "inf", "-inf", "nan"])
def test_what_the_mask_never_uses_reaches_nothing(mask, dtype, poison):
    """In queries, keys, values, or all of them: the same bits forward and backward, and no
    gradient comes back."""
    clean = make_inputs(mask, dtype)
    expected = output_and_gradients(*clean, mask)
    dead, unused = ~mask.any(dim=-1, keepdim=True), ~mask.any(dim=-2).unsqueeze(-1)
    dirty = [
        poisoned(x, where, poison) for x, where in zip(clean, (dead, unused, unused), strict=True)
    ]
    for spots in ({0}, {1}, {2}, {0, 1, 2}):
        inputs = [dirty[n] if n in spots else clean[n] for n in range(3)]
        results = output_and_gradients(*inputs, mask)
        assert_same(results, expected)
        for gradient, where in zip(results[1:], (dead, unused, unused), strict=True):
            assert (gradient[where.expand_as(gradient)] == 0.0).all()


def test_a_query_depends_on_its_visible_keys_alone(mask, dtype):
    """The Jacobian: exactly zero to hidden keys and to other queries, not zero to visible ones."""
    inputs = [x.requires_grad_() for x in make_inputs(mask, dtype)]
    output, _ = scaled_dot_product_attention(*inputs, mask)
    for i in range(mask.shape[2]):
        visible = whole(mask)[:, :, i]
        to_query, to_key, to_value = torch.autograd.grad(
            projected(output[:, :, i]), inputs, retain_graph=True
        )
        others = torch.arange(mask.shape[2], device=mask.device) != i
        several = visible & (visible.sum(dim=-1, keepdim=True) > 1)  # a lone key's weight is 1
        assert (to_query[:, :, others] == 0.0).all()
        assert torch.equal((to_value != 0.0).any(dim=-1), visible)
        assert torch.equal((to_key != 0.0).any(dim=-1), several)


def test_a_query_keeps_its_bits_when_hidden_keys_change(mask, dtype):
    """Hidden from this query; others may see them: the future, or another document."""
    query, key, value = make_inputs(mask, dtype)
    output, _ = scaled_dot_product_attention(query, key, value, mask)
    for i in range(mask.shape[2]):
        hidden = ~whole(mask)[:, :, i].unsqueeze(-1)
        dirty_key, dirty_value = (poisoned(x, hidden, "noise") for x in (key, value))
        changed, _ = scaled_dot_product_attention(query, dirty_key, dirty_value, mask)
        assert torch.equal(changed[:, :, i], output[:, :, i])


# ---- the same tokens in other surroundings -------------------------------------------------------


@pytest.mark.parametrize("causal", [False, True], ids=["full", "causal"])
@pytest.mark.parametrize("name", ["RIGHT", "LEFT", "HOLES"])
def test_each_row_equals_itself_alone_without_padding(device, name, causal):
    """Outputs and gradients: padding, its side, holes and the other rows change nothing."""
    attention_mask = {"RIGHT": RIGHT, "LEFT": LEFT, "HOLES": HOLES}[name].to(device)
    order = causal_mask(KEYS, device=device) if causal else True
    mask = padding_mask(attention_mask) & order
    inputs = make_inputs(mask, torch.float64)
    output, weights = scaled_dot_product_attention(*inputs, mask)
    for row, real in enumerate(attention_mask.bool()):
        alone = [x[row : row + 1, :, real] for x in inputs]
        count = int(real.sum())
        mask_alone = torch.ones(1, 1, count, count, dtype=torch.bool, device=device)
        if causal:
            mask_alone = causal_mask(count, device=device)
        expected = scaled_dot_product_attention(*alone, mask_alone)
        results = output[row : row + 1, :, real], weights[row : row + 1, :, real][..., real]
        assert_close(results, expected, ROUNDING[torch.float64])


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("amount", [1, 3, 9, 60])
def test_the_amount_of_padding_changes_nothing(device, dtype, side, amount):
    """Outputs and gradients."""
    mask = MASKS["causal right"].to(device)
    inputs = make_inputs(mask, dtype)
    sides = (0, amount) if side == "right" else (amount, 0)
    longer_mask = padding_mask(F.pad(RIGHT, sides)) & causal_mask(KEYS + amount)
    longer = make_inputs(longer_mask.to(device), dtype)  # random numbers at the padding
    here = slice(0, KEYS) if side == "right" else slice(amount, None)
    for x, long in zip(inputs, longer, strict=True):
        long[:, :, here] = x

    def tokens_only(query, key, value, mask):
        output, weights = scaled_dot_product_attention(query, key, value, mask)
        return output[:, :, here], weights

    results = output_and_gradients(*longer, longer_mask.to(device), tokens_only)
    expected = output_and_gradients(*inputs, mask)
    assert_close(results[:1], expected[:1], ROUNDING[dtype])
    assert_close((x[:, :, here] for x in results[1:]), expected[1:], ROUNDING[dtype])


def test_a_row_does_not_depend_on_its_batch(mask):
    inputs = make_inputs(mask)
    output, _ = scaled_dot_product_attention(*inputs, mask)
    for row in range(BATCH):
        own_mask = mask.expand(BATCH, -1, -1, -1)[row : row + 1]
        alone, _ = scaled_dot_product_attention(*(x[row : row + 1] for x in inputs), own_mask)
        assert_close([alone], [output[row : row + 1]], ROUNDING[torch.float32])


def test_the_order_of_keys_does_not_matter(mask):
    query, key, value = make_inputs(mask)
    output, weights = scaled_dot_product_attention(query, key, value, mask)
    order = torch.randperm(mask.shape[3], device=mask.device)
    permuted = scaled_dot_product_attention(
        query, key[:, :, order], value[:, :, order], mask[..., order]
    )
    assert_close(permuted, (output, weights[..., order]), ROUNDING[torch.float32])


def test_cached_decoding_equals_the_last_queries_of_the_whole(device):
    whole_mask = MASKS["causal left"].to(device)
    query, key, value = make_inputs(whole_mask)
    expected = scaled_dot_product_attention(query, key, value, whole_mask)
    for last in (1, 3):
        mask = causal_mask(last, KEYS, device) & (LEFT == 1)[:, None, None].to(device)
        cached = scaled_dot_product_attention(query[:, :, -last:], key, value, mask)
        assert_close(cached, (x[:, :, -last:] for x in expected), ROUNDING[torch.float32])


# ---- tensors that share memory, masks that broadcast ---------------------------------------------


def test_a_broadcast_mask_equals_the_same_mask_written_out(mask, dtype):
    """(1, H, Q, K), (B, 1, Q, K), an expanded mask of stride 0 and a full one: the same bits."""
    inputs = make_inputs(mask, dtype)
    expected = output_and_gradients(*inputs, mask)
    for same in (whole(mask), whole(mask).clone(), whole(mask).mT.contiguous().mT):
        assert_same(output_and_gradients(*inputs, same), expected)


def test_strided_and_expanded_inputs(mask):
    inputs = make_inputs(mask)
    expected = scaled_dot_product_attention(*inputs, mask)
    strided = [x.mT.contiguous().mT for x in inputs]
    assert_close(scaled_dot_product_attention(*strided, mask), expected, 1e-6)

    expanded = [x[:1, :, :1].expand_as(x) for x in inputs]
    expected = scaled_dot_product_attention(*(x.clone() for x in expanded), mask)
    assert_close(scaled_dot_product_attention(*expanded, mask), expected, 1e-6)


def test_a_batch_of_nothing():
    x = torch.randn(0, HEADS, QUERIES, WIDTH)
    output, weights = scaled_dot_product_attention(x, x, x, causal_mask(QUERIES))
    assert output.shape == x.shape
    assert weights.shape == (0, HEADS, QUERIES, QUERIES)


# ---- dropout -------------------------------------------------------------------------------------


@pytest.mark.parametrize("dropout_p", [0.3, 0.9, 1.0])
def test_dropout_never_brings_a_hidden_key_back(mask, dtype, dropout_p):
    query, key, _ = make_inputs(mask, dtype)
    value = identity_values(mask, dtype)
    output, weights = scaled_dot_product_attention(query, key, value, mask, dropout_p)
    assert (output[~whole(mask)] == 0.0).all()
    _, clean = scaled_dot_product_attention(query, key, value, mask)
    assert torch.equal(weights, clean)  # those before dropout
    assert output.isfinite().all()


def test_dropout_drops_and_scales_up_what_stays(device):
    mask = MASKS["per head"].to(device)
    query, key, _ = make_inputs(mask, torch.float64)
    value, p, repeats = identity_values(mask, torch.float64), 0.25, 1000
    outputs = torch.stack(
        [scaled_dot_product_attention(query, key, value, mask, p)[0] for _ in range(repeats)]
    )
    _, weights = scaled_dot_product_attention(query, key, value, mask)
    kept = outputs != 0.0
    torch.testing.assert_close(outputs, torch.where(kept, weights / (1 - p), 0.0))
    trials = repeats * int(mask.sum())
    assert abs(int(kept.sum()) - trials * (1 - p)) < 4 * (trials * p * (1 - p)) ** 0.5
    spread = weights * (p / (1 - p) / repeats) ** 0.5
    assert ((outputs.mean(dim=0) - weights).abs() <= 5 * spread).all()


def test_dropout_is_off_unless_asked_for(mask):
    inputs = make_inputs(mask)
    again = scaled_dot_product_attention(*inputs, mask, dropout_p=0.0)
    assert_same(scaled_dot_product_attention(*inputs, mask), again)


# ---- autocast ------------------------------------------------------------------------------------


def autocast_types(device: torch.device) -> list[torch.dtype]:
    return [torch.bfloat16] if device.type == "cpu" else HALF


def test_autocast_does_not_reach_attention(mask, dtype):
    """The same bits with and without it, backward too (which torch wants outside of it)."""
    inputs = make_inputs(mask, dtype)
    expected = output_and_gradients(*inputs, mask)
    for low in autocast_types(mask.device):
        autocast = torch.autocast(mask.device.type, dtype=low)
        results = output_and_gradients(*inputs, mask, autocast(scaled_dot_product_attention))
        assert_same(results, expected)


def test_heads_under_autocast_survive_large_scores(device):
    """Linear layers give half precision there; what attention makes of it must not overflow."""
    attention = MultiHeadAttention(WIDTH, HEADS).to(device)
    x = 300 * torch.randn(BATCH, KEYS, WIDTH, device=device)
    mask = MASKS["causal left"].to(device)
    for low in autocast_types(device):
        with torch.autocast(device.type, dtype=low), record_attention(attention) as maps:
            output = attention(x, x, mask)
        assert maps[""].dtype == output.dtype == low
        assert output.isfinite().all()
        assert (maps[""][~whole(mask)] == 0.0).all()


# ---- misuse --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("mask", "error", "message"),
    [
        (None, TypeError, "mask must be a tensor, got NoneType"),
        (torch.ones(4, 1, 5, 7), TypeError, r"mask must be bool .* got torch.float32; .* padding_"),
        (torch.ones(4, 1, 5, 7).long(), TypeError, r"mask must be bool .* got torch.int64"),
        (torch.ones(4, 7).bool(), ValueError, r"shape \(4, 7\); for a 0/1 attention_mask call"),
        (torch.ones(4, 5, 7).bool(), ValueError, r"\(batch, heads, queries, keys\), got shape"),
        (torch.ones(1, 4, 1, 5, 7).bool(), ValueError, r"got shape \(1, 4, 1, 5, 7\)"),
        (torch.ones(4, 1, 7, 5).bool(), ValueError, r"5 queries, 7 keys\), got \(4, 1, 7, 5\)"),
        (torch.ones(4, 1, 1, 7).bool(), ValueError, r"mask must be \(4 or 1, 2 or 1, 5 queries"),
        (torch.ones(4, 1, 5, 1).bool(), ValueError, r"got \(4, 1, 5, 1\)"),
        (torch.ones(4, 1, 1, 1).bool(), ValueError, r"got \(4, 1, 1, 1\)"),
        (torch.ones(4, 1, 5, 6).bool(), ValueError, r"got \(4, 1, 5, 6\)"),
        (torch.ones(2, 1, 5, 7).bool(), ValueError, r"got \(2, 1, 5, 7\)"),
        (torch.ones(4, 4, 5, 7).bool(), ValueError, r"got \(4, 4, 5, 7\)"),
        (torch.ones(1, 4, 5, 7).bool(), ValueError, r"got \(1, 4, 5, 7\)"),
        (torch.ones(8, 1, 5, 7).bool(), ValueError, r"got \(8, 1, 5, 7\)"),
    ],
)
def test_masks_that_are_refused(mask, error, message):
    with pytest.raises(error, match=message):
        scaled_dot_product_attention(*make_inputs(MASKS["everything"]), mask)


@pytest.mark.parametrize("size", [4, 2])
def test_an_attention_mask_is_refused_where_batch_equals_length(size):
    """(B, S) with B = S, and as many heads too, would broadcast into something else silently."""
    x = torch.randn(size, size, size, WIDTH)
    with pytest.raises(ValueError, match=r"call padding_mask\(\)"):
        scaled_dot_product_attention(x, x, x, torch.ones(size, size).bool())


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        ([(4, 2, 8), (4, 2, 7, 8), (4, 2, 7, 3)], r"query .*\(batch, heads, length, width\)"),
        ([(4, 2, 5, 8), (4, 7, 8), (4, 2, 7, 3)], r"key must be .* got shape \(4, 7, 8\)$"),
        ([(4, 2, 5, 8), (4, 2, 7, 8), (7, 3)], r"value must be .* got shape \(7, 3\)$"),
        ([(4, 2, 5, 8), (4, 2, 7, 6), (4, 2, 7, 3)], r"got \(4, 2, 5, 8\), \(4, 2, 7, 6\) and"),
        ([(4, 2, 5, 8), (4, 2, 6, 8), (4, 2, 7, 3)], r"expected query \(B,H,Q,D\), key \(B,G,K,D"),
        ([(4, 2, 5, 8), (4, 4, 7, 8), (4, 4, 7, 3)], r"\(4, 4, 7, 8\) and \(4, 4, 7, 3\)"),
        ([(4, 2, 5, 8), (4, 0, 7, 8), (4, 0, 7, 3)], r"H is a multiple of G"),
        ([(4, 2, 5, 8), (4, 2, 7, 8), (4, 1, 7, 3)], r"\(4, 1, 7, 3\)"),
        ([(4, 2, 5, 8), (1, 2, 7, 8), (1, 2, 7, 3)], r"\(1, 2, 7, 8\)"),
        ([(4, 2, 5, 8), (4, 2, 7, 8), (1, 2, 7, 3)], r"\(1, 2, 7, 3\)"),
        ([(4, 5, 2, 8), (4, 7, 2, 8), (4, 7, 2, 3)], r"expected query"),
        ([(4, 2, 6, 8), (4, 2, 7, 8), (4, 2, 7, 3)], r"6 queries, 7 keys\)"),
    ],
)
def test_shapes_that_are_refused(shapes, message):
    with pytest.raises(ValueError, match=message):
        scaled_dot_product_attention(*(torch.randn(s) for s in shapes), MASKS["everything"])


@pytest.mark.parametrize("odd", [0, 1, 2])
def test_mixed_types_are_refused(odd):
    inputs = list(make_inputs(MASKS["everything"]))
    inputs[odd] = inputs[odd].half()
    with pytest.raises(TypeError, match=r"share one floating dtype, got .*float16"):
        scaled_dot_product_attention(*inputs, MASKS["everything"])


@pytest.mark.parametrize("dtype", [torch.int64, torch.bool, torch.complex64])
def test_other_than_floating_types_are_refused(dtype):
    inputs = [x.to(dtype) for x in make_inputs(MASKS["everything"])]
    with pytest.raises(TypeError, match=f"floating dtype, got {dtype}"):
        scaled_dot_product_attention(*inputs, MASKS["everything"])


@pytest.mark.parametrize("position", [0, 1, 2])
def test_lists_are_refused(position):
    inputs = list(make_inputs(MASKS["everything"]))
    inputs[position] = inputs[position].tolist()
    name = ("query", "key", "value")[position]
    with pytest.raises(TypeError, match=f"^{name} must be a tensor, got list"):
        scaled_dot_product_attention(*inputs, MASKS["everything"])


def test_forgetting_the_mask_is_an_error():
    query, key, value = make_inputs(MASKS["everything"])
    with pytest.raises(TypeError, match="mask"):
        scaled_dot_product_attention(query, key, value)
    with pytest.raises(TypeError, match="mask"):
        MultiHeadAttention(WIDTH, HEADS)(query[:, 0], key[:, 0])


# ---- MultiHeadAttention --------------------------------------------------------------------------

D_MODEL, MANY_HEADS = 24, 6


def make_heads(device, num_kv_heads=None, **options) -> MultiHeadAttention:
    """In float64 and with biases that are not zero, which torch's initialization hides."""
    heads = MultiHeadAttention(D_MODEL, MANY_HEADS, num_kv_heads, **options)
    for parameter in heads.parameters():
        nn.init.normal_(parameter, std=0.3)
    return heads.to(device, torch.float64)


def make_sequences(mask: Tensor) -> tuple[Tensor, Tensor]:
    """An x and a memory of random numbers for a mask."""
    queries, keys = mask.shape[2:]
    x = torch.randn(BATCH, queries, D_MODEL, dtype=torch.float64, device=mask.device)
    return x, torch.randn(BATCH, keys, D_MODEL, dtype=torch.float64, device=mask.device)


def torch_heads(ours: MultiHeadAttention) -> nn.MultiheadAttention:
    """torch's module with our weights."""
    bias = ours.query.bias is not None
    theirs = nn.MultiheadAttention(D_MODEL, MANY_HEADS, bias=bias, batch_first=True)
    theirs = theirs.to(ours.query.weight)
    parts = [ours.query, ours.key, ours.value]
    with torch.no_grad():
        theirs.in_proj_weight.copy_(torch.cat([part.weight for part in parts]))
        theirs.out_proj.weight.copy_(ours.output.weight)
        if bias:
            theirs.in_proj_bias.copy_(torch.cat([part.bias for part in parts]))
            theirs.out_proj.bias.copy_(ours.output.bias)
    return theirs


@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no bias"])
@pytest.mark.parametrize("name", ["everything", "causal", "cached"])
def test_heads_equal_torch(device, name, bias):
    """Outputs, weights, and the gradients of inputs and parameters; memory is not x."""
    mask = MASKS[name].to(device)
    mask = mask | ~mask.any(dim=-1, keepdim=True)  # torch gives NaN to queries that see nothing
    ours = make_heads(device, bias=bias)
    theirs = torch_heads(ours)
    inputs = [x.requires_grad_() for x in make_sequences(mask)]
    with record_attention(ours) as maps:
        output = ours(*inputs, mask)
    hidden = ~mask.expand(BATCH, MANY_HEADS, -1, -1).flatten(0, 1)
    wanted, wanted_weights = theirs(
        inputs[0], inputs[1], inputs[1], attn_mask=hidden, average_attn_weights=False
    )
    assert_close((output, maps[""]), (wanted, wanted_weights), 1e-13)

    names = ["weight", "bias"] if bias else ["weight"]
    parts = [ours.query, ours.key, ours.value]
    parameters = [getattr(part, n) for part in [*parts, ours.output] for n in names]
    their_parameters = [getattr(theirs, f"in_proj_{n}") for n in names]
    their_parameters += [getattr(theirs.out_proj, n) for n in names]
    gradients = torch.autograd.grad(projected(output), inputs + parameters)
    expected = torch.autograd.grad(projected(wanted), inputs + their_parameters)
    ours_stacked = [
        torch.cat(gradients[2 + n : 2 + 3 * len(names) : len(names)]) for n in range(len(names))
    ]
    assert_close([*gradients[:2], *ours_stacked, *gradients[2 + 3 * len(names) :]], expected, 1e-11)


@pytest.mark.parametrize("num_kv_heads", [1, 2, 3])
def test_grouped_heads_equal_heads_with_repeated_weights(device, num_kv_heads):
    """Query heads 0, 1, ... of a group stand side by side and share one key and value head."""
    grouped, full = make_heads(device, num_kv_heads), make_heads(device)
    copied = grouped.state_dict()
    group = MANY_HEADS // num_kv_heads
    for name in ("key.weight", "key.bias", "value.weight", "value.bias"):
        heads = copied[name].unflatten(0, (num_kv_heads, -1))
        copied[name] = heads.repeat_interleave(group, dim=0).flatten(0, 1)
    full.load_state_dict(copied)
    shared = MASKS["cross"].to(device)
    of_its_own = shared & (torch.rand(1, MANY_HEADS, *shared.shape[2:], device=device) < 0.7)
    for mask in (shared, of_its_own):
        with record_attention(grouped) as maps, record_attention(full) as wanted:
            outputs = grouped(*(inputs := make_sequences(mask)), mask), full(*inputs, mask)
        assert_close([outputs[0], maps[""]], [outputs[1], wanted[""]], 1e-13)


@pytest.mark.parametrize("num_kv_heads", [None, 2])
@pytest.mark.parametrize("content", [NAN, INF, 1e300])
def test_padding_in_x_and_memory_reaches_no_real_position(device, num_kv_heads, content):
    heads = make_heads(device, num_kv_heads)
    queries, keys = from_lengths((5, 1, 3, 2), QUERIES, device=device), RIGHT.to(device)
    mask = padding_mask(queries, keys)
    x, memory = make_sequences(mask)
    clean = heads(x, memory, mask)
    x[queries == 0], memory[keys == 0] = content, content
    x.requires_grad_(), memory.requires_grad_()
    output = heads(x, memory, mask)
    assert torch.equal(output, clean)
    to_x, to_memory = torch.autograd.grad(projected(output), (x, memory))
    assert to_x[queries == 1].isfinite().all()
    assert to_memory[keys == 1].isfinite().all()
    assert (to_x[queries == 0] == 0.0).all()
    assert (to_memory[keys == 0] == 0.0).all()


def test_dropout_of_heads_is_on_in_training_only(device):
    mask = MASKS["causal"].to(device)
    heads, plain = make_heads(device, dropout=0.5), make_heads(device)
    plain.load_state_dict(heads.state_dict())
    inputs = make_sequences(mask)
    assert torch.equal(heads.eval()(*inputs, mask), plain(*inputs, mask))
    heads.train()
    assert not torch.equal(heads(*inputs, mask), heads(*inputs, mask))


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ((10, 4), "d_model must be a multiple of num_heads, got 10 and 4"),
        ((12, 0), "got 12 and 0"),
        ((12, 6, 4), "num_heads must be a multiple of num_kv_heads, got 6 and 4"),
        ((12, 6, 0), "got 6 and 0"),
        ((12, 2, 4), "got 2 and 4"),
    ],
)
def test_heads_that_do_not_divide_are_refused(sizes, message):
    with pytest.raises(ValueError, match=message):
        MultiHeadAttention(*sizes)


# ---- rotation ------------------------------------------------------------------------------------


def rotation_at(positions: Tensor) -> tuple[Tensor, Tensor]:
    config = Config(vocab_size=1, d_model=D_MODEL, num_heads=MANY_HEADS, style="llama")
    return RotaryPositions(config)(torch.zeros(1, dtype=torch.float64), positions)[1]


def test_rotation_is_multiplication_by_a_unit_complex_number(device):
    x = torch.randn(BATCH, HEADS, KEYS, WIDTH, dtype=torch.float64, device=device)
    angles = torch.randn(BATCH, 1, KEYS, WIDTH // 2, dtype=torch.float64, device=device)
    half = WIDTH // 2
    turned = torch.complex(x[..., :half], x[..., half:]) * torch.polar(
        torch.ones_like(angles), angles
    )
    expected = torch.cat((turned.real, turned.imag), dim=-1)
    torch.testing.assert_close(rotate(x, (angles.cos(), angles.sin())), expected)


def test_rotation_keeps_the_type(dtype):
    x = torch.randn(BATCH, HEADS, KEYS, WIDTH).to(dtype)
    angles = torch.randn(BATCH, 1, KEYS, WIDTH // 2)
    assert rotate(x, (angles.cos(), angles.sin())).dtype == dtype


def test_rotated_scores_depend_on_distance_alone(device):
    """Shifting all positions by 1000 changes nothing; stretching them does; so does order."""
    mask = MASKS["causal left"].to(device)
    heads = make_heads(device, num_kv_heads=2)
    x, _ = make_sequences(mask)
    positions = torch.arange(KEYS, device=device).expand(BATCH, -1)
    outputs, weights = [], []
    for where in (positions, positions + 1000, 2 * positions, positions.flip(1)):
        with record_attention(heads) as maps:
            outputs.append(heads(x, x, mask, rotation_at(where)))
        weights.append(maps[""])
    assert_close((outputs[1], weights[1]), (outputs[0], weights[0]), 1e-10)
    for other in (2, 3):
        assert (weights[other] - weights[0]).abs().max() > 0.01


# ---- the cache, the kernel -----------------------------------------------------------------------


def test_heads_read_in_pieces_attend_to_all_that_was_read(device):
    """Two layers share the cache, each of keys and values of its own."""
    mask = MASKS["causal left"].to(device)
    layers = [make_heads(device, num_kv_heads=2) for _ in range(2)]
    x, _ = make_sequences(mask)
    positions = torch.arange(KEYS, device=device).expand(BATCH, -1)
    wanted = [heads(x, x, mask, rotation_at(positions)) for heads in layers]
    cache = Cache()
    for start, end in ((0, 3), (3, 4), (4, KEYS)):
        piece, rotation = x[:, start:end], rotation_at(positions[:, start:end])
        for heads, expected in zip(layers, wanted, strict=True):
            output = heads(piece, piece, mask[:, :, start:end, :end], rotation, cache)
            assert_close(output, expected[:, start:end], 1e-13)


def test_heads_project_the_memory_of_a_cache_once(device):
    mask = MASKS["cross"].to(device)
    layers = [make_heads(device, num_kv_heads=2) for _ in range(2)]
    x, memory = make_sequences(mask)
    cache = Cache()
    for given in (memory, torch.full_like(memory, NAN)):
        for heads in layers:
            assert_close(heads(x, given, mask, cache=cache), heads(x, memory, mask), 1e-13)


def test_a_kernel_is_asked_where_no_weights_are():
    """It gets the mask as it was prepared; the reference, for weights, the mask that is in it."""
    calls = []

    def kernel(*inputs, finite):
        calls.append((inputs[3], finite))
        inputs = [*inputs[:3], inputs[3].mask]
        return scaled_dot_product_attention(*inputs, finite=finite)[0], None

    mask = PreparedMask(MASKS["causal left"], "a plan")
    heads = make_heads("cpu", dropout=1.0, kernel=kernel)
    x, _ = make_sequences(mask.mask)
    with record_attention(heads), torch.no_grad():
        wanted = heads.eval()(x, x, mask)
    dropped = heads.train()(x, x, mask)
    assert torch.equal(dropped, heads.output.bias.expand_as(dropped))
    assert not calls
    assert_close(heads.eval()(x, x, mask), wanted, 1e-13)
    assert_close(heads(x, x, mask, cache=Cache()), wanted, 1e-13)
    assert calls == [(mask, False), (mask, True)]


@pytest.mark.parametrize(
    "add_hook", [nn.Module.register_forward_hook, nn.Module.register_forward_pre_hook]
)
def test_heads_are_recorded_while_their_tap_has_a_hook(add_hook):
    heads = make_heads("cpu")
    assert not heads.is_recorded
    hook = add_hook(heads.tap, lambda *_: None)
    assert heads.is_recorded
    hook.remove()
    assert not heads.is_recorded


def test_printing_heads_shows_their_number_and_kernel():
    class Kernel:
        name = "fast"

    def nameless():
        pass

    assert "  heads=6, kv_heads=2, kernel=reference\n" in repr(make_heads("cpu", 2))
    assert "  heads=6, kv_heads=6, kernel=fast\n" in repr(make_heads("cpu", kernel=Kernel()))
    assert f"kernel={nameless}\n" in repr(make_heads("cpu", kernel=nameless))


# ---- record_attention ----------------------------------------------------------------------------


class TwoLayers(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = MultiHeadAttention(WIDTH, HEADS)
        self.more = nn.ModuleList([nn.Linear(WIDTH, WIDTH), MultiHeadAttention(WIDTH, 4)])

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        x = self.first(x, x, mask)
        return self.more[1](x, x, mask)


def number_of_hooks(model: nn.Module) -> int:
    return sum(len(module._forward_hooks) for module in model.modules())


def test_recording_names_each_layer_and_changes_nothing(device):
    mask = MASKS["causal left"].to(device)
    model = TwoLayers().to(device)
    x = torch.randn(BATCH, KEYS, WIDTH, device=device)
    with record_attention(model) as maps:
        assert maps == {}
        output = model(x, mask)
    assert list(maps) == ["first", "more.1"]
    assert maps["first"].shape == (BATCH, HEADS, KEYS, KEYS)
    assert maps["more.1"].shape == (BATCH, 4, KEYS, KEYS)
    for weights in maps.values():
        assert torch.equal(weights != 0.0, mask.expand_as(weights))
        assert not weights.requires_grad
    assert torch.equal(model(x, mask), output)


def test_recording_keeps_the_last_call_and_stops_with_its_block():
    model = TwoLayers()
    first, second, third = torch.randn(3, BATCH, KEYS, WIDTH)
    with record_attention(model) as expected:
        model(second, MASKS["causal"])
    with record_attention(model) as maps:
        model(first, MASKS["causal"])
        model(second, MASKS["causal"])
    model(third, MASKS["causal"])
    assert number_of_hooks(model) == 0
    assert_same(maps.values(), expected.values())


def test_recording_stops_after_an_exception_too():
    model = TwoLayers()
    with pytest.raises(ValueError, match="5 queries"), record_attention(model):  # noqa: PT012
        assert number_of_hooks(model) == 2
        model(torch.randn(BATCH, QUERIES, WIDTH), MASKS["causal"])
    assert number_of_hooks(model) == 0


def test_recording_a_model_without_attention_is_refused():
    with (
        pytest.raises(ValueError, match="Linear contains no MultiHeadAttention"),
        record_attention(nn.Linear(2, 2)),
    ):
        pass


@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no bias"])
def test_the_state_is_four_linear_layers(bias):
    """The tap adds nothing; without bias none has one (a key's would go unnoticed: softmax)."""
    kinds = ["weight", "bias"] if bias else ["weight"]
    names = [f"{name}.{kind}" for name in ("query", "key", "value", "output") for kind in kinds]
    assert list(MultiHeadAttention(WIDTH, HEADS, bias=bias).state_dict()) == names


def test_queries_keys_and_values_may_have_a_bias_that_the_output_has_not():
    state = MultiHeadAttention(WIDTH, HEADS, bias=False, qkv_bias=True).state_dict()
    assert [name for name in state if "bias" in name] == ["query.bias", "key.bias", "value.bias"]


@pytest.mark.parametrize("dropout", [-0.1, 1.5, float("nan")])
def test_a_dropout_that_is_no_probability_is_refused(dropout):
    with pytest.raises(ValueError, match=r"dropout must be in \[0, 1\]"):
        MultiHeadAttention(4, 2, dropout=dropout)


def test_dropout_of_everything_is_a_probability_too():
    layer = MultiHeadAttention(4, 2, dropout=1.0)
    x = torch.randn(1, 3, 4)
    assert torch.equal(layer(x, x, causal_mask(3)), layer.output.bias.expand(1, 3, 4))
