"""Whom we are measured against, as their users would train them.

Every model here has `loss(batch)`, the mean cross-entropy over the labels, as ours have, and takes
ours as its size: a `Size`. All tie the output projection to the token embedding, none drops out,
all begin with the same random weights (`initialize`). Libraries are imported where they are needed:
one that is missing is an ImportError, and the table says so.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import minitransformer as mt
from minitransformer.data import Batch, PairBatch


@dataclass(frozen=True)
class Size:
    vocab_size: int = 8_000
    d_model: int = 256
    num_layers: int = 4
    num_heads: int = 8
    max_length: int = 256

    @property
    def d_ff(self) -> int:
        return 4 * self.d_model

    @property
    def gated_d_ff(self) -> int:
        """Three matrices of this width have as many numbers as two of d_ff."""
        return round(self.d_ff * 2 / 3)


def initialize(model: nn.Module) -> nn.Module:
    """Random weights, the same for everyone: losses of unlike beginnings say nothing."""
    torch.manual_seed(0)
    for parameter in model.parameters():
        if parameter.ndim > 1:
            nn.init.normal_(parameter, std=0.02)
    return model.train()


# ---- ours --------------------------------------------------------------------------------------


class Ours(nn.Module):
    """Padded or packed: that is in the batch, not in the model."""

    def __init__(self, kind: type[nn.Module], size: Size, style: str, attention: str = "auto"):
        super().__init__()
        names = ("vocab_size", "d_model", "num_layers", "num_heads", "max_length")
        numbers = {name: getattr(size, name) for name in names}
        parts = {"style": style, "attention": attention, "tie_embeddings": True}
        self.model = kind(mt.Config(**numbers, **parts))

    def loss(self, batch: Batch | PairBatch) -> Tensor:
        return self.model.loss(**batch)


def our_encoder(size: Size, attention: str = "auto") -> nn.Module:
    return Ours(mt.EncoderOnly, size, "bert", attention)


def our_decoder(size: Size) -> nn.Module:
    return Ours(mt.DecoderOnly, size, "gpt2")


def our_encoder_decoder(size: Size) -> nn.Module:
    return Ours(mt.EncoderDecoder, size, "vanilla")


# ---- torch -------------------------------------------------------------------------------------


class Embedded(nn.Module):
    """Token and position embeddings around a stack of torch's, and the tied projection."""

    def __init__(self, size: Size):
        super().__init__()
        self.tokens = nn.Embedding(size.vocab_size, size.d_model)
        self.positions = nn.Embedding(size.max_length, size.d_model)

    def embed(self, input_ids: Tensor) -> Tensor:
        steps = torch.arange(input_ids.shape[1], device=input_ids.device)
        return self.tokens(input_ids) + self.positions(steps)

    def cross_entropy(self, hidden: Tensor, labels: Tensor) -> Tensor:
        logits = F.linear(hidden, self.tokens.weight)
        return F.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=-100)


class TorchEncoder(Embedded):
    def __init__(self, size: Size):
        super().__init__(size)
        layer = nn.TransformerEncoderLayer(
            size.d_model, size.num_heads, size.d_ff, 0.0, "gelu", batch_first=True
        )
        self.encoder = nn.TransformerEncoder(layer, size.num_layers, enable_nested_tensor=False)

    def loss(self, batch: Batch) -> Tensor:
        x = self.embed(batch.input_ids)
        hidden = self.encoder(x, src_key_padding_mask=batch.attention_mask == 0)
        return self.cross_entropy(hidden, batch.labels)


class TorchTransformer(Embedded):
    def __init__(self, size: Size):
        super().__init__(size)
        layers = size.num_layers
        self.transformer = nn.Transformer(
            size.d_model, size.num_heads, layers, layers, size.d_ff, 0.0, batch_first=True
        )

    def loss(self, batch: PairBatch) -> Tensor:
        source, target = self.embed(batch.source_ids), self.embed(batch.target_ids)
        padding, length = batch.source_mask == 0, batch.target_ids.shape[1]
        future = ~torch.ones(length, length, dtype=torch.bool, device=target.device).tril()
        hidden = self.transformer(
            source,
            target,
            tgt_mask=future,
            src_key_padding_mask=padding,
            memory_key_padding_mask=padding,
            tgt_is_causal=True,
        )
        return self.cross_entropy(hidden, batch.labels)


class Block(nn.Module):
    """A layer of a GPT of the nanoGPT kind: pre-norm, one product for Q, K and V, causal SDPA."""

    def __init__(self, size: Size):
        super().__init__()
        self.heads, width = size.num_heads, size.d_model
        self.norm_1, self.norm_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.output = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.feed_forward = nn.Sequential(
            nn.Linear(width, size.d_ff), nn.GELU(), nn.Linear(size.d_ff, width)
        )

    def forward(self, x: Tensor) -> Tensor:
        batch, length, width = x.shape
        qkv = self.qkv(self.norm_1(x)).view(batch, length, 3, self.heads, -1)
        query, key, value = qkv.transpose(1, 3).unbind(2)
        seen = F.scaled_dot_product_attention(query, key, value, is_causal=True)
        x = x + self.output(seen.transpose(1, 2).reshape(batch, length, width))
        return x + self.feed_forward(self.norm_2(x))


class NanoGPT(Embedded):
    """Padding on the right is in the future of every token, so it needs no mask."""

    def __init__(self, size: Size):
        super().__init__(size)
        self.blocks = nn.Sequential(*(Block(size) for _ in range(size.num_layers)))
        self.norm = nn.LayerNorm(size.d_model)

    def loss(self, batch: Batch) -> Tensor:
        hidden = self.norm(self.blocks(self.embed(batch.input_ids)))
        return self.cross_entropy(hidden, batch.labels)


# ---- transformers ------------------------------------------------------------------------------


class HuggingFace(nn.Module):
    """A model of the library, which is given `labels` and returns its loss."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def loss(self, batch: Batch) -> Tensor:
        return self.model(**batch).loss


class HuggingFaceCausal(HuggingFace):
    """There labels are the ids themselves; the model moves them by one."""

    def loss(self, batch: Batch) -> Tensor:
        labels = batch.input_ids.masked_fill(batch.attention_mask == 0, -100)
        return self.model(
            input_ids=batch.input_ids, attention_mask=batch.attention_mask, labels=labels
        ).loss


class HuggingFacePairs(HuggingFace):
    def loss(self, batch: PairBatch) -> Tensor:
        return self.model(
            input_ids=batch.source_ids,
            attention_mask=batch.source_mask,
            decoder_input_ids=batch.target_ids,
            labels=batch.labels,
        ).loss


class ModernBert(HuggingFace):
    """As the library runs it: padded, but logits only at labels ("sparse prediction")."""

    def __init__(self, size: Size):
        import transformers

        config = transformers.ModernBertConfig(
            **_hugging_face(size),
            cls_token_id=1,
            sep_token_id=2,
            intermediate_size=size.gated_d_ff,
            layer_types=["full_attention"] * size.num_layers,
            sparse_prediction=True,
        )
        config._attn_implementation = self.attention(transformers)
        super().__init__(transformers.ModernBertForMaskedLM(config))

    def attention(self, transformers) -> str:
        return "sdpa"


class UnpaddedModernBert(ModernBert):
    """All documents in one row, as its authors trained it (Warner et al. 2024, arXiv:2412.13663).

    The library leaves attention among the documents of such a row to flash-attention on CUDA, and
    has nothing for it elsewhere: there we plug in SDPA for one document after the other.
    """

    def attention(self, transformers) -> str:
        self.flash = torch.cuda.is_available() and transformers.utils.is_flash_attn_2_available()
        transformers.AttentionInterface.register("documents", attend_to_each_document)
        return "flash_attention_2" if self.flash else "documents"

    def loss(self, batch: Batch) -> Tensor:
        real = batch.attention_mask != 0
        lengths = real.sum(1)
        documents = {"documents": lengths.tolist()}
        if self.flash:
            ends, longest = F.pad(lengths.cumsum(0), (1, 0)).int(), real.shape[1]
            documents = {"cu_seq_lens_q": ends, "cu_seq_lens_k": ends}
            documents |= {"max_length_q": longest, "max_length_k": longest}
        return self.model(
            input_ids=batch.input_ids[real][None],
            attention_mask={"full_attention": None, "sliding_attention": None},
            position_ids=mt.token_positions(batch.attention_mask)[real][None],
            labels=batch.labels[real][None],
            **documents,
        ).loss


def attend_to_each_document(module, query, key, value, mask, *, documents, scaling, **_):
    """SDPA within each run of columns; (1,H,T,D) each -> (1,T,H,D), as the library wants it."""
    parts = zip(*(x.split(documents, dim=2) for x in (query, key, value)), strict=True)
    outputs = [F.scaled_dot_product_attention(*part, scale=scaling) for part in parts]
    return torch.cat(outputs, dim=2).transpose(1, 2), None


def hf_bert(size: Size) -> nn.Module:
    import transformers

    config = transformers.BertConfig(
        **_hugging_face(size),
        intermediate_size=size.d_ff,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    return HuggingFace(transformers.BertForMaskedLM(config))


def hf_gpt2(size: Size) -> nn.Module:
    import transformers

    none = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
    config = transformers.GPT2Config(**_hugging_face(size), **none, use_cache=False)
    return HuggingFaceCausal(transformers.GPT2LMHeadModel(config))


def hf_llama(size: Size) -> nn.Module:
    import transformers

    parts = {"intermediate_size": size.gated_d_ff, "tie_word_embeddings": True}
    config = transformers.LlamaConfig(**_hugging_face(size), **parts, use_cache=False)
    return HuggingFaceCausal(transformers.LlamaForCausalLM(config))


def hf_bart(size: Size) -> nn.Module:
    import transformers

    config = transformers.BartConfig(
        vocab_size=size.vocab_size,
        d_model=size.d_model,
        encoder_layers=size.num_layers,
        decoder_layers=size.num_layers,
        encoder_attention_heads=size.num_heads,
        decoder_attention_heads=size.num_heads,
        encoder_ffn_dim=size.d_ff,
        decoder_ffn_dim=size.d_ff,
        max_position_embeddings=size.max_length,
        dropout=0.0,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        decoder_start_token_id=1,
        use_cache=False,
    )
    return HuggingFacePairs(transformers.BartForConditionalGeneration(config))


def _hugging_face(size: Size) -> dict[str, int]:
    return {
        "vocab_size": size.vocab_size,
        "hidden_size": size.d_model,
        "num_hidden_layers": size.num_layers,
        "num_attention_heads": size.num_heads,
        "max_position_embeddings": size.max_length,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }


# ---- x-transformers ----------------------------------------------------------------------------


class XTransformersLM(nn.Module):
    """`layers`: the library's Encoder or Decoder."""

    def __init__(self, size: Size, layers: str):
        import x_transformers

        super().__init__()
        stack = getattr(x_transformers, layers)(
            dim=size.d_model,
            depth=size.num_layers,
            heads=size.num_heads,
            attn_dim_head=size.d_model // size.num_heads,
            attn_flash=True,
        )
        self.model = x_transformers.TransformerWrapper(
            num_tokens=size.vocab_size,
            max_seq_len=size.max_length,
            attn_layers=stack,
            tie_embedding=True,
            tie_embedding_scale=1.0,  # as everyone's; its own, d ** -0.5, fits its own weights
        )

    def loss(self, batch: Batch) -> Tensor:
        logits = self.model(batch.input_ids, mask=batch.attention_mask != 0)
        return F.cross_entropy(logits.flatten(0, 1), batch.labels.flatten(), ignore_index=-100)


class XTransformersPairs(nn.Module):
    def __init__(self, size: Size):
        import x_transformers

        super().__init__()
        sides = {}
        for side in ("enc", "dec"):
            sides |= {
                f"{side}_num_tokens": size.vocab_size,
                f"{side}_depth": size.num_layers,
                f"{side}_heads": size.num_heads,
                f"{side}_attn_dim_head": size.d_model // size.num_heads,
                f"{side}_attn_flash": True,
                f"{side}_max_seq_len": size.max_length,
            }
        self.model = x_transformers.XTransformer(dim=size.d_model, tie_token_emb=True, **sides)
        decoder = self.model.decoder.net
        decoder.to_logits.weight = decoder.token_emb.emb.weight

    def loss(self, batch: PairBatch) -> Tensor:
        written = torch.cat((batch.target_ids[:, :1], batch.labels), dim=1)  # <bos> a b c <eos>
        return self.model(batch.source_ids, written, mask=batch.source_mask != 0)


def x_encoder(size: Size) -> nn.Module:
    return XTransformersLM(size, "Encoder")


def x_decoder(size: Size) -> nn.Module:
    return XTransformersLM(size, "Decoder")


Builder = Callable[[Size], nn.Module]
TORCH_ENCODER, TORCH_TRANSFORMER, NANO_GPT = (
    "torch nn.TransformerEncoder",
    "torch nn.Transformer",
    "GPT of the nanoGPT kind",
)
ENCODERS: dict[str, Builder] = {
    TORCH_ENCODER: TorchEncoder,
    "transformers BERT": hf_bert,
    "transformers ModernBERT": ModernBert,
    "ModernBERT, unpadded by a plug-in": UnpaddedModernBert,
    "x-transformers": x_encoder,
}
DECODERS: dict[str, Builder] = {
    NANO_GPT: NanoGPT,
    "transformers GPT-2": hf_gpt2,
    "transformers Llama": hf_llama,
    "x-transformers": x_decoder,
}
ENCODER_DECODERS: dict[str, Builder] = {
    TORCH_TRANSFORMER: TorchTransformer,
    "transformers BART": hf_bart,
    "x-transformers": XTransformersPairs,
}
