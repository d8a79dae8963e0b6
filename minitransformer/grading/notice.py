"""What a person should look at in a submission's code, told without running it.

None of it decides points: it becomes a note beside the score, or a line of `--review`.
"""

import ast
import hashlib
from collections.abc import Sequence
from contextlib import suppress

from minitransformer.exercises.borrowing import PACKAGE
from minitransformer.exercises.cells import needed_by, parse_cell
from minitransformer.exercises.chapters import EXERCISES

# Honest answers need none of these; with some of them a function can get around what is refused.
WORDS = """
    threading _thread concurrent asyncio multiprocessing subprocess signal ctypes gc inspect
    importlib __import__ __main__ __builtins__ builtins __globals__ __closure__ __subclasses__
    _getframe _current_frames f_back f_globals tb_frame settrace setprofile _python_dispatch
    _C _mode_utils no_dispatch sys.modules __dict__ __getattribute__ mmap
"""
REMARKABLE = set(WORDS.split())
CALLS = {"exec", "eval", "compile", "globals", "vars"}  # by these names, not as methods
LIBRARIES = ("scipy", "sklearn", "jax", "tensorflow")  # that have what is to be written
SHORTEST = 80  # nodes of an answer that two students hardly write alike

Cells = Sequence[tuple[str, str]]


def statements_of(cells: Cells) -> list[ast.stmt]:
    """The statements of the cells that are Python."""
    statements = []
    for label, source in cells:
        with suppress(ValueError):
            statements += parse_cell(label, source)
    return statements


def remarkable(statements: Sequence[ast.stmt], names: Sequence[str]) -> list[str]:
    """What a person should look at in the statements that are run for these: sorted names."""
    needed = needed_by(list(statements), names)
    nodes = [node for one in needed for node in ast.walk(one)]
    called = {node.id for node in nodes if isinstance(node, ast.Name)} & CALLS
    called |= {"getattr" for node in nodes if _gets_what_it_computes(node)}
    words = {word for node in nodes for word in _words(node)} & REMARKABLE
    libraries = {
        library for library in LIBRARIES for name in names if used_of(library, name, statements)
    }
    return sorted(called | words | libraries)


def _gets_what_it_computes(node: ast.AST) -> bool:
    """getattr(torch, "soft" + "max"): the name does not stand there."""
    if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Name)):
        return False
    return node.func.id == "getattr" and not all(
        isinstance(name, ast.Constant) for name in node.args[1:2]
    )


def borrowed_by(name: str, statements: Sequence[ast.stmt]) -> str:
    """What of minitransformer a submission's function uses; as `borrows`, without running it."""
    return used_of(PACKAGE, name, statements)


def used_of(package: str, name: str, statements: Sequence[ast.stmt]) -> str:
    """What of a package a submission's function uses; empty where it uses nothing of it."""
    given = {
        alias.asname or alias.name.partition(".")[0]
        for statement in statements
        for one in ast.walk(statement)  # within try and if, too
        if isinstance(one, ast.Import | ast.ImportFrom) and package in _words(one)
        for alias in one.names
    }
    for one in needed_by(list(statements), [name]):
        if isinstance(one, ast.Import | ast.ImportFrom):
            continue
        for node in ast.walk(one):
            if isinstance(node, ast.Name) and node.id in given:
                return node.id
            if package in _words(node) and not isinstance(node, ast.Attribute):
                return package
    return ""


def _words(node: ast.AST) -> set[str]:
    """The names that a node holds, modules by their parts; texts too: getattr(sys, "_getframe")."""
    if isinstance(node, ast.Import):
        texts = [alias.name for alias in node.names]
    elif isinstance(node, ast.ImportFrom):
        texts = [node.module or "", *(alias.name for alias in node.names)]
    elif isinstance(node, ast.Name):
        texts = [node.id]
    elif isinstance(node, ast.Attribute):
        of = f"{node.value.id}.{node.attr}" if isinstance(node.value, ast.Name) else ""
        return {node.attr, of}
    elif isinstance(node, ast.Constant) and isinstance(node.value, str) and len(node.value) < 100:
        texts = [node.value]
    else:
        return set()
    return {part for text in texts for part in text.split(".")}


def answer_of(name: str, statements: Sequence[ast.stmt]) -> str:
    """A digest of what a function comes to, the same whatever its variables are called.

    Empty for one so short that honest answers are alike, for the solution itself, to which a hint
    leads, and for what is not there.
    """
    digest = _digest_of(name, statements)
    if EXERCISES[name].stored:  # there is no solution to compare with
        return digest
    solution = _digest_of(name, ast.parse(EXERCISES[name].source).body)
    return "" if digest == solution else digest


def _digest_of(name: str, statements: Sequence[ast.stmt]) -> str:
    needed = needed_by(list(statements), [name])
    kept = [one for one in statements if one in needed]
    kept = [one for one in kept if not isinstance(one, ast.Import | ast.ImportFrom)]
    known: dict[str, str] = {}
    parts = []
    for node in (node for one in kept for node in ast.walk(one)):
        parts.append(type(node).__name__)
        for key in ("id", "arg", "attr", "name"):
            text = getattr(node, key, None)
            if isinstance(text, str):
                own = key != "attr"
                parts.append(known.setdefault(text, str(len(known))) if own else text)
        if isinstance(node, ast.Constant) and not isinstance(node.value, str):
            parts.append(repr(node.value))
    if len(parts) < SHORTEST:
        return ""
    return hashlib.sha256(" ".join(parts).encode("utf-8", "replace")).hexdigest()
