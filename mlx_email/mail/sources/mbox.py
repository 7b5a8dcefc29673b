"""One mbox file: a stream of messages, whatever its size, in bounded memory and linear time.

A border is a line `From <something> <date>` at the start or after a blank line, and above a line that looks like a
header: bodies hold unquoted lines that begin with `From `, and mail programs disagree on who quotes them (mboxo,
mboxrd). One `>` is taken from `>From `, `>>From `, ..., which is exact for mboxrd.
Left out: mboxcl's Content-Length, which lies as soon as line ends were changed.
"""

import re
from collections.abc import Iterator
from functools import partial
from itertools import chain
from typing import Protocol

from mlx_email.mail.message import MAX_BYTES
from mlx_email.mail.sources.formats import TOO_LARGE
from mlx_email.mail.sources.raw import RawMail, Refused

NOT_MBOX, EMPTY_MBOX = "not an mbox", "empty mbox"

PIECE = 64 * 1024  # bytes of a line that are looked at in one go: a line can be a gigabyte
MAX_BORDER = 1000  # bytes of a border; the longest address has 320
MAX_BLANK = 2**20  # bytes of blank lines before the first border

_HEADER = re.compile(rb"[!-9;-~]{1,256}[ \t]*:(?!//)")  # and no address of a page at the start of a line of text
_QUOTED = re.compile(rb">+From ")
# Searched one after the other, never in one pattern, which would take quadratic time.
_TIME = re.compile(rb"(?<!\d)\d{1,2}:\d\d(?!\d)")
_YEAR = re.compile(rb"(?<![\d+])(?:19|20)\d\d(?!\d)")
_DAY = re.compile(rb"\b(?:Jan|Feb|Mar|Apr|May|Jun|Jul|Aug|Sep|Oct|Nov|Dec)[a-z]*\b|\b\d{4}-\d\d-\d\d")
_SENDER = re.compile(rb"From +[^ ]")


class Lines(Protocol):
    """What a stream must have to be read here."""

    def readline(self, size: int, /) -> bytes:
        """The rest of the line, or its next `size` bytes."""
        ...


def is_mbox(stream: Lines) -> bool:
    """Whether a stream begins as an mbox does; reads two lines of it."""
    return isinstance(_open(stream), bytes)


def read_mbox(stream: Lines, *, folder: str, path: str, size: int = 0) -> Iterator[RawMail | Refused]:
    """The messages of one mbox; `path` is the file's and `size` its bytes, for where it is refused as a whole."""
    first = _open(stream)
    if isinstance(first, str):
        yield Refused(path, first, size)
        return
    for number, message in enumerate(_messages(stream, first), start=1):
        here = f"{path}/{number}"
        yield Refused(here, TOO_LARGE, message) if isinstance(message, int) else RawMail("", folder, here, message)


def _open(stream: Lines) -> bytes | str:
    """Reads the first border; gives the line below it, or why there is none."""
    line = stream.readline(PIECE).removeprefix(b"\xef\xbb\xbf")
    blank = 0
    while line and not line.strip():
        blank += len(line)
        line = stream.readline(PIECE) if blank < MAX_BLANK else b"."
    if not line:
        return EMPTY_MBOX
    below = stream.readline(PIECE) if _like_border(line) else b"."
    # Nothing below, or a blank line, is a message without headers: it is counted, and refused as what it is.
    return below if not below.strip() or _HEADER.match(below) else NOT_MBOX


def _messages(stream: Lines, first: bytes) -> Iterator[bytes | int]:
    """The messages from the first line of the first one on; of one that is too large to be read, its bytes."""
    body = bytearray()
    skipped = 0  # bytes of a message that is too large
    border = b""  # a line like a border; the next one decides what it is
    after_blank = False
    at_start = True  # of a line
    for piece in chain([first] if first else [], iter(partial(stream.readline, PIECE), b"")):
        line = piece
        if at_start:
            if border and _HEADER.match(line):
                yield skipped or _message(body)
                body, skipped = bytearray(), 0
            else:
                body += border
            border = b""
            if after_blank and line.startswith(b"From ") and _like_border(line):
                border, after_blank = line, False
                continue
            after_blank = line in (b"\n", b"\r\n")
            if line.startswith(b">") and _QUOTED.match(line):
                line = line[1:]
        at_start = piece.endswith(b"\n")
        if skipped or len(body) + len(line) > MAX_BYTES:
            skipped += len(body) + len(line)
            body = bytearray()
        else:
            body += line
    yield skipped or _message(body + border)  # below the last line there is nothing: no border


def _like_border(line: bytes) -> bool:
    """Whether a line has the form of a border.

    >>> _like_border(b"From 18@xxx Mon Apr 07 14:31:02 +0000 2025\\r\\n"), _like_border(b"From Monday on, at 9:30\\n")
    (True, False)
    """
    if len(line) > MAX_BORDER or not line.endswith(b"\n"):
        return False
    return all(pattern.search(line) for pattern in (_SENDER, _TIME, _YEAR, _DAY)) and line.startswith(b"From ")


def _message(body: bytearray) -> bytes:
    """A message without the blank line that stands between it and the next border."""
    for end, blank in ((b"\n\r\n", 2), (b"\n\n", 1)):
        if body.endswith(end):
            return bytes(memoryview(body)[:-blank])
    return bytes(body)
