"""GPT-2 (Radford et al. 2019): pre-norm, learned positions; linear layers written (in, out)."""

from minitransformer.models import DecoderOnly
from minitransformer.pretrained.family import REQUIRED, Family
from minitransformer.pretrained.names import Part

LAYER, THEIRS = "decoder.layers.{i}", "transformer.h.{i}"

GPT2 = Family(
    model_type="gpt2",
    style="gpt2",
    models={DecoderOnly: "GPT2LMHeadModel"},
    bare="GPT2Model",
    classifier="GPT2ForSequenceClassification",
    class_names={"head.projection": "score"},
    activation=("activation_function", "gelu_new"),
    numbers={
        "vocab_size": ("vocab_size", REQUIRED),
        "d_model": ("n_embd", REQUIRED),
        "num_layers": ("n_layer", REQUIRED),
        "num_heads": ("n_head", REQUIRED),
        "d_ff": ("n_inner", None),
        "max_length": ("n_positions", 1024),
        "norm_eps": ("layer_norm_epsilon", 1e-5),
        "dropout": ("resid_pdrop", 0.1),
        "eos_id": ("eos_token_id", None),
    },
    fixed={
        "scale_attn_weights": True,
        "scale_attn_by_inverse_layer_idx": False,
        "add_cross_attention": False,
    },
    names={
        "embedding.tokens": "transformer.wte",
        "embedding.positions.table": "transformer.wpe",
        f"{LAYER}.attention_residual.norm": f"{THEIRS}.ln_1",
        f"{LAYER}.attention.query": Part(f"{THEIRS}.attn.c_attn", 0, of=3, transposed=True),
        f"{LAYER}.attention.key": Part(f"{THEIRS}.attn.c_attn", 1, of=3, transposed=True),
        f"{LAYER}.attention.value": Part(f"{THEIRS}.attn.c_attn", 2, of=3, transposed=True),
        f"{LAYER}.attention.output": Part(f"{THEIRS}.attn.c_proj", transposed=True),
        f"{LAYER}.feed_forward_residual.norm": f"{THEIRS}.ln_2",
        f"{LAYER}.feed_forward.widen": Part(f"{THEIRS}.mlp.c_fc", transposed=True),
        f"{LAYER}.feed_forward.narrow": Part(f"{THEIRS}.mlp.c_proj", transposed=True),
        "decoder.norm": "transformer.ln_f",
        "head.projection": "lm_head",
    },
    ties=[("transformer.wte.weight", "lm_head.weight")],
    prefix="transformer.",
    dropped=r"\.attn\.(masked_)?bias$",
)
