"""One table of names, read both ways: another library's tensors to our parameters and back.

A table says where each of our modules finds its tensors, `{i}` being the number of a layer:

    {"decoder.layers.{i}.attention.output": Part("h.{i}.attn.c_proj", transposed=True)}

A plain string is a Part that is the whole tensor, as it is. The kind (weight or bias) follows from
our parameter; an entry may also name one parameter in full ("head.projection.bias").
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Part:
    """Where a parameter stands: a tensor, or piece `index` `of` so many that it holds fused."""

    name: str  # of their module, without .weight; or of a tensor, where our entry names one in full
    index: int = 0
    of: int = 1
    transposed: bool = False  # their linear layers are written (in, out), as GPT-2's
    skip: int = 0  # rows that stand before ours and are never used
    flat: bool = False  # theirs has one more axis, of length 1, in front

    def read(self, tensor: Tensor) -> Tensor:
        if self.transposed and tensor.ndim == 2:
            tensor = tensor.T
        if self.flat and tensor.ndim == 2:
            tensor = tensor[0]
        return tensor.chunk(self.of)[self.index][self.skip :] if tensor.ndim else tensor

    def write(self, pieces: Sequence[Tensor]) -> Tensor:
        tensor = torch.cat(
            [nn.functional.pad(p, (0, 0) * (p.ndim - 1) + (self.skip, 0)) for p in pieces]
        )
        if self.flat:
            tensor = tensor.unsqueeze(0)
        return (tensor.T if self.transposed and tensor.ndim == 2 else tensor).contiguous()


Names = Mapping[str, "str | Part"]
Ties = Sequence[
    Sequence[str]
]  # groups of their names that are one tensor; any of them may be there


def parts_of(model: nn.Module, names: Names) -> dict[str, Part]:
    """Our parameter -> the Part of their tensor (whose name is now that of a tensor)."""
    return {key: _find(key, names) for key in model.state_dict()}


def _find(key: str, names: Names) -> Part:
    layer = re.search(r"\.?layers\.(\d+)\.", key)
    pattern = re.sub(r"layers\.\d+\.", "layers.{i}.", key)
    module, _, kind = pattern.rpartition(".")
    part = names.get(pattern) or names.get(module)
    if part is None:
        raise KeyError(f"the table of names has no entry for {key}")
    part = Part(part) if isinstance(part, str) else part
    name = (
        part.name if pattern in names else part.name + ("" if part.name[-1] == "_" else ".") + kind
    )
    return replace(part, name=name.replace("{i}", layer[1] if layer else ""))


def convert(
    model: nn.Module, tensors: Mapping[str, Tensor], names: Names, ties: Ties, where: str
) -> dict[str, Tensor]:
    """Their tensors as a state_dict of `model`: every one used, every parameter filled.

    Raises ValueError, naming them, for tensors that are missing, left over or of another shape.
    """
    parts = parts_of(model, names)
    found = dict(tensors)
    for group in ties:
        there = [name for name in group if name in found]
        for other in there[1:]:
            if not torch.equal(found[there[0]], found[other]):
                raise ValueError(f"{where}: {there[0]} and {other} are one tensor, but they differ")
        found |= {name: found[there[0]] for name in group if there}
    aliases = {name for group in ties for name in group}
    used = {part.name for part in parts.values()}
    missing, left = sorted(used - found.keys()), sorted(tensors.keys() - used - aliases)
    wrong = [f"lacks {_some(missing)}"] if missing else []
    wrong += [f"holds what no part of the model takes: {_some(left)}"] if left else []
    if wrong:
        raise ValueError(f"{where}: {'; and '.join(wrong)}")
    state = {}
    for key, ours in model.state_dict().items():
        part = parts[key]
        state[key] = part.read(found[part.name])
        if state[key].shape != ours.shape:
            raise ValueError(
                f"{where}: {part.name} has shape {tuple(found[part.name].shape)}; for {key}, "
                f"{tuple(ours.shape)} by the config, that does not do"
            )
        if not state[key].is_floating_point():
            dtype = str(state[key].dtype).removeprefix("torch.")
            raise ValueError(
                f"{where}: {part.name} is {dtype}; only floating-point weights are read"
            )
    return state


def convert_back(model: nn.Module, names: Names, ties: Ties) -> dict[str, Tensor]:
    """Our parameters under their names; of tied ones the first name only, as their library does."""
    pieces: dict[str, dict[int, Tensor]] = {}
    parts = parts_of(model, names)
    state = model.state_dict()
    first = {name: group[0] for group in ties for name in group}
    for key, part in parts.items():
        pieces.setdefault(first.get(part.name, part.name), {})[part.index] = state[key]
    by_name = {part.name: part for part in parts.values()}
    return {
        name: by_name.get(name, Part(name)).write([tensor for _, tensor in sorted(found.items())])
        for name, found in pieces.items()
    }


def _some(names: Iterable[str], number: int = 5) -> str:
    names = list(names)
    more = f" and {len(names) - number} more" if len(names) > number else ""
    return ", ".join(names[:number]) + more
