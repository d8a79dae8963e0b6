"""What a learner writes, from a padding mask to a whole decoder, and what says whether it is right.

from minitransformer.exercises import check, hint, progress

check("padding_mask", padding_mask)  # the mistake in words, an example, and points
hint("padding_mask")                 # three steps: hint("padding_mask", 2), hint(..., 3)
progress()                           # what is done, and what comes next
"""

from minitransformer.exercises.chapters import EXERCISES
from minitransformer.exercises.exercise import (
    Exercise,
    check,
    check_in_turn,
    find,
    hint,
    limit_hints,
    solution,
)
from minitransformer.exercises.feedback import Feedback
from minitransformer.exercises.standings import Progress, read_standings

__all__ = [
    "EXERCISES",
    "Exercise",
    "Feedback",
    "check",
    "check_in_turn",
    "find",
    "hint",
    "limit_hints",
    "progress",
    "solution",
]


def progress() -> Progress:
    """How far you are, by the file in which `check` and `hint` keep it."""
    return Progress(EXERCISES, read_standings())
