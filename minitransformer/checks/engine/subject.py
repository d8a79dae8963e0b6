"""What is checked: any callable, with a declaration of what it takes and promises."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from minitransformer.checks.engine.arguments import by_name

SUBJECTS: dict[str, type["Subject"]] = {}  # kind of subject -> what it may declare


@dataclass(frozen=True)
class Subject:
    """A callable and its name. Each kind of subject adds what it may declare, and how it is called.

    Where the names of its parameters tell another order than that of `arguments`, it is called by
    them.

    `comparable`: two subjects of this kind with the same bug give the same numbers (functions do;
    models with weights of their own do not), so a bug can be told by its numbers.
    """

    kind: ClassVar[str]
    arguments: ClassVar[tuple[str, ...]]  # what it is called with, by position
    comparable: ClassVar[bool] = True

    fn: Callable[..., Any]
    name: str = ""

    def __init_subclass__(cls):
        SUBJECTS[cls.kind] = cls

    def __post_init__(self):
        if not callable(self.fn):
            raise TypeError(f"expected a callable as {self.kind}, got {type(self.fn).__name__}")
        if not self.name:
            object.__setattr__(self, "name", name_of(self.fn))
        flags = [getattr(self, one.name) for one in fields(self) if one.name.endswith("_flag")]
        object.__setattr__(self, "fn", by_name(self.fn, self.arguments, flags))
        # what several kinds declare, each where it means something
        for name, example in {"dtypes": "float32", "sides": "right"}.items():
            value = getattr(self, name, (example,))
            if isinstance(value, str) or not value:
                raise ValueError(f"{name} must be a tuple such as ('{example}',), got {value!r}")
        if dtypes := getattr(self, "dtypes", None):
            object.__setattr__(self, "dtypes", tuple(as_dtype(dtype) for dtype in dtypes))
        for side in getattr(self, "sides", ()):
            one_of("sides", side, ("right", "left"))

    @property
    def dtype(self) -> torch.dtype:
        """Of those declared what ordinary users compute in: float32 where it is promised."""
        dtypes = vars(self)["dtypes"]
        return torch.float32 if torch.float32 in dtypes else dtypes[0]

    def call(self, *given: Any, **flags: Any) -> Any:
        """What it returns. An error that it raises gets a note of what it was called with."""
        try:
            return self.fn(*given, **flags)
        except Exception as error:
            named = zip(self.arguments, given, strict=False)
            shown = ", ".join(f"{name} {_described(x)}" for name, x in named)
            error.add_note(f"It was called with {shown}.")
            raise

    def traits(self) -> Any:
        """What subjects with the same bug share besides the checks that they fail; or None."""
        return None

    def otherwise(self) -> Iterator[dict[str, Any]]:
        """What might have been declared instead, the likeliest first: see `examine`."""
        return iter(())

    def stand_in(self, other: "Subject") -> "Subject | None":
        """Another implementation in this one's place, under the same declarations.

        None where it cannot take that place.
        """
        return replace(self, fn=other.fn, name=other.name)


def name_of(fn: Any) -> str:
    """module.function, or the class of a module."""
    name = getattr(fn, "__qualname__", type(fn).__qualname__)
    module = getattr(fn, "__module__", None) or type(fn).__module__
    return name if module in (None, "builtins", "__main__") else f"{module}.{name}"


def _described(x: Any) -> str:
    if isinstance(x, Tensor):
        return f"{tuple(x.shape)} {str(x.dtype).removeprefix('torch.')}"
    text = repr(x)
    return text if len(text) < 60 else type(x).__name__


def as_dtype(dtype: torch.dtype | str) -> torch.dtype:
    """torch.float32 from itself or from "float32"."""
    found = getattr(torch, dtype, None) if isinstance(dtype, str) else dtype
    if not isinstance(found, torch.dtype):
        raise ValueError(f"expected a torch dtype such as 'float32', got {dtype!r}")
    return found


def one_of(name: str, value: Any, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(choices)}, got {value!r}")


def other_conventions(subject: Any) -> Iterator[dict[str, Any]]:
    """What mask_values and mask_means might have been declared instead."""
    for values in ("bool", "int", "additive"):
        for means in ("attend", "ignore") if values != "additive" else (subject.mask_means,):
            changes = {"mask_values": values, "mask_means": means}
            if changes := {name: x for name, x in changes.items() if x != getattr(subject, name)}:
                yield changes
