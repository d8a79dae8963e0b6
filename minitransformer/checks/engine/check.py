"""A check: one invariant, what it measures, and the words for where it does not hold.

    @check("attention", tier="core", measures="largest weight on a forbidden key")
    def forbidden_keys_get_exactly_zero(subject):
        \"\"\"A key that the mask forbids gets a weight of exactly 0.\"\"\"
        for case in cases(subject):
            leak = case.weights.masked_fill(case.mask, 0.0)
            yield at_most(0.0, leak, f"With {case}, a forbidden key gets {{measured}}.")

A check yields what it measures, or returns it, and the report shows the largest of it. `at_most`
and `expect` end it where the invariant does not hold; `needs` leaves it where the subject does not
promise it. Its words say what was seen, or ask. What is wrong in the code only a known bug can
tell, whose answers are the same (see `diagnosis`).
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from torch import Tensor

TIERS = {
    "core": "wrong for ordinary users where it fails",
    "robust": "half precision, large scores, queries that may see nothing, inference mode, misuse",
    "strict": "NaN and Inf in padding, forward and backward",
}

CHECKS: dict[str, dict[str, "Check"]] = {}  # kind of subject -> its checks by name


@dataclass(frozen=True)
class Check:
    """One invariant: its name explains itself, and its statement says what must hold."""

    name: str
    kind: str
    tier: str
    statement: str
    measures: str  # what the numbers are that it yields
    mirrors: tuple[str, ...]  # the same failure in real code
    function: Callable[[Any], Iterator[float] | float | None]

    def __call__(self, subject: Any) -> float | None:
        """The largest number measured. Raises Failed or NotApplicable."""
        measured = self.function(subject)
        return max(measured, default=None) if isinstance(measured, Iterator) else measured


class Failed(Exception):
    """The invariant does not hold. The diagnosis is a sentence that a learner understands."""

    def __init__(
        self,
        diagnosis: str,
        measured: float | None = None,
        example: dict[str, Tensor] | None = None,
    ):
        super().__init__(diagnosis)
        self.diagnosis, self.measured, self.example = diagnosis, measured, example or {}


class NotApplicable(Exception):
    """The subject does not promise this; the message says what it lacks."""


def check(
    kind: str, tier: str, measures: str = "", mirrors: str | Iterable[str] = ()
) -> Callable[[Callable], Callable]:
    """Register a function as a check of this kind of subject; its docstring is the statement."""
    if tier not in TIERS:
        raise ValueError(f"tier must be one of {', '.join(TIERS)}, got {tier!r}")

    def register(function: Callable) -> Callable:
        statement = (function.__doc__ or "").split("\n\n")[0]
        if not statement:
            raise ValueError(f"{function.__name__} needs a docstring: the invariant, in a sentence")
        checks = CHECKS.setdefault(kind, {})
        checks[function.__name__] = Check(
            function.__name__,
            kind,
            tier,
            " ".join(statement.split()),
            measures,
            (mirrors,) if isinstance(mirrors, str) else tuple(mirrors),
            function,
        )
        return function

    return register


def checks_of(kind: str, tier: str = "strict") -> list[Check]:
    """The checks of a kind of subject up to a tier, core first."""
    names = list(TIERS)
    if tier not in names:
        raise ValueError(f"tier must be one of {', '.join(names)}, got {tier!r}")
    wanted = names[: names.index(tier) + 1]
    return [one for level in wanted for one in CHECKS[kind].values() if one.tier == level]


# ---- what a check is written with ----------------------------------------------------------------


def at_most(limit: float, x: Tensor | float, says: str, **example: Tensor) -> float:
    """The largest magnitude in `x`; the check fails where that is above `limit`, or NaN.

    Yield it where it is the number that the report shows.

    `says` is what was seen, with the number where it has {measured}. `example`: small tensors to
    show, _ in their names for spaces.
    """
    measured = max_abs(x) if isinstance(x, Tensor) else float(x)
    if exceeds(measured, limit):
        raise Failed(says.replace("{measured}", f"{measured:.3g}"), measured, _shown(example))
    return measured


def expect(holds: Any, says: str, measured: float | None = None, **example: Tensor) -> None:
    """Fail the check unless it holds: for what has no number."""
    if not holds:
        raise Failed(says, measured, _shown(example))


def needs(condition: Any, reason: str) -> None:
    """Leave the check, for the subject does not promise this."""
    if not condition:
        raise NotApplicable(reason)


def max_abs(x: Tensor) -> float:
    """The largest magnitude; NaN where there is one."""
    return float(x.detach().double().abs().max()) if x.numel() else 0.0


def exceeds(x: float, allowed: float = 0.0) -> bool:
    """More than is allowed, or NaN."""
    return not x <= allowed


def _shown(example: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name.replace("_", " "): tensor.detach() for name, tensor in example.items()}
