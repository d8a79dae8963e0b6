"""Grading other people's code: honest scores for everything, and no way around the work.

The attacks run in the sandbox only; where there is none they are skipped, and grading refuses.
"""

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
import torch
from attacks import ATTACKS
from conftest import wait_until

from minitransformer.cli import main
from minitransformer.data.files import InputError
from minitransformer.exercises import EXERCISES
from minitransformer.exercises.cells import load_cells
from minitransformer.exercises.exercise import Exercise
from minitransformer.grading import grade as grading_module
from minitransformer.grading import pipe, sandbox, submissions
from minitransformer.grading.grade import Grader, grade_all, grade_one
from minitransformer.grading.notice import borrowed_by, remarkable, statements_of
from minitransformer.grading.records import Graded
from minitransformer.grading.sandbox import Sandbox, Unsafe, isolation
from minitransformer.grading.submissions import File, Submission, code_of, plain, submissions_in

BWRAP = shutil.which("bwrap")
sandboxed = pytest.mark.skipif(BWRAP is None, reason="needs bwrap (Debian's bubblewrap)")
FEW = ["causal_mask", "softmax", "attention"]
SOLVED = "\n\n\n".join(EXERCISES[name].source for name in FEW)
SOFTMAX = EXERCISES["softmax"].points
POINTS = sum(EXERCISES[name].points for name in FEW)


def grade(source: str, names=FEW, suffix: str = ".py", seed: int = 7, tmp: Path | None = None):
    """Scores by exercise of a submission of this source."""
    feedback, errors = grade_one(
        Submission("student", (File(write(source, suffix, tmp)),)), names, seed
    )
    return {one.exercise.name: one for one in feedback}, errors


def write(source: str, suffix: str = ".py", tmp: Path | None = None) -> Path:
    path = tmp / f"work{suffix}"
    path.write_text(source, encoding="utf-8")
    return path


# ---- messages --------------------------------------------------------------------------------


def test_values_come_back_as_they_went():
    tensors: list[torch.Tensor] = []
    value = (
        1,
        2.5,
        None,
        "word",
        True,
        [torch.arange(3), (torch.tensor(float("nan")),)],
        torch.int64,
    )
    packed = json.loads(json.dumps(pipe.pack(value, tensors)))
    back = pipe.unpack(packed, tensors)
    assert back[:5] == value[:5]
    assert torch.equal(back[5][0], torch.arange(3))
    assert back[5][1][0].isnan()
    assert back[6] is torch.int64
    with pytest.raises(TypeError, match="a set cannot be handed on"):
        pipe.pack({1, 2}, [])
    with pytest.raises(ValueError, match="not a value"):
        pipe.unpack({"callable": 0}, [])


def test_only_what_is_wanted_of_a_submission_is_run():
    cells = [
        ("a", "import math\nprint('loud')\nraise SystemExit"),
        ("b", "%matplotlib inline\nSCALE = math.sqrt(4)\nJUNK = 1 / 0"),
        ("c", "def helper(x):\n    return x * SCALE\ndef wanted(x):\n    return helper(x)"),
        ("d", "def broken(:"),
    ]
    space, errors = load_cells(cells, ["wanted"])
    assert space["wanted"](3) == 6.0
    assert "JUNK" not in space
    assert len(errors) == 1
    assert errors[0].startswith("d, line 1")


# ---- the sandbox -----------------------------------------------------------------------------


@sandboxed
def test_solutions_earn_all_points_over_there(tmp_path):
    source = "\n\n\n".join(one.source for one in EXERCISES.values())
    found, errors = grade(source, list(EXERCISES), tmp=tmp_path)
    assert not errors
    for one in found.values():
        assert one.passed, str(one)


@sandboxed
def test_gradients_pass_through_the_pipe():
    with Sandbox([("cell", "def f(a, b): return (a * b).sum(), a.detach()")], ["f"]) as box:
        a = torch.randn(3, dtype=torch.float64, requires_grad=True)
        b = torch.randn(3, dtype=torch.float64, requires_grad=True)
        total, detached = box.function("f")(a, b)
        assert total.requires_grad
        assert not detached.requires_grad
        found = torch.autograd.grad(total, (a, b))
        assert torch.equal(found[0], b)
        assert torch.equal(found[1], a)
        assert torch.autograd.gradcheck(lambda x, y: box.function("f")(x, y)[0], (a, b))


@sandboxed
def test_arguments_that_were_changed_there_are_changed_here():
    with Sandbox([("cell", "def f(x):\n    x.add_(1)\n    return 0")], ["f"]) as box:
        x = torch.zeros(3)
        assert box.function("f")(x) == 0
        assert (x == 1).all()


@sandboxed
def test_our_functions_can_be_called_from_there():
    with Sandbox([("cell", "def f(g, x): return g(x) + 1")], ["f"]) as box:
        assert box.function("f")(lambda x: x * 10, torch.tensor(4)).item() == 41
        with pytest.raises(RuntimeError, match="ZeroDivisionError"):
            box.function("f")(lambda x: 1 // 0, torch.tensor(4))


QUICK = ("never ends", "reads the solution")  # the rest takes minutes
KINDS = Counter(attack.kind for attack in ATTACKS)
SAMPLE = [a for i, a in enumerate(ATTACKS) if i % 3 == 0 or KINDS[a.kind] == 1]  # for CI


@sandboxed
@pytest.mark.parametrize("attack", [a for a in ATTACKS if a.name in QUICK], ids=lambda a: a.name)
def test_an_attack_earns_nothing(attack, tmp_path, monkeypatch):
    attempt(attack, tmp_path, monkeypatch)


@pytest.mark.slow
@sandboxed
@pytest.mark.parametrize("attack", SAMPLE, ids=lambda a: a.name)
def test_an_attack_of_the_sample_earns_nothing_or_is_noticed(attack, tmp_path, monkeypatch):
    attempt(attack, tmp_path, monkeypatch)


@pytest.mark.slow
@sandboxed
@pytest.mark.parametrize("attack", [a for a in ATTACKS if a not in SAMPLE], ids=lambda a: a.name)
def test_any_other_attack_earns_nothing_or_is_noticed(attack, tmp_path, monkeypatch):
    attempt(attack, tmp_path, monkeypatch)


def attempt(attack, tmp_path, monkeypatch):
    """An attack beside honest functions: they keep their points, and nothing is left behind."""
    monkeypatch.setattr(grading_module, "SECONDS", 1.0)
    monkeypatch.setattr(sandbox, "WAITING", 20.0)
    before = set(os.listdir("/tmp"))
    source = SOLVED.replace(EXERCISES["softmax"].source, "") + "\n\n" + attack.source
    found, notes = grade(source, tmp=tmp_path)
    noticed = any(note.endswith("look at it") for note in notes)
    assert noticed if attack.verdict == "noticed" else found["softmax"].score == 0, notes
    assert found["causal_mask"].passed
    assert found["attention"].passed
    left = {name for name in os.listdir("/tmp") if name in ("left", "results.json")}
    assert not left - before
    assert not any("pwned" in name for name in os.listdir("/tmp"))
    assert not Path("/results.json").exists()


def test_the_attacks_are_many_and_each_would_earn_points_if_it_worked():
    assert len({attack.name for attack in ATTACKS}) == len(ATTACKS) >= 40
    assert {attack.verdict for attack in ATTACKS} == {"nothing", "noticed"}
    assert {attack.kind for attack in SAMPLE} == KINDS.keys()
    for attack in ATTACKS:
        assert "def softmax(scores):" in attack.source


@sandboxed
def test_there_is_no_network_and_no_home(tmp_path):
    (tmp_path / "secret.txt").write_text("a key")
    source = f"""
import os, socket
def softmax(scores):
    try:
        socket.create_connection(("192.0.2.1", 80), timeout=0.2)
        reached = "network"
    except OSError as error:
        reached = error.errno
    secrets = [p for p in ("{tmp_path}/secret.txt", "/home", "/etc/passwd") if os.path.exists(p)]
    raise RuntimeError(str(reached) + str(secrets) + str(sorted(os.environ)))
"""
    found, _ = grade(source, ["softmax"], tmp=tmp_path)
    said = " ".join(str(found["softmax"]).split())
    assert "RuntimeError: 101[]" in said  # network is unreachable
    for name in ("USER", "TOKEN", "KEY"):
        assert name not in said


def test_without_isolation_it_refuses(monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(Unsafe, match="install Debian's bubblewrap"):
        isolation()
    (tmp_path / "all").mkdir()
    (tmp_path / "all" / "ann.py").write_text(SOLVED)
    arguments = ["exercise", "grade", str(tmp_path / "all"), "--out", str(tmp_path / "out")]
    assert main(arguments) == 2
    assert "--trust" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_trusted_submissions_need_no_isolation(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    path = write(SOLVED, tmp=tmp_path)
    feedback, _ = grade_one(Submission("ann", (File(path),)), FEW, seed=1, trust=True)
    assert all(one.passed for one in feedback)


# ---- a folder of submissions -----------------------------------------------------------------


def notebook(*sources: str) -> str:
    cells = [{"cell_type": "code", "source": s.splitlines(keepends=True)} for s in sources]
    return json.dumps({"cells": [{"cell_type": "markdown", "source": "text"}, *cells]})


@pytest.fixture
def class_of_students(tmp_path):
    folder = tmp_path / "submissions"
    folder.mkdir()
    (folder / "ann.py").write_text(SOLVED)
    (folder / "bob.py").write_text(EXERCISES["softmax"].source)  # half finished
    (folder / "cyd.ipynb").write_text(
        notebook("%pip install torch", SOLVED, "check('softmax', softmax)", "1 / 0", "def (:")
    )
    (folder / "dan.py").write_text("\n\n".join(EXERCISES[name].stub for name in FEW))
    (folder / "eve.py").write_text("def softmax(scores:\n")
    (folder / "fay.ipynb").write_text("{ not a notebook")
    (folder / "=gus").mkdir()  # a folder, with a name that a spreadsheet would run
    (folder / "=gus" / "part1.py").write_text(EXERCISES["softmax"].source)
    (folder / "=gus" / "part2.py").write_text(EXERCISES["attention"].source)
    (folder / "hal").mkdir()  # handed in nothing
    (folder / "ivy.py").write_bytes(b"\xff\xfe\x00")
    (folder / ".hidden.py").write_text(SOLVED)
    (folder / "readme.txt").write_text("no submission")
    return folder


def read_csv(out: Path) -> list[dict[str, str]]:
    with open(out / "scores.csv", newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


EXPECTED = {"ann": POINTS, "bob": SOFTMAX, "cyd": POINTS, "dan": 0, "eve": 0, "fay": 0,
            "=gus": SOFTMAX + EXERCISES["attention"].points,
            "hal": 0, "ivy": 0}  # fmt: skip


@sandboxed
@pytest.mark.slow
def test_every_submission_gets_its_honest_score(class_of_students, tmp_path, capsys):
    out = tmp_path / "out"
    arguments = ["exercise", "grade", str(class_of_students), "--out", str(out), "--only", *FEW]
    assert main(arguments) == 0
    rows = read_csv(out)
    assert {row["student"].lstrip("'"): int(row["score"]) for row in rows} == EXPECTED
    assert not any(row["student"].startswith("=") for row in rows)
    notes = {row["student"]: row["note"] for row in rows}
    assert "eve.py, line 1" in notes["eve"]
    assert "fay.ipynb cannot be read" in notes["fay"]
    assert "ivy.py cannot be read" in notes["ivy"]
    for student, score in EXPECTED.items():
        results = json.loads((out / "students" / student / "results.json").read_text())
        assert results["score"] == score == sum(test["score"] for test in results["tests"])
        assert sum(test["max_score"] for test in results["tests"]) == POINTS
        page = (out / "students" / student / "feedback.html").read_text()
        assert f"{score} of {POINTS} points" in page
    assert "9 of 9 graded" in capsys.readouterr().out

    # A second run grades nobody again; one that changed is graded anew, with the same seed.
    stamps = {s: (out / "students" / s / "results.json").stat().st_mtime_ns for s in EXPECTED}
    (class_of_students / "bob.py").write_text(SOLVED)
    assert main(arguments) == 0
    after = {s: (out / "students" / s / "results.json").stat().st_mtime_ns for s in EXPECTED}
    assert [s for s in EXPECTED if after[s] != stamps[s]] == ["bob"]
    rows = {row["student"]: row for row in read_csv(out)}
    assert int(rows["bob"]["score"]) == POINTS


@pytest.mark.slow
@sandboxed
def test_students_have_inputs_of_their_own(class_of_students, tmp_path):
    out = tmp_path / "out"
    arguments = ["exercise", "grade", str(class_of_students), "--out", str(out), "--seed", "5"]
    assert main([*arguments, "--only", "softmax"]) == 0
    results = [json.loads(p.read_text()) for p in out.glob("students/*/results.json")]
    assert len({one["extra_data"]["seed"] for one in results}) == len(results)


def test_folders_that_hold_nothing_are_refused(tmp_path, capsys):
    for folder in (tmp_path, tmp_path / "nowhere"):
        assert main(["exercise", "grade", str(folder), "--out", str(tmp_path / "out")]) == 2
    said = capsys.readouterr().err
    assert "holds no submissions" in said
    assert "no such folder" in said


def test_cells_of_a_notebook_are_named(tmp_path):
    (tmp_path / "a.ipynb").write_text(notebook("x = 1", "y = 2"))
    (one,) = submissions_in(tmp_path)
    assert one.student == "a"
    assert code_of(one, FEW) == ([("a.ipynb cell 1", "x = 1"), ("a.ipynb cell 2", "y = 2")], [])


# ---- what is handed in -----------------------------------------------------------------------


def test_only_files_of_the_submission_itself_are_read(tmp_path):
    private = tmp_path / "private"
    private.mkdir()
    (private / "key.py").write_text("SECRET")
    (private / "solution.py").write_text(SOLVED)
    folder = tmp_path / "all"
    (folder / "dir" / "deep").mkdir(parents=True)
    (folder / "dir" / "deep" / "honest.py").write_text("x = 1")
    (folder / "dir" / "linked.py").symlink_to(private / "solution.py")
    (folder / "dir" / "more").symlink_to(private)
    os.mkfifo(folder / "dir" / "pipe.py")
    (folder / "dir" / "broken.ipynb").symlink_to(private / "nothing")
    (folder / "file.py").symlink_to(private / "key.py")
    (folder / "gone.py").symlink_to(private / "nothing")
    (folder / "link").symlink_to(private)
    os.mkfifo(folder / "pipe.py")
    found = {one.student: one for one in submissions_in(folder)}
    assert sorted(found) == ["dir", "file", "gone", "link", "pipe"]
    assert [path.name for one in found.values() for path in one.files] == ["honest.py"]
    for student, names in {
        "dir": ["broken.ipynb", "linked.py", "more", "pipe.py"],
        "file": ["file.py"],
        "gone": ["gone.py"],
        "link": ["link"],
        "pipe": ["pipe.py"],
    }.items():
        notes = found[student].notes
        assert [note.split()[0] for note in notes] == names
        assert all(note.endswith("not a file: it was not read") for note in notes)


def test_a_file_that_became_a_link_is_not_read(tmp_path):
    (tmp_path / "key.txt").write_text("SECRET")
    (tmp_path / "a.py").symlink_to(tmp_path / "key.txt")
    os.mkfifo(tmp_path / "b.py")
    files = File(tmp_path / "a.py"), File(tmp_path / "b.py")
    cells, notes = code_of(Submission("ann", files), FEW)
    assert cells == []
    assert [note.partition(" cannot be read")[0] for note in notes[:2]] == ["a.py", "b.py"]
    assert "SECRET" not in str(notes)


def test_a_submission_may_have_so_much_and_no_more(tmp_path, monkeypatch):
    monkeypatch.setattr(submissions, "LARGEST", 2**20)
    folder = tmp_path / "all" / "ann"
    folder.mkdir(parents=True)
    for name in "abc":
        (folder / f"{name}.py").write_text("#" * 400_000)
    (one,) = submissions_in(tmp_path / "all")
    cells, notes = code_of(one, FEW)
    assert [label for label, _ in cells] == ["a.py", "b.py"]
    assert notes == ["c.py cannot be read: a submission may have 1 MiB of code"]
    monkeypatch.setattr(submissions, "LARGEST_FILE", 2**18)
    assert "it has more than 0.25 MiB" in code_of(one, FEW)[1][0]


@pytest.mark.slow
@sandboxed
def test_links_earn_and_tell_nothing(tmp_path):
    (tmp_path / "key.txt").write_text("a private key")
    (tmp_path / "solved.py").write_text(SOLVED)
    folder = tmp_path / "all"
    folder.mkdir()
    (folder / "a.py").symlink_to(tmp_path / "solved.py")
    (folder / "b.py").symlink_to(tmp_path / "key.txt")
    os.mkfifo(folder / "c.py")
    rows = grade_all(folder, tmp_path / "out", ["softmax"], jobs=1)
    assert [row["score"] for row in rows] == [0, 0, 0]
    assert "a.py is a link" in rows[0]["note"]
    for path in (tmp_path / "out").rglob("*.*"):
        assert "private key" not in path.read_text()


@pytest.mark.slow
def test_names_that_are_no_text_are_cleaned_and_stay_different(tmp_path, capsys):
    folder = os.fsencode(tmp_path / "all")
    os.mkdir(folder)
    for name in (b"M\xfcller.py", b"M\xfdller.py", b"red\x1b[31m.py", b"a" * 250 + b".py"):
        with open(os.path.join(folder, name), "w") as file:
            file.write(EXERCISES["softmax"].source)
    out = tmp_path / "out"
    arguments = ["exercise", "grade", str(tmp_path / "all"), "--out", str(out), "--trust"]
    assert main([*arguments, "--only", "softmax", "--jobs", "1"]) == 0
    rows = {row["student"]: row["score"] for row in read_csv(out)}
    names = {"M\ufffdller", "M\ufffdller (2)", "red\ufffd[31m", "a" * 200}
    assert rows == dict.fromkeys(names, str(SOFTMAX))
    assert {path.name for path in (out / "students").iterdir()} == names
    assert "\x1b" not in capsys.readouterr().out


def test_dots_above_the_submissions_hide_nothing(tmp_path):
    folder = tmp_path / ".cache" / "all"
    (folder / "ann" / ".git").mkdir(parents=True)
    (folder / "ann" / "a.py").write_text("x = 1")
    (folder / "ann" / ".git" / "b.py").write_text("x = 1")
    (one,) = submissions_in(folder)
    assert [path.name for path in one.files] == ["a.py"]


def test_the_grades_do_not_lie_among_the_submissions(tmp_path):
    (tmp_path / "ann.py").write_text(SOLVED)
    for out in (tmp_path, tmp_path / "out", tmp_path / "ann" / "out"):
        with pytest.raises(InputError, match="lies among the submissions"):
            grade_all(tmp_path, out, ["softmax"], trust=True)
    assert [path.name for path in tmp_path.iterdir()] == ["ann.py"]


@pytest.mark.slow
def test_an_exercise_named_twice_counts_once(tmp_path):
    (tmp_path / "all").mkdir()
    (tmp_path / "all" / "ann.py").write_text(SOLVED)
    (row,) = grade_all(tmp_path / "all", tmp_path / "out", ["softmax", "softmax"], trust=True)
    assert (row["score"], row["points"]) == (SOFTMAX, SOFTMAX)


# ---- what can be told without running it -----------------------------------------------------

BORROWED = {
    "inside": "def softmax(s):\n    from minitransformer.exercises import EXERCISES\n"
    '    return EXERCISES["softmax"].solution(s)',
    "above": "import minitransformer.exercises as e\ndef helper(s):\n"
    '    return e.EXERCISES["softmax"].solution(s)\ndef softmax(s):\n    return helper(s)',
    "by assignment": "from minitransformer.exercises import find\n"
    'softmax = find("softmax").solution',
    "by its name": "import importlib\ndef softmax(s):\n"
    '    it = importlib.import_module("minitransformer.exercises")\n'
    '    return it.EXERCISES["softmax"].solution(s)',
}


@pytest.mark.parametrize("way", BORROWED)
@pytest.mark.slow
def test_what_is_borrowed_earns_nothing_though_trusted(way, tmp_path):
    source = EXERCISES["causal_mask"].source + "\n" + BORROWED[way]
    path = write(source, tmp=tmp_path)
    names = ["softmax", "causal_mask"]
    feedback, _ = grade_one(Submission("ann", (File(path),)), names, seed=1, trust=True)
    assert [one.score for one in feedback] == [0, EXERCISES["causal_mask"].points]
    assert "softmax is yours to write, but it uses" in str(feedback[0])


def test_a_notebook_that_imports_the_package_for_its_checks_borrows_nothing():
    source = (
        "from minitransformer.exercises import check\n" + SOLVED + '\ncheck("softmax", softmax)'
    )
    statements = statements_of([("a", source)])
    assert not any(borrowed_by(name, statements) for name in FEW)
    assert remarkable(statements, FEW) == []


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("from threading import Thread as T", ["threading"]),
        ("def f(x):\n    import concurrent.futures, gc", ["concurrent", "gc"]),
        ("def f(x):\n    return sys._getframe(1)", ["_getframe"]),
        ('def f(x):\n    return getattr(sys, "settrace")', ["settrace"]),
        ('def f(x):\n    return sys.modules["__main__"]', ["__main__", "sys.modules"]),
        ("f = eval('1')", ["eval"]),
        ("def f(model):\n    model.eval()", []),
        ('if __name__ == "__main__":\n    import gc', []),  # which is not run
        ("def broken(:", []),
    ],
)
def test_what_a_person_should_look_at_is_noticed(source, words):
    assert remarkable(statements_of([("a", source)]), ["f"]) == words


@sandboxed
@pytest.mark.slow
def test_what_a_person_should_look_at_stands_beside_the_score(tmp_path):
    (tmp_path / "all").mkdir()
    source = """
import torch, threading
def softmax(scores):
    found = []
    thread = threading.Thread(target=lambda: found.append(torch.softmax(scores, -1)))
    thread.start()
    thread.join()
    return found[0]
"""
    (tmp_path / "all" / "ann.py").write_text(source)
    out = tmp_path / "out"
    (row,) = grade_all(tmp_path / "all", out, ["softmax"])
    assert row["note"] == "uses threading: look at it"
    for name in ("students/ann/results.json", "students/ann/feedback.html", "scores.csv"):
        assert "uses threading: look at it" in (out / name).read_text()


# ---- whatever happens, a row for each --------------------------------------------------------


@pytest.mark.slow
def test_a_grader_that_is_killed_takes_nobody_with_it(tmp_path):
    folder = tmp_path / "all"
    folder.mkdir()
    kill = "import os, signal\ndef softmax(s):\n    os.kill(os.getppid(), signal.SIGKILL)"
    (folder / "a.py").write_text(EXERCISES["softmax"].source)
    (folder / "b.py").write_text(kill)
    once = f"""
import os
def softmax(scores):
    if not os.path.exists("{tmp_path}/killed"):
        open("{tmp_path}/killed", "w").close()
        os.kill(os.getppid(), 9)
    powers = (scores - scores.amax(dim=-1, keepdim=True)).exp()
    return powers / powers.sum(dim=-1, keepdim=True)
"""
    (folder / "c.py").write_text(once)
    rows = grade_all(folder, tmp_path / "out", ["softmax"], jobs=1, trust=True)
    assert {row["student"]: row["score"] for row in rows} == {"a": SOFTMAX, "b": 0, "c": SOFTMAX}
    assert [bool(row["note"]) for row in rows] == [False, True, False]
    assert rows[1]["note"] == "the process that graded it was killed, twice"
    # It may have been the machine: the next run tries it again, and only it.
    (folder / "b.py").write_text(EXERCISES["softmax"].source)
    stamp = (tmp_path / "out" / "students" / "a" / "results.json").stat().st_mtime_ns
    rows = grade_all(folder, tmp_path / "out", ["softmax"], jobs=1, trust=True)
    assert [row["score"] for row in rows] == [SOFTMAX] * 3
    assert (tmp_path / "out" / "students" / "a" / "results.json").stat().st_mtime_ns == stamp


@pytest.mark.slow
def test_an_exercise_that_cannot_be_graded_costs_no_other(tmp_path, monkeypatch):
    run = Exercise.run

    def fails_once(self, *arguments, **flags):
        if self.name == "softmax":
            raise MemoryError("too much")
        return run(self, *arguments, **flags)

    monkeypatch.setattr(Exercise, "run", fails_once)
    path = write(SOLVED, tmp=tmp_path)
    feedback, notes = grade_one(Submission("ann", (File(path),)), FEW, seed=1, trust=True)
    assert [one.passed for one in feedback] == [True, False, True]
    assert notes == ["softmax could not be graded: MemoryError: too much"]
    assert str(feedback[1]) == "softmax: could not be graded (0 of 6 points)"


def test_a_submission_that_cannot_be_graded_gets_a_row_all_the_same(tmp_path, monkeypatch):
    def fails(*_):
        raise RuntimeError("surprise")

    monkeypatch.setattr(grading_module, "grade_one", fails)
    grader = Grader(tmp_path, ["softmax"], seed=1, trust=True)
    grader.grade(Submission("ann", ()))
    results = json.loads((tmp_path / "students" / "ann" / "results.json").read_text())
    assert results["score"] == 0
    assert "it could not be graded: RuntimeError: surprise" in results["output"]


def test_what_cannot_be_shown_costs_no_points(monkeypatch):
    feedback = EXERCISES["softmax"].run(lambda scores: scores)

    def fails(self):
        raise RuntimeError("no picture of this")

    monkeypatch.setattr(type(feedback), "to_html", fails)
    assert "cannot be shown: RuntimeError" in Graded.of(feedback, "", "").html


@pytest.mark.slow
def test_control_characters_reach_no_terminal(tmp_path, capsys):
    folder, out = tmp_path / "all", tmp_path / "out"
    folder.mkdir()
    source = (
        'def softmax(s):\n    raise ValueError("\\x1b[2Jgone \\udcff \\u202e")\nY = softmax(0)\n'
    )
    (folder / "ann.py").write_text(source + "def causal_mask(a, b):\n    return Y\n")
    arguments = ["exercise", "grade", str(folder), "--out", str(out), "--trust", "--jobs", "1"]
    assert main([*arguments, "--only", "softmax", "causal_mask"]) == 0
    said = capsys.readouterr().out
    assert "ValueError: \ufffd[2Jgone " in said
    assert plain("a\x1b\x9b\udcff\u202eb\r\n\tc") == "a" + 4 * "\ufffd" + "b\ufffd\n\tc"
    for text in (said, *(path.read_text() for path in out.rglob("*.*") if path.is_file())):
        assert not set(text) & {"\x1b", "\udcff", "\u202e"}
        assert "\\u001b" not in text


@pytest.mark.parametrize(("source", "asked"), [("x = 1", True), ("softmax = max", False)])
def test_files_of_something_else_are_asked_about(source, asked, tmp_path):
    (tmp_path / "ann.py").write_text(source)
    (one,) = submissions_in(tmp_path)
    _, notes = grade_one(one, ["softmax"], 1, trust=True)
    right_file = "what was handed in defines none of the exercises: is it the right file?"
    assert notes == [right_file] * asked


def test_what_cannot_be_loaded_is_not_called_missing(tmp_path):
    path = write("def softmax(scores:\n", tmp=tmp_path)
    feedback, _ = grade_one(
        Submission("ann", (File(path),)), ["softmax", "attention"], 1, trust=True
    )
    assert str(feedback[0]) == "softmax: could not be loaded (0 of 6 points)"
    assert "not handed in" in str(feedback[1])


# ---- interrupted -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("trust", "number"),
    [
        pytest.param(False, signal.SIGINT, marks=sandboxed),
        (True, signal.SIGINT),
        (True, signal.SIGTERM),
    ],
)
@pytest.mark.slow
def test_ctrl_c_and_sigterm_stop_at_once_and_keep_what_is_done(trust, number, tmp_path):
    folder, out = tmp_path / "all", tmp_path / "out"
    folder.mkdir()
    endless = "def softmax(scores):\n    while True: pass\n"
    (folder / "ann.py").write_text(EXERCISES["softmax"].source)
    for name in ("bob", "eve"):
        (folder / f"{name}.py").write_text(endless)
    command = [sys.executable, "-m", "minitransformer", "exercise", "grade", str(folder)]
    command += ["--out", str(out), "--only", "softmax", "--jobs", "1", *["--trust"] * trust]
    done = out / "students" / "ann" / "results.json"
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    try:
        wait_until(done.exists)
        wait_until(lambda: len(children_of(process.pid)) > len(children_of(process.pid, False)))
        graders, everyone = children_of(process.pid, deep=False), children_of(process.pid)
        assert len(everyone) > len(graders) > 0
        for pid in graders:
            os.kill(pid, signal.SIGINT)  # which is not theirs to answer
        time.sleep(0.5)
        assert all(is_running(pid) for pid in graders)
        os.killpg(process.pid, number)  # as a terminal does
        with_error = process.communicate(timeout=600)[1]
    finally:
        process.kill()
        process.communicate()
    assert process.returncode == 130, with_error
    assert with_error.strip().endswith("minitransformer: interrupted")
    assert "Traceback" not in with_error
    wait_until(lambda: not [pid for pid in everyone if is_running(pid)])
    rows = {row["student"]: row for row in read_csv(out)}
    assert rows["ann"]["score"] == str(SOFTMAX)
    assert rows["bob"]["score"] == rows["eve"]["score"] == ""  # it waited for nobody
    assert rows["eve"]["note"] == "not graded: the run was interrupted"

    stamp = done.stat().st_mtime_ns
    for name in ("bob", "eve"):
        (folder / f"{name}.py").write_text(EXERCISES["softmax"].source)
    assert main(command[3:]) == 0
    assert [row["score"] for row in read_csv(out)] == [str(SOFTMAX)] * 3
    assert done.stat().st_mtime_ns == stamp


def children_of(pid: int, deep: bool = True) -> list[int]:
    """The processes that it started, and those that these started."""
    try:
        found = list(map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split()))
    except OSError:
        return []
    return found + [one for child in found if deep for one in children_of(child)]


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
