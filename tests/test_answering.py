"""Text from tokens: what a decoder writes is joined to its prompt as one text would be."""

import random

import pytest

tokenizers = pytest.importorskip("tokenizers")

from tokenizers import decoders, models, normalizers, pre_tokenizers, processors  # noqa: E402

from minitransformer.data.tokenization import Tokenizer  # noqa: E402
from minitransformer.data.vocabulary import Vocabulary  # noqa: E402
from minitransformer.inference.answering import stream_text  # noqa: E402

TEXTS = ["Once upon a time there was a mask, and it was bold.", "héllo 🙂 日本語 — naïve"] * 3


def sentencepiece() -> Tokenizer:
    """As Llama 2's: a space is a ▁ in front of a word, and an unknown letter is its bytes."""
    words = [f"▁{word}" for text in TEXTS[:1] for word in text.split()]
    vocabulary = {"<unk>": 0, "<s>": 1, "</s>": 2} | {f"<0x{i:02X}>": 3 + i for i in range(256)}
    merges = []
    for letter in sorted(set("▁".join(words))):
        vocabulary.setdefault(letter, len(vocabulary))
    for word in words:
        for end in range(2, len(word) + 1):
            if word[:end] not in vocabulary:
                vocabulary[word[:end]] = len(vocabulary)
                merges.append((word[: end - 1], word[end - 1]))
    model = models.BPE(vocab=vocabulary, merges=merges, unk_token="<unk>", byte_fallback=True)
    made = tokenizers.Tokenizer(model)
    made.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    made.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    made.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 1)]
    )
    made.add_special_tokens(["<unk>", "<s>", "</s>"])
    return Tokenizer(made)


def metaspace() -> Tokenizer:
    """As T5's: the same mark, taken away by a decoder of its own."""
    words = sorted({f"▁{word}" for text in TEXTS for word in text.split()})
    letters = sorted(set("".join(words)))
    model = models.Unigram([("<unk>", 0.0), *((part, -1.0) for part in [*words, *letters])], 0)
    made = tokenizers.Tokenizer(model)
    made.pre_tokenizer, made.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    return Tokenizer(made)


TOKENIZERS = {
    "bytes": lambda: Tokenizer.train(TEXTS, 300),
    "wordpiece": lambda: Tokenizer.train(TEXTS, 120, "wordpiece"),
    "sentencepiece": sentencepiece,
    "metaspace": metaspace,
    "characters": lambda: Vocabulary("".join(TEXTS)),
}


@pytest.fixture(params=TOKENIZERS, scope="module")
def tokenizer(request):
    return TOKENIZERS[request.param]()


def test_a_stream_is_the_text_of_prompt_and_continuation(tokenizer):
    """Any tokens whatever: whole words, half characters, special tokens, runs of bytes."""
    draw = random.Random(0)
    for number in range(600):
        tokens = [draw.randrange(len(tokenizer)) for _ in range(draw.randint(0, 14))]
        if number % 2 and isinstance(tokenizer, Tokenizer):  # real text, cut anywhere
            tokens = tokenizer.encode([draw.choice(TEXTS)], add_special=False)[0]
        cut = draw.randint(0, len(tokens))
        prompt, new = tokens[:cut], tokens[cut:]
        pieces = list(stream_text(tokenizer, prompt, new))
        before = tokenizer.decode(prompt)
        assert "".join(pieces) == tokenizer.decode(tokens)[len(before) :], (prompt, new)


@pytest.mark.parametrize("text", ["Once upon", "Once upon ", "a 🙂", ""])
def test_the_space_between_prompt_and_continuation_is_kept(text):
    tokenizer = sentencepiece()
    prompt = tokenizer.encode([text])[0]
    new = tokenizer.encode(["a time 🙂 日"], add_special=False)[0]
    pieces = list(stream_text(tokenizer, prompt, new))
    assert "".join(pieces) == (" " if text else "") + "a time 🙂 日"
    assert pieces[:2] == [" a" if text else "a", " time"]  # as soon as they are there


def test_what_was_written_is_not_decoded_again_and_again(monkeypatch):
    tokenizer, decoded = Tokenizer.train(TEXTS, 300), []
    decode = tokenizer.decode
    monkeypatch.setattr(tokenizer, "decode", lambda ids: decoded.extend(ids) or decode(ids))
    prompt, new = tokenizer.encode([TEXTS[0] * 5, TEXTS[0] * 20], add_special=False)
    assert "".join(stream_text(tokenizer, prompt, new)) == TEXTS[0] * 20
    assert len(decoded) <= 2 * len(prompt) + 5 * len(new)
    decoded.clear()
    assert list(stream_text(tokenizer, [], tokenizer.special_ids * 200)) == [""]
    assert not decoded
