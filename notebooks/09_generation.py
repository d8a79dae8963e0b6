# %% [markdown]
# # 9. Generation
#
# *Reading takes about 45 minutes, running half a minute on one CPU thread. It presumes chapters 5
# and 8.*
#
# A language model gives a probability to each token that may come next. To write a text is to
# choose one, append it, and ask again. What sounds like three lines of code has many ways to go
# wrong, above all for several prompts of different lengths at once.
#
# After this chapter you will be able to
#
# - write greedily, by drawing, with temperature, top-k and top-p, and say what each does to a
#   distribution;
# - continue a ragged batch so that each row gets what it would get alone, with padding on either
#   side;
# - explain what a key/value cache keeps, and show that it changes the time and not the text;
# - follow a beam search by hand.

# %%
import random
import re
import time
from unittest import mock

import matplotlib.pyplot as plt
import torch
from matplotlib_inline.backend_inline import set_matplotlib_formats

from minitransformer import (
    Config,
    DecoderOnly,
    causal_mask,
    generate,
    pad,
    padding_mask,
    record_attention,
    token_positions,
)
from minitransformer.cache import Cache
from minitransformer.data.collate import collate_lm
from minitransformer.inference.generation import choose, stream_tokens
from minitransformer.training.loop import Settings, schedule
from minitransformer.visualize import attention_figure

set_matplotlib_formats("png")
torch.manual_seed(0)
torch.set_num_threads(1)

# %% [markdown]
# ## A language small enough to know
#
# Our model learns a language of which we know everything, so that we can judge what it writes.
# A sentence has an article, perhaps some adjectives, a noun, and a verb that agrees with the noun:
# *the old cat sleeps*, *the cats see the small dog*. Each word is a token.

# %%
NOUNS = {"cat": 0.4, "dog": 0.3, "bird": 0.2, "unicorn": 0.1}
VERBS = {"sleep": 0.4, "sing": 0.2, "see": 0.25, "like": 0.15}  # the last two have an object
ADJECTIVES = {"small": 0.5, "old": 0.3, "blue": 0.2}
WORDS = ["<pad>", "<s>", "</s>", "the", "and", *ADJECTIVES]
WORDS += [word + s for word in [*NOUNS, *VERBS] for s in ("", "s")]
PAD, BOS, EOS = 0, 1, 2


def draw_word(chances, draw):
    return draw.choices(list(chances), list(chances.values()))[0]


def noun_phrase(draw):
    words = ["the"]
    while draw.random() < 0.25:
        words.append(draw_word(ADJECTIVES, draw))
    return [*words, draw_word(NOUNS, draw) + draw.choice(["", "s"])]


def sentence(draw):
    subject, verb = noun_phrase(draw), draw_word(VERBS, draw)
    words = [*subject, verb if subject[-1].endswith("s") else verb + "s"]
    if verb in ("see", "like"):
        words += noun_phrase(draw)
    return [*words, "and", *sentence(draw)] if draw.random() < 0.2 else words


PHRASE = f"the( ({'|'.join(ADJECTIVES)}))* ({'|'.join(NOUNS)})"  # and perhaps an s
CLAUSE = "|".join(  # the noun has an s or the verb has one; an object if the verb wants it
    f"{PHRASE}{s} {verb}{'' if s else 's'}" + f" {PHRASE}s?" * (verb in ("see", "like"))
    for verb in VERBS
    for s in ("", "s")
)


def is_sentence(words):
    """Does the grammar allow these words?"""
    return bool(re.fullmatch(f"({CLAUSE})( and ({CLAUSE}))*", " ".join(words)))


def encode(words):
    return [BOS, *(WORDS.index(word) for word in words)]


def decode(ids):
    return " ".join(WORDS[i] for i in ids)


draw = random.Random(0)
corpus = [sentence(draw) for _ in range(4_000)]
for words in corpus[:4]:
    print(" ".join(words))
assert all(is_sentence(words) for words in corpus)
assert not is_sentence(["the", "cat", "sleep"])

# %% [markdown]
# The model is a small GPT-2: two layers, two heads, learned positions. It takes some seconds to
# train. (The loop is that of the last chapter.)

# %%
SIZE = {"vocab_size": len(WORDS), "d_model": 48, "num_layers": 2, "num_heads": 2, "max_length": 256}
model = DecoderOnly(Config(**SIZE, style="gpt2"))
settings = Settings(steps=200, batch_size=64, learning_rate=5e-3, warmup=20)
optimizer = torch.optim.AdamW(model.parameters(), betas=(0.9, 0.98))
for step in range(settings.steps):
    for group in optimizer.param_groups:
        group["lr"] = settings.learning_rate * schedule(step, settings)
    batch = collate_lm([[*encode(words), EOS] for words in random.Random(step).sample(corpus, 64)])
    optimizer.zero_grad()
    loss = model.loss(**batch)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), settings.clip)
    optimizer.step()
model.eval()
print(f"loss {loss:.2f}")

# %% [markdown]
# ## One token after the other
#
# What does it think comes after *the small*? The logits at the **last** position, through a
# softmax:


# %% tags=["varies"]
@torch.no_grad()
def next_probabilities(ids):
    ids = torch.tensor([ids])
    return model(ids, torch.ones_like(ids))[0, -1].softmax(dim=-1)


for p, i in zip(*next_probabilities(encode(["the", "small"])).topk(6), strict=True):
    print(f"{WORDS[i]:<10} {p:.3f}")

# %% [markdown]
# In the true language an adjective follows with the probability 0.25, and half of the adjectives
# are *small*: 0.125. A noun follows with 0.75, 0.4 of the nouns are cats, and half of them one cat:
# 0.75 · 0.4 / 2 = 0.15 for *cat*, and the same for *cats*. The model is close.
#
# *Greedy* decoding takes the likeliest token each time, until it is the end. For one prompt that is
# a loop:

# %% tags=["varies"]
ids = encode(["the", "small"])
while ids[-1] != EOS and len(ids) < 20:
    ids.append(int(next_probabilities(ids).argmax()))
print(decode(ids))

prompt = pad([encode(["the", "small"])])
(written,) = generate(model, prompt.input_ids, prompt.attention_mask, 20, eos_id=EOS)
print("generate adds:", decode(written))
assert written.tolist() == ids[3:]

# %% [markdown]
# `generate` returns the new tokens only, up to and including the first end. `eos_id` says what the
# end is. Without it nothing stops the model but `max_new_tokens`.
#
# ### Try it: no end
#
# What does a model write that was asked to go on after the end? It has never seen anything there.

# %% tags=["varies"]
(endless,) = generate(model, prompt.input_ids, prompt.attention_mask, 12)
print(decode(endless))

# %% [markdown]
# ## Drawing
#
# Greedy decoding always writes the same. To get a variety, draw. Three knobs change the
# distribution before the draw. To see what they do, take four tokens with the probabilities 0.5,
# 0.3, 0.15 and 0.05.
#
# - **temperature** divides the logits, which raises each probability to the power 1/T and makes the
#   sum 1 again. Below 1 the likely becomes likelier, above 1 all become alike. At T = 1/2 they are
#   squared: 0.25 : 0.09 : 0.0225 : 0.0025.
# - **top-k** keeps the k likeliest.
# - **top-p**, or nucleus sampling, keeps the smallest set of the likeliest that has the probability
#   p or more (Holtzman et al. 2019, arXiv:1904.09751). Where the model is certain that is one
#   token, where it is not, many.
#
# `choose` draws. We have it draw 10,000 times, and compare with what we compute by hand.

# %%
p = torch.tensor([0.5, 0.3, 0.15, 0.05])
by_hand = {
    "temperature 0.5": ({"temperature": 0.5}, p**2 / (p**2).sum()),
    "temperature 1": ({"temperature": 1.0}, p),
    "temperature 2": ({"temperature": 2.0}, p**0.5 / (p**0.5).sum()),
    "top-k 2": ({"temperature": 1.0, "top_k": 2}, torch.tensor([0.5, 0.3, 0, 0]) / 0.8),
    "top-p 0.9": ({"temperature": 1.0, "top_p": 0.9}, torch.tensor([0.5, 0.3, 0.15, 0]) / 0.95),
}
generator = torch.Generator().manual_seed(0)
figure, axes = plt.subplots(1, 5, figsize=(10.5, 2.6), sharey=True, layout="constrained")
for panel, (name, (knobs, expected)) in zip(axes, by_hand.items(), strict=True):
    tokens = choose(p.log().expand(10_000, 4), **knobs, generator=generator)
    share = torch.bincount(tokens, minlength=4) / 10_000
    panel.bar(range(4), expected, color="#c6dbef", label="by hand")
    panel.plot(range(4), share, "o", color="#d9822b", ms=5, label="drawn")
    panel.set(title=name, xlabel="token", xticks=range(4))
    assert (share - expected).abs().max() < 0.02
    assert (share[expected == 0] == 0.0).all()
axes[0].set_ylabel("probability")
axes[0].legend(frameon=False)
plt.show()

# %% [markdown]
# A token that top-k or top-p leaves out is never drawn, not even once in 10,000: its probability is
# exactly 0.
#
# What is gained and lost? We draw 200 sentences at each temperature and count two things: how many
# are correct, and how many different ones there are. Then the same with top-p.


# %%
def write(temperature, top_p=None, count=200):
    """Whole sentences, from nothing but the start."""
    start = torch.full((count, 1), BOS)
    generator = torch.Generator().manual_seed(1)
    knobs = {"temperature": temperature, "top_p": top_p, "generator": generator}
    rows = generate(model, start, torch.ones_like(start), 30, eos_id=EOS, **knobs)
    return [decode(i for i in row.tolist() if i != EOS) for row in rows]


def judge(texts):
    right = sum(is_sentence(text.split()) for text in texts) / len(texts)
    return right, len(set(texts)) / len(texts)


temperatures = [0.0, 0.25, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0]
plain = [judge(write(t)) for t in temperatures]
nucleus = [judge(write(t, top_p=0.9)) if t else plain[0] for t in temperatures]
figure, axes = plt.subplots(figsize=(7, 3.2), layout="constrained")
for results, style, name in ((plain, "-", "all tokens"), (nucleus, "--", "top-p 0.9")):
    axes.plot(temperatures, [r for r, _ in results], "o" + style, color="#08519c")
    axes.plot(temperatures, [d for _, d in results], "o" + style, color="#d9822b")
    axes.plot([], [], style, color="#333333", label=name)
axes.plot([], [], "o", color="#08519c", label="correct")
axes.plot([], [], "o", color="#d9822b", label="different")
axes.set(xlabel="temperature", ylabel="share of 200 sentences", ylim=(-0.03, 1.03))
axes.set_title("Hot is varied, cold is correct")
axes.legend(frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
plt.show()
assert plain[0][1] == 1 / 200  # greedy: one sentence, 200 times
assert plain[0][0] == 1.0

# %% tags=["varies"]
for temperature in (0.0, 1.0, 3.0):
    for text in write(temperature)[:2]:
        print(f"{temperature:.0f}  {'correct' if is_sentence(text.split()) else 'wrong  '}  {text}")

# %% [markdown]
# Greedy writes one sentence 200 times. At temperature 1 the model draws from the distribution that
# it has learned, nearly all sentences are correct and most of them differ. At 3 nearly everything
# is wrong. Top-p cuts off what is unlikely at each step and keeps more of them correct.
#
# ### Try it: is a drawn row what it would be alone?
#
# A `generator` with a seed makes the draws of a *batch* repeatable. Draw two rows together, then
# the second alone, from the same seed. What do you expect?


# %% tags=["varies"]
def drawn(start):
    generator = torch.Generator().manual_seed(2)
    knobs = {"temperature": 1.0, "generator": generator}
    return generate(model, start, torch.ones_like(start), 9, eos_id=EOS, **knobs)


pair = torch.full((2, 1), BOS)
print("together:", decode(drawn(pair)[1]))
print("alone:   ", decode(drawn(pair[1:])[0]))

# %% [markdown]
# Random numbers are handed out in order, and in a batch others stand in the queue. The
# *distribution* is the same. Whoever needs the same text must draw row by row, or be greedy.

# %% [markdown]
# ## Prompts of different lengths
#
# Now several prompts at once. They differ in length, so they are padded, on the right or on the
# left. The promise: **each row gets what it would get alone.**

# %% tags=["varies"]
prompts = [
    encode(words.split())
    for words in ("the cat", "the old small dogs", "the bird sees the blue", "the")
]
alone = []
for row in prompts:
    one = pad([row])
    alone += generate(model, one.input_ids, one.attention_mask, 12, eos_id=EOS)
for side in ("right", "left"):
    batch = pad(prompts, side=side)
    together = generate(model, batch.input_ids, batch.attention_mask, 12, eos_id=EOS)
    assert all(torch.equal(a, b) for a, b in zip(together, alone, strict=True))
    print(f"padding on the {side}: every row as alone")
for row, new in zip(prompts, alone, strict=True):
    print(f"{decode(row[1:]):<24}| {decode(new)}")

# %% [markdown]
# The rows have different lengths now, as each stopped at its own end. How is it done? New tokens
# are appended behind everything, so with padding on the right a row gets a *hole*. The mask knows
# the hole, and positions are counted over real tokens only.

# %%
batch = pad(prompts[:3])
row = 0
ids, mask = batch.input_ids[row : row + 1], batch.attention_mask[row : row + 1]
new = alone[row].unsqueeze(0)
ids = torch.cat((ids, new), dim=1)
mask = torch.cat((mask, torch.ones_like(new)), dim=1)
tokens = [WORDS[i] if real else None for i, real in zip(ids[0], mask[0], strict=True)]
print("tokens:   ", [token or "·" for token in tokens])
print("mask:     ", mask[0].tolist())
print("positions:", token_positions(mask)[0].tolist())
with record_attention(model) as maps, torch.no_grad():
    model(ids, mask)
allowed = (padding_mask(mask) & causal_mask(ids.shape[1]))[0]
weights = maps["decoder.layers.0.attention"][0]
assert (weights[~allowed.expand_as(weights)] == 0.0).all()
attention_figure(
    weights, allowed, tokens, tokens, title="Layer 0: the new tokens see over the hole"
)

# %% [markdown]
# ### What goes wrong, first: the last column
#
# "The next token follows from `logits[:, -1]`." That was right for one prompt. In a batch with
# padding on the right, the last column of a short row *is* padding.

# %% tags=["varies"]
batch = pad(prompts)
with torch.no_grad():
    logits = model(batch.input_ids, batch.attention_mask)
naive = logits[:, -1].argmax(dim=-1)
last = batch.attention_mask.sum(dim=1) - 1  # so long as all padding is on the right
right = logits[torch.arange(len(prompts)), last].argmax(dim=-1)
for i in range(len(prompts)):
    print(f"{decode(prompts[i][1:]):<24}| -1: {WORDS[naive[i]]:<8} last real: {WORDS[right[i]]}")
assert [int(row[0]) for row in alone] == right.tolist()
assert naive.tolist() != right.tolist()

# %% [markdown]
# The hidden states of padding are zeros here, so all logits are equal there and the `argmax` is the
# token 0, `<pad>`. In a model that leaves something else at padding it would be a word, and harder
# to notice.
#
# `last` in this cell is good for one step only. It counts the real tokens, and takes them to stand
# at the beginning. After one new token the row has a hole, and with padding on the left the count
# was wrong from the start. What is right everywhere is the largest index of a real token. You will
# write that in the first exercise.
#
# ### Second: positions that count padding
#
# "Then I pad on the left, where the last column is always real." True, and widely done. But if
# positions are 0, 1, 2, ... by column, a prompt behind six padded columns starts at position 6. We
# replace `token_positions` by such a count and measure how far the logits of *the old cat* move,
# for more and more padding: for our model, whose positions are learned, and for one with rotary
# positions.


# %%
def by_column(attention_mask):
    return torch.arange(attention_mask.shape[1]).expand_as(attention_mask)


rotary = DecoderOnly(Config(**SIZE, style="llama")).eval()  # random weights


@torch.no_grad()
def moved(model, amount):
    """The largest change of the last logits by so much padding on the left."""
    row = encode(["the", "old", "cat"])
    plain, padded = pad([row]), pad([row], side="left", max_length=len(row) + amount)
    wanted = model(plain.input_ids, plain.attention_mask)[0, -1]
    found = model(padded.input_ids, padded.attention_mask)[0, -1]
    return (found - wanted).abs().max().item()


amounts = [1, 2, 4, 8, 16, 32]
changes = {"learned, from the mask": [moved(model, n) for n in amounts]}
with mock.patch("minitransformer.embedding.token_positions", by_column):
    changes["learned, by column"] = [moved(model, n) for n in amounts]
    changes["rotary, by column"] = [moved(rotary, n) for n in amounts]
print("columns of padding      " + "".join(f"{n:>10}" for n in amounts))
for name, values in changes.items():
    print(f"{name:<24}" + "".join(f"{value:>10.1e}" for value in values))
assert max(changes["learned, from the mask"]) < 1e-4 < 0.1 < min(changes["learned, by column"])
assert max(changes["rotary, by column"]) < 1e-3

# %% [markdown]
# With positions from the mask, padding changes nothing but the rounding. By column, the logits of a
# model with learned positions move by whole units. Rotary positions (Su et al. 2021,
# arXiv:2104.09864) forgive it: a score depends on the *distance* of query and key alone, and all
# tokens of a row are shifted together. A hole in the middle they would not forgive.
#
# Does it matter for the text?

# %% tags=["varies"]
batch = pad(prompts, side="left", max_length=24)
with mock.patch("minitransformer.embedding.token_positions", by_column):
    # without the cache, for which prompts are read packed
    options = {"eos_id": EOS, "use_cache": False}
    shifted = generate(model, batch.input_ids, batch.attention_mask, 12, **options)
right = generate(model, batch.input_ids, batch.attention_mask, 12, eos_id=EOS)
assert all(torch.equal(a, b) for a, b in zip(right, alone, strict=True))
for row, wrong in zip(prompts, shifted, strict=True):
    text = decode(row[1:]) + " | " + decode(wrong)
    whole = [WORDS[i] for i in [*row[1:], *wrong.tolist()] if i != EOS]
    print("correct" if is_sentence(whole) else "wrong  ", text)
assert any(not torch.equal(a, b) for a, b in zip(shifted, alone, strict=True))

# %% [markdown]
# Nothing crashes, and every word is a word of the language. But most texts are not what the same
# prompts give alone, and which ones go wrong depends on the longest prompt of the batch. That is
# how mistakes of this kind are met in practice: the model just seems worse than it was.

# %% [markdown]
# ## The cache
#
# For each new token the loop above reads the whole text again. But in a decoder the past does not
# look at the future: the keys and values of old tokens are the same in every step. A cache keeps
# them. The new token brings its own query, key and value, and looks at all that is kept.
#
# Token by token, and all at once: the same logits.

# %%
ids = torch.tensor([encode(["the", "old", "cat", "likes", "the", "small", "birds"])])
mask = torch.ones_like(ids)
cache, steps = Cache(), []
with torch.no_grad():
    whole = model(ids, mask)
    for t in range(ids.shape[1]):
        hidden = model.encode(ids[:, t : t + 1], mask[:, : t + 1], cache=cache)  # one new token
        steps.append(model.head(hidden))
        key, value = cache[model.decoder.layers[0].attention]
        print(f"{WORDS[ids[0, t]]:<6} keys in the first layer's cache: {tuple(key.shape)}")
print("largest difference:", (torch.cat(steps, dim=1) - whole).abs().max().item())
torch.testing.assert_close(torch.cat(steps, dim=1), whole, rtol=0, atol=1e-4)

# %% [markdown]
# The shape is (batch, heads, tokens so far, width of a head). Note the arguments of `encode`: the
# *new* ids only, and the attention mask of *everything*. Positions follow from the mask, so they go
# on where they were.
#
# And the texts, with padding on either side, are the same token by token:

# %%
for side in ("right", "left"):
    batch = pad(prompts, side=side)
    arguments = (model, batch.input_ids, batch.attention_mask, 12)
    fast = generate(*arguments, eos_id=EOS, use_cache=True)
    slow = generate(*arguments, eos_id=EOS, use_cache=False)
    assert all(torch.equal(a, b) for a, b in zip(fast, slow, strict=True))
print("the same tokens with and without")

# %% [markdown]
# ### Try it: a triangle aligned at its start
#
# The one new query is the *last* one: it may see all five keys. `causal_mask` aligns the ends. A
# plain lower triangle of one row and five columns is aligned at the start, and blinds the query to
# everything but the first token.

# %%
print("causal_mask(1, 5):    ", causal_mask(1, 5)[0, 0].int().tolist())
print("torch.ones(1,5).tril():", torch.ones(1, 5).tril().int().tolist())
assert causal_mask(1, 5).all()

# %% [markdown]
# What is gained? `stream_tokens` hands out each token as soon as it is there, so we can look at the
# clock in between. The model is larger now, with random weights, and continues four prompts.

# %% tags=["varies"]
large = DecoderOnly(
    Config(len(WORDS), d_model=192, num_layers=4, num_heads=4, max_length=256, style="llama")
).eval()
start = torch.full((4, 4), BOS)


def seconds_per_token(use_cache, count=200):
    times, before = [], time.perf_counter()
    for _ in stream_tokens(large, start, torch.ones_like(start), count, use_cache=use_cache):
        times.append(time.perf_counter() - before)
        before = time.perf_counter()
    return times


times = {use_cache: seconds_per_token(use_cache) for use_cache in (False, True)}
figure, axes = plt.subplots(figsize=(7, 3), layout="constrained")
for use_cache, color in ((False, "#d9822b"), (True, "#08519c")):
    name = "with a cache" if use_cache else "everything read anew"
    axes.plot([1000 * t for t in times[use_cache]], color=color, lw=1, label=name)
axes.set(xlabel="new token", ylabel="milliseconds for it", ylim=(0, None))
axes.set_title("The time for one token of each row, as the text grows")
axes.legend(frameon=False)
plt.show()
print(f"200 tokens: {sum(times[False]):.1f} s without, {sum(times[True]):.1f} s with a cache")

# %% [markdown]
# Without a cache the time for a token grows with the text, with one it hardly does. The price is
# memory: for each token two vectors (key and value) in each layer and head. That can be computed.


# %%
def bytes_per_token(num_layers, num_kv_heads, head_width, bytes_each):
    return 2 * num_layers * num_kv_heads * head_width * bytes_each


held = sum(x.numel() for layer in cache.lengths for x in cache[layer]) * 4  # float32
config = model.config
formula = ids.shape[1] * bytes_per_token(2, config.num_kv_heads, config.d_model // 2, 4)
print(f"the cache above holds {held} bytes, by the formula {formula}")
assert held == formula
for name, sizes in {
    "Llama 2 7B, 32 key/value heads": (32, 32, 128, 2),
    "TinyLlama, 4 key/value heads": (22, 4, 64, 2),
}.items():
    print(f"{name}: {bytes_per_token(*sizes) / 1024:.0f} KiB for a token in half precision")

# %% [markdown]
# (The sizes are from Touvron et al. 2023, arXiv:2307.09288, and Zhang et al. 2024,
# arXiv:2401.02385.) This is why newer models share keys and values among several heads.

# %% [markdown]
# ## Beams
#
# Greedy decoding takes the likeliest next token. That is not the way to the likeliest *text*. To
# see why, we need a model whose probabilities we can choose.
#
# A decoder without any layer cannot look back: what it predicts depends on the last token alone.
# Its embedding and its output matrix are then a table. So we can write any table of "what follows
# what" into a `DecoderOnly` and use the real `generate` on it.


# %%
def table_model(follows):
    """A DecoderOnly without layers that gives the next word these probabilities."""
    words = ["<s>", "</s>", *(w for w in follows if w != "<s>")]
    words += [""] * (len(words) % 2)  # rotary positions want an even width
    chances = torch.full((len(words), len(words)), 1e-12)
    for word, nexts in follows.items():
        for following, chance in nexts.items():
            chances[words.index(word), words.index(following)] = chance
    size = len(words)
    table = DecoderOnly(Config(size, d_model=size, num_layers=0, num_heads=1, style="llama"))
    with torch.no_grad():
        table.embedding.tokens.weight.copy_(torch.eye(size))
        # The final norm scales by √size.
        table.head.projection.weight.copy_(chances.log().T / size**0.5)
    return table.eval(), words


follows = {
    "<s>": {"the": 0.6, "a": 0.4},
    "the": {"cat": 0.4, "dog": 0.35, "bird": 0.25},
    "a": {"unicorn": 0.9, "cat": 0.1},
    "cat": {"</s>": 1.0},
    "dog": {"</s>": 1.0},
    "bird": {"</s>": 1.0},
    "unicorn": {"</s>": 1.0},
}
table, words = table_model(follows)
start = torch.zeros(1, 1, dtype=torch.int64)  # <s>
ones = torch.ones_like(start)
with torch.no_grad():
    found = table(start, ones)[0, 0].softmax(dim=-1)
print({word: round(p, 3) for word, p in zip(words, found.tolist(), strict=True) if p > 1e-6})

# %%
greedy = generate(table, start, ones, 5, eos_id=1)[0]
beams = generate(table, start, ones, 5, eos_id=1, num_beams=2)[0]
print("greedy: ", " ".join(words[i] for i in greedy))
print("2 beams:", " ".join(words[i] for i in beams))
assert [words[i] for i in greedy] == ["the", "cat", "</s>"]
assert [words[i] for i in beams] == ["a", "unicorn", "</s>"]

# %% [markdown]
# By hand. Greedy takes *the* (0.6), because 0.6 is more than 0.4, and can then get 0.6 · 0.4 = 0.24
# at best. The likeliest text starts with *a*: 0.4 · 0.9 = 0.36.
#
# Beam search with two beams keeps the two best texts so far instead of one.
#
# | step | candidates | kept |
# |---|---|---|
# | 1 | the 0.6, a 0.4 | both |
# | 2 | a unicorn 0.36, the cat 0.24, the dog 0.21, the bird 0.15, a cat 0.04 | the first two |
# | 3 | a unicorn `</s>` 0.36, the cat `</s>` 0.24 | both have ended |

# %%
leaves = [("the", "cat"), ("the", "dog"), ("the", "bird"), ("a", "unicorn"), ("a", "cat")]
places = {(): (0, 2), ("the",): (1, 1), ("a",): (1, 3.5)}
places |= {leaf: (2, y) for y, leaf in enumerate(leaves)}
colors = {("the", "cat"): "#d9822b", ("a", "unicorn"): "#08519c"}
figure, axes = plt.subplots(figsize=(8, 3.6), layout="constrained")
for path, (x, y) in places.items():
    if path:
        x0, y0 = places[path[:-1]]
        chance = follows[path[-2] if len(path) > 1 else "<s>"][path[-1]]
        color = next((c for leaf, c in colors.items() if leaf[: len(path)] == path), "#b0b0b0")
        axes.plot([x0, x], [y0, y], color=color, lw=1 + 6 * chance, solid_capstyle="round")
        axes.text(
            x0 + 0.55 * (x - x0), y0 + 0.55 * (y - y0), f"{chance:g}", ha="center", va="center",
            fontsize=8, bbox={"fc": "white", "ec": "none", "pad": 1},
        )  # fmt: skip
    box = {"fc": "#f2f2f2", "ec": "#888888", "boxstyle": "round"}
    axes.text(x, y, path[-1] if path else "<s>", ha="center", va="center", fontsize=9, bbox=box)
for leaf in leaves:
    product = follows["<s>"][leaf[0]] * follows[leaf[0]][leaf[1]]
    how = {"#d9822b": "  greedy", "#08519c": "  2 beams"}.get(colors.get(leaf), "")
    x, y = places[leaf]
    axes.text(x + 0.25, y, f"{product:.2f}{how}", va="center", fontsize=9)
axes.set(
    xlim=(-0.2, 2.9), ylim=(4.5, -0.5), title="The likeliest first step is not on the best way"
)
axes.axis("off")
plt.show()

# %% [markdown]
# Beam search is no guarantee: the best text may begin with a word that is not among the first
# `num_beams`. With as many beams as there are texts it finds the best of all.
#
# ### Longer or shorter?
#
# Each further token multiplies the probability by something below 1, so short texts win by being
# short. A length penalty makes up for it: `generate` compares
#
# $$\frac{\log p(\text{text})}{n^{\,\text{length\_penalty}}}$$
#
# where *n* is the number of new tokens, the end included (Wu et al. 2016, arXiv:1609.08144, section
# 7, have a similar formula). Logarithms are negative, so dividing by more is *better*: a penalty
# above 0 favors long texts.

# %%
follows = {
    "<s>": {"sing": 0.4, "like": 0.6},
    "like": {"old": 0.6, "small": 0.4},
    "old": {"cats": 1.0},
    "small": {"cats": 1.0},
    "cats": {"</s>": 1.0},
    "sing": {"</s>": 1.0},
}
table, words = table_model(follows)
for penalty in (0.0, 1.0):
    knobs = {"num_beams": 3, "length_penalty": penalty}
    (best,) = generate(table, start, ones, 6, eos_id=1, **knobs)
    print(f"length penalty {penalty:.0f}:", " ".join(words[i] for i in best))
    assert words[best[0]] == ("like" if penalty else "sing")

# %% [markdown]
# By hand: *sing* has the probability 0.4 and two tokens, *like old cats* has 0.6 · 0.6 = 0.36 and
# four. With penalty 0 their scores are log 0.4 = −0.92 and log 0.36 = −1.02. With penalty 1 they
# are log 0.4 / 2 = −0.46 and log 0.36 / 4 = −0.26, and the longer text wins.

# %% [markdown]
# On the model that has learned our language: the log-probability of what greedy decoding finds, and
# of what four beams find, for the ragged prompts from above, in one batch. Beams, too, give each
# row what it would get alone.


# %% tags=["varies"]
@torch.no_grad()
def log_probability(prompt, new):
    ids = torch.tensor([[*prompt, *new.tolist()]])
    likely = model(ids, torch.ones_like(ids))[0].log_softmax(dim=-1)
    where = range(len(prompt) - 1, ids.shape[1] - 1)
    return sum(likely[t, ids[0, t + 1]].item() for t in where)


batch = pad(prompts)
options = {"eos_id": EOS, "num_beams": 4, "length_penalty": 0.0}
beams = generate(model, batch.input_ids, batch.attention_mask, 12, **options)
for row, greedy, beam in zip(prompts, alone, beams, strict=True):
    one = pad([row])
    (same,) = generate(model, one.input_ids, one.attention_mask, 12, **options)
    assert torch.equal(same, beam)
    print(f"{decode(row[1:])}\n    {log_probability(row, greedy):6.2f}  greedy   {decode(greedy)}")
    print(f"    {log_probability(row, beam):6.2f}  4 beams  {decode(beam)}")

# %% [markdown]
# For translation, where one answer is right, likelier is mostly better. For open-ended text it is
# not: the likeliest text is dull, and people do not write that way (Holtzman et al. 2019). There
# one draws.

# %% [markdown]
# ## Exercises

# %% [markdown]
# <!-- exercise: greedy_decode -->

# %% [markdown]
# <!-- exercise: sample -->

# %% [markdown]
# <!-- exercise: kv_cache -->

# %% [markdown]
# <!-- exercise: beam_search -->

# %% [markdown]
# ## Check yourself
#
# 1. Two tokens have the probabilities 0.8 and 0.2. What are they at temperature 1/2?
# 2. The probabilities are 0.5, 0.3, 0.15, 0.05. How many tokens does top-p 0.6 keep?
# 3. A row has the attention mask `1 1 0 0 1`. What are its positions, and where do the logits of
#    the next token stand?
# 4. A batch is padded on the left and positions are counted by column. Why does a Llama not mind,
#    and a GPT-2 does?
# 5. A model has 10 layers, 4 key/value heads of width 64, and float16. How many bytes does its
#    cache need for a token?
# 6. When are greedy decoding and beam search sure to find the same?
#
# <details>
# <summary>Answers</summary>
#
# 1. 0.64 : 0.04, that is 16/17 and 1/17.
# 2. Two: 0.5 is less than 0.6, and 0.5 + 0.3 is enough.
# 3. `0 1 0 0 2` (padding has none, and is given 0); at the last real token, the fifth column.
# 4. Rotary scores depend on distances alone, and these are the same. A learned position is a vector
#    of its own for each number, and the numbers are others.
# 5. 2 · 10 · 4 · 64 · 2 = 10,240.
# 6. With one beam.
#
# </details>
