"""The three models: what a token may depend on, and nothing else, to the last bit.

Every check is a plain function of a model, so that the tests at the end of this page can take the
mask away from one layer at a time and demand that a check notices.
"""

import itertools
import json
from contextlib import ExitStack, contextmanager, nullcontext

import pytest
import torch
from conftest import PARTS, kinds_by_parts, large_init
from torch import nn
from torch.nn import functional as F

from minitransformer import (
    Config,
    CrossDecoder,
    DecoderOnly,
    EncoderDecoder,
    EncoderOnly,
    MultiHeadAttention,
    causal_mask,
    cross_entropy,
    next_token_labels,
    pack,
    pack_pairs,
    pad,
    pad_pairs,
    padding_mask,
    record_attention,
)
from minitransformer.cache import Cache
from minitransformer.embedding import Embedding
from minitransformer.kernels import linear_cross_entropy as head_loss_module
from minitransformer.kernels.linear_cross_entropy import linear_cross_entropy
from minitransformer.layers import EncoderLayer

VOCAB, WIDTH = 23, 16
KINDS = {"encoder": EncoderOnly, "decoder": DecoderOnly, "both": EncoderDecoder}
# Source and target of each row. Row 2 has a source of padding only, row 4 a target.
LENGTHS = ((2, 7, 0, 3, 5), (4, 1, 5, 2, 0))


def make_model(
    kind: str | type, parts: str = "vanilla", device="cpu", dtype=torch.float64, **numbers
):
    numbers = {"style": parts, "d_ff": 24, "max_length": 16} | PARTS[parts] | numbers
    torch.manual_seed(1)
    return large_init(KINDS.get(kind, kind)(Config(VOCAB, WIDTH, **numbers))).to(device, dtype)


@pytest.fixture(params=PARTS)
def parts(request) -> str:
    return request.param


@pytest.fixture(params=kinds_by_parts(*KINDS.values()))
def model(request, device):
    return make_model(*request.param, device)


@pytest.fixture(params=kinds_by_parts(DecoderOnly, EncoderDecoder))
def causal_model(request, device):
    return make_model(*request.param, device)


# ---- inputs ------------------------------------------------------------------------------------
# A model's arguments are (ids, mask) or (ids, mask, ids, mask); the last mask is the output's.


def tokens(lengths, seed=0) -> list[list[int]]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(VOCAB, (n,), generator=generator).tolist() for n in lengths]


def place(rows, length, where, device, filler=0):
    """Ids and mask of rows laid into `length` columns: to the right, to the left, or with holes."""
    ids = torch.full((len(rows), length), filler)
    mask = torch.zeros(len(rows), length).long()
    for i, row in enumerate(rows):
        columns = {
            "right": torch.arange(len(row)),  # padding on the right
            "left": torch.arange(length - len(row), length),
            "holes": torch.randperm(length)[: len(row)].sort().values,
        }[where]
        ids[i, columns] = torch.tensor(row).long()
        mask[i, columns] = 1
    return ids.to(device), mask.to(device)


def streams(model) -> list[list[list[int]]]:
    """The token sequences of each stream: a source, and a target if the model writes one."""
    count = 2 if isinstance(model, EncoderDecoder) else 1
    return [tokens(lengths, seed) for seed, lengths in enumerate(LENGTHS[:count])]


def inputs_of(model, where="right", extra=0, filler=0) -> tuple[torch.Tensor, ...]:
    device = model.head.projection.weight.device
    placed = [
        place(rows, max(map(len, rows)) + extra, where, device, filler) for rows in streams(model)
    ]
    return sum(placed, ())


def logits_of(model, inputs) -> torch.Tensor:
    """The logits at real tokens, row by row: the same shape wherever the padding is."""
    return model(*inputs)[inputs[-1] != 0]


def logits_alone(model) -> torch.Tensor:
    """What each sequence gives by itself, without any padding."""
    device = model.head.projection.weight.device
    alone = []
    for row in zip(*streams(model), strict=True):
        inputs = sum((place([stream], len(stream), "right", device) for stream in row), ())
        alone.append(logits_of(model, inputs))
    return torch.cat(alone)


def gradients_of(model, inputs) -> dict[str, torch.Tensor]:
    """Parameter gradients of a random projection (after a norm, squares sum to a constant)."""
    logits = logits_of(model, inputs)
    generator = torch.Generator().manual_seed(5)
    projection = torch.randn(logits.shape, generator=generator).to(logits)
    model.zero_grad()
    (logits * projection).sum().backward()
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


@contextmanager
def embedded(model, change):
    """While the block runs, the token embedding of the i-th stream is change(i, embedding)."""
    count = itertools.count()
    with ExitStack() as hooks:
        for part in model.children():  # a source has an embedding of its own
            if isinstance(part, Embedding):
                hook = part.tokens.register_forward_hook(
                    lambda module, inputs, output: change(next(count), output)
                )
                hooks.callback(hook.remove)
        yield


def poisoned(model, inputs, value):
    """While the block runs, the token embedding of padding is `value`."""
    masks = inputs[1::2]
    return embedded(model, lambda i, x: x.masked_fill((masks[i] == 0).unsqueeze(-1), value))


def assert_same_bits(ours, theirs):
    assert ours.shape == theirs.shape
    assert torch.equal(ours, theirs)


def assert_same_gradients(ours, theirs):
    """Equal to rounding, measured by the largest: the true gradient of a key bias is 0."""
    assert ours.keys() == theirs.keys()
    largest = max(gradient.abs().max() for gradient in theirs.values())
    for name, gradient in theirs.items():
        assert (ours[name] - gradient).abs().max() < 1e-11 * largest, name


# ---- padding -----------------------------------------------------------------------------------


def check_amount_of_padding(model, where):
    """Every row gives what it gives alone, wherever and however much padding there is."""
    alone = logits_alone(model)
    for extra in (0, 1, 3, 9):
        padded = logits_of(model, inputs_of(model, where, extra))
        torch.testing.assert_close(padded, alone, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("where", ["right", "left", "holes"])
def test_amount_of_padding_changes_nothing(model, where):
    check_amount_of_padding(model, where)


@pytest.mark.parametrize("where", ["right", "left", "holes"])
def test_parameter_gradients_do_not_depend_on_padding(model, where):
    expected = gradients_of(model, inputs_of(model))
    assert_same_gradients(gradients_of(model, inputs_of(model, where, extra=3)), expected)


def test_every_parameter_learns(model):
    for name, gradient in gradients_of(model, inputs_of(model)).items():
        if not name.endswith("key.bias"):  # the softmax does not see it
            assert (gradient != 0.0).any(), name
    assert len(gradients_of(model, inputs_of(model))) == len(list(model.parameters()))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("where", ["right", "left"])
def test_content_of_padding_changes_no_bit(model, where, dtype):
    model = model.to(dtype)
    inputs = inputs_of(model, where, extra=2)
    expected = logits_of(model, inputs)
    assert_same_bits(logits_of(model, inputs_of(model, where, extra=2, filler=17)), expected)
    for value in (3.0, -1e4):
        with poisoned(model, inputs, value):
            assert_same_bits(logits_of(model, inputs), expected)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), 3e38])
@pytest.mark.parametrize("where", ["right", "left"])
def test_poison_in_embedded_padding_reaches_no_output_and_no_gradient(model, where, value):
    inputs = inputs_of(model.float(), where, extra=2)
    expected, expected_gradients = logits_of(model, inputs), gradients_of(model, inputs)
    with poisoned(model, inputs, value):
        assert_same_bits(logits_of(model, inputs), expected)
    with poisoned(model, inputs, value):
        for name, gradient in gradients_of(model, inputs).items():
            assert_same_bits(gradient, expected_gradients[name])


def test_poison_in_the_embedding_of_the_padding_id_reaches_nothing(model):
    """Padding is looked up at id 0: that row of the table is NaN, and no real token uses it."""
    inputs = tuple(x if i % 2 else x.clamp(min=1) for i, x in enumerate(inputs_of(model, extra=2)))
    labels = inputs[-2].masked_fill(inputs[-1] == 0, -100)
    expected, expected_gradients = logits_of(model, inputs), gradients_of(model, inputs)
    loss = model.loss(*inputs, labels)
    with torch.no_grad():
        model.embedding.tokens.weight[0] = float("nan")
    assert_same_bits(logits_of(model, inputs), expected)
    assert_same_bits(model.loss(*inputs, labels), loss)
    for name, gradient in gradients_of(model, inputs).items():
        assert_same_bits(gradient, expected_gradients[name])


@pytest.mark.parametrize("where", ["right", "left"])
def test_gradient_to_padding_is_exactly_zero(model, where):
    inputs, leaves = inputs_of(model, where, extra=2), []

    def as_leaf(i, x):
        leaves.append(x.detach().requires_grad_())
        return leaves[i]

    with embedded(model, as_leaf):
        gradients_of(model, inputs)
    for leaf, mask in zip(leaves, inputs[1::2], strict=True):
        assert (leaf.grad[mask == 0] == 0.0).all()
        assert (leaf.grad[mask != 0] != 0.0).any(-1).sum() > 5


@pytest.mark.parametrize("where", ["right", "left"])
def test_output_keeps_its_length_and_is_zero_at_padding(model, where):
    inputs = inputs_of(model, where, extra=3)
    ids, mask = inputs[:2]
    assert model(*inputs).shape == (*inputs[-1].shape, VOCAB)
    model.head = nn.Identity()  # what is below it
    first, last = model.encode(ids, mask), model(*inputs)
    assert first.shape == (*ids.shape, WIDTH)
    for output, real in ((first, mask), (last, inputs[-1])):
        assert (output[real == 0] == 0.0).all()
        assert (output[real != 0] != 0.0).all()


def test_a_batch_of_padding_alone_gives_zeros_and_zero_gradients(model):
    inputs = tuple(torch.zeros_like(x) for x in inputs_of(model))
    model.head = nn.Identity()
    model(*inputs).sum().backward()
    assert (model(*inputs) == 0.0).all()
    for parameter in model.parameters():
        assert (parameter.grad == 0.0).all()


def test_a_row_of_padding_leaves_its_neighbours_alone(model):
    inputs = inputs_of(model)
    padding = tuple(torch.cat((x, torch.zeros_like(x[:2]))) for x in inputs)
    torch.testing.assert_close(logits_of(model, padding), logits_of(model, inputs))
    assert_same_gradients(gradients_of(model, padding), gradients_of(model, inputs))


def test_neighbours_in_the_batch_do_not_matter(model):
    inputs = inputs_of(model)
    order = torch.tensor([3, 1, 4, 0, 2])
    torch.testing.assert_close(model(*(x[order] for x in inputs)), model(*inputs)[order])


def test_training_without_dropout_equals_evaluation(model):
    inputs = inputs_of(model)
    trained = model.train()(*inputs)
    assert_same_bits(model.eval()(*inputs), trained)


def test_bool_masks_equal_int_masks(model):
    inputs = inputs_of(model, "left")
    as_bool = tuple(x.bool() if i % 2 else x for i, x in enumerate(inputs))
    assert_same_bits(model(*as_bool), model(*inputs))


def test_no_step_of_the_backward_pass_makes_a_nan(model):
    inputs = inputs_of(model, "left", extra=2)
    with torch.autograd.set_detect_anomaly(True):
        gradients = gradients_of(model, inputs)
    assert all(gradient.isfinite().all() for gradient in gradients.values())


# ---- causality ---------------------------------------------------------------------------------


def check_causality(model):
    """What comes later changes no bit of what came before."""
    *source, ids, mask = inputs_of(model, "left", extra=1)
    expected = model(*source, ids, mask)
    for t in range(1, ids.shape[1]):
        later = ids.clone()
        later[:, t:] = (later[:, t:] + 5) % VOCAB
        output = model(*source, later, mask)
        assert_same_bits(output[:, :t], expected[:, :t])
        assert (output[:, t:][mask[:, t:] != 0] != expected[:, t:][mask[:, t:] != 0]).any()


def test_the_future_changes_no_bit_of_the_past(causal_model):
    check_causality(causal_model)
    check_causality(causal_model.to(torch.bfloat16))


@pytest.mark.parametrize("where", ["right", "left"])
def test_a_prefix_gives_what_it_gives_in_the_whole(causal_model, where):
    *source, ids, mask = inputs_of(causal_model, where)
    whole = causal_model(*source, ids, mask)
    for t in range(1, ids.shape[1]):
        prefix = causal_model(*source, ids[:, :t], mask[:, :t])
        torch.testing.assert_close(prefix, whole[:, :t], rtol=1e-10, atol=1e-10)


# ---- who depends on whom -----------------------------------------------------------------------


def dependence(model, inputs) -> list[torch.Tensor]:
    """For each stream (B,Q,K) bool: does the output at q have a gradient to the embedding at k?"""
    leaves = []

    def as_leaf(i, x):
        leaves.append(x.detach().requires_grad_())
        return leaves[i]

    with embedded(model, as_leaf):
        logits = model(*inputs)
    rows = []
    for q in range(logits.shape[1]):
        projection = torch.randn_like(logits[:, q])
        total = (logits[:, q] * projection).sum()
        gradients = torch.autograd.grad(total, leaves, retain_graph=True)
        rows.append([(gradient != 0.0).any(-1) for gradient in gradients])
    return [torch.stack(columns, dim=1) for columns in zip(*rows, strict=True)]


def allowed(model, inputs) -> list[torch.Tensor]:
    """For each stream (B,Q,K) bool: may the output at q depend on the token at k?"""
    mask = inputs[-1]
    own = padding_mask(mask)
    if not isinstance(model, EncoderOnly):
        own = own & causal_mask(mask.shape[1], device=mask.device)
    masks = [own]
    if isinstance(model, EncoderDecoder):
        masks = [padding_mask(mask, inputs[1]), own]
    return [mask[:, 0] for mask in masks]


@pytest.mark.parametrize("where", ["right", "left", "holes"])
def test_dependence_pattern_is_the_mask_exactly(model, where):
    inputs = inputs_of(model, where, extra=1)
    for pattern, expected in zip(dependence(model, inputs), allowed(model, inputs), strict=True):
        assert torch.equal(pattern, expected)


def masks_of_layers(model, inputs) -> dict[str, torch.Tensor]:
    """The mask that each attention of the model must have been given, by its name."""
    *cross, own = allowed(model, inputs)
    masks = {}
    for name, module in model.named_modules():
        if isinstance(module, MultiHeadAttention):
            if "cross" in name:
                masks[name] = cross[0]
            elif name.startswith("encoder") and cross:
                masks[name] = padding_mask(inputs[1])[:, 0]
            else:
                masks[name] = own
    return {name: mask.unsqueeze(1) for name, mask in masks.items()}


@pytest.mark.parametrize("where", ["right", "left", "holes"])
def test_attention_is_positive_where_allowed_and_zero_elsewhere(model, where):
    inputs = inputs_of(model, where, extra=1)
    with record_attention(model) as maps:
        model(*inputs)
    masks = masks_of_layers(model, inputs)
    assert maps.keys() == masks.keys()
    assert len(maps) == (6 if isinstance(model, EncoderDecoder) else 2)
    for name, mask in masks.items():
        assert maps[name].shape[1] == 4
        assert torch.equal(maps[name] > 0.0, mask.expand_as(maps[name])), name


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, "autocast"])
def test_forbidden_attention_is_exactly_zero_in_every_dtype(model, dtype):
    autocast = dtype == "autocast"
    model = model.to(torch.float32 if autocast else dtype)
    inputs = inputs_of(model, "left", extra=1)
    device = inputs[0].device.type
    context = torch.autocast(device, torch.bfloat16) if autocast else nullcontext()
    with record_attention(model) as maps, context:
        logits = model(*inputs)
    assert logits.isfinite().all()
    for name, mask in masks_of_layers(model, inputs).items():
        assert (maps[name][~mask.expand_as(maps[name])] == 0.0).all()
        sums = maps[name].double().sum(-1)[mask.any(-1).expand(maps[name].shape[:-1])]
        torch.testing.assert_close(sums, torch.ones_like(sums), rtol=0.0, atol=2e-2)


# ---- packed documents --------------------------------------------------------------------------

DOCUMENTS = tokens((3, 5, 1, 4, 2, 6), seed=7)
TARGETS = tokens((2, 1, 4, 3, 0, 5), seed=8)


def padded_and_packed(model):
    """The same documents one in a row and several in a row, with labels, as keyword arguments."""
    device = model.head.projection.weight.device
    if isinstance(model, EncoderDecoder):
        padded = pad_pairs(DOCUMENTS, TARGETS, bos_id=1, eos_id=2)
        packed = pack_pairs(DOCUMENTS, TARGETS, length=10, bos_id=1, eos_id=2)
    else:
        labels = [[*row[1:], -100] for row in DOCUMENTS]
        padded, packed = pad(DOCUMENTS, labels=labels), pack(DOCUMENTS, 10, labels=labels)
    assert len(packed["labels"]) < len(padded["labels"])
    return dict(padded.to(device)), dict(packed.to(device))


def loss_and_gradients(model, batch):
    model.zero_grad()
    loss = model.loss(**batch)
    loss.backward()
    return loss, {n: p.grad.clone() for n, p in model.named_parameters()}


def test_packed_documents_give_the_loss_and_gradients_of_padded_ones(model):
    (padded_loss, padded), (packed_loss, packed) = (
        loss_and_gradients(model, batch) for batch in padded_and_packed(model)
    )
    torch.testing.assert_close(packed_loss, padded_loss, rtol=1e-12, atol=0.0)
    assert_same_gradients(packed, padded)


def test_other_documents_of_the_row_change_no_bit(model):
    _, batch = padded_and_packed(model.float())
    inputs = [x for name, x in batch.items() if name != "labels" and x is not None]
    assert inputs[-1].max() >= 2
    changed = [
        x if i % 2 else torch.where(inputs[i + 1] == 2, (x + 3) % VOCAB, x)
        for i, x in enumerate(inputs)
    ]
    before, after = model(*inputs), model(*changed)
    assert_same_bits(after[inputs[-1] != 2], before[inputs[-1] != 2])
    assert (after[inputs[-1] == 2] != before[inputs[-1] == 2]).all()


# ---- the cache ---------------------------------------------------------------------------------


def in_pieces(model, inputs, sizes) -> torch.Tensor:
    """The logits, read piece by piece with a cache: each call is given only what is new."""
    *source, ids, mask = inputs
    memory = (model.encode(*source), source[1]) if source else ()
    read = model.decode if source else model.encode
    cache, start, logits = Cache(), 0, []
    for size in sizes:
        end = start + size
        logits.append(model.head(read(ids[:, start:end], mask[:, :end], *memory, cache=cache)))
        start = end
    assert start == ids.shape[1]
    return torch.cat(logits, dim=1)


@pytest.mark.parametrize("where", ["right", "left", "holes"])
@pytest.mark.parametrize("sizes", ["one by one", "3 first", "all but one"])
def test_cached_logits_equal_those_without_a_cache(causal_model, where, sizes):
    inputs = inputs_of(causal_model, where, extra=2)
    length = inputs[-1].shape[1]
    pieces = {
        "one by one": [1] * length,
        "3 first": [3] + [1] * (length - 3),
        "all but one": [length - 1, 1],
    }[sizes]
    with torch.no_grad():
        found = in_pieces(causal_model, inputs, pieces)
        torch.testing.assert_close(found, causal_model(*inputs), rtol=1e-12, atol=1e-12)


def test_a_cache_keeps_no_nan_of_a_memorys_padding(parts, device):
    model = make_model("both", parts, device)
    *source, ids, mask = inputs_of(model)
    memory = model.encode(*source)
    poisoned = memory.masked_fill((source[1] == 0).unsqueeze(-1), float("nan"))
    assert poisoned.isnan().any()
    cache, wanted = Cache(), model.decode(ids, mask, memory, source[1])
    for start, end in ((0, 2), (2, 3), (3, ids.shape[1])):
        given = ids[:, start:end], mask[:, :end], poisoned, source[1]
        found = model.decode(*given, cache=cache)
        torch.testing.assert_close(found, wanted[:, start:end], rtol=1e-12, atol=1e-12)


def test_a_cache_holds_keys_and_values_and_the_source_is_read_once(causal_model):
    *source, ids, mask = inputs_of(causal_model, "left")
    memory = (causal_model.encode(*source), source[1]) if source else ()
    read = causal_model.decode if source else causal_model.encode
    cache, calls = Cache(), []
    layers = [m for m in causal_model.decoder.modules() if isinstance(m, MultiHeadAttention)]
    for layer in layers:
        layer.key.register_forward_hook(lambda _, inputs, keys: calls.append(keys.shape[1]))
    read(ids[:, :4], mask[:, :4], *memory, cache=cache)
    calls.clear()
    read(ids[:, 4:5], mask[:, :5], *memory, cache=cache)
    assert set(cache.buffers) == set(layers)
    assert calls == [1] * causal_model.config.num_layers  # one new key, none of the source
    for key, value in map(cache.__getitem__, layers):
        assert key.shape == value.shape
        assert key.shape[1] == causal_model.config.num_kv_heads
        assert key.shape[2] in (5, *[x.shape[1] for x in source])


def test_ids_that_the_mask_does_not_end_with_are_refused(causal_model):
    *source, ids, mask = inputs_of(causal_model)
    memory = (causal_model.encode(*source), source[1]) if source else ()
    read = causal_model.decode if source else causal_model.encode
    cache = Cache()
    read(ids[:, :4], mask[:, :4], *memory, cache=cache)
    with pytest.raises(ValueError, match="mask must be"):
        read(ids[:, 5:6], mask[:, :6], *memory, cache=cache)  # token 4 was never read


# ---- the loss ----------------------------------------------------------------------------------


def labels_of(inputs) -> torch.Tensor:
    """A class at some real tokens, -100 elsewhere."""
    labels = (inputs[-2] * 7 + 3) % VOCAB
    chosen = (inputs[-1] != 0) & (
        torch.arange(labels.numel(), device=labels.device).view_as(labels) % 3 != 0
    )
    return labels.masked_fill(~chosen, -100)


def test_loss_is_the_cross_entropy_of_the_logits(model):
    inputs = inputs_of(model, "left", extra=1)
    labels = labels_of(inputs)
    logits = model(*inputs)
    expected = F.cross_entropy(logits.flatten(0, 1), labels.flatten())
    loss = model.loss(*inputs, labels)
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(loss, cross_entropy(logits, labels))
    parameters = dict(model.named_parameters())
    ours, theirs = (
        dict(zip(parameters, torch.autograd.grad(x, [*parameters.values()]), strict=True))
        for x in (loss, expected)
    )
    assert_same_gradients(ours, theirs)


def test_loss_projects_only_the_positions_that_have_a_label(model, monkeypatch):
    inputs = inputs_of(model, extra=2)
    labels = labels_of(inputs)
    projected = []

    def count(hidden, *rest):
        projected.append(len(hidden))
        return linear_cross_entropy(hidden, *rest)

    monkeypatch.setattr(head_loss_module, "linear_cross_entropy", count)
    model.loss(*inputs, labels)
    assert projected == [(labels != -100).sum().item()]


def test_loss_computes_the_last_layer_only_where_there_is_a_label(model):
    inputs = inputs_of(model, extra=2)
    labels = labels_of(inputs)
    stack = model.encoder if isinstance(model, EncoderOnly) else model.decoder
    rows = []
    for layer in stack.layers:
        layer.feed_forward.register_forward_pre_hook(lambda _, x: rows.append(x[0][..., 0].numel()))
    model.loss(*inputs, labels)
    assert rows == [labels.numel(), (labels != -100).sum().item()]


def test_some_of_the_hidden_states_are_those_of_all(model):
    *source, ids, mask = inputs_of(model, extra=2)
    at = torch.tensor([3, 0, mask.numel() - 1, 3, 8], device=ids.device)
    if source:
        memory = model.encode(*source), source[1]
        every, some = model.decode(ids, mask, *memory), model.decode(ids, mask, *memory, at=at)
    else:
        every, some = model.encode(ids, mask), model.encode(ids, mask, at=at)
    torch.testing.assert_close(some, every.flatten(0, 1)[at], rtol=1e-12, atol=1e-13)
    assert (some[mask.flatten()[at] == 0] == 0.0).all()


def test_loss_without_labels_is_zero_with_zero_gradients(model):
    inputs = inputs_of(model)
    loss, gradients = loss_and_gradients_of(model, inputs, torch.full_like(inputs[-2], -100))
    assert loss == 0.0
    assert all((gradient == 0.0).all() for gradient in gradients.values())


def loss_and_gradients_of(model, inputs, labels):
    model.zero_grad()
    loss = model.loss(*inputs, labels)
    loss.backward()
    return loss, {n: p.grad.clone() for n, p in model.named_parameters()}


def test_loss_is_divided_by_num_labels_where_given(model):
    inputs = inputs_of(model)
    labels = labels_of(inputs)
    count = (labels != -100).sum()
    expected = model.loss(*inputs, labels) * count / 100
    torch.testing.assert_close(model.loss(*inputs, labels, num_labels=100), expected)
    torch.testing.assert_close(model.loss(*inputs, labels, 100), expected)


def test_micro_batches_add_up_to_the_batch(model):
    inputs = inputs_of(model)
    labels = labels_of(inputs)
    loss, expected = loss_and_gradients_of(model, inputs, labels)
    count = (labels != -100).sum()
    model.zero_grad()
    total = 0.0
    for part in (slice(0, 2), slice(2, 5)):
        micro = model.loss(*(x[part] for x in inputs), labels[part], num_labels=count)
        micro.backward()
        total += micro.detach()
    torch.testing.assert_close(total, loss.detach())
    assert_same_gradients({n: p.grad for n, p in model.named_parameters()}, expected)


@pytest.mark.parametrize("where", ["right", "left", "holes"])
def test_next_token_loss_does_not_depend_on_padding(parts, where, device):
    model = make_model("decoder", parts, device)
    losses = []
    for layout in ("right", where):
        inputs = inputs_of(model, layout, extra=3)
        losses.append(loss_and_gradients_of(model, inputs, next_token_labels(*inputs)))
    torch.testing.assert_close(losses[0][0], losses[1][0])
    assert_same_gradients(losses[1][1], losses[0][1])


# ---- segments ----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["encoder", "decoder"])
def test_segments_are_added_to_the_embedding_of_real_tokens(kind):
    model = make_model(kind, "bert", num_segments=2)
    ids, mask = inputs_of(model, "left", extra=2)
    segments = (torch.arange(ids.shape[1]) % 2).expand_as(ids)
    expected = model(ids, mask)
    assert_same_bits(model(ids, mask, torch.zeros_like(ids)), expected)
    assert not torch.equal(model(ids, mask, segments)[mask != 0], expected[mask != 0])
    at_padding = segments.masked_fill(mask == 0, 99)
    assert_same_bits(model(ids, mask, at_padding), model(ids, mask, segments))
    with torch.no_grad():  # the same as moving the tokens' own embeddings
        model.embedding.tokens.weight += model.embedding.segments.weight[1]
        model.embedding.segments.weight[0] -= model.embedding.segments.weight[1]
    torch.testing.assert_close(model(ids, mask), expected)
    labels = labels_of((ids, mask))
    assert model.loss(ids, mask, labels, segment_ids=segments) != model.loss(ids, mask, labels)


def test_segments_that_cannot_be_are_refused():
    ids, mask = inputs_of(make_model("encoder"))
    with pytest.raises(ValueError, match="segment_ids need a model with segments"):
        make_model("encoder")(ids, mask, torch.zeros_like(ids))
    with pytest.raises(ValueError, match=r"segment_ids must be in \[0, 2\), got 2 at row 0"):
        make_model("encoder", "bert", num_segments=2)(ids, mask, torch.full_like(ids, 2))


# ---- a decoder of its own ----------------------------------------------------------------------


@pytest.mark.parametrize("where", ["right", "left"])
def test_a_cross_decoder_is_the_decoder_of_an_encoder_decoder(parts, where):
    both = make_model("both", parts)
    alone = CrossDecoder(both.config).double()
    found = alone.load_state_dict(both.state_dict(), strict=False)
    assert not found.missing_keys
    *source, ids, mask = inputs_of(both, where)
    memory = both.encode(*source)
    assert_same_bits(alone(ids, mask, memory, source[1]), both(*source, ids, mask))


# ---- parameters --------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_tied_embeddings_are_one_parameter(kind):
    tied, untied = make_model(kind, tie_embeddings=True), make_model(kind)
    assert tied.head.projection.weight is tied.embedding.tokens.weight
    assert untied.head.projection.weight is not untied.embedding.tokens.weight
    assert len(list(untied.parameters())) == len(list(tied.parameters())) + 1
    gradient = gradients_of(tied, inputs_of(tied))["embedding.tokens.weight"]
    assert (gradient != 0.0).all()  # the head reads every row, the embedding only some


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("combination", kinds_by_parts(*KINDS.values()))
def test_a_state_dict_makes_the_same_model(combination, tied):
    model = make_model(*combination, tie_embeddings=tied)
    numbers = json.loads(json.dumps(model.config.to_dict()))
    other = type(model)(Config(**numbers)).double()
    inputs = inputs_of(model)
    assert not torch.equal(other(*inputs), model(*inputs))
    other.load_state_dict(model.state_dict())
    assert_same_bits(other(*inputs), model(*inputs))


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_initial_weights_keep_the_size_of_what_passes(kind, tied):
    model = KINDS[kind](Config(300, 64, style="bert", max_length=300, tie_embeddings=tied))
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear) and not (tied and name == "head.projection"):
            bound = (6 / (module.in_features + module.out_features)) ** 0.5
            assert bound * 0.98 < module.weight.abs().max() <= bound, name
            assert module.bias is None or (module.bias == 0.0).all(), name
        if isinstance(module, nn.Embedding):
            assert module.weight.std().item() == pytest.approx(1 / 8, rel=0.05), name


@pytest.mark.parametrize("kind", KINDS)
def test_only_llama_has_no_biases_and_only_the_heads_of_bert_bart_and_marian_have(kind, parts):
    linears = {n: m for n, m in make_model(kind, parts).named_modules() if isinstance(m, nn.Linear)}
    assert (linears.pop("head.projection").bias is None) == (
        parts not in ("bert", "bart", "marian")
    )
    without = parts in ("llama", "grouped")
    assert all((linear.bias is None) == without for linear in linears.values())


def test_dropout_acts_in_training_only(model):
    dropping = type(model)(Config(**model.config.to_dict() | {"dropout": 0.3})).to(
        model.head.projection.weight
    )
    dropping.load_state_dict(model.state_dict())
    inputs = inputs_of(model)
    assert not torch.equal(dropping(*inputs), dropping(*inputs))
    assert_same_bits(dropping.eval()(*inputs), model(*inputs))


def test_dropout_leaves_padding_at_zero_and_poison_out(model):
    dropping = type(model)(Config(**model.config.to_dict() | {"dropout": 0.3})).to(
        model.head.projection.weight
    )
    inputs = inputs_of(model, "left", extra=2)
    dropping.head = nn.Identity()
    with poisoned(dropping, inputs, float("nan")):
        hidden = dropping(*inputs)
    assert (hidden[inputs[-1] == 0] == 0.0).all()
    assert hidden.isfinite().all()


# ---- refusals ----------------------------------------------------------------------------------


def test_sequences_longer_than_max_length_are_refused_but_padding_is_not(model):
    rows = tokens((17,))
    ids, mask = place(rows, 20, "left", model.head.projection.weight.device)
    fits = (mask.cumsum(1) > 1).long()  # one token fewer
    arguments = [ids, fits] * (2 if isinstance(model, EncoderDecoder) else 1)
    assert model(*arguments).shape == (1, 20, VOCAB)
    for stream in range(0, len(arguments), 2):
        too_long = [*arguments]
        too_long[stream + 1] = mask
        with pytest.raises(ValueError, match="17 tokens, more than max_length = 16"):
            model(*too_long)


@pytest.mark.parametrize("kind", KINDS)
def test_ids_outside_the_vocabulary_are_refused(kind):
    model = make_model(kind)
    for stream in range(0, len(inputs_of(model)), 2):
        inputs = [x.clone() for x in inputs_of(model)]
        inputs[stream][3, 1] = VOCAB
        with pytest.raises(ValueError, match="got 23 at row 3, position 1"):
            model(*inputs)


@pytest.mark.parametrize("kind", KINDS)
def test_inputs_of_unequal_shapes_are_refused(kind):
    model = make_model(kind)
    inputs = inputs_of(model)
    for i in range(len(inputs)):
        short = [x[:, 1:] if i == j else x for j, x in enumerate(inputs)]
        with pytest.raises(ValueError, match="must both be"):
            model(*short)


@pytest.mark.parametrize("kind", KINDS)
def test_float_masks_and_masks_of_other_ranks_are_refused(kind):
    model = make_model(kind)
    inputs = inputs_of(model)
    for i in range(1, len(inputs), 2):
        for change, error in ((torch.Tensor.float, TypeError), (torch.Tensor.flatten, ValueError)):
            wrong = [change(x) if i == j else x for j, x in enumerate(inputs)]
            with pytest.raises(error, match="attention_mask"):
                model(*wrong)


def test_source_and_target_of_unequal_batch_sizes_are_refused():
    model = make_model("both")
    source, source_mask, *target = inputs_of(model)
    with pytest.raises(ValueError, match="the same batch size, got 5 and 4"):
        model(source[:4], source_mask[:4], *target)


@pytest.mark.parametrize("kind", KINDS)
def test_labels_of_another_shape_are_refused(kind):
    model = make_model(kind)
    inputs = inputs_of(model)
    with pytest.raises(ValueError, match="one for each position, got"):
        model.loss(*inputs, inputs[-2][:, 1:])


@pytest.mark.parametrize("kind", KINDS)
def test_labels_outside_the_vocabulary_are_refused(kind):
    model = make_model(kind)
    inputs = inputs_of(model)
    with pytest.raises(ValueError, match=r"in \[0, 23\), got 23"):
        model.loss(*inputs, torch.full_like(inputs[-2], VOCAB))


# ---- construction ------------------------------------------------------------------------------


def test_a_decoder_may_have_other_layers_than_its_encoder():
    model = EncoderDecoder(Config(VOCAB, 16, num_layers=3, num_decoder_layers=1))
    assert (len(model.encoder.layers), len(model.decoder.layers)) == (3, 1)


@pytest.mark.parametrize("kind", KINDS)
def test_each_linear_layer_is_drawn_once(kind, monkeypatch):
    drawn = []
    monkeypatch.setattr(nn.init, "xavier_uniform_", lambda weight: drawn.append(id(weight)))
    model = make_model(kind)
    assert len(drawn) == len(set(drawn))
    assert len(drawn) == sum(isinstance(module, nn.Linear) for module in model.modules())


@pytest.mark.parametrize("kind", ["decoder", "both"])
@pytest.mark.parametrize("mask", [[0, 0, 1, 1, 1, 1], [1, 1, 1, 1, 0], [1, 0, 1, 0, 0, 1, 1, 0]])
def test_a_window_sees_so_many_tokens_wherever_the_padding_is(mask, kind):
    """Two layers with a window of 2: a token depends on itself and the two before, on no other."""
    model = make_model(kind, "gpt2", window=2)
    mask = torch.tensor([mask])
    ids = 5 + torch.arange(mask.shape[1])[None]
    source = (ids, mask) if kind == "both" else ()
    *before, last = mask[0].nonzero().squeeze(1).tolist()
    expected = model(*source, ids, mask)[0, last]
    for age, place in enumerate(reversed(before), 1):
        changed = ids.clone()
        changed[0, place] = 1
        assert torch.equal(model(*source, changed, mask)[0, last], expected) == (age > 2), age


def test_a_window_is_refused_by_the_model_that_has_none():
    message = r"^a window is for decoders: EncoderOnly got window=2$"
    with pytest.raises(ValueError, match=message):
        EncoderOnly(Config(VOCAB, WIDTH, window=2))


@pytest.mark.parametrize("kind", KINDS)
def test_every_layer_rotates_by_the_positions_of_its_tokens(kind):
    model, found = make_model(kind, "llama"), []
    for layer in (part for part in model.modules() if isinstance(part, EncoderLayer)):
        layer.register_forward_pre_hook(lambda _, given: found.append(torch.stack(given[2])))
    inputs = inputs_of(model, "left", extra=1)
    model(*inputs)
    expected = [model.embedding(*read)[1] for read in zip(inputs[::2], inputs[1::2], strict=True)]
    layers = model.config.num_layers
    assert len(found) == layers * len(expected)
    for number, rotation in enumerate(found):
        assert torch.equal(rotation, torch.stack(expected[number // layers]))


# ---- each layer needs its mask -----------------------------------------------------------------
# Remove it from one layer, wholly or in part, and a check above must notice.


def everything(mask):
    return torch.ones_like(mask)


def without_padding(mask):
    return torch.ones_like(mask).tril()


def without_causality(mask):
    return mask | mask.transpose(-1, -2)


def sabotages() -> list:
    cases = []
    for kind in KINDS:
        for name, module in make_model(kind).named_modules():
            if not isinstance(module, MultiHeadAttention):
                continue
            checks = [(everything, "left"), (everything, "right")]
            if name.startswith("decoder") and "cross" not in name:
                checks += [(everything, "causality"), (without_causality, "causality")]
                checks += [(without_padding, "left"), (without_padding, "holes")]
            for (change, check), parts in itertools.product(checks, PARTS):
                case = f"{kind}-{parts}-{name}-{change.__name__}-{check}"
                quick = parts == ("vanilla" if kind == "decoder" else "grouped")
                marks = [] if quick else pytest.mark.slow
                cases.append(pytest.param(kind, parts, name, change, check, id=case, marks=marks))
    return cases


@pytest.mark.parametrize(("kind", "parts", "name", "change", "check"), sabotages())
def test_removing_the_mask_from_one_layer_is_noticed(kind, parts, name, change, check):
    model = make_model(kind, parts, attention="reference")
    run = check_causality if check == "causality" else check_amount_of_padding
    arguments = () if check == "causality" else (check,)
    run(model, *arguments)
    layer = model.get_submodule(name)
    forward = layer.forward
    layer.forward = lambda x, memory, mask, *rest, **cache: forward(
        x, memory, change(mask), *rest, **cache
    )
    with pytest.raises(AssertionError):
        run(model, *arguments)
