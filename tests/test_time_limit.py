"""Time limits: CPU seconds, and a long limit by the clock; in any thread, with signals or not."""

import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress

import pytest

from minitransformer.checks.engine import time_limit as module
from minitransformer.checks.engine.time_limit import OutOfTime, time_limit


def spin():
    while True:
        with suppress(Exception):  # as careless code does
            sum(range(1000))


def wait():
    while True:
        with suppress(Exception):
            time.sleep(0.01)


class Lasting:
    """Whose end takes longer than there is: an error in there comes to nobody."""

    def __del__(self):
        end = time.process_time() + 0.5
        while time.process_time() < end:
            pass


def in_the_main_thread(function):
    function()


def in_another_thread(function):
    """Raises what it raises there."""
    errors = []

    def run():
        try:
            function()
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    for error in errors:
        raise error


WAYS = pytest.mark.parametrize(
    "way", [in_the_main_thread, in_another_thread, "without POSIX"], ids=lambda way: str(way)[:30]
)


@pytest.fixture
def run(way, monkeypatch):
    if way == "without POSIX":
        for name in ("setitimer", "SIGALRM", "SIGPROF", "ITIMER_REAL", "ITIMER_PROF"):
            monkeypatch.delattr(signal, name)
        monkeypatch.delattr(time, "pthread_getcpuclockid")
        return in_the_main_thread
    return way


@WAYS
def test_where_an_error_is_lost_the_next_one_ends_the_block(way, run, monkeypatch, capsys):
    monkeypatch.setattr(module, "AGAIN", 0.5)

    def limited():
        with time_limit(0.2):
            Lasting()
            spin()

    with pytest.raises(OutOfTime, match=r"it used 0\.2 seconds of CPU time"):
        run(limited)
    assert capsys.readouterr().err == ""


def test_other_errors_that_are_lost_are_told_as_before(monkeypatch):
    told = []
    monkeypatch.setattr(sys, "unraisablehook", lambda lost: told.append(lost.exc_type))

    class Broken:
        def __del__(self):
            raise KeyError

    with time_limit(60):
        Broken()
    Broken()
    assert told == [KeyError, KeyError]


@WAYS
@pytest.mark.parametrize(
    ("endless", "says"),
    [
        (spin, "it used 0.2 seconds of CPU time"),
        (wait, "it had not come back after 0.5 seconds"),
    ],
)
def test_what_does_not_end_is_stopped_and_says_by_which_clock(way, run, endless, says):
    def limited():
        with time_limit(0.2, wall=0.5 if endless is wait else 600):
            endless()

    with pytest.raises(OutOfTime, match=f"^{says}$"):
        run(limited)


@WAYS
def test_to_be_kept_waiting_uses_no_time(way, run):
    def limited():
        with time_limit(0.1):
            time.sleep(0.5)

    run(limited)


@WAYS
def test_code_that_catches_everything_is_stopped_the_next_time(way, run, monkeypatch):
    monkeypatch.setattr(module, "AGAIN", 0.1)

    def limited():
        with time_limit(0.1):
            with suppress(BaseException):
                spin()
            spin()

    with pytest.raises(OutOfTime):
        run(limited)


@WAYS
def test_nothing_is_left_behind(way, run):
    handlers = [signal.getsignal(number) for number in (14, 27)]
    for _ in range(300):
        with suppress(OutOfTime), time_limit(0.001):
            sum(range(10_000))
        with time_limit(60):
            pass
    assert [signal.getsignal(number) for number in (14, 27)] == handlers
    assert threading.active_count() < 20
    deadline = time.process_time() + 0.1
    while time.process_time() < deadline:  # nothing is raised any more
        sum(range(100))


def test_a_process_that_is_seldom_run_has_the_same_time():
    """Stopped and continued, as on a busy machine: slow by the clock, the same by its CPU."""
    program = """
import time
from minitransformer.checks.engine.time_limit import time_limit
print("ready", flush=True)
with time_limit(20.0):
    until = time.process_time() + 0.3
    while time.process_time() < until: pass
print("done")
"""
    child = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    assert child.stdout.readline() == "ready\n"
    for _ in range(5):
        child.send_signal(signal.SIGSTOP)
        time.sleep(0.2)
        child.send_signal(signal.SIGCONT)
        time.sleep(0.02)
    assert child.communicate()[0] == "done\n"
