"""How good predictions are, in numbers. Arrays of action indices (into ACTIONS) in, plain values out."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from mlx_email.config import Metric
from mlx_email.labels.schema import ACTIONS, Row, predicted_action


def targets(rows: Sequence[Row]) -> np.ndarray:
    """The right action of each message as an index into ACTIONS, (N,) int."""
    return np.array([ACTIONS.index(predicted_action(row.action, row.response_time_hours)) for row in rows], int)


def accuracy(target: np.ndarray, predicted: np.ndarray) -> float:
    """Share of right predictions."""
    return float(np.mean(target == predicted))


def confusion(target: np.ndarray, predicted: np.ndarray) -> np.ndarray:
    """Counts (5, 5): row = right action, column = predicted."""
    counts = np.zeros((len(ACTIONS), len(ACTIONS)), int)
    np.add.at(counts, (target, predicted), 1)
    return counts


def f1(counts: np.ndarray) -> np.ndarray:
    """F1 of each action from a confusion matrix, (5,): 2 tp / (2 tp + fp + fn); 0 for an action nobody took or said."""
    right = np.diag(counts).astype(float)
    return 2 * right / np.maximum(counts.sum(axis=0) + counts.sum(axis=1), 1)


def macro_f1(target: np.ndarray, predicted: np.ndarray) -> float:
    """Mean F1 over the actions that occur among the targets or the predictions.

    >>> round(macro_f1(np.array([0, 0, 4, 4]), np.array([0, 4, 4, 4])), 4)
    0.7333
    """
    counts = confusion(target, predicted)
    occurs = (counts.sum(axis=0) + counts.sum(axis=1)) > 0
    return float(f1(counts)[occurs].mean())


def interval(right: np.ndarray, *, resamples: int = 2000, seed: int = 0) -> tuple[float, float]:
    """95% percentile bootstrap interval of a mean over messages, (low, high).

    Each resample of a 0/1 column has a binomial number of ones, so it is drawn directly.
    """
    drawn = np.random.default_rng(seed).binomial(len(right), right.mean(), resamples) / len(right)
    return _interval(drawn)


def calibration_error(confidence: np.ndarray, right: np.ndarray, bins: int = 10) -> float:
    """Expected calibration error: in bins of equal width over the confidence, the distance of mean confidence and share
    right, weighted by messages (Guo et al. 2017, arXiv 1706.04599, eq. 3).

    >>> calibration_error(np.array([0.75, 0.75, 0.75, 0.75]), np.array([True, True, True, False]))
    0.0
    """
    place = np.minimum((confidence * bins).astype(int), bins - 1)
    gaps = [abs(confidence[place == number].sum() - right[place == number].sum()) for number in range(bins)]
    return float(round(sum(gaps) / max(len(right), 1), 12))


def change(
    target: np.ndarray, before: np.ndarray, after: np.ndarray, metric: Metric, *, resamples: int = 2000, seed: int = 0
) -> tuple[float, float, float]:
    """How much better one policy's probabilities (N, 5) are than another's of the same messages: (change, low, high),
    the latter two its 95% percentile bootstrap interval over messages. Better is positive, of nll too.

    Paired: both sides of a resample are of the same messages, so what is hard for both does not widen the interval.
    """
    if metric == "nll":
        rows = np.arange(len(target))
        gained = np.log(np.maximum(after[rows, target], 1e-300)) - np.log(np.maximum(before[rows, target], 1e-300))
        rng = np.random.default_rng(seed)
        drawn = np.array([gained[rng.integers(0, len(gained), len(gained))].mean() for _ in range(resamples)])
        return float(gained.mean()), *_interval(drawn)
    # All that counts of a message is which of 5 x 5 x 5 (right, before, after) it is; resamples are counts of these.
    kinds = len(ACTIONS)
    place = (target * kinds + before.argmax(axis=1)) * kinds + after.argmax(axis=1)
    counts = np.bincount(place, minlength=kinds**3)
    drawn_counts = np.random.default_rng(seed).multinomial(len(target), counts / len(target), resamples)

    def gained_in(cubes: np.ndarray) -> np.ndarray:
        was, now = cubes.sum(axis=3), cubes.sum(axis=2)  # confusion counts (R, 5, 5)
        return _of_counts(now, metric) - _of_counts(was, metric)

    shape = (-1, kinds, kinds, kinds)
    return float(gained_in(counts.reshape(shape))[0]), *_interval(gained_in(drawn_counts.reshape(shape)))


def _of_counts(counts: np.ndarray, metric: Metric) -> np.ndarray:
    """Accuracy or macro-F1 of confusion counts (R, 5, 5), (R,)."""
    right = np.diagonal(counts, axis1=1, axis2=2).astype(float)
    if metric == "accuracy":
        return right.sum(axis=1) / np.maximum(counts.sum(axis=(1, 2)), 1)
    named = counts.sum(axis=1) + counts.sum(axis=2)
    return (2 * right / np.maximum(named, 1)).sum(axis=1) / np.maximum((named > 0).sum(axis=1), 1)


def _interval(drawn: np.ndarray) -> tuple[float, float]:
    low, high = np.percentile(drawn, [2.5, 97.5])
    return float(low), float(high)


def certainty(rows: Sequence[Row], probabilities: np.ndarray) -> dict[str, float]:
    """How far the confidences of some messages can be believed."""
    target, said = targets(rows), probabilities.argmax(axis=1)
    chosen = probabilities[np.arange(len(target)), target]
    return {
        "accuracy": accuracy(target, said),
        "nll": float(-np.log(np.maximum(chosen, 1e-300)).mean()),
        "confidence": float(probabilities.max(axis=1).mean()),
        "calibration_error": calibration_error(probabilities.max(axis=1), target == said),
    }


def summary(rows: Sequence[Row], probabilities: np.ndarray) -> dict[str, Any]:
    """The metrics of one set of messages: what metrics.json holds for a split."""
    target, predicted = targets(rows), probabilities.argmax(axis=1)
    counts = confusion(target, predicted)
    low, high = interval(target == predicted)
    chosen = probabilities[np.arange(len(target)), target]
    return {
        "messages": len(rows),
        "accuracy": accuracy(target, predicted),
        "accuracy_interval": [low, high],
        "macro_f1": macro_f1(target, predicted),
        "nll": float(-np.log(np.maximum(chosen, 1e-300)).mean()),
        "f1": dict(zip(ACTIONS, f1(counts).tolist(), strict=True)),
        "confusion": counts.tolist(),
        "confidence": float(probabilities.max(axis=1).mean()),
        "calibration_error": calibration_error(probabilities.max(axis=1), target == predicted),
        "subsets": subsets(rows, target, predicted),
    }


def subsets(rows: Sequence[Row], target: np.ndarray, predicted: np.ndarray) -> dict[str, dict[str, Any]]:
    """The same for parts of the messages that say how far the whole can be believed; empty parts are left out.

    straddling: in a thread that began in an earlier split; apart: in none; good_labels: what was done is known for sure
    (kept mail near the end of an export may only not be deleted yet).
    """
    chosen = {
        "straddling": np.array([row.straddles for row in rows], bool),
        "apart": np.array([not row.straddles for row in rows], bool),
        "good_labels": np.array([row.label_quality == "good" for row in rows], bool),
    }
    return {
        name: {
            "messages": int(mask.sum()),
            "accuracy": accuracy(target[mask], predicted[mask]),
            "macro_f1": macro_f1(target[mask], predicted[mask]),
        }
        for name, mask in chosen.items()
        if mask.any()
    }
