"""Attention in one call of torch's own kernel: for where a plan would cost more than it saves.

That is on a GPU, which reading the mask would make wait, and for a single query. What the mask
forbids is computed and thrown away.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from minitransformer.contract import check_attention


def sdpa_attention(query: Tensor, key: Tensor, value: Tensor, mask: Tensor) -> Tensor:
    """The output of `scaled_dot_product_attention`, its promise included, without the weights.

    Shapes and errors are those of `tiled_attention`. Nothing of the mask is read back.
    """
    check_attention(query, key, value, mask, grouped=True)
    group = query.shape[1] // key.shape[1]
    key, value = (x.repeat_interleave(group, dim=1) if group > 1 else x for x in (key, value))
    unused = ~mask.any(dim=2).unsqueeze(-1)
    key, value = key.masked_fill(unused, 0.0), value.masked_fill(unused, 0.0)  # 0 · NaN is NaN
    return attend_at_once(query, key, value, mask)


def attend_at_once(query: Tensor, key: Tensor, value: Tensor, mask: Tensor) -> Tensor:
    """The same, where keys and values that no query sees are known to be finite: they stay."""
    check_attention(query, key, value, mask)
    dead = ~mask.any(dim=3, keepdim=True)
    query = query.masked_fill(dead, 0.0)
    with torch.autocast(query.device.type, enabled=False):
        # Dead queries may look anywhere: what comes of it is thrown away.
        output = F.scaled_dot_product_attention(query, key, value, attn_mask=mask | dead)
    return output.masked_fill(dead, 0.0)
