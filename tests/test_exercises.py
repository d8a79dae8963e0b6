"""Every exercise: its stub earns nothing, its solution everything, each mistake loses points."""

import ast
import importlib
import inspect
import json
import re
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest
import torch

from minitransformer.checks.engine.report import WIDTH
from minitransformer.cli import main
from minitransformer.data.files import InputError
from minitransformer.exercises import EXERCISES, check, hint, limit_hints, progress, solution
from minitransformer.exercises.answers import expect_same
from minitransformer.exercises.exercise import Draw
from minitransformer.exercises.export import EXPORTS, export
from minitransformer.exercises.mistakes import BEGIN, END

NAMES = list(EXERCISES)


def written(source: str, name: str):
    """The function that a source defines."""
    space: dict = {"__name__": "submission"}
    exec("import math\n" + source, space)
    return space[name]


def test_there_are_enough_and_they_build_up():
    assert len(NAMES) >= 24
    chapters = [one.chapter for one in EXERCISES.values()]
    assert chapters == sorted(chapters)
    assert set(chapters) == set(range(1, 14))


@pytest.mark.parametrize("name", NAMES)
def test_the_solution_earns_everything_whatever_the_seed(name):
    one = EXERCISES[name]
    for seed in (0, 1, 2, 12345):
        feedback = one.run(written(one.source, name), seed=seed)
        assert all(result.measures for result in feedback.report if result.measured is not None)
        assert feedback.score == feedback.points > 0, str(feedback)
        assert feedback.headline.endswith("all right")
    assert "✗" not in feedback.to_html()


@pytest.mark.parametrize("name", NAMES)
def test_the_stub_earns_nothing(name):
    one = EXERCISES[name]
    feedback = one.run(written(one.stub, name))
    assert feedback.score == 0
    if one.start is None:
        assert not feedback.started
        assert str(feedback) == f"{name}: not written yet (0 of {one.points} points)"


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("answer", [None, 0, "the first argument"])
def test_an_answer_without_thought_earns_nothing(name, answer):
    def blank(*arguments):
        return arguments[0] if answer == "the first argument" else answer

    assert EXERCISES[name].run(blank, diagnosed=False).score == 0


@pytest.mark.parametrize("name", NAMES)
def test_what_a_learner_gets_is_complete_and_holds_no_solution(name):
    one = EXERCISES[name]
    solution = re.search(f"{BEGIN}\n(.*?){END}", one.source, re.DOTALL)[1]
    lines = [line.strip() for line in solution.splitlines() if len(line.strip()) > 12]
    for text in (one.stub, one.text()):
        assert BEGIN not in text
        assert not any(line in text for line in lines if one.start is None)
    task = ast.get_docstring(ast.parse(one.stub).body[-1])
    assert task == inspect.getdoc(one.solution)  # without indentation: Python 3.13 keeps none
    assert len(one.hints) == 3
    assert one.about.endswith((".", "?"))
    for aim in one.aims:
        assert aim.check.statement.endswith(".")


def test_hints_are_three_steps(capsys):
    hint("attention", 2)
    assert "Hint 2 of 3: Masked scores become -inf" in capsys.readouterr().out
    with pytest.raises(ValueError, match="there are hints 1 to 3, got 4"):
        hint("attention", 4)
    with pytest.raises(ValueError, match="no exercise 'atention': did you mean attention"):
        hint("atention")
    with pytest.raises(ValueError, match="no exercise 'tokenizer': there are padding_mask, "):
        hint("tokenizer")


def test_an_instructor_may_keep_the_last_hint(capsys, tmp_path):
    try:
        limit_hints(2)
        hint("attention", 2)
        assert "Hint 2 of 2" in capsys.readouterr().out
        with pytest.raises(ValueError, match="there are hints 1 to 2, got 3"):
            hint("attention", 3)
        limit_hints(0)
        with pytest.raises(ValueError, match="there are no hints here, got 1"):
            hint("attention")
    finally:
        limit_hints(3)
    for to in EXPORTS:
        export(["causal_mask"], to, tmp_path / to, hints=2)
        if to == "solutions":
            continue
        texts = [p.read_text() for p in (tmp_path / to).rglob("*") if p.suffix in (".py", ".ipynb")]
        assert any("limit_hints(2)" in text for text in texts)
    export(["causal_mask"], "nbgrader", tmp_path / "all")
    assert "limit_hints" not in next((tmp_path / "all").rglob("*.ipynb")).read_text()


def test_progress_is_kept_and_the_solution_is_for_the_end(capsys, tmp_path, monkeypatch):
    file = tmp_path / "deep" / "progress.json"
    monkeypatch.setenv("MINITRANSFORMER_PROGRESS", str(file))
    one = EXERCISES["softmax"]
    check("softmax", written(one.stub, "softmax"))
    assert not file.exists()  # the empty stub is no attempt
    with pytest.raises(ValueError, match="is for who has all"):
        solution("softmax")
    check("softmax", written(one.source, "softmax"))
    check("softmax", lambda scores: scores)
    hint("attention", 3)
    hint("attention", 1)  # read again; the third one stays read
    told = progress()
    assert told.done == ["softmax"]
    assert told.score == one.points
    assert told.next == "padding_mask"
    assert f"✓ softmax                  {one.points:>2} of {one.points:>2}   2 attempts" in str(
        told
    )
    assert "… attention                 0 of" in str(told)
    assert "next: padding_mask (chapter 1: A padding mask)" in str(told)
    assert "2 attempts" in told._repr_html_()
    capsys.readouterr()
    solution("softmax")
    solution("attention")  # its last hint was read
    printed = capsys.readouterr().out
    assert "SOLUTION" not in printed
    assert written(printed, "attention")
    assert main(["exercise", "progress"]) == 0
    assert "1 of" in capsys.readouterr().out
    assert main(["exercise", "solution", "mean_pool"]) == 2


def test_an_exercise_that_is_worth_less_today_counts_as_much_as_it_is_worth(tmp_path, monkeypatch):
    file = tmp_path / "progress.json"
    file.write_text('{"softmax": {"attempts": 1, "best": 999, "hint": 0}}')
    monkeypatch.setenv("MINITRANSFORMER_PROGRESS", str(file))
    assert progress().score == EXERCISES["softmax"].points
    assert progress().done == ["softmax"]


def test_a_broken_file_of_progress_is_told_and_kept(tmp_path, monkeypatch):
    file = tmp_path / "progress.json"
    file.write_text("{broken")
    monkeypatch.setenv("MINITRANSFORMER_PROGRESS", str(file))
    assert check("softmax", EXERCISES["softmax"].run).score == 0  # which goes on
    with pytest.raises(InputError, match="cannot be read as progress in the exercises"):
        progress()
    assert file.read_text() == "{broken"
    monkeypatch.setenv("MINITRANSFORMER_PROGRESS", "")
    assert progress().score == 0


def test_a_home_that_cannot_be_written_keeps_nobody_from_checking(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("MINITRANSFORMER_PROGRESS", str(tmp_path / "file" / "progress.json"))
    assert not check("softmax", lambda scores: scores).passed


def test_borrowing_the_package_is_told():
    source = """import minitransformer as mt
def helper(attention_mask): return mt.padding_mask(attention_mask)
def padding_mask(attention_mask): return helper(attention_mask)"""
    feedback = check("padding_mask", written(source, "padding_mask"))
    assert feedback.score == 0
    assert "yours to write, but it uses mt of minitransformer" in str(feedback)


class Beside:
    """A class that stands beside a learner's function."""

    @staticmethod
    def mask(attention_mask):
        from minitransformer import padding_mask

        return padding_mask(attention_mask)


def test_borrowing_is_told_wherever_it_is_done():
    solution = EXERCISES["padding_mask"].solution

    def imports(attention_mask):
        from minitransformer.exercises import EXERCISES

        return EXERCISES["padding_mask"].solution(attention_mask)

    def imports_inside(attention_mask):
        def inner():
            import minitransformer

            return minitransformer.padding_mask(attention_mask)

        return inner()

    def by_name(attention_mask):
        import importlib

        return importlib.import_module("minitransformer").padding_mask(attention_mask)

    def closed_over(attention_mask):
        return solution(attention_mask)

    def by_default(attention_mask, by=solution):
        return by(attention_mask)

    def by_class(attention_mask):
        return Beside.mask(attention_mask)

    ways = [imports, imports_inside, by_name, closed_over, by_default, by_class, solution]
    for fn in [*ways, lambda attention_mask: by_class(attention_mask)]:
        feedback = check("padding_mask", fn)
        assert feedback.score == 0, fn.__name__
        assert "yours to write, but it uses" in str(feedback), fn.__name__


def test_a_name_that_is_only_like_ours_is_not_borrowed():
    source = """from minitransformer import softmax_of  # stands there, and is not used
def attention(query, key, value, mask):
    scores = (query @ key.mT / query.shape[-1] ** 0.5).masked_fill(~mask, float("-inf"))
    return scores.softmax_of(dim=-1) @ value"""
    source = source.replace("softmax_of", "attention").replace("scores.attention", "scores.softmax")
    assert check("attention", written(source, "attention")).passed


# What a test may do that knows only how often it was called.
COUNTERS = {
    "the first three are right": "assert N[0] <= 3",
    "the first 24 are right": "assert N[0] <= 24",
    "one of two": "assert N[0] % 2",
    "one of three": "assert N[0] % 3",
    "those that are right come first": "assert N[0] <= 6 or N[0] > 24 and (N[0] - 25) % 9 < 6",
    "they come last": "assert 18 < N[0] <= 24 or N[0] > 24 and (N[0] - 25) % 9 >= 3",
    "the first check is passed, then they come first": "assert N[0] <= 24 or (N[0] - 25) % 9 < 6",
    "lots": "assert random.random() < 0.5",
    "lots after the first check": "assert N[0] <= 24 or random.random() < 0.5",
    "none is right": "assert False",
    "all are right": "assert True",
}


@pytest.mark.parametrize(
    ("stands", "becomes", "noticed_by"),
    [
        (
            'assert torch.allclose(weights.sum(dim=-1), torch.ones(2, 2, 3)), "a row does not sum '
            'to 1"',
            "return",
            "it_catches_mask_after_the_softmax",
        ),
        ("atol=1e-5", "atol=0, rtol=0", "correct_functions_pass"),
        ("wanted = scores.masked", "return\n    wanted = scores.masked", "it_catches_not_scaled"),
        ("generator = torch.Generator().manual_seed(0)", "return", "it_catches_no_mask_at_all"),
        ("generator = torch.Generator().manual_seed(0)", "return True", "correct_functions_pass"),
        ("generator = torch.Generator().manual_seed(0)", "assert False", "correct_functions_pass"),
    ],
)
def test_a_test_that_is_too_weak_or_too_strict_is_told(stands, becomes, noticed_by):
    one = EXERCISES["catch_the_bug"]
    assert stands in one.source
    feedback = one.run(written(one.source.replace(stands, becomes), "catch_the_bug"))
    assert feedback.score < feedback.points
    result = feedback.report[noticed_by]
    assert result.diagnosis in " ".join(str(feedback).split())
    assert ("returns its verdict, such as [True]" in result.diagnosis) == ("True" in becomes)


@pytest.mark.parametrize("way", COUNTERS)
@pytest.mark.parametrize("seed", [0, 20_260, 7])
def test_a_test_that_looks_at_nothing_catches_nothing(way, seed):
    source = f"import random\nN = [0]\ndef catch_the_bug(a):\n    N[0] += 1\n    {COUNTERS[way]}"
    feedback = EXERCISES["catch_the_bug"].run(written(source, "catch_the_bug"), seed=seed)
    assert feedback.score <= (1 if "lots" in way else 0)


def test_the_function_to_judge_does_not_say_what_it_is():
    seen = set()

    def catch_the_bug(attention):
        seen.add((attention.__name__, attention.__module__, attention.__qualname__))

    EXERCISES["catch_the_bug"].run(catch_the_bug)
    assert len(seen) == 1


@pytest.mark.parametrize(
    ("name", "body", "check_name", "said"),
    [
        (
            "softmax",
            "return args[0][0]",
            "minus_infinity_gets_exactly_zero",
            "softmax has the shape (5,) where (2, 5) is wanted.",
        ),
        (
            "softmax",
            "return None",
            "minus_infinity_gets_exactly_zero",
            "softmax gives None (is there a return?), not a tensor.",
        ),
        (
            "kv_cache",
            "return 3",
            "step_by_step_equals_all_at_once",
            "kv_cache gives an int where a tuple of 2 is wanted.",
        ),
    ],
)
def test_an_answer_of_another_kind_is_told_as_that(name, body, check_name, said):
    source = f"import torch\ndef {name}(*args):\n    {body}"
    feedback = EXERCISES[name].run(written(source, name), diagnosed=False)
    result = feedback.report[check_name]
    assert result.diagnosis == said
    assert "raised" not in str(result)


def test_an_error_of_the_learner_stays_one():
    source = "def padding_mask(x):\n    return x[:, 100]"
    result = EXERCISES["padding_mask"].run(written(source, "padding_mask")).report.results[2]
    assert result.diagnosis.startswith("It raised IndexError")


def test_a_long_answer_is_not_quoted_in_full():
    fn = written(
        "def prompt_labels(rows, lengths):\n    return list(range(10**5))", "prompt_labels"
    )
    feedback = EXERCISES["prompt_labels"].run(fn)
    assert max(len(result.diagnosis) for result in feedback.report) <= 2_001


def test_the_page_says_why_a_passed_check_earns_nothing():
    one = EXERCISES["softmax"]
    wrong = one.run(lambda scores: (scores * 2).exp() / (scores * 2).exp().sum(-1, keepdim=True))
    assert wrong.score == 0
    assert any(result.outcome == "pass" for result in wrong.report)
    page = wrong.to_html()
    assert "No point counts before the first check passes." in page
    assert "#2c7a2c" not in page
    assert "white-space:nowrap" in page
    right = one.run(one.solution).to_html()
    assert "No point counts" not in right
    assert "#2c7a2c" in right


def test_torchs_own_softmax_is_refused_where_it_is_the_exercise():
    feedback = EXERCISES["softmax"].run(lambda scores: scores.softmax(dim=-1))
    assert feedback.score == 0
    assert "torch's softmax may not be used here" in str(feedback)
    from torch.nn.functional import scaled_dot_product_attention as torchs

    feedback = EXERCISES["attention"].run(lambda q, k, v, mask: torchs(q, k, v, mask))
    assert feedback.score == 0
    assert "may not be used here: write it yourself" in " ".join(str(feedback).split())


def test_the_mistake_is_read_first_and_beside_a_picture():
    one = EXERCISES["attention"]
    source = one.source.replace(
        '.masked_fill(~mask, float("-inf")).softmax(dim=-1)',
        ".softmax(dim=-1).masked_fill(~mask, 0.0)",
    )
    feedback = one.run(written(source, "attention"))
    assert feedback.mistake.startswith("Mask after the softmax. The mask is multiplied in after")
    assert str(feedback).splitlines()[2].startswith("Mask after the softmax.")
    example = feedback.report.results[0].example
    assert list(example) == ["query", "mask", "wanted", "found", "difference"]  # key is too large
    assert "data:image/png" in feedback.to_html()


def test_a_bug_of_the_museum_is_called_by_its_name():
    one = EXERCISES["attention"]
    source = one.source.replace(".softmax(dim=-1) @", ".softmax(dim=-1).detach() @")
    assert not any("cut off from the graph" in mistake.says for mistake in one.mistakes)
    feedback = one.run(written(source, "attention"))
    assert feedback.mistake.startswith("Weights detached. The weights are cut off from the graph")


def test_the_example_is_the_simplest_wrong_input():
    one = EXERCISES["mean_pool"]
    source = one.source.replace("hidden.masked_fill(padding, 0.0)", "hidden")
    result = one.run(written(source, "mean_pool")).report.results[0]
    assert result.diagnosis.startswith("With one sequence, padded on the right, mean_pool is wrong")
    assert result.diagnosis.endswith("It is right with one sequence without padding.")
    assert list(result.example) == ["hidden", "attention mask", "wanted", "found", "difference"]
    assert torch.equal(
        result.example["difference"], result.example["found"] - result.example["wanted"]
    )


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("while True: pass", "It used 0.3 seconds of CPU time"),
        ("raise SystemExit(0)", "It raised SystemExit"),
        ("return undefined", "name 'undefined' is not defined"),
        ("return scores[0]", "has the shape (4,) where (1, 4) is wanted"),
        ("return scores.double()", "is torch.float64 where torch.float32 is wanted"),
        ("print('x' * 100)", "softmax gives None (is there a return?)"),
        ("return [1, 2]", "softmax gives a list, not a tensor"),
    ],
)
def test_whatever_it_does_is_reported_as_itself(body, said):
    fn = written(f"def softmax(scores):\n    {body}", "softmax")
    feedback = EXERCISES["softmax"].run(fn, seconds=0.3)
    assert feedback.score == 0
    assert said in " ".join(str(feedback).split())


def test_an_error_that_comes_at_every_size_is_told_once():
    fn = written(
        "def padding_mask(attention_mask):\n    raise KeyError(attention_mask.shape)", NAMES[0]
    )
    said = str(EXERCISES["padding_mask"].run(fn))
    assert said.count("KeyError") == 1
    assert said.count("as above") > 1


def test_a_check_is_told_in_one_line_of_the_page():
    said = str(EXERCISES["attention"].run(lambda query, key, value, mask: query @ key.mT @ value))
    lines = [line for line in said.splitlines() if re.match(r"0/\d  ✗", line)]
    assert any(line.endswith(" …") for line in lines)
    assert max(map(len, lines)) <= WIDTH


def test_what_never_comes_back_is_not_asked_again(monkeypatch):
    one = EXERCISES["softmax"]
    monkeypatch.setattr(type(one), "diagnose", lambda *given: pytest.fail("asked again"))
    fn = written("def softmax(scores):\n    while True: pass", "softmax")
    assert one.run(fn, seconds=0.2).mistake == ""


@pytest.mark.slow
def test_the_first_check_of_all_has_the_time_of_any_other():
    program = """
import torch
from minitransformer.exercises import EXERCISES
solved = lambda queries, keys: torch.ones(1, 1, queries, keys).bool().tril(keys - queries)
print(EXERCISES["causal_mask"].run(solved, seconds=0.4).score)
"""
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert run.stdout == "3\n", run.stderr


def test_inputs_differ_by_seed_and_are_repeated_with_it():
    a, b, c = Draw(1), Draw(1), Draw(2)
    x = a.normal(3, 4)
    assert (x == b.normal(3, 4)).all()
    assert not (x == c.normal(3, 4)).any()
    mask = a.attention_mask(5, 6, "left")
    assert mask.sum(dim=1).max() == 6
    assert mask.sum(dim=1).min() >= 1
    assert (mask.diff(dim=1) >= 0).all()
    assert a.mask(4, 5, 3).any(dim=-1).all()


def test_the_first_difference_is_shown():
    from minitransformer.checks.engine.check import Failed

    def same(wanted, found):
        expect_same(wanted, found, "softmax", 1e-5)

    wanted = torch.zeros(2, 3)
    found = wanted.clone()
    found[1, 2] = 0.5
    with pytest.raises(Failed, match=r"at \[1, 2\] it holds 0.5 where 0 is wanted"):
        same(wanted, found)
    same(wanted, wanted + 1e-7)
    with pytest.raises(Failed, match=r"holds 5\.59815 where 5\.59812 is wanted"):
        same(torch.tensor([5.59812]), torch.tensor([5.59815]))
    with pytest.raises(Failed, match=r"^softmax is 0.5 where 2 is wanted\.$"):
        same(torch.tensor(2.0), torch.tensor(0.5))
    with pytest.raises(Failed, match="gives 1 of them where a list of 2 is wanted"):
        same([1, 2], [1])
    with pytest.raises(Failed, match="is 3 where 2 is wanted"):
        same([1, 2], [1, 3])


# ---- the command line ------------------------------------------------------------------------


def test_a_learner_starts_and_checks(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["exercise", "start", "softmax"]) == 0
    assert main(["exercise", "check", "softmax"]) == 1
    assert "not written yet" in capsys.readouterr().out
    (tmp_path / "softmax.py").write_text("def softmax(scores):\n    return scores\n")
    assert main(["exercise", "check", "softmax"]) == 1
    assert capsys.readouterr().out.endswith("stuck? minitransformer exercise hint softmax\n")
    (tmp_path / "softmax.py").write_text(EXERCISES["softmax"].source)
    assert main(["exercise", "check", "softmax"]) == 0
    assert "softmax: 6 of 6 points, all right" in capsys.readouterr().out
    assert main(["exercise", "start", "softmax"]) == 2
    assert "is there already; nothing was written" in capsys.readouterr().err
    assert main(["exercise", "start", "softmax", "causal_mask"]) == 0
    assert "softmax.py: is there already, left alone\ncausal_mask.py: " in capsys.readouterr().out
    assert (tmp_path / "softmax.py").read_text() == EXERCISES["softmax"].source
    assert main(["exercise", "list"]) == 0
    listed = capsys.readouterr().out
    assert "chapter 13" in listed
    assert " 6 of  6 points   Softmax" in listed
    assert main(["exercise", "check", "attention"]) == 2
    assert "attention.py: no such file" in capsys.readouterr().err
    (tmp_path / "softmax.py").write_text("def softmax(scores):\n    return scores.exp( / 2\n")
    assert main(["exercise", "check", "softmax"]) == 2
    line, caret, said, told = capsys.readouterr().err.splitlines()[1:]
    assert line == "    return scores.exp( / 2"
    assert caret.index("^") == line.index("/")
    assert said == "SyntaxError: invalid syntax"
    assert told.startswith("minitransformer: error: importing softmax.py: ")
    assert main(["exercise", "hint", "nothing"]) == 2
    assert "no exercise 'nothing'" in capsys.readouterr().err


def test_a_file_that_cannot_be_read_does_not_end_the_list(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "padding_mask.py").write_text("import nothing_like_this")
    (tmp_path / "mean_pool.py").write_text("raise SystemExit")
    (tmp_path / "causal_mask.py").write_text("def (:")
    (tmp_path / "softmax.py").write_text(EXERCISES["softmax"].source)
    assert main(["exercise", "list"]) == 0
    listed = capsys.readouterr().out
    for name in ("padding_mask", "mean_pool", "causal_mask"):
        assert f"({name}.py cannot be read: minitransformer exercise check {name})" in listed
    assert " 6 of  6 points   Softmax" in listed
    assert "Write the test that catches this bug" in listed  # the last


def test_a_notebook_can_be_checked(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    cells = ["%matplotlib inline", EXERCISES["softmax"].source, "1 / 0"]
    made = [{"cell_type": "code", "source": source} for source in cells]
    (tmp_path / "mine.ipynb").write_text(json.dumps({"cells": made}))
    assert main(["exercise", "check", "softmax", "--file", "mine.ipynb"]) == 0
    assert "softmax: 6 of 6 points, all right" in capsys.readouterr().out
    assert main(["exercise", "check", "attention", "--file", "mine.ipynb"]) == 2
    assert "mine.ipynb: defines no function attention" in capsys.readouterr().err
    (tmp_path / "mine.ipynb").write_text("{")
    assert main(["exercise", "check", "softmax", "--file", "mine.ipynb"]) == 2
    assert "mine.ipynb: cannot be read: " in capsys.readouterr().err


# ---- exports ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("to", "names"),
    [
        *((to, NAMES) for to in EXPORTS if to not in ("solutions", "package")),
        ("package", ["causal_mask", "padding_mask"]),  # which tries all mistakes of each
        pytest.param("package", NAMES, marks=pytest.mark.slow),
    ],
    ids=lambda given: given if isinstance(given, str) else f"{len(given)} exercises",
)
def test_no_export_gives_a_solution_to_students(to, names, tmp_path):
    said = export(names, to, tmp_path / "out")
    assert said
    files = [path for path in (tmp_path / "out").rglob("*") if path.is_file()]
    assert files
    if to in ("nbgrader", "otter"):  # the instructor's master: their tools cut the solutions out
        assert any(BEGIN in p.read_text() or "BEGIN SOLUTION" in p.read_text() for p in files)
        return
    for path in files:
        assert BEGIN.encode() not in path.read_bytes()
    with pytest.raises(InputError, match="is there already"):
        export(names, to, tmp_path / "out")


def test_solutions_are_handed_out_afterwards(tmp_path):
    export(NAMES, "solutions", tmp_path)
    for name in NAMES:
        source = (tmp_path / f"{name}.py").read_text()
        assert "SOLUTION" not in source
        assert check(name, written(source, name)).passed


@pytest.mark.slow
def test_the_pytest_export_gives_the_same_scores(tmp_path):
    names = ["softmax", "causal_mask"]
    export(names, "pytest", tmp_path)
    (tmp_path / "softmax.py").write_text(EXERCISES["softmax"].source)
    wrong = EXERCISES["causal_mask"].source.replace(".tril(num_keys - num_queries)", ".tril()")
    (tmp_path / "causal_mask.py").write_text(wrong)
    run = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--junitxml=r.xml"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert run.returncode == 1
    points = dict.fromkeys(names, 0)
    for case in ElementTree.parse(tmp_path / "r.xml").iter("testcase"):
        if case.find("failure") is None:
            name = case.get("classname").removeprefix("test_")
            points[name] += int(case.find("properties/property").get("value"))
    expected = {n: check(n, written((tmp_path / f"{n}.py").read_text(), n)).score for n in names}
    assert points == expected
    assert points["softmax"] == 6
    assert points["causal_mask"] < 3


@pytest.mark.parametrize("to", EXPORTS)
def test_an_exercise_named_twice_is_exported_once(to, tmp_path):
    export(["causal_mask", "causal_mask"], to, tmp_path / "twice")
    export(["causal_mask"], to, tmp_path / "once")
    for path in (tmp_path / "once").rglob("*.*"):
        twin = tmp_path / "twice" / path.relative_to(tmp_path / "once")
        assert path.read_bytes() == twin.read_bytes()


@pytest.mark.parametrize("to", ["nbgrader", "otter"])
def test_exports_look_at_what_is_borrowed(to, tmp_path):
    export(["softmax"], to, tmp_path / "out")
    (path,) = (tmp_path / "out").rglob("*.ipynb")
    assert "find(" not in path.read_text()
    assert re.search(r"check(_in_turn)?\(", path.read_text())


def test_the_exercise_for_instructors_is_one(monkeypatch, tmp_path):
    text = (Path(__file__).parents[1] / "notebooks" / "INSTRUCTORS.md").read_text(encoding="utf-8")
    (example,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    (tmp_path / "halves_of_the_text.py").write_text(example, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    before = dict(EXERCISES)
    try:
        halve = importlib.import_module("halves_of_the_text").halve
    finally:
        EXERCISES.clear()
        EXERCISES.update(before)
    assert halve.run(written(halve.source, "halve")).passed
    assert halve.run(written(halve.stub, "halve")).score == 0
    assert halve.run(lambda x: x / 2 + 1).score == 0
