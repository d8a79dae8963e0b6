"""Llama (Touvron et al. 2023, arXiv:2302.13971), TinyLlama: RMS norms, rotary positions, gates."""

from collections.abc import Mapping
from typing import Any

from minitransformer.models import DecoderOnly, Model
from minitransformer.pretrained.family import REQUIRED, Family

LAYER, THEIRS = "decoder.layers.{i}", "model.layers.{i}"


def rope(theirs: Mapping[str, Any]) -> dict[str, Any]:
    """The base of the rotary positions, wherever a file of any age says it.

    `rope_parameters` is of new files, `rope_scaling` of older ones; both may hold the base, which
    the oldest say beside it. Their order is the library's.
    """
    key = "rope_scaling" if theirs.get("rope_scaling") else "rope_parameters"
    said = theirs.get(key) or {}
    if not isinstance(said, Mapping):
        raise ValueError(f"{key} is {said!r}; expected an object or null")
    kind = said.get("rope_type") or said.get("type") or "default"
    if kind != "default":
        raise ValueError(f"rotary positions of the type {kind!r}; only 'default' can be read")
    if others := sorted(said.keys() - {"rope_type", "type", "rope_theta", "partial_rotary_factor"}):
        raise ValueError(f"{key} has {', '.join(others)}, which the type 'default' does not take")
    share = said.get("partial_rotary_factor") or theirs.get("partial_rotary_factor") or 1.0
    if share != 1.0:
        raise ValueError(f"partial_rotary_factor is {share!r}; only 1.0 can be read")
    width, heads = theirs["hidden_size"], theirs["num_attention_heads"]
    if theirs.get("head_dim") not in (None, width // heads):
        raise ValueError(
            f"head_dim is {theirs['head_dim']}; only hidden_size / num_attention_heads = "
            f"{width // heads} can be read"
        )
    bases = (said.get("rope_theta"), theirs.get("rope_theta"), 10_000.0)
    base = next(base for base in bases if base is not None)
    if type(base) not in (int, float) or not 0 < base < 1e30:
        raise ValueError(f"rope_theta must be a number above 0 and below 1e30, got {base!r}")
    return {"rope_theta": base}


def describe(model: Model) -> dict[str, Any]:
    theta = model.config.rope_theta
    return {
        "rope_parameters": {"rope_type": "default", "rope_theta": theta},
        "rope_theta": theta,
        "head_dim": model.config.d_model // model.config.num_heads,
    }


LLAMA = Family(
    model_type="llama",
    style="llama",
    models={DecoderOnly: "LlamaForCausalLM"},
    bare="LlamaModel",
    classifier="LlamaForSequenceClassification",
    class_names={"head.projection": "score"},
    activation=("hidden_act", "silu"),
    gates={"silu": "swiglu", "swish": "swiglu"},
    numbers={
        "vocab_size": ("vocab_size", REQUIRED),
        "d_model": ("hidden_size", REQUIRED),
        "num_layers": ("num_hidden_layers", REQUIRED),
        "num_heads": ("num_attention_heads", REQUIRED),
        "num_kv_heads": ("num_key_value_heads", None),
        "d_ff": ("intermediate_size", REQUIRED),
        "max_length": ("max_position_embeddings", 2048),
        "norm_eps": ("rms_norm_eps", 1e-6),
        "eos_id": ("eos_token_id", None),
    },
    fixed={"attention_bias": False, "mlp_bias": False},
    tied=False,
    names={
        "embedding.tokens": "model.embed_tokens",
        f"{LAYER}.attention_residual.norm": f"{THEIRS}.input_layernorm",
        f"{LAYER}.attention.query": f"{THEIRS}.self_attn.q_proj",
        f"{LAYER}.attention.key": f"{THEIRS}.self_attn.k_proj",
        f"{LAYER}.attention.value": f"{THEIRS}.self_attn.v_proj",
        f"{LAYER}.attention.output": f"{THEIRS}.self_attn.o_proj",
        f"{LAYER}.feed_forward_residual.norm": f"{THEIRS}.post_attention_layernorm",
        f"{LAYER}.feed_forward.gate": f"{THEIRS}.mlp.gate_proj",
        f"{LAYER}.feed_forward.widen": f"{THEIRS}.mlp.up_proj",
        f"{LAYER}.feed_forward.narrow": f"{THEIRS}.mlp.down_proj",
        "decoder.norm": "model.norm",
        "head.projection": "lm_head",
    },
    ties=[("model.embed_tokens.weight", "lm_head.weight")],
    prefix="model.",
    dropped=r"rotary_emb\.inv_freq$",
    extra=rope,
    describe=describe,
)
