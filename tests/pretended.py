"""A pretended Apple GPU: tensors that say they are on "mps" and compute on the CPU.

It refuses what the real one refuses: float64, and tensors of two devices in one operation. It
lists what makes a program wait for its GPU: the operators that read values back.

    with pretended_mps() as read_back:
        model.to("mps")(input_ids.to("mps"), attention_mask.to("mps"))
    assert not read_back

To torch's C++ side these tensors are on "meta", a device that has autograd and no kernels, so that
nothing is computed unnoticed; only Python is told "mps".
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing
from torch.utils._pytree import tree_leaves, tree_map

MPS, META, CPU = torch.device("mps:0"), torch.device("meta"), torch.device("cpu")
aten = torch.ops.aten
READS_BACK = {aten._local_scalar_dense.default, aten.equal.default, aten.nonzero.default}


class OnMps(torch.Tensor):
    """A tensor on the pretended device; `held` is the one on the CPU that it stands for."""

    __torch_function__ = torch._C._disabled_torch_function_impl
    device = property(lambda self: MPS)

    @staticmethod
    def __new__(cls, held: torch.Tensor):
        if held.dtype == torch.float64:
            raise TypeError(
                "Cannot convert a MPS Tensor to float64 dtype as the MPS framework doesn't support "
                "float64. Please use float32 instead."
            )
        place = {"strides": held.stride(), "storage_offset": held.storage_offset()}
        self = cls._make_wrapper_subclass(cls, held.shape, dtype=held.dtype, device=META, **place)
        self.held = held
        return self

    def __repr__(self, **_):
        return f"OnMps({self.held})"

    def tolist(self):
        return self.to(CPU).tolist()

    def __tensor_flatten__(self):  # with it `Module.to` keeps tied weights tied
        return ["held"], None

    @staticmethod
    def __tensor_unflatten__(inner, *_):
        return OnMps(inner["held"])

    @classmethod
    def __torch_dispatch__(cls, function, types, args=(), kwargs=None):
        return compute(function, args, kwargs or {})


def compute(function, args, kwargs, read_back=None):
    """Run an operator of torch: on the pretended device if its tensors or its `device` say so."""
    tensors = [x for x in tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)]
    ours = [x for x in tensors if isinstance(x, OnMps)]
    device = kwargs.get("device")
    if not ours and device != META:
        return function(*args, **kwargs)
    copies = function in (aten._to_copy.default, aten.copy_.default)
    strangers = [x for x in tensors if not isinstance(x, OnMps) and x.ndim > 0]
    if ours and strangers and not copies:
        raise RuntimeError(
            "Expected all tensors to be on the same device, but found at least two devices, "
            f"{MPS} and {strangers[0].device}! ({function})"
        )
    to_cpu = copies and device != META and (device == CPU or not isinstance(args[0], OnMps))
    if read_back is not None and (to_cpu or function in READS_BACK or _by_bool(function, args)):
        read_back.append(str(function))
    if device is not None:
        kwargs = {**kwargs, "device": CPU}
    out = function(*tree_map(_held, args), **tree_map(_held, kwargs))
    if to_cpu:
        return out
    out = tree_map(lambda x: OnMps(x) if isinstance(x, torch.Tensor) else x, out)
    return return_and_correct_aliasing(function, args, kwargs, out) if ours else out


def _held(x):
    return x.held if isinstance(x, OnMps) else x


def _by_bool(function, args) -> bool:
    """x[mask]: how many there are is read back."""
    return function == aten.index.Tensor and any(
        index is not None and index.dtype == torch.bool for index in args[1]
    )


class _Operators(TorchDispatchMode):
    def __init__(self, read_back: list[str]):
        super().__init__()
        self.read_back = read_back

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        return compute(function, args, kwargs or {}, self.read_back)


class _Names(TorchFunctionMode):
    """Has C++ read "meta" where Python says "mps"."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        args, kwargs = tree_map(lambda x: META if _is_mps(x) else x, (args, kwargs or {}))
        if function is torch.tensor and kwargs.get("device") == META:
            return function(*args, **{**kwargs, "device": CPU}).to(META)
        return function(*args, **kwargs)


def _is_mps(x) -> bool:
    return isinstance(x, str | torch.device) and str(x) in ("mps", "mps:0")


@contextmanager
def pretended_mps() -> Iterator[list[str]]:
    """The device "mps" is there while the block runs; yields the operators that read back."""
    read_back: list[str] = []
    with _Names(), _Operators(read_back):
        yield read_back
