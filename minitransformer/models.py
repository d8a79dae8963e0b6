"""Three transformers from one set of parts: the line that builds the mask is the difference.

Masks are made here, in `encode` and `decode`, and nowhere below.
"""

from torch import Tensor, nn

from minitransformer.config import Config
from minitransformer.layers import DecoderLayer, Embedding, EncoderLayer, Stack
from minitransformer.loss import IGNORE_INDEX, cross_entropy
from minitransformer.masks import causal_mask, padding_mask, zero_padding


class Model(nn.Module):
    """What all three share: an embedding in front and a projection to the vocabulary behind.

    `forward` and `loss` are those of the models that read one sequence.
    """

    def __init__(self, config: Config):
        super().__init__()
        self.config = config
        self.embedding = Embedding(config)
        self.head = nn.Linear(config.d_model, config.vocab_size, bias=False)
        if config.tie_embeddings:
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

    def encode(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Last hidden states (B,T,d_model), 0 at padding; each model says who sees whom."""
        raise NotImplementedError

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """(B,T) ids and (B,T) attention_mask -> logits (B,T,vocab_size)."""
        return self.head(self.encode(input_ids, attention_mask))

    def loss(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        labels: Tensor,
        num_labels: int | None = None,
    ) -> Tensor:
        """Mean cross-entropy over the labels (B,T) that are not -100; see `cross_entropy`."""
        return self.loss_at_labels(self.encode(input_ids, attention_mask), labels, num_labels)

    def loss_at_labels(self, hidden: Tensor, labels: Tensor, num_labels: int | None) -> Tensor:
        """Cross-entropy with the projection to the vocabulary computed only where it counts."""
        if labels.shape != hidden.shape[:-1]:
            raise ValueError(
                f"labels must be {tuple(hidden.shape[:-1])}, one for each position, "
                f"got {tuple(labels.shape)}"
            )
        counts = labels != IGNORE_INDEX
        return cross_entropy(self.head(hidden[counts]), labels[counts], num_labels=num_labels)


class EncoderOnly(Model):
    """Every token sees every token, as in BERT (Devlin et al. 2018, arXiv:1810.04805)."""

    def __init__(self, config: Config):
        super().__init__(config)
        self.encoder = Stack(config, EncoderLayer)
        self.initialise()

    def encode(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Last hidden states (B,T,d_model), 0 at padding."""
        mask = padding_mask(attention_mask)
        x, rotation = self.embedding(input_ids, attention_mask)
        return zero_padding(self.encoder(x, mask, rotation), attention_mask)


class DecoderOnly(Model):
    """Every token sees itself and what came before, as in GPT (Radford et al. 2018).

    It has no source to attend to, so its layers are an encoder's: only the mask differs.
    """

    def __init__(self, config: Config):
        super().__init__(config)
        self.decoder = Stack(config, EncoderLayer)
        self.initialise()

    def encode(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Last hidden states (B,T,d_model), 0 at padding."""
        length = attention_mask.shape[-1]
        mask = padding_mask(attention_mask) & causal_mask(length, device=attention_mask.device)
        x, rotation = self.embedding(input_ids, attention_mask)
        return zero_padding(self.decoder(x, mask, rotation), attention_mask)


class EncoderDecoder(Model):
    """Reads a source, writes a target (Vaswani et al. 2017, figure 1); one vocabulary for both."""

    def __init__(self, config: Config):
        super().__init__(config)
        self.encoder = Stack(config, EncoderLayer)
        self.decoder = Stack(config, DecoderLayer)
        self.initialise()

    def encode(self, source_ids: Tensor, source_mask: Tensor) -> Tensor:
        """The source's last hidden states (B,S,d_model), 0 at padding."""
        mask = padding_mask(source_mask)
        x, rotation = self.embedding(source_ids, source_mask)
        return zero_padding(self.encoder(x, mask, rotation), source_mask)

    def decode(
        self, target_ids: Tensor, target_mask: Tensor, memory: Tensor, source_mask: Tensor
    ) -> Tensor:
        """The target's last hidden states (B,T,d_model), given the encoded source."""
        length = target_mask.shape[-1]
        mask = padding_mask(target_mask) & causal_mask(length, device=target_mask.device)
        memory_mask = padding_mask(target_mask, source_mask)
        x, rotation = self.embedding(target_ids, target_mask)
        x = self.decoder(x, mask, rotation, memory, memory_mask)
        return zero_padding(x, target_mask)

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
