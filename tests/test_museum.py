"""The checks are checked: each fails on something, and none fails on what is right."""

import copy
import dataclasses
from collections import Counter
from functools import cache

import pytest
from conftest import known_bugs, outcome
from correct_attentions import CORRECT

from minitransformer.checks import (
    CHECKS,
    TIERS,
    Report,
    checks_of,
    diagnose,
    run_checks,
)
from minitransformer.checks.engine import diagnosis, running
from minitransformer.checks.engine.bugs import Bug, bugs
from minitransformer.checks.engine.check import Check
from minitransformer.checks.models import ready

ALL = bugs()
BODIES = known_bugs()
SUBJECTS = {name: subject for (name, body), subject in BODIES.items() if body == 0}


def is_first_of_its_kind(piece: Bug) -> bool:
    """A bug that several kinds of models have is a piece for each of them."""
    bugs = [one.name.removesuffix(f" ({one.kind})") for one in ALL]
    place = ALL.index(piece)
    return bugs.index(bugs[place]) == place


def parameters(marks_of=lambda piece: ()):
    return [pytest.param(p, id=p.name.replace(" ", "-"), marks=marks_of(p)) for p in ALL]


def proves_a_check(piece: Bug) -> bool:
    """Is it the first of its kind that a check is named for?"""
    earlier = [one for one in ALL[: ALL.index(piece)] if one.kind == piece.kind]
    return bool(set(piece.caught_by) - {name for one in earlier for name in one.caught_by})


def slow_again(piece: Bug):
    """Models take longest: in the quick tests those alone that prove a check, none of pairs."""
    if piece.kind in ("encoder", "decoder", "encoder-decoder"):
        quick = piece.kind != "encoder-decoder" and proves_a_check(piece)
    else:
        quick = is_first_of_its_kind(piece)
    return () if quick else pytest.mark.slow


def is_comparable(piece: Bug) -> bool:
    return SUBJECTS[piece.name].comparable


def slow_where_all_models_are_compared(piece: Bug):
    return () if is_comparable(piece) else pytest.mark.slow


every_piece = pytest.mark.parametrize("piece", parameters())
every_report = pytest.mark.parametrize("piece", parameters(slow_again))
every_correct = pytest.mark.parametrize(
    ("subject", "tier"),
    [pytest.param(*one, id=f"{one[0].name}-{one[1]}") for one in CORRECT],
)


@pytest.fixture(autouse=True, scope="module")
def remembered(bugs_asked_once):
    """Reports too are made of what was asked once."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(running, "run_check", lambda check, subject, *_: outcome(check, subject))
        yield


@cache
def report_of(name: str) -> Report:
    """What the checks find in a piece at its own tier."""
    (piece,) = [one for one in ALL if one.name == name]
    return run_checks(SUBJECTS[name], piece.tier)


def named_of(piece: Bug) -> Report:
    """Of models that core checks catch, the checks that the piece names: all of them take long."""
    if piece.tier != "core" or SUBJECTS[piece.name].comparable:
        return report_of(piece.name)
    named = [CHECKS[piece.kind][name] for name in piece.caught_by]
    results = [outcome(check, SUBJECTS[piece.name]) for check in named]
    return Report(piece.kind, piece.name, piece.tier, results)


# ---- the pieces are broken, as they say ----------------------------------------------------------


@every_report
def test_a_piece_is_caught_by_the_checks_that_it_names(piece: Bug):
    assert piece.caught_by
    assert set(piece.caught_by) <= set(CHECKS[piece.kind])
    assert set(piece.caught_by) <= set(named_of(piece).failed)


@every_report
def test_a_piece_passes_every_tier_below_its_own(piece: Bug):
    below = [result for result in named_of(piece) if result.tier != piece.tier]
    assert [result.check for result in below if result.outcome == "fail"] == []


@pytest.mark.parametrize("piece", parameters(slow_where_all_models_are_compared))
def test_a_piece_is_recognised(piece: Bug):
    """By its own name first: another one beside it gives fewer of its numbers."""
    report = diagnose(report_of(piece.name), SUBJECTS[piece.name])
    assert report.likely[0] == piece.name
    assert len(report.likely) <= diagnosis.MOST
    assert piece.diagnosis in report.diagnosis


@pytest.mark.slow
@pytest.mark.parametrize("piece", [p for p in parameters() if p.values[0].also])
def test_a_piece_is_caught_and_recognised_in_its_other_bodies(piece: Bug):
    for body in range(1, 1 + len(piece.also)):
        report = run_checks(BODIES[piece.name, body], piece.tier)
        assert set(piece.caught_by) <= set(report.failed)
        assert diagnose(report, BODIES[piece.name, body]).likely[0] == piece.name


NAMED_SECOND = {  # they fail the checks that another one fails, by numbers that are no counts
    "a norm over time",
    "a mask in evaluation only (encoder)",
    "a mask added as it is (encoder)",
    "a causal flag while decoding",
}


@pytest.mark.slow
@pytest.mark.parametrize("piece", [p for p in parameters() if not is_comparable(p.values[0])])
def test_a_model_with_other_weights_is_named(piece: Bug, monkeypatch):
    """As a user's is. Counts of pairs tell more of them apart than the order of the museum."""
    subject = BODIES[piece.name, len(piece.also)]
    model, drawn = copy.deepcopy(subject.fn), ready.seeded
    with monkeypatch.context() as patch:
        patch.setattr(ready, "seeded", lambda seed: drawn(seed + 70))
        ready.draw_large(model)
    subject = dataclasses.replace(subject, fn=model, redraw=False)
    likely = diagnose(run_checks(subject, piece.tier), subject).likely
    assert likely.index(piece.name) == (piece.name in NAMED_SECOND)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["decoder", "encoder-decoder"])
def test_the_only_twins_are_one_model_with_other_promises(kind):
    """Bare -inf fails core checks with padding on the left, and robust ones on the right. Asked all
    on both sides, the two give the same numbers, and both are named."""
    names = [f"NaN for a row of padding ({kind})", f"NaN from padding on the left ({kind})"]
    twin = BODIES[names[1], 1]
    assert diagnose(run_checks(twin, "strict"), twin).likely == tuple(names)


@every_report
def test_a_piece_answers(piece: Bug):
    """What only raises errors needs no suite to be found."""
    assert named_of(piece).ran


@every_piece
def test_a_piece_tells_its_story(piece: Bug):
    assert piece.story
    assert piece.source
    assert piece.diagnosis
    assert piece.tier in TIERS


def test_pieces_have_names_of_their_own():
    assert [name for name, times in Counter(one.name for one in ALL).items() if times > 1] == []
    assert len(ALL) >= 40


# ---- a check that cannot fail proves nothing -----------------------------------------------------


@pytest.mark.parametrize("kind", CHECKS)
def test_every_check_fails_on_some_piece(kind):
    """And in words: an error that a piece raises fails any check, and proves none."""

    def fails(one: Check, piece: Bug) -> bool:
        result = running.run_check(one, SUBJECTS[piece.name])
        return result.outcome == "fail" and not result.raised

    unproved = []
    for one in CHECKS[kind].values():
        asked = [piece for piece in bugs(kind) if one in checks_of(kind, piece.tier)]
        asked.sort(key=lambda piece: one.name not in piece.caught_by)  # what names it comes first
        if not any(fails(one, piece) for piece in asked):
            unproved.append(one.name)
    assert unproved == []


# ---- no false alarms -----------------------------------------------------------------------------


@every_correct
def test_what_is_right_passes(subject, tier):
    report = run_checks(subject, tier)
    assert report.passed, str(report)


@every_correct
def test_what_is_right_is_like_no_known_bug(subject, tier):
    assert diagnose(run_checks(subject, tier), subject).likely == ()


def test_correct_attentions_of_every_tier_are_at_hand():
    assert {tier for _, tier in CORRECT} == set(TIERS)
    assert len(CORRECT) >= 10
