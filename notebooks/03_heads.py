# %% [markdown]
# # 3. Many heads
#
# One attention makes one average. A token that needs two things at once, say its verb and the
# number before it, would get a mixture of both. So the width is cut into *heads*: several small
# attentions side by side, each with its own queries, keys and values, and its own idea of whom to
# look at.
#
# *Reading takes about 15 minutes, running about half a minute on one CPU thread. You should know
# [chapters 1](01_padding.ipynb) and [2](02_attention.ipynb): padding, and attention. The next
# chapter, [the encoder](04_encoder.ipynb), builds a layer around it.*
#
# After this chapter you will be able to
#
# - split a tensor into heads and merge it again, and recognize the split that has the right shape
#   and the wrong numbers;
# - say what grouped-query heads save, with numbers;
# - record what every head looks at, and draw it so that the picture tells the truth;
# - switch a head off, and measure whether it mattered.

# %%
import matplotlib.pyplot as plt
import torch
from einops import rearrange
from IPython.display import display
from matplotlib_inline.backend_inline import set_matplotlib_formats

from minitransformer import (
    Config,
    DecoderOnly,
    MultiHeadAttention,
    causal_mask,
    next_token_labels,
    pad,
    padding_mask,
    record_attention,
    scaled_dot_product_attention,
    visualize,
)
from minitransformer.cache import Cache

set_matplotlib_formats("png")
torch.set_num_threads(1)

# %% [markdown]
# ## Splitting
#
# A token is a vector of width 6. Two heads get three numbers each: head 0 the first three, head 1
# the last three. The heads then get an axis of their own, *in front of* the tokens: for a head, the
# tokens are a list as before, only narrower.

# %%
x = torch.tensor([[[0, 1, 2, 3, 4, 5], [10, 11, 12, 13, 14, 15]]])  # (batch, tokens, heads * width)
heads = torch.stack((x[..., :3], x[..., 3:]), dim=1)  # (batch, heads, tokens, width)
print("head 0:", heads[0, 0].tolist())
print("head 1:", heads[0, 1].tolist())
assert torch.equal(torch.cat((heads[:, 0], heads[:, 1]), dim=-1), x)  # and back

# %% [markdown]
# For any number of heads, einops' `rearrange` says it in a pattern. The names are free; parentheses
# take an axis apart, or put two together. Here is the vector of one token, as *(h d)*, heads and
# width. The first exercise has two more axes, batch and tokens:

# %%
print(rearrange(x[0, 0], "(h d) -> h d", h=2).tolist())

# %% [markdown]
# ### Try it: the right shape, the wrong numbers
#
# `view` can make the same shape in one step. Before you run this: what stands in head 0 then?

# %%
wrong = x.view(1, 2, 2, 3)
print("shape:", tuple(wrong.shape), "as wanted:", tuple(heads.shape))
print("head 0:", wrong[0, 0].tolist())
print("head 1:", wrong[0, 1].tolist())
assert wrong.shape == heads.shape
assert not torch.equal(wrong, heads)

# %% [markdown]
# Head 0 got the whole first token, cut in two, as if it were two tokens. Nothing fails, and a
# model trains with it, badly: what it calls a position is no position, and the mask hides the
# wrong things. An einops pattern says in words which axis goes where; that is why this package uses
# them.

# %% [markdown]
# ## MultiHeadAttention
#
# Four linear layers (a matrix and a vector to add, both learned): to queries, to keys, to values,
# and, once the heads are merged again, back. In between is the function of chapter 2, which has an
# axis for the heads. The package's module takes who asks, who is read, and the mask: x, x, mask.
# Let us take out one of its three heads, number 1, which owns the numbers 4 to 7 of each
# projection, and compute it alone. The last layer, which mixes the heads, is set to the identity.

# %%
torch.manual_seed(0)
module = MultiHeadAttention(d_model=12, num_heads=3)
torch.nn.init.eye_(module.output.weight)
torch.nn.init.zeros_(module.output.bias)
x = torch.randn(2, 5, 12)
attention_mask = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]])
mask = padding_mask(attention_mask)

projections = (module.query, module.key, module.value)
query, key, value = (linear(x)[:, None, :, 4:8] for linear in projections)
one, _ = scaled_dot_product_attention(query, key, value, mask)
together = module(x, x, mask)
torch.testing.assert_close(together[:, :, 4:8], one[:, 0])
print("one head:", tuple(one.shape), " all, merged:", tuple(together.shape))

# %% [markdown]
# Head by head, then side by side: that is all that "multi-head" means. All heads share one mask, so
# its axis for the heads is 1.

# %% [markdown]
# ## Fewer key heads
#
# When text is generated, the keys and values of everything read so far are kept (chapter 9). With
# many heads that is a lot. *Grouped-query* attention (Ainslie et al. 2023, arXiv:2305.13245) lets
# several neighboring query heads share the keys and values of one head, a "key head" for short.
# The extreme is a single one for all (Shazeer 2019, arXiv:1911.02150).

# %%
print(f"{'key heads':>9} {'parameters':>11} {'cache, bytes per token and layer':>34}")
sizes = {}
for num_kv_heads in (8, 4, 2, 1):
    grouped = MultiHeadAttention(256, num_heads=8, num_kv_heads=num_kv_heads)
    parameters = sum(p.numel() for p in grouped.parameters())
    cache, text = Cache(), torch.randn(1, 10, 256)
    with torch.no_grad():
        grouped(text, text, causal_mask(10), cache=cache)  # each sees itself and those before
    kept = sum(x.nbytes for x in cache[grouped]) // 10
    sizes[num_kv_heads] = parameters, kept
    print(f"{num_kv_heads:>9} {parameters:>11,} {kept:>34,}")
assert sizes[1][1] * 8 == sizes[8][1]

# %% [markdown]
# The cache shrinks with the number of key heads. What it costs in quality has to be measured on the
# task; Llama 2 70B and TinyLlama use it.

# %% [markdown]
# ## What heads look at
#
# Let us train something in which heads have different things to do. A row is a list of names with
# numbers, such as `a 3 b 7 c 1`, and then one of the names is asked again: `? b`, and the answer
# is its number, `7`. To answer, a model has to find the name in the list, and then take *what
# follows it*. The model has two layers of four heads and sees only what stands before (chapters 5
# and 10 explain it). A label of -100 means that this token does not count (chapter 7).

# %%
NAMES = ["<pad>", *"abcdefgh", *"0123456789", "?"]
IDS = {name: i for i, name in enumerate(NAMES)}


def questions(seed, count=64):
    generator = torch.Generator().manual_seed(seed)
    rows = []
    for _ in range(count):
        pairs = int(torch.randint(2, 7, (), generator=generator))
        letters = torch.randperm(8, generator=generator)[:pairs] + 1
        digits = torch.randint(9, 19, (pairs,), generator=generator)
        asked = int(torch.randint(0, pairs, (), generator=generator))
        listed = torch.stack((letters, digits), dim=1).flatten().tolist()
        rows.append([*listed, IDS["?"], int(letters[asked]), int(digits[asked])])
    return rows


def batch_of(rows):
    batch = pad(rows)
    labels = next_token_labels(batch.input_ids, batch.attention_mask)
    answer = torch.full_like(labels, -100)  # only the last token can be known
    for i, row in enumerate(rows):
        answer[i, len(row) - 2] = labels[i, len(row) - 2]
    return batch, answer


torch.manual_seed(0)
config = Config(vocab_size=len(NAMES), d_model=64, num_layers=2, num_heads=4, style="llama")
model = DecoderOnly(config)
optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
for step in range(700):
    batch, labels = batch_of(questions(step))
    loss = model.loss(batch.input_ids, batch.attention_mask, labels)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
model.eval()
print(" ".join(NAMES[i] for i in questions(1)[0]), f"   loss at the end {loss.item():.3f}")


@torch.no_grad()
def accuracy():
    batch, labels = batch_of(questions(10_000, count=300))
    counts = labels != -100
    predicted = model(batch.input_ids, batch.attention_mask).argmax(-1)
    return (predicted == labels)[counts].float().mean().item()


print(f"answers right: {accuracy():.0%}")
assert accuracy() > 0.9

# %% [markdown]
# `record_attention` collects the weights of every layer while the `with` block runs. It changes
# nothing in the model: each layer has a named place, a *tap*, through which the weights pass.

# %%
rows = questions(10_000, count=40)
row = next(row for row in rows if len(row) == 11)[:-1]
longer = next(row for row in rows if len(row) == 15)[:-1]
batch = pad([row, longer])
with torch.no_grad(), record_attention(model) as maps:
    model(batch.input_ids, batch.attention_mask)
mask = padding_mask(batch.attention_mask) & causal_mask(batch.input_ids.shape[1])
tokens = [NAMES[i] if i else None for i in batch.input_ids[0].tolist()]
for number, weights in enumerate(maps.values()):
    title = f"layer {number}"
    display(visualize.attention_figure(weights[0], mask[0], tokens, tokens, title=title))

# %% [markdown]
# Begin with head 3 of layer 0 (on your machine it may have become another one). There the number in
# each pair looks back to the name before it, the dark cells just below the diagonal: the number
# learns *whose* number it is. Now the last row of layer 1, the query that has to answer: the asked
# name g looks at the 5 that belongs to it, in all four heads. This pair of steps, *who stood before
# me* and then *find the one like me*, was found in large language models, too, under the name of
# induction heads (Olsson et al. 2022, arXiv:2209.11895).
#
# Hatched cells are masked: padding in one way, the future in another. They are not pale, for a
# pale cell could have been chosen. Every map has the same scale, from 0 to 1, so heads can be
# compared.

# %% [markdown]
# ## Does a head matter?
#
# A picture suggests; switching off tells. We set the output of one head to zero, one at a time, and
# count the right answers.


# %%
def without_head(layer, head):
    """Zero the columns of the output projection that read this head."""
    weight = model.decoder.layers[layer].attention.output.weight
    width = weight.shape[1] // config.num_heads
    saved = weight.data.clone()
    weight.data[:, head * width : (head + 1) * width] = 0.0
    result = accuracy()
    weight.data.copy_(saved)
    return result


grid = torch.tensor([[without_head(layer, head) for head in range(4)] for layer in range(2)])
figure, axis = plt.subplots(figsize=(5, 2.4), layout="constrained")
axis.imshow(grid, cmap="Blues", vmin=0, vmax=1)
for layer in range(2):
    for head in range(4):
        share = grid[layer, head].item()
        color = "white" if share > 0.5 else "black"
        axis.text(head, layer, f"{share:.0%}", ha="center", va="center", color=color)
axis.set_xticks(range(4), [f"head {i}" for i in range(4)])
axis.set_yticks(range(2), [f"layer {i}" for i in range(2)])
axis.set_title(f"Right answers without one head (all heads: {accuracy():.0%})")
plt.show()

# %% [markdown]
# In layer 1 all four heads find the number, so any one of them can go and almost nothing happens.
# In layer 0 head 3, which you had seen in the map, is missed the most. But head 1 is missed, too.
# Would its map have told you?

# %% [markdown]
# ### Try it: averages hide
#
# Many programs draw the mean over the heads. Here it is for each layer. Which of the two steps can
# you still see?

# %%
figure, panels = plt.subplots(1, 2, figsize=(7, 3.4), layout="constrained")
for number, (axes, weights) in enumerate(zip(panels, maps.values(), strict=True)):
    mean = weights[0].mean(dim=0)
    title = f"layer {number}, mean of 4 heads"
    visualize.attention_map(axes, mean, mask[0, 0], tokens, tokens, title=title)
    axes.set_xlabel("key", fontsize=8)
    axes.set_ylabel("query", fontsize=8)
plt.show()

# %% [markdown]
# The second step survives, because all four heads of layer 1 take it. The first no longer stands
# out: a weight of 1 in one head is only 0.25 in the mean, and the other heads look elsewhere.

# %% [markdown]
# ## Exercises

# %% [markdown]
# <!-- exercise: split_heads -->

# %% [markdown]
# <!-- exercise: share_heads -->

# %% [markdown]
# <!-- exercise: multi_head_attention -->

# %% [markdown]
# <!-- exercise: attention_map -->

# %% [markdown]
# ## Check yourself
#
# 1. `x.view(batch, heads, length, width)` has the right shape. What does head 0 of it hold?
# 2. With 32 query heads and 4 key heads, which query heads read key head 1?
# 3. What shrinks with fewer key heads, and what does not?
# 4. Why is a masked cell hatched, and not white?
# 5. A head has a beautiful pattern. How do you find out whether the model uses it?
#
# <details><summary>Answers</summary>
#
# 1. The first length/heads tokens, cut into pieces.
# 2. Heads 8 to 15.
# 3. Keys, values and their projections shrink, and so the cache; queries and the output do not.
# 4. White means: allowed, and not chosen. Masked is something else.
# 5. Switch it off, and measure.
#
# </details>
