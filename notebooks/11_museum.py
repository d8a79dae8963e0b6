# %% [markdown]
# # 11. The museum of mask bugs
#
# Nearly every bug in this chapter was found in code that people used: in libraries, in tutorials
# that thousands copied, in trainers of large models. None of them crashed. In most of them the loss
# fell just as it should. This is a walk through the collection, with the picture that gives each
# away and the check that catches it.
#
# After this chapter you will be able to
#
# - say why a falling loss is no evidence for a right mask;
# - recognise the common mask bugs by the picture of their weights;
# - run the suite of checks on any function, and read its diagnosis;
# - tell which kinds of bug there are, and which check asks for which.

# %%
import random
from contextlib import contextmanager

import matplotlib.pyplot as plt
import torch
from IPython.display import Markdown, display
from matplotlib_inline.backend_inline import set_matplotlib_formats

from minitransformer import Config, DecoderOnly, next_token_labels, pad
from minitransformer import attention as module
from minitransformer.checks import check_attention, run_checks
from minitransformer.checks.museum import pieces
from minitransformer.visualize import wanted_beside_found

set_matplotlib_formats("png")
torch.set_num_threads(1)

# %% [markdown]
# ## The collection
#
# A piece is a small broken implementation with its story, its source and its diagnosis. `pieces()`
# gives all of them; each is of a kind: an attention function, a builder of masks, a model, a loss,
# a maker of labels, a generator.

# %%
kinds = {}
for piece in pieces():
    kinds.setdefault(piece.bank, []).append(piece)
for kind, of_kind in kinds.items():
    print(f"{kind:<16} {len(of_kind):>3} pieces, such as: {of_kind[1].name}")
print(f"{'':<16} {len(pieces()):>3}")

# %% [markdown]
# Here is the commonest of all, with its story.

# %%
ATTENTION = {piece.name: piece for piece in pieces("attention")}
piece = ATTENTION["mask after the softmax"]
print(piece.story)
print("\nseen in:", piece.source)
print("diagnosis:", piece.diagnosis)

# %% [markdown]
# ## The loss falls
#
# Does training not show it? Let us train the same small language model six times: once with the
# attention of this package, and five times with a piece from the museum in its place. The text is
# easy: three letters, repeated, in rows of different lengths. After the first three letters
# everything can be known.


# %%
@contextmanager
def attention_replaced(implementation):
    """Let every layer use another attention function while the block runs."""
    ours = module.scaled_dot_product_attention

    def broken(query, key, value, mask, dropout_p=0.0):
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
    model = DecoderOnly(Config(vocab_size=20, d_model=32, num_layers=2, num_heads=2, style="llama"))
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
    "mask of the first sequence for all",
    "softmax over the queries",
    "not scaled",
]
runs = {"right": train(None)}
for name in NAMES:
    runs[name] = train(ATTENTION[name].implementation)
for name, (_, losses) in runs.items():
    print(f"{name:<36} loss at the start {losses[0]:.2f}, at the end {losses[-1]:.3f}")

# %%
figure, axis = plt.subplots(figsize=(7.5, 4), layout="constrained")
for name, (_, losses) in runs.items():
    smooth = torch.tensor(losses).unfold(0, 10, 1).mean(dim=1)
    axis.plot(smooth, label=name, lw=2.5 if name == "right" else 1.3)
axis.set(xlabel="step", ylabel="training loss", ylim=(0, None))
axis.set_title("Six attentions, one of them right: which?")
axis.legend(frameon=False)
plt.show()

# %% [markdown]
# Every curve falls, and one of the broken models has the *lowest* loss of all: without a mask it
# reads the answer in its own input. Nobody who looks only at this picture would call the others
# broken. Perhaps one would tune the learning rate a little.

# %% [markdown]
# ## One question that tells
#
# Ask each trained model three things that a right model must not care about. The same rows, with
# more padding behind them: does the loss change? A row by itself instead of in its batch: do its
# logits change? And a row with another second half: do the logits of its first half change?


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
# The right one does not move beyond rounding. Four of the others are found by at least one of the
# questions, and none of the questions finds them all. "not scaled" passes all three. Its mask is
# fine; it is the formula that is wrong, so no question about masks can find it. That is why the
# suite asks the other kind too.

# %% [markdown]
# ## The picture that gives it away
#
# On the left what the mask wants, on the right the weights that the function really used. They are
# read *from outside*: the values are the identity matrix, so the output is the weights. It works on
# any function, also on one that does not return its weights.

# %%
SHOWN = [
    "mask after the softmax",
    "polarity inverted",
    "mask transposed",
    "one token ahead",
    "mask of the first sequence for all",
    "softmax over the queries",
]
for name in SHOWN:
    piece = ATTENTION[name]
    report = check_attention(piece.subject())
    drawn = [r for r in report if {"mask wanted", "weights found"} <= r.example.keys()]
    example = drawn[0].example
    display(Markdown(f"**{name}**. {drawn[0].diagnosis}"))
    display(wanted_beside_found(example["mask wanted"].bool(), example["weights found"]))

# %% [markdown]
# Weights under hatching are leaks: a cell that is forbidden and coloured. Rows that are pale from
# left to right have lost weight to keys that they may not see. In the last picture the columns sum
# to 1 instead of the rows.

# %% [markdown]
# ### Try it: a bug that no picture shows
#
# The piece "fill of -15" leaks a weight of about a millionth. No eye sees that. Look at the number
# in the report instead: exactly 0 is wanted.

# %%
report = check_attention(ATTENTION["fill of -15"].subject())
print(report.headline)
print(report[report.failed[0]])

# %% [markdown]
# ## What the suite says
#
# A subject that fails the same checks *by the same numbers* as a piece of the museum gets that
# piece's diagnosis. So you can write a bug in your own words, and it is recognised. This function
# is not in the museum; its author thought that he was being careful.


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

# %% [markdown]
# ## Bugs outside attention
#
# Half of the collection has nothing to do with scores: masks that are built wrongly, models that
# hand the mask to the first layer only, losses that count padding, labels that forget the end,
# generators that read the last column. A few of them, by the check that catches each first.

# %%
CHOSEN = {"mask": 2, "encoder": 2, "decoder": 2, "loss": 2, "labels": 2, "generator": 2}
for kind, count in CHOSEN.items():
    for piece in kinds[kind][:count]:
        report = run_checks(piece.subject(), piece.tier)
        print(f"{kind}: {piece.name}")
        print(f"    caught by {report.failed[0]} ({piece.tier})")
        assert report.failed

# %% [markdown]
# ## The whole table
#
# One line a piece: what it is called, and how many checks notice. The rule of the house: a piece
# that no check catches may not hang here, and a check that catches no piece may not be in the
# suite. Here are the attention functions, each with the number of checks that fail, by tier.

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
print(f"{len(counts)} pieces, all caught")

# %% [markdown]
# At the top are bugs that anything finds. At the bottom are those that one single check finds, and
# nothing else would: a mask that is forgotten in the backward pass, a fast path that forgets it
# when no gradient is asked for, an argument that the function changes for its caller. These are
# the ones that lived longest in real code.

# %% [markdown]
# ## Exercises

# %% [markdown]
# <!-- exercise: find_the_bug -->

# %% [markdown]
# ## Check yourself
#
# 1. Which of the six training runs had the lowest loss, and why is that bad news?
# 2. A model's loss on a batch changes in the third digit when you pad the batch to twice its
#    length. Name two bugs that do this.
# 3. How can you see the attention weights of a function that returns only its output?
# 4. Why must the check for leaks compare with `== 0.0`?
# 5. Which bug of this chapter would you never find by asking about padding and the future?
#
# <details><summary>Answers</summary>
#
# 1. The one without a mask: it reads the next token instead of predicting it. When it writes, there
#    is no next token to read.
# 2. The mask multiplied in after the softmax; a mean over all positions, padding included; no mask
#    in one of the layers.
# 3. Call it with the identity matrix as values: the output is then the weights.
# 4. Because a leak of a millionth is a leak: the scores decide how large it becomes.
# 5. A missing √d: its mask is right. Compare with the formula.
#
# </details>
