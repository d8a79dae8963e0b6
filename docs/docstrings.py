"""Docstrings as reStructuredText: they are plain text in which `code` stands in backticks."""

import re
import textwrap

CODE = re.compile(r"(``.+?``|`[^`]+`)", re.DOTALL)
NAME = re.compile(r"[A-Za-z_][\w.]*")


def to_rst(docstring: str) -> str:
    """A docstring, without its indentation, for Sphinx.

    What is indented after an empty line is code, and so is what begins with `>>>`. What
    stands in single backticks is code, and a link where it is the name of something.
    """
    blocks = re.split(r"\n\s*\n", docstring.strip())
    return "\n\n".join(_code(block) if _is_code(block) else _prose(block) for block in blocks)


def _is_code(block: str) -> bool:
    return block.startswith((" ", ">>>"))


def _code(block: str) -> str:
    block = textwrap.dedent(block)
    language = "pycon" if block.startswith(">>>") else "none"
    return f".. code-block:: {language}\n\n" + "\n".join(
        "    " + line for line in block.splitlines()
    )


def _prose(block: str) -> str:
    """A paragraph, or a list in which a line that is not indented begins an entry."""
    parts = CODE.split(re.sub(r"::$", ":", block))
    text = "".join(
        _literal(part) if number % 2 else re.sub(r"([\\*|]|\b_|_\b)", r"\\\1", part)
        for number, part in enumerate(parts)
    )
    entries = re.split(r"\n(?=\S)", text)
    if all("\n" not in entry for entry in entries):  # no line is indented: a paragraph
        return text
    return "\n".join("| " + " ".join(entry.split()) for entry in entries)


def _literal(code: str) -> str:
    code = " ".join(code.strip("`").split())
    return f"`{code}`" if NAME.fullmatch(code) else f"``{code}``"
