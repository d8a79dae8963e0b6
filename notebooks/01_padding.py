# %% [markdown]
# # 1. Why padding needs a mask
#
# Sentences have different lengths. A tensor has one. So the short ones are filled up, with
# *padding*, and from then on everything that you compute contains places that mean nothing. This
# chapter is about the one thing that keeps them out: a mask that gives them a weight of **exactly
# zero**.
#
# After this chapter you will be able to
#
# - put ragged sentences into a batch, with an attention mask that knows which places are real;
# - compute softmax(QKᵀ/√d + M)V by hand, and say where exactly zero comes from;
# - say what −10⁹ in place of −∞ does in half precision, with large scores, and where nothing is
#   real;
# - read the masks of torch, Hugging Face and this package, which do not all mean the same by True.

# %%
import matplotlib.pyplot as plt
import torch
from matplotlib_inline.backend_inline import set_matplotlib_formats
from torch import nn
from torch.nn import functional as F

from minitransformer import pad, padding_mask, scaled_dot_product_attention
from minitransformer.visualize import wanted_beside_found

set_matplotlib_formats("png")
torch.set_num_threads(1)

# %% [markdown]
# ## A ragged batch
#
# Three sentences as token ids, of 4, 2 and 3 tokens. `pad` fills the short ones up with the id 0,
# and it returns a second tensor: the **attention mask**, 1 for a real token and 0 for padding.

# %%
rows = [[7, 3, 9, 4], [5, 8], [6, 2, 1]]
batch = pad(rows)
print(batch.input_ids)
print(batch.attention_mask)

# %% [markdown]
# `pad` makes the mask from the *lengths* of the rows, not from the ids. That matters: 0 may be the
# id of a real token. Here is a row in which it is.

# %%
tricky = pad([[7, 0, 9], [5]])
print("from lengths:", tricky.attention_mask.tolist())
print("from ids:    ", (tricky.input_ids != 0).long().tolist())
assert not torch.equal(tricky.attention_mask, (tricky.input_ids != 0).long())

# %% [markdown]
# ## What padding does to an average
#
# Attention is an average with weights. Take the simplest average first, with equal weights: each
# token is one number, and the number of a sentence is the mean over its tokens. What is the mean of
# the second sentence, whose tokens are 5 and 8?

# %%
values = batch.input_ids.float()
real = batch.attention_mask.float()
print("mean over all places:  ", values.mean(dim=1).tolist())
print("mean over real tokens: ", ((values * real).sum(dim=1) / real.sum(dim=1)).tolist())

# %% [markdown]
# 6.5 is right, and the first line says 3.25: half of it, because half of the row is padding. In a
# batch with a longer sentence it would be less still. The meaning of a sentence must not depend on
# its neighbours.

# %% [markdown]
# ## Attention over padding
#
# Now with weights. A *query* is compared with the *key* of every place; the scores go through a
# softmax; the result is the average of the *values* with these weights (Vaswani et al. 2017,
# arXiv:1706.03762, equation 1). One query, four places, of which the last two are padding:

# %%
scores = torch.tensor([1.0, 2.0, 0.0, 0.0])
real = torch.tensor([True, True, False, False])
weights = scores.softmax(dim=0)
print("weights:", [round(w, 3) for w in weights.tolist()])
print("share of padding:", round(weights[~real].sum().item(), 3))

# %% [markdown]
# A score of 0 is a score like any other: exp(0) = 1. Padding takes a share. What number must stand
# there for the share to be zero? softmax divides exp(score) by their sum, so we need exp(score) =
# 0, and that is so for **−∞**, and for nothing else.

# %%
for score in (-1.0, -10.0, -100.0, float("-inf")):
    print(f"exp({score:>6}) = {torch.tensor(score, dtype=torch.float64).exp().item():.3g}")
masked = scores.masked_fill(~real, float("-inf"))
weights = masked.softmax(dim=0)
print("weights:", weights.tolist())
assert (weights[~real] == 0.0).all()
assert weights.sum() == 1.0

# %% [markdown]
# By hand: e¹ and e² are 2.718 and 7.389, their sum is 10.107, so the weights are 0.269 and 0.731.
# The padding is not small, it is *gone*: also from the sum in the denominator. That is why the
# mask comes before the softmax. Written with an added matrix M, 0 where allowed and −∞ where
# forbidden, it is
#
# $$\mathrm{softmax}\!\left(\frac{QK^\top}{\sqrt d} + M\right)V$$

# %% [markdown]
# ### Try it: mask after the softmax
#
# The obvious other way is to multiply the weights by 0 and 1. The padding gets 0 then, too. What is
# lost?

# %%
after = scores.softmax(dim=0) * real
print("weights:", [round(w, 3) for w in after.tolist()], " sum:", round(after.sum().item(), 3))

# %% [markdown]
# The weights no longer sum to 1, and they depend on how much padding there is. It is the commonest
# mask bug of all.

# %% [markdown]
# ## From a row to a batch
#
# For a whole batch the mask says for each query (down) and each key (across): may this one look at
# that one? `padding_mask` makes it from the attention mask. **True means: may attend.** Its second
# axis, of size 1, is for the heads (chapter 3), which share it.

# %%
mask = padding_mask(batch.attention_mask)
print(tuple(mask.shape), mask.dtype)
figure, axes = plt.subplots(1, 3, figsize=(8, 2.8), layout="constrained")
for i, axis in enumerate(axes):
    axis.imshow(mask[i, 0], cmap="Blues", vmin=0, vmax=1.4)
    axis.set(title=f"row {i}: {len(rows[i])} real tokens", xlabel="keys", ylabel="queries")
    axis.set_xticks(range(4))
    axis.set_yticks(range(4))
figure.suptitle("The padding mask: blue may be looked at")
plt.show()

# %%
generator = torch.Generator().manual_seed(0)
query, key, value = (torch.randn(3, 1, 4, 8, generator=generator) for _ in range(3))
output, weights = scaled_dot_product_attention(query, key, value, mask)
print(weights[1, 0])
assert (weights[~mask] == 0.0).all()
wanted_beside_found(mask[1, 0], weights[1, 0])

# %% [markdown]
# Row 1 has two real tokens. Its weights are four numbers, and the rest is zero, `== 0.0`. The last
# two lines are padded *queries*: they may see nothing, and they get zeros.
#
# What does it buy? Whatever stands at padding, and however much of it there is, the real tokens get
# the same result, to the last bit.

# %%
other_key, other_value = key.clone(), value.clone()
other_key[1, :, 2:], other_value[1, :, 2:] = 1e6, -1e6
changed, _ = scaled_dot_product_attention(query, other_key, other_value, mask)
assert torch.equal(changed[1, :, :2], output[1, :, :2])
print("other padding, same output: True")

# %% [markdown]
# ## Four grades of zero
#
# Code that you will meet does not always use −∞. It matters, and here is a scale to measure it by.
#
# | grade | zero is | made by |
# |---|---|---|
# | G0 | small | an added −10 |
# | G1 | zero by underflow, for ordinary scores | an added or filled −10⁹ |
# | G2 | zero for every finite score | −∞ |
# | G3 | never multiplied at all | −∞, and the rows that nobody may see are cleaned |
#
# **G0.** A small weight is a weight.

# %%
for fill in (-10.0, -1e9, float("-inf")):
    share = scores.masked_fill(~real, fill).softmax(dim=0)[~real].sum().item()
    print(f"fill {fill:>6g}: share of padding {share:.3g}")

# %% [markdown]
# **G1 in half precision.** float16 ends at 65504. −10⁹ does not fit.

# %%
half = scores.half()
try:
    print(half.masked_fill(~real, -1e9))
except RuntimeError as error:
    print("RuntimeError:", error)
print((half.float() + torch.where(real, 0.0, -1e9)).half())

# %% [markdown]
# The first refuses, and that is luck. The second, which adds, quietly becomes −∞, and then works.
# Until a row is padding alone.
#
# **G1 with large scores.** −10⁹ is a number like any other, and a score can be smaller. It takes a
# broken or an unlucky model to get there, but then padding takes *everything*:

# %%
large = torch.tensor([-2e9, -2e9, 0.0, 0.0])
for fill in (-1e9, float("-inf")):
    print(f"fill {fill:>6g}: weights {large.masked_fill(~real, fill).softmax(dim=0).tolist()}")

# %% [markdown]
# **A row with nothing to see.** A padded query, or a row of a batch that is empty. With −10⁹ all
# scores are equal: it looks at all padding equally, and its output is an average of nonsense that
# looks like an answer. With −∞ the softmax is 0 / 0.

# %%
nothing = torch.zeros(4, dtype=torch.bool)
for fill in (-1e9, float("-inf")):
    print(f"fill {fill:>6g}: weights {scores.masked_fill(~nothing, fill).softmax(dim=0).tolist()}")
dead = torch.zeros(1, 1, 1, 4, dtype=torch.bool)
output, weights = scaled_dot_product_attention(
    torch.randn(1, 1, 1, 8), torch.randn(1, 1, 4, 8), torch.randn(1, 1, 4, 8), dead
)
print("this package: weights", weights.flatten().tolist(), "output", output.flatten().tolist()[:3])
assert (output == 0).all()

# %% [markdown]
# NaN is worse than nonsense: one NaN in a loss, and every weight of the model is NaN after the next
# step. This package gives such a query zeros, with finite gradients.
#
# **G3: NaN in padding.** Padding may hold anything, also NaN, left over from an earlier
# computation. Its weight is exactly zero. Is that enough?

# %%
print("0 * NaN =", 0.0 * float("nan"))
poisoned = value.clone()
poisoned[1, :, 2:] = float("nan")
weights = (query @ key.mT / 8**0.5).masked_fill(~mask, float("-inf")).softmax(dim=-1)
print("zero weights, NaN values:", (weights @ poisoned)[1, 0, 0, :3].tolist())
output, _ = scaled_dot_product_attention(query, key, poisoned, mask)
print("this package:            ", [round(x, 3) for x in output[1, 0, 0, :3].tolist()])
assert output.isfinite().all()

# %% [markdown]
# It is not enough: 0 · NaN is NaN. So the rows of keys and values that the mask never uses are set
# to zero *before* any product. Then what padding holds is not weighed at all.

# %% [markdown]
# ## True means what?
#
# Everybody has masks, and not everybody means the same.
#
# | | the mask says | True or 1 means |
# |---|---|---|
# | this package, `padding_mask` | query × key | may attend |
# | Hugging Face, `attention_mask` | one for each token | is real |
# | torch, `scaled_dot_product_attention(attn_mask=...)` | query × key | may attend |
# | torch, `nn.MultiheadAttention(key_padding_mask=...)` | one for each key | **ignore** |
# | an *additive* mask | query × key | 0 may attend, −∞ may not |

# %%
torchs = F.scaled_dot_product_attention(query, key, value, attn_mask=mask)
ours, _ = scaled_dot_product_attention(query, key, value, mask)
alive = batch.attention_mask[:, None, :, None] != 0
torch.testing.assert_close(torchs.masked_fill(~alive, 0), ours)

torch.manual_seed(0)
heads = nn.MultiheadAttention(8, 1, batch_first=True).eval()
x = torch.randn(3, 4, 8, generator=generator)
ignore = batch.attention_mask == 0
with torch.no_grad():
    right = heads(x, x, x, key_padding_mask=ignore)[1]
    wrong = heads(x, x, x, key_padding_mask=~ignore)[1]
print("key_padding_mask = padding:", [round(w, 2) for w in right[1, 0].tolist()])
print("key_padding_mask = real:   ", [round(w, 2) for w in wrong[1, 0].tolist()])

# %% [markdown]
# The second line looks *only* at padding. Nothing fails, and nothing warns: a mask that is the
# wrong way round is a mask. On the left what is wanted, on the right what was found:

# %%
wanted_beside_found(mask[1, 0], wrong[1])

# %% [markdown]
# ### Try it: the batch where the bug hides
#
# Take a batch in which all rows are full, and an additive mask of −10⁴ that is the wrong way
# round: it hides every key. What do you expect? And what do you see?

# %%
full = torch.ones(3, 4, dtype=torch.int64)
hides_all = torch.zeros(3, 4).masked_fill(full != 0, -1e4)
with torch.no_grad():
    print("everything hidden:", heads(x, x, x, key_padding_mask=hides_all)[1][0, 0])
    print("no mask:          ", heads(x, x, x)[1][0, 0])

# %% [markdown]
# Nearly the same. Softmax does not change when the same number is added everywhere, so keys that
# are all hidden equally are not hidden. On full batches this bug does not exist. So test masks on
# ragged batches: rows of different lengths, not sorted, one of them full and one of them short.

# %% [markdown]
# ## Exercises

# %% [markdown]
# <!-- exercise: padding_mask -->

# %% [markdown]
# <!-- exercise: mean_pool -->

# %% [markdown]
# ## Check yourself
#
# 1. Why must the mask be applied before the softmax and not after it?
# 2. A weight of 10⁻⁷ on padding: which grade is that, and when does it become a problem?
# 3. What does a query get that may look at nothing, with −10⁹, with −∞, and here?
# 4. The weight of a padded value is exactly 0 and the output is NaN. How?
# 5. You read `key_padding_mask=mask` in somebody's code. What do you look for?
#
# <details><summary>Answers</summary>
#
# 1. The softmax divides by the sum of all powers. What is masked afterwards is still in that sum,
#    so the rest does not sum to 1.
# 2. G0. Padding then changes the result a little, and more where scores are larger or padding
#    longer.
# 3. An average of all padding; NaN; zeros.
# 4. The value was NaN, and 0 · NaN is NaN. It must not be multiplied at all.
# 5. That True stands where the *padding* is: this argument means ignore.
#
# </details>
