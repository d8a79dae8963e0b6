"""From ragged lists of token ids to tensors, and the labels that go with them.

`pad` and `pack` make the attention_mask from *lengths*, never from ids: where the padding id is
also the end of sequence, ids cannot tell a real end from padding.
"""

from bisect import bisect_right, insort
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from math import ceil
from numbers import Integral

import torch
from torch import Tensor

from minitransformer.contract import check_attention_mask
from minitransformer.loss import IGNORE_INDEX
from minitransformer.positions import by_document

Rows = Sequence[Sequence[int] | Tensor]  # one sequence of token ids each, of any lengths


class _Tensors(Mapping[str, Tensor | None]):
    """Named tensors: `batch.labels`, `batch["labels"]` and `model.loss(**batch)` all work."""

    __eq__, __hash__ = object.__eq__, object.__hash__  # a Mapping would compare the tensors

    def __iter__(self) -> Iterator[str]:
        return (field.name for field in fields(self))  # type: ignore[arg-type]

    def __len__(self) -> int:
        return len(fields(self))  # type: ignore[arg-type]

    def __getitem__(self, name: str):
        if name not in list(self):
            raise KeyError(f"{name!r}: a {type(self).__name__} has {', '.join(self)}")
        return getattr(self, name)

    def to(self, device: torch.device | str):
        later = torch.device(device).type != "cpu"  # a GPU copies while we go on
        moved = {n: t if t is None else t.to(device, non_blocking=later) for n, t in self.items()}
        return type(self)(**moved)

    def pin_memory(self):
        """In memory that a GPU copies from while we go on; DataLoader(pin_memory=True) asks for
        it."""
        return type(self)(**{n: t if t is None else t.pin_memory() for n, t in self.items()})

    def part(self, number: int, parts: int):
        """Every `parts`-th row, from row `number` on; together the parts are the batch.

        Where there is no such row, it is the first one without its labels: a process that has
        nothing to do takes part in the step all the same.
        """
        rows = {n: t if t is None else t[number::parts] for n, t in self.items()}
        if not len(rows["labels"]):
            rows = {n: t if t is None else t[:1] for n, t in self.items()}
            rows["labels"] = torch.full_like(rows["labels"], IGNORE_INDEX)
        return type(self)(**rows)


@dataclass(frozen=True, eq=False)
class Batch(_Tensors):
    """Sequences as tensors, (batch, length) each."""

    input_ids: Tensor  # int64
    attention_mask: Tensor  # int64: 0 = padding, n = a token of the row's n-th document
    labels: Tensor | None = None  # int64, -100 where there is nothing to predict
    segment_ids: Tensor | None = None  # int64, 0 at padding; None where all are segment 0


@dataclass(frozen=True, eq=False)
class PairBatch(_Tensors):
    """Sources (batch, S) and targets (batch, T); a pair has one document number on both sides."""

    source_ids: Tensor
    source_mask: Tensor
    target_ids: Tensor  # what the decoder reads: <bos> a b c
    target_mask: Tensor
    labels: Tensor  # what it shall write: a b c <eos>


# ---- one document a row, or several ----------------------------------------------------------


def pad(
    rows: Rows,
    pad_id: int = 0,
    side: str = "right",
    max_length: int | None = None,
    labels: Rows | None = None,
    multiple_of: int = 1,
    segment_ids: Rows | None = None,
) -> Batch:
    """One sequence a row, filled up to `max_length`, or else to the longest rounded up to a
    multiple of `multiple_of`.

    `labels` has a row for each of `rows`, as long as it: the class to predict at each token; so has
    `segment_ids`: the segment of each token, as in BERT.
    Raises ValueError for a row longer than `max_length` and for labels of other lengths.

    >>> pad([[5, 6, 7], [8]]).attention_mask
    tensor([[1, 1, 1],
            [1, 0, 0]])
    """
    rows, labels, segment_ids = _aligned(rows, labels, segment_ids)
    lengths = [len(row) for row in rows]
    if not isinstance(multiple_of, int) or multiple_of < 1:
        raise ValueError(f"multiple_of must be an integer >= 1, got {multiple_of!r}")
    longest = ceil(max(lengths, default=0) / multiple_of) * multiple_of
    length = longest if max_length is None else max_length
    _check_fit(lengths, length, "rows", "max_length", "truncate it, or raise max_length")
    bins = [[i] for i in range(len(rows))]
    return _lay_out(rows, labels, bins, length, pad_id, side, segment_ids)


def pack(
    rows: Rows,
    length: int | None = None,
    pad_id: int = 0,
    labels: Rows | None = None,
    segment_ids: Rows | None = None,
) -> Batch:
    """Several sequences a row, in as few rows of `length` as a greedy search finds.

    By default rows are as long as the longest sequence: a mask has the square of their length.
    Of long-tailed lengths such rows are as full as longer ones; of lengths that are much alike,
    such as 15 to 30 tokens, rows twice as long are fuller.

    attention_mask numbers the documents of each row from 1, so `padding_mask` keeps them apart
    and `token_positions` starts anew at each. Empty sequences disappear.
    Raises ValueError for a sequence longer than `length` and for labels of other lengths.

    >>> pack([[5, 6, 7], [8], [9, 9]], length=4).attention_mask
    tensor([[1, 1, 1, 2],
            [1, 1, 0, 0]])
    >>> pack([[5, 6, 7], [8], [9, 9]]).attention_mask
    tensor([[1, 1, 1],
            [1, 1, 2]])
    """
    rows, labels, segment_ids = _aligned(rows, labels, segment_ids)
    lengths = [len(row) for row in rows]
    length = max(lengths, default=0) if length is None else length
    _check_fit(lengths, length, "rows", "length", "split it, or raise length")
    bins = _fill_bins([(n, 0) for n in lengths], (length, 1))
    return _lay_out(rows, labels, bins, length, pad_id, segment_ids=segment_ids)


def pad_pairs(
    sources: Rows, targets: Rows, bos_id: int, eos_id: int, pad_id: int = 0, side: str = "right"
) -> PairBatch:
    """One pair a row. The decoder reads <bos> and the target, and writes the target and <eos>."""
    inputs, labels = _teacher_forcing(sources, targets, bos_id, eos_id)
    source, target = pad(sources, pad_id, side), pad(inputs, pad_id, side, labels=labels)
    return _join(source, target)


def pack_pairs(
    sources: Rows,
    targets: Rows,
    length: int | None,
    bos_id: int,
    eos_id: int,
    pad_id: int = 0,
) -> PairBatch:
    """Several pairs a row of at most `length` source tokens; both sides are as long as they need.

    None takes a batch of rows that are evenly full, some four times as long as the longest source:
    where few pairs share a row, rows are less alike (measured).

    A pair lies in the same row on both sides under the same number, so that
    `padding_mask(target_mask, source_mask)` shows each target its own source.
    Raises ValueError for a source longer than `length`.
    """
    inputs, labels = _teacher_forcing(sources, targets, bos_id, eos_id)
    sources = _as_lists(sources, "sources")
    sizes = [(len(source), len(target)) for source, target in zip(sources, inputs, strict=True)]
    if length is None:
        bins = _even_rows(sizes)
    else:
        _check_fit([s for s, _ in sizes], length, "sources", "length", "split it, or raise length")
        # Both sides of a row fill up together: target rows are longer by the ratio of the totals.
        source_total, target_total = (sum(size[side] for size in sizes) for side in (0, 1))
        room = ceil(target_total * length / max(source_total, 1))
        bins = _fill_bins(sizes, (length, max([room, *(target for _, target in sizes)])))
    longest_source, longest_target = _fullest(sizes, bins)
    source = _lay_out(sources, None, bins, longest_source, pad_id)
    return _join(source, _lay_out(inputs, labels, bins, longest_target, pad_id))


def _teacher_forcing(
    sources: Rows, targets: Rows, bos_id: int, eos_id: int
) -> tuple[list[list[int]], list[list[int]]]:
    if len(sources) != len(targets):
        raise ValueError(f"got {len(sources)} sources and {len(targets)} targets")
    targets = _as_lists(targets, "targets")
    return [[bos_id, *target] for target in targets], [[*target, eos_id] for target in targets]


def _join(source: Batch, target: Batch) -> PairBatch:
    assert target.labels is not None
    return PairBatch(
        source.input_ids,
        source.attention_mask,
        target.input_ids,
        target.attention_mask,
        target.labels,
    )


def _lay_out(
    rows: list[list[int]],
    labels: list[list[int]] | None,
    bins: list[list[int]],
    length: int,
    pad_id: int,
    side: str = "right",
    segment_ids: list[list[int]] | None = None,
) -> Batch:
    """Put the rows of each bin end to end and fill up to `length`."""
    if side not in ("left", "right"):
        raise ValueError(f"side must be 'left' or 'right', got {side!r}")

    def tensor(columns: list[list[int]] | dict[int, list[int]], filler: int) -> Tensor:
        filled: list[int] = []
        for bin in bins:
            tokens = [token for i in bin for token in columns[i]]
            filler_tokens = [filler] * (length - len(tokens))
            filled += filler_tokens + tokens if side == "left" else tokens + filler_tokens
        return torch.tensor(filled, dtype=torch.int64).reshape(len(bins), length)

    numbers = {i: [n] * len(rows[i]) for bin in bins for n, i in enumerate(bin, 1)}
    return Batch(
        tensor(rows, pad_id),
        tensor(numbers, 0),
        None if labels is None else tensor(labels, IGNORE_INDEX),
        None if segment_ids is None else tensor(segment_ids, 0),
    )


def _fill_bins(sizes: list[tuple[int, int]], capacity: tuple[int, int]) -> list[list[int]]:
    """Which documents share a row. One row after the other takes the largest that still fit.

    A document has the sizes (source, target); target 0 where there is only one sequence. Among
    the largest sources the one is taken that leaves both sides of the row evenly full.
    """
    candidates = CANDIDATES if any(target for _, target in sizes) else 1
    bins = []
    for start in range(0, len(sizes), WINDOW):
        window = range(start, min(start + WINDOW, len(sizes)))
        left = sorted((i for i in window if any(sizes[i])), key=lambda i: sizes[i])
        sources = [sizes[i][0] for i in left]
        while left:
            bin, room = [], capacity
            while True:
                best, best_score = -1, float("inf")
                end = bisect_right(sources, room[0])
                for i in range(end - 1, max(end - candidates, 0) - 1, -1):
                    source, target = sizes[left[i]]
                    if target <= room[1]:
                        a = (room[0] - source) / max(capacity[0], 1)  # shares of the row left empty
                        b = (room[1] - target) / max(capacity[1], 1)
                        score = 1.5 * max(a, b) - min(a, b)
                        if score < best_score:
                            best, best_score = i, score
                if best < 0:
                    break
                bin.append(left.pop(best))
                del sources[best]
                room = (room[0] - sizes[bin[-1]][0], room[1] - sizes[bin[-1]][1])
            bins.append(bin)
    return bins


WINDOW, CANDIDATES = 1_000, 24  # measured: more fill rows hardly better and take longer


def _even_rows(sizes: list[tuple[int, int]]) -> list[list[int]]:
    """Which pairs of the sizes (source, target) share a row, in rows that are evenly full.

    Of some numbers of rows, from few long ones on, the one is taken that makes the smallest batch,
    padding included.
    """
    sources = [source for source, _ in sizes]
    longest = max([64, *(LONGEST * source for source in sources)])
    fewest = max(1, ceil(sum(sources) / longest))
    attempts = [_share_out(sizes, count) for count in range(fewest, fewest + ATTEMPTS)]
    return min(attempts, key=lambda bins: len(bins) * sum(_fullest(sizes, bins)))


def _share_out(sizes: list[tuple[int, int]], count: int) -> list[list[int]]:
    """The pairs in `count` rows. From the longest on, each goes where it leaves the fuller side the
    least full, of the FEW rows that are the least full before.
    """
    all_sources, all_targets = (max(1, sum(size[side] for size in sizes)) for side in (0, 1))
    shares = [(source / all_sources, target / all_targets) for source, target in sizes]
    rows = [(0.0, 0.0, 0.0, [])] * count  # the share of the fuller side, of both, and the pairs
    for i in sorted(range(len(sizes)), key=lambda i: sum(shares[i]), reverse=True):
        source, target = shares[i]
        choices = [
            (max(sources + source, targets + target), place)
            for place, (_, sources, targets, _) in enumerate(rows[:FEW])
        ]
        fuller, place = min(choices)
        _, sources, targets, pairs = rows.pop(place)
        insort(rows, (fuller, sources + source, targets + target, [*pairs, i]))
    return [pairs for *_, pairs in rows if pairs]


LONGEST, ATTEMPTS, FEW = 5, 4, 8  # a row in longest sources; measured: more save nothing


def _fullest(sizes: list[tuple[int, int]], bins: list[list[int]]) -> list[int]:
    """The length of the fullest row, on the sources' and on the targets' side."""
    return [max((sum(sizes[i][side] for i in bin) for bin in bins), default=0) for side in (0, 1)]


# ---- labels ------------------------------------------------------------------------------------


def next_token_labels(input_ids: Tensor, attention_mask: Tensor) -> Tensor:
    """For each token the next real token of its own document, else -100.

    So nothing is predicted at padding, at the last token of a document, or across documents; the
    first token of a document is nobody's label, even where padding stands on its left.

    Shapes: (B,T) ids and (B,T) attention_mask -> (B,T) int64.

    >>> next_token_labels(torch.tensor([[0, 0, 5, 6, 7]]), torch.tensor([[0, 0, 1, 1, 1]]))
    tensor([[-100, -100,    6,    7, -100]])
    """
    _check_ids(input_ids, attention_mask)
    order, documents = by_document(attention_mask)
    following = torch.full_like(order, IGNORE_INDEX)
    following[:, :-1] = input_ids.gather(1, order[:, 1:])
    last = torch.ones_like(documents, dtype=torch.bool)
    last[:, :-1] = documents[:, :-1] != documents[:, 1:]
    following = following.masked_fill(last | (documents == 0), IGNORE_INDEX)
    return torch.empty_like(order).scatter(1, order, following)


def completion_labels(rows: Rows, prompt_lengths: Sequence[int]) -> list[list[int]]:
    """Next-token labels for fine-tuning: only what follows the prompt is learned.

    The last token of the prompt predicts the first of the completion. Give the result to `pad` or
    `pack` as `labels`: made from the rows themselves, it knows nothing of padding.

    >>> completion_labels([[5, 6, 7, 8]], prompt_lengths=[2])
    [[-100, 7, 8, -100]]
    """
    rows = _as_lists(rows, "rows")
    if len(rows) != len(prompt_lengths):
        raise ValueError(f"got {len(rows)} rows and {len(prompt_lengths)} prompt_lengths")
    labels = []
    for i, (row, prompt) in enumerate(zip(rows, prompt_lengths, strict=True)):
        if not 0 <= prompt <= len(row):
            raise ValueError(f"prompt_lengths[{i}] must be from 0 to {len(row)}, got {prompt}")
        ignored = max(prompt - 1, 0)
        labels.append(([IGNORE_INDEX] * ignored + [*row[ignored + 1 :], IGNORE_INDEX])[: len(row)])
    return labels


def mask_tokens(
    input_ids: Tensor,
    attention_mask: Tensor,
    mask_id: int,
    vocab_size: int,
    special_ids: Sequence[int] = (),
    probability: float = 0.15,
    generator: torch.Generator | None = None,
) -> tuple[Tensor, Tensor]:
    """Hide tokens for a masked language model to find (Devlin et al. 2018, section 3.1).

    Each real token that is not special is chosen with `probability`; of the chosen, 80 % become
    `mask_id`, 10 % a random ordinary token, and 10 % stay. Padding is never chosen.

    Shapes: (B,T) ids and (B,T) attention_mask -> what the model reads (B,T), and labels (B,T):
    the true token where one was chosen, else -100.
    """
    _check_ids(input_ids, attention_mask)
    if not 0.0 <= probability <= 1.0:
        raise ValueError(f"probability must be in [0, 1], got {probability}")
    special = input_ids.new_tensor([*special_ids, mask_id])
    ordinary = torch.arange(vocab_size, device=input_ids.device)
    ordinary = ordinary[~torch.isin(ordinary, special)]
    if len(ordinary) == 0:
        raise ValueError(f"all {vocab_size} tokens of the vocabulary are special")

    def draw() -> Tensor:
        return torch.rand(input_ids.shape, generator=generator, device=input_ids.device)

    chosen = (draw() < probability) & (attention_mask != 0) & ~torch.isin(input_ids, special)
    labels = input_ids.long().masked_fill(~chosen, IGNORE_INDEX)
    fate = draw()
    others = ordinary[(draw() * len(ordinary)).long()]
    hidden = input_ids.masked_fill(chosen & (fate < 0.8), mask_id)
    return torch.where(chosen & (fate >= 0.9), others, hidden), labels


# ---- what comes in -----------------------------------------------------------------------------


def check_integers(name: str, row: Sequence) -> None:
    """Refuse a row of anything but integers. Its types are few: asking each token takes long."""
    others = set(map(type, row)) - {int}
    wrong = {kind for kind in others if kind is bool or not issubclass(kind, Integral)}
    if wrong:
        place, token = next((i, token) for i, token in enumerate(row) if type(token) in wrong)
        raise TypeError(f"{name} must hold integers, got {token!r} at position {place}")


def _as_lists(rows: Rows, name: str) -> list[list[int]]:
    lists = [row.tolist() if isinstance(row, Tensor) else list(row) for row in rows]
    for i, row in enumerate(lists):
        check_integers(f"{name}[{i}]", row)
    return lists


def _check_ids(input_ids: Tensor, attention_mask: Tensor) -> None:
    check_attention_mask(attention_mask)
    if not isinstance(input_ids, Tensor):
        raise TypeError(f"input_ids must be a tensor, got {type(input_ids).__name__}")
    if input_ids.shape != attention_mask.shape:
        raise ValueError(
            "input_ids and attention_mask must have one shape, "
            f"got {tuple(input_ids.shape)} and {tuple(attention_mask.shape)}"
        )


def _aligned(
    rows: Rows, labels: Rows | None, segment_ids: Rows | None
) -> tuple[list[list[int]], list[list[int]] | None, list[list[int]] | None]:
    """The rows as lists, and what has an entry for each of their tokens."""
    rows = _as_lists(rows, "rows")
    wanted = [len(row) for row in rows]

    def like_rows(column: Rows | None, name: str) -> list[list[int]] | None:
        if column is None:
            return None
        lists = _as_lists(column, name)
        got = [len(row) for row in lists]
        if got != wanted:
            raise ValueError(f"{name} must have the lengths of rows, {wanted}, got {got}")
        return lists

    return rows, like_rows(labels, "labels"), like_rows(segment_ids, "segment_ids")


def _check_fit(lengths: Sequence[int], limit: int, name: str, option: str, remedy: str) -> None:
    if limit < 0:
        raise ValueError(f"{option} must be 0 or more, got {limit}")
    for i, length in enumerate(lengths):
        if length > limit:
            raise ValueError(
                f"{name}[{i}] has {length} tokens, more than {option} = {limit}: {remedy}"
            )
