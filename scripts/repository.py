"""Where this code lives: one address, from which badges, Colab cells and links are made.

It is `Repository` of `[project.urls]` in pyproject.toml, set once by whoever publishes a fork.
While it is not set there is nothing that names it.
"""

import tomllib
from pathlib import Path

PYPROJECT = Path(__file__).parent.parent / "pyproject.toml"
HOST = "https://github.com/"


def repository(pyproject: Path = PYPROJECT) -> str:
    """OWNER/NAME on GitHub, or "" while it is not set. Raises ValueError for another host."""
    project = tomllib.loads(pyproject.read_text(encoding="utf-8"))["project"]
    url = project.get("urls", {}).get("Repository", "")
    if url and not url.startswith(HOST):
        raise ValueError(
            f"{pyproject}: Repository must be {HOST}OWNER/NAME, got {url!r}; leave it out for "
            "another host, for which there are no badges"
        )
    return url.removeprefix(HOST).strip("/")
