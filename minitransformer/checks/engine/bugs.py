"""The museum: mask bugs of real code, rebuilt small, so that the checks have something to catch.

Each bug is a broken implementation with its story, its source, the checks that must fail and the
diagnosis that must be given. The same bugs give a report its words: a subject that fails as one of
them does, by the same numbers, gets its diagnosis.

    bug = partial(bugs.bug, "attention")

    @bug(
        "mask after the softmax",
        caught_by=["weights_sum_to_one"],
        diagnosis="The mask is multiplied in after the softmax, so ...",
        source="the commonest first try",
    )
    def mask_after_softmax(query, key, value, mask):
        \"\"\"What it is and what its author saw: the story.\"\"\"
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any

from minitransformer.checks.engine.check import TIERS
from minitransformer.checks.engine.subject import SUBJECTS


@dataclass(frozen=True)
class Bug:
    """One broken implementation."""

    name: str
    kind: str  # the kind of subject it is
    tier: str  # the lowest tier at which a check catches it
    implementation: Any  # a function, or the class of a model that is built without arguments
    story: str
    source: str
    diagnosis: str
    caught_by: tuple[str, ...]  # checks that must fail
    conventions: dict[str, Any] = field(default_factory=dict)  # what its subject declares
    also: tuple[Any, ...] = ()  # the same bug in other bodies, which fail other checks

    def subject(self, body: int = 0) -> Any:
        """Ready to be checked; `body` says which of its implementations."""
        fn = (self.implementation, *self.also)[body]
        fn = fn() if isinstance(fn, type) else fn
        return SUBJECTS[self.kind](fn, name=f"museum: {self.name}", **self.conventions)


OURS = "a mutant of our own"
_BUGS: list[Bug] = []
_KINDS = ("attention", "masks", "models", "caches", "losses", "labels", "generators")


def bug(
    kind: str,
    name: str,
    *,
    tier: str = "core",
    caught_by: Iterable[str],
    diagnosis: str,
    source: str = OURS,
    also: Iterable[Any] = (),
    **conventions: Any,
) -> Callable[[Any], Any]:
    """Hang an implementation in the museum; its docstring is the story."""
    if tier not in TIERS:
        raise ValueError(f"tier must be one of {', '.join(TIERS)}, got {tier!r}")

    def hang(implementation: Any) -> Any:
        story = " ".join((implementation.__doc__ or "").split())
        _BUGS.append(
            Bug(
                name,
                kind,
                tier,
                implementation,
                story,
                source,
                " ".join(diagnosis.split()),
                tuple(caught_by),
                conventions,
                tuple(also),
            )
        )
        return implementation

    return hang


def bugs(kind: str | None = None) -> list[Bug]:
    """Every bug, or those of one kind of subject, kind by kind."""
    files = [import_module(f"minitransformer.checks.{kind}.bugs").__name__ for kind in _KINDS]
    ordered = sorted(_BUGS, key=lambda one: files.index(one.implementation.__module__))
    return [one for one in ordered if kind in (None, one.kind)]
