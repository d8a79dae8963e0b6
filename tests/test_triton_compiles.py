"""The Triton kernels compile for GPUs that are not there, into what they are meant to be.

That finds most of what a GPU would refuse: a tile that is too large, a type that the language does
not take, half precision without tensor cores. Whether results are right is for the interpreter
(`test_triton_attention.py`) and, in the end, for a GPU. `scripts/compile_kernels.py` makes a table.
"""

import importlib.util
import sys
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from pretended import pretended_gpu

pytest.importorskip("triton", minversion="3.3")
sys.path.insert(0, str(Path(__file__).parent.parent / "scripts"))
from compile_kernels import TARGETS, combinations, compile_attention

from minitransformer.kernels import triton_attention as module

pytestmark = [
    pytest.mark.filterwarnings("ignore:TRITON_DEFAULT_FP_FUSION"),  # a notice of Triton 3.9
    pytest.mark.skipif(module.INTERPRETED, reason="TRITON_INTERPRET=1: nothing is compiled"),
]
QUICK = [("sm_86", torch.bfloat16, 24)]  # the least shared memory; the main job's heads
KERNELS = ["attention_forward", "attention_backward_query", "attention_backward_key_value"]


def name_of(part) -> str:
    return getattr(part, "name", str(part).removeprefix("torch."))


def is_quick(target, dtype, width) -> bool:
    return (target.name, dtype, width) in QUICK


@pytest.mark.parametrize(
    ("target", "dtype", "width"),
    [
        pytest.param(*one, marks=[] if is_quick(*one) else pytest.mark.slow)
        for one in combinations()
        if not one[0].refused
    ],
    ids=name_of,
)
def test_every_kernel_compiles_into_what_it_is_meant_to_be(target, dtype, width):
    found = compile_attention(target, dtype, width)
    assert [one.kernel for one in found] == KERNELS
    assert {one.kernel: one.faults() for one in found} == {kernel: [] for kernel in KERNELS}


PLANTED = {  # a mistake: a line of the module, another in its place, and what is said of it
    "TF32": ('input_precision="ieee"', 'input_precision="tf32"', "products in TensorFloat-32"),
    "tile": ("32 if dtype == torch.float32 else 64", "128", "of shared memory, of 101,376"),
    "loads": ("gcd(16, *steps)", "1", "loads of less than 4 B, more than"),
}


@pytest.mark.slow
@pytest.mark.parametrize("mistake", PLANTED)
def test_a_planted_mistake_is_found(mistake, tmp_path):
    line, other, said = PLANTED[mistake]
    source = Path(module.__file__).read_text(encoding="utf-8")
    assert source.count(line) == 1
    file = tmp_path / "planted.py"
    file.write_text(source.replace(line, other), encoding="utf-8")
    spec = importlib.util.spec_from_file_location("planted", file)
    planted = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(planted)
    dtype = torch.float32 if mistake == "TF32" else torch.bfloat16
    width = 24 if mistake == "loads" else 128
    found = compile_attention(TARGETS["sm_86"], dtype, width, planted)
    assert any(said in fault for one in found for fault in one.faults()), found


@pytest.mark.parametrize("capability", [(7, 5), (8, 0)])
def test_gpus_without_tensor_cores_for_bfloat16_are_refused(capability, monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    with pretended_gpu("cuda"):
        x = torch.zeros(1, 1, 2, 16).to("cuda")
        said = "compute capability 8.0 on, cuda:0 is another; use attention = tiled or fused"
        refused = pytest.raises(RuntimeError, match=said)
        with refused if capability < (8, 0) else nullcontext():
            module._check(x, x, x, torch.ones(1, 1, 2, 2, dtype=torch.bool).to("cuda"))
