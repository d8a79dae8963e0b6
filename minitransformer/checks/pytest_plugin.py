"""The checks as pytest tests.

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
`pytest --mask-tier strict` runs another tier than the one that the tests name,
`pytest --mask-subject module:function` needs no test at all, and `--mask-failures FILE` adds
expected failures from a file in TOML, for all subjects or in a table for one:

    a_query_that_sees_nothing_gets_zeros = "we return the mean"

    ["my_module:my_attention"]
    gradcheck_passes = "float32 only"

The options themselves are in `minitransformer_pytest`, which does not import torch.
"""

import tomllib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import pytest

from minitransformer.checks.attention.subject import AttentionSubject
from minitransformer.checks.engine.check import CHECKS, Check, checks_of
from minitransformer.checks.engine.running import run_check
from minitransformer.checks.engine.subject import Subject
from minitransformer.checks.finding import find_subject


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
    _refuse_unknown(expected, {subject.kind for subject in prepared}, "expected_failures")
    checks_of(prepared[0].kind, tier)  # a wrong tier is told where it is written
    return pytest.mark.mask_checks(prepared, tier, expected, seconds)


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


# ---- expected failures ---------------------------------------------------------------------------


def _refuse_unknown(expected: Iterable[str], kinds: Iterable[str], where: str) -> None:
    names = [check.name for kind in kinds for check in checks_of(kind)]
    for name in expected:
        if name not in names:
            near = " or ".join(get_close_matches(name, names, n=2)) or ", ".join(names)
            raise ValueError(f"{where}: there is no check {name!r}; did you mean {near}?")


def _expected(config: pytest.Config, subject: Subject) -> dict[str, str]:
    """What the file of --mask-failures says of a subject: check -> reason."""
    file = config.getoption("mask_failures")
    if not file:
        return {}
    try:
        known = tomllib.loads(Path(file).read_text(encoding="utf-8"))
        for_all = {name: reason for name, reason in known.items() if isinstance(reason, str)}
        its_own = known.get(subject.name, {})
        _refuse_unknown(for_all, CHECKS, file)
        _refuse_unknown(its_own, [subject.kind], file)
    except (OSError, ValueError) as error:
        raise pytest.UsageError(f"--mask-failures {file}: {error}") from None
    return for_all | its_own


def _marks(expected: Mapping[str, str], check: Check) -> list[pytest.MarkDecorator]:
    if check.name not in expected:
        return []
    return [pytest.mark.xfail(reason=expected[check.name], strict=True)]


# ---- what the plugin calls -----------------------------------------------------------------------


def parametrize(
    metafunc: Any, subjects: list[Subject], tier: str, expected: dict[str, str], seconds: float
) -> None:
    """The tests of a function that parametrize_with_checks stands on."""
    if not {"subject", "check"} <= set(metafunc.fixturenames):
        raise pytest.UsageError(
            f"{metafunc.definition.nodeid}: a test with parametrize_with_checks takes the "
            "arguments (subject, check) and calls check(subject)"
        )
    tier = metafunc.config.getoption("mask_tier") or tier
    cases = []
    for subject in subjects:
        short = subject.name.rpartition(".")[2]
        known = _expected(metafunc.config, subject) | expected
        for check in checks_of(subject.kind, tier):
            name = check.name if len(subjects) == 1 else f"{short}-{check.name}"
            marks = _marks(known, check)
            cases.append(pytest.param(subject, RunCheck(check, seconds), id=name, marks=marks))
    metafunc.parametrize(("subject", "check"), cases)


class CheckItem(pytest.Item):
    """A test of its own for a check of a subject that the command line names."""

    def __init__(self, *, subject: Subject, run: RunCheck, **node: Any):
        super().__init__(**node)
        self.subject, self.run = subject, run

    def runtest(self) -> None:
        self.run(self.subject)

    def reportinfo(self) -> tuple[Path, None, str]:
        return self.path, None, self.name


def items_of_subjects(session: pytest.Session) -> Iterator[CheckItem]:
    """A test for each check of each --mask-subject: module:function::name_of_the_check."""
    for where in session.config.getoption("mask_subject"):
        try:
            subject = find_subject(where)
        except (ImportError, TypeError, ValueError) as error:
            raise pytest.UsageError(f"--mask-subject {where}: {error}") from None
        known = _expected(session.config, subject)
        for check in checks_of(subject.kind, session.config.getoption("mask_tier") or "core"):
            item = CheckItem.from_parent(
                session,
                name=check.name,
                nodeid=f"{where}::{check.name}",
                subject=subject,
                run=RunCheck(check, 20.0),
            )
            for mark in _marks(known, check):
                item.add_marker(mark)
            yield item
