"""Whether a learner's function uses what is in this package, which is theirs to write."""

import dis
from collections.abc import Callable, Iterator
from contextlib import suppress
from types import CodeType, FunctionType, ModuleType
from typing import Any

PACKAGE = "minitransformer"


def borrows(fn: Callable) -> str:
    """What of minitransformer a function uses, itself or through others that stand beside it."""
    seen: set[int] = set()
    todo: list[tuple[str, Any]] = [(getattr(fn, "__name__", "it"), fn)]
    while todo:
        name, thing = todo.pop()
        module = _module_of(thing)
        if PACKAGE in (module, name.partition(".")[0]):
            return name
        if id(thing) in seen or module in ("torch", "einops"):
            continue
        seen.add(id(thing))
        if isinstance(thing, type):
            members = {n: getattr(member, "__func__", member) for n, member in vars(thing).items()}
            todo += [(n, one) for n, one in members.items() if isinstance(one, FunctionType)]
        elif isinstance(thing, FunctionType):
            space = thing.__globals__
            todo += [(used, space.get(used)) for used in names_used(thing.__code__)]
            for free, cell in zip(thing.__code__.co_freevars, thing.__closure__ or (), strict=True):
                with suppress(ValueError):  # an empty cell
                    todo.append((free, cell.cell_contents))
            todo += [(name, default) for default in thing.__defaults__ or ()]
    return ""


def names_used(code: CodeType) -> Iterator[str]:
    """The globals that it loads and the modules that it names, in functions inside it too."""
    for step in dis.get_instructions(code):
        if step.opname.startswith(("LOAD_GLOBAL", "LOAD_NAME", "LOAD_FROM_DICT", "IMPORT_NAME")):
            yield step.argval
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from names_used(constant)
        elif isinstance(constant, str) and constant.partition(".")[0] == PACKAGE:
            yield constant  # of importlib.import_module


def _module_of(thing: Any) -> str:
    """The name of the package that a thing comes from."""
    name = thing.__name__ if isinstance(thing, ModuleType) else getattr(thing, "__module__", "")
    return name.partition(".")[0] if isinstance(name, str) else ""
