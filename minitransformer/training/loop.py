"""The training loop: one page, whatever the task."""

import math
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from tqdm import tqdm

from minitransformer.data import Batch, PairBatch
from minitransformer.data.files import InputError
from minitransformer.inference.answering import AnyModel
from minitransformer.layers import Stack
from minitransformer.training.tasks import Task

DTYPES = ("float32", "bfloat16")
READ_EVERY = {"cpu": 1}  # steps; other devices are asked for their losses, and waited for, rarely


@dataclass(frozen=True)
class Settings:
    """How to train: everything that is not the model."""

    steps: int = 1_000
    batch_size: int = 128  # examples in a step
    learning_rate: float = 4e-3  # the highest, reached after the warm-up
    warmup: int = 50  # steps in which the learning rate rises from 0; then it falls as a cosine
    weight_decay: float = 0.01
    clip: float = 1.0  # the longest gradient, in the Euclidean norm, that is taken as it is
    seed: int = 0
    packed: bool = True  # several examples in a row, or one in each, padded?
    dtype: str = "float32"  # of matrix products; with "bfloat16" the weights stay float32
    recompute: bool = False  # activation checkpointing

    def __post_init__(self):
        for name in ("steps", "batch_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be 1 or more, got {getattr(self, name)}")
        if self.dtype not in DTYPES:
            raise ValueError(f"dtype must be one of {', '.join(DTYPES)}, got {self.dtype!r}")
        if not 0.0 < self.learning_rate < math.inf:
            raise ValueError(f"learning_rate must be above 0, got {self.learning_rate}")


Progress = Callable[[list[dict[str, float]]], None]


def train(
    model: AnyModel, task: Task, settings: Settings, save: Progress, quiet: bool = False
) -> tuple[list[dict[str, float]], bool]:
    """Train the model in place.

    `save` is called with the history so far ten times in a run, after each evaluation. Returns
    the history, a row for each step, and whether the run was finished: Ctrl-C ends it after the
    step or the batch of an evaluation under way; of an evaluation that was cut short no result is
    kept.
    """
    device = next(model.parameters()).device
    optimizer = torch.optim.AdamW(
        parameter_groups(model, settings.weight_decay), betas=(0.9, 0.98), fused=True
    )
    for module in model.modules():
        if isinstance(module, Stack):
            module.recompute = settings.recompute
    history: list[dict[str, float]] = []
    losses: list[Tensor] = []  # of the last steps, not read yet
    results: dict[str, float] = {}
    saved = 0
    evaluate_every = math.ceil(settings.steps / 10)
    model.train()
    unsaved = lambda: len(history) - saved  # noqa: E731
    with interruptible(unsaved) as interrupted, _progress_bar(settings.steps, quiet) as bar:

        def watch(batches: Sequence) -> Iterator:
            for number, batch in enumerate(batches, 1):
                if interrupted():
                    raise Interrupted
                said = f"evaluating {number}/{len(batches)}"
                bar.set_description(said, refresh=sys.stderr.isatty())
                yield batch

        start = time.perf_counter()
        for step in range(settings.steps):
            for group in optimizer.param_groups:
                group["lr"] = settings.learning_rate * schedule(step, settings)
            batch = task.batch(settings.seed, step, settings.batch_size, settings.packed)
            losses.append(training_step(model, batch, optimizer, settings))
            history.append(
                {
                    "step": step + 1,
                    "loss": math.nan,
                    "learning_rate": optimizer.param_groups[0]["lr"],
                    "tokens_per_second": real_tokens(batch),
                }
            )
            evaluates = (step + 1) % evaluate_every == 0 or step + 1 == settings.steps
            stops = interrupted()
            if len(losses) == READ_EVERY.get(device.type, 10) or evaluates or stops:
                _read(losses, history[-len(losses) :], start)
                losses, start = [], time.perf_counter()
            if evaluates:
                model.eval()
                with suppress(Interrupted):
                    results = task.evaluate(model, quick=True, watch=watch)
                    history[-1].update(results)
                model.train()
                bar.set_description(refresh=False)
                save(history)
                saved, stops = len(history), interrupted()
                start = time.perf_counter()
            if not losses:
                shown = {"loss": f"{history[-1]['loss']:.4f}", **_rounded(results)}
                bar.set_postfix(shown, refresh=False)
            bar.update()
            if stops:
                break
    model.eval()
    return history, not stops


def training_step(
    model: AnyModel, batch: Batch | PairBatch, optimizer: torch.optim.Optimizer, settings: Settings
) -> Tensor:
    """Forward, backward and the optimizer's step -> the loss, a scalar that nobody has read.

    To read a number back is to wait for a GPU, so nothing here does: the batch is made on the CPU,
    and its labels are counted there.
    """
    device = next(model.parameters()).device
    inputs = {**batch.to(device), "labels": batch.labels}
    optimizer.zero_grad()
    with torch.autocast(device.type, torch.bfloat16, enabled=settings.dtype == "bfloat16"):
        loss = model.loss(**inputs)
    loss.backward()
    nn.utils.clip_grad_norm_(model.parameters(), settings.clip)
    optimizer.step()
    return loss.detach()


def _read(losses: list[Tensor], rows: list[dict[str, float]], start: float) -> None:
    """Put the losses of the last steps, and how fast these were, into their rows."""
    values = torch.stack(losses).tolist()
    seconds = time.perf_counter() - start
    speed = round(sum(row["tokens_per_second"] for row in rows) / seconds)
    for row, loss in zip(rows, values, strict=True):
        if not math.isfinite(loss):
            raise InputError(f"the loss is {loss:g} at step {row['step']}: lower --learning-rate")
        row.update(loss=loss, tokens_per_second=speed)


def schedule(step: int, settings: Settings) -> float:
    """The share of the learning rate at a step: up in a line, down in a cosine."""
    warm = min(1.0, (step + 1) / settings.warmup) if settings.warmup else 1.0
    return warm * (1 + math.cos(math.pi * step / settings.steps)) / 2


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict]:
    """Weight decay for the matrices only: it makes no sense for biases and gains."""
    matrices = [p for p in model.parameters() if p.ndim >= 2]
    vectors = [p for p in model.parameters() if p.ndim < 2]
    return [
        {"params": matrices, "weight_decay": weight_decay},
        {"params": vectors, "weight_decay": 0.0},
    ]


def real_tokens(batch: Batch | PairBatch) -> int:
    """How many tokens of the batch are not padding."""
    return sum(int((batch[name] != 0).sum()) for name in batch if name.endswith("mask"))


class Interrupted(Exception):
    """Ctrl-C was pressed in the middle of an evaluation."""


@contextmanager
def interruptible(unsaved: Callable[[], int]) -> Iterator[Callable[[], bool]]:
    """Turn the first Ctrl-C into a request that the loop asks for; the second one interrupts.

    The first is answered at once, with the number of `unsaved` steps that a second would cost.
    """
    requests: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return

    def request(signum, frame):
        requests.append(signum)
        signal.signal(signal.SIGINT, before)
        lost = unsaved()
        said = "stopping after this step"
        if lost:
            said += f"; once more to give up {lost:,} unsaved step{'s' * (lost > 1)}"
        with suppress(RuntimeError):  # it came while something else was printed there
            print(f"\n{said}", file=sys.stderr, flush=True)

    before = signal.signal(signal.SIGINT, request)
    try:
        yield lambda: bool(requests)
    finally:
        signal.signal(signal.SIGINT, before)


def _progress_bar(steps: int, quiet: bool) -> tqdm:
    often = 0.1 if sys.stderr.isatty() else 10.0  # seconds; a log file wants few lines
    return tqdm(total=steps, disable=quiet, mininterval=often, unit="step", dynamic_ncols=True)


def _rounded(results: dict[str, float]) -> dict[str, str]:
    return {name: f"{value:.4f}" for name, value in results.items()}
