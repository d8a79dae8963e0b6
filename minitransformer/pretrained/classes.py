"""Sequence classifiers in folders of the transformers library: their heads and class names."""

from collections.abc import Mapping, Sequence
from typing import Any

from minitransformer.classifier import Classifier
from minitransformer.models import DecoderOnly, EncoderOnly
from minitransformer.pretrained.family import Family
from minitransformer.pretrained.names import Names

ACTIVATIONS = {"distilbert": "relu"}  # between the two layers of a head; of all others a tanh
KIND = "single_label_classification"


def with_head(
    body: EncoderOnly | DecoderOnly, names: Sequence[str], pooling: str | None = None
) -> Classifier:
    """A classifier with the head that the library gives such a model, or one layer for a mean."""
    encodes = isinstance(body, EncoderOnly)
    style = body.config.style if isinstance(body.config.style, str) else ""
    pooling = pooling or ("first" if encodes else "last")
    activation = ACTIVATIONS.get(style, "tanh") if encodes and pooling == "first" else None
    model = Classifier(body, len(names), pooling, activation, bias=encodes)
    model.names = list(names)
    return model


def read_names(theirs: Mapping[str, Any], where: str) -> list[str]:
    """The names of the classes that a config.json says, in their order; two if it says none."""
    if theirs.get("problem_type") not in (None, KIND):
        raise ValueError(
            f"{where}: problem_type is {theirs['problem_type']!r}; only {KIND} is read"
        )
    said = theirs.get("id2label") or {"0": "LABEL_0", "1": "LABEL_1"}
    if not isinstance(said, Mapping) or set(said) != {str(i) for i in range(len(said))}:
        raise ValueError(f"{where}: id2label must name each class by its number, got {said!r}")
    return [str(said[str(i)]) for i in range(len(said))]


def write_names(names: Sequence[str]) -> dict[str, Any]:
    """What a config.json says of the classes."""
    return {
        "id2label": {str(i): name for i, name in enumerate(names)},
        "label2id": {name: i for i, name in enumerate(names)},
        "problem_type": KIND,
    }


def names_of(family: Family) -> Names:
    """Where a Classifier finds its tensors."""
    body = {f"body.{ours}": theirs for ours, theirs in family.names.items()}
    return {**body, **family.class_names}


def check_head(model: Classifier, family: Family) -> None:
    """Raises ValueError for a head that the library has not."""
    encodes = isinstance(model.body, EncoderOnly)
    style = family.style
    expected = {
        "pooling": "first" if encodes else "last",
        "activation": ACTIVATIONS.get(style, "tanh") if encodes else None,
        "bias": encodes,
    }
    found = model.describe()
    for name, value in expected.items():
        if found[name] != value:
            raise ValueError(
                f"a classifier with {name} {found[name]!r} has no counterpart among the models of "
                f"{family.model_type}, which have {value!r}: keep it as a run"
            )
