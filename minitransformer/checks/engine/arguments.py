"""Arguments by name: what is checked may have its parameters in another order than its kind has."""

import inspect
import re
from collections.abc import Callable, Iterable
from typing import Any

from torch import nn

ROLES = {  # argument -> what it may be called
    "query": "q|quer(y|ies)",
    "key": "k|keys?",
    "value": "v|values?",
    "mask": ".*mask.*",
    "input_ids": "input_ids|ids|tokens|inputs?|x|src|hidden_states|inputs_embeds",
    "attention_mask": ".*mask.*",
}


def by_name(fn: Callable, arguments: tuple[str, ...], flags: Iterable[str] = ()) -> Callable:
    """`fn` as it can be called: with these arguments by position, and with flags by name.

    Where the names of its parameters tell another order, or others stand between, they are passed
    by name: f(values, keys, query, dropout=0.0, mask=None) is understood. Otherwise `fn` itself.
    """
    parameters = parameters_of(fn)
    roles = [(role, one.name) for one in parameters for role in arguments if _means(one, role)]
    names = dict(reversed(roles))  # of two masks the first
    if names.keys() != set(arguments) or not required(parameters, flags) <= set(names.values()):
        return fn
    by_position = [one.name for one in parameters if one.kind <= one.POSITIONAL_OR_KEYWORD]
    if by_position[: len(arguments)] == [names[role] for role in arguments]:
        return fn
    named = _ByName(fn, [names[role] for role in arguments])
    return named if isinstance(fn, nn.Module) else named.forward


def parameters_of(fn: Callable) -> list[inspect.Parameter]:
    """Of its signature; [] where they are not known: of what is written in C, or takes *any."""
    try:
        signature = inspect.signature(fn.forward if isinstance(fn, nn.Module) else fn)
    except (TypeError, ValueError):
        return []
    parameters = list(signature.parameters.values())
    return [] if any(one.kind is one.VAR_POSITIONAL for one in parameters) else parameters


def required(parameters: list[inspect.Parameter], flags: Iterable[str]) -> set[str]:
    """The names of those without a default, flags aside."""
    found = {one.name for one in parameters if one.default is one.empty} - set(flags)
    return found - {one.name for one in parameters if one.kind is one.VAR_KEYWORD}


class _ByName(nn.Module):
    """A function or a module that is given its arguments by these names."""

    def __init__(self, fn: Callable, names: list[str]):
        super().__init__()
        self.fn, self.names = fn, names

    def forward(self, *given: Any, **flags: Any) -> Any:
        return self.fn(**dict(zip(self.names, given, strict=True)), **flags)


def _means(parameter: inspect.Parameter, role: str) -> bool:
    """Whether the name of a parameter says that it is this argument."""
    return re.fullmatch(ROLES.get(role, role), parameter.name.lower()) is not None
