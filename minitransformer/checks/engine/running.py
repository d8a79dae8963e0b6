"""How checks are run, so that nothing their subject does stops the others."""

import io
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import torch

from minitransformer.checks.engine.check import Check, Failed, NotApplicable, checks_of
from minitransformer.checks.engine.report import Report, Result
from minitransformer.checks.engine.time_limit import OutOfTime, time_limit


def run_checks(
    subject: Any, tier: str = "core", seconds: float = 20.0, watch: Callable = iter
) -> Report:
    """Run every check up to `tier` on `subject`; `watch` may wrap the list in a progress bar.

    A check that takes more CPU time than `seconds` has failed: the subject hangs. After that the
    others get less, for a subject that hangs once hangs again.
    """
    results, wall = [], None
    for one in watch(checks_of(subject.kind, tier)):
        results.append(run_check(one, subject, seconds, wall))
        if results[-1].hung:
            seconds, wall = min(seconds, 1.0), 30.0
    return Report(subject.kind, subject.name, tier, results)


def run_check(one: Check, subject: Any, seconds: float = 20.0, wall: float | None = None) -> Result:
    """Run one check, with a `time_limit`. Whatever the subject does, a Result comes back."""
    outcome: dict[str, Any]
    with quarantine() as printed:
        try:
            with time_limit(seconds, wall):
                measured = one(subject)
            outcome = {"outcome": "pass", "measured": measured}
        except NotApplicable as reason:
            outcome = {"outcome": "not applicable", "diagnosis": str(reason)}
        except Failed as failure:
            outcome = {
                "outcome": "fail",
                "diagnosis": failure.diagnosis,
                "measured": failure.measured,
                "example": failure.example,
            }
        except OutOfTime as limit:
            diagnosis = f"I{str(limit)[1:]}: does it ever come back?"
            outcome = {"outcome": "fail", "diagnosis": diagnosis, "raised": diagnosis, "hung": True}
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # SystemExit too: a subject may call exit()
            raised = _raised(error)
            diagnosis = " ".join([raised, *getattr(error, "__notes__", ())])
            outcome = {"outcome": "fail", "diagnosis": diagnosis, "raised": raised}
    if outcome["outcome"] != "fail":
        outcome["example"] = {}
    return Result(
        one.name,
        one.tier,
        one.statement,
        measures=one.measures,
        mirrors=one.mirrors,
        printed=printed.getvalue(),
        **outcome,
    )


def _raised(error: BaseException) -> str:
    """What it raised, and where in the subject's own code."""
    said = str(error).strip().split("\n")[0].rstrip(".")
    what = f"It raised {type(error).__name__}" + (f": {said}" if said else "")
    package = Path(__file__).parents[2]
    between = (
        str(package / "checks"),
        str(package / "exercises"),
        str(package / "grading"),
        str(Path(torch.__file__).parent),
    )
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        nowhere = frame.filename.startswith("<") and not frame.line  # <string>, <frozen os>
        inside = frame.filename.startswith(between) and Path(frame.filename).name != "bugs.py"
        if not inside and not nowhere:
            return f"{what} ({place_of(frame)})."
    return f"{what}."


def place_of(frame: traceback.FrameSummary) -> str:
    """The file, the line's number, and what stands there."""
    place = f"{Path(frame.filename.strip('<>')).name}, line {frame.lineno}"
    return f"{place}: {frame.line[:80]}" if frame.line else place


def seed(number: int) -> None:
    """As `torch.manual_seed`, which formats the caller's stack for a GPU that is not there: half a
    millisecond, longer than many a check."""
    everywhere = torch.accelerator.is_available()
    (torch.manual_seed if everywhere else torch.default_generator.manual_seed)(number)


@contextmanager
def quarantine() -> Iterator[io.StringIO]:
    """The same start for every check, and nothing of it left behind; yields what was printed."""
    before = torch.is_grad_enabled(), torch.get_default_dtype(), torch.get_num_threads()
    streams = sys.stdout, sys.stderr
    printed = io.StringIO()
    devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else []
    try:
        with (
            torch.random.fork_rng(devices=list(devices)),
            warnings.catch_warnings(),
            redirect_stdout(printed),
            redirect_stderr(printed),
        ):
            warnings.simplefilter("ignore")
            torch.set_grad_enabled(True)
            torch.set_num_threads(1)  # the tensors are small: more threads would only wait
            seed(0)
            yield printed
    finally:
        sys.stdout, sys.stderr = streams
        torch.set_grad_enabled(before[0])
        torch.set_default_dtype(before[1])
        torch.set_num_threads(before[2])
