"""A mistake is named where its answers are the submission's, and nothing is where they are not."""

import ast
import warnings
from itertools import count as count_up

import pytest
import torch

from minitransformer.checks import bugs
from minitransformer.exercises import mistakes
from minitransformer.exercises.answers import answer
from minitransformer.exercises.mistakes import (
    BEGIN,
    END,
    Candidate,
    Case,
    Group,
    Mistake,
    diagnose,
    edited,
    function,
    of_the_museum,
    pairs,
    slips,
    written,
    written_and_slips,
)
from minitransformer.exercises.variants import variants

SOURCE = f'''def mean(x, count):
    """The sum of the first `count` numbers, divided by count."""
    {BEGIN}
    return x[:count].sum() / max(count, 1)
    {END}
'''
MISTAKES = [
    Mistake("This is the sum.", ({" / max(count, 1)": ""},)),
    Mistake("All are summed.", ({"[:count]": ""}, "return x.sum() / max(count, 1)")),
    Mistake("No count is 0 / 0.", ({"max(count, 1)": "count"},)),
    Mistake("It raises.", ("raise KeyError",)),
]
SUM = edited(SOURCE, MISTAKES[0].edits[0])
CASES = [
    Case("three of four", (torch.tensor([1.0, 5.0, 3.0, 7.0]), 3), True),
    Case("two of five", (torch.tensor([2.0, 8.0, 1.0, 9.0, 4.0]), 2), True),
    Case("none", (torch.tensor([2.0, 8.0]), 0), False),
]
mean = function(SOURCE, "mean")


def said(fn, mistakes=MISTAKES, cases=CASES, **options):
    groups = [
        Group(written(mistakes, SOURCE, "mean")),
        Group(pairs(mistakes, SOURCE, "mean")),
        Group(slips(SOURCE, "mean"), first_only=True),
        Group(written_and_slips(mistakes, SOURCE, "mean"), first_only=True),
    ]
    return diagnose(fn, cases, mean, groups, tolerance=1e-6, **options)


def test_the_right_answers_have_no_mistake():
    assert said(lambda x, count: sum(x[:count], torch.tensor(0.0)) / (count or 1)).says == ()


def test_a_mistake_is_named_however_it_is_written():
    assert said(lambda x, count: torch.stack(list(x[:count]) or [x[0] * 0]).sum()).says == (
        "This is the sum.",
    )
    assert said(lambda x, count: torch.mean(x) * len(x) / max(count, 1)).says == (
        "All are summed.",
    )
    told = said(lambda x, count: x[:count].mean())  # NaN of an empty mean
    assert told.says == ("No count is 0 / 0.",)
    assert told.where == "on every input that was tried"


def test_the_same_failures_with_other_answers_are_not_named():
    assert said(lambda x, count: x[:count].sum() + 0.01 * count**2).says == ()
    assert said(lambda x, count: x.sum() / max(count, 1) + 1e-3).says == ()


def test_two_mistakes_at_once_are_both_named():
    assert said(lambda x, count: x.sum()).says == ("This is the sum. And: All are summed.",)


def test_another_dtype_or_shape_is_another_answer():
    assert said(lambda x, count: x[:count].sum().double()).says == ()
    assert said(lambda x, count: x[:count].sum()[None]).says == ()


def test_ordinary_input_is_enough_where_the_rest_differs():
    def fn(x, count):
        return x[:count].sum() if count else torch.tensor(-1.0)

    told = said(fn)
    assert told.says == ("This is the sum.",)
    assert told.where == "on ordinary input"


def test_what_is_right_on_ordinary_input_must_agree_on_all():
    def wrong_at_the_edge(x, count):
        return mean(x, count) if count else torch.tensor(-1.0)

    def elsewhere_too(x, count):
        return wrong_at_the_edge(x, count) + (len(x) == 5)

    for fn, says in ((wrong_at_the_edge, ("Edge.",)), (elsewhere_too, ())):
        group = Group(iter([Candidate(("Edge.",), fn)]))
        assert diagnose(wrong_at_the_edge, CASES, mean, [group], 1e-6).says == says


def test_what_nobody_wrote_down_is_named_by_its_kind():
    assert said(lambda x, count: x[: count + 1].sum() / max(count, 1)).says == (
        "Something is off by one: a count, an index, an exponent or an axis.",
    )
    (told,) = said(lambda x, count: x[: count + 1].sum()).says
    assert told.startswith("This is the sum. And: Something is off by one")


def test_what_raises_everywhere_speaks_for_itself():
    def fn(x, count):
        raise KeyError

    assert said(fn).says == ()


def test_an_error_counts_as_an_answer():
    def fn(x, count):
        if not count:
            raise ZeroDivisionError
        return x[:count].sum()

    mistakes = [Mistake("Empty sums raise.", ("1 / count\nreturn x[:count].sum()",))]
    assert said(fn, mistakes).says == ("Empty sums raise.",)


def test_a_mistake_that_never_ends_is_passed_over():
    endless = Mistake("It never ends.", ("while True: pass",))
    assert said(lambda x, count: x[:count].sum(), [endless, *MISTAKES]).says == (
        "This is the sum.",
    )


def test_what_it_answers_is_compared_where_it_raises_elsewhere():
    def fn(x, count):
        if len(x) == 5:
            raise IndexError
        return x[:count].sum()

    told = said(fn)
    assert told.says == ("This is the sum.",)
    assert told.where == "wherever it gives an answer"


def test_three_mistakes_that_answer_alike_are_none():
    same = [Mistake(f"Sum {i}.", ({" / max(count, 1)": ""},)) for i in range(3)]
    assert said(lambda x, count: x[:count].sum(), same[:2]).says == ("Sum 0.", "Sum 1.")
    assert "Sum" not in str(said(lambda x, count: x[:count].sum(), same))


def test_gradients_are_answers_too():
    def fn(x, count):
        return x[:count].detach().sum() / max(count, 1) + 0 * x.sum()

    cut = Mistake("Cut off.", ("return x[:count].detach().sum() / max(count, 1) + 0 * x.sum()",))
    assert said(fn, [cut]).says == ()  # the numbers are right
    assert said(fn, [cut], with_gradients=True).says == ("Cut off.",)


def test_what_is_changed_in_place_stays_with_who_changed_it():
    def fn(x, count):
        x += 1
        return x.sum()

    given = torch.ones(3)
    for with_gradients in (False, True):
        found = answer(fn, (given, 2), with_gradients)
        assert found.numbers.tolist() == [6.0]
    assert given.tolist() == [1.0, 1.0, 1.0]
    assert len(found.slopes) == 3


def test_gradients_tell_elements_apart():
    x = torch.tensor([1.0, 2.0, 3.0])
    slopes = [answer(fn, (x,), True).slopes for fn in (torch.clone, lambda x: x.flip(0))]
    assert not torch.equal(*slopes)


def test_an_answer_of_many_numbers_is_not_compared():
    assert answer(lambda: [0] * 900, ()).form.startswith("900 of: number, number")
    assert answer(lambda: [0] * 2000, ()).raised


def test_an_edit_must_stand_in_the_solution():
    with pytest.raises(ValueError, match="'median' does not stand in the solution"):
        edited(SOURCE, {"median": "mean"})
    other = edited(SOURCE, "return x.mean()")
    assert "sum()" not in other
    assert "return x.min()" in edited(other, {"mean()": "min()"})  # edits compose
    with pytest.raises(ValueError, match="'count' does not stand in the solution"):
        edited(other, {"count": "2"})  # in the signature and the docstring it does


def test_gradients_alone_do_not_hide_a_mistake():
    def fn(x, count):
        return x[:count].detach().sum() + 0 * x.sum()

    told = said(fn, with_gradients=True)
    assert told.says == ("This is the sum.",)
    assert told.where == "on ordinary input, but for gradients"


def _twice(x):
    return torch.stack((x, 2 * x))


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        (lambda x: 0.4 * _twice(x), "Every number is the right one times a factor."),
        (lambda x: -_twice(x), "Every number is the right one times a factor."),
        (lambda x: _twice(x).T.reshape(2, -1), "The right numbers stand in the wrong places."),
        (lambda x: _twice(x).flip(1), "The right numbers stand in the wrong places."),
        (lambda x: _twice(x) + x, ""),
        (lambda x: _twice(x) * 0, ""),
        (lambda x: _twice(x) * float("nan"), ""),
    ],
)
def test_what_nothing_explains_is_related_to_the_right_answer(wrong, says):
    cases = [Case("one", (torch.tensor([1.0, 5.0, 3.0]),), True)]
    cases.append(Case("two", (torch.tensor([2.0, 7.0, 4.0, 9.0]),), True))
    told = str(diagnose(wrong, cases, _twice, [], tolerance=1e-6))
    assert told.startswith(says)
    assert bool(told) == bool(says)


def test_few_numbers_stand_in_other_places_by_chance():
    cases = [Case("one", (torch.tensor([1.0, 0.0, 0.0, 1.0, 0.0]),), True)]
    assert diagnose(lambda x: x.flip(0), cases, lambda x: x, [], tolerance=1e-6).says == ()


def test_nobody_is_warned_of_what_is_odd_in_a_slip():
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        function("def first(x):\n    return 0[1]", "first")
    assert heard == []


def test_bugs_that_take_something_else_are_not_tried():
    bodies = {one.name: 1 + len(one.also) for one in bugs("attention") if not one.conventions}
    assert len(list(of_the_museum(bugs("attention")))) == sum(bodies.values())
    assert len(bodies) < len(bugs("attention"))


def test_the_search_ends_after_a_count_of_calls(monkeypatch):
    monkeypatch.setattr(mistakes, "CALLS", 50)
    called = []

    def other(x, count):
        called.append(count)
        return x.max()

    endless = Group(Candidate(("Another.",), other) for _ in count_up())
    assert diagnose(lambda x, count: x.min(), CASES, mean, [endless, endless], 1e-6).says == ()
    assert 50 <= len(called) <= 60


def test_of_vague_candidates_the_first_is_named_on_every_level():
    def fn(x, count):
        return x[:count].sum() if count else torch.tensor(-1.0)

    vague = [Candidate((says,), function(SUM, "mean")) for says in ("One.", "Two.", "Three.")]
    assert diagnose(fn, CASES, mean, [Group(iter(vague), first_only=True)], 1e-6).says == ("One.",)
    assert diagnose(fn, CASES, mean, [Group(iter(vague))], 1e-6).says == ()


def test_so_many_of_a_group_are_tried():
    candidate = Candidate(("This is the sum.",), function(SUM, "mean"))
    other = Candidate(("Another.",), lambda x, count: x.max())
    for most, says in ((1, ()), (2, ("This is the sum.",)), (None, ("This is the sum.",))):
        group = Group(iter([other, candidate]), most)
        assert diagnose(candidate.fn, CASES, mean, [group], 1e-6).says == says


def test_another_body_has_no_slips_of_this_one():
    assert list(written_and_slips([Mistake("Mean.", ("return x.mean()",))], SOURCE, "mean")) == []
    assert list(written_and_slips(MISTAKES[:1], SOURCE, "mean"))


# ---- every change of one place -------------------------------------------------------------------


def test_variants_differ_from_the_source_and_from_each_other():
    made = [source for _, source in variants(SOURCE)]
    assert len(made) == len(set(made)) > 15
    assert ast.unparse(ast.parse(SOURCE)) not in made
    for source in made:
        tree = ast.parse(source)
        assert ast.get_docstring(tree.body[0]) == ast.get_docstring(ast.parse(SOURCE).body[0])


@pytest.mark.parametrize(
    ("right", "wrong", "slip"),
    [
        ("return x / y", "return x", "A division is missing."),
        ("return x / y", "return x * y", "Something is multiplied with what it should be divided"),
        ("return x - y", "return y - x", "A difference is taken the wrong way round."),
        ("return x @ y", "return y @ x", "The two sides of a matrix product"),
        ("return ~x", "return x", "A condition is used upside down"),
        ("return x < y", "return x <= y", "At the boundary it decides the other way"),
        ("return x == y", "return x != y", "A condition is used upside down"),
        ("return x.exp().sum()", "return x.sum()", "A step is missing: the right answers without"),
        ("return x.sum(dim=-1)", "return x.sum(dim=0)", "Something goes along another axis"),
        ("return x.sum(dim=-1)", "return x.mean(dim=-1)", "mean is taken where sum belongs."),
        ("return x[:3]", "return x[:4]", "Something is off by one"),
        ("return x[:y]", "return x[:y - 1]", "Something is off by one"),
        ("return x[1:]", "return x", "The whole is taken where a part of it belongs."),
        ("return x * y", "return x[:1] * y", "Every sequence of the batch is given what belongs"),
        ("return x * y", "return y * y", "y is used where x belongs."),
        ("x = x + 1\n    return x", "pass\n    return x", "A step is missing."),
        ("if x:\n        y = 1\n    return y", "y = 1\n    return y", "Something is done always"),
        ("return x if y else 2", "return x", "Of two cases only one is treated."),
        ("return f(x, y)", "return f(y, x)", "Two things have changed places."),
        ("return float('-inf')", "return float(-1e9)", "-inf is replaced by -1e9"),
        ("return x.sum(keepdim=True)", "return x.sum()", "keepdim is not what it should be."),
    ],
)
def test_a_slip_is_described(right, wrong, slip):
    head = "def f(x, y):\n    "
    made = {source: told for told, source in variants(head + right)}
    assert made[ast.unparse(ast.parse(head + wrong))].startswith(slip)
