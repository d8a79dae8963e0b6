"""`scripts/gpu_record.py`: a part that fails costs the others nothing; wrong kernels are found."""

import sys
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from pretended import pretended_gpu

pytest.importorskip("matplotlib")
ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "scripts"))
import gpu_record  # noqa: E402 -- scripts/gpu_record.py
from benchmark_parts.peers import Size  # noqa: E402
from gpu_record import CASES, PARTS, Record, run_part  # noqa: E402

from minitransformer import scaled_dot_product_attention  # noqa: E402
from minitransformer.kernels import KERNELS, attention_kernel  # noqa: E402
from minitransformer.kernels.varlen import torchs_kernel  # noqa: E402


def record_of(seconds: float = 60.0) -> Record:
    ceiling = {"float32": 1.0, "copy": 1.0}
    return Record(torch.device("cpu"), True, 1.0, ceiling, time.monotonic() + seconds)


def attention_of(query, key, value, mask):
    return scaled_dot_product_attention(query, key, value, mask)[0]


def leaky(query, key, value, mask):
    """As one would write it: NaN in padding reaches all, and masked rows attend to everything."""
    scores = query.float() @ key.float().mT / query.shape[-1] ** 0.5
    weights = scores.masked_fill(~mask, -1e9).softmax(dim=-1)
    return weights.to(value.dtype) @ value


@pytest.mark.parametrize("case", CASES)
def test_the_reference_holds(case):
    assert CASES[case](attention_of, record_of())


@pytest.mark.parametrize("case", ["NaN in padding", "fully masked rows"])
def test_a_leaky_one_does_not(case):
    assert not CASES[case](leaky, record_of())


def test_nor_one_with_other_bits_each_time():
    def shaky(*inputs):
        output = attention_of(*inputs)
        return output + 1e-3 * torch.rand_like(output)

    assert not CASES["the same bits twice"](shaky, record_of())


def test_nor_one_whose_gradients_are_nan_under_low_scores():
    def broken(query, key, value, mask):
        low = (query * key).sum() < 0
        return attention_of(query * torch.where(low, torch.nan, 1.0), key, value, mask)

    assert not CASES["low scores"](broken, record_of())


def test_a_part_that_fails_says_so():
    def part(record):
        yield "the first half\n"
        raise RuntimeError("no such kernel")

    text = "\n".join(run_part("a part", part, record_of(), False))
    assert "the first half" in text
    assert "It failed:" in text
    assert "RuntimeError: no such kernel" in text


def test_what_there_is_no_time_for_is_named():
    text = run_part("a part", lambda record: iter(["text"]), record_of(-1.0), False)
    assert text == ["The time was over here: what may be missing was not begun.\n"]


class Event:
    """A moment, as torch.cuda has it."""

    def __init__(self, enable_timing):
        assert enable_timing

    def record(self):
        self.at = time.perf_counter()

    def elapsed_time(self, later):
        return 1000 * (later.at - self.at)


@pytest.mark.parametrize("title", ["Device and versions", "Attention alone"])
def test_what_only_a_gpu_runs_has_no_slip_of_the_pen(title, monkeypatch):
    """On a pretended device; what is only for a real one is missing, by its name."""
    properties = SimpleNamespace(major=9, minor=0, total_memory=80 * 2**30)
    answers = {
        "get_device_properties": properties,
        "get_device_name": "a pretended GPU",
        "get_device_capability": (9, 0),
        "synchronize": None,
        "reset_peak_memory_stats": None,
        "memory_allocated": 0,
        "max_memory_allocated": 2**20,
    }
    monkeypatch.setattr(torch.cuda, "Event", Event)
    for name, answer in answers.items():
        monkeypatch.setattr(torch.cuda, name, lambda *_, answer=answer: answer)
    with pretended_gpu("cuda"):
        record = replace(record_of(), device=torch.device("cuda"))
        text = "\n".join(run_part(title, PARTS[title], record, False))
    assert "It failed" not in text, text
    assert "varlen is SDPA here" not in text or torchs_kernel() is None
    expected = {
        "Device and versions": ["a pretended GPU", "capability 9.0", "memory 80 GiB"],
        "Attention alone": ["| packed | 128 |", "ours, triton: ", "ours, varlen: "],
    }
    for words in expected[title]:
        assert words in text, text


def test_that_varlen_is_not_here_is_said():
    title = "Device and versions"
    assert "varlen is SDPA here" in "\n".join(run_part(title, PARTS[title], record_of(), False))


def test_a_kernel_that_fails_in_training_costs_the_others_nothing(monkeypatch):
    """Triton refuses a CPU, and SDPA, with which the others are compared, is broken here."""

    def broken(*_):
        raise RuntimeError("no such image\nfor this device")

    sdpa = replace(attention_kernel("sdpa"), compute=broken)
    monkeypatch.setitem(KERNELS, "sdpa", sdpa)
    monkeypatch.setattr(gpu_record, "Size", lambda: Size(d_model=16, num_layers=1, num_heads=2))
    record = replace(record_of(), seconds=0.1)
    text = "\n".join(run_part("a part", PARTS["Training by kernel"], record, False))
    assert "It failed" not in text, text
    assert "Not measured: sdpa: no such image\n" in text
    assert "Not measured: triton: " in text
    for name in ("auto", "varlen"):
        assert f"| {name} | " in text


def test_the_fastest_right_tiles_are_named(monkeypatch):
    def by_tiles(tile, warps, inputs, mask):
        def run():
            time.sleep(0.01 * warps)
            results = gpu_record._run(attention_of, inputs, mask)
            return [x + 9 for x in results] if tile == 32 else results

        if tile == 128:
            raise RuntimeError("out of resources: shared memory")
        return run

    title = "Triton's tiles"
    record = replace(record_of(), seconds=0.2)
    refused = "\n".join(run_part(title, PARTS[title], record, False))
    assert refused.count("8 warps: ") == 6
    assert "fastest" not in refused
    monkeypatch.setattr(gpu_record, "_by_tiles", by_tiles)
    text = "\n".join(run_part(title, PARTS[title], record, False))
    assert text.count("the fastest: **tiles of 64, 4 warps**") == 3
    assert text.count("tiles of 32, 4 warps: **wrong**, off by ") == 3
    assert text.count("tiles of 128, 8 warps: RuntimeError: out of resources") == 3


@pytest.mark.parametrize("title", ["Tests", "The main job"])
def test_what_is_cut_off_in_its_own_process_says_so(title, monkeypatch):
    def run(command, **options):
        raise gpu_record.subprocess.TimeoutExpired(command, options["timeout"])

    monkeypatch.setattr(gpu_record.subprocess, "run", run)
    text = "\n".join(run_part(title, PARTS[title], record_of(), False))
    assert "not through after" in text or "The time was over here" in text
    assert "It failed" not in text


def test_a_rehearsal_writes_all_parts_and_not_the_page_of_the_gpu(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(gpu_record, "measure_ceiling", lambda device: record_of().ceiling)
    command = ["gpu_record.py", "--device", "cpu", "--quick", "--minutes", "0"]
    monkeypatch.setattr(sys, "argv", command)
    with pytest.raises(SystemExit):
        gpu_record.main()
    assert "is not for a rehearsal" in capsys.readouterr().err
    monkeypatch.setattr(sys, "argv", [*command, "--out", str(tmp_path / "gpu.md")])
    gpu_record.main()
    page = (tmp_path / "gpu.md").read_text(encoding="utf-8")
    assert [line[3:] for line in page.splitlines() if line.startswith("## ")] == [*PARTS]


def test_without_a_gpu_it_says_how_to_rehearse(monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(sys, "argv", ["gpu_record.py"])
    with pytest.raises(SystemExit):
        gpu_record.main()
    assert "torch finds no CUDA GPU here; --device cpu is a rehearsal" in capsys.readouterr().err
