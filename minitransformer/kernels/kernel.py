"""A kernel: attention by the reference's signature, for a mask that is read once for all layers."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from minitransformer.attention import scaled_dot_product_attention
from minitransformer.contract import check_attention_inputs, check_mask, is_transforming
from minitransformer.masks import PreparedMask


@dataclass(frozen=True)
class Kernel:
    """Attention that is faster than the reference and gives no weights.

    `plan` is what it wants to know of a mask, from (mask, batch, heads, dtype of the queries);
    `compute` is the output, from (query, key, value, plan, finite).
    """

    name: str
    plan: Callable[[Tensor, int, int, torch.dtype], Any]
    compute: Callable[[Tensor, Tensor, Tensor, Any, bool], Tensor]

    def prepare(self, mask: Tensor, x: Tensor, heads: int) -> PreparedMask:
        """Read the mask, (batch or 1, heads or 1, Q, K) bool, once for all layers that share it.

        `x` is what the queries are made of: (batch, ...), of their dtype but for autocast. What is
        read is not read again: a mask that is written to afterwards must be prepared anew.
        """
        check_mask(mask)
        if is_transforming():
            return PreparedMask(mask, None)
        dtype, device = x.dtype, x.device.type
        if not x.is_meta and torch.is_autocast_enabled(device):
            dtype = torch.get_autocast_dtype(device)
        return PreparedMask(mask, self.plan(mask, len(x), heads, dtype))

    def __call__(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        mask: Tensor | PreparedMask,
        *,
        finite: bool = False,
    ) -> tuple[Tensor, None]:
        """The output of `scaled_dot_product_attention`, its promise included, without the weights.

        Shapes, `finite` and errors are those of `scaled_dot_product_attention`. A mask that is not
        prepared is read for this call alone.
        """
        prepared = mask if isinstance(mask, PreparedMask) else None
        check_attention_inputs(query, key, value, prepared.mask if prepared else mask)
        if prepared is None:
            prepared = self.prepare(mask, query, query.shape[1])
        if is_transforming():  # torch's kernels have no rule for it
            inputs = query, key, value, prepared.mask
            return scaled_dot_product_attention(*inputs, finite=finite)[0], None
        with without_autocast(query):
            return self.compute(query, key, value, prepared.plan, finite), None


def without_autocast(x: Tensor) -> AbstractContextManager:
    """Autocast is left, if it is on: scores keep their precision. The meta device has none."""
    if x.is_meta or not torch._C._is_any_autocast_enabled():
        return nullcontext()
    return torch.autocast(x.device.type, enabled=False)
