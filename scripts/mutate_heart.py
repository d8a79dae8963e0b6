"""Does a test notice? Takes one statement of the heart away at a time and runs the tests.

    python scripts/mutate_heart.py            # all of the heart; 20 minutes on two cores
    python scripts/mutate_heart.py masks loss

For each statement that is not a definition, an import or a docstring: delete it, or negate it if
it is an `if`. Prints the mutants that survive; exit status 1 if there are any.
"""

import ast
import copy
import os
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tqdm import tqdm

ROOT = Path(__file__).parent.parent
TESTS = {  # where a mutant of a module is looked for, the likeliest first
    "masks": ["test_masks.py", "test_models.py"],
    "attention": ["test_attention.py"],
    "loss": ["test_loss.py", "test_models.py"],
    "config": ["test_models.py", "test_layers.py", "test_training.py"],
    "layers": ["test_layers.py", "test_models.py"],
    "models": ["test_models.py"],
}


def mutants(source: str) -> list[tuple[int, str, str]]:
    """(line, what was done, the mutated source) for each statement."""
    tree, found = ast.parse(source), []
    for path in _statements(tree):
        changed = copy.deepcopy(tree)
        body, index = _resolve(changed, path)
        statement = body[index]
        first_line = ast.unparse(statement).splitlines()[0]
        if isinstance(statement, ast.If):
            statement.test = ast.UnaryOp(ast.Not(), statement.test)
            what = f"negated: {first_line}"
        else:
            body[index] = ast.Pass()
            what = f"deleted: {first_line}"
        ast.fix_missing_locations(changed)
        found.append((statement.lineno, what, ast.unparse(changed)))
    return found


def _statements(tree: ast.Module) -> list[list[tuple[str, int]]]:
    """The paths, through fields and indices, to the statements that are worth a mutant."""
    paths = []

    def walk(node: ast.AST, path: list) -> None:
        for field in ("body", "orelse", "finalbody"):
            for i, child in enumerate(getattr(node, field, [])):
                here = [*path, (field, i)]
                definition = isinstance(child, ast.FunctionDef | ast.ClassDef)
                skipped = (ast.Import, ast.ImportFrom, ast.With, ast.Try, ast.For, ast.AnnAssign)
                docstring = isinstance(child, ast.Expr) and isinstance(child.value, ast.Constant)
                if not definition and not isinstance(child, skipped) and not docstring:
                    paths.append(here)
                walk(child, here)

    walk(tree, [])
    return paths


def _resolve(node: ast.AST, path: list[tuple[str, int]]) -> tuple[list, int]:
    for field, i in path[:-1]:
        node = getattr(node, field)[i]
    field, i = path[-1]
    return getattr(node, field), i


def survives(module: str, source: str) -> bool:
    """Do the tests pass with `source` in place of the module?"""
    with tempfile.TemporaryDirectory() as folder:
        shutil.copytree(ROOT / "minitransformer", Path(folder) / "minitransformer")
        (Path(folder) / "minitransformer" / f"{module}.py").write_text(source)
        command = [
            sys.executable,
            "-m",
            "pytest",
            "-x",
            "-q",
            "-p",
            "no:cacheprovider",
            "-c",
            str(ROOT / "pyproject.toml"),
        ]
        result = subprocess.run(
            [*command, *(str(ROOT / "tests" / name) for name in TESTS[module])],
            cwd=folder,  # and not ROOT, which would put the unchanged package first
            env={**os.environ, "PYTHONPATH": folder, "PYTHONDONTWRITEBYTECODE": "1"},
            capture_output=True,
            check=False,
        )
    return result.returncode == 0


def main() -> int:
    survivors = 0
    for module in sys.argv[1:] or list(TESTS):
        source = (ROOT / "minitransformer" / f"{module}.py").read_text()
        if not survives(module, source):
            raise SystemExit(f"{', '.join(TESTS[module])} fail without any change; mend that first")
        found = mutants(source)
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            alive = pool.map(lambda mutant, name=module: survives(name, mutant[2]), found)
            for (line, what, _), survived in zip(tqdm(found, module), alive, strict=True):
                if survived:
                    survivors += 1
                    print(f"{module}.py:{line}: {what}: survives")
    print(f"{survivors} survive")
    return int(survivors > 0)


if __name__ == "__main__":
    sys.exit(main())
