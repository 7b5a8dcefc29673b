"""What cannot be ruled out though the label says otherwise: no example may call such an action wrong."""

from mlx_email.labels.schema import ACTIONS, Action, Row, predicted_action

# Label qualities under which it is known whether the owner acted on a message. The others ("kept_late", "junk",
# "unseen") say that the owner has not decided yet, or that a program did.
SETTLED = frozenset({"good", "no_trash"})


def doubtful(row: Row) -> frozenset[Action]:
    """The actions, other than the labelled one, that may be what the owner did.

    no_trash: what seems archived may have been deleted. A reply without a time (a mail program's "answered") may have
    been sent at once. A label that is not settled: anything.

    >>> from datetime import datetime
    >>> row = Row(message_id="1", user="ann", date=datetime(2026, 1, 2), sender="bob@example.com")
    >>> doubtful(row)
    frozenset()
    >>> import msgspec
    >>> doubtful(msgspec.structs.replace(row, label_quality="no_trash"))
    frozenset({'delete'})
    """
    taken = predicted_action(row.action, row.response_time_hours)
    if row.label_quality not in SETTLED:
        return frozenset(ACTIONS) - {taken}
    if row.label_quality == "no_trash" and taken == "archive":
        return frozenset({"delete"})
    if row.action == "replied" and row.response_time_hours is None:
        return frozenset({"reply_now"})
    return frozenset()
