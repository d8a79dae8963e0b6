"""Stored answers: a package for students says the same, and holds no solution."""

import re
from pathlib import Path

import pytest
import torch

import minitransformer
from minitransformer.exercises import EXERCISES, check_in_turn
from minitransformer.exercises.answers import Recalled, StoredCall, call, form_and_numbers
from minitransformer.exercises.mistakes import BEGIN, END
from minitransformer.exercises.stored import cut

PACKAGE = Path(minitransformer.__file__).parent
CHAPTERS = PACKAGE / "exercises" / "chapters"
SHORTEST = 24  # letters of a line that could give something away
LIBRARY = {  # lines of the library that the course explains, in it whoever solves the exercises
    "alive = mask.any(dim=-1, keepdim=True)",
    "query = query.masked_fill(~alive, 0.0)",
    "scores = query @ key.transpose(-2, -1) / query.shape[-1] ** 0.5",
    "weights = scores.masked_fill(~mask, float('-inf')).softmax(dim=-1)",
    "output / total.masked_fill(total == 0, 1.0)",
    "ones.tril(num_keys - num_queries)",
    "a, b = x.chunk(2, dim=-1)",
    "length = attention_mask.shape[1]",
    "real = attention_mask != 0",
    "for i, row in enumerate(rows):",
}


def lines_of(source: str) -> set[str]:
    """Long ones, without `return`, in the quotes that ast.unparse writes."""
    lines = (line.strip().removeprefix("return ") for line in source.splitlines())
    return {line.replace('"', "'") for line in lines if len(line) >= SHORTEST}


def solutions() -> set[str]:
    found = (re.search(f"{BEGIN}\n(.*?){END}", e.source, re.DOTALL)[1] for e in EXERCISES.values())
    return set().union(*map(lines_of, found))


def chapters() -> dict[str, str]:
    return {path.stem: path.read_text(encoding="utf-8") for path in CHAPTERS.glob("*.py")}


def test_no_line_of_a_solution_is_in_the_package_for_students():
    inside = set().union(*map(lines_of, cut(chapters(), hints=3).values()))
    others = [path for path in PACKAGE.rglob("*.py") if path.parent != CHAPTERS]
    library = set().union(*(lines_of(path.read_text(encoding="utf-8")) for path in others))
    assert len(solutions()) > 100
    assert solutions() & set().union(*map(lines_of, chapters().values())) == solutions()
    assert solutions() & inside <= {
        "real = attention_mask != 0"
    }  # of a helper, the task's own words
    assert solutions() & library == LIBRARY


def test_mistakes_and_hints_are_cut_with_what_only_they_used():
    before, after = chapters(), cut(chapters(), hints=2)
    assert "POOLED" in before["padding"]
    assert "OF_THE_SCORES" in before["heads"]
    for name, source in after.items():
        assert ".mistake" not in source
        assert "POOLED" not in source
        assert "OF_THE_SCORES" not in source
        compile(source, name, "exec")
    assert [h in after["padding"] for h in EXERCISES["padding_mask"].hints] == [True, True, False]
    assert "def padding_mask(attention_mask: Tensor) -> Tensor:" in after["padding"]
    assert after["padding"].count("NotImplementedError") == 3


def test_an_answer_is_recalled_for_the_arguments_that_it_was_given_for():
    def twice(x):
        """Twice."""

    x = torch.tensor([1.0, 2.0])
    calls = [StoredCall(*form_and_numbers(((x,), {})), 2 * x, {0: torch.full((2,), 3.0)})]
    recalled = Recalled(twice, lambda: calls)
    assert recalled.__name__ == "twice"
    assert torch.equal(recalled(x + 1e-9), 2 * x)
    recalled(x).zero_()
    found, slopes = call(recalled, (x,), with_gradients=True)
    assert torch.equal(found, 2 * x)
    assert torch.equal(slopes[0], torch.full((2,), 3.0))
    assert call(recalled, (x,), with_gradients=False)[1] == {}
    for other in (x + 1, x[:1], x.double()):
        with pytest.raises(LookupError):
            recalled(other)


def test_functions_are_told_apart_by_what_they_close_over():
    def adds(table):
        return lambda x: x + table[0]

    one, same, other = (form_and_numbers((adds(t),)) for t in ([1], [1], [2]))
    assert one[0] == same[0]
    assert torch.equal(one[1], same[1])
    assert not torch.equal(one[1], other[1])


def test_checks_that_are_asked_for_in_turn_run_once(monkeypatch):
    """And again from the first one on, so that a helper that is defined anew is seen."""
    one = EXERCISES["softmax"]
    runs = []
    run = type(one).run
    monkeypatch.setattr(type(one), "run", lambda *given: runs.append(given) or run(*given))
    space: dict = {"torch": torch, "helper": lambda x: x}
    exec("def softmax(scores):\n    return helper(scores)", space)
    numbers = range(len(one.aims))
    assert {check_in_turn("softmax", space["softmax"], n).score for n in numbers} == {0}
    assert len(runs) == 1
    exec(one.source.replace("def softmax", "def helper"), space)
    assert {check_in_turn("softmax", space["softmax"], n).score for n in numbers} == {one.points}
    assert len(runs) == 2
    other = lambda scores: scores  # noqa: E731
    assert check_in_turn("softmax", other, 1).score == 0
    mask = EXERCISES["causal_mask"]
    assert check_in_turn("causal_mask", mask.solution, 1).exercise is mask
