"""`scripts/benchmark.py` and `scripts/growth.py`, but for what they measure: that takes hours."""

import json
import shutil
import sys
from functools import partial
from pathlib import Path

import pytest
import torch

pytest.importorskip("matplotlib")
ROOT = Path(__file__).parent.parent
NOTEBOOKS = ROOT / "notebooks"
sys.path.insert(0, str(ROOT / "scripts"))
import growth  # noqa: E402 -- scripts/growth.py
from benchmark_parts import measure, peers, report, sections  # noqa: E402
from pretended import pretended_gpu  # noqa: E402

CPU = torch.device("cpu")


@pytest.fixture
def folder(tmp_path) -> Path:
    """What is committed, without the pictures."""
    shutil.copy(NOTEBOOKS / "scaling.md", tmp_path)
    (tmp_path / "benchmark").mkdir()
    for file in (NOTEBOOKS / "benchmark").glob("*.json"):
        shutil.copy(file, tmp_path / "benchmark")
    return tmp_path


def section_of(seconds: dict[str, float], processor: str = "Some(R) Chip Processor") -> dict:
    rows = [{"name": name, "seconds": [s], "peak_mib": 1.0} for name, s in seconds.items()]
    group = {
        "title": "the main job's dates, float32",
        "rows": rows,
        "baseline": "transformers BART",
    }
    machine = {"date": "today", "processor": processor, "device": "cpu", "threads": "1"}
    return {"machine": machine, "ceiling": {"float32": 1.0, "copy": 1.0}, "groups": [group]}


DATES = {"ours, packed": 2.0, "transformers BART": 1.0, "x-transformers": 3.0}


# ---- files ---------------------------------------------------------------------------------------


def test_the_page_is_made_of_the_numbers_beside_it(folder):
    page = report.write_page(folder).read_text(encoding="utf-8")
    assert page == (NOTEBOOKS / "benchmark.md").read_text(encoding="utf-8")


def test_a_machine_writes_its_own_numbers_and_leaves_those_of_others(folder):
    before = {file: file.read_bytes() for file in folder.glob("benchmark/*.json")}
    assert before
    report.write(folder, "c", section_of(DATES))
    report.write(folder, "d", section_of(DATES))
    report.write(folder, "c", section_of(DATES | {"ours, packed": 0.5}))
    assert all(file.read_bytes() == data for file, data in before.items())
    (new,) = set(folder.glob("benchmark/*.json")) - set(before)
    assert new.name == "some-chip-1-thread.json"
    known = json.loads(new.read_text(encoding="utf-8"))
    assert [*known] == ["c", "d"]
    assert known["c"]["groups"][0]["rows"][0]["seconds"] == [0.5]
    page = (folder / "benchmark.md").read_text(encoding="utf-8")
    (header,) = [line for line in page.splitlines() if line.startswith("| work | beside | goal |")]
    assert header.endswith("| Intel Xeon, 1 thread | Some Chip, 1 thread |")
    assert "### c. Some Chip, 1 thread" in page
    assert (folder / "benchmark" / "c-some-chip-1-thread.png").exists()


# ---- in short ------------------------------------------------------------------------------------


def test_in_short_names_the_fastest_of_the_others_and_where_it_is_faster():
    slow = report.in_short({"A, 1 thread": {"c": section_of(DATES)}})
    line = "| the main job's dates, float32, packed | the fastest | 1.5 × | "
    assert slow.splitlines()[2:] == [line + "**0.50 ×** transformers BART |"]
    fast = report.in_short({"A, 1 thread": {"c": section_of(DATES | {"ours, packed": 0.5})}})
    assert line + "2.00 × transformers BART |" in fast


def test_a_goal_that_is_missed_stands_beside_what_products_alone_would_leave():
    sections = {"c": section_of({"ours, packed": 1.0, "transformers BART": 1.2})}
    (group,) = sections["c"]["groups"]
    group["profile"] = [  # products take half of the time
        {"operator": "aten::mm", "share": 0.3},
        {"operator": "aten::baddbmm", "share": 0.1},
        {"operator": "aten::_scaled_dot_product_flash_attention_for_cpu_backward", "share": 0.1},
        {"operator": "aten::copy_", "share": 0.4},
    ]
    assert "1.20 × transformers BART (at most 2.40) |" in report.in_short({"A": sections})
    group["rows"][0]["seconds"] = [0.5]  # 2.4 times as fast, as the goal wants it
    assert "2.40 × transformers BART |" in report.in_short({"A": sections})


def test_in_short_has_the_worst_length_of_attention():
    sections = {"e": section_of({})}
    sections["e"]["groups"] = [
        {
            "table": "forward",
            "row": {"mask": "window", "length": length},
            "rows": [{"name": "ours", "seconds": [1.0]}, {"name": "SDPA", "seconds": [by]}],
        }
        for length, by in ((64, 2.0), (128, 0.8), (256, 3.0))
    ]
    brief = report.in_short({"A, 1 thread": sections})
    assert "**0.80 ×** SDPA, forward, length 128 |" in brief
    assert len(brief.splitlines()) == 3


def test_every_goal_is_of_something_that_is_measured():
    assert report.goals("generation, GPT-2, 48 tokens", "ours") == {report.FASTEST: 1.2}
    file = NOTEBOOKS / "benchmark" / "intel-xeon-1-thread.json"
    sections = json.loads(file.read_text(encoding="utf-8"))
    lines = report.in_short({"Intel Xeon, 1 thread": sections}).splitlines()
    for (work, _), wanted in report.GOALS.items():
        if "48" not in work:  # which is newer
            for beside in wanted:
                assert any(f"| {work}" in line and f"| {beside} |" in line for line in lines)


# ---- measures ------------------------------------------------------------------------------------


@pytest.mark.parametrize(("slower", "kept"), [(0.5, True), (3.9, True), (4.1, False)])
def test_bfloat16_is_left_out_where_it_is_far_slower(slower, kept, monkeypatch):
    measured = []

    def speed(dtype, size, device):
        measured.append((dtype, size))
        return 100.0 if dtype == torch.float32 else 100.0 / slower

    monkeypatch.setattr(measure, "_speed", speed)
    monkeypatch.setattr(measure, "_best", lambda run, device: 1.0)
    ceiling = measure.measure_ceiling(CPU)
    assert ("bfloat16" in ceiling) == kept
    assert ((torch.bfloat16, 2048) in measured) == kept  # not even its ceiling: that takes minutes
    assert (torch.bfloat16 in measure.Bench(CPU, False, 1.0, ceiling).dtypes) == kept
    line = report.machine_line({"machine": section_of({})["machine"], "ceiling": ceiling})
    assert ("bfloat16 is left out" in line) != kept


def test_every_entrant_has_its_turn_in_each_round_and_the_order_changes():
    turns = []
    runs = {name: partial(turns.append, name) for name in "abcde"}
    found = measure.Bench(CPU, quick=True, seconds=0.0).compare("nothing", runs)
    assert {name: len(one["seconds"]) for name, one in found.items()} == dict.fromkeys("abcde", 2)
    first, second = turns[-10:-5], turns[-5:]
    assert sorted(first) == sorted(second) == list("abcde")
    assert first != second


def test_operators_are_counted_backward_too():
    x = torch.ones(3, requires_grad=True)
    forward = measure.operators(lambda: (x * 2).sum())
    assert forward == 2
    assert measure.operators(lambda: (x * 2).sum().backward()) > forward + 1


# ---- growth --------------------------------------------------------------------------------------


@pytest.mark.parametrize("power", [1.0, 2.0])
def test_the_exponent_of_a_power_is_its_exponent(power):
    sizes = [100, 200, 400, 800]
    assert growth.exponents(sizes, [3.0 * n**power for n in sizes]) == f"{power:.2f}, {power:.2f}"
    assert growth.exponents(sizes, [1.0, 1.0, 1.0, 4.0]).endswith(", 2.00")
    assert growth.exponents(sizes, [0.0, 1.0, 1.0, 4.0]) == ""


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="memory as Linux tells it")
@pytest.mark.slow
def test_memory_is_that_of_the_work_alone():
    small, large = (growth.in_a_process("mask of one packed row of n", n) for n in (100, 4_000))
    assert small["MiB"] < 8  # not that of torch
    assert 16e6 / 2**20 <= large["MiB"] < 64


def test_a_step_of_ours_makes_a_gpu_wait_for_nothing():
    """As in training: else the benchmark would measure something else."""
    batches = [sections.masked_batches([9, 4], seed)[sections.PACKED] for seed in range(3)]
    size = peers.Size(d_model=16, num_layers=1, num_heads=2)
    with pretended_gpu("cuda") as waits:
        gpu = torch.device("cuda")
        step = sections.Trainer(peers.our_encoder, size, batches, torch.float32, gpu)
        step()  # the optimizer makes its state
        waits.clear()
        step()
    assert waits == []
