"""What must hold of an attention function for its ordinary users.

Masks here leave every query a key to see unless a check says otherwise, and results are compared
only at queries that see one. Sizes are pairwise different and lengths unsorted, so that no axis
can be taken for another and no mask is its own transpose.
"""

from collections.abc import Iterator
from dataclasses import replace
from functools import partial

import torch

from minitransformer.checks.attention.cases import (
    BATCH,
    HF,
    KEYS,
    TOLERANCE,
    TORCH,
    Case,
    cases,
    gradients_of,
    key_masks,
    keys_allowed,
    make_inputs,
    masks,
    real_keys,
    with_gradient,
)
from minitransformer.checks.attention.subject import (
    AttentionSubject,
    backward_weights_of,
    per_query_head,
)
from minitransformer.checks.engine.check import Failed, at_most, check, expect, max_abs, needs
from minitransformer.masks import causal_mask

core = partial(check, "attention", "core")


# ---- core: the weights ---------------------------------------------------------------------------


@core(
    measures="largest weight on a forbidden key",
    mirrors="https://github.com/keras-team/keras/pull/15390",
)
def forbidden_keys_get_exactly_zero(subject: AttentionSubject) -> Iterator[float]:
    """A key that the mask forbids gets a weight of exactly 0."""
    for case in cases(subject):
        yield at_most(
            0.0,
            case.leak,
            f"With {case}, a masked key gets a weight of {{measured}} instead of 0: its value is "
            "mixed into the output.",
            **case.shown(case.leak, weights_found=case.weights),
        )


@core(
    measures="keys wrongly hidden", mirrors="https://github.com/harvard-edge/cs249r_book/pull/1785"
)
def allowed_keys_get_weight(subject: AttentionSubject) -> Iterator[float]:
    """A key that the mask allows gets a weight above 0: nothing is hidden that may be seen."""
    for case in cases(subject):
        allowed = subject.expected_weights(*case.inputs[:2], case.mask) > 0.0
        hidden = allowed & ~(case.weights > 0.0)
        yield at_most(
            0.0,
            hidden.sum(),
            f"With {case}, {{measured}} of {int(allowed.sum())} allowed weights are 0 (or NaN): "
            "queries cannot see keys that the mask shows them.",
            **case.shown(hidden, weights_found=case.weights),
        )


@core(measures="largest distance of a row's sum from 1")
def weights_sum_to_one(subject: AttentionSubject) -> Iterator[float]:
    """The weights of a query over the keys that it may see sum to 1.

    Or to what its reference's sum to; or to 1 at most, where that is all that it promises.
    """
    promised = "1 at most" if subject.up_to_a_factor else "1"
    promised = promised if subject.reference is None else "what the reference's sum to"
    for case in cases(subject):
        query, key, _ = case.inputs
        expected = subject.expected_weights(query, key, case.mask).sum(dim=-1, keepdim=True)
        found = case.weights.double().sum(dim=-1, keepdim=True)
        error = case.live(found - expected)
        error = error.clamp(min=0.0) if subject.up_to_a_factor else error
        worst = found.flatten()[error.abs().nan_to_num(nan=float("inf")).argmax()]
        yield at_most(
            10 * TOLERANCE[subject.dtype],
            error,
            f"With {case}, the weights of a query sum to {worst:.3g}, not {promised}. Does the "
            "softmax run over the keys, and is its denominator a sum over the allowed keys alone? "
            "Or may they sum to less by design (sums_to_one=False)?",
            **case.shown(error, weights_found=case.weights),
        )


def _off_the_formula(case: Case, question: str) -> float:
    """The output against the formula, at queries that see a key."""
    error = case.live(case.output - case.wanted)
    output, wanted = case.output[..., :3], case.wanted[..., :3]
    return at_most(
        TOLERANCE[case.subject.dtype],
        error,
        f"With {case}, the output differs from {case.subject.formula} by {{measured}}. {question}",
        **case.shown(error, output_wanted=wanted, output_found=output),
    )


@core(measures="largest difference from the formula")
def without_padding_it_is_the_formula(subject: AttentionSubject) -> Iterator[float]:
    """Where every key may be seen, the output is softmax(QKᵀ/√d) V."""
    query, key, value = make_inputs(subject)
    every = torch.ones(BATCH, 1, query.shape[2], KEYS, dtype=torch.bool, device=subject.device)
    case = Case(subject, "nothing masked", every, (query, key, value))
    question = (
        "Are the scale 1/√d, the softmax's axis and both products right? Another formula, such as "
        "a soft cap, can be declared: softcap, sums_to_one, reference."
    )
    yield _off_the_formula(case, question)


@core(measures="largest difference from the formula")
def with_a_mask_it_is_the_formula(subject: AttentionSubject) -> Iterator[float]:
    """With any mask the output is softmax(QKᵀ/√d) V over the allowed keys."""
    question = "Is each query given its own row of the mask, and each sequence its own mask?"
    for case in cases(subject):
        yield _off_the_formula(case, question)
    for case in cases(subject, queries=KEYS):
        yield _off_the_formula(replace(case, name=f"{case}, as many queries as keys"), question)


@core(measures="largest difference from the formula")
def each_head_has_its_own_mask(subject: AttentionSubject) -> Iterator[float]:
    """Where the mask has a head axis, each head obeys its own."""
    needs("h" in subject.mask_layout, "its mask is one for all heads")
    needs(subject.full_masks, "its mask is one for all queries")
    kinds = [masks(subject)[name] for name in ("causal", "padding on the right")]
    mask = torch.cat([kinds[head % 2] for head in range(subject.heads[0])], dim=1)
    case = Case(subject, "a causal and a padded head", mask, make_inputs(subject))
    yield _off_the_formula(case, "Does it use the first head's?")


@core(measures="largest weight on a forbidden key among 300")
def long_sequences_are_masked_too(subject: AttentionSubject) -> Iterator[float]:
    """The mask holds at 300 keys as it does at 7: over the edges of any block of a kernel."""
    keys, seen = 300, torch.arange(300, device=subject.device)
    query, key, value = make_inputs(subject, keys=keys, queries=3, batch=2)
    mask = keys_allowed(torch.stack([seen < 131, seen >= 70]), query.shape[2])
    case = Case(subject, "300 keys", mask, (query, key, value))
    number = int(case.leak.abs().amax((0, 1, 2)).argmax())
    yield at_most(
        0.0,
        case.leak,
        f"Among 300 keys number {number}, a masked one, gets a weight of {{measured}}, though "
        "short sequences may be right.",
    )
    at_most(
        TOLERANCE[subject.dtype],
        case.weights.double() - case.expected_weights,
        "Among 300 keys the weights differ from the formula by {measured}.",
    )


# ---- core: padding and neighbours ----------------------------------------------------------------


@core(measures="largest change of an output")
def what_padding_holds_is_irrelevant(subject: AttentionSubject) -> Iterator[float]:
    """Other keys and values at forbidden positions change no bit of the output."""
    for case in cases(subject, key_masks):
        query, key, value = case.inputs
        other = (
            query,
            key.where(~case.padding, 3.0 * key.flip(0)),
            value.where(~case.padding, 50.0 - value),
        )
        yield at_most(
            0.0,
            case.output.double() - subject(*other, case.mask).double(),
            f"With {case}, other content of the padding moves the output by {{measured}}: the "
            "padded keys or values take part in the result.",
            mask_wanted=case.mask[0, 0],
        )


@core(measures="largest change of an output")
def how_much_padding_is_irrelevant(subject: AttentionSubject) -> Iterator[float]:
    """1, 3, 9 or 60 more padded keys, on either side, change no output."""
    needs(not subject.same_length, "it needs as many queries as keys")
    query, key, value = make_inputs(subject)
    alone = torch.ones(BATCH, 1, query.shape[2], KEYS, dtype=torch.bool, device=subject.device)
    before = subject(query, key, value, alone)
    for amount in (1, 3, 9, 60):
        noise = key.repeat(1, 1, 9, 1)[:, :, :amount]
        hidden = torch.zeros_like(alone[..., :1]).expand(-1, -1, -1, amount)
        for side, order in {"right": slice(None), "left": slice(None, None, -1)}.items():
            longer = [torch.cat([x, noise][order], dim=2) for x in (key, value)]
            mask = torch.cat([alone, hidden][order], dim=-1)
            case = Case(subject, "more padding", mask, (query, *longer))
            wanted = before if subject.reference is None else case.wanted
            yield at_most(
                TOLERANCE[subject.dtype],
                case.output.double() - wanted.double(),
                f"{amount} padded {'key' if amount == 1 else 'keys'} more on the {side}, and the "
                "output moves by {measured}: the same sentence must mean the same in a longer "
                "batch.",
            )


@core(
    measures="largest change of an output",
    mirrors=(
        HF + "issues/26869",
        HF + "pull/46773",
        "https://github.com/lucidrains/vit-pytorch/issues/71",
    ),
)
def a_row_alone_equals_it_in_the_batch(subject: AttentionSubject) -> Iterator[float]:
    """Each sequence of a batch gives what it gives alone.

    In a batch of as many sequences as heads, too: there the one axis is easily taken for the other.
    """
    heads = subject.heads[0]
    for batch in (BATCH, heads) if "h" in subject.layout else (BATCH,):
        size = f"{batch}, as many as heads" if batch == heads else f"{batch}"
        for case in cases(subject, batch=batch):
            for row in range(batch):
                only = slice(row, row + 1)
                together = case.output[only]
                alone = subject(*(x[only] for x in case.inputs), case.mask[only])
                dead = ~case.alive[only]
                off = [
                    max_abs((x - case.wanted[only]).masked_fill(dead, 0.0))
                    for x in (alone, together)
                ]
                yield at_most(
                    TOLERANCE[subject.dtype],
                    (alone - together).double().masked_fill(dead, 0.0),
                    f"With {case}, sequence {row} alone and in a batch of {size} differ by "
                    f"{{measured}}: alone it is off {subject.formula} by {off[0]:.3g}, in the "
                    f"batch by {off[1]:.3g}. Does it know of the others, or of their number?",
                )


@core(measures="largest change of an output")
def the_order_of_keys_is_irrelevant(subject: AttentionSubject) -> Iterator[float]:
    """Keys and values shuffled together with their mask give the same output."""
    order = torch.tensor([3, 6, 0, 5, 1, 4, 2], device=subject.device)
    for case in cases(subject):
        query, key, value = case.inputs
        inputs = query, key[:, :, order], value[:, :, order]
        shuffled = Case(subject, case.name, case.mask[..., order], inputs)
        wanted = case.output if subject.reference is None else shuffled.wanted
        yield at_most(
            TOLERANCE[subject.dtype],
            case.live(shuffled.output - wanted),
            f"With {case}, the same keys in another order give an output that differs by "
            "{measured}: some other rule than the mask decides what is seen.",
        )


@core(measures="largest change of an output in the past")
def the_future_is_invisible(subject: AttentionSubject) -> Iterator[float]:
    """Under a causal mask, another future changes no bit of the past's outputs."""
    needs(subject.full_masks, "its mask is one for all queries")
    query, key, value = make_inputs(subject)
    mask = masks(subject)["causal"]
    before = subject(query, key, value, mask)
    for first in range(KEYS - query.shape[2] + 1, KEYS):  # the first key that is changed
        future = torch.arange(KEYS, device=key.device).view(-1, 1) >= first
        after = subject(query, key.where(~future, -key), value.where(~future, 9.0), mask)
        past = first - (KEYS - query.shape[2])  # queries before it
        yield at_most(
            0.0,
            (after - before)[:, :, :past],
            f"Other keys from number {first} on move the outputs of earlier queries by "
            "{measured}: the past sees the future.",
            mask_wanted=mask[0, 0],
        )


@core(measures="largest difference from the whole call")
def the_last_queries_alone_give_the_same(subject: AttentionSubject) -> Iterator[float]:
    """The last two queries, asked alone with their rows of the mask, give what they gave among all.

    So decodes a model with a cache: few queries against all keys.
    """
    needs(subject.full_masks, "its mask is one for all queries")
    needs(not subject.same_length, "it needs as many queries as keys")
    last = (slice(None), slice(None), slice(-2, None))
    for case in cases(subject):
        query, key, value = case.inputs
        whole = case.output[last]
        yield at_most(
            TOLERANCE[subject.dtype],
            (whole - subject(query[last], key, value, case.mask[last]))
            .double()
            .masked_fill(~case.alive[last], 0.0),
            f"With {case}, the last two queries differ by {{measured}} when they are asked alone.",
        )


# ---- core: the backward pass ---------------------------------------------------------------------


@core(measures="largest weight on a forbidden key in the backward pass")
def the_backward_pass_uses_the_same_weights(subject: AttentionSubject) -> Iterator[float]:
    """The weights by which gradients flow to values are those of the output, zeros included."""
    needs(subject.differentiable, "it does not promise gradients")
    for case in cases(subject):
        # the NaN of fully masked queries would be in all values
        case = replace(case, mask=case.mask | ~case.alive)
        forward = case.weights.double()
        backward = with_gradient(lambda c=case: backward_weights_of(subject, *c.inputs, c.mask))
        leak = backward.masked_fill(case.mask, 0.0)
        yield at_most(
            0.0,
            leak,
            f"With {case}, gradients reach the value of a masked key with weight {{measured}} "
            "instead of 0: padding is trained on.",
            **case.shown(leak, weights_found=backward),
        )
        at_most(
            TOLERANCE[subject.dtype],
            backward - forward,
            f"With {case}, the weights of the backward pass differ from those of the forward pass "
            "by {measured}: what is trained is not what is computed.",
        )


@core(measures="largest gradient at a forbidden key or value")
def no_gradient_reaches_padding(subject: AttentionSubject) -> Iterator[float]:
    """The gradients of forbidden keys and values are exactly 0."""
    needs(subject.differentiable, "it does not promise gradients")
    for case in cases(subject, key_masks):
        _, key, value = gradients_of(subject, case.inputs, case.mask)
        yield at_most(
            0.0,
            torch.stack([key * case.padding, value * case.padding]),
            f"With {case}, padded keys or values get a gradient of {{measured}} instead of 0: "
            "the model is trained on its padding.",
        )


@core(measures="largest difference from the true gradient")
def gradients_are_right(subject: AttentionSubject) -> Iterator[float]:
    """The gradients of query, key and value are those of the formula."""
    needs(subject.differentiable, "it does not promise gradients")
    needs(not subject.up_to_a_factor, "no reference says what its weights sum to")
    for case in cases(subject):
        if not case.alive.all():
            continue
        found = gradients_of(subject, case.inputs, case.mask)
        exact = query, key, value = [x.detach().double().requires_grad_() for x in case.inputs]
        weights = subject.expected_weights(query, key, case.mask)
        needs(weights.requires_grad, "no gradient flows through its reference")
        output = weights @ per_query_head(value, query)
        generator = torch.Generator().manual_seed(2)
        direction = torch.randn(output.shape, generator=generator).to(output.device)
        wanted = torch.autograd.grad((output * direction.to(subject.dtype)).sum(), exact)
        for which, a, b in zip(("query", "key", "value"), found, wanted, strict=True):
            yield at_most(
                10 * TOLERANCE[subject.dtype],
                a.double() - b,
                f"With {case}, the gradient of the {which} is off by {{measured}}, at a largest "
                f"true gradient of {max_abs(b):.3g}.",
            )


# ---- core: manners -------------------------------------------------------------------------------


@core(mirrors="https://github.com/hyunwoongko/transformer/issues/11")
def the_output_has_the_shape_dtype_and_device_of_its_inputs(subject: AttentionSubject) -> None:
    """The output is (batch, heads, queries, width of value), of the dtype and device given."""
    query, key, value = make_inputs(subject)
    mask = next(iter(key_masks(subject).values()))
    (call, *_) = subject.calls(query, key, value, mask)
    output, _ = subject.answer(subject.call(*call))
    expect(
        output.dtype == value.dtype,
        f"It returned {output.dtype} for inputs of {value.dtype}. Is a dtype cast on the way, or a "
        "tensor made inside without dtype=query.dtype?",
    )
    expect(
        output.device == value.device,
        f"It returned a tensor on {output.device} for inputs on {value.device}. Is a tensor made "
        "inside without device=query.device?",
    )
    storage = output.untyped_storage().data_ptr()
    for name, tensor in zip(subject.arguments, call, strict=True):
        expect(
            tensor.untyped_storage().data_ptr() != storage or output.numel() == 0,
            f"It returned its {name}, or a view of it: whoever changes the one changes the other.",
        )


@core(measures="largest change of an argument", mirrors=())
def the_arguments_are_left_alone(subject: AttentionSubject) -> Iterator[float]:
    """Query, key, value and mask are the same after the call as before."""
    for mask in key_masks(subject).values():
        for call in subject.calls(*make_inputs(subject), mask):
            before = [x.clone() for x in call]
            subject.call(*call)
            for name, a, b in zip(subject.arguments, before, call, strict=True):
                yield at_most(
                    0.0,
                    0.0 if torch.equal(a, b) else a.double() - b.double(),  # -inf - -inf is NaN
                    f"It changes its {name} in place, by {{measured}}: the caller's tensor is "
                    "another one after the call. Is there a method that ends in _, or a += ?",
                )


@core(measures="largest difference between two calls")
def the_same_call_gives_the_same_result(subject: AttentionSubject) -> Iterator[float]:
    """Called again with the same arguments it returns the same bits; nothing random, no memory."""
    for case in cases(subject):
        yield at_most(
            0.0,
            case.live(case.output - subject(*case.inputs, case.mask)),
            f"With {case}, two equal calls differ by {{measured}}: is dropout on, or does it "
            "remember the last call?",
        )


@core(measures="largest difference", mirrors=TORCH + "issues/97111")
def the_result_is_the_same_without_gradients(subject: AttentionSubject) -> Iterator[float]:
    """Under no_grad, and for inputs that need no gradient, the result is that of training."""
    for case in cases(subject):
        training = subject(*(x.clone().requires_grad_() for x in case.inputs), case.mask)
        with torch.no_grad():
            inference = case.output
        yield at_most(
            TOLERANCE[subject.dtype],
            case.live(training - inference),
            f"With {case}, the result without gradients differs by {{measured}}: does a faster "
            "path for inference treat the mask in another way?",
        )


@core(measures="largest difference", mirrors="https://github.com/keras-team/keras/issues/23038")
def returned_weights_are_those_used(subject: AttentionSubject) -> Iterator[float]:
    """Where it returns weights too, they are the ones that make the output."""
    for case in cases(subject):
        _, returned = subject.run(*case.inputs, case.mask)
        needs(returned is not None, "it returns no weights")
        error = case.live(returned.double() - case.weights.double())
        yield at_most(
            TOLERANCE[subject.dtype],
            error,
            f"With {case}, the weights returned differ from those used by {{measured}}: a picture "
            "of them would show something else than what happens.",
            **case.shown(error, weights_found=returned, weights_used=case.weights),
        )


# ---- core: flags ---------------------------------------------------------------------------------


@core(
    measures="largest difference",
    mirrors=(TORCH + "issues/99282", "https://github.com/keras-team/keras/issues/23038"),
)
def mask_and_causal_flag_are_combined(subject: AttentionSubject) -> Iterator[float]:
    """A mask together with the causal flag hides what either hides, or is refused."""
    needs(subject.causal_flag, "it declares no causal_flag")
    inputs = make_inputs(subject, queries=KEYS)
    # the future of real queries holds padding on the right anyway
    mask = keys_allowed(real_keys("left", subject.device), KEYS)
    try:
        output = subject(*inputs, mask, **{subject.causal_flag: True})
    except Failed:
        raise
    except Exception:  # refused, in whatever words
        return
    both = Case(subject, "both", mask & causal_mask(KEYS, device=subject.device), inputs)
    yield at_most(
        TOLERANCE[subject.dtype],
        both.live(output - both.wanted),
        f"With a mask and {subject.causal_flag}=True the output is off by {{measured}}: is one of "
        "the two ignored?",
        mask_wanted=both.mask[0, 0],
    )


@core(measures="largest weight on a forbidden key", mirrors=TORCH + "issues/124464")
def dropout_leaves_forbidden_keys_at_zero(subject: AttentionSubject) -> Iterator[float]:
    """With dropout, forbidden keys still get exactly 0, and a kept weight is scaled by 1/(1-p)."""
    needs(subject.dropout_flag, "it declares no dropout_flag")
    for case in cases(subject):
        plain = case.weights
        query, key, value = case.inputs
        identity = torch.eye(*value.shape[2:]).to(value).expand_as(value)
        flags = {subject.dropout_flag: 0.5}
        dropped = case.live(subject(query, key, identity, case.mask, **flags)[..., :KEYS])
        yield at_most(
            0.0,
            dropped.masked_fill(case.mask, 0.0),
            f"With {case} and dropout, a masked key gets a weight of {{measured}} instead of 0.",
        )
        at_most(
            10 * TOLERANCE[subject.dtype],
            (dropped - 2.0 * plain).masked_fill(dropped == 0.0, 0.0),
            f"With {case} and dropout of 0.5, a weight that is kept is off twice its size by "
            "{measured}: its expectation is not that of the weight.",
        )
