"""The conformance suite: does an implementation keep the promises that masks are about?

    from minitransformer.checks import check_attention
    print(check_attention(my_attention))  # any function (query, key, value, mask) -> output

Each `check_...` takes a callable, the declarations of its subject (see the classes in SUBJECTS),
and `tier`, and gives a Report. A subject can also be built first:
`AttentionSubject(fn, layout="b t d")`.
"""

from collections.abc import Callable
from typing import Any

from minitransformer.checks import attention as _attention  # noqa: F401 -- registers its checks
from minitransformer.checks.diagnosis import diagnose
from minitransformer.checks.probes import AttentionSubject, attention_weights_of
from minitransformer.checks.report import Report, Result
from minitransformer.checks.subject import Subject
from minitransformer.checks.suite import BANKS, TIERS, checks_of, run_checks

SUBJECTS: dict[str, type[Subject]] = {  # kind of subject -> what it may declare
    "attention": AttentionSubject,
}


def check_attention(
    fn: Callable, *, tier: str = "core", seconds: float = 20.0, **declared: Any
) -> Report:
    """Check an attention function `fn(query, key, value, mask) -> output` or `(output, weights)`.

    `declared`: what it takes and promises, where that is not the default; see AttentionSubject.
    `seconds` is the longest that one check may take.
    """
    return _check("attention", fn, tier, seconds, declared)


def _check(bank: str, fn: Any, tier: str, seconds: float, declared: dict[str, Any]) -> Report:
    if not isinstance(fn, Subject):
        fn = SUBJECTS[bank](fn, **declared)
    elif declared:
        raise TypeError(f"{fn.name} is a subject already: declare {', '.join(declared)} there")
    return diagnose(run_checks(fn, tier, seconds), fn)


__all__ = [
    "BANKS",
    "SUBJECTS",
    "TIERS",
    "AttentionSubject",
    "Report",
    "Result",
    "Subject",
    "attention_weights_of",
    "check_attention",
    "checks_of",
    "diagnose",
    "run_checks",
]
