"""The attention viewer: every layer and head of a model on some texts, as one page."""

import base64
import json
import zlib
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from minitransformer.inference.prepacked import evaluation_view
from minitransformer.inference.record import Attended, attended, record_attention
from minitransformer.pages.page import Page

MOST = 128  # queries and keys of a text that are shown
STEPS = 253  # from the smallest weight to 1, equal steps of its square root
NAN = 255
PADDING, DOCUMENT, FUTURE, WINDOW = range(1, 5)  # why a key is masked; 0 is none
TITLES = {
    "encoder.attention": "Encoder self-attention",
    "decoder.attention": "Decoder self-attention",
    "decoder.cross_attention": "Cross-attention",
}

Names = Callable[[list[int]], Sequence[str]]  # token ids -> their names


def attention_page(
    model: nn.Module,
    *inputs: Tensor,
    names: Names,
    texts: Sequence[str] = (),
    title: str = "Attention",
) -> Page:
    """Run a model on `inputs` and show where every head looks, as one self-contained page.

    `inputs` are what the model takes: (B,T) ids and attention_mask, and of an EncoderDecoder those
    of the target, too. `names` gives the names of token ids, as `vocabulary.names` or a tokenizer's
    `convert_ids_to_tokens` do; `texts` are the B rows as the page lists them. The page says whether
    all weights on masked keys are exactly 0. That is counted over everything, before weights are
    rounded to 8 bits (0 stays 0, and nothing else becomes 0) and cut to the first 128 tokens.

    Raises TypeError for a model that is not an EncoderOnly, DecoderOnly, EncoderDecoder or a
    Classifier, and ValueError for another number of texts.

    >>> page = attention_page(model, input_ids, attention_mask, names=vocabulary.names)
    >>> page.save("attention.html")
    """
    body = evaluation_view(getattr(model, "body", model))  # of a classifier
    rows = len(inputs[0])
    if texts and len(texts) != rows:
        raise ValueError(f"texts must be those of the {rows} rows of the batch, got {len(texts)}")
    kinds = attended(body, *inputs)
    with record_attention(body) as maps, torch.no_grad():
        body(*inputs)
    size = sum(parameter.numel() for parameter in model.parameters())
    return _fill(
        {
            "title": title,
            "about": f"{type(model).__name__}, {size:,} parameters",
            "texts": list(texts) or [f"row {row}" for row in range(rows)],
            "kinds": [_kind(kind, torch.stack(kind.layers(maps), 1), names) for kind in kinds],
        }
    )


def token_names(ids: Tensor, attention_mask: Tensor, names: Names) -> list[str | None]:
    """The name of each token of a row (length,), and None for padding."""
    pairs = zip(names(ids.tolist()), attention_mask.tolist(), strict=True)
    return [str(name) if is_real else None for name, is_real in pairs]


def _fill(data: dict[str, Any]) -> Page:
    """The viewer with its data, of which nothing can end or change the element it stands in."""
    text = json.dumps(data, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return Page(Page.read("viewer.html").replace("__DATA__", text.replace("<", r"\u003c")))


def _kind(kind: Attended, weights: Tensor, names: Names) -> dict[str, Any]:
    """One kind of attention, with its weights (B,L,H,Q,K): a panel for each row of the batch."""
    reasons, panels = _reasons(kind), []
    for row in range(len(weights)):
        query = token_names(kind.query_ids[row, :MOST], kind.query_mask[row, :MOST], names)
        key = token_names(kind.key_ids[row, :MOST], kind.key_mask[row, :MOST], names)
        panels.append({"queries": query, "keys": key, **_panel(reasons[row], weights[row])})
    return {
        "name": TITLES[kind.name],
        "is_cross": kind.query_ids is not kind.key_ids,
        "layers": weights.shape[1],
        "heads": weights.shape[2],
        "panels": panels,
    }


def _reasons(kind: Attended) -> Tensor:
    """Why each key is masked for each query, (B,Q,K) uint8: the first of the reasons that holds."""
    query, key = kind.query_mask[:, :, None], kind.key_mask[:, None, :]
    later = torch.ones_like(kind.mask[0, 0]).triu(1)
    reasons = torch.where(later, FUTURE, WINDOW)
    reasons = torch.where(query != key, DOCUMENT, reasons)
    reasons = torch.where((query == 0) | (key == 0), PADDING, reasons)
    return reasons.masked_fill(kind.mask[:, 0], 0).to(torch.uint8)


def _panel(reasons: Tensor, weights: Tensor) -> dict[str, Any]:
    """What is counted over all weights (L,H,Q,K), and those that are shown."""
    queries, keys = reasons.shape
    masked = weights[..., reasons != 0]
    left_out = (
        f"Shown: the first {min(queries, MOST)} of {queries} queries and the first "
        f"{min(keys, MOST)} of {keys} keys. The sentence above counts all."
    )
    return {
        "cells": _packed(reasons[:MOST, :MOST], weights[..., :MOST, :MOST]),
        "masked": masked.numel(),
        "leaks": int((masked != 0).sum()),
        "largest": max(masked[masked > 0].tolist(), default=0.0),
        "nan": int(weights.isnan().sum()),
        "left_out": left_out if max(queries, keys) > MOST else "",
    }


def _packed(reasons: Tensor, weights: Tensor) -> str:
    """A byte for each reason (Q,K), then for each weight (L,H,Q,K), deflated, in base64.

    The byte of a weight is 0 for exactly 0 and for nothing else, 255 for NaN, and from 1 to 254 a
    step of its square root, which keeps small weights apart: they are off by at most 0.004.
    """
    steps = 1 + (weights.float().clamp(0, 1).sqrt() * STEPS).round()
    codes = steps.masked_fill(weights == 0, 0).masked_fill(weights.isnan(), NAN)
    cells = torch.cat([reasons.flatten(), codes.flatten().to(torch.uint8)])
    return base64.b64encode(zlib.compress(bytes(cells.tolist()), 9)).decode()
