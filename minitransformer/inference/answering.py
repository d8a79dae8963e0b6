"""Text in, text out: what a trained model makes of a ragged list of texts."""

import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import torch

from minitransformer.classifier import Classifier
from minitransformer.data import Batch, pad
from minitransformer.data.collate import collate
from minitransformer.data.tokenization import AnyVocabulary, Tokenizer
from minitransformer.data.vocabulary import Vocabulary
from minitransformer.inference.generation import generate, stream_tokens
from minitransformer.inference.prepacked import prepack
from minitransformer.models import DecoderOnly, EncoderDecoder, EncoderOnly

AnyModel = EncoderOnly | DecoderOnly | EncoderDecoder | Classifier
ROWS = 250  # texts in one forward pass


def answer(
    model: AnyModel,
    vocabulary: AnyVocabulary,
    texts: Sequence[str],
    max_new_tokens: int,
    **sampling: Any,
) -> list[str]:
    """An encoder-decoder's translation, a decoder's continuation, an encoder's filled [MASK]s, a
    classifier's class and how probable it is.

    Greedy answers are the same for any batch a text is part of. `sampling` goes to `generate`.
    """
    device = next(model.parameters()).device
    if isinstance(model, EncoderOnly) and vocabulary.mask_id is None:
        raise ValueError("the tokenizer has no token for [MASK]: there is nothing to fill")
    answers = []
    for start in range(0, len(texts), ROWS):
        chunk = texts[start : start + ROWS]
        read = padded(model, vocabulary, chunk)
        batch = read.to(device)
        ids, mask = batch.input_ids, batch.attention_mask
        if isinstance(model, Classifier):
            answers += _classes(model, batch)
            continue
        if isinstance(model, EncoderOnly):
            with torch.no_grad():
                logits = model(ids, mask)
            logits[..., list(vocabulary.special_ids)] = float("-inf")  # what is hidden is text
            filled = torch.where(ids == vocabulary.mask_id, logits.argmax(-1), ids)
            tensors = filled, read.input_ids, read.attention_mask
            known = zip(chunk, *(x.tolist() for x in tensors), strict=True)
            answers += [_fill(vocabulary, *row) for row in known]
            continue
        eos_id = end_of(model, vocabulary)
        rows = generate(model, ids, mask, max_new_tokens, eos_id=eos_id, **sampling)
        written = torch.cat(rows).cpu().split([len(row) for row in rows])  # a GPU waits once
        for text, prompt, real, row in zip(
            chunk, read.input_ids, read.attention_mask, written, strict=True
        ):
            start, before = _start(model, text, prompt[real != 0])
            answers.append(start + _continuation(vocabulary, before, row.tolist()))
    return answers


@torch.no_grad()
def _classes(model: Classifier, batch: Batch) -> list[str]:
    logits = model(batch.input_ids, batch.attention_mask, batch.segment_ids)
    best = logits.float().softmax(dim=-1).max(dim=-1)
    found = zip(best.indices.tolist(), best.values.tolist(), strict=True)
    return [f"{model.names[i]}  {share:.1%}" for i, share in found]


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
    ids, mask = batch.input_ids, batch.attention_mask
    start, prompt = _start(model, text, ids[0])
    yield start
    eos_id = end_of(model, vocabulary)
    fast = prepack(model)
    steps = stream_tokens(fast, ids, mask, max_new_tokens, eos_id=eos_id, **sampling)
    yield from stream_text(vocabulary, prompt, (token.item() for token in steps))


def stream_reply(
    model: DecoderOnly,
    vocabulary: AnyVocabulary,
    ids: Sequence[int],
    max_new_tokens: int,
    **sampling: Any,
) -> Iterator[str]:
    """What the model writes after these tokens, piece by piece, without the token that ends it."""
    device = next(model.parameters()).device
    prompt = torch.tensor([ids], device=device)
    ends = end_of(model, vocabulary)
    steps = stream_tokens(
        model, prompt, torch.ones_like(prompt), max_new_tokens, eos_id=ends, **sampling
    )
    last = ends if isinstance(ends, tuple) else (ends,)
    yield from stream_text(vocabulary, [], (t for t in map(int, steps) if t not in last))


def stream_text(
    vocabulary: AnyVocabulary, prompt: list[int], tokens: Iterable[int]
) -> Iterator[str]:
    """What the tokens add to the text of the prompt, each piece as soon as it is certain.

    Only what follows the last certain token is decoded anew, together with the piece before it: a
    tokenizer may drop the space in front of the first token that it decodes.
    """
    known, new, last = prompt, [], ""
    special = set(vocabulary.special_ids)  # they add nothing
    for token in tokens:
        if token in special:
            continue
        new.append(token)
        piece = _continuation(vocabulary, known, new)
        half = piece.endswith("\N{REPLACEMENT CHARACTER}") or _is_byte(vocabulary, token)
        if piece == last or half:  # half a character waits
            last = piece
            continue
        yield piece
        known, new, last = new, [], ""
    yield _continuation(vocabulary, known, new)


def _start(model: AnyModel, text: str, ids: torch.Tensor) -> tuple[str, list[int]]:
    """What the answer begins with, as text and as tokens: a decoder goes on from its prompt."""
    return (text, ids.tolist()) if isinstance(model, DecoderOnly) else ("", [])


def _continuation(vocabulary: AnyVocabulary, before: list[int], new: list[int]) -> str:
    """What `new` adds to the text of `before`. Decoded alone it would lose the space in front."""
    return vocabulary.decode([*before, *new])[len(vocabulary.decode(before)) :]


def _is_byte(vocabulary: AnyVocabulary, token: int) -> bool:
    """Is it one of the bytes that SentencePiece falls back to? A run of them is decoded as one."""
    return re.fullmatch(r"<0x[0-9A-F]{2}>", vocabulary.names([token])[0]) is not None


def end_of(model: AnyModel, vocabulary: AnyVocabulary) -> int | tuple[int, ...] | None:
    """What ends a text: as the model's config says, else as the vocabulary does."""
    return vocabulary.eos_id if model.config.eos_id is None else model.config.eos_id


def padded(model: AnyModel, vocabulary: AnyVocabulary, texts: Sequence[str]) -> Batch:
    """The texts as the model reads them, one a row."""
    pad_id = vocabulary.pad_id or 0
    if not isinstance(model, Classifier):
        return pad(encode(model, vocabulary, texts), pad_id)
    rows = rows_to_classify(vocabulary, _pairs(vocabulary, texts), model.config.max_length)
    return collate([row._asdict() for row in with_segments(rows, model)], pad_id)


def encode(model: AnyModel, vocabulary: AnyVocabulary, texts: Sequence[str]) -> list[list[int]]:
    """The token ids that a model of this kind was trained to read."""
    if isinstance(model, EncoderDecoder):
        return source_rows(vocabulary, texts)
    if isinstance(model, Classifier):
        rows = rows_to_classify(vocabulary, _pairs(vocabulary, texts), model.config.max_length)
        return [row.input_ids for row in rows]
    if isinstance(model, DecoderOnly):  # a text that ends would not be continued
        return _without_end(vocabulary, vocabulary.encode(texts))
    if isinstance(vocabulary, Vocabulary):
        return [vocabulary.encode_masked(text) for text in texts]
    return vocabulary.encode(texts)


def source_rows(vocabulary: AnyVocabulary, texts: Sequence[str]) -> list[list[int]]:
    """What an encoder-decoder reads; of characters without special tokens, which say nothing."""
    return vocabulary.encode(texts, add_special=isinstance(vocabulary, Tokenizer))


def target_rows(
    vocabulary: AnyVocabulary, texts: Sequence[str], bos_id: int | None
) -> list[list[int]]:
    """What it writes, without `bos_id`, which it is given to begin with, and without the end."""
    rows = _without_end(vocabulary, source_rows(vocabulary, texts))
    return [row[1:] if row[:1] == [bos_id] else row for row in rows]


class Row(NamedTuple):
    """What a classifier reads: tokens, and the segment of each."""

    input_ids: list[int]
    token_type_ids: list[int]


def rows_to_classify(
    vocabulary: AnyVocabulary, texts: Sequence[tuple[str, ...]], most: int | None = None
) -> list[Row]:
    """Texts, or pairs of texts, in at most so many tokens. Of a longer one the end is cut off, not
    the tokens that stand around it."""
    if isinstance(vocabulary, Tokenizer):
        rows = [Row(*row) for row in vocabulary.encode_pairs(texts)]
    else:
        rows = [Row(ids, [0] * len(ids)) for ids in vocabulary.encode([text for text, *_ in texts])]
    end = vocabulary.suffix
    return [
        row
        if most is None or len(row.input_ids) <= most
        else Row(row.input_ids[: most - len(end)] + end, row.token_type_ids[:most])
        for row in rows
    ]


def with_segments(rows: list[Row], model: AnyModel) -> list[Row]:
    """As they are, or of one segment for a model without: the tokenizer cannot know that."""
    if model.config.num_segments:
        return rows
    return [Row(row.input_ids, [0] * len(row.input_ids)) for row in rows]


def _pairs(vocabulary: AnyVocabulary, texts: Sequence[str]) -> list[tuple[str, ...]]:
    """A TAB stands between the two texts of a pair; of characters there are no pairs."""
    parts = 1 if isinstance(vocabulary, Tokenizer) else 0
    return [tuple(text.split("\t", parts)) for text in texts]


def _without_end(vocabulary: AnyVocabulary, rows: list[list[int]]) -> list[list[int]]:
    return [row[:-1] if row[-1:] == [vocabulary.eos_id] else row for row in rows]


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
