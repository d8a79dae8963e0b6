# %% [markdown]
# # 7b. Labels in practice
#
# *Reading takes about 30 minutes, running ten seconds on one CPU thread. It presumes chapter 7.*
#
# Chapter 7 says what a label is. Here are the three places where labels go wrong in practice: at
# the end of a text, in a conversation of which only one side is to be learned, and where a batch is
# split into parts. In none of the three does anything crash, and in the first the wrong labels even
# have the better loss.
#
# After this chapter you will be able to
#
# - make labels for padded rows, and find the bug that hides in `labels[ids == pad_id] = -100`;
# - train on answers only, and on one side of a conversation only;
# - accumulate gradients over several small batches so that the result is that of the large one.

# %%
import random

import matplotlib.pyplot as plt
import torch
from matplotlib_inline.backend_inline import set_matplotlib_formats

from minitransformer import (
    Config,
    DecoderOnly,
    completion_labels,
    generate,
    next_token_labels,
    pad,
)
from minitransformer.data.collate import chat_example, collate_lm
from minitransformer.data.tokenization import Tokenizer
from minitransformer.visualize import label_figure

set_matplotlib_formats("png")
torch.manual_seed(0)
torch.set_num_threads(1)

# %% [markdown]
# ## Padding with an id of its own
#
# The ids of this chapter come from tokenizers. Where does the id of padding come from? First the
# simple case, BERT's. Its WordPiece tokenizer (Devlin et al. 2018, arXiv:1810.04805, section 3)
# splits rare words into pieces and wraps each sentence in `[CLS]` and `[SEP]`. We train a small one
# on a few sentences.

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


def words_of(rows, names):
    """Names of ids, row by row; None where an id is -100."""
    return [[None if i == -100 else names(i) for i in row] for row in rows.tolist()]


def name(i):
    return bpe.names([i])[0].replace("Ġ", "␣").replace("Ċ", "⏎")


assert (labels_from_lengths(ids, mask) == bpe.eos_id).sum() == 2
assert (labels_from_ids(ids, mask) == bpe.eos_id).sum() == 0
label_figure(
    {
        f"{way.__name__}: </s> is a label {(way(ids, mask) == bpe.eos_id).sum()} times": (
            words_of(ids, name),
            words_of(way(ids, mask), name),
            mask.tolist(),
        )
        for way in (labels_from_lengths, labels_from_ids)
    },
    title="pad = eos: who learns to stop?",
)

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
for (label, (_, losses, stops)), color in zip(
    counters.items(), ("#08519c", "#d9822b"), strict=True
):
    axes[0].plot(steps, losses, color=color, label=label)
    axes[1].plot(steps, stops, color=color, label=label)
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
# In fine-tuning a row is a prompt and an answer. The model should read the prompt and write
# the answer, so the prompt's labels are -100. The prompt keeps its 1s in the attention mask: *not
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
off_by_one = [-100, -100, 8, -100]
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
label_figure(
    {
        f"{place} two turns": (
            words_of(batch.input_ids[:, part], name),
            words_of(batch.labels[:, part], name),
            batch.attention_mask[:, part].tolist(),
        )
        for place, part in {"first": slice(0, half), "last": slice(half, None)}.items()
    },
    title="Only what the assistant says is learned, and its end",
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
# ## The mean of means
#
# A batch that is too large for the memory is taken in parts, *micro-batches*: compute the loss of
# each, call `backward` for each, and step once. Gradients add up. But what is it that should be
# added?
#
# Two parts. In the first one label counts, and its loss is 9. In the second three labels count, and
# each has the loss 1.

# %%
mean_of_means = (9 / 1 + (1 + 1 + 1) / 3) / 2
mean_of_all = (9 + 1 + 1 + 1) / 4
print("mean of means:", mean_of_means, "  mean of all:", mean_of_all)
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
total = sum(len(row) - 1 for row in rows)  # labels: nothing predicts the first token of a row
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
    sums = torch.stack([model.loss(**collate_lm([row]), num_labels=1) for row in rows])
    truth = model.loss(**whole).item()
counts = torch.tensor([len(row) - 1 for row in rows])

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
# <!-- exercise: prompt_labels -->

# %% [markdown]
# <!-- exercise: accumulate -->

# %% [markdown]
# ## Check yourself
#
# 1. A tokenizer has `pad_id == eos_id`. What can still be told from the attention mask that cannot
#    be told from the ids?
# 2. A model is trained with `labels[ids == eos_id] = -100`. Its loss is lower than that of the
#    model with the right labels. Why?
# 3. A prompt's labels are -100. What would happen if its attention mask were 0 as well?
# 4. Your fine-tuned model never says the first word of its answers right, and everything else is
#    fine. What do you look at?
# 5. Two micro-batches have 10 and 30 labels. By which number must the sum of losses of each be
#    divided?
#
# <details>
# <summary>Answers</summary>
#
# 1. Which `</s>` is the real end of a text, and which one is padding.
# 2. It is not asked a hard question: whether the text ends here.
# 3. The answer could not attend to it: the model would learn to answer questions that it cannot
#    read.
# 4. At the label of the prompt's last token: -100 there is off by one.
# 5. Both by 40.
#
# </details>
