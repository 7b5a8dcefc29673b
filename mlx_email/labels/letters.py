"""What is kept of a message once it is read: its headers, and of its text what the labels need.

Bodies are most of a mailbox. They stay on disk (`spool`); in memory is what was found out of them, so that half a
million messages of one owner can be compared with each other.
"""

import re
from hashlib import sha256

import msgspec

from mlx_email.labels.features import TextFeatures, text_features
from mlx_email.labels.near import signature
from mlx_email.labels.subjects import normal_subject
from mlx_email.mail.message import Message
from mlx_email.mail.quotes import split

FINGERPRINT = 60  # squashed characters of a message by which its quotation is recognised
QUOTED = 400  # characters of a quotation that are kept: its heading, and where the first message in it begins

_FORWARD_SIGN = re.compile(r"Forwarded by\b|Original Message\b", re.IGNORECASE)  # anywhere, even below a signature
_NOT_WORD = re.compile(r"[\W_]+")


class Place(msgspec.Struct, frozen=True, array_like=True):
    """Where a body lies on disk."""

    chunk: int
    start: int  # bytes
    length: int  # bytes of UTF-8


class Digest(msgspec.Struct, frozen=True, array_like=True):
    """What the labels need to know of a message's text."""

    content: bytes  # equal for copies of one message
    features: TextFeatures
    fingerprint: str  # the text from the message's first own word on, as `squash` leaves it; "" without own words
    quotes: str  # the start of what the message quotes, headings included, as `squash` leaves it
    shows_forward: bool  # the text holds the heading of a forwarded or quoted message
    likeness: bytes  # of the message's own words: equal or near for near-duplicates


class Letter(msgspec.Struct, frozen=True):
    """One file of mail, read. With a `place`, the message's own `body` is empty and lies there."""

    message: Message
    digest: Digest
    place: Place | None = None


def letter(message: Message) -> Letter:
    """A message with what was found out of its text; it keeps its body."""
    return Letter(message, digest(message))


def digest(message: Message) -> Digest:
    """Everything that is found out of a message's text, which is read here only."""
    parts = split(message.body)
    own = parts.new or parts.quoted
    return Digest(
        content=content_key(message),
        features=text_features(message, parts),
        fingerprint=_fingerprint(message.body, parts.new),
        quotes=squash(parts.quoted[:QUOTED])[:QUOTED],
        shows_forward=parts.forwarded or _FORWARD_SIGN.search(message.body) is not None,
        likeness=signature(own) or _short_key(message.subject, own),
    )


def content_key(message: Message) -> bytes:
    """Equal for copies of one message: date, sender, subject and body. White space is not compared, as programs fold
    it differently."""
    date = message.date.isoformat() if message.date else ""
    return _key(date, message.sender, message.subject, " ".join(message.body.split()))


def _fingerprint(body: str, own: str) -> str:
    """As an answer quotes it: from the first own word on, with what the message itself quotes in between or below."""
    start = body.find(own.partition("\n")[0]) if own else -1
    return squash(body[start : start + 400])[:FINGERPRINT] if start >= 0 else ""


def _short_key(subject: str, text: str) -> bytes:
    """Too short a text to be like another one by its words ("thanks"): like it where subject and words are the same."""
    return _key(normal_subject(subject), squash(text))


def _key(*texts: str) -> bytes:
    return sha256("\0".join(texts).encode("utf-8", "surrogatepass")).digest()[:16]


def squash(text: str) -> str:
    """Letters and digits only: quoting changes line breaks, marks and white space.

    >>> squash("> So, what\\n> about 9?")
    'sowhatabout9'
    """
    return _NOT_WORD.sub("", text.lower())
