"""What must hold of a whole model.

A model is asked with tokens alone, and judged by its outputs at real tokens. What must not matter
is changed (padding, neighbours, the future) and the outputs must stay: to the bit where shapes
stay equal, and else within a ten-thousandth of how strongly they react to other tokens. What must
matter is changed too, for a model that sees nothing leaks nothing.
"""

from collections.abc import Callable, Iterable, Iterator

import torch
from torch import Tensor, nn

from minitransformer.checks.engine.between_calls import (
    Answers,
    Call,
    asked_inside_inference_mode,
    masks_are_written_to,
)
from minitransformer.checks.engine.check import at_most, check, max_abs, needs
from minitransformer.checks.models.cases import (
    BATCH,
    Stream,
    batch_of,
    laid_out,
    layouts,
    others,
    padded,
    role,
    with_an_empty_row,
)
from minitransformer.checks.models.ready import Ready, alone, difference, tolerance
from minitransformer.checks.models.subject import EncoderSubject
from minitransformer.checks.models.watching import watched
from minitransformer.masks import causal_mask, padding_mask
from minitransformer.positions import token_positions

TORCH, HF = "https://github.com/pytorch/pytorch/", "https://github.com/huggingface/transformers/"
NAN = float("nan")

EXTRA = (0, 1, 3, 9)  # padding beyond that of the longest row


def model_check(tier: str, measures: str = "", mirrors: Iterable[str] = (), kinds: str = "e d ed"):
    """A check of several kinds of model."""
    names = {"e": "encoder", "d": "decoder", "ed": "encoder-decoder"}

    def register(function: Callable) -> Callable:
        for kind in kinds.split():
            check(names[kind], tier, measures, mirrors)(function)
        return function

    return register


# ---- core: the same twice ------------------------------------------------------------------------


@model_check("core", "largest change of an output", TORCH + "issues/99293")
def the_same_call_gives_the_same_twice(subject: EncoderSubject) -> Iterator[float]:
    """In evaluation two calls with the same inputs give the same bits."""
    ready, streams = Ready(subject), batch_of(subject, "full")
    yield at_most(
        0.0,
        difference(ready.real(*streams), ready.real(*streams)),
        "Two calls with the same inputs differ by {measured}. Is dropout on? The module itself is "
        "put in evaluation; a function around it is not.",
    )


# ---- core: padding -------------------------------------------------------------------------------


def _amount_is_irrelevant(subject: EncoderSubject, side: str, stream: int = -1) -> Iterator[float]:
    ready = Ready(subject)
    wanted = alone(ready, stream)
    allowed = tolerance(ready, batch_of(subject, "full"))
    for extra in EXTRA:
        streams = batch_of(subject, side, extra, stream)
        mask = streams[stream][1]
        if mask.shape[1] > subject.max_length:
            continue
        yield at_most(
            allowed,
            difference(ready.real(*streams), wanted),
            f"With padding on the {side}{role(subject, stream)} of up to "
            f"{int((mask == 0).sum(1).max())} tokens, real tokens get outputs that differ by "
            "{measured} from those of the same sentence without padding (rounding explains "
            f"{allowed:.1g}). Does every layer get the mask? Is there a mean, a norm, a "
            "convolution or a position that counts padding in?",
            attention_mask=mask,
        )


@model_check("core", "largest change of an output", HF + "issues/29029")
def padding_on_the_right_is_irrelevant(subject: EncoderSubject) -> Iterator[float]:
    """A sentence gives the same with any amount of padding on its right, or none."""
    needs("right" in subject.sides, "it does not promise padding on the right")
    yield from _amount_is_irrelevant(subject, "right")


@model_check(
    "core",
    "largest change of an output",
    (HF + "issues/3021", "https://github.com/unslothai/unsloth/pull/4078"),
)
def padding_on_the_left_is_irrelevant(subject: EncoderSubject) -> Iterator[float]:
    """A sentence gives the same with any amount of padding on its left, or none.

    For a causal model this is the test of the padding mask: padding on the right is the future.
    """
    needs("left" in subject.sides, "it does not promise padding on the left")
    yield from _amount_is_irrelevant(subject, "left")


@model_check("core", "largest change of an output")
def padding_between_tokens_is_irrelevant(subject: EncoderSubject) -> Iterator[float]:
    """A sentence with holes gives what its tokens give without them."""
    needs(subject.holes, "it does not promise padding between tokens")
    ready = Ready(subject)
    streams = batch_of(subject, "holes", extra=1)
    yield at_most(
        tolerance(ready, batch_of(subject, "full")),
        difference(ready.real(*streams), alone(ready)),
        "With padding between tokens the outputs differ by {measured} from those of the tokens "
        "alone. Are masks or positions made from lengths, which cannot say where holes are?",
        attention_mask=streams[-1][1],
    )


def _content_is_irrelevant(
    subject: EncoderSubject, dtypes: Iterable, stream: int = -1
) -> Iterator[float]:
    for dtype in dtypes:
        ready = Ready(subject, dtype)
        for name, where in layouts(subject).items():
            streams = batch_of(subject, where, extra=1, stream=stream)
            before = ready.real(*streams)
            ids, mask = streams[stream]
            for step in (1, 3):
                changed = list(streams)
                changed[stream] = (ids.where(mask != 0, others(subject, ids, step)), mask)
                yield at_most(
                    0.0,
                    difference(ready.real(*changed), before),
                    f"In {dtype} with {name}{role(subject, stream)}, other tokens at the padding "
                    "move the outputs of real tokens by {measured}: the padding is read.",
                    attention_mask=mask,
                )


@model_check("core", "largest change of an output", HF + "issues/26869")
def what_padding_holds_is_irrelevant(subject: EncoderSubject) -> Iterator[float]:
    """Other token ids at padding change no bit of the outputs at real tokens."""
    yield from _content_is_irrelevant(subject, [subject.dtype])


@model_check("core", "outputs that are not there", TORCH + "issues/97111")
def the_output_is_as_long_as_the_input(subject: EncoderSubject) -> None:
    """Where every row ends in padding, the output has its columns all the same."""
    ready = Ready(subject)
    for where in subject.sides:
        streams = batch_of(subject, where, extra=1)
        ready(*streams)
        with torch.no_grad():
            ready(*streams)


# ---- core: neighbours in the batch ---------------------------------------------------------------


@model_check("core", "largest change of an output", HF + "issues/26869")
def a_row_alone_equals_it_in_the_batch(subject: EncoderSubject) -> Iterator[float]:
    """Each sequence of a batch gives what it gives alone, padded as it was."""
    ready = Ready(subject)
    for name, where in layouts(subject).items():
        streams = batch_of(subject, where)
        together = ready(*streams).detach()
        allowed = tolerance(ready, streams)
        for row in range(BATCH):
            single = [tuple(x[row : row + 1] for x in stream) for stream in streams]
            yield at_most(
                allowed,
                difference(ready.real(*single), together[row][ready.counts(single)[0]]),
                f"With {name}, sequence {row} alone and in the batch differ by {{measured}}: "
                "sequences of a batch must not know of each other. Are heads or rows split or "
                "merged in the wrong order, or statistics taken over the batch?",
            )


@model_check("core", "largest change of an output")
def a_row_of_padding_leaves_the_others_alone(subject: EncoderSubject) -> Iterator[float]:
    """A row of padding alone in the batch changes nothing for the other rows."""
    ready = Ready(subject)
    streams = batch_of(subject, subject.sides[0])
    before = ready.real(*streams)
    allowed = tolerance(ready, streams)
    for stream in range(-subject.streams, 0):
        output = ready(*with_an_empty_row(streams, subject.pad_id, stream)).detach()[:BATCH]
        yield at_most(
            allowed,
            difference(output[ready.counts(streams)], before),
            f"A row of padding alone{role(subject, stream)} moves the outputs of other rows by "
            "{measured}. Does a NaN spread from it, or is a statistic taken over the batch?",
        )


# ---- core: who sees whom -------------------------------------------------------------------------


def allowed_by_the_mask(subject: EncoderSubject, streams: list[Stream], stream: int) -> Tensor:
    """(B,Q,K) bool: which outputs may depend on which tokens of a stream."""
    mask = streams[-1][1]
    if subject.returns == "sequence":
        return (mask != 0).unsqueeze(1)
    if stream % subject.streams < subject.streams - 1:
        return padding_mask(mask, streams[stream][1])[:, 0]
    own = padding_mask(mask)[:, 0]
    return own & causal_mask(mask.shape[1], device=mask.device)[0] if subject.causal else own


def dependence(
    ready: Ready, streams: list[Stream], stream: int, enough: Tensor | None = None
) -> Tensor:
    """(B,Q,K) bool: which outputs move, by a bit or more, when this token is another.

    A token becomes three others in turn, or fewer where all pairs of `enough` have moved.
    """
    before = ready(*streams).detach()
    ids, mask = streams[stream]
    columns = []
    for k in range(ids.shape[1]):
        moved = torch.zeros_like(before[..., 0], dtype=torch.bool)
        for step in (1, 2, 3):
            other = ids.clone()
            other[:, k] = others(ready.subject, ids[:, k], step)
            changed = list(streams)
            changed[stream] = (other, mask)
            moved |= (ready(*changed).detach() != before).any(-1)
            if enough is not None and not (enough[..., k] & ~moved).any():
                break
        columns.append(moved)
    return torch.stack(columns, dim=-1)


def _no_pair(wrong: Tensor, mask: Tensor, found: Tensor, says: str) -> float:
    """None of the pairs (B,Q,K) is wrong; the row with the most of them is shown."""
    row = int(wrong.flatten(1).sum(1).argmax())
    return at_most(0.0, wrong.sum(), says, mask_wanted=mask[row], dependence_found=found[row])


def _all_is_seen(subject: EncoderSubject, stream: int, seen: str) -> Iterator[float]:
    ready = Ready(subject)
    for name, where in ({"no padding": "full"} | layouts(subject)).items():
        streams = batch_of(subject, where)
        mask = allowed_by_the_mask(subject, streams, stream)
        wanted = mask & ready.counts(streams).unsqueeze(-1)
        found = dependence(ready, streams, stream, enough=wanted)
        yield _no_pair(
            wanted & ~found,
            mask,
            found,
            f"With {name}, {{measured}} of {int(mask.sum())} pairs that the mask allows are not "
            f"there: {seen}. A mask that hides too much passes every test for leaks.",
        )


@model_check(
    "core", "pairs wrongly hidden", "https://github.com/harvard-edge/cs249r_book/pull/1785"
)
def every_token_sees_what_it_may(subject: EncoderSubject) -> Iterator[float]:
    """Each output depends on every token that the mask allows, itself included."""
    needs(subject.window is None, "it declares a window, which is asked for by itself")
    yield from _all_is_seen(subject, -1, "another token there changes no bit of the output")


@model_check(
    "core",
    "tokens that do not attend to themselves",
    "https://github.com/rasbt/LLMs-from-scratch/issues/1061",
)
def every_token_attends_to_itself(subject: EncoderSubject) -> Iterator[float]:
    """Inside a module, each token gives itself some weight in at least one layer and head.

    The outputs cannot show it: the residual around an attention hides what the attention hides.
    """
    ready, streams = Ready(subject), batch_of(subject, "full")
    needs(isinstance(ready.fn, nn.Module), "it is not an nn.Module, to be watched")
    weights = watched(lambda: ready(*streams))
    square = [[w for w in weights if w.shape[-2:] == 2 * ids.shape[1:]] for ids, _ in streams]
    needs(any(square), "no attention weights of all its tokens are seen")
    for layers in filter(None, square):
        own = torch.stack([w.diagonal(dim1=-2, dim2=-1).flatten(0, -2).amax(0) for w in layers])
        yield at_most(
            0.0,
            (own.amax(0) == 0).sum(),
            f"{{measured}} of {own.shape[1]} tokens give themselves a weight of 0 in all of the "
            f"{len(layers)} layers that were watched. Is the diagonal of the mask allowed?",
            weights_found=layers[0].flatten(0, -3)[0],
        )


@model_check("core", "pairs that leak")
def no_token_sees_what_it_may_not(subject: EncoderSubject) -> Iterator[float]:
    """No output depends on a token that the mask forbids: one token at a time, to the bit."""
    ready = Ready(subject)
    for name, where in ({"no padding": "full"} | layouts(subject)).items():
        for stream in range(-subject.streams, 0):
            streams = batch_of(subject, where)
            mask = allowed_by_the_mask(subject, streams, stream)
            found = dependence(ready, streams, stream)
            yield _no_pair(
                found & ~mask & ready.counts(streams).unsqueeze(-1),
                mask,
                found,
                f"With {name}, {{measured}} outputs depend on a token{role(subject, stream)} that "
                "they may not see: padding, or the future.",
            )


def _windows(subject: EncoderSubject) -> Iterator[tuple[str, Tensor, Tensor, Tensor]]:
    """With each layout: what the mask allows, what is in reach of all layers' windows, and what is
    seen, (B,Q,K) bool each; padded queries see nothing."""
    needs(subject.window is not None, "it declares no window")
    needs(subject.returns == "tokens", "it gives one output for each row")
    ready = Ready(subject)
    for name, where in ({"no padding": "full"} | layouts(subject)).items():
        streams = batch_of(subject, where)
        mask = allowed_by_the_mask(subject, streams, -1)
        place = token_positions(streams[-1][1])
        apart = (place.unsqueeze(2) - place.unsqueeze(1)).abs()
        reach = mask & (apart <= subject.layers * (subject.window - 1))
        real = ready.counts(streams).unsqueeze(-1)
        yield name, mask, reach & real, dependence(ready, streams, -1) & real


@model_check("core", "pairs beyond the window")
def no_token_sees_beyond_its_window(subject: EncoderSubject) -> Iterator[float]:
    """No output depends on a token that is out of reach of the windows of all layers.

    Each layer reaches window - 1 real tokens further.
    """
    for name, mask, reach, found in _windows(subject):
        yield _no_pair(
            found & mask & ~reach,
            reach,
            found,
            f"With {name}, {{measured}} outputs depend on a token beyond a window of "
            f"{subject.window} in {subject.layers} layers. Is the token itself counted in, and "
            "does every layer have the window?",
        )


@model_check("core", "pairs of a window wrongly hidden")
def every_token_sees_its_whole_window(subject: EncoderSubject) -> Iterator[float]:
    """Each output depends on every token in reach of the windows of all layers, the last ones too.

    A window counts real tokens: padding between them takes nothing from it.
    """
    for name, _, reach, found in _windows(subject):
        yield _no_pair(
            reach & ~found,
            reach,
            found,
            f"With {name}, {{measured}} of {int(reach.sum())} pairs in reach of a window of "
            f"{subject.window} in {subject.layers} layers are not there: another token there "
            "changes no bit of the output. Does the window count columns, or one token too few?",
        )


@model_check("core", "largest change of an output in the past", kinds="d ed")
def the_future_is_invisible(subject: EncoderSubject) -> Iterator[float]:
    """Other tokens later on change no bit of the outputs before them, in training mode neither."""
    ready = Ready(subject)
    for mode in ("evaluation", "training"):
        if mode == "training" and not ready.can_train():
            continue
        for where in ("full", *subject.sides):
            *source, (ids, mask) = batch_of(subject, where)
            before = ready(*source, (ids, mask)).detach()
            for t in range(1, ids.shape[1]):
                later = ids.clone()
                later[:, t:] = others(subject, ids[:, t:])
                after = ready(*source, (later, mask)).detach()
                past = (mask != 0)[:, :t]
                yield at_most(
                    0.0,
                    difference(after[:, :t][past], before[:, :t][past]),
                    f"In {mode} mode, other tokens from position {t} on move earlier outputs by "
                    "{measured}: each token is predicted by looking at it. Is a causal mask given "
                    "to every layer, with the diagonal in the right place, and the lower triangle "
                    "allowed?",
                )


@model_check("core", "largest difference from the whole", kinds="d ed")
def a_prefix_gives_what_it_gives_in_the_whole(subject: EncoderSubject) -> Iterator[float]:
    """The first t tokens alone give what they give in the whole sequence, for every t."""
    ready = Ready(subject)
    for where in ("full", *subject.sides):
        *source, (ids, mask) = batch_of(subject, where)
        whole = ready(*source, (ids, mask)).detach()
        allowed = tolerance(ready, [*source, (ids, mask)])
        for t in range(1, ids.shape[1]):
            prefix = ready(*source, (ids[:, :t], mask[:, :t])).detach()
            yield at_most(
                allowed,
                difference(prefix, whole[:, :t])[mask[:, :t] != 0],
                f"The first {t} tokens alone give outputs that differ by {{measured}} from theirs "
                "in the whole sequence: what is generated is not what was trained.",
            )


# ---- core: source and target ---------------------------------------------------------------------


@model_check("core", "largest change of an output", HF + "issues/35032", kinds="ed")
def padding_of_the_source_is_irrelevant(subject: EncoderSubject) -> Iterator[float]:
    """Any amount of padding beside the source, on either side, changes no output."""
    for side in subject.sides:
        yield from _amount_is_irrelevant(subject, side, stream=-2)


@model_check("core", "largest change of an output", HF + "pull/47946", kinds="ed")
def what_the_padding_of_the_source_holds_is_irrelevant(subject: EncoderSubject) -> Iterator[float]:
    """Other token ids at the padding of the source change no bit of the outputs."""
    yield from _content_is_irrelevant(subject, [subject.dtype], stream=-2)


@model_check("core", "pairs wrongly hidden", kinds="ed")
def every_target_token_sees_the_whole_source(subject: EncoderSubject) -> Iterator[float]:
    """Each output depends on every real token of its source, the last ones too."""
    yield from _all_is_seen(subject, -2, "another token of the source changes no bit of the output")


@model_check("core", "outputs moved by another row's source", kinds="ed")
def the_source_of_another_row_is_irrelevant(subject: EncoderSubject) -> Iterator[float]:
    """Another source in one row changes no bit of the outputs of the other rows."""
    ready = Ready(subject)
    (ids, mask), target = batch_of(subject, "full")
    before = ready((ids, mask), target).detach()
    for row in range(BATCH):
        other = ids.clone()
        other[row] = others(subject, ids[row])
        moved = (ready((other, mask), target).detach() != before).any(-1)
        moved[row] = False
        rows = ", ".join(str(i) for i in range(BATCH) if moved[i].any())
        yield at_most(
            0.0,
            moved.sum(),
            f"Another source in row {row} moves {{measured}} outputs of row {rows}: targets are "
            "answered with another row's source.",
        )


# ---- core: packed documents ----------------------------------------------------------------------


def _needs_documents(subject: EncoderSubject) -> None:
    needs(subject.documents, "it does not promise packed documents")
    needs(subject.returns == "tokens", "it gives one output for each row")


@model_check("core", "largest change of an output", HF + "pull/39194")
def packed_documents_do_not_see_each_other(subject: EncoderSubject) -> Iterator[float]:
    """Other tokens in one document of a row change no bit of the other document's outputs."""
    _needs_documents(subject)
    ready, streams = Ready(subject), batch_of(subject, "packed")
    mask = streams[-1][1]
    before = ready(*streams).detach()
    for changed in (1, 2):
        other = [(ids.where(m != changed, others(subject, ids)), m) for ids, m in streams]
        yield at_most(
            0.0,
            difference(ready(*other).detach(), before)[mask == 3 - changed],
            f"Other tokens in document {changed} move the outputs of document {3 - changed} by "
            "{measured}: documents that share a row see each other. Does the mask compare their "
            "numbers?",
            attention_mask=mask,
        )


@model_check(
    "core",
    "largest difference from the documents alone",
    "https://github.com/huggingface/trl/pull/3526",
)
def packed_documents_give_what_they_give_alone(subject: EncoderSubject) -> Iterator[float]:
    """Each of several documents in a row gives what it gives in a row of its own."""
    _needs_documents(subject)
    ready, streams = Ready(subject), batch_of(subject, "packed")
    together = ready(*streams).detach()
    allowed = tolerance(ready, streams)
    for row in range(BATCH):
        for number in (1, 2):
            chosen = [ids[row, mask[row] == number].unsqueeze(0) for ids, mask in streams]
            single = [(ids, torch.ones_like(ids)) for ids in chosen]
            yield at_most(
                allowed,
                difference(ready.real(*single), together[row, streams[-1][1][row] == number]),
                f"Document {number} of row {row} differs by {{measured}} from itself in a row of "
                "its own. Does it see its neighbour, or do its positions go on counting from it?",
                attention_mask=streams[-1][1],
            )


# ---- core: modes and gradients -------------------------------------------------------------------


@model_check(
    "core", "largest change of an output", "https://github.com/keras-team/keras/issues/23038"
)
def training_without_dropout_equals_evaluation(subject: EncoderSubject) -> Iterator[float]:
    """With dropout at 0, train() and eval() give the same outputs."""
    ready = Ready(subject)
    needs(isinstance(ready.fn, nn.Module), "it is not an nn.Module")
    needs(ready.can_train(), "it has a dropout that could not be switched off")
    ready.fn.eval()
    for where in subject.sides:
        streams = batch_of(subject, where)
        wanted = ready.real(*streams)
        ready.module.train()
        found = ready.real(*streams)
        ready.module.eval()
        yield at_most(
            tolerance(ready, streams),
            difference(found, wanted),
            "In training mode the outputs differ by {measured} from those in evaluation mode, "
            "though dropout is 0. Is a mask built in one mode only, or are there statistics over "
            "the batch, which count padding in?",
        )


@model_check(
    "core", "largest change of an output", (TORCH + "issues/107084", TORCH + "pull/190486")
)
def without_gradients_it_is_the_same(subject: EncoderSubject) -> Iterator[float]:
    """Under torch.no_grad, where libraries take faster paths, the outputs are the same."""
    ready = Ready(subject)
    for name, where in ({"no padding": "full"} | layouts(subject)).items():
        streams = batch_of(subject, where)
        wanted = ready.real(*streams)
        with torch.no_grad():
            found = ready.real(*streams)
        yield at_most(
            tolerance(ready, streams),
            difference(found, wanted),
            f"With {name}, the outputs under no_grad differ by {{measured}} from those with "
            "gradients: what is evaluated is not what was trained. Which fast path ignores a mask?",
        )


@model_check("core", "largest change of a gradient, relative to the largest gradient")
def parameter_gradients_do_not_depend_on_padding(subject: EncoderSubject) -> Iterator[float]:
    """The gradient of every parameter is the same with more padding, on whichever side."""
    ready = Ready(subject)
    for stream in range(-subject.streams, 0):
        wanted = ready.gradients(*batch_of(subject, subject.sides[0], 0, stream))
        # Judged by the largest: the true gradient of a key's bias, for one, is 0.
        scale = max(1e-30, *map(max_abs, wanted.values()))
        for side in subject.sides:
            found = ready.gradients(*batch_of(subject, side, 1, stream))
            for name in (name for name in wanted if name in found):
                yield at_most(
                    1e3 * torch.finfo(ready.dtype).eps,
                    max_abs(found[name] - wanted[name]) / scale,
                    f"Padding on the {side}{role(subject, stream)} changes the gradient of {name} "
                    "by {measured} of the largest gradient: how sentences were batched decides "
                    "what is learnt.",
                )


@model_check("core", "largest gradient at padding")
def no_gradient_reaches_padding(subject: EncoderSubject) -> Iterator[float]:
    """The gradient to the embeddings at padding is exactly 0, and to real tokens it is not."""
    ready = Ready(subject)
    for name, streams, stream in padded(subject):
        leaves = {}

        def as_leaf(i, x, leaves=leaves):
            leaves[i] = x.detach().requires_grad_()
            return leaves[i]

        loss = ready.projection(*streams, change=as_leaf)
        leaf = leaves[stream % subject.streams]
        (gradient,) = torch.autograd.grad(loss, leaf, allow_unused=True)
        needs(gradient is not None, "no gradient flows to its embeddings")
        yield at_most(
            0.0,
            gradient[streams[stream][1] == 0],
            f"With {name}, the embeddings at padding get a gradient of {{measured}} instead of 0: "
            "padding is trained on.",
        )


@model_check("core", "tokens or masks changed")
def inputs_are_left_alone(subject: EncoderSubject) -> Iterator[float]:
    """It changes neither the tokens nor the masks that it is given."""
    ready = Ready(subject)
    arguments = []
    for ids, mask in batch_of(subject, subject.sides[0], extra=1):
        ids = others(subject, ids)  # something to overwrite at padding too
        tokens = ready.table[ids] if subject.takes == "embeddings" else ids
        arguments += [tokens, subject.present(mask, ready.dtype)]
    before = [x.clone() for x in arguments]
    ready.fn(*arguments)
    changed = [
        name
        for name, x, y in zip(subject.arguments, arguments, before, strict=True)
        if not torch.equal(x, y)
    ]
    yield at_most(
        0.0,
        len(changed),
        f"It changes its {' and '.join(changed)} in place: the loss, or the next layer of the "
        "caller's code, sees other tokens than were given.",
    )


# ---- robust --------------------------------------------------------------------------------------


@model_check("robust", "outputs that are not finite", TORCH + "issues/103963")
def a_row_of_padding_gets_no_nan(subject: EncoderSubject) -> Iterator[float]:
    """A row of padding alone gets finite outputs, with gradients and without."""
    ready = Ready(subject)
    for stream in range(-subject.streams, 0):
        streams = batch_of(subject, subject.sides[0])
        longer = with_an_empty_row(streams, subject.pad_id, stream)
        for gradients in (True, False):
            with torch.set_grad_enabled(gradients):
                output = ready(*longer)[BATCH]
            yield at_most(
                0.0,
                (~output.isfinite()).sum(),
                f"A row of padding alone{role(subject, stream)} gets {{measured}} outputs that are "
                "NaN or Inf. What does the softmax give where every score is -inf?",
            )


@model_check("robust", "gradients that are not finite", TORCH + "issues/41508")
def a_row_of_padding_gives_no_nan_gradients(subject: EncoderSubject) -> Iterator[float]:
    """A row of padding alone in the batch leaves every parameter gradient finite."""
    ready = Ready(subject)
    for stream in range(-subject.streams, 0):
        streams = batch_of(subject, subject.sides[0])
        found = ready.gradients(*with_an_empty_row(streams, subject.pad_id, stream))
        yield at_most(
            0.0,
            sum(not gradient.isfinite().all() for gradient in found.values()),
            f"A row of padding alone{role(subject, stream)} makes the gradients of {{measured}} of "
            f"{len(found)} parameters NaN or Inf, though the loss leaves it out: one such row "
            "ruins the model at the next step.",
        )


def _half_dtypes(subject: EncoderSubject) -> list[torch.dtype]:
    found = [d for d in (torch.bfloat16, torch.float16) if d in subject.dtypes]
    needs(found, "it does not declare half precision")
    castable = isinstance(subject.fn, nn.Module) or subject.takes == "embeddings"
    needs(castable, "it is not an nn.Module, to be cast")
    return found


@model_check("robust", "outputs that are not finite", HF + "pull/17306")
def half_precision_gets_no_nan(subject: EncoderSubject) -> Iterator[float]:
    """In bfloat16 and float16 the outputs of real tokens are finite."""
    for dtype in _half_dtypes(subject):
        ready = Ready(subject, dtype)
        for name, where in layouts(subject).items():
            yield at_most(
                0.0,
                (~ready.real(*batch_of(subject, where, extra=1)).isfinite()).sum(),
                f"In {dtype} with {name}, {{measured}} outputs are NaN or Inf. Is the mask a "
                "constant that this dtype cannot hold? float16 ends at 65504.",
            )


@model_check("robust", "largest change of an output")
def half_precision_ignores_padding_too(subject: EncoderSubject) -> Iterator[float]:
    """In bfloat16 and float16 other tokens at padding change no bit of the outputs."""
    for stream in range(-subject.streams, 0):
        yield from _content_is_irrelevant(subject, _half_dtypes(subject), stream)


def _filled(streams: list[Stream], fill: Callable[[Tensor], Tensor]) -> Callable:
    """A change of the embeddings: fill(embedding) at padding, the rest as it was."""
    return lambda i, x: x.where((streams[i][1] != 0).unsqueeze(-1), fill(x))


@model_check(
    "robust",
    "largest change of an output",
    "https://github.com/flashinfer-ai/flashinfer/issues/4267",
)
def large_numbers_in_padding_are_irrelevant(subject: EncoderSubject) -> Iterator[float]:
    """Embeddings of padding that are 10⁵ times larger change no bit of the outputs."""
    ready = Ready(subject)
    for name, streams, _ in padded(subject):
        before = ready.real(*streams)
        for factor in (1e5, -1e5):
            after = ready.real(*streams, change=_filled(streams, lambda x, f=factor: f * x))
            yield at_most(
                0.0,
                difference(after, before),
                f"With {name} whose embeddings are large, real outputs move by {{measured}}. Is a "
                "finite number added to the scores, instead of -inf? A score can be larger.",
            )


# ---- strict --------------------------------------------------------------------------------------


@model_check("strict", "outputs changed", TORCH + "issues/101967")
def nan_in_padding_reaches_no_output(subject: EncoderSubject) -> Iterator[float]:
    """NaN or Inf in the embeddings of padding changes no bit of the outputs at real tokens."""
    ready = Ready(subject)
    for name, streams, _ in padded(subject):
        before = ready.real(*streams)
        for poison in (NAN, float("inf")):
            spoil = _filled(streams, lambda x, p=poison: torch.full_like(x, p))
            yield at_most(
                0.0,
                (ready.real(*streams, change=spoil) != before).any(-1).sum(),
                f"With {name} and {poison} in its embeddings, {{measured}} of {len(before)} real "
                "outputs change. Is padding multiplied by a weight of 0? 0 · NaN is NaN.",
            )


@model_check("strict", "gradients changed", TORCH + "issues/101967")
def nan_in_padding_reaches_no_gradient(subject: EncoderSubject) -> Iterator[float]:
    """NaN in the embeddings of padding changes no bit of any parameter's gradient."""
    ready = Ready(subject)
    for name, streams, _ in padded(subject):
        wanted = ready.gradients(*streams)
        spoil = _filled(streams, lambda x: torch.full_like(x, NAN))
        found = ready.gradients(*streams, change=spoil)
        bad = [n for n in wanted if n not in found or not torch.equal(wanted[n], found[n])]
        yield at_most(
            0.0,
            len(bad),
            f"With {name} and NaN in its embeddings, the gradients of {{measured}} of "
            f"{len(wanted)} parameters change, {bad[0] if bad else ''} for one. Does a gradient of "
            "0 meet the NaN in the backward pass?",
        )


# ---- robust: from one call to the next -----------------------------------------------------------


def _answers(ready: Ready) -> Answers:
    wheres = {"no padding": "full"} | layouts(ready.subject)
    return {name: ready.real(*batch_of(ready.subject, where)) for name, where in wheres.items()}


def _masks(subject: EncoderSubject) -> tuple[Call, list[Tensor], list[Tensor]]:
    ready = Ready(subject)
    streams = [laid_out(subject, i, subject.sides[0]) for i in range(subject.streams)]
    ids = [ready.table[ids] if subject.takes == "embeddings" else ids for ids, _ in streams]

    def call(given: list[Tensor]) -> Tensor:
        arguments = [x for pair in zip(ids, given, strict=True) for x in pair]
        return ready.answer(ready.fn(*arguments), streams[-1][0].shape)

    before = [subject.present(mask, ready.dtype) for _, mask in streams]
    after = [subject.present(torch.ones_like(mask), ready.dtype) for _, mask in streams]
    return call, before, after


for _kind in ("encoder", "decoder", "encoder-decoder"):
    asked_inside_inference_mode(_kind, _answers, prepared=Ready)
    masks_are_written_to(_kind, _masks)
