"""Training in two processes beside one, measured; in 8 and 64 on GPUs, worked out.

    python scripts/scaling.py --write      # notebooks/scaling.md

Measured: the same steps in one process with one and with two threads, in two processes with one
thread each as copies (DDP) and in parts (FSDP), in turns, medians over the rounds. Worked out: the
bytes that a step exchanges and how much of that the backward pass hides; the page shows the
formulae, and this file computes them.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from statistics import median

import torch
from benchmark_parts.measure import machine
from benchmark_parts.report import write_page
from tqdm import tqdm

from minitransformer import Config
from minitransformer.training.loop import Settings, Training, real_tokens
from minitransformer.training.processes import start_processes
from minitransformer.training.tasks import make_task

PAGE = Path(__file__).parent.parent / "notebooks" / "scaling.md"
WAYS = {  # processes, threads in each, more
    "one process, 1 thread": (1, 1, []),
    "one process, 2 threads": (1, 2, []),
    "two processes, copies (DDP)": (2, 1, []),
    "two processes, parts (FSDP)": (2, 1, ["--shard"]),
}
MODELS = {
    "the main job": ("dates", {"d_model": 96, "num_layers": 1, "max_length": 64}, 128),
    "a language model of 3.2 M": (
        "lm",
        {"d_model": 256, "num_layers": 4, "max_length": 256, "style": "llama"},
        32,
    ),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=10, help="timed in each round")
    parser.add_argument("--write", action="store_true")
    parser.add_argument("--one", help=argparse.SUPPRESS)  # what each process runs
    parser.add_argument("--threads", type=int, default=1, help=argparse.SUPPRESS)
    parser.add_argument("--shard", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        measure(options)
        return
    rounds = [(m, way) for _ in range(options.rounds) for m in MODELS for way in WAYS]
    found: dict[tuple[str, str], list[float]] = {}
    for model, way in tqdm(rounds, unit="run", disable=None):
        found.setdefault((model, way), []).append(run(model, way, options.steps))
    page = markdown({key: median(values) for key, values in found.items()}, options)
    print(page)
    if options.write:
        PAGE.write_text(page, encoding="utf-8")
        write_page(PAGE.parent)  # benchmark.md has the table, too


def run(model: str, way: str, steps: int) -> float:
    """Real tokens a second, in processes of their own."""
    processes, threads, more = WAYS[way]
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc-per-node", str(processes), __file__]
    command += ["--one", model, "--steps", str(steps), "--threads", str(threads), *more]
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        encoding="utf-8",
        env={**os.environ, "OMP_NUM_THREADS": str(threads)},
    )
    lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
    if not lines:
        raise SystemExit(done.stderr)
    return json.loads(lines[0])["tokens per second"]


def measure(options: argparse.Namespace) -> None:
    name, numbers, examples = MODELS[options.one]
    torch.set_num_threads(options.threads)
    task = make_task(name, max_length=numbers["max_length"])
    with start_processes(torch.device("cpu"), options.shard) as processes:
        torch.manual_seed(0)
        model = task.model_class(Config(len(task.vocabulary), **numbers))
        training = Training(model, Settings(batch_size=examples), processes)
        tokens, seconds = [], []
        for step in range(options.steps + 3):
            batch = training.batch(task, step)
            start = time.perf_counter()
            training.step(batch)[0].item()
            if step >= 3:
                seconds.append(time.perf_counter() - start)
                tokens.append(real_tokens(batch) / seconds[-1])
        if processes.rank == 0:
            print(json.dumps({"tokens per second": median(tokens)}), flush=True)


# ---- on paper ------------------------------------------------------------------------------------

PEAK, SHARE = 989e12, 0.4  # bf16 operations a second of an H100 (its data sheet), and a usual share
NEAR, FAR = 450e9, 50e9  # bytes a second and direction: NVLink 4 within 8 GPUs, 400 Gb/s beyond
HOP, TOKENS = 10e-6, 16_384  # seconds from one GPU to the next; tokens a step on each
LARGE = {"3.2 M parameters": 3.2e6, "GPT-2 small, 124 M": 124e6, "TinyLlama, 1,100 M": 1.1e9}


def exchanged(parameters: float, size: int) -> float:
    """Bytes that each process sends a step, for a ring: gradients in float32, DDP."""
    return 2 * (size - 1) / size * 4 * parameters


def on_paper(parameters: float, size: int) -> tuple[float, float, float, float]:
    """Seconds to compute, to exchange, what of that is seen, and the efficiency."""
    compute = 6 * parameters * TOKENS / (SHARE * PEAK)
    speed = NEAR if size <= 8 else FAR
    exchange = exchanged(parameters, size) / speed + 2 * (size - 1) * HOP
    seen = max(exchange - 2 / 3 * compute, 0.0)
    return compute, exchange, seen, compute / (compute + seen)


PAGE_TEXT = """\
# Several processes

`python scripts/scaling.py --write` makes this page.

## Measured, on two cores

*{about}. Real tokens a second: the median of {steps} steps, the median of {rounds} rounds, all ways
in turns.*

{measured}

In brackets: beside one process with two threads. All compute the same steps, to rounding:
`tests/test_processes.py`.

## On paper, on GPUs

A step computes some $6 P T$ operations for $P$ parameters and $T$ tokens on each GPU (2 a parameter
and token forward, 4 backward). With copies (DDP) each of $N$ processes sends $2 \\frac{{N-1}}{{N}}
\\cdot 4 P$ bytes for the mean of the float32 gradients, as a ring does. Parts (FSDP) gather the
weights twice and scatter the gradients once: $3 \\frac{{N-1}}{{N}} \\cdot 4 P$, half as much again,
for $1/N$ of the memory for weights, gradients and AdamW's two averages ($16 P / N$ bytes instead of
$16 P$). Each of the $2 (N - 1)$ hops of the ring takes a while besides. The exchange begins while
the backward pass still computes, which is two thirds of the step; what is seen of it is the rest:
$\\max(0, t_{{exchange}} - \\frac{{2}}{{3}} t_{{compute}})$.

Assumed: {peak:.0f} TFLOP/s of bfloat16 (H100 SXM, data sheet) of which {share:.0%} are reached;
{near:.0f} GB/s within a machine of 8 (NVLink 4, one direction), {far:.0f} GB/s for each GPU between
machines (400 Gb/s); {hop:.0f} µs a hop; {tokens:,} tokens a step and GPU. Copies.

{worked_out}

Computing and sending both grow with $P$. So it is the tokens a step on each GPU that decide:
sending is hidden from {hidden_8:,.0f} tokens on with 8 GPUs, from {hidden_64:,.0f} with 64.
Accumulation (`--accumulate N`) exchanges once for N parts and divides that by N. For small models
the hops bind.
"""


def markdown(found: dict[tuple[str, str], float], options: argparse.Namespace) -> str:
    base = {model: found[model, "one process, 2 threads"] for model in MODELS}
    measured = [["", *MODELS]]
    for way in WAYS:
        cells = [f"{found[m, way]:,.0f} ({found[m, way] / base[m]:.2f} ×)" for m in MODELS]
        measured.append([way, *cells])
    worked_out = [["model", "GPUs", "sent a step", "compute", "exchange", "seen", "efficiency"]]
    for name, parameters in LARGE.items():
        for size in (8, 64):
            *seconds, efficiency = on_paper(parameters, size)
            sent = f"{exchanged(parameters, size) / 1e6:,.0f} MB"
            cells = [f"{one * 1e3:.1f} ms" for one in seconds]
            worked_out.append([name, str(size), sent, *cells, f"{efficiency:.0%}"])
    return PAGE_TEXT.format(
        about=", ".join(f"{key} {value}" for key, value in machine(torch.device("cpu")).items()),
        steps=options.steps,
        rounds=options.rounds,
        measured=table(measured),
        worked_out=table(worked_out),
        peak=PEAK / 1e12,
        share=SHARE,
        near=NEAR / 1e9,
        far=FAR / 1e9,
        hop=HOP * 1e6,
        tokens=TOKENS,
        hidden_8=tokens_to_hide(8),
        hidden_64=tokens_to_hide(64),
    )


def table(lines: list[list[str]]) -> str:
    lines.insert(1, ["---"] * len(lines[0]))
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def tokens_to_hide(size: int) -> float:
    """Where sending takes two thirds of the time to compute; hops aside."""
    return exchanged(1.0, size) / (NEAR if size <= 8 else FAR) * SHARE * PEAK / 6 * 3 / 2


if __name__ == "__main__":
    main()
