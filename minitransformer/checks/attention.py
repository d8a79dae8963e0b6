"""What must hold of an attention function: the checks.

Masks here leave every query a key to see unless a check says otherwise, and results are compared
only at queries that see one. Sizes are pairwise different and lengths unsorted, so that no axis
can be taken for another and no mask is its own transpose.
"""

import torch
from torch import Tensor

from minitransformer.checks.probes import (
    AttentionSubject,
    attention_weights_of,
    backward_weights_of,
    expected_weights,
)
from minitransformer.checks.subject import expect, needs
from minitransformer.checks.suite import check
from minitransformer.masks import causal_mask, padding_mask

BATCH, HEADS, QUERIES, KEYS, WIDTH = 4, 2, 5, 7, 8
LENGTHS = (2, 7, 5, 1)
TORCH, HF = "https://github.com/pytorch/pytorch/", "https://github.com/huggingface/transformers/"
TOLERANCE = {
    torch.float64: 1e-10,
    torch.float32: 1e-5,
    torch.bfloat16: 4e-2,
    torch.float16: 5e-3,
}


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

    def draw(length: int) -> Tensor:
        x = torch.randn(batch, HEADS, length, WIDTH, generator=generator, dtype=torch.float64)
        return x.to(subject.device, dtype or subject.dtype)

    return draw(queries), draw(keys), draw(keys)


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


def key_masks(subject: AttentionSubject) -> dict[str, Tensor]:
    """Padding of the keys alone: any attention function takes these, in some form."""
    queries = make_inputs(subject)[0].shape[2]
    sides = {"padding on the right": "right", "padding on the left": "left", "holes": "holes"}
    return {
        name: keys_allowed(real_keys(side, subject.device), queries) for name, side in sides.items()
    }


def masks(subject: AttentionSubject) -> dict[str, Tensor]:
    """Every mask that the subject takes."""
    found = key_masks(subject)
    if subject.full_masks:
        query = make_inputs(subject)[0]
        causal = causal_mask(query.shape[2], KEYS, device=subject.device)
        causal = causal.expand(BATCH, 1, -1, -1)
        found["causal"] = causal
        for side in ("right", "left"):
            found[f"causal, padding on the {side}"] = (
                causal & found[f"padding on the {side}"]
            )
        numbers = torch.tensor([[1, 1, 2, 2, 2, 3, 3]] * BATCH, device=subject.device)
        found["packed documents"] = padding_mask(numbers[:, KEYS - query.shape[2] :], numbers)
    return found


def worst(error: Tensor) -> tuple[int, int]:
    """The row of the batch and the head with the largest error, NaN first."""
    flat = error.detach().nan_to_num(nan=float("inf")).flatten(2).amax(dim=2)
    index = int(flat.argmax())
    return index // flat.shape[1], index % flat.shape[1]


def size(x: Tensor) -> float:
    """The largest magnitude; NaN where there is one."""
    return float(x.detach().abs().max()) if x.numel() else 0.0


def differs(x: float, tolerance: float = 0.0) -> bool:
    """More than the tolerance, or NaN."""
    return not x <= tolerance


# ---- core: the weights ---------------------------------------------------------------------------


@check(
    "attention",
    "core",
    measures="largest weight on a forbidden key",
    mirrors="https://github.com/keras-team/keras/pull/15390",
)
def forbidden_keys_get_exactly_zero(subject: AttentionSubject) -> float:
    """A key that the mask forbids gets a weight of exactly 0."""
    largest = 0.0
    for name, mask in masks(subject).items():
        weights = attention_weights_of(subject, *make_inputs(subject), mask)
        alive = mask.any(dim=-1, keepdim=True)
        leak = weights.masked_fill(mask | ~alive, 0.0)
        b, h = worst(leak)
        largest = max(largest, size(leak))
        expect(
            not differs(size(leak)),
            f"With {name}, a forbidden key gets a weight of {size(leak):.3g} instead of 0: "
            "its value is mixed into the output. Give forbidden scores -inf before the softmax.",
            size(leak),
            mask_wanted=mask[b, 0],
            weights_found=weights[b, h],
        )
    return largest
