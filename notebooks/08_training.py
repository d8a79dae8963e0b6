# %% [markdown]
# # 8. Training
#
# *Reading takes about 90 minutes, running four minutes on one CPU thread. It presumes chapters 5,
# 7 and 7b.*
#
# The model is ready, the labels are right. What remains is a loop of ten lines: take a batch,
# compute the loss, go backward, step. This chapter takes the loop apart: what a batch is made of,
# how large a step is, what keeps one bad batch from ruining the run. In the real run a small model
# learns to write prose, in less than a minute on one CPU thread.
#
# The two long sections after the real run, on your own text and on checkpoints, can be read later.
#
# After this chapter you will be able to
#
# - pack several documents into a row without their seeing each other, and check that the loss is
#   the same as with padding;
# - say how large the first weights are, what weight tying saves, and why a model has a mode for
#   training and one for use;
# - say what a warm-up, a cosine and gradient clipping do, with a measurement for each;
# - say what Muon does with a gradient, and compare two optimizers fairly;
# - write the training loop, and read a loss curve against baselines that you can compute;
# - split a text of your own so that held out means unseen, and compare models whose tokens differ;
# - say what must be saved so that an interrupted training goes on as if nothing had happened.

# %%
import copy
import math
import tempfile
import time
from collections import Counter
from dataclasses import asdict, replace
from itertools import pairwise
from pathlib import Path

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
from minitransformer.data import cutting
from minitransformer.data.held_out import normal_form, place, split
from minitransformer.data.manifest import DamagedError, read_folder, write_folder
from minitransformer.data.tokenization import Tokenizer
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
from minitransformer.training.run import Run
from minitransformer.training.saver import files_of
from minitransformer.training.tasks import DataOptions, largest_padding_weight, make_task
from minitransformer.training.tasks.language import python_prose
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
# ## Your own text
#
# The text of the real run came with Python. Yours is a file, or a folder of files:
# `make_task("lm", DataOptions("my_texts"))`. Between the file and the batch four things are
# decided: what a text is (a paragraph), which texts are held out, what a token is, and where a long
# text is cut. Each of them can make a result look better than it is.
#
# ### Held out means unseen
#
# The usual split shuffles the texts and takes one in twenty. Here it is, on Python's paragraphs.
# How many of those held out stand in the training part, too?

# %%
paragraphs = [record.values[0] for record in python_prose()]


def shuffled_split(texts):
    order = torch.randperm(len(texts), generator=torch.Generator().manual_seed(0)).tolist()
    chosen = set(order[: len(texts) // 20])
    training = [text for i, text in enumerate(texts) if i not in chosen]
    return training, [texts[i] for i in sorted(chosen)]


def seen_before(training, held_out):
    known = {normal_form(text) for text in training}
    return sum(normal_form(text) in known for text in held_out)


def by_hash(texts):
    return split(texts, text=lambda text: text)


seen = {}
for name, how in {"shuffled": shuffled_split, "by hash": by_hash}.items():
    training_part, held_out_part = how(paragraphs)
    seen[name] = seen_before(training_part, held_out_part)
    print(f"{name}: {len(held_out_part)} held out, {seen[name]} of them are also trained on")
assert seen["shuffled"] > 10
assert seen["by hash"] == 0

# %% [markdown]
# The manual says many things in several places. So does the web: a large corpus is full of
# licenses, menus and articles copied from elsewhere. A model that has learned a text by heart is
# then praised for what looks like understanding.
#
# `split` asks the text itself. It brings it to a *normal form* (one Unicode form, lower case, one
# space between words), takes a hash of that, a number that looks random, and holds the text out if
# the number is divisible by 20. So a copy goes where the original went, even in other case and with
# other spaces. And a text stays where it is when others are added.

# %%
text = paragraphs[0]
copy_of_it = "  " + text.upper().replace(" ", "\n   ")
print(repr(text[:50]), "→", place(text) % 20)
print(repr(copy_of_it[:50]), "→", place(copy_of_it) % 20)
assert place(text) == place(copy_of_it)

half = paragraphs[: len(paragraphs) // 2]
for name, how in {"shuffled": shuffled_split, "by hash": by_hash}.items():
    before = {normal_form(text) for text in how(half)[1]}
    trained_on = {normal_form(text) for text in how(paragraphs)[0]}
    moved = len(before & trained_on)
    print(f"{name}: the file grows, and {moved} of {len(before)} held-out texts are trained on")
    assert (moved == 0) == (name == "by hash")

# %% [markdown]
# The second half of that cell is about a model that is trained again next month, on more text. With
# the shuffled split the new training part holds nearly all of what was held out before, and the two
# results cannot be compared. (A hash finds copies. It does not find a text in which a word was
# changed.)
#
# ### Words instead of characters
#
# With characters a row of 64 is one line. *Byte-pair encoding* (BPE; Sennrich et al. 2015,
# arXiv:1508.07909) makes longer tokens: take the two neighbors that stand together most often,
# call them one token, and again. Four times, by hand:

# %%
words = [list(word) for word in ("low", "low", "lower", "lower", "newest", "newest", "widest")]
for _ in range(4):
    neighbors = Counter(pair for word in words for pair in pairwise(word))
    (a, b), count = neighbors.most_common(1)[0]
    for word in words:
        for i in range(len(word) - 2, -1, -1):
            if word[i : i + 2] == [a, b]:
                word[i : i + 2] = [a + b]
    print(f"{a} + {b}, {count} times:", *("·".join(word) for word in words[::2]))

# %% [markdown]
# `tokenizer="bpe"` does that 1,739 times and has 2,000 tokens then: 256 bytes and five special ones
# are there at the beginning. As any text is bytes, none is unknown to it. Our vocabulary of
# characters has a hole wherever the training text has one.

# %%
bpe_task = make_task("lm", DataOptions(tokenizer="bpe", vocab_size=2000), max_length=64)
bpe = bpe_task.vocabulary
print(*bpe_task.notes, sep="\n")
for name, tokens in {"characters": vocabulary, "BPE": bpe}.items():
    (row,) = tokens.encode(["naïve 😀"], add_special=False)
    print(f"{name}: {row.count(tokens.unk_id)} unknown, read back as {tokens.decode(row)!r}")
assert bpe.decode(bpe.encode(["naïve 😀"])[0]) == "naïve 😀"

# %%
sentence = "The assignment statement evaluates the expression list."
figure, axes = plt.subplots(figsize=(9.5, 1.7), layout="constrained")
for height, tokens in ((1, vocabulary), (0, bpe)):
    ((ids, starts),) = tokens.encode_with_starts([sentence])
    for i, (start, end) in enumerate(zip(starts, [*starts[1:], len(sentence)], strict=True)):
        color = ("#c6dbef", "#fdd9b5")[i % 2]
        axes.barh(height, end - start, left=start, height=0.75, color=color)
    for x, character in enumerate(sentence):
        axes.text(x + 0.5, height, character, ha="center", va="center", family="monospace")
    kind = "characters" if tokens is vocabulary else "BPE"
    axes.text(-0.7, height, f"{kind}: {len(ids)}", ha="right", va="center")
axes.set(xlim=(-9, len(sentence)), ylim=(-0.5, 1.5), title="The same text in tokens")
axes.axis("off")
plt.show()

# %% [markdown]
# The space before a word belongs to the word. Frequent words are one token, others are made of
# parts.
#
# The tokenizer is trained on the training part *alone*. What if it sees all of the text? Look at
# the words that stand in the held-out part only: how many of them become a single token?

# %%
training_part, held_out_part = by_hash(paragraphs)
new_words = sorted(set(" ".join(held_out_part).split()) - set(" ".join(training_part).split()))
print(f"{len(new_words)} words stand in the held-out part only, such as {new_words[120:123]}")
found = {}
for size in (2000, 8000):
    for name, texts in {"the training part": training_part, "all": paragraphs}.items():
        tokenizer = Tokenizer.train(texts, size)
        tokens = sum(map(len, tokenizer.encode(held_out_part, add_special=False)))
        rows = tokenizer.encode([" " + word for word in new_words], add_special=False)
        found[size, name] = tokens, sum(len(row) == 1 for row in rows)
        print(f"{size:,} tokens, trained on {name}: held-out part {tokens:,} tokens,", end=" ")
        print(f"{found[size, name][1]} new words are one token")
assert found[8000, "all"][1] > 2 * found[8000, "the training part"][1]

# %% [markdown]
# A tokenizer that has seen the held-out text has words ready for it, and needs fewer tokens. With
# 2,000 tokens that is little, with 8,000 it is not. It would not be so for the text that comes
# tomorrow: the measurement has been told the answer.
#
# ### Which model is better?
#
# Now the same model as in the real run, with BPE of 1,000 and of 2,000 tokens: 300 steps each.

# %%
runs = {"characters": (task, model)}
for size in (1000, 2000):
    other_task = make_task("lm", DataOptions(tokenizer="bpe", vocab_size=size), max_length=64)
    torch.manual_seed(0)
    other = DecoderOnly(Config(size, d_model=96, num_layers=2, max_length=64, style="llama"))
    one = Training(other, Settings(steps=300, batch_size=24, warmup=50, evaluate_every=300))
    train(one, other_task, quiet=True)
    runs[f"BPE {size:,}"] = other_task, other

titles = ("loss a token", "bits a character", "perplexity of words")
print(f"{'':<12}{'tokens':>9}{'characters':>12}{'words':>7}{'nats':>8}", *titles, sep="  ")
measures = {}
for name, (one, trained) in runs.items():
    nats, _, labels = map(sum, zip(*one.measured(trained), strict=True))
    texts = [piece.text for piece in one.held_out]
    characters, words = sum(map(len, texts)), sum(len(text.split()) for text in texts)
    measures[name] = nats / labels, nats / characters / math.log(2), math.exp(nats / words)
    loss, bits, perplexity = measures[name]
    print(f"{name:<12}{labels:>11,}{characters:>14,}{words:>9,}{nats:>10,.0f}", end="")
    print(f"{loss:>14.2f}{bits:>18.2f}{perplexity:>21,.0f}")

# %%
figure, axes = plt.subplots(1, 3, figsize=(9.5, 2.3), layout="constrained")
for i, (panel, title) in enumerate(zip(axes, titles, strict=True)):
    values = [measure[i] for measure in measures.values()]
    colors = ["#08519c" if value == min(values) else "#bbbbbb" for value in values]
    panel.barh(list(measures), values, color=colors)
    panel.set_title(title, fontsize=10)
    panel.invert_yaxis()
    panel.spines[["top", "right"]].set_visible(False)
    if i:
        panel.set_yticks([])
figure.suptitle("Each measure, and whom it calls the best (blue)")
plt.show()
best = [min(measures, key=lambda name: measures[name][i]) for i in range(3)]
print("best:", *best, sep="   ")
assert best == ["characters", "BPE 2,000", "BPE 2,000"]
assert measures["BPE 1,000"][0] < measures["BPE 2,000"][0]

# %% [markdown]
# The loss a token says: characters, by far, and of the BPE models the one with fewer tokens. But a
# token is something else in each. To guess the next character is easier than to guess the next
# word, and there are more of them to be guessed. What all three share is the text. The loss of the
# whole text, in nats, is minus the logarithm of the probability that a model gives to it, and it
# may be divided by anything that the text alone decides:
#
# $$\text{bits a character} = \frac{\text{nats of the text}}{\text{characters} \cdot \log 2}
# \qquad \text{perplexity of words} = e^{\,\text{nats of the text} / \text{words}}$$
#
# By both BPE 2,000 is the best, and BPE 1,000, whose loss a token is so much lower, is worse. Where
# BPE 1,000 and the characters are close, look at what is divided by. White space at a cut is left
# out (next section), and the characters are cut most often: up to 4% fewer of them are left to be
# guessed. The number of words is the same to 1%. So the perplexity of words is the fairer measure.
#
# Fair to the text, that is, and not to the reasons. The BPE models saw more of it in a step, have
# more parameters, and their 64 tokens reach three times as far back as 64 characters.
#
# ### Long texts are cut
#
# A text of more tokens than fit is cut. Where? Here is a passage with room for 120 characters: cut
# after every 120, and as `cutting.fit` does it.

# %%
passage = (
    "A class definition is an executable statement. The inheritance list usually gives a list of "
    "base classes. Classes without an inheritance list inherit from the base class object."
)
print("after 120:", *(repr(passage[i : i + 120]) for i in (0, 120)), sep="\n   ")
(pieces,) = cutting.fit(vocabulary, [passage], room=120)
print("after a sentence, if one ends in the last third, else after a line or a word:")
for piece in pieces:
    print("  ", repr(piece.text), "and an <eos>" if piece.ends else "")
assert " ".join(piece.text for piece in pieces) == passage
assert [piece.ends for piece in pieces] == [False] * (len(pieces) - 1) + [True]
assert [row[-1] == vocabulary.eos_id for row in task.rows(pieces)] == [p.ends for p in pieces]

# %% [markdown]
# Nothing is lost but the white space at a cut. Only the last piece is followed by `<eos>`. With one
# after each the model would learn that a text ends after about 120 characters, and write so.
#
# The split comes first and the cut second. The other way round, two pieces of one paragraph could
# be on both sides. (Up to a limit: what is longer than eight rows, here 512 characters, counts
# as several texts. So the task holds out 133 passages where `split` held out 115 paragraphs.)
#
# On a command line all of this is
#
# ```bash
# minitransformer train --task lm --data my_texts --tokenizer bpe --vocab-size 2000 --out runs/mine
# minitransformer evaluate runs/mine
# ```
#
# `--inspect` prints what was understood of the files, and stops.
#
# ### Try it
#
# - Train on a text of your own: `make_task("lm", DataOptions("file.txt"), 64)` reads paragraphs,
#   one a line or with empty lines between. What do the `notes` of the task say?
# - Train with `vocab_size=4000`. Does the loss a token rise again? Do bits a character fall? How
#   many of the parameters are in the embedding and the head now?
# - Change one word in a copy of a paragraph. Is it still on the same side? How would you find such
#   copies?

# %% [markdown]
# ## What a checkpoint must hold
#
# A long training may be interrupted: the power fails, or somebody else needs the machine. So it is
# saved now and then, in a **checkpoint**, from which it can be resumed. To *use* the model its
# weights are enough. To *go on* as if nothing had happened, we need all that the next step depends
# on:
#
# 1. the *weights*;
# 2. the *optimizer's state*: AdamW's two running means for each weight, and how many steps it has
#    made. (The means begin at 0 and are too small at first; the number of steps says how much.)
# 3. the *random state*: where the random number generator stands. Dropout draws from it.
# 4. the *position in the data*. Here that is one number, as `task.batch` is a function of the seed
#    and the step. With batches from an iterator, such as torch's `DataLoader`, its order and its
#    place must be saved, too.
# 5. the *settings*. The learning rate depends on the step, and on how many steps there will be.
#
# What happens if one is missing? A small model with dropout, 120 steps, a checkpoint after 60.
# `training.step` is what `fit` does with one batch. After each step we look at the loss on the same
# 20 held-out pieces, without dropout, so that runs can be compared. We also look at how far the
# step moved the weights: the median over all of them, as a multiple of the learning rate.

# %%
held_out = pack(task.rows(task.held_out[:20]), length=64)
held_out_labels = next_token_labels(held_out.input_ids, held_out.attention_mask)


def new_training(settings):
    torch.manual_seed(0)
    config = Config(len(vocabulary), d_model=64, max_length=64, dropout=0.1, style="llama")
    return Training(DecoderOnly(config), settings)


def weights_of(model):
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def make_steps(training, steps, first_batch):
    """Make some steps; return the held-out loss after each, and how far it moved the weights."""
    model, losses, moves = training.model, [], []
    for number in range(steps):
        before = weights_of(model)
        model.train()  # with dropout
        training.step(training.batch(task, first_batch + number))
        model.eval()  # without
        with torch.no_grad():
            loss = model.loss(held_out.input_ids, held_out.attention_mask, held_out_labels)
        losses.append(loss.item())
        rate = training.history[-1]["learning_rate"]
        moves.append((weights_of(model) - before).abs().median().item() / rate)
    return losses, moves


small = new_training(Settings(steps=120, batch_size=16, learning_rate=2e-2, warmup=20))
first_half = make_steps(small, 60, first_batch=0)

# %% [markdown]
# The checkpoint is a dictionary. It must be a copy: otherwise it would hold the very tensors that
# the training goes on to change.

# %%
checkpoint = copy.deepcopy(
    {
        "weights": small.model.state_dict(),
        "optimizer": small.optimizer.state_dict(),
        "random state": torch.get_rng_state(),
        "history": small.history,  # a row for each step: its length is the position
        "settings": asdict(small.settings),
    }
)
states = checkpoint["optimizer"]["state"].values()  # one for each parameter
print("weights       ", sum(t.numel() for t in checkpoint["weights"].values()), "numbers")
for name in ("exp_avg", "exp_avg_sq"):  # running means of the gradient and of its square
    print(f"{name:<14}", sum(state[name].numel() for state in states), "numbers")
print("steps of AdamW", {state["step"].item() for state in states})
print("random state  ", len(checkpoint["random state"]), "bytes")

# %% [markdown]
# Now the run goes on undisturbed. Then it is resumed four times from the checkpoint: with all of
# it, and with one part left out. `new_training` plays the new program that knows nothing of the
# old one. Without the position it starts again with batch 0.


# %%
def resume(checkpoint, without):
    checkpoint = copy.deepcopy(checkpoint)  # the optimizer would change it
    training = new_training(Settings(**checkpoint["settings"]))
    training.model.load_state_dict(checkpoint["weights"])
    if without != "optimizer's state":
        training.optimizer.load_state_dict(checkpoint["optimizer"])
    if without != "random state":
        torch.set_rng_state(checkpoint["random state"])
    training.history = checkpoint["history"]
    step = len(training.history)
    first_batch = 0 if without == "position" else step
    losses, moves = make_steps(training, training.settings.steps - step, first_batch)
    return losses, moves, weights_of(training.model)


undisturbed, _ = make_steps(small, 60, first_batch=60)
wanted = weights_of(small.model)
parts = ("nothing", "optimizer's state", "random state", "position")
resumed = {part: resume(checkpoint, without=part) for part in parts}
print(f"{'left out':<20}largest difference of any weight")
for part, (_, _, weights) in resumed.items():
    print(f"{part:<20}{(weights - wanted).abs().max().item()}")
assert torch.equal(resumed["nothing"][2], wanted)
assert resumed["nothing"][0] == undisturbed

# %% [markdown]
# With everything, the resumed run is the undisturbed one, bit for bit. With one part missing it is
# another run. Is it a worse one?

# %%
figure, axes = plt.subplots(1, 2, figsize=(9.5, 3.4), layout="constrained")
for panel, values, first in zip(axes, first_half, (40, 0), strict=True):
    panel.plot(range(first + 1, 61), values[first:], color="#777777")
    panel.axvline(60.5, color="#777777", ls=":", lw=1)
    panel.set_xlabel("training step")
for part, color in zip(parts, ("#333333", "#d9822b", "#08519c", "#5a8f3d"), strict=True):
    for panel, values in zip(axes, resumed[part], strict=False):
        panel.plot(range(61, 121), values, color=color, label=f"{part} left out")
axes[0].set(ylabel="nats per token", title="Held-out loss")
axes[0].legend(frameon=False)
axes[1].set(ylabel="multiples of the learning rate", title="How far a step moves a weight")
figure.suptitle("Resumed after step 60")
plt.show()

# %%
print(f"{'left out':<20}{'loss in steps 61-65':>20}{'111-120':>9}{'moved in step 61':>18}")
for part, (losses, moves, _) in resumed.items():
    early, late = sum(losses[:5]) / 5, sum(losses[-10:]) / 10
    print(f"{part:<20}{early:>20.3f}{late:>9.3f}{moves[0]:>18.2f}")
assert sum(resumed["optimizer's state"][0][:5]) > sum(undisturbed[:5]) + 5 * 0.03
seen = 60 * small.settings.batch_size
print(f"pieces seen: {2 * seen} of {len(task.training)}; without the position {seen}, each twice")

# %% [markdown]
# - **The optimizer's state.** The loss jumps, and needs many steps to come back. The right panel
#   says why. AdamW divides the mean gradient by the root of the mean square. If there was only one
#   gradient so far, that is +1 or −1: nearly every weight moves by the whole learning rate. Later
#   the gradients of different batches partly cancel in the mean, but not in the mean square, and
#   the steps are short. Step 1 is just as long, but there the warm-up keeps the learning rate low.
#   Step 61 has no warm-up.
# - **The random state.** Other units are dropped, so the weights differ. The curve is another one
#   and not a worse one. What is lost is that the run can be repeated: whether a difference comes
#   from a change to the code or from chance, you can no longer tell.
# - **The position.** The loss does not show it. All four curves end close together, and one run is
#   too little to tell such differences from chance. Yet the second half of the run saw the pieces
#   of the first half again, and none that was new. A training that is interrupted every 60 steps
#   would never see any others. As no curve tells you, a test must: is the resumed run equal to the
#   undisturbed one, bit for bit?

# %% [markdown]
# ### On the disk
#
# The power may fail, the disk may be full, or somebody may kill the process while it writes: what
# is left is half a file. Here is the real run as files, and what happens if one of them is cut.

# %%
files = files_of(Run("lm", model, vocabulary, asdict(settings), history), training)
for name, data in files.items():
    print(f"{name:<24}{len(data):>9} bytes")

with tempfile.TemporaryDirectory() as place:
    folder = Path(place, "000500")
    write_folder(folder, files)
    print("\nwritten:", *sorted(path.name for path in folder.iterdir()))
    assert read_folder(folder) == files
    cut = folder / "optimizer.safetensors"
    cut.write_bytes(cut.read_bytes()[:100_000])
    try:
        read_folder(folder)
    except DamagedError as error:
        print(cut.name, str(error).partition(": ")[2])

# %% [markdown]
# The optimizer's state is twice as large as the weights: two means for each.
#
# The folder is written *beside* its final place, brought to the disk (`fsync`), and then renamed.
# Renaming is a single step: under the final name there is a whole checkpoint or none, and the one
# before it is still there. `manifest.json` holds the size of each file and its sha256, a
# fingerprint that changes with any byte. No file is a *pickle*, the format of `torch.save`: whoever
# loads a pickle may run a program that somebody has put into it.
#
# What we did by hand is one command, `minitransformer train --resume RUN`. It goes on from the
# newest checkpoint in the folder RUN: on the same machine, with the same number of threads, to the
# same bits.
#
# ### Try it
#
# - Change the seed, both in `new_training` and with `Settings(seed=1, ...)`. Does the orange curve
#   still jump? Which curve ends highest now?
# - Take the checkpoint without `copy.deepcopy`. Which parts of it are still those of step 60 when
#   the run has ended?
# - In `resume`, have the schedule begin anew, with its warm-up: `range(60)` for the steps. How high
#   does the loss jump now without the optimizer's state? And what does the new schedule do to the
#   run in which nothing is left out?

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
# 7. A run with dropout is resumed with its weights, its settings and the number of its last step.
#    What is missing, and how would you notice?
# 8. All matrices of a model's layers begin at zero. What can it learn all the same, and what never?
# 9. The held-out loss of one checkpoint is another number each time you compute it. What did you
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
# 7. The optimizer's state: the loss jumps. The random state: only a comparison with a run that was
#    not interrupted shows it. (The position in the data is there if a batch depends on the seed and
#    the step only; the seed is among the settings.)
# 8. Which token follows which: the embedding and the head learn. The layers stay at zero, so it
#    never looks at an earlier token.
# 9. `model.eval()`: dropout is still on.
#
# </details>
