# %% [markdown]
# # A transformer on one page
#
# Encoder, decoder and encoder-decoder, with torch alone. All three are one stack of layers; what
# differs is a table of True and False, the *mask*: may this query look at that key? A padding mask
# and a causal mask are enough, and `&` joins them.

# %%
import datetime
import random
import time

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def padding_mask(queries: Tensor, keys: Tensor) -> Tensor:
    """(batch, 1, queries, keys): a real token may look at real tokens, padding at nothing."""
    return queries.bool()[:, None, :, None] & keys.bool()[:, None, None, :]


def causal_mask(length: int) -> Tensor:
    """(length, length): a token may look at itself and at what stands before it."""
    return torch.ones(length, length, dtype=torch.bool).tril()


# %% [markdown]
# Attention (Vaswani et al. 2017, equation 1): a query shares out 100 % among the keys that it may
# look at, for exp(−∞) is exactly 0. One that may look at none would divide 0 by 0: it gets zeros.


# %%
def attention(query: Tensor, key: Tensor, value: Tensor, mask: Tensor) -> Tensor:
    """query (b,h,q,d), key and value (b,h,k,d), mask (b,1,q,k) -> (b,h,q,d)."""
    alive = mask.any(dim=-1, keepdim=True)
    scores = query @ key.mT / query.shape[-1] ** 0.5
    weights = scores.masked_fill(~mask & alive, float("-inf")).softmax(dim=-1)
    return (weights @ value).masked_fill(~alive, 0.0)


class Attention(nn.Module):
    """Several attentions side by side, each in a part of the width (a *head*)."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.query, self.key, self.value, self.out = (nn.Linear(width, width) for _ in range(4))

    def forward(self, x: Tensor, memory: Tensor, mask: Tensor) -> Tensor:
        """x asks, memory answers; in self-attention they are the same tokens."""
        given = self.query(x), self.key(memory), self.value(memory)
        split = (t.unflatten(-1, (self.heads, -1)).transpose(1, 2) for t in given)
        return self.out(attention(*split, mask).transpose(1, 2).flatten(2))


class Layer(nn.Module):
    """Look around, look into the memory if there is one, think: each adds to what was known."""

    def __init__(self, width: int, heads: int, cross: bool):
        super().__init__()
        self.self_attention = Attention(width, heads)
        self.cross_attention = Attention(width, heads) if cross else None
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(3))

    def forward(self, x: Tensor, mask: Tensor, memory=None, memory_mask=None) -> Tensor:
        y = self.norms[0](x)
        x = x + self.self_attention(y, y, mask)
        if self.cross_attention:
            x = x + self.cross_attention(self.norms[1](x), memory, memory_mask)
        return x + self.down(F.gelu(self.up(self.norms[2](x))))


class Stack(nn.Module):
    """Tokens become vectors that know their place; then layer after layer, with the same mask."""

    def __init__(self, vocabulary: int, layers=1, width=96, heads=4, longest=64, cross=False):
        super().__init__()
        self.token, self.place = nn.Embedding(vocabulary, width), nn.Embedding(longest, width)
        self.layers = nn.ModuleList(Layer(width, heads, cross) for _ in range(layers))
        self.norm = nn.LayerNorm(width)

    def forward(self, ids: Tensor, real: Tensor, mask: Tensor, *memory: Tensor) -> Tensor:
        place = (real.long().cumsum(dim=1) - 1).clamp(min=0)  # padding counts nowhere
        x = self.token(ids) + self.place(place)
        for layer in self.layers:
            x = layer(x, mask, *memory)
        return self.norm(x)


# %% [markdown]
# The three models. Read the masks: they are the whole difference. `real` is True (or 1) at a token.


# %%
class Encoder(Stack):
    """Every token sees every token: to understand."""

    def forward(self, ids: Tensor, real: Tensor) -> Tensor:
        return super().forward(ids, real, padding_mask(real, real))


class Decoder(Stack):
    """Every token sees what stands before it: to write."""

    def __init__(self, vocabulary: int, width=96, **sizes):
        super().__init__(vocabulary, width=width, **sizes)
        self.next = nn.Linear(width, vocabulary)

    def forward(self, ids: Tensor, real: Tensor, *memory: Tensor) -> Tensor:
        mask = padding_mask(real, real) & causal_mask(ids.shape[1])
        return self.next(super().forward(ids, real, mask, *memory))


class EncoderDecoder(nn.Module):
    """One stack reads, the other writes and looks into what was read: to translate."""

    def __init__(self, vocabulary: int, **sizes):
        super().__init__()
        self.encoder = Encoder(vocabulary, **sizes)
        self.decoder = Decoder(vocabulary, **sizes, cross=True)

    def forward(self, source: Tensor, source_real: Tensor, ids: Tensor, real: Tensor) -> Tensor:
        memory = self.encoder(source, source_real)
        return self.decoder(ids, real, memory, padding_mask(real, source_real))


# %% [markdown]
# Something to learn: dates as people write them, to be written as `2025-06-03`. Every fourth day is
# held out. Where nothing is to be predicted the label is −100, and the loss leaves it out.

# %%
PAD, START = 0, 1
MONTHS = [
    "January February March April May June July August September October November December",
    "Januar Februar März April Mai Juni Juli August September Oktober November Dezember",
    "janvier février mars avril mai juin juillet août septembre octobre novembre décembre",
]
LETTERS = {letter: 2 + n for n, letter in enumerate(sorted(set("0123456789-., ".join(MONTHS))))}
DAYS = [datetime.date(1900, 1, 1) + datetime.timedelta(days=n) for n in range(73_000)]


def written(day: datetime.date) -> str:
    en, de, fr = (months.split()[day.month - 1] for months in MONTHS)
    d, y = day.day, day.year
    return random.choice([f"{en} {d}, {y}", f"{d}. {de} {y}", f"{d} {fr} {y}", f"{day:%d.%m.%Y}"])


def pad(rows: list, value: int) -> Tensor:
    rows = [torch.tensor(row) for row in rows]
    return nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=value)


def batch(days: list[datetime.date]) -> tuple[Tensor, Tensor, Tensor]:
    """What is read, what is written after START, and the label of each: the letter after it."""
    source = [[LETTERS[letter] for letter in written(day)] for day in days]
    target = [[LETTERS[letter] for letter in day.isoformat()] for day in days]
    return pad(source, PAD), pad([[START, *row[:-1]] for row in target], PAD), pad(target, -100)


def train(model: EncoderDecoder, steps: int) -> None:
    optimizer = torch.optim.AdamW(model.parameters())
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 4e-3, steps)
    for step in range(steps):
        source, ids, labels = batch([d for d in random.sample(DAYS, 128) if d.toordinal() % 4])
        logits = model(source, source != PAD, ids, ids != PAD)
        loss = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=-100)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if step % 100 == 99:
            print(f"step {step + 1}: loss {loss.item():.4f}")


@torch.no_grad()
def read(model: EncoderDecoder, source: Tensor) -> Tensor:
    """Greedy: the likeliest letter, then the next."""
    ids = torch.full((len(source), 1), START)
    for _ in "2025-06-03":
        logits = model(source, source != PAD, ids, ids != PAD)
        ids = torch.cat([ids, logits[:, -1:].argmax(dim=-1)], dim=1)
    return ids[:, 1:]


if __name__ == "__main__":
    torch.set_num_threads(1)
    torch.manual_seed(0)
    random.seed(0)
    model, start = EncoderDecoder(2 + len(LETTERS)), time.perf_counter()
    train(model, 400)
    source, _, labels = batch(random.sample([d for d in DAYS if d.toordinal() % 4 == 0], 1000))
    right = (read(model, source) == labels).all(dim=1).float().mean()
    print(f"{right:.1%} of 1,000 held-out days, {time.perf_counter() - start:.0f} seconds")
    assert right > 0.95

# %% [markdown]
# The package is this, and what it takes in earnest: zero where padding holds NaN (`attention.py`),
# several documents in a row (`masks.py`), only what the mask shows computed (`kernels/`), a cache
# (`cache.py`), pretrained weights (`pretrained/`). The [course](README.md) goes there.
