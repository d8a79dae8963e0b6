"""Writing one token after the other, for a whole ragged batch at once.

`generate` is for the result; `stream_tokens` gives each token as soon as it is there. Whatever
stands beside it in the batch, wherever the padding is, each row gives what it would give alone.
"""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from minitransformer.cache import Cache
from minitransformer.contract import check_attention_mask
from minitransformer.inference.prepacked import PackedLinear
from minitransformer.models import DecoderOnly, EncoderDecoder

ENDED = -1  # in place of a token, for a row that has ended
EosId = int | Sequence[int] | None


@torch.no_grad()
def generate(
    model: DecoderOnly | EncoderDecoder,
    input_ids: Tensor,
    attention_mask: Tensor,
    max_new_tokens: int,
    *,
    eos_id: EosId = None,
    temperature: float = 0.0,
    top_k: int | None = None,
    top_p: float | None = None,
    num_beams: int = 1,
    length_penalty: float = 1.0,
    use_cache: bool = True,
    generator: torch.Generator | None = None,
) -> list[Tensor]:
    """Continue each prompt (decoder-only), or write a target for each source (encoder-decoder).

    New tokens are appended on the right, wherever the padding is: positions follow from the mask,
    so a prompt with padding behind it just has a hole. Each row gives what it would give alone.

    temperature 0 takes the likeliest token; above 0 one is drawn from softmax(logits/temperature),
    among the `top_k` likeliest and the smallest set of probability `top_p` or more (Holtzman et
    al. 2019, arXiv:1904.09751). A seeded `generator` makes the draws reproducible.

    With `num_beams` above 1 so many texts are kept at a time, and the one of the highest
    log-probability / number of new tokens ** `length_penalty` is returned (Wu et al. 2016,
    arXiv:1609.08144, section 7): a penalty above 0 favours longer texts. A row stops when
    `num_beams` of its texts have ended and none that goes on is better than the worst of them.

    `use_cache=False` computes everything anew for each token: the same texts, slower.

    The model's config may name tokens that are never written (`forbidden_ids`) and the token that
    every text begins with (`first_id`).

    Shapes: (B,T) ids and (B,T) attention_mask -> a list of B 1-D int64 tensors: the new tokens of
    each row, up to and including the first that is (one of) `eos_id`, at most `max_new_tokens`.
    """
    if num_beams == 1:
        steps = stream_tokens(
            model,
            input_ids,
            attention_mask,
            max_new_tokens,
            eos_id=eos_id,
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            use_cache=use_cache,
            generator=generator,
        )
        none = input_ids.new_empty(len(input_ids), 0)
        written = torch.cat([none, *(token.unsqueeze(1) for token in steps)], dim=1)
        return [row[row != ENDED] for row in written]
    if not isinstance(num_beams, int) or num_beams < 1:
        raise ValueError(f"num_beams must be an integer >= 1, got {num_beams!r}")
    if temperature != 0.0 or top_k is not None or top_p is not None:
        raise ValueError("beams are searched, not drawn: leave temperature, top_k and top_p out")
    _check(model, attention_mask, max_new_tokens, temperature, top_k, top_p)
    training = model.training
    model.eval()
    try:
        text = _Text(model, input_ids, attention_mask, use_cache)
        return _beam_search(text, max_new_tokens, _as_ids(eos_id), num_beams, length_penalty)
    finally:
        model.train(training)


@torch.no_grad()
def stream_tokens(
    model: DecoderOnly | EncoderDecoder,
    input_ids: Tensor,
    attention_mask: Tensor,
    max_new_tokens: int,
    *,
    eos_id: EosId = None,
    temperature: float = 0.0,
    top_k: int | None = None,
    top_p: float | None = None,
    use_cache: bool = True,
    generator: torch.Generator | None = None,
) -> Iterator[Tensor]:
    """The tokens of `generate` as they are written: (B,) int64 each, -1 where a row has ended."""
    _check(model, attention_mask, max_new_tokens, temperature, top_k, top_p)
    ends = _as_ids(eos_id).to(input_ids.device)
    training = model.training
    model.eval()
    try:
        text = _Text(model, input_ids, attention_mask, use_cache)
        going = torch.ones_like(input_ids[:, 0], dtype=torch.bool)
        for _ in range(max_new_tokens):
            logits = text.allowed(text.next_logits())
            token = choose(logits, temperature, top_k, top_p, generator)
            text.append(token, going)
            yield token.masked_fill(~going, ENDED)
            going = going & ~torch.isin(token, ends)
            if len(ends) and not going.any():
                break
    finally:
        model.train(training)


def choose(
    logits: Tensor,
    temperature: float = 0.0,
    top_k: int | None = None,
    top_p: float | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """One token of each row of logits (B,V) -> (B,) int64; see `generate`."""
    if temperature == 0.0:
        return logits.argmax(dim=-1)
    logits = logits.float() - logits.max(dim=-1, keepdim=True).values.float()  # no overflow below
    logits, tokens = (logits / temperature).sort(dim=-1, descending=True, stable=True)
    if top_k is not None:
        logits[:, top_k:] = float("-inf")
    probabilities = logits.softmax(dim=-1)
    if top_p is not None:
        before = probabilities.cumsum(dim=-1) - probabilities  # how likely those ahead of it are
        probabilities = probabilities.masked_fill(before >= top_p, 0.0)
    drawn = torch.multinomial(probabilities, 1, generator=generator)
    return tokens.gather(1, drawn).squeeze(1)


class _Text:
    """What stands in each row so far, and what the model says comes next.

    The cache holds what the model has read; the columns that it has not read are the new ones.
    """

    def __init__(
        self,
        model: DecoderOnly | EncoderDecoder,
        input_ids: Tensor,
        attention_mask: Tensor,
        use_cache: bool,
    ):
        self.model = model
        self.fast = PackedLinear(model)
        self.source: tuple[Tensor, Tensor] | None = None  # its hidden states and attention_mask
        self.ids, self.mask = input_ids, attention_mask.long()
        if isinstance(model, EncoderDecoder):
            self.source = model.encode(input_ids, attention_mask), attention_mask
            self.ids = input_ids.new_full((len(input_ids), 1), model.config.bos_id)
            self.mask = torch.ones_like(self.ids)
        self.start = self.ids.shape[1]  # where the new tokens begin
        self.cache = Cache() if use_cache else None
        self.read = 0  # columns that the cache holds

    def next_logits(self) -> Tensor:
        """(B,V), after the last real token of each row."""
        new = self.ids[:, self.read :]
        rows = torch.arange(len(new), device=new.device)
        last = _last_real(self.mask[:, self.read :])
        if self.cache is not None:
            self.read = self.ids.shape[1]
        with self.fast:
            if isinstance(self.model, EncoderDecoder):
                hidden = self.model.decode(new, self.mask, *self.source, cache=self.cache)
            else:
                hidden = self.model.encode(new, self.mask, cache=self.cache)
            return self.model.head(hidden[rows, last])

    def allowed(self, scores: Tensor) -> Tensor:
        """Scores (B,V) with -inf for what the model's config says is not written here."""
        config = self.model.config

        def at(token_ids: Sequence[int]) -> Tensor:
            return torch.tensor(token_ids, dtype=torch.int64, device=scores.device)

        if config.first_id is not None and self.ids.shape[1] == self.start:
            return torch.full_like(scores, float("-inf")).index_fill(1, at([config.first_id]), 0.0)
        return scores.index_fill(1, at(config.forbidden_ids), float("-inf"))

    def append(self, token: Tensor, real: Tensor) -> None:
        """(B,) tokens, and where they count: a row that has ended gets padding."""
        self.ids = torch.cat((self.ids, token.unsqueeze(1)), dim=1)
        self.mask = torch.cat((self.mask, real.long().unsqueeze(1)), dim=1)

    def reorder(self, rows: Tensor) -> None:
        """Have row i go on from what row `rows[i]` holds."""
        self.ids, self.mask = self.ids[rows], self.mask[rows]
        if self.source is not None:
            self.source = self.source[0][rows], self.source[1][rows]
        if self.cache is not None:
            self.cache.reorder(rows)


def _beam_search(
    text: _Text, max_new_tokens: int, ends: Tensor, num_beams: int, length_penalty: float
) -> list[Tensor]:
    """For each row, the best of the texts that ended; see `generate`. Beams are rows of `text`."""
    batch, device = len(text.ids), text.ids.device
    text.reorder(torch.arange(batch, device=device).repeat_interleave(num_beams))
    scores = text.mask.new_zeros(batch, num_beams, dtype=torch.float64)
    scores[:, 1:] = float("-inf")  # at first the beams of a row are one text
    ended: list[list[tuple[float, Tensor]]] = [[] for _ in range(batch)]
    going = [True] * batch
    for length in range(1, max_new_tokens + 1):
        likely = text.allowed(text.next_logits().double().log_softmax(dim=-1))
        vocabulary = likely.shape[-1]
        total = (scores.unsqueeze(-1) + likely.view(batch, num_beams, vocabulary)).flatten(1)
        count = min(num_beams * (1 + len(ends)), total.shape[1])  # enough, should all others end
        best, index = total.topk(count, dim=1)
        beams, tokens = index // vocabulary, index % vocabulary
        ending = torch.isin(tokens, ends.to(device))
        rows = torch.arange(batch * num_beams, device=device)
        token = torch.zeros_like(rows)
        for row in range(batch):
            if not going[row]:
                continue
            here = slice(row * num_beams, (row + 1) * num_beams)
            for rank in range(min(num_beams, count)):
                if ending[row, rank] or length == max_new_tokens:
                    written = text.ids[row * num_beams + beams[row, rank], text.start :]
                    whole = torch.cat((written, tokens[row, rank : rank + 1]))
                    ended[row].append((best[row, rank].item() / length**length_penalty, whole))
            ended[row] = sorted(ended[row], key=lambda one: -one[0])[:num_beams]
            kept = (~ending[row]).nonzero().squeeze(1)[:num_beams]
            kept = torch.cat((kept, kept.new_zeros(num_beams - len(kept))))  # none left: a dead one
            rows[here], token[here] = row * num_beams + beams[row, kept], tokens[row, kept]
            scores[row] = best[row, kept].masked_fill(ending[row, kept], float("-inf"))
            hope = scores[row, 0].item() / length**length_penalty
            going[row] = len(ended[row]) < num_beams or hope > ended[row][-1][0]
        if not any(going):
            break
        text.reorder(rows)
        alive = torch.tensor(going, device=device).repeat_interleave(num_beams)
        text.append(token, alive)
    nothing = text.ids.new_empty(0)
    return [one[0][1] if one else nothing for one in ended]


def _last_real(mask: Tensor) -> Tensor:
    """The index of each row's last real token, (batch, length) -> (batch,)."""
    index = torch.arange(mask.shape[1], device=mask.device)
    return (index * (mask != 0)).argmax(dim=1)


def _as_ids(eos_id: EosId) -> Tensor:
    ids = [] if eos_id is None else [eos_id] if isinstance(eos_id, int) else list(eos_id)
    return torch.tensor(ids, dtype=torch.int64)


def _check(
    model: DecoderOnly | EncoderDecoder,
    attention_mask: Tensor,
    max_new_tokens: int,
    temperature: float,
    top_k: int | None,
    top_p: float | None,
) -> None:
    if max_new_tokens < 0:
        raise ValueError(f"max_new_tokens must be 0 or more, got {max_new_tokens}")
    if not 0.0 <= temperature < float("inf"):
        raise ValueError(f"temperature must be 0 (the likeliest token) or more, got {temperature}")
    if top_k is not None and top_k < 1:
        raise ValueError(f"top_k must be 1 or more, got {top_k}")
    if top_p is not None and not 0.0 < top_p <= 1.0:
        raise ValueError(f"top_p must be in (0, 1], got {top_p}")
    if not isinstance(model, DecoderOnly | EncoderDecoder):
        raise TypeError(
            f"generate needs a DecoderOnly or EncoderDecoder, got {type(model).__name__}"
        )
    check_attention_mask(attention_mask)
    if (attention_mask > 1).any():
        raise ValueError("generate takes one prompt a row: attention_mask must be 0 or 1")
    limit = model.config.max_length
    if isinstance(model, EncoderDecoder):
        if max_new_tokens > limit:
            raise ValueError(f"max_new_tokens = {max_new_tokens} is more than max_length = {limit}")
        return
    lengths = (attention_mask != 0).sum(dim=1)
    if (lengths == 0).any():
        raise ValueError(
            f"prompt {int((lengths == 0).int().argmax())} is empty: give it at least one token"
        )
    if (lengths + max_new_tokens > limit).any():
        raise ValueError(
            f"the longest prompt has {lengths.max()} tokens; with max_new_tokens = "
            f"{max_new_tokens} that is more than max_length = {limit}"
        )
