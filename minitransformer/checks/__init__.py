"""The conformance suite: does an implementation keep the promises that masks are about?

    from minitransformer.checks import check_attention
    print(check_attention(my_attention))  # any function (query, key, value, mask) -> output

Each `check_...` takes a callable and gives a Report. `tier` says how much is asked of it: "core",
"robust" or "strict"; `seconds` is the longest that one check may take; every other argument
declares what the callable takes and promises, where that is not the default: each docstring names
the subject class that lists them. A subject can also be made first: `AttentionSubject(fn, ...)`.
"""

from collections.abc import Callable
from typing import Any

from minitransformer.checks.attention.subject import AttentionSubject, attention_weights_of
from minitransformer.checks.caches.subject import CachedDecoderSubject
from minitransformer.checks.engine.bugs import bugs
from minitransformer.checks.engine.check import CHECKS, TIERS, at_most, checks_of, expect, needs
from minitransformer.checks.engine.diagnosis import diagnose, examine
from minitransformer.checks.engine.report import Report, Result
from minitransformer.checks.engine.running import run_checks
from minitransformer.checks.engine.subject import SUBJECTS, Subject
from minitransformer.checks.generators.subject import GeneratorSubject
from minitransformer.checks.labels.subject import CollatorSubject, LabelsSubject
from minitransformer.checks.losses.subject import LossSubject
from minitransformer.checks.masks.subject import MaskSubject
from minitransformer.checks.models.subject import (
    DecoderSubject,
    EncoderDecoderSubject,
    EncoderSubject,
)


def check_attention(
    fn: Callable, *, tier: str = "core", seconds: float = 20.0, **declared: Any
) -> Report:
    """Check an attention function `fn(query, key, value, mask) -> output` or `(output, weights)`.

    Declarations: AttentionSubject.
    """
    return _check("attention", fn, tier, seconds, declared)


def check_mask(
    fn: Callable, *, tier: str = "core", seconds: float = 20.0, **declared: Any
) -> Report:
    """Check a function that builds a mask from an attention_mask: `fn(attention_mask) -> mask`.

    Declarations: MaskSubject.
    """
    return _check("mask", fn, tier, seconds, declared)


def check_encoder(
    fn: Callable, *, tier: str = "core", seconds: float = 20.0, **declared: Any
) -> Report:
    """Check an encoder `fn(input_ids, attention_mask) -> hidden states or logits`.

    Declarations: EncoderSubject.
    """
    return _check("encoder", fn, tier, seconds, declared)


def check_layer(
    fn: Callable, *, tier: str = "core", seconds: float = 20.0, **declared: Any
) -> Report:
    """Check a layer with projections of its own `fn(x, attention_mask) -> (B,T,X)`, x (B,T,16).

    It is an encoder that takes embeddings. Declarations: EncoderSubject, d_model among them.
    """
    return _check("encoder", fn, tier, seconds, {"takes": "embeddings"} | declared)


def check_decoder(
    fn: Callable, *, tier: str = "core", seconds: float = 20.0, **declared: Any
) -> Report:
    """Check a decoder-only model `fn(input_ids, attention_mask) -> logits`.

    Declarations: DecoderSubject.
    """
    return _check("decoder", fn, tier, seconds, declared)


def check_cached_decoder(
    fn: Callable, *, tier: str = "core", seconds: float = 20.0, **declared: Any
) -> Report:
    """Check a decoder with a KV cache `fn(input_ids, attention_mask, past) -> (logits, past)`.

    Declarations: CachedDecoderSubject.
    """
    return _check("cached-decoder", fn, tier, seconds, declared)


def check_encoder_decoder(
    fn: Callable, *, tier: str = "core", seconds: float = 20.0, **declared: Any
) -> Report:
    """Check a model `fn(source_ids, source_mask, target_ids, target_mask) -> logits`.

    Declarations: EncoderDecoderSubject.
    """
    return _check("encoder-decoder", fn, tier, seconds, declared)


def check_loss(
    fn: Callable, *, tier: str = "core", seconds: float = 20.0, **declared: Any
) -> Report:
    """Check a loss `fn(logits, labels) -> scalar` that ignores the label -100.

    Declarations: LossSubject.
    """
    return _check("loss", fn, tier, seconds, declared)


def check_labels(
    fn: Callable, *, tier: str = "core", seconds: float = 20.0, **declared: Any
) -> Report:
    """Check a function that builds labels: `fn(input_ids, attention_mask) -> labels`.

    Declarations: LabelsSubject.
    """
    return _check("labels", fn, tier, seconds, declared)


def check_collator(
    fn: Callable, *, tier: str = "core", seconds: float = 20.0, **declared: Any
) -> Report:
    """Check a collator: `fn(rows) -> batch` with input_ids, attention_mask and perhaps labels.

    Declarations: CollatorSubject.
    """
    return _check("collator", fn, tier, seconds, declared)


def check_generator(
    fn: Callable, *, tier: str = "core", seconds: float = 20.0, **declared: Any
) -> Report:
    """Check a generator `fn(model, input_ids, attention_mask, max_new_tokens)`.

    Declarations: GeneratorSubject.
    """
    return _check("generator", fn, tier, seconds, declared)


def _check(kind: str, fn: Any, tier: str, seconds: float, declared: dict[str, Any]) -> Report:
    if not isinstance(fn, Subject):
        fn = SUBJECTS[kind](fn, **declared)
    elif fn.kind != kind:
        raise TypeError(f"{fn.name} was declared as {fn.kind}, not as {kind}")
    elif declared:
        raise TypeError(f"{fn.name} is a subject already: declare {', '.join(declared)} there")
    return examine(fn, tier, seconds)


def parametrize_with_checks(*arguments: Any, **options: Any) -> Any:
    """A decorator for a test of (subject, check): see `minitransformer.checks.pytest_plugin`."""
    from minitransformer.checks import pytest_plugin

    return pytest_plugin.parametrize_with_checks(*arguments, **options)


__all__ = [
    "CHECKS",
    "SUBJECTS",
    "TIERS",
    "AttentionSubject",
    "CachedDecoderSubject",
    "CollatorSubject",
    "DecoderSubject",
    "EncoderDecoderSubject",
    "EncoderSubject",
    "GeneratorSubject",
    "LabelsSubject",
    "LossSubject",
    "MaskSubject",
    "Report",
    "Result",
    "Subject",
    "at_most",
    "attention_weights_of",
    "bugs",
    "check_attention",
    "check_cached_decoder",
    "check_collator",
    "check_decoder",
    "check_encoder",
    "check_encoder_decoder",
    "check_generator",
    "check_labels",
    "check_layer",
    "check_loss",
    "check_mask",
    "checks_of",
    "diagnose",
    "examine",
    "expect",
    "needs",
    "parametrize_with_checks",
    "run_checks",
]
