"""Build the documentation site into docs/_build/html, without a network; a warning is an error.

    pip install -e ".[docs]" && python scripts/docs.py
    python scripts/docs.py --no-pictures    # a minute faster: the museum is not drawn

Then open docs/_build/html/index.html. The sources are docs/*.md, the notebooks as they are
committed, and pages that docs/generate.py makes of the package.
"""

import argparse
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
sys.path[:0] = [str(ROOT), str(DOCS)]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--no-pictures", action="store_true", help="do not draw the museum")
    parser.add_argument("--out", type=Path, default=DOCS / "_build" / "html", help="the folder")
    options = parser.parse_args()
    from generate import generate

    generate(pictures=not options.no_pictures)
    command = [sys.executable, "-m", "sphinx", "--fail-on-warning", "--quiet"]
    command += ["-c", str(DOCS), str(ROOT), str(options.out)]
    status = subprocess.run(command).returncode
    if status == 0:
        print(f"open {options.out / 'index.html'}")
    return status


if __name__ == "__main__":
    sys.exit(main())
