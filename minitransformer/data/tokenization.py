"""Text to token ids and back, through the `tokenizers` library; padding is ours (`pad`).

tokenizer = Tokenizer.train(texts, vocab_size=2000)
batch = pad(tokenizer.encode(["a short text", "a longer one"]), tokenizer.pad_id)
"""

import functools
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from minitransformer.data.files import (
    InputError,
    read_file,
    read_object,
    to_json,
    write_atomically,
)
from minitransformer.data.vocabulary import Vocabulary

TOKENIZER, TOKENIZER_CONFIG = "tokenizer.json", "tokenizer_config.json"
LARGEST = 2**28  # bytes of a tokenizer.json
# What a special token is for -> the names it goes by, in the order in which they are tried.
ROLES = {
    "pad": ("<pad>", "[PAD]", "<|pad|>"),
    "bos": ("<s>", "<bos>", "[CLS]", "<|begin_of_text|>"),
    "eos": ("</s>", "<eos>", "[SEP]", "<|endoftext|>", "<|end_of_text|>"),
    "unk": ("<unk>", "[UNK]"),
    "mask": ("[MASK]", "<mask>"),
}
SPECIAL = {
    "bpe": ["<pad>", "<s>", "</s>", "<unk>", "<mask>"],
    "wordpiece": ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"],
}


class Tokenizer:
    """A tokenizer.json with the ids of its special tokens; None where it has no such token.

    `pad_id`, `bos_id`, `eos_id`, `unk_id` and `mask_id` come from tokenizer_config.json or
    special_tokens_map.json beside the file, else from the usual names of such tokens.
    """

    def __init__(self, tokenizer: Any, roles: dict[str, str] | None = None):
        self.tokenizer = tokenizer
        tokenizer.no_padding()  # `pad` does that, from lengths
        tokenizer.no_truncation()
        self._size = 1 + max(tokenizer.get_vocab().values(), default=-1)  # some ids may be nobody's
        roles = roles or {}
        for role, usual in ROLES.items():
            said = [roles[role]] if role in roles else usual
            found = [i for name in said if (i := tokenizer.token_to_id(name)) is not None]
            setattr(self, f"{role}_id", found[0] if found else None)

    pad_id: int | None
    bos_id: int | None
    eos_id: int | None
    unk_id: int | None
    mask_id: int | None

    def __len__(self) -> int:
        return max(self._size, self.tokenizer.get_vocab_size())  # tokens may be added

    @property
    def mask_name(self) -> str | None:
        """What stands in a text for a token to be filled in."""
        return None if self.mask_id is None else self.names([self.mask_id])[0]

    @property
    def special_ids(self) -> list[int]:
        """The ids of all tokens that are no text."""
        added = self.tokenizer.get_added_tokens_decoder()
        return sorted(i for i, token in added.items() if token.special)

    def encode(self, texts: Sequence[str], add_special: bool = True) -> list[list[int]]:
        """Ragged token ids, with the special tokens that the file says a text is wrapped in."""
        if isinstance(texts, str):
            raise TypeError("encode takes a list of texts; for one text: encode([text])[0]")
        with _refusing("the tokenizer cannot read this text"):
            encoded = self.tokenizer.encode_batch(list(texts), add_special_tokens=add_special)
        return [one.ids for one in encoded]

    def encode_with_starts(self, texts: Sequence[str]) -> list[tuple[list[int], list[int]]]:
        """The ids of each text alone, and where in the text each of them begins."""
        with _refusing("the tokenizer cannot read this text"):
            encoded = self.tokenizer.encode_batch(list(texts), add_special_tokens=False)
        return [(one.ids, [start for start, _ in one.offsets]) for one in encoded]

    def encode_pairs(self, pairs: Sequence[tuple[str, ...]]) -> list[tuple[list[int], list[int]]]:
        """A text, or two as one row: its ids, and the segment that each of them is of."""
        with _refusing("the tokenizer cannot read this text"):
            encoded = self.tokenizer.encode_batch([p if len(p) > 1 else p[0] for p in pairs])
        return [(one.ids, one.type_ids) for one in encoded]

    @functools.cached_property
    def wrapping(self) -> tuple[list[int], list[int]]:
        """The special tokens before and after a text."""
        whole, bare = (self.encode(["a"], add_special)[0] for add_special in (True, False))
        for start in range(len(whole) - len(bare) + 1):
            if whole[start : start + len(bare)] == bare:
                return whole[:start], whole[start + len(bare) :]
        raise InputError("the tokenizer writes a text otherwise when it adds its special tokens")

    @property
    def prefix(self) -> list[int]:
        return self.wrapping[0]

    @property
    def suffix(self) -> list[int]:
        return self.wrapping[1]

    def unknown(self, texts: Sequence[str]) -> list[str]:
        """The characters of `texts` that no token stands for, sorted."""
        if self.unk_id is None:
            return []
        characters = sorted(set[str]().union(*texts))
        rows = self.encode(characters, add_special=False)
        return [c for c, row in zip(characters, rows, strict=True) if self.unk_id in row]

    def decode(self, ids: Iterable[int], skip_special: bool = True) -> str:
        with _refusing("the tokenizer cannot write these tokens"):
            return self.tokenizer.decode([int(i) for i in ids], skip_special_tokens=skip_special)

    def names(self, ids: Iterable[int]) -> list[str]:
        """The name of each token, for pictures."""
        return [self.tokenizer.id_to_token(int(i)) or "?" for i in ids]

    def files(self) -> dict[str, bytes]:
        """tokenizer.json and tokenizer_config.json, as transformers reads them."""
        names = {role: getattr(self, f"{role}_id") for role in ROLES}
        said = {
            f"{'cls' if role == 'bos' and self._wordpiece else role}_token": name
            for role, i in names.items()
            if i is not None and (name := self.tokenizer.id_to_token(i))
        }
        about = {"tokenizer_class": "PreTrainedTokenizerFast", **said}
        return {
            TOKENIZER: self.tokenizer.to_str(pretty=False).encode(),
            TOKENIZER_CONFIG: to_json(about),
        }

    def save(self, folder: str | Path) -> None:
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        for name, data in self.files().items():
            write_atomically(folder / name, data)

    @property
    def _wordpiece(self) -> bool:
        return type(self.tokenizer.model).__name__ == "WordPiece"

    @classmethod
    def load(cls, path: str | Path) -> "Tokenizer":
        """From a tokenizer.json, or a folder that holds one. Raises InputError with the file."""
        file = Path(path)
        file = file / TOKENIZER if file.is_dir() else file
        if not os.path.lexists(file):
            raise InputError(
                f"{file}: no such file; for a tokenizer of another format, have transformers write "
                "one: AutoTokenizer.from_pretrained(folder).save_pretrained(folder)"
            )
        names = ("special_tokens_map.json", TOKENIZER_CONFIG)
        beside = [file.parent / name for name in names]
        about = {one: read_object(one) for one in beside if os.path.lexists(one)}
        return cls.from_bytes(read_file(file, LARGEST), about, file)

    @classmethod
    def from_bytes(
        cls, data: bytes, about: Mapping[Path, Mapping[str, Any]], file: Path
    ) -> "Tokenizer":
        """From the bytes of `file` and the objects in the files beside it."""
        library, roles = _library(), {}
        for path, said in about.items():
            roles |= _roles_in(path, said)
        with _refusing(f"{file}: is no tokenizer.json"):
            for said in about.values():
                data = _with_prefix_space(data, said.get("add_prefix_space"))
            tokenizer = library.Tokenizer.from_buffer(data)
        return cls(tokenizer, roles)

    @classmethod
    def train(cls, texts: Iterable[str], vocab_size: int, kind: str = "bpe") -> "Tokenizer":
        """Learn a vocabulary from texts: "bpe", on bytes, so that nothing is unknown, or
        "wordpiece", BERT's, on lower-cased words. Deterministic.

        A bpe text is wrapped in <s> and </s>, a wordpiece text in [CLS] and [SEP].
        Raises ValueError for a vocabulary that cannot hold the special tokens and the alphabet.
        """
        library = _library()
        if kind not in SPECIAL:
            raise ValueError(f"kind must be 'bpe' or 'wordpiece', got {kind!r}")
        texts = list(texts)
        if not any(text.strip() for text in texts):
            raise ValueError("there is no text to learn a vocabulary from")
        special = SPECIAL[kind]
        if kind == "bpe":
            if vocab_size < len(special) + 256:
                least = len(special) + 256
                raise ValueError(f"vocab_size must be {least} or more for bpe, got {vocab_size}")
            tokenizer = library.Tokenizer(library.models.BPE(unk_token="<unk>"))
            tokenizer.pre_tokenizer = library.pre_tokenizers.ByteLevel(add_prefix_space=False)
            tokenizer.decoder = library.decoders.ByteLevel()
            trainer = library.trainers.BpeTrainer(
                vocab_size=vocab_size,
                special_tokens=special,
                initial_alphabet=sorted(library.pre_tokenizers.ByteLevel.alphabet()),
                show_progress=False,
            )
            tokenizer.train_from_iterator(texts, trainer)
            first, last = "<s>", "</s>"
        else:
            tokenizer = _train_wordpiece(library, texts, vocab_size, special)
            first, last = "[CLS]", "[SEP]"
        tokenizer.post_processor = library.processors.TemplateProcessing(
            single=f"{first} $A {last}",
            pair=f"{first} $A {last} $B:1 {last}:1",
            special_tokens=[(name, tokenizer.token_to_id(name)) for name in (first, last)],
        )
        return cls(tokenizer)


def _train_wordpiece(library: Any, texts: list[str], vocab_size: int, special: list[str]) -> Any:
    """BERT's tokenizer. The library's trainer numbers letters as they come out of a hash table, and
    ties follow from that; told the letters beforehand, in order, it is deterministic."""

    def make(vocabulary: dict[str, int]) -> Any:
        tokenizer = library.Tokenizer(library.models.WordPiece(vocabulary, unk_token="[UNK]"))
        tokenizer.normalizer = library.normalizers.BertNormalizer(lowercase=True)
        tokenizer.pre_tokenizer = library.pre_tokenizers.BertPreTokenizer()
        tokenizer.decoder = library.decoders.WordPiece()
        return tokenizer

    tokenizer = make({})
    characters = sorted(set[str]().union(*texts))  # what becomes of one asks for no neighbor
    letters = sorted(set(tokenizer.normalizer.normalize_str("".join(characters))) - {" "})
    known = [*special, *letters, *(f"##{letter}" for letter in letters)]
    if vocab_size < len(known):
        raise ValueError(
            f"vocab_size must be {len(known)} or more for wordpiece and the {len(letters)} letters "
            f"of these texts, got {vocab_size}"
        )
    trainer = library.trainers.WordPieceTrainer(
        vocab_size=vocab_size, special_tokens=known, show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer = make(tokenizer.get_vocab())  # in which only the special tokens are special
    tokenizer.add_special_tokens(special)
    return tokenizer


def _roles_in(file: Path, said: Mapping[str, Any]) -> dict[str, str]:
    """Role -> token, as a file beside a tokenizer.json says."""
    roles: dict[str, str] = {}
    for role in ROLES:
        keys = ["cls_token", "bos_token"] if role == "bos" else [f"{role}_token"]
        keys = ["sep_token", *keys] if role == "eos" else keys
        for key in keys:
            if (token := _named_token(file, said, key)) is not None:
                roles[role] = token
    return roles


def _named_token(file: Path, said: Mapping[str, Any], key: str) -> str | None:
    token = said.get(key)
    token = token.get("content") if isinstance(token, dict) else token
    if not (token is None or isinstance(token, str)):
        raise InputError(f"{file}: {key} must be a text or null, got {token!r}")
    return token


def _with_prefix_space(data: bytes, wanted: Any) -> bytes:
    """A tokenizer.json whose byte-level part adds a space before a text, or does not, as
    tokenizer_config.json says."""
    if not isinstance(wanted, bool):
        return data
    said = json.loads(data)
    part = said.get("pre_tokenizer") or {}
    for one in [part, *part.get("pretokenizers", [])]:
        if one.get("type") == "ByteLevel":
            one["add_prefix_space"] = wanted
    return json.dumps(said).encode()


@contextmanager
def _refusing(what: str) -> Iterator[None]:
    """The library's errors as ours: it raises nothing narrower, and panics pass `Exception` by."""
    try:
        yield
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:
        reason = " ".join(str(error).split())[:200]
        raise InputError(f"{what}: {reason}") from None


AnyVocabulary = Vocabulary | Tokenizer


def _library() -> Any:
    try:
        import tokenizers
        from tokenizers import decoders, models, normalizers, pre_tokenizers, processors, trainers
    except ImportError:
        raise ImportError("this needs tokenizers: pip install tokenizers") from None
    del decoders, models, normalizers, pre_tokenizers, processors, trainers
    return tokenizers
