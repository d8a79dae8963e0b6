"""The checks that every exercise has, on a small one of their own."""

from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from minitransformer.checks.engine.check import Failed
from minitransformer.exercises import EXERCISES
from minitransformer.exercises.usual_checks import arguments_left_alone, right_at_the_edge


def scaled(x: Tensor, names: list, factor: int) -> Tensor:
    return factor * x


ONE = SimpleNamespace(
    name="scaled",
    solution=scaled,
    tolerance=1e-6,
    gradients=True,
    inputs=lambda draw: {"two names": (torch.ones(3), ["a", "b"], 2)},
    edges=lambda draw: {
        "a factor of -1": (torch.ones(3), [], -1),
        "no name": (torch.ones(2), [], 1),
    },
)


def told(check, fn) -> str:
    """What the check says of it; empty where it passes."""
    try:
        check.function(fn, None)
    except Failed as failure:
        return failure.diagnosis
    return ""


@pytest.mark.parametrize(
    "change",
    [
        lambda x, names: x.mul_(2),
        lambda x, names: names.append("c"),
        lambda x, names: names.insert(0, "c"),
        lambda x, names: names.pop(),
        lambda x, names: names.reverse(),
        lambda x, names: names.__setitem__(1, "c"),
    ],
)
def test_a_change_in_place_is_noticed(change):
    changing = told(arguments_left_alone(ONE), lambda x, names, factor: change(x, names))
    assert "was changed in place" in changing


def test_what_is_changed_in_a_copy_is_nobodys_matter():
    copying = told(arguments_left_alone(ONE), lambda x, names, factor: (x * 2, [*names, "c"]))
    assert copying == ""


def test_a_function_that_is_given_nothing_to_change_is_not_asked():
    assert arguments_left_alone(SimpleNamespace(solution=lambda width, steps: width)) is None


def test_gradients_at_the_edge_are_compared():
    check = right_at_the_edge(ONE, "no name")
    assert told(check, scaled) == ""
    detached = told(check, lambda x, names, factor: x.detach() * factor + 0 * x)
    assert detached.startswith("With no name, the gradient of `x` is wrong")


def test_the_name_of_an_edge_is_a_name_of_a_test():
    assert right_at_the_edge(ONE, "a factor of -1").name == "it_is_right_with_a_factor_of_minus_1"
    for one in EXERCISES.values():
        names = [aim.check.name for aim in one.aims]
        assert all(name.isidentifier() for name in names)
        assert len(names) == len(set(names))
