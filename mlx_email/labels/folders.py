"""What a folder's name says about the mail in it. Nested folders count by any part of their path."""

from functools import lru_cache
from typing import Literal

from mlx_email.mail.names import DRAFTS, JUNK, NOT_MAIL, SENT, TRASH, VIEWS, folder_key

Kind = Literal["sent", "trash", "not_mail", "view", "draft", "junk", "filed"]

# The first that a part of the path belongs to; a draft in the trash is deleted.
KINDS: tuple[tuple[frozenset[str], Kind], ...] = (
    (NOT_MAIL, "not_mail"),
    (SENT, "sent"),
    (TRASH, "trash"),
    (VIEWS, "view"),  # never an action
    (DRAFTS, "draft"),
    (JUNK, "junk"),
)


@lru_cache(maxsize=65536)
def folder_kind(folder: str) -> Kind:
    """The kind of a folder's path within the mailbox.

    >>> folder_kind("inbox"), folder_kind("_sent_mail"), folder_kind("Deleted Items/2001"), folder_kind("Calendar")
    ('filed', 'sent', 'trash', 'not_mail')
    >>> folder_kind("[Gmail]/Sent Mail"), folder_kind("Entwürfe"), folder_kind("Junk E-Mail"), folder_kind("Chats")
    ('sent', 'draft', 'junk', 'not_mail')
    """
    parts = {folder_key(part) for part in folder.split("/")}
    return next((kind for names, kind in KINDS if names & parts), "filed")
