"""The instructor's page, index.html: a histogram, every student, every exercise, what to look at.

Plain HTML with an SVG picture, no scripts: it opens from a disk and shows the same in ten years.
"""

import html
from collections import Counter
from collections.abc import Mapping, Sequence
from statistics import mean, median
from typing import Any
from urllib.parse import quote

from minitransformer.exercises.chapters import EXERCISES
from minitransformer.grading.records import Record, page
from minitransformer.grading.review import review

BINS = 10  # of the histogram
WIDTH, HEIGHT = 480, 160  # of its bars, in pixels
COMMONEST = 3  # mistakes that are shown of an exercise


def class_page(
    rows: Sequence[Mapping[str, Any]], records: Mapping[str, Record], names: Sequence[str]
) -> str:
    """The page of a class: rows of scores.csv, and the records of those who have a score."""
    scores = [row["score"] for row in rows if row["score"] != ""]
    points = sum(EXERCISES[name].points for name in names)
    parts = [f"<p>{len(rows)} students, {len(scores)} graded.</p>"]
    if scores:
        middle = f"mean {mean(scores):.1f}, median {median(scores):g} of {points} points"
        parts += [f"<p>{middle}.</p>", histogram(scores, points)]
    parts += ["<h2>Exercises</h2>", _table(_exercises(records, names), EXERCISE_COLUMNS)]
    parts += ["<h2>Students</h2>", _students(rows)]
    if lines := review(records, names):
        items = "".join(f"<li>{html.escape(line)}</li>" for line in lines)
        parts += ["<h2>To look at</h2>", f"<ul>{items}</ul>"]
    return page(f"{len(rows)} students, {points} points", parts)


def histogram(scores: Sequence[int], points: int) -> str:
    """How many students have how many points, as SVG: bars of equal width from 0 to all points."""
    counts = [0] * BINS
    for score in scores:
        counts[min(BINS * score // max(points, 1), BINS - 1)] += 1
    width, bars = WIDTH // BINS, []
    for number, count in enumerate(counts):
        high = round(HEIGHT * count / max(counts))
        x, y = number * width, 20 + HEIGHT - high
        bars.append(f'<rect x="{x + 2}" y="{y}" width="{width - 4}" height="{high}"/>')
        if count:
            bars.append(f'<text x="{x + width / 2:g}" y="{y - 4}">{count}</text>')
        low = points * number / BINS
        bars.append(f'<text x="{x + width / 2:g}" y="{HEIGHT + 36}">{low:.3g}</text>')
    text = 'fill="#4a6fa5" font-size="12" text-anchor="middle"'
    return (
        f'<svg width="{WIDTH}" height="{HEIGHT + 44}" {text} role="img" '
        f'aria-label="Histogram of points">{"".join(bars)}</svg>'
        f"<p><small>Students by points; a bar begins at the number below it.</small></p>"
    )


EXERCISE_COLUMNS = ("exercise", "points", "all points", "mean share", "commonest mistakes")


def _exercises(records: Mapping[str, Record], names: Sequence[str]) -> list[list[str]]:
    lines = []
    for name in names:
        graded = [record.exercises[name] for record in records.values()]
        right = sum(one.score == one.points for one in graded)
        share = mean([one.score / one.points for one in graded]) if graded else 0.0
        mistakes = Counter(one.mistake.splitlines()[0] for one in graded if one.mistake)
        known = [f"{count} × {text}" for text, count in mistakes.most_common(COMMONEST)]
        cells = [name, EXERCISES[name].points, f"{right} of {len(graded)}", f"{share:.0%}"]
        lines.append([*(html.escape(str(cell)) for cell in cells), _lines(known)])
    return lines


def _students(rows: Sequence[Mapping[str, Any]]) -> str:
    columns = [name for name in ("student", "score", "days_late", "note") if name in rows[0]]
    lines = []
    for row in rows:
        cells = [html.escape(str(row[name])) for name in columns]
        if row["score"] != "":
            link = f"students/{quote(row['student'])}/feedback.html"
            cells[0] = f'<a href="{link}">{cells[0]}</a>'
        lines.append(cells)
    return _table(lines, [name.replace("_", " ") for name in columns])


def _table(lines: Sequence[Sequence[str]], columns: Sequence[str]) -> str:
    """Cells are HTML already."""
    head = "".join(f"<th align='left'>{name}</th>" for name in columns)
    body = "".join("<tr>" + "".join(f"<td>{x}</td>" for x in line) + "</tr>" for line in lines)
    return f"<table><tr>{head}</tr>{body}</table>"


def _lines(texts: Sequence[str]) -> str:
    return "<br>".join(html.escape(text) for text in texts)
