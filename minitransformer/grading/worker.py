"""The process that runs a submission: of minitransformer it has the files imported here, no other.

Requests come on standard input and answers go out on what was standard output, as messages of
`pipe.py`; nothing that a submission prints can get between. The verdict is the other side's: here
functions are only called. Run as a script by `sandbox.py`.
"""

import copy
import os
import re
import resource
import sys
import traceback
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

if __name__ == "__main__":  # with -I Python looks for no module beside the script
    sys.path.insert(0, str(Path(__file__).parents[2]))

from minitransformer.exercises import cells
from minitransformer.exercises.cells import as_text, load_cells
from minitransformer.exercises.forbidding import Forbidding
from minitransformer.grading.pipe import (
    ANSWER,
    is_plain,
    pack,
    read_message,
    unpack,
    write_message,
)

MEMORY = 5 * 2**29  # bytes of address space that a submission may add to what torch took
TOO_MUCH = f"it asked for more than {MEMORY / 2**20:,.0f} MiB of memory"
NO_MEMORY = re.compile("(can't|cannot) allocate memory|failed to map segment", re.IGNORECASE)
OUT_OF_MEMORY = 12  # exit code of a process that has too little left to say so
ERRORS = 50  # of a submission that are told
KEPT = 64  # calls that a backward pass may still come for


def told(error: BaseException) -> str:
    """What an exception says; where memory is short, whose limit that is."""
    said = cells.told(error)
    return TOO_MUCH if isinstance(error, MemoryError) or NO_MEMORY.search(said) else said


def serve(source: BinaryIO, sink: BinaryIO) -> None:
    """Answer requests until the other side is gone."""
    space: dict[str, Any] = {}
    calls: dict[int, tuple[list[Tensor], list[Tensor]]] = {}

    def ask(number: int, arguments: tuple) -> Any:
        tensors: list[Tensor] = []
        packed = pack(arguments, tensors)
        write_message(sink, {"callback": number, "arguments": packed}, tensors, ANSWER)
        message, tensors = read_message(source)
        if "error" in message:
            raise RuntimeError(message["error"])
        return unpack(message["answer"], tensors)

    def load_submission(message: dict, tensors: list[Tensor]) -> tuple[dict, list[Tensor]]:
        loaded, errors = load_cells(message["cells"], message["wanted"], told)
        space.update(loaded)
        names = [name for name in message["wanted"] if callable(space.get(name))]
        return {"names": names, "errors": [as_text(error) for error in errors[:ERRORS]]}, []

    def call(message: dict, tensors: list[Tensor]) -> tuple[dict, list[Tensor]]:
        for index in message["gradients"]:
            tensors[index].requires_grad_(True)
        before = [tensor.detach().clone() for tensor in tensors]
        arguments = unpack(message["arguments"], tensors, ask)
        flags = {name: unpack(flag, tensors, ask) for name, flag in message["flags"].items()}
        lists = [one for one in (*arguments, *flags.values()) if is_plain(one)]
        lists_before = copy.deepcopy(lists)
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
            "changed_lists": [
                [index, new if is_plain(new) else []]  # what cannot be handed on leaves it empty
                for index, (old, new) in enumerate(zip(lists_before, lists, strict=True))
                if old != new
            ],
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
            write_message(sink, reply, sent, ANSWER)
        except BaseException as error:
            line = ""
            for frame in reversed(traceback.extract_tb(error.__traceback__)):
                if frame.filename.startswith("<"):
                    line = (
                        f" ({frame.filename.strip('<>')}, line {frame.lineno}: {frame.line[:80]})"
                    )
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
    try:
        with open("/proc/self/status", encoding="utf-8", errors="replace") as file:
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
