"""A sequence classifier: a transformer's last hidden states, pooled, and a head for the classes.

    model = Classifier(load_pretrained(folder), num_classes=3, activation="tanh")
    model.loss(**collate_classes(examples))

`train` trains it as it is.
"""

from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from minitransformer.config import Config
from minitransformer.contract import check_attention_mask, check_integer, may_read
from minitransformer.kernels.linear_cross_entropy import head_loss
from minitransformer.models import DecoderOnly, EncoderOnly


def first_token(hidden: Tensor, attention_mask: Tensor) -> Tensor:
    """The hidden state (B,d) of the first real token of each row, as BERT's [CLS]."""
    first = (attention_mask != 0).int().argmax(dim=1)
    return hidden[torch.arange(len(hidden), device=hidden.device), first]


def last_token(hidden: Tensor, attention_mask: Tensor) -> Tensor:
    """The hidden state (B,d) of the last real token of each row: in a decoder it sees them all."""
    return first_token(hidden.flip(1), attention_mask.flip(1))


def mean_of_tokens(hidden: Tensor, attention_mask: Tensor) -> Tensor:
    """The mean (B,d) over the real tokens of each row; `hidden` is 0 at padding."""
    real = (attention_mask != 0).sum(dim=1, keepdim=True)
    return hidden.sum(dim=1) / real.clamp(min=1)


POOLINGS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "first": first_token,
    "last": last_token,
    "mean": mean_of_tokens,
}
ACTIVATIONS = {"tanh": nn.Tanh, "relu": nn.ReLU}


class ClassificationHead(nn.Module):
    """(B,d) -> logits (B,classes): with an activation it has one more layer, the `transform`."""

    def __init__(self, config: Config, num_classes: int, activation: str | None, bias: bool):
        super().__init__()
        self.transform = nn.Sequential()
        if activation is not None:
            self.transform.linear = nn.Linear(config.d_model, config.d_model)
            self.transform.activation = ACTIVATIONS[activation]()
        self.transform.dropout = nn.Dropout(config.dropout)
        self.projection = nn.Linear(config.d_model, num_classes, bias=bias)

    def forward(self, pooled: Tensor) -> Tensor:
        return self.projection(self.transform(pooled))


class Classifier(nn.Module):
    """A class for each row of tokens.

    `body` is taken over: an identity replaces its language model head, which nothing here uses.
    `pooling` is "first" (the default of an EncoderOnly), "last" (of a DecoderOnly) or "mean".
    These have the heads of the transformers library:

        BERT, RoBERTa   Classifier(body, num_classes, activation="tanh")
        DistilBERT      Classifier(body, num_classes, activation="relu")
        GPT-2, Llama    Classifier(body, num_classes, bias=False)

    Raises TypeError for another body, ValueError for other names and for no classes.
    """

    def __init__(
        self,
        body: EncoderOnly | DecoderOnly,
        num_classes: int,
        pooling: str | None = None,
        activation: str | None = None,
        bias: bool = True,
    ):
        super().__init__()
        if not isinstance(body, EncoderOnly | DecoderOnly):
            raise TypeError(
                f"body must be an EncoderOnly or a DecoderOnly, got {type(body).__name__}"
            )
        check_integer("num_classes", num_classes, 1)
        self.names = [str(i) for i in range(num_classes)]  # of the classes, for those who read
        self.pooling = pooling or ("first" if isinstance(body, EncoderOnly) else "last")
        _check_name("pooling", self.pooling, POOLINGS)
        _check_name("activation", activation, (None, *ACTIVATIONS))
        self.body, self.head = body, ClassificationHead(body.config, num_classes, activation, bias)
        body.initialize(self.head)
        self.head.to(body.embedding.tokens.weight)  # its device and dtype
        body.config, body.head = replace(body.config, tie_embeddings=False), nn.Identity()

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, segment_ids: Tensor | None = None
    ) -> Tensor:
        """(B,T) ids, attention_mask and perhaps segment_ids -> logits (B,num_classes).

        Raises ValueError for rows of several documents, which have no class in common.
        """
        return self.head(self.pool(input_ids, attention_mask, segment_ids))

    def encode(
        self, input_ids: Tensor, attention_mask: Tensor, segment_ids: Tensor | None = None
    ) -> Tensor:
        """Last hidden states (B,T,d_model), 0 at padding."""
        return self.body.encode(input_ids, attention_mask, segment_ids)

    def pool(
        self, input_ids: Tensor, attention_mask: Tensor, segment_ids: Tensor | None = None
    ) -> Tensor:
        """What the head reads, (B,d_model); 0 for a row without a real token."""
        check_attention_mask(attention_mask)
        if may_read(attention_mask) and (attention_mask > 1).any():
            raise ValueError(
                "a classifier needs one document in a row, but attention_mask goes up to "
                f"{attention_mask.max()}: use collate_classes or pad, not pack"
            )
        hidden = self.encode(input_ids, attention_mask, segment_ids)
        return POOLINGS[self.pooling](hidden, attention_mask)

    def loss(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        labels: Tensor,
        num_labels: int | None = None,
        segment_ids: Tensor | None = None,
    ) -> Tensor:
        """Mean cross-entropy over the labels (B) that are not -100; see `cross_entropy`."""
        pooled = self.pool(input_ids, attention_mask, segment_ids)
        return head_loss(self.head, pooled, labels, num_labels)

    @property
    def config(self) -> Config:
        return self.body.config

    def describe(self) -> dict[str, Any]:
        """What `Classifier` was built with, as JSON has it."""
        activation = getattr(self.head.transform, "activation", None)
        kinds = {kind: name for name, kind in ACTIVATIONS.items()}
        return {
            "body": type(self.body).__name__,
            "names": self.names,
            "pooling": self.pooling,
            "activation": kinds.get(type(activation)),
            "bias": self.head.projection.bias is not None,
        }

    def extra_repr(self) -> str:
        return f"pooling={self.pooling}"


def _check_name(name: str, value: str | None, known: Iterable[str | None]) -> None:
    if value not in known:
        raise ValueError(f"{name} must be one of {', '.join(map(str, known))}, got {value!r}")
