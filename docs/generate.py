"""The pages that are made of the package: viewer, exercises, museum, API and commands."""

import ast
import importlib
import inspect
import os
import pkgutil
import re
import subprocess
import sys
from pathlib import Path

import torch

import minitransformer
from minitransformer import Config, EncoderDecoder, pad_pairs
from minitransformer.checks.engine.bugs import Bug, bugs
from minitransformer.checks.engine.subject import SUBJECTS
from minitransformer.cli.check import draw, report_of
from minitransformer.data.vocabulary import Vocabulary
from minitransformer.exercises import EXERCISES
from minitransformer.exercises.exercise import Exercise
from minitransformer.pages import attention_page

HERE = Path(__file__).parent
OUT = HERE / "generated"
PACKAGE = Path(minitransformer.__file__).parent
NOT_API = re.compile(r"cli|__main__|exercises\.chapters|checks\.\w+\.bugs")  # pages of their own


def generate(pictures: bool = True) -> None:
    """Write all into `docs/generated/`. `pictures`: draw the museum's, which takes a minute."""
    if pictures:
        attention = bugs("attention")
        draw(attention, {one.name: report_of(one) for one in attention}, OUT / "pictures")
    write("viewer.html", viewer())
    write("exercises.md", exercises())
    write("museum.md", museum())
    for kind in SUBJECTS:
        write(f"museum_{slug(kind)}.md", room(kind, bugs(kind)))
    write("commands.md", commands())
    topics = {name: text for name in packages() if (text := topic(name))}
    for name, text in topics.items():
        write(f"api_{slug(name)}.rst", text)
    write("api.md", api(list(topics)))


def write(name: str, text: str) -> None:
    """Only what changed, so that Sphinx reads only that again."""
    path = OUT / name
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.exists() or path.read_text(encoding="utf-8") != text:
        path.write_text(text, encoding="utf-8")


def slug(name: str) -> str:
    return "_".join(re.findall(r"[a-z0-9]+", name.lower()))


def contents(*pages: str) -> str:
    """The list of pages below this one, for the sidebar alone."""
    return "\n".join(["", "```{toctree}", ":hidden:", *pages, "```", ""])


def folded(title: str, code: str) -> str:
    return f"<details><summary>{title}</summary>\n\n```python\n{code.rstrip()}\n```\n\n</details>\n"


def first_line(docstring: str | None) -> str:
    return (docstring or "").strip().split("\n")[0]


def viewer() -> str:
    """The attention viewer on a model that has learned nothing yet."""
    texts = {"3 June 2025": "2025-06-03", "9 Feb 58": "2058-02-09"}
    vocabulary = Vocabulary("".join([*texts, *texts.values()]))
    sources, targets = (
        vocabulary.encode(list(side), add_special=False) for side in (texts, texts.values())
    )
    batch = pad_pairs(sources, targets, vocabulary.bos_id, vocabulary.eos_id)
    torch.manual_seed(0)
    return attention_page(
        EncoderDecoder(Config(len(vocabulary), d_model=32, num_layers=2, max_length=32)),
        *(batch.source_ids, batch.source_mask, batch.target_ids, batch.target_mask),
        names=vocabulary.names,
        texts=list(texts),
        title="An untrained encoder-decoder",
    )


# ---- exercises -----------------------------------------------------------------------------------


def exercises() -> str:
    points = sum(one.points for one in EXERCISES.values())
    parts = [
        "# Exercises",
        f"{len(EXERCISES)} exercises, {points} points. Each asks for one function; "
        "`minitransformer exercise start NAME` writes its file, `check` says what is wrong, "
        "and `hint` helps in three steps. They stand at the end of their chapters, too.",
    ]
    for source in sorted((HERE.parent / "notebooks").glob("[0-9]*.py")):
        text = source.read_text(encoding="utf-8")
        names = re.findall(r"<!-- exercise: (\w+) -->", text)
        (title,) = re.findall(r"^# # (.*)", text, re.MULTILINE)
        if names:
            parts.append(f"## [{title}](../../notebooks/{source.stem}.ipynb)")
            parts += [entry(EXERCISES[name]) for name in names]
    return "\n\n".join(parts) + "\n"


def entry(one: Exercise) -> str:
    """An exercise as its learner sees it: no solution, and no hint."""
    start = f"{one.about}\n\n`minitransformer exercise start {one.name}`"
    checks = "\n".join(f"- {aim.check.statement} ({aim.points})" for aim in one.aims)
    stub = folded("What you begin with", one.stub)
    return (
        f"### {one.title} ({one.points} points)\n\n{start}\n\n{stub}\n"
        f"<details><summary>What is checked, and its points</summary>\n\n{checks}\n\n</details>"
    )


# ---- the museum ----------------------------------------------------------------------------------


def museum() -> str:
    pages = {kind: f"museum_{slug(kind)}.md" for kind in SUBJECTS}
    lines = [
        "# The museum of mask bugs",
        "",
        f"{len(bugs())} broken implementations, most of them rebuilt from bugs in real code. Every "
        "check of the suite is shown to fail on one of them; a function that gives the same "
        'numbers as one gets its diagnosis. `minitransformer check --museum "NAME"` prints the '
        "report.",
        "",
        *(f"- [{kind}]({page}): {len(bugs(kind))} bugs" for kind, page in pages.items()),
    ]
    return "\n".join(lines) + "\n" + contents(*pages.values())


def room(kind: str, chosen: list[Bug]) -> str:
    """The bugs of one kind of subject."""
    called = ", ".join(SUBJECTS[kind].arguments)
    lines = [f"# Museum: {kind}", "", f"{len(chosen)} bugs. Called as `f({called})`.", ""]
    for one in chosen:
        picture = OUT / "pictures" / f"{slug(one.name)}.png"
        lines += [f"## {one.name}", "", one.story, "", f"**Diagnosis.** {one.diagnosis}", ""]
        if kind == "attention" and picture.exists():
            lines += [f"![The mask wanted beside the weights found](pictures/{picture.name})", ""]
        caught = ", ".join(f"`{check}`" for check in one.caught_by)
        lines += [f"Caught by {caught} ({one.tier}). Seen in: {one.source}", ""]
        lines += [folded("The code", source_of(one.implementation)), ""]
    return "\n".join(lines)


def source_of(implementation: object) -> str:
    """Without its decorators. A model that was put together from parts shows the broken one."""
    try:
        source = inspect.getsource(implementation)
    except OSError:
        source = inspect.getsource(implementation.__mro__[1])
    source = inspect.cleandoc(source)
    definition = ast.parse(source).body[0]
    return "\n".join(source.splitlines()[definition.lineno - 1 :])


# ---- reference -----------------------------------------------------------------------------------


def packages() -> list[str]:
    """The package and those inside it, which are the topics of the API."""
    inside = pkgutil.walk_packages([str(PACKAGE)], "minitransformer.")
    names = [one.name for one in inside if one.ispkg]
    return ["minitransformer", *(name for name in names if not NOT_API.search(name))]


def topic(package: str) -> str:
    """A page for a package and its modules. Empty where it has none of its own."""
    folder = Path(importlib.import_module(package).__file__ or "").parent
    names = [
        f"{package}.{one.name}" for one in pkgutil.iter_modules([str(folder)]) if not one.ispkg
    ]
    names = [name for name in names if not NOT_API.search(name) and _can_be_imported(name)]
    parts = [
        _heading(package.removeprefix("minitransformer."), "="),  # and what it defines itself
        f".. automodule:: {package}\n   :members:\n   :ignore-module-all:",
    ]
    for name in names:
        parts += [_heading(name.removeprefix("minitransformer."), "-")]
        parts += [f".. automodule:: {name}\n   :members:"]
    return "\n\n".join(parts) + "\n" if names else ""


def _can_be_imported(module: str) -> bool:
    """What needs a package that is not installed here, as Triton is on Linux only, is left out."""
    try:
        importlib.import_module(module)
    except ImportError:
        return False
    return True


def _heading(text: str, line: str) -> str:
    return f"{text}\n{line * len(text)}"


def api(topics: list[str]) -> str:
    lines = ["# API", "", "By topic; within a topic, a heading for each module.", ""]
    for name in topics:
        summary = first_line(importlib.import_module(name).__doc__)
        lines.append(f"- [{name}](api_{slug(name)}.rst): {summary}")
    return "\n".join(lines) + "\n" + contents(*(f"api_{slug(name)}" for name in topics))


def commands() -> str:
    """What `--help` says, verb by verb."""
    verbs = re.findall(r"^    (\w+) ", help_of(), re.MULTILINE)
    parts = ["# Commands", f"```text\n{help_of()}```"]
    for verb in verbs:
        parts.append(f"## minitransformer {verb}\n\n```text\n{help_of(verb)}```")
    return "\n\n".join(parts) + "\n"


def help_of(*verb: str) -> str:
    command = [sys.executable, "-m", "minitransformer", *verb, "--help"]
    plain = {**os.environ, "COLUMNS": "96", "NO_COLOR": "1", "PYTHONIOENCODING": "utf-8"}
    return subprocess.run(
        command, env=plain, capture_output=True, encoding="utf-8", check=True
    ).stdout
