"""What a labelled mailbox is made of: the actions, one row, and the tables on disk.

`messages.parquet` holds all mail, both directions; `features.parquet` the received mail with its labels. Both have the
columns of `COLUMNS`, in that order; where a column means nothing (the action of a sent message) it is null.
"""

from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Literal, get_args

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq

from mlx_email.errors import DataError

Observed = Literal["replied", "forwarded", "deleted", "archived"]
Action = Literal["reply_now", "reply_later", "forward", "archive", "delete"]
Split = Literal["train", "validation", "test"]

OBSERVED: tuple[Observed, ...] = get_args(Observed)
ACTIONS: tuple[Action, ...] = get_args(Action)
SPLITS: tuple[Split, ...] = get_args(Split)

REPLY_NOW_HOURS = 4.0  # a reply within this many hours is reply_now, a later one reply_later (the source's border)

COLUMNS = pa.schema(
    [
        pa.field("message_id", pa.string(), nullable=False),
        pa.field("user", pa.string(), nullable=False),
        pa.field("date", pa.timestamp("us", tz="UTC")),
        pa.field("from", pa.string()),
        pa.field("to", pa.list_(pa.string())),
        pa.field("cc", pa.list_(pa.string())),
        pa.field("subject", pa.string()),
        pa.field("body", pa.string()),
        pa.field("in_reply_to", pa.string()),
        pa.field("references", pa.list_(pa.string())),
        pa.field("thread_id", pa.string()),
        pa.field("people_score", pa.float32()),
        pa.field("urgency", pa.float32()),
        pa.field("is_question", pa.bool_()),
        pa.field("is_action_request", pa.bool_()),
        pa.field("history_messages", pa.int32()),
        pa.field("history_answered", pa.int32()),
        pa.field("history_forwarded", pa.int32()),
        pa.field("history_deleted", pa.int32()),
        pa.field("history_kept", pa.int32()),
        pa.field("history_response_hours", pa.float32()),
        pa.field("action", pa.string()),
        pa.field("response_time_hours", pa.float32()),
        pa.field("forward_time_hours", pa.float32()),
        pa.field("priority_target", pa.float32()),
        pa.field("label_quality", pa.string()),
        pa.field("split", pa.string()),
        pa.field("straddles", pa.bool_()),
    ]
)


class Row(msgspec.Struct, frozen=True, kw_only=True, rename={"sender": "from"}):
    """One received, labelled message: a line of `features.parquet`."""

    message_id: str
    user: str
    date: datetime  # UTC
    sender: str  # column `from`
    to: tuple[str, ...] = ()
    cc: tuple[str, ...] = ()
    subject: str = ""
    body: str = ""
    in_reply_to: str | None = None
    references: tuple[str, ...] = ()
    thread_id: str = ""
    people_score: float = 0.5  # 0..1, importance of the sender to this owner, from earlier mail only
    urgency: float = 0.5  # 0..1
    is_question: bool = False
    is_action_request: bool = False
    # Of the last 20 mails from this sender to this owner, as far as it could be seen when this one arrived; what is in
    # none of the four is still open.
    history_messages: int = 0  # 0..20
    history_answered: int = 0
    history_forwarded: int = 0
    history_deleted: int = 0
    history_kept: int = 0
    history_response_hours: float | None = None  # median over the answered ones
    action: Observed = "archived"
    response_time_hours: float | None = None  # received -> owner's reply; None unless replied
    forward_time_hours: float | None = None  # received -> owner's first forward; None where there is none, or no time
    priority_target: float = 0.5  # 0..1, a label made from the outcome: never in a prompt
    label_quality: str = "good"
    split: Split = "train"
    straddles: bool = False  # its thread has a message in an earlier split


def predicted_action(action: Observed, response_time_hours: float | None) -> Action:
    """The action a model should predict for what the owner did.

    >>> predicted_action("replied", 1.5), predicted_action("replied", 30.0), predicted_action("archived", None)
    ('reply_now', 'reply_later', 'archive')
    """
    if action == "replied":
        fast = response_time_hours is not None and response_time_hours < REPLY_NOW_HOURS
        return "reply_now" if fast else "reply_later"
    return {"forwarded": "forward", "deleted": "delete", "archived": "archive"}[action]


def read_rows(path: Path, split: Split | None = None, *, body_characters: int | None = None) -> Iterator[Row]:
    """Rows of a `features.parquet`, in the file's order, one batch in memory at a time.

    With `body_characters` a body is cut to its first so many: a caller that keeps the rows keeps no 2 MB mail.
    Raises DataError, naming the column, where the table is not one that `prepare` wrote.
    """
    try:
        table = pq.ParquetFile(path)
    except (OSError, pa.ArrowInvalid) as error:
        raise DataError(f"{path} is not a readable parquet file ({error}): run mlx-email prepare") from error
    for field in COLUMNS:
        if field.name not in table.schema_arrow.names:
            raise DataError(f"{path} has no column {field.name!r}: run mlx-email prepare again")
        found = table.schema_arrow.field(field.name).type
        if found != field.type:
            raise DataError(f"{path}: column {field.name!r} is {found}, not {field.type}: run mlx-email prepare again")
    for batch in table.iter_batches(batch_size=1024, columns=COLUMNS.names):
        # Rows of other splits are dropped while they are columns: making Python objects of them is most of the cost.
        wanted = pa.array([split in (None, value) for value in batch["split"].to_pylist()])
        for values in batch.filter(wanted).to_pylist():
            values["body"] = (values["body"] or "")[:body_characters]
            try:
                yield msgspec.convert({k: v for k, v in values.items() if v is not None}, Row)
            except msgspec.ValidationError as error:
                raise DataError(f"{path}: message {values['message_id']!r}: {error}") from error
