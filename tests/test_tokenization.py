"""Tokenizers: the library's ids, our padding."""

import json
import tracemalloc

import pytest
import torch

pytest.importorskip("tokenizers")

from minitransformer import pad
from minitransformer.data.files import InputError
from minitransformer.data.tokenization import SPECIAL, Tokenizer

TEXTS = [
    "The quick brown fox jumps over the lazy dog.",
    "A short sentence.",
    "Another, rather longer sentence about a dog and a fox, and about what they do all day.",
] * 4
KINDS = ["bpe", "wordpiece"]


@pytest.fixture(params=KINDS)
def tokenizer(request) -> Tokenizer:
    return Tokenizer.train(TEXTS, 400, request.param)


def test_a_trained_vocabulary_is_as_large_as_asked_and_always_the_same(tokenizer):
    assert len(tokenizer) <= 400
    kind = "wordpiece" if "[CLS]" in tokenizer.tokenizer.get_vocab() else "bpe"
    again = Tokenizer.train(TEXTS, 400, kind)
    assert again.tokenizer.get_vocab() == tokenizer.tokenizer.get_vocab()
    assert tokenizer.special_ids == [0, 1, 2, 3, 4]
    assert tokenizer.names(range(5)) == SPECIAL[kind]
    ids = [getattr(tokenizer, f"{role}_id") for role in ("pad", "bos", "eos", "unk", "mask")]
    assert ids == [SPECIAL[kind].index(name) for name in {
        "bpe": ["<pad>", "<s>", "</s>", "<unk>", "<mask>"],
        "wordpiece": ["[PAD]", "[CLS]", "[SEP]", "[UNK]", "[MASK]"],
    }[kind]]  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_to_learn_a_vocabulary_the_texts_are_not_copied(kind):
    texts = [f"{' '.join(TEXTS)} {i}" for i in range(4_000)]
    tracemalloc.start()
    Tokenizer.train(texts, 400, kind)
    most = tracemalloc.get_traced_memory()[1]  # of what Python allocates, strings among it
    tracemalloc.stop()
    assert most < sum(map(len, texts)) / 4


def test_the_letters_of_wordpiece_are_those_of_the_texts_as_it_reads_them():
    texts = ["ΟΔΟΣ É e\u0301 각 ﬁ İ 中文\t\0x", "\u0323\u0301q\u0307\u0323"]
    tokenizer = Tokenizer.train(texts, 100, "wordpiece")
    read = "".join(map(tokenizer.tokenizer.normalizer.normalize_str, texts))
    letters = sorted(set(read) - {" "})
    assert tokenizer.names(range(5, 5 + 2 * len(letters))) == [
        *letters,
        *(f"##{letter}" for letter in letters),
    ]


def test_two_texts_are_one_row_of_two_segments(tokenizer):
    ((ids, segments), (alone, zeros)) = tokenizer.encode_pairs([("a dog", "a fox"), ("a dog",)])
    first, second = tokenizer.encode(["a dog", "a fox"])
    assert (ids, alone) == (first + second[1:], first)
    assert segments == [0] * len(first) + [1] * len(second[1:])
    assert zeros == [0] * len(first)


def test_ids_that_nobody_has_count_too(tokenizer):
    data = json.loads(tokenizer.tokenizer.to_str())
    data["model"]["vocab"]["zebra"] = 5_000
    from tokenizers import Tokenizer as Theirs

    assert len(Tokenizer(Theirs.from_str(json.dumps(data)))) == 5_001


def test_texts_are_wrapped_ragged_and_read_back(tokenizer):
    rows = tokenizer.encode(["a dog", "the lazy fox and the dog"])
    assert len(rows[0]) < len(rows[1])
    for row in rows:
        assert (row[0], row[-1]) == (tokenizer.bos_id, tokenizer.eos_id)
    assert [tokenizer.decode(row) for row in rows] == ["a dog", "the lazy fox and the dog"]
    bare = tokenizer.encode(["a dog"], add_special=False)[0]
    assert bare == rows[0][1:-1]
    assert tokenizer.decode(torch.tensor(rows[0]), skip_special=False) != "a dog"


@pytest.mark.parametrize("text", ["héllo 🙂", "naïve\tCAFÉ\n", "日本語", " two  spaces "])
def test_on_bytes_nothing_is_unknown_or_lost(text):
    tokenizer = Tokenizer.train(TEXTS, 300)
    ids = tokenizer.encode([text])[0]
    assert tokenizer.unk_id not in ids
    assert tokenizer.decode(ids) == text


def test_a_saved_tokenizer_is_the_same_and_transformers_reads_it(tokenizer, tmp_path):
    tf = pytest.importorskip("transformers")
    tokenizer.save(tmp_path)
    loaded, theirs = Tokenizer.load(tmp_path), tf.AutoTokenizer.from_pretrained(tmp_path)
    assert Tokenizer.load(tmp_path / "tokenizer.json").encode(TEXTS) == tokenizer.encode(TEXTS)
    assert loaded.encode(TEXTS) == tokenizer.encode(TEXTS) == theirs(TEXTS)["input_ids"]
    for role in ("pad", "bos", "eos", "unk", "mask"):
        assert getattr(loaded, f"{role}_id") == getattr(tokenizer, f"{role}_id")
    assert theirs.pad_token_id == tokenizer.pad_id


def test_the_roles_of_tokens_are_read_from_beside_the_file(tmp_path):
    Tokenizer.train(TEXTS, 300).save(tmp_path)
    said = {"pad_token": {"content": "</s>"}, "bos_token": "<unk>"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(said))
    loaded = Tokenizer.load(tmp_path)
    assert (loaded.pad_id, loaded.bos_id, loaded.eos_id) == (2, 3, 2)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: Tokenizer.train([" ", ""], 400), ValueError, "there is no text"),
        (lambda: Tokenizer.train(TEXTS, 260), ValueError, "must be 261 or more for bpe, got 260"),
        (
            lambda: Tokenizer.train(TEXTS, 5, "wordpiece"),
            ValueError,
            "or more for wordpiece and the",
        ),
        (lambda: Tokenizer.train(TEXTS, 400, "sp"), ValueError, "kind must be 'bpe' or 'wordpie"),
        (lambda: Tokenizer.train(TEXTS, 400).encode("a dog"), TypeError, "takes a list of texts"),
    ],
)
def test_what_cannot_be_is_refused(call, error, message):
    with pytest.raises(error, match=message):
        call()


def test_files_that_are_none_are_refused_by_name(tmp_path):
    with pytest.raises(InputError, match=r"tokenizer.json: no such file; .* AutoTokenizer"):
        Tokenizer.load(tmp_path)
    (tmp_path / "tokenizer.json").write_text("version https://git-lfs.github.com/spec/v1\n")
    with pytest.raises(InputError, match=r"tokenizer.json: is a pointer of Git LFS"):
        Tokenizer.load(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(InputError, match=r"tokenizer.json: is no tokenizer.json"):
        Tokenizer.load(tmp_path)
    Tokenizer.train(TEXTS, 300).save(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text("{")
    with pytest.raises(InputError, match=r"tokenizer_config.json: is not JSON"):
        Tokenizer.load(tmp_path)


# ---- the two classic examples --------------------------------------------------------------------


def test_a_short_and_a_long_sentence_padded_are_ones_and_zeros(tmp_path):
    """BERT's tokenizer with padding=True, and the same by `pad`: ids too, not only masks."""
    tf = pytest.importorskip("transformers")
    tokenizer = Tokenizer.train(TEXTS, 300, "wordpiece")
    vocabulary = tokenizer.tokenizer.get_vocab()
    theirs = tf.BertTokenizer(vocab=vocabulary, do_lower_case=True)  # 5.0: False
    sentences = ["A short sentence.", "Another, rather longer sentence about a dog."]
    expected = theirs(sentences, padding=True, return_tensors="pt")
    batch = pad(tokenizer.encode(sentences), tokenizer.pad_id)
    assert torch.equal(batch.input_ids, expected["input_ids"])
    assert torch.equal(batch.attention_mask, expected["attention_mask"])
    short, long = batch.attention_mask.tolist()
    assert short == [1] * 6 + [0] * (len(long) - 6)
    assert long == [1] * len(long)
    assert (batch.input_ids[0, 6:] == tokenizer.pad_id).all()
    assert tokenizer.unk_id not in batch.input_ids


def test_robertas_tokenizer_is_read_with_its_special_tokens(tmp_path):
    tf = pytest.importorskip("transformers")
    spec = json.loads(Tokenizer.train(TEXTS, 300).tokenizer.to_str())["model"]
    names = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]  # in RoBERTa's order
    names += [name for name in spec["vocab"] if name not in names]
    merges = [tuple(pair) for pair in spec["merges"]]
    theirs = tf.RobertaTokenizer(vocab={n: i for i, n in enumerate(names)}, merges=merges)
    theirs.save_pretrained(tmp_path)
    tokenizer = Tokenizer.load(tmp_path)
    ids = [getattr(tokenizer, f"{role}_id") for role in ("bos", "pad", "eos", "unk", "mask")]
    assert ids == tokenizer.special_ids == [0, 1, 2, 3, 4]
    assert tokenizer.mask_name == "<mask>"
    texts = ["the <mask> fox", "A dog,<mask>"]
    assert tokenizer.encode(texts) == theirs(texts)["input_ids"]
    assert all((row[0], row[-1], row.count(4)) == (0, 2, 1) for row in tokenizer.encode(texts))


def test_max_length_padding_with_the_end_of_sequence(tmp_path):
    """TinyLlama's example: pad_token = eos_token, padding="max_length", max_length=8."""
    tf = pytest.importorskip("transformers")
    Tokenizer.train(TEXTS, 400).save(tmp_path)
    theirs = tf.AutoTokenizer.from_pretrained(tmp_path)
    theirs.pad_token = theirs.eos_token
    tokenizer = Tokenizer.load(tmp_path)
    sentences = ["A short sentence.", "the lazy dog"]
    expected = theirs(sentences, padding="max_length", max_length=8, return_tensors="pt")
    rows = tokenizer.encode(sentences)
    assert max(map(len, rows)) < 8
    batch = pad(rows, pad_id=tokenizer.eos_id, max_length=8)
    assert torch.equal(batch.input_ids, expected["input_ids"])
    assert torch.equal(batch.attention_mask, expected["attention_mask"])
    right = batch.input_ids.masked_fill(batch.attention_mask == 0, -100)
    naive = batch.input_ids.masked_fill(batch.input_ids == tokenizer.eos_id, -100)
    assert (right == tokenizer.eos_id).sum() == 2  # each row's end is learned
    assert (naive == tokenizer.eos_id).sum() == 0  # labels made from ids forget it


@pytest.mark.parametrize("wanted", [True, False])
def test_a_space_before_a_text_is_added_as_the_config_says(tmp_path, wanted):
    Tokenizer.train(TEXTS, 400).save(tmp_path)
    about = json.loads((tmp_path / "tokenizer_config.json").read_text(encoding="utf-8"))
    about["add_prefix_space"] = wanted
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(about), encoding="utf-8")
    alone, spaced = Tokenizer.load(tmp_path).encode(["dog", " dog"])
    assert (alone == spaced) == wanted
