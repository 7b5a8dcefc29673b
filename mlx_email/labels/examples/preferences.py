"""Which of two messages an owner put first: the preferences a reward model learns from.

Source: stage 2 (Bradley-Terry): "replied beats not replied; among replied, faster by more than 2 h beats slower
(missing time = 100 h)", then action taken over ignored, important sender over less important, a thread that goes on
over one that does not.

Every rule compares one number of each message. The first rule whose numbers differ by more than its margin decides,
unless an earlier rule's numbers, within its margin, point the other way: then neither message is preferred. Without
that, margins would make cycles (A answered before B by 3 h, C in between and its sender more important than A's, B's
more than C's: A over B over C over A). With it every preference leads down the order of all numbers, so the relation
is a strict partial order: antisymmetric, transitive, without cycles.
"""

from bisect import bisect_right
from collections import defaultdict
from collections.abc import Sequence
from datetime import datetime
from typing import Literal, get_args

import msgspec

from mlx_email.labels.examples.doubt import SETTLED
from mlx_email.labels.examples.windows import LOOKAHEAD
from mlx_email.labels.schema import Row

Reason = Literal["replied", "faster", "acted", "important", "continued"]
REASONS: tuple[Reason, ...] = get_args(Reason)  # the rules, in the order in which they are asked

MISSING_HOURS = 100.0  # the response time where none is known, so of all that was not answered (the source's)
HOURS_MARGIN = 2.0  # between two response times (the source's)
SCORE_MARGIN = 0.2  # between two people_scores; a fifth of their range: the source names none
MARGINS: tuple[float, ...] = (0.0, HOURS_MARGIN, 0.0, SCORE_MARGIN, 0.0)  # in the order of REASONS

CHOSEN_ONLY = "kept_late"  # may yet be answered: never called the lesser of two


class Pair(msgspec.Struct, frozen=True):
    """Two messages of one owner; `chosen` was more worth an action than `rejected`."""

    chosen: Row
    rejected: Row
    reason: Reason


class Ranked(msgspec.Struct, frozen=True):
    """A message with the number each rule compares, the higher the better; None where it is not known."""

    row: Row
    numbers: tuple[float | None, ...]  # in the order of REASONS


def ranked(mail: Sequence[Row]) -> list[Ranked]:
    """The messages that can stand in a pair; `mail` of one owner and split, oldest first.

    Left out: labels that are neither settled nor kept_late, since a program or nobody has decided on the message. A
    message without trash to look in (no_trash) stays: archived and deleted are one to all rules, and that it was not
    answered is known.
    """
    return [
        Ranked(row, _numbers(row, goes_on))
        for row, goes_on in zip(mail, continued(mail), strict=True)
        if row.label_quality in SETTLED or row.label_quality == CHOSEN_ONLY
    ]


def _numbers(row: Row, goes_on: bool | None) -> tuple[float | None, ...]:
    replied = row.action == "replied"
    hours = MISSING_HOURS if row.response_time_hours is None else row.response_time_hours
    return (replied, -hours, replied or row.action == "forwarded", row.people_score, goes_on)


def continued(mail: Sequence[Row]) -> list[bool | None]:
    """Whether a later message of the thread came within the lookahead of 7 days; `mail` of one owner, oldest first.

    None where that is not known: the mail ends sooner, or the message has no thread. Made of what comes later, so
    part of a label, never of a prompt.
    """
    threads: dict[str, list[datetime]] = defaultdict(list)
    for row in mail:
        threads[row.thread_id].append(row.date)
    found: list[bool | None] = []
    for row in mail:
        dates = threads[row.thread_id]
        later = bisect_right(dates, row.date)
        if row.thread_id and later < len(dates) and dates[later] < row.date + LOOKAHEAD:
            found.append(True)
        else:
            found.append(False if row.thread_id and row.date + LOOKAHEAD <= mail[-1].date else None)
    return found


def preference(one: Ranked, other: Ranked) -> Pair | None:
    """The pair that two messages of one owner make, in whichever order they are given; None without a preference."""
    leaning = 0
    for reason, margin, mine, theirs in zip(REASONS, MARGINS, one.numbers, other.numbers, strict=True):
        if mine is None or theirs is None:
            continue
        direction = (mine > theirs) - (mine < theirs)
        if direction * leaning < 0:
            return None
        if abs(mine - theirs) > margin:
            chosen, rejected = (one.row, other.row) if direction > 0 else (other.row, one.row)
            return None if rejected.label_quality == CHOSEN_ONLY else Pair(chosen, rejected, reason)
        leaning = leaning or direction
    return None
