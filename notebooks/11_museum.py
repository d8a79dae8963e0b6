# %% [markdown]
# # 11. The museum of mask bugs
#
# Most bugs of this collection were found in code that people used: in libraries, in tutorials, in
# trainers of large models. The others are one slip away from such code. As a rule the shapes fit,
# nothing crashes, and the loss falls. In this chapter you walk past eight of them. For each you
# see its loss curve, the picture that gives it away, and the check that catches it.
#
# *Reading takes about 30 minutes, running a minute and a half on one CPU thread. It presumes
# chapters 1, 2 and 5.*
#
# After this chapter you will be able to
#
# - say why a falling loss is no evidence for a right mask;
# - recognize the common mask bugs by the picture of their weights;
# - ask a trained model three questions that a right mask must pass;
# - run the suite of checks on any function, and read its diagnosis.

# %%
import math
import random
from contextlib import contextmanager

import matplotlib.pyplot as plt
import torch
from IPython.display import Markdown, display
from matplotlib.patches import Patch
from matplotlib_inline.backend_inline import set_matplotlib_formats

from minitransformer import (
    Config,
    DecoderOnly,
    causal_mask,
    cross_entropy,
    next_token_labels,
    pad,
    padding_mask,
    scaled_dot_product_attention,
)
from minitransformer import attention as module
from minitransformer.checks import bugs, check_attention, run_checks
from minitransformer.visualize import HATCHES, attention_map

set_matplotlib_formats("png")
torch.set_num_threads(1)

# %% [markdown]
# ## The collection
#
# A bug here is a small broken implementation with its story, its source and its diagnosis. `bugs()`
# gives all of them. Each is of a kind: an attention function, a builder of masks, a model, a loss,
# a maker of labels, a collator (it makes a batch of examples), or a generator.

# %%
kinds = {}
for bug in bugs():
    kinds.setdefault(bug.kind, []).append(bug)
for kind, of_kind in kinds.items():
    print(f"{kind:<16} {len(of_kind):>3} bugs, such as: {of_kind[1].name}")
print(f"{'':<16} {len(bugs()):>3}")

# %% [markdown]
# Here is one that nearly everybody writes once, with its story.

# %%
ATTENTION = {bug.name: bug for bug in bugs("attention")}
bug = ATTENTION["mask after the softmax"]
print(bug.story)
print("\nseen in:", bug.source)
print("diagnosis:", bug.diagnosis)

# %% [markdown]
# ## The loss falls
#
# Does training not show a wrong mask? We train the same small language model nine times: once with
# the attention of this package, and eight times with a bug from the museum in its place. The
# text is easy: three letters, repeated, in rows of different lengths. There are 19 letters, written
# as the ids 1 to 19. The first three of a row are drawn at random; after that everything can be
# known. `attention="reference"` makes the model use the plain formula, which we can then replace.


# %%
@contextmanager
def attention_replaced(implementation):
    """Let every layer use another attention function while the block runs."""
    ours = module.scaled_dot_product_attention

    def broken(query, key, value, mask, dropout_p=0.0, *, finite=False):
        found = implementation(query, key, value, mask)
        output = found[0] if isinstance(found, tuple) else found
        return output, output.new_zeros(*query.shape[:3], key.shape[2])

    module.scaled_dot_product_attention = broken if implementation else ours
    try:
        yield
    finally:
        module.scaled_dot_product_attention = ours


def rows_of_text(seed, count=32):
    draw = random.Random(seed)
    patterns = [[draw.randint(1, 19) for _ in range(3)] for _ in range(count)]
    return [(pattern * 8)[: draw.randint(6, 24)] for pattern in patterns]


def loss_of(model, rows, length=None):
    batch = pad(rows, max_length=length)
    labels = next_token_labels(batch.input_ids, batch.attention_mask)
    return model.loss(batch.input_ids, batch.attention_mask, labels)


def train(implementation, steps=200):
    torch.manual_seed(0)
    size = {"vocab_size": 20, "d_model": 32, "num_layers": 2, "num_heads": 2}
    model = DecoderOnly(Config(**size, style="llama", attention="reference"))
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    losses = []
    with attention_replaced(implementation):
        for step in range(steps):
            loss = loss_of(model, rows_of_text(step))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
    return model.eval(), losses


NAMES = [
    "mask after the softmax",
    "no mask at all",
    "polarity inverted",
    "mask transposed",
    "one token ahead",
    "mask of the first sequence for all",
    "softmax over the queries",
    "not scaled",
]
runs = {"right": train(None)}
for name in NAMES:
    runs[name] = train(ATTENTION[name].implementation)

# %% [markdown]
# Here are the nine training losses, without their names. **Which one is right?** Decide before you
# read on.


# %%
def smooth(losses):
    return torch.tensor(losses).unfold(0, 10, 1).mean(dim=1)


order = list(runs)
random.Random(1).shuffle(order)
letters = dict(zip(order, "ABCDEFGHI", strict=True))
figure, axes = plt.subplots(3, 3, figsize=(8, 5), sharex=True, sharey=True, layout="constrained")
for name, axis in zip(order, axes.flat, strict=True):
    axis.plot(smooth(runs[name][1]), color="#08519c")
    axis.set_title(letters[name], fontsize=10)
axes[0, 0].set_ylim(0, 3)  # for all: they share it
figure.supxlabel("training step", fontsize=10)
figure.supylabel("training loss (mean of 10 steps)", fontsize=10)
figure.suptitle("Nine attentions, one of them right")
plt.show()

# %% [markdown]
# Every curve falls. None of them says "broken". What would help is to know how low a loss can be.
# In this text we do know it. The first letter of a row is never predicted, the second and the third
# are random, so each costs log 19 nats on average, and all others can be known. Spread over all
# labels, this is the *floor*: a model that does not see the future cannot stay below it.

# %%
lengths = [len(row) for step in range(200) for row in rows_of_text(step)]
floor = 2 * math.log(19) * len(lengths) / sum(length - 1 for length in lengths)
at_the_end = {name: sum(losses[-20:]) / 20 for name, (_, losses) in runs.items()}
for name in order:
    below = "   below the floor" if at_the_end[name] < 0.9 * floor else ""
    print(f"{letters[name]}  {name:<36} loss at the end {at_the_end[name]:.3f}{below}")
print(f"the floor: {floor:.3f}")
assert at_the_end["no mask at all"] < 0.9 * floor < at_the_end["right"]

# %% [markdown]
# The four that are far below the floor have read the answer in their own input: the *best* losses
# are the worst bugs. The others are above it, and the right one is among them, neither the first
# nor the last. Nobody could pick it by its curve. And for real text nobody knows the floor.
#
# ### Lower than right, and above the floor
#
# Two bugs are not below the floor, and still beat the right attention: *mask after the softmax* and
# *softmax over the queries*. How can a broken attention do better? Ask where its loss comes from.
# The first two labels of a row are random, so nobody who does not see the future can get below
# log 19 there. All later ones can be known. We take 500 new rows, and split the loss. And we train
# these three again, for 500 steps instead of 200.


# %%
@torch.no_grad()
def random_and_known(model, rows):
    """The mean loss on the two random labels of each row, and on all others."""
    batch = pad(rows)
    labels = next_token_labels(batch.input_ids, batch.attention_mask)
    is_random = torch.arange(labels.shape[1]) < 2
    logits = model(batch.input_ids, batch.attention_mask)
    parts = (labels.masked_fill(~is_random, -100), labels.masked_fill(is_random, -100))
    return [cross_entropy(logits, part).item() for part in parts]


LOW = ["right", "mask after the softmax", "softmax over the queries"]
new_rows = rows_of_text(seed=54321, count=500)
split = {}
print(f"{'':<26}{'steps':>6}{'random labels':>16}{'known labels':>15}")
for name in LOW:
    implementation = None if name == "right" else ATTENTION[name].implementation
    longer, _ = train(implementation, steps=500)
    for steps, model in ((200, runs[name][0]), (500, longer)):
        with attention_replaced(implementation):
            split[name, steps] = random_and_known(model, new_rows)
        print(f"{name:<26}{steps:>6}{split[name, steps][0]:>16.3f}{split[name, steps][1]:>15.3f}")
print(f"log 19 = {math.log(19):.3f}")
assert all(split[name, 200][1] < split["right", 200][1] for name in LOW[1:])
assert all(split[name, 500][0] < math.log(19) - 0.1 < split["right", 500][0] for name in LOW[1:])

# %% [markdown]
# After 200 steps the two have learned what can be known better than the right one has. That alone
# is no sign of a bug: one run learns faster than another, and the right one comes after. But look
# at the random labels after 500 steps. There the right model stays above log 19, as it must, and
# the two are below it. **They have learned to see the future**, although no masked key has a
# weight.
#
# The future comes in by what they divide by. *Mask after the softmax* divides by a sum over all
# keys, the masked ones included. The output of a query gets shorter when a later key fits it well:
# its length says something about the next letter. *Softmax over the queries* divides the weight of
# a key by a sum over all queries that see it, and those are the later ones. A size is harder to
# read than a value, so the leak is slow to be found, and until it is, the loss is only a little too
# good. The third question below finds both.

# %% [markdown]
# ## Three questions that tell
#
# Ask each trained model three things that a right model must not care about:
#
# - the same rows, with more padding behind them: does the loss change?
# - a row by itself instead of in its batch: do its logits change?
# - a row with other letters from the seventh on: do the logits of its first six change?


# %%
@torch.no_grad()
def change_with_padding(model, rows):
    return abs(loss_of(model, rows).item() - loss_of(model, rows, length=64).item())


@torch.no_grad()
def change_with_the_future(model, rows):
    batch = pad([row for row in rows if len(row) > 12])
    ids, mask = batch.input_ids, batch.attention_mask
    before = model(ids, mask)[:, :6]
    ids = ids.clone()
    ids[:, 6:] = 1
    return (model(ids, mask)[:, :6] - before).abs().max().item()


@torch.no_grad()
def change_alone(model, rows):
    batch = pad(rows)
    together = model(batch.input_ids, batch.attention_mask)
    changes = []
    for i, row in enumerate(rows):
        alone = pad([row])
        logits = model(alone.input_ids, alone.attention_mask)[0]
        changes.append((logits - together[i, : len(row)]).abs().max().item())
    return max(changes)


QUESTIONS = [change_with_padding, change_alone, change_with_the_future]
rows = rows_of_text(seed=12345)
print(f"{'':<36} {'more padding':>14} {'row alone':>14} {'another future':>16}")
changes = {}
for name, (model, _) in runs.items():
    implementation = None if name == "right" else ATTENTION[name].implementation
    with attention_replaced(implementation):
        changes[name] = [question(model, rows) for question in QUESTIONS]
    a, b, c = changes[name]
    print(f"{name:<36} {a:>14.2g} {b:>14.2g} {c:>16.2g}")
assert max(changes["right"]) < 1e-4
assert max(changes["not scaled"]) < 1e-4
assert all(max(changes[name]) > 1e-4 for name in NAMES[:-1])

# %% [markdown]
# The right one does not move beyond rounding. Of the others all but one are found by at least one
# question, and no question finds them all. "not scaled" passes all three: its mask is fine, it is
# the formula that is wrong, so no question about masks can find it. That is why the suite also
# compares with the formula.

# %% [markdown]
# ## The tour: curve, picture, check
#
# Now the weights themselves. They are read *from outside*: where the values are the identity
# matrix, the output is the weights. This works on any function, also on one that does not return
# its weights. The input is a batch of two rows, of six and of four tokens, with random queries and
# keys. You see the second row, which has padding.
#
# In each figure: on the left the loss of the bug (orange) and of the right attention (blue); in the
# middle what the mask allows; on the right the weights that the function used, dark for much. A
# hatched cell is forbidden. **Color under a hatch is a leak.**

# %%
generator = torch.Generator().manual_seed(3)
query, key = torch.randn(2, 2, 1, 6, 16, generator=generator)  # each (batch 2, heads 1, 6, 16)
attention_mask = pad([[1] * 6, [1] * 4]).attention_mask
mask = padding_mask(attention_mask) & causal_mask(6)
TOKENS = ["a", "b", "c", "d", None, None]  # the second row; None is padding


def weights_from_outside(implementation):
    found = implementation(query, key, torch.eye(6).expand(2, 1, 6, 6).clone(), mask)
    return found[0] if isinstance(found, tuple) else found


def draw(name, implementation):
    figure, (left, middle, right) = plt.subplots(
        1, 3, figsize=(9.5, 2.9), width_ratios=(1.35, 1, 1), layout="constrained"
    )
    left.plot(smooth(runs["right"][1]), color="#08519c", label="right")
    if name != "right":
        left.plot(smooth(runs[name][1]), color="#d9822b", label=name)
    left.axhline(floor, color="#777777", ls="--", lw=1, label="floor")
    left.set(xlabel="training step", ylabel="training loss", ylim=(0, None))
    left.legend(frameon=False, fontsize=7)
    attention_map(middle, 0.1 * mask[1, 0], mask[1, 0], TOKENS, TOKENS, title="mask wanted")
    weights = weights_from_outside(implementation)[1, 0]
    attention_map(right, weights, mask[1, 0], TOKENS, TOKENS, title="weights found")
    for axis in (middle, right):
        axis.set_xlabel("key", fontsize=8)
        axis.set_ylabel("query", fontsize=8)
    patches = [
        Patch(facecolor=fill, edgecolor=strokes, hatch=pattern, lw=0, label=words)
        for fill, strokes, pattern, words in (HATCHES["future"], HATCHES["padding"])
    ]
    figure.legend(handles=patches, loc="outside lower right", ncols=2, frameon=False, fontsize=7)
    plt.show()


draw("right", scaled_dot_product_attention)

# %% [markdown]
# So it should look: a triangle, nothing under the hatches, and each row sums to 1. Now the eight
# bugs: the story, what gives it away, and two checks that catch it.

# %%
GIVEN_AWAY = {
    "mask after the softmax": "The pattern is right, but most cells are too pale. Look at the "
    "first row: one key is allowed, so its weight must be 1.",
    "no mask at all": "Color everywhere, under both hatches. Its loss is the lowest of all.",
    "polarity inverted": "Only what is forbidden is colored.",
    "mask transposed": "The triangle lies on the wrong side of the diagonal.",
    "one token ahead": "One more colored cell in each row, beside the diagonal. In training this "
    "cell is the answer, so the loss falls nearly to 0.",
    "mask of the first sequence for all": "The triangle goes on into the padding: it is that of "
    "the first row, which has six tokens. With a batch of 1 there is nothing to see.",
    "softmax over the queries": "No leak. But the columns sum to 1, not the rows: look at the "
    "first row, and at the last real column.",
    "not scaled": "No leak either, and the rows sum to 1. They are only too sharp, which nobody "
    "sees who does not know the right weights.",
}
for name in NAMES:
    bug = ATTENTION[name]
    report = check_attention(bug.subject())
    assert set(bug.caught_by) <= set(report.failed)
    caught = " and ".join(f"`{check}`" for check in bug.caught_by)
    display(
        Markdown(
            f"**{name}** ({letters[name]}). {bug.story}\n\n{GIVEN_AWAY[name]}\n\n"
            f"*Caught by* {caught}."
        )
    )
    draw(name, bug.implementation)

# %% [markdown]
# ### Try it: a bug that no picture shows
#
# The bug "fill of -15" gives forbidden keys a score of -15 instead of minus infinity. Draw it
# with `draw("right", ATTENTION["fill of -15"].implementation)`: about a millionth leaks, which is
# too little to be seen. The report has the number. Exactly 0 is wanted.

# %%
report = check_attention(ATTENTION["fill of -15"].subject())
print(report.headline)
print(report[report.failed[0]])

# %% [markdown]
# ## What the suite says
#
# A function that fails the same checks *by the same numbers* as a bug of the museum gets that
# bug's diagnosis. So a bug is recognized however it is written. This function is not in the
# museum. It is careful about large scores, and has a bug that you know.


# %%
def my_attention(query, key, value, mask):
    scores = torch.einsum("bhqd,bhkd->bhqk", query, key) / query.shape[-1] ** 0.5
    exponentials = torch.exp(scores - scores.max(dim=-1, keepdim=True).values)
    shares = exponentials / exponentials.sum(dim=-1, keepdim=True)
    return torch.where(mask, shares, torch.zeros_like(shares)) @ value


report = check_attention(my_attention)
print(report.headline)
print("likely bug:", report.likely)
print(report.diagnosis)
assert report.likely == ("mask after the softmax",)

# %% [markdown]
# In a terminal the same is `minitransformer check file.py:my_attention`.
#
# **Try it.** Fix `my_attention`: apply the `torch.where` to the scores, before anything is made of
# them, with minus infinity in place of zero. Does the report pass? And with `tier="robust"`? The
# bug that is left you know from chapter 1. What if you fill in -10000 instead?

# %% [markdown]
# ## Bugs outside attention
#
# Most of the collection is not about scores at all: masks that are built wrongly, models that hand
# the mask to the first layer only, losses that count padding, labels that forget the end,
# generators that read the last column whether it is padding or not. You have met some of their
# curves and pictures: the forgetful layer in chapter 4, the labels in chapter 7. Here are two of
# each kind, with the check that catches each first.

# %%
for kind in ("mask", "encoder", "decoder", "cached-decoder", "loss", "labels", "generator"):
    for bug in kinds[kind][:2]:
        report = run_checks(bug.subject(), bug.tier)
        print(f"{kind}: {bug.name}")
        print(f"    caught by {report.failed[0]} ({bug.tier})")
        assert report.failed

# %% [markdown]
# ## How many checks notice
#
# The rule of the house: a bug that no check catches may not hang here, and a check that catches
# no bug may not be in the suite. Here are all attention functions, each with the number of checks
# that fail. The checks come in three tiers: *core*, what is wrong for ordinary users; *robust*,
# half precision, huge scores and queries that see nothing; *strict*, NaN and Inf in padding.

# %%
counts = {}
for name, bug in ATTENTION.items():
    report = run_checks(bug.subject(), "strict")
    failed = [one.tier for one in report if one.outcome == "fail"]
    counts[name] = [failed.count(tier) for tier in ("core", "robust", "strict")]
    assert sum(counts[name]) > 0, name
names = sorted(counts, key=lambda name: [-n for n in counts[name]])
figure, axis = plt.subplots(figsize=(8, 0.19 * len(names) + 1), layout="constrained")
left = [0] * len(names)
for i, (tier, color) in enumerate(
    {"core": "#08519c", "robust": "#5a8f3d", "strict": "#d9822b"}.items()
):
    widths = [counts[name][i] for name in names]
    axis.barh(names, widths, left=left, color=color, label=tier)
    left = [a + b for a, b in zip(left, widths, strict=True)]
axis.invert_yaxis()
axis.tick_params(axis="y", labelsize=7)
axis.margins(y=0.01)
axis.set(xlabel="checks that fail", title="Attention functions of the museum")
axis.legend(frameon=False, loc="lower right")
plt.show()
few = sum(sum(one) <= 2 for one in counts.values())
print(f"{len(counts)} bugs, all caught; {few} of them by one or two checks only")

# %% [markdown]
# At the top are bugs that nearly any test finds. But one bar in three is one or two checks long:
# all others pass, and only the right question finds the bug. Among these are a fast path that
# forgets the mask when no gradient is asked for, padding that is overwritten in the caller's own
# tensor, and weights that are returned after dropout. That is why the suite has many checks, and
# not only the three questions from above.

# %% [markdown]
# **To click on.** `minitransformer explore "fill=added&dtype=float16&shift=-1000"` opens the mask
# explorer on a large negative number added to float16 scores that are low already.

# %% [markdown]
# ## Exercises

# %% [markdown]
# <!-- exercise: find_the_bug -->

# %% [markdown]
# ## Check yourself
#
# 1. Which of the nine training runs had the lowest losses, and why is that bad news?
# 2. A model's loss on a batch changes in the third digit when you pad the batch to twice its
#    length. Name two bugs that do this.
# 3. How can you see the attention weights of a function that returns only its output?
# 4. Why must the check for leaks compare with `== 0.0`?
# 5. Which bug of this chapter would you never find by asking about padding and the future?
# 6. With *mask after the softmax* no masked key has a weight. How does the future come in?
#
# <details><summary>Answers</summary>
#
# 1. Those that see the future: without a mask, or with one that is inverted, transposed or one
#    token ahead. They read the next token instead of predicting it. When they write, there is no
#    next token to read.
# 2. The mask multiplied in after the softmax; a mean over all positions, padding included; no mask
#    in one of the layers.
# 3. Call it with the identity matrix as values: the output is then the weights.
# 4. Because a leak of a millionth is a leak: the scores decide how large it becomes.
# 5. A missing 1/√d: its mask is right. Compare with the formula.
# 6. By the sum that the weights are divided by: masked keys are in it, so the length of the output
#    depends on them.
#
# </details>
