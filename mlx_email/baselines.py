"""What a run is measured beside: what always says the most frequent action, counted at once, and what scikit-learn fits
to the training mail, once a run.

RUN/baselines.json   what the latter are worth on the test split, and of which table and messages that is
"""

import contextlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mlx_email import files
from mlx_email.errors import MlxEmailError
from mlx_email.evaluate import fitted, metrics
from mlx_email.labels.schema import Row, read_rows
from mlx_email.model import source
from mlx_email.model.wording import BODY_CHARACTERS
from mlx_email.progress import Progress

FILE = "baselines.json"
FEWEST = 100  # messages: what is right on fewer says little of how a policy stands beside it
MISSING = "TF-IDF and boosted trees are left out: pip install 'mlx-email[baselines]'"


def of_fitted(
    table: Path, data: str, train_count: int, rows: Sequence[Row], kept: Path | None, progress: Progress
) -> dict[str, dict[str, Any]]:
    """What the baselines of `evaluate.fitted` are worth on `rows` of a table, each by its name; fitted to its
    `train_count` training rows, evenly spaced ones of these where there are too many.

    Read from the file `kept` where that is of the same `data`, the table's SHA-256, and messages; written there else.
    Nothing, and a line that says so, where scikit-learn is not installed or there are too few messages.
    """
    about = {"data": data, "split": rows[0].split, "messages": len(rows)}
    if kept is not None and kept.is_file():
        before: dict[str, Any] = {}
        with contextlib.suppress(MlxEmailError):  # a damaged one is made again
            before = source.read_object(kept)
        if {name: before.get(name) for name in about} == about and isinstance(before.get("measured"), dict):
            return before["measured"]
    if min(len(rows), train_count) < FEWEST:
        progress.note(f"TF-IDF and boosted trees are left out: of fewer than {FEWEST} messages they say little")
        return {}
    if not fitted.installed():
        progress.note(MISSING)
        return {}
    if train_count > fitted.MOST_ROWS:
        progress.note(f"TF-IDF and boosted trees are fitted to {fitted.MOST_ROWS} of {train_count} messages")
    measured = {}
    with progress.phase("fitted the baselines"):
        train = training_rows(table, train_count)
        for name, fit in fitted.BASELINES.items():
            said = fit(train, rows)
            worth = {**metrics.certainty(rows, said), **metrics.shares(rows, said.argmax(axis=1))}
            measured[name] = {"trained_on": len(train), **worth}
    if kept is not None:
        with contextlib.suppress(OSError, MlxEmailError):  # a run that may only be read can be measured too
            files.write_json(kept, {**about, "measured": measured})
    return measured


def training_rows(table: Path, count: int) -> list[Row]:
    """The training rows, with their text, of a table that has `count`; evenly spaced ones where they are many."""
    most = min(count, fitted.MOST_ROWS)
    wanted = set(np.linspace(0, count - 1, most).round().astype(int).tolist())
    rows = read_rows(table, "train", body_characters=BODY_CHARACTERS)
    return [row for number, row in enumerate(rows) if number in wanted]


def joined(counted: dict[str, Any], measured: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """The accuracies of all of them by name, and under `measured` all else that is known of each."""
    accuracies = {name: found["accuracy"] for name, found in measured.items()}
    return {**counted, **accuracies, "measured": {**counted["measured"], **measured}}
