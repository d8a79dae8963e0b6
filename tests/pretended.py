"""A pretended GPU, of Apple ("mps") or NVIDIA ("cuda"): its tensors say so, and compute on the CPU.

It refuses what the real one refuses: tensors of two devices in one operation and, on "mps",
float64. It lists what makes a program wait for its GPU: operators that read values back and, on
"cuda", copies to it that are not asked for by `non_blocking`.

    with pretended_gpu("cuda") as waits:
        model.to("cuda")(input_ids.to("cuda", non_blocking=True), ...)
    assert not waits

To torch's C++ side these tensors are on "meta", a device that has autograd and no kernels, so that
nothing is computed unnoticed; only Python is told the GPU's name. So autocast leaves them alone,
and torch's kernels for real GPUs, their rounding and their speed are not to be seen here.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from unittest import mock

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing
from torch.utils._pytree import tree_leaves, tree_map

META, CPU = torch.device("meta"), torch.device("cpu")
aten = torch.ops.aten
READS_BACK = {
    aten._local_scalar_dense.default,
    aten.equal.default,
    aten.nonzero.default,
    aten.masked_select.default,
    aten._unique2.default,
    aten.unique_consecutive.default,
    aten.bincount.default,
    aten.repeat_interleave.Tensor,
    aten.multinomial.default,  # it looks whether what it is given are probabilities
}


class OnGpu(torch.Tensor):
    """A tensor on the pretended device; `held` is the one on the CPU that it stands for."""

    __torch_function__ = torch._C._disabled_torch_function_impl
    place: torch.device
    device = property(lambda self: self.place)
    is_cuda = property(lambda self: self.place.type == "cuda")

    def __new__(cls, held: torch.Tensor):
        if held.dtype == torch.float64 and cls.place.type == "mps":
            raise TypeError(
                "Cannot convert a MPS Tensor to float64 dtype as the MPS framework doesn't support "
                "float64. Please use float32 instead."
            )
        place = {"strides": held.stride(), "storage_offset": held.storage_offset()}
        self = cls._make_wrapper_subclass(cls, held.shape, dtype=held.dtype, device=META, **place)
        self.held = held
        return self

    def __repr__(self, **_):
        return f"{type(self).__name__}({self.held})"

    def tolist(self):
        return self.to(CPU).tolist()

    def __tensor_flatten__(self):  # with it `Module.to` keeps tied weights tied
        return ["held"], None

    @classmethod
    def __tensor_unflatten__(cls, inner, *_):
        return cls(inner["held"])

    @classmethod
    def __torch_dispatch__(cls, function, types, args=(), kwargs=None):
        return compute(function, args, kwargs or {})


class OnMps(OnGpu):
    place = torch.device("mps:0")


class OnCuda(OnGpu):
    place = torch.device("cuda:0")


KINDS = {"mps": OnMps, "cuda": OnCuda}


def compute(function, args, kwargs, kind=None, waits=None):
    """Run an operator of torch: on the pretended device if its tensors or its `device` say so."""
    tensors = [x for x in tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)]
    ours = [x for x in tensors if isinstance(x, OnGpu)]
    device = kwargs.get("device")
    if not ours and device != META:
        return function(*args, **kwargs)
    kind = kind or type(ours[0])
    copies = function in (aten._to_copy.default, aten.copy_.default)
    strangers = [x for x in tensors if not isinstance(x, OnGpu) and x.ndim > 0]
    if ours and strangers and not copies:
        raise RuntimeError(
            "Expected all tensors to be on the same device, but found at least two devices, "
            f"{kind.place} and {strangers[0].device}! ({function})"
        )
    to_cpu = copies and device != META and (device == CPU or not isinstance(args[0], OnGpu))
    if waits is not None and (to_cpu or function in READS_BACK or _by_bool(function, args)):
        waits.append(str(function))
    elif waits is not None and copies and kind is OnCuda and _blocks(function, args, kwargs):
        waits.append(f"{function}, a copy to the GPU")
    if device is not None:
        kwargs = {**kwargs, "device": CPU}
    out = function(*tree_map(_held, args), **tree_map(_held, kwargs))
    if to_cpu:
        return out
    out = tree_map(lambda x: kind(x) if isinstance(x, torch.Tensor) else x, out)
    return return_and_correct_aliasing(function, args, kwargs, out) if ours else out


def _held(x):
    return x.held if isinstance(x, OnGpu) else x


def _by_bool(function, args) -> bool:
    """x[mask]: how many there are is read back. (x[mask] = y is not, where y is a number.)"""
    return function == aten.index.Tensor and any(
        index is not None and index.dtype == torch.bool for index in args[1]
    )


def _blocks(function, args, kwargs) -> bool:
    """Does this copy from the CPU, of any number at all, make it wait?"""
    *_, source = args[: 1 if function == aten._to_copy.default else 2]
    later = kwargs.get("non_blocking") or args[2:3] == (True,)
    return not isinstance(source, OnGpu) and source.numel() > 0 and not later


class _Operators(TorchDispatchMode):
    def __init__(self, kind: type[OnGpu], waits: list[str]):
        super().__init__()
        self.kind, self.waits = kind, waits

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        return compute(function, args, kwargs or {}, self.kind, self.waits)


class _Names(TorchFunctionMode):
    """Has C++ read "meta" where Python says the name of the GPU."""

    def __init__(self, name: str):
        super().__init__()
        self.names = name, f"{name}:0"

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if function is torch.device:  # a name is not yet a place
            return function(*args, **(kwargs or {}))
        args, kwargs = tree_map(lambda x: META if self._is_ours(x) else x, (args, kwargs or {}))
        if function is torch.tensor and kwargs.get("device") == META:
            return function(*args, **{**kwargs, "device": CPU}).to(META)
        return function(*args, **kwargs)

    def _is_ours(self, x) -> bool:
        return isinstance(x, str | torch.device) and str(x) in self.names


class _Generator(torch.Generator):
    def __new__(cls, device=None):
        return super().__new__(cls)


@contextmanager
def pretended_gpu(name: str) -> Iterator[list[str]]:
    """The device of that name is there while the block runs; yields what made the CPU wait."""
    waits: list[str] = []
    names, run_backward = _Names(name), torch.autograd._engine_run_backward

    def backward(*args, **kwargs):
        with names:  # what is recomputed there is Python again
            return run_backward(*args, **kwargs)

    with (
        names,
        _Operators(KINDS[name], waits),
        _module_of(name),
        mock.patch.object(torch.autograd, "_engine_run_backward", backward),
    ):
        yield waits


@contextmanager
def _module_of(name: str) -> Iterator[None]:
    """torch.cuda or torch.mps as it is where there is a GPU, as far as the project asks."""
    state = torch.zeros(1, dtype=torch.uint8)
    found = {
        "is_available": lambda: True,
        "get_rng_state": lambda *_: state,
        "set_rng_state": lambda *_: None,
    }
    if name == "cuda":
        found["is_bf16_supported"] = lambda *_: True  # autocast asks
    with (
        mock.patch.multiple(getattr(torch, name), **found),
        mock.patch.object(torch, "Generator", _Generator),
    ):
        yield
