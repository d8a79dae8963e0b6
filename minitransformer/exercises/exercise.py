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
        expect(..., "a diagnosis that a learner understands")
"""

import dis
import html
import inspect
import re
import textwrap
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import cache
from types import CodeType, FunctionType, ModuleType
from typing import Any

import torch
from torch import Tensor

from minitransformer.checks import CHECKS, Report, Result, diagnose
from minitransformer.checks.engine.check import Check, Failed, expect
from minitransformer.checks.engine.report import WIDTH, picture
from minitransformer.checks.engine.running import run_check
from minitransformer.checks.engine.subject import Subject
from minitransformer.exercises.forbidding import Forbidding

EXERCISES: dict[str, "Exercise"] = {}
BEGIN, END = "### BEGIN SOLUTION", "### END SOLUTION"
SECONDS = 10.0  # of CPU time that one check may take
LONGEST = 2_000  # characters of a diagnosis: it may quote an answer
PACKAGE = "minitransformer"
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

    def mask(self, batch: int, queries: int, keys: int) -> Tensor:
        """(batch, 1, queries, keys) bool, a True in every row."""
        mask = torch.rand(batch, 1, queries, keys, generator=self.generator) < 0.5
        mask[..., 0] |= ~mask.any(dim=-1)
        return mask


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
    inputs: Callable[[Draw], Iterable[tuple]] | None
    forbidden: tuple[str, ...]  # parts of the names of torch's operators
    subject: Callable[[Callable], Subject] | None
    start: Callable | None  # a broken function to begin from, in place of a blank
    tolerance: float
    aims: list[Aim] = field(default_factory=list)

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
            self.aims.append(Aim(_as_check(function, measures), points))
            return function

        return register

    @property
    def refused(self) -> tuple[str, ...]:
        """Parts of the names of torch's operators that would do the learner's work."""
        return (*FORBIDDEN, *self.forbidden)

    @property
    def source(self) -> str:
        """The solution as a learner would hand it in."""
        return _imports(self.solution) + _without_decorators(self.solution)

    @property
    def stub(self) -> str:
        """What the learner gets: everything but the solution."""
        source = _without_decorators(self.solution)
        body = '    raise NotImplementedError("your turn")\n'
        if self.start is not None:
            body = _body_of(self.start)
        stub, count = re.subn(rf" *{BEGIN}\n.*?{END}\n", lambda _: body, source, flags=re.DOTALL)
        if count != 1:
            raise ValueError(f"{self.name}: expected one solution between its marks, found {count}")
        return (_imports(self.solution) + stub).rstrip()

    def text(self, level: int = 1) -> str:
        """The task as Markdown."""
        unit = "point" if self.points == 1 else "points"
        return f"{'#' * level} Exercise: {self.title} ({self.points} {unit})\n\n{self.about}"

    def run(
        self, fn: Callable, seed: int = 0, seconds: float = SECONDS, diagnosed: bool = True
    ) -> "Feedback":
        """Check `fn`, whatever it does."""
        _warm_up()
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
        report = Report(subject.kind if subject else "", self.name, "core", results)
        if subject and diagnosed:
            known = [result for result in results if result.check in CHECKS[subject.kind]]
            likely = diagnose(replace(report, results=known), subject)
            report = replace(
                report,
                likely=likely.likely,
                explanation=likely.explanation,
                certain=likely.certain,
                not_compared=likely.not_compared,
            )
        results = [_told(result, misfit) for result, misfit in zip(results, misfits, strict=True)]
        return Feedback(self, replace(report, results=results))

    def misfit(self, arguments: tuple, flags: dict, answer: Any) -> str:
        """In what an answer is of another type, shape or dtype than the solution's, if it is.

        A check that expects a tensor of three axes stumbles over one of two: the error that this
        raises is not the learner's, and says nothing to them.
        """
        try:
            wanted = self.solution(*arguments, **flags)
            for path, a, b in _leaves(wanted, answer, self.name):
                _expect_alike(path, a, b)
        except Failed as failure:
            return failure.diagnosis
        except Exception:  # it is called with what the solution cannot answer either
            return ""
        return ""

    def borrowed(self, what: str) -> "Feedback":
        """No points, because it uses what is there already."""
        of = "" if what.partition(".")[0] == PACKAGE else f" of {PACKAGE}"
        return self.not_run(f"{self.name} is yours to write, but it uses {what}{of}.")

    def not_run(self, why: str) -> "Feedback":
        """No points, for this reason."""
        results = [_not_run(aim.check, why) for aim in self.aims]
        return Feedback(self, Report("", self.name, "core", results))


NOT_STARTED = "It raised NotImplementedError: your turn"
NOT_THERE = "It was not handed in."
NOT_LOADED = "It could not be loaded."
NOT_GRADED = "It could not be graded."
WITHOUT_ANSWER = {  # why there is nothing to say about it -> in the headline
    NOT_STARTED: "not written yet",
    NOT_THERE: "not handed in",
    NOT_LOADED: "could not be loaded",
    NOT_GRADED: "could not be graded",
}


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
    inputs: Callable[[Draw], Iterable[tuple]] | None,
    points: int = 2,
    forbidden: Sequence[str] = (),
    subject: Callable[[Callable], Subject] | None = None,
    promises: dict[str, int] | None = None,
    start: Callable | None = None,
    tolerance: float = 1e-5,
) -> Callable[[Callable], Exercise]:
    """Make an exercise of its solution.

    `inputs(draw)` gives tuples of arguments; `points` are for answering each as the solution does.
    Where there is nothing to compare with, `inputs` is None, and the first check is another.
    `promises` are checks of the kind of `subject`, with their points.
    """

    def make(solution: Callable) -> Exercise:
        if len(hints) != 3:
            raise ValueError(f"{solution.__name__} has {len(hints)} hints, expected three steps")
        one = Exercise(
            title,
            chapter,
            " ".join(about.split()),
            solution,
            tuple(" ".join(text.split()) for text in hints),
            inputs,
            tuple(forbidden),
            subject,
            start,
            tolerance,
        )

        def it_gives_what_is_wanted(fn: Callable, draw: Draw) -> None:
            """On ordinary input it gives what the task says."""
            for arguments in inputs(draw):
                wanted = solution(*_copies(arguments))
                expect_same(wanted, fn(*_copies(arguments)), arguments, one)

        if inputs is not None:
            one.aims.append(Aim(_as_check(it_gives_what_is_wanted), points))
        for name, worth in (promises or {}).items():
            kind = CHECKS[subject(solution).kind]
            one.aims.append(Aim(kind[name], worth, on_subject=True))
        EXERCISES[one.name] = one
        return one

    return make


def find(name: str) -> Exercise:
    """Raises ValueError with the names there are."""
    if name not in EXERCISES:
        raise ValueError(f"no exercise {name!r}: there are {', '.join(EXERCISES)}")
    return EXERCISES[name]


def check(name: str, fn: Callable, seed: int = 0) -> "Feedback":
    """Points, and what is wrong, for a learner's function."""
    one = find(name)
    if what := borrows(fn):
        return one.borrowed(what)
    return one.run(fn, seed)


def hint(name: str, step: int = 1) -> None:
    """Print one of the three hints, each of which says more than the one before."""
    one = find(name)
    if step not in (1, 2, 3):
        raise ValueError(f"there are hints 1, 2 and 3, got {step!r}")
    print(textwrap.fill(f"Hint {step} of 3: {one.hints[step - 1]}", WIDTH))


def borrows(fn: Callable) -> str:
    """What of minitransformer a function uses, itself or through others that stand beside it."""
    seen: set[int] = set()
    todo: list[tuple[str, Any]] = [(getattr(fn, "__name__", "it"), fn)]
    while todo:
        name, thing = todo.pop()
        module = _module_of(thing)
        if PACKAGE in (module, name.partition(".")[0]):
            return name
        if id(thing) in seen or module in ("torch", "einops"):
            continue
        seen.add(id(thing))
        if isinstance(thing, type):
            members = {n: getattr(member, "__func__", member) for n, member in vars(thing).items()}
            todo += [(n, one) for n, one in members.items() if isinstance(one, FunctionType)]
        elif isinstance(thing, FunctionType):
            space = thing.__globals__
            todo += [(used, space.get(used)) for used in names_used(thing.__code__)]
            for free, cell in zip(thing.__code__.co_freevars, thing.__closure__ or (), strict=True):
                with suppress(ValueError):  # an empty cell
                    todo.append((free, cell.cell_contents))
            todo += [(name, default) for default in thing.__defaults__ or ()]
    return ""


def names_used(code: CodeType) -> Iterator[str]:
    """The globals that it loads and the modules that it names, in functions inside it too."""
    for step in dis.get_instructions(code):
        if step.opname.startswith(("LOAD_GLOBAL", "LOAD_NAME", "LOAD_FROM_DICT", "IMPORT_NAME")):
            yield step.argval
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from names_used(constant)
        elif isinstance(constant, str) and constant.partition(".")[0] == PACKAGE:
            yield constant  # of importlib.import_module


def _module_of(thing: Any) -> str:
    """The name of the package that a thing comes from."""
    name = thing.__name__ if isinstance(thing, ModuleType) else getattr(thing, "__module__", "")
    return name.partition(".")[0] if isinstance(name, str) else ""


# ---- feedback --------------------------------------------------------------------------------


FIRST_FIRST = "No point counts before the first check passes."


@dataclass(frozen=True)
class Feedback:
    """What the checks found, and what it is worth."""

    exercise: Exercise
    report: Report

    @property
    def right(self) -> bool:
        """It does what is wanted on ordinary input, so that points count."""
        return self.report.results[0].outcome == "pass"

    @property
    def earned(self) -> list[int]:
        """The points of each check."""
        return [
            aim.points if self.right and result.outcome == "pass" else 0
            for aim, result in zip(self.exercise.aims, self.report, strict=True)
        ]

    @property
    def score(self) -> int:
        return sum(self.earned)

    @property
    def points(self) -> int:
        return self.exercise.points

    @property
    def passed(self) -> bool:
        return self.score == self.points

    @property
    def started(self) -> bool:
        return not self.report.results[0].raised.startswith(tuple(WITHOUT_ANSWER))

    @property
    def headline(self) -> str:
        if not self.started:
            raised = self.report.results[0].raised
            what = next(said for why, said in WITHOUT_ANSWER.items() if raised.startswith(why))
            return f"{self.exercise.name}: {what} (0 of {self.points} points)"
        what = "all right" if self.passed else "not yet"
        return f"{self.exercise.name}: {self.score} of {self.points} points, {what}"

    def __str__(self) -> str:
        if not self.started:
            return self.headline
        blocks = [self.headline]
        if self.report.likely:
            named = " or ".join(self.report.likely)
            blocks.append(textwrap.fill(f"{self.report.alike}: {named}", WIDTH))
            blocks[-1] += "\n" + textwrap.indent(
                textwrap.fill(self.report.explanation, WIDTH - 4), "    "
            )
        failures = [result for result in self.report if result.outcome == "fail"]
        blocks += [str(failures[0])] if failures else []
        rest = [result for result in self.report if result not in failures[:1]]
        lines = []
        for aim, result, earned in zip(self.exercise.aims, self.report, self.earned, strict=True):
            if result in rest:
                text = result.brief if result.outcome == "fail" else result.title
                worth = f"{earned}/{aim.points}"
                lines.append(f"{worth}  {text}")
        blocks.append("\n".join(lines))
        if not self.right:
            blocks[-1] += f"\n{FIRST_FIRST}"
        if not self.passed:
            blocks.append(f'stuck? hint("{self.exercise.name}")')
        return "\n\n".join(block for block in blocks if block)

    __repr__ = __str__

    def _repr_html_(self) -> str:
        return self.to_html()

    def to_html(self) -> str:
        """As a table, with the mask wanted beside the weights found where there are any."""
        parts = [f"<p><b>{html.escape(self.headline)}</b></p>"]
        if not self.started:
            return parts[0]
        if self.report.likely:
            named = html.escape(" or ".join(self.report.likely))
            text = html.escape(self.report.explanation)
            parts.append(f"<p>{self.report.alike}: <b>{named}</b>. {text}</p>")
        parts.append("<table>")
        for aim, result, earned in zip(self.exercise.aims, self.report, self.earned, strict=True):
            failed = result.outcome == "fail"
            text = html.escape(result.diagnosis if failed else result.statement)
            shown = picture(result) if failed else ""
            colour = "#b3261e" if failed else "#2c7a2c" if self.right else "#777777"
            sign, name = "✗" if failed else "✓", html.escape(result.check.replace("_", " "))
            parts.append(
                f'<tr><td style="color:{colour}; white-space:nowrap">{sign} {earned}/{aim.points}'
                f'</td><td style="text-align:left">{name}'
                f'</td><td style="text-align:left">{text}{shown}</td></tr>'
            )
        parts.append("</table>")
        if not self.right:
            parts.append(f"<p>{FIRST_FIRST}</p>")
        return "\n".join(parts)


# ---- comparing -------------------------------------------------------------------------------


def expect_same(wanted: Any, found: Any, arguments: tuple, one: Exercise) -> None:
    """Fail with the first difference, unless both are the same up to rounding."""
    for path, a, b in _leaves(wanted, found, one.name):
        if not isinstance(a, Tensor):
            alike = a == b if not isinstance(a, float) else abs(a - b) <= one.tolerance
            expect(alike, f"{path} is {b!r} where {a!r} is wanted.")
            continue
        _expect_alike(path, a, b)
        exact = not a.is_floating_point()
        same = a == b if exact else torch.isclose(a, b, rtol=0, atol=one.tolerance, equal_nan=True)
        if not same.all():
            index = tuple((~same).nonzero()[0].tolist())
            shown = {
                "wanted": a[index[:-2]] if a.ndim > 1 else a,
                "found": b[index[:-2]] if a.ndim > 1 else b,
            }
            place = f"wrong: at [{', '.join(map(str, index))}] it holds " if index else ""
            expect(
                False,
                f"{path} is {place}{_number(b[index])} where {_number(a[index])} is wanted.",
                **shown,
            )


def _expect_alike(path: str, wanted: Any, found: Any) -> None:
    """Fail where a tensor is of another shape or dtype."""
    if isinstance(wanted, Tensor):
        shapes = tuple(found.shape), tuple(wanted.shape)
        expect(
            shapes[0] == shapes[1], f"{path} has the shape {shapes[0]} where {shapes[1]} is wanted."
        )
        expect(
            wanted.dtype == found.dtype, f"{path} is {found.dtype} where {wanted.dtype} is wanted."
        )


def _leaves(wanted: Any, found: Any, path: str) -> Iterator[tuple[str, Any, Any]]:
    """Pairs of tensors and numbers, with where they are."""
    if isinstance(wanted, tuple | list):
        kind = "tuple" if isinstance(wanted, tuple) else "list"
        alike = isinstance(found, tuple | list) and len(found) == len(wanted)
        what = f"{len(found)} of them" if isinstance(found, tuple | list) else _kind(found)
        expect(alike, f"{path} gives {what} where a {kind} of {len(wanted)} is wanted.")
        for i, (a, b) in enumerate(zip(wanted, found, strict=True)):
            yield from _leaves(a, b, f"{path}(...)[{i}]" if "(" not in path else f"{path}[{i}]")
        return
    if isinstance(wanted, Tensor):
        expect(isinstance(found, Tensor), f"{path} gives {_kind(found)}, not a tensor.")
        yield path, wanted.detach(), found.detach()
        return
    if isinstance(found, Tensor) and found.numel() == 1:
        found = found.item()
    number = isinstance(wanted, int | float) and isinstance(found, int | float)
    expect(
        number or type(wanted) is type(found),
        f"{path} gives {_kind(found)} where {wanted!r} is wanted.",
    )
    yield path, wanted, found


def _kind(thing: Any) -> str:
    if thing is None:
        return "None (is there a return?)"
    name = type(thing).__name__
    return f"{'an' if name[0] in 'aeiou' else 'a'} {name}"


def _number(x: Tensor) -> str:
    return f"{x.item():.4g}" if x.is_floating_point() else str(x.item())


def _copies(arguments: Any) -> Any:
    if isinstance(arguments, Tensor):
        return arguments.clone()
    if isinstance(arguments, tuple | list):
        return type(arguments)(_copies(one) for one in arguments)
    return arguments


def _as_check(function: Callable, measures: str = "") -> Check:
    statement = " ".join((function.__doc__ or "").split())
    return Check(function.__name__, "", "core", statement, measures, (), function)


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


# ---- source ----------------------------------------------------------------------------------


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
