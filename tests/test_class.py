"""An instructor's evening: a class of 60 is graded, twice, and every row is as it should be."""

import csv
import os
import subprocess
import sys
from pathlib import Path

import pytest
from class_of_60 import NAMES, hand_in

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not sys.platform.startswith("linux"), reason="grading needs Linux"),
]
EXPECTED = Path(__file__).with_suffix("").parent / "class_of_60.csv"


def rows(path: Path) -> dict[str, dict[str, str]]:
    with open(path, newline="", encoding="utf-8") as file:
        return {row["student"]: row for row in csv.DictReader(file)}


def graded(folder: Path, roster: Path, out: Path) -> dict[str, dict[str, str]]:
    command = [sys.executable, "-m", "minitransformer", "exercise", "grade", str(folder)]
    command += ["--out", str(out), "--roster", str(roster), "--seed", "19", "--only", *NAMES]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "60 of 60 graded" in done.stdout
    return rows(out / "scores.csv")


def test_a_class_of_60_has_the_rows_that_it_should_quiet_or_busy(tmp_path):
    folder, roster = tmp_path / "in", tmp_path / "roster.csv"
    hand_in(folder, roster)
    expected = rows(EXPECTED)
    assert len(expected) == 60
    quiet = graded(folder, roster, tmp_path / "quiet")
    assert quiet.keys() == expected.keys()
    for student, row in expected.items():
        assert [quiet[student][name] for name in NAMES] == [row[name] for name in NAMES], student
        assert quiet[student]["note"].startswith(row["note"].removesuffix("...")), student
        assert row["note"].endswith("...") or quiet[student]["note"] == row["note"], student
    load = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(8)]
    try:
        busy = graded(folder, roster, tmp_path / "busy")
    finally:
        for one in load:
            one.kill()
            one.wait()
    assert busy == quiet


def test_nothing_of_a_class_is_left_behind(tmp_path):
    """The folder that students handed in is only read."""
    folder, roster = tmp_path / "in", tmp_path / "roster.csv"
    hand_in(folder, roster)
    few = [path for path in sorted(folder.iterdir()) if path.name.startswith("none_")]
    for path in sorted(folder.iterdir()):
        if path not in few:
            os.rename(path, tmp_path / path.name)
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    command = [sys.executable, "-m", "minitransformer", "exercise", "grade", str(folder)]
    command += ["--out", str(tmp_path / "out"), "--only", NAMES[0]]
    assert subprocess.run(command, capture_output=True).returncode == 0
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before
