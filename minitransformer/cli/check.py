"""`minitransformer check`: its options, and what it prints.

Exit status: 0 every check passes, 1 some fail, 2 it could not be checked: a line says why.
"""

import argparse
import inspect
import json
import os
import re
import sys
import textwrap
from dataclasses import fields
from difflib import get_close_matches
from pathlib import Path

from torch import Tensor
from tqdm import tqdm

from minitransformer.checks.attention.cases import make_inputs, masks
from minitransformer.checks.attention.subject import attention_weights_of
from minitransformer.checks.engine.bugs import Bug, bugs
from minitransformer.checks.engine.check import TIERS, checks_of
from minitransformer.checks.engine.diagnosis import diagnose, examine
from minitransformer.checks.engine.report import Report, Result
from minitransformer.checks.engine.running import run_checks
from minitransformer.checks.engine.subject import SUBJECTS
from minitransformer.checks.finding import LAYER, find_subject
from minitransformer.data.files import InputError

HELP = """
SUBJECT is package.module:function or file.py:function. A minimal file, attention.py:

    def attention(query, key, value, mask):
        # query, key, value: (batch, heads, length, width)
        # mask: (batch, 1, queries, keys), True = this query may attend to this key
        scores = query @ key.transpose(-2, -1) / query.shape[-1] ** 0.5
        weights = scores.masked_fill(~mask, float("-inf")).softmax(dim=-1)
        return weights @ value          # or: return weights @ value, weights

    minitransformer check attention.py:attention

A function that takes something else says so, and need not be rewritten:

    --mask-means ignore          True (or 1) means: may NOT attend, as in nn.MultiheadAttention
    --mask-values int            1 and 0;  additive: 0 and -inf, added to the scores
    --mask-layout "b 1 1 k"      the mask hides keys only; also "b k", "q k", "b h q k", ...
    --layout "b t h d"           axes of query, key, value and output; "b t d": no heads;
                                 "t d": one sequence, two matrices, mask "q k"
    --dtypes float32,float64     the dtypes that it promises to work in

Other things can be checked too. --as says what SUBJECT is, and so how it is called:

{kinds}

A class is built without arguments; models.py:build() calls build and checks what it returns.
The tiers: {tiers}.
`minitransformer check --list --as KIND` lists the checks of a kind and all that it may declare.
Exit status: 0 all pass, 1 some fail, 2 it could not be checked (and says why).
"""


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(verb=_check)
    kinds = "\n".join(
        f"    --as {kind:<16} f({', '.join(cls.arguments)})" for kind, cls in SUBJECTS.items()
    )
    kinds += f"\n    --as {LAYER:<16} f(x, attention_mask): x (batch, length, 16); another\n"
    kinds += f"{' ' * 26}width is declared: --declare d_model=32"
    tiers = "; ".join(f"{tier} ({means})" for tier, means in TIERS.items())
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.description = textwrap.fill(parser.description or "", 90)
    parser.epilog = HELP.format(kinds=kinds, tiers=textwrap.fill(tiers, 90)).strip()
    parser.add_argument("subject", metavar="SUBJECT", nargs="?", help="what is checked")
    parser.add_argument(
        "--as", dest="kind", choices=[*SUBJECTS, LAYER], metavar="KIND", help="default: attention"
    )
    parser.add_argument(
        "--tier", choices=TIERS, default="core", help="how much is asked (default: core)"
    )
    for name, choices in {
        "means": ("attend", "ignore"),
        "values": ("bool", "int", "additive"),
    }.items():
        parser.add_argument(f"--mask-{name}", choices=choices, help=f"default: {choices[0]}")
    parser.add_argument("--mask-layout", metavar="AXES", help='default: "b 1 q k"')
    parser.add_argument("--layout", metavar="AXES", help='default: "b h t d"')
    parser.add_argument("--dtypes", metavar="A,B", help="default: all four floating ones")
    parser.add_argument("--device", metavar="NAME", help="default: cpu")
    parser.add_argument(
        "--declare",
        metavar="NAME=VALUE",
        action="append",
        default=[],
        help="anything else that --list shows; may be repeated",
    )
    parser.add_argument(
        "--seconds",
        type=float,
        default=20.0,
        metavar="X",
        help="of CPU time, per check (default: 20)",
    )
    parser.add_argument("--json", action="store_true", help="print the report as JSON")
    parser.add_argument("--list", action="store_true", help="list checks and declarations")
    parser.add_argument(
        "--museum",
        action="store_true",
        help="instead: mask bugs of real code, and what catches them; SUBJECT may name one",
    )
    parser.add_argument("--out", metavar="DIR", help="with --museum: draw its attention bugs")


SHORTHANDS = ("mask_means", "mask_values", "mask_layout", "layout", "dtypes", "device")


def _check(options: argparse.Namespace) -> int:
    try:
        return check(options)
    except (TypeError, ValueError) as error:
        raise InputError(str(error)) from None


def check(options: argparse.Namespace) -> int:
    """Raises ValueError, TypeError or ImportError where there is nothing to check."""
    if options.list:
        _print_list("encoder" if options.kind == LAYER else options.kind or "attention")
        return 0
    if options.museum:
        return _museum(options)
    if not options.subject:
        raise ValueError("SUBJECT is missing: package.module:function or file.py:function")
    declared = {name: getattr(options, name) for name in SHORTHANDS if getattr(options, name)}
    for text in options.declare:
        name, equals, value = text.partition("=")
        if not equals:
            raise ValueError(f"--declare expects NAME=VALUE, got {text!r}")
        declared[name.strip()] = value.strip()
    subject = find_subject(options.subject, options.kind, declared)
    report = examine(subject, options.tier, options.seconds, watch=_progress)
    print(report.to_json() if options.json else report)
    if os.environ.get("GITHUB_ACTIONS") == "true":
        for result in report:
            if result.outcome == "fail":
                print(_annotation(subject.name, result), file=sys.stderr)
    if not report.ran:
        raise ValueError(f"{subject.name} could not be checked: {report.diagnosis}")
    return 0 if report.passed else 1


def _annotation(subject: str, result: Result) -> str:
    """A line that GitHub Actions shows beside the change: a workflow command."""
    text = f"{result.check}: {result.diagnosis}".replace("%", "%25").replace("\n", "%0A")
    return f"::error title=mask checks of {subject}::{text}"


def _progress(items: list, unit: str = "check") -> tqdm:
    """A bar on a terminal, nothing in a pipe."""
    return tqdm(items, disable=None, leave=False, unit=unit, file=sys.stderr)


def _print_list(kind: str) -> None:
    cls = SUBJECTS[kind]
    print(inspect.cleandoc(cls.__doc__ or ""))
    print(
        "\ndefaults: " + ", ".join(f"{one.name}={_shown(one.default)}" for one in fields(cls)[2:])
    )
    for tier, means in TIERS.items():
        print(f"\n{tier}: {means}")
        for one in checks_of(kind):
            if one.tier == tier:
                print(f"  {one.name}")
                print(textwrap.indent(textwrap.fill(one.statement, 90), "      "))


def _shown(default) -> str:
    return ",".join(default) if isinstance(default, tuple) else str(default)


# ---- the museum ----------------------------------------------------------------------------------


def _museum(options: argparse.Namespace) -> int:
    chosen = bugs(options.kind)
    if options.subject:
        chosen = [one for one in chosen if one.name == options.subject]
        if not chosen:
            near = get_close_matches(options.subject, [one.name for one in bugs(options.kind)])
            hint = f"did you mean {' or '.join(map(repr, near))}? " if near else ""
            raise ValueError(
                f"the museum has no {options.subject!r}; {hint}`minitransformer check --museum` "
                "lists what it has"
            )
    reports = {one.name: report_of(one) for one in _progress(chosen, "bug")}
    if options.json:
        print(json.dumps([_as_dict(one, reports[one.name]) for one in chosen], indent=2))
    elif options.subject:
        print(f"{chosen[0].name}\n\n{textwrap.fill(chosen[0].story, 96)}\n({chosen[0].source})\n")
        print(diagnose(reports[chosen[0].name], chosen[0].subject()))
    else:
        print(table(chosen, reports))
    if options.out:
        for path in draw(chosen, reports, Path(options.out)):
            print(path, file=sys.stderr if options.json else sys.stdout)
    return 0


def report_of(one: Bug) -> Report:
    """What the checks find at the tier where they catch it."""
    return run_checks(one.subject(), one.tier)


def table(chosen: list[Bug], reports: dict[str, Report]) -> str:
    """A paragraph for each bug, by what it is."""
    lines, kind = [], ""
    for one in chosen:
        if one.kind != kind:
            kind = one.kind
            lines.append(f"\n{kind.upper()}")
        failed = reports[one.name].failed
        lines += [
            "",
            f"{one.name}   ({one.tier}; {len(failed)} of {len(reports[one.name].results)} fail)",
        ]
        lines += textwrap.wrap(one.diagnosis, 92, initial_indent="    ", subsequent_indent="    ")
        caught = ", ".join(one.caught_by)
        lines += textwrap.wrap(
            f"caught by {caught}", 92, initial_indent="    ", subsequent_indent="      "
        )
        lines.append(f"    seen in: {one.source}")
    return "\n".join(lines).strip()


def _as_dict(one: Bug, report: Report) -> dict:
    return {
        "name": one.name,
        "as": one.kind,
        "tier": one.tier,
        "story": one.story,
        "source": one.source,
        "diagnosis": one.diagnosis,
        "caught by": list(one.caught_by),
        "failed": report.failed,
    }


def draw(chosen: list[Bug], reports: dict[str, Report], folder: Path) -> list[Path]:
    """A picture of each attention bug: the mask wanted beside the weights found."""
    from minitransformer import visualize

    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for one in chosen:
        if one.kind == "attention":
            title = f"{one.name} (caught by: {one.caught_by[0].replace('_', ' ')})"
            figure = visualize.wanted_beside_found(*mask_and_weights(one, reports[one.name]), title)
            name = "_".join(re.findall(r"[a-z0-9]+", one.name.lower()))
            paths.append(visualize.save(figure, folder / f"{name}.png"))
    return paths


def mask_and_weights(one: Bug, report: Report) -> tuple[Tensor, Tensor]:
    """Where it went wrong; or, where that is not seen in the weights, any sequence."""
    for result in report:
        if {"mask wanted", "weights found"} <= result.example.keys():
            return result.example["mask wanted"].bool(), result.example["weights found"]
    subject = one.subject()
    mask = masks(subject)["causal, padding on the left"]
    return mask[2, 0], attention_weights_of(subject, *make_inputs(subject), mask)[2, 0]
