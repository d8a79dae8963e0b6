# %% [markdown]
# # 6. Encoder and decoder
#
# *Reading takes about 30 minutes, running a minute and a half on one CPU thread. It presumes
# chapters 1 to 5.*
#
# A translator reads one text, the *source*, and writes another, the *target*. Two texts have two
# lengths, and so there are three masks: who may look at whom in the source, in the target, and from
# the target at the source. In this chapter you train a model that reads dates in 27 languages, look
# at where it looks, and then take its masks away one at a time.
#
# After this chapter you will be able to
#
# - draw the path of a batch through encoder and decoder, with the mask at each attention;
# - build the mask of cross-attention, and say which of its axes is which;
# - say what teacher forcing is, and which mistakes it does not show;
# - read a cross-attention map;
# - predict what breaks when one of the masks is missing, and why a test on a single row misses it.

# %%
from dataclasses import replace

import matplotlib.pyplot as plt
import torch
from matplotlib_inline.backend_inline import set_matplotlib_formats
from torch.nn import functional as F

from minitransformer import (
    Config,
    EncoderDecoder,
    causal_mask,
    pad_pairs,
    padding_mask,
    record_attention,
)
from minitransformer.data.dates import LOCALES
from minitransformer.diagrams import encoder_decoder_diagram
from minitransformer.inference.answering import answer
from minitransformer.positions import SinusoidalPositions
from minitransformer.training.loop import Settings, Training, train
from minitransformer.training.tasks import DatesTask
from minitransformer.visualize import attention_figure

set_matplotlib_formats("png")
torch.set_num_threads(1)

# %% [markdown]
# ## Two texts in one batch
#
# The sources are dates as people write them, the targets are the same days as ISO 8601. Both are
# padded, each to its own longest. The tokens are single characters.
#
# The decoder reads the target with a start sign before it, and its labels are the target with an
# end sign behind it: at each place the label is what comes next. So in training it reads the *true*
# target, also behind a place where it would have written something else. This is **teacher
# forcing** (Williams and Zipser 1989). It is why one pass trains all places (chapter 5). When the
# model is used there is no true target, and it reads what it has written itself.

# %%
task = DatesTask()
print(f"{len(LOCALES)} languages, {len(task.vocabulary)} tokens")
examples = task.examples(seed=0, step=0, size=4)
batch = task.collate(examples)
for example in examples:
    print(f"{example.source!r:>34} → {example.target!r}")
print("source", tuple(batch.source_ids.shape), "  target", tuple(batch.target_ids.shape))

row = 0
names = task.vocabulary.names
print("decoder reads: ", names(batch.target_ids[row].tolist()))
print("and must write:", names(batch.labels[row].tolist()))

# %% [markdown]
# An ISO date always has ten characters, so these targets have no padding. Translations into other
# languages do.
#
# ## Three masks
#
# The encoder's mask is that of chapter 1: source looks at source. The decoder's own mask is that
# of chapter 5: padding and causality. The third is new. In *cross-attention* the **queries are
# target positions and the keys are source positions**. `padding_mask` takes the keys' attention
# mask as its second argument. All three are built here for a small batch in which both sides are
# ragged. The picture shows the masks of its second row, which has three source tokens and two
# target tokens, and where each of them goes in. What leaves the encoder is called the *memory*.

# %%
ragged = pad_pairs([[5, 6, 7, 8, 9, 10], [5, 6, 7]], [[8, 9, 10], [8]], bos_id=1, eos_id=2)
source_mask, target_mask = ragged.source_mask, ragged.target_mask
masks = {
    "encoder": padding_mask(source_mask),
    "decoder": padding_mask(target_mask) & causal_mask(4),
    "cross-attention": padding_mask(target_mask, source_mask),
}
for name, mask in masks.items():
    print(f"{name:<16}{tuple(mask.shape)}")


def tokens_of(ids, attention_mask, name=str):
    """Names of ids; None where there is padding."""
    return [name(i) if real else None for i, real in zip(ids.tolist(), attention_mask, strict=True)]


encoder_decoder_diagram(
    *(mask[1, 0] for mask in masks.values()),
    tokens_of(ragged.source_ids[1], source_mask[1]),
    tokens_of(ragged.target_ids[1], target_mask[1]),
    title="One layer on each side, and the three masks",
)

# %% [markdown]
# Read it from below. Each side has an embedding and a stack of layers; a dashed frame is one layer.
# An encoder layer is that of chapter 4. A decoder layer has cross-attention in between, with a
# residual and a norm of its own. Its queries come from the target below it, its keys and values
# from the memory.
#
# The mask of cross-attention is not square, and it has no triangle: all of the source has been read
# before the first character is written, so there is no future in it. Its last three columns are the
# padding of the source, its last two rows that of the target.

# %% [markdown]
# ## What stands where
#
# "12 maja" and "21 maja" hold the same characters. Attention adds up values, and a sum does not
# know the order of what was added. So the embedding adds to each token's vector one that depends on
# its position: sines and cosines of many wavelengths (Vaswani et al. 2017, section 3.5).

# %%
torch.manual_seed(0)
config = Config(vocab_size=len(task.vocabulary), d_model=96, num_layers=1, num_heads=4)
model = EncoderDecoder(config)

ids = torch.tensor(task.vocabulary.encode(["12 maja", "21 maja"], add_special=False))
real, query = torch.ones_like(ids), torch.randn(1, 1, config.d_model).expand(2, 1, -1)
with torch.no_grad():
    for name, vectors in {
        "without positions": model.source_embedding.tokens(ids),
        "with positions": model.source_embedding(ids, real)[0],
    }.items():
        seen = torch.ones(2, 1, 1, ids.shape[1], dtype=torch.bool)
        one, other = model.decoder.layers[0].cross_attention(query, vectors, seen)
        print(f"{name:<18} the two dates differ by {(one - other).abs().max().item():.1g}")

table = SinusoidalPositions(config).table[:40]
figure, axis = plt.subplots(figsize=(7.5, 3.2), layout="constrained")
picture = axis.imshow(table, cmap="RdBu", vmin=-1, vmax=1, aspect="auto")
figure.colorbar(picture, ax=axis)
axis.set(xlabel="component of the vector", ylabel="position", title="What is added, and where")
plt.show()

# %% [markdown]
# Each row of the picture is what is added at one position. Sines and cosines take turns, hence the
# stripes. On the left the waves are short and tell neighbors apart; on the right they are long.
# Positions count real tokens only: padding does not shift the others.

# %% [markdown]
# ## The path of a batch
#
# Here is the picture as code: the whole model, from its own parts. (`rotation` is for another kind
# of positions, chapter 10; here it is None.) It is what `EncoderDecoder.forward` does; the `assert`
# says so. `drop` takes a mask away by making it True everywhere. You will need that below.


# %%
def forward(model, batch, drop=()):
    """Logits (batch, target, vocabulary), with some of the masks taken away."""

    def unless_dropped(name, mask):
        return torch.ones_like(mask) if name in drop else mask

    source_mask, target_mask = batch.source_mask, batch.target_mask
    # read the source
    mask = unless_dropped("source", padding_mask(source_mask))
    x, rotation = model.source_embedding(batch.source_ids, source_mask)
    memory = model.encoder(x, mask, rotation)
    # write the target, looking at both
    padding = unless_dropped("target", padding_mask(target_mask))
    mask = padding & unless_dropped("causal", causal_mask(target_mask.shape[1]))
    memory_mask = unless_dropped("cross", padding_mask(target_mask, source_mask))
    x, rotation = model.embedding(batch.target_ids, target_mask)
    return model.head(model.decoder(x, mask, rotation, memory, memory_mask))


with torch.no_grad():
    ours, theirs = forward(model, batch), model(**{k: v for k, v in batch.items() if k != "labels"})
real = batch.target_mask != 0
assert torch.equal(ours[real], theirs[real])
print("the same logits, bit by bit, at every real token")

# %% [markdown]
# ## Training it, and what teacher forcing hides
#
# One layer on each side is enough for dates. `train` is a training loop; chapter 8 takes it apart.
# It calls `watch` before the first step and after every 60. There the model predicts 100 dates that
# it has never seen, in two ways: each character after the true ones, as in training, and each
# character after those that it has written itself.


# %%
@torch.no_grad()
def write(batch):
    """The targets, character by character: the model reads what it has written."""
    ids = batch.target_ids[:, :1]  # the start sign
    for _ in range(batch.labels.shape[1]):
        logits = model(batch.source_ids, batch.source_mask, ids, torch.ones_like(ids))
        ids = torch.cat((ids, logits[:, -1:].argmax(dim=-1)), dim=1)
    return ids[:, 1:]


@torch.no_grad()
def watch(training):
    forced = forward(model, unseen).argmax(dim=-1) == unseen.labels
    own = write(unseen) == unseen.labels
    assert torch.equal(forced.all(dim=1), own.all(dim=1))  # the same dates are right as a whole
    shares = forced.float().mean(), own.float().mean(), own.all(dim=1).float().mean()
    watched[len(training.history)] = [share.item() for share in shares]


unseen, watched = task.collate(task.held_out[:100]), {}
training = Training(model, Settings(steps=600))
train(training, task, watch, quiet=True)
losses = torch.tensor([row["loss"] for row in training.history])
figure, axes = plt.subplots(1, 2, figsize=(9.5, 3), layout="constrained")
axes[0].plot(losses.unfold(0, 10, 1).mean(dim=1), color="#08519c")
axes[0].set(xlabel="step", ylabel="loss (mean of 10 steps)", ylim=(0, None))
curves = {
    "characters, after the true ones": "#08519c",
    "characters, after its own": "#d9822b",
    "whole dates": "#5a8f3d",
}
for which, (name, color) in enumerate(curves.items()):
    shares = [one[which] for one in watched.values()]
    axes[1].plot(list(watched), shares, "o-", ms=4, color=color, label=name)
axes[1].set(xlabel="step", ylabel="right on 100 unseen days", ylim=(-0.03, 1.03))
axes[1].legend(frameon=False, loc="lower right")
figure.suptitle("Learning to read dates")
plt.show()
for step in (120, 600):
    forced, own, whole = watched[step]
    print(f"step {step}: {forced:.1%} and {own:.1%} of the characters, {whole:.0%} of the dates")
assert watched[120][0] > watched[120][1] > watched[120][2]

# %% [markdown]
# The blue curve is what the loss speaks about: each character, with all true ones before it. The
# green one is what we want. After 120 steps they are far apart: a date has ten characters and an
# end, and one wrong character spoils it.
#
# The orange curve is lower than the blue one as long as the model makes many mistakes. It reads its
# mistakes, which never stood in what it was trained on, and makes more of them. This is called
# *exposure bias* (Ranzato et al. 2015, arXiv:1511.06732). Whole dates are the same either way, as
# the `assert` in `watch` says: as long as all is right, what the model has written *is* the true
# target.

# %%
held_out = task.held_out[:300]
right = task.answers(model, held_out)
exact = sum(a == pair.target for a, pair in zip(right, held_out, strict=True)) / len(held_out)
print(f"the whole date is right on {len(held_out)} days that it has never seen: {exact:.0%}")
texts = ["mardi 3 juin 2025", "2025年6月3日", "Tuesday, June 3, 2025"]
for text, found in zip(texts, answer(model, task.vocabulary, texts, 12), strict=True):
    print(f"{text!r:>24} → {found}")
assert exact > 0.9

# %% [markdown]
# ## Where it looks
#
# In the next picture each row is a character that the decoder has just read. There it must predict
# the next one, and for that it shares out its attention among the characters of the source. Dark is
# much; the scale is stretched, so that small weights show.

# %%
pairs = [pair for pair in held_out if 12 <= len(pair.source) <= 26]
short = min(pairs, key=lambda pair: len(pair.source))
long = max(pairs, key=lambda pair: len(pair.source))
both = task.collate([short, long])


def name_of(i):
    return names([i])[0]


def draw_cross(row, drop=()):
    with torch.no_grad(), record_attention(model) as maps:
        forward(model, both, drop)
    return attention_figure(
        maps["decoder.layers.0.cross_attention"][row],
        padding_mask(both.target_mask, both.source_mask)[row],
        tokens_of(both.target_ids[row], both.target_mask[row], name_of),
        tokens_of(both.source_ids[row], both.source_mask[row], name_of),
        title=[short, long][row].source,
    )


draw_cross(0)

# %% [markdown]
# Follow head 0 from top to bottom. While the year is written, it looks at the year; then at the
# name of the month; and in the last rows at the day. Nobody told it where these stand: in other
# sources the year comes first. (`draw_cross(1)` shows the longer one.)
#
# Hatched is the padding of the source, and it gets exactly nothing: its columns are not pale, they
# are empty. Now the number that this project is about.

# %%
with torch.no_grad(), record_attention(model) as maps:
    forward(model, both)
worst = 0.0
for name, weights in maps.items():
    if "cross" in name:
        mask = padding_mask(both.target_mask, both.source_mask)
    elif name.startswith("encoder"):
        mask = padding_mask(both.source_mask)
    else:
        mask = padding_mask(both.target_mask) & causal_mask(both.target_mask.shape[1])
    worst = max(worst, weights[~mask.expand_as(weights)].max().item())
print("largest weight on anything forbidden, in all layers and heads:", worst)
assert worst == 0.0

# %% [markdown]
# ## Take one mask away
#
# The model is trained. Now it is evaluated with one of its masks missing, in two ways: each row in
# the company of a source of 64 characters and a target of 16, and each row alone, without any
# padding. We count the rows whose characters are all right (each given the right ones before it),
# and how far a row's logits in company are from those that it gets alone.


# %%
def in_company(batch, source_length, target_side="right"):
    """The batch, as if one source had so many characters and one target 16."""
    wide = {}
    for name, ids in batch.items():
        room = (source_length if name.startswith("source") else 16) - ids.shape[1]
        left = target_side == "left" and not name.startswith("source")
        fill = -100 if name == "labels" else 0
        wide[name] = F.pad(ids, (room, 0) if left else (0, room), value=fill)
    return replace(batch, **wide)


@torch.no_grad()
def evaluate(drop, source_length=64, target_side="right"):
    chunk = held_out[:100]
    together = in_company(task.collate(chunk), source_length, target_side)
    logits = forward(model, together, drop)
    right_together = right_alone = moved = 0.0
    for i, pair in enumerate(chunk):
        one = task.collate([pair])
        alone = forward(model, one, drop)[0]
        company = logits[i, together.target_mask[i] != 0]
        right_alone += (alone.argmax(-1) == one.labels[0]).all().item()
        right_together += (company.argmax(-1) == one.labels[0]).all().item()
        moved = max(moved, (company - alone).abs().max().item())
    return right_together / len(chunk), right_alone / len(chunk), moved


results = {}
print(f"{'without':<10} {'right in company':>18} {'right alone':>13} {'logits move by':>16}")
for name in ("nothing", "source", "cross", "causal", "target"):
    results[name] = evaluate((name,))
    together, alone, moved = results[name]
    print(f"{name:<10} {together:>18.0%} {alone:>13.0%} {moved:>16.2g}")
assert results["nothing"][2] < 1e-3
assert results["source"][1] == results["cross"][1] == results["nothing"][1]
assert results["target"][2] < 1e-3

# %% [markdown]
# Line by line:
#
# - **Source** and **cross**: alone, everything is as before, for a single row has no padding. In
#   company some of the same rows go wrong. A demo with one sentence at a time never shows this bug;
#   a batch of equal lengths does not either.
# - **Causal**: wrong even alone. The model was trained to look back, and now it is shown the
#   future. Its logits do not move, because alone they are as wrong. (Had it been *trained* like
#   this, its loss would be wonderful; that is chapter 5.)
# - **Target**: nothing changes for any real token. The padding of these targets stands on their
#   right, and the causal mask hides it already.
#
# Where does the attention go? Here is the picture from above once more, without the mask of
# cross-attention. Color under the hatch is weight on padding.

# %%
draw_cross(0, drop=("cross",))

# %% [markdown]
# Each padded position takes little, but there are many. Their vectors are not nothing: biases and
# norms made something of them (chapter 4). The more there are, the more they take together.

# %%
lengths = [40, 64, 96, 128, 192, 256]
figure, axis = plt.subplots(figsize=(7, 3.2), layout="constrained")
for name, color in {"nothing": "#08519c", "source": "#d9822b", "cross": "#5a8f3d"}.items():
    shares = [evaluate((name,), source_length)[0] for source_length in lengths]
    axis.plot(lengths, shares, "o-", color=color, label=f"without: {name}")
axis.set(xlabel="length of the longest source in the batch", ylabel="rows all right")
axis.set(ylim=(0, 1.05), title="The same rows, in longer company")
axis.legend(frameon=False)
axis.spines[["top", "right"]].set_visible(False)
plt.show()

# %% [markdown]
# ### Try it: is the target's padding mask superfluous?
#
# On the right it is not needed. What if the targets are padded on the left? Guess first.

# %%
for name in ("nothing", "target"):
    together, _, moved = evaluate((name,), target_side="left")
    print(f"without {name:<8} {together:>5.0%} right, logits move by {moved:.2g}")
assert evaluate(("nothing",), target_side="left")[2] < 1e-3 < moved

# %% [markdown]
# Now the padding comes *before* the real tokens. The causal mask shows it, and only the padding
# mask hides it. A mask that is not needed today costs nothing, and is right tomorrow.

# %% [markdown]
# ### Try it: the axes the wrong way round
#
# `padding_mask(source_mask, target_mask)` instead of `padding_mask(target_mask, source_mask)`. What
# happens? And what if source and target happen to have the same length?

# %%
wanted = padding_mask(batch.target_mask, batch.source_mask)
swapped = padding_mask(batch.source_mask, batch.target_mask)
print("wanted:", tuple(wanted.shape), " got:", tuple(swapped.shape))
try:
    x = torch.randn(*batch.target_ids.shape, config.d_model)
    memory = torch.randn(*batch.source_ids.shape, config.d_model)
    model.decoder.layers[0].cross_attention(x, memory, swapped)
except ValueError as error:
    print(f"ValueError: {error}")

# %% [markdown]
# Different lengths make an error, and that is luck. With equal lengths the swapped mask fits and is
# wrong. So test with a source and a target of *different* lengths, always.

# %%
equal = pad_pairs([[5, 6, 7], [5, 6]], [[8], [8, 9]], bos_id=1, eos_id=2)
right_way = padding_mask(equal.target_mask, equal.source_mask)
wrong_way = padding_mask(equal.source_mask, equal.target_mask)
print("same shape:", right_way.shape == wrong_way.shape)
print("wanted:", right_way[0, 0].int().tolist())
print("got:   ", wrong_way[0, 0].int().tolist())
assert not torch.equal(right_way, wrong_way)

# %% [markdown]
# **To click on.** `minitransformer explore "attention=cross&row=0"` opens the mask explorer on the
# mask of cross-attention: the target asks, the source answers.

# %% [markdown]
# ## Exercises

# %% [markdown]
# <!-- exercise: sinusoidal_positions -->

# %% [markdown]
# <!-- exercise: cross_mask -->

# %% [markdown]
# <!-- exercise: decoder_layer -->

# %% [markdown]
# ## Check yourself
#
# 1. What are the queries and the keys of cross-attention? Along which axis is whose padding hidden?
# 2. Why is there no triangle in the mask of cross-attention?
# 3. A colleague forgets the source's padding mask. Her demo works. Why? Which one line would you
#    add to her tests?
# 4. Padding on the right of the target needs no mask of its own. Why not? Where does it need one?
# 5. Source and target have the same length in your only test. Which bug can it not see?
# 6. With teacher forcing 99% of the characters are right. Is the same share right when the model
#    writes by itself? When is a whole text right?
#
# <details><summary>Answers</summary>
#
# 1. Queries are positions of the target, keys positions of the source. Along the keys the padding
#    of the source is hidden, along the queries that of the target.
# 2. The source was read completely before writing began; nothing in it is the future.
# 3. A demo has one row, and one row has no padding. Compare a row alone with the same row in a
#    batch beside a longer one.
# 4. The causal mask hides everything on the right. With padding on the left, and with several
#    texts in one row.
# 5. A mask of cross-attention that is the wrong way round.
# 6. Mostly a smaller share: behind a mistake it reads its mistake. A whole text is right if, and
#    only if, all its characters are right with teacher forcing.
#
# </details>
