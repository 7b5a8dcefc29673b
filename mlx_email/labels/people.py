"""Who matters to the owner: what the owner did before with a sender's mail."""

from collections import defaultdict, deque
from collections.abc import Mapping, Sequence
from math import exp
from statistics import median

import msgspec

from mlx_email.labels.actions import Outcome
from mlx_email.labels.duplicates import Mail
from mlx_email.labels.timeline import Event, What, timeline

PRIOR, PRIOR_WEIGHT = 0.5, 2.0  # a sender never seen scores 0.5; two messages move it halfway to what was seen
REPLY_VALUE, REPLY_BONUS, REPLY_DECAY_HOURS = 0.5, 0.5, 24.0
FORWARD_VALUE = 0.5
LAST = 20  # mails of a sender that its history counts

_RANK: Mapping[What, int] = {"deleted": 1, "kept": 1, "forwarded": 2, "replied": 3}  # what is seen later and is more


class Standing(msgspec.Struct, frozen=True):
    """What was known of a sender at one moment; the columns of that name."""

    people_score: float = PRIOR
    history_messages: int = 0
    history_answered: int = 0
    history_forwarded: int = 0
    history_deleted: int = 0
    history_kept: int = 0
    history_response_hours: float | None = None


def interest(what: What, hours: float | None = None) -> float:
    """What an outcome says of the sender, 0..1: 1 for an instant reply, falling to 0.5 over days (by `hours`, its
    response time); a forward 0.5; all else 0.

    >>> interest("replied", 0.0), interest("forwarded"), interest("kept")
    (1.0, 0.5, 0.0)
    """
    if what == "replied":
        return REPLY_VALUE + REPLY_BONUS * exp(-(hours or 0.0) / REPLY_DECAY_HOURS)
    return FORWARD_VALUE if what == "forwarded" else 0.0


class _Sender:
    """What has been seen of one sender so far."""

    def __init__(self) -> None:
        self.last: deque[int] = deque(maxlen=LAST)  # indexes of messages
        self.seen: dict[int, Event] = {}  # of those, what was seen last
        self.values: dict[int, float] = {}  # interest by message, of all messages that count
        self.total = 0.0  # of the values

    def add(self, event: Event) -> None:
        if event.what == "arrived":
            if len(self.last) == LAST:
                self.seen.pop(self.last[0], None)
            self.last.append(event.index)
            return
        if event.what != "unanswered" and event.index in self.last:
            before = self.seen.get(event.index)
            if before is None or _RANK[event.what] > _RANK[before.what]:
                self.seen[event.index] = event
        if event.what in ("unanswered", "replied", "forwarded"):
            value = max(interest(event.what, event.hours), self.values.get(event.index, 0.0))
            self.total += value - self.values.get(event.index, 0.0)
            self.values[event.index] = value

    def standing(self) -> Standing:
        seen = [event.what for event in self.seen.values()]
        hours = [event.hours for event in self.seen.values() if event.hours is not None]
        return Standing(
            people_score=round((PRIOR * PRIOR_WEIGHT + self.total) / (PRIOR_WEIGHT + len(self.values)), 4),
            history_messages=len(self.last),
            history_answered=seen.count("replied"),
            history_forwarded=seen.count("forwarded"),
            history_deleted=seen.count("deleted"),
            history_kept=seen.count("kept"),
            history_response_hours=round(median(hours), 4) if hours else None,
        )


def standings(
    mails: Sequence[Mail], outcomes: Mapping[int, Outcome]
) -> tuple[dict[int, Standing], dict[str, Standing]]:
    """The sender's standing before each received, dated message, by index; and every sender's at the end.

    people_score = (2 * 0.5 + sum of interest) / (2 + messages), over all the sender's messages whose outcome was seen
    by then: answered or forwarded, or unanswered for 72 hours. The history counts the last 20 messages by what was
    seen of them; those that are in no count are still open. Mail without a sender's address has no history.
    """
    senders: dict[str, _Sender] = defaultdict(_Sender)
    before: dict[int, Standing] = {}
    for event in timeline(mails, outcomes):
        name = mails[event.index].message.sender
        if event.what == "arrived":
            before[event.index] = senders[name].standing() if name else Standing()
        if name:
            senders[name].add(event)
    return before, {name: sender.standing() for name, sender in sorted(senders.items())}
