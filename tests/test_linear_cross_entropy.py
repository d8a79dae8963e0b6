"""The loss in chunks is the loss of all logits, and its gradients."""

import math

import pytest
import torch
from pretended import pretended_gpu
from torch import nn
from torch.nn import functional as F

from minitransformer import cross_entropy
from minitransformer.kernels import linear_cross_entropy as chunks
from minitransformer.kernels.linear_cross_entropy import head_loss, linear_cross_entropy


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


@pytest.mark.parametrize(("held", "rows"), [(2 * 7 + 6, [2, 2, 1]), (6, [1] * 5)])
def test_the_loss_in_chunks_never_holds_all_logits(held, rows, monkeypatch):
    monkeypatch.setattr(chunks, "LOGITS", held)
    seen = []
    linear = F.linear
    monkeypatch.setattr(chunks.F, "linear", lambda *a: seen.append(linear(*a).shape) or linear(*a))
    hidden, weight = torch.randn(5, 4), torch.randn(7, 4, requires_grad=True)
    linear_cross_entropy(hidden, weight, None, torch.tensor([0, 1, 2, 3, 4])).backward()
    assert seen == [(count, 7) for count in rows]


@pytest.mark.parametrize("wrong", [7, -1])
def test_the_loss_in_chunks_refuses_labels_that_there_are_not(wrong):
    message = rf"^labels must be -100 \(ignore\) or in \[0, 7\), got {wrong}$"
    with pytest.raises(ValueError, match=message):
        linear_cross_entropy(torch.randn(2, 4), torch.randn(7, 4), None, torch.tensor([1, wrong]))


def test_rows_of_logits_a_thousand_apart_have_each_their_loss():
    hidden = torch.tensor([[1_000.0], [0.0]], dtype=torch.float64)
    weight = torch.ones(2, 1, dtype=torch.float64)
    loss = linear_cross_entropy(hidden, weight, None, torch.tensor([0, 1]))
    assert loss.item() == pytest.approx(math.log(2), rel=1e-12)


def test_without_gradients_no_room_for_them_is_made(monkeypatch):
    hidden, weight = torch.randn(2, 4), torch.randn(7, 4)
    monkeypatch.setattr(torch, "zeros_like", None)
    linear_cross_entropy(hidden, weight, None, torch.tensor([1, 2]))


def test_products_of_one_dtype_are_added_in_one_go(monkeypatch):
    added = []
    add = torch.Tensor.addmm_
    monkeypatch.setattr(torch.Tensor, "addmm_", lambda *a: added.append(len(a)) or add(*a))
    for dtype in (torch.float32, torch.float64):
        total, a, b = torch.ones(2, 4), torch.randn(2, 3, dtype=dtype), torch.randn(3, 4)
        chunks._add_product(total.to(dtype), a, b.to(dtype))
    assert len(added) == 2
    half = torch.ones(2, 3, dtype=torch.bfloat16)
    total = torch.ones(2, 4)
    chunks._add_product(total, half, half.new_ones(3, 4))
    assert torch.equal(total, torch.full((2, 4), 4.0))
    assert len(added) == 2


@pytest.mark.parametrize("with_bias", [True, False])
def test_the_loss_of_half_precision_is_nearly_that_of_float32(with_bias):
    half = [torch.randn(*shape).bfloat16().requires_grad_() for shape in ((9, 4), (7, 4), (7,))]
    half[2] = half[2] if with_bias else None
    whole = [None if x is None else x.detach().float().requires_grad_() for x in half]
    labels = torch.arange(9) % 7
    rough, exact = (linear_cross_entropy(*inputs, labels) for inputs in (half, whole))
    assert rough.dtype == torch.float32
    torch.testing.assert_close(rough, exact, rtol=0.01, atol=0)
    for loss in (rough, exact):
        loss.backward()
    for a, b in zip(half, whole, strict=True):
        assert a is None or (a.grad.float() - b.grad).norm() < 0.03 * b.grad.norm()


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


# ---- of a head ---------------------------------------------------------------------------------


class Head(nn.Module):
    def __init__(self, bias: bool = True):
        super().__init__()
        self.transform, self.projection = nn.Linear(5, 4), nn.Linear(4, 7, bias)

    def forward(self, hidden):
        return self.projection(self.transform(hidden))


def some_labels(which: str) -> torch.Tensor:
    """(2, 4, 3), of which some, one, none or all say that nothing is predicted there."""
    labels = torch.arange(24).view(2, 4, 3) % 7
    learned = {"some": labels < 3, "one": torch.arange(24).view(2, 4, 3) == 5, "none": labels > 7}
    return labels.masked_fill(~learned[which], -100) if which in learned else labels


@pytest.mark.parametrize("num_labels", [None, 100])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("which", ["some", "one", "none", "all"])
def test_the_loss_of_a_head_is_that_of_all_its_logits(which, bias, num_labels, device):
    """With the labels on the CPU, wherever the hidden states are."""
    head, labels = Head(bias).double().to(device), some_labels(which)
    hidden = torch.randn(2, 4, 3, 5, dtype=torch.float64, device=device, requires_grad=True)
    inputs = [hidden, *head.parameters()]
    found = head_loss(head, hidden, labels, num_labels)
    wanted = cross_entropy(head(hidden), labels.to(device), num_labels=num_labels)
    torch.testing.assert_close(found, wanted, rtol=1e-12, atol=0)
    for a, b in zip(*(torch.autograd.grad(y, inputs) for y in (found, wanted)), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-14)


@pytest.mark.parametrize("which", ["some", "all"])
def test_the_labels_go_where_the_hidden_states_are(which):
    labels, hidden = some_labels(which), torch.randn(2, 4, 3, 5)
    head = Head()
    wanted = head_loss(head, hidden, labels)
    with pretended_gpu("mps") as read_back:
        found = head_loss(head.to("mps"), hidden.to("mps"), labels)
        assert found.device.type == "mps"
        assert not read_back  # nobody waits for the device
        torch.testing.assert_close(found.cpu(), wanted)


@pytest.mark.parametrize(("which", "count"), [("some", 12), ("one", 1), ("none", 0), ("all", 24)])
def test_a_head_is_computed_where_there_is_a_label(which, count):
    head, hidden, seen = Head(), torch.randn(2, 4, 3, 5), []
    head.transform.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    head_loss(head, hidden, some_labels(which))
    assert [x.shape for x in seen] == [(count, 5)]
    assert (seen[0].data_ptr() == hidden.data_ptr()) == (which == "all")  # then nothing is copied


@pytest.mark.parametrize("over", ["hidden", "labels"])
def test_the_loss_of_a_head_goes_through_vmap(over):
    head, labels, hidden = Head(), some_labels("some"), torch.randn(2, 4, 3, 5)
    if over == "hidden":
        found = torch.func.vmap(lambda x: head_loss(head, x, labels[0], 10))(hidden)
        wanted = [head_loss(head, x, labels[0], 10) for x in hidden]
    else:
        found = torch.func.vmap(lambda x: head_loss(head, hidden[0], x, 10))(labels)
        wanted = [head_loss(head, hidden[0], x, 10) for x in labels]
    torch.testing.assert_close(found, torch.stack(wanted))


def test_labels_of_another_shape_than_the_positions_are_refused():
    message = r"^labels must be \(2, 3\), one for each position, got \(2, 4\)$"
    with pytest.raises(ValueError, match=message):
        head_loss(Head(), torch.randn(2, 3, 5), torch.ones(2, 4, dtype=torch.int64))
