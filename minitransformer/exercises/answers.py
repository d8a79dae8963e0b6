"""What a function answers, to compare: with what is wanted, and with what a known mistake gives."""

from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import update_wrapper
from types import FunctionType
from typing import Any, NamedTuple

import torch
from torch import Tensor

from minitransformer.checks.engine.check import expect
from minitransformer.checks.engine.time_limit import OutOfTime

LONGEST = 1_000  # tensors and numbers in an answer that is compared with a mistake's


def copies(arguments: Any) -> Any:
    """The same again, so that no function can change what the next one is given."""
    if isinstance(arguments, Tensor):
        return arguments.clone()
    if isinstance(arguments, tuple | list):
        return type(arguments)(copies(one) for one in arguments)
    return arguments


# ---- with what is wanted -------------------------------------------------------------------------


def expect_same(wanted: Any, found: Any, name: str, tolerance: float, where: str = "") -> None:
    """Fail with the first difference, unless both are the same up to rounding.

    `where`: the beginning of the sentence, such as "With padding on the left, ".
    """
    for path, a, b in leaves(wanted, found, where + name):
        if not isinstance(a, Tensor):
            alike = a == b if not isinstance(a, float) else abs(a - b) <= tolerance
            expect(alike, f"{path} is {b!r} where {a!r} is wanted.")
            continue
        expect_alike(path, a, b)
        exact = not a.is_floating_point()
        same = a == b if exact else torch.isclose(a, b, rtol=0, atol=tolerance, equal_nan=True)
        if not same.all():
            index = tuple((~same).nonzero()[0].tolist())
            rows = index[:-2]
            shown = {"wanted": a[rows], "found": b[rows]} if a.ndim else {}
            if shown and not exact:
                shown["difference"] = b[rows] - a[rows]
            place = f"wrong: at [{', '.join(map(str, index))}] it holds " if index else ""
            one, other = _two_numbers(b[index], a[index])
            expect(False, f"{path} is {place}{one} where {other} is wanted.", **shown)


def expect_alike(path: str, wanted: Any, found: Any) -> None:
    """Fail where a tensor is of another shape or dtype."""
    if isinstance(wanted, Tensor):
        shapes = tuple(found.shape), tuple(wanted.shape)
        expect(
            shapes[0] == shapes[1], f"{path} has the shape {shapes[0]} where {shapes[1]} is wanted."
        )
        expect(
            wanted.dtype == found.dtype, f"{path} is {found.dtype} where {wanted.dtype} is wanted."
        )


def leaves(wanted: Any, found: Any, path: str) -> Iterator[tuple[str, Any, Any]]:
    """Pairs of tensors and numbers, with where they are."""
    if isinstance(wanted, tuple | list):
        kind = "tuple" if isinstance(wanted, tuple) else "list"
        alike = isinstance(found, tuple | list) and len(found) == len(wanted)
        what = f"{len(found)} of them" if isinstance(found, tuple | list) else _kind(found)
        expect(alike, f"{path} gives {what} where a {kind} of {len(wanted)} is wanted.")
        for i, (a, b) in enumerate(zip(wanted, found, strict=True)):
            yield from leaves(a, b, f"{path}(...)[{i}]" if "(" not in path else f"{path}[{i}]")
        return
    if isinstance(wanted, Tensor):
        expect(isinstance(found, Tensor), f"{path} gives {_kind(found)}, not a tensor.")
        yield path, wanted.detach(), found.detach()
        return
    if isinstance(found, Tensor) and found.numel() == 1:
        found = found.item()
    number = isinstance(wanted, int | float) and isinstance(found, int | float)
    expect(
        number or type(wanted) is type(found),
        f"{path} gives {_kind(found)} where {wanted!r} is wanted.",
    )
    yield path, wanted, found


def _kind(thing: Any) -> str:
    if thing is None:
        return "None (is there a return?)"
    name = type(thing).__name__
    return f"{'an' if name[0] in 'aeiou' else 'a'} {name}"


def _two_numbers(one: Tensor, other: Tensor) -> tuple[str, str]:
    """Both with as many digits as tell them apart."""
    if not one.is_floating_point():
        return str(one.item()), str(other.item())
    for digits in range(4, 10):
        shown = f"{one.item():.{digits}g}", f"{other.item():.{digits}g}"
        if shown[0] != shown[1]:
            break
    return shown


# ---- with what a mistake gives -------------------------------------------------------------------


@dataclass(frozen=True)
class Answer:
    """What came back from a call, as numbers, and what these stood in; or the error's name."""

    form: str  # "tensor (2, 3) float32", "2 of: ..., ..."
    numbers: Tensor  # float64, every tensor and number in turn
    slopes: Tensor  # float64, the gradients of the arguments in turn, where they were asked for
    raised: bool = False

    def equals(self, other: "Answer", tolerance: float) -> bool:
        """The same up to rounding; NaN, form and gradients included."""
        return self.gives(other, tolerance) and _close(self.slopes, other.slopes, tolerance)

    def gives(self, other: "Answer", tolerance: float) -> bool:
        """The same, whatever the gradients."""
        return self.form == other.form and _close(self.numbers, other.numbers, tolerance)


def _close(a: Tensor, b: Tensor, tolerance: float) -> bool:
    return a.shape == b.shape and torch.allclose(a, b, rtol=1e-4, atol=tolerance, equal_nan=True)


def without_answer(why: str) -> Answer:
    return Answer(why, torch.zeros(0), torch.zeros(0), raised=True)


def answer(fn: Callable, arguments: tuple, with_gradients: bool = False) -> Answer:
    """What `fn` gives on copies of these, with the gradients of floating arguments, if asked."""
    try:
        found, slopes = call(fn, arguments, with_gradients)
        parts: list[Tensor] = []
        form = _form(found, parts)
        return Answer(form, _flat(parts), _flat(list(slopes.values())))
    except (KeyboardInterrupt, OutOfTime):
        raise
    except BaseException as error:  # SystemExit too: a learner's function may call exit()
        return without_answer(type(error).__name__)


def _flat(parts: list[Tensor]) -> Tensor:
    numbers = [part.detach().double().flatten() for part in parts]
    return torch.cat(numbers) if numbers else torch.zeros(0, dtype=torch.float64)


def call(fn: Callable, arguments: tuple, with_gradients: bool) -> tuple[Any, dict[int, Tensor]]:
    """What `fn` gives on copies of these, and by its place the gradient of each floating tensor.

    The gradients, if asked for, are those of a sum that weighs each element of the outputs
    differently: 0 where an argument has no part in them.
    """
    if isinstance(fn, Recalled):
        return fn.recall(arguments, with_gradients)
    if not with_gradients:
        return fn(*copies(arguments)), {}
    given = tuple(x.detach().requires_grad_() if _is_floating(x) else x for x in arguments)
    found = fn(*copies(given))
    outputs = [x for x in _tensors(found) if x.requires_grad]
    weights = [torch.arange(x.numel()).cos().view(x.shape).to(x.dtype) for x in outputs]
    inputs = {i: x for i, x in enumerate(given) if _is_floating(x)}
    slopes = [None] * len(inputs)
    if outputs:
        slopes = torch.autograd.grad(outputs, list(inputs.values()), weights, allow_unused=True)
    return found, {
        i: torch.zeros_like(x) if slope is None else slope
        for (i, x), slope in zip(inputs.items(), slopes, strict=True)
    }


def _is_floating(x: Any) -> bool:
    return isinstance(x, Tensor) and x.is_floating_point()


def _form(found: Any, parts: list[Tensor]) -> str:
    """What the numbers stand in; these go to `parts`."""
    if isinstance(found, Tensor):
        parts.append(found)
        return f"tensor {tuple(found.shape)} {found.dtype}"
    if isinstance(found, tuple | list):
        return f"{len(found)} of: " + ", ".join(_form(one, parts) for one in found)
    if len(parts) > LONGEST:
        raise ValueError(f"an answer of more than {LONGEST} tensors and numbers")
    if isinstance(found, int | float):
        parts.append(torch.tensor(float(found)))
        return "number"
    return repr(found) if isinstance(found, str) else type(found).__name__


def _tensors(found: Any) -> Iterator[Tensor]:
    if isinstance(found, Tensor):
        yield found
    elif isinstance(found, tuple | list):
        for one in found:
            yield from _tensors(one)


# ---- of a solution that is not there -------------------------------------------------------------


class StoredCall(NamedTuple):
    """What a solution gave once."""

    form: str  # of its arguments, and the numbers in them
    numbers: Tensor
    found: Any
    slopes: dict[int, Tensor] | None  # where gradients were asked for


def form_and_numbers(arguments: Any) -> tuple[str, Tensor]:
    """By which arguments are recognized: functions by their names and what they close over."""
    parts: list[Tensor] = []
    return _form(_plain(arguments), parts), _flat(parts)


def _plain(given: Any) -> Any:
    if isinstance(given, tuple | list):
        return [_plain(one) for one in given]
    if isinstance(given, dict):
        return [_plain(item) for item in given.items()]
    if isinstance(given, FunctionType):
        held = [given.__qualname__]
        for cell in given.__closure__ or ():
            with suppress(ValueError):  # an empty cell
                held.append("" if callable(cell.cell_contents) else _plain(cell.cell_contents))
        return held
    return given


class Recalled:
    """In place of a solution: what it gave when its answers were stored, by its arguments."""

    def __init__(self, solution: Callable, stored: Callable[[], list[StoredCall]]):
        update_wrapper(self, solution)
        self.stored = stored

    def __call__(self, *arguments: Any, **flags: Any) -> Any:
        return self.recall(arguments, False, flags)[0]

    def recall(
        self, arguments: tuple, with_gradients: bool, flags: dict[str, Any] | None = None
    ) -> tuple[Any, dict[int, Tensor]]:
        """As `call` gives it. Raises LookupError for arguments that it was not called with."""
        form, numbers = form_and_numbers((arguments, flags or {}))
        for one in self.stored():
            known = one.slopes is not None or not with_gradients
            if known and one.form == form and _close(one.numbers, numbers, 1e-6):
                return copies(one.found), dict(one.slopes or {}) if with_gradients else {}
        raise LookupError("no answer is stored for this input")
