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

Limits = tuple[int, int]  # bytes of a message's JSON, and of its tensors
HEADER = 2**20  # bytes of the names and shapes of tensors
REQUEST: Limits = (2**28, 2**28)
ANSWER: Limits = (2**20, 2**25)  # honest ones have some hundred, and some thousand


def write_message(file: Any, message: Any, tensors: list[Tensor], limits: Limits = REQUEST) -> None:
    """`file` needs write() and flush(). Raises ValueError for what is too large to be sent."""
    text = json.dumps(message).encode()
    size = sum(tensor.numel() * tensor.element_size() for tensor in tensors)
    for what, got, most in (
        ("JSON", len(text), limits[0]),
        ("tensors", size, limits[1] - HEADER),
    ):
        if got > most:
            raise ValueError(f"expected an answer of at most {most:,} bytes of {what}, got {got:,}")
    named = {str(i): tensor.detach().contiguous().clone() for i, tensor in enumerate(tensors)}
    data = save(named) if named else b""
    file.write(b"%d %d\n" % (len(text), len(data)) + text + data)
    file.flush()


def read_message(file: Any, limits: Limits = REQUEST) -> tuple[dict, list[Tensor]]:
    """`file` needs readline() and read().

    Raises EOFError where the other side is gone, ValueError for what is no message.
    """
    line = file.readline(64)
    if not line:
        raise EOFError("the other side is gone")
    sizes = [int(word) for word in line.split()]
    fits = [0 <= size <= most for size, most in zip(sizes, limits, strict=False)]
    if len(sizes) != 2 or not all(fits):
        raise ValueError(f"a message of impossible size, {line!r}")
    text, data = (_read_exactly(file, size) for size in sizes)
    try:
        message = json.loads(text)
    except RecursionError:
        raise ValueError("JSON that is nested too deep") from None
    if not isinstance(message, dict):
        raise ValueError(f"expected an object of JSON, got a {type(message).__name__}")
    if int.from_bytes(data[:8], "little") > HEADER:  # the tensors' names and shapes, in JSON too
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
