"""A score is kept as long as what decided it is the same, can be explained, and is looked at."""

import ast
import csv
import json
from contextlib import nullcontext
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest

from minitransformer.cli import main
from minitransformer.data.files import InputError
from minitransformer.exercises import EXERCISES
from minitransformer.exercises.feedback import NOT_GRADED, NOT_LOADED
from minitransformer.grading import grade, versions
from minitransformer.grading.class_page import class_page, histogram
from minitransformer.grading.grade import Grader, grade_all
from minitransformer.grading.notice import answer_of, remarkable, statements_of
from minitransformer.grading.records import Graded, Record, read_record
from minitransformer.grading.review import review
from minitransformer.grading.scores import Scores, _harmless
from minitransformer.grading.submissions import File, Submission
from minitransformer.grading.versions import checks_digest, shared_digest

CHAPTERS = Path(versions.CHAPTERS)
NAMES = ["causal_mask", "combine_masks"]
MORE = '''

@causal_mask.check(points=2)
def it_has_four_axes(fn, draw):
    """The mask has four axes."""
'''


def of(name, source, notes=(), student="ann"):
    """A record of one exercise, answered by this source."""
    space: dict = {}
    exec(source, space)
    feedback = EXERCISES[name].run(space[name], 1)
    answer = answer_of(name, statements_of([("a", source)]))
    graded = {name: Graded.of(feedback, "checks", answer)}
    return Record(student, 1, "digest", list(notes), graded)


# ---- what decides a score ------------------------------------------------------------------------


def digests(chapter, edit):
    """What of a chapter decides each of its exercises, after an edit of its source."""
    path = CHAPTERS / f"{chapter}.py"
    source = edit(path.read_text(encoding="utf-8"))
    there = [name for name in EXERCISES if f"def {name}(" in source]
    return {name: decides(source, name) for name in there}


def decides(source, name):
    statements = [versions._read(one) for one in ast.parse(source).body]
    return versions._without_other_exercises(statements, name)


def changed(chapter, edit):
    before, after = digests(chapter, str), digests(chapter, edit)
    return {name for name in before if before[name] != after[name]}


@pytest.mark.parametrize(
    ("edit", "touched"),
    [
        (lambda source: source + MORE, {"causal_mask"}),
        (lambda source: source.replace("A causal mask", "A mask of the past"), {"causal_mask"}),
        (lambda source: source.replace("ones.tril()", "ones.tril(0)"), {"causal_mask"}),
        (lambda source: source + "\nLIMIT = 3\n", None),  # a helper may be anyone's
        (lambda source: "# a remark\n" + source + "\n# another\n", set()),
    ],
)
def test_a_change_of_one_exercise_touches_no_other(edit, touched):
    everyone = set(digests("causal", str))
    assert len(everyone) > 2
    assert changed("causal", edit) == (everyone if touched is None else touched)


def test_an_exercise_that_calls_another_changes_with_it():
    source = """
@exercise("One")
def causal_mask(n):
    return 1

@exercise("Two")
def combine_masks(n):
    return causal_mask(n)
"""
    before = decides(source, "combine_masks")
    after = decides(source.replace("1", "2"), "combine_masks")
    assert before != after
    alone = decides(source, "causal_mask")
    assert "combine_masks" not in "".join(alone)


def test_every_exercise_has_a_digest_of_its_own_and_all_share_the_rest(monkeypatch):
    checks_digest.cache_clear()
    found = {name: checks_digest(name) for name in EXERCISES}
    assert len(set(found.values())) == len(EXERCISES)
    assert len(shared_digest()) == 64
    monkeypatch.setattr(versions, "shared_digest", lambda: "another")
    checks_digest.cache_clear()
    assert not set(found.values()) & {checks_digest(name) for name in EXERCISES}
    checks_digest.cache_clear()


def test_what_all_share_is_the_package_without_its_chapters(monkeypatch, tmp_path):
    monkeypatch.setattr(versions, "PACKAGE", tmp_path)
    monkeypatch.setattr(versions, "CHAPTERS", tmp_path / "chapters")
    (tmp_path / "chapters").mkdir()
    found = []
    for path, source in (("a.py", "1"), ("chapters/b.py", "2"), ("a.py", "3")):
        (tmp_path / path).write_text(source)
        shared_digest.cache_clear()
        found.append(shared_digest())
    shared_digest.cache_clear()
    assert found[0] == found[1] != found[2]


def test_files_their_names_and_times_and_the_notes_are_what_was_handed_in(tmp_path):
    for name in ("a.py", "b.py", "c.py"):
        (tmp_path / name).write_text("x = 2" if name == "c.py" else "x = 1")
    one = Submission("ann", (File(tmp_path / "a.py", 1.0),), ("a note",))
    others = [
        replace(one, files=(File(tmp_path / "a.py", 2.0),)),  # the newest answer counts
        replace(one, files=(File(tmp_path / "b.py", 1.0),)),
        replace(one, files=(File(tmp_path / "c.py", 1.0),)),
        replace(one, files=()),
        replace(one, notes=()),
    ]
    digests = [versions.submission_digest(other) for other in (one, *others)]
    assert len(set(digests)) == len(digests)
    assert versions.submission_digest(replace(one, student="bob", number="7")) == digests[0]


def test_helpers_of_other_chapters_count():
    home = CHAPTERS / "museum.py"
    assert CHAPTERS / "attention.py" in versions._with_what_it_imports(home)
    assert CHAPTERS / "labels.py" not in versions._with_what_it_imports(home)


@pytest.fixture
def counted(monkeypatch):
    """Grading without a sandbox; `runs` is what it was asked for."""
    runs = []

    def grade_one(one, names, seed, trust=False, only=None):
        runs.append((one.student, list(names if only is None else only)))
        return [EXERCISES[name].not_run("It was not right.") for name in only], ["noted"]

    monkeypatch.setattr(grade, "grade_one", grade_one)
    monkeypatch.setattr(grade, "Sandbox", lambda *given: nullcontext())
    return runs


def test_what_holds_is_not_graded_again(counted, tmp_path, monkeypatch):
    (tmp_path / "work.py").write_text("x = 1")
    one = Submission("ann", (File(tmp_path / "work.py", 1.0),))
    grader = Grader(tmp_path / "out", NAMES, 1, trust=True)
    grader.grade(one)
    grader.grade(one)
    assert counted == [("ann", NAMES)]
    results = tmp_path / "out" / "students" / "ann" / "results.json"
    before = results.stat().st_mtime_ns
    grader.grade(one)
    assert results.stat().st_mtime_ns == before

    real = checks_digest
    monkeypatch.setattr(grade, "checks_digest", lambda n: real(n) + "x" * (n == NAMES[1]))
    told = []
    assert grade._outstanding([one], grader, told.append) == [one]
    (said,) = told
    assert said.startswith("combine_masks is graded anew for 1: its checks changed")
    grader.grade(one)
    assert counted[1:] == [("ann", [NAMES[1]])]  # the other exercise as it was

    (tmp_path / "work.py").write_text("x = 2")
    replace(grader, seed=2).grade(one)
    grader.grade(Submission("ann", (File(tmp_path / "work.py", 2.0),)))
    assert counted[2:] == [("ann", NAMES)] * 2


def test_scores_of_other_exercises_stay_and_do_not_show(counted, tmp_path):
    one = Submission("ann", ())
    for names in (NAMES[:1], NAMES[1:], NAMES):
        grader = Grader(tmp_path, names, 1, trust=True)
        if grade._outstanding([one], grader, print):
            grader.grade(one)
        tests = json.loads((tmp_path / "students" / "ann" / "results.json").read_text())["tests"]
        assert list(dict.fromkeys(test["name"].partition(":")[0] for test in tests)) == names
    assert [run[1] for run in counted] == [NAMES[:1], NAMES[1:]]


@pytest.mark.parametrize("content", ["", "{}", "[]", '{"student": 1}', '{"exercises": {"a": {}}}'])
def test_a_damaged_record_is_graded_again(content, counted, tmp_path):
    grader = Grader(tmp_path, NAMES, 1, trust=True)
    grader.grade(Submission("ann", ()))
    (tmp_path / "students" / "ann" / "record.json").write_text(content)
    assert read_record(tmp_path / "students" / "ann") is None
    grader.grade(Submission("ann", ()))
    assert len(counted) == 2


def test_what_the_machine_kept_from_being_graded_is_tried_again(tmp_path):
    grader = Grader(tmp_path, NAMES, 1, trust=True)
    grader.give_up(Submission("ann", ()), "it was killed")
    assert not grader.kept(Submission("ann", ())).exercises


def test_what_could_not_be_graded_is_tried_again(counted, tmp_path, monkeypatch):
    grader = Grader(tmp_path, NAMES, 1, trust=True)
    why = {"causal_mask": NOT_GRADED, "combine_masks": NOT_LOADED}
    found = [EXERCISES[name].not_run(why[name]) for name in NAMES], []
    monkeypatch.setattr(grade, "grade_one", lambda *given: found)
    grader.grade(Submission("ann", ()))
    assert list(grader.kept(Submission("ann", ())).exercises) == ["combine_masks"]


# ---- what is kept --------------------------------------------------------------------------------


def test_a_mistake_is_said_once_where_the_first_check_fails():
    upside_down = (
        "def padding_mask(m):\n    return (m == 0)[:, None, :, None] & (m == 0)[:, None, None]"
    )
    (graded,) = of("padding_mask", upside_down).exercises.values()
    assert len(graded.mistake) > 20
    outputs = [test["output"] for test in graded.tests]
    assert [graded.mistake in output for output in outputs] == [True] + [False] * (len(outputs) - 1)
    assert sum(test["score"] == 0 for test in graded.tests) > 1


def test_an_error_at_other_sizes_is_the_same_error():
    source = (
        "def causal_mask(queries, keys):\n    raise ValueError(f'no mask of {queries} × {keys}')"
    )
    (graded,) = of("causal_mask", source).exercises.values()
    assert graded.error.startswith("It raised ValueError: no mask of ")
    source = "def causal_mask(queries, keys):\n    raise [KeyError, ValueError][queries % 2]"
    (graded,) = of("causal_mask", source).exercises.values()
    assert graded.error == ""


# ---- explained -----------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_score_is_explained_by_the_same_inputs(tmp_path, capsys):
    (tmp_path / "in").mkdir()
    wrong = EXERCISES["causal_mask"].source.replace(".tril(num_keys - num_queries)", ".tril()")
    (tmp_path / "in" / "ann.py").write_text(wrong)
    verb = ["exercise", "grade", str(tmp_path / "in"), "--out", str(tmp_path / "out"), "--trust"]
    assert main([*verb, "--only", "causal_mask"]) == 0
    assert "names are read as --layout folders: 1 students" in capsys.readouterr().err
    before = sorted((tmp_path / "out").rglob("*"))
    assert main([*verb, "--explain", "ann", "causal_mask"]) == 0
    said = capsys.readouterr().out
    seed = json.loads((tmp_path / "out/students/ann/results.json").read_text())["extra_data"]
    assert said.startswith(f"ann, seed {seed['seed']}: as it was graded\n\ncausal_mask: 0 of 3")
    assert "The triangle starts at the first key." in said
    assert sorted((tmp_path / "out").rglob("*")) == before
    for student, exercise, error in (
        ("ana", "causal_mask", "no student 'ana': did you mean ann?"),
        ("ann", "casual_mask", "did you mean causal_mask?"),
    ):
        assert main([*verb, "--explain", student, exercise]) == 2
        assert error in capsys.readouterr().err


def test_nothing_is_explained_before_it_was_graded(tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "ann.py").write_text("")
    with pytest.raises(InputError, match="nothing was graded there yet"):
        grade.explain(tmp_path / "in", tmp_path / "out", NAMES, "ann", "causal_mask", trust=True)


# ---- what a person should look at ----------------------------------------------------------------

LONG = """
def softmax(scores):
    largest = scores.amax(dim=-1, keepdim=True)
    shifted = scores - largest
    powers = shifted.exp()
    total = powers.sum(dim=-1, keepdim=True)
    shares = powers / total
    if shares.isnan().any():
        shares = shares.nan_to_num(0.0)
    for row in range(shares.shape[0]):
        shares[row] = shares[row] * 1.0
    return shares
"""


def test_what_a_person_should_look_at_is_listed_and_nothing_else():
    wrong = EXERCISES["softmax"].source.replace(".amax(dim=-1, keepdim=True)", ".amax(dim=-1)")
    records = {
        "ann": of("softmax", EXERCISES["softmax"].source, ["new.py counts, the newest"]),
        "bob": of("softmax", wrong),
        "cyd": of("softmax", "def softmax(x):\n    return y"),
        "dan": of("softmax", LONG, ["uses threading: look at it"]),
        "eve": of("softmax", LONG.replace("powers", "p").replace("row", "i")),
        "fay": of("softmax", EXERCISES["softmax"].stub, ["is not in the roster: who is it?"]),
        "gus": of("softmax", EXERCISES["softmax"].source),
    }
    unread = {
        "jon": "j.py cannot be read: save it",
        "kim": "nothing was handed in that can be read",
        "lou": "not read: report.pdf (only .py files are)",
    }
    for student, note in unread.items():
        records[student] = of("softmax", EXERCISES["softmax"].stub, [note], student)
    for student, why in {"hal": NOT_LOADED, "ida": NOT_GRADED}.items():
        graded = Graded.of(EXERCISES["softmax"].not_run(why), "", "")
        records[student] = Record(student, 1, exercises={"softmax": graded})
    lines = review(records, ["softmax"])
    assert [line.partition(":")[0] for line in lines] == [
        "bob",
        "cyd",
        "dan",
        "fay",
        "jon",
        "kim",
        "hal",
        "ida",
        "dan and eve",
    ]
    assert lines[0].startswith("bob: softmax: no points for a mistake that has a name: Without")
    assert lines[1].startswith("cyd: softmax: all checks fail with one error: It raised NameError")
    assert lines[-1] == "dan and eve: the same but for names: softmax"


@pytest.mark.parametrize(
    ("change", "same"),
    [
        (("powers", "p"), True),
        (("    shifted", "    # a remark\n    shifted"), True),
        (("nan_to_num(0.0)", "nan_to_num(1.0)"), False),
        ((".amax(", ".max("), False),
        (("    powers = shifted.exp()\n", "    powers = 2.718 ** shifted\n"), False),
    ],
)
def test_answers_are_the_same_but_for_names(change, same):
    other = LONG.replace(*change)
    assert other != LONG
    found = [answer_of("softmax", ast.parse(source).body) for source in (LONG, other)]
    assert (found[0] == found[1]) == same
    assert all(found)


def test_short_answers_and_the_solution_are_nobodys_own():
    solution = EXERCISES["attention"].source
    for source in (solution, solution.replace("scores", "s"), "def attention(q):\n    return q"):
        assert answer_of("attention", ast.parse(source).body) == ""


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("import torch\nx = torch._C\ndef f(y):\n    return x", ["_C"]),
        ("import sys\ndef f(x):\n    return sys.modules", ["sys.modules"]),
        ("import sys\nsys.path.append('.')\ndef f(model):\n    return model.modules()", []),
        ("def f(x):\n    return getattr(x, 'a' + 'b')", ["getattr"]),
        ("def f(x):\n    return getattr(x, 'shape')", []),
        ("import scipy.special as s\ndef f(x):\n    return s.softmax(x)", ["scipy"]),
        ("import scipy\nimport sklearn\ndef f(x):\n    return x", []),
        ("def f(x):\n    from scipy.special import softmax\n    return softmax(x)", ["scipy"]),
        ("import torch\ng = torch.compile(f)\ndef f(x):\n    return x", []),
        ("def f(x):\n    return vars(x)", ["vars"]),
    ],
)
def test_ways_around_the_guard_are_noticed(source, words):
    assert remarkable(statements_of([("a", source)]), ["f"]) == words


# ---- what an instructor reads --------------------------------------------------------------------


class Checker(HTMLParser):
    """Every tag that is opened is closed; keeps the text and the links."""

    def __init__(self):
        super().__init__()
        self.open, self.text, self.links = [], "", []

    def handle_starttag(self, tag, attrs):
        self.links += [value for name, value in attrs if name == "href"]
        if tag not in ("meta", "br"):
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        pass

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data + "\n"


def test_the_page_of_the_class_has_everyone_and_no_script():
    wrong = EXERCISES["softmax"].source.replace(".amax(dim=-1, keepdim=True)", ".amax(dim=-1)")
    records = {
        "ann": of("softmax", EXERCISES["softmax"].source),
        "<b>ob": of("softmax", wrong, ["a & b"]),
    }
    rows = [
        {"student": name, "score": record.score(["softmax"]), "note": "; ".join(record.notes)}
        for name, record in records.items()
    ]
    rows.append({"student": "cyd", "score": "", "note": "not graded"})
    text = class_page(rows, records, ["softmax"])
    page = Checker()
    page.feed(text)
    assert page.open == []
    assert "<script" not in text
    assert "<b>ob" not in text
    assert page.links == ["students/ann/feedback.html", "students/%3Cb%3Eob/feedback.html"]
    assert "3 students, 2 graded." in page.text
    assert "1 of 2" in page.text
    assert "1 × Without keepdim=True" in page.text
    assert "To look at" in page.text
    assert "cyd" in page.text


def test_a_class_of_which_nobody_is_graded_has_a_page():
    page = class_page([{"student": "ann", "score": "", "note": "killed"}], {}, ["softmax"])
    assert "1 students, 0 graded." in page


def test_the_histogram_counts_everyone_once():
    text = histogram([0, 0, 1, 9, 10, 10], 10)
    assert text.count("<rect") == 10
    assert [int(x.partition("<")[0]) for x in text.split('">')[1:] if "</text>" in x] != []
    heights = [int(part.partition('"')[0]) for part in text.split('height="')[2:]]
    assert heights == [107, 53, 0, 0, 0, 0, 0, 0, 0, 160]
    assert histogram([0], 0).count("<rect") == 10  # an exercise may be worth nothing


def test_scores_have_the_columns_that_say_something(counted, tmp_path):
    late = Submission("bob", (File(tmp_path / "b.py", 1.0),), (), "7", "b@x.org", True, 90_000.0)
    found = [Submission("ann", (), ("handed in nothing",)), late]
    grader = Grader(tmp_path, NAMES, 1, trust=True)
    for one in found:
        grader.grade(one)
    rows = Scores(tmp_path, NAMES, found, due=0.0).rows()
    columns = ["student", "number", "email", "score", "points", "days_late", "note", *NAMES]
    assert list(rows[0]) == columns
    assert [row["days_late"] for row in rows] == ["", 2]
    assert [row["number"] for row in rows] == ["", "7"]
    unread = Submission("cyd", (), ("work.pdf is not read",), handed_in=90_000.0)
    grader.grade(unread)
    assert "days_late" not in Scores(tmp_path, NAMES, [unread], due=0.0).rows()[0]
    (row,) = Scores(tmp_path, NAMES, found[:1], due=None).rows()
    assert list(row) == ["student", "score", "points", "note", *NAMES]


def test_a_row_is_written_as_soon_as_a_student_is_done(counted, tmp_path):
    found = [Submission("ann", ()), Submission("bob", ())]
    grader = Grader(tmp_path, NAMES, 1, trust=True)
    scores = Scores(tmp_path, NAMES, found, None)
    scores.missing = {one.student: "not yet" for one in found}
    grader.grade(found[1])
    scores.add("bob", "")
    with open(tmp_path / "scores.csv", newline="") as file:
        assert [(row["student"], row["score"]) for row in csv.DictReader(file)] == [
            ("ann", ""),
            ("bob", "0"),
        ]
    scores.add("ann", "InputError: no space left\non device")
    assert scores.rows()[0]["note"] == "InputError: no space left on device"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("=1+1", "'=1+1"),
        ("\t=1", "\t'=1"),
        ("ann;=cmd()", "ann;'=cmd()"),
        ("ann; @x", "ann; '@x"),
        ("a\t+1", "a\t'+1"),
        ("a - b, c=1", "a - b, c=1"),
        (-1, -1),
    ],
)
def test_no_cell_is_a_formula_wherever_a_spreadsheet_splits(text, shown):
    assert _harmless(text) == shown


def test_the_roster_gives_rows_and_takes_the_points(counted, tmp_path, capsys, monkeypatch):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "Ann Lee_12_assignsubmission_file_work.py").write_text("")
    (tmp_path / "roster.csv").write_text(
        "Identifier,Full name,Grade,Maximum Grade\nParticipant 12,Ann Lee,,\n"
        "Participant 13,Bob Ray,,\n"
    )
    monkeypatch.setattr(grade, "each", lambda todo, grader, jobs: _each(todo, grader))
    verb = ["exercise", "grade", str(tmp_path / "in"), "--out", str(tmp_path / "out"), "--trust"]
    verb += ["--only", *NAMES, "--roster", str(tmp_path / "roster.csv"), "--review"]
    assert main(verb) == 0
    out, errors = capsys.readouterr()
    assert "names are read as --layout moodle: 1 students handed in, 2 rows with" in errors
    assert "2 of 2 graded" in out
    assert "to look at:" in out
    grades = (tmp_path / "out" / "grades.csv").read_text().splitlines()
    assert grades[1:] == ["Participant 12,Ann Lee,0,", "Participant 13,Bob Ray,0,"]
    assert main([*verb, "--column", "Points"]) == 2
    assert "the roster has no column 'Points'" in capsys.readouterr().err
    assert main([*verb[:-3], "--column", "Points"]) == 2
    assert "add --roster CSV" in capsys.readouterr().err


def _each(todo, grader):
    for one in todo:
        grader.grade(one)
        yield one, ""


@pytest.mark.parametrize("time", ["2026-11-20", "2026-11-20T18:00"])
def test_a_day_means_its_end(time):
    from minitransformer.cli.exercise import _time

    end = _time("2026-11-20T23:59") + 60
    assert _time(time) == (end if len(time) == 10 else end - 6 * 3600)


def test_a_due_time_that_is_none_is_refused(tmp_path, capsys):
    with pytest.raises(SystemExit):
        main(["exercise", "grade", str(tmp_path), "--out", "out", "--due", "Friday"])
    assert "expected a time as 2026-11-20 or 2026-11-20T18:00" in capsys.readouterr().err


def test_interrupted_it_keeps_what_is_done(counted, tmp_path, monkeypatch):
    (tmp_path / "in").mkdir()
    for name in "ab":
        (tmp_path / "in" / f"{name}.py").write_text("x = 1")

    def interrupted(todo, grader, jobs):
        grader.grade(todo[0])
        yield todo[0], ""
        raise KeyboardInterrupt

    monkeypatch.setattr(grade, "each", interrupted)
    with pytest.raises(KeyboardInterrupt):
        grade_all(tmp_path / "in", tmp_path / "out", NAMES, trust=True)
    text = (tmp_path / "out" / "scores.csv").read_text()
    assert "a,0," in text
    assert "b,,9,not graded: the run was interrupted" in text
    assert "1 graded" in (tmp_path / "out" / "index.html").read_text()
