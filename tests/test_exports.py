"""The instructor's round trip: every tool gives the same scores for the same submissions."""

import copy
import json
import subprocess
import sys
from pathlib import Path

import pytest

from minitransformer.exercises import EXERCISES, check
from minitransformer.exercises.export import export

NAMES = ["softmax", "causal_mask", "find_the_bug"]
EDITS = {
    "blank": lambda one: None,
    "right": lambda one: one.source,
    "wrong": lambda one: one.source.replace(".tril(num_keys - num_queries)", ".tril()").replace(
        "scores.amax(dim=-1, keepdim=True)", "scores.max()"
    ),
    "borrowed": lambda one: (
        f"def {one.name}(*given):\n    from minitransformer.exercises import EXERCISES\n"
        f'    return EXERCISES["{one.name}"].solution(*given)\n'
    ),
}
pytestmark = pytest.mark.slow


def ours(edit) -> int:
    """What `minitransformer exercise check` gives."""
    total = 0
    for name in NAMES:
        source = edit(EXERCISES[name])
        if source is not None:
            space: dict = {}
            exec(source, space)
            total += check(name, space[name]).score
    return total


def submissions(notebook, folder: Path) -> dict[str, Path]:
    """The student's notebook, filled in by each student."""
    import nbformat

    written = {}
    for student, edit in EDITS.items():
        filled = copy.deepcopy(notebook)
        for cell in filled.cells:
            for name in NAMES:
                if cell.cell_type == "code" and f"def {name}(" in cell.source:
                    cell.source = edit(EXERCISES[name]) or cell.source
        written[student] = folder / student / "exercises" / "exercises.ipynb"
        written[student].parent.mkdir(parents=True)
        nbformat.write(filled, written[student])
    return written


def run(*command: str, folder: Path) -> str:
    done = subprocess.run(
        [sys.executable, "-m", *command], cwd=folder, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def test_nbgrader_gives_the_same_scores(tmp_path):
    pytest.importorskip("nbgrader")
    import nbformat

    export(NAMES, "nbgrader", tmp_path)
    run("nbgrader", "generate_assignment", "exercises", folder=tmp_path)
    released = nbformat.read(tmp_path / "release" / "exercises" / "exercises.ipynb", 4)
    text = "\n".join(cell.source for cell in released.cells)
    assert "amax" not in text
    assert "20_260" not in text  # the hidden test
    assert "weights.masked_fill(~mask, 0.0)" in text  # the broken code to begin from
    submissions(released, tmp_path / "submitted")
    run("nbgrader", "autograde", "exercises", folder=tmp_path)
    from nbgrader.api import Gradebook

    with Gradebook(f"sqlite:///{tmp_path / 'gradebook.db'}") as book:
        for student, edit in EDITS.items():
            found = book.find_submission("exercises", student)
            assert found.score == ours(edit)
            assert found.max_score == sum(EXERCISES[name].points for name in NAMES)


def test_otter_gives_the_same_scores(tmp_path):
    pytest.importorskip("otter")
    import nbformat

    export(NAMES, "otter", tmp_path)
    run("otter", "assign", "--no-run-tests", "exercises.ipynb", "dist", folder=tmp_path)
    released = nbformat.read(tmp_path / "dist" / "student" / "exercises.ipynb", 4)
    assert "amax" not in "\n".join(cell.source for cell in released.cells)
    (tests,) = (tmp_path / "dist" / "autograder").glob("*.zip")
    for student, path in submissions(released, tmp_path / "submitted").items():
        out = tmp_path / f"out_{student}"
        out.mkdir()
        command = ("otter", "run", "-a", str(tests), "-o", str(out), "--no-logo", path.name)
        run(*command, folder=path.parent)
        results = json.loads((out / "results.json").read_text())
        score = sum(test.get("score") or 0 for test in results["tests"])
        assert score == ours(EDITS[student])


def test_the_scores_are_what_they_should_be():
    assert [ours(edit) for edit in EDITS.values()] == [0, 15, 10, 0]
