"""How far the reward of what the owner did is to be ahead of what they did not do: the margin of a pair.

The source names none. Ours is an assumption: the faster an answer, the surer that answering was right; a label that
may hide a deletion is half as clear; and two actions that are easily taken for each other are half as far apart.
"""

from mlx_email.labels.schema import Action, Row, predicted_action

HOURS = 4.0  # an answer after so long (the border of reply_now) is half as fast as one at once
CLOSE = (frozenset({"reply_now", "reply_later"}), frozenset({"archive", "delete"}))


def margin(row: Row, wrong: Action) -> float:
    """Between 0 and 1; for an action of `row`'s owner against one they did not take.

    (1 + speed) / 2, halved for a message without trash to look in, halved for close actions; speed is
    1 / (1 + hours / 4) for an answer, 1/2 where no time is known or nothing was answered.

    >>> from datetime import datetime
    >>> row = Row(message_id="1", user="ann", date=datetime(2026, 1, 2), sender="bob@example.com",
    ...           action="replied", response_time_hours=4.0)
    >>> margin(row, "archive"), margin(row, "reply_now")
    (0.75, 0.375)
    """
    known = row.action == "replied" and row.response_time_hours is not None
    speed = 1 / (1 + row.response_time_hours / HOURS) if known else 0.5
    clear = 0.5 if row.label_quality == "no_trash" else 1.0
    taken = predicted_action(row.action, row.response_time_hours)
    apart = 0.5 if frozenset({taken, wrong}) in CLOSE else 1.0
    return (1 + speed) / 2 * clear * apart
