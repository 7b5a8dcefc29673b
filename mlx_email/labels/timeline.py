"""What could be seen of the outcomes, and when: received mail and what became of it, replayed in the order of time.

Everything that a prompt says of a sender is read off this timeline, so none of it can know more than the owner's
mailbox showed when the message came.
"""

from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import Literal, NamedTuple

from mlx_email.labels.actions import Outcome
from mlx_email.labels.answers import SLACK
from mlx_email.labels.duplicates import Mail, sent_at

What = Literal["arrived", "replied", "forwarded", "unanswered", "deleted", "kept"]

PATIENCE = timedelta(hours=72)  # a message unanswered this long counts as unanswered; most replies come within 18 h
SETTLED = timedelta(days=7)  # deletion and keeping leave no time in a mailbox: they count as seen after this long


class Event(NamedTuple):
    """Something that could be seen at `at`."""

    at: datetime
    late: bool  # not an arrival: what happens at the very moment of an arrival was not seen before it
    index: int  # of the received message, into the mails
    what: What
    hours: float | None = None  # response time of a reply


def timeline(mails: Sequence[Mail], outcomes: Mapping[int, Outcome]) -> list[Event]:
    """Every dated received message's arrival and what was seen of it, in order, up to the mailbox's last message.

    An answer is seen when it was sent, plus the clock slack in which `find_actions` may still give it to another
    message; deletion and keeping are seen after 7 days. An answer that only a flag shows is never seen: it may have
    been given at any time up to the export.
    """
    events: list[Event] = []
    for index, outcome in outcomes.items():
        date = mails[index].message.date
        if date is None:
            continue
        events += (Event(date, False, index, "arrived"), Event(date + PATIENCE, True, index, "unanswered"))
        events.append(Event(date + SETTLED, True, index, "deleted" if outcome.trashed else "kept"))
        if outcome.forwarded_at is not None:
            events.append(Event(max(outcome.forwarded_at, date) + SLACK, True, index, "forwarded"))
        if outcome.replied_at is not None:
            at = max(outcome.replied_at, date) + SLACK
            events.append(Event(at, True, index, "replied", outcome.response_hours))
    end = max((sent_at(mail.message) for mail in mails if mail.message.date), default=None)
    return sorted((event for event in events if end and event.at <= end), key=lambda event: event[:4])
