"""Fine-tuning from the command line: what a model brings along is kept, what is new is said, and
the numbers are those of the transformers library."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

pytest.importorskip("transformers")
pytest.importorskip("tokenizers")

import transformers as tf

from minitransformer.classifier import Classifier
from minitransformer.cli import train as cli_train
from minitransformer.cli.main import main
from minitransformer.data.manifest import sha256
from minitransformer.data.source import DataOptions
from minitransformer.data.tokenization import Tokenizer
from minitransformer.pretrained import load_pretrained
from minitransformer.training.checkpoint import checkpoints
from minitransformer.training.loop import Settings, Training, parameter_groups, schedule
from minitransformer.training.run import Run
from minitransformer.training.start import DEFAULTS, Part, start
from minitransformer.training.tasks import TASKS

ANIMALS = ["cat", "dog", "fox", "owl", "hen"]
TEXTS = [f"the {a} sat on the {b} {'again ' * n}".strip()
         for a in ANIMALS for b in ANIMALS for n in range(4)]  # fmt: skip
PROSE = "\n\n".join(TEXTS)
PAIRS = "".join(f"{text}\t{text[::-1]}\n" for text in TEXTS)
LABELS = "".join(f"{'good' if 'owl' in text else 'bad'}\t{text}\n" for text in TEXTS)
TWO = "label,first,second\n" + "".join(
    f'{"same" if a == b else "other"},the {a} sat,"{b}, again"\n'
    for a in ANIMALS for b in ANIMALS
)  # fmt: skip
FILES = {"lm": PROSE, "mlm": PROSE, "pairs": PAIRS, "classify": LABELS, "two.csv": TWO}

SMALL = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
SMALL |= {"intermediate_size": 24, "max_position_embeddings": 64}
GPT2 = {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 64, "eos_token_id": 2}
BOTH = {"d_model": 16, "encoder_layers": 2, "decoder_layers": 2, "encoder_ffn_dim": 24}
BOTH |= {"decoder_ffn_dim": 24, "encoder_attention_heads": 2, "decoder_attention_heads": 2}
BOTH |= {"max_position_embeddings": 64, "eos_token_id": 2}
MODELS = {
    "bert": (tf.BertConfig, tf.BertForMaskedLM, SMALL | {"vocab_size": 90}),
    "gpt2": (tf.GPT2Config, tf.GPT2LMHeadModel, GPT2 | {"vocab_size": 300, "bos_token_id": 1}),
    "llama": (tf.LlamaConfig, tf.LlamaForCausalLM, SMALL | {"vocab_size": 300}),
    "bart": (
        tf.BartConfig,
        tf.BartForConditionalGeneration,
        BOTH | {"vocab_size": 300, "decoder_start_token_id": 2, "pad_token_id": 0},
    ),
    "marian": (
        tf.MarianConfig,
        tf.MarianMTModel,
        BOTH | {"vocab_size": 300, "decoder_start_token_id": 0, "pad_token_id": 0},
    ),
}
FITS = {
    "bert": ["mlm", "classify"],
    "gpt2": ["lm", "classify"],
    "llama": ["lm", "classify"],
    "bart": ["pairs"],
    "marian": ["pairs"],
}


@pytest.fixture(scope="module")
def here(tmp_path_factory):
    """The user's files, and a folder of each kind of model."""
    folder = tmp_path_factory.mktemp("finetuning")
    for name, content in FILES.items():
        (folder / name).write_text(content, encoding="utf-8")
    for name, (config, model, numbers) in MODELS.items():
        torch.manual_seed(0)
        model(config(**numbers)).save_pretrained(folder / name)
        kind, size = ("wordpiece", 90) if name == "bert" else ("bpe", 300)
        Tokenizer.train(TEXTS, size, kind).save(folder / name)
    return folder


@pytest.fixture(autouse=True)
def no_pictures(monkeypatch):
    monkeypatch.setattr(cli_train, "save_pictures", lambda pictures, folder: [])


@pytest.fixture
def train(here, tmp_path, monkeypatch, capsys):
    """A training from the command line -> its run's folder, and what was printed."""
    monkeypatch.chdir(here)

    def from_folder(name, task, *options, out="run", steps=2):
        fixed = ["--steps", str(steps), "--batch-size", "4", "--keep", "9"]
        fixed += ["--out", str(tmp_path / out)]
        data = [] if "--data" in options else ["--data", task]
        assert main(["train", "--from", str(name), "--task", task, *data, *fixed, *options]) == 0
        return tmp_path / out, capsys.readouterr().out

    return from_folder


@pytest.fixture
def refused(capsys):
    """The one line in which a command is refused."""

    def refusal(*command):
        assert main(list(map(str, command))) == 2
        error = capsys.readouterr().err
        assert error.startswith("minitransformer: error: ")
        assert error.count("\n") == 1
        assert error[:-1].isprintable()
        return error

    return refusal


def weights(run):
    """The parameters by name; those of a classifier's body have the names of the body alone."""
    model = run if isinstance(run, torch.nn.Module) else Run.load(run).model
    found = {n: p.detach() for n, p in model.named_parameters()}
    if isinstance(model, Classifier):
        found = {n.removeprefix("body.") if "body." in n else f"new {n}": found[n] for n in found}
    return found


def changed(before, after):
    return {name for name in before.keys() & after.keys() if not before[name].equal(after[name])}


# ---- which task, from which model ----------------------------------------------------------------


@pytest.mark.parametrize(("name", "task"), [(n, task) for n in FITS for task in FITS[n]])
def test_a_folder_is_trained_for_every_task_that_fits(train, here, capsys, name, task):
    """Only what is new is initialized; the run answers, is measured, drawn and listed."""
    run, printed = train(name, task)
    first = Run.load(run / "checkpoints" / "000000")
    old = weights(load_pretrained(here / name))
    assert changed(old, weights(first.model)) == set()
    head = [name for name, _ in first.model.named_parameters() if name.startswith("head.")]
    said = f"new, with random weights: {', '.join(head)}\n"
    assert (said in printed) == (task == "classify")
    assert bool(weights(first.model).keys() - old.keys()) == (task == "classify")
    assert changed(weights(first.model), weights(run))
    assert Run.load(run).vocabulary.files() == Tokenizer.load(here / name).files()

    text = f"the {'[MASK]' if task == 'mlm' else 'cat'} sat"
    for texts in ([text], [text, text + " on"]):
        assert main(["generate", str(run), *texts, "--max-new-tokens", "5"]) == 0
        assert len(capsys.readouterr().out.splitlines()) >= len(texts)
    for data in ([], ["--data", task]):
        assert main(["evaluate", str(run), *data, "--examples", "3"]) == 0
        assert "loss" in capsys.readouterr().out
    if name in ("bert", "gpt2", "bart"):  # one of each kind of model: drawing takes seconds
        assert main(["show", str(run), text]) == 0
        assert len(list((run / "attention").iterdir())) == (3 if task == "pairs" else 1)
    assert main(["runs", str(run)]) == 0
    assert f" {task} " in capsys.readouterr().out


@pytest.mark.parametrize("name", FITS)
def test_a_task_that_does_not_fit_is_refused_with_those_that_do(here, refused, tmp_path, name):
    for task in TASKS.keys() - {*FITS[name]}:
        data = [] if task == "dates" else ["--data", here / task]
        line = refused(
            "train", "--from", here / name, "--task", task, *data, "--out", tmp_path / "run"
        )
        assert f"--task {task}: " in line
        fitting = " or ".join([*(["dates"] if "pairs" in FITS[name] else []), *FITS[name]])
        assert task == "dates" or line.endswith(f"for --task {fitting}\n")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", FITS)
def test_without_a_task_it_is_the_one_that_the_model_is_for(here, name):
    (task,) = {"mlm", "lm", "pairs"} & {*FITS[name]}
    data = DataOptions(str(here / task))
    assert start(None, data, {}, str(here / name))[0].name == task


OWN = {"lm": ["lm", "classify"], "mlm": ["mlm", "classify"], "classify": ["classify"]}
OWN |= {"pairs": ["pairs"]}
TINY = "--d-model 16 --num-heads 2 --num-layers 2 --steps 1 --batch-size 4".split()  # noqa: SIM905


@pytest.mark.parametrize("task", OWN)
@pytest.mark.parametrize(
    "tokenizer", ["characters", pytest.param("wordpiece", marks=pytest.mark.slow)]
)
def test_a_run_is_trained_for_every_task_that_fits(
    train, here, tmp_path, monkeypatch, capsys, task, tokenizer
):
    monkeypatch.chdir(here)
    size = [] if tokenizer == "characters" else ["--vocab-size", "90"]
    data = ["--task", task, "--data", task, "--tokenizer", tokenizer, *size]
    assert main(["train", *data, "--out", str(tmp_path / "first"), *TINY]) == 0
    before = weights(tmp_path / "first")
    for other in OWN[task]:
        run, _ = train(tmp_path / "first", other, out=other)
        assert changed(before, weights(run / "checkpoints" / "000000")) == set()
        assert changed(before, weights(run))
        text = "the [MASK] sat" if other == "mlm" else "the cat sat"
        assert main(["generate", str(run), text, "--max-new-tokens", "3"]) == 0
        assert main(["evaluate", str(run), "--data", other, "--examples", "3"]) == 0


def test_dates_go_on_from_dates_alone(tmp_path, here, refused, capsys):
    pytest.importorskip("babel")
    assert main(["train", "--out", str(tmp_path / "dates"), *TINY]) == 0
    again = ["train", "--from", str(tmp_path / "dates"), "--steps", "1", "--batch-size", "4"]
    assert main([*again, "--out", str(tmp_path / "more")]) == 0
    assert "dates: EncoderDecoder" in capsys.readouterr().out
    line = refused("train", "--from", here / "bart", "--task", "dates")
    assert "--task dates: the model has another vocabulary than the dates" in line


# ---- batches as the transformers library makes them ----------------------------------------------


def batch_of(here, name, task, file=None, size=4, **options):
    data = DataOptions(str(here / (file or task)), **options)
    started, model, _ = start(task, data, {}, str(here / name))
    examples = started.training[:size]
    return started, model, examples


@pytest.fixture
def theirs(here):
    return lambda name: tf.PreTrainedTokenizerFast.from_pretrained(here / name)


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_labels_of_a_decoder_are_theirs_one_earlier(here, theirs, name):
    task, _, pieces = batch_of(here, name, "lm")
    from minitransformer.data import pad

    rows = theirs(name)([piece.text for piece in pieces])["input_ids"]
    assert task.rows(pieces) == rows
    batch = task.with_labels(pad(rows, task.pad_id), torch.Generator())
    for i, row in enumerate(rows):
        wanted = [*row[1:], -100] + [-100] * (batch.labels.shape[1] - len(row))
        assert batch.labels[i].tolist() == wanted


def test_hidden_tokens_are_the_labels_and_never_special(here, theirs):
    task, _, pieces = batch_of(here, "bert", "mlm", size=40)
    from minitransformer.data import pad

    rows = theirs("bert")([piece.text for piece in pieces])["input_ids"]
    assert task.rows(pieces) == rows
    whole = pad(rows, task.pad_id)
    batch = task.with_labels(whole, torch.Generator().manual_seed(0))
    hidden = batch.labels != -100
    assert batch.labels[hidden].equal(whole.input_ids[hidden])
    assert batch.input_ids[~hidden].equal(whole.input_ids[~hidden])
    assert not set(batch.labels[hidden].tolist()) & set(theirs("bert").all_special_ids)
    assert 0.08 < (hidden.sum() / whole.attention_mask.sum()).item() < 0.2


@pytest.mark.parametrize("name", ["bart", "marian"])
def test_pairs_are_those_of_their_collator(here, theirs, name):
    task, _, pairs = batch_of(here, name, "pairs")
    tokenizer = theirs(name)
    features = [
        {"input_ids": tokenizer(p.source)["input_ids"], "labels": tokenizer(p.target)["input_ids"]}
        for p in pairs
    ]
    library = MODELS[name][1].from_pretrained(here / name)
    wanted = tf.DataCollatorForSeq2Seq(tokenizer, library)(features)
    batch = task.collate(pairs)
    assert batch.source_ids.equal(wanted["input_ids"])
    assert batch.source_mask.equal(wanted["attention_mask"])
    assert batch.labels.equal(wanted["labels"])
    real = batch.target_mask != 0
    assert batch.target_ids[real].equal(wanted["decoder_input_ids"][real])


COLUMNS = ("label", "first", "second")


@pytest.mark.parametrize("name", ["bert", "gpt2"])
def test_two_texts_and_their_segments_reach_the_model(here, theirs, name, capsys):
    task, model, examples = batch_of(here, name, "classify", "two.csv", columns=COLUMNS)
    said = theirs(name)(
        [one.text for one in examples],
        [one.second for one in examples],
        padding=True,
        return_tensors="pt",
        return_token_type_ids=True,
    )
    batch = task.collate(examples)
    assert batch.input_ids.equal(said["input_ids"])
    assert batch.attention_mask.equal(said["attention_mask"])
    if name == "gpt2":  # which has no segments
        assert batch.segment_ids is None
        return
    real = batch.attention_mask != 0
    assert batch.segment_ids[real].equal(said["token_type_ids"][real])
    assert batch.segment_ids.any()
    logits = model(batch.input_ids, batch.attention_mask, batch.segment_ids)
    assert not logits.equal(model(batch.input_ids, batch.attention_mask))


def test_a_pair_is_answered_as_it_was_trained(train, capsys):
    run, _ = train("bert", "classify", "--data", "two.csv", "--columns", ",".join(COLUMNS))
    loaded = Run.load(run)
    assert main(["generate", str(run), "the cat sat\tdog, again"]) == 0
    printed = capsys.readouterr().out
    ((ids, segments),) = loaded.vocabulary.encode_pairs([("the cat sat", "dog, again")])
    ids, segments = torch.tensor([ids]), torch.tensor([segments])
    logits = loaded.model(ids, torch.ones_like(ids), segments)
    assert f"{logits.softmax(-1).max().item():.1%}" in printed
    columns = ["--columns", ",".join(COLUMNS)]
    assert main(["evaluate", str(run), "--data", "two.csv", *columns]) == 0
    assert main(["show", str(run), "the cat sat\tdog, again"]) == 0


def test_a_classifier_of_pairs_is_made_anew(here, tmp_path, monkeypatch):
    monkeypatch.chdir(here)
    data = ["--task", "classify", "--data", "two.csv", "--columns", ",".join(COLUMNS)]
    learn = ["--tokenizer", "wordpiece", "--vocab-size", "90"]
    assert main(["train", *data, *learn, "--out", str(tmp_path / "run"), *TINY]) == 0
    assert Run.load(tmp_path / "run").model.config.num_segments == 2


# ---- the same losses as the transformers library -------------------------------------------------


def trained_by_hand(model, batches, settings, names):
    """The losses of the library's model in the loop of `Training`."""
    optimizer = torch.optim.AdamW(parameter_groups(model, settings.weight_decay), betas=(0.9, 0.98))
    losses = []
    model.train()
    for step, batch in enumerate(batches):
        for group in optimizer.param_groups:
            group["lr"] = settings.learning_rate * schedule(step, settings)
        optimizer.zero_grad()
        given = {names.get(k, k): v for k, v in batch.items() if v is not None}
        loss = model(**given).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), settings.clip)
        optimizer.step()
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize("task_name", ["mlm", "classify", "pairs of texts"])
def test_ten_steps_have_the_losses_of_the_library(tmp_path, here, task_name):
    """BERT without dropout, the same batches in the same order: AdamW, schedule and clipping."""
    folder = tmp_path / "bert"
    config = tf.BertConfig(
        **SMALL, vocab_size=90, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0
    )
    torch.manual_seed(0)
    tf.BertForMaskedLM(config).save_pretrained(folder)
    shutil.copy(here / "bert" / "tokenizer.json", folder)
    shutil.copy(here / "bert" / "tokenizer_config.json", folder)
    numbers = {"steps": 10, "batch_size": 8, "learning_rate": 3e-3, "warmup": 3, "packed": False}
    pairs = task_name == "pairs of texts"
    data = DataOptions(
        str(here / ("two.csv" if pairs else task_name)), columns=COLUMNS if pairs else None
    )
    name = "mlm" if task_name == "mlm" else "classify"
    task, model, settings = start(name, data, numbers, str(folder))
    if name == "mlm":
        library = tf.BertForMaskedLM.from_pretrained(folder)
    else:
        library = tf.BertForSequenceClassification.from_pretrained(folder, num_labels=2)
        with torch.no_grad():
            head = model.head
            for mine, other in (
                (head.transform.linear, library.bert.pooler.dense),
                (head.projection, library.classifier),
            ):
                other.weight.copy_(mine.weight)
                other.bias.copy_(mine.bias)
    training = Training(model.train(), settings)
    batches = [training.batch(task, step) for step in range(10)]
    assert (batches[0].segment_ids is not None) == pairs
    ours = [training.step(batch)[0].item() for batch in batches]
    wanted = trained_by_hand(library, batches, settings, {"segment_ids": "token_type_ids"})
    assert max(abs(a - b) for a, b in zip(ours, wanted, strict=True)) < 1e-5
    assert abs(ours[0] - ours[-1]) > 0.01


# ---- which part learns ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "task"), [("bert", "classify"), ("llama", "lm"), ("bart", "pairs")]
)
def test_frozen_layers_stay_as_they_are_to_the_bit(train, here, name, task):
    run, printed = train(name, task, "--freeze", "1")
    before, after = weights(load_pretrained(here / name)), weights(run)
    still = (".layers.0.", "embedding.")
    tied = "head.projection.weight" if load_pretrained(here / name).config.tie_embeddings else ""
    for key in before.keys() & after.keys():
        frozen = any(part in key for part in still) or key == tied
        assert before[key].equal(after[key]) == frozen or "key.bias" in key, key
    assert "parameters learn" in printed


@pytest.mark.parametrize(
    ("name", "task"), [("bert", "classify"), ("gpt2", "lm"), ("marian", "pairs")]
)
def test_lora_leaves_all_else_as_it_is_and_is_merged_in_the_end(train, here, name, task):
    run, printed = train(name, task, "--lora", "2", "--learning-rate", "0.05", steps=3)
    before = weights(load_pretrained(here / name))
    last = Run.load(run / "checkpoints" / "000003")
    assert changed(before, weights(last.model)) == set()
    new = weights(last.model).keys() - before.keys()
    assert {key.rpartition(".")[2] for key in new if not key.startswith("new ")} == {"A", "B"}
    merged = Run.load(run)
    assert not [key for key in weights(merged.model) if key.endswith((".A", ".B"))]
    assert "lora" not in json.loads((run / "config.json").read_bytes())
    assert changed(before, weights(merged.model)) <= {
        key for key in before if key.endswith(("query.weight", "value.weight"))
    }
    ids = torch.tensor([[5, 9, 7, 8]])
    given = (ids, torch.ones_like(ids)) * (2 if task == "pairs" else 1)
    difference = (last.model(*given) - merged.model(*given)).abs().max().item()
    assert 0 <= difference < 1e-5
    original = load_pretrained(here / name)
    if task != "classify":
        assert (original(*given) - merged.model(*given)).abs().max() > 5e-5
    assert "parameters learn" in printed


def test_a_checkpoint_with_lora_is_merged_before_it_learns_again(train):
    run, _ = train("gpt2", "lm", "--lora", "2")
    more, _ = train(run / "checkpoints" / "000001", "lm", "--lora", "3", out="more")
    assert (
        Run.load(more / "checkpoints" / "000002").model.decoder.layers[0].attention.query.A.shape[0]
        == 3
    )


PARTS = {
    "classifier": ("bert", "classify", "--pooling", "mean"),
    "frozen": ("bert", "mlm", "--freeze", "1"),
    "lora": ("llama", "lm", "--lora", "2"),
    "lora and frozen": ("gpt2", "classify", "--lora", "2", "--freeze", "1"),
    "shorter": ("bart", "pairs", "--max-length", "50"),
}


@pytest.mark.parametrize("part", PARTS)
def test_what_was_interrupted_ends_with_the_same_bits(train, tmp_path, capsys, part):
    name, task, *options = PARTS[part]
    options += ["--dropout", "0.1", "--save-every", "2"]
    run, _ = train(name, task, *options, steps=5)
    cut = tmp_path / "cut"
    shutil.copytree(run, cut)
    (cut / "manifest.json").unlink()
    for checkpoint in checkpoints(cut)[2:]:
        shutil.rmtree(checkpoint)
    torch.manual_seed(12345)
    assert main(["train", "--resume", str(cut)]) == 0
    for file in ("model.safetensors", "checkpoints/000005/optimizer.safetensors"):
        assert sha256((run / file).read_bytes()) == sha256((cut / file).read_bytes()), file
    made = Run.load(cut)
    assert made.settings == Run.load(run).settings
    if part == "shorter":
        assert made.settings["max_length"] == 50 < made.model.config.max_length


def test_a_shorter_length_holds_when_it_goes_on_and_is_evaluated(train, capsys):
    run, printed = train("llama", "lm", "--max-length", "9")
    assert "are longer than the 7 tokens that fit" in printed
    assert main(["train", "--resume", str(run), "--steps", "3"]) == 0
    assert main(["evaluate", str(run)]) == 0
    assert "are longer than the 7 tokens that fit" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ("--lora 3", "--lora is 2 in "),
        ("--freeze 1", "--freeze is 0 in "),
        ("--max-length 30", "--max-length is 64 in "),
        ("--from bert", "--from is "),
        ("--columns 2", "is not the data|--columns"),
    ],
)
def test_what_would_be_another_training_is_refused(train, refused, options, says):
    run, _ = train("gpt2", "lm", "--lora", "2")
    line = refused("train", "--resume", run, "--steps", "3", *options.split())
    assert any(part in line for part in says.split("|"))
    same = ["--lora", "2", "--from", "gpt2", "--data", "lm"]
    assert main(["train", "--resume", str(run), "--steps", "3", *same]) == 0


# ---- what makes no sense -------------------------------------------------------------------------

REFUSED = {
    "train --lora 2": "--lora: needs --from",
    "train --freeze 1": "--freeze: needs --from",
    "train --task lm --data lm --pooling mean": "--pooling: is for --task classify",
    "train --from bert --data mlm --pooling mean": "--pooling: is for --task classify",
    "train --from bert --data mlm --style gpt2": "--style: the model in ",
    "train --from bert --data mlm --d-model 8": "--d-model: the model in ",
    "train --from bert --data mlm --tokenizer bpe": "--tokenizer: the model in ",
    "train --from bert --data mlm --vocab-size 99": "--vocab-size: the model in ",
    "train --from bert --data mlm --max-length 65": "--max-length: the model in ",
    "train --from bert --data mlm --freeze 99": "--freeze: layers must be at most 2",
    "train --from bert --data mlm --lora 17": "--lora: the rank must be at most 16",
    "train --from marian --data pairs --lora 1 --freeze 2": "--freeze: with the first 2 layers",
    "train --from bert --task classify": "--task classify needs --data FILE",
    "train --from bert --task classify --data classify --max-length 2": "--max-length must be 3",
    "train --from none --data lm": "none: no such folder",
    "train --from lm --data lm": "lm: no such folder",
    "train --from . --data lm": "holds no manifest.json and no checkpoints",
    "train --task lm --held-out lm": "--held-out: needs --data",
    "train --task pairs --held-out pairs": "--held-out: needs --data",
    "train --columns 1,2": "--columns: the dates are made",
    "train --tokenizer bpe": "--tokenizer: the dates are made",
    "train --task lm --data lm --vocab-size 300": "--vocab-size: is for --tokenizer bpe",
    "train --task pairs --data pairs --held-out pairs": "--held-out: holds every example of --data",
    "train --task lm --data lm --held-out lm": "--held-out: holds every example of --data",
    "train --task classify --data classify --held-out classify": "--held-out: holds every",
    "evaluate bert --task classify --data classify": "--task classify: needs Classifier",
    "evaluate bert --columns 1": "--columns and --skip-long are for --data",
    "evaluate bert": "--data: say on which examples",
    "evaluate bert --data odd": "no token in them is to be guessed",
}


@pytest.mark.parametrize("line", REFUSED)
def test_what_makes_no_sense_is_refused_before_anything_is_written(
    here, tmp_path, monkeypatch, refused, line
):
    (here / "odd").write_text("日", encoding="utf-8")
    monkeypatch.chdir(here)
    out = ["--out", tmp_path / "run"] if line.startswith("train") else []
    assert REFUSED[line] in refused(*line.split(), *out)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("rows", "says"),
    [
        ([("good", f"text {i}") for i in range(40)], "the only label is 'good'"),
        ([(f"text {i}", "good") for i in range(40)], "has 40 different labels in 40 lines"),
        ([("a ", f"text {i}") for i in range(9)] + [("a", "x")], "the only label is 'a'"),
    ],
)
def test_what_can_be_no_labels_is_refused(tmp_path, refused, rows, says):
    (tmp_path / "odd.tsv").write_text("".join("\t".join(row) + "\n" for row in rows))
    assert says in refused("train", "--task", "classify", "--data", tmp_path / "odd.tsv")


def test_a_label_that_was_not_trained_is_refused_by_its_line(train, tmp_path, refused):
    (tmp_path / "new.tsv").write_text("good\ta\nneutral\tb\n")
    known = "new.tsv:2: the label 'neutral' is none of those that are known: bad, good"
    data = ["--data", "classify", "--held-out", tmp_path / "new.tsv"]
    run, _ = train("bert", "classify")
    assert known in refused("train", "--task", "classify", *data)
    assert known in refused("evaluate", run, "--data", tmp_path / "new.tsv")
    assert known in refused("train", "--from", run, "--data", tmp_path / "new.tsv")


def test_a_rare_label_that_is_held_out_by_chance_is_one(tmp_path):
    rows = [("ab"[i % 2], f"text {i}") for i in range(60)]
    (tmp_path / "a.tsv").write_text("".join("\t".join(row) + "\n" for row in rows))
    task = start("classify", DataOptions(str(tmp_path / "a.tsv")), {})[0]
    rows = [("c" if text == task.held_out[0].text else label, text) for label, text in rows]
    (tmp_path / "a.tsv").write_text("".join("\t".join(row) + "\n" for row in rows))
    assert start("classify", DataOptions(str(tmp_path / "a.tsv")), {})[0].labels == ["a", "b", "c"]


def test_dropout_may_be_another_one_also_of_a_classifier(train):
    run, _ = train("bert", "classify", "--dropout", "0.0")
    more, _ = train(run, "classify", "--dropout", "0.3", out="more")
    assert changed(weights(run), weights(more / "checkpoints" / "000000")) == set()
    assert Run.load(more).model.describe() == Run.load(run).model.describe()
    rates = {m.p for m in Run.load(more).model.modules() if isinstance(m, torch.nn.Dropout)}
    assert rates == {0.3}


def test_a_classifier_of_many_classes_takes_few_examples(train, tmp_path):
    many = "".join(f"class {i % 30}\tthe cat {i}\n" for i in range(90))
    few = "".join(f"class {i}\tthe dog {i}\n" for i in range(25))
    (tmp_path / "many.tsv").write_text(many)
    (tmp_path / "few.tsv").write_text(few)
    run, _ = train("bert", "classify", "--data", str(tmp_path / "many.tsv"))
    again, _ = train(run, "classify", "--data", str(tmp_path / "few.tsv"), out="again")
    assert len(Run.load(again).model.names) == 30


def test_what_the_tokenizer_does_not_know_and_what_is_cut_is_said(train, tmp_path):
    rows = [("ab"[i % 2], f"the 日本 🙂 {'cat ' * 9 * (i % 9)}") for i in range(40)]
    (tmp_path / "odd.tsv").write_text("".join("\t".join(row) + "\n" for row in rows))
    _, printed = train("bert", "classify", "--data", str(tmp_path / "odd.tsv"))
    assert "3 characters of the texts are unknown to the tokenizer: '日' '本' '🙂'" in printed
    assert (
        "8 of 40 texts are longer than the 64 tokens that fit: their ends are not read" in printed
    )


@pytest.mark.parametrize("task", ["lm", "mlm", "pairs", "classify"])
def test_inspect_writes_nothing(here, tmp_path, monkeypatch, capsys, task):
    monkeypatch.chdir(tmp_path)
    assert main(["train", "--task", task, "--data", str(here / task), "--inspect"]) == 0
    printed = capsys.readouterr().out
    assert "examples to train on: " in printed
    assert (" → bad" in printed) == (task == "classify")
    assert list(tmp_path.iterdir()) == []


def test_inspect_of_what_goes_on_writes_nothing(train, capsys):
    run, _ = train("gpt2", "lm")
    assert main(["train", "--resume", str(run), "--inspect"]) == 0
    assert "examples to train on: " in capsys.readouterr().out
    assert len(Run.load(run).history) == 2


def test_the_defaults_of_fine_tuning(here):
    _, _, settings = start("mlm", DataOptions(str(here / "mlm")), {}, str(here / "bert"))
    assert {name: getattr(settings, name) for name in DEFAULTS} == DEFAULTS
    part = Part(lora=2)
    assert start(None, DataOptions(str(here / "mlm")), {}, str(here / "bert"), part)[2] == replace(
        settings, learning_rate=5e-4
    )
    assert isinstance(settings, Settings)


@pytest.mark.parametrize("name", ["bert", "gpt2"])
def test_a_new_classifier_pools_as_the_library_does(here, name):
    model = start("classify", DataOptions(str(here / "classify")), {}, str(here / name))[1]
    assert isinstance(model, Classifier)
    wanted = {"bert": ("first", "tanh", True), "gpt2": ("last", None, False)}[name]
    about = model.describe()
    assert (about["pooling"], about["activation"], about["bias"]) == wanted
    assert about["names"] == ["bad", "good"]
    assert Path(here).is_dir()
