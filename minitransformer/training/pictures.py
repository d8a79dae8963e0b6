"""The pictures of a run: its loss, and where its model looks."""

import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from minitransformer.data import pad
from minitransformer.data.files import naming
from minitransformer.inference.answering import end_of, padded
from minitransformer.inference.generation import generate
from minitransformer.inference.record import attended, record_attention
from minitransformer.models import EncoderDecoder
from minitransformer.pages import attention_page
from minitransformer.pages.page import Page
from minitransformer.pages.viewer import TITLES, token_names
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
    inputs, answers = _run_on(run, texts)
    with record_attention(model) as maps, torch.no_grad():
        model(*inputs)

    named = run.vocabulary.names
    for kind in attended(model, *inputs):
        weights = kind.layers(maps)[layer]
        for i in range(len(texts)) if draw is None else draw:
            what = f"{TITLES[kind.name]}, layer {layer}: {_one_line(answers[i] or texts[i])}"
            if answers[i]:
                what += f" ← {_one_line(texts[i])}"
            figure = visualize.attention_figure(
                weights[i, :, :MOST, :MOST],
                kind.mask[i, :, :MOST, :MOST],
                token_names(kind.query_ids[i, :MOST], kind.query_mask[i, :MOST], named),
                token_names(kind.key_ids[i, :MOST], kind.key_mask[i, :MOST], named),
                title=what,
            )
            file_name = f"{_FILE_NAMES[kind.name]}{_slug(texts[i], i) if draw is None else ''}.png"
            yield file_name, figure


def page_of_attention(run: Run, texts: Sequence[str], title: str) -> Page:
    """All layers and heads of a run on these texts, as a page to look into."""
    inputs, answers = _run_on(run, texts)
    both = zip(answers, texts, strict=True)
    listed = [f"{answer} ← {text}" if answer else text for answer, text in both]
    names = run.vocabulary.names
    return attention_page(run.model, *inputs, names=names, texts=listed, title=title)


MOST = 64  # queries and keys in one picture

_FILE_NAMES = {
    "encoder.attention": "encoder_self_attention",
    "decoder.attention": "decoder_self_attention",
    "decoder.cross_attention": "cross_attention",
}


def _run_on(run: Run, texts: Sequence[str]) -> tuple[tuple[Tensor, ...], list[str]]:
    """The texts as the model's inputs, padded, with its answers where it gives any."""
    texts_read = padded(run.model, run.vocabulary, texts).to(run.device)
    inputs = (texts_read.input_ids, texts_read.attention_mask)
    if not isinstance(run.model, EncoderDecoder):
        segments = texts_read.segment_ids
        return (inputs if segments is None else (*inputs, segments)), [""] * len(texts)
    limit = min(MOST, run.model.config.max_length) - 1
    ends = end_of(run.model, run.vocabulary)
    rows = generate(run.model, *inputs, limit, eos_id=ends)
    ends = {ends} if isinstance(ends, int) else set(ends or ())
    written = [[token for token in row.tolist() if token not in ends] for row in rows]
    answers = [run.vocabulary.decode(row) for row in written]
    begun = [[run.model.config.bos_id, *row] for row in written]
    target = pad(begun, run.vocabulary.pad_id or 0).to(run.device)
    return (*inputs, target.input_ids, target.attention_mask), answers


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
