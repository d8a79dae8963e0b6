"""KV cache: what every attention has read so far, so that nothing is read twice."""

from collections.abc import Callable

from torch import Tensor, nn

KeysAndValues = tuple[Tensor, Tensor]  # (B, kv heads, K, D) and (B, kv heads, K, Dv)
ROOM = 64  # so many tokens, and half of those there, can follow before anything is copied


class Cache:
    """The keys and values that each attention layer has read, for inference. They must be finite,
    at padding too, as they are not zeroed again: the models see to that."""

    def __init__(self):
        self.lengths: dict[nn.Module, int] = {}
        self.buffers: dict[nn.Module, KeysAndValues] = {}  # of `lengths`, and some room

    def __getitem__(self, layer: nn.Module) -> KeysAndValues:
        key, value = self.buffers[layer]
        return key[:, :, : self.lengths[layer]], value[:, :, : self.lengths[layer]]

    def append(self, layer: nn.Module, key: Tensor, value: Tensor) -> KeysAndValues:
        """Keep the new keys and values of self-attention -> all that there are to attend to."""
        start = self.lengths.get(layer, 0)
        end = self.lengths[layer] = start + key.shape[2]
        buffers = self.buffers.get(layer, (key[:, :, :0], value[:, :, :0]))
        if buffers[0].shape[2] < end:
            longer = [x.new_empty(*x.shape[:2], 3 * end // 2 + ROOM, x.shape[3]) for x in buffers]
            for new, old in zip(longer, buffers, strict=True):
                new[:, :, :start] = old[:, :, :start]
            buffers = self.buffers[layer] = longer[0], longer[1]
        buffers[0][:, :, start:end], buffers[1][:, :, start:end] = key, value
        return self[layer]

    def once(self, layer: nn.Module, project: Callable[[], KeysAndValues]) -> KeysAndValues:
        """The keys and values of cross-attention, whose memory is projected at the first call."""
        if layer not in self.buffers:
            self.buffers[layer] = project()
            self.lengths[layer] = self.buffers[layer][0].shape[2]
        return self[layer]

    def reorder(self, rows: Tensor) -> None:
        """Have row i of the batch go on from row `rows[i]`."""
        self.buffers = {layer: (k[rows], v[rows]) for layer, (k, v) in self.buffers.items()}
