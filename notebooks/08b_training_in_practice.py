# %% [markdown]
# # 8b. Training in practice
#
# *Reading takes about 30 minutes, running a minute and a half on one CPU thread. It presumes
# chapter 8.*
#
# Chapter 8 trains on a text that came with Python, and is never interrupted. Here is what comes up
# when the text is your own and the training takes long: what is held out, what a token is, how
# models whose tokens differ are compared, and what must be saved.
#
# After this chapter you will be able to
#
# - split a text so that held out means unseen;
# - say what byte-pair encoding does, and why a tokenizer must not see the held-out text;
# - compare models whose tokens differ;
# - say what must be saved so that an interrupted training goes on as if nothing had happened, and
#   how a file is written so that half of it is never read.

# %%
import copy
import math
import tempfile
from collections import Counter
from dataclasses import asdict
from itertools import pairwise
from pathlib import Path

import matplotlib.pyplot as plt
import torch
from matplotlib_inline.backend_inline import set_matplotlib_formats

from minitransformer import Config, DecoderOnly, next_token_labels, pack
from minitransformer.data import cutting
from minitransformer.data.held_out import normal_form, place, split
from minitransformer.data.manifest import DamagedError, read_folder, write_folder
from minitransformer.data.tokenization import Tokenizer
from minitransformer.training.loop import Settings, Training, train
from minitransformer.training.run import Run
from minitransformer.training.saver import files_of
from minitransformer.training.tasks import DataOptions, make_task
from minitransformer.training.tasks.language import python_prose

set_matplotlib_formats("png")
torch.manual_seed(0)
torch.set_num_threads(1)

# %% [markdown]
# ## Your own text
#
# The text of chapter 8 came with Python. Yours is a file, or a folder of files:
# `make_task("lm", DataOptions("my_texts"))`. Between the file and the batch four things are
# decided: what a text is (a paragraph), which texts are held out, what a token is, and where a long
# text is cut. Each of them can make a result look better than it is.
#
# ## Held out means unseen
#
# The usual split shuffles the texts and takes one in twenty. Here it is, on Python's paragraphs.
# How many of those held out stand in the training part, too?

# %%
paragraphs = [record.values[0] for record in python_prose()]


def shuffled_split(texts):
    order = torch.randperm(len(texts), generator=torch.Generator().manual_seed(0)).tolist()
    chosen = set(order[: len(texts) // 20])
    training = [text for i, text in enumerate(texts) if i not in chosen]
    return training, [texts[i] for i in sorted(chosen)]


def seen_before(training, held_out):
    known = {normal_form(text) for text in training}
    return sum(normal_form(text) in known for text in held_out)


def by_hash(texts):
    return split(texts, text=lambda text: text)


seen = {}
for name, how in {"shuffled": shuffled_split, "by hash": by_hash}.items():
    training_part, held_out_part = how(paragraphs)
    seen[name] = seen_before(training_part, held_out_part)
    print(f"{name}: {len(held_out_part)} held out, {seen[name]} of them are also trained on")
assert seen["shuffled"] > 10
assert seen["by hash"] == 0

# %% [markdown]
# The manual says many things in several places. So does the web: a large corpus is full of
# licenses, menus and articles copied from elsewhere. A model that has learned a text by heart is
# then praised for what looks like understanding.
#
# `split` asks the text itself. It brings it to a *normal form* (one Unicode form, lower case, one
# space between words), takes a hash of that, a number that looks random, and holds the text out if
# the number is divisible by 20. So a copy goes where the original went, even in other case and with
# other spaces. And a text stays where it is when others are added.

# %%
text = paragraphs[0]
copy_of_it = "  " + text.upper().replace(" ", "\n   ")
print(repr(text[:50]), "→", place(text) % 20)
print(repr(copy_of_it[:50]), "→", place(copy_of_it) % 20)
assert place(text) == place(copy_of_it)

half = paragraphs[: len(paragraphs) // 2]
for name, how in {"shuffled": shuffled_split, "by hash": by_hash}.items():
    before = {normal_form(text) for text in how(half)[1]}
    trained_on = {normal_form(text) for text in how(paragraphs)[0]}
    moved = len(before & trained_on)
    print(f"{name}: the file grows, and {moved} of {len(before)} held-out texts are trained on")
    assert (moved == 0) == (name == "by hash")

# %% [markdown]
# The second half of that cell is about a model that is trained again next month, on more text. With
# the shuffled split the new training part holds nearly all of what was held out before, and the two
# results cannot be compared. (A hash finds copies. It does not find a text in which a word was
# changed.)
#
# ## Words instead of characters
#
# With characters a row of 64 is one line. *Byte-pair encoding* (BPE; Sennrich et al. 2015,
# arXiv:1508.07909) makes longer tokens: take the two neighbors that stand together most often,
# call them one token, and again. Four times, by hand:

# %%
words = [list(word) for word in ("low", "low", "lower", "lower", "newest", "newest", "widest")]
for _ in range(4):
    neighbors = Counter(pair for word in words for pair in pairwise(word))
    (a, b), count = neighbors.most_common(1)[0]
    for word in words:
        for i in range(len(word) - 2, -1, -1):
            if word[i : i + 2] == [a, b]:
                word[i : i + 2] = [a + b]
    print(f"{a} + {b}, {count} times:", *("·".join(word) for word in words[::2]))

# %% [markdown]
# `tokenizer="bpe"` does that 1,739 times and has 2,000 tokens then: 256 bytes and five special ones
# are there at the beginning. As any text is bytes, none is unknown to it. The vocabulary of
# characters, that of chapter 8, has a hole wherever the training text has one.

# %%
task = make_task("lm", max_length=64)
vocabulary = task.vocabulary
bpe_task = make_task("lm", DataOptions(tokenizer="bpe", vocab_size=2000), max_length=64)
bpe = bpe_task.vocabulary
print(*bpe_task.notes, sep="\n")
for name, tokens in {"characters": vocabulary, "BPE": bpe}.items():
    (row,) = tokens.encode(["naïve 😀"], add_special=False)
    print(f"{name}: {row.count(tokens.unk_id)} unknown, read back as {tokens.decode(row)!r}")
assert bpe.decode(bpe.encode(["naïve 😀"])[0]) == "naïve 😀"

# %%
sentence = "The assignment statement evaluates the expression list."
figure, axes = plt.subplots(figsize=(9.5, 1.7), layout="constrained")
for height, tokens in ((1, vocabulary), (0, bpe)):
    ((ids, starts),) = tokens.encode_with_starts([sentence])
    for i, (start, end) in enumerate(zip(starts, [*starts[1:], len(sentence)], strict=True)):
        color = ("#c6dbef", "#fdd9b5")[i % 2]
        axes.barh(height, end - start, left=start, height=0.75, color=color)
    for x, character in enumerate(sentence):
        axes.text(x + 0.5, height, character, ha="center", va="center", family="monospace")
    kind = "characters" if tokens is vocabulary else "BPE"
    axes.text(-0.7, height, f"{kind}: {len(ids)}", ha="right", va="center")
axes.set(xlim=(-9, len(sentence)), ylim=(-0.5, 1.5), title="The same text in tokens")
axes.axis("off")
plt.show()

# %% [markdown]
# The space before a word belongs to the word. Frequent words are one token, others are made of
# parts.
#
# The tokenizer is trained on the training part *alone*. What if it sees all of the text? Look at
# the words that stand in the held-out part only: how many of them become a single token?

# %%
training_part, held_out_part = by_hash(paragraphs)
new_words = sorted(set(" ".join(held_out_part).split()) - set(" ".join(training_part).split()))
print(f"{len(new_words)} words stand in the held-out part only, such as {new_words[120:123]}")
found = {}
for size in (2000, 8000):
    for name, texts in {"the training part": training_part, "all": paragraphs}.items():
        tokenizer = Tokenizer.train(texts, size)
        tokens = sum(map(len, tokenizer.encode(held_out_part, add_special=False)))
        rows = tokenizer.encode([" " + word for word in new_words], add_special=False)
        found[size, name] = tokens, sum(len(row) == 1 for row in rows)
        print(f"{size:,} tokens, trained on {name}: held-out part {tokens:,} tokens,", end=" ")
        print(f"{found[size, name][1]} new words are one token")
assert found[8000, "all"][1] > 2 * found[8000, "the training part"][1]

# %% [markdown]
# A tokenizer that has seen the held-out text has words ready for it, and needs fewer tokens. With
# 2,000 tokens that is little, with 8,000 it is not. It would not be so for the text that comes
# tomorrow: the measurement has been told the answer.
#
# ## Which model is better?
#
# The same model three times, 300 steps each: with characters, and with BPE of 1,000 and of 2,000
# tokens.

# %%
tasks = {"characters": task}
for size in (1000, 2000):
    options = DataOptions(tokenizer="bpe", vocab_size=size)
    tasks[f"BPE {size:,}"] = make_task("lm", options, max_length=64)
settings = Settings(steps=300, batch_size=24, learning_rate=4e-3, warmup=50, evaluate_every=300)
trained = {}
for name, one in tasks.items():
    torch.manual_seed(0)
    config = Config(len(one.vocabulary), d_model=96, num_layers=2, max_length=64, style="llama")
    trained[name] = Training(DecoderOnly(config), settings)
    train(trained[name], one, quiet=True)

titles = ("loss a token", "bits a character", "perplexity of words")
print(f"{'':<12}{'tokens':>9}{'characters':>12}{'words':>7}{'nats':>8}", *titles, sep="  ")
measures = {}
for name, one in tasks.items():
    nats, _, labels = map(sum, zip(*one.measured(trained[name].model), strict=True))
    texts = [piece.text for piece in one.held_out]
    characters, words = sum(map(len, texts)), sum(len(text.split()) for text in texts)
    measures[name] = nats / labels, nats / characters / math.log(2), math.exp(nats / words)
    loss, bits, perplexity = measures[name]
    print(f"{name:<12}{labels:>11,}{characters:>14,}{words:>9,}{nats:>10,.0f}", end="")
    print(f"{loss:>14.2f}{bits:>18.2f}{perplexity:>21,.0f}")

# %%
figure, axes = plt.subplots(1, 3, figsize=(9.5, 2.3), layout="constrained")
for i, (panel, title) in enumerate(zip(axes, titles, strict=True)):
    values = [measure[i] for measure in measures.values()]
    colors = ["#08519c" if value == min(values) else "#bbbbbb" for value in values]
    panel.barh(list(measures), values, color=colors)
    panel.set_title(title, fontsize=10)
    panel.invert_yaxis()
    panel.spines[["top", "right"]].set_visible(False)
    if i:
        panel.set_yticks([])
figure.suptitle("Each measure, and whom it calls the best (blue)")
plt.show()
best = [min(measures, key=lambda name: measures[name][i]) for i in range(3)]
print("best:", *best, sep="   ")
assert best == ["characters", "BPE 2,000", "BPE 2,000"]
assert max(measures, key=lambda name: measures[name][2]) == "characters"
assert measures["BPE 1,000"][0] < measures["BPE 2,000"][0]

# %% [markdown]
# The loss a token says: characters, by far, and of the BPE models the one with fewer tokens. But a
# token is something else in each. To guess the next character is easier than to guess the next
# word, and there are more of them to be guessed. What all three share is the text. The loss of the
# whole text, in nats, is minus the logarithm of the probability that a model gives to it, and it
# may be divided by anything that the text alone decides:
#
# $$\text{bits a character} = \frac{\text{nats of the text}}{\text{characters} \cdot \log 2}
# \qquad \text{perplexity of words} = e^{\,\text{nats of the text} / \text{words}}$$
#
# By both BPE 2,000 is the best, and the characters, whose loss a token is so much lower, are the
# worst. The two differ a little in what they divide by. White space at a cut is left out (next
# section), and the characters are cut most often: up to 4% fewer of them are left to be guessed.
# The number of words is the same to 1%. So the perplexity of words is the fairer measure.
#
# Fair to the text, that is, and not to the reasons. The BPE models saw more of it in a step, have
# more parameters, and their 64 tokens reach three times as far back as 64 characters.
#
# ## Long texts are cut
#
# A text of more tokens than fit is cut. Where? Here is a passage with room for 120 characters: cut
# after every 120, and as `cutting.fit` does it.

# %%
passage = (
    "A class definition is an executable statement. The inheritance list usually gives a list of "
    "base classes. Classes without an inheritance list inherit from the base class object."
)
print("after 120:", *(repr(passage[i : i + 120]) for i in (0, 120)), sep="\n   ")
(pieces,) = cutting.fit(vocabulary, [passage], room=120)
print("after a sentence, if one ends in the last third, else after a line or a word:")
for piece in pieces:
    print("  ", repr(piece.text), "and an <eos>" if piece.ends else "")
assert " ".join(piece.text for piece in pieces) == passage
assert [piece.ends for piece in pieces] == [False] * (len(pieces) - 1) + [True]
assert [row[-1] == vocabulary.eos_id for row in task.rows(pieces)] == [p.ends for p in pieces]

# %% [markdown]
# Nothing is lost but the white space at a cut. Only the last piece is followed by `<eos>`. With one
# after each the model would learn that a text ends after about 120 characters, and write so.
#
# The split comes first and the cut second. The other way round, two pieces of one paragraph could
# be on both sides. (Up to a limit: what is longer than eight rows, here 512 characters, counts
# as several texts. So the task holds out 133 passages where `split` held out 115 paragraphs.)
#
# On a command line all of this is
#
# ```bash
# minitransformer train --task lm --data my_texts --tokenizer bpe --vocab-size 2000 --out runs/mine
# minitransformer evaluate runs/mine
# ```
#
# `--inspect` prints what was understood of the files, and stops.
#
# ### Try it
#
# - Train on a text of your own: `make_task("lm", DataOptions("file.txt"), 64)` reads paragraphs,
#   one a line or with empty lines between. What do the `notes` of the task say?
# - Train with `vocab_size=4000`. Does the loss a token rise again? Do bits a character fall? How
#   many of the parameters are in the embedding and the head now?
# - Change one word in a copy of a paragraph. Is it still on the same side? How would you find such
#   copies?

# %% [markdown]
# ## What a checkpoint must hold
#
# A long training may be interrupted: the power fails, or somebody else needs the machine. So it is
# saved now and then, in a **checkpoint**, from which it can be resumed. To *use* the model its
# weights are enough. To *go on* as if nothing had happened, we need all that the next step depends
# on:
#
# 1. the *weights*;
# 2. the *optimizer's state*: AdamW's two running means for each weight, and how many steps it has
#    made. (The means begin at 0 and are too small at first; the number of steps says how much.)
# 3. the *random state*: where the random number generator stands. Dropout draws from it.
# 4. the *position in the data*. Here that is one number, as `task.batch` is a function of the seed
#    and the step. With batches from an iterator, such as torch's `DataLoader`, its order and its
#    place must be saved, too.
# 5. the *settings*. The learning rate depends on the step, and on how many steps there will be.
#
# What happens if one is missing? A small model with dropout, 120 steps, a checkpoint after 60.
# `training.step` is one turn of chapter 8's loop. After each step we look at the loss on the same
# 20 held-out pieces, without dropout, so that runs can be compared. We also look at how far the
# step moved the weights: the median over all of them, as a multiple of the learning rate.

# %%
held_out = pack(task.rows(task.held_out[:20]), length=64)
held_out_labels = next_token_labels(held_out.input_ids, held_out.attention_mask)


def new_training(settings):
    torch.manual_seed(0)
    config = Config(len(vocabulary), d_model=64, max_length=64, dropout=0.1, style="llama")
    return Training(DecoderOnly(config), settings)


def weights_of(model):
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def make_steps(training, steps, first_batch):
    """Make some steps; return the held-out loss after each, and how far it moved the weights."""
    model, losses, moves = training.model, [], []
    for number in range(steps):
        before = weights_of(model)
        model.train()  # with dropout
        training.step(training.batch(task, first_batch + number))
        model.eval()  # without
        with torch.no_grad():
            loss = model.loss(held_out.input_ids, held_out.attention_mask, held_out_labels)
        losses.append(loss.item())
        rate = training.history[-1]["learning_rate"]
        moves.append((weights_of(model) - before).abs().median().item() / rate)
    return losses, moves


small = new_training(Settings(steps=120, batch_size=16, learning_rate=2e-2, warmup=20))
first_half = make_steps(small, 60, first_batch=0)

# %% [markdown]
# The checkpoint is a dictionary. It must be a copy: otherwise it would hold the very tensors that
# the training goes on to change.

# %%
checkpoint = copy.deepcopy(
    {
        "weights": small.model.state_dict(),
        "optimizer": small.optimizer.state_dict(),
        "random state": torch.get_rng_state(),
        "history": small.history,  # a row for each step: its length is the position
        "settings": asdict(small.settings),
    }
)
states = checkpoint["optimizer"]["state"].values()  # one for each parameter
print("weights       ", sum(t.numel() for t in checkpoint["weights"].values()), "numbers")
for name in ("exp_avg", "exp_avg_sq"):  # running means of the gradient and of its square
    print(f"{name:<14}", sum(state[name].numel() for state in states), "numbers")
print("steps of AdamW", {state["step"].item() for state in states})
print("random state  ", len(checkpoint["random state"]), "bytes")

# %% [markdown]
# Now the run goes on undisturbed. Then it is resumed four times from the checkpoint: with all of
# it, and with one part left out. `new_training` plays the new program that knows nothing of the
# old one. Without the position it starts again with batch 0.


# %%
def resume(checkpoint, without):
    checkpoint = copy.deepcopy(checkpoint)  # the optimizer would change it
    training = new_training(Settings(**checkpoint["settings"]))
    training.model.load_state_dict(checkpoint["weights"])
    if without != "optimizer's state":
        training.optimizer.load_state_dict(checkpoint["optimizer"])
    if without != "random state":
        torch.set_rng_state(checkpoint["random state"])
    training.history = checkpoint["history"]
    step = len(training.history)
    first_batch = 0 if without == "position" else step
    losses, moves = make_steps(training, training.settings.steps - step, first_batch)
    return losses, moves, weights_of(training.model)


undisturbed, _ = make_steps(small, 60, first_batch=60)
wanted = weights_of(small.model)
parts = ("nothing", "optimizer's state", "random state", "position")
resumed = {part: resume(checkpoint, without=part) for part in parts}
print(f"{'left out':<20}largest difference of any weight")
for part, (_, _, weights) in resumed.items():
    print(f"{part:<20}{(weights - wanted).abs().max().item()}")
assert torch.equal(resumed["nothing"][2], wanted)
assert resumed["nothing"][0] == undisturbed

# %% [markdown]
# With everything, the resumed run is the undisturbed one, bit for bit. With one part missing it is
# another run. Is it a worse one?

# %%
figure, axes = plt.subplots(1, 2, figsize=(9.5, 3.4), layout="constrained")
for panel, values, first in zip(axes, first_half, (40, 0), strict=True):
    panel.plot(range(first + 1, 61), values[first:], color="#777777")
    panel.axvline(60.5, color="#777777", ls=":", lw=1)
    panel.set_xlabel("training step")
for part, color in zip(parts, ("#333333", "#d9822b", "#08519c", "#5a8f3d"), strict=True):
    for panel, values in zip(axes, resumed[part], strict=False):
        panel.plot(range(61, 121), values, color=color, label=f"{part} left out")
axes[0].set(ylabel="nats per token", title="Held-out loss")
axes[0].legend(frameon=False)
axes[1].set(ylabel="multiples of the learning rate", title="How far a step moves a weight")
figure.suptitle("Resumed after step 60")
plt.show()

# %%
print(f"{'left out':<20}{'loss in steps 61-65':>20}{'111-120':>9}{'moved in step 61':>18}")
for part, (losses, moves, _) in resumed.items():
    early, late = sum(losses[:5]) / 5, sum(losses[-10:]) / 10
    print(f"{part:<20}{early:>20.3f}{late:>9.3f}{moves[0]:>18.2f}")
assert sum(resumed["optimizer's state"][0][:5]) > sum(undisturbed[:5]) + 5 * 0.03
seen = 60 * small.settings.batch_size
print(f"pieces seen: {2 * seen} of {len(task.training)}; without the position {seen}, each twice")

# %% [markdown]
# - **The optimizer's state.** The loss jumps, and needs many steps to come back. The right panel
#   says why. AdamW divides the mean gradient by the root of the mean square. If there was only one
#   gradient so far, that is +1 or −1: nearly every weight moves by the whole learning rate. Later
#   the gradients of different batches partly cancel in the mean, but not in the mean square, and
#   the steps are short. Step 1 is just as long, but there the warm-up keeps the learning rate low.
#   Step 61 has no warm-up.
# - **The random state.** Other units are dropped, so the weights differ. The curve is another one
#   and not a worse one. What is lost is that the run can be repeated: whether a difference comes
#   from a change to the code or from chance, you can no longer tell.
# - **The position.** The loss does not show it. All four curves end close together, and one run is
#   too little to tell such differences from chance. Yet the second half of the run saw the pieces
#   of the first half again, and none that was new. A training that is interrupted every 60 steps
#   would never see any others. As no curve tells you, a test must: is the resumed run equal to the
#   undisturbed one, bit for bit?

# %% [markdown]
# ### On the disk
#
# The power may fail, the disk may be full, or somebody may kill the process while it writes: what
# is left is half a file. Here is the model of characters from above as files, and what happens if
# one of them is cut.

# %%
one = trained["characters"]
files = files_of(Run("lm", one.model, vocabulary, asdict(settings), one.history), one)
for name, data in files.items():
    print(f"{name:<24}{len(data):>9} bytes")

with tempfile.TemporaryDirectory() as place:
    folder = Path(place, "000300")
    write_folder(folder, files)
    print("\nwritten:", *sorted(path.name for path in folder.iterdir()))
    assert read_folder(folder) == files
    cut = folder / "optimizer.safetensors"
    cut.write_bytes(cut.read_bytes()[:100_000])
    try:
        read_folder(folder)
    except DamagedError as error:
        print(cut.name, str(error).partition(": ")[2])

# %% [markdown]
# The optimizer's state is twice as large as the weights: two means for each.
#
# The folder is written *beside* its final place, brought to the disk (`fsync`), and then renamed.
# Renaming is a single step: under the final name there is a whole checkpoint or none, and the one
# before it is still there. `manifest.json` holds the size of each file and its sha256, a
# fingerprint that changes with any byte. No file is a *pickle*, the format of `torch.save`: whoever
# loads a pickle may run a program that somebody has put into it.
#
# What we did by hand is one command, `minitransformer train --resume RUN`. It goes on from the
# newest checkpoint in the folder RUN: on the same machine, with the same number of threads, to the
# same bits.
#
# ### Try it
#
# - Change the seed, both in `new_training` and with `Settings(seed=1, ...)`. Does the orange curve
#   still jump? Which curve ends highest now?
# - Take the checkpoint without `copy.deepcopy`. Which parts of it are still those of step 60 when
#   the run has ended?
# - In `resume`, have the schedule begin anew, with its warm-up: `range(60)` for the steps. How high
#   does the loss jump now without the optimizer's state? And what does the new schedule do to the
#   run in which nothing is left out?

# %% [markdown]
# ## Check yourself
#
# 1. A language model has a held-out loss of 1.9 nats a character, another 4.3 nats a token of BPE.
#    Which is better, and what would you compute?
# 2. You add texts to a folder that was split at random, and train again. The held-out loss is lower
#    than last month's. What may be the reason, other than a better model?
# 3. Your tokenizer was trained on all texts before they were split. Which number is too good?
# 4. Every piece of a long text, cut to fit, ends with `<eos>`. What does the model learn to do?
# 5. A run with dropout is resumed with its weights, its settings and the number of its last step.
#    What is missing, and how would you notice?
# 6. Why is a checkpoint written beside its place, and renamed?
#
# <details>
# <summary>Answers</summary>
#
# 1. That cannot be said: a token is something else in each. The loss of the whole held-out text, in
#    nats, divided by its characters or its words.
# 2. What is held out now was trained on, or the other way round: copies, or other texts drawn. A
#    split by a hash of the text leaves each where it was.
# 3. The number of tokens of the held-out text, and so its loss a character: words that only it has
#    are tokens already.
# 4. To stop after about as many characters as a piece has.
# 5. The optimizer's state: the loss jumps. The random state: only a comparison with a run that was
#    not interrupted shows it. (The position in the data is there if a batch depends on the seed and
#    the step only; the seed is among the settings.)
# 6. To rename is a single step. Under the final name there is a whole checkpoint or none, whenever
#    the power fails.
#
# </details>
