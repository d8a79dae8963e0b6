"""The masks against truth tables that a reader can check, and against the loops they stand for."""

import pytest
import torch
from conftest import BATCH, KEYS, LENGTHS, QUERIES, from_lengths
from torch import Tensor

from minitransformer import causal_mask, padding_mask, token_positions, window_mask
from minitransformer.masks import decoder_mask, zero_padding
from minitransformer.positions import by_document

ATTENTION_MASKS = {
    "right": [1, 1, 1, 0],
    "left": [0, 0, 1, 1],
    "hole": [1, 0, 1, 1],
    "packed": [1, 2, 2, 0],
    "interleaved": [1, 2, 1, 2],
    "padding": [0, 0, 0, 0],
}
MISUSES = [
    ([[1, 0]], TypeError, "must be a tensor, got list"),
    (torch.ones(2, 3), TypeError, r"must be int or bool .* got torch.float32.* `mask == 0`"),
    (torch.ones(2, 3, dtype=torch.complex64), TypeError, "got torch.complex64"),
    (torch.ones(3, dtype=torch.bool), ValueError, r"must be \(batch, length\), got shape \(3,\)"),
    (torch.ones(2, 1, 1, 3).long(), ValueError, r"got shape \(2, 1, 1, 3\)"),
]


def table(*rows: str) -> Tensor:
    """The mask (1, 1, Q, K) drawn with ones and zeros, a word for each query."""
    return torch.tensor([[[[cell == "1" for cell in row] for row in rows]]])


def padding_by_loops(queries: Tensor, keys: Tensor) -> Tensor:
    mask = torch.zeros(len(queries), 1, queries.shape[1], keys.shape[1], dtype=torch.bool)
    for b in range(len(queries)):
        for q, document in enumerate(queries[b].tolist()):
            for k, other in enumerate(keys[b].tolist()):
                mask[b, 0, q, k] = document != 0 and document == other
    return mask


def positions_by_loops(attention_mask: Tensor) -> Tensor:
    positions = torch.zeros(attention_mask.shape, dtype=torch.int64)
    for b, row in enumerate(attention_mask.tolist()):
        for t, document in enumerate(row):
            positions[b, t] = row[:t].count(document) if document else 0
    return positions


# ---- padding_mask ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("right", table("1110", "1110", "1110", "0000")),
        ("left", table("0000", "0000", "0011", "0011")),
        ("hole", table("1011", "0000", "1011", "1011")),
        ("packed", table("1000", "0110", "0110", "0000")),
        ("interleaved", table("1010", "0101", "1010", "0101")),
        ("padding", table("0000", "0000", "0000", "0000")),
    ],
)
def test_padding_mask_truth_table(name, expected):
    mask = padding_mask(torch.tensor([ATTENTION_MASKS[name]]))
    assert mask.dtype == torch.bool
    assert torch.equal(mask, expected)


def test_cross_padding_mask_truth_table():
    mask = padding_mask(torch.tensor([[1, 1, 0]]), torch.tensor([[0, 1, 1, 0, 1]]))
    assert torch.equal(mask, table("01101", "01101", "00000"))


def test_cross_padding_mask_keeps_packed_pairs_apart():
    mask = padding_mask(torch.tensor([[1, 2, 2, 0]]), torch.tensor([[1, 1, 1, 2, 0, 3]]))
    assert torch.equal(mask, table("111000", "000100", "000100", "000000"))


def test_padding_mask_equals_its_loops(device):
    queries = torch.randint(0, 4, (BATCH, QUERIES), device=device)
    keys = torch.randint(0, 4, (BATCH, KEYS), device=device)
    mask = padding_mask(queries, keys)
    assert mask.device == queries.device
    assert torch.equal(mask.cpu(), padding_by_loops(queries, keys))
    assert torch.equal(padding_mask(queries).cpu(), padding_by_loops(queries, queries))


@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8, torch.int32, torch.int64])
def test_padding_mask_is_bool_for_every_type_of_attention_mask(dtype):
    attention_mask = from_lengths(LENGTHS, KEYS)
    assert torch.equal(padding_mask(attention_mask.to(dtype)), padding_mask(attention_mask))
    assert padding_mask(attention_mask.to(dtype)).dtype == torch.bool


@pytest.mark.parametrize(("misuse", "error", "message"), MISUSES)
def test_padding_mask_refuses(misuse, error, message):
    good = torch.ones(2, 3, dtype=torch.int64)
    with pytest.raises(error, match="^attention_mask .*" + message):
        padding_mask(misuse)
    with pytest.raises(error, match="^key_attention_mask .*" + message):
        padding_mask(good, misuse)


def test_padding_mask_refuses_two_batch_sizes():
    with pytest.raises(ValueError, match="same batch size, got 2 and 1"):
        padding_mask(torch.ones(2, 3).long(), torch.ones(1, 3).long())


# ---- causal_mask -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sizes", "expected"),
    [
        ((4,), table("1000", "1100", "1110", "1111")),
        ((3, 3), table("100", "110", "111")),
        ((2, 5), table("11110", "11111")),
        ((1, 4), table("1111")),
    ],
)
def test_causal_mask_truth_table(sizes, expected):
    assert causal_mask(*sizes).dtype == torch.bool
    assert torch.equal(causal_mask(*sizes), expected)


@pytest.mark.parametrize(("sizes", "shape"), [((0,), (0, 0)), ((0, 3), (0, 3))])
def test_causal_mask_of_no_queries_is_empty(sizes, shape):
    assert causal_mask(*sizes).shape == (1, 1, *shape)


def test_cached_causal_mask_is_the_last_rows_of_the_whole():
    assert torch.equal(causal_mask(QUERIES, KEYS), causal_mask(KEYS)[:, :, -QUERIES:])


def test_causal_mask_is_made_where_it_is_asked_for(device):
    assert causal_mask(2, device=device).device.type == device.type
    assert causal_mask(2, device="meta").device.type == "meta"


@pytest.mark.parametrize("sizes", [(3, 2), (-1,), (1, 0)])
def test_causal_mask_refuses_queries_without_a_key_of_their_own(sizes):
    message = rf"0 <= num_queries <= num_keys, got {sizes[0]} and -?\d+: every .* of its own$"
    with pytest.raises(ValueError, match=message):
        causal_mask(*sizes)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("right", table("1000", "1100", "1110", "0000")),
        ("left", table("0000", "0000", "0010", "0011")),
        ("hole", table("1000", "0000", "1010", "1011")),
        ("packed", table("1000", "0100", "0110", "0000")),
        ("interleaved", table("1000", "0100", "1010", "0101")),
    ],
)
def test_causal_and_padding_truth_table(name, expected):
    mask = padding_mask(torch.tensor([ATTENTION_MASKS[name]])) & causal_mask(4)
    assert torch.equal(mask, expected)


# ---- window_mask, decoder_mask -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("sizes", "window", "expected"),
    [
        ((4,), 1, table("1000", "0100", "0010", "0001")),
        ((4,), 2, table("1000", "1100", "0110", "0011")),
        ((2, 4), 2, table("0110", "0011")),
        ((2, 4), 3, table("1110", "0111")),
        ((2, 4), 9, table("1110", "1111")),
    ],
)
def test_window_mask_truth_table(sizes, window, expected):
    assert torch.equal(window_mask(*sizes, window=window), expected)


def test_window_mask_is_made_where_it_is_asked_for():
    assert window_mask(2, window=1, device="meta").device.type == "meta"


@pytest.mark.parametrize("window", [0, -1, 1.0, True, None])
def test_window_mask_refuses_a_window_without_a_key(window):
    with pytest.raises(ValueError, match=rf"^window must be an integer >= 1, got {window}$"):
        window_mask(3, window=window)


def test_window_mask_refuses_what_causal_mask_refuses():
    with pytest.raises(ValueError, match="0 <= num_queries <= num_keys, got 3 and 2"):
        window_mask(3, 2, window=1)


def decoder_mask_by_loops(attention_mask: Tensor, window: int | None) -> Tensor:
    positions = positions_by_loops(attention_mask)
    mask = padding_by_loops(attention_mask, attention_mask)
    for b, q, k in mask[:, 0].nonzero().tolist():
        distance = positions[b, q] - positions[b, k]
        mask[b, 0, q, k] = distance >= 0 and (window is None or distance < window)
    return mask


@pytest.mark.parametrize("window", [None, 1, 2, 3])
@pytest.mark.parametrize("dtype", [torch.bool, torch.int32, torch.int64])
def test_decoder_mask_equals_its_loops(device, dtype, window):
    """Its window counts the tokens of a document, over padding and over other documents."""
    documents = torch.randint(0, 2 if dtype == torch.bool else 4, (20, KEYS))
    expected = decoder_mask_by_loops(documents, window)
    mask = decoder_mask(documents.to(device, dtype), window=window)
    assert torch.equal(mask.cpu(), expected)
    for start in (1, KEYS - 1, KEYS):
        cached = decoder_mask(documents.to(device, dtype), start, window)
        assert torch.equal(cached.cpu(), expected[:, :, start:])


def test_decoder_mask_is_made_where_the_attention_mask_is():
    attention_mask = from_lengths(LENGTHS, KEYS)
    with torch.device("meta"):  # the default is another device
        mask = decoder_mask(attention_mask, window=2)
    assert mask.device == attention_mask.device


@pytest.mark.parametrize(("misuse", "error", "message"), MISUSES)
def test_decoder_mask_refuses(misuse, error, message):
    with pytest.raises(error, match="^attention_mask .*" + message):
        decoder_mask(misuse)


# ---- token_positions, by_document --------------------------------------------------------------


@pytest.mark.parametrize(
    ("attention_mask", "expected"),
    [
        ([1, 1, 1, 0, 0], [0, 1, 2, 0, 0]),
        ([0, 0, 1, 1, 1], [0, 0, 0, 1, 2]),
        ([1, 0, 1, 0, 1], [0, 0, 1, 0, 2]),
        ([1, 1, 2, 2, 2], [0, 1, 0, 1, 2]),
        ([2, 1, 2, 0, 1], [0, 0, 1, 0, 1]),
        ([0, 0, 0, 0, 0], [0, 0, 0, 0, 0]),
    ],
    ids=["right", "left", "holes", "packed", "interleaved", "padding"],
)
def test_token_positions_table(attention_mask, expected):
    positions = token_positions(torch.tensor([attention_mask]))
    assert torch.equal(positions, torch.tensor([expected]))


@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8, torch.int32, torch.int64])
def test_token_positions_equal_their_loops(device, dtype):
    documents = torch.randint(0, 2 if dtype == torch.bool else 4, (20, KEYS)).to(device, dtype)
    positions = token_positions(documents)
    assert positions.device == documents.device
    assert positions.dtype == torch.int64
    assert torch.equal(positions.cpu(), positions_by_loops(documents))


@pytest.mark.parametrize("shape", [(0, 3), (2, 1), (2, 0)])
def test_token_positions_of_nearly_nothing(shape):
    assert torch.equal(token_positions(torch.ones(shape).long()), torch.zeros(shape).long())


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int32, torch.int64])
def test_by_document_keeps_the_order_within_a_document(dtype):
    order, documents = by_document(torch.tensor([[2, 0, 1, 2, 1, 0]], dtype=dtype))
    assert torch.equal(order, torch.tensor([[1, 5, 2, 4, 0, 3]]))
    assert torch.equal(documents, torch.tensor([[0, 0, 1, 1, 2, 2]]))
    assert order.dtype == documents.dtype == torch.int64


def test_by_document_keeps_the_order_in_long_rows():
    """Sorts that are not stable often are so in short rows."""
    order, _ = by_document(torch.ones(1, 3000).bool())
    assert torch.equal(order, torch.arange(3000).unsqueeze(0))


@pytest.mark.parametrize(("misuse", "error", "message"), MISUSES)
def test_token_positions_refuse(misuse, error, message):
    with pytest.raises(error, match="^attention_mask .*" + message):
        token_positions(misuse)


# ---- zero_padding ----------------------------------------------------------------------------


@pytest.mark.parametrize("content", [1.0, float("nan"), float("inf")])
def test_zero_padding_erases_whatever_stood_there(device, content):
    attention_mask = from_lengths(LENGTHS, KEYS, device=device)
    clean = torch.randn(BATCH, KEYS, 3, device=device)
    real = (attention_mask == 1).unsqueeze(-1)
    x = torch.where(real, clean, content).requires_grad_()
    erased = zero_padding(x, attention_mask)
    assert torch.equal(erased, torch.where(real, clean, 0.0))
    (gradient,) = torch.autograd.grad(erased.sum(), x)
    assert torch.equal(gradient, real.expand_as(x).float())


def test_zero_padding_copies_nothing_where_nothing_is_padded():
    x = torch.randn(2, 3, 4)
    assert zero_padding(x, torch.tensor([[1, 1, 2], [1, 1, 1]])) is x


def test_zero_padding_reads_nothing_while_torch_compiles():
    x, attention_mask = torch.randn(2, 3, 4), torch.tensor([[1, 1, 0], [1, 0, 0]])
    compiled = torch.compile(zero_padding, fullgraph=True, backend="eager")
    assert torch.equal(compiled(x, attention_mask), zero_padding(x, attention_mask))


def test_negative_documents_are_refused():
    with pytest.raises(ValueError, match=r"attention_mask must be 0 .* got -100"):
        padding_mask(torch.tensor([[1, -100]]))
