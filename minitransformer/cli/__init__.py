"""The command line: `minitransformer train | generate | show | check | exercise`."""

from minitransformer.cli.main import main

__all__ = ["main"]
