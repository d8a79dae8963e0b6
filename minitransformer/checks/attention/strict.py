"""What must hold of an attention function whose padding holds NaN and Inf, forward and backward."""

import torch
from torch import Tensor

from minitransformer.checks.attention.cases import (
    KEYS,
    TOLERANCE,
    TORCH,
    dead_masks,
    gradients_of,
    half_dtypes,
    key_masks,
    make_inputs,
    real_keys,
    worst,
)
from minitransformer.checks.attention.subject import (
    AttentionSubject,
)
from minitransformer.checks.engine.check import check, expect, needs
from minitransformer.masks import padding_mask

# ---- strict: NaN and Inf in padding --------------------------------------------------------------


def _poisoned(
    subject: AttentionSubject, poison: float, keys: bool, values: bool
) -> list[tuple[str, tuple[Tensor, ...], tuple[Tensor, ...], Tensor]]:
    """(mask's name, clean inputs, the same with poison in the padding, mask)."""
    clean = make_inputs(subject)
    found = []
    for name, mask in key_masks(subject).items():
        padding = ~mask[:, :, :1].mT
        query, key, value = clean
        key = key.masked_fill(padding, poison) if keys else key
        value = value.masked_fill(padding, poison) if values else value
        found.append((name, clean, (query, key, value), mask))
    return found


def _poison_stays_out(subject: AttentionSubject, poisons, keys: bool, values: bool) -> float:
    where = " and ".join(["keys"] * keys + ["values"] * values)
    for poison in poisons:
        for name, clean, dirty, mask in _poisoned(subject, poison, keys, values):
            before, after = subject(*clean, mask), subject(*dirty, mask)
            bad = int((before != after).any(-1).sum())
            expect(
                bad == 0,
                f"With {name}, and {poison} in the padded {where}, {bad} outputs change: "
                "0 · NaN is NaN, so a weight of 0 does not help. Fill the rows that nobody may "
                "see with zeros before any product.",
                float(bad),
                mask_wanted=mask[0, 0],
                output_found=after[0, 0, :, :3],
            )
    return 0.0


NAN, INF = float("nan"), float("inf")


@check(
    "attention",
    "strict",
    measures="outputs changed",
    mirrors=(
        "https://github.com/Dao-AILab/flash-attention/issues/1745",
        "https://github.com/ggml-org/llama.cpp/pull/3523",
    ),
)
def nan_in_padded_values_reaches_nothing(subject: AttentionSubject) -> float:
    """NaN or Inf in the values of forbidden keys changes no bit of the output."""
    return _poison_stays_out(subject, (NAN, INF, -INF), keys=False, values=True)


@check("attention", "strict", measures="outputs changed", mirrors=TORCH + "issues/64525")
def nan_in_padded_keys_reaches_nothing(subject: AttentionSubject) -> float:
    """NaN, Inf or 1e30 in forbidden keys changes no bit of the output."""
    large = 1e30 if subject.dtype != torch.float16 else 6e4
    return _poison_stays_out(subject, (NAN, INF, large), keys=True, values=False)


@check("attention", "strict", measures="outputs changed")
def nan_in_whole_padded_tokens_reaches_nothing(subject: AttentionSubject) -> float:
    """NaN in query, key and value of padded tokens changes no bit of a real token's output."""
    needs(subject.full_masks, "its mask is one for all queries")
    tokens = make_inputs(subject, queries=KEYS)
    for side in ("right", "left", "holes"):
        real = real_keys(side, subject.device)
        mask = padding_mask(real.long())
        poison = tuple(x.masked_fill(~real[:, None, :, None], NAN) for x in tokens)
        before = subject(*tokens, mask)
        after = subject(*poison, mask)
        bad = int(((before != after).any(-1) & real[:, None]).sum())
        expect(
            bad == 0,
            f"With padding ({side}) of NaN tokens, {bad} outputs of real tokens change.",
            float(bad),
        )
    return 0.0


@check(
    "attention",
    "strict",
    measures="gradients that are not finite or not 0 at padding",
    mirrors=TORCH + "issues/101967",
)
def nan_in_padding_reaches_no_gradient(subject: AttentionSubject) -> float:
    """With NaN in padded keys and values, real gradients stay as they were, padded ones are 0."""
    needs(subject.differentiable, "it does not promise gradients")
    for name, clean, dirty, mask in _poisoned(subject, NAN, keys=True, values=True):
        padding = ~mask[:, :, :1].mT
        wanted = gradients_of(subject, clean, mask)
        found = gradients_of(subject, dirty, mask)
        bad = int((~found[0].isfinite()).sum())
        for x in found[1:]:
            bad += int(((x != 0.0) & padding).sum()) + int((~x.isfinite() & ~padding).sum())
        expect(
            bad == 0,
            f"With {name}, and NaN in the padded keys and values, {bad} numbers of the gradients "
            "are NaN, or not 0 at the padding: d scores · key multiplies 0 with NaN on the way "
            "back. Fill the rows that nobody may see with zeros before any product.",
            float(bad),
        )
        same = torch.equal(found[0], wanted[0])
        expect(same, f"With {name}, NaN in the padding changes the gradient of the query.")
    return 0.0


@check("attention", "strict", measures="outputs, or numbers of gradients, changed")
def nan_in_queries_that_see_nothing_reaches_nothing(subject: AttentionSubject) -> float:
    """NaN or Inf in a query that may see no key, as a padded one, changes no output, no gradient.

    Its own output stays zero where that is promised, so the same may come in as its gradient; where
    any value is allowed, the loss leaves it out.
    """
    zeros = subject.dead_rows == "zeros"
    query, key, value = make_inputs(subject)
    for poison in (NAN, INF):
        for name, mask in dead_masks(subject).items():
            dead = ~mask.any(-1, True)
            clean, dirty = (query, key, value), (query.masked_fill(dead, poison), key, value)
            where = f"With {name}, and {poison} in the queries that see nothing,"
            before, after = subject(*clean, mask), subject(*dirty, mask)
            asked = after if zeros else after.masked_fill(dead, 0.0)
            bad = (asked != before.masked_fill(dead, 0.0)).any(-1)
            b, h = worst(bad.double())
            expect(
                not bad.any(),
                f"{where} {int(bad.sum())} outputs are NaN or change: 0 · NaN is NaN, so a weight "
                "of 0 does not help. Fill such queries with zeros before any product.",
                float(bad.sum()),
                mask_wanted=mask[b, 0],
                output_found=after[b, h, :, :3],
            )
            if not subject.differentiable:
                continue
            wanted = gradients_of(subject, clean, mask)
            found = gradients_of(subject, dirty, mask, poison=poison if zeros else None)
            wrong = {
                which: int((~((x - y).abs() <= 10 * TOLERANCE[subject.dtype])).sum())
                for which, x, y in zip(("query", "key", "value"), found, wanted, strict=True)
            }
            number, which = sum(wrong.values()), ", ".join(x for x in wrong if wrong[x])
            expect(
                number == 0,
                f"{where} {number} numbers of the gradients of {which} are NaN or change: a padded "
                "query is multiplied, and its NaN reaches its own gradient and the keys' gradients "
                "(d key is d scores · query). Fill such queries with zeros before any product.",
                float(number),
            )
    return 0.0


@check("attention", "strict", measures="outputs changed")
def half_precision_keeps_nan_out_too(subject: AttentionSubject) -> float:
    """In half precision too, NaN in padded keys and values changes no bit of the output."""
    for dtype in half_dtypes(subject):
        query, key, value = make_inputs(subject, dtype)
        for name, mask in key_masks(subject).items():
            padding = ~mask[:, :, :1].mT
            before = subject(query, key, value, mask)
            after = subject(
                query, key.masked_fill(padding, NAN), value.masked_fill(padding, NAN), mask
            )
            bad = int((before != after).any(-1).sum())
            expect(
                bad == 0,
                f"In {dtype} with {name}, NaN in the padding changes {bad} outputs.",
                float(bad),
            )
    return 0.0
