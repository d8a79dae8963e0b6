"""Writing one token after the other, for a whole ragged batch at once."""

import torch
from torch import Tensor

from minitransformer.masks import check_attention_mask
from minitransformer.models import DecoderOnly, EncoderDecoder


@torch.no_grad()
def generate(
    model: DecoderOnly | EncoderDecoder,
    input_ids: Tensor,
    attention_mask: Tensor,
    max_new_tokens: int,
    *,
    eos_id: int | None = None,
    temperature: float = 0.0,
    top_k: int | None = None,
    top_p: float | None = None,
    generator: torch.Generator | None = None,
) -> list[Tensor]:
    """Continue each prompt (decoder-only), or write a target for each source (encoder-decoder).

    New tokens are appended on the right, wherever the padding is: positions follow from the mask,
    so a prompt with padding behind it just has a hole. Each row gives what it would give alone.

    temperature 0 takes the likeliest token; above 0 one is drawn from softmax(logits/temperature),
    among the `top_k` likeliest and the smallest set of probability `top_p` or more (Holtzman et
    al. 2019, arXiv:1904.09751). A seeded `generator` makes the draws reproducible.

    Shapes: (B,T) ids and (B,T) attention_mask -> a list of B 1-D int64 tensors: the new tokens of
    each row, up to and including `eos_id`, at most `max_new_tokens`.
    """
    _check_sampling(max_new_tokens, temperature, top_k, top_p)
    _check_lengths(model, attention_mask, max_new_tokens)
    training = model.training
    model.eval()
    try:
        if isinstance(model, EncoderDecoder):
            memory = model.encode(input_ids, attention_mask)
            ids = input_ids.new_full((len(input_ids), 1), model.config.bos_id)
            mask = torch.ones_like(ids)
        else:
            memory, ids, mask = None, input_ids, attention_mask.long()
        prompt_length = ids.shape[1]
        rows = torch.arange(len(ids), device=ids.device)
        going = torch.ones_like(ids[:, 0], dtype=torch.bool)
        for _ in range(max_new_tokens):
            if memory is None:
                hidden = model.encode(ids, mask)
            else:
                hidden = model.decode(ids, mask, memory, attention_mask)
            logits = model.head(hidden[rows, _last_real(mask)])
            token = choose(logits, temperature, top_k, top_p, generator)
            ids = torch.cat((ids, token.unsqueeze(1)), dim=1)
            mask = torch.cat((mask, going.long().unsqueeze(1)), dim=1)
            if eos_id is not None:
                going = going & (token != eos_id)
                if not going.any():
                    break
        new, real = ids[:, prompt_length:], mask[:, prompt_length:] != 0
        return [row[keep] for row, keep in zip(new, real, strict=True)]
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


def _last_real(mask: Tensor) -> Tensor:
    """The index of each row's last real token, (batch, length) -> (batch,)."""
    index = torch.arange(mask.shape[1], device=mask.device)
    return (index * (mask != 0)).argmax(dim=1)


def _check_sampling(
    max_new_tokens: int, temperature: float, top_k: int | None, top_p: float | None
) -> None:
    if max_new_tokens < 0:
        raise ValueError(f"max_new_tokens must be 0 or more, got {max_new_tokens}")
    if not 0.0 <= temperature < float("inf"):
        raise ValueError(f"temperature must be 0 (the likeliest token) or more, got {temperature}")
    if top_k is not None and top_k < 1:
        raise ValueError(f"top_k must be 1 or more, got {top_k}")
    if top_p is not None and not 0.0 < top_p <= 1.0:
        raise ValueError(f"top_p must be in (0, 1], got {top_p}")


def _check_lengths(
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
