"""The Triton kernels, compiled for GPUs that are not there: what each would use of them.

    pip install -e ".[gpu]" && python scripts/compile_kernels.py

A pretended driver names the GPU: attention's own host code then compiles its kernels, with its own
tile sizes and options, and nothing is launched. So this says that they compile, what they take and
which instructions they are made of, and nothing about how fast they are or whether they are right.
Writes scripts/compiled_kernels.md. The compilers are those that come with Triton.
"""

import datetime
import re
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest import mock

import torch
import triton
from tqdm import tqdm
from triton.backends.compiler import GPUTarget
from triton.runtime import driver

import minitransformer as mt
from minitransformer.kernels import triton_attention

OUT = Path(__file__).parent / "compiled_kernels.md"
TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"


@dataclass(frozen=True)
class Target:
    """A kind of GPU: its name, and the most shared memory that a program may have, in bytes.

    NVIDIA: CUDA C++ Programming Guide, "Compute Capabilities", shared memory per thread block; AMD:
    the 64 KiB of LDS of a workgroup (CDNA 3 instruction set).
    """

    name: str
    cards: str
    shared: int
    refused: bool = False  # by attention itself, for what is found here

    @property
    def gpu(self) -> GPUTarget:
        if self.name.startswith("gfx"):
            return GPUTarget("hip", self.name, 64)
        return GPUTarget("cuda", int(self.name.removeprefix("sm_")), 32)


TARGETS = {
    target.name: target
    for target in (
        Target("sm_75", "T4", 64 * 1024, refused=True),
        Target("sm_80", "A100", 163 * 1024),
        Target("sm_86", "A10, RTX 30", 99 * 1024),
        Target("sm_90", "H100, H200", 227 * 1024),
        Target("sm_100", "B200", 227 * 1024),
        Target("gfx942", "MI300X", 64 * 1024, refused=True),
    )
}
WIDTHS = (24, 64, 128)  # of a head; 24 is the main job's
MATRIX_UNITS = r"mma\.sync|wgmma\.mma_async|tcgen05\.mma|v_mfma"
MOST_SPILLED = 256  # bytes of registers that do not fit, for each thread
MOST_NARROW = 48  # loads of less than four bytes: those of the mask


@dataclass(frozen=True)
class Compiled:
    """What the compiler made of one kernel."""

    target: Target
    dtype: torch.dtype
    width: int
    kernel: str
    registers: int  # of each thread
    spilled: int  # bytes of each thread that lie in memory, as registers are full
    shared: int  # bytes of each program
    matrix: int  # instructions for tensor cores (AMD: matrix cores)
    tf32: int  # of these, with float32 rounded to TensorFloat-32
    loads: int  # instructions that read global memory
    narrow: int  # of these, of less than four bytes

    def faults(self) -> list[str]:
        """What is wrong with it, in words; nothing, where it may be used."""
        found = []
        if self.shared > self.target.shared:
            found.append(f"{self.shared:,} B of shared memory, of {self.target.shared:,}")
        if self.tf32:
            found.append(f"{self.tf32} products in TensorFloat-32")
        if self.dtype != torch.float32 and not self.matrix:
            found.append("half precision without tensor cores")
        if self.narrow > MOST_NARROW:
            found.append(f"{self.narrow} loads of less than 4 B, more than {MOST_NARROW}")
        if self.spilled > MOST_SPILLED:
            found.append(f"{self.spilled} B of registers spilled, more than {MOST_SPILLED}")
        return found


class Driver:
    """A GPU that is not there, as Triton's launcher asks for it."""

    def __init__(self, target: Target):
        self.target, self.number = target.gpu, list(TARGETS).index(target.name)

    def get_current_target(self) -> GPUTarget:
        return self.target

    def get_current_device(self) -> int:
        return self.number  # what is compiled is kept by this number

    def get_current_stream(self, device: int) -> int:
        return 0


@contextmanager
def pretended_gpu(target: Target, module: ModuleType) -> Iterator[list[Any]]:
    """Launches inside of the `with` compile and stop; yields the kernels that were compiled."""
    compiled: list[Any] = []
    run = triton.JITFunction.run

    def compile_only(self, *args, grid, warmup, **options):
        compiled.append(run(self, *args, grid=grid, warmup=True, **options))

    before = dict(vars(driver))  # its reset_active() would look for a GPU
    driver.set_active(Driver(target))  # pyrefly: ignore
    try:
        with (
            mock.patch.object(triton.JITFunction, "run", compile_only),
            mock.patch.object(module, "_check"),  # it would refuse tensors on the CPU
            warnings.catch_warnings(),
        ):
            warnings.filterwarnings("ignore", "TRITON_DEFAULT_FP_FUSION")  # of Triton 3.9
            yield compiled
    finally:
        vars(driver).update(before)


def compile_attention(
    target: Target, dtype: torch.dtype, width: int, module: ModuleType = triton_attention
) -> list[Compiled]:
    """The three kernels of a layer, forward and backward, for tensors as the layer makes them."""
    kernel = module.triton_attention
    layer = mt.MultiHeadAttention(4 * width, 4, num_kv_heads=2, kernel=kernel).to(dtype)
    x = torch.zeros(2, 200, 4 * width, dtype=dtype)
    with pretended_gpu(target, module) as compiled:
        layer(x, x, mt.causal_mask(200)).sum().backward()
    return [_read(target, dtype, width, kernel) for kernel in compiled]


def _read(target: Target, dtype: torch.dtype, width: int, kernel: Any) -> Compiled:
    name, shared = kernel.metadata.name, kernel.metadata.shared
    if "cubin" in kernel.asm:
        assembly = kernel.asm["ptx"]
        registers, spilled = _usage(kernel.asm["cubin"])
        loads = r"(?:ld\.global|cp\.async\.c[ag]\.shared\.global)\S*"
    else:
        assembly = kernel.asm["amdgcn"]
        registers, spilled = (
            int(re.search(rf"\.{key}:\s+(\d+)", assembly)[1])  # pyrefly: ignore
            for key in ("vgpr_count", "private_segment_fixed_size")
        )
        loads = r"(?:buffer|global)_load_\w+"
    instructions = re.findall(loads, assembly)
    narrow = [i for i in instructions if re.search(r"\.[bsu](?:8|16)$|_[us]?(?:byte|short)", i)]
    narrow = [i for i in narrow if not re.search(r"\.v\d", i)]
    return Compiled(
        target, dtype, width, name, registers, spilled, shared,
        matrix=len(re.findall(MATRIX_UNITS, assembly)),
        tf32=len(re.findall(r"\.tf32|_xf32", assembly)),
        loads=len(instructions),
        narrow=len(narrow),
    )  # fmt: skip


def _usage(cubin: bytes) -> tuple[int, int]:
    """Registers and spilled bytes of each thread, as CUDA's own tool reads them off."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "kernel.cubin"
        file.write_bytes(cubin)
        command = [TOOLS / "cuobjdump", "--dump-resource-usage", file]
        done = subprocess.run(command, capture_output=True, encoding="utf-8", check=True)
    found = re.search(r"REG:(\d+) STACK:(\d+) SHARED:\d+ LOCAL:(\d+)", done.stdout)
    if found is None:
        raise RuntimeError(f"cuobjdump says nothing about registers:\n{done.stdout}{done.stderr}")
    return int(found[1]), int(found[2]) + int(found[3])


# ---- the table -----------------------------------------------------------------------------------


def combinations() -> list[tuple[Target, torch.dtype, int]]:
    """What is compiled: float16 once, as to the compiler it is bfloat16."""
    dtypes = (torch.float32, torch.bfloat16)
    every = [(TARGETS[t], d, w) for t in TARGETS for d in dtypes for w in WIDTHS]
    return [*every, (TARGETS["sm_90"], torch.float16, 64)]


def table(found: list[Compiled]) -> str:
    lines = [
        "| target | dtype | width | kernel | registers | spilled, B | shared, B | of "
        "| matrix instructions | loads | of under 4 B |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for one in found:
        dtype, kernel = str(one.dtype).removeprefix("torch."), one.kernel.removeprefix("attention_")
        lines.append(
            f"| {one.target.name} | {dtype} | {one.width} | {kernel} | {one.registers} "
            f"| {one.spilled} | {one.shared:,} | {one.target.shared:,} | {one.matrix} "
            f"| {one.loads} | {one.narrow} |"
        )
    return "\n".join(lines)


def main() -> None:
    torch.set_num_threads(1)
    found: list[Compiled] = []
    failed: dict[bool, list[str]] = {False: [], True: []}  # of targets that are refused
    for target, dtype, width in tqdm(combinations(), desc="compiling", disable=None):
        name = f"{target.name}, {dtype}, width {width}"
        try:
            kernels = compile_attention(target, dtype, width)
        except Exception as error:  # of a compiler; the others are compiled all the same
            said = f"{name}: {type(error).__name__}: {error}".splitlines()[0][:200]
            failed[target.refused].append(said)
            continue
        found += kernels
        failed[target.refused] += [
            f"{name}, {one.kernel}: {fault}" for one in kernels for fault in one.faults()
        ]
    cards = ", ".join(f"{target.name} ({target.cards})" for target in TARGETS.values())
    refused = ", ".join(target.name for target in TARGETS.values() if target.refused)
    about = (
        "# The Triton kernels, compiled for GPUs that were not there\n\n"
        f"`python scripts/compile_kernels.py` makes this page: date {datetime.date.today()}, "
        f"Triton {triton.__version__}, torch {torch.__version__}. {cards}.\n\n"
        "Nothing here ran on a GPU: registers, bytes and instructions are the compiler's, and say "
        "nothing about speed. *Spilled* are bytes of each thread that did not fit into registers; "
        "*of* is the most shared memory that a program may have there; *matrix instructions* are "
        "those of tensor cores, of which none rounds float32 to TensorFloat-32. Loads of under 4 "
        "bytes read the mask."
    )
    parts = [about, table(found), _listed("What is wrong", failed[False])]
    parts.append(_listed("Why attention refuses the others, " + refused, failed[True]))
    OUT.write_text("\n\n".join(parts) + "\n", encoding="utf-8")
    print(*parts, sep="\n\n")
    sys.exit(bool(failed[False]))


def _listed(title: str, lines: list[str]) -> str:
    return "\n".join([f"{title}:\n", *(f"- {line}" for line in lines or ["nothing"])])


if __name__ == "__main__":
    main()
