"""The process that runs a submission: it needs torch, and none of minitransformer.

Requests come on standard input and answers go out on what was standard output, as JSON with the
tensors behind it in safetensors; nothing that a submission prints can get between. The verdict is
the other side's: here functions are only called. Run as a script by `sandbox.py`.
"""

import ast
import builtins
import json
import os
import sys
import traceback
from collections.abc import Callable
from typing import Any, BinaryIO

import torch
from safetensors.torch import load, save
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

LARGEST = 2**28  # bytes of one message
KEPT = 64  # calls that a backward pass may still come for


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


def write_message(file: BinaryIO, message: Any, tensors: list[Tensor]) -> None:
    named = {str(i): tensor.detach().contiguous().clone() for i, tensor in enumerate(tensors)}
    text, data = json.dumps(message).encode(), save(named) if named else b""
    file.write(b"%d %d\n" % (len(text), len(data)) + text + data)
    file.flush()


def read_message(file: BinaryIO) -> tuple[Any, list[Tensor]]:
    """Raises EOFError where the other side is gone, ValueError for what is no message."""
    line = file.readline(64)
    if not line.endswith(b"\n"):
        raise EOFError("the other side is gone")
    sizes = [int(word) for word in line.split()]
    if len(sizes) != 2 or not all(0 <= size <= LARGEST for size in sizes):
        raise ValueError("a message of impossible size")
    text, data = (_read_exactly(file, size) for size in sizes)
    named = load(data) if data else {}
    return json.loads(text), [named[str(i)] for i in range(len(named))]


def _read_exactly(file: BinaryIO, size: int) -> bytes:
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
    """What `pack` packed; functions become ones that ask the other side."""
    (kind, value), *_ = packed.items()
    if kind == "tensor":
        return tensors[value]
    if kind in ("list", "tuple"):
        return getattr(builtins, kind)(unpack(one, tensors, call) for one in value)
    if kind == "dtype":
        return getattr(torch, value)
    if kind == "callable" and call is not None:
        return lambda *arguments, number=value: call(number, arguments)
    if kind == "value":
        return value
    raise ValueError(f"not a value: {kind!r}")


# ---- the submission --------------------------------------------------------------------------


def load_cells(cells: list[tuple[str, str]], wanted: list[str]) -> tuple[dict, list[str]]:
    """Run what the wanted functions need of a submission, cell by cell; the rest is left alone.

    Returns the names defined, and what went wrong. Only imports, definitions and assignments are
    run, and of the last only those that a wanted function comes to: training loops and prints of a
    notebook are none of the grader's business.
    """
    nodes, errors = [], []
    for label, source in cells:
        lines = [("" if line.lstrip()[:1] in ("%", "!") else line) for line in source.split("\n")]
        try:
            nodes += [(label, node) for node in ast.parse("\n".join(lines)).body]
        except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
            where = f"line {error.lineno}: " if isinstance(error, SyntaxError) else ""
            errors.append(f"{label}, {where}{getattr(error, 'msg', error)}")
    space: dict[str, Any] = {"__name__": "submission", "__builtins__": builtins}
    needed = _needed([node for _, node in nodes], wanted)
    for label, node in nodes:
        if node not in needed:
            continue
        try:
            code = compile(ast.Module([node], []), f"<{label}>", "exec")
            exec(code, space)
        except BaseException as error:  # SystemExit too: a submission may call exit()
            errors.append(f"{label}, line {node.lineno}: {type(error).__name__}: {error}")
    return space, errors


def _needed(nodes: list[ast.stmt], wanted: list[str]) -> set[ast.stmt]:
    """Imports, and the definitions that the wanted names come to."""
    imports = {node for node in nodes if isinstance(node, ast.Import | ast.ImportFrom)}
    defined: dict[str, list[ast.stmt]] = {}
    for node in nodes:
        for name in _defines(node):
            defined.setdefault(name, []).append(node)
    needed, todo = set(imports), [name for name in wanted if name in defined]
    done: set[str] = set()
    while todo:
        name = todo.pop()
        if name in done:
            continue
        done.add(name)
        for node in defined.get(name, ()):
            needed.add(node)
            todo += [n.id for n in ast.walk(node) if isinstance(n, ast.Name)]
    return needed


def _defines(node: ast.stmt) -> list[str]:
    if isinstance(node, ast.FunctionDef | ast.ClassDef | ast.AsyncFunctionDef):
        return [node.name]
    if isinstance(node, ast.Assign | ast.AnnAssign):
        targets = node.targets if isinstance(node, ast.Assign) else [node.target]
        return [n.id for target in targets for n in ast.walk(target) if isinstance(n, ast.Name)]
    return []


def serve(source: BinaryIO, sink: BinaryIO) -> None:
    """Answer requests until the other side is gone."""
    space: dict[str, Any] = {}
    calls: dict[int, tuple[list[Tensor], list[Tensor]]] = {}

    def ask(number: int, arguments: tuple) -> Any:
        tensors: list[Tensor] = []
        packed = pack(arguments, tensors)
        write_message(sink, {"callback": number, "arguments": packed}, tensors)
        message, tensors = read_message(source)
        if "error" in message:
            raise RuntimeError(message["error"])
        return unpack(message["answer"], tensors)

    def load_submission(message: dict, tensors: list[Tensor]) -> tuple[dict, list[Tensor]]:
        loaded, errors = load_cells(message["cells"], message["wanted"])
        space.update(loaded)
        with Forbidding(("nothing",)):  # what its first use imports is not the learner's time
            torch.ones(2, requires_grad=True).sum().backward()
        names = [name for name in message["wanted"] if callable(space.get(name))]
        return {"names": names, "errors": [str(error)[:500] for error in errors]}, []

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
            write_message(sink, reply, sent)
        except BaseException as error:
            line = ""
            for frame in reversed(traceback.extract_tb(error.__traceback__)):
                if frame.filename.startswith("<"):
                    line = f" ({frame.filename.strip('<>')}, line {frame.lineno})"
                    break
            said = f"{error}".split("\n")[0][:500]
            write_message(sink, {"error": type(error).__name__, "said": said + line}, [])


def main() -> None:
    source, sink = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    nothing = os.open(os.devnull, os.O_RDWR)
    for number in (0, 1, 2):
        os.dup2(nothing, number)
    sys.setrecursionlimit(2000)
    torch.set_num_threads(1)
    serve(source, sink)


if __name__ == "__main__":
    main()
