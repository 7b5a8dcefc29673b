"""Files that are either whole or absent.

A folder is published by writing a hidden folder beside it and renaming that; a file likewise. So a reader never sees
half of one; what a killed process left (`.tmp-mlx-email-<name>-<pid>`) is removed by the next that writes beside it.
"""

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Generator
from pathlib import Path
from typing import Any, BinaryIO

from mlx_email.errors import MlxEmailError, UserError

TEMPORARY = ".tmp-mlx-email-"
LOCK = ".lock"


def open_private(path: Path) -> BinaryIO:
    """A file that only its owner can read, open for writing; what was there is replaced."""
    return os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb")


def fsync(path: Path) -> None:
    """Flush a file or a folder to its disk. On macOS `F_FULLFSYNC`, since fsync stops at the drive's cache there."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        full = getattr(fcntl, "F_FULLFSYNC", None)
        if full is not None:
            # Some file systems (network shares) do not know it; then fsync is the most there is.
            with contextlib.suppress(OSError):
                fcntl.fcntl(descriptor, full)
                return
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write(path: Path, data: bytes | str) -> None:
    """Replace `path` by `data` in one step; mode 0600, since what we write is made from mail."""
    temporary = path.with_name(f"{TEMPORARY}{path.name}-{os.getpid()}")
    try:
        _sweep(path.parent)
        with open_private(temporary) as file:
            file.write(data.encode() if isinstance(data, str) else data)
        fsync(temporary)
        os.replace(temporary, path)
        fsync(path.parent)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise MlxEmailError(f"cannot write {path}: {error.strerror or error}") from error
        raise


def write_json(path: Path, value: Any) -> None:
    """`write` a value as indented JSON with sorted keys; non-finite numbers are refused."""
    write(path, json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n")


@contextlib.contextmanager
def publish(folder: Path, *, flush: bool = True) -> Generator[Path]:
    """Give a hidden folder to fill; on a clean exit it takes the place of `folder`, otherwise it is removed.

    Every file in it is flushed first, unless `flush` is off (for thousands of files that can be made again). Raises
    UserError where `folder` exists and is not empty, so nothing that somebody made is ever replaced, and where its
    parent cannot be written.
    """
    check_new(folder)
    shown, folder = folder, folder.resolve()
    temporary = folder.with_name(f"{TEMPORARY}{folder.name}-{os.getpid()}")
    try:
        _make(temporary, shown)
        yield temporary
        _rename(temporary, folder, flush=flush)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _make(temporary: Path, shown: Path) -> None:
    """Make a hidden folder, and those that it lies in; errors say what the user has `shown`."""
    try:
        temporary.parent.mkdir(parents=True, exist_ok=True)
        _sweep(temporary.parent)
        _discard(temporary)
        temporary.mkdir(mode=0o700)
    except OSError as error:
        kind = MlxEmailError if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EIO) else UserError
        raise kind(f"cannot write {shown}: {error.strerror or error}") from error


def remove(folder: Path) -> None:
    """Remove a folder (or what lies in its place) so that it is whole or gone whenever this is interrupted.

    Raises MlxEmailError where that fails.
    """
    hidden = folder.with_name(f"{TEMPORARY}{folder.name}-{os.getpid()}")
    try:
        _discard(hidden)
        folder.rename(hidden)
        _discard(hidden)
    except OSError as error:
        raise MlxEmailError(f"cannot remove {folder}: {error.strerror or error}") from error


def check_new(folder: Path) -> None:
    """UserError where `folder` is something that must not be replaced."""
    shown, folder = folder, folder.resolve()
    if folder in (Path.cwd(), Path(folder.anchor)):
        raise UserError(f"{shown} cannot be replaced: name a new folder")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{shown} exists and is not empty: name a new folder")


def _sweep(folder: Path) -> None:
    """Remove what processes that are gone were writing in `folder`: it may be somebody's mail."""
    for left in folder.glob(f"{TEMPORARY}*"):
        process = left.name.rpartition("-")[2]
        if process.isdigit() and not _alive(int(process)):
            with contextlib.suppress(OSError):
                _discard(left)


def _discard(path: Path) -> None:
    """Remove a folder, a file or a link, where there is one; never what a link leads to."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True  # somebody else's
    return True


def _rename(temporary: Path, folder: Path, *, flush: bool) -> None:
    try:
        for path in (*sorted(temporary.rglob("*")), temporary) if flush else ():
            fsync(path)
        if folder.exists():
            folder.rmdir()  # empty: `publish` has checked
        os.rename(temporary, folder)
        fsync(folder.parent)
    except OSError as error:
        raise MlxEmailError(f"cannot write {folder}: {error.strerror or error}") from error


def sha256(path: Path) -> str:
    """The file's SHA-256, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextlib.contextmanager
def locked(folder: Path) -> Generator[None]:
    """Hold the folder for this process; UserError at once, naming the process, where another one holds it.

    The kernel drops the lock with its process, so none is ever stale.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        file: BinaryIO = (folder / LOCK).open("a+b")
    except OSError as error:
        raise UserError(f"cannot write {folder}: {error.strerror or error}") from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            holder = file.read().decode(errors="replace").strip() or "another process"
            raise UserError(f"{folder} is in use by process {holder}: wait for it, or name another --out") from None
        file.truncate(0)
        file.write(str(os.getpid()).encode())
        file.flush()
        yield
