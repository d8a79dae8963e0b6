"""How wrong answers are related to the right ones, said where no mistake explains them."""

import torch

from minitransformer.exercises.answers import Answer


def times_a_factor(found: Answer, right: Answer, tolerance: float) -> bool:
    """By which every number is multiplied; not 0, and not of a single number."""
    a, b = found.numbers, right.numbers
    if found.form != right.form or len(a) < 2 or not (a.isfinite() & b.isfinite()).all():
        return False
    factor = float((a @ b) / (b @ b).clamp(min=1e-30))
    return abs(factor) > 1e-6 and _near(a, factor * b, tolerance)


def in_other_places(found: Answer, right: Answer, tolerance: float) -> bool:
    """The same numbers, of which there are some, in another order."""
    a, b = found.numbers, right.numbers
    return a.shape == b.shape and len(b.unique()) > 3 and _near(a.sort()[0], b.sort()[0], tolerance)


def _near(a: torch.Tensor, b: torch.Tensor, tolerance: float) -> bool:
    return torch.allclose(a, b, rtol=1e-4, atol=tolerance)


RELATIONS = {  # what is said -> whether it holds
    "Every number is the right one times a factor. Is there a division, a mean or a scale too "
    "many, or one too few?": times_a_factor,
    "The right numbers stand in the wrong places. Are two axes exchanged, or is something cut "
    "where it should be moved?": in_other_places,
}
