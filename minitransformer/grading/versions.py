"""What decides a score, as digests: what was handed in, what an exercise asks, and the seed.

A score is kept as long as these are the same. Who changes a check of one exercise has that exercise
graded anew and no other; a change of what all of them use (the sandbox, say) touches all.
"""

import ast
import hashlib
import inspect
from collections.abc import Iterator
from functools import cache
from pathlib import Path

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
    home = inspect.getsourcefile(EXERCISES[name].solution)
    assert home is not None
    for path in _with_what_it_imports(Path(home)):
        for source in _without_other_exercises(path.read_text(encoding="utf-8"), name):
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


def _with_what_it_imports(home: Path) -> list[Path]:
    """A chapter, and the chapters whose helpers it uses."""
    found, todo = [], [home]
    while todo:
        path = todo.pop()
        if path in found:
            continue
        found.append(path)
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and node.module:
                chapter = CHAPTERS / f"{node.module.rpartition('.')[2]}.py"
                todo += [chapter] if "chapters" in node.module and chapter.exists() else []
    return sorted(found)


def _without_other_exercises(source: str, name: str) -> Iterator[str]:
    """The statements of a chapter that this exercise may depend on."""
    statements = ast.parse(source).body
    owners = [_owner(statement) for statement in statements]
    kept = {name, ""}
    while True:  # an exercise that another one calls counts for it, too
        mine = [one for one, owner in zip(statements, owners, strict=True) if owner in kept]
        used = {n.id for one in mine for n in ast.walk(one) if isinstance(n, ast.Name)}
        more = used & set(owners) - kept
        if not more:
            break
        kept |= more
    for statement in mine:
        yield ast.unparse(statement)


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
