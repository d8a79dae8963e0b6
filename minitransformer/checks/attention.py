"""What must hold of an attention function: the checks.

Masks here leave every query a key to see unless a check says otherwise, and results are compared
only at queries that see one. Sizes are pairwise different and lengths unsorted, so that no axis
can be taken for another and no mask is its own transpose.
"""

import torch
from torch import Tensor
from torch.autograd.gradcheck import GradcheckError

from minitransformer.checks.probes import (
    AttentionSubject,
    attention_weights_of,
    backward_weights_of,
    expected_weights,
)
from minitransformer.checks.subject import differs, expect, needs, size
from minitransformer.checks.suite import Failed, check
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
            found[f"causal, padding on the {side}"] = causal & found[f"padding on the {side}"]
        numbers = torch.tensor([[1, 1, 2, 2, 2, 3, 3]] * BATCH, device=subject.device)
        found["packed documents"] = padding_mask(numbers[:, KEYS - query.shape[2] :], numbers)
    return found


def worst(error: Tensor) -> tuple[int, int]:
    """The row of the batch and the head with the largest error, NaN first."""
    flat = error.detach().abs().nan_to_num(nan=float("inf")).flatten(2).amax(dim=2)
    index = int(flat.argmax())
    return index // flat.shape[1], index % flat.shape[1]


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
        largest = max(largest, size(error))
        row = int(error[b, h].abs().nan_to_num(nan=9e9).argmax())
        expect(
            not differs(size(error), 10 * TOLERANCE[subject.dtype]),
            f"With {name}, the weights of a query sum to {weights[b, h, row].sum():.3g}, not 1. "
            "Forbidden keys must leave the softmax's denominator too: mask the scores before it, "
            "not the weights after it.",
            size(error),
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
        not differs(size(error), TOLERANCE[subject.dtype]),
        f"With {name}, the output differs from softmax(QKᵀ/√d) V by {size(error):.3g}. {why}",
        size(error),
        mask_wanted=mask[b, 0],
        output_wanted=wanted[b, h, :, :3],
        output_found=output[b, h, :, :3],
    )
    return size(error)


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
    leak, number = size(forbidden), int(forbidden.abs().amax((0, 1, 2)).argmax())
    expect(
        not differs(leak),
        f"Among 300 keys number {number}, a forbidden one, gets a weight of {leak:.3g}, though "
        "short sequences may be right.",
        leak,
    )
    error = size(weights.double() - expected_weights(query, key, mask))
    expect(
        not differs(error, TOLERANCE[subject.dtype]),
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
        change = size(after.double() - before.double())
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
            change = size(subject(query, *longer, mask).double() - before.double())
            largest = max(largest, change)
            expect(
                not differs(change, TOLERANCE[subject.dtype]),
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
            change = size((alone[0] - together[row]).double().masked_fill(~alive, 0.0))
            largest = max(largest, change)
            expect(
                not differs(change, TOLERANCE[subject.dtype]),
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
        change = size((after - before).double().masked_fill(~mask.any(-1, True), 0.0))
        largest = max(largest, change)
        expect(
            not differs(change, TOLERANCE[subject.dtype]),
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
        change = size((after - before)[:, :, :past].double())
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
        change = size((whole - last).double().masked_fill(~alive, 0.0))
        largest = max(largest, change)
        expect(
            not differs(change, TOLERANCE[subject.dtype]),
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
        largest = max(largest, size(leak))
        expect(
            not differs(size(leak)),
            f"With {name}, gradients reach the value of a forbidden key with weight "
            f"{size(leak):.3g} instead of 0: padding is trained on.",
            size(leak),
            mask_wanted=mask[b, 0],
            weights_found=backward[b, h],
        )
        error = size(backward - forward)
        expect(
            not differs(error, TOLERANCE[subject.dtype]),
            f"With {name}, the weights of the backward pass differ from those of the forward pass "
            f"by {error:.3g}: what is trained is not what is computed.",
            error,
        )
    return largest


def _with_gradient(compute):
    """What it computes; a subject through which nothing flows fails in words."""
    try:
        return compute()
    except RuntimeError as error:
        expect(
            "does not require grad" not in str(error) and "not have been used" not in str(error),
            "No gradient flows through it: the output is cut off from its inputs. Look for "
            "detach(), .data, numpy or torch.no_grad(); or declare differentiable=False.",
        )
        raise


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

    return _with_gradient(compute)


@check("attention", "core", measures="largest gradient at a forbidden key or value")
def no_gradient_reaches_padding(subject: AttentionSubject) -> float:
    """The gradients of forbidden keys and values are exactly 0."""
    needs(subject.differentiable, "it does not promise gradients")
    inputs = make_inputs(subject)
    for name, mask in key_masks(subject).items():
        _, key, value = gradients_of(subject, inputs, mask)
        padding = ~mask[:, :, :1].mT
        leak = max(size(key * padding), size(value * padding))
        expect(
            not differs(leak),
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
            error = size(a.double() - b)
            largest = max(largest, error)
            expect(
                not differs(error, 10 * TOLERANCE[subject.dtype]),
                f"With {name}, the gradient of the {which} is off by {error:.3g}, at a largest "
                f"true gradient of {size(b):.3g}.",
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
                change = size(a.double() - b.double()) if not torch.equal(a, b) else 0.0
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
        change = size((first - second).double())
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
        change = size((training - inference).double().masked_fill(~mask.any(-1, True), 0.0))
        largest = max(largest, change)
        expect(
            not differs(change, TOLERANCE[subject.dtype]),
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
        largest = max(largest, size(error))
        expect(
            not differs(size(error), TOLERANCE[subject.dtype]),
            f"With {name}, the weights returned differ from those used by {size(error):.3g}: a "
            "picture of them would show something else than what happens.",
            size(error),
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
    error = size((output.double() - wanted).masked_fill(~both.any(-1, True), 0.0))
    expect(
        not differs(error, TOLERANCE[subject.dtype]),
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
    error = size(output.double() - wanted)
    expect(
        not differs(error, TOLERANCE[subject.dtype]),
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
        leak = size(dropped.masked_fill(mask | ~alive, 0.0))
        expect(
            not differs(leak),
            f"With {name} and dropout, a forbidden key gets a weight of {leak:.3g} instead of 0.",
            leak,
        )
        kept = (dropped != 0.0) & alive
        error = size((dropped - 2.0 * plain).double().masked_fill(~kept, 0.0))
        expect(
            not differs(error, 10 * TOLERANCE[subject.dtype]),
            f"With {name} and dropout of 0.5, a weight that is kept is off twice its size by "
            f"{error:.3g}: its expectation is not that of the weight.",
            error,
        )
    return 0.0


# ---- robust: half precision and large scores -----------------------------------------------------

HALF = (torch.bfloat16, torch.float16)


def half_dtypes(subject: AttentionSubject) -> list[torch.dtype]:
    found = [dtype for dtype in HALF if dtype in subject.dtypes]
    needs(found, "it declares neither bfloat16 nor float16")
    return found


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
            leak = size(weights.masked_fill(mask | ~alive, 0.0))
            expect(
                not differs(leak),
                f"In {dtype} with {name}, a forbidden key gets a weight of {leak:.3g} instead of "
                "0: constants such as -1e4 are not far enough away, and -1e9 does not exist in "
                "float16. Use masked_fill with -inf.",
                leak,
            )
            output = subject(*inputs, mask).double()
            wanted = expected_weights(*inputs[:2], mask) @ inputs[2].double()
            error = size((output - wanted).masked_fill(~alive, 0.0))
            expect(
                not differs(error, TOLERANCE[dtype]),
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
            leak = size(weights.masked_fill(mask, 0.0))
            largest = max(largest, leak)
            expect(
                not differs(leak),
                f"With {name}, and scores of about {low * limit:.0e} at the allowed keys and "
                f"{high * limit:.0e} at the forbidden ones, a forbidden key gets a weight of "
                f"{leak:.3g}: a finite number stands where -inf should.",
                leak,
                mask_wanted=mask[0, 0],
                weights_found=weights[0, 0],
            )
            error = size((weights.double() * mask).sum(-1) - 1.0)
            expect(
                not differs(error, 1e-3),
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
            error = size(output - wanted)
            largest = max(largest, error)
            expect(
                not differs(error, 2 * TOLERANCE[dtype]),
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
        error = size(subject(query, key, value, mask).double() - wanted)
        largest = max(largest, error)
        expect(
            not differs(error, 1e-3 if subject.dtype != torch.bfloat16 else 5e-2),
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
        error = size(subject(*inputs, mask).double() - wanted)
        largest = max(largest, error)
        expect(
            not differs(error, 1e-12),
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
        leak = size(weights.masked_fill(mask | ~alive, 0.0))
        expect(
            not differs(leak), f"Under autocast with {name}, a forbidden key gets {leak:.3g}.", leak
        )
        wanted = expected_weights(*inputs[:2], mask) @ inputs[2].double()
        error = size((output - wanted).masked_fill(~alive, 0.0))
        expect(
            not differs(error, TOLERANCE[torch.bfloat16]),
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
            change = size(
                subject.answer(subject.call(*moved, call[3]))[0].double() - wanted.double()
            )
            expect(
                not differs(change, TOLERANCE[subject.dtype]),
                f"For {how} inputs with equal content the output differs by {change:.3g}.",
                change,
            )
        if call[3].shape[0] > 1:
            first = call[3][:1].clone()
            change = size(
                subject.answer(subject.call(*call[:3], first.expand_as(call[3])))[0].double()
                - subject.answer(subject.call(*call[:3], first.expand_as(call[3]).clone()))[
                    0
                ].double()
            )
            expect(not differs(change), f"For an expanded mask the output differs by {change:.3g}.")
    return 0.0


# ---- robust: queries that may see nothing --------------------------------------------------------


def dead_masks(subject: AttentionSubject) -> dict[str, Tensor]:
    """Masks that leave some queries nothing to see: a row of padding, and left padding."""
    query = make_inputs(subject)[0]
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
            not differs(size(output)),
            f"With {name}, a query that may see nothing gets an output of {size(output):.3g}, not "
            "0: it attends to padding or to the future after all. A finite number instead of -inf "
            "does this; set such rows to zero after the softmax.",
            size(output),
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
        change = size((output - wanted).double())
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
            change = size((found - wanted).double())
            expect(
                not differs(change, TOLERANCE[subject.dtype]),
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
        found.shape == wanted.shape and not differs(size((found - wanted).double()), 1e-3),
        "A (batch, length) mask with as many rows as tokens was taken for (queries, keys), without "
        "an error. Refuse masks of another rank than yours.",
        None,
        mask_given=real,
    )


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
