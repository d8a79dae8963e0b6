"""The model that generators are given, and what they must write with it."""

from collections.abc import Sequence
from functools import cache
from itertools import zip_longest

import torch

from minitransformer.checks.engine.check import at_most
from minitransformer.checks.models.ready import draw_large
from minitransformer.config import Config
from minitransformer.models import DecoderOnly

VOCAB, PAD, NEW = 11, 0, 6  # NEW: how many tokens are asked for
PROMPTS = ((10, 6), (9, 3, 10, 5, 9, 4, 9), (2, 10, 1, 10), (2,))
END = 9  # of the four continuations the first and the third write it, and 0 too, at other times
EXTRA = (1, 3, 6)  # columns of padding beyond the longest prompt

Rows = Sequence[Sequence[int]]


@cache
def the_model(device: str = "cpu", dropout: float = 0.0) -> DecoderOnly:
    """In float64, in which no two tokens are equally likely by rounding."""
    config = Config(
        VOCAB,
        d_model=16,
        num_heads=2,
        max_length=32,
        style="gpt2",
        dropout=dropout,
        attention="reference",
    )
    with torch.random.fork_rng(devices=[]):  # made once, it must not shift later draws that once
        model = DecoderOnly(config)
    draw_large(model)
    return model.to(device, torch.float64).eval()


@cache
def greedy(prompt: tuple[int, ...], new: int = NEW) -> tuple[int, ...]:
    """The likeliest token, time after time, of one prompt without padding: the definition."""
    row = list(prompt)
    for _ in range(new):
        ids = torch.tensor([row])
        with torch.no_grad():
            row.append(int(the_model()(ids, torch.ones_like(ids))[0, -1].argmax()))
    return tuple(row[len(prompt) :])


def wanted(prompts: Rows, new: int = NEW, eos: int | None = None) -> list[list[int]]:
    """What each prompt is continued with, up to its end."""
    rows = [list(greedy(tuple(prompt), new)) for prompt in prompts]
    return [row[: row.index(eos) + 1] if eos in row else row for row in rows]


def compare(found: list[list[int]], right: list[list[int]], when: str, asks: str) -> float:
    """The rows against those wanted; the first that differs is shown."""
    pairs = list(zip(found, right, strict=True))
    wrong = [i for i, (a, b) in enumerate(pairs) if a != b]
    i = wrong[0] if wrong else 0
    return at_most(
        0.0,
        float(sum(_distance(a, b) for a, b in pairs)),
        f"{when} {len(wrong)} of {len(right)} rows are wrong: row {i} is continued with "
        f"{found[i]} where {right[i]} was expected. {asks}",
    )


def _distance(a: list[int], b: list[int]) -> int:
    """Tokens that differ or that one has too many, later ones weighing more; 0 if none does."""
    tokens = enumerate(zip_longest(a, b, fillvalue=-1), start=1)
    return max(sum(i * abs(x - y) for i, (x, y) in tokens), int(a != b))


DISTANCE = "distance from the right tokens"
EOS = "it declares no eos_flag"
