"""The shape of the code: arrows point down, the heart is short, and the import is light."""

import ast
import importlib
import inspect
import subprocess
import sys
from pathlib import Path

import pytest

import minitransformer

PACKAGE = Path(minitransformer.__file__).parent
FILES = sorted(PACKAGE.rglob("*.py"))


def module_of(file: Path) -> str:
    """The level it belongs to: `training` for training/loop.py and training/__init__.py."""
    return file.relative_to(PACKAGE).with_suffix("").parts[0]


MODULES = {module_of(file) for file in FILES}

# A module may import what stands in a line above its own. The folders are one module each.
LEVELS = [
    ["contract", "cache", "linear"],
    ["config", "loss"],
    ["positions"],
    ["masks"],
    ["attention"],
    ["kernels"],
    ["layers"],
    ["embedding"],
    ["models"],
    ["classifier", "data"],
    ["inference", "pretrained"],
    ["pages"],
    ["training", "checks"],
    ["exercises"],
    ["grading"],
    ["cli"],
    ["__main__"],
]
HEART = ["masks", "attention", "layers", "models", "loss", "config", "contract", "cache"]
MAY_IMPORT = {
    module: {below for level in LEVELS[:height] for below in level}
    for height, level in enumerate(LEVELS)
    for module in level
}
MAY_IMPORT["cli"] |= {"__init__"}  # its version
MAY_IMPORT["visualize"] = set()  # tensors in, pictures out
MAY_IMPORT["diagrams"] = {"visualize"}
for module in ("training", "checks", "cli"):
    MAY_IMPORT[module] |= {"visualize"}


def imports_of(source: str) -> set[str]:
    """The modules of this package that a source imports, at the top or inside a function."""
    names = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports of the package are written in full"
            names += [f"{node.module}.{alias.name}" for alias in node.names]
    paths = [name.split(".") for name in names]
    # `import minitransformer` and `from minitransformer import pad` ask for the page on top of all.
    return {
        module if module in MODULES else "__init__"
        for package, module, *_ in ([*path, ""] for path in paths)
        if package == "minitransformer"
    }


def test_imports_are_found_wherever_they_stand():
    assert imports_of("import torch") == set()
    assert imports_of("from minitransformer.masks import pad") == {"masks"}
    assert imports_of("def f():\n    import minitransformer.training.loop") == {"training"}
    assert imports_of("from minitransformer import data, pad") == {"data", "__init__"}


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(PACKAGE)))
def test_imports_point_down(file):
    module = module_of(file)
    if module == "__init__":
        return
    assert module in MAY_IMPORT, f"give {module} its place in LEVELS"
    assert imports_of(file.read_text()) - {module} <= MAY_IMPORT[module]


@pytest.mark.parametrize("module", ["positions", *HEART])
def test_the_heart_imports_nothing_around_it(module):
    assert imports_of((PACKAGE / f"{module}.py").read_text()) <= {
        "positions",
        "linear",
        "embedding",
        "kernels",
        *HEART,
    }


def test_the_heart_is_read_in_one_sitting():
    lines = sum(len((PACKAGE / f"{module}.py").read_text().splitlines()) for module in HEART)
    assert lines <= 1000


@pytest.mark.parametrize("module", ["positions", "linear", "embedding", *HEART])
def test_no_function_of_the_heart_is_complex(module):
    """At most 8 ways through it, boolean operators and conditional expressions counted."""
    visit = pytest.importorskip("radon.complexity").cc_visit
    blocks = visit((PACKAGE / f"{module}.py").read_text(encoding="utf-8"))
    functions = [f for block in blocks for f in (block, *getattr(block, "methods", ()))]
    assert {f.name: f.complexity for f in functions if f.complexity > 8} == {}


def test_complexity_counts_boolean_operators_and_conditional_expressions():
    visit = pytest.importorskip("radon.complexity").cc_visit
    (block,) = visit("def f(a, b):\n    return 1 if a and b else 2")
    assert block.complexity == 3


def test_dir_shows_the_public_names_and_nothing_else():
    assert dir(minitransformer) == sorted(minitransformer.__all__)
    assert all(hasattr(minitransformer, name) for name in dir(minitransformer))
    for module in ("collate", "files", "generation", "tokenization", "checks", "exercises"):
        assert importlib.import_module(f"minitransformer.{module}")


def test_importing_the_package_needs_torch_and_einops_only():
    program = """
import sys, torch, einops
before = {name.partition(".")[0] for name in sys.modules}
import minitransformer
print(*{name.partition(".")[0] for name in sys.modules} - before)
"""
    run = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    extras = {"matplotlib", "babel", "tokenizers", "transformers", "triton", "safetensors", "tqdm"}
    imported = set(run.stdout.split())
    assert "minitransformer" in imported
    assert not imported & extras


@pytest.mark.parametrize("name", minitransformer.__all__)
def test_every_public_name_is_explained(name):
    thing = getattr(minitransformer, name)
    if callable(thing):
        assert inspect.cleandoc(thing.__doc__ or "")
        assert not thing.__doc__.startswith(f"{name}(")  # what dataclass writes where there is none


def test_public_names_are_sorted_and_once_each():
    names = minitransformer.__all__
    assert len(set(names)) == len(names)
    assert names == sorted(names, key=lambda name: (not name.isupper(), name[0].islower(), name))


SCRIPTS = sorted((PACKAGE.parent / "scripts").rglob("*.py"))


@pytest.mark.parametrize(
    "file", [*FILES, *SCRIPTS], ids=lambda file: f"{file.parent.name}/{file.name}"
)
def test_text_names_its_encoding(file):
    """Which is not UTF-8 everywhere: a file of one machine would not be read on another."""
    for call in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if not isinstance(call, ast.Call):
            continue
        name = getattr(call.func, "attr", getattr(call.func, "id", ""))
        keywords = {one.arg: one.value for one in call.keywords}
        positional = [one.value for one in call.args if isinstance(one, ast.Constant)]
        mode = getattr(keywords.get("mode"), "value", [*positional, "r"][0])
        text = name in ("read_text", "write_text") or "text" in keywords
        if isinstance(call.func, ast.Name) and name == "open":
            text = "b" not in str(mode)
        named = "encoding" in keywords or (name == "read_text" and call.args)
        assert not text or named, f"{file.name}, line {call.lineno}"


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(PACKAGE)))
def test_every_module_is_explained_and_hides_no_nan(file):
    source = file.read_text()
    assert ast.get_docstring(ast.parse(source))
    if module_of(file) not in ("checks", "exercises"):  # which show what comes of them
        for shortcut in ("-1e9", "nan_to_num"):
            assert shortcut not in source
