"""A folder of submissions, graded while nobody watches.

Each submission (see `submissions`) is run in a `Sandbox` and gets, under `out/students/NAME/`,
results.json (as Gradescope reads it) and feedback.html; all together get `out/scores.csv`. What is
already there for the same submission, the same seed and the same version of this package is not
graded again, so an interrupted run goes on where it stopped.
"""

import ast
import hashlib
import html
import multiprocessing
import os
import re
import secrets
import signal
import sys
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass
from functools import cache
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from minitransformer.checks import Result
from minitransformer.checks.engine.time_limit import OutOfTime
from minitransformer.data.files import (
    InputError,
    read_json,
    read_object,
    to_csv,
    to_json,
    write_atomically,
)
from minitransformer.exercises.borrowing import PACKAGE
from minitransformer.exercises.cells import needed_by, parse_cell
from minitransformer.exercises.chapters import EXERCISES
from minitransformer.exercises.exercise import find
from minitransformer.exercises.feedback import NOT_GRADED, NOT_LOADED, NOT_THERE, Feedback
from minitransformer.grading.sandbox import Died, Sandbox, Unsafe
from minitransformer.grading.submissions import (
    LONGEST,
    Submission,
    code_of,
    plain,
    submissions_in,
)

SECONDS = 5.0  # of CPU time that one check may take, and one answer
NOTES = 20  # of a submission that are kept


# ---- what can be told without running it -----------------------------------------------------

# Honest answers need none of these; with some of them a function can get around what is refused.
WORDS = """
    threading _thread concurrent asyncio multiprocessing subprocess signal ctypes gc inspect
    importlib __import__ __main__ __builtins__ builtins __globals__ __closure__ __subclasses__
    _getframe _current_frames f_back f_globals tb_frame settrace setprofile _python_dispatch
"""
REMARKABLE = set(WORDS.split())


def statements_of(cells: Sequence[tuple[str, str]]) -> list[ast.stmt]:
    """The statements of the cells that are Python."""
    statements = []
    for label, source in cells:
        with suppress(ValueError):
            statements += parse_cell(label, source)
    return statements


def remarkable(statements: Sequence[ast.stmt], names: Sequence[str]) -> list[str]:
    """What a person should look at in the statements that are run for these: sorted names."""
    nodes = [node for one in needed_by(list(statements), names) for node in ast.walk(one)]
    called = {node.id for node in nodes if isinstance(node, ast.Name)} & {"exec", "eval"}
    return sorted(called | {word for node in nodes for word in _words(node)} & REMARKABLE)


def borrowed_by(name: str, statements: Sequence[ast.stmt]) -> str:
    """What of minitransformer a submission's function uses; as `borrows`, without running it."""
    given = {
        alias.asname or alias.name.partition(".")[0]
        for statement in statements
        for one in ast.walk(statement)  # within try and if, too
        if isinstance(one, ast.Import | ast.ImportFrom) and PACKAGE in _words(one)
        for alias in one.names
    }
    for one in needed_by(list(statements), [name]):
        if isinstance(one, ast.Import | ast.ImportFrom):
            continue
        for node in ast.walk(one):
            if isinstance(node, ast.Name) and node.id in given:
                return node.id
            if PACKAGE in _words(node) and not isinstance(node, ast.Attribute):
                return PACKAGE
    return ""


def _words(node: ast.AST) -> set[str]:
    """The names that a node holds, modules by their parts; texts too: getattr(sys, "_getframe")."""
    if isinstance(node, ast.Import):
        texts = [alias.name for alias in node.names]
    elif isinstance(node, ast.ImportFrom):
        texts = [node.module or "", *(alias.name for alias in node.names)]
    elif isinstance(node, ast.Name | ast.Attribute):
        texts = [node.id if isinstance(node, ast.Name) else node.attr]
    elif isinstance(node, ast.Constant) and isinstance(node.value, str) and len(node.value) < 100:
        texts = [node.value]
    else:
        return set()
    return {part for text in texts for part in text.split(".")}


# ---- one submission --------------------------------------------------------------------------


def grade_one(
    submission: Submission, names: Sequence[str], seed: int, trust: bool = False
) -> tuple[list[Feedback], list[str]]:
    """Feedback on every exercise, and what went wrong with the files or should be looked at."""
    cells, notes = code_of(submission, names)
    statements: list[ast.stmt] = []
    if sum(len(source) for _, source in cells) > LONGEST:
        notes.append(f"has more than {LONGEST:,} characters of code: look at it")
    else:
        statements = statements_of(cells)
    if words := remarkable(statements, names):
        notes.append(f"uses {', '.join(words)}: look at it")
    feedback: list[Feedback] = []
    try:
        with Sandbox(cells, names, trust) as box:
            notes += box.errors
            there = list(box.names)
            for name in names:
                one = find(name)
                if what := borrowed_by(name, statements):
                    feedback.append(one.borrowed(what))
                elif name not in there:
                    feedback.append(one.not_run(_why_missing(name, cells)))
                else:
                    box.start()  # the exercise before may have ended it
                    feedback.append(_run(box, name, seed, notes))
    except (Died, OutOfTime) as error:
        notes.append(f"while its definitions were run, {_said(error)}")
        rest = names[len(feedback) :]
        feedback += [find(name).not_run(_why_missing(name, cells)) for name in rest]
    return feedback, notes


def _run(box: Sandbox, name: str, seed: int, notes: list[str]) -> Feedback:
    """Feedback on one exercise; what fails in the grading itself costs no other exercise."""
    one = find(name)
    try:
        return one.run(box.function(name, one.refused, SECONDS), seed, SECONDS)
    except (Exception, OutOfTime) as error:
        box.stop()
        notes.append(f"{name} could not be graded: {_said(error)}")
        return one.not_run(NOT_GRADED)


def _said(error: BaseException) -> str:
    known = isinstance(error, Died | OutOfTime)
    return str(error) if known else f"{type(error).__name__}: {error}"


def _why_missing(name: str, cells: Sequence[tuple[str, str]]) -> str:
    """It was not handed in, or what was handed in cannot be loaded."""
    written = re.compile(rf"^\s*(?:(?:async\s+)?def\s+{name}\b|{name}\s*=)", re.MULTILINE)
    return NOT_LOADED if any(written.search(source) for _, source in cells) else NOT_THERE


def seed_of(seed: int, student: str) -> int:
    """A seed of the student's own."""
    digest = hashlib.sha256(f"{seed}/{student}".encode()).digest()
    return int.from_bytes(digest[:5], "big")


def key_of(submission: Submission, names: Sequence[str], seed: int) -> str:
    """Changes with the submission, the seed, what is asked, and the code that asks it."""
    digest = hashlib.sha256(f"{seed} {' '.join(names)} {_version()}".encode())
    for file in submission.files:
        try:
            content = file.read()
        except Exception as error:  # of archives too
            content = str(error).encode("utf-8", "replace")
        digest.update(f"{file.name}\0{file.changed}\0".encode() + content + b"\0")
    digest.update("\n".join(submission.notes).encode())
    return digest.hexdigest()


@cache
def _version() -> str:
    """Of this package: who mends a check grades again."""
    digest = hashlib.sha256()
    for path in sorted(Path(__file__).parents[1].rglob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()


@dataclass(frozen=True)
class Grader:
    """Grades one submission after the other and writes what it finds; lives in its own process."""

    out: Path
    names: Sequence[str]
    seed: int
    trust: bool

    def grade(self, one: Submission) -> None:
        key = key_of(one, self.names, self.seed)
        try:
            found = grade_one(one, self.names, seed_of(self.seed, one.student), self.trust)
        except Unsafe:
            raise
        except Exception as error:  # whatever a submission may have found
            self.give_up(one, f"it could not be graded: {_said(error)}", key)
        else:
            self.write(one, *found, key)

    def give_up(self, one: Submission, why: str, key: str = "") -> None:
        """No points, with a note. Without a key the next run tries again."""
        self.write(one, [find(name).not_run(NOT_GRADED) for name in self.names], [why], key)

    def write(self, one: Submission, feedback: list[Feedback], notes: list[str], key: str) -> None:
        notes = [plain(" ".join(note.split())) for note in notes[:NOTES]]
        folder = self.out / "students" / one.student
        folder.mkdir(parents=True, exist_ok=True)
        page = feedback_page(one.student, feedback, notes)
        write_atomically(folder / "feedback.html", page.encode())
        results = results_of(feedback, notes)
        results["extra_data"] = {"key": key, "seed": seed_of(self.seed, one.student)}
        write_atomically(folder / "results.json", to_json(results))


# ---- many of them ----------------------------------------------------------------------------


class _Child:
    """A process with a `Grader`: submissions go in, and what went wrong comes out."""

    def __init__(self, grader: Grader, first: Submission):
        context = multiprocessing.get_context("spawn")
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=_serve, args=(theirs, grader), daemon=True)
        # Ctrl-C is for the process above to answer: this one starts, and stays, deaf to it.
        resource_tracker.ensure_running()  # else started on the way, which unblocks the signal
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            self.process.start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        theirs.close()
        self.give(first)

    def give(self, one: Submission) -> None:
        self.one = one
        with suppress(OSError):  # it is gone: the pipe will say so
            self.pipe.send(one)

    def end(self) -> None:
        """At once, with the processes that it started."""
        if self.process.pid is not None:
            with suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)
        self.process.kill()
        self.process.join()
        self.pipe.close()


def _serve(pipe: Connection, grader: Grader) -> None:
    """Grade what comes until nothing more does."""
    os.setpgid(0, 0)
    torch.set_num_threads(1)
    with suppress(EOFError, OSError):  # the other side is gone
        while True:
            one = pipe.recv()
            error = ""
            try:
                grader.grade(one)
            except Exception as failure:  # a full disk, say: nothing that a student can do
                error = f"{type(failure).__name__}: {failure}"
            pipe.send(error)


def _each(
    todo: Sequence[Submission], grader: Grader, jobs: int
) -> Iterator[tuple[Submission, str]]:
    """Grade all in `jobs` processes; yields each when it is done, with what went wrong.

    A process that is killed takes no other submission with it. Its own is tried once more.
    """
    waiting, deaths = deque(todo), Counter[str]()
    children: list[_Child] = []
    try:
        while waiting or children:
            while waiting and len(children) < max(jobs, 1):
                children.append(_Child(grader, waiting.popleft()))
            ready = wait([child.pipe for child in children])
            for child in [child for child in children if child.pipe in ready]:
                one = child.one
                try:
                    error = child.pipe.recv()
                except (EOFError, OSError):
                    child.end()
                    children.remove(child)
                    deaths[one.student] += 1
                    if deaths[one.student] < 2:
                        waiting.append(one)
                    else:
                        grader.give_up(one, "the process that graded it was killed, twice")
                        yield one, ""
                    continue
                if waiting:
                    child.give(waiting.popleft())
                else:
                    child.end()
                    children.remove(child)
                yield one, error
    finally:
        for child in children:
            child.end()


def grade_all(
    submissions: Path,
    out: Path,
    names: Sequence[str] | None = None,
    seed: int | None = None,
    jobs: int = 2,
    trust: bool = False,
) -> list[dict[str, Any]]:
    """Grade every submission and write everything; the rows of scores.csv.

    Without a seed it is the one of the last run in `out`, or a new one that nobody knows.
    Raises Unsafe where code cannot be run, isolated unless `trust` is given, InputError for folders
    that cannot be read or written. Interrupted, it writes the scores of those who are done.
    """
    names = list(EXERCISES) if names is None else [find(name).name for name in names]
    names = list(dict.fromkeys(names))
    found = submissions_in(submissions)
    if out.resolve().is_relative_to(submissions.resolve()):
        raise InputError(f"{out}: lies among the submissions; name a folder outside {submissions}")
    with Sandbox([], [], trust):  # is there one? It is no student's fault if not
        pass
    out.mkdir(parents=True, exist_ok=True)
    secret = out / "seed.json"
    if seed is None:
        seed = _read_seed(secret) if secret.exists() else secrets.randbelow(2**31)
    write_atomically(secret, to_json({"seed": seed}))
    todo = [one for one in found if not _is_graded(one, out, names, seed)]
    missing = {one.student: "not graded: the run was interrupted" for one in todo}
    rows: list[dict[str, Any]] = []
    try:
        with closing(_each(todo, Grader(out, names, seed, trust), jobs)) as graded:
            bar = tqdm(graded, total=len(todo), unit="student", disable=None, file=sys.stderr)
            for one, error in bar:
                missing[one.student] = plain(" ".join(error.split()))
    finally:
        rows += [_row(one.student, out, names, missing.get(one.student, "")) for one in found]
        write_atomically(out / "scores.csv", to_csv(_harmless_rows(rows)))
    return rows


def _read_seed(path: Path) -> int:
    seed = read_object(path).get("seed")
    if type(seed) is not int:
        raise InputError(f"{path}: seed must be an integer, got {seed!r}; say --seed N")
    return seed


def _is_graded(one: Submission, out: Path, names: Sequence[str], seed: int) -> bool:
    path = out / "students" / one.student / "results.json"
    try:
        return read_json(path)["extra_data"]["key"] == key_of(one, names, seed)
    except (InputError, KeyError, TypeError):
        return False


def _row(student: str, out: Path, names: Sequence[str], why: str) -> dict[str, Any]:
    """Of scores.csv; `why` there is no score, if there is none."""
    points = sum(EXERCISES[name].points for name in names)
    if why:
        return {"student": student, "score": "", "points": points, "note": why}
    results = read_json(out / "students" / student / "results.json")
    scores = dict.fromkeys(names, 0)
    for test in results["tests"]:
        scores[test["name"].partition(":")[0]] += test["score"]
    note = results["output"].split("\n")[1:] if "\n" in results["output"] else []
    return {
        "student": student,
        "score": results["score"],
        "points": points,
        "note": "; ".join(note),
        **scores,
    }


def _harmless_rows(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    columns = max((list(row) for row in rows), key=len)
    return [{name: _harmless(row.get(name, "")) for name in columns} for row in rows]


def _harmless(value: Any) -> Any:
    """A spreadsheet runs text that begins so."""
    risky = isinstance(value, str) and value[:1] in ("=", "+", "-", "@", "\t", "\r")
    return f"'{value}" if risky else value


def results_of(feedback: Sequence[Feedback], errors: Sequence[str]) -> dict[str, Any]:
    """As Gradescope reads it: a test for each check."""
    tests = []
    for one in feedback:
        mistake = one.mistake  # said once, where the first check fails
        for aim, result, earned in zip(one.exercise.aims, one.report, one.earned, strict=True):
            output = result.statement
            if result.outcome == "fail":
                parts = mistake, result
                output = _shown(lambda parts=parts: _joined(*parts), result.diagnosis)
                mistake = ""
            tests.append(
                {
                    "name": f"{one.exercise.name}: {result.check.replace('_', ' ')}",
                    "score": earned,
                    "max_score": aim.points,
                    "output": output,
                    "visibility": "visible",
                }
            )
    score, points = sum(one.score for one in feedback), sum(one.points for one in feedback)
    output = "\n".join([f"{score} of {points} points", *errors])
    return {"score": score, "output": output, "tests": tests}


def _joined(mistake: str, result: Result) -> str:
    return f"{mistake}\n\n{result}" if mistake else str(result)


STYLE = """
body { font-family: sans-serif; max-width: 60em; margin: 2em auto; padding: 0 1em; color: #222 }
table { border-collapse: collapse } td { border-top: 1px solid #ddd; padding: .4em .8em;
vertical-align: top } pre { background: #f6f6f6; padding: .6em; overflow-x: auto } img { max-width:
100% } h2 { margin-top: 2em } .note { background: #fdecea; padding: .6em }
"""


def feedback_page(student: str, feedback: Sequence[Feedback], errors: Sequence[str]) -> str:
    """What the student reads: each exercise with what was wanted beside what was found."""
    score, points = sum(one.score for one in feedback), sum(one.points for one in feedback)
    title = html.escape(f"{student}: {score} of {points} points")
    parts = [
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{title}</title>'
        f"<style>{STYLE}</style></head><body><h1>{title}</h1>"
    ]
    parts += [f'<p class="note">{html.escape(error)}</p>' for error in errors]
    for one in feedback:
        parts.append(f"<h2>{html.escape(one.exercise.title)}</h2>")
        parts.append(_shown(one.to_html, html.escape(one.headline)))
    return plain("\n".join([*parts, "</body></html>", ""]))


def _shown(show: Callable[[], str], instead: str) -> str:
    """Feedback as text; `instead` where what a student's function gave cannot be shown."""
    try:
        return plain(show())
    except Exception as error:
        return plain(f"{instead} (the rest cannot be shown: {type(error).__name__})")
