"""What can be trained: dates, pairs, language models, classifiers, each with its own data."""

from collections.abc import Sequence

from minitransformer.data.files import InputError
from minitransformer.data.source import DataOptions
from minitransformer.data.tokenization import AnyVocabulary
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
    "largest_padding_weight",
    "looked_at",
    "make_task",
]


def make_task(
    name: str,
    options: DataOptions | None = None,
    max_length: int | None = None,
    vocabulary: AnyVocabulary | None = None,
    bos_id: int | None = None,
    labels: Sequence[str] | None = None,
) -> Task:
    """The task of this name; a model that is there brings its vocabulary, `bos_id` and labels.

    Raises InputError for data that cannot be used.
    """
    options = options or DataOptions()
    if name == "dates":
        if options.data:
            raise InputError("--data: the dates are made; to train on a file add --task pairs")
        return DatesTask(max_length or 64)
    if name == "pairs" and not (options.data or options.held_out):
        raise InputError("--task pairs needs --data FILE.tsv with lines of source TAB target")
    if name == "classify":
        if not (options.data or options.held_out):
            raise InputError("--task classify needs --data FILE with lines of label TAB text")
        return ClassifyTask(options, max_length or 256, vocabulary, bos_id, labels)
    return TASKS[name](options, max_length or 256, vocabulary, bos_id)
