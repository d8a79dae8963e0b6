"""Every exercise: its stub earns nothing, its solution everything, each mistake loses points."""

import re
import subprocess
import sys
from xml.etree import ElementTree

import pytest
from wrong_solutions import WRONG

from minitransformer.cli import main
from minitransformer.exercises import EXERCISES, check, hint
from minitransformer.exercises.exercise import BEGIN, END, Draw, expect_same
from minitransformer.exercises.export import EXPORTS, export
from minitransformer.files import InputError

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
        assert feedback.score == feedback.points > 0, str(feedback)
        assert feedback.headline.endswith("all right")


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

    assert EXERCISES[name].run(blank).score == 0


MISTAKES = [
    pytest.param(name, *wrong, id=f"{name}-{number}")
    for name, mistakes in WRONG.items()
    for number, wrong in enumerate(mistakes)
]


@pytest.mark.parametrize(("name", "stands", "becomes", "noticed_by"), MISTAKES)
def test_a_mistake_loses_points_with_a_diagnosis(name, stands, becomes, noticed_by):
    one = EXERCISES[name]
    assert stands in one.source
    feedback = one.run(written(one.source.replace(stands, becomes), name))
    assert feedback.score < feedback.points
    assert noticed_by in feedback.report.failed
    result = feedback.report[noticed_by]
    assert len(result.diagnosis) > 20
    assert result.diagnosis in " ".join(str(feedback).split()) or result.raised
    assert "✗" in feedback.to_html()


def test_every_exercise_has_four_mistakes():
    assert set(WRONG) == set(NAMES)
    assert min(len(mistakes) for mistakes in WRONG.values()) >= 4


@pytest.mark.parametrize("name", NAMES)
def test_what_a_learner_gets_is_complete_and_holds_no_solution(name):
    one = EXERCISES[name]
    solution = re.search(f"{BEGIN}\n(.*?){END}", one.source, re.DOTALL)[1]
    lines = [line.strip() for line in solution.splitlines() if len(line.strip()) > 12]
    for text in (one.stub, one.text()):
        assert BEGIN not in text
        assert not any(line in text for line in lines if one.start is None)
    assert one.solution.__doc__ in one.stub
    assert len(one.hints) == 3
    assert one.about.endswith((".", "?"))
    for aim in one.aims:
        assert aim.check.statement.endswith(".")


def test_hints_are_three_steps(capsys):
    hint("attention", 2)
    assert "Hint 2 of 3: Forbidden scores become -inf" in capsys.readouterr().out
    with pytest.raises(ValueError, match="there are hints 1, 2 and 3, got 4"):
        hint("attention", 4)
    with pytest.raises(ValueError, match="no exercise 'atention': there are padding_mask"):
        hint("atention")


def test_borrowing_the_package_is_told():
    source = """import minitransformer as mt
def helper(attention_mask): return mt.padding_mask(attention_mask)
def padding_mask(attention_mask): return helper(attention_mask)"""
    feedback = check("padding_mask", written(source, "padding_mask"))
    assert feedback.score == 0
    assert "yours to write, but it uses mt of minitransformer" in str(feedback)


def test_torchs_own_softmax_is_refused_where_it_is_the_exercise():
    feedback = EXERCISES["softmax"].run(lambda scores: scores.softmax(dim=-1))
    assert feedback.score == 0
    assert "torch's softmax may not be used here" in str(feedback)
    from torch.nn.functional import scaled_dot_product_attention as torchs

    feedback = EXERCISES["attention"].run(lambda q, k, v, mask: torchs(q, k, v, mask))
    assert feedback.score == 0
    assert "may not be used here: write it yourself" in " ".join(str(feedback).split())


def test_a_museum_piece_is_called_by_its_name():
    one = EXERCISES["attention"]
    source = one.source.replace(
        '.masked_fill(~mask, float("-inf")).softmax(dim=-1)',
        ".softmax(dim=-1).masked_fill(~mask, 0.0)",
    )
    feedback = one.run(written(source, "attention"))
    assert feedback.report.likely == ("mask after the softmax",)
    assert "likely bug: mask after the softmax" in str(feedback)
    assert "data:image/png" in feedback.to_html()


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("while True: pass", "had not come back after"),
        ("raise SystemExit(0)", "It raised SystemExit"),
        ("return undefined", "name 'undefined' is not defined"),
        ("return scores[0]", "has the shape (4,) where (3, 4) is wanted"),
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
    import torch

    from minitransformer.checks.suite import Failed

    one = EXERCISES["softmax"]
    wanted = torch.zeros(2, 3)
    found = wanted.clone()
    found[1, 2] = 0.5
    with pytest.raises(Failed, match=r"at \[1, 2\] it holds 0.5 where 0 is wanted"):
        expect_same(wanted, found, (), one)
    expect_same(wanted, wanted + 1e-7, (), one)
    with pytest.raises(Failed, match="gives 1 of them where a list of 2 is wanted"):
        expect_same([1, 2], [1], (), one)
    with pytest.raises(Failed, match="is 3 where 2 is wanted"):
        expect_same([1, 2], [1, 3], (), one)


# ---- the command line ------------------------------------------------------------------------


def test_a_learner_starts_and_checks(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["exercise", "start", "softmax"]) == 0
    assert main(["exercise", "check", "softmax"]) == 1
    assert "not written yet" in capsys.readouterr().out
    (tmp_path / "softmax.py").write_text(EXERCISES["softmax"].source)
    assert main(["exercise", "check", "softmax"]) == 0
    assert "softmax: 5 of 5 points, all right" in capsys.readouterr().out
    assert main(["exercise", "start", "softmax"]) == 2
    assert "is there already; nothing was written" in capsys.readouterr().err
    assert main(["exercise", "list"]) == 0
    listed = capsys.readouterr().out
    assert "chapter 13" in listed
    assert " 5 of  5 points   Softmax" in listed
    assert main(["exercise", "check", "attention"]) == 2
    assert "attention.py: no such file" in capsys.readouterr().err
    assert main(["exercise", "hint", "nothing"]) == 2
    assert "no exercise 'nothing'" in capsys.readouterr().err


# ---- exports ---------------------------------------------------------------------------------


@pytest.mark.parametrize("to", EXPORTS)
def test_no_export_gives_a_solution_to_students(to, tmp_path):
    said = export(NAMES, to, tmp_path / "out")
    assert said
    files = [path for path in (tmp_path / "out").rglob("*") if path.is_file()]
    assert files
    if to in ("nbgrader", "otter"):  # the instructor's master: their tools cut the solutions out
        assert any(BEGIN in p.read_text() or "BEGIN SOLUTION" in p.read_text() for p in files)
        return
    for path in files:
        assert BEGIN.encode() not in path.read_bytes()
    with pytest.raises(InputError, match="is there already"):
        export(NAMES, to, tmp_path / "out")


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
    assert points["softmax"] == 5
    assert points["causal_mask"] < 3
