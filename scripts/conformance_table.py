"""What libraries do with masks: every known subject under every check, as a table and a picture.

    python scripts/conformance_table.py --out notebooks/conformance
    python scripts/conformance_table.py --update # keep what was recorded of other libraries

Writes table.md, table.png and results.json. A check asks for what `minitransformer.checks` calls an
invariant; where a library does something else the table says that it differs, and by how much.
Whether that is a fault is not for a table to say: much of it is documented, and noted so.
"""

import argparse
import json
import platform
import re
import sys
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import date
from fnmatch import fnmatch
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch, Rectangle
from tqdm import tqdm

from minitransformer.checks import TIERS, run_checks
from minitransformer.checks.engine.check import Check, checks_of
from minitransformer.checks.engine.report import Report, Result
from minitransformer.checks.known import KNOWN, PACKAGES, Known

SECONDS = 60.0  # for one check: jax compiles anew for each shape


@dataclass(frozen=True)
class Note:
    """Where a difference is documented or discussed. `checks`: patterns, with spaces between."""

    subjects: str
    checks: str
    text: str
    source: str


TORCH = "https://docs.pytorch.org/docs/stable/generated/torch.nn."
HF = "https://github.com/huggingface/transformers/blob/main/src/transformers/"
X = "https://github.com/lucidrains/x-transformers/blob/main/x_transformers/attend.py"
KERAS = "https://github.com/keras-team/keras/blob/master/keras/src/"
JAX = "https://github.com/jax-ml/jax/blob/main/jax/_src/nn/functions.py"

NOTES = [
    Note(
        "torch.nn*ross*ntropy*",
        "nothing_to_predict_is_no_nan",
        "the mean of no losses is 0/0; torch's maintainers call NaN expected.",
        "https://github.com/pytorch/pytorch/issues/70348",
    ),
    Note(
        "transformers.loss*",
        "nothing_to_predict_is_no_nan",
        "it calls torch's cross_entropy, whose mean of no losses is 0/0.",
        "https://github.com/pytorch/pytorch/issues/70348",
    ),
    Note(
        "transformers:DataCollatorForLanguageModeling",
        "labels_are_those_of_their_tokens",
        "every token with the id of padding becomes -100, a real one too: with pad = eos the end "
        "of the text is never learned.",
        "https://github.com/huggingface/transformers/issues/23530",
    ),
    Note(
        "torch.nn.functional:scaled_dot_product_attention*",
        "the_causal_flag_aligns_*",
        "documented: `is_causal` is the *upper left* causal bias where there are fewer queries "
        "than keys. `torch.nn.attention.bias.causal_lower_right` gives the other.",
        TORCH + "functional.scaled_dot_product_attention.html",
    ),
    Note(
        "keras.layers:MultiHeadAttention*",
        "the_causal_flag_aligns_*",
        "keras builds this mask from the first query and the first key on; it is meant for as many "
        "queries as keys.",
        KERAS + "layers/attention/multi_head_attention.py",
    ),
    Note(
        "jax.nn:*",
        "the_causal_flag_aligns_*",
        "jax builds this mask as a lower triangle from the first query and the first key on.",
        JAX,
    ),
    Note(
        "torch.nn.functional:scaled_dot_product_attention@FLASH_ATTENTION*",
        "how_tensors_lie_in_memory_*",
        "this backend takes only tensors whose last axis is contiguous, and says so by an error. "
        "Where the backend is not pinned, torch takes another and the check passes.",
        "https://github.com/pytorch/pytorch/blob/main/aten/src/ATen/native/transformers/sdp_utils_cpp.cpp",
    ),
    Note(
        "torch.nn:MultiheadAttention*",
        "*nothing* there_is_no_nan_inside_the_graph gradcheck_passes",
        "a query with no key to see has no softmax. Known and discussed since 2020; with "
        "`need_weights=False` the layer takes another path, which gives zeros.",
        "https://github.com/pytorch/pytorch/issues/41508",
    ),
    Note(
        "torch.nn:MultiheadAttention*",
        "ones_and_zeros_*",
        "documented: masks are bool or float. An integer mask is refused by an AssertionError, "
        "which is as good as the errors that the check knows.",
        TORCH + "MultiheadAttention.html",
    ),
    Note(
        "torch.nn.attention.flex_attention:*",
        "ones_and_zeros_*",
        "documented: a mask_mod returns bool. Anything else is refused by an AssertionError, "
        "which is as good as the errors that the check knows.",
        "https://docs.pytorch.org/docs/stable/nn.attention.flex_attention.html",
    ),
    Note(
        "transformers.*eager_attention_forward",
        "a_query_that_sees_nothing_gets_zeros",
        "by design: the mask that the library builds for this function holds the smallest finite "
        "number, so that such a query averages over all keys instead of giving NaN.",
        HF + "masking_utils.py",
    ),
    Note(
        "transformers.*eager_attention_forward",
        "scores_beyond_float16_are_right",
        "q·k is computed in float16 and scaled afterwards. The sdpa path of the same library "
        "passes.",
        HF + "models/llama/modeling_llama.py",
    ),
    Note(
        "transformers.models.llama.*",
        "float64_is_computed_in_float64 gradcheck_passes",
        "by design: the softmax is always computed in float32, which helps half precision.",
        HF + "models/llama/modeling_llama.py",
    ),
    Note(
        "x_transformers.attend:Attend",
        "float64_is_computed_in_float64 gradcheck_passes",
        "by design: the softmax is always computed in float32, which helps half precision.",
        X,
    ),
    Note(
        "x_transformers.attend:Attend",
        "scores_beyond_float16_are_right",
        "q·k is computed in float16 and scaled afterwards. The flash path of this class passes.",
        X,
    ),
    Note(
        "keras.layers:MultiHeadAttention@return_attention_scores=True",
        "no_score_is_large_enough_to_leak",
        "keras' softmax layer fills with -1e9 (-3e4 in float16) and sets forbidden weights to 0 "
        "afterwards. Ordinary scores are far from that.",
        KERAS + "layers/activations/softmax.py",
    ),
    Note(
        "keras.layers:MultiHeadAttention",
        "a_query_that_sees_nothing_gets_zeros",
        "the mask is a large negative number here, while `return_attention_scores=True` takes "
        "another path, which gives zeros.",
        KERAS + "backend/torch/nn.py",
    ),
    Note(
        "flax.linen:dot_product_attention",
        "a_query_that_sees_nothing_gets_zeros",
        "by design: the mask is filled with the smallest finite number.",
        "https://github.com/google/flax/blob/main/flax/linen/attention.py",
    ),
    Note(
        "jax.nn:dot_product_attention",
        "a_query_that_sees_nothing_gets_zeros",
        "by design: the mask is filled with 0.7 of the smallest finite number.",
        JAX,
    ),
    Note(
        "torch.nn:Transformer*",
        "[!n]* no_*",
        "in inference torch takes a fast path, in which a query with nothing to see (padding on "
        "the left under a causal mask) becomes NaN; the next layer carries it to real tokens, for "
        "0 · NaN is NaN. In training the same layers give zeros there. A change is proposed.",
        "https://github.com/pytorch/pytorch/pull/190486",
    ),
    Note(
        "transformers:GPT2LMHeadModel@*",
        "padding_on_the_left_is_irrelevant",
        "documented: positions are columns unless position_ids are given, and with absolute "
        "positions one should pad on the right. `generate` counts the positions itself.",
        "https://github.com/huggingface/transformers/issues/18478",
    ),
    Note(
        "transformers:BertModel*",
        "padding_on_the_left_is_irrelevant",
        "documented: with absolute positions one should pad on the right.",
        "https://github.com/huggingface/transformers/issues/808",
    ),
    Note(
        "transformers:Bart*",
        "padding_*_is_irrelevant",
        "documented: with absolute positions one should pad on the right.",
        "https://huggingface.co/docs/transformers/model_doc/bart",
    ),
    Note(
        "*transformers:*",
        "parameter_gradients_do_not_depend_on_padding",
        "follows from what padding does to the outputs: see there.",
        "https://github.com/huggingface/transformers/issues/18478",
    ),
    Note(
        "x_transformers:*coder",
        "padding_on_the_left_is_irrelevant",
        "positions are columns by default; with `rotary_pos_emb` the check passes.",
        "https://github.com/lucidrains/x-transformers",
    ),
    Note(
        "x_transformers:*shift_tokens=1",
        "what_padding_holds_is_irrelevant",
        "by design `shift_tokens` mixes half of each token with its neighbour, padding or not.",
        "https://github.com/lucidrains/x-transformers",
    ),
    Note(
        "x_transformers:*",
        "half_precision_*",
        "a model cast to half precision refuses to run; autocast was not tried here.",
        "https://github.com/lucidrains/x-transformers",
    ),
    Note(
        "*",
        "nan_in_* half_precision_keeps_nan_out_too",
        "0 · NaN is NaN, so a weight of 0 keeps no NaN out; asked of torch in 2023, and closed.",
        "https://github.com/pytorch/pytorch/issues/101967",
    ),
]


@dataclass(frozen=True)
class Row:
    """A subject and what became of it: a report, or the reason why there is none."""

    known: Known
    kind: str = ""
    report: Report | None = None
    reason: str = ""
    cells: dict[str, str] = field(default_factory=dict)  # check -> sign


SIGNS = {"pass": "✓", "differs": "✗", "raised": "!", "not applicable": "–", "not asked": "?"}
LEGEND = {
    "✓": "as asked",
    "✗": "differs",
    "!": "raised an error instead of an answer",
    "–": "not applicable: the subject does not promise it",
    "?": "not asked: the check is newer than the measurement",
}


def sign(result: Result) -> str:
    if result.outcome == "fail":
        return SIGNS["raised" if result.raised else "differs"]
    return SIGNS[result.outcome]


# ---- running -------------------------------------------------------------------------------------


def run(names: Iterable[str], tier: str, recorded: dict) -> list[Row]:
    """Every subject under every check up to the tier; where it is not installed, as recorded."""
    rows = []
    old = {one["subject"]: one for one in recorded.get("subjects", []) if one["results"]}
    bar = tqdm(list(names), unit="subject", disable=None)
    for name in bar:
        bar.set_postfix_str(name)
        again = KNOWN[name].installed or name not in old
        rows.append(run_one(KNOWN[name], tier) if again else as_recorded(KNOWN[name], old[name]))
    return rows


def run_one(one: Known, tier: str) -> Row:
    if not one.installed:
        return Row(one, reason="not installed")
    try:
        subject = one()
    except Exception as error:  # whatever a library raises, the others are still run
        return Row(one, reason=f"could not be built: {type(error).__name__}: {first_line(error)}")
    report = run_checks(subject, tier, SECONDS)
    if not report.ran:
        said = next((r.diagnosis for r in report if r.outcome == "fail"), "no check applies to it")
        return Row(one, subject.kind, reason=f"could not be run: {said}")
    return Row(one, subject.kind, report, cells={result.check: sign(result) for result in report})


def as_recorded(one: Known, old: dict) -> Row:
    """A row out of results.json, with every check that was not asked of it marked so."""
    found = {result["check"]: result for result in old["results"]}
    results = []
    for c in checks_of(old["as"]):
        result = found.get(c.name, {"outcome": "not asked", "measured": None})
        measured = result["measured"] if result["measured"] is None else float(result["measured"])
        said = {key: result.get(key, "") for key in ("diagnosis", "raised")}
        results.append(
            Result(c.name, c.tier, c.statement, result["outcome"], measured, c.measures, **said)
        )
    report = Report(old["as"], one.name, "strict", results)
    return Row(one, old["as"], report, cells={result.check: sign(result) for result in report})


def first_line(error: Exception) -> str:
    return (str(error).strip() or "no message").splitlines()[0]


def versions(rows: list[Row], recorded: dict) -> dict[str, str]:
    """Of Python, torch and every library that a subject came from, here or as recorded."""
    found = {"python": platform.python_version(), "torch": torch.__version__}
    for library in dict.fromkeys(row.known.library for row in rows):
        package = PACKAGES.get(library, library)
        try:
            found.setdefault(package, version(package))
        except PackageNotFoundError:
            kept = recorded.get("versions", {}).get(package, "not installed")
            when = "" if "(" in kept or kept == "not installed" else f" ({recorded['date']})"
            found[package] = kept + when
    if "keras" in sys.modules:
        found["keras"] += f" on its {sys.modules['keras'].config.backend()} backend"
    return found


def by_kind(rows: list[Row]) -> dict[str, list[Row]]:
    kinds: dict[str, list[Row]] = {}
    for row in rows:
        if row.report is not None:
            kinds.setdefault(row.kind, []).append(row)
    return kinds


# ---- results.json --------------------------------------------------------------------------------


def as_json(rows: list[Row], tier: str, about: dict) -> str:
    kept = ("check", "outcome", "measured", "diagnosis")
    subjects = []
    for row in rows:
        results = [] if row.report is None else row.report.results
        subjects.append(
            {
                "subject": row.known.name,
                "as": row.kind,
                "reason": row.reason,
                "results": [
                    {key: result.as_dict()[key] for key in kept} | {"raised": result.raised}
                    for result in results
                ],
            }
        )
    checks = {
        kind: [
            {"check": c.name, "tier": c.tier, "statement": c.statement, "measures": c.measures}
            for c in checks_of(kind, tier)
        ]
        for kind in by_kind(rows)
    }
    whole = about | {"tier": tier, "checks": checks, "subjects": subjects}
    return json.dumps(whole, indent=1, ensure_ascii=False, allow_nan=False) + "\n"


# ---- table.md ------------------------------------------------------------------------------------


def as_markdown(rows: list[Row], tier: str, about: dict) -> str:
    lines = [
        "# What libraries do with masks",
        "",
        "Each row is a library's own code, called through an adapter of a few lines "
        "(`minitransformer/checks/known.py`); each column is an invariant of "
        "`minitransformer.checks`. Where a cell *differs*, the library does something else than "
        "the invariant asks. That need not be a fault: what is documented is noted so.",
        "",
        "Measured on " + about["date"] + " on a CPU with "
        f"{about['threads']} torch thread{'s' * (about['threads'] != 1)}: "
        + ", ".join(f"{name} {number}" for name, number in about["versions"].items())
        + f". Tiers up to {tier}.",
        "",
        " · ".join(f"{one} {meaning}" for one, meaning in LEGEND.items()),
    ]
    for kind, members in by_kind(rows).items():
        checks = checks_of(kind, tier)
        lines += ["", f"## {kind}", "", *_overview(members, checks)]
        lines += ["", *_matrix(members, checks), "", *_differences(members, checks)]
    used = sorted(
        {
            number
            for row in rows
            for check, cell in row.cells.items()
            if cell in (SIGNS["differs"], SIGNS["raised"])
            for number in notes_for(check, [row.known.name])
        }
    )
    if used:
        lines += ["", "## Notes", ""]
        for number in used:
            note = NOTES[number - 1]
            lines.append(f"- **[{number}]** `{note.subjects}`: {note.text} [Source]({note.source})")
    missing = [row for row in rows if row.report is None]
    if missing:
        lines += ["", "## Not run", ""]
        lines += [f"- `{row.known.name}`: {row.reason}" for row in missing]
    return "\n".join(lines) + "\n"


def _overview(rows: list[Row], checks: list[Check]) -> list[str]:
    tiers = [tier for tier in TIERS if any(c.tier == tier for c in checks)]
    lines = [f"| as {rows[0].kind} | {' | '.join(tiers)} |", "|---|" + "---|" * len(tiers)]
    for row in rows:
        counts = []
        for tier in tiers:
            cells = [row.cells[c.name] for c in checks if c.tier == tier]
            asked = [c for c in cells if c not in (SIGNS["not applicable"], SIGNS["not asked"])]
            good = asked.count(SIGNS["pass"])
            counts.append(
                f"{SIGNS['pass']} {good}" if good == len(asked) else f"{good} of {len(asked)}"
            )
        lines.append(f"| `{row.known.name}` | {' | '.join(counts)} |")
    return lines


def _matrix(rows: list[Row], checks: list[Check]) -> list[str]:
    """The columns are numbered, for the names of the checks are sentences."""
    numbers = range(1, len(checks) + 1)
    lines = [
        f"| | {' | '.join(str(number) for number in numbers)} |",
        "|---|" + ":-:|" * len(checks),
    ]
    lines += [
        f"| `{row.known.name}` | {' | '.join(row.cells[c.name] for c in checks)} |" for row in rows
    ]
    for tier in TIERS:
        named = [
            f"{n} {words(c.name)}" for n, c in zip(numbers, checks, strict=True) if c.tier == tier
        ]
        if named:
            lines += ["", f"{tier}: " + " · ".join(named)]
    return lines


def _differences(rows: list[Row], checks: list[Check]) -> list[str]:
    """What was measured in every cell that is not as asked; equal findings share a line."""
    lines = []
    for check in checks:
        findings: dict[str, list[str]] = {}
        for row in rows:
            assert row.report is not None
            result = row.report[check.name]
            if result.outcome == "fail":
                findings.setdefault(finding(result), []).append(row.known.name)
        if not findings:
            continue
        lines += [
            "",
            f"### {words(check.name)} ({check.tier})",
            "",
            f"Asked: {check.statement}",
            "",
        ]
        for what, names in findings.items():
            lines.append(f"- {', '.join(f'`{name}`' for name in names)}: {what}")
        differing = [name for names in findings.values() for name in names]
        numbers = notes_for(check.name, differing)
        if numbers:
            links = ", ".join(f"[{number}](#notes)" for number in numbers)
            lines += ["", f"See note{'s' * (len(numbers) > 1)} {links}."]
    return lines[1:] or ["Nothing differs."]


def finding(result: Result) -> str:
    """What was seen and measured, without the advice that the check gives to a learner."""
    if result.raised:
        return result.diagnosis.split(" It was called with")[0]
    head, _, rest = result.diagnosis.split(", numerical:")[0].partition(": ")
    if len(head) < 25:
        head = f"{head}: {rest}"
    seen = re.split(r"(?<=\.) (?=[A-Z])", head)[0].rstrip(".") + "."
    if result.measured is None or f"{result.measured:.3g}" in seen or not result.measures:
        return seen
    return f"{seen} ({result.measures}: {result.measured:.3g})"


def notes_for(check: str, names: list[str]) -> list[int]:
    """The numbers, from 1, of the notes on these subjects."""
    return [
        number
        for number, note in enumerate(NOTES, 1)
        if any(fnmatch(check, pattern) for pattern in note.checks.split())
        and any(fnmatch(name, note.subjects) for name in names)
    ]


def words(name: str) -> str:
    return name.replace("_", " ")


# ---- table.png -----------------------------------------------------------------------------------

CELL, WIDTH = 0.27, 13.0  # inches
TOGETHER = (("encoder", "decoder", "encoder-decoder"),)  # kinds of subject with checks in common
TILES = {  # fill, ink
    "✓": ("#d8ead6", "#4a8a4a"),
    "✗": ("#d9622b", "#ffffff"),
    "!": ("#f3c969", "#5c4400"),
    "–": ("#f2f2f2", "#b5b5b5"),
    "?": ("#ffffff", "#b5b5b5"),
}
BANDS = {"core": "#1f3b57", "robust": "#5a7fa3", "strict": "#a9bfd3"}
INK, PALE = "#222222", "#666666"


def as_picture(rows: list[Row], tier: str, about: dict) -> Figure:
    """Blocks of cells of one size, checks down and subjects across, laid out in shelves."""
    kinds = by_kind(rows)
    blocks, placed = [], set()
    for kind in kinds:
        together = next((group for group in TOGETHER if kind in group), (kind,))
        if kind not in placed:
            group = {name: kinds[name] for name in together if name in kinds}
            blocks.append(Block(group, tier))
            placed |= set(group)
    places, x, top, shelf = [], 0.0, 1.25, 0.0
    for block in blocks:
        if x and x + block.width > WIDTH:
            x, top, shelf = 0.0, top + shelf, 0.0
        places.append((x, top))
        x, shelf = x + block.width, max(shelf, block.height)
    width = max([WIDTH, *(block.width for block in blocks)])
    figure = Figure(figsize=(width, top + shelf), facecolor="white")
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(0, width), ylim=(top + shelf, 0))
    axes.axis("off")
    axes.text(0.35, 0.42, "What libraries do with masks", size=19, weight="bold", color=INK)
    libraries = ", ".join(f"{name} {number}" for name, number in about["versions"].items())
    axes.text(0.35, 0.7, f"{about['date']}, on a CPU: {libraries}", size=8, color=PALE)
    x = 0.35
    for one, meaning in LEGEND.items():
        _tile(axes, x, 0.86, one)
        axes.text(x + 0.35, 1.0, meaning, size=8.5, va="center", color=INK)
        x += 0.65 + 0.075 * len(meaning)
    for block, place in zip(blocks, places, strict=True):
        block.draw(axes, *place)
    return figure


class Block:
    """Kinds of subject side by side under the checks of all of them."""

    def __init__(self, kinds: dict[str, list[Row]], tier: str):
        self.kinds = kinds
        found = {check.name: check for kind in kinds for check in checks_of(kind, tier)}
        order = list(TIERS)
        self.checks = sorted(found.values(), key=lambda check: order.index(check.tier))
        self.names = {kind: short_names(rows) for kind, rows in kinds.items()}
        self.left = 0.75 + 0.0625 * max(len(check.name) for check in self.checks)
        longest = max(len(name) for names in self.names.values() for name in names)
        self.head = 0.5 + 0.054 * longest
        columns = sum(map(len, kinds.values())) + 0.5 * (len(kinds) - 1)
        self.width = self.left + CELL * columns + 0.042 * longest + 0.2
        self.height = self.head + CELL * len(self.checks) + 0.75

    def draw(self, axes, left: float, top: float) -> None:
        x, y = left + self.left, top + self.head
        for row, check in enumerate(self.checks):
            middle = y + (row + 0.5) * CELL
            axes.text(
                x - 0.17, middle, words(check.name), size=8.5, ha="right", va="center", color=INK
            )
            bar = (x - 0.1, y + row * CELL)
            axes.add_patch(Rectangle(bar, 0.05, CELL, color=BANDS[check.tier], linewidth=0))
        for tier in TIERS:
            mine = [row for row, check in enumerate(self.checks) if check.tier == tier]
            if mine:
                middle = y + (mine[0] + len(mine) / 2) * CELL
                axes.text(
                    left + 0.3,
                    middle,
                    tier,
                    size=9,
                    rotation=90,
                    ha="center",
                    va="center",
                    color=BANDS["robust"],
                    weight="bold",
                )
        for kind, rows in self.kinds.items():
            for row, name in zip(rows, self.names[kind], strict=True):
                ours = row.known.library == "minitransformer"
                axes.text(
                    x + CELL / 2,
                    y - 0.06,
                    name,
                    size=8.5,
                    rotation=55,
                    rotation_mode="anchor",
                    ha="left",
                    va="center",
                    color=INK,
                    weight="bold" if ours else "normal",
                )
                for line, check in enumerate(self.checks):
                    if check.name in row.cells:
                        _tile(axes, x, y + line * CELL, row.cells[check.name])
                x += CELL
            axes.text(
                x - len(rows) * CELL / 2,
                y + len(self.checks) * CELL + 0.22,
                kind,
                size=11,
                weight="bold",
                ha="center",
                va="center",
                color=BANDS["core"],
            )
            x += CELL / 2


def _tile(axes, x: float, y: float, one: str) -> None:
    fill, ink = TILES[one]
    box = "round,pad=0,rounding_size=0.04"
    tile = FancyBboxPatch(
        (x + 0.015, y + 0.015), CELL - 0.03, CELL - 0.03, boxstyle=box, facecolor=fill, linewidth=0
    )
    axes.add_patch(tile)
    middle = x + CELL / 2, y + CELL / 2
    axes.text(*middle, one, size=9, ha="center", va="center_baseline", color=ink)


def short_names(rows: list[Row]) -> list[str]:
    """library  object@variant, with the module where the rest would not tell two apart."""
    parts = [(row.known.name.partition(":")) for row in rows]
    short = [
        (module.split(".")[0], name or module, module.rpartition(".")[2])
        for module, _, name in parts
    ]
    names = []
    for library, name, module in short:
        twins = [one for one in short if one[:2] == (library, name)]
        names.append(f"{library}  {module + '.' if len(twins) > 1 else ''}{name}")
    return names


# ---- the script ----------------------------------------------------------------------------------


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("notebooks/conformance"), metavar="FOLDER")
    parser.add_argument("--only", metavar="PATTERN", help="names that contain or match it")
    parser.add_argument("--tier", choices=list(TIERS), default="strict", help="how much is asked")
    parser.add_argument(
        "--update", action="store_true", help="keep the recorded rows of what is not installed"
    )
    options = parser.parse_args(arguments)
    record = options.out / "results.json"
    recorded = json.loads(record.read_text(encoding="utf-8")) if options.update else {}
    pattern = options.only or "*"
    names = [name for name in KNOWN if pattern in name or fnmatch(name, pattern)]
    if not names:
        sys.exit(f"no known subject matches {pattern!r}; there are:\n  " + "\n  ".join(KNOWN))
    torch.set_num_threads(1)
    rows = run(names, options.tier, recorded)
    about = {
        "date": date.today().isoformat(),
        "versions": versions(rows, recorded),
        "threads": torch.get_num_threads(),
        "machine": f"{platform.system()} {platform.machine()}",
    }
    options.out.mkdir(parents=True, exist_ok=True)
    record.write_text(as_json(rows, options.tier, about), encoding="utf-8")
    (options.out / "table.md").write_text(as_markdown(rows, options.tier, about), encoding="utf-8")
    as_picture(rows, options.tier, about).savefig(options.out / "table.png", dpi=110)
    done = sum(row.report is not None for row in rows)
    print(f"{done} of {len(rows)} subjects run; see {options.out / 'table.md'}")


if __name__ == "__main__":
    main()
