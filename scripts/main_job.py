"""What the main job reaches and how long it takes: the table in the README.

    python scripts/main_job.py --seeds 3

Runs `minitransformer train` once for each seed, on one thread, and prints a Markdown table.
"""

import argparse
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=3, metavar="N")
    seeds = parser.parse_args().seeds
    print("| seed | exact match on 2,000 held-out days | largest weight on padding | seconds |")
    print("|---|---|---|---|")
    for seed in range(seeds):
        with tempfile.TemporaryDirectory() as folder:
            command = [sys.executable, "-m", "minitransformer", "train", "--seed", str(seed)]
            start = time.perf_counter()
            result = subprocess.run(
                [*command, "--out", str(Path(folder) / "run")],
                stdout=subprocess.PIPE,
                encoding="utf-8",
                check=True,
            )
            seconds = time.perf_counter() - start
        exact = re.search(r"held-out examples: ([\d.]+ ?%)", result.stdout)
        weight = re.search(r"heads and held-out examples: (\S+)", result.stdout)
        if not exact or not weight:
            raise SystemExit(f"unexpected output:\n{result.stdout}")
        print(f"| {seed} | {exact[1]} | {weight[1]} | {seconds:.0f} |", flush=True)


if __name__ == "__main__":
    main()
