"""One message for all its copies: a third of a mailbox's files are copies of mail in other folders."""

from collections.abc import Callable, Iterable
from datetime import datetime

import msgspec

from mlx_email.labels.letters import Digest, Letter, Place, letter
from mlx_email.mail.message import Mark, Message
from mlx_email.mail.sources import natural_key


class Mail(msgspec.Struct, frozen=True, kw_only=True):
    """A message and every folder of the owner in which a copy of it lay."""

    message: Message  # the copy whose path sorts first; its body may lie at `place` instead
    digest: Digest
    folders: tuple[str, ...]  # sorted, each once
    marks: tuple[Mark, ...] = ()  # of all copies; "unseen" and "draft" only where every copy is
    copies: int = 1
    place: Place | None = None
    ids: tuple[str, ...] = ()  # of all copies: an answer may name any of them


BodyOf = Callable[[Mail], str]  # gives a mail's body, from wherever it lies


def body_in_memory(mail: Mail) -> str:
    """The body of a mail that has it with it."""
    return mail.message.body


def unique(letters: Iterable[Letter]) -> list[Mail]:
    """The messages of one owner without copies, oldest first; the result does not depend on their order.

    Copies are told by what they say (`letters.content_key`): Message-IDs are unique per file in real exports.
    """
    found: dict[bytes, list[Letter]] = {}
    for copy in letters:
        found.setdefault(copy.digest.content, []).append(copy)
    return sorted(map(_joined, found.values()), key=lambda mail: (time_order(mail.message), mail.digest.content))


def mails_of(messages: Iterable[Message]) -> list[Mail]:
    """`unique` for messages that are in memory, bodies and all."""
    return unique(map(letter, messages))


def _joined(copies: list[Letter]) -> Mail:
    # By path; and by all the headers, as two sources may each have a file of that path.
    kept = min(copies, key=lambda copy: (path_order(copy.message), msgspec.json.encode(copy.message)))
    marks = {mark for copy in copies for mark in copy.message.marks}
    # One opened copy is enough; and a draft that was sent is one no more.
    marks -= {mark for mark in ("unseen", "draft") if not all(mark in copy.message.marks for copy in copies)}
    return Mail(
        message=kept.message,
        digest=kept.digest,
        folders=tuple(sorted({folder for copy in copies for folder in _folders(copy.message)})),
        marks=tuple(sorted(marks)),
        copies=len(copies),
        place=kept.place,
        ids=tuple(sorted({copy.message.message_id for copy in copies})),
    )


def _folders(message: Message) -> tuple[str, ...]:
    """Gmail's labels stand for folders: the file in which its export lies says nothing."""
    return message.labels or (message.folder,)


def sent_at(message: Message) -> datetime:
    """The date of a message that is known to have one; ValueError for one that has none."""
    if message.date is None:
        raise ValueError(f"{message.path} has no date")
    return message.date


def time_order(message: Message) -> tuple[float, str, list[tuple[int, int, str]]]:
    """Sorts by date (undated mail last), then by what no two messages of a mailbox share."""
    return (message.date.timestamp() if message.date else float("inf"), message.message_id, path_order(message))


def path_order(message: Message) -> list[tuple[int, int, str]]:
    return [natural_key(part) for part in message.path.split("/")]
