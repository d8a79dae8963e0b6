"""The pretended device: it refuses what the real one refuses, and computes what the CPU does."""

import copy

import pytest
import torch
from conftest import large_init
from pretended import pretended_gpu
from torch.testing import assert_close

from minitransformer import Config, DecoderOnly, EncoderDecoder


def test_tensors_say_where_they_are():
    with pretended_gpu("mps"):
        for made in (torch.zeros(2, device="mps"), torch.tensor([1], device="mps"), on_mps(3)):
            assert made.device == made.new_ones(1).device == (made + 1).device
            assert made.device.type == "mps"
            assert made.cpu().device.type == "cpu"


@pytest.mark.parametrize(
    "make",
    [
        lambda: on_mps(2).double(),
        lambda: on_mps(2).new_zeros(2, dtype=torch.float64),
        lambda: torch.zeros(2, device="mps", dtype=torch.float64),
        lambda: torch.zeros(2, dtype=torch.float64).to("mps"),
    ],
)
def test_there_is_no_float64(make):
    with pretended_gpu("mps"), pytest.raises(TypeError, match=r"MPS .* doesn't support float64"):
        make()


def test_two_devices_do_not_meet():
    with pretended_gpu("mps"):
        with pytest.raises(RuntimeError, match="two devices, mps:0 and cpu"):
            on_mps(3) + torch.ones(3)
        assert (on_mps(3) + torch.tensor(1.0)).tolist() == [2, 2, 2]  # a number is no tensor
        on_mps(3).copy_(torch.ones(3))


def test_what_is_read_back_is_counted():
    with pretended_gpu("mps") as read_back:
        x = on_mps(3)
        x[:, None] + x.masked_fill(x > 0, 1.0)
        assert not read_back
        for count, read in enumerate((x.tolist, x.cpu, x[0].item, lambda: x[x > 0], x.nonzero), 1):
            read()
            assert len(read_back) == count


@pytest.mark.parametrize("kind", [DecoderOnly, EncoderDecoder])
@pytest.mark.parametrize("style", ["vanilla", "gpt2"])  # gpt2's head is its embedding
def test_a_model_trains_there_as_on_the_cpu(kind, style):
    model = large_init(kind(Config(23, 16, style=style)))
    ids, mask = torch.tensor([[7, 3, 1], [4, 0, 0]]), torch.tensor([[1, 1, 1], [1, 0, 0]])
    texts = (ids, mask) if kind is DecoderOnly else (ids, mask, ids, mask)
    labels = torch.tensor([[3, 1, -100], [-100, -100, -100]])
    with pretended_gpu("mps"):
        there = copy.deepcopy(model).to("mps")
        loss = there.loss(*(x.to("mps") for x in texts), labels.to("mps"))
        loss.backward()
        gradients = [p.grad.cpu() for p in there.parameters()]
    expected = model.loss(*texts, labels)
    expected.backward()
    assert_close(loss.item(), expected.item(), rtol=1e-5, atol=1e-6)
    for gradient, parameter in zip(gradients, model.parameters(), strict=True):
        assert_close(gradient, parameter.grad, rtol=1e-4, atol=1e-5)


def on_mps(length: int) -> torch.Tensor:
    return torch.ones(length).to("mps")
