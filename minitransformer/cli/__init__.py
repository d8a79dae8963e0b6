"""The command line: train, runs, generate, evaluate, show, export, check, exercise."""

from minitransformer.cli.main import main

__all__ = ["main"]
