"""Transformers from one set of parts: the line that builds the mask is the difference.

Masks are made here, in `encode` and `decode`, and nowhere below. With a KV `cache` both read
only what is new: the ids are then the last columns of an attention_mask that covers everything.
"""

from torch import Tensor, nn

from minitransformer.cache import Cache
from minitransformer.config import Config
from minitransformer.embedding import Embedding
from minitransformer.kernels.linear_cross_entropy import head_loss, label_positions
from minitransformer.layers import DecoderLayer, EncoderLayer, LMHead, Stack, select
from minitransformer.masks import decoder_mask, padding_mask, zero_padding


class Model(nn.Module):
    """What all share: an embedding and a language model head.

    `encode` is each model's own. The loss asks it for the hidden states `at` some tokens only.
    """

    def __init__(self, config: Config):
        super().__init__()
        self.config = config
        self.embedding = Embedding(config)
        self.head = LMHead(config)
        self.tie()
        self.register_load_state_dict_post_hook(Model.tie)  # `assign=True` unties

    def tie(self, *_: object) -> None:
        """Weight tying: one table of tokens, also the head's projection if the config says so."""
        for part in self.children():
            if isinstance(part, Embedding):
                part.tokens.weight = self.embedding.tokens.weight
        if self.config.tie_embeddings:
            self.head.projection.weight = self.embedding.tokens.weight

    def initialize(self, part: nn.Module) -> None:
        """Weights that keep the size of what passes through (Glorot and Bengio 2010)."""
        for module in part.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        for module in part.modules():  # after the linear layers: a tied head is one of them
            if isinstance(module, nn.Embedding):
                nn.init.normal_(module.weight, std=self.config.d_model**-0.5)

    def extra_repr(self) -> str:
        return f"max_length={self.config.max_length}, window={self.config.window}"

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
        at = label_positions(labels, input_ids.shape)
        hidden = self.encode(input_ids, attention_mask, segment_ids, at=at)
        return head_loss(self.head, hidden, select(labels, at), num_labels)


class EncoderOnly(Model):
    """Every token sees every token, as in BERT (Devlin et al. 2018, arXiv:1810.04805)."""

    def __init__(self, config: Config):
        if config.window is not None:
            raise ValueError(f"a window is for decoders: EncoderOnly got window={config.window}")
        super().__init__(config)
        self.encoder = Stack(config, EncoderLayer, config.num_layers)
        self.initialize(self)

    def encode(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        segment_ids: Tensor | None = None,
        at: Tensor | None = None,
    ) -> Tensor:
        """Last hidden states (B,T,d_model), 0 at padding; (N,d_model) `at` N indices into (B·T)."""
        mask = padding_mask(attention_mask)
        x, rotation = self.embedding(input_ids, attention_mask, segment_ids)
        return zero_padding(self.encoder(x, mask, rotation, at=at), select(attention_mask, at))


class DecoderOnly(Model):
    """Every token sees itself and what came before, as in GPT (Radford et al. 2018).

    It has no source to attend to, so its layers are an encoder's: only the mask differs.
    """

    def __init__(self, config: Config):
        super().__init__(config)
        self.decoder = Stack(config, EncoderLayer, config.num_layers)
        self.initialize(self)

    def encode(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        segment_ids: Tensor | None = None,
        cache: Cache | None = None,
        at: Tensor | None = None,
    ) -> Tensor:
        """Last hidden states (B,T,d_model), 0 at padding; (N,d_model) `at` N indices into (B·T)."""
        start = 0 if cache is None else attention_mask.shape[1] - input_ids.shape[1]
        mask = decoder_mask(attention_mask, start, self.config.window)
        x, rotation = self.embedding(input_ids, attention_mask, segment_ids, start)
        x = self.decoder(x, mask, rotation, cache=cache, at=at)
        return zero_padding(x, select(attention_mask[:, start:], at))


class CrossDecoder(Model):
    """Writes a target with cross-attention to a memory (B,S,d_model), as BERT used as a decoder."""

    def __init__(self, config: Config):
        super().__init__(config)
        self.decoder = Stack(config, DecoderLayer, config.num_decoder_layers)
        self.initialize(self)

    def decode(
        self,
        target_ids: Tensor,
        target_mask: Tensor,
        memory: Tensor,
        source_mask: Tensor,
        cache: Cache | None = None,
        at: Tensor | None = None,
    ) -> Tensor:
        """The target's last hidden states (B,T,d_model), or `at` some, given the encoded source."""
        start = 0 if cache is None else target_mask.shape[1] - target_ids.shape[1]
        mask = decoder_mask(target_mask, start, self.config.window)
        memory_mask = padding_mask(target_mask[:, start:], source_mask)
        x, rotation = self.embedding(target_ids, target_mask, start=start)
        if cache is not None:  # what it keeps must be finite
            memory = zero_padding(memory, source_mask)
        x = self.decoder(x, mask, rotation, memory, memory_mask, cache, at)
        return zero_padding(x, select(target_mask[:, start:], at))

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
        self.source_embedding = Embedding(config)
        for part in (self.encoder, self.source_embedding.positions):  # the rest is, already
            self.initialize(part)
        self.tie()

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
        at = label_positions(labels, target_ids.shape)
        memory = self.encode(source_ids, source_mask)
        hidden = self.decode(target_ids, target_mask, memory, source_mask, at=at)
        return head_loss(self.head, hidden, select(labels, at), num_labels)
