"""Linear layers for a few rows at a time, with the weights laid out for that once.

One step of generation multiplies one row of each text by every weight of the model. A matrix
product of so few rows spends half its time rearranging the weights for the processor's vector
units. They are the same at every step, so that is done once, before the first.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

FEWEST_WEIGHTS = 2**18  # below, the plain product is as fast
MOST_ROWS = 64  # above, what is saved no longer shows
MOST_BYTES = 2**30  # the packed weights are a second copy; a model beyond that keeps to one


class PackedLinear(TorchFunctionMode):
    """Inside `with PackedLinear(model):` its large linear layers take few rows faster.

    For inference in float32 on a CPU with oneDNN; anywhere else, with gradients, and for every
    other tensor, the block computes as it would without. The weights must not change meanwhile.
    """

    def __init__(self, model: nn.Module):
        super().__init__()
        weights = {
            id(layer.weight): layer.weight.detach()
            for layer in model.modules()
            if isinstance(layer, nn.Linear) and _can_pack(layer.weight)
        }
        fits = sum(weight.nbytes for weight in weights.values()) <= MOST_BYTES
        self.packed: dict[int, Tensor] = {
            key: torch.ops.mkldnn._reorder_linear_weight(weight, MOST_ROWS // 4)
            for key, weight in weights.items()
            if fits
        }

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if function is F.linear and len(args) == 3 and id(args[1]) in self.packed:
            x, weight, bias = args
            few = x.dtype == torch.float32 and x.numel() <= MOST_ROWS * x.shape[-1]
            if few and not torch.is_grad_enabled():
                packed = self.packed[id(weight)]
                return torch.ops.mkldnn._linear_pointwise(x, packed, bias, "none", [], "")
        return function(*args, **(kwargs or {}))


def _can_pack(weight: Tensor) -> bool:
    return (
        weight.device.type == "cpu"
        and weight.dtype == torch.float32
        and weight.numel() >= FEWEST_WEIGHTS
        and torch.backends.mkldnn.is_available()
    )
