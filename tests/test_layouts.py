"""Names and lateness as platforms deliver them, and the roster: who has a row, and which."""

import csv
import io
import os
import time
from datetime import UTC, datetime

import pytest

from minitransformer.cli import main
from minitransformer.data.files import InputError
from minitransformer.exercises import EXERCISES
from minitransformer.grading.layouts import layout_of
from minitransformer.grading.roster import read_roster, spellings
from minitransformer.grading.submissions import (
    as_students,
    code_of,
    entries_of,
    submissions_in,
)

ANSWER = EXERCISES["causal_mask"].source
DUE = datetime(2026, 11, 20, 18, tzinfo=UTC).timestamp()
METADATA = """---
submission_567:
  :submitters:
  - :name: Jane Holloway
    :sid: '100'
    :email: jane@example.edu
  :created_at: 2026-11-20 17:59:59.353066000 Z
  :score: 0.0
  :history:
  - :id: 566
    :created_at: 2026-11-01 00:00:00.000000000 Z
    :name: Nobody
submission_568:
  :submitters:
  - :name: Ann Lee
    :sid: '101'
    :email: ann@example.edu
  - :name: Bob Ray
    :sid: '102'
    :email: bob@example.edu
  :created_at: 2026-11-20 18:00:01.000000000 Z
"""
FILES = {
    "folders": ["Jane Holloway.py", "ann/work.py", "bob/.git/config", "bob/work.py"],
    "moodle": [
        "Jane Holloway_123456_assignsubmission_file/work.py",
        "Ann Lee_123457_assignsubmission_file_/work.py",
        "Bob Ray_123458_assignsubmission_file_work.py",
        "Bob Ray_123458_assignsubmission_onlinetext.html",
        "Jane Holloway_99_assignsubmission_file/work.py",
    ],
    "canvas": [
        "hollowayjane_4321_98765_work.py",
        "hollowayjane_4321_98766_more-1.py",
        "leeann_LATE_4322_98767_work.py",
    ],
    "gradescope": ["submission_567/work.py", "submission_568/work.py"],
}
ROWS = {
    "folders": {"Jane Holloway": "", "ann": "", "bob": ""},
    "moodle": {
        "Jane Holloway": "123456",
        "Ann Lee": "123457",
        "Bob Ray": "123458",
        "Jane Holloway (99)": "99",
    },
    "canvas": {"hollowayjane": "4321", "leeann": "4322"},
    "gradescope": {"Jane Holloway": "100", "Ann Lee": "101", "Bob Ray": "102"},
}


@pytest.fixture
def handed_in(tmp_path):
    """A folder of submissions in one of the layouts."""

    def make(layout):
        folder = tmp_path / layout
        for name in FILES[layout]:
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(ANSWER if name.endswith(".py") else "")
            os.utime(path, (DUE + 90_000, DUE + 90_000))
        if layout == "gradescope":
            (folder / "submission_metadata.yml").write_text(METADATA)
        return folder

    return make


# ---- layouts -------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", FILES)
def test_a_platforms_names_are_found_by_themselves(layout, handed_in):
    folder = handed_in(layout)
    assert layout_of(folder, entries_of(folder)) == layout
    found = submissions_in(folder)
    assert {one.student: one.number for one in found} == ROWS[layout]
    for one in found:
        cells, _ = code_of(one, ["causal_mask"])
        assert "def causal_mask(" in "".join(source for _, source in cells)


def test_a_file_that_is_not_named_so_is_nobodys_and_told(handed_in):
    folder = handed_in("moodle")
    (folder / "extra.py").write_text(ANSWER)
    found = {one.student: one.notes for one in submissions_in(folder)}
    assert found["extra"] == ("extra.py is not named as moodle names it: whose is it?",)
    assert found["Jane Holloway"] == ()
    with pytest.raises(ValueError, match="expected a layout of folders, moodle, canvas, "):
        submissions_in(folder, "blackboard")


def test_what_a_group_handed_in_counts_for_each(handed_in):
    found = {one.student: one for one in submissions_in(handed_in("gradescope"))}
    assert found["Ann Lee"].notes == ("handed in together with Bob Ray",)
    assert found["Ann Lee"].files == found["Bob Ray"].files
    assert found["Bob Ray"].email == "bob@example.edu"


def test_who_has_no_name_in_gradescopes_list_has_the_folders(handed_in):
    folder = handed_in("gradescope")
    (folder / "submission_metadata.yml").write_text(METADATA.replace("Jane Holloway", ""))
    assert {one.student: one.number for one in submissions_in(folder)} == {
        "submission_567": "100",
        "Ann Lee": "101",
        "Bob Ray": "102",
    }


def test_gradescopes_times_are_utc_wherever_it_is_graded(handed_in, monkeypatch):
    monkeypatch.setenv("TZ", "Asia/Tokyo")
    time.tzset()
    try:
        found = {one.student: one for one in submissions_in(handed_in("gradescope"))}
        assert found["Jane Holloway"].days_late(DUE) == 0
        assert found["Jane Holloway"].days_late(DUE - 60) == 1
    finally:
        monkeypatch.undo()
        time.tzset()


@pytest.mark.parametrize(
    "names",
    [[("..", ""), (".", "")], [("../../etc", ""), ("/etc", "7")], [("", "1"), ("a/../../b", "")]],
)
def test_no_name_of_a_student_leads_to_another_folder(names, tmp_path):
    students = as_students(names)
    assert len(set(students)) == len(names)
    for student in students:
        assert (tmp_path / student).resolve().parent == tmp_path


@pytest.mark.parametrize("text", ["", "a: b", "submission_1:\n  :score: 1\n", "\0\xff"])
def test_a_list_of_gradescopes_that_names_nobody_is_refused(text, handed_in):
    folder = handed_in("gradescope")
    (folder / "submission_metadata.yml").write_text(text)
    with pytest.raises(InputError, match="names nobody who handed in"):
        submissions_in(folder)


def test_an_archive_of_all_submissions_is_to_be_unpacked(tmp_path):
    (tmp_path / "all.zip").write_bytes(b"PK")
    with pytest.raises(InputError, match="is a file: unpack it, and name the folder"):
        submissions_in(tmp_path / "all.zip")


# ---- days late -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("layout", "late", "without"),
    [
        ("folders", {"Jane Holloway": 2, "ann": 2, "bob": 2}, ""),
        ("canvas", {"hollowayjane": 2, "leeann": 2}, {"hollowayjane": "", "leeann": "late"}),
        ("gradescope", {"Jane Holloway": 0, "Ann Lee": 1, "Bob Ray": 1}, ""),
    ],
)
def test_days_late_by_the_platform_or_the_files_time(layout, late, without, handed_in):
    found = submissions_in(handed_in(layout))
    assert {one.student: one.days_late(DUE) for one in found} == late
    without = without or dict.fromkeys(late, "")
    assert {one.student: one.days_late(None) for one in found} == without


# ---- the roster ----------------------------------------------------------------------------------

ROSTERS = {
    "moodle": "Identifier,Full name,Email address,Status,Grade,Maximum Grade\r\n"
    "Participant 123456,Jane Holloway,jane@example.edu,,,9.00\r\n"
    "Participant 123457,Ann Lee,ann@example.edu,,,9.00\r\n"
    "Participant 123458,Bob Ray,bob@example.edu,,,9.00\r\n"
    "Participant 99,Jane Holloway,jane2@example.edu,,,9.00\r\n"
    "Participant 7,Zoé Xu,zoe@example.edu,,,9.00\r\n",
    "canvas": "\ufeffStudent,ID,SIS User ID,SIS Login ID,Section,Week 1 (55)\n"
    '    Points Possible,,,,,"9.00"\n'
    '"Holloway, Jane",4321,s1,jh,A,\n"Lee, Ann",4322,s2,al,A,\n"Xu, Zoé",4323,s3,zx,A,\n'
    '"Student, Test",4399,,,A,\n',
    "gradescope": "First Name;Last Name;SID;Email\nJane;Holloway;100;jane@example.edu\n"
    "Ann;Lee;;ANN@example.edu\nRobert;Ray;102;\nZoé;Xu;103;zoe@example.edu\n",
    "folders": "Username,Name\nJHolloway,Holloway Jane\nann,Ann Lee\nbob,Bob\nzoe,Zoé Xu\n",
}
JOINED = {
    "moodle": ["Jane Holloway", "Ann Lee", "Bob Ray", "Jane Holloway (Participant 99)", "Zoé Xu"],
    "canvas": ["Holloway, Jane", "Lee, Ann", "Xu, Zoé"],
    "gradescope": ["Jane Holloway", "Ann Lee", "Robert Ray", "Zoé Xu"],
    "folders": ["Holloway Jane", "Ann Lee", "Bob", "Zoé Xu"],
}


@pytest.mark.parametrize("layout", ROSTERS)
def test_everyone_in_the_roster_has_a_row_and_those_without_a_file_too(layout, handed_in, tmp_path):
    (tmp_path / "roster.csv").write_text(ROSTERS[layout], encoding="utf-8")
    roster = read_roster(tmp_path / "roster.csv")
    found = roster.join(submissions_in(handed_in(layout)))
    assert [one.student for one in found] == JOINED[layout]
    for one in found:
        missing = "Zoé" in one.student
        assert bool(one.files) != missing
        assert ("handed in nothing" in one.notes) == missing
        assert ("handed in nothing" in code_of(one, ["causal_mask"])[1]) == missing


def test_who_is_not_in_the_roster_keeps_a_row_with_a_question(handed_in, tmp_path):
    (tmp_path / "roster.csv").write_text("Name\nAnn\nAnn\nBob\n")
    found = read_roster(tmp_path / "roster.csv").join(submissions_in(handed_in("folders")))
    assert {one.student: one.notes for one in found} == {
        "Ann": ("handed in nothing",),
        "Ann (2)": ("handed in nothing",),
        "Bob": (),
        "Jane Holloway": ("is not in the roster: who is it?",),
        "ann": ("is not in the roster: who is it?",),  # one of two
    }


def test_of_two_who_share_an_address_the_name_decides(tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "Ann Lee_7_assignsubmission_file_a.py").write_text("")
    lines = "Name,ID number\nBob,7\nAnn Lee,7\nAnn Lee,9\n"
    (tmp_path / "roster.csv").write_text(lines)
    found = read_roster(tmp_path / "roster.csv").join(submissions_in(tmp_path / "in", "moodle"))
    assert [bool(one.files) for one in found] == [False, True, False]


def test_two_spellings_of_one_person_are_one_row(tmp_path):
    (tmp_path / "in").mkdir()
    for name in ("Ann Lee.py", "ann_lee.ipynb.txt", "lee ann.pdf"):
        (tmp_path / "in" / name).write_text("")
    (tmp_path / "roster.csv").write_text("Name\nAnn Lee\n")
    (one,) = read_roster(tmp_path / "roster.csv").join(submissions_in(tmp_path / "in"))
    assert one.notes[0] == "Ann Lee and ann_lee and lee ann.pdf are taken for one student's"
    assert not any("has a row, too" in note for note in one.notes)


@pytest.mark.parametrize(
    ("name", "other"),
    [("Jane Holloway", "hollowayjane"), ("Holloway, Jane", "Jane Holloway"), ("Zoé", "ZOE")],
)
def test_a_name_is_the_same_in_any_order_and_without_accents(name, other):
    assert spellings(name) & spellings(other)
    assert not spellings(name) & spellings("Ann Lee")


@pytest.mark.parametrize("text", ["", "a,b\n1,2\n", "Name\n\n \n", "Student\nPoints Possible\n"])
def test_a_roster_without_students_is_refused(text, tmp_path):
    (tmp_path / "roster.csv").write_text(text)
    with pytest.raises(InputError, match=r"roster\.csv: names no students: expected a line of"):
        read_roster(tmp_path / "roster.csv")


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("Name\nZoé\n".encode("cp1252"), "line 2: is not text in UTF-8: save the roster as CSV"),
        ("Name\nZoé\n".encode("utf-16"), "line 1: is not text in UTF-8: save the roster as CSV"),
        (b'Name\nAnn\n"Bob\nCyd\n', "line 3: is not CSV: unexpected end of data; are all"),
        (b'Name\nAnn\n"Bob"s\n', "line 3: is not CSV: ',' expected after '\"'; are all"),
        (b"Nom;Note\nAnn;\n", "names no students: .*; it begins with 'Nom;Note'"),
    ],
)
def test_a_roster_that_cannot_be_read_is_named_with_what_to_do(content, says, tmp_path):
    """Names that are read wrongly, or swallowed by a quotation mark, would be students without
    submissions."""
    (tmp_path / "roster.csv").write_bytes(content)
    with pytest.raises(InputError, match=rf"roster\.csv.*{says}"):
        read_roster(tmp_path / "roster.csv")


# ---- what platforms take back --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("layout", "column", "grades"),
    [
        ("moodle", "Grade", ["6", "", "", "", "0"]),
        ("canvas", "Week 1 (55)", ["9.00", "", "", "", ""]),
    ],
)
def test_the_roster_is_written_back_with_points_and_nothing_else_changed(
    layout, column, grades, tmp_path
):
    (tmp_path / "roster.csv").write_text(ROSTERS[layout], encoding="utf-8")
    roster = read_roster(tmp_path / "roster.csv")
    scores = {JOINED["moodle"][0]: 12, "Zoé Xu": 0}
    text = roster.filled(scores, 18, column)
    before = list(csv.reader(io.StringIO(ROSTERS[layout].removeprefix("\ufeff"))))
    after = list(csv.reader(io.StringIO(text.removeprefix("\ufeff"))))
    at = before[0].index(column)
    assert [line[at] for line in after[1:]] == grades
    assert [[*line[:at], *line[at + 1 :]] for line in after] == [
        [*line[:at], *line[at + 1 :]] for line in before
    ]
    with pytest.raises(InputError, match="has no column 'Week 2': there are"):
        roster.filled(scores, 18, "Week 2")


def test_canvas_says_in_a_line_of_its_own_what_full_points_are(tmp_path):
    (tmp_path / "roster.csv").write_text(ROSTERS["canvas"], encoding="utf-8")
    roster = read_roster(tmp_path / "roster.csv")
    lines = list(csv.reader(io.StringIO(roster.filled({"Lee, Ann": 12}, 18, "Week 1 (55)"))))
    assert [line[-1] for line in lines[1:]] == ["9.00", "", "6", "", ""]
    lines = list(csv.reader(io.StringIO(roster.filled({"Lee, Ann": 12}, 18, "Section"))))
    assert [line[4] for line in lines[1:]] == ["", "A", "12", "A", "A"]  # no maximum: as they are


@pytest.mark.parametrize("start", ["", "\ufeff", "sep=;\r\n", "\ufeffsep=;\r\n\r\n"])
def test_a_roster_of_europes_excel_is_written_back_as_it_is(start, tmp_path):
    text = f'{start}Name;Grade;Maximum Grade\r\nZoé Xu;{{}};9,00\r\n"Lee; Ann";;9,00\r\n'
    (tmp_path / "roster.csv").write_bytes(text.format("").encode())
    roster = read_roster(tmp_path / "roster.csv")
    assert list(roster.students().values()) == ["Zoé Xu", "Lee; Ann"]
    assert roster.filled({"Zoé Xu": 3}, 18, "Grade") == text.format("1,5")


def test_names_of_students_are_one_line():
    assert as_students([("new\nline", ""), (" a\tb ", ""), ("new line", "")]) == [
        "new line",
        "a b",
        "new line (2)",
    ]


def test_a_column_that_is_not_there_is_said_before_anything_is_graded(handed_in, tmp_path, capsys):
    (tmp_path / "roster.csv").write_text(ROSTERS["canvas"], encoding="utf-8")
    verb = ["exercise", "grade", str(handed_in("canvas")), "--out", str(tmp_path / "out")]
    roster = ["--roster", str(tmp_path / "roster.csv"), "--column", "Week 2"]
    assert main([*verb, *roster, "--only", "causal_mask", "--trust"]) == 2
    assert "has no column 'Week 2': there are Student, ID" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
