"""Masks that a kernel could be wrong about, shorter and longer than what it computes at once."""

import torch
from conftest import BATCH, HEADS, LENGTHS, from_lengths

from minitransformer import causal_mask, padding_mask
from minitransformer.kernels import plan, strips

# Longer than a strip, and than a block of keys; no tile divides them.
LONG = {"queries": 2 * plan.QUERIES + 9, "keys": strips.BLOCK + 3 * plan.KEYS + 5}


def some_masks(queries, keys):
    """name -> (BATCH or 1, HEADS or 1, queries, keys), each with a reason to be wrong about it."""
    generator = torch.Generator().manual_seed(0)

    def chance(share, batch=BATCH, heads=1):
        return torch.rand(batch, heads, queries, keys, generator=generator) < share

    real = from_lengths([keys * n // 7 for n in LENGTHS], keys)
    documents = torch.arange(keys).div(5 + keys // 6, rounding_mode="floor").expand(BATCH, -1) + 1
    window = torch.arange(keys) - torch.arange(queries).unsqueeze(1)
    masks = {
        "everything": chance(2.0, batch=1),
        "nothing": chance(0.0),
        "half": chance(0.5),
        "few": chance(2 / keys),
        "per head": chance(0.2, heads=HEADS),
        "one for all rows": chance(0.2, batch=1),
        "padding": real.bool()[:, None, None].expand(-1, -1, queries, -1).clone(),
        "window": ((window > -3) & (window < 3))[None, None],
        "two windows": ((window.abs() < 3) | (torch.arange(keys) >= keys - 2))[None, None],
        "packed": padding_mask(documents[:, :queries], documents)
        if queries <= keys
        else chance(0.1),
    }
    if queries <= keys:
        masks["causal"] = causal_mask(queries, keys)
    return masks


def poisoned(inputs, mask):
    """Query, key and value with NaN wherever the mask uses nothing."""
    query, key, value = inputs
    whole = mask.expand(len(query), max(query.shape[1], 1), -1, -1)[:, : query.shape[1]]
    groups = whole.unflatten(1, (key.shape[1], -1) if key.shape[1] else (0, 1))
    used = groups.any(dim=3).any(dim=2).unsqueeze(-1)
    return (
        query.masked_fill(~whole.any(dim=3, keepdim=True), float("nan")),
        *(x.masked_fill(~used, float("nan")) for x in (key, value)),
    )
