# %% [markdown]
# # 12. Faster
#
# Attention compares every query with every key: twice the length, four times the work, and a table
# of scores that fills the memory. Half of that work is often thrown away, because the mask forbids
# it. This chapter shows two ideas that every fast attention is made of: never hold the whole
# table, and never compute what the mask forbids.
#
# After this chapter you will be able to
#
# - compute a softmax in one pass, with a running maximum and a running sum;
# - write attention block by block, equal to the plain one, without the table of scores;
# - read a mask as a map of tiles, and count the work that need not be done;
# - measure where the time goes before you make anything faster.

# %%
import math
import time

import matplotlib.pyplot as plt
import torch
from matplotlib_inline.backend_inline import set_matplotlib_formats

from minitransformer import (
    Config,
    EncoderOnly,
    causal_mask,
    pack,
    pad,
    padding_mask,
    scaled_dot_product_attention,
)

set_matplotlib_formats("png")
torch.set_num_threads(1)

# %% [markdown]
# ## A softmax in one pass
#
# A softmax needs the largest score, to avoid overflow, and the sum of all powers. That is two
# passes over the scores before the first weight is known. It can be done in one (Milakov and
# Gimelshein 2018, arXiv:1805.02867): keep the largest so far and the sum so far, and whenever a
# larger score comes, **scale down** what was summed before. Follow it by hand:

# %%
scores = [1.0, 3.0, 2.0, 5.0]
values = [10.0, 20.0, 30.0, 40.0]
largest, total, output = -math.inf, 0.0, 0.0
print("score  largest  scale   sum of powers  output so far")
for score, value in zip(scores, values, strict=True):
    top = max(largest, score)
    scale = math.exp(largest - top)  # exp(-inf) = 0 at the first
    power = math.exp(score - top)
    total = total * scale + power
    output = output * scale + power * value
    largest = top
    print(f"{score:>5}  {largest:>7}  {scale:5.3f}   {total:13.4f}  {output / total:13.4f}")
weights = torch.tensor(scores).softmax(0)
plain = (weights * torch.tensor(values)).sum().item()
print("plain softmax:", round(plain, 4))
assert abs(output / total - plain) < 1e-4

# %% [markdown]
# After each line the output is the right one for the scores seen *so far*. So the scores may come
# in any portions, and each portion can be forgotten when it has been used.

# %% [markdown]
# ## Attention block by block
#
# The same with a block of keys at a time and all queries at once (Rabe and Staats 2021,
# arXiv:2112.05682; made fast on GPUs as FlashAttention, Dao et al. 2022, arXiv:2205.14135). Here
# it is for one sequence without a mask.


# %%
def blockwise(query, key, value, block_size):
    """Queries (Q,D), keys (K,D) and values (K,D): no table of Q × K scores is ever made."""
    largest = torch.full((len(query), 1), -math.inf)
    total, output = torch.zeros(len(query), 1), torch.zeros(len(query), value.shape[1])
    for keys, values in zip(key.split(block_size), value.split(block_size), strict=True):
        scores = query @ keys.T / query.shape[1] ** 0.5
        top = torch.maximum(largest, scores.max(dim=1, keepdim=True).values)
        powers, scale = (scores - top).exp(), (largest - top).exp()
        total = total * scale + powers.sum(dim=1, keepdim=True)
        output = output * scale + powers @ values
        largest = top
    return output / total


generator = torch.Generator().manual_seed(0)
query, key, value = (torch.randn(50, 16, generator=generator) for _ in range(3))
wanted = (query @ key.T / 4).softmax(dim=1) @ value
for block_size in (1, 7, 16, 50, 64):
    found = blockwise(query, key, value, block_size)
    print(f"blocks of {block_size:>2}: largest difference {(found - wanted).abs().max():.1e}")
    torch.testing.assert_close(found, wanted)

# %% [markdown]
# Equal to rounding, for every size, also one that does not divide the length. What was saved is
# memory: one block of scores instead of the table.
#
# With a mask two cases need care. A block in which a query sees nothing has the largest score −∞,
# and −∞ − (−∞) is NaN. And a query that never sees anything divides by 0. To find out how to deal
# with them is the exercise of this chapter.

# %%
lengths = [512, 1024, 2048, 4096, 8192, 16384]
table = [4 * 8 * n * n / 2**20 for n in lengths]
blocks = [4 * 8 * n * 128 / 2**20 for n in lengths]
figure, axis = plt.subplots(figsize=(6, 3), layout="constrained")
axis.plot(lengths, table, "o-", color="#d9822b", label="all scores")
axis.plot(lengths, blocks, "o-", color="#08519c", label="a block of 128 keys")
axis.set(
    xscale="log", yscale="log", xlabel="length", ylabel="MiB", title="Scores of 8 heads, float32"
)
axis.legend(frameon=False)
plt.show()
print(f"at {lengths[-1]:,} tokens: {table[-1]:,.0f} MiB, or {blocks[-1]:,.0f} MiB")

# %% [markdown]
# ### Try it: forget to scale
#
# Leave out `* scale` in the line of `output`. Random scores of one block are about as large as
# those of the next. How wrong is it? And what if scores rise from block to block?

# %%
source_scores = {
    "random": torch.randn(64, generator=torch.Generator().manual_seed(0)),
    "rising": torch.arange(64.0),
}
for name, s in source_scores.items():
    v = torch.linspace(0, 1, 64)
    largest, total, output = -math.inf, 0.0, 0.0
    for start in range(0, 64, 16):
        part, vs = s[start : start + 16], v[start : start + 16]
        top = max(largest, part.max().item())
        powers = (part - top).exp()
        total = total * math.exp(largest - top) + powers.sum().item()
        output = output + (powers * vs).sum().item()  # not scaled
        largest = top
    print(f"{name:<7} found {output / total:.3f}, right is {(s.softmax(0) * v).sum():.3f}")

# %% [markdown]
# ## The mask is the map of the work
#
# Cut the mask into tiles of queries × keys. A tile without a single True need not be computed at
# all. How many are left, for the masks that people really use?

# %%
LENGTH, TILE = 512, 64


def tiles(mask):
    """(queries / tile, keys / tile) bool: which tiles hold any True."""
    n = mask.shape[-1] // TILE
    return mask.view(n, TILE, n, TILE).any(dim=3).any(dim=1)


draw = torch.Generator().manual_seed(3)
documents = [list(range(1, n + 1)) for n in torch.randint(40, 160, (5,), generator=draw).tolist()]
packed = pack(documents, LENGTH).attention_mask[:1]
distance = torch.arange(LENGTH)[:, None] - torch.arange(LENGTH)
masks = {
    "nothing forbidden": torch.ones(LENGTH, LENGTH, dtype=torch.bool),
    "causal": causal_mask(LENGTH)[0, 0],
    "half padding": padding_mask((torch.arange(LENGTH) < LENGTH // 2).long()[None])[0, 0],
    "packed documents": padding_mask(packed)[0, 0],
    "packed and causal": (padding_mask(packed) & causal_mask(LENGTH))[0, 0],
    "window of 64, causal": (distance >= 0) & (distance < 64),
}
figure, axes = plt.subplots(2, 3, figsize=(8.5, 6), layout="constrained")
for axis, (name, mask) in zip(axes.flat, masks.items(), strict=True):
    needed = tiles(mask)
    axis.imshow(mask, cmap="Blues", vmin=0, vmax=1.4, extent=(0, 8, 8, 0))
    for i, j in needed.nonzero().tolist():
        axis.add_patch(plt.Rectangle((j, i), 1, 1, fill=False, ec="#d9822b", lw=1))
    share, true = needed.float().mean().item(), mask.float().mean().item()
    axis.set_title(f"{name}\ntiles {share:.0%}, True {true:.0%}", fontsize=10)
    axis.set_xticks([])
    axis.set_yticks([])
figure.suptitle("Orange: tiles of 64 × 64 that have to be computed")
plt.show()

# %% [markdown]
# ## Skipping
#
# An attention that looks at the map: for each row of tiles, take only the keys of the tiles that
# hold a True. It is the plain function on smaller tensors, and equal to it.


# %%
def skipping(query, key, value, mask):
    """Plain attention of 64 queries at a time, to the keys that any of them may see."""
    parts = []
    for start in range(0, query.shape[2], TILE):
        rows = slice(start, start + TILE)
        seen = mask[..., rows, :].flatten(0, 2).any(dim=0).nonzero()
        if not len(seen):
            parts.append(torch.zeros_like(query[:, :, rows]))
            continue
        keys = slice(int(seen[0]), int(seen[-1]) + 1)  # one range, from the first to the last
        part, _ = scaled_dot_product_attention(
            query[:, :, rows], key[:, :, keys], value[:, :, keys], mask[..., rows, keys]
        )
        parts.append(part)
    return torch.cat(parts, dim=2)


query, key, value = (torch.randn(1, 8, LENGTH, 64, generator=generator) for _ in range(3))
for mask in masks.values():
    wanted, _ = scaled_dot_product_attention(query, key, value, mask[None, None])
    torch.testing.assert_close(skipping(query, key, value, mask[None, None]), wanted)
print("equal for all six masks")


# %% tags=["varies"]
def seconds(function, *arguments, rounds=9):
    times = []
    for _ in range(rounds):
        start = time.perf_counter()
        function(*arguments)
        times.append(time.perf_counter() - start)
    return sorted(times)[rounds // 2]


gain = {}
for name, mask in masks.items():
    plain = seconds(scaled_dot_product_attention, query, key, value, mask[None, None])
    quick = seconds(skipping, query, key, value, mask[None, None])
    gain[name] = plain / quick
    print(f"{name:<22} {1000 * plain:6.1f} ms plain, {1000 * quick:6.1f} ms skipping")

# %% tags=["varies"]
figure, axis = plt.subplots(figsize=(7.5, 3.4), layout="constrained")
for (name, mask), marker in zip(masks.items(), "osD^v*", strict=True):
    share = tiles(mask).float().mean().item()
    axis.plot(share, 1 / gain[name], marker, markersize=8, label=name)
axis.plot([0, 1], [0, 1], "--", color="#999999", label="time = share of tiles")
axis.set(
    xlabel="share of tiles with a True", ylabel="time, plain = 1", xlim=(0, 1.05), ylim=(0, None)
)
axis.set_title("The time follows the mask")
axis.legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5))
plt.show()

# %% [markdown]
# The cost follows the True entries. That is the answer to "masks cost time": a mask that a program
# can *read* saves time. It has to be a mask of True and False; numbers that are added to scores do
# not say what may be skipped.

# %% [markdown]
# ## Padding is work, too
#
# Attention is a part of a model. The feed-forward layers do not look at the mask at all: they
# compute every padded position. Here packing helps (chapter 8): the same sentences in fewer rows.

# %% tags=["varies"]
torch.manual_seed(0)
model = EncoderOnly(Config(vocab_size=500, d_model=128, num_layers=4, num_heads=4, style="bert"))
lengths = torch.randint(8, 100, (48,), generator=draw).tolist()
rows = [torch.randint(1, 500, (n,), generator=draw).tolist() for n in lengths]
for name, batch in {"padded": pad(rows), "packed": pack(rows, max(lengths))}.items():
    real = (batch.attention_mask != 0).float().mean().item()
    with torch.no_grad():
        spent = seconds(model.encode, batch.input_ids, batch.attention_mask, rounds=5)
    shape = tuple(batch.input_ids.shape)
    print(f"{name}: {shape}, {real:.0%} real, {sum(lengths) / spent:,.0f} real tokens a second")

# %% [markdown]
# ## Where does the time go?
#
# Before you make something faster, look at what is slow. One step of training, by operator:

# %% tags=["varies"]
from torch.profiler import ProfilerActivity, profile  # noqa: E402

batch = pad(rows)
labels = batch.input_ids.masked_fill(torch.rand(batch.input_ids.shape, generator=draw) > 0.15, -100)
labels = labels.masked_fill(batch.attention_mask == 0, -100)
model.loss(batch.input_ids, batch.attention_mask, labels).backward()
with profile(activities=[ProfilerActivity.CPU]) as profiled:
    model.loss(batch.input_ids, batch.attention_mask, labels).backward()
events = sorted(profiled.key_averages(), key=lambda e: -e.self_cpu_time_total)[:9]
whole = sum(event.self_cpu_time_total for event in profiled.key_averages())
figure, axis = plt.subplots(figsize=(7, 3), layout="constrained")
names = [event.key.removeprefix("aten::") for event in events]
axis.barh(names, [event.self_cpu_time_total / whole for event in events], color="#08519c")
axis.invert_yaxis()
axis.set(xlabel="share of the time", title="One training step")
axis.spines[["top", "right"]].set_visible(False)
plt.show()

# %% [markdown]
# Matrix products (`mm`, `addmm`, `bmm`) should be at the top: they are the work. What stands beside
# them, copies and fills, is overhead.

# %% [markdown]
# ## Exercises

# %% [markdown]
# <!-- exercise: blockwise_attention -->

# %% [markdown]
# ## Check yourself
#
# 1. In the one-pass softmax, what happens to the sum when a larger score comes?
# 2. Why does block-by-block attention need a case for queries that have seen nothing yet?
# 3. A causal mask of 8 × 8 tiles: how many tiles need to be computed?
# 4. Why can an added mask of −10⁴ not be used to skip work?
# 5. Attention skips all padding, and a step takes nearly as long as before. Why?
#
# <details><summary>Answers</summary>
#
# 1. It is multiplied by exp(old − new), and so does the output.
# 2. Its largest score is −∞, and −∞ − (−∞) is NaN.
# 3. 36 of 64: those on the diagonal and below it.
# 4. It says "small", not "nothing": the result would not be the same.
# 5. The layers that look at one position at a time compute the padding. Pack.
#
# </details>
