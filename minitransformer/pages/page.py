"""A page: HTML that shows itself in a notebook and can be saved."""

import html
from pathlib import Path

from minitransformer.data.files import write_atomically

FOLDER = Path(__file__).parent  # of the HTML files


class Page(str):
    """A whole HTML page as a string. It needs no network; a notebook shows it in a frame."""

    @classmethod
    def read(cls, name: str) -> "Page":
        return cls((FOLDER / name).read_text(encoding="utf-8"))

    def save(self, path: str | Path) -> Path:
        """Write the page, all or nothing. Raises InputError, which names the file."""
        path = Path(path)
        write_atomically(path, self.encode())
        return path

    def _repr_html_(self) -> str:
        frame = 'width="100%" height="720" style="border: 0" title="a page of minitransformer"'
        return f'<iframe {frame} srcdoc="{html.escape(self)}"></iframe>'
