"""DistilBERT (Sanh et al. 2019, arXiv:1910.01108): BERT's layers under other names, no segments."""

from minitransformer.models import EncoderOnly
from minitransformer.pretrained.family import REQUIRED, Family

LAYER, THEIRS = "encoder.layers.{i}", "distilbert.transformer.layer.{i}"

DISTILBERT = Family(
    model_type="distilbert",
    style="distilbert",
    models={EncoderOnly: "DistilBertForMaskedLM"},
    bare="DistilBertModel",
    classifier="DistilBertForSequenceClassification",
    class_names={"head.transform.linear": "pre_classifier", "head.projection": "classifier"},
    bare_style={"head_transform": False, "head_bias": False},
    activation=("activation", "gelu"),
    numbers={
        "vocab_size": ("vocab_size", REQUIRED),
        "d_model": ("dim", REQUIRED),
        "num_layers": ("n_layers", REQUIRED),
        "num_heads": ("n_heads", REQUIRED),
        "d_ff": ("hidden_dim", REQUIRED),
        "max_length": ("max_position_embeddings", 512),
        "dropout": ("dropout", 0.1),
        "eos_id": ("eos_token_id", None),
    },
    unsaid={"norm_eps": 1e-12},
    names={
        "embedding.tokens": "distilbert.embeddings.word_embeddings",
        "embedding.positions.table": "distilbert.embeddings.position_embeddings",
        "embedding.norm": "distilbert.embeddings.LayerNorm",
        f"{LAYER}.attention.query": f"{THEIRS}.attention.q_lin",
        f"{LAYER}.attention.key": f"{THEIRS}.attention.k_lin",
        f"{LAYER}.attention.value": f"{THEIRS}.attention.v_lin",
        f"{LAYER}.attention.output": f"{THEIRS}.attention.out_lin",
        f"{LAYER}.attention_residual.norm": f"{THEIRS}.sa_layer_norm",
        f"{LAYER}.feed_forward.widen": f"{THEIRS}.ffn.lin1",
        f"{LAYER}.feed_forward.narrow": f"{THEIRS}.ffn.lin2",
        f"{LAYER}.feed_forward_residual.norm": f"{THEIRS}.output_layer_norm",
        "head.transform.linear": "vocab_transform",
        "head.transform.norm": "vocab_layer_norm",
        "head.projection": "vocab_projector",
    },
    ties=[("distilbert.embeddings.word_embeddings.weight", "vocab_projector.weight")],
    prefix="distilbert.",
    dropped=r"\.position_ids$",
)
