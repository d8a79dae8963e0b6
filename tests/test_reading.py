"""The user's files: of many kinds, read to one thing, refused with every mistake at once."""

import csv
import gzip
import io
import json
import random

import pytest

from minitransformer.data.cutting import cut, fit
from minitransformer.data.files import InputError
from minitransformer.data.held_out import normal_form, place, split, without
from minitransformer.data.reading import read_lines, read_records
from minitransformer.data.vocabulary import Vocabulary

PAIRS = [("Go.", "Va !"), ("Hi", "Salut"), ("Run!", "Cours ! \U0001f3c3")]
NAMES = ("source", "target")


def write(path, data):
    path.write_bytes(data if isinstance(data, bytes) else data.encode())
    return str(path)


def values(path, names=NAMES, columns=None):
    return [one.values for one in read_records([str(path)], names, columns).records]


# ---- kinds of files ------------------------------------------------------------------------------


def tabs(rows, end="\n"):
    return "".join("\t".join(row) + end for row in rows)


def as_csv(rows, delimiter=","):
    file = io.StringIO(newline="")
    csv.writer(file, delimiter=delimiter).writerows(rows)
    return file.getvalue()


def as_json_lines(rows, names=NAMES):
    return "".join(json.dumps(dict(zip(names, row, strict=True))) + "\n" for row in rows)


FILES = {
    "a.tsv": tabs(PAIRS),
    "windows.txt": b"\xef\xbb\xbf" + tabs(PAIRS, "\r\n").encode(),
    "old-mac.txt": tabs(PAIRS, "\r"),
    "utf16.tsv": tabs(PAIRS).encode("utf-16"),
    "big-endian.tsv": b"\xfe\xff" + tabs(PAIRS).encode("utf-16-be"),
    "utf32.tsv": tabs(PAIRS).encode("utf-32"),
    "packed.tsv.gz": gzip.compress(tabs(PAIRS).encode()),
    "packed-without-a-suffix": gzip.compress(tabs(PAIRS).encode("utf-16")),
    "trailing.tsv": tabs((*row, "") for row in PAIRS),
    "blank-lines.tsv": "\n" + tabs(PAIRS).replace("\n", "\n \n"),
    "no-last-end.tsv": tabs(PAIRS)[:-1],
    "a.csv": as_csv([("source", "target"), *PAIRS]),
    "other-names.csv": as_csv([("en", "fr"), *PAIRS]),
    "more-columns.csv": as_csv([("id", "target", "source"), *(("7", t, s) for s, t in PAIRS)]),
    "semicolons.csv": as_csv([("source", "target"), *PAIRS], ";"),
    "tabs.csv": as_csv([("source", "target"), *PAIRS], "\t"),
    "a.csv.gz": gzip.compress(as_csv([("source", "target"), *PAIRS]).encode()),
    "a.jsonl": as_json_lines(PAIRS),
    "blank-lines.jsonl": as_json_lines(PAIRS).replace("\n", "\n\n"),
    "list.json": json.dumps([{"source": s, "target": t, "id": 1} for s, t in PAIRS]),
}


@pytest.mark.parametrize("name", FILES)
def test_pairs_are_read_from_every_kind_of_file(tmp_path, name):
    assert values(write(tmp_path / name, FILES[name])) == PAIRS


def test_tatoebas_third_column_is_left_out_and_that_is_said(tmp_path):
    path = write(tmp_path / "fra.txt", tabs((*row, "CC-BY 2.0") for row in PAIRS))
    reading = read_records([path], NAMES)
    assert [one.values for one in reading.records] == PAIRS
    assert reading.notes == [f"{path}: what stands after column 2 is left out, in 3 lines"]


@pytest.mark.parametrize("columns", [("2", "1"), ("2", "3")])
def test_columns_are_chosen_by_number(tmp_path, columns):
    path = write(tmp_path / "a.tsv", tabs((*row, "x") for row in PAIRS))
    rows = [(*row, "x") for row in PAIRS]
    assert values(path, columns=columns) == [tuple(r[int(c) - 1] for c in columns) for r in rows]


@pytest.mark.parametrize("kind", ["csv", "tsv", "jsonl"])
def test_columns_are_chosen_by_name(tmp_path, kind):
    rows = [("7", source, "x", target) for source, target in PAIRS]
    head = ("id", "en", "note", "fr")
    written = {"csv": as_csv([head, *rows]), "tsv": tabs([head, *rows])}
    written["jsonl"] = as_json_lines(rows, head)
    path = write(tmp_path / f"a.{kind}", written[kind])
    assert values(path, columns=("en", "fr")) == PAIRS
    with pytest.raises(InputError, match=rf"a\.{kind}:1: has no column 'de' but id, en, note, fr"):
        values(path, columns=("en", "de"))


def test_csv_with_ends_of_lines_in_its_cells(tmp_path):
    rows = [("source", "target"), ('a, "b"\nc', "d"), ("x" * 200_000, "y")]
    path = write(tmp_path / "a.csv", as_csv(rows))
    assert values(path) == rows[1:]


def test_folders_are_read_and_what_is_passed_over_is_said(tmp_path):
    (tmp_path / "deep").mkdir()
    write(tmp_path / "b.tsv", tabs(PAIRS[1:]))
    write(tmp_path / "deep" / "c.jsonl", as_json_lines(PAIRS[:1]))
    write(tmp_path / "picture.png", b"\x89PNG")
    write(tmp_path / ".hidden", "no TAB")
    (tmp_path / ".git").mkdir()
    write(tmp_path / ".git" / "HEAD", "no TAB")
    reading = read_records([str(tmp_path)], NAMES)
    assert [one.values for one in reading.records] == [*PAIRS[1:], *PAIRS[:1]]
    assert reading.notes == [f"{tmp_path}: 2 files; passed over: 1 .png"]
    for path in tmp_path.rglob("*.*"):
        if path.suffix in (".tsv", ".jsonl"):
            path.unlink()
    with pytest.raises(InputError, match="no file in this folder is read; expected names"):
        read_records([str(tmp_path)], NAMES)


def test_several_files_are_one(tmp_path):
    paths = [write(tmp_path / f"{i}.tsv", tabs([row])) for i, row in enumerate(PAIRS)]
    assert [one.values for one in read_records(paths, NAMES).records] == PAIRS


# ---- prose ---------------------------------------------------------------------------------------

SENTENCES = [f"Sentence number {i} of this text is not like any other. " for i in range(60)]
PARAGRAPHS = ["".join(SENTENCES[i : i + 6]).strip() for i in range(0, 60, 6)]


def wrapped(paragraph):
    words = paragraph.split()
    return "\n".join(" ".join(words[i : i + 9]) for i in range(0, len(words), 9))


@pytest.mark.parametrize(
    "written",
    [
        "\n".join(PARAGRAPHS),
        "\n\n".join(PARAGRAPHS),
        " \n".join(f" {paragraph} \n" for paragraph in PARAGRAPHS),  # as WikiText has it
        "\n\n".join(map(wrapped, PARAGRAPHS)),
        "\n \n\n".join(map(wrapped, PARAGRAPHS)) + "\n\n",
    ],
    ids=["a line", "a line, empty ones between", "WikiText", "wrapped", "empty lines at the end"],
)
def test_paragraphs_are_found_in_every_layout(tmp_path, written):
    found = values(write(tmp_path / "prose.txt", written), ("text",))
    assert [" ".join(text.split()) for (text,) in found] == PARAGRAPHS


def test_short_lines_are_one_paragraph(tmp_path):
    path = write(tmp_path / "verse.txt", "one\ntwo\n\n\nthree\n")
    assert values(path, ("text",)) == [("one\ntwo",), ("three",)]
    assert [one.line for one in read_records([path], ("text",)).records] == [1, 5]


@pytest.mark.parametrize("room", [1, 7, 20, 64, 200, 10_000])
def test_cuts_lose_nothing_but_spaces_and_every_piece_fits(room):
    rng = random.Random(room)
    texts = [" ".join(SENTENCES), "x" * 500, "日本語の文。" * 60, "a\n" * 300, "", "word " * 90]
    texts += ["".join(rng.choices("ab. \n?", k=400)) for _ in range(20)]
    for text in texts:
        pieces = cut(text, range(len(text)), room)
        assert "".join("".join(pieces).split()) == "".join(text.split())
        assert all(len(piece) <= room for piece in pieces)


def test_cuts_are_after_sentences_then_lines_then_words():
    text = " ".join(f"Sentence {i} is here." for i in range(20))
    assert all(piece.endswith(".") for piece in cut(text, range(len(text)), 64))
    text = "no end of a sentence\n" * 20
    assert set(cut(text, range(len(text)), 64)) <= {
        "\n".join(["no end of a sentence"] * n) for n in (1, 2, 3)
    }
    assert set(" ".join(cut("word " * 50, range(250), 12)).split()) == {"word"}


def test_only_the_last_piece_ends_the_text():
    (parts, short) = fit(Vocabulary("ab ."), ["ab. " * 20, "ab"], 16)
    assert [piece.ends for piece in parts] == [False] * (len(parts) - 1) + [True]
    assert [piece.ends for piece in short] == [True]


@pytest.mark.parametrize("kind", ["bpe", "wordpiece"])
def test_pieces_fit_in_tokens_too(kind):
    pytest.importorskip("tokenizers")
    from minitransformer.data.tokenization import Tokenizer

    tokenizer = Tokenizer.train(SENTENCES, 320, kind)
    texts = [" ".join(SENTENCES), "x" * 500, "héé 日本 🙂" * 30]
    found = fit(tokenizer, texts, 24)
    assert len(found[0]) > 10
    for parts in found:
        for piece in parts:
            assert piece.ids == tokenizer.encode([piece.text], add_special=False)[0]
            assert len(piece.ids) <= 24
    with pytest.raises(InputError, match="leaves room for 1 tokens, too few for '🙂'"):
        fit(Tokenizer.train(SENTENCES, 300, "bpe"), ["🙂"], 1)


# ---- what is wrong -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (None, "no such file"),
        (b"", "is empty"),
        (b" \n\n", "holds only white space"),
        (b"a\tb\nc\0d\te\n", ":2: holds a zero byte"),
        (b"a\tb\nc\td\n\xff\xfe\n", ":3: is not UTF-8"),
        (b"\xff\xfea", ":1: is not UTF-16"),
        (b"\x1f\x8b\x08garbage", "cannot be unpacked"),
        (gzip.compress(b"a\tb\n" * 99, mtime=0)[:-9], "cannot be unpacked"),
        (b"a\tb\nno tab\n", ":2: expected source TAB target, got 'no tab': no TAB"),
        (b"a\tb\n\tc\n", ":2: the source is empty"),
        (b"a\tb\nc\t \n", ":2: the target is empty"),
    ],
)
def test_files_are_refused_by_file_and_line(tmp_path, content, says):
    path = tmp_path / "file.tsv"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError, match=r"file\.tsv:") as refusal:
        values(path)
    assert says in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_every_mistake_is_told_at_once_with_its_first_line_and_how_many(tmp_path):
    rows = ["a\tb"] * 10 + ["no tab"] + ["a\t"] * 3 + ["c d"] * 2 + ["\tx"]
    path = write(tmp_path / "bad.tsv", "\n".join(rows))
    with pytest.raises(InputError) as refusal:
        values(path)
    assert str(refusal.value) == (
        f"{path}:11: expected source TAB target, got 'no tab': no TAB; are there spaces in its "
        f"place? (3 of 17 lines); {path}:12: the target is empty (3 of 17 lines); "
        f"{path}:17: the source is empty"
    )


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("a.jsonl", '{"source": "a", "target": "b"}\n{"source": 1', ":2: is not a line of JSON"),
        ("a.jsonl", '{"source": "a", "target": "b"}\n{"source": "c"}', ":2: expected source and"),
        ("a.jsonl", '{"source": "a", "target": ["b"]}', ":1: the target is '[\"b\"]', no text"),
        ("a.jsonl", '{"source": "a", "target": null}', ":1: expected source and target, got"),
        ("a.jsonl", '{"source": "a", "target": "b"}\n7', ":2: expected an object, got '7'"),
        ("a.jsonl", '{"x": "a", "y": "b", "z": 1}', ":1: has no column 'source' but x, y, z"),
        ("a.jsonl", '{"source": NaN, "target": 1}', ":1: the source is 'NaN', no text"),
        ("a.jsonl", '{"source": "\\ud800", "target": "b"}', ":1: the source holds half of a"),
        ("a.json", "[1, 2]", ":1: expected an object, got '1'"),
        ("a.jsonl", '["a", 1]', ":1: expected an object, got"),
        ("a.json", "[" * 100_000, ":1: is not a line of JSON"),
        ("a.csv", "x,y,z\n1,2,3\n", ":1: has no column 'source' but x, y, z; say which are"),
        ("a.csv", "source,target\na\n", ":2: expected source TAB target, got too few columns"),
        ("a.csv", 'source,target\n"a,b\nc,d\n', ":3: is not CSV: unexpected end of data"),
        ("a.csv", 'source,target\n"a"b,c\n', ":2: is not CSV: ',' expected after"),
        ("a.csv", "source,target\n", "holds no source and target"),
    ],
)
def test_tables_are_refused_by_file_and_line(tmp_path, name, content, says):
    with pytest.raises(InputError) as refusal:
        values(write(tmp_path / name, content))
    assert says in str(refusal.value)


def test_a_wrong_number_of_columns_is_refused(tmp_path):
    path = write(tmp_path / "a.tsv", tabs(PAIRS))
    with pytest.raises(InputError, match="--columns: expected 2, for source and target, got 3"):
        values(path, columns=("1", "2", "3"))
    with pytest.raises(InputError, match=r"a\.tsv:1: expected source TAB target, got too few"):
        values(path, columns=("1", "9"))


def test_columns_are_numbered_from_1(tmp_path):
    path = write(tmp_path / "a.tsv", tabs(PAIRS))
    says = "has no column '0' but Go., Va !; .* by name, or by number from 1"
    with pytest.raises(InputError, match=says):
        values(path, columns=("0", "1"))


def test_what_a_first_line_was_taken_for_is_said(tmp_path):
    path = write(tmp_path / "a.csv", as_csv(PAIRS))
    (note,) = read_records([path], NAMES).notes  # no header: the first pair would be lost unsaid
    assert note == f"{path}: 'Go.' and 'Va !' are the source and target"
    (note,) = read_records([path], NAMES, ("1", "2")).notes
    assert 'the first line, \'["Go.", "Va !"]\', is an example, too' in note
    assert values(path, columns=("1", "2")) == PAIRS


def test_lines_are_read_from_what_generate_is_given(tmp_path):
    assert read_lines(write(tmp_path / "a", "a\r\nb\rc\n".encode("utf-16"))) == ["a", "b", "c"]


# ---- held out ------------------------------------------------------------------------------------


def test_texts_that_are_nearly_the_same_have_one_normal_form():
    same = ["Straße  des 17. Juni", "strasse des 17. juni", "STRASSE DES\u00a017. JUNI\n"]
    assert len(set(map(normal_form, same))) == 1
    assert normal_form("ﬁx") == normal_form("FIX") != normal_form("fax")


def test_a_text_stays_on_its_side_whatever_comes_along():
    texts = [f"text {i}" for i in range(2_000)]
    training, held_out = split(texts[:1_000], str)
    more_training, more_held_out = split(list(reversed(texts)), str)
    assert set(training) <= set(more_training)
    assert set(held_out) <= set(more_held_out)
    assert len(more_training) + len(more_held_out) == 2_000
    assert 60 < len(more_held_out) < 140
    assert more_held_out == sorted(more_held_out, key=place)  # so the first are a fair sample


def test_copies_are_on_one_side():
    texts = [f"text {i % 300}" + " " * (i % 3) for i in range(1_200)]
    training, held_out = split(texts, str)
    assert held_out
    assert not set(map(normal_form, training)) & set(map(normal_form, held_out))


def test_of_twenty_texts_one_is_held_out_of_fewer_perhaps_none():
    for seed in range(30):
        texts = [f"{seed} {i}" for i in range(20)]
        assert split(texts, str)[1]
    assert any(not split([f"{seed} {i}" for i in range(19)], str)[1] for seed in range(30))


def test_what_is_held_out_is_taken_out_of_the_rest():
    assert without(["a", "B ", "c"], str, ["b"]) == ["a", "c"]
