"""Text in, text out: what a trained model makes of a ragged list of texts."""

from collections.abc import Iterator, Sequence
from typing import Any

import torch

from minitransformer.data import Batch, pad
from minitransformer.data.tokenization import Tokenizer
from minitransformer.data.vocabulary import Vocabulary
from minitransformer.inference.generation import generate, stream_tokens
from minitransformer.inference.prepacked import prepack
from minitransformer.models import DecoderOnly, EncoderDecoder, EncoderOnly

AnyModel = EncoderOnly | DecoderOnly | EncoderDecoder
AnyVocabulary = Vocabulary | Tokenizer
ROWS = 250  # texts in one forward pass


def answer(
    model: AnyModel,
    vocabulary: AnyVocabulary,
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
        batch = padded(model, vocabulary, chunk).to(device)
        ids, mask = batch.input_ids, batch.attention_mask
        if isinstance(model, EncoderOnly):
            with torch.no_grad():
                logits = model(ids, mask)
            logits[..., list(vocabulary.special_ids)] = float("-inf")  # what is hidden is text
            filled = torch.where(ids == vocabulary.mask_id, logits.argmax(-1), ids)
            known = zip(chunk, filled.tolist(), ids.tolist(), mask.tolist(), strict=True)
            answers += [_fill(vocabulary, *row) for row in known]
            continue
        eos_id = end_of(model, vocabulary)
        rows = generate(model, ids, mask, max_new_tokens, eos_id=eos_id, **sampling)
        written = [vocabulary.decode(row.tolist()) for row in rows]
        if isinstance(model, DecoderOnly):
            written = [text + new for text, new in zip(chunk, written, strict=True)]
        answers += written
    return answers


def stream_answer(
    model: DecoderOnly | EncoderDecoder,
    vocabulary: AnyVocabulary,
    text: str,
    max_new_tokens: int,
    **sampling: Any,
) -> Iterator[str]:
    """The answer to one text, piece by piece as it is written: together they are `answer`'s.

    The large weights are those of the beginning, also if the model is trained meanwhile.
    """
    device = next(model.parameters()).device
    batch = padded(model, vocabulary, [text]).to(device)
    if isinstance(model, DecoderOnly):
        yield text
    written: list[int] = []
    shown = ""
    eos_id = end_of(model, vocabulary)
    ids, mask = batch.input_ids, batch.attention_mask
    fast = prepack(model)
    for token in stream_tokens(fast, ids, mask, max_new_tokens, eos_id=eos_id, **sampling):
        written.append(token.item())
        whole = vocabulary.decode(written)
        if not whole.endswith("\N{REPLACEMENT CHARACTER}"):  # half a character: wait for the rest
            yield whole[len(shown) :]
            shown = whole
    yield vocabulary.decode(written)[len(shown) :]


def end_of(model: AnyModel, vocabulary: AnyVocabulary) -> int | tuple[int, ...] | None:
    """What ends a text: as the model's config says, else as the vocabulary does."""
    return vocabulary.eos_id if model.config.eos_id is None else model.config.eos_id


def padded(model: AnyModel, vocabulary: AnyVocabulary, texts: Sequence[str]) -> Batch:
    """The texts as the model reads them, one a row."""
    return pad(encode(model, vocabulary, texts), vocabulary.pad_id or 0)


def encode(model: AnyModel, vocabulary: AnyVocabulary, texts: Sequence[str]) -> list[list[int]]:
    """The token ids that a model of this kind was trained to read."""
    if isinstance(vocabulary, Tokenizer):
        rows = vocabulary.encode(texts)
        if isinstance(model, DecoderOnly):  # a text that ends would not be continued
            rows = [row[:-1] if row[-1:] == [vocabulary.eos_id] else row for row in rows]
        return rows
    if isinstance(model, EncoderDecoder):
        return [vocabulary.encode(text) for text in texts]
    bos_id, eos_id = vocabulary.bos_id, vocabulary.eos_id
    if isinstance(model, DecoderOnly):
        return [[bos_id, *vocabulary.encode(text)] for text in texts]
    return [[bos_id, *vocabulary.encode_masked(text), eos_id] for text in texts]


def _fill(
    vocabulary: AnyVocabulary, text: str, filled: list[int], ids: list[int], mask: list[int]
) -> str:
    """`text` with its [MASK]s replaced; of characters everything else stays, known or not."""
    if isinstance(vocabulary, Tokenizer):
        return vocabulary.decode(new for new, real in zip(filled, mask, strict=True) if real)
    hidden = [new for new, old in zip(filled, ids, strict=True) if old == vocabulary.mask_id]
    found = iter(vocabulary.names(hidden))
    first, *parts = text.split(vocabulary.mask_name)
    return first + "".join(next(found) + part for part in parts)
