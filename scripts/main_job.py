"""What the main job reaches and how long it takes: the table in docs/training.md.

    python scripts/main_job.py --seeds 3
    python scripts/main_job.py --optimizer adamw --learning-rate 0.004 --steps 1000

Runs `minitransformer train` once for each seed, on one thread, with the other options as they are,
and prints a Markdown table.
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
    known, options = parser.parse_known_args()
    print("| seed | exact match on 2,000 held-out days | largest weight on padding | seconds |")
    print("|---|---|---|---|")
    for seed in range(known.seeds):
        with tempfile.TemporaryDirectory() as folder:
            command = [sys.executable, "-m", "minitransformer", "train", "--seed", str(seed)]
            start = time.perf_counter()
            result = subprocess.run(
                [*command, *options, "--out", str(Path(folder) / "run")],
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
