"""Long texts in pieces that fit, cut after a sentence, a line or a word."""

import re
from bisect import bisect_left
from collections.abc import Sequence
from typing import NamedTuple

from minitransformer.data.files import InputError
from minitransformer.data.tokenization import AnyVocabulary

# Where a text may be cut, the best place first.
SENTENCE_END = re.compile(r"[.!?…][\"'”’»)\]]*\s+|[。！？]")
LINE_END, SPACE = re.compile(r"\n\s*"), re.compile(r"\s+")


class Piece(NamedTuple):
    """A text that fits, its tokens, and whether the text that it was cut from ends with it."""

    text: str
    ids: list[int]
    ends: bool = True


def cut(text: str, starts: Sequence[int], room: int) -> list[str]:
    """The text in pieces of at most `room` tokens, of which each begins at one of `starts`.

    White space at a cut is left out, nothing else is.
    """
    pieces, here = [], 0
    while True:
        first = bisect_left(starts, here)
        if len(starts) - first <= room:
            return [piece for piece in [*pieces, text[here:].strip()] if piece]
        end = max(starts[first + room], here + 1)
        after = _best_cut(text, here, end)
        pieces.append(text[here:after].strip())
        here = after


def _best_cut(text: str, start: int, end: int) -> int:
    """After the last sentence, line or word in the last third of the text from `start` to `end`,
    or at `end`."""
    for pattern in (SENTENCE_END, LINE_END, SPACE):
        ends = [match.end() for match in pattern.finditer(text, (start + 2 * end) // 3, end)]
        if ends and ends[-1] > start:
            return ends[-1]
    return end


def sections(text: str, room: int) -> list[str]:
    """The text in pieces of at most `room` characters."""
    return [text] if len(text) <= room else cut(text, range(len(text)), room)


def fit(vocabulary: AnyVocabulary, texts: Sequence[str], room: int) -> list[list[Piece]]:
    """Each text in pieces of at most `room` tokens. A text that is long for the tokens' number,
    but not for what its pieces have when they are encoded alone, may be cut once more."""
    pieces = []
    for text, (ids, starts) in zip(texts, vocabulary.encode_with_starts(texts), strict=True):
        if len(ids) <= room:
            pieces.append([Piece(text, ids)])
            continue
        shorter = cut(text, starts, room)
        if shorter == [text]:
            raise InputError(
                f"--max-length leaves room for {room} tokens, too few for {text[:20]!r}"
            )
        parts = [part for found in fit(vocabulary, shorter, room) for part in found]
        parts = [part._replace(ends=False) for part in parts[:-1]] + parts[-1:]
        pieces.append(parts)
    return pieces
