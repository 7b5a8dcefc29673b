"""What comes out of a mail source: the bytes of one message and where they lay, or why a file was not read."""

from dataclasses import dataclass
from typing import Literal

from mlx_email.mail.message import Mark

Format = Literal["cmu", "maildir", "mbox", "eml", "emlx"]
FORMATS: tuple[Format, ...] = ("cmu", "maildir", "mbox", "eml", "emlx")

HINT = (
    "give an mbox file (.gz too), an .eml file, or a folder, .tar, .tar.gz or .zip of mbox files, of a Maildir, of .eml"
    " or .emlx files, or of <owner>/<folder>/<message> files"
)


@dataclass(frozen=True)
class RawMail:
    """The bytes of one message and where they lay."""

    owner: str  # "" where the source's layout names no owner
    folder: str  # within the mailbox, parts joined by "/"
    path: str  # within the mailbox; of a message in an mbox: the file's, and the message's number from 1
    data: bytes
    marks: tuple[Mark, ...] = ()  # what the place says: Maildir's flags in the name, Apple Mail's beside the message


@dataclass(frozen=True)
class Refused:
    """A file, or a message of one, that was not read, and why; its path as text, undecodable bytes escaped."""

    path: str
    reason: str
    size: int = 0  # bytes that `Survey.size` counts; 0 where the name alone refused it
