"""How important a sender is to the owner, from what the owner did before: the sender's history."""

from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from heapq import heappop, heappush
from math import exp

from mlx_email.labels.actions import SLACK, Outcome
from mlx_email.labels.duplicates import Mail

PRIOR, PRIOR_WEIGHT = 0.5, 2.0  # a sender never seen scores 0.5; two messages move it halfway to what was seen
PATIENCE = timedelta(hours=72)  # a message unanswered this long counts as unanswered; most replies come within 18 h
REPLY_DECAY_HOURS = 24.0
FORWARD_VALUE = 0.5


def interest(outcome: Outcome) -> float:
    """What an outcome says of the sender, 0..1: 1 for an instant reply, falling to 0.5 over days; a forward 0.5.

    >>> interest(Outcome("replied", None, 0.0)), interest(Outcome("forwarded")), interest(Outcome("deleted"))
    (1.0, 0.5, 0.0)
    """
    if outcome.action == "replied":
        return 0.5 + 0.5 * exp(-(outcome.response_hours or 0.0) / REPLY_DECAY_HOURS)
    return FORWARD_VALUE if outcome.action == "forwarded" else 0.0


def people_scores(mails: Sequence[Mail], outcomes: Mapping[int, Outcome]) -> tuple[dict[int, float], dict[str, float]]:
    """The score of each received, dated message's sender before it came, by index; and of every sender at the end.

    score = (2 * 0.5 + sum of interest) / (2 + messages), over the sender's earlier messages. A message enters when
    its outcome could be seen: answered, when the answer was sent (plus the clock slack in which `find_actions` may
    still give that answer to another message); unanswered, after 72 hours. So a score reads only what is earlier.
    """
    pending: list[tuple[datetime, int, str, float, float]] = []  # (seen at, index, sender, messages, interest)
    seen: dict[str, tuple[float, float]] = {}
    scores: dict[int, float] = {}
    for index, outcome in sorted(outcomes.items(), key=lambda item: _date(mails, item[0])):
        message = mails[index].message
        if message.date is None:
            continue
        while pending and pending[0][0] < message.date:
            _count(seen, heappop(pending))
        scores[index] = _score(seen, message.sender)
        value, given_up = interest(outcome), message.date + PATIENCE
        answered = max(outcome.at, message.date) + SLACK if outcome.at and value else None
        if answered is not None and answered <= given_up:
            heappush(pending, (answered, index, message.sender, 1.0, value))
        else:
            heappush(pending, (given_up, index, message.sender, 1.0, 0.0))
            if answered is not None:
                heappush(pending, (answered, index, message.sender, 0.0, value))
    end = max((mail.message.date for mail in mails if mail.message.date), default=None)
    while pending and end and pending[0][0] <= end:  # what is still open at the end says nothing yet
        _count(seen, heappop(pending))
    return scores, {sender: _score(seen, sender) for sender in sorted(seen) if sender}


def _date(mails: Sequence[Mail], index: int) -> tuple[float, int]:
    date = mails[index].message.date
    return (date.timestamp() if date else float("inf"), index)


def _count(seen: dict[str, tuple[float, float]], event: tuple[datetime, int, str, float, float]) -> None:
    _, _, sender, messages, value = event
    before = seen.get(sender, (0.0, 0.0))
    seen[sender] = (before[0] + messages, before[1] + value)


def _score(seen: Mapping[str, tuple[float, float]], sender: str) -> float:
    messages, value = seen.get(sender, (0.0, 0.0)) if sender else (0.0, 0.0)
    return round((PRIOR * PRIOR_WEIGHT + value) / (PRIOR_WEIGHT + messages), 4)
