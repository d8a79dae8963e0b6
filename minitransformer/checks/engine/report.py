"""What the checks found: to print, to show in a notebook, to read by a program."""

import base64
import html
import io
import json
import math
import textwrap
from dataclasses import dataclass, field
from itertools import zip_longest
from typing import Any

import torch
from torch import Tensor

WIDTH = 96  # of a printed report
DETAILED = 3  # failures are printed with example and links, the others without
SIGNS = {"pass": "✓", "fail": "✗", "not applicable": "-"}


@dataclass(frozen=True)
class Result:
    """What one check found."""

    check: str
    tier: str
    statement: str  # the invariant
    outcome: str  # "pass", "fail" or "not applicable"
    measured: float | None = None
    measures: str = ""  # what the number is
    diagnosis: str = ""  # of a failure; or why it is not applicable
    example: dict[str, Tensor] = field(default_factory=dict)  # small tensors that show the failure
    mirrors: tuple[str, ...] = ()  # the same failure in real code
    printed: str = ""  # what the subject wrote to the terminal meanwhile
    raised: str = ""  # the subject gave no answer, but raised or hung: how
    hung: bool = False

    @property
    def title(self) -> str:
        """Sign, name and number."""
        number = "" if self.measured is None else f"   {self.measures}: {self.measured:.3g}"
        return f"{SIGNS[self.outcome]} {self.check} ({self.tier}){number}"

    @property
    def brief(self) -> str:
        """The title; of a failure also the diagnosis."""
        if self.outcome == "not applicable":
            return f"{self.title}   not applicable: {self.diagnosis}"
        return "\n".join([self.title, *_wrap(self.diagnosis)])

    def __str__(self) -> str:
        lines = [self.brief]
        if self.outcome == "fail":
            lines += _wrap(f"must hold: {self.statement}")
            lines += ["    " + line for line in _side_by_side(self.example)]
            if self.printed:
                lines += _wrap(f"it printed: {self.printed.strip()[:200]!r}")
            if self.mirrors:
                lines += ["    the same in real code:"]
                lines += [f"      {link}" for link in self.mirrors]
        return "\n".join(lines)

    def as_dict(self) -> dict:
        """For JSON: tensors as lists, NaN and Inf as words."""
        return {
            "check": self.check,
            "tier": self.tier,
            "statement": self.statement,
            "outcome": self.outcome,
            "measured": _word(self.measured),
            "measures": self.measures,
            "diagnosis": self.diagnosis,
            "example": {name: _words(tensor.tolist()) for name, tensor in self.example.items()},
            "mirrors": list(self.mirrors),
            "printed": self.printed,
        }


@dataclass(frozen=True)
class Report:
    """The findings of all checks up to a tier on one subject."""

    kind: str  # what it was checked as
    subject: str
    tier: str
    results: list[Result]
    likely: tuple[str, ...] = ()  # bugs of the museum that behave the same, by name
    explanation: str = ""  # what these do, in words
    certain: bool = True  # the same by their numbers too, not only by which checks fail
    not_compared: tuple[str, ...] = ()  # bugs of the museum that ran out of time
    would_pass: dict[str, Any] = field(default_factory=dict)  # declared so, core checks pass
    question: str = ""  # was it declared as what it is?

    @property
    def passed(self) -> bool:
        """Nothing failed, and something passed."""
        return not self.failed and any(result.outcome == "pass" for result in self.results)

    @property
    def failed(self) -> list[str]:
        """The names of the checks that failed, the most basic first."""
        return [result.check for result in self.results if result.outcome == "fail"]

    @property
    def ran(self) -> bool:
        """It answered at least once; a subject that only raises could not be checked."""
        return any(r.outcome == "pass" or (r.outcome == "fail" and not r.raised) for r in self)

    @property
    def diagnosis(self) -> str:
        """What is most likely wrong, in words; empty where nothing is."""
        if self.explanation and self.certain:
            return self.explanation
        first = next((r.diagnosis for r in self.results if r.outcome == "fail"), "")
        return first + (f" {self.alike}: {self.explanation}" if self.likely else "")

    @property
    def alike(self) -> str:
        """How the bugs that are named behave."""
        return "likely bug" if self.certain else "Known bugs that fail the same checks"

    def raise_for_failures(self) -> None:
        """Raise AssertionError with the whole report unless it passed."""
        if not self.passed:
            raise AssertionError(str(self))

    def __iter__(self):
        return iter(self.results)

    def __getitem__(self, check: str) -> Result:
        for result in self.results:
            if result.check == check:
                return result
        raise KeyError(f"{check!r}: this report has {', '.join(r.check for r in self.results)}")

    @property
    def headline(self) -> str:
        counts = {o: sum(r.outcome == o for r in self.results) for o in SIGNS}
        what = f"{counts['pass']} of {counts['pass'] + counts['fail']} checks pass"
        other = f", {counts['not applicable']} not applicable" if counts["not applicable"] else ""
        tier = {"core": "core", "robust": "core and robust", "strict": "all tiers"}[self.tier]
        return f"{self.subject} as {self.kind}, {tier}: {what}{other}"

    @property
    def advice(self) -> str:
        """What to do next."""
        if not self.passed:
            return f"fix the first failure first: {self.failed[0]}" if self.failed else ""
        higher = {"core": "robust", "robust": "strict"}.get(self.tier)
        if not higher:
            return "there is no higher tier"
        return f'next: the {higher} tier, tier="{higher}" or --tier {higher}'

    def __str__(self) -> str:
        blocks = [self.headline, textwrap.fill(self.question, WIDTH)]
        if self.likely:
            named = " or ".join(self.likely)
            title = textwrap.fill(f"{self.alike}: {named}", WIDTH)
            blocks.append("\n".join([title, *_wrap(self.explanation)]))
        elif self.failed:
            blocks.append(textwrap.fill(f"diagnosis: {self.diagnosis}", WIDTH))
        if self.not_compared:
            names = ", ".join(self.not_compared)
            blocks.append(textwrap.fill(f"not compared, for want of time: {names}", WIDTH))
        failures = [result for result in self.results if result.outcome == "fail"]
        told: list[str] = []
        for number, result in enumerate(failures):
            if result.raised and result.raised in told:
                blocks[-1] += f"\n{result.title}   as above"
            else:
                blocks.append(str(result) if number < DETAILED else result.brief)
            told.append(result.raised)
        others = [str(result) for result in self.results if result.outcome != "fail"]
        blocks.append("\n".join(others))
        if self.advice:
            blocks.append(self.advice)
        return "\n\n".join(block for block in blocks if block)

    def to_json(self, indent: int | None = 2) -> str:
        return json.dumps(
            {
                "subject": self.subject,
                "as": self.kind,
                "tier": self.tier,
                "passed": self.passed,
                "failed": self.failed,
                "likely": list(self.likely),
                "diagnosis": self.diagnosis,
                "would pass": {name: str(value) for name, value in self.would_pass.items()},
                "not compared": list(self.not_compared),
                "torch": torch.__version__,
                "results": [result.as_dict() for result in self.results],
            },
            indent=indent,
            ensure_ascii=False,
            allow_nan=False,
        )

    def _repr_html_(self) -> str:
        """In a notebook: the findings as a table, mask wanted beside weights found as a picture."""
        colors = {"pass": "#2c7a2c", "fail": "#b3261e", "not applicable": "#777777"}
        parts = [f"<p><b>{html.escape(self.headline)}</b></p>"]
        if self.question:
            parts.append(f"<p><b>{html.escape(self.question)}</b></p>")
        if self.likely:
            named = html.escape(" or ".join(self.likely))
            parts.append(f"<p>{self.alike}: <b>{named}</b></p>")
        if self.diagnosis:
            parts.append(f"<p>{html.escape(self.diagnosis)}</p>")
        if self.not_compared:
            names = html.escape(", ".join(self.not_compared))
            parts.append(f"<p>not compared, for want of time: {names}</p>")
        parts.append("<table>")
        for result in sorted(self.results, key=lambda result: result.outcome != "fail"):
            number = "" if result.measured is None else f"{result.measures}: {result.measured:.3g}"
            text = html.escape(result.diagnosis or result.statement)
            links = "".join(
                f' <a href="{html.escape(link)}">seen in the wild</a>'
                for link in result.mirrors
                if result.outcome == "fail" and link.startswith("https://")
            )
            shown = picture(result) if result.outcome == "fail" else ""
            parts.append(
                f'<tr><td style="color:{colors[result.outcome]}">{SIGNS[result.outcome]}</td>'
                f'<td style="text-align:left">{result.check}<br><small>{result.tier}</small></td>'
                f'<td style="text-align:left">{text}{links}<br><small>{html.escape(number)}'
                f"</small>{shown}</td></tr>"
            )
        parts.append("</table>")
        parts.append(f"<p>{html.escape(self.advice)}</p>")
        return "\n".join(parts)


def picture(result: Result) -> str:
    """The example as an image, or as text where it is not a mask with weights."""
    if not result.example:
        return ""
    if {"mask wanted", "weights found"} <= result.example.keys():
        try:
            from minitransformer.visualize import wanted_beside_found
        except ImportError:
            pass  # without matplotlib: as text
        else:
            file = io.BytesIO()
            figure = wanted_beside_found(
                result.example["mask wanted"].bool(), result.example["weights found"]
            )
            figure.savefig(file, format="png", dpi=110)
            image = base64.b64encode(file.getvalue()).decode()
            alt = "mask wanted beside weights found"
            return f'<br><img alt="{alt}" src="data:image/png;base64,{image}">'
    return "<pre>" + html.escape("\n".join(_side_by_side(result.example))) + "</pre>"


def _side_by_side(example: dict[str, Tensor]) -> list[str]:
    """Small tensors under their names, next to each other."""
    columns = []
    for name, tensor in example.items():
        rows = _rows(tensor.detach().cpu())
        width = max(len(line) for line in [name, *rows])
        columns.append([line.ljust(width) for line in [name, *rows]])
    lines = []
    used = 0
    group: list[list[str]] = []
    for column in columns:
        if group and used + len(column[0]) + 4 > WIDTH:
            lines += _join(group)
            group, used = [], 0
        group.append(column)
        used += len(column[0]) + 4
    return lines + _join(group)


def _join(group: list[list[str]]) -> list[str]:
    blanks = [" " * len(column[0]) for column in group]
    return [
        "    ".join(cell or blank for cell, blank in zip(line, blanks, strict=True)).rstrip()
        for line in zip_longest(*group)
    ]


def _rows(tensor: Tensor) -> list[str]:
    if tensor.ndim == 0:
        return [_number(tensor.item())]
    table = tensor.reshape(-1, tensor.shape[-1])[:12, :12]
    cells = [[_number(x) for x in row] for row in table.tolist()]
    width = max((len(cell) for row in cells for cell in row), default=0)
    return [" ".join(cell.rjust(width) for cell in row) for row in cells]


def _number(x) -> str:
    if isinstance(x, bool):
        return "1" if x else "0"
    return f"{x:.3g}" if isinstance(x, float) else str(x)


def _word(x):
    return str(x) if isinstance(x, float) and not math.isfinite(x) else x


def _words(x):
    return [_words(item) for item in x] if isinstance(x, list) else _word(x)


def _wrap(text: str) -> list[str]:
    return textwrap.wrap(text, WIDTH, initial_indent="    ", subsequent_indent="    ")
