"""Muon: momentum whose matrices are made orthogonal (Jordan 2024); AdamW for all other parameters.

A step along the gradient of a matrix changes it most in the few directions that dominate already.
Muon's step is as long in every direction: the singular values of the momentum become about 1, by
five steps of the iteration of Newton and Schulz, which are matrix products only. Fewer steps are
needed than with AdamW. The coefficients are those of https://kellerjordan.github.io/posts/muon/.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

RATE = 3.0  # of the matrices, times that of AdamW
COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # steepest at 0: small singular values grow fastest


def orthogonalize(matrices: Tensor, steps: int = 5) -> Tensor:
    """Matrices with the same singular vectors whose singular values are about 1 (0.7 to 1.2).

    Shapes: (n, rows, columns) -> the same.
    """
    a, b, c = COEFFICIENTS
    tall = matrices.shape[-2] > matrices.shape[-1]
    x = matrices.mT if tall else matrices
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)  # singular values of at most 1
    for _ in range(steps):
        square = x @ x.mT
        x = a * x + (b * square + c * square @ square) @ x
    return x.mT if tall else x


class Muon(torch.optim.AdamW):
    """AdamW, but for the groups of parameters with `orthogonal=True`, which are matrices.

    As AdamW's, its steps change nothing where `found_inf` is 1, and nobody waits to read it.
    """

    def __init__(self, groups: Iterable[Mapping[str, Any]], momentum: float = 0.95, **options: Any):
        self.momentum = momentum
        super().__init__([{"orthogonal": False, **group} for group in groups], **options)

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        groups = self.param_groups
        self.param_groups = [group for group in groups if not group["orthogonal"]]
        super().step()
        self.param_groups = groups
        for group in groups:
            if group["orthogonal"]:
                for alike in _by_shape(p for p in group["params"] if p.grad is not None):
                    self._step(alike, group["lr"], group["weight_decay"])

    def _step(self, matrices: list[Tensor], rate: float, weight_decay: float) -> None:
        """Of matrices of one shape, in a batch of products."""
        for p in matrices:
            if not self.state[p]:  # AdamW expects to find a step
                step = torch.zeros((), device=p.device)  # there: to read it is to wait for a GPU
                self.state[p] = {"step": step, "momentum": torch.zeros_like(p)}
        gradient = torch.stack([_whole(p.grad) for p in matrices])
        before = torch.stack([_whole(self.state[p]["momentum"]) for p in matrices])
        momentum = before.lerp(gradient, 1 - self.momentum)
        update = orthogonalize(gradient.lerp(momentum, self.momentum))  # Nesterov's momentum
        rows, columns = matrices[0].shape
        length = rate * max(1.0, rows / columns) ** 0.5
        good = getattr(self, "found_inf", torch.zeros(())) == 0
        for p, m, u in zip(matrices, momentum, update, strict=True):
            state, now = self.state[p], _whole(p)
            _set(p, torch.where(good, now * (1 - rate * weight_decay) - length * u, now))
            _set(state["momentum"], torch.where(good, m, _whole(state["momentum"])))
            state["step"] += good.to(state["step"])


def _whole(matrix: Tensor) -> Tensor:
    """All of a matrix of which each process may hold a part."""
    return matrix.full_tensor() if hasattr(matrix, "full_tensor") else matrix


def _set(matrix: Tensor, value: Tensor) -> None:
    """Give it these numbers, each process its part."""
    if hasattr(matrix, "full_tensor"):
        from torch.distributed.tensor import distribute_tensor  # half a second

        value = distribute_tensor(value, matrix.device_mesh, matrix.placements)
    matrix.copy_(value)


def _by_shape(matrices: Iterable[Tensor]) -> list[list[Tensor]]:
    found: dict[torch.Size, list[Tensor]] = {}
    for matrix in matrices:
        found.setdefault(matrix.shape, []).append(matrix)
    return list(found.values())
