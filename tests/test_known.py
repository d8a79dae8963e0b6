"""Libraries as subjects: torch's are checked as recorded; others where they are installed."""

import importlib.util
import json
import sys
from fnmatch import fnmatch
from pathlib import Path

import pytest

from minitransformer.checks import CHECKS, run_checks
from minitransformer.checks import known as known_module
from minitransformer.checks.engine.subject import Subject
from minitransformer.checks.known import KNOWN, Known, known

SCRIPT = Path(__file__).parent.parent / "scripts" / "conformance_table.py"
SDPA = "torch.nn.functional:scaled_dot_product_attention"

# What the core checks found (torch 2.13): the names of those that do not pass.
FAST_PATH = {"without_gradients_it_is_the_same"}
IN_IT = FAST_PATH | {
    "a_prefix_gives_what_it_gives_in_the_whole",
    "a_row_alone_equals_it_in_the_batch",
    "no_token_sees_what_it_may_not",
    "padding_on_the_left_is_irrelevant",
    "the_future_is_invisible",
    "training_without_dropout_equals_evaluation",
    "what_padding_holds_is_irrelevant",
}
RECORDED: dict[str, set[str]] = {
    "torch.nn:TransformerEncoder@causal": FAST_PATH,
    "torch.nn:TransformerEncoder@causal,inference": IN_IT,
    "torch.nn:Transformer": FAST_PATH,
    "torch.nn:Transformer@inference": IN_IT,
}


def of_library(*libraries: str) -> list[str]:
    return [name for name, one in KNOWN.items() if one.library in libraries]


SLOW = {"torch.nn.attention.flex_attention:flex_attention", "minitransformer.models:EncoderDecoder"}


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[pytest.mark.slow] * (name in SLOW))
        for name in of_library("torch", "minitransformer")
    ],
)
def test_its_core_outcome_is_as_recorded(name):
    subject = known(name)
    assert isinstance(subject, Subject)
    assert subject.name == name
    report = run_checks(subject, "core")
    assert report.ran
    assert set(report.failed) == RECORDED.get(name, set()), str(report)


@pytest.mark.parametrize(
    "name", [name for name in KNOWN if name not in of_library("torch", "minitransformer")]
)
def test_a_library_gives_its_subject_or_names_what_is_missing(name):
    missing = ""
    try:
        assert KNOWN[name]().name == name
    except ImportError as error:
        missing = str(error)
    if missing:
        assert "pip install" in missing
        pytest.skip(missing)


def test_the_library_forgets_a_token_that_has_the_id_of_padding():
    name = "transformers:DataCollatorForLanguageModeling"
    if not KNOWN[name].installed:
        pytest.skip("transformers is not installed")
    assert run_checks(known(name)).failed == ["labels_are_those_of_their_tokens"]
    for other in ("DataCollatorForSeq2Seq", "DataCollatorWithPadding"):
        assert run_checks(known(f"transformers:{other}"), "strict").passed


def test_a_missing_library_is_named(monkeypatch):
    package = {"no_such_library": "no-such-library"}
    monkeypatch.setattr(known_module, "PACKAGES", package)
    one = Known("no_such_library:attention", "no_such_library", lambda: None)
    assert not one.installed
    with pytest.raises(ImportError, match="pip install no-such-library"):
        one()


def test_an_unknown_name_is_nobodys():
    assert known("torch.nn.functional:softmax") is None


@pytest.fixture
def script(monkeypatch):
    pytest.importorskip("matplotlib", reason="the picture needs matplotlib")
    spec = importlib.util.spec_from_file_location("conformance_table", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "conformance_table", module)  # its dataclasses look it up
    spec.loader.exec_module(module)
    return module


def test_the_table_is_written(script, tmp_path, capsys):
    script.main(["--only", SDPA, "--tier", "robust", "--out", str(tmp_path)])
    assert {file.name for file in tmp_path.iterdir()} == {"table.md", "table.png", "results.json"}
    assert (tmp_path / "table.png").read_bytes().startswith(b"\x89PNG")

    found = json.loads((tmp_path / "results.json").read_text())
    assert [one["subject"] for one in found["subjects"]] == [n for n in KNOWN if n.startswith(SDPA)]
    results = {one["check"]: one for one in found["subjects"][0]["results"]}
    assert results["forbidden_keys_get_exactly_zero"]["outcome"] == "pass"

    table = (tmp_path / "table.md").read_text()
    differing = [name for name, result in results.items() if result["outcome"] == "fail"]
    assert differing
    for name in differing:
        assert f"### {script.words(name)}" in table
    assert "wrong" not in table.lower()


def test_what_cannot_be_run_is_listed_with_the_reason(script, tmp_path, monkeypatch):
    def fails():
        raise RuntimeError("no such setting\nand more")

    missing = Known("no_such_library:attention", "no_such_library", fails)
    broken = Known("torch:broken", "torch", fails)
    monkeypatch.setattr(script, "KNOWN", {one.name: one for one in (missing, broken)})
    script.main(["--out", str(tmp_path)])
    table = (tmp_path / "table.md").read_text()
    assert "- `no_such_library:attention`: not installed" in table
    assert "- `torch:broken`: could not be built: RuntimeError: no such setting" in table


def test_an_update_keeps_what_is_not_installed_here(script, tmp_path, monkeypatch):
    """Its rows as recorded, with the date; a check that is newer than they are was not asked."""
    one = Known("no_such_library:attention", "no_such_library", lambda: None)
    ours = KNOWN["minitransformer.loss:cross_entropy"]
    monkeypatch.setattr(script, "KNOWN", {known.name: known for known in (one, ours)})
    seen = {"check": "weights_sum_to_one", "outcome": "fail", "measured": "nan", "diagnosis": "no"}
    subject = {"subject": one.name, "as": "attention", "reason": ""}
    record = {
        "date": "2026-01-01",
        "versions": {"no_such_library": "1.0"},
        "subjects": [subject | {"results": [seen | {"raised": ""}]}],
    }
    (tmp_path / "results.json").write_text(json.dumps(record))
    for _ in range(2):  # and what was kept is kept again
        script.main(["--update", "--tier", "core", "--out", str(tmp_path)])
        found = json.loads((tmp_path / "results.json").read_text())
        assert found["versions"]["no_such_library"] == "1.0 (2026-01-01)"
        kept, run = found["subjects"]
        outcomes = {result["check"]: result["outcome"] for result in kept["results"]}
        assert outcomes.pop("weights_sum_to_one") == "fail"
        assert set(outcomes.values()) == {"not asked"}
        assert {result["outcome"] for result in run["results"]} == {"pass"}
    assert "| `no_such_library:attention` | 0 of 1 |" in (tmp_path / "table.md").read_text()


def test_a_pattern_that_matches_nothing_shows_the_names(script, tmp_path):
    with pytest.raises(SystemExit, match=SDPA):
        script.main(["--only", "nothing like it", "--out", str(tmp_path)])


def test_every_note_belongs_to_a_subject_and_a_check(script):
    checks = [name for kind in CHECKS.values() for name in kind]
    for note in script.NOTES:
        assert any(fnmatch(name, note.subjects) for name in KNOWN), note
        for pattern in note.checks.split():
            assert any(fnmatch(name, pattern) for name in checks), note
        assert note.source.startswith("https://"), note
