"""Weights of the transformers library in our parts: a local folder in, our model out, and back.

Each family is one short file: a map of its config and a map of its names.
"""

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from minitransformer.classifier import Classifier
from minitransformer.data.files import (
    InputError,
    read_json,
    read_object,
    to_json,
    write_atomically,
)
from minitransformer.data.tokenization import Tokenizer
from minitransformer.models import EncoderDecoder, Model
from minitransformer.pretrained.bart import BART, MARIAN
from minitransformer.pretrained.bert import BERT
from minitransformer.pretrained.classes import (
    check_head,
    names_of,
    read_names,
    with_head,
    write_names,
)
from minitransformer.pretrained.distilbert import DISTILBERT
from minitransformer.pretrained.family import Family, architecture_of, unsaid_numbers
from minitransformer.pretrained.generation_config import NAME, read_generation, write_generation
from minitransformer.pretrained.gpt2 import GPT2
from minitransformer.pretrained.llama import LLAMA
from minitransformer.pretrained.mistral import MISTRAL, QWEN2
from minitransformer.pretrained.names import Names, convert, convert_back, parts_of
from minitransformer.pretrained.roberta import ROBERTA
from minitransformer.pretrained.torch_modules import from_torch
from minitransformer.pretrained.weights import WEIGHTS, read_folder, to_weights

__all__ = ["FAMILIES", "from_torch", "load_pretrained", "save_pretrained"]

ADAPTER = "adapter_config.json"
FAMILIES = {
    family.model_type: family
    for family in (BERT, ROBERTA, DISTILBERT, GPT2, LLAMA, MISTRAL, QWEN2, BART, MARIAN)
}


def load_pretrained(
    folder: str | Path, dtype: torch.dtype | None = torch.float32
) -> Model | Classifier:
    """Our model with the weights of a local Hugging Face folder, in eval mode.

    The folder holds config.json and model.safetensors, or several files and their
    model.safetensors.index.json; its `model_type` is one of FAMILIES. BERT and RoBERTa become an
    EncoderOnly, or with `is_decoder` a DecoderOnly, or with `add_cross_attention` too a
    CrossDecoder; DistilBERT an EncoderOnly; GPT-2, Llama, Mistral and Qwen2 a DecoderOnly; BART and
    Marian an EncoderDecoder. A model without a head (BertModel, LlamaModel, ...) takes its token
    embedding as one; a sequence classifier of any of these but BART and Marian is a Classifier.

    generation_config.json, where there is one, says what ends a text, what a target begins with
    and what is never written; the model's config then holds these.

    `dtype` is that of the parameters, None to leave them as they are in the files. They are read
    when they are needed and are not copied where they have that dtype already.

    Raises InputError, which names the file and the key or tensor, for whatever cannot be followed
    to the last number: other architectures, switches that we have no part for, tensors that are
    missing, left over or of another shape, damaged files.
    """
    folder = Path(folder)
    family, theirs = _read_family(folder)
    try:
        said = read_generation(folder, theirs)
        config = family.read_config(said, str(folder / "config.json"))
        tensors = read_folder(folder, dtype)
        layers = max(config.num_layers, config.num_decoder_layers)
        if layers > len(tensors):  # not even one each
            raise ValueError(f"{folder}: holds {len(tensors)} tensors for {layers} layers")
        names = family.names
        with torch.device("meta"):  # numbers come from the files, not from chance
            model: Model | Classifier = family.model_class(theirs)(config)
            if architecture_of(theirs) == family.classifier is not None:
                model = with_head(model, read_names(theirs, str(folder / "config.json")))
                names = names_of(family)
        tensors = _with_todays_names(tensors, family, names, model)
        ties = family.ties if model.config.tie_embeddings else ()
        head = family.ties[0][-1]
        if not ties and _names(names, model) - tensors.keys() == {head}:
            raise ValueError(
                f"{folder}: lacks {head}, the head; if that is the token embedding, say "
                '"tie_word_embeddings": true in config.json'
            )
        state = convert(model, tensors, names, ties, str(folder))
    except (ValueError, RuntimeError) as error:
        raise InputError(str(error)) from None
    model.load_state_dict({key: t.contiguous() for key, t in state.items()}, assign=True)
    if isinstance(model, Model):
        model.tie()
    return model.eval()


def save_pretrained(
    model: Model | Classifier, folder: str | Path, tokenizer: Tokenizer | None = None
) -> None:
    """A folder that transformers loads: config.json, generation_config.json and model.safetensors,
    with a checksum in its metadata, by which `load_pretrained` sees what was damaged; and the files
    of a tokenizer.

    The family is that of the model's style, if it holds the model, else the first that does.
    Raises ValueError for a model that no family holds, such as a vanilla one, or one with LoRA.
    """
    if any(name.endswith((".A", ".B")) for name in model.state_dict()):
        raise ValueError("the model has LoRA, which no folder holds: call merge_lora(model) first")
    theirs, tensors = _as_theirs(model)
    theirs["dtype"] = str(model.head.projection.weight.dtype).removeprefix("torch.")
    if tokenizer is not None:  # by its padding the library finds a row's last token
        own = {"pad_token_id": tokenizer.pad_id, "bos_token_id": tokenizer.bos_id}
        theirs = own | {key: value for key, value in theirs.items() if value is not None}
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    generation = write_generation(model.config, isinstance(model, EncoderDecoder))
    (folder / "config.json").unlink(missing_ok=True)
    if tokenizer is not None:
        tokenizer.save(folder)
    write_atomically(folder / WEIGHTS, to_weights(tensors))
    write_atomically(folder / NAME, to_json(generation))
    write_atomically(folder / "config.json", to_json(theirs))  # the last: without it, no model


def _as_theirs(model: Model | Classifier) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The config.json and the tensors of the model's family."""
    if isinstance(model, Classifier):
        family = _family_of(model.body)
        if family.classifier is None:
            raise ValueError(f"{family.model_type} has no sequence classifier to save this as")
        check_head(model, family)
        theirs = family.write_config(model.body) | write_names(model.names)
        theirs["architectures"] = [family.classifier]
        tensors = convert_back(model, names_of(family), ())
    else:
        family = _family_of(model)
        ties = family.ties if model.config.tie_embeddings else ()
        theirs, tensors = family.write_config(model), convert_back(model, family.names, ties)
        for unused, used in () if ties else family.ties[1:]:
            tensors[unused] = tensors[used].clone()
    if model.config.num_segments == 0 and "num_segments" in family.numbers:
        theirs[family.numbers["num_segments"][0]] = 1  # a segment that adds nothing
        embedding = tensors[family.ties[0][0]]
        tensors[f"{family.names['embedding.segments']}.weight"] = torch.zeros_like(embedding[:1])
    return theirs, {name: tensor.cpu() for name, tensor in tensors.items()}


def fill_head(model: Classifier, folder: str | Path) -> list[str]:
    """Give a new head the weights that the folder has for it, such as BERT's pooler.

    Returns the names of our parameters for which it has none.
    """
    family, _ = _read_family(Path(folder))
    tensors = read_folder(Path(folder), model.head.projection.weight.dtype)
    found = {}
    parts = parts_of(model, names_of(family))
    parts = {key: part for key, part in parts.items() if key.startswith("head.")}
    for key, part in parts.items():
        for name in (part.name, part.name.removeprefix(family.prefix)):
            if name in tensors:
                found[key] = part.read(tensors[name])
    model.load_state_dict(found, strict=False)
    return [key for key in parts if key not in found]


def is_pretrained(folder: str | Path) -> bool:
    """Does the folder hold a model of the transformers library (and not one of `train`)?

    Raises InputError for a config.json that cannot be read.
    """
    if os.path.lexists(Path(folder) / ADAPTER):
        return True  # to say what it is
    config = Path(folder) / "config.json"
    about = read_json(config) if os.path.lexists(config) else None
    return isinstance(about, dict) and "model_type" in about


def _family_of(model: Model) -> Family:
    """The family of its style, if that holds it, else the first that does; one without segments
    for a model that has none."""
    config = model.config

    def differs(family: Family) -> tuple[bool, bool]:
        segments = "num_segments" in family.numbers
        return family.style != config.style, segments != (config.num_segments > 0)

    for family in sorted(FAMILIES.values(), key=differs):
        if family.holds(model):
            return family
    style = config.style if isinstance(config.style, str) else "a style of its own"
    numbers = [f"{n}={getattr(config, n)}" for n in ("num_segments", *unsaid_numbers(config))]
    raise ValueError(
        f"{type(model).__name__} in {style} has no counterpart among {', '.join(FAMILIES)} "
        f"with {', '.join(numbers)}"
    )


def _read_family(folder: Path) -> tuple[Family, Mapping[str, Any]]:
    file = folder / "config.json"
    if os.path.lexists(folder / ADAPTER):
        raise InputError(
            f"{folder}: holds an adapter ({ADAPTER}); merge it into its model and save that: "
            "model.merge_and_unload().save_pretrained(another_folder)"
        )
    if not os.path.lexists(file):
        what = "holds no config.json" if folder.is_dir() else "no such folder"
        raise InputError(f"{folder}: {what}; expected a folder that save_pretrained wrote")
    theirs = read_object(file)
    model_type = theirs.get("model_type")
    if not isinstance(model_type, str) or model_type not in FAMILIES:
        raise InputError(f"{file}: model_type is {model_type!r}; known are {', '.join(FAMILIES)}")
    return FAMILIES[model_type], theirs


def _names(names: Names, model: nn.Module) -> set[str]:
    """The tensors that the model is made of."""
    return {part.name for part in parts_of(model, names).values()}


def _with_todays_names(
    tensors: Mapping[str, Tensor], family: Family, names: Names, model: Model | Classifier
) -> dict[str, Tensor]:
    """What older versions of the library called them, and without what nobody needs."""
    wanted = _names(names, model)
    wanted |= {name for group in family.ties for name in group}
    named = {}
    for name, tensor in tensors.items():
        name = re.sub(r"LayerNorm\.gamma$", "LayerNorm.weight", name)
        name = re.sub(r"LayerNorm\.beta$", "LayerNorm.bias", name)
        if name not in wanted and family.prefix + name in wanted:
            name = family.prefix + name
        both = (name, family.prefix + name)
        if name in wanted or not any(re.search(family.dropped, one) for one in both):
            named[name] = tensor
    if not model.config.tie_embeddings:
        for unused, used in family.ties[1:]:
            spare = named.pop(unused, None)
            if spare is not None:
                named.setdefault(used, spare)
    for name in family.zeros:
        if name in wanted and name not in named:
            size = model.config.vocab_size
            dtype = next((tensor.dtype for tensor in named.values()), None)
            named[name] = torch.zeros(1, size, dtype=dtype)
    return named
