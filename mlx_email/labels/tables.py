"""The tables on disk: rows in the columns of `schema.COLUMNS`, written a row group at a time."""

import contextlib
import os
from collections.abc import Generator, Iterator, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from mlx_email.errors import DataError
from mlx_email.labels.schema import COLUMNS

GROUP_ROWS = 4096
GROUP_CHARACTERS = 32 * 1024 * 1024  # of bodies; a group is written when either is reached

PEOPLE = pa.schema(
    [
        pa.field("user", pa.string(), nullable=False),
        pa.field("sender", pa.string(), nullable=False),
        pa.field("people_score", pa.float32(), nullable=False),
    ]
)

People = Mapping[tuple[str, str], float]  # (user, sender's address) -> score, 0..1


class TableWriter:
    """Collects rows (column name -> value) and appends them as row groups; the groups depend on the rows alone."""

    def __init__(self, writer: pq.ParquetWriter, columns: pa.Schema) -> None:
        self._writer, self._columns = writer, columns
        self._rows: list[Mapping[str, Any]] = []
        self._characters = 0

    def add(self, row: Mapping[str, Any]) -> None:
        self._rows.append(row)
        self._characters += len(row.get("body") or "")
        if len(self._rows) >= GROUP_ROWS or self._characters >= GROUP_CHARACTERS:
            self.flush()

    def flush(self) -> None:
        if self._rows:
            self._writer.write_table(pa.Table.from_pylist(self._rows, schema=self._columns))
        self._rows, self._characters = [], 0


@contextlib.contextmanager
def table_writer(path: Path, columns: pa.Schema = COLUMNS) -> Generator[TableWriter]:
    """Write a parquet file of mode 0600. The same rows give the same bytes."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "wb") as file, pq.ParquetWriter(file, columns, compression="zstd") as writer:
        table = TableWriter(writer, columns)
        yield table
        table.flush()


def read_people(path: Path) -> dict[tuple[str, str], float]:
    """The senders' scores at the end of the data. Raises DataError where the file is not one that `prepare` wrote."""
    try:
        table = pq.read_table(path)
    except (OSError, pa.ArrowInvalid) as error:
        raise DataError(f"{path} is not a readable parquet file ({error}): run mlx-email prepare") from error
    if table.schema != PEOPLE:
        raise DataError(f"{path} does not have the columns {', '.join(PEOPLE.names)}: run mlx-email prepare again")
    return {(row["user"], row["sender"]): row["people_score"] for row in table.to_pylist()}


def people_rows(people: Mapping[tuple[str, str], float]) -> Iterator[dict[str, Any]]:
    for (user, sender), score in sorted(people.items()):
        yield {"user": user, "sender": sender, "people_score": score}
