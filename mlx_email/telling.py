"""What a run tells of itself: a line in events.jsonl, and to the trackers it has."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from mlx_email.evaluate import predictions
from mlx_email.jobs import Run
from mlx_email.labels.schema import Row
from mlx_email.train import events


def tell(run: Run, event: dict[str, Any]) -> None:
    """Add a line to events.jsonl, of which there is one a stage, and pass it on."""
    events.append_once(run.folder, event)
    run.tracking.event(event)


TRACKED = ("message_id", "predicted", "actual", "correct", "confidence")


def columns(rows: Sequence[Row], probabilities: np.ndarray) -> tuple[Sequence[str], list[list[object]]]:
    """Columns and lines of a table of predictions, as trackers get it."""
    places = [predictions.COLUMNS.index(name) for name in TRACKED]
    return TRACKED, [[line[place] for place in places] for line in predictions.lines(rows, probabilities)]
