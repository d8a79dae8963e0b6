"""Pictures of attention and of training: tensors in, matplotlib figures out.

The subject of a map is the mask. A cell is colored by its weight; a cell that the mask forbids is
hatched, in one way for padding and in another for the future, so that an allowed weight of 0 never
looks like a forbidden one. A weight that leaks through the mask keeps its color under the hatch,
and NaN is red.

    figure = attention_figure(weights, mask, queries, keys)  # (H, Q, K), (1, Q, K), Q and K tokens
    save(figure, "attention.png")

Needs matplotlib. No pyplot: nothing here opens a window or keeps state.
"""

import os
import unicodedata
import warnings
from collections.abc import Collection, Iterable, Mapping, Sequence
from functools import cache
from importlib.util import find_spec
from itertools import cycle
from pathlib import Path

import numpy as np
import torch

try:
    from matplotlib import colormaps, font_manager
    from matplotlib.axes import Axes
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import PowerNorm, to_rgba
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch, PathPatch, Rectangle
    from matplotlib.path import Path as Outline
    from matplotlib.ticker import MaxNLocator, PercentFormatter
except ImportError as error:
    raise ImportError("drawing needs matplotlib: pip install matplotlib") from error

Tokens = Sequence[str | None]  # None is padding
PAD, SPACE, BASE = "·", "␣", "◌"

# Fixed from 0 to 1, so that heads compare; the square root keeps a weight of 1/34 from looking 0.
SCALE = PowerNorm(0.5, vmin=0, vmax=1)
COLORS = colormaps["Blues"].with_extremes(bad="#d62728")
INK, PALE, GRID = "#333333", "#a8a8a8", "#e9e9e9"
LINES = ("#08519c", "#d9822b", "#5a8f3d", "#7a4fa3")
HATCHES = {  # fill, strokes, pattern, legend
    "padding": ("#f0f0f0", "#c9c9c9", 4 * "\\", f"forbidden: padding ({PAD})"),
    "future": ("#fdf1e2", "#e9b67c", 4 * "/", "forbidden: future"),
    "other": ("#f3ecf7", "#c5a5d6", 3 * "x", "forbidden: other"),
}

# Beyond DejaVu Sans, which matplotlib carries: used where installed, in this order.
FONT_PACKAGES = (
    "noto_cjk_sans_jp_regular",  # Han, Kana, Hangul
    "fontpkg_noto_sans_devanagari",
    "fontpkg_noto_sans_thai",
)


# ---- attention -----------------------------------------------------------------------------------


def forbidden(mask, queries: Tokens, keys: Tokens) -> dict[str, np.ndarray]:
    """Why each cell of `mask` (Q, K) is False: three boolean arrays (Q, K), no cell in two of them.

    padding: the query or the key is padding (None); future: both are real, and the key lies after
    the query, the last query being the last key's, as in `causal_mask`; other: neither, as in a
    sliding window or between packed examples.
    """
    mask = as_array("mask", mask, "(queries, keys)", (len(queries), len(keys)), torch.bool)
    padded = np.array([q is None for q in queries])[:, None] | np.array([k is None for k in keys])
    later = np.arange(len(keys)) - len(keys) > np.arange(len(queries))[:, None] - len(queries)
    return {
        "padding": ~mask & padded,
        "future": ~mask & ~padded & later,
        "other": ~mask & ~padded & ~later,
    }


def attention_map(
    axes: Axes,
    weights,
    mask,
    queries: Tokens,
    keys: Tokens,
    *,
    title: str = "",
    fontsize: float = 7,
) -> dict[str, np.ndarray]:
    """Draw one head: weights (Q, K), boolean mask (Q, K). Returns the hatched cells by reason."""
    why = forbidden(mask, queries, keys)
    weights = as_array("weights", weights, "(queries, keys)", (len(queries), len(keys)))
    colors = COLORS(SCALE(np.ma.masked_invalid(weights)))
    square = np.array([[-0.5, -0.5], [0.5, -0.5], [0.5, 0.5], [-0.5, 0.5], [-0.5, -0.5]])
    for reason, cells in why.items():
        fill, *_ = HATCHES[reason]
        colors[cells & (weights == 0)] = to_rgba(fill)  # a leaked weight keeps its own color
        if cells.any():
            squares = np.argwhere(cells)[:, None, ::-1] + square  # (row, column) -> (x, y)
            outline = Outline.make_compound_path_from_polys(squares)
            axes.add_patch(PathPatch(outline, **hatching(reason, fill="none"), zorder=2))
    axes.imshow(colors, interpolation="nearest", aspect="equal")

    for axis, tokens in (axes.xaxis, keys), (axes.yaxis, queries):
        axis.set_ticks(range(len(tokens)), [label(token) for token in tokens])
        axis.set_ticks(np.arange(len(tokens) + 1) - 0.5, minor=True)
        for text, token in zip(axis.get_ticklabels(), tokens, strict=True):
            text.set(**style(text.get_text(), fontsize, PALE if token is None else INK))
            if axis is axes.xaxis and len(text.get_text()) > 2:
                text.set_rotation(90)
    axes.grid(which="minor", color=GRID, linewidth=0.4)
    axes.tick_params(which="both", length=0, pad=2)
    axes.spines[:].set(color=PALE, linewidth=0.6)
    axes.set_title(drawable(title), loc="left", **style(title, fontsize + 1))
    return why


def attention_figure(weights, mask, queries: Tokens, keys: Tokens, *, title: str = "") -> Figure:
    """One panel per head: weights (H, Q, K), boolean mask (H or 1, Q, K), Q and K tokens."""
    size = (len(queries), len(keys))
    weights = as_array("weights", weights, "(heads, queries, keys)", (None, *size))
    mask = as_array("mask", mask, "(heads or 1, queries, keys)", (None, *size), torch.bool)
    heads = len(weights)
    if len(mask) not in (1, heads) or 0 in weights.shape:
        raise ValueError(
            f"expected weights (H, Q, K) and mask (H or 1, Q, K) with nothing empty, "
            f"got {weights.shape} and {mask.shape}"
        )

    # One cell has the same size in every figure of these lengths, so that labels never overlap.
    cell = min(max(2.5 / max(size), 0.13), 0.22)  # inches
    rows = -(-heads // max(1, int(10.3 // (cell * len(keys)))))
    columns = -(-heads // rows)
    beside, below = (
        0.08 * max(len(label(token)) for token in tokens) for tokens in (queries, keys)
    )
    width = columns * (cell * len(keys) + 0.2) + beside + 1.2
    height = rows * (cell * len(queries) + below + 0.4) + 0.9
    figure = Figure(figsize=(width, height), layout="compressed", facecolor="white")
    panels = figure.subplots(rows, columns, squeeze=False).ravel()
    small = {"fontsize": 8, "color": INK}
    seen = set()
    for head, axes in enumerate(panels[:heads]):
        one = (weights[head], mask[head % len(mask)], queries, keys)
        why = attention_map(axes, *one, title=f"head {head}", fontsize=min(54 * cell, 9))
        seen |= {reason for reason, cells in why.items() if cells.any()}
        if head % columns == 0:
            axes.set_ylabel("query", **small)
        else:
            axes.tick_params(labelleft=False)
        if head + columns >= heads:
            axes.set_xlabel("key", **small)
    for axes in panels[heads:]:
        axes.remove()

    marks = [0, 0.05, 0.25, 0.5, 1]
    bar = figure.colorbar(
        ScalarMappable(SCALE, COLORS), ax=list(panels[:heads]), ticks=marks, format="{x:g}",
        shrink=min(1, 3 / height), anchor=(0, 1), aspect=20, fraction=0.05, pad=0.015,
    )  # fmt: skip
    bar.ax.tick_params(labelsize=7, length=2, color=PALE, labelcolor=INK)
    bar.outline.set(color=PALE, linewidth=0.6)
    bar.set_label("attention weight", **small)
    legend = [Patch(**hatching(r), label=HATCHES[r][-1]) for r in HATCHES if r in seen]
    if np.isnan(weights).any():
        legend.append(Patch(color=COLORS.get_bad(), label="NaN"))
    note = missing_letters([title, *(token or "" for token in (*queries, *keys))])
    if legend or note:
        where = {"loc": "outside lower left", "ncols": 4, "title": note, "title_fontsize": 7}
        box = figure.legend(handles=legend, **where, frameon=False, fontsize=8, labelcolor=INK)
        box.set(alignment="left")
        box.get_title().set_color(INK)
    if title:
        figure.suptitle(drawable(title), x=0, ha="left", **style(title, 11))
    return figure


def wanted_beside_found(mask, weights, title: str = "") -> Figure:
    """What a mask (Q, K) allows beside the weights (Q, K) that an implementation really uses.

    A key that no query may see is taken for padding. On the right, color under a hatch is a leak,
    an allowed cell that stays white is hidden, and red is NaN. Beside each row stands the sum of
    its weights, red where it is not 1 (or 0, where the whole row is masked).
    """
    mask = as_array("mask", mask, "(queries, keys)", (None, None), torch.bool)
    weights = as_array("weights", weights, "(queries, keys)", mask.shape)
    queries, keys = (
        [str(i) if seen else None for i, seen in enumerate(mask.any(axis=axis))] for axis in (1, 0)
    )
    cell = 0.26  # inches
    room = 0.25 if title else 0.0  # above the panels
    width, height = 2 * cell * len(keys) + 2.3, cell * len(queries) + 1.35 + room
    figure = Figure(figsize=(max(width, 5.6), height), layout="compressed", facecolor="white")
    left, right = figure.subplots(1, 2)
    why = attention_map(left, 0.1 * mask, mask, queries, keys, title="mask wanted")
    attention_map(right, weights, mask, queries, keys, title="weights found")
    _row_sums(right, weights, mask)
    left.set_ylabel("query", fontsize=8, color=INK)
    for axes in (left, right):
        axes.set_xlabel("key", fontsize=8, color=INK)
    legend = mask_legend([reason for reason, cells in why.items() if cells.any()])
    if np.isnan(weights).any():
        legend.append(Patch(color=COLORS.get_bad(), label="NaN"))
    where = {"loc": "outside lower left", "ncols": 3}
    figure.legend(handles=legend, **where, frameon=False, fontsize=7, labelcolor=INK)
    if title:
        figure.get_layout_engine().set(rect=(0, 0, 1, 1 - room / height))
        figure.text(0, 1, drawable(title), ha="left", va="top", **style(title, 9))
    return figure


def _row_sums(axes: Axes, weights: np.ndarray, mask: np.ndarray) -> None:
    """Beside each row the sum of its weights, red unless it is 1, or 0 where all is masked."""
    look = {"fontsize": 7, "va": "center", "clip_on": False}
    axes.text(weights.shape[1] - 0.3, -0.9, "sum", color=INK, **look)
    for query, (total, wanted) in enumerate(
        zip(weights.sum(axis=1), mask.any(axis=1), strict=True)
    ):
        right = abs(total - wanted) < 0.005  # half precision rounds; NaN is not right
        color = INK if right else COLORS.get_bad()
        axes.text(weights.shape[1] - 0.3, query, f"{total:.2f}", color=color, **look)


def mask_legend(reasons: Collection[str]) -> list[Patch]:
    """The entries of a legend: what is allowed, and each of these reasons for what is not."""
    hatched = [Patch(**hatching(r), label=HATCHES[r][-1]) for r in HATCHES if r in reasons]
    return [Patch(color=COLORS(SCALE(0.1)), label="allowed"), *hatched]


def combination_figure(masks: Mapping[str, torch.Tensor], weights, tokens: Tokens) -> Figure:
    """Masks (T, T) by name, joined by `&`; what they make; and the weights (T, T) that it leaves.

    For self-attention over T tokens, None being padding.
    """
    cell = 0.2  # inches
    combined = torch.stack(list(masks.values())).all(dim=0)
    panels = {**masks, "the mask": combined}
    signs = [*["&"] * (len(masks) - 1), "=", "→"]
    side = cell * len(tokens)
    size = ((len(panels) + 1) * (side + 0.75), side + 1.5)
    figure = Figure(figsize=size, layout="compressed", facecolor="white")
    *left, last = figure.subplots(1, len(panels) + 1)
    for axes, (name, mask), sign in zip(left, panels.items(), signs, strict=True):
        # A mask that lets padding attend hides nothing because of it.
        shown = [PAD if t is None and row.any() else t for t, row in zip(tokens, mask, strict=True)]
        attention_map(axes, 0.1 * mask, mask, shown, shown, title=name)
        where = {"transform": axes.transAxes, "ha": "center", "va": "center"}
        axes.text(1.13, 0.5, sign, **where, fontsize=16, color=INK)
    attention_map(last, weights, combined, tokens, tokens, title="attention weights")
    for axes in (*left, last):
        axes.set_xlabel("key", fontsize=8, color=INK)
    for axes in (*left[1:], last):
        axes.tick_params(labelleft=False)
    left[0].set_ylabel("query", fontsize=8, color=INK)
    why = forbidden(combined, tokens, tokens)
    legend = mask_legend([reason for reason, cells in why.items() if cells.any()])
    where = {"loc": "outside lower left", "ncols": 4}
    figure.legend(handles=legend, **where, frameon=False, fontsize=8, labelcolor=INK)
    return figure


# ---- training ------------------------------------------------------------------------------------

Curves = Mapping[str, tuple[Sequence[int], Sequence[float]]]  # name: (steps, values)


def curve_figure(losses: Curves, scores: Curves | None = None, *, title: str = "") -> Figure:
    """Loss over steps, on a log axis; below it exact match (0 to 1), where there are `scores`.

    A name has one color in both: `{"training": ([0, 1], [2.5, 1.9]), "validation": ([1], [2])}`.
    """
    groups = [losses, scores] if scores else [losses]
    colors = dict(zip(dict.fromkeys([*losses, *(scores or ())]), cycle(LINES)))
    figure = Figure(figsize=(7, 1 + 2.2 * len(groups)), layout="constrained", facecolor="white")
    panels = figure.subplots(len(groups), 1, sharex=True, squeeze=False).ravel()
    for axes, curves in zip(panels, groups, strict=True):
        for name, (steps, values) in curves.items():
            steps = as_array(f"steps of {name}", steps, "(points,)", (None,))
            values = as_array(f"values of {name}", values, "(points,)", (len(steps),))
            dots = {"marker": "o", "markersize": 3.5} if len(steps) < 40 else {}
            axes.plot(steps, values, label=drawable(name), color=colors[name], lw=1.3, **dots)
        axes.spines[["top", "right"]].set_visible(False)
        axes.spines[["left", "bottom"]].set(color=PALE)
        axes.grid(color=GRID, linewidth=0.6)
        axes.tick_params(which="both", color=PALE, labelcolor=INK, labelsize=8)
        corner = "upper right" if axes is panels[0] else "lower right"
        for text in axes.legend(frameon=False, loc=corner).get_texts():
            text.set(**style(text.get_text(), 8))
    panels[0].set_yscale("log")
    panels[0].yaxis.set_major_formatter("{x:g}")
    panels[0].set_ylabel("loss (nats per token)", fontsize=9, color=INK)
    panels[0].set_title(drawable(title), loc="left", **style(title, 11))
    if scores:
        panels[1].set_ylim(-0.03, 1.03)
        panels[1].yaxis.set_major_formatter(PercentFormatter(1))
        panels[1].set_ylabel("exact match", fontsize=9, color=INK)
    panels[-1].xaxis.set_major_locator(MaxNLocator(integer=True))
    panels[-1].set_xlabel("training step", fontsize=9, color=INK)
    return figure


def save(figure: Figure, path: str | Path) -> Path:
    """Write `figure` to `path` as PNG, all or nothing: a failure leaves an older file as it was."""
    path = Path(path)
    if path.suffix.lower() != ".png":
        raise ValueError(f"path: expected a name ending in .png, got {str(path)!r}")
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with warnings.catch_warnings():
            # `drawable` has seen to every character; what is left are marks of one script on
            # letters of another, as an untrained model writes them, which no font can join.
            warnings.filterwarnings("ignore", message="Glyph .* missing")
            figure.savefig(temporary, format="png", dpi=150, bbox_inches="tight", pad_inches=0.1)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    return path


# ---- how characters are written ------------------------------------------------------------------


def label(token: str | None) -> str:
    """A token as a tick label: padding is a dot, a space ␣, a lone combining mark sits on ◌."""
    if token is None:
        return PAD
    mark = token != "" and unicodedata.category(token[0]).startswith("M")
    return drawable((BASE if mark else "") + token.replace(" ", SPACE))


def drawable(text: str) -> str:
    """`text`, with the code point in place of a character that is invisible or in no font."""
    seen = (c if c.isprintable() and _families(c) else f"U+{ord(c):04X}" for c in text)
    return "".join(seen)


def missing_letters(texts: Iterable[str]) -> str:
    """A line on the letters of `texts` that no font here has, or "" where there are none."""
    missing = {c for c in "".join(texts) if c.isprintable() and not _families(c)}
    if not missing:
        return ""
    scripts = sorted({unicodedata.name(c, "UNNAMED").split()[0] for c in missing})
    return (
        f"U+...: {len(missing)} letters that no font here has ({', '.join(scripts)}); "
        "the extra [fonts] or your system's Noto fonts have them"
    )


def style(text: str, fontsize: float, color: str = INK) -> dict:
    families = _families(drawable(text))
    return {"fontsize": fontsize, "color": color, "fontfamily": families, "parse_math": False}


def hatching(reason: str, **change) -> dict:
    fill, strokes, pattern, _ = HATCHES[reason]
    return {"facecolor": change.get("fill", fill), "edgecolor": strokes, "hatch": pattern, "lw": 0}


@cache
def _families(text: str) -> tuple[str, ...]:
    """Fonts that draw `text`: one for all of it if there is one, else a fallback list, else ()."""
    missing, chosen = set(text), []
    for family in _known_families():
        if set(text) <= _characters(family):
            return (family,)
        if missing & _characters(family):
            chosen.append(family)
            missing -= _characters(family)
    return () if missing else tuple(chosen)


@cache
def _characters(family: str) -> frozenset[str]:
    properties = font_manager.FontProperties(family=[family])
    path = font_manager.fontManager.findfont(properties, fallback_to_default=False)
    return frozenset(map(chr, font_manager.get_font(path).get_charmap()))


@cache
def _known_families() -> tuple[str, ...]:
    """DejaVu Sans, then the families of `FONT_PACKAGES`, then all others that matplotlib knows."""
    manager, carried = font_manager.fontManager, ["DejaVu Sans"]
    for package in FONT_PACKAGES:
        spec = find_spec(package)  # finds the folder, imports nothing
        for folder in (spec.submodule_search_locations or ()) if spec else ():
            for path in sorted(Path(folder).rglob("*.[ot]tf")):
                manager.addfont(path)
                carried.append(manager.ttflist[-1].name)
    blank = ("Last Resort", "Adobe Blank", "Noto Color Emoji")  # every character, as a box or less
    regular = (f for f in manager.ttflist if f.weight in (400, "normal") and f.style == "normal")
    others = sorted({font.name for font in regular if not font.name.startswith(blank)})
    return tuple(dict.fromkeys(carried + others))


def as_array(name: str, values, axes: str, size: tuple[int | None, ...], dtype=torch.float32):
    """`values` as a numpy array of `size`, where None is any length."""
    values = torch.as_tensor(values).detach().cpu()
    expected = tuple(got if want is None else want for want, got in zip(size, values.shape))  # noqa: B905
    if tuple(values.shape) != expected or values.ndim != len(size):
        wanted = ", ".join("any" if n is None else str(n) for n in size)
        raise ValueError(f"{name}: expected {axes} = ({wanted}), got {tuple(values.shape)}")
    if dtype == torch.bool and values.dtype != torch.bool:
        raise ValueError(f"{name}: expected torch.bool (True = may attend), got {values.dtype}")
    return values.to(dtype).numpy()


# ---- labels and architectures --------------------------------------------------------------------

LabelRows = tuple[Sequence[Tokens], Sequence[Tokens], Sequence[Sequence[int]]]


def label_figure(panels: Mapping[str, LabelRows], *, title: str = "") -> Figure:
    """Tokens in a row, and below each token its label: one panel for each entry of `panels`.

    A panel is three lists of rows of equal lengths: tokens, labels (None = -100, drawn as a dot)
    and attention_mask (1 = real, 0 = padding, which is hatched). The key is the panel's title.
    """
    most = max(9, *(len(row) for tokens, _, _ in panels.values() for row in tokens))
    heights = [1.25 * len(tokens) + 0.35 for tokens, _, _ in panels.values()]
    size = (1.0 + 0.62 * most, 0.42 * sum(heights) + 0.35 * len(panels))
    figure = Figure(figsize=size, layout="constrained", facecolor="white")
    axes = figure.subplots(len(panels), 1, height_ratios=heights, squeeze=False).ravel()
    for panel, (name, rows) in zip(axes, panels.items(), strict=True):
        for i, row in enumerate(zip(*rows, strict=True)):
            _draw_label_row(panel, -1.25 * i, *row)
        panel.set(xlim=(-0.9, most + 0.05), ylim=(-1.25 * len(rows[0]) + 0.4, 0.35))
        panel.set_title(drawable(name), loc="left", **style(name, 9))
        panel.axis("off")
    if title:
        figure.suptitle(drawable(title), x=0, ha="left", **style(title, 11))
    return figure


def _draw_label_row(axes: Axes, y: float, tokens: Tokens, labels: Tokens, mask: Sequence[int]):
    """One row of tokens at height `y`, its labels half a unit below."""
    middle = {"ha": "center", "va": "center"}
    for height, name in ((y, "token"), (y - 0.5, "label")):
        axes.text(-0.15, height, name, ha="right", va="center", **style(name, 7))
    for x, (token, wanted, real) in enumerate(zip(tokens, labels, mask, strict=True)):
        look = {"facecolor": "#deebf7", "edgecolor": PALE} if real else hatching("padding")
        axes.add_patch(Rectangle((x, y - 0.25), 1, 0.5, **look | {"lw": 0.6}))
        fill = "white" if wanted is None else "#c7e9c0"
        axes.add_patch(Rectangle((x, y - 0.75), 1, 0.5, facecolor=fill, edgecolor=PALE, lw=0.6))
        for height, word in ((y, label(token)), (y - 0.5, label(wanted))):
            axes.text(x + 0.5, height, word, **middle, **style(word, 8 if len(word) < 8 else 6))
