# %% [markdown]
# # 13. How we know
#
# A mask bug makes no noise: shapes fit, the loss falls, the text looks like text. So the only way
# to know that an attention is right is to say what *must hold*, and to have a machine look for a
# case where it does not. That is what this chapter is about, and it is the habit that outlives the
# rest of the course.
#
# *Reading takes about 30 minutes, running half a minute on one CPU thread. It presumes chapters 2,
# 4 and 5.*
#
# After this chapter you will be able to
#
# - state what must hold of a model with masks, and run it as tests in pytest;
# - choose between exact and tolerant comparisons, and say why;
# - let hypothesis look for the input on which you are wrong;
# - test a test: change a line of the code, and see who notices.

# %%
import inspect
import subprocess
import sys
import tempfile
from contextlib import contextmanager
from pathlib import Path

import matplotlib.pyplot as plt
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib_inline.backend_inline import set_matplotlib_formats

from minitransformer import Config, DecoderOnly, pad, padding_mask, scaled_dot_product_attention
from minitransformer import attention as module
from minitransformer.checks import bugs, check_attention

set_matplotlib_formats("png")
torch.set_num_threads(1)

# %% [markdown]
# ## What must hold
#
# The obvious test compares with another implementation. But then who tests that one? And if both
# were copied from the same page, both have its bug. An **invariant** needs no second opinion: it
# says how the answer may *not* change. For a decoder four of them go a long way:
#
# 1. What stands at padding makes no difference.
# 2. How much padding there is, and on which side, makes no difference.
# 3. What else is in the batch makes no difference.
# 4. What comes later makes no difference to what came before.
#
# Each is a few lines. Here they are for a model, a function of ids and attention mask that gives
# logits. What must hold of the attention *inside*, of its weights and its formula, you will say
# yourself in the exercise.


# %%
def example(lengths=(2, 4, 3), extra=0, side="right"):
    """Random ids 1 to 9 in rows of these lengths, with `extra` columns of padding more."""
    draw = torch.Generator().manual_seed(1)
    rows = [torch.randint(1, 10, (n,), generator=draw).tolist() for n in lengths]
    batch = pad(rows, side=side, max_length=max(lengths) + extra)
    return batch.input_ids, batch.attention_mask


def test_what_stands_at_padding_is_irrelevant(model):
    ids, mask = example()
    before = model(ids, mask)
    after = model(torch.where(mask == 0, 7, ids), mask)
    assert torch.equal(before[mask == 1], after[mask == 1]), "padding reaches the logits"


def add_padding(model, lengths, extra, side):
    ids, mask = example(lengths)
    before = model(ids, mask)[mask == 1]
    ids, mask = example(lengths, extra, side)
    after = model(ids, mask)[mask == 1]
    changes = f"{extra} more columns of padding on the {side} change a real token"
    assert torch.allclose(before, after, atol=1e-5), changes


def test_how_much_padding_is_irrelevant(model):
    add_padding(model, lengths=(2, 4, 3), extra=3, side="right")
    add_padding(model, lengths=(2, 4, 3), extra=3, side="left")


def test_the_rest_of_the_batch_is_irrelevant(model):
    ids, mask = example()
    together = model(ids, mask)
    for row, n in enumerate(mask.sum(dim=1).tolist()):
        alone = model(ids[row : row + 1, :n], mask[row : row + 1, :n])[0]
        assert torch.allclose(together[row, :n], alone, atol=1e-5), "a row alone differs"


def test_the_future_is_irrelevant(model):
    ids, mask = example()
    before = model(ids, mask)
    ids[1, 2:] = 5  # row 1 has four real tokens
    assert torch.equal(before[1, :2], model(ids, mask)[1, :2]), "the past sees the future"


FOUR = [
    test_what_stands_at_padding_is_irrelevant,
    test_how_much_padding_is_irrelevant,
    test_the_rest_of_the_batch_is_irrelevant,
    test_the_future_is_irrelevant,
]


def new_decoder():
    torch.manual_seed(0)
    config = Config(10, d_model=16, num_layers=2, num_heads=2, attention="reference", style="gpt2")
    decoder = DecoderOnly(config).eval()
    with torch.no_grad():  # a fresh model hardly attends: its weights are small
        for parameter in decoder.decoder.layers.parameters():
            parameter.mul_(4.0)
    return decoder


decoder = new_decoder()
for test in FOUR:
    test(decoder)
    print("holds:", test.__name__.removeprefix("test_").replace("_", " "))

# %% [markdown]
# ## Exact or tolerant?
#
# Some of these compare bit by bit (`torch.equal`) and some with `allclose`. The rule: **exact where
# nothing is rounded differently, tolerant where something is.** The weight of a masked key is
# exp(−∞) = 0, in every dtype. Whatever stands at that key is multiplied by that 0, and all other
# numbers are the same as before. So nothing may differ. But in a wider row or a larger batch the
# same sum may be added up in another order.
#
# A tolerance where none is needed hides bugs. Here is one row of scores whose last two keys are
# masked, filled with −15 instead of −∞.

# %%
filled = torch.tensor([1.0, 2.0, 0.5, -15.0, -15.0])
leak = filled.softmax(dim=0)[-1].item()
print(f"weight of a masked key: {leak:.1e}")
print("a test with atol=1e-5 passes:", leak < 1e-5)
print("a test with == 0.0 passes:   ", leak == 0.0)
assert 0.0 < leak < 1e-5

# %% [markdown]
# ### Try it: a test that cannot fail
#
# A test is worth something only if it can fail. The next one looks sensible. What is it that it
# really compares? Find an attention, however wrong, that it would catch.


# %%
def looks_like_a_test(model):
    ids, mask = example()
    before = model(ids, mask)
    ids.masked_fill(mask == 0, 7)  # write something else at the padding ...
    after = model(ids, mask)
    assert torch.equal(before, after)


looks_like_a_test(lambda ids, mask: decoder(ids, torch.ones_like(mask)))
print("passes with a model that takes padding for text")

# %% [markdown]
# `masked_fill` returns a new tensor and leaves `ids` alone (`masked_fill_` changes it). The test
# compares a call with the same call. You would never have known had you not tried it on something
# broken. So: **show every test a bug that it must catch.** The museum of chapter 11 is full of
# them. Here are its attention functions that are wrong for everybody, each put into our decoder.
# Which do the four catch?


# %%
@contextmanager
def attention_replaced(implementation):
    """Let every layer use another attention function while the block runs."""
    ours = module.scaled_dot_product_attention

    def other(query, key, value, mask, dropout_p=0.0, *, finite=False):
        found = implementation(query, key, value, mask)
        return found if isinstance(found, tuple) else (found, found.new_zeros(()))

    module.scaled_dot_product_attention = other
    try:
        yield
    finally:
        module.scaled_dot_product_attention = ours


def notices(test, attention):
    """Does the test fail on our decoder with this attention in it? An error is a failure too."""
    try:
        with attention_replaced(attention):
            test(decoder)
    except (AssertionError, RuntimeError):
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
# More than half, by four short tests. The first catches the fewest: our model sets the embeddings
# of padding to zero, so *what* stands there is gone before attention begins; *that* something
# stands there is not. The bugs that were missed wait for a question that the four do not ask:
# another mask (not causal, or more keys than queries), longer rows, the formula itself, the
# backward pass. Each is one more test.

# %% [markdown]
# ## In pytest
#
# pytest runs every function whose name begins with `test_`, and gives each argument what the
# *fixture* of that name returns. So the four are pytest tests already: all they need is a fixture
# `model`. `minitransformer.checks` has many more such checks, in three tiers: *core* for everybody,
# *robust* with half precision and fully masked queries, *strict* with NaN in padding.
# `parametrize_with_checks` makes a test of each.
#
# The attention here is the first attempt of many people: the mask is multiplied in after the
# softmax. Which of the four will fail on a decoder with it?


# %%
def first_attempt(query, key, value, mask):
    weights = (query @ key.mT / query.shape[-1] ** 0.5).softmax(dim=-1)
    return (weights * mask) @ value


HEAD = """
from contextlib import contextmanager
import pytest
import torch
from minitransformer import Config, DecoderOnly, pad
from minitransformer import attention as module
from minitransformer.checks import AttentionSubject, parametrize_with_checks
"""
TAIL = """
@pytest.fixture
def model():
    with attention_replaced(first_attempt):
        yield new_decoder()


@parametrize_with_checks(AttentionSubject(first_attempt), tier="core")
def test_core(subject, check):
    check(subject)
"""
SOURCES = [first_attempt, attention_replaced, new_decoder, example, add_padding, *FOUR]
parts = [HEAD, *map(inspect.getsource, SOURCES), TAIL]
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
# Masked keys do get a weight of 0. But they were in the denominator: the weights of a query do not
# sum to 1, and a row depends on how much padding it has, on the rest of its batch, and on what
# comes later.

# %% [markdown]
# ## Let the machine choose the input
#
# Whoever writes a test chooses its inputs, and cannot choose the case that did not come to mind: a
# row of length 0, a hole in the middle, a single query. *Property tests* turn it round: you say
# what must hold for *every* input, and a library (here hypothesis) looks for a counterexample, and
# then for the smallest one. The function below computes positions from an attention mask. It is
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
# how much padding is added, and on which side.


# %%
@settings(max_examples=50, deadline=None, derandomize=True, database=None)
@given(
    st.lists(st.integers(0, 5), min_size=1, max_size=3).filter(any),
    st.integers(0, 4),
    st.sampled_from(("right", "left")),
)
def test_any_padding(lengths, extra, side):
    add_padding(decoder, lengths, extra, side)


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
# And here are ten mutants: one change each. "Dead" are the fully masked queries, "unused" the keys
# and values that no query sees. Before you run the next cell, mark those that you think your
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
# - A finite number in place of −∞, and the care for fully masked rows, are noticed only by those
#   who ask for them: *robust*. (At −10⁴ the weights are 0 as well, as long as scores are ordinary
#   numbers.)
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
# other words. Here is one: fully masked queries are no longer set to 0. Their weights and their
# output become 0 anyway. So may the line go?

# %%
careless = mutant("query.masked_fill(~alive, 0.0)", "query")
print("fails:", check_attention(careless, tier="robust").failed or "nothing")


def test_nan_in_a_fully_masked_query_reaches_no_gradient(attention):
    query, key, value = (torch.randn(1, 1, 3, 4) for _ in range(3))
    query[:, :, 2] = float("nan")
    mask = padding_mask(torch.tensor([[1, 1, 0]]))
    output, _ = attention(query, key.requires_grad_(), value, mask)
    output.sum().backward()
    assert key.grad.isfinite().all(), "NaN in a fully masked query reaches the keys' gradient"


test_nan_in_a_fully_masked_query_reaches_no_gradient(scaled_dot_product_attention)
print("the package's attention passes the new test")
try:
    test_nan_in_a_fully_masked_query_reaches_no_gradient(careless)
except AssertionError as error:
    print("the mutant fails it:", error)
else:
    raise AssertionError("the new test notices nothing")

# %% [markdown]
# It may not. Forward the zeros hide it; in the backward pass 0 · NaN is NaN, and one such gradient
# ruins the model. The survivor told us which test was missing.

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
# 6. They say what must not change, and nothing of the formula: with any scale padding, batch and
#    future make no difference.
#
# </details>
