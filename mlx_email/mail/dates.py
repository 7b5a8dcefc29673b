"""When a message was sent."""

from datetime import UTC, datetime, timedelta
from email.utils import parsedate_tz

FIRST_YEAR, LAST_YEAR = 1990, 2099  # before: DOS and Unix epochs of broken clocks; after: nonsense
MAX_OFFSET = 14 * 3600  # seconds; the largest real offset from UTC is +14:00


def parse_date(header: str) -> datetime | None:
    """The UTC time of a Date header; None where it is missing, malformed or outside what can be true.

    >>> parse_date("Thu, 26 Oct 2000 08:19:00 -0700 (PDT)").isoformat()
    '2000-10-26T15:19:00+00:00'
    >>> parse_date("Mon, 31 Dec 1979 16:00:00 -0800"), parse_date("1 Jan 99999 00:00 +9999"), parse_date("")
    (None, None, None)
    """
    try:
        parts = parsedate_tz(header[:200])  # a date is short; the rest of a hostile header is not read
        if parts is None or not FIRST_YEAR <= parts[0] <= LAST_YEAR:
            return None
        offset = parts[9] or 0  # "-0000" and no zone at all: read as UTC
        if abs(offset) > MAX_OFFSET:
            return None
        return datetime(*parts[:6], tzinfo=UTC) - timedelta(seconds=offset)
    except (ValueError, TypeError, OverflowError, IndexError):  # day 32, hour 99, and parsedate_tz's own slips
        return None


def houston_to_utc(clock: datetime) -> datetime:
    """Read `clock`'s hands, whatever its zone, as US Central time, and give UTC.

    Notes exports wrote Houston's local time under another zone's name, so their dates run 5 to 6 hours early. The
    daylight saving rule is that of 1987 to 2006 (Notes mail ends in May 2001), by hand so that no machine's time
    zone tables can change a label. The hour that comes twice in October is read as the first.

    >>> houston_to_utc(datetime(2000, 11, 16, 14, 50, tzinfo=UTC)).hour, houston_to_utc(datetime(2000, 7, 1, 9)).hour
    (20, 14)
    """
    local = clock.replace(tzinfo=None)
    begin = _sunday_from(datetime(local.year, 4, 1, 2))  # first Sunday of April, 2:00
    end = _sunday_from(datetime(local.year, 10, 25, 2))  # last Sunday of October, 2:00
    hours = 5 if begin <= local < end else 6
    return local.replace(tzinfo=UTC) + timedelta(hours=hours)


def _sunday_from(day: datetime) -> datetime:
    return day + timedelta(days=(6 - day.weekday()) % 7)
