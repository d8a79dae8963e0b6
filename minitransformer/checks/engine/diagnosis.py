"""What a failure comes from: another declaration, or a known bug that gives the same numbers."""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from minitransformer.checks.engine.bugs import Bug, bugs
from minitransformer.checks.engine.check import CHECKS, checks_of
from minitransformer.checks.engine.report import Report, Result
from minitransformer.checks.engine.running import quarantine, run_check, run_checks
from minitransformer.checks.engine.subject import Subject

MOST = 2  # names; where more bugs behave the same, none of them says much
SECONDS = 10.0  # of CPU time, for each check of a bug: most need a hundredth


class _CutOff(Exception):
    """A bug's check ran out of time, so what it would have found is not known."""


def examine(
    subject: Subject, tier: str = "core", seconds: float = 20.0, watch: Callable = iter
) -> Report:
    """Run the checks up to a tier; where some fail, ask whether the subject takes something else
    than was declared, and which known bug it has."""
    report = run_checks(subject, tier, seconds, watch)
    if any(result.outcome == "fail" and result.tier == "core" for result in report):
        report = _with_a_question(report, subject, seconds)
    return diagnose(report, subject)


def _with_a_question(report: Report, subject: Subject, seconds: float) -> Report:
    """Does it take something else than was declared? Where another declaration that comes to mind
    passes every core check; or most of them, of one that as declared only raises errors."""
    checks = checks_of(subject.kind, "core")
    for changes in subject.otherwise():
        other, passed, failed = replace(subject, **changes), 0, 0
        for check in checks:
            outcome = run_check(check, other, seconds).outcome
            passed, failed = passed + (outcome == "pass"), failed + (outcome == "fail")
            if failed and report.ran:
                break
        else:
            if passed > failed:
                told = {name: value for name, value in changes.items() if value is not None}
                declared = ", ".join(f"{name}={value!r}" for name, value in told.items())
                share = f"{passed} of {passed + failed}" if failed else f"all {passed}"
                question = f"with {declared} {share} core checks pass: is that what it takes?"
                return replace(report, would_pass=told, question=question)
    return report


def diagnose(report: Report, subject: Subject) -> Report:
    """The report with the names of the bugs that behave as the subject does, if any do."""
    if not report.failed or not report.ran:
        return report
    same, cut_off = [], []
    for one in bugs(report.kind):
        if set(one.caught_by).isdisjoint(report.failed):
            continue
        try:
            bodies = range(1 + len(one.also))
            body = next((i for i in bodies if _behaves_like(one, i, report, subject)), None)
        except _CutOff:
            cut_off.append(one.name)
        else:
            if body is not None:
                same.append((one, body))
    report = replace(report, not_compared=tuple(cut_off))
    same = [one for one, _ in _of_the_same_traits(same, subject)]
    if not 1 <= len(same) <= MOST:
        return report
    return replace(
        report,
        likely=tuple(one.name for one in same),
        explanation=" Or: ".join(dict.fromkeys(one.diagnosis for one in same)),
        certain=subject.comparable,
    )


def _of_the_same_traits(same: list[tuple[Bug, int]], subject: Subject) -> list[tuple[Bug, int]]:
    """Those that share the subject's traits; all, where none does or it has none."""
    wanted = _traits(subject) if len(same) > 1 else None
    if wanted is None:
        return same
    sharing = [(o, i) for o, i in same if _traits(subject.stand_in(o.subject(i))) == wanted]
    return sharing or same


def _traits(subject: Subject) -> Any:
    with quarantine():
        try:
            return subject.traits()
        except Exception:
            return None


def _behaves_like(one: Bug, body: int, report: Report, subject: Subject) -> bool:
    """The failures first: nearly every bug differs in the first of them.

    Each check gets a new one: what a bug keeps in one must not reach the next, in this order.
    """
    ran = [result for result in report if result.outcome != "not applicable"]
    for result in sorted(ran, key=lambda result: result.outcome):  # "fail" before "pass"
        stand_in = subject.stand_in(one.subject(body))
        if stand_in is None:
            return False
        other = run_check(CHECKS[report.kind][result.check], stand_in, SECONDS)
        if other.hung and not result.hung:
            raise _CutOff
        if not _agree(result, other, numbers=subject.comparable):
            return False
    return True


def _agree(result: Result, other: Result, numbers: bool) -> bool:
    if other.outcome == "not applicable" and result.outcome == "pass":
        return True
    if other.outcome != result.outcome or bool(other.raised) != bool(result.raised):
        return False
    if result.outcome == "pass" or not numbers:
        return True
    a, b = result.measured, other.measured
    if a is None or b is None:
        return a is b
    return math.isclose(a, b, rel_tol=1e-3, abs_tol=1e-12) or (math.isnan(a) and math.isnan(b))
