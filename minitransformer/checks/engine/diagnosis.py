"""Which known bug is it? One that fails the same checks by the same numbers."""

import math
from dataclasses import replace
from typing import Any

from minitransformer.checks.engine.bugs import Bug, bugs
from minitransformer.checks.engine.check import CHECKS
from minitransformer.checks.engine.report import Report, Result
from minitransformer.checks.engine.running import run_check

SECONDS = 10.0  # of CPU time, for each check of a bug: most need a hundredth


class _CutOff(Exception):
    """A bug's check ran out of time, so what it would have found is not known."""


def diagnose(report: Report, subject: Any) -> Report:
    """The report with the names of the bugs that behave as the subject does, if any do."""
    if not report.failed or not report.ran:
        return report
    same, cut_off = [], []
    for one in bugs(report.kind):
        try:
            if _behaves_like(one, report, subject):
                same.append(one)
        except _CutOff:
            cut_off.append(one.name)
    report = replace(report, not_compared=tuple(cut_off))
    if not same:
        return report
    return replace(
        report,
        likely=tuple(one.name for one in same),
        explanation=" Or: ".join(dict.fromkeys(one.diagnosis for one in same)),
        certain=subject.comparable,
    )


def _behaves_like(one: Bug, report: Report, subject: Any) -> bool:
    """The failures first: nearly every piece differs in the first of them.

    Each check gets a new one: what a bug keeps in one must not reach the next, in this order.
    """
    ran = [result for result in report if result.outcome != "not applicable"]
    for result in sorted(ran, key=lambda result: result.outcome):  # "fail" before "pass"
        stand_in = subject.stand_in(one.subject())
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
