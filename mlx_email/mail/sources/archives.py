"""Archives as trees: the members of a tar or a zip, one at a time, nothing unpacked.

A member is refused, and never opened, where its path is unsafe, where it is a link or a device, where it is encrypted,
and where it is a bomb: reading is bounded by the declared size, and that by the size of the archive.
"""

import re
import stat
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from tarfile import HeaderError, ReadError
from typing import IO, Self

from mlx_email.errors import DataError, MlxEmailError
from mlx_email.mail.message import NotMail
from mlx_email.mail.names import printable
from mlx_email.mail.sources.raw import HINT
from mlx_email.mail.sources.trees import Member

MAX_ENTRIES = 5_000_000  # members of one archive; all of Enron has half a million
MAX_DIRECTORY = 128 * 2**20  # bytes of a zip's list of members, which zipfile holds in memory: about a million members

# Mail shrinks to a half or a third, and a mailbox of one repeated letter to a hundredth; deflate's limit is 1032.
MAX_RATIO, RATIO_FROM = 200, 2**20

_ZIP_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)  # of the others zipfile decompresses without a bound
_ZIP_END, _ZIP64_PLACE = b"PK\x05\x06", b"PK\x06\x07"


def tar_members(source: Path) -> Iterator[Member]:
    """The members of a tar, however compressed, as they come; a damaged one is an error, not a short mailbox."""
    with _open_tar(source) as archive:
        seen: set[int] = set()
        for info in _tar_entries(archive, source):
            unsafe = _unsafe(info.name)
            if info.isdir() and not unsafe:
                continue
            parts = _parts(info.name)
            refusal = _tar_refusal(info, unsafe=unsafe) or _repeated(parts, seen)
            opened = partial(_open_tar_member, archive, info)
            yield Member(_shown(info.name, parts, unsafe=unsafe), parts, max(info.size, 0), 0, refusal, opened)


def zip_members(source: Path) -> Iterator[Member]:
    """The members of a zip in the order of its directory."""
    with _open_zip(source) as archive:
        entries = archive.infolist()
        if len(entries) > MAX_ENTRIES:
            raise DataError(f"{source} has more than {MAX_ENTRIES} members: split it")
        if sum(info.compress_size for info in entries) > source.stat().st_size:
            raise DataError(f"{source} is a damaged archive (its members overlap): get it again")
        seen: set[int] = set()
        for info in entries:
            unsafe = _unsafe(info.filename)
            if info.filename.endswith("/") and not unsafe:
                continue
            parts = _parts(info.filename)
            refusal = _zip_refusal(info, unsafe=unsafe) or _repeated(parts, seen)
            opened = partial(_open_zip_member, archive, info)
            yield Member(_shown(info.filename, parts, unsafe=unsafe), parts, info.file_size, 0, refusal, opened)


def damaged(source: Path, error: Exception) -> DataError:
    """The error of an archive that cannot be read to its end."""
    return DataError(f"{source} is a damaged archive ({type(error).__name__}: {_one_line(error)}): get it again")


def _one_line(error: Exception) -> str:
    return " ".join(printable(str(error)).split())[:200]


def _unsafe(name: str) -> bool:
    """Paths that would leave the folder where an archive is unpacked, by the rules of Unix or of Windows."""
    steps = name.replace("\\", "/").split("/")
    return not _parts(name) or not steps[0] or ".." in steps or re.match(r"[A-Za-z]:", name) is not None


def _parts(name: str) -> tuple[str, ...]:
    return tuple(part for part in name.split("/") if part not in ("", "."))


def _shown(name: str, parts: tuple[str, ...], *, unsafe: bool) -> str:
    return printable(name if unsafe else "/".join(parts))  # of `./oak` as of `oak`


def _repeated(parts: tuple[str, ...], seen: set[int]) -> str:
    """Two members of one name would be one message of two contents; the hash of a name, as a name is long."""
    key = hash(parts)
    if key in seen:
        return "second file of its name"
    seen.add(key)
    return ""


# --- tar --------------------------------------------------------------------------------------------------------------


_DAMAGE = ("InvalidHeaderError", "TruncatedHeaderError")  # by name: tarfile does not show these classes


class _StrictInfo(tarfile.TarInfo):
    """A member whose header is damaged is an error; tarfile takes it for the archive's end."""

    @classmethod
    def fromtarfile(cls, tarfile: tarfile.TarFile) -> Self:
        try:
            return super().fromtarfile(tarfile)
        except HeaderError as error:
            if type(error).__name__ in _DAMAGE:
                raise ReadError(str(error)) from None
            raise  # the archive's end


def _tar_refusal(info: tarfile.TarInfo, *, unsafe: bool) -> str:
    if unsafe:
        return "unsafe path"
    if info.issym() or info.islnk():
        return "link"
    return "" if info.isreg() and not info.issparse() else "not a regular file"


def _open_tar(source: Path) -> tarfile.TarFile:
    try:
        return tarfile.open(source, "r|*", tarinfo=_StrictInfo)
    except (tarfile.TarError, EOFError, OSError, ValueError, TypeError) as error:  # TypeError: a gzip of three bytes
        if isinstance(error, PermissionError):
            raise DataError(f"{source} cannot be read ({error.strerror}): check its permissions") from error
        raise DataError(f"{source} is not a mail source: {HINT}") from error


def _tar_entries(archive: tarfile.TarFile, source: Path) -> Iterator[tarfile.TarInfo]:
    """The members, one at a time, forgotten after use."""
    try:
        count = 0
        while (info := archive.next()) is not None:
            count += 1
            if count > MAX_ENTRIES:
                raise DataError(f"{source} has more than {MAX_ENTRIES} members: split it")
            vars(archive)["members"].clear()  # tarfile keeps every member it has seen
            yield info
    except (tarfile.TarError, EOFError, OSError, ValueError, OverflowError) as error:
        if isinstance(error, MlxEmailError):
            raise
        raise damaged(source, error) from error


def _open_tar_member(archive: tarfile.TarFile, info: tarfile.TarInfo) -> IO[bytes]:
    file = archive.extractfile(info)
    if file is None:
        raise NotMail("not a regular file")
    return file


# --- zip --------------------------------------------------------------------------------------------------------------


def _zip_refusal(info: zipfile.ZipInfo, *, unsafe: bool) -> str:
    mode = info.external_attr >> 16
    if unsafe:
        return "unsafe path"
    if stat.S_ISLNK(mode):
        return "link"
    if stat.S_IFMT(mode) and not stat.S_ISREG(mode):
        return "not a regular file"
    if info.flag_bits & 0x2041:  # encrypted, strongly encrypted, with an encrypted directory
        return "encrypted"
    if info.compress_type not in _ZIP_METHODS:
        return "compressed in a way that is not read"
    if info.file_size > max(RATIO_FROM, MAX_RATIO * info.compress_size):
        return f"compressed more than {MAX_RATIO} times"
    return ""


def _open_zip(source: Path) -> zipfile.ZipFile:
    try:
        size = _directory_size(source)
        if size > MAX_DIRECTORY:
            raise DataError(f"{source} has too many members: split it")
        return zipfile.ZipFile(source)
    except MlxEmailError:
        raise
    except PermissionError as error:
        raise DataError(f"{source} cannot be read ({error.strerror}): check its permissions") from error
    except (zipfile.BadZipFile, OSError, EOFError, ValueError, NotImplementedError, struct.error, IndexError) as error:
        raise damaged(source, error) from error


def _directory_size(source: Path) -> int:
    """Bytes of the list of members as the end of the zip declares it, which is what zipfile reads into memory."""
    with source.open("rb") as file:
        file.seek(max(0, source.stat().st_size - 2**16 - 22))  # the end record and the longest comment after it
        tail = file.read()
        end = len(tail) - 22 if tail[-22:-18] == _ZIP_END and tail[-2:] == b"\0\0" else tail.rfind(_ZIP_END)
        size = int.from_bytes(tail[end + 12 : end + 16], "little") if end >= 0 else 0
        place = tail.rfind(_ZIP64_PLACE)  # where the record of a zip64 lies: there, or just before this very place
        if place < 0:
            return size
        starts = (int.from_bytes(tail[place + 8 : place + 16], "little"), file.tell() - len(tail) + place - 56)
        sizes = [size if size < 2**32 - 1 else 0]
        for start in starts:
            if 0 <= start < file.tell() + 1:
                file.seek(start)
                record = file.read(56)
                sizes.append(int.from_bytes(record[40:48], "little") if record.startswith(b"PK\x06\x06") else 0)
                file.seek(0, 2)
        return max(sizes)


def _open_zip_member(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> IO[bytes]:
    try:
        return archive.open(info)
    except (RuntimeError, NotImplementedError, ValueError, IndexError, struct.error, zlib.error) as error:
        raise zipfile.BadZipFile(_one_line(error)) from error  # its own header says otherwise than the directory
