"""How time and memory grow: each kind of work at n, 2 n, 4 n and 8 n, with the fitted exponents.

    python scripts/growth.py --write      # scripts/growth.md, in ten minutes; --large: in an hour

Each measure has a process, and one thread, of its own. Seconds are those that it computed, so that
other jobs count little: the least of up to three runs where one is short. MiB are the most that it
had in memory at any moment of the first run, above what it had before: on Linux, which is told to
forget the peak before.
"""

import argparse
import json
import math
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from benchmark_parts.measure import machine
from benchmark_parts.report import table
from large_text import write_words
from torch import Tensor
from tqdm import tqdm

from minitransformer import (
    Config,
    DecoderOnly,
    generate,
    next_token_labels,
    pack,
    pack_pairs,
    pad,
    padding_mask,
)
from minitransformer.data.collate import collate_lm, collate_mlm, collate_packed, collate_pairs
from minitransformer.data.corpus import SmallCorpus
from minitransformer.data.cutting import fit
from minitransformer.data.source import DataOptions
from minitransformer.data.tokenization import Tokenizer
from minitransformer.data.vocabulary import Vocabulary
from minitransformer.inference.answering import stream_answer
from minitransformer.kernels.plan import make_plan

PAGE = Path(__file__).with_suffix(".md")
DOCUMENT = 64  # tokens of each where several share a row
LETTERS = "etaoinshrdlu ,.ETAOINSHRDLU"
SHORT, RUNS = 1.0, 3  # seconds; so many runs of what is shorter
Run = Callable[[], object]


class Work(NamedTuple):
    prepare: Callable[[int], Run]  # n -> what is measured
    smallest: int  # n; the largest is eight times as large
    large: int = 0  # the smallest with --large, if that differs
    why: str = ""  # it grows faster than n, where it does


# ---- what is measured ----------------------------------------------------------------------------


def documents(count: int) -> list[list[int]]:
    """Ragged and long-tailed, of 1 to 32 tokens."""
    rng = random.Random(0)
    return [[7] * min(max(round(rng.lognormvariate(2, 0.7)), 1), 32) for _ in range(count)]


def with_documents(work: Callable[[list[list[int]]], object]) -> Callable[[int], Run]:
    def prepare(count: int) -> Run:
        rows = documents(count)
        return lambda: work(rows)

    return prepare


def as_pairs(rows: list[list[int]]) -> list[dict[str, list[int]]]:
    return [{"input_ids": row, "labels": row} for row in rows]


def texts(megabytes: int) -> list[str]:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "text.txt")
        write_words(file, megabytes)
        return file.read_text(encoding="utf-8").splitlines()


def training_a_tokenizer(kind: str) -> Callable[[int], Run]:
    def prepare(megabytes: int) -> Run:
        known = texts(megabytes)
        return lambda: Tokenizer.train(known, 4_000, kind)

    return prepare


def reading_prose(megabytes: int) -> Run:
    folder = tempfile.TemporaryDirectory()
    file = Path(folder.name, "text.txt")
    write_words(file, megabytes)

    def run(folder=folder) -> None:  # which is deleted with it
        corpus = SmallCorpus(DataOptions(data=(str(file),)), 2_048, list)
        corpus.pieces(Vocabulary(LETTERS), 254)

    return run


def cutting_a_text(characters: int) -> Run:
    text = "".join(random.Random(0).choices(LETTERS, k=characters))
    return lambda: fit(Vocabulary(LETTERS), [text], 254)


def packed_rows(rows: int) -> Tensor:
    """attention_mask (rows, DOCUMENT) of documents of 8 to 24 tokens."""
    rng = random.Random(0)
    return pack([[7] * rng.randint(8, 24) for _ in range(4 * rows)], DOCUMENT).attention_mask[:rows]


def one_row(tokens: int) -> Tensor:
    """attention_mask (1, tokens) of documents of DOCUMENT tokens."""
    return 1 + (torch.arange(tokens) // DOCUMENT).unsqueeze(0)


def planning(documents: Callable[[int], Tensor]) -> Callable[[int], Run]:
    def prepare(count: int) -> Run:
        mask = padding_mask(documents(count))
        return lambda: make_plan(mask, len(mask), 8, whole=True)

    return prepare


def making_a_mask(tokens: int) -> Run:
    attention_mask = one_row(tokens)
    return lambda: padding_mask(attention_mask)


def decoder(vocab_size: int, max_length: int) -> DecoderOnly:
    """A small one, whose texts never end."""
    torch.manual_seed(0)
    numbers = {"d_model": 64, "num_layers": 2, "num_heads": 4, "max_length": max_length}
    return DecoderOnly(Config(vocab_size, **numbers, style="llama", eos_id=vocab_size))


def generating(tokens: int) -> Run:
    model, prompt = decoder(1_000, tokens + 1), torch.tensor([[7]])
    return lambda: generate(model, prompt, torch.ones_like(prompt), tokens)


def streaming(tokens: int) -> Run:
    vocabulary = Tokenizer.train(texts(1), 1_000)
    model = decoder(len(vocabulary), tokens + 8)

    def run() -> None:
        draw = torch.Generator().manual_seed(0)
        for _ in stream_answer(model, vocabulary, "A", tokens, temperature=1.0, generator=draw):
            pass

    return run


def training(documents: Callable[[int], Tensor]) -> Callable[[int], Run]:
    def prepare(tokens: int) -> Run:
        model, attention_mask = decoder(1_000, tokens), documents(tokens)
        ids = torch.randint(1_000, attention_mask.shape, generator=torch.Generator().manual_seed(0))
        labels = next_token_labels(ids, attention_mask)

        def run() -> None:
            model.loss(ids, attention_mask, labels).backward()
            model.zero_grad()

        return run

    return prepare


MASK, PAIRS = "the mask is n² bytes", "n² pairs of tokens"
COLLECTED = "Python collects garbage among so many lists, which the smallest is spared"
WORK = {
    "`pad`, n documents": Work(with_documents(pad), 12_500, 125_000, COLLECTED),
    "`pack`, n documents": Work(with_documents(pack), 12_500, 125_000, COLLECTED),
    "`pack_pairs`, n pairs": Work(
        with_documents(lambda rows: pack_pairs(rows, rows, 64, 1, 2)), 12_500, 125_000
    ),
    "`collate_lm`, n examples": Work(with_documents(collate_lm), 12_500, 125_000),
    "`collate_mlm`, n examples": Work(
        with_documents(lambda rows: collate_mlm(rows, 3, 1_000)), 12_500, 125_000
    ),
    "`collate_packed`, n examples": Work(with_documents(collate_packed), 12_500, 125_000),
    "`collate_pairs`, n examples": Work(
        with_documents(lambda rows: collate_pairs(as_pairs(rows), 1, 2)), 12_500, 125_000
    ),
    "reading, splitting, cutting, n MB of prose": Work(reading_prose, 1, 8),
    "cutting one text of n characters": Work(cutting_a_text, 250_000, 1_000_000),
    "a BPE tokenizer, n MB of text": Work(training_a_tokenizer("bpe"), 1, 10),
    "a WordPiece tokenizer, n MB of text": Work(training_a_tokenizer("wordpiece"), 1, 10),
    "plan of n packed rows of 64": Work(planning(packed_rows), 1_000, 4_000),
    "mask of one packed row of n": Work(making_a_mask, 1_000, 4_000, MASK),
    "plan of one packed row of n": Work(planning(one_row), 1_000, 4_000, MASK + ", read once"),
    "generation with a cache, n tokens": Work(
        generating, 500, 2_000, PAIRS + ", small beside the rest"
    ),
    "a streamed answer, n tokens": Work(streaming, 500, 2_000, PAIRS + ", small beside the rest"),
    "a training step, one document of n": Work(
        training(lambda n: torch.ones(1, n, dtype=torch.int64)), 512, 2_048, PAIRS
    ),
    "a training step, a row of n of documents of 64": Work(training(one_row), 512, 2_048, MASK),
}


# ---- one measure, in a process of its own --------------------------------------------------------


def measure(name: str, n: int) -> dict[str, float]:
    torch.set_num_threads(1)
    run = WORK[name].prepare(n)
    Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")  # forget the peak
    before = memory("VmRSS")
    seconds = [seconds_of(run)]
    peak = memory("VmHWM") - before
    while seconds[0] < SHORT and len(seconds) < RUNS:
        seconds.append(seconds_of(run))
    return {"seconds": min(seconds), "MiB": peak}


def seconds_of(run: Run) -> float:
    start = time.process_time()
    run()
    return time.process_time() - start


def memory(name: str) -> float:
    """MiB of this process: VmRSS now, VmHWM at its peak."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name)) / 1024


def in_a_process(name: str, n: int) -> dict[str, float]:
    one = {"OMP_NUM_THREADS": "1", "RAYON_NUM_THREADS": "1"}
    command = [sys.executable, __file__, "--one", name, str(n)]
    done = subprocess.run(
        command, capture_output=True, encoding="utf-8", env={**os.environ, **one}, check=False
    )
    if done.returncode:
        raise SystemExit(f"{name}, n = {n:,}: ended with {done.returncode}\n{done.stderr}")
    return json.loads(done.stdout.splitlines()[-1])


# ---- the table -----------------------------------------------------------------------------------


def exponents(sizes: list[int], values: list[float]) -> str:
    """The fitted one (least squares of the logarithms), and that of the last doubling."""
    if min(values) <= 0:
        return ""
    x, y = ([math.log2(value) for value in some] for some in (sizes, values))
    middle_x, middle_y = sum(x) / len(x), sum(y) / len(y)
    products = sum((a - middle_x) * (b - middle_y) for a, b in zip(x, y, strict=True))
    fitted = products / sum((a - middle_x) ** 2 for a in x)
    return f"{fitted:.2f}, {(y[-1] - y[-2]) / (x[-1] - x[-2]):.2f}"


def line(name: str, sizes: list[int], found: list[dict[str, float]]) -> list[str]:
    cells = [name, f"{sizes[0]:,}"]
    for what, most in (("seconds", 3), ("MiB", 1)):
        values = [one[what] for one in found]
        digits = [min(most, max(0, 2 - math.floor(math.log10(max(v, 1e-9))))) for v in values]
        shown = " / ".join(f"{v:,.{d}f}" for v, d in zip(values, digits, strict=True))
        cells += [shown, exponents(sizes, values)]
    return [*cells, WORK[name].why]


ABOUT = """\
# How time and memory grow

`python scripts/growth.py{large} --write` makes this page: {about}.

Each cell has the values at n, 2 n, 4 n and 8 n. *Exponent*: p of the nᵖ that fits all four (least
squares of the logarithms), and of the last doubling alone; n log n has some 1.1 here. Below 1 a
part of the cost does not grow. Seconds are those that one thread computed; MiB the most that the
process had at any moment above what it had before, each measure in a process of its own.

"""
PRICE = """
A mask is explicit: of a row of n tokens it is n² bytes, by design, once a forward pass for all
layers. So rows are short: `pack` makes them as long as the longest document.
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", metavar="WORD", default="", help="work whose name has it")
    parser.add_argument("--large", action="store_true", help="larger n, up to ten times")
    parser.add_argument("--write", action="store_true", help="write scripts/growth.md")
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)  # what each process runs
    options = parser.parse_args()
    if options.one:
        print(json.dumps(measure(options.one[0], int(options.one[1]))))
        return
    if not Path("/proc/self/clear_refs").exists():
        parser.error("memory is read from /proc, which only Linux has")
    chosen = [name for name in WORK if options.only in name]
    if not chosen:
        parser.error(f"--only: no work has {options.only!r} in its name: {', '.join(WORK)}")
    if options.only and options.write:
        parser.error("--only measures a part of the table: leave out --write")
    lines = []
    with tqdm(total=4 * len(chosen), unit="measure", disable=None) as bar:
        for name in chosen:
            first = (options.large and WORK[name].large) or WORK[name].smallest
            sizes, found = [first, 2 * first, 4 * first, 8 * first], []
            for n in sizes:
                bar.set_description(f"{name}, {n:,}")
                found.append(in_a_process(name, n))
                bar.update()
            lines.append(line(name, sizes, found))
            tqdm.write(" | ".join(lines[-1]), file=sys.stderr)
    header = ["work", "n", "seconds", "exponent", "peak MiB", "exponent", "why"]
    torch.set_num_threads(1)
    about = ", ".join(f"{key} {value}" for key, value in machine(torch.device("cpu")).items())
    page = (
        ABOUT.format(about=about, large=" --large" * options.large) + table(header, lines) + PRICE
    )
    print(page)
    if options.write:
        PAGE.write_text(page, encoding="utf-8")


if __name__ == "__main__":
    main()
