"""One command for the day there is a GPU: what holds there, how fast it is, in ten minutes.

    pip install -e ".[dev,gpu]" && python scripts/gpu_record.py

Writes notebooks/benchmark/gpu.md after each part, and puts the numbers of training, generation and
attention beside those of other machines, as `scripts/benchmark.py --write` does. A part that fails
says so in its place and the next one begins; when the time is over, what is left is named.

    python scripts/gpu_record.py --device cpu --quick --out /tmp/gpu.md    # a rehearsal
"""

import argparse
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from unittest import mock

import torch
from benchmark_parts.measure import Bench, machine, measure_ceiling, name_of
from benchmark_parts.peers import Size, our_encoder
from benchmark_parts.report import machine_line, table, tables, write
from benchmark_parts.sections import (
    PACKED,
    SECTIONS,
    Group,
    causal_language_model,
    compare_attention,
    compare_training,
    documents_seen,
    encoder_decoder,
    generation,
    masked_batches,
    masked_language_model,
    masked_lengths,
)
from torch import Tensor
from tqdm import tqdm

import minitransformer as mt
from minitransformer.checks import check_attention
from minitransformer.checks.attention.subject import DTYPES as ALL_DTYPES
from minitransformer.kernels import attention_kernel
from minitransformer.kernels.varlen import takes

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "notebooks" / "benchmark" / "gpu.md"
KERNELS = ("reference", "auto", "sdpa", "triton", "varlen")
DTYPES = {  # what a kernel takes, where not all
    "triton": ("float32", "bfloat16", "float16"),
    "varlen": ("bfloat16", "float16"),
}
Attention = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Record(Bench):
    """How to measure here, and until when."""

    end: float = 0.0  # of time.monotonic()

    @property
    def dtypes(self) -> tuple[torch.dtype, ...]:
        return (torch.float32 if self.device.type == "cpu" else torch.bfloat16,)

    @property
    def left(self) -> float:
        """Seconds."""
        return self.end - time.monotonic()


class OutOfTime(Exception):
    """What is left is not begun."""


# ---- the parts: each yields pieces of text ------------------------------------------------------


def device_and_versions(record: Record) -> Iterator[str]:
    about = machine(record.device)
    if record.device.type == "cuda":
        properties = torch.cuda.get_device_properties(record.device)
        about["capability"] = f"{properties.major}.{properties.minor}"
        about["memory"] = f"{properties.total_memory / 2**30:.0f} GiB"
    yield machine_line({"machine": about, "ceiling": record.ceiling})
    missing = [name for name in ("triton", "transformers", "babel", "xdist") if not find_spec(name)]
    if missing:
        yield f"Not installed, and so not to be seen below: {', '.join(missing)}.\n"
    if not takes(torch.ones(1, dtype=torch.bool, device=record.device), torch.bfloat16):
        yield "varlen is SDPA here: it needs torch 2.11 and a GPU of compute capability 8.0.\n"


def tests(record: Record) -> Iterator[str]:
    """The tests of the device, those that are slow left out."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
    command += ["-k", record.device.type]
    if record.quick:
        command += ["tests/test_sdpa.py", "tests/test_triton_attention.py"]
    if find_spec("xdist") and not record.quick:
        command += ["-n", "8"]
    shown = " ".join(["pytest", *command[3:]])
    limit = min(180.0, record.left)
    try:
        done = subprocess.run(
            command, cwd=ROOT, capture_output=True, encoding="utf-8", timeout=limit
        )
    except subprocess.TimeoutExpired as over:
        said = over.stdout.decode() if isinstance(over.stdout, bytes) else over.stdout or ""
        yield f"`{shown}` was not through after {limit:.0f} s.\n"
        yield _as_code(said.splitlines()[-20:])
        return
    lines = done.stdout.splitlines()
    failed = [line for line in lines if line.startswith(("FAILED", "ERROR"))]
    yield f"`{shown}`: {lines[-1].strip('= ') if lines else done.stderr.strip()}\n"
    yield _as_code(failed[:40]) if failed else ""


def hard_cases(record: Record) -> Iterator[str]:
    """Where kernels of GPUs have been wrong. The checks are those of `minitransformer check`."""
    rows = []
    for name in KERNELS:
        attention = _attention(name)
        try:
            attention(*_inputs(record, 64), mt.causal_mask(64, device=record.device))
        except Exception as error:  # a kernel that is not here
            yield f"Not here: {name}: {_in_a_line(error)}\n"
            continue
        cells = [_held(case, attention, record) for case in CASES.values()]
        rows.append([name, *cells, _checks(attention, record, DTYPES.get(name, ALL_DTYPES))])
        if record.left < 0:
            break
    yield table(["kernel", *CASES, "the checks"], rows)


def attention_alone(record: Record) -> Iterator[Group]:
    """Batch 8, 8 heads of width 64, forward and backward."""
    lengths = (128,) if record.quick else (1024, 4096)
    names = ["causal", "packed"] if record.quick else ["none", "causal", "half padded", "packed"]
    for length in lengths:
        for name in [*names, "window"]:
            causal, window = name in ("causal", "window"), 128 if name == "window" else None
            seen = documents_seen(name, length)
            group = compare_attention(record, f"{name}, length {length}", seen, causal, window)
            row = {"mask": name, "length": length, "True": group["share"]}
            yield group | {"table": "forward and backward", "row": row}


def training_by_kernel(record: Record) -> Iterator[Group]:
    """Steps of the next part's training, packed, by each kernel that a GPU has: what is the fastest
    is to be what `auto` chooses there."""
    lengths = masked_lengths(record.quick)
    packed = [masked_batches(lengths, seed)[PACKED] for seed in range(4)]
    kernels = {name: partial(our_encoder, attention=name) for name in ("sdpa", "triton", "varlen")}
    for dtype in record.dtypes:
        yield compare_training(
            record,
            f"masked language model, packed, {name_of(dtype)}",
            our_encoder,
            kernels,
            Size(),
            [(batch, batch) for batch in packed],
            layouts={"auto": PACKED},
            dtype=dtype,
        )


def main_job(record: Record) -> Iterator[str]:
    """`minitransformer train` from the start to the pictures."""
    options = ["--seeds", "1", "--device", record.device.type]
    options += ["--steps", "20"] if record.quick else []
    command = [sys.executable, str(ROOT / "scripts" / "main_job.py"), *options]
    try:
        done = subprocess.run(
            command, cwd=ROOT, capture_output=True, encoding="utf-8", timeout=max(record.left, 1.0)
        )
    except subprocess.TimeoutExpired:
        raise OutOfTime from None
    yield done.stdout if done.returncode == 0 else _as_code(done.stderr.splitlines()[-20:])


TILES = ((64, 4), (64, 8), (32, 4), (128, 8))  # queries and keys of a tile; warps, backward


def triton_tiles(record: Record) -> Iterator[str]:
    """The Triton kernel by other tiles and warps, causal, forward and backward: the fastest of each
    line is to be what `tile_plan` and `backward_warps` choose there."""
    length, dtype = 128 if record.quick else 2048, torch.bfloat16
    mask = mt.causal_mask(length, device=record.device)
    for width in (64, 24, 128):
        if record.left < 0:
            raise OutOfTime
        shape = (3, 4, 8, length, width)
        inputs = list(torch.randn(shape, generator=torch.Generator().manual_seed(0)))
        inputs = [x.to(record.device, dtype) for x in inputs]
        expected = _run(_attention("sdpa"), inputs, mask)
        runs, said = {}, []
        for tile, warps in TILES:
            name = f"tiles of {tile}, {warps} warps"
            try:
                run = _by_tiles(tile, warps, inputs, mask)
                worst = max(
                    float((x - y).abs().max() / y.abs().max())
                    for x, y in zip(run(), expected, strict=True)
                )
            except Exception as error:  # too large for this GPU, or no Triton
                said.append(f"{name}: {_in_a_line(error)}")
                continue
            if worst < 0.05:
                runs[name] = run
            else:
                said.append(f"{name}: **wrong**, off by {worst:.2g} of the largest number")
        if runs:
            found = record.compare(f"width {width}", runs, share=0.2)
            times = {name: 1e3 * median(numbers["seconds"]) for name, numbers in found.items()}
            listed = ", ".join(f"{name} {ms:.3g} ms" for name, ms in times.items())
            said.insert(0, f"{listed}; the fastest: **{min(times, key=times.__getitem__)}**")
        yield f"{name_of(dtype)}, length {length}, width {width}. {'. '.join(said)}.\n"


def _by_tiles(
    tile: int, warps: int, inputs: list[Tensor], mask: Tensor
) -> Callable[[], list[Tensor]]:
    from minitransformer.kernels import triton_attention as module

    kernel = replace(module.triton_attention, plan=lambda mask, *_: module.tile_map(mask, tile))
    prepared = kernel.prepare(mask, inputs[0], inputs[0].shape[1])

    def run() -> list[Tensor]:
        with mock.patch.object(module, "backward_warps", return_value=warps):
            return _run(lambda *qkv: kernel(*qkv[:3], prepared)[0], inputs, mask)

    return run


PARTS: dict[str, Callable[[Record], Iterator[str] | Iterator[Group]]] = {
    "Device and versions": device_and_versions,
    "Tests": tests,
    "Hard cases": hard_cases,
    "Attention alone": attention_alone,
    "Training by kernel": training_by_kernel,
    "A masked language model": masked_language_model,
    "A causal language model": causal_language_model,
    "Encoder and decoder": encoder_decoder,
    "Generation": generation,
    "The main job": main_job,
    "Triton's tiles": triton_tiles,
}
KEPT = {"Attention alone": "e"} | {  # as sections of the benchmark
    title: name for title, part in PARTS.items() for name, one in SECTIONS.items() if one is part
}


# ---- hard cases ---------------------------------------------------------------------------------


def _attention(name: str) -> Attention:
    def attention(query: Tensor, key: Tensor, value: Tensor, mask: Tensor) -> Tensor:
        kernel = attention_kernel(name) or mt.scaled_dot_product_attention
        return kernel(query, key, value, mask)[0]

    return attention


def _inputs(record: Record, length: int, dtype: torch.dtype | None = None) -> list[Tensor]:
    generator = torch.Generator().manual_seed(length)
    shape = (3, 2, 4, length, 64)
    inputs = torch.randn(shape, generator=generator).to(record.device, dtype or record.dtypes[0])
    return list(inputs)


def _run(attention: Attention, inputs: list[Tensor], mask: Tensor) -> list[Tensor]:
    """Output and gradients."""
    leaves = [x.detach().requires_grad_() for x in inputs]
    output = attention(*leaves, mask)
    return [output.detach(), *torch.autograd.grad(output.sum(), leaves)]


def _padded(record: Record, length: int) -> Tensor:
    """(2, length): a whole row, and one that is half padding."""
    real = torch.ones(2, length, dtype=torch.int64)
    real[1, length // 2 :] = 0
    return real.to(record.device)


def low_scores(attention: Attention, record: Record) -> bool:
    """pytorch issue 196678: NaN gradients where length % 128 is 64 and scores are below -88."""
    for length in (64, 192, 704):
        query, key, value = _inputs(record, length)
        mask = mt.padding_mask(_padded(record, length))
        given = [torch.full_like(query, 4.0), torch.full_like(key, -4.0), value]  # scores of -128
        output, *gradients = _run(attention, given, mask)
        wanted = mt.scaled_dot_product_attention(*(x.double() for x in given), mask)[0]
        close = (output - wanted).abs().max() < 0.02
        if not close or not all(x.isfinite().all() for x in gradients):
            return False
    return True


def nan_in_padding(attention: Attention, record: Record) -> bool:
    real = _padded(record, 192)
    mask = mt.padding_mask(real) & mt.causal_mask(192, device=record.device)
    inputs = _inputs(record, 192)
    padding = (real == 0)[:, None, :, None]
    poisoned = [x.masked_fill(padding, torch.nan) for x in inputs]
    pairs = zip(_run(attention, inputs, mask), _run(attention, poisoned, mask), strict=True)
    rounding = 4 * torch.finfo(inputs[0].dtype).eps  # as some kernels add up in another order
    return all(
        bool(((clean - dirty).abs() <= rounding * clean.abs().max()).all())
        for clean, dirty in pairs
    )


def fully_masked_rows(attention: Attention, record: Record) -> bool:
    real = _padded(record, 192)
    results = _run(attention, _inputs(record, 192), mt.padding_mask(real))
    return all(bool((x[1, :, 96:] == 0).all()) for x in results)


def the_same_bits_twice(attention: Attention, record: Record) -> bool:
    inputs, mask = _inputs(record, 704), mt.causal_mask(704, device=record.device)
    pairs = zip(_run(attention, inputs, mask), _run(attention, inputs, mask), strict=True)
    return all(torch.equal(once, again) for once, again in pairs)


def zeros_with_tf32(attention: Attention, record: Record) -> bool:
    """What masked keys get, in float32, with and without TensorFloat-32."""
    inputs, real = _inputs(record, 64, torch.float32), _padded(record, 64)
    inputs[2] = torch.eye(64, device=record.device).expand_as(inputs[2])  # the output: the weights
    mask = mt.padding_mask(real)
    before = torch.backends.cuda.matmul.allow_tf32
    try:
        for allowed in (False, True):
            torch.backends.cuda.matmul.allow_tf32 = allowed
            if (attention(*inputs, mask) * ~mask).count_nonzero():
                return False
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before
    return True


CASES = {
    "low scores": low_scores,
    "NaN in padding": nan_in_padding,
    "fully masked rows": fully_masked_rows,
    "the same bits twice": the_same_bits_twice,
    "zeros, TF32 off and on": zeros_with_tf32,
}


def _held(case: Callable, attention: Attention, record: Record) -> str:
    try:
        return "yes" if case(attention, record) else "**no**"
    except Exception as error:  # a kernel that is not there, or one that fails
        return _in_a_line(error)


def _checks(attention: Attention, record: Record, dtypes: tuple[str, ...]) -> str:
    try:
        report = check_attention(attention, device=record.device, dtypes=dtypes)
    except Exception as error:
        return _in_a_line(error)
    return "passes" if report.passed else f"**fails**: {', '.join(report.failed)}"


def _in_a_line(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0].replace("|", "/")[:120]


def _as_code(lines: list[str]) -> str:
    return "\n".join(["```", *lines, "```", ""])


# ---- the record ---------------------------------------------------------------------------------


def main() -> None:
    options = _options()
    record = _record(options)
    pieces = [
        f"# On {machine(record.device)['device']}\n",
        "`python scripts/gpu_record.py` makes this page; parts that are not through in "
        f"{options.minutes:g} minutes are named.\n",
    ]
    for title, part in tqdm(PARTS.items(), desc="parts", disable=None):
        pieces.append(f"## {title}\n")
        if (part.__doc__ or "").strip() and part.__module__ == __name__:
            pieces.append(" ".join(part.__doc__.split()) + "\n")
        start = time.monotonic()
        pieces += run_part(title, part, record, options.device == "cuda" and not options.quick)
        pieces.append(f"*{time.monotonic() - start:.0f} s.*\n")
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text("\n".join(pieces), encoding="utf-8")
    print("\n".join(pieces))


def run_part(title: str, part: Callable, record: Record, keep: bool) -> list[str]:
    """What there is to say of a part: its text or tables, and what kept it from its end."""
    texts: list[str] = []
    groups: list[Group] = []
    try:
        if record.left < 0:
            raise OutOfTime
        for found in part(record):
            (texts if isinstance(found, str) else groups).append(found)
            if not isinstance(found, str) and record.left < 0:
                raise OutOfTime
    except OutOfTime:
        texts.append("The time was over here: what may be missing was not begun.\n")
    except Exception:  # whatever it is, the next part begins
        texts.append("It failed:\n\n" + _as_code(traceback.format_exc().splitlines()[-8:]))
    if groups and keep and title in KEPT:
        section = {
            "machine": machine(record.device),
            "ceiling": record.ceiling,
            "groups": groups,
        }
        try:
            write(ROOT / "notebooks", KEPT[title], section)
        except Exception as error:
            texts.append(f"Not put into notebooks/benchmark.md: {_in_a_line(error)}\n")
    return [tables(groups), *texts] if groups else texts


def _record(options: argparse.Namespace) -> Record:
    device, end = torch.device(options.device), time.monotonic() + 60 * options.minutes
    try:
        ceiling = measure_ceiling(device)
    except Exception as error:
        print(f"no ceiling: {_in_a_line(error)}", file=sys.stderr)
        ceiling = {"float32": float("nan"), "bfloat16": float("nan"), "copy": float("nan")}
    seconds = 1.0 if options.quick else 4.0
    return Record(device, options.quick, seconds, ceiling, end)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", default="cuda", choices=("cpu", "cuda"))
    parser.add_argument("--quick", action="store_true", help="a small selection")
    parser.add_argument("--minutes", type=float, default=10.0, metavar="M", help="for all parts")
    parser.add_argument("--out", type=Path, default=PAGE, metavar="FILE", help="the page")
    options = parser.parse_args()
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: torch finds no CUDA GPU here; --device cpu is a rehearsal")
    if options.device == "cpu" and options.out == PAGE:
        parser.error("--device cpu: give --out FILE; the page of the GPU is not for a rehearsal")
    return options


if __name__ == "__main__":
    main()
