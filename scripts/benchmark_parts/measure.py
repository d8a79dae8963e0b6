"""Seconds and bytes: how each number of the benchmark is taken.

Entrants take turns in one process, so that whatever else the machine does meets all of them, in
each round in another order, as who comes before leaves its memory behind, and the median over the
rounds is what counts. On CUDA the time is that between two events.

Memory is what torch's allocator holds at the worst moment of one more run, above what it held
before: on CUDA it keeps that count itself, on the CPU the profiler writes down every allocation,
those inside an operator too. Unlike the size of the process it does not depend on who ran before;
what MKL and oneDNN allocate for themselves is not in it.
"""

import json
import os
import platform
import random
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode
from tqdm import tqdm

Run = Callable[[], object]


@dataclass(frozen=True)
class Bench:
    """How to measure: on what, for how long, and what the machine itself could do."""

    device: torch.device
    quick: bool
    seconds: float  # for the rounds of one group of entrants
    ceiling: dict[str, float] = field(default_factory=dict)

    @property
    def dtypes(self) -> tuple[torch.dtype, ...]:
        """bfloat16 is left out where the machine is slow in it: it has no ceiling then."""
        half = () if self.quick or "bfloat16" not in self.ceiling else (torch.bfloat16,)
        return (torch.float32, *half)

    def compare(
        self, title: str, runs: Mapping[str, Run], warm_up: int = 1, share: float = 1.0
    ) -> dict[str, dict]:
        """Seconds of each round and peak MiB of each entrant, after `warm_up` runs of each.

        There are as many rounds as fit into a `share` of the seconds meant for a group.
        """
        bar = {"leave": False, "disable": None}  # None: not where nobody watches
        for _ in tqdm(range(warm_up - 1), desc=f"{title}: warm-up", **bar):
            for run in runs.values():
                run()
        once = sum(seconds(run, self.device) for run in runs.values())
        least, most = (2, 5) if self.quick else (5, 100)
        rounds = min(max(int(self.seconds * share / once), least), most)
        found = {
            name: {"seconds": [], "peak_mib": peak_mib(run, self.device)}
            for name, run in runs.items()
        }
        order = random.Random(0)
        for _ in tqdm(range(rounds), desc=title, **bar):
            for name in order.sample(list(runs), len(runs)):
                found[name]["seconds"].append(seconds(runs[name], self.device))
        return found


def seconds(run: Run, device: torch.device) -> float:
    if device.type != "cuda":
        start = time.perf_counter()
        run()
        return time.perf_counter() - start
    before, after = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    before.record()
    run()
    after.record()
    torch.cuda.synchronize()
    return before.elapsed_time(after) / 1000


def peak_mib(run: Run, device: torch.device) -> float:
    """The most bytes alive at any moment of the run, above those alive before it."""
    if device.type == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run()
        torch.cuda.synchronize()
        return (torch.cuda.max_memory_allocated() - before) / 2**20
    trace = _profiled(run, activities=[ProfilerActivity.CPU], profile_memory=True)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "trace.json"
        trace.export_chrome_trace(str(file))
        events = json.loads(file.read_text(encoding="utf-8"))["traceEvents"]
    changes = [(e["ts"], e["args"]["Bytes"]) for e in events if e["name"] == "[memory]"]
    alive = peak = 0
    for _, change in sorted(changes, key=lambda change: change[0]):
        alive += change
        peak = max(peak, alive)
    return peak / 2**20


def where_time_goes(run: Run, device: torch.device, top: int = 10) -> list[dict]:
    """The operators that take most of the time themselves, with their seconds and shares of it."""
    on_cuda = device.type == "cuda"
    kinds = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_cuda else [])]
    trace = _profiled(run, activities=kinds)
    own = "self_device_time_total" if on_cuda else "self_cpu_time_total"
    found = [(getattr(op, own) / 1e6, op) for op in trace.key_averages()]
    found.sort(key=lambda one: one[0], reverse=True)
    total = sum(spent for spent, _ in found)
    return [
        {"operator": op.key, "calls": op.count, "seconds": spent, "share": spent / total}
        for spent, op in found[:top]
    ]


class Operators(TorchDispatchMode):
    """Counts the operators that torch dispatches inside of a `with`, views among them."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.count += 1
        return function(*args, **(kwargs or {}))


def operators(run: Run) -> int:
    """How many operators torch dispatches in one run, backward among them."""
    with Operators() as seen:
        run()
    return seen.count


def _profiled(run: Run, **options: Any) -> profile:
    """One run under torch's profiler, whose C++ side writes to stderr whatever one asks of it."""
    known = os.dup(2)
    with open(os.devnull, "w", encoding="utf-8") as nowhere:
        os.dup2(nowhere.fileno(), 2)
    try:
        with profile(**options) as trace:
            run()
    finally:
        os.dup2(known, 2)
        os.close(known)
    return trace


def measure_ceiling(device: torch.device) -> dict[str, float]:
    """What the machine can do at best: GFLOP/s of a large matrix product, GB/s of a copy.

    Without units for bfloat16 a product in it takes minutes: it is left out then.
    """
    size = 8192 if device.type == "cuda" else 2048
    found = {"float32": _speed(torch.float32, size, device)}
    small = [_speed(dtype, 512, device) for dtype in (torch.float32, torch.bfloat16)]
    if small[0] < FAR_SLOWER * small[1]:
        found["bfloat16"] = _speed(torch.bfloat16, size, device)
    source = torch.ones(2**26, device=device)  # 256 MiB: no cache holds it
    target = torch.empty_like(source)
    moved = 2 * source.numel() * source.element_size()  # read and written
    found["copy"] = moved / _best(lambda: target.copy_(source), device) / 1e9
    return found


FAR_SLOWER = 4.0  # so many times slower than float32, bfloat16 is for no one


def _speed(dtype: torch.dtype, size: int, device: torch.device) -> float:
    """GFLOP/s of a product of two square matrices."""
    square = torch.randn(size, size, device=device).to(dtype)
    product = torch.empty_like(square)
    return 2 * size**3 / _best(partial(torch.mm, square, square, out=product), device) / 1e9


def _best(run: Run, device: torch.device) -> float:
    run()
    return min(seconds(run, device) for _ in range(7))


def machine(device: torch.device) -> dict[str, str]:
    """What a number means nothing without."""
    about = {"date": str(date.today()), "processor": _processor(), "device": device.type}
    if device.type == "cuda":
        about["device"] = torch.cuda.get_device_name(device)
        about["CUDA"] = str(torch.version.cuda)
        about["driver"] = _driver()
    about["threads"] = str(torch.get_num_threads())
    packages = ("torch", "triton", "transformers", "x-transformers", "flash-attn")
    return about | {name: installed_version(name) for name in packages}


def _driver() -> str:
    query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        answer = subprocess.run(query, capture_output=True, encoding="utf-8", check=False)
    except FileNotFoundError:  # not every image has it
        return "unknown"
    return answer.stdout.split("\n")[0]


def installed_version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def name_of(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def median(values: list[float]) -> float:
    return statistics.median(values)


def entrants(groups: Sequence[dict]) -> list[str]:
    """The names of all that any of the groups has compared."""
    return list(dict.fromkeys(row["name"] for group in groups for row in group["rows"]))


def median_of(group: dict, name: str) -> float | None:
    """Seconds of an entrant, if the group has it."""
    return next((median(row["seconds"]) for row in group["rows"] if row["name"] == name), None)


def _processor() -> str:
    file = Path("/proc/cpuinfo")
    lines = file.read_text(encoding="utf-8").splitlines() if file.exists() else []
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
