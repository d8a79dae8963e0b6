"""Ctrl-C, a terminal that was closed, a scheduler that wants its machine: end after this step."""

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

SIGNALS = [
    getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)
]


@contextmanager
def asked_to_stop(unsaved: Callable[[], int]) -> Iterator[Callable[[], int]]:
    """Turn the first signal into a request that the loop asks for; the second one ends us at once.

    Yields a function that gives the number of the signal, or 0. The first Ctrl-C is answered with
    the number of `unsaved` steps that a second one would cost. What was ignored before (nohup does
    that) stays ignored.
    """
    requests: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield lambda: 0
        return

    def request(number, frame):
        requests.append(number)
        for one, handler in before.items():
            signal.signal(one, handler)
        said = "stopping after this step"
        if number == signal.SIGINT and (lost := unsaved()):
            said += f"; once more to give up {lost:,} unsaved step{'s' * (lost > 1)}"
        if number not in (signal.SIGINT, signal.SIGTERM):  # the terminal is gone: write nowhere
            for descriptor in (1, 2):
                os.dup2(os.open(os.devnull, os.O_WRONLY), descriptor)
        with suppress(RuntimeError):  # it came while something else was printed there
            print(f"\n{said}", file=sys.stderr, flush=True)

    before = {one: signal.getsignal(one) for one in SIGNALS}
    before = {
        one: handler for one, handler in before.items() if handler not in (signal.SIG_IGN, None)
    }
    for one in before:
        signal.signal(one, request)
    try:
        yield lambda: requests[0] if requests else 0
    finally:
        for one, handler in before.items():
            signal.signal(one, handler)
