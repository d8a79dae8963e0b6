"""The table of `scripts/mutate.py` speaks of the code as it is, and gives reasons."""

import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "scripts"))
import mutate  # noqa: E402 -- scripts/mutate.py

ROWS = mutate.read_rows()


@pytest.mark.parametrize("module", sorted({module for (module, _, _), _ in ROWS}))
def test_every_line_of_the_table_still_stands_in_its_module(module):
    file = ROOT / "minitransformer" / f"{module}.py"
    assert file.is_file(), f"{module} is gone"
    lines = [line.strip() for line in file.read_text(encoding="utf-8").splitlines()]
    code = f" {' '.join(lines)} "  # a row may quote several lines, joined like this
    assert not [line for (where, line, _), _ in ROWS if where == module and f" {line} " not in code]


def test_every_mutant_survives_for_a_reason():
    assert not [mutant for mutant, why in ROWS if len(why.split()) < 3]


def test_no_mutant_stands_in_the_table_twice():
    mutants = [mutant for mutant, _ in ROWS]
    assert not [mutant for mutant in mutants if mutants.count(mutant) > 1]


def test_the_table_is_read_whole_and_is_of_modules_that_are_mutated():
    rows = [line for line in mutate.TABLE.read_text(encoding="utf-8").splitlines() if "`" in line]
    assert len(ROWS) == len(rows) - 1  # one names the script
    assert {module for (module, _, _), _ in ROWS} <= mutate.TESTS.keys()


def test_every_module_and_every_test_of_the_script_is_there():
    for module, tests in mutate.TESTS.items():
        assert (ROOT / "minitransformer" / f"{module}.py").is_file()
        assert all((ROOT / "tests" / f"test_{name}.py").is_file() for name in tests)
