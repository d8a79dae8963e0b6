"""What is kept of a graded submission: enough to show it again, and to tell whether it still holds.

`students/NAME/record.json` is read and written here; results.json (as Gradescope reads it),
feedback.html and the row of scores.csv are made from it.
"""

import html
import re
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from minitransformer.checks import Result
from minitransformer.data.files import InputError, read_object, to_json, write_atomically
from minitransformer.exercises.feedback import Feedback
from minitransformer.grading.submissions import plain

RECORD = "record.json"
NOTES = 20  # of a submission that are kept


@dataclass(frozen=True)
class Graded:
    """One exercise of one submission."""

    score: int
    points: int
    checks: str = ""  # a digest of what decided the score; empty: it is graded again next time
    answer: str = ""  # a digest of its code, names of variables aside; empty for a short one
    mistake: str = ""  # the sentence that names it
    error: str = ""  # the one that all checks ran into, or why there was nothing to check
    title: str = ""
    tests: list[dict[str, Any]] = field(default_factory=list)  # as in results.json
    html: str = ""

    @classmethod
    def of(cls, one: Feedback, checks: str, answer: str) -> "Graded":
        return cls(
            one.score,
            one.points,
            checks,
            answer,
            one.mistake,
            _one_error(one),
            one.exercise.title,
            _tests(one),
            _shown(one.to_html, html.escape(one.headline)),
        )


@dataclass(frozen=True)
class Record:
    """A submission, as far as it is graded: exercises by name."""

    student: str
    seed: int
    submission: str = ""  # a digest of what was handed in
    notes: list[str] = field(default_factory=list)
    exercises: dict[str, Graded] = field(default_factory=dict)

    def score(self, names: Sequence[str]) -> int:
        return sum(self.exercises[name].score for name in names)


def read_record(folder: Path) -> Record | None:
    """None where there is none, or none that can be read."""
    try:
        value = read_object(folder / RECORD)
        value["exercises"] = {name: Graded(**one) for name, one in value["exercises"].items()}
        return Record(**value)
    except (InputError, KeyError, TypeError, AttributeError):
        return None


def write_record(folder: Path, record: Record, names: Sequence[str]) -> None:
    """The record, and for these exercises what the student gets; files that would be the same stay
    as they are."""
    folder.mkdir(parents=True, exist_ok=True)
    files = {
        "feedback.html": feedback_page(record, names).encode(),
        "results.json": to_json(results_of(record, names)),
        RECORD: to_json(asdict(record)),  # last: it says that the others are there
    }
    for name, data in files.items():
        path = folder / name
        if not path.exists() or path.read_bytes() != data:
            write_atomically(path, data)


def results_of(record: Record, names: Sequence[str]) -> dict[str, Any]:
    """As Gradescope reads it: a test for each check."""
    chosen = [record.exercises[name] for name in names]
    points = sum(one.points for one in chosen)
    return {
        "score": record.score(names),
        "output": "\n".join([f"{record.score(names)} of {points} points", *record.notes]),
        "tests": [test for one in chosen for test in one.tests],
        "extra_data": {"seed": record.seed},
    }


STYLE = """
body { font-family: sans-serif; max-width: 60em; margin: 2em auto; padding: 0 1em; color: #222 }
table { border-collapse: collapse } td { border-top: 1px solid #ddd; padding: .4em .8em;
vertical-align: top } pre { background: #f6f6f6; padding: .6em; overflow-x: auto } img { max-width:
100% } h2 { margin-top: 2em } .note { background: #fdecea; padding: .6em }
"""


def page(title: str, parts: Sequence[str]) -> str:
    """A page of plain HTML, without scripts."""
    title = html.escape(title)
    start = (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{title}</title>'
        f"<style>{STYLE}</style></head><body><h1>{title}</h1>"
    )
    return plain("\n".join([start, *parts, "</body></html>", ""]))


def feedback_page(record: Record, names: Sequence[str]) -> str:
    """What the student reads: each exercise with what was wanted beside what was found."""
    points = sum(record.exercises[name].points for name in names)
    parts = [f'<p class="note">{html.escape(note)}</p>' for note in record.notes]
    for name in names:
        one = record.exercises[name]
        parts += [f"<h2>{html.escape(one.title)}</h2>", one.html]
    return page(f"{record.student}: {record.score(names)} of {points} points", parts)


def _tests(one: Feedback) -> list[dict[str, Any]]:
    tests = []
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
    return tests


def _joined(mistake: str, result: Result) -> str:
    return f"{mistake}\n\n{result}" if mistake else str(result)


def _one_error(one: Feedback) -> str:
    """The error that every check ran into, but for its numbers; empty where they are several."""
    raised = [result.raised for result in one.report if not result.raised.startswith("Not tried")]
    if not raised or len({re.sub(r"\d+", "0", text) for text in raised}) > 1:
        return ""
    return plain(raised[0])


def _shown(show: Callable[[], str], instead: str) -> str:
    """Feedback as text; `instead` where what a student's function gave cannot be shown."""
    try:
        return plain(show())
    except Exception as error:
        return plain(f"{instead} (the rest cannot be shown: {type(error).__name__})")
