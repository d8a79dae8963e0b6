"""The notebooks are those of their sources, hold every exercise once, and no solution.

That they run, and print what is committed, is `scripts/notebooks.py --check`; CI does that.
"""

import re
import sys
from pathlib import Path

import pytest

pytest.importorskip("nbclient")
pytest.importorskip("jupytext")
import nbformat

from minitransformer.exercises import EXERCISES
from minitransformer.exercises.mistakes import BEGIN, END

ROOT = Path(__file__).parent.parent
FOLDER = ROOT / "notebooks"
SOURCES = sorted(FOLDER.glob("*.py"))
sys.path.insert(0, str(ROOT / "scripts"))
import notebooks  # noqa: E402 -- scripts/notebooks.py

ENTRANCE, *CHAPTERS, ONE_PAGE = SOURCES

notebook = pytest.mark.parametrize("source", SOURCES, ids=lambda source: source.stem)
chapter = pytest.mark.parametrize("source", CHAPTERS, ids=lambda source: source.stem)


def test_there_are_an_entrance_and_thirteen_chapters():
    assert ENTRANCE.stem == "00_two_questions"
    numbers = [source.stem.partition("_")[0] for source in CHAPTERS]
    in_two_parts = {"07b", "08b"}
    assert [n for n in numbers if n not in in_two_parts] == [f"{n:02}" for n in range(1, 14)]
    assert numbers[6:10] == ["07", "07b", "08", "08b"]


@notebook
def test_the_notebook_is_that_of_its_source(source):
    made = notebooks.assemble(source)
    committed = nbformat.read(source.with_suffix(".ipynb"), 4)
    assert [(cell.cell_type, cell.source) for cell in made.cells] == [
        (cell.cell_type, cell.source) for cell in committed.cells
    ]
    nbformat.validate(committed)


@notebook
def test_every_cell_was_run_and_none_failed(source):
    committed = nbformat.read(source.with_suffix(".ipynb"), 4)
    code = [cell for cell in committed.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    outputs = [output for cell in code for output in cell.outputs]
    assert not [output for output in outputs if output.output_type == "error"]
    pictures = any("image/png" in output.get("data", {}) for output in outputs)
    assert pictures or source is ONE_PAGE
    text = "\n".join(str(output.get("text") or output.get("data")) for output in outputs)
    assert not re.search(r"/(tmp|home|root|work)/|0x[0-9a-f]{8}", text)


@chapter
def test_a_chapter_says_what_you_will_be_able_to_do_and_ends_with_questions(source):
    text = source.read_text(encoding="utf-8")
    assert re.match(r"# %% \[markdown\]\n# # \d+b?\. ", text)
    assert "# After this chapter you will be able to" in text
    assert "## Check yourself" in text
    assert "</details>" in text
    assert "Try it" in text


def test_every_claim_of_the_entrance_has_a_verdict_and_an_assert():
    """In the table and below it, in one order, and both say the same word."""
    text = ENTRANCE.read_text(encoding="utf-8")
    table = re.findall(r"^# \| ([AB]\d+) \|.*?\| (true|loose|wrong)\b", text, re.M)
    parts = re.split(r"^# ## ([AB]\d+)\. .*\n", text, flags=re.M)
    sections = dict(zip(parts[1::2], parts[2::2], strict=True))
    assert list(sections) == [name for name, _ in table]
    assert len(table) == 18
    for name, verdict in table:
        assert sections[name].startswith(f"#\n# **{verdict.capitalize()}"), name
        assert re.search(r"^ *assert ", sections[name], re.M), name


def test_every_exercise_stands_in_its_chapter_once_in_one_order_everywhere():
    found = {
        name: int(source.stem[:2])
        for source in CHAPTERS
        for name in notebooks.EXERCISE.findall(source.read_text(encoding="utf-8"))
    }
    assert found == {name: one.chapter for name, one in EXERCISES.items()}
    index = (FOLDER / "README.md").read_text(encoding="utf-8").partition("| chapter |")[2]
    listed = [name for name in re.findall(r"`(\w+)`", index) if name in EXERCISES]
    assert list(dict.fromkeys(listed)) == list(found) == list(EXERCISES)


def solution_of(exercise):
    """The lines between the marks, without `return`."""
    solution = re.search(f"{BEGIN}\n(.*?){END}", exercise.source, re.DOTALL)[1]
    lines = (line.strip().removeprefix("return ") for line in solution.splitlines())
    return [line for line in lines if line]


@notebook
def test_no_notebook_holds_a_solution(source):
    text = source.with_suffix(".ipynb").read_text(encoding="utf-8")
    text = "\n".join(c.source for c in nbformat.reads(text, 4).cells)
    for one in EXERCISES.values():
        assert not all(line in text for line in solution_of(one)), one.name


# Lines that give nothing away.
ORDINARY = {"losses.append(loss.item())", "block = slice(start, start + block_size)"}


@chapter
def test_no_line_of_a_solution_stands_in_the_chapter_of_its_exercise(source):
    """Neither in a cell nor in its text. Short lines do not count."""
    text = source.read_text(encoding="utf-8")
    found = {
        (one.name, line)
        for one in EXERCISES.values()
        if one.chapter == int(source.stem[:2])
        for line in solution_of(one)
        if len(line) >= 24 and line in text and line not in ORDINARY
    }
    assert found == set()


def test_the_index_names_every_chapter_and_exercise():
    index = (FOLDER / "README.md").read_text(encoding="utf-8")
    for source in SOURCES:
        assert f"({source.stem}.ipynb)" in index
    for name in EXERCISES:
        assert f"`{name}`" in index


@chapter
def test_the_index_gives_the_time_that_the_chapter_gives(source):
    text = " ".join(source.read_text(encoding="utf-8").split("# %%")[1].split("\n# "))
    said = re.search(
        r"\*Reading takes about (\d+) minutes, running (?:about )?(.+?) on one CPU thread\.", text
    )
    running = {
        "a few seconds": "5 s",
        "ten seconds": "10 s",
        "half a minute": "½ min",
        "a minute": "1 min",
        "a minute and a half": "1½ min",
        "two minutes": "2 min",
        "three minutes": "3 min",
        "four minutes": "4 min",
    }
    index = (FOLDER / "README.md").read_text(encoding="utf-8")
    (row,) = (line for line in index.splitlines() if f"({source.stem}.ipynb) |" in line)
    assert f"| {said[1]} min + {running[said[2]]} |" in row


def test_nothing_names_an_address_that_is_not_set():
    """And once it is, a chapter begins with a badge, and installs from there where it must."""
    fork = "owner/name"
    bare, set_once = (notebooks.assemble(SOURCES[0], address) for address in ("", fork))
    assert "colab" not in nbformat.writes(bare).lower()
    added = set_once.cells[1:3]
    assert [cell.source for cell in set_once.cells if cell not in added] == [
        cell.source for cell in bare.cells
    ]
    assert f"github/{fork}/blob/main/notebooks/{SOURCES[0].stem}.ipynb" in added[0].source
    assert f"git+https://github.com/{fork}" in added[1].source


def test_the_address_is_that_of_pyproject(tmp_path):
    file = tmp_path / "pyproject.toml"
    for url, name in {"": "", "https://github.com/owner/name": "owner/name"}.items():
        urls = f'[project.urls]\nRepository = "{url}"\n' if url else ""
        file.write_text(f'[project]\nname = "x"\n{urls}')
        assert notebooks.repository(file) == name
    file.write_text('[project.urls]\nRepository = "https://example.org/x"\n')
    with pytest.raises(ValueError, match=f"must be {notebooks.HOST}OWNER/NAME, got"):
        notebooks.repository(file)


def test_only_what_imports_the_package_installs_it():
    for source in SOURCES:
        made = notebooks.assemble(source, "owner/name")
        texts = [cell.source for cell in made.cells[:3]]
        assert "colab.research.google.com/github/owner/name/" in texts[1]
        assert ("%pip install" in texts[2]) == (source is not ONE_PAGE)


@pytest.mark.slow
def test_a_chapter_runs_where_nothing_else_is(tmp_path):
    """Its `.ipynb` alone was downloaded, and the package is installed."""
    committed = nbformat.read(CHAPTERS[0].with_suffix(".ipynb"), 4)
    place = {"metadata": {"path": str(tmp_path)}}
    notebooks.NotebookClient(committed, timeout=300, resources=place).execute()


def test_the_comparison_sees_words_and_not_numbers():
    cell = nbformat.v4.new_code_cell("f()")
    one, two = (nbformat.v4.new_notebook(cells=[dict(cell)]) for _ in range(2))
    for notebook, text in ((one, "loss 0.5"), (two, "loss 1.25e-3")):
        notebook.cells = [nbformat.v4.new_code_cell("f()", id="a")]
        notebook.cells[0].outputs = [nbformat.v4.new_output("stream", text=text)]
    assert notebooks.shape_of(one) == notebooks.shape_of(two)
    two.cells[0].outputs[0].text = "NaN 1.25e-3"
    assert notebooks.shape_of(one) != notebooks.shape_of(two)
