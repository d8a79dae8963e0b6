"""`minitransformer evaluate`: how well a model does on examples, in numbers, and where it fails."""

import argparse
import json
import sys
from dataclasses import fields

from tqdm import tqdm

from minitransformer.cli.data import add_data_options
from minitransformer.cli.options import add_device, find_device, positive
from minitransformer.data.files import InputError
from minitransformer.training.run import Run
from minitransformer.training.tasks import TASKS, DataOptions, Task, make_task, task_of


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(verb=_evaluate)
    parser.add_argument(
        "run", metavar="RUN", help="a folder that `train` left, or a Hugging Face model's"
    )
    add_data_options(parser)
    parser.add_argument(
        "--task", choices=TASKS, help="default: what the run was trained for, or the model is for"
    )
    parser.add_argument(
        "--examples", type=positive, metavar="N", help="look at so many (default: all)"
    )
    parser.add_argument("--json", action="store_true", help="print the numbers as JSON")
    add_device(parser)


def _evaluate(options: argparse.Namespace) -> int:
    device = find_device(options.device)
    run = Run.load(options.run)
    task = _task(options, run)
    if options.examples:
        task.held_out = task.held_out[: options.examples]
    task.reported = len(task.held_out)
    evaluation = task.examine(run.model.to(device), _progress)
    if options.json:
        print(json.dumps(evaluation.results, indent=2))
        return 0
    print(*task.notes, sep="\n", end="\n" if task.notes else "")
    for name, value in evaluation.results.items():
        shown = f"{value:,}" if isinstance(value, int) else f"{value:,.4f}"
        print(f"{name.replace('_', ' '):<24} {shown:>14}")
    if evaluation.worst:
        print("\nthe worst:")
        print(*evaluation.worst, sep="\n")
    return 0


def _task(options: argparse.Namespace, run: Run) -> Task:
    """What the model is asked, on the user's examples or on those that its training held out."""
    name = options.task or task_of(run.model, run.task)
    if not isinstance(run.model, TASKS[name].model_class):
        wanted, found = TASKS[name].model_class.__name__, type(run.model).__name__
        raise InputError(f"--task {name}: needs {wanted}, but {options.run} holds {found}")
    length = run.model.config.max_length
    if options.data:
        name = "pairs" if name == "dates" else name
        skip = bool(options.skip_long)
        data = DataOptions(held_out=options.data, columns=options.columns, skip_long=skip)
    else:
        data = _data_of(run, options)
        length = run.settings.get("max_length", length)
    return make_task(name, data, length, run.vocabulary, run.model)


def _data_of(run: Run, options: argparse.Namespace) -> DataOptions:
    """What the run was trained on."""
    known = {field.name for field in fields(DataOptions)} & run.settings.keys()
    if options.columns or options.skip_long:
        raise InputError("--columns and --skip-long are for --data")
    if not known:
        raise InputError(f"--data: say on which examples {options.run} is to be evaluated")
    return DataOptions(**{name: run.settings[name] for name in known})


def _progress(batches: list) -> tqdm:
    return tqdm(batches, "evaluating", unit="batch", leave=False, disable=None, file=sys.stderr)
