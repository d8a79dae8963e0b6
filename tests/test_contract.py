"""What may be looked at, and what is said of a value that is refused."""

import pytest
import torch

from minitransformer.contract import check_range, is_transforming, may_read


def test_values_are_read_on_a_cpu_and_neither_in_torch_func_nor_while_torch_compiles(monkeypatch):
    x, seen = torch.ones(2), []

    def look(one):
        seen.append((is_transforming(), may_read(one), may_read(x)))
        return one

    assert may_read(x)
    assert not is_transforming()
    assert not may_read(x.to("meta"))
    torch.func.vmap(look)(x)
    assert not is_transforming()
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    torch.func.vmap(look)(x)
    assert not may_read(x)
    assert seen == [(True, False, False), (False, False, False)]


@pytest.mark.parametrize(
    ("shape", "where"), [((6,), ""), ((2, 3), " at row 1, position 2"), ((1, 2, 3), "")]
)
def test_a_value_out_of_range_is_named_with_its_place_in_a_batch(shape, where):
    x = torch.tensor([0, 9, 1, 2, 3, 4]).view(shape)
    counts = x != 9
    check_range("ids", x, counts, 5)
    with pytest.raises(ValueError, match=rf"^ids must be in \[0, 4\), got 4{where}$"):
        check_range("ids", x, counts, 4)
    with pytest.raises(ValueError, match=rf"^ids may be in \[0, 4\), got -1{where}$"):
        check_range("ids", torch.where(x == 4, -1, x), counts, 4, "may be")
