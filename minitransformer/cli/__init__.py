"""The command line: train, runs, generate, evaluate, show, explore, export, check, exercise."""

from minitransformer.cli.main import main

__all__ = ["main"]
