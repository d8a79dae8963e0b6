"""Kill a training with SIGKILL at random moments, and resume it each time: are the bits the same?

    python scripts/kill_training.py 200                # once, recorded in notebooks/reliability.md
    python scripts/kill_training.py 3 --seed 1         # what CI does

One run is made without a disturbance. Others are killed and resumed until they have ended, again
and again until N kills were made; each must end with the same sha256 of its weights. Each process
is a fork of this one, which has imported torch: kills fall into training and saving, not into the
import. Exit status 1 where a run ended with other bits, or could not be resumed.
"""

import argparse
import contextlib
import hashlib
import os
import random
import signal
import sys
import tempfile
import time
from pathlib import Path

import torch
from tqdm import tqdm

from minitransformer.cli import main as minitransformer
from minitransformer.training.checkpoint import checkpoints
from minitransformer.training.run import Run

MODEL = ["--d-model", "32", "--num-layers", "1", "--num-heads", "2", "--dropout", "0.1"]
TRAINING = ["--batch-size", "8", "--steps", "150", "--save-every", "2", "--evaluate-every", "75"]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("kills", type=int, metavar="N")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    options = parser.parse_args()
    rng = random.Random(options.seed)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        here = Path(name)
        data = here / "pairs.tsv"
        words = [f"w{i}x{'ab' * (i % 7)}" for i in range(60)]
        data.write_text("".join(f"{word}\t{word[::-1]}\n" for word in words), encoding="utf-8")
        begin = ["train", "--task", "pairs", "--data", str(data), *MODEL, *TRAINING]
        start = time.monotonic()
        wait_for(fork([*begin, "--out", str(here / "whole")], here / "log"))
        seconds = time.monotonic() - start
        wanted, kills, runs, lost = sha256(here / "whole"), 0, 0, 0
        with tqdm(total=options.kills, unit="kill", disable=None) as bar:
            while kills < options.kills:
                runs += 1
                run, process = here / f"run-{runs}", None
                while not is_finished(run):
                    there = bool(checkpoints(run))
                    words = (
                        ["train", "--resume", str(run)] if there else [*begin, "--out", str(run)]
                    )
                    process = fork(words, here / "log")
                    if kills < options.kills:
                        time.sleep(rng.uniform(0.0, 0.5 * seconds))
                        os.kill(process, signal.SIGKILL)
                    status = wait_for(process)
                    killed = os.WIFSIGNALED(status)
                    kills += killed
                    bar.update(killed)
                    if not killed and status != 0:
                        print((here / "log").read_text(encoding="utf-8"), file=sys.stderr)
                        return 1
                lost += sha256(run) != wanted
        print(
            f"{kills} kills in {runs} runs of 150 steps, a checkpoint every 2: {runs - lost} ended "
            f"with the sha256 of the undisturbed run, {lost} with another"
        )
    return 1 if lost else 0


def fork(words: list[str], log: Path) -> int:
    """Run the command line in a process of its own, which writes to `log`."""
    process = os.fork()
    if process:
        return process
    status = 70
    with contextlib.suppress(BaseException):
        handle = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        os.dup2(handle, 1)
        os.dup2(handle, 2)
        status = minitransformer(words)
    os._exit(status)


def wait_for(process: int) -> int:
    return os.waitpid(process, 0)[1]


def is_finished(run: Path) -> bool:
    """Its own files are there, whole: what a kill left must always be loadable."""
    if not run.exists() or not checkpoints(run):
        return False
    loaded = Run.load(run)
    return (run / "manifest.json").exists() and len(loaded.history) == 150


def sha256(run: Path) -> str:
    return hashlib.sha256((run / "model.safetensors").read_bytes()).hexdigest()


if __name__ == "__main__":
    sys.exit(main())
