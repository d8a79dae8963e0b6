# %% [markdown]
# # 6. Encoder and decoder
#
# A translator reads one text and writes another. Two texts, two lengths, and so two kinds of
# padding and three masks: who may look at whom in the source, in the target, and from the target
# at the source. In this chapter you train one that reads dates in 27 languages, look at where it
# looks, and then take its masks away one at a time.
#
# After this chapter you will be able to
#
# - draw the path of a batch through encoder and decoder, with the mask at each attention;
# - build the mask of cross-attention, and say which of its axes is which;
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
from minitransformer.training.answering import answer
from minitransformer.training.loop import Settings, train
from minitransformer.training.tasks import DatesTask
from minitransformer.visualize import attention_figure

set_matplotlib_formats("png")
torch.set_num_threads(1)

# %% [markdown]
# ## Two texts in one batch
#
# The sources are dates as people write them, the targets are the same days as ISO 8601. Both are
# padded, each to its own longest. The decoder reads the target with a start sign before it, and its
# labels are the target with an end sign behind it: at each place the label is what comes next.

# %%
task = DatesTask()
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
# ## Three masks
#
# The encoder's mask is that of chapter 1: source looks at source. The decoder's own mask is that
# of chapter 5: padding and causality. The third is new: **queries are target positions, keys are
# source positions**. It is one line, the same line: `padding_mask` takes the keys' attention mask
# as its second argument.

# %%
source_mask, target_mask = batch.source_mask, batch.target_mask
length = target_mask.shape[1]
masks = {
    "source → source\n(encoder)": padding_mask(source_mask),
    "target → target\n(decoder, itself)": padding_mask(target_mask) & causal_mask(length),
    "target → source\n(cross-attention)": padding_mask(target_mask, source_mask),
}
shortest = int(source_mask.sum(dim=1).argmin())
figure, axes = plt.subplots(1, 3, figsize=(10, 3.6), layout="constrained")
for axis, (name, mask) in zip(axes, masks.items(), strict=True):
    axis.imshow(mask[shortest, 0], cmap="Blues", vmin=0, vmax=1.4)
    axis.set(title=f"{name}\n{tuple(mask.shape)}", xlabel="keys", ylabel="queries")
figure.suptitle("The three masks of one row: blue may be looked at", fontsize=11)
plt.show()

# %% [markdown]
# The third is not square, and it has no triangle: all of the source has been read before the first
# character is written, so there is no future in it.

# %% [markdown]
# ## The path of a batch
#
# Here is the whole model, from its own parts. It is what `EncoderDecoder.forward` does; the
# `assert` says so. `drop` takes a mask away, by making it True everywhere. You will need that
# below.


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


torch.manual_seed(0)
config = Config(vocab_size=len(task.vocabulary), d_model=96, num_layers=1, num_heads=4)
model = EncoderDecoder(config)
with torch.no_grad():
    ours, theirs = forward(model, batch), model(**{k: v for k, v in batch.items() if k != "labels"})
real = target_mask != 0
assert torch.equal(ours[real], theirs[real])
print("the same logits, bit by bit, at every real token")

# %% [markdown]
# ## Training it
#
# One layer on each side is enough for dates. This takes most of a minute; the README's main job
# trains the same model twice as long and reads nearly every date right.

# %%
history, _ = train(model, task, Settings(steps=450), save=lambda history: None, quiet=True)
losses = torch.tensor([row["loss"] for row in history])
figure, axis = plt.subplots(figsize=(7, 3), layout="constrained")
axis.plot(losses.unfold(0, 10, 1).mean(dim=1), color="#08519c")
axis.set(xlabel="step", ylabel="loss (mean of 10 steps)", ylim=(0, None))
axis.set_title("Learning to read dates")
plt.show()
held_out = task.held_out[:300]
right = task.answers(model, held_out)
exact = sum(a == pair.target for a, pair in zip(right, held_out, strict=True)) / len(held_out)
print(f"exact match on {len(held_out)} days that it has never seen: {exact:.0%}")
texts = ["mardi 3 juin 2025", "2025年6月3日", "Tuesday, June 3, 2025"]
for text, found in zip(texts, answer(model, task.vocabulary, texts, 12), strict=True):
    print(f"{text!r:>24} → {found}")

# %% [markdown]
# ## Where it looks
#
# Each row is a character that was just read by the decoder, and shares out its attention among the
# characters of the source. To write the year, it has to find the year.

# %%
pairs = [pair for pair in held_out if 12 <= len(pair.source) <= 26]
short = min(pairs, key=lambda pair: len(pair.source))
long = max(pairs, key=lambda pair: len(pair.source))
both = task.collate([short, long])
with torch.no_grad(), record_attention(model) as maps:
    model(**{k: v for k, v in both.items() if k != "labels"})
print(list(maps))


def tokens(ids, attention_mask):
    named = names(ids.tolist())
    return [name if real else None for name, real in zip(named, attention_mask, strict=True)]


def draw_cross(row):
    name = next(name for name in maps if "cross" in name)
    return attention_figure(
        maps[name][row],
        padding_mask(both.target_mask, both.source_mask)[row],
        tokens(both.target_ids[row], both.target_mask[row]),
        tokens(both.source_ids[row], both.source_mask[row]),
        title=[short, long][row].source,
    )


draw_cross(0)

# %% [markdown]
# Hatched is the padding of the source, and it gets exactly nothing: its columns are not pale, they
# are empty. Now the number that this project is about.

# %%
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
# the company of a source of 64 characters, and each row by itself, without any padding. We count
# the rows whose characters are all right (each given the right ones before it), and how far the
# logits of a row are from those it gets alone.


# %%
@torch.no_grad()
def evaluate(drop):
    chunk = held_out[:100]
    together = task.collate(chunk)
    room = (0, 64 - together.source_ids.shape[1])  # as if one source had 64 characters
    longer = {name: F.pad(together[name], room) for name in ("source_ids", "source_mask")}
    logits = forward(model, replace(together, **longer), drop)
    right_together = right_alone = moved = 0.0
    for i, pair in enumerate(chunk):
        one = task.collate([pair])
        n = one.labels.shape[1]
        alone = forward(model, one, drop)[0]
        right_alone += (alone.argmax(-1) == one.labels[0]).all().item()
        right_together += (logits[i, :n].argmax(-1) == one.labels[0]).all().item()
        moved = max(moved, (logits[i, :n] - alone).abs().max().item())
    return right_together / len(chunk), right_alone / len(chunk), moved


results = {}
print(f"{'without':<28} {'in a batch':>10} {'alone':>8} {'moved by':>10}")
for name in ("nothing", "source", "cross", "causal", "target"):
    results[name] = evaluate((name,))
    together, alone, moved = results[name]
    print(f"{name:<28} {together:>10.0%} {alone:>8.0%} {moved:>10.2g}")

# %%
figure, axis = plt.subplots(figsize=(7.5, 3.2), layout="constrained")
places = range(len(results))
axis.bar([p - 0.2 for p in places], [r[0] for r in results.values()], 0.4, label="in a batch")
axis.bar([p + 0.2 for p in places], [r[1] for r in results.values()], 0.4, label="alone")
axis.set_xticks(list(places), [f"without\n{name}" for name in results])
axis.set(ylabel="rows all right", ylim=(0, 1.05), title="What a missing mask does")
axis.legend(frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5))
axis.spines[["top", "right"]].set_visible(False)
plt.show()
assert results["nothing"][2] < 1e-3
assert results["source"][1] == results["cross"][1] == results["nothing"][1]

# %% [markdown]
# Read it bar by bar.
#
# - **Source** and **cross**: alone, everything is as before, for a single row has no padding. In a
#   batch the same rows go wrong, the more the longer their neighbours are. A demo with one sentence
#   at a time never shows this bug; a batch of equal lengths does not either.
# - **Causal**: wrong even alone. The model was trained to look back, and now it is shown the
#   future. (Had it been *trained* like this, its loss would be wonderful; that is chapter 5.)
# - **Target**: nothing changes for any real token. The padding of a target stands on its right,
#   and the causal mask hides it already: a real token never sees what comes after it. With padding
#   on the left, or packed rows, this would be a bug like the others. A mask that is not needed
#   *today* costs nothing, and is right tomorrow.

# %% [markdown]
# ### Try it: the axes the wrong way round
#
# `padding_mask(source_mask, target_mask)` instead of `padding_mask(target_mask, source_mask)`. What
# happens? And what if source and target happen to have the same length?

# %%
swapped = padding_mask(batch.source_mask, batch.target_mask)
print(
    "wanted:",
    tuple(masks["target → source\n(cross-attention)"].shape),
    " got:",
    tuple(swapped.shape),
)
try:
    x = torch.randn(4, length, config.d_model)
    memory = torch.randn(4, batch.source_mask.shape[1], config.d_model)
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
# ## Exercises

# %% [markdown]
# <!-- exercise: sinusoidal_positions -->

# %% [markdown]
# <!-- exercise: decoder_layer -->

# %% [markdown]
# ## Check yourself
#
# 1. What are the queries and the keys of cross-attention? Which mask hides the padding of which?
# 2. Why is there no triangle in the mask of cross-attention?
# 3. A colleague forgets the source's padding mask. Her demo works. Why? Which one line would you
#    add to her tests?
# 4. Padding on the right of the target needs no mask of its own. Why not? When does it?
# 5. Source and target have the same length in your only test. Which bug can it not see?
#
# <details><summary>Answers</summary>
#
# 1. Queries are positions of the target, keys positions of the source. Along the keys the padding
#    of the source is hidden, along the queries that of the target.
# 2. The source was read completely before writing began; nothing in it is the future.
# 3. A demo has one row, and one row has no padding. Compare a row alone with the same row in a
#    batch beside a longer one.
# 4. The causal mask hides everything on the right. It does with padding on the left, and with
#    several documents in a row.
# 5. A mask of cross-attention that is the wrong way round.
#
# </details>
