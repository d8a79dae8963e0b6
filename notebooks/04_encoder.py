# %% [markdown]
# # 4. The encoder, and why BERT needs its mask in every layer
#
# An encoder reads a whole text at once: every token looks at every other, in both directions. The
# best known is BERT (Devlin et al. 2018, arXiv:1810.04805). A decoder writes a text and may only
# look back, so it has a mask for that (chapter 5). Does an encoder need a mask at all? "The ids
# show where the padding is", people say, and "only decoders need masks". This chapter answers by
# experiment.
#
# *Reading takes about 25 minutes, running about half a minute on one CPU thread. You should know
# [chapters 1](01_padding.ipynb), [2](02_attention.ipynb) and [3](03_heads.ipynb): padding,
# attention, heads. The next chapter, [looking only back](05_causal.ipynb), adds the other mask.*
#
# After this chapter you will be able to
#
# - put an encoder layer together: attention and a feed-forward, each with a residual and a norm;
# - say what initialization and dropout are for, and what `train()` and `eval()` change;
# - say what a padded position holds after one layer, and why nothing there says any more that it
#   was padding;
# - find a missing mask with one comparison: a row in a batch against the same row alone;
# - keep NaN out of attention, forward and backward.

# %%
from dataclasses import replace

import matplotlib.pyplot as plt
import torch
from matplotlib_inline.backend_inline import set_matplotlib_formats
from torch import nn
from torch.nn import functional as F

from minitransformer import (
    Config,
    EncoderOnly,
    mask_tokens,
    pad,
    padding_mask,
    record_attention,
    scaled_dot_product_attention,
)
from minitransformer.checks import check_encoder
from minitransformer.diagrams import encoder_layer_diagram

set_matplotlib_formats("png")
torch.set_num_threads(1)

# %% [markdown]
# ## A layer
#
# Two things happen in a layer of an encoder. In *self-attention* every token collects from the
# others. In the *feed-forward* network, two linear layers with an activation between them, every
# token is worked on by itself. The output of each is added to its input (the *residual
# connection*), so that a layer changes a token a little instead of replacing it. And a *norm* keeps
# the numbers in bounds: it brings each vector to mean 0 and variance 1, times a learned *gain*,
# plus a learned *bias* (Vaswani et al. 2017, section 3.1). The norm can stand behind the sum, as in
# 2017 and in BERT, or before the sublayer, as in GPT-2 and most models since.

# %%
encoder_layer_diagram()

# %% [markdown]
# Follow the orange line. In a pre-norm layer it runs from x to the end through two sums and nothing
# else, which makes deep models easier to train (Xiong et al. 2020, arXiv:2002.04745). The stack
# then needs one more norm at its very end.
#
# Only attention moves anything from one token to another. The rest, norms, feed-forwards,
# embeddings, the projection to the vocabulary, looks at one token at a time. So there is exactly
# one place where padding can get in, and that is where the mask goes. Let us see that it is so:
# change token 2, and look which positions change after each part. (`style="bert"` chooses BERT's
# kinds of parts; chapter 10 says what other kinds there are. `attention="reference"` is the plain
# code of chapter 2; chapter 12 has faster ways to the same numbers.)

# %%
config = Config(30, d_model=48, num_layers=4, num_heads=4, style="bert", attention="reference")


def random_model(seed):
    torch.manual_seed(seed)
    model = EncoderOnly(config).eval()
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):  # 0 at the start; in a trained model they are not
            nn.init.normal_(parameter, std=0.3)
    return model


model = random_model(seed=0)
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
# ## How weights begin, and dropout
#
# Before training, weights are random numbers. How large? A product with a 48 × 48 matrix sums 48
# terms, so with weights of variance 1 every layer makes the numbers √48 ≈ 6.9 times as large. With
# a variance of 2 / (inputs + outputs) their size stays (Glorot and Bengio 2010). That is the
# *initialization* of this package; biases begin at 0, gains at 1.

# %%
torch.manual_seed(0)
x = torch.randn(1000, 48)
starts = {"variance 1": torch.randn(48, 48), "Glorot": nn.init.xavier_uniform_(torch.empty(48, 48))}
for name, weight in starts.items():
    sizes = [(x @ weight.matrix_power(layers)).std().item() for layers in (1, 2, 4)]
    print(f"{name:<11} size after 1, 2, 4 layers:", *(f"{size:8.1f}" for size in sizes))
found = EncoderOnly(config).encoder.layers[0].feed_forward.widen.weight.var().item()
print(f"variance in the package: {found:.4f}, 2 / (48 + 192) = {2 / (48 + 192):.4f}")

# %% [markdown]
# *Dropout* is a remedy against learning by heart (Srivastava et al. 2014). In training each number
# that a sublayer adds is set to 0 with probability p, at random and anew each time, so that nothing
# can rely on any single one. The others are multiplied by 1 / (1 - p), which keeps the mean. When
# the model is *used*, nothing is dropped. A model cannot know which of both you are doing: say it,
# with `train()` or `eval()`. Forget `eval()`, and the same text gets other numbers each time.

# %%
print("ten ones, p = 0.5:", nn.Dropout(0.5)(torch.ones(10)).tolist())
dropped = EncoderOnly(replace(config, dropout=0.1))
for mode in (dropped.train, dropped.eval):
    mode()
    with torch.no_grad():
        first, second = (dropped.encode(ids, attention_mask) for _ in range(2))
    print(f"{mode.__name__ + '()':<8} the same text twice, equal: {torch.equal(first, second)}")

# %% [markdown]
# ## Where did the padding go?
#
# At the input, padding is easy to see: `pad` gave it the id 0, and its embedding is all zeros (to
# which BERT's norm adds its bias). After one layer? The padded position has a residual, biases,
# norms and a feed-forward like any other. Here is the length of the vector at each position, layer
# by layer, of a row with three real tokens and three of padding. Every layer gets its mask. (A
# padded *query* sees nothing then, so it collects nothing; it holds something all the same.) A
# *hook* is a function that torch calls whenever a layer has run; ours notes what came out.

# %%
batch = pad([[5, 6, 7], [8, 9, 10, 11, 12, 13]])
lengths = []
parts = [model.embedding.norm, *model.encoder.layers]
hooks = [
    part.register_forward_hook(lambda part, inputs, x: lengths.append(x[0].norm(dim=-1)))
    for part in parts
]
with torch.no_grad():
    model.encode(batch.input_ids, batch.attention_mask)
for hook in hooks:
    hook.remove()
lengths = torch.stack(lengths)
figure, axis = plt.subplots(figsize=(6.5, 2.8), layout="constrained")
image = axis.imshow(lengths, cmap="Blues", vmin=0, aspect="auto")
for i in range(len(lengths)):
    for j in range(6):
        dark = lengths[i, j] > lengths.max() / 2
        color = "white" if dark else "black"
        axis.text(j, i, f"{lengths[i, j]:.1f}", ha="center", va="center", fontsize=8, color=color)
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
def open_mask(layer, inputs):
    """A hook that is called before a layer: everything may be seen."""
    x, mask, *rest = inputs
    return x, torch.ones_like(mask), *rest


hook = model.encoder.layers[1].register_forward_pre_hook(open_mask)
with torch.no_grad(), record_attention(model) as maps:
    model.encode(batch.input_ids, batch.attention_mask)
hook.remove()
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
# Four ways to run one model. The mask goes to no layer; to the first only; to all but the last; to
# all. The question is the one that counts: does a row give the same in a batch as alone? The row is
# three tokens long, and gets more and more padding, as it would beside longer and longer rows. We
# measure how far its tokens move, as a share of the length of their vectors. One random model could
# mislead, so there are 20, and the picture shows their mean, with a band as wide as they differ
# (one standard deviation to each side).

# %%
CASES = {
    "no layer": (),
    "the first only": (0,),
    "all but the last": (0, 1, 2),
    "all": (0, 1, 2, 3),
}
row = [5, 6, 7]
alone = pad([row])
paddings = [0, 1, 2, 4, 8, 16, 32]


@torch.no_grad()
def movement(model, masked_layers):
    """How far the row moves with each number of padded columns."""
    layers = [x for i, x in enumerate(model.encoder.layers) if i not in masked_layers]
    hooks = [layer.register_forward_pre_hook(open_mask) for layer in layers]
    wanted = model.encode(alone.input_ids, alone.attention_mask)[0]
    moved = []
    for padding in paddings:
        batch = pad([row], max_length=3 + padding)
        found = model.encode(batch.input_ids, batch.attention_mask)[0, :3]
        moved.append(((found - wanted).norm() / wanted.norm()).item())
    for hook in hooks:
        hook.remove()
    return moved


models = [random_model(seed) for seed in range(20)]
moved = {
    name: torch.tensor([movement(model, layers) for model in models])
    for name, layers in CASES.items()
}
for name, found in moved.items():
    last = found[:, -1]  # with 32 columns of padding
    print(
        f"mask in {name:<17} mean {last.mean():7.2g}, from {last.min():7.2g} to {last.max():7.2g}"
    )
    assert last.max() < 1e-5 if name == "all" else last.min() > 0.1

# %%
figure, axis = plt.subplots(figsize=(7, 3.3), layout="constrained")
for (name, found), color in zip(
    moved.items(), ("#7a4fa3", "#d9822b", "#5a8f3d", "#08519c"), strict=True
):
    mean, spread = found.mean(dim=0), found.std(dim=0)
    axis.plot(paddings, mean, "o-", color=color, label=f"mask in {name}")
    axis.fill_between(paddings, mean - spread, mean + spread, color=color, alpha=0.1, lw=0)
axis.set(xlabel="columns of padding", ylabel="movement / length", ylim=(-0.03, None))
axis.set_title("How far real tokens move when padding is added: 20 models")
axis.legend(frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
plt.show()

# %% [markdown]
# - In **no layer**: tokens move by more than a third of their length. A mask is needed, and this is
#   no decoder.
# - In the **first only**, where the ids have just been read: no cure. From layer 1 on every token
#   reads the vectors at padding.
# - In **all but the last**: one layer without it is enough to spoil the result.
# - In **all**: nothing moves, but for rounding in the last digits.
#
# Every one of the 20 models agrees on what is right and what is wrong. On the order of the three
# wrong ways they do not: the bands overlap, so which is the worst is luck.
#
# So the mask belongs in every layer of an encoder. Neither "the ids show it" nor "only decoders
# need masks" survives the measurement.

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
for (name, values), color in zip(scores.items(), ("#08519c", "#d9822b"), strict=True):
    axis.plot(lengths, values, "o-", color=color, label=name)
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
# ## Fully masked rows, and NaN
#
# One thing is left. A padded query may see *no* key: its row of the mask is False throughout, it is
# *fully masked*. What does a softmax make of four masked scores?

# %%
scores, nothing = torch.tensor([1.0, 2.0, 3.0, 4.0]), torch.zeros(4, dtype=torch.bool)
inputs = (torch.ones(1, 1, 1, 1), scores.view(1, 1, 4, 1), torch.ones(1, 1, 4, 1))
ours = scaled_dot_product_attention(*inputs, nothing.view(1, 1, 1, 4))[1].flatten()
print("fill -1e9:", (scores - 1e9).softmax(dim=-1).tolist())
print("fill -inf:", (scores - float("inf")).softmax(dim=-1).tolist())
print("ours:     ", ours.tolist())
assert (ours == 0.0).all()

# %% [markdown]
# With -1e9 the query attends to everything it should not see, with equal weights: float32 numbers
# of this size are 64 apart, so that the scores 1, 2, 3, 4 are lost. With -∞ it is 0 / 0, NaN. Ours
# gives zeros: nothing seen, nothing collected.
#
# NaN looks like the smaller evil, because at least you see it. But it travels. The loss below reads
# row 0 only, which is sound; row 1 is fully masked. Both share the parameter `w`.

# %%
w = torch.ones(1, requires_grad=True)
values, scores = w * torch.tensor([10.0, 20.0]), torch.tensor([[1.0, 2.0], [3.0, 4.0]])
row_mask = torch.tensor([[True, True], [False, False]])
weights = scores.masked_fill(~row_mask, float("-inf")).softmax(dim=-1)
loss = (weights @ values)[0]  # row 1 is not even read
loss.backward()
print("loss", loss.item(), "  gradient of w:", w.grad.item())
assert loss.isfinite()
assert w.grad.isnan()

# %% [markdown]
# The loss is a number and the gradient is NaN: one step of training, and `w` is NaN for good. Row 1
# is not read, so in the backward pass its gradient is 0. But there this 0 is multiplied by weights
# that are NaN, and 0 · NaN is NaN (chapter 1). To replace NaN in the *output* would come too late.
#
# The same rule makes NaN in padding dangerous when its weight is exactly 0: a weight *multiplies*
# its value. In this cell the second key is masked, and its value is NaN. Right is 1.

# %%
mask = torch.tensor([True, False]).view(1, 1, 1, 2)
value = torch.tensor([1.0, float("nan")]).view(1, 1, 2, 1)
query, key = torch.ones(1, 1, 1, 1), torch.zeros(1, 1, 2, 1)
weights = torch.zeros(1, 2).masked_fill(~mask[0, 0], float("-inf")).softmax(dim=-1)
print("weights", weights.tolist(), " plain output", (weights @ value[0, 0]).item())
print("ours  ", scaled_dot_product_attention(query, key, value, mask)[0].item())
assert scaled_dot_product_attention(query, key, value, mask)[0].item() == 1.0

# %% [markdown]
# Only what is never multiplied is really absent. So before any product, whatever the mask never
# uses has to be replaced by 0: keys and values that no query may see, and queries that may see no
# key. And a fully masked row needs finite scores on its way through the softmax, and weights of 0
# behind it. The last exercise is to write an attention that does this. With the grades from chapter
# 1 there are four, each surviving one trouble more: a small weight, 0 by a large number, 0 by −∞,
# and never multiplied. ([Two questions](00_two_questions.ipynb), A4, tries all four.)
#
# ## The test
#
# The comparison of a row alone with the same row in a batch is all it takes. The package's suite of
# checks does it in many ways. Here is what it says of an encoder with its mask, and of the
# forgetful one.

# %%
print(check_encoder(EncoderOnly(config).eval()).headline)
report = check_encoder(Forgetful(config).eval())
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
broken = random_model(seed=1)
broken.encoder.layers[2].register_forward_pre_hook(open_mask)
with torch.no_grad(), record_attention(broken) as maps:
    broken(batch.input_ids, batch.attention_mask)
masked = ~padding_mask(batch.attention_mask)
for name, weights in maps.items():
    print(f"{name:<30} largest weight on padding {weights[masked.expand_as(weights)].max():.2f}")

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
# <!-- exercise: nan_safe_attention -->

# %% [markdown]
# ## Check yourself
#
# 1. Which parts of an encoder move something from one token to another?
# 2. What does a padded position hold after the first layer? Does anything there say "padding"?
# 3. A model forgets its mask in one layer. Its accuracy on the test set is fine. How can that be?
# 4. Why is a batch size of 1 no test for masks?
# 5. Where, besides the layers, does an encoder's user need the attention mask?
# 6. The loss is finite, and a gradient is NaN. Which row of the mask do you look for?
# 7. The same text gets other numbers each time. What did you forget?
#
# <details><summary>Answers</summary>
#
# 1. Attention alone.
# 2. A vector of biases and what the feed-forward made of them, as long as any other. No: it is
#    numbers like a token's, and only the attention mask knows.
# 3. It was trained and tested with the same kind of padding, and has learned to live with it.
# 4. One row has no padding.
# 5. In pooling, the mean over a text; and in the loss, as labels of −100 (chapter 7).
# 6. A row that is False throughout: its softmax is 0 / 0, and the backward pass multiplies by it.
# 7. `model.eval()`: dropout is still on.
#
# </details>
