"""Text in, text out: what a trained model makes of a ragged list of texts."""

from collections.abc import Sequence
from typing import Any

import torch

from minitransformer.data import pad
from minitransformer.generation import generate
from minitransformer.models import DecoderOnly, EncoderDecoder, EncoderOnly
from minitransformer.training.vocabulary import BOS, EOS, MASK, PAD, SPECIAL, Vocabulary

AnyModel = EncoderOnly | DecoderOnly | EncoderDecoder
ROWS = 250  # texts in one forward pass


def answer(
    model: AnyModel,
    vocabulary: Vocabulary,
    texts: Sequence[str],
    max_new_tokens: int,
    **sampling: Any,
) -> list[str]:
    """An encoder-decoder's translation, a decoder's continuation, an encoder's filled [MASK]s.

    Greedy answers are the same for any batch a text is part of. `sampling` goes to `generate`.
    """
    device = next(model.parameters()).device
    answers = []
    for start in range(0, len(texts), ROWS):
        chunk = texts[start : start + ROWS]
        batch = pad(encode(model, vocabulary, chunk), PAD).to(device)
        ids, mask = batch.input_ids, batch.attention_mask
        if isinstance(model, EncoderOnly):
            with torch.no_grad():
                logits = model(ids, mask)
            logits[..., : len(SPECIAL)] = float("-inf")  # a hidden character is a character
            filled = torch.where(ids == MASK, logits.argmax(-1), ids)
            known = zip(chunk, filled.tolist(), batch.input_ids.tolist(), strict=True)
            answers += [_fill(vocabulary, text, new, old) for text, new, old in known]
            continue
        rows = generate(model, ids, mask, max_new_tokens, eos_id=EOS, **sampling)
        written = [vocabulary.decode(row.tolist()) for row in rows]
        if isinstance(model, DecoderOnly):
            written = [text + new for text, new in zip(chunk, written, strict=True)]
        answers += written
    return answers


def encode(model: AnyModel, vocabulary: Vocabulary, texts: Sequence[str]) -> list[list[int]]:
    """The token ids that a model of this kind was trained to read."""
    if isinstance(model, EncoderDecoder):
        return [vocabulary.encode(text) for text in texts]
    if isinstance(model, DecoderOnly):
        return [[BOS, *vocabulary.encode(text)] for text in texts]
    return [[BOS, *vocabulary.encode_masked(text), EOS] for text in texts]


def _fill(vocabulary: Vocabulary, text: str, filled: list[int], ids: list[int]) -> str:
    """`text` with its [MASK]s replaced; everything else, known to the vocabulary or not, stays."""
    found = iter(
        vocabulary.tokens[new] for new, old in zip(filled, ids, strict=True) if old == MASK
    )
    first, *parts = text.split(SPECIAL[MASK])
    return first + "".join(next(found) + part for part in parts)
