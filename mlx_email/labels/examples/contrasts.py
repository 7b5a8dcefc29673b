"""Contrasts: what the owner did against what they did not do, for DPO (the source's stage 4).

(!) The source compares label names ("replied") with action names ("reply_now"), so the right action could be its
rejected one, and it always takes the first wrong action. Here both are actions of `schema.ACTIONS`, and the rejected
one is drawn from all the wrong ones, hard ones more often.
"""

from collections.abc import Iterable, Mapping, Sequence
from math import isfinite
from random import Random

import msgspec

from mlx_email.errors import DataError
from mlx_email.labels.examples.doubt import doubtful
from mlx_email.labels.examples.order import by_owner, stream
from mlx_email.labels.schema import ACTIONS, Action, Row, predicted_action

# How often each wrong action is drawn, by what the owner did: the easier the two are confused, the more often. When
# to reply and where to put what needs no reply are the hard questions. An assumption, not a measurement: where the
# model's own probabilities are given, they take its place.
HARDNESS: Mapping[Action, Mapping[Action, float]] = {
    "reply_now": {"reply_later": 0.50, "forward": 0.20, "archive": 0.20, "delete": 0.10},
    "reply_later": {"reply_now": 0.45, "forward": 0.20, "archive": 0.25, "delete": 0.10},
    "forward": {"reply_now": 0.25, "reply_later": 0.35, "archive": 0.30, "delete": 0.10},
    "archive": {"reply_now": 0.15, "reply_later": 0.25, "forward": 0.15, "delete": 0.45},
    "delete": {"reply_now": 0.10, "reply_later": 0.15, "forward": 0.15, "archive": 0.60},
}

Probabilities = Mapping[tuple[str, str], Sequence[float]]  # (user, message_id) -> in the order of schema.ACTIONS


class Contrast(msgspec.Struct, frozen=True):
    """A message, what the owner did with it, and what they did not do."""

    row: Row
    chosen: Action
    rejected: Action


def contrasts(
    rows: Iterable[Row], seed: int, *, per_message: int = 1, probabilities: Probabilities | None = None
) -> list[Contrast]:
    """Up to `per_message` contrasts a message, no action twice; owner by owner, each in the order of time.

    What the owner may have done after all (`doubt.doubtful`) is never rejected; so a message that is not settled,
    where that is anything, makes no contrast. With `probabilities` wrong actions are drawn in proportion to them,
    by `HARDNESS` once all that are left have none.

    Raises ValueError where `per_message` is not positive, DataError where `probabilities` lacks a message or holds
    something else than a number >= 0 for each action.
    """
    if per_message < 1:
        raise ValueError(f"per_message is {per_message}: a message must be allowed to make a contrast")
    made: list[Contrast] = []
    for mail in by_owner(rows).values():
        for row in mail:
            weights = None if probabilities is None else _weights(row, probabilities)
            rng = stream(seed, "contrasts", row.user, row.message_id)
            taken = predicted_action(row.action, row.response_time_hours)
            made += [Contrast(row, taken, wrong) for wrong in wrong_actions(row, rng, per_message, weights)]
    return made


def wrong_actions(row: Row, rng: Random, count: int = 1, weights: Mapping[Action, float] | None = None) -> list[Action]:
    """Up to `count` different actions that the owner did not take, drawn one after another by weight.

    >>> from datetime import datetime
    >>> row = Row(message_id="1", user="ann", date=datetime(2026, 1, 2), sender="bob@example.com", action="deleted")
    >>> wrong_actions(row, Random(0), 2), sorted(wrong_actions(row, Random(0), 9))
    (['archive', 'forward'], ['archive', 'forward', 'reply_later', 'reply_now'])
    """
    taken = predicted_action(row.action, row.response_time_hours)
    ruled_out = doubtful(row) | {taken}
    left = [action for action in ACTIONS if action not in ruled_out]
    drawn: list[Action] = []
    while left and len(drawn) < count:
        if weights is None or not any(weights[action] for action in left):
            weights = HARDNESS[taken]
        drawn += rng.choices(left, [weights[action] for action in left])
        left.remove(drawn[-1])
    return drawn


def _weights(row: Row, probabilities: Probabilities) -> dict[Action, float]:
    found = probabilities.get((row.user, row.message_id))
    where = f"message {row.message_id!r} of {row.user!r}"
    if found is None:
        raise DataError(f"{where} has no probabilities: score all messages that contrasts are made of")
    if len(found) != len(ACTIONS) or not all(isfinite(value) and value >= 0 for value in found):
        raise DataError(f"{where}: {list(found)} are not the probabilities of {', '.join(ACTIONS)}")
    return dict(zip(ACTIONS, map(float, found), strict=True))
