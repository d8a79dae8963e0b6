# %% [markdown]
# # 7. Labels and -100
#
# *Reading takes about 25 minutes, running ten seconds on one CPU thread. It presumes chapters 1
# and 5.*
#
# A language model answers at every position of a batch, also at padding, also inside the question
# that a user asked. The labels say at which of these positions the answer counts. A mistake in the
# mask often shows as soon as you compare a row with itself alone. A mistake in the labels shows
# nowhere: the loss falls, and what was learned is wrong. This chapter says what a label is and
# where it stands. Chapter 7b makes labels for texts that end, for conversations and for
# micro-batches.
#
# After this chapter you will be able to
#
# - compute the cross-entropy of a small batch by hand, and say what the label -100 does to the
#   loss and to its gradient;
# - say at which position a label stands, and find labels that were shifted twice, or that ask
#   padding for the first token of a text;
# - make the labels of an encoder, which fills in hidden tokens.

# %%
import math

import matplotlib.pyplot as plt
import torch
from matplotlib_inline.backend_inline import set_matplotlib_formats
from torch.nn import functional as F

from minitransformer import (
    Config,
    DecoderOnly,
    cross_entropy,
    mask_tokens,
    next_token_labels,
    pad,
)
from minitransformer.data.collate import collate, collate_lm
from minitransformer.visualize import label_figure

set_matplotlib_formats("png")
torch.manual_seed(0)
torch.set_num_threads(1)

# %% [markdown]
# ## What a label is
#
# A model gives *logits*: for each position one number for each class of its vocabulary. The
# softmax turns them into probabilities. The *label* of a position is the number of the class that
# would have been right there. The loss at that position is $-\log p(\text{label})$: 0 if the model
# was certain and right, and large if it thought the right class unlikely. The logarithm is the
# natural one, and the unit of the loss is then called *nat*.
#
# Here is a row of four positions and a vocabulary of three classes. The probabilities are chosen so
# that you can compute everything by hand. The logits are their logarithms, because the softmax of
# $\log p$ is $p$.

# %%
probabilities = torch.tensor(
    [
        [
            [1 / 2, 1 / 4, 1 / 4],
            [1 / 4, 1 / 4, 1 / 2],
            [1 / 8, 1 / 8, 3 / 4],
            [1 / 8, 1 / 8, 3 / 4],
        ]
    ]
)
logits = probabilities.log()  # (batch, length, classes) = (1, 4, 3)
labels = torch.tensor([[0, 1, -100, -100]])  # (batch, length)

loss = cross_entropy(logits, labels)
print("the package's loss:  ", loss.item())
print("(log 2 + log 4) / 2 =", (math.log(2) + math.log(4)) / 2)
assert math.isclose(loss.item(), 1.5 * math.log(2), rel_tol=1e-6)

# %% [markdown]
# The first position gave the right class 0 a probability of 1/2: its loss is log 2. The second gave
# the right class 1 a probability of 1/4: log 4. The last two have the label **-100**, which is no
# class. It says: *predict nothing here*. They are in neither the sum nor the number that the sum is
# divided by. PyTorch has the same convention, and -100 is its default.

# %%
theirs = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=-100)
print("torch's loss:", theirs.item())
torch.testing.assert_close(loss, theirs)

# %% [markdown]
# What would happen if the two padded positions were given a class instead, say 0, the id of the
# padding? Each of them adds log 8, and the mean is over four.

# %%
counted = cross_entropy(logits, labels.masked_fill(labels == -100, 0))
print(f"padding counts:    {counted:.4f} = {counted / math.log(2):.2f} log 2")
print(f"padding is -100:   {loss:.4f} = {loss / math.log(2):.2f} log 2")

# %% [markdown]
# ### Try it: the padding id as `ignore_index`
#
# "Instead of -100 I tell the loss to ignore the padding id." Before you run the next cell, say
# which number it prints: the label 0 stands at the first position, where it is a real class.

# %%
wrong = cross_entropy(logits, labels.masked_fill(labels == -100, 0), ignore_index=0)
print(f"{wrong / math.log(2):.2f} log 2")

# %% [markdown]
# The first position is gone: it had the label 0 in earnest. A number that is also a class cannot
# mean "nothing" at the same time. This is harmless as long as the padding id is never predicted,
# and below you will meet the case where it is.

# %% [markdown]
# ## What the loss must not see
#
# Leaving a position out of the mean is not the whole promise. Its logits must also not reach the
# gradient, whatever they are, NaN included. Multiplying the losses by a mask of 0 and 1 does not
# keep that promise, because 0 · NaN is NaN. Neither does computing everything and leaving the
# result out: the forward pass is then right, and the backward pass is not.


# %%
def multiplied(logits, labels):
    """A common way to write it: all losses, times a mask of 0 and 1."""
    real = labels != -100
    losses = F.cross_entropy(logits.transpose(1, 2), labels.masked_fill(~real, 0), reduction="none")
    return (losses * real).sum() / real.sum()


def torchs(logits, labels):
    return F.cross_entropy(logits.flatten(0, 1), labels.flatten())


poisoned = logits.clone()
poisoned[:, 2:] = float("nan")  # the two positions that are ignored
for name, function in {"multiplied": multiplied, "torch": torchs, "ours": cross_entropy}.items():
    x = poisoned.clone().requires_grad_()
    value = function(x, labels)
    value.backward()
    ignored = x.grad[:, 2:].abs().max().item()
    print(f"{name:<10}  loss {value:.4f}   largest gradient at the ignored positions {ignored}")
assert ignored == 0.0

# %% [markdown]
# The function of this package leaves the other positions out *before* it computes anything. No
# number that stands there goes into any operation, so the gradient there is exactly 0.
#
# There is one more case to decide: a batch in which nothing is to be predicted at all.

# %%
nothing = torch.full((1, 4), -100)
print("torch:", torchs(logits, nothing).item(), "  ours:", cross_entropy(logits, nothing).item())
assert cross_entropy(logits, nothing) == 0.0

# %% [markdown]
# 0 divided by 0 is NaN, and one such batch is enough to fill a whole model with NaN. The sum over
# nothing is 0, and that is what you get here.
#
# What does padding in the loss do to training? We take three rows, pad them to different lengths,
# and measure the loss and the length (the norm) of the gradient: once with a class, 0, as the label
# at padding, and once with -100. The text is the same every time, so both should stay the same.

# %%
rows = [[5, 6, 7, 8, 9], [10, 11, 12], [13, 14]]
model = DecoderOnly(Config(vocab_size=20, d_model=16, num_layers=1, num_heads=2, style="gpt2"))


def loss_and_gradient(length, ignore):
    batch = pad(rows, max_length=length)
    labels = next_token_labels(batch.input_ids, batch.attention_mask)
    if not ignore:
        labels = labels.masked_fill(labels == -100, 0)  # "the next token is padding"
    model.zero_grad()
    loss = model.loss(batch.input_ids, batch.attention_mask, labels)
    loss.backward()
    norm = torch.cat([p.grad.flatten() for p in model.parameters()]).norm()
    return loss.item(), norm.item()


lengths = [5, 8, 16, 32, 64]
right = [loss_and_gradient(length, ignore=True) for length in lengths]
naive = [loss_and_gradient(length, ignore=False) for length in lengths]
figure, axes = plt.subplots(1, 2, figsize=(9, 3), layout="constrained")
for panel, which, name in zip(axes, (0, 1), ("loss", "length of the gradient"), strict=True):
    panel.plot(
        lengths, [one[which] for one in naive], "o-", color="#d9822b", label="label 0 at padding"
    )
    panel.plot(
        lengths, [one[which] for one in right], "o-", color="#08519c", label="label -100 at padding"
    )
    panel.set(xlabel="padded length", title=name)
    panel.legend(frameon=False)
figure.suptitle("The same three rows, padded to different lengths")
plt.show()
for (a, b), (c, d) in zip(right, naive, strict=True):
    print(f"-100: loss {a:.4f}, gradient {b:.4f}     0: loss {c:.4f}, gradient {d:.4f}")
assert all(abs(one[0] - right[0][0]) < 1e-5 and abs(one[1] - right[0][1]) < 1e-5 for one in right)

# %% [markdown]
# With -100 nothing moves. With a class at padding both numbers depend on how long the longest row
# of the batch is. The loss moves towards that of a padded position (here log 20: the hidden states
# of padding are zeros in this package, so all 20 classes are equally likely there), and the text
# has ever less to say in the gradient.

# %% [markdown]
# ## Where a label stands
#
# A decoder predicts the *next* token. So the label of a position is the id one place further right,
# and somebody has to do the shift. There are two conventions.
#
# - Labels stand at the position **that predicts**. This is `next_token_labels`, and what
#   `model.loss` of this package takes.
# - Labels stand at **their own token**, and the model shifts them. This is what the models of
#   Hugging Face's library take: there `labels = input_ids`, with -100 at padding, is right.
#
# `label_figure` draws both. A row has its tokens above and its labels below. Green counts, "·" is
# -100, hatched is padding.


# %%
def words_of(rows, names=str):
    """Names of ids, row by row; None where an id is -100."""
    return [[None if i == -100 else names(i) for i in row] for row in rows.tolist()]


batch = pad([[5, 6, 7, 8], [9, 10]])
ids, mask = batch.input_ids, batch.attention_mask
own = ids.masked_fill(mask == 0, -100)
label_figure(
    {
        "at the position that predicts (this package)": (
            words_of(ids),
            words_of(next_token_labels(ids, mask)),
            mask.tolist(),
        ),
        "at their own token (Hugging Face: the model shifts)": (
            words_of(ids),
            words_of(own),
            mask.tolist(),
        ),
    },
    title="The same two rows of labels, by two conventions",
)

# %% [markdown]
# In the first drawing the last token of a row has no label: nothing is known about what follows it.
# Neither has padding.
#
# `collate` keeps labels where you put them. `collate_lm` takes labels at their own tokens, as data
# sets have them, and moves them to where they are predicted. Both pad.

# %%
example = {"input_ids": [5, 6, 7, 8], "labels": [-100, -100, 7, 8]}
print("collate:   ", collate([example]).labels.tolist())
print("collate_lm:", collate_lm([example]).labels.tolist())

# %% [markdown]
# ### Try it: shift twice
#
# What does a model learn if you shift the labels, and the library shifts them again? Nothing fails:
# shapes and classes are fine. It learns to predict the token after the next one. Here token 5 is
# made to predict 7.

# %%
once = next_token_labels(ids, mask)
twice = torch.full_like(once, -100)
twice[:, :-1] = once[:, 1:]
for name, labels in {"once": once, "twice": twice}.items():
    pairs = [(a, b) for a, b in zip(ids[0].tolist(), labels[0].tolist(), strict=True) if b != -100]
    print(f"{name:<6} " + "   ".join(f"{a} predicts {b}" for a, b in pairs))
assert once[0].tolist() == [6, 7, 8, -100]
assert twice[0].tolist() == [7, 8, -100, -100]

# %% [markdown]
# ## The first token behind padding on the left
#
# The usual way to shift is one line: the label of position *t* is the id at *t + 1*, and -100 where
# position *t + 1* is padding. With padding on the right that is right. Look at what it does with
# padding on the left.


# %%
def shift(ids, attention_mask):
    labels = torch.full_like(ids, -100)
    labels[:, :-1] = ids[:, 1:].masked_fill(attention_mask[:, 1:] == 0, -100)
    return labels


rows = [[5, 6, 7, 8, 9, 10], [11, 12, 13], [14, 15]]
sides = {side: pad(rows, side=side) for side in ("right", "left")}
left = sides["left"]
label_figure(
    {
        way.__name__: (
            words_of(left.input_ids),
            words_of(way(left.input_ids, left.attention_mask)),
            left.attention_mask.tolist(),
        )
        for way in (shift, next_token_labels)
    },
    title="Padding on the left: does padding predict the first token?",
)

# %% [markdown]
# With `shift` the last padded position has a label: padding is asked for the first token of a text.
# The row without padding is not asked that. `next_token_labels` looks at both ends of the shift:
# the token that predicts must be real, too. Measured, on a model with random weights:

# %%
model = DecoderOnly(Config(vocab_size=20, d_model=16, num_layers=1, num_heads=2, style="gpt2"))
for way in (shift, next_token_labels):
    losses = {}
    for side, batch in sides.items():
        labels = way(batch.input_ids, batch.attention_mask)
        losses[side] = model.loss(batch.input_ids, batch.attention_mask, labels).item()
        print(
            f"{way.__name__:<18} {side:<6} labels {(labels != -100).sum().item()}"
            f"   loss {losses[side]:.5f}"
        )
assert abs(losses["left"] - losses["right"]) < 1e-5  # next_token_labels
extra = shift(left.input_ids, left.attention_mask) != -100
assert (extra & (left.attention_mask == 0)).sum() == 2  # two rows have padding

# %% [markdown]
# The side of the padding must not change the loss, and with `next_token_labels` it does not, up to
# rounding.

# %% [markdown]
# ## The labels of an encoder
#
# An encoder sees the whole text. To ask it for the next token would teach it nothing, as that token
# stands in its input (chapter 5). So BERT is asked for tokens that were hidden: *masked language
# modeling* (Devlin et al. 2018, arXiv:1810.04805, section 3.1). 15% of the tokens are chosen. The
# label of a chosen token is the token itself, **at its own position**, and every other label is
# -100. The labels are not shifted. What changes is the input: of the chosen tokens 80% become
# `[MASK]`, 10% become a token drawn at random, and 10% stay as they are.
#
# `mask_tokens` does that. Here half of the tokens are chosen, so that a short text shows all three
# fates.

# %%
sentences = ["the old dog sees a cat and the cat sleeps", "a bird sings all day"]
special = ["[PAD]", "[MASK]"]
vocabulary = [*special, *sorted(set(" ".join(sentences).split()))]
batch = pad([[vocabulary.index(word) for word in text.split()] for text in sentences])
arguments = {"mask_id": 1, "vocab_size": len(vocabulary), "special_ids": [0, 1]}
hidden, labels = mask_tokens(
    batch.input_ids,
    batch.attention_mask,
    **arguments,
    probability=0.5,
    generator=torch.Generator().manual_seed(29),
)
names = vocabulary.__getitem__
panel = words_of(hidden, names), words_of(labels, names), batch.attention_mask.tolist()
print(*sentences, sep="\n")
label_figure({"what the encoder reads, and its labels": panel}, title="Masked language modeling")

# %% [markdown]
# The first "the" became "a", and one "and" stayed as it was. That these have labels is no mistake.
# When the model is used, nothing is `[MASK]`. If only `[MASK]` had labels, the model would never
# have learned to say anything about an ordinary token. It cannot know which of the ordinary tokens
# were changed, so it must look at all of them.
#
# Here are the shares, counted on 200 rows of 50 tokens and 14 positions of padding:

# %%
ids = torch.randint(2, 100, (200, 64))
mask = (torch.arange(64) < 50).long().expand(200, 64)
hidden, labels = mask_tokens(ids, mask, mask_id=1, vocab_size=100, special_ids=[0, 1])
learned = labels != -100
masked, kept = hidden[learned] == 1, hidden[learned] == ids[learned]
print(f"of the real tokens {learned[mask != 0].float().mean():.1%} have a label")
print(f"of these {masked.float().mean():.1%} are [MASK], {kept.float().mean():.1%} are unchanged")
print("labels at padding:", learned[mask == 0].sum().item())
print("changes where there is no label:", (hidden != ids)[~learned].sum().item())
assert not learned[mask == 0].any()
assert torch.equal(hidden[~learned], ids[~learned])

# %% [markdown]
# **To click on.** `minitransformer explore "causal=1&labels=ids"` opens the mask explorer on
# labels that are −100 wherever the id is that of padding, with the end of sequence as padding.

# %% [markdown]
# ## Exercises

# %% [markdown]
# <!-- exercise: cross_entropy -->

# %% [markdown]
# <!-- exercise: mask_tokens -->

# %% [markdown]
# ## Check yourself
#
# 1. A row has the labels `[4, -100, 7, -100]` and the probabilities of the right classes are 1/2
#    and 1/8. What is the loss, in multiples of log 2?
# 2. Why is `(losses * (labels != -100)).sum()` not the same as leaving the positions out?
# 3. The ids of a row are `5 6 7` and its attention mask is `1 1 1`. What are its labels, by each of
#    the two conventions?
# 4. The same batch is padded on the right and on the left, and the two losses differ. What do you
#    look at?
# 5. Why are the labels of masked language modeling not shifted?
#
# <details>
# <summary>Answers</summary>
#
# 1. (1 + 3) / 2 = 2: the loss is 2 log 2. The two positions with -100 are not in the divisor.
# 2. 0 · NaN is NaN, and 0 · ∞ too. Besides, the sum must still be divided by the number of labels
#    that count, not by the number of positions.
# 3. `6 7 -100` at the position that predicts, `5 6 7` at their own token. (A model that shifts does
#    not use the 5: nothing predicts it.)
# 4. At the last padded position before each text: it may have a label.
# 5. The encoder predicts a hidden token at the position where it was hidden. What stands there does
#    not give it away.
#
# </details>
