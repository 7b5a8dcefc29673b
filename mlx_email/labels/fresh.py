"""A message that has just come, as a row to predict from."""

from datetime import UTC, datetime

import msgspec

from mlx_email.labels.features import text_features
from mlx_email.labels.mailbox import feature_columns, message_row
from mlx_email.labels.people import Standing
from mlx_email.labels.schema import Row
from mlx_email.labels.tables import People
from mlx_email.mail.message import Message


def features_of(message: Message, people: People) -> Row:
    """One fresh message as a row: its outcome columns stay at their defaults.

    `people` is what `read_people` gives: what was known of the senders at the end of the data. A message whose owner is
    not in it is the only owner's, where there is only one; of an unknown sender nothing is known. A message without a
    date is given 1970: a row must have one, and no prompt shows it.
    """
    users = {user for user, _ in people}
    user = message.owner if message.owner in users or len(users) != 1 else next(iter(users))
    standing = people.get((user, message.sender), Standing())
    values = message_row(message, user, message.body, "") | feature_columns(text_features(message), standing)
    values["date"] = message.date or datetime(1970, 1, 1, tzinfo=UTC)
    return msgspec.convert({name: value for name, value in values.items() if value is not None}, Row)
