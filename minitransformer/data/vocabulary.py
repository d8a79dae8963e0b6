"""Characters to numbers and back: the whole tokenizer of the built-in tasks."""

from collections.abc import Iterable, Sequence

SPECIAL = ("<pad>", "<bos>", "<eos>", "<unk>", "[MASK]")
PAD, BOS, EOS, UNKNOWN, MASK = range(len(SPECIAL))


class Vocabulary:
    """The special tokens, then one token for each character of the data.

    >>> vocabulary = Vocabulary("abc")
    >>> vocabulary.encode(["cab"])
    [[1, 7, 5, 6, 2]]
    >>> vocabulary.decode([1, 7, 5, 6, 2])
    'cab'
    """

    pad_id, bos_id, eos_id, unk_id, mask_id = PAD, BOS, EOS, UNKNOWN, MASK
    special_ids = tuple(range(len(SPECIAL)))
    prefix, suffix = [BOS], [EOS]  # what a text is wrapped in
    mask_name = SPECIAL[MASK]

    def __init__(self, characters: Iterable[str]):
        self.tokens = [*SPECIAL, *sorted(set(characters))]
        self._ids = {token: i for i, token in enumerate(self.tokens)}

    def __len__(self) -> int:
        return len(self.tokens)

    def __repr__(self) -> str:
        return f"Vocabulary({len(self)} tokens: {' '.join(self.tokens[:12])} ...)"

    @property
    def characters(self) -> list[str]:
        return self.tokens[len(SPECIAL) :]

    def encode(self, texts: Sequence[str], add_special: bool = True) -> list[list[int]]:
        """One id a character, between <bos> and <eos>; a character that is not known is <unk>."""
        if isinstance(texts, str):
            raise TypeError("encode takes a list of texts; for one text: encode([text])[0]")
        rows = [[self._ids.get(character, UNKNOWN) for character in text] for text in texts]
        return [[BOS, *row, EOS] for row in rows] if add_special else rows

    def encode_masked(self, text: str) -> list[int]:
        """The ids of a text in which "[MASK]" is one token."""
        ids = [BOS]
        for i, part in enumerate(self.encode(text.split(SPECIAL[MASK]), add_special=False)):
            ids += [MASK] * (i > 0) + part
        return [*ids, EOS]

    def encode_with_starts(self, texts: Sequence[str]) -> list[tuple[list[int], Sequence[int]]]:
        """The ids of each text alone, and where in the text each of them begins."""
        return [(row, range(len(row))) for row in self.encode(texts, add_special=False)]

    def decode(self, ids: Iterable[int]) -> str:
        """The text of the ids, special tokens left out."""
        return "".join(self.tokens[i] for i in ids if i >= len(SPECIAL))

    def names(self, ids: Iterable[int]) -> list[str]:
        """The name of each token, for pictures."""
        return [self.tokens[i] for i in ids]

    def unknown(self, texts: Sequence[str]) -> list[str]:
        """The characters of `texts` that are not known, sorted."""
        return sorted(set[str]().union(*texts) - set(self.characters))
