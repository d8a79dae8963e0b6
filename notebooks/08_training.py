# %% [markdown]
# # 8. Training
#
# *Reading takes about 60 minutes, running three minutes on one CPU thread. It presumes chapters 5,
# 7 and 7b.*
#
# The model is ready, the labels are right. What remains is a loop of ten lines: take a batch,
# compute the loss, go backward, step. This chapter takes the loop apart: what a batch is made of,
# how large a step is, what keeps one bad batch from ruining the run. In the real run a small model
# learns to write prose, in less than a minute on one CPU thread.
#
# Chapter 8b goes on with a text of your own, and with what a checkpoint must hold.
#
# After this chapter you will be able to
#
# - pack several documents into a row without their seeing each other, and check that the loss is
#   the same as with padding;
# - say how large the first weights are, what weight tying saves, and why a model has a mode for
#   training and one for use;
# - say what a warm-up, a cosine and gradient clipping do, with a measurement for each;
# - say what Muon does with a gradient, and compare two optimizers fairly;
# - write the training loop, and read a loss curve against baselines that you can compute.

# %%
import math
import time
from collections import Counter
from dataclasses import replace

import matplotlib.pyplot as plt
import torch
from IPython.display import display
from matplotlib.colors import ListedColormap
from matplotlib_inline.backend_inline import set_matplotlib_formats
from torch import nn

from minitransformer import (
    Config,
    DecoderOnly,
    causal_mask,
    next_token_labels,
    pack,
    pad,
    padding_mask,
    record_attention,
    token_positions,
)
from minitransformer.inference.answering import answer
from minitransformer.training.loop import (
    Settings,
    Training,
    parameter_groups,
    real_tokens,
    schedule,
    train,
)
from minitransformer.training.muon import orthogonalize
from minitransformer.training.tasks import largest_padding_weight, make_task
from minitransformer.visualize import curve_figure, wanted_beside_found

set_matplotlib_formats("png")
torch.manual_seed(0)
torch.set_num_threads(1)

# %% [markdown]
# ## Text
#
# Every Python carries its language reference (it is what `help("if")` prints): English prose, with
# some code between, that needs no download. The task `lm` cuts it into pieces of at most 64
# tokens and holds out about every 20th paragraph: training never sees those.

# %% tags=["varies"]
task = make_task("lm", max_length=64)
characters = sum(len(piece.text) for piece in task.training)
print(f"{len(task.training):,} pieces to train on, {characters:,} characters")
print(f"{len(task.held_out):,} pieces held out")
for piece in task.training[3:6]:
    print(repr(piece.text))

# %% [markdown]
# A token is one character here. A row of ids is a start, the characters, an end.

# %%
vocabulary = task.vocabulary
(row,) = vocabulary.encode(["a cat"])
print(row)
print(vocabulary.names(row))
print(len(vocabulary), "tokens, the first five are special:", vocabulary.names(range(5)))

# %% [markdown]
# ## Padding is paid for
#
# The pieces differ in length. Padded to the longest, a batch is a rectangle, and the model
# computes all of it.

# %%
rows = task.rows(task.training[:24])
padded = pad(rows)
share = real_tokens(padded) / padded.input_ids.numel()
print(tuple(padded.input_ids.shape), f"of which {share:.0%} are real tokens")

# %% [markdown]
# `pack` puts several documents into one row instead. It takes the longest that still fits, again
# and again. By hand: documents of 3, 1 and 2 tokens, in rows of length 4.

# %%
packed = pack([[5, 6, 7], [8], [9, 9]], length=4)
print(packed.input_ids)
print(packed.attention_mask)
assert packed.attention_mask.tolist() == [[1, 1, 1, 2], [1, 1, 0, 0]]

# %% [markdown]
# The attention mask does more than say what is padding. It *numbers* the documents of each row: 1
# is the first, 2 the second, 0 is padding. So it is a map of the work: where something is to be
# computed, and for whom. Here are the same 24 pieces, padded and packed into rows of 128. The
# area that is not white is what the model computes.

# %%
packed = pack(rows, length=128)
colors = ListedColormap(["#f2f2f2", "#08519c", "#d9822b", "#5a8f3d", "#7a4fa3", "#b5446e"])
figure, axes = plt.subplots(1, 2, figsize=(9.5, 3.4), sharey=True, layout="constrained")
for panel, (name, batch) in zip(axes, {"padded": padded, "packed": packed}.items(), strict=True):
    image = batch.attention_mask.clamp(max=5)
    panel.imshow(image, cmap=colors, vmin=0, vmax=5, aspect="auto", interpolation="nearest")
    share = real_tokens(batch) / batch.input_ids.numel()
    panel.set(
        title=f"{name}: {len(batch.input_ids)} rows, {share:.0%} real tokens",
        xlabel="position",
        xlim=(-0.5, 127.5),
        ylim=(23.5, -0.5),
        yticks=range(0, 24, 4),
    )
axes[0].set_ylabel("row")
figure.suptitle("attention_mask: gray is padding, a color is a document; white is not there")
plt.show()
assert real_tokens(packed) == real_tokens(padded)

# %% [markdown]
# ## Documents in one row must not meet
#
# A packed row is safe only if nothing crosses the border between two documents. Three things have
# to know the border, and all three read it off the numbers.
#
# 1. The mask: `padding_mask` lets a query see the keys of *its own number*.
# 2. The positions: each document starts at 0 again.
# 3. The labels: the last token of a document does not predict the first of the next.

# %%
documents = [[5, 6, 7, 8, 9], [10, 11, 12, 13], [14, 15, 16]]
batch = pack(documents, length=13)
labels = next_token_labels(batch.input_ids, batch.attention_mask)
for name, values in {
    "input_ids": batch.input_ids,
    "attention_mask": batch.attention_mask,
    "positions": token_positions(batch.attention_mask),
    "labels": labels,
}.items():
    print(f"{name:<15}" + "".join(f"{value:>5}" for value in values[0].tolist()))

# %% [markdown]
# The mask of the row is a block for each document, and in a decoder a triangle of each block. On
# the left is the mask, on the right the weights that a model with random parameters uses.

# %%
model = DecoderOnly(Config(vocab_size=20, d_model=16, num_layers=1, num_heads=1, style="gpt2"))
wanted = padding_mask(batch.attention_mask) & causal_mask(13)


def weights_with(attention_mask):
    with record_attention(model) as maps, torch.no_grad():
        model(batch.input_ids, attention_mask)
    return maps["decoder.layers.0.attention"][0, 0]


weights = weights_with(batch.attention_mask)
assert (weights[~wanted[0, 0]] == 0.0).all()
wanted_beside_found(wanted[0, 0], weights, "Documents are numbered: each sees itself only")

# %% [markdown]
# Now the mistake. Somebody makes the attention mask the usual way, 1 for every real token.

# %%
ones = (batch.attention_mask != 0).long()
leaking = weights_with(ones)
print("largest weight across a border:", leaking[~wanted[0, 0]].max().item())
wanted_beside_found(wanted[0, 0], leaking, "1 for every token: each reads what stands before it")

# %% [markdown]
# Blue under the hatch is a leak. Nothing crashes, and the loss looks plausible. What gives it away
# is the comparison that this course makes everywhere: a document in company must give what it gives
# alone.


# %%
def distance_from_alone(attention_mask):
    """The largest difference between logits in the packed row and of the document alone."""
    largest, start = 0.0, 0
    with torch.no_grad():
        together = model(batch.input_ids, attention_mask)[0]
        for document in documents:
            ids = torch.tensor([document])
            alone = model(ids, torch.ones_like(ids))[0]
            here = together[start : start + len(document)]
            largest = max(largest, (here - alone).abs().max().item())
            start += len(document)
    return largest


print("numbered:", distance_from_alone(batch.attention_mask))
print("ones:    ", distance_from_alone(ones))
assert distance_from_alone(batch.attention_mask) < 1e-5 < distance_from_alone(ones)

# %% [markdown]
# With numbered documents the difference is rounding: longer sums are added up in another order. So
# packing may change how long a step takes, and nothing else. In float64, on the 24 pieces, the
# loss of the packed batch is that of the padded batch to twelve decimals.

# %%
precise = DecoderOnly(
    Config(len(vocabulary), d_model=32, num_layers=2, max_length=64, style="llama")
).double()
losses = {}
for name, one in {"padded": padded, "packed": packed}.items():
    labels = next_token_labels(one.input_ids, one.attention_mask)
    losses[name] = precise.loss(one.input_ids, one.attention_mask, labels).item()
    print(f"{name}: {losses[name]:.12f}  ({(labels != -100).sum()} labels)")
assert math.isclose(losses["padded"], losses["packed"], rel_tol=1e-12)

# %% [markdown]
# What is gained? We time a forward and a backward pass and divide by the number of *real* tokens,
# for pieces of up to 64 and of up to 256 tokens. The gain need not equal the padding saved: in a
# longer text attention costs more for each token. So measure before you believe.

# %% tags=["varies"]
timed = DecoderOnly(
    Config(len(vocabulary), d_model=64, num_layers=2, max_length=256, style="llama")
)
for longest in (64, 256):
    source = make_task("lm", max_length=longest)
    for name in ("padded", "packed"):
        one = source.batch(seed=0, step=0, size=24, packed=name == "packed")
        seconds = []
        for _ in range(5):
            start = time.perf_counter()
            timed.loss(**one).backward()
            seconds.append(time.perf_counter() - start)
        per_token = sorted(seconds)[2] / real_tokens(one) * 1e6
        share = real_tokens(one) / one.input_ids.numel()
        print(
            f"up to {longest:>3}, {name}: {share:4.0%} real, {per_token:5.1f} µs for a real token"
        )

# %% [markdown]
# ### Try it
#
# Sort `task.training` by length before you take 24 pieces, and pad. How large is the share of
# real tokens now? What would such batches do to training, if each holds only short or only long
# texts?

# %% [markdown]
# ## The loop
#
# An **optimizer** moves every parameter a little against its gradient. How far is the *learning
# rate*. Ours is AdamW (Loshchilov and Hutter 2017, arXiv:1711.05101), the usual one for
# transformers: Adam with *weight decay*, which at each step also pulls the matrices a little
# towards 0. Biases and gains are left alone; `parameter_groups` sorts them.
#
# Here is the loop, with nothing but what is needed. `schedule` and the clipping have sections of
# their own below, and so has the wild step.


# %%
def new_model(style="llama", num_layers=2, d_model=64, **more):
    torch.manual_seed(0)
    return DecoderOnly(
        Config(len(vocabulary), d_model, num_layers, max_length=64, style=style, **more)
    )


def fit(model, settings, wild_step=None):
    """Train; return the loss and the length of the gradient at each step."""
    groups = parameter_groups(model, settings.weight_decay)
    optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.98), fused=True)  # fused: faster
    losses, lengths = [], []
    for step in range(settings.steps):
        for group in optimizer.param_groups:
            group["lr"] = settings.learning_rate * schedule(step, settings)
        batch = task.batch(settings.seed, step, settings.batch_size, settings.packed)
        optimizer.zero_grad()  # or the gradients of all steps add up
        loss = model.loss(**batch)
        (1000 * loss if step == wild_step else loss).backward()
        length = nn.utils.clip_grad_norm_(model.parameters(), settings.clip)
        optimizer.step()
        losses.append(loss.item())
        lengths.append(length.item())
    return losses, lengths


settings = Settings(steps=3, batch_size=24, warmup=2)
by_hand, _ = fit(new_model(), settings)
print(by_hand)

# %% [markdown]
# The package's `train` is this loop with a progress bar, evaluations, checkpoints and some care for
# Ctrl-C. It works on a `Training`: the model, its optimizer, and the history, which has a row for
# each step. It returns 0, or the number of the signal that stopped it. From the same seed it makes
# the same steps, bit for bit.

# %%
training = Training(new_model(), settings)
stopped = train(training, task, quiet=True)
print([one["loss"] for one in training.history])
assert not stopped
assert [one["loss"] for one in training.history] == by_hand

# %% [markdown]
# ## The first weights
#
# A model starts with random weights, and their size matters. Each output of a linear layer is a sum
# of as many products as the input is wide. If a weight has the variance 1 / width, the sum has
# about the size of what came in. That is the idea of the usual **initialization** (Glorot and
# Bengio 2010), which the package uses too. With weights of twice or half that size, every layer
# doubles or halves the numbers:

# %%
torch.manual_seed(0)
for factor in (0.5, 1.0, 2.0):
    x = torch.randn(1000, 64)
    for _ in range(20):
        x = x @ (factor * torch.randn(64, 64) / 64**0.5)
    print(f"weights times {factor}: after 20 layers the numbers have the size {x.std().item():.1e}")

# %% [markdown]
# In a transformer, norms and residuals (chapter 4) keep the numbers within bounds. Does the size of
# the first weights matter even so? And why not begin with zeros, so that nothing is left to chance?
# Three models, which differ only in a factor for the first weights of their layers:

# %%
starts = {"as they are": 1.0, "10 times as large": 10.0, "zero": 0.0}
runs = {}
for name, factor in starts.items():
    model = new_model()
    linear = [part for part in model.decoder.modules() if isinstance(part, nn.Linear)]
    with torch.no_grad():
        for part in linear:
            part.weight *= factor
    losses, _ = fit(model, Settings(steps=120, batch_size=16, warmup=10))
    runs[name] = losses
    largest = max(part.weight.abs().max().item() for part in linear)
    last = sum(losses[-10:]) / 10
    print(f"{name:<18} mean loss of the last ten {last:.2f}, largest weight {largest:.2f}")
assert largest == 0.0
figure, axes = plt.subplots(figsize=(6.5, 2.8), layout="constrained")
for (name, losses), color in zip(runs.items(), ("#08519c", "#d9822b", "#5a8f3d"), strict=True):
    axes.plot(losses, color=color, label=name)
axes.set(xlabel="training step", ylabel="loss (nats per token)", title="Three sizes to start with")
axes.legend(frameon=False)
plt.show()

# %% [markdown]
# Ten times as large learns far less in the same time. The zeros are stranger. Their loss falls, and
# after 120 steps the weights of the layers are still *exactly* zero. The backward pass multiplies.
# Attention's values are zero because one matrix is, its output because the next one is, and the
# gradient of each matrix has the other as a factor. So neither ever moves. What learned is the
# embedding and the head: this model knows which token follows which, and looks at nothing before
# that. Change an earlier token, and the last logits stay the same to the last bit.

# %%
ids = torch.tensor([vocabulary.encode(["The cat sat"], add_special=False)[0]])
changed = ids.clone()
changed[0, 2] += 1
with torch.no_grad():
    before, after = (model(row, torch.ones_like(row))[0, -1] for row in (ids, changed))
print("the last logits differ by", (before - after).abs().max().item())
assert torch.equal(before, after)

# %% [markdown]
# ## One table for two uses
#
# A model has two tables with a row for each token. The *embedding* turns a token into a vector. The
# *head* turns a vector into scores: the logit of a token is the dot product of the vector with that
# token's row. Both rows say what the token is like, so one table may serve for both. That is
# **weight tying** (Press and Wolf 2016, arXiv:1608.05859; Vaswani et al. 2017, section 3.4). Here
# it is `Config(tie_embeddings=True)`. What it saves depends on the vocabulary:

# %%
for tokens in (len(vocabulary), 2_000, 32_000):
    sizes = []
    for tie in (False, True):
        sized = DecoderOnly(Config(tokens, 96, max_length=64, style="llama", tie_embeddings=tie))
        sizes.append(sum(p.numel() for p in sized.parameters()))
    print(f"{tokens:>6,} tokens: {sizes[0]:>9,} parameters, tied {sizes[1]:>9,}")

# %% [markdown]
# Tied is not copied. It is *one* parameter that is used in two places, so its gradient is the sum
# of the two:

# %%
tied, untied = new_model(tie_embeddings=True), new_model()
assert tied.head.projection.weight is tied.embedding.tokens.weight
with torch.no_grad():
    untied.head.projection.weight.copy_(untied.embedding.tokens.weight)
for one in (tied, untied):
    one.loss(**task.batch(0, 0, 24, True)).backward()
summed = untied.embedding.tokens.weight.grad + untied.head.projection.weight.grad
torch.testing.assert_close(tied.embedding.tokens.weight.grad, summed)
difference = (tied.embedding.tokens.weight.grad - summed).abs().max().item()
print("largest difference of the tied gradient from that sum:", difference)

# %% [markdown]
# ## Dropout: on in training, off in use
#
# A model that sees the same texts again and again learns them by heart. **Dropout** (Srivastava et
# al. 2014) makes that harder. In training it sets each number to 0 with the probability $p$, at
# random and anew in each pass, and divides the others by $1 - p$. So the mean stays what it was. In
# use it does nothing. `model.train()` switches it on, `model.eval()` off:

# %%
torch.manual_seed(0)
dropout = nn.Dropout(0.5)
ones = torch.ones(8)
print("train:", dropout(ones).tolist())
print("train:", dropout(ones).tolist())
print("mean of 100,000:", round(dropout(torch.ones(100_000)).mean().item(), 3))
dropout.eval()
print("eval: ", dropout(ones).tolist())

# %% [markdown]
# In the package dropout acts on the embeddings and on what each sublayer adds. (It does not act on
# attention weights: they would no longer sum to 1.) The mode belongs to the model and stays until
# it is changed, so it is easy to be in the wrong one. We train with dropout, and then evaluate the
# same 100 held-out pieces three times in each mode.

# %%
unseen = pack(task.rows(task.held_out[:100]), length=64)
unseen_labels = next_token_labels(unseen.input_ids, unseen.attention_mask)
found = {}
for share in (0.0, 0.3):
    model = new_model(dropout=share)
    fit(model, Settings(steps=120, batch_size=16, warmup=10))
    for mode in (model.train, model.eval):
        mode()
        with torch.no_grad():
            losses = [
                model.loss(unseen.input_ids, unseen.attention_mask, unseen_labels).item()
                for _ in range(3)
            ]
        found[share, mode.__name__] = losses
        print(f"dropout {share}, {mode.__name__:<5}:", *(f"{loss:.4f}" for loss in losses))
assert len(set(found[0.3, "eval"])) == 1 < len(set(found[0.3, "train"]))
assert max(found[0.3, "eval"]) < min(found[0.3, "train"])

# %% [markdown]
# In the wrong mode the loss is too high, and another one each time. The other way round nothing
# shows at all: whoever evaluates in the middle of the training and forgets `model.train()` trains
# on without dropout.
#
# Without dropout the loss is lower here. In this short run no piece is seen often, so there is
# nothing to be learned by heart, and dropout only disturbs. The real run below has none for that
# reason.
#
# ### Try it
#
# - Train the tied and the untied model for 120 steps each. Which has the lower loss?
# - Begin with zeros in the matrices of attention only. Do they stay zero? And if the last matrix of
#   each sublayer is zero, and the others are not?

# %% [markdown]
# ## How large a step?
#
# The learning rate is no constant. It rises from almost 0 in a straight line, the *warm-up*, and
# then falls along half a cosine. The first is from Vaswani et al. 2017 (arXiv:1706.03762, section
# 5.3), the second from Loshchilov and Hutter 2016 (arXiv:1608.03983). `schedule` gives the share of
# the highest rate at each step.

# %%
settings = Settings(steps=500, warmup=50, learning_rate=4e-3)
rates = [settings.learning_rate * schedule(step, settings) for step in range(settings.steps)]
figure, axes = plt.subplots(figsize=(6.5, 2.6), layout="constrained")
axes.plot(rates, color="#08519c")
axes.set(xlabel="training step", ylabel="learning rate", title="Up in a line, down in a cosine")
plt.show()
print(f"step 0: {rates[0]:.2e}   highest: {max(rates):.2e}   last: {rates[-1]:.2e}")

# %% [markdown]
# Step 0 already learns: its rate is 1/50 of 0.004 and not 0. The highest is a little below 0.004,
# because here the cosine falls from the first step on. (In the exercise below it begins after the
# warm-up. Both are in use.)
#
# Is the warm-up needed? That is a question for an experiment. We train the model of 2017, with the
# norm *after* each addition ("post-norm"), four layers, for 80 steps: with two learning rates, with
# and without a warm-up.


# %%
runs = {
    (rate, warmup): fit(
        new_model("vanilla", num_layers=4),
        Settings(steps=80, batch_size=16, learning_rate=rate, warmup=warmup),
    )[0]
    for rate in (0.003, 0.01)
    for warmup in (0, 30)
}

# %% [markdown]
# To read the curves we need something to compare them with. A model that knows nothing gives each
# of $V$ tokens the same probability: its loss is $\log V$. A model that knows only how often each
# token occurs, its share $p$, and nothing of what stands before, has a loss of
# $-\sum p \log p$, the *entropy* of the tokens. Anything below that has learned from context. (The
# unit is the *nat*, as the logarithm is the natural one.)

# %%
counts = Counter(token for row in task.rows(task.training) for token in row[1:])
total = sum(counts.values())
uniform = math.log(len(vocabulary))
frequencies = -sum(n / total * math.log(n / total) for n in counts.values())
print(f"all tokens alike: {uniform:.2f}   frequencies only: {frequencies:.2f} nats per token")

# %%
figure, axes = plt.subplots(1, 2, figsize=(9.5, 3.2), sharey=True, layout="constrained")
for panel, rate in zip(axes, (0.003, 0.01), strict=True):
    for warmup, color in {0: "#d9822b", 30: "#08519c"}.items():
        name = f"warm-up of {warmup} steps" if warmup else "no warm-up"
        panel.plot(runs[rate, warmup], color=color, label=name)
    panel.axhline(frequencies, color="#777777", ls="--", lw=1, label="frequencies only")
    panel.set(xlabel="training step", title=f"highest learning rate {rate:g}")
    panel.legend(frameon=False)
axes[0].set_ylabel("loss (nats per token)")
figure.suptitle("Four post-norm layers: what a warm-up is for")
plt.show()
for (rate, warmup), losses in runs.items():
    mean = sum(losses[-10:]) / 10
    print(
        f"learning rate {rate:g}, warm-up {warmup:>2}: mean loss of the last ten steps {mean:.2f}"
    )
assert sum(runs[0.01, 30][-10:]) < sum(runs[0.01, 0][-10:]) - 2

# %% [markdown]
# At the small rate both learn, the model without a warm-up more slowly. At the large rate it is
# stuck at the dashed line: the first, wild steps broke it so that nothing of the context reaches
# its output, and it has learned the frequencies and nothing more. With a warm-up the same rate
# works. Post-norm models need this most; Xiong et al. 2020 (arXiv:2002.04745) explain why.
#
# ### Try it
#
# Do the same with `new_model("llama", num_layers=4)`, whose norms stand *before* each sublayer. Is
# there a learning rate at which it needs the warm-up?

# %% [markdown]
# ## One bad batch
#
# The gradient of all parameters together is one long vector. If it is longer than 1 it is shortened
# to 1 and keeps its direction (Pascanu et al. 2012, arXiv:1211.5063). By hand: (3, 4) has the
# length 5.

# %%
parameter = nn.Parameter(torch.zeros(2))
parameter.grad = torch.tensor([3.0, 4.0])
length = nn.utils.clip_grad_norm_([parameter], max_norm=1.0)
print("length before:", length.item(), "  gradient after:", parameter.grad.tolist())
torch.testing.assert_close(parameter.grad, torch.tensor([0.6, 0.8]))

parameter.grad = torch.tensor([3.0, 4.0])
nn.utils.clip_grad_value_([parameter], clip_value=1.0)
print("clipped number by number:", parameter.grad.tolist(), " <- another direction")

# %% [markdown]
# Why bother? In the next run something goes wrong in step 20, once: its loss counts a thousandfold,
# as it may with a corrupt batch or a number that overflows. Once with clipping, once without.

# %%
clipping = {"clipped to 1": 1.0, "not clipped": 1e9}
runs = {
    name: fit(new_model(), Settings(steps=80, batch_size=16, warmup=10, clip=clip), wild_step=20)
    for name, clip in clipping.items()
}
figure, axes = plt.subplots(1, 2, figsize=(9.5, 3.2), layout="constrained")
for (name, (losses, lengths)), color in zip(runs.items(), ("#08519c", "#d9822b"), strict=True):
    axes[0].plot(losses, color=color, label=name)
    axes[1].plot(lengths, color=color, label=name)
axes[0].axvline(20, color="#777777", ls=":", lw=1)
axes[0].axhline(frequencies, color="#777777", ls="--", lw=1, label="frequencies only")
axes[0].set(xlabel="training step", ylabel="loss (nats per token)", title="Loss")
axes[1].set(
    xlabel="training step", ylabel="length", title="Gradient, before clipping", yscale="log"
)
for panel in axes:
    panel.legend(frameon=False)
figure.suptitle("One wild batch at step 20")
plt.show()
for name, (losses, lengths) in runs.items():
    mean = sum(losses[-10:]) / 10
    print(f"{name}: longest gradient {max(lengths):.0f}, mean loss of the last ten {mean:.2f}")
assert sum(runs["clipped to 1"][0][-10:]) < sum(runs["not clipped"][0][-10:]) - 2

# %% [markdown]
# Clipped, the batch is one among others. Not clipped, the loss goes *up* for more than ten steps
# after it, and at the end it is still near the dashed line. Adam (Kingma and Ba 2014,
# arXiv:1412.6980) has a memory. It keeps a running mean of the gradients, about ten steps long
# (1 / (1 − 0.9), from `betas`), and the huge one fills it: for ten steps the model walks where the
# wild batch pointed. And it divides each step by the root of a running mean of *squared* gradients,
# about fifty steps long (1 / (1 − 0.98)): all that comes after is divided by the huge one too, and
# counts for almost nothing.
#
# Clip the gradient of the whole batch. With gradient accumulation (chapter 7b) that is after the
# last `backward`, not after each. `Settings(accumulate=4)` does it so: it cuts each batch into four
# parts, divides the loss of each by the number of labels in all four, and clips once.

# %% [markdown]
# ## A step in every direction
#
# A layer's weight is a matrix, and so is its gradient. Written as a sum of directions, each with a
# strength (its *singular values*), a gradient is mostly a few strong directions. AdamW scales each
# number of the matrix for itself and knows nothing of directions. **Muon** (Jordan 2024) takes the
# running mean of the gradients, the momentum, and makes every direction as strong as every other:
# the matrix $U S V^\top$ becomes $U V^\top$. What is rare in the data gets as long a step as what
# is frequent.
#
# No singular values need be computed for that. An odd polynomial of a matrix,
# $a X + b X X^\top X + c\, (X X^\top)^2 X$, leaves its directions alone and applies
# $a s + b s^3 + c s^5$ to each strength $s$. With well chosen numbers (`COEFFICIENTS`) five rounds
# push every strength between 0 and 1 towards 1. Here are those of one gradient of our model.

# %%
model = new_model()
model.loss(**task.batch(0, 0, 24, True)).backward()
gradient = model.decoder.layers[0].feed_forward.widen.weight.grad
figure, axes = plt.subplots(figsize=(6.5, 2.8), layout="constrained")
for steps, color in ((0, "#bbbbbb"), (1, "#c6dbef"), (3, "#6baed6"), (5, "#08519c")):
    strengths = torch.linalg.svdvals(orthogonalize(gradient[None], steps)[0])
    axes.plot(strengths, color=color, label=f"{steps} rounds")
axes.set(
    xlabel="direction, the strongest first", ylabel="strength", title="A gradient's directions"
)
axes.legend(frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
plt.show()
one, five = (torch.linalg.svdvals(orthogonalize(gradient[None], n)[0]) for n in (0, 5))
print(
    f"strongest / median: {one[0] / one.median():.1f} before, {five[0] / five.median():.1f} after"
)
assert five.median() > 0.5

# %% [markdown]
# Embeddings, the head, biases and gains stay with AdamW: their rows stand for tokens, which are no
# directions of a matrix that something is multiplied by. `parameter_groups` sorts. Does it learn
# faster? The same model and the same batches, for 100 steps. A comparison at one learning rate
# would only say whom the rate suits, so each gets three.

# %%
curves = {}
for name in ("adamw", "muon"):
    for rate in (6e-3, 12e-3, 24e-3):
        settings = Settings(steps=100, learning_rate=rate, warmup=20, optimizer=name)
        training = Training(new_model(), replace(settings, batch_size=24))
        train(training, task, quiet=True)
        losses = [row["loss"] for row in training.history]
        curves[name, rate] = [sum(losses[i : i + 10]) / 10 for i in range(0, 100, 10)]
        print(f"{name:<5}  rate {rate:.3f}  last ten steps {curves[name, rate][-1]:.2f}")

best = {}
for (name, _), losses in curves.items():
    if name not in best or losses[-1] < best[name][-1]:
        best[name] = losses
figure, axes = plt.subplots(figsize=(6.5, 2.8), layout="constrained")
for (name, losses), color in zip(best.items(), ("#d9822b", "#08519c"), strict=True):
    axes.plot(range(5, 105, 10), losses, color=color, label=f"{name}, its best rate")
axes.axhline(frequencies, color="#777777", ls="--", lw=1, label="frequencies only")
axes.set(xlabel="training step", ylabel="loss (nats per token)", title="Means of ten steps")
axes.legend(frameon=False)
plt.show()
last = best["adamw"][-1]
sooner = next(10 * i + 10 for i, loss in enumerate(best["muon"]) if loss <= last)
print(f"Muon is at AdamW's last loss after {sooner} steps")
assert best["muon"][-1] < last

# %% [markdown]
# One step of Muon costs more, five rounds of three products for each matrix; here that is little
# beside the step itself. `minitransformer train --optimizer muon` uses it, and the dates are
# learned so by default.

# %% [markdown]
# ## The real run
#
# 500 steps of 24 pieces, packed. `train` calls `save` before the first step and ten times on the
# way. We use it to have the model write something each time, so that you can watch it learn. (How a
# model writes, and what a temperature is, says the next chapter.)

# %%
settings = Settings(steps=500, batch_size=24, learning_rate=4e-3, warmup=50)
model = new_model(d_model=96)
prompts = ["The ", "If the ", "A class "]


def write():
    generator = torch.Generator().manual_seed(0)
    return answer(model, vocabulary, prompts, 50, temperature=0.7, generator=generator)


diary = {}
training = Training(model, settings)
train(training, task, lambda one: diary.update({len(one.history): write()}), quiet=True)
history = training.history
print(sum(p.numel() for p in model.parameters()), "parameters")

# %%
steps = [one["step"] for one in history]
evaluated = [one for one in history if "held_out_loss" in one]
figure = curve_figure(
    {
        "training": (steps, [one["loss"] for one in history]),
        "held out": (
            [one["step"] for one in evaluated],
            [one["held_out_loss"] for one in evaluated],
        ),
    },
    title="A small model reads Python's manual",
)
axes = figure.axes[0]
axes.yaxis.set_minor_formatter("{x:g}")
for height, name in ((uniform, "all tokens alike"), (frequencies, "frequencies only")):
    axes.axhline(height, color="#777777", ls="--", lw=1)
    axes.text(270, height, name, ha="center", va="bottom", fontsize=8, color="#777777")
display(figure)

# %%
last = evaluated[-1]
seen = settings.steps * settings.batch_size / len(task.training)
recent = sum(one["loss"] for one in history[-50:]) / 50
print(f"each piece was seen {seen:.1f} times on average")
print(f"training loss of the last 50 steps {recent:.2f}")
print(f"held-out loss {last['held_out_loss']:.2f}, frequencies only {frequencies:.2f}")
print(f"perplexity {math.exp(last['held_out_loss']):.1f}: as if choosing among so many characters")
print(f"characters guessed right: {last['accuracy']:.0%}")
assert last["held_out_loss"] < frequencies - 1

# %% [markdown]
# Read such a curve from the baselines. It starts near "all tokens alike", or a little above, as
# random weights are confident about nonsense. It falls quickly to "frequencies only". All below
# is learned from context: first which letter follows which, then words, then what words stand
# together. The two curves lie on each other: most pieces were seen once or twice, so the model
# could not learn them by heart. In a longer run a gap opens. The training loss goes on falling as
# pieces are remembered, which helps on no other text. The held-out loss is the one to watch: when
# it rises, stop, or find more text.
#
# And what does it write?

# %% tags=["varies"]
for step in (0, 50, 100, 250, 500):
    print(f"after {step} steps")
    for text in diary[step]:
        print("   ", repr(text[:70]))

# %% [markdown]
# It is a small model after a short time, and it still writes nonsense. But it started with noise,
# and nobody told it what a word is.
#
# The promise of this project must hold after training, too. The held-out pieces are evaluated as
# padded batches: here is the largest attention weight on any padded key, in all layers, heads and
# batches, and how many weights were looked at.

# %% tags=["varies"]
largest, looked_at = largest_padding_weight(model, task.held_out_batches())
print(largest, f"of {looked_at:,}")
assert largest == 0.0

# %% [markdown]
# ### Try it
#
# - Leave out `optimizer.zero_grad()` in `fit`. Does the loss still fall? How would you notice
#   the mistake?
# - Halve `d_model`, and train again. Which of the two curves changes more?

# %% [markdown]
# **To click on.** `minitransformer explore "causal=1&layout=packed&row=0&query=7"` opens the mask
# explorer on all texts in one row, each a block of its own.

# %% [markdown]
# ## Exercises

# %% [markdown]
# <!-- exercise: learning_rate -->

# %% [markdown]
# <!-- exercise: pack_rows -->

# %% [markdown]
# <!-- exercise: token_positions -->

# %% [markdown]
# <!-- exercise: training_loop -->

# %% [markdown]
# ## Check yourself
#
# 1. A packed row has the attention mask `1 1 2 2 2 0`. How many pairs of query and key does the
#    mask of a decoder allow?
# 2. What are the positions and, for the ids `5 6 7 8 9 0`, the labels of that row?
# 3. Two runs differ only in that one is padded and one packed. By how much may their losses differ
#    at the first step?
# 4. A loss curve lies flat at the entropy of the characters. What has the model learned, and what
#    would you try?
# 5. Why does one huge gradient do harm for so long under AdamW?
# 6. What is the loss of a model that gives each of 100 tokens the same probability?
# 7. All matrices of a model's layers begin at zero. What can it learn all the same, and what never?
# 8. The held-out loss of one checkpoint is another number each time you compute it. What did you
#    forget?
#
# <details>
# <summary>Answers</summary>
#
# 1. A triangle of 2 and one of 3: 3 + 6 = 9.
# 2. `0 1 0 1 2 0` and `6 -100 8 9 -100 -100`.
# 3. By rounding.
# 4. How often each character occurs, and nothing from context. Look at the warm-up and the learning
#    rate first; then check with a changed token whether any earlier token reaches the output.
# 5. It stays in two running means: the mean gradient points its way for about ten steps, and the
#    mean square, which each step is divided by, stays huge for about fifty.
# 6. log 100, about 4.6 nats.
# 7. Which token follows which: the embedding and the head learn. The layers stay at zero, so it
#    never looks at an earlier token.
# 8. `model.eval()`: dropout is still on.
#
# </details>
