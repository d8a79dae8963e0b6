"""What must hold of an attention function whose padding holds NaN and Inf, forward and backward."""

from collections.abc import Iterator
from dataclasses import replace
from functools import partial

import torch

from minitransformer.checks.attention.cases import (
    KEYS,
    TOLERANCE,
    TORCH,
    Case,
    cases,
    dead_masks,
    gradients_of,
    half_dtypes,
    key_masks,
    make_inputs,
    real_keys,
)
from minitransformer.checks.attention.subject import AttentionSubject
from minitransformer.checks.engine.check import at_most, check, expect, needs
from minitransformer.masks import padding_mask

strict = partial(check, "attention", "strict")

NAN, INF = float("nan"), float("inf")


def _poisoned(case: Case, poison: float, keys: bool = True, values: bool = True) -> Case:
    """The same case with poison in the padding."""
    query, key, value = case.inputs
    key = key.masked_fill(case.padding, poison) if keys else key
    value = value.masked_fill(case.padding, poison) if values else value
    return replace(case, inputs=(query, key, value))


def _poison_stays_out(
    subject: AttentionSubject, poisons: tuple[float, ...], where: str
) -> Iterator[float]:
    for poison in poisons:
        for case in cases(subject, key_masks):
            before = case.output
            after = _poisoned(case, poison, "keys" in where, "values" in where).output
            yield at_most(
                0.0,
                (before != after).any(-1).sum(),
                f"With {case}, and {poison} in the padded {where}, {{measured}} outputs change. A "
                "weight of 0 times NaN or Inf is NaN: is padding kept out of the products?",
                mask_wanted=case.mask[0, 0],
                output_found=after[0, 0, :, :3],
            )


@strict(
    measures="outputs changed",
    mirrors=(
        "https://github.com/Dao-AILab/flash-attention/issues/1745",
        "https://github.com/ggml-org/llama.cpp/pull/3523",
    ),
)
def nan_in_padded_values_reaches_nothing(subject: AttentionSubject) -> Iterator[float]:
    """NaN or Inf in the values of forbidden keys changes no bit of the output."""
    return _poison_stays_out(subject, (NAN, INF, -INF), "values")


@strict(measures="outputs changed", mirrors=TORCH + "issues/64525")
def nan_in_padded_keys_reaches_nothing(subject: AttentionSubject) -> Iterator[float]:
    """NaN, Inf or 1e30 in forbidden keys changes no bit of the output."""
    large = 1e30 if subject.dtype != torch.float16 else 6e4
    return _poison_stays_out(subject, (NAN, INF, large), "keys")


@strict(measures="outputs changed")
def nan_in_whole_padded_tokens_reaches_nothing(subject: AttentionSubject) -> Iterator[float]:
    """NaN in query, key and value of padded tokens changes no bit of a real token's output."""
    needs(subject.full_masks, "its mask is one for all queries")
    tokens = make_inputs(subject, queries=KEYS)
    for side in ("right", "left", "holes"):
        real = real_keys(side, subject.device)
        mask = padding_mask(real.long())
        poison = tuple(x.masked_fill(~real[:, None, :, None], NAN) for x in tokens)
        changed = subject(*tokens, mask) != subject(*poison, mask)
        yield at_most(
            0.0,
            (changed.any(-1) & real[:, None]).sum(),
            f"With padding ({side}) of NaN tokens, {{measured}} outputs of real tokens change.",
        )


@strict(
    measures="gradients that are not finite or not 0 at padding", mirrors=TORCH + "issues/101967"
)
def nan_in_padding_reaches_no_gradient(subject: AttentionSubject) -> Iterator[float]:
    """With NaN in padded keys and values, real gradients stay as they were, padded ones are 0."""
    needs(subject.differentiable, "it does not promise gradients")
    for case in cases(subject, key_masks):
        wanted = gradients_of(subject, case.inputs, case.mask)
        found = gradients_of(subject, _poisoned(case, NAN).inputs, case.mask)
        bad = int((~found[0].isfinite()).sum())
        for x in found[1:]:
            bad += int(((x != 0.0) & case.padding).sum())
            bad += int((~x.isfinite() & ~case.padding).sum())
        yield at_most(
            0.0,
            bad,
            f"With {case}, and NaN in the padded keys and values, {bad} numbers of the gradients "
            "are NaN, or not 0 at the padding. d query is d scores · key: is the padding's key NaN "
            "there?",
        )
        same = torch.equal(found[0], wanted[0])
        expect(same, f"With {case}, NaN in the padding changes the gradient of the query.")


@strict(measures="outputs, or numbers of gradients, changed")
def nan_in_queries_that_see_nothing_reaches_nothing(subject: AttentionSubject) -> Iterator[float]:
    """NaN or Inf in a query that may see no key, as a padded one, changes no output, no gradient.

    Its own output stays zero where that is promised, so the same may come in as its gradient; where
    any value is allowed, the loss leaves it out.
    """
    zeros = subject.dead_rows == "zeros"
    for poison in (NAN, INF):
        for clean in cases(subject, dead_masks):
            dead = ~clean.alive
            query, key, value = clean.inputs
            dirty = replace(clean, inputs=(query.masked_fill(dead, poison), key, value))
            where = f"With {clean}, and {poison} in the fully masked queries,"
            before = clean.output.masked_fill(dead, 0.0)
            after = dirty.output if zeros else dirty.output.masked_fill(dead, 0.0)
            bad = after != before
            yield at_most(
                0.0,
                bad.any(-1).sum(),
                f"{where} {{measured}} outputs are NaN or change. A weight of 0 times NaN or Inf "
                "is NaN: are such queries kept out of the products?",
                **clean.shown(bad, output_found=dirty.output[..., :3]),
            )
            if not subject.differentiable:
                continue
            wanted = gradients_of(subject, clean.inputs, clean.mask)
            found = gradients_of(
                subject, dirty.inputs, clean.mask, poison=poison if zeros else None
            )
            wrong = {
                name: int((~((x - y).abs() <= 10 * TOLERANCE[subject.dtype])).sum())
                for name, x, y in zip(("query", "key", "value"), found, wanted, strict=True)
            }
            number, names = sum(wrong.values()), ", ".join(name for name in wrong if wrong[name])
            yield at_most(
                0.0,
                number,
                f"{where} {number} numbers of the gradients of {names} are NaN or change. d key is "
                "d scores · query: is a padded query multiplied there?",
            )


@strict(measures="outputs changed")
def half_precision_keeps_nan_out_too(subject: AttentionSubject) -> Iterator[float]:
    """In half precision too, NaN in padded keys and values changes no bit of the output."""
    for dtype in half_dtypes(subject):
        for case in cases(subject, key_masks, dtype):
            before, after = case.output, _poisoned(case, NAN).output
            yield at_most(
                0.0,
                (before != after).any(-1).sum(),
                f"In {dtype} with {case}, NaN in the padding changes {{measured}} outputs.",
            )
