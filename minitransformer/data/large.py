"""Prose larger than memory: read, split, cut and tokenized once, into memory-mapped Arrow files.

The work is done by the `datasets` library, in several processes. Its result lies in a cache folder,
named by the files' paths, sizes and times and by all that decides what becomes of them; it is used
again as long as these are the same.
"""

import errno
import hashlib
import json
import os
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from minitransformer.data.corpus import Corpus, Pieces, SmallCorpus, told
from minitransformer.data.cutting import Piece, fit, sections
from minitransformer.data.files import InputError, check_file, naming, to_json, write_atomically
from minitransformer.data.held_out import SHARE, place
from minitransformer.data.reading import (
    CSV,
    JSON,
    LONG_LINE,
    Record,
    delimiter_of,
    encoding_of,
    find_files,
    is_dataset,
    read_records,
    suffix_of,
)
from minitransformer.data.source import DataOptions
from minitransformer.data.tokenization import AnyVocabulary

LARGE = 2**26  # bytes; less is read into memory
UNPACKED = 4  # times as large as a .gz, about
COUNTS = ("cut", "parts", "aside")  # passages that were too long, their pieces, those set aside
ABOUT = "about.json"  # written when everything else is there


def find_corpus(options: DataOptions, most: int, default: Callable[[], list[Record]]) -> Corpus:
    """In memory or on disk, by the size of the files; a passage has at most `most` characters."""
    if _size(options.data) > LARGE:
        return LargeCorpus(options, most)
    return SmallCorpus(options, most, default)


def _size(paths: Iterable[str]) -> int:
    return sum(
        file.stat().st_size * (UNPACKED if file.suffix == ".gz" else 1)
        for file in _files(paths)
        if file.is_file()
    )


def _files(paths: Iterable[str]) -> Iterator[Path]:
    for path in map(Path, paths):
        yield from sorted(path.rglob("*")) if path.is_dir() else [path]


class LargeCorpus:
    """Prose in Arrow files, of which only the part that is looked at is in memory."""

    def __init__(self, options: DataOptions, most: int):
        self.options, self.most = options, most
        files = [*_files(options.data), *_files(options.held_out or ())]
        known = [(str(f), f.stat()) for f in files if f.is_file()]
        key = [[name, stat.st_size, stat.st_mtime_ns] for name, stat in known]
        self.size = sum(stat.st_size for _, stat in known)
        self.folder = cache_folder() / _digest([key, most, options.columns, options.held_out])
        about = _made_once(self.folder, self._read)
        self.notes: list[str] = about["notes"]
        self.characters: str = about["characters"]

    def _read(self, folder: Path) -> dict[str, Any]:
        """Write the passages to train on, and those held out."""
        texts = self._held_out()
        places = None if texts is None else frozenset(map(place, texts))
        raw = _load(self.options, folder / "raw")
        cut = partial(_passages, most=self.most, held_out=places)
        _map(raw, partial(cut, wanted=False), "training", folder)
        if texts is None:
            _map(raw, partial(cut, wanted=True), "held_out", folder)
        else:
            given = _library().Dataset.from_dict({"text": texts})
            _map(given, partial(dict), "held_out", folder)
        shutil.rmtree(folder / "raw", ignore_errors=True)
        training, kept = _open(folder, "training"), _open(folder, "held_out")
        if not len(training):
            raise InputError(f"{self.options.data[0]}: holds no text to train on")
        characters: set[str] = set()
        for batch in training.with_format("arrow").iter(1_000):
            characters.update(*batch["text"].to_pylist())
        note = (
            f"{self.size / 1e6:,.0f} MB of text, read once into {folder.parent}: {len(training):,} "
            f"passages to train on, {len(kept):,} held out"
        )
        return {"notes": [note], "characters": "".join(sorted(characters))}

    def _held_out(self) -> list[str] | None:
        """The passages of the user's own, if there are any."""
        if not self.options.held_out:
            return None
        records = read_records(self.options.held_out, ("text",), self.options.columns).records
        return [part for one in records for part in sections(one.values[0], self.most)]

    def texts(self) -> Iterator[str]:
        for batch in _open(self.folder, "training").with_format("arrow").iter(1_000):
            yield from batch["text"].to_pylist()

    def pieces(self, vocabulary: AnyVocabulary, room: int) -> Pieces:
        key = [self.folder.name, room, vocabulary.names(range(len(vocabulary)))]
        folder = self.folder / _digest(key)
        about = _made_once(folder, partial(self._cut, vocabulary, room))
        training, held_out = (ArrowPieces(_open(folder, s)) for s in ("training", "held_out"))
        return Pieces(training, held_out, about["longest"], folder.name, about["notes"])

    def _cut(self, vocabulary: AnyVocabulary, room: int, folder: Path) -> dict[str, Any]:
        notes, longest, seen = [], 0, frozenset[int]()
        for side in ("held_out", "training"):
            passages = _open(self.folder, side)
            cut = partial(_pieces, vocabulary=vocabulary, room=room, seen=seen)
            _map(passages.with_format("arrow"), cut, side, folder)
            places: set[int] = set()
            long, parts, aside = np.zeros(3, np.int64)
            for batch in _open(folder, side).with_format("arrow").iter(10_000):
                longest = max(longest, _longest(batch["input_ids"]))
                counts = [batch[name].to_numpy().sum() for name in COUNTS]
                long, parts, aside = np.array([long, parts, aside]) + counts
                if side == "held_out":
                    places.update(batch["place"].to_pylist())
            if side == "held_out":
                seen = frozenset(places)
            name = side.replace("_", "-")
            if long:
                notes.append(told(name, int(long), len(passages), int(parts), room, vocabulary))
            if aside:
                notes.append(f"{aside:,} pieces are set aside: the same text is held out")
        return {"notes": notes, "longest": longest}


class ArrowPieces(Sequence[Piece]):
    """Pieces in Arrow files, read when they are asked for."""

    def __init__(self, dataset: Any):
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        row = self.dataset[int(index)]
        return Piece(row["text"], row["input_ids"], row["ends"])


# ---- what the processes do -----------------------------------------------------------------------


def _passages(
    batch: dict[str, list], most: int, held_out: frozenset[int] | None, wanted: bool
) -> dict[str, list]:
    """The passages of some texts that are held out, or those that are not."""
    found = []
    for text in batch["text"]:
        for part in sections((text or "").strip(), most):
            if part:
                where = place(part)
                is_held_out = where % SHARE == 0 if held_out is None else where in held_out
                if is_held_out == wanted:
                    found.append(part)
    return {"text": found}


def _pieces(table: Any, vocabulary: AnyVocabulary, room: int, seen: frozenset[int]) -> Any:
    """A table of pieces from one of passages, without those whose text was seen."""
    import pyarrow

    found = fit(vocabulary, table["text"].to_pylist(), room)
    pieces = list(chain.from_iterable(found))
    places = [place(piece.text) for piece in pieces]
    kept = [(*piece, p) for piece, p in zip(pieces, places, strict=True) if p not in seen]
    texts, ids, ends, places = zip(*kept, strict=True) if kept else ((), (), (), ())
    cut = [len(parts) for parts in found if len(parts) > 1]
    counts = dict(zip(COUNTS, (len(cut), sum(cut), len(pieces) - len(kept)), strict=True))
    bounds = np.cumsum([0, *map(len, ids)], dtype=np.int64)
    tokens = np.fromiter(chain.from_iterable(ids), np.min_scalar_type(len(vocabulary)), bounds[-1])
    return pyarrow.table(
        {
            "text": pyarrow.array(texts, pyarrow.string()),
            "input_ids": pyarrow.LargeListArray.from_arrays(bounds, pyarrow.array(tokens)),
            "ends": pyarrow.array(ends, pyarrow.bool_()),
            "place": pyarrow.array(places, pyarrow.uint64()),
            **{name: _in_the_first_row(counts[name], len(kept)) for name in COUNTS},
        }
    )


def _in_the_first_row(number: int, rows: int) -> Any:
    """A column with what is said of the whole batch."""
    import pyarrow

    return pyarrow.array(([number] + [0] * rows)[:rows], pyarrow.int32())


def _longest(lists: Any) -> int:
    chunks = [chunk for chunk in lists.chunks if len(chunk)]
    return max((int(np.diff(chunk.offsets.to_numpy()).max()) for chunk in chunks), default=0)


# ---- the library ---------------------------------------------------------------------------------


def _library() -> Any:
    os.environ.setdefault("HF_DATASETS_OFFLINE", "1")
    try:
        import datasets
    except ImportError:
        raise ImportError(
            f"text of more than {LARGE // 2**20} MiB is read with datasets: pip install datasets"
        ) from None
    if not sys.stderr.isatty():
        datasets.disable_progress_bars()
    return datasets


def _load(options: DataOptions, cache: Path) -> Any:
    """The files as a dataset with a column `text`, a paragraph a row."""
    library, parts = _library(), []
    for path in find_files(options.data, []):
        column = options.columns[0] if options.columns else "text"
        is_text = not is_dataset(path) and suffix_of(path) not in (CSV, *JSON)
        if is_text and options.columns:
            raise InputError(f"{path}: of so large a text no --columns are read; make it CSV")
        try:
            part = _read_text(path, cache) if is_text else _read_table(path, cache)
        except Exception as error:  # the library's, and those of every format that it reads
            raise _refusal(path, error) from None
        parts.append(_only_text(path, part, column))
    return library.concatenate_datasets(parts)


def _read_text(path: Path, cache: Path) -> Any:
    check_file(path)
    head = _head(path)
    if encoding_of(head).startswith("utf-8") and b"\0" in head:
        raise InputError(f"{path}: holds a zero byte; expected UTF-8 text")
    return _library().load_dataset(
        "text",
        data_files=str(path),
        cache_dir=str(cache),
        encoding=encoding_of(head),
        sample_by="line" if _is_paragraph_a_line(head) else "paragraph",
    )


def _read_table(path: Path, cache: Path) -> Any:
    if is_dataset(path):
        return _library().load_from_disk(str(path))
    check_file(path)
    kind, options = "json", {}
    if suffix_of(path) == CSV:
        kind, options = "csv", {"sep": delimiter_of(_head(path).decode(errors="replace"))}
    return _library().load_dataset(kind, data_files=str(path), cache_dir=str(cache), **options)


def _refusal(path: Path, error: BaseException) -> Exception:
    """What to say of a file that the library cannot read. A full disk is not the file's fault."""
    cause = error.__cause__ or error.__context__ or error
    if isinstance(error, InputError) or getattr(cause, "errno", None) == errno.ENOSPC:
        return error if isinstance(error, InputError) else cause
    line = ""
    if isinstance(cause, UnicodeDecodeError) and path.suffix != ".gz":
        line = f":{_line_that_is_not_utf8(path)}"
    return InputError(f"{path}{line}: cannot be read: {cause}")


def _line_that_is_not_utf8(path: Path) -> int:
    with open(path, "rb") as file:
        for number, line in enumerate(file, 1):
            try:
                line.decode()
            except UnicodeDecodeError:
                return number
    return 1


def _only_text(path: Path, part: Any, column: str) -> Any:
    part = part["train"] if hasattr(part, "keys") else part
    if column not in part.column_names:
        known = ", ".join(part.column_names)
        raise InputError(f"{path}: has no column {column!r} but {known}: --columns NAME")
    kind = getattr(part.features[column], "dtype", "list")
    if kind not in ("string", "large_string"):
        raise InputError(f"{path}: the column {column!r} is of {kind}, not text")
    part = part.select_columns([column])
    return part if column == "text" else part.rename_column(column, "text")


def _head(path: Path) -> bytes:
    import gzip

    with open(path, "rb") as file:
        packed = file.read(2) == b"\x1f\x8b"
    with gzip.open(path) if packed else open(path, "rb") as file:
        return file.read(2**20)


def _is_paragraph_a_line(head: bytes) -> bool:
    lines = head.splitlines()
    return 2 * sum(len(line) for line in lines if len(line) > LONG_LINE) > len(head)


def _map(dataset: Any, function: Callable, name: str, folder: Path) -> None:
    """The rows that a function makes of batches of rows, in Arrow files of this name."""
    processes = max(1, min(os.cpu_count() or 1, 8, len(dataset) // 1_000))
    dataset.map(
        function,
        batched=True,
        batch_size=1_000,
        remove_columns=dataset.column_names,
        num_proc=processes if processes > 1 else None,
        cache_file_name=str(folder / f"{name}.arrow"),
        new_fingerprint=_digest([folder.name, name])[:16],
        load_from_cache_file=False,
        desc=f"{name.replace('_', '-')} {'pieces' if function.func is _pieces else 'passages'}",
    )


def _open(folder: Path, name: str) -> Any:
    datasets = _library()
    files = sorted(folder.glob(f"{name}*.arrow"))
    if not files:
        return datasets.Dataset.from_dict({"text": []})
    return datasets.concatenate_datasets([datasets.Dataset.from_file(str(f)) for f in files])


# ---- the cache -----------------------------------------------------------------------------------


def cache_folder() -> Path:
    """$MINITRANSFORMER_CACHE, or minitransformer where the system keeps what can be made again."""
    own = os.environ.get("MINITRANSFORMER_CACHE")
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(own) if own else Path(base) / "minitransformer"


def _made_once(folder: Path, make: Callable[[Path], dict[str, Any]]) -> dict[str, Any]:
    """What `make` says of the folder that it fills, now or when it was first asked for."""
    from filelock import FileLock

    with naming(folder):
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / ".lock"):
            if not (folder / ABOUT).exists():
                _clear(folder)  # of a process that was killed
                try:
                    write_atomically(folder / ABOUT, to_json(make(folder)))
                except BaseException:
                    _clear(folder)
                    raise
            return json.loads((folder / ABOUT).read_text(encoding="utf-8"))


def _clear(folder: Path) -> None:
    for path in folder.iterdir():
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        elif path.name != ".lock":
            path.unlink()


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()[:32]
