"""The same numbers as the library? One row for each architecture, printed and written.

    pip install -e ".[dev]" && python scripts/pretrained_table.py

Random models with every tensor randomised, written by transformers, read by us; a ragged batch.
Writes notebooks/pretrained.md.
"""

import datetime
import sys
import tempfile
from pathlib import Path

import torch
import transformers

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "tests"))

# pyrefly: ignore
from test_pretrained import THEIRS, largest_difference, run_both, theirs_of  # noqa: E402

from minitransformer.pretrained import load_pretrained  # noqa: E402

OUT = ROOT / "notebooks" / "pretrained.md"


@torch.no_grad()
def row(name: str) -> str:
    config, cls, _ = THEIRS[name]
    differences = []
    for dtype in (torch.float32, torch.float64):
        theirs = theirs_of(name)
        with tempfile.TemporaryDirectory() as folder:
            theirs.save_pretrained(folder)
            ours = load_pretrained(folder, dtype)
        output, logits, mask = run_both(name, theirs.to(dtype), ours, "right")
        real = mask != 0
        differences.append(largest_difference(output.logits[real], logits[real]))
    family = {"marian": "bart", "qwen2": "mistral"}.get(config.model_type, config.model_type)
    file = ROOT / "minitransformer" / "pretrained" / f"{family}.py"
    lines = len(file.read_text(encoding="utf-8").splitlines())
    size = sum(p.numel() for p in ours.parameters())
    return (
        f"| {name} | {cls.__name__} | {type(ours).__name__} | {size:,} | {differences[0]:.1e} "
        f"| {differences[1]:.1e} | {lines} ({file.name}) |"
    )


def main() -> None:
    torch.set_num_threads(1)
    transformers.utils.logging.disable_progress_bar()
    transformers.logging.set_verbosity_error()
    rows = [
        "| architecture | theirs | ours | parameters | logits, float32 | logits, float64 "
        "| lines of its file |",
        "|---|---|---|---|---|---|---|",
        *(row(name) for name in THEIRS),
    ]
    about = (
        "The largest difference of any logit from transformers' own, on small models whose tensors "
        "are all random, biases and gains too, and a ragged batch padded on the right. In float64 "
        "the library's Llama, Mistral and Qwen2 still compute norms and angles in float32. "
        f"Measured by `python scripts/pretrained_table.py`: torch {torch.__version__}, "
        f"transformers {transformers.__version__}, {datetime.date.today()}."
    )
    text = "\n".join(["# Real architectures, measured", "", about, "", *rows, ""])
    print(text)
    OUT.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
