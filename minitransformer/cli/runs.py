"""`minitransformer runs`: what was trained here, how far, and what became of it."""

import argparse
import datetime
from pathlib import Path

from minitransformer.data.files import InputError
from minitransformer.data.manifest import MANIFEST
from minitransformer.training.checkpoint import checkpoints, is_locked, newest, read
from minitransformer.training.loop import COLUMNS
from minitransformer.training.run import Run

HEADER = ("run", "task", "step", "loss", "held out", "last saved", "state")


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(verb=_runs)
    parser.add_argument(
        "folders", metavar="DIR", nargs="*", type=Path, help="runs, or where they are (runs)"
    )


def _runs(options: argparse.Namespace) -> int:
    found = []
    for folder in options.folders or [Path("runs")]:
        if not folder.is_dir():
            raise InputError(f"{folder}: no such folder; `minitransformer train` makes runs/TASK")
        inside = sorted(path for path in folder.iterdir() if _is_run(path))
        found += [folder] if _is_run(folder) else inside
    if not found:
        raise InputError(f"{', '.join(map(str, options.folders or ['runs']))}: holds no run")
    lines, notes = [HEADER], []
    for folder in found:
        line, note = describe(folder)
        lines.append(line)
        notes += [note] if note else []
    widths = [max(len(cell) for cell in column) for column in zip(*lines, strict=True)]
    for line in lines:
        print(
            "  ".join(f"{cell:{width}}" for cell, width in zip(line, widths, strict=True)).rstrip()
        )
    for note in notes:
        print(note)
    return 0


def _is_run(folder: Path) -> bool:
    return folder.is_dir() and ((folder / MANIFEST).is_file() or bool(checkpoints(folder)))


def _last_of_first(results: list[tuple[str, float]]) -> tuple[str, float]:
    """The latest value of the result that a task names first."""
    first = results[0][0]
    return [(name, value) for name, value in results if name == first][-1]


def describe(folder: Path) -> tuple[tuple[str, ...], str]:
    """A run's line of the table, and what is damaged about it."""
    place = newest(folder)
    try:
        run = Run.from_files(read(place), place)
    except InputError as error:
        return (str(folder), "", "", "", "", "", "damaged"), str(error)
    step, steps = len(run.history), run.settings.get("steps", 0)
    last = run.history[-1] if run.history else {}
    results = [(name, row[name]) for row in run.history for name in row if name not in COLUMNS]
    saved = datetime.datetime.fromtimestamp((place / MANIFEST).stat().st_mtime)
    state = "running" if is_locked(folder) else "finished" if step >= steps else "interrupted"
    return (
        str(folder),
        run.task,
        f"{step:,} of {steps:,}",
        f"{last['loss']:.4f}" if last else "",
        "{} {:.4f}".format(*_last_of_first(results)) if results else "",
        f"{saved:%Y-%m-%d %H:%M}",
        state,
    ), ""
