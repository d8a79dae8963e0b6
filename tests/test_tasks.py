"""Tasks: what is kept apart, what counts as right, and what is said of a model."""

import math

import pytest
import torch

from minitransformer import IGNORE_INDEX, Config, DecoderOnly, EncoderDecoder, EncoderOnly
from minitransformer.cli.data import inspection
from minitransformer.cli.main import main
from minitransformer.data.held_out import normal_form
from minitransformer.pretrained.classes import with_head
from minitransformer.training.loop import Settings
from minitransformer.training.tasks import (
    ClassifyTask,
    DataOptions,
    LanguageModelTask,
    PairsTask,
)
from minitransformer.training.tasks import pairs as pairs_module
from minitransformer.training.tasks.task import Measured, worst

SMALL = {"d_model": 16, "num_layers": 1, "num_heads": 2}


def written(path, rows):
    path.write_text("".join("\t".join(row) + "\n" for row in rows), encoding="utf-8")
    return DataOptions(str(path))


# ---- pairs ---------------------------------------------------------------------------------------


def test_a_target_that_is_held_out_is_not_trained_on(tmp_path):
    """Two sources of one target: one may be held out, and then the other is set aside."""
    rows = [(f"s{i}", f"t{i}") for i in range(400)]
    held_out = {pair.source for pair in PairsTask(written(tmp_path / "a", rows), 16).held_out}
    rows += [(f"again {source}", source.replace("s", "T")) for source in sorted(held_out)[:3]]
    task = PairsTask(written(tmp_path / "b", rows), 16)
    unseen = {normal_form(target) for pair in task.held_out for target in pair.targets}
    assert not unseen & {normal_form(pair.target) for pair in task.training}
    aside = 403 - len(task.held_out) - len(task.training)
    assert aside > 0
    assert f"{aside} pairs are set aside: their targets are held out" in task.notes


def test_targets_that_are_few_and_repeat_stay(tmp_path):
    rows = [(f"s{i:02}", target) for i in range(40) for target in "ab"]
    task = PairsTask(written(tmp_path / "a", rows), 16)
    assert len(task.training) + 2 * len(task.held_out) == 80
    assert any("only sources are kept apart" in note for note in task.notes)


@pytest.fixture
def translations(tmp_path):
    rows = [(f"s{i:02}", target) for i in range(60) for target in ("one", "two")]
    return PairsTask(written(tmp_path / "a", rows), 16)


def answering(monkeypatch, said):
    """Have every model write this, whatever it is asked."""
    monkeypatch.setattr(pairs_module, "answer", lambda *arguments: [said] * len(arguments[2]))


def test_every_translation_of_a_source_is_right_and_it_counts_once(translations, monkeypatch):
    model = EncoderDecoder(Config(len(translations.vocabulary), **SMALL, max_length=16)).eval()
    assert {pair.targets for pair in translations.held_out} == {("one", "two")}
    count = len(translations.held_out)
    for said, share in {"two": 1.0, "one": 1.0, "three": 0.0}.items():
        monkeypatch.setattr(
            pairs_module,
            "answer",
            lambda model, vocabulary, texts, limit, said=said: [said] * len(texts),
        )
        assert translations.evaluate(model)["exact_match"] == share
        assert translations.report(model)[0] == (
            f"exact match on {count} held-out examples: {share:.2%}"
        )
        results, lines = translations.examine(model)
        assert sum("was wanted" in line for line in lines) == (0 if share else min(count, 10))
        assert results["exact_match"] == share
        assert results["exact_matches"] == share * results["sources"] == share * count


def test_chrf_is_that_of_the_best_translation(translations, monkeypatch):
    pytest.importorskip("sacrebleu")
    model = EncoderDecoder(Config(len(translations.vocabulary), **SMALL, max_length=16)).eval()
    for said, low, high in (("two", 99.9, 100.1), ("three", 0, 50)):
        monkeypatch.setattr(
            pairs_module,
            "answer",
            lambda model, vocabulary, texts, limit, said=said: [said] * len(texts),
        )
        assert low < translations.examine(model).results["chrf"] + 0.01 < high


def test_what_is_examined_is_the_loss_of_the_labels(translations):
    model = EncoderDecoder(Config(len(translations.vocabulary), **SMALL, max_length=16)).eval()
    results = translations.examine(model).results
    (batch,) = translations.held_out_batches()
    assert results["tokens_guessed"] == int((batch.labels != IGNORE_INDEX).sum())
    assert results["loss"] == pytest.approx(model.loss(**batch).item(), rel=1e-5)
    assert results["perplexity"] == pytest.approx(math.exp(results["loss"]))


def test_a_target_begins_once(tmp_path):
    """A tokenizer wraps texts in <s> and </s>; the decoder is given one and writes the other."""
    pytest.importorskip("tokenizers")
    rows = [(f"source {i}", f"target {i}") for i in range(60)]
    path = written(tmp_path / "a", rows).data[0]
    task = PairsTask(DataOptions(path, tokenizer="bpe", vocab_size=300), 64)
    bos_id, eos_id = task.vocabulary.bos_id, task.vocabulary.eos_id
    batch = task.batch(0, 0, 4, packed=False)
    for row, mask, labels in zip(batch.target_ids, batch.target_mask, batch.labels, strict=True):
        ids = row[mask != 0].tolist()
        assert ids[0] == bos_id
        assert not {bos_id, eos_id} & set(ids[1:])
        assert labels[mask != 0].tolist() == [*ids[1:], eos_id]
    assert {row[0] for row in batch.source_ids.tolist()} == {bos_id}


# ---- language models -----------------------------------------------------------------------------


@pytest.fixture
def prose(tmp_path):
    paragraphs = [f"Paragraph {i} begins. " + f"It says {i * i}. " * (i % 9) for i in range(60)]
    (tmp_path / "prose.txt").write_text("\n\n".join(paragraphs), encoding="utf-8")
    return DataOptions(str(tmp_path / "prose.txt"))


def test_an_end_is_learned_only_where_the_text_ends(prose):
    task = LanguageModelTask(prose, 40)
    assert not all(piece.ends for piece in task.training)
    eos_id = task.vocabulary.eos_id
    for piece, row in zip(task.training, task.rows(task.training), strict=True):
        assert (row[-1] == eos_id) == piece.ends
        assert eos_id not in row[:-1]


def test_perplexities_are_those_of_the_whole_text(prose):
    task = LanguageModelTask(prose, 40)
    model = DecoderOnly(Config(len(task.vocabulary), **SMALL, max_length=40)).eval()
    results = task.examine(model).results
    nats = results["loss"] * results["tokens_guessed"]
    texts = [piece.text for piece in task.held_out]
    assert results["characters"] == sum(map(len, texts))
    assert results["words"] == sum(len(text.split()) for text in texts)
    for unit in ("characters", "words"):
        found = math.log(results[f"perplexity_of_{unit}"])
        assert found == pytest.approx(nats / results[unit], rel=1e-6)


def test_the_worst_are_wrong_and_have_the_largest_loss_a_label():
    measured = [Measured(nats, 0, labels) for nats, labels in ((4, 4), (3, 1), (9, 2), (0, 0))]
    assert worst(measured) == [2, 1, 0, 3]
    assert worst(measured, [True, False, True, False]) == [1, 3, 2, 0]
    assert len(worst(measured * 5)) == 10


# ---- classes -------------------------------------------------------------------------------------


def test_it_is_measured_what_padding_would_do_were_its_mask_forgotten(tmp_path):
    rows = [("ab"[i % 2], "word " * (1 + i * i % 7) + str(i)) for i in range(400)]
    task = ClassifyTask(written(tmp_path / "a", rows), 48)
    torch.manual_seed(0)
    body = EncoderOnly(Config(len(task.vocabulary), **SMALL, max_length=48))
    model = with_head(body, task.labels, "mean").eval()
    right, forgotten = [], []
    for batch in task.held_out_batches():
        ids, mask = batch.input_ids, batch.attention_mask
        right += model(ids, mask).argmax(-1).tolist()
        forgotten += model(ids, torch.ones_like(mask)).argmax(-1).tolist()
    changed = sum(a != b for a, b in zip(right, forgotten, strict=True))
    assert 0 < changed < len(right)
    assert task.report(model)[1] == (
        f"if padding counted as text, {changed} of {len(right)} answers would change"
    )
    share = sum(task.labels[i] == one.label for i, one in zip(right, task.held_out, strict=True))
    assert task.evaluate(model)["accuracy"] == share / len(right)


# ---- what the command line shows -----------------------------------------------------------------


def test_the_first_batch_is_drawn_with_its_mask(prose):
    task = LanguageModelTask(prose, 40)
    settings = Settings(batch_size=12)
    lines = list(inspection(task, settings))
    (where,) = [i for i, line in enumerate(lines) if line.startswith("the first batch")]
    mask = task.batch(0, 0, 12, packed=True).attention_mask
    drawn = ["".join("." if n == 0 else str(n % 10) for n in row) for row in mask[:8].tolist()]
    assert [line.strip() for line in lines[where + 1 :]] == drawn
    assert (
        f"{len(mask)} rows of {mask.shape[1]} tokens, {(mask != 0).float().mean():.0%}"
        in lines[where]
    )
    shares = [float(line.split()[-1][:-1]) for line in lines if "–" in line]
    assert sum(shares) == pytest.approx(100, abs=0.5)


def test_so_many_examples_are_evaluated(prose, tmp_path, capsys):
    path, run = prose.data[0], str(tmp_path / "run")
    small = ["--d-model", "16", "--num-heads", "2", "--max-length", "40", "--steps", "2"]
    assert main(["train", "--task", "lm", "--data", path, "--out", run, *small]) == 0
    capsys.readouterr()
    for options, texts in ((["--examples", "3"], 3), (["--data", path, "--examples", "7"], 7)):
        assert main(["evaluate", run, *options]) == 0
        printed = capsys.readouterr().out
        assert [line.split()[-1] for line in printed.splitlines() if line.startswith("texts")] == [
            str(texts)
        ]
        assert printed.count("nats a token") == texts


def test_numbers_of_an_evaluation_do_not_depend_on_what_else_is_looked_at(translations):
    model = EncoderDecoder(Config(len(translations.vocabulary), **SMALL, max_length=16)).eval()
    torch.manual_seed(0)
    whole = translations.examine(model).results["loss"]
    measured = [
        one
        for pair in translations.held_out
        for one in pairs_module.measure(model, translations.collate([pair]))
    ]
    alone = sum(one.nats for one in measured) / sum(one.labels for one in measured)
    assert whole == pytest.approx(alone, rel=1e-5)
