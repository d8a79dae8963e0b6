"""What a check is, and how it is run so that nothing its subject does stops the others.

A check is a function of a subject. It returns what it measured, or raises `Failed` with a
diagnosis, or `NotApplicable` with the reason:

    @check("attention", tier="core", measures="largest weight on a forbidden key")
    def forbidden_keys_get_exactly_zero(subject):
        \"\"\"A key that the mask forbids gets a weight of exactly 0.\"\"\"
"""

import io
import sys
import traceback
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from minitransformer.checks.report import Report, Result
from minitransformer.checks.time_limit import OutOfTime, time_limit

TIERS = {
    "core": "wrong for ordinary users where it fails",
    "robust": "half precision, large scores, queries that may see nothing, inference mode, misuse",
    "strict": "NaN and Inf in padding, forward and backward",
}

BANKS: dict[str, dict[str, "Check"]] = {}  # kind of subject -> its checks by name


@dataclass(frozen=True)
class Check:
    """One invariant: its name explains itself, and its statement says what must hold."""

    name: str
    bank: str
    tier: str
    statement: str
    measures: str  # what the number is that it returns
    mirrors: tuple[str, ...]  # the same failure in real code
    function: Callable[[Any], float | None]


class Failed(Exception):
    """The invariant does not hold. The diagnosis is a sentence that a learner understands."""

    def __init__(
        self,
        diagnosis: str,
        measured: float | None = None,
        example: dict[str, Tensor] | None = None,
    ):
        super().__init__(diagnosis)
        self.diagnosis, self.measured, self.example = diagnosis, measured, example or {}


class NotApplicable(Exception):
    """The subject does not promise this; the message says what it lacks."""


def check(
    bank: str, tier: str, measures: str = "", mirrors: Iterable[str] = ()
) -> Callable[[Callable], Callable]:
    """Register a function as a check of this kind of subject; its docstring is the statement."""
    if tier not in TIERS:
        raise ValueError(f"tier must be one of {', '.join(TIERS)}, got {tier!r}")

    def register(function: Callable) -> Callable:
        statement = (function.__doc__ or "").split("\n\n")[0]
        if not statement:
            raise ValueError(f"{function.__name__} needs a docstring: the invariant, in a sentence")
        checks = BANKS.setdefault(bank, {})
        checks[function.__name__] = Check(
            function.__name__,
            bank,
            tier,
            " ".join(statement.split()),
            measures,
            (mirrors,) if isinstance(mirrors, str) else tuple(mirrors),
            function,
        )
        return function

    return register


def checks_of(bank: str, tier: str = "strict") -> list[Check]:
    """The checks of a kind of subject up to a tier, core first."""
    names = list(TIERS)
    if tier not in names:
        raise ValueError(f"tier must be one of {', '.join(names)}, got {tier!r}")
    wanted = names[: names.index(tier) + 1]
    return [one for level in wanted for one in BANKS[bank].values() if one.tier == level]


def run_checks(
    subject: Any, tier: str = "core", seconds: float = 20.0, watch: Callable = iter
) -> Report:
    """Run every check up to `tier` on `subject`; `watch` may wrap the list in a progress bar.

    A check that takes more CPU time than `seconds` has failed: the subject hangs. After that the
    others get less, for a subject that hangs once hangs again.
    """
    results, wall = [], None
    for one in watch(checks_of(subject.bank, tier)):
        results.append(run_check(one, subject, seconds, wall))
        if results[-1].hung:
            seconds, wall = min(seconds, 1.0), 30.0
    return Report(subject.bank, subject.name, tier, results)


def run_check(one: Check, subject: Any, seconds: float = 20.0, wall: float | None = None) -> Result:
    """Run one check, with a `time_limit`. Whatever the subject does, a Result comes back."""
    outcome: dict[str, Any]
    with quarantine() as printed:
        try:
            with time_limit(seconds, wall):
                measured = one.function(subject)
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
    package = Path(__file__).parents[1]
    between = (
        str(package / "checks"),
        str(package / "exercises"),
        str(Path(torch.__file__).parent),
    )
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        inside = frame.filename.startswith((*between, "<")) and "museum" not in frame.filename
        if not inside:
            return f"{what} ({Path(frame.filename).name}, line {frame.lineno})."
    return f"{what}."


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
            torch.manual_seed(0)
            yield printed
    finally:
        sys.stdout, sys.stderr = streams
        torch.set_grad_enabled(before[0])
        torch.set_default_dtype(before[1])
        torch.set_num_threads(before[2])
