"""The user's files: read with errors that name file and line, written whole or not at all."""

import csv
import io
import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any


class InputError(Exception):
    """What the user gave cannot be used; the message is one line that says where and why."""


def read_lines(path: str | Path) -> list[str]:
    """The lines of a UTF-8 text file, without their ends."""
    path = Path(path)
    if path.is_dir():
        raise InputError(f"{path}: is a folder, expected a text file")
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from None
    return decode_lines(data, str(path))


def decode_lines(data: bytes, name: str) -> list[str]:
    """The lines of UTF-8 text that came from `name`, without their ends."""
    if b"\0" in data:
        line = data[: data.index(b"\0")].count(b"\n") + 1
        raise InputError(f"{name}:{line}: holds a zero byte; expected UTF-8 text")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise InputError(f"{name}:{line}: is not UTF-8; convert it first") from None
    if not text.strip():
        raise InputError(f"{name}: {'holds only white space' if text else 'is empty'}")
    return text.replace("\r\n", "\n").removesuffix("\n").split("\n")


def read_pairs(path: str | Path, max_source: int, max_target: int) -> list[tuple[str, str]]:
    """The (source, target) lines of a file with a TAB in each; empty lines are passed over."""
    pairs = []
    for number, line in enumerate(read_lines(path), 1):
        if not line.strip():
            continue
        source, tab, target = line.partition("\t")
        if not tab or "\t" in target:
            hint = "several TABs" if tab else "no TAB; are there spaces in its place?"
            raise InputError(
                f"{path}:{number}: expected source TAB target, got {_short(line)}: {hint}"
            )
        if not source.strip() or not target.strip():
            side = "target" if source.strip() else "source"
            raise InputError(f"{path}:{number}: the {side} is empty")
        check_length(f"{path}:{number}: the source", source, max_source)
        check_length(f"{path}:{number}: the target", target, max_target)
        pairs.append((source, target))
    return pairs


def read_documents(path: str | Path, max_length: int) -> list[str]:
    """The paragraphs of a text file, as `split_documents` cuts them."""
    lines = read_lines(path)
    for number, line in enumerate(lines, 1):
        check_length(f"{path}:{number}: the line", line, max_length)
    return split_documents(lines, max_length)


def split_documents(lines: list[str], max_length: int) -> list[str]:
    """Paragraphs, which blank lines end, in pieces of whole lines of at most `max_length`."""
    documents, piece = [], ""
    for line in [*lines, ""]:
        longer = f"{piece}\n{line}" if piece else line
        if line.strip() and len(longer) <= max_length:
            piece = longer
            continue
        if piece:
            documents.append(piece)
        piece = line if line.strip() else ""
    return documents


def check_length(what: str, text: str, max_length: int) -> None:
    if len(text) > max_length:
        raise InputError(
            f"{what} has {len(text)} characters, more than the {max_length} that fit; "
            "shorten it, or train with a larger --max-length"
        )


def check_pointer(path: Path) -> None:
    """Refuse what Git leaves in place of a large file that was not downloaded."""
    with open(path, "rb") as file:
        if file.read(32).startswith(b"version https://git-lfs"):
            raise InputError(f"{path}: is a pointer of Git LFS, not the file: run `git lfs pull`")


def read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise InputError(f"{path}: is not JSON: {error}") from None


def to_json(value: Any) -> bytes:
    return (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode()


def to_csv(rows: Iterable[Mapping[str, Any]]) -> bytes:
    """A line for each row, under the names that any of them has."""
    rows = list(rows)
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, list(dict.fromkeys(name for row in rows for name in row)))
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode()


def write_atomically(path: Path, data: bytes) -> None:
    """Fill a temporary file, then put it in place of `path` in one step.

    Raises InputError, which names the file, where it cannot be written; it is then as it was.
    """
    temporary = temporary_name(path)
    with naming(path):
        try:
            write(temporary, data)
            os.replace(temporary, path)
            sync(path.parent)
        finally:
            with suppress(OSError):
                temporary.unlink(missing_ok=True)


TEMPORARY = re.compile(r"^\..+\.\d+\.tmp$")  # what `temporary_name` gives


def temporary_name(path: Path) -> Path:
    return path.with_name(f".{path.name}.{os.getpid()}.tmp")


def write(path: Path, data: bytes) -> None:
    """A new file that is on the disk when this returns, power cut or not."""
    with open(path, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def sync(folder: Path) -> None:
    """Have the folder's list of names on the disk; Windows keeps it there itself."""
    if os.name == "posix":
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Where a full disk, say, stops the block, name the file: the system's error often does not."""
    try:
        yield
    except OSError as error:
        raise InputError(f"{path}: cannot be written: {error.strerror}") from None


def _short(text: str, length: int = 40) -> str:
    return repr(text if len(text) <= length else text[:length] + "…")
