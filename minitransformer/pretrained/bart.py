"""BART (Lewis et al. 2019, arXiv:1910.13461) and Marian's translators, which differ in few parts.

BART's positions begin at row 2 of their table; Marian's are sines and cosines that it computes.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from minitransformer.config import Style
from minitransformer.models import EncoderDecoder, Model
from minitransformer.pretrained.family import REQUIRED, Family
from minitransformer.pretrained.names import Part


def layer(stack: str) -> dict[str, str]:
    ours, theirs = f"{stack}.layers.{{i}}", f"model.{stack}.layers.{{i}}"
    names = {
        f"{ours}.attention_residual.norm": f"{theirs}.self_attn_layer_norm",
        f"{ours}.cross_attention_residual.norm": f"{theirs}.encoder_attn_layer_norm",
        f"{ours}.feed_forward.widen": f"{theirs}.fc1",
        f"{ours}.feed_forward.narrow": f"{theirs}.fc2",
        f"{ours}.feed_forward_residual.norm": f"{theirs}.final_layer_norm",
    }
    for our_kind, their_kind in (("attention", "self_attn"), ("cross_attention", "encoder_attn")):
        for part, letter in (("query", "q"), ("key", "k"), ("value", "v"), ("output", "out")):
            names[f"{ours}.{our_kind}.{part}"] = f"{theirs}.{their_kind}.{letter}_proj"
    return names


def adjust(theirs: Mapping[str, Any], style: Style) -> Style:
    for key in ("attention_heads", "ffn_dim"):
        sides = [theirs.get(f"{side}_{key}") for side in ("encoder", "decoder")]
        if sides[0] != sides[1]:
            raise ValueError(f"encoder_{key} and decoder_{key} differ: {sides[0]} and {sides[1]}")
    if theirs.get("decoder_vocab_size") not in (None, theirs.get("vocab_size")):
        raise ValueError(
            "decoder_vocab_size differs from vocab_size; only one for both can be read"
        )
    return replace(style, scale_embedding=bool(theirs.get("scale_embedding", False)))


def extra(theirs: Mapping[str, Any]) -> dict[str, Any]:
    """An old name of `forced_bos_token_id`."""
    old = theirs.get("force_bos_token_to_be_generated")
    if old and theirs.get("forced_bos_token_id") is None:
        return {"first_id": theirs.get("bos_token_id", 0)}
    return {}


def describe(model: Model) -> dict[str, Any]:
    config = model.config
    return {
        "decoder_attention_heads": config.num_heads,
        "decoder_ffn_dim": config.d_ff,
        "scale_embedding": config.parts.scale_embedding,
        "is_encoder_decoder": True,
        "pad_token_id": None,  # ours to choose: nothing depends on what stands at padding
    }


BART = Family(
    model_type="bart",
    style="bart",
    models={EncoderDecoder: "BartForConditionalGeneration"},
    bare="BartModel",
    activation=("activation_function", "gelu"),
    numbers={
        "vocab_size": ("vocab_size", REQUIRED),
        "d_model": ("d_model", REQUIRED),
        "num_layers": ("encoder_layers", REQUIRED),
        "num_decoder_layers": ("decoder_layers", REQUIRED),
        "num_heads": ("encoder_attention_heads", REQUIRED),
        "d_ff": ("encoder_ffn_dim", REQUIRED),
        "max_length": ("max_position_embeddings", 1024),
        "dropout": ("dropout", 0.1),
        "bos_id": ("decoder_start_token_id", 2),
        "eos_id": ("eos_token_id", 2),
        "first_id": ("forced_bos_token_id", None),
    },
    switches=("scale_embedding", "force_bos_token_to_be_generated"),
    fixed={
        "tie_word_embeddings": True,
        "normalize_before": False,
        "add_final_layer_norm": False,
        "normalize_embedding": True,
    },
    names={
        "embedding.tokens": "model.shared",
        "embedding.positions.table": Part("model.decoder.embed_positions", skip=2),
        "embedding.norm": "model.decoder.layernorm_embedding",
        "source_embedding.tokens": "model.shared",
        "source_embedding.positions.table": Part("model.encoder.embed_positions", skip=2),
        "source_embedding.norm": "model.encoder.layernorm_embedding",
        **layer("encoder"),
        **layer("decoder"),
        "head.projection.weight": "lm_head.weight",
        "head.projection.bias": Part("final_logits_bias", flat=True),
    },
    ties=[
        (
            "model.shared.weight",
            "model.encoder.embed_tokens.weight",
            "model.decoder.embed_tokens.weight",
            "lm_head.weight",
        )
    ],
    prefix="model.",
    zeros=("final_logits_bias",),
    adjust=adjust,
    extra=extra,
    describe=describe,
)

MARIAN = replace(
    BART,
    model_type="marian",
    style="marian",
    models={EncoderDecoder: "MarianMTModel"},
    bare="MarianModel",
    numbers={**BART.numbers, "bos_id": ("decoder_start_token_id", REQUIRED)},
    fixed={
        **BART.fixed,
        "normalize_embedding": False,
        "share_encoder_decoder_embeddings": True,
        "static_position_embeddings": True,
    },
    dropped=r"embed_positions\.weight$",
)
