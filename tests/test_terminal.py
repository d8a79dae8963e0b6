"""What a terminal can show: any encoding, no color where nobody asked for it, and pipes."""

import io
import os
import subprocess
import sys

import pytest

from minitransformer.cli.main import main

pytest.importorskip("matplotlib")
LEAKY = """
def attention(query, key, value, mask):
    \"\"\"Forgets its mask → 日.\"\"\"
    print("日")
    return (query @ key.mT).softmax(-1) @ value
"""
VERBS = ("train", "runs", "generate", "evaluate", "show", "export", "check", "exercise", "explore")
HELP = [[verb, "--help"] for verb in VERBS]
COMMANDS = {  # and how each ends
    "train --task pairs --data pairs.tsv --steps 2 --d-model 16 --out rün日"
    " --num-layers 1 --num-heads 1 --max-length 20": 0,  # small pictures
    "runs .": 0,
    "generate rün日 w→日": 0,
    "generate nö日 text": 2,
    "evaluate rün日": 0,
    "show rün日 w→日 --out pictures": 0,
    "show rün日 w→日 --html 日.html": 0,
    "explore --out explorer日.html": 0,
    "export rün日 hf日": 2,
    "train --task pairs --data nö日.tsv": 2,
    "check leaky.py:attention": 1,
    "check leaky.py:nö日": 2,
    "check --museum nö日": 2,
    "check --list": 0,
    "exercise list": 0,
    "exercise start padding_mask": 0,
    "exercise hint padding_mask": 0,
    "exercise check padding_mask": 1,
    "exercise progress": 0,
    "exercise start nö日": 2,
    "nö日": 2,
}


@pytest.mark.parametrize("encoding", ["ascii", "cp1252"])
def test_every_verb_prints_replacements_and_no_traceback(encoding, pairs, tmp_path, monkeypatch):
    """As under PYTHONIOENCODING=ascii, or on a terminal of Windows."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "leaky.py").write_text(LEAKY, encoding="utf-8")
    with open(pairs, encoding="utf-8") as file:
        (tmp_path / "pairs.tsv").write_text(file.read() + "日→\tä\n", encoding="utf-8")
    printed = ""
    for arguments, wanted in [(one, 0) for one in HELP] + [
        (line.split(), status) for line, status in COMMANDS.items()
    ]:
        streams = {name: io.BytesIO() for name in ("stdout", "stderr")}
        for name, stream in streams.items():
            monkeypatch.setattr(sys, name, io.TextIOWrapper(stream, encoding))
        try:
            status = main(arguments)
        except SystemExit as stop:
            status = stop.code
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        text = "".join(stream.getvalue().decode(encoding) for stream in streams.values())
        assert status == wanted, (arguments, text)
        assert "Traceback" not in text, arguments
        assert "\x1b" not in text, arguments
        printed += text
    assert "\\u65e5" in printed  # the replacement of a character that the terminal lacks


@pytest.mark.slow
def test_a_program_started_in_ascii_ends_well():
    """The real streams, before anything of ours has run; NO_COLOR, and into a pipe."""
    plain = {**os.environ, "PYTHONIOENCODING": "ascii", "NO_COLOR": "1"}
    command = [sys.executable, "-m", "minitransformer", "exercise", "start", "日"]
    run = subprocess.run(command, env=plain, capture_output=True, check=False)
    assert run.returncode == 2
    assert b"\\u65e5" in run.stderr
    assert b"Traceback" not in run.stderr
    assert b"\x1b" not in run.stdout + run.stderr
