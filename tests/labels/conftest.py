"""A letter in one line: the messages of hand-made mailboxes."""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import pytest

from mlx_email.mail.message import Message

START = datetime(2026, 1, 5, 9, tzinfo=UTC)


@pytest.fixture
def letter() -> Callable[..., Message]:
    """(hours after the start, folder, subject, ...) -> a message to Ann, the owner; or from her, in a sent folder."""
    numbers = iter(range(1, 10**6))

    def make(hours: float | None, folder: str = "inbox", subject: str = "Budget", **fields) -> Message:
        number = next(numbers)
        ann, bob = "ann@x.org", "bob@y.org"
        sent = folder.startswith("sent")
        values = {
            "owner": "low-a",
            "folder": folder,
            "path": f"{folder}/{number}.",
            "message_id": f"<{number}@x.org>",
            "date": None if hours is None else START + timedelta(hours=hours),
            "sender": ann if sent else bob,
            "to": (bob if sent else ann,),
            "subject": subject,
            "body": f"letter {number}",
        }
        return Message(**(values | fields))

    return make
