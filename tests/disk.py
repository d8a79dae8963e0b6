"""A disk that fails: every call that changes it is counted, and one of them goes wrong."""

import errno
import os
from pathlib import Path

from minitransformer.data import files, manifest

NEED_ROOM = ("open", "write", "mkdir", "fsync")
CALLS = ("fsync", "replace", "rename", "mkdir", "unlink", "rmdir")


class Crash(BaseException):
    """The process is gone: nothing after it runs, no `except` and no `finally` changes the disk."""


class Disk:
    """Lets `good` calls pass. The next one fails: with an error, or it is the last thing we do.

    After a crash what was written and not brought to the disk by fsync is lost: such files are cut
    in half, as after a power cut.
    """

    def __init__(self, monkeypatch, good: int = 10**9, error: int | None = None):
        self.good, self.error, self.calls, self.dead = good, error, 0, False
        self.unsynced: set[Path] = set()
        for name in CALLS:
            monkeypatch.setattr(os, name, self.counted(name, getattr(os, name)))
        self.open = open
        monkeypatch.setattr(files, "open", self.opened, raising=False)
        monkeypatch.setattr(manifest.shutil, "rmtree", self.rmtree)

    def call(self, what: str) -> None:
        if self.dead:
            raise Crash
        self.calls += 1
        if self.calls > self.good:
            if self.error is not None:
                if what in NEED_ROOM:
                    raise OSError(self.error, os.strerror(self.error))
                return
            self.dead = True
            for path in self.unsynced:
                if path.exists():
                    os.truncate(path, path.stat().st_size // 2)
            raise Crash(what)

    def counted(self, name, function):
        def call(*arguments, **keywords):
            self.call(name)
            if name == "fsync":
                synced = os.readlink(f"/proc/self/fd/{arguments[0]}")
                self.unsynced.discard(Path(synced))
            if name in ("replace", "rename"):
                old = Path(os.path.abspath(arguments[0]))
                assert old not in self.unsynced, f"{old} is renamed before it is on the disk"
                assert not any(path.is_relative_to(old) for path in self.unsynced)
            return function(*arguments, **keywords)

        return call

    def opened(self, path, mode="r", **options):
        if mode != "wb":
            return self.open(path, mode, **options)
        self.call("open")
        return _File(self, Path(os.path.abspath(path)), self.open(path, mode))

    def rmtree(self, folder, ignore_errors=False):
        """As slow as a disk: file by file."""
        if not Path(folder).exists():
            return
        try:
            for path in sorted(Path(folder).iterdir()):
                path.unlink() if path.is_file() else self.rmtree(path)
            os.rmdir(folder)
        except OSError:
            if not ignore_errors:
                raise


class _File:
    def __init__(self, disk, path, file):
        self.disk, self.path, self.file = disk, path, file

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.file.close()

    def write(self, data):
        self.disk.unsynced.add(self.path)
        half = len(data) // 2
        self.disk.call("write")
        self.file.write(data[:half])
        self.file.flush()
        self.disk.call("write")
        self.file.write(data[half:])

    def flush(self):
        self.file.flush()

    def fileno(self):
        return self.file.fileno()


FULL = errno.ENOSPC
