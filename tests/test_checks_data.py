"""The checks of masks, losses, labels, collators and generators: what is right passes them.

Right is written here in other ways than in the package: in loops, as torch does it, as Hugging
Face does it, and by functions that take and return other things. The broken ones are in the museum.
"""

import re
from dataclasses import dataclass
from functools import partial
from itertools import pairwise

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention.flex_attention import create_block_mask

from minitransformer import causal_mask, cross_entropy, generate, next_token_labels, pad
from minitransformer.checks import (
    SUBJECTS,
    check_collator,
    check_generator,
    check_labels,
    check_loss,
    check_mask,
    diagnose,
    run_checks,
)
from minitransformer.checks.engine.bugs import bugs
from minitransformer.checks.generators.cases import wanted
from minitransformer.checks.generators.subject import GeneratorSubject
from minitransformer.checks.masks.subject import MaskSubject
from minitransformer.masks import decoder_mask, padding_mask, window_mask

INF = float("inf")
KINDS = ["mask", "loss", "labels", "collator", "generator"]


def passed(report) -> bool:
    """Nothing failed, and no known bug is named."""
    assert report.passed, report
    assert not report.likely
    return True


# ---- masks ---------------------------------------------------------------------------------------


def padding_in_loops(attention_mask):
    """Query and key are real and of one document."""
    rows = attention_mask.tolist()
    return torch.tensor([[[[q == k != 0 for k in row] for q in row]] for row in rows])


def causal_in_loops(attention_mask):
    length = attention_mask.shape[1]
    past = torch.tensor([[k <= q for k in range(length)] for q in range(length)])
    return padding_in_loops(attention_mask) & past


def outer_product(attention_mask):
    """Integers, (b,q,k)."""
    return attention_mask.unsqueeze(2) * attention_mask.unsqueeze(1)


def to_be_added(attention_mask):
    """0 and -inf, as scores want it; padded queries see the real keys."""
    zeros = torch.zeros(len(attention_mask), 1, 1, attention_mask.shape[1])
    return zeros.masked_fill(attention_mask[:, None, None] == 0, -INF)


def finite_bias(attention_mask):
    """The smallest float: what Hugging Face adds."""
    return (1.0 - attention_mask[:, None, None].float()) * torch.finfo(torch.float32).min


def causal_to_be_added(num_queries, num_keys):
    hidden = torch.full((num_queries, num_keys), -INF)
    return hidden.triu(1 + num_keys - num_queries)


def from_ids(ids):
    """Right where no real token has the id of padding."""
    return (ids != 0)[:, None, None]


KEYS_ONLY = {"mask_layout": "b 1 1 k"}
BIAS = KEYS_ONLY | {"mask_values": "additive"}
RIGHT_MASKS = [
    (padding_mask, "strict", {"documents": True, "dead_queries": "nothing"}),
    (padding_mask, "strict", {}),
    (padding_in_loops, "strict", {"documents": True, "dead_queries": "nothing"}),
    (causal_in_loops, "strict", {"documents": True, "causal": True, "dead_queries": "nothing"}),
    (outer_product, "strict", {"mask_layout": "b q k", "mask_values": "int"}),
    (lambda mask: (mask != 0)[:, None, None], "strict", KEYS_ONLY),
    (lambda mask: mask == 0, "strict", {"mask_layout": "b k", "mask_means": "ignore"}),
    (from_ids, "strict", {"takes": "ids", "pad_is_unique": True} | KEYS_ONLY),
    (to_be_added, "strict", BIAS),
    (finite_bias, "core", BIAS),
    (causal_mask, "strict", {"takes": "length", "causal": True, "mask_layout": "1 1 q k"}),
    (
        causal_to_be_added,
        "strict",
        {"takes": "length", "causal": True, "mask_layout": "q k", "mask_values": "additive"},
    ),
]


@pytest.mark.parametrize(("fn", "tier", "declared"), RIGHT_MASKS)
def test_right_masks_pass(fn, tier, declared):
    assert passed(check_mask(fn, tier=tier, **declared))


def test_padding_and_causality_combined_pass():
    def build(attention_mask):
        return padding_mask(attention_mask) & causal_mask(attention_mask.shape[1])

    promises = {"documents": True, "causal": True, "dead_queries": "nothing"}
    assert passed(check_mask(build, tier="strict", **promises))


# ---- masks: windows ------------------------------------------------------------------------------


def windowed(width, causal=True):
    """A builder with a window of its own, in loops over columns."""

    def build(attention_mask):
        rows = attention_mask.tolist()
        columns = range(attention_mask.shape[1])

        def near(q, k):
            return q - width < k <= q if causal else q - width < k < q + width

        mask = [[[[near(q, k) and row[k] != 0 for k in columns] for q in columns]] for row in rows]
        return torch.tensor(mask)

    return build


CAUSAL = {"causal": True}
FLAG = {"window_flag": "window"}
DOCUMENTS = {"documents": True, "dead_queries": "nothing"}


@pytest.mark.parametrize(
    ("fn", "declared"),
    [
        (windowed(1), CAUSAL | {"window": 1}),
        (windowed(3), CAUSAL | {"window": 3}),
        (windowed(20), CAUSAL | {"window": 20}),
        (windowed(3, causal=False), {"window": 3}),
        (decoder_mask, CAUSAL | FLAG | DOCUMENTS | {"window": 2, "window_counts": "tokens"}),
        (
            window_mask,
            CAUSAL | FLAG | {"window": 3, "takes": "length", "mask_layout": "1 1 q k"},
        ),
    ],
)
def test_right_windows_pass(fn, declared):
    assert passed(check_mask(fn, tier="strict", **declared))


@pytest.mark.parametrize("width", [3, 20])
def test_a_window_that_ends_elsewhere_is_recognized(width):
    for other, name in ((width - 1, "window one too short"), (width + 1, "window one too long")):
        report = check_mask(windowed(other), causal=True, window=width)
        assert "a_window_ends_where_it_is_declared" in report.failed
        assert report.likely == (name,)
    report = check_mask(causal_in_loops, causal=True, window=width)
    assert report.likely == ("window lost",)


def test_what_else_a_window_may_mean_is_asked():
    """FlashAttention counts the keys before the query; ours counts tokens, not columns."""
    assert "window=4" in check_mask(windowed(4), causal=True, window=3).question
    report = check_mask(decoder_mask, causal=True, window=3, window_flag="window")
    assert report.failed == ["each_query_may_see_what_it_should"]
    assert "window_counts='tokens'" in report.question


# ---- masks: FlexAttention ------------------------------------------------------------------------


def causal_mask_mod(attention_mask):
    real = attention_mask != 0
    return lambda b, h, q_idx, kv_idx: (q_idx >= kv_idx) & real[b, kv_idx]


def causal_block_mask(attention_mask, blocks=4):
    batch, length = attention_mask.shape
    mask_mod = causal_mask_mod(attention_mask)
    return create_block_mask(mask_mod, batch, None, length, length, "cpu", BLOCK_SIZE=blocks)


@pytest.mark.parametrize("fn", [causal_mask_mod, causal_block_mask])
def test_masks_of_flex_attention_pass(fn):
    assert passed(check_mask(fn, tier="strict", causal=True))


def test_blocks_that_a_block_mask_does_not_list_are_hidden():
    subject, mask = MaskSubject(print, causal=True), torch.ones(1, 8, dtype=torch.long)
    blocks = causal_block_mask(mask)
    assert torch.equal(subject.normal(blocks, mask), causal_mask(8))
    blocks.kv_num_blocks.zero_()  # of the two by two blocks only the one below the diagonal is full
    left = torch.zeros(8, 8, dtype=torch.bool)
    left[4:, :4] = True
    assert torch.equal(subject.normal(blocks, mask)[0, 0], left)


def test_a_mask_mod_with_its_arguments_mixed_up_is_recognized():
    def mixed_up(attention_mask):
        mask_mod = causal_mask_mod(attention_mask)
        return lambda b, h, q_idx, kv_idx: mask_mod(b, h, kv_idx, q_idx)

    assert check_mask(mixed_up, causal=True).likely == ("q_idx and kv_idx mixed up",)


# ---- masks: what is wrong ------------------------------------------------------------------------


def test_a_finite_bias_fails_where_half_precision_begins():
    report = check_mask(finite_bias, tier="strict", **BIAS)
    assert report.failed == ["what_is_hidden_is_minus_infinity"]


def test_ids_do_not_tell_an_end_from_padding():
    report = check_mask(from_ids, takes="ids", **KEYS_ONLY)
    assert report.failed == ["a_real_token_may_have_the_id_of_padding"]
    assert report.likely == ("mask from ids, the end being padding",)


def test_another_polarity_than_declared_is_recognized():
    report = check_mask(lambda mask: (mask == 0)[:, None, None].expand(-1, 1, mask.shape[1], -1))
    assert report.likely == ("what to hide for what to show",)


# ---- losses --------------------------------------------------------------------------------------


def torchs(logits, labels):
    return F.cross_entropy(logits.flatten(0, 1), labels.flatten())


def token_by_token(logits, labels):
    """The definition; nothing that is ignored is touched."""
    real = (labels != -100).nonzero().tolist()
    losses = [-logits[b, t].float().log_softmax(0)[labels[b, t]] for b, t in real]
    return sum(losses, logits.new_zeros((), requires_grad=True)) / max(len(losses), 1)


def hugging_faces(logits, labels):
    """Logits and labels aligned: it shifts them itself."""
    logits, labels = logits[:, :-1].float(), labels[:, 1:]
    total = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="sum")
    return total / (labels != -100).sum().clamp(min=1)


def weighted(logits, labels, number=None):
    """A weight of 0 or 1 each, and the number of labels given or counted."""
    counts = labels != -100
    logits = logits.float().masked_fill(~counts.unsqueeze(-1), 0.0)
    losses = logits.logsumexp(-1) - logits.gather(-1, labels.clamp(min=0).unsqueeze(-1))[..., 0]
    total = (losses * counts).sum()
    return total / (counts.sum().clamp(min=1) if number is None else number)


@pytest.mark.parametrize(
    ("fn", "tier", "declared"),
    [
        (cross_entropy, "strict", {"num_labels_flag": "num_labels"}),
        (cross_entropy, "strict", {"flat": True}),
        (weighted, "strict", {"num_labels_flag": "number", "dtypes": ("float32", "bfloat16")}),
        (torchs, "core", {}),
        (F.cross_entropy, "core", {"flat": True}),
        (torch.nn.CrossEntropyLoss(ignore_index=-1), "core", {"flat": True, "ignore_index": -1}),
        (token_by_token, "core", {"dtypes": ("float32",)}),
        (hugging_faces, "robust", {"shifts": True, "dtypes": ("float32", "float16")}),
    ],
)
def test_right_losses_pass(fn, tier, declared):
    assert passed(check_loss(fn, tier=tier, **declared))


def test_what_torchs_cross_entropy_does_is_told():
    """NaN where there is nothing to predict, and NaN gradients from NaN that is ignored."""
    failed = check_loss(torchs, tier="strict").failed
    assert "nothing_to_predict_is_no_nan" in failed
    assert "nan_at_ignored_labels_reaches_no_gradient" in failed
    assert "nan_at_ignored_labels_reaches_no_loss" not in failed


def smoothed(logits, labels, smoothing=0.2, others=False):
    """Label by label; with `others` as fairseq does it."""
    losses = []
    for b, t in (labels != -100).nonzero().tolist():
        surprise = -logits[b, t].float().log_softmax(0)
        label = labels[b, t]
        rest = surprise[torch.arange(5) != label] if others else surprise
        losses.append((1 - smoothing) * surprise[label] + smoothing * rest.mean())
    return sum(losses, logits.new_zeros((), requires_grad=True)) / max(len(losses), 1)


SMOOTHING = {"label_smoothing": 0.2, "dtypes": ("float32",)}


@pytest.mark.parametrize(
    ("fn", "declared"),
    [
        (smoothed, SMOOTHING),
        (smoothed, SMOOTHING | {"smoothing_flag": "smoothing"}),
        (partial(smoothed, others=True), SMOOTHING | {"smoothing_over": "others"}),
        (
            F.cross_entropy,
            SMOOTHING | {"flat": True, "smoothing_flag": "label_smoothing"},
        ),
    ],
)
def test_right_smoothed_losses_pass(fn, declared):
    assert passed(check_loss(fn, **declared))


def test_a_smoothed_loss_that_counts_ignored_labels_is_recognized():
    def wrong(logits, labels):
        right = F.cross_entropy(logits.flatten(0, 1), labels.flatten())
        uniform = -logits.log_softmax(-1).mean(-1).sum() / (labels != -100).sum()
        return 0.8 * right + 0.2 * uniform

    assert check_loss(wrong, **SMOOTHING).likely == ("smoothing counts ignored labels",)
    assert check_loss(cross_entropy, **SMOOTHING).likely == ("label smoothing left out",)


def test_the_other_way_to_smooth_is_asked():
    report = check_loss(partial(smoothed, others=True), **SMOOTHING)
    assert not report.passed
    assert "smoothing_over='others'" in report.question


def test_losses_that_differ_in_a_late_digit_are_told_apart():
    report = check_loss(lambda logits, labels: 1.0001 * cross_entropy(logits, labels))
    found, wanted = re.findall(r"\d\.\d+", next(iter(report)).diagnosis)[:2]
    assert found != wanted


# ---- labels and collators ------------------------------------------------------------------------


def labels_in_loops(input_ids, attention_mask):
    labels = torch.full(input_ids.shape, -100)
    for b, documents in enumerate(attention_mask.tolist()):
        for document in set(documents) - {0}:
            places = [t for t, number in enumerate(documents) if number == document]
            for here, following in pairwise(places):
                labels[b, here] = input_ids[b, following]
    return labels


def labels_by_roll(input_ids, attention_mask):
    """Enough where there are no holes: the next column, if both are real and of one document."""
    following, document = input_ids.roll(-1, 1), attention_mask.roll(-1, 1)
    document[:, -1] = 0
    return following.where((attention_mask != 0) & (attention_mask == document), -100)


def labels_at_their_tokens(input_ids, attention_mask):
    """Hugging Face style; the first token of a document is nobody's label."""
    before = F.pad(attention_mask, (1, 0))[:, :-1]
    return input_ids.masked_fill((attention_mask == 0) | (attention_mask != before), -100)


EVERYTHING = {"documents": True, "holes": True}


@pytest.mark.parametrize(
    ("fn", "declared"),
    [
        (next_token_labels, EVERYTHING),
        (labels_in_loops, EVERYTHING),
        (labels_by_roll, {"documents": True}),
        (labels_by_roll, {"sides": ("right",)}),
        (labels_at_their_tokens, {"aligned": True, "documents": True}),
    ],
)
def test_right_labels_pass(fn, declared):
    assert passed(check_labels(fn, tier="strict", **declared))


def test_labels_that_mask_padding_only_are_right_on_the_right():
    def usual(input_ids, attention_mask):
        return input_ids.masked_fill(attention_mask == 0, -100)

    assert passed(check_labels(usual, tier="strict", aligned=True, sides=("right",)))
    failed = check_labels(usual, aligned=True).failed
    assert "padding_predicts_nothing" in failed


@dataclass
class Collated:
    input_ids: Tensor
    attention_mask: Tensor
    labels: Tensor | None = None


def by_lengths(rows, labels=None, side="right", filler=7, multiple=1):
    """Row by row into tensors that are full of padding, perhaps wider than the longest row."""
    longest = -(-max(map(len, rows)) // multiple) * multiple
    ids, mask = torch.full((2, len(rows), longest), 0)
    ids, out = ids + filler, torch.full_like(ids, -100)
    for i, row in enumerate(rows):
        place = slice(0, len(row)) if side == "right" else slice(longest - len(row), longest)
        ids[i, place], mask[i, place] = torch.tensor(row), 1
        out[i, place] = torch.tensor(row if labels is None else labels[i])
    return Collated(ids, mask, out)


def of_dicts(features):
    rows = [feature["input_ids"] for feature in features]
    batch = by_lengths(rows, [feature["labels"] for feature in features], filler=0)
    return {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask} | {
        "labels": batch.labels
    }


def with_next_tokens(rows):
    batch = pad(rows, pad_id=2)
    labels = next_token_labels(batch.input_ids, batch.attention_mask)
    return {**batch, "attention_mask": batch.attention_mask.bool(), "labels": labels}


@pytest.mark.parametrize(
    ("fn", "declared"),
    [
        (pad, {}),
        (pad, {"labels": "given"}),
        (lambda rows: pad(rows, 3, "left"), {"pad_id": 3, "side": "left"}),
        (by_lengths, {"pad_id": 7, "labels": "aligned"}),
        (lambda rows: by_lengths(rows, side="left", multiple=8), {"pad_id": 7, "side": "left"}),
        (lambda rows: by_lengths(rows, multiple=8), {"pad_id": 7, "labels": "aligned"}),
        (of_dicts, {"rows": "dicts", "labels": "given"}),
        (with_next_tokens, {"pad_id": 2, "labels": "next"}),
    ],
)
def test_right_collators_pass(fn, declared):
    assert passed(check_collator(fn, tier="strict", **declared))


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("multiple", [8, 64])
@pytest.mark.parametrize(
    ("part", "check"),
    [
        ("input_ids", "every_token_comes_back_in_its_place"),
        ("attention_mask", "the_mask_comes_from_lengths"),
        ("labels", "labels_are_those_of_their_tokens"),
    ],
)
def test_columns_beyond_the_longest_row_are_looked_at(side, multiple, part, check):
    def collate(rows):
        batch = by_lengths(rows, side=side, multiple=multiple)
        longest = max(map(len, rows))
        tensor = getattr(batch, part)
        beyond = tensor[:, longest:] if side == "right" else tensor[:, :-longest]
        beyond[:] = 1
        return batch

    report = check_collator(collate, pad_id=7, side=side, labels="aligned")
    assert check in report.failed


def test_rounded_up_columns_of_any_number_are_recognized():
    def collate(rows):
        batch = by_lengths(rows, filler=0, multiple=64)
        batch.attention_mask[:, max(map(len, rows)) :] = 1
        return batch

    assert check_collator(collate).likely == ("ones in rounded-up columns",)


# ---- generators ----------------------------------------------------------------------------------


@torch.no_grad()
def one_by_one(model, input_ids, attention_mask, max_new_tokens, stop=None):
    """No batch, no padding, nothing to get wrong."""
    texts, training = [], model.training
    model.eval()
    for ids, real in zip(input_ids, attention_mask, strict=True):
        row = ids[real != 0]
        start = len(row)
        while len(row) < start + max_new_tokens and (len(row) == start or row[-1] != stop):
            logits = model(row[None], torch.ones_like(row[None]))
            row = torch.cat([row, logits[0, -1].argmax()[None]])
        texts.append(row[start:])
    model.train(training)
    return texts


def as_one_tensor(model, input_ids, attention_mask, max_new_tokens, stop=None):
    """Padded with 5, behind the prompts."""
    texts = one_by_one(model, input_ids, attention_mask, max_new_tokens, stop)
    filled = torch.full((len(texts), max_new_tokens), 5)
    for row, text in zip(filled, texts, strict=True):
        row[: len(text)] = text
    return torch.cat([input_ids, filled], dim=1)


@torch.no_grad()
def left_padded_only(model, input_ids, attention_mask, max_new_tokens):
    """The next token is read from the last column, as in most tutorials."""
    ids, mask, training = input_ids, attention_mask, model.training
    model.eval()
    for _ in range(max_new_tokens):
        token = model(ids, mask)[:, -1:].argmax(-1)
        ids, mask = torch.cat([ids, token], 1), torch.cat([mask, torch.ones_like(token)], 1)
    model.train(training)
    return ids[:, input_ids.shape[1] :]


@pytest.mark.parametrize(
    ("fn", "declared"),
    [
        (generate, {"eos_flag": "eos_id"}),
        (generate, {}),
        (one_by_one, {"eos_flag": "stop"}),
        (as_one_tensor, {"eos_flag": "stop", "includes_prompt": True, "pad_id": 5}),
        (left_padded_only, {"sides": ("left",)}),
    ],
)
def test_right_generators_pass(fn, declared):
    assert passed(check_generator(fn, tier="strict", **declared))


def test_reading_the_last_column_is_recognized():
    assert check_generator(left_padded_only).likely == ("the last column is read",)


def test_the_prompts_write_what_the_checks_need():
    """Some rows end and others do not, at different steps; no two tokens are nearly as likely."""
    from minitransformer.checks.generators.cases import END, NEW, PROMPTS, the_model

    assert [len(row) for row in wanted(PROMPTS, eos=END)] == [5, NEW, 3, NEW]
    assert [len(row) for row in wanted(PROMPTS, eos=0)] == [4, NEW, 2, NEW]
    for prompt, text in zip(PROMPTS, wanted(PROMPTS), strict=True):
        ids = torch.tensor([[*prompt, *text]])
        first, second = the_model()(ids, torch.ones_like(ids))[0].topk(2).values.T
        assert (first - second)[len(prompt) - 1 : -1].min() > 1e-3


@pytest.mark.parametrize(
    ("returned", "words"),
    [
        (None, "It returned None where 4 rows of new tokens were expected"),
        ([[1, 2]], "It returned a list where 4 rows"),
        (torch.zeros(4, 2), "whose rows are not tokens"),
        (torch.zeros(4, 2, 1).long(), "whose rows are not tokens"),
    ],
)
def test_what_is_no_text_is_told(returned, words):
    report = check_generator(lambda *given: returned)
    (result, *_) = [r for r in report if r.check.startswith("prompts_padded")]
    assert words in result.diagnosis


def test_text_behind_an_end_is_no_filler():
    subject = GeneratorSubject(print, eos_flag="eos_id", pad_id=0)
    ids = torch.zeros(2, 3, dtype=torch.long)
    assert subject.read(torch.tensor([[4, 9, 0, 0], [4, 9, 0, 3]]), ids, 9) == [
        [4, 9],
        [4, 9, 0, 3],
    ]
    assert subject.read(torch.tensor([[4, 9, 9, 9], [9, 9, 9, 4]]), ids, 9) == [
        [4, 9],
        [9, 9, 9, 4],
    ]


# ---- the museum ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "kind", [pytest.param(k, marks=[pytest.mark.slow] * (k == "generator")) for k in KINDS]
)
def test_no_two_pieces_are_alike(kind):
    """What a piece does tells it from every other of its kind, at its own tier already."""
    for piece in bugs(kind):
        subject = piece.subject()
        assert diagnose(run_checks(subject, piece.tier), subject).likely == (piece.name,)


# ---- declarations --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "declared", "words"),
    [
        ("mask", {"takes": "scores"}, "takes must be one of attention_mask"),
        ("mask", {"mask_layout": "q b k"}, "mask_layout must be one of"),
        ("mask", {"mask_means": "hide"}, "mask_means must be one of attend, ignore"),
        ("mask", {"mask_values": "float"}, "mask_values must be one of bool, int, additive"),
        ("mask", {"dead_queries": "zeros"}, "dead_queries must be one of nothing, any"),
        ("mask", {"causal": True, "mask_layout": "b k"}, "a causal mask has queries"),
        ("mask", {"takes": "length"}, "declare causal=True"),
        ("mask", {"window": 0}, "window must be at least 1"),
        ("mask", {"window": 3, "mask_layout": "b k"}, "and one with a window"),
        ("mask", {"window": 3, "window_counts": "words"}, "must be one of columns, tokens"),
        (
            "mask",
            {"takes": "length", "causal": True, "window": 3, "window_counts": "tokens"},
            "its window counts columns",
        ),
        ("loss", {"label_smoothing": 1.0}, r"label_smoothing must be in \[0, 1\), got 1.0"),
        ("loss", {"smoothing_over": "some"}, "smoothing_over must be one of all, others"),
        ("loss", {"dtypes": "float32"}, r"dtypes must be a tuple such as \('float32',\)"),
        ("loss", {"dtypes": ("float31",)}, "expected a torch dtype"),
        ("loss", {"ignore_index": 0}, "ignore_index = 0 is a class too"),
        ("loss", {"flat": True, "shifts": True}, "a flat loss cannot shift"),
        ("labels", {"sides": "left"}, r"sides must be a tuple such as \('right',\)"),
        ("labels", {"sides": ("top",)}, "sides must be one of right, left, got 'top'"),
        ("collator", {"rows": "tensors"}, "rows must be one of lists, dicts"),
        ("collator", {"side": "both"}, "side must be one of right, left"),
        ("collator", {"labels": "shifted"}, "labels must be one of none, next, aligned, given"),
        ("generator", {"sides": "left"}, r"sides must be a tuple such as \('right',\)"),
        ("generator", {"sides": ()}, r"sides must be a tuple such as \('right',\)"),
        ("generator", {"sides": ("top",)}, "sides must be one of right, left, got 'top'"),
    ],
)
def test_declarations_are_looked_at(kind, declared, words):
    with pytest.raises(ValueError, match=words):
        SUBJECTS[kind](print, **declared)


@pytest.mark.parametrize("kind", KINDS)
def test_only_callables_can_be_checked(kind):
    with pytest.raises(TypeError, match="expected a callable"):
        SUBJECTS[kind](3)


@pytest.mark.parametrize(
    ("fn", "declared"),
    [
        (lambda mask: ~padding_mask(mask), {"mask_means": "ignore"}),
        (lambda mask: padding_mask(mask).long(), {"mask_values": "int"}),
        (lambda mask: padding_mask(mask) & causal_mask(mask.shape[1]), {"causal": True}),
        (lambda mask: padding_mask(mask)[:, 0], {"mask_layout": "b q k"}),
        (lambda mask: mask != 0, {"mask_layout": "b k"}),
    ],
    ids=["polarity", "numbers", "causal", "no heads", "keys alone"],
)
def test_a_right_mask_is_first_asked_whether_it_is_another(fn, declared):
    report = check_mask(fn)
    assert not report.passed
    assert report.would_pass == declared
