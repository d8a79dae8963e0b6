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
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import combinations, islice
from typing import Any, NamedTuple

import einops
import torch
from torch import Tensor
from torch.nn import functional as F

from minitransformer.checks.engine.running import quarantine
from minitransformer.checks.engine.time_limit import OutOfTime, time_limit
from minitransformer.exercises.answers import Answer, answer, without_answer
from minitransformer.exercises.relations import RELATIONS
from minitransformer.exercises.variants import variants

# What stands in the solution -> what a learner writes, all of it at once; or another body.
Edit = dict[str, str] | str

BEGIN, END = "### BEGIN SOLUTION", "### END SOLUTION"
SOLUTION = re.compile(rf" *{BEGIN}\n.*?{END}\n", re.DOTALL)
CALLS = 2_200  # of candidates in all, some two seconds; a count is the same on every machine
SUBMISSION, CANDIDATE = 10.0, 0.5  # seconds of CPU time that each may take on one input
ALL, GIVEN, ORDINARY, NUMBERS = (  # where a candidate's answers are the submission's
    "on every input that was tried",
    "wherever it gives an answer",
    "on ordinary input",
    "on ordinary input, but for gradients",
)
MOST = 2  # names: where more mistakes give these answers, none of them says much
NAMES = {  # what a solution and its edits may use
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


# A function, or the names of cases and what it gave on each.
Answering = Callable | Mapping[str, Answer]


class Candidate(NamedTuple):
    """A function that makes known mistakes."""

    says: tuple[str, ...]  # a sentence for each
    fn: Answering


class Group(NamedTuple):
    """Candidates of one kind: how many are tried, and whether only until the first that fits."""

    candidates: Iterable[Candidate]
    most: int | None = None
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
    head, begin, rest = source.partition(BEGIN)
    body, end, tail = rest.partition(END)
    if isinstance(edit, str):
        lines = textwrap.indent(textwrap.dedent(edit).strip("\n"), "    ")
        return f"{head}{begin}\n{lines}\n    {end}{tail}"
    for stands, becomes in edit.items():
        if stands not in body:
            raise ValueError(f"{stands!r} does not stand in the solution, so it cannot be edited")
        body = body.replace(stands, becomes)
    return head + begin + body + end + tail


@cache
def function(source: str, name: str) -> Callable:
    """The function of this name that a source defines."""
    space = dict(NAMES)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of what is odd in a slip, such as 0[1]
        exec(compile(source, f"<{name}>", "exec"), space)
    return space[name]


def diagnose(
    fn: Callable,
    cases: Sequence[Case],
    solution: Answering,
    groups: Sequence[Group],
    tolerance: float,
    with_gradients: bool = False,
) -> Diagnosis:
    """The mistakes whose answers are those of `fn`: of the first group in which there are any.

    Equal on every input; else on those on which it raises no error; else on the ordinary ones,
    with gradients or without. Else, in general, how its answers are related to the right ones.
    """
    submission = _Submission(fn, cases, solution, tolerance, with_gradients)
    if not submission.levels:
        return UNKNOWN
    equal = {level: [[] for _ in groups] for level in submission.levels}
    for number, group in enumerate(groups):
        for candidate in islice(group.candidates, group.most):
            done = group.first_only and ALL in equal and equal[ALL][number]
            if done or submission.calls > CALLS:
                break
            for level in submission.agrees_with(candidate.fn):
                equal[level][number].append(candidate)
        if ALL in equal and (says := _told(equal[ALL][number], group)):
            return Diagnosis(says, ALL)
    for level, found in equal.items():
        for group, candidates in zip(groups, found, strict=True):
            if says := _told(candidates, group):
                return Diagnosis(says, level)
    return submission.in_general()


def given(fn: Answering, case: Case, with_gradients: bool) -> Answer:
    """What it gives, or gave, on a case."""
    if isinstance(fn, Mapping):
        return fn[case.name]
    return answer(fn, case.arguments, with_gradients)


def ask(fn: Answering, case: Case, with_gradients: bool, seconds: float = CANDIDATE) -> Answer:
    """The same, or that there is no end to it."""
    try:
        with quarantine(), time_limit(seconds):
            return given(fn, case, with_gradients)
    except OutOfTime:
        return without_answer("no end")


class _Submission:
    """What a function answers, and on how much of it another must agree to explain it."""

    def __init__(
        self,
        fn: Callable,
        cases: Sequence[Case],
        solution: Answering,
        tolerance: float,
        with_gradients: bool,
    ):
        self.tolerance, self.with_gradients, self.calls = tolerance, with_gradients, 0
        found = [ask(fn, case, with_gradients, SUBMISSION) for case in cases]
        right = [given(solution, case, with_gradients) for case in cases]
        wrong = [not a.equals(b, tolerance) for a, b in zip(found, right, strict=True)]
        # Where it is wrong first, of ordinary input if there: nearly every candidate differs there.
        astray = any(w and case.ordinary for w, case in zip(wrong, cases, strict=True))
        order = sorted(
            range(len(cases)),
            key=lambda i: (found[i].raised, astray and not cases[i].ordinary, not wrong[i]),
        )
        self.cases, self.found = [cases[i] for i in order], [found[i] for i in order]
        self.right = [right[i] for i in order]
        came = [case for case, one in zip(self.cases, self.found, strict=True) if not one.raised]
        counts = {ALL: len(cases), GIVEN: len(came)}
        if astray:
            counts[ORDINARY] = counts[NUMBERS] = sum(case.ordinary for case in came)
        explains = {  # an error says more of itself than its name is worth
            level: any(wrong[i] and not found[i].raised for i in order[:count])
            for level, count in counts.items()
        }
        self.levels = {level: count for level, count in counts.items() if explains[level]}

    def agrees_with(self, fn: Answering) -> Iterator[str]:
        """The levels on which another function gives the same answers."""
        equal = alike = 0  # of the first so many; with gradients, and without
        for case, one in zip(self.cases, self.found, strict=True):
            self.calls += 1
            theirs = ask(fn, case, self.with_gradients)
            if not theirs.gives(one, self.tolerance):
                break
            equal += equal == alike and theirs.equals(one, self.tolerance)
            alike += 1
        for level, count in self.levels.items():
            if (alike if level == NUMBERS else equal) >= count:
                yield level

    def in_general(self) -> Diagnosis:
        """How the wrong answers are related to the right ones, if they are in a simple way."""
        pairs = zip(self.found, self.right, strict=True)
        wrong = [(a, b) for a, b in pairs if not (a.raised or a.gives(b, self.tolerance))]
        for says, holds in RELATIONS.items():
            if wrong and all(holds(a, b, self.tolerance) for a, b in wrong):
                return Diagnosis((says,), "wherever it is wrong")
        return UNKNOWN


def _told(equal: list[Candidate], group: Group) -> tuple[str, ...]:
    """The sentences of these, if they are few; of more, those that all of them share."""
    says = list(dict.fromkeys(one.says for one in equal))[: 1 if group.first_only else None]
    if len(says) > MOST:
        shared = set(says[0]).intersection(*says[1:])
        says = [tuple(s for s in says[0] if s in shared)] if shared else []
    return tuple(" And: ".join(sentences) for sentences in says)


# ---- candidates ----------------------------------------------------------------------------------


def groups(mistakes: Sequence[Mistake], source: str, name: str) -> list[Group]:
    """What is made of a solution's source, the likeliest first."""
    return groups_of(
        written(mistakes, source, name),
        pairs(mistakes, source, name),
        slips(source, name),
        written_and_slips(mistakes, source, name),
    )


def groups_of(
    written: Iterable[Candidate],
    pairs: Iterable[Candidate],
    slips: Iterable[Candidate],
    both: Iterable[Candidate],
) -> list[Group]:
    """How many are tried of each kind."""
    return [
        Group(written),
        Group(pairs, most=1200),
        Group(slips, first_only=True),
        Group(both, most=300, first_only=True),
    ]


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
            if isinstance(edit, str):  # another body: what is missing there was never here
                continue
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
