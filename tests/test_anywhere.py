"""What does not grade needs no POSIX: it starts where Windows' Python would, and prints there.

A program runs with what POSIX alone has taken away; the libraries that it uses have seen the
system as it is, for they bring versions of their own for Windows.
"""

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import minitransformer
from minitransformer.cli.main import main

pytest.importorskip("matplotlib")
PACKAGE = Path(minitransformer.__file__).parent
MODULES = [
    ".".join(["minitransformer", *file.relative_to(PACKAGE).with_suffix("").parts])
    for file in sorted(PACKAGE.rglob("*.py"))
    if file.relative_to(PACKAGE).parts[0] not in ("grading", "__main__.py")
    and file.stem not in ("__init__", "triton_attention")
]

WINDOWS = """
import os, shutil, signal, sys, subprocess, tempfile, multiprocessing.util
import torch, einops, numpy, safetensors.torch, tqdm, matplotlib.figure, pytest, pydoc_data.topics
from torch.utils._python_dispatch import TorchDispatchMode

class Mode(TorchDispatchMode):
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return func(*args, **(kwargs or {}))

with Mode():  # what torch imports when it is used
    torch.ones(2, requires_grad=True).sum().backward()
import filelock, torch.distributed.checkpoint.state_dict
filelock.FileLock = filelock.SoftFileLock  # Windows has a third one
torch.optim.AdamW([torch.ones(2, requires_grad=True)], fused=True).step()

shutil._use_fd_functions = False  # as it finds out for itself where it is imported

class NoPosix:
    def find_spec(self, name, path=None, target=None):
        if name in ("resource", "fcntl", "pwd", "grp", "termios"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, NoPosix())
for name in ("resource", "fcntl", "pwd", "grp", "termios"):
    sys.modules.pop(name, None)
for module, names in (
    (signal, "SIGALRM SIGPROF SIGKILL setitimer ITIMER_REAL ITIMER_PROF ITIMER_VIRTUAL "
             "pthread_sigmask"),
    (os, "fork setpgid killpg sysconf getuid geteuid getgid getppid mkfifo O_NOFOLLOW O_NONBLOCK"),
):
    for name in names.split():
        delattr(module, name)
"""

PROSE = "\n\n".join(f"Word {i} {'x ' * (i % 9)}" for i in range(40))
TINY = "--d-model 16 --num-heads 2 --num-layers 1 --steps 2 --batch-size 4"
SOLVED = """
def causal_mask(num_queries, num_keys):
    import torch
    return torch.ones(1, 1, num_queries, num_keys, dtype=torch.bool).tril(num_keys - num_queries)
"""
LEAKY = """
def attention(query, key, value, mask):
    return (query @ key.mT / query.shape[-1] ** 0.5).softmax(dim=-1) * mask @ value
"""


LINES = {  # exit status, and words of what is printed
    "--help": (0, "usage: minitransformer"),
    f"train --task lm --data prose.txt --out run {TINY}": (0, "run holds checkpoints, config.json"),
    "generate run Word --max-new-tokens 2": (0, "Word"),
    "show run Word": (0, "decoder_self_attention-1-Word.png"),
    "check leaky.py:attention": (1, "checks pass"),
    "exercise list": (0, "causal_mask"),
    "exercise start causal_mask": (0, "causal_mask.py: "),
    "exercise check causal_mask": (1, "not written yet"),
    "exercise check causal_mask --file mine.py": (0, "3 of 3 points"),
    "exercise check causal_mask --file notebook.ipynb": (0, "3 of 3 points"),
    "exercise grade . --out out": (2, "minitransformer: error: exercise grade needs Linux: "),
}

PROGRAM = f"""
import contextlib, importlib, io, json
from minitransformer.cli.main import main

done = {{}}
for line in {list(LINES)!r}:
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
        try:
            status = main(line.split())
        except SystemExit as stop:
            status = stop.code
    done[line] = status, printed.getvalue()
for name in {MODULES!r}:
    importlib.import_module(name)
print(json.dumps(done))
"""


@pytest.mark.slow
def test_all_but_grading_runs_without_posix(tmp_path):
    (tmp_path / "prose.txt").write_text(PROSE, encoding="utf-8")
    (tmp_path / "mine.py").write_text(SOLVED, encoding="utf-8")
    (tmp_path / "leaky.py").write_text(LEAKY, encoding="utf-8")
    notebook = {"cells": [{"cell_type": "code", "source": SOLVED}]}
    (tmp_path / "notebook.ipynb").write_text(json.dumps(notebook), encoding="utf-8")
    command = [sys.executable, "-c", WINDOWS + PROGRAM]
    run = subprocess.run(command, cwd=tmp_path, capture_output=True, encoding="utf-8")
    assert run.returncode == 0, run.stderr
    for line, (status, printed) in json.loads(run.stdout).items():
        assert status == LINES[line][0], (line, printed)
        assert LINES[line][1] in printed
        assert status != 2 or printed.count("\n") == 1


@pytest.mark.parametrize(("encoding", "signs"), [("utf-8", "✗"), ("cp1252", "x")])
def test_what_a_terminal_cannot_show_is_replaced(tmp_path, monkeypatch, encoding, signs):
    (tmp_path / "causal_mask.py").write_text(SOLVED.replace("num_keys - num_queries", "1"))
    monkeypatch.chdir(tmp_path)
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, encoding))
    assert main(["exercise", "check", "causal_mask"]) == 1
    print("✓ → 日")
    sys.stdout.flush()
    text = written.getvalue().decode(encoding)
    assert f"{signs} it_gives_what_is_wanted (core)" in text
    assert text.endswith("✓ → 日\n" if encoding == "utf-8" else "+ -> \\u65e5\n")


@pytest.mark.skipif(os.name != "posix", reason="asks the system how a file was opened")
def test_what_is_flushed_to_the_disk_can_be_written_to(tmp_path, monkeypatch):
    """Windows refuses to flush a file that was opened for reading."""
    import fcntl

    from minitransformer.data.files import write_atomically

    modes = []
    monkeypatch.setattr(
        os, "fsync", lambda fd: modes.append(fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_ACCMODE)
    )
    write_atomically(tmp_path / "file", b"text")
    assert modes == [os.O_WRONLY, os.O_RDONLY]  # the file, and on POSIX the folder
