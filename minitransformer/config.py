"""A model as data: its numbers, and one word for the parts it is made of."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Style:
    """Which parts a family of transformers is built from. `layers.py` knows them by these names."""

    norm: str  # "layer" (Ba et al. 2016) or "rms" (Zhang and Sennrich 2019)
    residual: str  # "post": norm(x + f(x)), as in 2017; "pre": x + f(norm(x))
    feed_forward: str  # "relu", "gelu", "gelu_tanh", "silu" or the gated "swiglu" (Shazeer 2020)
    positions: str  # "sinusoidal", "sinusoidal_halves", "learned" or "rotary" (Su et al. 2021)
    bias: bool = True  # do the linear layers have one?
    scale_embedding: bool = False  # token embeddings times √d_model (Vaswani et al. 2017, 3.4)
    norm_embedding: bool = False  # a norm between the embedding and the first layer
    final_norm: bool = False  # a norm after the last layer, which pre-norm needs
    head_transform: bool = False  # one more layer and norm before the vocabulary, as in BERT
    head_bias: bool = False  # does the projection to the vocabulary have one?


STYLES = {
    "vanilla": Style("layer", "post", "relu", "sinusoidal", scale_embedding=True),
    "bert": Style(
        "layer", "post", "gelu", "learned", norm_embedding=True, head_transform=True, head_bias=True
    ),
    "gpt2": Style("layer", "pre", "gelu_tanh", "learned", final_norm=True),
    "llama": Style("rms", "pre", "swiglu", "rotary", bias=False, final_norm=True),
    "bart": Style("layer", "post", "gelu", "learned", norm_embedding=True, head_bias=True),
    "marian": Style(
        "layer", "post", "silu", "sinusoidal_halves", scale_embedding=True, head_bias=True
    ),
}


ATTENTIONS = ("auto", "reference", "tiled", "fused", "online", "sdpa", "triton")  # see `kernels`


@dataclass(frozen=True)
class Config:
    """The numbers of a model. JSON and command-line arguments say the same, name by name.

    Raises ValueError for numbers that no model can have.
    """

    vocab_size: int
    d_model: int = 128  # width of every hidden state
    num_layers: int = 2  # of the encoder, of the decoder, or of each
    num_decoder_layers: int | None = None  # of an EncoderDecoder's decoder; None = num_layers
    num_heads: int = 4
    num_kv_heads: int | None = None  # key/value heads, fewer for grouped queries; None = num_heads
    d_ff: int | None = None  # width inside the feed-forward; None = 4 * d_model
    max_length: int = 512  # tokens in one sequence, padding not counted
    dropout: float = 0.0  # of embeddings and of what each sublayer adds; not of attention weights
    style: str | Style = "vanilla"  # a name from STYLES, or parts that no name stands for
    tie_embeddings: bool = False  # is the output projection the token embedding itself?
    num_segments: int = 0  # kinds of segments that `segment_ids` may name, as in BERT; 0 = none
    bos_id: int = 1  # the token that starts every target of an EncoderDecoder
    eos_id: int | tuple[int, ...] | None = None  # what ends a text, for those who generate
    first_id: int | None = None  # what every generated text begins with, as in some BARTs
    forbidden_ids: tuple[int, ...] = ()  # tokens that are never generated, as Marian's padding
    norm_eps: float = 1e-5
    rope_theta: float = 10_000.0  # base of the rotary wavelengths
    attention: str = "auto"  # how it is computed, from ATTENTIONS: faster, the same up to rounding

    def __post_init__(self):
        if isinstance(self.style, Mapping):  # as JSON has it
            object.__setattr__(self, "style", Style(**self.style))
        for name in ("eos_id", "forbidden_ids"):
            if isinstance(getattr(self, name), list):
                object.__setattr__(self, name, tuple(getattr(self, name)))
        if self.num_decoder_layers is None:
            object.__setattr__(self, "num_decoder_layers", self.num_layers)
        if self.num_kv_heads is None:
            object.__setattr__(self, "num_kv_heads", self.num_heads)
        if self.d_ff is None:
            object.__setattr__(self, "d_ff", 4 * self.d_model)
        for name, least in {
            "vocab_size": 1,
            "d_model": 1,
            "num_layers": 0,
            "num_decoder_layers": 0,
            "num_heads": 1,
            "num_kv_heads": 1,
            "d_ff": 1,
            "max_length": 1,
            "num_segments": 0,
            "bos_id": 0,
        }.items():
            number = getattr(self, name)
            if not isinstance(number, int) or isinstance(number, bool) or number < least:
                raise ValueError(f"{name} must be an integer >= {least}, got {number!r}")
        for name in ("eos_id", "first_id", "forbidden_ids"):
            value = getattr(self, name)
            ids = value if isinstance(value, tuple) else () if value is None else (value,)
            end = float("inf") if name == "eos_id" else self.vocab_size  # some never end
            if not all(type(i) is int and i < end for i in ids):
                raise ValueError(f"{name} must be ids of tokens, below {end}, got {value!r}")
        if not isinstance(self.style, Style) and self.style not in STYLES:
            raise ValueError(f"style must be one of {', '.join(STYLES)}, got {self.style!r}")
        if self.attention not in ATTENTIONS:
            raise ValueError(
                f"attention must be one of {', '.join(ATTENTIONS)}, got {self.attention!r}"
            )
        check_heads(self.d_model, self.num_heads, self.num_kv_heads)
        if self.parts.positions == "rotary" and self.d_model // self.num_heads % 2:
            raise ValueError(
                f"rotary positions turn pairs: d_model / num_heads must be even, "
                f"got {self.d_model} / {self.num_heads}"
            )
        if not 0.0 <= self.dropout < 1.0:
            raise ValueError(f"dropout must be in [0, 1), got {self.dropout}")
        for name in ("norm_eps", "rope_theta"):
            number = getattr(self, name)
            if not isinstance(number, int | float) or not number > 0:
                raise ValueError(f"{name} must be a number above 0, got {number!r}")

    @property
    def parts(self) -> Style:
        return self.style if isinstance(self.style, Style) else STYLES[self.style]

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def check_heads(d_model: int, num_heads: int, num_kv_heads: int) -> None:
    """Refuse heads that do not divide the width, or groups that do not divide the heads."""
    if num_heads < 1 or d_model % num_heads:
        raise ValueError(f"d_model must be a multiple of num_heads, got {d_model} and {num_heads}")
    if num_kv_heads < 1 or num_heads % num_kv_heads:
        raise ValueError(
            f"num_heads must be a multiple of num_kv_heads, got {num_heads} and {num_kv_heads}"
        )
