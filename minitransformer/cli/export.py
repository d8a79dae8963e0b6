"""`minitransformer export`: a run as a folder that the transformers library loads."""

import argparse
from pathlib import Path

from minitransformer.data.files import InputError, naming
from minitransformer.data.tokenization import Tokenizer
from minitransformer.pretrained import save_pretrained
from minitransformer.training.lora import lora_of, merge_lora
from minitransformer.training.run import Run


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(verb=_export)
    parser.add_argument("run", metavar="RUN", help="a folder that `train` left")
    parser.add_argument("folder", metavar="FOLDER", type=Path, help="a new or empty folder")


def _export(options: argparse.Namespace) -> int:
    run, folder = Run.load(options.run), options.folder
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError(f"{folder}: is there already; expected a new or an empty folder")
    if lora_of(run.model):
        merge_lora(run.model)
    tokenizer = run.vocabulary if isinstance(run.vocabulary, Tokenizer) else None
    try:
        with naming(folder):
            save_pretrained(run.model, folder, tokenizer)
    except ValueError as error:
        raise InputError(f"{options.run}: cannot be exported: {error}") from None
    print(f"{folder} holds {', '.join(sorted(path.name for path in folder.iterdir()))}")
    if tokenizer is None:
        print("its tokens are characters, for which that library has no tokenizer")
    return 0
