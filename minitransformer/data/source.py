"""Where examples come from: the user's files, a split, and a vocabulary to read them with."""

import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from minitransformer.data.files import InputError
from minitransformer.data.held_out import split, without
from minitransformer.data.reading import Record, read_records
from minitransformer.data.tokenization import AnyVocabulary, Tokenizer
from minitransformer.data.vocabulary import Vocabulary

SAMPLE = 50_000_000  # characters of text that a tokenizer is trained on, at most


@dataclass(frozen=True)
class DataOptions:
    """Which data, and how it is read: what the command line says and a run remembers."""

    data: tuple[str, ...] = ()  # files and folders; none: the task's own
    columns: tuple[str, ...] | None = None  # of the files, by number or name
    held_out: tuple[str, ...] | None = None  # files; None: every 20th text by its hash
    skip_long: bool = False  # leave out pairs that do not fit?
    tokenizer: str = "characters"  # or bpe, wordpiece, or a tokenizer.json
    vocab_size: int = 4_000  # of a tokenizer that is trained

    def __post_init__(self):
        for name in ("data", "columns", "held_out"):
            value = getattr(self, name)
            if name == "data" and value is None:  # as runs had it that read no file
                value = []
            if isinstance(value, str | list):
                value = (value,) if isinstance(value, str) else tuple(value)
                object.__setattr__(self, name, value)

    def read(self, names: Sequence[str], notes: list[str]) -> tuple[list[Record], list[Record]]:
        """The records to train on, and those held out."""
        sides = []
        for paths in (self.data, self.held_out or ()):
            reading = read_records(paths, names, self.columns)
            notes += reading.notes
            sides.append(reading.records)
        return sides[0], sides[1]


def split_records(
    records: Sequence[Record],
    held_out: Sequence[Record],
    text: Callable[[Record], str],
    notes: list[str],
) -> tuple[list[Record], list[Record]]:
    """The records to train on and those held out, by hash or as the user has them, with no text on
    both sides."""
    if not held_out:
        return split(records, text)
    unseen = without(records, text, held_out)
    if len(unseen) < len(records):
        notes.append(
            f"{len(records) - len(unseen):,} of {len(records):,} examples are held out, too: they "
            "are set aside"
        )
    if records and not unseen:
        raise InputError("--held-out: holds every example of --data: there is none to train on")
    return unseen, list(held_out)


def make_vocabulary(
    options: DataOptions, texts: Iterable[str], needed: Sequence[str], notes: list[str]
) -> AnyVocabulary:
    """The characters of the texts, a tokenizer trained on them, or one that is there.

    Raises InputError where it lacks a token that is `needed`: bos, eos or mask.
    """
    trained = options.tokenizer in ("bpe", "wordpiece")
    if not trained and options.vocab_size != DataOptions.vocab_size:
        raise InputError("--vocab-size: is for --tokenizer bpe or wordpiece")
    if options.tokenizer == "characters":
        characters: set[str] = set()
        for text in texts:
            characters.update(text)
        return Vocabulary(characters)
    if not trained:
        return needing(Tokenizer.load(options.tokenizer), needed, f"{options.tokenizer}: ")
    sample = _sample(texts, notes)
    try:
        tokenizer = Tokenizer.train(sample, options.vocab_size, options.tokenizer)
    except ValueError as error:
        raise InputError(str(error).replace("vocab_size", "--vocab-size")) from None
    some = sample[:1000]
    tokens = sum(map(len, tokenizer.encode(some, add_special=False)))
    notes.append(
        f"{options.tokenizer} tokenizer: {len(tokenizer):,} tokens, which stand for "
        f"{sum(map(len, some)) / max(tokens, 1):.1f} characters on average"
    )
    return tokenizer


def _sample(texts: Iterable[str], notes: list[str]) -> list[str]:
    sample, size = [], 0
    for text in texts:
        if size > SAMPLE:
            said = f"the tokenizer is trained on the first {size // 10**6} million characters"
            notes.append(said)
            break
        sample.append(text)
        size += len(text)
    return sample


def needing(vocabulary: AnyVocabulary, needed: Sequence[str], where: str = "") -> AnyVocabulary:
    for role in needed:
        if getattr(vocabulary, f"{role}_id") is None:
            raise InputError(f"{where}the tokenizer has no token for {role}, which the task needs")
    return vocabulary


def note_unknown(vocabulary: AnyVocabulary, characters: str, notes: list[str]) -> None:
    """Say what a vocabulary that was there before these texts does not know."""
    if unknown := vocabulary.unknown([characters]):
        some = " ".join(map(repr, unknown[:10]))
        notes.append(
            f"{len(unknown):,} characters of the texts are unknown to the tokenizer: {some}"
        )


def fingerprint_of(*parts: Iterable[Any]) -> str:
    """A sha256 of texts and numbers."""
    digest = hashlib.sha256()
    for part in parts:
        for value in part:
            digest.update(repr(value).encode("utf-8", "surrogatepass") + b"\n")
        digest.update(b"\0")
    return digest.hexdigest()
