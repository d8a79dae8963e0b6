"""The mask as a map of the work: which parts of queries × keys need to be computed at all.

A mask is read once. Where the keys of some queries have nothing in common with the keys of those
before, as between two documents, the rows are cut; what lies between two cuts is a block. Rows of a
batch whose blocks are alike share them. A block that is not visible as a whole is cut once more,
into strips of a few queries with the keys that any of them may see. What no strip covers is never
touched. The same reading serves padding, causality, packed documents, windows and cross-attention,
because all of them are masks.
"""

from collections.abc import Iterator
from itertools import pairwise
from typing import NamedTuple

import torch
from einops import rearrange
from torch import Tensor
from torch.nn import functional as F

QUERIES = 128  # queries in a strip: fewer waste less, more are multiplied faster
KEYS = 16  # neighboring keys that a strip takes or leaves together
STRIP_COST = 20_000  # what a strip costs beside its scores, in scores (measured on a CPU)
UNLIKE = 1.4  # what a score costs where blocks that are not alike are one, and need a mask
LARGEST = 2**20  # scores that a strip of several rows holds: so many stay in a processor's cache


class Block(NamedTuple):
    """Some rows of the batch, some neighboring queries of theirs, and the keys that these see."""

    rows: slice
    queries: slice
    keys: slice
    unlike: bool = False  # was it joined from blocks of other queries or keys?

    def scores(self, heads: int) -> int:
        sizes = (part.stop - part.start for part in self[:3])
        return heads * next(sizes) * next(sizes) * next(sizes)

    def cost(self, heads: int) -> float:
        """In scores."""
        return self.scores(heads) * (UNLIKE if self.unlike else 1.0) + STRIP_COST

    def join(self, other: "Block") -> "Block":
        """The smallest block that holds both."""
        pairs = zip(self[:3], other[:3], strict=True)
        both = (slice(min(a.start, b.start), max(a.stop, b.stop)) for a, b in pairs)
        alike = self[1:] == other[1:] and not self.unlike
        return Block(*both, unlike=not alike)


class Strip(NamedTuple):
    """What is computed at once: a block with its mask, or a part of one."""

    rows: slice  # of the batch
    queries: slice
    keys: tuple[slice, ...]  # runs of neighboring keys, from left to right
    allowed: Tensor | None = None  # (rows or 1, heads or 1, queries, keys) bool; None = every one
    causal: bool = False  # is `allowed` the past of each query, in a square?
    dead: Tensor | None = None  # (rows or 1, heads or 1, queries, 1) bool: they see no key here
    unused: Tensor | None = None  # (rows or 1, heads or 1, keys, 1) bool: no query sees them here

    @property
    def scores(self) -> int:
        """How many scores of one head it holds, forbidden ones among them."""
        size = (self.rows.stop - self.rows.start) * (self.queries.stop - self.queries.start)
        return size * sum(run.stop - run.start for run in self.keys)

    def is_all_of(self, query: Tensor, key: Tensor) -> bool:
        sizes = query.shape[0], query.shape[2], key.shape[2]
        return (self.rows, self.queries, *self.keys) == tuple(slice(0, size) for size in sizes)


Plan = list[Strip]  # what is in none of them is not computed


def make_plan(mask: Tensor, batch: int, heads: int, whole: bool = False) -> Plan:
    """Read a mask, (batch or 1, heads or 1, Q, K), for `batch` rows of `heads` heads each.

    The borders of the blocks are read back to the CPU, and some numbers for each strip. `whole` is
    for a kernel that holds no scores: blocks that are visible as a whole, or causal, stay whole.
    """
    seen = mask.any(dim=1)  # (batch or 1, Q, K): by some head
    blocks = _blocks(seen, heads)
    if len(mask) < batch:  # one for all rows
        blocks = [block._replace(rows=slice(0, batch)) for block in blocks]
    strips: Plan = []
    for block in blocks:
        if whole:
            strip = _strip(mask, block.rows, block.queries, (block.keys,))
            if strip.allowed is None or strip.causal:
                strips.append(strip)
                continue
        strips += _cut(mask, seen, block, heads)
    return strips


def _blocks(seen: Tensor, heads: int) -> list[Block]:
    """The blocks of (rows, Q, K), with those joined that cost less together."""
    length = seen.shape[2]
    if length == 0:
        return []
    alive, bits = seen.any(dim=2), seen.view(torch.uint8)
    first = bits.argmax(dim=2).masked_fill(~alive, length)
    last = (length - 1 - bits.flip(2).argmax(dim=2)).masked_fill(~alive, -1)
    before = F.pad(last.cummax(dim=1).values, (1, 0), value=-1)[:, :-1]
    cuts = (alive & (first > before)).tolist()
    open_blocks: list[Block] = []  # of the rows above, which another row may still join
    done: list[Block] = []
    for row, numbers in enumerate(zip(cuts, first.tolist(), last.tolist(), strict=True)):
        here = _blocks_of_row(row, *numbers, heads)
        both = [a.join(b) for a, b in zip(open_blocks, here, strict=False)]
        apart = sum(block.cost(heads) for block in open_blocks + here)
        together = sum(block.cost(heads) for block in both)
        disjoint = all(a.queries.stop <= b.queries.start for a, b in pairwise(both))
        if here and len(open_blocks) == len(here) and disjoint and together <= apart:
            open_blocks = both
        else:
            done += open_blocks
            open_blocks = here
    return done + open_blocks


def _blocks_of_row(
    row: int, cuts: list[bool], first: list[int], last: list[int], heads: int
) -> list[Block]:
    """`first` and `last` key that each query sees (-1: it sees none), and where a block begins."""
    borders = [*(query for query, cut in enumerate(cuts) if cut), len(cuts)]
    blocks: list[Block] = []
    for start, stop in pairwise(borders):
        while last[stop - 1] < 0:  # dead ones at the end are in no block
            stop -= 1
        keys = slice(min(first[start:stop]), max(last[start:stop]) + 1)
        block = Block(slice(row, row + 1), slice(start, stop), keys)
        if blocks:
            both = blocks[-1].join(block)
            if both.cost(heads) <= blocks[-1].cost(heads) + block.cost(heads):
                block = both
                blocks.pop()
        blocks.append(block)
    return blocks


def _cut(mask: Tensor, seen: Tensor, block: Block, heads: int) -> Iterator[Strip]:
    """Strips of at most QUERIES queries, of so many rows that their scores stay in a cache."""
    for top in range(block.queries.start, block.queries.stop, QUERIES):
        queries = slice(top, min(top + QUERIES, block.queries.stop))
        part = seen[block.rows if len(seen) > 1 else slice(None), queries, block.keys]
        keys = _runs(_tiles(part.flatten(0, 1).any(dim=0)), block.keys)
        if not keys:
            continue
        each = Block(slice(0, 1), queries, slice(0, sum(run.stop - run.start for run in keys)))
        rows = max(1, LARGEST // each.scores(heads))
        for start in range(block.rows.start, block.rows.stop, rows):
            stop = min(start + rows, block.rows.stop)
            yield _strip(mask, slice(start, stop), queries, keys)


def _tiles(keys: Tensor) -> list[bool]:
    """(K,) bool, which keys are wanted -> which tiles of KEYS keys are."""
    keys = F.pad(keys, (0, -len(keys) % KEYS))
    return rearrange(keys, "(tiles keys) -> tiles keys", keys=KEYS).any(dim=1).tolist()


def _runs(tiles: list[bool], keys: slice) -> tuple[slice, ...]:
    """The tiles of these keys that are wanted, as few runs of neighbors as there are."""
    runs: list[slice] = []
    for tile, wanted in enumerate(tiles):
        if wanted:
            start = keys.start + tile * KEYS
            stop = min(start + KEYS, keys.stop)
            if runs and runs[-1].stop == start:
                start = runs.pop().start
            runs.append(slice(start, stop))
    return tuple(runs)


def _strip(mask: Tensor, rows: slice, queries: slice, keys: tuple[slice, ...]) -> Strip:
    part = mask[rows if len(mask) > 1 else slice(None), :, queries]
    strip, allowed = Strip(rows, queries, keys), joined(part, keys, dim=3)
    if allowed.all():
        return strip
    if allowed.shape[2] == allowed.shape[3]:
        past = torch.ones_like(allowed[:1, :1]).tril()
        if (allowed == past).all():
            return strip._replace(allowed=past, causal=True)
    unused = ~allowed.any(dim=2).unsqueeze(-1)
    if unused.any():
        strip = strip._replace(unused=unused)
    dead = ~allowed.any(dim=3, keepdim=True)
    if dead.any():  # they may look anywhere: what comes of it is thrown away
        strip = strip._replace(dead=dead)
        allowed = allowed | dead
    return strip._replace(allowed=allowed)


def joined(x: Tensor, runs: tuple[slice, ...], dim: int) -> Tensor:
    """The runs of `x` along `dim`, side by side: a view where there is one, else a copy."""
    parts = [x.narrow(dim, run.start, run.stop - run.start) for run in runs]
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=dim)
