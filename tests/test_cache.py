"""The cache of keys and values: what it gives back, how it grows, how its rows go on."""

import torch
from torch import nn

from minitransformer.cache import ROOM, Cache


def test_a_cache_copies_few_times_what_it_holds():
    """Not all of it every so many tokens, which would be quadratic."""
    cache, layer, copied, buffers = Cache(), nn.Identity(), 0, set()
    for length in range(1, 3_001):
        cache.append(layer, torch.zeros(1, 1, 1, 2), torch.zeros(1, 1, 1, 2))
        held = cache.buffers[layer]
        if held.data_ptr() not in buffers:
            buffers.add(held.data_ptr())
            copied += length
    assert copied < 3 * 3_000
    assert cache[layer][0].shape == (1, 1, 3_000, 2)


def test_a_cache_that_grows_holds_what_it_held():
    cache, layer = Cache(room=3), nn.Identity()
    key, value = torch.randn(2, 2, 3, 300, 4)
    for piece in torch.arange(300).split(70):
        found = cache.append(layer, key[:, :, piece], value[:, :, piece])
    assert torch.equal(found[0], key)
    assert torch.equal(found[1], value)


def test_the_room_of_a_cache_is_that_asked_for_or_half_of_what_it_holds_and_64():
    for room, new, places in ((0, 1, 65), (0, 10, 79), (7, 10, 79), (300, 10, 300)):
        cache, layer = Cache(room), nn.Identity()
        cache.append(layer, torch.zeros(2, 3, new, 4), torch.zeros(2, 3, new, 4))
        assert cache.buffers[layer].shape == (2, 6, places, 4)
    assert Cache().room == 0


def test_a_full_cache_is_not_copied_before_one_more_comes():
    cache, layer, buffers = Cache(), nn.Identity(), []
    for new in (1, ROOM, 1):
        cache.append(layer, torch.zeros(1, 1, new, 2), torch.zeros(1, 1, new, 2))
        buffers.append(cache.buffers[layer])
    assert buffers[0] is buffers[1]
    assert [buffer.shape[2] for buffer in buffers[1:]] == [1 + ROOM, 3 * (2 + ROOM) // 2 + ROOM]


def test_a_memory_is_projected_once_and_given_as_it_was():
    cache, layer, calls = Cache(), nn.Identity(), []
    given = [*torch.randn(2, 2, 3, 5, 4)]  # keys and values
    for _ in range(2):
        found = cache.once(layer, lambda: calls.append(0) or given)
        assert all(map(torch.equal, found, given))
    assert len(calls) == 1
    assert cache.lengths[layer] == 5


def test_what_a_packed_cache_has_read_is_at_the_places_of_its_tokens():
    packed, cache, layers = Cache(), Cache(), (nn.Identity(), nn.Identity())
    keys, values = torch.randn(2, 2, 2, 3, 4, 5)  # layer, packed row, head, token, width
    for layer, key, value in zip(layers, keys, values, strict=True):
        packed.append(layer, key, value)
    place = torch.tensor([[7, 0, 2], [1, 1, 4]])  # of 2 · 4 tokens
    cache.read_from(packed, place)
    for layer, *given in zip(layers, keys, values, strict=True):
        for found, x in zip(cache[layer], given, strict=True):
            wanted = [[x[p // 4, :, p % 4] for p in row] for row in place.tolist()]
            assert torch.equal(found, torch.stack([torch.stack(row, dim=1) for row in wanted]))


def test_rows_go_on_from_others_in_every_layer():
    cache, layers = Cache(), (nn.Identity(), nn.Identity())
    keys, values = torch.randn(2, 2, 3, 2, 4, 5)
    for layer, key, value in zip(layers, keys, values, strict=True):
        cache.append(layer, key, value)
    cache.reorder(torch.tensor([2, 0, 2]))
    for layer, *given in zip(layers, keys, values, strict=True):
        for found, x in zip(cache[layer], given, strict=True):
            assert torch.equal(found, x[[2, 0, 2]])
