"""An exercise: a solution that is cut out for the learner, and checks that are worth points.

An exercise is written once, as a function with its solution between two marks; its docstring is the
task. What the learner gets is the same without the solution. The first check of each compares with
the solution on random input, fresh for every seed; no point counts before it passes.

    @exercise("A padding mask", chapter=1, points=2, hints=[...], inputs=some_batches)
    def padding_mask(attention_mask):
        \"\"\"What is wanted, with shapes.\"\"\"
        ### BEGIN SOLUTION
        ...
        ### END SOLUTION

    @padding_mask.check(points=1)
    def a_padded_query_sees_nothing(fn, draw):
        \"\"\"What must hold.\"\"\"
        expect(..., "what was seen, in words that a learner understands")

    padding_mask.mistake("Only the keys are hidden.", {"real[:, None, :, None] & ": ""})

A mistake is a sentence for the learner, and an edit of the solution that makes it; see
`mistakes.py` for when it is named.
"""

import inspect
import re
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from functools import cache
from typing import Any

import torch
from torch import Tensor

from minitransformer.checks import CHECKS, Report, Result, bugs
from minitransformer.checks.engine.check import Check, Failed
from minitransformer.checks.engine.report import WIDTH
from minitransformer.checks.engine.running import run_check
from minitransformer.checks.engine.subject import Subject
from minitransformer.exercises import mistakes, standings
from minitransformer.exercises.answers import Recalled, expect_alike, leaves
from minitransformer.exercises.borrowing import PACKAGE, borrows
from minitransformer.exercises.feedback import NOT_STARTED, Feedback
from minitransformer.exercises.forbidding import Forbidding
from minitransformer.exercises.mistakes import (
    SOLUTION,
    UNKNOWN,
    Case,
    Diagnosis,
    Edit,
    Group,
    Mistake,
)
from minitransformer.exercises.stored import Stored, stored_answers
from minitransformer.exercises.usual_checks import (
    arguments_left_alone,
    as_check,
    right_answers,
    right_at_the_edge,
)

EXERCISES: dict[str, "Exercise"] = {}
SECONDS = 10.0  # of CPU time that one check may take
LONGEST = 2_000  # characters of a diagnosis: it may quote an answer
FORBIDDEN = ("scaled_dot_product", "safe_softmax", "multi_head_attention")  # always


class Draw:
    """Random input, the same for the same seed."""

    def __init__(self, seed: int):
        self.generator = torch.Generator().manual_seed(seed)

    def normal(self, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.randn(shape, generator=self.generator, dtype=torch.float64).to(dtype)

    def integer(self, low: int, high: int) -> int:
        """One of low, ..., high."""
        return int(torch.randint(low, high + 1, (), generator=self.generator))

    def ids(self, *shape: int, vocabulary: int = 50) -> Tensor:
        return torch.randint(1, vocabulary, shape, generator=self.generator)

    def lengths(self, batch: int, longest: int) -> list[int]:
        """From 1 up, one of them `longest`, in no order."""
        lengths = [longest, *(self.integer(1, longest - 1) for _ in range(batch - 1))]
        return [lengths[i] for i in torch.randperm(batch, generator=self.generator)]

    def attention_mask(self, batch: int, length: int, side: str = "right") -> Tensor:
        """(batch, length) int64, a row of it full."""
        lengths = torch.tensor(self.lengths(batch, length))
        mask = (torch.arange(length) < lengths.unsqueeze(1)).long()
        return mask if side == "right" else mask.flip(1)

    def mask(self, batch: int, queries: int, keys: int, heads: int = 1) -> Tensor:
        """(batch, heads, queries, keys) bool, a True in every row."""
        mask = torch.rand(batch, heads, queries, keys, generator=self.generator) < 0.5
        mask[..., 0] |= ~mask.any(dim=-1)
        return mask


Inputs = dict[str, tuple]  # what is special about it ("padding on the left") -> arguments


@dataclass(frozen=True)
class Aim:
    """A check, and what it is worth."""

    check: Check
    points: int
    on_subject: bool = False  # it is one of the kind's, and takes a Subject


@dataclass(eq=False)
class Exercise:
    """A task with its solution, hints and checks. Calling it calls the solution."""

    title: str
    chapter: int
    about: str
    solution: Callable
    hints: tuple[str, ...]
    inputs: Callable[[Draw], Inputs] | None
    edges: Callable[[Draw], Inputs]
    gradients: bool  # of the floating arguments, which are compared too
    forbidden: tuple[str, ...]  # parts of the names of torch's operators
    subject: Callable[[Callable], Subject] | None
    start: Callable | None  # a broken function to begin from, in place of a blank
    tolerance: float
    stored: Stored | None  # in a package without the solutions
    aims: list[Aim] = field(default_factory=list)
    mistakes: list[Mistake] = field(default_factory=list)

    @property
    def name(self) -> str:
        return self.solution.__name__

    @property
    def points(self) -> int:
        return sum(aim.points for aim in self.aims)

    def __call__(self, *arguments: Any) -> Any:
        return self.solution(*arguments)

    def check(self, points: int, measures: str = "") -> Callable[[Callable], Callable]:
        """Register `function(fn, draw)` as one more check; its docstring says what must hold."""

        def register(function: Callable) -> Callable:
            self.aims.append(Aim(as_check(function, measures), points))
            return function

        return register

    def mistake(self, says: str, *edits: Edit) -> None:
        """One that learners make: what they are told, and edits of the solution that make it."""
        self.mistakes.append(Mistake(" ".join(says.split()), edits))

    def cases(self, seed: int = 0) -> list[Case]:
        """What a submission is tried on to find out its mistake, the simplest first."""
        inputs = self.inputs(Draw(seed)) if self.inputs else {}
        ordinary = [Case(name, arguments, True) for name, arguments in inputs.items()]
        edges = self.edges(Draw(seed)).items()
        return ordinary + [Case(name, arguments, False) for name, arguments in edges]

    @property
    def refused(self) -> tuple[str, ...]:
        """Parts of the names of torch's operators that would do the learner's work."""
        return (*FORBIDDEN, *self.forbidden)

    @property
    def source(self) -> str:
        """The solution as a learner would hand it in. Raises ValueError where it is not there."""
        if self.stored:
            raise ValueError(
                f"the solution of {self.name} is not in this package, only its answers are: ask "
                "those who teach the course"
            )
        return _imports(self.solution) + _without_decorators(self.solution)

    @property
    def solved(self) -> str:
        """The solution as it is shown, without the marks around what is cut out."""
        return re.sub(rf"    ({mistakes.BEGIN}|{mistakes.END})\n", "", self.source)

    @property
    def stub(self) -> str:
        """What the learner gets: everything but the solution."""
        if self.stored:
            return self.stored.stub
        source = _without_decorators(self.solution)
        body = '    raise NotImplementedError("your turn")\n'
        if self.start is not None:
            body = _body_of(self.start)
        stub, count = SOLUTION.subn(lambda _: body, source)
        if count != 1:
            raise ValueError(f"{self.name}: expected one solution between its marks, found {count}")
        return (_imports(self.solution) + stub).rstrip()

    def text(self, level: int = 1) -> str:
        """The task as Markdown."""
        unit = "point" if self.points == 1 else "points"
        return f"{'#' * level} Exercise: {self.title} ({self.points} {unit})\n\n{self.about}"

    def run(
        self, fn: Callable, seed: int = 0, seconds: float = SECONDS, diagnosed: bool = True
    ) -> Feedback:
        """Check `fn`, whatever it does. Where answers are stored, they are those of seed 0."""
        _warm_up()
        seed = 0 if self.stored else seed
        results: list[Result] = []
        misfits: list[str] = []  # for each result
        answered: list[tuple] = []  # the last call, if it came back: arguments, flags and answer

        def guarded(*arguments: Any, **flags: Any) -> Any:
            answered.clear()
            with Forbidding(self.refused) as forbidding:
                answer = fn(*arguments, **flags)
            guarded.largest = max(forbidding.largest, getattr(fn, "largest", 0))
            answered.append((arguments, flags, answer))
            return answer

        guarded.__name__ = guarded.__qualname__ = self.name
        guarded.__module__ = "__main__"
        subject = self.subject(guarded) if self.subject else None
        for number, aim in enumerate(self.aims):
            answered.clear()
            if results and (why := _hopeless(results[-1])):
                results.append(_not_run(aim.check, f"Not tried: {why}."))
            elif aim.on_subject:
                results.append(run_check(aim.check, subject, seconds))
            else:
                draw = Draw(1_000 * seed + number)
                call = lambda given, aim=aim, draw=draw: aim.check.function(given, draw)  # noqa: E731
                results.append(run_check(replace(aim.check, function=call), guarded, seconds))
            stumbled = results[-1].raised and not results[-1].hung and answered
            misfits.append(self.misfit(*answered[0]) if stumbled else "")
        results = [_told(result, misfit) for result, misfit in zip(results, misfits, strict=True)]
        report = Report(subject.kind if subject else "", self.name, "core", results)
        known = self.diagnose(guarded, seed) if diagnosed and _answered(report) else UNKNOWN
        return Feedback(self, report, known)

    def diagnose(self, fn: Callable, seed: int = 0) -> Diagnosis:
        """Which mistakes give the answers of `fn`, if known ones do."""
        museum = Group(mistakes.of_the_museum(bugs(self.subject(fn).kind) if self.subject else []))
        if self.stored:
            right, (written, *others) = self.stored.right, self.stored.groups()
        else:
            right, (written, *others) = self.solution, self.groups()
        groups = [written, museum, *others]
        return mistakes.diagnose(
            fn, self.cases(seed), right, groups, self.tolerance, self.gradients
        )

    def groups(self) -> list[Group]:
        """What its solution and its mistakes come to, if one or two things are wrong."""
        return mistakes.groups(self.mistakes, self.source, self.name)

    def misfit(self, arguments: tuple, flags: dict, answer: Any) -> str:
        """In what an answer is of another type, shape or dtype than the solution's, if it is.

        A check that expects a tensor of three axes stumbles over one of two: the error that this
        raises is not the learner's, and says nothing to them.
        """
        try:
            wanted = self.solution(*arguments, **flags)
            for path, a, b in leaves(wanted, answer, self.name):
                expect_alike(path, a, b)
        except Failed as failure:
            return failure.diagnosis
        except Exception:  # it is called with what the solution cannot answer either
            return ""
        return ""

    def borrowed(self, what: str) -> Feedback:
        """No points, because it uses what is there already."""
        of = "" if what.partition(".")[0] == PACKAGE else f" of {PACKAGE}"
        return self.not_run(f"{self.name} is yours to write, but it uses {what}{of}.")

    def not_run(self, why: str) -> Feedback:
        """No points, for this reason."""
        results = [_not_run(aim.check, why) for aim in self.aims]
        return Feedback(self, Report("", self.name, "core", results))


@cache
def _warm_up() -> None:
    """What the guard's first use imports, for a second or more, is not the learner's time."""
    with Forbidding(("nothing",)):
        torch.ones(2, requires_grad=True).sum().backward()


def exercise(
    title: str,
    *,
    chapter: int,
    about: str,
    hints: Sequence[str],
    inputs: Callable[[Draw], Inputs] | None,
    edges: Callable[[Draw], Inputs] = lambda draw: {},
    gradients: bool = False,
    points: int = 2,
    forbidden: Sequence[str] = (),
    subject: Callable[[Callable], Subject] | None = None,
    promises: dict[str, int] | None = None,
    start: Callable | None = None,
    tolerance: float = 1e-5,
) -> Callable[[Callable], Exercise]:
    """Make an exercise of its solution.

    `inputs(draw)` gives arguments by name, the simplest first; `points` are for answering each as
    the solution does, and one more for leaving tensors and lists in them as they are. Where there
    is nothing to compare with, `inputs` is None, and the first check is another. `edges(draw)` are
    arguments with something unusual about them, each worth a point. `promises` are checks of the
    kind of `subject`, with their points. With `gradients` those of the solution are compared too.
    """

    def make(solution: Callable) -> Exercise:
        stored = stored_answers(solution.__name__)
        if len(hints) != 3 and not stored:
            raise ValueError(f"{solution.__name__} has {len(hints)} hints, expected three steps")
        one = Exercise(
            title,
            chapter,
            " ".join(about.split()),
            Recalled(solution, lambda: stored.calls) if stored else solution,
            tuple(" ".join(text.split()) for text in hints),
            inputs,
            edges,
            gradients,
            tuple(forbidden),
            subject,
            start,
            tolerance,
            stored,
        )

        if inputs is not None:
            one.aims.append(Aim(right_answers(one), points))
            if left_alone := arguments_left_alone(one):
                one.aims.append(Aim(left_alone, 1))
        one.aims += [Aim(right_at_the_edge(one, name), 1) for name in edges(Draw(0))]
        for name, worth in (promises or {}).items():
            kind = CHECKS[subject(solution).kind]
            one.aims.append(Aim(kind[name], worth, on_subject=True))
        if stored is None or stored.path.exists():
            EXERCISES[one.name] = one
        return one

    return make


def find(name: str) -> Exercise:
    """Raises ValueError with the names there are."""
    if name not in EXERCISES:
        close = get_close_matches(name, EXERCISES, n=1)
        meant = f"did you mean {close[0]}?" if close else f"there are {', '.join(EXERCISES)}"
        raise ValueError(f"no exercise {name!r}: {meant}")
    return EXERCISES[name]


def check(name: str, fn: Callable, seed: int = 0) -> Feedback:
    """Points, and what is wrong, for a learner's function; `progress` keeps the best."""
    one = find(name)
    what = borrows(fn)
    feedback = one.borrowed(what) if what else one.run(fn, seed)
    if feedback.started:
        standings.record(name, score=feedback.score)
    return feedback


_last: tuple[str, Callable, Feedback] | None = None


def check_in_turn(name: str, fn: Callable, number: int) -> Feedback:
    """The feedback for the check of this number, for a tool that asks for one after the other.

    Number 0 runs them all, and those that follow for the same function are told what came of it:
    what is defined anew before they are asked for again, a helper say, is seen.
    """
    global _last
    if number == 0 or _last is None or _last[0] != name or _last[1] is not fn:
        _last = name, fn, check(name, fn)
    return _last[2]


def hint(name: str, step: int = 1) -> None:
    """Print one of the three hints, each of which says more than the one before."""
    one = find(name)
    most = min(_most_hints, len(one.hints))
    if step not in range(1, most + 1):
        there = f"there are hints 1 to {most}" if most else "there are no hints here"
        raise ValueError(f"{there}, got {step!r}")
    standings.record(name, hint=step)
    print(textwrap.fill(f"Hint {step} of {most}: {one.hints[step - 1]}", WIDTH))


def solution(name: str) -> None:
    """Print the solution, for who has all points or has read the last hint."""
    one = find(name)
    standing = standings.read_standings().get(name, standings.Standing())
    if standing.best < one.points and standing.hint < 3:
        raise ValueError(
            f"the solution of {name} is for who has all {one.points} points or has read hint 3"
        )
    print(one.solved)


_most_hints = 3


def limit_hints(steps: int) -> None:
    """Give no more than so many of the three, or none: the last is nearly the line itself."""
    global _most_hints
    if steps not in (0, 1, 2, 3):
        raise ValueError(f"expected 0, 1, 2 or 3 hints, got {steps!r}")
    _most_hints = steps


# ---- results -------------------------------------------------------------------------------------


def _answered(report: Report) -> bool:
    """Something is wrong, and it is not that it never came back."""
    ended = any(result.hung or result.raised.startswith("It raised Died") for result in report)
    return bool(report.failed) and not ended


def _hopeless(result: Result) -> str:
    """Why there is no use in asking again, if there is none."""
    if result.raised.startswith((NOT_STARTED, "Not tried")):
        return "it is not written yet" if NOT_STARTED in result.raised else result.raised[11:-1]
    if result.raised.startswith("It raised Died"):
        return "its process had ended"
    return "it hung before" if result.hung else ""


def _told(result: Result, misfit: str) -> Result:
    """The result, with what came back in place of the error that a check ran into with it."""
    if misfit:
        result = replace(result, diagnosis=misfit, raised="")
    if len(result.diagnosis) > LONGEST:
        result = replace(result, diagnosis=result.diagnosis[:LONGEST] + "…")
    return result


def _not_run(one: Check, why: str) -> Result:
    return Result(one.name, one.tier, one.statement, "fail", diagnosis=why, raised=why)


# ---- source --------------------------------------------------------------------------------------


def _without_decorators(function: Callable) -> str:
    source = textwrap.dedent(inspect.getsource(function))
    return source[source.index(f"def {function.__name__}(") :]


def _body_of(function: Callable) -> str:
    """What follows the docstring, or the signature where there is none."""
    source = _without_decorators(function)
    if function.__doc__:
        return source.split('"""', 2)[2].lstrip("\n")
    return source.split(":\n", 1)[1]


def _imports(function: Callable) -> str:
    """The imports that it and its annotations need, of those that every exercise may use."""
    source = _without_decorators(function)
    lines = []
    for word, line in {
        "math": "import math",
        "torch": "import torch",
        "rearrange": "from einops import rearrange",
        "Tensor": "from torch import Tensor",
        "F": "from torch.nn import functional as F",
    }.items():
        if re.search(rf"\b{word}\b", source):
            lines.append(line)
    return "\n".join(lines) + "\n\n\n" if lines else ""
