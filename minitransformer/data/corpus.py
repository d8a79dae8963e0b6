"""Prose for language models: paragraphs, split, then cut into pieces that fit."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from minitransformer.data.cutting import Piece, fit, sections
from minitransformer.data.held_out import without
from minitransformer.data.reading import Record
from minitransformer.data.source import DataOptions, fingerprint_of, split_records
from minitransformer.data.tokenization import AnyVocabulary
from minitransformer.data.vocabulary import Vocabulary


@dataclass(frozen=True)
class Pieces:
    """What a language model is trained on, and what is kept from it."""

    training: Sequence[Piece]
    held_out: Sequence[Piece]
    longest: int  # tokens of one of them
    fingerprint: str  # of all of them
    notes: list[str] = field(default_factory=list)


class Corpus(Protocol):
    notes: list[str]

    @property
    def characters(self) -> str:
        """All that stand in the texts to train on."""
        ...

    def texts(self) -> Iterable[str]:
        """Those to train on."""
        ...

    def pieces(self, vocabulary: AnyVocabulary, room: int) -> Pieces:
        """Of at most `room` tokens."""
        ...


class SmallCorpus:
    """Prose that fits into memory."""

    def __init__(self, options: DataOptions, most: int, default: Callable[[], list[Record]]):
        """A passage has at most so many characters; without files there is the `default`."""
        self.notes: list[str] = []
        if options.data or options.held_out:
            records, held_out = options.read(("text",), self.notes)
        else:
            records, held_out = default(), []
        sides = split_records(
            list(_passages(records, most)), list(_passages(held_out, most)), _text, self.notes
        )
        self.training, self.held_out = ([one.values[0] for one in side] for side in sides)

    @property
    def characters(self) -> str:
        return "".join(sorted(set().union(*self.training)))

    def texts(self) -> list[str]:
        return self.training

    def pieces(self, vocabulary: AnyVocabulary, room: int) -> Pieces:
        notes: list[str] = []
        everything = _cut("training", self.training, vocabulary, room, notes)
        held_out = _cut("held-out", self.held_out, vocabulary, room, notes)
        training = without(everything, lambda piece: piece.text, held_out)
        if aside := len(everything) - len(training):
            notes.append(f"{aside:,} pieces are set aside: the same text is held out")
        longest = max(len(piece.ids) for piece in [*training, *held_out])
        names = vocabulary.names(range(len(vocabulary)))
        return Pieces(training, held_out, longest, fingerprint_of(names, training, held_out), notes)


def _cut(
    name: str, texts: Sequence[str], vocabulary: AnyVocabulary, room: int, notes: list[str]
) -> list[Piece]:
    found = fit(vocabulary, texts, room)
    cut = [len(parts) for parts in found if len(parts) > 1]
    if cut:
        notes.append(told(name, len(cut), len(texts), sum(cut), room, vocabulary))
    return [piece for parts in found for piece in parts]


def told(name: str, cut: int, texts: int, pieces: int, room: int, vocabulary: AnyVocabulary) -> str:
    unit = "characters" if isinstance(vocabulary, Vocabulary) else "tokens"
    return (
        f"{name}: {cut:,} of {texts:,} passages are longer than the {room} {unit} that fit and are "
        f"cut into {pieces:,} pieces"
    )


def _passages(records: Sequence[Record], most: int) -> Iterator[Record]:
    for one in records:
        for part in sections(one.values[0], most):
            yield one._replace(values=(part,))


def _text(record: Record) -> str:
    return record.values[0]
