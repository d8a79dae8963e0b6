"""A hint that is followed to the letter gives full points, or a mistake that the feedback names.

What follows each hint stands in tests/hinted.py. Where one fails here, the hint is at fault.
"""

import pytest
from hinted import FOLLOWED, Followed

from minitransformer.exercises import EXERCISES, Feedback


def of(steps: tuple[int, ...]) -> list:
    """What follows the hints of these steps, as parameters."""
    return [
        pytest.param(followed, id=f"{followed.function.__name__}-{followed.step}")
        for followed in FOLLOWED
        if followed.step in steps
    ]


def feedback_on(followed: Followed) -> Feedback:
    return EXERCISES[followed.function.__name__].run(followed.function)


def names_the_mistake(feedback: Feedback) -> bool:
    """By a known mistake; or, where tests are what is handed in, by the bug that they let pass."""
    let_pass = "Your test passes a broken attention: "
    failed = [result for result in feedback.report if result.outcome == "fail"]
    tests = feedback.exercise.name == "catch_the_bug"
    return bool(feedback.mistake) or (tests and all(let_pass in r.diagnosis for r in failed))


@pytest.mark.parametrize("followed", of((3,)))
def test_the_third_hint_gives_full_points(followed):
    feedback = feedback_on(followed)
    assert feedback.passed, str(feedback)


@pytest.mark.slow
@pytest.mark.parametrize("followed", of((1, 2)))
def test_an_earlier_hint_gives_full_points_or_a_named_mistake(followed):
    feedback = feedback_on(followed)
    assert feedback.score > 0 or feedback.mistake, str(feedback)
    assert feedback.passed or names_the_mistake(feedback), str(feedback)


def test_the_third_hint_of_every_exercise_is_followed():
    names = [followed.function.__name__ for followed in FOLLOWED if followed.step == 3]
    assert sorted(names) == sorted(EXERCISES)
