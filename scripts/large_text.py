"""How long a text larger than memory takes to begin with, and how much memory.

    python scripts/large_text.py --megabytes 1000

Makes a text of random words, one paragraph a line, and looks at it with `minitransformer train
--task lm --inspect` twice: what is read, cut and tokenized the first time is used the second time.
Memory is that of the process and its workers, mapped pages aside, above what `import torch` takes.
"""

import argparse
import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

IMPORT = "import time, torch; time.sleep(2)"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--megabytes", type=int, default=1000, metavar="N")
    parser.add_argument("--tokenizer", default="characters", metavar="FILE")
    options = parser.parse_args()
    _, base = measured([sys.executable, "-c", IMPORT], {})
    with tempfile.TemporaryDirectory() as name:
        text = Path(name, "text.txt")
        write_words(text, options.megabytes)
        command = [sys.executable, "-m", "minitransformer", "train", "--task", "lm", "--inspect"]
        command += ["--data", str(text), "--tokenizer", options.tokenizer]
        print(f"| {options.megabytes:,} MB, {options.tokenizer} | seconds | MiB above torch |")
        print("|---|---|---|")
        for start in ("first start", "later start"):
            seconds, memory = measured(command, {"MINITRANSFORMER_CACHE": str(Path(name, "cache"))})
            print(f"| {start} | {seconds:.0f} | {memory - base:,.0f} |", flush=True)
        cache = sum(file.stat().st_size for file in Path(name, "cache").rglob("*.arrow"))
        print(f"\n{cache / 1e6:,.0f} MB on disk; `import torch` takes {base:,.0f} MiB")


def write_words(path: Path, megabytes: int) -> None:
    """Words as often as Zipf has them, in sentences and paragraphs of random length."""
    rng = random.Random(0)
    letters = "etaoinshrdlu"
    words = ["".join(rng.choices(letters, k=rng.randint(1, 9))) for _ in range(20_000)]
    weights = [1 / rank for rank in range(1, len(words) + 1)]
    written = 0
    with path.open("w", encoding="utf-8") as file:
        while written < megabytes * 10**6:
            drawn = iter(rng.choices(words, weights, k=100_000))
            while sentences := list(paragraph(drawn, rng)):
                written += file.write(" ".join(sentences) + "\n")


def paragraph(words, rng):
    for _ in range(rng.randint(1, 9)):
        sentence = [word for _, word in zip(range(rng.randint(4, 30)), words, strict=False)]
        if sentence:
            yield " ".join(sentence).capitalize() + "."


def measured(command: list[str], environment: dict[str, str]) -> tuple[float, float]:
    """Seconds, and the most MiB that the process and its children had to themselves."""
    start, most = time.perf_counter(), 0.0
    process = subprocess.Popen(
        command,
        stdout=subprocess.DEVNULL,
        env={**os.environ, **environment, "OMP_NUM_THREADS": "1"},
    )
    while process.poll() is None:
        most = max(most, sum(map(anonymous, [process.pid, *children(process.pid)])))
        time.sleep(0.1)
    if process.returncode:
        sys.exit(f"{' '.join(command)} ended with {process.returncode}")
    return time.perf_counter() - start, most


def children(pid: int) -> list[int]:
    try:
        found = Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="utf-8").split()
    except OSError:
        return []
    return [pid for child in map(int, found) for pid in (child, *children(child))]


def anonymous(pid: int) -> float:
    """MiB of a process that are not mapped from a file; a page that N processes share is 1/N."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="utf-8").splitlines()
    except OSError:
        return 0.0
    sizes = {line.split(":")[0]: line.split()[1] for line in lines[1:]}
    return int(sizes.get("Pss_Anon", 0)) / 1024


if __name__ == "__main__":
    main()
