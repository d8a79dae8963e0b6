"""From lists to tensors without losing, breaking or inventing a token; and the labels."""

import random
from bisect import bisect_right

import pytest
import torch
from conftest import BATCH, from_lengths
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from minitransformer import (
    IGNORE_INDEX,
    causal_mask,
    completion_labels,
    cross_entropy,
    mask_tokens,
    next_token_labels,
    pack,
    pack_pairs,
    pad,
    pad_pairs,
    padding_mask,
    scaled_dot_product_attention,
)
from minitransformer.data import batches

PAD, BOS, EOS, VOCABULARY = 9, 1, 2, 50
ROWS = [[5, 6], [7, 8, 4, 3], [], [6]]

ragged = st.lists(st.lists(st.integers(0, VOCABULARY - 1), max_size=7), max_size=12)
pairs = st.lists(
    st.tuples(*[st.lists(st.integers(3, VOCABULARY - 1), max_size=7)] * 2), max_size=12
)


def documents_of(values: Tensor, attention_mask: Tensor) -> list[list[tuple[int, list[int]]]]:
    """The documents of each row as (number, values), cut where the number changes."""
    rows = []
    for numbers, row in zip(attention_mask.tolist(), values.tolist(), strict=True):
        documents, last = [], 0
        for number, value in zip(numbers, row, strict=True):
            if number and number != last:
                documents.append((number, []))
            if number:
                documents[-1][1].append(value)
            last = number
        rows.append(documents)
    return rows


def flat(values: Tensor, attention_mask: Tensor) -> list[list[int]]:
    return [document for row in documents_of(values, attention_mask) for _, document in row]


def realistic_lengths(seed: int, count: int, longest: int) -> list[int]:
    generator = random.Random(seed)
    return [min(max(round(generator.lognormvariate(4, 0.7)), 1), longest) for _ in range(count)]


def fill(attention_mask: Tensor) -> float:
    return (attention_mask != 0).double().mean().item()


# ---- pad -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "ids", "mask"),
    [
        (
            {},
            [[5, 6, 9, 9], [7, 8, 4, 3], [9, 9, 9, 9], [6, 9, 9, 9]],
            [[1, 1, 0, 0], [1, 1, 1, 1], [0, 0, 0, 0], [1, 0, 0, 0]],
        ),
        (
            {"side": "left"},
            [[9, 9, 5, 6], [7, 8, 4, 3], [9, 9, 9, 9], [9, 9, 9, 6]],
            [[0, 0, 1, 1], [1, 1, 1, 1], [0, 0, 0, 0], [0, 0, 0, 1]],
        ),
        (
            {"side": "left", "max_length": 5},
            [[9, 9, 9, 5, 6], [9, 7, 8, 4, 3], [9, 9, 9, 9, 9], [9, 9, 9, 9, 6]],
            [[0, 0, 0, 1, 1], [0, 1, 1, 1, 1], [0, 0, 0, 0, 0], [0, 0, 0, 0, 1]],
        ),
    ],
    ids=["right", "left", "left to max_length"],
)
def test_pad(options, ids, mask):
    batch = pad(ROWS, PAD, **options)
    assert torch.equal(batch.input_ids, torch.tensor(ids))
    assert torch.equal(batch.attention_mask, torch.tensor(mask))
    assert batch.labels is None


def test_pad_makes_the_mask_from_lengths_and_not_from_ids():
    """Where the padding id is the end of sequence, a real end stays real."""
    batch = pad([[5, EOS], [EOS, EOS, EOS], [5]], pad_id=EOS)
    assert torch.equal(batch.attention_mask, torch.tensor([[1, 1, 0], [1, 1, 1], [1, 0, 0]]))


@pytest.mark.parametrize(("multiple_of", "length"), [(1, 5), (4, 8), (5, 5), (8, 8)])
def test_pad_rounds_up_to_a_multiple(multiple_of, length):
    batch = pad([[1, 2, 3, 4, 5], [6]], multiple_of=multiple_of)
    assert batch.input_ids.shape == (2, length)
    assert batch.attention_mask.sum(dim=1).tolist() == [5, 1]


@pytest.mark.parametrize("multiple_of", [0, -2, 2.0, "8"])
def test_pad_refuses_what_is_no_multiple(multiple_of):
    with pytest.raises(ValueError, match="multiple_of must be an integer >= 1, got"):
        pad([[1]], multiple_of=multiple_of)


@pytest.mark.parametrize("side", ["right", "left"])
def test_pad_puts_labels_and_segments_under_their_tokens(side):
    more = [[token + 100 for token in row] for row in ROWS]
    batch = pad(ROWS, side=side, labels=more, segment_ids=more)
    padding = batch.attention_mask == 0
    assert torch.equal(batch.labels, (batch.input_ids + 100).masked_fill(padding, IGNORE_INDEX))
    assert torch.equal(batch.segment_ids, (batch.input_ids + 100).masked_fill(padding, 0))


def test_pad_fills_with_zero_by_default():
    assert torch.equal(pad([[5, 6], [7]]).input_ids, torch.tensor([[5, 6], [7, 0]]))


@pytest.mark.parametrize(("rows", "shape"), [([], (0, 0)), ([[], []], (2, 0))])
def test_pad_of_nothing(rows, shape):
    batch = pad(rows, labels=rows, segment_ids=rows)
    assert all(batch[name].shape == shape for name in batch)
    assert all(batch[name].dtype == torch.int64 for name in batch)
    assert pad(rows, max_length=3).input_ids.shape == (len(rows), 3)


@pytest.mark.parametrize("build", [pad, lambda rows, **more: pack(rows, 7, **more)])
def test_tensors_are_rows_too(build):
    rows = [[5, 6], [7, 8, 4]]
    tensors = [torch.tensor(row) for row in rows]
    batch = build(tensors, labels=tensors, segment_ids=tensors)
    expected = build(rows, labels=rows, segment_ids=rows)
    for name in batch:
        assert torch.equal(batch[name], expected[name])


# ---- pack ----------------------------------------------------------------------------------------


def test_pack_by_hand():
    batch = pack(
        [[5, 6, 7], [8], [], [4, 3]], length=4, pad_id=PAD, labels=[[1, 2, 3], [4], [], [5, 6]]
    )
    assert torch.equal(batch.input_ids, torch.tensor([[5, 6, 7, 8], [4, 3, 9, 9]]))
    assert torch.equal(batch.attention_mask, torch.tensor([[1, 1, 1, 2], [1, 1, 0, 0]]))
    assert torch.equal(batch.labels, torch.tensor([[1, 2, 3, 4], [5, 6, -100, -100]]))


def test_pack_makes_rows_as_long_as_the_longest_document_by_default():
    batch = pack([[5], [6, 7, 8], [4, 3]])
    assert torch.equal(batch.attention_mask, torch.tensor([[1, 1, 1], [1, 1, 2]]))
    assert torch.equal(batch.input_ids, torch.tensor([[6, 7, 8], [4, 3, 5]]))
    assert pack([[], []]).input_ids.shape == pack([]).input_ids.shape == (0, 0)


def test_pack_fills_with_zero_by_default():
    assert torch.equal(pack([[5, 6]], length=3).input_ids, torch.tensor([[5, 6, 0]]))
    assert pack([[5, 6]], length=3).labels is None


@given(rows=ragged, spare=st.integers(0, 5))
@settings(deadline=None)
def test_pack_keeps_every_document_once_and_unbroken(rows, spare):
    length = max(map(len, rows), default=0) + spare
    labels = [[1000 * n + token for token in row] for n, row in enumerate(rows)]
    batch = pack(rows, length, PAD, labels)
    assert batch.input_ids.shape == batch.attention_mask.shape == batch.labels.shape
    assert batch.input_ids.shape[1] == length
    assert sorted(flat(batch.input_ids, batch.attention_mask)) == sorted(filter(None, rows))
    assert sorted(flat(batch.labels, batch.attention_mask)) == sorted(filter(None, labels))
    for row in documents_of(batch.input_ids, batch.attention_mask):
        assert [number for number, _ in row] == list(range(1, len(row) + 1))
        assert row  # no row is only padding
    padding = batch.attention_mask == 0
    assert (batch.input_ids[padding] == PAD).all()
    assert (batch.labels[padding] == IGNORE_INDEX).all()
    real = ~padding
    assert torch.equal(batch.labels[real] % 1000, batch.input_ids[real])


@given(rows=ragged)
@settings(deadline=None)
def test_pack_wastes_less_than_half(rows):
    """No two rows could be one."""
    length = max(map(len, rows), default=0) + 1
    used = sorted((pack(rows, length).attention_mask != 0).sum(dim=1).tolist())
    assert len(used) < 2 or used[0] + used[1] > length


def test_pack_fills_realistic_rows():
    for seed in range(3):
        rows = [[7] * n for n in realistic_lengths(seed, count=2500, longest=512)]
        batch = pack(rows, length=512)
        assert fill(batch.attention_mask) >= 0.95
        assert (batch.attention_mask != 0).sum() == sum(map(len, rows))


def test_rows_as_long_as_the_longest_document_are_as_full_as_longer_ones():
    """Where lengths are long-tailed; the mask of a row twice as long is four times as large."""
    for seed in range(3):
        rows = [[7] * n for n in realistic_lengths(seed, count=256, longest=512)]
        shortest = fill(pack(rows).attention_mask)
        assert shortest >= fill(pack(rows, length=1024).attention_mask) - 0.01


@pytest.mark.parametrize(
    "pack_some", [pack, lambda rows: pack_pairs(rows, rows, 512, BOS, EOS)], ids=["rows", "pairs"]
)
def test_to_pack_more_documents_takes_no_more_for_each(pack_some, monkeypatch):
    """The list of those that are left is searched, and moved up, at each that is taken."""
    searched = []

    def search(lengths, room):
        searched.append(len(lengths))
        return bisect_right(lengths, room)

    monkeypatch.setattr(batches, "bisect_right", search)
    totals = []
    for count in (2_000, 4_000):
        searched.clear()
        pack_some([[7] * n for n in realistic_lengths(0, count, longest=512)])
        totals.append(sum(searched))
    assert 0 < totals[1] < 2.1 * totals[0]


# ---- pairs ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("side", ["right", "left"])
def test_pad_pairs(side):
    batch = pad_pairs([[5, 6, 7], [8]], [[4], [3, 5]], BOS, EOS, PAD, side)
    expected = {
        "source_ids": [[5, 6, 7], [8, 9, 9]],
        "source_mask": [[1, 1, 1], [1, 0, 0]],
        "target_ids": [[1, 4, 9], [1, 3, 5]],
        "target_mask": [[1, 1, 0], [1, 1, 1]],
        "labels": [[4, 2, -100], [3, 5, 2]],
    }
    if side == "left":
        expected["source_ids"][1], expected["source_mask"][1] = [9, 9, 8], [0, 0, 1]
        expected["target_ids"][0], expected["target_mask"][0] = [9, 1, 4], [0, 1, 1]
        expected["labels"][0] = [-100, 4, 2]
    assert {name: batch[name].tolist() for name in batch} == expected


def test_pad_pairs_fill_right_with_zero_by_default():
    batch = pad_pairs([[5], [6, 7]], [[], [3]], BOS, EOS)
    assert batch.source_ids.tolist() == [[5, 0], [6, 7]]
    assert batch.target_ids.tolist() == [[1, 0], [1, 3]]


@given(pairs=pairs, spare=st.none() | st.integers(0, 5))
@settings(deadline=None)
def test_pack_pairs_keep_every_pair_once_and_together(pairs, spare):
    sources, targets = [s for s, _ in pairs], [t for _, t in pairs]
    length = None if spare is None else max(map(len, sources), default=0) + spare
    batch = pack_pairs(sources, targets, length, BOS, EOS, PAD)
    found = []
    for source, target, label in zip(
        documents_of(batch.source_ids, batch.source_mask),
        documents_of(batch.target_ids, batch.target_mask),
        documents_of(batch.labels, batch.target_mask),
        strict=True,
    ):
        assert [number for number, _ in target] == list(range(1, len(target) + 1))
        by_number = dict(source)  # an empty source has no token to carry its number
        for (number, inputs), (_, labels) in zip(target, label, strict=True):
            assert inputs[0] == BOS
            assert labels == [*inputs[1:], EOS]
            found.append((by_number.pop(number, []), inputs[1:]))
        assert by_number == {}
    assert sorted(found) == sorted(pairs)
    for ids, mask in ((batch.source_ids, batch.source_mask), (batch.target_ids, batch.target_mask)):
        assert (ids[mask == 0] == PAD).all()
    assert (batch.labels[batch.target_mask == 0] == IGNORE_INDEX).all()
    for mask in (batch.source_mask, batch.target_mask):  # no longer than needed
        assert mask.shape[1] == max((mask != 0).sum(dim=1).tolist(), default=0)
    assert length is None or batch.source_ids.shape[1] <= length


def test_pack_pairs_fill_with_zero_by_default():
    batch = pack_pairs([[5], [6, 7]], [[], [3, 4, 5]], 2, BOS, EOS)
    assert sorted(batch.source_ids.tolist()) == [[5, 0], [6, 7]]
    assert sorted(batch.target_ids.tolist()) == [[1, 0, 0, 0], [1, 3, 4, 5]]


@pytest.mark.parametrize(
    ("sources", "targets", "waste"),
    [  # the lengths are drawn from these
        pytest.param((8, 36), (10, 10), 0.04, id="dates"),
        pytest.param((10, 60), (10, 60), 0.06, id="pairs"),
        pytest.param((10, 60), (1, 40), 0.06, id="shorter targets"),
        pytest.param((1, 5), (100, 200), 0.06, id="far longer targets"),
    ],
)
@pytest.mark.parametrize("seed", range(3))
def test_where_no_length_is_given_rows_of_pairs_are_evenly_full(sources, targets, waste, seed):
    draw = random.Random(seed).randint
    rows = [([5] * draw(*sources), [6] * draw(*targets)) for _ in range(128)]
    batch = pack_pairs(*zip(*rows, strict=True), None, BOS, EOS)
    tokens = (batch.source_mask != 0).sum() + (batch.target_mask != 0).sum()
    assert batch.source_ids.numel() + batch.target_ids.numel() <= (1 + waste) * tokens


def test_the_number_of_rows_is_the_one_that_leaves_least_empty():
    """Eight rows would do: of up to 12 pairs, six of them missing. In nine there are 10 in each."""
    batch = pack_pairs([[5] * 5] * 90, [[3] * 3] * 90, None, BOS, EOS)
    assert batch.source_mask.shape == (9, 50)
    assert batch.source_mask.all()


def test_rows_of_pairs_are_a_few_times_as_long_as_the_longest_source_where_nothing_is_said():
    """A mask has the square of their length."""
    assert pack_pairs([[5] * 20] * 16, [[3]] * 16, None, BOS, EOS).source_ids.shape == (4, 80)
    assert pack_pairs([[5]] * 90, [[3]] * 90, None, BOS, EOS).source_ids.shape == (2, 45)
    assert pack_pairs([[5]] * 65, [[3]] * 65, None, BOS, EOS).source_ids.shape == (5, 13)  # > 64
    assert pack_pairs([[5]] * 2, [[3]] * 2, None, BOS, EOS).source_ids.shape == (1, 2)
    assert pack_pairs([], [], None, BOS, EOS).source_ids.shape == (0, 0)


def test_pack_pairs_of_empty_sources_into_rows_of_no_length():
    batch = pack_pairs([[], []], [[4], []], 0, BOS, EOS)
    assert batch.source_ids.shape[1] == 0
    assert sorted(flat(batch.labels, batch.target_mask)) == [[EOS], [4, EOS]]


def test_target_rows_are_as_many_times_longer_as_the_targets_of_all_pairs():
    assert pack_pairs([[5], [], []], [[4]] * 3, 1, BOS, EOS).target_ids.shape == (1, 6)


@pytest.mark.parametrize("ratio", [0.6, 1.0, 1.7])
def test_pack_pairs_fill_both_sides_of_realistic_rows(ratio):
    """Targets are `ratio` times as long as their sources, give or take a third."""
    generator = random.Random(0)
    lengths = realistic_lengths(0, count=2500, longest=512)
    sources = [[7] * n for n in lengths]
    targets = [[7] * round(n * ratio * generator.uniform(0.67, 1.33)) for n in lengths]
    batch = pack_pairs(sources, targets, 512, BOS, EOS)
    assert (batch.source_mask != 0).sum() == sum(lengths)
    assert fill(batch.source_mask) >= 0.95
    assert fill(batch.target_mask) >= 0.95


# ---- what is refused -----------------------------------------------------------------------------


ONES = torch.ones(2, 3, dtype=torch.int64)
ROW_TOO_LONG_FOR_PAD = (
    r"^rows\[1\] has 4 tokens, more than max_length = 3: truncate it, or raise max_length$"
)
ROW_TOO_LONG_FOR_PACK = r"^rows\[1\] has 4 tokens, more than length = 3: split it, or raise length$"


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: pad(ROWS, max_length=3), ValueError, ROW_TOO_LONG_FOR_PAD),
        (lambda: pad(ROWS, side="top"), ValueError, "side must be 'left' or 'right', got 'top'"),
        (lambda: pack(ROWS, length=3), ValueError, ROW_TOO_LONG_FOR_PACK),
        (lambda: pad([[5], [0.5]]), TypeError, r"rows\[1\] must hold integers, got 0.5"),
        (lambda: pad(["abc"]), TypeError, r"rows\[0\] must hold integers, got 'a'"),
        (lambda: pack([[True]], 4), TypeError, r"rows\[0\] must hold integers, got True"),
        (lambda: pad([torch.ones(2)]), TypeError, r"rows\[0\] .* got 1.0"),
        (lambda: pad([[5]], labels=[[0.5]]), TypeError, r"labels\[0\] .* got 0.5"),
        (lambda: pad([[5, 6]], labels=[[5]]), ValueError, r"lengths of rows, \[2\], got \[1\]"),
        (lambda: pack([[5, 6]], 4, labels=[]), ValueError, r"lengths of rows, \[2\], got \[\]"),
        (lambda: pad([[5]], segment_ids=[[0.5]]), TypeError, r"^segment_ids\[0\] .* got 0.5"),
        (lambda: pad_pairs([[5]], [], BOS, EOS), ValueError, "got 1 sources and 0 targets"),
        (lambda: pad_pairs([[5]], [[0.5]], BOS, EOS), TypeError, r"targets\[0\] .* got 0.5"),
        (lambda: pack_pairs([], [[5]], 4, BOS, EOS), ValueError, "got 0 sources and 1 targets"),
        (lambda: pack_pairs([["a"]], [[5]], 4, BOS, EOS), TypeError, r"sources\[0\] .* got 'a'"),
        (
            lambda: pack_pairs([[5, 6]], [[]], 1, BOS, EOS),
            ValueError,
            r"^sources\[0\] has 2 tokens, more than length = 1: split it, or raise length$",
        ),
        (lambda: completion_labels([[5]], []), ValueError, "got 1 rows and 0 prompt_lengths"),
        (lambda: completion_labels([[5]], [2]), ValueError, r"\[0\] must be from 0 to 1, got 2"),
        (lambda: completion_labels([[5], [6]], [1, -1]), ValueError, r"\[1\] must be .* got -1"),
        (lambda: completion_labels([["a"]], [0]), TypeError, r"rows\[0\] must hold integer"),
        (lambda: pack([], length=-1), ValueError, "length must be 0 or more, got -1"),
        (lambda: next_token_labels([[1]], ONES), TypeError, "input_ids must be a tensor, got list"),
        (lambda: mask_tokens(ONES, ONES.float(), 0, 5), TypeError, "attention_mask must be int"),
        (lambda: mask_tokens(ONES, ONES[:1], 0, 5), ValueError, "must have one shape"),
    ],
)
def test_misuse_is_refused(call, error, message):
    with pytest.raises(error, match=message):
        call()


# ---- Batch ---------------------------------------------------------------------------------------


def test_a_batch_is_read_by_attribute_by_name_and_as_keywords():
    batch = pad(ROWS)
    assert batch["input_ids"] is batch.input_ids
    assert list(batch) == ["input_ids", "attention_mask", "labels", "segment_ids"]
    assert len(batch) == 4
    assert dict(**batch) == {name: getattr(batch, name) for name in batch}
    with pytest.raises(AttributeError, match="cannot assign"):
        batch.labels = batch.input_ids
    with pytest.raises(KeyError, match="'ids': a Batch has input_ids, attention_mask, labels"):
        batch["ids"]
    with pytest.raises(KeyError, match="a PairBatch has source_ids, source_mask, target_ids"):
        pad_pairs([[5]], [[6]], BOS, EOS)["to"]
    with pytest.raises(AttributeError, match="cannot assign"):
        pad_pairs([[5]], [[6]], BOS, EOS).labels = batch.input_ids


@pytest.mark.parametrize(
    "batch",
    [pad(ROWS), pad(ROWS, labels=ROWS), pad_pairs(ROWS, ROWS, BOS, EOS)],
    ids=["without labels", "with labels", "pairs"],
)
def test_to_moves_every_tensor(batch):
    moved = batch.to("meta")
    assert type(moved) is type(batch)
    for name in batch:
        assert (moved[name] is None) == (batch[name] is None)
        assert moved[name] is None or moved[name].device.type == "meta"


@pytest.mark.parametrize(("device", "later"), [("cpu", False), ("meta", True)])
def test_a_cpu_waits_for_its_copy(device, later, monkeypatch):
    asked = []
    monkeypatch.setattr(Tensor, "to", lambda x, *_, **how: asked.append(how) or x)
    pad(ROWS).to(device)
    assert asked == [{"non_blocking": later}] * 2


@pytest.mark.parametrize("batch", [pad(ROWS, labels=ROWS), pad_pairs(ROWS, ROWS, BOS, EOS)])
def test_the_parts_of_a_batch_are_its_rows_in_turn(batch):
    for number, rows in enumerate(([0, 2], [1, 3])):
        part = batch.part(number, 2)
        assert type(part) is type(batch)
        for name, tensor in batch.items():
            assert part[name] is tensor is None or torch.equal(part[name], tensor[rows])


def test_a_part_without_rows_is_the_first_row_without_its_labels():
    batch = pad(ROWS, labels=ROWS)
    part = batch.part(5, 6)
    assert torch.equal(part.input_ids, batch.input_ids[:1])
    assert torch.equal(part.attention_mask, batch.attention_mask[:1])
    assert part.labels.tolist() == [[IGNORE_INDEX] * 4]
    assert part.segment_ids is None


@pytest.mark.parametrize("batch", [pad(ROWS, labels=ROWS), pad_pairs(ROWS, ROWS, BOS, EOS)])
def test_every_tensor_of_a_batch_is_pinned(batch, monkeypatch):
    monkeypatch.setattr(Tensor, "pin_memory", lambda x: x + 100)
    found = batch.pin_memory()
    assert type(found) is type(batch)
    for name, tensor in batch.items():
        assert found[name] is tensor is None or torch.equal(found[name], tensor + 100)


# ---- labels --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("attention_mask", "expected"),
    [
        ([1, 1, 1, 0, 0], [11, 12, -100, -100, -100]),
        ([0, 0, 1, 1, 1], [-100, -100, 13, 14, -100]),
        ([1, 0, 1, 0, 1], [12, -100, 14, -100, -100]),
        ([1, 1, 2, 2, 2], [11, -100, 13, 14, -100]),
        ([2, 1, 2, 0, 1], [12, 14, -100, -100, -100]),
        ([0, 0, 0, 1, 0], [-100] * 5),
        ([0, 0, 0, 0, 0], [-100] * 5),
    ],
    ids=["right", "left", "holes", "packed", "interleaved", "one token", "padding"],
)
def test_next_token_labels_table(device, attention_mask, expected):
    ids = torch.tensor([[10, 11, 12, 13, 14]], device=device)
    for dtype in (torch.int64, torch.bool) if max(attention_mask) < 2 else (torch.int64,):
        mask = torch.tensor([attention_mask], device=device).to(dtype)
        assert next_token_labels(ids, mask).tolist() == [expected]


def test_next_token_labels_equal_their_loops(device):
    ids = torch.randint(0, VOCABULARY, (20, 7), device=device)
    attention_mask = torch.randint(0, 4, (20, 7), device=device)
    expected = torch.full((20, 7), IGNORE_INDEX)
    for b, row in enumerate(attention_mask.tolist()):
        for t, document in enumerate(row):
            later = [u for u in range(t + 1, 7) if row[u] == document]
            if document and later:
                expected[b, t] = ids[b, later[0]]
    labels = next_token_labels(ids, attention_mask)
    assert labels.device == ids.device
    assert torch.equal(labels.cpu(), expected)


@pytest.mark.parametrize("side", ["right", "left"])
def test_next_token_labels_keep_a_real_end_where_it_is_the_padding_too(side):
    batch = pad([[5, 6, EOS], [EOS, EOS], [7, 3, 4, EOS]], pad_id=EOS, side=side)
    labels = next_token_labels(batch.input_ids, batch.attention_mask)
    assert flat(labels, batch.attention_mask) == [[6, 2, -100], [2, -100], [3, 4, 2, -100]]
    assert (labels[batch.attention_mask == 0] == IGNORE_INDEX).all()


@pytest.mark.parametrize("dtype", [torch.int32, torch.uint8])
def test_next_token_labels_are_int64_for_every_type_of_ids(dtype):
    ids, mask = torch.tensor([[5, 6, 7]]), torch.tensor([[1, 1, 0]])
    labels = next_token_labels(ids.to(dtype), mask)
    assert labels.dtype == torch.int64
    assert torch.equal(labels, torch.tensor([[6, -100, -100]]))


@pytest.mark.parametrize("shape", [(2, 0), (0, 3), (3, 1)])
def test_next_token_labels_of_nearly_nothing(shape):
    labels = next_token_labels(torch.ones(shape).long(), torch.ones(shape).long())
    assert torch.equal(labels, torch.full(shape, IGNORE_INDEX))


@pytest.mark.parametrize(
    ("mask", "error", "message"),
    [
        (torch.ones(1, 3).long(), ValueError, r"one shape, got \(2, 3\) and \(1, 3\)"),
        (torch.ones(2, 3), TypeError, "attention_mask must be int or bool"),
    ],
)
def test_next_token_labels_refuse(mask, error, message):
    with pytest.raises(error, match=message):
        next_token_labels(torch.ones(2, 3).long(), mask)


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        (0, [6, 7, 8, -100]),
        (1, [6, 7, 8, -100]),
        (2, [-100, 7, 8, -100]),
        (3, [-100, -100, 8, -100]),
        (4, [-100, -100, -100, -100]),
    ],
)
def test_completion_labels_table(prompt, expected):
    rows = [[5, 6, 7, 8], []]
    assert completion_labels(rows, [prompt, 0]) == [expected, []]
    assert completion_labels([torch.tensor(row) for row in rows], [prompt, 0]) == [expected, []]
    assert rows == [[5, 6, 7, 8], []]


@given(rows=ragged)
@settings(deadline=None)
def test_completion_labels_without_prompts_are_next_token_labels(rows):
    """Padded on either side or packed."""
    labels = completion_labels(rows, [0] * len(rows))
    length = max(map(len, rows), default=0)
    for batch in (
        pad(rows, labels=labels),
        pad(rows, side="left", labels=labels),
        pack(rows, length + 3, labels=labels),
    ):
        assert torch.equal(batch.labels, next_token_labels(batch.input_ids, batch.attention_mask))


# ---- mask_tokens ---------------------------------------------------------------------------------

MASK, SPECIAL = 3, (0, 1, 2)


@pytest.fixture
def hidden(device):
    """A large batch as (ids, attention_mask, what the model reads, labels)."""
    ids = torch.randint(0, VOCABULARY, (100, 2000), device=device)
    attention_mask = from_lengths(range(1000, 2000, 10), 2000, device=device)
    generator = torch.Generator(device).manual_seed(1)
    masked, labels = mask_tokens(
        ids, attention_mask, MASK, VOCABULARY, SPECIAL, generator=generator
    )
    return ids, attention_mask, masked, labels


def assert_share(chosen: Tensor, among: Tensor, probability: float):
    """Within 4 standard deviations of a binomial."""
    trials = int(among.sum())
    spread = (trials * probability * (1 - probability)) ** 0.5
    assert abs(int((chosen & among).sum()) - trials * probability) < 4 * spread


def test_mask_tokens_chooses_15_percent_and_hides_80_10_10(hidden):
    ids, attention_mask, masked, labels = hidden
    eligible = (attention_mask == 1) & ~torch.isin(ids, torch.tensor([*SPECIAL, MASK]).to(ids))
    chosen = labels != IGNORE_INDEX
    by_chance = 0.1 / (VOCABULARY - len(SPECIAL) - 1)  # a random token that is the true one
    assert_share(chosen, eligible, 0.15)
    assert_share(masked == MASK, chosen, 0.8)
    assert_share(masked == ids, chosen, 0.1 + by_chance)
    assert_share((masked != ids) & (masked != MASK), chosen, 0.1 - by_chance)


def test_mask_tokens_never_chooses_padding_or_special_tokens(hidden):
    ids, attention_mask, masked, labels = hidden
    forbidden = (attention_mask == 0) | torch.isin(ids, torch.tensor([*SPECIAL, MASK]).to(ids))
    assert (labels[forbidden] == IGNORE_INDEX).all()
    assert torch.equal(masked[forbidden], ids[forbidden])


def test_mask_tokens_labels_are_the_true_tokens_where_chosen_and_nothing_changes_elsewhere(hidden):
    ids, _, masked, labels = hidden
    chosen = labels != IGNORE_INDEX
    assert torch.equal(labels[chosen], ids[chosen])
    assert torch.equal(masked[~chosen], ids[~chosen])


def test_mask_tokens_draws_every_ordinary_token_and_no_special_one(hidden):
    ids, _, masked, _ = hidden
    drawn = masked[(masked != ids) & (masked != MASK)]
    counts = torch.bincount(drawn, minlength=VOCABULARY).cpu()
    assert len(counts) == VOCABULARY
    assert (counts[[*SPECIAL, MASK]] == 0).all()
    ordinary = counts[4:].double()
    assert ((ordinary - ordinary.mean()).abs() < 4 * ordinary.mean().sqrt()).all()


def test_mask_tokens_repeats_itself_with_the_same_generator(hidden, device):
    ids, attention_mask, masked, labels = hidden
    before = ids.clone()
    for seed, same in ((1, True), (2, False)):
        again = mask_tokens(
            ids,
            attention_mask,
            MASK,
            VOCABULARY,
            SPECIAL,
            generator=torch.Generator(device).manual_seed(seed),
        )
        assert torch.equal(again[0], masked) is same
        assert torch.equal(again[1], labels) is same
    assert torch.equal(ids, before)


def test_mask_tokens_chooses_none_or_all_at_the_ends(device):
    ids = torch.randint(4, VOCABULARY, (BATCH, 7), device=device)
    attention_mask = from_lengths((2, 7, 0, 3), 7, side="left", device=device)
    masked, labels = mask_tokens(ids, attention_mask, MASK, VOCABULARY, probability=0.0)
    assert torch.equal(masked, ids)
    assert (labels == IGNORE_INDEX).all()
    _, labels = mask_tokens(ids, 5 * attention_mask, MASK, VOCABULARY, probability=1.0)
    assert torch.equal(labels != IGNORE_INDEX, attention_mask == 1)


def test_mask_tokens_spares_the_mask_itself_without_special_ids():
    ids = torch.full((50, 50), MASK)
    masked, labels = mask_tokens(ids, torch.ones_like(ids), MASK, 5, probability=1.0)
    assert torch.equal(masked, ids)
    assert (labels == IGNORE_INDEX).all()


def test_mask_tokens_works_where_the_ids_are():
    ids = torch.full((2, 3), 4)
    with torch.device("meta"):  # the default is another device
        masked, labels = mask_tokens(ids, torch.ones_like(ids), MASK, VOCABULARY)
    assert (masked.device, labels.device) == (ids.device,) * 2


@pytest.mark.parametrize("probability", [-0.1, 1.1, 15])
def test_mask_tokens_refuses_what_is_no_probability(probability):
    with pytest.raises(ValueError, match=rf"must be in \[0, 1\], got {probability}"):
        mask_tokens(torch.ones(1, 2).long(), torch.ones(1, 2).long(), 0, 5, probability=probability)


def test_mask_tokens_refuses_a_vocabulary_without_ordinary_tokens():
    with pytest.raises(ValueError, match="all 3 tokens of the vocabulary are special"):
        mask_tokens(torch.ones(1, 2).long(), torch.ones(1, 2).long(), 0, 3, special_ids=(1, 2))


# ---- packed equals separate ----------------------------------------------------------------------


@given(rows=ragged, spare=st.integers(0, 9), causal=st.booleans())
@settings(deadline=None, max_examples=50)
def test_packed_attention_and_loss_equal_separate_documents(rows, spare, causal):
    """A model of one attention layer, in float64: hidden states per document, loss, gradient."""
    generator = torch.Generator().manual_seed(len(rows))
    table = torch.randn(VOCABULARY, 4, generator=generator, dtype=torch.float64).requires_grad_()

    def run(batch):
        x = table[batch.input_ids].unsqueeze(1)
        mask = padding_mask(batch.attention_mask)
        if causal:
            mask = mask & causal_mask(mask.shape[-1])
        output, _ = scaled_dot_product_attention(x, x, x, mask)
        labels = next_token_labels(batch.input_ids, batch.attention_mask)
        loss = cross_entropy(output[:, 0] @ table.T, labels)
        (gradient,) = torch.autograd.grad(loss, table)
        tokens = flat(batch.input_ids, batch.attention_mask)
        hidden = output[:, 0][batch.attention_mask != 0].detach().split([*map(len, tokens)])
        return loss.detach(), gradient, sorted(zip(tokens, map(Tensor.tolist, hidden), strict=True))

    rows = list(filter(None, rows))
    packed = run(pack(rows, max(map(len, rows), default=0) + spare, pad_id=7))
    separate = run(pad(rows, pad_id=7, side="left"))
    torch.testing.assert_close(packed[:2], separate[:2], atol=1e-12, rtol=1e-12)
    for (tokens, hidden), (same_tokens, expected) in zip(packed[2], separate[2], strict=True):
        assert tokens == same_tokens
        torch.testing.assert_close(torch.tensor(hidden), torch.tensor(expected))


def test_rows_may_be_numpy_integers():
    numpy = pytest.importorskip("numpy")
    assert pad([numpy.array([5, 6]), [7]]).input_ids.tolist() == [[5, 6], [7, 0]]


def test_batches_are_compared_and_hashed_as_objects():
    batch = pad([[5]])
    assert batch == batch
    assert batch != pad([[5]])
    assert len({batch, batch, pad([[5]])}) == 2
