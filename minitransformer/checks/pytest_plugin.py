"""The checks as pytest tests; pytest loads this wherever minitransformer is installed.

    from minitransformer.checks import AttentionSubject, parametrize_with_checks

    @parametrize_with_checks(
        AttentionSubject(my_attention, layout="b t h d"),
        tier="robust",
        expected_failures={"a_query_that_sees_nothing_gets_zeros": "we return the mean"},
    )
    def test_masks(subject, check):
        check(subject)

A failure shows the diagnosis instead of a traceback, a check that is not applicable is skipped with
its reason, and an expected failure that passes is an error: the list of them stays true.
`pytest --mask-tier strict` runs another tier than the one that the tests name.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

import pytest

from minitransformer.checks.attention.subject import AttentionSubject
from minitransformer.checks.engine.check import TIERS, Check, checks_of
from minitransformer.checks.engine.running import run_check
from minitransformer.checks.engine.subject import Subject

MARK = "mask_checks"


def parametrize_with_checks(
    subjects: Subject | Callable | Iterable[Subject | Callable],
    tier: str = "core",
    expected_failures: Mapping[str, str] | None = None,
    seconds: float = 20.0,
) -> pytest.MarkDecorator:
    """A decorator for a test that takes (subject, check): one test for each check up to `tier`.

    `subjects`: one, or several; a plain function is taken for an attention function.
    `expected_failures`: the name of a check -> the reason why it is known to fail.
    """
    listed = subjects if isinstance(subjects, Iterable) else [subjects]
    prepared = [x if isinstance(x, Subject) else AttentionSubject(x) for x in listed]
    expected = dict(expected_failures or {})
    names = [one.name for subject in prepared for one in checks_of(subject.kind)]
    for name in expected:
        if name not in names:
            near = " or ".join(get_close_matches(name, names, n=2)) or ", ".join(names)
            raise ValueError(f"expected_failures: there is no check {name!r}; did you mean {near}?")
    checks_of(prepared[0].kind, tier)  # a wrong tier is told where it is written
    return getattr(pytest.mark, MARK)(prepared, tier, expected, seconds)


@dataclass(frozen=True)
class RunCheck:
    """`check(subject)`: fails the test with the diagnosis, or skips it with the reason."""

    check: Check
    seconds: float

    def __call__(self, subject: Subject) -> None:
        result = run_check(self.check, subject, self.seconds)
        if result.outcome == "fail":
            pytest.fail(f"{subject.name}\n{result}", pytrace=False)
        if result.outcome == "not applicable":
            pytest.skip(result.diagnosis)


# ---- what pytest calls ---------------------------------------------------------------------------


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.getgroup("minitransformer").addoption(
        "--mask-tier",
        choices=list(TIERS),
        help="run the mask checks up to this tier, whatever the tests say",
    )


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", f"{MARK}: what parametrize_with_checks puts on a test")


def pytest_generate_tests(metafunc: Any) -> None:
    for mark in metafunc.definition.iter_markers(MARK):
        subjects, tier, expected, seconds = mark.args
        if not {"subject", "check"} <= set(metafunc.fixturenames):
            raise pytest.UsageError(
                f"{metafunc.definition.nodeid}: a test with parametrize_with_checks takes the "
                "arguments (subject, check) and calls check(subject)"
            )
        tier = metafunc.config.getoption("--mask-tier") or tier
        cases = []
        for subject in subjects:
            short = subject.name.rpartition(".")[2]
            for one in checks_of(subject.kind, tier):
                marks = ()
                if one.name in expected:
                    marks = (pytest.mark.xfail(reason=expected[one.name], strict=True),)
                name = one.name if len(subjects) == 1 else f"{short}-{one.name}"
                cases.append(pytest.param(subject, RunCheck(one, seconds), id=name, marks=marks))
        metafunc.parametrize(("subject", "check"), cases)
