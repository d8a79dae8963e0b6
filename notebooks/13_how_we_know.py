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
# - state what must hold of an attention function, and run it as tests in pytest;
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
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib_inline.backend_inline import set_matplotlib_formats
from torch.nn import functional as F

from minitransformer import attention as module
from minitransformer import causal_mask, padding_mask, scaled_dot_product_attention
from minitransformer.checks import bugs, check_attention

set_matplotlib_formats("png")
torch.set_num_threads(1)

# %% [markdown]
# ## What must hold
#
# The obvious test compares with another implementation. But then who tests that one? And if both
# were copied from the same page, both have its bug. An **invariant** needs no second opinion: it
# says how the answer may *not* change. Four of them go a long way:
#
# 1. A forbidden key gets a weight of exactly 0, and the weights of a query sum to 1.
# 2. What stands at padding makes no difference.
# 3. How much padding there is makes no difference.
# 4. What comes later makes no difference to what came before.
#
# Each is a few lines. How do you see the weights of a function that returns only its output? Give
# it the identity matrix for values: then the output *is* the weights. Dead queries, which may see
# nothing, are left out: what they get is another question.


# %%
def batch(lengths=(2, 4, 3), extra=0):
    """Random query, key and value, `extra` columns of padding, and a mask: padded and causal."""
    generator = torch.Generator().manual_seed(1)
    shape = (len(lengths), 2, max(lengths), 5)  # (batch, heads, length, width)
    query, key, value = (torch.randn(shape, generator=generator) for _ in range(3))
    query, key, value = (F.pad(x, (0, 0, 0, extra), value=9.0) for x in (query, key, value))
    real = torch.arange(max(lengths) + extra) < torch.tensor(lengths)[:, None]
    return query, key, value, padding_mask(real.long()) & causal_mask(real.shape[1])


def test_weights_are_zero_or_sum_to_one(attention):
    query, key, _, mask = batch()
    eye = torch.eye(key.shape[2]).expand(*key.shape[:2], -1, -1)
    weights = attention(query, key, eye, mask)
    alive = mask.any(dim=-1, keepdim=True)
    assert (weights[(~mask & alive).expand_as(weights)] == 0.0).all(), "a forbidden key has weight"
    sums = weights.sum(dim=-1, keepdim=True)[alive.expand(*weights.shape[:3], 1)]
    assert torch.allclose(sums, torch.ones_like(sums)), "the weights of a query do not sum to 1"


def test_what_stands_at_padding_is_irrelevant(attention):
    query, key, value, mask = batch()
    before = attention(query, key, value, mask)
    key[0, :, 2:], value[0, :, 2:] = 7.0, -7.0  # row 0 has two real tokens
    after = attention(query, key, value, mask)
    assert torch.equal(before[0, :, :2], after[0, :, :2]), "padding reaches the output"


def add_padding(attention, lengths, extra):
    before = attention(*batch(lengths))
    after = attention(*batch(lengths, extra))
    for row, n in enumerate(lengths):
        same = torch.allclose(before[row, :, :n], after[row, :, :n], atol=1e-6)
        assert same, f"{extra} more columns of padding change a row of {n} tokens"


def test_how_much_padding_is_irrelevant(attention):
    add_padding(attention, lengths=(2, 4, 3), extra=3)


def test_the_future_is_irrelevant(attention):
    query, key, value, mask = batch()
    before = attention(query, key, value, mask)
    key[1, :, 2:], value[1, :, 2:] = 7.0, -7.0  # row 1 has four real tokens
    after = attention(query, key, value, mask)
    assert torch.equal(before[1, :, :2], after[1, :, :2]), "the past sees the future"


FOUR = [
    test_weights_are_zero_or_sum_to_one,
    test_what_stands_at_padding_is_irrelevant,
    test_how_much_padding_is_irrelevant,
    test_the_future_is_irrelevant,
]


def ours(query, key, value, mask):
    return scaled_dot_product_attention(query, key, value, mask)[0]  # [1] are the weights


for test in FOUR:
    test(ours)
    print("holds:", test.__name__.removeprefix("test_").replace("_", " "))

# %% [markdown]
# ## Exact or tolerant?
#
# Some of these compare bit by bit (`== 0.0`, `torch.equal`) and some with `allclose`. The rule:
# **exact where nothing is rounded differently, tolerant where something is.** A weight of a
# forbidden key is exp(−∞) = 0, in every dtype. Another value at a forbidden key is multiplied by
# that 0, and all other numbers are the same as before. So nothing may differ. But a sum of rounded
# weights need not be 1 to the last bit, and in a wider row the same sum may be added up in another
# order.
#
# A tolerance where none is needed hides bugs. Here is an attention that fills forbidden scores with
# −15 instead of −∞.


# %%
def fill_of_minus_15(query, key, value, mask):
    scores = query @ key.mT / query.shape[-1] ** 0.5
    return scores.masked_fill(~mask, -15.0).softmax(dim=-1) @ value


query, key, _, mask = batch()
weights = fill_of_minus_15(query, key, torch.eye(4), mask)
forbidden = ~mask & mask.any(dim=-1, keepdim=True)  # in the rows that are alive
leak = weights[forbidden.expand_as(weights)].max().item()
print(f"largest weight on a forbidden key: {leak:.1e}")
print("a test with atol=1e-5 passes:", leak < 1e-5)
print("a test with == 0.0 passes:   ", leak == 0.0)
assert 0.0 < leak < 1e-5

# %% [markdown]
# ### Try it: a test that cannot fail
#
# A test is worth something only if it can fail. The next one looks sensible. What is it that it
# really compares? Find an attention, however wrong, that it would catch.


# %%
def looks_like_a_test(attention):
    query, key, value, mask = batch()
    before = attention(query, key, value, mask)
    key.masked_fill(~mask[:, :, -1, :, None], 99.0)  # change the padded keys ...
    after = attention(query, key, value, mask)
    assert torch.equal(before, after)


looks_like_a_test(lambda query, key, value, mask: query @ key.mT @ value)  # no mask at all
print("passes with no mask at all")

# %% [markdown]
# `masked_fill` returns a new tensor and leaves `key` alone (`masked_fill_` changes it). The test
# compares a call with the same call. You would never have known had you not tried it on something
# broken. So: **show every test a bug that it must catch.** The museum of chapter 11 is full of
# them. Here are its attention functions that are wrong for everybody. Which do the four catch?


# %%
def notices(test, attention):
    def output(*inputs):
        found = attention(*inputs)
        return found[0] if isinstance(found, tuple) else found  # without the weights

    try:
        test(output)
    except AssertionError:
        return True
    return False


museum = [one for one in bugs() if (one.kind, one.tier) == ("attention", "core")]
museum = [one for one in museum if not one.conventions]  # those that take our four arguments
for test in FOUR:
    count = sum(notices(test, one.implementation) for one in museum)
    print(f"{count:>2} of {len(museum)} caught by {test.__name__}")
missed = [p.name for p in museum if not any(notices(test, p.implementation) for test in FOUR)]
print(f"{len(museum) - len(missed)} caught by any. Missed:", *missed, sep="\n    ")
assert len(missed) < len(museum) / 2

# %% [markdown]
# More than half, by four short tests. The others wait for a question that the four do not ask:
# another mask (not causal, or more keys than queries), longer rows, the formula itself, the way
# back. Each is one more test.

# %% [markdown]
# ## In pytest
#
# pytest runs every function whose name begins with `test_`, and gives each argument what the
# *fixture* of that name returns. So the four are pytest tests already: all they need is a fixture
# `attention`. `minitransformer.checks` has many more such promises, in three tiers: *core* for
# everybody, *robust* with half precision and dead queries, *strict* with NaN in padding.
# `parametrize_with_checks` makes a test of each.
#
# The attention here is the first attempt of many people: the mask is multiplied in after the
# softmax. Which of the four will fail?


# %%
def first_attempt(query, key, value, mask):
    weights = (query @ key.mT / query.shape[-1] ** 0.5).softmax(dim=-1)
    return (weights * mask) @ value


HEAD = """
import pytest
import torch
from torch.nn import functional as F
from minitransformer import causal_mask, padding_mask
from minitransformer.checks import AttentionSubject, parametrize_with_checks
"""
TAIL = """
@pytest.fixture
def attention():
    return first_attempt


@parametrize_with_checks(AttentionSubject(first_attempt), tier="core")
def test_core(subject, check):
    check(subject)
"""
parts = [HEAD, *map(inspect.getsource, [first_attempt, batch, add_padding, *FOUR]), TAIL]
with tempfile.TemporaryDirectory() as folder:
    (Path(folder) / "test_mine.py").write_text("\n\n".join(parts))
    options = ["-q", "--tb=no", "--color=no", "-p", "no:cacheprovider"]
    command = [sys.executable, "-m", "pytest", *options]
    run = subprocess.run(command, cwd=folder, capture_output=True, text=True)
for line in run.stdout.splitlines():
    if line.startswith("FAILED"):
        print(line.split(" - ")[0].replace("test_mine.py::", ""))
assert run.stdout.count("FAILED") > 5

# %% [markdown]
# Forbidden keys do get a weight of 0. But they were in the denominator: the weights of a query do
# not sum to 1, and everything depends on what stands at padding, how much of it there is, and what
# comes later.

# %% [markdown]
# ## Let the machine choose the input
#
# Whoever writes a test chooses its inputs, and does not think of the case that he did not think
# of: a row of length 0, a hole in the middle, a single query. *Property tests* turn it round: you
# say what must hold for *every* input, and a library (here hypothesis) looks for a counterexample,
# and then for the smallest one. The function below computes positions from an attention mask. It is
# right for padding on the left. Where is it wrong?


# %%
def positions_by_hand(attention_mask):
    return (attention_mask.cumsum(dim=1) - 1).clamp(min=0)


tried = []


@settings(max_examples=200, deadline=None, derandomize=True, database=None)
@given(st.lists(st.integers(0, 1), min_size=1, max_size=6))
def test_positions(row):
    tried.append(row)
    mask = torch.tensor(row)
    positions = positions_by_hand(mask[None])[0]
    assert positions[mask == 1].tolist() == list(range(sum(row))), "real tokens count 0, 1, 2, ..."
    assert (positions[mask == 0] == 0).all(), f"{row}: padding has {positions[mask == 0].tolist()}"


try:
    test_positions()
except AssertionError as error:
    print(str(error).splitlines()[0])
print(f"tried {len(tried)} masks; the smallest that fails is {tried[-1]}")
assert tried[-1] == [1, 1, 0]

# %% [markdown]
# Padding behind the text gets the position of the last token instead of 0. Does it matter? Not for
# the result, since nobody sees padding; but a function that promises 0 must keep it. hypothesis
# found it, and it cut the example down to three tokens by itself.
#
# An invariant is a property, too. Here hypothesis chooses the lengths of the rows, 0 among them,
# and how much padding is added.


# %%
@settings(max_examples=50, deadline=None, derandomize=True, database=None)
@given(st.lists(st.integers(0, 5), min_size=1, max_size=3).filter(any), st.integers(0, 4))
def test_any_padding(lengths, extra):
    add_padding(ours, lengths, extra)


test_any_padding()
print("no counterexample in 50 batches")

# %% [markdown]
# ## Who tests the tests?
#
# A test suite that is green says nothing until you know what would make it red. **Mutation
# testing** asks that: change one thing in the code or take it out, run the tests, and see whether
# any of them notices. A mutant that survives is a hole in the tests, or a line that has no effect.
#
# Here is the code of the formula in this package.

# %%
source = inspect.getsource(module.scaled_dot_product_attention)
_, _, body = source.partition("alive = ")
print("    alive = " + body)

# %% [markdown]
# And here are ten mutants: one change each. "Dead" are the queries that see no key, "unused" the
# keys and values that no query sees. Before you run the next cell, mark those that you think your
# four tests will notice.

# %%
MUTANTS = {
    "no √d": (" / query.shape[-1] ** 0.5", ""),
    "polarity: mask for ~mask": ("~mask & alive", "mask & alive"),
    "softmax over the queries": ("softmax(dim=-1)", "softmax(dim=-2)"),
    "-1e4 for -inf": ('float("-inf")', "-1e4"),
    "-1e30 for -inf": ('float("-inf")', "-1e30"),
    "no float32 inside": ("at_least_float32", ""),
    "dead rows not finite": ("~mask & alive", "~mask"),
    "dead rows not set to 0": (".masked_fill(~alive, 0.0)", ""),  # all three of them
    "unused values not cleaned": ("value.masked_fill(~used, 0.0)", "value"),
    "unused keys not cleaned": ("key.masked_fill(~used, 0.0)", "key"),
}
TIERS = ("core", "robust", "strict")


def mutant(old, new):
    assert old in source, old
    space = dict(vars(module))
    exec(source.replace(old, new), space)
    return space["scaled_dot_product_attention"]


noticed = {}
for name, change in {"the code as it is": ("used", "used"), **MUTANTS}.items():
    attention = mutant(*change)
    report = check_attention(attention, tier="strict")
    failed = [one.tier for one in report if one.outcome == "fail"]
    noticed[name] = [sum(notices(test, attention) for test in FOUR), *map(failed.count, TIERS)]

figure, axis = plt.subplots(figsize=(6.5, 4.2), layout="constrained")
axis.imshow([[n > 0 for n in row] for row in noticed.values()], cmap="Blues", vmax=2, aspect="auto")
for y, counts in enumerate(noticed.values()):
    for x, n in enumerate(counts):
        axis.text(x, y, n or "·", ha="center", va="center")
axis.set(xticks=range(4), xticklabels=["your four", *TIERS])
axis.set(yticks=range(len(noticed)), yticklabels=noticed)
axis.set_title("Tests that fail, after one change each (blue: somebody notices)", fontsize=10)
axis.tick_params(length=0)
plt.show()
assert not any(noticed["the code as it is"])
survivors = [name for name, counts in noticed.items() if not any(counts)][1:]
print("nobody notices:", survivors)
assert survivors == ["no float32 inside"]

# %% [markdown]
# - A wrong polarity or axis is noticed by every group of tests.
# - A wrong scale breaks no invariant: the weights are others, but they are 0 where they must be,
#   and sum to 1. So a comparison with the formula is needed, too, and *core* makes it.
# - A finite number in place of −∞, and the care for dead rows, are noticed only by those who ask
#   for them: *robust*. (At −10⁴ the weights are 0 as well, as long as scores are ordinary numbers.)
# - Cleaning the rows that nobody uses changes nothing as long as padding holds numbers. Only NaN in
#   padding, *strict*, tells the difference.
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
# loss and the batching. Those mutants that survive stand in a table, each with the reason why no
# test can or need notice.

# %% [markdown]
# ### Try it: a mutant that survives
#
# Look for a change that *core* and *robust* do not notice, and that is not the same mathematics in
# other words. Here is one: dead queries are no longer set to 0. Their weights and their output
# become 0 anyway. So may the line go?

# %%
careless = mutant("query.masked_fill(~alive, 0.0)", "query")
print("fails:", check_attention(careless, tier="robust").failed or "nothing")


def test_nan_in_a_dead_query_reaches_no_gradient(attention):
    query, key, value, mask = batch()
    query = query.masked_fill(~mask.any(dim=-1, keepdim=True), float("nan"))
    attention(query, key.requires_grad_(), value, mask).sum().backward()
    assert key.grad.isfinite().all(), "NaN in a dead query reaches the gradient of the keys"


print("the new test notices:", notices(test_nan_in_a_dead_query_reaches_no_gradient, careless))
test_nan_in_a_dead_query_reaches_no_gradient(ours)

# %% [markdown]
# It may not. Forward the zeros hide it; on the way back 0 · NaN is NaN, and one such gradient ruins
# the model. The survivor told us which test was missing.

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
# 6. Somebody forgets the √d. Why do the four invariants not notice?
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
# 6. They say what must not change, and nothing of the formula: with any scale, forbidden weights
#    are 0 and the others sum to 1.
#
# </details>
