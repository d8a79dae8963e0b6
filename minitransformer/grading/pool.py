"""Several graders at a time, each in its own process: what kills one takes no other with it."""

import multiprocessing
import os
import signal
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from contextlib import suppress
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from typing import Any, Protocol

import torch

from minitransformer.grading.submissions import Submission


class Grades(Protocol):
    """What grades a submission and writes what it finds."""

    def grade(self, one: Submission, /) -> None: ...

    def give_up(self, one: Submission, why: str, /) -> None: ...


class _Child:
    """A process with a grader: submissions go in, and what went wrong comes out."""

    def __init__(self, grader: Grades, first: Submission):
        context = multiprocessing.get_context("spawn")
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=_serve, args=(theirs, grader), daemon=True)
        # Ctrl-C is for the process above to answer: this one starts, and stays, deaf to it.
        resource_tracker.ensure_running()  # else started on the way, which unblocks the signal
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            self.process.start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        theirs.close()
        self.give(first)

    def give(self, one: Submission) -> None:
        self.one = one
        with suppress(OSError):  # it is gone: the pipe will say so
            self.pipe.send(one)

    def end(self) -> None:
        """At once, with the processes that it started."""
        if self.process.pid is not None:
            with suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)
        self.process.kill()
        self.process.join()
        self.pipe.close()


def _serve(pipe: Connection, grader: Any) -> None:
    """Grade what comes until nothing more does."""
    os.setpgid(0, 0)
    torch.set_num_threads(1)
    with suppress(EOFError, OSError):  # the other side is gone
        while True:
            one = pipe.recv()
            error = ""
            try:
                grader.grade(one)
            except Exception as failure:  # a full disk, say: nothing that a student can do
                error = f"{type(failure).__name__}: {failure}"
            pipe.send(error)


def each(todo: Sequence[Submission], grader: Grades, jobs: int) -> Iterator[tuple[Submission, str]]:
    """Grade all in `jobs` processes; yields each when it is done, with what went wrong.

    A process that is killed takes no other submission with it. Its own is tried once more.
    """
    waiting, deaths = deque(todo), Counter[str]()
    children: list[_Child] = []
    try:
        while waiting or children:
            while waiting and len(children) < max(jobs, 1):
                children.append(_Child(grader, waiting.popleft()))
            ready = wait([child.pipe for child in children])
            for child in [child for child in children if child.pipe in ready]:
                one = child.one
                try:
                    error = child.pipe.recv()
                except (EOFError, OSError):
                    child.end()
                    children.remove(child)
                    deaths[one.student] += 1
                    if deaths[one.student] < 2:
                        waiting.append(one)
                    else:
                        grader.give_up(one, "the process that graded it was killed, twice")
                        yield one, ""
                    continue
                if waiting:
                    child.give(waiting.popleft())
                else:
                    child.end()
                    children.remove(child)
                yield one, error
    finally:
        for child in children:
            child.end()
