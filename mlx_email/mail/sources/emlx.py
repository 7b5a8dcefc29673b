"""Apple Mail's .emlx: the length of the message on a line of its own, the message, and a property list with its flags.

Source of the bits: J. Zawinski, "emlx flags?" (2005), as the importers of Thunderbird and others use them.
"""

import plistlib
from typing import Any

from mlx_email.mail.message import Mark

MAX_PLIST = 2**20  # bytes; Apple Mail's have about a thousand

READ = 1 << 0
_BITS: tuple[tuple[int, Mark], ...] = (
    (1 << 1, "trashed"),
    (1 << 2, "answered"),
    (1 << 4, "flagged"),
    (1 << 6, "draft"),
    (1 << 8, "forwarded"),
)
_PLIST_STARTS = (b"<?xml", b"<!DOCTYPE plist", b"<plist")


def read_emlx(data: bytes) -> tuple[bytes, tuple[Mark, ...]]:
    """The message of an .emlx file and its marks; a damaged length or property list is read as well as can be.

    >>> read_emlx(b"7   \\nA: b\\n\\nc<plist><dict><key>flags</key><integer>5</integer></dict></plist>")
    (b'A: b\\n\\nc', ('answered',))
    """
    line, newline, rest = data.partition(b"\n")
    if not newline or not line.strip().isdigit():
        rest, length = data, -1  # no length: the message begins at once
    else:
        length = int(line[:20])
    if not 0 < length <= len(rest):
        length = _plist_start(rest, len(rest))
    elif not rest[length : length + 64].lstrip().startswith(_PLIST_STARTS):
        length = _plist_start(rest, length)
    return rest[:length], _marks(rest[length:])


def _plist_start(rest: bytes, otherwise: int) -> int:
    """Where the property list at the end of the file begins; `otherwise` where there is none."""
    floor = max(0, len(rest) - MAX_PLIST)
    last = rest.rfind(b"<plist", floor)
    if last < 0:
        return otherwise
    before = [rest.rfind(start, max(floor, last - 300), last) for start in _PLIST_STARTS[:2]]
    return min([place for place in before if place >= 0], default=last)


def _marks(plist: bytes) -> tuple[Mark, ...]:
    flags = _flags(plist)
    if flags is None:
        return ()
    unseen: list[Mark] = [] if flags & READ else ["unseen"]
    return tuple(sorted(unseen + [mark for bit, mark in _BITS if flags & bit]))


def _flags(plist: bytes) -> int | None:
    if not plist.strip() or len(plist) > MAX_PLIST:
        return None
    try:
        read: Any = plistlib.loads(plist.strip(), fmt=plistlib.FMT_XML)
        flags = read["flags"]
    except Exception:  # the parser raises a dozen kinds on a damaged list; entities it refuses
        return None
    return flags if isinstance(flags, int) and not isinstance(flags, bool) else None
