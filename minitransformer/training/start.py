"""What a training begins with: a new model, or one that is there, of which all or a part learns."""

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

import torch

from minitransformer.classifier import Classifier
from minitransformer.config import Config
from minitransformer.data.files import InputError
from minitransformer.data.source import DataOptions
from minitransformer.inference.answering import AnyModel
from minitransformer.models import DecoderOnly, EncoderOnly
from minitransformer.pretrained import fill_head
from minitransformer.pretrained.classes import with_head
from minitransformer.training.loop import Settings
from minitransformer.training.lora import add_lora, freeze
from minitransformer.training.run import Run
from minitransformer.training.tasks import TASKS, ClassifyTask, Task, make_task

# Of a fine-tuning, where nothing else is said: far from a learning rate that forgets what is known.
DEFAULTS = {"steps": 300, "batch_size": 16, "learning_rate": 5e-5}
LORA_RATE = 5e-4  # of matrices that begin at 0
LENGTH = 256  # tokens in an example
BODIES = (EncoderOnly, DecoderOnly)
CHANGEABLE = ("dropout", "attention", "window")  # fields of Config that weights do not depend on


@dataclass(frozen=True)
class Part:
    """Which part of a model learns."""

    freeze: int = 0  # layers, and the embeddings
    lora: int | None = None  # rank
    pooling: str | None = None  # of a new classifier

    def apply(self, model: AnyModel) -> None:
        """Raises ValueError for more layers than there are, and for an impossible rank."""
        body = model.body if isinstance(model, Classifier) else model
        if self.lora is not None:
            add_lora(body, self.lora)
        freeze(body, self.freeze)


def start(
    name: str,
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
    if where is not None:
        return _start_from(Run.load(where), name, data, given, where, part)
    task = make_task(name, data, given.get("max_length"))
    chosen = {**task.defaults, **given, "vocab_size": len(task.vocabulary)}
    config, settings = Config(**_only(Config, chosen)), Settings(**_only(Settings, chosen))
    torch.manual_seed(settings.seed)
    if isinstance(task, ClassifyTask):
        model: AnyModel = with_head(EncoderOnly(config), task.labels, part.pooling)
    else:
        model = task.model_class(config)
    part.apply(model)
    return task, model, settings


def _start_from(
    run: Run, name: str, data: DataOptions, given: Mapping[str, Any], where: str, part: Part
) -> tuple[Task, AnyModel, Settings]:
    """The same from a model that is there, with its vocabulary."""
    model = run.model
    _check(model, name, data, given, where)
    config = model.config
    length = min(given.get("max_length", LENGTH), config.max_length)
    labels = model.names if isinstance(model, Classifier) else None
    task = make_task(name, data, length, run.vocabulary, config.bos_id, labels)
    rate = {"learning_rate": LORA_RATE} if part.lora is not None else {}
    settings = Settings(**_only(Settings, {**DEFAULTS, **rate, **given}))
    torch.manual_seed(settings.seed)
    model = _with_numbers(model, {name: given[name] for name in CHANGEABLE if name in given})
    if isinstance(task, ClassifyTask) and not isinstance(model, Classifier):
        model = with_head(model, task.labels, part.pooling)
        new = [name for name, _ in model.named_parameters() if name.startswith("head.")]
        new = fill_head(model, where) if run.task == "pretrained" else new
        task.notes.append(f"new, with random weights: {', '.join(new)}")
    part.apply(model)
    learns = sum(p.numel() for p in model.parameters() if p.requires_grad)
    if part.lora is not None or part.freeze:
        every = sum(p.numel() for p in model.parameters())
        task.notes.append(f"{learns:,} of {every:,} parameters learn")
    return task, model, settings


def _check(
    model: AnyModel, name: str, data: DataOptions, given: Mapping[str, Any], where: str
) -> None:
    """Refuse a model that is not for this task, and what it brings along itself."""
    wanted = TASKS[name].model_class
    if not isinstance(model, (*BODIES, Classifier) if name == "classify" else wanted):
        fits = [task for task in TASKS if isinstance(model, TASKS[task].model_class)]
        hint = f", for --task {' or '.join(fits)}" if fits else ""
        raise InputError(
            f"--task {name}: needs an {wanted.__name__}, but {where} holds a "
            f"{type(model).__name__}{hint}"
        )
    own = [n for n in vars(model.config) if n in given and n not in (*CHANGEABLE, "max_length")]
    own += ["tokenizer"] if data.tokenizer != DataOptions.tokenizer else []
    if own:
        raise InputError(f"--{own[0].replace('_', '-')}: the model in {where} brings its own")


def _with_numbers(model: AnyModel, changes: Mapping[str, Any]) -> AnyModel:
    """The same weights in a model of another dropout, attention or window."""
    if isinstance(model, Classifier):
        if changes:
            raise ValueError(f"{min(changes)} of a classifier is what it was")
        return model
    with torch.device("meta"):
        other = type(model)(replace(model.config, **changes))
    other.load_state_dict(model.state_dict(), assign=True)
    return other.requires_grad_(True)


def _only(cls: type, values: Mapping[str, Any]) -> dict[str, Any]:
    names = {field.name for field in fields(cls)}
    return {name: value for name, value in values.items() if name in names}
