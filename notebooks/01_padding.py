# %% [markdown]
# # 1. Why padding needs a mask
#
# A model computes with rectangles of numbers, several sentences at once (a *batch*), and sentences
# are not equally long. The short ones are filled up with padding, and from then on every part of
# the model must know what is padding and what is not. This chapter shows what that knowledge looks
# like and what happens without it.
#
# *Reading takes about 15 minutes, running a few seconds on one CPU thread. You should know Python
# and what a tensor is, torch's array of numbers. The [two questions](00_two_questions.ipynb) show
# where the course is going; the next chapter is [attention](02_attention.ipynb).*
#
# After this chapter you will be able to
#
# - turn sentences of different lengths into one tensor and read its `attention_mask`;
# - say why a masked key gets a weight of *exactly* 0, and why that needs minus infinity;
# - average the vectors of a sentence so that its padding does not count;
# - translate a mask between four conventions, and recognize a swapped one.

# %%
import math

import matplotlib.pyplot as plt
import torch
from matplotlib.patches import Rectangle
from torch import nn

import minitransformer as mt
from minitransformer.visualize import attention_figure

torch.manual_seed(0)
torch.set_num_threads(1)

# %% [markdown]
# ## Sentences have different lengths, a tensor is a rectangle
#
# Three sentences. Here each word is one *token* and has a number, its *token id*.

# %%
sentences = ["the cat sat on the mat", "dogs bark", "the birds sing"]
words = ["<pad>", *sorted({word for sentence in sentences for word in sentence.split()})]
rows = [[words.index(word) for word in sentence.split()] for sentence in sentences]
print(*rows, sep="\n")
try:
    torch.tensor(rows)
except ValueError as error:
    print("ValueError:", error)

# %% [markdown]
# A tensor has no holes, so torch refuses. The remedy is two rectangles, both as wide as the longest
# row. One holds the ids, and `pad_id`, here 0, wherever a row has no token. The other is the
# `attention_mask`: 1 where there is a token, 0 where there is padding. A row of n tokens fills the
# first n columns, if padding is on the right, or the last n, if it is on the left.

# %%
right, left = mt.pad(rows), mt.pad(rows, side="left")
print(right.input_ids)
print(right.attention_mask)


def draw_batch(axes, batch, title):
    for row, (ids, real) in enumerate(zip(batch.input_ids, batch.attention_mask, strict=True)):
        for column, (token, is_real) in enumerate(zip(ids, real, strict=True)):
            look = {"fc": "#c6dbef"} if is_real else {"fc": "#f0f0f0", "hatch": "\\\\\\"}
            axes.add_patch(Rectangle((column, row), 1, 1, ec="#a8a8a8", **look))
            text = words[token] if is_real else "0"
            axes.text(column + 0.5, row + 0.5, text, ha="center", va="center")
    axes.set(xlim=(0, 6), ylim=(3, 0), title=title, xlabel="column", ylabel="row of the batch")
    axes.set_xticks([i + 0.5 for i in range(6)], range(6))
    axes.set_yticks([i + 0.5 for i in range(3)], range(3))
    axes.tick_params(length=0)


figure, panels = plt.subplots(1, 2, figsize=(10, 2.4), layout="constrained")
draw_batch(panels[0], right, "mt.pad(rows): hatched is padding")
draw_batch(panels[1], left, 'mt.pad(rows, side="left")')
plt.show()

# %% [markdown]
# Both are in use: models that read are mostly padded on the right, and texts to be continued on the
# left, so that all of them end in the last column.
#
# **Try it.** Could you make the `attention_mask` from the ids, as `input_ids != pad_id`? Here, yes.
# But many models have no id to spare, and pad with the one that also marks the end of a text. Then
# the ids no longer tell. So count lengths, and never look at the ids:

# %%
end = words.index("sing")  # pretend that this id marks the end of a text
batch = mt.pad(rows, pad_id=end)
from_ids = (batch.input_ids != end).long()
print("from the lengths:", batch.attention_mask[2].tolist())
print("from the ids:    ", from_ids[2].tolist(), " <- a real token is lost")
assert torch.equal(batch.attention_mask, right.attention_mask)
assert not torch.equal(from_ids, batch.attention_mask)

# %% [markdown]
# ## What goes wrong without a mask
#
# In attention every token, the *query*, looks at every token, the *keys*. It gives each key a
# score, turns the scores into weights that sum to 1, and collects the keys' *values*, each times
# its weight (chapter 2 builds this step by step). For now one query is enough: three real words
# with a score of 0 each, and values of 10, 20 and 30. Then the same sentence stands in a batch with
# a longer one, so that three columns of padding follow, with scores and values of 0.

# %%
scores, values = torch.zeros(6), torch.tensor([10.0, 20.0, 30.0, 0.0, 0.0, 0.0])
alone = scores[:3].softmax(dim=-1)  # exp(score), divided by the sum of all exp(score)
no_mask = scores.softmax(dim=-1)
print("alone:  weights", alone, " output", (alone * values[:3]).sum().item())
print("padded: weights", no_mask, " output", (no_mask * values).sum().item())

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
# is the width of a key (Vaswani et al. 2017, arXiv:1706.03762, section 3.2). It works because
# `exp(-inf)` is not small. It is exactly 0. So padding is gone twice: it adds nothing to the
# output, and nothing to the sum that the others are divided by. The second half is easily
# forgotten. In the middle picture the softmax comes first, and the weights of padding are set to 0
# afterwards.

# %%
assert math.exp(float("-inf")) == 0.0
real = right.attention_mask[2].bool()
before = (scores + torch.where(real, 0.0, float("-inf"))).softmax(dim=-1)
after = scores.softmax(dim=-1) * real
assert (before[3:] == 0.0).all()  # exactly: no tolerance
assert (before * values).sum() == 20.0

ways = {"no mask": no_mask, "mask after the softmax": after, "mask before the softmax": before}
figure, panels = plt.subplots(1, 3, figsize=(10, 2.5), sharey=True, layout="constrained")
for axes, (title, weights) in zip(panels, ways.items(), strict=True):
    axes.bar(range(6), weights, color=["#4292c6"] * 3 + ["#d9822b"] * 3)
    axes.set_xticks(range(6), ["w1", "w2", "w3", "pad", "pad", "pad"])
    output = (weights * values).sum()
    axes.set_title(f"{title}\nsum {weights.sum():.2f}, output {output:.0f}", fontsize=10)
    axes.set(xlabel="key", ylim=(0, 0.4))
    axes.spines[["top", "right"]].set_visible(False)
panels[0].set_ylabel("attention weight")
plt.show()

# %% [markdown]
# In the middle the weights of padding are 0, and the answer is as wrong as on the left. So "the
# weight on padding is 0" is a necessary test and not a sufficient one: the rest must sum to 1.
#
# **Try it.** Set the first three scores, those of the words, to 5.0. Is the answer without a mask
# better or worse? Then try -5.0. The damage depends on the scores, which is why such a bug can hide
# for weeks.
#
# ## Why minus infinity
#
# A large negative number seems to do as well. The code that came with BERT (Devlin et al. 2018)
# adds -10000, many tutorials write `-1e9`. Here is the weight of padding beside one real key of
# score 0, when the padding's own score is 0, and when it happens to be high.

# %%
print("its score:         0       2e4       2e9")
for fill in (-100.0, -1e4, -1e9, float("-inf")):
    weights = [torch.tensor([0.0, s + fill]).softmax(-1)[1].item() for s in (0.0, 2e4, 2e9)]
    print(f"fill {fill:<6g}", *(f"{weight:>10.2g}" for weight in weights))
    assert (max(weights) == 0.0) == math.isinf(fill)

# %% [markdown]
# Even -100 gives a weight too small to matter, as long as padding scores like a word. But each
# finite number is outbid by some score, and then padding gets *everything*. Minus infinity stays at
# 0 throughout, since $x - \infty = -\infty$ for every finite $x$. Scores that large are rare in a
# healthy model; they are not rare in one whose training diverges.
#
# ## The same with the package
#
# `mt.padding_mask` turns the `attention_mask`, which says what each token *is*, into a `mask`,
# which says what each query *may do*. True means: may attend. It has four axes, (batch, heads,
# queries, keys). Heads are several attentions side by side (chapter 3); the 1 stands for "the same
# for all heads".

# %%
mask = mt.padding_mask(right.attention_mask)
print(mask.shape, mask.dtype)
query, key, value = torch.randn(3, 3, 1, 6, 8)  # each (batch 3, heads 1, length 6, width 8)
output, weights = mt.scaled_dot_product_attention(query, key, value, mask)
assert (weights[~mask] == 0.0).all()  # exactly zero wherever the mask is False

short = (query[2:, :, :3], key[2:, :, :3], value[2:, :, :3], mask[2:, :, :3, :3])
alone, _ = mt.scaled_dot_product_attention(*short)
difference = (output[2, :, :3] - alone[0]).abs().max()
print(f"largest difference between 'the birds sing' padded and alone: {difference:.0e}")
assert difference < 1e-6

tokens = [*sentences[2].split(), None, None, None]  # None is padding
attention_figure(weights[2], mask[2], tokens, tokens, title="Hatched: masked, exactly zero")

# %% [markdown]
# Three words see three words. Nobody sees padding, and padding sees nobody: its rows are *fully
# masked*. (Chapter 4 shows what a softmax makes of such a row.) The darker a cell, the larger the
# weight; each row of words sums to 1. If the difference above is about 1e-7 and not 0, that is
# rounding: sums of other lengths are added in another order. The zeros are exact everywhere.
#
# ## One vector for a sentence
#
# Often a whole sentence shall become a single vector, to compare it with others. The usual way is
# the mean of its tokens' vectors, *mean pooling*. A mean is a sum divided by a count, so padding
# can come in twice. Take one number per token, 10 and 20, and four columns of padding that hold 0:

# %%
numbers = torch.tensor([10.0, 20.0, 0.0, 0.0, 0.0, 0.0])
print("mean over the two tokens: ", numbers[:2].mean().item())
print("mean over all six columns:", numbers.mean().item(), " the sum is right, the count is not")
print("0 * NaN =", 0.0 * float("nan"))

# %% [markdown]
# The last line is the second danger. Padding need not hold 0. It holds whatever the layers wrote
# there, and that can be NaN, "not a number", the result of 0 / 0. By the rules of floating point
# (IEEE 754) 0 · NaN is NaN again, and a sum with one NaN in it is NaN. So what must not count is
# *replaced* by 0 before the sum, not multiplied by 0. And a row that is all padding has a count of
# 0: decide what its mean shall be before you divide.
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
# Two attentions of one library, and opposite meanings. The commonest mistake of all is to hand the
# `attention_mask` to `key_padding_mask` as it is. The shape fits and the dtype fits.

# %%
module = nn.MultiheadAttention(8, num_heads=1, batch_first=True)
x, real = torch.randn(3, 6, 8), right.attention_mask.bool()
with torch.no_grad():
    _, swapped = module(x, x, x, key_padding_mask=real)  # wrong: it should be ~real
for row, sentence in enumerate(sentences):
    on_padding = (swapped[row][real[row]] * ~real[row]).sum(dim=-1).mean()
    print(f"{sentence!r:26} share of attention that goes to padding: {on_padding:.2f}")

# %% [markdown]
# No exception, and two symptoms in one batch. The short sentences attend to *nothing but*
# padding. The longest has no padding, so all of its keys are ignored and it is NaN. If you ever see
# NaN only for the longest row of each batch, you know where to look.

# %% [markdown]
# **To click on.** `minitransformer explore "lengths=6,0,2&fill=min"` opens the mask explorer on a
# row without any token, and a very low number in place of −∞. Look at what its queries get.

# %% [markdown]
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
# 3. Why is `-1e9` not the same as `-inf`?
# 4. The mean of a sentence is NaN, though all its tokens' vectors are finite. Name two causes.
# 5. What do you hand to `key_padding_mask` if you have an `attention_mask` of 1s and 0s?
# 6. Only the longest sentence of each batch is NaN. What do you suspect?
#
# <details>
# <summary>Answers</summary>
#
# 1. exp(0) = 1: a score of 0 is as good as any other. Only exp(-inf) is 0.
# 2. Masked weights are exactly 0 (holds), and the allowed ones sum to 1 (fails): padding is still
#    in the sum that everything was divided by.
# 3. A score above 1e9 outbids it. Nothing outbids minus infinity.
# 4. Padding holds NaN or infinity, and was multiplied by 0 or summed. Or there is no token at all,
#    and 0 was divided by 0.
# 5. `attention_mask == 0`, because there True means "ignore".
# 6. A swapped polarity: the longest row has no padding, so every one of its keys is ignored.
#
# </details>
