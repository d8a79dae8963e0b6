"""`minitransformer exercise`: for those who solve the exercises, and for those who grade them."""

import argparse
import os
import signal
import sys
import textwrap
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

from minitransformer.checks.finding import find as find_callable
from minitransformer.cli.options import help_of, positive, seed
from minitransformer.data.files import LARGEST_TEXT, InputError, read_file, write_atomically
from minitransformer.exercises import (
    EXERCISES,
    Feedback,
    check,
    find,
    hint,
    progress,
    solution,
)
from minitransformer.exercises.cells import load_cells, read_cells, without_magics
from minitransformer.exercises.export import EXPORTS, export

GRADE = "Grade"  # the column of Moodle's grading worksheet
HELP = """
to learn:
  minitransformer exercise list                  what there is, and how far you are
  minitransformer exercise start padding_mask    writes padding_mask.py for you to fill in
  minitransformer exercise check padding_mask    the mistake in words, an example, and points
  minitransformer exercise hint padding_mask     three hints: --step 2, --step 3
  minitransformer exercise progress              what is done, and what comes next
  minitransformer exercise solution padding_mask when you have all points or read the last hint

to teach:
  minitransformer exercise export --to nbgrader DIR
  minitransformer exercise grade SUBMISSIONS --out DIR --roster CSV
  minitransformer exercise grade SUBMISSIONS --out DIR --review
"""


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.description = textwrap.fill(parser.description or "", 90)
    parser.epilog = HELP.strip()
    parser.set_defaults(verb=help_of(parser))
    verbs = parser.add_subparsers(title="verbs", metavar="VERB")

    def verb(name: str, run, text: str) -> argparse.ArgumentParser:
        sub = verbs.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".")
        sub.set_defaults(verb=_told(run))
        return sub

    verb("list", _list, "list the exercises, with those in this folder checked")
    start = verb("start", _start, "write NAME.py: the task, for you to fill in")
    start.add_argument("names", nargs="+", metavar="NAME", help="an exercise, or: all")
    checked = verb("check", _check, "check NAME.py and say what is wrong")
    checked.add_argument("name", metavar="NAME")
    checked.add_argument("--file", type=Path, help=".py or .ipynb; default: NAME.py")
    hinted = verb("hint", _hint, "give a hint")
    hinted.add_argument("name", metavar="NAME")
    hinted.add_argument("--step", type=int, default=1, choices=(1, 2, 3), help="default: 1")
    verb("progress", _progress, "show points, attempts and what comes next")
    solved = verb("solution", _solution, "show the solution, after full points or the last hint")
    solved.add_argument("name", metavar="NAME")
    exported = verb("export", _export, "write the exercises for another tool")
    exported.add_argument("--to", required=True, choices=EXPORTS)
    exported.add_argument("folder", type=Path, metavar="DIR", help="a new or empty folder")
    exported.add_argument(
        "--hints",
        type=int,
        choices=(0, 1, 2, 3),
        default=3,
        help="how many of the three students may read; the third is nearly the answer; default: 3",
    )
    exported.add_argument(
        "--torch",
        type=Path,
        metavar="WHEEL",
        help="for gradescope: a wheel of torch (CPU, Linux) that goes into the zip",
    )
    grade = verb("grade", _grade, "grade a folder of submissions")
    grade.add_argument(
        "submissions",
        type=Path,
        metavar="SUBMISSIONS",
        help="a folder with a file (.py, .ipynb, .txt, .zip) or a folder for each student",
    )
    grade.add_argument("--out", type=Path, required=True, metavar="DIR", help="scores and feedback")
    grade.add_argument("--seed", type=seed, help="of the random inputs; default: a secret one")
    grade.add_argument(
        "--jobs", type=positive, default=os.cpu_count() or 1, help="default: all cores"
    )
    grade.add_argument(
        "--trust",
        action="store_true",
        help="run the submissions without isolation, with all that you may do",
    )
    grade.add_argument(
        "--layout",
        choices=("folders", "moodle", "canvas", "gradescope"),
        default="",
        help="how names of files say whose they are; default: found by itself, and shown",
    )
    grade.add_argument(
        "--roster",
        type=Path,
        metavar="CSV",
        help="everyone in the class: names, numbers, e-mail addresses, as a platform exports them",
    )
    grade.add_argument(
        "--column",
        metavar="NAME",
        help="of the roster: grades.csv is the roster with the points there; default: Grade",
    )
    grade.add_argument(
        "--due",
        type=_time,
        metavar="TIME",
        help="2026-11-20 (its end) or 2026-11-20T18:00, here: gives a column of days late",
    )
    grade.add_argument(
        "--review",
        action="store_true",
        help="list what a person should look at before the scores go out",
    )
    grade.add_argument(
        "--explain",
        nargs=2,
        metavar=("STUDENT", "EXERCISE"),
        help="print the feedback of one student on one exercise again, and grade nobody else",
    )
    for sub in (exported, grade):
        sub.add_argument("--only", nargs="+", metavar="NAME", help="default: every exercise")


def _told(run: Callable[[argparse.Namespace], int]) -> Callable[[argparse.Namespace], int]:
    """Wrong names and values as what they are, the user's input."""

    def verb(options: argparse.Namespace) -> int:
        try:
            return run(options)
        except (TypeError, ValueError) as error:
            raise InputError(str(error)) from None

    return verb


def _list(options: argparse.Namespace) -> int:
    chapter = 0
    for one in EXERCISES.values():
        if one.chapter != chapter:
            chapter = one.chapter
            print(f"chapter {chapter}")
        path, score, note = Path(f"{one.name}.py"), "", ""
        if path.exists():
            try:
                score = f"{_checked(one.name, path).score:>2} of"
            except Exception:  # it is the learner's file: anything may be in it
                note = f"   ({path} cannot be read: minitransformer exercise check {one.name})"
        print(f"  {one.name:<22}{score:<5} {one.points:>2} points   {one.title}{note}")
    return 0


def _start(options: argparse.Namespace) -> int:
    names = list(EXERCISES) if options.names == ["all"] else dict.fromkeys(options.names)
    chosen = [find(name) for name in names]
    paths = [Path(f"{one.name}.py") for one in chosen]
    there = [str(path) for path in paths if path.exists()]
    if len(there) == len(paths):
        raise InputError(f"{', '.join(there)}: is there already; nothing was written")
    if there:
        print(f"{', '.join(there)}: is there already, left alone")
    for one, path in zip(chosen, paths, strict=True):
        if str(path) in there:
            continue
        path.write_text(f'"""{one.title}"""\n\n{one.stub}\n', encoding="utf-8")
        print(f"{path}: {one.title} ({one.points} points)")
        print(textwrap.indent(textwrap.fill(one.about, 90), "    "))
        print(f"    then: minitransformer exercise check {one.name}")
    return 0


def _check(options: argparse.Namespace) -> int:
    one = find(options.name)
    path = options.file or Path(f"{one.name}.py")
    if not path.exists():
        raise InputError(f"{path}: no such file; minitransformer exercise start {one.name}")
    try:
        feedback = _checked(one.name, path)
    except (InputError, ValueError):
        _point_at_syntax_error(path)
        raise
    in_python, here = f'hint("{one.name}")', f"minitransformer exercise hint {one.name}"
    print(str(feedback).replace(in_python, here))
    return 0 if feedback.passed else 1


def _point_at_syntax_error(path: Path) -> None:
    """Show the line and a caret on stderr, above the error, which is one line; else nothing."""
    try:
        for label, source in read_cells(path.name, read_file(path, LARGEST_TEXT)):
            with warnings.catch_warnings(action="ignore"):
                code = without_magics(source) if path.suffix == ".ipynb" else source
                compile(code, label, "exec", dont_inherit=True)
    except SyntaxError as error:
        print("".join(traceback.format_exception_only(error)).rstrip(), file=sys.stderr)
    except (InputError, ValueError, RecursionError, MemoryError):
        return


def _checked(name: str, path: Path) -> Feedback:
    """Of a module, or of the cells of a notebook that define it."""
    if path.suffix != ".ipynb":
        return check(name, find_callable(f"{path}:{name}"))
    try:
        cells = read_cells(path.name, read_file(path, LARGEST_TEXT))
    except ValueError as error:
        raise InputError(f"{path}: cannot be read: {error}") from None
    space, errors = load_cells(cells, [name])
    if not callable(space.get(name)):
        raise InputError(f"{path}: " + "; ".join([f"defines no function {name}", *errors]))
    return check(name, space[name])


def _hint(options: argparse.Namespace) -> int:
    hint(options.name, options.step)
    return 0


def _progress(options: argparse.Namespace) -> int:
    print(progress())
    return 0


def _solution(options: argparse.Namespace) -> int:
    solution(options.name)
    return 0


def _export(options: argparse.Namespace) -> int:
    names = options.only or list(EXERCISES)
    print(export(names, options.to, options.folder, options.hints, options.torch))
    return 0


def _time(text: str) -> float:
    """Seconds since 1970 of a time on this machine's clock; a day means its end."""
    day_only = len(text) == len("2026-11-20")
    try:
        return datetime.fromisoformat(text).timestamp() + day_only * 86_400
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"expected a time as 2026-11-20 or 2026-11-20T18:00, got {text!r}"
        ) from None


def _grade(options: argparse.Namespace) -> int:
    try:
        from minitransformer.grading import grade
        from minitransformer.grading.roster import read_roster
        from minitransformer.grading.sandbox import Unsafe
    except ImportError as error:
        raise InputError(f"exercise grade needs Linux: {error}") from None
    roster = read_roster(options.roster) if options.roster else None
    if options.column and roster is None:
        raise InputError("--column names a column of the roster: add --roster CSV")
    if options.column and roster is not None:
        roster.check_column(options.column)  # before an hour of grading
    names = [find(name).name for name in options.only or EXERCISES]
    read = {"layout": options.layout, "roster": roster, "say": _say}
    try:
        if options.explain:
            print(
                grade.explain(
                    options.submissions,
                    options.out,
                    names,
                    *options.explain,
                    trust=options.trust,
                    **read,
                )
            )
            return 0
        with _interrupted_by_sigterm():
            rows = grade.grade_all(
                options.submissions,
                options.out,
                names,
                options.seed,
                options.jobs,
                options.trust,
                due=options.due,
                **read,
            )
    except Unsafe as error:
        raise InputError(str(error)) from None
    _print_rows(rows)
    files = f"{options.out / 'scores.csv'}, index.html, students/NAME/feedback.html"
    if roster is not None and (options.column or GRADE in roster.columns):
        scores = {row["student"]: row["score"] for row in rows if row["score"] != ""}
        filled = roster.filled(scores, rows[0]["points"], options.column or GRADE)
        write_atomically(options.out / "grades.csv", filled.encode())
        files += ", grades.csv"
    graded = sum(row["score"] != "" for row in rows)
    print(f"\n{graded} of {len(rows)} graded: {files}")
    if options.review:
        print("\n".join(["", "to look at:", *grade.review_of(rows, options.out, names)]))
    return 0 if graded == len(rows) else 1


def _print_rows(rows: Sequence[Mapping[str, Any]]) -> None:
    for row in rows:
        score = "not graded" if row["score"] == "" else f"{row['score']} of {row['points']}"
        print(f"{row['student']:<30} {score}  {row['note']}".rstrip())


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


@contextmanager
def _interrupted_by_sigterm() -> Iterator[None]:
    """SIGTERM ends it as Ctrl-C does: at once, and what was graded is kept."""

    def interrupt(number: int, frame: Any) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
