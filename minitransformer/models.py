"""Transformers from one set of parts: the line that builds the mask is the difference.

Masks are made here, in `encode` and `decode`, and nowhere below. With a KV `cache` both read
only what is new: the ids are then the last columns of an attention_mask that covers everything.
"""

from torch import Tensor, nn

from minitransformer.cache import Cache
from minitransformer.config import Config
from minitransformer.contract import check_attention_mask, is_traced
from minitransformer.kernels.linear_cross_entropy import linear_cross_entropy
from minitransformer.layers import DecoderLayer, Embedding, EncoderLayer, LMHead, Stack
from minitransformer.loss import IGNORE_INDEX, cross_entropy
from minitransformer.masks import decoder_mask, padding_mask, zero_padding


class Model(nn.Module):
    """What all share: an embedding in front and a language model head behind.

    `forward` and `loss` are those of the models that read one sequence.
    """

    def __init__(self, config: Config):
        super().__init__()
        self.config = config
        self.embedding = Embedding(config)
        self.head = LMHead(config)
        self.initialize(self)
        self.tie()
        self.register_load_state_dict_post_hook(Model.tie)  # `assign=True` would untie

    def tie(self, *_: object) -> None:
        """Weight tying: the output projection is the token embedding, if the config says so."""
        if self.config.tie_embeddings:
            self.head.projection.weight = self.embedding.tokens.weight

    def initialize(self, part: nn.Module) -> None:
        """Weights that keep the size of what passes through (Glorot and Bengio 2010)."""
        for module in part.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
            elif isinstance(module, nn.Embedding):
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
        if is_traced(hidden, labels):
            return cross_entropy(self.head(hidden), labels, num_labels=num_labels)
        # Where the labels are: on the CPU, this makes no GPU wait.
        chosen = (labels.flatten() != IGNORE_INDEX).nonzero().squeeze(1)
        labels = labels.flatten()[chosen]
        hidden = hidden.flatten(0, 1)[chosen.to(hidden.device, non_blocking=True)]
        projection = self.head.projection.weight, self.head.projection.bias
        return linear_cross_entropy(self.head.transform(hidden), *projection, labels, num_labels)


class EncoderOnly(Model):
    """Every token sees every token, as in BERT (Devlin et al. 2018, arXiv:1810.04805)."""

    def __init__(self, config: Config):
        if config.window is not None:
            raise ValueError(f"a window is for decoders: EncoderOnly got window={config.window}")
        super().__init__(config)
        self.encoder = Stack(config, EncoderLayer, config.num_layers)
        self.initialize(self.encoder)

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
        self.initialize(self.decoder)

    def encode(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        segment_ids: Tensor | None = None,
        cache: Cache | None = None,
    ) -> Tensor:
        """Last hidden states (B,T,d_model), 0 at padding."""
        start = columns_read(input_ids, attention_mask, cache)
        mask = decoder_mask(attention_mask, start, self.config.window)
        x, rotation = self.embedding(input_ids, attention_mask, segment_ids, start)
        return zero_padding(self.decoder(x, mask, rotation, cache=cache), attention_mask[:, start:])


class CrossDecoder(Model):
    """Writes a target while it looks at a memory, (B,S,d_model), that another model has read.

    As BERT used for decoding; an EncoderDecoder is one with an encoder of its own.
    """

    def __init__(self, config: Config):
        super().__init__(config)
        self.decoder = Stack(config, DecoderLayer, config.num_decoder_layers)
        self.initialize(self.decoder)

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
        mask = decoder_mask(target_mask, start, self.config.window)
        memory_mask = padding_mask(new, source_mask)
        x, rotation = self.embedding(target_ids, target_mask, start=start)
        memory = zero_padding(memory, source_mask)  # finite: it may be kept in a cache
        return zero_padding(self.decoder(x, mask, rotation, memory, memory_mask, cache), new)

    def forward(
        self, target_ids: Tensor, target_mask: Tensor, memory: Tensor, source_mask: Tensor
    ) -> Tensor:
        """(B,T) target, (B,S,d_model) memory and (B,S) source_mask -> logits (B,T,vocab_size)."""
        return self.head(self.decode(target_ids, target_mask, memory, source_mask))


class EncoderDecoder(CrossDecoder):
    """Reads a source, writes a target (Vaswani et al. 2017, figure 1); one vocabulary for both."""

    def __init__(self, config: Config):
        super().__init__(config)
        self.encoder = Stack(config, EncoderLayer, config.num_layers)
        self.source_embedding = Embedding(config, tokens=self.embedding.tokens)
        self.initialize(self.encoder)
        self.initialize(self.source_embedding.positions)

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
