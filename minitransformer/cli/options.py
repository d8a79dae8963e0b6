"""Options that several verbs have: the device, and numbers that are checked."""

import argparse
from collections.abc import Callable

import torch

from minitransformer.data.files import InputError

DEVICES = ("auto", "cpu", "cuda", "mps")


def help_of(parser: argparse.ArgumentParser) -> Callable[[argparse.Namespace], int]:
    """What a command does without a verb: print its help."""

    def verb(options: argparse.Namespace) -> int:
        parser.print_help()
        return 0

    return verb


def add_device(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--device",
        choices=DEVICES,
        default="auto",
        help="where the model runs (default: auto, a GPU where torch finds one)",
    )


def find_device(name: str) -> torch.device:
    """Raises InputError where it is not there."""
    there = {
        "cuda": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available(),
        "cpu": True,
    }
    found = [kind for kind, is_there in there.items() if is_there]
    if name not in ("auto", *found):
        raise InputError(f"--device {name}: torch finds none here, only {', '.join(found)}")
    return torch.device(found[0] if name == "auto" else name)


def integer(least: int, most: int) -> Callable[[str], int]:
    """What reads an option that is a whole number in this range."""

    def read(text: str) -> int:
        try:
            number = int(text)
        except ValueError:  # or so many digits that Python reads them no more
            number = None
        if number is None or not least <= number <= most:
            got = text if len(text) <= 40 else text[:40] + "…"
            raise argparse.ArgumentTypeError(
                f"must be a whole number from {least} to {most}, got {got!r}"
            )
        return number

    return read


LARGEST = 2**31 - 1  # of anything
positive = integer(1, LARGEST)
seed = integer(0, 2**32 - 1)
