"""The guide for instructors is followed, command by command."""

import csv
import os
import re
import shlex
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from minitransformer.cli.main import _parser
from minitransformer.exercises.export import EXPORTS
from minitransformer.grading.layouts import LAYOUTS

GUIDE = (Path(__file__).parents[1] / "notebooks" / "INSTRUCTORS.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```bash\n(.*?)```", GUIDE, re.DOTALL)
COMMANDS = [line for block in BLOCKS for line in block.splitlines()]


def test_every_command_of_the_guide_can_be_typed():
    ours = [shlex.split(line)[1:] for line in COMMANDS if line.startswith("minitransformer ")]
    assert len(ours) >= 6
    for words in ours:
        _parser().parse_args(words)  # exits where an option is unknown


def test_the_guide_names_every_export_and_layout():
    for name in (*EXPORTS, *LAYOUTS):
        assert f"| `{name}` |" in GUIDE


def scores(folder: Path, name: str) -> dict[str, str]:
    with open(folder / "grades" / name, newline="", encoding="utf-8") as file:
        column = "score" if name == "scores.csv" else "Grade"
        return {row.get("student") or row["Full name"]: row[column] for row in csv.DictReader(file)}


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("bwrap") is None, reason="needs bwrap (Debian's bubblewrap)")
def test_an_instructor_follows_the_guide(tmp_path):
    program = tmp_path / "bin" / "minitransformer"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -m minitransformer "$@"\n')
    program.chmod(0o755)
    environment = {**os.environ, "PATH": f"{program.parent}:{os.environ['PATH']}"}
    work, said = tmp_path / "work", []
    work.mkdir()
    for block in BLOCKS:
        done = subprocess.run(
            ["bash", "-e", "-c", block], cwd=work, env=environment, capture_output=True, text=True
        )
        assert done.returncode == 0, (block, done.stderr[-2000:])
        said.append(done.stdout + done.stderr)
        if "--to package" in block:
            (wheel,) = (work / "for_students").glob("minitransformer-*.whl")
            with zipfile.ZipFile(wheel) as archive:
                stored = [name for name in archive.namelist() if name.endswith(".pt")]
            assert {Path(name).stem for name in stored} == {"causal_mask", "softmax"}
            assert "def softmax(" in (work / "for_students" / "exercises.ipynb").read_text()
        if "roster.csv" in block and "scores.csv" in done.stdout and len(said) == 5:
            assert scores(work, "scores.csv") == {"Ann": "9", "Bob": "0", "Cyd": "0"}
            assert scores(work, "grades.csv") == {"Ann": "100", "Bob": "0", "Cyd": "0"}
            names = {path.name for path in (work / "grades").iterdir()}
            assert names == {"scores.csv", "grades.csv", "index.html", "seed.json", "students"}
    assert "names are read as --layout folders: 2 students handed in, 3 rows" in said[4]
    assert "every exercise is as it was handed out" in said[4]
    assert "handed in nothing" in said[4]
    assert "to look at:\nnothing" in said[5]
    assert "Bob, seed " in said[5]
    assert "as it was graded\n\nsoftmax: not written yet" in said[5]
    assert scores(work, "scores.csv") == {"Ann": "9", "Bob": "6", "Cyd": "0"}
