"""Build the notebooks: from notebooks/NAME.py, in percent format, to NAME.ipynb with its outputs.

    pip install -e ".[dev]" && python scripts/notebooks.py # all
    python scripts/notebooks.py 01_padding 02_attention    # some
    python scripts/notebooks.py --check                    # are they fresh, and do they run?

What is committed is the .py, which is read and edited, and the .ipynb, which is made of it here:
executed in a fresh kernel on one thread, without timestamps, so that a rebuild that changes nothing
changes no file. A markdown cell `<!-- exercise: NAME -->` becomes the exercise of that name: its
text, its stub, and the cell that checks it.

`--check` executes all and compares sources and outputs with what is committed; numbers and pictures
may differ, as they do between machines.
"""

import argparse
import os
import re
import sys
import time
from pathlib import Path

import jupytext
import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError
from nbformat.v4 import new_code_cell, new_markdown_cell
from repository import HOST, repository

FOLDER = Path(__file__).parent.parent / "notebooks"
REPOSITORY = repository()  # "" while no address is set: no badges, no cells for Colab
SECONDS = 300  # that one cell may take
USES_THE_PACKAGE = re.compile(r"^(import|from) minitransformer\b", re.M)
EXERCISE = re.compile(r"<!-- exercise: (\w+) -->")
INSTALL = """\
# On Colab, or wherever minitransformer is missing: install it, and leave torch as it is.
import importlib.util

if importlib.util.find_spec("minitransformer") is None:
    %pip install --quiet --no-deps "git+{address}" einops"""


def assemble(source: Path, repository: str = REPOSITORY) -> nbformat.NotebookNode:
    """The notebook of a source, not executed yet."""
    cells, text = [], source.read_text(encoding="utf-8")
    for number, cell in enumerate(jupytext.reads(text, fmt="py:percent").cells):
        exercise = EXERCISE.fullmatch(cell.source.strip())
        cells += exercise_cells(exercise[1]) if exercise else [cell]
        if number == 0 and repository:
            cells.append(badge(source.stem, repository))
            cells += [install(repository)] if USES_THE_PACKAGE.search(text) else []
    for number, cell in enumerate(cells):
        cell["id"] = f"{source.stem}-{number}"
        cell["metadata"] = {"tags": tags} if (tags := cell["metadata"].get("tags")) else {}
    notebook = nbformat.v4.new_notebook(cells=cells)
    notebook.metadata = {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
    }
    return notebook


def build(source: Path) -> nbformat.NotebookNode:
    """The notebook of a source, executed. Raises CellExecutionError where a cell fails."""
    notebook = assemble(source)
    os.environ["MINITRANSFORMER_PROGRESS"] = ""  # what is built here is nobody's progress
    client = NotebookClient(
        notebook,
        timeout=SECONDS,
        kernel_name="python3",
        record_timing=False,
        coalesce_streams=True,
        resources={"metadata": {"path": str(FOLDER)}},
    )
    client.execute()
    for cell in notebook.cells:
        cell["metadata"].pop("execution", None)
        if cell.cell_type == "code":  # what libraries log is for whoever builds
            cell["outputs"] = [o for o in cell["outputs"] if o.get("name") != "stderr"]
    notebook.metadata["language_info"] = {"name": "python"}  # without the version of this Python
    return notebook


def badge(name: str, repository: str) -> nbformat.NotebookNode:
    """What opens the chapter on Colab."""
    colab = "https://colab.research.google.com"
    url = f"{colab}/github/{repository}/blob/main/notebooks/{name}.ipynb"
    return new_markdown_cell(f"[![Open in Colab]({colab}/assets/colab-badge.svg)]({url})")


def install(repository: str) -> nbformat.NotebookNode:
    return new_code_cell(INSTALL.format(address=HOST + repository))


def exercise_cells(name: str) -> list[nbformat.NotebookNode]:
    """What the student sees of an exercise: text, stub and check."""
    from minitransformer.exercises import EXERCISES

    exercise = EXERCISES[name]
    return [
        new_markdown_cell(exercise.text(level=3)),
        new_code_cell(exercise.stub),
        new_code_cell(
            f'from minitransformer.exercises import check, hint\n\ncheck("{name}", {name})'
            f'  # stuck? hint("{name}")'
        ),
    ]


def shape_of(notebook: nbformat.NotebookNode) -> list[tuple]:
    """What must be the same on every machine: sources, and outputs but for numbers and pictures."""

    def words(output: nbformat.NotebookNode) -> str:
        if output.output_type == "stream":
            return output.text
        if output.output_type == "error":
            return f"{output.ename}: {output.evalue}"
        data = output.get("data", {})
        return "picture" if "image/png" in data else str(data.get("text/plain", ""))

    def shape(cell: nbformat.NotebookNode) -> tuple:
        varies = "varies" in cell.metadata.get("tags", [])
        text = "" if varies else "".join(words(o) for o in cell.get("outputs", []))
        return cell.cell_type, cell.source, re.sub(r"[-+]?\d[\d,.e+-]*\s*%?", "#", text).split()

    return [shape(cell) for cell in notebook.cells]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", help="without .py; default: all")
    parser.add_argument("--check", action="store_true", help="compare with what is committed")
    options = parser.parse_args()
    os.environ.update(OMP_NUM_THREADS="1", PYTHONHASHSEED="0")
    sources = sorted(FOLDER.glob("*.py"))
    if options.names:
        known = {source.stem: source for source in sources}
        if unknown := [name for name in options.names if name not in known]:
            parser.error(f"no notebook {', '.join(unknown)}: there are {', '.join(known)}")
        sources = [known[name] for name in options.names]
    stale = []
    for source in sources:
        start = time.perf_counter()
        try:
            notebook = build(source)
        except CellExecutionError as error:
            print(f"{source.name}: a cell fails\n{error}", file=sys.stderr)
            return 1
        target = source.with_suffix(".ipynb")
        fresh = target.exists() and shape_of(notebook) == shape_of(nbformat.read(target, 4))
        if not options.check:
            nbformat.write(notebook, target)
        elif not fresh:
            stale.append(target.name)
        seconds = time.perf_counter() - start
        print(f"{source.stem:<24} {seconds:5.1f} s  {'as committed' if fresh else 'changed'}")
    if stale:
        print(f"not fresh: {', '.join(stale)}; run python scripts/notebooks.py", file=sys.stderr)
    return 1 if stale else 0


if __name__ == "__main__":
    sys.exit(main())
