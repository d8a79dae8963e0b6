"""Options that several verbs have: the device, and numbers that are checked."""

import argparse

import torch

from minitransformer.data.files import InputError

DEVICES = ("auto", "cpu", "cuda", "mps")


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


def positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"must be 1 or more, got {number}")
    return number


def seed(text: str) -> int:
    number = int(text)
    if not 0 <= number < 2**32:
        raise argparse.ArgumentTypeError(f"must be from 0 to 2**32 - 1, got {number}")
    return number
