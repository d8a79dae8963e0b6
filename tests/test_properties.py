"""What must hold whatever the lengths, the holes, the packing and the heads: hypothesis looks for
an example where it does not."""

from functools import cache

import pytest
import torch
from conftest import PARTS, large_init
from torch.testing import assert_close

from minitransformer import (
    Config,
    DecoderOnly,
    EncoderDecoder,
    EncoderOnly,
    MultiHeadAttention,
    causal_mask,
    cross_entropy,
    generate,
    mask_tokens,
    next_token_labels,
    pack,
    pack_pairs,
    pad,
    pad_pairs,
    padding_mask,
    scaled_dot_product_attention,
    token_positions,
)

pytest.importorskip("hypothesis")
from hypothesis import given, settings
from hypothesis import strategies as st

VOCABULARY, LONGEST, BOS, EOS = 11, 6, 1, 2

settings.register_profile("minitransformer", deadline=None, derandomize=True, max_examples=40)
settings.load_profile("minitransformer")

token = st.integers(3, VOCABULARY - 1)
row = st.lists(token, min_size=1, max_size=LONGEST)
rows = st.lists(row, min_size=1, max_size=4)
pairs = st.lists(st.tuples(row, row), min_size=1, max_size=4)
style = st.sampled_from(sorted(PARTS))


@st.composite
def attention_masks(draw, documents=3):
    """(batch, length) int64: any documents anywhere, interleaved even, with any holes."""
    batch, length = draw(st.integers(1, 3)), draw(st.integers(0, 7))
    numbers = st.lists(st.integers(0, documents), min_size=length, max_size=length)
    drawn = draw(st.lists(numbers, min_size=batch, max_size=batch))
    return torch.tensor(drawn, dtype=torch.int64).reshape(batch, length)


@cache
def model(kind, parts):
    """A small one in float64, whose outputs move at the slightest change of a mask."""
    torch.manual_seed(0)
    config = Config(VOCABULARY, d_model=8, num_layers=2, num_heads=4, max_length=40, **PARTS[parts])
    return large_init(kind(config)).double().eval()


def holed(row, generator):
    """The row with padding strewn in: (ids, attention_mask) of (1, length)."""
    length = len(row) + int(torch.randint(0, 5, (), generator=generator))
    places = torch.randperm(length, generator=generator)[: len(row)].sort().values
    ids, mask = torch.zeros(2, 1, length, dtype=torch.int64)
    ids[0, places], mask[0, places] = torch.tensor(row), 1
    return ids, mask


# ---- masks and labels: the definition, written as loops ------------------------------------------


@given(attention_masks())
def test_padding_mask_is_its_definition(attention_mask):
    mask = padding_mask(attention_mask)
    for b, numbers in enumerate(attention_mask.tolist()):
        for q, own in enumerate(numbers):
            for k, other in enumerate(numbers):
                assert mask[b, 0, q, k] == (own == other != 0)


@given(st.integers(0, 9), st.integers(0, 9))
def test_causal_mask_is_its_definition(queries, more):
    keys = queries + more
    mask = causal_mask(queries, keys)
    assert mask.shape == (1, 1, queries, keys)
    for q in range(queries):
        for k in range(keys):
            assert mask[0, 0, q, k] == (keys - 1 - k >= queries - 1 - q)


@given(attention_masks())
def test_token_positions_count_the_tokens_of_a_document(attention_mask):
    positions = token_positions(attention_mask)
    for b, numbers in enumerate(attention_mask.tolist()):
        for t, number in enumerate(numbers):
            assert positions[b, t] == (numbers[:t].count(number) if number else 0)


@given(attention_masks())
def test_labels_are_the_next_token_of_the_same_document(attention_mask):
    ids = torch.arange(1, attention_mask.numel() + 1).reshape(attention_mask.shape)
    labels = next_token_labels(ids, attention_mask)
    for b, numbers in enumerate(attention_mask.tolist()):
        for t, number in enumerate(numbers):
            later = [k for k in range(t + 1, len(numbers)) if numbers[k] == number]
            wanted = ids[b, later[0]] if number and later else -100
            assert labels[b, t] == wanted


@given(attention_masks(documents=1), st.floats(0, 1), st.integers(0, 99))
def test_no_padding_is_hidden_for_the_model_to_find(attention_mask, probability, seed):
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(3, VOCABULARY, attention_mask.shape, generator=generator)
    hidden, labels = mask_tokens(ids, attention_mask, 2, VOCABULARY, (0, 1), probability, generator)
    padding, chosen = attention_mask == 0, labels != -100
    assert not (chosen & padding).any()
    assert torch.equal(hidden[~chosen], ids[~chosen])
    assert torch.equal(labels[chosen], ids[chosen])
    assert not torch.isin(hidden[chosen], torch.tensor([0, 1])).any()


# ---- attention -----------------------------------------------------------------------------------


@given(
    st.integers(1, 3),
    st.integers(1, 3),
    st.integers(1, 5),
    st.integers(1, 6),
    st.integers(1, 5),
    st.floats(0, 1),
    st.sampled_from([torch.float64, torch.float32, torch.bfloat16, torch.float16]),
    st.integers(0, 999),
)
def test_attention_under_any_mask(batch, heads, queries, keys, width, share, dtype, seed):
    """Exact zeros where forbidden, forward and backward; sums of 1; the formula, row by row."""
    torch.manual_seed(seed)
    query, key, value = (
        torch.randn(batch, heads, length, width).to(dtype).requires_grad_()
        for length in (queries, keys, keys)
    )
    mask = torch.rand(batch, heads, queries, keys) < share
    output, weights = scaled_dot_product_attention(query, key, value, mask)
    output.sum().backward()
    alive = mask.any(dim=-1)
    assert (weights[~mask] == 0.0).all()
    assert (output[~alive] == 0.0).all()
    assert (query.grad[~alive] == 0.0).all()
    unseen = ~mask.any(dim=2)
    assert (key.grad[unseen] == 0.0).all()
    assert (value.grad[unseen] == 0.0).all()
    rounding = torch.finfo(dtype).eps * 8
    assert_close(weights.double().sum(-1)[alive], alive.double()[alive], atol=rounding, rtol=0)
    for place in alive.nonzero().tolist():
        b, h, _ = place
        seen = mask[tuple(place)]
        scores = key[b, h, seen].double() @ query[tuple(place)].double() / width**0.5
        wanted = scores.softmax(0) @ value[b, h, seen].double()
        assert_close(output[tuple(place)].double(), wanted, atol=rounding * 8, rtol=rounding * 8)


@given(
    st.integers(1, 3), st.integers(1, 3), st.integers(1, 5), st.integers(1, 5), st.integers(0, 99)
)
def test_grouped_heads_equal_repeated_ones(groups, size, queries, keys, seed):
    """Any number of key/value heads: as if each were written for every query head it serves."""
    torch.manual_seed(seed)
    heads, width = groups * size, 2
    grouped = MultiHeadAttention(heads * width, heads, groups).double()
    full = MultiHeadAttention(heads * width, heads).double()
    state = grouped.state_dict()
    for name in ("key", "value"):
        for part in ("weight", "bias"):
            small = state[f"{name}.{part}"].unflatten(0, (groups, width))
            state[f"{name}.{part}"] = small.repeat_interleave(size, dim=0).flatten(0, 1)
    full.load_state_dict(state)
    x, memory = torch.randn(2, queries, heads * width), torch.randn(2, keys, heads * width)
    mask = torch.rand(2, 1, queries, keys) < 0.7
    assert_close(*(layer(x.double(), memory.double(), mask) for layer in (grouped, full)))


# ---- models: a row is what it is alone -----------------------------------------------------------


@given(rows, style, st.sampled_from([EncoderOnly, DecoderOnly]), st.integers(0, 99))
@settings(max_examples=60)
def test_a_row_is_what_it_is_alone(rows, style, kind, seed):
    """Padded on either side, with holes, or packed with others."""
    one = model(kind, style)
    generator = torch.Generator().manual_seed(seed)
    alone = [
        one(torch.tensor([row]), torch.ones(1, len(row), dtype=torch.int64))[0] for row in rows
    ]
    for side in ("right", "left"):
        batch = pad(rows, side=side, max_length=LONGEST + 2)
        together = one(batch.input_ids, batch.attention_mask)
        for wanted, logits, real in zip(alone, together, batch.attention_mask == 1, strict=True):
            assert_close(logits[real], wanted)
    for row, wanted in zip(rows, alone, strict=True):
        ids, mask = holed(row, generator)
        assert_close(one(ids, mask)[mask == 1], wanted)
    packed = pack(rows, length=LONGEST + seed % 9)
    together = one(packed.input_ids, packed.attention_mask)
    found = []
    for ids, numbers, logits in zip(packed.input_ids, packed.attention_mask, together, strict=True):
        for number in range(1, int(numbers.max()) + 1):
            found.append((ids[numbers == number].tolist(), logits[numbers == number]))
    assert len(found) == len(rows)
    for row, wanted in zip(rows, alone, strict=True):
        assert any(ids == row and torch.allclose(logits, wanted) for ids, logits in found)


@given(pairs, style, st.integers(0, 9))
def test_a_pair_is_what_it_is_alone(pairs, style, spare):
    """The loss of a batch of pairs, padded or packed, is the mean over all their labels."""
    one = model(EncoderDecoder, style)
    sources, targets = [list(x) for x in zip(*pairs, strict=True)]
    total, count = 0.0, 0
    for source, target in pairs:
        total += one.loss(**pad_pairs([source], [target], BOS, EOS)) * (len(target) + 1)
        count += len(target) + 1
    for batch in (
        pad_pairs(sources, targets, BOS, EOS),
        pad_pairs(sources, targets, BOS, EOS, side="left"),
        pack_pairs(sources, targets, LONGEST + spare, BOS, EOS),
    ):
        assert_close(one.loss(**batch), total / count)


@given(rows, style, st.sampled_from([DecoderOnly, EncoderDecoder]))
@settings(max_examples=20)
def test_what_is_written_is_what_is_written_alone(rows, style, kind):
    one = model(kind, style)
    alone = []
    for row in rows:
        batch = pad([row])
        alone += generate(one, batch.input_ids, batch.attention_mask, 5, eos_id=EOS)
    for side in ("right", "left"):
        batch = pad(rows, side=side)
        found = generate(one, batch.input_ids, batch.attention_mask, 5, eos_id=EOS)
        assert [x.tolist() for x in found] == [x.tolist() for x in alone]


# ---- loss ----------------------------------------------------------------------------------------


@given(st.lists(st.sampled_from([-100, 0, 1, 2, 3]), min_size=1, max_size=9), st.data())
def test_the_loss_of_any_split_adds_up(labels, data):
    """Accumulated over any micro-batches, divided by the number of all labels, gradients too."""
    torch.manual_seed(len(labels))
    logits = torch.randn(len(labels), 4, dtype=torch.float64, requires_grad=True)
    target = torch.tensor(labels)
    real = [i for i, label in enumerate(labels) if label != -100]
    wanted = sum(-logits[i].log_softmax(0)[labels[i]] for i in real) / max(len(real), 1)
    whole = cross_entropy(logits, target)
    assert_close(whole, torch.as_tensor(wanted, dtype=torch.float64))
    (gradient,) = torch.autograd.grad(whole, logits)
    assert (gradient[target == -100] == 0.0).all()
    cut = data.draw(st.integers(0, len(labels)))
    parts = sum(
        cross_entropy(logits[part], target[part], num_labels=len(real))
        for part in (slice(None, cut), slice(cut, None))
    )
    assert_close(parts, whole)
    assert_close(torch.autograd.grad(parts, logits)[0], gradient)
