"""Whether labelled tables are as `prepare` wrote them, or as a run holds them."""

from pathlib import Path

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq

from mlx_email import sealed
from mlx_email.collect import RULE
from mlx_email.labels.prepare import COUNTS, FEATURES, MESSAGES, REJECTED, SENDERS, Prepared
from mlx_email.labels.schema import COLUMNS, OBSERVED, SPLITS, read_rows
from mlx_email.labels.tables import read_people
from mlx_email.sealed import MANIFEST, Damaged

TABLES = (FEATURES, MESSAGES, SENDERS)


def is_prepared(folder: Path) -> bool:
    """Whether a folder holds tables, as far as its names tell."""
    return any((folder / name).is_file() for name in (*TABLES, COUNTS))


def check_folder(folder: Path) -> None:
    """Raise where the tables of a folder are damaged: by its manifest where it has one, by what they hold anyway."""
    if (folder / MANIFEST).is_file():
        sealed.verify(folder)
    for name in (FEATURES, SENDERS):
        if not (folder / name).is_file():
            raise Damaged(f"{folder} has no {name}")
    rows = {name: check_table(folder / name) for name in TABLES if (folder / name).is_file()}
    if MESSAGES in rows and (folder / COUNTS).is_file():  # a run has the counts of a table that may have been cut since
        said = msgspec.json.decode((folder / COUNTS).read_bytes(), type=Prepared)
        for name, count in ((FEATURES, said.labelled), (MESSAGES, said.messages)):
            if rows[name] != count:
                raise Damaged(f"{folder / name} has {rows[name]} rows, and {COUNTS} says {count}")
    for name in (REJECTED, RULE):
        if (folder / name).is_file():
            for text in (folder / name).read_bytes().splitlines():
                msgspec.json.decode(text, type=dict)


def check_table(file: Path) -> int:
    """The rows of a table, all read; raises where its columns, their types or its labels are not ours."""
    if file.name == SENDERS:
        return len(read_people(file))
    if file.name == FEATURES:
        return sum(1 for _ in read_rows(file, body_characters=0))
    try:
        table = pq.ParquetFile(file)
        for field in COLUMNS:
            if field.name not in table.schema_arrow.names or table.schema_arrow.field(field.name).type != field.type:
                raise Damaged(f"{file}: column {field.name!r} is not {field.type}")
        return sum(_labelled(file, batch) for batch in table.iter_batches(batch_size=1024))
    except (OSError, pa.ArrowException) as error:
        raise Damaged(f"{file} is not a readable parquet file ({error})") from error


def _labelled(file: Path, batch: pa.RecordBatch) -> int:
    """The rows of a batch of messages.parquet, after a look at its labels, which sent mail has none of."""
    for name, known in (("action", OBSERVED), ("split", SPLITS)):
        if strange := set(batch[name].to_pylist()) - {*known, None}:
            raise Damaged(f"{file}: {name} {min(strange)!r} is none of {', '.join(known)}")
    return len(batch)
