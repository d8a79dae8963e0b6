"""A folder of submissions, graded while nobody watches.

Each submission (see `submissions`) is run in a `Sandbox` and gets, under `out/students/NAME/`,
results.json (as Gradescope reads it) and feedback.html; all together get `out/scores.csv` and, for
the instructor, `out/index.html`. An exercise that was graded for the same submission, with the same
seed and by the same checks is not graded again, so an interrupted run goes on where it stopped.
"""

import ast
import re
import secrets
import sys
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from tqdm import tqdm

from minitransformer.checks.engine.time_limit import OutOfTime
from minitransformer.data.files import InputError, read_object, to_json, write_atomically
from minitransformer.exercises.chapters import EXERCISES
from minitransformer.exercises.exercise import find
from minitransformer.exercises.feedback import NOT_GRADED, NOT_LOADED, NOT_THERE, Feedback
from minitransformer.grading.layouts import layout_of
from minitransformer.grading.notice import answer_of, borrowed_by, remarkable, statements_of
from minitransformer.grading.pool import each
from minitransformer.grading.records import (
    NOTES,
    Graded,
    Record,
    read_record,
    write_record,
)
from minitransformer.grading.review import review
from minitransformer.grading.roster import Roster
from minitransformer.grading.sandbox import Died, Sandbox, Unsafe
from minitransformer.grading.scores import Scores
from minitransformer.grading.submissions import (
    LONGEST,
    Submission,
    code_of,
    entries_of,
    plain,
    submissions_in,
)
from minitransformer.grading.versions import checks_digest, seed_of, submission_digest

SEED = "seed.json"
SECONDS = 5.0  # of CPU time that one check may take, and one answer


# ---- one submission --------------------------------------------------------------------------


def grade_one(
    submission: Submission,
    names: Sequence[str],
    seed: int,
    trust: bool = False,
    only: Sequence[str] | None = None,
) -> tuple[list[Feedback], list[str]]:
    """Feedback on every exercise, and what went wrong with the files or should be looked at.

    Of `names`, which all count for the notes, those of `only` are run; by default all.
    """
    only = names if only is None else only
    cells, notes = code_of(submission, names)
    statements: list[ast.stmt] = []
    if sum(len(source) for _, source in cells) > LONGEST:
        notes.append(f"has more than {LONGEST:,} characters of code: look at it")
    else:
        statements = statements_of(cells)
    if words := remarkable(statements, names):
        notes.append(f"uses {', '.join(words)}: look at it")
    if statements and all(_why_missing(name, cells) == NOT_THERE for name in names):
        notes.append("what was handed in defines none of the exercises: is it the right file?")
    feedback: list[Feedback] = []
    if not cells:
        return [find(name).not_run(NOT_THERE) for name in only], notes
    try:
        with Sandbox(cells, names, trust) as box:
            notes += box.errors
            there = list(box.names)
            for name in only:
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
        rest = only[len(feedback) :]
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


@dataclass(frozen=True)
class Grader:
    """Grades one submission after the other and writes what it finds; lives in its own process."""

    out: Path
    names: Sequence[str]
    seed: int
    trust: bool

    def folder(self, one: Submission) -> Path:
        return self.out / "students" / one.student

    def kept(self, one: Submission) -> Record:
        """What still holds of what was graded before."""
        seed, digest = seed_of(self.seed, one.student), submission_digest(one)
        record = read_record(self.folder(one))
        if record is None or (record.seed, record.submission) != (seed, digest):
            return Record(one.student, seed, digest)
        exercises = {
            name: graded
            for name, graded in record.exercises.items()
            if name in EXERCISES and graded.checks == checks_digest(name)
        }
        return replace(record, exercises=exercises)

    def grade(self, one: Submission) -> None:
        """Grade what does not hold any more, and write everything."""
        record = self.kept(one)
        missing = [name for name in self.names if name not in record.exercises]
        if missing:
            try:
                found = grade_one(one, self.names, record.seed, self.trust, missing)
            except Unsafe:
                raise
            except Exception as error:  # whatever a submission may have found
                note = f"it could not be graded: {_said(error)}"
                found = [find(name).not_run(NOT_GRADED) for name in missing], [note]
            record = self.with_feedback(record, one, *found)
        write_record(self.folder(one), record, self.names)

    def with_feedback(
        self, record: Record, one: Submission, feedback: list[Feedback], notes: list[str]
    ) -> Record:
        statements = statements_of(code_of(one, self.names)[0])
        graded = {}
        for found in feedback:
            name = found.exercise.name
            was_graded = found.report.results[0].raised != NOT_GRADED  # else it is tried again
            checks = checks_digest(name) if was_graded else ""
            graded[name] = Graded.of(found, checks, answer_of(name, statements))
        notes = [plain(" ".join(note.split())) for note in notes[:NOTES]]
        return replace(record, notes=notes, exercises={**record.exercises, **graded})

    def give_up(self, one: Submission, why: str) -> None:
        """No points, with a note; the next run tries again."""
        record = Record(one.student, seed_of(self.seed, one.student), "", [why])
        for name in self.names:
            record.exercises[name] = Graded.of(find(name).not_run(NOT_GRADED), "", "")
        write_record(self.folder(one), record, self.names)


# ---- many of them ----------------------------------------------------------------------------


def grade_all(
    submissions: Path,
    out: Path,
    names: Sequence[str] | None = None,
    seed: int | None = None,
    jobs: int = 2,
    trust: bool = False,
    *,
    layout: str = "",
    roster: Roster | None = None,
    due: float | None = None,
    say: Callable[[str], None] = lambda text: None,
) -> list[dict[str, Any]]:
    """Grade every submission and write everything; the rows of scores.csv.

    Without a seed it is the one of the last run in `out`, or a new one that nobody knows. `layout`
    is one of LAYOUTS, by default the one that fits; `roster` gives rows to those who handed in
    nothing; `due`, in seconds since 1970, a column of days late. `say` is told what is about to
    happen. Raises Unsafe where code cannot be run, isolated unless `trust` is given, InputError for
    folders that cannot be read or written. Interrupted, it writes the scores of those who are done.
    """
    names = list(EXERCISES) if names is None else [find(name).name for name in names]
    names = list(dict.fromkeys(names))
    found = handed_in(submissions, layout, roster, say)
    if out.resolve().is_relative_to(submissions.resolve()):
        raise InputError(f"{out}: lies among the submissions; name a folder outside {submissions}")
    with Sandbox([], [], trust):  # is there one? It is no student's fault if not
        pass
    out.mkdir(parents=True, exist_ok=True)
    grader = Grader(out, names, _seed_in(out, seed), trust)
    todo = _outstanding(found, grader, say)
    scores = Scores(out, names, found, due)
    scores.missing = {one.student: "not graded: the run was interrupted" for one in todo}
    try:
        with closing(each(todo, grader, jobs)) as graded:
            bar = tqdm(graded, total=len(todo), unit="student", disable=None, file=sys.stderr)
            for one, error in bar:
                scores.add(one.student, error)
    finally:
        scores.write(with_page=True)
    return scores.rows()


def handed_in(
    submissions: Path,
    layout: str = "",
    roster: Roster | None = None,
    say: Callable[[str], None] = lambda text: None,
) -> list[Submission]:
    """A submission for each student, of the roster too; `say` is told how names are read."""
    entries = entries_of(submissions)
    layout = layout or layout_of(submissions, entries)
    found = submissions_in(submissions, layout)
    students = f"{len(found)} students handed in"
    if roster is not None:
        found = roster.join(found)
        students += f", {len(found)} rows with the roster's"
    say(f"names are read as --layout {layout}: {students}")
    return found


def _seed_in(out: Path, seed: int | None) -> int:
    """The seed, which is kept there: that of the last run, or a new one, where none is given."""
    path = out / SEED
    if seed is None and path.exists():
        seed = read_object(path).get("seed")
        if type(seed) is not int:
            raise InputError(f"{path}: seed must be an integer, got {seed!r}; say --seed N")
    if seed is None:
        seed = secrets.randbelow(2**31)
    write_atomically(path, to_json({"seed": seed}))
    return seed


def _outstanding(
    found: Sequence[Submission], grader: Grader, say: Callable[[str], None]
) -> list[Submission]:
    """Whom to grade; says which exercises are graded anew because they changed."""
    todo, changed = [], Counter[str]()
    for one in found:
        kept = grader.kept(one)
        missing = [name for name in grader.names if name not in kept.exercises]
        if missing:
            todo.append(one)
            before = read_record(grader.folder(one))
            if before is not None and before.submission == kept.submission:
                changed.update(name for name in missing if name in before.exercises)
        else:
            grader.grade(one)  # the pages are of these exercises, where the last were of others
    for name, count in changed.items():
        say(f"{name} is graded anew for {count}: its checks changed, or it could not be graded")
    return todo


def explain(
    submissions: Path,
    out: Path,
    names: Sequence[str],
    student: str,
    exercise: str,
    trust: bool = False,
    **read: Any,
) -> str:
    """The feedback of one student on one exercise again: graded anew, on the same inputs.

    `read`: layout, roster and say, as in `grade_all`. Raises InputError for a student who is not
    there, and where nothing was graded yet.
    """
    name = find(exercise).name
    found = {one.student: one for one in handed_in(submissions, **read)}
    if student not in found:
        close = get_close_matches(student, found, n=1)
        meant = f"did you mean {close[0]}?" if close else f"there are {', '.join(found)}"
        raise InputError(f"no student {student!r}: {meant}")
    if not (out / SEED).exists():
        raise InputError(f"{out / SEED}: no such file: nothing was graded there yet")
    grader = Grader(out, names, _seed_in(out, None), trust)
    record = read_record(grader.folder(found[student]))
    seed = seed_of(grader.seed, student)
    (feedback,), notes = grade_one(found[student], names, seed, trust, [name])
    before = record.exercises.get(name) if record else None
    same = "as it was graded"
    if before is None:
        same = "it was not graded yet"
    elif before.score != feedback.score:
        same = f"it had {before.score} of {before.points} points: grade again"
    lines = [f"{student}, seed {seed}: {same}", "", str(feedback), *([""] if notes else []), *notes]
    return plain("\n".join(lines))


def review_of(rows: Sequence[Mapping[str, Any]], out: Path, names: Sequence[str]) -> list[str]:
    """What a person should look at, of the students who have a score."""
    students = [row["student"] for row in rows if row["score"] != ""]
    records = {student: read_record(out / "students" / student) for student in students}
    there = {student: record for student, record in records.items() if record}
    return review(there, names) or ["nothing"]
