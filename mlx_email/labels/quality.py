"""Which dates and which labels can be trusted."""

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Literal

from msgspec.structs import replace

from mlx_email.labels.actions import Outcome
from mlx_email.labels.duplicates import Mail, time_order
from mlx_email.labels.folders import folder_kind

Quality = Literal["good", "no_trash", "kept_late"]

LATE = timedelta(days=30)  # kept mail this close to the export may only be not deleted, or not answered, yet
STRAY_GAP = timedelta(days=365)  # a date this far from all others ...
STRAY_SHARE = 0.02  # ... among fewer than this share of the owner's mail, is a broken clock or the export's time


def drop_stray_dates(mails: Sequence[Mail]) -> list[Mail]:
    """The mail of one owner with dates that cannot be true set to None, oldest first.

    A date is stray where fewer than 2% of the owner's messages lie beyond a gap of a year, before or after the rest
    (Enron: 1979, 1986, 2004, 2012, 2043). Small mailboxes, under 50 messages, have no stray dates.
    """
    dates = [mail.message.date for mail in mails if mail.message.date]
    first, last = _trusted_range(sorted(dates))
    kept = [
        mail if mail.message.date is None or first <= mail.message.date <= last else _undated(mail) for mail in mails
    ]
    return sorted(kept, key=lambda mail: time_order(mail.message))


def _undated(mail: Mail) -> Mail:
    return replace(mail, message=replace(mail.message, date=None))


def _trusted_range(dates: Sequence[datetime]) -> tuple[datetime, datetime]:
    low, high = 0, len(dates) - 1
    allowed = int(len(dates) * STRAY_SHARE)
    for index in range(1, allowed + 1):
        if dates[index] - dates[index - 1] > STRAY_GAP:
            low = index
        if dates[-index] - dates[-index - 1] > STRAY_GAP:
            high = len(dates) - 1 - index
    if not dates:
        return datetime.min, datetime.max
    return dates[low], dates[high]


def has_trash(mails: Sequence[Mail]) -> bool:
    """Whether the owner's export holds a trash folder at all."""
    return any(folder_kind(folder) == "trash" for mail in mails for folder in mail.folders)


def label_quality(mail: Mail, outcome: Outcome, *, trash_exported: bool, export_end: datetime) -> Quality:
    """How far the label can be trusted.

    "no_trash": archived, but the export had no trash (Notes), so it may have been deleted.
    "kept_late": archived within 30 days of the owner's last message, so it may not be deleted or answered yet.
    "good": all else; what was seen to be done was done.
    """
    if outcome.action != "archived":
        return "good"
    if mail.message.era == "notes" or not trash_exported:
        return "no_trash"
    return "kept_late" if mail.message.date and mail.message.date > export_end - LATE else "good"
