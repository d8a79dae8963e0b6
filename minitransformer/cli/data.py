"""Options that say which data, and `--inspect`: what was understood of it."""

import argparse
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

from torch import Tensor

from minitransformer.cli.options import positive
from minitransformer.data import Batch, PairBatch
from minitransformer.training.loop import Settings
from minitransformer.training.tasks import DataOptions, Task


def add_data_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--data",
        nargs="+",
        metavar="FILE",
        help="files or folders: text, CSV or JSON lines, also as .gz. pairs: lines of source TAB "
        "target. classify: label TAB text. lm, mlm: prose, a paragraph a line or with empty lines "
        "between (default: the language reference that comes with Python)",
    )
    parser.add_argument(
        "--columns",
        type=lambda text: [name.strip() for name in text.split(",")],
        metavar="A,B",
        help="where source and target, label and text, or the text stand: names in the header of a "
        "CSV or TSV file or in objects of JSON, or numbers from 1, as 2,1",
    )
    parser.add_argument(
        "--skip-long",
        action="store_const",
        const=True,
        help="leave out pairs that are longer than --max-length (prose is cut)",
    )


def add_tokenizer_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--held-out",
        nargs="+",
        metavar="FILE",
        help="examples that are not trained on (default: every 20th text, by a hash of it)",
    )
    parser.add_argument(
        "--tokenizer",
        metavar="NAME",
        help="characters (default); bpe or wordpiece, trained on the examples that are not held "
        "out; or a tokenizer.json",
    )
    parser.add_argument(
        "--vocab-size",
        type=positive,
        metavar="N",
        help=f"tokens of the tokenizer that is trained (default: {DataOptions.vocab_size})",
    )


def as_settings(options: DataOptions) -> dict[str, Any]:
    """As a run's config.json keeps them."""
    return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(options).items()}


# ---- what was understood -------------------------------------------------------------------------

LOOKED_AT, SHOWN, COLUMNS = 1_000, 8, 96  # examples measured; rows and columns drawn


def inspection(task: Task, settings: Settings) -> Iterator[str]:
    """Lines on the data: how many examples, how long they are, the first batch and its mask."""
    held_out = "none" if task.held_out is task.training else f"{len(task.held_out):,}"
    made = "made as needed" if not len(task.training) else f"{len(task.training):,}"
    yield f"examples to train on: {made}; held out: {held_out}; {len(task.vocabulary):,} tokens"
    yield ""
    for example in task.training[:3] or task.held_out[:3]:  # where they are made there are none
        yield "  " + " → ".join(_texts(example))
    yield ""
    yield "tokens      share of examples"
    yield from _histogram(_lengths(task, settings))
    batch = task.batch(settings.seed, 0, settings.batch_size, settings.packed)
    for name, mask in zip(("source", "target"), _masks(batch), strict=False):
        side = f"{name}s of the" if isinstance(batch, PairBatch) else "the"
        yield from _drawn(f"{side} first batch", mask)


def _lengths(task: Task, settings: Settings) -> Counter[int]:
    """How many of the first examples have so many tokens."""
    size = min(settings.batch_size, LOOKED_AT)
    lengths: Counter[int] = Counter()
    for step in range(-(-LOOKED_AT // size)):
        mask, *_ = _masks(task.batch(settings.seed, step, size, packed=False))
        lengths.update((mask != 0).sum(dim=1).tolist())
    return lengths


def _drawn(name: str, mask: Tensor) -> Iterator[str]:
    full = (mask != 0).float().mean().item()
    yield ""
    yield (
        f"{name}: {len(mask)} rows of {mask.shape[1]} tokens, {full:.0%} of them real; digits "
        "number the examples of a row, dots are padding"
    )
    every = -(-mask.shape[1] // COLUMNS)
    for row in mask[:SHOWN, ::every].tolist():
        yield "  " + "".join("." if n == 0 else str(n % 10) for n in row)


def _texts(example: Any) -> list[str]:
    first, second = example[:2]
    texts = {tuple: [first, second[0]], str: [first, second]}.get(type(second), [first])
    texts = [" ".join(text.split()) for text in texts]
    return [text if len(text) <= 60 else text[:59] + "…" for text in texts]


def _masks(batch: Batch | PairBatch) -> list[Tensor]:
    names = ("source_mask", "target_mask") if isinstance(batch, PairBatch) else ("attention_mask",)
    return [batch[name] for name in names]


def _histogram(lengths: Counter[int], bars: int = 8) -> Iterator[str]:
    """Lines with the share of each range of lengths."""
    width = max(1, -(-max(lengths) // bars))
    total = lengths.total()
    for start in range(1, max(lengths) + 1, width):
        count = sum(lengths[n] for n in range(start, start + width))
        share = count / total
        yield f"{start:5}–{start + width - 1:<5} {'█' * round(40 * share)} {share:.1%}"
