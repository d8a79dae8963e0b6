# %% [markdown]
# # 9. Generation
#
# A trained model writes one token, reads it, and writes the next. For one prompt that is a loop of
# three lines. For a batch of prompts of different lengths it is where most code goes wrong,
# quietly: the text reads well, and it is not the text that the same prompt gives by itself.
#
# After this chapter you will be able to
#
# - write greedy decoding, and draw tokens with temperature, top-k and top-p;
# - generate from a ragged batch, padded on either side, so that every row gets what it gets alone;
# - keep keys and values in a cache, and show that nothing changes but the time;
# - follow a beam search by hand, and say what the length penalty is for.

# %%
import time

import matplotlib.pyplot as plt
import torch
from matplotlib_inline.backend_inline import set_matplotlib_formats

from minitransformer import Config, DecoderOnly, generate, next_token_labels, pad
from minitransformer.cache import Cache
from minitransformer.generation import choose

set_matplotlib_formats("png")
torch.set_num_threads(1)

# %% [markdown]
# ## A model to write with
#
# Small, and trained here: it learns to spell out numbers. The text is `3 1 4 = three one four .`, a
# token for each digit and word. What follows the `=` is known completely, so we can say whether a
# text is right.

# %%
WORDS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
NAMES = ["<pad>", *map(str, range(10)), "=", *WORDS, "."]
IDS = {name: i for i, name in enumerate(NAMES)}
END = IDS["."]


def spelled(digits):
    words = [WORDS[int(digit)] for digit in digits]
    return [IDS[name] for name in [*digits, "=", *words, "."]]


def numbers(seed, count):
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, 7, (count,), generator=generator).tolist()
    draw = lambda n: torch.randint(0, 10, (n,), generator=generator).tolist()  # noqa: E731
    return ["".join(map(str, draw(n))) for n in lengths]


torch.manual_seed(0)
model = DecoderOnly(
    Config(vocab_size=len(NAMES), d_model=64, num_layers=2, num_heads=4, style="llama")
)
optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
for step in range(400):
    batch = pad([spelled(digits) for digits in numbers(step, 64)])
    labels = next_token_labels(batch.input_ids, batch.attention_mask)
    loss = model.loss(batch.input_ids, batch.attention_mask, labels)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
model.eval()
print(f"loss {loss.item():.3f}")


def read(ids):
    return " ".join(NAMES[i] for i in ids)


# %% [markdown]
# ## One prompt
#
# The loop. The logits at the last token say what comes next; the likeliest is taken (*greedy*), put
# behind the text, and everything is read again.

# %%
prompt = [IDS[name] for name in ["3", "1", "4", "="]]
text = list(prompt)
with torch.no_grad():
    while text[-1] != END and len(text) < 20:
        logits = model(torch.tensor([text]), torch.ones(1, len(text), dtype=torch.int64))
        text.append(int(logits[0, -1].argmax()))
print(read(text))

ids = torch.tensor([prompt])
(new,) = generate(model, ids, torch.ones_like(ids), max_new_tokens=10, eos_id=END)
assert prompt + new.tolist() == text

# %% [markdown]
# ## Not always the likeliest
#
# After the digits of a number comes another digit or the `=`: nobody can know which. The model
# gives each a share. Greedy decoding takes the same one every time. To *draw* from the shares,
# divide the logits by a temperature first: below 1 the likely become likelier, above 1 all become
# more alike. `top_k` keeps the k likeliest, `top_p` the fewest that have p of the probability
# together (Holtzman et al. 2019, arXiv:1904.09751).

# %%
prompt = torch.tensor([[IDS["3"], IDS["1"]]])
with torch.no_grad():
    logits = model(prompt, torch.ones_like(prompt))[0, -1]
figure, axes = plt.subplots(1, 4, figsize=(11, 2.8), layout="constrained", sharey=True)
for axis, temperature in zip(axes[:3], (0.5, 1.0, 2.0), strict=True):
    axis.bar(range(len(NAMES)), (logits / temperature).softmax(-1), color="#08519c")
    axis.set(title=f"temperature {temperature}")
shares = logits.softmax(-1)
order = shares.argsort(descending=True)
kept = order[(shares[order].cumsum(0) - shares[order]) < 0.8]
axes[3].bar(range(len(NAMES)), shares, color="#c6dbef")
axes[3].bar(kept, shares[kept], color="#d9822b")
axes[3].set(title=f"top_p 0.8 keeps {len(kept)}")
for axis in axes:
    axis.set_xticks(range(len(NAMES)), NAMES, rotation=90, fontsize=6)
axes[0].set_ylabel("probability after 3 1")
plt.show()

# %% [markdown]
# `choose` is the package's function for this, and a seeded generator makes the draws repeatable.

# %%
many = logits.expand(2000, -1)
for options in ({}, {"temperature": 1.0}, {"temperature": 1.0, "top_p": 0.8}):
    drawn = choose(many, generator=torch.Generator().manual_seed(0), **options)
    print(f"{options!s:<38} {len(drawn.unique()):>2} different tokens")

# %% [markdown]
# ## A ragged batch
#
# Three prompts of different lengths, in one batch. The promise: **every row gets what it gets
# alone.** Here it is kept, with padding on either side.

# %%
prompts = [[IDS[d] for d in digits] + [IDS["="]] for digits in ("7", "314159", "27")]
alone = [
    generate(model, torch.tensor([p]), torch.ones(1, len(p), dtype=torch.int64), 10, eos_id=END)[0]
    for p in prompts
]
for side in ("right", "left"):
    batch = pad(prompts, side=side)
    together = generate(model, batch.input_ids, batch.attention_mask, 10, eos_id=END)
    for prompt, row, single in zip(prompts, together, alone, strict=True):
        assert torch.equal(row, single)
        print(f"{side:<6} {read(prompt):>16} {read(row.tolist())}")

# %% [markdown]
# And now the two ways in which it is usually broken.
#
# **Padding on the right, logits from the last column.** At the last column of a short row stands
# padding. What a model says there means nothing.


# %%
@torch.no_grad()
def naive_right(model, prompts, count):
    batch = pad(prompts, side="right")
    ids, mask = batch.input_ids, batch.attention_mask
    for _ in range(count):
        token = model(ids, mask)[:, -1].argmax(-1)  # the last column, whatever stands there
        ids = torch.cat((ids, token[:, None]), dim=1)
        mask = torch.cat((mask, torch.ones_like(token)[:, None]), dim=1)
    return ids[:, -count:]


for prompt, row in zip(prompts, naive_right(model, prompts, 4), strict=True):
    print(f"{read(prompt):>16} {read(row.tolist())}")

# %% [markdown]
# Only the longest row is right. So people pad on the left: then the last column is real in every
# row. This is right if two things hold: the padding is masked, and positions do not count it. In
# this package positions follow from the mask. Many models number the columns instead: a row with
# four columns of padding then starts at position 4. Here is what that does, to a model whose
# positions are learned (rotary positions, as above, would hide it: there only distances count).

# %%
torch.manual_seed(0)
learned = DecoderOnly(
    Config(vocab_size=len(NAMES), d_model=64, num_layers=2, num_heads=4, style="gpt2")
)
optimizer = torch.optim.AdamW(learned.parameters(), lr=3e-3)
for step in range(400):
    batch = pad([spelled(digits) for digits in numbers(step, 64)])
    labels = next_token_labels(batch.input_ids, batch.attention_mask)
    loss = learned.loss(batch.input_ids, batch.attention_mask, labels)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
learned.eval()


class ColumnsAsPositions(torch.nn.Module):
    """The same table, read by column."""

    def __init__(self, positions):
        super().__init__()
        self.table = positions.table

    def forward(self, x, positions):
        return x + self.table(torch.arange(x.shape[1]).expand_as(positions)), None


batch = pad(prompts, side="left")
ours = generate(learned, batch.input_ids, batch.attention_mask, 8, eos_id=END, use_cache=False)
right_positions = learned.embedding.positions
learned.embedding.positions = ColumnsAsPositions(right_positions)
naive = generate(learned, batch.input_ids, batch.attention_mask, 8, eos_id=END, use_cache=False)
learned.embedding.positions = right_positions
for prompt, a, b in zip(prompts, ours, naive, strict=True):
    print(f"{read(prompt):>16}   positions from the mask: {read(a.tolist())}")
    print(f"{'':>16}   columns as positions:    {read(b.tolist())}")

# %% [markdown]
# The longest row has no padding, so it is the same in both. Which of the others differ depends on
# how much padding they got, that is, on their neighbours.

# %% [markdown]
# ## The cache
#
# Reading everything again for each token is wasteful: the keys and values of old tokens do not
# change when a new one is appended, because no token looks ahead. A cache keeps them. Then a step
# computes one token, and its query looks at the keys of all. The cache is passed along like the
# mask.

# %%
text = torch.tensor([spelled("314159")])
mask = torch.ones_like(text)
cache = Cache()
with torch.no_grad():
    whole = model(text, mask)
    steps = [
        model.head(model.encode(text[:, t : t + 1], mask[:, : t + 1], cache=cache))
        for t in range(text.shape[1])
    ]
difference = (torch.cat(steps, dim=1) - whole).abs().max().item()
print(f"read one by one with a cache, or all at once: largest difference {difference:.1e}")
assert difference < 1e-4
key, value = next(iter(cache.values()))
print("keys of one layer:", tuple(key.shape), "= batch, heads, tokens, width")

# %% tags=["varies"]
long_model = DecoderOnly(
    Config(vocab_size=500, d_model=128, num_layers=4, num_heads=4, style="llama", max_length=600)
).eval()
start_ids = torch.randint(1, 500, (4, 16), generator=torch.Generator().manual_seed(0))
start_mask = torch.ones_like(start_ids)
counts = [32, 64, 128, 256]
seconds = {True: [], False: []}
for use_cache in seconds:
    for count in counts:
        begun = time.perf_counter()
        generate(long_model, start_ids, start_mask, count, use_cache=use_cache)
        seconds[use_cache].append(time.perf_counter() - begun)
figure, axis = plt.subplots(figsize=(6, 3), layout="constrained")
for use_cache, colour in ((False, "#d9822b"), (True, "#08519c")):
    name = "with cache" if use_cache else "without"
    axis.plot(counts, seconds[use_cache], "o-", color=colour, label=name)
axis.set(xlabel="new tokens", ylabel="seconds", ylim=(0, None), title="What the cache saves")
axis.legend(frameon=False)
plt.show()

# %% [markdown]
# Without it the time grows with the square of the length, and with it in a line. The price is
# memory: two tensors per layer, for every token of every row. That is why models share key heads
# (chapter 3).

# %% [markdown]
# ## Beam search
#
# The likeliest first token need not begin the likeliest text. Here is a model with two words, small
# enough for a tree. The numbers are probabilities.

# %%
TREE = {"": {"a": 0.6, "b": 0.4}, "a": {"a": 0.5, "b": 0.5}, "b": {"a": 0.95, "b": 0.05}}
figure, axis = plt.subplots(figsize=(7, 3.2), layout="constrained")
places = {"": (0, 0), "a": (1, 1), "b": (1, -1)}
places |= {"aa": (2, 1.5), "ab": (2, 0.5), "ba": (2, -0.5), "bb": (2, -1.5)}
for text, children in TREE.items():
    for word, share in children.items():
        (x0, y0), (x1, y1) = places[text], places[text + word]
        best = (text + word) in ("b", "ba")
        axis.plot([x0, x1], [y0, y1], color="#d9822b" if best else "#9ecae1", lw=1 + 5 * share)
        axis.text((x0 + x1) / 2, (y0 + y1) / 2 + 0.12, f"{share:.0%}", fontsize=8, ha="center")
for text, (x, y) in places.items():
    total = 1.0
    for i in range(len(text)):
        total *= TREE[text[:i]][text[i]]
    paper = {"facecolor": "white", "edgecolor": "none", "pad": 2}
    axis.text(x, y, f"{text or 'start'}  {total:.0%}", ha="center", va="center", bbox=paper)
axis.set(xlim=(-0.3, 2.3), title="Greedy takes a (60 %); the best text is b a (38 %)")
axis.axis("off")
plt.show()

# %% [markdown]
# Greedy decoding takes *a*, and then has 30 % at best. Two *beams* keep both *a* (60 %) and *b*
# (40 %); in the next step there are four texts, and *b a* with 38 % wins. Beams are compared by
# their log-probability, which is a sum and falls with every token, so short texts have an
# advantage. `length_penalty` divides by the length to that power (Wu et al. 2016,
# arXiv:1609.08144, section 7): 0 compares sums, 1 compares means.
#
# The package's search on the batch from above; it keeps the promise, too.

# %%
batch = pad(prompts, side="left")
together = generate(model, batch.input_ids, batch.attention_mask, 10, eos_id=END, num_beams=3)
for prompt, row in zip(prompts, together, strict=True):
    ids = torch.tensor([prompt])
    (single,) = generate(model, ids, torch.ones_like(ids), 10, eos_id=END, num_beams=3)
    assert torch.equal(row, single)
    print(f"{read(prompt):>16} {read(row.tolist())}")

# %% [markdown]
# ### Try it: what the length penalty prefers
#
# Let the model continue a bare digit: it may go on with digits for a while, or end soon. Try
# penalties below 0 and above 1.

# %%
ids = torch.tensor([[IDS["4"]]])
for length_penalty in (-2.0, 0.0, 1.0, 3.0):
    (row,) = generate(
        model,
        ids,
        torch.ones_like(ids),
        14,
        eos_id=END,
        num_beams=4,
        length_penalty=length_penalty,
    )
    print(f"{length_penalty:>5}  {read(row.tolist())}")

# %% [markdown]
# ## Exercises

# %% [markdown]
# <!-- exercise: greedy_decode -->

# %% [markdown]
# <!-- exercise: kv_cache -->

# %% [markdown]
# <!-- exercise: beam_search -->

# %% [markdown]
# ## Check yourself
#
# 1. Prompts are padded on the right. At which column do you read the logits of each row?
# 2. Prompts are padded on the left, and a row still gets another text than alone. Name two causes.
# 3. Why may the keys of old tokens be kept, and those of an encoder that sees everything not?
# 4. Which is larger for a batch of long texts: the weights of a model, or its cache? What decides?
# 5. With one beam, what is beam search?
#
# <details><summary>Answers</summary>
#
# 1. At its last real token, which is at another column in every row.
# 2. Padding is not masked; or positions count the padding.
# 3. No old token looks at a new one, so nothing about it changes. In an encoder every token looks
#    at every other, so one more token changes all.
# 4. The cache grows with rows times tokens times layers times key heads; the weights do not.
# 5. Greedy decoding.
#
# </details>
