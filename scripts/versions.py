"""The README's two commands on other versions: on every Python, and with the lowest of everything.

    python scripts/versions.py --list             # the environments that this machine can make
    python scripts/versions.py                    # all of them; writes scripts/versions.md
    python scripts/versions.py --only lowest      # one of them; the other rows stay
    python scripts/versions.py --requirements     # the lowest declared versions, for `pip -c`

Each environment is fresh, as is its clone of HEAD, in a folder with a space in its name:
*newest-3.N* has what pip installs today on Python 3.N, *lowest* the lowest version that
pyproject.toml declares of everything, torch included, on the oldest Python here. The commands are
the README's own. What they print is kept in runs/versions/.
"""

import argparse
import datetime
import json
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
import tomllib
from contextlib import suppress
from pathlib import Path

from packaging.requirements import Requirement
from packaging.version import Version

ROOT = Path(__file__).parent.parent
RECORD, LOGS = ROOT / "scripts" / "versions.md", ROOT / "runs" / "versions"
MINORS = range(11, 20)  # Python 3.N to look for
CLEAR = "\033[K" if sys.stdout.isatty() else ""  # the rest of a line that is written over
COMMANDS = ["minitransformer train", "pytest -n auto"]  # how the README's begin
SHOWN = ["torch", "einops", "numpy", "safetensors", "tokenizers", "transformers", "datasets",
         "matplotlib", "hypothesis", "pytest"]  # fmt: skip
COLUMNS = ["environment", "date", "Python", *COMMANDS, *SHOWN, "machine"]
HEADER = """\
# The README's two commands on other versions

Written by `python scripts/versions.py`. *newest* is what pip installs on the day; *lowest* is the
lowest declared version of everything. Each command is followed by its result and its seconds,
without the installation before it.
"""


# ---- the environments ------------------------------------------------------------------------


def lowest_requirements(without: list[str]) -> list[str]:
    """`name==X` for each `name>=X` or `name==X` that pyproject.toml declares, in all extras."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    lowest: dict[str, Version] = {}
    for line in sum(project["optional-dependencies"].values(), project["dependencies"]):
        wanted = Requirement(line)
        if wanted.name == project["name"] or wanted.name in without:
            continue
        bounds = [bound for bound in wanted.specifier if bound.operator in (">=", "==")]
        if len(bounds) != 1:
            raise SystemExit(f"pyproject.toml: expected {wanted.name}>=X, got {line!r}")
        version = Version(bounds[0].version)
        lowest[wanted.name] = max(version, lowest.get(wanted.name, version))
    return [f"{name}=={version}" for name, version in lowest.items()]


def pythons() -> dict[str, str]:
    """Every Python from 3.11 on that can make a virtual environment: "3.11" to its program."""
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"
    found = {}
    for minor in MINORS:
        name = f"python3.{minor}"
        for program in [*pyenv.glob(f"3.{minor}.*/bin/{name}"), shutil.which(name)]:
            command = [str(program), "-c", "import ensurepip, venv"]
            if program and subprocess.run(command, capture_output=True).returncode == 0:
                found.setdefault(f"3.{minor}", str(program))
    return found


def environments() -> dict[str, tuple[str, list[str]]]:
    """Names to a Python and constraints for pip."""
    found = pythons()
    if not found:
        raise SystemExit("no Python 3.11 or later that can make a virtual environment")
    # torch on Linux names its Triton itself; the lowest torch, one that is too old for [gpu].
    lowest = (next(iter(found.values())), lowest_requirements(["triton"]))
    newest = {f"newest-{version}": (python, []) for version, python in found.items()}
    return {"lowest": lowest, **newest}


def readme_commands() -> list[tuple[str, str]]:
    """Those of the README, as (installation, what it is for)."""
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    return re.findall(r"^(pip install .+) && (.+)$", readme, re.MULTILINE)


# ---- running them ----------------------------------------------------------------------------


def run(command: str, folder: Path, log: Path, **environ: str) -> tuple[int, str, float]:
    """A shell command's exit code, the last of what it printed, and its seconds.

    Meanwhile the last line of its log is shown, on a terminal.
    """
    start = time.monotonic()
    with open(log, "ab") as file:
        file.write(f"$ {command}\n".encode())
        file.flush()
        process = subprocess.Popen(
            ["bash", "-c", command],
            cwd=folder,
            env={**os.environ, **environ},
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
        )
        try:
            while process.poll() is None:
                time.sleep(1)
                if CLEAR:
                    last = log.read_text("utf-8", "replace")[-90:].splitlines()[-1]
                    print(f"{CLEAR}  {time.monotonic() - start:5.0f} s  {last}", end="\r")
        finally:
            process.kill()
            process.wait()
    printed = log.read_text("utf-8", "replace").rpartition(f"$ {command}\n")[2]
    return process.returncode, printed, time.monotonic() - start


def result_of(code: int, printed: str) -> str:
    """What a command came to, in its own words."""
    if exact := re.search(r"exact match on .*: ([\d.]+ ?%)", printed):
        return f"{exact[1]} exact" if code == 0 else f"failed ({exact[1]} exact)"
    last = (printed.strip() or "?").splitlines()[-1]
    counts = re.findall(r"\d+ (?:failed|passed|skipped|errors?)\b", last)
    return ", ".join(["failed"] * bool(code) + counts)


def try_out(name: str, python: str, constraints: list[str]) -> dict[str, str]:
    """A row of the record."""
    LOGS.mkdir(parents=True, exist_ok=True)
    log = LOGS / f"{name}.log"
    log.write_bytes(b"")
    row = {"environment": name, "date": str(datetime.date.today()), "machine": machine()}
    print(f"{name}: {python}, log in {log.relative_to(ROOT)}", flush=True)
    with tempfile.TemporaryDirectory(prefix="mini transformer ") as temporary:
        folder = Path(temporary)
        clone, venv, lowest = folder / "clone", folder / "venv", folder / "constraints.txt"
        lowest.write_text("\n".join(constraints), encoding="utf-8")
        environ = {"PATH": f"{venv / 'bin'}{os.pathsep}{os.environ['PATH']}"}
        if constraints:
            environ["PIP_CONSTRAINT"] = lowest.as_uri()  # pip splits the value at spaces
        made = shlex.join(["git", "clone", "--quiet", str(ROOT), str(clone)])
        made += " && " + shlex.join([python, "-m", "venv", str(venv)])
        if run(made, folder, log)[0]:
            raise SystemExit(f"{made}: failed")
        for install, command in readme_commands():
            code, _, seconds = run(install, clone, log, **environ)
            result = "installation failed"
            print(f"{CLEAR}  {seconds:5.0f} s  {install}", flush=True)
            if code == 0:
                code, printed, seconds = run(command, clone, log, **environ)
                result = result_of(code, printed)
            print(f"{CLEAR}  {seconds:5.0f} s  {command}: {result}", flush=True)
            row[command] = f"{result}, {seconds:.0f} s"
        inspect = [venv / "bin" / "python", "-m", "pip", "inspect"]
        about = json.loads(subprocess.run(inspect, capture_output=True, check=True).stdout)
        row["Python"] = about["environment"]["python_full_version"]
        installed = [one["metadata"] for one in about["installed"]]
        row |= {one["name"].lower(): one["version"] for one in installed}
    return row


# ---- the record ------------------------------------------------------------------------------


def machine() -> str:
    """Operating system, architecture, processor and cores."""
    found = None
    with suppress(OSError):  # there is no such file but on Linux
        found = re.search(r"model name\s*: (.+)", Path("/proc/cpuinfo").read_text(encoding="utf-8"))
    processor = found[1].strip() if found else platform.processor()
    return f"{platform.system()} {platform.machine()}, {processor}, {os.cpu_count()} cores"


def record(row: dict[str, str]) -> None:
    """Write a row into versions.md, in place of the one that it has of this environment."""
    text = RECORD.read_text(encoding="utf-8") if RECORD.exists() else ""
    lines = {line.split()[1]: line for line in text.splitlines() if re.match(r"\| \S+ \| \d", line)}
    lines[row["environment"]] = "| " + " | ".join(row.get(c, "-") for c in COLUMNS) + " |"
    head = ["| " + " | ".join(COLUMNS) + " |", "|" + "---|" * len(COLUMNS)]
    text = "\n".join([HEADER, *head, *(lines[name] for name in sorted(lines))])
    RECORD.write_text(text + "\n", encoding="utf-8")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--list", action="store_true", help="name the environments and end")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="default: all environments")
    parser.add_argument("--requirements", action="store_true", help="print the lowest versions")
    parser.add_argument("--without", nargs="+", default=[], metavar="PACKAGE", help="leave out")
    options = parser.parse_args()
    if options.requirements:
        print(*lowest_requirements(options.without), sep="\n")
        return 0
    every = environments()
    if options.list:
        print(*(f"{name:<12} {python}" for name, (python, _) in every.items()), sep="\n")
        return 0
    for name in options.only or []:
        if name not in every:
            parser.error(f"no environment {name}: there are {', '.join(every)}")
    failed = []
    for name in options.only or every:
        row = try_out(name, *every[name])
        record(row)
        failed += [name for command in COMMANDS if "fail" in row.get(command, "failed")]
    print(f"written to {RECORD.relative_to(ROOT)}" + f"; failed: {failed}" * bool(failed))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
