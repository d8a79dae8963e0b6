"""Several processes: together they are one, to rounding; and when one is lost, little is."""

import hashlib
import os
import signal
import subprocess
import sys
import time

import pytest
import torch
import two_processes

from minitransformer.cli import train as cli_train
from minitransformer.cli.main import main
from minitransformer.training.checkpoint import checkpoints
from minitransformer.training.processes import ALONE
from minitransformer.training.run import Run
from minitransformer.training.tasks import DataOptions, make_task

pytestmark = pytest.mark.skipif(
    sys.platform != "linux" or not torch.distributed.is_available(),
    reason="starts processes with torchrun, over gloo",
)
TINY = "--task pairs --d-model 16 --num-heads 2 --num-layers 1 --batch-size 8".split()  # noqa: SIM905


def torchrun(*arguments, restarts=0):
    """Its output is of no interest, its exit status neither: gloo may abort when all is done."""
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
    command += ["--standalone", "--max-restarts", str(restarts)]
    return subprocess.Popen(
        [*command, *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


@pytest.fixture(scope="module")
def together(pairs, tmp_path_factory):
    """What two processes computed."""
    out = tmp_path_factory.mktemp("two") / "out.pt"
    said, _ = torchrun(two_processes.__file__, pairs, out).communicate(timeout=300)
    assert out.exists(), said
    return torch.load(out)


@pytest.fixture(scope="module")
def alone(pairs):
    task = make_task("pairs", DataOptions(pairs), 64)
    cases = {(n, learns) for _, n, _, learns in two_processes.CASES.values()}
    return {(n, learns): two_processes.four_steps(task, ALONE, n, 1, learns) for n, learns in cases}


@pytest.mark.slow
@pytest.mark.parametrize("case", two_processes.CASES)
def test_two_processes_are_one(together, alone, case):
    _, examples, _, learns = two_processes.CASES[case]
    ours, theirs = together["results"][case], alone[examples, learns]
    assert ours["losses"] == pytest.approx(theirs["losses"], rel=1e-12)
    assert ours["remembered"] == theirs["remembered"]
    assert not ours["drops"]  # a copy is for evaluation
    for a, b in zip(ours["gradients"], theirs["gradients"], strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-12)
    for a, b in zip(ours["weights"], theirs["weights"], strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-9)


@pytest.mark.slow
def test_their_labels_are_unequal_and_one_has_none(together):
    (first, second), (some, none) = together["labels"]
    assert first != second
    assert min(first, second, some) > 0
    assert none == 0


@pytest.mark.slow
def test_the_mean_of_their_means_is_another_number(together, alone):
    assert abs(together["naive"] - alone[12, "all"]["losses"][0]) > 1e-3


@pytest.mark.slow
@pytest.mark.parametrize("shard", [[], ["--shard"]], ids=["DDP", "FSDP"])
def test_a_process_that_is_killed_costs_the_steps_since_the_last_checkpoint(
    pairs, tmp_path, shard, monkeypatch
):
    run = tmp_path / "run"
    options = ["--data", pairs, "--steps", "60", "--evaluate-every", "60", "--save-every", "5"]
    process = torchrun(
        "-m", "minitransformer", "train", *TINY, *options, "--out", run, *shard, restarts=3
    )
    while not checkpoints(run) or int(checkpoints(run)[-1].name) < 15:
        assert process.poll() is None, process.stdout.read()
        time.sleep(0.01)
    os.kill(_workers(process.pid)[-1], signal.SIGKILL)
    said, _ = process.communicate(timeout=300)
    assert "steps of 8 examples, from step" in said
    done = Run.load(run)
    assert [row["step"] for row in done.history] == list(range(1, 61))
    assert (run / "model.safetensors").exists()

    whole = tmp_path / "whole"
    torchrun("-m", "minitransformer", "train", *TINY, *options, "--out", whole, *shard).communicate(
        timeout=300
    )
    assert sha256(run) == sha256(whole)

    monkeypatch.setattr(cli_train, "save_pictures", lambda pictures, folder: [])
    assert main(["train", "--resume", str(run), "--steps", "62"]) == 0  # in one process
    assert len(Run.load(run).history) == 62
    more = torchrun("-m", "minitransformer", "train", "--resume", run, "--steps", "64", *shard)
    more.communicate(timeout=300)  # and in two again
    assert len(Run.load(run).history) == 64


def sha256(run):
    return hashlib.sha256((run / "model.safetensors").read_bytes()).hexdigest()


def _workers(launcher: int) -> list[int]:
    with open(f"/proc/{launcher}/task/{launcher}/children", encoding="utf-8") as file:
        return sorted(map(int, file.read().split()))


def test_restarts_need_to_know_where(monkeypatch, capsys):
    monkeypatch.setenv("TORCHELASTIC_MAX_RESTARTS", "3")
    assert main(["train"]) == 2
    assert "--max-restarts needs --out DIR" in capsys.readouterr().err


def test_alone_nothing_is_exchanged():
    number = torch.tensor(2.0)
    assert ALONE.sum(number) is number
    assert ALONE.whole(number) is number
    assert ALONE.agree(3, True) == [3, True]
    assert ALONE.from_first("x") == "x"
    assert ALONE.gather("x") == ["x"]
    module = torch.nn.Linear(1, 1)
    assert ALONE.spread(module) is module
