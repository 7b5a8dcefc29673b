"""What the final policy said of the test mail."""

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mlx_email import final
from mlx_email.errors import DataError
from mlx_email.evaluate import calibrate
from mlx_email.labels.schema import ACTIONS


@dataclass(frozen=True)
class Said:
    """What a policy said of N messages, as `predict` would say it."""

    ids: Sequence[str]
    users: Sequence[str]
    actual: np.ndarray  # (N,) indices into ACTIONS
    raw: np.ndarray  # (N, 5), before calibration
    calibrated: np.ndarray  # (N, 5)
    method: str  # of calibration
    left_out: int = 0  # lines with numbers that are not finite

    @property
    def predicted(self) -> np.ndarray:
        return self.calibrated.argmax(axis=1)

    @property
    def confidence(self) -> np.ndarray:
        return self.calibrated.max(axis=1)

    @property
    def right(self) -> np.ndarray:
        return self.predicted == self.actual


def read(stage: Path) -> Said | None:
    """A stage's test.csv, calibrated as it is now; None where there is none. DataError where it is something else."""
    file = stage / final.PREDICTIONS
    if not file.is_file():
        return None
    try:
        with open(file, encoding="utf-8", newline="") as text:
            lines = list(csv.DictReader(text))
        names: Sequence[str] = ACTIONS
        actual = np.array([names.index(line["actual"]) for line in lines], int)
        raw = np.array([[float(line[action]) for action in ACTIONS] for line in lines]).reshape(-1, len(ACTIONS))
        about = [(line["message_id"], line["user"]) for line in lines]
    except (OSError, ValueError, KeyError, TypeError, csv.Error) as error:
        raise DataError(f"{file} is no table of predictions: {' '.join(str(error).split())}") from error
    good = np.flatnonzero(np.isfinite(raw).all(axis=1))
    raw, kept = raw[good], [about[place] for place in good]
    found = calibrate.read(stage)
    bare = found.method == "none" or not len(raw)
    calibrated = raw if bare else calibrate.calibrated(found, raw)
    ids, users = [each for each, _ in kept], [user for _, user in kept]
    return Said(ids, users, actual[good], raw, calibrated, found.method, len(about) - len(good))
