"""Metrics that are functions of counts: how often which action was right, and which was predicted."""

import numpy as np

from mlx_email.config import Metric
from mlx_email.labels.schema import ACTIONS

KINDS = len(ACTIONS)


def accuracy(target: np.ndarray, predicted: np.ndarray) -> float:
    """Share of right predictions."""
    return float(np.mean(target == predicted))


def confusion(target: np.ndarray, predicted: np.ndarray) -> np.ndarray:
    """Counts (5, 5): row = right action, column = predicted."""
    return confusions(np.zeros(len(target), int), target, predicted, 1)[0]


def confusions(group: np.ndarray, target: np.ndarray, predicted: np.ndarray, groups: int) -> np.ndarray:
    """The same by group (N,), from 0: counts (groups, 5, 5)."""
    cells = (group * KINDS + target) * KINDS + predicted
    return np.bincount(cells, minlength=groups * KINDS**2).reshape(groups, KINDS, KINDS)


def f1(counts: np.ndarray) -> np.ndarray:
    """F1 of each action from a confusion matrix, (5,): 2 tp / (2 tp + fp + fn); 0 for an action nobody took or said."""
    right = np.diag(counts).astype(float)
    return 2 * right / np.maximum(counts.sum(axis=0) + counts.sum(axis=1), 1)


def precision(counts: np.ndarray) -> np.ndarray:
    """Of what was predicted to be an action, the share that was, (5,); 0 for an action that was never predicted."""
    return np.diag(counts) / np.maximum(counts.sum(axis=0), 1)


def recall(counts: np.ndarray) -> np.ndarray:
    """Of what was an action, the share predicted to be, (5,); 0 for an action that nobody took."""
    return np.diag(counts) / np.maximum(counts.sum(axis=1), 1)


def macro_f1(target: np.ndarray, predicted: np.ndarray) -> float:
    """Mean F1 over the actions that occur among the targets or the predictions.

    >>> round(macro_f1(np.array([0, 0, 4, 4]), np.array([0, 4, 4, 4])), 4)
    0.7333
    """
    return float(scores(confusion(target, predicted)[None], "macro_f1")[0])


def scores(counts: np.ndarray, metric: Metric) -> np.ndarray:
    """Accuracy or macro-F1 of many confusion matrices (R, 5, 5), (R,)."""
    right = np.diagonal(counts, axis1=1, axis2=2).astype(float)
    if metric == "accuracy":
        return right.sum(axis=1) / np.maximum(counts.sum(axis=(1, 2)), 1)
    named = counts.sum(axis=1) + counts.sum(axis=2)
    return (2 * right / np.maximum(named, 1)).sum(axis=1) / np.maximum((named > 0).sum(axis=1), 1)
