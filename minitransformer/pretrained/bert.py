"""BERT (Devlin et al. 2018, arXiv:1810.04805): encoder, masked LM, decoder with or without source.

A folder of the bare BertModel has no head: its logits are then the products with the token
embeddings. The pooler is a part of a classifier's head; elsewhere it is left out, and so is the
next-sentence head: nothing here uses them.
"""

from collections.abc import Mapping
from typing import Any

from minitransformer.models import CrossDecoder, DecoderOnly, EncoderOnly, Model
from minitransformer.pretrained.family import REQUIRED, Family

THEIRS = "bert.encoder.layer.{i}"


def layer(ours: str) -> dict[str, str]:
    return {
        f"{ours}.attention.query": f"{THEIRS}.attention.self.query",
        f"{ours}.attention.key": f"{THEIRS}.attention.self.key",
        f"{ours}.attention.value": f"{THEIRS}.attention.self.value",
        f"{ours}.attention.output": f"{THEIRS}.attention.output.dense",
        f"{ours}.attention_residual.norm": f"{THEIRS}.attention.output.LayerNorm",
        f"{ours}.cross_attention.query": f"{THEIRS}.crossattention.self.query",
        f"{ours}.cross_attention.key": f"{THEIRS}.crossattention.self.key",
        f"{ours}.cross_attention.value": f"{THEIRS}.crossattention.self.value",
        f"{ours}.cross_attention.output": f"{THEIRS}.crossattention.output.dense",
        f"{ours}.cross_attention_residual.norm": f"{THEIRS}.crossattention.output.LayerNorm",
        f"{ours}.feed_forward.widen": f"{THEIRS}.intermediate.dense",
        f"{ours}.feed_forward.narrow": f"{THEIRS}.output.dense",
        f"{ours}.feed_forward_residual.norm": f"{THEIRS}.output.LayerNorm",
    }


def choose(theirs: Mapping[str, Any]) -> type[Model]:
    if not theirs.get("is_decoder"):
        return EncoderOnly
    return CrossDecoder if theirs.get("add_cross_attention") else DecoderOnly


def describe(model: Model) -> dict[str, Any]:
    decodes, crosses = not isinstance(model, EncoderOnly), isinstance(model, CrossDecoder)
    return {"is_decoder": decodes, "add_cross_attention": crosses}


BERT = Family(
    model_type="bert",
    style="bert",
    models={
        EncoderOnly: "BertForMaskedLM",
        DecoderOnly: "BertLMHeadModel",
        CrossDecoder: "BertLMHeadModel",
    },
    bare="BertModel",
    classifier="BertForSequenceClassification",
    class_names={"head.transform.linear": "bert.pooler.dense", "head.projection": "classifier"},
    bare_style={"head_transform": False, "head_bias": False},
    aliases=("BertForPreTraining",),
    choose=choose,
    activation=("hidden_act", "gelu"),
    numbers={
        "vocab_size": ("vocab_size", REQUIRED),
        "d_model": ("hidden_size", REQUIRED),
        "num_layers": ("num_hidden_layers", REQUIRED),
        "num_heads": ("num_attention_heads", REQUIRED),
        "d_ff": ("intermediate_size", REQUIRED),
        "max_length": ("max_position_embeddings", 512),
        "num_segments": ("type_vocab_size", 2),
        "norm_eps": ("layer_norm_eps", 1e-12),
        "dropout": ("hidden_dropout_prob", 0.1),
        "eos_id": ("eos_token_id", None),
    },
    switches=("tie_word_embeddings", "is_decoder", "add_cross_attention"),
    fixed={"position_embedding_type": "absolute"},
    names={
        "embedding.tokens": "bert.embeddings.word_embeddings",
        "embedding.segments": "bert.embeddings.token_type_embeddings",
        "embedding.positions.table": "bert.embeddings.position_embeddings",
        "embedding.norm": "bert.embeddings.LayerNorm",
        **layer("encoder.layers.{i}"),
        **layer("decoder.layers.{i}"),
        "head.transform.linear": "cls.predictions.transform.dense",
        "head.transform.norm": "cls.predictions.transform.LayerNorm",
        "head.projection.weight": "cls.predictions.decoder.weight",
        "head.projection.bias": "cls.predictions.decoder.bias",
    },
    ties=[
        ("bert.embeddings.word_embeddings.weight", "cls.predictions.decoder.weight"),
        ("cls.predictions.bias", "cls.predictions.decoder.bias"),
    ],
    prefix="bert.",
    dropped=r"^bert\.pooler\.|^cls\.seq_relationship\.|\.position_ids$|\.token_type_ids$",
    describe=describe,
)
