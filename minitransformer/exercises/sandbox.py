"""Somebody else's code, run where it can do no harm, and called as if it were here.

    with Sandbox(cells, wanted=["attention"]) as box:
        feedback = EXERCISES["attention"].run(box.function("attention"))

The submission runs in a process of its own, in `bwrap` (Debian's package bubblewrap): no network,
nothing to write to, none of the user's files, no minitransformer, limited memory and time. What is
asked and what is answered passes through a pipe as JSON and safetensors; inputs, solutions and
verdicts stay on this side. Gradients pass too, so every check works on a function over there.
"""

import builtins
import os
import resource
import select
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from minitransformer.checks.suite import OutOfTime
from minitransformer.exercises import worker
from minitransformer.exercises.exercise import FORBIDDEN

MEMORY = 3 * 2**30  # bytes of address space
FILES = 2**24  # bytes of one file
PROCESSES = 16  # at once; a worker that starts more is ended
LOADING = 30.0  # seconds that a submission's definitions may take, torch's import included
ANSWERING = 20.0  # seconds for one answer


class Unsafe(Exception):
    """There is no isolation on this machine."""


class Died(Exception):
    """The submission's process ended, or answered what is no answer."""


def isolation() -> list[str]:
    """The command that isolates what follows it. Raises Unsafe where there is none."""
    bwrap = shutil.which("bwrap")
    if bwrap is None:
        raise Unsafe(
            "submissions are run in bwrap, which is missing: install Debian's bubblewrap, or pass "
            "--trust to run them as they are, with all that you may do"
        )
    command = [bwrap, "--unshare-all", "--die-with-parent", "--new-session", "--cap-drop", "ALL"]
    command += ["--proc", "/proc", "--dev", "/dev", "--tmpfs", "/tmp", "--clearenv"]
    for name, value in {"PATH": "/usr/bin:/bin", "HOME": "/tmp", "OMP_NUM_THREADS": "1"}.items():
        command += ["--setenv", name, value]
    for folder in ("/usr", "/lib", "/lib64", "/bin"):
        if os.path.islink(folder):
            command += ["--symlink", os.readlink(folder), folder]
        elif os.path.isdir(folder):
            command += ["--ro-bind", folder, folder]
    for folder in dict.fromkeys((sys.base_prefix, sys.prefix)):  # Python, and torch
        command += ["--ro-bind", folder, folder]
    package = str(Path(__file__).parents[1])
    if any(package.startswith(prefix + "/") for prefix in ("/usr", sys.base_prefix, sys.prefix)):
        command += ["--tmpfs", package]  # the solutions
    command += ["--ro-bind", worker.__file__, "/tmp/worker.py", "--chdir", "/tmp"]
    return command


class Sandbox:
    """A process that has run a submission's definitions and answers calls of its functions.

    `cells` are (label, source) pairs. With `trust` there is no isolation but the process.
    Raises Unsafe without bwrap, Died where the process ends, OutOfTime where it hangs.
    """

    def __init__(
        self, cells: Sequence[tuple[str, str]], wanted: Sequence[str], trust: bool = False
    ):
        self.cells, self.wanted, self.trust = list(cells), list(wanted), trust
        self.errors: list[str] = []
        self.names: list[str] = []
        self.process: subprocess.Popen | None = None
        self.calls = 0

    def __enter__(self) -> "Sandbox":
        self.start()
        return self

    def __exit__(self, *_: Any) -> None:
        self.stop()

    def start(self) -> None:
        """Start the process, unless it is there."""
        if self.process is not None:
            return
        script = worker.__file__ if self.trust else "/tmp/worker.py"
        command = [] if self.trust else isolation()
        environment = {"PATH": "/usr/bin:/bin", "OMP_NUM_THREADS": "1"} if self.trust else None
        self.process = subprocess.Popen(
            [*command, sys.executable, "-I", "-B", script],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=environment,
            preexec_fn=_limits,
        )
        threading.Thread(target=_watch, args=(self.process,), daemon=True).start()
        request = {"request": "load", "cells": self.cells, "wanted": self.wanted}
        reply, _ = self.ask(request, [], {}, LOADING)
        self.names, self.errors = reply["names"], reply["errors"]

    def stop(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            for pipe in (self.process.stdin, self.process.stdout):
                with suppress(OSError):
                    pipe.close()  # type: ignore[union-attr]
            self.process = None

    def function(self, name: str, forbidden: tuple[str, ...] = FORBIDDEN) -> "RemoteFunction":
        """One of its functions; torch's operators with these parts in their names are refused."""
        return RemoteFunction(self, name, forbidden)

    def ask(
        self,
        request: dict,
        tensors: list[Tensor],
        callables: dict[int, Callable],
        seconds: float = ANSWERING,
    ) -> tuple[dict, list[Tensor]]:
        """One request and its reply; questions about `callables` are answered in between."""
        self.start()
        process, end = self.process, time.monotonic() + seconds
        try:
            worker.write_message(process.stdin, request, tensors)
            while True:
                reply, found = worker.read_message(_Timed(process.stdout, end))
                if "callback" not in reply:
                    break
                worker.write_message(process.stdin, *self.answer(reply, found, callables))
        except (OSError, EOFError, ValueError, KeyError, TypeError) as error:
            self.stop()
            raise Died(f"the process that runs it ended ({error})") from None
        except BaseException:  # the check's time is up, or the user's patience
            self.stop()
            raise
        if "error" in reply:
            raise _as_exception(str(reply["error"]), str(reply.get("said", "")))
        return reply, found

    def answer(
        self, question: dict, tensors: list[Tensor], callables: dict[int, Callable]
    ) -> tuple[dict, list[Tensor]]:
        """What one of our functions, which the submission calls, says."""
        arguments = worker.unpack(question["arguments"], tensors)
        try:
            answered: list[Tensor] = []
            value = callables[int(question["callback"])](*arguments)
            return {"answer": worker.pack(value, answered)}, answered
        except Exception as error:
            return {"error": f"{type(error).__name__}: {error}"}, []


class RemoteFunction:
    """A submission's function: tensors in, tensors out, and gradients back."""

    def __init__(self, box: Sandbox, name: str, forbidden: tuple[str, ...]):
        self.box, self.__name__, self.forbidden = box, name, forbidden
        self.largest = 0  # numbers in the largest tensor that the last call made

    def __call__(self, *arguments: Any, **flags: Any) -> Any:
        self.box.start()
        if self.__name__ not in self.box.names:
            said = "; ".join(self.box.errors)
            raise NameError(f"{self.__name__} is not defined" + (f" ({said})" if said else ""))
        tensors: list[Tensor] = []
        callables: list[Callable] = []
        packed = worker.pack(arguments, tensors, callables)
        call = {
            "request": "call",
            "name": self.__name__,
            "arguments": packed,
            "flags": {n: worker.pack(flag, tensors, callables) for n, flag in flags.items()},
            "grad": torch.is_grad_enabled(),
            "forbidden": self.forbidden,
            "callables": dict(enumerate(callables)),
        }
        keep: dict[str, Any] = {}
        outputs = _RemoteCall.apply(self, call, keep, *tensors)
        return worker.unpack(keep["answer"], list(outputs))


class _RemoteCall(torch.autograd.Function):
    """A call over there as one step of the graph here."""

    @staticmethod
    def forward(ctx, fn: RemoteFunction, call: dict, keep: dict, *tensors: Tensor):
        box = fn.box
        box.calls += 1
        ctx.box, ctx.id, ctx.process = box, box.calls, box.process
        wanted = [i for i, needed in enumerate(ctx.needs_input_grad[3:]) if needed]
        callables = call.pop("callables")
        request = {**call, "id": box.calls, "gradients": wanted}
        reply, found = box.ask(request, list(tensors), callables)
        try:
            count = int(reply["outputs"])
            for index, new in reply["changed"]:
                tensors[index].data.copy_(found[new])
            keep["answer"], fn.largest = reply["answer"], int(reply["largest"])
            flags = [bool(flag) for flag in reply["differentiable"]][:count]
        except (KeyError, IndexError, TypeError, ValueError, RuntimeError) as error:
            box.stop()
            raise Died(f"it answered what is no answer ({error})") from None
        outputs = tuple(found[:count])
        ctx.wanted, ctx.flags = wanted, flags
        ctx.shapes = [(tensor.shape, tensor.dtype) for tensor in tensors]
        ctx.mark_non_differentiable(
            *(x for x, flag in zip(outputs, flags, strict=True) if not flag)
        )
        return outputs

    @staticmethod
    def backward(ctx, *gradients: Tensor):
        if ctx.box.process is not ctx.process:
            raise Died("the process that computed this has ended")
        of = [i for i, flag in enumerate(ctx.flags) if flag]
        request = {"request": "backward", "id": ctx.id, "of": of}
        reply, found = ctx.box.ask(request, [gradients[i] for i in of], {})
        there = dict(zip(reply["there"], found, strict=False))
        answers: list[Tensor | None] = [None] * len(ctx.shapes)
        for number, index in enumerate(ctx.wanted):
            gradient = there.get(number)
            shape, dtype = ctx.shapes[index]
            if gradient is not None and (gradient.shape, gradient.dtype) == (shape, dtype):
                answers[index] = gradient
        return None, None, None, *answers


class _Timed:
    """A pipe whose reads end at a time."""

    def __init__(self, pipe: Any, end: float):
        self.pipe, self.end = pipe, end

    def readline(self, limit: int) -> bytes:
        line = b""
        while len(line) < limit and not line.endswith(b"\n"):
            line += self.read(1)
        return line

    def read(self, size: int) -> bytes:
        data = bytearray()
        while len(data) < size:
            ready, _, _ = select.select([self.pipe], [], [], max(self.end - time.monotonic(), 0))
            if not ready:
                raise OutOfTime
            part = os.read(self.pipe.fileno(), min(size - len(data), 2**20))
            if not part:
                raise EOFError("it is gone")
            data += part
        return bytes(data)


def _limits() -> None:
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    resource.setrlimit(resource.RLIMIT_FSIZE, (FILES, FILES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _watch(process: subprocess.Popen) -> None:
    """End a process that has too many children: limits on their number do not bind root."""
    while process.poll() is None:
        if len(_descendants(process.pid)) > PROCESSES:
            process.kill()
        time.sleep(0.1)


def _descendants(pid: int) -> list[int]:
    found, todo = [], [pid]
    while todo and len(found) <= PROCESSES:
        try:
            children = Path(f"/proc/{todo[0]}/task/{todo[0]}/children").read_text().split()
        except OSError:
            children = []
        found += [int(child) for child in children]
        todo = [*todo[1:], *map(int, children)]
    return found


def _as_exception(name: str, said: str) -> BaseException:
    """What it raised over there, as an Exception of the same name where that is a usual one."""
    kind = getattr(builtins, name, None)
    if isinstance(kind, type) and issubclass(kind, Exception):
        try:
            return kind(said)
        except TypeError:  # UnicodeDecodeError and its like want more than words
            pass
    return RuntimeError(f"{name}: {said}")
