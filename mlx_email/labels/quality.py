"""Which dates and which labels can be trusted."""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Literal

from msgspec.structs import replace

from mlx_email.labels.actions import Outcome, is_trashed
from mlx_email.labels.duplicates import Mail, time_order
from mlx_email.labels.folders import folder_kind

Quality = Literal["good", "no_trash", "kept_late", "junk", "unseen"]

LATE = timedelta(days=30)  # kept mail this close to the export may only be not deleted, or not answered, yet
# Dates this far after all others, all within a day, and of fewer than this share of the owner's mail, are a broken
# clock's or the export's time. (Who writes again after years does so on more than one day.)
STRAY_GAP, STRAY_DAY, STRAY_SHARE = timedelta(days=365), timedelta(days=1), 0.02


def drop_stray_dates(mails: Sequence[Mail]) -> list[Mail]:
    """The mail of one owner with dates that lie in no believable future set to None, oldest first.

    A date is stray where it lies a year and more after the rest, with fewer than 2% of the owner's messages and all of
    these within a day (Enron: 2004, 2012, 2043). Small mailboxes, under 50 messages, have no stray dates. Dates long
    before the rest are left alone: whether one is stray would depend on what came later, and every feature behind it
    with it. (What is after a stray date is later than it: mail that comes after it makes it true again.)
    """
    last = _last_trusted(sorted(mail.message.date for mail in mails if mail.message.date))
    kept = [mail if mail.message.date is None or mail.message.date <= last else _undated(mail) for mail in mails]
    return sorted(kept, key=lambda mail: time_order(mail.message))


def _undated(mail: Mail) -> Mail:
    return replace(mail, message=replace(mail.message, date=None))


def _last_trusted(dates: Sequence[datetime]) -> datetime:
    if not dates:
        return datetime.max.replace(tzinfo=UTC)
    end = len(dates)
    while True:  # one burst after another, from the end
        start = next((i for i in range(end - 1, 0, -1) if dates[i] - dates[i - 1] > STRAY_GAP), 0)
        burst = dates[end - 1] - dates[start] <= STRAY_DAY
        if not start or not burst or len(dates) - start > len(dates) * STRAY_SHARE:
            return dates[end - 1]
        end = start


def has_trash(mails: Sequence[Mail]) -> bool:
    """Whether the owner's export holds anything from the trash."""
    return any(map(is_trashed, mails))


def label_quality(mail: Mail, outcome: Outcome, *, trash_exported: bool, export_end: datetime) -> Quality:
    """How far the label can be trusted.

    "junk": archived, but in a folder for spam, where a program put it.
    "unseen": archived, but never opened, so nothing has been decided.
    "no_trash": archived, but the export had no trash (Notes), so it may have been deleted.
    "kept_late": archived within 30 days of the owner's last message, so it may not be deleted or answered yet.
    "good": all else; what was seen to be done was done.
    """
    if outcome.action != "archived":
        return "good"
    if any(folder_kind(folder) == "junk" for folder in mail.folders):
        return "junk"
    if "unseen" in mail.marks:
        return "unseen"
    if mail.message.era == "notes" or not trash_exported:
        return "no_trash"
    return "kept_late" if mail.message.date and mail.message.date > export_end - LATE else "good"
