"""What must hold of a function that builds a mask: subject and checks.

Lengths are unsorted, and in one batch there are as many rows as tokens, so that a mask which is
transposed, or taken for that of other axes, is another mask.
"""

import torch
from einops import rearrange
from torch import Tensor

from minitransformer.checks.engine.between_calls import (
    Answers,
    Call,
    asked_inside_inference_mode,
    masks_are_written_to,
)
from minitransformer.checks.engine.check import check, expect, needs
from minitransformer.checks.masks.subject import PAD, TOKEN, MaskSubject

LENGTHS = (2, 4, 1, 3)
TORCH = "https://github.com/pytorch/pytorch/"


def definition(subject: MaskSubject, attention_mask: Tensor) -> Tensor:
    """(B,1,T,T) by loops: may query q of row b attend to key k?"""
    batch, length = attention_mask.shape
    mask = torch.zeros(batch, 1, length, length, dtype=torch.bool, device=attention_mask.device)
    for b, numbers in enumerate(attention_mask.tolist()):
        for q in range(length):
            for k in range(length):
                together = numbers[k] == numbers[q] if subject.documents else numbers[k] != 0
                past = k <= q or not subject.causal
                mask[b, 0, q, k] = past and (together or subject.takes == "length")
    return mask


def batches(subject: MaskSubject) -> dict[str, Tensor]:
    """attention_masks (4,4) of ordinary kinds: as many rows as tokens, no symmetry."""
    index, lengths = torch.arange(4), torch.tensor(LENGTHS).unsqueeze(1)
    holes = torch.tensor([[1, 0, 1, 1], [1, 1, 1, 1], [1, 0, 0, 1], [0, 1, 1, 0]])
    found = {
        "padding on the right": (index < lengths).long(),
        "padding on the left": (index >= 4 - lengths).long(),
        "holes": holes,
        "no padding": torch.ones(4, 4, dtype=torch.long),
    }
    return {name: mask.to(subject.device) for name, mask in found.items()}


def compare(subject: MaskSubject, batches: dict[str, Tensor]) -> float:
    """The masks against the definition, at the queries of real tokens."""
    total, first = 0.0, None
    for name, attention_mask in batches.items():
        found, wanted = subject(attention_mask), definition(subject, attention_mask)
        wrong = found != wanted
        if subject.takes != "length":
            wrong &= rearrange(attention_mask != 0, "b q -> b 1 q 1")
        total += float(wrong.sum())
        if first is None and wrong.any():
            row = int(wrong.flatten(1).any(dim=1).long().argmax())
            shown = attention_mask[row], wanted[row, 0], found[row, 0]
            first = name, int((wrong & found).sum()), int((wrong & wanted).sum()), shown
    if first is not None:
        name, leaks, hidden, shown = first
        expect(
            False,
            f"With {name}, {leaks} entries allow what must be hidden (padding, the future or "
            f"another document), and {hidden} hide what may be seen.",
            total,
            attention_mask=shown[0],
            mask_wanted=shown[1],
            mask_found=shown[2],
        )
    return total


# ---- core ----------------------------------------------------------------------------------------


@check(
    "mask",
    "core",
    measures="wrong entries",
    mirrors=(
        "https://github.com/hyunwoongko/transformer/pull/40",
        "https://github.com/harvard-edge/cs249r_book/pull/1785",
    ),
)
def each_query_may_see_what_it_should(subject: MaskSubject) -> float:
    """Real tokens see real keys (of the past, where it is causal), themselves too; nothing else."""
    return compare(subject, batches(subject))


@check(
    "mask",
    "core",
    measures="wrong entries",
    mirrors="https://github.com/huggingface/trl/issues/3067",
)
def documents_do_not_see_each_other(subject: MaskSubject) -> float:
    """In a packed row each token sees its own document only, next to others or between them."""
    needs(subject.documents, "it does not declare documents")
    packed = torch.tensor([[1, 1, 2, 2, 2, 0], [1, 2, 2, 3, 3, 3], [1, 2, 1, 2, 0, 2]])
    return compare(subject, {"packed documents": packed.to(subject.device)})


@check("mask", "core", measures="wrong entries")
def a_row_of_padding_stays_in_its_row(subject: MaskSubject) -> float:
    """A row that is all padding leaves the masks of the others as they are."""
    needs(subject.takes != "length", "it knows nothing of padding")
    attention_mask = batches(subject)["padding on the right"].clone()
    attention_mask[1] = 0
    return compare(subject, {"a row of padding": attention_mask})


@check("mask", "core")
def a_rows_mask_is_its_own(subject: MaskSubject) -> None:
    """Each row alone has the mask that it has in the batch."""
    needs(subject.takes != "length", "it knows nothing of rows")
    for name, attention_mask in batches(subject).items():
        together = subject(attention_mask)
        for row in range(len(attention_mask)):
            alone = subject(attention_mask[row : row + 1])
            expect(
                torch.equal(alone[0], together[row]),
                f"With {name}, row {row} has another mask alone than in the batch.",
                None,
                alone=alone[0, 0],
                in_the_batch=together[row, 0],
            )


@check("mask", "core", measures="wrong entries", mirrors=TORCH + "issues/108108")
def the_last_query_is_the_last_key(subject: MaskSubject) -> float:
    """With fewer queries than keys the last query sees all keys, the one before it one less.

    So a model decodes with a cache: the queries are the newest tokens.
    """
    needs(subject.takes == "length", "it takes no numbers of queries and keys")
    for queries, keys in ((1, 5), (2, 5), (5, 5), (1, 1)):
        batch = torch.ones(1, keys, dtype=torch.long, device=subject.device)
        found = subject.normal(subject.call(queries, keys), batch)[0, 0]
        wanted = torch.ones(queries, keys, dtype=torch.bool).tril(keys - queries).to(found.device)
        wrong = float((found != wanted).sum()) if found.shape == wanted.shape else float("nan")
        expect(
            wrong == 0.0,
            f"With {queries} queries and {keys} keys the mask is not aligned at the last of both: "
            "a new token, asked alone, would not see what came before it.",
            wrong,
            mask_wanted=wanted,
            mask_found=found,
        )
    return 0.0


@check("mask", "core", measures="wrong entries")
def any_length_has_its_mask(subject: MaskSubject) -> float:
    """One token, one row, more tokens than rows and fewer: the mask is that of the definition."""
    sizes = {}
    for rows, length in ((1, 1), (1, 6), (5, 2), (2, 9)):
        attention_mask = torch.ones(rows, length, dtype=torch.long, device=subject.device)
        attention_mask[0, length // 2 + 1 :] = 0
        sizes[f"{rows} x {length} tokens"] = attention_mask
    return compare(subject, sizes)


@check("mask", "core")
def the_attention_mask_is_left_alone(subject: MaskSubject) -> None:
    """What it is given is the same after the call, and what it returns is no view of it."""
    needs(subject.takes != "length", "it is given numbers")
    for attention_mask in batches(subject).values():
        before = attention_mask.clone()
        if subject.takes == "ids":
            before = torch.where(before == 0, PAD, TOKEN)
        given = before.clone()
        mask = subject.call(given)
        expect(
            torch.equal(before, given),
            f"It changes its {subject.takes} in place: whoever reads it next reads another.",
        )
        expect(
            not isinstance(mask, Tensor)
            or mask.untyped_storage().data_ptr() != given.untyped_storage().data_ptr(),
            "It returned a view of what it was given: whoever changes the one changes the other.",
        )


@check("mask", "core", measures="wrong entries")
def long_rows_are_masked_too(subject: MaskSubject) -> float:
    """The mask of 300 tokens is right as that of 9 is."""
    attention_mask = torch.ones(2, 300, dtype=torch.long, device=subject.device)
    attention_mask[0, :131] = 0
    found = subject(attention_mask)
    wanted = (attention_mask != 0)[:, None, None, :].expand(-1, 1, 300, -1)
    if subject.takes == "length":
        wanted = torch.ones_like(wanted)
    wanted = wanted.tril() if subject.causal else wanted
    asked = wanted.any(dim=-1, keepdim=True) & (attention_mask != 0)[:, None, :, None]
    wrong = float(((found != wanted) & (asked | (subject.takes == "length"))).sum())
    expect(
        wrong == 0.0,
        f"Among 300 tokens {wrong:.0f} entries are wrong, though short masks may be right. "
        "Positions in a small dtype run together: bfloat16 counts to 256, uint8 to 255.",
        wrong,
    )
    return 0.0


@check(
    "mask",
    "core",
    measures="real tokens that are hidden",
    mirrors=(
        "https://github.com/huggingface/transformers/issues/23530",
        "https://github.com/huggingface/trl/issues/976",
    ),
)
def a_real_token_may_have_the_id_of_padding(subject: MaskSubject) -> float:
    """A real token that has the id of padding, as an end of sequence may, can be seen."""
    needs(subject.takes == "ids", "it looks at no ids")
    needs(not subject.pad_is_unique, "it declares that no real token has the id of padding")
    attention_mask = batches(subject)["padding on the right"]
    ends = attention_mask.sum(dim=1) - 1
    ids = torch.where(attention_mask == 0, PAD, TOKEN)
    ids[torch.arange(len(ids)), ends] = PAD
    found = subject.normal(subject.call(ids), attention_mask)
    seen = found.any(dim=2)[torch.arange(len(ids)), 0, ends]
    expect(
        seen.all(),
        f"In {int((~seen).sum())} of {len(seen)} rows the last real token is hidden: it is an end "
        "of sequence whose id is also the padding's. Ids cannot tell them apart: make the mask "
        "from lengths, where you pad. (Or declare pad_is_unique.)",
        float((~seen).sum()),
    )
    return 0.0


# ---- robust --------------------------------------------------------------------------------------


@check("mask", "robust", measures="largest value that should be -inf")
def what_is_hidden_is_minus_infinity(subject: MaskSubject) -> float:
    """An additive mask holds 0 and -inf only: any finite number is too small for some score."""
    needs(subject.mask_values == "additive", "its masks are not additive")
    for name, attention_mask in batches(subject).items():
        given = attention_mask.clone()
        if subject.takes == "ids":
            given = torch.where(given == 0, PAD, TOKEN)
        mask = subject.call(given) if subject.takes != "length" else subject.call(4, 4)
        finite = mask[(mask != 0.0) & mask.isfinite()]
        largest = float(finite.max()) if finite.numel() else 0.0
        expect(
            not finite.numel() and not mask.isnan().any(),
            f"With {name}, hidden entries hold {largest:.3g} instead of -inf: it leaks at large "
            "scores, cannot be held by float16, and added twice it may become NaN.",
            largest,
        )
    return 0.0


@check("mask", "robust", mirrors=TORCH + "issues/97605")
def true_and_one_mean_the_same(subject: MaskSubject) -> None:
    """A bool attention_mask gives the mask that an int one gives, or is refused."""
    needs(subject.takes == "attention_mask", "it takes no attention_mask")
    for name, attention_mask in batches(subject).items():
        try:
            returned = subject.call(attention_mask.bool())
        except Exception:  # refused, in whatever words
            return
        found = subject.normal(returned, attention_mask)
        expect(
            torch.equal(found, subject(attention_mask)),
            f"With {name} as True and False instead of 1 and 0 the mask is another, without an "
            "error: 1 - mask, ~mask and mask == 1 do other things to bools.",
        )


@check("mask", "robust", measures="keys that padded queries see")
def padded_queries_see_nothing(subject: MaskSubject) -> float:
    """Where it is promised, the query of a padded token sees no key at all."""
    needs(subject.dead_queries == "nothing", "it does not promise what padded queries see")
    needs(subject.takes != "length", "it knows nothing of padding")
    a_row_of_padding = torch.tensor([[1, 1, 0], [0, 0, 0]], device=subject.device)
    for name, attention_mask in (batches(subject) | {"a row of padding": a_row_of_padding}).items():
        seen = subject(attention_mask) & rearrange(attention_mask == 0, "b q -> b 1 q 1")
        expect(
            not seen.any(),
            f"With {name}, padded queries see {int(seen.sum())} keys.",
            float(seen.sum()),
        )
    return 0.0


def _answers(subject: MaskSubject) -> Answers:
    return {name: subject(attention_mask) for name, attention_mask in batches(subject).items()}


def _masks(subject: MaskSubject) -> tuple[Call, list[Tensor], list[Tensor]]:
    needs(subject.takes != "length", "it is given numbers")
    found = [batches(subject)[name] for name in ("padding on the right", "holes")]
    if subject.takes == "ids":
        found = [torch.where(mask == 0, PAD, TOKEN) for mask in found]
    return lambda given: subject.call(*given), found[:1], found[1:]


asked_inside_inference_mode("mask", _answers)
masks_are_written_to("mask", _masks)
