"""The command line: `minitransformer train | runs | generate | show | check | exercise`."""

from minitransformer.cli.main import main

__all__ = ["main"]
