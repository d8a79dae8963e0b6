# %% [markdown]
# # Does it need a mask? Two texts, claim by claim
#
# This project began with two texts on the web. One is a course page: it pads two sentences, prints
# their attention mask, and makes labels of them (ApX Machine Learning, read in 2026). The other is
# a page of questions and answers: *why does BERT need an attention mask?*, with three answers.
# Between them they make eighteen claims. Some are true, some are loose, some are wrong, and only an
# experiment tells which.
#
# Here each claim stands in our words, with a verdict, a few lines of code that show it, and an
# `assert` that holds it. The chapters explain at length; the last column says where.
#
# *Reading takes about 15 minutes, running less than a minute on one core, and nothing is
# downloaded. You should know what a tensor is, and have met the words token, attention and softmax;
# if not, begin with [chapter 1](01_padding.ipynb) and come back.*
#
# **A. The course page**
#
# | | claim | verdict | more in |
# |---|---|---|---|
# | A1 | without a mask, padding is read as text | true, unless it lies in the future | [1], [5] |
# | A2 | the mask has a 1 or 0 per token | true at the input; inside, who sees whom | [1], [5] |
# | A3 | padding gets a large negative number, or −∞ | loose: two different things | [1] |
# | A4 | so its weight becomes exactly 0 | loose: there are four grades of zero | [1], [4] |
# | A5 | 100 % of the attention goes to the real tokens | true of real queries only | [4] |
# | A6 | so padding is as good as deleted | wrong: positions, pooling, loss, 0 · NaN | [4], [9] |
# | A7 | the mask ends in zeros | true of padding on the right only | [9] |
# | A8 | padding in the loss costs time and spoils learning | true, measured | [7] |
# | A9 | cross-entropy ignores −100 | true of PyTorch | [7] |
# | A10 | pad with `</s>`, and −100 where the id is `</s>` | wrong: it never learns to stop | [7b] |
# | A11 | padding only serves the shape of a tensor | true, and not needed at all | [8], [12] |
#
# **B. Why does BERT need an attention mask?**
#
# | | claim | verdict | more in |
# |---|---|---|---|
# | B1 | the ids already show where the padding is | loose: at the input, sometimes | [1] |
# | B2 | the mask is a matter of one library, not of BERT | wrong: Google's own code has it | [4] |
# | B3 | hidden states do not show it, so every layer needs it | true, measured | [4] |
# | B4 | it makes the interface more uniform | true, and beside the point | |
# | B5 | only decoders mask, so BERT needs none | wrong: two masks, two purposes | [4], [5] |
# | B6 | in PyTorch's encoder `mask` is optional | true; padding is another argument | [1] |
# | B7 | hide the future, add cross-attention: a decoder | true, to the last number | [6], [10] |
#
# [1]: 01_padding.ipynb
# [4]: 04_encoder.ipynb
# [5]: 05_causal.ipynb
# [6]: 06_encoder_decoder.ipynb
# [7]: 07_labels.ipynb
# [7b]: 07b_labels_in_practice.ipynb
# [8]: 08_training.ipynb
# [9]: 09_generation.ipynb
# [10]: 10_real_models.ipynb
# [12]: 12_faster.ipynb

# %%
import inspect
import itertools
import logging
import math
import re
import tempfile
import time
from importlib.util import find_spec

import matplotlib.pyplot as plt
import torch
from matplotlib.patches import Rectangle
from matplotlib_inline.backend_inline import set_matplotlib_formats
from torch import nn
from torch.nn import functional as F

from minitransformer import (
    Config,
    CrossDecoder,
    DecoderOnly,
    EncoderOnly,
    causal_mask,
    generate,
    load_pretrained,
    next_token_labels,
    pack,
    pad,
    padding_mask,
    scaled_dot_product_attention,
)
from minitransformer.visualize import attention_map

set_matplotlib_formats("png")
torch.set_num_threads(1)
BLUE, ORANGE = "#08519c", "#d9822b"

# %% [markdown]
# ## The two examples
#
# Both texts use pretrained tokenizers. We need only a few of their words, so here is a tokenizer of
# our own, called as theirs are, with the ids that theirs have for these words. `llama` is that of
# example A (TinyLlama), `bert` that of example B (bert-base-cased). You need not read it; look at
# what it prints.


# %%
class SmallTokenizer:
    """Words and pieces of words to ids, longest first; padding and truncation as usual."""

    def __init__(self, vocabulary, prefix, suffix, pad_token):
        self.vocabulary, self.prefix, self.suffix = vocabulary, prefix, suffix
        self.pad_token, self.padding_side = pad_token, "right"

    def encode(self, text):
        ids = []
        for word in re.findall(r"\w+|[^\w\s]", text):
            while word:
                piece = next(
                    word[:n] for n in range(len(word), 0, -1) if word[:n] in self.vocabulary
                )
                ids.append(self.vocabulary[piece])
                word = word[len(piece) :]
        return ids

    def __call__(self, texts, padding=None, max_length=None, truncation=False):
        rows = [self.encode(text) for text in texts]
        if truncation:
            rows = [row[: max_length - len(self.prefix + self.suffix)] for row in rows]
        rows = [[*self.prefix, *row, *self.suffix] for row in rows]
        length = max_length if padding == "max_length" else max(map(len, rows))
        pad_id, ids, mask = self.vocabulary[self.pad_token], [], []
        for row in rows:
            more = length - len(row)
            left, right = (0, more) if self.padding_side == "right" else (more, 0)
            ids.append([pad_id] * left + row + [pad_id] * right)
            mask.append([0] * left + [1] * len(row) + [0] * right)
        return {"input_ids": torch.tensor(ids), "attention_mask": torch.tensor(mask)}


words = "<s> </s> What is fine - t uning ? A short sentence . This text longer than eight tokens"
ids = "1 2 1724 338 2691 29899 29873 27964 29973 319 3273 10541 29889 910 1426 5520 1135 9475 18897"
llama = dict(zip(words.split(), map(int, ids.split()), strict=True))
llama = SmallTokenizer(llama, prefix=[1], suffix=[], pad_token="</s>")  # pad = eos, as on the page

words = "[PAD] [CLS] [SEP] This is a short sequence . rather long It at least longer than the A"
ids = "0 101 102 1188 1110 170 1603 4954 119 1897 1263 1135 1120 1655 2039 1190 1103 138"
bert = dict(zip(words.split(), map(int, ids.split()), strict=True))
bert = SmallTokenizer(bert, prefix=[101], suffix=[102], pad_token="[PAD]")

TEXTS_A = ["What is fine-tuning?", "A short sentence."]
TEXTS_B = [
    "This is a short sequence.",
    "This is a rather long sequence. It is at least longer than the sequence A.",
]
a = llama(TEXTS_A, padding="max_length", max_length=8)
b = bert(TEXTS_B)
for batch in (a, b):
    print(*batch["input_ids"].tolist(), *batch["attention_mask"].tolist(), sep="\n")
assert a["attention_mask"].tolist() == [[1] * 8, [1] * 5 + [0] * 3]
assert b["attention_mask"].tolist() == [[1] * 8 + [0] * 11, [1] * 19]

# %% [markdown]
# The ids and masks of both pages, to the last number. One experiment returns throughout: does a
# text give the same **in a batch as alone**? `movement` says how far its real tokens have moved, as
# a share of the length of their vectors. The models are small and random, with biases that are not
# zero, as those of trained models are not.


# %%
def random_model(kind, style, num_layers=2):
    torch.manual_seed(0)
    model = kind(Config(32_000, 32, num_layers=num_layers, num_heads=4, style=style)).eval()
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            nn.init.normal_(parameter, std=0.3)
    return model


def movement(found, wanted):
    return ((found - wanted).norm() / wanted.norm()).item()


def real_row(batch, row):
    """The ids of one text, without its padding: (1, length)."""
    return batch["input_ids"][row][batch["attention_mask"][row] == 1][None]


# %% [markdown]
# ## A1. Without a mask, padding is read as text
#
# **True**, with one exception that the page does not mention.

# %%
with torch.no_grad():
    for kind, style, side in (
        (EncoderOnly, "bert", "right"),
        (DecoderOnly, "llama", "right"),
        (DecoderOnly, "llama", "left"),
    ):
        model, llama.padding_side = random_model(kind, style), side
        batch = llama(TEXTS_A, padding="max_length", max_length=8)
        real, alone = batch["attention_mask"], real_row(batch, 1)
        wanted = model.encode(alone, torch.ones_like(alone))[0]
        without, with_mask = (
            movement(model.encode(batch["input_ids"], mask)[1, real[1] == 1], wanted)
            for mask in (torch.ones_like(real), real)
        )
        print(f"{kind.__name__}, padded on the {side:<6}", end="")
        print(f"   without the mask {without:.1%}, with it {with_mask:.1%}")
        assert with_mask < 1e-5
        assert (without < 1e-5) == (kind is DecoderOnly and side == "right")
llama.padding_side = "right"

# %% [markdown]
# In an encoder, three `</s>` move a sentence of five tokens. In a decoder, tokens look back only,
# so padding on the *right* is in their future, and nothing real ever sees it. That is why example
# A, a decoder padded on the right, would even work without its mask. It is luck: once the same
# model generates, it is padded on the left (A7).
#
# ## A2. The mask has a 1 or a 0 for each token, and the shape of the ids
#
# **True at the input of the model.** Attention asks another question: which *query* may see which
# *key*? So the row of 8 becomes a table of 8 × 8, and a decoder combines it with another.

# %%
mask = padding_mask(a["attention_mask"])
print("ids", tuple(a["input_ids"].shape), " mask", tuple(a["attention_mask"].shape), end="")
print(" inside", tuple(mask.shape), "= (batch, heads, queries, keys)")
assert mask.shape == (2, 1, 8, 8)
tokens = ["<s>", "A", "short", "sentence", ".", None, None, None]
figure, panels = plt.subplots(
    1, 3, figsize=(10, 3.4), layout="constrained", gridspec_kw={"width_ratios": [0.4, 1, 1]}
)
for position, real in enumerate(a["attention_mask"][1].tolist()):
    look = {"fc": "#c6dbef"} if real else {"fc": "#f0f0f0", "hatch": "\\\\\\\\"}
    panels[0].add_patch(Rectangle((0, position), 1, 1, ec="#a8a8a8", **look))
    panels[0].text(0.5, position + 0.5, str(real), ha="center", va="center")
panels[0].set_yticks([i + 0.5 for i in range(8)], [token or "</s>" for token in tokens])
panels[0].set(xlim=(-0.1, 1.1), ylim=(8, 0), xticks=[])
panels[0].set_title("at the input", loc="left", fontsize=9)
panels[0].spines[:].set_visible(False)
panels[0].tick_params(length=0, labelsize=8)
for axes, table, title in (
    (panels[1], mask[1, 0], "in an encoder: padding"),
    (panels[2], (mask & causal_mask(8))[1, 0], "in a decoder: padding & future"),
):
    attention_map(axes, 0.3 * table, table, tokens, tokens, title=title, fontsize=8)
    axes.set(xlabel="key", ylabel="query")
plt.show()

# %% [markdown]
# Blue: this query may see this key. Hatched in gray: padding; in orange: the future. Each is one
# boolean table, and `&` combines them.
#
# ## A3. Padding gets 0 or a large negative number added, in practice −∞
#
# **Loose.** In softmax(QKᵀ/√d + M)V, a large number and −∞ are not two ways to say the same. Below
# are the weights of padding, beside one real key whose score is 0. A finite number can be outbid.

# %%
ahead = [0.0, 2e4, 2e9]  # how much higher the padding's own score is
for fill in (-1e4, -1e9, -math.inf):
    weights = [torch.tensor([0.0, score + fill]).softmax(dim=-1)[1].item() for score in ahead]
    found = "   ".join(f"{score:g}: {w:g}" for score, w in zip(ahead, weights, strict=True))
    print(f"M = {fill:<7g} weight of padding whose score is   {found}")
    assert (weights == [0.0] * 3) == math.isinf(fill)

# %% [markdown]
# The −10000 of Google's BERT is outbid by a score of 20000, −1e9 by one of 2e9: then padding gets
# *all* of the attention. No score outbids −∞. Healthy models in float32 are far from such scores;
# diverging ones, and those in float16, need not be.
#
# ## A4. The exponential approaches 0, so the weight becomes exactly 0
#
# **Loose.** What approaches 0 is not 0. With a finite number, exactness begins where the number
# format gives up, and that is different for each:

# %%
for dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
    fills = torch.arange(0, 800, 0.25, dtype=torch.float64)
    pairs = torch.stack((torch.zeros_like(fills), -fills), dim=1).to(dtype)
    zero = pairs.softmax(dim=-1)[:, 1] == 0
    print(f"{dtype!s:<15} exactly 0 from M = -{fills[zero][0]:g} on")
    assert not zero[:20].any()

# %% [markdown]
# So there are four grades of zero: a small weight; 0 by underflow; 0 by −∞; and what is never
# multiplied at all. The last differs from the third where padding holds NaN or infinity, since
# 0 · NaN is NaN. Here is what one query collects from a real key, whose value is 1, and a padded
# one. Right is 1.


# %%
def added(fill):
    def attention(query, key, value, mask):
        scores = query @ key.mT / query.shape[-1] ** 0.5 + torch.where(mask, 0.0, fill)
        return scores.softmax(dim=-1) @ value

    return attention


def ours(*inputs):
    return scaled_dot_product_attention(*inputs)[0]


def collected(attention, score, value):
    query, key = torch.ones(1, 1, 1, 1), torch.tensor([0.0, score]).view(1, 1, 2, 1)
    values, mask = torch.tensor([1.0, value]).view(1, 1, 2, 1), torch.tensor([[[[True, False]]]])
    return attention(query, key, values, mask).item()


grades = {
    "1. small: M = -10": (added(-10.0), 0),
    "2. underflow: M = -1e9": (added(-1e9), 1),
    "3. M = -inf": (added(-math.inf), 2),
    "4. never multiplied (ours)": (ours, 3),
}
print(f"{'':<28}{'ordinary':>10}{'outbid':>10}{'NaN':>10}")
for name, (attention, survives) in grades.items():
    found = [collected(attention, *case) for case in ((0.0, 5.0), (1e10, 5.0), (0.0, math.nan))]
    print(f"{name:<28}" + "".join(f"{output:10.4f}" for output in found))
    assert [output == 1.0 for output in found] == [survives > case for case in range(3)]

# %% [markdown]
# Each grade survives one trouble more than the one above. Ours puts zeros in the place of values
# that no query may use, before any product.
#
# ## A5. All of the attention goes to the real tokens
#
# **True of real queries.** A mask that hides padded *keys*, as most libraries have it, says nothing
# about padded *queries*: they attend, too. And where a query has no key at all, 0 is divided by 0.

# %%
torch.manual_seed(0)
query, key, value = torch.randn(3, 1, 1, 8, 4)
keys = a["attention_mask"][1].bool()  # five real tokens, three of padding
hide = {"padded keys": keys.expand(8, 8), "queries too": padding_mask(a["attention_mask"])[1, 0]}
shares = {}
for name, allowed in hide.items():
    weights = scaled_dot_product_attention(query, key, value, allowed[None, None])[1]
    shares[name] = weights[0, 0][:, keys].sum(dim=-1)
    print(f"{name:<12} share on real keys, by query:", *(f"{w:.2f}" for w in shares[name].tolist()))
left = keys.flip(0) & causal_mask(8)[0, 0]  # a decoder, padded on the left: row 0 sees nothing
plain = torch.zeros(8, 8).masked_fill(~left, -math.inf).softmax(dim=-1)
empty = plain.isnan().all(dim=-1)
print("plain softmax, causal, padding on the left: NaN in rows", empty.nonzero().flatten().tolist())
kept = scaled_dot_product_attention(query, key, value, left[None, None])[1]
assert empty.tolist() == [True] * 3 + [False] * 5
assert (kept[0, 0, :3] == 0).all()
assert torch.allclose(shares["padded keys"], torch.ones(8))
assert (shares["queries too"][5:] == 0).all()

# %% [markdown]
# In this package a fully masked row gets zeros instead of NaN, forward and backward.
#
# ## A6. Padding is as good as deleted
#
# **Wrong as it stands.** The mask takes padding out of one sum. A model has four more places where
# it can come back, and each has its own remedy. We measure the error on the short sentence of
# example A without the remedy and with it. The attention masks are right in all of them.


# %%
@torch.no_grad()
def hidden_states(model, ids, real, counted):
    """As `model.encode`, but positions count the 1s of `counted`, and padding keeps its values."""
    stack = model.encoder if isinstance(model, EncoderOnly) else model.decoder
    mask = padding_mask(real)
    mask = mask if isinstance(model, EncoderOnly) else mask & causal_mask(ids.shape[1])
    x, rotation = model.embedding(ids, counted)
    return stack(x, mask, rotation)


def loss_and_gradient(ids, labels):
    """As libraries do it: logits at every position, padding on the right seen by padding only."""
    decoder.zero_grad()
    logits = decoder(ids, torch.ones_like(ids))
    loss = F.cross_entropy(logits.transpose(1, 2), labels)
    loss.backward()
    return loss.item(), torch.cat([p.grad.flatten() for p in decoder.parameters()])


errors = {}
alone, all_real = real_row(a, 1), torch.ones(1, 5, dtype=torch.long)
ids, real = F.pad(alone, (3, 0), value=2), F.pad(all_real, (3, 0))  # padded on the left
decoder = random_model(DecoderOnly, "gpt2")  # with learned positions
wanted = hidden_states(decoder, alone, all_real, all_real)
errors["positions, padded on the left"] = [
    movement(hidden_states(decoder, ids, real, counted)[:, 3:], wanted)
    for counted in (torch.ones_like(real), real)  # count columns; count tokens
]

encoder = random_model(EncoderOnly, "bert")
x = hidden_states(encoder, a["input_ids"], a["attention_mask"], a["attention_mask"])[1]
wanted = hidden_states(encoder, alone, all_real, all_real)[0].mean(dim=0)
errors["pooling: the mean of a text"] = [
    movement(x.mean(0), wanted),
    movement(x[:5].mean(0), wanted),
]

right = F.pad(alone, (0, 3), value=2), F.pad(all_real, (0, 3))
labels = next_token_labels(*right)
_, wanted = loss_and_gradient(alone, next_token_labels(alone, all_real))
errors["loss: padding has labels"] = [
    movement(loss_and_gradient(right[0], every)[1], wanted)
    for every in (labels.masked_fill(labels == -100, 2), labels)
]
errors["0 · NaN in a padded value"] = [
    abs(collected(attention, 0.0, math.nan) - 1) for attention in (added(-math.inf), ours)
]
print(f"{'off by':<32}{'mask only':>12}{'and remedy':>12}")
for place, (mask_only, remedy) in errors.items():
    print(f"{place:<32}{mask_only:>12.1%}{remedy:>12.1%}")
    assert not mask_only < 0.01  # NaN is not less
    assert remedy < 1e-5

# %% [markdown]
# The remedies: count positions by tokens and not by columns; average over real tokens; give
# padding the label −100; never multiply what is masked. Only then is it deleted.
#
# ## A7. The printed mask ends in zeros
#
# **True of padding on the right.** A decoder that is to continue texts is padded on the left, so
# that the last column holds the last word of each. And the example runs by a hair: its first text
# has exactly 8 tokens. With 9 it needs `truncation=True`.

# %%
last = {}
for side in ("right", "left"):
    llama.padding_side = side
    batch = llama(TEXTS_A, padding="max_length", max_length=8)
    last[side] = batch["input_ids"][:, -1].tolist()
    print(f"{side:<6} {batch['attention_mask'][1].tolist()}   last column: {last[side]}")
llama.padding_side = "right"
assert last == {"right": [29973, 2], "left": [29973, 29889]}  # 2 is padding, 29889 the full stop

longer = [*TEXTS_A, "This text is longer than eight tokens."]
try:
    llama(longer, padding="max_length", max_length=8)
except ValueError as error:
    print("ValueError:", error)
cut = llama(longer, padding="max_length", max_length=8, truncation=True)
assert cut["input_ids"].shape == (3, 8)

# %% [markdown]
# On the right, a model that continues the text after its last column would continue `</s>`.
#
# ## A8. Padding in the loss costs time and spoils the weights
#
# **True.** The same two texts, padded to more and more columns, and a decoder that has begun to
# learn them. The direction of the gradient is compared with the right one by its cosine: 1 is the
# same, 0 has nothing to do with it. The time is that of a forward and a backward pass.

# %%
ids, real = a["input_ids"], a["attention_mask"]
optimizer = torch.optim.AdamW(decoder.parameters(), lr=3e-3)
for _ in range(20):
    optimizer.zero_grad()
    decoder.loss(ids, real, next_token_labels(ids, real)).backward()
    optimizer.step()


def milliseconds(function, *inputs):
    times = []
    for _ in range(3):
        start = time.perf_counter()
        function(*inputs)
        times.append(time.perf_counter() - start)
    return 1000 * min(times)


def package_loss(ids, real, labels):
    decoder.loss(ids, real, labels).backward()


print("          padding counts           -100             time with -100")
print("columns   loss    cosine      loss    cosine    all positions    labels only")
wanted, direction = loss_and_gradient(ids, next_token_labels(ids, real))
for length in (8, 16, 64, 256):
    batch = llama(TEXTS_A, padding="max_length", max_length=length)
    labels = next_token_labels(**batch)
    row = f"{length:>7}"
    for every in (labels.masked_fill(labels == -100, 2), labels):
        loss, gradient = loss_and_gradient(batch["input_ids"], every)
        cosine = F.cosine_similarity(gradient, direction, dim=0).item()
        row += f"{loss:>7.2f}{cosine:>10.3f}   "
        assert (abs(loss - wanted) < 1e-3 and cosine > 0.999) == (every is labels)
    everywhere = milliseconds(loss_and_gradient, batch["input_ids"], labels)
    labels_only = milliseconds(package_loss, *batch.values(), labels)
    print(f"{row}{everywhere:>14.0f} ms{labels_only:>12.0f} ms")

# %% [markdown]
# Where padding counts, the gradient turns away from what the texts have to say. −100 repairs that,
# and saves no time: the logits of all 32,000 classes have been computed by then. The package's
# `loss` computes them where there is a label, and nowhere else.
#
# ## A9. Cross-entropy ignores −100 by default
#
# **True of PyTorch**, and a convention of it: −100 is no law of nature.

# %%
print("ignore_index =", inspect.signature(F.cross_entropy).parameters["ignore_index"].default)
torch.manual_seed(0)
logits, labels = torch.randn(4, 3), torch.tensor([0, 2, -100, -100])
assert F.cross_entropy(logits, labels) == F.cross_entropy(logits[:2], labels[:2])
nothing = F.cross_entropy(logits, torch.full((4,), -100))
print("a batch in which every label is -100:", nothing.item())
assert nothing.isnan()

# %% [markdown]
# Mind the last line: with nothing to predict it is 0 / 0. (Here the package gives 0.)
#
# ## A10. Pad with the end of sequence, and put −100 where the id is that of padding
#
# **Wrong**, and it is the costliest line of the example. `</s>` is also a token, which says *the
# text ends here*. To ignore its id is to delete that label. TinyLlama's chat template ends *every
# turn* with `</s>`, and copies of its tokenizer configuration have `</s>` as padding already, so
# that the line `pad_token = eos_token` need not even be written. Labels must come from **lengths**,
# that is from the attention mask.
#
# A small conversation: the user names a number, the assistant counts up to it.

# %%
BOS, EOS, USER, ASSISTANT, ZERO = 1, 2, 3, 4, 5
chats = [
    [BOS, USER, ZERO + n, EOS, ASSISTANT, *range(ZERO + 1, ZERO + n + 1), EOS] for n in range(1, 9)
]
batch = pad(chats, pad_id=EOS)
ids, real = batch.input_ids, batch.attention_mask
from_lengths = next_token_labels(ids, real)
ways = {
    "labels from lengths": from_lengths,
    "labels from ids": from_lengths.masked_fill(from_lengths == EOS, -100),
}
writings = {}
for way, labels in ways.items():
    torch.manual_seed(0)
    counter = DecoderOnly(Config(16, 32, num_layers=2, num_heads=4, max_length=64, style="gpt2"))
    optimizer = torch.optim.AdamW(counter.parameters(), lr=5e-3)
    for _ in range(250):
        loss = counter.loss(ids, real, labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    prompts = torch.tensor([chat[:5] for chat in chats])
    rows = generate(counter.eval(), prompts, torch.ones_like(prompts), 16, eos_id=EOS)
    writings[way] = [row.tolist() for row in rows]
    stopped = sum(row[-1] == EOS for row in writings[way])
    ends = (labels == EOS).sum().item()
    print(f"{way:<20}{ends:>3} ends are learned, loss {loss.item():.3f}, ", end="")
    print(f"{stopped} of {len(rows)} answers stop")
assert writings["labels from lengths"] == [chat[5:] for chat in chats]
assert all(EOS not in row for row in writings["labels from ids"])

# %%
figure, panels = plt.subplots(1, 2, figsize=(10, 3.2), layout="constrained", sharey=True)
for axes, (way, rows) in zip(panels, writings.items(), strict=True):
    for y, row in enumerate(rows):
        for x, token in enumerate(row):
            wanted = x < len(chats[y]) - 5 and chats[y][5 + x] == token
            color = "#a1d99b" if token == EOS else "#deebf7" if wanted else "#f7c99a"
            axes.add_patch(Rectangle((x, y), 1, 1, fc=color, ec="white"))
            text = "</s>" if token == EOS else str(token - ZERO)
            axes.text(x + 0.5, y + 0.5, text, ha="center", va="center", fontsize=8)
    axes.set(xlim=(0, 16), ylim=(8, 0), xlabel="token of the answer", title=way)
    axes.set_yticks([i + 0.5 for i in range(8)], [f"count to {i}" for i in range(1, 9)])
    axes.set_xticks([])
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
plt.show()

# %% [markdown]
# Blue is right, green stops, orange should not have been written. On the left every answer is right
# and ends. On the right not one ends: 16 tokens is where *we* stopped. The losses do not tell: both
# have come down to what nobody can know, the number that the user will name. It costs ln 8 = 2.08
# in each chat, shared by its 9.5 labels on average, or by the 7.5 that are left without the ends.
#
# ## A11. Padding only serves the shape of the tensor
#
# **True**, and it can be left out altogether: write several texts in one row, number them, and let
# each see itself. The three texts of A7 fill a row of 22 without any padding.

# %%
rows = [real_row(llama([text]), 0)[0].tolist() for text in longer]
packed, padded = pack(rows, length=22), pad(rows)
print(packed.attention_mask.tolist())
for name, batch in {"padded": padded, "packed": packed}.items():
    empty = (batch.attention_mask == 0).sum()
    print(f"{name}: {empty} of {batch.input_ids.numel()} places are padding")
assert packed.attention_mask.all()
with torch.no_grad():
    states = decoder.encode(packed.input_ids, packed.attention_mask)[0]
    for number in (1, 2, 3):
        place = packed.attention_mask[0] == number
        alone = packed.input_ids[:, place]
        assert alone[0].tolist() in rows
        wanted = decoder.encode(alone, torch.ones_like(alone))[0]
        print(f"text {number}: packed and alone differ by {movement(states[place], wanted):.0e}")
        assert movement(states[place], wanted) < 1e-5

# %% [markdown]
# Each text has the very states that it has alone.
#
# ## B1. The zeros of the mask stand where the ids are 0, so the ids say it
#
# **Loose.** True of example B at the input, since `[PAD]` is 0 and no word is. In example A padding
# is `</s>`: as soon as a text holds a real one, the ids lose it. And behind the input there are no
# ids (B3).

# %%
assert torch.equal((b["input_ids"] != 0).long(), b["attention_mask"])
print("example B: ids != 0 is the attention mask")
turn = pad([[*real_row(a, 1)[0].tolist(), EOS], real_row(a, 0)[0].tolist()], pad_id=EOS)
print("a turn that ends with </s>, by lengths:", turn.attention_mask[0].tolist())
print("                            by its ids:", (turn.input_ids[0] != EOS).long().tolist())
assert not torch.equal((turn.input_ids != EOS).long(), turn.attention_mask)

# %% [markdown]
# ## B2. The mask is a matter of one library, not of the original
#
# **Wrong.** The code that Google published with BERT (github.com/google-research/bert,
# `modeling.py`) takes an `input_mask` beside the ids. `create_attention_mask_from_input_mask` makes
# of it a table of queries and keys, ones times the row, for every layer, and attention adds
# (1 − mask) · −10000 to the scores. The first of these is one product:

# %%
input_mask = b["attention_mask"]
theirs = torch.ones(2, 19, 1) * input_mask[:, None, :]  # (batch, from, to)
print("Google's table:", tuple(theirs.shape), " row 0 hides", int((theirs[0] == 0).sum()), "of 361")
real_queries = input_mask.bool()
assert torch.equal(theirs[real_queries].bool(), padding_mask(input_mask)[:, 0][real_queries])

# %% [markdown]
# For real queries it is our mask. (It lets padded queries attend, as in A5.)
#
# ## B3. Each layer returns floats that do not show padding, so every layer needs the mask
#
# **True.** First: what stands at padding, after none, one, two, ... layers? Then the experiment: a
# BERT of four layers can be given its mask in any subset of them. There are 16.

# %%
model = random_model(EncoderOnly, "bert", num_layers=4)
ids, real = b["input_ids"], b["attention_mask"]


@torch.no_grad()
def encode(ids, real, masked):
    """All hidden states of a text, layer by layer; the mask goes to the layers in `masked`."""
    x, _ = model.embedding(ids, real)
    states = [x]
    for number, layer in enumerate(model.encoder.layers, start=1):
        table = padding_mask(real)
        x = layer(x, table if number in masked else torch.ones_like(table), None)
        states.append(x)
    return states


for number, x in enumerate(encode(ids, real, {1, 2, 3, 4})):
    lengths = x[0].norm(dim=-1)
    spans = [f"{part.min():.1f} to {part.max():.1f}" for part in (lengths[:8], lengths[8:])]
    print(f"after {number} layers: vectors of tokens are {spans[0]} long, of padding {spans[1]}")

alone = real_row(b, 0)
wanted = encode(alone, torch.ones_like(alone), {1, 2, 3, 4})[-1]
moved = {}
for count in range(5):
    for masked in itertools.combinations((1, 2, 3, 4), count):
        moved[masked] = movement(encode(ids, real, masked)[-1][:1, :8], wanted)
assert [masked for masked, share in moved.items() if share < 1e-5] == [(1, 2, 3, 4)]
print(f"mask in no layer {moved[()]:.0%}, the first only {moved[(1,)]:.0%}, ", end="")
print(f"all but the last {moved[(1, 2, 3)]:.0%}, all {moved[(1, 2, 3, 4)]:.0%}")

# %%
figure, axes = plt.subplots(figsize=(10, 3.2), layout="constrained")
names = [" ".join(map(str, masked)) or "none" for masked in moved]
axes.bar(names, [100 * share for share in moved.values()], color=[ORANGE] * 15 + [BLUE])
axes.text(15, 0.5, "0", ha="center", color=BLUE)
axes.set(xlabel="layers that are given the mask", ylabel="movement, % of length")
axes.set_title("How far the short text moves beside the long one: 15 ways to forget the mask")
axes.spines[["top", "right"]].set_visible(False)
plt.show()

# %% [markdown]
# Only the last of the 16 is right. At the input padding can be seen, here even by its length: this
# package puts zeros there, and the norm adds its bias. After one layer it is as long as a token,
# and nothing in it says what it is. One layer without the mask is enough. (Which of the 15 is worst
# is luck, and changes with the seed; that all are wrong is not.)
#
# ## B4. It makes the interface more uniform
#
# **True, and beside the point.** Where no row has padding, the mask changes nothing, and one call
# serves all batches. Where one has, it is not a courtesy.

# %%
for name, texts in {"one text": TEXTS_B[:1], "equal": TEXTS_B[:1] * 2, "ragged": TEXTS_B}.items():
    batch = bert(texts)
    states = [
        encode(batch["input_ids"], batch["attention_mask"], m)[-1] for m in ((), (1, 2, 3, 4))
    ]
    kept = batch["attention_mask"] == 1
    change = movement(states[0][kept], states[1][kept])
    print(f"{name:<9} what the mask changes at real tokens: {change:.1%}")
    assert (change == 0) == (name != "ragged")

# %% [markdown]
# ## B5. Only decoders mask, so BERT needs none
#
# **Wrong.** There are two masks with two purposes. One hides the *future*, and BERT has none of it,
# since it shall see both directions. The other hides what is *not text*, and both need it. We
# change one token and look whether the others move: a later word, then a padded one.

# %%
# The short text with three paddings on each side, so that both kinds can see them.
ids, real = F.pad(alone, (3, 3)), F.pad(torch.ones_like(alone), (3, 3))
seen = {}
print(f"{'moved by ...':<12}{'a later word':>16}{'padding':>12}{'padding, without the mask':>30}")
for kind, style in ((EncoderOnly, "bert"), (DecoderOnly, "llama")):
    reader = random_model(kind, style)
    row = []
    for place, mask in ((9, real), (1, real), (1, torch.ones_like(real))):
        changed = ids.clone()
        changed[0, place] = 1897  # "rather"
        with torch.no_grad():
            before, after = (reader.encode(x, mask)[0, 4:8] for x in (ids, changed))
        row.append(not torch.equal(before, after))
    print(f"{kind.__name__:<12}{row[0]!s:>16}{row[1]!s:>12}{row[2]!s:>30}")
    seen[kind] = row
assert seen == {EncoderOnly: [True, False, True], DecoderOnly: [False, False, True]}

# %% [markdown]
# ## B6. In PyTorch's encoder the argument `mask` is optional
#
# **True, of that argument.** In `nn.TransformerEncoder`, `mask` says who sees whom, and the encoder
# of a BERT has nothing to say there. Padding goes to `src_key_padding_mask`, where True means *do
# not read this*. That one may be left out only if all texts are equally long.

# %%
torch.manual_seed(0)
embed = nn.Embedding(5000, 32)
layer = nn.TransformerEncoderLayer(32, nhead=4, dim_feedforward=64, batch_first=True)
stack = nn.TransformerEncoder(layer, num_layers=2, enable_nested_tensor=False).eval()
padding = b["attention_mask"] == 0
calls = {
    "neither": {},
    "mask: all see all": {"mask": torch.zeros(19, 19, dtype=torch.bool)},
    "src_key_padding_mask": {"src_key_padding_mask": padding},
    "... the wrong way round": {"src_key_padding_mask": ~padding},
}
with torch.no_grad():
    x = embed(b["input_ids"])
    wanted, equal = stack(x[:1, :8]), stack(x[[0, 0], :8])
    print(f"{'two texts of equal length':<26}{movement(equal[:1], wanted):8.1%}")
    assert movement(equal[:1], wanted) < 1e-5
    for name, arguments in calls.items():
        found = stack(x, **arguments)
        print(f"{name:<26}{movement(found[:1, :8], wanted):8.1%}", end="")
        print("   and the long text is NaN" if found[1].isnan().any() else "")
        assert (movement(found[:1, :8], wanted) < 1e-5) == (name == "src_key_padding_mask")

# %% [markdown]
# The last line is the commonest mistake with this argument: our `attention_mask`, 1 for a token,
# means the opposite of it (chapter 1).
#
# ## B7. BERT becomes a decoder by hiding the future and attending to an encoder
#
# **True**: `BertForMaskedLM` and `BertLMHeadModel` in Hugging Face's library. In our parts the
# first is `EncoderOnly`, the second `DecoderOnly`, or `CrossDecoder` with an encoder to attend to.
# What is different? Compare the names of their weights, and then give one's weights to the other.

# %%
config = Config(5000, 32, num_layers=2, num_heads=4, style="bert")
torch.manual_seed(0)
models = {kind: kind(config).eval() for kind in (EncoderOnly, DecoderOnly, CrossDecoder)}
weights = {
    name.replace("encoder.", "decoder."): x for name, x in models[EncoderOnly].state_dict().items()
}
print(models[DecoderOnly].load_state_dict(weights))  # strictly: none missing, none left over
extra = set(models[CrossDecoder].state_dict()) - set(weights)
print("more in CrossDecoder:", *sorted({name.split(".")[3] for name in extra}))
assert all("cross_attention" in name for name in extra)

ids, real = b["input_ids"], b["attention_mask"]
with torch.no_grad():
    x, rotation = models[EncoderOnly].embedding(ids, real)
    theirs = models[EncoderOnly].encoder(x, padding_mask(real) & causal_mask(19), rotation)
    found = models[DecoderOnly].encode(ids, real)
assert torch.equal(theirs[real == 1], found[real == 1])
print("BERT's encoder, given one more mask, computes what the decoder computes, bit for bit")

# %% [markdown]
# The whole difference is **one mask and one cross-attention**. Are these the library's models? We
# let it build all three, small and random, and load them into our parts. This cell needs
# `transformers` (`pip install -e ".[notebooks]"`); without it, it says so and nothing else is lost.

# %%
if find_spec("transformers") is None:
    print("transformers is not installed: the comparison with the library is left out")
else:
    import transformers

    logging.disable(logging.WARNING)
    transformers.utils.logging.disable_progress_bar()
    sizes = {"vocab_size": 5000, "hidden_size": 32, "num_hidden_layers": 2}
    sizes |= {"num_attention_heads": 4, "intermediate_size": 64}
    memory = torch.randn(2, 19, 32, generator=torch.Generator().manual_seed(0))  # an encoder's
    target = {"input_ids": ids.flip(0), "attention_mask": real.flip(0)}  # what the decoder reads
    for kind, settings in (
        (transformers.BertForMaskedLM, {}),
        (transformers.BertLMHeadModel, {"is_decoder": True}),
        (transformers.BertLMHeadModel, {"is_decoder": True, "add_cross_attention": True}),
    ):
        theirs = kind(transformers.BertConfig(**sizes, **settings)).eval()
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad(), tempfile.TemporaryDirectory() as folder:
            for parameter in theirs.parameters():  # biases too: a fresh model's are 0
                parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
            theirs.save_pretrained(folder)
            model = load_pretrained(folder)
            if isinstance(model, CrossDecoder):
                more = {"encoder_hidden_states": memory, "encoder_attention_mask": real}
                found = model(*target.values(), memory, real)
            else:
                more, found = {}, model(*target.values())
            wanted = theirs(**target, **more).logits
        kept = target["attention_mask"] == 1
        error = (found - wanted)[kept].abs().max() / wanted[kept].abs().max()
        print(f"{kind.__name__:<16} = {type(model).__name__:<13} logits up to", end="")
        print(f" {wanted[kept].abs().max():.0f}, largest difference {error:.0e} of that")
        assert error < 1e-5

# %% [markdown]
# The parts are the same; a *good* decoder is another matter. BERT's weights were learned with both
# directions in view, so with the future hidden they must be trained further.
#
# ## The two questions, in a line each
#
# **What does padding need?** A mask in each layer, positions that count tokens, pooling and labels
# that go by lengths, and an attention that never multiplies what it must not see.
#
# **Why does BERT need an attention mask?** Because ids are known at the input only, and attention
# happens in every layer. Hiding padding is one thing, hiding the future another.
#
# Go on with [chapter 1](01_padding.ipynb), which builds the first of these masks.
