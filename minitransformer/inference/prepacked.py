"""Views of a model for generation: in evaluation mode, and with its large weights prepacked.

One step of generation multiplies one row of each text by every weight of the model. A matrix
product of so few rows spends half its time rearranging the weights for the processor's vector
units. They are the same at every step, so they can be laid out once, before the first: prepacked.
"""

import copy
from collections.abc import Sequence
from operator import is_
from typing import TypeVar

import torch
from torch import Tensor, nn

from minitransformer.layers import EncoderLayer, GatedFeedForward
from minitransformer.linear import joined, only_multiplies, together

FEWEST_WEIGHTS = 2**18  # below, the plain product is as fast
MOST_ROWS = 64  # above, what is saved no longer shows
MOST_BYTES = 2**30  # prepacked weights are a second copy; a model beyond that keeps to one
M = TypeVar("M", bound=nn.Module)


def evaluation_view(model: M) -> M:
    """The same model in evaluation mode; the mode of the one given is not touched.

    Modules are copied, what they hold is not: the view has the parameters, buffers and hooks of
    the model, and sees each change to them.
    """
    copies: dict[nn.Module, nn.Module] = {}  # a module that stands in two places stays one

    def view_of(module: nn.Module) -> nn.Module:
        if module not in copies:
            view = copies[module] = copy.copy(module)
            view.training = False
            view._modules = {
                name: None if child is None else view_of(child)
                for name, child in module._modules.items()
            }
        return copies[module]

    return view_of(model)


def prepack(model: M) -> M:
    """An evaluation view whose large linear layers multiply few rows at a time faster.

    Those that read the same input become one. The weights are a snapshot: train the model, and it
    takes another `prepack` to see it. What cannot be prepacked is as in the plain view.
    """
    view = evaluation_view(model)
    modules = list(view.modules())
    joint = {
        module: layers
        for part in modules
        for module, *layers in _read_together(part)
        if all(map(only_multiplies, layers)) and _can_prepack(layers)
    }
    layers_of_joint = {layer for layers in joint.values() for layer in layers}
    alone = [m for m in modules if type(m) is nn.Linear and m not in layers_of_joint]
    alone = [linear for linear in alone if _can_prepack([linear])]
    if sum(linear.weight.nbytes for linear in (*alone, *layers_of_joint)) > MOST_BYTES:
        return view
    for module, layers in joint.items():
        module.together = PrepackedTogether(layers)
    prepacked = {linear: PrepackedLinear(linear) for linear in alone}
    for module in modules:
        module._modules = {
            name: prepacked.get(child, child) for name, child in module._modules.items()
        }
    return view


class PrepackedLinear(nn.Linear):
    """A linear layer with a second copy of its weight, laid out for few rows.

    More rows, gradients and other dtypes take the plain product. Parameters and hooks are those of
    the layer given.
    """

    def __init__(self, linear: nn.Linear):
        self.__dict__.update(linear.__dict__)  # in place of an __init__ that makes new ones
        self.prepacked = _laid_out(linear.weight)

    def forward(self, x: Tensor) -> Tensor:
        if not _are_few(x):
            return super().forward(x)
        return torch.ops.mkldnn._linear_pointwise(x, self.prepacked, self.bias, "none", [], "")


class PrepackedTogether:
    """`linear.together` for some layers, with a second copy of their weights as one."""

    def __init__(self, layers: Sequence[nn.Linear]):
        weight, bias = joined(layers)
        self.prepacked, self.bias = _laid_out(weight), None if bias is None else bias.detach()
        self.weights = [layer.weight for layer in layers]

    def __call__(self, x: Tensor, layers: Sequence[nn.Module]) -> Tensor:
        weights = [layer.weight for layer in layers if only_multiplies(layer)]
        same = len(weights) == len(self.weights) and all(map(is_, weights, self.weights))
        if not same or not _are_few(x):
            return together(x, layers)
        return torch.ops.mkldnn._linear_pointwise(x, self.prepacked, self.bias, "none", [], "")


def _read_together(part: nn.Module) -> list[tuple[nn.Module, ...]]:
    """What calls `together`, with the layers that it gives."""
    if not isinstance(part, EncoderLayer):
        return []
    attention, feed_forward = part.attention, part.feed_forward
    found: list[tuple[nn.Module, ...]] = [
        (attention, attention.query, attention.key, attention.value)
    ]
    if isinstance(feed_forward, GatedFeedForward):
        found.append((feed_forward, feed_forward.gate, feed_forward.widen))
    return found


def _laid_out(weight: Tensor) -> Tensor:
    return torch.ops.mkldnn._reorder_linear_weight(weight.detach(), MOST_ROWS // 4)


def _are_few(x: Tensor) -> bool:
    """Are these so few rows that a prepacked weight is faster, and is there nothing to learn?"""
    learns = torch.is_grad_enabled() or torch.is_autocast_enabled("cpu")
    few = 0 < x.numel() <= MOST_ROWS * x.shape[-1]
    return few and not learns and x.dtype == torch.float32


def _can_prepack(layers: Sequence[nn.Linear]) -> bool:
    """Are they large together, in float32, on a CPU for which torch has oneDNN?"""
    weights = [layer.weight for layer in layers]
    return (
        all(w.is_cpu and w.dtype == torch.float32 for w in weights)
        and sum(weight.numel() for weight in weights) >= FEWEST_WEIGHTS
        and torch.backends.mkldnn.is_available()
        # Operators that torch does not promise to keep:
        and hasattr(torch.ops.mkldnn, "_reorder_linear_weight")
        and hasattr(torch.ops.mkldnn, "_linear_pointwise")
    )
