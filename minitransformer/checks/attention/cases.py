"""What attention functions are asked with: inputs, the masks that they take, and cases of both."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from minitransformer.checks.attention.subject import (
    AttentionSubject,
    attention_weights_of,
    per_query_head,
)
from minitransformer.checks.engine.check import expect, needs
from minitransformer.masks import causal_mask, padding_mask

BATCH, QUERIES, KEYS, WIDTH = 4, 5, 7, 8
LENGTHS = (2, 7, 5, 1)
TORCH, HF = "https://github.com/pytorch/pytorch/", "https://github.com/huggingface/transformers/"
TOLERANCE = {
    torch.float64: 1e-10,
    torch.float32: 1e-5,
    torch.bfloat16: 4e-2,
    torch.float16: 5e-3,
}
HALF = (torch.bfloat16, torch.float16)


# ---- inputs --------------------------------------------------------------------------------------


def make_inputs(
    subject: AttentionSubject,
    dtype: torch.dtype | None = None,
    keys: int = KEYS,
    queries: int | None = None,
    batch: int = BATCH,
) -> tuple[Tensor, Tensor, Tensor]:
    """Random query, key and value; the same in every run, in every dtype and on every device."""
    queries = keys if subject.same_length else queries or min(QUERIES, keys)
    generator = torch.Generator().manual_seed(1)

    def draw(heads: int, length: int) -> Tensor:
        x = torch.randn(batch, heads, length, WIDTH, generator=generator, dtype=torch.float64)
        return x.to(subject.device, dtype or subject.dtype)

    heads, key_heads = subject.heads
    return draw(heads, queries), draw(key_heads, keys), draw(key_heads, keys)


def keys_allowed(real: Tensor, queries: int) -> Tensor:
    """(B,K) -> (B,1,Q,K): every query, a padded one too, sees all real keys."""
    return real[:, None, None, :].expand(-1, 1, queries, -1)


def real_keys(side: str, device, keys: int = KEYS) -> Tensor:
    """(B,K) bool: which keys are real, for padding on a side or holes in the middle."""
    index = torch.arange(keys, device=device)
    lengths = torch.tensor(LENGTHS, device=device).clamp(max=keys).unsqueeze(1)
    if side == "holes":
        real = torch.ones(len(LENGTHS), keys, dtype=torch.bool, device=device)
        for row, holes in enumerate([(1,), (0, 3, 4), (2, 5), (1, 2, 3, 4)]):
            real[row, [hole for hole in holes if hole < keys]] = False
        return real
    return index < lengths if side == "right" else index >= keys - lengths


def key_masks(subject: AttentionSubject, queries: int | None = None) -> dict[str, Tensor]:
    """Padding of the keys alone: any attention function takes these, in some form."""
    queries = make_inputs(subject, queries=queries)[0].shape[2]
    sides = {"padding on the right": "right", "padding on the left": "left", "holes": "holes"}
    return {
        name: keys_allowed(real_keys(side, subject.device), queries) for name, side in sides.items()
    }


def masks(subject: AttentionSubject, queries: int | None = None) -> dict[str, Tensor]:
    """Every mask that the subject takes."""
    found = key_masks(subject, queries)
    if subject.full_masks:
        queries = next(iter(found.values())).shape[2]
        causal = causal_mask(queries, KEYS, device=subject.device)
        causal = causal.expand(BATCH, 1, -1, -1)
        found["causal"] = causal
        for side in ("right", "left"):
            found[f"causal, padding on the {side}"] = causal & found[f"padding on the {side}"]
        numbers = torch.tensor([[1, 1, 2, 2, 2, 3, 3]] * BATCH, device=subject.device)
        found["packed documents"] = padding_mask(numbers[:, KEYS - queries :], numbers)
    return found


def dead_masks(subject: AttentionSubject, queries: int | None = None) -> dict[str, Tensor]:
    """Masks that leave some queries nothing to see: a row of padding, and left padding."""
    query = make_inputs(subject, queries=queries)[0]
    real = real_keys("right", subject.device).clone()
    real[2] = False
    found = {"a row of padding only": keys_allowed(real, query.shape[2])}
    if subject.full_masks:
        found["causal, padding on the left"] = masks(subject)["causal, padding on the left"]
        found["padding_mask() of queries and keys"] = padding_mask(
            real[:, KEYS - query.shape[2] :].long(), real.long()
        )
        square = torch.zeros_like(found["a row of padding only"])
        square[:, :, 0] = True
        found["all queries but the first see nothing"] = square
    return found


def half_dtypes(subject: AttentionSubject) -> list[torch.dtype]:
    found = [dtype for dtype in HALF if dtype in subject.dtypes]
    needs(found, "it declares neither bfloat16 nor float16")
    return found


# ---- cases ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Case:
    """A mask with its name, the inputs it is asked with, and what the subject makes of them."""

    subject: AttentionSubject
    name: str
    mask: Tensor  # (B,1,Q,K), or (B,H,Q,K)
    inputs: tuple[Tensor, Tensor, Tensor]

    def __str__(self) -> str:
        return self.name

    @property
    def alive(self) -> Tensor:
        """(B,1,Q,1): the queries that see a key."""
        return self.mask.any(dim=-1, keepdim=True)

    @property
    def padding(self) -> Tensor:
        """(B,1,K,1): the keys that the first query does not see; of `key_masks`, no query does."""
        return ~self.mask[:, :, :1].mT

    @cached_property
    def output(self) -> Tensor:
        """(B,H,Q,D)"""
        return self.subject(*self.inputs, self.mask)

    @cached_property
    def weights(self) -> Tensor:
        """(B,H,Q,K)"""
        return attention_weights_of(self.subject, *self.inputs, self.mask)

    @cached_property
    def leak(self) -> Tensor:
        """(B,H,Q,K): the weights of masked keys, at queries that see a key."""
        return self.weights.masked_fill(self.mask | ~self.alive, 0.0)

    @cached_property
    def expected_weights(self) -> Tensor:
        """(B,H,Q,K): the weights of the subject's formula, in float64."""
        weights = self.subject.expected_weights(*self.inputs[:2], self.mask)
        if self.subject.up_to_a_factor:
            weights = weights * self.weights.double().sum(dim=-1, keepdim=True)
        return weights

    @cached_property
    def wanted(self) -> Tensor:
        """(B,H,Q,D): the output of the formula, in float64."""
        query, _, value = self.inputs
        return self.expected_weights @ per_query_head(value.double(), query)

    def live(self, difference: Tensor) -> Tensor:
        """In float64, with zeros at fully masked queries, whose output is another question."""
        return difference.double().masked_fill(~self.alive, 0.0)

    def shown(self, error: Tensor, **found: Tensor) -> dict[str, Tensor]:
        """The mask and what was found, at the sequence and the head with the largest error."""
        error = error.detach().double().abs().nan_to_num(nan=float("inf")).flatten(2).amax(dim=2)
        b, h = divmod(int(error.argmax()), error.shape[1])
        mask = self.mask.expand(-1, error.shape[1], -1, -1)
        return {"mask_wanted": mask[b, h], **{name: x[b, h] for name, x in found.items()}}


def cases(
    subject: AttentionSubject,
    masks_of: Callable[..., dict[str, Tensor]] = masks,
    dtype: torch.dtype | None = None,
    queries: int | None = None,
    batch: int = BATCH,
) -> Iterator[Case]:
    """One case for each of `masks`, `key_masks` or `dead_masks`."""
    rows = torch.arange(batch, device=subject.device) % BATCH
    for name, mask in masks_of(subject, queries).items():
        inputs = make_inputs(subject, dtype, queries=queries, batch=batch)
        yield Case(subject, name, mask[rows], inputs)


# ---- gradients -----------------------------------------------------------------------------------


def gradients_of(
    subject: AttentionSubject,
    inputs: tuple[Tensor, ...],
    mask: Tensor,
    live_only: bool = True,
    poison: float | None = None,
) -> tuple[Tensor, ...]:
    """Gradients of a fixed random projection of the output, at queries that see a key or at all.

    `poison` comes in as the gradient at queries that see none.
    """
    inputs = tuple(x.detach().requires_grad_() for x in inputs)

    def compute():
        output = subject(*inputs, mask)
        generator = torch.Generator().manual_seed(2)
        direction = torch.randn(output.shape, generator=generator).to(output)
        dead = ~mask.any(-1, True)
        if poison is not None:
            direction = direction.masked_fill(dead, poison)
        elif live_only:
            output, direction = output.masked_fill(dead, 0.0), direction.masked_fill(dead, 0.0)
        return torch.autograd.grad((output * direction).sum(), inputs, materialize_grads=True)

    return with_gradient(compute)


def with_gradient(compute: Callable[[], Any]) -> Any:
    """What it computes; a subject through which nothing flows fails in words."""
    try:
        return compute()
    except RuntimeError as error:
        expect(
            "does not require grad" not in str(error) and "not have been used" not in str(error),
            "No gradient flows through it: the output is cut off from its inputs. Is there a "
            "detach(), .data, numpy or torch.no_grad()? Or declare differentiable=False.",
        )
        raise
