"""The checks that every exercise has: right answers, and arguments that stay as they were."""

import inspect
import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from torch import Tensor

from minitransformer.checks.engine.check import Check, Failed, expect
from minitransformer.exercises.answers import call, copies, expect_same

if TYPE_CHECKING:
    from minitransformer.exercises.exercise import Draw, Exercise


def as_check(function: Callable, measures: str = "") -> Check:
    statement = " ".join((function.__doc__ or "").split())
    return Check(function.__name__, "", "core", statement, measures, (), function)


def right_answers(one: "Exercise") -> Check:
    """Of the inputs the simplest first, so that the first failure is the simplest example."""

    def it_gives_what_is_wanted(fn: Callable, draw: "Draw") -> None:
        """On ordinary input it gives what the task says."""
        right: list[str] = []
        for name, arguments in one.inputs(draw).items():
            try:
                _expect_right(one, fn, name, arguments, with_gradients=False)
            except Failed as failure:
                if right:
                    failure.diagnosis += f" It is right with {', with '.join(right)}."
                raise
            right.append(name)

    return as_check(it_gives_what_is_wanted)


def right_at_the_edge(one: "Exercise", name: str) -> Check:
    """The same with one of the unusual inputs, under a name of its own."""

    def at_the_edge(fn: Callable, draw: "Draw") -> None:
        _expect_right(one, fn, name, one.edges(draw)[name], one.gradients)

    words = re.findall(r"\w+", re.sub(r"-(?=\d|inf)", "minus ", name))
    at_the_edge.__name__ = "_".join(["it_is_right_with", *words])
    at_the_edge.__doc__ = f"With {name} it gives what the task says, too."
    return as_check(at_the_edge)


def arguments_left_alone(one: "Exercise") -> Check | None:
    """None where there is nothing that could be changed."""
    parameters = inspect.signature(one.solution).parameters
    kinds = [parameter.annotation for parameter in parameters.values()]
    if not any(kind is Tensor or "list" in str(kind) for kind in kinds):
        return None

    def what_it_is_given_stays_as_it_was(fn: Callable, draw: "Draw") -> None:
        """Its arguments hold after the call what they held before."""
        for name, arguments in one.inputs(draw).items():
            given = copies(arguments)
            fn(*given)
            for argument, before, after in zip(parameters, arguments, given, strict=False):
                expect(
                    _unchanged(before, after),
                    f"With {name}, `{argument}` holds something else after the call: it was "
                    "changed in place. It is the caller's: work on a copy, or make a new one.",
                )

    return as_check(what_it_is_given_stays_as_it_was)


def _expect_right(
    one: "Exercise", fn: Callable, name: str, arguments: tuple, with_gradients: bool
) -> None:
    with_name = f"With {name}, "
    wanted, slopes_wanted = call(one.solution, arguments, with_gradients)
    found, slopes_found = call(fn, arguments, with_gradients)
    try:
        expect_same(wanted, found, one.name, one.tolerance, with_name)
        for place, argument in enumerate(inspect.signature(one.solution).parameters):
            if place in slopes_wanted:
                slopes = slopes_wanted[place], slopes_found[place]
                expect_same(*slopes, f"the gradient of `{argument}`", one.tolerance, with_name)
    except Failed as failure:
        failure.example = {**_small_inputs(one, arguments), **failure.example}
        raise


def _small_inputs(one: "Exercise", arguments: tuple) -> dict[str, Tensor]:
    """The tensors that it was called with, where they can be read at a glance."""
    named = zip(inspect.signature(one.solution).parameters, arguments, strict=False)
    return {
        name.replace("_", " "): x
        for name, x in named
        if isinstance(x, Tensor) and x.ndim and x.numel() <= 24
    }


def _unchanged(before: Any, after: Any) -> bool:
    """NaN is NaN; a function is whatever it has become."""
    if isinstance(before, Tensor):
        return before.shape == after.shape and bool(
            ((before == after) | ((before != before) & (after != after))).all()
        )
    if isinstance(before, list | tuple):
        pairs = zip(before, after, strict=False)
        return len(before) == len(after) and all(_unchanged(a, b) for a, b in pairs)
    return before is after or before == after
