"""What a folder's name says about the mail in it. Nested folders count by any part of their path."""

from functools import lru_cache
from typing import Literal

from mlx_email.mail.sources import folder_key

Kind = Literal["sent", "trash", "not_mail", "view", "filed"]

SENT = frozenset({"sent", "sent_mail", "sent_items", "sent_messages"})
TRASH = frozenset({"deleted_items", "deleted_messages", "trash"})  # junk and private bins are filed
NOT_MAIL = frozenset({"calendar", "contacts", "tasks", "to_do"})
VIEWS = frozenset({"all_documents", "discussion_threads"})  # Notes shows the whole mailbox there: never an action


@lru_cache(maxsize=65536)
def folder_kind(folder: str) -> Kind:
    """The kind of a folder's path within the mailbox.

    >>> folder_kind("inbox"), folder_kind("_sent_mail"), folder_kind("Deleted Items/2001"), folder_kind("Calendar")
    ('filed', 'sent', 'trash', 'not_mail')
    """
    parts = {folder_key(part) for part in folder.split("/")}
    kinds: tuple[tuple[frozenset[str], Kind], ...] = (
        (NOT_MAIL, "not_mail"),
        (SENT, "sent"),
        (TRASH, "trash"),
        (VIEWS, "view"),
    )
    return next((kind for names, kind in kinds if names & parts), "filed")
