"""What must hold from one call to the next: inference mode, and masks that are written to.

A subject may keep something for its next call: a table of positions, a buffer, what it read off a
mask. Tensors made inside torch.inference_mode have no version counter and can neither be written
to nor saved for a backward pass afterwards; and a tensor that is the same object as before need
not hold the same numbers. Every kind of subject is asked by the same two functions.
"""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from minitransformer.checks.engine.check import Failed, NotApplicable, at_most, check

Answers = dict[str, Tensor]  # by what was asked
Call = Callable[[list[Tensor]], Tensor]  # of the masks, the other arguments being the same


def changed(found: Tensor, wanted: Tensor) -> float:
    """How many numbers differ; NaN equals NaN."""
    if found.shape != wanted.shape:
        return float("nan")
    both_nan = (found != found) & (wanted != wanted)
    return float(((found != wanted) & ~both_nan).sum())


# ---- inference mode ------------------------------------------------------------------------------

CAUSES = {  # what torch says -> what it means
    "version counter": "A tensor is asked for its `_version`, as caches and guards do, and a "
    "tensor made in this mode has none. Make what is kept of a mask once for each call, and hand "
    "it to all layers.",
    "saved for backward": "A tensor made in this mode, such as a table of positions that the first "
    "call fills, is kept and then trained with. Make it in __init__, as a buffer; or keep a clone "
    "made outside.",
    "nplace update": "A tensor made in this mode, such as a buffer or a running mean, is kept and "
    "then written to. Make it before, or write to a clone.",
}


def asked_inside_inference_mode(
    kind: str, asked: Callable[[Any], Answers], prepared: Callable[[Any], Any] = lambda x: x
) -> None:
    """Register the check for a kind of subject: all that it is asked, by name, of `prepared` it."""

    def inside_inference_mode_it_is_the_same(subject: Any) -> Iterator[float]:
        """Inside torch.inference_mode it gives what it gives under no_grad, and leaves no trace.

        Inside first, so that what a first call makes is made there.
        """
        ready = prepared(subject)
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
            yield at_most(
                0.0,
                changed(found[name], wanted[name]),
                f"With {name}, {{measured}} numbers inside torch.inference_mode are others than "
                "under torch.no_grad: which path is taken only there, and does it get the mask?",
            )

    check(
        kind,
        "robust",
        measures="numbers changed",
        mirrors=(
            "https://github.com/k2-fsa/k2/issues/1210",
            "https://github.com/Dao-AILab/flash-attention/pull/299",
            "https://github.com/Lightning-AI/torchmetrics/issues/1993",
        ),
    )(inside_inference_mode_it_is_the_same)


def _fail(when: str, error: Exception) -> None:
    says = str(error).strip().split("\n")[0].split(".")[0]
    cause = next((text for words, text in CAUSES.items() if words in str(error)), "")
    raise Failed(f"{when} it raises {type(error).__name__}: {says}. {cause}".strip())


# ---- masks that are written to -------------------------------------------------------------------

WRITES: dict[str, Callable[[Tensor, Tensor], Any]] = {
    "mask.copy_()": lambda mask, other: mask.copy_(other),
    "mask.data.copy_(), as through mask.numpy(),": lambda mask, other: mask.data.copy_(other),
}


def masks_are_written_to(
    kind: str, masks_of: Callable[[Any], tuple[Call, list[Tensor], list[Tensor]]]
) -> None:
    """Register the check for a kind of subject: how it is called, its masks before and after."""

    @torch.no_grad()
    def a_mask_that_is_written_to_is_read_anew(subject: Any) -> Iterator[float]:
        """A mask that was written to since the last call gives what a new tensor like it gives."""
        call, before, after = masks_of(subject)
        for how, write in WRITES.items():
            given = [mask.clone() for mask in before]
            call(given)
            for mask, other in zip(given, after, strict=True):
                write(mask, other)
            found, wanted = call(given), call([other.clone() for other in after])
            yield at_most(
                0.0,
                changed(found, wanted),
                f"After {how} {{measured}} numbers are still those of the mask as it was before. "
                "Is what was read off it kept with the tensor (its id, address or `_version`, "
                "which a write through .data does not change)?",
            )

    check(
        kind,
        "robust",
        measures="numbers that are those of the old mask",
        mirrors="https://github.com/unslothai/unsloth/pull/10879",
    )(a_mask_that_is_written_to_is_read_anew)
