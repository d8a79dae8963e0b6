# %% [markdown]
# # 4. The encoder, and why BERT needs its mask in every layer
#
# An encoder reads a whole text at once: every token looks at every other, in both directions. The
# best known is BERT (Devlin et al. 2018, arXiv:1810.04805). A decoder writes a text and may only
# look back, so it has a mask for that (chapter 5). Does an encoder need a mask at all? "The ids
# show where the padding is", people say, and "only decoders need masks". This chapter answers by
# experiment.
#
# After this chapter you will be able to
#
# - put an encoder layer together: attention and a feed-forward, each with a residual and a norm;
# - say what a padded position holds after one layer, and why nothing there says any more that it
#   was padding;
# - predict what happens when the mask is missing in a single layer;
# - find such a bug with one comparison: a row in a batch against the same row alone.

# %%
from dataclasses import replace

import matplotlib.pyplot as plt
import torch
from matplotlib_inline.backend_inline import set_matplotlib_formats
from torch.nn import functional as F

from minitransformer import Config, EncoderOnly, mask_tokens, pad, padding_mask, record_attention
from minitransformer.checks import check_encoder

set_matplotlib_formats("png")
torch.set_num_threads(1)

# %% [markdown]
# ## A layer
#
# Two things happen in a layer of an encoder. In *attention* every token collects from the others.
# In the *feed-forward*, two linear layers with a bend between them, every token thinks over what it
# has, by itself. Each result is added to what was there (the *residual*), so that a layer changes a
# token a little instead of replacing it. Then a *norm* keeps the numbers in bounds: it brings each
# vector to mean 0 and variance 1, times a learned *gain*, plus a learned *bias* (Vaswani et al.
# 2017, section 3.1). In the package that is two lines (`rotation` and `cache` belong to chapters 10
# and 9 and are `None` here):
#
# ```python
# x = self.attention_residual(x, lambda h: self.attention(h, h, mask, rotation, cache))
# return self.feed_forward_residual(x, self.feed_forward)
# ```
#
# Only attention moves anything from one token to another. The rest, norms, feed-forwards,
# embeddings, the projection to the vocabulary, looks at one token at a time. So there is exactly
# one place where padding can get in, and that is where the mask goes. Let us see that it is so:
# change token 2, and look which positions change after each part. (`style="bert"` chooses BERT's
# kinds of parts; chapter 10 says what other kinds there are.)

# %%
torch.manual_seed(0)
config = Config(vocab_size=30, d_model=48, num_layers=4, num_heads=4, style="bert")
model = EncoderOnly(config).eval()
for name, parameter in model.named_parameters():
    if name.endswith("bias"):  # 0 at the start; in a trained model they are not
        torch.nn.init.normal_(parameter, std=0.3)
ids = torch.tensor([[5, 6, 7, 8, 9]])
changed_ids = ids.clone()
changed_ids[0, 2] = 20
attention_mask = torch.ones_like(ids)
mask = padding_mask(attention_mask)
layer = model.encoder.layers[0]
with torch.no_grad():
    x, y = (model.embedding(i, attention_mask)[0] for i in (ids, changed_ids))
    after = {
        "embedding": (x, y),
        "feed-forward": (layer.feed_forward(x), layer.feed_forward(y)),
        "attention": (layer.attention(x, x, mask), layer.attention(y, y, mask)),
    }
for name, (a, b) in after.items():
    moved = (a != b).any(dim=-1)[0].tolist()
    print(f"{name:<13} changes at", [i for i, changed in enumerate(moved) if changed])

# %% [markdown]
# ## Where did the padding go?
#
# At the input, padding is easy to see: `pad` gave it the id 0, and its embedding is all zeros (to
# which BERT's norm adds its bias). After one layer? The padded position has a residual, biases,
# norms and a feed-forward like any other. Here is the length of the vector at each position, layer
# by layer, of a row with three real tokens and three of padding. Every layer gets its mask. (A
# padded *query* sees nothing then, so it collects nothing; it holds something all the same.)

# %%
batch = pad([[5, 6, 7], [8, 9, 10, 11, 12, 13]])
mask = padding_mask(batch.attention_mask)
with torch.no_grad():
    x, _ = model.embedding(batch.input_ids, batch.attention_mask)
    lengths = [x[0].norm(dim=-1)]
    for layer in model.encoder.layers:
        x = layer(x, mask, None)
        lengths.append(x[0].norm(dim=-1))
lengths = torch.stack(lengths)
figure, axis = plt.subplots(figsize=(6.5, 2.8), layout="constrained")
image = axis.imshow(lengths, cmap="Blues", vmin=0, aspect="auto")
for i in range(len(lengths)):
    for j in range(6):
        dark = lengths[i, j] > lengths.max() / 2
        colour = "white" if dark else "black"
        axis.text(j, i, f"{lengths[i, j]:.1f}", ha="center", va="center", fontsize=8, color=colour)
names = ["embedding", *(f"layer {i}" for i in range(4))]
axis.set_yticks(range(5), names)
axis.set_xticks(range(6), ["token", "token", "token", "pad", "pad", "pad"])
axis.set_title("Length of the vector at each position")
plt.show()

# %% [markdown]
# After the first layer padding is as long as a token: the norm gives every vector a length of about
# √48 ≈ 6.9, the root of the width. What stands there is made of biases and of what the feed-forward
# does with them. Nothing marks it as padding, such as an id that no token has or a vector of zeros.
# What does the next layer make of it, if nobody gives it the mask?

# %%
with torch.no_grad(), record_attention(model) as maps:
    x, _ = model.embedding(batch.input_ids, batch.attention_mask)
    x = model.encoder.layers[0](x, mask, None)
    model.encoder.layers[1](x, torch.ones_like(mask), None)
share = maps["encoder.layers.1.attention"][0, :, :3, 3:].sum(dim=-1).mean().item()
print(f"of its attention, a real token gives {share:.0%} to padding")

# %% [markdown]
# It reads padding as if somebody had written it. Could training teach the layer to know that
# vector? In part, and never exactly:
#
# - it could learn to give it low scores, but a finite score has a weight above 0 (chapter 1);
# - the vector is another one in every layer, and after every step of training;
# - as soon as one layer lets padded queries look at tokens, padding holds a mixture of them.
#
# The ids knew; **the hidden states do not say it**. So the mask has to be handed to every layer,
# from outside.

# %% [markdown]
# ## The experiment
#
# One model, four ways to run it. The mask goes to no layer; to the first only; to all but the last;
# to all. The question is the one that counts: does a row give the same in a batch as alone? The row
# is three tokens long, and gets more and more padding, as it would beside longer and longer rows.
# We measure how far a token moves, as a share of its vector's length.


# %%
@torch.no_grad()
def encode(input_ids, attention_mask, masked_layers):
    """Hidden states, with the mask in some layers only; elsewhere everything may be seen."""
    mask = padding_mask(attention_mask)
    x, _ = model.embedding(input_ids, attention_mask)
    for number, layer in enumerate(model.encoder.layers):
        x = layer(x, mask if number in masked_layers else torch.ones_like(mask), None)
    return x


CASES = {
    "no layer": (),
    "the first only": (0,),
    "all but the last": (0, 1, 2),
    "all": (0, 1, 2, 3),
}
row = [5, 6, 7]
alone = pad([row])
paddings = [0, 1, 2, 4, 8, 16, 32]
moved = {}
for name, layers in CASES.items():
    wanted = encode(alone.input_ids, alone.attention_mask, layers)[0]
    moved[name] = []
    for padding in paddings:
        batch = pad([row], max_length=3 + padding)
        found = encode(batch.input_ids, batch.attention_mask, layers)[0, :3]
        moved[name].append(
            (found - wanted).norm(dim=-1).max().item() / wanted.norm(dim=-1).max().item()
        )
    print(f"mask in {name:<17} with 32 columns of padding a token moves by {moved[name][-1]:8.2g}")
assert max(moved["all"]) < 1e-5

# %%
figure, axis = plt.subplots(figsize=(7, 3.3), layout="constrained")
for name, colour in zip(CASES, ("#7a4fa3", "#d9822b", "#5a8f3d", "#08519c"), strict=True):
    axis.plot(paddings, moved[name], "o-", color=colour, label=f"mask in {name}")
axis.set(xlabel="columns of padding", ylabel="movement / length", ylim=(-0.03, None))
axis.set_title("How far real tokens move when padding is added")
axis.legend(frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
plt.show()

# %% [markdown]
# - In **no layer**: tokens move by a quarter of their length. A mask is needed, and this is no
#   decoder.
# - In the **first only**, where the ids have just been read: no cure. From layer 1 on every token
#   reads the vectors at padding.
# - In **all but the last**: one layer without it is enough to spoil the result.
# - In **all**: nothing moves, but for rounding in the last digits.
#
# So the mask belongs in every layer of an encoder. Neither "the ids show it" nor "only decoders
# need masks" survives the measurement.
#
# Half a mask is even worse than none here. Where padded queries see nothing, their vectors stay
# unlike any token's, and the first layer without a mask mixes them in. Is that a rule? **Try it**:
# change the seed of the model, `torch.manual_seed(0)`, and run the experiment again. The order of
# the upper three lines is luck; that they are wrong is not.

# %% [markdown]
# ## Does training repair it?
#
# A model that is *trained* without a mask might learn to live with padding. It does, in a way:
# with the padding that it has seen. We train two, with and without the attention mask, on rows that
# count upwards, such as 5 6 7 8 9. As BERT does, they learn to fill in tokens that `mask_tokens`
# has hidden behind a special id. (BERT calls hiding a token *masking*, too. It has nothing to do
# with the masks of this chapter.) Then we change how much padding there is.


# %%
class Forgetful(EncoderOnly):
    """An encoder that makes no mask."""

    def encode(self, input_ids, attention_mask, segment_ids=None, at=None):
        x, rotation = self.embedding(input_ids, attention_mask, segment_ids)
        mask = torch.ones_like(padding_mask(attention_mask))
        return self.encoder(x, mask, rotation, at=at)  # `at`: the tokens that the loss asks for


MASK_ID = 1


def masked_batch(seed, length=14):
    generator = torch.Generator().manual_seed(seed)
    starts = torch.randint(2, 12, (48,), generator=generator).tolist()
    lengths = torch.randint(5, 15, (48,), generator=generator).tolist()
    rows = [list(range(start, start + n)) for start, n in zip(starts, lengths, strict=True)]
    batch = pad(rows, max_length=14)
    ids, labels = mask_tokens(
        batch.input_ids,
        batch.attention_mask,
        MASK_ID,
        config.vocab_size,
        probability=0.3,
        generator=generator,
    )
    more = (0, length - 14)  # columns of padding
    return F.pad(ids, more), F.pad(batch.attention_mask, more), F.pad(labels, more, value=-100)


def train(kind, steps=250):
    torch.manual_seed(0)
    trained = kind(config)
    optimizer = torch.optim.AdamW(trained.parameters(), lr=2e-3)
    for step in range(steps):
        loss = trained.loss(*masked_batch(step))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return trained.eval()


@torch.no_grad()
def accuracy(trained, length):
    ids, attention_mask, labels = masked_batch(10_000, length)
    counts = labels != -100
    return (trained(ids, attention_mask).argmax(-1) == labels)[counts].float().mean().item()


lengths = [14, 16, 20, 28, 40, 60]
scores = {}
for name, kind in {"with the mask": EncoderOnly, "without": Forgetful}.items():
    trained = train(kind)
    scores[name] = [accuracy(trained, length) for length in lengths]
    print(f"{name:<14}", [f"{score:.0%}" for score in scores[name]])
figure, axis = plt.subplots(figsize=(6.5, 3), layout="constrained")
for (name, values), colour in zip(scores.items(), ("#08519c", "#d9822b"), strict=True):
    axis.plot(lengths, values, "o-", color=colour, label=name)
axis.set(xlabel="length that rows are padded to (longest: 14)", ylabel="hidden tokens found")
axis.set(ylim=(0, 1.05), title="The same rows, more padding")
axis.legend(frameon=False)
plt.show()
assert len(set(scores["with the mask"])) == 1

# %% [markdown]
# At the length it was trained with, the forgetful model is as good, and nobody would notice. With
# more padding it finds fewer: 84% at length 60. The other one's line is level: the same rows, the
# same answers.

# %% [markdown]
# ## One vector for a text
#
# Encoders are often used for a single vector per text: the mean of its hidden states. There the
# mask is needed once more, after the last layer.

# %%
batch = pad([[5, 6, 7], [8, 9, 10, 11, 12, 13, 14, 15]])
with torch.no_grad():
    hidden = model.encode(batch.input_ids, batch.attention_mask)
    single = model.encode(alone.input_ids, alone.attention_mask)
real = batch.attention_mask.unsqueeze(-1)
wanted = single.mean(dim=1)[0]
counted = hidden.mean(dim=1)[0]
masked = ((hidden * real).sum(dim=1) / real.sum(dim=1))[0]
print("mean over the masked row equals the row alone:", torch.allclose(masked, wanted, atol=1e-5))
print(f"mean over all columns is {(counted.norm() / wanted.norm()).item():.3f} of its length")

# %% [markdown]
# Here `encode` has put zeros at padding, so the wrong mean has the right direction: it is the sum
# of 3 tokens, divided by 8 columns, and 3/8 = 0.375. Many libraries leave at padding what the last
# layer wrote there; then the direction is wrong as well.
#
# ## The test
#
# The comparison of a row alone with the same row in a batch is all it takes. The package's suite of
# checks does it in many ways. Here is what it says of an encoder with its mask, and of the
# forgetful one.

# %%
print(check_encoder(EncoderOnly(config).eval()).headline)
plain = replace(config, attention="reference")  # whose weights can be watched
report = check_encoder(Forgetful(plain).eval())
print(report.headline)
for bug in report.likely:
    print("likely bug:", bug)

# %% [markdown]
# Several bugs fail these checks in the same way: no mask at all, a mask in the first layer only, a
# mean over padding. The suite also watches what each softmax gives to padding, and names ours.
#
# ### Try it: which layer is it?
#
# `record_attention` shows the weights of every layer. Someone hands you a model in which one layer
# forgets its mask (we break one here). Find it without reading its code: look for weight on
# padding. Then break two layers at once. Are both found?

# %%
# The plain formula gets the mask as it is; a faster kernel gets what it has read off it.
broken = EncoderOnly(replace(config, attention="reference")).eval()
forgetful_layer = broken.encoder.layers[2].attention
forward = forgetful_layer.forward
forgetful_layer.forward = lambda x, memory, mask, *rest: forward(x, memory, mask | True, *rest)
with torch.no_grad(), record_attention(broken) as maps:
    broken(batch.input_ids, batch.attention_mask)
forbidden = ~padding_mask(batch.attention_mask)
for name, weights in maps.items():
    print(f"{name:<30} largest weight on padding {weights[forbidden.expand_as(weights)].max():.2f}")

# %% [markdown]
# ## Exercises

# %% [markdown]
# <!-- exercise: feed_forward -->

# %% [markdown]
# <!-- exercise: layer_norm -->

# %% [markdown]
# <!-- exercise: rms_norm -->

# %% [markdown]
# <!-- exercise: encoder_layer -->

# %% [markdown]
# <!-- exercise: encoder_stack -->

# %% [markdown]
# ## Check yourself
#
# 1. Which parts of an encoder move something from one token to another?
# 2. What does a padded position hold after the first layer? Does anything there say "padding"?
# 3. A model forgets its mask in one layer. Its accuracy on the test set is fine. How can that be?
# 4. Why is a batch size of 1 no test for masks?
# 5. Where, besides the layers, does an encoder's user need the attention mask?
#
# <details><summary>Answers</summary>
#
# 1. Attention alone.
# 2. A vector of biases and what the feed-forward made of them, as long as any other. No: it is
#    numbers like a token's, and only the attention mask knows.
# 3. It was trained and tested with the same kind of padding, and has learned to live with it.
# 4. One row has no padding.
# 5. In pooling, the mean over a text; and in the loss, as labels of −100 (chapter 7).
#
# </details>
