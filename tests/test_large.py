"""Text larger than memory: the same pieces as in memory, read once, used again."""

import errno
import gzip
import json
import os
from pathlib import Path

import pytest

from minitransformer.cli.main import main
from minitransformer.data import large
from minitransformer.data.files import InputError
from minitransformer.data.held_out import normal_form, place
from minitransformer.data.source import DataOptions
from minitransformer.data.vocabulary import Vocabulary
from minitransformer.training.tasks import LanguageModelTask

datasets = pytest.importorskip("datasets")
TEXTS = [f"Paragraph {i} says: " + f"number {i * i}, and so on. " * (i % 31) for i in range(1_200)]
TEXTS = [text.strip() for text in TEXTS]


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """Every file is large, and nothing is in the cache."""
    monkeypatch.setattr(large, "LARGE", 0)
    monkeypatch.setenv("MINITRANSFORMER_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def written(path, data):
    path.write_bytes(data if isinstance(data, bytes) else data.encode())
    return str(path)


def in_memory(monkeypatch, options, length=64):
    with monkeypatch.context() as patched:
        patched.setattr(large, "LARGE", 2**40)
        return LanguageModelTask(options, length)


LINES = "\n".join(TEXTS)
FILES = {
    "lines.txt": LINES,
    "paragraphs.txt": "\n\n".join(text.replace(". ", ".\n") for text in TEXTS),
    "utf16.txt": LINES.encode("utf-16"),
    "packed.txt.gz": gzip.compress(LINES.encode()),
    "a.jsonl": "".join(json.dumps({"id": i, "text": text}) + "\n" for i, text in enumerate(TEXTS)),
    "b.csv": "id;text\n" + "".join(f'{i};"{text}"\n' for i, text in enumerate(TEXTS)),
    "a.csv": "id,text\n" + "".join(f'{i},"{text}"\n' for i, text in enumerate(TEXTS)),
}


@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=[pytest.mark.slow] * (n not in ("lines.txt", "b.csv"))) for n in FILES],
)
def test_the_pieces_are_those_in_memory(tmp_path, monkeypatch, name):
    options = DataOptions(written(tmp_path / name, FILES[name]))
    on_disk, small = LanguageModelTask(options, 64), in_memory(monkeypatch, options)
    assert on_disk.vocabulary.tokens == small.vocabulary.tokens
    assert list(on_disk.training) == small.training
    assert sorted(on_disk.held_out) == sorted(small.held_out)
    assert on_disk.row_length == small.row_length
    said = [
        {n for n in task.notes if "passages are" in n or "aside" in n} for task in (on_disk, small)
    ]
    assert said[0] == said[1] != set()


def test_several_processes_read_the_same(tmp_path):
    texts = [f"{i} {text}" for i in range(2) for text in TEXTS]
    path = written(tmp_path / "a.txt", "\n".join(texts))
    task = LanguageModelTask(DataOptions(path), 4096)
    assert {piece.text for piece in [*task.training, *task.held_out]} == set(texts)
    assert [p.text for p in task.training] == [t for t in texts if place(t) % 20]


def test_the_folder_of_a_dataset_is_read(tmp_path, monkeypatch):
    folder = tmp_path / "saved"
    parts = {"train": datasets.Dataset.from_dict({"text": TEXTS, "id": list(range(len(TEXTS)))})}
    datasets.DatasetDict(parts).save_to_disk(str(folder))
    options = DataOptions(str(folder))
    assert list(LanguageModelTask(options, 64).training) == in_memory(monkeypatch, options).training
    with pytest.raises(InputError, match=r"saved: has no column 'words' but text, id"):
        LanguageModelTask(DataOptions(str(folder), columns=["words"]), 64)


@pytest.mark.parametrize("kind", ["bpe", "wordpiece"])
def test_a_tokenizer_is_trained_on_what_is_not_held_out(tmp_path, kind):
    options = DataOptions(written(tmp_path / "a.txt", LINES), tokenizer=kind, vocab_size=400)
    task = LanguageModelTask(options, 32)
    assert len(task.vocabulary) <= 400
    for piece in [*task.training[:50], *task.held_out[:50]]:
        assert piece.ids == task.vocabulary.encode([piece.text], add_special=False)[0]
        assert len(piece.ids) <= 30


def test_what_was_read_is_used_until_the_file_changes(tmp_path, monkeypatch):
    path = written(tmp_path / "a.txt", LINES)
    first = LanguageModelTask(DataOptions(path), 64)
    with monkeypatch.context() as patched:
        patched.setattr(large, "_map", lambda *_: pytest.fail("it is there already"))
        again = LanguageModelTask(DataOptions(path), 64)
        assert again.fingerprint == first.fingerprint
        assert again.notes == first.notes
        assert again.batch(0, 0, 8, True).input_ids.equal(first.batch(0, 0, 8, True).input_ids)
    os.utime(path, ns=(1, 1))
    assert LanguageModelTask(DataOptions(path), 64).fingerprint != first.fingerprint
    assert LanguageModelTask(DataOptions(path), 32).fingerprint != first.fingerprint


def test_a_reading_that_was_interrupted_begins_anew(tmp_path, monkeypatch, cache):
    path = written(tmp_path / "a.txt", LINES)
    whole = list(LanguageModelTask(DataOptions(path), 64).training)
    abouts = sorted(cache.rglob(large.ABOUT))
    assert len(abouts) == 2
    for about in abouts:
        about.unlink()
        stray = next(about.parent.glob("training*.arrow"))
        (about.parent / "training_00009_of_00009.arrow").write_bytes(stray.read_bytes()[:99])
    assert list(LanguageModelTask(DataOptions(path), 64).training) == whole


def test_nothing_that_is_held_out_is_trained_on(tmp_path):
    verses = [f"verse {i}" for i in range(200)]
    song = "\n\n".join(text for verse in verses for text in (verse, "The  REFRAIN", "the refrain"))
    task = LanguageModelTask(DataOptions(written(tmp_path / "song.txt", song)), 64)
    seen, unseen = ({normal_form(p.text) for p in side} for side in (task.training, task.held_out))
    assert unseen
    assert not seen & unseen


def test_a_file_of_ones_own_is_held_out(tmp_path):
    own = written(tmp_path / "own.txt", "\n".join(TEXTS[:50]))
    options = DataOptions(written(tmp_path / "a.txt", LINES), held_out=[own])
    task = LanguageModelTask(options, 4096)
    assert [piece.text for piece in task.held_out] == TEXTS[:50]
    assert [piece.text for piece in task.training] == TEXTS[50:]


def test_a_training_goes_through_the_command_line(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    written(tmp_path / "a.txt", LINES)
    small = [
        "--d-model",
        "16",
        "--num-layers",
        "1",
        "--num-heads",
        "1",
        "--max-length",
        "16",
        "--batch-size",
        "4",
    ]
    assert main(["train", "--task", "lm", "--data", "a.txt", "--steps", "2", *small]) == 0
    assert "text, read once into" in capsys.readouterr().out
    assert main(["train", "--resume", "runs/lm", "--steps", "3"]) == 0
    assert main(["evaluate", "runs/lm", "--examples", "5"]) == 0


@pytest.mark.parametrize(
    ("name", "data", "says"),
    [
        ("a.txt", LINES.encode() + b"\xff\xfe", r"a\.txt:1200: cannot be read: .*utf-8"),
        ("a.jsonl", '{"text": "a"}\n{"te', r"a\.jsonl: cannot be read: "),
        ("a.csv", "x,y\n1,2\n", r"a\.csv: has no column 'text' but x, y: --columns NAME"),
        ("a.txt.gz", gzip.compress(LINES.encode(), mtime=0)[:-50], r"a\.txt\.gz: cannot be read: "),
        ("a.txt", " \n" * 99, r"a\.txt: holds no text"),
        ("a.txt", LINES.encode("utf-16-le"), r"a\.txt: holds a zero byte; expected UTF-8"),
        ("a.csv", "text\n1\n2\n", r"a\.csv: the column 'text' is of int64, not text"),
    ],
)
def test_what_cannot_be_read_is_refused(tmp_path, cache, name, data, says):
    with pytest.raises(InputError, match=says):
        LanguageModelTask(DataOptions(written(tmp_path / name, data)), 64)
    assert {path.name for path in cache.rglob("*") if path.is_file()} <= {".lock"}


def test_of_texts_no_columns_are_read_and_files_must_be_there(tmp_path):
    path = written(tmp_path / "a.txt", LINES)
    with pytest.raises(InputError, match=r"a\.txt: of so large a text no --columns are read"):
        LanguageModelTask(DataOptions(path, columns=["1"]), 64)
    gone = str(tmp_path / "gone.txt")
    for options in (DataOptions((path, gone)), DataOptions(path, held_out=[gone])):
        with pytest.raises(InputError, match=r"gone\.txt: no such file"):
            LanguageModelTask(options, 64)


def test_one_long_line_is_trained_on_though_nothing_is_held_out(tmp_path):
    task = LanguageModelTask(DataOptions(written(tmp_path / "a.txt", "word " * 9_000)), 64)
    assert len(task.training) > 700
    assert task.held_out is task.training


@pytest.mark.parametrize("place", ["/dev/null", "/dev/null/x"])
def test_a_cache_that_cannot_be_written_is_named(tmp_path, monkeypatch, place):
    monkeypatch.setenv("MINITRANSFORMER_CACHE", place)
    with pytest.raises(InputError, match=rf"{place}/\w+: cannot be written: Not a directory"):
        LanguageModelTask(DataOptions(written(tmp_path / "a.txt", LINES)), 64)


@pytest.mark.parametrize("when", ["_passages", "_pieces"])
def test_a_full_disk_is_not_the_files_fault_and_leaves_nothing(tmp_path, monkeypatch, cache, when):
    def full(*_, **__):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    path = written(tmp_path / "a.txt", LINES)
    with monkeypatch.context() as patched:
        patched.setattr(large, when, full)
        with pytest.raises(InputError, match=r"cache/.*: cannot be written: No space left"):
            LanguageModelTask(DataOptions(path), 64)
    with monkeypatch.context() as patched:
        patched.setattr(large, "_read_text", full)
        with pytest.raises(InputError, match=r"cache/.*: cannot be written: No space left"):
            LanguageModelTask(DataOptions(written(tmp_path / "b.txt", LINES)), 64)
    assert len(list(cache.rglob(large.ABOUT))) == (when == "_pieces")
    assert list(LanguageModelTask(DataOptions(path), 64).training)


def test_without_the_library_it_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "datasets", None)
    with pytest.raises(ImportError, match="pip install datasets"):
        LanguageModelTask(DataOptions(written(tmp_path / "a.txt", LINES)), 64)


def test_the_cache_is_where_the_system_keeps_such_things(monkeypatch):
    monkeypatch.delenv("MINITRANSFORMER_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "/x")
    assert large.cache_folder() == Path("/x/minitransformer")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert large.cache_folder() == Path.home() / ".cache" / "minitransformer"


def test_a_few_bytes_a_token(tmp_path, cache):
    task = LanguageModelTask(DataOptions(written(tmp_path / "a.txt", LINES)), 64)
    assert isinstance(task.vocabulary, Vocabulary)
    pieces = task.training.dataset
    assert pieces.features["input_ids"].feature.dtype == "uint8"
