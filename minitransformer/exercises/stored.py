"""Stored answers: what solutions and their mistakes give, for a package without their source.

`exercise export --to package` writes them, and cuts the chapters of exercises: `pack` and `cut`.
Such a package has a folder `stored_answers`; its exercises compare with what stands there.
"""

import ast
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from io import BytesIO
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from minitransformer.exercises.answers import (
    Answer,
    StoredCall,
    call,
    form_and_numbers,
    without_answer,
)
from minitransformer.exercises.mistakes import SOLUTION, Candidate, Group, ask, groups_of

if TYPE_CHECKING:
    from minitransformer.exercises.exercise import Exercise

PLACE = Path(__file__).parent / "stored_answers"
LARGEST = 20_000  # numbers in the arguments of a call: of larger ones no answer is stored
CHAPTERS = "minitransformer.exercises.chapters"


def stored_answers(name: str) -> "Stored | None":
    """None where the solutions are there."""
    return Stored(PLACE / f"{name}.pt") if PLACE.exists() else None


@dataclass(frozen=True)
class Stored:
    """The answers of one exercise, read when they are needed."""

    path: Path

    @cached_property
    def _read(self) -> dict[str, Any]:
        return torch.load(self.path, weights_only=True)

    @property
    def stub(self) -> str:
        return self._read["stub"]

    @cached_property
    def calls(self) -> list[StoredCall]:
        return [StoredCall(*one) for one in self._read["calls"]]

    @property
    def right(self) -> dict[str, Answer]:
        """What the solution gives on each case."""
        return self._row(self._read["right"])

    def groups(self) -> list[Group]:
        """What its mistakes give."""
        return groups_of(
            *(
                (Candidate(tuple(says), self._row(row)) for says, row in group)
                for group in self._read["groups"]
            )
        )

    def _row(self, row: list[int]) -> dict[str, Answer]:
        return {name: self._answers[i] for name, i in zip(self._read["cases"], row, strict=True)}

    @cached_property
    def _answers(self) -> list[Answer]:
        answers = self._read["answers"]
        parts = iter(self._read["numbers"].double().split([n for one in answers for n in one[2:]]))
        pairs = [(next(parts), next(parts)) for _ in answers]
        return [
            without_answer(form) if raised else Answer(form, *pair)
            for (form, raised, _, _), pair in zip(answers, pairs, strict=True)
        ]


# ---- to write them -------------------------------------------------------------------------------


def pack(one: "Exercise") -> bytes:
    """The file of an exercise whose solution is here. It takes seconds: every mistake is run."""
    cases = one.cases()
    places: dict[Any, int] = {}  # each answer is kept once
    answers: list[tuple] = []
    numbers: list[Tensor] = []

    def row(fn: Any) -> list[int]:
        return [place(ask(fn, case, one.gradients)) for case in cases]

    def place(answer: Answer) -> int:
        parts = answer.numbers.float(), answer.slopes.float()
        key = answer.form, answer.raised, *(part.numpy().tobytes() for part in parts)
        if key not in places:
            places[key] = len(answers)
            answers.append((answer.form, answer.raised, *map(len, parts)))
            numbers.extend(parts)
        return places[key]

    groups = [
        [(list(candidate.says), row(candidate.fn)) for candidate in islice(*group[:2])]
        for group in one.groups()
    ]
    file = BytesIO()
    torch.save(
        {
            "stub": one.stub,
            "calls": [tuple(stored) for stored in _calls(one)],
            "cases": [case.name for case in cases],
            "right": row(one.solution),
            "groups": groups,
            "answers": answers,
            "numbers": torch.cat([torch.zeros(0), *numbers]),
        },
        file,
    )
    return file.getvalue()


def _calls(one: "Exercise") -> Iterable[StoredCall]:
    """What the solution answers whenever the checks call it."""
    calls: dict[Any, StoredCall] = {}

    def solution(*arguments: Any, **flags: Any) -> Any:
        form, numbers = form_and_numbers((arguments, flags))
        wanted = any(isinstance(x, Tensor) and x.requires_grad for x in arguments)
        found = one.solution(*arguments, **flags)
        if len(numbers) <= LARGEST:
            slopes = call(one.solution, arguments, True)[1] if wanted else None
            key = form, wanted, numbers.numpy().tobytes()
            calls[key] = StoredCall(form, numbers, _detached(found), slopes)
        return found

    one.run(solution)
    return calls.values()


def _detached(found: Any) -> Any:
    if isinstance(found, tuple | list):
        return type(found)(_detached(one) for one in found)
    return found.detach().clone() if isinstance(found, Tensor) else found


def cut(chapters: dict[str, str], hints: int) -> dict[str, str]:
    """The sources of the chapters, by module, without solutions, mistakes and hints beyond these.

    What only solutions and mistakes used goes too: constants, and helpers without a decorator.
    """
    blank = '    raise NotImplementedError("your turn")\n'
    trees = {name: ast.parse(SOLUTION.sub(blank, text)) for name, text in chapters.items()}
    for tree in trees.values():
        tree.body = [node for node in tree.body if not _is_mistake(node)]
        for node in ast.walk(tree):
            if isinstance(node, ast.keyword) and node.arg == "hints":
                assert isinstance(node.value, ast.List)
                del node.value.elts[hints:]
    while any(_without_unused(name, trees) for name in trees):
        pass
    return {name: ast.unparse(tree) + "\n" for name, tree in trees.items()}


def _is_mistake(node: ast.stmt) -> bool:
    """`NAME.mistake(...)`, a loop of these, or `NAME.mistakes += ...`."""
    if isinstance(node, ast.For):
        return all(map(_is_mistake, node.body))
    if isinstance(node, ast.AugAssign):
        return isinstance(node.target, ast.Attribute) and node.target.attr == "mistakes"
    called = getattr(getattr(node, "value", None), "func", None)
    return isinstance(called, ast.Attribute) and called.attr == "mistake"


def _without_unused(module: str, trees: dict[str, ast.Module]) -> bool:
    """Whether something was left out."""
    imported = {
        alias.name
        for other in trees.values()
        for node in other.body
        if isinstance(node, ast.ImportFrom) and node.module == f"{CHAPTERS}.{module}"
        for alias in node.names
    }
    tree = trees[module]
    read = {n.id for n in ast.walk(tree) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Load)}
    kept: list[ast.stmt] = []
    for node in tree.body:
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith(f"{CHAPTERS}."):
            names = [alias for alias in node.names if alias.name in read]
            kept += [ast.ImportFrom(node.module, names, 0)] if names else []
        elif not isinstance(node, ast.Assign | ast.FunctionDef) or _wanted(node, read | imported):
            kept.append(node)
    before, tree.body = tree.body, kept
    return _size(kept) < _size(before)


def _size(body: list[ast.stmt]) -> int:
    """How many statements there are; an import counts as the names that it brings."""
    return sum(len(getattr(node, "names", [node])) for node in body)


def _wanted(node: ast.Assign | ast.FunctionDef, names: set[str]) -> bool:
    if isinstance(node, ast.FunctionDef):
        return bool(node.decorator_list) or node.name in names
    bound = [n.id for target in node.targets for n in ast.walk(target) if isinstance(n, ast.Name)]
    return any(name in names or name.startswith("__") for name in bound)
