"""KV cache: what every attention has read so far, so that nothing is read twice."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

ROOM = 64  # so many tokens, and half of those there, can follow before anything is copied


class Cache:
    """The keys and values that each attention layer has read, for inference: all finite, at padding
    too, as they are not zeroed again. `room`: for how many tokens, where that is known before."""

    def __init__(self, room: int = 0):
        self.room = room
        self.lengths: dict[nn.Module, int] = {}
        self.buffers: dict[nn.Module, Tensor] = {}  # (B, keys' and values' heads, K and room, D)

    def __getitem__(self, layer: nn.Module) -> tuple[Tensor, ...]:
        """The keys and the values, (B, kv heads, K, D) each."""
        return self.buffers[layer][:, :, : self.lengths[layer]].chunk(2, dim=1)

    def append(self, layer: nn.Module, key: Tensor, value: Tensor) -> tuple[Tensor, ...]:
        """Keep the new keys and values of self-attention -> all that there are to attend to."""
        batch, heads, new, width = key.shape
        start = self.lengths.get(layer, 0)
        end = self.lengths[layer] = start + new
        if start == 0 or self.buffers[layer].shape[2] < end:
            longer = key.new_empty(batch, 2 * heads, max(3 * end // 2 + ROOM, self.room), width)
            if start:
                longer[:, :, :start] = self.buffers[layer][:, :, :start]
            self.buffers[layer] = longer
        buffer = self.buffers[layer]
        buffer[:, :heads, start:end], buffer[:, heads:, start:end] = key, value
        return self[layer]

    def once(self, layer: nn.Module, project: Callable[[], list[Tensor]]) -> tuple[Tensor, ...]:
        """The keys and values of cross-attention, whose memory is projected at the first call."""
        if layer not in self.buffers:
            self.buffers[layer] = torch.cat(project(), dim=1)  # keys' heads, then values'
            self.lengths[layer] = self.buffers[layer].shape[2]
        return self[layer]

    def read_from(self, packed: "Cache", place: Tensor) -> None:
        """Keep what `packed` has read: (B,T), which token of its rows is at each place of ours."""
        for layer in packed.buffers:
            key, value = (x.transpose(1, 2).flatten(0, 1)[place] for x in packed[layer])
            self.append(layer, key.transpose(1, 2), value.transpose(1, 2))

    def reorder(self, rows: Tensor) -> None:
        """Have row i of the batch go on from row `rows[i]`."""
        self.buffers = {layer: buffer[rows] for layer, buffer in self.buffers.items()}
