"""Who handed in what, by the names that Moodle, Canvas and Gradescope give to files and folders.

- `folders`: NAME.py, NAME.ipynb, NAME.zip, or a folder NAME (a git clone, say).
- `moodle`, "Download all submissions" of an assignment: a folder or the beginning of a file's name
  is `Jane Holloway_123456_assignsubmission_file` (older: with `_` at its end); the number is the
  participant's.
- `canvas`, "Download Submissions": `hollowayjane_LATE_4321_98765_work.ipynb`, with LATE for what
  came late; the numbers are the user's and the file's.
- `gradescope`, "Export Submissions": folders `submission_567`, and submission_metadata.yml, which
  says who handed them in, and when.
"""

import os
import re
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

from minitransformer.data.files import LARGEST_JSON, InputError, read_file

LAYOUTS = ("folders", "moodle", "canvas", "gradescope")
SUFFIXES = (".py", ".ipynb", ".txt", ".zip")
METADATA = "submission_metadata.yml"
MOODLE = re.compile(r"(?P<name>.+)_(?P<number>\d+)_assignsubmission_.*", re.DOTALL)
CANVAS = re.compile(r"(?P<name>[^_]+)_(?P<late>LATE_)?(?P<number>\d+)_\d+_.+", re.DOTALL)


class Owner(NamedTuple):
    """Who handed something in, as far as its name says."""

    name: str
    number: str = ""  # the platform's
    email: str = ""
    late: bool = False
    handed_in: float = 0.0  # when, in seconds since 1970; 0: the file's own time counts


def layout_of(folder: Path, entries: Sequence[Path]) -> str:
    """One of LAYOUTS: the one of which most names are."""
    if (folder / METADATA).is_file():
        return "gradescope"
    for layout, pattern in (("moodle", MOODLE), ("canvas", CANVAS)):
        if 2 * sum(bool(pattern.fullmatch(entry.name)) for entry in entries) > len(entries):
            return layout
    return "folders"


def owners(folder: Path, entries: Sequence[Path], layout: str) -> Iterator[tuple[Owner, Path, str]]:
    """(owner, entry, note) for each; several for what a group handed in.

    What is not named as the layout names it belongs to whom its own name says, with a note.
    Raises InputError where Gradescope's list cannot be read, ValueError for an unknown layout.
    """
    if layout not in LAYOUTS:
        raise ValueError(f"expected a layout of {', '.join(LAYOUTS)}, got {layout!r}")
    listed = _read_metadata(folder / METADATA) if layout == "gradescope" else {}
    for entry in entries:
        if entry.name == METADATA and listed:
            continue
        found = listed.get(entry.name, [])
        if layout in ("moodle", "canvas"):
            found = _by_name(entry.name, MOODLE if layout == "moodle" else CANVAS)
        for owner in found:
            others = " and ".join(one.name for one in found if one != owner)
            yield owner, entry, f"handed in together with {others}" if others else ""
        if not found:
            note = f"{entry.name} is not named as {layout} names it: whose is it?"
            yield Owner(without_suffix(entry)), entry, "" if layout == "folders" else note


def _by_name(name: str, pattern: re.Pattern[str]) -> list[Owner]:
    found = pattern.fullmatch(name)
    if not found:
        return []
    late = bool(found.groupdict().get("late"))
    return [Owner(found["name"], found["number"], late=late)]


def without_suffix(entry: Path) -> str:
    """ "ann" of ann.py, ANN.PY's "ANN", and of what browsers make of it, ann.py.txt."""
    name = entry.name
    if not os.path.isdir(entry):
        while (path := Path(name)).suffix.lower() in SUFFIXES:
            name = path.stem
    return name


def _read_metadata(path: Path) -> dict[str, list[Owner]]:
    """Who handed in which folder, from the few lines of YAML that Gradescope writes of each:

    submission_567:
      :submitters:
      - :name: Jane Holloway
        :sid: '100'
        :email: jane@example.edu
      :created_at: 2026-10-08 03:55:31.35 Z
    """
    text = read_file(path, LARGEST_JSON).decode("utf-8", "replace")
    found: dict[str, list[Owner]] = {}
    folder = section = ""
    for line in text.splitlines():
        if start := re.fullmatch(r"(\S+):\s*", line):
            folder, section = start[1], ""
            found[folder] = []
        elif folder and (item := re.fullmatch(r"  (- |  )?:(\w+):\s*(.*?)\s*", line)):
            mark, key, value = item[1], item[2], item[3].strip("'\"")
            if not mark:
                section = key
                if key == "created_at":
                    found[folder] = [one._replace(handed_in=_time(value)) for one in found[folder]]
            elif section == "submitters":
                if mark == "- ":
                    found[folder].append(Owner(""))
                field = {"name": "name", "sid": "number", "email": "email"}.get(key)
                if field and found[folder]:
                    found[folder][-1] = found[folder][-1]._replace(**{field: value})
    if not any(found.values()):
        raise InputError(f"{path}: names nobody who handed in: is it Gradescope's list?")
    return {
        name: [one if one.name else one._replace(name=name) for one in some]
        for name, some in found.items()
    }


def _time(text: str) -> float:
    """Gradescope's times are in UTC."""
    found = re.match(r"\d{4}-\d\d-\d\d[ T]\d\d:\d\d:\d\d", text)
    try:
        return datetime.fromisoformat(found[0]).replace(tzinfo=UTC).timestamp() if found else 0.0
    except ValueError:
        return 0.0
