"""Which mistake is it? The one that gives the same wrong answers.

Every exercise carries its usual mistakes, each an edit of the solution with a sentence for the
learner. A mistake is named where a submission's answers equal those of the edited solution on every
input tried, NaN and errors included, and differ from the right ones: what fails the same checks for
another reason is not named. Behind what somebody wrote down stand the bugs of the museum, two
mistakes at once, and every change of one place in the solution (`variants.py`).
"""

import math
import re
import textwrap
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache, partial
from itertools import combinations
from typing import Any, NamedTuple

import einops
import torch
from torch import Tensor
from torch.nn import functional as F

from minitransformer.checks.engine.running import quarantine
from minitransformer.checks.engine.time_limit import OutOfTime, time_limit
from minitransformer.exercises.answers import Answer, answer
from minitransformer.exercises.variants import variants

# What stands in the solution -> what a learner writes, all of it at once; or another body.
Edit = dict[str, str] | str

BEGIN, END = "### BEGIN SOLUTION", "### END SOLUTION"
SOLUTION = re.compile(rf" *{BEGIN}\n.*?{END}\n", re.DOTALL)
SECONDS = 3.0  # of CPU time in all, after which nothing more is tried
ONE = 0.5  # of CPU time, for one candidate on one input
MOST = 2  # names: where more mistakes give these answers, none of them says much
GIVEN = {  # names that a solution and its edits may use
    "math": math,
    "torch": torch,
    "Tensor": Tensor,
    "F": F,
    **{name: getattr(einops, name) for name in ("rearrange", "repeat", "einsum", "reduce")},
}


@dataclass(frozen=True)
class Mistake:
    """What a learner is told, and edits of the solution that make the mistake, each by itself."""

    says: str
    edits: tuple[Edit, ...]


class Case(NamedTuple):
    """What a function is called with."""

    name: str  # what is special about it: "padding on the left"
    arguments: tuple
    ordinary: bool  # of those on which no point counts unless it is right


class Candidate(NamedTuple):
    """A function that makes known mistakes."""

    says: tuple[str, ...]  # a sentence for each
    fn: Callable


class Group(NamedTuple):
    """Candidates of one kind, of which all are tried, or only until the first that fits."""

    candidates: Iterator[Candidate]
    first_only: bool = False  # they are vague, and many come to the same


class Diagnosis(NamedTuple):
    """What is said before the checks: the mistakes, each a sentence, and how sure that is."""

    says: tuple[str, ...] = ()
    where: str = ""  # on which inputs the answers are the same

    def __str__(self) -> str:
        return "\nOr: ".join(self.says)


UNKNOWN = Diagnosis()


def edited(source: str, edit: Edit) -> str:
    """The source with every part of an edit in place. Raises ValueError where one is not there."""
    if isinstance(edit, str):
        body = textwrap.indent(textwrap.dedent(edit).strip("\n"), "    ")
        return SOLUTION.sub(lambda _: body + "\n", source)
    for stands, becomes in edit.items():
        if stands not in source:
            raise ValueError(f"{stands!r} does not stand in the solution, so it cannot be edited")
        source = source.replace(stands, becomes)
    return source


@cache
def function(source: str, name: str) -> Callable:
    """The function of this name that a source defines."""
    space = dict(GIVEN)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of what is odd in a slip, such as 0[1]
        exec(compile(source, f"<{name}>", "exec"), space)
    return space[name]


def diagnose(
    fn: Callable,
    cases: Sequence[Case],
    solution: Callable,
    groups: Sequence[Group],
    tolerance: float,
    with_gradients: bool = False,
) -> Diagnosis:
    """The mistakes whose answers are those of `fn`: of the first group in which there are any.

    Equal on every input; else, where it is wrong on ordinary ones, equal on all of these.
    """
    ask = partial(_answers, with_gradients=with_gradients)
    asked = partial(_same, tolerance=tolerance)
    wanted = [answer(solution, case.arguments, with_gradients) for case in cases]
    with quarantine():
        found = list(ask(fn, cases, seconds=10.0))
    wrong = [i for i, _ in enumerate(cases) if not asked(found[i], wanted[i])]
    if all(found[i].raised for i in wrong):  # its own error says more, and where
        return UNKNOWN
    # Where it is wrong first, for nearly every candidate differs there.
    order = sorted(range(len(cases)), key=lambda i: (not cases[i].ordinary, i not in wrong))
    ordinary = sum(case.ordinary for case in cases)
    nearly: list[list[Candidate]] = []  # of each group: equal on ordinary input
    start = time.process_time()
    for group in groups:
        equal: list[Candidate] = []
        nearly.append([])
        for candidate in group.candidates:
            if time.process_time() - start > SECONDS or (equal and group.first_only):
                break
            with quarantine():
                theirs = ask(candidate.fn, [cases[i] for i in order], seconds=ONE)
                alike = 0
                for i, one in zip(order, theirs, strict=True):
                    if not asked(one, found[i]):
                        break
                    alike += 1
            if alike == len(cases):
                equal.append(candidate)
            elif alike >= ordinary and cases[order[0]].ordinary and order[0] in wrong:
                nearly[-1].append(candidate)
        if says := _told(equal):
            return Diagnosis(says, "on every input that was tried")
    for group in nearly:
        if says := _told(group):
            return Diagnosis(says, "on ordinary input")
    return UNKNOWN


def _answers(
    fn: Callable, cases: Sequence[Case], seconds: float, with_gradients: bool
) -> Iterator[Answer]:
    for case in cases:
        try:
            with time_limit(seconds):
                one = answer(fn, case.arguments, with_gradients)
        except OutOfTime:
            one = Answer("no end", torch.zeros(0), raised=True)
        yield one


def _same(one: Answer, other: Answer, tolerance: float) -> bool:
    return one.equals(other, tolerance)


def _told(equal: list[Candidate]) -> tuple[str, ...]:
    """The sentences of these, if they are few; of more, those that all of them share."""
    says = list(dict.fromkeys(one.says for one in equal))
    if len(says) > MOST:
        shared = set(says[0]).intersection(*says[1:])
        says = [tuple(s for s in says[0] if s in shared)] if shared else []
    return tuple(" And: ".join(sentences) for sentences in says)


# ---- candidates ----------------------------------------------------------------------------------


def written(mistakes: Sequence[Mistake], source: str, name: str) -> Iterator[Candidate]:
    """Each mistake that is written down, in each of its ways."""
    for mistake in mistakes:
        for edit in mistake.edits:
            yield Candidate((mistake.says,), function(edited(source, edit), name))


def pairs(mistakes: Sequence[Mistake], source: str, name: str) -> Iterator[Candidate]:
    """Two of them at once, where they change different places."""
    for one, other in combinations(mistakes, 2):
        for a in one.edits:
            for b in other.edits:
                if fn := _twice(source, name, a, b):
                    yield Candidate((one.says, other.says), fn)


def _twice(source: str, name: str, a: Edit, b: Edit) -> Callable | None:
    for first, second in ((a, b), (b, a)):
        try:
            return function(edited(edited(source, first), second), name)
        except (ValueError, SyntaxError):
            continue
    return None


def slips(source: str, name: str) -> Iterator[Candidate]:
    """One place changed, whichever."""
    for slip, changed in variants(source):
        yield Candidate((slip,), function(changed, name))


def written_and_slips(mistakes: Sequence[Mistake], source: str, name: str) -> Iterator[Candidate]:
    """A mistake that is written down, and one place changed besides."""
    for mistake in mistakes:
        for edit in mistake.edits:
            for slip, changed in variants(edited(source, edit)):
                yield Candidate((mistake.says, slip), function(changed, name))


def of_the_museum(bugs: Sequence[Any]) -> Iterator[Candidate]:
    """The bugs of a kind of subject, each called with as many arguments as it takes."""
    for bug in bugs:
        if bug.conventions:  # it takes something else than a learner's function
            continue
        for body in range(1 + len(bug.also)):
            fn = bug.subject(body).fn
            count = getattr(getattr(fn, "__code__", None), "co_argcount", None)
            call = lambda *arguments, fn=fn, count=count: fn(*arguments[:count])  # noqa: E731
            yield Candidate((f"{bug.name[0].upper()}{bug.name[1:]}. {bug.diagnosis}",), call)
