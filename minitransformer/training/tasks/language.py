"""Language models: a decoder that continues prose, an encoder that finds its hidden tokens."""

import math
from collections.abc import Sequence
from dataclasses import replace

import torch

from minitransformer.data import Batch, mask_tokens, next_token_labels, pack, pad
from minitransformer.data.cutting import Piece, fit, sections
from minitransformer.data.files import InputError
from minitransformer.data.held_out import without
from minitransformer.data.reading import Record
from minitransformer.data.tokenization import AnyVocabulary
from minitransformer.data.vocabulary import Vocabulary
from minitransformer.inference.answering import AnyModel
from minitransformer.models import DecoderOnly, EncoderOnly
from minitransformer.training.tasks.task import (
    QUICK,
    DataOptions,
    Evaluation,
    Measured,
    Watch,
    chunks,
    exp,
    fingerprint_of,
    make_vocabulary,
    measure,
    needing,
    one_line,
    shuffled,
    split_records,
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
        bos_id: int | None = None,
    ):
        self.defaults = {
            "style": "llama",  # on so little text rotary positions learn several times faster
            "max_length": max_length,
            "batch_size": 24,
            "steps": 600,
        }
        self.notes: list[str] = []
        training, held_out = self._texts(options, max_length)
        self.vocabulary = vocabulary or make_vocabulary(options, training, self.needed, self.notes)
        needing(self.vocabulary, self.needed, options.tokenizer)
        around = len(self.vocabulary.prefix) + max(1, len(self.vocabulary.suffix))
        room = max_length - around
        if room < 1:
            raise InputError(f"--max-length must be {around + 1} or more")
        pieces = [
            self._pieces(texts, room, name)
            for texts, name in ((training, "training"), (held_out, "held-out"))
        ]
        self.training = without(pieces[0], _text, pieces[1])
        if aside := len(pieces[0]) - len(self.training):
            self.notes.append(f"{aside:,} pieces are set aside: the same text is held out")
        self.held_out: list[Piece] = pieces[1] or self.training
        longest = max(len(piece.ids) for piece in [*self.training, *self.held_out])
        self.row_length = min(max_length, longest + around)
        self.fingerprint = fingerprint_of(
            self.vocabulary.names(range(len(self.vocabulary))), self.training, self.held_out
        )

    def _texts(self, options: DataOptions, max_length: int) -> tuple[list[str], list[str]]:
        """The paragraphs, of which no one is much longer than the model."""
        if options.data or options.held_out:
            records, held_out = options.read(("text",), self.notes)
        else:
            records, held_out = python_prose(), []
        records, held_out = (_sections(part, 8 * max_length) for part in (records, held_out))
        sides = split_records(records, held_out, _record_text, self.notes)
        return [one.values[0] for one in sides[0]], [one.values[0] for one in sides[1]]

    def _pieces(self, texts: Sequence[str], room: int, name: str) -> list[Piece]:
        found = fit(self.vocabulary, texts, room)
        pieces = [piece for parts in found for piece in parts]
        if cut := [parts for parts in found if len(parts) > 1]:
            unit = "characters" if isinstance(self.vocabulary, Vocabulary) else "tokens"
            self.notes.append(
                f"{name}: {len(cut):,} of {len(texts):,} passages are longer than the {room} "
                f"{unit} that fit and are cut into {sum(map(len, cut)):,} pieces"
            )
        return pieces

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


def _sections(records: Sequence[Record], most: int) -> list[Record]:
    return [
        one._replace(values=(part,)) for one in records for part in sections(one.values[0], most)
    ]


def _record_text(record: Record) -> str:
    return record.values[0]


def _text(piece: Piece) -> str:
    return piece.text
