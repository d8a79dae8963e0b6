"""Transformers from one set of parts: the line that builds the mask is the difference.

Masks are made here, in `encode` and `decode`, and nowhere below. With a `cache` both read
only what is new: the ids are then the last columns of an attention_mask that covers everything.
"""

from torch import Tensor, nn

from minitransformer.cache import Cache
from minitransformer.config import Config
from minitransformer.contract import check_attention_mask
from minitransformer.kernels.linear_cross_entropy import linear_cross_entropy
from minitransformer.layers import DecoderLayer, Embedding, EncoderLayer, Head, Stack
from minitransformer.loss import IGNORE_INDEX
from minitransformer.masks import causal_mask, padding_mask, zero_padding


class Model(nn.Module):
    """What all share: an embedding in front and a projection to the vocabulary behind.

    `forward` and `loss` are those of the models that read one sequence.
    """

    def __init__(self, config: Config):
        super().__init__()
        self.config = config
        self.embedding = Embedding(config)
        self.head = Head(config)
        self.tie()

    def tie(self) -> None:
        """Make the output projection the token embedding itself, if the config says so."""
        if self.config.tie_embeddings:
            self.head.weight = self.embedding.tokens.weight

    def initialise(self) -> None:
        """Weights that keep the size of what passes through (Glorot and Bengio 2010)."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        for module in self.modules():  # after the linear layers: a tied head is one of them
            if isinstance(module, nn.Embedding):
                nn.init.normal_(module.weight, std=self.config.d_model**-0.5)

    def encode(
        self, input_ids: Tensor, attention_mask: Tensor, segment_ids: Tensor | None = None
    ) -> Tensor:
        """Last hidden states (B,T,d_model), 0 at padding; each model says who sees whom."""
        raise NotImplementedError

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, segment_ids: Tensor | None = None
    ) -> Tensor:
        """(B,T) ids, attention_mask and perhaps segment_ids -> logits (B,T,vocab_size)."""
        return self.head(self.encode(input_ids, attention_mask, segment_ids))

    def loss(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        labels: Tensor,
        num_labels: int | None = None,
        segment_ids: Tensor | None = None,
    ) -> Tensor:
        """Mean cross-entropy over the labels (B,T) that are not -100; see `cross_entropy`."""
        hidden = self.encode(input_ids, attention_mask, segment_ids)
        return self.loss_at_labels(hidden, labels, num_labels)

    def loss_at_labels(self, hidden: Tensor, labels: Tensor, num_labels: int | None) -> Tensor:
        """Cross-entropy with the projection to the vocabulary computed only where it counts."""
        if labels.shape != hidden.shape[:-1]:
            raise ValueError(
                f"labels must be {tuple(hidden.shape[:-1])}, one for each position, "
                f"got {tuple(labels.shape)}"
            )
        # Where the labels are: on the CPU, this makes no GPU wait.
        chosen = (labels.flatten() != IGNORE_INDEX).nonzero().squeeze(1)
        labels = labels.flatten()[chosen]
        hidden = hidden.flatten(0, 1)[chosen.to(hidden.device, non_blocking=True)]
        head = self.head.weight, self.head.bias
        return linear_cross_entropy(self.head.transform(hidden), *head, labels, num_labels)


class EncoderOnly(Model):
    """Every token sees every token, as in BERT (Devlin et al. 2018, arXiv:1810.04805)."""

    def __init__(self, config: Config):
        super().__init__(config)
        self.encoder = Stack(config, EncoderLayer, config.num_layers)
        self.initialise()

    def encode(
        self, input_ids: Tensor, attention_mask: Tensor, segment_ids: Tensor | None = None
    ) -> Tensor:
        """Last hidden states (B,T,d_model), 0 at padding."""
        mask = padding_mask(attention_mask)
        x, rotation = self.embedding(input_ids, attention_mask, segment_ids)
        return zero_padding(self.encoder(x, mask, rotation), attention_mask)


class DecoderOnly(Model):
    """Every token sees itself and what came before, as in GPT (Radford et al. 2018).

    It has no source to attend to, so its layers are an encoder's: only the mask differs.
    """

    def __init__(self, config: Config):
        super().__init__(config)
        self.decoder = Stack(config, EncoderLayer, config.num_layers)
        self.initialise()

    def encode(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        segment_ids: Tensor | None = None,
        cache: Cache | None = None,
    ) -> Tensor:
        """Last hidden states (B,T,d_model), 0 at padding."""
        start = columns_read(input_ids, attention_mask, cache)
        new = attention_mask[:, start:]
        mask = padding_mask(new, attention_mask) & causal_from(start, attention_mask)
        x, rotation = self.embedding(input_ids, attention_mask, segment_ids, start)
        return zero_padding(self.decoder(x, mask, rotation, cache), new)


class CrossDecoder(Model):
    """Writes a target while it looks at a memory, (B,S,d_model), that another model has read.

    As BERT used for decoding; an EncoderDecoder is one with an encoder of its own.
    """

    def __init__(self, config: Config):
        super().__init__(config)
        self.decoder = Stack(config, DecoderLayer, config.num_decoder_layers)
        self.initialise()

    def decode(
        self,
        target_ids: Tensor,
        target_mask: Tensor,
        memory: Tensor,
        source_mask: Tensor,
        cache: Cache | None = None,
    ) -> Tensor:
        """The target's last hidden states (B,T,d_model), given the encoded source."""
        start = columns_read(target_ids, target_mask, cache)
        new = target_mask[:, start:]
        mask = padding_mask(new, target_mask) & causal_from(start, target_mask)
        memory_mask = padding_mask(new, source_mask)
        x, rotation = self.embedding(target_ids, target_mask, start=start)
        memory = zero_padding(memory, source_mask)  # finite: it may be kept in a cache
        x = self.decoder(x, mask, rotation, memory, memory_mask, cache)
        return zero_padding(x, new)

    def forward(
        self, target_ids: Tensor, target_mask: Tensor, memory: Tensor, source_mask: Tensor
    ) -> Tensor:
        """(B,T) target, (B,S,d_model) memory and (B,S) source_mask -> logits (B,T,vocab_size)."""
        return self.head(self.decode(target_ids, target_mask, memory, source_mask))


class EncoderDecoder(CrossDecoder):
    """Reads a source, writes a target (Vaswani et al. 2017, figure 1); one vocabulary for both."""

    def __init__(self, config: Config):
        super().__init__(config)
        self.source_embedding = Embedding(config, tokens=self.embedding.tokens)
        self.encoder = Stack(config, EncoderLayer, config.num_layers)
        self.initialise()

    def encode(self, source_ids: Tensor, source_mask: Tensor) -> Tensor:
        """The source's last hidden states (B,S,d_model), 0 at padding."""
        mask = padding_mask(source_mask)
        x, rotation = self.source_embedding(source_ids, source_mask)
        return zero_padding(self.encoder(x, mask, rotation), source_mask)

    def forward(
        self, source_ids: Tensor, source_mask: Tensor, target_ids: Tensor, target_mask: Tensor
    ) -> Tensor:
        """(B,S) source and (B,T) target, ids and attention_mask -> logits (B,T,vocab_size)."""
        memory = self.encode(source_ids, source_mask)
        return self.head(self.decode(target_ids, target_mask, memory, source_mask))

    def loss(
        self,
        source_ids: Tensor,
        source_mask: Tensor,
        target_ids: Tensor,
        target_mask: Tensor,
        labels: Tensor,
        num_labels: int | None = None,
    ) -> Tensor:
        """Mean cross-entropy over the labels (B,T) that are not -100."""
        memory = self.encode(source_ids, source_mask)
        hidden = self.decode(target_ids, target_mask, memory, source_mask)
        return self.loss_at_labels(hidden, labels, num_labels)


def columns_read(input_ids: Tensor, attention_mask: Tensor, cache: Cache | None) -> int:
    """How many columns of attention_mask (B,K) stand before those of input_ids (B,T): K - T."""
    check_attention_mask(attention_mask)
    return 0 if cache is None else attention_mask.shape[-1] - input_ids.shape[-1]


def causal_from(start: int, attention_mask: Tensor) -> Tensor:
    """(1,1,K-start,K): the columns from `start` on look back at all of attention_mask (B,K)."""
    length = attention_mask.shape[-1]
    return causal_mask(length - start, length, device=attention_mask.device)
