"""Sliding windows over an owner's mail: what had come by a moment, and what came in the days after it.

Source: stage 5 (temporal RLHF): windows of 30 days, lookahead 7 days, step 7 days. (!) The source scans the future
once per message; here every border is found by bisection.
"""

from bisect import bisect_left
from collections.abc import Iterable, Iterator
from datetime import datetime, timedelta

import msgspec

from mlx_email.labels.examples.order import by_owner
from mlx_email.labels.schema import Row

LENGTH = timedelta(days=30)
LOOKAHEAD = timedelta(days=7)
STEP = timedelta(days=7)


class Window(msgspec.Struct, frozen=True):
    """One owner's mail of [start, end), and of [end, end + lookahead); both oldest first, of one split."""

    user: str
    start: datetime
    end: datetime
    rows: tuple[Row, ...]  # never empty
    future: tuple[Row, ...]


def sliding_windows(
    rows: Iterable[Row], *, length: timedelta = LENGTH, lookahead: timedelta = LOOKAHEAD, step: timedelta = STEP
) -> Iterator[Window]:
    """The windows of every owner, owners by name and windows by time; the first begins with the owner's first message.

    Given only where the lookahead is complete, that is where the owner's last message of the split is not earlier
    than end + lookahead: otherwise what had not happened yet would count as what did not happen. So the mail of the
    last days (lookahead to lookahead + step) is in no window. Windows without a message are left out, at no cost.

    No row later than its own window is in `rows` or `future`, but a row's *label* may be: an answer sent after
    end + lookahead is known to `action`, so an outcome within the lookahead has to read `response_time_hours` too.

    Raises ValueError where length or step is not positive, or lookahead is negative.

    >>> rows = [Row(message_id=str(day), user="ann", date=datetime(2026, 1, 1) + timedelta(day), sender="bob@x.org")
    ...         for day in (0, 20, 31, 40, 45)]
    >>> [([row.message_id for row in w.rows], [row.message_id for row in w.future]) for w in sliding_windows(rows)]
    [(['0', '20'], ['31']), (['20', '31'], ['40'])]
    """
    if min(length, step) <= timedelta(0) or lookahead < timedelta(0):
        raise ValueError(f"length {length} and step {step} must be positive, lookahead {lookahead} not negative")
    for (user, _), mail in by_owner(rows).items():
        dates = [row.date for row in mail]
        start = dates[0]
        while start + length + lookahead <= dates[-1]:
            end = start + length
            first, last, after = (bisect_left(dates, border) for border in (start, end, end + lookahead))
            if first < last:
                yield Window(user, start, end, tuple(mail[first:last]), tuple(mail[last:after]))
                start += step
            else:  # on to the first window that holds the next message; there is one, as the last is later
                start += step * ((dates[first] - end) // step + 1)
