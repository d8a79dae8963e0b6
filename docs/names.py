"""Names of the API in the prose of a page, `pad` say, as links to where they are documented."""

import re
from importlib import import_module

from docutils import nodes
from generate import packages
from sphinx.application import Sphinx
from sphinx.util.nodes import make_refnode

PAGES = re.compile(r"docs/\w+|notebooks/(\d\w+|one_page|GLOSSARY)")
NAME = re.compile(r"(?:mt\.)?([A-Za-z_]\w*)(?:\(.*\))?")  # pad, mt.pad, pad(rows)
IMPORT = re.compile(r"^from (minitransformer[\w.]*) import (\([^)]*\)|.*)", re.MULTILINE)


def full_name(module: str, name: str) -> str:
    """Of a function or class, by the module that defines it; empty for anything else."""
    found = getattr(import_module(module), name, None)
    qualified = getattr(found, "__qualname__", "")
    return f"{found.__module__}.{qualified}" if qualified else ""


def known_names(code: str) -> dict[str, str]:
    """Names that a page with this code may mean: public ones, and those that it imports.

    What the code itself defines is not one of them.
    """
    public = [(package, getattr(import_module(package), "__all__", ())) for package in packages()]
    imported = [
        (module, re.findall(r"\w+", re.sub(r"#.*", "", names)))
        for module, names in IMPORT.findall(code)
    ]
    known = {name: full_name(module, name) for module, all in public + imported for name in all}
    for name in re.findall(r"^(?:def|class) (\w+)", code, re.MULTILINE):
        known.pop(name, None)
    return known


def target_of(code: str, known: dict[str, str]) -> str:
    """The full name of what the code is: `pad(rows)`, or a dotted name such as `masks.pad`."""
    match = NAME.fullmatch(code)
    if match and match[1] in known:
        return known[match[1]]
    return "minitransformer." + code.removeprefix("minitransformer.") if "." in code else ""


def link_names(app: Sphinx, page: nodes.document, docname: str) -> None:
    """Turn `code` in a page that is the name of something documented into a link to it."""
    if not PAGES.fullmatch(docname):
        return
    documented = app.env.get_domain("py").objects
    known = known_names("\n".join(block.astext() for block in page.findall(nodes.literal_block)))
    for literal in list(page.findall(nodes.literal)):
        target = target_of(literal.astext(), known)
        if target in documented and not isinstance(literal.parent, nodes.reference):
            there = documented[target]
            link = make_refnode(
                app.builder, docname, there.docname, there.node_id, literal.deepcopy(), target
            )
            literal.replace_self(link)
