"""The process that runs a submission: it needs torch, and none of minitransformer.

Requests come on standard input and answers go out on what was standard output, as JSON with the
tensors behind it in safetensors; nothing that a submission prints can get between. The verdict is
the other side's: here functions are only called. Run as a script by `sandbox.py`.
"""

import __future__

import ast
import builtins
import dis
import json
import os
import re
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator
from types import CodeType, ModuleType
from typing import Any, BinaryIO, NamedTuple

import torch
from safetensors.torch import load, save
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

MEMORY = 5 * 2**29  # bytes of address space that a submission may add to what torch took
OUT_OF_MEMORY = 12  # exit code of a process that has too little left to say so
LARGEST = 2**28  # bytes of one message's tensors, and of a request
LONGEST = 2**20  # bytes of an answer's JSON: honest ones have some hundred
ERRORS = 50  # of a submission that are told
KEPT = 64  # calls that a backward pass may still come for
NO_MEMORY = re.compile("(can't|cannot) allocate memory|failed to map segment", re.IGNORECASE)


class Forbidding(TorchDispatchMode):
    """Raises where an operator of torch is used that the learner is to write.

    `largest` counts the elements of the largest floating tensor that was computed meanwhile.
    """

    def __init__(self, parts: tuple[str, ...]):
        super().__init__()
        self.parts, self.largest = parts, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = str(func).removeprefix("aten.").partition(".")[0]
        if any(part in name for part in self.parts):
            raise RuntimeError(f"torch's {name.strip('_')} may not be used here: write it yourself")
        found = func(*args, **(kwargs or {}))
        if isinstance(found, Tensor) and found.is_floating_point():
            self.largest = max(self.largest, found.numel())
        return found


# ---- messages --------------------------------------------------------------------------------


def write_message(file: Any, message: Any, tensors: list[Tensor], longest: int = LARGEST) -> None:
    """`file` needs write() and flush(). Raises ValueError for what is too large to be sent."""
    text = json.dumps(message).encode()
    size = sum(tensor.numel() * tensor.element_size() for tensor in tensors)
    for what, got, most in (("JSON", len(text), longest), ("tensors", size, LARGEST - LONGEST)):
        if got > most:
            raise ValueError(f"expected an answer of at most {most:,} bytes of {what}, got {got:,}")
    named = {str(i): tensor.detach().contiguous().clone() for i, tensor in enumerate(tensors)}
    data = save(named) if named else b""
    file.write(b"%d %d\n" % (len(text), len(data)) + text + data)
    file.flush()


def read_message(file: Any, longest: int = LARGEST) -> tuple[dict, list[Tensor]]:
    """`file` needs readline() and read(). The JSON has at most `longest` bytes.

    Raises EOFError where the other side is gone, ValueError for what is no message.
    """
    line = file.readline(64)
    if not line:
        raise EOFError("the other side is gone")
    sizes = [int(word) for word in line.split()]
    if len(sizes) != 2 or not 0 <= sizes[0] <= longest or not 0 <= sizes[1] <= LARGEST:
        raise ValueError(f"a message of impossible size, {line!r}")
    text, data = (_read_exactly(file, size) for size in sizes)
    try:
        message = json.loads(text)
    except RecursionError:
        raise ValueError("JSON that is nested too deep") from None
    if not isinstance(message, dict):
        raise ValueError(f"expected an object of JSON, got a {type(message).__name__}")
    if int.from_bytes(data[:8], "little") > LONGEST:  # the tensors' names and shapes, in JSON too
        raise ValueError("safetensors with an impossible header")
    try:
        named = load(data) if data else {}
        return message, [named[str(i)] for i in range(len(named))]
    except Exception as error:  # safetensors has errors of its own
        raise ValueError(f"no safetensors: {error}") from None


def _read_exactly(file: Any, size: int) -> bytes:
    data = file.read(size)
    if len(data) != size:
        raise EOFError("the other side is gone")
    return data


def pack(value: Any, tensors: list[Tensor], callables: list[Callable] | None = None) -> Any:
    """A value as JSON, its tensors appended to `tensors` and its functions to `callables`."""
    if isinstance(value, Tensor):
        tensors.append(value)
        return {"tensor": len(tensors) - 1}
    if value is None or type(value) in (bool, int, float, str):
        return {"value": value}
    if type(value) in (list, tuple):
        kind = type(value).__name__
        return {kind: [pack(one, tensors, callables) for one in value]}
    if isinstance(value, torch.dtype):
        return {"dtype": str(value).removeprefix("torch.")}
    if callables is not None and callable(value):
        callables.append(value)
        return {"callable": len(callables) - 1}
    raise TypeError(f"a {type(value).__name__} cannot be handed on: expected tensors and numbers")


def unpack(packed: Any, tensors: list[Tensor], call: Callable | None = None) -> Any:
    """What `pack` packed; functions become ones that ask the other side.

    Raises ValueError for what `pack` does not give.
    """
    kind, value = next(iter(packed.items())) if isinstance(packed, dict) and packed else (None, 0)
    if kind == "tensor" and type(value) is int and 0 <= value < len(tensors):
        return tensors[value]
    if kind in ("list", "tuple") and isinstance(value, list):
        return getattr(builtins, kind)(unpack(one, tensors, call) for one in value)
    if kind == "dtype" and isinstance(dtype := vars(torch).get(str(value)), torch.dtype):
        return dtype
    if kind == "callable" and call is not None:
        return lambda *arguments, number=value: call(number, arguments)
    if kind == "value" and (value is None or type(value) in (bool, int, float, str)):
        return value
    raise ValueError(f"not a value: {str(packed)[:100]}")


def told(error: BaseException) -> str:
    """What an exception says, on one line and as text that every file takes."""
    try:
        said = str(error)
    except BaseException:  # its own __str__ raises
        said = "(it cannot be shown)"
    if isinstance(error, MemoryError) or NO_MEMORY.search(said):
        return f"it asked for more than {MEMORY / 2**20:,.0f} MiB of memory"
    return as_text(said.split("\n")[0][:500])


def as_text(thing: Any) -> str:
    """Its beginning, with no surrogates."""
    return str(thing)[:1000].encode("utf-8", "backslashreplace").decode()


# ---- the submission --------------------------------------------------------------------------

# What opens and closes what lies on several lines, and IPython's lines.
PIECES = re.compile(
    r"""
    (?P<open>[(\[{]) | (?P<close>[)\]}])
    | ^[ \t]*(?P<magic>[%!])
    | \#[^\n]*                                      # a comment
    | \\\n[ \t]*[%!]?                               # a line that goes on in the next
    | ["]{3}(?:\\.|[^\\])*?(?:["]{3}|\Z) | [']{3}(?:\\.|[^\\])*?(?:[']{3}|\Z)
    | "(?:\\.|[^"\\\n])*"? | '(?:\\.|[^'\\\n])*'?
    """,
    re.MULTILINE | re.DOTALL | re.VERBOSE,
)
REST = re.compile(r"(?:\\\n|[^\n])*")  # of a line, and of those that it goes on in


def without_magics(source: str) -> str:
    """A cell with `pass` for IPython's %lines and !lines; brackets and strings stay whole."""
    parts, depth, done, at = [], 0, 0, 0
    while found := PIECES.search(source, at):
        at = found.end()
        depth = max(depth + bool(found["open"]) - bool(found["close"]), 0)
        if found["magic"] and not depth:
            rest = REST.match(source, at)
            parts += [source[done : at - 1], "pass", "\n" * rest.group().count("\n")]
            done = at = rest.end()
    return "".join([*parts, source[done:]])


def parse_cell(label: str, source: str) -> list[ast.stmt]:
    """The statements of a .py file, or of a notebook's cell: its label does not end in .py.

    A cell that does not parse is read without IPython's %lines and !lines.
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
                if label.endswith(".py"):
                    raise
            return ast.parse(without_magics(source)).body
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        line = getattr(error, "lineno", None)
        where = f"{label}, line {line}: " if line else f"{label}: "
        raise ValueError(where + as_text(getattr(error, "msg", error))) from None


def load_cells(cells: list[tuple[str, str]], wanted: list[str]) -> tuple[dict, list[str]]:
    """Run what the wanted functions need of a submission, cell by cell; the rest is left alone.

    Returns the names defined, and what went wrong. Only imports are run, and statements that define
    or change what a wanted function comes to: training loops and prints of a notebook are none of
    the grader's business.
    """
    nodes, errors = [], []
    for label, source in cells:
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


def serve(source: BinaryIO, sink: BinaryIO) -> None:
    """Answer requests until the other side is gone."""
    space: dict[str, Any] = {}
    calls: dict[int, tuple[list[Tensor], list[Tensor]]] = {}

    def ask(number: int, arguments: tuple) -> Any:
        tensors: list[Tensor] = []
        packed = pack(arguments, tensors)
        write_message(sink, {"callback": number, "arguments": packed}, tensors, LONGEST)
        message, tensors = read_message(source)
        if "error" in message:
            raise RuntimeError(message["error"])
        return unpack(message["answer"], tensors)

    def load_submission(message: dict, tensors: list[Tensor]) -> tuple[dict, list[Tensor]]:
        loaded, errors = load_cells(message["cells"], message["wanted"])
        space.update(loaded)
        names = [name for name in message["wanted"] if callable(space.get(name))]
        return {"names": names, "errors": [as_text(error) for error in errors[:ERRORS]]}, []

    def call(message: dict, tensors: list[Tensor]) -> tuple[dict, list[Tensor]]:
        for index in message["gradients"]:
            tensors[index].requires_grad_(True)
        before = [tensor.detach().clone() for tensor in tensors]
        arguments = unpack(message["arguments"], tensors, ask)
        flags = {name: unpack(flag, tensors, ask) for name, flag in message["flags"].items()}
        forbidding = Forbidding(tuple(message["forbidden"]))
        with torch.set_grad_enabled(message["grad"]), forbidding:
            answer = space[message["name"]](*arguments, **flags)
        outputs: list[Tensor] = []
        packed = pack(answer, outputs)
        calls[message["id"]] = ([tensors[i] for i in message["gradients"]], list(outputs))
        calls.pop(message["id"] - KEPT, None)
        reply = {
            "answer": packed,
            "outputs": len(outputs),
            "differentiable": [output.requires_grad for output in outputs],
            "changed": [],
            "largest": forbidding.largest,
        }
        for index, (old, new) in enumerate(zip(before, tensors, strict=True)):
            alike = old.shape == new.shape and old.dtype == new.dtype
            if alike and not ((old == new) | ((old != old) & (new != new))).all():  # NaN != NaN
                reply["changed"].append([index, len(outputs)])
                outputs.append(new)
        return reply, outputs

    def backward(message: dict, tensors: list[Tensor]) -> tuple[dict, list[Tensor]]:
        inputs, outputs = calls[message["id"]]
        outputs = [outputs[i] for i in message["of"]]
        found = torch.autograd.grad(outputs, inputs, tensors, retain_graph=True, allow_unused=True)
        there = [i for i, gradient in enumerate(found) if gradient is not None]
        return {"there": there}, [found[i] for i in there]

    requests = {"load": load_submission, "call": call, "backward": backward}
    while True:
        try:
            message, tensors = read_message(source)
        except EOFError:
            return
        try:
            reply, sent = requests[message["request"]](message, tensors)
            write_message(sink, reply, sent, LONGEST)
        except BaseException as error:
            line = ""
            for frame in reversed(traceback.extract_tb(error.__traceback__)):
                if frame.filename.startswith("<"):
                    line = f" ({frame.filename.strip('<>')}, line {frame.lineno})"
                    break
            write_message(
                sink, {"error": as_text(type(error).__name__), "said": told(error) + line}, []
            )


def limit_memory() -> None:
    """Let this process add `MEMORY` bytes to what it has by now, and no more.

    Builds of torch differ: the CPU build takes 0.6 GiB of address space, a CUDA build 3.1 GiB.
    Writable memory has a limit of its own: who unmaps a library must not gain its gigabytes. Both
    limits are hard, so they cannot be raised. Where there is no /proc (macOS), there is no limit.
    """
    import resource  # not on Windows, where learners import this module

    try:
        with open("/proc/self/status") as file:
            used = dict(re.findall(r"^(\w+):\s*(\d+) kB", file.read(), re.MULTILINE))
    except OSError:
        return
    for kind, name in ((resource.RLIMIT_AS, "VmSize"), (resource.RLIMIT_DATA, "VmData")):
        most, (_, hard) = 1024 * int(used[name]) + MEMORY, resource.getrlimit(kind)
        if hard != resource.RLIM_INFINITY:
            most = min(most, hard)
        resource.setrlimit(kind, (most, most))


def main() -> None:
    source, sink = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    nothing = os.open(os.devnull, os.O_RDWR)
    for number in (0, 1, 2):
        os.dup2(nothing, number)
    sys.setrecursionlimit(2000)
    torch.set_num_threads(1)
    with Forbidding(("nothing",)):  # what the first use imports is torch's, not the learner's
        torch.ones(2, requires_grad=True).sum().backward()
    limit_memory()
    write_message(sink, {"ready": True}, [])
    try:
        serve(source, sink)
    except MemoryError:
        os._exit(OUT_OF_MEMORY)


if __name__ == "__main__":
    main()
