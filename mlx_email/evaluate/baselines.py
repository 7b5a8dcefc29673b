"""Predictions that need no model. Every accuracy is given beside theirs."""

from collections import Counter
from collections.abc import Sequence

import numpy as np

from mlx_email.evaluate.metrics import targets
from mlx_email.labels.schema import ACTIONS, Row


def majority(train: Sequence[Row], rows: Sequence[Row]) -> np.ndarray:
    """The most frequent action of the training rows, for every message; (N,) indices into ACTIONS."""
    return np.full(len(rows), _most_frequent(targets(train)))


def majority_per_owner(train: Sequence[Row], rows: Sequence[Row]) -> np.ndarray:
    """Each owner's most frequent action in the training rows; the overall one for an owner not seen there."""
    users = np.array([row.user for row in train])
    actions = targets(train)
    overall = _most_frequent(actions)
    usual = {user: _most_frequent(actions[users == user]) for user in dict.fromkeys(users.tolist())}
    return np.array([usual.get(row.user, overall) for row in rows], int)


def _most_frequent(actions: np.ndarray) -> int:
    """Ties go to the action that comes first in ACTIONS."""
    counts = Counter(actions.tolist())
    return max(range(len(ACTIONS)), key=lambda action: (counts[action], -action))
