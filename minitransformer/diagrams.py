"""Diagrams of the course: what a layer is made of, and which mask goes where."""

from collections.abc import Mapping, Sequence

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch, Rectangle

from minitransformer.visualize import (
    INK,
    LINES,
    PALE,
    Tokens,
    as_array,
    attention_map,
    drawable,
    mask_legend,
    style,
)

PLAIN = "#f2f2f2"
WIDE = (1.7, 0.42)  # of a box, in inches
ROUND = {"boxstyle": "circle,pad=0.15", "facecolor": "white", "edgecolor": PALE}

SUBLAYERS = {  # of an encoder layer, in order: fill, and which tokens each reads
    "self-attention": ("#c6dbef", "all tokens that the mask allows"),
    "feed-forward": ("#f0f0f0", "each token by itself"),
}
ORDERS = {  # of the parts of a sublayer; None is the sublayer itself
    "post": (None, "+", "norm"),  # norm(x + f(x))
    "pre": ("norm", None, "+"),  # x + f(norm(x))
}


def encoder_layer_diagram(norms: Sequence[str] = ("post", "pre")) -> Figure:
    """An encoder layer from bottom to top, a panel for each of `norms`: "post" or "pre".

    Orange is the residual connection: what goes around a sublayer, and is added to its output.
    """
    if not norms or any(norm not in ORDERS for norm in norms):
        raise ValueError(f"norms: expected some of {', '.join(ORDERS)}, got {norms!r}")
    figure = Figure(figsize=(4.2 * len(norms), 4.6), layout="constrained", facecolor="white")
    for axes, norm in zip(figure.subplots(1, len(norms), squeeze=False)[0], norms, strict=True):
        top = 0.0
        for sublayer in SUBLAYERS:
            top = _sublayer(axes, sublayer, norm, top)
        _arrow(axes, (0, top), (0, top + 0.7))
        axes.text(0, -0.15, "x", ha="center", va="top", fontsize=10, color=INK)
        formula = "norm(x + f(x))" if norm == "post" else "x + f(norm(x))"
        axes.set(xlim=(-1.9, 3.4), ylim=(-0.6, top + 0.8))
        axes.set_title(f"{norm}-norm: {formula}", fontsize=10, color=INK)
        axes.set_axis_off()
    return figure


def _sublayer(axes: Axes, sublayer: str, norm: str, bottom: float) -> float:
    """Draw the parts of one sublayer above `bottom`; returns where the last of them ends."""
    fill, reads = SUBLAYERS[sublayer]
    branch, bottom = bottom + 0.2, bottom + 0.25  # where the residual connection leaves
    _arrow(axes, (0, branch - 0.2), (0, bottom + 0.25))
    for number, part in enumerate(ORDERS[norm]):
        y = bottom + 0.55 + number
        if number:
            _arrow(axes, (0, y - 0.7), (0, y - 0.3))
        if part == "+":
            around = (0, branch), (1.5, branch), (1.5, y), (0.3, y)
            _arrow(axes, *around, color=LINES[1])
            axes.text(0, y, "+", ha="center", va="center", fontsize=11, color=INK, bbox=ROUND)
            continue
        _box(axes, (0, y), part or sublayer, PLAIN if part else fill)
        if part is None:
            axes.text(1.65, y, reads.replace(" that", "\nthat"), va="center", fontsize=8, color=INK)
            if sublayer == "self-attention":
                _arrow(axes, (-1.75, y), (-1.05, y))
                axes.text(-1.75, y + 0.12, "mask", fontsize=8, color=INK)
    return y + 0.3


def projections_diagram(dimensions: int = 6, width: int = 3) -> Figure:
    """One token's vector, and the query, key and value that three matrices make of it.

    `dimensions` is the width of the vector, `width` that of a query, key and value.
    """
    roles = {
        "query": "what the token looks for",
        "key": "what it is found by",
        "value": "what it hands over",
    }
    figure = Figure(figsize=(7.2, 2.7), layout="constrained", facecolor="white")
    axes = figure.subplots()
    _vector(axes, (0, 0), dimensions, "#f0f0f0")
    axes.text(0, 0.35 + 0.13 * dimensions, "vector x", ha="center", fontsize=9, color=INK)
    for y, color, (name, role) in zip((1.3, 0, -1.3), LINES, roles.items(), strict=False):
        _arrow(axes, (0.25, 0.35 * y), (1.3, y), color=color)
        _box(axes, (2.3, y), f"{name} matrix", "white", edge=color)
        _arrow(axes, (3.3, y), (3.9, y), color=color)
        _vector(axes, (4.15, y), width, color, alpha=0.35)
        axes.text(4.6, y, f"{name}: {role}", va="center", fontsize=9, color=INK)
    axes.set(xlim=(-0.8, 8.2), ylim=(-2, 2))
    axes.set_axis_off()
    return figure


def encoder_decoder_diagram(
    encoder_mask, decoder_mask, cross_mask, source: Tokens, target: Tokens, *, title: str = ""
) -> Figure:
    """The encoder-decoder of Vaswani et al. 2017 (figure 1), with its three masks beside it.

    Boolean masks of one row of a batch: encoder_mask (S, S), decoder_mask (T, T) and
    cross_mask (T, S), for S source and T target tokens (None = padding). Each is drawn beside the
    attention that it goes into, queries down and keys across.
    """
    width, height = 10.4, 6.5
    figure = Figure(figsize=(width, height), facecolor="white")
    axes = figure.add_axes((0, 0, 1, 1))  # one unit is one inch
    axes.set(xlim=(0, width), ylim=(0, height))
    axes.axis("off")
    encoder, decoder, first, second, third = 3.55, 6.45, 1.8, 3.3, 4.8  # columns and rows of boxes
    _draw_stack(axes, encoder, "source", {first: "self-attention", second: "feed-forward"})
    sublayers = {first: "self-attention", second: "cross-attention", third: "feed-forward"}
    _draw_stack(axes, decoder, "target", sublayers)
    _write(axes, (encoder, 4.65), "memory")
    _arrow(axes, (encoder + 0.4, 4.65), (5.0, 4.65), (5.0, second), (decoder - 0.85, second))
    _box(axes, (decoder, 6.15), "head: logits", PLAIN, WIDE)

    seen = set()
    cell = 1.4 / max(len(source), len(target))
    for mask, queries, keys, name, x, y, arrow in (
        (encoder_mask, source, source, "source → source", 0.55, first, (encoder - 0.85, 2.05)),
        (decoder_mask, target, target, "target → target", 8.4, first, (decoder + 0.85, 7.85)),
        (cross_mask, target, source, "target → source", 8.4, second, (decoder + 0.85, 7.85)),
    ):
        mask = as_array(name, mask, "(queries, keys)", (len(queries), len(keys)), torch.bool)
        wide, high = cell * len(keys), cell * len(queries)
        grid = figure.add_axes((x / width, (y - high / 2) / height, wide / width, high / height))
        why = attention_map(grid, 0.1 * mask, mask, queries, keys, title=name)
        seen |= {reason for reason, cells in why.items() if cells.any()}
        grid.set_ylabel("query", fontsize=8, color=INK)
        grid.set_xlabel("key", fontsize=8, color=INK)
        _arrow(axes, (arrow[1], y), (arrow[0], y))
    look = {"frameon": False, "fontsize": 8, "labelcolor": INK}
    axes.legend(handles=mask_legend(seen), loc="upper left", bbox_to_anchor=(0, 0.93), **look)
    axes.text(0.12, 6.25, drawable(title), **style(title, 11))
    return figure


def _draw_stack(axes: Axes, x: float, name: str, sublayers: Mapping[float, str]):
    """From the ids up to what one layer gives: its sublayers by the height of their boxes."""
    frame = FancyBboxPatch((x - 1.0, 1.4), 2.0, max(sublayers) - 0.75, boxstyle="round,pad=0")
    frame.set(facecolor="white", edgecolor=PALE, linestyle="--")
    axes.add_patch(frame)
    _write(axes, (x, 0.22), f"{name} ids")
    _arrow(axes, (x, 0.35), (x, 0.59))
    _box(axes, (x, 0.8), "embedding + positions", PLAIN, WIDE)
    below = 1.01
    for y, text in sublayers.items():
        _arrow(axes, (x, below), (x, y - 0.21))
        _box(axes, (x, y), text, "#deebf7" if "attention" in text else "#fdf1e2", WIDE)
        _box(axes, (x, y + 0.4), "add, norm", PLAIN, (1.7, 0.26))
        below = y + 0.53
    _arrow(axes, (x, below), (x, below + 0.6))


# ---- parts of a diagram --------------------------------------------------------------------------


def _box(axes, center, text: str, fill: str, size=(2.0, 0.6), edge: str = PALE) -> None:
    """A rounded box around `center` (x, y), of a `size` (width, height), with a text in it."""
    (x, y), (width, height) = center, size
    look = {"facecolor": fill, "edgecolor": edge, "boxstyle": "round,pad=0,rounding_size=0.1"}
    axes.add_patch(FancyBboxPatch((x - width / 2, y - height / 2), width, height, **look))
    _write(axes, center, text)


def _write(axes: Axes, center: tuple[float, float], text: str) -> None:
    axes.text(*center, text, ha="center", va="center", **style(text, 9))


def _arrow(axes: Axes, *points: tuple[float, float], color: str = INK) -> None:
    """A line through the points, with its head at the last."""
    if len(points) > 2:
        axes.plot(*zip(*points[:-1], strict=True), color=color, linewidth=1)
    look = {"arrowstyle": "-|>", "color": color, "shrinkA": 0, "shrinkB": 0, "lw": 1}
    axes.annotate("", points[-1], points[-2], arrowprops=look)


def _vector(axes: Axes, center: tuple[float, float], length: int, fill: str, **look) -> None:
    """A column of `length` squares."""
    x, y = center
    for number in range(length):
        corner = (x - 0.13, y + 0.26 * (number - length / 2))
        axes.add_patch(Rectangle(corner, 0.26, 0.26, facecolor=fill, edgecolor=INK, lw=0.6, **look))
