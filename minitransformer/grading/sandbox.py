"""Somebody else's code, run where it can do no harm, and called as if it were here.

    with Sandbox(cells, wanted=["attention"]) as box:
        feedback = EXERCISES["attention"].run(box.function("attention"))

The submission runs in a process of its own, in `bwrap` (Debian's package bubblewrap): no network,
nothing to write to, none of the user's files, no minitransformer, limited memory and time. What is
asked and what is answered passes through a pipe as JSON and safetensors; inputs, solutions and
verdicts stay on this side. Gradients pass too, so every check works on a function over there.

Whatever comes through the pipe may be forged: `_understood` is where it is looked at.
"""

import builtins
import os
import re
import resource
import select
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from minitransformer.checks.engine.time_limit import OutOfTime
from minitransformer.exercises.cells import as_text, told
from minitransformer.exercises.exercise import FORBIDDEN
from minitransformer.grading import pipe, worker
from minitransformer.grading.system_calls import seccomp_filter

RESIDENT = 2**30  # bytes that all processes hold on top of torch; a worker whose do is ended
FOLDERS = 2**26  # bytes in all files of a folder that can be written to; they live in memory
FILES, OPEN = 2**20, 128  # bytes of one file, and how many may be open: some live in no folder
PROCESSES, THREADS = 16, 64  # at once; a worker that starts more is ended
STARTING = 120.0  # CPU seconds that torch's import may take
LOADING = 30.0  # CPU seconds that a submission's definitions may take
LOST = 3  # names whose definitions do not come to an end, before the rest is given up
ANSWERING = 20.0  # CPU seconds for one answer
WAITING = 240.0  # seconds by the clock for each: a sleep uses no CPU, a busy machine gives little
LOOK_EVERY = 0.2  # seconds, at both clocks
CALLBACKS = 10_000  # calls of our functions for one answer
PACKAGE = Path(__file__).parents[1]
WORKER = "grading/worker.py"
NEEDED = (WORKER, "grading/pipe.py", "exercises/cells.py", "exercises/forbidding.py")  # over there
ENVIRONMENT = {"PATH": "/usr/bin:/bin", "HOME": "/tmp", "OMP_NUM_THREADS": "1"}


class Unsafe(Exception):
    """Submissions cannot be run on this machine: there is no isolation, or no process starts."""


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
    command += ["--proc", "/proc", "--dev", "/dev"]
    for folder in ("/tmp", "/dev/shm"):
        command += ["--size", str(FOLDERS), "--tmpfs", folder]
    for folder in ("/usr", "/lib", "/lib64", "/bin"):
        if os.path.islink(folder):
            command += ["--symlink", os.readlink(folder), folder]
        elif os.path.isdir(folder):
            command += ["--ro-bind", folder, folder]
    for folder in dict.fromkeys((sys.base_prefix, sys.prefix)):  # Python, and torch
        command += ["--ro-bind", folder, folder]
    package = str(PACKAGE)
    if any(package.startswith(prefix + "/") for prefix in ("/usr", sys.base_prefix, sys.prefix)):
        command += ["--tmpfs", package, "--remount-ro", package]  # the solutions
    for file in NEEDED:
        command += ["--ro-bind", str(PACKAGE / file), f"/worker/{PACKAGE.name}/{file}"]
    command += ["--chdir", "/tmp"]
    return [*command, "--remount-ro", "/dev", "--remount-ro", "/"]


@contextmanager
def _filtered(command: list[str]) -> Iterator[tuple[list[str], list[int]]]:
    """The command with a filter of system calls, and the files that it needs open for that."""
    program = seccomp_filter() if command else b""
    if not program:
        yield command, []
        return
    source, sink = os.pipe()
    try:
        os.write(sink, program)  # some hundred bytes, for which a pipe has room
        os.close(sink)
        yield [*command, "--seccomp", str(source)], [source]
    finally:
        os.close(source)


class Sandbox:
    """A process that has run a submission's definitions and answers calls of its functions.

    `cells` are (label, source) pairs. With `trust` there is no isolation but the process.
    Where the definitions hang or end the process, those of each wanted name are run alone, then
    and for its calls: `names` are those that can be called, `errors` what is wrong with the rest.
    Raises Unsafe without bwrap.
    """

    def __init__(
        self, cells: Sequence[tuple[str, str]], wanted: Sequence[str], trust: bool = False
    ):
        self.cells, self.wanted, self.trust = list(cells), list(wanted), trust
        self.errors: list[str] = []
        self.names: list[str] = []
        self.process: subprocess.Popen | None = None
        self.alone = False  # one wanted name at a time
        self.loaded: list[str] = []  # wanted names whose definitions the process has run
        self.ended: list[str] = []  # why the process was ended
        self.library = 0  # bytes that the process held before it ran anything of the submission
        self.fresh = (0, 0, 0)  # what the process used when it was loaded, see `_used_by`
        self.calls = 0

    def __enter__(self) -> "Sandbox":
        self.start()
        return self

    def __exit__(self, *_: Any) -> None:
        self.stop()

    def start(self) -> None:
        """Start the process, unless it is there; each name has its own where that fails."""
        if self.alone or self.process is not None:
            return
        try:
            self.names, self.errors = self.load(self.wanted)
        except (Died, OutOfTime):
            self.alone = True
            self.load_each()

    def load(self, wanted: list[str]) -> tuple[list[str], list[str]]:
        """Start a process that runs the definitions of these: names and errors.

        Raises Died where it ends, OutOfTime where it hangs, Unsafe where it does not start.
        """
        self.begin()
        self.loaded, self.ended = wanted, []
        watched = (self.process, self.ended, self.library)
        threading.Thread(target=_watch, args=watched, daemon=True).start()
        request = {"request": "load", "cells": self.cells, "wanted": wanted}
        try:
            reply, _ = self.ask(request, [], {}, LOADING)
        except Died:
            raise
        except Exception as error:  # it says that it cannot
            self.stop()
            raise Died(f"it raised {type(error).__name__}: {error}") from None
        self.fresh = _used_by(self.process.pid)
        return reply["names"], reply["errors"]

    def begin(self) -> None:
        """Start a process that has run nothing of the submission yet."""
        self.stop()
        script = str(PACKAGE / WORKER) if self.trust else f"/worker/{PACKAGE.name}/{WORKER}"
        command = [] if self.trust else isolation()
        with _filtered(command) as (command, kept):
            self.process = subprocess.Popen(
                [*command, sys.executable, "-I", "-B", script],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,  # of bwrap, and of torch's import; the worker closes it
                bufsize=0,
                env=ENVIRONMENT,  # bwrap's own can be read over there too
                preexec_fn=_limits,
                pass_fds=kept,
            )
        try:
            pipe.read_message(_Timed(self.process, STARTING), pipe.ANSWER)
        except (Exception, OutOfTime) as error:
            self.process.kill()
            said = self.process.stderr.read(10_000).decode("utf-8", "replace").strip()
            self.stop()
            said = (said or told(error)).split("\n")[-1]
            raise Unsafe(f"the process that runs submissions does not start: {said}") from None
        except BaseException:  # the user's patience
            self.stop()
            raise
        self.library = _used_by(self.process.pid)[2]

    def load_each(self) -> None:
        """Find the names that can be called, by the definitions of one at a time."""
        self.names, self.errors = [], []
        lost = 0
        for name in self.wanted:
            if not any(name in source for _, source in self.cells):
                continue
            if lost == LOST:
                self.errors.append(
                    f"{name} was not loaded: {lost} before it did not come to an end"
                )
                continue
            try:
                names, errors = self.load([name])
            except (Died, OutOfTime) as error:
                lost += isinstance(error, OutOfTime)
                self.errors.append(f"while the definitions of {name} were run, {error}")
            else:
                self.names += names
                self.errors += [error for error in errors if error not in self.errors]
        self.stop()

    def ready(self, name: str) -> None:
        """Have a process that can call `name`. Raises Died and OutOfTime as `load` does."""
        wanted = [name] if self.alone else self.wanted
        if self.process is None or self.loaded != wanted:
            self.load(wanted)

    def is_stale(self) -> bool:
        """The process has ended, has others running, or holds much."""
        processes, threads, held = _used_by(self.process.pid)
        more = processes > self.fresh[0] or threads > self.fresh[1]
        more |= held - self.library > RESIDENT // 2
        return more or self.process.poll() is not None

    def stop(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            for pipe in (self.process.stdin, self.process.stdout, self.process.stderr):
                with suppress(OSError):
                    pipe.close()  # type: ignore[union-attr]
            self.process = None

    def function(
        self, name: str, forbidden: tuple[str, ...] = FORBIDDEN, seconds: float = ANSWERING
    ) -> "RemoteFunction":
        """One of its functions, of which an answer may take so many CPU seconds.

        Torch's operators with parts of their names in `forbidden` are refused.
        What a function that was called before left behind is ended with its process.
        """
        if name in self.names:
            if self.process is not None and self.is_stale():
                self.stop()
            with suppress(Died, OutOfTime):  # the call will meet it again
                self.ready(name)
        return RemoteFunction(self, name, forbidden, seconds)

    def ask(
        self,
        request: dict,
        tensors: list[Tensor],
        callables: dict[int, Callable],
        seconds: float,
    ) -> tuple[dict, list[Tensor]]:
        """One request and its reply; questions about `callables` are answered in between."""
        pipes = _Timed(self.process, seconds)
        try:
            pipe.write_message(pipes, request, tensors)
            reply, found = pipe.read_message(pipes, pipe.ANSWER)
            for _ in range(CALLBACKS):
                if "callback" not in reply:
                    break
                pipe.write_message(pipes, *self.answer(reply, found, callables))
                reply, found = pipe.read_message(pipes, pipe.ANSWER)
            if "error" not in reply:
                _understood(request, reply, found, tensors)
        except (OSError, EOFError):
            why = self.ended[0] if self.ended else _why_ended(self.process)
            self.stop()
            raise Died(f"the process that runs it ended ({why})") from None
        except Exception as error:
            self.stop()
            raise Died(f"it answered what is no answer ({told(error)})") from None
        except BaseException:  # the check's time is up, or the user's patience
            self.stop()
            raise
        if "error" in reply:
            raise _as_exception(*(as_text(reply.get(key, "")) for key in ("error", "said")))
        return reply, found

    def answer(
        self, question: dict, tensors: list[Tensor], callables: dict[int, Callable]
    ) -> tuple[dict, list[Tensor]]:
        """What one of our functions, which the submission calls, says."""
        number = question["callback"]
        _expect(_is_index(number, range(len(callables))), "the number of a function of ours")
        arguments = pipe.unpack(question["arguments"], tensors)
        _expect(isinstance(arguments, tuple), "a tuple of arguments")
        try:
            answered: list[Tensor] = []
            value = callables[number](*arguments)
            return {"answer": pipe.pack(value, answered)}, answered
        except Exception as error:
            return {"error": f"{type(error).__name__}: {error}"}, []


class RemoteFunction:
    """A submission's function: tensors in, tensors out, and gradients back."""

    def __init__(self, box: Sandbox, name: str, forbidden: tuple[str, ...], seconds: float):
        self.box, self.__name__, self.forbidden, self.seconds = box, name, forbidden, seconds
        self.largest = 0  # numbers in the largest tensor that the last call made

    def __call__(self, *arguments: Any, **flags: Any) -> Any:
        if self.__name__ not in self.box.names:
            said = "; ".join(self.box.errors)
            raise NameError(f"{self.__name__} is not defined" + (f" ({said})" if said else ""))
        self.box.ready(self.__name__)
        tensors: list[Tensor] = []
        callables: list[Callable] = []
        packed = pipe.pack(arguments, tensors, callables)
        lists = [one for one in (*arguments, *flags.values()) if pipe.is_plain(one)]
        call = {
            "request": "call",
            "name": self.__name__,
            "arguments": packed,
            "flags": {n: pipe.pack(flag, tensors, callables) for n, flag in flags.items()},
            "grad": torch.is_grad_enabled(),
            "forbidden": self.forbidden,
            "lists": len(lists),
            "callables": dict(enumerate(callables)),
        }
        keep: dict[str, Any] = {}
        outputs = _RemoteCall.apply(self, call, keep, *tensors)
        for index, new in keep["changed_lists"]:
            lists[index][:] = new
        return pipe.unpack(keep["answer"], list(outputs))


class _RemoteCall(torch.autograd.Function):
    """A call over there as one step of the graph here."""

    @staticmethod
    def forward(ctx, fn: RemoteFunction, call: dict, keep: dict, *tensors: Tensor):
        box = fn.box
        box.calls += 1
        ctx.box, ctx.id, ctx.process, ctx.seconds = box, box.calls, box.process, fn.seconds
        wanted = [i for i, needed in enumerate(ctx.needs_input_grad[3:]) if needed]
        callables = call.pop("callables")
        request = {**call, "id": box.calls, "gradients": wanted}
        reply, found = box.ask(request, list(tensors), callables, fn.seconds)
        count, flags = reply["outputs"], reply["differentiable"]
        for index, new in reply["changed"]:
            tensors[index].data.copy_(found[new])
        keep["answer"], fn.largest = reply["answer"], reply["largest"]
        keep["changed_lists"] = reply["changed_lists"]
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
        request = {"request": "backward", "id": ctx.id, "of": of, "inputs": len(ctx.wanted)}
        sent = [gradients[i] for i in of]
        reply, found = ctx.box.ask(request, sent, {}, ctx.seconds)
        there = dict(zip(reply["there"], found, strict=True))
        answers: list[Tensor | None] = [None] * len(ctx.shapes)
        for number, index in enumerate(ctx.wanted):
            gradient = there.get(number)
            shape, dtype = ctx.shapes[index]
            if gradient is not None and (gradient.shape, gradient.dtype) == (shape, dtype):
                answers[index] = gradient
        return None, None, None, *answers


def _understood(request: dict, reply: dict, found: list[Tensor], sent: list[Tensor]) -> None:
    """Look whether a reply is one that the worker gives to this request, before it is used.

    Raises ValueError, KeyError or TypeError where it is not.
    """
    if request["request"] == "load":
        names, errors = reply["names"], reply["errors"]
        _expect(isinstance(names, list) and set(names) <= set(request["wanted"]), "wanted names")
        _expect(isinstance(errors, list) and len(errors) <= worker.ERRORS, "a list of errors")
        reply["errors"] = [as_text(error) for error in errors]
    elif request["request"] == "call":
        count, flags = reply["outputs"], reply["differentiable"]
        _expect(_is_index(count, range(len(found) + 1)), "as many outputs as there are")
        _expect(isinstance(flags, list) and len(flags) == count, "a flag for each output")
        for flag, output in zip(flags, found[:count], strict=True):
            differentiable = output.is_floating_point() or output.is_complex()
            _expect(flag is False or (flag is True and differentiable), "true or false")
        for index, new in reply["changed"]:
            _expect(_is_index(index, range(len(sent))), "an argument that was changed")
            _expect(_is_index(new, range(count, len(found))), "what it was changed to")
            old, new = sent[index], found[new]
            _expect((old.shape, old.dtype) == (new.shape, new.dtype), "an argument's shape")
        for index, new in reply["changed_lists"]:
            _expect(_is_index(index, range(request["lists"])), "a list that was handed over")
            _expect(pipe.is_plain(new), "a list of numbers")
        _expect(type(reply["largest"]) is int, "a count of numbers")
        pipe.unpack(reply["answer"], found[:count])
    else:
        there, inputs = reply["there"], range(request["inputs"])
        _expect(isinstance(there, list) and len(there) == len(found), "one for each gradient")
        _expect(all(_is_index(number, inputs) for number in there), "inputs")


def _is_index(value: Any, among: range) -> bool:
    return type(value) is int and value in among


def _expect(condition: bool, what: str) -> None:
    if not condition:
        raise ValueError(f"expected {what}")


class _Timed:
    """The pipes to and from a process, of which reads and writes end when its time is up.

    Raises OutOfTime, which says by which clock.
    """

    def __init__(self, process: Any, seconds: float):
        self.pid, self.seconds = process.pid, seconds
        self.sink, self.source = process.stdin.fileno(), process.stdout.fileno()
        self.cpu, self.clock = _cpu_seconds(self.pid), time.monotonic()
        self.looked = self.clock  # at the clocks, the last time
        os.set_blocking(self.sink, False)  # what is written at once is what there is room for

    def write(self, data: bytes) -> None:
        rest = memoryview(data)
        while rest:
            self.wait([], [self.sink])
            with suppress(BlockingIOError):
                rest = rest[os.write(self.sink, rest) :]

    def flush(self) -> None:
        """Nothing is kept back."""

    def readline(self, limit: int) -> bytes:
        line = b""
        while len(line) < limit and not line.endswith(b"\n"):
            line += self.read(1)
        return line

    def read(self, size: int) -> bytes:
        data = bytearray()
        while len(data) < size:
            self.wait([self.source], [])
            part = os.read(self.source, min(size - len(data), 2**20))
            if not part:
                raise EOFError("it is gone")
            data += part
        return bytes(data)

    def wait(self, sources: list[int], sinks: list[int]) -> None:
        ready = False
        while not ready:
            ready = any(select.select(sources, sinks, [], LOOK_EVERY))
            now = time.monotonic()
            if now - self.looked >= LOOK_EVERY:
                self.looked = now
                if _cpu_seconds(self.pid) - self.cpu > self.seconds:
                    raise OutOfTime(f"it used {self.seconds:g} seconds of CPU time")
                if now - self.clock > WAITING:
                    raise OutOfTime(f"it had not come back after {WAITING:g} seconds")


def _limits() -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (FILES, FILES))
    resource.setrlimit(resource.RLIMIT_NOFILE, (OPEN, OPEN))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with suppress(OSError), open("/proc/self/oom_score_adj", "w", encoding="utf-8") as file:
        file.write("1000")  # where memory is short nevertheless, it goes first


def _why_ended(process: subprocess.Popen) -> str:
    """What its exit code says of a process that no one here ended."""
    try:
        code = process.wait(1.0)
    except subprocess.TimeoutExpired:
        return "it closed its pipe"
    number = -code if code < 0 else code - 128  # bwrap gives 128 + the signal
    if code == worker.OUT_OF_MEMORY:
        return worker.TOO_MUCH
    if number == signal.SIGXFSZ:
        return f"it wrote more than {FILES // 2**10:,} KiB to a file"
    if number == signal.SIGKILL:
        return "it was killed, as the system does where memory is short"
    if number in set(signal.Signals):
        return f"it crashed with {signal.Signals(number).name}"
    return f"it exited with code {code}"


def _watch(process: subprocess.Popen, ended: list[str], library: int) -> None:
    """End a process whose children are too many or hold too much, and say why in `ended`.

    `library` bytes are not theirs. Limits on their number do not bind root, and those on memory
    hold for each alone.
    """
    while process.poll() is None:
        processes, threads, held = _used_by(process.pid)
        if processes > PROCESSES or threads > THREADS:
            limits = f"of {PROCESSES} and {THREADS} at most"
            ended.append(f"it had {processes} processes and {threads} threads, {limits}")
        elif held - library > RESIDENT and (
            (more := _used_by(process.pid, shared=True)[2] - library) > RESIDENT
        ):
            ended.append(f"it held {more / 2**20:,.0f} MiB, of {RESIDENT / 2**20:,.0f} at most")
        if ended:
            process.kill()
        time.sleep(0.05)


def _used_by(pid: int, shared: bool = False) -> tuple[int, int, int]:
    """Processes below a process, their threads, and the bytes of memory that they hold.

    What two of them share, as torch after a fork, counts twice: once where `shared`, which is slow.
    """
    processes, threads, held = -1, 0, 0  # itself is not counted
    todo = [pid]
    while todo and processes <= PROCESSES and threads <= THREADS:
        folder = Path(f"/proc/{todo.pop()}")
        with suppress(OSError):  # it has ended
            held += _held_by(folder, shared)
            for task in folder.joinpath("task").iterdir():
                threads += 1
                todo += map(int, task.joinpath("children").read_text(encoding="utf-8").split())
        processes += 1
    return processes, threads, held


def _held_by(folder: Path, shared: bool) -> int:
    sizes: list[str] = []
    if shared:
        with suppress(OSError):  # a process can keep it from being read
            rollup = folder.joinpath("smaps_rollup").read_text(encoding="utf-8")
            sizes = re.findall(r"^Pss_(?:Anon|Shmem):\s*(\d+) kB", rollup, re.MULTILINE)
    if not sizes:
        status = folder.joinpath("status").read_text(encoding="utf-8", errors="replace")
        sizes = re.findall(r"^Rss(?:Anon|Shmem):\s*(\d+) kB", status, re.MULTILINE)
    return 1024 * sum(map(int, sizes))


def _cpu_seconds(pid: int) -> float:
    """CPU time of a process and of all below it, those included that have ended."""
    ticks, todo = 0, [pid]
    while todo:
        folder = Path(f"/proc/{todo.pop()}")
        with suppress(OSError):  # it has ended
            times = folder.joinpath("stat").read_bytes().rpartition(b")")[2].split()[11:15]
            ticks += sum(map(int, times))  # user and system; of children that have ended, the same
            for task in folder.joinpath("task").iterdir():
                todo += map(int, task.joinpath("children").read_bytes().split())
    return ticks / os.sysconf("SC_CLK_TCK")


def _as_exception(name: str, said: str) -> BaseException:
    """What it raised over there, as an Exception of the same name where that is a usual one."""
    kind = getattr(builtins, name, None)
    if isinstance(kind, type) and issubclass(kind, Exception):
        try:
            return kind(said)
        except TypeError:  # UnicodeDecodeError and its like want more than words
            pass
    return RuntimeError(f"{name}: {said}")
