"""The loss in chunks is the loss of all logits, and its gradients."""

import pytest
import torch
from torch.nn import functional as F

from minitransformer import cross_entropy
from minitransformer.kernels import linear_cross_entropy as chunks
from minitransformer.kernels.linear_cross_entropy import linear_cross_entropy


@pytest.mark.parametrize("rows", [1, 3, 100])
@pytest.mark.parametrize("with_bias", [True, False])
@pytest.mark.parametrize("count", [0, 1, 8])
def test_the_loss_in_chunks_is_the_loss_of_all_logits(rows, with_bias, count, monkeypatch, device):
    classes, width = 7, 5
    monkeypatch.setattr(chunks, "LOGITS", rows * classes)
    options = {"dtype": torch.float64, "device": device, "requires_grad": True}
    inputs = [torch.randn(count, width, **options), torch.randn(classes, width, **options)]
    inputs += [torch.randn(classes, **options)] if with_bias else []
    labels = torch.randint(classes, (count,), device=device)

    def whole(hidden, weight, bias=None):
        return cross_entropy(F.linear(hidden, weight, bias), labels)

    def chunked(hidden, weight, bias=None):
        return linear_cross_entropy(hidden, weight, bias, labels)

    (a, b), (da, db) = zip(
        *((out := f(*inputs), torch.autograd.grad(3 * out, inputs)) for f in (whole, chunked)),
        strict=True,
    )
    torch.testing.assert_close(a, b, rtol=1e-12, atol=0)
    for x, y in zip(da, db, strict=True):
        torch.testing.assert_close(x, y, rtol=1e-12, atol=1e-14)
    assert count == 0 or any((x != 0).any() for x in db)


def test_the_loss_in_chunks_never_holds_all_logits(monkeypatch):
    monkeypatch.setattr(chunks, "LOGITS", 2 * 7)
    seen = []
    linear = F.linear
    monkeypatch.setattr(chunks.F, "linear", lambda *a: seen.append(linear(*a).shape) or linear(*a))
    hidden, weight = torch.randn(5, 4), torch.randn(7, 4, requires_grad=True)
    linear_cross_entropy(hidden, weight, None, torch.tensor([0, 1, 2, 3, 4])).backward()
    assert seen == [(2, 7), (2, 7), (1, 7)]


def test_the_loss_in_chunks_refuses_labels_that_there_are_not():
    with pytest.raises(ValueError, match=r"in \[0, 7\), got 7"):
        linear_cross_entropy(torch.randn(2, 4), torch.randn(7, 4), None, torch.tensor([1, 7]))


def test_the_loss_in_chunks_is_precise_under_autocast():
    hidden, weight = (
        torch.randn(64, 32, requires_grad=True),
        torch.randn(50, 32, requires_grad=True),
    )
    labels = torch.randint(50, (64,))
    exact = linear_cross_entropy(hidden, weight, None, labels)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rough = linear_cross_entropy(hidden, weight, None, labels)
        plain = cross_entropy(F.linear(hidden, weight), labels)
    assert rough.dtype == torch.float32
    torch.testing.assert_close(rough, plain)
    for a, b in zip(
        torch.autograd.grad(rough, (hidden, weight)),
        torch.autograd.grad(exact, (hidden, weight)),
        strict=True,
    ):
        assert a.dtype == b.dtype == torch.float32
        assert (a - b).norm() < 0.03 * b.norm()
