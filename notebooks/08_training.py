# %% [markdown]
# # 8. Training
#
# You have a model, a mask and labels. Training is a loop of five lines, and a few habits that
# decide whether it works: how fast to learn and when, how to treat a gradient that is too long,
# and how not to spend half of the time on padding.
#
# After this chapter you will be able to
#
# - draw a schedule with warm-up and cosine, and say what each part is for;
# - clip a gradient, and recognise the step at which it mattered;
# - pack several documents into one row, and show that the loss is the same to rounding;
# - train a small language model on real prose, and read its curve.

# %%
import time

import matplotlib.pyplot as plt
import torch
from matplotlib_inline.backend_inline import set_matplotlib_formats

from minitransformer import (
    Config,
    DecoderOnly,
    causal_mask,
    next_token_labels,
    pack,
    pad,
    padding_mask,
    token_positions,
)
from minitransformer.training.answering import answer
from minitransformer.training.loop import Settings, schedule, train
from minitransformer.training.tasks import make_task

set_matplotlib_formats("png")
torch.set_num_threads(1)

# %% [markdown]
# ## The schedule
#
# In the first steps the weights are random and the gradients wild; and the optimizer knows nothing
# yet about their size. So the learning rate starts low and rises in a line: *warm-up*. Later the
# model has to settle, and the rate falls, here along half a cosine.

# %%
settings = Settings(steps=300, learning_rate=4e-3, warmup=50)
rates = [settings.learning_rate * schedule(step, settings) for step in range(300)]
figure, axis = plt.subplots(figsize=(6.5, 2.6), layout="constrained")
axis.plot(rates, color="#08519c")
axis.axvspan(0, 50, color="#d9822b", alpha=0.15)
axis.text(25, 0.0004, "warm-up", ha="center", fontsize=9)
axis.set(
    xlabel="step", ylabel="learning rate", ylim=(0, None), title="Up in a line, down in a cosine"
)
plt.show()
print(f"step 0: {rates[0]:.1e}, not 0: the first batch is learned from, too")
assert rates[0] > 0

# %% [markdown]
# Does it matter? Here is a task that is easy for a language model, rows that count upwards,
# trained with a learning rate that is rather high: with warm-up and without, and with a constant
# rate.


# %%
def rows_that_count(seed, count=32):
    generator = torch.Generator().manual_seed(seed)
    starts = torch.randint(1, 30, (count,), generator=generator).tolist()
    lengths = torch.randint(3, 25, (count,), generator=generator).tolist()
    return [list(range(a, a + n)) for a, n in zip(starts, lengths, strict=True)]


def loss_of(model, batch):
    labels = next_token_labels(batch.input_ids, batch.attention_mask)
    return model.loss(batch.input_ids, batch.attention_mask, labels)


def train_by_hand(rate_at, clip=1.0, steps=150):
    """The five lines; also the length of each gradient before it was clipped."""
    torch.manual_seed(0)
    model = DecoderOnly(Config(vocab_size=60, d_model=64, num_layers=4, num_heads=4))
    optimizer = torch.optim.AdamW(model.parameters())
    losses, lengths = [], []
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = rate_at(step)
        loss = loss_of(model, pad(rows_that_count(step)))
        optimizer.zero_grad()
        loss.backward()
        lengths.append(torch.nn.utils.clip_grad_norm_(model.parameters(), clip).item())
        optimizer.step()
        losses.append(loss.item())
    return losses, lengths


PEAK = 1.2e-2
short = Settings(steps=150, warmup=30)
cases = {
    "warm-up and cosine": lambda step: PEAK * schedule(step, short),
    "cosine, no warm-up": lambda step: PEAK * schedule(step, Settings(steps=150, warmup=0)),
    "constant": lambda step: PEAK,
}
results = {name: train_by_hand(rate) for name, rate in cases.items()}
figure, axis = plt.subplots(figsize=(7, 3), layout="constrained")
for (name, (losses, _)), colour in zip(
    results.items(), ("#08519c", "#d9822b", "#7a4fa3"), strict=True
):
    axis.plot(losses, color=colour, label=name)
    print(f"{name:<20} loss, mean of the last 20 steps: {sum(losses[-20:]) / 20:.3f}")
axis.set(xlabel="step", ylabel="loss", ylim=(0, 5), title="The same model, the same batches")
axis.legend(frameon=False)
plt.show()

# %% [markdown]
# This is the 2017 model, with the norm behind each sum. It is known for needing its warm-up (Xiong
# et al. 2020, arXiv:2002.04745); models with the norm in front bear more.

# %% [markdown]
# ## Clipping
#
# Now and then a batch gives a gradient that is many times longer than usual. One such step can
# undo hundreds. *Clipping* shortens it to a given length and keeps its direction. Here are the
# lengths of the gradients of the run with warm-up, before they were clipped.

# %%
lengths = results["warm-up and cosine"][1]
figure, axis = plt.subplots(figsize=(6.5, 2.6), layout="constrained")
axis.semilogy(lengths, color="#08519c", lw=1)
axis.axhline(1.0, color="#d9822b", label="longest that is taken as it is")
axis.set(xlabel="step", ylabel="length of the gradient", title="Gradients before clipping")
axis.legend(frameon=False)
plt.show()
clipped = sum(length > 1 for length in lengths)
longest = max(lengths)
print(f"{clipped} of {len(lengths)} gradients were shortened to 1, the longest from {longest:.1f}")

# %% [markdown]
# ## Packing
#
# Rows of 3 to 24 tokens, padded to the longest: how much of the work is padding? `pack` puts
# several documents in one row and *numbers* them in the attention mask: 1 1 1 2 2 0. It is the
# same kind of value as before, with more than one number in it, and nothing else in the code has
# to change.

# %%
rows = rows_that_count(0, count=64)
padded, packed = pad(rows), pack(rows, length=48)
for name, batch in {"padded": padded, "packed": packed}.items():
    shape = tuple(batch.input_ids.shape)
    real = (batch.attention_mask != 0).float().mean().item()
    print(f"{name}: {shape[0]:>3} rows of {shape[1]}, {real:.0%} real tokens")
print("attention mask of a packed row:", packed.attention_mask[0].tolist())

figure, axes = plt.subplots(2, 1, figsize=(8, 3.6), layout="constrained")
for axis, (name, batch) in zip(axes, {"padded": padded, "packed": packed}.items(), strict=True):
    axis.imshow(batch.attention_mask[:16], cmap="tab10", vmin=0, vmax=9, aspect="auto")
    axis.imshow(
        torch.where(batch.attention_mask[:16] == 0, 1.0, float("nan")),
        cmap="Greys",
        vmin=0,
        vmax=4,
        aspect="auto",
    )
    axis.set(title=f"{name}: the first 16 rows (grey: padding)", yticks=[])
plt.show()

# %% [markdown]
# What keeps the documents of a row apart? The mask: query and key must have the *same number*, not
# just be real. And positions start anew at each document. Both follow from the attention mask.

# %%
row = packed.attention_mask[:1]
mask = padding_mask(row) & causal_mask(row.shape[1])
figure, axes = plt.subplots(1, 2, figsize=(8, 3.6), layout="constrained")
axes[0].imshow(mask[0, 0], cmap="Blues", vmin=0, vmax=1.4)
axes[0].set(title="who may see whom, in a packed row", xlabel="keys", ylabel="queries")
axes[1].plot(token_positions(row)[0], ".", color="#08519c")
axes[1].set(title="positions of its tokens", xlabel="column", ylabel="position")
plt.show()

# %% [markdown]
# The promise: packed or padded, the loss is the same. And the gradient.

# %%
torch.manual_seed(0)
model = DecoderOnly(Config(vocab_size=60, d_model=64, num_layers=2, num_heads=4, style="gpt2"))
losses, gradients = [], []
for batch in (padded, packed):
    model.zero_grad()
    loss = loss_of(model, batch)
    loss.backward()
    losses.append(loss.item())
    gradients.append(torch.cat([p.grad.flatten() for p in model.parameters()]))
difference = (gradients[0] - gradients[1]).abs().max().item()
print(f"padded {losses[0]:.6f}, packed {losses[1]:.6f}, gradients differ by {difference:.1e}")
assert abs(losses[0] - losses[1]) < 1e-5
assert difference < 1e-5

# %% [markdown]
# ### Try it: pack without numbers
#
# Many programs put documents behind each other and give every token a 1. What happens to the loss?
# Each document may then read those before it in its row, and predicts its first token from a
# stranger.

# %%
ones = (packed.attention_mask != 0).long()
labels = next_token_labels(packed.input_ids, packed.attention_mask)
with torch.no_grad():
    leaking = model.loss(packed.input_ids, ones, labels).item()
print(f"numbered {losses[1]:.4f}, all ones {leaking:.4f}: not the same model any more")
assert abs(leaking - losses[1]) > 1e-3

# %% [markdown]
# And the time? Real tokens in a second, forward and backward:

# %% tags=["varies"]
wide = DecoderOnly(Config(vocab_size=60, d_model=128, num_layers=4, num_heads=4, style="gpt2"))
many = rows_that_count(1, count=256)
for name, batch in {"padded": pad(many), "packed": pack(many, length=64)}.items():
    times = []
    for _ in range(5):
        start = time.perf_counter()
        loss_of(wide, batch).backward()
        times.append(time.perf_counter() - start)
    print(f"{name}: {sum(map(len, many)) / sorted(times)[2]:,.0f} real tokens a second")

# %% [markdown]
# ## Real prose
#
# Now the package's own loop, which does all of this, on text: the reference of the Python
# language, which comes with Python, character by character. A model of half a million numbers and
# less than a minute of training: it will learn what English looks like, and not much more.

# %%
task = make_task("lm", None, 128)
torch.manual_seed(0)
config = Config(
    vocab_size=len(task.vocabulary),
    d_model=96,
    num_layers=3,
    num_heads=4,
    max_length=256,
    style="llama",
)
model = DecoderOnly(config).eval()
print(
    f"{sum(p.numel() for p in model.parameters()):,} parameters, {len(task.vocabulary)} characters"
)
sampling = {"temperature": 0.7, "generator": torch.Generator().manual_seed(1)}
print("before:", answer(model, task.vocabulary, ["The "], 60, **sampling)[0].splitlines()[0])

settings = Settings(steps=260, batch_size=24, learning_rate=4e-3, warmup=30)
history, _ = train(model, task, settings, save=lambda history: None, quiet=True)

# %%
losses = torch.tensor([step["loss"] for step in history])
held_out = {step["step"]: step["held_out_loss"] for step in history if "held_out_loss" in step}
figure, axis = plt.subplots(figsize=(7, 3), layout="constrained")
axis.plot(losses.unfold(0, 5, 1).mean(dim=1), color="#08519c", label="training (mean of 5 steps)")
if held_out:
    axis.plot(list(held_out), list(held_out.values()), "o", color="#d9822b", label="held out")
axis.set(
    xlabel="step", ylabel="loss per character", ylim=(0, None), title="Learning to write prose"
)
axis.legend(frameon=False)
plt.show()
print(
    f"loss {losses[0]:.2f} → {losses[-10:].mean():.2f}; guessing at random would be",
    f"{torch.tensor(float(len(task.vocabulary))).log():.2f}",
)
for start in ("The ", "A class "):
    sampling = {"temperature": 0.7, "generator": torch.Generator().manual_seed(1)}
    print(repr(answer(model, task.vocabulary, [start], 90, **sampling)[0]))

# %% [markdown]
# A curve like this says three things: where it started (about the logarithm of the number of
# characters, if the first weights are right), how fast it falls, and whether held-out text goes
# the same way. It does not say that the masks are right; that is what chapters 5, 11 and 13 are
# about.

# %% [markdown]
# ## Exercises

# %% [markdown]
# <!-- exercise: learning_rate -->

# %% [markdown]
# <!-- exercise: pack_rows -->

# %% [markdown]
# <!-- exercise: token_positions -->

# %% [markdown]
# ## Check yourself
#
# 1. What is the loss of an untrained model over 100 characters, and what does it mean if it is 20?
# 2. Why does clipping keep the direction of a gradient?
# 3. In a packed row, which two things have to know where documents begin?
# 4. Packing without numbers in the mask gives another loss. In which direction, and why is a lower
#    one not good news?
# 5. Half of a batch is padding. Which layers waste time on it, even with a perfect mask?
#
# <details><summary>Answers</summary>
#
# 1. About log 100 = 4.6. The first weights are too large, or the labels are wrong.
# 2. All its numbers are multiplied by the same factor.
# 3. The mask, so that documents do not see each other, and the positions, which start anew.
# 4. It depends on the text; lower, if the documents of a row are alike. It measures something that
#    you do not have when you use the model.
# 5. All that look at one position at a time: feed-forwards, norms, projections.
#
# </details>
