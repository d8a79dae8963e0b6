"""From what the user names, `package.module:function` or `file.py:function`, to a subject."""

import importlib
import importlib.util
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import MISSING, fields, replace
from difflib import get_close_matches
from pathlib import Path
from types import ModuleType, NoneType
from typing import Any, get_args

from minitransformer.checks.engine.arguments import by_name, parameters_of, required
from minitransformer.checks.engine.subject import SUBJECTS, Subject
from minitransformer.checks.engine.time_limit import OutOfTime, time_limit
from minitransformer.checks.known import KNOWN, known

LAYER = "layer"  # an encoder that takes embeddings
IMPORT_SECONDS, IMPORT_WALL = 60.0, 300.0


def find_subject(where: str, kind: str | None = None, declared: dict[str, str] | None = None):
    """The subject that `where` names, as this kind, with declarations as they were typed.

    A class is built without arguments; `name()` is called and gives what is checked. Raises
    ValueError, TypeError or ImportError with what to do about it.
    """
    declared = declared or {}
    if kind == LAYER:
        kind, declared = "encoder", {"takes": "embeddings"} | declared
    subject = known(where) if kind is None else None
    if subject is not None:
        return replace(subject, **parse_declarations(type(subject), declared))
    thing = find(where)
    if isinstance(thing, Subject):
        if kind not in (None, thing.kind):
            raise ValueError(f"{where} was declared as {thing.kind}, not as {kind}")
        return replace(thing, **parse_declarations(type(thing), declared))
    kind = kind or "attention"
    cls = SUBJECTS[kind]
    flags = {text for name, text in declared.items() if name.endswith("_flag")}
    _refuse(thing, cls, where, flags)
    return cls(thing, name=where, **parse_declarations(cls, declared))


# ---- finding it ----------------------------------------------------------------------------------


def find(where: str) -> Any:
    """The function, or the object of the class, that `where` names."""
    source, colon, name = where.rpartition(":")
    if not colon or not source or not name:
        raise ValueError(
            f"expected package.module:function or file.py:function, got {where!r}"
            + _offer(where if where.endswith(".py") and Path(where).is_file() else None)
        )
    module = _import(source)
    name, call, _ = name.partition("()")
    thing = module
    for part in name.split("."):
        if not hasattr(thing, part):
            names = [one for one in dir(thing) if callable(getattr(thing, one, None))]
            near = get_close_matches(part, names, n=3, cutoff=0.5) or _own(module)
            hint = f"; did you mean {' or '.join(near)}?" if near else ""
            raise ValueError(f"{source} has no {part!r}{hint}")
        thing = getattr(thing, part)
    if call or isinstance(thing, type):
        try:
            with _as_their_own(f"calling {name}()"):
                thing = thing()
        except TypeError as error:
            file = source if source.endswith(".py") else "yours.py"
            raise TypeError(
                f"{where}: could not be called without arguments ({error}); write a function "
                f"that builds it, `def build(): return {name}(...)`, and check {file}:build()"
                + _known_beside(where)
            ) from None
    if not callable(thing):
        raise TypeError(f"{where} is not callable: it is of type {type(thing).__name__}")
    return thing


def _import(source: str) -> ModuleType:
    """A module by its name, or a file; whatever goes wrong in it is told with its line."""
    file = Path(source)
    if source.endswith(".py"):
        if not file.is_file():
            names = [str(path) for path in file.parent.glob("*.py")] if file.parent.is_dir() else []
            near = get_close_matches(source, names, n=3)
            hint = f"; did you mean {' or '.join(near)}?" if near else ""
            raise ValueError(f"{source}: no such file{hint}")
        folder, name = str(file.resolve().parent), file.stem
    else:
        folder, name = str(Path.cwd()), source
    if folder not in sys.path:
        sys.path.insert(0, folder)  # and left there: a function may import when it is called
    with _as_their_own(f"importing {source}"):
        if not source.endswith(".py"):
            return importlib.import_module(name)
        spec = importlib.util.spec_from_file_location(name, file)
        if spec is None or spec.loader is None:
            raise ValueError(f"{source}: cannot be imported")
        module = importlib.util.module_from_spec(spec)
        before = sys.modules.get(name)
        sys.modules[name] = module  # dataclasses and pickle look a module up by its name
        try:
            spec.loader.exec_module(module)
        finally:
            if before is not None:  # a student's random.py must not replace Python's
                sys.modules[name] = before
        return module


@contextmanager
def _as_their_own(doing: str) -> Iterator[None]:
    """Run foreign code: its output goes to stderr, its errors are told in a line with place."""
    try:
        with redirect_stdout(sys.stderr), time_limit(IMPORT_SECONDS, IMPORT_WALL):
            yield
    except OutOfTime as limit:
        raise ValueError(f"{doing} did not end: {limit}") from None
    except SystemExit:
        raise ValueError(
            f'{doing} called exit(): put the main part under `if __name__ == "__main__":`'
        ) from None
    except SyntaxError as error:
        raise ValueError(f"{doing}: {error.filename}:{error.lineno}: {error.msg}") from None
    except TypeError as error:
        if len(traceback.extract_tb(error.__traceback__)) <= 2:  # the call itself, not inside it
            raise
        raise ValueError(f"{doing} failed: {_told(error)}") from None
    except Exception as error:
        raise ValueError(f"{doing} failed: {_told(error)}") from None


def _told(error: Exception) -> str:
    """Type, message and the last line that is not of the import machinery."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if frame.filename not in (__file__, importlib.__file__)]
    own = [frame for frame in own if not frame.filename.startswith("<frozen")]
    place = f" ({own[-1].filename}, line {own[-1].lineno})" if own else ""
    return f"{type(error).__name__}: {error}{place}"


def _own(module: ModuleType) -> list[str]:
    """The functions and classes that a module defines itself, in the order of their lines."""
    return [
        name
        for name, thing in vars(module).items()
        if getattr(thing, "__module__", None) == module.__name__
        and callable(thing)
        and not name.startswith("_")
    ]


def _offer(source: str | None) -> str:
    """The functions of a file named without one of them."""
    names = _own(_import(source)) if source else []
    return f"; it has {', '.join(names)}: say {source}:{names[0]}" if names else ""


def _known_beside(where: str) -> str:
    """What of the same package can be checked as it is."""
    package = where.partition(":")[0].partition(".")[0]
    names = [name for name in KNOWN if name.partition(":")[0].partition(".")[0] == package]
    near = get_close_matches(where, names, n=3, cutoff=0.0)
    return f". Of {package} these can be checked as they are: {', '.join(near)}" if near else ""


def _refuse(fn: Callable, cls: type[Subject], where: str, flags: Iterable[str]) -> None:
    """What cannot be called with the arguments of its kind, by position or by name."""
    parameters, arguments = parameters_of(fn), cls.arguments
    if not parameters or by_name(fn, arguments, flags) is not fn:
        return
    by_position = [one for one in parameters if one.kind < one.VAR_POSITIONAL]
    if len(by_position) < len(arguments) or len(required(parameters, flags)) > len(arguments):
        raise TypeError(
            f"{where} takes ({', '.join(map(str, parameters))}), but as {cls.kind} it is called "
            f"with ({', '.join(arguments)}): wrap it in a function that takes these, or say with "
            "--as what else it is"
        )


# ---- what is declared ----------------------------------------------------------------------------


def parse_declarations(cls: type[Subject], declared: dict[str, str]) -> dict[str, Any]:
    """The values as the class wants them: yes and no, numbers, lists with commas."""
    known_fields = {one.name: one for one in fields(cls) if one.name not in ("fn", "name")}
    values = {}
    for name, text in declared.items():
        if name not in known_fields:
            near = get_close_matches(name, known_fields, n=1)
            hint = (
                f"did you mean {near[0]}?" if near else f"it may declare {', '.join(known_fields)}"
            )
            raise ValueError(f"a subject of kind {cls.kind} declares no {name!r}: {hint}")
        if "Callable" in str(known_fields[name].type):
            raise ValueError(
                f"{name} is a function: declare it in Python, {cls.__name__}(fn, {name}=...), and "
                "name that subject here"
            )
        default = known_fields[name].default
        default = None if default is MISSING else default
        values[name] = _value(name, text, default, known_fields[name].type)
    return values


def _value(name: str, text: str, default: Any, declared: Any) -> Any:
    """Of the default's type, or of that of the field; "none" where it may be None."""
    types = {type(default), declared, *get_args(declared)}
    words = {"yes": True, "true": True, "no": False, "false": False}
    if isinstance(default, bool):
        if text.lower() not in words:
            raise ValueError(f"{name} must be yes or no, got {text!r}")
        return words[text.lower()]
    if isinstance(default, tuple):
        return tuple(part.strip() for part in text.split(",") if part.strip())
    if text.lower() == "none" and NoneType in types:
        return None
    for number in (int, float):
        if number in types:
            try:
                return number(text)
            except ValueError:
                raise ValueError(f"{name} must be a number, got {text!r}") from None
    return words.get(text.lower(), text) if default is None else text
