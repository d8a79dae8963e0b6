"""Damage saved runs, checkpoints and exports at random: none may load as something else.

    python scripts/damage_runs.py 1000

Each time one file of a folder gets a flipped bit, a zeroed block, a cut or longer end, is swapped
with that of another run, of another step, with another file of the folder, or is removed. A folder
that then loads has to hold the very bytes that were written. Exit status 1 where one does not.
"""

import argparse
import io
import random
import shutil
import sys
import tempfile
from collections import Counter
from contextlib import redirect_stdout
from pathlib import Path

from tqdm import tqdm

from minitransformer.cli import main as minitransformer
from minitransformer.data.files import InputError
from minitransformer.data.manifest import read_folder
from minitransformer.training.checkpoint import checkpoints
from minitransformer.training.run import Run

MODEL = ["--d-model", "16", "--num-layers", "1", "--num-heads", "2"]
TRAINING = ["--batch-size", "4", "--steps", "6", "--save-every", "2", "--evaluate-every", "6"]
KINDS = ("bit", "block", "cut", "longer", "other run", "other step", "other file", "gone", "empty")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("count", type=int, metavar="N")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    rng, refused, silent = random.Random(options.seed), Counter(), []
    with tempfile.TemporaryDirectory() as name:
        here = Path(name)
        data = here / "pairs.tsv"
        data.write_text("".join(f"w{i}\t{i}\n" for i in range(60)), encoding="utf-8")
        for seed in "01":
            words = ["train", "--task", "pairs", "--data", str(data), *MODEL, *TRAINING]
            with redirect_stdout(io.StringIO()):
                if minitransformer([*words, "--seed", seed, "--out", str(here / seed)]) != 0:
                    return 1
        whole = [here / "0", *checkpoints(here / "0")]
        for number in tqdm(range(options.count), unit="folder", disable=None):
            source = rng.choice(whole)
            folder = here / "damaged"
            shutil.copytree(source, folder, ignore=shutil.ignore_patterns("checkpoints", "*.png"))
            kind = KINDS[number % len(KINDS)]
            path = rng.choice(sorted(p for p in folder.iterdir() if not p.name.startswith(".")))
            damage(path, kind, source, here, rng)
            try:
                Run.load(folder)
                if path.exists() and path.read_bytes() == (source / path.name).read_bytes():
                    refused["the same bytes again"] += 1
                elif read_folder(folder) != read_folder(source):
                    silent.append(f"{kind}: {source.relative_to(here)}/{path.name}")
                else:
                    silent.append(f"{kind}: {path.name} (nothing that is read)")
            except InputError as error:
                named = path.name in str(error) or "manifest.json" in str(error)
                refused[kind if named and "\n" not in str(error) else "not named"] += 1
            shutil.rmtree(folder)
    print(f"{options.count} damaged folders: {len(silent)} loaded silently")
    print(", ".join(f"{kind} {count}" for kind, count in sorted(refused.items())), "refused")
    print(*silent, sep="\n", end="")
    return 1 if silent or refused["not named"] else 0


def damage(path: Path, kind: str, source: Path, here: Path, rng: random.Random) -> None:
    data = path.read_bytes()
    place = rng.randrange(len(data))
    if kind == "bit":
        data = data[:place] + bytes([data[place] ^ 1 << rng.randrange(8)]) + data[place + 1 :]
    elif kind == "block":
        data = data[:place] + bytes(len(data[place : place + 512])) + data[place + 512 :]
    elif kind == "cut":
        data = data[:place]
    elif kind == "longer":
        data += rng.randbytes(rng.randrange(1, 100))
    elif kind == "other run":
        data = (here / "1" / source.relative_to(here / "0") / path.name).read_bytes()
    elif kind == "other step":
        steps = [
            one for one in checkpoints(here / "0") if one != source and (one / path.name).exists()
        ]
        data = (rng.choice(steps) / path.name).read_bytes()
    elif kind == "other file":
        data = rng.choice([one for one in path.parent.iterdir() if one != path]).read_bytes()
    elif kind == "empty":
        data = b""
    if kind == "gone":
        path.unlink()
    else:
        path.write_bytes(data)


if __name__ == "__main__":
    sys.exit(main())
