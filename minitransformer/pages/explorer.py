"""The mask explorer: who may attend to whom, and what the softmax makes of it, to click on."""

from urllib.parse import quote

from minitransformer.pages.page import FOLDER, Page

FILE = "explorer.html"


def explorer() -> Page:
    """The page. Every setting is in its address, so that a link leads to a state of it."""
    return Page.read(FILE)


def address(state: str = "") -> str:
    """Of the installed page at `state`, such as "causal=1&fill=inf", as a file: URL."""
    return (FOLDER / FILE).as_uri() + (f"#{quote(state, safe='=&,')}" if state else "")
