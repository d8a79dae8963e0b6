"""What a learner reads: the mistake, if it is known, then an example, then the other checks."""

import html
import re
import textwrap
from dataclasses import dataclass
from typing import TYPE_CHECKING

from minitransformer.checks import Report, Result
from minitransformer.checks.engine.report import SIGNS, WIDTH, picture
from minitransformer.exercises.mistakes import UNKNOWN, Diagnosis

if TYPE_CHECKING:
    from minitransformer.exercises.exercise import Exercise

NOT_STARTED = "It raised NotImplementedError: your turn"
NOT_THERE = "It was not handed in."
NOT_LOADED = "It could not be loaded."
NOT_GRADED = "It could not be graded."
WITHOUT_ANSWER = {  # why there is nothing to say about it -> in the headline
    NOT_STARTED: "not written yet",
    NOT_THERE: "not handed in",
    NOT_LOADED: "could not be loaded",
    NOT_GRADED: "could not be graded",
}
INDENTED = {"initial_indent": " " * 8, "subsequent_indent": " " * 8}
FIRST_FIRST = "No point counts before the first check passes."


@dataclass(frozen=True)
class Feedback:
    """What the checks found, and what it is worth."""

    exercise: "Exercise"
    report: Report
    diagnosis: Diagnosis = UNKNOWN

    @property
    def right(self) -> bool:
        """It does what is wanted on ordinary input, so that points count."""
        return self.report.results[0].outcome == "pass"

    @property
    def earned(self) -> list[int]:
        """The points of each check."""
        return [
            aim.points if self.right and result.outcome == "pass" else 0
            for aim, result in zip(self.exercise.aims, self.report, strict=True)
        ]

    @property
    def score(self) -> int:
        return sum(self.earned)

    @property
    def points(self) -> int:
        return self.exercise.points

    @property
    def passed(self) -> bool:
        return self.score == self.points

    @property
    def started(self) -> bool:
        return not self.report.results[0].raised.startswith(tuple(WITHOUT_ANSWER))

    @property
    def headline(self) -> str:
        if not self.started:
            raised = self.report.results[0].raised
            what = next(said for why, said in WITHOUT_ANSWER.items() if raised.startswith(why))
            return f"{self.exercise.name}: {what} (0 of {self.points} points)"
        what = "all right" if self.passed else "not yet"
        return f"{self.exercise.name}: {self.score} of {self.points} points, {what}"

    @property
    def mistake(self) -> str:
        """The mistake that gives the same answers, in a sentence; empty where none is known."""
        return str(self.diagnosis)

    @property
    def _why_this(self) -> str:
        return f"a solution that does this answers as yours does, {self.diagnosis.where}"

    @property
    def _failures_first(self) -> list[tuple[int, int, Result]]:
        """(earned, points, result) of each check; those that failed come first."""
        aims = zip(self.earned, self.exercise.aims, self.report, strict=True)
        rows = [(earned, aim.points, result) for earned, aim, result in aims]
        return sorted(rows, key=lambda row: row[2].outcome != "fail")

    def __str__(self) -> str:
        if not self.started:
            return self.headline
        blocks = [self.headline]
        if self.mistake:
            blocks.append("\n".join(textwrap.fill(s, WIDTH) for s in self.mistake.splitlines()))
            blocks[-1] += f"\n    ({self._why_this})"
        (_, _, worst), *others = self._failures_first
        if worst.outcome == "fail":
            blocks.append(str(worst))
        else:
            others = self._failures_first
        lines, told = [], {_error(worst)}
        for earned, points, result in others:
            error = _error(result)
            lines.append(_line(earned, points, result, as_above=bool(error) and error in told))
            if error not in told | {""}:
                lines.append(textwrap.fill(result.raised, WIDTH, **INDENTED))
            told.add(error)
        blocks.append("\n".join(lines))
        if not self.right:
            blocks[-1] += f"\n{FIRST_FIRST}"
        if not self.passed:
            blocks.append(f'stuck? hint("{self.exercise.name}")')
        return "\n\n".join(block for block in blocks if block)

    __repr__ = __str__

    def _repr_html_(self) -> str:
        return self.to_html()

    def to_html(self) -> str:
        """As a table, with the mask wanted beside the weights found where there are any."""
        parts = [f"<p><b>{html.escape(self.headline)}</b></p>"]
        if not self.started:
            return parts[0]
        if self.mistake:
            said = html.escape(self.mistake).replace("\n", "<br>")
            parts.append(f"<p>{said}<br><small>({self._why_this})</small></p>")
        parts.append("<table>")
        for earned, points, result in self._failures_first:
            failed = result.outcome == "fail"
            text = html.escape(result.diagnosis if failed else result.statement)
            shown = picture(result) if failed else ""
            color = "#b3261e" if failed else "#2c7a2c" if self.right else "#777777"
            sign, name = "✗" if failed else "✓", html.escape(result.check.replace("_", " "))
            parts.append(
                f'<tr><td style="color:{color}; white-space:nowrap">{sign} {earned}/{points}'
                f'</td><td style="text-align:left">{name}'
                f'</td><td style="text-align:left">{text}{shown}</td></tr>'
            )
        parts.append("</table>")
        if not self.right:
            parts.append(f"<p>{FIRST_FIRST}</p>")
        return "\n".join(parts)


def _error(result: Result) -> str:
    """Which error it raised, if any: the same one at other sizes is the same."""
    return re.sub(r"\d+", "0", result.raised)


def _line(earned: int, points: int, result: Result, as_above: bool) -> str:
    """One line: points, name, and what was found, as far as there is room."""
    found = "as above" if as_above else ""
    if result.outcome == "fail" and not result.raised:
        found = result.diagnosis
    elif result.measured is not None:
        found = f"{result.measures}: {result.measured:.3g}"
    line = f"{earned}/{points}  {SIGNS[result.outcome]} {result.check}   {found}".rstrip()
    return line if len(line) <= WIDTH else f"{line[: WIDTH - 2]} …"
