# %% [markdown]
# # 12. Faster
#
# Attention compares every query with every key: twice the length, four times the work, and a table
# of scores that fills the memory. Much of that work is then thrown away, because the mask forbids
# it: under a causal mask nearly half. This chapter shows the two ideas that fast attentions are
# made of: never hold the whole table, and never compute what the mask forbids.
#
# *Reading takes about 30 minutes, running half a minute on one CPU thread. It presumes chapters 1
# to 3; the packed documents of chapter 8 come back.*
#
# After this chapter you will be able to
#
# - compute a softmax in one pass, the *online softmax*, with a running maximum and a running sum;
# - say how attention goes through its keys block by block, equal to the plain one, without the
#   table of scores, and which masks break a first version of it;
# - read a mask as a map of tiles, and count the work that need not be done;
# - measure where the time goes before you make anything faster.

# %%
import math
import statistics
import time

import matplotlib.pyplot as plt
import torch
from matplotlib_inline.backend_inline import set_matplotlib_formats
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode

from minitransformer import (
    Config,
    EncoderOnly,
    causal_mask,
    pack,
    pad,
    padding_mask,
    scaled_dot_product_attention,
    window_mask,
)
from minitransformer.kernels import attention_kernel
from minitransformer.visualize import attention_map

set_matplotlib_formats("png")
torch.set_num_threads(1)
_ = torch.manual_seed(0)

# %% [markdown]
# ## A softmax in one pass
#
# A softmax needs the largest score, to avoid overflow, and the sum of all powers. That is two
# passes over the scores before the first weight is known. It can be done in one (Milakov and
# Gimelshein 2018, arXiv:1805.02867): keep the largest so far and the sum so far, and whenever a
# larger score comes, **scale down** what was summed before. The output, the weighted sum of the
# values, is treated in the same way. This is the *online softmax*. Follow it by hand, for one query
# that has four scores:


# %%
def one_pass(scores, values, scaled=True):
    """For one query: after each score the score, largest, scale, total and output so far."""
    largest, total, output = -math.inf, 0.0, 0.0
    for score, value in zip(scores, values, strict=True):
        before, largest = largest, max(largest, score)
        scale = math.exp(before - largest)  # exp(-inf) = 0 at the first
        power = math.exp(score - largest)
        total = total * scale + power
        output = output * (scale if scaled else 1.0) + power * value
        yield score, largest, scale, total, output / total


scores, values = [1.0, 3.0, 2.0, 5.0], [10.0, 20.0, 30.0, 40.0]
so_far = []
print("score  largest  scale   sum of powers  output so far")
for score, largest, scale, total, output in one_pass(scores, values):
    so_far.append(output)
    print(f"{score:>5}  {largest:>7}  {scale:5.3f}   {total:13.4f}  {output:13.4f}")
weights = torch.tensor(scores).softmax(0)
plain_softmax = (weights * torch.tensor(values)).sum().item()
print("plain softmax:", round(plain_softmax, 4))
assert abs(so_far[-1] - plain_softmax) < 1e-4

# %% [markdown]
# Look at the column *scale*. It is 1 where the new score is not the largest, and less than 1 where
# it is: then everything before was measured against a maximum that has become too small.
#
# After each line the output is the right one for the scores seen *so far*. You know a function
# that computes just that: attention under a causal mask, where query number $i$ sees the keys up
# to $i$. Give four equal queries the same four scores, and it must give the same four numbers.
# (With a width of 1 and queries of 1 the scores are the keys.)

# %%
query, key, value = (torch.tensor(x).view(1, 1, 4, 1) for x in ([1.0] * 4, scores, values))
output, weights = scaled_dot_product_attention(query, key, value, causal_mask(4))
print("by the package: ", [round(x, 4) for x in output.flatten().tolist()])
print("in one pass:    ", [round(x, 4) for x in so_far])
torch.testing.assert_close(output.flatten(), torch.tensor(so_far))

figure, axis = plt.subplots(figsize=(6, 2.6), layout="constrained")
left = torch.zeros(4)
for i, color in enumerate(("#9ecae1", "#4292c6", "#a8a8a8", "#d9822b")):
    share = weights[0, 0, :, i]
    axis.barh(range(4), share, left=left, color=color, edgecolor="white", label=f"{scores[i]:g}")
    left = left + share
axis.set(yticks=range(4), yticklabels=[f"after {n} score{'s'[: n > 1]}" for n in range(1, 5)])
axis.invert_yaxis()
axis.set(xlabel="weight", title="A larger score scales down all before it", xlim=(0, 1))
axis.spines[["top", "right"]].set_visible(False)
axis.legend(title="score", frameon=False, bbox_to_anchor=(1.0, 1.0), loc="upper left")
plt.show()

# %% [markdown]
# So the scores may come in portions, and each portion can be forgotten when it has been used.
#
# ### Try it: forget to scale
#
# Leave the output unscaled (`scaled=False`), and give it 64 values between 0 and 1. Before you
# look: which of three rows of scores, falling, random or rising, hides the mistake?

# %%
rows_of_scores = {
    "falling": torch.arange(64.0).flip(0),
    "random": torch.randn(64, generator=torch.Generator().manual_seed(1)),
    "rising": torch.arange(64.0),
}
many_values = torch.linspace(0, 1, 64)
for name, row in rows_of_scores.items():
    *_, last = one_pass(row.tolist(), many_values.tolist(), scaled=False)
    found = last[-1]  # the output
    right = (row.softmax(0) * many_values).sum().item()
    print(f"{name:<7}  found {found:.3f}, right is {right:.3f}")
    assert (abs(found - right) < 1e-4) == (name == "falling")

# %% [markdown]
# A weighted mean of numbers between 0 and 1 lies between 0 and 1. Falling scores hide the mistake:
# the largest comes first, and the scale is 1 ever after. A test of an online softmax needs scores
# that rise.

# %% [markdown]
# ## Attention block by block
#
# A processor would be slow if it took one key after the other. So take a *block* of keys $K$ and
# their values $V$ at a time, and all queries at once (Rabe and Staats 2021, arXiv:2112.05682; made
# fast on GPUs as FlashAttention, Dao et al. 2022, arXiv:2205.14135). Each query $q$ has its own
# largest score $m$, sum $\ell$ and output $o$. With the scores $s_j = q \cdot k_j / \sqrt d$ of the
# block, these become
#
# $$m' = \max(m, \max_j s_j) \qquad \ell' = e^{m - m'}\,\ell + \sum_j e^{s_j - m'} \qquad
# o' = e^{m - m'}\,o + \sum_j e^{s_j - m'}\,v_j$$
#
# and $o / \ell$ is the output when the last block is done. With a block of one key these are the
# lines that you followed by hand. To write them with tensors is the exercise of this chapter. Here
# we use the package's kernel `online`, which does the same: a *kernel* is a function written for
# one job.

# %%
online = attention_kernel("online")
query, key, value = (torch.randn(1, 1, 700, 16) for _ in range(3))
everything = torch.ones(1, 1, 700, 700, dtype=torch.bool)
for name, mask in {"everything": everything, "causal": causal_mask(700)}.items():
    wanted, _ = scaled_dot_product_attention(query, key, value, mask)
    found, _ = online(query, key, value, mask)
    print(f"{name:<11} largest difference {(found - wanted).abs().max():.1e}")
    torch.testing.assert_close(found, wanted)

# %% [markdown]
# Equal up to rounding: the same numbers, added in another order.
#
# What was saved is memory. Torch can be asked to show every operation as it happens; so we can look
# for the largest tensor of floats that is ever made. The mask is read before we look.


# %%
class Largest(TorchDispatchMode):
    """While it is on, remembers the size of the largest float tensor that an operation returns."""

    numbers = 0

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        returned = operation(*args, **(kwargs or {}))
        for one in returned if isinstance(returned, (tuple, list)) else [returned]:
            if isinstance(one, torch.Tensor) and one.is_floating_point():
                self.numbers = max(self.numbers, one.numel())
        return returned


print("tokens   plain, numbers in the largest tensor    online")
for length in (512, 1024, 2048, 4096):
    query, key, value = (torch.randn(1, 1, length, 16) for _ in range(3))
    everything = torch.ones(1, 1, length, length, dtype=torch.bool)
    with Largest() as table:
        scaled_dot_product_attention(query, key, value, everything)
    prepared = online.prepare(everything, query, heads=1)
    with Largest() as blocks:
        online(query, key, value, prepared)
    print(f"{length:>6} {table.numbers:>39,} {blocks.numbers:>9,}")
    assert (table.numbers, blocks.numbers) == (length**2, 128 * 512)

# %% [markdown]
# The largest tensor of `online` is a block of scores: 128 queries times 512 keys, whatever the
# length. (It takes its queries in portions, too.) Queries, keys, values and the output grow with
# the length. The table grows with its square. For eight heads in float32, four bytes a number, that
# is:

# %%
lengths = [512, 1024, 2048, 4096, 8192, 16384]
table = [4 * 8 * n * n / 2**20 for n in lengths]
blocks = [4 * 8 * 128 * 512 / 2**20 for n in lengths]
outputs = [4 * 8 * n * 64 / 2**20 for n in lengths]
figure, axis = plt.subplots(figsize=(6, 3), layout="constrained")
axis.plot(lengths, table, "o-", color="#d9822b", label="all scores")
axis.plot(lengths, outputs, "o-", color="#5a8f3d", label="the output, width 64")
axis.plot(lengths, blocks, "o-", color="#08519c", label="a block of 128 × 512 scores")
axis.set_xscale("log", base=2)
axis.set(yscale="log", xlabel="length in tokens", ylabel="MiB", xticks=lengths)
axis.set(xticklabels=lengths, title="Eight heads: computed, not measured")
axis.minorticks_off()
axis.spines[["top", "right"]].set_visible(False)
axis.legend(frameon=False)
plt.show()
print(f"at {lengths[-1]:,} tokens: {table[-1]:,.0f} MiB, or {blocks[-1]:,.0f} MiB")

# %% [markdown]
# ### The catch: training
#
# In training nothing is forgotten by itself. For the backward pass torch keeps what each operation
# will need there, so something of every block would stay, and together that is the table again.
# FlashAttention keeps only its inputs, its output, and a number for each query; it computes each
# block a second time in the backward pass. `online` does this too. The general name is *activation
# checkpointing*: keep what went in, and run the function again when its gradient is wanted. The
# package does it for whole layers (`recompute`). We count what is kept, also of `tiled`, which cuts
# the queries into portions and keeps the scores of each.


# %%
def numbers_kept(function, *arguments):
    """The size of what torch keeps for the backward pass, each piece of memory counted once."""
    kept = {}

    def keep(x):
        kept[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes() // x.element_size()
        return x

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
        output, _ = function(*arguments)
    return sum(kept.values()), torch.autograd.grad(output.square().sum(), arguments[:3])


query, key, value = (torch.randn(1, 1, 1024, 16, requires_grad=True) for _ in range(3))
inputs = (query, key, value, torch.ones(1, 1, 1024, 1024, dtype=torch.bool))
counts = {}
counts["plain"], gradients = numbers_kept(scaled_dot_product_attention, *inputs)
for name in ("tiled", "online"):
    counts[name], found = numbers_kept(attention_kernel(name), *inputs)
    torch.testing.assert_close(found, gradients)
for name, kept in counts.items():
    print(f"{name:<7} {kept:>9,} numbers kept")
assert counts["online"] < 0.05 * counts["tiled"] < counts["plain"]

# %% [markdown]
# A table of 1,024 × 1,024 scores has a million numbers, and each operation that keeps one of that
# size is paid for: the package's plain attention, which is careful about NaN, keeps three. Cut into
# portions and kept, it is still the table. Computed again, only queries, keys and values are kept,
# and the price is the time of a second forward pass.

# %% [markdown]
# ## Blocks and masks
#
# Now the mask. The obvious way is the one of chapter 2: a score of $-\infty$ where it forbids. Let
# `one_pass` go through such rows, for three masks of eight tokens. With the identity matrix as
# values the output *is* the weights, so that you can look at them. In which of the three does it go
# wrong, and where?

# %%
real = torch.tensor([[1] * 8, [1] * 5 + [0] * 3, [0] * 5 + [1] * 3])
masks = (padding_mask(real) & causal_mask(8))[:, 0]
names = ("causal", "causal, padding on the right", "causal, padding on the left")
query, key, eye = torch.randn(8, 4), torch.randn(8, 4), torch.eye(8)
figure, axes = plt.subplots(1, 3, figsize=(9, 3.4), layout="constrained")
for axis, name, mask, row in zip(axes, names, masks, real, strict=True):
    scores = (query @ key.T / 2).masked_fill(~mask, -math.inf)
    weights = torch.stack([list(one_pass(of_query.tolist(), eye))[-1][-1] for of_query in scores])
    tokens = [str(i) if is_real else None for i, is_real in enumerate(row.tolist())]
    attention_map(axis, weights, mask, tokens, tokens, title=name)
    axis.set_xlabel("key", fontsize=8)
    wrong = weights.isnan().any(dim=1)
    print(f"{name:<29} NaN in the rows of the queries {wrong.nonzero().flatten().tolist()}")
    inputs = (x[None, None] for x in (query, key, eye, mask))
    wanted, _ = scaled_dot_product_attention(*inputs)
    torch.testing.assert_close(weights[~wrong], wanted[0, 0][~wrong])
axes[0].set_ylabel("query", fontsize=8)
figure.suptitle("One key after the other; hatched: forbidden; red: NaN", fontsize=10)
plt.show()

# %% [markdown]
# Under the causal mask nothing goes wrong: every query sees key 0, which comes first, so the
# running maximum is a number from the start, and a later score of $-\infty$ adds an exact zero.
# Where a query has seen nothing *yet*, the maximum is $-\infty$, and $-\infty - (-\infty)$ is NaN.
# NaN stays: times 0 it is NaN. That happens to two kinds of queries:
#
# - A **fully masked** query, one that is padding itself, never sees anything. With padding on the
#   right these are the only ones, and if you look at real tokens only you will not notice.
# - With padding on the left, **real** queries (5, 6 and 7) find nothing at first. There the mistake
#   destroys results.
#
# With blocks it is the same: what counts is whether a query sees any key of the first block. So a
# test with causal masks alone passes such a function, and so does one that pads on the right and
# looks at real tokens. To fix both kinds is part of the exercise. Rows that are not red are equal
# to the package's already, as the last line of the loop checks.

# %% [markdown]
# ## The mask is the map of the work
#
# Cut the mask into tiles of queries × keys. A tile without a single True need not be computed at
# all. How many are left, for masks that are really in use? (In the last one a query sees itself
# and the 63 keys before it: a sliding window.)

# %%
TILE = 64
draw = torch.Generator().manual_seed(3)


def tiles(mask):
    """(queries / tile, keys / tile) bool: which tiles hold any True."""
    n = mask.shape[-1] // TILE
    return mask.view(n, TILE, n, TILE).any(dim=3).any(dim=1)


def masks_of(length):
    """Masks (1,1,length,length) that are in use, by name."""
    sizes = torch.randint(40, 160, (length // 100,), generator=draw).tolist()
    packed = pack([list(range(1, n + 1)) for n in sizes], length).attention_mask[:1]
    half = (torch.arange(length) < length // 2).long()[None]
    return {
        "nothing forbidden": torch.ones(1, 1, length, length, dtype=torch.bool),
        "causal": causal_mask(length),
        "half padding": padding_mask(half),
        "packed documents": padding_mask(packed),
        "packed and causal": padding_mask(packed) & causal_mask(length),
        "window of 64, causal": window_mask(length, window=64),
    }


masks = masks_of(512)
figure, axes = plt.subplots(2, 3, figsize=(8.5, 6), layout="constrained")
for axis, (name, mask) in zip(axes.flat, masks.items(), strict=True):
    needed = tiles(mask[0, 0])
    axis.imshow(mask[0, 0], cmap="Blues", vmin=0, vmax=1.4, extent=(0, 8, 8, 0))
    for i, j in needed.nonzero().tolist():
        axis.add_patch(plt.Rectangle((j, i), 1, 1, fill=False, ec="#d9822b", lw=1))
    share, true = needed.float().mean().item(), mask.float().mean().item()
    axis.set_title(f"{name}\ntiles {share:.0%}, True {true:.0%}", fontsize=10)
    axis.set_xticks([])
    axis.set_yticks([])
figure.suptitle("Queries down, keys across; blue is True; orange: tiles that must be computed")
plt.show()

# %% [markdown]
# ## Skipping
#
# An attention that looks at the map: for each row of tiles, take only the keys from the first to
# the last that one of its queries may see. It is the plain function on smaller tensors.


# %%
def skipping(query, key, value, mask):
    """Plain attention of 64 queries at a time, from the first to the last key that any may see."""
    parts = []
    for start in range(0, query.shape[2], TILE):
        rows = slice(start, start + TILE)
        seen = mask[..., rows, :].flatten(0, 2).any(dim=0).nonzero()
        if not len(seen):
            parts.append(torch.zeros_like(query[:, :, rows]))
            continue
        keys = slice(int(seen[0]), int(seen[-1]) + 1)
        part, _ = scaled_dot_product_attention(
            query[:, :, rows], key[:, :, keys], value[:, :, keys], mask[..., rows, keys]
        )
        parts.append(part)
    return torch.cat(parts, dim=2)


query, key, value = (torch.randn(1, 2, 512, 64, generator=draw) for _ in range(3))
for mask in masks.values():
    wanted, _ = scaled_dot_product_attention(query, key, value, mask)
    torch.testing.assert_close(skipping(query, key, value, mask), wanted)
print("equal for all six masks")

# %% [markdown]
# Does it save time? A single measurement is chance: another program runs, a cache is cold. So we
# measure seven times and take the median. On the left the same six masks at 2,048 tokens; on the
# right two of them at different lengths.


# %% tags=["varies"]
def milliseconds(function, *arguments, rounds=7):
    """The median time of a call."""
    times = []
    for _ in range(rounds):
        start = time.perf_counter()
        function(*arguments)
        times.append(1000 * (time.perf_counter() - start))
    return statistics.median(times)


LENGTHS = (256, 512, 1024, 2048)
NAMES = ("causal", "window of 64, causal")
by_length = {name: [] for name in NAMES}
for length in LENGTHS:
    query, key, value = (torch.randn(1, 2, length, 64, generator=draw) for _ in range(3))
    masks = masks_of(length)
    plain, ratio = {}, {}
    for name in masks if length == LENGTHS[-1] else NAMES:
        inputs = (query, key, value, masks[name])
        plain[name] = milliseconds(scaled_dot_product_attention, *inputs)
        skipped = milliseconds(skipping, *inputs)
        ratio[name] = skipped / plain[name]
        print(f"{length:>5} {name:<22} {plain[name]:6.1f} ms plain, {skipped:6.1f} ms skipping")
    for name in NAMES:
        by_length[name].append(ratio[name])

figure, (left, right) = plt.subplots(1, 2, figsize=(9.5, 3.6), layout="constrained")
for (name, mask), marker in zip(masks.items(), "osD^v*", strict=True):
    share = tiles(mask[0, 0]).float().mean().item()
    left.plot(share, ratio[name], marker, markersize=7, label=name)
left.plot([0, 1], [0, 1], "--", color="#999999", label="time = share of tiles")
left.set(xlabel="share of tiles with a True", xlim=(0, 1.05), title="2,048 tokens, six masks")
for name, color in zip(NAMES, ("#08519c", "#d9822b"), strict=True):
    right.plot(LENGTHS, by_length[name], "o-", color=color, label=name)
right.axhline(1, ls="--", color="#999999", label="as slow as plain")
right.set_xscale("log", base=2)
right.set(xticks=LENGTHS, xticklabels=LENGTHS, xlabel="length in tokens", title="By length")
right.minorticks_off()
for axis in (left, right):
    axis.set(ylim=(0, None), ylabel="time of skipping, plain = 1")
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(frameon=False, fontsize=7)
plt.show()

# %% [markdown]
# On the left the time follows the mask: the fewer tiles, the less time. On the right you see from
# which length on that is true. Every portion of 64 queries costs something for the cutting, whether
# its row is long or short. A window leaves so little to compute that it gains sooner. Causality
# saves at most half, and in short rows the cutting eats it up; in long ones the half is saved.
#
# A mask that a program can *read* saves time. It has to be a mask of True and False: numbers that
# are added to scores do not say what may be skipped.

# %% [markdown]
# ## In the package
#
# The models do the same, with some refinements: the mask is read once for all layers. The first
# cuts go where two documents meet, so that nothing needs to be masked within one. Documents of like
# lengths are computed together, wherever they stand in the batch: a processor is faster at large
# tensors. How they are computed has a name, which `Config(attention=...)` takes: `tiled` is the
# plain formula, `online` the online softmax from above, `fused` a kernel of torch that never stores
# its scores, for documents long enough to gain from it. `auto`, the default, takes the fastest of
# them. Recording weights always uses the plain formula, so what you see in a picture is equal to
# what was computed up to rounding. Here they are at 2,048 tokens; *plain* is from the cell above.

# %% tags=["varies"]
kernels = {name: attention_kernel(name) for name in ("tiled", "online", "fused")}
print(f"{'ms':<22}{'plain':>8}" + "".join(f"{kernel:>8}" for kernel in kernels))
for name, mask in masks.items():
    wanted, _ = scaled_dot_product_attention(query, key, value, mask)
    times = [plain[name]]
    for kernel in kernels.values():
        torch.testing.assert_close(kernel(query, key, value, mask)[0], wanted)
        times.append(milliseconds(kernel, query, key, value, mask))
    print(f"{name:<22}" + "".join(f"{t:8.1f}" for t in times))

# %% [markdown]
# Their source is in `minitransformer/kernels/`. Every check of chapter 13 is asked of each of them.

# %% [markdown]
# ## Where does the time go?
#
# Before you make something faster, look at what is slow. Attention is only a part of a model. The
# linear layers do not look at the mask at all: they compute every padded position. Packing (chapter
# 8) helps them, too. Here is a training step of a small encoder on the same texts, padded and
# packed, by kinds of operations. Torch's profiler says how long each took.

# %% tags=["varies"]
KINDS = {  # how we know an operation by its name
    "attention": ("attention", "bmm", "softmax"),
    "linear layers": ("mm",),  # mm and addmm; one that is named above does not count again
    "activation": ("gelu",),
    "norms": ("norm",),
    "copies, fills and the rest": ("",),
}
_ = torch.manual_seed(0)
model = EncoderOnly(Config(vocab_size=500, d_model=128, num_layers=4, num_heads=4, style="bert"))
lengths = torch.randint(8, 100, (48,), generator=draw).tolist()
rows = [torch.randint(1, 500, (n,), generator=draw).tolist() for n in lengths]
figure, axis = plt.subplots(figsize=(7.5, 3), layout="constrained")
for shift, (name, color) in zip(
    (-0.2, 0.2), {"padded": "#d9822b", "packed": "#08519c"}.items(), strict=True
):
    batch = pad(rows) if name == "padded" else pack(rows, max(lengths))
    labels = batch.input_ids.masked_fill(batch.input_ids % 7 != 1, -100)  # predict some tokens
    for _ in range(3):  # the first are slower
        model.loss(batch.input_ids, batch.attention_mask, labels).backward()
    with profile(activities=[ProfilerActivity.CPU]) as profiled:
        model.loss(batch.input_ids, batch.attention_mask, labels).backward()
    spent = dict.fromkeys(KINDS, 0.0)
    for event in profiled.key_averages():
        kind = next(kind for kind, parts in KINDS.items() if any(p in event.key for p in parts))
        spent[kind] += event.self_cpu_time_total / 1000  # from microseconds
    places = [i + shift for i in range(len(KINDS))]
    axis.barh(places, spent.values(), 0.38, color=color, label=name)
    real = (batch.attention_mask != 0).float().mean().item()
    shape = tuple(batch.input_ids.shape)
    print(f"{name}: {shape}, {real:.0%} real tokens, {sum(spent.values()):.0f} ms")
axis.set(yticks=range(len(KINDS)), yticklabels=KINDS, xlabel="milliseconds")
axis.invert_yaxis()
axis.set_title("One training step, the same texts")
axis.legend(frameon=False)
axis.spines[["top", "right"]].set_visible(False)
plt.show()

# %% [markdown]
# The linear layers take the most, and they shrink with the padding, as does all that works on one
# position at a time. At this length attention is a small part, padded or packed. What to make
# faster is a question to a measurement, at your own lengths.
#
# ### Try it
#
# Give the model texts of up to 1,000 tokens (`max_length=1024` in `Config`, and 4 texts instead of
# 48). What takes the time now?

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
