"""A plan covers what a mask allows, once, and little else."""

import pytest
import torch
from conftest import BATCH, HEADS, KEYS, QUERIES, from_lengths
from kernel_masks import LONG, some_masks
from pretended import pretended_gpu

from minitransformer import causal_mask, padding_mask
from minitransformer.kernels import plan
from minitransformer.kernels.plan import Group, Plan, Strip, make_plan


def strips_of(found):
    return [strip for group in found.groups for strip in group.strips]


def covered(found, batch, queries, keys):
    """How often each (row, query, key) is looked at, copies that fill up a group left out."""
    times = torch.zeros(batch * queries * keys, dtype=torch.int64)
    for group in found.groups:
        for strip in group.strips:
            rows = strip.documents
            q, real = group.queries[rows, strip.queries], group.real[rows, strip.queries]
            k = plan.joined(group.keys[rows], strip.keys, dim=1)
            pairs = q.unsqueeze(2) * keys + (k % keys).unsqueeze(1)
            bias = torch.tensor(0.0) if strip.bias is None else strip.bias.squeeze(1)
            seen = (real.unsqueeze(2) & (bias == 0.0)).expand_as(pairs)
            times += torch.bincount(pairs[seen], minlength=len(times))
    return times.view(batch, queries, keys)


# So small that five queries are several strips, and seven keys several tiles.
SMALL = {"QUERIES": 2, "KEYS": 2, "SHORT": 3, "FEWEST": 2, "LARGEST": 12}
SMALL |= {"GROUP_COST": 9, "COPY_COST": 0}


@pytest.mark.parametrize(
    ("sizes", "changed"),
    [
        (LONG, {}),
        ({"queries": QUERIES, "keys": KEYS}, {}),
        ({"queries": QUERIES, "keys": KEYS}, SMALL),
        ({"queries": QUERIES, "keys": KEYS}, SMALL | {"LARGEST": 1}),
        ({"queries": 1, "keys": KEYS}, SMALL),
        ({"queries": 1, "keys": 1}, {}),
    ],
)
def test_a_plan_covers_what_is_allowed_once_and_nothing_else(sizes, changed, monkeypatch):
    for name, value in changed.items():
        monkeypatch.setattr(plan, name, value)
    masks = some_masks(**sizes)
    masks["from the end"] = causal_mask(sizes["keys"]).flip(3)[..., -sizes["queries"] :, :]
    masks["a dead query"] = masks["everything"].clone()
    masks["a dead query"][:, :, -1] = False
    for what, mask in masks.items():
        wanted = mask.expand(BATCH, HEADS, -1, -1).flatten(0, 1)
        for whole in (False, True):
            found = make_plan(mask, BATCH, HEADS, whole)
            if whole and not found.groups:  # to gather them would cost more
                continue
            assert found.per_head is (mask.shape[1] > 1)
            rows = BATCH * HEADS if found.per_head else BATCH
            times = covered(found, rows, **sizes)
            times = times if found.per_head else times.repeat_interleave(HEADS, dim=0)
            assert torch.equal(times, wanted.long()), what


@pytest.mark.parametrize("size", [(0, 1, 3, 4), (2, 1, 0, 4), (2, 1, 3, 0), (2, 3, 0, 0)])
def test_where_there_is_nothing_there_is_no_group(size):
    for whole in (False, True):
        found = make_plan(torch.ones(size, dtype=torch.bool), size[0], 3, whole)
        assert found == Plan([], size[1] > 1)


def test_a_mask_is_read_query_by_query(monkeypatch):
    seen = torch.tensor([[[0, 1, 1, 0], [0, 0, 0, 0], [1, 0, 0, 1]]] * 2).bool()
    seen[1, 1, 3] = True
    counts, firsts, lasts = [[2, 0, 2], [2, 1, 2]], [[1, 4, 0], [1, 3, 0]], [[2, -1, 3], [2, 3, 3]]
    for largest in (plan.LARGEST, 8, 1):  # all, two queries, or one at a time
        monkeypatch.setattr(plan, "LARGEST", largest)
        found = plan._keys_of_each_query(seen)
        assert found.tolist() == [counts, firsts, lasts]


def test_zero_is_what_is_added_where_attention_is_allowed():
    allowed = torch.tensor([True, False])
    assert plan.as_bias(allowed).dtype == torch.float32
    for dtype in (torch.float32, torch.bfloat16):
        assert torch.equal(plan.as_bias(allowed, dtype), torch.tensor([0, -torch.inf], dtype=dtype))


def test_on_a_gpu_each_row_of_a_bias_begins_at_a_multiple_of_16():
    """Else torch's kernel copies it, and on a CPU nothing is made longer."""
    for keys, room in {1: 16, 16: 16, 17: 32}.items():
        for device, step in (("meta", room), ("cpu", keys)):
            bias = plan.as_bias(torch.ones(2, 1, 3, keys, dtype=torch.bool, device=device))
            assert (bias.shape, bias.stride()[2:]) == ((2, 1, 3, keys), (step, 1))


def test_a_mask_for_all_rows_is_read_once_and_serves_each():
    for rows in (1, 2, 3):
        found = make_plan(row_of(3, 4), rows, 1)
        assert sorted(found.queries[found.back].tolist()) == list(range(7 * rows))


def test_runs_of_keys_are_views_where_they_can_be():
    x = torch.arange(12).view(2, 6)
    (view,) = [plan.joined(x, (slice(1, 4),), dim=1)]
    assert view.tolist() == [[1, 2, 3], [7, 8, 9]]
    assert view.data_ptr() == x[:, 1:].data_ptr()
    assert plan.joined(x, (slice(0, 1), slice(4, 6)), dim=1).tolist() == [[0, 4, 5], [6, 10, 11]]


@pytest.mark.parametrize(
    ("what", "share"),
    [("nothing", 0.0), ("window", 0.35), ("two windows", 0.42), ("packed", 0.2), ("padding", 0.5)],
)
def test_a_plan_leaves_out_what_is_forbidden(what, share):
    found = make_plan(some_masks(**LONG)[what], BATCH, HEADS)
    assert found.scores <= share * BATCH * LONG["queries"] * LONG["keys"]


def test_a_causal_plan_computes_little_more_than_half():
    length = 32 * plan.QUERIES
    assert make_plan(causal_mask(length), 1, 8).scores < 0.52 * length**2


def test_a_batch_without_padding_is_taken_as_it_is():
    for mask in (causal_mask(20), torch.ones(1, 1, 20, 20, dtype=torch.bool)):
        for whole in (False, True):
            for rows in (mask, mask.expand(4, -1, -1, -1)):
                found = make_plan(rows, 4, HEADS, whole)
                assert (found.queries, found.keys, found.back) == (None, None, None)
                assert found.groups[0].queries.shape == (4, 20)
    assert make_plan(padding_mask(from_lengths([20, 19], 20)), 2, HEADS).back is not None


def test_documents_are_gathered_only_where_it_pays():
    def packed(*lengths):
        documents = torch.arange(len(lengths)).repeat_interleave(torch.tensor(lengths))
        return padding_mask(documents.expand(8, -1) + 1)

    few, many = packed(96, 32), packed(*[32] * 4)  # five of eight pairs are True, and a quarter
    assert not make_plan(few, 8, 8, whole=True).groups
    assert make_plan(many, 8, 8, whole=True).scores == 8 * 4 * 32**2
    assert make_plan(few, 8, 8).scores == 8 * (96**2 + 32**2)  # what holds scores holds few
    alike = padding_mask(from_lengths([126, 127, 128, 128] * 2, 128))
    assert not make_plan(alike, 8, 8, whole=True).groups
    assert make_plan(alike & causal_mask(128), 8, 8, whole=True).groups  # half is not computed


def test_documents_of_like_lengths_are_computed_together_wherever_they_stand():
    lengths = (60, 9, 3, 58, 8, 60)
    documents = torch.repeat_interleave(torch.arange(1, 7), torch.tensor(lengths))[None]
    mask = padding_mask(documents)
    found = make_plan(mask, 1, 8, whole=True)
    begins = torch.tensor(lengths).cumsum(0) - torch.tensor(lengths)
    groups = [group.queries[:, 0].tolist() for group in found.groups]
    assert groups == [begins[[0, 5, 3]].tolist(), begins[[1, 4, 2]].tolist()]
    assert [group.queries.shape[1] for group in found.groups] == [60, 9]
    causal = make_plan(mask & causal_mask(sum(lengths)), 1, 8, whole=True)
    assert all(strip.causal for strip in strips_of(causal))  # what fills up is in the future


def test_large_documents_of_unlike_lengths_need_no_mask():
    mask = padding_mask(from_lengths([600, 600, 400, 600], 600))
    found = make_plan(mask, 4, 8, whole=True)
    assert [tuple(group.queries.shape) for group in found.groups] == [(3, 600), (1, 400)]
    assert all(strip.bias is None for strip in strips_of(found))


def test_scores_that_are_held_fit_into_a_cache():
    small = torch.ones(64, 1, 90, 90, dtype=torch.bool)
    for whole, mask in ((True, small), (False, small), (False, small.repeat(1, 1, 20, 20)[:2])):
        for strip in strips_of(make_plan(mask, len(mask), 8, whole)):
            assert 8 * strip.scores <= max(plan.LARGEST, 8 * plan.QUERIES * mask.shape[3])
    assert len(make_plan(small, 64, 8, whole=True).groups) == 4


def test_a_kernel_that_holds_no_scores_gets_what_is_whole_in_one_piece():
    """A causal document only where the kernel leaves out as much of its future as strips do."""
    length = 3 * plan.QUERIES + 5
    full = torch.ones(1, 1, length, length, dtype=torch.bool)
    assert len(strips_of(make_plan(full, 1, 8))) == 4
    (strip,) = strips_of(make_plan(full, 1, 8, whole=True))
    assert strip.queries == slice(0, length)
    pieces = {319: 1, 320: 3, 512: 4, 513: 1}
    for size, number in pieces.items():
        strips = strips_of(make_plan(causal_mask(size), 1, 1, whole=True))
        assert [len(strips), strips[0].causal] == [number, number == 1]
    with pretended_gpu("mps"):  # where the kernel is another
        (strip,) = strips_of(make_plan(causal_mask(512).to("mps"), 1, 1, whole=True))
        assert strip.causal
    window = causal_mask(length) & ~causal_mask(length).roll(3, dims=2)
    assert len(strips_of(make_plan(window, 1, 8, whole=True))) == 4


def row_of(*lengths):
    """Documents of these lengths in a row of their own, which they fill."""
    return padding_mask(
        torch.arange(len(lengths)).repeat_interleave(torch.tensor(lengths))[None] + 1
    )


def test_documents_that_fill_a_row_are_not_the_rows():
    """All tokens, in order, and yet another batch."""
    found = make_plan(row_of(*[17] * 4), 1, HEADS)
    assert found.back is not None
    assert found.groups[0].queries.shape == (4, 17)


def test_a_document_of_few_keys_is_filled_up():
    (group,) = make_plan(padding_mask(from_lengths([1], 20)), 1, HEADS).groups
    assert (group.queries.shape, group.keys.shape) == ((1, 1), (1, plan.FEWEST))
    (strip,) = group.strips
    assert strip.bias.flatten().tolist() == [0.0] + [-torch.inf] * (plan.FEWEST - 1)


def sizes_of(found):
    return [tuple(group.queries.shape) for group in found.groups]


@pytest.mark.parametrize(
    ("more", "sizes"), [(-1, [(1, 9), (1, 5)]), (0, [(2, 9)])], ids=["dearer", "as dear"]
)
def test_a_group_is_for_what_it_saves(more, sizes, monkeypatch):
    """Documents of 9 and 5 tokens would be 2 · 2 · 81 scores of two heads, of which 2 · 106."""
    monkeypatch.setattr(plan, "GROUP_COST", 2 * (2 * 81 - 106) + more)
    monkeypatch.setattr(plan, "FEWEST", 1)
    assert sizes_of(make_plan(row_of(9, 5), 1, 2)) == sizes


def test_heads_that_differ_are_rows_of_one_head(monkeypatch):
    monkeypatch.setattr(plan, "GROUP_COST", 2 * 81 - 106)
    mask = torch.zeros(1, 2, 9, 9, dtype=torch.bool)
    mask[0, 0], mask[0, 1, :5, :5] = True, True
    assert sizes_of(make_plan(mask, 1, 2)) == [(2, 9)]


@pytest.mark.parametrize(
    ("queries", "keys", "whole", "most"),
    [  # documents of a group, of which one has 20 or 30 scores
        (4, 5, False, 2),
        (5, 4, False, 4),  # longer than a strip: these are cut into strips again
        (5, 4, True, 2),
        (4, 5, True, 4),  # longer than SHORT: nothing is held
    ],
)
@pytest.mark.parametrize("largest", [40, 59])
def test_a_group_that_is_held_fits_into_a_cache(queries, keys, whole, most, largest, monkeypatch):
    for name, value in {"QUERIES": 4, "SHORT": 4, "FEWEST": 1, "LARGEST": largest}.items():
        monkeypatch.setattr(plan, name, value)
    monkeypatch.setattr(plan, "COPY_COST", -(10**6))  # what is gathered is worth it
    found = make_plan(torch.ones(4, 1, queries, keys, dtype=torch.bool), 4, 1, whole)
    assert [len(group.queries) for group in found.groups] == [most] * (4 // most)


def test_what_is_larger_than_the_cache_is_computed_one_by_one(monkeypatch):
    monkeypatch.setattr(plan, "LARGEST", 10)
    monkeypatch.setattr(plan, "FEWEST", 1)
    assert sizes_of(make_plan(row_of(5, 5, 5), 1, 1)) == [(1, 5)] * 3


def test_the_cost_of_a_plan():
    tokens = torch.zeros(3, 5).long()
    strips = [Strip(slice(0, 3), slice(0, 5), (slice(0, 5),), None, causal) for causal in (1, 0)]
    groups = [Group(tokens, tokens, tokens.bool(), [strip]) for strip in strips]
    scores = 75 // 2 + 75 + plan.COPY_COST * 30
    assert plan._cost(groups, 2) == 2 * scores + 2 * plan.GROUP_COST


@pytest.mark.parametrize(("cost", "gathered"), [(0, True), (1, False)])
def test_to_gather_may_cost_as_much_as_it_saves(cost, gathered, monkeypatch):
    """Two documents of 4 in a row of 8: 32 of 64 scores, and 32 more for the group."""
    monkeypatch.setattr(plan, "SHORT", 7)
    monkeypatch.setattr(plan, "FEWEST", 1)
    monkeypatch.setattr(plan, "COPY_COST", 0)
    monkeypatch.setattr(plan, "GROUP_COST", 32 + cost)
    found = make_plan(row_of(4, 4), 1, 1, whole=True)
    assert len(found.groups) == gathered
    assert gathered or found == Plan([], False)
    monkeypatch.setattr(plan, "SHORT", 8)  # short documents are held, so fewer scores are better
    assert make_plan(row_of(4, 4), 1, 1, whole=True).groups


def test_what_a_strip_is_given(monkeypatch):
    """One bias for documents that are alike, and none where it would hide nothing."""
    monkeypatch.setattr(plan, "FEWEST", 1)
    monkeypatch.setattr(plan, "QUERIES", 8)
    (strip,) = strips_of(make_plan(causal_mask(8), 3, 1))
    assert (strip.causal, strip.bias.shape) == (True, (1, 1, 8, 8))
    other = causal_mask(8).flip(3)
    (strip,) = strips_of(make_plan(other, 3, 1))
    assert (strip.causal, strip.bias.shape) == (False, (1, 1, 8, 8))
    monkeypatch.setattr(plan, "QUERIES", 4)
    monkeypatch.setattr(plan, "KEYS", 4)
    monkeypatch.setattr(plan, "LARGEST", 2 * 2 * 4 * 8)  # two documents of two heads
    found = make_plan(torch.ones(3, 1, 8, 8, dtype=torch.bool), 3, 2)
    assert [(strip.documents, strip.bias) for strip in strips_of(found)] == [
        (slice(0, 2), None),
        (slice(2, 3), None),
    ] * 2
    first = torch.zeros(1, 1, 8, 8, dtype=torch.bool)  # the first queries see all that they may
    first[..., :4, :4], first[..., 4:, 4:], first[..., 7, 0] = True, True, True
    top, bottom = strips_of(make_plan(first, 1, 2))
    assert (top.keys, top.bias) == ((slice(0, 4),), None)
    assert (bottom.keys, bottom.bias.shape) == ((slice(0, 8),), (1, 1, 4, 8))


def test_a_plan_lies_where_its_mask_does():
    """What is read on the CPU is taken there once, and nothing else is waited for."""
    for what, mask in some_masks(KEYS, KEYS).items():
        wanted = make_plan(mask, BATCH, HEADS)
        with pretended_gpu("mps") as read_back:
            found = make_plan(mask.to("mps"), BATCH, HEADS)
            assert len(read_back) <= 2, what  # the keys of each query, and which keys are used
            biases = [strip.bias for strip in strips_of(found) if strip.bias is not None]
            for x in (*found[2:], *biases):
                assert x is None or x.device.type == "mps", what
            biases = [bias.cpu() for bias in biases]
        others = [strip.bias for strip in strips_of(wanted) if strip.bias is not None]
        for bias, other in zip(biases, others, strict=True):
            assert torch.equal(bias, other), what
