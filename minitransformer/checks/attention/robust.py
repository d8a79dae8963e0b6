"""What must hold of an attention function in half precision, without keys to see, or misused."""

from collections.abc import Iterator
from functools import partial

import torch
from torch import Tensor
from torch.autograd.gradcheck import GradcheckError

from minitransformer.checks.attention.cases import (
    BATCH,
    HF,
    KEYS,
    QUERIES,
    TOLERANCE,
    TORCH,
    Case,
    cases,
    dead_masks,
    gradients_of,
    half_dtypes,
    key_masks,
    keys_allowed,
    make_inputs,
    masks,
)
from minitransformer.checks.attention.subject import AttentionSubject, per_query_head
from minitransformer.checks.engine.between_calls import (
    Answers,
    Call,
    asked_inside_inference_mode,
    masks_are_written_to,
)
from minitransformer.checks.engine.check import (
    Failed,
    at_most,
    check,
    exceeds,
    expect,
    max_abs,
    needs,
)
from minitransformer.masks import causal_mask

robust = partial(check, "attention", "robust")


# ---- robust: flags -------------------------------------------------------------------------------


@robust(
    measures="largest difference",
    mirrors=(TORCH + "issues/108108", "https://github.com/onnx/onnx/pull/8068"),
)
def the_causal_flag_aligns_the_last_query_with_the_last_key(
    subject: AttentionSubject,
) -> Iterator[float]:
    """With fewer queries than keys, the causal flag lets the last query see every key.

    So it is needed to decode with a cache; aligned at the first, a new token would see one key.
    """
    needs(subject.causal_flag, "it declares no causal_flag")
    needs(not subject.same_length, "it needs as many queries as keys")
    inputs = make_inputs(subject)
    every = torch.ones(BATCH, 1, QUERIES, KEYS, dtype=torch.bool, device=subject.device)
    try:
        output = subject(*inputs, every, **{subject.causal_flag: True})
    except Failed:
        raise
    except Exception:  # not with a mask, then
        (call, *_) = subject.calls(*inputs, every)
        output = subject.answer(subject.call(*call[:3], **{subject.causal_flag: True}))[0]
        output = subject.gather([output], BATCH)
    mask = causal_mask(QUERIES, KEYS, device=subject.device)
    yield at_most(
        TOLERANCE[subject.dtype],
        output.double() - Case(subject, "causal", mask, inputs).wanted,
        "With 5 queries and 7 keys the output is off by {measured}: does the flag align the first "
        "query with the first key?",
        mask_wanted=mask[0, 0],
    )


# ---- robust: half precision and large scores -----------------------------------------------------


@robust(
    measures="largest weight on a forbidden key",
    mirrors=(HF + "pull/17306", "https://github.com/facebookresearch/fairseq/issues/3575"),
)
def half_precision_gets_exact_zeros_too(subject: AttentionSubject) -> Iterator[float]:
    """In bfloat16 and float16 forbidden keys get exactly 0, and the output is right to rounding."""
    for dtype in half_dtypes(subject):
        for case in cases(subject, masks, dtype):
            yield at_most(
                0.0,
                case.leak,
                f"In {dtype} with {case}, a masked key gets a weight of {{measured}} instead of 0. "
                f"Is a masked score -inf, or a number that is not far enough away in {dtype}?",
            )
            at_most(
                TOLERANCE[dtype],
                case.live(case.output.double() - case.wanted),
                f"In {dtype} with {case} the output is off by {{measured}}.",
            )


@robust(
    measures="largest weight on a forbidden key",
    mirrors=(
        "https://github.com/flashinfer-ai/flashinfer/issues/4267",
        "https://github.com/ohdearquant/lattice/issues/361",
    ),
)
def no_score_is_large_enough_to_leak(subject: AttentionSubject) -> Iterator[float]:
    """A forbidden key gets 0 though its score is huge and the allowed ones' are very negative."""
    query, key, value = make_inputs(subject)
    query = torch.ones_like(query)
    limit = 1e34 if subject.dtype != torch.float16 else 2e4
    for name, mask in key_masks(subject).items():
        real = mask[:, :, :1].mT.expand_as(key)
        for low, high in ((-limit, limit), (-3.0 * limit, 0.0)):
            extreme = torch.where(real, low, high).to(key.dtype)
            case = Case(subject, name, mask, (query, extreme, value))
            yield at_most(
                0.0,
                case.weights.masked_fill(mask, 0.0),
                f"With {case}, and scores of about {low:.0e} at the allowed keys and {high:.0e} at "
                "the masked ones, a masked key gets a weight of {measured}. Does a finite number "
                "stand where -inf should?",
                mask_wanted=mask[0, 0],
                weights_found=case.weights[0, 0],
            )
            if subject.sums_to_one and subject.reference is None:
                at_most(
                    1e-3,
                    (case.weights.double() * mask).sum(-1) - 1.0,
                    f"With {case} and very large scores the weights sum to 1 only up to "
                    "{measured}.",
                )


@robust(
    measures="largest difference from the formula",
    mirrors="https://github.com/ml-explore/mlx/issues/1725",
)
def scores_beyond_float16_are_right(subject: AttentionSubject) -> Iterator[float]:
    """Half precision holds where q·k is above 65504, float16's largest number."""
    for dtype in half_dtypes(subject):
        query, key, value = make_inputs(subject, dtype)
        query, key = torch.full_like(query, 120.0), torch.full_like(key, 120.0)  # q·k = 115,200
        key[:, :, ::2] *= -1
        for name, mask in key_masks(subject).items():
            case = Case(subject, name, mask, (query, key, value))
            yield at_most(
                2 * TOLERANCE[dtype],
                case.output.double() - case.wanted,
                f"In {dtype} with {case} and q·k = 115,200, the output is off by {{measured}}. Do "
                "the scores overflow to Inf?",
            )


@robust(measures="largest difference", mirrors=(TORCH + "issues/196678", TORCH + "issues/119320"))
def every_length_works(subject: AttentionSubject) -> Iterator[float]:
    """Lengths around the blocks of kernels, with very negative scores, forward and backward."""
    for keys in (1, 2, 3, 15, 16, 17, 63, 64, 65, 127, 128, 129, 192):
        query, key, value = make_inputs(subject, keys=keys, queries=min(keys, 3), batch=1)
        real = torch.ones(1, keys, dtype=torch.bool, device=subject.device)
        real[:, max(1, 2 * keys // 3) :] = False
        mask = keys_allowed(real, query.shape[2])
        name = f"{keys} keys and scores of about -250"
        case = Case(subject, name, mask, (query + 9.0, key - 11.0, value))
        yield at_most(
            1e-3 if subject.dtype != torch.bfloat16 else 5e-2,
            case.output.double() - case.wanted,
            f"With {case}, the output is off by {{measured}}.",
        )
        if subject.differentiable:
            gradients = gradients_of(subject, case.inputs, mask)
            finite = all(bool(x.isfinite().all()) for x in gradients)
            expect(finite, f"With {case}, a gradient is not finite.")


@robust(measures="largest difference from float64")
def float64_is_computed_in_float64(subject: AttentionSubject) -> Iterator[float]:
    """For float64 inputs nothing on the way is rounded to float32."""
    needs(torch.float64 in subject.dtypes, "it does not declare float64")
    for case in cases(subject, key_masks, torch.float64):
        yield at_most(
            1e-12,
            case.output.double() - case.wanted,
            f"In float64 with {case}, the output is off by {{measured}}. Is some step done in "
            "float32, so that torch.autograd.gradcheck cannot work?",
        )


@robust(measures="largest weight on a forbidden key", mirrors=TORCH + "issues/119131")
def autocast_changes_nothing_but_rounding(subject: AttentionSubject) -> Iterator[float]:
    """Under autocast to bfloat16, forbidden keys get exactly 0; the output is right to rounding."""
    needs(subject.dtype == torch.float32, "it does not declare float32")
    needs(torch.bfloat16 in subject.dtypes, "it does not declare bfloat16")
    for case in cases(subject):
        with torch.autocast(torch.device(subject.device).type, dtype=torch.bfloat16):
            leak, output = case.leak, case.output.double()
        yield at_most(0.0, leak, f"Under autocast with {case}, a masked key gets {{measured}}.")
        at_most(
            TOLERANCE[torch.bfloat16],
            case.live(output - case.wanted),
            f"Under autocast with {case} the output is off by {{measured}}.",
        )


@robust(measures="largest difference")
def how_tensors_lie_in_memory_is_irrelevant(subject: AttentionSubject) -> Iterator[float]:
    """Transposed, strided and expanded inputs give what contiguous ones give."""

    def output_for(*call: Tensor) -> Tensor:
        with torch.no_grad():
            return subject.answer(subject.call(*call))[0].double()

    mask = next(iter(key_masks(subject).values()))
    ((*inputs, mask), *_) = subject.calls(*make_inputs(subject), mask)
    wanted = output_for(*inputs, mask)
    layouts = {
        "strided": [torch.stack([x, x], dim=-1)[..., 0] for x in inputs],
        "transposed": [x.mT.contiguous().mT for x in inputs],
    }
    for layout, moved in layouts.items():
        yield at_most(
            TOLERANCE[subject.dtype],
            output_for(*moved, mask) - wanted,
            f"For {layout} inputs with equal content the output differs by {{measured}}.",
        )
    if mask.shape[0] > 1:
        expanded = mask[:1].clone().expand_as(mask)
        yield at_most(
            0.0,
            output_for(*inputs, expanded) - output_for(*inputs, expanded.clone()),
            "For an expanded mask the output differs by {measured}.",
        )


# ---- robust: queries that may see nothing --------------------------------------------------------


@robust(
    measures="outputs that are not finite",
    mirrors=(TORCH + "issues/41508", "https://github.com/lucidrains/x-transformers/issues/263"),
)
def a_query_that_sees_nothing_gets_no_nan(subject: AttentionSubject) -> Iterator[float]:
    """A query that may see no key, as in a row of padding, gets a finite output."""
    for case in cases(subject, dead_masks):
        bad = ~case.output.isfinite()
        yield at_most(
            0.0,
            bad.any(-1).sum(),
            f"With {case}, {{measured}} outputs are NaN or Inf. What is the softmax of a row in "
            "which every score is -inf?",
            **case.shown(bad, output_found=case.output[..., :3]),
        )


@robust(measures="largest output of a query that may see nothing")
def a_query_that_sees_nothing_gets_zeros(subject: AttentionSubject) -> Iterator[float]:
    """A query that may see no key gets exact zeros: not an average of what it must not see."""
    needs(subject.dead_rows == "zeros", "it declares dead_rows='any'")
    for case in cases(subject, dead_masks):
        output = case.output.masked_fill(case.alive, 0.0)
        yield at_most(
            0.0,
            output,
            f"With {case}, a fully masked query gets an output of {{measured}}, not 0: it attends "
            "to padding or to the future after all. What are its weights?",
            **case.shown(output, output_found=output[..., :3]),
        )


@robust(
    measures="gradients that are not finite",
    mirrors=(TORCH + "issues/41508", "https://github.com/Xilinx/brevitas/pull/1591"),
)
def gradients_are_finite_where_queries_see_nothing(subject: AttentionSubject) -> Iterator[float]:
    """Queries that may see nothing give no NaN gradients, whether or not the loss looks at them."""
    needs(subject.differentiable, "it does not promise gradients")
    for case in cases(subject, dead_masks):
        for live_only in (True, False):
            gradients = gradients_of(subject, case.inputs, case.mask, live_only)
            bad = sum(int((~x.isfinite()).sum()) for x in gradients)
            left_out = ", though the loss leaves such queries out" if live_only else ""
            yield at_most(
                0.0,
                bad,
                f"With {case}, {bad} numbers of the gradients are NaN or Inf{left_out}: one such "
                "row ruins the update of the whole model. Is a NaN replaced, or is none made?",
            )


@robust(mirrors="https://github.com/Xilinx/brevitas/pull/1591")
def there_is_no_nan_inside_the_graph(subject: AttentionSubject) -> None:
    """torch.autograd.set_detect_anomaly finds no NaN, even where queries see nothing."""
    needs(subject.differentiable, "it does not promise gradients")
    for case in cases(subject, dead_masks):
        with torch.autograd.set_detect_anomaly(True, check_nan=True):
            try:
                gradients_of(subject, case.inputs, case.mask, live_only=False)
            except RuntimeError as error:
                expect(
                    "returned nan" not in str(error),
                    f"With {case}, anomaly mode stops: {str(error).splitlines()[0]} Who hunts "
                    "another NaN finds this one.",
                )
                raise


@robust(measures="outputs that are not finite")
def half_precision_bears_queries_that_see_nothing(subject: AttentionSubject) -> Iterator[float]:
    """In half precision too, a query that may see no key gets a finite output."""
    for dtype in half_dtypes(subject):
        for case in cases(subject, dead_masks, dtype):
            yield at_most(
                0.0,
                (~case.output.isfinite()).any(-1).sum(),
                f"In {dtype} with {case}, {{measured}} outputs are NaN or Inf.",
            )


@robust(measures="largest difference from the numerical gradient")
def gradcheck_passes(subject: AttentionSubject) -> None:
    """torch.autograd.gradcheck agrees in float64, for queries that see nothing too."""
    needs(subject.differentiable, "it does not promise gradients")
    needs(torch.float64 in subject.dtypes, "it does not declare float64")
    generator = torch.Generator().manual_seed(3)
    heads = subject.heads if subject.kv_heads else (1, 1)
    inputs = [
        torch.randn(2, number, 3, 2, generator=generator, dtype=torch.float64)
        .to(subject.device)
        .requires_grad_()
        for number in (heads[0], heads[1], heads[1])
    ]
    real = torch.tensor([[True, True, False], [False] * 3], device=subject.device)
    mask = keys_allowed(real, 3)
    if subject.full_masks:
        mask = mask & causal_mask(3, device=subject.device)
    try:
        torch.autograd.gradcheck(lambda q, k, v: subject(q, k, v, mask), inputs, fast_mode=False)
    except GradcheckError as error:
        says = str(error).partition(",")[0]  # not the whole Jacobians, which follow
        expect(False, f"gradcheck disagrees: {says}")


@robust(measures="largest difference from the value")
def one_visible_key_gives_its_value(subject: AttentionSubject) -> Iterator[float]:
    """A query that may see one key only gets that key's value, to the bit."""
    needs(subject.sums_to_one, "its weights need not sum to 1")
    needs(subject.reference is None, "it has a reference of its own")
    query, key, value = make_inputs(subject)
    values = per_query_head(value, query)
    for only in range(KEYS):
        real = torch.zeros(BATCH, KEYS, dtype=torch.bool, device=subject.device)
        real[:, only] = True
        output = subject(query, key, value, keys_allowed(real, query.shape[2]))
        yield at_most(
            0.0,
            output - values[:, :, only : only + 1],
            f"Key {only} alone is allowed, but the output is not its value: off by {{measured}}.",
        )


# ---- robust: misuse ------------------------------------------------------------------------------


@robust(
    measures="largest difference from the bool mask",
    mirrors=("https://github.com/harvard-edge/cs249r_book/pull/1785", TORCH + "issues/97605"),
)
def ones_and_zeros_are_understood_or_refused(subject: AttentionSubject) -> Iterator[float]:
    """A mask of 1 and 0 as integers means what True and False mean, or is refused."""
    needs(subject.mask_values == "bool", "its masks are not bool")
    for name, mask in key_masks(subject).items():
        for *inputs, bools in subject.calls(*make_inputs(subject), mask):
            wanted, _ = subject.answer(subject.call(*inputs, bools))
            try:
                returned = subject.call(*inputs, bools.long())
            except Exception:
                return
            found, _ = subject.answer(returned)
            yield at_most(
                TOLERANCE[subject.dtype],
                found - wanted,
                f"With {name} as 1 and 0 instead of True and False the output differs by "
                "{measured}, without an error. Is the mask inverted by ~ (~1 is -2), or added?",
            )


@robust(mirrors=(TORCH + "issues/64706", "https://github.com/pbloem/former/issues/10"))
def a_mask_of_keys_is_not_taken_for_one_of_queries(subject: AttentionSubject) -> None:
    """A (batch, length) mask, given where queries × keys belong, is refused or means the keys.

    With as many rows as tokens the shapes fit by accident, and sequence 2's padding would hide
    token 2's view.
    """
    needs(subject.refuses_misuse, "it does not declare refuses_misuse")
    needs(subject.mask_layout in ("b 1 q k", "b h q k", "b q k"), "its masks have no queries")
    needs(subject.mask_values == "bool", "its masks are not bool")
    length = BATCH
    query, key, value = (x[:, :, :length] for x in make_inputs(subject))
    lengths = torch.tensor([2, 4, 1, 3], device=subject.device).unsqueeze(1)
    real = torch.arange(length, device=subject.device) < lengths
    (call, *_) = subject.calls(query, key, value, keys_allowed(real, length))
    flat = real if subject.mask_means == "attend" else ~real
    try:
        returned = subject.call(*call[:3], flat)
    except Exception:
        return
    found, _ = subject.answer(returned)
    wanted, _ = subject.answer(subject.call(*call))
    expect(
        found.shape == wanted.shape and not exceeds(max_abs((found - wanted).double()), 1e-3),
        "A (batch, length) mask with as many rows as tokens was taken for (queries, keys), without "
        "an error. Is a mask of another rank than yours refused?",
        None,
        mask_given=real,
    )


# ---- robust: from one call to the next -----------------------------------------------------------


def _answers(subject: AttentionSubject) -> Answers:
    inputs = [x.requires_grad_(subject.differentiable) for x in make_inputs(subject)]
    return {
        name: subject(*inputs, mask).where(mask.any(-1, True), 0.0)
        for name, mask in masks(subject).items()
    }


def _masks(subject: AttentionSubject) -> tuple[Call, list[Tensor], list[Tensor]]:
    before, after = (key_masks(subject)[name] for name in ("padding on the right", "holes"))
    inputs = make_inputs(subject)
    (*first, mask), *_ = subject.calls(*inputs, before)
    (*_, other), *_ = subject.calls(*inputs, after)
    return lambda given: subject.answer(subject.call(*first, *given))[0], [mask], [other]


asked_inside_inference_mode("attention", _answers)
masks_are_written_to("attention", _masks)
