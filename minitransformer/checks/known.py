"""Libraries' own attention, models, losses and collators as subjects: no line of theirs rewritten.

    minitransformer check torch.nn.functional:scaled_dot_product_attention

`known(name)` gives the subject, `KNOWN` lists the names. What follows an @ is a variant: a backend,
a form of the mask, a setting. An adapter hands over what it was given in the library's own order
and polarity, and nothing else. Every library but torch is imported only when its subject is built.
"""

import os
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, replace
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from minitransformer import models
from minitransformer.attention import scaled_dot_product_attention
from minitransformer.cache import Cache
from minitransformer.checks.attention.adapters import from_mask_mod
from minitransformer.checks.attention.subject import AttentionSubject
from minitransformer.checks.engine.subject import SUBJECTS, Subject
from minitransformer.checks.labels.subject import CollatorSubject
from minitransformer.checks.losses.subject import LossSubject
from minitransformer.config import Config
from minitransformer.data import pad
from minitransformer.loss import cross_entropy as our_cross_entropy
from minitransformer.masks import causal_mask
from minitransformer.positions import token_positions

PACKAGES = {"x_transformers": "x-transformers"}  # installed under another name than imported


@dataclass(frozen=True)
class Known:
    """A subject that is built when it is asked for, from a library that may not be installed."""

    name: str
    library: str  # to import
    make: Callable[[], Subject]

    @property
    def installed(self) -> bool:
        return find_spec(self.library) is not None

    def __call__(self) -> Subject:
        """The subject. Raises ImportError that names the library where it is missing."""
        if not self.installed:
            package = PACKAGES.get(self.library, self.library)
            raise ImportError(f"{self.name} needs {package}: pip install {package}")
        return replace(self.make(), name=self.name)


KNOWN: dict[str, Known] = {}


def known(name: str) -> Subject | None:
    """The subject of this name, or None where the name is not one of `KNOWN`."""
    return KNOWN[name]() if name in KNOWN else None


def _knows(name: str, library: str = "torch", **variants: Any) -> Callable[[Callable], Callable]:
    """Register a function that makes a subject; with variants, one name@variant for each value.

    A value of a variant is the argument that the function is called with; "" is the plain name.
    """

    def register(make: Callable[..., Subject]) -> Callable[..., Subject]:
        for variant, argument in (variants or {"": None}).items():
            full = f"{name}@{variant}" if variant else name
            maker = make if not variants else (lambda argument=argument: make(argument))
            KNOWN[full] = Known(full, library, maker)
        return make

    return register


# ---- attention: ours -----------------------------------------------------------------------------


@_knows("minitransformer.attention:scaled_dot_product_attention", "minitransformer")
def _ours() -> Subject:
    return AttentionSubject(
        scaled_dot_product_attention,
        mask_layout="b h q k",
        dropout_flag="dropout_p",
        refuses_misuse=True,
    )


# ---- attention: torch ----------------------------------------------------------------------------


def _sdpa(backend: str = "", mask_values: str = "bool") -> Subject:
    """torch's function, by the backend that torch chooses or by a given one."""

    def attend(query, key, value, mask=None, **flags):
        from torch.nn.attention import SDPBackend, sdpa_kernel

        pinned = sdpa_kernel(getattr(SDPBackend, backend)) if backend else nullcontext()
        with pinned:
            return F.scaled_dot_product_attention(query, key, value, mask, **flags)

    return AttentionSubject(
        attend,
        mask_layout="b h q k",
        mask_values=mask_values,
        causal_flag="is_causal",
        dropout_flag=None if backend == "FLASH_ATTENTION" else "dropout_p",  # it has none
    )


_SDPA = "torch.nn.functional:scaled_dot_product_attention"
for _backend in ("", "MATH", "FLASH_ATTENTION"):
    for _values, _word in {"bool": "", "additive": "float_mask"}.items():
        _variant = ",".join(word for word in (_backend, _word) if word)
        _knows(f"{_SDPA}@{_variant}" if _variant else _SDPA)(
            lambda backend=_backend, values=_values: _sdpa(backend, values)
        )


def _merge(x: Tensor) -> Tensor:
    """(B,H,T,D) -> (B,T,H·D): the heads side by side, as layers with projections take them."""
    return x.transpose(1, 2).flatten(2)


def _identity_attention(query: Tensor, **options) -> nn.MultiheadAttention:
    """torch's layer for inputs like `query`, every projection the identity."""
    _, heads, _, width = query.shape
    layer = nn.MultiheadAttention(
        heads * width, heads, bias=False, batch_first=True, device=query.device, dtype=query.dtype
    )
    identity = torch.eye(heads * width, device=query.device, dtype=query.dtype)
    with torch.no_grad():
        layer.in_proj_weight.copy_(identity.repeat(3, 1))
        layer.out_proj.weight.copy_(identity)
    return layer.eval().requires_grad_(False)


@_knows(
    "torch.nn:MultiheadAttention",
    **{"": True, "need_weights=False": False},
)
def _multihead_attention(need_weights: bool) -> Subject:
    """Its `is_causal` is not declared: it is documented as a hint about attn_mask, not a mask."""

    def attend(query, key, value, mask):
        output, weights = _identity_attention(query)(
            *map(_merge, (query, key, value)),
            attn_mask=mask.flatten(0, 1),
            need_weights=need_weights,
            average_attn_weights=False,
        )
        output = output.unflatten(2, query.shape[1::2]).transpose(1, 2)
        return output, weights

    return AttentionSubject(attend, mask_layout="b h q k", mask_means="ignore")


@_knows("torch.nn:MultiheadAttention@key_padding_mask")
def _multihead_attention_padding() -> Subject:
    def attend(query, key, value, mask):
        output, weights = _identity_attention(query)(
            *map(_merge, (query, key, value)), key_padding_mask=mask, average_attn_weights=False
        )
        return output.unflatten(2, query.shape[1::2]).transpose(1, 2), weights

    return AttentionSubject(attend, mask_layout="b k", mask_means="ignore")


@_knows("torch.nn.attention.flex_attention:flex_attention")
def _flex_attention() -> Subject:
    """Through a mask_mod, not compiled. On the CPU it has no backward pass: none is asked for."""
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    def attend(query, key, value, mask_mod):
        sizes = (*query.shape[:3], key.shape[2])
        block_mask = create_block_mask(mask_mod, *sizes, device=query.device)
        inputs = (x.detach() for x in (query, key, value))
        return flex_attention(*inputs, block_mask=block_mask)

    return AttentionSubject(from_mask_mod(attend), mask_layout="b h q k", differentiable=False)


# ---- attention: transformers ---------------------------------------------------------------------


def _module(training: bool = False) -> nn.Module:
    """What these functions ask of the layer that calls them."""
    module = nn.Module().train(training)
    module.num_key_value_groups, module.is_causal = 1, False
    return module


@_knows("transformers.integrations.sdpa_attention:sdpa_attention_forward", "transformers")
def _transformers_sdpa() -> Subject:
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    def attend(query, key, value, mask):
        return sdpa_attention_forward(_module(), query, key, value, mask)[0].transpose(1, 2)

    return AttentionSubject(attend, mask_layout="b h q k")


def _transformers_eager(model: str) -> Subject:
    """With the mask that the library builds for it: 0 and the smallest number of the dtype."""
    from importlib import import_module

    forward = import_module(f"transformers.models.{model}.modeling_{model}").eager_attention_forward

    def attend(query, key, value, mask):
        zero = torch.zeros((), dtype=query.dtype, device=mask.device)
        mask = torch.where(mask, zero, torch.finfo(query.dtype).min)
        scaling = query.shape[-1] ** -0.5
        output, weights = forward(_module(), query, key, value, mask, scaling=scaling)
        return output.transpose(1, 2), weights

    return AttentionSubject(attend, mask_layout="b h q k")


for _model in ("bert", "gpt2", "llama"):
    _knows(
        f"transformers.models.{_model}.modeling_{_model}:eager_attention_forward", "transformers"
    )(lambda model=_model: _transformers_eager(model))


# ---- attention: x-transformers, keras, flax, jax -------------------------------------------------


@_knows("x_transformers.attend:Attend", "x_transformers", **{"": False, "flash": True})
def _attend(flash: bool) -> Subject:
    from x_transformers.attend import Attend

    def attend(query, key, value, mask=None, causal=False):
        return Attend(flash=flash, causal=causal).eval()(query, key, value, mask=mask)[0]

    return AttentionSubject(attend, mask_layout="b h q k", causal_flag="causal")


@_knows(
    "keras.layers:MultiHeadAttention", "keras", **{"": False, "return_attention_scores=True": True}
)
def _keras_attention(scores: bool) -> Subject:
    """On keras' torch backend (unless keras is loaded already), the projections the identity."""
    os.environ.setdefault("KERAS_BACKEND", "torch")
    import keras

    def attend(query, key, value, mask=None, **flags):
        _, heads, _, width = query.shape
        layer = keras.layers.MultiHeadAttention(
            heads, width, use_bias=False, dtype=str(query.dtype).removeprefix("torch.")
        )
        query, key, value = map(_merge, (query, key, value))
        layer.build(query.shape, value.shape, key.shape)
        identity = torch.eye(heads * width).numpy()
        layer.set_weights([identity.reshape(w.shape) for w in layer.get_weights()])
        output = layer(
            query, value, key, attention_mask=mask, return_attention_scores=scores, **flags
        )
        output, *weights = output if scores else (output,)
        return output.unflatten(2, (heads, width)).transpose(1, 2), *weights

    return AttentionSubject(attend, mask_layout="b h q k", causal_flag="use_causal_mask")


def _through_numpy(function: Callable) -> Callable:
    """A function of jax arrays as one of tensors; no gradient flows. float32 holds the smaller."""

    def attend(query, key, value, mask=None, **flags):
        from jax import numpy as jnp

        dtype = str(query.dtype).removeprefix("torch.")
        inputs = [jnp.asarray(x.detach().float().numpy(), dtype) for x in (query, key, value)]
        output = function(
            *inputs, mask=None if mask is None else jnp.asarray(mask.numpy()), **flags
        )
        return torch.tensor(output.tolist(), dtype=torch.float32).to(query.dtype)

    return attend


_JAX = {
    "layout": "b t h d",
    "mask_layout": "b h q k",
    "dtypes": ("float32", "bfloat16", "float16"),  # float64 is off unless jax is told otherwise
    "differentiable": False,
}


@_knows("flax.linen:dot_product_attention", "flax")
def _flax() -> Subject:
    from flax.linen import dot_product_attention

    return AttentionSubject(_through_numpy(dot_product_attention), **_JAX)


@_knows("jax.nn:dot_product_attention", "jax")
def _jax() -> Subject:
    from jax.nn import dot_product_attention

    return AttentionSubject(_through_numpy(dot_product_attention), causal_flag="is_causal", **_JAX)


# ---- models --------------------------------------------------------------------------------------

_VOCAB, _WIDTH, _HEADS, _LAYERS, _WIDE, _LENGTH = 11, 16, 2, 2, 32, 64


class _Model(nn.Module):
    """A library's model, called as the checks call theirs."""

    def __init__(self, model: nn.Module, call: Callable[..., Any]):
        super().__init__()
        self.model, self.call = model, call

    def forward(self, *inputs: Tensor) -> Any:
        return self.call(self.model, *inputs)


def _model_subject(kind: str, model: nn.Module, call: Callable, **declared: Any) -> Subject:
    """The checks draw the weights anew, so that every run has the same."""
    return SUBJECTS[kind](_Model(model, call), **declared)


# Ours.


def _our_model(kind: str, name: str) -> Subject:
    config = Config(_VOCAB, _WIDTH, _LAYERS, _HEADS, max_length=_LENGTH)
    model = getattr(models, name)(config)
    return _model_subject(kind, model, lambda m, *given: m(*given), holes=True, documents=True)


for _kind, _name in {
    "encoder": "EncoderOnly",
    "decoder": "DecoderOnly",
    "encoder-decoder": "EncoderDecoder",
}.items():
    _knows(f"minitransformer.models:{_name}", "minitransformer")(
        lambda kind=_kind, name=_name: _our_model(kind, name)
    )


class _OurCached(nn.Module):
    """DecoderOnly with its Cache, as fn(input_ids, attention_mask, past)."""

    def __init__(self):
        super().__init__()
        self.model = models.DecoderOnly(Config(_VOCAB, _WIDTH, _LAYERS, _HEADS, max_length=_LENGTH))

    def forward(self, ids: Tensor, attention_mask: Tensor, past: Cache | None):
        past = Cache() if past is None else past
        return self.model.head(self.model.encode(ids, attention_mask, cache=past)), past


@_knows("minitransformer.models:DecoderOnly@cache", "minitransformer")
def _our_cached_decoder() -> Subject:
    return SUBJECTS["cached-decoder"](_OurCached())


# torch: the layers of torch between embeddings and a projection to the vocabulary.


class _Around(nn.Module):
    """Token and position embeddings in front of a torch transformer, a projection behind it."""

    def __init__(self, transformer: nn.Module, inference: bool = False):
        super().__init__()
        self.tokens = nn.Embedding(_VOCAB, _WIDTH)
        self.positions = nn.Embedding(_LENGTH, _WIDTH)
        self.transformer = transformer
        self.head = nn.Linear(_WIDTH, _VOCAB)
        self.inference = inference

    def embed(self, ids: Tensor, attention_mask: Tensor) -> Tensor:
        return self.tokens(ids) + self.positions(token_positions(attention_mask))

    def forward(self, *inputs: Tensor) -> Tensor:
        """With `inference`, never a gradient: torch then takes its fast path."""
        with torch.no_grad() if self.inference else nullcontext():
            return self.head(self.transform(*inputs))

    def transform(self, *inputs: Tensor) -> Tensor:
        raise NotImplementedError


class _AroundEncoder(_Around):
    def __init__(self, inference: bool, causal: bool):
        layer = nn.TransformerEncoderLayer(_WIDTH, _HEADS, _WIDE, dropout=0.0, batch_first=True)
        super().__init__(nn.TransformerEncoder(layer, _LAYERS), inference)
        self.causal = causal

    def transform(self, ids: Tensor, attention_mask: Tensor) -> Tensor:
        future = ~causal_mask(ids.shape[1], device=ids.device)[0, 0] if self.causal else None
        return self.transformer(
            self.embed(ids, attention_mask), future, src_key_padding_mask=attention_mask == 0
        )


@_knows("torch.nn:TransformerEncoderLayer")
def _transformer_encoder_layer() -> Subject:
    """A layer: it takes embeddings."""
    layer = nn.TransformerEncoderLayer(_WIDTH, _HEADS, _WIDE, dropout=0.0, batch_first=True)
    return _model_subject(
        "encoder",
        layer,
        lambda m, x, mask: m(x, src_key_padding_mask=mask),
        takes="embeddings",
        mask_means="ignore",
        mask_values="bool",
    )


class _AroundTransformer(_Around):
    def __init__(self, inference: bool):
        transformer = nn.Transformer(
            _WIDTH, _HEADS, _LAYERS, _LAYERS, _WIDE, dropout=0.0, batch_first=True
        )
        super().__init__(transformer, inference)

    def transform(self, source_ids, source_mask, target_ids, target_mask) -> Tensor:
        return self.transformer(
            self.embed(source_ids, source_mask),
            self.embed(target_ids, target_mask),
            tgt_mask=~causal_mask(target_ids.shape[1], device=target_ids.device)[0, 0],
            src_key_padding_mask=source_mask == 0,
            tgt_key_padding_mask=target_mask == 0,
            memory_key_padding_mask=source_mask == 0,
        )


@_knows("torch.nn:TransformerEncoder", **{"": False, "inference": True})
def _transformer_encoder(inference: bool) -> Subject:
    return SUBJECTS["encoder"](_AroundEncoder(inference, causal=False))


@_knows("torch.nn:TransformerEncoder", **{"causal": False, "causal,inference": True})
def _causal_transformer_encoder(inference: bool) -> Subject:
    return SUBJECTS["decoder"](_AroundEncoder(inference, causal=True))


@_knows("torch.nn:Transformer", **{"": False, "inference": True})
def _transformer(inference: bool) -> Subject:
    return SUBJECTS["encoder-decoder"](_AroundTransformer(inference))


# transformers: tiny, with random weights.

_SPECIAL = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
_BERT = {
    "vocab_size": _VOCAB,
    "hidden_size": _WIDTH,
    "num_hidden_layers": _LAYERS,
    "num_attention_heads": _HEADS,
    "intermediate_size": _WIDE,
    "max_position_embeddings": _LENGTH,
}
_SIZES = {  # every family has names of its own for the same numbers
    "Bert": _BERT,
    "Llama": _BERT,
    "GPT2": {
        "vocab_size": _VOCAB,
        "n_embd": _WIDTH,
        "n_layer": _LAYERS,
        "n_head": _HEADS,
        "n_positions": _LENGTH,
    },
    "Bart": {
        "vocab_size": _VOCAB,
        "d_model": _WIDTH,
        "max_position_embeddings": _LENGTH,
        **{f"{side}_layers": _LAYERS for side in ("encoder", "decoder")},
        **{f"{side}_attention_heads": _HEADS for side in ("encoder", "decoder")},
        **{f"{side}_ffn_dim": _WIDE for side in ("encoder", "decoder")},
    },
    "T5": {
        "vocab_size": _VOCAB,
        "d_model": _WIDTH,
        "d_kv": _WIDTH // _HEADS,
        "d_ff": _WIDE,
        "num_layers": _LAYERS,
        "num_heads": _HEADS,
    },
}


def _one_sequence(model, ids, mask):
    return model(input_ids=ids, attention_mask=mask)


def _one_sequence_with_positions(model, ids, mask):
    """As `generate` of transformers counts them."""
    positions = (mask.long().cumsum(-1) - 1).clamp(min=0)
    return model(input_ids=ids, attention_mask=mask, position_ids=positions, use_cache=False)


def _two_sequences(model, source_ids, source_mask, target_ids, target_mask):
    return model(
        input_ids=source_ids,
        attention_mask=source_mask,
        decoder_input_ids=target_ids,
        decoder_attention_mask=target_mask,
        use_cache=False,
    )


def _transformers_model(kind: str, family: str, name: str, attention: str, call) -> Subject:
    import transformers

    special = {**_SPECIAL, "decoder_start_token_id": 1} if kind == "encoder-decoder" else _SPECIAL
    config = getattr(transformers, f"{family}Config")(
        **_SIZES[family], **special, attn_implementation=attention
    )
    try:
        model = getattr(transformers, name)(config)
    except ValueError as error:  # T5 has none but "eager" in transformers 5.0
        raise ImportError(f"{error} It is in newer ones: pip install -U transformers") from None
    return SUBJECTS[kind](model) if call is None else _model_subject(kind, model, call)


for _kind, _family, _name, _calls in (
    ("encoder", "Bert", "BertModel", {"": _one_sequence}),
    *(
        (
            "decoder",
            family,
            f"{family}LMHeadModel" if family == "GPT2" else f"{family}ForCausalLM",
            {"": _one_sequence, ",position_ids": _one_sequence_with_positions},
        )
        for family in ("GPT2", "Llama")
    ),
    ("cached-decoder", "GPT2", "GPT2LMHeadModel", {",cache": None}),
    ("cached-decoder", "Llama", "LlamaForCausalLM", {",cache": None}),
    ("encoder-decoder", "Bart", "BartForConditionalGeneration", {"": _two_sequences}),
    ("encoder-decoder", "T5", "T5ForConditionalGeneration", {"": _two_sequences}),
):
    for _attention in ("eager", "sdpa"):
        for _word, _call in _calls.items():
            _knows(f"transformers:{_name}@{_attention}{_word}", "transformers")(
                lambda *, b=_kind, f=_family, n=_name, a=_attention, c=_call: _transformers_model(
                    b, f, n, a, c
                )
            )


# x-transformers, with its defaults and with some of its options.


def _x_transformer(kind: str, layers: str, options: dict[str, Any]) -> Subject:
    import x_transformers

    rotary = "rotary_pos_emb" in options
    model = x_transformers.TransformerWrapper(
        num_tokens=_VOCAB,
        max_seq_len=_LENGTH,
        use_abs_pos_emb=not rotary,
        attn_layers=getattr(x_transformers, layers)(
            dim=_WIDTH, depth=_LAYERS, heads=_HEADS, attn_dim_head=64, **options
        ),
    )
    return _model_subject(kind, model, lambda m, ids, mask: m(ids, mask=mask), mask_values="bool")


for _kind, _layers in {"encoder": "Encoder", "decoder": "Decoder"}.items():
    for _word, _options in {
        "": {},
        "@rotary_pos_emb": {"rotary_pos_emb": True},
        "@rotary_pos_emb,shift_tokens=1": {"rotary_pos_emb": True, "shift_tokens": 1},
    }.items():
        _knows(f"x_transformers:{_layers}{_word}", "x_transformers")(
            lambda b=_kind, x=_layers, o=_options: _x_transformer(b, x, o)
        )


@_knows("x_transformers:Attention", "x_transformers")
def _x_transformers_layer() -> Subject:
    """A layer: it takes embeddings."""
    import x_transformers

    layer = x_transformers.Attention(dim=_WIDTH, heads=_HEADS, dim_head=_WIDTH // _HEADS)
    options = {"takes": "embeddings", "mask_values": "bool"}
    return _model_subject("encoder", layer, lambda m, x, mask: m(x, mask=mask), **options)


# ---- losses --------------------------------------------------------------------------------------


@_knows("minitransformer.loss:cross_entropy", "minitransformer")
def _our_loss() -> Subject:
    return LossSubject(our_cross_entropy, num_labels_flag="num_labels")


@_knows("torch.nn.functional:cross_entropy")
def _cross_entropy() -> Subject:
    return LossSubject(F.cross_entropy, flat=True)


@_knows("torch.nn:CrossEntropyLoss")
def _cross_entropy_loss() -> Subject:
    return LossSubject(nn.CrossEntropyLoss(), flat=True)


@_knows("transformers.loss.loss_utils:ForCausalLMLoss", "transformers")
def _causal_lm_loss() -> Subject:
    from transformers.loss.loss_utils import ForCausalLMLoss

    return LossSubject(
        lambda logits, labels, **flags: ForCausalLMLoss(logits, labels, logits.shape[-1], **flags),
        shifts=True,
        num_labels_flag="num_items_in_batch",
    )


# ---- collators, with a tokenizer of 100 words made on the spot -----------------------------------


def _collator(name: str, pad_id: int, labels: str, **options: Any) -> Subject:
    import transformers
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel

    words = {f"w{i}": i for i in range(100)}
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(WordLevel(words, unk_token="w99")),
        pad_token=f"w{pad_id}",
        padding_side="right",
    )
    collate = getattr(transformers, name)(tokenizer, **options)
    return CollatorSubject(collate, rows="dicts", pad_id=pad_id, labels=labels)


@_knows("minitransformer.data:pad", "minitransformer")
def _our_collator() -> Subject:
    return CollatorSubject(pad, labels="given")


for _name, _labels, _options in (
    ("DataCollatorWithPadding", "none", {}),
    ("DataCollatorForSeq2Seq", "given", {}),
    ("DataCollatorForLanguageModeling", "aligned", {"mlm": False}),
):
    _knows(f"transformers:{_name}", "transformers")(
        lambda *, n=_name, w=_labels, o=_options: _collator(n, 0, w, **o)
    )
