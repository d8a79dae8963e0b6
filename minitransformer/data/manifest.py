"""Folders that are read as they were written or not at all: each file's sha256 is in a manifest."""

import hashlib
import os
import shutil
from collections.abc import Mapping
from pathlib import Path

from minitransformer.data.files import (
    TEMPORARY,
    InputError,
    check_file,
    naming,
    read_json,
    sync,
    temporary_name,
    to_json,
    write,
    write_atomically,
)

MANIFEST = "manifest.json"
FORMAT = 1  # of the folder; a later one, which we could only misread, is refused


class DamagedError(InputError):
    """The folder is not what was written; the message names the file."""


def write_folder(folder: Path, files: Mapping[str, bytes]) -> None:
    """The folder with these files and their manifest, complete or not there at all.

    They are written beside it, brought to the disk and renamed. A folder of that name is replaced.
    Raises InputError, which names the file, where that fails.
    """
    temporary = temporary_name(folder)
    with naming(folder):
        discard(temporary)
        temporary.mkdir(parents=True)
    try:
        for name, data in {**files, MANIFEST: manifest_of(files)}.items():
            with naming(folder / name):
                write(temporary / name, data)
        with naming(folder):
            sync(temporary)
            discard(folder)
            os.rename(temporary, folder)
            sync(folder.parent)
    except InputError:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def replace_files(folder: Path, files: Mapping[str, bytes]) -> None:
    """The same for files in a folder that holds other things, too.

    While they are replaced there is no manifest: without one none of them is to be read.
    """
    with naming(folder / MANIFEST):
        (folder / MANIFEST).unlink(missing_ok=True)
        sync(folder)
    for name, data in files.items():
        write_atomically(folder / name, data)
    write_atomically(folder / MANIFEST, manifest_of(files))


def read_folder(folder: Path) -> dict[str, bytes]:
    """The files that the manifest names, as they were written.

    Raises DamagedError for a file that is missing, that is another one or that was put there, and
    InputError for a format that is newer than FORMAT.
    """
    said = _read_manifest(folder)
    for path in sorted(folder.iterdir()):
        if path.suffix in (".safetensors", ".json") and path.name not in {*said, MANIFEST}:
            raise DamagedError(f"{path}: is not in {MANIFEST}; something else has put it there")
    files = {}
    for name, about in said.items():
        _check(folder / name, **about)
        files[name] = (folder / name).read_bytes()
    return files


def manifest_of(files: Mapping[str, bytes]) -> bytes:
    about = {name: {"size": len(data), "sha256": sha256(data)} for name, data in files.items()}
    return to_json({"format": FORMAT, "files": about})


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def discard(folder: Path) -> None:
    """Remove a folder in one step, as others see it: under its name there is all of it or none."""
    if folder.exists():
        gone = temporary_name(folder.with_name(f"{folder.name}.old"))
        shutil.rmtree(gone, ignore_errors=True)
        os.rename(folder, gone)
        shutil.rmtree(gone, ignore_errors=True)


def sweep(folder: Path) -> None:
    """Remove what was left half-written there when a process ended."""
    for path in folder.iterdir() if folder.is_dir() else ():
        if TEMPORARY.match(path.name):
            shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink()


def _read_manifest(folder: Path) -> dict[str, dict]:
    """What each file must be, by name."""
    path = folder / MANIFEST
    if not path.is_file():
        raise DamagedError(f"{path}: no such file")
    try:
        manifest = read_json(path)
    except InputError as error:
        raise DamagedError(str(error)) from None
    written = manifest.get("format") if isinstance(manifest, dict) else None
    if isinstance(written, int) and written > FORMAT:
        raise InputError(
            f"{path}: is of format {written}, written by a newer version of minitransformer "
            f"(this one reads {FORMAT}): update it"
        )
    try:
        files = {
            name: {"size": about["size"], "sha256": about["sha256"]}
            for name, about in manifest["files"].items()
        }
        whole = to_json({"format": FORMAT, "files": files}) == path.read_bytes()
    except (AttributeError, KeyError, TypeError, ValueError):
        whole = False
    if not whole or any(Path(name).name != name for name in files):
        raise DamagedError(f"{path}: is damaged: it is not as it was written")
    return files


def _check(path: Path, size: int, sha256: str) -> None:
    try:
        check_file(path)
    except InputError as error:
        raise DamagedError(f"{error}, but {MANIFEST} has it") from None
    found = path.stat().st_size
    if found != size:
        raise DamagedError(f"{path}: is damaged: it has {found:,} bytes, {MANIFEST} says {size:,}")
    with open(path, "rb") as file:
        digest = hashlib.file_digest(file, "sha256")
    if digest.hexdigest() != sha256:
        raise DamagedError(
            f"{path}: is damaged or of another run: its sha256 is not that of {MANIFEST}"
        )
