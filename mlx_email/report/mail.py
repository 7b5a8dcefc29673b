"""What mail a run has: counts for a report, and the few headers that it shows."""

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from mlx_email.errors import DataError
from mlx_email.labels.schema import predicted_action

Counts = Mapping[tuple[str, str], int]  # messages by something and by split
Key = tuple[str, str]  # whose mailbox, and the message's id: several owners may have the same message


@dataclass(frozen=True)
class Mail:
    """Messages of the labelled table, counted."""

    actions: Counts
    owners: Counts
    months: Counts  # "2001-06"
    quality: Counts

    def of(self, split: str) -> int:
        return sum(count for (_, where), count in self.actions.items() if where == split)


@dataclass(frozen=True)
class Letter:
    """The headers of a message."""

    subject: str
    sender: str
    date: datetime | None


COUNTED = ("user", "date", "action", "response_time_hours", "label_quality", "split")


def counted(table: Path) -> Mail | None:
    """Count a features.parquet; None where there is none. DataError where it is something else."""
    if not table.is_file():
        return None
    try:
        read = pq.read_table(table, columns=list(COUNTED))
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"{table} cannot be read: {' '.join(str(error).split())}") from error
    done = zip(read["action"].to_pylist(), read["response_time_hours"].to_pylist(), strict=True)
    kinds: list[Sequence[str | None]] = [
        [predicted_action(action, hours) for action, hours in done],
        read["user"].to_pylist(),
        [None if date is None else date[:7] for date in read["date"].cast(pa.string()).to_pylist()],
        read["label_quality"].to_pylist(),
    ]
    splits = read["split"].to_pylist()

    def counts(values: Sequence[str | None]) -> Counts:
        return Counter((value or "unknown", split or "unknown") for value, split in zip(values, splits, strict=True))

    return Mail(*map(counts, kinds))


def letters(table: Path, wanted: Collection[Key]) -> dict[Key, Letter]:
    """The headers of some messages, of those that are there; no more of the table is in memory than a part of it."""
    if not wanted or not table.is_file():
        return {}
    ids = {message_id for _, message_id in wanted}
    columns = ["user", "message_id", "subject", "from", "date"]
    found = {}
    for batch in pq.ParquetFile(table).iter_batches(columns=columns):
        chosen = pa.array([each in ids for each in batch["message_id"].to_pylist()])
        for line in batch.filter(chosen).to_pylist():
            key = line["user"], line["message_id"]
            if key in wanted:
                found[key] = Letter(line["subject"] or "", line["from"] or "", line["date"])
    return found
