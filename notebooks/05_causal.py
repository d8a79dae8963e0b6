# %% [markdown]
# # 5. Looking only back
#
# *Reading takes about 25 minutes, running half a minute on one CPU thread. It presumes chapters 1
# to 3.*
#
# A language model predicts the next token from those before it. It is trained on whole texts at
# once, with the next token in plain view, and only a mask keeps it from looking. In this chapter
# you build that mask, and then train a model without it: its loss falls to almost nothing, and it
# cannot write a single line.
#
# After this chapter you will be able to
#
# - build a causal mask, also for fewer queries than keys, and combine it with padding;
# - make the labels that go with it, and say why all positions can be trained at once;
# - recognize a leak of the future, which the training loss cannot show, with a short test;
# - compute the loss that no honest model can get below, and distrust one that does.

# %%
import matplotlib.pyplot as plt
import torch
from IPython.display import display
from matplotlib_inline.backend_inline import set_matplotlib_formats

from minitransformer import (
    Config,
    DecoderOnly,
    EncoderOnly,
    causal_mask,
    generate,
    next_token_labels,
    pad,
    padding_mask,
    record_attention,
)
from minitransformer.checks import check_decoder
from minitransformer.visualize import attention_figure

set_matplotlib_formats("png")
torch.set_num_threads(1)

# %% [markdown]
# ## A triangle
#
# Queries go down, keys go across. Token 2 may look at tokens 0, 1 and 2: at itself and at what came
# before it.

# %%
print(causal_mask(4)[0, 0].int())

# %% [markdown]
# Itself is allowed, because what is predicted at a position is the *next* token: a token may know
# itself, and the first would otherwise see nothing at all.
#
# When text is written token by token, the old tokens are not computed again (chapter 9). Then there
# are fewer queries than keys, and the queries are the *last* tokens. So the triangle is aligned at
# its end:

# %%
print(causal_mask(2, 5)[0, 0].int())
assert torch.equal(causal_mask(2, 5), causal_mask(5)[:, :, 3:])

# %% [markdown]
# ### Try it: aligned at the wrong end
#
# `torch.tril` keeps the lower triangle of a matrix, and starts at the upper left corner unless it
# is told otherwise. With as many queries as keys nobody notices. With two queries and five keys:
# what do the two see?

# %%
print("tril, as it is:", torch.ones(2, 5).tril().int().tolist())
print("causal_mask:   ", causal_mask(2, 5)[0, 0].int().tolist())

# %% [markdown]
# With `tril` the newest token sees two of five: only the beginning of the text. A model with this
# bug trains well and writes badly, as only writing uses fewer queries than keys. (Where the
# triangle has to start is the first exercise.)

# %% [markdown]
# ## Causal and padding
#
# In a ragged batch both hold, so the masks are combined with `&`. Nothing else is needed, and
# nothing else should be: no flag `is_causal` beside the mask, which somebody forgets to combine.
# In the pictures blue means: this query may look at this key.

# %%
batch = pad([[5, 6, 7, 8, 9], [10, 11, 12]])
mask = padding_mask(batch.attention_mask) & causal_mask(5)
figure, axes = plt.subplots(1, 3, figsize=(9.5, 3.2), layout="constrained")
parts = {
    "padding, row 1": padding_mask(batch.attention_mask)[1, 0],
    "causal": causal_mask(5)[0, 0],
    "padding & causal, row 1": mask[1, 0],
}
for axis, (name, part) in zip(axes, parts.items(), strict=True):
    axis.imshow(part, cmap="Blues", vmin=0, vmax=1.4)
    axis.set(title=name, xlabel="keys", ylabel="queries")
    axis.set_xticks(range(5))
    axis.set_yticks(range(5))
    axis.hlines([i + 0.5 for i in range(4)], -0.5, 4.5, color="#d0d0d0", lw=0.6)
    axis.vlines([i + 0.5 for i in range(4)], -0.5, 4.5, color="#d0d0d0", lw=0.6)
plt.show()

# %% [markdown]
# ## All positions at once
#
# With this mask the output at position 2 depends on tokens 0, 1 and 2 alone. So one pass over a
# text of 5 tokens gives the predictions after 1, 2, 3, 4 and 5 tokens, as if each beginning had
# been read by itself. That is why training is fast. (Each prediction is made after the *true*
# tokens, even where the model would have written others. This is called *teacher forcing*; chapter
# 6 says more.) It is a claim; here is the measurement, on a model with random weights. (A *logit*
# is the score that a model gives to a token as the next one; the softmax of the logits is its
# prediction.)

# %%
torch.manual_seed(0)
model = DecoderOnly(
    Config(vocab_size=20, d_model=32, num_layers=2, num_heads=2, style="gpt2")
).eval()
text = torch.tensor([[5, 6, 7, 8, 9]])
with torch.no_grad():
    whole = model(text, torch.ones_like(text))
    for length in range(1, 6):
        prefix = text[:, :length]
        alone = model(prefix, torch.ones_like(prefix))
        difference = (alone[:, -1] - whole[:, length - 1]).abs().max().item()
        print(f"after token {length}: largest difference of a logit {difference:.1e}")
        assert difference < 1e-5

# %% [markdown]
# The *label* of a position is what it should predict: the token after it. The last real token has
# none, and neither has padding: -100 says *predict nothing here* (chapter 7).

# %%
labels = next_token_labels(batch.input_ids, batch.attention_mask)
for ids, wanted in zip(batch.input_ids.tolist(), labels.tolist(), strict=True):
    print("reads  ", " ".join(f"{i:>4}" for i in ids))
    print("learns ", " ".join(f"{i:>4}" for i in wanted), "\n")

# %% [markdown]
# ## The leak
#
# Now take the mask away. `EncoderOnly` is the same model with the padding mask only: every token
# sees every token. It gets the same labels and is trained in the same way. The text: rows of
# numbers from 1 to 17 that count in steps and begin again after 17, such as 3 8 13 1 6 11. The
# first number and the step are random; after two numbers everything is known. There are 17 · 16
# such beginnings. Twenty of them are *held out*: training never shows them.


# %%
BEGINNINGS = torch.tensor([(first, step) for first in range(17) for step in range(1, 17)])
order = torch.randperm(len(BEGINNINGS), generator=torch.Generator().manual_seed(0))
held_out, trained = BEGINNINGS[order[:20]], BEGINNINGS[order[20:]]


def count_on(first, step, length):
    return [(first + step * i) % 17 + 1 for i in range(length)]


def draw_rows(seed, count=64):
    """Rows of 6 to 12 numbers, from the beginnings that are not held out."""
    generator = torch.Generator().manual_seed(seed)
    chosen = trained[torch.randint(len(trained), (count,), generator=generator)]
    lengths = torch.randint(6, 13, (count,), generator=generator)
    return [
        count_on(first, step, length)
        for (first, step), length in zip(chosen.tolist(), lengths.tolist(), strict=True)
    ]


def train(model, steps=400):
    optimizer = torch.optim.AdamW(model.parameters(), lr=4e-3)
    losses = []
    for step in range(steps):
        batch = pad(draw_rows(step))
        labels = next_token_labels(batch.input_ids, batch.attention_mask)
        loss = model.loss(batch.input_ids, batch.attention_mask, labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


print(draw_rows(0)[0])
models, losses = {}, {}
config = Config(vocab_size=18, d_model=48, num_layers=2, num_heads=4, style="gpt2")
for name, kind in {"with the causal mask": DecoderOnly, "without": EncoderOnly}.items():
    torch.manual_seed(0)
    models[name] = kind(config)
    losses[name] = train(models[name])
    models[name].eval()
    print(f"{name:<22} trained, last loss {losses[name][-1]:.4f}")

# %%
figure, axis = plt.subplots(figsize=(7, 3.3), layout="constrained")
for (name, values), color in zip(losses.items(), ("#08519c", "#d9822b"), strict=True):
    axis.plot(values, label=name, color=color)
axis.set(xlabel="step", ylabel="training loss", ylim=(0, None))
axis.set_title("Which of the two is better?")
axis.legend(frameon=False)
plt.show()

# %% [markdown]
# By its loss the model without the mask is better by far. The other keeps a loss that it cannot get
# rid of. The second number of a row is drawn at random, so whoever guesses it pays the logarithm of
# how many are possible. All later numbers follow from the first two and need cost nothing. A row
# has 9 numbers on average, which makes 8 labels, and one of the 8 is the second number.

# %%
firsts = trained[:, 0].tolist()
possible = torch.tensor([firsts.count(first) for first in firsts])  # second numbers, in each row
second = possible.log().mean().item()
floor = second / 8
print(f"{possible.float().mean():.1f} numbers are possible on average, which costs {second:.2f}")
print(f"floor {floor:.3f}")
for name, values in losses.items():
    print(f"{name:<22} loss at the end {sum(values[-20:]) / 20:.3f}")
assert sum(losses["without"][-20:]) / 20 < floor < sum(losses["with the causal mask"][-20:]) / 20

# %% [markdown]
# That is a *floor*: below it nobody can honestly be, and the sound model stands just above. The
# leaking model "knows" what is drawn at random.
#
# Does a validation set find it? Here are the losses on the held-out rows.

# %%
batch = pad([count_on(first, step, 9) for first, step in held_out.tolist()])
labels = next_token_labels(batch.input_ids, batch.attention_mask)
for name, model in models.items():
    with torch.no_grad():
        loss = model.loss(batch.input_ids, batch.attention_mask, labels).item()
    print(f"{name:<22} held-out loss {loss:.4f}")

# %% [markdown]
# It does not: the same leak is in it. The sound model finds new beginnings harder than known ones,
# as it should. For the leaking model nothing is hard, so the comparison misleads even more.
#
# Now let both write. Each gets the first four numbers of a row and has to continue with four more.
# `generate` wants a model that looks back, so for the other one we write the loop by hand. *Exact
# match* counts the rows in which all four are right.


# %%
@torch.no_grad()
def write(model, prompts, count):
    ids = torch.tensor(prompts)
    for _ in range(count):
        logits = model(ids, torch.ones_like(ids))
        ids = torch.cat((ids, logits[:, -1:].argmax(dim=-1)), dim=1)
    return ids[:, -count:].tolist()


exact = {}
for name, model in models.items():
    for kind, beginnings in {"trained": trained, "held out": held_out}.items():
        rows = [count_on(first, step, 8) for first, step in beginnings.tolist()]
        prompts = [row[:4] for row in rows]
        written = write(model, prompts, 4)
        right = sum(a == row[4:] for a, row in zip(written, rows, strict=True)) / len(rows)
        exact[name, kind] = right
        print(f"{name:<21} {kind:<8} exact match {right:4.0%}, as in {prompts[0]} → {written[0]}")
assert exact["with the causal mask", "trained"] > 0.9
assert exact["without", "trained"] < 0.05

ids = torch.tensor(prompts)
sound = models["with the causal mask"]
rows = generate(sound, ids, torch.ones_like(ids), 4)  # the package's way, with a cache
assert [row.tolist() for row in rows] == write(sound, prompts, 4)

# %% [markdown]
# **A loss near 0, and an exact match of 0%**, on rows that it was trained with, too. In training
# the answer always stood one place to the right, and the model learned to copy it from there. When
# it writes, there is nothing on the right. You can see it in its attention:

# %%
text = pad([count_on(0, 9, 8)])
words = [str(i) for i in text.input_ids[0].tolist()]
for name, model in models.items():
    with torch.no_grad(), record_attention(model) as maps:
        model(text.input_ids, text.attention_mask)
    layer = next(iter(maps))
    mask = padding_mask(text.attention_mask)
    if "with the" in name:
        mask = mask & causal_mask(8)
    display(attention_figure(maps[layer][0], mask[0], words, words, title=f"{name}, first layer"))

# %% [markdown]
# In the lower picture most heads have a dark line just above the diagonal: each token looks at the
# one after it. The upper picture is hatched there.

# %% [markdown]
# ## The test that shows it at once
#
# No training is needed to find a leak. Change a later token; nothing before it may move.


# %%
@torch.no_grad()
def sees_the_future(model):
    ids = torch.randint(1, 18, (1, 8), generator=torch.Generator().manual_seed(1))
    changed = ids.clone()
    changed[:, 5] = ids[:, 5] % 17 + 1
    mask = torch.ones_like(ids)
    before, after = model(ids, mask)[:, :5], model(changed, mask)[:, :5]
    return (before - after).abs().max().item()


for name, model in models.items():
    print(f"{name:<22} earlier logits move by {sees_the_future(model):.3g}")
assert sees_the_future(models["with the causal mask"]) == 0.0

# %% [markdown]
# Exactly 0, without a tolerance: the weight of a forbidden key is exactly 0, so what stands there
# adds exactly nothing. The package's checks for a decoder ask this, and more:

# %%
for name, model in models.items():
    report = check_decoder(model)
    print(f"{name:<22} {len(report.failed)} checks fail", *report.failed, sep="\n    ")

# %% [markdown]
# ### Try it: a leak of one token
#
# The mask is off by one: each query gets the row of the query after it. Before you run this: is
# seeing *one* token ahead a small leak? Will the loss be nearer to the floor or to 0?


# %%
def one_ahead_mask(length):
    """The causal mask of one token more, without its first query and its last key."""
    return causal_mask(length + 1)[:, :, 1:, :-1]


class OneAhead(EncoderOnly):
    """Every token sees what came before, itself, and one more."""

    def encode(self, input_ids, attention_mask, segment_ids=None, at=None):
        mask = padding_mask(attention_mask) & one_ahead_mask(input_ids.shape[1])
        x, rotation = self.embedding(input_ids, attention_mask, segment_ids)
        return self.encoder(x, mask, rotation, at=at)


print(one_ahead_mask(5)[0, 0].int())
torch.manual_seed(0)
one_ahead = OneAhead(config)
loss = sum(train(one_ahead)[-20:]) / 20
rows = [count_on(first, step, 8) for first, step in trained.tolist()]
written = write(one_ahead.eval(), [row[:4] for row in rows], 4)
right = sum(a == row[4:] for a, row in zip(written, rows, strict=True)) / len(rows)
print(f"one token ahead: loss at the end {loss:.4f}, exact match {right:.0%}")

# %% [markdown]
# It is the whole leak. The one token that it sees too many is the answer.

# %% [markdown]
# **To click on.** `minitransformer explore "causal=1"` opens the mask explorer on padding and
# causality in one mask, and which of the two hides a cell.

# %% [markdown]
# ## Exercises

# %% [markdown]
# <!-- exercise: causal_mask -->

# %% [markdown]
# <!-- exercise: combine_masks -->

# %% [markdown]
# <!-- exercise: next_token_labels -->

# %% [markdown]
# ## Check yourself
#
# 1. Why may a token see itself?
# 2. Your language model has a validation loss of 0.01 on prose. What do you do first, and why?
# 3. Why does a validation set not find a leak of the future?
# 4. With a cache there is one query and n keys. Which row of the full triangle is its mask?
# 5. Why is the test that changes a later token exact, and not up to a tolerance?
#
# <details><summary>Answers</summary>
#
# 1. It predicts the next one, so it may know itself. Otherwise the first token would see nothing.
# 2. Do not believe it: prose has a floor far above that, for nobody knows each next word. Change a
#    token, and look whether earlier logits move.
# 3. It is read in the same way: the answer stands in the input there as well. Only writing takes it
#    away.
# 4. The last one: all True.
# 5. What is forbidden has a weight of exactly 0, so it cannot move anything, not even by rounding.
#
# </details>
