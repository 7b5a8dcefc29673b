"""Whether a run goes on with what a stage trained: only where it is not worse, on the same validation messages, than
the best that was there before it.

RUN/STAGE/validation.csv   what its policy said of those messages (`evaluate.predictions`)
         /gate.json        how good that is, beside what it is compared with, and whether the run goes on with it

A policy that is not kept stays in its folder; the next stage begins with the better one.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from mlx_email import files
from mlx_email.config import Gate
from mlx_email.evaluate import metrics, predictions
from mlx_email.labels.schema import Row
from mlx_email.model import source

GATE, PREDICTIONS = "gate.json", "validation.csv"


def judge(
    run: Path, stage: str, than: str | None, rows: Sequence[Row], probabilities: np.ndarray, settings: Gate
) -> dict[str, Any]:
    """Compare a stage's policy, by its `probabilities` (N, 5) of the validation messages `rows`, with that of the stage
    `than`, and publish the verdict.

    It is not kept where the 95% interval of the change (`metrics.change`, paired over messages) is all below 0.
    """
    found: dict[str, Any] = {"stage": stage, "than": than, "gate": msgspec.to_builtins(settings), "kept": True}
    predictions.write(run / stage / PREDICTIONS, rows, probabilities)
    found["validation"] = metrics.summary(rows, probabilities)
    if than is not None and settings.metric is not None:
        before = predictions.read(run / than / PREDICTIONS)
        gained, low, high = metrics.change(metrics.targets(rows), before, probabilities, settings.metric)
        found |= {"change": gained, "change_interval": [low, high], "kept": high >= 0}
    files.write_json(run / stage / GATE, found)
    return found


def verdict(run: Path, stage: str, than: str | None, settings: Gate) -> dict[str, Any] | None:
    """What was judged of a stage before, where the question was the same."""
    if not (run / stage / GATE).is_file():
        return None
    found = source.read_object(run / stage / GATE)
    asked = {"than": than, "gate": msgspec.to_builtins(settings)}
    return found if all(found.get(name) == value for name, value in asked.items()) else None


def better(one: dict[str, Any], other: dict[str, Any] | None, settings: Gate) -> bool:
    """Whether one verdict's policy is at least as good as another's by the gate's metric."""
    if other is None or settings.metric is None:
        return True
    metric = settings.metric
    sign = -1 if metric == "nll" else 1
    return sign * one["validation"][metric] >= sign * other["validation"][metric]


def said(found: dict[str, Any]) -> str:
    """A verdict in words."""
    metric, change = found["gate"]["metric"], found.get("change")
    if found["kept"] or change is None:
        return f"{found['stage']}: kept"
    low, high = found["change_interval"]
    return (
        f"{found['stage']}: rolled back: {metric} {change:+.3f} ({low:+.3f} to {high:+.3f}) on "
        f"{found['validation']['messages']} validation messages beside {found['than']}, with which the run goes on"
    )
