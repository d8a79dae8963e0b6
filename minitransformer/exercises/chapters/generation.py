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
