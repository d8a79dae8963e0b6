"""What a training begins with: a new model, or one that is there, of which all or a part learns."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor

from minitransformer.classifier import Classifier
from minitransformer.config import Config
from minitransformer.data.files import InputError
from minitransformer.data.source import DataOptions
from minitransformer.inference.answering import AnyModel
from minitransformer.models import EncoderOnly
from minitransformer.pretrained import fill_head
from minitransformer.pretrained.classes import with_head
from minitransformer.training.loop import Settings
from minitransformer.training.lora import add_lora, freeze, merge_lora
from minitransformer.training.run import Run, build
from minitransformer.training.tasks import (
    TASKS,
    ClassifyTask,
    Task,
    is_for,
    make_task,
    task_of,
)

# Of a fine-tuning, where nothing else is said: far from a learning rate that forgets what is known.
DEFAULTS = {"steps": 300, "batch_size": 16, "learning_rate": 5e-5}
LORA_RATE = 5e-4  # of matrices that begin at 0
LENGTH = 256  # tokens in an example
CHANGEABLE = ("dropout", "attention", "window")  # fields of Config that weights do not depend on


@dataclass(frozen=True)
class Part:
    """Which part of a model learns."""

    freeze: int = 0  # layers, and the embeddings
    lora: int | None = None  # rank
    pooling: str | None = None  # of a new classifier

    def apply(self, model: AnyModel) -> None:
        """Raises InputError for more layers or ranks than there are, or if nothing learns."""
        body = model.body if isinstance(model, Classifier) else model
        if self.lora is not None:
            if self.lora > body.config.d_model:
                raise InputError(f"--lora: the rank must be at most {body.config.d_model}, a width")
            add_lora(body, self.lora)
        try:
            freeze(body, self.freeze)
        except ValueError as error:
            raise InputError(f"--freeze: {error}") from None
        if not _learning(model):
            raise InputError(f"--freeze: with the first {self.freeze} layers nothing learns")


def start(
    name: str | None,
    data: DataOptions,
    given: Mapping[str, Any],
    where: str | None = None,
    part: Part = Part(),
) -> tuple[Task, AnyModel, Settings]:
    """A task, the model that learns it, and how: by the numbers that are given.

    `where` is a run, or a folder of the transformers library, to begin with; else the model is new.
    Raises InputError for data, a folder or a task that do not go together, ValueError for numbers
    that cannot be.
    """
    if data.held_out and not data.data:
        raise InputError("--held-out: needs --data, the examples to train on")
    if where is not None:
        return _start_from(Run.load(where), name, data, given, where, part)
    for option in ("freeze", "lora"):
        if getattr(part, option):
            raise InputError(f"--{option}: needs --from, a model that has learned something")
    task = make_task(name or "dates", data, given.get("max_length"))
    _check_pooling(part, task)
    chosen = {**task.defaults, **given, "vocab_size": len(task.vocabulary)}
    config, settings = Config(**_only(Config, chosen)), Settings(**_only(Settings, chosen))
    torch.manual_seed(settings.seed)
    if isinstance(task, ClassifyTask):
        return task, with_head(EncoderOnly(config), task.labels, part.pooling), settings
    return task, task.model_class(config), settings


def _start_from(
    run: Run,
    name: str | None,
    data: DataOptions,
    given: Mapping[str, Any],
    where: str,
    part: Part,
) -> tuple[Task, AnyModel, Settings]:
    """The same from a model that is there, with its vocabulary."""
    model, name = run.model, name or task_of(run.model, run.task)
    merge_lora(model)  # of a checkpoint
    _check_is_for(model, name, where)
    _check_own(model, data, given, where, part)
    length = min(given.get("max_length", LENGTH), model.config.max_length)
    task = make_task(name, data, length, run.vocabulary, model)
    _check_pooling(part, task)
    rate = {"learning_rate": LORA_RATE} if part.lora is not None else {}
    settings = Settings(**_only(Settings, {**DEFAULTS, **rate, **given}))
    torch.manual_seed(settings.seed)
    model = _with_numbers(model, {key: given[key] for key in given.keys() & CHANGEABLE})
    if isinstance(task, ClassifyTask) and not isinstance(model, Classifier):
        model = with_head(model, task.labels, part.pooling)
        new = [name for name, _ in model.named_parameters() if name.startswith("head.")]
        new = fill_head(model, where) if run.task == "pretrained" else new
        task.notes.append(f"new, with random weights: {', '.join(new)}")
    part.apply(model)
    learns, every = _count(_learning(model)), _count(model.parameters())
    if learns < every:
        task.notes.append(f"{learns:,} of {every:,} parameters learn")
    return task, model, settings


def _learning(model: AnyModel) -> list[Tensor]:
    return [p for p in model.parameters() if p.requires_grad]


def _count(parameters: Iterable[Tensor]) -> int:
    return sum(p.numel() for p in parameters)


def _check_is_for(model: AnyModel, name: str, where: str) -> None:
    if not is_for(model, name):
        fitting = [task for task in TASKS if is_for(model, task)]
        hint = f", for --task {' or '.join(fitting)}" if fitting else ""
        raise InputError(
            f"--task {name}: needs {TASKS[name].model_class.__name__}, but {where} holds "
            f"{type(model).__name__}{hint}"
        )


def _check_own(
    model: AnyModel, data: DataOptions, given: Mapping[str, Any], where: str, part: Part
) -> None:
    """Refuse what the model brings along itself."""
    own = given.keys() & vars(model.config).keys() - {*CHANGEABLE, "max_length"}
    if data.tokenizer != DataOptions.tokenizer:
        own |= {"tokenizer"}
    if part.pooling and isinstance(model, Classifier):
        own |= {"pooling"}
    if own:
        raise InputError(f"--{min(own).replace('_', '-')}: the model in {where} brings its own")
    if given.get("max_length", 0) > model.config.max_length:
        raise InputError(
            f"--max-length: the model in {where} has {model.config.max_length} at most"
        )


def _check_pooling(part: Part, task: Task) -> None:
    if part.pooling and not isinstance(task, ClassifyTask):
        raise InputError("--pooling: is for --task classify")


def _with_numbers(model: AnyModel, changes: Mapping[str, Any]) -> AnyModel:
    """The same weights in a model of another dropout, attention or window."""
    about = {"model": type(model).__name__}
    if isinstance(model, Classifier):
        about["classifier"] = model.describe()
    with torch.device("meta"):
        other = build(about, replace(model.config, **changes))
    other.load_state_dict(model.state_dict(), assign=True)
    return other.requires_grad_(True)


def _only(cls: type, values: Mapping[str, Any]) -> dict[str, Any]:
    names = {field.name for field in fields(cls)}
    return {name: value for name, value in values.items() if name in names}
