"""What test_processes.py compares: ten steps of AdamW in float64, in all processes there are.

torchrun --nproc-per-node 2 tests/two_processes.py PAIRS.tsv OUT.pt
"""

import sys

import torch

from minitransformer import Config
from minitransformer.training.loop import Settings, Training
from minitransformer.training.processes import Processes, start_processes
from minitransformer.training.tasks import DataOptions, Task, make_task

CASES = {  # several processes, some without a single label; gradients in parts
    f"{'FSDP' if shard else 'DDP'}, {examples} examples, {parts} parts": (shard, examples, parts)
    for shard in (False, True)
    for examples, parts in ((12, 1), (12, 2), (3, 1))
}


def ten_steps(task: Task, processes: Processes, examples: int, parts: int) -> dict:
    """The gradients of the first step before clipping, the losses, the weights in the end."""
    torch.manual_seed(0)
    config = Config(len(task.vocabulary), d_model=16, num_layers=2, num_heads=2, max_length=64)
    settings = Settings(steps=10, batch_size=examples, warmup=2, accumulate=parts, clip=1e9)
    training = Training(task.model_class(config).double(), settings, processes)
    losses, gradients = [], []
    for step in range(settings.steps):
        losses.append(training.step(training.batch(task, step))[0].item())
        if not gradients:
            gradients = [processes.whole(p.grad).clone() for p in training.model.parameters()]
    whole = training.whole_model()
    return {
        "gradients": gradients,
        "losses": losses,
        "weights": [p.detach().clone() for p in whole.parameters()],
        "drops": whole is not training.model and whole.training,
    }


def mean_of_means(task: Task, processes: Processes) -> float:
    """The loss as it is often done: each process's own mean, averaged by DDP."""
    torch.manual_seed(0)
    config = Config(len(task.vocabulary), d_model=16, num_layers=2, num_heads=2, max_length=64)
    model = task.model_class(config).double()
    part = task.batch(0, 0, 12, True).part(processes.rank, processes.size)
    return processes.sum(model.loss(**part).detach()).item() / processes.size


def main() -> None:
    task = make_task("pairs", DataOptions(sys.argv[1]), 64)
    with start_processes(torch.device("cpu"), False) as started:
        results = {
            case: ten_steps(task, Processes(started.rank, started.size, shard), examples, parts)
            for case, (shard, examples, parts) in CASES.items()
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
