"""What must hold from one call to the next: inference mode, and masks that are written to.

A subject may keep something for its next call: a table of positions, a buffer, what it read off a
mask. Tensors made inside torch.inference_mode have no version counter and can neither be written
to nor saved for a backward pass afterwards; and a tensor that is the same object as before need
not hold the same numbers. Every kind of subject is asked by the same two functions.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from minitransformer.checks.attention import key_masks, make_inputs, masks
from minitransformer.checks.building import PAD, TOKEN, MaskSubject, batches
from minitransformer.checks.generators import PROMPTS, GeneratorSubject, the_model
from minitransformer.checks.labels import END, CollatorSubject, LabelsSubject, label_batches
from minitransformer.checks.losses import LossSubject, make_batch
from minitransformer.checks.models import EncoderSubject, Ready, batch_of, laid_out, layouts
from minitransformer.checks.probes import AttentionSubject
from minitransformer.checks.subject import expect, needs
from minitransformer.checks.suite import Failed, NotApplicable, check

MODELS = ("encoder", "decoder", "encoder-decoder")
Answers = dict[str, Tensor]  # by what was asked
Call = Callable[[list[Tensor]], Tensor]  # of the masks, the other arguments being the same


def changed(found: Tensor, wanted: Tensor) -> float:
    """How many numbers differ; NaN equals NaN."""
    if found.shape != wanted.shape:
        return float("nan")
    both_nan = (found != found) & (wanted != wanted)
    return float(((found != wanted) & ~both_nan).sum())


# ---- inference mode: what each kind of subject is asked ------------------------------------------


def _of_attention(subject: AttentionSubject) -> Answers:
    inputs = [x.requires_grad_(subject.differentiable) for x in make_inputs(subject)]
    return {
        name: subject(*inputs, mask).where(mask.any(-1, True), 0.0)
        for name, mask in masks(subject).items()
    }


def _of_model(ready: Ready) -> Answers:
    wheres = {"no padding": "full"} | layouts(ready.subject)
    return {name: ready.real(*batch_of(ready.subject, where)) for name, where in wheres.items()}


def _of_loss(subject: LossSubject) -> Answers:
    logits, labels = make_batch(subject)
    return {"labels that end early": subject(logits.requires_grad_(), labels)}


def _of_mask(subject: MaskSubject) -> Answers:
    return {name: subject(attention_mask) for name, attention_mask in batches(subject).items()}


def _of_labels(subject: LabelsSubject) -> Answers:
    return {name: subject(*batch) for name, batch in label_batches(subject).items()}


def _of_collator(subject: CollatorSubject) -> Answers:
    """A longer row than in any other check: a buffer that grows is made here."""
    batch = subject([[4, END], [*(3 + i % 6 for i in range(60)), END]])
    names = ("input_ids", "attention_mask", "labels")
    return {name: x for name, x in zip(names, batch, strict=True) if x is not None}


def _of_generator(subject: GeneratorSubject) -> Answers:
    """A longer text than in any other check: a buffer that grows is made here."""
    rows = subject(PROMPTS, new=12, extra=8)
    return {f"prompt {i}": torch.tensor(row) for i, row in enumerate(rows)}


ASKED: dict[str, Callable[[Any], Answers]] = {
    "attention": _of_attention,
    "mask": _of_mask,
    **dict.fromkeys(MODELS, _of_model),
    "loss": _of_loss,
    "labels": _of_labels,
    "collator": _of_collator,
    "generator": _of_generator,
}

CAUSES = {  # what torch says -> what is most likely wrong
    "version counter": "A tensor is asked for its `_version`, as caches and guards do, and a "
    "tensor made in this mode has none. Make what is kept of a mask once for each call, and hand "
    "it to all layers.",
    "saved for backward": "A tensor made in this mode, such as a table of positions that the first "
    "call fills, is kept and then trained with. Make it in __init__, as a buffer; or keep a clone "
    "made outside.",
    "nplace update": "A tensor made in this mode, such as a buffer or a running mean, is kept and "
    "then written to. Make it before, or write to a clone.",
}


def inside_inference_mode_it_is_the_same(subject: Any) -> float:
    """Inside torch.inference_mode it gives what it gives under no_grad, and leaves no trace.

    Inside first, so that what a first call makes is made there.
    """
    asked = ASKED[subject.bank]
    if subject.bank == "generator":
        the_model(str(subject.device))  # the suite's own is made outside
    ready = Ready(subject) if subject.bank in MODELS else subject
    raised, found, wanted = None, {}, {}
    try:
        with torch.inference_mode():
            found = asked(ready)
    except (Failed, NotApplicable):
        raise
    except Exception as error:
        raised = error
    try:
        asked(ready)  # with gradients: what was kept may be saved for a backward pass
        with torch.no_grad():
            wanted = asked(ready)
    except RuntimeError as error:
        if "nference" not in str(error):
            raise
        _fail("After a call inside torch.inference_mode", error)
    if raised is not None:
        _fail("Inside torch.inference_mode, but not under torch.no_grad,", raised)
    for name in wanted:
        number = changed(found[name], wanted[name])
        expect(
            number == 0.0,
            f"With {name}, {number:.0f} numbers inside torch.inference_mode are others than under "
            "torch.no_grad: which path is taken only there, and does it get the mask?",
            number,
        )
    return 0.0


def _fail(when: str, error: Exception) -> None:
    says = str(error).strip().split("\n")[0].split(".")[0]
    cause = next((text for words, text in CAUSES.items() if words in str(error)), "")
    raise Failed(f"{when} it raises {type(error).__name__}: {says}. {cause}".strip())


for _bank in ASKED:
    check(
        _bank,
        "robust",
        measures="numbers changed",
        mirrors=(
            "https://github.com/k2-fsa/k2/issues/1210",
            "https://github.com/Dao-AILab/flash-attention/pull/299",
            "https://github.com/Lightning-AI/torchmetrics/issues/1993",
        ),
    )(inside_inference_mode_it_is_the_same)


# ---- masks that are written to -------------------------------------------------------------------


def _masks_of_attention(subject: AttentionSubject) -> tuple[Call, list[Tensor], list[Tensor]]:
    before, after = (key_masks(subject)[name] for name in ("padding on the right", "holes"))
    inputs = make_inputs(subject)
    (*first, mask), *_ = subject.calls(*inputs, before)
    (*_, other), *_ = subject.calls(*inputs, after)
    return lambda given: subject.answer(subject.call(*first, *given))[0], [mask], [other]


def _masks_of_model(subject: EncoderSubject) -> tuple[Call, list[Tensor], list[Tensor]]:
    ready = Ready(subject)
    streams = [laid_out(subject, i, subject.sides[0]) for i in range(subject.streams)]
    ids = [ready.table[ids] if subject.takes == "embeddings" else ids for ids, _ in streams]

    def call(given: list[Tensor]) -> Tensor:
        arguments = [x for pair in zip(ids, given, strict=True) for x in pair]
        return ready._answer(ready.fn(*arguments), streams[-1][0].shape)

    before = [subject.present(mask, ready.dtype) for _, mask in streams]
    after = [subject.present(torch.ones_like(mask), ready.dtype) for _, mask in streams]
    return call, before, after


def _masks_of_builder(subject: MaskSubject) -> tuple[Call, list[Tensor], list[Tensor]]:
    needs(subject.takes != "length", "it is given numbers")
    found = [batches(subject)[name] for name in ("padding on the right", "holes")]
    if subject.takes == "ids":
        found = [torch.where(mask == 0, PAD, TOKEN) for mask in found]
    return lambda given: subject.call(*given), found[:1], found[1:]


MASKS: dict[str, Callable[[Any], tuple[Call, list[Tensor], list[Tensor]]]] = {
    "attention": _masks_of_attention,
    "mask": _masks_of_builder,
    **dict.fromkeys(MODELS, _masks_of_model),
}

WRITES: dict[str, Callable[[Tensor, Tensor], Any]] = {
    "mask.copy_()": lambda mask, other: mask.copy_(other),
    "mask.data.copy_(), as through mask.numpy(),": lambda mask, other: mask.data.copy_(other),
}


@torch.no_grad()
def a_mask_that_is_written_to_is_read_anew(subject: Any) -> float:
    """A mask that was written to since the last call gives what a new tensor like it gives."""
    call, before, after = MASKS[subject.bank](subject)
    for how, write in WRITES.items():
        given = [mask.clone() for mask in before]
        call(given)
        for mask, other in zip(given, after, strict=True):
            write(mask, other)
        found, wanted = call(given), call([other.clone() for other in after])
        number = changed(found, wanted)
        expect(
            number == 0.0,
            f"After {how} {number:.0f} numbers are still those of the mask as it was before: what "
            "was read off it is kept by the tensor (its id, address or `_version`, which a write "
            "through .data does not change). Make it anew for each call, and hand it along.",
            number,
        )
    return 0.0


for _bank in MASKS:
    check(
        _bank,
        "robust",
        measures="numbers that are those of the old mask",
        mirrors="https://github.com/unslothai/unsloth/pull/10879",
    )(a_mask_that_is_written_to_is_read_anew)
