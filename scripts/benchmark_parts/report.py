"""Results as a page of tables. Everything here is made from the files of raw numbers, which each
machine has for itself: benchmark/intel-xeon-1-thread.json."""

import inspect
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from itertools import product
from pathlib import Path

from benchmark_parts.measure import FAR_SLOWER, entrants, median, median_of
from benchmark_parts.pictures import picture
from benchmark_parts.sections import SECTIONS, Group
from minitransformer.visualize import save

INTRODUCTION = """\
# Benchmark, measured

`python scripts/benchmark.py --write` makes this page, of this machine's numbers and of those that
other machines left beside it: all entrants in one process, in turns, medians over the rounds. *By*
says how many times as fast as the entrant with 1.00 × one is; *ours by* is against the fastest of
the others. The optimizer is torch's fused AdamW for all; batches are made ahead, for all. *Loss*:
mean over the labels of a batch that no step saw, after as many steps, from equally distributed
weights. *Tokens* are real ones, no padding. *MiB*: what torch's allocator holds at the worst moment
above what it held before; scratch memory of MKL and oneDNN is not counted. *Ceiling*: the
operations that a step cannot do without (for real tokens, True entries and labels) per second, as a
share of those of a large matrix product in the same run and dtype.

In short: how many times as fast as others ours is; where the number is bold, theirs is faster. Of
attention the worst of all lengths, forward alone and with backward. *At most*: where the goal is
not reached, how many times as fast ours would be if all but its matrix products, those of attention
among them, took no time.
"""
TRIED = """\
## What was tried

Measured by hand on the way, not by this script; a ratio of times before and after.

What paid:

- To cut rows where two documents meet, instead of every 128 queries: attention on packed rows of
  512 tokens, forward and backward, 1.5 ×. A whole document needs no mask, or torch's causal flag.
- To join rows that are not alike only where that pays for the mask that they then need: 1.5 × for
  16 rows of 1,024 tokens, one of them a token short. (On the Xeon, cost at 0 % padding, in the last
  section, was measured before this.)
- To cut a causal document of 320 to 512 tokens, of whose future torch's kernel leaves out nothing,
  into strips of 128 queries: at 512 tokens, forward and backward, 1.26 ×.
- To write zeros over what the mask never uses only in the strips that have such rows, instead of in
  a copy of query, key and value: attention forward, half padded, 512 tokens, 1.6 ×.
- To compute the chunks of the loss in place, with one exponential instead of two: 1.25 × for the
  projection and its loss. Chunks of 2²¹ logits; half and twice as many are within 5 %.
- To train in bfloat16 with attention in torch's float32 kernel, whose way back in bfloat16 is slow:
  1.6 × for attention forward and backward.
- To share pairs out evenly, in a number of rows that is tried, instead of filling one row after the
  other: 1 to 4 % of padding instead of 5 to 14.
- To compute the last layer of a masked language model only at the tokens that have a label: 1.15 ×.
- To read a mask by products of small integers instead of a choice for each entry: plans, 1.25 ×.
- To ask the keys of a mask, not the queries, whether they are real: what is constant along the last
  axis fills no vector units. A step of the dates 1.01 ×.
- One product for query, key and value instead of three: 9 % of those products, some 2 % of a step.
- To split that product as it lies in memory, so that the gradients of the three are joined in one
  copy instead of three; to zero padding by its indices, or not at all where there is none. Both
  together: a step of the dates and of the masked language model 1.03 ×.

What did not:

- Strips of causal documents of other lengths: of 256 tokens, and of 768 and more, two threads lose
  what one may gain.
- To join more short documents in a strip (a strip counted as 40,000 or 80,000 scores instead of
  20,000): slower from 256 tokens on, level below.
- To read a mask in integers of 8 or 16 bits instead of 32, and to keep the C library from giving
  memory back after each step (`MALLOC_TRIM_THRESHOLD_`): no difference.
- To lay out small weights, too, for generation: no difference. Weights in bfloat16: 1.2 × for
  GPT-2, slower for Llama, and other tokens.
- torch's kernel for the one query of a step of generation: 1.5 × for attention, 1.04 × in all. It
  stayed, but what binds there is reading the weights.

What binds the dates, of which every document is short: as section c lists the operators, half of a
step is the layers' matrix products (`mm`, `addmm`). What is left is in small parts: attention's own
products and softmax, copies that gather tokens into groups and put them back, making and reading
masks, norms, loss, optimizer. Python's own time is not in that list. The same model written for
once without any mask, from lists of sentences sorted by length, takes 0.97 of the time of ours on
the AMD EPYC, for the pairs 1.09: of a step of the dates the explicit mask costs 3 %.
"""
FASTEST = "the fastest"
# Work, as its title begins, and which of ours -> beside whom -> how many times as fast is the goal.
GOALS: dict[tuple[str, str], dict[str, float | None]] = {
    ("masked language model, ragged", "ours, packed"): {
        "torch nn.TransformerEncoder": 4.0,
        "transformers ModernBERT": 2.5,
        FASTEST: None,
    },
    ("causal language model, dense", "ours"): {FASTEST: 1.05},
    ("causal language model, ragged", "ours, packed"): {FASTEST: 2.3},
    ("pairs of 10 to 60 tokens", "ours, packed"): {FASTEST: 2.0},
    ("pairs of 10 to 60 tokens", "ours, padded"): {FASTEST: 1.0},
    ("the main job's dates", "ours, packed"): {FASTEST: 1.5},
    ("generation, GPT-2, 48", "ours"): {FASTEST: 1.2},
    ("generation, GPT-2", "ours"): {FASTEST: 1.5},
    ("generation, Llama, 48", "ours"): {FASTEST: 1.2},
    ("generation, Llama", "ours"): {FASTEST: 1.35},
    ("attention", "ours"): {FASTEST: 1.0},
}
PRODUCTS = r"aten::(b?mm|(b?add)b?mm_?|_scaled_dot_product\w+)"


# ---- files -------------------------------------------------------------------------------------


def write(folder: Path, name: str, section: dict) -> Path:
    """Put a section just measured in place of this machine's older one, and of that alone; then
    make its picture, and the page."""
    run = name_of_run(section["machine"])
    data = folder / "benchmark" / f"{_slug(run)}.json"
    data.parent.mkdir(exist_ok=True)
    known = json.loads(data.read_text(encoding="utf-8")) if data.exists() else {}
    known = dict(sorted((known | {name: section}).items()))
    data.write_text(json.dumps(known, indent=1) + "\n", encoding="utf-8")
    figure = picture(f"{heading(name)}, {run}", section["groups"])
    if figure is not None:
        save(figure, data.with_name(_picture_name(run, name)))
    return write_page(folder)


def write_page(folder: Path) -> Path:
    """benchmark.md, of what lies beside it: the numbers of each machine, and scaling.md."""
    page = folder / "benchmark.md"
    files = [json.loads(f.read_text(encoding="utf-8")) for f in folder.glob("benchmark/*.json")]
    runs = {name_of_run(next(iter(one.values()))["machine"]): one for one in files}
    runs = dict(sorted(runs.items(), key=lambda run: (run[0].endswith("threads"), run[0])))
    text = markdown(runs) + several_processes(folder / "scaling.md")
    page.write_text(text, encoding="utf-8")
    return page


def several_processes(page: Path) -> str:
    """What scripts/scaling.py has measured, if it has: its table, and where the rest is."""
    lines = page.read_text(encoding="utf-8").splitlines() if page.exists() else []
    table = [line for line in lines if line.startswith("|")]
    rows = table[: 1 + max((i for i, line in enumerate(table) if "(FSDP)" in line), default=-1)]
    where = "Real tokens a second, on two cores; [how, and on 64 GPUs on paper](scaling.md)."
    return "\n".join(["", "## Several processes", "", where, "", *rows, ""]) if rows else ""


def name_of_run(machine: dict[str, str]) -> str:
    """The processor and its threads, or the GPU: what the numbers of a run are filed under."""
    if machine["device"] != "cpu":
        return machine["device"]
    processor = re.sub(r"\(\w+\)|\bProcessor\b", "", machine["processor"])
    threads = "1 thread" if machine["threads"] == "1" else f"{machine['threads']} threads"
    return f"{' '.join(processor.split())}, {threads}"


def _slug(name: str) -> str:
    return "-".join(re.findall(r"\w+", name.lower()))


def _picture_name(run: str, section: str) -> str:
    return f"{section}-{_slug(run)}.png"


def markdown(runs: dict[str, dict]) -> str:
    """For each section what it measures, then the tables of each machine."""
    short = {name: run for name, run in runs.items() if not name.endswith(" threads")}
    parts = [INTRODUCTION, f"## In short\n\n{in_short(short)}"]
    for name in SECTIONS:
        there = {run: sections[name] for run, sections in runs.items() if name in sections}
        if there:
            parts += [f"## {heading(name)}\n", inspect.getdoc(SECTIONS[name]) + "\n"]
        for run, section in there.items():
            parts += [f"### {name}. {run}\n", machine_line(section)]
            if picture("", section["groups"]) is not None:
                parts.append(f"![{heading(name)}](benchmark/{_picture_name(run, name)})\n")
            parts.append(tables(section["groups"]))
    return "\n".join([*parts, TRIED])


# ---- in short ----------------------------------------------------------------------------------


def in_short(runs: dict[str, dict]) -> str:
    """A line for each piece of work and whom it is beside, a column for each machine."""
    found: dict[tuple[str, ...], dict[str, tuple[float, str]]] = {}
    for name, (run, sections) in product(SECTIONS, runs.items()):
        for group in sections[name]["groups"] if name in sections else ():
            for line, ratio, said in _compared(group):
                cells = found.setdefault(line, {})
                cells[run] = min(cells.get(run, (ratio, said)), (ratio, said))
    lines = [[*line, *(_times(cells.get(run)) for run in runs)] for line, cells in found.items()]
    return table(["work", "beside", "goal", *runs], lines)


def _times(found: tuple[float, str] | None) -> str:
    if found is None:
        return ""
    ratio, said = found
    return (f"{ratio:.2f} ×" if ratio >= 0.995 else f"**{ratio:.2f} ×**") + said


def _compared(group: Group) -> Iterator[tuple[tuple[str, ...], float, str]]:
    """Of a group: its line in short (work, beside whom, goal), the ratio, and what to say of it."""
    mask = group.get("row", {}).get("mask")
    if not group["rows"] or ("table" in group and mask is None):  # cost, which is not compared
        return
    title = group["title"] if mask is None else f"attention, {mask}"
    rows = {row["name"]: median(row["seconds"]) for row in group["rows"]}
    others = [name for name in rows if not name.startswith("ours")]
    for ours in (name for name in rows if name.startswith("ours")):
        for beside, goal in goals(title, ours).items():
            peer = min(others, key=rows.__getitem__) if beside == FASTEST else beside
            if peer not in rows:
                continue
            said = f" {peer}" * (beside == FASTEST)
            said += f", {group['table']}, length {group['row']['length']}" if mask else ""
            ratio = rows[peer] / rows[ours]
            if goal and ratio < goal and ours == group["rows"][0]["name"] and "profile" in group:
                said += f" (at most {ratio / products(group['profile']):.2f})"
            layout = ours.removeprefix("ours")
            line = (title + layout * (", " in ours), beside, f"{goal:g} ×" if goal else "")
            yield line, ratio, said


def products(profile: Sequence[dict]) -> float:
    """The share of the time that goes into matrix products, those of attention among them."""
    return sum(op["share"] for op in profile if re.fullmatch(PRODUCTS, op["operator"]))


def goals(title: str, ours: str) -> dict[str, float | None]:
    """Beside whom one of ours is put, and how many times as fast it is to be; {} if it is not."""
    wanted = (g for (work, who), g in GOALS.items() if title.startswith(work) and who == ours)
    return next(wanted, {})


def milliseconds(group: Group) -> str:
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
    left_out = f"; bfloat16 is left out, {FAR_SLOWER:g} times slower or more"
    return f"*{about}. Ceiling{each}: {best}{left_out * ('bfloat16' not in ceiling)}.*\n"


def heading(name: str) -> str:
    return f"{name}. {SECTIONS[name].__name__.replace('_', ' ').capitalize()}"


# ---- tables ------------------------------------------------------------------------------------


def tables(groups: Sequence[Group]) -> str:
    """Groups that belong to a common table are a row each; any other is a table of its own."""
    parts, common = [], {}
    for group in groups:
        if "table" in group:
            common.setdefault(group["table"], []).append(group)
        else:
            parts += [f"**{group['title']}**\n", _table_ofentrants(group)]
    for title, members in common.items():
        parts += [f"**{title}**\n", _table_of_groups(members)]
    absent = {(name, why) for g in groups for name, why in g.get("absent", {}).items()}
    parts += [f"Not measured: {name}: {why}\n" for name, why in sorted(absent)]
    return "\n".join(parts)


def _table_ofentrants(group: Group) -> str:
    if not group["rows"]:
        return ""
    base = median_of(group, group["baseline"])
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
        [row["name"], *(columns[name](row) for name in shown), _faster(base, seconds)]
        for row in group["rows"]
        for seconds in [median(row["seconds"])]
    ]
    text = table(header, lines)
    if "profile" in group:
        operators = [f"`{op['operator']}` {op['share']:.0%}" for op in group["profile"]]
        text += f"\nWhere the time of {group['rows'][0]['name']} goes: {', '.join(operators)}.\n"
    return text


def _faster(base: float | None, seconds: float) -> str:
    """How many times as fast as the baseline, if that was measured."""
    return "" if base is None else f"{base / seconds:.2f} ×"


def _table_of_groups(groups: Sequence[Group]) -> str:
    names = entrants(groups)
    header = [*groups[0]["row"], *(f"{name}, ms" for name in names)]
    ideal = "ideal" in groups[0]
    header += ["ideal, ms"] * ideal + ["ours by"] + [f"{name}, MiB" for name in names]
    header += ["difference"] * ("difference" in groups[0]["rows"][0])
    lines = []
    for group in groups:
        rows = {row["name"]: row for row in group["rows"]}
        cells = [_cell(value) for value in group["row"].values()]
        cells += [_milliseconds(median_of(group, name)) for name in names]
        cells += [_milliseconds(group["ideal"])] if ideal else []
        others = [row for name, row in rows.items() if not name.startswith("ours")]
        fastest = min(median(row["seconds"]) for row in others)
        cells += [f"{fastest / median_of(group, 'ours'):.2f} ×"]
        cells += [f"{rows[name]['peak_mib']:,.0f}" if name in rows else "" for name in names]
        if "difference" in rows["ours"]:
            cells.append(f"{rows['ours']['difference']:.0e}")
        lines.append(cells)
    return table(header, lines)


def table(header: Iterable[str], lines: Iterable[Iterable[str]]) -> str:
    header = list(header)
    rows = [header, ["---"] * len(header), *lines]
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


def _milliseconds(seconds: float | None) -> str:
    return "" if seconds is None else f"{seconds * 1000:,.{0 if seconds >= 0.1 else 1}f}"


def _cell(value: str | float) -> str:
    return f"{value:.0%}" if isinstance(value, float) else str(value)
