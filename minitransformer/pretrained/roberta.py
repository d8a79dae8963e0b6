"""RoBERTa (Liu et al. 2019, arXiv:1907.11692): BERT with other names, and positions from row 2 on.

The first two rows of its table of positions are for padding, whose id is 1. Its head always has a
gelu, so only layers with a gelu are read.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from minitransformer.models import CrossDecoder, DecoderOnly, EncoderOnly, Model
from minitransformer.pretrained.bert import BERT
from minitransformer.pretrained.names import Part

SKIP = 2  # rows of the table of positions
LENGTH = "max_position_embeddings"


def length(theirs: Mapping[str, Any]) -> dict[str, Any]:
    rows = theirs.get(LENGTH, 512)
    if rows <= SKIP:
        raise ValueError(f"{LENGTH} must be above {SKIP}, of which none is a token's, got {rows}")
    return {"max_length": rows - SKIP}


def describe(model: Model) -> dict[str, Any]:
    return {**BERT.describe(model), LENGTH: model.config.max_length + SKIP}


ROBERTA = replace(
    BERT,
    model_type="roberta",
    style="roberta",
    models={
        EncoderOnly: "RobertaForMaskedLM",
        DecoderOnly: "RobertaForCausalLM",
        CrossDecoder: "RobertaForCausalLM",
    },
    bare="RobertaModel",
    classifier="RobertaForSequenceClassification",
    class_names={
        "head.transform.linear": "classifier.dense",
        "head.projection": "classifier.out_proj",
    },
    aliases=(),
    gates={"gelu": "gelu"},
    numbers={**BERT.numbers, "max_length": (LENGTH, 512)},
    fixed={**BERT.fixed, "pad_token_id": 1},
    names={
        **{
            ours: theirs.replace("bert.", "roberta.", 1)
            for ours, theirs in BERT.names.items()
            if isinstance(theirs, str) and theirs.startswith("bert.")
        },
        "embedding.positions.table": Part("roberta.embeddings.position_embeddings", skip=SKIP),
        "head.transform.linear": "lm_head.dense",
        "head.transform.norm": "lm_head.layer_norm",
        "head.projection": "lm_head.decoder",
    },
    ties=[
        ("roberta.embeddings.word_embeddings.weight", "lm_head.decoder.weight"),
        ("lm_head.bias", "lm_head.decoder.bias"),
    ],
    prefix="roberta.",
    dropped=r"^roberta\.pooler\.|\.position_ids$|\.token_type_ids$",
    extra=length,
    describe=describe,
)
