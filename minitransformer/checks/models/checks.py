"""What must hold of a whole model: subjects, how they are made ready, and the checks.

A model is asked with tokens alone, and judged by its outputs at real tokens. What must not matter
is changed (padding, neighbours, the future) and the outputs must stay: to the bit where shapes
stay equal, and else within a ten-thousandth of how strongly they react to other tokens. What must
matter is changed too, for a model that sees nothing leaks nothing.
"""

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

from minitransformer.checks.engine.between_calls import (
    Answers,
    Call,
    asked_inside_inference_mode,
    masks_are_written_to,
)
from minitransformer.checks.engine.check import check, exceeds, expect, max_abs, needs
from minitransformer.checks.models.cases import BATCH, batch_of, laid_out, layouts, others, role
from minitransformer.checks.models.ready import Ready, Stream, alone, reaction, tolerance
from minitransformer.checks.models.subject import EncoderSubject
from minitransformer.masks import causal_mask, padding_mask

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
def the_same_call_gives_the_same_twice(subject: EncoderSubject) -> float:
    """In evaluation two calls with the same inputs give the same bits."""
    ready, streams = Ready(subject), batch_of(subject, "full")
    change = max_abs(ready.real(*streams) - ready.real(*streams))
    expect(
        not exceeds(change),
        f"Two calls with the same inputs differ by {change:.3g}: dropout is on. Give the module "
        "itself to be checked, or call eval() before; F.dropout needs training=self.training.",
        change,
    )
    return 0.0


# ---- core: padding -------------------------------------------------------------------------------


def _amount_is_irrelevant(subject: EncoderSubject, side: str, stream: int = -1) -> float:
    ready, largest = Ready(subject), 0.0
    wanted = alone(ready, stream)
    allowed = tolerance(ready, batch_of(subject, "full"))
    for extra in EXTRA:
        streams = batch_of(subject, side, extra, stream)
        if streams[stream][0].shape[1] > subject.max_length:
            continue
        change = max_abs(ready.real(*streams).double() - wanted.double())
        largest = max(largest, change)
        expect(
            not exceeds(change, allowed),
            f"With padding on the {side}{role(subject, stream)} of up to "
            f"{int((streams[stream][1] == 0).sum(1).max())} tokens, real tokens get outputs that "
            f"differ by {change:.3g} from those of the same sentence without padding (rounding "
            f"explains {allowed:.1g}). Does every layer get the mask? Is there a mean, a norm, a "
            "convolution or a position that counts padding in?",
            change,
            attention_mask=streams[stream][1],
        )
    return largest


@model_check("core", "largest change of an output", HF + "issues/29029")
def padding_on_the_right_is_irrelevant(subject: EncoderSubject) -> float:
    """A sentence gives the same with any amount of padding on its right, or none."""
    needs("right" in subject.sides, "it does not promise padding on the right")
    return _amount_is_irrelevant(subject, "right")


@model_check(
    "core",
    "largest change of an output",
    (HF + "issues/3021", "https://github.com/unslothai/unsloth/pull/4078"),
)
def padding_on_the_left_is_irrelevant(subject: EncoderSubject) -> float:
    """A sentence gives the same with any amount of padding on its left, or none.

    For a causal model this is the test of the padding mask: padding on the right is the future.
    """
    needs("left" in subject.sides, "it does not promise padding on the left")
    return _amount_is_irrelevant(subject, "left")


@model_check("core", "largest change of an output")
def padding_between_tokens_is_irrelevant(subject: EncoderSubject) -> float:
    """A sentence with holes gives what its tokens give without them."""
    needs(subject.holes, "it does not promise padding between tokens")
    ready = Ready(subject)
    streams = batch_of(subject, "holes", extra=1)
    change = max_abs(ready.real(*streams).double() - alone(ready).double())
    expect(
        not exceeds(change, tolerance(ready, batch_of(subject, "full"))),
        f"With padding between tokens the outputs differ by {change:.3g} from those of the tokens "
        "alone. Lengths cannot say where holes are: use the mask itself, and count positions over "
        "real tokens.",
        change,
        attention_mask=streams[-1][1],
    )
    return change


def _content_is_irrelevant(subject: EncoderSubject, dtypes: Iterable, stream: int = -1) -> float:
    for dtype in dtypes:
        ready = Ready(subject, dtype)
        for name, where in layouts(subject).items():
            streams = batch_of(subject, where, extra=1, stream=stream)
            before = ready.real(*streams)
            for step in (1, 3):
                ids, mask = streams[stream]
                changed = list(streams)
                changed[stream] = (ids.where(mask != 0, others(subject, ids, step)), mask)
                after = ready.real(*changed)
                change = max_abs(after.double() - before.double())
                expect(
                    torch.equal(before, after),
                    f"In {dtype} with {name}{role(subject, stream)}, other tokens at the padding "
                    f"move the outputs of real tokens by {change:.3g}, where other real tokens "
                    f"move them by {reaction(ready, streams):.3g}: the padding is read.",
                    change,
                    attention_mask=mask,
                )
    return 0.0


@model_check("core", "largest change of an output", HF + "issues/26869")
def what_padding_holds_is_irrelevant(subject: EncoderSubject) -> float:
    """Other token ids at padding change no bit of the outputs at real tokens."""
    return _content_is_irrelevant(subject, [subject.dtype])


@model_check("core", "outputs that are not there", TORCH + "issues/97111")
def the_output_is_as_long_as_the_input(subject: EncoderSubject) -> float:
    """Where every row ends in padding, the output has its columns all the same."""
    ready = Ready(subject)
    for where in subject.sides:
        streams = batch_of(subject, where, extra=1)
        ready(*streams)
        with torch.no_grad():
            ready(*streams)
    return 0.0


# ---- core: neighbours in the batch ---------------------------------------------------------------


@model_check("core", "largest change of an output", HF + "issues/26869")
def a_row_alone_equals_it_in_the_batch(subject: EncoderSubject) -> float:
    """Each sequence of a batch gives what it gives alone, padded as it was."""
    ready, largest = Ready(subject), 0.0
    for name, where in layouts(subject).items():
        streams = batch_of(subject, where)
        together = ready(*streams).detach()
        allowed = tolerance(ready, streams)
        for row in range(BATCH):
            single = [tuple(x[row : row + 1] for x in stream) for stream in streams]
            counts = ready.counts(single)[0]
            found = ready.real(*single)
            change = max_abs(found.double() - together[row][counts].double())
            largest = max(largest, change)
            expect(
                not exceeds(change, allowed),
                f"With {name}, sequence {row} alone and in the batch differ by {change:.3g}: "
                "sequences of a batch must not know of each other. Are heads or rows split or "
                "merged in the wrong order, or statistics taken over the batch?",
                change,
            )
    return largest


def _with_an_empty_row(streams: list[Stream], pad_id: int, stream: int = -1) -> list[Stream]:
    """One more row, of padding alone (in one stream, or in the last)."""
    longer = []
    for i, (ids, mask) in enumerate(streams):
        empty = i == stream % len(streams)
        row = torch.full_like(ids[:1], pad_id) if empty else ids[:1]
        longer.append(
            (torch.cat([ids, row]), torch.cat([mask, torch.zeros_like(row) if empty else mask[:1]]))
        )
    return longer


@model_check("core", "largest change of an output")
def a_row_of_padding_leaves_the_others_alone(subject: EncoderSubject) -> float:
    """A row of padding alone in the batch changes nothing for the other rows."""
    ready, largest = Ready(subject), 0.0
    streams = batch_of(subject, subject.sides[0])
    before = ready.real(*streams)
    allowed = tolerance(ready, streams)
    for stream in range(-subject.streams, 0):
        longer = _with_an_empty_row(streams, subject.pad_id, stream)
        output = ready(*longer).detach()[:BATCH]
        change = max_abs(output[ready.counts(streams)].double() - before.double())
        largest = max(largest, change)
        expect(
            not exceeds(change, allowed),
            f"A row of padding alone{role(subject, stream)} moves the outputs of other rows by "
            f"{change:.3g}: a NaN that spreads, or statistics over the batch.",
            change,
        )
    return largest


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


def _worst_row(wrong: Tensor) -> int:
    return int(wrong.flatten(1).sum(1).argmax())


def _all_is_seen(subject: EncoderSubject, stream: int, what: str) -> float:
    ready = Ready(subject)
    for name, where in ({"no padding": "full"} | layouts(subject)).items():
        streams = batch_of(subject, where)
        mask = allowed_by_the_mask(subject, streams, stream)
        wanted = mask & ready.counts(streams).unsqueeze(-1)
        found = dependence(ready, streams, stream, enough=wanted)
        hidden = wanted & ~found
        row = _worst_row(hidden)
        expect(
            not hidden.any(),
            f"With {name}, {int(hidden.sum())} of {int(mask.sum())} pairs that the mask allows are "
            f"not there: {what}. A mask that hides too much passes every test for leaks.",
            float(hidden.sum()),
            mask_wanted=mask[row],
            dependence_found=found[row],
        )
    return 0.0


@model_check(
    "core", "pairs wrongly hidden", "https://github.com/harvard-edge/cs249r_book/pull/1785"
)
def every_token_sees_what_it_may(subject: EncoderSubject) -> float:
    """Each output depends on every token that the mask allows, itself included."""
    return _all_is_seen(subject, -1, "another token there changes no bit of the output")


@model_check("core", "pairs that leak")
def no_token_sees_what_it_may_not(subject: EncoderSubject) -> float:
    """No output depends on a token that the mask forbids: one token at a time, to the bit."""
    ready = Ready(subject)
    for name, where in ({"no padding": "full"} | layouts(subject)).items():
        for stream in range(-subject.streams, 0):
            streams = batch_of(subject, where)
            mask = allowed_by_the_mask(subject, streams, stream)
            found = dependence(ready, streams, stream)
            leaks = found & ~mask & ready.counts(streams).unsqueeze(-1)
            row = _worst_row(leaks)
            expect(
                not leaks.any(),
                f"With {name}, {int(leaks.sum())} outputs depend on a token{role(subject, stream)} "
                "that they may not see: padding, or the future.",
                float(leaks.sum()),
                mask_wanted=mask[row],
                dependence_found=found[row],
            )
    return 0.0


@model_check("core", "largest change of an output in the past", kinds="d ed")
def the_future_is_invisible(subject: EncoderSubject) -> float:
    """Other tokens later on change no bit of the outputs before them, in training mode neither."""
    ready = Ready(subject)
    for training in (False, True):
        if training and not ready.can_train():
            continue
        for where in ("full", *subject.sides):
            *source, (ids, mask) = batch_of(subject, where)
            before = ready(*source, (ids, mask)).detach()
            for t in range(1, ids.shape[1]):
                later = ids.clone()
                later[:, t:] = others(subject, ids[:, t:])
                after = ready(*source, (later, mask)).detach()
                past = (mask != 0)[:, :t]
                change = max_abs((after - before)[:, :t][past])
                expect(
                    torch.equal(after[:, :t][past], before[:, :t][past]),
                    f"In {'training' if training else 'evaluation'} mode, other tokens from "
                    f"position {t} on move earlier outputs by {change:.3g}: each token is "
                    "predicted by looking at it. Is a causal mask given to every layer, with the "
                    "diagonal in the right place, and the lower triangle allowed?",
                    change,
                )
    return 0.0


@model_check("core", "largest difference from the whole", kinds="d ed")
def a_prefix_gives_what_it_gives_in_the_whole(subject: EncoderSubject) -> float:
    """The first t tokens alone give what they give in the whole sequence, for every t."""
    ready, largest = Ready(subject), 0.0
    for where in ("full", *subject.sides):
        *source, (ids, mask) = batch_of(subject, where)
        whole = ready(*source, (ids, mask)).detach()
        allowed = tolerance(ready, [*source, (ids, mask)])
        for t in range(1, ids.shape[1]):
            prefix = ready(*source, (ids[:, :t], mask[:, :t])).detach()
            change = max_abs((prefix - whole[:, :t])[mask[:, :t] != 0])
            largest = max(largest, change)
            expect(
                not exceeds(change, allowed),
                f"The first {t} tokens alone give outputs that differ by {change:.3g} from theirs "
                "in the whole sequence: what is generated is not what was trained.",
                change,
            )
    return largest


# ---- core: source and target ---------------------------------------------------------------------


@model_check("core", "largest change of an output", HF + "issues/35032", kinds="ed")
def padding_of_the_source_is_irrelevant(subject: EncoderSubject) -> float:
    """Any amount of padding beside the source, on either side, changes no output."""
    return max(_amount_is_irrelevant(subject, side, stream=-2) for side in subject.sides)


@model_check("core", "largest change of an output", HF + "pull/47946", kinds="ed")
def what_the_padding_of_the_source_holds_is_irrelevant(subject: EncoderSubject) -> float:
    """Other token ids at the padding of the source change no bit of the outputs."""
    return _content_is_irrelevant(subject, [subject.dtype], stream=-2)


@model_check("core", "pairs wrongly hidden", kinds="ed")
def every_target_token_sees_the_whole_source(subject: EncoderSubject) -> float:
    """Each output depends on every real token of its source, the last ones too."""
    return _all_is_seen(subject, -2, "another token of the source changes no bit of the output")


@model_check("core", "outputs moved by another row's source", kinds="ed")
def the_source_of_another_row_is_irrelevant(subject: EncoderSubject) -> float:
    """Another source in one row changes no bit of the outputs of the other rows."""
    ready = Ready(subject)
    (ids, mask), target = batch_of(subject, "full")
    before = ready((ids, mask), target).detach()
    for row in range(BATCH):
        other = ids.clone()
        other[row] = others(subject, ids[row])
        moved = (ready((other, mask), target).detach() != before).any(-1)
        moved[row] = False
        rows = moved.any(-1).nonzero().flatten().tolist()
        expect(
            not moved.any(),
            f"Another source in row {row} moves the outputs of row {', '.join(map(str, rows))}: "
            "targets are answered with another row's source.",
            float(moved.sum()),
        )
    return 0.0


# ---- core: packed documents ----------------------------------------------------------------------


@model_check("core", "largest change of an output", HF + "pull/39194")
def packed_documents_do_not_see_each_other(subject: EncoderSubject) -> float:
    """Other tokens in one document of a row change no bit of the other document's outputs."""
    needs(subject.documents, "it does not promise packed documents")
    needs(subject.returns == "tokens", "it gives one output for each row")
    ready = Ready(subject)
    streams = batch_of(subject, "packed")
    before = ready(*streams).detach()
    for changed in (1, 2):
        other = [(ids.where(m != changed, others(subject, ids)), m) for ids, m in streams]
        after = ready(*other).detach()
        rest = streams[-1][1] == 3 - changed
        change = max_abs((after - before)[rest])
        expect(
            torch.equal(after[rest], before[rest]),
            f"Other tokens in document {changed} move the outputs of document {3 - changed} by "
            f"{change:.3g}: documents that share a row see each other. Allow a pair only where "
            "both have the same number.",
            change,
            attention_mask=streams[-1][1],
        )
    return 0.0


@model_check(
    "core",
    "largest difference from the documents alone",
    "https://github.com/huggingface/trl/pull/3526",
)
def packed_documents_give_what_they_give_alone(subject: EncoderSubject) -> float:
    """Each of several documents in a row gives what it gives in a row of its own."""
    needs(subject.documents, "it does not promise packed documents")
    needs(subject.returns == "tokens", "it gives one output for each row")
    ready, largest = Ready(subject), 0.0
    streams = batch_of(subject, "packed")
    together = ready(*streams).detach()
    allowed = tolerance(ready, streams)
    for row in range(BATCH):
        for number in (1, 2):
            single = []
            for ids, mask in streams:
                chosen = ids[row, mask[row] == number].unsqueeze(0)
                single.append((chosen, torch.ones_like(chosen)))
            found = together[row, streams[-1][1][row] == number]
            change = max_abs(ready.real(*single) - found)
            largest = max(largest, change)
            expect(
                not exceeds(change, allowed),
                f"Document {number} of row {row} differs by {change:.3g} from itself in a row of "
                "its own: it sees its neighbour, or its positions go on counting from it.",
                change,
                attention_mask=streams[-1][1],
            )
    return largest


# ---- core: modes and gradients -------------------------------------------------------------------


@model_check(
    "core", "largest change of an output", "https://github.com/keras-team/keras/issues/23038"
)
def training_without_dropout_equals_evaluation(subject: EncoderSubject) -> float:
    """With dropout at 0, train() and eval() give the same outputs."""
    ready, largest = Ready(subject), 0.0
    needs(isinstance(ready.fn, nn.Module), "it is not an nn.Module")
    needs(ready.can_train(), "it has a dropout that could not be switched off")
    ready.fn.eval()
    for where in subject.sides:
        streams = batch_of(subject, where)
        wanted = ready.real(*streams)
        ready.module.train()
        found = ready.real(*streams)
        ready.module.eval()
        change = max_abs((found - wanted).double())
        largest = max(largest, change)
        expect(
            not exceeds(change, tolerance(ready, streams)),
            f"In training mode the outputs differ by {change:.3g} from those in evaluation mode, "
            "though dropout is 0. Is a mask built in one mode only, or are there statistics over "
            "the batch, which count padding in?",
            change,
        )
    return largest


@model_check(
    "core", "largest change of an output", (TORCH + "issues/107084", TORCH + "pull/190486")
)
def without_gradients_it_is_the_same(subject: EncoderSubject) -> float:
    """Under torch.no_grad, where libraries take faster paths, the outputs are the same."""
    ready, largest = Ready(subject), 0.0
    for name, where in ({"no padding": "full"} | layouts(subject)).items():
        streams = batch_of(subject, where)
        wanted = ready.real(*streams)
        with torch.no_grad():
            found = ready.real(*streams)
        change = max_abs((found - wanted).double())
        largest = max(largest, change)
        expect(
            not exceeds(change, tolerance(ready, streams)),
            f"With {name}, the outputs under no_grad differ by {change:.3g} from those with "
            "gradients: what is evaluated is not what was trained. Which fast path ignores a mask?",
            change,
        )
    return largest


@model_check("core", "largest change of a gradient, relative to the largest gradient")
def parameter_gradients_do_not_depend_on_padding(subject: EncoderSubject) -> float:
    """The gradient of every parameter is the same with more padding, on whichever side."""
    ready, largest = Ready(subject), 0.0
    eps = torch.finfo(ready.dtype).eps
    for stream in range(-subject.streams, 0):
        wanted = ready.gradients(*batch_of(subject, subject.sides[0], 0, stream))
        scale = max(map(max_abs, wanted.values()))
        for side in subject.sides:
            found = ready.gradients(*batch_of(subject, side, 1, stream))
            for name in wanted.keys() & found.keys():
                # Judged by the largest: the true gradient of a key's bias, for one, is 0.
                change = max_abs(found[name] - wanted[name]) / max(scale, 1e-30)
                largest = max(largest, change)
                expect(
                    not exceeds(change, 1e3 * eps),
                    f"Padding on the {side}{role(subject, stream)} changes the gradient of {name} "
                    f"by {change:.3g} of the largest gradient: how sentences were batched decides "
                    "what is learnt.",
                    change,
                )
    return largest


@model_check("core", "largest gradient at padding")
def no_gradient_reaches_padding(subject: EncoderSubject) -> float:
    """The gradient to the embeddings at padding is exactly 0, and to real tokens it is not."""
    ready = Ready(subject)
    for name, where in layouts(subject).items():
        for stream in range(-subject.streams, 0):
            streams = batch_of(subject, where, 1, stream)
            leaves = {}

            def as_leaf(i, x, leaves=leaves):
                leaves[i] = x.detach().requires_grad_()
                return leaves[i]

            loss = ready.projection(*streams, change=as_leaf)
            leaf = leaves[stream % subject.streams]
            (gradient,) = torch.autograd.grad(loss, leaf, allow_unused=True)
            needs(gradient is not None, "no gradient flows to its embeddings")
            leak = gradient[streams[stream][1] == 0]
            expect(
                not exceeds(max_abs(leak)),
                f"With {name}{role(subject, stream)}, the embeddings at padding get a gradient of "
                f"{max_abs(leak):.3g} instead of 0: padding is trained on.",
                max_abs(leak),
            )
    return 0.0


@model_check("core", "tokens or masks changed")
def inputs_are_left_alone(subject: EncoderSubject) -> float:
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
    expect(
        not changed,
        f"It changes its {' and '.join(changed)} in place: the loss, or the next layer of the "
        "caller's code, sees other tokens than were given.",
        float(len(changed)),
    )
    return 0.0


# ---- robust --------------------------------------------------------------------------------------


@model_check("robust", "outputs that are not finite", TORCH + "issues/103963")
def a_row_of_padding_gets_no_nan(subject: EncoderSubject) -> float:
    """A row of padding alone gets finite outputs, with gradients and without."""
    ready = Ready(subject)
    for stream in range(-subject.streams, 0):
        streams = batch_of(subject, subject.sides[0])
        longer = _with_an_empty_row(streams, subject.pad_id, stream)
        for gradients in (True, False):
            with torch.set_grad_enabled(gradients):
                bad = ~ready(*longer)[BATCH].isfinite()
            expect(
                not bad.any(),
                f"A row of padding alone{role(subject, stream)} gets {int(bad.sum())} outputs that "
                "are NaN or Inf: a softmax over nothing but -inf is 0/0. A mean over the batch "
                "makes the whole loss NaN.",
                float(bad.sum()),
            )
    return 0.0


@model_check("robust", "gradients that are not finite", TORCH + "issues/41508")
def a_row_of_padding_gives_no_nan_gradients(subject: EncoderSubject) -> float:
    """A row of padding alone in the batch leaves every parameter gradient finite."""
    ready = Ready(subject)
    for stream in range(-subject.streams, 0):
        streams = batch_of(subject, subject.sides[0])
        found = ready.gradients(*_with_an_empty_row(streams, subject.pad_id, stream))
        bad = [name for name, gradient in found.items() if not gradient.isfinite().all()]
        expect(
            not bad,
            f"A row of padding alone{role(subject, stream)} makes the gradients of {len(bad)} of "
            f"{len(found)} parameters NaN or Inf, though the loss leaves it out: one such row "
            "ruins the model at the next step.",
            float(len(bad)),
        )
    return 0.0


def _half_dtypes(subject: EncoderSubject) -> list[torch.dtype]:
    found = [d for d in (torch.bfloat16, torch.float16) if d in subject.dtypes]
    needs(found, "it does not declare half precision")
    castable = isinstance(subject.fn, nn.Module) or subject.takes == "embeddings"
    needs(castable, "it is not an nn.Module, to be cast")
    return found


@model_check("robust", "outputs that are not finite", HF + "pull/17306")
def half_precision_gets_no_nan(subject: EncoderSubject) -> float:
    """In bfloat16 and float16 the outputs of real tokens are finite."""
    for dtype in _half_dtypes(subject):
        ready = Ready(subject, dtype)
        for name, where in layouts(subject).items():
            bad = ~ready.real(*batch_of(subject, where, extra=1)).isfinite()
            expect(
                not bad.any(),
                f"In {dtype} with {name}, {int(bad.sum())} outputs are NaN or Inf. Is the mask a "
                "constant that this dtype cannot hold? float16 ends at 65504.",
                float(bad.sum()),
            )
    return 0.0


@model_check("robust", "largest change of an output")
def half_precision_ignores_padding_too(subject: EncoderSubject) -> float:
    """In bfloat16 and float16 other tokens at padding change no bit of the outputs."""
    return max(
        _content_is_irrelevant(subject, _half_dtypes(subject), stream)
        for stream in range(-subject.streams, 0)
    )


def _filled(streams: list[Stream], fill: Callable[[Tensor], Tensor]) -> Callable:
    """A change of the embeddings: fill(embedding) at padding, the rest as it was."""
    return lambda i, x: x.where((streams[i][1] != 0).unsqueeze(-1), fill(x))


@model_check(
    "robust",
    "largest change of an output",
    "https://github.com/flashinfer-ai/flashinfer/issues/4267",
)
def large_numbers_in_padding_are_irrelevant(subject: EncoderSubject) -> float:
    """Embeddings of padding that are 10⁵ times larger change no bit of the outputs."""
    ready = Ready(subject)
    for name, where in layouts(subject).items():
        for stream in range(-subject.streams, 0):
            streams = batch_of(subject, where, 1, stream)
            before = ready.real(*streams)
            for factor in (1e5, -1e5):
                after = ready.real(*streams, change=_filled(streams, lambda x, f=factor: f * x))
                change = max_abs((after - before).double())
                expect(
                    torch.equal(before, after),
                    f"With {name}{role(subject, stream)} whose embeddings are large, real outputs "
                    f"move by {change:.3g}: is a finite number added to the scores, instead of "
                    "-inf? A score can be larger.",
                    change,
                )
    return 0.0


# ---- strict --------------------------------------------------------------------------------------


@model_check("strict", "outputs changed", TORCH + "issues/101967")
def nan_in_padding_reaches_no_output(subject: EncoderSubject) -> float:
    """NaN or Inf in the embeddings of padding changes no bit of the outputs at real tokens."""
    ready = Ready(subject)
    for name, where in layouts(subject).items():
        for stream in range(-subject.streams, 0):
            streams = batch_of(subject, where, 1, stream)
            before = ready.real(*streams)
            for poison in (NAN, float("inf")):
                spoil = _filled(streams, lambda x, p=poison: torch.full_like(x, p))
                bad = int((ready.real(*streams, change=spoil) != before).any(-1).sum())
                expect(
                    bad == 0,
                    f"With {name}{role(subject, stream)} and {poison} in its embeddings, {bad} of "
                    f"{len(before)} real outputs change: 0 · NaN is NaN, so a weight of 0 does not "
                    "help. Fill padding with zeros before any product.",
                    float(bad),
                )
    return 0.0


@model_check("strict", "gradients changed", TORCH + "issues/101967")
def nan_in_padding_reaches_no_gradient(subject: EncoderSubject) -> float:
    """NaN in the embeddings of padding changes no bit of any parameter's gradient."""
    ready = Ready(subject)
    for name, where in layouts(subject).items():
        for stream in range(-subject.streams, 0):
            streams = batch_of(subject, where, 1, stream)
            wanted = ready.gradients(*streams)
            spoil = _filled(streams, lambda x: torch.full_like(x, NAN))
            found = ready.gradients(*streams, change=spoil)
            bad = [n for n in wanted if n not in found or not torch.equal(wanted[n], found[n])]
            expect(
                not bad,
                f"With {name}{role(subject, stream)} and NaN in its embeddings, the gradients of "
                f"{len(bad)} of {len(wanted)} parameters change, {bad[0] if bad else ''} for one: "
                "on the way back too, 0 · NaN is NaN.",
                float(len(bad)),
            )
    return 0.0


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
