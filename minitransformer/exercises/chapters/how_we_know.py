"""Chapter 13: how we know."""

import torch
from torch import Tensor

from minitransformer.checks import bugs, expect
from minitransformer.exercises.exercise import Draw, exercise


def _loops(query: Tensor, key: Tensor, value: Tensor, mask: Tensor) -> Tensor:
    """The formula, number by number."""
    batch, heads, queries, width = query.shape
    mask = mask.expand(batch, heads, queries, key.shape[2])
    output = torch.zeros(batch, heads, queries, value.shape[-1])
    for b in range(batch):
        for h in range(heads):
            for q in range(queries):
                seen = mask[b, h, q].nonzero().flatten().tolist()
                scores = [float(query[b, h, q] @ key[b, h, k]) / width**0.5 for k in seen]
                powers = [torch.tensor(score - max(scores)).exp() for score in scores]
                for k, power in zip(seen, powers, strict=True):
                    output[b, h, q] += power / sum(powers) * value[b, h, k]
    return output


def _plain(query: Tensor, key: Tensor, value: Tensor, mask: Tensor) -> Tensor:
    scaled = query / query.shape[-1] ** 0.5
    return torch.where(mask, scaled @ key.mT, float("-inf")).softmax(dim=-1) @ value


def _double(query: Tensor, key: Tensor, value: Tensor, mask: Tensor) -> Tensor:
    return _plain(query.double(), key.double(), value.double(), mask).to(query.dtype)


CORRECT = {"plain torch": _plain, "loops": _loops, "float64": _double}


def _rejects(fn, given, returned: list) -> bool:
    """Whether the learner's test fails on this attention, which looks like any other.

    What it returns goes to `returned`.
    """

    def attention(query: Tensor, key: Tensor, value: Tensor, mask: Tensor) -> Tensor:
        return given(query, key, value, mask)

    try:
        returned.append(fn(attention))
    except AssertionError:
        return True
    return False


def _verdicts(fn, draw: Draw, functions: dict, times: int) -> dict[str, list[bool]]:
    """Whether the learner's test fails on each of these, asked `times` times in a random order.

    A test that counts how often it is called, or draws lots, does not know whose turn it is.
    """
    order = list(functions) * times
    order = [order[i] for i in torch.randperm(len(order), generator=draw.generator)]
    verdicts: dict[str, list[bool]] = {name: [] for name in functions}
    returned: list = []
    for name in order:
        verdicts[name].append(_rejects(fn, functions[name], returned))
    answers = [x for x in returned if x is not None]
    expect(
        not answers or any(map(any, verdicts.values())),
        f"Your test returns its verdict, such as {answers[:1]}, and never fails: nobody looks at "
        "what a test returns. Use assert.",
    )
    return verdicts


@exercise(
    "Write the test that catches this bug",
    chapter=13,
    about="""Now you are the one who checks. Write a test for attention functions. It must pass the
        right ones, however they are written, and fail the broken ones, which come from the museum:
        a mask that is ignored, upside down, shifted by a key, taken of the first sequence for all,
        or applied after the softmax or to the values alone; a finite fill in place of -inf; scores
        that are not scaled; a softmax along another axis.""",
    hints=[
        "Call it on small random tensors with a mask of your own, and compare with what must hold: "
        "assert, with a tolerance where there is rounding.",
        "Values of the identity matrix show you the weights: the output is then the weights.",
        "Assert that weights at forbidden keys are == 0, that rows sum to 1, that another value at "
        "a forbidden key changes nothing, and the formula itself.",
    ],
    inputs=None,
)
def catch_the_bug(attention) -> None:
    """Raise AssertionError if `attention` is wrong, and nothing if it is right.

    What it returns is not looked at. It is called several times, in any order, and must always say
    the same of the same function.

    attention(query, key, value, mask) -> output, (batch, heads, queries, width of value)
    query: (batch, heads, queries, width) float32; key: (batch, heads, keys, width)
    value: (batch, heads, keys, any width); queries and keys may differ in number
    mask: (batch, 1, queries, keys) bool, True = may attend, with a True in every row
    """
    ### BEGIN SOLUTION
    generator = torch.Generator().manual_seed(0)
    query = torch.randn(2, 2, 3, 5, generator=generator)
    key = torch.randn(2, 2, 5, 5, generator=generator)
    mask = torch.tensor([[1, 1, 0, 1, 0], [1, 0, 0, 0, 0], [0, 1, 1, 1, 1]]).bool()
    mask = torch.stack((mask, mask.roll(1, dims=1)))[:, None]
    weights = attention(query, key, torch.eye(5).expand(2, 2, 5, 5).clone(), mask)
    forbidden = ~mask.expand_as(weights)
    assert (weights[forbidden] == 0).all(), "a forbidden key has a weight"
    assert torch.allclose(weights.sum(dim=-1), torch.ones(2, 2, 3)), "a row does not sum to 1"
    scores = query @ key.transpose(-2, -1) / 5**0.5
    wanted = scores.masked_fill(~mask, float("-inf")).softmax(dim=-1)
    assert torch.allclose(weights, wanted, atol=1e-5), "the weights are not those of the formula"
    far = attention(query * 1e4, -key * 1e4, torch.eye(5).expand(2, 2, 5, 5).clone(), mask)
    assert (far[forbidden] == 0).all(), "a large score leaks"
    ### END SOLUTION


BROKEN = {one.name: one.implementation for one in bugs("attention")}
CAUGHT = {  # pieces that the test must fail on -> what they do, and a question
    "no mask at all": "Masked keys get weight there like any other. Does your test look at them?",
    "mask after the softmax": "Masked keys have a weight of 0 there, but the others sum to less "
    "than 1. Does your test look at the sum of a row, or compare with the formula?",
    "polarity inverted": "Queries see only what the mask forbids there. Does your test know which "
    "keys have weight?",
    "not scaled": "The scores are not divided by √d there. Does your test compare with the "
    "formula?",
    "mask of the first sequence for all": "Every sequence is given the first one's mask there. Do "
    "the sequences of your batch have masks that differ?",
    "mask one key late": "Every row of the mask is shifted by one key there. Does your mask have "
    "holes, so that neighboring keys differ?",
    "softmax over the queries": "The weights of a key sum to 1 there, not those of a query. Does "
    "your test look at the sum of a row, or compare with the formula?",
    "values zeroed, scores not masked": "The values of masked keys are set to 0 there, and their "
    "scores still take weight away. With values of 1 everywhere, what should the output be?",
    "fill of -15": "Masked scores are -15 there, which leaves weights of about a ten-millionth, "
    "less than a tolerance. Does your test ask for exactly 0, or make masked scores large?",
}


@catch_the_bug.check(points=0)
def correct_functions_pass(fn, draw: Draw):
    """Functions that are right pass the test, however they are written and whenever asked."""
    functions = CORRECT | {name: BROKEN[name] for name in CAUGHT}
    verdicts = _verdicts(fn, draw, functions, times=2)
    for name in CORRECT:
        expect(
            not any(verdicts[name]),
            f"Your test fails a correct attention, the one written with {name}. Is a tolerance too "
            "narrow, or is something asserted that need not hold?",
        )


def _catches(name: str, why: str) -> None:
    """One more check, for a point: the test fails on this piece, and on nothing that is right."""

    def caught(fn, draw: Draw):
        right = {one: CORRECT[one] for one in ("plain torch", "float64")}
        verdicts = _verdicts(fn, draw, {name: BROKEN[name], **right}, times=3)
        found = verdicts.pop(name)
        expect(any(found), f"Your test passes a broken attention: {name}. {why}")
        expect(
            all(found) and not any(map(any, verdicts.values())),
            f"Asked again, your test decides otherwise about {name} or about a correct attention: "
            "the verdict must follow from what the function does, whenever it is asked.",
        )

    caught.__name__ = "it_catches_" + name.replace(" ", "_").replace("-", "_").replace(",", "")
    caught.__doc__ = f"The museum's piece {name!r} fails the test."
    catch_the_bug.check(points=1)(caught)


for _name, _why in CAUGHT.items():
    _catches(_name, _why)
