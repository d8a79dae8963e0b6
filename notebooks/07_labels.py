# %% [markdown]
# # 7. Labels and -100
#
# A language model answers at every position of a batch, also at padding, also inside the question
# that a user asked. The labels say at which of these positions the answer counts. A mistake in the
# mask often shows as soon as you compare a row with itself alone. A mistake in the labels shows
# nowhere: the loss falls, and what was learned is wrong.
#
# After this chapter you will be able to
#
# - compute the cross-entropy of a small batch by hand, and say what the label -100 does to the
#   loss and to its gradient;
# - make labels for padded rows, and find the bug that hides in `labels[ids == pad_id] = -100`;
# - train on answers only, and on one side of a conversation only;
# - accumulate gradients over several small batches so that the result is that of the large one.

# %%
import math
import random

import matplotlib.pyplot as plt
import torch
from matplotlib_inline.backend_inline import set_matplotlib_formats
from torch.nn import functional as F

from minitransformer import (
    Config,
    DecoderOnly,
    completion_labels,
    cross_entropy,
    generate,
    next_token_labels,
    pad,
)
from minitransformer.data.collate import chat_example, collate, collate_lm
from minitransformer.data.tokenization import Tokenizer

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
# The function of this package picks the positions that count *first* and computes nothing for the
# others: `logits, labels = logits[counts], labels[counts]`. So the gradient there is exactly 0.
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
# The function `draw_labels` shows both. You need not read it; look at what it draws: above a row
# its tokens, below it its labels. Green counts, "·" is -100, hatched is padding.


# %%
def draw_labels(panels, title=""):
    """panels: {title: (tokens, labels, attention_mask)}, each a list of rows; None = -100."""
    most = max(9, *(len(row) for tokens, _, _ in panels.values() for row in tokens))
    heights = [1.25 * len(tokens) + 0.35 for tokens, _, _ in panels.values()]
    figure, axes = plt.subplots(
        len(panels),
        1,
        figsize=(1.0 + 0.62 * most, 0.42 * sum(heights) + 0.35 * len(panels)),
        gridspec_kw={"height_ratios": heights},
        layout="constrained",
        squeeze=False,
    )
    for panel, (name, (tokens, labels, masks)) in zip(axes[:, 0], panels.items(), strict=True):
        for i, row in enumerate(zip(tokens, labels, masks, strict=True)):
            y = -1.25 * i
            panel.text(-0.15, y, "token", ha="right", va="center", fontsize=7, color="#777777")
            panel.text(
                -0.15, y - 0.5, "label", ha="right", va="center", fontsize=7, color="#777777"
            )
            for x, (token, label, real) in enumerate(zip(*row, strict=True)):
                fill, hatch = ("#deebf7", None) if real else ("#f0f0f0", "\\\\\\\\")
                ink = "#333333" if real else "#888888"
                box = plt.Rectangle(
                    (x, y - 0.25), 1, 0.5, fc=fill, ec="#c0c0c0", hatch=hatch, lw=0.6
                )
                panel.add_patch(box)
                size = 8 if len(token) < 8 else 6
                panel.text(x + 0.5, y, token, ha="center", va="center", fontsize=size, color=ink)
                learned = label is not None
                fill = "#c7e9c0" if learned else "white"
                panel.add_patch(plt.Rectangle((x, y - 0.75), 1, 0.5, fc=fill, ec="#c0c0c0", lw=0.6))
                size = 8 if not learned or len(label) < 8 else 6
                words = label if learned else "·"
                panel.text(x + 0.5, y - 0.5, words, ha="center", va="center", fontsize=size)
        panel.set(xlim=(-0.9, most + 0.05), ylim=(-1.25 * len(tokens) + 0.4, 0.35))
        panel.set_title(name, loc="left", fontsize=9)
        panel.axis("off")
    figure.suptitle(title, fontsize=11, x=0, ha="left")
    plt.show()


def words_of(rows, names=str):
    """Names of ids, row by row; None where an id is -100."""
    return [[None if i == -100 else names(i) for i in row] for row in rows.tolist()]


batch = pad([[5, 6, 7, 8], [9, 10]])
ids, mask = batch.input_ids, batch.attention_mask
own = ids.masked_fill(mask == 0, -100)
draw_labels(
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
    "The same two rows of labels, by two conventions",
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
# ## Padding with an id of its own
#
# From here on the ids come from tokenizers, and the question is where the padding's id comes from.
# First the simple case, BERT's. Its WordPiece tokenizer (Devlin et al. 2018, arXiv:1810.04805,
# section 3) splits rare words into pieces and wraps each sentence in `[CLS]` and `[SEP]`. We train
# a small one on a few sentences.

# %%
texts = [
    "A short sentence.",
    "Another, rather longer sentence about a dog.",
    "The quick brown fox jumps over the lazy dog.",
    "What do dogs do all day? Dogs sleep, and then they play.",
    "What do cats do all night? Cats play, and then they sleep.",
    "Dogs sleep.",
    "all day?",
    "and play.",
] * 4
wordpiece = Tokenizer.train(texts, vocab_size=300, kind="wordpiece")
rows = wordpiece.encode(["A short sentence.", "Another, rather longer sentence about a dog."])
batch = pad(rows, wordpiece.pad_id)
for row in rows:
    print(" ".join(wordpiece.names(row)))
print(batch.input_ids)
print(batch.attention_mask)
assert batch.attention_mask[0].tolist() == [1] * 6 + [0] * (len(rows[1]) - 6)
assert (batch.input_ids[0, 6:] == wordpiece.pad_id).all()

# %% [markdown]
# The attention mask is ones and zeros: 1 for each token of the sentence, `[CLS]` and `[SEP]`
# included, and 0 for each `[PAD]`. `[PAD]` has an id of its own here, which is never a label. So
# the mask could be read off the ids, and people get used to writing `ids != pad_id`. Note that
# `pad` does not do that. It was given lists, and it knows their lengths.

# %% [markdown]
# ## pad = eos
#
# Llama's tokenizer has no padding token, and so many recipes pad with the end of sequence:
# `tokenizer.pad_token = tokenizer.eos_token`, then `padding="max_length", max_length=8`, and labels
# with -100 at padding. The same with our own small byte-level tokenizer, whose start is `<s>` and
# whose end is `</s>`:

# %%
bpe = Tokenizer.train(texts, vocab_size=400)  # <s> ... </s>, as Llama's
rows = bpe.encode(["A short sentence.", "the lazy dog"])
batch = pad(rows, pad_id=bpe.eos_id, max_length=8)
ids, mask = batch.input_ids, batch.attention_mask
print("eos_id:", bpe.eos_id)
print(ids)
print(mask)


# %% [markdown]
# From the ids alone you cannot tell the end of the first sentence from the padding after it: both
# are 2. The mask can, because it was made from lengths. Now two ways to make labels. The first
# looks at the mask, the second at the ids. The second is what Hugging Face's
# `DataCollatorForLanguageModeling` does with such a tokenizer (transformers 5.24).


# %%
def labels_from_lengths(ids, attention_mask):
    return next_token_labels(ids, attention_mask)


def labels_from_ids(ids, attention_mask):
    labels = next_token_labels(ids, attention_mask)
    return labels.masked_fill(labels == bpe.eos_id, -100)  # "that is padding"


def name(i):
    return bpe.names([i])[0].replace("Ġ", "␣").replace("Ċ", "⏎")


draw_labels(
    {
        f"{way.__name__}: </s> is a label {(way(ids, mask) == bpe.eos_id).sum()} times": (
            words_of(ids, name),
            words_of(way(ids, mask), name),
            mask.tolist(),
        )
        for way in (labels_from_lengths, labels_from_ids)
    },
    "pad = eos: who learns to stop?",
)
assert (labels_from_lengths(ids, mask) == bpe.eos_id).sum() == 2
assert (labels_from_ids(ids, mask) == bpe.eos_id).sum() == 0

# %% [markdown]
# One label is missing in each row, the last. It is the label that says: *the text ends here*.
# Everything else is the same. `collate_lm` makes its labels from lengths, so it may be given
# `pad_id=eos_id`:

# %%
assert torch.equal(
    collate_lm(rows, pad_id=bpe.eos_id, max_length=8).labels, labels_from_lengths(ids, mask)
)

# %% [markdown]
# ## A model that never stops
#
# Does one label in a row matter? We train twice. The texts count: a start, some numbers, the end,
# for example `<s> 7 8 9 10 </s>`. From some starts several lengths are possible, so a model cannot
# be certain when the end comes, but it can guess well. Both models start from the same weights and
# see the same batch 80 times. Only the labels differ.

# %%
BOS, EOS, STEPS = 1, 2, 80


def counting(shortest, longest):
    rows = [
        [BOS, *range(first, first + n), EOS]
        for first in range(5, 20)
        for n in range(shortest, longest)
    ]
    return [row for row in rows if sum(row) % 3]


texts_that_count = counting(2, 6)
padded = pad(texts_that_count, pad_id=EOS)
right_labels = next_token_labels(padded.input_ids, padded.attention_mask)


def train_counter(padded, labels):
    due = next_token_labels(padded.input_ids, padded.attention_mask) == EOS  # the text ends next
    torch.manual_seed(0)
    model = DecoderOnly(Config(40, 32, num_layers=1, num_heads=2, max_length=64, style="gpt2"))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    losses, stops = [], []
    for _ in range(STEPS):
        optimizer.zero_grad()
        loss = model.loss(padded.input_ids, padded.attention_mask, labels)
        loss.backward()
        optimizer.step()
        with torch.no_grad():
            logits = model(padded.input_ids, padded.attention_mask)
        losses.append(loss.item())
        stops.append(logits.softmax(dim=-1)[..., EOS][due].mean().item())
    return model, losses, stops


counters = {
    "labels from lengths": train_counter(padded, right_labels),
    "labels from ids": train_counter(padded, right_labels.masked_fill(right_labels == EOS, -100)),
}

# %%
steps = list(range(1, STEPS + 1))
figure, axes = plt.subplots(1, 2, figsize=(9.5, 3.2), layout="constrained")
for (label, (_, losses, stops)), colour in zip(
    counters.items(), ("#08519c", "#d9822b"), strict=True
):
    axes[0].plot(steps, losses, color=colour, label=label)
    axes[1].plot(steps, stops, color=colour, label=label)
axes[0].set(xlabel="training step", ylabel="loss (nats per token)", title="The loss of both falls")
axes[1].set(
    xlabel="training step",
    ylabel="probability of </s>",
    ylim=(-0.03, 1.03),
    title="Mean probability of </s>, where a text ends",
)
for panel in axes:
    panel.legend(frameon=False)
plt.show()
for label, (_, losses, stops) in counters.items():
    print(f"{label:<20} last loss {losses[-1]:.3f}   probability of the end {stops[-1]:.1e}")
assert counters["labels from ids"][1][-1] < counters["labels from lengths"][1][-1]

# %% [markdown]
# Look at the left half alone: the wrong labels have the *better* loss. No surprise: a hard
# question, "does it end here?", is no longer asked. The right half shows what it costs. Now let
# both write.

# %% tags=["varies"]
starts = pad([[BOS, first] for first in range(5, 20)])
for label, (model, _, _) in counters.items():
    written = generate(model, starts.input_ids, starts.attention_mask, 40, eos_id=EOS)
    stopped = sum(row[-1].item() == EOS for row in written)
    print(f"{label}: {stopped} of {len(written)} texts stop within 40 tokens")
    for start, row in list(zip(starts.input_ids.tolist(), written, strict=True))[:2]:
        words = ["</s>" if token == EOS else str(token) for token in [*start[1:], *row.tolist()]]
        print("   ", " ".join(words[:16]), "..." if len(words) > 16 else "")
    assert stopped == (len(written) if label == "labels from lengths" else 0)

# %% [markdown]
# With the right labels every text stops. With the others none does, and 40 is only where we stopped
# looking: `</s>` was never a label, so its probability was pushed down at every position and up at
# none.
#
# ### Try it
#
# Add a padding token of its own instead: `pad(texts_that_count, pad_id=0)`, and ignore 0 in
# `train_counter`'s labels. Why is the result then right although it is made from ids? (Which id
# never stands in a text?)

# %% [markdown]
# ## Learning the answer and not the question
#
# In fine-tuning a row is a prompt and an answer. The model shall read the prompt and write the
# answer, so the prompt's labels are -100. The prompt keeps its 1s in the attention mask: *not
# learned* and *not seen* are two things, and two tensors say them.
#
# The last token of the prompt predicts the first of the answer, and that one counts.

# %%
row, prompt_length = [5, 6, 7, 8], 2  # the prompt is 5 6
(found,) = completion_labels([row], [prompt_length])
print(found)
assert found == [-100, 7, 8, -100]

# %% [markdown]
# Off by one is easy here. A natural thought is: "the first two positions are the prompt, they get
# -100". The first token of the answer is then never learned:

# %%
shifted = [6, 7, 8, -100]
off_by_one = [-100] * prompt_length + shifted[prompt_length:]
print("wanted:    ", found)
print("off by one:", off_by_one, " <- nobody predicts 7")

# %% [markdown]
# A conversation has several questions and answers. `chat_example` takes its turns and a template
# which says what stands before and after what is said. It encodes the parts one by one and keeps
# count, so it knows which tokens are the assistant's. It gives labels at their own tokens;
# `collate_lm` moves them.

# %%
turns = [
    {"role": "user", "content": "What do dogs do?"},
    {"role": "assistant", "content": "Dogs sleep."},
    {"role": "user", "content": "all day?"},
    {"role": "assistant", "content": "and play."},
]


def template(role, content):
    return f"{'Q' if role == 'user' else 'A'}:", content, "</s>"


def encode(text):
    return bpe.encode([text], add_special=False)[0]


example = chat_example(turns, encode, template)
batch = collate_lm([example])
half = len(chat_example(turns[:2], encode, template)["input_ids"])
draw_labels(
    {
        f"{place} two turns": (
            words_of(batch.input_ids[:, part], name),
            words_of(batch.labels[:, part], name),
            batch.attention_mask[:, part].tolist(),
        )
        for place, part in {"first": slice(0, half), "last": slice(half, None)}.items()
    },
    "Only what the assistant says is learned, and its end",
)

# %% [markdown]
# Two things to see. The `</s>` after an answer is learned: the model must stop there and leave the
# word to the user. The `</s>` after a question is not: it is the user who ends it.
#
# ### Try it: search for the answer instead
#
# Another way is to look in the ids for a marker, here `A:`, and to learn what follows it. It works
# until somebody *says* the marker.

# %%
quoting = [
    {"role": "user", "content": "What does A: mean?"},
    {"role": "assistant", "content": "Another sentence."},
]


def searched(ids, marker, end):
    """Labels at their own tokens: all that stands between a marker and the next end."""
    labels, learning = [-100] * len(ids), False
    for i in range(len(ids)):
        if learning:
            labels[i] = ids[i]
            learning = ids[i] != end
        if ids[max(i + 1 - len(marker), 0) : i + 1] == marker:
            learning = True
    return labels


example = chat_example(quoting, encode, template)
by_search = searched(example["input_ids"], encode("A:"), bpe.eos_id)
for way, labels in {"counted": example["labels"], "searched": by_search}.items():
    learned = "".join(bpe.decode([i], skip_special=False) for i in labels if i != -100)
    print(f"{way:<9} learns {learned!r}")

# %% [markdown]
# The search learns a part of the question, because the user wrote the marker. That is why
# `chat_example` counts and never searches.

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
draw_labels(
    {
        way.__name__: (
            words_of(left.input_ids),
            words_of(way(left.input_ids, left.attention_mask)),
            left.attention_mask.tolist(),
        )
        for way in (shift, next_token_labels)
    },
    "Padding on the left: does padding predict the first token?",
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
# ## The mean of means
#
# A batch that is too large for the memory is taken in parts, *micro-batches*: compute the loss of
# each, call `backward` for each, and step once. Gradients add up. But what is it that should be
# added?
#
# Two parts. In the first one label counts, and its loss is 9. In the second three labels count, and
# each has the loss 1.

# %%
parts = [torch.tensor([9.0]), torch.tensor([1.0, 1.0, 1.0])]
mean_of_means = sum(part.mean() for part in parts) / len(parts)
mean_of_all = torch.cat(parts).mean()
print("mean of means:", mean_of_means.item(), "  mean of all:", mean_of_all.item())
assert (mean_of_means, mean_of_all) == (5.0, 3.0)

# %% [markdown]
# In the mean of means the first token has a weight of 1/2, and each of the others 1/6. Which tokens
# happen to share a part with few others decides what is learned. Widely used trainers had this bug
# until October 2024 (the Hugging Face blog tells the story:
# huggingface.co/blog/gradient_accumulation).
#
# The remedy is to divide by the same number everywhere: the number of labels in *all* parts. That
# is what `num_labels` is for. First the gradients: a model that has learned to count, texts of many
# lengths, parts of two rows.

# %%
rows = counting(1, 19)
random.Random(0).shuffle(rows)
whole = collate_lm(rows, pad_id=EOS)
model, _, _ = train_counter(whole, whole.labels)
total = int((whole.labels != -100).sum())
micro_batches = [collate_lm(rows[i : i + 2], pad_id=EOS) for i in range(0, len(rows), 2)]


def gradient(losses):
    """The gradient that the losses leave behind when each is sent backward."""
    model.zero_grad()
    for loss in losses:
        loss.backward()
    return torch.cat([p.grad.flatten() for p in model.parameters()]).clone()


wanted = gradient([model.loss(**whole)])
means = gradient(model.loss(**part) / len(micro_batches) for part in micro_batches)
weighted = gradient(model.loss(**part, num_labels=total) for part in micro_batches)
for label, found in {"mean of means": means, "num_labels": weighted}.items():
    error = (found - wanted).norm() / wanted.norm()
    print(f"{label:<14} is off by {error:.1g} times the length of the whole batch's gradient")
assert (weighted - wanted).norm() < 1e-4 * wanted.norm()
assert (means - wanted).norm() > 0.05 * wanted.norm()

# %% [markdown]
# With `num_labels` the gradient is that of the whole batch, up to rounding. The mean of means is
# another gradient altogether: this model has nearly finished learning, so the gradient of the whole
# is short, and what is left is mostly error.
#
# Is the error at least random, so that it evens out? We split the same rows into parts in 200
# random ways, for several sizes, and compare the mean of means with the loss over all tokens. In
# the picture a box holds the middle half of the 200 values, the line in it is the median, and
# circles are outliers.

# %%
with torch.no_grad():
    per_row = [collate_lm([row]) for row in rows]
    counts = torch.tensor([int((one.labels != -100).sum()) for one in per_row])
    sums = torch.stack([model.loss(**one, num_labels=1) for one in per_row])
truth = (sums.sum() / counts.sum()).item()
torch.testing.assert_close(truth, model.loss(**whole).item(), rtol=1e-4, atol=0)

generator = torch.Generator().manual_seed(0)
found = {}
for size in (1, 2, 4, 8, 16):
    values = []
    for _ in range(200):
        order = torch.randperm(len(rows), generator=generator)
        values.append(
            torch.stack([sums[p].sum() / counts[p].sum() for p in order.split(size)]).mean().item()
        )
    found[size] = values
    mean = sum(values) / len(values)
    print(f"parts of {size:>2} rows: mean of means {mean:.4f} on average, {mean / truth - 1:+.1%}")
print(f"all tokens alike: {truth:.4f}")
assert min(found[1]) > truth

# %%
figure, axes = plt.subplots(figsize=(7, 3.2), layout="constrained")
axes.boxplot(list(found.values()), tick_labels=list(found), widths=0.5)
axes.axhline(truth, color="#08519c", label="every token alike (num_labels)")
axes.set(
    xlabel="rows in a part",
    ylabel="loss (nats per token)",
    title="200 random splits of the same rows: the mean of means is off to one side",
)
axes.legend(frameon=False)
plt.show()

# %% [markdown]
# It does not even out. In short texts a larger share of the tokens is hard (the first number, and
# the end), and the mean of means gives short texts more weight than they have tokens. The smaller
# the parts, the larger the error.
#
# The same holds for training on several devices, where each takes a part: add up the numbers of
# labels first, then divide.
#
# ### Try it: sorted by length
#
# To save padding, rows of similar lengths are often put into the same part. Before you run the next
# cell: does the error become smaller or larger?

# %%
by_length = counts.argsort()
for size in (4, 8, 16):
    means = [sums[p].sum() / counts[p].sum() for p in by_length.split(size)]
    mean = torch.stack(means).mean().item()
    print(f"sorted, parts of {size:>2} rows: mean of means {mean:.4f}, {mean / truth - 1:+.1%}")

# %% [markdown]
# Much larger. In random parts short and long rows are mixed, so all parts have similar numbers of
# labels. Sorted parts are as unequal as the rows themselves. What happens if all rows are equally
# long, and every part has as many of them? Why?

# %% [markdown]
# ## Exercises

# %% [markdown]
# <!-- exercise: cross_entropy -->

# %% [markdown]
# <!-- exercise: prompt_labels -->

# %% [markdown]
# <!-- exercise: accumulate -->

# %% [markdown]
# <!-- exercise: mask_tokens -->

# %% [markdown]
# ## Check yourself
#
# 1. A row has the labels `[4, -100, 7, -100]` and the probabilities of the right classes are 1/2
#    and 1/8. What is the loss, in multiples of log 2?
# 2. Why is `(losses * (labels != -100)).sum()` not the same as leaving the positions out?
# 3. A tokenizer has `pad_id == eos_id`. What can still be told from the attention mask that cannot
#    be told from the ids?
# 4. A prompt's labels are -100. What would happen if its attention mask were 0 as well?
# 5. Your fine-tuned model never says the first word of its answers right, and everything else is
#    fine. What do you look at?
# 6. Two micro-batches have 10 and 30 labels. By which number must the sum of losses of each be
#    divided?
#
# <details>
# <summary>Answers</summary>
#
# 1. (1 + 3) / 2 = 2: the loss is 2 log 2. The two positions with -100 are not in the divisor.
# 2. 0 · NaN is NaN, and 0 · ∞ too. Besides, the sum must still be divided by the number of labels
#    that count, not by the number of positions.
# 3. Which `</s>` is the real end of a text, and which one is padding.
# 4. The answer could not attend to it: the model would learn to answer questions that it cannot
#    read.
# 5. At the label of the prompt's last token: -100 there is off by one.
# 6. Both by 40.
#
# </details>
