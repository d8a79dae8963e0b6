"""What people wrote who had only the stubs: what is wrong loses points and is named, rightly.

`solutions/first` was written before the mistakes that exercises carry, which were then extended by
what it left unnamed; `solutions/second` afterwards, by others, and nothing was changed for it. Each
block begins with a heading for teachers, and of a wrong one the next line holds how its feedback
must begin, after the headline: the words that name the mistake, or "# says:" alone where nobody
has read one that does. `catch_the_bug` asks for a test, whose gaps its checks name.
"""

import linecache
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from minitransformer.exercises import EXERCISES

FOLDER = Path(__file__).parent / "solutions"


class Block(NamedTuple):
    draw: str
    name: str
    number: int
    right: bool
    about: str
    says: str
    code: str


def blocks() -> Iterator[Block]:
    for path in sorted(FOLDER.glob("*/*.py")):
        text = path.read_text(encoding="utf-8")
        for number, block in enumerate(re.split(r"^# ==== ", text, flags=re.MULTILINE)[1:]):
            heading, _, code = block.partition("\n")
            kind, _, about = heading.partition(": ")
            says = re.match(r"# says:(.*)\n", code)
            told = says[1].strip() if says else ""
            yield Block(path.parent.name, path.stem, number, kind == "right", about, told, code)


BLOCKS = list(blocks())
WRONG = [block for block in BLOCKS if not block.right]


def identified(block: Block):
    return pytest.param(block, id=f"{block.draw}-{block.name}-{block.number}")


def function(block: Block):
    label = f"<{block.name} {block.number}>"
    linecache.cache[label] = (len(block.code), None, block.code.splitlines(True), label)
    space: dict = {"__name__": "submission"}
    exec(compile(block.code, label, "exec"), space)
    return space[block.name]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("block", [identified(block) for block in BLOCKS])
def test_feedback(block):
    feedback = EXERCISES[block.name].run(function(block))
    if block.right:
        assert feedback.passed, str(feedback)
        return
    assert feedback.score < feedback.points
    assert block.says in " ".join(str(feedback).split())
    if not block.says:
        assert not feedback.mistake, "it says something now: is it true?"


def test_every_exercise_was_tried_in_both_ways():
    for draw, wrong, right in (("first", 13, 3), ("second", 6, 2)):
        names = {block.name for block in BLOCKS if block.draw == draw}
        for name in names:
            of = [block for block in BLOCKS if (block.draw, block.name) == (draw, name)]
            assert sum(not block.right for block in of) >= wrong, name
            assert sum(block.right for block in of) >= right, name
    assert {block.name for block in BLOCKS} == set(EXERCISES)


@pytest.mark.parametrize(("draw", "least"), [("first", 0.95), ("second", 0.85)])
def test_the_mistake_is_named(draw, least, record_property):
    """A share of the wrong ones; what is said to each is asserted above."""
    told = [bool(block.says) for block in WRONG if block.draw == draw]
    record_property("named", f"{sum(told)} of {len(told)}")
    print(f"{draw}: {sum(told)} of {len(told)} named")
    assert sum(told) >= least * len(told)
