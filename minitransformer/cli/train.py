"""`minitransformer train`: from a task and options to a folder with a model, and on from there."""

import argparse
import os
import re
import signal
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from minitransformer.classifier import POOLINGS
from minitransformer.cli.data import (
    add_data_options,
    add_tokenizer_options,
    as_settings,
    inspection,
)
from minitransformer.cli.options import LARGEST, add_device, find_device, integer, positive, seed
from minitransformer.config import ATTENTIONS, STYLES, Config
from minitransformer.data.files import InputError, printable
from minitransformer.data.manifest import MANIFEST
from minitransformer.inference.answering import AnyModel
from minitransformer.inference.explain import explain_attention
from minitransformer.training.checkpoint import (
    checkpoints,
    locked,
    make_folder,
    read_checkpoint,
    run_of,
)
from minitransformer.training.loop import (
    DTYPES,
    OPTIMIZERS,
    NonFiniteLoss,
    Settings,
    Training,
    train,
)
from minitransformer.training.pictures import attention_pictures, loss_picture, save_pictures
from minitransformer.training.processes import Processes, start_processes
from minitransformer.training.run import Run
from minitransformer.training.saver import Saver, restore
from minitransformer.training.start import Part, start
from minitransformer.training.tasks import (
    TASKS,
    DataOptions,
    PairsTask,
    Task,
    largest_padding_weight,
    looked_at,
    make_task,
)

CONFIG_HELP = {
    "d_model": "width of every hidden state",
    "num_layers": "layers of the encoder, of the decoder, or of each",
    "num_heads": "attention heads",
    "num_kv_heads": "key/value heads, fewer than heads for grouped queries",
    "d_ff": "width inside the feed-forward; usually 4 times d-model",
    "max_length": "the most tokens in one example",
    "window": "sliding window: keys that a decoder's query sees, its own included (default: all)",
    "dropout": "share of activations dropped in training",
}
SETTINGS_HELP = {
    "steps": "training steps",
    "batch_size": "examples in one step",
    "accumulate": "cut each step's batch into N parts, one after the other: less memory, "
    "the same step up to rounding",
    "evaluate_every": "steps between two looks at held-out examples (default: ten times in a run)",
    "learning_rate": "the highest learning rate",
    "seed": "for weights, examples and their order",
}


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(verb=_train)
    parser.add_argument(
        "--task",
        choices=TASKS,
        help="dates: read dates (default). pairs: turn one text into another. "
        "lm: continue prose. mlm: find hidden tokens. classify: give each text a label",
    )
    add_data_options(parser)
    add_tokenizer_options(parser)
    parser.add_argument(
        "--inspect",
        action="store_true",
        help="print what was understood of the data, and stop: examples, their lengths, the first "
        "batch with its mask",
    )
    parser.add_argument("--out", metavar="DIR", help="where to save (default: runs/TASK)")
    parser.add_argument(
        "--from",
        dest="from",
        metavar="FOLDER",
        help="fine-tune a model: a folder of the transformers library with its tokenizer.json, or "
        "a run",
    )
    parser.add_argument(
        "--freeze",
        type=integer(0, LARGEST),
        metavar="N",
        help="the embeddings and the first N layers do not learn",
    )
    parser.add_argument(
        "--lora",
        type=positive,
        metavar="RANK",
        help="only low-rank additions to queries and values learn (LoRA), merged in the end",
    )
    parser.add_argument(
        "--pooling",
        choices=POOLINGS,
        help="what a classifier reads of the last hidden states: that of the first token, of the "
        "last, or the mean of the real ones (default: first, of a decoder last)",
    )
    parser.add_argument(
        "--resume",
        metavar="RUN",
        help="go on with a training from its last checkpoint, bit for bit, or from another one "
        "(RUN/checkpoints/000300); --steps may be more than before",
    )
    parser.add_argument(
        "--save-every",
        dest="interval",
        type=_interval,
        default={},
        metavar="N",
        help="write a checkpoint after N steps, or N minutes if N ends in m, as in 5m "
        "(default: at each evaluation, and 10m)",
    )
    parser.add_argument(
        "--keep",
        type=positive,
        default=2,
        metavar="N",
        help="checkpoints to keep, beside the one with the best result (default: 2)",
    )
    parser.add_argument(
        "--shard",
        action="store_true",
        help="under torchrun: a part of the weights in each process (FSDP), not all in all (DDP)",
    )
    parser.add_argument(
        "--threads",
        type=int,
        choices=range(1, 257),
        metavar="N",
        help="CPU threads (default: 1)",
    )
    add_device(parser)
    parser.add_argument(
        "--no-pack",
        dest="packed",
        action="store_const",
        const=False,
        help="one example in each row, padded, instead of several packed into one",
    )
    parser.add_argument(
        "--dtype",
        choices=DTYPES,
        help="of matrix products (default: float32); bfloat16 is faster where the processor has it",
    )
    parser.add_argument(
        "--recompute",
        action="store_const",
        const=True,
        help="activation checkpointing: recompute each layer in the backward pass: "
        "less memory, a third more time",
    )
    parser.add_argument(
        "--attention",
        choices=ATTENTIONS,
        help="how it is computed: the same up to rounding, reference is the plain formula "
        "(default: auto, the fastest)",
    )
    parser.add_argument(
        "--explain",
        action="store_true",
        help="say how attention is computed for the first batch, and why, and nothing more",
    )
    parser.add_argument(
        "--optimizer",
        choices=OPTIMIZERS,
        help="adamw, or muon, which needs fewer steps: it makes the steps of the layers' matrices "
        "orthogonal (default: muon for dates, else adamw)",
    )
    parser.add_argument("--style", choices=STYLES, help="the parts the model is built from")
    for cls, words in (Config, CONFIG_HELP), (Settings, SETTINGS_HELP):
        for field in fields(cls):
            if field.name in words:
                number = field.type is float
                kind = float if number else seed if field.name == "seed" else positive
                option, metavar = "--" + field.name.replace("_", "-"), "X" if number else "N"
                parser.add_argument(option, type=kind, metavar=metavar, help=words[field.name])


def _train(options: argparse.Namespace) -> int:
    with start_processes(find_device(options.device), options.shard) as processes:
        _go_on_after_a_restart(options)
        begin = _begin if options.resume is None else _resume
        return begin(options, processes)


def _begin(options: argparse.Namespace, processes: Processes) -> int:
    """A new training, in a folder of its own."""
    threads = options.threads or 1
    torch.set_num_threads(threads)
    given = _given(options)
    data, part = DataOptions(**_only(DataOptions, given)), Part(**_only(Part, given))
    with _named_as_options():
        task, model, settings = start(options.task, data, given, given.get("from"), part)
    _tell(task, processes)
    if options.inspect:
        print(*inspection(task, settings), sep="\n")
        return 0
    if options.explain:
        return _explain(model, task, settings, options)
    about = as_settings(data) | {"sha256": task.fingerprint, "threads": threads}
    about |= {"from": given.get("from"), "max_length": task.max_length, **asdict(part)}
    run = Run(task.name, model, task.vocabulary, asdict(settings) | about)
    folder = make_folder(options.out, task.name) if processes.rank == 0 else None
    return _go_on(run, task, settings, processes.from_first(folder), {}, options, processes)


def _explain(model: AnyModel, task: Task, settings: Settings, options: argparse.Namespace) -> int:
    first = task.batch(settings.seed, 0, settings.batch_size, settings.packed)
    print(explain_attention(model.to(find_device(options.device)), first))
    return 0


def _resume(options: argparse.Namespace, processes: Processes) -> int:
    """Where a training ended, or at a checkpoint of it."""
    given = Path(options.resume)
    folder = run_of(given)
    if options.out is not None:
        raise InputError(f"--out: a training that is gone on with stays where it is, in {folder}")
    found = processes.from_first(read_checkpoint(given) if processes.rank == 0 else None)
    run = Run.from_files(found, given)
    if lacking := {"data", "sha256", "threads"} - run.settings.keys():
        raise InputError(f"{given}: was not left by `train`: its config says no {min(lacking)}")
    _check_same(options, run, folder)
    threads = options.threads or run.settings["threads"]
    torch.set_num_threads(threads)
    with _named_as_options():
        settings = Settings(**_only(Settings, run.settings | _given(options)))
    data = DataOptions(**_only(DataOptions, run.settings | _given(options)))
    length = run.settings.get("max_length", run.model.config.max_length)
    task = make_task(run.task, data, length, run.vocabulary, run.model)
    Part(freeze=run.settings.get("freeze", 0)).apply(run.model)
    if task.fingerprint != run.settings["sha256"]:
        name = ", ".join(data.data) or f"--task {run.task}"
        raise InputError(f"{name}: is not the data that {folder} was trained on so far")
    if options.inspect:
        print(*inspection(task, settings), sep="\n")
        return 0
    if options.explain:
        return _explain(run.model, task, settings, options)
    _check_steps(len(run.history), settings.steps, folder)
    run.settings |= asdict(settings) | {"threads": threads}
    return _go_on(run, task, settings, folder, found, options, processes)


CHANGEABLE = ("steps", "evaluate_every", "save_every", "save_minutes", "threads")
SEEN = ("data", "held_out")  # of which the sha256 is compared, wherever they lie now


def _check_steps(made: int, steps: int, folder: Path) -> None:
    if steps < made or (steps == made and (folder / MANIFEST).exists()):
        raise InputError(f"--steps: {folder} has made {made:,} steps; say how many it shall have")


def _check_same(options: argparse.Namespace, run: Run, folder: Path) -> None:
    """Refuse options that would make another training of it; the data has its sha256."""
    known = asdict(run.model.config) | run.settings | {"task": run.task}
    for name, value in _given(options).items():
        if name in known and name not in (*CHANGEABLE, *SEEN) and known[name] != value:
            may = ", ".join(map(_option, CHANGEABLE[:3]))
            raise InputError(
                f"{_option(name)} is {known[name]} in {folder}, not {value}: "
                f"only {may}, --threads and --device may differ when a training goes on"
            )


def _tell(task: Task, processes: Processes) -> None:
    """What there is to say about the data, once."""
    if processes.rank == 0 and task.notes:
        print(*task.notes, sep="\n", flush=True)


def _go_on_after_a_restart(options: argparse.Namespace) -> None:
    """torchrun starts the same command again when a process was lost: resume, then."""
    if int(os.environ.get("TORCHELASTIC_MAX_RESTARTS", 0)) == 0 or options.resume is not None:
        return
    if options.out is None:
        raise InputError("--max-restarts needs --out DIR, where a restart finds what there is")
    if int(os.environ.get("TORCHELASTIC_RESTART_COUNT", 0)) and checkpoints(Path(options.out)):
        options.resume, options.out = options.out, None


def _go_on(
    run: Run,
    task: Task,
    settings: Settings,
    folder: Path,
    files: Mapping[str, bytes],
    options: argparse.Namespace,
    processes: Processes,
) -> int:
    """Train from the step where the run stands, and leave its folder complete."""
    first = processes.rank == 0
    device = find_device(options.device)
    with ExitStack() as stack:
        if first:
            stack.enter_context(locked(folder))
        with _named_as_options():
            training = Training(run.model.to(device), settings, processes)
        training.history = run.history
        if files:
            restore(training, files)
        elif processes.rank:  # the weights are the same in all processes, dropout is not
            torch.manual_seed(settings.seed * 1_000_003 + processes.rank)
        saver = Saver(run, folder, options.keep)
        if first:
            _introduce(run, settings, processes)
        try:
            stopped = train(training, task, saver)
        except NonFiniteLoss as error:
            saver.keep_for_inspection(training, error)
        if not first:
            return _status(stopped)
        saver.finish()
        return _finish(run, task, settings, folder, stopped)


def _introduce(run: Run, settings: Settings, processes: Processes) -> None:
    config, made = run.model.config, len(run.history)
    size = sum(parameter.numel() for parameter in run.model.parameters())
    style = f"{config.style} style, " if isinstance(config.style, str) else ""
    print(
        f"{run.task}: {type(run.model).__name__}, {style}{size:,} parameters, "
        f"{config.vocab_size:,} tokens; {settings.steps:,} steps of {settings.batch_size} examples"
        + (f", from step {made:,} on" if made else "")
        + (f", in {processes.size} processes" if processes.size > 1 else ""),
        flush=True,
    )


def _finish(run: Run, task: Task, settings: Settings, folder: Path, stopped: int) -> int:
    """Say what was reached and draw it; with a machine that is wanted back, only where it lies."""
    if stopped:
        print(f"\ninterrupted after step {len(run.history):,} of {settings.steps:,}")
    print(f"saved in {folder}", flush=True)
    if stopped:
        print(f"to go on: minitransformer train --resume {folder}", flush=True)
    if stopped not in (0, signal.SIGINT):
        return _status(stopped)
    if not stopped:
        _report(run, task)
    try:
        save_pictures([("loss.png", loss_picture(run))], folder)
        texts = ragged_texts(task)
        save_pictures(attention_pictures(run, texts, draw=[len(texts) // 2]), folder)
    except ImportError as error:
        print(f"no pictures: {printable(str(error))}", file=sys.stderr)
    names = sorted(path.name for path in folder.iterdir() if not path.name.startswith("."))
    print(f"\n{folder} holds {', '.join(names)}")
    return _status(stopped)


def _status(stopped: int) -> int:
    """Of a process that a signal ended, or 0."""
    return 128 + stopped if stopped else 0


def _report(run: Run, task: Task) -> None:
    print()
    for line in task.report(run.model, _progress):
        print(line)
    weight, count = largest_padding_weight(run.model, _progress(task.held_out_batches()))
    if count == 0:
        print("\nno held-out example needed padding: there are no weights on it to look at")
        return
    print(
        "\nlargest attention weight on any padded position, "
        f"over all layers, heads and {_held_out(task)}: {weight}"
        f"\n({count:,} weights on padded positions were looked at)"
    )


def _held_out(task: Task) -> str:
    return looked_at(task) if len(task.held_out) > task.reported else "held-out examples"


def _progress(batches: Sequence) -> tqdm:
    """A bar on a terminal, nothing in a log file."""
    return tqdm(batches, "evaluating", unit="batch", leave=False, disable=None)


def ragged_texts(task: Task) -> list[str]:
    """A few held-out texts of different lengths, the shortest first."""
    if isinstance(task, PairsTask):
        return sorted(dict.fromkeys(pair.source for pair in task.held_out[:9]), key=len)
    texts = [example.text for example in task.held_out[:9]]
    starts = [text.strip()[: 20 + 2 * i] for i, text in enumerate(texts)]
    return sorted(starts, key=len)


def _interval(text: str) -> dict[str, float]:
    """As Settings have it: steps, or minutes."""
    if not text.endswith("m"):
        return {"save_every": positive(text)}
    minutes = positive(text.removesuffix("m"))
    return {"save_minutes": float(minutes)}


def _given(options: argparse.Namespace) -> dict[str, Any]:
    """What was typed, as a run's config.json keeps it: with paths that hold in another folder."""
    named = {**vars(options), **options.interval}
    given = {name: value for name, value in named.items() if value is not None}
    for name in given.keys() & {"data", "held_out"}:
        given[name] = [os.path.abspath(path) for path in given[name]]
    if given.get("tokenizer", "bpe") not in ("characters", "bpe", "wordpiece"):
        given["tokenizer"] = os.path.abspath(given["tokenizer"])
    if "from" in given:
        given["from"] = os.path.abspath(given["from"])
    return given


def _option(name: str) -> str:
    return "--" + name.replace("_", "-")


@contextmanager
def _named_as_options() -> Iterator[None]:
    """Numbers that cannot be, or that no memory has room for, under the names that users write."""
    try:
        yield
    except (ValueError, RuntimeError) as error:
        names = "|".join([*CONFIG_HELP, *SETTINGS_HELP])
        said = " ".join(str(error).split())
        said = re.sub(rf"\b({names})\b", lambda name: _option(name[0]), said)
        raise InputError(said) from None


def _only(cls: type, values: dict[str, Any]) -> dict[str, Any]:
    names = {field.name for field in fields(cls)}
    return {name: value for name, value in values.items() if name in names}
