"""Messages between the grader and the process that runs a submission: JSON, then safetensors.

Whatever is read may be forged, so sizes are looked at before anything is kept.
"""

import builtins
import json
from collections.abc import Callable
from typing import Any

import torch
from safetensors.torch import load, save
from torch import Tensor

LARGEST = 2**28  # bytes of one message's tensors, and of a request
LONGEST = 2**20  # bytes of an answer's JSON: honest ones have some hundred


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


def is_plain(value: Any, deep: int = 2) -> bool:
    """It is a list of numbers, or of lists of numbers."""
    return type(value) is list and all(
        type(one) in (bool, int, float) or (deep > 1 and is_plain(one, deep - 1)) for one in value
    )


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
