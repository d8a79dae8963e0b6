# %% [markdown]
# # 1. Why padding needs a mask
#
# A model computes with rectangles of numbers, several sentences at once (a *batch*), and sentences
# are not equally long. The short ones are filled up with padding, and from then on every part of
# the model must know what is padding and what is not. This chapter shows what that knowledge looks
# like and what happens without it.
#
# After this chapter you will be able to
#
# - turn ragged sentences into one tensor and read its `attention_mask`;
# - say why a forbidden key gets a weight of *exactly* 0, and why that needs minus infinity;
# - tell four grades of zero apart, and break the first three;
# - translate a mask between four conventions, and recognise a swapped one.

# %%
import math

import matplotlib.pyplot as plt
import torch
from matplotlib.patches import Rectangle
from torch import nn
from torch.nn import functional as F

import minitransformer as mt
from minitransformer.visualize import attention_figure, wanted_beside_found

torch.manual_seed(0)
torch.set_num_threads(1)

# %% [markdown]
# ## Sentences are ragged, tensors are not
#
# Three sentences. Here each word is one *token* and has a number, its *token id*.

# %%
sentences = ["the cat sat on the mat", "dogs bark", "the birds sing"]
words = ["<pad>", *sorted({word for sentence in sentences for word in sentence.split()})]
rows = [[words.index(word) for word in sentence.split()] for sentence in sentences]
print(dict(enumerate(words)))
for row in rows:
    print(row)

try:
    torch.tensor(rows)
except ValueError as error:
    print("ValueError:", error)

# %% [markdown]
# A *tensor*, torch's array of numbers, has no holes, so torch refuses. `mt.pad` fills the short
# rows up, and returns a second tensor that remembers what is real.

# %%
batch = mt.pad(rows)
print(batch.input_ids)
print(batch.attention_mask)  # 1 = a real token, 0 = padding

# %%
left = mt.pad(rows, side="left")


def draw_batch(axes, batch, title):
    for row, (ids, real) in enumerate(zip(batch.input_ids, batch.attention_mask, strict=True)):
        for column, (token, is_real) in enumerate(zip(ids, real, strict=True)):
            look = (
                {"facecolor": "#c6dbef"} if is_real else {"facecolor": "#f0f0f0", "hatch": "\\\\\\"}
            )
            axes.add_patch(Rectangle((column, row), 1, 1, edgecolor="#a8a8a8", **look))
            text = words[token] if is_real else "0"
            axes.text(column + 0.5, row + 0.5, text, ha="center", va="center", fontsize=10)
    axes.set(xlim=(0, ids.numel()), ylim=(len(batch.input_ids), 0), title=title)
    axes.set(xlabel="position", ylabel="row of the batch")
    axes.set_xticks([i + 0.5 for i in range(ids.numel())], range(ids.numel()))
    axes.set_yticks([i + 0.5 for i in range(3)], range(3))
    axes.tick_params(length=0)


figure, panels = plt.subplots(1, 2, figsize=(10, 2.4), layout="constrained")
draw_batch(panels[0], batch, "mt.pad(rows): hatched is padding")
draw_batch(panels[1], left, 'mt.pad(rows, side="left")')

# %% [markdown]
# Both are in use: models that read are mostly padded on the right, and texts that shall be
# continued on the left, so that all of them end in the last column. The words are the same, and a
# correct model gives them the same vectors.
#
# The padding needs *some* id, here 0. A model first turns ids into vectors: an *embedding* is a
# table with one row of numbers for each id. To it 0 is an id like any other.

# %%
embedding = nn.Embedding(len(words), 4)
vectors = embedding(batch.input_ids)
print(vectors.shape)  # (batch, length, width)
print(vectors[1].detach())  # dogs, bark, and four paddings that are vectors too

# %% [markdown]
# **Try it.** Could you make the `attention_mask` from the ids, as `batch.input_ids != 0`? Here,
# yes. Many models have no id to spare and pad with the one that also marks the end of a text. Then
# the ids no longer tell. `mt.pad` counts lengths and never looks at the ids:

# %%
end = words.index("sing")  # pretend that this id marks the end of a text
padded_with_end = mt.pad(rows, pad_id=end)
from_ids = (padded_with_end.input_ids != end).long()
print("from the lengths:", padded_with_end.attention_mask[2].tolist())
print("from the ids:    ", from_ids[2].tolist(), " <- a real token is lost")
assert torch.equal(padded_with_end.attention_mask, batch.attention_mask)
assert not torch.equal(from_ids, batch.attention_mask)

# %% [markdown]
# ## What goes wrong without a mask
#
# In attention every token, the *query*, looks at every token, the *keys*. It gives each key a
# score, turns the scores into weights that sum to 1, and collects the keys' *values*, each times
# its weight (chapter 2 builds this step by step). For now one query is enough, with scores that you
# can follow: three real words with a score of 0 each, and values of 10, 20 and 30.

# %%
scores = torch.tensor([0.0, 0.0, 0.0])
values = torch.tensor([10.0, 20.0, 30.0])
weights = scores.softmax(dim=-1)  # exp(score), divided by the sum of all exp(score)
print("weights", weights, " output", (weights * values).sum().item())

# %% [markdown]
# Equal scores, equal weights: a third each, and the output is the mean, 20. Now the same sentence
# stands in a batch with a longer one, so that three paddings follow. They are zeros.

# %%
scores = torch.tensor([0.0, 0.0, 0.0, 0.0, 0.0, 0.0])
values = torch.tensor([10.0, 20.0, 30.0, 0.0, 0.0, 0.0])
weights = scores.softmax(dim=-1)
print("weights", weights, " output", (weights * values).sum().item())

# %% [markdown]
# The output fell from 20 to 10. A score of 0 is not "no score": exp(0) is 1, so each padding takes
# as large a share as a word. **What the model says about your sentence depends on who else is in
# the batch.**
#
# The remedy is an addition to the scores, $M$ in
#
# $$\text{softmax}\left(\frac{QK^\top}{\sqrt d} + M\right)V,
# \qquad M = 0 \text{ where the query may attend to the key, } -\infty \text{ where not}$$
#
# The rows of $Q$, $K$ and $V$ are the queries, keys and values, $QK^\top$ holds the scores, and $d$
# is the width of a key. (The formula is from Vaswani et al. 2017, arXiv:1706.03762, section 3.2,
# where the authors also set what is illegal to $-\infty$.) It works because of one number:

# %%
print("exp(-inf) =", math.exp(float("-inf")))
assert math.exp(float("-inf")) == 0.0

M = torch.tensor([0.0, 0.0, 0.0, float("-inf"), float("-inf"), float("-inf")])
weights = (scores + M).softmax(dim=-1)
print("exp(scores + M) =", (scores + M).exp())
print("weights", weights, " output", (weights * values).sum().item())
assert (weights[3:] == 0.0).all()  # exactly: no tolerance

# %% [markdown]
# `exp(-inf)` is not small. It is 0.0, and 0 divided by the sum, 3, is 0. So the padding is gone
# twice: it adds nothing to the output, and nothing to the sum that the others are divided by. The
# weights are a third again, and the output is 20 again.
#
# The second half is easily forgotten. Here the weights are made first, and those of the padding are
# erased afterwards:

# %%
keep = torch.tensor([1.0, 1.0, 1.0, 0.0, 0.0, 0.0])
without = scores.softmax(dim=-1)
too_late = scores.softmax(dim=-1) * keep
print("weights", too_late, " sum", too_late.sum().item())
print("output", (too_late * values).sum().item())

figure, panels = plt.subplots(1, 3, figsize=(10, 2.5), sharey=True, layout="constrained")
names = ["w1", "w2", "w3", "pad", "pad", "pad"]
for axes, one, title in zip(
    panels,
    [without, too_late, weights],
    ["no mask", "mask after the softmax", "mask before the softmax"],
    strict=True,
):
    axes.bar(range(6), one, color=["#4292c6"] * 3 + ["#d9822b"] * 3)
    axes.set_xticks(range(6), names)
    axes.set_title(f"{title}\nsum {one.sum():.2f}, output {(one * values).sum():.0f}", fontsize=10)
    axes.set(xlabel="key", ylim=(0, 0.4))
    axes.spines[["top", "right"]].set_visible(False)
panels[0].set_ylabel("attention weight")
plt.show()

# %% [markdown]
# In the middle the weights of the padding are 0, and the answer is as wrong as on the left. So "the
# weight on padding is 0" is a necessary test and not a sufficient one: the rest must sum to 1.
#
# **Try it.** In the cell with six scores, change the first three, those of the words, to 5.0. Is
# the answer without a mask better or worse? Then try -5.0. You will find that the damage depends on
# the scores, which is why such a bug can hide for weeks.
#
# ## The same with the package
#
# `mt.padding_mask` turns the `attention_mask`, which says what each token *is*, into a `mask`,
# which says what each query *may do*. True means: may attend. It has four axes, (batch, heads,
# queries, keys). Heads are several attentions side by side (chapter 3), and the 1 stands for "the
# same for all heads".

# %%
mask = mt.padding_mask(batch.attention_mask)
print(mask.shape, mask.dtype)
print(mask[2, 0].int())  # row 2, "the birds sing": queries down, keys across

# %% [markdown]
# Three words see three words. Nobody sees padding, and padding sees nobody. Now attention itself,
# with random queries, keys and values, for all three rows at once.

# %%
query, key, value = torch.randn(3, 3, 1, 6, 8)  # each (batch 3, heads 1, length 6, width 8)
output, weights = mt.scaled_dot_product_attention(query, key, value, mask)

assert (weights[~mask] == 0.0).all()  # exactly zero wherever the mask is False
alone, _ = mt.scaled_dot_product_attention(
    query[2:, :, :3], key[2:, :, :3], value[2:, :, :3], mask[2:, :, :3, :3]
)
difference = (output[2, :, :3] - alone[0]).abs().max()
print(f"largest difference between 'the birds sing' padded and alone: {difference:.0e}")
assert difference < 1e-6

tokens = [*sentences[2].split(), None, None, None]  # None is padding
attention_figure(weights[2], mask[2], tokens, tokens, title="Hatched: forbidden, exactly zero")

# %% [markdown]
# The darker a cell, the larger the weight (the bar is stretched at its lower end, to show small
# weights); each row of words sums to 1. If the difference above is not 0 but about 1e-7 on your
# machine, that is rounding: sums of other lengths are added in another order. The zeros are no
# rounding, they are exact everywhere.
#
# ## Four grades of zero
#
# Why insist on minus infinity? A large negative number seems to do. The code that came with BERT
# (Devlin et al. 2018) adds -10000, many tutorials write `-1e9`. Let us see what weight a padding
# with such a number gets, beside one real key. Both have the score 0. The answer depends on the
# *dtype*, the number format: 16, 32 or 64 bits for a number.

# %%
for fill in (-10.0, -100.0, -1000.0, float("-inf")):
    row = [
        torch.tensor([0.0, fill], dtype=dtype).softmax(dim=-1)[1].item()
        for dtype in (torch.float16, torch.float32, torch.float64)
    ]
    print(f"fill {fill:8}:  float16 {row[0]:<8.1e}  float32 {row[1]:<8.1e}  float64 {row[2]:.1e}")

# %%
fills = torch.logspace(0, 4, 400, dtype=torch.float64)
figure, (one, two) = plt.subplots(1, 2, figsize=(10, 3.6), layout="constrained")
lines = {
    torch.float16: ("#d9822b", "-"),
    torch.bfloat16: ("#5a8f3d", "-"),
    torch.float32: ("#08519c", "--"),
    torch.float64: ("#7a4fa3", "-"),
}
for dtype, (colour, style) in lines.items():
    pairs = torch.stack((torch.zeros_like(fills), -fills), dim=1).to(dtype)
    leaks = pairs.softmax(dim=-1)[:, 1].double()
    name = str(dtype).removeprefix("torch.")
    one.plot(fills[leaks > 0], leaks[leaks > 0], style, color=colour, label=name)
    one.plot(fills[leaks > 0][-1], leaks[leaks > 0][-1], "o", color=colour)
one.set(
    xscale="log", yscale="log", xlabel="size of the negative number", ylabel="weight on padding"
)
one.set_yticks([1e-300, 1e-200, 1e-100, 1])
one.set_title("One curve; each dtype ends at its dot, beyond it is 0.0", fontsize=10)
one.legend(frameon=False)

advantages = torch.logspace(0, 6, 300)  # score of the padding, minus that of the real key
for fill, colour in ((-100.0, "#5a8f3d"), (-1e4, "#d9822b"), (float("-inf"), "#08519c")):
    pairs = torch.stack((torch.zeros_like(advantages), advantages + fill), dim=1)
    two.plot(advantages, pairs.softmax(dim=-1)[:, 1], color=colour, label=f"fill {fill:g}")
two.set(xscale="log", xlabel="how much higher the padding scores", ylabel="weight on padding")
two.set_title("A finite number can be outbid", fontsize=10)
two.legend(frameon=False)
for axes in (one, two):
    axes.spines[["top", "right"]].set_visible(False)

# %% [markdown]
# On the left, with equal scores, the weight falls as $e^{-x}$ until the dtype has no smaller number
# and rounds to 0. (bfloat16 has 16 bits as well, but nearly the range of float32 and fewer digits.)
# That zero is a gift of the number format, not of the mask. On the right, in float32, the padding
# has a higher score than the real key. At some score each finite number is outbid, and then the
# padding gets *everything*. Minus infinity stays at 0 throughout, since $x - \infty = -\infty$ for
# every finite $x$.
#
# Scores that large are rare in a healthy float32 model. They are not rare in one that diverges, and
# in float16 even the largest number is not large:

# %%
print("the largest float16:", torch.finfo(torch.float16).max)
print("-1e9 as float16:", torch.tensor(-1e9).half().item())
try:
    torch.zeros(2, dtype=torch.float16).masked_fill(torch.tensor([False, True]), -1e9)
except RuntimeError as error:
    print("RuntimeError:", error)

# %% [markdown]
# In float16 -1e9 does not exist. `masked_fill` refuses it, arithmetic silently makes `-inf` of it,
# and a -10000 that was written to avoid this is within reach of the scores. `mt` needs no such
# number: its mask is bool, its scores are at least float32, and it fills in `-inf`.

# %% [markdown]
# ### Dead queries
#
# So is `-inf` the whole answer? Not quite. A query that may see *no* key is called dead. In the
# masks of `mt.padding_mask` every padded query is one. Here is what three ways make of a dead query
# with four keys.

# %%
scores = torch.tensor([1.0, 2.0, 3.0, 4.0])
nothing = torch.zeros(4, dtype=torch.bool)  # may attend to: no key

print("-1e9: ", (scores + torch.where(nothing, 0.0, -1e9)).softmax(dim=-1))
print("the next float32 after 1e9:", torch.nextafter(torch.tensor(1e9), torch.tensor(2e9)).item())
print("-inf: ", scores.masked_fill(~nothing, float("-inf")).softmax(dim=-1))
ours = mt.scaled_dot_product_attention(
    torch.ones(1, 1, 1, 1),
    scores.view(1, 1, 4, 1),
    torch.ones(1, 1, 4, 1),
    nothing.view(1, 1, 1, 4),
)[1]
print("ours: ", ours.flatten())
assert (ours == 0.0).all()

# %% [markdown]
# - With -1e9 the padding is attended to, with equal weights. Even the scores 1, 2, 3, 4 are gone:
#   float32 has about seven digits, and at a size of 1e9 its next number is 64 away.
# - With `-inf` the softmax divides 0 by 0. This is NaN, "not a number".
# - Ours gives zeros: nobody to look at, nothing collected.
#
# NaN looks like the smaller evil, because at least you see it. But it travels. Training moves each
# parameter against its *gradient*, the derivative of the loss, which `backward` computes. The loss
# below reads row 0 only, which is sound; row 1 is dead. Both share the parameter `w`.

# %%
w = torch.ones(1, requires_grad=True)
values = w * torch.tensor([10.0, 20.0])
live = torch.tensor([[True, True], [False, False]])
scores = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
weights = scores.masked_fill(~live, float("-inf")).softmax(dim=-1)
output = weights @ values
loss = output[0]  # row 1 is not even read
loss.backward()
print("loss", loss.item(), "  gradient of w:", w.grad.item())
assert loss.isfinite()
assert w.grad.isnan()

# %% [markdown]
# The loss is a number and the gradient is NaN: one step of training, and `w` is NaN for good. The
# reason leads to the last of the four grades.
#
# ### Zero times NaN
#
# Padding may hold anything: memory that nobody filled, the logarithm of 0, a division by a length
# that is 0. Suppose that the masked value is NaN.

# %%
print("0 * nan =", 0.0 * float("nan"), "   0 * inf =", 0.0 * float("inf"))
weights = torch.tensor([0.5, 0.5, 0.0])
values = torch.tensor([10.0, 20.0, float("nan")])
print("with a weight of exactly 0:", (weights * values).sum().item())
padded = torch.tensor([False, False, True])
print("with a 0 put in its place: ", (weights * values.masked_fill(padded, 0.0)).sum().item())

# %% [markdown]
# A weight of 0 still *multiplies*, and 0 · NaN is NaN by the rules of floating point (IEEE 754).
# The same happened in the gradient above: nobody had read row 1, so its gradient was 0, and on its
# way back to the values this 0 was multiplied with weights that were NaN. Only what is never
# multiplied is really absent. So the package puts zeros in place of every row that no query may
# use, *before* any product (`rearrange` only adds an axis here):
#
# ```python
# used = rearrange(mask.any(dim=-2), "b h k -> b h k 1")  # keys that a query sees
# key, value = key.masked_fill(~used, 0.0), value.masked_fill(~used, 0.0)
# ```
#
# These are the grades, from weakest to strongest. The cell measures what a real query collects when
# the padded key has an ordinary score, then a huge one, then when the padded value is NaN.


# %%
def with_fill(fill):
    """Attention that adds `fill` to the scores of forbidden keys, as many tutorials do."""

    def attention(query, key, value, mask):
        scores = query @ key.transpose(-2, -1) / query.shape[-1] ** 0.5
        return (scores + torch.where(mask, 0.0, fill)).softmax(dim=-1) @ value

    return attention


def structural(query, key, value, mask):
    return mt.scaled_dot_product_attention(query, key, value, mask)[0]


def collected(attention, score, padded_value):
    """One query; a real key (score 0, value 1) and a padded one. Right is 1."""
    query, key = torch.ones(1, 1, 1, 1), torch.tensor([0.0, score]).view(1, 1, 2, 1)
    value = torch.tensor([1.0, padded_value]).view(1, 1, 2, 1)
    mask = torch.tensor([True, False]).view(1, 1, 1, 2)
    return attention(query, key, value, mask).item()


grades = {
    "small (-10)": with_fill(-10.0),
    "underflow (-1e9)": with_fill(-1e9),
    "-inf": with_fill(float("-inf")),
    "structural (ours)": structural,
}
print(f"{'right is 1.0':18} {'ordinary':>10} {'score 1e10':>11} {'NaN value':>10}")
for name, attention in grades.items():
    found = [collected(attention, *case) for case in ((0.0, 5.0), (1e10, 5.0), (0.0, math.nan))]
    print(f"{name:18} {found[0]:10.5f} {found[1]:11.5f} {found[2]:10.5f}")
assert collected(structural, 1e10, math.nan) == 1.0

# %% [markdown]
# **Try it.** At which score does -1e9 begin to fail? Guess before you look for it, with
# `collected(with_fill(-1e9), score, 5.0)`. And what does `with_fill(-math.inf)` make of a score of
# `math.inf`? (It is a padded key that holds infinity.)
#
# ## Four conventions, two polarities
#
# Everybody needs this mask, and not everybody means the same by 1 and True.
#
# | where | name | shape | True or 1 means |
# |---|---|---|---|
# | `mt`, every layer | `mask` | (batch, heads, queries, keys) | may attend |
# | `mt` and Hugging Face's tokenizers | `attention_mask` | (batch, length) | a real token |
# | torch `F.scaled_dot_product_attention` | `attn_mask` | (..., queries, keys) | may attend |
# | torch `nn.MultiheadAttention` | `key_padding_mask` | (batch, length) | **ignore** this key |
#
# Two attentions of one library, and opposite meanings. Here are both on our batch. The linear
# layers of `nn.MultiheadAttention` are set to the identity, so that it computes what we compute.

# %%
x = torch.randn(3, 6, 8)
ours, weights = mt.scaled_dot_product_attention(x[:, None], x[:, None], x[:, None], mask)

keys_only = batch.attention_mask.bool()[:, None, None, :]  # (batch, 1, 1, keys)
theirs = F.scaled_dot_product_attention(x[:, None], x[:, None], x[:, None], attn_mask=keys_only)

module = nn.MultiheadAttention(8, num_heads=1, batch_first=True)
with torch.no_grad():
    module.in_proj_weight.copy_(torch.eye(8).repeat(3, 1))
    module.out_proj.weight.copy_(torch.eye(8))
third, _ = module(x, x, x, key_padding_mask=batch.attention_mask == 0)  # True = ignore

real = batch.attention_mask.bool()
for name, other in {"F.scaled_dot...": theirs[:, 0], "nn.Multihead...": third}.items():
    difference = (ours[:, 0] - other)[real].abs().max().item()
    print(f"{name} differs from ours at real tokens by {difference:.0e}")
    assert difference < 1e-5

# %% [markdown]
# They agree. Now the commonest mistake of all: the `attention_mask` is handed to `key_padding_mask`
# as it is. The shape fits and the dtype fits.

# %%
_, swapped = module(x, x, x, key_padding_mask=batch.attention_mask.bool())  # wrong
for row, sentence in enumerate(sentences):
    on_padding = (swapped[row][real[row]] * ~real[row]).sum(dim=-1).mean()
    print(f"{sentence!r:26} share of attention that goes to padding: {on_padding:.2f}")

# %% [markdown]
# No exception, and two different symptoms in one batch. The short sentences attend to *nothing but*
# padding. The longest has no padding, so all of its keys are ignored and it is NaN. If you ever see
# NaN only for the longest row of each batch, you know where to look. If all sentences of your test
# are equally long and you got NaN everywhere, likewise.

# %%
wanted_beside_found(mask[2, 0], swapped[2].detach(), title="'the birds sing' with a swapped mask")

# %% [markdown]
# On the left what the mask allows. On the right the swapped one: the cells that are allowed stay
# white, and the colour lies under the hatch, where it must not be. The padded queries (the lower
# three rows) are coloured too: a `key_padding_mask` says nothing about queries, so they attend even
# when it is the right way round. What they collect must not be used later.
#
# `mt` cannot make sure that you do not write `~mask`. It does refuse what it can recognise:

# %%
for wrong in (batch.attention_mask, mask.long(), mask[:, 0]):
    try:
        mt.scaled_dot_product_attention(query, key, value, wrong)
    except (TypeError, ValueError) as error:
        print(f"{type(error).__name__}: {error}\n")

# %% [markdown]
# ## One test for all of this
#
# You need no picture to find such bugs. Add padding, and see whether the real outputs change. If
# they do, something looks at padding. Here it is for five attentions.


# %%
def change_by_padding(attention, garbage):
    """How far the real outputs move when three columns of `garbage` are put behind a sentence."""
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(1, 1, 4, 8, generator=generator)
    longer = F.pad(x, (0, 0, 0, 3), value=garbage)
    short = mt.padding_mask(torch.tensor([[1, 1, 1, 1]]))
    long = mt.padding_mask(torch.tensor([[1, 1, 1, 1, 0, 0, 0]]))
    before = attention(x, x, x, short)
    after = attention(longer, longer, longer, long)[:, :, :4]
    return (before - after).abs().max().item()


def no_mask(query, key, value, mask):
    return F.scaled_dot_product_attention(query, key, value)


def after_softmax(query, key, value, mask):
    scores = query @ key.transpose(-2, -1) / query.shape[-1] ** 0.5
    return (scores.softmax(dim=-1) * mask) @ value


def polarity_swapped(query, key, value, mask):
    return mt.scaled_dot_product_attention(query, key, value, ~mask)[0]


found = {}
for attention in (no_mask, after_softmax, polarity_swapped, with_fill(-1e9), structural):
    name = attention.__name__ if attention.__name__ != "attention" else "with_fill(-1e9)"
    found[name] = [change_by_padding(attention, garbage) for garbage in (0.0, 1.0, math.nan)]
    print(f"{name:18} zeros {found[name][0]:.0e}   ones {found[name][1]:.0e}", end="")
    print(f"   NaN {found[name][2]:.0e}")
assert max(found["structural"]) < 1e-6

# %% [markdown]
# Read it by columns. Zeros are the kindest padding: the swapped mask passes there, because what it
# collects from the padding is 0, and alone it sees nothing and gives 0 as well. Ones catch all of
# the first three. -1e9 passes until the padding holds NaN. Only the structural zero passes every
# column. So fill your test's padding with something that hurts. This little test is the idea behind
# `minitransformer check`, which asks any implementation many such questions (chapter 13).
#
# ## Exercises
#
# Each exercise is a cell to fill in and a cell that checks it and says what is wrong.

# %% [markdown]
# <!-- exercise: padding_mask -->

# %% [markdown]
# <!-- exercise: mean_pool -->

# %% [markdown]
# <!-- exercise: pad_batch -->

# %% [markdown]
# ## Check yourself
#
# 1. A padded key has the score 0. Why is its weight without a mask not 0?
# 2. You multiply the weights by the mask after the softmax. Which two properties do you test, and
#    which of them fails?
# 3. Why does -1e9 give equal weights in a dead row, although the scores were 1, 2, 3, 4?
# 4. All weights on padding are exactly 0, and the output is NaN. Name two possible causes.
# 5. What do you hand to `key_padding_mask` if you have an `attention_mask` of 1s and 0s?
# 6. Only the longest sentence of each batch is NaN. What do you suspect?
#
# <details>
# <summary>Answers</summary>
#
# 1. exp(0) = 1: a score of 0 is as good as any other. Only exp(-inf) is 0.
# 2. Forbidden weights are exactly 0 (holds), and the allowed ones sum to 1 (fails): the padding is
#    still in the sum that everything was divided by.
# 3. At a size of 1e9 float32 numbers are 64 apart, so 1 - 1e9 and 4 - 1e9 are the same number.
# 4. A padded value is NaN or infinite: 0 · NaN and 0 · ∞ are NaN. Or a *real* value is NaN: then
#    no mask helps.
# 5. `attention_mask == 0`, because there True means "ignore".
# 6. A swapped polarity: the longest row has no padding, so every one of its keys is ignored.
#
# </details>
