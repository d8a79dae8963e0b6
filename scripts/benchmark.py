"""How fast is minitransformer? Beside what its users would pick instead, in one run.

    pip install -e ".[plot]" transformers x-transformers && python scripts/benchmark.py

Sections, which --only chooses:
    a  a masked language model on ragged documents      d  generation
    b  a causal language model, dense and ragged        e  attention alone
    c  an encoder-decoder on ragged pairs, and dates    f  cost against padding and length

Prints tables in Markdown; --write also puts them into notebooks/benchmark.md, with pictures and the
raw numbers beside it, and leaves the sections that were not measured, and the numbers of other
machines, as they are. Libraries that are not installed are named and left out, and so is bfloat16
where the processor has no units for it.

--profile measures nobody else: it counts the operators that torch dispatches in a step of ours, and
says which take how long.
"""

import argparse
import os
import sys
from importlib.util import find_spec
from pathlib import Path

os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # its profiler warns at every run

import torch
from benchmark_parts.measure import Bench, machine, measure_ceiling, operators, where_time_goes
from benchmark_parts.report import (
    heading,
    in_short,
    machine_line,
    milliseconds,
    name_of_run,
    table,
    tables,
    write,
)
from benchmark_parts.sections import SECTIONS, our_steps
from tqdm import tqdm

NOTEBOOKS = Path(__file__).parent.parent / "notebooks"


def main() -> None:
    options = _options()
    device = torch.device(options.device)
    torch.set_num_threads(options.threads)
    if find_spec("transformers") is not None:
        import transformers

        transformers.logging.set_verbosity_error()
        transformers.utils.logging.disable_progress_bar()

    if options.profile:
        profile_ours(Bench(device, options.quick, 0.0))
        return
    about, ceiling = machine(device), measure_ceiling(device)
    bench = Bench(device, options.quick, 4.0 if options.quick else options.seconds, ceiling)
    print(machine_line({"machine": about, "ceiling": ceiling}), flush=True)
    for name in tqdm(options.only, desc="sections", disable=not sys.stderr.isatty()):
        groups = []
        for group in SECTIONS[name](bench):
            groups.append(group)
            tqdm.write(milliseconds(group), file=sys.stderr)
        section = {"machine": about, "ceiling": ceiling, "groups": groups}
        short = in_short({name_of_run(about): {name: section}})
        tqdm.write(f"{heading(name)}\n\n{tables(groups)}\n{short}")
        sys.stdout.flush()
        if options.write:  # after each section: a run that is cut short leaves what it has
            page = write(NOTEBOOKS, name, section)
            tqdm.write(f"wrote {page}\n")


def profile_ours(bench: Bench) -> None:
    """Print how many operators a step of ours is, and those that take longest."""
    for title, step in our_steps(bench):
        step()  # what is made once
        count, spent = operators(step), where_time_goes(step, bench.device)
        print(f"**{title}**: {count:,} operators\n")
        lines = [
            [f"`{op['operator']}`", f"{op['calls']:,}", f"{op['seconds'] * 1e3:,.1f}"]
            for op in spent
        ]
        print(table(["operator", "calls", "ms"], lines), flush=True)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="a small selection, in a minute")
    parser.add_argument("--only", metavar="a,b,...", help="these sections")
    parser.add_argument("--write", action="store_true", help="write notebooks/benchmark.md")
    parser.add_argument("--profile", action="store_true", help="only ours, operator by operator")
    parser.add_argument("--threads", type=int, default=1, metavar="N", help="of the CPU")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument(
        "--seconds", type=float, default=45.0, metavar="S", help="for the rounds of one group"
    )
    options = parser.parse_args()
    if options.profile and options.only:
        parser.error("--profile looks at steps of sections a, c and d: leave out --only")
    options.only = (options.only or ("a,c,e" if options.quick else "a,b,c,d,e,f")).split(",")
    unknown = [name for name in options.only if name not in SECTIONS]
    if unknown:
        parser.error(f"--only: no section {', '.join(unknown)}; there are {', '.join(SECTIONS)}")
    if options.write and (options.quick or options.profile):
        parser.error("--quick and --profile measure too little to be written")
    if options.threads < 1:
        parser.error("--threads must be 1 or more")
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: torch finds no CUDA GPU here")
    return options


if __name__ == "__main__":
    main()
