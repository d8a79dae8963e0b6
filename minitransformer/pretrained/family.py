"""What a family of models is made of: a map of its config and a map of its names."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from minitransformer.config import STYLES, Config, Style
from minitransformer.models import Model
from minitransformer.pretrained.names import Names, Ties

ACTIVATIONS = {  # their names -> ours; the first of several is the one that is written
    "relu": "relu",
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "swish": "silu",
    "silu": "silu",
}
FRACTIONS = ("dropout", "norm_eps")  # the other numbers of a Config are integers
LARGEST = 2**31 - 1  # number of anything
LARGEST_TABLE = 2**26  # numbers
REQUIRED = object()  # a key without a default
COMMON = {  # what the library reads for every family, and the value that changes nothing
    "is_causal": True,
    "per_layer_config": None,
    "pruned_heads": {},
    "quantization_config": None,
}


@dataclass(frozen=True)
class Family:
    """One architecture of the transformers library, whose files it reads and writes.

    `numbers`: our field of Config -> (their key, the value where the key is absent).
    `unsaid`: our fields of Config that none of their keys says -> their value.
    `fixed`: switches that must stand as they are here, or be absent: we have no other part.
    `models`: our class -> the name of their model, whose head is read; the first is the default.
    `bare`: their model without a head: the token embedding becomes its head.
    `classifier`: their model with a head for classes, which becomes a Classifier.
    """

    model_type: str
    style: str
    numbers: Mapping[str, tuple[str, Any]]
    names: Names
    ties: Ties  # the token embedding and the head first; untied, the last of a pair is the used one
    prefix: str  # of most names; older files leave it out
    models: Mapping[type[Model], str]
    bare: str
    classifier: str | None = None  # their sequence classifier
    class_names: Mapping[str, str] = field(default_factory=dict)  # of its head, as `names`
    bare_style: Mapping[str, Any] = field(default_factory=dict)  # how `bare` differs in style
    aliases: tuple[str, ...] = ()  # of their models that hold the same, and more that is dropped
    activation: tuple[str, str] | None = None  # their key, and its default
    gates: Mapping[str, str] = field(
        default_factory=dict
    )  # their activation -> a feed-forward of ours
    unsaid: Mapping[str, Any] = field(default_factory=dict)
    fixed: Mapping[str, Any] = field(default_factory=dict)
    switches: tuple[str, ...] = ("tie_word_embeddings",)  # their keys that are true or false
    dropped: str = r"$^"  # a pattern of tensors that the model computes itself or never uses
    tied: bool = True  # are embedding and head one where the config does not say?
    zeros: tuple[str, ...] = ()  # tensors that older files leave out: zeros
    adjust: Callable[[Mapping[str, Any], Style], Style] = lambda config, style: style
    describe: Callable[[Model], dict[str, Any]] = lambda model: {}  # the inverse of `adjust`
    choose: Callable[[Mapping[str, Any]], type[Model]] | None = None  # where there are several
    extra: Callable[[Mapping[str, Any]], dict[str, Any]] = lambda config: {}  # odd spellings

    def model_class(self, theirs: Mapping[str, Any]) -> type[Model]:
        return self.choose(theirs) if self.choose else next(iter(self.models))

    def read_config(self, theirs: Mapping[str, Any], where: str) -> Config:
        """Their config.json as our Config. Raises ValueError with the key that we cannot follow."""
        architecture = architecture_of(theirs)
        heads = [*self.models.values(), *self.aliases, self.bare, self.classifier]
        readable = list(dict.fromkeys(filter(None, heads)))
        if architecture and architecture.lower() not in map(str.lower, readable):
            raise ValueError(
                f"{where}: architectures names {architecture}, whose head has no part here; known "
                f"are {', '.join(readable)}. To read its layers, save them alone: "
                f"{architecture}.from_pretrained(folder).base_model.save_pretrained(another_folder)"
            )
        for key, wanted in (COMMON | self.fixed).items():
            said = theirs.get(key, wanted)
            if said != wanted and not (key in COMMON and said is None):
                raise ValueError(f"{where}: {key} is {said!r}; only {wanted!r} can be read")
        numbers = dict(self.unsaid)
        for name, (key, default) in self.numbers.items():
            numbers[name] = theirs.get(key, default)
            if numbers[name] is REQUIRED:
                raise ValueError(f"{where}: lacks {key}")
            _check_number(f"{where}: {key}", numbers[name], name in FRACTIONS)
        for key in self.switches:
            if not (theirs.get(key) is None or isinstance(theirs[key], bool)):
                raise ValueError(f"{where}: {key} must be true or false, got {theirs[key]!r}")
        style = STYLES[self.style]
        if self.activation:
            key, default = self.activation
            known = self.gates or ACTIVATIONS
            said = theirs.get(key, default)
            if not isinstance(said, str) or said not in known:
                raise ValueError(f"{where}: {key} is {said!r}; known are {', '.join(known)}")
            style = replace(style, feed_forward=known[said])
        try:
            style = self.adjust(theirs, style)
            if architecture == self.bare:
                style = replace(style, **self.bare_style)
            named = self.style if style == STYLES[self.style] else style
            tied = architecture == self.bare or bool(theirs.get("tie_word_embeddings", self.tied))
            numbers |= {"style": named, "tie_embeddings": tied}
            numbers["forbidden_ids"] = theirs.get("suppress_tokens", ())
            config = replace(Config(**numbers), **self.extra(theirs))
            if "bos_id" in self.numbers and config.bos_id >= config.vocab_size:
                raise ValueError(f"bos_id must be below {config.vocab_size}, got {config.bos_id}")
            computed = style.positions.startswith("sinusoidal")  # in no file, and so of any size
            if computed and config.max_length * config.d_model > LARGEST_TABLE:
                raise ValueError(
                    f"max_length * d_model must be at most {LARGEST_TABLE}, the largest table of "
                    f"positions that is computed, got {config.max_length} * {config.d_model}"
                )
            return config
        except (AttributeError, TypeError, ValueError, ZeroDivisionError) as error:
            keys = {ours: key for ours, (key, _) in self.numbers.items()}
            keys["forbidden_ids"] = "suppress_tokens and bad_words_ids"
            said = re.sub(r"\w+", lambda word: keys.get(word[0], word[0]), str(error))
            raise ValueError(f"{where}: {said}") from None

    def write_config(self, model: Model) -> dict[str, Any]:
        """The config.json of a folder that holds this model."""
        config = model.config
        said = {key: getattr(config, name) for name, (key, _) in self.numbers.items()}
        if self.activation:
            known = self.gates or ACTIVATIONS
            ours = config.parts.feed_forward
            said[self.activation[0]] = next(k for k, v in known.items() if v == ours)
        headless = replace(STYLES[self.style], **self.bare_style)
        bare = self.bare_style and self._base(config) == headless
        return {
            "model_type": self.model_type,
            "architectures": [self.bare if bare else self.models[type(model)]],
            "tie_word_embeddings": config.tie_embeddings,
            **self.fixed,
            **said,
            **self.describe(model),
        }

    def holds(self, model: Model) -> bool:
        """Can this model be written as one of this family?"""
        config, base = model.config, STYLES[self.style]
        return (
            type(model) in self.models
            and config.parts.feed_forward in (self.gates or ACTIVATIONS).values()
            and self._base(config) in (base, replace(base, **self.bare_style))
            and (config.num_segments == 0 or "num_segments" in self.numbers)
            and all(
                getattr(config, name) == value
                for name, value in {**unsaid_numbers(config), **self.unsaid}.items()
                if name not in self.numbers
            )
        )

    def _base(self, config: Config) -> Style:
        """The style of a config without what the files say of it: activation and switches."""
        base = vars(STYLES[self.style])
        said = {name: base[name] for name in ("feed_forward", *self.switches) if name in base}
        return replace(config.parts, **said)


def unsaid_numbers(config: Config) -> dict[str, Any]:
    """What the library computes with where a family has no key for it."""
    return {"window": None, "norm_eps": 1e-5, "num_kv_heads": config.num_heads}


def _check_number(where: str, value: Any, fraction: bool) -> None:
    """Refuse numbers beyond any use, and what is no number but counts as one; the rest is for
    Config to say."""
    if fraction and type(value) not in (int, float):
        raise ValueError(f"{where} must be a number, got {value!r}")
    for number in value if isinstance(value, list) else [value]:
        if isinstance(number, int | float) and abs(number) > LARGEST:
            raise ValueError(f"{where} must be at most {LARGEST}, got {number!r}")


def architecture_of(theirs: Mapping[str, Any]) -> str | None:
    """The name of their model class, if the config says one."""
    names = theirs.get("architectures")
    names = names if isinstance(names, list) else [names]
    return str(names[0]) if names and names[0] is not None else None
