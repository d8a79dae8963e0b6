"""A training as files, saved while it goes on, and taken up again."""

import sys
from collections.abc import Mapping
from pathlib import Path

from safetensors import torch as safetensors
from tqdm import tqdm

from minitransformer.data.files import InputError
from minitransformer.data.manifest import replace_files, write_folder
from minitransformer.training.checkpoint import last_good, save
from minitransformer.training.loop import (
    COLUMNS,
    NonFiniteLoss,
    Training,
    random_state,
    set_random_state,
)
from minitransformer.training.lora import lora_of, merge_lora
from minitransformer.training.run import Run

OPTIMIZER, RANDOM, BATCH = "optimizer.safetensors", "random.safetensors", "batch.safetensors"


class Saver:
    """Writes checkpoints of a run; one that cannot be written ends nothing but the last."""

    def __init__(self, run: Run, folder: Path, keep: int = 2):
        self.run, self.folder, self.keep = run, folder, keep
        self.error: InputError | None = None  # why the last one was not written

    def __call__(self, training: Training) -> None:
        files = files_of(self.run, training)
        if training.processes.rank > 0:
            return
        step = len(training.history)
        try:
            save(self.folder, step, files, self.keep, best_step(training.history))
            self.error = None
        except InputError as error:
            good = last_good(self.folder)
            if good is None:
                raise
            self.error = InputError(f"{error}; the last good checkpoint is {good}")
            tqdm.write(f"step {step:,} is not saved: {self.error}", file=sys.stderr)

    def finish(self) -> None:
        """Put what `generate` needs into the run's folder itself."""
        if self.error:
            raise self.error
        if lora_of(self.run.model):
            merge_lora(self.run.model)  # the checkpoints, from which training can go on, have it
        replace_files(self.folder, self.run.files())

    def keep_for_inspection(self, training: Training, error: NonFiniteLoss) -> None:
        """Raises InputError that says where the batch and the state before it are."""
        files = files_of(self.run, training)
        batch = {name: t.contiguous() for name, t in error.batch.items() if t is not None}
        if training.processes.rank == 0:
            write_folder(self.folder / "non_finite", {**files, BATCH: safetensors.save(batch)})
        raise InputError(
            f"{error}: start again with a lower --learning-rate, or look for what is odd in "
            f"{self.folder / 'non_finite'}, which holds the batch ({BATCH}) and the state before it"
        )


def files_of(run: Run, training: Training) -> dict[str, bytes]:
    """All that the next step depends on; every process calls this, process 0 has the files."""
    processes = training.processes
    optimizer = processes.optimizer_state(training.model, training.optimizer)
    states = processes.gather(random_state(training.device))
    random = {f"{i}.{kind}": t for i, state in enumerate(states) for kind, t in state.items()}
    run.model, run.history = training.whole_model(), training.history
    if processes.rank > 0:
        return {}
    return {
        **run.files(),
        OPTIMIZER: safetensors.save({name: t.contiguous() for name, t in optimizer.items()}),
        RANDOM: safetensors.save(random),
    }


def restore(training: Training, files: Mapping[str, bytes]) -> None:
    """The optimizer and the random state; those of Run, the model say, are there already.

    With more processes than before, those that are new draw their dropout from a seed.
    """
    for name in (OPTIMIZER, RANDOM):
        if name not in files:
            raise InputError(f"{name}: the checkpoint has none: there is nothing to go on from")
    processes = training.processes
    processes.load_optimizer_state(
        training.model, training.optimizer, safetensors.load(files[OPTIMIZER])
    )
    states = safetensors.load(files[RANDOM])
    set_random_state(
        {
            name.partition(".")[2]: t
            for name, t in states.items()
            if name.startswith(f"{processes.rank}.")
        }
    )


def best_step(history: list[dict[str, float]]) -> int | None:
    """The step with the best result on held-out examples, by the first one that a task names."""
    scores = []
    for row in history:
        for name in [name for name in row if name not in COLUMNS][:1]:
            scores.append((-row[name] if name.endswith("loss") else row[name], int(row["step"])))
    return max(scores)[1] if scores else None  # of equal ones the later
