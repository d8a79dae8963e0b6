"""`minitransformer check` as its user meets it: what is found, what is printed, what is refused."""

import json
import subprocess
import sys
from dataclasses import fields

import pytest

from minitransformer.checks import CHECKS, SUBJECTS
from minitransformer.checks.engine.bugs import bugs
from minitransformer.checks.finding import parse_declarations
from minitransformer.cli import main

pytestmark = pytest.mark.usefixtures("bugs_asked_once")
STUDENT = """
import torch
from torch import nn

def attention(query, key, value, mask):
    scores = query @ key.mT / query.shape[-1] ** 0.5
    return scores.masked_fill(~mask, float("-inf")).softmax(dim=-1) @ value

def values_first(values, keys, queries, dropout=0.0, attn_mask=None):
    return attention(queries, keys, values, attn_mask)

def ignores(q, k, v, mask):
    return attention(q, k, v, ~mask)

def after_softmax(q, k, v, mask):
    return (q @ k.mT / q.shape[-1] ** 0.5).softmax(dim=-1) * mask @ v

def raises(q, k, v, mask):
    raise RuntimeError("sizes do not fit")

def loss(logits, labels):
    return nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten())

def window_mask(attention_mask, window):
    index = torch.arange(attention_mask.shape[1])
    distance = index[:, None] - index
    return (attention_mask != 0)[:, None, None] & (distance >= 0) & (distance < window)

class Attention(nn.Module):
    def forward(self, q, k, v, mask):
        return attention(q, k, v, mask)

class Layer(nn.Module):
    def __init__(self):
        super().__init__()
        self.attention = nn.MultiheadAttention(16, 2, batch_first=True)

    def forward(self, x, context=None, key_padding_mask=None):
        hidden = key_padding_mask == 0
        return self.attention(x, x, x, key_padding_mask=hidden)[0]

class Forgetful(Layer):
    def forward(self, x, context=None, key_padding_mask=None):
        return self.attention(x, x, x)[0]

class Sized(nn.Module):
    def __init__(self, width):
        super().__init__()

    def forward(self, q, k, v, mask):
        return attention(q, k, v, mask)

def build():
    return Sized(3)

def one_tensor(x, mask):
    return x

number = 3
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "student.py").write_text(STUDENT)
    return tmp_path


def check(capsys, *arguments):
    """(exit status, what was printed, what went to stderr)."""
    status = main(["check", *arguments])
    return status, *capsys.readouterr()


# ---- what is declared ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "name", "text", "value"),
    [
        ("mask", "window", "3", 3),
        ("mask", "window", "none", None),
        ("mask", "causal", "yes", True),
        ("loss", "label_smoothing", "0.1", 0.1),
        ("loss", "ignore_index", "-1", -1),
        ("loss", "dtypes", "float32,bfloat16", ("float32", "bfloat16")),
        ("collator", "labels", "none", "none"),
        ("attention", "full_masks", "no", False),
        ("attention", "full_masks", "none", None),
    ],
)
def test_declarations_are_read_as_what_they_are(kind, name, text, value):
    found = parse_declarations(SUBJECTS[kind], {name: text})[name]
    assert found == value
    assert type(found) is type(value)


# ---- what is found -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "arguments",
    [
        ["student.py:attention"],
        ["student:attention"],
        ["student.py:values_first"],
        ["student.py:ignores", "--mask-means", "ignore"],
        ["student.py:Attention"],
        ["student.py:build()"],
        ["student.py:loss", "--as", "loss"],
        ["student.py:attention", "--tier", "strict", "--declare", "differentiable=no"],
        [
            *("student.py:window_mask", "--as", "mask", "--declare", "causal=yes"),
            *("--declare", "window=3", "--declare", "window_flag=window"),
        ],
    ],
    ids=" ".join,
)
def test_it_finds_and_calls_what_is_named(folder, capsys, arguments):
    status, printed, _ = check(capsys, *arguments)
    assert printed.startswith(f"{arguments[0]} as ")
    assert status == ("strict" in arguments)  # -inf alone does not bear NaN in padding


@pytest.mark.parametrize(
    "name",
    [
        "torch.nn.functional:scaled_dot_product_attention",
        "minitransformer:scaled_dot_product_attention",
        "torch.nn:MultiheadAttention",
    ],
)
def test_the_best_known_subjects_work_as_they_are(capsys, name):
    status, printed, _ = check(capsys, name)
    assert "forbidden_keys_get_exactly_zero" in printed
    assert status == 0


def test_a_failure_has_status_1_and_is_told_with_its_cause(folder, capsys):
    status, printed, errors = check(capsys, "student.py:after_softmax")
    assert status == 1
    assert "likely bug: mask after the softmax" in printed
    assert errors == ""


def test_a_failure_stands_beside_the_change_on_github(folder, capsys, monkeypatch):
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    assert main(["check", "student.py:after_softmax", "--json"]) == 1
    told = capsys.readouterr()
    failed = json.loads(told.out)["failed"]
    lines = [line for line in told.err.splitlines() if line.startswith("::error ")]
    assert len(lines) == len(failed)
    assert lines[0].startswith(
        f"::error title=mask checks of student.py:after_softmax::{failed[0]}: "
    )
    assert main(["check", "student.py:attention"]) == 0
    assert "::error" not in capsys.readouterr().err


def test_it_is_asked_whether_it_takes_something_else(folder, capsys):
    assert main(["check", "student.py:ignores"]) == 1
    said = capsys.readouterr().out
    assert said.index("with mask_means='ignore' all 19 core checks pass") < said.index(
        "diagnosis: "
    )
    assert main(["check", "student.py:ignores", "--mask-means", "ignore"]) == 0


def test_a_layer_is_an_encoder_of_embeddings(folder, capsys):
    """Its mask is found by its name, and its gradients are asked for."""
    status, said, _ = check(capsys, "student.py:Layer", "--as", "layer")
    assert status == 0
    assert "✓ parameter_gradients_do_not_depend_on_padding" in said
    status, said, _ = check(capsys, "student.py:Forgetful", "--as", "layer")
    assert status == 1
    assert "padding mask never used (encoder)" in said
    assert "d_model" in check(capsys, "--list", "--as", "layer")[1]


def test_a_class_that_must_be_built_is_offered_what_is_known(capsys):
    assert main(["check", "torch.nn:TransformerDecoderLayer"]) == 2
    said = capsys.readouterr().err
    assert "def build(): return TransformerDecoderLayer(...)" in said
    assert "Of torch these can be checked as they are: torch.nn:TransformerEncoder" in said


def test_json_is_all_that_is_printed(folder, capsys):
    (folder / "loud.py").write_text("print('hello')\n" + STUDENT)
    status, printed, errors = check(capsys, "loud.py:after_softmax", "--json")
    assert status == 1
    assert json.loads(printed)["likely"] == ["mask after the softmax"]
    assert errors == "hello\n"


# ---- what is refused -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "SUBJECT is missing: package.module:function or file.py:function"),
        (["student.py"], "expected package.module:function or file.py:function, got 'student.py'"),
        (["student.py"], "it has attention, values_first"),
        (["studnet.py:attention"], "studnet.py: no such file; did you mean student.py?"),
        (
            ["student.py:atention"],
            "student.py has no 'atention'; did you mean attention or Attention?",
        ),
        (["student.py:number"], "student.py:number is not callable: it is of type int"),
        (["student.py:Sized"], "check student.py:build()"),
        (["student.py:one_tensor"], "it is called with (query, key, value, mask): wrap it"),
        (["student.py:raises"], "could not be checked: It raised RuntimeError: sizes do not fit"),
        (["nowhere.module:f"], "ModuleNotFoundError: No module named 'nowhere'"),
        (["broken.py:f"], "broken.py:2: '(' was never closed"),
        (["divides.py:f"], "ZeroDivisionError: division by zero"),
        (["divides.py:f"], "divides.py, line 1)"),
        (["exits.py:f"], "called exit(): put the main part under"),
        (["student.py:attention", "--declare", "layout"], "--declare expects NAME=VALUE"),
        (["student.py:attention", "--declare", "dead_row=any"], "did you mean dead_rows?"),
        (["student.py:attention", "--declare", "same_length=si"], "must be yes or no, got 'si'"),
        (
            ["student.py:loss", "--as", "loss", "--declare", "label_smoothing=much"],
            "label_smoothing must be a number, got 'much'",
        ),
        (["student.py:attention", "--layout", "b q"], "layout must name t and d"),
        (["student.py:attention", "--dtypes", "float31"], "expected a torch dtype"),
        (
            ["--museum", "no such bug"],
            "the museum has no 'no such bug'; `minitransformer check --museum` lists what it has\n",
        ),
    ],
)
def test_what_cannot_be_checked_has_status_2_and_a_reason(folder, capsys, arguments, words):
    (folder / "broken.py").write_text("x = 1\ny = (\n")
    (folder / "divides.py").write_text("1 / 0\n")
    (folder / "exits.py").write_text("raise SystemExit(0)\n")
    status, _, errors = check(capsys, *arguments)
    assert status == 2
    assert words in errors
    assert errors.startswith("minitransformer: error: ")
    assert "Traceback" not in errors


def test_a_file_named_like_a_library_does_not_replace_it(folder, capsys):
    (folder / "random.py").write_text(STUDENT)
    import random

    assert check(capsys, "random.py:attention")[0] == 0
    assert sys.modules["random"] is random


# ---- help, lists, the museum ---------------------------------------------------------------------


def test_the_help_shows_a_whole_example_that_passes(folder, capsys):
    with pytest.raises(SystemExit):
        main(["check", "--help"])
    words = capsys.readouterr().out
    code = words[words.index("    def attention(") : words.index("    minitransformer check att")]
    lines = [line[4:].rstrip() for line in code.splitlines()]
    (folder / "attention.py").write_text("\n".join(lines))
    assert check(capsys, "attention.py:attention")[0] == 0
    for kind in SUBJECTS:
        assert f"--as {kind}" in words
    assert max(map(len, words.splitlines())) <= 100


@pytest.mark.parametrize("kind", CHECKS)
def test_the_list_shows_checks_and_declarations(capsys, kind):
    status, printed, _ = check(capsys, "--list", "--as", kind)
    assert status == 0
    for one in CHECKS[kind].values():
        assert one.name in printed
    for field in fields(SUBJECTS[kind]):
        assert field.name in ("fn", "name") or field.name in printed


def test_the_museum_is_printed_and_drawn(capsys, tmp_path):
    pytest.importorskip("matplotlib")
    name = "mask after the softmax"
    status, printed, _ = check(capsys, "--museum", name, "--out", str(tmp_path / "pictures"))
    assert status == 0
    assert printed.startswith(name)
    assert "weights_sum_to_one" in printed
    (picture,) = (tmp_path / "pictures").iterdir()
    assert picture.name == "mask_after_the_softmax.png"
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_the_museum_is_json_too(capsys):
    status, printed, _ = check(capsys, "--museum", "--json", "--as", "loss")
    data = json.loads(printed)
    assert status == 0
    assert [one["name"] for one in data] == [one.name for one in bugs("loss")]
    assert all(set(one["caught by"]) <= set(one["failed"]) for one in data)


def test_the_command_runs_in_a_process_of_its_own(folder):
    """As a student types it: in seconds, from a file that is in no package."""
    run = subprocess.run(
        [sys.executable, "-m", "minitransformer", "check", "student.py:after_softmax"],
        capture_output=True,
        text=True,
        timeout=120,
        cwd=folder,
    )
    assert run.returncode == 1
    assert "likely bug: mask after the softmax" in run.stdout
    assert run.stderr == ""
