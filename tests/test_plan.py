"""A plan covers what a mask allows, once, and little else."""

import pytest
import torch
from conftest import BATCH, HEADS, from_lengths
from kernel_masks import LONG, some_masks

from minitransformer import causal_mask, padding_mask
from minitransformer.kernels import plan
from minitransformer.kernels.plan import make_plan


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


def test_a_plan_covers_what_is_allowed_once_and_nothing_else():
    for what, mask in some_masks(**LONG).items():
        wanted = mask.expand(BATCH, HEADS, -1, -1).flatten(0, 1)
        for whole in (False, True):
            found = make_plan(mask, BATCH, HEADS, whole)
            rows = BATCH * HEADS if found.per_head else BATCH
            times = covered(found, rows, **LONG)
            times = times if found.per_head else times.repeat_interleave(HEADS, dim=0)
            assert torch.equal(times, wanted.long()), what


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
    length = 3 * plan.QUERIES + 5
    for mask in (torch.ones(1, 1, length, length, dtype=torch.bool), causal_mask(length)):
        assert len(strips_of(make_plan(mask, 1, 8))) == 4
        (strip,) = strips_of(make_plan(mask, 1, 8, whole=True))
        assert strip.queries == slice(0, length)
    window = causal_mask(length) & ~causal_mask(length).roll(3, dims=2)
    assert len(strips_of(make_plan(window, 1, 8, whole=True))) == 4
