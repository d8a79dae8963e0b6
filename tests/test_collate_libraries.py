"""Collators and libraries: equal to transformers' where it is right, and right where it is not.

They take what datasets, tokenizers and torch's DataLoader hand over.
"""

from functools import partial

import pytest
import torch
from test_collate import (
    BOS,
    COLLATORS,
    EOS,
    EXAMPLES,
    ONE_SENTENCE,
    PAD,
    VOCAB,
    assert_equal,
    padded,
    ragged,
    with_labels,
)
from torch.utils.data import DataLoader

from minitransformer import Config, DecoderOnly, generate, next_token_labels, pad
from minitransformer.data.collate import (
    collate,
    collate_classes,
    collate_lm,
    collate_packed,
    collate_pairs,
)

SEEDS = 30

# ---- the library's, where it is right ------------------------------------------------------------


@pytest.fixture(scope="module")
def theirs():
    tf = pytest.importorskip("transformers")
    from tokenizers import Tokenizer, models

    names = ["<pad>", "<s>", "</s>", "<mask>", *(f"t{i}" for i in range(4, VOCAB))]
    model = models.WordLevel({name: i for i, name in enumerate(names)}, unk_token="<pad>")

    def make(side="right", pad_token="<pad>"):
        return tf.PreTrainedTokenizerFast(
            tokenizer_object=Tokenizer(model),
            pad_token=pad_token,
            eos_token="</s>",
            mask_token="<mask>",
            padding_side=side,
        )

    return tf, make


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("multiple_of", [1, 8])
def test_padding_equals_data_collator_with_padding(side, multiple_of, theirs):
    tf, make = theirs
    collator = tf.DataCollatorWithPadding(
        make(side), pad_to_multiple_of=None if multiple_of == 1 else multiple_of
    )
    for seed in range(SEEDS):
        rows = ragged(seed)
        expected = collator([{"input_ids": row} for row in rows])
        batch = collate(rows, side=side, multiple_of=multiple_of)
        assert torch.equal(batch.input_ids, expected["input_ids"])
        assert torch.equal(batch.attention_mask, expected["attention_mask"])


@pytest.mark.parametrize("side", ["right", "left"])
def test_labels_equal_data_collator_for_seq2seq(side, theirs):
    tf, make = theirs
    collator = tf.DataCollatorForSeq2Seq(make(side))
    for seed in range(SEEDS):
        examples = with_labels(ragged(seed), seed)
        expected = collator([dict(one) for one in examples])
        batch = collate(examples, side=side)
        for name in ("input_ids", "attention_mask", "labels"):
            assert torch.equal(getattr(batch, name), torch.as_tensor(expected[name])), name


@pytest.mark.parametrize("side", ["right", "left"])
def test_next_tokens_equal_data_collator_for_language_modeling_shifted(side, theirs):
    """Theirs stand at their own tokens and the model shifts them; padded with its own token."""
    tf, make = theirs
    collator = tf.DataCollatorForLanguageModeling(make(side), mlm=False)
    for seed in range(SEEDS):
        rows = ragged(seed)
        expected = collator([{"input_ids": row} for row in rows])
        batch = collate_lm(rows, side=side)
        assert torch.equal(batch.input_ids, expected["input_ids"])
        shifted = expected["labels"][:, 1:].clone()
        shifted[batch.attention_mask[:, :-1] == 0] = -100  # the first token of a row, on the left
        assert torch.equal(batch.labels[:, :-1], shifted)
        assert (batch.labels[:, -1] == -100).all()


def test_packed_rows_hold_what_data_collator_with_flattening_holds(theirs):
    tf, _ = theirs
    collator = tf.DataCollatorWithFlattening()
    for seed in range(SEEDS):
        rows = ragged(seed)
        flat = collator([{"input_ids": row} for row in rows])
        total = sum(map(len, rows))
        batch = collate_packed(rows, length=total)
        assert sorted(batch.input_ids.flatten().tolist()) == sorted(flat["input_ids"][0].tolist())
        learned = flat["labels"][0][flat["labels"][0] != -100]
        ours = batch.labels[batch.labels != -100]
        assert sorted(ours.tolist()) == sorted(learned.tolist())


# ---- right where it is not -----------------------------------------------------------------------


@pytest.mark.parametrize("side", ["right", "left"])
def test_the_end_is_learned_where_padding_has_its_id(side, theirs):
    tf, make = theirs
    rows = [[11, 12, 13, EOS], [21, EOS]]
    batch = collate_lm(rows, pad_id=EOS, side=side)
    assert (batch.labels == EOS).sum() == 2
    naive = tf.DataCollatorForLanguageModeling(make(side, "</s>"), mlm=False)
    assert (naive([{"input_ids": row} for row in rows])["labels"] == EOS).sum() == 0


# ---- data sets, tokenizers, data loaders ---------------------------------------------------------


@pytest.mark.parametrize("kind", [None, "numpy", "torch", "arrow"])
@pytest.mark.parametrize("name", COLLATORS)
def test_every_format_of_hugging_face_datasets_gives_the_batch_of_plain_lists(name, kind):
    datasets = pytest.importorskip("datasets")
    examples = ONE_SENTENCE if name == "pairs" else EXAMPLES
    data = datasets.Dataset.from_list(padded("left", list)(examples)).with_format(kind)
    expected = COLLATORS[name](examples)
    for given in (data, data[:], data[:3], list(data), [data[0], data[1], data[2]]):
        assert_equal(COLLATORS[name](given), expected)
    rows = collate(datasets.Dataset.from_list(examples).with_format(kind)["input_ids"])
    assert torch.equal(rows.input_ids, collate(examples).input_ids)


@pytest.mark.parametrize("kind", [None, "numpy", "torch", "arrow"])
def test_classes_of_hugging_face_datasets_are_read_in_every_format(kind):
    datasets = pytest.importorskip("datasets")
    data = datasets.Dataset.from_dict({"input_ids": [[5, 6], [8]], "label": [2, 0]})
    data = data.with_format(kind)
    for given in (data, data[:], [data[0], data[1]]):
        assert collate_classes(given).labels.tolist() == [2, 0]


def test_rows_of_hugging_face_datasets_are_examples():
    datasets = pytest.importorskip("datasets")
    examples = with_labels(ragged(5))
    data = datasets.Dataset.from_list(
        [e | {"attention_mask": [1] * len(e["input_ids"])} for e in examples]
    )
    (batch,) = DataLoader(data, batch_size=len(examples), collate_fn=collate_lm)
    assert torch.equal(batch.labels, collate_lm(examples).labels)
    (batch,) = DataLoader(data.with_format("torch"), batch_size=len(examples), collate_fn=collate)
    assert torch.equal(batch.input_ids, collate(examples).input_ids)


@pytest.mark.parametrize("tensors", [None, "pt", "np"])
@pytest.mark.parametrize("side", ["left", "right"])
def test_what_a_tokenizer_returns_is_collated(theirs, tensors, side):
    _, make = theirs
    tokenizer, texts = make(side), ["t5 t6 t7", "t8"]
    tokenizer._tokenizer.pre_tokenizer = __import__("tokenizers").pre_tokenizers.Whitespace()
    encoded = tokenizer(
        texts, padding=True, return_tensors=tensors, return_special_tokens_mask=True
    )
    assert_equal(collate_lm(encoded), collate_lm([[5, 6, 7], [8]]))
    alone = [tokenizer(text, return_tensors=tensors) for text in texts]
    assert_equal(collate_lm(alone), collate_lm([[5, 6, 7], [8]]))


@pytest.mark.filterwarnings("ignore:This DataLoader will create")  # where there is one core
@pytest.mark.parametrize("workers", [0, 2])
def test_a_data_loader_takes_collators_as_they_are(workers):
    rows = ragged(1) + ragged(2)
    loader = DataLoader(
        rows, batch_size=3, num_workers=workers, collate_fn=partial(collate_lm, pad_id=PAD)
    )
    batches = list(loader)
    assert sum(len(batch.input_ids) for batch in batches) == len(rows)
    expected = collate_lm(rows[:3])
    assert torch.equal(batches[0].input_ids, expected.input_ids)
    assert torch.equal(batches[0].labels, expected.labels)


@pytest.mark.parametrize(
    ("make", "given"),
    [
        (collate_lm, [[1, 2, 3], [6]]),
        (
            partial(collate_pairs, bos_id=1, eos_id=2),
            [{"input_ids": [3, 4], "labels": [5]}, {"input_ids": [6], "labels": [7]}],
        ),
    ],
)
def test_a_loader_pins_a_batch_and_leaves_it_a_batch(make, given, monkeypatch):
    """What DataLoader(pin_memory=True) calls where there is a GPU."""
    from torch.utils.data._utils.pin_memory import pin_memory

    pinned = []
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda x: pinned.append(x) or x.clone())
    batch = make(given)
    found = pin_memory(batch)
    assert type(found) is type(batch)
    assert len(pinned) == sum(x is not None for x in batch.values())
    for name, x in batch.items():
        assert found[name] is x is None or (torch.equal(found[name], x) and found[name] is not x)


# ---- does it learn to stop? ----------------------------------------------------------------------


def trained_to_count(labels_of) -> tuple[float, float]:
    """(probability of EOS where it is due, share of texts that stop) of a small model."""
    torch.manual_seed(0)
    rows = [[BOS, *range(first, first + n), EOS] for first in range(5, 20) for n in range(2, 6)]
    rows = [row for row in rows if sum(row) % 3]  # the end depends on the text
    batch = pad(rows, pad_id=EOS)
    labels = labels_of(batch.input_ids, batch.attention_mask)
    model = DecoderOnly(Config(30, 32, num_layers=1, num_heads=2, max_length=64, style="gpt2"))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    for _ in range(80):
        optimizer.zero_grad()
        model.loss(batch.input_ids, batch.attention_mask, labels).backward()
        optimizer.step()
    with torch.no_grad():
        probabilities = model(batch.input_ids, batch.attention_mask).softmax(-1)[..., EOS]
    due = next_token_labels(batch.input_ids, batch.attention_mask) == EOS
    starts = pad([row[:2] for row in rows])
    written = generate(model, starts.input_ids, starts.attention_mask, 12, eos_id=EOS)
    stopped = sum(row[-1].item() == EOS for row in written) / len(written)
    return probabilities[due].mean().item(), stopped


def test_labels_made_from_ids_unteach_the_end():
    def naive(ids, mask):
        labels = next_token_labels(ids, mask)
        return labels.masked_fill(labels == EOS, -100)

    right, wrong = trained_to_count(next_token_labels), trained_to_count(naive)
    assert right[0] > 0.15  # several lengths are possible, so it is not certain
    assert right[1] == 1.0
    assert wrong[0] < 0.01
    assert wrong[1] == 0.0
