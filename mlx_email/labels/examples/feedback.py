"""What came after a message, and by that how well what its owner did with it turned out: the feedback of time.

Source: stage 5 (temporal RLHF). An answered message scores 1.0 where the matter went on after the answer, 0.7 where it
did not; a kept one 0.2 where its sender came back, 0.8 where they did not. The source leaves forwarding and deleting
open; here a forward scores 0.8 and 0.4 where the sender came back all the same, a deletion 0.9, and 0.1 where they did:
both a little further out than keeping, as a deletion is for good.

A matter goes on by whatever refers to the message, is of its thread, or is its sender's on its subject. The sender
comes back by the same of their own: what others write on a list says nothing of mail that was kept.

Nothing later than a horizon counts: neither mail, nor what the owner did by then. (!) The source scans all that came
later once per message; here each look-up is a bisection in a list found by its key.
"""

from bisect import bisect_left, bisect_right
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime, timedelta

import msgspec

from mlx_email.labels.examples.doubt import SETTLED, doubtful
from mlx_email.labels.examples.order import by_owner
from mlx_email.labels.examples.windows import LENGTH, LOOKAHEAD, STEP, sliding_windows
from mlx_email.labels.schema import Action, Observed, Row, predicted_action
from mlx_email.labels.subjects import normal_subject

# What was done -> its score where the matter went on (replied) or its sender came back (others), and where not.
SCORES: Mapping[Observed, tuple[float, float]] = {
    "replied": (1.0, 0.7),
    "forwarded": (0.4, 0.8),
    "archived": (0.2, 0.8),
    "deleted": (0.1, 0.9),
}


class Feedback(msgspec.Struct, frozen=True):
    """A message, what had been done with it by a moment, and how well that turned out."""

    row: Row
    seen: Action
    score: float  # 0..1, of what was done
    doubtful: frozenset[Action] = frozenset()  # what may have been done after all

    def of(self, action: Action) -> float:
        """The score of a prediction: what was done has its own, anything else what that lacks to 1."""
        return self.score if action == self.seen else 1 - self.score


class Review(msgspec.Struct, frozen=True):
    """A window of one owner's mail, looked back at from the end of its lookahead."""

    user: str
    start: datetime
    end: datetime
    horizon: datetime  # the end of its lookahead
    found: tuple[Feedback, ...]  # oldest first; may be empty
    censored: int  # messages of it whose outcome could not be known by the horizon


class Later:
    """What came after each message of one owner's mail in one split."""

    def __init__(self, mail: Sequence[Row]) -> None:
        """`mail` oldest first."""
        # By what joins it to an earlier message, and by that and its sender.
        self._anybody: dict[tuple[str, ...], list[datetime]] = defaultdict(list)
        self._sender: dict[tuple[str, ...], list[datetime]] = defaultdict(list)
        for row in mail:
            names = {("id", _id(name)) for name in (*row.references, *filter(None, [row.in_reply_to]))}
            for key in (*sorted(names), ("thread", row.thread_id)):
                self._anybody[key].append(row.date)
                self._sender[*key, row.sender.casefold()].append(row.date)
            self._sender["subject", normal_subject(row.subject), row.sender.casefold()].append(row.date)

    def went_on(self, row: Row, after: datetime, horizon: datetime) -> bool:
        """Whether, after a moment and before the horizon, a message came that refers to this one or is of its thread,
        or one on its subject from its sender."""
        return self.came_back(row, after, horizon) or any(
            _between(self._anybody.get(key, ()), after, horizon) for key in _keys(row)
        )

    def came_back(self, row: Row, after: datetime, horizon: datetime) -> bool:
        """The same, of its sender's own messages."""
        sender, subject = row.sender.casefold(), normal_subject(row.subject)
        keys = [(*key, sender) for key in _keys(row)] + ([("subject", subject, sender)] if subject else [])
        return any(_between(self._sender.get(key, ()), after, horizon) for key in keys)


def seen(row: Row, horizon: datetime) -> Row | None:
    """The message with what had been done with it before `horizon`; None where that cannot be told.

    It cannot where the label is not settled, and where only a flag says that it was answered or forwarded: that may
    have been at any time. When a message was deleted no mailbox says; it counts as done at once.
    """
    if row.label_quality not in SETTLED:
        return None
    hours = {"replied": row.response_time_hours, "forwarded": row.forward_time_hours}
    if row.action in hours and hours[row.action] is None:
        return None

    def done_after(known: float | None) -> bool:
        return known is not None and row.date + timedelta(hours=known) < horizon

    if row.action == "replied" and done_after(row.response_time_hours):
        return row
    if row.action in hours:
        later = "forwarded" if done_after(row.forward_time_hours) else "archived"
        return msgspec.structs.replace(row, action=later, response_time_hours=None)
    return row


def feedback(row: Row, horizon: datetime, later: Later) -> Feedback | None:
    """What was done with a message by `horizon`, and its score; None where it is censored. `later`: of its owner's
    mail."""
    by_then = seen(row, horizon)
    if by_then is None:
        return None
    if by_then.action == "replied":
        answered = row.date + timedelta(hours=by_then.response_time_hours or 0.0)
        more = later.went_on(row, answered, horizon)
    else:
        more = later.came_back(row, row.date, horizon)
    return Feedback(
        row=row,
        seen=predicted_action(by_then.action, by_then.response_time_hours),
        score=SCORES[by_then.action][not more],
        doubtful=doubtful(by_then),
    )


def reviews(
    rows: Iterable[Row], *, length: timedelta = LENGTH, lookahead: timedelta = LOOKAHEAD, step: timedelta = STEP
) -> list[Review]:
    """Every sliding window (`windows.sliding_windows`) with the feedback on its messages, in the order in which they
    could be known: by horizon, then owner.

    >>> rows = [Row(message_id=str(day), user="ann", date=datetime(2026, 1, 1) + timedelta(day), sender="bob@x.org",
    ...             subject="Budget") for day in (0, 20, 31, 40, 45)]
    >>> [[(found.row.message_id, found.score) for found in review.found] for review in reviews(rows)]
    [[('0', 0.2), ('20', 0.2)], [('20', 0.2), ('31', 0.2)]]
    """
    groups = by_owner(rows)
    later = {place: Later(mail) for place, mail in groups.items()}
    made = []
    for window in sliding_windows(
        (row for mail in groups.values() for row in mail), length=length, lookahead=lookahead, step=step
    ):
        horizon = window.end + lookahead
        known = later[window.user, window.rows[0].split]
        found = [feedback(row, horizon, known) for row in window.rows]
        kept = tuple(each for each in found if each is not None)
        made.append(Review(window.user, window.start, window.end, horizon, kept, len(found) - len(kept)))
    return sorted(made, key=lambda review: (review.horizon, review.user))


def each_alone(rows: Iterable[Row], within: Iterable[Row], lookahead: timedelta = LOOKAHEAD) -> Iterator[Feedback]:
    """The feedback on each message a lookahead after it came, where so much of its owner's mail is there. `within`: all
    mail of the split, `rows` or more."""
    groups = by_owner(within)
    later = {place: Later(mail) for place, mail in groups.items()}
    for row in rows:
        place = row.user, row.split
        horizon = row.date + lookahead
        if horizon <= groups[place][-1].date and (found := feedback(row, horizon, later[place])) is not None:
            yield found


def _keys(row: Row) -> list[tuple[str, str]]:
    """What joins a later message to this one."""
    return [("id", _id(row.message_id)), *([("thread", row.thread_id)] if row.thread_id else [])]


def _between(dates: Sequence[datetime], after: datetime, horizon: datetime) -> bool:
    return bisect_right(dates, after) < bisect_left(dates, horizon)


def _id(name: str) -> str:
    return name.strip().strip("<>")
