"""How far a learner is: the points, attempts and hints of each exercise, in a small local file.

from minitransformer.exercises import progress

progress()  # what is done, and what comes next
"""

import html
import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from minitransformer.data.files import InputError, write_atomically

if TYPE_CHECKING:
    from minitransformer.exercises.exercise import Exercise

PLACE = "MINITRANSFORMER_PROGRESS"  # where the file is, in the environment; empty: nowhere
WIDE = 20  # of a bar


@dataclass
class Standing:
    """Of one exercise."""

    attempts: int = 0
    best: int = 0  # points
    hint: int = 0  # the last step that was read


def place() -> Path | None:
    """The file, which need not be there; None where nothing is to be kept."""
    told = os.environ.get(PLACE)
    if told == "":
        return None
    try:
        return Path(told) if told else Path.home() / ".minitransformer" / "progress.json"
    except RuntimeError:  # no home
        return None


def read_standings() -> dict[str, Standing]:
    """By the exercise's name. Raises InputError for a file that is none of ours."""
    path = place()
    if path is None or not path.exists():
        return {}
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        return {str(name): Standing(**one) for name, one in found.items()}
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise InputError(
            f"{path}: cannot be read as progress in the exercises ({error}): repair or delete it"
        ) from None


def record(name: str, score: int | None = None, hint: int | None = None) -> None:
    """An attempt that earned `score`, or a hint that was read.

    What cannot be kept (a home that is read-only, a broken file, which stays as it is) must not
    keep anybody from checking an exercise.
    """
    path = place()
    if path is None:
        return
    try:
        standings = read_standings()
        one = standings.setdefault(name, Standing())
        if score is not None:
            one.attempts, one.best = one.attempts + 1, max(one.best, score)
        if hint is not None:
            one.hint = max(one.hint, hint)
        path.parent.mkdir(parents=True, exist_ok=True)
        told = {name: asdict(standing) for name, standing in sorted(standings.items())}
        write_atomically(path, (json.dumps(told, indent=1) + "\n").encode())
    except (InputError, OSError):
        return


@dataclass(frozen=True)
class Progress:
    """What is done and what comes next, to print and to show in a notebook."""

    exercises: Mapping[str, "Exercise"]
    standings: Mapping[str, Standing]

    def earned(self, name: str) -> int:
        """At most what it is worth today."""
        return min(self.standings.get(name, Standing()).best, self.exercises[name].points)

    @property
    def score(self) -> int:
        return sum(self.earned(name) for name in self.exercises)

    @property
    def points(self) -> int:
        return sum(one.points for one in self.exercises.values())

    @property
    def done(self) -> list[str]:
        """Those with all points."""
        return [name for name, one in self.exercises.items() if self.earned(name) == one.points]

    @property
    def next(self) -> str:
        """The first that is not done; empty after the last."""
        return next((name for name in self.exercises if name not in self.done), "")

    @property
    def headline(self) -> str:
        exercises = f"{len(self.done)} of {len(self.exercises)} exercises"
        return f"{self.score} of {self.points} points, {exercises} done"

    @property
    def advice(self) -> str:
        if not self.next:
            return "That was the last one."
        one = self.exercises[self.next]
        return f"next: {one.name} (chapter {one.chapter}: {one.title}), {one.points} points"

    def __str__(self) -> str:
        lines = [self.headline]
        for chapter in dict.fromkeys(one.chapter for one in self.exercises.values()):
            names = [name for name, one in self.exercises.items() if one.chapter == chapter]
            score = sum(self.earned(name) for name in names)
            points = sum(self.exercises[name].points for name in names)
            full = WIDE * score // points
            lines += [
                "",
                f"chapter {chapter:<3} {'█' * full}{'░' * (WIDE - full)} {score}/{points}",
            ]
            lines += [f"  {self._line(name)}" for name in names]
        return "\n".join([*lines, "", self.advice])

    def _line(self, name: str) -> str:
        earned, points = self.earned(name), self.exercises[name].points
        return f"{self._sign(name)} {name:<24} {earned:>2} of {points:>2}   {self._told(name)}"

    def _sign(self, name: str) -> str:
        return "✓" if name in self.done else "…" if name in self.standings else " "

    def _told(self, name: str) -> str:
        one = self.standings.get(name, Standing())
        counts = {"attempt": one.attempts, "hint": one.hint}
        told = [f"{n} {what}{'s' if n > 1 else ''}" for what, n in counts.items() if n]
        return ", ".join(told)

    __repr__ = __str__

    def _repr_html_(self) -> str:
        rows = []
        for name, one in self.exercises.items():
            earned = self.earned(name)
            bar = f'<progress value="{earned}" max="{one.points}"></progress>'
            cells = (
                one.chapter,
                html.escape(name),
                bar,
                f"{earned}/{one.points}",
                self._told(name),
            )
            text = "".join(f'<td style="text-align:left">{cell}</td>' for cell in cells)
            rows.append(f"<tr>{text}</tr>")
        table = f"<table>{''.join(rows)}</table>"
        return f"<p><b>{self.headline}</b></p>{table}<p>{html.escape(self.advice)}</p>"
