"""Views of a model for generation: in evaluation mode, and with its large weights prepacked.

One step of generation multiplies one row of each text by every weight of the model. A matrix
product of so few rows spends half its time rearranging the weights for the processor's vector
units. They are the same at every step, so they can be laid out once, before the first: prepacked.
"""

import copy
from typing import TypeVar

import torch
from torch import Tensor, nn

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

    Their weights are a snapshot: train the model, and it takes another `prepack` to see it. Layers
    that cannot be prepacked (see `_can_prepack`) are those of the plain view.
    """
    view = evaluation_view(model)
    large = [module for module in view.modules() if _can_prepack(module)]
    if sum(linear.weight.nbytes for linear in large) > MOST_BYTES:
        return view
    prepacked = {linear: PrepackedLinear(linear) for linear in large}
    for module in list(view.modules()):
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
        weight = linear.weight.detach()
        self.prepacked = torch.ops.mkldnn._reorder_linear_weight(weight, MOST_ROWS // 4)

    def forward(self, x: Tensor) -> Tensor:
        few = 0 < x.numel() <= MOST_ROWS * self.in_features
        plain = torch.is_grad_enabled() or torch.is_autocast_enabled("cpu")
        if plain or not few or x.dtype != torch.float32:
            return super().forward(x)
        return torch.ops.mkldnn._linear_pointwise(x, self.prepacked, self.bias, "none", [], "")


def _can_prepack(module: nn.Module) -> bool:
    """Is it a plain linear layer, large, in float32, on a CPU for which torch has oneDNN?"""
    return (
        type(module) is nn.Linear
        and module.weight.device.type == "cpu"
        and module.weight.dtype == torch.float32
        and module.weight.numel() >= FEWEST_WEIGHTS
        and torch.backends.mkldnn.is_available()
        # Operators that torch does not promise to keep:
        and hasattr(torch.ops.mkldnn, "_reorder_linear_weight")
        and hasattr(torch.ops.mkldnn, "_linear_pointwise")
    )
