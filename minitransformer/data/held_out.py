"""Held out means unseen: a split by a hash of each text, the same for any order and any file.

Texts that differ in case, spaces or Unicode form only have one hash, so they are on one side; and a
text stays where it is when more of them come along.
"""

import hashlib
import unicodedata
from collections.abc import Callable, Sequence
from typing import TypeVar

SHARE = 20  # one in so many is held out
FEWEST = 20  # distinct texts from which one at least is held out
T = TypeVar("T")


def normal_form(text: str) -> str:
    """What near-identical texts share: Unicode's NFKC, no case, one space between words."""
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def place(text: str) -> int:
    """Where the normal form of a text stands in a random order of all texts, below 2⁶⁴."""
    data = normal_form(text).encode("utf-8", "surrogatepass")
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "big")


def split(examples: Sequence[T], text: Callable[[T], str]) -> tuple[list[T], list[T]]:
    """The examples to train on, in their order, and those held out, in a random one.

    Of fewer than 20 distinct texts none may be held out.
    """
    places = [place(text(example)) for example in examples]
    chosen = _chosen(set(places))
    training = [e for e, p in zip(examples, places, strict=True) if p not in chosen]
    held_out = sorted((p, i) for i, p in enumerate(places) if p in chosen)
    return training, [examples[i] for _, i in held_out]


def _chosen(places: set[int]) -> set[int]:
    chosen = {p for p in places if p % SHARE == 0}
    return {min(places)} if not chosen and len(places) >= FEWEST else chosen


def without(examples: Sequence[T], text: Callable[[T], str], held_out: Sequence[T]) -> list[T]:
    """The examples whose text is none of those held out."""
    seen = {normal_form(text(example)) for example in held_out}
    return [example for example in examples if normal_form(text(example)) not in seen]
