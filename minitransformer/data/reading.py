"""Files as people have them, as texts: plain, TABs, CSV, JSON lines, gzip, UTF-16, folders."""

import csv
import gzip
import io
import json
import re
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from minitransformer.data.files import LARGEST_TEXT, InputError, read_file, read_stream

ENCODINGS = {  # by the byte order mark that a file begins with; without one it is UTF-8
    b"\xef\xbb\xbf": "utf-8-sig",
    b"\xff\xfe\0\0": "utf-32",
    b"\0\0\xfe\xff": "utf-32",
    b"\xff\xfe": "utf-16",
    b"\xfe\xff": "utf-16",
}
JSON, CSV = (".jsonl", ".ndjson", ".json"), ".csv"
SUFFIXES = ("", ".txt", ".text", ".md", ".rst", ".tsv", ".tab", CSV, *JSON)  # read in a folder
SURROGATE = re.compile("[\ud800-\udfff]")  # JSON may have one of a pair alone
Cells = list[Any] | dict[str, Any]


class Record(NamedTuple):
    """One example of a file: a text for each column that was asked for, and where it stands."""

    values: tuple[str, ...]
    file: str
    line: int


@dataclass
class Reading:
    """What was read, and what is to be said about it."""

    records: list[Record] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


class Faults:
    """What is wrong with the lines of files, told at once: each kind with its first line."""

    def __init__(self):
        self.found: dict[str, list[tuple[str, int, str]]] = {}

    def add(self, kind: str, file: str, line: int, what: str = "") -> None:
        self.found.setdefault(kind, []).append((file, line, what))

    def check(self, total: int) -> None:
        """Raises InputError if there are any among so many lines."""
        told = []
        for kind, places in self.found.items():
            file, line, what = places[0]
            more = f" ({len(places):,} of {total:,} lines)" if len(places) > 1 else ""
            told.append(f"{file}:{line}: {what}{kind}{more}")
        if told:
            raise InputError("; ".join(told))


# ---- bytes to text -------------------------------------------------------------------------------


def read_text(path: Path) -> str:
    """A text file, a pipe, or either of them compressed by gzip; see `decode`."""
    data = read_file(path, LARGEST_TEXT, pipe=True)
    if data.startswith(b"\x1f\x8b"):
        try:
            data = read_stream(gzip.GzipFile(fileobj=io.BytesIO(data)), str(path))
        except (OSError, EOFError, zlib.error) as error:
            raise InputError(f"{path}: cannot be unpacked: {error}") from None
    return decode(data, str(path))


def encoding_of(data: bytes) -> str:
    """By the mark that it begins with."""
    return next((name for mark, name in ENCODINGS.items() if data.startswith(mark)), "utf-8")


def decode(data: bytes, name: str) -> str:
    """UTF-8, or UTF-16 with its mark, with line ends of any system; not without a text."""
    encoding = encoding_of(data)
    if encoding.startswith("utf-8") and b"\0" in data:
        line = data[: data.index(b"\0")].count(b"\n") + 1
        raise InputError(f"{name}:{line}: holds a zero byte; expected UTF-8 text")
    try:
        text = data.decode(encoding)
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        known = encoding.upper().removesuffix("-SIG")
        raise InputError(f"{name}:{line}: is not {known}; convert it first") from None
    if not text.strip():
        raise InputError(f"{name}: {'holds only white space' if text else 'is empty'}")
    return text.replace("\r\n", "\n").replace("\r", "\n")


def lines_of(text: str) -> list[str]:
    return text.removesuffix("\n").split("\n")


def read_lines(path: str | Path) -> list[str]:
    """The lines of a text file, or of a pipe, without their ends."""
    return lines_of(read_text(Path(path)))


# ---- files to records ----------------------------------------------------------------------------


def read_records(
    paths: Sequence[str], names: Sequence[str], columns: Sequence[str] | None = None
) -> Reading:
    """The records of files, and of the files in folders, with a value for each of `names`.

    `columns` says where they stand: by number, from 1, or by the name that a header, or an object
    of JSON, gives them. By default these are `names`, or in lines with TABs the first columns; a
    file without columns is prose, of which a record is a paragraph. Empty lines are passed over.

    Raises InputError for all that is wrong with a file, each kind with its first line.
    """
    _check_columns(names, columns)
    reading = Reading()
    prose = len(names) == 1 and columns is None
    for path in find_files(paths, reading.notes):
        table = _Table(path, list(names), columns, reading)
        if prose and not is_dataset(path) and suffix_of(path) not in (CSV, *JSON):
            reading.records += table.paragraphs(read_text(path))
        else:
            table.read(_cells(path))
    if paths and not reading.records:
        raise InputError(f"{', '.join(map(str, paths))}: holds no {' and '.join(names)}")
    return reading


def _check_columns(names: Sequence[str], columns: Sequence[str] | None) -> None:
    if columns is not None and len(columns) != len(names):
        raise InputError(
            f"--columns: expected {len(names)}, for {' and '.join(names)}, got {len(columns)}"
        )


def _cells(path: Path) -> Iterator[tuple[int, Any]]:
    """The rows of a table, each with its line."""
    if is_dataset(path):
        return _rows(path)
    kinds = {CSV: _csv_rows, **dict.fromkeys(JSON, _objects)}
    return kinds.get(suffix_of(path), _lines_with_tabs)(read_text(path), str(path))


def suffix_of(path: Path) -> str:
    return Path(path.name.lower().removesuffix(".gz")).suffix


def is_dataset(path: Path) -> bool:
    """Is it a folder that `save_to_disk` of the datasets library wrote?"""
    return any((path / name).is_file() for name in ("dataset_dict.json", "state.json"))


def _rows(folder: Path) -> Iterator[tuple[int, Cells]]:
    """Of a folder that the datasets library wrote: of its part "train", if there are several."""
    try:
        import datasets
    except ImportError:
        raise ImportError(
            f'{folder}: is read with datasets, in the extra "data": pip install '
            '"minitransformer[data]"'
        ) from None
    try:
        found = datasets.load_from_disk(str(folder))
        found = found["train"] if isinstance(found, datasets.DatasetDict) else found
    except Exception as error:  # of any of the formats that lie in there
        raise InputError(f"{folder}: is no folder of save_to_disk: {error}") from None
    yield from enumerate(found, 1)


def find_files(paths: Sequence[str], notes: list[str]) -> list[Path]:
    """The files, those in the folders, and folders of the datasets library as they are."""
    found: list[Path] = []
    for path in map(Path, paths):
        is_folder = path.is_dir() and not is_dataset(path)
        found += _files_in(path, notes) if is_folder else [path]
    return found


def _files_in(folder: Path, notes: list[str]) -> list[Path]:
    """Those that can be read, without hidden ones."""
    files = list(_visible_files(folder))
    read = [file for file in files if suffix_of(file) in SUFFIXES]
    if not read:
        raise InputError(
            f"{folder}: no file in this folder is read; expected names that end in "
            f"{', '.join(filter(None, SUFFIXES))}, or these and .gz"
        )
    left = Counter(map(suffix_of, files)) - Counter(map(suffix_of, read))
    kinds = ", ".join(f"{count} {suffix}" for suffix, count in left.most_common())
    notes.append(f"{folder}: {len(read):,} files" + (f"; passed over: {kinds}" if left else ""))
    return read


def _visible_files(folder: Path) -> Iterator[Path]:
    for path in sorted(folder.rglob("*")):
        if path.is_file() and not re.search(r"(^|/)\.", path.relative_to(folder).as_posix()):
            yield path


def _lines_with_tabs(text: str, path: str) -> Iterator[tuple[int, Any]]:
    for number, line in enumerate(lines_of(text), 1):
        yield number, line.split("\t")


def delimiter_of(text: str) -> str:
    """Of a CSV file: commas, or what spreadsheets of other countries write: semicolons, TABs."""
    return max(",;\t", key=text.partition("\n")[0].count)


def _csv_rows(text: str, path: str) -> Iterator[tuple[int, Any]]:
    csv.field_size_limit(LARGEST_TEXT)
    file, delimiter = io.StringIO(text, newline=""), delimiter_of(text)
    reader = csv.reader(file, delimiter=delimiter, strict=True)
    try:
        for row in reader:
            yield reader.line_num, row
    except csv.Error as error:
        raise InputError(f"{path}:{reader.line_num}: is not CSV: {error}") from None


def _objects(text: str, path: str) -> Iterator[tuple[int, Any]]:
    """A list of objects, or an object in each line."""
    line = 1
    try:
        if text.lstrip().startswith("["):
            yield from enumerate(json.loads(text), 1)
            return
        for line, written in enumerate(lines_of(text), 1):
            if written.strip():
                yield line, json.loads(written)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}:{line}: is not a line of JSON: {error}") from None


class _Table:
    """Rows of cells, of which some columns are wanted."""

    def __init__(
        self, path: Path, names: list[str], columns: Sequence[str] | None, reading: Reading
    ):
        self.path, self.names, self.columns, self.reading = str(path), names, columns, reading
        self.kind = dict if suffix_of(path) in JSON or is_dataset(path) else list
        self.faults = Faults()
        self.takes_first, self.left_out = False, 0  # lines that hold more than the first columns

    def read(self, rows: Iterable[tuple[int, Any]]) -> None:
        keys: list[Any] | None = None
        records, total = [], 0
        for line, cells in rows:
            total += 1
            if not isinstance(cells, self.kind):
                self.faults.add(f"expected an object, got {_short(cells)}", self.path, line)
                continue
            if _is_blank(cells):
                continue
            if keys is None:
                keys, is_header = self._keys(line, cells)
                if is_header:
                    continue
            values = self._values(line, cells, keys)
            if values is not None:
                records.append(Record(values, self.path, line))
        self.faults.check(total)
        if self.left_out:
            self._note(
                f"what stands after column {len(self.names)} is left out, in "
                f"{self.left_out:,} lines"
            )
        self.reading.records += records

    def _keys(self, line: int, cells: Cells) -> tuple[list[Any], bool]:
        """The indices of the columns, or their keys in objects, and whether `cells` name them."""
        if isinstance(cells, dict):
            return self._named(line, list(cells)), False
        is_csv = suffix_of(Path(self.path)) == CSV
        if self.columns is None and not is_csv:
            self.takes_first = True
            return list(range(len(self.names))), False
        if numbers := _numbers(self.columns or ()):
            if is_csv:
                self._note(f"column numbers: the first line, {_short(cells)}, is an example, too")
            return [number - 1 for number in numbers], False
        return list(map(cells.index, self._named(line, cells))), True

    def _named(self, line: int, there: list[str]) -> list[str]:
        """What the wanted columns are called; without `columns` all that are there are wanted, if
        these are as many as the names."""
        wanted = list(self.columns or self.names)
        missing = [name for name in wanted if name not in there]
        if not missing:
            return wanted
        names = " and ".join(self.names)
        if self.columns is None and len(there) == len(wanted):
            self._note(f"{' and '.join(map(repr, there))} are the {names}")
            return there
        known = ", ".join(map(str, there[:20]))
        raise InputError(
            f"{self.path}:{line}: has no column {missing[0]!r} but {known}; say which are "
            f"{names}: --columns {','.join(self.names).upper()}, by name, or by number from 1"
        )

    def _note(self, note: str) -> None:
        self.reading.notes.append(f"{self.path}: {note}")

    def _values(self, line: int, cells: Cells, keys: list[Any]) -> tuple[str, ...] | None:
        """The texts of the columns, or None where something is wrong with them."""
        found = [_at(cells, key) for key in keys]
        if None in found:
            self._misses(line, cells)
            return None
        for name, value in zip(self.names, found, strict=True):
            if fault := _fault(value):
                self.faults.add(f"the {name} {fault}", self.path, line)
                return None
        if self.takes_first:
            self.left_out += any(map(str.strip, cells[len(keys) :]))
        return tuple(map(str, found))

    def _misses(self, line: int, cells: Cells) -> None:
        names = " TAB ".join(self.names)
        tabs = isinstance(cells, list) and suffix_of(Path(self.path)) != CSV
        if tabs and len(cells) == 1:
            what = f"expected {names}, got {_short(cells[0])}: "
            self.faults.add("no TAB; are there spaces in its place?", self.path, line, what)
        elif isinstance(cells, dict):
            names = " and ".join(self.names)
            self.faults.add(f"expected {names}, got {_short(cells)}", self.path, line)
        else:
            self.faults.add(f"expected {names}, got too few columns", self.path, line)

    def paragraphs(self, text: str) -> list[Record]:
        """Prose: paragraphs with empty lines between, or, where lines are long, one in each."""
        lines = lines_of(text)
        long = sum(len(line) for line in lines if len(line) > LONG_LINE)
        if 2 * long > len(text):
            records = [
                Record((line.strip(),), self.path, n)
                for n, line in enumerate(lines, 1)
                if line.strip()
            ]
            layout = "one a line"
        else:
            records, layout = list(_between_empty_lines(lines, self.path)), "empty lines between"
        if len(records) > 1:
            self._note(f"{len(records):,} paragraphs, {layout}")
        return records


LONG_LINE = 200  # characters; wrapped prose has less, a paragraph in a line more


def _between_empty_lines(lines: list[str], path: str) -> Iterator[Record]:
    start, paragraph = 1, []
    for number, line in enumerate([*lines, ""], 1):
        if line.strip():
            paragraph.append(line)
            continue
        if paragraph:
            yield Record(("\n".join(paragraph),), path, start)
        start, paragraph = number + 1, []


def _is_blank(cells: Cells) -> bool:
    return isinstance(cells, list) and not any(map(str.strip, cells))


def _numbers(columns: Sequence[str]) -> list[int]:
    """The numbers that the columns are given by, from 1; none if they are given by name."""
    numbers = [int(name) if name.isdecimal() else 0 for name in columns]
    return numbers if all(numbers) else []


def _at(cells: Cells, key: Any) -> Any:
    if isinstance(cells, dict):
        return cells.get(key)
    return cells[key] if key < len(cells) else None


def _fault(value: Any) -> str:
    """Why this is no text, if it is none."""
    if isinstance(value, bool) or not isinstance(value, str | int | float) or value != value:
        return f"is {_short(value)}, no text"
    if not str(value).strip():
        return "is empty"
    return "holds half of a character" if SURROGATE.search(str(value)) else ""


def _short(value: Any, length: int = 40) -> str:
    text = value if isinstance(value, str) else json.dumps(value, default=str)
    return repr(text if len(text) <= length else text[:length] + "…")
