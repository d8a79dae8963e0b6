# ruff: noqa: F401, I001 -- each chapter registers its exercises, in the order of this list
"""The exercises, chapter by chapter, in the order that builds a transformer."""

from minitransformer.exercises.chapters import padding
from minitransformer.exercises.chapters import attention
from minitransformer.exercises.chapters import heads
from minitransformer.exercises.chapters import encoder
from minitransformer.exercises.chapters import causal
from minitransformer.exercises.chapters import encoder_decoder
from minitransformer.exercises.chapters import labels
from minitransformer.exercises.chapters import training
from minitransformer.exercises.chapters import generation
from minitransformer.exercises.chapters import real_models
from minitransformer.exercises.chapters import museum
from minitransformer.exercises.chapters import faster
from minitransformer.exercises.chapters import how_we_know
from minitransformer.exercises.exercise import EXERCISES

__all__ = ["EXERCISES"]
