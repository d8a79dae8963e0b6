"""The glossary: every term has a chapter that uses it and code that exists."""

import importlib
import re
from pathlib import Path

import pytest

import minitransformer

FOLDER = Path(__file__).parent.parent / "notebooks"
TEXT = (FOLDER / "GLOSSARY.md").read_text(encoding="utf-8")
ENTRY = re.compile(r"\*\*(.+?)\*\*: (.+) \[Chapter (\d+b?)\]\((\S+)\.ipynb\), `([\w.]+)`\.")
ITEMS = [" ".join(item.split()) for item in TEXT.split("\n- ")[1:]]
ENTRIES = [match for match in map(ENTRY.fullmatch, ITEMS) if match]
MUST_BE_FOUND = """
    padding mask, causal mask, key padding, attention mask, scaled dot-product attention,
    multi-head attention, grouped-query attention (GQA), KV cache,
    rotary position embeddings (RoPE),
    RMSNorm, SwiGLU, pre-norm and post-norm, residual connection, teacher forcing, cross-attention,
    label (-100, `ignore_index`), token-weighted loss, gradient accumulation, packing,
    block-diagonal mask, sliding window, online softmax, activation checkpointing, mixed precision,
    weight tying, greedy decoding, beam search, top-k, nucleus (top-p) sampling
"""


def resolve(name: str) -> object:
    """minitransformer.NAME, whose first parts may be modules that nobody has imported yet."""
    found: object = minitransformer
    path = "minitransformer"
    for part in name.split("."):
        path = f"{path}.{part}"
        try:
            found = importlib.import_module(path)
        except ModuleNotFoundError:
            found = getattr(found, part)
    return found


def test_every_item_has_a_term_a_meaning_a_chapter_and_code():
    assert len(ENTRIES) == len(ITEMS) > 60
    terms = [entry[1].lower() for entry in ENTRIES]
    assert terms == sorted(set(terms))


def test_the_terms_of_the_field_are_there():
    terms = {entry[1] for entry in ENTRIES}
    for term in re.split(r",\s+(?![^(]*\))", MUST_BE_FOUND.strip()):
        assert " ".join(term.split()) in terms


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: entry[1])
def test_the_chapter_and_the_code_exist(entry):
    _, _, number, chapter, code = entry.groups()
    assert (FOLDER / f"{chapter}.py").is_file()
    assert number == chapter.partition("_")[0].lstrip("0")
    resolve(code)


def test_a_name_that_does_not_exist_is_noticed():
    with pytest.raises(AttributeError):
        resolve("masks.padding_masks")
