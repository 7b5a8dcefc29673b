"""How good predictions are, in numbers. Arrays of action indices (into ACTIONS) in, plain values out."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from mlx_email.config import Metric
from mlx_email.evaluate import bootstrap, groups, priority
from mlx_email.evaluate.calibration_error import BINS, adaptive_calibration_error, brier, calibration_error
from mlx_email.evaluate.counts import KINDS, accuracy, confusion, f1, macro_f1, precision, recall, scores
from mlx_email.labels.schema import ACTIONS, Row, predicted_action

TINY = 1e-300  # a probability of 0 has no logarithm
BY_GROUP = ("owners", "months")  # of a summary: parts as many as there are owners and months, under the names of these


def targets(rows: Sequence[Row]) -> np.ndarray:
    """The right action of each message as an index into ACTIONS, (N,) int."""
    return np.array([ACTIONS.index(predicted_action(row.action, row.response_time_hours)) for row in rows], int)


def summary(rows: Sequence[Row], probabilities: np.ndarray, priorities: np.ndarray | None = None) -> dict[str, Any]:
    """The metrics of one set of messages: what metrics.json holds for a split.

    `probabilities` (N, 5), columns in the order of ACTIONS; intervals are 95% bootstraps over threads; nll is in nats.
    With `priorities` (`priority.by_action` of the training rows) how well the messages' priority is predicted too.
    """
    target, predicted = targets(rows), probabilities.argmax(axis=1)
    counts = confusion(target, predicted)
    return {
        "messages": len(rows),
        "threads": int(bootstrap.threads(rows).max()) + 1,
        **certainty(rows, probabilities),
        **shares(rows, predicted),
        **{name: dict(zip(ACTIONS, of(counts).tolist(), strict=True)) for name, of in BY_ACTION.items()},
        "confusion": counts.tolist(),
        "calibration_bins": BINS,
        **({} if priorities is None else {"priority": priority.summary(rows, probabilities, priorities)}),
        "owners": groups.owners(rows, target, predicted),
        "months": groups.months(rows, target, predicted),
    }


def certainty(rows: Sequence[Row], probabilities: np.ndarray) -> dict[str, float]:
    """How far the confidences of some messages can be believed."""
    target, predicted = targets(rows), probabilities.argmax(axis=1)
    confidence, right = probabilities.max(axis=1), target == predicted
    chosen = probabilities[np.arange(len(target)), target]
    return {
        "accuracy": accuracy(target, predicted),
        "nll": float(-np.log(np.maximum(chosen, TINY)).mean()),
        "brier": brier(probabilities, target),
        "confidence": float(confidence.mean()),
        "calibration_error": calibration_error(confidence, right),
        "adaptive_calibration_error": adaptive_calibration_error(confidence, right),
    }


def shares(rows: Sequence[Row], predicted: np.ndarray) -> dict[str, Any]:
    """Accuracy and macro-F1 of predicted actions (N,), with their intervals, and of parts of the messages, such as
    those whose label is certain (`groups.subsets`)."""
    target, thread = targets(rows), bootstrap.threads(rows)
    drawn = bootstrap.resample(bootstrap.of_each(thread, target * KINDS + predicted, KINDS**2))
    drawn = drawn.reshape(-1, KINDS, KINDS)
    return {
        "accuracy": accuracy(target, predicted),
        "accuracy_interval": list(bootstrap.interval(scores(drawn, "accuracy"))),
        "macro_f1": macro_f1(target, predicted),
        "macro_f1_interval": list(bootstrap.interval(scores(drawn, "macro_f1"))),
        "subsets": groups.subsets(rows, target, predicted),
    }


BY_ACTION = {"precision": precision, "recall": recall, "f1": f1}


def change(
    target: np.ndarray,
    before: np.ndarray,
    after: np.ndarray,
    metric: Metric,
    *,
    thread: np.ndarray | None = None,
    resamples: int = bootstrap.RESAMPLES,
    seed: int = 0,
) -> tuple[float, float, float]:
    """How much better one policy's probabilities (N, 5) are than another's of the same messages: (change, low, high),
    the latter two its 95% percentile bootstrap interval over threads (N,), or where None over messages. Better is
    positive, of nll too.

    Paired: both sides of a resample are of the same messages, so what is hard for both does not widen the interval.
    """
    thread = np.arange(len(target)) if thread is None else thread
    if metric == "nll":
        rows = np.arange(len(target))
        gained = np.log(np.maximum(after[rows, target], TINY)) - np.log(np.maximum(before[rows, target], TINY))
        sums = np.stack([np.bincount(thread, weights=gained), np.bincount(thread)], axis=1)
        drawn = bootstrap.resample(sums, resamples=resamples, seed=seed)
        return float(gained.mean()), *bootstrap.interval(drawn[:, 0] / drawn[:, 1])
    # All that counts of a message is which of 5 x 5 x 5 (right, before, after) it is.
    place = (target * KINDS + before.argmax(axis=1)) * KINDS + after.argmax(axis=1)
    sums = bootstrap.of_each(thread, place, KINDS**3)
    drawn = bootstrap.resample(sums, resamples=resamples, seed=seed)

    def gained_in(cubes: np.ndarray) -> np.ndarray:
        cubes = cubes.reshape(-1, KINDS, KINDS, KINDS)
        was, now = cubes.sum(axis=3), cubes.sum(axis=2)  # confusion counts (R, 5, 5)
        return scores(now, metric) - scores(was, metric)

    return float(gained_in(sums.sum(axis=0))[0]), *bootstrap.interval(gained_in(drawn))
