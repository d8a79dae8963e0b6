"""The roster: everyone who should have handed in, from the CSV file that a platform exports.

Columns are found by their usual names, in any case: a name ("Full name", "Student", or "First name"
and "Last name"), numbers ("ID number", "SID", "SIS User ID", Moodle's "Identifier", "Username") and
an e-mail address. Moodle's grading worksheet and Canvas's gradebook are such files; both take the
file back with the points in it, which `filled` writes.
"""

import csv
import io
import re
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from minitransformer.data.files import LARGEST_JSON, InputError, read_file
from minitransformer.grading.submissions import NOTHING, Submission, as_students

NAME = ("full name", "fullname", "name", "student name", "student")
FIRST = ("first name", "firstname", "given name", "preferred name")
LAST = ("last name", "lastname", "surname", "family name")
NUMBER = (
    "id number",
    "student id",
    "student number",
    "sid",
    "sis user id",
    "id",
    "identifier",
    "sis login id",
    "login",
    "login id",
    "username",
    "user name",
    "github username",
)
EMAIL = ("email address", "email", "e-mail address", "e-mail", "mail")
LARGEST = ("maximum grade", "points possible")


@dataclass(frozen=True)
class Person:
    """A line of the roster."""

    name: str
    number: str
    email: str
    known_as: frozenset[str]  # numbers, addresses and logins
    spellings: frozenset[str]  # of the name, whichever word comes first


@dataclass(frozen=True)
class Roster:
    columns: list[str]
    lines: list[dict[str, str]]
    people: dict[int, Person]  # by line: some lines are nobody's
    start: str = ""  # what stands before the columns: a byte order mark, Excel's "sep=;"
    delimiter: str = ","

    def students(self) -> dict[int, str]:
        """The name of each person's row."""
        names = [(one.name, one.number) for one in self.people.values()]
        return dict(zip(self.people, as_students(names), strict=True))

    def join(self, submissions: Sequence[Submission]) -> list[Submission]:
        """A submission for each person, of those who handed in nothing too, then the others'.

        They belong together by number, address or login; else by name, if only one has that name.
        """
        of: dict[int, list[Submission]] = {line: [] for line in self.people}
        strangers = []
        for one in submissions:
            line = self.find(one)
            if line is None:
                note = "is not in the roster: who is it?"
                strangers.append(replace(one, notes=(note, *one.notes)))
            else:
                of[line].append(one)
        students = self.students()
        joined = [_as_one(some, students[line], self.people[line]) for line, some in of.items()]
        taken = [(one.student, one.number) for one in joined]
        names = as_students([*taken, *((one.student, one.number) for one in strangers)])
        others = zip(strangers, names[len(taken) :], strict=True)
        return joined + [replace(one, student=name) for one, name in others]

    def find(self, one: Submission) -> int | None:
        """The line of the person whose submission it is; "ann.pdf", which is not read, is ann's."""
        line = self._find(one, one.student)
        return line if line is not None else self._find(one, Path(one.student).stem)

    def _find(self, one: Submission, name: str) -> int | None:
        keys = {_key(text) for text in (one.number, one.email, name)} - {""}
        surest = [line for line, person in self.people.items() if keys & person.known_as]
        if len(surest) != 1:
            names = spellings(name)
            among = surest or list(self.people)
            surest = [line for line in among if names & self.people[line].spellings]
        return surest[0] if len(surest) == 1 else None

    def filled(self, scores: Mapping[str, float], points: int, column: str) -> str:
        """The file as it was, with each student's points in `column`.

        Where it says how many points there are ("Maximum grade", "Points Possible"), they are
        scaled to that. A student without a score keeps what stands there.
        """
        self.check_column(column)
        most = self._most(column)
        lines = [dict(line) for line in self.lines]
        for number, student in self.students().items():
            if student in scores:
                largest = most.get(number, most.get(-1, str(points)))
                worth = scores[student] * float(largest.replace(",", ".")) / max(points, 1)
                mark = "," if "," in largest else "."
                lines[number][column] = f"{worth:g}".replace(".", mark)
        text = io.StringIO(newline="")
        text.write(self.start)
        writer = csv.DictWriter(text, self.columns, delimiter=self.delimiter)
        writer.writeheader()
        writer.writerows(lines)
        return text.getvalue()

    def check_column(self, column: str) -> None:
        """Raises InputError where there is none of this name."""
        if column not in self.columns:
            there = ", ".join(self.columns)
            raise InputError(f"the roster has no column {column!r}: there are {there}")

    def _most(self, column: str) -> dict[int, str]:
        """What full points are worth, as it is written, by line; -1 stands for all lines."""
        found = {}
        for number, line in enumerate(self.lines):
            if number in self.people:
                text = _first(line, LARGEST[:1])
            else:  # Canvas: a line of its own
                text = line[column] if "points possible" in line[self.columns[0]].lower() else ""
            if re.fullmatch(r"\d+([.,]\d+)?", text := text.strip()):
                found[number if number in self.people else -1] = text
        return found


def read_roster(path: Path) -> Roster:
    """Raises InputError where it is no CSV file in UTF-8 with names or numbers of students."""
    data = read_file(path, LARGEST_JSON)
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        save = 'save the roster as CSV in UTF-8 (in Excel: "CSV UTF-8")'
        raise InputError(f"{path}, line {line}: is not text in UTF-8: {save}") from None
    start = re.match(r"\ufeff?[\r\n ]*(?:sep=(.)[\r\n]*)?", text, re.IGNORECASE)
    assert start is not None  # it matches nothing, too
    text = text[start.end() :]
    head = text.partition("\n")[0].strip()
    delimiter = start[1] or max(",;\t", key=head.count)
    reader = csv.DictReader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    try:
        columns = list(reader.fieldnames or [])
        lines = [{name: line.get(name) or "" for name in columns} for line in reader]
    except csv.Error as error:
        line = start[0].count("\n") + reader.line_num + 1  # of those that could be read
        closed = "are all quotation marks closed?"
        raise InputError(f"{path}, line {line}: is not CSV: {error}; {closed}") from None
    people = {number: person for number, line in enumerate(lines) if (person := _person(line))}
    if not people:
        expected = "expected a line of columns (Full name, ID number, Email address), then people"
        raise InputError(f"{path}: names no students: {expected}; it begins with {head[:80]!r}")
    return Roster(columns, lines, people, start[0], delimiter)


def _person(line: dict[str, str]) -> Person | None:
    """None for a line that is nobody's: a blank one, Canvas's points and its test student."""
    name = _first(line, NAME) or " ".join(filter(None, (_first(line, FIRST), _first(line, LAST))))
    number, email = _first(line, NUMBER), _first(line, EMAIL)
    who = name or number or email
    if not who or who.lower() in ("points possible", "student, test", "test student"):
        return None
    numbers = [text for column, text in line.items() if column.strip().lower() in NUMBER]
    known = {_key(text) for text in (*numbers, email, email.partition("@")[0])} - {""}
    return Person(who, number, email, frozenset(known), frozenset(spellings(name)))


def _first(line: dict[str, str], columns: Sequence[str]) -> str:
    """What stands in the first of these columns that the line has and fills."""
    there = {name.strip().lower(): text.strip() for name, text in line.items()}
    return next((there[name] for name in columns if there.get(name)), "")


def _key(text: str) -> str:
    """Moodle writes "Participant 123456" in its worksheet, and 123456 into names of folders."""
    return re.sub(r"^participant\s+", "", text.strip().casefold())


def spellings(name: str) -> set[str]:
    """A name in lower case, without accents, from each of its words on: Canvas writes hollowayjane
    for Jane Holloway."""
    plainly = unicodedata.normalize("NFKD", name).casefold()
    bare = "".join(letter for letter in plainly if not unicodedata.combining(letter))
    words = re.findall(r"[^\W_]+", bare)
    return {"".join(words[at:] + words[:at]) for at in range(len(words))}


def _as_one(some: Sequence[Submission], student: str, person: Person) -> Submission:
    """All that one person handed in."""
    names = " and ".join(one.student for one in some)
    notes = [f"{names} are taken for one student's"] if len(some) > 1 else []
    notes += [note for one in some for note in one.notes if not _is_on_spelling(note, some)]
    return Submission(
        student,
        tuple(file for one in some for file in one.files),
        tuple(notes) if some else (NOTHING,),
        person.number or next((one.number for one in some), ""),
        person.email or next((one.email for one in some), ""),
        any(one.late for one in some),
        max((one.handed_in for one in some), default=0.0),
    )


def _is_on_spelling(note: str, some: Sequence[Submission]) -> bool:
    """It asks whether two are one, which the roster has answered."""
    return any(note.startswith(f"{one.student} has a row, too") for one in some)
