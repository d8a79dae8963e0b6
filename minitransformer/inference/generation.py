"""Writing one token after the other, for a whole ragged batch at once.

`generate` is for the result; `stream_tokens` gives each token as soon as it is there. Whatever
stands beside it in the batch, wherever the padding is, each row gives what it would give alone.
"""

import operator
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from math import inf
from numbers import Integral

import torch
from torch import Tensor
from torch.nn import functional as F

from minitransformer.cache import Cache
from minitransformer.contract import check_attention_mask, may_read
from minitransformer.data import pack
from minitransformer.inference.prepacked import evaluation_view, prepack
from minitransformer.loss import IGNORE_INDEX
from minitransformer.models import DecoderOnly, EncoderDecoder

ENDED = -1  # in place of a token, for a row that has ended
LOOK_EVERY = 16  # steps between two looks whether all rows have ended: each makes a GPU wait
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
    arXiv:1609.08144, section 7): a penalty above 0 favors longer texts. A row stops when
    `num_beams` of its texts have ended and none that goes on is better than the worst of them.

    `use_cache=False` computes everything anew for each token: the same texts, slower.

    The model's config may name tokens that are never written (`forbidden_ids`) and the token that
    every text begins with (`first_id`).

    Shapes: (B,T) ids and (B,T) attention_mask -> a list of B 1-D int64 tensors: the new tokens of
    each row, up to and including the first that is (one of) `eos_id`, at most `max_new_tokens`.
    """
    _check_options(max_new_tokens, temperature, top_k, top_p, num_beams)
    _check_prompts(model, attention_mask, max_new_tokens)
    # Nothing else runs until the last token is written, so the weights cannot change meanwhile.
    text = _Text(prepack(model), input_ids, attention_mask, max_new_tokens, use_cache)
    ends = _as_ids(eos_id, text.ids.device)
    look_every = 1 if text.ids.is_cpu else LOOK_EVERY
    if num_beams > 1:
        return _beam_search(text, max_new_tokens, ends, num_beams, length_penalty, look_every)
    pick = partial(choose, temperature=temperature, top_k=top_k, top_p=top_p, generator=generator)
    none = text.ids.new_empty(len(text.ids), 0, dtype=torch.int64)
    steps = _write(text, max_new_tokens, ends, pick, look_every)
    return _as_rows(torch.cat([none, *(token.unsqueeze(1) for token in steps)], dim=1))


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
    """The tokens of `generate` as they are written: (B,) int64 each, -1 where a row has ended.

    Between two tokens the model is the caller's: its mode is never touched, and if it is trained,
    the next token is written with the new weights (what a cache holds was read with the old ones).
    Where nothing trains it, `stream_tokens(prepack(model), ...)` is as fast as `generate`.
    What cannot be used is refused at the call; the model first runs when a token is asked for.
    """
    _check_options(max_new_tokens, temperature, top_k, top_p)
    _check_prompts(model, attention_mask, max_new_tokens)
    ends = _as_ids(eos_id, input_ids.device)
    pick = partial(choose, temperature=temperature, top_k=top_k, top_p=top_p, generator=generator)

    @torch.no_grad()
    def tokens() -> Iterator[Tensor]:
        text = _Text(evaluation_view(model), input_ids, attention_mask, max_new_tokens, use_cache)
        yield from _write(text, max_new_tokens, ends, pick)

    return tokens()


def choose(
    logits: Tensor,
    temperature: float = 0.0,
    top_k: int | None = None,
    top_p: float | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """One token of each row of logits (B,V) -> (B,) int64; see `generate`."""
    if temperature < torch.finfo(torch.float32).tiny:  # 0, or what float32 cannot divide by
        return logits.argmax(dim=-1)
    logits = logits.float() - logits.max(dim=-1, keepdim=True).values.float()  # no overflow below
    logits, tokens = (logits / temperature).sort(descending=True, stable=True)
    if top_k is not None:
        logits[:, top_k:] = -inf
    probabilities = logits.softmax(dim=-1)
    if top_p is not None:
        before = probabilities.cumsum(dim=-1) - probabilities  # how likely those ahead of it are
        probabilities = probabilities.masked_fill(before >= top_p, 0.0)
    # As torch.multinomial draws, but for its look at the probabilities, which makes a GPU wait.
    rivals = torch.empty_like(probabilities).exponential_(generator=generator)
    drawn = (probabilities / rivals).argmax(dim=-1, keepdim=True)
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
        max_new_tokens: int,
        use_cache: bool,
    ):
        self.model = model
        self.source: tuple[Tensor, Tensor] | None = None  # its hidden states and attention_mask
        self.ids, self.mask = input_ids, attention_mask.long()
        if isinstance(model, EncoderDecoder):
            self.source = model.encode(input_ids, attention_mask), attention_mask
            self.ids = input_ids.new_full((len(input_ids), 1), model.config.bos_id)
            self.mask = torch.ones_like(self.ids)
        self.start = self.ids.shape[1]  # where the new tokens begin
        self.cache = Cache(self.start + max_new_tokens) if use_cache else None
        self.read = 0  # columns that the cache holds
        # A list that becomes a tensor on a GPU makes it wait: once, and not for each token.
        self.first = _as_ids(model.config.first_id, self.ids.device)
        self.forbidden = _as_ids(model.config.forbidden_ids, self.ids.device)

    def next_logits(self) -> Tensor:
        """(B,V), after the last real token of each row."""
        if isinstance(self.model, DecoderOnly) and self._is_ragged_prompt():
            hidden = self._read_packed(self.model)
        else:
            new = self.ids[:, self.read :]
            last = _last_real(self.mask[:, self.read :])
            options = {"cache": self.cache, "at": last if new.shape[1] > 1 else None}
            if isinstance(self.model, EncoderDecoder):
                hidden = self.model.decode(new, self.mask, *self.source, **options)
            else:
                hidden = self.model.encode(new, self.mask, **options)
            hidden = hidden.view(len(new), -1)
        if self.cache is not None:
            self.read = self.ids.shape[1]
        return self.model.head(hidden)

    def _is_ragged_prompt(self) -> bool:
        """Is a batch of prompts to be read that is better packed? A GPU would have to be asked."""
        unread, real = self.cache is not None and self.read == 0, self.mask != 0
        return unread and may_read(real) and not bool(real.all())

    def _read_packed(self, model: DecoderOnly) -> Tensor:
        """Last hidden states of the prompts, (B,d_model), for which no padding is computed."""
        numbers = torch.arange(self.ids.numel()).view_as(self.ids)
        rows, tokens = (
            [row[real].tolist() for row, real in zip(x, self.mask != 0, strict=True)]
            for x in (self.ids, numbers)
        )
        packed = pack(rows, labels=tokens)
        is_token = packed.labels != IGNORE_INDEX
        place = torch.zeros(self.ids.numel(), dtype=torch.int64)  # of each token in `packed`
        place[packed.labels[is_token]] = is_token.flatten().nonzero().squeeze(1)
        at = place[_last_real(self.mask)]
        cache = Cache()
        hidden = model.encode(packed.input_ids, packed.attention_mask, cache=cache, at=at)
        self.cache.read_from(cache, place.view_as(self.ids))
        return hidden

    def allowed(self, scores: Tensor) -> Tensor:
        """Scores (B,V) with -inf for what the model's config says is not written here."""
        if len(self.first) and self.ids.shape[1] == self.start:
            return torch.full_like(scores, -inf).index_fill(1, self.first, 0.0)
        return scores.index_fill(1, self.forbidden, -inf)

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


def _write(
    text: _Text,
    max_new_tokens: int,
    ends: Tensor,
    pick: Callable[[Tensor], Tensor],
    look_every: int = 1,
) -> Iterator[Tensor]:
    """Append to every row what `pick` makes of its logits; every so many steps look for the end."""
    going = torch.ones_like(text.ids[:, 0], dtype=torch.bool)
    for step in range(1, max_new_tokens + 1):
        token = pick(text.allowed(text.next_logits()))
        text.append(token, going)
        yield token.masked_fill(~going, ENDED)
        going = going & ~torch.isin(token, ends)
        if len(ends) and step % look_every == 0 and not going.any():
            break


def _beam_search(
    text: _Text,
    max_new_tokens: int,
    ends: Tensor,
    num_beams: int,
    length_penalty: float,
    look_every: int,
) -> list[Tensor]:
    """For each row, the best of the texts that ended; see `generate`. Beams are rows of `text`."""
    batch, device = len(text.ids), text.ids.device
    first_beam = num_beams * torch.arange(batch, device=device).unsqueeze(1)
    logits = text.next_logits().repeat_interleave(num_beams, dim=0)  # each prompt is read once
    text.reorder(torch.arange(batch, device=device).repeat_interleave(num_beams))
    scores = torch.zeros(batch, num_beams, dtype=_score_dtype(device), device=device)
    scores[:, 1:] = -inf  # at first the beams of a row are one text
    ended = _EndedTexts(scores)
    going = torch.ones(batch, 1, dtype=torch.bool, device=device)
    for length in range(1, max_new_tokens + 1):
        count = num_beams * (1 + len(ends))  # enough that `num_beams` go on, should all others end
        log_probabilities = logits.to(scores.dtype).log_softmax(dim=-1)
        best, beams, tokens = _likeliest(scores, text.allowed(log_probabilities), count)
        rows = first_beam + beams
        is_end = torch.isin(tokens, ends)

        stops = going & (is_end | (length == max_new_tokens))
        texts = torch.cat((text.ids[rows, text.start :], tokens.unsqueeze(-1)), dim=-1)
        per_length = best.masked_fill(~stops, -inf) / length**length_penalty
        ended.add(per_length[:, :num_beams], texts[:, :num_beams])

        scores, order = _sorted(best.masked_fill(is_end, -inf), num_beams)
        hope = scores[:, :1] / length**length_penalty
        going = going & ~(hope <= ended.scores[:, -1:])
        if length == max_new_tokens or (length % look_every == 0 and not going.any()):
            break
        text.reorder(rows.gather(1, order).flatten())
        text.append(tokens.gather(1, order).flatten(), going.expand(-1, num_beams).flatten())
        logits = text.next_logits()
    return _as_rows(ended.texts[:, 0])


class _EndedTexts:
    """For each row the best texts that have ended, the best first, as many as there are beams."""

    def __init__(self, like: Tensor):
        self.scores = torch.full_like(like, -inf)  # (B, beams): none yet
        self.texts = like.new_empty(*like.shape, 0, dtype=torch.int64)  # (B, beams, length)

    def add(self, scores: Tensor, texts: Tensor) -> None:
        """Texts (B, n, length + 1), one token longer than those before; a score of -inf is none."""
        texts = torch.cat((F.pad(self.texts, (0, 1), value=ENDED), texts), dim=1)
        scores = torch.cat((self.scores, scores), dim=1)
        self.scores, order = _sorted(scores, self.scores.shape[1])
        self.texts = texts.take_along_dim(order.unsqueeze(-1), dim=1)


def _likeliest(
    scores: Tensor, log_probabilities: Tensor, count: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Of the texts that are one token longer the likeliest: their scores, beams and tokens.

    Shapes: (B, beams) scores, (B * beams, V) log-probabilities -> (B, count) each, at most V.
    """
    total = scores.unsqueeze(-1) + log_probabilities.unflatten(0, scores.shape)
    vocabulary = total.shape[-1]
    best, index = total.flatten(1).topk(min(count, total[0].numel()))
    return best, index // vocabulary, index % vocabulary


def _sorted(scores: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The highest scores of each row and where they stood; of equal ones the first comes first."""
    scores, order = scores.sort(descending=True, stable=True)
    return scores[:, :count], order[:, :count]


def _score_dtype(device: torch.device) -> torch.dtype:
    """float64, but float32 on Apple's MPS, which has no other.

    There the score of n tokens is off by at most n · 2⁻²² · (largest |logit| + |score|).
    """
    return torch.float32 if device.type == "mps" else torch.float64


def _as_rows(written: Tensor) -> list[Tensor]:
    """(B, length) tokens, each row followed by ENDED -> the rows, each of its own length."""
    lengths = (written != ENDED).sum(dim=1).tolist()
    return [row[:length] for row, length in zip(written, lengths, strict=True)]


def _last_real(mask: Tensor) -> Tensor:
    """Each row's last real token, (batch, length) -> (batch,) indices into (batch · length)."""
    index = torch.arange(mask.numel(), device=mask.device).view_as(mask)
    return index.gather(1, (index * (mask != 0)).argmax(dim=1, keepdim=True)).squeeze(1)


def _as_ids(eos_id: EosId, device: torch.device) -> Tensor:
    """(n,) int64, of None, an integer of any kind (Python's, NumPy's), or several."""
    ids = [] if eos_id is None else list(eos_id) if isinstance(eos_id, Iterable) else [eos_id]
    return torch.tensor([operator.index(one) for one in ids], dtype=torch.int64, device=device)


def _check_options(
    max_new_tokens: int,
    temperature: float,
    top_k: int | None,
    top_p: float | None,
    num_beams: int = 1,
) -> None:
    least = {"max_new_tokens": (max_new_tokens, 0), "num_beams": (num_beams, 1)}
    if top_k is not None:
        least["top_k"] = (top_k, 1)
    for name, (value, smallest) in least.items():
        if not isinstance(value, Integral) or value < smallest:
            raise ValueError(f"{name} must be an integer >= {smallest}, got {value!r}")
    if not 0.0 <= temperature < inf:
        raise ValueError(f"temperature must be 0 (the likeliest token) or more, got {temperature}")
    if top_p is not None and not 0.0 < top_p <= 1.0:
        raise ValueError(f"top_p must be in (0, 1], got {top_p}")
    if num_beams > 1 and (temperature != 0.0 or top_k is not None or top_p is not None):
        raise ValueError("beams are searched, not drawn: leave temperature, top_k and top_p out")


def _check_prompts(
    model: DecoderOnly | EncoderDecoder, attention_mask: Tensor, max_new_tokens: int
) -> None:
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
