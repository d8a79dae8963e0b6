"""Collators: the same batch from examples in every form, and words for what is none."""

import random
from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import PARTS, large_init

from minitransformer import Config, DecoderOnly, EncoderOnly
from minitransformer.checks import check_collator
from minitransformer.data.batches import mask_tokens
from minitransformer.data.collate import (
    chat_example,
    collate,
    collate_classes,
    collate_lm,
    collate_mlm,
    collate_packed,
    collate_pairs,
)

PAD, BOS, EOS, VOCAB = 0, 1, 2, 50


def ragged(seed: int) -> list[list[int]]:
    """Up to six rows of up to nine tokens, which end with EOS."""
    draw = random.Random(seed)
    return [
        [*(draw.randrange(3, VOCAB) for _ in range(draw.randint(0, 8))), EOS]
        for _ in range(draw.randint(1, 6))
    ]


def with_labels(rows, seed=0) -> list[dict]:
    draw = random.Random(seed)
    return [
        {"input_ids": row, "labels": [t if draw.random() < 0.6 else -100 for t in row]}
        for row in rows
    ]


# ---- labels, and what they teach -----------------------------------------------------------------


def test_labels_that_are_given_are_kept_and_moved_to_who_predicts_them():
    examples = [
        {"input_ids": [5, 6, 7, EOS], "labels": [-100, -100, 7, EOS]},
        {"input_ids": [8, EOS], "labels": [-100, EOS]},
    ]
    assert collate(examples).labels.tolist() == [[-100, -100, 7, EOS], [-100, EOS, -100, -100]]
    expected = [[-100, 7, EOS, -100], [EOS, -100, -100, -100]]
    assert collate_lm(examples).labels.tolist() == expected
    left = [[-100, 7, EOS, -100], [-100, -100, EOS, -100]]
    assert collate_lm(examples, side="left").labels.tolist() == left


@pytest.mark.parametrize("style", PARTS)
def test_packed_examples_do_not_see_each_other(style):
    numbers = {"style": style, "max_length": 16} | PARTS[style]
    model = large_init(DecoderOnly(Config(VOCAB, 16, **numbers)).double())
    rows = [[5, 6, 7, EOS], [8, EOS], [9, 10, EOS], [11, 12, 13, 14, EOS]]
    packed, padded = collate_packed(rows, 8), collate_lm(rows)
    assert packed.attention_mask.max() >= 2
    torch.testing.assert_close(model.loss(**packed), model.loss(**padded), rtol=1e-12, atol=0.0)


@pytest.mark.parametrize("side", ["left", "right"])
def test_the_loss_does_not_depend_on_the_side(side):
    model = large_init(DecoderOnly(Config(VOCAB, 16, style="gpt2")).double())
    rows = ragged(3)
    expected = model.loss(**collate_lm(rows))
    for multiple_of in (1, 16):
        batch = collate_lm(rows, side=side, multiple_of=multiple_of)
        torch.testing.assert_close(model.loss(**batch), expected, rtol=1e-12, atol=0.0)


# ---- masked language modelling, pairs ------------------------------------------------------------


def test_hidden_tokens_are_real_ordinary_and_seeded():
    rows = [[*row] * 20 for row in ragged(4)]

    def draw(seed):
        generator = torch.Generator().manual_seed(seed)
        return collate_mlm(rows, 3, VOCAB, [PAD, BOS, EOS], generator=generator)

    batch, plain = draw(0), collate(rows)
    assert torch.equal(draw(0).input_ids, batch.input_ids)
    assert not torch.equal(draw(1).labels, batch.labels)
    hidden = batch.labels != -100
    assert torch.equal(batch.labels[hidden], plain.input_ids[hidden])
    assert torch.equal(batch.input_ids[~hidden], plain.input_ids[~hidden])
    assert (plain.attention_mask[hidden] == 1).all()
    assert not torch.isin(plain.input_ids[hidden], torch.tensor([PAD, BOS, EOS, 3])).any()


def test_a_batch_with_hidden_tokens_is_what_mask_tokens_makes_of_it():
    rows, options = [[5, 6, 7, 8], [9]], {"side": "left", "multiple_of": 3}
    plain = collate(rows, **options)

    def seeded():
        return torch.Generator().manual_seed(1)

    batch = collate_mlm(rows, 3, VOCAB, (5,), 0.9, seeded(), **options)
    hidden, labels = mask_tokens(
        plain.input_ids, plain.attention_mask, 3, VOCAB, (5,), 0.9, seeded()
    )
    assert_equal(batch, replace(plain, input_ids=hidden, labels=labels))
    assert not torch.equal(hidden, plain.input_ids)


def test_packed_rows_are_filled_up_with_the_padding_id():
    examples = [[5, 6, 7], [8], [9]]
    assert collate_packed(examples, length=4).input_ids.tolist()[-1][-1] == 0
    assert collate_packed(examples, length=4, pad_id=3).input_ids.tolist()[-1][-1] == 3


def test_pairs_are_teacher_forced_with_one_end():
    examples = [
        {"input_ids": [5, 6], "labels": [7, 8, EOS]},
        {"input_ids": [9], "labels": [10]},
    ]
    batch = collate_pairs(examples, BOS, EOS)
    assert batch.source_ids.tolist() == [[5, 6], [9, 0]]
    assert batch.target_ids.tolist() == [[BOS, 7, 8], [BOS, 10, 0]]
    assert batch.labels.tolist() == [[7, 8, EOS], [10, EOS, -100]]
    assert batch.target_mask.tolist() == [[1, 1, 1], [1, 1, 0]]
    left = collate_pairs(examples, BOS, EOS, side="left")
    assert left.source_ids.tolist() == [[5, 6], [0, 9]]


# ---- examples that a tokenizer has padded, sentence pairs ----------------------------------------


def padded_before(row: list[int], length: int, side: str, filler: int = PAD) -> dict:
    """The example as `tokenizer(text, padding="max_length")` gives it, labels included."""
    zeros = [0] * (length - len(row))

    def filled(tokens, filler):
        rest = [filler] * len(zeros)
        return rest + tokens if side == "left" else tokens + rest

    return {
        "input_ids": filled(row, filler),
        "attention_mask": filled([1] * len(row), 0),
        "labels": filled(row, -100),
    }


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("filler", [PAD, EOS])
def test_padding_that_the_examples_bring_along_stays_padding(side, filler):
    for seed in range(20):
        rows = ragged(seed)
        padded = [padded_before(row, 12, side, filler) for row in rows]
        plain = [{"input_ids": row, "labels": row} for row in rows]
        for fn in (collate, collate_lm, partial(collate_packed, length=12)):
            for name, tensor in fn(plain).items():
                found = fn(padded)[name]
                assert found is tensor or torch.equal(found, tensor), (fn, name)


def test_padding_between_and_behind_the_tokens_of_pairs_is_cut_off():
    examples = [
        {"input_ids": [0, 5, 6, 0], "attention_mask": [0, 1, 1, 0], "labels": [7, EOS, -100, -100]},
        {
            "input_ids": [9],
            "labels": [10, EOS, PAD],
            "decoder_attention_mask": [1, 1, 0],
            "token_type_ids": None,
        },
    ]
    plain = [{"input_ids": [5, 6], "labels": [7]}, {"input_ids": [9], "labels": [10]}]
    expected = collate_pairs(plain, BOS, EOS)
    for name, tensor in collate_pairs(examples, BOS, EOS).items():
        assert torch.equal(tensor, expected[name]), name
    as_columns = {n: [e.get(n) for e in examples] for n in examples[0] | examples[1]}
    assert torch.equal(collate_pairs(as_columns, BOS, EOS).labels, expected.labels)


PAIRS = [
    {"input_ids": [1, 7, 8, 2, 9, 5, 2], "token_type_ids": [0, 0, 0, 0, 1, 1, 1]},
    {"input_ids": [1, 7, 2, 6, 2, 0], "token_type_ids": [0, 0, 0, 1, 1, 0]}
    | {"attention_mask": [1, 1, 1, 1, 1, 0]},
]


def test_an_end_within_a_target_is_a_token_like_others():
    batch = collate_pairs([{"input_ids": [5], "labels": [7, EOS, 8]}], BOS, EOS)
    assert batch.labels.tolist() == [[7, EOS, 8, EOS]]


@pytest.mark.parametrize("labels", [[], [-100, -100, -100]])
def test_a_target_of_nothing_is_its_end(labels):
    batch = collate_pairs([{"input_ids": [5, 6, 7][: len(labels)], "labels": labels}], BOS, EOS)
    assert batch.labels.tolist() == [[EOS]]


def test_segments_go_where_their_tokens_go():
    right = [[0, 0, 0, 0, 1, 1, 1], [0, 0, 0, 1, 1, 0, 0]]
    assert collate(PAIRS).segment_ids.tolist() == right
    left = [[0, 0, 0, 0, 1, 1, 1], [0, 0, 0, 0, 0, 1, 1]]
    assert collate_lm(PAIRS, side="left").segment_ids.tolist() == left
    cut = collate(PAIRS, max_length=4, truncate=True)
    assert cut.segment_ids.tolist() == [[0, 0, 0, 0], [0, 0, 0, 1]]
    assert collate_packed(PAIRS, 12).segment_ids.tolist() == [[0, 0, 0, 0, 1, 1, 1, 0, 0, 0, 1, 1]]
    with_one_sentence = collate([*PAIRS, [5, 6]]).segment_ids
    assert with_one_sentence.tolist() == [*right, [0] * 7]
    assert collate([{"input_ids": [5], "token_type_ids": [0]}]).segment_ids is None


def test_the_loss_of_a_batch_uses_its_segments():
    config = Config(12, 16, num_heads=2, style="bert", num_segments=2)
    model = large_init(EncoderOnly(config).double())
    hide = partial(collate_mlm, mask_id=4, vocab_size=12, special_ids=[0, 1, 2], probability=1.0)
    batch = hide(PAIRS, generator=torch.Generator().manual_seed(0))
    segments = torch.tensor([[0, 0, 0, 0, 1, 1, 1], [0, 0, 0, 1, 1, 0, 0]])
    tensors = batch.input_ids, batch.attention_mask, batch.labels
    assert model.loss(**batch) == model.loss(*tensors, segment_ids=segments)
    assert model.loss(**batch) != model.loss(*tensors)


# ---- the forms in which data sets and tokenizers hand them over ----------------------------------

EXAMPLES = [
    {"input_ids": [5, 6, EOS], "labels": [-100, 6, EOS], "token_type_ids": [0, 0, 1]},
    {"input_ids": [8, EOS], "labels": [8, EOS], "token_type_ids": [0, 0]},
    {"input_ids": [9, 4, 7, EOS], "labels": [-100] * 3 + [EOS], "token_type_ids": [0, 1, 1, 1]},
]
ONE_SENTENCE = [e | {"token_type_ids": [0] * len(e["input_ids"])} for e in EXAMPLES]
COLLATORS = {
    "collate": collate,
    "left": partial(collate, side="left"),
    "lm": collate_lm,
    "mlm": lambda examples: collate_mlm(
        examples, 3, VOCAB, probability=0.5, generator=torch.Generator().manual_seed(0)
    ),
    "packed": partial(collate_packed, length=6),
    "pairs": partial(collate_pairs, bos_id=BOS, eos_id=EOS),
}


def each(convert):
    """Every row of every example converted."""
    return lambda examples: [{n: convert(row) for n, row in e.items()} for e in examples]


def columns(convert=list):
    return lambda examples: {n: convert([e[n] for e in examples]) for n in examples[0]}


def padded(side, mask):
    """All rows as long as the longest, by a tokenizer; with or without its attention_mask."""

    def fill(row, filler):
        rest = [filler] * (7 - len(row))
        return rest + row if side == "left" else row + rest

    def form(examples):
        return [
            {
                "input_ids": fill(e["input_ids"], EOS),
                "labels": fill(e["labels"], -100),
                "token_type_ids": fill(e["token_type_ids"], 0),
                "attention_mask": mask(fill([1] * len(e["input_ids"]), 0)),
                "special_tokens_mask": fill([0] * len(e["input_ids"]), 1),
                "text": "a b c",
                "decoder_attention_mask": None,
            }
            for e in examples
        ]

    return form


FORMS = {
    "tensors": each(torch.tensor),
    "tensors (1, T)": each(lambda row: torch.tensor([row])),
    "lists (1, T)": each(lambda row: [row]),
    "numpy": each(np.array),
    "numpy (1, T)": each(lambda row: np.array([row], dtype=np.int32)),
    "lists of numpy's numbers": each(lambda row: list(np.array(row))),
    "tuples": each(tuple),
    "a generator": lambda examples: (e for e in examples),
    "mapping of lists": columns(),
    "mapping of tensors (1, T)": columns(lambda rows: [torch.tensor([row]) for row in rows]),
    "mapping of arrays": columns(lambda rows: [np.array(row) for row in rows]),
    "pyarrow's tables of one row": lambda examples: [
        SimpleNamespace(to_pylist=lambda e=e: [e]) for e in examples
    ],
    "pyarrow's scalars": each(lambda row: SimpleNamespace(as_py=lambda: row)),
    "left, padded": padded("left", list),
    "right, padded": padded("right", list),
    "right, padded, bool": padded("right", np.array),
    "padded columns": lambda examples: columns()(padded("left", list)(examples)),
    "padded tensor (B, T)": lambda examples: {
        n: torch.tensor(column)
        for n, column in columns()(padded("right", list)(examples)).items()
        if n.endswith(("ids", "labels", "attention_mask")) and n != "decoder_attention_mask"
    },
}


def assert_equal(found, expected):
    for name, tensor in expected.items():
        assert found[name] is tensor or torch.equal(found[name], tensor), name


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", COLLATORS)
def test_every_form_gives_the_batch_of_plain_lists(name, form):
    examples = ONE_SENTENCE if name == "pairs" else EXAMPLES
    expected = COLLATORS[name](examples)
    assert_equal(COLLATORS[name](FORMS[form](examples)), expected)
    assert name == "pairs" or expected.segment_ids is not None


def test_labels_none_are_no_labels():
    rows = [{"input_ids": e["input_ids"]} for e in EXAMPLES]
    for none in (
        [r | {"labels": None} for r in rows],
        columns()([r | {"labels": None} for r in rows]),
    ):
        assert collate(none).labels is None
        assert_equal(collate_lm(none), collate_lm(rows))
    assert collate({"input_ids": [[5]], "labels": None}).labels is None


def test_no_examples_and_empty_examples_have_a_batch():
    for none in ([], {"input_ids": []}):
        assert collate(none).input_ids.shape == (0, 0)
        assert collate(none).labels is None
    for empty in ([[], [5]], [{"input_ids": np.array([])}, [5]], {"input_ids": [[], [5]]}):
        assert collate(empty).attention_mask.tolist() == [[0], [1]]
    assert collate([{"input_ids": [], "labels": []}]).labels.shape == (1, 0)


# ---- one class for each example ------------------------------------------------------------------


@pytest.mark.parametrize("name", ["label", "labels"])
def test_a_class_for_each_example_becomes_labels_of_one_axis(name):
    rows, classes = [[5, 6, EOS], [8, EOS], [9]], [2, 0, -100]
    expected = collate(rows, side="left", multiple_of=4)
    examples = [{"input_ids": row, name: c} for row, c in zip(rows, classes, strict=True)]
    forms = [
        examples,
        [e | {name: torch.tensor(e[name])} for e in examples],
        [e | {name: np.array([e[name]])} for e in examples],
        columns()(examples),
        {"input_ids": rows, name: torch.tensor(classes), "text": "a"},
    ]
    for form in forms:
        batch = collate_classes(form, side="left", multiple_of=4)
        assert torch.equal(batch.labels, torch.tensor(classes))
        assert torch.equal(batch.input_ids, expected.input_ids)
        assert torch.equal(batch.attention_mask, expected.attention_mask)
    assert batch.part(1, 2).labels.tolist() == [0]
    assert batch.part(3, 4).labels.tolist() == [-100]
    none = collate_classes([]).labels
    assert (none.shape, none.dtype) == ((0,), torch.int64)


# ---- conversations -------------------------------------------------------------------------------


def test_only_what_the_assistant_says_is_learned_wherever_its_words_occur():
    """The user says the assistant's words, and the template's: nothing is searched for."""
    turns = [
        {"role": "system", "content": "be brief"},
        {"role": "user", "content": "<assistant>hi</s>"},
        {"role": "assistant", "content": "hi"},
        {"role": "user", "content": "bye"},
        {"role": "assistant", "content": "bye"},
    ]

    def template(role, content):
        return f"<{role}>", content, "</s>"

    example = chat_example(turns, lambda text: [ord(c) for c in text], template)
    text = "".join(map(chr, example["input_ids"]))
    assert text == "".join("".join(template(t["role"], t["content"])) for t in turns)
    learned = "".join("_" if label == -100 else chr(label) for label in example["labels"])
    assert learned.replace("_", "") == "hi</s>bye</s>"
    assert learned.endswith("</s>")
    assert learned.index("hi") == text.rindex("hi")
    assert all(
        label in (-100, i) for i, label in zip(example["input_ids"], example["labels"], strict=True)
    )
    assert collate_lm([example]).labels[0].tolist() == [*example["labels"][1:], -100]


@pytest.mark.parametrize("turn", [{"role": "", "text": ""}, {"content": "", "text": ""}])
def test_a_turn_without_a_role_or_content_is_refused(turn):
    turns, message = [{"role": "user", "content": ""}, turn], ", ".join(turn)
    with pytest.raises(
        ValueError, match=rf"^turns\[1\] must have role and content, got {message}$"
    ):
        chat_example(turns, list, lambda role, content: (role, content, ""))


# ---- what is refused -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: collate([[5], [6, 7, 8]], max_length=2),
            "rows[1] has 3 tokens, more than max_length = 2: truncate it, or raise max_length",
        ),
        (lambda: collate([[5]], truncate=True), "truncate=True needs a max_length to cut at"),
        (lambda: collate([{"ids": [5]}]), "examples[0] has no input_ids; it has ids"),
        (
            lambda: collate([{"input_ids": [5], "labels": [5]}, [6]]),
            "examples[1]: no labels, but others have some; give all labels, or none",
        ),
        (
            lambda: collate([{"input_ids": [5], "labels": [5, 6]}]),
            "examples[0]: labels must have an entry for each of the 1 input_ids, got 2",
        ),
        (
            lambda: collate([[5], {"input_ids": [5], "labels": 1}]),
            "examples[1]: labels must be a list of integers, got 1; one class for each "
            "example is for collate_classes",
        ),
        (lambda: collate([{"input_ids": None}]), "examples[0] has no input_ids; it has nothing"),
        (
            lambda: collate_classes([{"input_ids": [5], "text": "a", "label": None}]),
            "examples[0] has no label; it has input_ids, text",
        ),
        (
            lambda: collate([{"input_ids": [5], "attention_mask": [2]}]),
            "examples[0]: attention_mask must be 0 (padding) and 1 only",
        ),
        (
            lambda: collate([{"input_ids": [5], "token_type_ids": []}]),
            "examples[0]: token_type_ids must have an entry for each of the 1 input_ids, got 0",
        ),
        (
            lambda: collate_pairs([{"input_ids": [5], "labels": [7, EOS, PAD]}], BOS, EOS),
            "examples[0]: labels go on with pad_id = 0 after eos_id = 2; give -100 in "
            "place of padding, or a decoder_attention_mask",
        ),
        (
            lambda: collate_pairs([{"input_ids": [5], "labels": [7, -100, EOS]}], BOS, EOS),
            "examples[0]: labels have -100 between tokens; a target is read as a whole, "
            "so give all of its tokens",
        ),
        (
            lambda: collate_pairs(
                [{"input_ids": [5], "labels": [7], "token_type_ids": [1]}], BOS, EOS
            ),
            "examples[0] has token_type_ids other than 0; a source has none",
        ),
        (lambda: collate([[5]], multiple_of=0), "multiple_of must be an integer >= 1, got 0"),
        (lambda: collate_pairs([[5]], BOS, EOS), "examples[0] has no labels; it has input_ids"),
        (
            lambda: collate_pairs([{"input_ids": [5]}], BOS, EOS),
            "examples[0] has no labels; it has input_ids",
        ),
        (
            lambda: collate([{"input_ids": [5], "token_type_ids": 5}]),
            "examples[0]: token_type_ids must be a list of integers, got 5",
        ),
        (lambda: collate(["some text"]), "examples[0] is text, 'some text'; tokenize it"),
        (lambda: collate("some text"), "examples[0] is text, 's'; tokenize it"),
        (
            lambda: collate([[5], {"input_ids": "some text"}]),
            "examples[1]: input_ids must be a list of integers, got 'some text'; tokenize it",
        ),
        (lambda: collate({"text": ["a", "b"]}), "examples has no input_ids; it has text"),
        (
            lambda: collate({"input_ids": [5, 6]}),
            "examples[0]: input_ids must be a list of integers, got 5; a single example "
            "goes into a list of examples",
        ),
        (
            lambda: collate({"input_ids": 5}),
            "examples: input_ids must be a list of integers, got 5; a single example goes "
            "into a list of examples",
        ),
        (
            lambda: collate({"input_ids": [[5], [6]], "labels": [[5]]}),
            "examples: the columns must have as many rows each, got {'input_ids': 2, 'labels': 1}",
        ),
        (
            lambda: collate({"input_ids": [[5], [6]], "labels": [[5], [6, 7]]}),
            "examples[1]: labels must have an entry for each of the 1 input_ids, got 2",
        ),
        (
            lambda: collate_lm([{"input_ids": [5], "labels": n} for n in ([5], None, [5], None)]),
            "examples[1], examples[3]: no labels, but others have some; give all labels, or none",
        ),
        (
            lambda: collate([[5], {"input_ids": torch.tensor([[5], [6]])}]),
            "examples[1]: input_ids must be one row, (T) or (1, T), got 2 rows",
        ),
        (
            lambda: collate([{"input_ids": [5, 6], "labels": np.array([5, np.nan])}]),
            "examples[0]: labels must hold integers, got 5.0 at position 0",
        ),
        (
            lambda: collate([[5, 6.0]]),
            "examples[0]: input_ids must hold integers, got 6.0 at position 1",
        ),
        (
            lambda: collate([[5, True]]),
            "examples[0]: input_ids must hold integers, got True at position 1",
        ),
        (
            lambda: collate([[5, None]]),
            "examples[0]: input_ids must hold integers, got None at position 1",
        ),
        (
            lambda: collate(torch.tensor([5, 6])),
            "examples[0]: input_ids must be a list of integers, got 5; a single example "
            "goes into a list of examples",
        ),
        (
            lambda: collate([{"input_ids": [5], "attention_mask": [0.5]}]),
            "examples[0]: attention_mask must be 0 (padding) and 1 only",
        ),
        (
            lambda: collate_classes([{"input_ids": [5], "text": "a"}]),
            "examples[0] has no label; it has input_ids, text",
        ),
        (
            lambda: collate_classes([{"label": 5}]),
            "examples[0] has no input_ids; it has label",
        ),
        (
            lambda: collate_classes([{"input_ids": [5], "label": "good"}]),
            "examples[0]: label must hold integers, got 'good' at position 0",
        ),
        (
            lambda: collate_classes([{"input_ids": [5, 6], "labels": [5, 6]}]),
            "examples[0]: labels must be one class, got 2 numbers",
        ),
        (
            lambda: collate_packed([[5, 6, 7]], 2),
            "rows[0] has 3 tokens, more than length = 2: split it, or raise length",
        ),
    ],
)
def test_what_cannot_be_collated_is_refused(call, message):
    with pytest.raises((ValueError, TypeError)) as error:
        call()
    assert str(error.value) == message


def test_rows_that_are_too_long_are_cut_where_that_is_wanted():
    batch = collate(with_labels([[5, 6, 7], [8]]), max_length=2, truncate=True)
    assert batch.input_ids.tolist() == [[5, 6], [8, 0]]
    assert batch.labels.shape == (2, 2)


def test_packed_rows_are_as_long_as_the_longest_example_by_default():
    batch = collate_packed([[5], [6, 7, 8], [4, 3]])
    assert batch.attention_mask.tolist() == [[1, 1, 1], [1, 1, 2]]
    assert batch.labels.tolist() == [[7, 8, -100], [3, -100, -100]]


# ---- the conformance suite -----------------------------------------------------------------------


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("pad_id", [0, 7])
def test_the_conformance_suite_passes(side, pad_id):
    for fn, labels in ((collate, "none"), (collate_lm, "next"), (collate, "given")):
        for rows in ("lists", "dicts") if labels != "given" else ("dicts",):
            report = check_collator(
                partial(fn, pad_id=pad_id, side=side),
                tier="strict", rows=rows, labels=labels, pad_id=pad_id, side=side,
            )  # fmt: skip
            assert report.passed, str(report)
