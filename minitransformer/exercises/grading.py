"""A folder of submissions, graded while nobody watches.

A submission is a .py or .ipynb file, or a folder of them; its name is the student's. Each is run in
a `Sandbox` and gets, under `out/students/NAME/`, results.json (as Gradescope reads it) and
feedback.html; all together get `out/scores.csv`. What is already there for the same submission and
the same seed is not graded again, so an interrupted run goes on where it stopped.
"""

import csv
import hashlib
import html
import json
import multiprocessing
import secrets
import sys
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from minitransformer.checks.suite import OutOfTime
from minitransformer.exercises.chapters import EXERCISES
from minitransformer.exercises.exercise import NOT_THERE, Feedback, find
from minitransformer.exercises.sandbox import Died, Sandbox, isolation
from minitransformer.files import InputError, read_json, write_atomically, write_json

SECONDS = 5.0  # that one check may take
LARGEST = 2**23  # bytes of a submission
SUFFIXES = (".py", ".ipynb")


@dataclass(frozen=True)
class Submission:
    student: str
    files: tuple[Path, ...]


def submissions_in(folder: Path) -> list[Submission]:
    """Every file and folder of submissions, by name. Raises InputError where there are none."""
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder; expected one file or folder for each student")
    found: dict[str, list[Path]] = {}
    for entry in sorted(folder.iterdir()):
        if entry.name.startswith("."):
            continue
        if entry.is_dir():
            files = [p for p in sorted(entry.rglob("*")) if p.suffix in SUFFIXES and p.is_file()]
            files = [p for p in files if not any(part.startswith(".") for part in p.parts[-3:])]
            found.setdefault(entry.name, []).extend(files)
        elif entry.suffix in SUFFIXES:
            found.setdefault(entry.stem, []).append(entry)
    if not found:
        raise InputError(f"{folder}: holds no .py or .ipynb files and no folders")
    return [Submission(name, tuple(files)) for name, files in found.items()]


def cells_of(files: Sequence[Path]) -> tuple[list[tuple[str, str]], list[str]]:
    """The code of a submission as (label, source), and what could not be read."""
    cells, errors = [], []
    for path in files:
        try:
            if path.stat().st_size > LARGEST:
                raise ValueError(f"has more than {LARGEST // 2**20} MiB")
            text = path.read_text(encoding="utf-8-sig")
            if path.suffix == ".py":
                cells.append((path.name, text))
                continue
            sources = [c["source"] for c in json.loads(text)["cells"] if c["cell_type"] == "code"]
            for number, source in enumerate(sources, 1):
                joined = source if isinstance(source, str) else "".join(source)
                cells.append((f"{path.name} cell {number}", joined))
        except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
            errors.append(f"{path.name} cannot be read: {error}")
    return cells, errors


def grade_one(
    submission: Submission, names: Sequence[str], seed: int, trust: bool = False
) -> tuple[list[Feedback], list[str]]:
    """Feedback on every exercise, and what went wrong with the files."""
    cells, errors = cells_of(submission.files)
    feedback: list[Feedback] = []
    try:
        with Sandbox(cells, names, trust) as box:
            errors += box.errors
            there = list(box.names)
            for name in names:
                one = find(name)
                if name not in there:
                    feedback.append(one.not_run(NOT_THERE))
                    continue
                box.start()  # the exercise before may have ended it
                fn = box.function(name, one.refused)
                feedback.append(one.run(fn, seed, SECONDS))
    except (Died, OutOfTime) as error:
        why = "it did not come to an end" if isinstance(error, OutOfTime) else str(error)
        errors.append(f"while its definitions were run, {why}")
        feedback += [find(name).not_run(NOT_THERE) for name in names[len(feedback) :]]
    return feedback, errors


def seed_of(seed: int, student: str) -> int:
    """A seed of the student's own."""
    digest = hashlib.sha256(f"{seed}/{student}".encode()).digest()
    return int.from_bytes(digest[:5], "big")


def key_of(submission: Submission, names: Sequence[str], seed: int) -> str:
    """Changes with the submission, the seed and what is asked."""
    digest = hashlib.sha256(f"{seed} {' '.join(names)}".encode())
    for path in submission.files:
        digest.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()


def _grade_and_save(
    submission: Submission, out: Path, names: Sequence[str], seed: int, trust: bool
) -> str:
    """Returns the student's name; runs in a process of its own."""
    torch.set_num_threads(1)
    own = seed_of(seed, submission.student)
    feedback, errors = grade_one(submission, names, own, trust)
    folder = out / "students" / submission.student
    folder.mkdir(parents=True, exist_ok=True)
    page = feedback_page(submission.student, feedback, errors)
    write_atomically(folder / "feedback.html", lambda path: path.write_text(page, encoding="utf-8"))
    results = results_of(feedback, errors)
    results["extra_data"] = {"key": key_of(submission, names, seed), "seed": own}
    write_atomically(folder / "results.json", lambda path: write_json(path, results))
    return submission.student


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
    Raises Unsafe where code cannot be isolated and `trust` is not given, InputError for folders
    that cannot be read or written.
    """
    names = list(EXERCISES) if names is None else [find(name).name for name in names]
    found = submissions_in(submissions)
    if not trust:
        isolation()
    out.mkdir(parents=True, exist_ok=True)
    secret = out / "seed.json"
    if seed is None:
        seed = read_json(secret)["seed"] if secret.exists() else secrets.randbelow(2**31)
    write_atomically(secret, lambda path: write_json(path, {"seed": seed}))
    todo = [one for one in found if not _is_graded(one, out, names, seed)]
    failed: dict[str, str] = {}
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(max(1, min(jobs, len(todo))), mp_context=context) as pool:
        running = {pool.submit(_grade_and_save, one, out, names, seed, trust): one for one in todo}
        try:
            for done in tqdm(
                as_completed(running),
                total=len(todo),
                unit="student",
                disable=None,
                file=sys.stderr,
            ):
                if error := done.exception():
                    failed[running[done].student] = f"{type(error).__name__}: {error}"
        except KeyboardInterrupt:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    rows = [_row(one.student, out, names, failed) for one in found]
    write_atomically(out / "scores.csv", lambda path: _write_csv(path, rows))
    return rows


def _is_graded(one: Submission, out: Path, names: Sequence[str], seed: int) -> bool:
    path = out / "students" / one.student / "results.json"
    try:
        return read_json(path)["extra_data"]["key"] == key_of(one, names, seed)
    except (InputError, KeyError, TypeError):
        return False


def _row(student: str, out: Path, names: Sequence[str], failed: dict[str, str]) -> dict[str, Any]:
    points = sum(EXERCISES[name].points for name in names)
    if student in failed:
        return {"student": student, "score": "", "points": points, "note": failed[student]}
    results = read_json(out / "students" / student / "results.json")
    scores = dict.fromkeys(names, 0)
    for test in results["tests"]:
        scores[test["name"].partition(":")[0]] += test["score"]
    note = results["output"].split("\n")[1:] if "\n" in results["output"] else []
    return {
        "student": student,
        "score": results["score"],
        "points": points,
        "note": " ".join(note),
        **scores,
    }


def _write_csv(path: Path, rows: list[dict[str, Any]]) -> None:
    columns = max((list(row) for row in rows), key=len)
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns, restval="")
        writer.writeheader()
        writer.writerows({name: _harmless(value) for name, value in row.items()} for row in rows)


def _harmless(value: Any) -> Any:
    """A spreadsheet runs text that begins so."""
    risky = isinstance(value, str) and value[:1] in ("=", "+", "-", "@", "\t", "\r")
    return f"'{value}" if risky else value


def results_of(feedback: Sequence[Feedback], errors: Sequence[str]) -> dict[str, Any]:
    """As Gradescope reads it: a test for each check."""
    tests = []
    for one in feedback:
        for aim, result, earned in zip(one.exercise.aims, one.report, one.earned, strict=True):
            tests.append(
                {
                    "name": f"{one.exercise.name}: {result.check.replace('_', ' ')}",
                    "score": earned,
                    "max_score": aim.points,
                    "output": str(result) if result.outcome == "fail" else result.statement,
                    "visibility": "visible",
                }
            )
    score, points = sum(one.score for one in feedback), sum(one.points for one in feedback)
    output = "\n".join([f"{score} of {points} points", *errors])
    return {"score": score, "output": output, "tests": tests}


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
        parts.append(one.to_html())
    return "\n".join([*parts, "</body></html>", ""])
