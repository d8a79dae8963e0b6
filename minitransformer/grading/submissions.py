"""What was handed in: a row for every student, the code of every file, and a note on the rest.

A submission is a file or a folder; its name says whose it is (see `layouts`). Python files,
notebooks, texts that are Python and what a zip archive holds of these are read; nothing is written,
and no link followed, so whatever is read lies in the submission itself.
"""

import ast
import math
import os
import re
import stat
import struct
import unicodedata
import zipfile
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import BinaryIO, NamedTuple

from minitransformer.data.files import InputError
from minitransformer.exercises.cells import parse_cell, read_cells
from minitransformer.exercises.chapters import EXERCISES
from minitransformer.exercises.exercise import find
from minitransformer.grading.layouts import Owner, layout_of, owners

LARGEST = 2**23  # bytes of code in a submission
LARGEST_FILE = 100 * 2**20  # bytes of a file: a notebook keeps the pictures that it showed
LONGEST = 2**20  # characters of code that are looked through
LARGEST_INDEX = 2**20  # bytes in which an archive lists its files: some 10,000 of them
CODE = (".py", ".ipynb", ".txt")
NOTHING = "handed in nothing"  # of the roster, and no file has the name
READ = "only .py, .ipynb, .txt and .zip files are"
SYSTEM = {"__MACOSX", "__pycache__", "venv", "env", "site-packages", "node_modules", "Thumbs.db"}
NOTES = {"readme", "roster", "grades", "scores"}  # names of files that are no student's
UNPRINTABLE = re.compile("[\0-\x08\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")

Cells = list[tuple[str, str]]  # (label, source)


def plain(text: str) -> str:
    """Without what moves a terminal's cursor, turns the direction of writing, or is no UTF-8."""
    return UNPRINTABLE.sub("\ufffd", text)


class File(NamedTuple):
    """A file of a submission, on the disk or in an archive there."""

    path: Path
    changed: float = 0.0  # when, in seconds since 1970
    member: str = ""  # of the archive

    @property
    def name(self) -> str:
        return plain(PurePosixPath(self.member).name if self.member else self.path.name)

    def read(self) -> bytes:
        """Raises OSError, ValueError for what is not a file or too large, and what archives do."""
        size = LARGEST_FILE
        with _opened(self.path) as file:
            if not self.member:
                data = file.read(size + 1)
            else:
                with zipfile.ZipFile(file) as archive, archive.open(self.member) as member:
                    data = member.read(size + 1)
        if len(data) > size:
            raise ValueError(f"it has more than {size / 2**20:g} MiB")
        return data


def _opened(path: Path) -> BinaryIO:
    """A regular file, should it be another by now."""
    file = os.fdopen(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK), "rb")
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        raise ValueError("is not a file")
    return file


@dataclass(frozen=True)
class Submission:
    student: str
    files: tuple[File, ...]
    notes: tuple[str, ...] = ()  # on what was handed in and is not read
    number: str = ""  # the platform's, of the student
    email: str = ""
    late: bool = False  # the platform says so
    handed_in: float = 0.0  # when, in seconds since 1970

    def days_late(self, due: float | None) -> int | str:
        """Days begun since `due`; without it "late" where the platform says so, else nothing."""
        if due is None or not self.handed_in:
            return "late" if self.late else ""
        return max(0, math.ceil((self.handed_in - due) / 86_400))


# ---- who handed in -------------------------------------------------------------------------------


def submissions_in(folder: Path, layout: str = "") -> list[Submission]:
    """Every student's files and folders, by name. Raises InputError where there are none.

    `layout`: one of LAYOUTS, which says how names are read; by default the one that fits.
    """
    entries = entries_of(folder)
    layout = layout or layout_of(folder, entries)
    found: dict[tuple[str, str], list[tuple[Owner, Path, str]]] = {}
    for owner, entry, note in owners(folder, entries, layout):
        found.setdefault((owner.name, owner.number), []).append((owner, entry, note))
    submissions = []
    students = as_students([(name, number) for name, number in found])
    for student, handed_in in zip(students, found.values(), strict=True):
        files, notes = _files_of([entry for _, entry, _ in handed_in])
        notes = [*dict.fromkeys(plain(note) for _, _, note in handed_in if note), *notes]
        if len(handed_in) > 1 and layout == "folders":
            names = " and ".join(plain(entry.name) for _, entry, _ in handed_in)
            notes.insert(0, f"{names} are taken for one student's")
        for other in students:
            if other != student and spelling(other) == spelling(student):
                notes.append(f"{other} has a row, too: is it one student under two spellings?")
        owner = max((owner for owner, _, _ in handed_in), key=lambda one: one.handed_in)
        when = owner.handed_in or max([_changed(entry) for _, entry, _ in handed_in])
        late = any(one.late for one, _, _ in handed_in)
        submissions.append(
            Submission(student, tuple(files), tuple(notes), owner.number, owner.email, late, when)
        )
    return submissions


def entries_of(folder: Path) -> list[Path]:
    """What lies in the folder and may be a student's."""
    if folder.is_file():
        raise InputError(f"{folder}: is a file: unpack it, and name the folder")
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder; expected one file or folder for each student")
    entries = [
        entry
        for entry in sorted(folder.iterdir())
        if not _is_system(entry.name) and not _is_for_the_grader(entry)
    ]
    if not entries:
        raise InputError(f"{folder}: holds no submissions: no files and no folders")
    return entries


def _changed(path: Path) -> float:
    """When the newest file at or below a path was written, as far as it can be told."""
    newest = 0.0
    with suppress(OSError):
        about = path.lstat()
        if not stat.S_ISDIR(about.st_mode):
            return about.st_mtime
        for inside in path.iterdir():
            if not _is_system(inside.name):
                newest = max(newest, _changed(inside))
    return newest


def _is_system(name: str) -> bool:
    """Of an operating system, an installation or what was handed out, not the student's own."""
    tests = name.startswith("test_") and name[5:].removesuffix(".py") in EXERCISES
    return name.startswith(".") or name in SYSTEM or tests


def _is_for_the_grader(entry: Path) -> bool:
    """A list or a note that lies beside the submissions."""
    name, suffix = entry.stem.lower(), entry.suffix.lower()
    return name in NOTES and suffix not in (".py", ".ipynb", ".zip") and entry.is_file()


def as_students(names: Sequence[tuple[str, str]]) -> list[str]:
    """(name, number) pairs as names of students, and of folders: any text, none of them twice."""
    students: list[str] = []
    for name, number in names:
        student = plain(os.fsencode(name).decode("utf-8", "replace")).replace("/", "_")
        student = " ".join(student.split())  # one line, whatever stands in it
        student = student.encode()[:200].decode("utf-8", "ignore")  # a file's name has 255 bytes
        student = "_" if student in ("", ".", "..") else student
        others = [number] * bool(number) + [str(count) for count in range(2, len(names) + 2)]
        same = [student, *(f"{student} ({other})" for other in others)]
        students.append(next(name for name in same if name not in students))
    return students


def spelling(name: str) -> str:
    """Names that a reader takes for the same have the same."""
    return re.sub(r"[\W_]", "", unicodedata.normalize("NFKC", name).casefold())


# ---- the files -----------------------------------------------------------------------------------


def _files_of(entries: Sequence[Path]) -> tuple[list[File], list[str]]:
    """What is read at and below these, and notes on what is not."""
    files: list[File] = []
    notes: list[str] = []
    todo = deque(entries)
    while todo:
        path = todo.popleft()
        try:
            about = path.lstat()
            if stat.S_ISDIR(about.st_mode):
                inside = sorted(one for one in path.iterdir() if not _is_system(one.name))
                todo.extendleft(reversed(inside))
            elif not stat.S_ISREG(about.st_mode):
                kind = "a link" if stat.S_ISLNK(about.st_mode) else "a pipe or a device"
                notes.append(f"{plain(path.name)} is {kind}, not a file: it was not read")
            elif path.suffix.lower() == ".zip":
                files += _members(path)
            else:
                files.append(File(path, about.st_mtime))
        except OSError as error:
            notes.append(f"{plain(path.name)} cannot be read: {error.strerror}")
        except Exception as error:  # whatever a damaged or forged archive comes to
            notes.append(f"{plain(path.name)} cannot be read: {error}")
    code = [file for file in files if PurePosixPath(file.name).suffix.lower() in CODE]
    if unread := sorted({file.name for file in files if file not in code}):
        shown = ", ".join(unread[:5]) + (", ..." if len(unread) > 5 else "")
        notes.append(f"not read: {shown} ({READ})")
    return code, notes


def _members(path: Path) -> Iterator[File]:
    """The files of an archive that are the student's own. Raises ValueError for what is none."""
    with _opened(path) as file:
        file.seek(0, os.SEEK_END)
        file.seek(max(0, file.tell() - 2**16 - 22))
        end = file.read()
        at = end.rfind(b"PK\5\6")
        if at < 0 or len(end) < at + 22:
            raise ValueError("it is no zip archive")
        if struct.unpack_from("<I", end, at + 12)[0] > LARGEST_INDEX:
            raise ValueError("it holds too many files")
        with zipfile.ZipFile(file) as archive:
            for about in archive.infolist():
                kind = stat.S_IFMT(about.external_attr >> 16)
                parts = [x for x in PurePosixPath(about.filename).parts if x != ".."]
                own = not any(map(_is_system, parts))
                if own and not about.is_dir() and kind in (0, stat.S_IFREG):
                    changed = 0.0
                    with suppress(ValueError, OverflowError):
                        changed = datetime(*about.date_time).timestamp()
                    yield File(path, changed, about.filename)


# ---- the code ------------------------------------------------------------------------------------


def code_of(submission: Submission, names: Sequence[str]) -> tuple[Cells, list[str]]:
    """The cells of all files, in which each exercise has one answer, and notes on the rest."""
    found: list[tuple[File, Cells]] = []
    notes, room = list(submission.notes), LARGEST
    for file in submission.files:
        try:
            cells = read_cells(file.name, file.read())
            if file.name.lower().endswith(".txt"):
                for label, source in cells:
                    parse_cell(label, source)
            room -= sum(len(source.encode("utf-8", "replace")) for _, source in cells)
            if room < 0:
                raise ValueError(f"a submission may have {LARGEST // 2**20} MiB of code")
        except Exception as error:  # of archives too: forged, encrypted, cut off
            notes.append(f"{file.name} cannot be read: {plain(str(error))}")
        else:
            found.append((file, cells))
    found = _one_answer_each(found, names, notes)
    cells = [cell for _, cells in found for cell in cells]
    if not submission.files and NOTHING not in notes:
        notes.append("nothing was handed in that can be read")
    elif found and not any(source.strip() for _, source in cells):
        notes.append("what was handed in holds no code")
    else:
        definitions = [
            node for cell in cells for name in names for node in _definitions(*cell, name)
        ]
        if definitions and all(map(_is_untouched, definitions)):
            notes.append("every exercise is as it was handed out")
    return cells, notes


def _one_answer_each(
    found: list[tuple[File, Cells]], names: Sequence[str], notes: list[str]
) -> list[tuple[File, Cells]]:
    """Where several files define an exercise, the newest that answers it counts, with a note."""
    lost: list[set[str]] = [set() for _ in found]
    for name in names:
        nodes = [[n for cell in cells for n in _definitions(*cell, name)] for _, cells in found]
        defining = [number for number, some in enumerate(nodes) if some]
        if len(defining) < 2:
            continue
        answered = [bool(some) and not _is_untouched(some[-1]) for some in nodes]
        newest = {
            number: (answered[number], found[number][0].changed, number) for number in defining
        }
        best = max(newest, key=newest.__getitem__)
        files = " and ".join(found[number][0].name for number in defining)
        why = "the newest that answers it" if answered[best] else "the newest"
        notes.append(f"{name} stands in {files}: {found[best][0].name} counts, {why}")
        for number in defining:
            if number != best:
                lost[number].add(name)
    return [
        (file, [(label, _blanked(label, source, names)) for label, source in cells])
        for (file, cells), names in zip(found, lost, strict=True)
    ]


def _definitions(label: str, source: str, name: str) -> list[ast.FunctionDef]:
    """Of a function, in a cell that is Python."""
    return [node for node in _functions(label, source) if node.name == name]


@lru_cache(maxsize=256)  # each cell is asked for every exercise
def _functions(label: str, source: str) -> list[ast.FunctionDef]:
    if len(source) <= LONGEST:
        with suppress(ValueError):
            statements = parse_cell(label, source)
            return [node for node in statements if isinstance(node, ast.FunctionDef)]
    return []


def _blanked(label: str, source: str, names: set[str]) -> str:
    """The cell without these functions; all else stays in its line."""
    lines = source.split("\n")
    for node in _functions(label, source) if names else ():
        if node.name not in names:
            continue
        first = min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])
        lines[first - 1 : node.end_lineno] = [""] * (node.end_lineno - first + 1)
    return "\n".join(lines)


def _is_untouched(node: ast.FunctionDef) -> bool:
    """Is it the stub that was handed out, whatever its docstring says by now?"""
    (stub,) = _definitions("stub", find(node.name).stub, node.name)
    return _body(node) == _body(stub)


def _body(node: ast.FunctionDef) -> list[str]:
    is_text = isinstance(node.body[0], ast.Expr) and isinstance(node.body[0].value, ast.Constant)
    return [ast.dump(statement) for statement in node.body[is_text:]]
