"""What every attention has read so far, so that a text can go on without being read again."""

from torch import Tensor, nn


class Cache(dict[nn.Module, tuple[Tensor, Tensor]]):
    """The keys and values, (B, kv heads, K, D) each, that every attention has read so far.

    Empty before the first call; for inference, as it is written in place.
    """

    ROOM = 64  # so many tokens can be appended before anything is copied

    def __init__(self):
        super().__init__()
        self._buffers: dict[nn.Module, list[Tensor]] = {}

    def append(self, layer: nn.Module, key: Tensor, value: Tensor) -> None:
        start = self[layer][0].shape[2] if layer in self else 0
        end = start + key.shape[2]
        buffers = self._buffers.get(layer)
        if buffers is None or buffers[0].shape[2] < end:
            size = (*key.shape[:2], end + self.ROOM, key.shape[3])
            buffers = self._buffers[layer] = [key.new_empty(size), value.new_empty(size)]
            for buffer, old in zip(buffers, self.get(layer, ()), strict=False):
                buffer[:, :, :start] = old
        for buffer, new in zip(buffers, (key, value), strict=True):
            buffer[:, :, start:end] = new
        self[layer] = buffers[0][:, :, :end], buffers[1][:, :, :end]

    def reorder(self, rows: Tensor) -> None:
        """Have row i of the batch go on from row `rows[i]`."""
        self._buffers = {}
        for layer, (key, value) in self.items():
            self[layer] = key[rows], value[rows]
