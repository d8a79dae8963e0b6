"""The mask as a map of the work: which parts of queries × keys need to be computed at all.

A mask is read once and cut into strips: a few queries of some rows of the batch, with the keys
that any of them may see. What no strip covers is never touched. The same reading serves padding,
causality, packed documents, windows and cross-attention, because all of them are masks.
"""

from collections.abc import Iterator
from typing import NamedTuple
from weakref import ref

import torch
from einops import rearrange
from torch import Tensor
from torch.nn import functional as F

QUERIES = 128  # queries in a strip: fewer waste less, more are multiplied faster
KEYS = 16  # neighbouring keys that a strip takes or leaves together
STRIP_COST = 20_000  # what a strip costs beside its scores, in scores (measured on a CPU)
LARGEST = 2**20  # scores in a strip of several rows: so many stay in a processor's cache


class Strip(NamedTuple):
    """Some queries of some rows, and the keys that any of them may see."""

    rows: slice  # of the batch
    queries: slice
    keys: tuple[slice, ...]  # runs of neighbouring keys, from left to right
    allowed: Tensor | None  # (rows or 1, heads or 1, queries, keys) bool; None = every one
    dead: Tensor | None  # (rows or 1, heads or 1, queries, 1) bool: see no key; None = no one

    @property
    def scores(self) -> int:
        """How many scores of one head it holds, forbidden ones among them."""
        size = (self.rows.stop - self.rows.start) * (self.queries.stop - self.queries.start)
        return size * sum(run.stop - run.start for run in self.keys)


class Plan(NamedTuple):
    """What an attention needs to know about a mask, in every layer."""

    strips: list[Strip]
    tall: list[Strip]  # the same for a kernel that holds no scores: some are as high as can be
    unused: Tensor | None  # (batch or 1, heads or 1, keys, 1): no query sees them; None = no one
    dead: Tensor | None  # (batch or 1, heads or 1, queries, 1): they see no key; None = no one


def plan_of(mask: Tensor, batch: int, heads: int) -> Plan:
    """The plan of a mask, made for the first layer that asks and remembered for the others."""
    for known, version, sizes, plan in _remembered:
        if known() is mask and version == mask._version and sizes == (batch, heads):
            return plan
    plan = make_plan(mask, batch, heads)
    _remembered[:] = [one for one in _remembered if one[0]() is not None][-3:]
    _remembered.append((ref(mask), mask._version, (batch, heads), plan))
    return plan


_remembered: list[tuple[ref, int, tuple[int, int], Plan]] = []  # which keep no mask alive


def make_plan(mask: Tensor, batch: int, heads: int) -> Plan:
    """Read a mask, (batch or 1, heads or 1, Q, K), for `batch` rows of `heads` heads each.

    Reading it brings a few numbers for each strip to the CPU: on a GPU, one wait for a batch.
    """
    seen = mask.any(dim=1)  # (batch or 1, Q, K): by some head
    alive = seen.any(dim=2)
    strips = []
    for start in range(0, mask.shape[2], QUERIES):
        stop = min(start + QUERIES, mask.shape[2])
        tiles = _tiles(seen[:, start:stop].any(dim=1)).tolist()
        living = alive[:, start:stop].tolist()
        if len(mask) < batch:  # one for all rows
            tiles, living = tiles * batch, living * batch
        for rows, queries, wanted in _groups(tiles, living, heads):
            queries = slice(start + queries.start, start + queries.stop)
            strips.append(_strip(mask, rows, queries, _runs(wanted, mask.shape[3])))
    unused, dead = ~mask.any(dim=2).unsqueeze(-1), ~mask.any(dim=3, keepdim=True)
    return Plan(
        strips, _tall(strips), unused if unused.any() else None, dead if dead.any() else None
    )


def _tiles(keys: Tensor) -> Tensor:
    """(rows, K) bool, which keys are wanted -> (rows, tiles of KEYS keys)."""
    keys = F.pad(keys, (0, -keys.shape[1] % KEYS))
    return rearrange(keys, "b (tiles keys) -> b tiles keys", keys=KEYS).any(dim=2)


def _groups(
    tiles: list[list[bool]], living: list[list[bool]], heads: int
) -> Iterator[tuple[slice, slice, int]]:
    """Neighbouring rows together, where sharing costs less than another strip.

    Rows that want different keys waste some when they share; small ones are cheaper to share.
    Yields (rows, queries, tiles of keys as the bits of a number).
    """
    group: tuple[slice, slice, int] | None = None
    for row, (wanted, alive) in enumerate(zip(tiles, living, strict=True)):
        if not any(alive):
            continue
        bits = sum(1 << i for i, tile in enumerate(wanted) if tile)
        queries = slice(alive.index(True), len(alive) - alive[::-1].index(True))
        alone = slice(row, row + 1), queries, bits
        if group is not None and group[0].stop == row:
            both = slice(group[0].start, row + 1), _hull(group[1], queries), group[2] | bits
            apart = _scores(group, heads) + _scores(alone, heads) + STRIP_COST
            together = _scores(both, heads)
            if together <= min(apart, LARGEST):
                group = both
                continue
        if group is not None:
            yield group
        group = alone
    if group is not None:
        yield group


def _scores(group: tuple[slice, slice, int], heads: int) -> int:
    rows, queries, bits = group
    return (
        (rows.stop - rows.start)
        * heads
        * (queries.stop - queries.start)
        * (bits.bit_count() * KEYS)
    )


def _hull(a: slice, b: slice) -> slice:
    return slice(min(a.start, b.start), max(a.stop, b.stop))


def _runs(bits: int, num_keys: int) -> tuple[slice, ...]:
    """The tiles of keys that are wanted, as few runs of neighbours as there are."""
    runs: list[slice] = []
    for tile in range(bits.bit_length()):
        if bits >> tile & 1:
            start, stop = tile * KEYS, min((tile + 1) * KEYS, num_keys)
            if runs and runs[-1].stop == start:
                start = runs.pop().start
            runs.append(slice(start, stop))
    return tuple(runs)


def _strip(mask: Tensor, rows: slice, queries: slice, keys: tuple[slice, ...]) -> Strip:
    part = mask[rows if len(mask) > 1 else slice(None), :, queries]
    allowed = joined(part, keys, dim=3)
    dead = ~allowed.any(dim=3, keepdim=True)
    some_dead = bool(dead.any())
    if some_dead:
        allowed = allowed | dead  # they may look anywhere: what comes of it is thrown away
    return Strip(
        rows, queries, keys, None if allowed.all() else allowed, dead if some_dead else None
    )


def _tall(strips: list[Strip]) -> list[Strip]:
    """Strips one below the other that see the same keys, all of them, are one."""
    last: dict[tuple[int, int], Strip] = {}  # of each group of rows
    found: list[Strip] = []
    for strip in strips:
        rows = strip.rows.start, strip.rows.stop
        above = last.get(rows)
        if (
            above is not None
            and above.queries.stop == strip.queries.start
            and above.keys == strip.keys
            and above.allowed is above.dead is None
            and strip.allowed is strip.dead is None
        ):
            found = [one for one in found if one is not above]
            strip = strip._replace(queries=slice(above.queries.start, strip.queries.stop))
        last[rows] = strip
        found.append(strip)
    return found


def joined(x: Tensor, runs: tuple[slice, ...], dim: int) -> Tensor:
    """The runs of `x` along `dim`, side by side: a view where there is one, else a copy."""
    parts = [x.narrow(dim, run.start, run.stop - run.start) for run in runs]
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=dim)
