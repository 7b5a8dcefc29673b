"""Where mail comes from: a maildir in CMU's shape, as a folder or as a tar of it. Streamed; nothing is unpacked.

    <anything>/<owner>/<folder>[/<folder>...]/<file>

The owner's place in the path is found from the names of the folders (inbox, sent, ...), so a whole corpus, one
owner's mailbox, and a tar with any prefix are all read alike.
"""

import os
import re
import stat
import tarfile
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from mlx_email.errors import DataError, MlxEmailError
from mlx_email.mail.message import NotMail
from mlx_email.mail.read import MAX_BYTES

HINT = "give a maildir folder (<owner>/<folder>/<message>), or a .tar or .tar.gz of one"
MAX_ENTRIES = 5_000_000  # members of one archive; all of Enron has half a million

# The folders by which a mailbox is known, as `folder_key` writes them.
KNOWN_FOLDERS = frozenset(
    "inbox sent sent_mail sent_items sent_messages deleted_items deleted_messages trash drafts all_documents"
    " discussion_threads notes_inbox calendar contacts".split()
)


@dataclass(frozen=True)
class RawMail:
    """The bytes of one file and where they lay."""

    owner: str
    folder: str  # within the mailbox, parts joined by "/"
    path: str  # within the mailbox
    data: bytes


@dataclass(frozen=True)
class Refused:
    """A file that was not read, and why; its path as text, with undecodable bytes escaped."""

    path: str
    reason: str


@dataclass(frozen=True)
class Layout:
    """Which part of a path names the owner: its index, or -1 where the source is one owner's mailbox."""

    owner_index: int
    source_owner: str  # the owner's name where the path has none


def folder_key(name: str) -> str:
    """One part of a folder's path in a form to compare: `Sent Items`, `sent_items` and `_sent_mail` lose their styles.

    >>> folder_key("Sent Items"), folder_key("_sent_mail")
    ('sent_items', 'sent_mail')
    """
    return re.sub(r"[^a-z0-9]+", "_", name.lower()).strip("_")


def read_source(source: Path) -> Iterator[RawMail | Refused]:
    """Every file of a source, in an order that does not change; each is either mail bytes or refused with a reason.

    Raises DataError where the source does not exist, holds no file, or is no mail source.
    """
    if source.is_dir():
        return _read_folder(source)
    if not source.exists():
        raise DataError(f"{source} does not exist: {HINT}")
    if source.is_file():
        return _read_tar(source)
    raise DataError(f"{source} is neither a folder nor a regular file: {HINT}")


def find_layout(paths: Iterable[tuple[str, ...]], source_owner: str) -> Layout:
    """Where the owner stands, from the folder paths of all files: before the folder most often known by its name.

    >>> find_layout([("maildir", "ann", "inbox"), ("maildir", "ann", "work")], "x").owner_index
    1
    >>> find_layout([("inbox",), ("sent",)], "ann").owner_index
    -1
    """
    votes: Counter[int] = Counter()
    shallowest = 10**6
    for folders in paths:
        shallowest = min(shallowest, len(folders))
        known = next((index for index, name in enumerate(folders) if folder_key(name) in KNOWN_FOLDERS), None)
        if known is not None:
            votes[known] += 1
    if votes:
        return Layout(max(votes, key=lambda index: (votes[index], -index)) - 1, source_owner)
    return Layout(shallowest - 2 if 2 <= shallowest < 10**6 else -1, source_owner)


def _place(parts: tuple[str, ...], layout: Layout, data: bytes) -> RawMail:
    *folders, name = (_printable(part) for part in parts)
    index = layout.owner_index
    if index < 0:
        owner, inside = layout.source_owner, folders
    elif len(folders) > index:
        owner, inside = folders[index], folders[index + 1 :]
    else:  # beside the owners' folders
        owner, inside = layout.source_owner, folders
    return RawMail(owner or "owner", "/".join(inside), "/".join([*inside, name]), data)


def _printable(name: str) -> str:
    """A file name that is not UTF-8 arrives with lone surrogates, which no table can hold."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


# --- folders ----------------------------------------------------------------------------------------------------------


def _read_folder(source: Path) -> Iterator[RawMail | Refused]:
    root = str(source)
    owner = source.resolve().name
    layout = find_layout((parts[:-1] for parts, mode in _walk(root) if stat.S_ISREG(mode)), owner)
    empty = True
    for parts, mode in _walk(root):
        empty = False
        shown = _printable("/".join(parts))
        if not stat.S_ISREG(mode):
            yield Refused(shown, _kind(mode))
        elif parts[-1].startswith("."):
            yield Refused(shown, "hidden file")
        else:
            try:
                yield _place(parts, layout, _read_regular(os.path.join(root, *parts)))
            except NotMail as error:
                yield Refused(shown, str(error))
            except OSError as error:  # vanished, or not allowed; the walk goes on
                yield Refused(shown, f"not readable ({error.strerror})")
    if empty:
        raise DataError(f"{source} holds no files: {HINT}")


def _walk(root: str) -> Iterator[tuple[tuple[str, ...], int]]:
    """(path parts, mode) of everything below that is not a folder; links are not followed. Sorted, numbers by value."""
    stack: list[tuple[str, ...]] = [()]
    while stack:
        parts = stack.pop()
        try:
            with os.scandir(os.path.join(root, *parts)) as entries:
                found = sorted(entries, key=lambda entry: natural_key(entry.name))
        except OSError as error:
            if not parts:
                raise DataError(f"{root} cannot be read ({error.strerror}): check its permissions") from error
            yield parts, 0
            continue
        below = []
        for entry in found:
            try:
                mode = entry.stat(follow_symlinks=False).st_mode
            except OSError:
                mode = 0
            if stat.S_ISDIR(mode):
                below.append((*parts, entry.name))
            else:
                yield (*parts, entry.name), mode
        stack.extend(reversed(below))


def natural_key(name: str) -> tuple[int, int, str]:
    """Sorts `2.` before `10.`, and numbers before names."""
    head = name.partition(".")[0]
    return (0, int(head), name) if head.isascii() and head.isdigit() and len(head) < 20 else (1, 0, name)


def _kind(mode: int) -> str:
    kinds = ((stat.S_ISLNK, "symbolic link"), (stat.S_ISFIFO, "named pipe"), (stat.S_ISSOCK, "socket"))
    return next((name for test, name in kinds if test(mode)), "device" if mode else "not readable")


def _read_regular(path: str) -> bytes:
    """The bytes of a regular file; a link or pipe put in its place since the walk is not followed or waited for."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    with os.fdopen(descriptor, "rb") as file:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise NotMail("not a regular file")
        return file.read(MAX_BYTES + 1)  # one more than allowed: `read_message` refuses it by its size


# --- archives ---------------------------------------------------------------------------------------------------------


def _read_tar(source: Path) -> Iterator[RawMail | Refused]:
    """Two passes over the archive: its names, to find the owners, then its mail. Refused members are never opened."""
    owner = source.name.partition(".")[0]
    layout = find_layout((PurePosixPath(m.name).parts[:-1] for m in _members(source) if not _refusal(m)), owner)
    empty = True
    with _open_tar(source) as archive:
        for member in _guarded(archive, source):
            if member.isdir() and not _unsafe(member.name):
                continue
            empty = False
            reason = _refusal(member)
            file = None if reason else archive.extractfile(member)
            if file is None:
                yield Refused(_printable(member.name), reason or "not a regular file")
                continue
            try:
                data = file.read()
            except (tarfile.TarError, OSError, EOFError, ValueError) as error:
                raise _damaged(source, error) from error
            yield _place(PurePosixPath(member.name).parts, layout, data)
    if empty:
        raise DataError(f"{source} holds no files: {HINT}")


def _unsafe(name: str) -> bool:
    parts = PurePosixPath(name).parts
    return not parts or name.startswith(("/", "\\")) or ".." in parts or re.match(r"[A-Za-z]:", name) is not None


def _refusal(member: tarfile.TarInfo) -> str:
    """Why a member is not read; "" for a plain file at a plain path."""
    if _unsafe(member.name):
        return "unsafe path"
    if member.issym() or member.islnk():
        return "link"
    if not member.isreg() or member.issparse():
        return "not a regular file"
    if member.size > MAX_BYTES:
        return f"larger than {MAX_BYTES // 2**20} MiB"
    return "hidden file" if PurePosixPath(member.name).name.startswith(".") else ""


def _open_tar(source: Path) -> tarfile.TarFile:
    try:
        return tarfile.open(source, "r|*")
    except (tarfile.TarError, EOFError, OSError, ValueError) as error:
        if isinstance(error, PermissionError):
            raise DataError(f"{source} cannot be read ({error.strerror}): check its permissions") from error
        raise DataError(f"{source} is not a mail source: {HINT}") from error


def _members(source: Path) -> Iterator[tarfile.TarInfo]:
    with _open_tar(source) as archive:
        yield from _guarded(archive, source)


def _guarded(archive: tarfile.TarFile, source: Path) -> Iterator[tarfile.TarInfo]:
    """The members, one at a time, forgotten after use; a damaged archive is an error, not a short mailbox."""
    try:
        count = 0
        while (member := archive.next()) is not None:
            count += 1
            if count > MAX_ENTRIES:
                raise DataError(f"{source} has more than {MAX_ENTRIES} members: split it")
            vars(archive)["members"].clear()  # tarfile keeps every member it has seen
            yield member
    except (tarfile.TarError, EOFError, OSError, ValueError, OverflowError) as error:
        if isinstance(error, MlxEmailError):
            raise
        raise _damaged(source, error) from error


def _damaged(source: Path, error: Exception) -> DataError:
    return DataError(f"{source} is a damaged archive ({type(error).__name__}: {error}): get it again")
