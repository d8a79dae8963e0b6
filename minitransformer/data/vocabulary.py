"""Characters to numbers and back: the whole tokenizer of the built-in tasks."""

from collections.abc import Iterable, Sequence

SPECIAL = ("<pad>", "<bos>", "<eos>", "<unk>", "[MASK]")
PAD, BOS, EOS, UNKNOWN, MASK = range(len(SPECIAL))


class Vocabulary:
    """The special tokens, then one token for each character of the data.

    >>> vocabulary = Vocabulary("abc")
    >>> vocabulary.encode("cab")
    [7, 5, 6]
    >>> vocabulary.decode([1, 7, 5, 6, 2])
    'cab'
    """

    pad_id, bos_id, eos_id, mask_id = PAD, BOS, EOS, MASK
    special_ids = tuple(range(len(SPECIAL)))
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

    def encode(self, text: str) -> list[int]:
        """One id a character; a character that is not known becomes <unk>."""
        return [self._ids.get(character, UNKNOWN) for character in text]

    def encode_masked(self, text: str) -> list[int]:
        """The same, where "[MASK]" is one token."""
        ids = []
        for i, part in enumerate(text.split(SPECIAL[MASK])):
            ids += [MASK] * (i > 0) + self.encode(part)
        return ids

    def decode(self, ids: Iterable[int]) -> str:
        """The text of the ids, special tokens left out."""
        return "".join(self.tokens[i] for i in ids if i >= len(SPECIAL))

    def names(self, ids: Iterable[int]) -> list[str]:
        """The name of each token, for pictures."""
        return [self.tokens[i] for i in ids]

    def unknown(self, texts: Sequence[str]) -> list[str]:
        """The characters of `texts` that are not known, sorted."""
        return sorted(set("".join(texts)) - set(self.characters))
