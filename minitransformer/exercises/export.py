"""The exercises in the form that other tools want: nbgrader, Otter, Gradescope or plain pytest.

Each export has the same stubs and asks the same checks for the same points; nothing that a student
gets holds a solution, but for the solutions themselves, which are an export too.
`export(names, to, folder)` writes a folder and says what to do with it.
"""

import base64
import hashlib
import io
import json
import re
import zipfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, distribution, version
from pathlib import Path
from typing import Any

from tqdm import tqdm

from minitransformer.data.files import InputError
from minitransformer.exercises import stored
from minitransformer.exercises.exercise import Exercise, find


def export(
    names: Sequence[str], to: str, folder: Path, hints: int = 3, torch_wheel: Path | None = None
) -> str:
    """Write the exercises for `to`, one of EXPORTS; returns what the instructor does next.

    `hints`: how many of the three a student may read there; `torch_wheel`: a file that Gradescope's
    zip brings along. Raises ValueError for unknown names, InputError where `folder` holds something
    already, and for a file that is no wheel of torch for Linux.
    """
    if to not in EXPORTS:
        raise ValueError(f"expected one of {', '.join(EXPORTS)}, got {to!r}")
    if torch_wheel and to != "gradescope":
        raise ValueError(f"a wheel of torch goes into the zip of gradescope, not of {to}")
    chosen = [find(name) for name in dict.fromkeys(names)]
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError(f"{folder}: is there already; name an empty or a new folder")
    folder.mkdir(parents=True, exist_ok=True)
    if to == "gradescope":
        return to_gradescope(chosen, folder, hints, torch_wheel)
    return EXPORTS[to](chosen, folder, hints)


# ---- notebooks -------------------------------------------------------------------------------


def _cell(kind: str, source: str, number: int, **metadata: Any) -> dict[str, Any]:
    cell: dict[str, Any] = {"cell_type": kind, "id": f"cell-{number}", "metadata": metadata}
    if kind == "code":
        cell |= {"execution_count": None, "outputs": []}
    return cell | {"source": source.splitlines(keepends=True)}


def _notebook(cells: list[tuple[str, str, dict[str, Any]]], path: Path) -> None:
    made = [_cell(kind, text, i, **metadata) for i, (kind, text, metadata) in enumerate(cells)]
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    notebook = {
        "cells": made,
        "metadata": {"kernelspec": kernel, "language_info": {"name": "python"}},
        "nbformat": 4,
        "nbformat_minor": 5,
    }
    path.write_text(json.dumps(notebook, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def student_notebook(exercises: Sequence[Exercise], path: Path, hints: int) -> None:
    """Text, stub and check of each."""
    cells: list[tuple[str, str, dict[str, Any]]] = [("markdown", "# Exercises", {})]
    cells += [("code", code, {}) for code in _fewer_hints(hints)]
    for one in exercises:
        cells += [
            ("markdown", one.text(2), {}),
            ("code", one.stub, {}),
            ("code", _check_cell(one), {}),
        ]
    _notebook(cells, path)


def _fewer_hints(hints: int) -> list[str]:
    """Code that allows no more of them; none where all three are."""
    code = f"from minitransformer.exercises import limit_hints\n\nlimit_hints({hints})"
    return [code] if hints < 3 else []


def _given(one: Exercise) -> str:
    """The text, with the code to begin from where there is some: these tools put a blank there."""
    return one.text(2) + (f"\n\n```python\n{one.stub}\n```" if one.start else "")


def _check_cell(one: Exercise) -> str:
    return f'from minitransformer.exercises import check\n\ncheck("{one.name}", {one.name})'


def to_nbgrader(exercises: Sequence[Exercise], folder: Path, hints: int) -> str:
    """A source notebook: nbgrader cuts the solutions out, and takes the score that a cell gives."""

    def meta(name: str, grade: bool, solution: bool, points: int | None = None) -> dict[str, Any]:
        about = {
            "grade": grade,
            "grade_id": name,
            "locked": not solution,
            "schema_version": 3,
            "solution": solution,
            "task": False,
        }
        return {"nbgrader": about | ({"points": points} if points is not None else {})}

    cells: list[tuple[str, str, dict[str, Any]]] = [
        ("code", code, meta("hints", False, False)) for code in _fewer_hints(hints)
    ]
    for one in exercises:
        name = one.name
        hidden = (
            "from minitransformer.exercises import check\n\n"
            f'print(check("{name}", {name}))\n'
            "### BEGIN HIDDEN TESTS\n"
            f'check("{name}", {name}, seed=20_260).score  # other numbers\n'
            "### END HIDDEN TESTS"
        )
        cells += [
            ("markdown", _given(one), meta(f"{one.name}-text", False, False)),
            ("code", one.source, meta(f"{one.name}-answer", False, True)),
            ("code", _check_cell(one), meta(f"{one.name}-check", False, False)),
            ("code", hidden, meta(f"{one.name}-grade", True, False, one.points)),
        ]
    source = folder / "source" / "exercises"
    source.mkdir(parents=True)
    _notebook(cells, source / "exercises.ipynb")
    (folder / "nbgrader_config.py").write_text(
        'c = get_config()\nc.CourseDirectory.course_id = "minitransformer"\n'
        "c.ClearSolutions.code_stub = "
        '{"python": "raise NotImplementedError(\\"your turn\\")"}\n'
        "c.ExecutePreprocessor.timeout = 120  # endless loops\n",
        encoding="utf-8",
    )
    return (
        f"cd {folder} && nbgrader generate_assignment exercises\n"
        "then release/ is what students get; collect into submitted/, and: nbgrader autograde "
        "exercises && nbgrader generate_feedback exercises"
    )


def to_otter(exercises: Sequence[Exercise], folder: Path, hints: int) -> str:
    """A master notebook for `otter assign`: each check is a test case with points of its own."""
    cells: list[tuple[str, str, dict[str, Any]]] = [
        ("raw", "# ASSIGNMENT CONFIG\ninit_cell: true\ntests:\n    ok_format: false\n", {})
    ]
    cells += [("code", code, {}) for code in _fewer_hints(hints)]
    for one in exercises:
        cells += [
            ("raw", f"# BEGIN QUESTION\nname: {one.name}\n", {}),
            ("markdown", _given(one), {}),
            ("raw", "# BEGIN SOLUTION", {}),
            ("code", _for_otter(one), {}),
            ("raw", "# END SOLUTION", {}),
            ("raw", "# BEGIN TESTS", {}),
        ]
        for number, aim in enumerate(one.aims):
            test = (
                f'""" # BEGIN TEST CONFIG\nname: {aim.check.name}\npoints: {aim.points}\n'
                f'""" # END TEST CONFIG\n'
                f"def test_{number}({one.name}):\n"
                "    from minitransformer.exercises import check_in_turn\n\n"
                f'    feedback = check_in_turn("{one.name}", {one.name}, {number})\n'
                f"    right = feedback.earned[{number}] == {aim.points} and feedback.right\n"
                "    assert right, str(feedback)\n"
                f"\ntest_{number}({one.name})"
            )
            cells.append(("code", test, {}))
        cells += [("raw", "# END TESTS", {}), ("raw", "# END QUESTION", {})]
    _notebook(cells, folder / "exercises.ipynb")
    return f"cd {folder} && otter assign exercises.ipynb dist"


def _for_otter(one: Exercise) -> str:
    """Otter's marks for what it cuts out, and for what it puts there."""
    begin, end = "### BEGIN SOLUTION", "### END SOLUTION"
    blank = (
        '    """ # BEGIN PROMPT\n    raise NotImplementedError("your turn")\n    """ # END PROMPT'
    )
    marked = one.source.replace(f"    {begin}", blank + "\n    # BEGIN SOLUTION NO PROMPT")
    return marked.replace(f"    {end}", "    # END SOLUTION")


# ---- files -----------------------------------------------------------------------------------


def to_pytest(exercises: Sequence[Exercise], folder: Path, hints: int) -> str:
    """A stub and a test file for each exercise: a test for each check."""
    for one in exercises:
        (folder / f"{one.name}.py").write_text(one.stub + "\n", encoding="utf-8")
        (folder / f"test_{one.name}.py").write_text(
            f'"""{one.title}: {one.points} points. Run with pytest."""\n\n'
            "import pytest\n"
            f"from {one.name} import {one.name}\n\n"
            "from minitransformer.exercises import check, limit_hints\n\n"
            f"limit_hints({hints})\n"
            f'FEEDBACK = check("{one.name}", {one.name})\n'
            "POINTS = [aim.points for aim in FEEDBACK.exercise.aims]\n"
            "NAMES = [result.check for result in FEEDBACK.report]\n\n\n"
            '@pytest.mark.parametrize("number", range(len(NAMES)), ids=NAMES)\n'
            f"def test_{one.name}(number, record_property):\n"
            '    record_property("points", POINTS[number])\n'
            "    assert FEEDBACK.right, str(FEEDBACK)\n"
            '    assert FEEDBACK.report.results[number].outcome == "pass", str(FEEDBACK)\n',
            encoding="utf-8",
        )
    return f"cd {folder} && pytest"


SETUP = """#!/usr/bin/env bash
set -e
apt-get update && apt-get install -y python3-pip python3-venv bubblewrap
python3 -m venv /opt/venv
/opt/venv/bin/pip install -c /autograder/source/versions.txt {wheels}
"""
RUN = """#!/usr/bin/env bash
# Gradescope runs each submission in a container of its own; where bwrap may not be used there, that
# container is the isolation.
root=${{AUTOGRADER:-/autograder}} command=${{MINITRANSFORMER:-/opt/venv/bin/minitransformer}}
rm -rf "$root/one" "$root/out" && mkdir -p "$root/one" "$root/results"
cp -rH "$root/submission" "$root/one/student"
trust=""
bwrap --unshare-all --ro-bind / / --proc /proc --dev /dev true 2>/dev/null || trust=--trust
"$command" exercise grade "$root/one" --out "$root/out" --jobs 1 $trust --only {names} >&2
cp "$root/out/students/student/results.json" "$root/results/results.json" ||
  echo '{{"score": 0, "output": "The autograder failed, which is no fault of the submission."}}' \\
    > "$root/results/results.json"
"""


def to_gradescope(
    exercises: Sequence[Exercise], folder: Path, hints: int, torch_wheel: Path | None = None
) -> str:
    """An autograder.zip for Gradescope, and the notebook for the students.

    It brings this package along, as a wheel: nothing is installed by a name that others may take,
    and the rest in the versions that are installed here; torch, which on Linux is gigabytes of
    CUDA by default, from a wheel where there is one.
    """
    wheel, data = this_wheel()
    wheels, versions, brought = [f"{wheel}[grade]"], _versions(), {}
    if torch_wheel:
        wheels.insert(0, torch_wheel.name)
        del versions["torch"]  # it is the wheel's
        brought[torch_wheel.name] = _torch_for_linux(torch_wheel)
    paths = " ".join(f'"/autograder/source/{name}"' for name in wheels)
    files = {
        "setup.sh": SETUP.format(wheels=paths),
        "run_autograder": RUN.format(names=" ".join(one.name for one in exercises)),
        "versions.txt": "".join(f"{name}=={version}\n" for name, version in versions.items()),
        wheel: data,
        **brought,
    }
    with zipfile.ZipFile(folder / "autograder.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            _add(archive, name, content)
    student_notebook(exercises, folder / "exercises.ipynb", hints)
    next_step = (
        f"upload {folder / 'autograder.zip'} as the autograder, and hand out exercises.ipynb"
    )
    if torch_wheel:
        return next_step
    return (
        f"{next_step}; the image will be large: on Linux torch brings CUDA, some gigabytes; with "
        "--torch WHEEL, a CPU build for Linux, it does not"
    )


def _torch_for_linux(wheel: Path) -> bytes:
    if not re.fullmatch(r"torch-.*linux.*\.whl", wheel.name) or not zipfile.is_zipfile(wheel):
        raise InputError(f"{wheel}: expected a wheel of torch for Linux, torch-...linux....whl")
    return wheel.read_bytes()


def _add(archive: zipfile.ZipFile, name: str, content: str | bytes) -> None:
    """The same bytes every time; scripts may be run."""
    entry = zipfile.ZipInfo(name, (2020, 1, 1, 0, 0, 0))
    entry.compress_type = zipfile.ZIP_DEFLATED
    entry.external_attr = (0o755 if name in ("setup.sh", "run_autograder") else 0o644) << 16
    archive.writestr(entry, content)


def this_wheel(instead: Mapping[str, bytes] | None = None) -> tuple[str, bytes]:
    """This package as it is here: the name of its wheel, and the wheel. Raises InputError where it
    is imported without being installed, so that nothing is known of what it needs.

    `instead`: other contents of files, and more of them, by their paths in the wheel.
    """
    try:
        about = distribution("minitransformer")
    except PackageNotFoundError:
        raise InputError("minitransformer is not installed here: pip install -e . first") from None
    package, name = Path(__file__).parents[1], f"minitransformer-{about.version}"
    files = {
        path.relative_to(package.parent).as_posix(): path.read_bytes()
        for path in sorted(package.rglob("*"))
        if path.is_file() and "__pycache__" not in path.parts
    }
    files |= instead or {}
    files[f"{name}.dist-info/METADATA"] = (about.read_text("METADATA") or "").encode()
    files[f"{name}.dist-info/entry_points.txt"] = (
        b"[console_scripts]\nminitransformer = minitransformer.cli:main\n"  # no plugin of pytest
    )
    tags = ("Wheel-Version: 1.0", "Generator: minitransformer", "Root-Is-Purelib: true")
    files[f"{name}.dist-info/WHEEL"] = "\n".join([*tags, "Tag: py3-none-any", ""]).encode()
    record = f"{name}.dist-info/RECORD"
    lines = [f"{file},{_digest(data)},{len(data)}" for file, data in files.items()]
    files[record] = "\n".join([*lines, f"{record},,", ""]).encode()
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w", zipfile.ZIP_DEFLATED) as wheel:
        for file, data in files.items():
            _add(wheel, file, data)
    return f"{name}-py3-none-any.whl", made.getvalue()


def _digest(data: bytes) -> str:
    """As wheels record it (PEP 376 and PEP 427)."""
    digest = base64.urlsafe_b64encode(hashlib.sha256(data).digest())
    return f"sha256={digest.rstrip(b'=').decode()}"


def _versions() -> dict[str, str]:
    """What this package needs to grade, in the versions that are installed here."""
    found = {}
    for requirement in distribution("minitransformer").requires or ():
        name, _, extra = requirement.partition(";")
        name = re.split(r"[^\w.-]", name.strip())[0]
        if not extra or "grade" in extra:
            with suppress(PackageNotFoundError):
                found[name] = version(name).partition("+")[0]  # "+cpu" is on no index
    return found


def to_package(exercises: Sequence[Exercise], folder: Path, hints: int) -> str:
    """This package for students: it has the answers of these exercises in place of solutions."""
    chapters = Path(__file__).parent / "chapters"
    sources = {path.stem: path.read_text(encoding="utf-8") for path in chapters.glob("*.py")}
    within = "minitransformer/exercises"
    files = {
        f"{within}/chapters/{name}.py": text.encode()
        for name, text in stored.cut(sources, hints).items()
    }
    for one in tqdm(exercises, "answers", unit="exercise", leave=False, disable=None):
        files[f"{within}/{stored.PLACE.name}/{one.name}.pt"] = stored.pack(one)
    name, data = this_wheel(files)
    (folder / name).write_bytes(data)
    student_notebook(exercises, folder / "exercises.ipynb", hints)
    return (
        f"hand out {folder / name} (pip install {name}) and exercises.ipynb; grade with the "
        "package that you have: it draws other numbers"
    )


def to_solutions(exercises: Sequence[Exercise], folder: Path, hints: int) -> str:
    """For afterwards: a file for each exercise, solved."""
    for one in exercises:
        text = f'"""{one.title}"""\n\n{one.solved}'
        (folder / f"{one.name}.py").write_text(text, encoding="utf-8")
    return f"{folder} holds the solutions: for afterwards"


EXPORTS: dict[str, Callable[[Sequence[Exercise], Path, int], str]] = {
    "nbgrader": to_nbgrader,
    "otter": to_otter,
    "pytest": to_pytest,
    "gradescope": to_gradescope,
    "package": to_package,
    "solutions": to_solutions,
}
