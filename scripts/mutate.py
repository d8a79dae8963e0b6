"""Does a test notice? Changes one thing of the code at a time (mutmut) and runs the tests.

    pip install mutmut && python scripts/mutate.py   # hours on one core
    python scripts/mutate.py masks loss

Every mutant that no test notices must stand in `scripts/surviving_mutants.md` with the reason why
it changes nothing that matters. Prints those that do not, and lines of the table that are no
longer true; exit status 1 if there are any. `--write` adds the new ones, for you to give reasons.

`kernels/triton_attention` is left out: Triton's interpreter would take minutes for each mutant.
mutmut changes no function that has a decorator, such as `generate`, nor what a class says outside
its methods. A mutant that does not end in time counts as noticed, so leave the machine some rest.
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parent.parent
TABLE = ROOT / "scripts" / "surviving_mutants.md"
TESTS = {  # where a mutant of a module is looked for
    "config": ["config"],
    "cache": ["cache"],
    "embedding": ["layers"],
    "linear": ["linear"],
    "kernels/kernel": ["kernel"],
    "kernels/sdpa": ["sdpa"],
    "kernels/strips": ["strips"],
    "kernels/plan": ["plan"],
    "kernels/varlen": ["varlen"],
    "kernels/linear_cross_entropy": ["linear_cross_entropy"],
    "masks": ["masks"],
    "attention": ["attention"],
    "loss": ["loss"],
    "positions": ["masks", "layers"],
    "contract": ["attention", "contract", "layers", "loss", "masks"],
    "layers": ["layers"],
    "models": ["models"],
    "inference/generation": ["decoding"],
    "training/loop": ["loop"],
    "data/batches": ["data", "properties"],
    "data/collate": ["collate"],
}
HEADER = """# Mutants that survive

What `scripts/mutate.py` changes without any test noticing, and why none can or need.

| module | line | becomes | why it survives |
|---|---|---|---|
"""
CONFIG = """
[tool.mutmut]
source_paths = ["minitransformer"]
only_mutate = ["minitransformer/{module}.py"]
pytest_add_cli_args_test_selection = {tests}
process_isolation = "forkserver"
timeout_multiplier = 5.0
timeout_constant = 10.0
"""

MEMORY = 4 << 30  # bytes; a mutant may fill a list without end
Mutant = tuple[str, str, str]  # module, line, what it becomes


def survivors(module: str, processes: int) -> list[Mutant]:
    """Run mutmut on a copy of the project, since it writes into the folder that it works on."""
    with tempfile.TemporaryDirectory() as folder:
        for name in ("minitransformer", "tests"):
            shutil.copytree(ROOT / name, Path(folder) / name)
        tests = [f"tests/test_{name}.py" for name in TESTS[module]]
        text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
        text += CONFIG.format(module=module, tests=tests)
        (Path(folder) / "pyproject.toml").write_text(text, encoding="utf-8")
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}

        def mutmut(*arguments: str, capture: bool = True) -> str:
            command = [sys.executable, "-m", "mutmut", *arguments]
            done = subprocess.run(
                command,
                cwd=folder,
                env=environment,
                capture_output=capture,
                encoding="utf-8",
                check=False,
            )
            if done.returncode:
                raise SystemExit(f"{' '.join(command)} failed:\n{done.stdout}\n{done.stderr}")
            return done.stdout or ""

        mutmut("run", "--max-children", str(processes), capture=False)
        results = re.findall(r"(\S+): (.+)", mutmut("results", "--all", "1"))
        listed = [name for name, result in results if result in ("survived", "no tests")]
        print(f"\n{module}: {len(results) - len(listed)} of {len(results)} mutants are noticed")
        return [(module, *_change(mutmut("show", name))) for name in listed]


def _change(diff: str) -> tuple[str, str]:
    """The line and what it becomes; a mutant may change several lines."""
    lines = [line for line in diff.splitlines() if not line.startswith(("---", "+++"))]
    before, after = (
        " ".join(line[1:].strip() for line in lines if line.startswith(sign)) for sign in "-+"
    )
    return before, after


def read_rows() -> list[tuple[Mutant, str]]:
    """Each mutant of the table, and why it survives."""
    rows = []
    for line in TABLE.read_text(encoding="utf-8").splitlines() if TABLE.exists() else []:
        if line.startswith("| ") and "`" in line:
            module, before, after, why = (_unquote(cell) for cell in re.split(r" \| ", line[2:-2]))
            rows.append(((module, before, after), why))
    return rows


def write_table(rows: dict[Mutant, str]) -> None:
    lines = [
        f"| {module} | `{_quote(before)}` | `{_quote(after)}` | {why} |"
        for (module, before, after), why in sorted(rows.items())
    ]
    TABLE.write_text(HEADER + "\n".join(lines) + "\n", encoding="utf-8")


def _quote(code: str) -> str:
    return code.replace("|", "¦")  # a | would end the cell


def _unquote(cell: str) -> str:
    return cell.strip().strip("`").replace("¦", "|")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("modules", nargs="*", metavar="MODULE", help=f"of {', '.join(TESTS)}")
    parser.add_argument("--write", action="store_true", help="bring the table up to date")
    parser.add_argument("--processes", type=int, default=1, help="that run tests side by side")
    options = parser.parse_args()
    modules = options.modules or list(TESTS)
    if wrong := set(modules) - TESTS.keys():
        parser.error(f"unknown: {', '.join(wrong)}")
    import resource  # not on Windows, where mutmut does not run either

    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    known = dict(read_rows())
    found = [one for module in modules for one in survivors(module, options.processes)]
    new = [one for one in found if not known.get(one)]
    stale = [one for one in known if one[0] in modules and one not in found]
    for module, before, after in new:
        print(f"\n{module}.py: no test notices\n  - {before}\n  + {after}")
    for module, before, after in stale:
        print(f"\n{module}.py: in the table, but noticed or gone\n  - {before}\n  + {after}")
    if options.write:
        rows = {one: why for one, why in known.items() if one not in stale}
        write_table(rows | {one: rows.get(one, "") for one in found})
    print(f"\n{len(found)} survive: {len(found) - len(new)} for a known reason, {len(new)} new")
    return int(bool(new or stale))


if __name__ == "__main__":
    sys.exit(main())
