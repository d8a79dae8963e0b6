"""What generation must write, by its definitions: one text at a time, no padding, no cache."""

from functools import cache

import torch
from torch import Tensor, nn

from minitransformer import Config, DecoderOnly, EncoderDecoder, pad


def batch_of(rows, side="left", device="cpu") -> tuple[Tensor, Tensor]:
    batch = pad(rows, side=side).to(device)
    return batch.input_ids, batch.attention_mask


def as_lists(rows: list[Tensor]) -> list[list[int]]:
    for row in rows:
        assert row.ndim == 1
        assert row.dtype == torch.int64
    return [row.tolist() for row in rows]


class Table(nn.Module):
    """A head that looks up the logits of what follows each token."""

    def __init__(self, probabilities: Tensor):
        super().__init__()
        self.logits = nn.Parameter(probabilities.log())

    def forward(self, hidden: Tensor) -> Tensor:
        return self.logits[hidden[:, : len(self.logits)].argmax(dim=-1)]


def likely(model, prompt: tuple[int, ...], written: tuple[int, ...]) -> list[float]:
    """The log-probability of each token after what is written."""
    if isinstance(model.head, Table):
        return model.head.logits[(*prompt, *written)[-1]].log_softmax(-1).tolist()
    device = next(model.parameters()).device

    def arguments(*tokens):
        ids = torch.tensor([tokens], device=device)
        return ids, torch.ones_like(ids)

    if isinstance(model, EncoderDecoder):
        logits = model(*arguments(*prompt), *arguments(model.config.bos_id, *written))
    else:
        logits = model(*arguments(*prompt, *written))
    return logits[0, -1].log_softmax(-1).tolist()


def greedy(model, prompt: list[int], steps: int) -> list[int]:
    """The likeliest token after the whole text so far, again and again."""
    written = []
    for _ in range(steps):
        scores = likely(model, tuple(prompt), tuple(written))
        written.append(scores.index(max(scores)))
    return written


def cut(tokens: list[int], eos_id: int) -> list[int]:
    """Up to and including the first end of sequence."""
    return tokens[: tokens.index(eos_id) + 1] if eos_id in tokens else tokens


known = cache(likely)  # for models that do not change: searches look at the same texts again


def search(model, prompt, beams, steps, penalty=1.0, ends=()) -> list[int]:
    """Beam search, text by text."""
    going, ended = [(0.0, [])], []
    for length in range(1, steps + 1):
        longer = [
            (score + more, [*written, token])
            for score, written in going
            for token, more in enumerate(known(model, tuple(prompt), tuple(written)))
        ]
        longer.sort(key=lambda one: -one[0])
        for score, written in longer[:beams]:
            if written[-1] in ends or length == steps:
                ended.append((score / length**penalty, written))
        ended = sorted(ended, key=lambda one: -one[0])[:beams]
        going = [one for one in longer if one[1][-1] not in ends][:beams]
        if len(ended) == beams and ended[-1][0] >= going[0][0] / length**penalty:
            break
    return ended[0][1]


def chain(probabilities, **numbers) -> DecoderOnly:
    """A model that writes by a table: row i has the probabilities of what follows token i."""
    table = torch.as_tensor(probabilities).double()
    tokens = len(table)
    config = Config(tokens, 2 * tokens, num_layers=0, num_heads=1, style="llama", **numbers)
    model = DecoderOnly(config).double()
    with torch.no_grad():
        model.embedding.tokens.weight.copy_(torch.eye(tokens, 2 * tokens))
    model.head = Table(table)
    return model


def counting_model(**numbers) -> DecoderOnly:
    """It writes 3 4 5 6 ... 11 0 1."""
    return chain(torch.eye(12).roll(1, dims=1), **numbers)
