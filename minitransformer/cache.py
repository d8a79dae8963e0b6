"""KV cache: what every attention has read so far, so that nothing is read twice."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

KeysAndValues = tuple[Tensor, Tensor]  # (B, kv heads, K, D) and (B, kv heads, K, Dv)
ROOM = 64  # so many tokens can be appended before anything is copied


class Cache:
    """The keys and values that each attention layer has read; empty before the first call.

    For inference, as it is written in place. Masked keys in it must be finite: nobody cleans them
    again. The models see to that, whose padding is zero.
    """

    def __init__(self):
        self.lengths: dict[nn.Module, int] = {}
        self.buffers: dict[nn.Module, KeysAndValues] = {}  # of `lengths` and some room

    def __getitem__(self, layer: nn.Module) -> KeysAndValues:
        """The keys and values of a layer."""
        key, value = (buffer[:, :, : self.lengths[layer]] for buffer in self.buffers[layer])
        return key, value

    def append(self, layer: nn.Module, key: Tensor, value: Tensor) -> KeysAndValues:
        """Keep the new keys and values of self-attention -> all that there are to attend to."""
        start = self.lengths.get(layer, 0)
        end = self.lengths[layer] = start + key.shape[2]
        old = self.buffers.get(layer)
        if old is None or old[0].shape[2] < end:
            buffers = _with_room(key, end + ROOM), _with_room(value, end + ROOM)
            for buffer, kept in zip(buffers, old or (), strict=False):
                buffer[:, :, :start] = kept[:, :, :start]
            self.buffers[layer] = buffers
        for buffer, new in zip(self.buffers[layer], (key, value), strict=True):
            buffer[:, :, start:end] = new
        return self[layer]

    def once(self, layer: nn.Module, project: Callable[[], KeysAndValues]) -> KeysAndValues:
        """The keys and values of cross-attention, whose memory is projected at the first call."""
        if layer not in self.buffers:
            self.buffers[layer] = project()
            self.lengths[layer] = self.buffers[layer][0].shape[2]
        return self.buffers[layer]

    def reorder(self, rows: Tensor) -> None:
        """Have row i of the batch go on from row `rows[i]`."""
        self.buffers = {
            layer: (key.index_select(0, rows), value.index_select(0, rows))
            for layer, (key, value) in self.buffers.items()
        }


def _with_room(x: Tensor, length: int) -> Tensor:
    return torch.empty(*x.shape[:2], length, x.shape[3], dtype=x.dtype, device=x.device)
