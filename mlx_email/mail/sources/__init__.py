"""Where mail comes from: five formats, as a file or in a folder, a tar or a zip. Streamed; nothing is unpacked.

    cmu      <anything>/<owner>/<folder>[/<folder>...]/<file>, as the CMU Enron corpus lies
    maildir  <folder>/cur|new/<file>, and Maildir++ (.Sent, .Archive.2020)
    mbox     a file of many messages, or a tree of such files: Gmail's Takeout, Thunderbird, Apple's exports
    eml      a file of one message, or a tree of such files
    emlx     Apple Mail's own folder, or one file of it

`survey` looks at the names, once; `read_source` gives every message, or the reason why a file was not read.
"""

import gzip
import lzma
import tarfile
import zipfile
import zlib
from collections import Counter
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from hashlib import sha256
from io import BufferedReader, RawIOBase
from itertools import takewhile
from pathlib import Path
from typing import IO, Literal, cast

from mlx_email.errors import DataError
from mlx_email.mail.message import MAX_BYTES, NotMail
from mlx_email.mail.names import KNOWN_FOLDERS, folder_key, printable
from mlx_email.mail.sources import formats
from mlx_email.mail.sources.archives import damaged, tar_members, zip_members
from mlx_email.mail.sources.emlx import read_emlx
from mlx_email.mail.sources.layout import Layout, Votes, find_layout, place
from mlx_email.mail.sources.mbox import Lines, is_mbox, read_mbox
from mlx_email.mail.sources.raw import FORMATS, HINT, Format, RawMail, Refused
from mlx_email.mail.sources.trees import Member, folder_members, natural_key

__all__ = [
    "FORMATS",
    "HINT",
    "KNOWN_FOLDERS",
    "Format",
    "RawMail",
    "Refused",
    "Survey",
    "find_layout",
    "folder_key",
    "natural_key",
    "read_source",
    "survey",
    "telling_name",
]

Container = Literal["file", "folder", "tar", "zip"]

ZIP_STARTS = (b"PK\x03\x04", b"PK\x05\x06")  # a member, or the end of an empty zip
GZIP_START = b"\x1f\x8b"
BUFFER = 2**20  # bytes
HEAD = 1024  # bytes by which a file's kind is known

# A tree whose files are one in ten named as CMU's is read as such: that reading takes any file for a message, the
# others would refuse these.
CMU_SHARE = 0.1

# What a damaged file or archive makes its reader raise.
BROKEN = (OSError, EOFError, ValueError, zlib.error, lzma.LZMAError, tarfile.TarError, zipfile.BadZipFile)


@dataclass(frozen=True)
class Survey:
    """What a source is, from one look at its names."""

    source: Path
    format: Format
    size: int  # bytes of mail to be read; of an mbox or its .gz: of the file
    fingerprint: str  # changes whenever the source changed
    container: Container
    layout: Layout  # of cmu
    root: tuple[str, ...] = ()  # of maildir: what lies above it


def survey(source: Path, format: Format | None = None) -> Survey:  # noqa: A002 - what --format says
    """What the source is, in one pass over its names; `format` where it is not to be found out.

    Raises DataError where the source does not exist, holds no file, or is no mail source.
    """
    if source.is_dir():
        return _survey_tree(source, "folder", format)
    if not source.exists():
        raise DataError(f"{source} does not exist: {HINT}")
    if not source.is_file():
        raise DataError(f"{source} is neither a folder nor a regular file: {HINT}")
    try:
        container, found = _look(source, format)
    except OSError as error:
        raise DataError(f"{source} cannot be read ({error.strerror or error}): check its permissions") from error
    if container != "file":
        return _survey_tree(source, container, format)
    if found is None or format not in (None, found):
        raise DataError(f"{source} is not a mail source{f' of the format {format}' if format else ''}: {HINT}")
    digest = sha256(_stamp(source))
    digest.update(found.encode())
    return Survey(source, found, source.stat().st_size, digest.hexdigest(), "file", Layout(-1, ""))


_survey = survey  # the function, where a parameter has its name


def read_source(source: Path, survey: Survey | None = None) -> Iterator[RawMail | Refused]:
    """Every message of a source, in an order that does not change; each file is mail, or refused with a reason.

    Raises DataError where the source is none, at once, and where an archive is damaged, when it is met.
    """
    known = survey or _survey(source)
    return _read_file(known) if known.container == "file" else _read_tree(known)


# --- what a source is -------------------------------------------------------------------------------------------------


def _look(source: Path, wanted: Format | None) -> tuple[Container, Format | None]:
    """How a file is to be read, from its first bytes and its name: as an archive, or as mail of a format."""
    with source.open("rb") as file:
        head = file.read(HEAD)
        file.seek(0)
        if head.startswith(ZIP_STARTS):
            return "zip", None
        if head[257:262] == b"ustar":
            return "tar", None
        if head.startswith(GZIP_START):
            return ("file", "mbox") if _is_mbox_gz(file) else ("tar", None)
        ending = source.suffix.lower()
        if wanted in ("eml", "emlx"):
            return "file", wanted
        if wanted is None and ending in (".eml", ".emlx"):
            return "file", "emlx" if ending == ".emlx" else "eml"
        if is_mbox(file) or (not head.strip() and (ending == ".mbox" or wanted == "mbox")):
            return "file", "mbox"
    return ("file", None) if wanted == "mbox" else ("tar", None)  # an old tar, or a compressed one; or nothing at all


def _is_mbox_gz(file: IO[bytes]) -> bool:
    try:
        with gzip.open(file) as plain:
            return is_mbox(plain)
    except BROKEN:
        return False


def _stamp(source: Path) -> bytes:
    status = source.stat()
    return f"{status.st_size} {status.st_mtime_ns}\n".encode()


def _members(source: Path, container: Container) -> Iterator[Member]:
    if container == "folder":
        return _below(telling_name(source), folder_members(str(source)))
    return tar_members(source) if container == "tar" else zip_members(source)


def telling_name(source: Path) -> str:
    """The name of a folder that is itself a mail folder ("Sent", ".Trash", "Inbox.mbox"): part of the paths in it; ""
    for one that only holds some."""
    name = source.resolve().name
    return name if name.lower().endswith(".mbox") or folder_key(name) in KNOWN_FOLDERS else ""


def _below(name: str, members: Iterator[Member]) -> Iterator[Member]:
    if not name:
        return members
    shown = printable(name)
    return (replace(each, name=f"{shown}/{each.name}", parts=(name, *each.parts)) for each in members)


def _survey_tree(source: Path, container: Container, wanted: Format | None) -> Survey:
    digest = sha256(b"" if container == "folder" else _stamp(source))
    claims: Counter[Format] = Counter()  # files
    weights: Counter[Format] = Counter()  # their bytes
    sizes: Counter[Format] = Counter()
    votes = Votes()
    maildir: tuple[str, ...] | None = None  # what the paths of all its folders have in common
    empty = True
    for member in _members(source, container):
        empty = False
        digest.update(f"{member.name}\0{member.size}\0{member.mtime_ns}\n".encode())
        if member.refusal or member.parts[-1].startswith("."):
            continue
        votes.add(member.parts[:-1])
        for name in FORMATS:
            if not formats.refusal(name, member.parts, member.size):
                sizes[name] += member.size
        claimed = formats.claim(member.parts)
        if claimed is not None:
            claims[claimed] += 1
            weights[claimed] += member.size
        if claimed == "maildir":
            box = member.parts[:-2]
            maildir = box if maildir is None else _common(maildir, box)
    if empty:
        raise DataError(f"{source} holds no files: {HINT}")
    found = wanted or _elect(claims, weights)
    if found in ("maildir", "eml", "emlx") and not claims[found]:
        raise DataError(f"{source} holds no mail of the format {found}: {HINT}")
    digest.update(found.encode())
    owner = source.name.partition(".")[0]
    if container == "folder":
        owner = source.resolve().parent.name if telling_name(source) else source.resolve().name
    return Survey(
        source=source,
        format=found,
        size=sizes[found],
        fingerprint=digest.hexdigest(),
        container=container,
        layout=votes.layout(owner),
        root=formats.maildir_root(maildir or ()),
    )


def _common(one: tuple[str, ...], other: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(part for part, _ in takewhile(lambda pair: pair[0] == pair[1], zip(one, other, strict=False)))


def _elect(claims: Counter[Format], weights: Counter[Format]) -> Format:
    """The format of most bytes, then of most files, then the stricter one; cmu where no name says anything.

    >>> _elect(Counter({"cmu": 1, "mbox": 30}), Counter({"mbox": 9})), _elect(Counter(cmu=5, eml=30), Counter())
    ('mbox', 'cmu')
    """
    named = claims.total() - claims["cmu"]
    if claims["cmu"] >= CMU_SHARE * claims.total():
        return "cmu"
    strict: tuple[Format, ...] = ("emlx", "maildir", "mbox", "eml")
    return max(strict, key=lambda name: (weights[name], claims[name])) if named else "cmu"


# --- reading ----------------------------------------------------------------------------------------------------------


def _read_file(known: Survey) -> Iterator[RawMail | Refused]:
    """One mbox, plain or in a .gz, or one file of one message."""
    source = known.source
    member = Member(printable(source.name), (source.name,), known.size, 0, "", lambda: source.open("rb"))
    try:
        with member.open() as stream:
            yield from _read_member(known, member, stream)
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise damaged(source, error) from error
    except OSError as error:
        raise DataError(f"{source} cannot be read ({error.strerror or error}): check its permissions") from error


def _read_tree(known: Survey) -> Iterator[RawMail | Refused]:
    for member in _members(known.source, known.container):
        reason = member.refusal or formats.refusal(known.format, member.parts, member.size)
        if reason:
            yield Refused(member.name, reason)
            continue
        try:
            with member.open() as stream:
                yield from _read_member(known, member, stream)
        except NotMail as error:
            yield Refused(member.name, str(error), member.size)
        except BROKEN as error:
            if known.container == "tar":  # what follows cannot be found any more
                raise damaged(known.source, error) from error
            yield Refused(member.name, _why_unread(error), member.size)


def _why_unread(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:  # vanished, or not allowed; the rest is read
        return f"not readable ({error.strerror})"
    return f"damaged ({type(error).__name__})"


def _read_member(known: Survey, member: Member, stream: IO[bytes]) -> Iterator[RawMail | Refused]:
    if known.format == "mbox":
        folder = formats.mbox_folder(member.parts)
        with _lines(stream) as lines:
            yield from read_mbox(lines, folder=folder, path=member.name, size=member.size)
        return
    data = _read_bounded(stream)
    if known.format == "cmu":
        yield RawMail(*place(member.parts, known.layout), data)
    elif known.format == "maildir":
        folder = formats.maildir_folder(member.parts, known.root)
        yield RawMail("", folder, member.name, data, formats.maildir_marks(member.parts))
    elif known.format == "emlx":
        message, marks = read_emlx(data)
        yield RawMail("", formats.emlx_folder(member.parts), member.name, message, marks)
    else:
        yield RawMail("", printable("/".join(member.parts[:-1])), member.name, data)


def _read_bounded(stream: IO[bytes]) -> bytes:
    """The bytes of one message, one more than allowed at most: `read_message` refuses it by its size.

    Piece by piece, as a zip unpacks as much as it is asked for before it looks at the declared size.
    """
    data = stream.read(BUFFER)
    if len(data) < BUFFER:
        return data
    pieces = [data]
    left = MAX_BYTES + 1 - len(data)
    while left > 0 and (data := stream.read(min(left, BUFFER))):
        pieces.append(data)
        left -= len(data)
    return b"".join(pieces)


@contextmanager
def _lines(stream: IO[bytes]) -> Generator[Lines, None, None]:
    """A stream by lines, unpacked where it is a gzip."""
    with BufferedReader(cast(RawIOBase, stream), BUFFER) as lines:
        if not lines.peek(2).startswith(GZIP_START):
            yield lines
            return
        with gzip.GzipFile(fileobj=lines) as plain:
            yield plain
