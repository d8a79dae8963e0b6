"""Language models: a decoder that continues prose, an encoder that finds its hidden tokens."""

import math
from collections.abc import Sequence
from dataclasses import replace

import torch

from minitransformer.data import Batch, mask_tokens, next_token_labels, pack, pad
from minitransformer.data.cutting import Piece
from minitransformer.data.files import InputError
from minitransformer.data.large import find_corpus
from minitransformer.data.reading import Record
from minitransformer.data.source import DataOptions, make_vocabulary, needing, note_unknown
from minitransformer.data.tokenization import AnyVocabulary
from minitransformer.data.vocabulary import Vocabulary
from minitransformer.inference.answering import AnyModel
from minitransformer.models import DecoderOnly, EncoderOnly
from minitransformer.training.tasks.task import (
    QUICK,
    Evaluation,
    Measured,
    Watch,
    chunks,
    exp,
    measure,
    one_line,
    shuffled,
    worst,
)

ROWS = 50  # pieces in one batch of an evaluation


class LanguageModelTask:
    """A decoder that continues prose. Every 20th paragraph is held out, by its hash.

    What is longer than the model is cut into pieces; only the last of them is followed by <eos>.
    """

    name = "lm"
    model_class: type[AnyModel] = DecoderOnly
    reported = QUICK
    needed: tuple[str, ...] = ()  # tokens that the vocabulary must have

    def __init__(
        self,
        options: DataOptions,
        max_length: int,
        vocabulary: AnyVocabulary | None = None,
        model: AnyModel | None = None,
    ):
        self.max_length = max_length
        self.defaults = {
            "style": "llama",  # on so little text rotary positions learn several times faster
            "max_length": max_length,
            "batch_size": 24,
            "steps": 600,
        }
        corpus = find_corpus(options, 8 * max_length, python_prose)
        texts = corpus.characters if options.tokenizer == "characters" else corpus.texts()
        self.vocabulary = vocabulary or make_vocabulary(options, texts, self.needed, corpus.notes)
        needing(self.vocabulary, self.needed)
        note_unknown(self.vocabulary, corpus.characters, corpus.notes)
        around = len(self.vocabulary.prefix) + max(1, len(self.vocabulary.suffix))
        room = max_length - around
        if room < 1:
            raise InputError(f"--max-length must be {around + 1} or more")
        pieces = corpus.pieces(self.vocabulary, room)
        self.training, self.held_out = pieces.training, pieces.held_out or pieces.training
        self.row_length = min(max_length, pieces.longest + around)
        self.fingerprint, self.notes = pieces.fingerprint, corpus.notes + pieces.notes

    def rows(self, pieces: Sequence[Piece]) -> list[list[int]]:
        end = [] if self.vocabulary.eos_id is None else [self.vocabulary.eos_id]
        prefix = self.vocabulary.prefix
        return [[*prefix, *piece.ids, *(end if piece.ends else [])] for piece in pieces]

    @property
    def pad_id(self) -> int:
        return self.vocabulary.pad_id or 0

    def batch(self, seed: int, step: int, size: int, packed: bool) -> Batch:
        rows = self.rows(shuffled(self.training, seed, step, size))
        batch = pack(rows, self.row_length, self.pad_id) if packed else pad(rows, self.pad_id)
        return self.with_labels(batch, torch.Generator().manual_seed(seed * 1_000_003 + step))

    def with_labels(self, batch: Batch, generator: torch.Generator) -> Batch:
        labels = next_token_labels(batch.input_ids, batch.attention_mask)
        return replace(batch, labels=labels)

    def held_out_batches(self) -> list[Batch]:
        chosen = torch.Generator().manual_seed(0)  # the same tokens are hidden each time
        return [
            self.with_labels(pad(self.rows(chunk), self.pad_id), chosen)
            for chunk in chunks(self.held_out[: self.reported], ROWS)
        ]

    def measured(self, model: AnyModel, watch: Watch = iter) -> list[Measured]:
        """What the model makes of the held-out pieces that are looked at."""
        return [one for batch in watch(self.held_out_batches()) for one in measure(model, batch)]

    def evaluate(
        self, model: AnyModel, quick: bool = False, watch: Watch = iter
    ) -> dict[str, float]:
        nats, right, labels = map(sum, zip(*self.measured(model, watch), strict=True))
        return {"held_out_loss": nats / max(labels, 1), "accuracy": right / max(labels, 1)}

    def report(self, model: AnyModel, watch: Watch = iter) -> list[str]:
        nats, right, labels = map(sum, zip(*self.measured(model, watch), strict=True))
        loss, share = nats / max(labels, 1), right / max(labels, 1)
        what = "training" if self.held_out is self.training else "held-out"
        unit = "character" if isinstance(self.vocabulary, Vocabulary) else "token"
        compared = self.compared(nats)
        return [
            f"{what} loss: {loss:.3f} nats a {unit} ({loss / math.log(2):.2f} bits); "
            f"{share:.1%} of {unit}s guessed right",
            *(f"{name.replace('_', ' ')}: {value:,.6g}" for name, value in compared.items()),
        ]

    def examine(self, model: AnyModel, watch: Watch = iter) -> Evaluation:
        measured = self.measured(model, watch)
        nats, right, labels = map(sum, zip(*measured, strict=True))
        if not labels:
            raise InputError(
                "the texts are too short, or unknown: no token in them is to be guessed"
            )
        results: dict[str, float] = {"texts": len(measured), "tokens_guessed": labels}
        results["loss"], results["perplexity"] = nats / labels, exp(nats / labels)
        results["accuracy"] = right / labels
        lines = [
            f"  {measured[i].nats / max(measured[i].labels, 1):6.2f} nats a token   "
            f"{one_line(self.held_out[i].text)}"
            for i in worst(measured)
        ]
        return Evaluation(results | self.compared(nats), lines)

    def compared(self, nats: float) -> dict[str, float]:
        """What does not depend on the tokenizer."""
        texts = [piece.text for piece in self.held_out[: self.reported]]
        characters, words = sum(map(len, texts)), sum(len(text.split()) for text in texts)
        return {
            "characters": characters,
            "words": words,
            "perplexity_of_characters": exp(nats / max(characters, 1)),
            "perplexity_of_words": exp(nats / max(words, 1)),
        }


class MaskedLanguageModelTask(LanguageModelTask):
    """An encoder that finds hidden tokens. Every 20th paragraph is held out, by its hash."""

    name = "mlm"
    model_class = EncoderOnly
    needed = ("mask",)

    def rows(self, pieces: Sequence[Piece]) -> list[list[int]]:
        prefix, suffix = self.vocabulary.prefix, self.vocabulary.suffix
        return [[*prefix, *piece.ids, *suffix] for piece in pieces]

    def with_labels(self, batch: Batch, generator: torch.Generator) -> Batch:
        mask_id = self.vocabulary.mask_id
        assert mask_id is not None
        ids, labels = mask_tokens(
            batch.input_ids,
            batch.attention_mask,
            mask_id,
            len(self.vocabulary),
            self.vocabulary.special_ids,
            generator=generator,
        )
        return replace(batch, input_ids=ids, labels=labels)

    def compared(self, nats: float) -> dict[str, float]:
        return {}  # the probability of a whole text is not what this model gives


def python_prose() -> list[Record]:
    """The language reference that CPython carries: some 700 KB of English on every machine."""
    from pydoc_data.topics import topics

    paragraphs = "\n\n".join(topics[name] for name in sorted(topics)).split("\n\n")
    return [Record((p.strip("\n"),), "topics.py", n) for n, p in enumerate(paragraphs) if p.strip()]
