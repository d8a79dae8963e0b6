"""`scripts/versions.py`, but for the environments that it makes: that takes hours."""

import sys
import tomllib
from pathlib import Path

import pytest

pytest.importorskip("packaging")
ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "scripts"))
import versions  # noqa: E402 -- scripts/versions.py


def test_the_commands_are_the_readmes():
    found = versions.readme_commands()
    assert [command for _, command in found] == versions.COMMANDS
    assert all(install.startswith("pip install -e ") for install, _ in found)


def test_every_dependency_has_a_lowest_version():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lowest = versions.lowest_requirements([])
    assert "torch==2.6" in lowest
    assert {"einops==0.8", "pytest==8"} <= set(lowest)
    names = [line.partition("==")[0] for line in lowest]
    assert len(set(names)) == len(names) > 20
    for line in sum(project["optional-dependencies"].values(), project["dependencies"]):
        assert line.startswith(("minitransformer[", *names))
        assert "[" in line or ">=" in line or "==" in line  # the fonts are pinned
    without = versions.lowest_requirements(["torch", "pytest"])
    assert set(lowest) - set(without) == {"torch==2.6", "pytest==8"}


def test_there_is_an_environment_for_every_python_and_a_lowest(capsys, monkeypatch):
    monkeypatch.setattr(versions, "pythons", lambda: {"3.11": "a", "3.13": "b"})
    every = versions.environments()
    assert [*every] == ["lowest", "newest-3.11", "newest-3.13"]
    assert every["newest-3.13"] == ("b", [])
    assert every["lowest"] == ("a", versions.lowest_requirements(["triton"]))
    monkeypatch.setattr(sys, "argv", ["versions.py", "--only", "newest-3.10"])
    with pytest.raises(SystemExit):
        versions.main()
    assert "no environment newest-3.10: there are lowest, newest-3.11" in capsys.readouterr().err


def test_a_command_is_run_in_its_folder_and_what_it_prints_is_kept(tmp_path):
    log = tmp_path / "log"
    code, printed, _ = versions.run("echo $WORD; pwd; exit 3", tmp_path, log, WORD="hello")
    assert (code, printed) == (3, f"hello\n{tmp_path}\n")
    assert versions.run("echo again", tmp_path, log)[1] == "again\n"
    assert log.read_text() == f"$ echo $WORD; pwd; exit 3\nhello\n{tmp_path}\n$ echo again\nagain\n"


@pytest.mark.parametrize(
    ("code", "printed", "result"),
    [
        (0, "...\n12 passed, 3 skipped, 2 deselected in 4.00s\n", "12 passed, 3 skipped"),
        (
            1,
            "1 failed, 12 passed, 2 errors in 4s (0:00:04)",
            "failed, 1 failed, 12 passed, 2 errors",
        ),
        (0, "exact match on 2,000 held-out examples: 99.95%\nmore", "99.95% exact"),
        (1, "exact match on 2,000 held-out examples: 9.5%", "failed (9.5% exact)"),
        (2, "", "failed"),
    ],
)
def test_results_are_in_the_commands_own_words(code, printed, result):
    assert versions.result_of(code, printed) == result


def test_a_row_takes_the_place_of_the_one_before(tmp_path, monkeypatch):
    monkeypatch.setattr(versions, "RECORD", tmp_path / "versions.md")
    versions.record({"environment": "newest-3.12", "date": "2026-11-01", "torch": "2.13.0"})
    versions.record({"environment": "lowest", "date": "2026-11-02", "torch": "2.6.0"})
    versions.record({"environment": "newest-3.12", "date": "2026-11-03", "torch": "2.14.1"})
    rows = [line.split(" | ") for line in versions.RECORD.read_text().splitlines()[-2:]]
    assert [row[:2] for row in rows] == [
        ["| lowest", "2026-11-02"],
        ["| newest-3.12", "2026-11-03"],
    ]
    assert "2.13.0" not in versions.RECORD.read_text()
