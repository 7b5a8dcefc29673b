"""The mail that `predict` is asked about: e-mails, whole sources, standard input, bare text; one message at a time."""

import sys
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from hashlib import sha256
from itertools import chain
from pathlib import Path
from typing import IO

from mlx_email.errors import DataError
from mlx_email.mail.headers import decode_header, decode_text, parse_addresses
from mlx_email.mail.message import MAX_BYTES, Message, NotMail
from mlx_email.mail.names import printable
from mlx_email.mail.read import read_message
from mlx_email.mail.sources import HINT, RawMail, Refused, Survey, formats, read_source, survey, telling_name
from mlx_email.mail.sources.mbox import EMPTY_MBOX, PIECE, is_mbox, read_mbox

STDIN = "-"


@dataclass(frozen=True)
class Arrived:
    """A message that was read."""

    file: str  # as it was given
    path: str  # within it: of a message in an mbox its number, from 1; "" where the file is one message
    message: Message

    @property
    def called(self) -> str:
        """What to call it in a line about it."""
        return _place(self.file, self.path)


@dataclass(frozen=True)
class Unread:
    """What could not be read: one line that says what and why, and holds no mail text."""

    reason: str


def letters(names: Iterable[str]) -> Iterator[Arrived | Unread]:
    """The messages of files and sources, each source's in the order of `read_source`; `-` is stdin.

    What a source is, is found out as `prepare` does; any other file is one e-mail, whatever its name. Nothing that lies
    in them raises: it is `Unread`, and so is a source without a message.
    """
    for name in names:
        nothing = True
        for each in _letters_of(name):
            nothing = False
            yield each
        if nothing:
            yield Unread(f"{_called(name)} holds no mail")


def bare_texts(names: Iterable[str], subject: str, sender: str) -> Iterator[Arrived | Unread]:
    """Files that are bodies without headers, as messages with this subject and sender."""
    address = next((address for _, address in parse_addresses(sender) if "@" in address), "")
    for name in names:
        try:
            with _opened(name) as stream:
                data = stream.read(MAX_BYTES + 1)
            if not data.strip() or len(data) > MAX_BYTES:
                raise NotMail("it is too large" if data.strip() else "it is empty")
        except (OSError, NotMail) as error:
            yield unread(name, error)
            continue
        body = decode_text(data, "utf-8")
        identity = f"<{sha256(data).hexdigest()[:32]}@no-message-id>"
        message = Message(message_id=identity, sender=address, subject=decode_header(subject), body=body)
        yield Arrived(name, "", message)


def _letters_of(name: str) -> Iterator[Arrived | Unread]:
    source = Path(name)
    if name != STDIN and (source.is_dir() or source.is_file()):
        try:
            known = survey(source)
        except DataError as error:
            if source.is_dir() or HINT not in str(error):  # a damaged archive
                yield Unread(str(error))
                return
        else:
            yield from _of_source(name, known)
            return
    try:
        with _opened(name) as stream:
            yield from _of_stream(name, stream)
    except OSError as error:
        yield unread(name, error)


def _of_source(name: str, known: Survey) -> Iterator[Arrived | Unread]:
    prefix = _prefix(known)
    try:
        for item in read_source(known.source, known):
            # What a source holds beside its mail (an index, a hidden file) is not missed.
            if isinstance(item, RawMail) or not _is_no_mail(item, known):
                yield _read(name, item, prefix)
    except DataError as error:
        yield Unread(str(error))


def _of_stream(name: str, stream: IO[bytes]) -> Iterator[Arrived | Unread]:
    """An mbox, or one e-mail, by its first two lines."""
    first = [stream.readline(PIECE)]
    if first[0].startswith(b"From "):
        first.append(stream.readline(PIECE))
        if is_mbox(_Lines(iter(first))):
            rest = iter(lambda: stream.readline(PIECE), b"")
            for item in read_mbox(_Lines(chain(first, rest)), folder="", path=_called(name)):
                yield _read(name, item, f"{_called(name)}/")
            return
    yield read_one(name, "", b"".join([*first, stream.read(MAX_BYTES + 1)]))


@dataclass(frozen=True)
class _Lines:
    """Lines that were read before, and what follows them, as `read_mbox` asks for them: in pieces of PIECE bytes."""

    pieces: Iterator[bytes]

    def readline(self, size: int, /) -> bytes:  # noqa: ARG002
        return next(self.pieces, b"")


def _read(name: str, item: RawMail | Refused, prefix: str) -> Arrived | Unread:
    path = item.path.removeprefix(prefix)
    if isinstance(item, RawMail) and item.owner:  # its path is within the owner's mailbox
        path = f"{item.owner}/{path}"
    if isinstance(item, Refused):
        return Unread(f"{_place(name, path)} cannot be read: {item.reason}")
    return read_one(name, path, item.data, owner=item.owner)


def read_one(name: str, path: str, data: bytes, *, owner: str = "") -> Arrived | Unread:
    """One message of a source from its bytes; folders and flags are nothing that a prompt shows."""
    try:
        return Arrived(name, path, read_message(data, owner=owner))
    except NotMail as error:
        return Unread(f"{_place(name, path)} is not an e-mail: {error}")


def _place(name: str, path: str) -> str:
    return f"{_called(name)}/{path}" if path else _called(name)


def _prefix(known: Survey) -> str:
    """What the paths of a source begin with that stands in the source's own name already."""
    if known.container == "file":
        called = printable(known.source.name)
        return f"{called}/" if known.format == "mbox" else called
    telling = telling_name(known.source) if known.container == "folder" else ""
    return f"{printable(telling)}/" if telling else ""


def _is_no_mail(refused: Refused, known: Survey) -> bool:
    """Whether a file's name alone says that it is no mail, or it is an mbox without a message."""
    return refused.reason == EMPTY_MBOX or bool(formats.refusal(known.format, tuple(refused.path.split("/")), 0))


def _opened(name: str) -> AbstractContextManager[IO[bytes]]:
    return nullcontext(sys.stdin.buffer) if name == STDIN else Path(name).open("rb")


def _called(name: str) -> str:
    return "stdin" if name == STDIN else name


def unread(name: str, error: OSError | NotMail) -> Unread:
    """A file that cannot be opened or is no e-mail, and why."""
    if isinstance(error, OSError):
        return Unread(f"{_called(name)} cannot be read: {error.strerror or error}")
    return Unread(f"{_called(name)} is not an e-mail: {error}")
