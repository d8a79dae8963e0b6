"""What can be trained: dates, pairs, language models, classifiers, each with its own data."""

from minitransformer.classifier import Classifier
from minitransformer.data.files import InputError
from minitransformer.data.source import DataOptions
from minitransformer.data.tokenization import AnyVocabulary
from minitransformer.inference.answering import AnyModel
from minitransformer.models import DecoderOnly, EncoderOnly
from minitransformer.training.tasks.classify import ClassifyTask
from minitransformer.training.tasks.language import LanguageModelTask, MaskedLanguageModelTask
from minitransformer.training.tasks.pairs import DatesTask, PairsTask
from minitransformer.training.tasks.task import (
    Task,
    largest_padding_weight,
    looked_at,
)

TASKS = {
    task.name: task
    for task in (DatesTask, PairsTask, LanguageModelTask, MaskedLanguageModelTask, ClassifyTask)
}

__all__ = [
    "TASKS",
    "ClassifyTask",
    "DataOptions",
    "DatesTask",
    "LanguageModelTask",
    "MaskedLanguageModelTask",
    "PairsTask",
    "Task",
    "is_for",
    "largest_padding_weight",
    "looked_at",
    "make_task",
    "task_of",
]

DEFAULTS = vars(DataOptions())


NEEDS = {"pairs": "source TAB target", "classify": "label TAB text"}  # in the lines of --data


def make_task(
    name: str,
    options: DataOptions | None = None,
    max_length: int | None = None,
    vocabulary: AnyVocabulary | None = None,
    model: AnyModel | None = None,
) -> Task:
    """The task of this name; for a model that is there give it with its vocabulary.

    Raises InputError for data that cannot be used.
    """
    options = options or DataOptions()
    if name == "dates":
        _check_no_data(options)
        return DatesTask(max_length or 64, vocabulary)
    if name in NEEDS and not (options.data or options.held_out):
        raise InputError(f"--task {name} needs --data FILE with lines of {NEEDS[name]}")
    return TASKS[name](options, max_length or 256, vocabulary, model)


def _check_no_data(options: DataOptions) -> None:
    for name, value in vars(options).items():
        if value != DEFAULTS[name]:
            option = "--" + name.replace("_", "-")
            raise InputError(f"{option}: the dates are made; to train on a file add --task pairs")


def is_for(model: AnyModel, name: str) -> bool:
    """Can the model be trained for the task of this name? Of most a classifier can be made."""
    kinds = (EncoderOnly, DecoderOnly, Classifier) if name == "classify" else ()
    return isinstance(model, kinds or TASKS[name].model_class)


def task_of(model: AnyModel, trained_for: str) -> str:
    """The name of the task that it was trained for, if it is one, or that it is for."""
    if trained_for in TASKS:
        return trained_for
    return next(name for name in reversed(TASKS) if isinstance(model, TASKS[name].model_class))
