"""Chapter 9: generation."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from minitransformer.checks import GeneratorSubject, expect
from minitransformer.exercises.exercise import Draw, Inputs, exercise

VOCABULARY, NEVER = 7, 99  # of a Reader; an end that it never writes


class Reader(nn.Module):
    """A model whose next token depends on every real token up to it, and on their order."""

    def __init__(self, draw: Draw):
        super().__init__()
        self.read = draw.normal(VOCABULARY, 8, dtype=torch.float64)
        self.waves = draw.normal(32, 8, dtype=torch.float64)  # for the positions
        self.write = draw.normal(8, VOCABULARY, dtype=torch.float64)
        self.rows = 0  # that it has read, in all calls

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        self.rows += len(input_ids)
        real = attention_mask != 0
        positions = (real.cumsum(dim=1) - 1).clamp(min=0)
        tokens = self.read[input_ids] * self.waves[positions] * real[:, :, None]
        return (tokens.cumsum(dim=1) + 2 * tokens) * real[:, :, None] @ self.write

    def writes(self, prompt: Sequence[int], count: int) -> list[int]:
        """How it goes on, with nothing beside it."""
        row = list(prompt)
        for _ in range(count):
            ids = torch.tensor([row])
            row.append(int(self(ids, torch.ones_like(ids))[0, -1].argmax()))
        return row[len(prompt) :]


Decoding = tuple[Reader, Tensor, Tensor, int, int]  # the arguments of greedy_decode


def _prompts(draw: Draw, attention_mask: Tensor, new: int) -> Decoding:
    """Random tokens, none of them 0, where the mask is 1; no end."""
    ids = draw.ids(*attention_mask.shape, vocabulary=VOCABULARY) * attention_mask
    return Reader(draw), ids, attention_mask, new, NEVER


def _padded(side: str) -> Tensor:
    mask = torch.tensor([[1, 1, 0, 0, 0], [1, 1, 1, 1, 1], [1, 0, 0, 0, 0], [1, 1, 1, 0, 0]])
    return mask if side == "right" else mask.flip(1)


def _decoding(draw: Draw) -> Inputs:
    one = torch.ones(1, 3, dtype=torch.int64)
    return {
        "one prompt, and one token to write": _prompts(draw, one, 1),
        "one prompt without padding": _prompts(draw, one, 5),
        "two prompts without padding": _prompts(draw, one.expand(2, 3), 6),
        "a prompt padded on the right": _prompts(draw, torch.tensor([[1, 1, 0, 0]]), 5),
        "a prompt padded on the left": _prompts(draw, torch.tensor([[0, 1, 1]]), 4),
        "four prompts, padded on the right": _prompts(draw, _padded("right"), 5),
        "four prompts, padded on the left": _prompts(draw, _padded("left"), 6),
    }


def _first_comes_first(draw: Draw) -> Decoding:
    """Three rows; the first ends with its second token, and others go on longer."""
    while True:
        model, ids, mask, _, _ = _prompts(draw, torch.tensor([[1, 1, 0], [1, 1, 1], [1, 0, 0]]), 8)
        rows = [row[real != 0].tolist() for row, real in zip(ids, mask, strict=True)]
        first, *others = (model.writes(row, 8) for row in rows)
        end = first[1]
        ends = sorted(row.index(end) if end in row else 8 for row in others)
        if end not in (first[0], first[2]) and 2 < ends[0] < ends[1]:
            return model, ids, mask, 8, end


def _zero_in_the_prompt(draw: Draw) -> Decoding:
    model, _, mask, new, end = _prompts(draw, torch.tensor([[1, 1, 1, 0], [1, 1, 1, 1]]), 5)
    return model, torch.tensor([[3, 0, 0, 0], [0, 5, 0, 2]]), mask, new, end


def _end_in_the_prompt(draw: Draw) -> Decoding:
    """It is not written within four tokens."""
    while True:
        model, ids, mask, new, _ = _prompts(draw, torch.tensor([[1, 1, 1]]), 4)
        end = int(ids[0, 1])
        if end not in model.writes(ids[0].tolist(), 4):
            return model, ids, mask, new, end


def _end_of_zero(draw: Draw) -> Decoding:
    """It writes 0 within four tokens, and something else first."""
    while True:
        model, ids, mask, new, _ = _prompts(draw, torch.tensor([[1, 1]]), 6)
        if 0 in model.writes(ids[0].tolist(), 6)[1:4]:
            return model, ids, mask, new, 0


def _unusual_decoding(draw: Draw) -> Inputs:
    mixed = torch.tensor([[0, 0, 1, 1], [1, 1, 1, 0], [0, 1, 1, 0]])
    between = torch.tensor([[1, 0, 1, 1], [1, 1, 0, 0]])
    return {
        "a row that ends before the others": _first_comes_first(draw),
        "an end of id 0": _end_of_zero(draw),
        "the id of the end in a prompt": _end_in_the_prompt(draw),
        "real tokens of id 0 in a prompt": _zero_in_the_prompt(draw),
        "padding on either side in one batch": _prompts(draw, mixed, 4),
        "padding between tokens": _prompts(draw, between, 4),
        "no new tokens asked for": _prompts(draw, torch.tensor([[1, 1], [1, 0]]), 0),
    }


@exercise(
    "Greedy decoding, row by row",
    chapter=9,
    about="""Write the likeliest token, again and again, for prompts of different lengths at once.
        Each row must get what it would get alone, and stop at its own end.""",
    hints=[
        "What comes next follows from the logits at each row's last real token, not at the last "
        "column.",
        "Put new tokens behind everything, with a 1 in the mask; the padding in between is then a "
        "hole that the mask knows. A row that has ended is written no further, and when all have, "
        "the model is not asked again.",
        "last = (torch.arange(length) * attention_mask).argmax(dim=1), where length is that of "
        "input_ids by now; then logits[torch.arange(batch), last].argmax(dim=-1).",
    ],
    inputs=_decoding,
    edges=_unusual_decoding,
    subject=lambda fn: GeneratorSubject(
        lambda model, ids, mask, new, eos_id=-1: fn(model, ids, mask, new, eos_id),
        eos_flag="eos_id",
    ),
    points=3,
)
def greedy_decode(
    model, input_ids: Tensor, attention_mask: Tensor, max_new_tokens: int, eos_id: int
) -> list[Tensor]:
    """Continue each prompt with the likeliest token, up to and including eos_id.

    model(input_ids, attention_mask) -> logits (batch, length, vocabulary): at each place those of
    the token that follows. It sees where the mask is 1, and takes positions from the mask, so a 0
    between two tokens of a row changes nothing
    input_ids, attention_mask: (batch, length) int64, 1 = real token, 0 = padding, which may stand
    anywhere; each row has a real token. What a prompt holds ends nothing, eos_id neither
    max_new_tokens: from 0 up; when all rows have ended, the model is not asked again
    returns: for each row its new tokens, (new,) int64: max_new_tokens, or fewer if the last is
    eos_id
    """
    ### BEGIN SOLUTION
    rows = torch.arange(len(input_ids))
    going = torch.ones(len(input_ids), dtype=torch.bool)
    written = [[] for _ in rows]
    for _ in range(max_new_tokens):
        last = (torch.arange(input_ids.shape[1]) * (attention_mask != 0)).argmax(dim=1)
        token = model(input_ids, attention_mask)[rows, last].argmax(dim=-1)
        for row in rows[going].tolist():
            written[row].append(int(token[row]))
        input_ids = torch.cat((input_ids, token[:, None]), dim=1)
        attention_mask = torch.cat((attention_mask, going.long()[:, None]), dim=1)
        going = going & (token != eos_id)
        if not going.any():
            break
    return [torch.tensor(tokens, dtype=torch.int64) for tokens in written]
    ### END SOLUTION


LAST = "(torch.arange(input_ids.shape[1]) * (attention_mask != 0)).argmax(dim=1)"
CALL = "model(input_ids, attention_mask)"
LOOP = "    for _ in range(max_new_tokens):\n"
GOING = "going = going & (token != eos_id)"
BREAK = "        if not going.any():\n            break\n"
TENSORS = "[torch.tensor(tokens, dtype=torch.int64) for tokens in written]"
APPEND = "written[row].append(int(token[row]))"
ENDED = f"rows[going].tolist():\n            {APPEND}"
greedy_decode.mistake(
    """What comes next is read at the last column, which is padding in rows padded on the right:
    read each row at its last real token.""",
    {LAST: "torch.full_like(rows, -1)"},
)
greedy_decode.mistake(
    """The number of real tokens is taken for the place of the last one, in every step or in the
    first: that is right only where no padding stands before or between them.""",
    {LAST: "attention_mask.sum(dim=1) - 1"},
    {LAST: "attention_mask.sum(dim=1) - 1 if not written[0] else torch.full_like(rows, -1)"},
)
greedy_decode.mistake(
    """Every step goes on from the prompt alone, so the same token comes again and again: the place
    that is read stays at the prompt's end, or new tokens have a 0 in the mask.""",
    {f"{LOOP}        last = {LAST}\n": f"    last = {LAST}\n{LOOP}"},
    {"going.long()[:, None]": "torch.zeros_like(token)[:, None]"},
)
greedy_decode.mistake(
    """Every row is read where the first row has its last token. Each row has its own.""",
    {LAST: f"{LAST}[:1].expand(len(rows))"},
)
greedy_decode.mistake(
    """The model is not given the attention_mask, or one of ones: it reads padding as text.""",
    {CALL: "model(input_ids, torch.ones_like(attention_mask))"},
)
greedy_decode.mistake(
    """The mask is made of the ids: a real token of id 0 is taken for padding. The attention_mask
    says what is real.""",
    {LOOP: f"    attention_mask = (input_ids != 0).long()\n{LOOP}"},
    {CALL: "model(input_ids, (input_ids != 0).long())"},
    {LOOP: f"{LOOP}        attention_mask = (input_ids != 0).long()\n"},
)
greedy_decode.mistake(
    """The model is given the newest token alone, so it goes on from nothing: it has no memory. Give
    it all tokens so far.""",
    {
        "torch.cat((input_ids, token[:, None]), dim=1)": "token[:, None]",
        "torch.cat((attention_mask, going.long()[:, None]), dim=1)": "torch.ones_like(input_ids)",
    },
)
greedy_decode.mistake(
    """Rows are continued behind their end. Remember which have ended; their eos_id is the last
    token that they get.""",
    {GOING: "pass"},
    {"rows[going]": "rows"},
    {GOING: "pass", "if not going.any()": "if (token == eos_id).all()"},
    {GOING: "pass", BREAK: ""},
)
greedy_decode.mistake(
    """A row that has ended is filled up to the length of the others. Its tensor stops with its
    eos_id.""",
    {ENDED: f"rows.tolist():\n            {APPEND[:-1]} if going[row] else eos_id)"},
    {ENDED: f"rows.tolist():\n            {APPEND[:-1]} if going[row] else 0)"},
)
greedy_decode.mistake(
    """A row that has ended goes on again a step later: whether it has ended is asked of the newest
    token alone. Once ended, it stays so.""",
    {GOING: "going = token != eos_id"},
)
greedy_decode.mistake(
    """All rows stop as soon as one of them ends. It is over when every row has ended.""",
    {"if not going.any()": "if not going.all()"},
)
greedy_decode.mistake(
    """The end is cut off. eos_id belongs to the row, as its last token: without it nobody can tell
    a row that ended from one that ran out of tokens.""",
    {APPEND: f"if token[row] != eos_id:\n                {APPEND}"},
)
greedy_decode.mistake(
    """The prompts are returned as well. Only the new tokens are wanted.""",
    {"[[] for _ in rows]": "[x.tolist() for x in input_ids]"},
    {
        "[[] for _ in rows]": "[x[y != 0].tolist() for x, y in zip(input_ids, attention_mask)]",
    },
)
greedy_decode.mistake(
    """There is one step too many or too few: max_new_tokens are wanted where no end comes.""",
    {"range(max_new_tokens)": "range(max_new_tokens - 1)"},
    {"range(max_new_tokens)": "range(max_new_tokens + 1)"},
)
greedy_decode.mistake(
    """The prompt is counted too: the longer it is, the fewer tokens are written. max_new_tokens is
    the number of new ones.""",
    {"range(max_new_tokens)": "range(max_new_tokens - input_ids.shape[1])"},
)
greedy_decode.mistake(
    "At least one token is written, though none was asked for.",
    {"range(max_new_tokens)": "range(max(max_new_tokens, 1))"},
)
greedy_decode.mistake(
    """torch.tensor([]) is float32: a row to which nothing was added needs dtype=torch.int64.""",
    {"torch.tensor(tokens, dtype=torch.int64)": "torch.tensor(tokens)"},
)
greedy_decode.mistake(
    "An end of id 0 is taken for no end at all: `if eos_id` is false for 0.",
    {GOING: "going = going & ((token != eos_id) | (eos_id == 0))"},
)
greedy_decode.mistake(
    """eos_id in a prompt ends the row before it has begun. Only a new token ends a row.""",
    {GOING: "going = going & ~(input_ids == eos_id).any(dim=1)"},
    {
        "torch.ones(len(input_ids), dtype=torch.bool)": "~(input_ids == eos_id).any(dim=1)",
    },
)
greedy_decode.mistake(
    """This is no list of tensors. Each row has a tensor of its own, as long as what it wrote.""",
    {TENSORS: "written"},
    {TENSORS: f"torch.nn.utils.rnn.pad_sequence({TENSORS}, batch_first=True)"},
    {TENSORS: "torch.tensor([x + [0] * (max_new_tokens - len(x)) for x in written])"},
)
greedy_decode.mistake(
    """The least likely token is taken. The largest logit is the likeliest token's.""",
    {"argmax(dim=-1)": "argmin(dim=-1)"},
)
greedy_decode.mistake(
    "The next token is drawn by chance. Greedy decoding takes the likeliest, always.",
    {"argmax(dim=-1)": "softmax(dim=-1).multinomial(1)[:, 0]"},
    """
    written = []
    for ids, mask in zip(input_ids.split(1), attention_mask.split(1)):
        new = []
        for _ in range(max_new_tokens):
            last = int((mask[0] != 0).nonzero()[-1])
            token = int(model(ids, mask)[0, last].softmax(dim=-1).multinomial(1))
            new.append(token)
            if token == eos_id:
                break
            ids = F.pad(ids, (0, 1), value=token)
            mask = F.pad(mask, (0, 1), value=1)
        written.append(torch.tensor(new, dtype=torch.int64))
    return written
    """,
)
greedy_decode.mistake(
    "What a row has written has an axis too many, (1, new). A tensor of shape (new,) is wanted.",
    {"torch.tensor(tokens, dtype=torch.int64)": "torch.tensor([tokens], dtype=torch.int64)"},
)
greedy_decode.mistake(
    "What comes next is read at a row's first token, not at its last.",
    {LAST: "(attention_mask != 0).long().argmax(dim=1)"},
    {LAST: "torch.zeros_like(rows)"},
)
greedy_decode.mistake(
    "The tokens are of another dtype than int64.",
    {"dtype=torch.int64": "dtype=torch.int32"},
    {"dtype=torch.int64": "dtype=torch.float32"},
)


@greedy_decode.check(points=1)
def a_row_that_has_ended_is_read_no_further(fn, draw: Draw):
    """When all rows have ended the model is not asked again."""
    model = Reader(draw)
    ids, mask = torch.tensor([[1, 2], [4, 5]]), torch.ones(2, 2, dtype=torch.int64)
    always = lambda ids, mask: model(ids, mask) + 1e3 * torch.eye(VOCABULARY)[3]  # noqa: E731
    found = fn(always, ids, mask, 9, 3)
    expect(
        [row.tolist() for row in found] == [[3], [3]],
        "Every row should be the one token 3, which is the end.",
    )
    expect(
        model.rows <= 2,
        f"Two rows end with their first token, so there are two to be read, at once or one by one. "
        f"The model was given {model.rows}: is it asked again after the end?",
    )


def _draws(
    draw: Draw, batch: int, vocabulary: int, temperature: float, top_k: int, top_p: float
) -> tuple:
    """Arguments of sample, with a number for each row."""
    u = torch.rand(batch, generator=draw.generator)
    return draw.normal(batch, vocabulary) * 1.5, temperature, top_k, top_p, u


def _log(*probabilities: float) -> Tensor:
    return torch.tensor([probabilities]).log()


@exercise(
    "Sampling with temperature, top-k and top-p",
    chapter=9,
    about="""The likeliest token every time makes dull texts, and a draw from all of them makes
        slips. Between the two: sharpen (temperature), cut off the tail by count (top-k) or by
        probability (top-p, the nucleus of Holtzman et al. 2020, arXiv:1904.09751), then draw.""",
    hints=[
        "Divide by the temperature, sort each row with the likeliest first, and take the softmax "
        "of the first top_k: these are the probabilities that top_p cuts.",
        "In the sorted row, what stands before a token sums to cumsum - its own probability. It "
        "stays where that is below top_p, so the first always does. Then let each row sum to 1.",
        "Bring the probabilities back: torch.zeros_like(logits).scatter(-1, order[:, :top_k], "
        "kept). The token is the number of ids whose cumsum, in the order of ids, is at most u.",
    ],
    inputs=lambda draw: {
        "one row, nothing cut off": (_log(0.3, 0.5, 0.2), 1.0, 3, 1.0, torch.tensor([0.9])),
        "a temperature of 2": _draws(draw, 3, 5, 2.0, 5, 1.0),
        "a temperature of 0.5": _draws(draw, 2, 6, 0.5, 6, 1.0),
        "a top_k of 2": (_log(0.15, 0.4, 0.05, 0.3, 0.1), 1.0, 2, 1.0, torch.tensor([0.8])),
        "a top_k": _draws(draw, 4, 7, 1.0, draw.integer(3, 5), 1.0),
        "a top_p of 0.6": (_log(0.15, 0.4, 0.05, 0.3, 0.1), 1.0, 5, 0.6, torch.tensor([0.3])),
        "a top_p": _draws(draw, 5, 8, 1.0, 8, draw.integer(70, 90) / 100),
        "a top_k of 3 and a top_p of 0.7": (
            _log(0.06, 0.25, 0.3, 0.1, 0.2, 0.09),
            1.0,
            3,
            0.7,
            torch.tensor([0.55]),
        ),
        "all of them": _draws(draw, 6, 9, 1.5, 6, draw.integer(60, 80) / 100),
    },
    edges=lambda draw: {
        "a top_p that the first token exceeds": _draws(draw, 4, 6, 1.0, 6, 0.01),
        "a top_k of 1": _draws(draw, 4, 6, 1.0, 1, 1.0),
        "a top_k above the vocabulary": _draws(draw, 3, 4, 1.0, 10, 0.9),
        "a u of 0": (_log(0.1, 0.3, 0.4, 0.2), 1.0, 2, 1.0, torch.zeros(1)),
        "a u near 1": (_log(0.3, 0.4, 0.2, 0.1), 1.0, 2, 1.0, torch.tensor([0.9999])),
        "a temperature of 0.01": _draws(draw, 3, 5, 0.01, 5, 1.0),
    },
    points=4,
)
def sample(
    logits: Tensor, temperature: float, top_k: int, top_p: float, u: Tensor
) -> tuple[Tensor, Tensor]:
    """The probabilities from which the next token is drawn, and the token drawn by u.

    1. The logits are divided by the temperature.
    2. Top-k: the top_k likeliest tokens stay, all if there are no more than that. Their
    probabilities, the softmax over them alone, sum to 1.
    3. Top-p: of these a token stays if the likelier ones before it sum to less than top_p. So the
    first always stays, and so does the one with which the sum reaches top_p.
    4. The probabilities of those that stay are divided by their sum; all others are 0.
    5. The token is the first id, in the order of ids, at which the sum of the probabilities up to
    and including it is above u. A token of probability 0 is never drawn.

    logits: (batch, vocabulary) float, no two of a row alike; temperature > 0; top_k >= 1
    top_p: above 0, at most 1; u: (batch,) float, 0 <= u < 1, a number for each row
    returns: the probabilities, (batch, vocabulary) float, column i that of token i, and the tokens,
    (batch,) int64
    """
    ### BEGIN SOLUTION
    ordered, order = (logits / temperature).sort(dim=-1, descending=True)
    kept = ordered[:, :top_k].softmax(dim=-1)
    before = kept.cumsum(dim=-1) - kept
    kept = kept.masked_fill(before >= top_p, 0.0)
    kept = kept / kept.sum(dim=-1, keepdim=True)
    probabilities = torch.zeros_like(logits).scatter(-1, order[:, :top_k], kept)
    sums = probabilities.cumsum(dim=-1)
    tokens = (sums <= u[:, None] * sums[:, -1:]).sum(dim=-1)
    return probabilities, tokens
    ### END SOLUTION


TOKENS = "(sums <= u[:, None] * sums[:, -1:]).sum(dim=-1)"
RANKS = "(kept.cumsum(dim=-1) <= u[:, None]).sum(dim=-1)"
AFTER_TOP_K = "ordered[:, :top_k].softmax(dim=-1)"
SCATTERED = "torch.zeros_like(logits).scatter(-1, order[:, :top_k], kept)"
sample.mistake(
    """The logits are multiplied by the temperature. Divided by it, a high temperature makes the
    probabilities more alike.""",
    {"logits / temperature": "logits * temperature"},
)
sample.mistake(
    """The temperature divides probabilities. It divides the logits: after a softmax it is too late.
    """,
    {"(logits / temperature)": "(logits.softmax(dim=-1) / temperature)"},
    {
        "(logits / temperature)": "logits",
        AFTER_TOP_K: f"{AFTER_TOP_K} / temperature",
    },
)
sample.mistake(
    """The temperature comes after the cut. It comes first: what top_p cuts are the probabilities at
    this temperature.""",
    {
        "(logits / temperature)": "logits",
        "kept = kept / kept": "kept = kept ** (1 / temperature)\n    kept = kept / kept",
    },
)
sample.mistake(
    "top_k is not used, or one token too many stays.",
    {"[:, :top_k]": "[:, : top_k + 1]"},
    {"[:, :top_k]": ""},
)
sample.mistake(
    """top_p is held against probabilities of the whole vocabulary. Top-k comes first: what it
    leaves sums to 1 again before top_p cuts.""",
    {AFTER_TOP_K: "ordered.softmax(dim=-1)[:, :top_k]"},
)
sample.mistake(
    "top_p is not used.",
    {"    kept = kept.masked_fill(before >= top_p, 0.0)\n": ""},
)
sample.mistake(
    """The token with which the sum reaches top_p is cut off. It stays, or less than top_p is left,
    and nothing at all where the first token alone exceeds it.""",
    {"before >= top_p": "kept.cumsum(dim=-1) > top_p"},
    {"before >= top_p": "kept.cumsum(dim=-1) >= top_p"},
    {"before >= top_p": "(kept.cumsum(dim=-1) > top_p) & (before > 0)"},
)
sample.mistake(
    "One token too many stays: those before it sum to top_p already.",
    {"before >= top_p": "F.pad(before, (1, 0))[:, :-1] >= top_p"},
)
sample.mistake(
    "top_p is used as the share that is cut off. It is the share that stays.",
    {">= top_p": ">= 1 - top_p"},
    {">= top_p": "> 1 - top_p"},
)
sample.mistake(
    "The probabilities do not sum to 1: after the cut, divide them by their sum.",
    {"    kept = kept / kept.sum(dim=-1, keepdim=True)\n": ""},
)
sample.mistake(
    """The probabilities, and the tokens, stand in sorted order. Column i belongs to token i: bring
    them back before you draw.""",
    {SCATTERED: "F.pad(kept, (0, logits.shape[-1] - kept.shape[-1]))"},
)
sample.mistake(
    """The draw goes through the sorted row, the likeliest first. It goes in the order of ids: there
    the same u gives another token, and a place in the sorted row is not an id.""",
    {TOKENS: f"order.gather(-1, {RANKS}[:, None])[:, 0]"},
    {TOKENS: RANKS},
)
sample.mistake(
    "The likeliest token is taken, whatever u is: that is greedy decoding.",
    {TOKENS: "probabilities.argmax(dim=-1)"},
)
sample.mistake(
    """The token is the neighbor of the one drawn: the first whose sum is above u is wanted, so its
    id is the number of sums that are not.""",
    {TOKENS: f"{TOKENS} - 1"},
    {TOKENS: f"{TOKENS} + 1"},
)
sample.mistake(
    """With u = 0 a token of probability 0 can be drawn: the sum must be above u, not just reach it.
    """,
    {"sums <= u": "sums < u"},
)


def _steps(draw: Draw) -> Inputs:
    """New tokens, and what was read before them."""

    def step(batch: int, heads: int, new: int, past: int, width: int) -> tuple:
        cache = tuple(draw.normal(batch, heads, past, width) for _ in range(2)) if past else None
        return (*(draw.normal(batch, heads, new, width) for _ in range(3)), cache)

    return {
        "the first token": step(1, 1, 1, 0, 2),
        "three tokens and no past": step(1, 1, 3, 0, 2),
        "one new token after one": step(1, 1, 1, 1, 3),
        "one new token after four": step(1, 2, 1, 4, 3),
        "two new tokens after three": step(2, 1, 2, 3, 4),
        "five new tokens after two": step(2, 3, 5, 2, 4),
        "as many new tokens as past ones": step(3, 2, 4, 4, 5),
    }


def _large_future(draw: Draw) -> tuple:
    """Two of the past and two new tokens, of which the last has the largest score by far."""
    query, key, value, cache = _steps(draw)["two new tokens after three"]
    key = key.abs() * torch.tensor([-1e5, 1e5]).view(1, 1, 2, 1)
    return query.abs() * 1e5, key, value, (cache[0].abs() * -1e5, cache[1])


@exercise(
    "A key/value cache",
    chapter=9,
    about="""What was read is not read again: keep the keys and values of the past, and let the new
        queries look at them and at themselves.""",
    hints=[
        "Put the new keys and values behind the old ones, along the axis of the length.",
        "The new queries are the last tokens: query i may see all of the past and the new up to i.",
        "The mask is a triangle that is aligned at its end: torch.ones(new, keys).tril(keys - new) "
        "is 1 where a new token may look; keys counts those of the past too.",
    ],
    inputs=_steps,
    edges=lambda draw: {"a future token of the largest score": _large_future(draw)},
    points=3,
)
def kv_cache(query: Tensor, key: Tensor, value: Tensor, cache):
    """Causal attention, softmax(QKᵀ/√d) V, of new tokens to the past and to each other.

    A new token sees all of the past, the new tokens before it, and itself; those after it get a
    weight of exactly 0. There is no padding. All memory is in the cache that is handed in and in
    the one that is returned: two texts may be read in turn, each with its own.

    query, key, value: (batch, heads, new, width), of the new tokens only, one or more
    cache: None for the first call, then what the call before returned: the pair (keys, values),
    each (batch, heads, past, width), in the order in which they were read
    returns: the output (batch, heads, new, width), and the cache for the next call: the pair
    (keys, values) of the past and the new tokens
    """
    ### BEGIN SOLUTION
    if cache is not None:
        key, value = torch.cat((cache[0], key), dim=2), torch.cat((cache[1], value), dim=2)
    new, keys = query.shape[2], key.shape[2]
    mask = torch.ones(new, keys, dtype=torch.bool).tril(keys - new)
    scores = query @ key.transpose(-2, -1) / query.shape[-1] ** 0.5
    output = scores.masked_fill(~mask, float("-inf")).softmax(dim=-1) @ value
    return output, (key, value)
    ### END SOLUTION


JOINED = "torch.cat((cache[0], key), dim=2), torch.cat((cache[1], value), dim=2)"
SWAPPED = "torch.cat((cache[1], key), dim=2), torch.cat((cache[0], value), dim=2)"
OFFSET = ".tril(keys - new)"
HIDDEN = 'scores.masked_fill(~mask, float("-inf"))'
SEEN = f"{HIDDEN}.softmax(dim=-1)"
RETURNED = "return output, (key, value)"
kv_cache.mistake(
    """The triangle begins at the first key, so a new token sees the oldest of the past and neither
    the rest nor itself. It is aligned at the end: tril(keys - new).""",
    {OFFSET: ".tril()"},
)
kv_cache.mistake(
    """Of several new tokens the triangle begins at the first key, as if there were no past; one
    alone is treated right. Align it at the end: tril(keys - new).""",
    {OFFSET: ".tril(keys if new == 1 else 0)"},
)
kv_cache.mistake(
    """Nothing is masked: a new token sees the new tokens behind it. One at a time shows no
    difference; several at once do.""",
    {OFFSET: ""},
)
kv_cache.mistake(
    """The mask is left out as soon as there is a past. Right for one new token; of several each
    sees those behind it.""",
    {OFFSET: ".tril(0 if cache is None else keys)"},
)
kv_cache.mistake(
    """The triangle is one diagonal off: a new token sees the one behind it, too.""",
    {OFFSET: ".tril(keys - new + 1)"},
)
kv_cache.mistake(
    """The triangle is one diagonal off: a new token does not see itself. The first of all sees
    nothing then, which is NaN.""",
    {OFFSET: ".tril(keys - new - 1)"},
)
kv_cache.mistake(
    """New tokens see all of the past, but of the new only themselves. Those before them count
    too.""",
    {
        "dtype=torch.bool)" + OFFSET: "dtype=torch.bool)\n    mask[:, keys - new :] = "
        "torch.eye(new, dtype=torch.bool)"
    },
)
kv_cache.mistake(
    """The new tokens see only the past, not each other and not themselves.""",
    """
    past = (key, value) if cache is None else cache
    new, keys = query.shape[2], past[0].shape[2]
    mask = torch.ones(new, keys, dtype=torch.bool)
    mask = mask.tril() if cache is None else mask
    scores = query @ past[0].transpose(-2, -1) / query.shape[-1] ** 0.5
    output = scores.masked_fill(~mask, float("-inf")).softmax(dim=-1) @ past[1]
    if cache is not None:
        key, value = torch.cat((cache[0], key), dim=2), torch.cat((cache[1], value), dim=2)
    return output, (key, value)
    """,
)
kv_cache.mistake(
    """The new keys, the new values or both are put before the past. They belong behind it, both of
    them.""",
    {JOINED: "torch.cat((key, cache[0]), dim=2), torch.cat((value, cache[1]), dim=2)"},
    {"(cache[0], key)": "(key, cache[0])"},
    {"(cache[1], value)": "(value, cache[1])"},
)
kv_cache.mistake(
    """The past is forgotten: the new tokens see each other alone. Put the cache's keys and values
    before the new ones.""",
    {JOINED: "key, value"},
    {
        "    if cache is not None:\n": "    past = cache\n    if cache is not None:\n",
        JOINED: "key, value",
        RETURNED: "if past is not None:\n"
        "        key, value = torch.cat((past[0], key), 2), torch.cat((past[1], value), 2)\n"
        "    return output, (key, value)",
    },
)
kv_cache.mistake(
    """The cache that comes back is the one that was handed in, or None: the new tokens are not in
    it.""",
    {RETURNED: "return output, cache"},
    {RETURNED: "return output, (key, value) if cache is not None else None"},
)
kv_cache.mistake(
    """The cache that comes back holds the new tokens only. The next call needs the past, too.""",
    {
        "    if cache is not None:\n": "    fresh = key, value\n    if cache is not None:\n",
        RETURNED: "return output, fresh",
    },
)
kv_cache.mistake(
    """Keys and values have changed places in the cache, where it is read or where it is
    returned.""",
    {RETURNED: "return output, (value, key)"},
    {JOINED: SWAPPED},
    {
        JOINED: SWAPPED,
        RETURNED: "return output, (value, key)",
    },
)
kv_cache.mistake(
    """The scores are not divided by the root of the width of a head, or by that of another
    size.""",
    {" / query.shape[-1] ** 0.5": ""},
    {"query.shape[-1] ** 0.5": "keys ** 0.5"},
    {"query.shape[-1] ** 0.5": "new ** 0.5"},
    {"query.shape[-1] ** 0.5": "query.shape[1] ** 0.5"},
    {"query.shape[-1] ** 0.5": "query.shape[-1]"},
    {" / query.shape[-1] ** 0.5": " * query.shape[-1] ** 0.5"},
)
kv_cache.mistake(
    """The mask is upside down: what a new token may see is hidden. masked_fill fills where its mask
    is True.""",
    {"~mask": "mask"},
)
kv_cache.mistake(
    """The mask comes after the softmax: weights are taken away, and those that are left do not sum
    to 1.""",
    {SEEN: "scores.softmax(dim=-1).masked_fill(~mask, 0.0)"},
    {SEEN: "(scores.softmax(dim=-1) * mask)"},
)
kv_cache.mistake(
    """The scores of future tokens become 0, a score like any other: those tokens still get
    weight.""",
    {'float("-inf")': "0.0"},
    {HIDDEN: "(scores * mask)"},
)
kv_cache.mistake(
    """The scores of future tokens become a large negative number, and a score can be lower. Only
    -inf gives a weight of exactly 0.""",
    {'float("-inf")': "-1e9"},
    {'float("-inf")': "-1e4"},
    {'float("-inf")': "-1e6"},
    {HIDDEN: "(scores + (1.0 - mask.float()) * -1e9)"},
    {HIDDEN: "(scores + (1.0 - mask.float()) * -1e4)"},
)
kv_cache.mistake(
    "The softmax runs over the queries. It runs over the keys, the last axis.",
    {"softmax(dim=-1)": "softmax(dim=-2)"},
)
kv_cache.mistake(
    "There is no softmax: the scores themselves weigh the values.",
    {SEEN: "scores.masked_fill(~mask, 0.0)"},
)
kv_cache.mistake(
    """The cache holds scaled keys. It is to hold them as they came, or they are scaled again in the
    next call: scale the scores, or the query.""",
    {
        "    scores = ": "    key = key / query.shape[-1] ** 0.5\n    scores = ",
        " / query.shape[-1] ** 0.5\n    output": "\n    output",
    },
    {
        "    if cache": "    key = key / query.shape[-1] ** 0.5\n    if cache",
        " / query.shape[-1] ** 0.5\n    output": "\n    output",
    },
)
kv_cache.mistake(
    """A new token does not see itself, except the very first, for which something had to be mended:
    the triangle is one diagonal off.""",
    {OFFSET: ".tril(keys - new - 1)\n    mask[:, 0] = True"},
)
kv_cache.mistake(
    "Only the last new token has an output. Each of them has one.",
    {RETURNED: "return output[:, :, -1:], (key, value)"},
)
kv_cache.mistake(
    """The cache is kept in another dtype than that of the keys and values: the past loses
    digits.""",
    {RETURNED: "return output, (key.bfloat16(), value.bfloat16())"},
    {RETURNED: "return output, (key.half(), value.half())"},
)
kv_cache.mistake(
    "What comes back is not the pair of the output and a cache that is a pair, (keys, values).",
    {RETURNED: "return output"},
    {RETURNED: "return output, key, value"},
    {RETURNED: "return output, torch.stack((key, value))"},
    {RETURNED: "return output, torch.cat((key, value), dim=-1)"},
)


@kv_cache.check(points=2, measures="largest difference")
def step_by_step_equals_all_at_once(fn, draw: Draw):
    """Tokens read one by one, or two at a time, give what they give when read at once."""
    query, key, value = (draw.normal(1, 2, 6, 4) for _ in range(3))
    whole, _ = fn(query, key, value, None)
    largest = 0.0
    for size in (1, 2, 3):
        cache, parts = None, []
        for start in range(0, 6, size):
            part = slice(start, start + size)
            output, cache = fn(query[:, :, part], key[:, :, part], value[:, :, part], cache)
            parts.append(output)
        difference = float((torch.cat(parts, dim=2) - whole).abs().max())
        largest = max(largest, difference)
        expect(
            difference <= 1e-5,
            f"Read {size} at a time, six tokens give something else than read at once: the outputs "
            f"differ by up to {difference:.3g}.",
            difference,
        )
    return largest


@kv_cache.check(points=1, measures="largest difference")
def two_texts_are_read_in_turn(fn, draw: Draw):
    """A text gives the same whether another is read in between or not."""

    def read(part: int, text: tuple[Tensor, ...], cache) -> tuple:
        return fn(*(x[:, :, part : part + 1] for x in text), cache)

    one, other = (tuple(draw.normal(1, 1, 3, 2) for _ in range(3)) for _ in range(2))
    cache, alone = None, []
    for part in range(3):
        output, cache = read(part, one, cache)
        alone.append(output)
    caches: list = [None, None]
    between = []
    for part in range(3):
        output, caches[0] = read(part, one, caches[0])
        _, caches[1] = read(part, other, caches[1])
        between.append(output)
    difference = float((torch.cat(between, dim=2) - torch.cat(alone, dim=2)).abs().max())
    expect(
        difference <= 1e-6,
        f"When a second text is read in turn with the first, each with its own cache, the outputs "
        f"of the first differ by up to {difference:.3g}. Is something kept outside the cache?",
        difference,
    )
    return difference


class Tree:
    """Random log-probabilities of the next token, for each text others."""

    def __init__(self, draw: Draw, vocabulary: int = 5):
        self.seed, self.vocabulary = draw.integer(0, 10**6), vocabulary

    def __call__(self, tokens: list[int]) -> Tensor:
        place = sum((int(token) + 1) * 7**i for i, token in enumerate(tokens))
        generator = torch.Generator().manual_seed(self.seed + place)
        logits = torch.randn(self.vocabulary, generator=generator, dtype=torch.float64)
        return (2 * logits).log_softmax(dim=-1)


def table(chances: dict[tuple[int, ...], list[float]], others: list[float]) -> Callable:
    """Log-probabilities of the next token: of the texts listed, and of all others."""

    def next_log_probs(tokens: list[int]) -> Tensor:
        text = tuple(int(token) for token in tokens)
        return torch.tensor(chances.get(text, others), dtype=torch.float64).log()

    return next_log_probs


STARTS, FLAT = [0.3, 0.25, 0.2, 0.15, 0.1], [0.24, 0.22, 0.2, 0.18, 0.16]
SURE, EVEN = [0.01, 0.96, 0.01, 0.01, 0.01], [0.4, 0.35, 0.25]


def best_after(start: int) -> Callable:
    """The first token `start` is the (start + 1)th likeliest, and only after it is one sure."""
    return table({(): STARTS, (start,): SURE}, FLAT)


def sure_after(*text: int) -> Callable:
    """Of the four likeliest texts of two tokens one leads to a sure third."""
    first = {(): [0.6, 0.3, 0.1], (0,): [0.5, 0.4, 0.1], (1,): [0.6, 0.3, 0.1]}
    return table({**first, text: [0.98, 0.01, 0.01]}, EVEN)


def _beams(draw: Draw) -> Inputs:
    greed = table({(): [0.6, 0.4], (0,): [0.55, 0.45], (1,): [0.95, 0.05]}, [0.6, 0.4])
    return {
        "one beam": (Tree(draw), 1, 3),
        "two beams where greed goes wrong": (greed, 2, 2),
        "three beams, of which the third wins": (best_after(2), 3, 2),
        "four beams, of which the second wins": (best_after(1), 4, 2),
        "four beams, of which the fourth wins": (best_after(3), 4, 2),
        "two beams where only a third would find the best text": (best_after(2), 2, 2),
        "two beams where only a fourth would find the best text": (best_after(3), 2, 2),
        "two beams where only a fifth would find the best text": (best_after(4), 2, 2),
        "two beams that both go on from the same token": (sure_after(0, 1), 2, 3),
        "two beams, one of which is pushed out": (sure_after(1, 0), 2, 3),
        **{f"{n} beams in a random tree": (Tree(draw), n, 4) for n in (2, 3, 4)},
    }


def _unusual_beams(draw: Draw) -> Inputs:
    impossible = table({(): [0.0, 0.7, 0.3], (1,): [0.0, 0.6, 0.4], (2,): [1.0, 0.0, 0.0]}, EVEN)
    return {
        "more beams than tokens": (Tree(draw, 3), 5, 4),
        "tokens of probability 0": (impossible, 2, 3),
        "a length of 1": (Tree(draw), 3, 1),
        "a length of 0": (Tree(draw), 2, 0),
    }


@exercise(
    "Beam search",
    chapter=9,
    about="""The likeliest next token is not always the start of the likeliest text. Keep the
        `num_beams` best texts so far instead of one.""",
    hints=[
        "A beam is a text and its log-probability, the sum of those of its tokens.",
        "In each step extend every beam by every token, then keep the num_beams best of all.",
        "beams = sorted(candidates, key=lambda b: -b[1])[:num_beams]; start with [([], 0.0)].",
    ],
    inputs=_beams,
    edges=_unusual_beams,
    points=4,
    tolerance=1e-4,
)
def beam_search(next_log_probs, num_beams: int, length: int) -> tuple[list[int], float]:
    """The best text of `length` tokens that beam search finds, and its log-probability.

    It starts with one beam, the empty text. In each of `length` steps every beam is extended by
    every token, and of all these texts the num_beams likeliest are kept, whichever beam they come
    from; or all, if there are fewer. No token ends a text, and a text's log-probability is the sum
    of those of its tokens, not divided by its length. Ties do not matter.

    next_log_probs(tokens) -> (vocabulary,) log-probabilities of the token that follows a text, the
    list of all its token ids, empty at the start; -inf for one that cannot follow
    num_beams: from 1 up, also more than there are tokens; length: from 0 up
    returns: (tokens, log-probability), which is ([], 0.0) for a length of 0
    """
    ### BEGIN SOLUTION
    beams = [([], 0.0)]
    for _ in range(length):
        candidates = [
            ([*tokens, token], score + log_prob)
            for tokens, score in beams
            for token, log_prob in enumerate(next_log_probs(tokens).tolist())
        ]
        beams = sorted(candidates, key=lambda beam: -beam[1])[:num_beams]
    return beams[0]
    ### END SOLUTION


KEPT = "sorted(candidates, key=lambda beam: -beam[1])[:num_beams]"
beam_search.mistake(
    """This is greedy: after each step only the best text is left, alone or in copies, as it happens
    where the search starts with num_beams empty texts. Start with one, and keep num_beams different
    ones.""",
    {"[:num_beams]": "[:1]"},
    {"[([], 0.0)]": "[([], 0.0)] * num_beams"},
)
beam_search.mistake(
    """Nothing is dropped: every text is followed to its end. That finds the best of all, and costs
    vocabulary ** length; beam search keeps num_beams after each step.""",
    {"[:num_beams]": ""},
)
beam_search.mistake(
    """More beams are kept than num_beams, or fewer.""",
    {"[:num_beams]": "[: 2 * num_beams]"},
    {"[:num_beams]": "[: num_beams + 1]"},
    {"[:num_beams]": "[: max(num_beams - 1, 1)]"},
    {"[:num_beams]": "[: max(num_beams // 2, 1)]"},
)
beam_search.mistake(
    """Each beam keeps its own num_beams best continuations, so that there are more and more. The
    num_beams best of all are kept, whichever beam they come from.""",
    {
        KEPT: "[c for t, _ in beams for c in sorted((c for c in candidates if c[0][:-1] == t), "
        "key=lambda beam: -beam[1])[:num_beams]]",
        "return beams[0]": "return max(beams, key=lambda beam: beam[1])",
    },
)
beam_search.mistake(
    """After the first step each beam goes on alone, with its own likeliest token. All continuations
    of all beams compete.""",
    {
        KEPT: f"{KEPT} if len(beams) == 1 else [max((c for c in candidates if c[0][:-1] == t), "
        "key=lambda beam: beam[1]) for t, _ in beams]",
        "return beams[0]": "return max(beams, key=lambda beam: beam[1])",
    },
)
beam_search.mistake(
    """Every step begins with the empty text again: the texts that are kept are not what the next
    step extends.""",
    {
        "beams = sorted": "best = sorted",
        "return beams[0]": "return best[0] if length else beams[0]",
    },
)
beam_search.mistake(
    """A text is judged by its last token alone. Add the log-probabilities of all its tokens.""",
    {"score + log_prob": "log_prob"},
)
beam_search.mistake(
    """Probabilities are added. Log-probabilities are, since probabilities are multiplied.""",
    {"score + log_prob": "score + math.exp(log_prob)"},
)
beam_search.mistake(
    """Log-probabilities are multiplied. Multiplied are probabilities; their logarithms are
    added.""",
    {"score + log_prob": "score * log_prob"},
    {"score + log_prob": "score * log_prob", "[([], 0.0)]": "[([], 1.0)]"},
)
beam_search.mistake(
    """The worst texts are kept: the largest log-probability is the best, the one nearest to 0.""",
    {"-beam[1]": "beam[1]"},
    {"score + log_prob": "score - log_prob"},
)
beam_search.mistake(
    """Of the beams that are left the last and worst is returned. The best comes first.""",
    {"return beams[0]": "return beams[-1]"},
)
beam_search.mistake(
    """There is one step too many or too few: the text has `length` tokens.""",
    {"range(length)": "range(length - 1)"},
    {"range(length)": "range(length + 1)"},
)
beam_search.mistake(
    """next_log_probs is told the last token alone. What follows depends on the whole text.""",
    {"next_log_probs(tokens)": "next_log_probs(tokens[-1:])"},
)
beam_search.mistake(
    """next_log_probs is told the empty text at every step. What follows depends on the text so
    far.""",
    {"next_log_probs(tokens)": "next_log_probs([])"},
)
beam_search.mistake(
    """The log-probability is divided by the length of the text. It is the sum.""",
    {"return beams[0]": "return beams[0][0], beams[0][1] / max(length, 1)"},
)
beam_search.mistake(
    """The probability is returned. Its logarithm is wanted, the sum as it is.""",
    {"return beams[0]": "return beams[0][0], math.exp(beams[0][1])"},
)
beam_search.mistake(
    """The sign of what is returned is turned: a log-probability is 0 or less.""",
    {"return beams[0]": "return beams[0][0], -beams[0][1]"},
    {"score + log_prob": "score - log_prob", "-beam[1]": "beam[1]"},
)
beam_search.mistake(
    """What is returned is another thing than the pair (tokens, log-probability) of one text: all
    beams, or one of the two, or the two the other way round.""",
    {"return beams[0]": "return beams"},
    {"return beams[0]": "return beams[0][0]"},
    {"return beams[0]": "return beams[0][1]"},
    {"return beams[0]": "return beams[0][1], beams[0][0]"},
    {"return beams[0]": "return [text for text, _ in beams], [score for _, score in beams]"},
    {"return beams[0]": "return [text for text, _ in beams], beams[0][1]"},
    {"return beams[0]": "return torch.tensor(beams[0][0], dtype=torch.int64), beams[0][1]"},
)
beam_search.mistake(
    """The log-probability of the beam itself is changed while its tokens are tried, so that each
    text has those of the tokens tried before it, too. Let score stay, and add to a new number.""",
    """
    beams = [([], 0.0)]
    for _ in range(length):
        candidates = []
        for tokens, score in beams:
            for token, log_prob in enumerate(next_log_probs(tokens).tolist()):
                score += log_prob
                candidates.append(([*tokens, token], score))
        beams = sorted(candidates, key=lambda beam: -beam[1])[:num_beams]
    return beams[0]
    """,
)
beam_search.mistake(
    """Texts share a list: append changes it for all that come from the same beam. Make a new list
    for each, [*tokens, token].""",
    *(
        f"""
    beams = [([], 0.0)]
    for _ in range(length):
        candidates = [
            (tokens, score + log_prob, token)
            for tokens, score in beams
            for token, log_prob in enumerate(next_log_probs(tokens).tolist())
        ]
        beams = []
        for tokens, score, token in sorted(candidates, key=lambda beam: -beam[1])[:num_beams]:
            tokens.append(token)
            beams.append((tokens, score))
    return beams[0][0]{part}, beams[0][1]
    """
        for part in ("", "[:length]", "[-length:]")
    ),
    """
    beams = [([], 0.0)]
    for _ in range(length):
        candidates = []
        for tokens, score in beams:
            for token, log_prob in enumerate(next_log_probs(tokens).tolist()):
                tokens.append(token)
                candidates.append((tokens, score + log_prob))
        beams = sorted(candidates, key=lambda beam: -beam[1])[:num_beams]
    return beams[0]
    """,
)
beam_search.mistake(
    """A number that counts over beams and tokens is taken apart wrongly: with i = beam * vocabulary
    + token the beam is i // vocabulary, and the token i % vocabulary.""",
    *(
        f"""
    texts, scores = [[]], torch.zeros(1, dtype=torch.float64)
    for _ in range(length):
        every = torch.stack([next_log_probs(text) for text in texts]) + scores[:, None]
        vocabulary = every.shape[1]
        scores, best = every.flatten().topk(min(num_beams, every.numel()))
        texts = [[*texts[{beam}], {token}] for i in best.tolist()]
    return texts[0], scores[0].item()
    """
        for beam, token in (
            ("min(i // num_beams, len(texts) - 1)", "i % vocabulary"),
            ("i // num_beams % len(texts)", "i % vocabulary"),
            ("i % len(texts)", "i % vocabulary"),
            ("i % len(texts)", "i // len(texts)"),
            ("i // vocabulary", "i % num_beams"),
            ("i // vocabulary", "i"),
        )
    ),
)
beam_search.mistake(
    "A certain token ends a text here. None does: every text has `length` tokens.",
    *(
        f"""
    beams = [([], 0.0)]
    for _ in range(length):
        candidates = []
        for tokens, score in beams:
            if tokens and tokens[-1] == {end}:
                candidates.append((tokens, score))
                continue
            for token, log_prob in enumerate(next_log_probs(tokens).tolist()):
                candidates.append(([*tokens, token], score + log_prob))
        beams = sorted(candidates, key=lambda beam: -beam[1])[:num_beams]
    return beams[0]
    """
        for end in (0, 1, 2)
    ),
)
beam_search.mistake(
    "The search starts with a token that nobody asked for. The first text is empty.",
    {"[([], 0.0)]": "[([0], 0.0)]"},
    {"[([], 0.0)]": "[([0], 0.0)]", "return beams[0]": "return beams[0][0][1:], beams[0][1]"},
)
