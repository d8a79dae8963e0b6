"""`minitransformer exercise`: for those who solve the exercises, and for those who grade them."""

import argparse
import os
import textwrap
from collections.abc import Callable
from pathlib import Path

from minitransformer.checks.finding import find as find_callable
from minitransformer.cli.options import positive, seed
from minitransformer.data.files import LARGEST_TEXT, InputError, read_file
from minitransformer.exercises import (
    EXERCISES,
    Feedback,
    check,
    find,
    hint,
    progress,
    solution,
)
from minitransformer.exercises.cells import load_cells, read_cells
from minitransformer.exercises.export import EXPORTS, export

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
  minitransformer exercise grade SUBMISSIONS --out DIR
"""


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = HELP.strip()
    verbs = parser.add_subparsers(title="verbs", required=True, metavar="VERB")

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
        choices=(1, 2, 3),
        default=3,
        help="how many of the three students may read; the third is nearly the answer; default: 3",
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
    if there := [str(path) for path in paths if path.exists()]:
        raise InputError(f"{', '.join(there)}: is there already; nothing was written")
    for one, path in zip(chosen, paths, strict=True):
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
    feedback = _checked(one.name, path)
    print(feedback)
    return 0 if feedback.passed else 1


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
    print(export(options.only or list(EXERCISES), options.to, options.folder, options.hints))
    return 0


def _grade(options: argparse.Namespace) -> int:
    try:
        from minitransformer.grading.grade import grade_all
        from minitransformer.grading.sandbox import Unsafe
    except ImportError as error:
        raise InputError(f"exercise grade needs Linux: {error}") from None
    try:
        rows = grade_all(
            options.submissions,
            options.out,
            options.only,
            options.seed,
            options.jobs,
            options.trust,
        )
    except Unsafe as error:
        raise InputError(str(error)) from None
    for row in rows:
        score = "not graded" if row["score"] == "" else f"{row['score']} of {row['points']}"
        print(f"{row['student']:<30} {score}  {row['note']}".rstrip())
    graded = sum(row["score"] != "" for row in rows)
    where = f"{options.out / 'scores.csv'}, and students/NAME/feedback.html"
    print(f"\n{graded} of {len(rows)} graded: {where}")
    return 0 if graded == len(rows) else 1
