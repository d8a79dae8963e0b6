"""Grading other people's code: honest scores for everything, and no way around the work.

The attacks run in the sandbox only; where there is none they are skipped, and grading refuses.
"""

import csv
import json
import os
import shutil
import time
from pathlib import Path

import pytest
import torch

from minitransformer.cli import main
from minitransformer.exercises import EXERCISES, worker
from minitransformer.exercises.grading import Submission, cells_of, grade_one, submissions_in
from minitransformer.exercises.sandbox import Sandbox, Unsafe, isolation

BWRAP = shutil.which("bwrap")
sandboxed = pytest.mark.skipif(BWRAP is None, reason="needs bwrap (Debian's bubblewrap)")
FEW = ["causal_mask", "softmax", "attention"]
SOLVED = "\n\n\n".join(EXERCISES[name].source for name in FEW)
POINTS = sum(EXERCISES[name].points for name in FEW)


def grade(source: str, names=FEW, suffix: str = ".py", seed: int = 7, tmp: Path | None = None):
    """Scores by exercise of a submission of this source."""
    feedback, errors = grade_one(Submission("student", (write(source, suffix, tmp),)), names, seed)
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
    packed = json.loads(json.dumps(worker.pack(value, tensors)))
    back = worker.unpack(packed, tensors)
    assert back[:5] == value[:5]
    assert torch.equal(back[5][0], torch.arange(3))
    assert back[5][1][0].isnan()
    assert back[6] is torch.int64
    with pytest.raises(TypeError, match="a set cannot be handed on"):
        worker.pack({1, 2}, [])
    with pytest.raises(ValueError, match="not a value"):
        worker.unpack({"callable": 0}, [])


def test_only_what_is_wanted_of_a_submission_is_run():
    cells = [
        ("a", "import math\nprint('loud')\nraise SystemExit"),
        ("b", "%matplotlib inline\nSCALE = math.sqrt(4)\nJUNK = 1 / 0"),
        ("c", "def helper(x):\n    return x * SCALE\ndef wanted(x):\n    return helper(x)"),
        ("d", "def broken(:"),
    ]
    space, errors = worker.load_cells(cells, ["wanted"])
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


ATTACKS = {
    "reads the solution": """
import glob
def softmax(scores):
    for path in glob.glob("/**/exercises/chapters/attention.py", recursive=True):
        space = {}
        exec(open(path).read(), space)
        return space["softmax"](scores)
    raise RuntimeError("nothing to steal")
""",
    "imports the package": """
from minitransformer.exercises import EXERCISES
def softmax(scores):
    return EXERCISES["softmax"](scores)
""",
    "exits with success": """
import os, sys
def softmax(scores):
    os._exit(0)
""",
    "calls sys.exit": """
import sys
def softmax(scores):
    sys.exit(0)
""",
    "equals everything": """
import torch
class Yes(torch.Tensor):
    def __eq__(self, other): return torch.ones(self.shape, dtype=torch.bool)
    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None): return True
def softmax(scores):
    return torch.zeros(scores.shape).as_subclass(Yes)
""",
    "returns an object that compares equal": """
class Yes:
    def __eq__(self, other): return True
    def __getattr__(self, name): return self
    def __call__(self, *a, **k): return self
def softmax(scores):
    return Yes()
""",
    "patches torch": """
import torch
torch.equal = torch.allclose = torch.isclose = lambda *a, **k: True
def softmax(scores):
    return scores
""",
    "patches unittest and pytest": """
import sys, types
for name in ("pytest", "unittest"):
    sys.modules[name] = types.ModuleType(name)
def softmax(scores):
    return scores
""",
    "prints a verdict": """
def softmax(scores):
    print('{"passed": true, "score": 100}')
    return None
""",
    "writes into the pipe": """
import os
def softmax(scores):
    for fd in range(3, 20):
        try: os.write(fd, b'25 0\\n{"answer": {"value": true}}')
        except OSError: pass
    return None
""",
    "writes results": """
import os
def softmax(scores):
    for folder in ("/", "/tmp", "/usr", os.getcwd(), os.path.expanduser("~")):
        try: open(folder + "/results.json", "w").write('{"score": 100}')
        except OSError: pass
    return None
""",
    "never ends": """
def softmax(scores):
    while True: pass
""",
    "never ends, and cannot be interrupted": """
import signal
for number in (signal.SIGALRM, signal.SIGTERM, signal.SIGINT):
    signal.signal(number, signal.SIG_IGN)
def softmax(scores):
    while True:
        try:
            while True: pass
        except BaseException: pass
""",
    "starts processes without end": """
import os
def softmax(scores):
    while True: os.fork()
""",
    "takes all memory": """
def softmax(scores):
    return bytearray(20 * 2**30)
""",
    "answers too much": """
import torch
def softmax(scores):
    return torch.zeros(2**29)
""",
    "nests too deep": """
def softmax(scores):
    x = []
    for _ in range(100000): x = [x]
    return x
""",
    "leaves a process behind": """
import os, time
def softmax(scores):
    if os.fork() == 0:
        os.setsid()
        time.sleep(600)
    return None
""",
    "calls torch's own": """
import torch
def softmax(scores):
    return getattr(torch, "soft" + "max")(scores, dim=-1)
""",
    "calls the operator itself": """
import torch
def softmax(scores):
    with torch._C.DisableTorchFunction():
        return torch.ops.aten._softmax.default(scores, -1, False)
""",
    "remembers answers": """
SEEN = []
def softmax(scores):
    SEEN.append(scores)
    return SEEN[0]
""",
    "a pickle that runs": """
import os
class Bomb:
    def __reduce__(self): return (os.system, ("touch /tmp/pwned-by-pickle",))
def softmax(scores):
    return Bomb()
""",
}


@sandboxed
@pytest.mark.parametrize("attack", ATTACKS)
def test_an_attack_earns_nothing_and_does_no_harm(attack, tmp_path, monkeypatch):
    import minitransformer.exercises.grading as grading

    monkeypatch.setattr(grading, "SECONDS", 1.0)
    before = set(os.listdir("/tmp"))
    # The honest exercises beside the attacked one keep their points.
    source = SOLVED.replace(EXERCISES["softmax"].source, "") + "\n\n" + ATTACKS[attack]
    found, _ = grade(source, tmp=tmp_path)
    assert found["softmax"].score == 0, str(found["softmax"])
    assert found["causal_mask"].passed
    assert found["attention"].passed
    assert not any("pwned" in name or name == "results.json" for name in os.listdir("/tmp"))
    assert not {name for name in os.listdir("/tmp") if name.endswith("results.json")} - before
    assert not Path("/results.json").exists()


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


def test_trusted_submissions_need_no_isolation(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    path = write(SOLVED, tmp=tmp_path)
    feedback, _ = grade_one(Submission("ann", (path,)), FEW, seed=1, trust=True)
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


EXPECTED = {"ann": POINTS, "bob": 5, "cyd": POINTS, "dan": 0, "eve": 0, "fay": 0, "=gus": 13,
            "hal": 0, "ivy": 0}  # fmt: skip


@sandboxed
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
    assert "9 graded" in capsys.readouterr().out

    # A second run grades nobody again; one that changed is graded anew, with the same seed.
    stamps = {s: (out / "students" / s / "results.json").stat().st_mtime_ns for s in EXPECTED}
    (class_of_students / "bob.py").write_text(SOLVED)
    start = time.perf_counter()
    assert main(arguments) == 0
    after = {s: (out / "students" / s / "results.json").stat().st_mtime_ns for s in EXPECTED}
    assert [s for s in EXPECTED if after[s] != stamps[s]] == ["bob"]
    assert time.perf_counter() - start < 60
    rows = {row["student"]: row for row in read_csv(out)}
    assert int(rows["bob"]["score"]) == POINTS


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
    assert "holds no .py or .ipynb files" in said
    assert "no such folder" in said


def test_cells_of_a_notebook_are_named(tmp_path):
    path = tmp_path / "a.ipynb"
    path.write_text(notebook("x = 1", "y = 2"))
    assert cells_of([path]) == ([("a.ipynb cell 1", "x = 1"), ("a.ipynb cell 2", "y = 2")], [])
    assert [one.student for one in submissions_in(tmp_path)] == ["a"]
