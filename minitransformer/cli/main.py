"""The command line: train a model, run it on text, look inside it, check anyone's masks.

Exit status: 0 done, 1 a check fails, 2 the input cannot be used (one line says what and why), 130
interrupted, 143 terminated.
"""

import argparse
import codecs
import os
import sys
from collections.abc import Callable, Sequence
from contextlib import redirect_stdout
from typing import Any, NoReturn, TextIO

import torch

from minitransformer import __version__
from minitransformer.cli import check, evaluate, exercise, explore, export, generate, runs, train
from minitransformer.cli.options import help_of
from minitransformer.data.files import InputError, printable


def main(arguments: Sequence[str] | None = None) -> int:
    _open_what_is_closed()
    _write_signs_anywhere()
    with redirect_stdout(_Escaped(sys.stdout) if sys.stdout.isatty() else sys.stdout):
        return _run(arguments)


def _run(arguments: Sequence[str] | None) -> int:
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
        print(f"minitransformer: error: {InputError(str(error))}", file=sys.stderr)
        return 2
    except (MemoryError, RuntimeError) as error:
        if not _is_lack_of_memory(error):
            raise
        print("minitransformer: error: not enough memory for these numbers", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\nminitransformer: interrupted", file=sys.stderr)
        return 130


SIGNS = {"\N{CHECK MARK}": "+", "\N{BALLOT X}": "x", "→": "->", "←": "<-", "…": "..."}


def _is_lack_of_memory(error: Exception) -> bool:
    """torch has no class of its own for a lack of main memory."""
    lacking = isinstance(error, MemoryError | torch.OutOfMemoryError)
    return lacking or "can't allocate memory" in str(error)


def _write_signs_anywhere() -> None:
    """Where the terminal's encoding lacks a character, print another or its number, not an error.

    A terminal on Windows may be in cp1252, which has no check mark.
    """

    def replace(error: UnicodeError) -> tuple[str, int]:
        assert isinstance(error, UnicodeEncodeError)
        lacking = error.object[error.start : error.end]
        numbers = lambda sign: sign.encode("ascii", "backslashreplace").decode()  # noqa: E731
        return "".join(SIGNS.get(sign) or numbers(sign) for sign in lacking), error.end

    codecs.register_error("replace_signs", replace)
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # not what a notebook puts there
            stream.reconfigure(errors="replace_signs")


def _open_what_is_closed() -> None:
    """A stream that whoever started us has closed (`>&-`) is empty, and forgets what is written."""
    for name, mode in {"stdin": "r", "stdout": "w", "stderr": "w"}.items():
        if getattr(sys, name) is None:
            stream = open(os.devnull, mode, encoding="utf-8")  # noqa: SIM115
            setattr(sys, name, stream)


class _Escaped:
    """A terminal on which control characters are shown as escapes, but for tabs and ends of lines:
    what a model or a file says must not move the cursor. (What goes to a file or a pipe is left as
    it is.)"""

    def __init__(self, terminal: TextIO):
        self.terminal = terminal

    def write(self, text: str) -> int:
        return self.terminal.write(printable(text, keep="\t\n"))

    def __getattr__(self, name: str) -> Any:
        return getattr(self.terminal, name)


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """The usage and one printable line, whatever was typed."""
        super().error(str(InputError(message)))


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="minitransformer",
        description="Train a small transformer, run it on text, look at its attention; check what "
        "any implementation does with its masks.",
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    parser.set_defaults(verb=help_of(parser))
    verbs = parser.add_subparsers(title="verbs", metavar="VERB")

    def verb(name: str, add_options: Callable, summary: str, details: str) -> None:
        sub = verbs.add_parser(
            name, help=summary, description=f"{summary[0].upper()}{summary[1:]}. {details}"
        )
        add_options(sub)

    verb(
        "train",
        train.add_options,
        "train a model and save it in a folder with its metrics and pictures",
        "Without options: an encoder-decoder learns to read dates in 27 languages. Ctrl-C ends "
        "the training early and keeps what was reached (exit status 130).",
    )
    verb(
        "runs",
        runs.add_options,
        "list the trainings here",
        "Task, step, loss, when it was last saved, and whether it is finished, interrupted (train "
        "--resume goes on with it), running or damaged.",
    )
    verb(
        "generate",
        generate.add_options,
        "run a trained model on text",
        "An encoder-decoder translates each text, a decoder continues it, an encoder fills its "
        "[MASK]s. One line is printed for each text; several go through the model as one batch, "
        "one is written as it comes. On a terminal, control characters of the answer are shown as "
        "escapes (\\x1b); a file or a pipe gets them as they are.",
    )
    verb(
        "evaluate",
        evaluate.add_options,
        "measure a model on examples",
        "Loss, perplexity, accuracy, for pairs exact match and chrF (with sacrebleu), and the ten "
        "worst examples. Without --data: on the examples that the run's training held out.",
    )
    verb(
        "show",
        generate.add_show_options,
        "draw where a trained model looks",
        "One picture for each text and kind of attention, a panel for each head. Several texts "
        "are padded to one length, so the shorter ones show their padding. With --html: one page "
        "for a browser, with every layer and head.",
    )
    verb(
        "explore",
        explore.add_options,
        "open the mask explorer in a browser",
        "Padding, future, documents and windows to click on: the mask, the scores, what the "
        "softmax makes of them, and where zero is not zero. One file that needs no network.",
    )
    verb(
        "export",
        export.add_options,
        "write a run as a folder that the transformers library loads",
        "config.json, model.safetensors, generation_config.json and the tokenizer, if the run has "
        "one.",
    )
    verb(
        "check",
        check.add_options,
        "check that an implementation keeps the promises of its mask",
        "Any attention function, mask builder, model, loss, label builder, collator or generator: "
        "yours, a library's, a student's. The report says of each check whether it passes, what "
        "was measured and, where it fails, what is most likely wrong.",
    )
    verb(
        "exercise",
        exercise.add_options,
        "work on the exercises of the course, or grade them",
        "Each asks for one function, says at once what is wrong with it, and gives points.",
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
