"""notebooks/one_page.py: short, of torch alone, and it keeps what masks promise.

That it learns is asserted in the notebook, which `scripts/notebooks.py --check` runs.
"""

import ast
import importlib.util
import sys
from pathlib import Path

import pytest

from minitransformer.checks import (
    check_attention,
    check_decoder,
    check_encoder,
    check_encoder_decoder,
)

PAGE = Path(__file__).parent.parent / "notebooks" / "one_page.py"


@pytest.fixture(scope="module")
def page():
    spec = importlib.util.spec_from_file_location("one_page", PAGE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_it_is_one_page_of_torch_alone():
    source = PAGE.read_text(encoding="utf-8")
    assert len([line for line in source.splitlines() if line.strip()]) <= 150
    imported = {
        (node.names[0].name if isinstance(node, ast.Import) else node.module).partition(".")[0]
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Import | ast.ImportFrom)
    }
    assert imported - sys.stdlib_module_names == {"torch"}


def test_its_attention_and_its_models_pass_every_core_check(page):
    for report in (
        check_attention(page.attention),
        check_encoder(page.Encoder(11)),
        check_decoder(page.Decoder(11)),
        check_encoder_decoder(page.EncoderDecoder(11)),
    ):
        assert report.passed, report


def test_no_held_out_day_is_trained_on(page, monkeypatch):
    seen = []
    monkeypatch.setattr(
        page, "batch", lambda days, made=page.batch: seen.extend(days) or made(days)
    )
    page.train(page.EncoderDecoder(2 + len(page.LETTERS), width=8, heads=2), 3)
    assert len(seen) > 200
    assert all(day.toordinal() % 4 for day in seen)
