"""The training loop: one page, whatever the task and on however many machines."""

import copy
import math
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn
from tqdm import tqdm

from minitransformer.data import Batch, PairBatch
from minitransformer.data.files import InputError
from minitransformer.inference.answering import AnyModel
from minitransformer.layers import Stack
from minitransformer.loss import IGNORE_INDEX
from minitransformer.training.muon import RATE, Muon
from minitransformer.training.processes import ALONE, Processes
from minitransformer.training.signals import asked_to_stop
from minitransformer.training.tasks import Task

DTYPES = ("float32", "bfloat16")
OPTIMIZERS = ("adamw", "muon")
READ_EVERY = {"cpu": 1}  # steps; other devices are asked for their losses, and waited for, rarely


@dataclass(frozen=True)
class Settings:
    """How to train: everything that is not the model."""

    steps: int = 1_000
    optimizer: str = "adamw"  # or "muon": see `muon.py`
    batch_size: int = 128  # examples in a step
    learning_rate: float = 4e-3  # the highest, reached after the warm-up
    warmup: int = 50  # steps in which the learning rate rises from 0; then it falls as a cosine
    weight_decay: float = 0.01
    clip: float = 1.0  # the longest gradient, in the Euclidean norm, that is taken as it is
    seed: int = 0
    packed: bool = True  # several examples in a row, or one in each, padded?
    accumulate: int = 1  # parts of a step's batch, one after the other: less memory, the same step
    dtype: str = "float32"  # of matrix products; with "bfloat16" the weights stay float32
    recompute: bool = False  # activation checkpointing
    evaluate_every: int | None = None  # steps; None: ten times in a run
    save_every: int | None = None  # steps; None: at each evaluation
    save_minutes: float = 10.0  # and at the latest so long after the last time

    def __post_init__(self):
        for name in ("steps", "batch_size", "accumulate", "evaluate_every", "save_every"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} must be 1 or more, got {value}")
        if self.optimizer not in OPTIMIZERS:
            names = ", ".join(OPTIMIZERS)
            raise ValueError(f"optimizer must be one of {names}, got {self.optimizer!r}")
        if self.dtype not in DTYPES:
            raise ValueError(f"dtype must be one of {', '.join(DTYPES)}, got {self.dtype!r}")
        for name in ("learning_rate", "save_minutes", "clip"):
            if not 0.0 < getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be above 0, got {getattr(self, name)}")
        for name in ("warmup", "weight_decay"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be 0 or more, got {getattr(self, name)}")


class NonFiniteLoss(InputError):
    """Of a step: its loss or gradient is NaN or infinite. The training stands before that step."""

    def __init__(self, message: str, batch: Batch | PairBatch):
        super().__init__(message)
        self.batch = batch


class Training:
    """A model on its way. With the data it is all that the next step depends on.

    The data of a step is a function of (seed, step), and the step is the length of the history, a
    row for each one made: there is no other position to keep.
    """

    def __init__(self, model: AnyModel, settings: Settings, processes: Processes = ALONE):
        self.model, self.settings, self.processes = model, settings, processes
        self.device = next(model.parameters()).device
        for module in model.modules():
            if isinstance(module, Stack):
                module.recompute = settings.recompute
        model.zero_grad()  # what is frozen now may have an old gradient, which clipping would count
        self.empty = _without_weights(model) if processes.sharded else None
        self.loss = processes.spread(LossModule(model))
        groups = parameter_groups(model, settings.weight_decay, settings.optimizer == "muon")
        optimizer = Muon if settings.optimizer == "muon" else torch.optim.AdamW
        self.optimizer = optimizer(groups, betas=(0.9, 0.98), fused=True)
        self.failed = torch.zeros((), device=self.device)  # 1 after a loss that was not finite
        self.history: list[dict[str, float]] = []

    def batch(self, task: Task, step: int) -> Batch | PairBatch:
        return task.batch(self.settings.seed, step, self.settings.batch_size, self.settings.packed)

    def step(self, batch: Batch | PairBatch) -> Tensor:
        """The next step of the history -> its loss and the length of its gradient.

        The loss is summed over the labels of all parts of the batch, here and in other processes,
        and divided by their number: where the batch is cut changes nothing but rounding. Without
        a label there is no step.

        Nobody has read the two numbers, (2,): to read one is to wait for a GPU, so nothing here
        does. After one that is not finite the optimizer changes nothing any more.
        """
        settings, processes = self.settings, self.processes
        step = len(self.history)
        rate = settings.learning_rate * schedule(step, settings)
        self.history.append({**dict.fromkeys(COLUMNS, math.nan), "step": step + 1})
        self.history[-1]["learning_rate"] = rate
        num_labels = int((batch.labels != IGNORE_INDEX).sum())  # the batch is made on the CPU
        if num_labels == 0:
            return torch.zeros(2, device=self.device)
        for group in self.optimizer.param_groups:
            group["lr"] = rate * (RATE if group.get("orthogonal") else 1)
        self.optimizer.zero_grad()
        shares = []
        for i in range(settings.accumulate):
            part = batch.part(
                i * processes.size + processes.rank, settings.accumulate * processes.size
            )
            inputs = {**part.to(self.device), "labels": part.labels}
            with processes.summing(self.loss, last=i == settings.accumulate - 1):
                with torch.autocast(
                    self.device.type, torch.bfloat16, enabled=settings.dtype == "bfloat16"
                ):
                    share = self.loss(inputs, num_labels)
                (share * processes.size).backward()  # of which the mean over processes is taken
            shares.append(share.detach())
        loss = processes.sum(torch.stack(shares).sum())
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), settings.clip)
        numbers = torch.stack([loss, processes.whole(norm)])
        self.failed = torch.maximum(self.failed, (~numbers.isfinite().all()).float())
        self.optimizer.found_inf = self.failed  # as torch.amp.GradScaler has it skip a step
        self.optimizer.step()
        return numbers

    def whole_model(self) -> AnyModel:
        """The model or, where each process holds a part of it, a copy that process 0 has whole."""
        weights = self.processes.gather_weights(self.model)
        if weights is None:
            return self.model
        whole = copy.deepcopy(self.empty)
        whole.load_state_dict(weights, assign=True)
        return whole.to(self.device).eval()


def _without_weights(model: AnyModel) -> AnyModel:
    """A copy of the model, whatever was put into it, that takes no memory: it is to be filled."""
    empty = {id(p): nn.Parameter(p.to("meta"), p.requires_grad) for p in model.parameters()}
    return copy.deepcopy(model, empty)


class LossModule(nn.Module):
    """The loss as a module's forward, where torch's engines for several processes hook in."""

    def __init__(self, model: AnyModel):
        super().__init__()
        self.model = model

    def forward(self, inputs: dict[str, Tensor], num_labels: int) -> Tensor:
        return self.model.loss(**inputs, num_labels=num_labels)


Save = Callable[[Training], None]
COLUMNS = ("step", "loss", "gradient_norm", "learning_rate", "tokens_per_second")  # of metrics.csv


class Unread(NamedTuple):
    """A step of which the loss was not looked at yet."""

    batch: Batch | PairBatch
    before: dict[str, Tensor]  # the random state
    numbers: Tensor


def train(
    training: Training, task: Task, save: Save = lambda training: None, quiet: bool = False
) -> int:
    """Train to the last step of the settings. Returns 0, or the signal that ended it early.

    `save` is called before the first step, after evaluations, as often as the settings say and at
    the end. Ctrl-C and SIGTERM end the training after the step or the batch of an evaluation under
    way; of an evaluation that was cut short no result is kept.
    Raises NonFiniteLoss, and the training then stands before the step where that came up.
    """
    settings, processes, history = training.settings, training.processes, training.history
    read_every = READ_EVERY.get(training.device.type, 10)
    evaluate_every = settings.evaluate_every or math.ceil(settings.steps / 10)
    results: dict[str, float] = {}
    unread: list[Unread] = []
    if not history:
        save(training)
    saved, saved_at = len(history), time.monotonic()
    stopped = 0
    training.failed.zero_()  # if it did, somebody has put it right
    training.model.train()
    with (
        asked_to_stop(lambda: len(history) - saved) as signaled,
        _progress_bar(settings.steps, len(history), quiet or processes.rank > 0) as bar,
    ):

        def watch(batches: Sequence) -> Iterator:
            for number, batch in enumerate(batches, 1):
                if signaled():
                    raise _Interrupted
                said = f"evaluating {number}/{len(batches)}"
                bar.set_description(said, refresh=sys.stderr.isatty())
                yield batch

        start = time.perf_counter()
        while len(history) < settings.steps and not stopped:
            step = len(history)
            batch = training.batch(task, step)
            before = random_state(training.device)
            unread.append(Unread(batch, before, training.step(batch)))
            evaluates = (step + 1) % evaluate_every == 0 or step + 1 == settings.steps
            late = time.monotonic() - saved_at >= 60 * settings.save_minutes
            stopped, late = processes.agree(signaled(), late)
            saves = late or stopped or step + 1 == settings.steps
            saves |= (step + 1) % settings.save_every == 0 if settings.save_every else evaluates
            if len(unread) == read_every or evaluates or saves:
                _read(unread, training, start)
                unread, start = [], time.perf_counter()
            if evaluates and not stopped:
                model = training.whole_model()
                if processes.rank == 0:
                    with suppress(_Interrupted):
                        results = task.evaluate(model.eval(), quick=True, watch=watch)
                        history[-1].update(results)
                bar.set_description(refresh=False)
                stopped, _ = processes.agree(signaled(), False)
            if saves or stopped:
                save(training)
                saved, saved_at = len(history), time.monotonic()
            if evaluates or saves:
                training.model.train()
                start = time.perf_counter()
            if not unread:
                shown = {"loss": f"{history[-1]['loss']:.4f}", **_rounded(results)}
                bar.set_postfix(shown, refresh=False)
            bar.update()
    training.model.eval()
    return stopped


class _Interrupted(Exception):
    """A signal came in the middle of an evaluation."""


def _read(unread: list[Unread], training: Training, start: float) -> None:
    """Put the losses of the last steps, and how fast these were, into their rows."""
    values = torch.stack([one.numbers for one in unread]).tolist()
    seconds = time.perf_counter() - start
    speed = round(sum(real_tokens(one.batch) for one in unread) / seconds)
    rows = training.history[-len(unread) :]
    for one, row, (loss, norm) in zip(unread, rows, values, strict=True):
        if not math.isfinite(loss + norm):
            del training.history[row["step"] - 1 :]
            set_random_state(one.before)
            what = (
                f"the loss is {loss:g}" if not math.isfinite(loss) else f"the gradient is {norm:g}"
            )
            raise NonFiniteLoss(f"{what} at step {row['step']}", one.batch)
        row.update(loss=loss, gradient_norm=norm, tokens_per_second=speed)


def schedule(step: int, settings: Settings) -> float:
    """The share of the learning rate at a step: up in a line, down in a cosine."""
    warm = min(1.0, (step + 1) / settings.warmup) if settings.warmup else 1.0
    return warm * (1 + math.cos(math.pi * step / settings.steps)) / 2


def parameter_groups(model: nn.Module, weight_decay: float, muon: bool = False) -> list[dict]:
    """What learns. Weight decay for the matrices only: it makes no sense for biases and gains.

    With `muon` the matrices of the layers are a group of their own, without embeddings and head.
    """
    learned = {name: p for name, p in model.named_parameters() if p.requires_grad}
    inner = {name: p for name, p in learned.items() if muon and "layers." in name and p.ndim == 2}
    matrices = [p for name, p in learned.items() if p.ndim >= 2 and name not in inner]
    vectors = [p for p in learned.values() if p.ndim < 2]
    groups = [
        {"params": matrices, "weight_decay": weight_decay},
        {"params": vectors, "weight_decay": 0.0},
    ]
    if muon:
        decay = weight_decay / RATE  # as fast as the others'
        groups.append({"params": [*inner.values()], "weight_decay": decay, "orthogonal": True})
    return groups


def random_state(device: torch.device) -> dict[str, Tensor]:
    """What dropout draws from next, on the CPU and on the device."""
    state = {"cpu": torch.get_rng_state()}
    if device.type != "cpu":
        state[device.type] = torch.get_device_module(device).get_rng_state()
    return state


def set_random_state(state: dict[str, Tensor]) -> None:
    for kind, value in state.items():
        if kind == "cpu":
            torch.set_rng_state(value)
        else:
            torch.get_device_module(kind).set_rng_state(value)


def real_tokens(batch: Batch | PairBatch) -> int:
    """How many tokens of the batch are not padding."""
    return sum(int((batch[name] != 0).sum()) for name in batch if name.endswith("mask"))


def _progress_bar(steps: int, made: int, quiet: bool) -> tqdm:
    often = 0.1 if sys.stderr.isatty() else 10.0  # seconds; a log file wants few lines
    return tqdm(
        total=steps, initial=made, disable=quiet, mininterval=often, unit="step", dynamic_ncols=True
    )


def _rounded(results: dict[str, float]) -> dict[str, str]:
    return {name: f"{value:.4f}" for name, value in results.items()}
