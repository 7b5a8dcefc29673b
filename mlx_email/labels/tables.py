"""The tables on disk. An owner's rows go to a shard first; the shards, one after the other, make the tables.

A shard is an Arrow stream, so that making rows of Python objects, which is slow, can be done by several processes, and
writing the tables is left with copying columns.
"""

import contextlib
import os
from collections.abc import Generator, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq

from mlx_email.errors import DataError
from mlx_email.files import open_private
from mlx_email.labels.people import Standing
from mlx_email.labels.schema import COLUMNS

GROUP_ROWS = 4096
GROUP_BYTES = 32 * 1024 * 1024  # a row group is written when either is reached
BATCH_ROWS = 256  # of a shard
BATCH_CHARACTERS = 4 * 1024 * 1024

PEOPLE = pa.schema(
    [pa.field("user", pa.string(), nullable=False), pa.field("sender", pa.string(), nullable=False)]
    + [COLUMNS.field(name) for name in Standing.__struct_fields__]
)

People = Mapping[tuple[str, str], Standing]  # (user, sender's address) -> what was known at the end of the data


def write_shard(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Rows (column name -> value) as record batches; `path` appears only when whole."""
    temporary = path.with_name(f"{path.name}-{os.getpid()}")
    with open_private(temporary) as file, pa.ipc.new_stream(file, COLUMNS) as stream:
        for batch in _batches(rows):
            stream.write_batch(pa.RecordBatch.from_pylist(batch, schema=COLUMNS))
    temporary.rename(path)


def _batches(rows: Iterable[Mapping[str, Any]]) -> Iterator[list[Mapping[str, Any]]]:
    batch: list[Mapping[str, Any]] = []
    characters = 0
    for row in rows:
        batch.append(row)
        characters += len(row.get("body") or "")
        if len(batch) >= BATCH_ROWS or characters >= BATCH_CHARACTERS:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch


def read_shard(path: Path) -> Iterator[pa.RecordBatch]:
    """The record batches of a shard, one in memory at a time."""
    with pa.OSFile(str(path)) as file, pa.ipc.open_stream(file) as stream:
        yield from stream


class TableWriter:
    """Collects record batches and appends them as row groups; the groups depend on the batches alone."""

    def __init__(self, writer: pq.ParquetWriter, columns: pa.Schema) -> None:
        self._writer = writer
        self._rows = columns.empty_table()

    def add(self, batch: pa.RecordBatch) -> None:
        self._rows = pa.concat_tables([self._rows, pa.Table.from_batches([batch])])
        while len(self._rows) >= GROUP_ROWS or self._rows.nbytes >= GROUP_BYTES:
            self._write()

    def finish(self) -> None:
        while len(self._rows):
            self._write()

    def _write(self) -> None:
        group = self._rows.slice(0, GROUP_ROWS)
        self._writer.write_table(group)
        self._rows = self._rows.slice(len(group))


@contextlib.contextmanager
def table_writer(path: Path, columns: pa.Schema = COLUMNS) -> Generator[TableWriter]:
    """Write a parquet file of mode 0600. The same rows give the same bytes."""
    with open_private(path) as file, pq.ParquetWriter(file, columns, compression="zstd") as writer:
        table = TableWriter(writer, columns)
        yield table
        table.finish()


def read_people(path: Path) -> dict[tuple[str, str], Standing]:
    """The senders' standing at the end of the data. Raises DataError where the file is not one that `prepare` wrote."""
    try:
        table = pq.read_table(path)
    except (OSError, pa.ArrowInvalid) as error:
        raise DataError(f"{path} is not a readable parquet file ({error}): run mlx-email prepare") from error
    if table.schema != PEOPLE:
        raise DataError(f"{path} does not have the columns {', '.join(PEOPLE.names)}: run mlx-email prepare again")
    return {(row["user"], row["sender"]): msgspec.convert(row, Standing) for row in table.to_pylist()}


def write_people(path: Path, people: People) -> None:
    """The senders' standing, by owner and sender."""
    rows = [
        {"user": user, "sender": sender, **msgspec.structs.asdict(standing)}
        for (user, sender), standing in sorted(people.items())
    ]
    with table_writer(path, PEOPLE) as table:
        for batch in pa.Table.from_pylist(rows, schema=PEOPLE).to_batches(max_chunksize=GROUP_ROWS):
            table.add(batch)
