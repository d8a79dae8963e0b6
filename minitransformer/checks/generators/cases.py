"""The model that generators are given, and what they must write with it."""

from collections.abc import Sequence
from functools import cache

import torch

from minitransformer.checks.engine.check import expect
from minitransformer.checks.models.ready import draw_large
from minitransformer.config import Config
from minitransformer.models import DecoderOnly

VOCAB, PAD, NEW = 11, 0, 6  # NEW: how many tokens are asked for
PROMPTS = ((10, 6), (9, 3, 10, 5, 9, 4, 9), (2, 10, 1, 10), (2,))
END = 9  # of the four continuations the first and the third write it, and 0 too, at other times
EXTRA = (1, 3, 6)  # columns of padding beyond the longest prompt

Rows = Sequence[Sequence[int]]


# ---- the model, and what it must write -----------------------------------------------------------


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


def compare(found: list[list[int]], right: list[list[int]], when: str, why: str) -> float:
    """Fail where a row exceeds, with what was written and what should have been."""
    wrong = [i for i, (a, b) in enumerate(zip(found, right, strict=True)) if a != b]
    if wrong:
        i = wrong[0]
        expect(
            False,
            f"{when} {len(wrong)} of {len(right)} rows are wrong: row {i} is continued with "
            f"{found[i]} where {right[i]} was expected. {why}",
            float(sum(_distance(a, b) for a, b in zip(found, right, strict=True))),
        )
    return 0.0


def _distance(a: list[int], b: list[int]) -> int:
    """Tokens that differ or that one has too many, later ones weighing more."""
    longest = max(len(a), len(b))
    a, b = (row + [-1] * (longest - len(row)) for row in (a, b))
    return sum((i + 1) * abs(x - y) for i, (x, y) in enumerate(zip(a, b, strict=True)))


DISTANCE = "distance from the right tokens"
EOS = "it declares no eos_flag"
