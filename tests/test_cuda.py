"""What trains and writes on CUDA, on a machine without: on a pretended device (`pretended.py`).

A step of training must make the CPU wait for nothing: no value is read back, no copy is one that
blocks. What torch's own kernels do on a real GPU is not to be seen here.
"""

import copy

import pytest
import torch
from conftest import large_init
from pretended import pretended_gpu
from torch.testing import assert_close

from minitransformer import Config, DecoderOnly, EncoderDecoder, EncoderOnly
from minitransformer.cli.main import main
from minitransformer.data import Batch, next_token_labels, pack, pack_pairs, pad, pad_pairs
from minitransformer.data.source import DataOptions
from minitransformer.kernels import sdpa
from minitransformer.loss import cross_entropy
from minitransformer.pretrained import load_pretrained, save_pretrained
from minitransformer.training.loop import Settings, Training, train
from minitransformer.training.start import start
from minitransformer.training.tasks import largest_padding_weight

ROWS = [[5, 6, 7], [8, 9, 10, 11], [12]]


def batch_of(kind, packed=True):
    if kind is EncoderDecoder:
        targets = [row[1:] for row in ROWS]
        if packed:
            return pack_pairs(ROWS, targets, 5, bos_id=1, eos_id=2)
        return pad_pairs(ROWS, targets, bos_id=1, eos_id=2)
    rows = pack(ROWS, 5) if packed else pad(ROWS)
    ids, mask = rows.input_ids, rows.attention_mask
    return Batch(ids, mask, next_token_labels(ids, mask))


def model_of(kind, **options):
    sizes = {"d_model": 8, "num_heads": 2, "num_layers": 1, "max_length": 4}  # rows are longer
    return large_init(kind(Config(13, **{**sizes, **options})))


CASES = {
    "vanilla": (EncoderDecoder, {}, Settings()),
    "bert": (EncoderOnly, {"style": "bert"}, Settings(optimizer="muon")),
    "llama, grouped, window": (
        DecoderOnly,
        {"style": "llama", "num_kv_heads": 1, "window": 2, "tie_embeddings": True},
        Settings(dtype="bfloat16", recompute=True),
    ),
    "gpt2, padded, in parts": (DecoderOnly, {"style": "gpt2"}, Settings(accumulate=2)),
    "reference": (EncoderDecoder, {"attention": "reference", "dropout": 0.1}, Settings()),
}


@pytest.mark.parametrize("case", CASES)
def test_a_step_of_training_waits_for_nothing(case):
    kind, options, settings = CASES[case]
    batch = batch_of(kind, packed="padded" not in case)
    with pretended_gpu("cuda") as waits:
        training = Training(model_of(kind, **options).to("cuda"), settings)
        for _ in range(2):  # the optimizer makes its state in the first
            waits.clear()
            numbers = training.step(batch)
            assert waits == []
        assert numbers.device.type == "cuda"
        assert numbers.isfinite().all()


def test_nor_does_one_of_the_main_job():
    """With the settings of `minitransformer train`, whose packed rows are wider than max_length."""
    pytest.importorskip("babel")
    task, model, settings = start("dates", DataOptions(), {})
    with pretended_gpu("cuda") as waits:
        training = Training(model.to("cuda"), settings)
        batch = training.batch(task, 0)
        assert batch.source_ids.shape[1] > model.config.max_length
        waits.clear()
        training.step(batch)
        assert waits == []


def reads_the_loss(self, inputs, num_labels):
    loss = self.model.loss(**inputs, num_labels=num_labels)
    return loss * (loss.item() == loss.item())


def makes_a_tensor_of_a_list(self, inputs, num_labels):
    loss = self.model.loss(**inputs, num_labels=num_labels)
    return loss * torch.tensor([1.0], device=loss.device).sum()


def indexes_on_the_cpu(self, inputs, num_labels):
    logits = self.model(inputs["input_ids"], inputs["attention_mask"])
    return logits.flatten(0, 1).index_select(0, torch.tensor([0])).sum()


def has_labels_on_the_gpu(self, inputs, num_labels):
    inputs = {**inputs, "labels": inputs["labels"].to("cuda", non_blocking=True)}
    return self.model.loss(**inputs, num_labels=num_labels)


@pytest.mark.parametrize(
    "planted", [reads_the_loss, makes_a_tensor_of_a_list, has_labels_on_the_gpu]
)
def test_a_planted_wait_is_found(planted, monkeypatch):
    monkeypatch.setattr("minitransformer.training.loop.LossModule.forward", planted)
    with pretended_gpu("cuda") as waits:
        training = Training(model_of(DecoderOnly).to("cuda"), Settings())
        waits.clear()
        training.step(batch_of(DecoderOnly))
        assert waits


def test_a_planted_tensor_on_the_cpu_is_refused(monkeypatch):
    monkeypatch.setattr("minitransformer.training.loop.LossModule.forward", indexes_on_the_cpu)
    with pretended_gpu("cuda"):
        training = Training(model_of(DecoderOnly).to("cuda"), Settings())
        with pytest.raises(RuntimeError, match="at least two devices, cuda:0 and cpu"):
            training.step(batch_of(DecoderOnly))


@pytest.mark.parametrize(
    "attention",
    ["auto", *(pytest.param(name, marks=pytest.mark.slow) for name in ("reference", "tiled"))],
)
@pytest.mark.parametrize("kind", [EncoderOnly, DecoderOnly, EncoderDecoder])
def test_losses_and_gradients_are_those_of_the_cpu(kind, attention):
    model, batch = model_of(kind, attention=attention), batch_of(kind)
    inputs = {name: x for name, x in batch.items() if name != "segment_ids"}
    expected = model.loss(**inputs)
    expected.backward()
    with pretended_gpu("cuda"):
        there = copy.deepcopy(model).to("cuda")
        there.zero_grad()
        loss = there.loss(**{name: x.to("cuda") for name, x in inputs.items()})
        loss.backward()
        gradients = [p.grad.cpu() for p in there.parameters()]
    assert_close(loss.item(), expected.item(), rtol=1e-5, atol=1e-6)
    for gradient, parameter in zip(gradients, model.parameters(), strict=True):
        assert_close(gradient, parameter.grad, rtol=1e-4, atol=1e-5)


def test_the_loss_alone_waits_for_nothing():
    logits, labels = torch.randn(2, 3, 5), torch.tensor([[1, -100, 4], [0, 2, -100]])
    with pretended_gpu("cuda") as waits:
        there = logits.to("cuda"), labels.to("cuda")
        waits.clear()
        loss = cross_entropy(*there)
        assert waits == []
        assert_close(loss.item(), cross_entropy(logits, labels).item())


@pytest.mark.slow
def test_it_trains_to_the_end_as_on_the_cpu():
    pytest.importorskip("babel")
    small = {"d_model": 8, "num_heads": 2, "num_layers": 1, "batch_size": 4, "steps": 12}
    losses = []
    for device in ("cpu", "cuda"):
        task, model, settings = start("dates", DataOptions(), small)
        task.evaluate = lambda *_, **__: {}
        with pretended_gpu("cuda"):
            training = Training(model.to(device), settings)
            assert train(training, task, quiet=True) == 0
        losses.append([row["loss"] for row in training.history])
    assert_close(losses[1], losses[0], rtol=1e-4, atol=0)


@pytest.mark.slow
def test_the_command_line_trains_writes_and_evaluates(pairs, tmp_path, capsys):
    run, sizes = str(tmp_path / "run"), "--d-model 8 --num-heads 2 --num-layers 1 --batch-size 4"
    options = [*sizes.split(), "--dtype", "bfloat16", "--recompute"]
    with pretended_gpu("cuda"):
        line = [
            "train",
            "--task",
            "pairs",
            "--data",
            pairs,
            "--device",
            "cuda",
            "--steps",
            "2",
            "--out",
            run,
        ]
        assert main([*line, *options]) == 0
        assert main(["generate", run, "w1", "--device", "cuda"]) == 0
        assert main(["evaluate", run, "--device", "cuda"]) == 0
    assert "was wanted" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["pairs", "lm", "mlm", "classify"])
def test_an_evaluation_waits_once_a_batch_however_many_examples_are_in_it(name, tmp_path):
    """So many times at most: the numbers of a batch are read together, not example by example."""
    file = tmp_path / "data.tsv"
    file.write_text("".join(f"{'abc'[i % 3]}\tx{i} y{i}\n\n" for i in range(600)), encoding="utf-8")
    sizes = {"d_model": 8, "num_heads": 2, "num_layers": 1, "max_length": 24}
    task, model, _ = start(name, DataOptions([str(file)]), sizes)
    large_init(model).eval()
    held_out = task.held_out
    counts: dict[str, list[int]] = {"examine": [], "evaluate": [], "padding": []}
    for examples in (3, 20):
        task.held_out = held_out[:examples]
        assert len(task.held_out) == examples
        expected = task.examine(model).results
        with pretended_gpu("cuda") as waits:
            there = copy.deepcopy(model).to("cuda")
            for what, count in counts.items():
                waits.clear()
                if what == "padding":
                    largest_padding_weight(there, task.held_out_batches())
                else:
                    found = getattr(task, what)(there)
                    assert what == "evaluate" or found.results == pytest.approx(expected, rel=1e-4)
                count.append(len(waits))
    for few, many in counts.values():
        assert few == many <= 16


@pytest.mark.parametrize("kv_heads", [4, 2])
def test_all_layers_are_given_one_mask(kv_heads, monkeypatch):
    """A copy for each would be layers · batch · length² numbers, kept for the backward pass. torch
    copies masks whose rows do not begin at multiples of 16 bytes."""
    given = []

    def watch(*inputs, attn_mask):
        given.append(attn_mask)
        return attend(*inputs, attn_mask=attn_mask)

    attend = sdpa.fused_kernel
    monkeypatch.setattr(sdpa, "fused_kernel", watch)
    model = model_of(DecoderOnly, num_layers=3, num_heads=4, num_kv_heads=kv_heads)
    batch = batch_of(DecoderOnly)
    with pretended_gpu("cuda"):
        model.to("cuda")(batch.input_ids.to("cuda"), batch.attention_mask.to("cuda"))
    assert len(given) == 3
    assert len({id(mask) for mask in given}) == 1
    assert all(step % 8 == 0 for step in given[0].stride()[:-1])


@pytest.mark.parametrize(("kind", "style"), [(EncoderOnly, "bert"), (DecoderOnly, "llama")])
@torch.no_grad()
def test_a_pretrained_folder_gives_there_what_it_gives_here(kind, style, tmp_path):
    segments = {"num_segments": 2} if style == "bert" else {}
    tied = {"tie_embeddings": style == "bert"}
    save_pretrained(model_of(kind, style=style, norm_eps=1e-5, **segments, **tied), tmp_path)
    model, batch = load_pretrained(tmp_path), batch_of(kind, packed=False)
    inputs = batch.input_ids, batch.attention_mask
    expected = model(*inputs)
    with pretended_gpu("cuda") as waits:
        model.to("cuda")
        there = [x.to("cuda") for x in inputs]
        waits.clear()
        logits = model(*there)
        assert waits == []
        assert_close(logits.cpu(), expected, rtol=1e-5, atol=1e-5)
