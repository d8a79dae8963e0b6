"""The command line as a user meets it: what is printed, what is left behind, what is refused."""

import io
import os
import re
import shutil
import signal
import subprocess
import sys
from contextlib import redirect_stdout
from pathlib import Path

import pytest
import torch

from minitransformer import __version__
from minitransformer.cli import train as cli_train
from minitransformer.cli.main import main
from minitransformer.cli.options import find_device
from minitransformer.cli.train import ragged_texts
from minitransformer.training.checkpoint import locked
from minitransformer.training.run import Run
from minitransformer.training.tasks import DataOptions, PairsTask

TINY = "--d-model 16 --num-heads 2 --num-layers 2 --steps 3 --batch-size 8".split()  # noqa: SIM905


def no_pictures(pictures, folder):
    """In the place of `save_pictures`: most of the time of a short training is matplotlib's."""
    return []


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A run of each kind, hardly trained, and what the one of the dates printed."""
    pytest.importorskip("matplotlib")
    pytest.importorskip("babel")
    here = tmp_path_factory.mktemp("runs")
    (here / "pairs.tsv").write_text("".join(f"w{'ab' * (i % 7)}{i}\t{i}\n" for i in range(40)))
    (here / "prose.txt").write_text("\n\n".join(f"Word {i} {'x ' * (i % 9)}" for i in range(40)))
    with open(here / "printed", "w", encoding="utf-8") as file, redirect_stdout(file):
        dates = ["--out", str(here / "dates"), "--max-length", "38"]
        assert main(["train", *dates, *TINY]) == 0
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cli_train, "save_pictures", no_pictures)
        for task, data in {"pairs": "pairs.tsv", "lm": "prose.txt", "mlm": "prose.txt"}.items():
            file = ["--data", str(here / data)]
            assert main(["train", "--task", task, "--out", str(here / task), *file, *TINY]) == 0
    return here


def test_training_leaves_a_folder_with_pictures(folders):
    names = {path.name for path in (folders / "dates").iterdir()}
    assert names == {
        ".lock",
        "checkpoints",
        "manifest.json",
        "config.json",
        "vocabulary.json",
        "model.safetensors",
        "metrics.csv",
        "loss.png",
        "encoder_self_attention.png",
        "decoder_self_attention.png",
        "cross_attention.png",
    }
    for path in (folders / "dates").glob("*.png"):
        assert path.read_bytes().startswith(b"\x89PNG")
        assert path.stat().st_size > 10_000


def test_training_ends_with_the_weight_on_padding(folders):
    printed = (folders / "printed").read_text(encoding="utf-8")
    assert "EncoderDecoder, vanilla style" in printed
    assert re.search(r"exact match on 2,000 held-out examples: \d+\.\d\d%", printed)
    for locale in ("ar", "ja", "ru", "zh"):
        assert re.search(rf"\b{locale} +\d+\.\d\d%", printed)
    assert "over all layers, heads and held-out examples: 0.0\n" in printed


def test_the_pictures_are_of_the_same_texts_in_every_run(pairs_of_one_length):
    assert ragged_texts(pairs_of_one_length) == [f"w{i}" for i in range(9)]


@pytest.fixture
def pairs_of_one_length(tmp_path):
    (tmp_path / "pairs.tsv").write_text("".join(f"w{i}\t{i}\n" for i in range(9)))
    return PairsTask(DataOptions(str(tmp_path / "pairs.tsv")), 64)


def test_options_reach_the_model(folders, tmp_path, monkeypatch):
    monkeypatch.setattr(cli_train, "save_pictures", no_pictures)
    data = ["--task", "pairs", "--data", str(folders / "pairs.tsv")]
    out = ["--out", str(tmp_path / "run"), "--style", "llama", "--num-kv-heads", "1"]
    more = ["--d-ff", "20", "--max-length", "50", "--dropout", "0.1", "--no-pack", "--seed", "7"]
    assert main(["train", *data, *out, *more, *TINY]) == 0
    run = Run.load(tmp_path / "run")
    config = run.model.config
    assert (config.style, config.num_kv_heads, config.d_ff) == ("llama", 1, 20)
    assert (config.max_length, config.dropout, config.d_model) == (50, 0.1, 16)
    assert (run.settings["packed"], run.settings["seed"]) == (False, 7)


@pytest.mark.parametrize("task", ["dates", "pairs", "mlm"])
def test_answers_are_the_same_in_a_batch_and_alone(folders, capsys, task):
    texts = ["3. Juni [MASK]", "w[MASK]", "Word [MASK] x [MASK] x x x"]
    assert main(["generate", str(folders / task), *texts]) == 0
    together = capsys.readouterr().out.splitlines()
    alone = []
    for text in texts:
        assert main(["generate", str(folders / task), text]) == 0
        alone += capsys.readouterr().out.splitlines()
    assert together == alone
    assert len(together) == 3


def test_continuations_start_with_the_text_and_repeat_with_the_seed(folders, capsys):
    def continued(*options):
        verb = ["generate", str(folders / "lm"), "Word", "--max-new-tokens", "20"]
        assert main([*verb, *options]) == 0
        return capsys.readouterr().out

    assert continued().startswith("Word")
    assert continued("--seed", "1") == continued("--seed", "1") != continued("--seed", "2")
    assert continued("--temperature", "0") == continued("--top-k", "1")


def test_options_may_stand_before_the_texts(folders, capsys):
    texts, option = ["w1", "w2"], ["--max-new-tokens", "3"]
    assert main(["generate", str(folders / "pairs"), *texts, *option]) == 0
    after = capsys.readouterr().out
    assert main(["generate", str(folders / "pairs"), *option, *texts]) == 0
    assert capsys.readouterr().out == after
    assert after.count("\n") == 2


def test_texts_come_from_a_file_or_from_standard_input(folders, tmp_path, capsys, monkeypatch):
    texts = ["w1", "wab2", "x"]
    main(["generate", str(folders / "pairs"), *texts])
    expected = capsys.readouterr().out
    (tmp_path / "texts").write_text("\n".join(texts) + "\n")
    main(["generate", str(folders / "pairs"), "--file", str(tmp_path / "texts")])
    assert capsys.readouterr().out == expected
    with open(tmp_path / "texts") as stdin:
        monkeypatch.setattr(sys, "stdin", stdin)
        main(["generate", str(folders / "pairs")])
    assert capsys.readouterr().out == expected


@pytest.mark.parametrize(
    ("task", "kinds"), [pytest.param("dates", 3, marks=pytest.mark.slow), ("lm", 1), ("mlm", 1)]
)
def test_show_draws_a_picture_for_each_text_and_attention(folders, tmp_path, capsys, task, kinds):
    out = tmp_path / "pictures"
    texts = ["Word 1", "2025年6月3日"]
    assert main(["show", str(folders / task), *texts, "--out", str(out)]) == 0
    paths = capsys.readouterr().out.split()
    assert len(paths) == len(set(paths)) == 2 * kinds == len(list(out.iterdir()))
    assert all(Path(path).read_bytes().startswith(b"\x89PNG") for path in paths)


def test_unknown_characters_are_named(folders, capsys):
    assert main(["generate", str(folders / "pairs"), "wé1"]) == 0
    assert "never seen in training, read as <unk>: 'é'" in capsys.readouterr().err


def test_runs_are_listed_with_what_became_of_them(folders, tmp_path, capsys):
    shutil.copytree(folders / "lm", tmp_path / "damaged")
    (tmp_path / "damaged" / "metrics.csv").write_text("step\n1\n", encoding="utf-8")
    shutil.copytree(folders / "pairs", tmp_path / "interrupted")
    (tmp_path / "interrupted" / "manifest.json").unlink()
    for path in (tmp_path / "interrupted" / "checkpoints").iterdir():
        if path.name > "000002":
            shutil.rmtree(path)
    (tmp_path / "else").mkdir()
    with locked(folders / "mlm"):
        assert main(["runs", str(folders), str(tmp_path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == "run task step loss held out last saved state".split()  # noqa: SIM905
    states = {Path(line.split()[0]).name: line.split()[-1] for line in lines[1:-1]}
    assert states == {
        "dates": "finished",
        "lm": "finished",
        "mlm": "running",
        "pairs": "finished",
        "damaged": "damaged",
        "interrupted": "interrupted",
    }
    assert "2 of 3" in next(line for line in lines if "interrupted" in line)
    assert "metrics.csv: is damaged" in lines[-1]


REFUSED = [
    ("train --task pairs", "--task pairs needs --data"),
    ("train --data {here}/pairs.tsv", "add --task pairs"),
    ("train --task pairs --data {here}/none.tsv", "none.tsv: no such file"),
    ("train --task pairs --data {here}/dates/checkpoints", "config.json:1: is not a line of JSON"),
    ("train --task pairs --data {here}/prose.txt", "prose.txt:1: expected source TAB target"),
    ("train --task pairs --data {here}/pairs.tsv --max-length 5", ": the source has"),
    ("train --task lm --tokenizer {here}/none.json", "none.json: no such file"),
    ("train --task lm --tokenizer bpe --vocab-size 9", "--vocab-size must be 261 or more for bpe"),
    ("train --d-model 10", "--d-model must be a multiple of --num-heads, got 10 and 4"),
    ("train --dropout 1", "--dropout must be in [0, 1)"),
    ("train --max-length 20", "--max-length must be 38 or more for the dates"),
    ("train --task lm --tokenizer {here}/prose.txt", "prose.txt: is no tokenizer.json"),
    ("train --task lm --tokenizer {here}", "tokenizer.json: no such file"),
    ("train --task pairs --data {here}/pairs.tsv --columns a", "--columns: expected 2"),
    ("train --task pairs --data /dev/zero", "/dev/zero: is a pipe, a socket or a device"),
    ("evaluate {here}/mlm --task lm", "--task lm: needs DecoderOnly, but "),
    ("evaluate {here}/pairs --data {here}/none", "none: no such file"),
    ("train --device cuda", "--device cuda: torch finds none here, only cpu"),
    ("train --device mps", "--device mps: torch finds none here, only cpu"),
    ("generate {here}/dates x --device cuda", "--device cuda: torch finds none here"),
    ("show {here}/dates x --device cuda", "--device cuda: torch finds none here"),
    ("train --learning-rate nan", "--learning-rate must be above 0, got nan"),
    ("train --learning-rate inf", "--learning-rate must be above 0, got inf"),
    ("train --d-model 2000000000", "memory"),
    ("train --out /dev/null", "already exists"),
    ("train --out /dev/null/x", "cannot be written to: Not a directory"),
    ("train --resume {here}/none", "none: no such folder; expected a folder that `train` left"),
    ("train --resume {here}", "holds no checkpoints"),
    ("train --shard", "--shard needs several processes: torchrun"),
    ("runs {here}/none", "none: no such folder; `minitransformer train` makes"),
    ("runs", "runs: no such folder"),
    ("train --out " + 300 * "x", "name too long"),
    ("train --out {here}/dates", "already exists"),
    ("train --task lm --max-length 2", "--max-length must be 3 or more"),
    ("generate {here}/none x", "none: no such folder"),
    ("generate {here} x", "holds no manifest.json and no checkpoints"),
    ("generate {here}/dates --file {here}/none.txt", "none.txt: no such file"),
    ("generate {here}/dates " + 39 * "x", "text 1: has 39 tokens, more than the 38"),
    ("generate {here}/mlm Word", "text 1: holds no [MASK]"),
    ("generate {here}/lm Word --max-new-tokens 300", "text 1: has 305 tokens with 300 new ones"),
    ("generate {here}/lm Word --temperature -1", "temperature must be 0"),
    ("generate {here}/lm Word --temperature nan", "temperature must be 0"),
    ("generate {here}/lm Word --top-p 2", "top_p must be in (0, 1]"),
    ("generate {here}/lm Word --file {here}/prose.txt", "give texts or --file, not both"),
    ("show {here}/dates x --layer 2", "layer must be"),
    ("show {here}/none x", "none: no such folder"),
]


@pytest.mark.parametrize(("line", "says"), REFUSED, ids=[says for _, says in REFUSED])
def test_what_cannot_be_used_is_refused_in_one_line(
    folders, tmp_path, monkeypatch, capsys, line, says
):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    monkeypatch.chdir(tmp_path)
    assert main([word.format(here=folders) for word in line.split()]) == 2
    error = capsys.readouterr().err
    assert says in error
    assert error.startswith("minitransformer: error: ")
    assert error.count("\n") == 1
    assert list(tmp_path.iterdir()) == []  # nothing half-written


@pytest.mark.parametrize(
    "line",
    [
        "train --steps 0",
        "train word",
        "generate run --fly text",
        "train --num-layers 0",
        "train --threads 0",
        "train --seed -1",
        "fly",
    ],
)
def test_what_is_no_command_shows_the_usage(line, capsys):
    with pytest.raises(SystemExit) as stop:
        main(line.split())
    assert stop.value.code == 2
    assert "usage: minitransformer" in capsys.readouterr().err


def test_a_loss_that_is_not_finite_ends_the_training(folders, tmp_path, capsys):
    wild = ["--learning-rate", "1e30", "--steps", "20", "--out", str(tmp_path / "run")]
    assert main(["train", "--task", "pairs", "--data", str(folders / "pairs.tsv"), *wild]) == 2
    assert re.search(
        r"at step \d+: start again with a lower --learning-rate", capsys.readouterr().err
    )


@pytest.mark.parametrize("typed", [b"\xff\xfe", b"", b"a\0b"])
def test_standard_input_that_is_no_text_is_refused(folders, typed, monkeypatch, capsys):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(typed)))
    assert main(["generate", str(folders / "dates")]) == 2
    out, error = capsys.readouterr()
    assert error.startswith("minitransformer: error: standard input:")
    assert error.count("\n") == 1
    assert out == ""


def test_a_file_may_have_any_name(folders, tmp_path, capsys):
    path = tmp_path / "a {0} {x}\n\x1b[31m.txt"
    path.write_text("w1\n\n", encoding="utf-8")
    assert main(["generate", str(folders / "pairs"), "--file", str(path)]) == 2
    error = capsys.readouterr().err
    assert "a {0} {x}\\n\\x1b[31m.txt:2: is empty" in error
    assert error.count("\n") == 1
    path.write_text("w1\t1\nno tab\n", encoding="utf-8")
    assert main(["evaluate", str(folders / "pairs"), "--data", str(path)]) == 2
    assert "[31m.txt:2: expected source TAB target" in capsys.readouterr().err


def test_a_dates_run_is_evaluated_on_pairs(folders, tmp_path, capsys):
    (tmp_path / "a.tsv").write_text("3 June 2025\t2025-06-03\n" * 3, encoding="utf-8")
    assert main(["evaluate", str(folders / "dates"), "--data", str(tmp_path / "a.tsv")]) == 0
    assert "exact match" in capsys.readouterr().out


def test_pairs_come_from_a_pipe(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    reading, writing = os.pipe()
    os.write(writing, b"a\tb\nc\td\n")
    os.close(writing)
    assert main(["train", "--task", "pairs", "--data", f"/dev/fd/{reading}", "--inspect"]) == 0
    assert "a → b" in capsys.readouterr().out
    os.close(reading)


@pytest.mark.parametrize(
    "rows",
    [["x" * 300 + "\ty"] * 4, ["x" * 300 + f"\t{i}" for i in range(4)]],
    ids=["same", "other"],
)
def test_pairs_of_which_none_fits_are_refused(tmp_path, capsys, rows):
    (tmp_path / "long.tsv").write_text("\n".join(rows), encoding="utf-8")
    data = ["--task", "pairs", "--data", str(tmp_path / "long.tsv")]
    assert main(["train", *data, "--skip-long"]) == 2
    says = "long.tsv:1: the source has 300 characters, more than the 256 that fit: every pair is"
    assert says in capsys.readouterr().err


def test_an_empty_line_is_refused_by_its_number(folders, tmp_path, capsys):
    (tmp_path / "texts").write_text("a\n\nb\n")
    assert main(["generate", str(folders / "dates"), "--file", str(tmp_path / "texts")]) == 2
    assert "texts:2: is empty" in capsys.readouterr().err


def test_a_gpu_is_taken_where_there_is_one(monkeypatch):
    for name, gpu in (("cuda", torch.cuda), ("mps", torch.backends.mps)):
        with monkeypatch.context() as patch:
            patch.setattr(torch.cuda, "is_available", lambda: False)
            patch.setattr(torch.backends.mps, "is_available", lambda: False)
            assert find_device("auto").type == "cpu"
            patch.setattr(gpu, "is_available", lambda: True)
            assert find_device("auto").type == find_device(name).type == name
            assert find_device("cpu").type == "cpu"


def test_the_version_is_printed(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["--version"])
    assert stop.value.code == 0
    assert capsys.readouterr().out == f"minitransformer {__version__}\n"


def test_help_says_what_each_verb_does(capsys):
    for verb in ([], ["train"], ["generate"], ["show"]):
        with pytest.raises(SystemExit) as stop:
            main([*verb, "--help"])
        assert stop.value.code == 0
        assert "usage: minitransformer" in capsys.readouterr().out


def test_without_a_verb_the_verbs_are_listed(capsys):
    assert main([]) == 0
    assert "train a model" in capsys.readouterr().out
    assert main(["exercise"]) == 0
    assert "minitransformer exercise start padding_mask" in capsys.readouterr().out


def command(*arguments, **options):
    return subprocess.Popen(
        [sys.executable, "-m", "minitransformer", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **options,
    )


@pytest.mark.slow
def test_ctrl_c_keeps_what_was_reached_and_says_where(tmp_path):
    small = [*TINY, "--max-length", "38", "--batch-size", "2"]
    process = command("train", *small, "--steps", "100000", cwd=tmp_path)
    assert process.stdout.readline().startswith("dates: EncoderDecoder")
    seen = ""
    while not re.search(r"[1-9]\d*/100000", seen):  # the bar: a first step was made
        seen += process.stderr.read(1)
    process.send_signal(signal.SIGINT)
    out, errors = process.communicate(timeout=600)
    assert process.returncode == 130
    assert re.search(
        r"^stopping after this step; once more to give up [\d,]+ unsaved", errors, re.M
    )
    assert re.search(r"interrupted after step [\d,]+ of 100,000", out)
    assert f"saved in {os.path.join('runs', 'dates')}\n" in out
    assert "holds checkpoints, config.json, cross_attention.png" in out
    assert "Traceback" not in errors
    assert main(["generate", str(tmp_path / "runs" / "dates"), "3 June 2025"]) == 0


@pytest.mark.slow
def test_a_reader_that_stops_early_is_no_error(folders):
    few = ["--max-new-tokens", "1"]
    process = command("generate", str(folders / "lm"), *few, *(["w1"] * 2_000))
    with process:
        process.stdout.readline()
        process.stdout.close()
        assert "Traceback" not in process.stderr.read()
    assert process.returncode == 0


# ---- folders of the transformers library -------------------------------------------------------


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory):
    """A small random model of each kind in a folder with its own tokenizer.json."""
    tf = pytest.importorskip("transformers")
    from minitransformer.data.tokenization import Tokenizer

    numbers = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    numbers |= {"intermediate_size": 24, "max_position_embeddings": 64}
    both = {"d_model": 16, "encoder_layers": 1, "decoder_layers": 1, "encoder_ffn_dim": 24}
    both |= {"decoder_ffn_dim": 24, "encoder_attention_heads": 2, "decoder_attention_heads": 2}
    both |= {"max_position_embeddings": 32, "decoder_start_token_id": 65, "eos_token_id": 2}
    texts = ["the cat sat on the mat", "a dog and a naïve fox"] * 9
    folders = {}
    torch.manual_seed(0)
    for name, kind, config, model in (
        ("bert", "wordpiece", tf.BertConfig(vocab_size=90, **numbers), tf.BertForMaskedLM),
        ("llama", "bpe", tf.LlamaConfig(vocab_size=300, **numbers), tf.LlamaForCausalLM),
        ("bart", "bpe", tf.BartConfig(vocab_size=300, **both), tf.BartForConditionalGeneration),
    ):
        folders[name] = tmp_path_factory.mktemp(name)
        model(config).save_pretrained(folders[name])
        Tokenizer.train(texts, 90 if kind == "wordpiece" else 300, kind).save(folders[name])
    return folders


@pytest.mark.parametrize("name", ["llama", "bart"])
def test_a_text_alone_is_streamed_and_several_are_the_same(pretrained, capsys, monkeypatch, name):
    options = ["--temperature", "0", "--max-new-tokens", "12"]
    texts = ["the cat", "a naïve fox and the dog"]
    assert main(["generate", str(pretrained[name]), *texts, *options]) == 0
    together = capsys.readouterr().out.splitlines()
    pieces = []
    monkeypatch.setattr("builtins.print", lambda *args, **kw: pieces.append((args, kw)))
    for text in texts:
        assert main(["generate", str(pretrained[name]), text, *options]) == 0
    alone = "".join(str(args[0]) if args else "\n" for args, _ in pieces)
    assert alone.splitlines() == together
    assert len(pieces) > 12  # token by token
    if name == "llama":
        assert all(line.startswith(text) for line, text in zip(together, texts, strict=True))


def test_masks_are_filled_by_a_pretrained_encoder(pretrained, capsys):
    assert main(["generate", str(pretrained["bert"]), "the [MASK] sat", "a dog"]) == 2
    assert "text 2: holds no [MASK] to fill" in capsys.readouterr().err
    assert main(["generate", str(pretrained["bert"]), "The [MASK] sat"]) == 0
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith("the ")
    assert line.endswith(" sat")
    assert "[" not in line


def test_beams_are_searched(pretrained, capsys):
    command = ["generate", str(pretrained["bart"]), "the cat", "--num-beams", "3"]
    assert main([*command, "--max-new-tokens", "5"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 1


@pytest.mark.parametrize(
    ("name", "kinds"),
    [
        ("bert", 1),
        pytest.param("llama", 1, marks=pytest.mark.slow),
        pytest.param("bart", 3, marks=pytest.mark.slow),
    ],
)
def test_pretrained_attention_is_drawn(pretrained, tmp_path, capsys, name, kinds):
    pytest.importorskip("matplotlib")
    folder = str(pretrained[name])
    assert main(["show", folder, "the cat", "a dog", "--out", str(tmp_path)]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 2 * kinds == len(list(tmp_path.iterdir()))


def test_a_folder_without_a_tokenizer_is_refused(pretrained, tmp_path, capsys):
    shutil.copytree(pretrained["llama"], tmp_path / "llama")
    (tmp_path / "llama" / "tokenizer.json").unlink()
    assert main(["generate", str(tmp_path / "llama"), "the cat"]) == 2
    assert "tokenizer.json: no such file" in capsys.readouterr().err
