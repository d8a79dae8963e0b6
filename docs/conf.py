"""The documentation site: `python scripts/docs.py` builds it, and needs no network to do so.

The source folder is the repository itself, so that a link from one page to another is the same on
the site, on a code host and in a checkout. What `generate.py` writes (`docs/generated/`) is not
committed.
"""

import sys
from pathlib import Path

from docutils.utils.math import latex2mathml

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent)]

from docstrings import to_rst  # noqa: E402
from names import link_names  # noqa: E402

import minitransformer  # noqa: E402

sys.modules["transformers"] = (
    None  # to look for links, codeautolink would import each of its models
)

project = "minitransformer"
copyright = "the minitransformer contributors, MIT license"
version = release = minitransformer.__version__
extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx_codeautolink", "sphinx.ext.intersphinx"]
root_doc = "docs/index"
include_patterns = [
    "docs/*.md",
    "docs/generated/*",
    "notebooks/**",
    "scripts/*.md",
    "README.md",
    "CHANGELOG.md",
    "CONTRIBUTING.md",
]
exclude_patterns = ["**/.ipynb_checkpoints"]

highlight_language = "none"  # a block that names none is what a terminal shows

html_theme = "furo"
html_title = "minitransformer"
# extra/index.html leads from the top of the site to its first page
html_extra_path = ["extra", "../minitransformer/pages/explorer.html", "generated/viewer.html"]
html_copy_source = False
html_static_path = ["static"]
html_css_files = ["site.css"]
html_js_files = [("site.js", {"defer": "defer"})]

nb_execution_mode = "off"  # they are executed and committed
nb_output_stderr = "remove"
myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 3

autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
autodoc_inherit_docstrings = False  # those of torch are torch's
autodoc_typehints_format = "short"
default_role = "py:obj"  # `pad` in a docstring is a link where there is such a name
python_use_unqualified_type_names = True
# Names of other libraries become links where their inventories are at hand:
# {"torch": ("https://docs.pytorch.org/docs/stable", "PATH/torch.inv")}
intersphinx_mapping = {}
suppress_warnings = [
    "mystnb.unknown_mime_type",
    "codeautolink.parse_block",  # examples that are no whole programs
    "codeautolink.import_star",
    "codeautolink.match_block",  # sessions that are marked as Python
    "ref.python",  # two modules have a function of this name
]


def _formula(node, as_block: bool) -> str:
    return latex2mathml.tex2mathml(node.astext(), as_block=as_block)


def _visit_inline(self, node) -> None:
    from docutils.nodes import SkipNode

    self.body.append(_formula(node, as_block=False))
    raise SkipNode


def _visit_block(self, node) -> None:
    from docutils.nodes import SkipNode

    self.body.append(f'<div class="math">{_formula(node, as_block=True)}</div>')
    raise SkipNode


def _docstring(app, what, name, obj, options, lines: list[str]) -> None:
    lines[:] = to_rst("\n".join(lines)).splitlines()


def setup(app) -> None:
    """Formulas are MathML, drawn without a script; docstrings are plain text; names are links."""
    app.add_html_math_renderer("mathml", (_visit_inline, None), (_visit_block, None))
    app.connect("autodoc-process-docstring", _docstring)
    app.connect("doctree-resolved", link_names)
    app.config.html_math_renderer = "mathml"
