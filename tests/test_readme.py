"""README.md and docs/ are true: their code is ours, their commands run, the tree is the tree."""

import ast
import doctest
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from minitransformer.checks import check_attention
from minitransformer.checks.engine.bugs import bugs
from minitransformer.exercises import EXERCISES

ROOT = Path(__file__).parent.parent
README, TRAINING, PRETRAINED, ARCHITECTURE, BENCHMARK, INSTRUCTORS = (
    (ROOT / name).read_text(encoding="utf-8")
    for name in (
        "README.md",
        "docs/training.md",
        "docs/pretrained.md",
        "docs/architecture.md",
        "notebooks/benchmark.md",
        "notebooks/INSTRUCTORS.md",
    )
)
BLOCKS = "\n".join(re.findall(r"```bash\n(.*?)```", README + TRAINING, re.DOTALL))
COMMANDS = BLOCKS.replace("\\\n", " ").splitlines()


def test_the_heart_is_the_heart():
    (heart,) = re.findall(r"## The heart\n\n```python\n(.*?)```", ARCHITECTURE, re.DOTALL)
    assert heart in (ROOT / "minitransformer" / "attention.py").read_text(encoding="utf-8")


@pytest.mark.parametrize("page", [README, PRETRAINED], ids=["README", "pretrained"])
def test_a_session_prints_what_it_says(page):
    if page is PRETRAINED:
        pytest.importorskip("tokenizers")
    sessions = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    examples = "\n".join(block for block in sessions if block.startswith(">>>"))
    test = doctest.DocTestParser().get_doctest(examples, {}, "session", None, 0)
    assert len(test.examples) > 5
    assert doctest.DocTestRunner().run(test).failed == 0


def test_the_tree_is_the_tree():
    (tree,) = re.findall(r"```\n(minitransformer/\n.*?)```", ARCHITECTURE, re.DOTALL)
    written, folders = {}, [""]
    for line in tree.splitlines()[1:]:
        indent, name, says = re.fullmatch(r"( *)(\S+) +(\S.*)", line).groups()
        folders = folders[: max(len(indent) // 2, 1)]
        if name.endswith("/") and indent:
            folders.append(folders[-1] + name)
            written[f"{folders[-1]}__init__.py"] = says
        elif name.endswith(".py"):
            written[folders[-1] + name] = says
    package = ROOT / "minitransformer"
    modules = {path.relative_to(package).as_posix(): path for path in package.rglob("*.py")}
    assert written.keys() == modules.keys() - {"__init__.py"}
    for name, says in written.items():
        assert says == ast.get_docstring(ast.parse(modules[name].read_text())).splitlines()[0]


def test_every_file_the_readme_points_to_exists():
    targets = re.findall(r"\]\(([^)]+)\)", README)
    assert targets
    assert all((ROOT / target).exists() for target in targets)


def test_the_report_in_the_readme_is_the_report():
    (begins,) = re.findall(r"begins so:\n\n```\n(.*?)```", README, re.DOTALL)
    every = {one.name: one for one in bugs()}
    report = str(check_attention(every["mask after the softmax"].subject()))
    assert report.startswith(begins.rstrip())
    assert f"one of the {len(every)} broken ones" in README


def test_the_feedback_in_the_readme_is_the_feedback():
    (begins,) = re.findall(r"alone reads:\n\n```\n(.*?)```", README, re.DOTALL)
    feedback = EXERCISES["padding_mask"].run(lambda mask: (mask != 0)[:, None, None, :])
    assert str(feedback).startswith(begins.rstrip())
    assert f"{len(EXERCISES)} exercises build" in " ".join(README.split())
    assert sum(len(one.mistakes) for one in EXERCISES.values()) > 800  # "more than 800"
    assert f"all {len(EXERCISES)} with their points" in INSTRUCTORS


def test_the_worst_ratio_in_the_readme_is_the_worst_of_the_benchmark():
    (table,) = re.findall(r"## In short\n\n(.*?)\n\n", BENCHMARK, re.DOTALL)
    (worst,) = re.findall(r"worst measured is \*\*([\d.]+) ×\*\*", README)
    machines = [" ".join(row.split("|")[4:]) for row in table.splitlines()[2:]]
    ratios = [float(ratio) for ratio in re.findall(r"([\d.]+) ×", " ".join(machines))]
    assert len(ratios) > 40
    assert min(ratios) == float(worst)


def test_the_two_commands_are_those_that_ci_runs():
    installs = [command for command in COMMANDS if "pip install" in command]
    assert installs == [
        'pip install -e ".[plot]" && minitransformer train',
        'pip install -e ".[dev]" && pytest -n auto',
    ]
    assert installs[1].replace(" && ", " --quiet && ") in (ROOT / ".ci" / "run").read_text()


def test_the_numbers_of_the_main_job_are_its_numbers():
    babel = pytest.importorskip("babel")
    from minitransformer import Config, EncoderDecoder
    from minitransformer.data import dates
    from minitransformer.training.tasks import DatesTask

    if f"Babel {babel.__version__.removesuffix('.0')}," not in TRAINING.replace("\n", " "):
        pytest.skip(f"Babel {babel.__version__} has other patterns than those of the page")

    defaults = DatesTask().defaults
    steps, rate = defaults["steps"], defaults["learning_rate"]
    numbers = {name: defaults[name] for name in ("d_model", "num_layers", "max_length")}
    model = EncoderDecoder(Config(len(DatesTask().vocabulary), **numbers))
    parameters = sum(parameter.numel() for parameter in model.parameters())
    patterns = sum(len(dates._patterns(locale)) for locale in dates.LOCALES)
    for fact in (
        f"{parameters:,} parameters",
        f"{len(dates.LOCALES)} locales",
        f"{patterns} patterns",
        f"{len(dates.held_out_days()):,} days",
        f"{steps:,} steps",
        f"learning rate of {rate}",
        f"width {model.config.d_model}, {model.config.num_heads} heads",
    ):
        assert fact in " ".join(TRAINING.split())
    assert f"reads dates in {len(dates.LOCALES)} locales" in README


def test_the_least_exact_match_in_the_readme_is_that_of_the_table():
    found = [float(share) for share in re.findall(r"^\| \d \| ([\d.]+)% \|", TRAINING, re.M)]
    (least,) = re.findall(r"([\d.]+) % or more of 2,000 held-out dates with each of\nthree", README)
    assert len(found) == 3
    assert min(found) == float(least)


ATTENTION = """
def attention(query, key, value, mask):
    scores = query @ key.mT / query.shape[-1] ** 0.5
    return scores.masked_fill(~mask, float("-inf")).softmax(dim=-1) @ value
"""


def run(command, folder, timeout=900):
    """The command as a reader would type it, with this Python's scripts first on the PATH."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    result = subprocess.run(
        command,
        shell=True,
        cwd=folder,
        env={**os.environ, "PATH": path, "BROWSER": "true"},  # which opens nothing, and is content
        capture_output=True,
        text=True,
        timeout=timeout,
    )
    assert result.returncode == 0, result.stderr[-2000:]
    return result.stdout


@pytest.mark.slow
def test_the_main_job_reads_dates_and_pays_no_attention_to_padding(tmp_path):
    """Every command of the README and of docs/training.md, but for the installations."""
    pytest.importorskip("babel")
    (tmp_path / "FILE.tsv").write_text("".join(f"a{i}\tb{i}\n" for i in range(40)))
    labels = [f"{'odd' if i % 2 else 'even'}\tnumber {i}" for i in range(40)]
    (tmp_path / "LABELS.tsv").write_text("\n".join(labels))
    (tmp_path / "FILE.txt").write_text("\n\n".join(f"Paragraph {i}." for i in range(40)))
    (tmp_path / "attention.py").write_text(ATTENTION)
    for command in COMMANDS:
        if "pytest" in command or not command.strip():
            continue
        if "--nproc-per-node gpu" in command:  # which must be there, and other machines
            continue
        command = command.partition("&& ")[2] or command
        if "train" in command and "--data" in command:  # a small file needs few steps
            command = command.replace("--data", "--steps 20 --data")
        if command.startswith("torchrun"):  # the same training again
            command = command.replace("train", "train --steps 20", 1)
        printed = run(command, tmp_path)
        if command == "minitransformer train":
            exact = re.search(r"exact match on 2,000 held-out examples: ([\d.]+)%", printed)
            assert float(exact.group(1)) >= 99.5
            assert "heads and held-out examples: 0.0\n" in printed
        if command.startswith("minitransformer generate runs/dates"):
            assert printed.splitlines() == 3 * ["2025-06-03"]
        if command.startswith("minitransformer show"):
            assert len(printed.splitlines()) == (1 if "--html" in command else 6)
