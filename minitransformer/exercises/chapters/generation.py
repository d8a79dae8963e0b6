"""Chapter 9: generation."""

import torch
from torch import Tensor

from minitransformer.checks import GeneratorSubject, expect
from minitransformer.exercises.exercise import Draw, exercise


class Chain:
    """A model whose next token is likeliest by a table: logits[t] follow from the token at t."""

    def __init__(self, draw: Draw, vocabulary: int = 7):
        self.table = draw.normal(vocabulary, vocabulary)
        self.calls = 0

    def __call__(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        self.calls += 1
        return self.table[input_ids]


def _prompts(draw: Draw):
    for _ in range(2):
        mask = draw.attention_mask(3, 4)
        ids = torch.randint(1, 7, (3, 4), generator=draw.generator) * mask
        yield Chain(draw), ids, mask, draw.integer(2, 5), draw.integer(1, 6)


@exercise(
    "Greedy decoding, row by row",
    chapter=9,
    about="""Write the likeliest token, again and again, for prompts of different lengths at once.
        Each row must get what it would get alone, and stop at its own end.""",
    hints=[
        "What comes next follows from the logits at each row's last real token, not at the last "
        "column.",
        "Put new tokens behind everything, with a 1 in the mask; the padding in between is then a "
        "hole that the mask knows. A row that has ended gets 0 in the mask.",
        "last = (torch.arange(length) * mask).argmax(dim=1); logits[torch.arange(batch), last]",
    ],
    inputs=_prompts,
    subject=lambda fn: GeneratorSubject(
        lambda model, ids, mask, new, eos_id=-1: fn(model, ids, mask, new, eos_id),
        eos_flag="eos_id",
    ),
    promises={
        "prompts_padded_on_the_left_give_what_they_give_alone": 1,
        "prompts_padded_on_the_right_give_what_they_give_alone": 1,
        "each_row_stops_at_its_own_end": 1,
        "a_row_that_ends_leaves_its_neighbours_alone": 1,
    },
)
def greedy_decode(
    model, input_ids: Tensor, attention_mask: Tensor, max_new_tokens: int, eos_id: int
) -> list[Tensor]:
    """Continue each prompt with the likeliest token, up to and including eos_id.

    model(input_ids, attention_mask) -> logits (batch, length, vocabulary); its positions follow
    from the mask, so holes are allowed
    input_ids, attention_mask: (batch, length) int64, padded on either side
    returns: the new tokens of each row, 1-D int64, at most max_new_tokens
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


@greedy_decode.check(points=1)
def it_stops_when_every_row_has_ended(fn, draw: Draw):
    """When all rows have ended the model is not asked again."""
    model = Chain(draw)
    model.table[:, 3] = 100.0  # 3 is always the likeliest
    found = fn(model, torch.tensor([[1, 2], [4, 5]]), torch.ones(2, 2, dtype=torch.int64), 9, 3)
    expect([row.tolist() for row in found] == [[3], [3]], "Every row should be the one token 3.")
    expect(
        model.calls == 1,
        f"Every row ends with its first token, and the model was asked {model.calls} times.",
    )


def _steps(draw: Draw):
    for _ in range(2):
        past = draw.normal(2, 2, 3, 4), draw.normal(2, 2, 3, 4)
        new = draw.integer(1, 2)
        yield (*(draw.normal(2, 2, new, 4) for _ in range(3)), past)
    yield (*(draw.normal(1, 2, 4, 4) for _ in range(3)), None)


@exercise(
    "A key/value cache",
    chapter=9,
    about="""What was read is not read again: keep the keys and values of the past, and let the new
        queries look at them and at themselves.""",
    hints=[
        "Put the new keys and values behind the old ones, along the axis of the length.",
        "The new queries are the last tokens: query i may see all of the past and the new up to i.",
        "The mask is a triangle that is aligned at its end: tril(num_keys - num_queries).",
    ],
    inputs=_steps,
)
def kv_cache(query: Tensor, key: Tensor, value: Tensor, cache):
    """Causal attention of new tokens to the past and to each other.

    query, key, value: (batch, heads, new, width), of the new tokens only
    cache: None, or what the call before returned: keys and values (batch, heads, past, width)
    returns: the output (batch, heads, new, width), and the cache for the next call, (keys, values)
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
            f"Read {size} at a time, six tokens give something else than read at once: "
            + (
                "is the past still there?"
                if size == 1
                else "do the new tokens see each other, but not their future?"
            ),
            difference,
        )
    return largest


@kv_cache.check(points=1)
def the_cache_of_the_past_is_left_alone(fn, draw: Draw):
    """The cache that was handed in still holds what it held."""
    past = draw.normal(1, 1, 3, 2), draw.normal(1, 1, 3, 2)
    before = past[0].clone(), past[1].clone()
    _, cache = fn(*(draw.normal(1, 1, 1, 2) for _ in range(3)), past)
    expect(
        past[0].shape == before[0].shape and torch.equal(past[0], before[0]),
        "The keys that were handed in were changed.",
    )
    expect(
        cache[0].shape[2] == 4,
        f"The new cache holds {cache[0].shape[2]} keys; 3 of the past and 1 new one make 4.",
    )


class Tree:
    """log-probabilities of the next token, by what was written so far."""

    def __init__(self, draw: Draw, vocabulary: int = 5):
        self.draw, self.vocabulary = draw, vocabulary
        self.known: dict[tuple[int, ...], Tensor] = {}

    def __call__(self, written: list[int]) -> Tensor:
        written = tuple(int(token) for token in written)
        if written not in self.known:
            seed = sum((token + 1) * 7**i for i, token in enumerate(written))
            logits = torch.randn(
                self.vocabulary, generator=torch.Generator().manual_seed(seed), dtype=torch.float64
            )
            self.known[written] = (2 * logits).log_softmax(dim=-1)
        return self.known[written]


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
    inputs=lambda draw: [
        (Tree(draw), beams, length) for beams, length in ((1, 3), (2, 3), (3, 4), (2, 1))
    ],
    tolerance=1e-4,
)
def beam_search(next_log_probs, num_beams: int, length: int) -> tuple[list[int], float]:
    """The best text of `length` tokens that beam search finds, and its log-probability.

    next_log_probs(tokens: list[int]) -> (vocabulary,) log-probabilities of the next token
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


@beam_search.check(points=1)
def two_beams_find_what_greed_misses(fn, draw: Draw):
    """Where the likeliest first token leads nowhere, two beams find the other way."""

    def chances(tokens):
        table = {(): [0.6, 0.4], (0,): [0.5, 0.5], (1,): [0.95, 0.05]}
        return torch.tensor(table[tuple(int(token) for token in tokens)]).log()

    tokens, score = fn(chances, 2, 2)
    expect(
        list(tokens) == [1, 0],
        f"It finds {list(tokens)}. Starting with 0 (60 %) gives at most 30 %, but 1 then 0 has "
        "0.4 * 0.95 = 38 %: [1, 0] is wanted.",
    )
    expect(
        abs(float(score) - float(torch.tensor(0.38).log())) < 1e-4,
        f"The log-probability of [1, 0] is log 0.38 = -0.9676, not {float(score):.4f}: add the "
        "log-probabilities of all tokens.",
    )


@beam_search.check(points=1)
def one_beam_is_greedy(fn, draw: Draw):
    """With one beam the likeliest token is taken each time."""
    tree = Tree(draw)
    greedy: list[int] = []
    for _ in range(4):
        greedy.append(int(tree(greedy).argmax()))
    tokens, _ = fn(tree, 1, 4)
    expect(list(tokens) == greedy, f"One beam finds {list(tokens)}; greed finds {greedy}.")


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
