"""`minitransformer generate` and `show`: run a trained model on text, and draw its attention."""

import argparse
import sys
from pathlib import Path
from typing import Any

import torch

from minitransformer.cli.options import add_device, find_device, integer, positive, seed
from minitransformer.data.files import InputError, read_stream
from minitransformer.data.reading import decode, lines_of, read_lines
from minitransformer.inference.answering import ROWS, answer, encode, stream_answer
from minitransformer.models import DecoderOnly, EncoderDecoder, EncoderOnly
from minitransformer.training.pictures import (
    attention_pictures,
    page_of_attention,
    save_pictures,
)
from minitransformer.training.run import Run

CHARACTERS = 1000  # that no token has


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(verb=_generate)
    _add_texts(parser)
    parser.add_argument("--max-new-tokens", type=positive, metavar="N", help="the longest answer")
    parser.add_argument(
        "--temperature",
        type=float,
        metavar="X",
        help="0 takes the likeliest token; above 0 tokens are drawn (default: 0.8 for lm, else 0)",
    )
    parser.add_argument(
        "--top-k", type=positive, metavar="N", help="draw among the N likeliest only"
    )
    parser.add_argument(
        "--top-p", type=float, metavar="X", help="draw among the likeliest of total probability X"
    )
    parser.add_argument(
        "--num-beams",
        type=integer(1, 1000),
        default=1,
        metavar="N",
        help="search N texts at a time for the likeliest, instead of drawing",
    )
    parser.add_argument(
        "--seed", type=seed, default=0, metavar="N", help="of the draws (default: 0)"
    )
    parser.add_argument(
        "--chat",
        action="store_true",
        help="each text is a turn of one conversation, which a model for chats answers",
    )
    parser.add_argument(
        "--system", metavar="TEXT", help="with --chat: what the model is told first"
    )


def add_show_options(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(verb=_show)
    _add_texts(parser)
    parser.add_argument(
        "--layer", type=int, default=-1, metavar="N", help="from 0; -1 is the last (default)"
    )
    parser.add_argument("--out", metavar="DIR", help="where to save (default: RUN/attention)")
    parser.add_argument(
        "--html",
        metavar="FILE",
        help="instead of pictures write one page with all layers and heads, for a browser",
    )


def _add_texts(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "run", metavar="RUN", help="a folder that `train` left, or a Hugging Face model's"
    )
    parser.add_argument("text", metavar="TEXT", nargs="*", help="default: lines of standard input")
    parser.add_argument("--file", metavar="FILE", help="read the texts from the lines of a file")
    add_device(parser)


def _generate(options: argparse.Namespace) -> int:
    if options.chat:
        return _chat(options)
    if options.system is not None:
        raise InputError("--system is for a conversation: add --chat")
    run = _load(options)
    continues = isinstance(run.model, DecoderOnly)
    limit = options.max_new_tokens or (100 if continues else run.model.config.max_length - 1)
    texts = _texts(options, run, limit if continues else 0)
    try:
        _print_answers(run, texts, limit, _sampling(options, run))
    except ValueError as error:
        raise InputError(str(error)) from None
    return 0


def _chat(options: argparse.Namespace) -> int:
    from minitransformer.cli.chat import converse, typed_turns  # which need jinja2

    if options.num_beams > 1:
        raise InputError("--chat writes as it comes, which --num-beams cannot: leave one out")
    _check_one_source(options)
    run = _load(options)
    turns = read_lines(options.file) if options.file else options.text or typed_turns()
    turns = filter(str.strip, turns)
    limit, sampling = options.max_new_tokens, _sampling(options, run)
    try:
        for piece in converse(run, options.run, turns, options.system, limit, **sampling):
            print(piece, end="", flush=True)
    except ValueError as error:
        raise InputError(str(error)) from None
    return 0


def _sampling(options: argparse.Namespace, run: Run) -> dict[str, Any]:
    """How `generate` is to choose tokens."""
    if options.num_beams > 1:
        return {"num_beams": options.num_beams}
    temperature = options.temperature
    if temperature is None:
        temperature = 0.8 if isinstance(run.model, DecoderOnly) else 0.0
    generator = torch.Generator(run.device).manual_seed(options.seed)
    chosen = {"temperature": temperature, "top_k": options.top_k, "top_p": options.top_p}
    return chosen | {"generator": generator}


def _print_answers(run: Run, texts: list[str], limit: int, sampling: dict[str, Any]) -> None:
    """A line for each text; that of a single one piece by piece, as it is written."""
    writes = isinstance(run.model, DecoderOnly | EncoderDecoder) and "num_beams" not in sampling
    if writes and len(texts) == 1:
        for piece in stream_answer(run.model, run.vocabulary, texts[0], limit, **sampling):
            print(piece, end="", flush=True)
        print()
        return
    for start in range(0, len(texts), ROWS):
        chunk = texts[start : start + ROWS]
        print(*answer(run.model, run.vocabulary, chunk, limit, **sampling), sep="\n", flush=True)


def _show(options: argparse.Namespace) -> int:
    if options.html and (options.out or options.layer != -1):
        raise InputError("--html writes one file with all layers: leave out --out and --layer")
    run = _load(options)
    texts = _texts(options, run)
    if options.html:
        title = f"Attention: {Path(options.run).resolve().name}"
        print(page_of_attention(run, texts, title).save(options.html))
        return 0
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
    texts, where = _read(options)
    mask = run.vocabulary.mask_name or "[MASK]"
    fills = options.verb is _generate and isinstance(run.model, EncoderOnly)
    for number, text in enumerate(texts, 1):
        if fault := _fault(text, run, new_tokens):
            raise InputError(f"{where}{number}: {fault}")
        if fills and mask not in text:
            raise InputError(f"{where}{number}: holds no {mask} to fill")
    _tell_unknown(run.vocabulary.unknown([text.replace(mask, "") for text in texts]))
    return texts


def _tell_unknown(characters: list[str]) -> None:
    if characters:
        some = " ".join(map(repr, characters[:10]))
        print(f"never seen in training, read as <unk>: {some}", file=sys.stderr)


def _read(options: argparse.Namespace) -> tuple[list[str], str]:
    """The texts, and what stands before their numbers in an error."""
    _check_one_source(options)
    if options.text:
        return options.text, "text "
    if options.file:
        return read_lines(options.file), f"{options.file}:"
    typed = read_stream(sys.stdin.buffer, "standard input")
    return lines_of(decode(typed, "standard input")), "standard input:"


def _fault(text: str, run: Run, new_tokens: int) -> str:
    """Why the model cannot read this text, if it cannot."""
    limit = run.model.config.max_length
    if len(text) > CHARACTERS * limit:  # before minutes are spent on its tokens
        return (
            f"has {len(text):,} characters, more than the {limit} tokens that the model was built "
            "for"
        )
    if not text.strip() and not isinstance(run.model, DecoderOnly):
        return "is empty"
    length = len(encode(run.model, run.vocabulary, [text])[0]) + new_tokens
    if length <= limit:
        return ""
    more = f" with {new_tokens} new ones (--max-new-tokens)" if new_tokens else ""
    return f"has {length} tokens{more}, more than the {limit} that the model was built for"


def _check_one_source(options: argparse.Namespace) -> None:
    if options.text and options.file:
        raise InputError("give texts or --file, not both")


def _load(options: argparse.Namespace) -> Run:
    device = find_device(options.device)
    run = Run.load(options.run)
    run.model.to(device)
    return run
