"""What must hold of an attention function in half precision, without keys to see, or misused."""

import torch
from torch import Tensor
from torch.autograd.gradcheck import GradcheckError

from minitransformer.checks.attention.cases import (
    BATCH,
    HF,
    KEYS,
    TOLERANCE,
    TORCH,
    dead_masks,
    gradients_of,
    half_dtypes,
    key_masks,
    keys_allowed,
    make_inputs,
    masks,
    worst,
)
from minitransformer.checks.attention.subject import (
    AttentionSubject,
    attention_weights_of,
    expected_weights,
)
from minitransformer.checks.engine.between_calls import (
    Answers,
    Call,
    asked_inside_inference_mode,
    masks_are_written_to,
)
from minitransformer.checks.engine.check import check, exceeds, expect, max_abs, needs
from minitransformer.masks import causal_mask

# ---- robust: half precision and large scores -----------------------------------------------------


@check(
    "attention",
    "robust",
    measures="largest weight on a forbidden key",
    mirrors=(HF + "pull/17306", "https://github.com/facebookresearch/fairseq/issues/3575"),
)
def half_precision_gets_exact_zeros_too(subject: AttentionSubject) -> float:
    """In bfloat16 and float16 forbidden keys get exactly 0, and the output is right to rounding."""
    for dtype in half_dtypes(subject):
        for name, mask in masks(subject).items():
            inputs = make_inputs(subject, dtype)
            alive = mask.any(-1, True)
            weights = attention_weights_of(subject, *inputs, mask)
            leak = max_abs(weights.masked_fill(mask | ~alive, 0.0))
            expect(
                not exceeds(leak),
                f"In {dtype} with {name}, a forbidden key gets a weight of {leak:.3g} instead of "
                "0: constants such as -1e4 are not far enough away, and -1e9 does not exist in "
                "float16. Use masked_fill with -inf.",
                leak,
            )
            output = subject(*inputs, mask).double()
            wanted = expected_weights(*inputs[:2], mask) @ inputs[2].double()
            error = max_abs((output - wanted).masked_fill(~alive, 0.0))
            expect(
                not exceeds(error, TOLERANCE[dtype]),
                f"In {dtype} with {name} the output is off by {error:.3g}.",
                error,
            )
    return 0.0


@check(
    "attention",
    "robust",
    measures="largest weight on a forbidden key",
    mirrors=(
        "https://github.com/flashinfer-ai/flashinfer/issues/4267",
        "https://github.com/ohdearquant/lattice/issues/361",
    ),
)
def no_score_is_large_enough_to_leak(subject: AttentionSubject) -> float:
    """A forbidden key gets 0 though its score is huge and the allowed ones' are very negative."""
    query, key, value = make_inputs(subject)
    query = torch.ones_like(query)
    limit = 1e34 if subject.dtype != torch.float16 else 2e4
    largest = 0.0
    for name, mask in key_masks(subject).items():
        real = mask[:, :, :1].mT.expand_as(key)
        for low, high in ((-1.0, 1.0), (-3.0, 0.0)):
            extreme = torch.where(real, low * limit, high * limit).to(key.dtype)
            weights = attention_weights_of(subject, query, extreme, value, mask)
            leak = max_abs(weights.masked_fill(mask, 0.0))
            largest = max(largest, leak)
            expect(
                not exceeds(leak),
                f"With {name}, and scores of about {low * limit:.0e} at the allowed keys and "
                f"{high * limit:.0e} at the forbidden ones, a forbidden key gets a weight of "
                f"{leak:.3g}: a finite number stands where -inf should.",
                leak,
                mask_wanted=mask[0, 0],
                weights_found=weights[0, 0],
            )
            error = max_abs((weights.double() * mask).sum(-1) - 1.0)
            expect(
                not exceeds(error, 1e-3),
                f"With {name} and very large scores the weights sum to 1 only up to {error:.3g}.",
                error,
            )
    return largest


@check(
    "attention",
    "robust",
    measures="largest difference from the formula",
    mirrors="https://github.com/ml-explore/mlx/issues/1725",
)
def scores_beyond_float16_are_right(subject: AttentionSubject) -> float:
    """Half precision holds where q·k is above 65504, float16's largest number."""
    largest = 0.0
    for dtype in half_dtypes(subject):
        query, key, value = make_inputs(subject, dtype)
        query, key = torch.full_like(query, 120.0), torch.full_like(key, 120.0)  # q·k = 115,200
        key[:, :, ::2] *= -1
        for name, mask in key_masks(subject).items():
            output = subject(query, key, value, mask).double()
            wanted = expected_weights(query, key, mask) @ value.double()
            error = max_abs(output - wanted)
            largest = max(largest, error)
            expect(
                not exceeds(error, 2 * TOLERANCE[dtype]),
                f"In {dtype} with {name} and q·k = 115,200, the output is off by {error:.3g}: "
                "scores overflow to Inf. Compute them in float32, or scale the query first.",
                error,
            )
    return largest


@check(
    "attention",
    "robust",
    measures="largest difference",
    mirrors=(TORCH + "issues/196678", TORCH + "issues/119320"),
)
def every_length_works(subject: AttentionSubject) -> float:
    """Lengths around the blocks of kernels, with very negative scores, forward and backward."""
    largest = 0.0
    for keys in (1, 2, 3, 15, 16, 17, 63, 64, 65, 127, 128, 129, 192):
        query, key, value = make_inputs(subject, keys=keys, queries=min(keys, 3), batch=1)
        query, key = query + 9.0, key - 11.0  # scores of about -250
        real = torch.ones(1, keys, dtype=torch.bool, device=subject.device)
        real[:, max(1, 2 * keys // 3) :] = False
        mask = keys_allowed(real, query.shape[2])
        wanted = expected_weights(query, key, mask) @ value.double()
        error = max_abs(subject(query, key, value, mask).double() - wanted)
        largest = max(largest, error)
        expect(
            not exceeds(error, 1e-3 if subject.dtype != torch.bfloat16 else 5e-2),
            f"With {keys} keys and scores of about -250, the output is off by {error:.3g}.",
            error,
        )
        if subject.differentiable:
            finite = all(
                bool(x.isfinite().all()) for x in gradients_of(subject, (query, key, value), mask)
            )
            expect(finite, f"With {keys} keys and scores of about -250, a gradient is not finite.")
    return largest


@check("attention", "robust", measures="largest difference from float64")
def float64_is_computed_in_float64(subject: AttentionSubject) -> float:
    """For float64 inputs nothing on the way is rounded to float32."""
    needs(torch.float64 in subject.dtypes, "it does not declare float64")
    inputs = make_inputs(subject, torch.float64)
    largest = 0.0
    for name, mask in key_masks(subject).items():
        wanted = expected_weights(*inputs[:2], mask) @ inputs[2]
        error = max_abs(subject(*inputs, mask).double() - wanted)
        largest = max(largest, error)
        expect(
            not exceeds(error, 1e-12),
            f"In float64 with {name}, the output is off by {error:.3g}: some step is done in "
            "float32, and torch.autograd.gradcheck cannot work.",
            error,
        )
    return largest


@check(
    "attention",
    "robust",
    measures="largest weight on a forbidden key",
    mirrors=TORCH + "issues/119131",
)
def autocast_changes_nothing_but_rounding(subject: AttentionSubject) -> float:
    """Under autocast to bfloat16, forbidden keys get exactly 0; the output is right to rounding."""
    needs(subject.dtype == torch.float32, "it does not declare float32")
    needs(torch.bfloat16 in subject.dtypes, "it does not declare bfloat16")
    inputs = make_inputs(subject)
    for name, mask in masks(subject).items():
        alive = mask.any(-1, True)
        with torch.autocast(torch.device(subject.device).type, dtype=torch.bfloat16):
            weights = attention_weights_of(subject, *inputs, mask)
            output = subject(*inputs, mask).double()
        leak = max_abs(weights.masked_fill(mask | ~alive, 0.0))
        expect(
            not exceeds(leak), f"Under autocast with {name}, a forbidden key gets {leak:.3g}.", leak
        )
        wanted = expected_weights(*inputs[:2], mask) @ inputs[2].double()
        error = max_abs((output - wanted).masked_fill(~alive, 0.0))
        expect(
            not exceeds(error, TOLERANCE[torch.bfloat16]),
            f"Under autocast with {name} the output is off by {error:.3g}.",
            error,
        )
    return 0.0


@check("attention", "robust", measures="largest difference")
def how_tensors_lie_in_memory_is_irrelevant(subject: AttentionSubject) -> float:
    """Transposed, strided and expanded inputs give what contiguous ones give."""
    inputs = make_inputs(subject)
    mask = next(iter(key_masks(subject).values()))
    (call, *_) = subject.calls(*inputs, mask)
    with torch.no_grad():
        wanted, _ = subject.answer(subject.call(*call))
        strided = [torch.stack([x, x], dim=-1)[..., 0] for x in call[:3]]
        transposed = [x.mT.contiguous().mT for x in call[:3]]
        for how, moved in {"strided": strided, "transposed": transposed}.items():
            change = max_abs(
                subject.answer(subject.call(*moved, call[3]))[0].double() - wanted.double()
            )
            expect(
                not exceeds(change, TOLERANCE[subject.dtype]),
                f"For {how} inputs with equal content the output differs by {change:.3g}.",
                change,
            )
        if call[3].shape[0] > 1:
            first = call[3][:1].clone()
            change = max_abs(
                subject.answer(subject.call(*call[:3], first.expand_as(call[3])))[0].double()
                - subject.answer(subject.call(*call[:3], first.expand_as(call[3]).clone()))[
                    0
                ].double()
            )
            expect(not exceeds(change), f"For an expanded mask the output differs by {change:.3g}.")
    return 0.0


# ---- robust: queries that may see nothing --------------------------------------------------------


@check(
    "attention",
    "robust",
    measures="outputs that are not finite",
    mirrors=(TORCH + "issues/41508", "https://github.com/lucidrains/x-transformers/issues/263"),
)
def a_query_that_sees_nothing_gets_no_nan(subject: AttentionSubject) -> float:
    """A query that may see no key, as in a row of padding, gets a finite output."""
    inputs = make_inputs(subject)
    for name, mask in dead_masks(subject).items():
        output = subject(*inputs, mask)
        bad = ~output.isfinite()
        b, h = worst(bad.double())
        expect(
            not bad.any(),
            f"With {name}, {int(bad.any(-1).sum())} outputs are NaN or Inf: a softmax over nothing "
            "but -inf is 0/0. Give such rows finite scores before it and zeros after it.",
            float(bad.any(-1).sum()),
            mask_wanted=mask[b, 0],
            output_found=output[b, h, :, :3],
        )
    return 0.0


@check("attention", "robust", measures="largest output of a query that may see nothing")
def a_query_that_sees_nothing_gets_zeros(subject: AttentionSubject) -> float:
    """A query that may see no key gets exact zeros: not an average of what it must not see."""
    needs(subject.dead_rows == "zeros", "it declares dead_rows='any'")
    inputs = make_inputs(subject)
    for name, mask in dead_masks(subject).items():
        output = subject(*inputs, mask).masked_fill(mask.any(-1, True), 0.0)
        b, h = worst(output)
        expect(
            not exceeds(max_abs(output)),
            f"With {name}, a query that may see nothing gets an output of {max_abs(output):.3g}, not "
            "0: it attends to padding or to the future after all. A finite number instead of -inf "
            "does this; set such rows to zero after the softmax.",
            max_abs(output),
            mask_wanted=mask[b, 0],
            output_found=output[b, h, :, :3],
        )
    return 0.0


@check(
    "attention",
    "robust",
    measures="gradients that are not finite",
    mirrors=(TORCH + "issues/41508", "https://github.com/Xilinx/brevitas/pull/1591"),
)
def gradients_are_finite_where_queries_see_nothing(subject: AttentionSubject) -> float:
    """Queries that may see nothing give no NaN gradients, whether or not the loss looks at them."""
    needs(subject.differentiable, "it does not promise gradients")
    inputs = make_inputs(subject)
    for name, mask in dead_masks(subject).items():
        for live_only in (True, False):
            found = gradients_of(subject, inputs, mask, live_only)
            bad = sum(int((~x.isfinite()).sum()) for x in found)
            expect(
                bad == 0,
                f"With {name}, {bad} numbers of the gradients are NaN or Inf"
                + (", though the loss leaves such queries out" if live_only else "")
                + ": one such row ruins the update of the whole model. Replacing NaN after the "
                "softmax is too late: 0 · NaN is NaN on the way back.",
                float(bad),
            )
    return 0.0


@check("attention", "robust", mirrors="https://github.com/Xilinx/brevitas/pull/1591")
def there_is_no_nan_inside_the_graph(subject: AttentionSubject) -> None:
    """torch.autograd.set_detect_anomaly finds no NaN, even where queries see nothing."""
    needs(subject.differentiable, "it does not promise gradients")
    inputs = make_inputs(subject)
    for name, mask in dead_masks(subject).items():
        with torch.autograd.set_detect_anomaly(True, check_nan=True):
            try:
                gradients_of(subject, inputs, mask, live_only=False)
            except RuntimeError as error:
                expect(
                    "returned nan" not in str(error),
                    f"With {name}, anomaly mode stops: {str(error).splitlines()[0]} The NaN is "
                    "made in the softmax and replaced later; who hunts another finds this one.",
                )
                raise


@check("attention", "robust", measures="outputs that are not finite")
def half_precision_bears_queries_that_see_nothing(subject: AttentionSubject) -> float:
    """In half precision too, a query that may see no key gets a finite output."""
    for dtype in half_dtypes(subject):
        for name, mask in dead_masks(subject).items():
            bad = ~subject(*make_inputs(subject, dtype), mask).isfinite()
            expect(
                not bad.any(),
                f"In {dtype} with {name}, {int(bad.any(-1).sum())} outputs are NaN or Inf.",
                float(bad.any(-1).sum()),
            )
    return 0.0


@check("attention", "robust", measures="largest difference from the numerical gradient")
def gradcheck_passes(subject: AttentionSubject) -> None:
    """torch.autograd.gradcheck agrees in float64, for queries that see nothing too."""
    needs(subject.differentiable, "it does not promise gradients")
    needs(torch.float64 in subject.dtypes, "it does not declare float64")
    generator = torch.Generator().manual_seed(3)
    inputs = [
        torch.randn(2, 1, 3, 2, generator=generator, dtype=torch.float64)
        .to(subject.device)
        .requires_grad_()
        for _ in range(3)
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


@check("attention", "robust", measures="largest difference from the value")
def one_visible_key_gives_its_value(subject: AttentionSubject) -> float:
    """A query that may see one key only gets that key's value, to the bit."""
    query, key, value = make_inputs(subject)
    for only in range(KEYS):
        real = torch.zeros(BATCH, KEYS, dtype=torch.bool, device=subject.device)
        real[:, only] = True
        output = subject(query, key, value, keys_allowed(real, query.shape[2]))
        wanted = value[:, :, only : only + 1].expand_as(output)
        change = max_abs((output - wanted).double())
        expect(
            torch.equal(output, wanted),
            f"Key {only} alone is allowed, but the output is not its value: off by {change:.3g}.",
            change,
        )
    return 0.0


# ---- robust: misuse ------------------------------------------------------------------------------


@check(
    "attention",
    "robust",
    measures="largest difference from the bool mask",
    mirrors=("https://github.com/harvard-edge/cs249r_book/pull/1785", TORCH + "issues/97605"),
)
def ones_and_zeros_are_understood_or_refused(subject: AttentionSubject) -> float | None:
    """A mask of 1 and 0 as integers means what True and False mean, or is refused."""
    needs(subject.mask_values == "bool", "its masks are not bool")
    inputs = make_inputs(subject)
    for name, mask in key_masks(subject).items():
        for call in subject.calls(*inputs, mask):
            wanted, _ = subject.answer(subject.call(*call))
            try:
                returned = subject.call(*call[:3], call[3].long())
            except Exception:
                return None
            found, _ = subject.answer(returned)
            change = max_abs((found - wanted).double())
            expect(
                not exceeds(change, TOLERANCE[subject.dtype]),
                f"With {name} as 1 and 0 instead of True and False the output differs by "
                f"{change:.3g}, without an error: ~mask of 1 is -2, and mask + scores adds 1.",
                change,
            )
    return 0.0


@check(
    "attention",
    "robust",
    mirrors=(TORCH + "issues/64706", "https://github.com/pbloem/former/issues/10"),
)
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
        "an error. Refuse masks of another rank than yours.",
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
