"""How well the priority of messages is predicted, from what a model says of their actions alone."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from mlx_email.labels.schema import ACTIONS, Row, predicted_action


def by_action(train: Sequence[Row]) -> np.ndarray:
    """The mean priority_target of each action in the training rows, (5,); of an action nobody took: of all of them."""
    target = np.array([ACTIONS.index(predicted_action(row.action, row.response_time_hours)) for row in train], int)
    priority = np.array([row.priority_target for row in train], float)
    counts = np.bincount(target, minlength=len(ACTIONS))
    sums = np.bincount(target, weights=priority, minlength=len(ACTIONS))
    return np.where(counts > 0, sums / np.maximum(counts, 1), priority.mean() if len(train) else 0.5)


def summary(rows: Sequence[Row], probabilities: np.ndarray, means: np.ndarray) -> dict[str, Any]:
    """Mean absolute error and Spearman's rank correlation of the expected priority with `priority_target`.

    No priority is decoded when actions are scored, so the predicted one is the expectation over the five actions, by
    `probabilities` (N, 5), of what each was worth on average in training, `means` (5,).
    """
    expected = probabilities @ means
    actual = np.array([row.priority_target for row in rows], float)
    return {"mae": float(np.abs(expected - actual).mean()), "spearman": spearman(expected, actual)}


def spearman(one: np.ndarray, other: np.ndarray) -> float | None:
    """Rank correlation, -1 to 1: Pearson's, of ranks, those of equal values being their mean (Spearman 1904; Kendall
    1945 for ties). None where one of the two is constant: there is no order to agree with.

    >>> spearman(np.array([1.0, 2.0, 3.0]), np.array([10.0, 30.0, 20.0]))
    0.5
    """
    one, other = (_ranks(values) for values in (one, other))
    spread = np.sqrt((one**2).sum() * (other**2).sum())
    return float(round((one * other).sum() / spread, 12)) if spread > 0 else None


def _ranks(values: np.ndarray) -> np.ndarray:
    """Mean ranks less their mean, so that they sum to 0."""
    _, of, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return (last - (counts - 1) / 2)[of] - (len(values) + 1) / 2
