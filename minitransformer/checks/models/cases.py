"""What models are asked with: batches laid out in many ways, and how far an output may move."""

from collections.abc import Iterator

import torch
from torch import Tensor

from minitransformer.checks.models.subject import LENGTHS, EncoderSubject

BATCH = len(LENGTHS[0])

Stream = tuple[Tensor, Tensor]  # token ids (B,T), and their attention_mask (B,T) int64


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def usable(subject: EncoderSubject) -> Tensor:
    """(N,) ids that real tokens have: all but the padding's."""
    ids = torch.arange(subject.vocab_size, device=subject.device)
    return ids[ids != subject.pad_id]


def sentences(subject: EncoderSubject, stream: int) -> Tensor:
    """(B,T) ids, real tokens all of them."""
    ids, shape = usable(subject), (BATCH, max(LENGTHS[stream]))
    return ids[torch.randint(len(ids), shape, generator=seeded(3 + stream)).to(ids.device)]


def others(subject: EncoderSubject, ids: Tensor, step: int = 1) -> Tensor:
    """Another token for each, and never the padding's id."""
    real = usable(subject)
    rank = torch.zeros(subject.vocab_size, dtype=torch.long, device=ids.device)
    rank[real] = torch.arange(len(real), device=ids.device)
    return real[(rank[ids] + step) % len(real)]


def laid_out(subject: EncoderSubject, stream: int, where: str, extra: int = 0) -> Stream:
    """Ids and attention_mask of the rows, with so many columns more than the longest needs.

    where: "full" (every row as long as the longest), padding on the "right" or the "left",
    "holes" in between, or "packed": each row two documents and, at the end, padding.
    """
    rows = sentences(subject, stream)
    if where == "full":
        return rows, torch.ones_like(rows)
    length = rows.shape[1] + extra
    ids = torch.full((BATCH, length), subject.pad_id, device=rows.device)
    mask = torch.zeros_like(ids)
    for row, count in enumerate(LENGTHS[stream]):
        columns = {
            "right": torch.arange(count),
            "packed": torch.arange(rows.shape[1] - 1),
            "left": torch.arange(length - count, length),
            "holes": torch.randperm(length, generator=seeded(row))[:count].sort().values,
        }[where].to(rows.device)
        ids[row, columns] = rows[row, : len(columns)]
        mask[row, columns] = 1
        if where == "packed":
            mask[row, columns[2 + row % 2 :]] = 2
    return ids, mask


def batch_of(subject: EncoderSubject, where: str, extra: int = 0, stream: int = -1) -> list[Stream]:
    """What it is called with: one stream laid out so, and the other without any padding.

    "packed" is both of them, for their documents belong together.
    """
    stream %= subject.streams
    return [
        laid_out(subject, i, where, extra)
        if i == stream or where == "packed"
        else laid_out(subject, i, "full")
        for i in range(subject.streams)
    ]


def layouts(subject: EncoderSubject) -> dict[str, str]:
    """Where it promises that padding may stand."""
    found = {f"padding on the {side}": side for side in subject.sides}
    return found | ({"padding between tokens": "holes"} if subject.holes else {})


def padded(subject: EncoderSubject) -> Iterator[tuple[str, list[Stream], int]]:
    """Each layout of each stream, a column longer than needed: its name, the batch, the stream."""
    for name, where in layouts(subject).items():
        for stream in range(-subject.streams, 0):
            yield name + role(subject, stream), batch_of(subject, where, 1, stream), stream


def with_an_empty_row(streams: list[Stream], pad_id: int, stream: int = -1) -> list[Stream]:
    """One more row, of padding alone (in one stream, or in the last)."""
    longer = []
    for i, (ids, mask) in enumerate(streams):
        empty = i == stream % len(streams)
        row = torch.full_like(ids[:1], pad_id) if empty else ids[:1]
        longer.append(
            (torch.cat([ids, row]), torch.cat([mask, torch.zeros_like(row) if empty else mask[:1]]))
        )
    return longer


def role(subject: EncoderSubject, stream: int) -> str:
    """ " of the source" or " of the target" where there are two."""
    return "" if subject.streams == 1 else (" of the target", " of the source")[stream + 1]
