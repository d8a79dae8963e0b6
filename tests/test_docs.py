"""What docs/ shows runs, in the order of the page; what it links to is there; the site builds."""

import importlib
import re
import subprocess
import sys
from html.parser import HTMLParser
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

from minitransformer.checks import bugs
from minitransformer.exercises import EXERCISES
from minitransformer.exercises.mistakes import BEGIN, END

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
sys.path.insert(0, str(DOCS))
import docstrings  # noqa: E402 -- docs/docstrings.py
import generate  # noqa: E402 -- docs/generate.py

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
            made = target.startswith("generated/")  # at build time
            assert made or (DOCS / target).exists(), f"{page.name}: {target}"


# ---- the site ------------------------------------------------------------------------------------


def test_a_docstring_is_plain_text_for_sphinx():
    assert docstrings.to_rst("What `pad` does to *x* and x_ of `a b`.") == (
        "What `pad` does to \\*x\\* and x\\_ of ``a b``."
    )
    assert docstrings.to_rst("So:\n\n    f(x)\n\n    g(x)") == (
        "So:\n\n.. code-block:: none\n\n    f(x)\n\n.. code-block:: none\n\n    g(x)"
    )
    assert docstrings.to_rst(">>> 1\n1").startswith(".. code-block:: pycon\n")
    assert docstrings.to_rst("a: one\n    more\nb: two") == "| a: one more\n| b: two"


def test_the_catalogue_has_every_exercise_and_no_solution():
    page = generate.exercises()
    for one in EXERCISES.values():
        assert f"`minitransformer exercise start {one.name}`" in page
        solution = re.search(f"{BEGIN}\n(.*?){END}", one.source, re.DOTALL)[1]
        lines = [line.strip() for line in solution.splitlines() if line.strip()]
        assert not all(line in page for line in lines), one.name


@pytest.mark.slow
def test_the_museum_has_every_bug_with_its_code():
    pages = {kind: generate.room(kind, bugs(kind)) for kind in generate.SUBJECTS}
    for one in bugs():
        assert f"\n## {one.name}\n\n{one.story}\n" in pages[one.kind]
        code = generate.source_of(one.implementation)
        assert code.startswith(("def ", "class ")), one.name
        assert code in pages[one.kind]


PROSE = """
`pad` `mt.pack(rows)` `masks.padding_mask` `train` `draw` `attention_mask` `nn.pad` `pad me`

```python
from minitransformer.training.loop import train  # which is not public otherwise
```

:::{py:function} minitransformer.data.batches.pad
:::
:::{py:function} minitransformer.data.batches.pack
:::
:::{py:function} minitransformer.masks.padding_mask
:::
:::{py:function} minitransformer.training.loop.train
:::
"""


def test_names_in_prose_are_links_but_for_those_that_a_page_defines(tmp_path):
    application = pytest.importorskip("sphinx.application", reason="the extra `docs`")
    names = importlib.import_module("names")  # docs/names.py
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "page.md").write_text(":orphan:\n\n# A page\n" + PROSE)
    own = "# Another\n\n`pad` `pack`\n\n```python\ndef pad(rows):\n    pass\n```\n"
    (tmp_path / "docs" / "own.md").write_text(own)
    (tmp_path / "CHANGELOG.md").write_text("# Changes\n\n`pack`\n")
    settings = {"extensions": ["myst_parser"], "root_doc": "docs/page"}
    settings["myst_enable_extensions"] = ["colon_fence"]
    places = (tmp_path, None, tmp_path / "html", tmp_path / "doctrees", "html")
    site = application.Sphinx(*places, confoverrides=settings, status=None, warning=None)
    site.connect("doctree-resolved", names.link_names)
    site.build()
    linked = {
        page: re.findall(r'title="minitransformer[.\w]*\.(\w+)"><code', text)
        for page in ("docs/page", "docs/own", "CHANGELOG")
        if (text := (tmp_path / "html" / f"{page}.html").read_text(encoding="utf-8"))
    }
    assert linked == {
        "docs/page": ["pad", "pack", "padding_mask", "train"],
        "docs/own": ["pack"],
        "CHANGELOG": [],
    }


class Links(HTMLParser):
    """What a page loads, and what it links to."""

    def __init__(self, page: str):
        super().__init__()
        self.loaded: list[str] = []
        self.links: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag, attributes):
        given = dict(attributes)
        into = self.links if tag == "a" else self.loaded
        into += [given[name] for name in ("href", "src") if given.get(name)]


@pytest.mark.slow
def test_the_site_builds_without_a_warning_and_needs_no_network(tmp_path):
    """Every page is there, loads nothing from elsewhere, and links to what is there."""
    for needed in ("sphinx", "myst_nb", "furo", "sphinx_codeautolink"):
        pytest.importorskip(needed, reason="the extra `docs`")
    site = tmp_path / "html"
    command = [sys.executable, "scripts/docs.py", "--no-pictures", "--out", str(site)]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, encoding="utf-8")
    assert run.returncode == 0, run.stdout + run.stderr
    chapters = [f"notebooks/{path.stem}" for path in (ROOT / "notebooks").glob("*.ipynb")]
    museum = [f"docs/generated/museum_{generate.slug(kind)}" for kind in generate.SUBJECTS]
    written = [f"docs/{path.stem}" for path in DOCS.glob("*.md")]
    generated = [f"docs/generated/{name}" for name in ("exercises", "museum", "api", "commands")]
    for page in ("index", "explorer", "viewer", "README", *chapters, *museum, *written, *generated):
        assert (site / f"{page}.html").is_file(), page
    attention = (site / "docs/generated/api_minitransformer.html").read_text(encoding="utf-8")
    assert 'id="minitransformer.attention.scaled_dot_product_attention"' in attention
    first = (site / "docs/index.html").read_text(encoding="utf-8")
    assert "#minitransformer.attention.scaled_dot_product_attention" in first  # code is linked
    chapter = (site / "notebooks/08_training.html").read_text(encoding="utf-8")
    assert re.search(r'href="[^"]*#minitransformer.data.batches.pack"[^>]*><code', chapter)
    checks = (site / "docs/generated/api_minitransformer_checks.html").read_text(encoding="utf-8")
    assert 'id="minitransformer.checks.check_attention"' in checks
    for page in site.rglob("*.html"):
        found = Links(page.read_text(encoding="utf-8"))
        for target in found.loaded + found.links:
            parts = urlsplit(target)
            if parts.scheme == "data" or (parts.scheme and target in found.links):
                continue
            assert not parts.scheme, f"{page}: loads {target}"
            assert not parts.netloc, f"{page}: loads {target}"
            if parts.path:
                assert (page.parent / unquote(parts.path)).exists(), f"{page}: {target}"
    for sheet in site.rglob("*.css"):
        assert not re.search(r"url\(.?(https?:)?//", sheet.read_text(encoding="utf-8")), sheet
