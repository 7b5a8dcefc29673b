"""Several policies as one: probabilities (S, N, 5) of S members in, (N, 5) out."""

from typing import Literal

import numpy as np

Combining = Literal["average", "vote"]


def combined(members: np.ndarray, how: Combining) -> np.ndarray:
    """What S policies say together of N messages, (N, 5).

    average: the mean of their calibrated probabilities (Lakshminarayanan et al. 2017, arXiv 1612.01474, section 2.4);
    vote: the share of members whose likeliest action it is; among actions with as many votes the mean decides.

    >>> members = np.array([[[0.6, 0.4, 0, 0, 0]], [[0.55, 0.45, 0, 0, 0]], [[0.0, 1.0, 0, 0, 0]]])
    >>> combined(members, "average").argmax(), combined(members, "vote").argmax()
    (np.int64(1), np.int64(0))
    """
    mean = members.mean(axis=0)
    if how == "average":
        return mean
    votes = np.eye(members.shape[-1])[members.argmax(axis=-1)].mean(axis=0)
    # A tie is broken by less than half of what a vote is worth, so the order of counts stays as it is.
    tilted = votes + mean / (4 * len(members))
    return tilted / tilted.sum(axis=-1, keepdims=True)
