"""Trees of files, whatever they lie in: a folder, a tar or a zip give the same stream of members.

Nothing is unpacked, links are never followed, and what cannot be read is a member too, with the reason.
"""

import os
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import IO

from mlx_email.errors import DataError
from mlx_email.mail.message import NotMail
from mlx_email.mail.names import printable


@dataclass(frozen=True, slots=True)
class Member:
    """One file of a tree; what it opens must be read before the next member is asked for."""

    name: str  # the parts joined, printable; of an unsafe path: as the archive writes it
    parts: tuple[str, ...]
    size: int
    mtime_ns: int  # 0 in archives, whose own time is looked at
    refusal: str  # why it cannot be opened; "" where it can
    open: Callable[[], IO[bytes]]


def folder_members(root: str) -> Iterator[Member]:
    """Everything below a folder that is not a folder; links are not followed. Sorted, numbers by value."""
    stack: list[tuple[str, ...]] = [()]
    while stack:
        parts = stack.pop()
        try:
            with os.scandir(os.path.join(root, *parts)) as entries:
                found = sorted(entries, key=lambda entry: natural_key(entry.name))
        except OSError as error:
            if not parts:
                raise DataError(f"{root} cannot be read ({error.strerror}): check its permissions") from error
            yield _member(root, parts, None)
            continue
        below = []
        for entry in found:
            try:
                status = entry.stat(follow_symlinks=False)
            except OSError:  # vanished since
                status = None
            if status is not None and stat.S_ISDIR(status.st_mode):
                below.append((*parts, entry.name))
            else:
                yield _member(root, (*parts, entry.name), status)
        stack.extend(reversed(below))


def natural_key(name: str) -> tuple[int, int, str]:
    """Sorts `2.` before `10.`, and numbers before names."""
    head = name.partition(".")[0]
    return (0, int(head), name) if head.isascii() and head.isdigit() and len(head) < 20 else (1, 0, name)


def _member(root: str, parts: tuple[str, ...], status: os.stat_result | None) -> Member:
    shown = printable("/".join(parts))
    opened = partial(open_regular, os.path.join(root, *parts))
    if status is None:
        return Member(shown, parts, 0, 0, "not readable", opened)
    refusal = "" if stat.S_ISREG(status.st_mode) else _kind(status.st_mode)
    return Member(shown, parts, 0 if refusal else status.st_size, status.st_mtime_ns, refusal, opened)


def _kind(mode: int) -> str:
    kinds = ((stat.S_ISLNK, "symbolic link"), (stat.S_ISFIFO, "named pipe"), (stat.S_ISSOCK, "socket"))
    return next((name for test, name in kinds if test(mode)), "device")


def open_regular(path: str) -> IO[bytes]:
    """A regular file; a link or pipe put in its place since the walk is not followed or waited for."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    if stat.S_ISREG(os.fstat(descriptor).st_mode):
        return os.fdopen(descriptor, "rb")
    os.close(descriptor)
    raise NotMail("not a regular file")
