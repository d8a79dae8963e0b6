"""Training: batches that can be repeated, runs that can be kept, and files that can be wrong."""

import contextlib
import copy
import os
import signal
from dataclasses import replace
from functools import partial

import pytest
import torch

from minitransformer import Config, EncoderDecoder
from minitransformer.data.files import InputError
from minitransformer.data.vocabulary import BOS, EOS, MASK, SPECIAL, UNKNOWN, Vocabulary
from minitransformer.inference.answering import answer
from minitransformer.training import loop, tasks
from minitransformer.training.loop import Settings, Training, schedule, train
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


def test_losses_that_are_read_rarely_are_the_same(pairs, monkeypatch):
    task, settings = PairsTask(DataOptions(pairs), 64), Settings(steps=25, batch_size=4)
    each = run_training(task, settings)[1]
    monkeypatch.setitem(loop.READ_EVERY, "cpu", 10)
    saved = []
    rarely = run_training(task, settings, lambda one: saved.append(list(one.history)))[1]
    assert [row["loss"] for row in rarely] == [row["loss"] for row in each]
    assert all(row["loss"] == row["loss"] for rows in saved for row in rows)
    assert all(row["tokens_per_second"] > 0 for row in rarely)


@pytest.mark.parametrize("every", [1, 10])
@pytest.mark.parametrize("dropout", [0.0, 0.2])
def test_after_a_loss_that_is_no_number_training_stands_before_its_step(
    pairs, every, dropout, monkeypatch
):
    """The weights, the optimizer and the random state, also where the loss is read ten steps on."""
    monkeypatch.setitem(loop.READ_EVERY, "cpu", every)
    task = PairsTask(DataOptions(pairs), 64)
    config = Config(len(task.vocabulary), **SMALL, dropout=dropout)
    settings = Settings(steps=100, batch_size=4)

    def trained(last):
        torch.manual_seed(0)
        training = Training(EncoderDecoder(config), settings)
        loss = training.loss.forward
        calls = []

        def poisoned(inputs, num_labels):
            calls.append(num_labels)
            return loss(inputs, num_labels) * (float("nan") if len(calls) == last else 1.0)

        training.loss.forward = poisoned
        with pytest.raises(loop.NonFiniteLoss, match=f"the loss is nan at step {last}") as error:
            train(training, task, quiet=True)
        return training, error.value.batch, loop.random_state(training.device)["cpu"]

    training, batch, random = trained(13)
    assert len(training.history) == 12
    assert all(row["loss"] == row["loss"] for row in training.history)
    assert torch.equal(batch.source_ids, training.batch(task, 12).source_ids)

    torch.manual_seed(0)
    other = Training(EncoderDecoder(config), settings)
    other.model.train()
    for step in range(12):
        other.step(other.batch(task, step))
    assert torch.equal(random, torch.get_rng_state())
    for ours, theirs in zip(training.model.parameters(), other.model.parameters(), strict=True):
        assert torch.equal(ours, theirs)
        for name, value in other.optimizer.state[theirs].items():
            assert torch.equal(training.optimizer.state[ours][name], value)


def test_a_training_that_failed_and_was_put_right_goes_on(pairs):
    task = PairsTask(DataOptions(pairs), 64)
    training = Training(make_model(task), Settings(steps=2, batch_size=4))
    training.failed.fill_(1.0)  # after a NonFiniteLoss
    before = [p.clone() for p in training.model.parameters()]
    train(training, task, quiet=True)
    assert not all(map(torch.equal, before, training.model.parameters()))


def test_whoever_saves_may_leave_the_model_in_evaluation(pairs):
    task, modes = PairsTask(DataOptions(pairs), 64), []
    training = Training(make_model(task), Settings(steps=6, batch_size=4))
    training.loss.register_forward_pre_hook(lambda module, inputs: modes.append(module.training))
    train(training, task, lambda training: training.model.eval() and None, quiet=True)
    assert modes == [True] * 6


def test_a_gradient_that_is_infinite_ends_training_too(pairs):
    task = PairsTask(DataOptions(pairs), 64)
    training = Training(make_model(task), Settings(steps=9, batch_size=4))
    training.model.head.projection.weight.register_hook(lambda gradient: gradient * float("inf"))
    before = [p.clone() for p in training.model.parameters()]
    with pytest.raises(InputError, match=r"the gradient is (nan|inf) at step 1"):
        train(training, task, quiet=True)
    assert all(map(torch.equal, before, training.model.parameters()))


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


def test_without_a_label_there_is_no_step(prose):
    task = LanguageModelTask(DataOptions(prose), 256)
    training = Training(make_model(task), Settings())
    batch = task.batch(0, 0, 4, True)
    batch.labels.fill_(-100)
    before = [p.clone() for p in training.model.parameters()]
    assert training.step(batch).tolist() == [0.0, 0.0]
    assert all(map(torch.equal, before, training.model.parameters()))
    assert training.optimizer.state == {}


@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_recomputing_the_layers_changes_nothing_but_what_is_kept(pairs, dropout):
    task, kept, gradients = PairsTask(DataOptions(pairs), 64), [], []
    for recompute in (False, True):
        torch.manual_seed(0)
        model = EncoderDecoder(Config(len(task.vocabulary), **SMALL, dropout=dropout))
        settings = Settings(steps=1, batch_size=8, recompute=recompute)
        train(Training(model, settings), task, quiet=True)  # as `train` switches it on
        sizes = []
        with torch.autograd.graph.saved_tensors_hooks(
            lambda x, sizes=sizes: sizes.append(x.numel()) or x, lambda x: x
        ):
            torch.manual_seed(1)
            loss = model.train().loss(**task.batch(0, 0, 8, True))
        gradients.append(torch.autograd.grad(loss, list(model.parameters())))
        kept.append(sum(sizes))
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))
    assert kept[1] < 0.5 * kept[0]


def test_ctrl_c_ends_after_the_step_under_way(pairs, monkeypatch, capsys):
    task = PairsTask(DataOptions(pairs), 64)
    batch = task.batch

    def interrupting(seed, step, size, packed):
        if step == 4:
            os.kill(os.getpid(), signal.SIGINT)
        return batch(seed, step, size, packed)

    monkeypatch.setattr(task, "batch", interrupting)
    before = signal.getsignal(signal.SIGINT)
    _, history, stopped = run_training(task, Settings(steps=30, batch_size=2, warmup=0))
    assert stopped == signal.SIGINT
    assert len(history) == 5
    assert signal.getsignal(signal.SIGINT) is before
    said = "stopping after this step; once more to give up 1 unsaved step\n"
    assert said in capsys.readouterr().err


@pytest.mark.parametrize("save_every", [None, 100])
def test_ctrl_c_ends_an_evaluation_of_which_no_result_is_kept(
    pairs, monkeypatch, capsys, save_every
):
    task = PairsTask(DataOptions(pairs), 64)
    monkeypatch.setattr(pairs_module, "ROWS", 1)
    calls = []

    def interrupting(*arguments):
        calls.append(arguments)
        if len(calls) == 2:
            os.kill(os.getpid(), signal.SIGINT)
        return answer(*arguments)

    monkeypatch.setattr(pairs_module, "answer", interrupting)
    saved = []
    settings = Settings(steps=20, batch_size=2, warmup=0, save_every=save_every)
    _, history, stopped = run_training(task, settings, lambda one: saved.append(len(one.history)))
    assert len(calls) == 2 < len(task.held_out)
    assert stopped == signal.SIGINT
    assert len(history) == 2
    assert saved == [0, 2]
    assert "exact_match" not in history[-1]
    assert "once more to give up 2 unsaved steps" in capsys.readouterr().err


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


@pytest.mark.parametrize(
    ("how_often", "steps"),
    [
        ({}, [0, 3, 6, 9, 12, 15, 18, 21, 24, 25]),
        ({"evaluate_every": 10}, [0, 10, 20, 25]),
        ({"save_every": 8}, [0, 8, 16, 24, 25]),
        ({"save_every": 100}, [0, 25]),
        ({"evaluate_every": 100, "save_minutes": 1e-9}, list(range(26))),
    ],
)
def test_the_training_is_saved_at_the_ends_and_as_often_as_is_said(pairs, how_often, steps):
    saved = []
    settings = Settings(steps=25, batch_size=2, warmup=0, **how_often)
    run_training(
        PairsTask(DataOptions(pairs), 64), settings, lambda one: saved.append(len(one.history))
    )
    assert saved == steps


def test_the_learning_rate_rises_then_falls_to_zero():
    settings = Settings(steps=1_000, warmup=50)
    assert schedule(0, settings) == pytest.approx(1 / 50)
    assert schedule(49, settings) == pytest.approx(1.0, abs=0.01)
    assert schedule(500, settings) == 0.5
    assert schedule(999, settings) < 1e-5


def test_weight_decay_spares_biases_and_gains(pairs):
    model = make_model(PairsTask(DataOptions(pairs), 64))
    matrices, vectors = loop.parameter_groups(model, 0.1)
    assert matrices["weight_decay"] == 0.1
    assert vectors["weight_decay"] == 0.0
    assert {p.ndim for p in matrices["params"]} == {2}
    assert {p.ndim for p in vectors["params"]} == {1}


@pytest.mark.parametrize(
    "wrong",
    [
        {"steps": 0},
        {"batch_size": 0},
        {"learning_rate": 0.0},
        {"learning_rate": -1.0},
        {"warmup": -1},
        {"clip": 0.0},
        {"clip": float("nan")},
        {"weight_decay": -1.0},
        {"accumulate": 0},
        {"save_every": 0},
        {"save_minutes": 0.0},
    ],
)
def test_settings_that_cannot_train_are_refused(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        Settings(**wrong)


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


def test_settings_are_what_the_loop_uses(pairs):
    """Unpacked, clipped and undecayed training is another training: no setting is dead."""
    task = PairsTask(DataOptions(pairs), 64)
    base = Settings(steps=4, batch_size=8, warmup=2, clip=1e-3)
    weights = run_training(task, base)[0].head.projection.weight
    for change in ({"clip": 1e3}, {"weight_decay": 0.5}, {"warmup": 0}, {"learning_rate": 1e-4}):
        assert not torch.equal(
            run_training(task, replace(base, **change))[0].head.projection.weight, weights
        )


def test_bfloat16_learns_the_same_with_weights_in_float32(task):
    runs = {
        dtype: run_training(task, Settings(steps=6, batch_size=8, warmup=2, dtype=dtype))
        for dtype in ("float32", "bfloat16")
    }
    exact, rough = ([row["loss"] for row in run[1]] for run in runs.values())
    assert exact != rough
    assert rough == pytest.approx(exact, rel=0.02)
    assert {p.dtype for p in runs["bfloat16"][0].parameters()} == {torch.float32}


def test_other_dtypes_are_refused():
    with pytest.raises(ValueError, match="dtype must be one of float32, bfloat16, got 'int8'"):
        Settings(dtype="int8")
