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
Found = tuple[int, Bug, int]  # equal numbers, the bug, and which of its bodies


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
    passes every core check; or most of them, of one that as declared only raises errors. A
    declaration that promises less, so that fewer checks can pass, is no answer."""
    checks = checks_of(subject.kind, "core")
    before = sum(result.outcome == "pass" and result.tier == "core" for result in report)
    for changes in subject.otherwise():
        other, passed, failed = replace(subject, **changes), 0, 0
        for check in checks:
            outcome = run_check(check, other, seconds).outcome
            passed, failed = passed + (outcome == "pass"), failed + (outcome == "fail")
            if failed and report.ran:
                break
        else:
            if passed > max(failed, before):
                told = {name: value for name, value in changes.items() if value is not None}
                declared = ", ".join(f"{name}={value!r}" for name, value in told.items())
                share = f"{passed} of {passed + failed}" if failed else f"all {passed}"
                question = f"with {declared} {share} core checks pass: is that what it takes?"
                return replace(report, would_pass=told, question=question)
    return report


def diagnose(report: Report, subject: Subject) -> Report:
    """The report with the names of the bugs that behave as the subject does, if any do.

    First the one that gives the subject's numbers in most failures, then in the museum's order. Of
    models with weights of their own those are counts, of pairs or of tokens.
    """
    if not report.failed or not report.ran:
        return report
    same, cut_off = [], []
    for one in bugs(report.kind):
        if set(one.caught_by).isdisjoint(report.failed):
            continue
        try:
            bodies = range(1 + len(one.also))
            alike = [(_equal_numbers(one, body, report, subject), body) for body in bodies]
        except _CutOff:
            cut_off.append(one.name)
        else:
            equal, body = max(alike)
            if equal >= 0:
                same.append((equal, one, body))
    same = sorted(_of_the_same_traits(same, subject), key=lambda found: -found[0])
    named = [one for _, one, _ in same] if len(same) <= MOST else []
    return replace(
        report,
        likely=tuple(one.name for one in named),
        explanation=" Or: ".join(dict.fromkeys(one.diagnosis for one in named)),
        certain=subject.comparable,
        not_compared=tuple(cut_off),
    )


def _of_the_same_traits(same: list[Found], subject: Subject) -> list[Found]:
    """Those that share the subject's traits; all, where none does or it has none."""
    wanted = _traits(subject) if len(same) > 1 else None
    if wanted is None:
        return same
    sharing = [x for x in same if _traits(subject.stand_in(x[1].subject(x[2]))) == wanted]
    return sharing or same


def _traits(subject: Subject) -> Any:
    with quarantine():
        try:
            return subject.traits()
        except Exception:
            return None


def _equal_numbers(one: Bug, body: int, report: Report, subject: Subject) -> int:
    """In how many failures this body of a bug gives the subject's number; -1: it behaves otherwise.

    The failures first: nearly every bug differs in the first of them. Each check gets a new
    stand-in: what a bug keeps in one must not reach the next, in this order.
    """
    ran = [result for result in report if result.outcome != "not applicable"]
    equal = 0
    for result in sorted(ran, key=lambda result: result.outcome):  # "fail" before "pass"
        stand_in = subject.stand_in(one.subject(body))
        if stand_in is None:
            return -1
        other = run_check(CHECKS[report.kind][result.check], stand_in, SECONDS)
        if other.hung and not result.hung:
            raise _CutOff
        if not _agree(result, other, numbers=subject.comparable):
            return -1
        equal += result.outcome == "fail" and _same_number(result, other)
    return equal


def _agree(result: Result, other: Result, numbers: bool) -> bool:
    if other.outcome == "not applicable" and result.outcome == "pass":
        return True
    if other.outcome != result.outcome or bool(other.raised) != bool(result.raised):
        return False
    return result.outcome == "pass" or not numbers or _same_number(result, other)


def _same_number(result: Result, other: Result) -> bool:
    a, b = result.measured, other.measured
    if a is None or b is None:
        return a is b
    return math.isclose(a, b, rel_tol=1e-3, abs_tol=1e-12) or (math.isnan(a) and math.isnan(b))
