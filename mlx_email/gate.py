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
from mlx_email.model.lora import ADAPTERS

GATE, PREDICTIONS = "gate.json", "validation.csv"
FEWEST = 30  # messages


def judge(
    run: Path, stage: str, than: str | None, rows: Sequence[Row], probabilities: np.ndarray, settings: Gate
) -> dict[str, Any]:
    """Compare a stage's policy, by its `probabilities` (N, 5) of the validation messages `rows`, with that of the stage
    `than`; writes the former, and gives the verdict.

    It is not kept where the 95% interval of the change (`metrics.change`, paired over messages) is all below 0; of
    fewer messages than FEWEST no interval says anything, and it is.
    """
    predictions.write(run / stage / PREDICTIONS, rows, probabilities)
    found: dict[str, Any] = {"stage": stage, **_question(run, stage, than, settings), "kept": True}
    found["validation"] = metrics.summary(rows, probabilities)
    if than is not None and settings.metric is not None and len(rows) >= FEWEST:
        before = predictions.read(run / than / PREDICTIONS)
        gained, low, high = metrics.change(metrics.targets(rows), before, probabilities, settings.metric)
        found |= {"change": gained, "change_interval": [low, high], "kept": high >= 0}
    return found


def publish(run: Path, found: dict[str, Any]) -> None:
    """Write a verdict: it is not asked for again."""
    files.write_json(run / found["stage"] / GATE, found)


def verdict(run: Path, stage: str, than: str | None, settings: Gate) -> dict[str, Any] | None:
    """What was judged of a stage before, where the question was the same: the same two policies, asked the same."""
    if not (run / stage / GATE).is_file() or not (run / stage / PREDICTIONS).is_file():
        return None
    found = source.read_object(run / stage / GATE)
    asked = _question(run, stage, than, settings)
    return found if all(found.get(name) == value for name, value in asked.items()) else None


def _question(run: Path, stage: str, than: str | None, settings: Gate) -> dict[str, Any]:
    """What a verdict depends on."""
    return {
        "than": than,
        "gate": msgspec.to_builtins(settings),
        "policies": [None if each is None else files.sha256(run / each / ADAPTERS) for each in (stage, than)],
        "predictions": files.sha256(run / stage / PREDICTIONS),
    }


def better(one: dict[str, Any], other: dict[str, Any] | None, settings: Gate) -> bool:
    """Whether one verdict's policy is at least as good as another's by the gate's metric."""
    metric = settings.metric
    if other is None or metric is None or "validation" not in one or "validation" not in other:
        return True
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
