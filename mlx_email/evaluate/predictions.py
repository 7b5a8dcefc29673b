"""What a policy said of some messages, as a CSV file: for people, for trackers, and to compare two policies message by
message. It holds ids and actions, never any mail text.

message_id, user, actual, predicted, correct, confidence, and the probability of each action by its name
"""

import csv
import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from mlx_email import files
from mlx_email.errors import DataError
from mlx_email.evaluate.metrics import targets
from mlx_email.labels.schema import ACTIONS, Row

COLUMNS = ("message_id", "user", "actual", "predicted", "correct", "confidence", *ACTIONS)


def lines(rows: Sequence[Row], probabilities: np.ndarray) -> list[tuple[object, ...]]:
    """A line a message, in the order of COLUMNS; probabilities (N, 5), columns in the order of ACTIONS."""
    found: list[tuple[object, ...]] = []
    for row, actual, of_actions in zip(rows, targets(rows), probabilities.tolist(), strict=True):
        said = of_actions.index(max(of_actions))
        about = (row.message_id, row.user, ACTIONS[actual], ACTIONS[said], bool(said == actual), of_actions[said])
        found.append((*about, *of_actions))
    return found


def write(file: Path, rows: Sequence[Row], probabilities: np.ndarray) -> None:
    """Publish the table, every digit of the probabilities kept."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    writer.writerows(lines(rows, probabilities))
    files.write(file, text.getvalue())


def read(file: Path) -> np.ndarray:
    """The probabilities of a table, (N, 5); DataError where it is not one."""
    return read_both(file)[0]


def read_both(file: Path) -> tuple[np.ndarray, np.ndarray]:
    """The same, and the right actions (N,) as indices into ACTIONS."""
    try:
        with open(file, encoding="utf-8", newline="") as text:
            found = [([float(line[action]) for action in ACTIONS], line["actual"]) for line in csv.DictReader(text)]
        target = np.array([ACTIONS.index(actual) for _, actual in found], int)
    except (OSError, ValueError, KeyError, TypeError, csv.Error) as error:
        raise DataError(f"{file} is no table of predictions: {' '.join(str(error).split())}") from error
    return np.array([each for each, _ in found], np.float64).reshape(-1, len(ACTIONS)), target
