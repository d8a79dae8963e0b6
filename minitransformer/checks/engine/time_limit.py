"""A time limit for code that nobody knows: CPU seconds, so that a busy machine changes no verdict.

Code that waits for ever uses no CPU time, so there is a limit by the clock too, a long one.
"""

import ctypes
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

PATIENCE = 120.0  # seconds by the clock that a block has at least
AGAIN = 1.0  # seconds to the next OutOfTime, for code that catches the first one


class OutOfTime(BaseException):
    """Says which limit it was. No Exception, so that `except Exception` cannot swallow it."""


@contextmanager
def time_limit(seconds: float, wall: float | None = None) -> Iterator[None]:
    """Raise OutOfTime in the block after so many seconds of CPU time, or `wall` by the clock.

    In the main thread on POSIX the timers are the system's, and count the whole process. Elsewhere
    a second thread looks at the clocks; it cannot wake a block that waits, in a sleep say. A call
    that never returns to Python, an endless loop in C, cannot be stopped either way. Where Python
    loses the error, in `__del__` and callbacks, it is silent there, and raised again after AGAIN.
    """
    wall = max(PATIENCE, 6 * seconds) if wall is None else wall
    used = f"it used {seconds:g} seconds of CPU time"
    waited = f"it had not come back after {wall:g} seconds"
    in_main = threading.current_thread() is threading.main_thread()
    limited = _by_signals if in_main and hasattr(signal, "setitimer") else _by_watching
    with _silent_where_lost(), limited(seconds, used, wall, waited):
        yield


@contextmanager
def _silent_where_lost() -> Iterator[None]:
    """Python prints errors that it cannot raise, and so do tools that watch for them."""
    before = sys.unraisablehook

    def hook(lost: "sys.UnraisableHookArgs") -> None:
        if lost.exc_type is not OutOfTime:
            before(lost)

    sys.unraisablehook = hook
    try:
        yield
    finally:
        sys.unraisablehook = before


@contextmanager
def _by_signals(seconds: float, used: str, wall: float, waited: str) -> Iterator[None]:
    over = False

    def stop(number: int, _) -> None:
        if not over:
            raise OutOfTime(used if number == signal.SIGPROF else waited)

    limits = {signal.SIGPROF: (signal.ITIMER_PROF, seconds)}
    limits[signal.SIGALRM] = (signal.ITIMER_REAL, wall)
    handlers = {number: signal.signal(number, stop) for number in limits}
    before = {timer: signal.setitimer(timer, limit, AGAIN) for timer, limit in limits.values()}
    try:
        try:
            yield
        finally:
            over = True
    finally:  # also where the time was up between the two
        for number, (timer, _) in limits.items():
            signal.setitimer(timer, *before[timer])
            signal.signal(number, handlers[number])


@contextmanager
def _by_watching(seconds: float, used: str, wall: float, waited: str) -> Iterator[None]:
    thread, over, lock = threading.get_ident(), threading.Event(), threading.Lock()
    cpu_time = time.process_time
    if hasattr(time, "pthread_getcpuclockid"):  # of this thread alone
        cpu_time = partial(time.clock_gettime, time.pthread_getcpuclockid(thread))
    cpu, clock = cpu_time(), time.monotonic()
    reasons: list[str] = []

    def watch() -> None:
        while not over.wait(AGAIN if reasons else 0.02):
            if cpu_time() - cpu > seconds:
                reasons.append(used)
            elif time.monotonic() - clock > wall:
                reasons.append(waited)
            with lock:
                if reasons and not over.is_set():
                    _raise_in(thread, OutOfTime)

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield
    except OutOfTime as error:  # one that another thread raises comes without words
        error.args = error.args or (reasons[0],)
        raise
    finally:
        with lock:
            over.set()
            _raise_in(thread, None)


def _raise_in(thread: int, error: type[BaseException] | None) -> None:
    """Raise it in the thread when that next runs Python; None: take back what is not raised yet."""
    exception = None if error is None else ctypes.py_object(error)
    ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread), exception)
