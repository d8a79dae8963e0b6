"""The mask as a map of the work: which parts of queries × keys need to be computed at all.

A mask is read once. Where queries see no key that others before them see, as between two documents,
a row is cut; what lies between two cuts is a document. Documents of like sizes are computed
together, wherever they stand in the batch, as a small padded batch of their own: a group. What sees
nothing, and what nobody sees, is in no group, so it is never touched. The same reading serves
padding, causality, packed documents, windows and cross-attention, because all of them are masks.
"""

from collections.abc import Iterator
from math import inf
from typing import NamedTuple

import torch
from einops import rearrange
from torch import Tensor
from torch.nn import functional as F

QUERIES = 128  # queries in a strip: fewer waste less, more are multiplied faster
KEYS = 16  # neighboring keys that a strip takes or leaves together
SHORT = 96  # keys up to which the plain formula beats torch's fused kernel (measured on a CPU)
GROUP_COST = 20_000  # what a group costs beside its scores, in scores (measured on a CPU)
FEWEST = 16  # keys that are computed: the softmax over fewer is slow, they fill no vector unit
COPY_COST = 60  # what it costs to gather a token for a head, in scores (measured on a CPU)
LARGEST = 2**20  # scores that are held at a time: so many stay in a processor's cache
FULL, CAUSAL, OTHER = range(3)  # each query of a document sees all its keys, its past, or else
# The keys of a causal document that torch's fused kernel computes whole on a CPU, as it leaves out
# blocks of 512 only, and that is worth strips (measured, with one thread and with two).
CUT = range(320, 513)


class Strip(NamedTuple):
    """What is computed at once: neighboring queries of some documents, and the keys they see."""

    documents: slice  # of the group
    queries: slice
    keys: tuple[slice, ...]  # runs of neighboring keys, from left to right
    bias: Tensor | None = None  # (documents or 1, 1, queries or 1, keys), see `as_bias`; None: 0
    causal: bool = False  # does `bias` hide the future of each query?

    @property
    def scores(self) -> int:
        """How many scores of one head it computes, hidden ones among them."""
        documents, queries = (part.stop - part.start for part in (self.documents, self.queries))
        return documents * queries * sum(run.stop - run.start for run in self.keys)


class Group(NamedTuple):
    """Documents side by side, each filled up to the longest with copies of its first token: as a
    key these are hidden, as a query computed for nothing."""

    queries: Tensor  # (documents, longest) indices into (batch · Q)
    keys: Tensor  # (documents, longest) indices into (batch · K)
    real: Tensor  # (documents, longest) bool: is the query no copy?
    strips: list[Strip]


class Plan(NamedTuple):
    """What is computed, and which token stands where; None = the one group is the batch itself."""

    groups: list[Group]
    per_head: bool  # do heads differ? Then each head counts as a row of its own
    queries: Tensor | None = None  # (n,) indices into (batch · Q), group after group
    keys: Tensor | None = None  # (m,) indices into (batch · K)
    back: Tensor | None = None  # (batch · Q,) indices into the n outputs; n = it is zero

    @property
    def scores(self) -> int:
        return sum(strip.scores for group in self.groups for strip in group.strips)


def as_bias(allowed: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """A boolean mask as what is added to the scores, 0 or -inf: ten times as fast as to fill it.

    On a GPU its rows begin at multiples of 16 numbers: of another mask torch makes a copy that
    does, in each layer, and keeps it for the backward pass.
    """
    keys = allowed.shape[-1]
    room = 0 if allowed.is_cpu else -keys % 16
    bias = allowed.new_zeros(*allowed.shape[:-1], keys + room, dtype=dtype)[..., :keys]
    return bias.masked_fill_(~allowed, -inf)


def make_plan(mask: Tensor, batch: int, heads: int, whole: bool = False) -> Plan:
    """Read a mask, (batch or 1, heads or 1, Q, K), for `batch` rows of `heads` heads each.

    Three numbers for each query and one for each key are read back to the CPU. `whole` is for a
    kernel that holds no scores: documents that are full are not cut into strips, nor are causal
    ones, but on a CPU those of a length in CUT. There are no groups where nothing is seen, or where
    to gather them would cost more than it saves.
    """
    per_head = mask.shape[1] > 1
    if mask.numel() == 0:
        return Plan([], per_head)
    if per_head:
        mask, batch, heads = rearrange(mask, "b h q k -> (b h) 1 q k"), batch * heads, 1
    queries, keys, kinds = read_documents(mask, batch)
    groups = [
        _group(mask, kind, queries.of(members, 1), keys.of(members, FEWEST), heads, whole)
        for kind, members in _alike(kinds, queries.lengths, keys.lengths, heads, whole)
    ]
    every_query, every_key = (torch.arange(batch * size) for size in mask.shape[2:])
    taken = torch.cat([every_query[:0], *(group.queries.flatten() for group in groups)])
    keys_taken = torch.cat([every_key[:0], *(group.keys.flatten() for group in groups)])
    documents_are_rows = len(groups) == 1 and len(groups[0].queries) == batch
    if documents_are_rows and taken.equal(every_query) and keys_taken.equal(every_key):
        return Plan(groups, per_head)
    holds_none = whole and mask.shape[3] > SHORT  # scores: the fused kernel computes it
    if holds_none and _cost(groups, heads) > heads * len(every_query) * mask.shape[3]:
        return Plan([], per_head)
    real = torch.cat([taken[:0].bool(), *(group.real.flatten() for group in groups)])
    back = torch.full_like(every_query, len(taken))
    back[taken[real]] = real.nonzero().squeeze(1)
    return Plan(groups, per_head, *(x.to(mask.device) for x in (taken, keys_taken, back)))


# ---- reading ---------------------------------------------------------------------------------


class Side(NamedTuple):
    """The queries, or the keys, of all documents, one behind the other."""

    tokens: Tensor  # (n,) indices into (batch · length)
    starts: Tensor  # (documents,) where the tokens of each begin
    lengths: Tensor  # (documents,)

    def of(self, documents: Tensor, least: int) -> tuple[Tensor, Tensor]:
        """Their tokens, (documents, longest), and which of these are no copies of the first."""
        starts, lengths = self.starts[documents].unsqueeze(1), self.lengths[documents].unsqueeze(1)
        place = torch.arange(max(int(lengths.max()), least))
        real = place < lengths
        return self.tokens[starts + place * real], real

    def repeated(self, times: int, size: int) -> "Side":
        """The same for so many rows of `size` tokens."""
        if times == 1:
            return self
        row = torch.arange(times).unsqueeze(1)
        tokens, starts = self.tokens + size * row, self.starts + len(self.tokens) * row
        return Side(tokens.flatten(), starts.flatten(), self.lengths.repeat(times))


def read_documents(mask: Tensor, batch: int) -> tuple[Side, Side, list[int]]:
    """The documents of (batch or 1, 1, Q, K): their queries, their keys, and of what kind each is.

    Their keys are disjoint: what begins one lies behind all that was seen before it.
    """
    rows, _, num_queries, num_keys = mask.shape
    seen = mask.squeeze(1)
    count, first, last = _keys_of_each_query(seen).cpu()
    alive, used = count > 0, seen.view(torch.uint8).amax(dim=1).bool().cpu()  # bool is slower
    ahead = first.flip(1).cummin(dim=1).values.flip(1)
    before = F.pad(last.cummax(dim=1).values, (1, -1), value=-1)
    row, query = (alive & (ahead > before)).nonzero(as_tuple=True)
    queries = _side(row * num_queries + query, alive)
    keys = _side(row * num_keys + ahead[row, query], used)

    document = torch.arange(len(row)).repeat_interleave(queries.lengths)
    key_document = torch.arange(len(row)).repeat_interleave(keys.lengths)
    rank = torch.arange(len(queries.tokens)) - queries.starts[document]
    key_rank = torch.zeros(rows * num_keys, dtype=torch.int64)
    key_rank[keys.tokens] = torch.arange(len(keys.tokens)) - keys.starts[key_document]
    count, last = count.flatten()[queries.tokens], last.flatten()[queries.tokens]
    last = key_rank[queries.tokens // num_queries * num_keys + last]

    def all_of(condition: Tensor) -> Tensor:  # for all queries of a document
        return ~torch.zeros(len(row), dtype=torch.bool).index_fill(0, document[~condition], True)

    is_full = all_of(count == keys.lengths[document])
    is_causal = all_of((count == rank + 1) & (last == rank))
    kinds = torch.where(is_full, FULL, torch.where(is_causal, CAUSAL, OTHER))
    copies = batch // rows
    sides = queries.repeated(copies, rows * num_queries), keys.repeated(copies, rows * num_keys)
    return *sides, kinds.tolist() * copies


def _keys_of_each_query(seen: Tensor) -> Tensor:
    """(rows, Q, K) bool -> (3, rows, Q): how many keys a query sees, the first and the last.

    Of a query that sees none they are K and -1. Some queries at a time: what is between is larger
    than the mask. The numbers have their place before: made in between, they would keep what is
    freed around them from being one piece again, and memory would grow to four times the mask.
    """
    rows, queries, size = seen.shape
    to_right = torch.arange(1, size + 1, dtype=torch.int32, device=seen.device)
    found = to_right.new_empty(3, rows, queries)
    step = max(1, LARGEST // (rows * size))
    for start in range(0, queries, step):
        part = seen.view(torch.uint8)[:, start : start + step]
        count, first, last = found[:, :, start : start + step]
        count[:] = part.sum(dim=2, dtype=torch.int32)
        first[:] = size - (part * to_right.flip(0)).amax(dim=2)  # a product is a fifth of a `where`
        last[:] = (part * to_right).amax(dim=2) - 1
    return found


def _side(begins: Tensor, there: Tensor) -> Side:
    """What is there, (rows, length) bool, cut at the indices at which a document begins."""
    tokens = there.flatten().nonzero().squeeze(1)
    starts = torch.searchsorted(tokens, begins)
    return Side(tokens, starts, starts.diff(append=starts.new_tensor([len(tokens)])))


# ---- grouping --------------------------------------------------------------------------------


def _alike(
    kinds: list[int], num_queries: Tensor, num_keys: Tensor, heads: int, whole: bool
) -> Iterator[tuple[int, Tensor]]:
    """Which documents are computed together: from the largest on, until a new group costs less."""
    sizes = list(zip(kinds, num_keys.tolist(), num_queries.tolist(), strict=True))
    order = sorted(range(len(sizes)), key=sizes.__getitem__, reverse=True)
    start = 0
    while start < len(order):
        kind, most_keys, most_queries = sizes[order[start]]
        needed, stop = 0, start
        while stop < len(order) and sizes[order[stop]][0] == kind:
            _, keys, queries = sizes[order[stop]]
            longest = max(most_queries, queries)
            needed += heads * queries * keys
            scores = heads * (stop - start + 1) * longest * most_keys
            held = most_keys <= SHORT if whole else longest <= QUERIES
            if stop > start and (scores - needed > GROUP_COST or (held and scores > LARGEST)):
                break
            most_queries = longest
            stop += 1
        yield kind, torch.tensor(order[start:stop])
        start = stop


def _cost(groups: list[Group], heads: int) -> int:
    """In scores, for a kernel that computes half of a causal document."""
    strips = [strip for group in groups for strip in group.strips]
    scores = sum(strip.scores // 2 if strip.causal else strip.scores for strip in strips)
    tokens = sum(group.queries.numel() for group in groups)
    return heads * (scores + COPY_COST * tokens) + GROUP_COST * len(groups)


def _group(
    mask: Tensor,
    kind: int,
    queries: tuple[Tensor, Tensor],
    keys: tuple[Tensor, Tensor],
    heads: int,
    whole: bool,
) -> Group:
    """The documents with these queries and keys, each with what is real of them (see `Side.of`)."""
    (tokens, real), (key_tokens, seen) = queries, keys
    bias = None
    if kind == CAUSAL:
        sizes = tokens.shape[1], seen.shape[1]
        bias = as_bias(torch.ones(1, 1, *sizes, dtype=torch.bool).tril()).to(mask.device)
    elif kind == OTHER:
        bias = as_bias(_allowed(mask, tokens, key_tokens, seen))
    elif not seen.all():
        bias = as_bias(rearrange(seen, "n k -> n 1 1 k")).to(mask.device)
    sizes = slice(0, len(tokens)), slice(0, tokens.shape[1]), (slice(0, seen.shape[1]),)
    group = Group(tokens, key_tokens, real, [Strip(*sizes, bias, kind == CAUSAL)])
    uncut = kind == FULL or (kind == CAUSAL and not (mask.is_cpu and seen.shape[1] in CUT))
    if tokens.shape[1] <= QUERIES or (whole and uncut):
        return group
    return group._replace(strips=[*_cut(*group.strips, heads)])


def _allowed(mask: Tensor, queries: Tensor, keys: Tensor, seen: Tensor) -> Tensor:
    """(documents or 1, 1, queries, keys) bool: what the mask (rows, 1, Q, K) allows, but copies."""
    rows, _, num_queries, num_keys = mask.shape
    queries, keys = queries % (rows * num_queries), keys % num_keys
    if (queries == queries[0]).all():  # one document, in all rows of a mask that is one for all
        queries, keys, seen = queries[:1], keys[:1], seen[:1]
    allowed = mask.flatten(0, 2)[queries.flatten().to(mask.device)].unflatten(0, queries.shape)
    if not (seen.all() and keys.shape[1] == num_keys):
        keys = keys.unsqueeze(1).expand(-1, queries.shape[1], -1)
        allowed = allowed.gather(2, keys.to(mask.device)) & seen.unsqueeze(1).to(mask.device)
    return allowed.unsqueeze(1)


def _cut(whole: Strip, heads: int) -> Iterator[Strip]:
    """Strips of at most QUERIES queries, of so many documents that their scores stay in a cache."""
    (keys,) = whole.keys
    for top in range(0, whole.queries.stop, QUERIES):
        queries = slice(top, min(top + QUERIES, whole.queries.stop))
        runs, bias = (keys,), whole.bias
        if bias is not None:
            bias = bias.expand(-1, 1, whole.queries.stop, -1)[:, :, queries]
            runs = _runs((bias == 0).flatten(0, 2).any(dim=0))
            bias = joined(bias, runs, dim=3)
        rows = whole.documents.stop
        each = Strip(slice(0, 1), queries, runs)
        step = max(1, LARGEST // (heads * each.scores))
        for start in range(0, rows, step):
            documents = slice(start, min(start + step, rows))
            here = bias if bias is None or len(bias) == 1 else bias[documents]
            if here is not None and not here.any():
                here = None
            yield Strip(documents, queries, runs, here)


def _runs(wanted: Tensor) -> tuple[slice, ...]:
    """The tiles of KEYS keys in which one is wanted, (K,) bool, as few runs as there are."""
    tiles = F.pad(wanted, (0, -len(wanted) % KEYS)).view(-1, KEYS).any(dim=1)
    borders = F.pad(tiles.int(), (1, 1)).diff().nonzero().flatten().tolist()
    pairs = zip(borders[::2], borders[1::2], strict=True)
    return tuple(slice(KEYS * a, min(KEYS * b, len(wanted))) for a, b in pairs)


def joined(x: Tensor, runs: tuple[slice, ...], dim: int) -> Tensor:
    """The runs of `x` along `dim`, side by side: a view where there is one, else a copy."""
    parts = [x.narrow(dim, run.start, run.stop - run.start) for run in runs]
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=dim)
