"""The command line: train a model, have it answer, look inside it, check anyone's masks.

Exit status: 0 done, 1 a check fails, 2 the input cannot be used (one line says what and why), 130
interrupted.
"""

import argparse
import os
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import torch

from minitransformer.cli import check as command
from minitransformer.cli import exercise as exercise_command
from minitransformer.config import ATTENTIONS, STYLES, Config
from minitransformer.data.files import InputError, decode_lines, read_lines
from minitransformer.data.tokenization import Tokenizer
from minitransformer.inference.answering import ROWS, answer, encode, stream_answer
from minitransformer.models import DecoderOnly, EncoderOnly
from minitransformer.training.loop import DTYPES, Settings, train
from minitransformer.training.pictures import attention_pictures, loss_picture, save_pictures
from minitransformer.training.run import Run, create_folder, new_folder
from minitransformer.training.tasks import PairsTask, Task, largest_padding_weight, make_task


def main(arguments: Sequence[str] | None = None) -> int:
    parser = _parser()
    options, rest = parser.parse_known_args(arguments)
    if rest and (not hasattr(options, "text") or any(word.startswith("-") for word in rest)):
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    if rest:  # argparse takes no texts after an option: `generate RUN --top-k 5 TEXT`
        options.text += rest
    try:
        status = options.verb(options)
        sys.stdout.flush()
        return status
    except BrokenPipeError:  # whoever reads our output, `head` say, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (InputError, ImportError, OSError) as error:
        print(f"minitransformer: error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\nminitransformer: interrupted", file=sys.stderr)
        return 130


# ---- train -----------------------------------------------------------------------------------


def _train(options: argparse.Namespace) -> int:
    torch.set_num_threads(options.threads)
    if options.device == "cuda" and not torch.cuda.is_available():
        raise InputError("--device cuda: torch finds no CUDA GPU here; leave the option out")
    folder = new_folder(options.out, options.task)
    task = make_task(options.task, options.data, options.max_length)
    chosen = task.defaults | {name: v for name, v in vars(options).items() if v is not None}
    try:
        config = Config(vocab_size=len(task.vocabulary), **_only(Config, chosen))
        settings = Settings(**_only(Settings, chosen))
        torch.manual_seed(settings.seed)
        model = task.model_class(config).to(options.device)
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
    run.model.cpu()
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
    for line in task.report(run.model):
        print(line)
    weight, count = largest_padding_weight(run.model, task.held_out_batches())
    if count == 0:
        print("\nno held-out example needed padding: there are no weights on it to look at")
        return
    print(
        "\nlargest attention weight on any padded position, "
        f"over all layers, heads and held-out examples: {weight}"
        f"\n({count:,} weights on padded positions were looked at)"
    )


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


# ---- generate and show -----------------------------------------------------------------------


def _generate(options: argparse.Namespace) -> int:
    run = Run.load(options.run)
    limit = options.max_new_tokens
    if limit is None:
        limit = 100 if isinstance(run.model, DecoderOnly) else run.model.config.max_length - 1
    new = limit if isinstance(run.model, DecoderOnly) else 0
    texts = _texts(options, run, new)
    temperature = options.temperature
    if temperature is None:
        temperature = 0.8 if isinstance(run.model, DecoderOnly) else 0.0
    sampling = {"temperature": temperature, "top_k": options.top_k, "top_p": options.top_p}
    sampling["generator"] = torch.Generator().manual_seed(options.seed)
    if options.num_beams > 1:
        sampling = {"num_beams": options.num_beams}
    try:
        if len(texts) == 1 and options.num_beams == 1 and not isinstance(run.model, EncoderOnly):
            for piece in stream_answer(run.model, run.vocabulary, texts[0], limit, **sampling):
                print(piece, end="", flush=True)
            print()
            return 0
        for start in range(0, len(texts), ROWS):
            chunk = texts[start : start + ROWS]
            print(
                *answer(run.model, run.vocabulary, chunk, limit, **sampling), sep="\n", flush=True
            )
    except ValueError as error:
        raise InputError(str(error)) from None
    return 0


def _show(options: argparse.Namespace) -> int:
    run = Run.load(options.run)
    texts = _texts(options, run)
    folder = Path(options.out or Path(options.run) / "attention")
    try:
        paths = save_pictures(attention_pictures(run, texts, options.layer), folder)
    except ValueError as error:
        raise InputError(str(error)) from None
    for path in paths:
        print(path)
    return 0


def _texts(options: argparse.Namespace, run: Run, new_tokens: int = 0) -> list[str]:
    """What the user wants read, from the arguments, a file or standard input; checked."""
    if options.text and options.file:
        raise InputError("give texts or --file, not both")
    if options.text:
        texts, where = options.text, "text {}"
    elif options.file:
        texts, where = read_lines(options.file), f"{options.file}:{{}}"
    else:
        texts = decode_lines(sys.stdin.buffer.read(), "standard input")
        where = "standard input:{}"
    for number, text in enumerate(texts, 1):
        length = len(encode(run.model, run.vocabulary, [text])[0]) + new_tokens
        limit = run.model.config.max_length
        if not text.strip() and not isinstance(run.model, DecoderOnly):
            raise InputError(f"{where.format(number)}: is empty")
        if (
            isinstance(run.model, EncoderOnly)
            and options.verb is _generate
            and (run.vocabulary.mask_name or "[MASK]") not in text
        ):
            mask = run.vocabulary.mask_name or "[MASK]"
            raise InputError(f"{where.format(number)}: holds no {mask} to fill")
        if length > limit:
            more = f" with {new_tokens} new ones (--max-new-tokens)" if new_tokens else ""
            raise InputError(
                f"{where.format(number)}: has {length} tokens{more}, "
                f"more than the {limit} that the model was built for"
            )
    if isinstance(run.vocabulary, Tokenizer):
        return texts
    if unknown := run.vocabulary.unknown([text.replace("[MASK]", "") for text in texts]):
        characters = " ".join(map(repr, unknown[:10]))
        print(f"never seen in training, read as <unk>: {characters}", file=sys.stderr)
    return texts


def _check(options: argparse.Namespace) -> int:
    try:
        return command.check(options)
    except (TypeError, ValueError) as error:
        raise InputError(str(error)) from None


# ---- the words of the command line -----------------------------------------------------------

CONFIG_HELP = {
    "d_model": "width of every hidden state",
    "num_layers": "layers of the encoder, of the decoder, or of each",
    "num_heads": "attention heads",
    "num_kv_heads": "key/value heads, fewer than heads for grouped queries",
    "d_ff": "width inside the feed-forward; usually 4 times d-model",
    "max_length": "the most characters in one example",
    "dropout": "share of activations dropped in training",
}
SETTINGS_HELP = {
    "steps": "training steps",
    "batch_size": "examples in one step",
    "learning_rate": "the highest learning rate",
    "seed": "for weights, examples and their order",
}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="minitransformer",
        description="Train a small transformer, have it answer, look at its attention; check what "
        "any implementation does with its masks.",
    )
    verbs = parser.add_subparsers(title="verbs", required=True, metavar="VERB")

    def verb(
        name: str, run: Callable | None, summary: str, details: str
    ) -> argparse.ArgumentParser:
        sub = verbs.add_parser(
            name,
            help=summary,
            description=f"{summary[0].upper()}{summary[1:]}. {details}",
        )
        sub.set_defaults(verb=run)
        return sub

    sub = verb(
        "train",
        _train,
        "train a model and save it in a folder with its metrics and pictures",
        "Without options: an encoder-decoder learns to read dates in 27 languages. Ctrl-C ends "
        "the training early and keeps what was reached (exit status 130).",
    )
    sub.add_argument(
        "--task",
        choices=["dates", "pairs", "lm", "mlm"],
        default="dates",
        help="dates: read dates (default). pairs: turn one text into another. "
        "lm: continue prose. mlm: find hidden characters",
    )
    sub.add_argument(
        "--data",
        metavar="FILE",
        help="UTF-8 text. pairs: lines of source TAB target. lm, mlm: prose in paragraphs "
        "(default: the language reference that comes with Python)",
    )
    sub.add_argument("--out", metavar="DIR", help="where to save (default: runs/TASK)")
    sub.add_argument(
        "--threads",
        type=int,
        choices=range(1, 257),
        default=1,
        metavar="N",
        help="CPU threads (default: 1)",
    )
    sub.add_argument("--device", choices=["cpu", "cuda"], default="cpu", help="default: cpu")
    sub.add_argument(
        "--no-pack",
        dest="packed",
        action="store_const",
        const=False,
        help="one example in each row, padded, instead of several packed into one",
    )
    sub.add_argument(
        "--dtype",
        choices=DTYPES,
        help="of matrix products (default: float32); bfloat16 is faster where the processor has it",
    )
    sub.add_argument(
        "--recompute",
        action="store_const",
        const=True,
        help="compute each layer again on the way back instead of keeping what it computed: "
        "less memory, a third more time",
    )
    sub.add_argument(
        "--attention",
        choices=ATTENTIONS,
        help="how it is computed: the same up to rounding, reference is the plain formula "
        "(default: auto, the fastest)",
    )
    sub.add_argument("--style", choices=STYLES, help="the parts the model is built from")
    for cls, words in (Config, CONFIG_HELP), (Settings, SETTINGS_HELP):
        for field in fields(cls):
            if field.name in words:
                number = field.type in (float, "float")
                kind = float if number else _seed if field.name == "seed" else _positive
                option, metavar = "--" + field.name.replace("_", "-"), "X" if number else "N"
                sub.add_argument(option, type=kind, metavar=metavar, help=words[field.name])

    sub = verb(
        "generate",
        _generate,
        "have a trained model answer",
        "An encoder-decoder translates each text, a decoder continues it, an encoder fills its "
        "[MASK]s. One line is printed for each text; several go through the model as one batch, "
        "one is written as it comes.",
    )
    _add_texts(sub)
    sub.add_argument("--max-new-tokens", type=_positive, metavar="N", help="the longest answer")
    sub.add_argument(
        "--temperature",
        type=float,
        metavar="X",
        help="0 takes the likeliest token; above 0 tokens are drawn (default: 0.8 for lm, else 0)",
    )
    sub.add_argument("--top-k", type=int, metavar="N", help="draw among the N likeliest only")
    sub.add_argument(
        "--top-p", type=float, metavar="X", help="draw among the likeliest of total probability X"
    )
    sub.add_argument(
        "--num-beams",
        type=_positive,
        default=1,
        metavar="N",
        help="search N texts at a time for the likeliest, instead of drawing",
    )
    sub.add_argument("--seed", type=_seed, default=0, metavar="N", help="of the draws (default: 0)")

    sub = verb(
        "show",
        _show,
        "draw where a trained model looks",
        "One picture for each text and kind of attention, a panel for each head. Several texts "
        "are padded to one length, so the shorter ones show their padding.",
    )
    _add_texts(sub)
    sub.add_argument(
        "--layer", type=int, default=-1, metavar="N", help="from 0; -1 is the last (default)"
    )
    sub.add_argument("--out", metavar="DIR", help="where to save (default: RUN/attention)")

    sub = verb(
        "check",
        _check,
        "check that an implementation keeps the promises of its mask",
        "Any attention function, mask builder, model, loss, label builder, collator or generator: "
        "yours, a library's, a student's. The report says of each check whether it passes, what "
        "was measured and, where it fails, what is most likely wrong.",
    )
    command.add_options(sub)

    sub = verb(
        "exercise",
        None,  # it has verbs of its own
        "work on the exercises of the course, or grade them",
        "Each asks for one function, says at once what is wrong with it, and gives points.",
    )
    exercise_command.add_options(sub)
    return parser


def _add_texts(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "run", metavar="RUN", help="a folder that `train` left, or a Hugging Face model's"
    )
    parser.add_argument("text", metavar="TEXT", nargs="*", help="default: lines of standard input")
    parser.add_argument("--file", metavar="FILE", help="read the texts from the lines of a file")


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"must be 1 or more, got {number}")
    return number


def _seed(text: str) -> int:
    number = int(text)
    if not 0 <= number < 2**32:
        raise argparse.ArgumentTypeError(f"must be from 0 to 2**32 - 1, got {number}")
    return number


if __name__ == "__main__":
    sys.exit(main())
