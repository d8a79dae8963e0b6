"""What decides a score, as digests: what was handed in, what an exercise asks, and the seed.

A score is kept as long as these are the same. Who changes a check of one exercise has that exercise
graded anew and no other; a change of what all of them use (the sandbox, say) touches all.
"""

import ast
import hashlib
import inspect
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import NamedTuple

from minitransformer.exercises.chapters import EXERCISES
from minitransformer.grading.submissions import Submission

PACKAGE = Path(__file__).parents[1]
CHAPTERS = PACKAGE / "exercises" / "chapters"


def seed_of(seed: int, student: str) -> int:
    """A seed of the student's own."""
    digest = hashlib.sha256(f"{seed}/{student}".encode()).digest()
    return int.from_bytes(digest[:5], "big")


def submission_digest(submission: Submission) -> str:
    """Changes with the files, their names and times, and what was noted of them."""
    digest = hashlib.sha256()
    for file in submission.files:
        try:
            content = file.read()
        except Exception as error:  # of archives too
            content = str(error).encode("utf-8", "replace")
        digest.update(f"{file.name}\0{file.changed}\0".encode() + content + b"\0")
    digest.update("\n".join(submission.notes).encode())
    return digest.hexdigest()


@cache
def checks_digest(name: str) -> str:
    """Changes with what decides the points of an exercise."""
    digest = hashlib.sha256(f"{name} {shared_digest()}".encode())
    home = inspect.getsourcefile(inspect.unwrap(EXERCISES[name].solution))
    assert home is not None
    for path in _with_what_it_imports(Path(home)):
        for source in _without_other_exercises(_statements(path), name):
            digest.update(source.encode() + b"\0")
    return digest.hexdigest()


@cache
def shared_digest() -> str:
    """Of this package without the chapters of exercises."""
    digest = hashlib.sha256()
    for path in sorted(PACKAGE.rglob("*.py")):
        if path.parent != CHAPTERS:
            digest.update(path.read_bytes())
    return digest.hexdigest()


class _Statement(NamedTuple):
    """A statement of a chapter: whose it is, if it is one exercise's, and what it names."""

    source: str
    owner: str
    names: frozenset[str]
    chapters: frozenset[str]  # that it imports


@cache
def _statements(path: Path) -> list[_Statement]:
    return [_read(one) for one in ast.parse(path.read_text(encoding="utf-8")).body]


def _read(statement: ast.stmt) -> _Statement:
    nodes = list(ast.walk(statement))
    modules = [node.module or "" for node in nodes if isinstance(node, ast.ImportFrom)]
    return _Statement(
        ast.unparse(statement),
        _owner(statement),
        frozenset(node.id for node in nodes if isinstance(node, ast.Name)),
        frozenset(name.rpartition(".")[2] for name in modules if ".chapters." in name),
    )


def _with_what_it_imports(home: Path) -> list[Path]:
    """A chapter, and the chapters whose helpers it uses."""
    found, todo = [], [home]
    while todo:
        path = todo.pop()
        if path not in found:
            found.append(path)
            chapters = {name for one in _statements(path) for name in one.chapters}
            todo += [CHAPTERS / f"{name}.py" for name in chapters]
    return sorted(found)


def _without_other_exercises(statements: Sequence[_Statement], name: str) -> list[str]:
    """The statements of a chapter that this exercise may depend on."""
    kept = {name, ""}
    while True:  # an exercise that another one calls counts for it, too
        mine = [one for one in statements if one.owner in kept]
        used = {other for one in mine for other in one.names}
        more = used & {one.owner for one in statements} - kept
        if not more:
            return [one.source for one in mine]
        kept |= more


def _owner(statement: ast.stmt) -> str:
    """The exercise that a statement of a chapter defines, checks or knows a mistake of."""
    calls = getattr(statement, "decorator_list", [])
    if isinstance(statement, ast.Expr):
        calls = [statement.value]
    for call in calls:
        what = call.func if isinstance(call, ast.Call) else call
        if isinstance(what, ast.Name) and what.id == "exercise":
            return getattr(statement, "name", "")
        if isinstance(what, ast.Attribute) and isinstance(what.value, ast.Name):
            return what.value.id if what.value.id in EXERCISES else ""
    return ""
