"""How long does a checkpoint take, beside a step? The lines of notebooks/reliability.md.

    python scripts/save_time.py

One thread; files, fsync and all, on the disk of the folder where this is run. Medians.
"""

import tempfile
import time
from pathlib import Path
from statistics import median

import torch

from minitransformer import Config
from minitransformer.training.loop import Settings, Training
from minitransformer.training.run import Run
from minitransformer.training.saver import Saver
from minitransformer.training.tasks import Task, make_task

MODELS = {
    "the main job": ("dates", {"d_model": 96, "num_layers": 1, "max_length": 64}, 128),
    "a language model": (
        "lm",
        {"d_model": 512, "num_layers": 6, "max_length": 256, "style": "llama"},
        24,
    ),
}
STEPS = 8


def main() -> None:
    torch.set_num_threads(1)
    print("| model | a step | a checkpoint |\n|---|---|---|")
    for name, (what, numbers, examples) in MODELS.items():
        task = make_task(what, max_length=int(numbers["max_length"]))
        model = task.model_class(Config(len(task.vocabulary), **numbers))
        steps, saves = measure(Run(what, model, task.vocabulary), task, examples)
        size = sum(p.numel() for p in model.parameters()) / 1e6
        print(
            f"| {name}, {size:.2f} million parameters | {median(steps) * 1e3:,.0f} ms | "
            f"{median(saves) * 1e3:,.0f} ms |"
        )


def measure(run: Run, task: Task, examples: int) -> tuple[list[float], list[float]]:
    """The seconds of each step, and of the checkpoint after it."""
    training, steps, saves = Training(run.model, Settings(batch_size=examples)), [], []
    with tempfile.TemporaryDirectory(dir=".") as folder:
        saver = Saver(run, Path(folder))
        for step in range(STEPS):
            batch = training.batch(task, step)
            start = time.perf_counter()
            training.step(batch)[0].item()
            steps.append(time.perf_counter() - start)
            start = time.perf_counter()
            saver(training)
            saves.append(time.perf_counter() - start)
    return steps, saves


if __name__ == "__main__":
    main()
