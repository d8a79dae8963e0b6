# %% [markdown]
# # 13. How we know
#
# A mask bug makes no noise: shapes fit, the loss falls, the text looks like text. So the only way
# to know that an attention is right is to say what *must hold*, and to have a machine look for a
# case where it does not. That is what this chapter is about, and it is the habit that outlives the
# rest of the course.
#
# After this chapter you will be able to
#
# - state what must hold of an attention function as tests that need no second implementation;
# - choose between exact and tolerant comparisons, and say why;
# - let hypothesis look for the input on which you are wrong;
# - test a test: change a line of the code, and see who notices.

# %%
import inspect
import subprocess
import sys
import tempfile
from pathlib import Path

import matplotlib.pyplot as plt
import torch
from matplotlib_inline.backend_inline import set_matplotlib_formats

from minitransformer import attention as module
from minitransformer import causal_mask, padding_mask, scaled_dot_product_attention
from minitransformer.checks import BANKS, AttentionSubject, check_attention
from minitransformer.checks.suite import run_check

set_matplotlib_formats("png")
torch.set_num_threads(1)

# %% [markdown]
# ## What must hold
#
# The obvious test compares with another implementation. But then who tests that one? And if both
# were copied from the same page, both have its bug. An **invariant** needs no second opinion: it
# says how the answer may *not* change. Four of them find most mask bugs there are:
#
# 1. A forbidden key gets a weight of exactly 0, and the weights of a row sum to 1.
# 2. What stands at padding makes no difference.
# 3. How much padding there is makes no difference.
# 4. What comes later makes no difference to what came before.
#
# Each is a few lines. How do you see the weights of a function that returns only its output? Give
# it the identity matrix for values: then the output *is* the weights.


# %%
def batch(lengths=(2, 4, 3), width=5):
    """Random query, key and value, and a mask of padding and causality."""
    generator = torch.Generator().manual_seed(1)
    longest = max(lengths)
    shape = (len(lengths), 2, longest, width)
    query, key, value = (torch.randn(shape, generator=generator) for _ in range(3))
    real = torch.arange(longest) < torch.tensor(lengths)[:, None]
    return query, key, value, padding_mask(real.long()) & causal_mask(longest)


def weights_are_zero_and_sum_to_one(attention):
    query, key, _, mask = batch()
    eye = torch.eye(key.shape[2]).expand(*key.shape[:2], -1, -1).clone()
    weights = attention(query, key, eye, mask)[0]
    assert (weights[~mask.expand_as(weights)] == 0.0).all(), "a forbidden key has a weight"
    alive = mask.any(dim=-1).expand(weights.shape[:3])
    sums = weights.sum(dim=-1)[alive]
    assert torch.allclose(sums, torch.ones_like(sums)), "the weights of a row do not sum to 1"


def what_stands_at_padding_is_irrelevant(attention):
    query, key, value, mask = batch()
    before = attention(query, key, value, mask)[0]
    key[0, :, 2:], value[0, :, 2:] = 7.0, -7.0  # row 0 has two real tokens
    after = attention(query, key, value, mask)[0]
    assert torch.equal(before[0, :, :2], after[0, :, :2]), "padding reaches the output"


def the_future_is_irrelevant(attention):
    query, key, value, mask = batch()
    before = attention(query, key, value, mask)[0]
    key[1, :, 2:], value[1, :, 2:] = 7.0, -7.0  # row 1 has four real tokens
    after = attention(query, key, value, mask)[0]
    assert torch.equal(before[1, :, :2], after[1, :, :2]), "the past sees the future"


TESTS = [
    weights_are_zero_and_sum_to_one,
    what_stands_at_padding_is_irrelevant,
    the_future_is_irrelevant,
]
for test in TESTS:
    test(scaled_dot_product_attention)
    print("holds:", test.__name__.replace("_", " "))

# %% [markdown]
# ## Exact or tolerant?
#
# Two of these compare with `torch.equal`, bit by bit, and one with `allclose`. The rule: **exact
# where mathematics is exact, tolerant only where there is rounding.** A weight of a forbidden key
# is exp(−∞) = 0, in every dtype; another value at a forbidden key is multiplied by that 0; nothing
# is rounded, so nothing may differ. A sum of weights is rounded, so it may differ from 1 a little.
#
# A tolerance where none is needed hides bugs. Here is an attention that fills forbidden scores with
# −15 instead of −∞.


# %%
def fill_of_minus_15(query, key, value, mask):
    scores = query @ key.mT / query.shape[-1] ** 0.5
    weights = scores.masked_fill(~mask, -15.0).softmax(dim=-1)
    return weights @ value, weights


query, key, _, mask = batch()
eye = torch.eye(4).expand(3, 2, 4, 4).clone()
alive = mask.any(dim=-1, keepdim=True)
weights = fill_of_minus_15(query, key, eye, mask | ~alive)[0]
leak = weights[~(mask | ~alive).expand_as(weights)].max().item()
print(f"largest weight on a forbidden key: {leak:.1e}")
print("a test with atol=1e-5 passes:", bool(leak < 1e-5))
print("a test with == 0.0 passes:   ", bool(leak == 0.0))
assert leak > 0.0

# %% [markdown]
# ### Try it: a test that cannot fail
#
# Every test here is worth something only if it can fail. The next one looks sensible. What is it
# that it really compares? Find an attention, however wrong, that it would catch.


# %%
def looks_like_a_test(attention):
    query, key, value, mask = batch()
    before = attention(query, key, value, mask)[0]
    key.masked_fill(~mask[:, :, -1, :, None], 99.0)  # change the padded keys ...
    after = attention(query, key, value, mask)[0]
    assert torch.equal(before, after)


looks_like_a_test(lambda query, key, value, mask: (query @ key.mT @ value, None))  # no mask at all
print("passes with no mask at all")

# %% [markdown]
# `masked_fill` returns a new tensor and leaves `key` alone (`masked_fill_` changes it). The test
# compares a call with the same call. You would never have known had you not tried it on something
# broken. So: **show every test a bug that it must catch.**

# %% [markdown]
# ## In pytest
#
# `minitransformer.checks` has such invariants in three tiers, and `parametrize_with_checks` makes
# a test of each, for any function. This is all that an author of an attention layer needs to
# write. The function below is the first attempt of many people: the mask is multiplied in after
# the softmax.

# %%
TEST_FILE = """
from minitransformer.checks import AttentionSubject, parametrize_with_checks


def attention(query, key, value, mask):
    weights = (query @ key.mT / query.shape[-1] ** 0.5).softmax(dim=-1)
    return (weights * mask) @ value


@parametrize_with_checks(AttentionSubject(attention), tier="core")
def test_attention(subject, check):
    check(subject)
"""

with tempfile.TemporaryDirectory() as folder:
    (Path(folder) / "test_mine.py").write_text(TEST_FILE)
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "--tb=no",
        "--color=no",
        "-p",
        "no:cacheprovider",
    ]
    run = subprocess.run(command, cwd=folder, capture_output=True, text=True)
for line in run.stdout.splitlines():
    if line.startswith("FAILED"):
        print(line.split(" - ")[0].removeprefix("FAILED test_mine.py::test_attention"))
failures = run.stdout.count("FAILED")
assert failures > 5

# %% [markdown]
# Forbidden keys do get a weight of 0, so that check passes. But they were still in the denominator:
# rows do not sum to 1, and everything depends on how much padding there is.

# %% [markdown]
# ## Let the machine choose the input
#
# Whoever writes a test chooses its inputs, and does not think of the case that he did not think
# of: a row of length 0, a hole in the middle, a single query. *Property tests* turn it round: you
# say what must hold, and a library (here hypothesis) looks for a counterexample, and then for the
# smallest one. The function below computes positions from an attention mask. It is right for
# padding on the right. Where is it wrong?

# %%
from hypothesis import given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402

from minitransformer import token_positions  # noqa: E402


def positions_by_hand(attention_mask):
    return (attention_mask.cumsum(dim=1) - 1).clamp(min=0)


found = []


@settings(max_examples=200, deadline=None, derandomize=True, database=None)
@given(st.lists(st.integers(0, 1), min_size=1, max_size=6))
def test_positions(row):
    mask = torch.tensor([row])
    found.append(row)
    wanted, got = token_positions(mask), positions_by_hand(mask)
    assert torch.equal(wanted, got), f"{row}: wanted {wanted[0].tolist()}, got {got[0].tolist()}"


try:
    test_positions()
except AssertionError as error:
    print(error.args[0])
print(f"tried {len(found)} masks; the smallest that fails is {found[-1]}")
assert found[-1] == [1, 1, 0]

# %% [markdown]
# Padding behind the text gets the position of the last token instead of 0. Does it matter? Not for
# the result, since nobody sees padding; but a position beyond the table of learned positions is an
# IndexError in a batch that you will not have tested. hypothesis found it, and it cut the example
# down to three tokens by itself.

# %% [markdown]
# ## Who tests the tests?
#
# A test suite that is green says nothing until you know what would make it red. **Mutation
# testing** asks that: change one thing in the code, run the tests, and see whether any of them
# notices. A mutant that survives is a hole in the tests, or a line that has no effect.
#
# Here is the code of the formula in this package.

# %%
source = inspect.getsource(module.scaled_dot_product_attention)
source += "\n\n" + inspect.getsource(module.attend)
body = [line for line in source.splitlines() if not line.lstrip().startswith('"""')]
print("\n".join(inspect.getsource(module.attend).splitlines()[4:]))

# %% [markdown]
# And here are ten mutants: one change each. Before you run the next cell, mark those that you think
# a test *with ordinary numbers* would notice.

# %%
MUTANTS = {
    "no √d": (" / query.shape[-1] ** 0.5", ""),
    "polarity: mask for ~mask": ("~mask & alive", "mask & alive"),
    "softmax over the queries": ("softmax(dim=-1)", "softmax(dim=-2)"),
    "-1e4 for -inf": ('float("-inf")', "-1e4"),
    "-1e30 for -inf": ('float("-inf")', "-1e30"),
    "no float32 inside": ("torch.promote_types(query.dtype, torch.float32)", "query.dtype"),
    "dead rows not finite": ("~mask & alive", "~mask"),
    "dead rows not set to 0": (".softmax(dim=-1).masked_fill(~alive, 0.0)", ".softmax(dim=-1)"),
    "unused values not cleaned": ("value.masked_fill(~used, 0.0)", "value"),
    "unused keys not cleaned": ("key.masked_fill(~used, 0.0)", "key"),
}


def mutant(old, new):
    assert old in source, old
    space = dict(vars(module))
    exec(source.replace(old, new), space)
    return space["scaled_dot_product_attention"]


TIERS = ("core", "robust", "strict")
noticed = {}
for name, (old, new) in {"the code as it is": ("", ""), **MUTANTS}.items():
    report = check_attention(
        mutant(old, new) if old else scaled_dot_product_attention, tier="strict"
    )
    noticed[name] = [
        sum(one.outcome == "fail" for one in report if one.tier == tier) for tier in TIERS
    ]
    counts = zip(TIERS, noticed[name], strict=True)
    print(f"{name:<28}" + "".join(f"{tier}: {n:<3} " for tier, n in counts))
assert noticed["the code as it is"] == [0, 0, 0]
survivors = [name for name, counts in noticed.items() if not sum(counts)][1:]
print("\nnobody notices:", survivors)
assert survivors == ["no float32 inside"]

# %%
figure, axis = plt.subplots(figsize=(7, 4), layout="constrained")
names = list(noticed)
left = [0] * len(names)
for tier, colour in zip(range(3), ("#08519c", "#5a8f3d", "#d9822b"), strict=True):
    counts = [noticed[name][tier] for name in names]
    axis.barh(names, counts, left=left, color=colour, label=TIERS[tier])
    left = [a + b for a, b in zip(left, counts, strict=True)]
axis.invert_yaxis()
axis.set(xlabel="checks that fail", title="One change each: which tier notices?")
axis.legend(frameon=False)
axis.spines[["top", "right"]].set_visible(False)
plt.show()

# %% [markdown]
# A wrong scale, polarity or axis is noticed by half of all checks: you would find it with any test
# at all. A finite number in place of −∞ and the care for dead rows are noticed only by those who
# ask for them: *robust*. And cleaning the rows that nobody uses changes nothing as long as padding
# holds numbers: only NaN in padding, *strict*, tells the difference.
#
# One mutant survives: scores in float16. Is that a hole in the suite, or is the line without
# effect? Here it is a choice. Scores overflow in float16 only where q·k/√d is above 65504, and the
# suite asks nobody for that, since trained models stay far below. It can be made to happen:

# %%
large = torch.full((1, 1, 2, 8), 200.0, dtype=torch.float16)
value = torch.tensor([1.0, 3.0], dtype=torch.float16).view(1, 1, 2, 1).expand(1, 1, 2, 8)
everything = torch.ones(1, 1, 2, 2, dtype=torch.bool)
survivor = mutant(*MUTANTS["no float32 inside"])
for name, fn in {"with float32": scaled_dot_product_attention, "without": survivor}.items():
    print(f"{name:<13}", fn(large, large, value, everything)[0][0, 0, 0, 0])

# %% [markdown]
# The package's own tests do ask for it, so there this mutant does not survive.
#
# `scripts/mutate.py` does this with every operator and constant of the masks, the attention, the
# loss and the batching: more than a thousand mutants. Those that survive stand in a table, each
# with the reason why no test can or need notice.

# %% [markdown]
# ### Try it: write a mutant that nobody notices
#
# Change `old` and `new`. Is there a change of the formula that no check notices, and that is not
# the same mathematics in other words? If you find one, you have found a hole in the suite.

# %%
old, new = "query.masked_fill(~alive, 0.0)", "query"
report = check_attention(mutant(old, new), tier="strict")
print(report.failed or "nobody notices")

# %% [markdown]
# Watching one check at work: `BANKS["attention"]` holds all by name, and `run_check` runs one.

# %%
one = BANKS["attention"]["weights_sum_to_one"]
print(run_check(one, AttentionSubject(mutant("~mask & alive", "~mask & ~mask.roll(1) & alive"))))

# %% [markdown]
# ## Exercises

# %% [markdown]
# <!-- exercise: catch_the_bug -->

# %% [markdown]
# ## Check yourself
#
# 1. Why is `== 0.0` right for a forbidden weight and wrong for the sum of a row?
# 2. You compare your attention with PyTorch's on a batch without padding, and they agree. What do
#    you know about your mask?
# 3. A test passes. Name two reasons, one good and one bad.
# 4. What does hypothesis do after it has found a counterexample?
# 5. A mutant survives. What are the two things that can mean?
#
# <details><summary>Answers</summary>
#
# 1. A forbidden weight is exp(−∞), exactly 0 in every dtype. A sum of weights is a sum of rounded
#    numbers.
# 2. Nothing. Without padding (and without causality) the mask is True everywhere.
# 3. What it claims holds; or it compares something with itself, or never reaches the assertion.
# 4. It looks for a smaller one that fails in the same way, so that you can see why.
# 5. No test covers what that line does; or the line has no effect that anybody could see, and may
#    go.
#
# </details>
