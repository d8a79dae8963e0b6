"""A model with its vocabulary and how it came about, as the files that `train` leaves."""

import csv
import io
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors import torch as safetensors
from torch import Tensor

from minitransformer.classifier import Classifier
from minitransformer.config import Config
from minitransformer.data.files import InputError, to_csv, to_json
from minitransformer.data.manifest import DamagedError
from minitransformer.data.tokenization import TOKENIZER, TOKENIZER_CONFIG, AnyVocabulary, Tokenizer
from minitransformer.data.vocabulary import Vocabulary
from minitransformer.inference.answering import AnyModel
from minitransformer.models import CrossDecoder, DecoderOnly, EncoderDecoder, EncoderOnly
from minitransformer.pretrained import is_pretrained, load_pretrained
from minitransformer.training.checkpoint import checkpoints, newest, read, run_of
from minitransformer.training.lora import add_lora, lora_of

MODELS = {model.__name__: model for model in (EncoderOnly, DecoderOnly, EncoderDecoder)}
CLASSIFIER = Classifier.__name__
CONFIG, WEIGHTS, METRICS = FILES = ("config.json", "model.safetensors", "metrics.csv")
VOCABULARY = "vocabulary.json"  # of characters; or a tokenizer's two files


@dataclass
class Run:
    """What `generate` needs, and how it was trained so far."""

    task: str  # dates, pairs, lm or mlm; or pretrained
    model: AnyModel
    vocabulary: AnyVocabulary
    settings: dict[str, Any] = field(default_factory=dict)  # of training, with the data's name
    history: list[dict[str, float]] = field(default_factory=list)  # a row of metrics.csv each

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    def files(self) -> dict[str, bytes]:
        """As files, by name: all of the same step."""
        about = {
            "task": self.task,
            "model": type(self.model).__name__,
            "config": asdict(self.model.config),
            **({"classifier": self.model.describe()} if isinstance(self.model, Classifier) else {}),
            **({"lora": lora} if (lora := lora_of(self.model)) else {}),
            "training": self.settings,
            "step": len(self.history),
            "versions": {"torch": torch.__version__},
        }
        weights = {name: p.detach().cpu() for name, p in self.model.named_parameters()}  # each once
        return {
            CONFIG: to_json(about),
            **_vocabulary_files(self.vocabulary),
            WEIGHTS: safetensors.save(weights),
            METRICS: to_csv(self.history),
        }

    @classmethod
    def from_files(cls, files: Mapping[str, bytes], where: Path) -> "Run":
        """The inverse. Raises InputError, which names the file in the folder `where`."""
        for name in FILES:
            if name not in files:
                raise DamagedError(f"{where / name}: no such file")
        weights = _weights(files[WEIGHTS], where / WEIGHTS)
        try:
            about = json.loads(files[CONFIG])
            config = Config(**about["config"])
            if max(config.num_layers, config.num_decoder_layers) > len(weights):
                raise ValueError(f"{config.num_layers} layers for {len(weights)} weights")
            with torch.device("meta"):  # numbers come from the file, not from chance
                model = build(about, config)
            run = cls(str(about["task"]), model, Vocabulary(""), dict(about["training"]))
            steps = about["step"]
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            reason = " ".join(repr(error).split())
            raise InputError(f"{where / CONFIG}: not a run's config: {reason}") from None
        run.vocabulary = _vocabulary(files, where, model.config)
        _check_shapes(model, weights, where / WEIGHTS)
        model.load_state_dict(weights, strict=False, assign=True)  # a tied table has one name here
        model.eval()
        run.history = _history(files[METRICS], where / METRICS)
        if len(run.history) != steps:
            raise InputError(
                f"{where / METRICS}: has {len(run.history)} steps, but config.json says {steps}"
            )
        return run

    @classmethod
    def load(cls, folder: str | Path) -> "Run":
        """A run at its newest step, one of its checkpoints, or a Hugging Face folder with its
        tokenizer.json.

        Raises InputError, naming the file, for a folder that is neither or that is damaged.
        """
        folder = Path(folder)
        is_run = checkpoints(folder) or run_of(folder) != folder
        if not is_run and is_pretrained(folder):
            return cls._load_pretrained(folder)
        found = newest(folder)
        return cls.from_files(read(found), found)

    @classmethod
    def _load_pretrained(cls, folder: Path) -> "Run":
        model = load_pretrained(folder)
        if isinstance(model, CrossDecoder) and not isinstance(model, EncoderDecoder):
            raise InputError(
                f"{folder / 'config.json'}: a decoder that needs the hidden states of another "
                "model; it can be used from Python"
            )
        tokenizer = Tokenizer.load(folder)
        fits = len(tokenizer) <= model.config.vocab_size
        _check_size(folder / TOKENIZER, len(tokenizer), model.config, fits)
        return cls("pretrained", model, tokenizer)


def build(about: Mapping[str, Any], config: Config) -> AnyModel:
    """A model as its config.json says."""
    if about["model"] != CLASSIFIER:
        model = MODELS[about["model"]](config)
    else:
        head = dict(about["classifier"])
        names, body = head.pop("names"), MODELS[head.pop("body")](config)
        model = Classifier(body, len(names), **head)
        model.names = [str(name) for name in names]
    if about.get("lora"):
        add_lora(getattr(model, "body", model), **about["lora"])
    return model


def _vocabulary_files(vocabulary: AnyVocabulary) -> dict[str, bytes]:
    if isinstance(vocabulary, Tokenizer):
        return vocabulary.files()
    return {VOCABULARY: to_json({"characters": vocabulary.characters})}


def _vocabulary(files: Mapping[str, bytes], where: Path, config: Config) -> AnyVocabulary:
    """Raises InputError for one that is not of this model."""
    if TOKENIZER in files:
        path = where / TOKENIZER
        about = {where / TOKENIZER_CONFIG: json.loads(files.get(TOKENIZER_CONFIG, b"{}"))}
        tokenizer = Tokenizer.from_bytes(files[TOKENIZER], about, path)
        _check_size(path, len(tokenizer), config, len(tokenizer) <= config.vocab_size)
        return tokenizer
    path = where / VOCABULARY
    try:
        characters = json.loads(files[VOCABULARY])["characters"]
        if not isinstance(characters, list) or not all(isinstance(c, str) for c in characters):
            raise TypeError
    except (KeyError, TypeError, ValueError):
        what = "holds no list of characters" if VOCABULARY in files else "no such file"
        raise DamagedError(f"{path}: {what}") from None
    vocabulary = Vocabulary(characters)
    _check_size(path, len(vocabulary), config, len(vocabulary) == config.vocab_size)
    return vocabulary


def _check_size(path: Path, tokens: int, config: Config, fits: bool) -> None:
    if not fits:
        raise InputError(f"{path}: has {tokens} tokens, but config.json says {config.vocab_size}")


def _weights(data: bytes, path: Path) -> dict[str, Tensor]:
    try:
        weights = safetensors.load(data)
    except (SafetensorError, ValueError, KeyError) as error:
        raise InputError(f"{path}: is no safetensors file: {error}") from None
    for name, weight in weights.items():
        if not weight.is_floating_point() or not weight.isfinite().all():
            raise InputError(f"{path}: {name} holds what is no finite number")
    return weights


def _check_shapes(model: AnyModel, weights: Mapping[str, Tensor], path: Path) -> None:
    wanted = {name: tuple(p.shape) for name, p in model.named_parameters()}
    found = {name: tuple(weight.shape) for name, weight in weights.items()}
    if found != wanted:
        name = min(dict(found.items() ^ wanted.items()))
        raise InputError(
            f"{path}: is of another model: {name} is {found.get(name, 'missing')}, "
            f"expected {wanted.get(name, 'none')}"
        )


def _history(data: bytes, path: Path) -> list[dict[str, float]]:
    whole = ("step", "tokens_per_second")
    try:
        rows = csv.DictReader(io.StringIO(data.decode(), newline=""))
        return [
            {name: (int if name in whole else float)(v) for name, v in row.items() if v}
            for row in rows
        ]
    except (TypeError, ValueError, csv.Error) as error:
        raise InputError(f"{path}: is no table of numbers: {error}") from None
