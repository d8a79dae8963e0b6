"""`minitransformer train`: from a task and options to a folder with a model."""

import argparse
import re
import sys
from collections.abc import Sequence
from dataclasses import asdict, fields
from typing import Any

import torch
from tqdm import tqdm

from minitransformer.cli.options import add_device, find_device, positive, seed
from minitransformer.config import ATTENTIONS, STYLES, Config
from minitransformer.data.files import InputError
from minitransformer.training.loop import DTYPES, Settings, train
from minitransformer.training.pictures import attention_pictures, loss_picture, save_pictures
from minitransformer.training.run import Run, create_folder, new_folder
from minitransformer.training.tasks import (
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
    "max_length": "the most characters in one example",
    "window": "sliding window: keys that a decoder's query sees, its own included (default: all)",
    "dropout": "share of activations dropped in training",
}
SETTINGS_HELP = {
    "steps": "training steps",
    "batch_size": "examples in one step",
    "learning_rate": "the highest learning rate",
    "seed": "for weights, examples and their order",
}


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(verb=_train)
    parser.add_argument(
        "--task",
        choices=["dates", "pairs", "lm", "mlm"],
        default="dates",
        help="dates: read dates (default). pairs: turn one text into another. "
        "lm: continue prose. mlm: find hidden characters",
    )
    parser.add_argument(
        "--data",
        metavar="FILE",
        help="UTF-8 text. pairs: lines of source TAB target. lm, mlm: prose in paragraphs "
        "(default: the language reference that comes with Python)",
    )
    parser.add_argument("--out", metavar="DIR", help="where to save (default: runs/TASK)")
    parser.add_argument(
        "--threads",
        type=int,
        choices=range(1, 257),
        default=1,
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
    parser.add_argument("--style", choices=STYLES, help="the parts the model is built from")
    for cls, words in (Config, CONFIG_HELP), (Settings, SETTINGS_HELP):
        for field in fields(cls):
            if field.name in words:
                number = field.type in (float, "float")
                kind = float if number else seed if field.name == "seed" else positive
                option, metavar = "--" + field.name.replace("_", "-"), "X" if number else "N"
                parser.add_argument(option, type=kind, metavar=metavar, help=words[field.name])


def _train(options: argparse.Namespace) -> int:
    torch.set_num_threads(options.threads)
    device = find_device(options.device)
    folder = new_folder(options.out, options.task)
    task = make_task(options.task, options.data, options.max_length)
    chosen = task.defaults | {name: v for name, v in vars(options).items() if v is not None}
    try:
        config = Config(vocab_size=len(task.vocabulary), **_only(Config, chosen))
        settings = Settings(**_only(Settings, chosen))
        torch.manual_seed(settings.seed)
        model = task.model_class(config).to(device)
    except (ValueError, RuntimeError) as error:  # such numbers, or not enough memory for them
        raise InputError(_in_options(" ".join(str(error).split()))) from None
    create_folder(folder)
    run = Run(task.name, model, task.vocabulary, asdict(settings))

    size = sum(parameter.numel() for parameter in run.model.parameters())
    print(
        f"{task.name}: {type(run.model).__name__}, {config.style} style, {size:,} parameters, "
        f"{config.vocab_size} tokens; {settings.steps:,} steps of {settings.batch_size} examples",
        flush=True,
    )

    def save(history: list[dict[str, float]]) -> None:
        run.history = history
        run.save(folder)

    run.history, finished = train(run.model, task, settings, save)
    run.save(folder)
    if not finished:
        print(f"\ninterrupted after step {len(run.history):,} of {settings.steps:,}")
    print(f"saved in {folder}", flush=True)
    if finished:
        _report(run, task)
    try:
        save_pictures([("loss.png", loss_picture(run))], folder)
        texts = ragged_texts(task)
        save_pictures(attention_pictures(run, texts, draw=[len(texts) // 2]), folder)
    except ImportError as error:
        print(f"no pictures: {error}", file=sys.stderr)
    print(f"\n{folder} holds {', '.join(sorted(path.name for path in folder.iterdir()))}")
    return 0 if finished else 130


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
    starts = [text.strip()[: 20 + 2 * i] for i, text in enumerate(task.held_out[:9])]
    return sorted(starts, key=len)


def _in_options(message: str) -> str:
    """The message with the names of Config and Settings as the user writes them."""
    names = "|".join([*CONFIG_HELP, *SETTINGS_HELP])
    return re.sub(rf"\b({names})\b", lambda name: "--" + name[0].replace("_", "-"), message)


def _only(cls: type, values: dict[str, Any]) -> dict[str, Any]:
    names = {field.name for field in fields(cls)}
    return {name: value for name, value in values.items() if name in names}
