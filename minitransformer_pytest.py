"""The pytest plugin of `minitransformer.checks`: its options, and when it is needed.

Beside the package and not inside of it, because pytest imports it in every run of an environment,
and the package brings torch. What it does is in `minitransformer.checks.pytest_plugin`, which is
imported where a test asks for it.
"""

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("minitransformer")
    group.addoption(
        "--mask-subject",
        action="append",
        default=[],
        metavar="MODULE:NAME",
        help="run the mask checks on this, as `minitransformer check` does, and no other test "
        "unless files are named; may be repeated",
    )
    group.addoption(
        "--mask-tier",
        choices=["core", "robust", "strict"],
        help="run the mask checks up to this tier, whatever the tests say",
    )
    group.addoption(
        "--mask-failures",
        metavar="FILE",
        help='checks that are known to fail, in TOML: name_of_the_check = "the reason"',
    )


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "mask_checks: what parametrize_with_checks puts on a test")


def pytest_generate_tests(metafunc) -> None:
    for mark in metafunc.definition.iter_markers("mask_checks"):
        from minitransformer.checks.pytest_plugin import parametrize

        parametrize(metafunc, *mark.args)


def pytest_ignore_collect(config: pytest.Config) -> bool | None:
    """With --mask-subject and no files, nothing else is collected."""
    named = config.args_source is pytest.Config.ArgsSource.ARGS
    return True if config.getoption("mask_subject") and not named else None


def pytest_collection_modifyitems(session: pytest.Session, items: list[pytest.Item]) -> None:
    if session.config.getoption("mask_subject"):
        from minitransformer.checks.pytest_plugin import items_of_subjects

        items += items_of_subjects(session)
