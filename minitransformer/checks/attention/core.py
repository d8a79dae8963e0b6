"""What must hold of an attention function for its ordinary users.

Masks here leave every query a key to see unless a check says otherwise, and results are compared
only at queries that see one. Sizes are pairwise different and lengths unsorted, so that no axis
can be taken for another and no mask is its own transpose.
"""

import torch
from torch import Tensor

from minitransformer.checks.attention.cases import (
    BATCH,
    HF,
    KEYS,
    QUERIES,
    TOLERANCE,
    TORCH,
    WIDTH,
    _with_gradient,
    gradients_of,
    key_masks,
    keys_allowed,
    make_inputs,
    masks,
    real_keys,
    worst,
)
from minitransformer.checks.attention.subject import (
    AttentionSubject,
    attention_weights_of,
    backward_weights_of,
    expected_weights,
)
from minitransformer.checks.engine.check import Failed, check, exceeds, expect, max_abs, needs
from minitransformer.masks import causal_mask

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
        largest = max(largest, max_abs(leak))
        expect(
            not exceeds(max_abs(leak)),
            f"With {name}, a forbidden key gets a weight of {max_abs(leak):.3g} instead of 0: "
            "its value is mixed into the output. Give forbidden scores -inf before the softmax.",
            max_abs(leak),
            mask_wanted=mask[b, 0],
            weights_found=weights[b, h],
        )
    return largest


@check(
    "attention",
    "core",
    measures="keys wrongly hidden",
    mirrors="https://github.com/harvard-edge/cs249r_book/pull/1785",
)
def allowed_keys_get_weight(subject: AttentionSubject) -> float:
    """A key that the mask allows gets a weight above 0: nothing is hidden that may be seen."""
    for name, mask in masks(subject).items():
        weights = attention_weights_of(subject, *make_inputs(subject), mask)
        hidden = mask & ~(weights > 0.0)
        b, h = worst(hidden.double())
        expect(
            not hidden.any(),
            f"With {name}, {int(hidden.sum())} of {int(mask.expand_as(weights).sum())} allowed "
            "weights are 0 (or NaN): queries cannot see keys that the mask shows them.",
            float(hidden.sum()),
            mask_wanted=mask[b, 0],
            weights_found=weights[b, h],
        )
    return 0.0


@check("attention", "core", measures="largest distance of a row's sum from 1")
def weights_sum_to_one(subject: AttentionSubject) -> float:
    """The weights of a query over the keys that it may see sum to 1."""
    largest = 0.0
    for name, mask in masks(subject).items():
        weights = attention_weights_of(subject, *make_inputs(subject), mask)
        error = (weights.sum(dim=-1, keepdim=True) - 1.0).masked_fill(~mask.any(-1, True), 0.0)
        b, h = worst(error)
        largest = max(largest, max_abs(error))
        row = int(error[b, h].abs().nan_to_num(nan=9e9).argmax())
        expect(
            not exceeds(max_abs(error), 10 * TOLERANCE[subject.dtype]),
            f"With {name}, the weights of a query sum to {weights[b, h, row].sum():.3g}, not 1. "
            "Forbidden keys must leave the softmax's denominator too: mask the scores before it, "
            "not the weights after it.",
            max_abs(error),
            mask_wanted=mask[b, 0],
            weights_found=weights[b, h],
        )
    return largest


def _compare(subject: AttentionSubject, mask: Tensor, name: str, why: str, **flags) -> float:
    """The output against the formula, at queries that see a key."""
    inputs = make_inputs(subject)
    output = subject(*inputs, mask, **flags)
    wanted = expected_weights(*inputs[:2], mask) @ inputs[2].double()
    error = (output.double() - wanted).masked_fill(~mask.any(-1, True), 0.0)
    b, h = worst(error)
    expect(
        not exceeds(max_abs(error), TOLERANCE[subject.dtype]),
        f"With {name}, the output differs from softmax(QKᵀ/√d) V by {max_abs(error):.3g}. {why}",
        max_abs(error),
        mask_wanted=mask[b, 0],
        output_wanted=wanted[b, h, :, :3],
        output_found=output[b, h, :, :3],
    )
    return max_abs(error)


@check("attention", "core", measures="largest difference from the formula")
def without_padding_it_is_the_formula(subject: AttentionSubject) -> float:
    """Where every key may be seen, the output is softmax(QKᵀ/√d) V."""
    query = make_inputs(subject)[0]
    mask = torch.ones(BATCH, 1, query.shape[2], KEYS, dtype=torch.bool, device=subject.device)
    why = "No mask is involved: look at the scale 1/√d, the softmax's axis and the products."
    return _compare(subject, mask, "nothing masked", why)


@check("attention", "core", measures="largest difference from the formula")
def with_a_mask_it_is_the_formula(subject: AttentionSubject) -> float:
    """With any mask the output is softmax(QKᵀ/√d) V over the allowed keys."""
    why = "Is each query given its own row of the mask, and each sequence its own mask?"
    return max(_compare(subject, mask, name, why) for name, mask in masks(subject).items())


@check("attention", "core", measures="largest difference from the formula")
def each_head_has_its_own_mask(subject: AttentionSubject) -> float:
    """Where the mask has a head axis, each head obeys its own."""
    needs("h" in subject.mask_layout, "its mask is one for all heads")
    needs(subject.full_masks, "its mask is one for all queries")
    known = masks(subject)
    mask = torch.cat([known["causal"], known["padding on the right"]], dim=1)
    return _compare(subject, mask, "a causal and a padded head", "Does it use the first head's?")


@check("attention", "core", measures="largest weight on a forbidden key among 300")
def long_sequences_are_masked_too(subject: AttentionSubject) -> float:
    """The mask holds at 300 keys as it does at 7: over the edges of any block of a kernel."""
    keys, seen = 300, torch.arange(300, device=subject.device)
    query, key, value = make_inputs(subject, keys=keys, queries=3, batch=2)
    real = torch.stack([seen < 131, seen >= 70])
    mask = keys_allowed(real, query.shape[2])
    weights = attention_weights_of(subject, query, key, value, mask)
    forbidden = weights.masked_fill(mask, 0.0)
    leak, number = max_abs(forbidden), int(forbidden.abs().amax((0, 1, 2)).argmax())
    expect(
        not exceeds(leak),
        f"Among 300 keys number {number}, a forbidden one, gets a weight of {leak:.3g}, though "
        "short sequences may be right.",
        leak,
    )
    error = max_abs(weights.double() - expected_weights(query, key, mask))
    expect(
        not exceeds(error, TOLERANCE[subject.dtype]),
        f"Among 300 keys the weights differ from the formula by {error:.3g}.",
        error,
    )
    return leak


# ---- core: padding and neighbours ----------------------------------------------------------------


@check("attention", "core", measures="largest change of an output")
def what_padding_holds_is_irrelevant(subject: AttentionSubject) -> float:
    """Other keys and values at forbidden positions change no bit of the output."""
    query, key, value = make_inputs(subject)
    for name, mask in key_masks(subject).items():
        padding = ~mask[:, :, :1].mT
        before = subject(query, key, value, mask)
        after = subject(
            query,
            key.where(~padding, 3.0 * key.flip(0)),
            value.where(~padding, 50.0 - value),
            mask,
        )
        change = max_abs(after.double() - before.double())
        expect(
            torch.equal(before, after),
            f"With {name}, other content of the padding moves the output by {change:.3g}: "
            "the padded keys or values take part in the result.",
            change,
            mask_wanted=mask[0, 0],
        )
    return 0.0


@check("attention", "core", measures="largest change of an output")
def how_much_padding_is_irrelevant(subject: AttentionSubject) -> float:
    """1, 3, 9 or 60 more padded keys, on either side, change no output."""
    needs(not subject.same_length, "it needs as many queries as keys")
    query, key, value = make_inputs(subject)
    alone = torch.ones(BATCH, 1, query.shape[2], KEYS, dtype=torch.bool, device=subject.device)
    before = subject(query, key, value, alone)
    largest = 0.0
    for amount in (1, 3, 9, 60):
        noise = key.repeat(1, 1, 9, 1)[:, :, :amount]
        for side in ("right", "left"):
            order = slice(None) if side == "right" else slice(None, None, -1)
            longer = [torch.cat([x, noise][order], dim=2) for x in (key, value)]
            mask = torch.cat(
                [alone, torch.zeros_like(alone[..., :1]).expand(-1, -1, -1, amount)][order], -1
            )
            change = max_abs(subject(query, *longer, mask).double() - before.double())
            largest = max(largest, change)
            expect(
                not exceeds(change, TOLERANCE[subject.dtype]),
                f"{amount} padded {'key' if amount == 1 else 'keys'} more on the {side}, and the "
                f"output moves by {change:.3g}: "
                "the same sentence must mean the same in a longer batch.",
                change,
            )
    return largest


@check("attention", "core", measures="largest change of an output", mirrors=HF + "issues/26869")
def a_row_alone_equals_it_in_the_batch(subject: AttentionSubject) -> float:
    """Each sequence of a batch gives what it gives alone."""
    inputs, largest = make_inputs(subject), 0.0
    for name, mask in masks(subject).items():
        together = subject(*inputs, mask)
        for row in range(BATCH):
            alone = subject(*(x[row : row + 1] for x in inputs), mask[row : row + 1])
            alive = mask[row].any(-1, True)
            change = max_abs((alone[0] - together[row]).double().masked_fill(~alive, 0.0))
            largest = max(largest, change)
            expect(
                not exceeds(change, TOLERANCE[subject.dtype]),
                f"With {name}, sequence {row} alone and in the batch differ by {change:.3g}: "
                "sequences of a batch must not know of each other.",
                change,
            )
    return largest


@check("attention", "core", measures="largest change of an output")
def the_order_of_keys_is_irrelevant(subject: AttentionSubject) -> float:
    """Keys and values shuffled together with their mask give the same output."""
    query, key, value = make_inputs(subject)
    order, largest = torch.tensor([3, 6, 0, 5, 1, 4, 2], device=subject.device), 0.0
    for name, mask in masks(subject).items():
        before = subject(query, key, value, mask)
        after = subject(query, key[:, :, order], value[:, :, order], mask[..., order])
        change = max_abs((after - before).double().masked_fill(~mask.any(-1, True), 0.0))
        largest = max(largest, change)
        expect(
            not exceeds(change, TOLERANCE[subject.dtype]),
            f"With {name}, the same keys in another order give an output that differs by "
            f"{change:.3g}: some other rule than the mask decides what is seen.",
            change,
        )
    return largest


@check("attention", "core", measures="largest change of an output in the past")
def the_future_is_invisible(subject: AttentionSubject) -> float:
    """Under a causal mask, another future changes no bit of the past's outputs."""
    needs(subject.full_masks, "its mask is one for all queries")
    query, key, value = make_inputs(subject)
    mask = masks(subject)["causal"]
    before = subject(query, key, value, mask)
    for first in range(KEYS - query.shape[2] + 1, KEYS):  # the first key that is changed
        future = torch.arange(KEYS, device=key.device).view(-1, 1) >= first
        after = subject(query, key.where(~future, -key), value.where(~future, 9.0), mask)
        past = first - (KEYS - query.shape[2])  # queries before it
        change = max_abs((after - before)[:, :, :past].double())
        expect(
            torch.equal(before[:, :, :past], after[:, :, :past]),
            f"Other keys from number {first} on move the outputs of earlier queries by "
            f"{change:.3g}: the past sees the future.",
            change,
            mask_wanted=mask[0, 0],
        )
    return 0.0


@check("attention", "core", measures="largest difference from the whole call")
def the_last_queries_alone_give_the_same(subject: AttentionSubject) -> float:
    """The last two queries, asked alone with their rows of the mask, give what they gave among all.

    So decodes a model with a cache: few queries against all keys.
    """
    needs(subject.full_masks, "its mask is one for all queries")
    needs(not subject.same_length, "it needs as many queries as keys")
    query, key, value = make_inputs(subject)
    largest = 0.0
    for name, mask in masks(subject).items():
        whole = subject(query, key, value, mask)[:, :, -2:]
        last = subject(query[:, :, -2:], key, value, mask[:, :, -2:])
        alive = mask[:, :, -2:].any(-1, True)
        change = max_abs((whole - last).double().masked_fill(~alive, 0.0))
        largest = max(largest, change)
        expect(
            not exceeds(change, TOLERANCE[subject.dtype]),
            f"With {name}, the last two queries differ by {change:.3g} when they are asked alone.",
            change,
        )
    return largest


# ---- core: the backward pass ---------------------------------------------------------------------


@check("attention", "core", measures="largest weight on a forbidden key in the backward pass")
def the_backward_pass_uses_the_same_weights(subject: AttentionSubject) -> float:
    """The weights by which gradients flow to values are those of the output, zeros included."""
    needs(subject.differentiable, "it does not promise gradients")
    query, key, value = make_inputs(subject)
    largest = 0.0
    for name, mask in masks(subject).items():
        mask = mask | ~mask.any(
            -1, True
        )  # a NaN of queries that see nothing would be in all values
        forward = attention_weights_of(subject, query, key, value, mask).double()
        backward = _with_gradient(lambda m=mask: backward_weights_of(subject, query, key, value, m))
        leak = backward.masked_fill(mask, 0.0)
        b, h = worst(leak)
        largest = max(largest, max_abs(leak))
        expect(
            not exceeds(max_abs(leak)),
            f"With {name}, gradients reach the value of a forbidden key with weight "
            f"{max_abs(leak):.3g} instead of 0: padding is trained on.",
            max_abs(leak),
            mask_wanted=mask[b, 0],
            weights_found=backward[b, h],
        )
        error = max_abs(backward - forward)
        expect(
            not exceeds(error, TOLERANCE[subject.dtype]),
            f"With {name}, the weights of the backward pass differ from those of the forward pass "
            f"by {error:.3g}: what is trained is not what is computed.",
            error,
        )
    return largest


@check("attention", "core", measures="largest gradient at a forbidden key or value")
def no_gradient_reaches_padding(subject: AttentionSubject) -> float:
    """The gradients of forbidden keys and values are exactly 0."""
    needs(subject.differentiable, "it does not promise gradients")
    inputs = make_inputs(subject)
    for name, mask in key_masks(subject).items():
        _, key, value = gradients_of(subject, inputs, mask)
        padding = ~mask[:, :, :1].mT
        leak = max(max_abs(key * padding), max_abs(value * padding))
        expect(
            not exceeds(leak),
            f"With {name}, padded keys or values get a gradient of {leak:.3g} instead of 0: "
            "the model is trained on its padding.",
            leak,
        )
    return 0.0


@check("attention", "core", measures="largest difference from the true gradient")
def gradients_are_right(subject: AttentionSubject) -> float:
    """The gradients of query, key and value are those of the formula."""
    needs(subject.differentiable, "it does not promise gradients")
    inputs, largest = make_inputs(subject), 0.0
    for name, mask in masks(subject).items():
        if not mask.any(-1).all():
            continue
        found = gradients_of(subject, inputs, mask)
        exact = tuple(x.detach().double().requires_grad_() for x in inputs)
        scores = exact[0] @ exact[1].mT / WIDTH**0.5
        output = scores.masked_fill(~mask, float("-inf")).softmax(-1) @ exact[2]
        generator = torch.Generator().manual_seed(2)
        direction = torch.randn(output.shape, generator=generator).to(output.device)
        wanted = torch.autograd.grad((output * direction.to(subject.dtype)).sum(), exact)
        for which, a, b in zip(("query", "key", "value"), found, wanted, strict=True):
            error = max_abs(a.double() - b)
            largest = max(largest, error)
            expect(
                not exceeds(error, 10 * TOLERANCE[subject.dtype]),
                f"With {name}, the gradient of the {which} is off by {error:.3g}, at a largest "
                f"true gradient of {max_abs(b):.3g}.",
                error,
            )
    return largest


# ---- core: manners -------------------------------------------------------------------------------


@check("attention", "core", mirrors="https://github.com/hyunwoongko/transformer/issues/11")
def the_output_has_the_shape_dtype_and_device_of_its_inputs(subject: AttentionSubject) -> None:
    """The output is (batch, heads, queries, width of value), of the dtype and device given."""
    query, key, value = make_inputs(subject)
    mask = next(iter(key_masks(subject).values()))
    (call, *_) = subject.calls(query, key, value, mask)
    output, _ = subject.answer(subject.call(*call))
    expect(
        output.dtype == value.dtype,
        f"It returned {output.dtype} for inputs of {value.dtype}: a dtype is cast on the way, or "
        "a tensor inside is made without dtype=query.dtype.",
    )
    expect(
        output.device == value.device,
        f"It returned a tensor on {output.device} for inputs on {value.device}: a tensor inside "
        "is made without device=query.device.",
    )
    storage = output.untyped_storage().data_ptr()
    for name, tensor in zip(("query", "key", "value", "mask"), call, strict=True):
        expect(
            tensor.untyped_storage().data_ptr() != storage or output.numel() == 0,
            f"It returned its {name}, or a view of it: whoever changes the one changes the other.",
        )


@check("attention", "core", measures="largest change of an argument", mirrors=())
def the_arguments_are_left_alone(subject: AttentionSubject) -> float:
    """Query, key, value and mask are the same after the call as before."""
    for mask in key_masks(subject).values():
        for call in subject.calls(*make_inputs(subject), mask):
            before = [x.clone() for x in call]
            subject.call(*call)
            for name, a, b in zip(("query", "key", "value", "mask"), before, call, strict=True):
                change = max_abs(a.double() - b.double()) if not torch.equal(a, b) else 0.0
                expect(
                    torch.equal(a, b),
                    f"It changes its {name} in place: the caller's tensor is another one after "
                    "the call. Look for methods that end in _ and for += .",
                    change,
                )
    return 0.0


@check("attention", "core", measures="largest difference between two calls")
def the_same_call_gives_the_same_result(subject: AttentionSubject) -> float:
    """Called again with the same arguments it returns the same bits; nothing random, no memory."""
    inputs = make_inputs(subject)
    for name, mask in masks(subject).items():
        alive = mask.any(-1, True)
        first, second = (subject(*inputs, mask).where(alive, 0.0) for _ in range(2))
        change = max_abs((first - second).double())
        expect(
            torch.equal(first, second),
            f"With {name}, two equal calls differ by {change:.3g}: is dropout on, or does it "
            "remember the last call?",
            change,
        )
    return 0.0


@check("attention", "core", measures="largest difference", mirrors=TORCH + "issues/97111")
def the_result_is_the_same_without_gradients(subject: AttentionSubject) -> float:
    """Under no_grad, and for inputs that need no gradient, the result is that of training."""
    inputs, largest = make_inputs(subject), 0.0
    for name, mask in masks(subject).items():
        training = subject(*(x.clone().requires_grad_() for x in inputs), mask).detach()
        with torch.no_grad():
            inference = subject(*inputs, mask)
        change = max_abs((training - inference).double().masked_fill(~mask.any(-1, True), 0.0))
        largest = max(largest, change)
        expect(
            not exceeds(change, TOLERANCE[subject.dtype]),
            f"With {name}, the result without gradients differs by {change:.3g}: a faster path for "
            "inference treats the mask in another way.",
            change,
        )
    return largest


@check(
    "attention",
    "core",
    measures="largest difference",
    mirrors="https://github.com/keras-team/keras/issues/23038",
)
def returned_weights_are_those_used(subject: AttentionSubject) -> float:
    """Where it returns weights too, they are the ones that make the output."""
    inputs, largest = make_inputs(subject), 0.0
    for name, mask in masks(subject).items():
        _, returned = subject.run(*inputs, mask)
        needs(returned is not None, "it returns no weights")
        used = attention_weights_of(subject, *inputs, mask)
        error = (returned.double() - used.double()).masked_fill(~mask.any(-1, True), 0.0)
        b, h = worst(error)
        largest = max(largest, max_abs(error))
        expect(
            not exceeds(max_abs(error), TOLERANCE[subject.dtype]),
            f"With {name}, the weights returned differ from those used by {max_abs(error):.3g}: a "
            "picture of them would show something else than what happens.",
            max_abs(error),
            mask_wanted=mask[b, 0],
            weights_found=returned[b, h],
            weights_used=used[b, h],
        )
    return largest


# ---- core: flags ---------------------------------------------------------------------------------


@check(
    "attention",
    "core",
    measures="largest difference",
    mirrors=(TORCH + "issues/99282", "https://github.com/keras-team/keras/issues/23038"),
)
def mask_and_causal_flag_are_combined(subject: AttentionSubject) -> float | None:
    """A mask together with the causal flag hides what either hides, or is refused."""
    needs(subject.causal_flag, "it declares no causal_flag")
    inputs = make_inputs(subject, queries=KEYS)
    mask = keys_allowed(real_keys("right", subject.device), KEYS)
    try:
        output = subject(*inputs, mask, **{subject.causal_flag: True})
    except Failed:
        raise
    except Exception:  # refused, in whatever words
        return None
    both = mask & causal_mask(KEYS, device=subject.device)
    wanted = expected_weights(*inputs[:2], both) @ inputs[2].double()
    error = max_abs((output.double() - wanted).masked_fill(~both.any(-1, True), 0.0))
    expect(
        not exceeds(error, TOLERANCE[subject.dtype]),
        f"With a mask and {subject.causal_flag}=True the output is off by {error:.3g}: one of the "
        "two is ignored.",
        error,
        mask_wanted=both[0, 0],
    )
    return error


@check(
    "attention",
    "robust",
    measures="largest difference",
    mirrors=(TORCH + "issues/108108", "https://github.com/onnx/onnx/pull/8068"),
)
def the_causal_flag_aligns_the_last_query_with_the_last_key(subject: AttentionSubject) -> float:
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
    wanted = expected_weights(*inputs[:2], mask) @ inputs[2].double()
    error = max_abs(output.double() - wanted)
    expect(
        not exceeds(error, TOLERANCE[subject.dtype]),
        f"With 5 queries and 7 keys the output is off by {error:.3g}: the flag aligns the first "
        "query with the first key.",
        error,
        mask_wanted=mask[0, 0],
    )
    return error


@check(
    "attention",
    "core",
    measures="largest weight on a forbidden key",
    mirrors=TORCH + "issues/124464",
)
def dropout_leaves_forbidden_keys_at_zero(subject: AttentionSubject) -> float:
    """With dropout, forbidden keys still get exactly 0, and a kept weight is scaled by 1/(1-p)."""
    needs(subject.dropout_flag, "it declares no dropout_flag")
    inputs = make_inputs(subject)
    for name, mask in masks(subject).items():
        plain = attention_weights_of(subject, *inputs, mask)
        query, key, value = inputs
        value = torch.zeros_like(value)
        value[:, :, torch.arange(KEYS), torch.arange(KEYS)] = 1.0
        dropped = subject(query, key, value, mask, **{subject.dropout_flag: 0.5})[..., :KEYS]
        alive = mask.any(-1, True)
        leak = max_abs(dropped.masked_fill(mask | ~alive, 0.0))
        expect(
            not exceeds(leak),
            f"With {name} and dropout, a forbidden key gets a weight of {leak:.3g} instead of 0.",
            leak,
        )
        kept = (dropped != 0.0) & alive
        error = max_abs((dropped - 2.0 * plain).double().masked_fill(~kept, 0.0))
        expect(
            not exceeds(error, 10 * TOLERANCE[subject.dtype]),
            f"With {name} and dropout of 0.5, a weight that is kept is off twice its size by "
            f"{error:.3g}: its expectation is not that of the weight.",
            error,
        )
    return 0.0
