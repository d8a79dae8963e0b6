"""Code from a file or a notebook: its cells, and of these only what the wanted functions need."""

import __future__

import ast
import dis
import json
import linecache
import re
import sys
import warnings
from collections.abc import Callable, Iterator
from io import BytesIO
from tokenize import detect_encoding
from types import CodeType, ModuleType
from typing import Any, NamedTuple


def read_cells(name: str, data: bytes) -> list[tuple[str, str]]:
    """A .py file as one cell, or the code cells of a notebook: (label, source) each.

    Raises ValueError, which says what to do, for what is not a .py file or a notebook.
    """
    python = not name.lower().endswith(".ipynb")  # which may name its encoding
    try:
        encoding = detect_encoding(BytesIO(data).readline)[0] if python else "utf-8-sig"
        text = data.decode(encoding).replace("\r\n", "\n").replace("\r", "\n")
    except (ValueError, SyntaxError) as error:
        raise ValueError(f"{error}: save it as text in UTF-8") from None
    if python:
        return [(name, text)]
    try:
        sources = [c["source"] for c in json.loads(text)["cells"] if c["cell_type"] == "code"]
        joined = [source if isinstance(source, str) else "".join(source) for source in sources]
    except (ValueError, RecursionError) as error:
        raise ValueError(f"it is no notebook: {error}") from None
    except (KeyError, TypeError):
        expected = "expected cells with a source, as notebooks of format 4 have"
        raise ValueError(f"{expected}: open it in Jupyter and save it again") from None
    return [(f"{name} cell {number}", source) for number, source in enumerate(joined, 1)]


# What opens and closes what lies on several lines, and IPython's lines.
PIECES = re.compile(
    r"""
    (?P<open>[(\[{]) | (?P<close>[)\]}])
    | ^[ \t]*(?:(?P<given>[\w.][\w., \t]*=)[ \t]*)?(?P<magic>[%!])       # %time, !ls, files = !ls
    | ^[ \t]*(?P<help>\?{1,2}[\w.]+|[\w.]+\?{1,2})[ \t]*$          # ?torch.ones, torch.ones?
    | \#[^\n]*                                      # a comment
    | \\\n[ \t]*[%!]?                               # a line that goes on in the next
    | ["]{3}(?:\\.|[^\\])*?(?:["]{3}|\Z) | [']{3}(?:\\.|[^\\])*?(?:[']{3}|\Z)
    | "(?:\\.|[^"\\\n])*"? | '(?:\\.|[^'\\\n])*'?
    """,
    re.MULTILINE | re.DOTALL | re.VERBOSE,
)
REST = re.compile(r"(?:\\\n|[^\n])*")  # of a line, and of those that it goes on in


def without_magics(source: str) -> str:
    """A cell with `pass` for IPython's own lines, and None for what they give; brackets and strings
    stay whole."""
    parts, depth, done, at = [], 0, 0, 0
    while found := PIECES.search(source, at):
        at = found.end()
        depth = max(depth + bool(found["open"]) - bool(found["close"]), 0)
        if found["help"] and not depth:
            parts += [source[done : found.start("help")], "pass"]
            done = at
        if found["magic"] and not depth:
            rest = REST.match(source, at)
            instead = "None" if found["given"] else "pass"
            parts += [source[done : at - 1], instead, "\n" * rest.group().count("\n")]
            done = at = rest.end()
    return "".join([*parts, source[done:]])


def parse_cell(label: str, source: str) -> list[ast.stmt]:
    """The statements of a .py file, or of a notebook's cell.

    What does not parse is read without IPython's own lines, which a file that Colab saved has too.
    Raises SyntaxError or ValueError, with the line in the message, for what is not Python.
    """
    if "\0" in source:
        line = source.count("\n", 0, source.index("\0")) + 1
        raise ValueError(f"{label}, line {line}: holds a null byte: save the file as UTF-8 text")
    try:
        with warnings.catch_warnings(action="ignore"):
            try:
                return ast.parse(source).body
            except SyntaxError:
                pass
            return ast.parse(without_magics(source)).body
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        line = getattr(error, "lineno", None)
        where = f"{label}, line {line}: " if line else f"{label}: "
        raise ValueError(where + as_text(getattr(error, "msg", error))) from None


def told(error: BaseException) -> str:
    """What an exception says, on one line and as text that every file takes."""
    try:
        said = str(error)
    except BaseException:  # its own __str__ raises
        said = "(it cannot be shown)"
    return as_text(said.split("\n")[0][:500])


def as_text(thing: Any) -> str:
    """Its beginning, with no surrogates."""
    return str(thing)[:1000].encode("utf-8", "backslashreplace").decode()


def load_cells(
    cells: list[tuple[str, str]], wanted: list[str], told: Callable[[BaseException], str] = told
) -> tuple[dict, list[str]]:
    """Run what the wanted functions need of a submission, cell by cell; the rest is left alone.

    Returns the names defined, and what went wrong, in the words of `told`. Only imports are run,
    and statements that define or change what a wanted function comes to: training loops and prints
    of a notebook are none of the grader's business.
    """
    nodes, errors = [], []
    for label, source in cells:
        lines = source.splitlines(keepends=True)  # for torch.jit.script, inspect and tracebacks
        linecache.cache[f"<{label}>"] = (len(source), None, lines, f"<{label}>")
        try:
            nodes += [(label, node) for node in parse_cell(label, source)]
        except ValueError as error:
            errors.append(told(error))
    module = ModuleType("submission")
    sys.modules["submission"] = module  # dataclasses look their module up
    space = vars(module)
    flags = _flags([node for _, node in nodes])
    needed = needed_by([node for _, node in nodes], wanted)
    for label, node in nodes:
        if node not in needed:
            continue
        try:
            with warnings.catch_warnings(action="ignore"):
                code = compile(ast.Module([node], []), f"<{label}>", "exec", flags, True)
            exec(code, space)
        except BaseException as error:  # SystemExit too: a submission may call exit()
            errors.append(f"{label}, line {node.lineno}: {type(error).__name__}: {told(error)}")
    return space, errors


def _flags(nodes: list[ast.stmt]) -> int:
    """What its `from __future__ import ...` ask of the compiler, for the whole submission."""
    flags = 0
    for node in nodes:
        if isinstance(node, ast.ImportFrom) and node.module == "__future__":
            for alias in node.names:
                feature = getattr(__future__, alias.name, None)
                flags |= getattr(feature, "compiler_flag", 0)
    return flags


IMPORTS = (ast.Import, ast.ImportFrom)
DEFINITIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)


def needed_by(nodes: list[ast.stmt], wanted: list[str]) -> set[ast.stmt]:
    """Imports, and the statements that define or change what the wanted names come to.

    A call that stands alone, as `TABLE.append(1)` or `fill(TABLE)` does, changes what it is called
    of or with, unless that is a function; so does one of a function that changes it.
    """
    flags = _flags(nodes)
    binding: dict[str, list[ast.stmt]] = {}
    changing: dict[str, list[ast.stmt]] = {}
    things: set[str] = set()  # what is no function, or one to be called for what it changes
    for node in nodes:
        names = _names(node, flags)
        for name in names.bound:
            binding.setdefault(name, []).append(node)
        for name in names.changed:
            changing.setdefault(name, []).append(node)
        if not isinstance(node, IMPORTS + DEFINITIONS):
            things |= names.bound
    needed = {node for node in nodes if isinstance(node, IMPORTS)}
    todo, done = list(wanted), set()
    while todo:
        name = todo.pop()
        if name in done:
            continue
        done.add(name)
        for node in binding.get(name, []) + (changing.get(name, []) if name in things else []):
            if isinstance(node, DEFINITIONS) and node.name != name and node.name not in wanted:
                if node.name not in things:  # calls of it count
                    things.add(node.name)
                    done.discard(node.name)
                todo.append(node.name)
            if node not in needed:
                needed.add(node)
                todo += _names(node, flags).used
    return needed


class _Names(NamedTuple):
    """The global names that a statement binds, reads and may change the things of.

    Reading and changing is counted in the functions that it defines too.
    """

    bound: set[str]
    used: set[str]
    changed: set[str]


def _names(node: ast.stmt, flags: int) -> _Names:
    """Kept with the node, which is asked about for every exercise."""
    if "_names" not in vars(node):
        vars(node)["_names"] = _find_names(node, flags)
    return vars(node)["_names"]


def _find_names(node: ast.stmt, flags: int) -> _Names:
    bound, used = set(), set()
    try:
        with warnings.catch_warnings(action="ignore"):
            todo = [compile(ast.Module([node], []), "", "exec", flags, True)]
    except (SyntaxError, ValueError, OverflowError, RecursionError, MemoryError):
        # It cannot be run, which its name will be told of.
        named = {one.id for one in ast.walk(node) if isinstance(one, ast.Name)}
        return _Names(named | {getattr(node, "name", "")}, named, set())
    while todo:
        code = todo.pop()
        for step in dis.get_instructions(code):
            if step.opname.startswith(("STORE_", "DELETE_")) and step.opname.endswith(
                ("_NAME", "_GLOBAL")
            ):
                if step.opname.endswith("_GLOBAL") or code.co_name == "<module>":
                    bound.add(step.argval)
            elif step.opname.startswith(("LOAD_NAME", "LOAD_GLOBAL", "LOAD_FROM_DICT")):
                used.add(step.argval)
        todo += [constant for constant in code.co_consts if isinstance(constant, CodeType)]
    if not isinstance(node, DEFINITIONS):  # f.table = ... is needed where f is
        bound |= set(_set_in(node)) & used
    return _Names(bound, used, set(_changed_in(node)) & used)


def _set_in(node: ast.stmt) -> Iterator[str]:
    """Names of which an attribute or an item is set."""
    for one in ast.walk(node):
        if isinstance(one, ast.Attribute | ast.Subscript) and not isinstance(one.ctx, ast.Load):
            yield _root(one)


def _changed_in(node: ast.stmt) -> Iterator[str]:
    """Names of which something is set, and those that a call which stands alone may change."""
    yield from _set_in(node)
    for statement in ast.walk(node):
        if not isinstance(statement, ast.Expr):
            continue
        for call in ast.walk(statement):
            if isinstance(call, ast.Call):
                yield _root(call.func)
                if not isinstance(node, DEFINITIONS):  # handed on: a function may only read it
                    given = [*call.args, *(keyword.value for keyword in call.keywords)]
                    yield from (one.id for one in given if isinstance(one, ast.Name))


def _root(node: ast.expr) -> str:
    """The name at the beginning of a.b[c].d(e)."""
    while isinstance(node, ast.Attribute | ast.Subscript | ast.Call):
        node = node.func if isinstance(node, ast.Call) else node.value
    return node.id if isinstance(node, ast.Name) else ""
