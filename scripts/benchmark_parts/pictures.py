"""Results as pictures: bars for what was compared once, lines against length or padding."""

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmark_parts.measure import entrants, median, median_of
from benchmark_parts.sections import Group
from minitransformer.visualize import GRID, INK, LINES, PALE

COLORS = (*LINES, "#b5495b", "#4f8f9c")


def picture(title: str, groups: Sequence[Group]) -> Figure | None:
    groups = [group for group in groups if group["rows"]]
    if not groups:
        return None
    return (_lines if "table" in groups[0] else _bars)(title, groups)


def _bars(title: str, groups: Sequence[Group]) -> Figure:
    """How many times as fast as the baseline: a panel for each group, a bar for each entrant."""
    columns = min(2, len(groups))
    rows = -(-len(groups) // columns)
    height = 0.6 + 0.3 * max(len(group["rows"]) for group in groups)
    figure = _figure(title, 5.5 * columns, rows * height + 0.4)
    panels = figure.subplots(rows, columns, squeeze=False).ravel()
    for axes, group in zip(panels, groups, strict=False):
        base = median_of(group, group["baseline"])
        names = [row["name"] for row in group["rows"]][::-1]
        values = [base / median_of(group, name) for name in names]
        colors = [LINES[0] if name.startswith("ours") else PALE for name in names]
        bars = axes.barh(names, values, color=colors, height=0.7)
        labels = axes.bar_label(
            bars, [f"{v:.2f} ×" for v in values], padding=3, fontsize=8, color=INK
        )
        for label in labels:  # not crossed by the line at 1
            label.set_bbox({"facecolor": "white", "edgecolor": "none", "pad": 1})
        axes.axvline(1, color=INK, linewidth=0.8, linestyle=":")
        axes.set_xlim(0, max(values) * 1.15)
        axes.set_title(group["title"], loc="left", fontsize=9, color=INK)
        _plain(axes)
        axes.grid(visible=False)
        axes.tick_params(bottom=False, left=False, labelbottom=False)
        axes.spines["bottom"].set_visible(False)
    for axes in panels[len(groups) :]:
        axes.remove()
    return figure


def _lines(title: str, groups: Sequence[Group]) -> Figure:
    """Against length or padding. Where there are several masks, a column for each of them and time
    as a ratio to the baseline's; else a column for each table, time, and what would be ideal."""
    relative = "mask" in groups[0]["row"]
    columns: dict[str, list[Group]] = {}
    for group in groups:
        columns.setdefault(group["row"]["mask"] if relative else group["table"], []).append(group)
    kinds = list(dict.fromkeys(group["table"] for group in groups)) if relative else [None]
    figure = _figure(title, 2.9 * max(len(columns), 3), 2.5 * (len(kinds) + 1) + 0.6)
    shared = "row" if relative else False
    grid = figure.subplots(len(kinds) + 1, len(columns), squeeze=False, sharey=shared)
    colors = dict(zip(["ours", *_others(groups)], COLORS, strict=False))
    for place, (name, column) in enumerate(columns.items()):
        for axes, kind in zip(grid[:, place], kinds, strict=False):
            chosen = [g for g in column if kind in (None, g["table"])]
            label = f"{kind}:\ntimes as fast as SDPA" if relative else "ms"
            _draw(axes, chosen, "speed" if relative else "ms", colors)
            axes.set_ylabel(label if place == 0 else "", fontsize=8, color=INK)
        last = [g for g in column if g["table"] == column[-1]["table"]]
        _draw(grid[-1, place], last, "MiB", colors)
        grid[-1, place].set_ylabel("peak MiB" if place == 0 else "", fontsize=8, color=INK)
        grid[0, place].set_title(
            f"mask: {name}" if relative else name, loc="left", fontsize=9, color=INK
        )
        x = "length" if "length" in column[0]["row"] else "padding"
        grid[-1, place].set_xlabel(x, fontsize=8, color=INK)
    found = {
        label: h for a in grid.flat for h, label in zip(*a.get_legend_handles_labels(), strict=True)
    }
    figure.legend(
        found.values(), found, loc="outside lower left", ncols=6, frameon=False, fontsize=8,
        labelcolor=INK,
    )  # fmt: skip
    return figure


def _draw(axes: Axes, groups: Sequence[Group], what: str, colors: dict[str, str]) -> None:
    key = "length" if "length" in groups[0]["row"] else "padding"
    for name, color in colors.items():
        points = []
        for group in groups:
            rows = {row["name"]: row for row in group["rows"]}
            if name in rows:
                seconds = median(rows[name]["seconds"])
                value = {
                    "ms": seconds * 1000,
                    "speed": median_of(group, group["baseline"]) / seconds,
                    "MiB": max(rows[name]["peak_mib"], 0.1),
                }[what]
                points.append((group["row"][key], value))
        if points:
            width = 2.0 if name == "ours" else 1.2
            axes.plot(*zip(*points, strict=True), "o-", ms=3.5, lw=width, color=color, label=name)
    if what == "ms" and "ideal" in groups[0]:
        ideal = [(group["row"][key], group["ideal"] * 1000) for group in groups]
        axes.plot(*zip(*ideal, strict=True), "--", lw=1.2, color=PALE, label="ideal")
    if what == "speed":
        axes.set_yscale("log", base=2)
        axes.axhline(1, color=INK, linewidth=0.8, linestyle=":")
    _plain(axes)
    if key == "length":
        axes.set_xscale("log", base=2)
        if what != "speed":
            axes.set_yscale("log", base=2 if what == "MiB" else 10)
        lengths = [group["row"]["length"] for group in groups]
        axes.set_xticks(lengths, [str(length) for length in lengths])
        axes.minorticks_off()
    else:
        axes.xaxis.set_major_formatter("{x:.0%}")
        axes.set_ylim(bottom=0)
    axes.yaxis.set_major_formatter("{x:g}")


def _others(groups: Sequence[Group]) -> list[str]:
    return [name for name in entrants(groups) if name != "ours"]


def _figure(title: str, width: float, height: float) -> Figure:
    figure = Figure(figsize=(width, height), layout="constrained", facecolor="white")
    figure.suptitle(title, x=0, ha="left", fontsize=11, color=INK)
    return figure


def _plain(axes: Axes) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set(color=PALE)
    axes.grid(color=GRID, linewidth=0.6)
    axes.tick_params(which="both", color=PALE, labelcolor=INK, labelsize=8)
