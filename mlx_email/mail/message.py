"""What one e-mail is, after reading: a frozen record, trusted by everything behind it."""

from datetime import datetime
from typing import Literal

import msgspec

from mlx_email.errors import DataError

# Which program exported the mailbox (X-FileName: *.nsf, *.pst). A Notes export has no trash, so there deleted and
# archived cannot be told apart; everything else is trusted like Outlook.
Era = Literal["notes", "outlook", "other"]

# What a mail program noted on a message, beside its text: Maildir's flags, Status headers, Gmail's labels, emlx's bits.
# "unseen" only where the source tells read from unread at all; "automatic" is what a program answered on its own.
Mark = Literal["answered", "forwarded", "flagged", "trashed", "draft", "unseen", "automatic"]

MAX_BYTES = 64 * 1024 * 1024  # of one message; larger ones are attachments with a letter around them


class NotMail(DataError):
    """These bytes cannot be read as one e-mail; the caller counts them as rejected, with this reason (no mail text)."""


class Message(msgspec.Struct, frozen=True, kw_only=True):
    """One e-mail as it lay in one folder. Text is clean Unicode: line ends are \\n, no NUL, no lone surrogate."""

    owner: str = ""  # the person whose mailbox it is
    folder: str = ""  # within the owner's mailbox, parts joined by "/"
    path: str = ""  # of the file within the owner's mailbox: folder/name
    message_id: str
    date: datetime | None = None  # UTC, when it was sent; None where the header is missing or cannot be true
    sender: str = ""  # address, lower case; "" where there is none
    sender_names: tuple[str, ...] = ()  # as written in From, X-From and Reply-To, directory names (CN=) included
    to: tuple[str, ...] = ()  # addresses, lower case
    cc: tuple[str, ...] = ()
    recipient_names: tuple[str, ...] = ()  # of To, Cc, X-To and X-cc
    subject: str = ""  # decoded, on one line
    body: str = ""  # all the text: what is new and what it quotes (`quotes.split` tells them apart)
    in_reply_to: str | None = None
    references: tuple[str, ...] = ()
    reply_to: tuple[str, ...] = ()  # addresses, lower case: where the sender wants answers
    labels: tuple[str, ...] = ()  # Gmail's, which stand for folders: a message has several. () where there are none
    marks: tuple[Mark, ...] = ()  # sorted, each once
    era: Era = "other"
