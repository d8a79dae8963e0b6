"""Checkpoints: whatever happens, there is a whole one, and training goes on from it bit for bit."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path

import pytest
import safetensors.torch
import torch
from disk import FULL, Crash, Disk

from minitransformer import Config, DecoderOnly, EncoderDecoder
from minitransformer.cli import train as cli_train
from minitransformer.cli.main import main
from minitransformer.data import files as files_module
from minitransformer.data import manifest
from minitransformer.data.files import InputError, to_json, write_atomically
from minitransformer.data.manifest import (
    MANIFEST,
    DamagedError,
    manifest_of,
    read_folder,
    replace_files,
    sha256,
    write_folder,
)
from minitransformer.data.vocabulary import Vocabulary
from minitransformer.pretrained import load_pretrained, save_pretrained
from minitransformer.training.checkpoint import checkpoints, is_locked, locked, make_folder, save
from minitransformer.training.loop import COLUMNS, Settings, Training, train
from minitransformer.training.run import Run
from minitransformer.training.saver import Saver, best_step, files_of, restore
from minitransformer.training.tasks import DataOptions, PairsTask

SMALL = {"d_model": 16, "num_layers": 1, "num_heads": 2}
NAMES = ["config.json", "manifest.json", "metrics.csv", "model.safetensors", "vocabulary.json"]
posix = pytest.mark.skipif(os.name != "posix", reason="POSIX's signals, limits or links")


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """As the command line has it: other numbers of threads give other bits."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def task(pairs):
    return PairsTask(DataOptions(pairs), 64)


def new_training(task, **settings):
    torch.manual_seed(0)
    model = EncoderDecoder(Config(len(task.vocabulary), **SMALL, max_length=64, dropout=0.1))
    training = Training(model, Settings(**{"steps": 6, "batch_size": 4, "warmup": 2} | settings))
    return training, Run("pairs", model, task.vocabulary, {"steps": 6}, training.history)


@pytest.fixture(scope="module")
def steps(task):
    """The files of checkpoints at steps 0, 1, 2, ... 6."""
    training, run = new_training(task, save_every=1, evaluate_every=3)
    found = []
    train(training, task, lambda one: found.append(files_of(run, one)), quiet=True)
    return found


def step_in(files):
    """The one step that all files are of, by their bytes."""
    step = json.loads(files["config.json"])["step"]
    assert len(files["metrics.csv"].splitlines()) == (step + 1 if step else 1)
    return step


# ---- folders with a manifest ---------------------------------------------------------------------


FILES = {"a.json": b'{"a": 1}', "b.safetensors": bytes(range(256)) * 20, "c.csv": b"x\n1\n"}


def test_a_folder_is_read_as_it_was_written(tmp_path):
    write_folder(tmp_path / "folder", FILES)
    assert read_folder(tmp_path / "folder") == FILES
    assert list(tmp_path.iterdir()) == [tmp_path / "folder"]
    write_folder(tmp_path / "folder", {"a.json": b"2"})  # and may be replaced
    assert read_folder(tmp_path / "folder") == {"a.json": b"2"}


def damaged(data, how, rng):
    """Other bytes, always."""
    if how == "bit":
        place = rng.randrange(len(data))
        changed = data[place] ^ 1 << rng.randrange(8)
        return data[:place] + bytes([changed]) + data[place + 1 :]
    if how == "cut":
        return data[: rng.randrange(len(data))]
    if how == "longer":
        return data + b"\0"
    if how == "block":
        start = rng.randrange(max(1, len(data) - 64))
        zeroed = data[:start] + bytes(len(data[start : start + 64])) + data[start + 64 :]
        return zeroed if zeroed != data else damaged(data, "bit", rng)
    raise ValueError(how)


@pytest.mark.parametrize("how", ["bit", "cut", "longer", "block", "gone", "foreign", "a folder"])
@pytest.mark.parametrize("name", [*FILES, MANIFEST])
def test_what_is_damaged_is_refused_by_its_name(tmp_path, how, name):
    other, rng = tmp_path / "other", random.Random(f"{how} {name}")
    write_folder(other, {file: data[::-1] + b"\n" for file, data in FILES.items()})
    for turn in range(20 if how in ("bit", "cut", "block") else 1):
        folder = tmp_path / str(turn)
        write_folder(folder, FILES)
        path = folder / name
        if how == "foreign":
            shutil.copy(other / name, path)
        elif how in ("gone", "a folder"):
            path.unlink()
            if how == "a folder":
                path.mkdir()
        else:
            path.write_bytes(damaged(path.read_bytes(), how, rng))
        with pytest.raises(InputError) as refusal:
            read_folder(folder)
        assert str(folder) in str(refusal.value)
        assert "\n" not in str(refusal.value)
        if name != MANIFEST:
            assert name in str(refusal.value)


def test_a_file_that_was_put_there_is_refused(tmp_path):
    write_folder(tmp_path / "folder", FILES)
    (tmp_path / "folder" / "loss.png").touch()  # this is nobody's input
    read_folder(tmp_path / "folder")
    (tmp_path / "folder" / "more.safetensors").touch()
    with pytest.raises(DamagedError, match=r"more.safetensors: is not in manifest.json"):
        read_folder(tmp_path / "folder")


def test_a_manifest_that_says_the_same_in_other_bytes_is_refused(tmp_path):
    write_folder(tmp_path / "folder", FILES)
    path = tmp_path / "folder" / MANIFEST
    path.write_bytes(path.read_bytes().replace(b"{\n", b"{ \n", 1))
    with pytest.raises(DamagedError, match=r"manifest.json: is damaged"):
        read_folder(tmp_path / "folder")


def test_a_newer_format_is_refused_by_its_number(tmp_path):
    write_folder(tmp_path / "folder", FILES)
    manifest = json.loads(manifest_of(FILES)) | {"format": 2}
    (tmp_path / "folder" / MANIFEST).write_bytes(to_json(manifest))
    with pytest.raises(InputError, match=r"manifest.json: is of format 2, .* \(this one reads 1\)"):
        read_folder(tmp_path / "folder")


@pytest.mark.parametrize("name", ["../a.json", "/etc/passwd", "x/y"])
def test_a_manifest_reaches_no_other_folder(tmp_path, name):
    write_folder(tmp_path / "folder", FILES)
    (tmp_path / "folder" / MANIFEST).write_bytes(manifest_of({name: b""}))
    with pytest.raises(DamagedError, match=r"manifest.json: is damaged"):
        read_folder(tmp_path / "folder")


# ---- every point at which a process can end ------------------------------------------------------


def write_first(folder, steps):
    save(folder, 0, steps[0], 2, None)


def write_later(folder, steps):
    save(folder, 3, steps[3], 1, 3)


def write_again(folder, steps):
    save(folder, 2, steps[2], 1, 2)


def write_end(folder, steps, step=2):
    replace_files(folder, {name: steps[step][name] for name in NAMES if name != MANIFEST})


WRITERS = {
    "the first checkpoint": (write_first, []),
    "a later one, where others go": (write_later, [0, 1, 2]),
    "one that was there already": (write_again, [1, 2, 3]),
    "the run's own files": (write_end, [1, 2]),
    "the run's own files, again": (write_end, [1, "end of 1", 2]),
}


def prepared(folder, made, steps):
    (folder / "checkpoints").mkdir(parents=True)
    for step in made:
        if step == "end of 1":
            write_end(folder, steps, 1)
        else:
            save(folder, step, steps[step], 3, None)
    return [step for step in made if step != "end of 1"]


def refusal_of(function, *arguments):
    try:
        function(*arguments)
    except InputError as refusal:
        return str(refusal)
    return ""


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="asks the system for a file's name")
@pytest.mark.parametrize(
    "error",
    [
        pytest.param(None, id="the process ends", marks=pytest.mark.slow),
        pytest.param(FULL, id="the disk is full"),
    ],
)
@pytest.mark.parametrize("writer", WRITERS)
def test_whatever_fails_while_writing_a_whole_step_is_there(
    tmp_path, monkeypatch, steps, writer, error
):
    write, made = WRITERS[writer]
    before = prepared(tmp_path / "before", made, steps)
    shutil.copytree(tmp_path / "before", tmp_path / "count")
    with monkeypatch.context() as patched:
        disk = Disk(patched)
        write(tmp_path / "count", steps)
    assert disk.calls > 10
    seen = set()
    wanted_of = cache(lambda step: Run.from_files(steps[step], tmp_path))
    for good in range(disk.calls):
        folder = tmp_path / str(good)
        shutil.copytree(tmp_path / "before", folder)
        with monkeypatch.context() as patched:
            failing = Disk(patched, good, error)
            if error is None:
                with pytest.raises(Crash):
                    write(folder, steps)
            elif refusal := refusal_of(write, folder, steps):
                assert str(folder) in refusal
                assert refusal.endswith("cannot be written: No space left on device")
            assert failing.calls > good
        if refusal := refusal_of(Run.load, folder):
            assert not before
            assert "holds no manifest.json and no checkpoints" in refusal
            continue
        run = Run.load(folder)
        step = len(run.history)
        seen.add(step)
        for ours, theirs in zip(
            run.model.parameters(), wanted_of(step).model.parameters(), strict=True
        ):
            assert torch.equal(ours, theirs)
        for path in checkpoints(folder):
            assert step_in(read_folder(path)) == int(path.name)
        with locked(folder):  # the next training tidies up
            write(folder, steps)
        strays = [path for path in folder.rglob("*") if path.name.endswith(".tmp")]
        assert strays == []
    assert seen == {write_first: {0}, write_later: {2, 3}, write_again: {2, 3}}.get(write, {2})


# ---- what is kept --------------------------------------------------------------------------------


def test_the_last_ones_are_kept_and_the_best(tmp_path, steps):
    for step in range(7):
        save(tmp_path, step, steps[step], keep=2, best=2 if step > 1 else None)
    assert [path.name for path in checkpoints(tmp_path)] == ["000002", "000005", "000006"]
    save(tmp_path, 3, steps[3], keep=2, best=2)  # taken up again from there
    assert [path.name for path in checkpoints(tmp_path)] == ["000002", "000003"]


def test_the_best_step_is_that_of_the_result_that_counts():
    rows = [{"step": i + 1, "loss": 9.0 - i} for i in range(4)]
    assert best_step(rows) is None
    for row, score in zip(rows, (0.5, 0.9, 0.9, 0.1), strict=True):
        row["exact_match"] = score
    assert best_step(rows) == 3  # of equals the later
    for row, score in zip(rows, (0.5, 0.1, 0.2, 0.3), strict=True):
        row["held_out_loss"] = score
        del row["exact_match"]
    assert best_step(rows) == 2


# ---- a run ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def ended(tmp_path_factory, task):
    """The folder of a training that has ended."""
    training, run = new_training(task, evaluate_every=3)
    folder = tmp_path_factory.mktemp("ended") / "run"
    folder.mkdir()
    saver = Saver(run, folder)
    train(training, task, saver, quiet=True)
    saver.finish()
    return folder


@pytest.fixture
def run_folder(ended, tmp_path):
    """A copy of it."""
    return shutil.copytree(ended, tmp_path / "run")


def test_a_run_that_is_loaded_answers_as_the_one_that_was_saved(run_folder, task, steps):
    loaded = Run.load(run_folder)
    assert loaded.vocabulary.tokens == task.vocabulary.tokens
    assert (loaded.task, loaded.settings) == ("pairs", {"steps": 6})
    assert sorted(p.name for p in run_folder.iterdir()) == ["checkpoints", *NAMES]
    csv = (run_folder / "metrics.csv").read_text(encoding="utf-8").splitlines()
    assert csv[0] == ",".join([*COLUMNS, "exact_match"])
    assert len(csv) == 7
    assert [path.name for path in checkpoints(run_folder)] == ["000003", "000006"]
    weights = (run_folder / "model.safetensors").read_bytes()
    assert weights == (run_folder / "checkpoints" / "000006" / "model.safetensors").read_bytes()
    assert weights == steps[6]["model.safetensors"]
    checkpoint = Run.load(run_folder / "checkpoints" / "000003")
    assert len(checkpoint.history) == 3


def test_tied_embeddings_survive_the_folder(tmp_path):
    vocabulary = Vocabulary("abc")
    config = Config(len(vocabulary), **SMALL, tie_embeddings=True)
    write_folder(tmp_path / "run", Run("pairs", EncoderDecoder(config), vocabulary).files())
    model = Run.load(tmp_path / "run").model
    assert model.head.projection.weight is model.embedding.tokens.weight


CONFIG = {"task": "x", "model": "EncoderOnly", "training": {}}


@pytest.mark.parametrize(
    ("file", "content", "says"),
    [
        ("config.json", b"{", "config.json: (is not JSON|not a run's config)"),
        ("config.json", b'{"task": "dates"}', "config.json: not a run's config"),
        ("config.json", b"[]", "config.json: not a run's config"),
        (
            "config.json",
            json.dumps(CONFIG | {"config": {"vocab_size": 9, "norm_eps": "x"}}).encode(),
            "config.json: not a run's config.*norm_eps must be a number",
        ),
        ("vocabulary.json", b'{"characters": ["a"]}', "vocabulary.json: has 6 tokens"),
        ("vocabulary.json", b'{"words": 1}', "vocabulary.json: holds no list of characters"),
        ("vocabulary.json", b'{"characters": [1]}', "vocabulary.json: holds no list of char"),
        ("model.safetensors", b"not safe", "model.safetensors: is no safetensors file"),
        ("metrics.csv", b"step,loss\n1,2.0\n", "metrics.csv: has 1 steps, but config.json says 6"),
    ],
)
def test_what_is_no_run_is_refused_though_its_manifest_is_right(
    run_folder, tmp_path, file, content, says
):
    write_folder(tmp_path / "other", read_folder(run_folder) | {file: content})
    with pytest.raises(InputError, match=says):
        Run.load(tmp_path / "other")


def test_weights_of_another_model_are_refused(run_folder, tmp_path):
    files = read_folder(run_folder)
    config = json.loads(files["config.json"])
    config["config"]["num_layers"] = 2
    write_folder(tmp_path / "other", files | {"config.json": to_json(config)})
    with pytest.raises(InputError, match=r"model.safetensors: is of another model: .*layers\.1\."):
        Run.load(tmp_path / "other")


def test_the_last_good_checkpoint_is_offered(run_folder):
    (run_folder / "model.safetensors").write_bytes(b"")
    last = run_folder / "checkpoints" / "000006"
    with pytest.raises(DamagedError) as refusal:
        Run.load(run_folder)
    assert "run/model.safetensors: is damaged" in str(refusal.value).replace("\\", "/")
    assert str(refusal.value).endswith(f"; the last good checkpoint is {last}")
    (last / "optimizer.safetensors").unlink()
    with pytest.raises(DamagedError) as refusal:
        Run.load(run_folder)
    good = run_folder / "checkpoints" / "000003"
    assert str(refusal.value).endswith(f"; the last good checkpoint is {good}")
    Run.load(good)


def test_a_run_that_was_cut_short_is_read_at_its_newest_checkpoint(run_folder):
    assert len(Run.load(run_folder).history) == 6
    replace_files(run_folder, Run.load(run_folder / "checkpoints" / "000003").files())
    assert len(Run.load(run_folder).history) == 6  # it went on, and was killed
    (run_folder / MANIFEST).unlink()
    shutil.rmtree(run_folder / "checkpoints" / "000006")
    assert len(Run.load(run_folder).history) == 3
    shutil.rmtree(run_folder / "checkpoints")
    with pytest.raises(InputError, match=r"run: holds no manifest.json and no checkpoints"):
        Run.load(run_folder)


# ---- going on ------------------------------------------------------------------------------------


@pytest.mark.parametrize("step", [0, 1, 4])
def test_a_training_that_is_taken_up_again_ends_with_the_same_bits(task, steps, step, tmp_path):
    run = Run.from_files(steps[step], tmp_path)
    settings = Settings(steps=6, batch_size=4, warmup=2, save_every=1, evaluate_every=3)
    training = Training(run.model, settings)
    training.history = run.history
    torch.manual_seed(12345)  # another process
    restore(training, steps[step])
    train(training, task, quiet=True)
    files = files_of(run, training)
    for name in ("model.safetensors", "optimizer.safetensors", "random.safetensors"):
        assert sha256(files[name]) == sha256(steps[6][name]), name
    no_speed = lambda rows: [  # noqa: E731
        {name: value for name, value in row.items() if name != "tokens_per_second"} for row in rows
    ]
    assert no_speed(run.history) == no_speed(Run.from_files(steps[6], tmp_path).history)


@pytest.mark.parametrize("forgotten", ["optimizer", "random", "position"])
def test_whatever_a_checkpoint_leaves_out_is_noticed(task, steps, forgotten, tmp_path):
    """The test above on broken writers."""
    run = Run.from_files(steps[3], tmp_path)
    training = Training(run.model, Settings(steps=6, batch_size=4, warmup=2, evaluate_every=3))
    training.history = run.history
    batch = training.batch
    if forgotten == "position":
        training.batch = lambda task, step: batch(task, step - 3)
    torch.manual_seed(12345)
    if forgotten != "optimizer":
        restore(training, steps[3])
    if forgotten == "random":
        torch.manual_seed(12345)
    train(training, task, quiet=True)
    files = files_of(run, training)
    assert sha256(files["model.safetensors"]) != sha256(steps[6]["model.safetensors"])


@pytest.fixture(autouse=True)
def no_pictures(monkeypatch):
    """They take seconds, and the tests of the command line look at them."""
    monkeypatch.setattr(cli_train, "save_pictures", lambda pictures, folder: [])


TINY = "--task pairs --d-model 16 --num-heads 2 --num-layers 1 --batch-size 4 --dropout 0.1".split()  # noqa: SIM905


def trained(pairs, out, *more):
    return main(["train", *TINY, "--data", pairs, "--out", str(out), *more])


def weights(folder):
    return sha256((Path(folder) / "model.safetensors").read_bytes())


@pytest.fixture(scope="module")
def short(pairs, tmp_path_factory):
    """A run of four steps."""
    folder = tmp_path_factory.mktemp("short") / "run"
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(cli_train, "save_pictures", lambda pictures, folder: [])
        assert trained(pairs, folder, "--steps", "4") == 0
    return folder


def test_a_longer_training_goes_on_where_the_shorter_one_ended(short, pairs, tmp_path, capsys):
    shutil.copytree(short, tmp_path / "run")
    resume = ["train", "--resume", str(tmp_path / "run")]
    assert main(resume) == 2
    assert "has made 4 steps; say how many it shall have" in capsys.readouterr().err
    assert main([*resume, "--steps", "3"]) == 2
    same = ["--data", pairs, "--d-model", "16", "--seed", "0"]  # may be said again
    assert main([*resume, "--steps", "6", "--evaluate-every", "3", *same]) == 0
    assert "6 steps of 4 examples, from step 4 on" in capsys.readouterr().out
    assert len(Run.load(tmp_path / "run").history) == 6
    main(["train", "--resume", str(tmp_path / "run" / "checkpoints" / "000004"), "--steps", "5"])
    assert len(Run.load(tmp_path / "run").history) == 5
    assert [path.name for path in checkpoints(tmp_path / "run")] == ["000004", "000005"]


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ("--d-model 32", "--d-model is 16 in {run}, not 32: only --steps"),
        ("--seed 1", "--seed is 0 in {run}, not 1"),
        ("--learning-rate 0.1", "--learning-rate is 0.004 in {run}, not 0.1"),
        ("--batch-size 8", "--batch-size is 4 in {run}, not 8"),
        ("--accumulate 2", "--accumulate is 1 in {run}, not 2"),
        ("--task lm", "--task is pairs in {run}, not lm"),
        ("--no-pack", "--packed is True in {run}, not False"),
        ("--data {other}", "is not the data that {run} was trained on so far"),
        ("--out {other}", "--out: a training that is gone on with stays where it is, in {run}"),
        ("--shard", "--shard needs several processes: torchrun"),
    ],
)
def test_what_would_be_another_training_is_refused_by_name(
    short, pairs, tmp_path, capsys, options, says
):
    run = tmp_path / "run"
    shutil.copytree(short, run)
    (tmp_path / "other").write_text("a\tb\nc\td\n", encoding="utf-8")
    names = {"run": run, "other": tmp_path / "other"}
    capsys.readouterr()
    more = [word.format(**names) for word in options.split()]
    assert main(["train", "--resume", str(run), "--steps", "6", *more]) == 2
    assert says.format(**names) in capsys.readouterr().err


def program(*arguments, **options):
    command = [sys.executable, "-m", "minitransformer", *map(str, arguments)]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options
    )


LONG = ["--steps", "100", "--evaluate-every", "100", "--save-every", "5"]


@pytest.fixture(scope="module")
def uninterrupted(pairs, tmp_path_factory):
    """The sha256 of the weights that nothing disturbed."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(cli_train, "save_pictures", lambda pictures, folder: [])
        assert trained(pairs, folder, *LONG) == 0
    return weights(folder)


@posix
@pytest.mark.parametrize(
    "name",
    [
        "SIGTERM",
        *(pytest.param(n, marks=pytest.mark.slow) for n in ("SIGKILL", "SIGHUP", "SIGINT")),
    ],
)
def test_a_training_that_a_signal_ends_goes_on_to_the_same_bits(
    pairs, tmp_path, uninterrupted, name
):
    run = tmp_path / "run"
    command = [sys.executable, "-m", "minitransformer", "train", *TINY, "--data", pairs, *LONG]
    process = subprocess.Popen(
        [*command, "--out", str(run)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(
            signal.SIGHUP, signal.SIG_DFL
        ),  # `nohup pytest` ignores it
    )
    while not [path for path in checkpoints(run) if int(path.name) > 5]:
        assert process.poll() is None
        time.sleep(0.01)
    number = getattr(signal, name)
    process.send_signal(number)
    out, _ = process.communicate(timeout=60)
    assert process.returncode == (-number if name == "SIGKILL" else 128 + number)
    if name in ("SIGTERM", "SIGINT"):
        assert f"saved in {run}\nto go on: minitransformer train --resume {run}\n" in out
    assert 5 < len(Run.load(run).history) < 100
    assert main(["train", "--resume", str(run)]) == 0
    assert weights(run) == uninterrupted


@posix
def test_a_full_disk_keeps_the_last_good_checkpoint(
    pairs, tmp_path, uninterrupted, monkeypatch, capsys
):
    """Training goes on without it; in the end one line says which file had no room."""
    run, disk = tmp_path / "run", files_module.write

    def full_after_step_20(path, data):
        if int(path.parent.name.split(".")[1] if "checkpoints" in str(path) else 0) > 20:
            raise OSError(FULL, os.strerror(FULL))
        disk(path, data)

    with monkeypatch.context() as patched:
        patched.setattr(manifest, "write", full_after_step_20)
        assert trained(pairs, run, *LONG) == 2
    good = run / "checkpoints" / "000020"
    said = "config.json: cannot be written: No space left on device; the last good checkpoint is "
    said += str(good)
    error = capsys.readouterr().err
    assert f"step 25 is not saved: {run / 'checkpoints' / '000025'}/{said}" in error
    assert error.splitlines()[-1] == (
        f"minitransformer: error: {run / 'checkpoints' / '000100'}/{said}"
    )
    assert checkpoints(run)[-1] == good
    assert main(["train", "--resume", str(run)]) == 0
    assert weights(run) == uninterrupted


def test_a_folder_without_room_for_the_first_checkpoint_is_not_left_behind(
    pairs, tmp_path, monkeypatch, capsys
):
    with monkeypatch.context() as patched:
        Disk(patched, 12, FULL)
        assert trained(pairs, tmp_path / "run", *LONG) == 2
    assert "cannot be written: No space left on device" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_loss_that_is_no_number_leaves_what_to_look_at(pairs, tmp_path, capsys):
    run = tmp_path / "run"
    assert trained(pairs, run, *LONG, "--learning-rate", "1e30") == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("minitransformer: error: the ")
    assert "start again with a lower --learning-rate" in error
    assert str(run / "non_finite") in error
    files = read_folder(run / "non_finite")
    before = Run.load(run / "non_finite")
    assert all(p.isfinite().all() for p in before.model.parameters())
    batch = safetensors.torch.load(files["batch.safetensors"])
    assert not before.model.loss(**batch).isfinite() or "the gradient" in error
    assert len(Run.load(run).history) <= len(before.history)


def test_two_trainings_get_two_folders(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folders = [make_folder(None, "dates") for _ in range(3)]
    assert folders == [Path("runs", name) for name in ("dates", "dates-2", "dates-3")]
    with (
        locked(folders[0]),
        pytest.raises(InputError, match="another training is writing there"),
        locked(folders[0]),
    ):
        pass
    assert not is_locked(folders[0])
    with locked(folders[0]):
        assert is_locked(folders[0])


def test_folders_that_are_made_at_the_same_time_are_different(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with ThreadPoolExecutor(8) as pool:
        folders = list(pool.map(lambda _: make_folder(None, "dates"), range(40)))
    assert len(set(folders)) == 40


def test_an_export_that_is_damaged_is_refused(tmp_path):
    torch.manual_seed(0)
    save_pretrained(DecoderOnly(Config(20, **SMALL, style="gpt2")), tmp_path)
    load_pretrained(tmp_path)
    for name in ("model.safetensors", "config.json"):
        whole = (tmp_path / name).read_bytes()
        (tmp_path / name).write_bytes(damaged(whole, "bit", random.Random(1)))
        with pytest.raises(InputError, match=name):
            load_pretrained(tmp_path)
        (tmp_path / name).write_bytes(whole)
    save_pretrained(DecoderOnly(Config(20, **SMALL, style="gpt2")), tmp_path)
    load_pretrained(tmp_path)


def test_no_run_is_written_over(tmp_path, pairs):
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / "file").touch()
    with pytest.raises(InputError, match=r"already exists; .* --resume"):
        make_folder(str(tmp_path / "precious"), "dates")
    assert make_folder(str(tmp_path / "empty"), "dates") == tmp_path / "empty"
    (tmp_path / "empty" / "checkpoints" / ".000000.1.tmp").mkdir(parents=True)  # killed at once
    assert make_folder(str(tmp_path / "empty"), "dates") == tmp_path / "empty"


def test_a_failure_while_saving_leaves_the_older_file(tmp_path, monkeypatch):
    path = tmp_path / "weights"
    path.write_bytes(b"old")
    with monkeypatch.context() as patched:
        Disk(patched, 1, FULL)
        with pytest.raises(InputError, match=r"weights: cannot be written: No space left"):
            write_atomically(path, b"new")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]
