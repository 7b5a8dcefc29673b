"""One message for all its copies: a third of a mailbox's files are copies of mail in other folders."""

from collections.abc import Iterable
from datetime import datetime
from hashlib import sha256

import msgspec

from mlx_email.mail.message import Message
from mlx_email.mail.sources import natural_key


class Mail(msgspec.Struct, frozen=True, kw_only=True):
    """A message and every folder of the owner in which a copy of it lay."""

    message: Message  # the copy whose path sorts first
    folders: tuple[str, ...]  # sorted, each once
    copies: int = 1


def content_key(message: Message) -> bytes:
    """Equal for copies of one message: date, sender, subject and body. Message-IDs are unique per file in real
    exports, so they cannot tell; white space is not compared, as programs fold it differently."""
    date = message.date.isoformat() if message.date else ""
    text = "\0".join((date, message.sender, message.subject, " ".join(message.body.split())))
    return sha256(text.encode("utf-8", "surrogatepass")).digest()


def unique(messages: Iterable[Message]) -> list[Mail]:
    """The messages of one owner without copies, oldest first; the result does not depend on their order."""
    found: dict[bytes, tuple[Message, set[str], int]] = {}
    for message in messages:
        key = content_key(message)
        if key not in found:
            found[key] = (message, {message.folder}, 1)
            continue
        kept, folders, copies = found[key]
        folders.add(message.folder)
        found[key] = (min(kept, message, key=_path_order), folders, copies + 1)
    mails = [Mail(message=m, folders=tuple(sorted(folders)), copies=n) for m, folders, n in found.values()]
    return sorted(mails, key=lambda mail: time_order(mail.message))


def sent_at(message: Message) -> datetime:
    """The date of a message that is known to have one; ValueError for one that has none."""
    if message.date is None:
        raise ValueError(f"{message.path} has no date")
    return message.date


def time_order(message: Message) -> tuple[float, str, list[tuple[int, int, str]]]:
    """Sorts by date (undated mail last), then by what no two messages of a mailbox share."""
    return (message.date.timestamp() if message.date else float("inf"), message.message_id, _path_order(message))


def _path_order(message: Message) -> list[tuple[int, int, str]]:
    return [natural_key(part) for part in message.path.split("/")]
