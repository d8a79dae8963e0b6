"""The pytest plugin as its user meets it: in a pytest of its own, once in a process of its own."""

from importlib.metadata import entry_points
from xml.etree import ElementTree

import pytest

from minitransformer.checks import AttentionSubject, checks_of, parametrize_with_checks

pytest_plugins = ["pytester"]
pytestmark = pytest.mark.skipif(
    "minitransformer" not in {one.name for one in entry_points(group="pytest11")},
    reason="minitransformer is not installed here, only imported",
)

TESTS = """
import torch
from minitransformer.checks import AttentionSubject, LossSubject, parametrize_with_checks

def attention(query, key, value, mask):
    scores = query @ key.mT / query.shape[-1] ** 0.5
    return scores.masked_fill(~mask, -1e9).softmax(dim=-1) @ value

def after_softmax(query, key, value, mask):
    return (query @ key.mT / query.shape[-1] ** 0.5).softmax(dim=-1) * mask @ value
"""


def run(pytester, test, *options, where="here"):
    """In this process, where torch is imported already, or in another."""
    pytester.makepyfile(TESTS + test)
    start = {"here": pytester.runpytest_inprocess, "there": pytester.runpytest_subprocess}[where]
    return start("-p", "no:cacheprovider", "-ra", *options)


def test_each_check_is_a_test_with_a_readable_id(pytester):
    result = run(
        pytester,
        """
@parametrize_with_checks(attention)
def test_masks(subject, check):
    check(subject)
""",
        "-v",
        where="there",
    )
    outcomes = result.parseoutcomes()
    assert outcomes["passed"] + outcomes["skipped"] == len(checks_of("attention", "core"))
    assert "failed" not in outcomes
    result.stdout.fnmatch_lines(["*::test_masks?forbidden_keys_get_exactly_zero? PASSED*"])
    result.stdout.fnmatch_lines(["SKIPPED*it declares no causal_flag"])


def test_a_failure_is_told_without_a_traceback(pytester):
    result = run(
        pytester,
        """
@parametrize_with_checks([attention, AttentionSubject(after_softmax, name="mine")])
def test_masks(subject, check):
    check(subject)
""",
    )
    result.stdout.fnmatch_lines(["*test_masks?mine-weights_sum_to_one?*", "mine"])
    result.stdout.fnmatch_lines(["*With padding on the right, the weights of a query sum to*"])
    result.stdout.no_fnmatch_line("*def expect*")
    assert not any("attention-" in line for line in result.outlines if line.startswith("FAILED"))


def test_expected_failures_have_reasons_and_stay_true(pytester):
    test = """
@parametrize_with_checks(
    attention,
    tier="robust",
    expected_failures={
        "no_score_is_large_enough_to_leak": "-1e9 is what the course uses",
        "weights_sum_to_one": "no longer true",
    },
)
def test_masks(subject, check):
    check(subject)
"""
    result = run(pytester, test, "-k", "leak or sum_to_one")
    others = len(checks_of("attention", "robust")) - 2
    assert result.parseoutcomes() == {"xfailed": 1, "failed": 1, "deselected": others}
    result.stdout.fnmatch_lines(["XFAIL*-1e9 is what the course uses"])
    result.stdout.fnmatch_lines(["*XPASS(strict)* no longer true"])


def test_the_tier_is_an_option(pytester):
    test = """
@parametrize_with_checks(attention, tier="strict")
def test_masks(subject, check):
    check(subject)
"""
    result = run(pytester, test, "--mask-tier", "core")
    assert "failed" not in result.parseoutcomes()
    result = run(pytester, test, "--collect-only", "-q")
    assert sum("test_masks[" in line for line in result.outlines) == len(checks_of("attention"))


def test_a_test_that_takes_no_check_is_told(pytester):
    result = run(
        pytester,
        """
@parametrize_with_checks(attention)
def test_masks(check):
    check(attention)
""",
    )
    result.stdout.fnmatch_lines(["*takes the arguments (subject, check) and calls check(subject)*"])


def test_other_kinds_of_subjects_have_other_checks(pytester):
    result = run(
        pytester,
        """
@parametrize_with_checks(LossSubject(torch.nn.functional.cross_entropy, flat=True))
def test_loss(subject, check):
    check(subject)
""",
    )
    outcomes = result.parseoutcomes()
    assert outcomes["passed"] + outcomes.get("skipped", 0) == len(checks_of("loss", "core"))


def test_mistakes_are_told_where_they_are_written():
    with pytest.raises(ValueError, match="there is no check 'weights_sum_to_two'; did you mean"):
        parametrize_with_checks(print, expected_failures={"weights_sum_to_two": "x"})
    with pytest.raises(ValueError, match="tier must be one of core, robust, strict"):
        parametrize_with_checks(AttentionSubject(print), tier="hard")


def test_a_run_without_mask_checks_does_not_import_torch(pytester):
    pytester.makepyfile("import sys\n\ndef test_nothing(): assert 'torch' not in sys.modules")
    result = pytester.runpytest_subprocess("-p", "no:cacheprovider")
    assert result.parseoutcomes() == {"passed": 1}


WRONG = """
def attention(query, key, value, mask):
    scores = query @ key.mT / query.shape[-1] ** 0.5
    return scores.masked_fill(~mask, -1e9).softmax(dim=-1) @ value
"""


def test_a_subject_needs_no_test(pytester):
    pytester.makepyfile(mine=WRONG, test_other="def test_other(): assert False")
    result = pytester.runpytest_inprocess(
        "--mask-subject=mine:attention", "--mask-tier=robust", "--junitxml=found.xml"
    )
    outcomes = result.parseoutcomes()
    assert sum(outcomes.values()) == len(checks_of("attention", "robust"))
    result.stdout.fnmatch_lines(["FAILED mine:attention::no_score_is_large_enough_to_leak*"])
    (found,) = [
        case
        for case in ElementTree.parse(pytester.path / "found.xml").iter("testcase")
        if case.get("name") == "no_score_is_large_enough_to_leak"
    ]
    assert found.get("classname") == "mine:attention"
    result = pytester.runpytest_inprocess("test_other.py", "--mask-subject=mine:attention")
    assert result.parseoutcomes()["failed"] == 1  # the test that was named


def test_expected_failures_come_from_a_file(pytester):
    pytester.makepyfile(mine=WRONG)
    options = ["--mask-subject=mine:attention", "--mask-tier=robust", "-k", "leak or sum_to_one"]
    known = pytester.path / "known.toml"
    known.write_text('["mine:attention"]\nno_score_is_large_enough_to_leak = "-1e9"\n')
    result = pytester.runpytest_inprocess(*options, "--mask-failures=known.toml")
    outcomes = result.parseoutcomes()
    assert (outcomes["xfailed"], outcomes["passed"]) == (1, 1)
    known.write_text('weights_sum_to_one = "no longer true"\n')
    result = pytester.runpytest_inprocess(*options, "--mask-failures=known.toml")
    result.stdout.fnmatch_lines(["*XPASS(strict)* no longer true"])


def test_a_file_of_expected_failures_serves_tests_too(pytester):
    (pytester.path / "known.toml").write_text('weights_sum_to_one = "the first try"\n')
    result = run(
        pytester,
        """
@parametrize_with_checks(after_softmax)
def test_masks(subject, check):
    check(subject)
""",
        "-k", "sum_to_one", "--mask-failures=known.toml",
    )  # fmt: skip
    assert result.parseoutcomes()["xfailed"] == 1


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('["mine:attention"]\nweights_sum_to_two = "x"', "did you mean weights_sum_to_one"),
        ("weights_sum_to_one: no", "Expected '=' after a key"),
        ('weights_sum_to_two = "x"', "did you mean weights_sum_to_one"),
    ],
)
def test_a_wrong_file_of_failures_is_told(pytester, text, says):
    pytester.makepyfile(mine=WRONG)
    (pytester.path / "known.toml").write_text(text)
    result = pytester.runpytest_inprocess(
        "--mask-subject=mine:attention", "--mask-failures=known.toml"
    )
    result.stderr.fnmatch_lines([f"ERROR: --mask-failures known.toml: *{says}*"])


def test_a_subject_that_is_not_there_is_told(pytester):
    result = pytester.runpytest_inprocess("--mask-subject=nowhere:attention")
    result.stderr.fnmatch_lines(["ERROR: --mask-subject nowhere:attention: *No module named*"])
