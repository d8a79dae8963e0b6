# %% [markdown]
# # 12. Faster
#
# Attention compares every query with every key: twice the length, four times the work, and a table
# of scores that fills the memory. Much of that work is then thrown away, because the mask forbids
# it: under a causal mask nearly half. This chapter shows the two ideas that fast attentions are
# made of: never hold the whole table, and never compute what the mask forbids.
#
# After this chapter you will be able to
#
# - compute a softmax in one pass, with a running maximum and a running sum;
# - write attention block by block, equal to the plain one, without the table of scores, and say
#   which masks break a first version of it;
# - read a mask as a map of tiles, and count the work that need not be done;
# - measure where the time goes before you make anything faster.

# %%
import math
import time

import matplotlib.pyplot as plt
import torch
from matplotlib_inline.backend_inline import set_matplotlib_formats
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

from minitransformer import (
    Config,
    EncoderOnly,
    causal_mask,
    pack,
    pad,
    padding_mask,
    scaled_dot_product_attention,
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
# values, is treated in the same way. Follow it by hand:

# %%
scores = [1.0, 3.0, 2.0, 5.0]
values = [10.0, 20.0, 30.0, 40.0]
largest, total, output, so_far = -math.inf, 0.0, 0.0, []
print("score  largest  scale   sum of powers  output so far")
for score, value in zip(scores, values, strict=True):
    top = max(largest, score)
    scale = math.exp(largest - top)  # exp(-inf) = 0 at the first
    power = math.exp(score - top)
    total = total * scale + power
    output = output * scale + power * value
    largest = top
    so_far.append(output / total)
    print(f"{score:>5}  {largest:>7}  {scale:5.3f}   {total:13.4f}  {so_far[-1]:13.4f}")
weights = torch.tensor(scores).softmax(0)
plain = (weights * torch.tensor(values)).sum().item()
print("plain softmax:", round(plain, 4))
assert abs(output / total - plain) < 1e-4

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
for i, colour in enumerate(("#9ecae1", "#4292c6", "#a8a8a8", "#d9822b")):
    share = weights[0, 0, :, i]
    axis.barh(range(4), share, left=left, color=colour, edgecolor="white", label=f"{scores[i]:g}")
    left = left + share
axis.set(yticks=range(4), yticklabels=[f"after {n} score{'s'[: n > 1]}" for n in range(1, 5)])
axis.invert_yaxis()
axis.set(xlabel="weight", title="A larger score scales down all before it", xlim=(0, 1))
axis.spines[["top", "right"]].set_visible(False)
axis.legend(title="score", frameon=False, bbox_to_anchor=(1.0, 1.0), loc="upper left")
plt.show()

# %% [markdown]
# So the scores may come in portions, and each portion can be forgotten when it has been used.

# %% [markdown]
# ## Attention block by block
#
# The same with a block of keys at a time and all queries at once (Rabe and Staats 2021,
# arXiv:2112.05682; made fast on GPUs as FlashAttention, Dao et al. 2022, arXiv:2205.14135). Here
# it is for one sequence without a mask.


# %%
def step(largest, total, output, query, keys, values):
    """One block of keys: what is known after it, given what was known before it."""
    scores = query @ keys.T / query.shape[1] ** 0.5
    top = torch.maximum(largest, scores.amax(dim=1, keepdim=True))
    scale, powers = (largest - top).exp(), (scores - top).exp()
    total = total * scale + powers.sum(dim=1, keepdim=True)
    output = output * scale + powers @ values
    return top, total, output


def nothing_seen(query, value):
    """What is known before the first block."""
    zeros = torch.zeros(len(query), 1)
    return torch.full_like(zeros, -math.inf), zeros, torch.zeros(len(query), value.shape[1])


def blockwise(query, key, value, block_size):
    """Queries (Q,D), keys (K,D) and values (K,D): no table of Q × K scores is ever made."""
    known = nothing_seen(query, value)
    for keys, values in zip(key.split(block_size), value.split(block_size), strict=True):
        known = step(*known, query, keys, values)
    _, total, output = known
    return output / total


query, key, value = (torch.randn(50, 16) for _ in range(3))
everything = torch.ones(1, 1, 50, 50, dtype=torch.bool)
wanted, _ = scaled_dot_product_attention(*(x[None, None] for x in (query, key, value)), everything)
for block_size in (1, 7, 16, 50, 64):
    found = blockwise(query, key, value, block_size)
    difference = (found - wanted[0, 0]).abs().max()
    print(f"blocks of {block_size:>2}: largest difference {difference:.1e}")
    torch.testing.assert_close(found, wanted[0, 0])

# %% [markdown]
# Equal to rounding, for every size, also one that does not divide the length. These are the lines
# that you followed by hand, with a column of numbers where there was one number.
#
# What was saved is memory. Torch can be asked to show every operation as it happens; so we can look
# for the largest tensor that is ever made.


# %%
class Largest(TorchDispatchMode):
    """While it is on, remembers the size of the largest tensor that any operation returns."""

    numbers = 0

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        returned = operation(*args, **(kwargs or {}))
        for one in returned if isinstance(returned, (tuple, list)) else [returned]:
            if isinstance(one, torch.Tensor):
                self.numbers = max(self.numbers, one.numel())
        return returned


def plain(query, key, value):
    return (query @ key.T / query.shape[1] ** 0.5).softmax(dim=1) @ value


print("tokens   plain, numbers in the largest tensor   in blocks of 128 keys")
for length in (256, 512, 1024, 2048):
    query, key, value = (torch.randn(length, 16) for _ in range(3))
    with Largest() as table:
        plain(query, key, value)
    with Largest() as blocks:
        blockwise(query, key, value, 128)
    print(f"{length:>6} {table.numbers:>39,} {blocks.numbers:>23,}")
    assert (table.numbers, blocks.numbers) == (length**2, length * 128)

# %% [markdown]
# The table grows with the square of the length, a block with the length. For eight heads in
# float32, four bytes a number, that is:

# %%
lengths = [512, 1024, 2048, 4096, 8192, 16384]
table = [4 * 8 * n * n / 2**20 for n in lengths]
blocks = [4 * 8 * n * 128 / 2**20 for n in lengths]
figure, axis = plt.subplots(figsize=(6, 3), layout="constrained")
axis.plot(lengths, table, "o-", color="#d9822b", label="all scores")
axis.plot(lengths, blocks, "o-", color="#08519c", label="a block of 128 keys")
axis.set_xscale("log", base=2)
axis.set(yscale="log", xlabel="length in tokens", ylabel="MiB", xticks=lengths)
axis.set(xticklabels=lengths, title="Scores of 8 heads: computed, not measured")
axis.minorticks_off()
axis.spines[["top", "right"]].set_visible(False)
axis.legend(frameon=False)
plt.show()
print(f"at {lengths[-1]:,} tokens: {table[-1]:,.0f} MiB, or {blocks[-1]:,.0f} MiB")

# %% [markdown]
# ### The catch: training
#
# In training nothing is forgotten by itself. For the backward pass torch keeps what each operation
# will need there, so something of every block stays, and together that is the table again.
# FlashAttention keeps only the final maximum and sum of each query, and computes each block a
# second time on the way back. `torch.utils.checkpoint` does this for any function: it keeps what
# went in, and runs the function again when its gradient is wanted. We count what is kept.


# %%
def blockwise_again(query, key, value, block_size):
    """The same, and each block is computed again in the backward pass instead of being kept."""
    known = nothing_seen(query, value)
    for keys, values in zip(key.split(block_size), value.split(block_size), strict=True):
        known = checkpoint(step, *known, query, keys, values, use_reentrant=False)
    return known[2] / known[1]


def numbers_kept(function, *arguments):
    """The size of what torch keeps for the backward pass, each piece of memory counted once."""
    kept = {}

    def keep(x):
        kept[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes() // x.element_size()
        return x

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
        output = function(*arguments)
    return sum(kept.values()), torch.autograd.grad(output.square().sum(), arguments[:3])


query, key, value = (torch.randn(1024, 16, requires_grad=True) for _ in range(3))
kept, gradients = numbers_kept(plain, query, key, value)
print(f"plain:                        {kept:>9,} numbers kept")
for name, function in {"in blocks": blockwise, "again": blockwise_again}.items():
    kept, found = numbers_kept(function, query, key, value, 128)
    print(f"{'in blocks' + ', computed again' * (name == 'again'):<28}  {kept:>9,} numbers kept")
    torch.testing.assert_close(found, gradients)

# %% [markdown]
# Kept as they are, the blocks need twice what plain attention needs: more operations keep more.
# Computed again, they need a fifth of it, and the time of a second forward pass.
#
# ### Try it: forget to scale
#
# Leave out `* scale` in the line of `output`, and give it 64 values between 0 and 1. Before you
# look: which of three rows of scores, falling, random or rising, hides the mistake?

# %%
rows_of_scores = {
    "falling": torch.arange(64.0).flip(0),
    "random": torch.randn(64, generator=torch.Generator().manual_seed(1)),
    "rising": torch.arange(64.0),
}
values = torch.linspace(0, 1, 64)
for name, scores in rows_of_scores.items():
    largest, total, output = -math.inf, 0.0, 0.0
    for part, seen in zip(scores.split(16), values.split(16), strict=True):
        top = max(largest, part.max().item())
        powers = (part - top).exp()
        total = total * math.exp(largest - top) + powers.sum().item()
        output = output + (powers * seen).sum().item()  # not scaled
        largest = top
    right = (scores.softmax(0) * values).sum().item()
    print(f"{name:<7}  found {output / total:.3f}, right is {right:.3f}")
    assert (abs(output / total - right) < 1e-4) == (name == "falling")

# %% [markdown]
# A weighted mean of numbers between 0 and 1 lies between 0 and 1. Falling scores hide the mistake:
# the largest comes first, and the scale is 1 ever after. A test of blockwise attention needs scores
# that rise.

# %% [markdown]
# ## Blocks and masks
#
# Now the mask. The obvious way is the one of chapter 2: $-\infty$ where it forbids. Here is that
# one line, put in, and three masks of eight tokens. With the identity matrix as values the output
# *is* the weights, so that you can look at them. In which of the three does it go wrong, and
# where?


# %%
def blockwise_first_try(query, key, value, mask, block_size):
    largest, total, output = nothing_seen(query, value)
    for start in range(0, len(key), block_size):
        block = slice(start, start + block_size)
        scores = query @ key[block].T / query.shape[1] ** 0.5
        scores = scores.masked_fill(~mask[:, block], -math.inf)  # the new line
        top = torch.maximum(largest, scores.amax(dim=1, keepdim=True))
        scale, powers = (largest - top).exp(), (scores - top).exp()
        total = total * scale + powers.sum(dim=1, keepdim=True)
        output = output * scale + powers @ value[block]
        largest = top
    return output / total


real = torch.tensor([[1] * 8, [1] * 5 + [0] * 3, [0] * 5 + [1] * 3])
masks = (padding_mask(real) & causal_mask(8))[:, 0]
names = ("causal", "causal, padding on the right", "causal, padding on the left")
query, key = torch.randn(8, 4), torch.randn(8, 4)
figure, axes = plt.subplots(1, 3, figsize=(9, 3.4), layout="constrained")
for axis, name, mask, row in zip(axes, names, masks, real, strict=True):
    weights = blockwise_first_try(query, key, torch.eye(8), mask, block_size=4)
    tokens = [str(i) if is_real else None for i, is_real in enumerate(row.tolist())]
    attention_map(axis, weights, mask, tokens, tokens, title=name)
    axis.axvline(3.5, color="black", lw=1)
    axis.set_xlabel("key", fontsize=8)
    wrong = weights.isnan().any(dim=1)
    print(f"{name:<29} NaN in the rows of the queries {wrong.nonzero().flatten().tolist()}")
    wanted, _ = scaled_dot_product_attention(
        query[None, None], key[None, None], torch.eye(8)[None, None], mask[None, None]
    )
    torch.testing.assert_close(weights[~wrong], wanted[0, 0][~wrong])
axes[0].set_ylabel("query", fontsize=8)
title = "Two blocks of four keys, a black line between; hatched: forbidden; red: NaN"
figure.suptitle(title, fontsize=10)
plt.show()

# %% [markdown]
# Under the causal mask nothing goes wrong: every query sees key 0, which is in the first block, so
# the running maximum is a number from the start, and a later block of $-\infty$ adds exact zeros.
# Where a query has seen nothing *yet*, the maximum is $-\infty$, and $-\infty - (-\infty)$ is NaN.
# That happens to two kinds of queries:
#
# - A **dead** query, one that is padding itself, never sees anything. With padding on the right
#   these are the only ones, and if you look at real tokens only you will not notice.
# - With padding on the left, **real** queries (5, 6 and 7) find nothing in the first block. There
#   the mistake destroys results.
#
# So a test with causal masks alone passes this function, and so does one that pads on the right
# and looks at real tokens. To mend both kinds is the exercise of this chapter. Rows that are not
# red are equal to the package's already, as the last lines of the cell check.

# %% [markdown]
# ## The mask is the map of the work
#
# Cut the mask into tiles of queries × keys. A tile without a single True need not be computed at
# all. How many are left, for masks that are really in use? (In the last one a query sees itself
# and the 63 keys before it: a sliding window.)

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


query, key, value = (torch.randn(1, 8, LENGTH, 64, generator=draw) for _ in range(3))
for mask in masks.values():
    wanted, _ = scaled_dot_product_attention(query, key, value, mask[None, None])
    torch.testing.assert_close(skipping(query, key, value, mask[None, None]), wanted)
print("equal for all six masks")


# %% tags=["varies"]
def seconds(function, *arguments, rounds=20):
    times = []
    for _ in range(rounds):
        start = time.perf_counter()
        function(*arguments)
        times.append(time.perf_counter() - start)
    return min(times)


times = {}
for name, mask in masks.items():
    plain = seconds(scaled_dot_product_attention, query, key, value, mask[None, None])
    quick = seconds(skipping, query, key, value, mask[None, None])
    times[name] = quick / plain
    print(f"{name:<22} {1000 * plain:6.1f} ms plain, {1000 * quick:6.1f} ms skipping")

figure, axis = plt.subplots(figsize=(7.5, 3.4), layout="constrained")
for (name, mask), marker in zip(masks.items(), "osD^v*", strict=True):
    share = tiles(mask).float().mean().item()
    axis.plot(share, times[name], marker, markersize=8, label=name)
axis.plot([0, 1], [0, 1], "--", color="#999999", label="time = share of tiles")
axis.set(
    xlabel="share of tiles with a True", ylabel="time, plain = 1", xlim=(0, 1.05), ylim=(0, None)
)
axis.set_title("The time follows the mask")
axis.legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5))
plt.show()

# %% [markdown]
# The time follows the tiles, with something on top for the cutting: where little can be skipped,
# that may cost more than it saves. A mask that a program can *read* saves time. It has to be a mask
# of True and False: numbers that are added to scores do not say what may be skipped.

# %% [markdown]
# ## In the package
#
# The models do the same, with some refinements: the mask is read once for all layers. The first
# cuts go where two documents meet, so that nothing needs to be masked within one. Documents of like
# lengths are computed together, wherever they stand in the batch: in large pieces, a processor is
# faster. How a piece is computed has a name, which `Config(attention=...)` takes: `tiled` is the
# plain formula, `online` the one-pass softmax from above, `fused` a kernel of torch (a function
# compiled for one job) that never stores its scores, for documents long enough to gain from it.
# `auto`, the default, takes the fastest of them. Recording weights always uses the plain formula,
# so what you see in a picture is equal to what was computed up to rounding.

# %% tags=["varies"]
kernels = {name: attention_kernel(name) for name in ("tiled", "online", "fused")}
print(f"{'ms':<22}{'plain':>8}" + "".join(f"{kernel:>8}" for kernel in kernels))
for name, mask in masks.items():
    mask = mask[None, None]
    times = [seconds(scaled_dot_product_attention, query, key, value, mask)]
    for kernel in kernels.values():
        wanted, _ = scaled_dot_product_attention(query, key, value, mask)
        torch.testing.assert_close(kernel(query, key, value, mask)[0], wanted)
        times.append(seconds(kernel, query, key, value, mask))
    print(f"{name:<22}" + "".join(f"{1000 * t:8.1f}" for t in times))

# %% [markdown]
# Their source is in `minitransformer/kernels/`: `plan.py` reads the mask, `strips.py` computes.
# Every check of chapter 13 is asked of each of them.

# %% [markdown]
# ## Where does the time go?
#
# Before you make something faster, look at what is slow. Attention is only a part of a model. The
# linear layers do not look at the mask at all: they compute every padded position. Packing (chapter
# 8) helps them, too. Here is a training step of a small encoder on the same texts, padded and
# packed, by kinds of operations. Torch's profiler says how long each took.

# %% tags=["varies"]
KINDS = {  # how we know an operation by its name
    "matrix products": ("mm",),  # mm, addmm, bmm: the linear layers
    "fused attention": ("attention",),
    "activation": ("gelu",),
    "norms": ("norm",),
    "copies, fills and the rest": ("",),
}
_ = torch.manual_seed(0)
model = EncoderOnly(Config(vocab_size=500, d_model=128, num_layers=4, num_heads=4, style="bert"))
lengths = torch.randint(8, 100, (48,), generator=draw).tolist()
rows = [torch.randint(1, 500, (n,), generator=draw).tolist() for n in lengths]
figure, axis = plt.subplots(figsize=(7.5, 3), layout="constrained")
for shift, (name, colour) in zip(
    (-0.2, 0.2), {"padded": "#d9822b", "packed": "#08519c"}.items(), strict=True
):
    batch = pad(rows) if name == "padded" else pack(rows, max(lengths))
    labels = batch.input_ids.masked_fill(batch.input_ids % 7 != 1, -100)  # predict some tokens
    model.loss(batch.input_ids, batch.attention_mask, labels).backward()  # the first is slower
    with profile(activities=[ProfilerActivity.CPU]) as profiled:
        model.loss(batch.input_ids, batch.attention_mask, labels).backward()
    spent = dict.fromkeys(KINDS, 0.0)
    for event in profiled.key_averages():
        kind = next(kind for kind, parts in KINDS.items() if any(p in event.key for p in parts))
        spent[kind] += event.self_cpu_time_total / 1000  # from microseconds
    places = [i + shift for i in range(len(KINDS))]
    axis.barh(places, spent.values(), 0.38, color=colour, label=name)
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
# The matrix products of the linear layers take the most, and they shrink with the padding, as does
# all that works on one position at a time. Attention skips the padding in both, and at this length
# it is a small part. What to make faster is a question to a measurement, at your own lengths.
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
