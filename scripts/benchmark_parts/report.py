"""Results as tables and pictures. Everything here is made from what stands in results.json."""

import inspect
import json
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmark_parts.measure import median
from benchmark_parts.sections import SECTIONS, Group
from minitransformer.visualize import GRID, INK, LINES, PALE, save

INTRODUCTION = """\
# Benchmark, measured

`python scripts/benchmark.py --write` makes this page: all entrants in one process, in turns,
medians over the rounds. *By* says how many times as fast as the entrant with 1.00 × one is. The
optimizer is torch's fused AdamW for all; batches are made ahead, for all. *Loss*: mean over the
labels of a batch that no step saw, after as many steps, from equally distributed weights.
*Tokens* are real ones, no padding. *MiB*: what torch's allocator holds at the worst moment above
what it held before; scratch memory of MKL and oneDNN is not counted. *Ceiling*: the operations
that a step cannot do without (for real tokens, True entries and labels) per second, as a share of
those of a large matrix product in the same run and dtype.
"""
TRIED = """\
## What was tried

Measured by hand on the way, not by this script; a ratio of times before and after.

What paid:

- To cut rows where two documents meet, instead of every 128 queries: attention on packed rows of
  512 tokens, forward and backward, 1.5 ×. A whole document needs no mask, or torch's causal flag.
- To join rows that are not alike only where that pays for the mask that they then need: 1.5 × for
  16 rows of 1,024 tokens, one of them a token short. (Cost at 0 % padding, in the last section, was
  measured before this.)
- To write zeros over what the mask never uses only in the strips that have such rows, instead of in
  a copy of query, key and value: attention forward, half padded, 512 tokens, 1.6 ×.
- To compute the chunks of the loss in place, with one exponential instead of two: 1.25 × for the
  projection and its loss. Chunks of 2²¹ logits; half and twice as many are within 5 %.
- To train in bfloat16 with attention in torch's float32 kernel, whose way back in bfloat16 is slow:
  1.6 × for attention forward and backward.
- To pack pairs into rows twice as long as the longest source: 1.1 × a step; longer ones, no more.

What did not:

- One product for query, key and value instead of three: 9 % of those products, some 2 % of a step.
- To join more short documents in a strip (a strip counted as 40,000 or 80,000 scores instead of
  20,000): slower from 256 tokens on, level below.
- To lay out small weights, too, for generation: no difference. Weights in bfloat16: 1.2 × for
  GPT-2, slower for Llama, and other tokens.
- torch's kernel for the one query of a step of generation: 1.5 × for attention, 1.04 × in all. It
  stayed, but what binds there is reading the weights.

Not done: to compute the last layer of an encoder only at the tokens that have a label. It would
save some of a masked language model's step and need a second way through the layers.
"""
COLOURS = (*LINES, "#b5495b", "#4f8f9c")
BRIEF = {"table": "forward and backward", "length": 1024}  # of attention alone, in short


# ---- files -------------------------------------------------------------------------------------


def merge(results: dict, run: str, sections: dict[str, dict]) -> dict:
    """Results in which the sections just measured replace their older selves, and only those."""
    merged = {name: dict(old) for name, old in results.items()}
    merged[run] = dict(sorted((merged.get(run, {}) | sections).items()))
    return dict(sorted(merged.items()))


def write(folder: Path, run: str, sections: dict[str, dict]) -> Path:
    """benchmark.md, and beside it a folder with results.json and the pictures of this run."""
    page, data = folder / "benchmark.md", folder / "benchmark" / "results.json"
    data.parent.mkdir(exist_ok=True)
    known = json.loads(data.read_text(encoding="utf-8")) if data.exists() else {}
    results = merge(known, run, sections)
    for name, section in sections.items():
        figure = picture(f"{heading(name)}, {run}", section["groups"])
        if figure is not None:
            save(figure, data.parent / _picture_name(run, name))
    data.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    text = markdown(results) + several_processes(folder / "scaling.md")
    page.write_text(text, encoding="utf-8")
    return page


def several_processes(page: Path) -> str:
    """What scripts/scaling.py has measured, if it has: its table, and where the rest is."""
    lines = page.read_text(encoding="utf-8").splitlines() if page.exists() else []
    table = [line for line in lines if line.startswith("|")]
    rows = table[: 1 + max((i for i, line in enumerate(table) if "(FSDP)" in line), default=-1)]
    where = "Real tokens a second, on two cores; [how, and on 64 GPUs on paper](scaling.md)."
    return "\n".join(["", "## Several processes", "", where, "", *rows, ""]) if rows else ""


def markdown(results: dict) -> str:
    parts = [INTRODUCTION, *(f"## In short\n\n{in_brief(run)}" for run in _first(results))]
    for run, sections in results.items():
        parts.append(f"## {run.replace('cpu', 'CPU').replace('cuda', 'CUDA')}\n")
        for name, section in sections.items():
            parts += [f"### {heading(name)}\n", machine_line(section)]
            parts.append(inspect.getdoc(SECTIONS[name]) + "\n")
            if picture("", section["groups"]) is not None:
                parts.append(f"![{heading(name)}](benchmark/{_picture_name(run, name)})\n")
            parts.append(tables(section["groups"]))
    return "\n".join([*parts, TRIED])


def _first(results: dict) -> list[dict]:
    """The run on one thread of a CPU, which the README quotes, if there is one."""
    return [sections for run, sections in results.items() if run == "cpu, 1 thread"]


def in_brief(sections: dict[str, dict]) -> str:
    """For each piece of work how many times as fast as each of the others ours is: ratios only."""
    lines = []
    for section in sections.values():
        for group in section["groups"]:
            row = {"table": group.get("table"), **group.get("row", {})}
            alone = "table" in group
            if not group["rows"] or (alone and any(row.get(k) != v for k, v in BRIEF.items())):
                continue
            ours, *others = group["rows"]
            best = median(ours["seconds"])
            ratios = [
                f"{other['name']} {median(other['seconds']) / best:.2f} ×"
                for other in others
                if not other["name"].startswith("ours")
            ]
            title = f"attention, {group['title']}" if alone else group["title"]
            lines.append([title, ", ".join(ratios)])
    return _table(["work", "times as fast as"], lines)


def in_short(group: Group) -> str:
    rows = (f"{r['name']} {_milliseconds(median(r['seconds']))} ms" for r in group["rows"])
    return f"{group['title']}: {'; '.join(rows)}"


def machine_line(section: dict) -> str:
    machine, ceiling = section["machine"], section["ceiling"]
    about = ", ".join(v if k in ("date", "processor") else f"{k} {v}" for k, v in machine.items())
    threads = int(machine["threads"]) if machine["device"] == "cpu" else 1
    each = " a thread" if machine["device"] == "cpu" else ""
    best = ", ".join(
        f"{what} {value / threads:,.0f} {'GB/s' if what == 'copy' else 'GFLOP/s'}"
        for what, value in ceiling.items()
    )
    return f"*{about}. Ceiling{each}: {best}.*\n"


def heading(name: str) -> str:
    return f"{name}. {SECTIONS[name].__name__.replace('_', ' ').capitalize()}"


def _picture_name(run: str, name: str) -> str:
    return "-".join([name, *re.findall(r"\w+", run)]) + ".png"


# ---- tables ------------------------------------------------------------------------------------


def tables(groups: Sequence[Group]) -> str:
    """Groups that belong to a common table are a row each; any other is a table of its own."""
    parts, common = [], {}
    for group in groups:
        if "table" in group:
            common.setdefault(group["table"], []).append(group)
        else:
            parts += [f"**{group['title']}**\n", _table_of_entrants(group)]
    for title, members in common.items():
        parts += [f"**{title}**\n", _table_of_groups(members)]
    absent = {(name, why) for g in groups for name, why in g.get("absent", {}).items()}
    parts += [f"Not measured: {name}: {why}\n" for name, why in sorted(absent)]
    return "\n".join(parts)


def _table_of_entrants(group: Group) -> str:
    if not group["rows"]:
        return ""
    base = _seconds(group, group["baseline"])
    columns = {
        "parameters": lambda r: f"{r['parameters'] / 1e6:.2f} M",
        "loss": lambda r: f"{r['loss']:.3f}",
        "same_tokens": lambda r: f"{r['same_tokens']:.1%}",
        "tokens": lambda r: f"{r['tokens'] / median(r['seconds']):,.0f}",
        "seconds": lambda r: f"{median(r['seconds']) * 1000:,.0f}",
        "peak_mib": lambda r: f"{r['peak_mib']:,.0f}",
        "ceiling": lambda r: f"{r['ceiling']:.0%}",
    }
    titles = {"same_tokens": "same tokens", "tokens": "tokens/s", "seconds": "ms"}
    titles |= {"peak_mib": "MiB"}
    shown = [name for name in columns if name in group["rows"][0]]
    header = ["", *(titles.get(name, name) for name in shown), "by"]
    lines = [
        [row["name"], *(columns[name](row) for name in shown), f"{base / seconds:.2f} ×"]
        for row in group["rows"]
        for seconds in [median(row["seconds"])]
    ]
    text = _table(header, lines)
    if "profile" in group:
        operators = [f"`{op['operator']}` {op['share']:.0%}" for op in group["profile"]]
        text += f"\nWhere the time of {group['rows'][0]['name']} goes: {', '.join(operators)}.\n"
    return text


def _table_of_groups(groups: Sequence[Group]) -> str:
    names = _entrants(groups)
    header = [*groups[0]["row"], *(f"{name}, ms" for name in names)]
    ideal = "ideal" in groups[0]
    header += ["ideal, ms"] * ideal + ["ours by"] + [f"{name}, MiB" for name in names]
    header += ["difference"] * ("difference" in groups[0]["rows"][0])
    lines = []
    for group in groups:
        rows = {row["name"]: row for row in group["rows"]}
        cells = [_cell(value) for value in group["row"].values()]
        cells += [_milliseconds(_seconds(group, name)) for name in names]
        cells += [_milliseconds(group["ideal"])] if ideal else []
        cells += [f"{_seconds(group, group['baseline']) / _seconds(group, 'ours'):.2f} ×"]
        cells += [f"{rows[name]['peak_mib']:,.0f}" if name in rows else "" for name in names]
        if "difference" in rows["ours"]:
            cells.append(f"{rows['ours']['difference']:.0e}")
        lines.append(cells)
    return _table(header, lines)


def _table(header: Iterable[str], lines: Iterable[Iterable[str]]) -> str:
    header = list(header)
    rows = [header, ["---"] * len(header), *lines]
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


def _entrants(groups: Sequence[Group]) -> list[str]:
    return list(dict.fromkeys(row["name"] for group in groups for row in group["rows"]))


def _seconds(group: Group, name: str) -> float | None:
    return next((median(row["seconds"]) for row in group["rows"] if row["name"] == name), None)


def _milliseconds(seconds: float | None) -> str:
    return "" if seconds is None else f"{seconds * 1000:,.{0 if seconds >= 0.1 else 1}f}"


def _cell(value: str | float) -> str:
    return f"{value:.0%}" if isinstance(value, float) else str(value)


# ---- pictures ----------------------------------------------------------------------------------


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
        base = _seconds(group, group["baseline"])
        names = [row["name"] for row in group["rows"]][::-1]
        values = [base / _seconds(group, name) for name in names]
        colours = [LINES[0] if name.startswith("ours") else PALE for name in names]
        bars = axes.barh(names, values, color=colours, height=0.7)
        axes.bar_label(bars, [f"{v:.2f} ×" for v in values], padding=3, fontsize=8, color=INK)
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
    colours = dict(zip(["ours", *_others(groups)], COLOURS, strict=False))
    for place, (name, column) in enumerate(columns.items()):
        for axes, kind in zip(grid[:, place], kinds, strict=False):
            chosen = [g for g in column if kind in (None, g["table"])]
            label = f"{kind}:\ntimes as fast as SDPA" if relative else "ms"
            _draw(axes, chosen, "speed" if relative else "ms", colours)
            axes.set_ylabel(label if place == 0 else "", fontsize=8, color=INK)
        last = [g for g in column if g["table"] == column[-1]["table"]]
        _draw(grid[-1, place], last, "MiB", colours)
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


def _draw(axes: Axes, groups: Sequence[Group], what: str, colours: dict[str, str]) -> None:
    key = "length" if "length" in groups[0]["row"] else "padding"
    for name, colour in colours.items():
        points = []
        for group in groups:
            rows = {row["name"]: row for row in group["rows"]}
            if name in rows:
                seconds = median(rows[name]["seconds"])
                value = {
                    "ms": seconds * 1000,
                    "speed": _seconds(group, group["baseline"]) / seconds,
                    "MiB": max(rows[name]["peak_mib"], 0.1),
                }[what]
                points.append((group["row"][key], value))
        if points:
            width = 2.0 if name == "ours" else 1.2
            axes.plot(*zip(*points, strict=True), "o-", ms=3.5, lw=width, color=colour, label=name)
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
    return [name for name in _entrants(groups) if name != "ours"]


def _figure(title: str, width: float, height: float) -> Figure:
    figure = Figure(figsize=(width, height), layout="constrained", facecolor="white")
    figure.suptitle(title, x=0, ha="left", fontsize=11, color=INK)
    return figure


def _plain(axes: Axes) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set(color=PALE)
    axes.grid(color=GRID, linewidth=0.6)
    axes.tick_params(which="both", color=PALE, labelcolor=INK, labelsize=8)
