"""What a person should look at before the scores go out: no verdict, a list of places.

Whatever could be worth points that it did not get, or has points that it may not deserve: all
checks of an answer fail with one error; a mistake that is known by name took all points; a file
that cannot be read; a note that asks something; answers of two students that are the same but for
the names of variables.
"""

from collections.abc import Mapping, Sequence

from minitransformer.exercises.feedback import NOT_GRADED, NOT_LOADED, NOT_STARTED, NOT_THERE
from minitransformer.grading.records import Graded, Record

# Notes that a person should answer: how they end, and what they say of files with code.
ASKS = ("look at it", "?")
UNREAD = ("cannot be read", "that can be read", "it was not read")
SILENT = (NOT_STARTED, NOT_THERE, "")


def review(records: Mapping[str, Record], names: Sequence[str]) -> list[str]:
    """A line for each place, by student."""
    lines = []
    for student, record in records.items():
        lines += [f"{student}: {note}" for note in record.notes if _asks(note)]
        for name in names:
            if why := _why_look_at(record.exercises[name]):
                lines.append(f"{student}: {name}: {why}")
    return lines + _same_answers(records, names)


def _asks(note: str) -> bool:
    return note.endswith(ASKS) or any(text in note for text in UNREAD)


def _why_look_at(one: Graded) -> str:
    if one.error.startswith((NOT_LOADED, NOT_GRADED)):
        return one.error
    if one.score == 0 and one.mistake:
        return f"no points for a mistake that has a name: {one.mistake.splitlines()[0]}"
    if not one.error.startswith(SILENT[:2]) and one.error and one.score == 0:
        return f"all checks fail with one error: {one.error}"
    return ""


def _same_answers(records: Mapping[str, Record], names: Sequence[str]) -> list[str]:
    """A line for each pair of students, with the exercises that they have in common."""
    pairs: dict[tuple[str, str], list[str]] = {}
    for name in names:
        by_answer: dict[str, list[str]] = {}
        for student, record in records.items():
            if answer := record.exercises[name].answer:
                by_answer.setdefault(answer, []).append(student)
        for same in by_answer.values():
            for other in same[1:]:
                pairs.setdefault((same[0], other), []).append(name)
    return [
        f"{one} and {other}: the same but for names: {', '.join(exercises)}"
        for (one, other), exercises in pairs.items()
    ]
