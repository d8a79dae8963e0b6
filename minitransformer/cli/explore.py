"""`minitransformer explore`: the mask explorer, opened in a browser or written to a file."""

import argparse
import webbrowser

from minitransformer.pages.explorer import address, explorer


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(verb=_explore)
    parser.add_argument(
        "state",
        metavar="STATE",
        nargs="?",
        default="",
        help='what it shows at first, as in its address: "causal=1&layout=left&fill=inf"',
    )
    parser.add_argument("--out", metavar="FILE", help="write the page instead of opening it")


def _explore(options: argparse.Namespace) -> int:
    if options.out:
        print(explorer().save(options.out))
        return 0
    print(address(options.state), flush=True)
    if not webbrowser.open(address(options.state)):
        print("no browser was found here: open the address above, or use --out FILE")
    return 0
