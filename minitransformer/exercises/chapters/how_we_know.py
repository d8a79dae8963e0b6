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
    scores = query @ key.transpose(-2, -1) / query.shape[-1] ** 0.5
    return scores.masked_fill(~mask, float("-inf")).softmax(dim=-1) @ value


def _double(query: Tensor, key: Tensor, value: Tensor, mask: Tensor) -> Tensor:
    return _plain(query.double(), key.double(), value.double(), mask).to(query.dtype)


CORRECT = {"plain torch": _plain, "loops": _loops, "float64": _double}


def _rejects(fn, given) -> bool:
    """Whether the learner's test fails on this attention, which looks like any other."""

    def attention(query: Tensor, key: Tensor, value: Tensor, mask: Tensor) -> Tensor:
        return given(query, key, value, mask)

    try:
        fn(attention)
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
    for name in order:
        verdicts[name].append(_rejects(fn, functions[name]))
    return verdicts


@exercise(
    "Write the test that catches this bug",
    chapter=13,
    about="""Now you are the one who checks. Write a test for attention functions. It must pass the
        right ones, however they are written, and fail the broken ones, which come from the
        museum.""",
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

    attention(query, key, value, mask) -> output: (batch, heads, queries or keys, width) float32 and
    a bool mask (batch, 1, queries, keys), True = may attend, with a True in every row
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
CAUGHT = {  # pieces that the test must fail on, and what to look at
    "no mask at all": "Forbidden keys get weight like any other: look at theirs.",
    "mask after the softmax": "Forbidden weights are 0, but the others do not sum to 1.",
    "polarity inverted": "It looks only at what it must not see.",
    "not scaled": "Without √d the weights are not those of the formula.",
    "mask of the first sequence for all": "Give each row of the batch a mask of its own.",
    "mask one key late": "Use masks with holes, so that neighbours of a key differ.",
    "softmax over the queries": "The weights of a query sum to 1, over its keys.",
    "values zeroed, scores not masked": "With values of 1 everywhere the rows do not sum to 1.",
    "fill of -15": "A small weight is not 0: assert == 0, or make forbidden scores large.",
}


@catch_the_bug.check(points=0)
def correct_functions_pass(fn, draw: Draw):
    """Functions that are right pass the test, however they are written and whenever asked."""
    functions = CORRECT | {name: BROKEN[name] for name in CAUGHT}
    verdicts = _verdicts(fn, draw, functions, times=2)
    for name in CORRECT:
        expect(
            not any(verdicts[name]),
            f"Your test fails a correct attention, the one written with {name}: is a tolerance too "
            "narrow, or something asserted that need not hold?",
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
