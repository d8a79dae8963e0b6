"""The training loop, exactly: a model of four numbers, and a task that counts what is asked of it.

`test_training.py` trains transformers on the tasks that there are.
"""

import math
import os
import signal
from contextlib import contextmanager, nullcontext
from dataclasses import replace

import pytest
import torch
import torch._dynamo  # which the first optimizer would import in the middle of a test
from conftest import large_init
from torch import nn
from torch.nn import functional as F

from minitransformer import Config, DecoderOnly, pad
from minitransformer.training import loop
from minitransformer.training.loop import (
    COLUMNS,
    NonFiniteLoss,
    Settings,
    Training,
    parameter_groups,
    random_state,
    real_tokens,
    schedule,
    set_random_state,
    train,
)
from minitransformer.training.muon import RATE, Muon
from minitransformer.training.processes import Processes

SETTINGS = Settings(steps=4, batch_size=2, warmup=2, learning_rate=0.1, weight_decay=0.5, clip=0.3)


class Numbers(nn.Module):
    """Learns a number for each of three tokens, and one for all: the loss is their mean error."""

    def __init__(self, dropout=0.0):
        super().__init__()
        self.table = nn.Parameter(torch.tensor([[1.0], [-2.0], [0.5]]))
        self.bias = nn.Parameter(torch.tensor([0.25]))
        self.dropout, self.modes = dropout, []

    def loss(self, input_ids, attention_mask, labels, segment_ids=None, num_labels=None):
        self.modes.append(self.training)
        found = F.dropout(self.table[input_ids, 0] + self.bias, self.dropout, self.training)
        counts = labels != -100
        return ((found - labels)[counts] ** 2).sum() / num_labels


class Lists:
    """Batches of three rows, which follow from the step; an evaluation looks at two batches."""

    def __init__(self, wish=lambda step: None):
        self.wish, self.asked, self.evaluated = wish, [], []

    def batch(self, seed, step, size, packed):
        self.asked.append((seed, step, size, packed))
        self.wish(step)
        labels = [[step % 3, 2], [-100, 1, -100], [1]]
        return pad([[0, 1], [2, 1, 0], [2]], labels=labels)

    def evaluate(self, model, quick, watch):
        self.evaluated.append((model.training, quick))
        for number, _ in enumerate(watch(["first", "second"])):
            self.wish(f"evaluation {len(self.evaluated)}, batch {number + 1}")
        return {"error": 0.123456}


def interrupt_at(moment):
    def wish(now):
        if now == moment:
            os.kill(os.getpid(), signal.SIGINT)

    return wish


def trained(settings=SETTINGS, task=None, save=lambda training: None, **model):
    training = Training(Numbers(**model), settings)
    return training, train(training, task or Lists(), save, quiet=True)


# ---- a step --------------------------------------------------------------------------------------


@pytest.mark.parametrize("accumulate", [1, 2, 5])
def test_steps_are_those_of_adamw_at_the_rate_of_the_schedule(accumulate):
    """Clipped gradients of the mean over all labels; biases do not decay; parts change nothing."""
    training, model = Training(Numbers(), replace(SETTINGS, accumulate=accumulate)), Numbers()
    groups = [
        {"params": [model.table], "weight_decay": 0.5},
        {"params": [model.bias], "weight_decay": 0.0},
    ]
    adamw = torch.optim.AdamW(groups, betas=(0.9, 0.98))
    for step in range(4):
        batch = Lists().batch(0, step, 2, True)
        for group in adamw.param_groups:
            group["lr"] = 0.1 * schedule(step, SETTINGS)
        adamw.zero_grad()
        loss = model.loss(**batch, num_labels=4)
        loss.backward()
        norm = torch.cat([p.grad.flatten() for p in model.parameters()]).norm()
        for p in model.parameters():
            p.grad *= min(1.0, 0.3 / norm.item())
        adamw.step()
        found = training.step(batch)
        torch.testing.assert_close(found, torch.stack([loss.detach(), norm]))
        for ours, expected in zip(training.model.parameters(), model.parameters(), strict=True):
            torch.testing.assert_close(ours, expected)


def test_a_row_of_the_history_waits_for_its_numbers():
    training = Training(Numbers(), SETTINGS)
    for _ in range(2):
        training.step(Lists().batch(0, 0, 2, True))
    first, second = training.history
    assert [list(row) for row in training.history] == [list(COLUMNS)] * 2
    assert (first["step"], second["step"]) == (1, 2)
    assert first["learning_rate"] == 0.1 * schedule(0, SETTINGS)
    assert second["learning_rate"] == 0.1 * schedule(1, SETTINGS)
    assert all(math.isnan(first[name]) for name in ("loss", "gradient_norm", "tokens_per_second"))


def test_without_a_label_there_is_no_step():
    training = Training(Numbers(), SETTINGS)
    batch = Lists().batch(0, 0, 2, True)
    batch.labels.fill_(-100)
    found = training.step(batch)
    assert (found.tolist(), found.dtype) == ([0.0, 0.0], torch.float32)
    assert torch.equal(training.model.table, Numbers().table)
    assert training.optimizer.state == {}
    assert [row["step"] for row in training.history] == [1]


def test_one_label_is_enough_for_a_step():
    training = Training(Numbers(), SETTINGS)
    batch = Lists().batch(0, 0, 2, True)
    batch.labels.fill_(-100)[0, 0] = 2
    assert training.step(batch)[0].item() == (1.25 - 2) ** 2


def test_what_a_training_makes_is_where_the_model_is():
    model, batch = Numbers(), Lists().batch(0, 0, 2, True)
    batch.labels.fill_(-100)
    with torch.device("meta"):  # the default is another device
        training = Training(model, SETTINGS)
        found = training.step(batch)
    assert (training.failed.device, found.device) == (torch.device("cpu"),) * 2


def test_an_old_gradient_of_what_is_frozen_does_not_count():
    model = Numbers()
    model.bias.requires_grad_(False).grad = torch.tensor([1e9])
    training = Training(model, SETTINGS)
    assert training.step(Lists().batch(0, 0, 2, True))[1] < 100
    assert [len(group["params"]) for group in training.optimizer.param_groups] == [1, 0]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_dtype_is_that_of_autocast(dtype):
    model, seen = Numbers(), []
    loss = model.loss

    def looking(**inputs):
        seen.append((torch.is_autocast_enabled("cpu"), torch.get_autocast_dtype("cpu")))
        return loss(**inputs)

    model.loss = looking
    with torch.autocast("cpu", torch.float16):  # another default, as that of GPUs is
        Training(model, replace(SETTINGS, dtype=dtype)).step(Lists().batch(0, 0, 2, True))
    assert seen == [(dtype == "bfloat16", torch.bfloat16)]


def small_decoder() -> DecoderOnly:
    return large_init(DecoderOnly(Config(7, 8, num_layers=1, num_heads=2, style="gpt2")))


@pytest.mark.parametrize("recompute", [True, False])
def test_recompute_is_for_every_stack(recompute):
    model = small_decoder()
    model.decoder.recompute = not recompute
    Training(model, replace(SETTINGS, recompute=recompute))
    assert model.decoder.recompute is recompute


def test_muon_steps_along_the_matrices_of_the_layers_at_a_rate_of_its_own():
    batch = pad([[1, 2, 3]], labels=[[2, 3, -100]])
    plain, muon = (
        Training(small_decoder(), replace(SETTINGS, optimizer=name)) for name in ("adamw", "muon")
    )
    assert type(plain.optimizer) is torch.optim.AdamW
    assert type(muon.optimizer) is Muon
    muon.step(batch)
    rate = 0.1 * schedule(0, SETTINGS)
    assert [group["lr"] for group in muon.optimizer.param_groups] == [rate, rate, RATE * rate]
    for training in (plain, muon):
        options = training.optimizer.defaults
        assert (options["betas"], options["fused"]) == ((0.9, 0.98), True)


def test_what_learns_is_in_one_group_and_only_matrices_decay():
    model = small_decoder()
    model.embedding.positions.requires_grad_(False)
    names = {id(p): name for name, p in model.named_parameters()}

    def named(groups):
        return [{names[id(p)] for p in group["params"]} for group in groups]

    learned = {name for name, p in model.named_parameters() if p.requires_grad}
    plain, muon = parameter_groups(model, 0.6), parameter_groups(model, 0.6, muon=True)
    matrices, vectors = named(plain)
    assert [matrices | vectors, matrices & vectors] == [learned, set()]
    assert vectors == {n for n in learned if n.endswith(("bias", "norm.weight"))}
    inner = {n for n in matrices if n.startswith("decoder.layers.")}
    assert 0 < len(inner) < len(matrices)
    assert named(muon) == [matrices - inner, vectors, inner]
    assert [group["weight_decay"] for group in muon] == [0.6, 0.0, 0.6 / RATE]
    assert [group["weight_decay"] for group in plain] == [0.6, 0.0]
    assert [group.get("orthogonal") for group in muon] == [None, None, True]


def test_the_learning_rate_rises_in_a_line_and_falls_as_a_cosine():
    settings = Settings(steps=8, warmup=4)
    expected = [
        0.25,
        0.5 * (1 + math.cos(math.pi / 8)) / 2,
        0.75 * (1 + 0.5**0.5) / 2,
        (1 + math.cos(math.pi * 3 / 8)) / 2,
        0.5,
    ]
    assert [schedule(step, settings) for step in range(5)] == pytest.approx(expected, rel=1e-12)
    assert schedule(8, settings) == 0.0
    assert schedule(0, Settings(steps=8, warmup=0)) == 1.0
    assert schedule(0, Settings(steps=8, warmup=1)) == 1.0


# ---- several processes ---------------------------------------------------------------------------


class Pretended(Processes):
    """Says that it is one of several, and keeps what it is asked."""

    def __init__(self, weights=None, **numbers):
        super().__init__(**numbers)
        vars(self).update(weights=weights, last=[], agreed=[], gathered=[])

    def spread(self, module):
        return module

    @contextmanager
    def summing(self, module, last):
        self.last.append((type(module), last))
        yield

    def sum(self, number):
        return number + 100

    def whole(self, tensor):
        return 2 * tensor

    def agree(self, *numbers):
        self.agreed.append(numbers)
        return [*numbers]

    def gather_weights(self, model):
        self.gathered.append(model)
        return self.weights


def test_a_process_computes_its_rows_and_weighs_them_by_how_many_there_are():
    """Of 2 x 2 parts the process 1 has rows 1 and 3; the mean of two processes halves its share."""
    batch = pad([[0], [1], [2], [0], [1]], labels=[[3], [4], [5], [6], [7]])
    processes = Pretended(rank=1, size=2)
    training = Training(Numbers(), replace(SETTINGS, accumulate=2, clip=1e9), processes)
    loss, norm = training.step(batch).tolist()
    assert processes.last == [(loop.LossModule, False), (loop.LossModule, True)]
    errors = [-2 + 0.25 - 4, 1 + 0.25 - 6]
    assert loss == pytest.approx(100 + sum(e * e for e in errors) / 5)
    slopes = [2 * 2 * e / 5 for e in errors]
    assert training.model.table.grad.flatten().tolist() == pytest.approx([slopes[1], slopes[0], 0])
    assert norm == pytest.approx(2 * math.hypot(*slopes, sum(slopes)))


def test_the_whole_model_is_the_model_or_a_copy_filled_with_the_gathered_weights():
    model = Numbers()
    assert Training(model, SETTINGS).empty is None
    assert Training(model, SETTINGS).whole_model() is model
    model.bias.requires_grad_(False)
    weights = {"table": torch.full((3, 1), 7.0), "bias": torch.tensor([8.0])}
    training = Training(model, SETTINGS, Pretended(weights, sharded=True))
    empty = {
        name: (p.device.type, p.requires_grad) for name, p in training.empty.named_parameters()
    }
    assert empty == {"table": ("meta", True), "bias": ("meta", False)}
    whole = training.whole_model()
    assert training.processes.gathered == [model]
    assert [p.tolist() for p in whole.parameters()] == [[[7.0]] * 3, [8.0]]
    assert not whole.training
    assert model.training
    assert torch.equal(model.table, Numbers().table)
    assert training.empty.table.is_meta
    training.device = torch.device("meta")  # stands for a GPU
    assert training.whole_model().table.is_meta


def test_process_0_evaluates_and_all_agree_whether_to_stop():
    for rank in (0, 1):
        task, processes = Lists(), Pretended(rank=rank, size=2)
        training = Training(Numbers(), replace(SETTINGS, evaluate_every=2), processes)
        assert train(training, task, quiet=True) == 0
        assert task.evaluated == ([(False, True)] * 2 if rank == 0 else [])
        assert processes.agreed == [(0, False)] * 2 + [(0, False)] * 2 + [(0, False)] * 2
        assert ["error" in row for row in training.history] == [False, rank == 0] * 2


# ---- the loop ------------------------------------------------------------------------------------


def test_the_task_is_asked_for_each_step_once_and_every_loss_is_written_down():
    task, model = Lists(), Numbers()
    training = Training(model, replace(SETTINGS, seed=9, packed=False))
    assert train(training, task, quiet=True) == 0
    assert task.asked == [(9, step, 2, False) for step in range(4)]
    assert [row["step"] for row in training.history] == [1, 2, 3, 4]
    assert model.modes == [True] * 4
    assert not model.training
    other = Training(Numbers(), SETTINGS)
    for step, row in enumerate(training.history):
        loss, norm = other.step(task.batch(0, step, 2, True)).tolist()
        assert (row["loss"], row["gradient_norm"]) == (loss, norm)


def test_training_goes_on_where_the_history_ends():
    whole, _ = trained()
    training, saved = Training(Numbers(), SETTINGS), []
    for step in range(2):
        training.step(Lists().batch(0, step, 2, True))
    task = Lists()
    train(training, task, lambda one: saved.append(len(one.history)), quiet=True)
    assert [step for _, step, *_ in task.asked] == [2, 3]
    assert saved == [3, 4]
    assert torch.equal(training.model.table, whole.model.table)


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
def test_the_training_is_saved_at_the_ends_and_as_often_as_is_said(how_often, steps):
    saved = []
    trained(Settings(steps=25, **how_often), save=lambda one: saved.append(len(one.history)))
    assert saved == steps


def test_it_is_saved_when_the_minutes_since_the_last_time_have_passed(monkeypatch):
    now, saved = [1000.0], []
    monkeypatch.setattr(loop.time, "monotonic", lambda: now[0])

    def a_minute(step):
        now[0] += 60.0

    settings = Settings(steps=9, evaluate_every=9, save_minutes=2.0)
    trained(settings, Lists(a_minute), lambda one: saved.append(len(one.history)))
    assert saved == [0, 2, 4, 6, 8, 9]


@pytest.mark.parametrize("every", [4, None])
def test_evaluations_are_of_the_model_in_evaluation_and_stand_in_the_history(every):
    task = Lists()
    training, _ = trained(Settings(steps=21, evaluate_every=every), task)
    expected = [4, 8, 12, 16, 20, 21] if every else [3, 6, 9, 12, 15, 18, 21]
    assert [row["step"] for row in training.history if "error" in row] == expected
    assert task.evaluated == [(False, True)] * len(expected)
    assert training.history[-1]["error"] == 0.123456
    assert training.model.modes == [True] * 21


def test_whoever_saves_may_leave_the_model_in_evaluation():
    settings = Settings(steps=6, evaluate_every=6, save_every=2)
    training, _ = trained(settings, save=lambda one: one.model.eval() and None)
    assert training.model.modes == [True] * 6


@pytest.mark.parametrize("every", [2, 4, 10])
def test_losses_that_are_read_rarely_are_the_same(every, monkeypatch):
    settings = Settings(steps=25, evaluate_every=7)
    each, _ = trained(settings)
    monkeypatch.setitem(loop.READ_EVERY, "cpu", every)
    reads, read = [], loop._read
    monkeypatch.setattr(
        loop, "_read", lambda rows, *rest: reads.append(len(rows)) or read(rows, *rest)
    )
    saved = []
    rarely, _ = trained(settings, save=lambda one: saved.extend(one.history))
    assert [row["loss"] for row in rarely.history] == [row["loss"] for row in each.history]
    assert all(math.isfinite(row["loss"]) for row in saved)
    assert reads == {2: [2, 2, 2, 1] * 3 + [2, 2], 4: [4, 3] * 3 + [4], 10: [7] * 3 + [4]}[every]


def test_devices_that_are_waited_for_are_asked_every_ten_steps(monkeypatch):
    monkeypatch.setattr(loop, "READ_EVERY", {})
    reads, read = [], loop._read
    monkeypatch.setattr(loop, "_read", lambda rows, *a: reads.append(len(rows)) or read(rows, *a))
    trained(Settings(steps=25, evaluate_every=25))
    assert reads == [10, 10, 5]
    for often in ({"evaluate_every": 9, "save_every": 99}, {"save_every": 9, "evaluate_every": 99}):
        reads.clear()  # and before each evaluation, and before it is saved
        trained(Settings(steps=25, **often))
        assert reads == [9, 9, 7]


def test_a_training_that_is_over_stays_as_it_is():
    training, _ = trained()
    saved, task = [], Lists()
    assert train(training, task, saved.append, quiet=True) == 0
    assert (saved, task.asked, len(training.history)) == ([], [], 4)


def test_the_speed_is_that_of_the_real_tokens_since_the_last_look(monkeypatch):
    now = [5.0]
    monkeypatch.setattr(loop.time, "perf_counter", lambda: now[0])
    monkeypatch.setitem(loop.READ_EVERY, "cpu", 2)

    def later(moment):
        now[0] += 0.75 if isinstance(moment, int) else 1000.0  # an evaluation is not counted

    training, _ = trained(Settings(steps=6, evaluate_every=4), Lists(later))
    assert [row["tokens_per_second"] for row in training.history] == [8] * 6  # 2 x 6 / 1.5


def test_tokens_that_are_not_padding_are_counted_in_every_mask():
    assert real_tokens(Lists().batch(0, 0, 2, True)) == 6
    batch = pad([[1, 2, 3], [4]])
    assert real_tokens(replace(batch, attention_mask=torch.tensor([[1, 2, 2], [1, 0, 0]]))) == 4
    pairs = {"source_mask": torch.ones(2, 3), "target_mask": torch.eye(2), "labels": torch.ones(9)}
    assert real_tokens(pairs) == 8


# ---- losses that are no numbers ------------------------------------------------------------------


@pytest.mark.parametrize("every", [1, 10])
@pytest.mark.parametrize("dropout", [0.0, 0.2])
@pytest.mark.parametrize(
    ("factor", "said"), [(math.nan, "nan"), (math.inf, "inf"), (-math.inf, "-inf")]
)
def test_after_a_loss_that_is_no_number_training_stands_before_its_step(
    every, dropout, factor, said, monkeypatch
):
    """The weights, the optimizer and the random state, also where the loss is read ten steps on."""
    monkeypatch.setitem(loop.READ_EVERY, "cpu", every)
    settings, task = Settings(steps=100), Lists()

    def loss(inputs, num_labels):
        wrong = factor if len(training.history) == 13 else 1.0
        return training.model.loss(**inputs, num_labels=num_labels) * wrong

    torch.manual_seed(0)
    training = Training(Numbers(dropout), settings)
    training.loss.forward = loss
    with pytest.raises(NonFiniteLoss, match=f"^the loss is {said} at step 13$") as error:
        train(training, task, quiet=True)
    assert len(training.history) == 12
    assert all(math.isfinite(row["loss"]) for row in training.history)
    assert torch.equal(error.value.batch.labels, task.batch(0, 12, 2, True).labels)
    random = torch.get_rng_state()

    torch.manual_seed(0)
    other = Training(Numbers(dropout), settings)
    for step in range(12):
        other.step(task.batch(0, step, 2, True))
    assert torch.equal(random, torch.get_rng_state())
    for ours, theirs in zip(training.model.parameters(), other.model.parameters(), strict=True):
        assert torch.equal(ours, theirs)
        for name, value in other.optimizer.state[theirs].items():
            assert torch.equal(training.optimizer.state[ours][name], value)


def test_a_gradient_that_is_infinite_ends_training_too():
    training = Training(Numbers(), SETTINGS)
    training.model.bias.register_hook(lambda gradient: gradient * math.inf)
    with pytest.raises(NonFiniteLoss, match=r"^the gradient is inf at step 1$"):
        train(training, Lists(), quiet=True)
    assert torch.equal(training.model.table, Numbers().table)
    assert training.history == []


def test_a_training_that_failed_and_was_put_right_goes_on():
    training = Training(Numbers(), SETTINGS)
    training.failed.fill_(1.0)  # after a NonFiniteLoss
    train(training, Lists(), quiet=True)
    assert not torch.equal(training.model.table, Numbers().table)


def test_the_random_state_comes_back():
    state = random_state(torch.device("cpu"))
    assert list(state) == ["cpu"]
    first = torch.rand(3)
    set_random_state(state)
    assert torch.equal(torch.rand(3), first)


def test_so_does_that_of_the_device(monkeypatch):
    class Device:
        """Stands for torch.mps."""

        state = "first"

        def get_rng_state(self):
            return self.state

        def set_rng_state(self, state):
            self.state = state

    mps = Device()
    monkeypatch.setattr(torch, "get_device_module", {"mps": mps, torch.device("mps"): mps}.get)
    state = random_state(torch.device("mps"))
    assert list(state) == ["cpu", "mps"]
    mps.state = "second"
    set_random_state(state)
    assert mps.state == "first"


# ---- Ctrl-C --------------------------------------------------------------------------------------


def test_ctrl_c_ends_after_the_step_under_way_which_is_saved(capsys):
    before, saved = signal.getsignal(signal.SIGINT), []
    settings = Settings(steps=30, evaluate_every=3)
    task = Lists(interrupt_at(4))
    training, stopped = trained(settings, task, lambda one: saved.append(len(one.history)))
    assert stopped == signal.SIGINT
    assert saved == [0, 3, 5]
    assert len(task.evaluated) == 1
    assert signal.getsignal(signal.SIGINT) is before
    assert not training.model.training
    said = "stopping after this step; once more to give up 1 unsaved step\n"
    assert said in capsys.readouterr().err


@pytest.mark.parametrize("save_every", [None, 100])
def test_ctrl_c_ends_an_evaluation_of_which_no_result_is_kept(save_every, capsys):
    saved, task = [], Lists(interrupt_at("evaluation 1, batch 1"))
    settings = Settings(steps=20, save_every=save_every)
    training, stopped = trained(settings, task, lambda one: saved.append(len(one.history)))
    assert stopped == signal.SIGINT
    assert saved == [0, 2]
    assert len(training.history) == 2
    assert "error" not in training.history[-1]
    assert "once more to give up 2 unsaved steps" in capsys.readouterr().err


# ---- the progress bar ----------------------------------------------------------------------------


class Bar:
    """In place of tqdm: keeps how it was made and what it was told."""

    def __init__(self, **options):
        self.options, self.told = options, []

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.told.append("closed")

    def set_description(self, text=None, refresh=True):
        self.told.append((text, refresh))

    def set_postfix(self, shown, refresh=True):
        self.told.append((shown, refresh))

    def update(self):
        self.told.append("step")


@pytest.mark.parametrize("terminal", [True, False])
def test_the_bar_shows_steps_losses_results_and_where_an_evaluation_is(terminal, monkeypatch):
    bars = []
    monkeypatch.setattr(loop, "tqdm", lambda **options: bars.append(Bar(**options)) or bars[-1])
    monkeypatch.setattr(loop.sys.stderr, "isatty", lambda: terminal, raising=False)
    training = Training(Numbers(), replace(SETTINGS, evaluate_every=2))
    training.step(Lists().batch(0, 0, 2, True))
    train(training, Lists())
    losses = [f"{row['loss']:.4f}" for row in training.history]
    evaluation = [("evaluating 1/2", terminal), ("evaluating 2/2", terminal), (None, False)]
    assert bars[0].told == [
        *evaluation,
        ({"loss": losses[1], "error": "0.1235"}, False),
        "step",
        ({"loss": losses[2], "error": "0.1235"}, False),
        "step",
        *evaluation,
        ({"loss": losses[3], "error": "0.1235"}, False),
        "step",
        "closed",
    ]
    assert bars[0].options == {
        "total": 4,
        "initial": 1,
        "disable": False,
        "mininterval": 0.1 if terminal else 10.0,
        "unit": "step",
        "dynamic_ncols": True,
    }


@pytest.mark.parametrize(("quiet", "rank", "hidden"), [(0, 0, 0), (1, 0, 1), (0, 1, 1)])
def test_there_is_no_bar_for_the_quiet_and_for_other_processes(quiet, rank, hidden, monkeypatch):
    made = []
    monkeypatch.setattr(loop, "_progress_bar", lambda *how: made.append(how) or nullcontext(Bar()))
    train(Training(Numbers(), SETTINGS, Pretended(rank=rank)), Lists(), quiet=bool(quiet))
    assert made == [(4, 0, bool(hidden))]


def test_a_loss_that_was_not_read_yet_is_not_shown(monkeypatch):
    bar = Bar()
    monkeypatch.setitem(loop.READ_EVERY, "cpu", 3)
    monkeypatch.setattr(loop, "_progress_bar", lambda *how: nullcontext(bar))
    train(Training(Numbers(), Settings(steps=4, evaluate_every=4)), Lists())
    told = [one for one in bar.told if one == "step" or isinstance(one[0], dict)]
    assert ["step" if one == "step" else "numbers" for one in told] == [
        *["step", "step"],
        *["numbers", "step"],  # of three steps
        *["numbers", "step"],  # of the last
    ]


# ---- settings ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["steps", "batch_size", "accumulate", "evaluate_every", "save_every"]
)
def test_counts_are_1_or_more(name):
    assert getattr(Settings(**{name: 1}), name) == 1
    with pytest.raises(ValueError, match=f"^{name} must be 1 or more, got 0$"):
        Settings(**{name: 0})


@pytest.mark.parametrize("name", ["learning_rate", "save_minutes", "clip"])
@pytest.mark.parametrize("wrong", [0.0, -1.0, math.inf, math.nan])
def test_what_must_be_above_0_is(name, wrong):
    assert getattr(Settings(**{name: 1e-9}), name) == 1e-9
    with pytest.raises(ValueError, match=f"^{name} must be above 0, got {wrong}$"):
        Settings(**{name: wrong})


@pytest.mark.parametrize("name", ["warmup", "weight_decay"])
@pytest.mark.parametrize("wrong", [-1, math.inf, math.nan])
def test_what_must_be_0_or_more_is(name, wrong):
    assert getattr(Settings(**{name: 0}), name) == 0
    with pytest.raises(ValueError, match=f"^{name} must be 0 or more, got {wrong}$"):
        Settings(**{name: wrong})


def test_other_names_are_refused():
    with pytest.raises(ValueError, match=r"^dtype must be one of float32, bfloat16, got 'int8'$"):
        Settings(dtype="int8")
    with pytest.raises(ValueError, match=r"^optimizer must be one of adamw, muon, got 'sgd'$"):
        Settings(optimizer="sgd")
