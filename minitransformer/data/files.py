"""The user's files: read with errors that name file and line, written whole or not at all."""

import csv
import io
import json
import math
import os
import re
import stat
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

LARGEST_TEXT, LARGEST_JSON = 2**30, 2**24  # bytes that are read
LONGEST = 1000  # characters of an error
# Controls, line separators, what turns the direction of writing, and what is no UTF-8.
UNPRINTED = re.compile("[\0-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def printable(text: str, keep: str = "") -> str:
    """`text` without control over the terminal that it is printed on: one line, in which an escape
    character is the four characters `\\x1b`. The characters of `keep` stay as they are."""
    return UNPRINTED.sub(lambda sign: sign[0] if sign[0] in keep else ascii(sign[0])[1:-1], text)


class InputError(Exception):
    """What the user gave cannot be used; the message is one printable line that says where and why.

    Names and texts may go into it as they are; of a very long one the middle is left out.
    """

    def __init__(self, message: str):
        message = printable(message)
        if len(message) > LONGEST:
            message = f"{message[: LONGEST // 2]} … {message[-LONGEST // 2 :]}"
        super().__init__(message)


def check_file(path: Path, pipe: bool = False) -> None:
    """Refuse what is not a file that can be read to its end: a folder, a device, a pipe (unless
    the user named one), or what Git leaves in place of a large file that was not downloaded."""
    start = b""
    try:
        mode = path.stat().st_mode
        if stat.S_ISREG(mode):
            with open(path, "rb") as file:
                start = file.read(32)
    except FileNotFoundError:
        what = "is a link to a file that is not there" if path.is_symlink() else "no such file"
        raise InputError(f"{path}: {what}") from None
    except (OSError, ValueError) as error:  # a name may hold what no file system has
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"{path}: cannot be read: {reason}") from None
    if stat.S_ISDIR(mode):
        raise InputError(f"{path}: is a folder, expected a file")
    if not stat.S_ISREG(mode) and not (pipe and stat.S_ISFIFO(mode)):
        raise InputError(f"{path}: is a pipe, a socket or a device, expected a file")
    if start.startswith(b"version https://git-lfs"):
        raise InputError(f"{path}: is a pointer of Git LFS, not the file: run `git lfs pull`")


def read_file(path: Path, most: int, pipe: bool = False) -> bytes:
    """The bytes of a file, at most so many; of a pipe too, where the user may name one."""
    check_file(path, pipe)
    try:
        with open(path, "rb") as file:
            return read_stream(file, str(path), most)
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from None


def read_stream(stream: BinaryIO, name: str, most: int = LARGEST_TEXT) -> bytes:
    """What comes from `stream`, which may never end: at most so many bytes."""
    parts, size = [], 0
    while part := stream.read(2**20):
        parts.append(part)
        size += len(part)
        if size > most:
            raise InputError(f"{name}: has more than the {most // 2**20:,} MiB that are read")
    return b"".join(parts)


def read_json(path: Path) -> Any:
    """A JSON file. Refused is also what other readers understand otherwise: NaN, numbers that are
    infinite in float64, a key that stands twice in an object, halves of characters."""
    try:
        value = json.loads(
            read_file(path, LARGEST_JSON).decode("utf-8-sig"),
            parse_float=_finite,
            parse_constant=_finite,
            object_pairs_hook=_without_twins,
        )
        json.dumps(value, ensure_ascii=False).encode()
        return value
    except UnicodeEncodeError as error:
        sign = error.object[error.start]
        raise InputError(f"{path}: is not JSON: {sign!a} is half of a character") from None
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: is not JSON: {error}") from None


def to_json(value: Any) -> bytes:
    return (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode()


def read_object(path: Path) -> dict[str, Any]:
    value = read_json(path)
    if not isinstance(value, dict):
        raise InputError(f"{path}: must be a JSON object, got {_short(json.dumps(value))}")
    return value


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"{text} is not a finite number")
    return number


def _without_twins(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        seen: set[str] = set()
        twin = next(key for key, _ in pairs if key in seen or seen.add(key))
        raise ValueError(f"the key {twin!r} stands twice in an object")
    return found


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
        raise InputError(f"{path}: cannot be written: {error.strerror or error}") from None


def _short(text: str, length: int = 40) -> str:
    return repr(text if len(text) <= length else text[:length] + "…")
