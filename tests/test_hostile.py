"""What is hostile or damaged is refused in one printable line: folders, files and arguments."""

import json
import os
import random
import re
import shutil
import signal
import socket
import sys
import threading
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

pytest.importorskip("tokenizers")

from minitransformer import Config, DecoderOnly, EncoderDecoder, EncoderOnly
from minitransformer.cli.main import main
from minitransformer.data.files import InputError
from minitransformer.data.manifest import write_folder
from minitransformer.data.tokenization import Tokenizer
from minitransformer.data.vocabulary import Vocabulary
from minitransformer.grading import grade
from minitransformer.inference.answering import answer
from minitransformer.pretrained import load_pretrained, save_pretrained
from minitransformer.training.run import Run

SECONDS = 60  # that one refusal may take on a busy machine; most take milliseconds
CONTROLS = re.compile("[\0-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
ESCAPE = "\x1b[2J\r\n\u202e\x9b"
posix = pytest.mark.skipif(os.name != "posix", reason="needs named pipes and links")


class NoEnd(BaseException):
    """No error that the code under test takes for its own, as it does with a TimeoutError."""


@pytest.fixture(autouse=True)
def time_limit():
    """What reads without end fails, instead of stopping all the tests."""
    if not hasattr(signal, "setitimer"):
        yield
        return

    def stop(signum, frame):
        raise NoEnd(f"no end after {SECONDS} seconds")

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, SECONDS)
    yield
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, before)


def check_line(text: str) -> None:
    assert text.strip()
    assert not CONTROLS.search(text), ascii(text)
    assert len(text) < 1100


# ---- folders -----------------------------------------------------------------------------------

TEXTS = ["the cat sat on the mat", "a dog and a naïve fox"] * 9
SMALL = {"d_model": 8, "num_layers": 1, "num_heads": 2, "max_length": 24}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A small random model of each of some families, with a tokenizer."""
    made = {}
    for name, kind, size, model, numbers in (
        ("bert", "wordpiece", 90, EncoderOnly, {"num_segments": 2}),
        ("roberta", "bpe", 300, EncoderOnly, {"num_segments": 1}),
        ("llama", "bpe", 300, DecoderOnly, {"eos_id": 2}),
        ("qwen2", "bpe", 300, DecoderOnly, {"eos_id": 2, "window": 8}),
        ("marian", "bpe", 300, EncoderDecoder, {"eos_id": 2, "tie_embeddings": True}),
    ):
        made[name] = tmp_path_factory.mktemp(name)
        torch.manual_seed(0)
        save_pretrained(model(Config(size, style=name, **SMALL, **numbers)), made[name])
        weights = made[name] / WEIGHTS
        save_file(load_file(weights), weights)  # without the checksum, as others write it
        Tokenizer.train(TEXTS, size, kind).save(made[name])
    return made


@pytest.fixture
def copy(folders, tmp_path):
    def copied(name: str) -> Path:
        return Path(shutil.copytree(folders[name], tmp_path / f"a {name}"))

    return copied


def said(**values):
    """Keys of config.json, as JSON text where they are none of Python's values."""

    def change(folder: Path) -> None:
        put(folder / "config.json", **values)

    return change


class Raw(str):
    """JSON as it stands in the file."""


def put(file: Path, **values) -> None:
    about = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    text = json.dumps(about | {key: f"@{key}@" for key in values})
    for key, value in values.items():
        raw = value if isinstance(value, Raw) else json.dumps(value)
        text = text.replace(f'"@{key}@"', raw)
    file.write_text(text, encoding="utf-8")


def generates(**values):
    """Keys of generation_config.json, which wins over config.json."""
    return lambda folder: put(folder / GENERATION, **values)


def wrote(name: str, content: bytes):
    return lambda folder: (folder / name).write_bytes(content)


def weight(change, dtype: torch.dtype | None = None, name: str = "model.norm.weight"):
    """One tensor changed, and cast to `dtype`."""

    def changed(folder: Path) -> None:
        tensors = {key: tensor.clone() for key, tensor in load_file(folder / WEIGHTS).items()}
        tensors[name] = tensors[name].to(dtype or tensors[name].dtype)
        change(tensors[name])
        try:
            save_file(tensors, folder / WEIGHTS)
        except KeyError:
            pytest.skip(f"safetensors writes {dtype} from 0.7 on")

    return changed


def header(change):
    """The JSON in front of the tensors as `change` makes it: bytes -> bytes."""

    def changed(folder: Path) -> None:
        data = (folder / WEIGHTS).read_bytes()
        end = 8 + int.from_bytes(data[:8], "little")
        head = change(data[8:end])
        (folder / WEIGHTS).write_bytes(len(head).to_bytes(8, "little") + head + data[end:])

    return changed


def entry(**values):
    """The entry of one tensor in the header."""

    def change(head: bytes) -> bytes:
        table = json.loads(head)
        table["model.norm.weight"] |= values
        return json.dumps(table).encode()

    return header(change)


def renamed(name: str):
    return header(
        lambda head: head.replace(b'"model.norm.weight"', json.dumps(name).encode("ascii"))
    )


def in_place_of(name: str, put_there):
    def changed(folder: Path) -> None:
        (folder / name).unlink(missing_ok=True)
        put_there(folder / name)

    return changed


def make_socket(file: Path) -> None:
    here = Path.cwd()
    os.chdir(file.parent)  # the name of a socket has at most 107 bytes
    try:
        with socket.socket(socket.AF_UNIX) as made:
            made.bind(file.name)
    finally:
        os.chdir(here)


def sharded(name: str):
    def changed(folder: Path) -> None:
        (folder / WEIGHTS).rename(folder / "shard.safetensors")
        (folder / INDEX).write_text(json.dumps({"weight_map": {"model.norm.weight": name}}))

    return changed


def nothing(tensor: torch.Tensor) -> None:
    pass


def nan(tensor: torch.Tensor) -> None:
    tensor[3] = float("nan")


def inf(tensor: torch.Tensor) -> None:
    tensor[-1] = float("-inf")


def large(file: Path) -> None:
    with open(file, "wb") as opened:
        opened.truncate(2**24 + 1)


WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
GENERATION, TOKENIZER = "generation_config.json", "tokenizer.json"
DAMAGED = r"model.safetensors: is damaged or no safetensors file: "
NO_FILE = "is a pipe, a socket or a device, expected a file"

# what is done to the folder -> (family, change, message)
HOSTILE = {
    "int8 weight": ("llama", weight(nothing, torch.int8), "norm.weight is int8; only floating"),
    "bool weight": ("llama", weight(nothing, torch.bool), "norm.weight is bool; only floating"),
    "complex weight": ("llama", weight(nothing, torch.complex64), "is complex64; only floating"),
    "float8 weight": (
        "llama",
        weight(nothing, torch.float8_e4m3fn),
        "model.safetensors: model.norm.weight is float8_e4m3fn; only weights of 16 bits",
    ),
    "NaN weight": ("llama", weight(nan), "safetensors: model.norm.weight, .* holds NaN or Inf"),
    "Inf in bfloat16": ("llama", weight(inf, torch.bfloat16), "norm.weight, bfloat16 .* NaN or I"),
    "too large for float32": (
        "llama",
        weight(lambda tensor: tensor.fill_(1e300), torch.float64),
        "float64 read as float32, holds NaN or Inf",
    ),
    "name with an escape": ("llama", renamed("a" + ESCAPE), r"takes: a\\x1b\[2J\\r\\n\\u202e\\x9b"),
    "no bytes": ("llama", wrote(WEIGHTS, b""), DAMAGED),
    "header longer than the file": ("llama", wrote(WEIGHTS, b"\xff" * 8 + b"{}"), DAMAGED),
    "header of half a million TB": ("llama", wrote(WEIGHTS, b"\0" * 7 + b"\x7f{}"), DAMAGED),
    "header that is no JSON": ("llama", header(lambda head: b"x" + head[1:]), DAMAGED),
    "header nested deeply": ("llama", header(lambda head: b"[" * 100_000), DAMAGED),
    "a tensor twice": (
        "llama",
        header(lambda head: head.rstrip()[:-1] + head.strip()[1:]),
        "twice|" + DAMAGED,
    ),
    "overlapping tensors": ("llama", entry(data_offsets=[4, 36]), DAMAGED),
    "offsets out of the file": ("llama", entry(data_offsets=[2**62, 2**62 + 32]), DAMAGED),
    "negative shape": ("llama", entry(shape=[-8]), DAMAGED),
    "shape that overflows": ("llama", entry(shape=[2**33, 2**33]), DAMAGED),
    "unknown dtype": ("llama", entry(dtype="F99"), DAMAGED),
    "other shape": ("llama", entry(shape=[4, 2]), r"model.norm.weight has shape \(4, 2\)"),
    "bytes behind the end": (
        "llama",
        lambda folder: wrote(WEIGHTS, (folder / WEIGHTS).read_bytes() + b"x")(folder),
        DAMAGED,
    ),
    "weights are a folder": ("llama", in_place_of(WEIGHTS, Path.mkdir), "ors: is a folder, expec"),
    "shard with a zero byte": ("llama", sharded("a\0b"), r"a\\x00b: cannot be read"),
    "shard above the folder": ("llama", sharded(".."), "is a folder, expected a file"),
    "shard without a name": ("llama", sharded(""), "is a folder, expected a file"),
    "shard with an escape": ("llama", sharded(ESCAPE), r"\\x1b\[2J\\r\\n\\u202e\\x9b"),
    "half a character": ("llama", sharded("\ud800"), "index.json: is not JSON: .* half of a char"),
    "index is a list": ("llama", lambda f: (sharded("")(f), wrote(INDEX, b"[1]")(f)), "JSON obj"),
    "vocabulary of 10**12": ("llama", said(vocab_size=10**12), "vocab_size must be at most 2147"),
    "a billion layers": ("llama", said(num_hidden_layers=10**9), "tensors for 1000000000 layers"),
    "length of 10**12": (
        "llama",
        said(max_position_embeddings=10**12),
        "max_position_embeddings must be at most 2147483647, got 1000000000000",
    ),
    "window of 10**12": (
        "qwen2",
        said(sliding_window=10**12),
        "sliding_window must be at most 214",
    ),
    "window of -1": (
        "qwen2",
        said(sliding_window=-1),
        "sliding_window must be an integer >= 1, got",
    ),
    "kinds of a billion layers": (
        "qwen2",
        said(num_hidden_layers=10**9, max_window_layers=10**9),
        "tensors for 1000000000 layers",
    ),
    "kinds of layers with an escape": (
        "qwen2",
        said(layer_types=[ESCAPE]),
        r"layer_types must be 1 of .*\\x1b\[2J\\r\\n",
    ),
    "positions of text": (
        "roberta",
        said(max_position_embeddings="24"),
        "max_position_embeddings must be an integer >= 1, got '24'",
    ),
    "a table of padding only": (
        "roberta",
        said(max_position_embeddings=1),
        "max_position_embeddings must be above 2, of which none is a token's, got 1",
    ),
    "another padding": ("roberta", said(pad_token_id=None), "pad_token_id is None; only 1 can be"),
    "computed table of TB": (
        "marian",
        said(max_position_embeddings=2**31 - 1),
        r"max_position_embeddings \* d_model must be at most 67108864",
    ),
    "width of 10**9": ("llama", said(hidden_size=10**9, head_dim=None), "has shape"),
    "1e400": ("llama", said(rms_norm_eps=Raw("1e400")), "config.json: is not JSON: 1e400 is not a"),
    "NaN": ("llama", said(rms_norm_eps=Raw("NaN")), "config.json: is not JSON: NaN is not a fini"),
    "-Infinity": ("llama", said(rope_theta=Raw("-Infinity")), "-Infinity is not a finite number"),
    "true for a fraction": ("llama", said(rms_norm_eps=True), "rms_norm_eps must be a number, got"),
    "true for an integer": ("llama", said(num_attention_heads=True), "num_attention_heads must be"),
    "text for a number": ("llama", said(hidden_size="8"), "hidden_size must be an integer >= 1"),
    "negative": ("llama", said(intermediate_size=-3), "intermediate_size must be an integer >= 1"),
    "5000 digits": ("llama", said(vocab_size=Raw("9" * 5000)), "config.json: is not JSON: Exceeds"),
    "4000 digits": ("llama", said(vocab_size=10**4000), "vocab_size must be at most 2147483647"),
    "rotary base true": ("llama", said(rope_parameters={"rope_theta": True}), "rope_theta must be"),
    "rotary base 0": ("llama", said(rope_parameters={"rope_theta": 0}), "rope_theta must be a num"),
    "end of 10**30": ("llama", generates(eos_token_id=10**30), "eos_token_id must be at most 2147"),
    "an end among ends": (
        "llama",
        generates(eos_token_id=[2, -(10**30)]),
        "eos_token_id must be at mo",
    ),
    "start beyond the vocabulary": (
        "marian",
        generates(decoder_start_token_id=300),
        "decoder_start_token_id must be below 300, got 300",
    ),
    "suppressed -1": ("llama", said(suppress_tokens=[-1]), "suppress_tokens must be a list of tok"),
    "switch as text": ("bert", said(is_decoder="false"), "is_decoder must be true or false, got"),
    "scale as text": ("marian", said(scale_embedding="no"), "scale_embedding must be true or fal"),
    "config nested deeply": (
        "llama",
        wrote("config.json", b"[" * 100_000),
        "config.json: is not J",
    ),
    "a key twice": (
        "llama",
        wrote("config.json", b'{"model_type": "llama", "vocab_size": 9, "vocab_size": 300}'),
        "config.json: is not JSON: the key 'vocab_size' stands twice",
    ),
    "config in Latin-1": ("llama", wrote("config.json", b'{"a": "\xe9"}'), "config.json: is not J"),
    "config in UTF-16": ("llama", wrote("config.json", "{}".encode("utf-16")), "config.json: is n"),
    "config of 16 MiB": ("llama", in_place_of("config.json", large), "has more than the 16 MiB"),
    "config is a folder": ("llama", in_place_of("config.json", Path.mkdir), "config.json: is a fo"),
    "type with an escape": ("llama", said(model_type=ESCAPE), r"model_type is '\\x1b\[2J\\r\\n"),
    "value of a megabyte": ("llama", said(hidden_act="x" * 2**20), "hidden_act is 'xxx"),
    "generation: a folder": (
        "llama",
        in_place_of(GENERATION, Path.mkdir),
        "generation_config.json: is a folder",
    ),
    "generation: a list": ("llama", wrote(GENERATION, b"[]"), "generation_config.json: must be a"),
    "tokenizer: a list": ("llama", wrote(TOKENIZER, b"[]"), "tokenizer.json: is no tokenizer.json"),
    "tokenizer: deep": ("llama", wrote(TOKENIZER, b"[" * 100_000), "tokenizer.json: is no tokeni"),
    "tokenizer: a folder": ("llama", in_place_of(TOKENIZER, Path.mkdir), "tokenizer.json: is a f"),
    "tokenizer: ids as text": (
        "llama",
        wrote(TOKENIZER, b'{"model": {"type": "BPE", "vocab": {"a": "0"}, "merges": []}}'),
        "tokenizer.json: is no tokenizer.json",
    ),
    "tokenizer: not downloaded": (
        "llama",
        wrote(TOKENIZER, b"version https://git-lfs.github.com/spec/v1\n"),
        "tokenizer.json: is a pointer of Git LFS",
    ),
    "roles: a list": ("llama", wrote("tokenizer_config.json", b"[]"), "fig.json: must be a JSON"),
    "roles: a number": (
        "llama",
        wrote("tokenizer_config.json", b'{"eos_token": 2}'),
        "tokenizer_config.json: eos_token must be a text or null, got 2",
    ),
    "roles: half a character": (
        "llama",
        wrote("tokenizer_config.json", rb'{"eos_token": "\ud800"}'),
        "tokenizer_config.json: is not JSON: .* half of a character",
    ),
}

SPECIAL = {  # of a POSIX file system
    "pipe": (os.mkfifo if hasattr(os, "mkfifo") else None, NO_FILE),
    "socket": (make_socket, NO_FILE),
    "endless device": (lambda file: file.symlink_to("/dev/zero"), NO_FILE),
    "empty device": (lambda file: file.symlink_to(os.devnull), NO_FILE),
    "loop": (lambda file: file.symlink_to(file), "cannot be read"),
    "link to nothing": (lambda file: file.symlink_to("nowhere"), "a link to a file that is not th"),
}
READ = ("config.json", WEIGHTS, GENERATION, TOKENIZER, "tokenizer_config.json")


@pytest.mark.parametrize("kind", HOSTILE)
def test_a_hostile_folder_is_refused_in_one_printable_line(kind, copy):
    family, change, message = HOSTILE[kind]
    folder = copy(family)
    change(folder)
    with pytest.raises(InputError, match=message) as refused:
        load_pretrained(folder), Tokenizer.load(folder)
    check_line(str(refused.value))


@posix
@pytest.mark.parametrize("name", READ)
@pytest.mark.parametrize("kind", SPECIAL)
def test_what_is_no_file_is_refused_and_not_waited_for(kind, name, copy):
    folder = copy("llama")
    put_there, message = SPECIAL[kind]
    in_place_of(name, put_there)(folder)
    with pytest.raises(InputError, match=f"{name}: .*{message}") as refused:
        Run.load(folder)
    check_line(str(refused.value))


@posix
def test_a_link_to_a_file_is_read(copy):
    """As in the cache of the Hugging Face hub, where every file is one."""
    folder = copy("llama")
    for name in READ:
        (folder / name).rename(folder / f"blob {name}")
        (folder / name).symlink_to(f"blob {name}")
    assert isinstance(Run.load(folder).model, DecoderOnly)


def test_an_encoder_without_a_mask_token_says_so(copy):
    folder = copy("bert")
    put(folder / "tokenizer_config.json", mask_token="nowhere")
    run = Run.load(folder)
    with pytest.raises(ValueError, match=r"no token for \[MASK\]"):
        answer(run.model, run.vocabulary, ["the [MASK]"], 1)


# ---- any folder --------------------------------------------------------------------------------

ODD = (None, True, 0, -1, 7, 10**9, 10**18, 10**30, 1.5, 1e39, "", "3", ESCAPE, [], [10**12], {})
ODD_JSON = ("NaN", "1e400", "9" * 5000, r'"\ud800"', "[" * 99_999, '{"a": 1, "a": 2}', '"\x1b"')


def change_value(file: Path, rng: random.Random) -> None:
    """One value of a JSON file."""
    top = [json.loads(file.read_text(encoding="utf-8"))]
    inner, key = top, 0
    while isinstance(inner[key], dict | list) and inner[key] and rng.random() < 0.9:
        inner = inner[key]
        key = rng.choice(list(inner) if isinstance(inner, dict) else range(len(inner)))
    raw = rng.choice([*map(json.dumps, ODD), *ODD_JSON])
    inner[key] = "@here@"
    file.write_text(json.dumps(top[0]).replace('"@here@"', raw), encoding="utf-8")


def change_anything(folder: Path, rng: random.Random) -> str:
    """One change of one file; returns what was done."""
    file, other = rng.sample(sorted(folder.iterdir()), 2)
    data = bytearray(file.read_bytes())
    kinds = ["value"] * 5 + ["bits"] * 3 + ["cut", "swap", "gone", "folder", "pipe"]
    kind = rng.choice(kinds)
    if kind == "value" and file.suffix == ".json":
        change_value(file, rng)
    elif kind in ("value", "bits"):
        for _ in range(rng.choice((1, 9))):
            data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        file.write_bytes(data)
    elif kind == "cut":
        file.write_bytes(data[: rng.randrange(len(data))])
    elif kind == "swap":
        file.write_bytes(other.read_bytes())
        other.write_bytes(data)
    else:
        file.unlink()
        if kind == "folder":
            file.mkdir()
        if kind == "pipe" and hasattr(os, "mkfifo"):
            os.mkfifo(file)
    return f"{kind} of {file.name}"


@pytest.mark.parametrize("family", ["bert", "roberta", "llama", "qwen2", "marian"])
@pytest.mark.parametrize("count", [40, pytest.param(400, marks=pytest.mark.slow)])
def test_a_folder_changed_at_random_loads_or_is_refused(family, count, folders, tmp_path):
    loaded = 0
    for number in range(count):
        rng = random.Random(f"{family} {number}")
        folder = Path(shutil.copytree(folders[family], tmp_path / str(number)))
        done = change_anything(folder, rng)
        signal.setitimer(signal.ITIMER_REAL, SECONDS) if hasattr(signal, "setitimer") else None
        try:
            run = Run.load(folder)
            answer(run.model, run.vocabulary, ["the [MASK] sat"], 2)
            loaded += 1
        except (InputError, ValueError) as refused:  # a model may be asked for what it lacks
            check_line(str(refused))
        except Exception as error:
            raise AssertionError(f"{family} {number}: {done}") from error
        shutil.rmtree(folder)
    assert 0 < loaded < count


# ---- the command line --------------------------------------------------------------------------


@pytest.fixture(scope="module")
def here(folders, tmp_path_factory):
    """Files that nobody can use, and models that are there."""
    here = tmp_path_factory.mktemp("here")
    for name, content in {
        "pairs.tsv": "".join(f"w{i}\t{i}\n" for i in range(40)).encode(),
        "binary": bytes(range(255, -1, -1)),
        "zeros": b"\0" * 1000,
        "half-utf16": "a\tb\n".encode("utf-16")[:-1],
        "halves": b"a\xed\xa0\x80b\n",
        "empty": b"",
        "blank": b" \n\r\n",
        "long": b"a" * 2_000_000,
        "escape.tsv": ESCAPE.replace("\n", "").encode() + b"\n",
        "pointer": b"version https://git-lfs.github.com/spec/v1\n",
        "null.py": b"def f(): pass\0\n",
        "raises.py": b"raise RuntimeError('\\x1b[2J\\n' * 9)\n",
        "bad.ipynb": b'{"cells": [[]]}',
    }.items():
        (here / name).write_bytes(content)
    (here / "folder").mkdir()
    if os.name == "posix":
        (here / ESCAPE).write_text("no TAB\n")
        (here / "syntax\x1b[2J.py").write_text("def (\n")
        os.mkfifo(here / "pipe.ipynb")
        (here / "loop").symlink_to("loop")
        (here / "endless").symlink_to("/dev/zero")
    for name, folder in folders.items():
        shutil.copytree(folder, here / name)
    vocabulary = Vocabulary("w0123456789")
    for name, model in (("run", EncoderDecoder), ("lm", DecoderOnly)):
        torch.manual_seed(0)
        run = Run(name, model(Config(len(vocabulary), **SMALL)), vocabulary)
        write_folder(here / name, run.files())
    return here


TRAIN = ["train", "--task", "pairs", "--data", "{here}/pairs.tsv", "--out", "new"]
MANY = str(10**20)
BAD_FILES = ["binary", "zeros", "half-utf16", "halves", "empty", "blank", "long", "escape.tsv"]
BAD_FILES += ["pointer", "folder", "nowhere", "pairs.tsv/x", "x" * 300, "x/" * 3000]
SUBJECT = "minitransformer:scaled_dot_product_attention"
ARGUMENTS = [
    *(["train", "--task", task, "--out", "new", "--data", "{here}/" + file]
      for file in BAD_FILES for task in ("pairs", "lm")
      if task == "pairs" or file not in ("escape.tsv", "long")),
    *(["generate", "{here}/llama", "--file", "{here}/" + file]
      for file in BAD_FILES if file != "escape.tsv"),
    *([*TRAIN, option, value]
      for option, values in {
          "--steps": ("0", "-1", "1e3", "", ESCAPE, MANY, "9" * 5000),
          "--learning-rate": ("0", "-1", "1e400", "nan", "x"),
          "--dropout": ("-1", "1", "nan"),
          "--d-model": ("0", MANY),
          "--num-layers": (MANY,),
          "--num-heads": ("0", "3"),
          "--batch-size": (MANY,),
          "--window": ("0", MANY),
          "--max-length": ("1", MANY),
          "--seed": ("-1", MANY),
          "--threads": ("0", MANY),
          "--style": ("", ESCAPE),
          "--device": (ESCAPE,),
          "--task": (ESCAPE,),
          "--nope" + ESCAPE: ("x",),
      }.items() for value in values),
    *(["generate", "{here}/" + run, "w", option, value]
      for run in ("lm", "llama")
      for option, values in {
          "--top-k": ("-5", "0", MANY),
          "--top-p": ("0", "-1", "nan", "2"),
          "--temperature": ("-1", "1e400", "nan"),
          "--max-new-tokens": ("0", MANY, "2147483647"),
          "--num-beams": ("0", MANY, "2147483647"),
          "--seed": ("-1", MANY),
      }.items() for value in values),
    ["show", "{here}/llama", "w", "--layer", MANY],
    ["show", "{here}/llama", "w", "--layer", "-2"],
    ["show", "{here}/llama", "w", "--layer", "9" * 5000],
    ["show", "{here}/llama", "w", "--out", "{here}/pairs.tsv"],
    *([verb, folder, "x"]
      for verb in ("generate", "show")
      for folder in ("", "nowhere" + ESCAPE, "\udcff", "{here}/pairs.tsv", os.devnull, "{here}",
                     "x" * 5000)),
    ["generate", "{here}/llama", "a" * 100_000],
    ["generate", "{here}/llama", "a" * 100],
    ["generate", "{here}/llama", "\udcff"],
    ["generate", "{here}/bert", "\udcff [MASK]"],
    ["generate", "{here}/bert", ESCAPE],
    ["generate", "{here}/run", "", "w"],
    *(["check", subject]
      for subject in ("", ":", "a:", ":b", "a..b:f", ".:f", "\udcff:f", "nowhere" + ESCAPE + ":f",
                      "math:pi", "{here}/null.py:f", "{here}/raises.py:f", "{here}/folder:f")),
    *(["check", SUBJECT, option, value]
      for option, values in {
          "--declare": (ESCAPE, "=", "x=" + ESCAPE),
          "--layout": (ESCAPE,),
          "--dtypes": (ESCAPE,),
          "--tier": (ESCAPE,),
          "--as": (ESCAPE,),
      }.items() for value in values),
    ["check", "--museum", ESCAPE],
    *(["exercise", *words]
      for words in (
          ["start", ESCAPE],
          ["start", "../x"],
          ["check", ESCAPE],
          ["check", "padding_mask"],
          ["check", "padding_mask", "--file", "{here}/folder"],
          ["check", "padding_mask", "--file", "{here}/bad.ipynb"],
          ["hint", ESCAPE],
          ["hint", "padding_mask", "--step", MANY],
          ["export", "--to", "pytest", "{here}/pairs.tsv"],
          ["grade", "{here}/nowhere", "--out", "out"],
          ["grade", "{here}/folder", "--out", "out", "--jobs", "0"],
          ["grade", "{here}/folder", "--out", "out", "--seed", "-1"],
      )),
    [ESCAPE],
]  # fmt: skip
POSIX_ARGUMENTS = [
    *(["train", "--task", "lm", "--out", "new", "--data", f"{{here}}/{file}"]
      for file in ("loop", "endless")),
    ["train", "--task", "pairs", "--out", "new", "--data", "{here}/" + ESCAPE],
    ["train", "--task", "pairs", "--out", "new", "--data", "/dev/null"],
    ["generate", "{here}/lm", "--file", "{here}/endless"],
    ["generate", "{here}/endless", "x"],
    ["generate", "{here}/loop", "x"],
    ["check", "{here}/syntax\x1b[2J.py:f"],
    ["exercise", "check", "padding_mask", "--file", "{here}/pipe.ipynb"],
]  # fmt: skip


def name_of(arguments: list[str]) -> str:
    return ascii(" ".join(word if len(word) < 40 else word[:40] + "..." for word in arguments))


@pytest.mark.parametrize(
    "arguments", [*ARGUMENTS, *(pytest.param(one, marks=posix) for one in POSIX_ARGUMENTS)],
    ids=name_of,
)  # fmt: skip
def test_bad_arguments_end_with_status_2_and_one_line(
    arguments, here, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    path = list(sys.path)
    try:
        status = main([word.replace("{here}", str(here)) for word in arguments])
        usage = False
    except SystemExit as stop:
        status, usage = stop.code, True
    sys.path[:] = path
    out, errors = capsys.readouterr()
    assert status == 2
    lines = errors.splitlines()
    *before, line = [one for one in lines if "read as <unk>" not in one]
    assert re.match(r"minitransformer.*: error: ", line)
    assert usage or not before
    for one in [*lines, line]:
        check_line(one)
    assert out == ""
    assert list(tmp_path.iterdir()) == []  # nothing half-written


@posix
@pytest.mark.parametrize("text", [b"w1\nw2\n", b"\0", b""])
def test_a_pipe_that_the_user_names_is_read(text, here, tmp_path, capsys):
    """As in `--file <(sort texts)`."""
    os.mkfifo(tmp_path / "pipe")
    writer = threading.Thread(target=(tmp_path / "pipe").write_bytes, args=(text,))
    writer.start()
    status = main(["generate", str(here / "run"), "--file", str(tmp_path / "pipe")])
    writer.join()
    out, errors = capsys.readouterr()
    assert (status, out.count("\n")) == ((0, 2) if b"w" in text else (2, 0))
    if status:
        check_line(errors.removesuffix("\n"))


@pytest.mark.parametrize("temperature", ["1e-45", "1e-300", "1e-320", "1e300"])
def test_any_temperature_above_0_draws(temperature, here, capsys):
    assert main(["generate", str(here / "run"), "w", "--temperature", temperature]) == 0
    assert capsys.readouterr().out


def test_a_lack_of_memory_is_one_line(here, capsys, monkeypatch):
    def lacking(*given, **options):
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9")

    monkeypatch.setattr("minitransformer.cli.generate.answer", lacking)
    assert main(["generate", str(here / "run"), "w", "w"]) == 2
    assert (
        capsys.readouterr().err == "minitransformer: error: not enough memory for these numbers\n"
    )


@pytest.mark.skipif(sys.platform != "linux", reason="exercise grade needs Linux")
@pytest.mark.parametrize("content", ["{}", "[]", '{"seed": "1"}'])
def test_a_damaged_seed_of_the_grader_is_named(content, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(grade, "Sandbox", lambda *_: nullcontext())  # nothing is run
    for name in ("submissions", "out"):
        (tmp_path / name).mkdir()
    (tmp_path / "submissions" / "ann.py").write_text("")
    (tmp_path / "out" / "seed.json").write_text(content)
    folders = [str(tmp_path / "submissions"), "--out", str(tmp_path / "out"), "--trust"]
    assert main(["exercise", "grade", *folders]) == 2
    *_, error = capsys.readouterr().err.splitlines()  # the others say how names are read
    assert "seed.json: " in error
    check_line(error)


class Terminal:
    """A stream that keeps what is written, and says that it is a terminal."""

    encoding = "utf-8"

    def __init__(self, is_terminal: bool):
        self.written, self.is_terminal = "", is_terminal

    def write(self, text: str) -> int:
        self.written += text
        return len(text)

    def flush(self) -> None:
        pass

    def isatty(self) -> bool:
        return self.is_terminal


@pytest.mark.parametrize("is_terminal", [True, False])
def test_a_model_has_no_control_over_the_terminal(is_terminal, here, monkeypatch):
    said = "a\tb\n" + ESCAPE + "\N{ZERO WIDTH JOINER}é"
    monkeypatch.setattr("minitransformer.cli.generate.answer", lambda *given, **options: [said])
    monkeypatch.setattr(sys, "stdout", Terminal(is_terminal))
    assert main(["generate", str(here / "run"), "w", "w"]) == 0
    shown = "a\tb\n\\x1b[2J\\r\n\\u202e\\x9b\N{ZERO WIDTH JOINER}é"
    assert sys.stdout.written == (shown if is_terminal else said) + "\n"


@pytest.mark.parametrize("closed", ["stdin", "stdout", "stderr"])
def test_a_closed_stream_is_empty_and_forgets(closed, here, monkeypatch, capsys):
    monkeypatch.setattr(sys, closed, None)
    texts = [] if closed == "stdin" else ["w"]
    assert main(["generate", str(here / "run"), *texts]) == (2 if closed == "stdin" else 0)
    assert ("standard input: is empty" in capsys.readouterr().err) == (closed == "stdin")
    getattr(sys, closed).close()


def test_a_disk_that_is_full_is_one_line(here, monkeypatch, capsys):
    def full():
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(sys, "stdout", Terminal(is_terminal=False))
    monkeypatch.setattr(sys.stdout, "flush", full)
    assert main(["generate", str(here / "run"), "w", "w"]) == 2
    check_line(capsys.readouterr().err.removesuffix("\n"))


def test_a_message_is_one_line_of_a_length_that_can_be_read():
    error = InputError(f"{ESCAPE}{'x' * 10**6}: the reason\n")
    check_line(str(error))
    assert str(error).startswith(r"\x1b[2J\r\n\u202e\x9bxxx")
    assert str(error).endswith(r"xxx: the reason\n")


def test_texts_without_end_are_read_up_to_a_limit(monkeypatch):
    from minitransformer.data.files import read_stream

    class Endless:
        def read(self, size):
            return b"y\n" * (size // 2)

    with pytest.raises(InputError, match="standard input: has more than the 3 MiB that are read"):
        read_stream(Endless(), "standard input", 3 * 2**20)
