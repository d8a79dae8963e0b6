"""The pictures of a run: its loss, and where its model looks."""

import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from minitransformer.data import Batch, PairBatch, pad
from minitransformer.data.files import naming
from minitransformer.inference.answering import end_of, padded
from minitransformer.inference.generation import generate
from minitransformer.inference.record import record_attention
from minitransformer.masks import causal_mask, padding_mask
from minitransformer.models import DecoderOnly, EncoderDecoder
from minitransformer.training.run import Run

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def loss_picture(run: Run) -> "Figure":
    """The loss of every step, and the results on held-out examples."""
    from minitransformer import visualize

    steps, losses = [row["step"] for row in run.history], [row["loss"] for row in run.history]
    curves = {"training": (steps, losses)}
    results = {"exact_match", "held_out_loss"}
    evaluated = [row for row in run.history if results & row.keys()]
    at = [row["step"] for row in evaluated]
    scores = None
    if evaluated and "exact_match" in evaluated[0]:
        scores = {"held out": (at, [row["exact_match"] for row in evaluated])}
    elif evaluated:
        curves["held out"] = (at, [row["held_out_loss"] for row in evaluated])
    return visualize.curve_figure(curves, scores, title=f"Training: {run.task}")


def attention_pictures(
    run: Run, texts: Sequence[str], layer: int = -1, draw: Sequence[int] | None = None
) -> Iterator[tuple[str, "Figure"]]:
    """One figure for each kind of attention and text, as (file name, figure).

    The texts go through the model as one ragged batch, so the shorter ones show their padding.
    Of long ones the first 64 tokens are drawn. `layer` counts from 0, or from the end if negative;
    `draw` picks texts by number.
    """
    from minitransformer import visualize

    model = getattr(run.model, "body", run.model)  # of a classifier
    if not -model.config.num_layers <= layer < model.config.num_layers:
        layers = model.config.num_layers
        raise ValueError(f"layer must be from {-layers} to {layers - 1}, got {layer}")
    layer %= model.config.num_layers
    batch, answers = _run_on(run, texts)
    on_device = batch.to(run.device)
    with record_attention(model) as maps, torch.no_grad():
        if isinstance(on_device, PairBatch):
            model.loss(**on_device)
        else:
            model(on_device.input_ids, on_device.attention_mask, on_device.segment_ids)

    for name, queries, keys, mask in _attentions(run, batch):
        stack, kind = name.split(".")
        weights = maps[f"{stack}.layers.{layer}.{kind}"]
        for i in range(len(texts)) if draw is None else draw:
            what = f"{_TITLES[name]}, layer {layer}: {_one_line(answers[i] or texts[i])}"
            if answers[i]:
                what += f" ← {_one_line(texts[i])}"
            figure = visualize.attention_figure(
                weights[i, :, :MOST, :MOST],
                mask[i, :, :MOST, :MOST],
                queries[i][:MOST],
                keys[i][:MOST],
                title=what,
            )
            file_name = f"{_FILE_NAMES[name]}{_slug(texts[i], i) if draw is None else ''}.png"
            yield file_name, figure


MOST = 64  # queries and keys in one picture

_TITLES = {
    "encoder.attention": "Encoder self-attention",
    "decoder.attention": "Decoder self-attention",
    "decoder.cross_attention": "Cross-attention",
}
_FILE_NAMES = {
    "encoder.attention": "encoder_self_attention",
    "decoder.attention": "decoder_self_attention",
    "decoder.cross_attention": "cross_attention",
}


def _run_on(run: Run, texts: Sequence[str]) -> tuple[Batch | PairBatch, list[str]]:
    """The texts as a padded batch, with the model's answers where it gives any."""
    if isinstance(run.model, EncoderDecoder):
        limit = min(MOST, run.model.config.max_length) - 1
        source = padded(run.model, run.vocabulary, texts)
        ends = end_of(run.model, run.vocabulary)
        ids, mask = source.input_ids.to(run.device), source.attention_mask.to(run.device)
        rows = generate(run.model, ids, mask, limit, eos_id=ends)
        ends = {ends} if isinstance(ends, int) else set(ends or ())
        written = [[token for token in row.tolist() if token not in ends] for row in rows]
        answers = [run.vocabulary.decode(row) for row in written]
        pad_id = run.vocabulary.pad_id or 0
        target = pad([[run.model.config.bos_id, *row] for row in written], pad_id)
        batch = PairBatch(
            source.input_ids,
            source.attention_mask,
            target.input_ids,
            target.attention_mask,
            torch.zeros_like(target.input_ids),
        )
        return batch, answers
    return padded(run.model, run.vocabulary, texts), [""] * len(texts)


def _attentions(
    run: Run, batch: Batch | PairBatch
) -> Iterator[tuple[str, list[list[str | None]], list[list[str | None]], Tensor]]:
    """Each kind of attention: its name, the tokens of queries and keys, and its mask."""
    if isinstance(batch, Batch):
        tokens = _tokens(run, batch.input_ids, batch.attention_mask)
        mask = padding_mask(batch.attention_mask)
        if isinstance(getattr(run.model, "body", run.model), DecoderOnly):
            yield "decoder.attention", tokens, tokens, mask & causal_mask(mask.shape[-1])
        else:
            yield "encoder.attention", tokens, tokens, mask
        return
    source = _tokens(run, batch.source_ids, batch.source_mask)
    target = _tokens(run, batch.target_ids, batch.target_mask)
    causal = causal_mask(batch.target_mask.shape[-1])
    yield "encoder.attention", source, source, padding_mask(batch.source_mask)
    yield "decoder.attention", target, target, padding_mask(batch.target_mask) & causal
    cross = padding_mask(batch.target_mask, batch.source_mask)
    yield "decoder.cross_attention", target, source, cross


def _tokens(run: Run, ids: Tensor, attention_mask: Tensor) -> list[list[str | None]]:
    """The tokens of each row, None at padding."""
    named = []
    for row, real in zip(ids.tolist(), attention_mask.tolist(), strict=True):
        names = zip(run.vocabulary.names(row), real, strict=True)
        named.append([name if is_real else None for name, is_real in names])
    return named


def _one_line(text: str, length: int = 48) -> str:
    text = text.replace("\n", " ")
    return text if len(text) <= length else text[: length - 1] + "…"


def _slug(text: str, number: int) -> str:
    return f"-{number + 1}-" + re.sub(r"\W+", "_", text)[:32].strip("_")


def save_pictures(pictures: Iterable[tuple[str, "Figure"]], folder: Path) -> list[Path]:
    from minitransformer import visualize

    paths = []
    with naming(folder):
        folder.mkdir(parents=True, exist_ok=True)
    for name, figure in pictures:
        with naming(folder / name):
            paths.append(visualize.save(figure, folder / name))
    return paths
