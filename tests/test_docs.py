"""What docs/ shows runs, in the order of the page, and what it links to is there."""

import re
from importlib.util import find_spec
from pathlib import Path

import pytest

DOCS = Path(__file__).parent.parent / "docs"
CHECKING = (DOCS / "checking.md").read_text(encoding="utf-8")


@pytest.mark.slow
def test_the_code_of_the_page_on_checking_runs(capsys):
    """Each report that it prints says that all core checks pass."""
    space: dict = {}
    blocks = re.findall(r"```python\n(.*?)```", CHECKING, re.DOTALL)
    assert len(blocks) > 6
    for block in blocks:
        missing = [
            name for name in re.findall(r"^import (\w+)", block, re.M) if not find_spec(name)
        ]
        if not missing:
            exec(block, space)
    said = capsys.readouterr().out
    headlines = [line for line in said.splitlines() if ", core: " in line]
    assert len(headlines) >= 5
    for line in headlines:
        passed, checked = map(int, re.search(r"(\d+) of (\d+) checks pass", line).groups())
        assert passed == checked, line


def test_every_file_that_a_page_points_to_exists():
    for page in DOCS.glob("*.md"):
        for target in re.findall(r"\]\(([^)#]+)\)", page.read_text(encoding="utf-8")):
            assert (DOCS / target).exists(), f"{page.name}: {target}"
