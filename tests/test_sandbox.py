"""Strange and hostile submissions: what is run of them, what they can reach, what it costs others.

What needs isolation is skipped where there is no bwrap.
"""

import json
import os
import shutil
import struct
import time

import pytest
from conftest import wait_until

from minitransformer.checks.engine.time_limit import OutOfTime
from minitransformer.exercises import EXERCISES
from minitransformer.exercises.cells import load_cells, parse_cell, without_magics
from minitransformer.grading import sandbox, worker
from minitransformer.grading.grade import grade_all, grade_one
from minitransformer.grading.sandbox import Died, Sandbox, Unsafe
from minitransformer.grading.submissions import File, Submission
from minitransformer.grading.system_calls import (
    ALLOW,
    ARCH,
    ARGUMENT,
    AT_LEAST,
    CLONE,
    EQUAL,
    KILL,
    LOAD,
    MACHINES,
    NO_SUCH_CALL,
    NUMBER,
    REFUSED,
    RETURN,
    seccomp_filter,
)

sandboxed = pytest.mark.skipif(
    shutil.which("bwrap") is None, reason="needs bwrap (Debian's bubblewrap)"
)
FEW = ["causal_mask", "softmax", "attention"]


def called(source: str, *arguments):
    """What the function f of this source answers over there."""
    with Sandbox([("work.py", source)], ["f"]) as box:
        return box.function("f")(*arguments)


def loaded(*sources: str, wanted: str = "f", label: str = "cell {}"):
    """What f is, run here, and the errors."""
    cells = [(label.format(number), source) for number, source in enumerate(sources, 1)]
    space, errors = load_cells(cells, [wanted])
    return space, errors


# ---- what is run of a submission -------------------------------------------------------------


def test_magics_are_left_out_of_cells_and_nothing_else_is():
    brackets = "scale = (\n 7\n % 6\n)\n"
    words = 'text = """\n%d of\n!x\n"""\n'
    rest = "def f(): return scale, text, quote\n"
    more = "quote = 'it\\'s ('  # don't (\nlong = 7 \\\n% 4\n"
    magics = "%matplotlib inline\n!pip install \\\n  don't (\nif 1:\n    %time\n"
    wanted = (1, "\n%d of\n!x\n", "it's (")
    for source in (brackets + words + more + rest, magics + brackets + words + more + rest):
        space, errors = loaded(source)
        assert not errors
        assert space["f"]() == wanted
    numbers = [node.lineno for node in parse_cell("cell 1", "!a \\\n b\nx = 1\n%b\ny = 2")]
    assert numbers == [1, 3, 4, 5]
    assert len(parse_cell("work.py", "%pip install torch\nx = 1")) == 2  # as Colab saves it
    with pytest.raises(ValueError, match=r"work.py, line 2: invalid syntax"):
        parse_cell("work.py", "%pip install torch\nx = = 1")


def test_a_cell_of_magics_only_is_read_in_linear_time():
    start = time.process_time()
    assert len(parse_cell("cell 1", "%a ('\n" * 20_000)) == 20_000
    for line in (
        " " * 50_000,
        "a, " * 50_000,
        "\n" * 50_000,
        "a.b" * 50_000 + "=",
        "\\'" * 50_000,
        "'\\'" * 50_000,
        "(\n%" * 50_000,
        '"""' * 50_001,
    ):
        without_magics(line)
    assert time.process_time() - start < 10  # quadratic: minutes


def test_future_imports_hold_for_every_statement():
    space, errors = loaded(
        "from __future__ import annotations\nfrom typing import TYPE_CHECKING\n"
        "if TYPE_CHECKING:\n    from torch import Tensor\n",
        "def f(x: Tensor) -> Tensor:\n    y: Tensor = x\n    return y",
    )
    assert not errors
    assert space["f"](3) == 3


def test_a_dataclass_with_annotations_in_words_is_defined():
    space, errors = loaded(
        "from dataclasses import dataclass\n@dataclass\nclass Config:\n    size: 'int' = 3\n"
        "def f():\n    return Config().size"
    )
    assert not errors
    assert space["f"]() == 3


@pytest.mark.parametrize(
    "source",
    [
        "try:\n    import math as m\nexcept ImportError:\n    m = None\nX = m.floor(7.5)",
        "X = 0\nfor i in range(4):\n    X += i\nX += 1",
        "XS = []\nfor i in range(7): XS.append(i)\nX = len(XS)",
        "XS = {}\nXS.setdefault('a', []).append(7)\nX = XS['a'][0]",
        "XS = [0]\nXS[0] = 7\nX = XS[0]",
        "import random\nXS = [1, 2, 4]\nrandom.shuffle(XS)\nX = sum(XS)",
        "if True:\n    X = 7\nelse:\n    X = 8",
        "import contextlib\nwith contextlib.nullcontext(7) as X:\n    pass",
        "X = 0\ndef fill(n):\n    global X\n    X = n\nfill(7)",
        "XS = []\ndef fill(n):\n    XS.append(n)\nfor i in range(7):\n    fill(i)\nX = len(XS)",
        "while True:\n    X = 7\n    break",
        "X = Y = 7",
        "def g(): return g.value\ng.value = 7\nX = g()",
        "match 7:\n    case X:\n        pass",
    ],
)
def test_statements_that_make_what_a_function_needs_are_run(source):
    space, errors = loaded(source, "def f(): return X")
    assert not errors
    assert space["f"]() == 7


def test_statements_that_no_function_needs_are_not_run():
    space, errors = loaded(
        "x, model, TABLE = 5, [], {'a': 1}\n"
        "def f(x, loss=0):\n    for step in range(x): loss += TABLE['a']\n    return loss",
        "for step in range(10):\n    loss = 1 / 0\n    model.append(loss)",
        "print(f(x))\nassert f(3) == 4\nraise SystemExit",
        "def main():\n    x = TABLE.get('b')\n    train(x, TABLE)\n    raise SystemExit\nmain()",
        "if __name__ == '__main__':\n    x = 1 / 0\n    f(x)",
        "try:\n    check('f', f)\nfinally:\n    x = 1 / 0",
    )
    assert not errors
    assert space["f"](3) == 3
    assert not {"main", "loss", "step"} & set(space)


def test_what_cannot_be_run_is_told_with_its_line():
    _, errors = loaded("X = 1\nwith open('/nowhere') as X:\n    pass", "def f(): return X")
    assert errors == ["cell 1, line 2: FileNotFoundError: [Errno 2] No such file or directory: "
                      "'/nowhere'"]  # fmt: skip
    _, errors = loaded("x = 1\n\ny = '\0'")
    assert errors == ["cell 1, line 3: holds a null byte: save the file as UTF-8 text"]
    _, errors = loaded("def f():\n    break")
    assert errors == ["cell 1, line 1: SyntaxError: 'break' outside loop (<cell 1>, line 2)"]


# ---- what it can reach -----------------------------------------------------------------------


@sandboxed
def test_no_process_over_there_has_the_graders_environment(monkeypatch):
    monkeypatch.setenv("SECRET_TOKEN", "a-token")
    source = "def f(): return [open(f'/proc/{n}/environ').read() for n in (1, 'self')]"
    for environment in called(source):
        assert "PATH" in environment
        assert "TOKEN" not in environment
        assert "a-token" not in environment


@sandboxed
def test_what_files_hold_is_limited_everywhere():
    source = """
import os
def f():
    held = 0
    for folder in ("/tmp", "/dev/shm", "/dev", "/", "/usr", "/proc", "/memory"):
        for number in range(300):
            try:
                if folder == "/memory":
                    file = os.memfd_create("x")
                else:
                    file = os.open(f"{folder}/{number}", os.O_CREAT | os.O_WRONLY)
                held += os.write(file, bytes(2**21))
                if folder != "/memory":
                    os.close(file)
            except OSError:
                break
    return held
"""
    assert called(source) <= 2 * sandbox.FOLDERS + sandbox.OPEN * sandbox.FILES


@sandboxed
def test_all_processes_together_have_one_limit_of_memory(monkeypatch):
    monkeypatch.setattr(sandbox, "RESIDENT", 2**29)
    source = """
import os, time
def f():
    for _ in range(4):
        if os.fork() == 0:
            held = b"x" * (150 * 2**20)
            time.sleep(30)
    time.sleep(30)
"""
    with pytest.raises(Died, match=r"it held [\d,]+ MiB, of 512 at most"):
        called(source)


@sandboxed
@pytest.mark.slow
def test_threads_cannot_hide_their_processes(monkeypatch):
    monkeypatch.setattr(sandbox, "RESIDENT", 2**36)
    source = """
import os, threading, time
def start():
    for _ in range(20):
        if os.fork() == 0:
            time.sleep(30)
def f():
    thread = threading.Thread(target=start)
    thread.start()
    time.sleep(10)
"""
    with pytest.raises(Died, match=r"it had \d+ processes and \d+ threads"):
        called(source)


@sandboxed
def test_it_is_the_first_to_go_where_memory_is_short():
    assert called("def f(): return open('/proc/self/oom_score_adj').read()") == "1000\n"


@sandboxed
def test_no_process_can_raise_its_limit_of_memory(monkeypatch):
    monkeypatch.setattr(sandbox, "RESIDENT", 2**36)
    source = """
import resource, subprocess, sys
TRY = "bytearray(8 * 2**30)"
def f():
    raised = []
    for kind in (resource.RLIMIT_AS, resource.RLIMIT_DATA):
        soft, hard = resource.getrlimit(kind)
        for limits in ((hard + 2**30, hard + 2**30), (-1, -1), (hard, -1)):
            try: raised.append(resource.setrlimit(kind, limits))
            except (ValueError, OSError): pass
        assert 0 < soft == hard
    try: raised.append(len(eval(TRY)))
    except MemoryError: pass
    return raised, subprocess.run([sys.executable, "-c", TRY]).returncode
"""
    assert called(source) == ([], 1)


# ---- what it changes -------------------------------------------------------------------------


CHANGES = [  # of two lists; what these are then
    ("pass", [[1, 2], [], [3]], [4, 5.5]),
    ("rows[0].append(9)", [[1, 2, 9], [], [3]], [4, 5.5]),
    ("rows.sort(); numbers.clear()", [[], [1, 2], [3]], []),
    ("rows[1] += rows[0]; rows.pop()", [[1, 2], [1, 2]], [4, 5.5]),
    ("numbers[0] = 7; more[0] = 7", [[1, 2], [], [3]], [7, 5.5]),
    ("numbers[0] = 'a word'", [[1, 2], [], [3]], []),  # it cannot be handed on
    ("rows[0].append([rows])", [], [4, 5.5]),
]


def test_a_list_that_it_changes_is_changed_here_too():
    source = "def f(rows, x, numbers, which, more):\n"
    source += "".join(f"    if which == {i}: {does}\n" for i, (does, _, _) in enumerate(CHANGES))
    with trusted(source) as box:
        for which, (does, rows, numbers) in enumerate(CHANGES):
            given, more = ([[1, 2], [], [3]], [4, 5.5]), [6]
            box.function("f")(given[0], "between", given[1], which, more=more)
            assert given == (rows, numbers), does
            assert more == ([7] if "more" in does else [6])


@sandboxed
def test_a_submission_pays_for_a_list_that_it_changes(tmp_path):
    path = tmp_path / "work.py"
    source = EXERCISES["pack_rows"].source
    stays, changes = "        line += row\n", "        line += row\n        row.append(0)\n"
    for line, lost in ((stays, []), (changes, ["what_it_is_given_stays_as_it_was"])):
        path.write_text(source.replace(stays, line))
        (feedback,), _ = grade_one(Submission("student", (File(path),)), ["pack_rows"], seed=7)
        assert feedback.report.failed == lost
        assert feedback.score == feedback.points - len(lost)


# ---- what it answers -------------------------------------------------------------------------

FORGE = """
import os
def forge(message, data=b""):
    for fd in range(3, 10):
        try: os.write(fd, b"%d %d\\n" % (len(message), len(data)) + message + data)
        except OSError: pass
    return 0
"""


@sandboxed
@pytest.mark.slow
def test_an_answer_of_much_json_is_refused():
    with pytest.raises(ValueError, match="expected an answer of at most 1,048,576 bytes of JSON"):
        called("def f(): return [[]] * 500_000")
    source = FORGE + "def f(): return forge(b'[' + b'[],' * 1_000_000 + b'[]]')"
    with pytest.raises(Died, match="a message of impossible size"):
        called(source)
    header = b'{' + b",".join(
        b'"%d":{"dtype":"F32","shape":[0],"data_offsets":[0,0]}' % i for i in range(30_000)
    ) + b'}'  # fmt: skip
    source = (
        FORGE + f"def f(): return forge(b'{{}}', {len(header).to_bytes(8, 'little') + header!r})"
    )
    with pytest.raises(Died, match="impossible header"):
        called(source)


ANSWER = {
    "answer": {"value": 0},
    "outputs": 0,
    "differentiable": [],
    "changed": [],
    "changed_lists": [],
    "largest": 0,
}
STRANGE = {
    "no object": b"[]",
    "not JSON": b"{",
    "nested": b'{"answer": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    "half an answer": b'{"answer": {"value": 0}}',
    "no value": {**ANSWER, "answer": {"set": []}},
    "no dtype": {**ANSWER, "answer": {"dtype": "save"}},
    "not a number": {**ANSWER, "answer": {"value": {}}},
    "a tensor that is not there": {**ANSWER, "answer": {"tensor": 0}},
    "the last tensor": {**ANSWER, "answer": {"tensor": -1}},
    "nested values": {**ANSWER, "answer": {"list": [{"list": [{"tensor": 3}]}]}},
    "outputs that are not there": {**ANSWER, "outputs": 3, "differentiable": [True] * 3},
    "a change of what was not sent": {**ANSWER, "changed": [[0, 0]]},
    "a change of nothing": {**ANSWER, "changed": 3},
    "a change of no lists": {**ANSWER, "changed_lists": None},
    "a change of a list that was not sent": {**ANSWER, "changed_lists": [[2, [1]]]},
    "a change of the last list": {**ANSWER, "changed_lists": [[-1, [1]]]},
    "a list of words": {**ANSWER, "changed_lists": [[0, ["word"]]]},
    "a list of lists of lists": {**ANSWER, "changed_lists": [[0, [[[1]]]]]},
    "no list": {**ANSWER, "changed_lists": [[0, 3]]},
    "a number of words": {**ANSWER, "largest": "many"},
    "asks where there is nothing": {"callback": 0, "arguments": {"tuple": []}},
}


@sandboxed
@pytest.mark.slow
def test_what_is_no_answer_ends_the_process_and_nothing_else():
    forged = {
        name: message if isinstance(message, bytes) else json.dumps(message).encode()
        for name, message in STRANGE.items()
    }
    source = FORGE + f"FORGED = {forged!r}\ndef f(name): return forge(FORGED[name])"
    with Sandbox([("work.py", source)], ["f"]) as box:
        for name in [*STRANGE][:4]:
            with pytest.raises(Died, match="what is no answer"):
                box.function("f")(name)
    # The others are looked at in the same place, which needs no process.
    request = {"request": "call", "lists": 2}
    for name in [*STRANGE][4:]:
        with pytest.raises((ValueError, KeyError, TypeError)):
            sandbox._understood(request, STRANGE[name], [], [])
    sandbox._understood(request, {**ANSWER, "changed_lists": [[1, [[1, 2.5], []]]]}, [], [])


@sandboxed
@pytest.mark.slow
def test_our_functions_are_asked_so_often_and_no_longer(monkeypatch):
    monkeypatch.setattr(sandbox, "CALLBACKS", 5)
    with pytest.raises(Died, match="what is no answer"):
        called("def f(g): return [g(i) for i in range(9)]", lambda i: i)
    monkeypatch.setattr(sandbox, "CALLBACKS", 10**9)
    flood = """
def f(g):
    message = b'{"callback": 0, "arguments": {"tuple": []}}'
    while True:
        for fd in range(3, 6):
            try: os.write(fd, b"%d 0\\n" % len(message) + message)
            except OSError: pass
"""
    with Sandbox([("work.py", "import os" + flood)], ["f"]) as box:
        fn = box.function("f")
        monkeypatch.setattr(sandbox, "WAITING", 2.0)
        with pytest.raises(OutOfTime, match="2 seconds"):  # it never reads: its pipe is full
            fn(lambda: "x" * 200_000)


# ---- why it ended ----------------------------------------------------------------------------


def with_worker(monkeypatch, folder, first: str) -> None:
    """Have the worker do something more before it runs; for sandboxes that trust it."""
    script = folder / "worker.py"
    found = f"import sys\nsys.path.insert(0, {str(sandbox.PACKAGE.parent)!r})\n"
    found += "from minitransformer.grading import worker\n"
    script.write_text(f"{found}{first}\nworker.main()\n")
    monkeypatch.setattr(sandbox, "WORKER", str(script))


def trusted(source: str, wanted: str = "f") -> Sandbox:
    return Sandbox([("work.py", source)], [wanted], trust=True)


def test_memory_is_limited_on_top_of_what_the_library_took(monkeypatch, tmp_path):
    """A CUDA build of torch takes five times the address space of a CPU build."""
    with_worker(monkeypatch, tmp_path, "import mmap\nlibrary = mmap.mmap(-1, 2**33)")
    with trusted("def f(size): return len(bytearray(size))") as box:
        assert box.function("f")(2**29) == 2**29
        with pytest.raises(MemoryError, match="it asked for more than 2,560 MiB of memory"):
            box.function("f")(worker.MEMORY + 2**26)  # it freed a little since


@sandboxed
@pytest.mark.slow
def test_what_processes_share_is_held_once(monkeypatch):
    """Three forks that do nothing share what they held; with more on top they are ended."""
    monkeypatch.setattr(sandbox, "RESIDENT", 2**28)
    source = "import os, time\nheld = b'x' * 2**27\ndef f(size, seconds):\n"
    source += "    for _ in range(3):\n        if os.fork() == 0: time.sleep(60), os._exit(0)\n"
    source += "    more = b'x' * size\n    time.sleep(seconds)\n    return len(more)"
    assert called(source, 2**20, 1) == 2**20
    with pytest.raises(Died, match=r"it held [\d,]+ MiB, of 256 at most"):
        called(source, 2**28 + 2**26, 15)


def test_what_the_library_holds_makes_no_process_stale(monkeypatch, tmp_path):
    monkeypatch.setattr(sandbox, "RESIDENT", 2**28)
    with_worker(monkeypatch, tmp_path, "library = b'x' * 2**28")
    with trusted("def f(): return 1") as box:
        before = box.process
        time.sleep(0.2)  # the watcher has looked
        assert box.function("f")() == 1
        assert box.process is before


TOO_MUCH = "it asked for more than 2,560 MiB of memory"
RAISES = {
    "bytearray(2**36)": (MemoryError, TOO_MUCH),
    "torch.zeros(2**34)": (RuntimeError, TOO_MUCH),
    "open('/tmp/x', 'wb').write(bytes(2**21))": (OSError, "File too large"),
    "[open('/tmp/x', 'wb') for _ in range(200)]": (OSError, "Too many open files"),
}
ENDS = {
    "(held := b'x' * 2**31), time.sleep(5)": r"it held [\d,]+ MiB, of 1,024 at most",
    "[threading.Timer(9, f, '0').start() for _ in range(70)], time.sleep(5)": (
        r"it had \d processes and \d+ threads, of 16 and 64 at most"
    ),
    "os._exit(3)": "it exited with code 3",
    "os.kill(os.getpid(), signal.SIGSEGV)": "it crashed with SIGSEGV",
    "os.kill(os.getpid(), signal.SIGKILL)": "it was killed, as the system does .*",
    "signal.signal(signal.SIGXFSZ, 0), open('/tmp/x', 'wb').write(bytes(2**21))": (
        "it wrote more than 1,024 KiB to a file"
    ),
}
DOES = "import os, signal, threading, time, torch\ndef f(source): eval(source)"


@sandboxed
@pytest.mark.slow
def test_a_limit_that_raises_an_error_is_named():
    with Sandbox([("work.py", DOES)], ["f"]) as box:
        for source, (error, said) in RAISES.items():
            with pytest.raises(error, match=said):
                box.function("f")(source)
    with Sandbox([("work.py", "X = bytearray(2**36)\ndef f(): return X")], ["f"]) as box:
        assert box.errors == [f"work.py, line 1: MemoryError: {TOO_MUCH}"]


QUICK = ("os._exit(3)", "os.kill(os.getpid(), signal.SIGSEGV)")


@sandboxed
@pytest.mark.parametrize(
    "source", [pytest.param(one, marks=[pytest.mark.slow] * (one not in QUICK)) for one in ENDS]
)
def test_what_ends_a_process_is_named(source):
    with pytest.raises(Died, match=rf"the process that runs it ended \({ENDS[source]}\)"):
        called(DOES, source)


@pytest.mark.slow
def test_a_process_that_closes_its_pipe_is_ended():
    with trusted(DOES) as box, pytest.raises(Died, match="it closed its pipe"):
        box.function("f")("os.closerange(3, 9), time.sleep(30)")


@pytest.mark.slow
def test_a_process_without_the_memory_to_say_so_is_understood(monkeypatch, tmp_path):
    with_worker(monkeypatch, tmp_path, "worker.MEMORY = 2**26")
    source = "KEPT = []\ndef f():\n    while True: KEPT.append((KEPT,))"
    with trusted(source) as box, pytest.raises((Died, MemoryError), match="it asked for more"):
        box.function("f")()


@pytest.mark.parametrize("trust", [False, True])
def test_a_machine_on_which_no_process_starts_is_no_students_fault(trust, monkeypatch, tmp_path):
    (tmp_path / "all").mkdir()
    (tmp_path / "all" / "ann.py").write_text(EXERCISES["softmax"].source)
    if trust:
        with_worker(monkeypatch, tmp_path, "raise ImportError('libtorch.so: too large')")
        said = "does not start: ImportError: libtorch.so: too large"
    else:
        fake = tmp_path / "bin" / "bwrap"
        fake.parent.mkdir()
        fake.write_text(
            "#!/bin/sh\necho 'bwrap: No permissions to create new namespace' >&2\nexit 1"
        )
        fake.chmod(0o755)
        monkeypatch.setenv("PATH", str(fake.parent), prepend=os.pathsep)
        said = "does not start: bwrap: No permissions to create new namespace"
    with pytest.raises(Unsafe, match=said):
        grade_all(tmp_path / "all", tmp_path / "out", ["softmax"], trust=trust)
    assert not (tmp_path / "out").exists()


# ---- what it costs others --------------------------------------------------------------------

LATE = {
    "hangs": "while True: pass",
    "exits": "import os\n    os._exit(0)",
    "asks without end": 'while True: forge(b\'{"callback": 0, "arguments": {"tuple": []}}\')',
    "says hello": "forge(b'{\"hello\": 1}')",
    "nests": "forge(b'[' * 100_000 + b']' * 100_000)",
    "sends no tensors": "forge(b'{\"names\": []}', bytes(range(100)))",
    "says that it failed": 'forge(b\'{"error": "ValueError", "said": "\\\\\\\\ud800"}\')',
    "says other names": 'forge(b\'{"names": ["open"], "errors": []}\')',
}


@sandboxed
@pytest.mark.slow
@pytest.mark.parametrize("what", LATE)
def test_a_definition_takes_no_other_functions_points(what, tmp_path, monkeypatch):
    monkeypatch.setattr(sandbox, "LOADING", 3.0)
    path = tmp_path / "work.py"
    source = EXERCISES["causal_mask"].source
    source += f"\n\n{FORGE}\ndef slow():\n    {LATE[what]}\nTABLE = slow()\n"
    source += "def softmax(scores):\n    return TABLE\n"
    path.write_text(source)
    feedback, notes = grade_one(Submission("student", (File(path),)), FEW[:2], seed=7)
    assert [one.passed for one in feedback] == [True, False]
    assert feedback[1].score == 0
    assert "could not be graded" not in " ".join([str(feedback[1]), *notes])
    assert any("softmax" in note for note in notes)


@sandboxed
@pytest.mark.slow
def test_definitions_that_never_load_are_given_up(monkeypatch):
    monkeypatch.setattr(sandbox, "LOADING", 2.0)
    monkeypatch.setattr(sandbox, "LOST", 1)
    source = "while True: X = 1\n" + "".join(f"def {n}(): return X\n" for n in ("a", "b", "c"))
    with Sandbox([("work.py", source)], ["a", "b", "c", "other"]) as box:
        assert box.names == []
        assert box.errors[0].endswith("of a were run, it used 2 seconds of CPU time")
        assert box.errors[1] == "b was not loaded: 1 before it did not come to an end"
        assert len(box.errors) == 3
        with pytest.raises(NameError, match="a is not defined"):
            box.function("a")()


@sandboxed
def test_an_error_may_say_anything(tmp_path):
    path = tmp_path / "work.py"
    path.write_text(
        "class Odd(Exception):\n    def __str__(self): raise KeyError\n"
        "def causal_mask(*a): raise Odd\n"
        "def softmax(scores): raise ValueError('\\ud800 is odd')\n"
        "X = open('\\ud800')\n"
        "def attention(*a, **k): return X\n"
    )
    feedback, notes = grade_one(Submission("student", (File(path),)), FEW, seed=7)
    assert [one.score for one in feedback] == [0, 0, 0]
    assert r"\ud800 is odd" in str(feedback[1])
    assert "Odd: (it cannot be shown)" in str(feedback[0])
    for one in (*feedback, *notes):
        str(one).encode()
    assert all("could not be graded" not in str(one) for one in (*feedback, *notes))


@sandboxed
@pytest.mark.slow
def test_a_process_that_ended_is_started_again():
    source = "import os\ndef f(): os._exit(3)\ndef g(): return os.getpid()"
    with Sandbox([("work.py", source)], ["f", "g"]) as box:
        assert isinstance(box.function("g")(), int)
        with pytest.raises(Died, match="the process that runs it ended"):
            box.function("f")()
        assert isinstance(box.function("g")(), int)
        assert not box.errors


@sandboxed
@pytest.mark.parametrize(
    "leave",
    [
        "[1 for _ in range(4) if os.fork() == 0 and time.sleep(60)]",
        "HELD.append(b'x' * 2**29)",
        "threading.Thread(target=time.sleep, args=(60,)).start()",
        "threading.Timer(0.2, os._exit, (1,)).start()",
    ],
)
@pytest.mark.slow
def test_what_a_function_leaves_behind_costs_the_next_nothing(leave):
    source = f"import os, threading, time\nHELD = []\ndef f(): {leave}\ndef g(): return len(HELD)"
    with Sandbox([("work.py", source)], ["f", "g"]) as box:
        before = box.process
        box.function("f")()
        wait_until(box.is_stale)
        assert box.function("g")() == 0
        assert box.process is not before
        after = box.process
        assert box.function("g")() == 0
        assert box.process is after


# ---- system calls ----------------------------------------------------------------------------


def verdict(program: bytes, number: int, arch: int, argument: int = 0) -> int:
    """What the filter says of a system call: classic BPF, as the kernel runs it."""
    data = {NUMBER: number, ARCH: arch, ARGUMENT: argument}
    lines = [struct.unpack_from("<HBBI", program, at) for at in range(0, len(program), 8)]
    at = value = 0
    while True:
        code, yes, no, operand = lines[at]
        at += 1
        if code == LOAD:
            value = data[operand]
        elif code == RETURN:
            return operand
        else:
            holds = {EQUAL: value == operand, AT_LEAST: value >= operand}
            at += yes if holds.get(code, bool(value & operand)) else no


@pytest.mark.parametrize("machine", MACHINES)
def test_the_filter_refuses_what_it_names_and_nothing_else(machine):
    program, arch = seccomp_filter(machine), MACHINES[machine]
    column = list(MACHINES).index(machine)
    refused = {both[column] for both in REFUSED.values()}
    for number in range(500):
        wanted = NO_SUCH_CALL if number in refused else ALLOW
        assert verdict(program, number, arch) == wanted, number
    assert verdict(program, 0x40000000, arch) == NO_SUCH_CALL
    assert verdict(program, 0, arch + 1) == KILL
    clone = CLONE[column]
    assert verdict(program, clone, arch, 0x003D_0F00) == ALLOW  # a thread
    for new_namespace in (0x1000_0000, 0x0002_0000, 0x0800_0000):
        assert verdict(program, clone, arch, new_namespace | 17) == NO_SUCH_CALL
    assert seccomp_filter("toaster") == b""


@sandboxed
@pytest.mark.slow
def test_an_answer_has_so_many_bytes_and_no_more():
    with pytest.raises(ValueError, match="expected an answer of at most 32,505,856 bytes of ten"):
        called("import torch\ndef f(): return torch.zeros(1).expand(10**7)")
