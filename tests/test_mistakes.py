"""Every mistake that an exercise carries costs points, and is named by its own sentence."""

import pytest

from minitransformer.exercises import EXERCISES
from minitransformer.exercises.mistakes import edited, function

EDITS = [  # in the quick run the first of each exercise
    pytest.param(
        name,
        mistake.says,
        edit,
        id=f"{name}-{number}-{letter}",
        marks=[] if (number, letter) == (1, "a") else pytest.mark.slow,
    )
    for name, one in EXERCISES.items()
    for number, mistake in enumerate(one.mistakes, 1)
    for letter, edit in zip("abcdefghijklmnopqrstuvwxyz", mistake.edits, strict=False)
]


@pytest.mark.parametrize(("name", "says", "edit"), EDITS)
def test_it_costs_points_and_is_named(name, says, edit):
    one = EXERCISES[name]
    feedback = one.run(function(edited(one.source, edit), name))
    assert feedback.score < feedback.points
    assert says in feedback.diagnosis.says, str(feedback)
    assert str(feedback).splitlines()[2].startswith(says[:40])
    assert "✗" in feedback.to_html()


@pytest.mark.parametrize("name", [name for name in EXERCISES if name != "catch_the_bug"])
def test_an_exercise_carries_its_usual_mistakes(name):
    assert len(EXERCISES[name].mistakes) >= 8
    says = [mistake.says for mistake in EXERCISES[name].mistakes]
    assert len(set(says)) == len(says)
