"""What test_processes.py compares: four steps of AdamW or Muon in float64, in all processes.

torchrun --nproc-per-node 2 tests/two_processes.py PAIRS.tsv OUT.pt
"""

import sys
from dataclasses import replace

import torch

from minitransformer import Config, EncoderOnly
from minitransformer.classifier import Classifier
from minitransformer.data import Batch
from minitransformer.training.loop import Settings, Training
from minitransformer.training.lora import add_lora, freeze
from minitransformer.training.processes import Processes, start_processes
from minitransformer.training.tasks import DataOptions, Task, make_task

CASES = {  # processes without a label; gradients in parts; few parameters that learn
    f"{'FSDP' if shard else 'DDP'}, {examples} examples, {parts} parts, {learns} learns": (
        shard,
        examples,
        parts,
        learns,
    )
    for shard in (False, True)
    for examples, parts, learns in (
        (12, 1, "all"),
        (12, 2, "all"),
        (3, 1, "all"),
        (12, 1, "LoRA"),
        (12, 2, "last layer"),
        (12, 1, "classifier"),
        (12, 1, "Muon"),
    )
}
PREPARE = {
    "all": lambda model: None,
    "Muon": lambda model: None,
    "LoRA": lambda model: add_lora(model, rank=2, alpha=8),
    "last layer": lambda model: freeze(model, 1),
    "classifier": lambda model: add_lora(model.body, rank=2),
}


class LongSources:
    """A task for a classifier: is the source of a pair long?"""

    def __init__(self, task: Task):
        self.task = task

    @staticmethod
    def model_class(config: Config) -> Classifier:
        return Classifier(EncoderOnly(config), num_classes=2, activation="tanh")

    def batch(self, *numbers) -> Batch:
        pairs = self.task.batch(*numbers[:-1], packed=False)
        return Batch(pairs.source_ids, pairs.source_mask, (pairs.source_mask.sum(1) > 9).long())


def four_steps(
    task: Task, processes: Processes, examples: int, parts: int, learns: str = "all"
) -> dict:
    """The gradients of the first step before clipping, the losses, the weights in the end."""
    torch.manual_seed(0)
    config = Config(len(task.vocabulary), d_model=16, num_layers=2, num_heads=2, max_length=64)
    task = LongSources(task) if learns == "classifier" else task
    settings = Settings(steps=4, batch_size=examples, warmup=1, accumulate=parts, clip=1e9)
    if learns == "Muon":
        settings = replace(settings, optimizer="muon")
    model = task.model_class(config).double()
    PREPARE[learns](model)
    training = Training(model, settings, processes)
    losses, gradients = [], []
    for step in range(settings.steps):
        losses.append(training.step(training.batch(task, step))[0].item())
        if not gradients:
            learned = [p for p in training.model.parameters() if p.requires_grad]
            gradients = [processes.whole(p.grad).clone() for p in learned]
    whole = training.whole_model()
    states = processes.optimizer_state(training.model, training.optimizer)
    return {
        "gradients": gradients,
        "losses": losses,
        "weights": [p.detach().clone() for p in whole.parameters()],
        "drops": whole is not training.model and whole.training,
        "remembered": sorted(states),
    }


def mean_of_means(task: Task, processes: Processes) -> float:
    """The loss as it is often done: each process's own mean, averaged by DDP."""
    torch.manual_seed(0)
    config = Config(len(task.vocabulary), d_model=16, num_layers=2, num_heads=2, max_length=64)
    model = task.model_class(config).double()
    part = task.batch(0, 0, 12, False).part(processes.rank, processes.size)  # rows of their own
    return processes.sum(model.loss(**part).detach()).item() / processes.size


def main() -> None:
    task = make_task("pairs", DataOptions(sys.argv[1]), 64)
    with start_processes(torch.device("cpu"), False) as started:
        results = {
            case: four_steps(task, Processes(started.rank, started.size, shard), *numbers)
            for case, (shard, *numbers) in CASES.items()
        }
        naive = mean_of_means(task, started)
        labels = [
            [int((task.batch(0, 0, n, True).part(i, 2).labels != -100).sum()) for i in range(2)]
            for n in (12, 3)
        ]
        if started.rank == 0:
            torch.save({"results": results, "naive": naive, "labels": labels}, sys.argv[2])


if __name__ == "__main__":
    main()
