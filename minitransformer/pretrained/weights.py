"""Weight files (safetensors), which carry their own checksum: one file, or several and an index."""

import hashlib
import json
import os
from collections.abc import Mapping
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from minitransformer.data.files import InputError, check_file, read_object

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
METADATA, CHECKSUM = "__metadata__", "sha256"


def to_weights(tensors: Mapping[str, Tensor]) -> bytes:
    """The bytes of a weight file, whose metadata hold a sha256 of all the rest."""
    from safetensors.torch import save

    tensors = dict(tensors)
    checksum = _checksum(BytesIO(save(tensors)))
    return save(tensors, {"format": "pt", CHECKSUM: checksum})


def read_folder(folder: Path, dtype: torch.dtype | None) -> dict[str, Tensor]:
    """Every tensor of the folder's files, which stay open behind them."""
    if os.path.lexists(folder / WEIGHTS):
        return read_weights(folder / WEIGHTS, dtype)
    if not os.path.lexists(folder / INDEX):
        raise InputError(f"{folder}: holds no {WEIGHTS}{_hint(folder)}")
    places = _read_index(folder / INDEX)
    tensors: dict[str, Tensor] = {}
    for name in sorted(set(places.values())):
        held = read_weights(folder / name, dtype)
        _check_all_there(folder / name, places, held)
        tensors |= {key: t for key, t in held.items() if places.get(key, name) == name}
    return tensors


def _check_all_there(file: Path, places: Mapping[str, str], held: Mapping[str, Tensor]) -> None:
    for key, name in places.items():
        if name == file.name and key not in held:
            raise InputError(f"{file}: lacks {key}, which {INDEX} says is there")


def _hint(folder: Path) -> str:
    """What the user may do about weights under another name."""
    if others := sorted(path.name for path in folder.glob("*.safetensors")):
        return f"; is it {others[0]}? then rename that"
    if pickles := sorted(path.name for path in folder.glob("*.bin")):
        return f"; {pickles[0]} is a pickle, which may run code: save it as safetensors"
    return ""


def _read_index(file: Path) -> dict[str, str]:
    """The name of each tensor -> that of its file, in the same folder."""
    places = read_object(file).get("weight_map")
    if not isinstance(places, dict) or not all(isinstance(n, str) for n in places.values()):
        raise InputError(f"{file}: holds no weight_map from tensors to files")
    for name in places.values():
        if Path(name).name != name:
            raise InputError(f"{file}: {name!r} is not the name of a file in this folder")
    return places


def read_weights(file: Path, dtype: torch.dtype | None) -> dict[str, Tensor]:
    """The tensors of one file, the floating-point ones in this dtype, and finite in it.

    A checksum is compared where there is one: files of other programs have none.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    check_file(file)
    try:
        tensors = load_file(file)
        with open(file, "rb") as opened:
            as_saved = _is_as_saved(opened)
    except (SafetensorError, OSError, ValueError, TypeError, KeyError, RuntimeError) as error:
        raise InputError(f"{file}: is damaged or no safetensors file: {error}") from None
    if not as_saved:
        raise InputError(
            f"{file}: is damaged: its tensors are not those that were saved, by the {CHECKSUM} in "
            "its metadata; if they were changed on purpose, save them without that entry"
        )
    return {name: _checked(file, name, tensor, dtype) for name, tensor in tensors.items()}


def _is_as_saved(file: BinaryIO) -> bool:
    """Is the checksum that its metadata name, if they do, that of the file?"""
    expected = _table(file).get(METADATA, {}).get(CHECKSUM)
    return expected is None or expected == _checksum(file)


def _checksum(file: BinaryIO) -> str:
    """The sha256 of the table of tensors, without metadata, and of their data."""
    table = {name: entry for name, entry in _table(file).items() if name != METADATA}
    digest = hashlib.sha256(json.dumps(table, sort_keys=True).encode())
    while part := file.read(2**20):
        digest.update(part)
    return digest.hexdigest()


def _table(file: BinaryIO) -> dict[str, Any]:
    """The JSON in front of the tensors' data, where the file then stands."""
    file.seek(0)
    return json.loads(file.read(int.from_bytes(file.read(8), "little")))


def _checked(file: Path, name: str, tensor: Tensor, dtype: torch.dtype | None) -> Tensor:
    """The tensor in this dtype, if it is a weight that can be read: finite, of 16 bits or more."""
    if not tensor.is_floating_point():
        return tensor  # the model's own tables; refused where a weight is wanted
    kind = str(tensor.dtype).removeprefix("torch.")
    if tensor.dtype.itemsize < 2:
        raise InputError(
            f"{file}: {name} is {kind}; only weights of 16 bits and more are read: save "
            "the model without quantization"
        )
    tensor = tensor.to(dtype or tensor.dtype)
    if tensor.numel() and not all(bound.isfinite() for bound in tensor.aminmax()):
        raise InputError(
            f"{file}: {name}, {kind} read as {str(tensor.dtype).removeprefix('torch.')}, "
            "holds NaN or Inf; expected finite weights"
        )
    return tensor
