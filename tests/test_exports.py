"""The instructor's round trip: every tool gives the same scores for the same submissions."""

import copy
import json
import os
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

from minitransformer.data.files import InputError
from minitransformer.exercises import EXERCISES, check
from minitransformer.exercises.export import export
from minitransformer.exercises.mistakes import edited
from minitransformer.exercises.variants import variants

NAMES = ["softmax", "causal_mask", "find_the_bug"]
EDITS = {
    "blank": lambda one: None,
    "right": lambda one: one.source,
    "wrong": lambda one: one.source.replace(".tril(num_keys - num_queries)", ".tril()").replace(
        "scores.amax(dim=-1, keepdim=True)", "scores.max()"
    ),
    "borrowed": lambda one: (
        f"def {one.name}(*given):\n    from minitransformer.exercises import EXERCISES\n"
        f'    return EXERCISES["{one.name}"].solution(*given)\n'
    ),
}
pytestmark = pytest.mark.slow


def ours(edit) -> int:
    """What `minitransformer exercise check` gives."""
    total = 0
    for name in NAMES:
        source = edit(EXERCISES[name])
        if source is not None:
            space: dict = {}
            exec(source, space)
            total += check(name, space[name]).score
    return total


def submissions(notebook, folder: Path) -> dict[str, Path]:
    """The student's notebook, filled in by each student."""
    import nbformat

    written = {}
    for student, edit in EDITS.items():
        filled = copy.deepcopy(notebook)
        for cell in filled.cells:
            for name in NAMES:
                if cell.cell_type == "code" and f"def {name}(" in cell.source:
                    cell.source = edit(EXERCISES[name]) or cell.source
        written[student] = folder / student / "exercises" / "exercises.ipynb"
        written[student].parent.mkdir(parents=True)
        nbformat.write(filled, written[student])
    return written


def run(*command: str, folder: Path) -> str:
    done = subprocess.run(
        [sys.executable, "-m", *command], cwd=folder, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def test_nbgrader_gives_the_same_scores(tmp_path):
    pytest.importorskip("nbgrader")
    import nbformat

    export(NAMES, "nbgrader", tmp_path)
    run("nbgrader", "generate_assignment", "exercises", folder=tmp_path)
    released = nbformat.read(tmp_path / "release" / "exercises" / "exercises.ipynb", 4)
    text = "\n".join(cell.source for cell in released.cells)
    assert "amax" not in text
    assert "20_260" not in text  # the hidden test
    assert "weights.masked_fill(~mask, 0.0)" in text  # the broken code to begin from
    submissions(released, tmp_path / "submitted")
    run("nbgrader", "autograde", "exercises", folder=tmp_path)
    from nbgrader.api import Gradebook

    with Gradebook(f"sqlite:///{tmp_path / 'gradebook.db'}") as book:
        for student, edit in EDITS.items():
            found = book.find_submission("exercises", student)
            assert found.score == ours(edit)
            assert found.max_score == sum(EXERCISES[name].points for name in NAMES)


def test_otter_gives_the_same_scores(tmp_path):
    pytest.importorskip("otter")
    import nbformat

    export(NAMES, "otter", tmp_path)
    run("otter", "assign", "--no-run-tests", "exercises.ipynb", "dist", folder=tmp_path)
    released = nbformat.read(tmp_path / "dist" / "student" / "exercises.ipynb", 4)
    assert "amax" not in "\n".join(cell.source for cell in released.cells)
    (tests,) = (tmp_path / "dist" / "autograder").glob("*.zip")
    for student, path in submissions(released, tmp_path / "submitted").items():
        out = tmp_path / f"out_{student}"
        out.mkdir()
        command = ("otter", "run", "-a", str(tests), "-o", str(out), "--no-logo", path.name)
        run(*command, folder=path.parent)
        results = json.loads((out / "results.json").read_text())
        score = sum(test.get("score") or 0 for test in results["tests"])
        assert score == ours(EDITS[student])


def test_the_scores_are_what_they_should_be():
    assert [ours(edit) for edit in EDITS.values()] == [0, 16, 12, 0]


def test_the_gradescope_zip_brings_what_it_installs(tmp_path):
    """No package of this name is asked of an index, where anyone may have put one."""
    export(NAMES, "gradescope", tmp_path / "out")
    with zipfile.ZipFile(tmp_path / "out" / "autograder.zip") as archive:
        archive.extractall(tmp_path / "source")
    (wheel,) = (tmp_path / "source").glob("*.whl")
    setup = (tmp_path / "source" / "setup.sh").read_text()
    assert f'"/autograder/source/{wheel.name}[grade]"' in setup
    pinned = dict(x.split("==") for x in (tmp_path / "source" / "versions.txt").read_text().split())
    assert {"torch", "einops", "matplotlib"} <= pinned.keys()
    assert "+" not in "".join(pinned.values())
    options = ["--no-deps", "--no-index", "--target", str(tmp_path / "there")]
    run("pip", "install", "--quiet", *options, str(wheel), folder=tmp_path)
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "there")}
    script = "import minitransformer; print(minitransformer.__file__)"
    command = [sys.executable, "-c", script]
    where = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert where.stdout.strip() == str(tmp_path / "there" / "minitransformer" / "__init__.py")
    again = tmp_path / "again"
    export(NAMES, "gradescope", again)
    first = (tmp_path / "out" / "autograder.zip").read_bytes()
    assert (again / "autograder.zip").read_bytes() == first


@pytest.mark.parametrize("edit", EDITS)
def test_gradescopes_autograder_gives_the_same_scores(edit, tmp_path):
    export(NAMES, "gradescope", tmp_path / "out")
    with zipfile.ZipFile(tmp_path / "out" / "autograder.zip") as archive:
        archive.extractall(tmp_path / "source")
    (tmp_path / "submission").mkdir()
    sources = [EDITS[edit](EXERCISES[name]) or EXERCISES[name].stub for name in NAMES]
    (tmp_path / "submission" / "exercises.py").write_text("\n\n".join(sources))
    command = Path(sys.executable).with_name("minitransformer")
    environment = {**os.environ, "AUTOGRADER": str(tmp_path), "MINITRANSFORMER": str(command)}
    script = tmp_path / "source" / "run_autograder"
    subprocess.run(["bash", str(script)], env=environment, check=True, capture_output=True)
    results = json.loads((tmp_path / "results" / "results.json").read_text())
    assert results["score"] == ours(EDITS[edit])


def test_an_autograder_that_fails_says_so(tmp_path):
    export(NAMES, "gradescope", tmp_path / "out")
    with zipfile.ZipFile(tmp_path / "out" / "autograder.zip") as archive:
        archive.extractall(tmp_path / "source")
    (tmp_path / "submission").mkdir()
    environment = {**os.environ, "AUTOGRADER": str(tmp_path), "MINITRANSFORMER": "false"}
    script = tmp_path / "source" / "run_autograder"
    subprocess.run(["bash", str(script)], env=environment, check=True, capture_output=True)
    results = json.loads((tmp_path / "results" / "results.json").read_text())
    assert results["score"] == 0
    assert "no fault of the submission" in results["output"]


RIGHT = {  # written otherwise than the solutions
    "softmax": """
def softmax(scores):
    powers = torch.exp(scores - scores.max(-1, keepdim=True).values)
    return powers / powers.sum(-1, keepdim=True)
""",
    "causal_mask": """
def causal_mask(num_queries, num_keys):
    ages = torch.arange(num_keys) - torch.arange(num_queries)[:, None]
    return (ages <= num_keys - num_queries)[None, None]
""",
    "padding_mask": """
def padding_mask(attention_mask):
    real = attention_mask.bool()
    return (real[:, :, None] & real[:, None])[:, None]
""",
}
TELLS = """
import json, sys
from minitransformer.exercises import check
told = []
for name, source in json.loads(sys.stdin.read()):
    space = {}
    exec("import torch\\n" + source, space)
    feedback = check(name, space[name], seed=int(sys.argv[1]))
    told.append([feedback.score, str(feedback)])
print(json.dumps(told))
"""


@pytest.fixture(scope="module")
def students(tmp_path_factory):
    """What students install: a folder with the package, as pip leaves it."""
    folder = tmp_path_factory.mktemp("students")
    export(list(RIGHT), "package", folder / "out", hints=2)
    (wheel,) = (folder / "out").glob("*.whl")
    options = ["--no-deps", "--no-index", "--target", str(folder / "there")]
    run("pip", "install", "--quiet", *options, str(wheel), folder=folder)
    return folder / "there"


def in_package(folder: Path, *command: str, given: str = "") -> subprocess.CompletedProcess:
    environment = {**os.environ, "PYTHONPATH": str(folder)}
    return subprocess.run(
        [sys.executable, *command],
        cwd=folder,
        env=environment,
        input=given,
        capture_output=True,
        text=True,
    )


def test_the_package_for_students_says_what_this_one_says(students):
    answers = list(RIGHT.items())
    for name in RIGHT:
        one = EXERCISES[name]
        answers += [(name, one.source), (name, one.stub)]
        answers += [(name, edited(one.source, m.edits[0])) for m in one.mistakes[:4]]
        slips = [source for _, source in variants(one.source)]
        answers += [(name, one.source.split("def ")[0] + source) for source in slips[::9]]
    here = in_package(Path(__file__).parents[1], "-c", TELLS, "0", given=json.dumps(answers))
    there = in_package(students, "-c", TELLS, "7", given=json.dumps(answers))
    assert there.returncode == 0, there.stderr[-2000:]
    told = json.loads(there.stdout)
    assert told == json.loads(here.stdout)
    full = [said for score, said in told if "all right" in said.splitlines()[0]]
    assert len(full) >= 6
    assert len(told) - len(full) >= 20


def test_the_package_for_students_holds_no_solution_and_says_so(students):
    stored = students / "minitransformer" / "exercises" / "stored_answers"
    assert {path.stem for path in stored.iterdir()} == set(RIGHT)
    for path in [*stored.iterdir(), *(stored.parent / "chapters").glob("*.py")]:
        text = path.read_bytes().decode("utf-8", "replace")
        for line in ("scores - scores.amax(", "ones.tril(", "real[:, None, :, None]"):
            assert line not in text, path.name
    listed = in_package(students, "-m", "minitransformer", "exercise", "list").stdout
    assert [name for name in EXERCISES if f" {name} " in listed] == sorted(
        RIGHT, key=list(EXERCISES).index
    )
    command = ("-c", "from minitransformer.exercises import EXERCISES as E; E['softmax'].source")
    assert "the solution of softmax is not in this package" in in_package(students, *command).stderr
    third = ("-m", "minitransformer", "exercise", "hint", "softmax", "--step", "3")
    assert "there are hints 1 to 2" in in_package(students, *third).stderr


def test_students_start_check_and_grade_with_their_package(students, tmp_path):
    def ours(*words: str) -> subprocess.CompletedProcess:
        environment = {**os.environ, "PYTHONPATH": str(students)}
        command = [sys.executable, "-m", "minitransformer", "exercise", *words]
        return subprocess.run(
            command, cwd=tmp_path, env=environment, capture_output=True, text=True
        )

    assert ours("start", "softmax").returncode == 0
    assert EXERCISES["softmax"].stub in (tmp_path / "softmax.py").read_text()
    assert "not written yet" in ours("check", "softmax").stdout
    (tmp_path / "all" / "ann").mkdir(parents=True)
    for name, source in RIGHT.items():
        (tmp_path / f"{name}.py").write_text("import torch\n" + source)
        (tmp_path / "all" / "ann" / f"{name}.py").write_text("import torch\n" + source)
        assert "all right" in ours("check", name).stdout
    points = sum(EXERCISES[name].points for name in RIGHT)
    graded = ours("grade", "all", "--out", "out", "--trust", "--jobs", "1")
    assert f"{points} of {points}" in graded.stdout, graded.stderr[-2000:]


def torch_wheel(folder: Path) -> Path:
    """A wheel of this name that holds nothing: torch itself is lent."""
    path = folder / "torch-2.99.0+cpu-cp311-cp311-manylinux_2_28_x86_64.whl"
    path = path.with_name(path.name.replace("cp311", f"cp3{sys.version_info.minor}"))
    about = "torch-2.99.0+cpu.dist-info"
    tag = path.stem.split("-", 2)[2]
    with zipfile.ZipFile(path, "w") as wheel:
        wheel.writestr(
            f"{about}/METADATA", "Metadata-Version: 2.1\nName: torch\nVersion: 2.99.0+cpu\n"
        )
        wheel.writestr(
            f"{about}/WHEEL", f"Wheel-Version: 1.0\nRoot-Is-Purelib: false\nTag: {tag}\n"
        )
        wheel.writestr(f"{about}/RECORD", "")
    return path


def test_the_gradescope_zip_may_bring_a_wheel_of_torch(tmp_path):
    wheel = torch_wheel(tmp_path)
    assert "large" not in export(NAMES, "gradescope", tmp_path / "with", torch_wheel=wheel)
    assert "the image will be large" in export(NAMES, "gradescope", tmp_path / "without")
    with zipfile.ZipFile(tmp_path / "with" / "autograder.zip") as archive:
        assert archive.read(wheel.name) == wheel.read_bytes()
        assert "torch==" not in archive.read("versions.txt").decode()
        assert f'"/autograder/source/{wheel.name}"' in archive.read("setup.sh").decode()
    (tmp_path / "other").mkdir()
    for name in ("torch-2.13.0-cp311-cp311-win_amd64.whl", "einops-0.8.0-linux.whl", wheel.name):
        other = tmp_path / "other" / name  # the last of the right name, with no zip in it
        other.write_text("")
        with pytest.raises(InputError, match="expected a wheel of torch for Linux"):
            export(NAMES, "gradescope", tmp_path / f"to {name}", torch_wheel=other)
    with pytest.raises(ValueError, match="goes into the zip of gradescope, not of otter"):
        export(NAMES, "otter", tmp_path / "otter", torch_wheel=wheel)


def clean_root(autograder: Path, *lent: str) -> list[str]:
    """bwrap's words for a root with the system's programs, Python and these, and nothing else."""
    words = ["bwrap", "--unshare-all", "--tmpfs", "/", "--dev", "/dev", "--proc", "/proc"]
    words += ["--dir", "/opt", "--dir", "/tmp", "--bind", str(autograder), "/autograder"]
    for place in ("/bin", "/lib", "/lib64", "/sbin"):
        if Path(place).is_symlink():
            words += ["--symlink", os.readlink(place), place]
        elif Path(place).exists():
            words += ["--ro-bind", place, place]
    for place in ("/usr", "/etc", sys.base_prefix, *lent):
        words += ["--ro-bind", place, place]
    return [*words, "--clearenv", "--setenv", "HOME", "/tmp"]


def bwrap_works() -> bool:
    command = ["bwrap", "--unshare-all", "--ro-bind", "/", "/", "true"]
    return (
        shutil.which("bwrap") is not None
        and not subprocess.run(command, capture_output=True).returncode
    )


@pytest.mark.skipif(not bwrap_works(), reason="needs bwrap (Debian's bubblewrap), allowed to run")
def test_setup_and_autograder_run_in_a_clean_root(tmp_path):
    """But for Debian's packages and for what the wheels need, which are lent: there is no index."""
    export(NAMES, "gradescope", tmp_path / "out", torch_wheel=torch_wheel(tmp_path))
    root = tmp_path / "autograder"
    with zipfile.ZipFile(tmp_path / "out" / "autograder.zip") as archive:
        archive.extractall(root / "source")
    (root / "submission").mkdir()
    (root / "submission" / "answers.py").write_text(
        "\n\n".join(EXERCISES[name].source for name in NAMES)
    )
    (root / "bin").mkdir()
    (root / "bin" / "apt-get").write_text("#!/bin/sh\necho apt-get $* >> /autograder/asked\n")
    (root / "bin" / "apt-get").chmod(0o755)
    site = sysconfig.get_path("purelib")
    script = (
        "set -e; export PIP_CONFIG_FILE=/dev/null PIP_NO_INDEX=1 PIP_NO_DEPS=1; "
        "bash /autograder/source/setup.sh; "
        f"echo {site} > $(echo /opt/venv/lib/python3*/site-packages)/lent.pth; "
        "bash /autograder/source/run_autograder; "
        "/opt/venv/bin/pip list --format freeze > /autograder/installed; "
        "/opt/venv/bin/python -c 'import minitransformer as m; "
        "print(m.__file__)' > /autograder/place"
    )
    path = f"/autograder/bin:{sys.base_prefix}/bin:/usr/bin:/bin"
    command = [*clean_root(root, site), "--setenv", "PATH", path, "bash", "-c", script]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "install -y python3-pip python3-venv bubblewrap" in (root / "asked").read_text()
    assert "torch==2.99.0+cpu" in (root / "installed").read_text()
    assert (root / "place").read_text().startswith("/opt/venv/lib/")
    results = json.loads((root / "results" / "results.json").read_text())
    assert results["score"] == sum(EXERCISES[name].points for name in NAMES)
