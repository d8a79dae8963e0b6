# %% [markdown]
# # 11. The museum of mask bugs
#
# Most bugs of this collection were found in code that people used: in libraries, in tutorials, in
# trainers of large models. The others are one slip away from such code. As a rule the shapes fit,
# nothing crashes, and the loss falls. In this chapter you walk past eight of them. For each you
# see its loss curve, the picture that gives it away, and the check that catches it.
#
# After this chapter you will be able to
#
# - say why a falling loss is no evidence for a right mask;
# - recognise the common mask bugs by the picture of their weights;
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
# A piece is a small broken implementation with its story, its source and its diagnosis. `bugs()`
# gives all of them. Each is of a kind: an attention function, a builder of masks, a model, a loss,
# a maker of labels, a collator (it makes a batch of examples), or a generator.

# %%
kinds = {}
for piece in bugs():
    kinds.setdefault(piece.kind, []).append(piece)
for kind, of_kind in kinds.items():
    print(f"{kind:<16} {len(of_kind):>3} bugs, such as: {of_kind[1].name}")
print(f"{'':<16} {len(bugs()):>3}")

# %% [markdown]
# Here is one that nearly everybody writes once, with its story.

# %%
ATTENTION = {piece.name: piece for piece in bugs("attention")}
piece = ATTENTION["mask after the softmax"]
print(piece.story)
print("\nseen in:", piece.source)
print("diagnosis:", piece.diagnosis)

# %% [markdown]
# ## The loss falls
#
# Does training not show a wrong mask? We train the same small language model nine times: once with
# the attention of this package, and eight times with a piece from the museum in its place. The
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
# hatched cell is forbidden. **Colour under a hatch is a leak.**

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
    "no mask at all": "Colour everywhere, under both hatches. Its loss is the lowest of all.",
    "polarity inverted": "Only what is forbidden is coloured.",
    "mask transposed": "The triangle lies on the wrong side of the diagonal.",
    "one token ahead": "One more coloured cell in each row, beside the diagonal. In training this "
    "cell is the answer, so the loss falls nearly to 0.",
    "mask of the first sequence for all": "The triangle goes on into the padding: it is that of "
    "the first row, which has six tokens. With a batch of 1 there is nothing to see.",
    "softmax over the queries": "No leak. But the columns sum to 1, not the rows: look at the "
    "first row, and at the last real column.",
    "not scaled": "No leak either, and the rows sum to 1. They are only too sharp, which nobody "
    "sees who does not know the right weights.",
}
for name in NAMES:
    piece = ATTENTION[name]
    report = check_attention(piece.subject())
    assert set(piece.caught_by) <= set(report.failed)
    caught = " and ".join(f"`{check}`" for check in piece.caught_by)
    display(
        Markdown(
            f"**{name}** ({letters[name]}). {piece.story}\n\n{GIVEN_AWAY[name]}\n\n"
            f"*Caught by* {caught}."
        )
    )
    draw(name, piece.implementation)

# %% [markdown]
# ### Try it: a bug that no picture shows
#
# The piece "fill of -15" gives forbidden keys a score of -15 instead of minus infinity. Draw it
# with `draw("right", ATTENTION["fill of -15"].implementation)`: about a millionth leaks, which is
# too little to be seen. The report has the number. Exactly 0 is wanted.

# %%
report = check_attention(ATTENTION["fill of -15"].subject())
print(report.headline)
print(report[report.failed[0]])

# %% [markdown]
# ## What the suite says
#
# A subject that fails the same checks *by the same numbers* as a piece of the museum gets that
# piece's diagnosis. So a bug is recognised however it is written. This function is not in the
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
# **Try it.** Mend `my_attention`: apply the `torch.where` to the scores, before anything is made of
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
    for piece in kinds[kind][:2]:
        report = run_checks(piece.subject(), piece.tier)
        print(f"{kind}: {piece.name}")
        print(f"    caught by {report.failed[0]} ({piece.tier})")
        assert report.failed

# %% [markdown]
# ## How many checks notice
#
# The rule of the house: a piece that no check catches may not hang here, and a check that catches
# no piece may not be in the suite. Here are all attention functions, each with the number of checks
# that fail. The checks come in three tiers: *core*, what is wrong for ordinary users; *robust*,
# half precision, huge scores and queries that see nothing; *strict*, NaN and Inf in padding.

# %%
counts = {}
for name, piece in ATTENTION.items():
    report = run_checks(piece.subject(), "strict")
    failed = [one.tier for one in report if one.outcome == "fail"]
    counts[name] = [failed.count(tier) for tier in ("core", "robust", "strict")]
    assert sum(counts[name]) > 0, name
names = sorted(counts, key=lambda name: [-n for n in counts[name]])
figure, axis = plt.subplots(figsize=(8, 0.19 * len(names) + 1), layout="constrained")
left = [0] * len(names)
for i, (tier, colour) in enumerate(
    {"core": "#08519c", "robust": "#5a8f3d", "strict": "#d9822b"}.items()
):
    widths = [counts[name][i] for name in names]
    axis.barh(names, widths, left=left, color=colour, label=tier)
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
#
# </details>
