"""What a learner writes, from a padding mask to a whole decoder, and what says whether it is right.

from minitransformer.exercises import check, hint

check("padding_mask", padding_mask)  # points, and the first mistake in words
hint("padding_mask")                 # three steps: hint("padding_mask", 2), hint(..., 3)
"""

from minitransformer.exercises.chapters import EXERCISES
from minitransformer.exercises.exercise import Exercise, check, find, hint
from minitransformer.exercises.feedback import Feedback

__all__ = ["EXERCISES", "Exercise", "Feedback", "check", "find", "hint"]
