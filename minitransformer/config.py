"""A model as data: its numbers, and one word for the parts it is made of."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from math import inf

from minitransformer.contract import check_heads, check_integer


@dataclass(frozen=True)
class Style:
    """Which parts a family of transformers is built from. `layers.py` knows them by these names."""

    norm: str  # "layer" (Ba et al. 2016) or "rms" (Zhang and Sennrich 2019)
    residual: str  # "post": norm(x + f(x)), as in 2017; "pre": x + f(norm(x))
    feed_forward: str  # "relu", "gelu", "gelu_tanh", "silu" or the gated "swiglu" (Shazeer 2020)
    positions: str  # "sinusoidal", "sinusoidal_halves", "learned" or "rotary" (Su et al. 2021)
    bias: bool = True  # do the linear layers have one?
    qkv_bias: bool = False  # ... or only those of queries, keys and values, as in Qwen2?
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
    "qwen2": Style("rms", "pre", "swiglu", "rotary", bias=False, qkv_bias=True, final_norm=True),
    "bart": Style("layer", "post", "gelu", "learned", norm_embedding=True, head_bias=True),
    "marian": Style(
        "layer", "post", "silu", "sinusoidal_halves", scale_embedding=True, head_bias=True
    ),
}
STYLES |= {"roberta": STYLES["bert"], "distilbert": STYLES["bert"], "mistral": STYLES["llama"]}

ATTENTIONS = ("auto", "reference", "tiled", "fused", "online", "sdpa", "triton", "varlen")
LEAST = dict.fromkeys(  # what the integers of a Config must be at least
    ("vocab_size", "d_model", "num_heads", "num_kv_heads", "d_ff", "max_length"), 1
) | dict.fromkeys(("num_layers", "num_decoder_layers", "num_segments", "bos_id"), 0)


@dataclass(frozen=True)
class Config:
    """The numbers of a model, as JSON and the command line have them; refuses impossible ones."""

    vocab_size: int
    d_model: int = 128  # width of every hidden state
    num_layers: int = 2  # of the encoder, of the decoder, or of each
    num_decoder_layers: int | None = None  # of an EncoderDecoder's decoder; None = num_layers
    num_heads: int = 4
    num_kv_heads: int | None = None  # key/value heads, fewer for grouped queries; None = num_heads
    d_ff: int | None = None  # width inside the feed-forward; None = 4 * d_model
    max_length: int = 512  # tokens in one sequence, padding not counted
    window: int | None = None  # keys that a decoder's query sees, itself included; None = all
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
        self._complete()
        self._check_numbers()
        self._check_parts()
        self._check_ids()

    def _complete(self) -> None:
        """Fill in what follows from other numbers, and read what JSON has no type for."""
        follows = {"num_decoder_layers": self.num_layers, "num_kv_heads": self.num_heads}
        follows["d_ff"] = 4 * self.d_model
        values = {name: value for name, value in follows.items() if getattr(self, name) is None}
        if isinstance(self.style, Mapping):
            values["style"] = Style(**self.style)
        for name in ("eos_id", "forbidden_ids"):
            if isinstance(getattr(self, name), list):
                values[name] = tuple(getattr(self, name))
        for name, value in values.items():
            object.__setattr__(self, name, value)

    def _check_numbers(self) -> None:
        for name, least in LEAST.items():
            check_integer(name, getattr(self, name), least)
        for name in ("norm_eps", "rope_theta"):
            number = getattr(self, name)
            if not isinstance(number, int | float) or not number > 0:
                raise ValueError(f"{name} must be a number above 0, got {number!r}")
        if not 0.0 <= self.dropout < 1.0:
            raise ValueError(f"dropout must be in [0, 1), got {self.dropout}")

    def _check_parts(self) -> None:
        for name, known in {"style": STYLES, "attention": ATTENTIONS}.items():
            value = getattr(self, name)
            if not isinstance(value, Style) and value not in known:
                raise ValueError(f"{name} must be one of {', '.join(known)}, got {value!r}")
        if self.window is not None:
            check_integer("window", self.window, 1)
        check_heads(self.d_model, self.num_heads, self.num_kv_heads)
        width = self.d_model // self.num_heads
        if self.parts.positions == "rotary" and width % 2:
            raise ValueError(f"rotary positions need an even d_model / num_heads, got {width}")

    def _check_ids(self) -> None:
        known = 0, self.vocab_size, f"integers from 0 to {self.vocab_size - 1}"
        kinds = {"eos_id": (-inf, inf, "integers"), "first_id": known, "forbidden_ids": known}
        for name, (least, end, wanted) in kinds.items():  # some never end
            value = getattr(self, name)
            ids = value if isinstance(value, tuple) else () if value is None else (value,)
            if not all(type(i) is int and least <= i < end for i in ids):
                raise ValueError(f"{name} must be ids of tokens, {wanted}, got {value!r}")

    @property
    def parts(self) -> Style:
        return self.style if isinstance(self.style, Style) else STYLES[self.style]

    to_dict = asdict
