"""Operators of torch that a learner is to write, refused while the learner's function runs."""

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode


class Forbidding(TorchDispatchMode):
    """Raises where an operator of torch is used that the learner is to write.

    `largest` counts the elements of the largest floating tensor that was computed meanwhile.
    """

    def __init__(self, parts: tuple[str, ...]):
        super().__init__()
        self.parts, self.largest = parts, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = str(func).removeprefix("aten.").partition(".")[0]
        if any(part in name for part in self.parts):
            raise RuntimeError(f"torch's {name.strip('_')} may not be used here: write it yourself")
        found = func(*args, **(kwargs or {}))
        if isinstance(found, Tensor) and found.is_floating_point():
            self.largest = max(self.largest, found.numel())
        return found
