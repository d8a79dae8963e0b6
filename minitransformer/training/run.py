"""The folder that training leaves behind, and that `generate` and `show` read."""

import csv
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_model, save_model

from minitransformer.config import Config
from minitransformer.data.files import InputError, read_json, write_atomically, write_json
from minitransformer.data.tokenization import Tokenizer
from minitransformer.data.vocabulary import Vocabulary
from minitransformer.inference.answering import AnyModel, AnyVocabulary
from minitransformer.models import CrossDecoder, DecoderOnly, EncoderDecoder, EncoderOnly
from minitransformer.pretrained import is_pretrained, load_pretrained

MODELS = {model.__name__: model for model in (EncoderOnly, DecoderOnly, EncoderDecoder)}


@dataclass
class Run:
    """A model with its vocabulary, and how it came about.

    The folder holds config.json (task, model, settings), vocabulary.json, model.safetensors and
    metrics.csv, each written whole or not at all.
    """

    task: str  # dates, pairs, lm or mlm; or pretrained
    model: AnyModel
    vocabulary: AnyVocabulary
    settings: dict[str, Any] = field(default_factory=dict)  # how it was trained
    history: list[dict[str, float]] = field(default_factory=list)  # a row of metrics.csv each

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    def save(self, folder: Path) -> None:
        create_folder(folder)
        about = {
            "task": self.task,
            "model": type(self.model).__name__,
            "config": asdict(self.model.config),
            "training": self.settings,
            "versions": {"torch": torch.__version__},
        }
        write_atomically(folder / "config.json", lambda path: write_json(path, about))
        write_atomically(
            folder / "vocabulary.json",
            lambda path: write_json(path, {"characters": self.vocabulary.characters}),
        )
        write_atomically(
            folder / "model.safetensors", lambda path: save_model(self.model, str(path))
        )
        write_atomically(folder / "metrics.csv", lambda path: _write_csv(path, self.history))

    @classmethod
    def load(cls, folder: str | Path) -> "Run":
        """Also of a Hugging Face folder with its tokenizer.json.

        Raises InputError, naming the file, for a folder that is neither.
        """
        folder = Path(folder)
        if is_pretrained(folder):
            return cls._load_pretrained(folder)
        if not (folder / "config.json").is_file():
            what = "holds no config.json" if folder.is_dir() else "no such folder"
            raise InputError(
                f"{folder}: {what}; expected one that `train` left, or a Hugging Face model's"
            )
        about = read_json(folder / "config.json")
        try:
            config = Config(**about["config"])
            model = MODELS[about["model"]](config)
            task, settings = about["task"], about["training"]
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            reason = " ".join(repr(error).split())
            raise InputError(f"{folder / 'config.json'}: not a run's config: {reason}") from None
        words = read_json(folder / "vocabulary.json")
        characters = words.get("characters") if isinstance(words, dict) else None
        if not isinstance(characters, list) or not all(isinstance(c, str) for c in characters):
            raise InputError(f"{folder / 'vocabulary.json'}: holds no list of characters")
        vocabulary = Vocabulary(characters)
        if len(vocabulary) != config.vocab_size:
            raise InputError(
                f"{folder / 'vocabulary.json'}: has {len(vocabulary)} tokens, "
                f"but config.json says {config.vocab_size}"
            )
        weights = folder / "model.safetensors"
        try:
            load_model(model, str(weights))
        except FileNotFoundError:
            raise InputError(f"{weights}: no such file") from None
        except (SafetensorError, RuntimeError) as error:
            reason = " ".join(str(error).split())[:200]
            raise InputError(f"{weights}: does not hold this model: {reason}") from None
        return cls(task, model.eval(), vocabulary, settings)

    @classmethod
    def _load_pretrained(cls, folder: Path) -> "Run":
        model = load_pretrained(folder)
        if isinstance(model, CrossDecoder) and not isinstance(model, EncoderDecoder):
            raise InputError(
                f"{folder / 'config.json'}: a decoder that needs the hidden states of another "
                "model; it can be used from Python"
            )
        tokenizer = Tokenizer.load(folder)
        if len(tokenizer) > model.config.vocab_size:
            raise InputError(
                f"{folder / 'tokenizer.json'}: has {len(tokenizer)} tokens, "
                f"but config.json says {model.config.vocab_size}"
            )
        return cls("pretrained", model, tokenizer)


def new_folder(wanted: str | None, task: str) -> Path:
    """Where to save: `wanted`, if nothing is there, else the first free of runs/TASK, -2, -3..."""
    if wanted is not None:
        folder = Path(wanted)
        try:
            taken = folder.exists() and not (folder.is_dir() and not any(folder.iterdir()))
        except OSError as error:
            raise InputError(f"--out {folder}: {error.strerror}") from None
        if taken:
            raise InputError(f"{folder}: already exists; choose another --out, or remove it")
        return folder
    number, folder = 1, Path("runs") / task
    while folder.exists():
        number += 1
        folder = Path("runs") / f"{task}-{number}"
    return folder


def create_folder(folder: Path) -> None:
    """Make the folder, and see that files can be written there, before the work begins."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_atomically(folder / "writable", Path.touch)
        (folder / "writable").unlink()
    except OSError as error:
        raise InputError(f"{folder}: cannot be written to: {error.strerror}") from None


def _write_csv(path: Path, rows: list[dict[str, float]]) -> None:
    names = list(dict.fromkeys(name for row in rows for name in row))
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, names)
        writer.writeheader()
        writer.writerows(rows)
