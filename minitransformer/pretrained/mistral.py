"""Mistral (Jiang et al. 2023, arXiv:2310.06825) and Qwen2 (arXiv:2407.10671): Llama with a window.

Qwen2's queries, keys and values have a bias.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from minitransformer.contract import check_integer
from minitransformer.models import Model
from minitransformer.pretrained.llama import LLAMA

WINDOW = ("sliding_window", 4096)
FULL, SLIDING = "full_attention", "sliding_attention"

MISTRAL = replace(
    LLAMA,
    model_type="mistral",
    style="mistral",
    models=dict.fromkeys(LLAMA.models, "MistralForCausalLM"),
    bare="MistralModel",
    classifier="MistralForSequenceClassification",
    numbers={
        **LLAMA.numbers,
        "num_kv_heads": ("num_key_value_heads", 8),
        "max_length": ("max_position_embeddings", 131_072),
        "window": WINDOW,
    },
    fixed={},
)


def extra(theirs: Mapping[str, Any]) -> dict[str, Any]:
    return {**LLAMA.extra(theirs), "window": window(theirs)}


def window(theirs: Mapping[str, Any]) -> int | None:
    """The window of every layer; where only some have one, there is no part for that."""
    size = theirs.get(*WINDOW) if theirs.get("use_sliding_window") else None
    kinds = kinds_of_layers(theirs, size is not None)
    if len(kinds) > 1:
        key = "max_window_layers" if theirs.get("layer_types") is None else "layer_types"
        raise ValueError(
            f"{key} is {theirs.get(key)!r}: a window in some layers; only all or none can be read"
        )
    if kinds == {SLIDING} and size is None:
        raise ValueError(f"layer_types names {SLIDING}, but sliding_window is not used")
    return size if kinds == {SLIDING} else None


def kinds_of_layers(theirs: Mapping[str, Any], windowed: bool) -> set[str]:
    """As `layer_types` says; without it layers from `max_window_layers` on have the window."""
    layers, kinds = theirs["num_hidden_layers"], theirs.get("layer_types")
    if kinds is not None:
        return checked_kinds(kinds, layers)
    first = theirs.get("max_window_layers", 28)
    check_integer("max_window_layers", first, 0)
    if not windowed or first >= layers:
        return {FULL}
    return {SLIDING} if first == 0 else {FULL, SLIDING}


def checked_kinds(kinds: Any, layers: int) -> set[str]:
    known = isinstance(kinds, list) and all(kind in (FULL, SLIDING) for kind in kinds)
    if not known or len(kinds) != layers:
        raise ValueError(f"layer_types must be {layers} of {FULL} or {SLIDING}, got {kinds!r}")
    return set(kinds)


def describe(model: Model) -> dict[str, Any]:
    windowed = model.config.window is not None
    first = 0 if windowed else model.config.num_layers
    windows = {"use_sliding_window": windowed, "max_window_layers": first}
    return {**LLAMA.describe(model), **windows}


QWEN2 = replace(
    MISTRAL,
    model_type="qwen2",
    style="qwen2",
    models=dict.fromkeys(LLAMA.models, "Qwen2ForCausalLM"),
    bare="Qwen2Model",
    classifier="Qwen2ForSequenceClassification",
    numbers={
        **MISTRAL.numbers,
        "num_kv_heads": ("num_key_value_heads", 32),
        "max_length": ("max_position_embeddings", 32_768),
    },
    switches=(*LLAMA.switches, "use_sliding_window"),
    extra=extra,
    describe=describe,
)
