"""What an instructor reads: scores.csv, written as students are done, and the page of the class."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from minitransformer.data.files import to_csv, write_atomically
from minitransformer.exercises.chapters import EXERCISES
from minitransformer.grading.class_page import class_page
from minitransformer.grading.records import Record, read_record
from minitransformer.grading.submissions import Submission, plain


class Scores:
    """A row for every student; `missing` says why there is no score, where there is none."""

    def __init__(
        self, out: Path, names: Sequence[str], found: Sequence[Submission], due: float | None
    ):
        self.out, self.names, self.found, self.due = out, names, found, due
        self.missing: dict[str, str] = {}
        self.records: dict[str, Record] = {}

    def add(self, student: str, error: str) -> None:
        """A student is done, or could not be graded for this reason, which is the machine's."""
        self.missing[student] = plain(" ".join(error.split()))
        self.write()

    def record(self, student: str) -> Record | None:
        """What was found of a student who is done."""
        if student not in self.records and not self.missing.get(student):
            record = read_record(self.out / "students" / student)
            if record is None:
                self.missing[student] = f"{self.out}: what was graded is gone"
            else:
                self.records[student] = record
        return self.records.get(student)

    def rows(self) -> list[dict[str, Any]]:
        """In the order of the students; columns that are empty for all are left out."""
        rows = [self._row(one) for one in self.found]
        empty = {"number", "email", "days_late"} - {
            name for row in rows for name, value in row.items() if value != ""
        }
        return [{name: value for name, value in row.items() if name not in empty} for row in rows]

    def _row(self, one: Submission) -> dict[str, Any]:
        record = self.record(one.student)
        points = sum(EXERCISES[name].points for name in self.names)
        row = {
            "student": one.student,
            "number": one.number,
            "email": one.email,
            "score": record.score(self.names) if record else "",
            "points": points,
            "days_late": one.days_late(self.due) if one.files else "",
            "note": "; ".join(record.notes) if record else self.missing[one.student],
        }
        scores = {name: record.exercises[name].score for name in self.names} if record else {}
        return row | scores

    def write(self, with_page: bool = False) -> None:
        rows = self.rows()
        write_atomically(self.out / "scores.csv", to_csv(_harmless_rows(rows)))
        if with_page:
            page = class_page(rows, self.records, self.names)
            write_atomically(self.out / "index.html", page.encode())


def _harmless_rows(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    columns = max((list(row) for row in rows), key=len)
    return [{name: _harmless(row.get(name, "")) for name in columns} for row in rows]


def _harmless(value: Any) -> Any:
    """A spreadsheet runs text that begins so, and some begin a cell at each semicolon."""
    if not isinstance(value, str):
        return value
    return re.sub(r"(^[\t\r]?|[;\t]\s*)(?=[=+\-@\t\r])", r"\1'", value)
