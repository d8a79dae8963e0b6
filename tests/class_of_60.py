"""A class as instructors get it: right in many styles, wrong in many ways, handed in anyhow.

`hand_in(folder, roster)` writes it; class_of_60.csv is what must come of it, by hand.
"""

import io
import json
import os
import zipfile
from pathlib import Path

from minitransformer.exercises import EXERCISES

NAMES = ["causal_mask", "softmax", "mean_pool"]
MASK, SOFTMAX, POOL = (EXERCISES[name].source for name in NAMES)
ALL = "\n\n\n".join((MASK, SOFTMAX, POOL))
STUBS = "\n\n\n".join(EXERCISES[name].stub for name in NAMES)
HEAD = "import math\nimport torch\nfrom torch import Tensor\nimport torch.nn.functional as F\n\n"


def with_mask(body: str) -> str:
    return f"{HEAD}def causal_mask(num_queries, num_keys):\n{body}\n\n\n{SOFTMAX}\n\n\n{POOL}"


def with_softmax(body: str, above: str = "") -> str:
    return f"{HEAD}{above}def softmax(scores):\n{body}\n\n\n{MASK}\n\n\n{POOL}"


def with_pool(body: str) -> str:
    return f"{HEAD}def mean_pool(hidden, attention_mask):\n{body}\n\n\n{MASK}\n\n\n{SOFTMAX}"


RIGHT = {
    "right_as_the_solution": ALL,
    "right_by_comparing_places": with_mask(
        "    q = torch.arange(num_queries)[:, None] + num_keys - num_queries\n"
        "    return (torch.arange(num_keys)[None, :] <= q)[None, None]"
    ),
    "right_by_loops": with_mask(
        "    mask = torch.zeros(1, 1, num_queries, num_keys, dtype=torch.bool)\n"
        "    for i in range(num_queries):\n"
        "        for j in range(num_keys):\n"
        "            mask[0, 0, i, j] = j <= i + num_keys - num_queries\n"
        "    return mask"
    ),
    "right_by_not_triu": with_mask(
        "    ones = torch.ones(num_queries, num_keys, dtype=torch.bool)\n"
        "    return ~torch.triu(ones, diagonal=num_keys - num_queries + 1).view(1, 1, *ones.shape)"
    ),
    "right_with_a_script": HEAD
    + "@torch.jit.script\ndef causal_mask(num_queries: int, num_keys: int) -> Tensor:\n"
    "    ones = torch.ones(1, 1, num_queries, num_keys, dtype=torch.bool)\n"
    f"    return ones.tril(num_keys - num_queries)\n\n\n{SOFTMAX}\n\n\n{POOL}",
    "right_in_float64": with_softmax(
        "    x = scores.double()\n    x = x - x.max(-1, keepdim=True).values\n"
        "    return (x.exp() / x.exp().sum(-1, keepdim=True)).to(scores.dtype)"
    ),
    "right_with_a_class": with_softmax(
        "    return Shares(-1)(scores)",
        "class Shares:\n    def __init__(self, axis):\n        self.axis = axis\n\n"
        "    def __call__(self, x):\n        x = torch.exp(x - x.amax(self.axis, keepdim=True))\n"
        "        return x / x.sum(self.axis, keepdim=True)\n\n\n",
    ),
    "right_with_a_helper_and_a_constant": with_softmax(
        "    return normalized(torch.exp(scores - scores.amax(AXIS, keepdim=True)))",
        "AXIS = -1\n\n\ndef normalized(x):\n    return x / x.sum(AXIS, keepdim=True)\n\n\n",
    ),
    "right_with_a_lambda": f"{HEAD}{MASK}\n\n\n{POOL}\n\n\n"
    "softmax = lambda s: (e := (s - s.amax(-1, True)).exp()) / e.sum(-1, True)\n",
    "right_with_numpy": with_softmax(
        "    x = scores.numpy()\n    x = np.exp(x - x.max(-1, keepdims=True))\n"
        "    return torch.from_numpy(x / x.sum(-1, keepdims=True))",
        "import numpy as np\n\n",
    ),
    "right_by_where": with_pool(
        "    real = attention_mask.bool().unsqueeze(-1)\n"
        "    total = torch.where(real, hidden, torch.zeros_like(hidden)).sum(1)\n"
        "    return total / attention_mask.sum(1, keepdim=True).clamp(min=1)"
    ),
    "right_row_by_row": with_pool(
        "    rows = []\n    for row, mask in zip(hidden, attention_mask):\n"
        "        real = row[mask == 1]\n"
        "        rows.append(real.mean(0) if len(real) else torch.zeros(row.shape[-1]))\n"
        "    return torch.stack(rows)"
    ),
}
WRONG = {
    "wrong_upside_down": MASK.replace("return ones", "return ~ones"),
    "wrong_from_the_first_key": MASK.replace(".tril(num_keys - num_queries)", ".tril()"),
    "wrong_without_axes": MASK.replace("torch.ones(1, 1, ", "torch.ones("),
    "wrong_in_numbers": MASK.replace(", dtype=torch.bool", ""),
    "wrong_without_keepdim": SOFTMAX.replace("amax(dim=-1, keepdim=True)", "amax(dim=-1)"),
    "wrong_without_the_largest": SOFTMAX.replace("(scores - scores.amax(dim=-1, keepdim=True))",
                                                 "scores"),
    "wrong_axis": SOFTMAX.replace("dim=-1", "dim=0"),
    "wrong_with_torchs_own": HEAD + "def softmax(scores):\n    return F.softmax(scores, -1)",
    "wrong_without_end": HEAD + "def softmax(scores):\n    while True:\n        pass",
    "wrong_with_an_error": HEAD + "def softmax(scores):\n    return score.exp()",
    "wrong_with_padding": HEAD + "def mean_pool(hidden, mask):\n    return hidden.mean(1)",
    "wrong_by_multiplying": HEAD + "def mean_pool(hidden, attention_mask):\n"
    "    real = attention_mask.unsqueeze(-1)\n    return (hidden * real).sum(1) / real.sum(1)",
}  # fmt: skip


def notebook(*sources: str, outputs: tuple = ()) -> str:
    cells = [
        {"cell_type": "code", "metadata": {}, "outputs": list(outputs), "source": source}
        for source in sources
    ]
    return json.dumps({"cells": cells, "metadata": {}, "nbformat": 4, "nbformat_minor": 5})


def zipped(files: dict[str, str]) -> bytes:
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w") as archive:
        for name, text in files.items():
            archive.writestr(name, text)
    return made.getvalue()


PICTURE = {"output_type": "display_data", "data": {"image/png": "A" * 9_000_000}}
WAYS: dict[str, str | bytes] = {
    "way_BIG_SUFFIX.PY": ALL,
    "way_text.txt": ALL,
    "way_browser.py.txt": ALL,
    "way_notebook.ipynb": notebook(MASK, SOFTMAX, POOL),
    "way_big_notebook.IPYNB": notebook(MASK, SOFTMAX, POOL),
    "way_magics.ipynb": notebook("!pip install torch\n%matplotlib inline", MASK, SOFTMAX, POOL),
    "way_pictures.ipynb": notebook(ALL, outputs=(PICTURE,)),
    "way_broken_cell.ipynb": notebook("def (:", ALL, "1 / 0"),
    "way_training.ipynb": notebook(ALL, "while True:\n    softmax(3)", "input('name?')"),
    "way_zip.zip": zipped({"work/exercises.py": ALL, "__MACOSX/._exercises.py": "\0"}),
    "way_folder/exercises.py": ALL,
    "way_deep_folder/a/b/exercises.ipynb": notebook(ALL),
    "way_zip_in_folder/work.zip": zipped({"exercises.ipynb": notebook(ALL)}),
    "way_parts/1.py": MASK,
    "way_parts/2.py": SOFTMAX,
    "way_parts/3.ipynb": notebook(POOL),
    "way_two_copies/exercises.ipynb": notebook(STUBS),
    "way_two_copies/exercises (1).ipynb": notebook(ALL),
    "way_old_and_new/old.py": with_softmax("    return scores"),
    "way_old_and_new/solution.py": ALL,
    "way_with_venv/venv/lib/site-packages/x.py": "def softmax(x):\n    return x\n",
    "way_with_venv/exercises.py": ALL,
    "way_git_clone/.git/config": "[core]\n",
    "way_git_clone/exercises.py": ALL,
    "way_future.py": f"from __future__ import annotations\n\n{ALL}",
    "way_bom.py": b"\xef\xbb\xbf" + ALL.encode(),
    "way_latin.py": f"# -*- coding: latin-1 -*-\n# gel\u00f6st\n{ALL}".encode("latin-1"),
    "way_windows.py": ALL.replace("\n", "\r\n").encode(),
    "way_report_beside/report.pdf": b"%PDF",
    "way_report_beside/exercises.py": ALL,
    "way_exits.py": f"{ALL}\n\n\nimport sys\nprint(softmax)\nsys.exit(1)\n",
    "none_pdf.pdf": b"%PDF",
    "none_docx/answers.docx": b"PK",
    "none_empty.py": "\n",
    "none_stubs.ipynb": notebook(STUBS),
    "none_syntax.py": ALL.replace("def causal_mask(", "def causal_mask("[:-1]),
    "none_damaged.ipynb": "{ not a notebook",
    "none_broken_archive.zip": b"not an archive",
    "none_utf16.py": ALL.encode("utf-16"),
    "none_prose.txt": "I could not do\nany of this.",
}
ROSTER = ["absent one", "absent two", "absent three"]


def hand_in(folder: Path, roster: Path) -> None:
    """60 students: those who handed in, and three who did not."""
    files: dict[str, str | bytes] = {}
    for name, source in RIGHT.items():
        files[f"{name}.py"] = source
    for name, source in WRONG.items():
        others = (one for one in (MASK, SOFTMAX, POOL) if _function(one) != _function(source))
        files[f"{name}.py"] = "\n\n\n".join([source, *others])
    for age, (name, content) in enumerate({**files, **WAYS}.items()):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        os.utime(path, (1_790_000_000 + age, 1_790_000_000 + age))
    students = {name.partition("/")[0].partition(".")[0] for name in (*files, *WAYS)}
    lines = ["Username,Full name", *(f"{name},{name}" for name in sorted({*students, *ROSTER}))]
    roster.write_text("\n".join(lines) + "\n", encoding="utf-8")


def _function(source: str) -> str:
    return source[source.index("def ") :].partition("(")[0]
