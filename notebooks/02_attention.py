# %% [markdown]
# # 2. Attention from scratch
#
# Attention is a way to look something up in a list, softly: instead of taking the one entry that
# fits, it takes a little of every entry, the more the better it fits. In this chapter you see every
# step of it, first with two loops, then with matrices, and at the end you write it yourself.
#
# *Reading takes about 15 minutes, running a few seconds on one CPU thread. You should know
# [chapter 1](01_padding.ipynb), the product of two matrices, and what a derivative is. The next
# chapter, [many heads](03_heads.ipynb), puts several attentions side by side.*
#
# After this chapter you will be able to
#
# - say what query, key and value are, why one vector has all three, and compute a weight by hand;
# - write attention with loops, and say what each step is with matrices;
# - say why scores are divided by √d, from a measurement;
# - say which inputs get a gradient, and how much.

# %%
import math

import matplotlib.pyplot as plt
import torch
from einops import einsum
from matplotlib_inline.backend_inline import set_matplotlib_formats

from minitransformer import scaled_dot_product_attention
from minitransformer.diagrams import projections_diagram

set_matplotlib_formats("png")
torch.set_num_threads(1)

# %% [markdown]
# ## A soft dictionary
#
# A Python dictionary takes a query, finds the key that is *equal* to it, and gives its value. Here
# are three keys, as arrows in the plane, each with a value. The query is an arrow, too, and equal
# to none of them. How well does it fit each? The **dot product** says: large where two arrows
# point the same way, 0 where they are at right angles, negative where they point apart.

# %%
keys = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]])
values = torch.tensor([10.0, 20.0, 30.0])
query = torch.tensor([0.8, 0.6])
scores = keys @ query
print("scores:", [round(score, 2) for score in scores.tolist()])

figure, axis = plt.subplots(figsize=(4.2, 3), layout="constrained")
for key, value, score in zip(keys, values, scores, strict=True):
    axis.annotate("", key, (0, 0), arrowprops={"arrowstyle": "->", "color": "#08519c"})
    label = f"value {value:.0f}\nscore {score:.1f}"
    axis.text(
        *(key * torch.tensor([1.3, 1.15])),
        label,
        ha="center",
        va="center",
        fontsize=8,
        color="#08519c",
    )
axis.annotate("", query, (0, 0), arrowprops={"arrowstyle": "->", "color": "#d9822b", "lw": 2})
axis.text(*(query * 1.15), "query", color="#d9822b", fontsize=9)
axis.set(xlim=(-1.8, 1.8), ylim=(-0.3, 1.4), aspect="equal", title="One query, three keys")
axis.axis("off")
plt.show()

# %% [markdown]
# From scores to shares: softmax. It takes e to the power of each score, and divides by the sum, so
# that the shares are positive and sum to 1. The result is the average of the values with these
# shares.

# %%
powers = scores.exp()
weights = powers / powers.sum()
print("weights:", [round(w, 3) for w in weights.tolist()], " sum:", weights.sum().item())
print("result: ", round((weights * values).sum().item(), 2))
torch.testing.assert_close(weights, scores.softmax(dim=0))

# %% [markdown]
# ## A weight by hand
#
# Two keys with scores 0 and 1: the weights are 1 / (1 + e) and e / (1 + e). This is worth knowing
# by heart, about 0.27 and 0.73, because it is a test that needs no computer: whenever you write an
# attention, give it such numbers.

# %%
query = torch.tensor([[1.0]])  # one query of width 1, so √d is 1
key = torch.tensor([[0.0], [1.0]])
value = torch.eye(2)  # the identity: then the output is the weights
output, weights = scaled_dot_product_attention(
    query[None, None], key[None, None], value[None, None], torch.ones(1, 1, 1, 2, dtype=torch.bool)
)
by_hand = torch.tensor([1.0, math.e]) / (1 + math.e)
print("by hand:", by_hand.tolist())
print("weights:", weights.flatten().tolist())
torch.testing.assert_close(weights.flatten(), by_hand)
assert torch.equal(output, weights)

# %% [markdown]
# ## Three projections of one vector
#
# Where do queries, keys and values come from? A token has one vector x. In *self-attention* all
# three are made of it, each by a matrix of its own that is learned: a *projection*.

# %%
projections_diagram()

# %% [markdown]
# Why not take x itself three times? What a token looks for is not what it is found by. In "the cat
# sleeps", *sleeps* looks for a subject, and *cat* is found because it is a noun; what *cat* hands
# over may be that it is singular. With x in all three places no such thing can be learned. The cell
# shows two reasons, on 200 lists of 8 random vectors: scores x · x are the same in both directions,
# and almost every token finds itself.

# %%
torch.manual_seed(0)
x = torch.randn(200, 8, 16)
W_query, W_key = torch.randn(2, 16, 16) / 4  # 4 = √16 keeps the size of the numbers
for name, queries, keys_ in (("x itself", x, x), ("projections", x @ W_query, x @ W_key)):
    scores = queries @ keys_.mT
    itself = (scores.argmax(dim=-1) == torch.arange(8)).float().mean()
    same = torch.allclose(scores, scores.mT, atol=1e-4)
    print(f"{name:<12} equal in both directions: {same!s:<6} finds itself: {itself:.0%}")

# %% [markdown]
# With random projections a token finds itself about as often as chance has it, which is once in
# eight, and the two directions have scores of their own. Training then decides what is looked for.
#
# ## With loops
#
# In a sentence every token asks, and every token is asked: there is a query, a key and a value for
# each. Here are 4 queries and 5 keys of width d = 3, two different numbers so that the axes cannot
# be confused, and a mask that says which key each query may see. Each score is divided by √d; why,
# comes below. The slowest way to write it is the clearest.

# %%
generator = torch.Generator().manual_seed(0)
Q = torch.randn(4, 3, generator=generator)
K = torch.randn(5, 3, generator=generator)
V = torch.randn(5, 3, generator=generator)
may_see = torch.tensor(
    [[1, 1, 1, 0, 0], [1, 0, 1, 0, 0], [0, 1, 1, 1, 0], [1, 1, 1, 1, 0]], dtype=torch.bool
)


def with_loops(Q, K, V, may_see):
    d = Q.shape[1]
    rows = []
    for q in range(len(Q)):
        seen = [k for k in range(len(K)) if may_see[q, k]]
        scores = [float(Q[q] @ K[k]) / math.sqrt(d) for k in seen]
        powers = [math.exp(score) for score in scores]
        shares = [power / sum(powers) for power in powers]
        rows.append(sum(share * V[k] for share, k in zip(shares, seen, strict=True)))
    return torch.stack(rows)


slow = with_loops(Q, K, V, may_see)
print(slow)

# %% [markdown]
# Masked keys do not occur in it at all. That is what every other way to write it has to achieve.
#
# ## With matrices
#
# Loops are slow, and all of this is one formula (Vaswani et al. 2017, equation 1, with the mask of
# chapter 1):
#
# $$\text{softmax}\left(\frac{QK^\top}{\sqrt d} + M\right)V$$
#
# Read it from the inside. Q is (4, 3) and Kᵀ is (3, 5), so their product is (4, 5): all dot
# products at once, a row for each query and a column for each key. Now masked keys *are* computed,
# and have to be taken out again: their scores become −∞. Softmax runs along each row, over the
# keys. The product of (4, 5) weights and (5, 3) values is (4, 3), an output for each query. Here
# are the scores, the mask, and the weights that the package's function makes of both.

# %%
output, weights = scaled_dot_product_attention(
    Q[None, None], K[None, None], V[None, None], may_see[None, None]
)
torch.testing.assert_close(output[0, 0], slow)
print("loops and the package: the same numbers")

figure, axes = plt.subplots(1, 3, figsize=(9, 2.6), layout="constrained")
pictures = {
    "scores QKᵀ/√d": Q @ K.T / math.sqrt(3),
    "mask: may attend": may_see.float(),
    "weights: each row sums to 1": weights[0, 0],
}
for axis, (name, picture) in zip(axes, pictures.items(), strict=True):
    axis.imshow(picture, cmap="Blues")
    axis.set(title=name, xlabel="keys", ylabel="queries")
    for q in range(4):
        for k in range(5):
            dark = picture[q, k] > (picture.max() + picture.min()) / 2
            color = "white" if dark else "black"
            axis.text(
                k, q, f"{picture[q, k]:.2g}", ha="center", va="center", fontsize=7, color=color
            )
plt.show()

# %% [markdown]
# ## With batch and heads
#
# Models compute this for many sentences at once, and with several attentions side by side, the
# heads of chapter 3. So there are two more axes in front, and the package always wants them:
# (batch, heads, queries, width). A matrix product `@` works on the last two axes, and repeats for
# the others. `einsum` says the same in names, and sums over those that the result does not have:
# b = batch, h = heads, q = queries, k = keys, d = width. Here are the dot products of 2 sentences
# with 4 heads.

# %%
query, key = torch.randn(2, 4, 4, 3), torch.randn(2, 4, 5, 3)
products = einsum(query, key, "b h q d, b h k d -> b h q k")
print(tuple(products.shape))
assert torch.isclose(products[1, 2, 3, 4], query[1, 2, 3] @ key[1, 2, 4])

# %% [markdown]
# Which axes of the keys must be exchanged so that `@` gives the same? The second exercise is to put
# this, −∞ in the right places, the softmax and the values together, in a few lines. The function of
# the package has a little more, for what chapter 4 shows: fully masked queries and NaN in padding.

# %% [markdown]
# ## Why √d?
#
# Take two vectors of d random numbers with mean 0 and variance 1. Their dot product is a sum of d
# terms, each with variance 1 again, so its variance is d and its spread (standard deviation) √d.
# Large scores make the softmax hard: one weight w near 1 and the rest near 0. The derivative of w
# by its own score is w (1 - w), which is then near 0: little is learned there. The cell measures
# all three, for 16 keys.

# %%
widths = [4, 16, 64, 256, 1024]
spread, largest, gradient = {}, {}, {}
for scaled in (False, True):
    for d in widths:
        q = torch.randn(200, 1, d, generator=generator)
        k = torch.randn(200, 16, d, generator=generator)
        scores = (q @ k.mT).squeeze(1) / (d**0.5 if scaled else 1)
        scores.requires_grad_()
        shares = scores.softmax(dim=-1)
        shares.amax(dim=-1).sum().backward()
        spread[scaled, d] = scores.std().item()
        largest[scaled, d] = shares.amax(dim=-1).mean().item()
        gradient[scaled, d] = scores.grad.abs().amax(dim=-1).mean().item()
figure, axes = plt.subplots(1, 3, figsize=(10, 2.9), layout="constrained")
panels = {"spread of the scores": spread, "largest weight": largest, "its gradient": gradient}
for axis, (name, numbers) in zip(axes, panels.items(), strict=True):
    for scaled, color in ((False, "#d9822b"), (True, "#08519c")):
        label = "divided by √d" if scaled else "not divided"
        axis.plot(widths, [numbers[scaled, d] for d in widths], "o-", color=color, label=label)
    axis.set(xscale="log", xlabel="width d", title=name, ylim=(0, None))
    axis.set_xticks(widths, widths)
    axis.minorticks_off()
axes[0].legend(frameon=False, fontsize=8)
plt.show()

# %% [markdown]
# Not divided, the spread grows as √d, the largest of 16 weights comes close to 1, and its gradient
# falls towards 0. Divided, all three hardly change with the width. Vaswani et al. (2017, section
# 3.2.1) write "we suspect"; here it is measured.
#
# ### Try it: the wrong d
#
# A common slip is to divide by the root of another axis: the number of keys, or the width of the
# whole model instead of that of a head. Nothing fails. What does it do to the weights?

# %%
q, k = torch.randn(1, 64, generator=generator), torch.randn(6, 64, generator=generator)
for name, divisor in {
    "√64, the width": 8.0,
    "√6, the keys": 6**0.5,
    "√512, the model": 512**0.5,
}.items():
    print(f"{name:<16}", [round(w, 3) for w in (q @ k.T / divisor).softmax(-1)[0].tolist()])

# %% [markdown]
# Dividing by too little lets one key take nearly all, by too much makes the weights more equal.
#
# ## What gets a gradient
#
# The output of query 0 depends on no other query, and only on the keys and values that it may see.
# Nothing else gets a gradient from it: the mask says where gradients flow. We take the first number
# of that output and print how long each gradient is.

# %%
Q1, K1, V1 = (x.clone().requires_grad_() for x in (Q, K, V))
output, _ = scaled_dot_product_attention(
    Q1[None, None], K1[None, None], V1[None, None], may_see[None, None]
)
output[0, 0, 0, 0].backward()
for name, x in {"queries": Q1, "keys": K1, "values": V1}.items():
    print(f"{name:<8}", [round(g, 3) for g in x.grad.norm(dim=1).tolist()])
assert (Q1.grad[1:] == 0).all()
assert (K1.grad[3:] == 0).all()
assert (V1.grad[3:] == 0).all()

# %% [markdown]
# Keys 3 and 4 are masked for query 0, and their gradient is exactly 0. The gradient of a value is
# its weight: compare the last line with the first row of weights in the picture above.

# %%
torch.testing.assert_close(V1.grad[:, 0], weights[0, 0, 0])

# %% [markdown]
# ## What attention does not know
#
# Shuffle the keys together with their values and their columns of the mask. What changes?

# %%
order = torch.tensor([3, 0, 4, 1, 2])
shuffled = with_loops(Q, K[order], V[order], may_see[:, order])
torch.testing.assert_close(shuffled, slow)
print("nothing changes")

# %% [markdown]
# Attention reads a *set*: it does not know what stands where. A model has to be told, by a vector
# for each position that is added to the token's (chapter 6) or by turning queries and keys
# according to their positions (chapter 10).

# %% [markdown]
# **To click on.** `minitransformer explore "fill=after"` opens the mask explorer on the mask
# applied after the softmax. Read the sum of each row.

# %% [markdown]
# ## Exercises

# %% [markdown]
# <!-- exercise: softmax -->

# %% [markdown]
# <!-- exercise: attention -->

# %% [markdown]
# ## Check yourself
#
# 1. Two keys have scores 3 and 4. What are the weights? (You know the numbers.)
# 2. What is the output if all scores are equal?
# 3. The weights of a row sum to 0.8. Name a cause.
# 4. Which gradient does a value get whose weight is 0.2?
# 5. Why does it not matter in which order keys and values stand?
#
# <details><summary>Answers</summary>
#
# 1. 1 / (1 + e) and e / (1 + e): only differences count.
# 2. The mean of the values that may be seen.
# 3. The mask was applied after the softmax.
# 4. 0.2 times the gradient of the output.
# 5. The output is a sum over keys, and a sum has no order.
#
# </details>
