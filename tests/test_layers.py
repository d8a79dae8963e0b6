"""Layers against torch's, against the formulas of the papers, and against numbers by hand."""

import math
from functools import partial

import pytest
import torch
from conftest import from_lengths, large_init
from pretended import pretended_gpu
from torch import nn
from torch.nn import functional as F

from minitransformer import Config, MultiHeadAttention, causal_mask, padding_mask
from minitransformer.cache import Cache
from minitransformer.config import STYLES, Style
from minitransformer.embedding import Embedding
from minitransformer.kernels import KERNELS
from minitransformer.layers import (
    ACTIVATIONS as ACTIVATION_NAMES,
)
from minitransformer.layers import (
    DecoderLayer,
    EncoderLayer,
    LMHead,
    PostNorm,
    PreNorm,
    Stack,
    make_attention,
    make_norm,
    select,
)
from minitransformer.masks import PreparedMask
from minitransformer.positions import (
    LearnedPositions,
    RotaryPositions,
    SinusoidalPositions,
    position_angles,
    rotate,
    token_positions,
)

LENGTHS, LENGTH = (2, 6, 4), 6  # torch's layers cannot take a row of padding alone
SOURCE_LENGTHS, SOURCE_LENGTH = (3, 1, 5), 5
ACTIVATIONS = {"relu": F.relu, "gelu": F.gelu, "gelu_tanh": partial(F.gelu, approximate="tanh")}


def config(style="vanilla", **numbers) -> Config:
    return Config(**{"vocab_size": 23, "d_model": 16, "d_ff": 24, "style": style} | numbers)


def normal(*shape, device="cpu", dtype=torch.float64) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64).to(device, dtype)


# ---- blocks against torch's --------------------------------------------------------------------


@pytest.fixture(params=["post-relu", "post-gelu", "pre-relu", "pre-gelu", "pre-gelu_tanh"])
def style(request, monkeypatch) -> Style:
    residual, activation = request.param.split("-")
    style = Style("layer", residual, activation, "learned")
    monkeypatch.setitem(STYLES, "torch's", style)
    return style


def torch_layer(kind: type[nn.Module], style: Style, device) -> nn.Module:
    return kind(
        d_model=16,
        nhead=4,
        dim_feedforward=24,
        dropout=0.0,
        activation=ACTIVATIONS[style.feed_forward],
        layer_norm_eps=1e-3,
        norm_first=style.residual == "pre",
        batch_first=True,
        dtype=torch.float64,
        device=device,
    )


def our_layer(kind: type[nn.Module], device) -> nn.Module:
    return large_init(kind(config("torch's", norm_eps=1e-3)).double().to(device))


def same_attention(ours, theirs):
    """Which of our parameters, one under the other, are which of torch's."""
    qkv = (ours.query, ours.key, ours.value)
    yield [part.weight for part in qkv], theirs.in_proj_weight
    yield [part.bias for part in qkv], theirs.in_proj_bias
    yield from same_module(ours.output, theirs.out_proj)


def same_module(ours, theirs):
    yield [ours.weight], theirs.weight
    yield [ours.bias], theirs.bias


def same_layer(ours, theirs):
    yield from same_attention(ours.attention, theirs.self_attn)
    yield from same_module(ours.attention_residual.norm, theirs.norm1)
    yield from same_module(ours.feed_forward.widen, theirs.linear1)
    yield from same_module(ours.feed_forward.narrow, theirs.linear2)
    if isinstance(ours, DecoderLayer):
        yield from same_attention(ours.cross_attention, theirs.multihead_attn)
        yield from same_module(ours.cross_attention_residual.norm, theirs.norm2)
        yield from same_module(ours.feed_forward_residual.norm, theirs.norm3)
    else:
        yield from same_module(ours.feed_forward_residual.norm, theirs.norm2)


def assert_same_layer(ours, theirs, our_output, their_output, inputs, real):
    """Equal outputs at real tokens, and equal gradients for inputs and for every parameter."""
    torch.testing.assert_close(our_output[real], their_output[real], rtol=1e-9, atol=1e-9)
    projection = torch.randn_like(our_output[real])
    gradients = []
    for output in (our_output, their_output):
        for tensor in inputs:
            tensor.grad = None
        (output[real] * projection).sum().backward()
        gradients.append([tensor.grad for tensor in inputs])
    for our_parts, theirs_whole in same_layer(ours, theirs):
        gradients[0].append(torch.cat([part.grad for part in our_parts]))
        gradients[1].append(theirs_whole.grad)
    assert len(gradients[0]) > len(inputs)
    for our_gradient, their_gradient in zip(*gradients, strict=True):
        torch.testing.assert_close(our_gradient, their_gradient, rtol=1e-9, atol=1e-9)


def copy_parameters(ours, theirs):
    with torch.no_grad():
        for our_parts, theirs_whole in same_layer(ours, theirs):
            theirs_whole.copy_(torch.cat([*our_parts]))
    count = sum(p.numel() for p in ours.parameters())
    assert count == sum(p.numel() for p in theirs.parameters())


@pytest.mark.parametrize("causal", [False, True])
def test_encoder_layer_equals_torch(style, causal, device):
    ours, theirs = (
        our_layer(EncoderLayer, device),
        torch_layer(nn.TransformerEncoderLayer, style, device),
    )
    copy_parameters(ours, theirs)
    x = normal(3, LENGTH, 16, device=device).requires_grad_()
    real = from_lengths(LENGTHS, LENGTH, device=device)
    mask = padding_mask(real)
    if causal:
        mask = mask & causal_mask(LENGTH, device=device)
    not_causal = ~causal_mask(LENGTH, device=device)[0, 0] if causal else None
    our_output = ours(x, mask, None)
    their_output = theirs(x, src_mask=not_causal, src_key_padding_mask=real == 0)
    assert_same_layer(ours, theirs, our_output, their_output, [x], real != 0)


def test_decoder_layer_equals_torch(style, device):
    ours, theirs = (
        our_layer(DecoderLayer, device),
        torch_layer(nn.TransformerDecoderLayer, style, device),
    )
    copy_parameters(ours, theirs)
    x = normal(3, LENGTH, 16, device=device).requires_grad_()
    memory = normal(3, SOURCE_LENGTH, 16, device=device).requires_grad_()
    real = from_lengths(LENGTHS, LENGTH, device=device)
    real_source = from_lengths(SOURCE_LENGTHS, SOURCE_LENGTH, device=device)
    causal = causal_mask(LENGTH, device=device)
    our_output = ours(x, padding_mask(real) & causal, None, memory, padding_mask(real, real_source))
    their_output = theirs(
        x,
        memory,
        tgt_mask=~causal[0, 0],
        tgt_key_padding_mask=real == 0,
        memory_key_padding_mask=real_source == 0,
    )
    assert_same_layer(ours, theirs, our_output, their_output, [x, memory], real != 0)


@pytest.mark.parametrize("attention", ["auto", "reference"])
@pytest.mark.parametrize("name", STYLES)
def test_stack_is_its_layers_then_the_final_norm_of_pre_norm(name, attention):
    numbers = config(name, attention=attention)
    stack = large_init(Stack(numbers, EncoderLayer, 3).double())
    x, mask = normal(2, 5, 16), causal_mask(5)
    rotation = RotaryPositions(numbers)(x, torch.arange(5).expand(2, 5))[1]
    rotation = rotation if STYLES[name].positions == "rotary" else None
    expected = x
    for i in range(3):
        expected = stack.layers[i](expected, mask, rotation)
    assert isinstance(stack.norm, nn.Identity) == (STYLES[name].residual == "post")
    expected = stack.norm(expected)
    assert len(stack.layers) == 3
    assert torch.equal(stack(x, mask, rotation), expected)


@pytest.mark.parametrize(
    ("name", "biases"), [("bert", "query key value output"), ("qwen2", "query key value")]
)
def test_the_projections_of_attention_have_the_biases_of_the_style(name, biases):
    names = [n for n, _ in make_attention(config(name), None).named_parameters()]
    assert [n for n in names if n.endswith(".bias")] == [f"{part}.bias" for part in biases.split()]


@pytest.mark.parametrize(("layer", "count"), [(EncoderLayer, 2), (DecoderLayer, 4)])
def test_every_attention_of_a_stack_has_its_kernel(layer, count):
    stack = Stack(config(attention="tiled"), layer, 2)
    found = [part.kernel for part in stack.modules() if isinstance(part, MultiHeadAttention)]
    assert found == [KERNELS["tiled"]] * count


def test_a_stack_reads_its_masks_once_for_all_layers():
    stack, x, masks = Stack(config(), DecoderLayer, 3).double(), normal(2, 5, 16), []
    for layer in stack.layers:
        layer.register_forward_pre_hook(lambda _, given: masks.append((given[1], given[4])))
    stack(x, causal_mask(5), None, x[:, :3], causal_mask(5)[..., :3])
    assert all(isinstance(mask, PreparedMask) for mask in masks[0])
    assert all(mask is first for pair in masks for mask, first in zip(pair, masks[0], strict=True))


@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_recomputing_the_layers_changes_nothing_but_what_is_kept(dropout):
    stack, kept, gradients = Stack(config(dropout=dropout), EncoderLayer, 3).double(), [], []
    x, projection = normal(2, 5, 16), normal(2, 5, 16)
    assert stack.recompute is False  # unless it is asked for
    for stack.recompute in (False, True):
        sizes = []
        with torch.autograd.graph.saved_tensors_hooks(
            lambda x, sizes=sizes: sizes.append(x.numel()) or x, lambda x: x
        ):
            torch.manual_seed(1)
            output = stack(x, causal_mask(5), None)
        gradients.append(torch.autograd.grad((output * projection).sum(), [*stack.parameters()]))
        kept.append(sum(sizes))
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))
    assert kept[1] < 0.5 * kept[0]


@pytest.mark.parametrize("kind", [EncoderLayer, DecoderLayer])
def test_the_queries_and_keys_of_self_attention_are_rotated(kind):
    numbers = config("llama")
    layer, rotary = large_init(kind(numbers).double()), RotaryPositions(numbers)
    x, memory, mask = normal(2, 5, 16), normal(2, 3, 16), causal_mask(5)
    source = (memory, mask[..., :3]) if kind is DecoderLayer else ()

    def output(positions):
        rotation = rotary(x, positions.expand(2, 5))[1]
        return layer(x, mask, rotation, *source)

    positions = torch.arange(5)
    torch.testing.assert_close(output(positions + 7), output(positions))  # distances alone count
    assert (output(2 * positions) - output(positions))[:, 1:].abs().min() > 1e-6


@pytest.mark.parametrize("at", [None, [7, 0, 7]])
def test_select_takes_tokens_of_all_rows(at):
    x = normal(2, 5, 3, 4)
    found = select(x, None if at is None else torch.tensor(at))
    assert torch.equal(found, x if at is None else torch.stack([x[1, 2], x[0, 0], x[1, 2]]))


@pytest.mark.parametrize(
    ("layer", "count"), [(EncoderLayer, 3), (DecoderLayer, 3), (EncoderLayer, 0)]
)
def test_the_last_layer_of_a_stack_computes_what_is_selected(layer, count):
    stack, x, widths = large_init(Stack(config(), layer, count).double()), normal(2, 5, 16), []
    for part in stack.layers:
        part.feed_forward.register_forward_hook(lambda _, x, y: widths.append(y.shape[:-1]))
    memory = (x[:, :3], causal_mask(5)[..., :3]) if layer is DecoderLayer else ()
    at = torch.tensor([7, 0])
    found = stack(x, causal_mask(5), None, *memory, at=at)
    assert widths == [(2, 5), (2, 5), (2,)][3 - count :]
    torch.testing.assert_close(found, select(stack(x, causal_mask(5), None, *memory), at))


@pytest.mark.parametrize("kind", [EncoderLayer, DecoderLayer])
def test_every_attention_of_a_stack_keeps_what_it_reads_in_the_cache(kind):
    stack, x, mask = large_init(Stack(config(), kind, 2).double()), normal(2, 5, 16), causal_mask(5)
    cache = Cache()

    def output(rows, *cache):
        source = (x[:, :3], mask[:, :, rows, :3]) if kind is DecoderLayer else (None, None)
        return stack(x[:, rows], mask[:, :, rows, : rows.stop], None, *source, *cache)

    pieces = [output(slice(t, t + 1), cache) for t in range(5)]
    torch.testing.assert_close(torch.cat(pieces, dim=1), output(slice(0, 5)))
    attentions = {part for part in stack.modules() if isinstance(part, MultiHeadAttention)}
    assert cache.lengths.keys() == attentions


def test_the_head_is_a_projection_which_bert_transforms_for():
    x, plain, bert = normal(2, 5, 16), *(LMHead(config(n)).double() for n in ("vanilla", "bert"))
    assert torch.equal(plain(x), F.linear(x, plain.projection.weight))
    linear, norm = large_init(bert).transform.linear, bert.transform.norm
    assert torch.equal(bert(x), bert.projection(norm(F.gelu(linear(x)))))
    assert (plain.projection.bias is None, bert.projection.bias is None) == (True, False)
    assert plain(x).shape == bert(x).shape == (2, 5, 23)


# ---- norms, residuals, feed-forwards -----------------------------------------------------------


@pytest.mark.parametrize("eps", [0.1, 1e-5])
def test_layer_norm_is_its_formula(eps, device):
    norm = large_init(make_norm(config("vanilla", norm_eps=eps)).double().to(device))
    x = normal(3, 5, 16, device=device)
    mean = x.sum(-1, keepdim=True) / 16
    variance = ((x - mean) ** 2).sum(-1, keepdim=True) / 16
    expected = (x - mean) / (variance + eps).sqrt() * norm.weight + norm.bias
    torch.testing.assert_close(norm(x), expected)


@pytest.mark.parametrize("eps", [0.1, 1e-5])
def test_rms_norm_is_its_formula(eps, device):
    norm = large_init(make_norm(config("llama", norm_eps=eps)).double().to(device))
    x = normal(3, 5, 16, device=device)
    expected = x / ((x**2).sum(-1, keepdim=True) / 16 + eps).sqrt() * norm.weight
    torch.testing.assert_close(norm(x), expected)


def test_post_norm_normalises_the_sum_and_pre_norm_the_sublayers_input():
    x, post, pre = normal(2, 3, 16), PostNorm(config()).double(), PreNorm(config()).double()
    large_init(post), large_init(pre)
    assert torch.equal(post(x, torch.sin), post.norm(x + x.sin()))
    assert torch.equal(pre(x, torch.sin), x + pre.norm(x).sin())


@pytest.mark.parametrize("residual", [PostNorm, PreNorm])
def test_residual_drops_what_the_sublayer_adds_and_only_in_training(residual):
    block = residual(config(dropout=0.5))
    block.norm = nn.Identity()
    x = torch.full((4, 8, 16), 3.0)
    assert set(block(x, torch.ones_like).unique().tolist()) == {3.0, 5.0}  # 3 + 0, 3 + 1 / 0.5
    assert torch.equal(block.eval()(x, torch.ones_like), x + 1.0)


def bend(name: str, x: torch.Tensor) -> torch.Tensor:
    """The activations, written out."""
    if name == "relu":
        return x * (x > 0)
    if name == "gelu":  # x Φ(x)
        return x * (1 + torch.erf(x / math.sqrt(2))) / 2
    if name == "gelu_tanh":  # Hendrycks and Gimpel 2016, arXiv:1606.08415, section 2
        return x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))) / 2
    return x / (1 + torch.exp(-x))  # SiLU


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("name", ACTIVATION_NAMES)
def test_feed_forward_is_its_formula(name, bias, monkeypatch, device):
    monkeypatch.setitem(STYLES, "test", Style("layer", "post", name, "learned", bias))
    block = large_init(EncoderLayer(config("test")).feed_forward.double().to(device))
    x = normal(3, 5, 16, device=device)

    def affine(linear, x):
        assert (linear.bias is not None) == bias
        product = torch.tensordot(x, linear.weight, dims=([-1], [1]))
        return product + linear.bias if bias else product

    wide = affine(block.widen, x)
    assert wide.shape == (3, 5, 24)
    bent = bend(name, affine(block.gate, x)) * wide if name == "swiglu" else bend(name, wide)
    torch.testing.assert_close(block(x), affine(block.narrow, bent))


# ---- positions ---------------------------------------------------------------------------------


@pytest.mark.parametrize("d_model", [6, 7])
def test_sinusoidal_table_is_the_papers(d_model, device):
    positions = SinusoidalPositions(config(d_model=d_model, num_heads=1, max_length=50)).to(device)
    index = torch.tensor([[0, 3, 49], [7, 0, 1]], device=device)
    output, rotation = positions(torch.ones(2, 3, d_model, device=device), index)
    assert rotation is None
    for row in range(2):
        for column in range(3):
            position = index[row, column].item()
            for i in range(d_model):
                angle = position / 10_000 ** (i // 2 * 2 / d_model)
                expected = 1 + (math.cos(angle) if i % 2 else math.sin(angle))
                assert output[row, column, i].item() == pytest.approx(expected, abs=3e-7)


def test_sinusoidal_table_is_no_parameter_and_in_no_checkpoint():
    positions = SinusoidalPositions(config())
    assert not list(positions.parameters())
    assert not positions.state_dict()


def test_learned_positions_add_the_row_of_each_position(device):
    positions = large_init(LearnedPositions(config(max_length=9)).double().to(device))
    x = normal(2, 3, 16, device=device)
    output, rotation = positions(x, torch.tensor([[0, 8, 2], [2, 2, 0]], device=device))
    assert rotation is None
    assert positions.table.weight.shape == (9, 16)
    assert torch.equal(output[0, 1], x[0, 1] + positions.table.weight[8])
    assert torch.equal(output[1, 2], x[1, 2] + positions.table.weight[0])


def rotated(x: torch.Tensor, positions: list[int], theta=10_000.0) -> torch.Tensor:
    numbers = config("llama", d_model=4 * x.shape[-1], num_heads=4, rope_theta=theta)
    index = torch.tensor(positions, device=x.device).expand(len(x), -1)
    same, rotation = RotaryPositions(numbers)(x, index)
    assert same is x  # rotary positions add nothing to the embedding
    return rotate(x, rotation)


@pytest.mark.parametrize("theta", [10_000.0, 500.0])
def test_rotary_is_multiplication_by_a_unit_complex_number(theta, device):
    x, positions = normal(2, 3, 4, 8, device=device), [0, 5, 1, 1000]
    turned = rotated(x, positions, theta)
    for t, position in enumerate(positions):
        for i in range(4):
            angle = torch.tensor(position * theta ** (-i / 4), dtype=torch.float64, device=device)
            unit = torch.polar(torch.ones_like(angle), angle)
            expected = torch.complex(x[:, :, t, i], x[:, :, t, i + 4]) * unit
            torch.testing.assert_close(turned[:, :, t, i], expected.real)
            torch.testing.assert_close(turned[:, :, t, i + 4], expected.imag)


def test_rotary_scores_depend_on_the_distance_alone(device):
    query, key = normal(1, 2, 1, 8, device=device), normal(1, 2, 1, 8, device=device)

    def score(query_position, key_position):
        return (rotated(query, [query_position]) * rotated(key, [key_position])).sum(-1)

    torch.testing.assert_close(score(7, 3), score(104, 100))
    torch.testing.assert_close(score(5, 5), (query * key).sum(-1))
    assert not torch.allclose(score(7, 3), score(3, 7))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_rotary_angles_are_float32_or_better_and_x_keeps_its_dtype(dtype, device):
    x = normal(1, 2, 3, 8, device=device, dtype=dtype)
    _, (cos, sin) = RotaryPositions(config("llama"))(x, torch.tensor([[0, 1, 9001]], device=device))
    assert cos.dtype == sin.dtype == torch.promote_types(dtype, torch.float32)
    assert rotated(x, [0, 1, 9001]).dtype == dtype
    assert cos[0, 0, 2, 0].item() == pytest.approx(math.cos(9001), abs=1e-7)


def test_position_angles_are_exact_far_out(device):
    angles = position_angles(torch.tensor([100_000], device=device), 6, 10_000.0)
    assert angles.dtype == torch.float64
    expected = [100_000 / 10_000 ** (2 * i / 6) for i in range(3)]
    assert angles[0].tolist() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("halves", [False, True])
def test_sinusoidal_tables_alternate_or_come_in_halves(halves):
    """And hold real numbers, even where a model is made without any."""
    with torch.device("meta"):
        table = SinusoidalPositions(config(max_length=9), halves).table
    sines, cosines = table.chunk(2, dim=1) if halves else (table[:, ::2], table[:, 1::2])
    angles = position_angles(torch.arange(9), 16, 10_000.0)
    assert (table.device.type, table.dtype) == ("cpu", torch.float32)
    assert torch.equal(sines, angles.sin().float())
    assert torch.equal(cosines, angles.cos().float())


def test_positions_are_where_their_tokens_are_and_without_float64_where_there_is_none():
    mask = torch.tensor([[0, 0, 1, 1, 0, 1], [1, 1, 1, 2, 2, 0]])
    wanted = token_positions(mask)
    angles = position_angles(wanted, 6, 100.0)
    with pretended_gpu("mps"):
        found = token_positions(mask.to("mps"))
        found_angles = position_angles(found, 6, 100.0)
        assert found.device.type == found_angles.device.type == "mps"
        assert found_angles.dtype == torch.float32
        found, found_angles = found.cpu(), found_angles.cpu()
    assert torch.equal(found, wanted)
    torch.testing.assert_close(found_angles.double(), angles, rtol=2**-23, atol=0)


# ---- embedding ---------------------------------------------------------------------------------


@pytest.fixture(params=STYLES)
def embedding(request, device) -> Embedding:
    numbers = config(request.param, max_length=5)
    return large_init(Embedding(numbers).double().to(device))


def test_embedding_is_scaled_tokens_plus_positions_then_the_norm(embedding, device):
    ids = torch.tensor([[4, 22, 0]], device=device)
    real, index = torch.ones_like(ids), torch.arange(3, device=device).unsqueeze(0)
    expected = embedding.tokens.weight[ids]
    if isinstance(embedding.positions, SinusoidalPositions):  # vanilla
        expected = expected * 4.0
    expected, rotation = embedding.positions(expected, index)
    if (
        isinstance(embedding.positions, LearnedPositions)
        and embedding.norm.__class__ != nn.Identity
    ):
        expected = embedding.norm(expected)
    output, our_rotation = embedding(ids, real)
    assert torch.equal(output, expected)
    assert (rotation is None) == (our_rotation is None)


def test_only_the_embeddings_of_bert_and_bart_are_normalized():
    for name in STYLES:
        norm = Embedding(config(name)).norm
        expected = name in ("bert", "roberta", "distilbert", "bart")
        assert isinstance(norm, nn.LayerNorm) == expected


def test_embedded_padding_is_zero_before_the_norm(embedding, device):
    ids = torch.tensor([[4, 22, 7], [5, 6, 9]], device=device)
    real = torch.tensor([[0, 1, 1], [0, 0, 0]], device=device)
    seen = []
    embedding.norm.register_forward_hook(lambda norm, inputs, output: seen.append(inputs[0]))
    output, _ = embedding(ids, real)
    assert (seen[0][real == 0] == 0.0).all()
    if isinstance(embedding.norm, nn.Identity):
        assert (output[real == 0] == 0.0).all()


@pytest.mark.parametrize("pad_id", [22, -1, -100, 23, 10**9])
def test_padded_ids_do_not_matter_even_outside_the_vocabulary(embedding, pad_id, device):
    real = torch.tensor([[1, 1, 0], [0, 1, 0]], device=device)
    ids = torch.tensor([[4, 22, 0], [0, 3, 0]], device=device)
    expected, _ = embedding(ids, real)
    output, _ = embedding(ids.masked_fill(real == 0, pad_id), real)
    assert torch.equal(output, expected)


def test_positions_restart_at_each_document_and_skip_padding(embedding, device):
    ids = torch.tensor([[0, 7, 8, 7, 0, 8, 0]], device=device)
    documents = torch.tensor([[0, 1, 1, 2, 0, 2, 0]], device=device)
    packed, rotation = embedding(ids, documents)
    alone, rotation_alone = embedding(ids[:, 1:3], documents[:, 1:3])
    assert torch.equal(packed[:, 1:3], alone)
    assert torch.equal(packed[:, [3, 5]], alone)
    for ours, theirs in zip(rotation or (), rotation_alone or (), strict=True):
        assert torch.equal(ours[:, :, [3, 5]], theirs)


def test_embedding_takes_bool_masks_and_int32_ids(embedding, device):
    ids, real = torch.tensor([[4, 22, 0]], device=device), torch.ones(1, 3, device=device).long()
    assert torch.equal(embedding(ids.int(), real.bool())[0], embedding(ids, real)[0])


def test_embedding_drops_in_training_only():
    embedding = Embedding(config(dropout=0.5))
    ids, real = torch.randint(0, 23, (4, 9)), torch.ones(4, 9).long()
    dropped, _ = embedding(ids, real)
    whole, _ = embedding.eval()(ids, real)
    assert (dropped == 0.0).float().mean().item() == pytest.approx(0.5, abs=0.1)
    assert torch.equal(dropped[dropped != 0.0], 2 * whole[dropped != 0.0])


def test_padding_does_not_count_towards_max_length(embedding, device):
    real = torch.tensor([[0, 0, 1, 1, 0, 1, 1, 1], [1, 1, 1, 2, 2, 2, 2, 2]], device=device)
    output, _ = embedding(torch.zeros_like(real), real)
    assert output.shape == (2, 8, 16)


@pytest.mark.parametrize("real", [[1, 1, 1, 1, 1, 1], [0, 1, 1, 1, 1, 1, 1], [2] * 6 + [1]])
def test_sequences_longer_than_max_length_are_refused(embedding, real, device):
    real = torch.tensor([real], device=device)
    with pytest.raises(ValueError, match=r"has 6 tokens, more than max_length = 5: truncate it"):
        embedding(torch.zeros_like(real), real)


@pytest.mark.parametrize("segments", [None, [[0, 2, 1], [1, 1, 99]]])
def test_segments_are_added_to_the_tokens(segments, device):
    embedding = large_init(Embedding(config("gpt2", num_segments=3)).double().to(device))
    ids = torch.tensor([[4, 22, 0], [7, 8, 9]], device=device)
    real = torch.tensor([[1, 1, 1], [1, 1, 0]], device=device)
    segments = None if segments is None else torch.tensor(segments, device=device)
    added = torch.zeros_like(ids) if segments is None else segments.masked_fill(real == 0, 0)
    expected = embedding.tokens.weight[ids] + embedding.segments.weight[added]
    expected, _ = embedding.positions(expected, torch.arange(3, device=device).unsqueeze(0))
    output, _ = embedding(ids, real, segments)
    assert torch.equal(output, expected * real.unsqueeze(-1))


def test_padding_has_an_id_where_there_is_but_one():
    embedding = Embedding(config(vocab_size=1, num_segments=1))
    zeros, real = torch.zeros(1, 2).long(), torch.tensor([[1, 0]])
    assert embedding(zeros, real, zeros)[0].isfinite().all()


def test_segments_that_cannot_be_are_refused_by_the_embedding():
    ids, real = torch.zeros(1, 3).long(), torch.ones(1, 3).long()
    needed = r"^segment_ids need a model with segments: Config\(num_segments=2, \.\.\.\)$"
    with pytest.raises(ValueError, match=needed):
        Embedding(config())(ids, real, ids)
    message = r"^segment_ids must be in \[0, 2\), got 2 at row 0, position 1$"
    with pytest.raises(ValueError, match=message):
        Embedding(config(num_segments=2))(ids, real, torch.tensor([[0, 2, 1]]))


@pytest.mark.parametrize("wrong", [-1, 23])
def test_an_id_outside_the_vocabulary_is_named_with_its_place(wrong):
    embedding = Embedding(config())
    real = torch.tensor([[1, 1, 1], [0, 1, 1]])
    ids = torch.tensor([[0, 22, 3], [99, 4, wrong]])
    message = rf"must be in \[0, 23\), got {wrong} at row 1, position 2"
    with pytest.raises(ValueError, match=message):
        embedding(ids, real)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bool, torch.int16])
def test_ids_that_are_not_ids_are_refused(dtype):
    real = torch.ones(2, 3).long()
    with pytest.raises(TypeError, match=f"token ids must be int64 or int32, got {dtype}"):
        Embedding(config())(torch.ones(2, 3).to(dtype), real)


@pytest.mark.parametrize("shape", [(2, 4), (3, 3), (1, 3), (2, 1), (6,)])
def test_ids_and_mask_of_unequal_shapes_are_refused(shape):
    with pytest.raises(ValueError, match=r"must both be \(batch, length\), got .* and \(2, 3\)"):
        Embedding(config())(torch.zeros(shape).long(), torch.ones(2, 3).long())
