"""Linear layers in one product give what each gives alone, and only where that is all they do."""

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from minitransformer import MultiHeadAttention
from minitransformer import linear as module
from minitransformer.linear import together


def make_layers(bias: bool = True) -> list[nn.Linear]:
    return [nn.Linear(6, out, bias=bias).double() for out in (4, 2, 2)]


@pytest.mark.parametrize("bias", [True, False])
def test_layers_together_are_each_alone(bias):
    layers = make_layers(bias)
    x = torch.randn(3, 5, 6, dtype=torch.float64, requires_grad=True)
    inputs = [x, *(p for layer in layers for p in layer.parameters())]
    found, wanted = together(x, layers), torch.cat([layer(x) for layer in layers], dim=-1)
    assert_close(found, wanted, rtol=1e-13, atol=1e-14)
    towards = torch.randn_like(wanted)
    for a, b in zip(
        *(torch.autograd.grad(y, inputs, towards) for y in (found, wanted)), strict=True
    ):
        assert_close(a, b, rtol=1e-12, atol=1e-13)


class Doubled(nn.Linear):
    def forward(self, x):
        return 2 * super().forward(x)


@pytest.mark.parametrize("where", ["register_forward_hook", "register_forward_pre_hook", "class"])
def test_layers_that_do_more_than_multiply_are_called(where, monkeypatch):
    layers = make_layers()
    x = torch.randn(3, 5, 6, dtype=torch.float64)
    if where == "class":
        layers[1] = Doubled(6, 2).double()
    elif where == "register_forward_hook":
        layers[1].register_forward_hook(lambda *_: torch.zeros(3, 5, 2, dtype=torch.float64))
    else:
        layers[1].register_forward_pre_hook(lambda _, inputs: (torch.zeros_like(inputs[0]),))
    monkeypatch.setattr(module, "joined", None)  # nothing is multiplied together
    assert torch.equal(together(x, layers), torch.cat([layer(x) for layer in layers], dim=-1))


def test_self_attention_projects_once_and_cross_attention_twice(monkeypatch):
    products, product = [], nn.functional.linear
    monkeypatch.setattr(
        nn.functional, "linear", lambda x, w, b: products.append(len(w)) or product(x, w, b)
    )
    heads, x = MultiHeadAttention(8, 4, num_kv_heads=2), torch.randn(1, 3, 8)
    mask = torch.ones(1, 1, 3, 3, dtype=torch.bool)
    heads(x, x, mask)
    assert products == [8 + 4 + 4, 8]
    products.clear()
    heads(x, x.clone(), mask)
    assert products == [8, 4 + 4, 8]
