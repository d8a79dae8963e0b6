"""What strangers find beside the code: how to cite, to report, to install, and what CI runs."""

import re
import tomllib
from pathlib import Path

import pytest

import minitransformer

yaml = pytest.importorskip("yaml")
ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
FORMS = ["check.yml", "museum.yml"]


def read(path: str) -> dict:
    return yaml.safe_load((ROOT / path).read_text(encoding="utf-8"))


def test_it_is_cited_as_it_is():
    cited = read("CITATION.cff")
    assert cited["version"] == minitransformer.__version__
    assert [author["name"] for author in cited["authors"]] == ["the minitransformer contributors"]
    assert cited["license"] == PROJECT["license"]


@pytest.mark.parametrize("form", FORMS)
def test_an_issue_form_asks_each_question_once(form):
    asked = read(f".github/ISSUE_TEMPLATE/{form}")
    assert asked["name"]
    assert asked["description"]
    names = [field["id"] for field in asked["body"]]
    assert len(set(names)) == len(names) > 3
    assert all(field["attributes"]["label"] for field in asked["body"])
    assert any(field.get("validations", {}).get("required") for field in asked["body"])


def test_the_workflow_runs_what_is_here():
    workflow = read(".github/workflows/tests.yml")
    steps = [step for job in workflow["jobs"].values() for step in job["steps"]]
    commands = "\n".join(step["run"] for step in steps if "run" in step)
    files = re.findall(r"(?:scripts|tests)/\w+\.py", commands)
    assert len(files) > 4
    assert all((ROOT / file).is_file() for file in files)
    extras = ",".join(re.findall(r"\.\[([\w,]+)\]", commands)).split(",")
    assert set(extras) <= PROJECT["optional-dependencies"].keys()
    promised = PROJECT["requires-python"].removeprefix(">=")
    assert f"'{promised}'" in steps[1]["with"]["python-version"]


def test_a_hook_needs_nothing_from_elsewhere():
    repos = read(".pre-commit-config.yaml")["repos"]
    assert [repo["repo"] for repo in repos] == ["local"]
    assert all(hook["language"] == "system" for hook in repos[0]["hooks"])


def test_fonts_are_installed_by_who_asks_for_them_and_pinned():
    extras = PROJECT["optional-dependencies"]
    assert all("==" in line for line in extras["fonts"])
    assert not any("noto" in line for line in extras["plot"])


def test_no_address_is_named_before_it_is_ours():
    """`[project.urls]` is where it is set; until then no file links to such a repository."""
    if "urls" in PROJECT:
        pytest.skip("it is set")
    named = re.compile(r"(github\.com/[\w.-]+|\bminitransformer)/minitransformer\b(?!/)")
    folders = ("docs", "notebooks", "scripts", "minitransformer", ".github")
    files = [
        *ROOT.glob("*.*"),
        *(path for folder in folders for path in ROOT.glob(f"{folder}/**/*")),
    ]
    for path in files:
        if path.suffix in (".md", ".py", ".ipynb", ".cff", ".yml", ".toml"):
            found = named.search(path.read_text(encoding="utf-8"))
            assert not found, f"{path}: {found}"
