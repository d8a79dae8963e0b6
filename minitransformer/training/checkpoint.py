"""The folder of a run: its checkpoints, one folder each, and the files of the one it ends with.

RUN/checkpoints/000300/    all that step 301 depends on: see `Training` and `Run`
RUN/                       when training has ended: what `generate` needs, of the last step
"""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from minitransformer.data.files import InputError, naming
from minitransformer.data.manifest import (
    MANIFEST,
    DamagedError,
    discard,
    read_folder,
    sweep,
    write_folder,
)


def folder_of(run: Path, step: int) -> Path:
    return run / "checkpoints" / f"{step:06}"


def checkpoints(run: Path) -> list[Path]:
    """Of a run, the oldest first."""
    found = [path for path in (run / "checkpoints").glob("*") if path.name.isdecimal()]
    return sorted((path for path in found if path.is_dir()), key=lambda path: int(path.name))


def save(run: Path, step: int, files: Mapping[str, bytes], keep: int, best: int | None) -> Path:
    """Write a checkpoint; of all keep the last `keep` and that of the `best` step.

    Later ones are of a training that was taken up again before them: they go, too.
    """
    folder = folder_of(run, step)
    write_folder(folder, files)
    upto = [path for path in checkpoints(run) if int(path.name) <= step]
    kept = {*upto[-keep:], folder_of(run, step if best is None else best)}
    for path in checkpoints(run):
        if path not in kept:
            with naming(path):
                discard(path)
    return folder


def newest(folder: Path) -> Path:
    """Where the run's newest step is: in the folder itself or in a checkpoint.

    Raises InputError for what is no run.
    """
    found = checkpoints(folder)
    if (folder / MANIFEST).is_file() and (not found or step_of(folder) >= int(found[-1].name)):
        return folder
    if found:
        return found[-1]
    what = f"holds no {MANIFEST} and no checkpoints" if folder.is_dir() else "no such folder"
    raise InputError(
        f"{folder}: {what}; expected a folder that `train` left, or a Hugging Face model's"
    )


def step_of(folder: Path) -> int:
    """What its config.json says; damaged ones are refused later, by their sha256."""
    try:
        return int(json.loads((folder / "config.json").read_bytes())["step"])
    except (OSError, KeyError, TypeError, ValueError):
        return 10**9  # not passed over in favor of a checkpoint


def read(folder: Path) -> dict[str, bytes]:
    """The files of a checkpoint or of a run that has ended.

    Raises DamagedError, which names the file and the last good checkpoint.
    """
    try:
        return read_folder(folder)
    except DamagedError as error:
        good = last_good(folder)
        offer = f"; the last good checkpoint is {good}" if good else ""
        raise DamagedError(f"{error}{offer}") from None


def read_checkpoint(folder: Path) -> dict[str, bytes]:
    """The files of a checkpoint, or of a run's newest one."""
    if run_of(folder) == folder:
        found = checkpoints(folder)
        if not found:
            what = "holds no checkpoints" if folder.is_dir() else "no such folder"
            raise InputError(f"{folder}: {what}; expected a folder that `train` left")
        folder = found[-1]
    return read(folder)


def run_of(folder: Path) -> Path:
    """The run that a checkpoint belongs to; or the folder itself."""
    return folder.parent.parent if folder.parent.name == "checkpoints" else folder


def last_good(folder: Path) -> Path | None:
    """The newest checkpoint that is as it was written, of the run that `folder` is or is in."""
    for path in reversed(checkpoints(run_of(folder))):
        try:
            read_folder(path)
            return path
        except InputError:
            continue
    return None


# ---- one training in a folder --------------------------------------------------------------------


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Nobody else trains into the folder meanwhile; the system opens the lock when we end."""
    lock = FileLock(folder / ".lock")
    with naming(folder / ".lock"):
        try:
            lock.acquire(timeout=0)
        except Timeout:
            raise InputError(f"{folder}: another training is writing there") from None
    try:
        sweep(folder)
        sweep(folder / "checkpoints")
        yield
    finally:
        lock.release()
        if not checkpoints(folder):  # it failed before there was anything to go on from
            with suppress(OSError):
                (folder / ".lock").unlink()
                sweep(folder / "checkpoints")
                (folder / "checkpoints").rmdir()
                folder.rmdir()


def is_locked(folder: Path) -> bool:
    if not (folder / ".lock").exists():
        return False
    try:
        with FileLock(folder / ".lock", timeout=0):
            return False
    except Timeout:
        return True
    except OSError:  # not ours to write: nobody here trains into it
        return False


def make_folder(wanted: str | None, task: str) -> Path:
    """Where to save: `wanted`, if nothing is there, else the first free of runs/TASK, -2, -3...

    To make a folder is to have it: two trainings that begin together get two.
    """
    if wanted is not None:
        folder = Path(wanted)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            names = {path.name for path in folder.iterdir()}  # those two an early end leaves empty
            taken = bool(names - {".lock", "checkpoints"} or checkpoints(folder))
        except FileExistsError:
            taken = True
        except OSError as error:
            raise InputError(f"--out {folder}: cannot be written to: {error.strerror}") from None
        if taken:
            raise InputError(
                f"{folder}: already exists; choose another --out, remove it, or go on with "
                f"--resume {folder}"
            )
        return folder
    number, folder = 1, Path("runs") / task
    while True:
        try:
            folder.parent.mkdir(exist_ok=True)
            folder.mkdir()
            return folder
        except OSError as error:
            if not folder.exists():
                raise InputError(f"{folder}: cannot be written to: {error.strerror}") from None
            number += 1
            folder = Path("runs") / f"{task}-{number}"
