"""Attention by another formula, with other heads, arrays or arguments: declared, and checked."""

import math

import numpy as np
import pytest
import torch
from correct_attentions import (
    capped_before_the_mask,
    grouped_heads,
    in_numpy,
    one_in_the_denominator,
    sequence_by_sequence,
    sigmoid,
    sigmoid_attention,
)
from torch.nn import functional as F

from minitransformer.checks import AttentionSubject, attention_weights_of, check_attention
from minitransformer.checks.attention.adapters import from_mask_mod, from_varlen
from minitransformer.checks.attention.cases import make_inputs, masks
from minitransformer.checks.attention.subject import backward_weights_of
from minitransformer.checks.finding import parse_declarations

INF = float("inf")


def scores(query, key):
    return query @ key.mT / query.shape[-1] ** 0.5


def attention(query, key, value, mask):
    return scores(query, key).masked_fill(~mask, -INF).softmax(dim=-1) @ value


def after_the_softmax(query, key, value, mask):
    return scores(query, key).softmax(dim=-1) * mask @ value


# ---- a soft cap ----------------------------------------------------------------------------------


@pytest.mark.parametrize("cap", [30.0, 50.0])
def test_a_soft_cap_may_be_declared_and_its_mask_is_asked_for(cap):
    def after_the_mask(query, key, value, mask):
        found = scores(query, key).masked_fill(~mask, -INF)
        return (cap * (found / cap).tanh()).softmax(dim=-1) @ value

    report = check_attention(after_the_mask, softcap=cap)
    assert report.likely == ("soft cap after the mask",)
    assert "forbidden_keys_get_exactly_zero" in report.failed
    right = check_attention(capped_before_the_mask, softcap=cap)
    assert right.passed == (cap == 30.0)
    assert check_attention(attention, softcap=cap).likely == ("soft cap left out",)


def test_a_soft_cap_that_is_not_declared_is_asked_about():
    report = check_attention(capped_before_the_mask)
    assert report.failed[0] == "without_padding_it_is_the_formula"
    assert report.likely == ()
    assert "can be declared: softcap" in report.diagnosis


# ---- weights that sum to less --------------------------------------------------------------------


def test_weights_may_sum_to_less_where_that_is_declared():
    assert check_attention(one_in_the_denominator, sums_to_one=False, tier="robust").passed
    report = check_attention(one_in_the_denominator)
    assert report.failed[0] == "weights_sum_to_one"
    assert "by design (sums_to_one=False)?" in report.diagnosis
    assert report.likely == ()


def test_sums_of_at_most_one_are_still_asked_for_the_mask_and_the_formula():
    def masked_beside_the_sink(query, key, value, mask):
        raised = scores(query, key).exp()
        return raised / (1.0 + raised.sum(dim=-1, keepdim=True)) * mask @ value

    report = check_attention(masked_beside_the_sink, sums_to_one=False)
    assert report.likely == ("masked keys beside the sink",)
    report = check_attention(lambda *given: 2.0 * attention(*given), sums_to_one=False)
    assert "weights_sum_to_one" in report.failed
    assert "sum to 2, not 1 at most." in report["weights_sum_to_one"].diagnosis

    def not_scaled(query, key, value, mask):
        return 0.5 * attention(query * query.shape[-1] ** 0.5, key, value, mask)

    report = check_attention(not_scaled, sums_to_one=False)
    assert "without_padding_it_is_the_formula" in report.failed
    assert "weights_sum_to_one" not in report.failed
    assert report["gradients_are_right"].outcome == "not applicable"


# ---- a reference of one's own --------------------------------------------------------------------


def test_a_reference_takes_the_formulas_place():
    assert check_attention(sigmoid_attention, reference=sigmoid, tier="robust").passed
    assert not check_attention(sigmoid_attention).passed

    def without_its_mask(query, key, value, mask):
        return sigmoid(query, key, torch.ones_like(mask)) @ value

    report = check_attention(without_its_mask, reference=sigmoid)
    assert report.failed[0] == "forbidden_keys_get_exactly_zero"
    assert "the reference's weights · V" in report["with_a_mask_it_is_the_formula"].diagnosis


def test_another_formula_than_the_references_is_no_known_bug():
    """A bug of the plain formula fails by that, too, whatever else is wrong with it."""
    report = check_attention(attention, reference=sigmoid)
    assert "without_padding_it_is_the_formula" in report.failed
    assert report.likely == ()


def test_a_reference_without_gradients_is_no_reference_for_gradients():
    def by_numpy(query, key, mask):
        return sigmoid(query.detach(), key.detach(), mask)

    report = check_attention(sigmoid_attention, reference=by_numpy)
    assert report.passed
    assert report["gradients_are_right"].outcome == "not applicable"


def test_a_reference_of_the_wrong_shape_is_told():
    report = check_attention(attention, reference=lambda query, key, mask: query)
    assert "reference must return weights of shape (4, 2, 5, 7), got (4, 2, 5, 8)" in str(report)


# ---- grouped heads -------------------------------------------------------------------------------


def interleaved(query, key, value, mask):
    key, value = (x.repeat(1, query.shape[1] // x.shape[1], 1, 1) for x in (key, value))
    return attention(query, key, value, mask)


def neighboring(query, key, value, mask, then=attention):
    key, value = (x.repeat_interleave(query.shape[1] // x.shape[1], dim=1) for x in (key, value))
    return then(query, key, value, mask)


def test_neighboring_heads_of_queries_share_a_head_of_keys():
    assert check_attention(grouped_heads, kv_heads=2, tier="strict").passed
    assert check_attention(interleaved, kv_heads=2).likely == ("key heads interleaved",)
    assert check_attention(interleaved, kv_heads=1).passed


def test_the_known_bugs_are_known_with_grouped_heads_too():
    report = check_attention(lambda *given: neighboring(*given, then=after_the_softmax), kv_heads=2)
    assert report.likely == ("mask after the softmax",)


def test_weights_of_grouped_heads_are_read_head_by_head():
    subject = AttentionSubject(grouped_heads, kv_heads=2)
    inputs, mask = make_inputs(subject), masks(subject)["causal"]
    assert [x.shape[1] for x in inputs] == [6, 2, 2]
    forward = attention_weights_of(subject, *inputs, mask)
    backward = backward_weights_of(subject, *inputs, mask)
    torch.testing.assert_close(backward, forward.double())
    assert len({tuple(x.flatten().tolist()) for x in forward[0]}) == 6


# ---- the same in real code -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model", "declared", "options"),
    [
        ("gemma2", {"softcap": 50.0}, {"softcap": 50.0}),
        ("gpt_oss", {"sums_to_one": False}, {}),
        ("llama", {"kv_heads": 2}, {}),
    ],
)
def test_attention_of_transformers_passes_as_what_it_is(model, declared, options):
    name = f"transformers.models.{model}.modeling_{model}"
    forward = pytest.importorskip(name).eager_attention_forward
    layer = torch.nn.Module().eval()

    def attend(query, key, value, mask):
        layer.num_key_value_groups = query.shape[1] // key.shape[1]
        layer.sinks = torch.linspace(-1.0, 1.0, query.shape[1]).to(query)
        hidden = torch.zeros_like(mask, dtype=query.dtype)
        hidden = hidden.masked_fill(~mask, torch.finfo(query.dtype).min)
        scaling = query.shape[-1] ** -0.5
        output, weights = forward(layer, query, key, value, hidden, scaling=scaling, **options)
        return output.transpose(1, 2), weights

    report = check_attention(attend, mask_layout="b h q k", **declared)
    assert report.passed, str(report)
    assert not check_attention(attend, mask_layout="b h q k").passed or model == "llama"


# ---- arrays of NumPy -----------------------------------------------------------------------------


def numpy_after_the_softmax(query, key, value, mask):
    found = query @ key.swapaxes(-1, -2) / np.float32(math.sqrt(query.shape[-1]))
    raised = np.exp(found - found.max(axis=-1, keepdims=True))
    return raised / raised.sum(axis=-1, keepdims=True) * mask @ value


def test_arrays_of_numpy_are_taken_and_returned():
    report = check_attention(in_numpy, arrays="numpy", tier="robust")
    assert report.passed
    assert report["gradients_are_right"].diagnosis == "it does not promise gradients"
    assert AttentionSubject(in_numpy, arrays="numpy").dtypes == (
        torch.float32,
        torch.float64,
        torch.float16,
    )


def test_a_bug_in_numpy_is_known_by_its_numbers():
    report = check_attention(numpy_after_the_softmax, arrays="numpy")
    assert report.likely == ("mask after the softmax",)


@pytest.mark.parametrize(
    ("fn", "words"),
    [
        (lambda q, k, v, mask: in_numpy(q, k, v, mask).astype("float64"), "torch.float64"),
        (lambda q, k, v, mask: in_numpy(q, k, v, mask)[..., ::-1], "differs from softmax"),
        (lambda q, k, v, mask: v[:, :, : q.shape[2]], "It returned its value"),
        (lambda q, k, v, mask: in_numpy(q, k, v, mask).tolist(), "returned a list"),
    ],
)
def test_what_a_numpy_function_returns_is_looked_at(fn, words):
    assert words in str(check_attention(fn, arrays="numpy"))


# ---- batches and shapes --------------------------------------------------------------------------


def test_as_many_sequences_as_heads_are_no_heads():
    def broadcast(query, key, value, mask):
        mask = mask[None] if len(mask) == query.shape[1] else mask[:, None]
        return attention(query, key, value, mask)

    report = check_attention(broadcast, mask_layout="b q k")
    assert report.likely == ("batch read as heads",)
    words = report["a_row_alone_equals_it_in_the_batch"].diagnosis
    assert "in a batch of 2, as many as heads" in words


def test_a_batch_of_one_is_told_from_the_batch():
    def only_for_batches(query, key, value, mask):
        return attention(query, key, value, mask if len(query) > 1 else torch.ones_like(mask))

    report = check_attention(only_for_batches)
    assert report.likely == ("mask only for batches",)
    assert report.failed == ["a_row_alone_equals_it_in_the_batch"]
    words = report["a_row_alone_equals_it_in_the_batch"].diagnosis
    assert "alone it is off softmax(QKᵀ/√d) V by 1.58" in words
    assert "e-" in words.split("in the batch by ")[1]


def test_as_many_queries_as_keys_are_asked_for():
    def causal_if_square(query, key, value, mask):
        mask = mask.tril() if query.shape[2] == key.shape[2] else mask
        return attention(query, key, value, mask.where(mask.any(-1, True), True))

    words = check_attention(causal_if_square)["with_a_mask_it_is_the_formula"].diagnosis
    assert "as many queries as keys" in words


def test_a_counted_filling_is_not_called_a_late_mask():
    def rounded_up(query, key, value, mask, block=16):
        more = -key.shape[2] % block
        key, value = (F.pad(x, (0, 0, 0, more)) for x in (key, value))
        return attention(query, key, value, F.pad(mask, (0, more), value=True))

    report = check_attention(rounded_up)
    assert report.likely == ("the filling of the last block counted",)
    assert "after the softmax" not in str(report)
    report = check_attention(lambda *given: rounded_up(*given, block=9))
    assert report.likely == ()
    assert "a sum over the allowed keys alone?" in report.diagnosis


def test_an_additive_mask_made_bool_is_named_first():
    def made_bool(query, key, value, mask):
        return F.scaled_dot_product_attention(query, key, value, mask.bool())

    report = check_attention(made_bool, mask_values="additive")
    assert report.likely[0] == "additive mask made bool"
    report = check_attention(lambda q, k, v, mask: attention(q, k, v, ~mask))
    assert "additive mask made bool" not in report.likely


# ---- other arguments -----------------------------------------------------------------------------


def test_a_function_of_packed_sequences_is_checked_through_an_adapter():
    def no_boundaries(query, key, value, *_):
        query, key, value = (x.transpose(0, 1) for x in (query, key, value))
        return (scores(query, key).softmax(dim=-1) @ value).transpose(0, 1)

    right = from_varlen(sequence_by_sequence)
    assert check_attention(right, mask_layout="b k", tier="strict").passed
    report = check_attention(from_varlen(no_boundaries), mask_layout="b k")
    assert report.likely == ("boundaries of the sequences ignored",)


def test_packed_sequences_have_their_boundaries():
    given = []

    def remembers(query, key, value, *rest):
        given.extend([query.shape, key.shape, *rest])
        return query

    query, key, value = (torch.rand(2, 3, length, 4) for length in (2, 5, 5))
    mask = torch.tensor([[True, True, False, False, True], [False, True, False, False, False]])
    output = from_varlen(remembers)(query, key, value, mask)
    assert torch.equal(output, query)
    assert given[:2] == [(4, 3, 4), (4, 3, 4)]
    assert [x.tolist() for x in given[2:4]] == [[0, 2, 4], [0, 3, 4]]
    assert {x.dtype for x in given[2:4]} == {torch.int32}
    assert given[4:] == [2, 3]


def by_mask_mod(query, key, value, mask_mod):
    """Each score is asked for by its indices, as FlexAttention does."""
    found = scores(query, key)
    indices = torch.meshgrid(*map(torch.arange, found.shape), indexing="ij")
    return found.masked_fill(~mask_mod(*indices), -INF).softmax(dim=-1) @ value


def test_a_function_of_a_mask_mod_is_checked_through_an_adapter():
    assert check_attention(from_mask_mod(by_mask_mod), mask_layout="b h q k").passed

    def of_the_first_head(query, key, value, mask_mod):
        return by_mask_mod(query, key, value, lambda b, h, q, k: mask_mod(b, 0 * h, q, k))

    report = check_attention(from_mask_mod(of_the_first_head), mask_layout="b h q k")
    assert report.likely == ("mask of the first head for all",)


# ---- declarations --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("declared", "error", "words"),
    [
        ({"softcap": -1.0}, ValueError, "softcap must be a positive number, or 0, got -1.0"),
        ({"softcap": INF}, ValueError, "softcap must be a positive number"),
        ({"softcap": 3.0, "reference": sigmoid}, ValueError, "give a reference or a softcap"),
        ({"reference": "softmax"}, TypeError, "reference must be a function, got str"),
        ({"kv_heads": -1}, ValueError, "kv_heads must be 0 or more"),
        ({"kv_heads": 1, "layout": "b t d"}, ValueError, "in a layout with h"),
        ({"arrays": "jax"}, ValueError, "arrays must be one of torch, numpy"),
        ({"arrays": "numpy", "dtypes": ("bfloat16",)}, ValueError, "NumPy has no bfloat16"),
    ],
)
def test_declarations_are_checked(declared, error, words):
    with pytest.raises(error, match=words):
        AttentionSubject(attention, **declared)


def test_declarations_are_typed():
    typed = {"softcap": "30", "sums_to_one": "no", "kv_heads": "2", "arrays": "numpy"}
    assert parse_declarations(AttentionSubject, typed) == {
        "softcap": 30.0,
        "sums_to_one": False,
        "kv_heads": 2,
        "arrays": "numpy",
    }
    with pytest.raises(ValueError, match="reference is a function: declare it in Python"):
        parse_declarations(AttentionSubject, {"reference": "mine.py:law"})
