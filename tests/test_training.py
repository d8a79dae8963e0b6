"""Training on the tasks that there are: batches that can be repeated, and what is learned.

`test_loop.py` has the loop itself.
"""

import contextlib
import copy
import os
import signal
from functools import partial

import pytest
import torch

from minitransformer import Config, EncoderDecoder
from minitransformer.data.vocabulary import BOS, EOS, MASK, SPECIAL, UNKNOWN, Vocabulary
from minitransformer.inference.answering import answer
from minitransformer.training import loop, tasks
from minitransformer.training.loop import Settings, Training, train
from minitransformer.training.signals import asked_to_stop
from minitransformer.training.tasks import (
    DataOptions,
    LanguageModelTask,
    MaskedLanguageModelTask,
    PairsTask,
    largest_padding_weight,
)
from minitransformer.training.tasks import pairs as pairs_module
from minitransformer.training.tasks.language import python_prose
from minitransformer.training.tasks.task import shuffled

SMALL = {"d_model": 16, "num_layers": 2, "num_heads": 2}


@pytest.fixture
def prose(tmp_path):
    """A text file of 60 paragraphs, no two alike."""
    path = tmp_path / "prose.txt"
    paragraphs = [
        f"Paragraph {i} has {'very ' * (i * i % 23)}few words.\nAnd a line." for i in range(60)
    ]
    path.write_text("\n\n".join(paragraphs), encoding="utf-8")
    return str(path)


@pytest.fixture(params=["dates", "pairs", "lm", "mlm"])
def task(request, prose, pairs):
    if request.param == "dates":
        pytest.importorskip("babel")
    files = {"dates": (), "pairs": pairs, "lm": prose, "mlm": prose}
    return tasks.make_task(request.param, DataOptions(files[request.param]))


def make_model(task):
    model = task.model_class(Config(len(task.vocabulary), **SMALL, max_length=256))
    return model.eval()


# ---- batches ---------------------------------------------------------------------------------


def test_a_batch_is_a_function_of_seed_and_step(task):
    def ids(seed, step):
        batch = task.batch(seed, step, 8, True)
        return torch.cat([t.flatten() for t in batch.values() if t is not None]).tolist()

    first = ids(1, 2)
    ids(9, 9)  # what was drawn before does not matter
    assert ids(1, 2) == first
    assert ids(1, 3) != first
    assert ids(2, 2) != first


def test_packed_and_padded_batches_give_the_same_loss_and_gradients(task):
    """The default, packed, trains on the very same problem, to rounding."""
    if isinstance(task, MaskedLanguageModelTask):
        pytest.skip("hides other tokens in the other layout; test_models has this model")
    model = make_model(task).double()
    losses, gradients = [], []
    for packed in (True, False):
        batch = task.batch(0, 0, 24, packed)
        loss = model.loss(**batch)
        losses.append(loss.item())
        gradients.append(torch.autograd.grad(loss, list(model.parameters())))
    assert losses[0] == pytest.approx(losses[1], rel=1e-12)
    largest = max(gradient.abs().max() for gradient in gradients[0])
    for ours, theirs in zip(*gradients, strict=True):
        assert (ours - theirs).abs().max() <= 1e-12 * largest


def test_packing_needs_fewer_positions_than_padding(task):
    packed, padded = (
        sum(t.numel() for t in task.batch(0, 0, 48, packed).values() if t is not None)
        for packed in (True, False)
    )
    assert packed < 0.9 * padded


def test_every_example_is_seen_once_before_any_is_seen_twice():
    items = list(range(10))
    drawn = [x for step in range(5) for x in shuffled(items, seed=3, step=step, size=4)]
    assert sorted(drawn[:10]) == sorted(drawn[10:]) == items
    assert drawn[:10] != drawn[10:] != items


def test_what_is_held_out_is_not_trained_on(pairs, prose):
    for task in (PairsTask(DataOptions(pairs), 64), LanguageModelTask(DataOptions(prose), 256)):
        assert 1 <= len(task.held_out) <= 9
        assert len(task.training) == 60 - len(task.held_out)
        seen = [example[0] for example in task.training]
        assert not {example[0] for example in task.held_out} & set(seen)


def test_a_small_file_is_measured_on_its_training_examples(tmp_path):
    path = tmp_path / "few.tsv"
    path.write_text("a\tb\nc\td\n", encoding="utf-8")
    task = PairsTask(DataOptions(str(path)), 8)
    assert task.held_out is task.training
    assert "2 training examples" in task.report(make_model(task))[0]


def test_the_language_model_predicts_the_next_character_and_the_end(prose):
    task = LanguageModelTask(DataOptions(prose), 256)
    batch = task.batch(0, 0, 4, packed=False)
    row, real = batch.input_ids[0], batch.attention_mask[0] != 0
    assert row[real][0] == BOS
    assert batch.labels[0][real].tolist() == [*row[real][1:].tolist(), -100]
    assert row[real][-1] == EOS


def test_the_masked_language_model_hides_characters_but_nothing_special(prose):
    task = MaskedLanguageModelTask(DataOptions(prose), 256)
    batch = task.batch(0, 0, 40, packed=True)
    counts = batch.labels != -100
    assert (batch.labels[counts] >= len(SPECIAL)).all()
    assert (batch.input_ids[counts] == MASK).float().mean() == pytest.approx(0.8, abs=0.05)


def test_python_carries_enough_prose_to_train_on():
    assert sum(len(one.values[0]) for one in python_prose()) > 300_000
    task = LanguageModelTask(DataOptions(), 256)
    assert max(len(piece.ids) for piece in task.training) <= 254


# ---- the loop --------------------------------------------------------------------------------


def run_training(task, settings=None, save=lambda training: None):
    torch.manual_seed(0)
    model = task.model_class(Config(len(task.vocabulary), **SMALL, max_length=256))
    training = Training(model, settings or Settings(steps=6, batch_size=8, warmup=2))
    stopped = train(training, task, save, quiet=True)
    return model, training.history, stopped


def test_training_lowers_the_loss_and_says_how_it_went(task):
    settings = Settings(steps=30, batch_size=16, warmup=5, learning_rate=1e-2)
    model, history, stopped = run_training(task, settings)
    assert stopped == 0
    assert [row["step"] for row in history] == list(range(1, 31))
    assert history[-1]["loss"] < 0.8 * history[0]["loss"]
    assert {"exact_match", "held_out_loss"} & history[-1].keys()
    assert not model.training


def test_the_same_seed_gives_the_same_bits(pairs):
    task = PairsTask(DataOptions(pairs), 64)
    first, second = (run_training(task)[0].state_dict() for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)
    other = run_training(task, Settings(steps=6, batch_size=8, warmup=2, seed=1))[0].state_dict()
    assert not torch.equal(first["head.projection.weight"], other["head.projection.weight"])


def NotFused(optimizer, *groups, fused, **options):
    """The fused one has no meta, and the others no way to skip a step."""
    made = optimizer(*groups, **options)
    made.step = lambda: None
    return made


@pytest.mark.parametrize("attention", ["auto", "reference"])
@pytest.mark.parametrize("packed", [True, False])
def test_a_step_reads_nothing_back(task, attention, packed, monkeypatch):
    """On "meta" tensors have no values, so to ask for one is an error; on a GPU it is to wait."""
    monkeypatch.setattr(torch, "autocast", lambda *a, **k: contextlib.nullcontext())  # has no meta
    config = Config(len(task.vocabulary), **SMALL, max_length=256, attention=attention)
    model = task.model_class(config).to("meta")
    monkeypatch.setattr(torch.optim, "AdamW", partial(NotFused, torch.optim.AdamW))
    training = Training(model, Settings(accumulate=2))
    batch = task.batch(0, 0, 8, packed)
    assert training.step(batch).device.type == "meta"
    with pytest.raises((RuntimeError, NotImplementedError)):  # as labels there would make us
        model.loss(**batch.to("meta"))


# ---- what is divided by what ---------------------------------------------------------------------


def gradients_of(training, batch, monkeypatch):
    """Before clipping; of one step."""
    monkeypatch.setattr(loop.nn.utils, "clip_grad_norm_", lambda *a: torch.tensor(1.0))
    numbers = training.step(batch)
    return numbers[0], [p.grad.clone() for p in training.model.parameters()]


@pytest.mark.parametrize("parts", [2, 3, 64])
def test_a_batch_in_parts_is_the_same_step(task, parts, monkeypatch):
    """The labels of the whole step divide; 64 parts are more than there are rows."""
    model = make_model(task).double()

    def counts_of(batch):
        return [int((batch.part(i, parts).labels != -100).sum()) for i in range(parts)]

    batches = (task.batch(0, step, 24, True) for step in range(9))
    batch = next(one for one in batches if len(set(counts_of(one))) > 1)
    whole, in_parts = (
        gradients_of(Training(copy.deepcopy(model), Settings(accumulate=n)), batch, monkeypatch)
        for n in (1, parts)
    )
    assert whole[0].item() == pytest.approx(in_parts[0].item(), rel=1e-13)
    for a, b in zip(whole[1], in_parts[1], strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-12)

    if parts == 2:  # the mean of the parts' means is another number, visibly
        means = [model.loss(**batch.part(i, parts)).item() for i in range(parts)]
        assert abs(sum(means) / parts - whole[0].item()) > 1e-6


def test_the_parts_of_a_batch_are_the_batch(task):
    batch = task.batch(0, 0, 24, True)
    parts = [batch.part(i, 3) for i in range(3)]
    for name, tensor in batch.items():
        if tensor is not None:
            rows = [row.tolist() for part in parts for row in part[name]]
            assert sorted(rows) == sorted(tensor.tolist())
    empty = batch.part(100, 101)
    assert len(empty.labels) == 1
    assert (empty.labels == -100).all()


def test_ctrl_c_ends_an_evaluation_of_which_no_result_is_kept(pairs, monkeypatch):
    task = PairsTask(DataOptions(pairs), 64)
    monkeypatch.setattr(pairs_module, "ROWS", 1)
    calls = []

    def interrupting(*arguments):
        calls.append(arguments)
        if len(calls) == 2:
            os.kill(os.getpid(), signal.SIGINT)
        return answer(*arguments)

    monkeypatch.setattr(pairs_module, "answer", interrupting)
    _, history, stopped = run_training(task, Settings(steps=20, batch_size=2, warmup=0))
    assert len(calls) == 2 < len(task.held_out)
    assert (stopped, len(history)) == (signal.SIGINT, 2)
    assert "exact_match" not in history[-1]


def test_an_evaluation_looks_at_so_many_examples_and_says_so(tmp_path):
    file = tmp_path / "pairs.tsv"
    file.write_text("".join(f"w{i}\t{i}\n" for i in range(12_000)), encoding="utf-8")
    task = PairsTask(DataOptions(str(file)), 16)
    assert 500 < len(task.held_out) < 700  # one in twenty of the sources, by their hashes
    model = EncoderDecoder(Config(len(task.vocabulary), d_model=8, num_heads=1, max_length=16))
    rows = []
    watch = lambda batches: rows.append(sum(map(len, batches))) or batches  # noqa: E731
    task.evaluate(model, quick=True, watch=watch)
    assert task.report(model, watch)[0].startswith(
        f"exact match on 500 of {len(task.held_out)} held-out "
    )
    assert rows == [100, 500]
    assert sum(len(batch.source_ids) for batch in task.held_out_batches()) == 500
    first = [pair.source for pair in task.held_out[:50]]
    assert first != sorted(first)  # files may be sorted, by length say


def test_a_second_ctrl_c_interrupts_at_once():
    with asked_to_stop(lambda: 7) as signaled:
        assert signaled() == 0
        os.kill(os.getpid(), signal.SIGINT)
        assert signaled() == signal.SIGINT
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)


# ---- the line the project is about ---------------------------------------------------------------


def test_no_weight_falls_on_padding(task):
    weight, count = largest_padding_weight(make_model(task), task.held_out_batches()[:1])
    assert weight == 0.0
    assert count > 100


def test_a_model_that_forgets_its_mask_is_found_out(pairs):
    task = PairsTask(DataOptions(pairs), 64)
    for stack, kind in [("encoder", "attention"), ("decoder", "cross_attention")]:
        model = make_model(task)
        attention = getattr(getattr(model, stack).layers[1], kind)
        attend = attention.forward
        attention.forward = lambda x, memory, mask, *rest, attend=attend, **cache: attend(
            x, memory, torch.ones_like(mask.mask), *rest, **cache
        )
        weight, _ = largest_padding_weight(model, task.held_out_batches())
        assert weight > 0.01


# ---- answers ---------------------------------------------------------------------------------


def test_ragged_texts_are_answered_as_one_by_one(task):
    model = make_model(task)
    texts = ["w1xab", "w", "Paragraph [MASK] has few w[MASK]rds", "3. Juni"]
    together = answer(model, task.vocabulary, texts, 9)
    assert together == [answer(model, task.vocabulary, [text], 9)[0] for text in texts]


def test_targets_may_be_as_long_as_the_model_allows(tmp_path):
    path = tmp_path / "long.tsv"
    path.write_text("ab\t1234567\nc\t1\n")
    task = PairsTask(DataOptions(str(path)), 8)
    model = EncoderDecoder(Config(len(task.vocabulary), **SMALL, max_length=8)).eval()
    model.loss(**task.batch(0, 0, 2, packed=True))
    assert task.evaluate(model)["exact_match"] <= 1.0


def test_filling_changes_the_masks_and_nothing_else(prose):
    task = MaskedLanguageModelTask(DataOptions(prose), 256)
    model = make_model(task)
    text = "§ Par[MASK]graph [MASK][MASK] é"  # two characters that the vocabulary does not know
    filled = answer(model, task.vocabulary, [text], 0)[0]
    assert len(filled) == len(text) - 3 * len("[MASK]") + 3
    assert filled.startswith("§ Par")
    assert filled.endswith(" é")


def test_vocabulary_round_trip():
    vocabulary = Vocabulary("hello wörld")
    assert vocabulary.decode(vocabulary.encode(["hörl lod"])[0]) == "hörl lod"
    (h, e), unknown = vocabulary.encode(["he", "h?"], add_special=False)
    assert unknown == [h, UNKNOWN]
    assert vocabulary.encode_masked("h[MASK]e") == [BOS, h, MASK, e, EOS]
    with pytest.raises(TypeError, match="takes a list"):
        vocabulary.encode("hello")
    assert vocabulary.unknown(["he?", "llo!"]) == ["!", "?"]
    assert Vocabulary(vocabulary.characters).tokens == vocabulary.tokens


def test_bfloat16_learns_the_same_with_weights_in_float32(task):
    runs = {
        dtype: run_training(task, Settings(steps=6, batch_size=8, warmup=2, dtype=dtype))
        for dtype in ("float32", "bfloat16")
    }
    exact, rough = ([row["loss"] for row in run[1]] for run in runs.values())
    assert exact != rough
    assert rough == pytest.approx(exact, rel=0.02)
    assert {p.dtype for p in runs["bfloat16"][0].parameters()} == {torch.float32}
